"""A patch on disk: one file with a manifest, all seams, low rank kept low rank.

The file names the editor whose parts it holds and the model that it changes; another model is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from harness import __version__
from harness.editing.registry import find, require_trusted
from harness.errors import DataError, ModelError, UsageError
from harness.io import tensor_file
from harness.io.files import json_sha256
from harness.io.hashes import combined_sha256
from harness.models.lm import LM
from harness.patches.delta import Delta, delta_from_tensors
from harness.patches.patch import Part, Patch

__all__ = [
    "VERSION",
    "load_patch",
    "pack_patch",
    "patch_digest",
    "patch_manifest",
    "require_trusted_parts",
    "save_patch",
    "stored_digest",
    "unpack_patch",
]

VERSION = __version__
"""What saves patches; a patch that cannot be put back says it, so that one knows what to install."""

FORMAT = 1
KIND = "patch"


_Part = TypedDict("_Part", {"class": str, "settings": dict[str, Any]})


class _About(TypedDict, total=False):
    """What made the edits, as far as it is read again."""

    model: str
    dtype: str
    num_edits: int
    ids: list[str]


class _Manifest(TypedDict):
    """What the manifest of a patch says besides its kind."""

    editor: str
    model: str
    model_name: str
    version: str
    parts: dict[str, _Part]
    about: _About


def save_patch(
    patch: Patch,
    lm: LM,
    path: Path,
    *,
    editor: str,
    about: Mapping[str, Any] | None = None,
    unedited: str | None = None,
) -> None:
    """Write a patch; what stood at the path before survives a failure.

    Args:
        patch: the patch; its memory is not kept.
        lm: the model.
        path: the file.
        editor: the name of the method, as :func:`harness.editing.registry.find` takes it.
        about: what else the manifest shall say (plan, ids of the edits).
        unedited: the sha256 of the model without the patch; None where it carries none now.

    Raises:
        ModelError: a hook or rule is no :class:`harness.patches.patch.Part`.
        UsageError: the file cannot be written.
    """
    parts, tensors = pack_patch(patch, editor)
    head = {
        "editor": editor,
        "model": unedited or lm.fingerprint(),
        "model_name": lm.name,
        "version": VERSION,
        "parts": parts,
        "about": dict(about or {}),
    }
    tensor_file.write_tensors(path, kind=KIND, version=FORMAT, manifest=head, tensors=tensors)


def patch_manifest(path: Path) -> dict[str, Any]:
    """What a file says of itself, without its tensors.

    Raises:
        DataError: the file is damaged, no patch, or of a newer format.
    """
    head = tensor_file.read_manifest(path, KIND, FORMAT)
    tensor_file.require_manifest(path, _Manifest, head)
    return head


def require_trusted_parts(path: Path, trusted: bool) -> None:
    """Refuse a patch whose parts are made by an editor that it names by the path of its code.

    Args:
        path: the file; one that changes weights alone runs no code.
        trusted: whether the user has said that its code may run.

    Raises:
        UsageError: it may not.
        DataError: the file is damaged, no patch, or of a newer format.
    """
    head = patch_manifest(path)
    if head["parts"]:
        require_trusted(str(head["editor"]), path, trusted)


def load_patch(path: Path, lm: LM) -> Patch:
    """The patch of a file.

    Raises:
        DataError: the file is damaged, of a newer format, of another model, or of an editor that is not there or no
            longer has the part.
    """
    head, flat = tensor_file.read_tensors(path, KIND, FORMAT)
    tensor_file.require_manifest(path, _Manifest, head)
    if head["model"] != lm.fingerprint():
        dtype = head["about"].get("dtype")
        raise DataError(
            f"{path}: changes the model '{head['model_name']}' ({head['model'][:12]}), not {lm.name} "
            f"({lm.fingerprint()[:12]}); give that model{f' with --dtype {dtype}' if dtype else ''}"
        )
    return unpack_patch(path, head=head, flat=flat, lm=lm)


def pack_patch(patch: Patch, editor: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a patch holds: its parts, as values that JSON can write, and its tensors by name.

    Args:
        patch: the patch; its memory is not kept.
        editor: the name of the method.

    Raises:
        ModelError: a hook or rule is no :class:`harness.patches.patch.Part`.
    """
    tensors = {f"weights/{n}::{role}": t for n, delta in patch.weights.items() for role, t in delta.tensors().items()}
    parts = {}
    for where, part in _parts(patch):
        if not isinstance(part, Part):
            raise ModelError(
                f"{editor}: what it does at {where} cannot be saved; derive it from harness.patches.patch.Part"
            )
        parts[where] = {"class": type(part).__name__, "settings": part.settings()}
        tensors |= {f"{where}/{name}": tensor for name, tensor in part.tensors().items()}
    return parts, tensors


