"""PRUNE: restrains the singular values of the summed change that exceed the largest one of the unedited weight.

Source: Ma, Wang, Xu, Ling, Gu 2024, "Perturbation-Restrained Sequential Model Editing", arXiv 2405.16821, and the
authors' code (mjy1111/PRUNE at 046c2a6).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.editor import Wrapper
from harness.errors import NumericalError
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank, double, numerical_rank
from harness.patches.patch import Patch

__all__ = ["Prune", "Reduction", "pruned", "restrain", "spectral_norm"]

Reduction = Literal["log", "log2", "log1_5", "log1_2", "linear"]

_log = logging.getLogger(__name__)
_BASES = {"log": math.e, "log2": 2.0, "log1_5": 1.5, "log1_2": 1.2}


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, as the root of the largest eigenvalue of ``W W^T`` in float64.

    Its relative error is that of the eigenvalue, near machine precision; all singular values of the largest matrix of
    GPT-2 XL (1600 x 6400) take ten times as long.
    """
    wide = double(weight if weight.shape[0] <= weight.shape[1] else weight.T)
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(wide @ wide.T)[-1])))


def restrain(values: Tensor, *, bound: float, reduce: Reduction = "log", cap: bool = False) -> Tensor:
    """``F(s)``: ``s`` below the bound; from there on ``bound + log_alpha(s / bound)``, or ``(s + bound) / 2``.

    ``F`` is continuous at the bound. Its slope there is ``1 / (bound ln alpha)``: where that is above one, the
    logarithm enlarges values.

    Args:
        values: singular values ``s``, any shape.
        bound: ``sigma_max``, the largest singular value of the unedited weight; above zero.
        reduce: the logarithm's base, e or as named, or ``linear``.
        cap: whether no value may grow.
    """
    reduced = (values + bound) / 2 if reduce == "linear" else bound + (values / bound).log() / math.log(_BASES[reduce])
    return torch.where(values < bound, values, reduced.minimum(values) if cap else reduced)


def pruned(delta: Delta, *, bound: float, reduce: Reduction = "log", cap: bool = False) -> tuple[Delta, Tensor, Tensor]:
    """A change with restrained singular values, and those before and after; itself where none exceeds the bound.

    Where one does, what lies beyond the numerical rank is cut off, as in the authors' code.

    Args:
        delta: the change, a matrix ``[out, in]``.
        bound: the largest singular value of the unedited matrix.
        reduce: how a value above the bound is restrained.
        cap: whether no value may grow.

    Returns:
        The restrained change, and its singular values before and after, ``[r]``, descending.
    """
    left, values, right = delta.svd()
    if not bool((values > bound).any()):
        return delta, values, values
    rank = numerical_rank(values, delta.shape)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    after = restrain(values, bound=bound, reduce=reduce, cap=cap)
    smaller = LowRank(left * after, right)
    given = next(iter(delta.tensors().values()))
    found = smaller if isinstance(delta, LowRank) else Dense(smaller.dense())
    return found.to(given.device, given.dtype), values, after


@dataclass(frozen=True)
class Prune(Wrapper):
    """Restrains the sum of all edits just before it is measured, each matrix by itself; editing goes on without it.

    A change of a bias has no singular values and stays.

    Attributes:
        reduce: the function ``F``: a logarithm of base e, 2, 1.5 or 1.2, or ``linear`` (``--reduce_type``).
        cap: whether a singular value that ``F`` would enlarge stays, which the published method lacks.
    """

    name = "prune"

    reduce: Reduction = "log"
    cap: bool = False

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The shipped models: tuned on the edit set's tuning rows. Twenty edits exceed the bound ten times and more; a
        # logarithm leaves none of them or few.
        "mini-llama": {"reduce": "linear"},
        "mini": {"reduce": "linear"},
    }

    def finish(self, lm: LM, total: Patch) -> Patch:
        """The inner editor's sum, restrained.

        Raises:
            NumericalError: a change is not finite, or a weight is zero everywhere.
        """
        total = super().finish(lm, total)
        weights, grown = dict(total.weights), []
        for name, delta in total.weights.items():
            if len(delta.shape) == 2:
                weights[name], before, after = pruned(
                    delta, bound=_bound(lm, name, delta), reduce=self.reduce, cap=self.cap
                )
                pairs = zip(before.tolist(), after.tolist(), strict=True)
                grown += [(new - old, name, old, new) for old, new in pairs if new > old * (1 + 1e-6)]
        if grown:
            self._warn(*max(grown)[1:], len(grown))
        return replace(total, weights=weights)

    def label(self) -> str:
        """The names, with the reduction where it is not the default, and the cap."""
        return super().label() + ("" if self.reduce == "log" else f"-{self.reduce}") + ("-cap" if self.cap else "")

    def _warn(self, name: str, old: float, new: float, count: int) -> None:
        _log.warning(
            "prune: the reduction '%s' enlarges %d singular values of the change, at most from %.4g to %.4g in '%s'; "
            "set prune.cap=true to leave them as they are",
            *(self.reduce, count, old, new, name),
        )


def _bound(lm: LM, name: str, delta: Delta) -> float:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in delta.tensors().values()):
        raise NumericalError(f"the change of '{name}' holds a NaN or an infinity; lower the learning rate or edit less")
    bound = spectral_norm(lm.matrix(name))
    if bound == 0:
        raise NumericalError(f"'{name}' is zero everywhere, which gives prune no bound; edit another layer")
    return bound
