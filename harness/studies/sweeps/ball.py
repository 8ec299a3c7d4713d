"""The degradation ball: how much an edit may change everything else, and which epoch of a training that leaves.

Source: Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 3, and the authors' code
(john-hewitt/model-editing-canonical-examples at 15a1e7b).  A model is in the ball of a tolerance where its mean loss of
a token on general text is below that of the unedited model times one plus the tolerance.  Pure functions over the log
of a training: entry 0 is the unedited model, entry i the model after epoch i.

Two rules choose.  *Released*: the last epoch in the ball, even one that comes after an epoch outside; at test the last
one in the ball among the epochs up to that which validation chose.  *Plain*: the best epoch in the ball; at test that
very epoch, and the unedited model where it lies outside.  Under both, the unedited model is what is left in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.errors import DataError

__all__ = [
    "TOLERANCES",
    "Change",
    "Epoch",
    "Rule",
    "change",
    "chosen_epoch",
    "cutoff",
    "in_ball",
    "mean_change",
    "reported_epoch",
]

TOLERANCES = (1e-3, 1e-4, 1e-5)

Rule = Literal["released", "plain"]


@dataclass(frozen=True)
class Epoch:
    """What was measured after one epoch.

    Attributes:
        general: mean loss of a token of the general text, in nats.
        failure: the share of the evaluation set that fails.
        hard_negative: mean negative log-likelihood of a hard negative, in nats; None where it was not measured.
        hard_negative_released: the same for the hard negatives of the validation split, whatever the split.
        text_nll: mean loss of a token of the set's whole texts.
        train_loss: mean loss of the training examples before their updates; None of the unedited model.
        beta: how much of a companion's change was added; None where there is no companion.
    """

    general: float
    failure: float
    hard_negative: float | None = None
    hard_negative_released: float | None = None
    text_nll: float | None = None
    train_loss: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Change:
    """What several repetitions of one training gained, in percentage points.

    Attributes:
        value: the mean change of the success rate; None without a repetition.
        error: the population standard deviation of the changes over the root of their number.
        n: the number of repetitions.
    """

    value: float | None
    error: float | None
    n: int


def cutoff(initial: float, tolerance: float) -> float:
    """The general loss at which the ball ends."""
    return initial * (1 + tolerance)


def in_ball(general: float, initial: float, tolerance: float, *, strict: bool = True) -> bool:
    """Whether a model is in the ball: strictly in validation, the edge included in the released test reports.

    Args:
        general: the loss on general text, in nats a token.
        initial: the loss of the unedited model on it.
        tolerance: by how much of it the loss may rise, as a share.
        strict: whether the edge is outside.
    """
    limit = cutoff(initial, tolerance)
    return general < limit if strict else general <= limit


def chosen_epoch(log: Sequence[Epoch], tolerance: float, rule: Rule = "released") -> int:
    """The epoch that validation chooses; 0, the unedited model, always qualifies.

    Args:
        log: the epochs of a training on the validation pairs; the first is the unedited model.
        tolerance: the size of the ball, as a share of the initial loss.
        rule: ``released`` takes the last epoch inside the ball, ``plain`` the one that fails least.

    Raises:
        DataError: the log is empty, or its first loss is not a positive number.
    """
    initial = _initial(log)
    within = [0, *(i for i in range(1, len(log)) if in_ball(log[i].general, initial, tolerance))]
    return within[-1] if rule == "released" else min(within, key=lambda i: log[i].failure)


def reported_epoch(log: Sequence[Epoch], *, tolerance: float, chosen: int, rule: Rule = "released") -> int:
    """The epoch that is reported at test, from the one that validation chose.

    Args:
        log: the epochs of the training on the test pairs; the first is the unedited model.
        tolerance: the size of the ball, as a share of the initial loss.
        chosen: the epoch that validation chose.
        rule: ``released`` goes back to the last epoch inside the ball, ``plain`` to the unedited model.

    Raises:
        DataError: as :func:`chosen_epoch`; or the log has no such epoch.
    """
    initial = _initial(log)
    if not 0 <= chosen < len(log):
        raise DataError(f"validation chose epoch {chosen}, but the test run has {len(log) - 1}; train as many epochs")
    if rule == "released":
        return max(i for i in range(chosen + 1) if not i or in_ball(log[i].general, initial, tolerance, strict=False))
    return chosen if in_ball(log[chosen].general, initial, tolerance) else 0


def _initial(log: Sequence[Epoch]) -> float:
    if not log or not math.isfinite(log[0].general) or log[0].general <= 0:
        found = log[0].general if log else "nothing"
        raise DataError(f"the unedited model's general loss is {found}, expected a positive number; measure it first")
    return log[0].general


def mean_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The mean of ``after - before`` over repetitions, with its standard error; the values as they are."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    if not changes:
        return Change(None, None, 0)
    mean = math.fsum(changes) / len(changes)
    spread = math.sqrt(math.fsum((c - mean) ** 2 for c in changes) / len(changes))
    return Change(mean, spread / math.sqrt(len(changes)), len(changes))


def change(initial: Sequence[float], final: Sequence[float]) -> Change:
    """The change of the success rate in percentage points, from the failure rates of each repetition."""
    return mean_change([-100 * x for x in initial], [-100 * x for x in final])
