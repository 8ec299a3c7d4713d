"""Four-bit normal floats against bitsandbytes on a tiny Llama: places, and magnitudes of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.methods.nf4 import nf4_levels, nf4_round_trip


def unpacked(packed: Tensor, magnitudes: Tensor, shape: torch.Size) -> Tensor:
    """The matrix of two places a byte, the first in its upper half, and of a magnitude for every 64 of them."""
    places = torch.stack([packed >> 4, packed & 15], 1).flatten()[: shape.numel()].long()
    return (nf4_levels()[places] * magnitudes.repeat_interleave(64)[: shape.numel()]).reshape(shape)


@pytest.mark.parametrize("kind", ["single", "double"])
@pytest.mark.parametrize("part", ["whole", "cut"])
def test_what_is_left_of_a_matrix(golden: Any, close: Callable[..., None], part: str, kind: str) -> None:
    """The cut matrix has a last block that is not full."""
    theirs = golden.tensors("nf4.safetensors")
    matrix = golden.lm("tiny-llama", "fp32").matrix("model.layers.1.mlp.down_proj.weight")
    matrix = matrix if part == "whole" else matrix[:5, :51]
    expected = unpacked(theirs[f"{part}/{kind}/packed"], theirs[f"{part}/{kind}/magnitudes"], matrix.shape)
    close(nf4_round_trip(matrix, double=kind == "double"), expected, 1e-6, kind)
    assert 0.05 < float((expected - matrix).norm() / matrix.norm()) < 0.15
