"""How likely answers are under the edited model against how likely they were: what an edit does to other facts.

Source: Z. Li et al. (2024), Unveiling the Pitfalls of Knowledge Editing (arXiv 2310.02129), section 3 and the released
``summarize.py``.  A probability is the geometric mean over the tokens of an answer.  Pure functions of two lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "COMPARED",
    "against_unedited",
    "damage",
    "distortion",
    "distortion_released",
    "failure_rate",
    "ignore_rate",
]


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


COMPARED: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "distortion": distortion,
    "distortion_released": distortion_released,
    "ignore_rate": ignore_rate,
    "failure_rate": failure_rate,
    "damage": damage,
}
"""How two lists of probabilities are compared; of all of them lower is better."""


def against_unedited(how: str, before: Sequence[float], after: Sequence[float]) -> float:
    """One number of the probabilities of the same answers; missing where one is not known or nothing is likely.

    Args:
        how: one of :data:`COMPARED`.
        before: of the unedited model.
        after: of the edited model.
    """
    known = all(map(math.isfinite, (*before, *after))) and before and len(before) == len(after)
    if not known or min(sum(before), sum(after)) <= 0 or (how == "damage" and min(before) <= 0):
        return math.nan
    return COMPARED[how](before, after)


def _shares(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Kullback-Leibler, in nats."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
