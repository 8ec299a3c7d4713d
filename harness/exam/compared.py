"""How likely answers are under the edited model against how likely they were: what an edit does to other facts.

Source: Z. Li et al. (2024), Unveiling the Pitfalls of Knowledge Editing (arXiv 2310.02129), section 3 and the released
``summarize.py``; of answers beside wrong ones J.-Y. Ma et al. (2024), PEAK (arXiv 2401.17623), section 3, and its
released ``summarize.py``.  A probability is the geometric mean over the tokens of an answer.  Pure functions of lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "COMPARED",
    "HIGHER",
    "LISTED",
    "absolute_forgetting",
    "absolute_noising",
    "against_unedited",
    "damage",
    "distortion",
    "distortion_released",
    "failure_rate",
    "ignore_rate",
    "magnitude",
    "relative_forgetting",
    "relative_noising",
    "told_apart",
]

Listed = tuple[Sequence[float], Sequence[float]]
"""How likely the right answers of a list are, and the wrong ones."""

_ABOVE = 0.2  # the share of the wrong answers above a right one from which on the model does not know it


def distortion(before: Sequence[float], after: Sequence[float]) -> float:
    """The Jensen-Shannon divergence, in nats, of the two distributions over the answers (the paper's D)."""
    p, q = _shares(before), _shares(after)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def distortion_released(before: Sequence[float], after: Sequence[float]) -> float:
    """As the released code has it: PyTorch's ``batchmean`` divides it by the number of answers."""
    return distortion(before, after) / len(before)


def ignore_rate(before: Sequence[float], after: Sequence[float]) -> float:
    """The share of the answers that have become less likely (IR)."""
    return sum(a > b for a, b in zip(before, after, strict=True)) / len(before)


def failure_rate(before: Sequence[float], after: Sequence[float]) -> float:
    """Whether more than half of the answers have become less likely (FR)."""
    return float(ignore_rate(before, after) > 0.5)


def damage(before: Sequence[float], after: Sequence[float]) -> float:
    """The share of its probability that an answer has lost, of several the mean (tied fact damage)."""
    return sum((a - b) / a for a, b in zip(before, after, strict=True)) / len(before)


def magnitude(before: Sequence[float], after: Sequence[float]) -> float:
    """The share of its probability after the first edit of a case that its object has lost after all of them (CM).

    Not below -1, as in the released code: what a later edit makes far likelier would outweigh everything else.
    """
    return sum(max((a - b) / a, -1.0) for a, b in zip(before, after, strict=True)) / len(before)


COMPARED: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "distortion": distortion,
    "distortion_released": distortion_released,
    "ignore_rate": ignore_rate,
    "failure_rate": failure_rate,
    "damage": damage,
    "magnitude": magnitude,
}
"""How two lists of probabilities are compared; of all of them lower is better, but for :data:`HIGHER`."""

HIGHER = ("magnitude",)
"""Of which higher is better: a later edit is to take the place of an earlier one."""


# --- a list of right answers among wrong ones -------------------------------------------------------------------------


def relative_forgetting(_before: Listed, after: Listed) -> float:
    """RFF of PEAK: the weight of the right answers that have fallen below the likeliest wrong one.

    ``sum sigma(p_o) [p_o < max p_w] / sum sigma(p_o)``, all after the edit.
    """
    right, wrong = after
    return _weight([p for p in right if p < max(wrong)]) / _weight(right)


def relative_noising(_before: Listed, after: Listed) -> float:
    """RNF of PEAK: the weight of the wrong answers that have risen above the least likely right one."""
    right, wrong = after
    return _weight([q for q in wrong if q > min(right)]) / _weight(wrong)


def absolute_forgetting(before: Listed, after: Listed) -> float:
    """AFF of PEAK: ``1 - (1 - RFF) min(1, after / before)`` with the mean probability of the right answers."""
    left = min(1.0, _mean(after[0]) / _mean(before[0]))
    return 1 - (1 - relative_forgetting(before, after)) * left


def absolute_noising(before: Listed, after: Listed) -> float:
    """ANF of PEAK: ``1 - (1 - RNF) min(1, before / after)`` with the mean probability of the wrong answers."""
    left = min(1.0, _mean(before[1]) / _mean(after[1]))
    return 1 - (1 - relative_noising(before, after)) * left


LISTED: dict[str, Callable[[Listed, Listed], float]] = {
    "relative_forgetting": relative_forgetting,
    "absolute_forgetting": absolute_forgetting,
    "relative_noising": relative_noising,
    "absolute_noising": absolute_noising,
}
"""How a list of right and wrong answers is compared; of all of them lower is better."""


def told_apart(before: Listed, known_by: Listed | None = None) -> tuple[list[int], list[int]]:
    """The answers that count: of which the unedited model tells right from wrong.

    Those right ones that fewer than a fifth of the wrong ones exceed, and the wrong ones below all of these; none of
    either where it tells nothing apart.

    Args:
        before: how likely the unedited model holds them.
        known_by: the same right ones beside other wrong ones, by which it is told which right ones are known, as PEAK
            takes its near false objects for that also where random ones are counted; None for those of ``before``.
    """
    right, wrong = before
    among, near = known_by or before
    kept = [i for i, p in enumerate(among) if sum(q > p for q in near) < _ABOVE * len(near)]
    below = [j for j, q in enumerate(wrong) if kept and q < min(right[i] for i in kept)]
    return (kept, below) if below else ([], [])


def _weight(values: Sequence[float]) -> float:
    return math.fsum(1 / (1 + math.exp(-value)) for value in values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _against_lists(
    how: str, before: Sequence[Listed], after: Sequence[Listed], known_by: Sequence[Listed] | None
) -> float:
    """The mean over the questions of a case; missing where an answer is not rated or none of the questions is known."""
    among = before if known_by is None else known_by
    rated = [p for one in (*before, *after, *among) for side in one for p in side]
    sizes = {tuple(len(one[0]) for one in lists) for lists in (before, after, among)}
    if len(sizes) > 1 or not all(p > 0 for p in rated):
        return math.nan
    found = []
    for was, now, by in zip(before, after, among, strict=True):
        kept, below = told_apart(was, by)
        if kept:
            chosen = [([one[0][i] for i in kept], [one[1][j] for j in below]) for one in (was, now)]
            found.append(LISTED[how](*chosen))
    return _mean(found) if found else math.nan


def against_unedited(
    how: str, before: Sequence[Any], after: Sequence[Any], *, known_by: Sequence[Any] | None = None
) -> float:
    """One number of the probabilities of the same answers; missing where one is not known or nothing is likely.

    Args:
        how: one of :data:`COMPARED`, or of :data:`LISTED`, where each question has a list of right and one of wrong
            answers.
        before: of the unedited model.
        after: of the edited model.
        known_by: of the unedited model, the same right answers beside other wrong ones, by which it is told which right
            ones are known (:func:`told_apart`); None for ``before``.
    """
    if how in LISTED:
        return _against_lists(how, before, after, known_by)
    known = all(map(math.isfinite, (*before, *after))) and before and len(before) == len(after)
    if not known or min(sum(before), sum(after)) <= 0 or (how in ("damage", "magnitude") and min(before) <= 0):
        return math.nan
    return COMPARED[how](before, after)


def _shares(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Kullback-Leibler, in nats."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
