"""The hashes of a model's weights where they are asked for again and again, and few weights change in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from harness.io.hashes import combined_sha256, inner_tensors, tensor_sha256
from harness.models.lm import LM
from harness.models.offload import Weights

__all__ = ["WeightHashes"]

_Mark: TypeAlias = tuple[object, ...]


@dataclass(eq=False)
class WeightHashes:
    """The sha256 of every parameter and buffer of one model; of a tensor that was not written since, the one known.

    Whether it was is told by where it lies, how often torch says that it was written, and the sum of its bits: what is
    written past torch's count (``.data``) is seen by the sum, which reads a gigabyte in a tenth of a second.
    """

    known: dict[str, tuple[_Mark, str]] = field(default_factory=dict)

    def of(self, lm: LM) -> dict[str, str]:
        """The hashes as the tensors are now, by name; tensors that are tied have one name."""
        tensors = Weights(lm.model, {**dict(lm.model.named_parameters()), **dict(lm.model.named_buffers())})
        return {name: self._hash(name, tensor.detach()) for name, tensor in tensors.items()}

    def _hash(self, name: str, tensor: Tensor) -> str:
        parts = inner_tensors(tensor)
        if parts:
            return combined_sha256({part: self._hash(f"{name}.{part}", value) for part, value in parts.items()})
        mark = (tensor.data_ptr(), tensor._version, tensor.dtype, tuple(tensor.shape), _sum_of_bits(tensor))
        if name not in self.known or self.known[name][0] != mark:
            self.known[name] = mark, tensor_sha256(tensor)
        return self.known[name][1]


def _sum_of_bits(tensor: Tensor) -> int:
    """The bits of a tensor as whole numbers of eight bytes, added up; what overflows is left out."""
    plain = tensor.contiguous()
    if plain.storage_offset() * plain.element_size() % 8:
        plain = plain.clone()
    flat = plain.reshape(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())
