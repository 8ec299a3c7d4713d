"""Cholesky factors and spectra of second moments, kept on disk beside these, one file a layer and kind.

They take seconds to minutes a layer where keys are long, and every run with a moment needs them anew: the factor for
``C^-1`` (ROME, MEMIT, EMMET), the spectrum for null spaces (AlphaEdit) at any threshold. A file is known by the content
of the moment and by what decides how it was rounded, so that a solution is bitwise what it is without the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypedDict

from harness.errors import DataError, UsageError
from harness.io.cache import cache_folder, in_cache, share
from harness.io.files import json_sha256
from harness.io.locks import made_once
from harness.io.tensor_file import read_tensors, require_manifest, write_tensors
from harness.models.rounding import rounding_of

__all__ = ["LARGE", "DecompositionKind", "kept_decomposition"]

log = logging.getLogger(__name__)

FORMAT = 1
LARGE = 512
"""Keys from this length on take longer to decompose than their decomposition takes to read."""

DecompositionKind: TypeAlias = Literal["factor", "spectrum"]

_FOLDERS = {"factor": "factors", "spectrum": "spectra"}


class _Manifest(TypedDict):
    """What a file says besides its kind."""

    key: str
    moment: str


def kept_decomposition(
    kind: DecompositionKind, compute: Callable[[], dict[str, Tensor]], *, moment: str, size: int, device: torch.device
) -> dict[str, Tensor]:
    """What decomposes a second moment: as it was kept, or computed now and kept.

    Args:
        kind: which decomposition.
        compute: computes it; what it raises is raised.
        moment: the sha256 of the moment's matrix; empty for one that is not kept itself, of which nothing is kept.
        size: the length of a key.
        device: where it is computed.
    """
    if not moment or size < LARGE:
        return compute()
    key = json_sha256({"format": FORMAT, "kind": kind, "moment": moment, "rounding": rounding_of(device)})
    path = cache_folder() / _FOLDERS[kind] / f"{key}.safetensors"
    found = _read(path, kind, key)
    if found is None:
        with made_once(path) as waited:
            found = _read(path, kind, key) if waited else None
            found = found or _made(path, kind, compute, {"key": key, "moment": moment})
    return {name: tensor.to(device) for name, tensor in found.items()}


def _made(
    path: Path, kind: DecompositionKind, compute: Callable[[], dict[str, Tensor]], manifest: dict[str, object]
) -> dict[str, Tensor]:
    """What is computed now, as it will be read, that is, row by row; it is kept where it can be."""
    made = {name: tensor.contiguous() for name, tensor in compute().items()}
    try:
        write_tensors(path, kind=kind, version=FORMAT, manifest=manifest, tensors=made)
    except UsageError as error:
        log.warning("%s; it is not kept", str(error).partition("; ")[0])
        return made
    share(path)
    return made


def _read(path: Path, kind: DecompositionKind, key: str) -> dict[str, Tensor] | None:
    """What a file holds; None where there is none, or none that can be used, and a line says why."""
    if not in_cache(path):
        return None
    try:
        head, tensors = read_tensors(path, kind, FORMAT)
        require_manifest(path, _Manifest, head)
        if head["key"] != key:
            raise DataError(f"{path}: holds the {kind} of something else; delete the file")
    except DataError as error:
        log.warning("%s; it is computed again", str(error).partition("; ")[0])
        return None
    return tensors
