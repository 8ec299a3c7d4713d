"""How well an edit went, on scales from 0 to 1, from probabilities before and after it.

Source: Hase et al. 2023, "Does Localization Inform Editing?", arXiv 2301.04213, section 4.2.  ``p`` is the probability
of the problem's target, not divided by its length; a star marks the edited model.  Pure functions; what is missing
stays missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["essence_score", "mean", "neighborhood_score", "overall", "perplexity", "rewrite_score"]

_LEAST = 2e-8
_WORST = 5.0  # a rise of perplexity that counts as the loss of all essence


def rewrite_score(before: float, after: float, erasure: bool = False) -> float | None:
    """``max(2e-8, (p* - p) / (1 - p))``; of an erasure ``max(0, (p - p*) / p)``. Also of paraphrases.

    None where nothing can be gained, or a probability is not a number.

    Args:
        before: ``p``.
        after: ``p*``.
        erasure: whether the target shall become less probable.
    """
    room = before if erasure else 1.0 - before
    if not room > 0 or math.isnan(after):  # max() would take a NaN for the least score
        return None
    return max(0.0, (before - after) / room) if erasure else max(_LEAST, (after - before) / room)


def neighborhood_score(before: float, after: float) -> float | None:
    """``1 - |p* - p| / (0.5 + |p - 0.5|)`` of a neighbour: 1 where nothing changed, 0 where nothing is left.

    None where a probability is not a number.

    Args:
        before: ``p``.
        after: ``p*``.
    """
    score = 1.0 - abs(after - before) / (0.5 + abs(before - 0.5))
    return None if math.isnan(score) else score


def essence_score(rise: float) -> float | None:
    """``1 - clip(rise, 0, 5) / 5`` of the rise of the perplexity of texts about the subject; None of no number."""
    return None if math.isnan(rise) else 1.0 - min(max(rise, 0.0), _WORST) / _WORST


def perplexity(log_p: Sequence[float], released: bool = False) -> float:
    """``exp(-1/M sum log p)`` of a text's tokens from the second on; infinite where no float holds it.

    Args:
        log_p: the log-probability of each of these tokens, at least one.
        released: whether ``M`` also counts the first token, of which there is no probability (Meng et al. 2022).
    """
    try:
        return math.exp(-math.fsum(log_p) / (len(log_p) + released))
    except OverflowError:
        return math.inf


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None where none is."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def overall(scores: Sequence[float | None], harmonic: bool = False) -> float | None:
    """The mean of some scores, None where one is missing.

    Args:
        scores: rewrite, paraphrase, neighbourhood, and essence where it is wanted.
        harmonic: the harmonic mean, instead of the arithmetic one that the paper's tables hold.
    """
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    if not harmonic:
        return math.fsum(known) / len(known)
    return len(known) / math.fsum(1 / score for score in known) if min(known) > 0 else 0.0