def unpack_patch(path: Path, *, head: Mapping[str, Any], flat: Mapping[str, Tensor], lm: LM) -> Patch:
    """The patch of what :func:`pack_patch` gave.

    Args:
        path: where it was, for errors.
        head: its ``editor``, ``parts`` and the ``version`` that saved it.
        flat: its tensors.
        lm: the model that it changes.

    Raises:
        DataError: the editor is not there or no longer has the part.
    """
    parts = {where: _restore(path, head, where, flat, lm) for where in head["parts"]}
    hooks = {where.removeprefix("hooks/"): part for where, part in parts.items() if where.startswith("hooks/")}
    return Patch(_weights(path, flat), hooks, parts.get("prompt"), parts.get("logits"))


def patch_digest(patch: Patch) -> str:
    """One sha256 over all that a patch changes, at every seam; as :func:`pack_patch`."""
    parts, tensors = pack_patch(patch, "a saved edit")
    return _digest(patch.weights, tensors, parts)


def stored_digest(path: Path) -> str:
    """The :func:`patch_digest` of a file's patch, for which no model is loaded and no code of its parts runs.

    Raises:
        DataError: the file is damaged, no patch, or of a newer format.
    """
    head, flat = tensor_file.read_tensors(path, KIND, FORMAT)
    tensor_file.require_manifest(path, _Manifest, head)
    return _digest(_weights(path, flat), flat, head["parts"])


def _digest(weights: Mapping[str, Delta], tensors: Mapping[str, Tensor], parts: Mapping[str, Any]) -> str:
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("weights/")}
    # A change is the same whether its factors are kept or their product.
    dense = {f"weights/{name}": delta.dense() for name, delta in weights.items()}
    tensor_sha256 = tensor_file.content_sha256({**dense, **own})
    return combined_sha256({"tensors": tensor_sha256, "parts": json_sha256(parts)})


def _parts(patch: Patch) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = [(f"hooks/{name}", hook) for name, hook in patch.hooks.items()]
    found += [(name, rule) for name, rule in (("prompt", patch.prompt), ("logits", patch.logits)) if rule is not None]
    return found


def _weights(path: Path, flat: Mapping[str, Tensor]) -> dict[str, Delta]:
    roles: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        if key.startswith("weights/"):
            name, _, role = key.removeprefix("weights/").rpartition("::")
            roles.setdefault(name, {})[role] = tensor
    return {name: delta_from_tensors(found, path, name) for name, found in roles.items()}


def _restore(path: Path, head: Mapping[str, Any], where: str, flat: Mapping[str, Tensor], lm: LM) -> Any:
    """A part again; its class is looked for only in the file of the editor that is named."""
    editor, part = head["editor"], head["parts"][where]
    try:
        cls = getattr(sys.modules[find(editor).__module__], part["class"], None)
    except UsageError as error:
        raise DataError(f"{path}: {error}") from error
    cure = f"install the version that saved the patch ({head['version']})"
    if not (isinstance(cls, type) and issubclass(cls, Part)):
        raise DataError(f"{path}: {editor} has no part '{part['class']}'; {cure}")
    own = {name.removeprefix(f"{where}/"): t for name, t in flat.items() if name.startswith(f"{where}/")}
    try:
        return cls.restore(lm, part["settings"], own)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: {editor} cannot make its part '{part['class']}' again ({reason}); {cure}") from error
