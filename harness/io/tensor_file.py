"""Tensors with a manifest in one safetensors file, written whole or not at all, and checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from harness.errors import DataError, UsageError
from harness.io.files import beside
from harness.io.hashes import combined_sha256, tensor_sha256
from harness.io.schema import checked, parsed

__all__ = [
    "ManifestHead",
    "content_sha256",
    "read_manifest",
    "read_tensors",
    "require_manifest",
    "save_whole",
    "write_tensors",
]


class ManifestHead(TypedDict):
    """What the manifest of every file says; each kind says more."""

    kind: str
    format: int
    sha256: str


def require_manifest(path: Path, kind: Any, head: Mapping[str, Any]) -> None:
    """See that a manifest says what its kind of file must say.

    Args:
        path: the file, for errors.
        kind: a ``TypedDict`` of what it says besides :class:`ManifestHead`.
        head: the manifest.

    Raises:
        DataError: it does not.
    """
    try:
        checked(kind, head)
    except ValueError as error:
        raise DataError(f"{path}: its manifest is not what this program writes ({error}); make it again") from error


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One sha256 over named tensors."""
    return combined_sha256({name: tensor_sha256(tensor) for name, tensor in tensors.items()})


def write_tensors(
    path: Path, *, kind: str, version: int, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file; what stood at the path before survives a failure, an interruption and a power cut.

    Args:
        path: the file.
        kind: what it is, for instance ``patch``.
        version: of its format.
        manifest: what it says of itself, as values that JSON can write.
        tensors: what it holds.

    Raises:
        UsageError: it cannot be written.
    """
    # Tensors that share memory are refused by safetensors; clones do not.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {**manifest, "kind": kind, "format": version, "sha256": content_sha256(plain)}
    head = json.dumps(about, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_whole(path, plain, {"manifest": f"{_sha256(head)} {head}"})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be written ({reason}); choose another place") from error


def save_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, no two of which share memory, and what is said of them: all of it or nothing.

    Args:
        path: the file, in a folder that is there.
        tensors: on the processor, contiguous.
        metadata: texts.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    with beside(path) as place:
        place.mkdir()  # safetensors writes to a temporary file of its own beside the one that is named
        partial = place / path.name
        partial.touch()
        mode = partial.stat().st_mode  # that of every new file; safetensors lets its owner alone read one
        save_file(dict(tensors), partial, metadata=dict(metadata))
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


def read_manifest(path: Path, kind: str, version: int) -> dict[str, Any]:
    """What a file says of itself.

    Args:
        path: the file.
        kind: what it must hold.
        version: the newest format that is understood.

    Raises:
        DataError: it is missing, damaged, of another kind, or of a newer format.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, kind, error) from error
    if "manifest" not in metadata:
        raise DataError(f"{path}: holds no {kind} but plain tensors; give another file")
    digest, _, text = metadata["manifest"].partition(" ")
    if digest != _sha256(text):
        raise _altered(path, "its manifest is")
    head = _head(path, kind, text)
    if head["kind"] != kind:
        raise DataError(f"{path}: holds no {kind} but a {head['kind']}; give another file")
    if head["format"] > version:
        raise DataError(f"{path}: has format {head['format']}, this program reads up to {version}; install a newer one")
    return head


def _head(path: Path, kind: str, text: str) -> dict[str, Any]:
    try:
        head = parsed(text)
        checked(ManifestHead, head)
    except ValueError as error:
        raise _unreadable(path, kind, error) from error
    return dict(head)


def read_tensors(path: Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of a file, which lie in memory as those that are computed do.

    Args:
        path: the file.
        kind: what it must hold.
        version: the newest format that is understood.

    Raises:
        DataError: as :func:`read_manifest`, or the tensors are not what was written.
    """
    head = read_manifest(path, kind, version)
    try:
        with safe_open(path, "pt") as file:
            # In the file they begin at any byte, and by where a matrix begins its products round.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _unreadable(path, kind, error) from error
    if content_sha256(tensors) != head["sha256"]:
        raise _altered(path, "the tensors are")
    return head, tensors


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path}: not a readable {kind} ({reason}); make it again or give another file")


def _altered(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what} not what was written; make it again")
