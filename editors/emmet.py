"""EMMET: many facts at once, written exactly: ROME's equality constraint for a whole batch.

Source: Gupta, Sajnani, Anumanchipalli 2024, "A Unified Framework for Model Editing", arXiv 2403.14236, and the
authors' code (scalable-model-editing/unified-model-editing at 23d72b5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.editing.hyperparameters import NotNegative, Positive
from harness.errors import NumericalError
from harness.methods.keys import AdjointSolver, layer_at_depth, require_layers
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, in_batches, inverse_of_preserved
from harness.models.lm import LM
from harness.patches.delta import double

__all__ = ["Emmet"]

_INDEPENDENT = 1e-7  # pivots of float64 are this far from zero, relative to the largest, where keys are independent


@dataclass(frozen=True)
class Emmet(SpreadHidden):
    """``dW = R (K^T G^-1 K + emmet_lambda I)^-1 K^T G^-1`` with ``G = lam C + norm_control I``.

    The change of least size ``tr(dW G dW^T)`` that maps every key to its value.  Hidden states are optimised, and keys
    averaged, as MEMIT does.

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``); without the other two, no matter.
        emmet_lambda: how far the constraint is relaxed for a batch, against keys that are nearly dependent; a lone
            edit is always exact.
        norm_control: weight of the Frobenius norm of the change (``update_norm_lambda``).
    """

    name = "emmet"

    lam: Positive = 1.0
    emmet_lambda: NotNegative = 0.1
    norm_control: NotNegative = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # scalable-model-editing/unified-model-editing at 23d72b5, hparams/EMMET.
        "gpt2-xl": {"layers": (17,), "v_steps": 20, "lam": 1000.0},
        "gpt-j-6b": {"layers": (5,), "v_steps": 25},
        "llama-2-7b-hf": {"layers": (5,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0},
    }

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers; by default one at 17 % of the depth, as ROME's."""
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.17),), experts=True)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Least squares under the constraint that keys give their values."""

        @functools.cache
        def whiten(layer: int) -> Callable[[Tensor], Tensor]:
            return inverse_of_preserved(prior.moments[layer], lam=self.lam, norm_control=self.norm_control)

        def adjoint(layer: int, key: Tensor, sizes: Sequence[int]) -> list[Tensor]:
            wide = double(key.T)
            of_one = functools.partial(self._adjoint, layer=layer)
            return [found.T for found in in_batches(of_one, whiten(layer)(wide), wide, sizes=sizes)]

        return AdjointSolver(adjoint)

    def _adjoint(self, whitened: Tensor, key: Tensor, *, layer: int) -> Tensor:
        """``A = X (K^T X + emmet_lambda I)^-1``, ``[f, n]``; ``dW = R A^T``.

        Args:
            whitened: ``X = G^-1 K [f, n]``.
            key: ``K [f, n]``.
            layer: the layer, for the error.

        Raises:
            NumericalError: keys are linearly dependent, so that they cannot all have values of their own.
        """
        inner = key.T.to(whitened) @ whitened
        inner.diagonal().add_(self.emmet_lambda if len(inner) > 1 else 0.0)
        factor, failed = torch.linalg.cholesky_ex(inner)
        pivots = factor.diagonal()
        if bool(failed) or not float(pivots.min()) > _INDEPENDENT * float(pivots.max()):
            raise NumericalError(
                f"emmet: the keys of {len(inner)} edits at layer {layer} are linearly dependent; raise --set "
                f"emmet_lambda (now {self.emmet_lambda:g}), or give each subject and prompt once"
            )
        # The inner matrix is symmetric.
        return torch.cholesky_solve(whitened.T, factor).T
