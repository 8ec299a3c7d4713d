"""What an editor learned before its first edit, kept in a file that belongs to one model and one setting."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from harness.editing.editor import Editor, Learned
from harness.editing.hyperparameters import plain, settable, with_newer
from harness.editing.registry import configure
from harness.errors import DataError, UsageError
from harness.io.cache import cache_folder, in_cache, share
from harness.io.files import json_sha256
from harness.io.tensor_file import content_sha256, read_manifest, read_tensors, require_manifest, write_tensors
from harness.models.lm import LM

__all__ = [
    "default_path",
    "fit_command",
    "learned_by",
    "learned_content",
    "learned_digest",
    "load_learned",
    "path_of_weights",
    "require_learned",
    "require_usable",
    "require_writable_file",
    "save_learned",
]

FORMAT = 1
KIND = "fitted editor"


class _Manifest(TypedDict):
    """What the manifest of a fitted editor says besides its kind."""

    editor: str
    hyperparameters: dict[str, Any]
    model: str
    model_name: str
    dtype: str
    trained: dict[str, Any]


def default_path(editor: Editor, lm: LM) -> Path:
    """Where ``harness fit`` keeps what an editor learned of a model; the name holds both and its hyperparameters."""
    return path_of_weights(editor, lm.fingerprint())


def path_of_weights(editor: Editor, weights: str) -> Path:
    """As :func:`default_path`, of a model of which the sha256 of its weights is known.

    A hyperparameter that says what it was like before there was one (its metadata ``before``) is left out while it is.

    Args:
        editor: the editor.
        weights: the sha256.
    """
    before = {name: plain(f.metadata["before"]) for name, f in settable(type(editor)).items() if "before" in f.metadata}
    own = {k: v for k, v in editor.hyperparameters().items() if k not in before or v != before[k]}
    inputs = {"editor": editor.name, "hyperparameters": own, "model": weights}
    key = json_sha256(inputs)
    return cache_folder() / "fitted" / f"{editor.name}-{key[:24]}.safetensors"


def fit_command(editor: Editor, lm: LM) -> str:
    """The call of ``harness fit`` that makes what an editor needs, with all settings that are not its preset."""
    usual, seed = configure(type(editor), lm.name, {}).hyperparameters(), editor.hyperparameters().get("seed", 0)
    words = ["harness", "fit", "--editor", editor.name, "--model", lm.name]
    for key, value in editor.hyperparameters().items():
        if key != "seed" and value != usual[key]:
            words += ["--set", f"{key}={json.dumps(value)}"]
    words += ["--seed", str(seed)] if seed != 0 else []
    words += ["--dtype", _dtype(lm)] if _dtype(lm) != "float32" else []
    return shlex.join(words)


def _dtype(lm: LM) -> str:
    return str(lm.dtype).removeprefix("torch.")


def learned_digest(editor: Editor) -> str | None:
    """The sha256 of what was learned; None for editors that learn nothing."""
    known = editor.learned if isinstance(editor, Learned) else None
    return None if known is None else content_sha256(known)


def learned_content(path: Path) -> str:
    """The sha256 of what a file holds, as :func:`learned_digest` has it; the file's tensors are not read.

    Raises:
        DataError: it is damaged, or of another kind.
    """
    return str(read_manifest(path, KIND, FORMAT)["sha256"])


def require_writable_file(path: Path) -> None:
    """See that a file can be written before hours are spent on what it shall hold.

    Raises:
        UsageError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "no permission"
        raise UsageError(f"{path}: cannot be written ({reason}); choose another place")


def save_learned(editor: Learned, lm: LM, path: Path, *, trained: Mapping[str, Any]) -> None:
    """Write what was learned.

    Args:
        editor: the fitted editor.
        lm: the model that it was fitted to.
        path: the file.
        trained: what it learned from, for whoever reads the file.

    Raises:
        UsageError: the file cannot be written.
    """
    about = {
        "editor": editor.name,
        "hyperparameters": editor.hyperparameters(),
        "model": lm.fingerprint(),
        "model_name": lm.name,
        "dtype": _dtype(lm),
        "trained": dict(trained),
    }
    write_tensors(path, kind=KIND, version=FORMAT, manifest=about, tensors=editor.knowledge(lm))
    share(path)


