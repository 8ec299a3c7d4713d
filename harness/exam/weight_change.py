"""What editing did to each edited matrix: how far it moved, what its type could not hold, how well it is conditioned.

Sources: Gu et al. 2024 (arXiv 2401.04700), figure 3 (Manhattan distance); Ma et al. 2024 (arXiv 2405.16821), section 4:
the condition number ``s_max / s_min`` of the edited matrix bounds how far its output moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from harness.exam.spectra import Spectra, Spectrum
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, double, numerical_rank
from harness.patches.patch import Patch, require_finite

__all__ = ["describe", "lost_in_all", "means"]

_LARGEST_SVD = 2048
"""The singular values of a larger dense matrix cost minutes."""


def describe(lm: LM, patch: Patch, spectra: Spectra | None = None) -> dict[str, dict[str, float | None]]:
    """Of each changed parameter: the sizes of the change, and what became of the matrix; None where not computed.

    Args:
        lm: the unedited model.
        patch: the change.
        spectra: those of the unedited matrices, kept from patch to patch; None to decompose them for this one.

    Raises:
        NumericalError: a change is not finite; names the parameter.
    """
    for name, delta in patch.weights.items():
        require_finite(name, delta.dense())
    known = spectra or Spectra()
    return {name: _one(lm.matrix(name), delta, partial(known.of, name)) for name, delta in patch.weights.items()}


def _one(weight: Tensor, delta: Delta, spectrum_of: Callable[[Tensor], Spectrum] = Spectrum) -> dict[str, float | None]:
    before = weight.cpu().double()
    change = delta.dense().cpu().double()
    after = before + change
    small = before.dim() == 2 and min(before.shape) <= _LARGEST_SVD
    own = _singular(delta, small)
    return {
        "rank": None if own is None else float(numerical_rank(own, delta.shape)),
        "l1": float(change.abs().sum()),
        "frobenius": float(change.norm()),
        "relative_frobenius": _over(change, before),
        "spectral": None if own is None else float(own.max()),
        "norm_ratio": _over(after, before),
        "lost_in_rounding": _lost(after, change, weight.dtype),
        **(_spectrum(spectrum_of(before), delta, own) if small else dict.fromkeys(_SPECTRUM)),
    }


def _over(one: Tensor, other: Tensor) -> float | None:
    """The ratio of two norms; None where the other is zero."""
    return float(one.norm() / other.norm()) if bool(other.any()) else None


def _lost(after: Tensor, change: Tensor, dtype: torch.dtype) -> float | None:
    """``||round(W + D) - (W + D)|| / ||D||``: the share of a change that the weights' type does not hold.

    None of a type of four bytes or more, whose rounding is that of the change itself.

    Args:
        after: ``W + D`` in float64.
        change: ``D`` in float64.
        dtype: the type of the weights.
    """
    return _over(double(after.to(dtype)) - after, change) if dtype.itemsize < torch.float32.itemsize else None


def lost_in_all(rows: Sequence[Mapping[str, Mapping[str, float | None]]]) -> float | None:
    """What rounding loses of a change of several matrices; of isolated patches their mean.

    None where there is no change that is rounded.

    Args:
        rows: of each patch what :func:`describe` says.
    """
    known = [share for row in rows if (share := _lost_of(row)) is not None]
    return sum(known) / len(known) if known else None


def _lost_of(row: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """``sqrt(sum_i ||error_i||^2 / sum_i ||D_i||^2)`` of the matrices of one patch."""
    sizes = {name: facts["frobenius"] or 0.0 for name, facts in row.items()}
    lost = {name: share for name, facts in row.items() if (share := facts.get("lost_in_rounding")) is not None}
    whole = math.hypot(*sizes.values())
    return math.hypot(*(share * sizes[name] for name, share in lost.items())) / whole if lost and whole else None


_SPECTRUM = ("largest", "condition", "condition_before", "relative_spectral", "above")


def _spectrum(known: Spectrum, delta: Delta, own: Tensor | None) -> dict[str, float | None]:
    first, now = known.values, known.after(delta)
    return {
        "largest": float(now.max()),
        "condition": float(now.max() / now.min()) if float(now.min()) > 0 else None,
        "condition_before": float(first.max() / first.min()) if float(first.min()) > 0 else None,
        "relative_spectral": None if own is None or not first.any() else float(own.max() / first.max()),
        "above": None if own is None else float((own >= first.max()).sum()),
    }


def _singular(delta: Delta, small: bool) -> Tensor | None:
    """The singular values of a change; None where a large dense one would cost minutes."""
    return None if isinstance(delta, Dense) and not small and delta.value.dim() == 2 else delta.singular_values()


def means(rows: Sequence[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Of each parameter the means over isolated patches that change it; None where one has no value."""
    names = sorted({name for row in rows for name in row})
    return {name: _mean_of_layers([row[name] for row in rows if name in row]) for name in names}


def _mean_of_layers(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key in rows[0]:
        known = [value for row in rows if (value := row[key]) is not None]
        found[key] = sum(known) / len(known) if len(known) == len(rows) else None
    return found
