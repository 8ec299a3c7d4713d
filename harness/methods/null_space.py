"""Writing only where the model's own keys are not: null spaces of second moments, and ridge regression inside one.

Sources: Fang et al. 2024 (AlphaEdit), arXiv 2410.02355, equations 9 to 14, and what stands on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from harness.editing.hyperparameters import Positive
from harness.errors import UsageError
from harness.methods.keys import Solver
from harness.methods.locate_then_edit import SpreadHidden, SpreadMemory, woodbury
from harness.methods.second_moments import Moment
from harness.patches.delta import LowRank, double

__all__ = ["SHIPPED", "Known", "ProjectedHidden", "null_space", "projected_solver"]

Known = Callable[[int], tuple[Float64[Tensor, "f r"], Float64[Tensor, "f f"] | None]]
"""``layer -> Q [f, r]``, a basis of where may be written, and ``S [f, f]``, what the change shall keep inside it."""


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
    basis = vectors[:, values < threshold]
    if basis.shape[1] == 0:
        quarter = float(values[len(values) // 4])
        raise UsageError(
            f"{asker}: no eigenvalue of the second moment of {moment.name} is below {threshold:g} (the least is "
            f"{float(values[0]):.3g}), so nothing may be written; raise --set nullspace_threshold={quarter:.2g}"
        )
    return basis


def projected_solver(known: Known, l2: float) -> Solver:
    """Ridge regression inside a null space, ``dW = R (Q A)^T``, one factor a layer.

    The authors of AlphaEdit solve ``(P (K K^T + S) + l2 I) X = P K R^T``, ``dW = X^T``, with ``P = Q Q^T``.  ``X`` lies
    in the range of ``P``, and in the coordinates of ``Q`` the system is symmetric:
    ``A = (Q^T (K K^T + S) Q + l2 I)^-1 Q^T K``.

    Args:
        known: the basis and ``S`` of a layer; asked once for each.
        l2: the weight of the Frobenius norm of the change.
    """

    @functools.cache
    def prepared(layer: int) -> tuple[Tensor, Tensor | None]:
        basis, kept = known(layer)
        return basis, None if kept is None else _factor(basis, kept, l2)

    def solve(layer: int, key: Tensor, residual: Tensor) -> LowRank:
        basis, factor = prepared(layer)
        inside = basis.T @ double(key.T).to(basis.device)
        whitened = inside / l2 if factor is None else torch.cholesky_solve(inside, factor)
        return LowRank(residual.T, (basis @ woodbury(whitened, inside)).T.to(key))

    return solve


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

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression inside the null space of the unedited model's keys."""

        def known(layer: int) -> tuple[Tensor, Tensor | None]:
            return null_space(prior.moments[layer], self.nullspace_threshold, self.name), prior.sums.get(layer)

        return projected_solver(known, self.l2)


def _factor(basis: Tensor, kept: Tensor, l2: float) -> Tensor:
    """The Cholesky factor of ``Q^T S Q + l2 I``, ``[r, r]``."""
    inside = basis.T @ kept.to(basis) @ basis
    inside.diagonal().add_(l2)
    factor: Tensor = torch.linalg.cholesky(inside)
    return factor