def learned_by(path: Path) -> tuple[str, int]:
    """The editor that learned what a file holds, and from how many examples.

    Args:
        path: the file.

    Raises:
        DataError: it is not what :func:`save_learned` writes.
    """
    head = read_manifest(path, KIND, FORMAT)
    require_manifest(path, _Manifest, head)
    return str(head["editor"]), int(head["trained"]["count"])


def load_learned(editor: Learned, lm: LM, path: Path) -> Learned:
    """The editor with what a file says it has learned.

    Args:
        editor: the editor, not fitted.
        lm: the model that it was fitted to.
        path: the file.

    Raises:
        DataError: the file is damaged, or of another editor, setting or model; a tensor is not finite, or is not what
            the editor learns of the model.
    """
    head, tensors = read_tensors(path, KIND, FORMAT)
    require_manifest(path, _Manifest, head)
    if head["editor"] != editor.name:
        raise DataError(f"{path}: holds what {head['editor']} learned, not {editor.name}; give another file")
    if head["model"] != lm.fingerprint():
        raise DataError(
            f"{path}: was fitted to the model '{head['model_name']}' in {head['dtype']} ({head['model'][:12]}), not to "
            f"{lm.name} in {_dtype(lm)} ({lm.fingerprint()[:12]}); run `{fit_command(editor, lm)}`"
        )
    fitted = with_newer(type(editor), head["hyperparameters"])
    for key, value in editor.hyperparameters().items():
        known = fitted.get(key)
        if known != value:
            option = f"--seed {known}" if key == "seed" else f"--set {key}={json.dumps(known)}"
            raise DataError(f"{path}: was fitted with {key}={known}, not {value}; give {option}, or fit again")
    _require_layout(editor, lm, path, tensors)
    return replace(editor, learned={name: tensor.to(lm.device) for name, tensor in tensors.items()})


def _require_layout(editor: Learned, lm: LM, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """See that tensors are finite, and are those that the editor learns of this model.

    Raises:
        DataError: they are not; names the first.
    """
    cure = f"fit it again with `{fit_command(editor, lm)}`"
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path}: '{name}' holds a NaN or an infinity; {cure}")
    wanted = editor.layout(lm)
    if wanted is None:
        return
    for name in [*wanted, *tensors]:
        mine, theirs = (_said(found.get(name)) for found in (wanted, tensors))
        if mine != theirs:
            raise DataError(f"{path}: '{name}' is {theirs}, but {editor.name} learns {mine} of {lm.name}; {cure}")


def _said(tensor: Tensor | None) -> str:
    """The type and the shape of a tensor."""
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def require_usable(editor: Editor, path: str | None) -> None:
    """See, before a model is loaded, that an editor has use for a file of what it learned, and that there is one.

    Raises:
        UsageError: it needs no fitting but a file was given.
        DataError: the file is not there, or is damaged.
    """
    if path is not None and not isinstance(editor, Learned):
        raise UsageError(f"{editor.name} learns nothing before its first edit; leave out --fitted")
    if path is not None:
        require_manifest(Path(path), _Manifest, read_manifest(Path(path), KIND, FORMAT))


def require_learned(editor: Editor, lm: LM, path: str | None) -> Editor:
    """The editor with what it has learned; editors that learn nothing as they are.

    Args:
        editor: the configured editor.
        lm: the model.
        path: the file, None for that of ``harness fit`` with the same settings.

    Raises:
        UsageError: it has not been fitted, or needs no fitting but a file was given.
        DataError: the file cannot be used.
    """
    require_usable(editor, path)
    if not isinstance(editor, Learned):
        return editor
    file = Path(path) if path else default_path(editor, lm)
    if path is None and not in_cache(file):
        raise UsageError(f"{editor.name} must learn before its first edit; run `{fit_command(editor, lm)}`")
    return load_learned(editor, lm, file)
