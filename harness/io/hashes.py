"""One way to say that two tensors, or two sets of them, are bitwise the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import xxhash
from torch import Tensor

__all__ = ["combined_sha256", "inner_tensors", "same_bits", "tensor_sha256", "tensor_xxh3"]


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One sha256 for named hashes, in the order of their names."""
    return hashlib.sha256("".join(name + digest for name, digest in sorted(hashes.items())).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """The sha256 of a tensor's bytes, its shape and its type."""
    return _fed(hashlib.sha256(), tensor)


def tensor_xxh3(tensor: Tensor) -> str:
    """The XXH3 hash (128 bits) of a tensor's bytes, its shape and its type: at the speed of memory, not published."""
    return _fed(xxhash.xxh3_128(), tensor)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two plain tensors are bitwise the same: a NaN is itself, 0.0 is not -0.0; read where they lie.

    Args:
        first: of any shape and type, not quantised.
        second: the other one.
    """
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.dtype.itemsize]
    return torch.equal(first.detach().view(whole), second.detach().view(whole))


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def inner_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that a tensor is made of, by name: codes and scales of a quantised one; none of a plain one."""
    # What torch itself asks of a tensor of many parts.
    named = getattr(tensor, "__tensor_flatten__", None)
    if named is None or type(tensor) in (Tensor, torch.nn.Parameter):
        return {}
    found = {name: getattr(tensor, name) for name in named()[0]}
    return {name: part for name, part in found.items() if isinstance(part, Tensor)}


def _fed(digest: _Digest, tensor: Tensor) -> str:
    """What a digest makes of a tensor."""
    parts = inner_tensors(tensor)
    if parts:
        digest.update(type(tensor).__qualname__.encode())
        for name, part in parts.items():
            digest.update(f"{name}{_fed(hashlib.sha256(), part)}".encode())
        return digest.hexdigest()
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
