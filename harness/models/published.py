"""The sha256 of weights, which records publish, computed once for the bytes that a weight has.

A fast hash (XXH3, 128 bits) tells whether a tensor is bitwise what it was, at the speed of memory; a sha256 takes ten
times as long. So a tensor whose fast hash is known keeps its sha256, and those of a large model are kept on disk, named
by the fast hashes of all its tensors. Nothing is known by a path or a time: other bytes are another name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from typing_extensions import TypedDict

from harness.io.cache import cache_folder, in_cache, share
from harness.io.files import write_whole
from harness.io.hashes import combined_sha256, tensor_sha256, tensor_xxh3
from harness.io.schema import checked, parsed
from harness.models.offload import Weights, total_bytes

__all__ = ["Published", "fast_hashes"]

log = logging.getLogger(__name__)

_LARGE = 2**26
"""Bytes from which on the hashes of a model are kept on disk; a smaller one is hashed in a moment."""


class _File(TypedDict):
    """What is kept: the sha256 of each tensor by its fast hash."""

    sha256: dict[str, str]


def fast_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fast hash of each tensor by its name; memory that tensors share is read once.

    Args:
        tensors: the tensors, as they are now.
    """
    read: dict[object, str] = {}
    found = {}
    # Those that are fetched one after the other may all lie at one place.
    fetched = tensors.fetched if isinstance(tensors, Weights) else frozenset()
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device
        alone = (
            name in fetched or tensor.numel() == 0 or not tensor.data_ptr()
        )  # where nothing lies, a place tells nothing
        if alone or place not in read:
            read[place] = tensor_xxh3(tensor)
        found[name] = read[place]
    return found


@dataclass(eq=False)
class Published:
    """The sha256 of tensors by their fast hashes.

    Attributes:
        known: fast hash -> sha256.
    """

    known: dict[str, str] = field(default_factory=dict)

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """The sha256 of some tensors, by their names.

        Args:
            tensors: the tensors, as they are now.
        """
        fast = fast_hashes(tensors)
        for name in tensors:
            if fast[name] not in self.known:
                self.known[fast[name]] = tensor_sha256(tensors[name])
        return {name: self.known[fast[name]] for name in tensors}

    def of_model(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """The sha256 of all tensors of a model, from the disk where those of the same bytes are kept.

        Args:
            tensors: the tensors, as they are now.
        """
        fast = fast_hashes(tensors)
        missing = set(fast.values()) - self.known.keys()
        large = total_bytes(tensors) >= _LARGE
        path = _path(fast)
        if missing and large:
            self.known.update(_read(path))
        found = self.of(tensors) if set(fast.values()) - self.known.keys() else None
        if found is not None and large:
            _keep(path, {fast[name]: sha256 for name, sha256 in found.items()})
        return found or {name: self.known[fast[name]] for name in tensors}


def _path(fast: Mapping[str, str]) -> Path:
    return cache_folder() / "weights" / f"{combined_sha256(fast)}.json"


def _read(path: Path) -> dict[str, str]:
    """What is kept of a model; nothing where nothing is, or where it cannot be read."""
    if not in_cache(path):
        return {}
    try:
        kept = parsed(path.read_bytes())
        checked(_File, kept)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: hashes of weights that were kept cannot be used (%s); they are computed again", path, error)
        return {}
    return dict(kept["sha256"])


def _keep(path: Path, found: Mapping[str, str]) -> None:
    """Keep the hashes of a model; a cache that cannot be written costs their computation alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"sha256": found}).encode())
    except OSError as error:
        log.warning("%s: hashes of weights cannot be kept (%s)", path, error)
        return
    share(path)
