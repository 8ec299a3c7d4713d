"""AlphaEdit: many facts at once, written only into directions that the model's own keys hardly use.

Source: Fang, Jiang, Wang, Ma, Shi, Wang, He, Chua 2024, "AlphaEdit: Null-Space Constrained Knowledge Editing for
Language Models", arXiv 2410.02355, and the authors' code (jianghoucheng/AlphaEdit at f5248d3).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.editing.hyperparameters import Positive
from harness.errors import UsageError
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, woodbury
from harness.methods.second_moments import Moment
from harness.patches.delta import double

__all__ = ["AlphaEdit", "null_space"]


@dataclass(frozen=True)
class AlphaEdit(SpreadHidden):
    """``dW = R K^T P (P (K K^T + M) P + l2 I)^-1`` at each layer, ascending, where ``P`` projects on the null space of
    ``C`` and ``M`` sums ``k k^T`` over the edits of earlier operations.

    Attributes:
        nullspace_threshold: the eigenvalue of ``C`` below which a direction counts as unused.
        l2: weight of the Frobenius norm of the change (``L2``).
    """

    name = "alphaedit"

    nullspace_threshold: Positive = 2e-2
    l2: Positive = 10.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # jianghoucheng/AlphaEdit at f5248d3, hparams/AlphaEdit.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8)},
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        # The shipped models: tuned on the edit set's tuning rows, in a batch and (mini) one at a time.
        "mini-llama": {
            "layers": (0,),
            "v_steps": 40,
            "v_weight_decay": 1e-3,
            "clamp": 6.0,
            "nullspace_threshold": 0.1,
            "l2": 0.1,
        },
        "mini": {
            "layers": (0,),
            "v_steps": 40,
            "v_weight_decay": 1e-3,
            "clamp": 10.0,
            "nullspace_threshold": 0.03,
            "l2": 1.0,
        },
    }

    @property
    def remembers(self) -> bool:
        """The keys of earlier operations are ``M``."""
        return True

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression inside the null space, ``dW = R (Q A)^T`` with ``P = Q Q^T``.

        The authors solve ``(P (K K^T + M) + l2 I) X = P K R^T``, ``dW = X^T``.  ``X`` lies in the range of ``P``, and
        in the coordinates of ``Q [f, r]`` the system is symmetric: ``A = (Q^T (K K^T + M) Q + l2 I)^-1 Q^T K``.
        """

        @functools.cache
        def known(layer: int) -> tuple[Tensor, Tensor | None]:
            basis = null_space(prior.moments[layer], self.nullspace_threshold)
            return basis, self._factor(basis, prior.sums.get(layer))

        def solve(layer: int, key: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            basis, factor = known(layer)
            inside = basis.T @ double(key.T).to(basis.device)
            whitened = inside / self.l2 if factor is None else torch.cholesky_solve(inside, factor)
            return residual.T, (basis @ woodbury(whitened, inside)).T.to(key)

        return solve

    def _factor(self, basis: Tensor, earlier: Tensor | None) -> Tensor | None:
        """The Cholesky factor of ``Q^T M Q + l2 I``, ``[r, r]``; None without earlier edits."""
        if earlier is None:
            return None
        inside = basis.T @ earlier.to(basis) @ basis
        inside.diagonal().add_(self.l2)
        factor: Tensor = torch.linalg.cholesky(inside)
        return factor


def null_space(moment: Moment, threshold: float) -> Tensor:
    """An orthonormal basis ``Q [f, r]`` of the directions that ``C`` hardly uses; the projector is ``P = Q Q^T``.

    Args:
        moment: the second moment ``C [f, f]`` of a layer's keys, of which the basis is a part and nothing else.
        threshold: the eigenvalue below which a direction belongs to it.

    Raises:
        UsageError: there is none; says which threshold leaves a quarter of the directions.
    """
    values, vectors = moment.spectrum
    basis = vectors[:, values < threshold]
    if basis.shape[1] == 0:
        quarter = float(values[len(values) // 4])
        raise UsageError(
            f"alphaedit: no eigenvalue of the second moment of {moment.name} is below {threshold:g} (the least is "
            f"{float(values[0]):.3g}), so nothing may be written; raise --set nullspace_threshold={quarter:.2g}"
        )
    return basis
