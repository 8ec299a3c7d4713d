"""Four-bit normal floats: what is left of a matrix whose numbers are kept as places among sixteen quantiles.

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv
2305.14314, section 3 and appendix E.  Of every block of 64 numbers the largest magnitude is kept, and of each number
the nearest quantile of a normal distribution that is scaled to end at 1.  Doubly quantised, these magnitudes less their
mean are numbers of eight bits themselves (Dettmers et al. 2022, arXiv 2110.02861, section 2.2), in blocks of 256.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["nf4_levels", "nf4_round_trip"]

_BLOCK, _OUTER = 64, 256
_OFFSET = (1 - 1 / 30 + 1 - 1 / 32) / 2
"""The largest probability whose quantile is a level: halfway between those of 15 and of 16 equal parts."""


def nf4_levels() -> Float[Tensor, "16"]:
    """The sixteen levels, ascending: eight above zero, seven below, and zero."""
    above = torch.special.ndtri(torch.linspace(_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (levels / levels.max()).float()


def _dynamic_levels() -> Float[Tensor, "256"]:
    """The 256 levels of a dynamic tree: in seven decades below 1 each has twice the even steps of the one before."""
    decades = []
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1)
        decades.append((bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (exponent - 6))
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


def nf4_round_trip(matrix: Float[Tensor, "out in"], *, double: bool = True) -> Float[Tensor, "out in"]:
    """What a matrix is after it was quantised and taken back, in float32.

    Args:
        matrix: the matrix; its blocks go along its rows, one row after the other.
        double: whether the blocks' magnitudes are quantised, too.
    """
    blocks = _blocks(matrix.float().flatten(), _BLOCK)
    magnitudes = blocks.abs().amax(1)
    rounded = _nearest(_scaled(blocks, magnitudes), nf4_levels())
    if double:
        magnitudes = _dynamic_round_trip(magnitudes)
    return (rounded * magnitudes[:, None]).flatten()[: matrix.numel()].reshape(matrix.shape)


def _dynamic_round_trip(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    mean = values.mean()
    blocks = _blocks(values - mean, _OUTER)
    magnitudes = blocks.abs().amax(1)
    rounded = _nearest(_scaled(blocks, magnitudes), _dynamic_levels()) * magnitudes[:, None]
    return rounded.flatten()[: len(values)] + mean


def _blocks(values: Float[Tensor, "n"], size: int) -> Float[Tensor, "blocks size"]:
    """Blocks of so many numbers, the last filled up with zeros."""
    return torch.nn.functional.pad(values, (0, -len(values) % size)).reshape(-1, size)


def _scaled(blocks: Float[Tensor, "blocks size"], magnitudes: Float[Tensor, "blocks"]) -> Float[Tensor, "blocks size"]:
    """Blocks between -1 and 1; those of zeros stay."""
    return blocks / magnitudes.clamp(min=torch.finfo().tiny)[:, None]


def _nearest(values: Float[Tensor, "..."], levels: Shaped[Tensor, "levels"]) -> Float[Tensor, "..."]:
    """The level nearest to each value."""
    levels = levels.to(values.device)
    return levels[torch.bucketize(values, (levels[:-1] + levels[1:]) / 2)]
