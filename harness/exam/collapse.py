"""Signs that a model has collapsed: each is reported with the number of edits at which it was first seen.

The limits are wide: what they catch no user would take for a working model. Sources: Yang et al. 2024
(arXiv 2402.09656) for perplexity; Gu et al. 2024 (arXiv 2401.04700) and Ma et al. 2024 (arXiv 2405.16821) for norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.exam.neutral_text import TextReading
from harness.exam.statistics import Ratio, Values

__all__ = ["LIMITS", "fired"]

LIMITS = {"perplexity": 10.0, "norm": 2.0, "repetition": 0.5}
"""``perplexity``: times the unedited one; ``norm``: of an edited matrix, times its own before, or its inverse;
``repetition``: share of repeated trigrams, where the unedited model repeats itself half as much at most."""


def fired(base: TextReading, now: TextReading, weights: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The tripwires that a state of the model sets off, by name.

    Args:
        base: what the unedited model makes of the neutral texts.
        now: what the edited one does.
        weights: what :func:`harness.exam.weight_change.describe` says of its matrices.
    """
    before, after = _ratio_of_sums(base.values["nll"]), _ratio_of_sums(now.values["nll"])
    if not math.isfinite(after):
        return ["nan"]
    found = ["perplexity"] if after - before > math.log(LIMITS["perplexity"]) else []
    ratios = [row["norm_ratio"] for row in weights.values()]
    if any(ratio is not None and not 1 / LIMITS["norm"] <= ratio <= LIMITS["norm"] for ratio in ratios):
        found.append("norm")
    if _repeats(base.repetition, now.repetition):
        found.append("repetition")
    return found


def _ratio_of_sums(values: Values) -> float:
    ratios: list[Ratio] = list(values.values())
    return sum(r.num for r in ratios) / sum(r.den for r in ratios)


def _repeats(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after > LIMITS["repetition"] and before <= after / 2
