"""EvoEdit: AlphaEdit whose null space gives up, after every operation, the directions of the keys that were written.

Source: Lyu, Gu, Wang, Huang, Luan, Cui, Chang, Lu 2026, "EvoEdit: Evolving Null-space Alignment for Robust and
Efficient Knowledge Editing", Findings of ACL 2026, arXiv 2510.13851. Written from its formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from harness.editing.hyperparameters import NotNegative, Positive
from harness.errors import UsageError
from harness.methods.locate_then_edit import Solver, SpreadMemory
from harness.methods.null_space import SHIPPED, NullSpaceRidge, ProjectedHidden, null_space, null_space_memory
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch

__all__ = ["EvoEdit", "EvoMemory", "without_directions"]


@dataclass(frozen=True, eq=False)
class EvoMemory(SpreadMemory):
    """What earlier operations left to write in.

    Attributes:
        bases: layer -> a basis ``Q [f, r]`` of the null space, ``P = Q Q^T``; empty before the first operation.
    """

    bases: Mapping[int, Tensor] = field(default_factory=dict)


def without_directions(basis: Tensor, keys: Tensor, truncation: float = 0.0) -> Tensor:
    """A basis of what is left of a space without the directions of some keys, ``[f, r] -> [f, r - rank]``.

    Args:
        basis: ``Q [f, r]``, orthonormal.
        keys: ``K^T [n, f]``.
        truncation: a direction of ``P K`` whose singular value is at most this stays.
    """
    inside = (double(keys).to(basis.device) @ basis).T
    left, values, _ = torch.linalg.svd(inside, full_matrices=False)
    # Of a key whose direction was taken already nothing is left but what it was rounded to.
    exact = torch.finfo(values.dtype).eps * max(basis.shape)
    rounding = max(torch.finfo(keys.dtype).eps, exact) * float(double(keys).norm())
    taken = int((values > max(truncation, rounding)).sum())
    # Reflections take the first axes to those directions, and the other axes to the rest of the space: of the order
    # f r n, where a basis of the rest times this one takes f r^2.
    turned: Tensor = torch.ormqr(*torch.geqrf(left[:, :taken]), basis, left=False)
    return turned[:, taken:].clone()


@dataclass(frozen=True)
class EvoEdit(ProjectedHidden):
    """``dW = R (K^T P K + l2 I)^-1 K^T P`` at each layer, and afterwards ``P <- P - U U^T``.

    ``P`` begins as AlphaEdit's projector on the null space of ``C``. ``U`` are the left singular vectors of ``P K``
    above ``truncation``: no later change reaches an earlier key, and none must be summed up. A layer can take as many
    edits as its null space has directions; one whose keys were written before takes none.

    Attributes:
        l2: weight of the Frobenius norm of the change, 1 in the text.
        truncation: the singular value of ``P K`` up to which a direction stays writable (``tau``); with 0 none does
            (theorem 4.1).
    """

    name = "evoedit"

    l2: Positive = 1.0
    truncation: NotNegative = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The shipped models: the values and the null space as tuned for AlphaEdit.
        "mini-llama": {**SHIPPED["mini-llama"], "l2": 0.1},
        "mini": SHIPPED["mini"],
    }

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> EvoMemory:
        """What earlier operations left."""
        known = super().prior(lm, memory, layers)
        return memory if isinstance(memory, EvoMemory) else EvoMemory(known.contexts, known.moments)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression inside what is left of the null space."""

        def left(layer: int) -> Tensor:
            basis = self._basis(prior, layer)
            if not basis.shape[1]:
                raise UsageError(
                    f"{self.name}: earlier edits have taken all directions of layer {layer} that may be written; raise "
                    "--set nullspace_threshold or --set truncation, or edit fewer facts"
                )
            return basis

        return NullSpaceRidge(null_space_memory(prior), left, self.l2).solver()

    def after(self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Tensor], patch: Patch) -> EvoMemory:  # noqa: ARG002
        """The null space of each layer without the keys that were written."""
        assert isinstance(prior, EvoMemory)
        left = {n: without_directions(self._basis(prior, n), key, self.truncation) for n, key in keys.items()}
        return replace(prior, bases=left)

    def _basis(self, prior: SpreadMemory, layer: int) -> Tensor:
        assert isinstance(prior, EvoMemory)
        if layer in prior.bases:
            return prior.bases[layer]
        return null_space(prior.moments[layer], self.nullspace_threshold, self.name)
