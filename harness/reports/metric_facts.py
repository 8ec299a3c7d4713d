"""What is known of a metric by its name: the ends of its scale, and what others call it."""

from __future__ import annotations

import re

__all__ = ["scale"]

_SHARE = re.compile(
    r"(^|_)(efficacy|paraphrase|neighborhood|attribute|locality|portability|accuracy|exact_match|agreement|contains|"
    r"f1|precision|recall|rouge|rouge1|rouge2|rougeL|rate|score|acc|acc_norm|success|repetition|substring|answered)$"
)
_SIGNED = re.compile(r"_magnitude$")
_UNBOUNDED = re.compile(r"(^|_)(perplexity|bits_per_byte|nll|kl|entropy|hard_negative)$")


def scale(metric: str) -> tuple[float, float] | None:
    """The least and the greatest value that a metric can have; None where its name does not tell.

    Args:
        metric: its name, without the filter that lm-eval writes behind a comma.
    """
    name = metric.partition(",")[0]
    if _SHARE.search(name):
        return 0.0, 1.0
    if _SIGNED.search(name):
        return -1.0, 1.0
    return (0.0, float("inf")) if _UNBOUNDED.search(name) else None
