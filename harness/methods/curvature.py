"""How sharply the loss on a text bends with one matrix (K-FAC), and changes that stay where it hardly bends.

Sources: Martens, Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv
1503.05671; Ikram et al. 2026 (CrispEdit), arXiv 2602.15823, equations 3, 5 and 6.

The curvature of the loss in a matrix is ``A (x) B``: ``A = E[a a^T]`` of what enters it, ``B = E[g g^T]`` of the
gradient at what leaves it.  Its eigenvalues are all products of an eigenvalue of ``A`` and one of ``B``.  Gradients are
those of the text's own tokens (the empirical Fisher), as in the authors' code, and so of tokens that another follows;
``A`` is a mean over all tokens, as of other editors here, or over those, too, as in that code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from harness.methods.second_moments import Moment, accumulate_gradient_moments, accumulate_moments, moments
from harness.models.lm import LM

__all__ = [
    "Curvature",
    "CurvatureTokens",
    "LowCurvature",
    "curvatures",
    "curvatures_of",
    "low_curvature",
    "low_energy",
]

CurvatureTokens = Literal["all", "followed"]
"""The tokens over which ``A`` is a mean: all of a text, or those that another follows."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature of a loss in one matrix.

    Attributes:
        keys: ``A [in, in]``.
        gradients: ``B [out, out]``.
    """

    keys: Moment
    gradients: Moment

    def joined(self, other: Curvature) -> Curvature:
        """That of both texts together: means over all their tokens."""
        return Curvature(_joined(self.keys, other.keys), _joined(self.gradients, other.gradients))


def _joined(one: Moment, other: Moment) -> Moment:
    count = one.count + other.count
    total = one.matrix * one.count + other.matrix.to(one.matrix) * other.count
    return Moment(total / count, count, name=one.name)


def curvatures(lm: LM, layers: Sequence[int], *, tokens: int, over: CurvatureTokens = "all") -> dict[int, Curvature]:
    """By layer the curvature of the loss on ``lm.text`` in the down-projection, from the cache or in two passes.

    Args:
        lm: the model.
        layers: the layers.
        tokens: how many tokens are read.
        over: the tokens of ``A``.

    Raises:
        DataError, NumericalError: as :func:`harness.methods.second_moments.moments`.
    """
    keys = moments(lm, layers, tokens=tokens, of="keys" if over == "all" else "followed keys")
    gradients = moments(lm, layers, tokens=tokens, of="gradients")
    return {layer: Curvature(keys[layer], gradients[layer]) for layer in keys}


def curvatures_of(
    lm: LM, layers: Sequence[int], texts: Iterable[str], *, over: CurvatureTokens = "all"
) -> dict[int, Curvature]:
    """By layer the curvature of the loss on some texts in the down-projection.

    Args:
        lm: the model.
        layers: the layers.
        texts: the texts.
        over: the tokens of ``A``.
    """
    read = list(texts)
    keys = accumulate_moments(lm, layers, read, followed=over == "followed")
    gradients = accumulate_gradient_moments(lm, layers, read)
    return {layer: Curvature(keys[layer], gradients[layer]) for layer in layers}


def low_energy(values: Float64[Tensor, "out in"], energy: float) -> Bool[Tensor, "out in"]:
    """Which eigenvalues are left when the largest, as few as have a share ``energy`` of their sum, are taken away.

    Args:
        values: the eigenvalues ``[out, in]``, none below zero but by rounding.
        energy: the share; at 0 all are left, at 1 none is.
    """
    if energy <= 0 or energy >= 1:
        return torch.full_like(values, energy <= 0, dtype=torch.bool)
    ordered = values.flatten().sort(descending=True).values
    shares = ordered.cumsum(0) / ordered.sum()
    last = int(torch.searchsorted(shares, energy))
    return values < ordered[min(last, len(ordered) - 1)]


@dataclass(frozen=True, eq=False)
class LowCurvature:
    """The changes of one matrix in which a loss hardly bends.

    Attributes:
        inputs: ``U_A [in, in]``, the eigenvectors of ``A`` in its columns.
        outputs: ``U_B [out, out]``, those of ``B``.
        kept: ``M [out, in]``, which pairs of them are such changes.
    """

    inputs: Float[Tensor, "in in"]
    outputs: Float[Tensor, "out out"]
    kept: Bool[Tensor, "out in"]

    def onto(self, change: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The nearest such change, ``U_B ((U_B^T G U_A) * M) U_A^T``."""
        inputs, outputs = self.inputs.to(change), self.outputs.to(change)
        rotated: Tensor = outputs @ ((outputs.T @ change @ inputs) * self.kept.to(change.device)) @ inputs.T
        return rotated


def low_curvature(found: Mapping[int, Curvature], energy: float) -> dict[int, LowCurvature]:
    """By layer the changes that are left without the directions in which the loss bends most.

    Args:
        found: the curvature by layer.
        energy: which share of it is left alone.
    """
    made = {}
    for layer, one in found.items():
        (a, inputs), (b, outputs) = one.keys.spectrum, one.gradients.spectrum
        kept = low_energy(torch.outer(b, a.to(b)), energy)
        made[layer] = LowCurvature(inputs.float(), outputs.float(), kept)
    return made
