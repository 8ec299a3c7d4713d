"""One way to say that two tensors, or two sets of them, are bitwise the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["combined_sha256", "tensor_sha256"]


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One sha256 for named hashes, in the order of their names."""
    return hashlib.sha256("".join(name + digest for name, digest in sorted(hashes.items())).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """The sha256 of a tensor's bytes, its shape and its type."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
