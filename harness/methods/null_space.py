"""Writing only where the model's own keys are not: null spaces of second moments, and ridge regression inside one.

Sources: Fang et al. 2024 (AlphaEdit), arXiv 2410.02355, equations 9 to 14, and what stands on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from harness.editing.hyperparameters import Positive
from harness.errors import NumericalError, UsageError
from harness.methods.keys import AdjointSolver, Solver
from harness.methods.locate_then_edit import (
    SpreadHidden,
    SpreadMemory,
    in_batches,
    sum_key_products,
    woodbury,
)
from harness.methods.rank_updates import RankUpdate
from harness.methods.second_moments import Moment
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch

__all__ = [
    "SHIPPED",
    "NullSpaceMemory",
    "NullSpaceRidge",
    "ProjectedHidden",
    "null_space",
    "null_space_memory",
]

M = TypeVar("M", bound="NullSpaceMemory")
T = TypeVar("T")

_SHARE = 4
"""Into its length as many times as this, keys are summed up: so a factorisation, some ``4 f^3``, is made once for
``f / 4`` keys, each of which takes at most ``f^2`` beside what it takes to project it, and what is kept beside the sum
is less than half as large as that."""

_TOLERANCE = 1e-9
"""The residual up to which an update is solved with, relative; beyond, all is factored anew. What is written is rounded
to 6e-8."""


def null_space(moment: Moment, threshold: float, asker: str = "alphaedit") -> Float64[Tensor, "f r"]:
    """An orthonormal basis ``Q [f, r]`` of the directions that ``C`` hardly uses; the projector is ``P = Q Q^T``.

    Args:
        moment: the second moment ``C [f, f]`` of a layer's keys, of which the basis is a part and nothing else.
        threshold: the eigenvalue below which a direction belongs to it.
        asker: the editor, for the error.

    Raises:
        UsageError: there is none; says which threshold leaves a quarter of the directions.
    """
    values, vectors = moment.spectrum
    # Eigenvalues ascend: a view, and no copy of nearly f^2 numbers at every operation.
    basis = vectors[:, : int((values < threshold).sum())]
    if basis.shape[1] == 0:
        quarter = float(values[len(values) // 4])
        raise UsageError(
            f"{asker}: no eigenvalue of the second moment of {moment.name} is below {threshold:g} (the least is "
            f"{float(values[0]):.3g}), so nothing may be written; raise --set nullspace_threshold={quarter:.2g}"
        )
    return basis


@dataclass(frozen=True, eq=False)
class NullSpaceMemory(SpreadMemory):
    """What was taken from the unedited model, and the keys that earlier operations wrote.

    Keys are kept as they are, and beside them what solves for the next ones without a factorisation. Where they have
    become as many as a quarter of their length, they are summed up and their sum is factored: what is kept and what a
    solve takes never grows beyond that. Attributes not said to be otherwise are empty at first.

    Attributes:
        sums: layer -> ``sum k k^T [f, f]`` over the keys that have been summed up, float64.
        keys: layer -> the keys written since, ``[m, f]``.
        updates: layer -> the system of those that were there before the last operation, in coordinates of a basis of
            the null space. Kept as it is: computed anew, of all keys at once, it would round differently.
        factors: layer -> the factor of what ``updates`` stands on; not kept, as ``sums`` gives it bitwise.
        settings: the hyperparameters that both were made with.
    """

    keys: Mapping[int, Float[Tensor, "_ _"]] = field(default_factory=dict)
    updates: Mapping[int, RankUpdate] = field(default_factory=dict)
    factors: Mapping[int, Float64[Tensor, "_ _"]] = field(default_factory=dict, metadata={"kept": False})
    settings: tuple[float, ...] = ()

    def under(self: M, settings: tuple[float, ...]) -> M:
        """As it is for an editor of these hyperparameters: under others, what it is solved by is made anew of the keys.

        Args:
            settings: all that decides what may be written and how it is weighed.
        """
        return self if settings == self.settings else replace(self, settings=settings, updates={}, factors={})

    def total(self, layer: int) -> Float64[Tensor, "f f"] | None:
        """``M``, the sum of ``k k^T`` over the keys of all earlier operations; None where there are none."""
        summed = self.sums.get(layer)
        return sum_key_products(self.keys[layer], summed) if layer in self.keys else summed

    def with_keys(self: M, written: Mapping[int, Float[Tensor, "n f"]]) -> M:
        """After one more operation.

        Args:
            written: layer -> its keys.
        """
        joined = {n: torch.cat([self.keys[n], key]) if n in self.keys else key for n, key in written.items()}
        found = replace(self, keys={**self.keys, **joined})
        return found.summed_up([layer for layer, keys in joined.items() if len(keys) > keys.shape[1] // _SHARE])

    def summed_up(self: M, layers: Collection[int]) -> M:
        """With all keys of some layers in their sum."""
        totals = {layer: total for layer in layers if (total := self.total(layer)) is not None}

        def others(known: Mapping[int, T]) -> dict[int, T]:
            return {layer: one for layer, one in known.items() if layer not in layers}

        return replace(
            self,
            sums={**self.sums, **totals},
            keys=others(self.keys),
            updates=others(self.updates),
            factors=others(self.factors),
        )


@dataclass(frozen=True, eq=False)
class NullSpaceRidge:
    """Ridge regression inside a null space, ``dW = R (Q A)^T``.

    The authors of AlphaEdit solve ``(P (K K^T + S) + l2 I) X = P K R^T``, ``dW = X^T``, with ``P = Q Q^T``.  ``X`` lies
    in the range of ``P``, and in the coordinates of ``Q`` the system is symmetric:
    ``A = (Q^T (K K^T + S) Q + l2 I)^-1 Q^T K``.

    ``S = B + U U^T``, ``U`` the keys that have not been summed up: ``Q^T B Q + l2 I`` is factored once, in products and
    a factorisation of the order ``f^3``, and ``U`` is an update of low rank to it, see
    :class:`harness.methods.rank_updates.RankUpdate`.

    Attributes:
        memory: what earlier operations wrote.
        basis: ``layer -> Q [f, r]``, where may be written; None for everywhere, which is what ``Q = I`` is.
        l2: the weight of the Frobenius norm of the change.
        leaks: ``layer -> [f, f]``, what the change shall keep besides; None for nothing.
    """

    memory: NullSpaceMemory
    basis: Callable[[int], Float64[Tensor, "f r"] | None]
    l2: float
    leaks: Callable[[int], Float64[Tensor, "f f"]] | None = None

    def solver(self) -> Solver:
        """How the change of one layer is found."""
        prepared = functools.cache(self._prepared)

        def adjoint(layer: int, key: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
            basis, whiten = prepared(layer)
            inside = _inside(basis, key).T
            found = torch.cat([one.T for one in in_batches(woodbury, whiten(inside), inside, sizes=sizes)])
            return torch.split(found if basis is None else found @ basis.T, list(sizes))

        return AdjointSolver(adjoint)

    def caught_up(self, layers: Collection[int]) -> NullSpaceMemory:
        """The memory with what the next operation is solved by.

        Args:
            layers: the layers that it writes.
        """
        factors, updates = dict(self.memory.factors), dict(self.memory.updates)
        for layer in layers:
            if self._stands_on(layer):
                basis = self.basis(layer)
                factor = self._factor(layer, basis)
                update = self._update(layer, basis, factor)
                factors |= {} if factor is None else {layer: factor}
                updates |= {} if update is None else {layer: update}
        return replace(self.memory, factors=factors, updates=updates)

    def _stands_on(self, layer: int) -> bool:
        """Whether there is anything to be kept."""
        return self.leaks is not None or layer in self.memory.sums or layer in self.memory.keys

    def _prepared(self, layer: int) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
        """``Q``, and how ``(Q^T S Q + l2 I)^-1`` is applied."""
        basis = self.basis(layer)
        factor = self._factor(layer, basis)
        update = self._update(layer, basis, factor)
        if update is None:
            return basis, lambda inside: _solved(factor, self.l2, inside)
        anew = functools.cache(lambda: self._factored(layer, basis, self._kept(layer, self.memory.total(layer))))

        def whiten(inside: Tensor) -> Tensor:
            right = _half(factor, self.l2, inside)
            found = update.solve(right)
            if bool(update.fits(found, right, _TOLERANCE)):
                return _other_half(factor, self.l2, found)
            return _solved(anew(), self.l2, inside)

        return basis, whiten

    def _kept(self, layer: int, earlier: Tensor | None) -> Tensor | None:
        """``S``, of the leaks and some sum over earlier keys."""
        if self.leaks is None:
            return earlier
        leaks = self.leaks(layer)
        return leaks if earlier is None else leaks + earlier.to(leaks)

    def _factor(self, layer: int, basis: Tensor | None) -> Tensor | None:
        """The factor of ``Q^T B Q + l2 I``; None where ``B`` is nothing."""
        if layer in self.memory.factors:
            return self.memory.factors[layer]
        return self._factored(layer, basis, self._kept(layer, self.memory.sums.get(layer)))

    def _factored(self, layer: int, basis: Tensor | None, kept: Tensor | None) -> Tensor | None:
        if kept is None:
            return None
        inside = kept.clone() if basis is None else basis.T @ kept.to(basis) @ basis
        inside.diagonal().add_(self.l2)
        try:
            factor: Tensor = torch.linalg.cholesky(inside)
        except RuntimeError as error:
            raise NumericalError(
                f"what layer {layer} shall keep has no inverse; raise the weight of that or of the norm of the change "
                "(lam, norm_control, l2), or give more text with --set cov_tokens"
            ) from error
        return factor

    def _update(self, layer: int, basis: Tensor | None, factor: Tensor | None) -> RankUpdate | None:
        """The system of all keys that have not been summed up."""
        if layer not in self.memory.keys:
            return None
        known = self.memory.updates.get(layer)
        new = self.memory.keys[layer][0 if known is None else len(known.rows) :]
        if known is not None and not len(new):
            return known
        rows = _half(factor, self.l2, _inside(basis, new).T).T
        return (known or RankUpdate.empty(rows)).grown(rows)


def _inside(basis: Tensor | None, keys: Tensor) -> Tensor:
    """``K^T Q [n, r]``, of keys in rows: ``Q^T K`` of few keys takes MKL forty times as long."""
    return double(keys) if basis is None else double(keys).to(basis.device) @ basis


def _half(lower: Tensor | None, l2: float, right: Tensor) -> Tensor:
    """``L^-1 right``; without a factor ``L`` is that of ``l2 I``."""
    return right / math.sqrt(l2) if lower is None else torch.linalg.solve_triangular(lower, right, upper=False)


def _other_half(lower: Tensor | None, l2: float, right: Tensor) -> Tensor:
    """``L^-T right``."""
    return right / math.sqrt(l2) if lower is None else torch.linalg.solve_triangular(lower.T, right, upper=True)


def _solved(lower: Tensor | None, l2: float, right: Tensor) -> Tensor:
    """``(L L^T)^-1 right``."""
    return right / l2 if lower is None else torch.cholesky_solve(right, lower)


SHIPPED: Mapping[str, Mapping[str, object]] = {
    "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "nullspace_threshold": 0.1},
    "mini": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0, "nullspace_threshold": 0.03},
}
"""Values and null space of the shipped models: tuned for AlphaEdit on the edit set's tuning rows, in a batch and (mini)
one at a time."""


@dataclass(frozen=True)
class ProjectedHidden(SpreadHidden):
    """``dW = R K^T P (P (K K^T + M) P + l2 I)^-1`` at each layer, where ``P`` projects on the null space of ``C``, and
    ``M`` sums ``k k^T`` over the edits of earlier operations.

    Attributes:
        nullspace_threshold: the eigenvalue of ``C`` below which a direction counts as unused.
        l2: weight of the Frobenius norm of the change (``L2``).
    """

    nullspace_threshold: Positive = 2e-2
    l2: Positive = 10.0

    @property
    def remembers(self) -> bool:
        """The keys of earlier operations are ``M``."""
        return True

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> SpreadMemory:
        """Templates, second moments, and the keys of earlier edits with what they are solved by."""
        known = super().prior(lm, memory, layers)
        if not isinstance(memory, NullSpaceMemory):
            return known
        return self._ridge(replace(memory, moments=known.moments)).caught_up(layers)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression inside the null space of the unedited model's keys."""
        return self._ridge(prior).solver()

    def after(self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Tensor], patch: Patch) -> SpreadMemory:  # noqa: ARG002
        """The memory with the keys of one more operation."""
        return null_space_memory(prior).with_keys(keys)

    def _ridge(self, prior: SpreadMemory) -> NullSpaceRidge:
        def basis(layer: int) -> Tensor:
            return null_space(prior.moments[layer], self.nullspace_threshold, self.name)

        memory = null_space_memory(prior).under((self.nullspace_threshold, self.l2))
        return NullSpaceRidge(memory, basis, self.l2)


def null_space_memory(prior: SpreadMemory) -> NullSpaceMemory:
    """What was taken from the unedited model or is remembered, with a place for keys."""
    if isinstance(prior, NullSpaceMemory):
        return prior
    return NullSpaceMemory(prior.contexts, prior.moments, prior.sums)
