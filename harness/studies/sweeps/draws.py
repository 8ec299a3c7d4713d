"""Distributions of hyperparameters, and settings drawn from them.

A distribution is written as in a sweep file: a plain value, or a mapping with one key:

* ``{uniform: [a, b]}``: a number between both, all alike;
* ``{log10: [a, b]}``: ten to the power of such a number;
* ``{integer: [a, b]}``: a whole number, both ends included; ``{log10_integer: [a, b]}``: the whole part of ``log10``;
* ``{block: [a, b]}``: adjacent layers around the middle of the model, a share of them between both (:func:`block`);
* ``{choice: [...]}``: one of the values.

Published (:data:`PUBLISHED`): Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, appendix C
and D, and the configurations of john-hewitt/model-editing-canonical-examples at 15a1e7b.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError, near
from harness.methods.finetuning import CANONICAL

__all__ = ["PUBLISHED", "SweepMethod", "block", "draw_settings", "method_named"]


def block(layers: int, share: float) -> tuple[int, int]:
    """The first and the last of some adjacent layers around the middle, as the authors' sweep counts them.

    With ``m = floor(layers / 2)`` and ``c = ceil(share layers)``: from ``m - floor(c / 2)`` to ``m + ceil(c / 2)``. The
    last may be one that does not exist: it was meant as an end but is named too.
    """
    middle, count = layers // 2, math.ceil(share * layers)
    return middle - count // 2, middle + count // 2 + count % 2


def _block(rng: random.Random, ends: Sequence[float], layers: int) -> list[int]:
    first, last = block(layers, rng.uniform(*ends))
    return list(range(max(first, 0), min(last, layers - 1) + 1))


_KINDS: dict[str, Callable[[random.Random, Any, int], object]] = {
    "uniform": lambda rng, ends, _: rng.uniform(*ends),
    "log10": lambda rng, ends, _: 10 ** rng.uniform(*ends),
    "integer": lambda rng, ends, _: rng.randint(*ends),
    "log10_integer": lambda rng, ends, _: int(10 ** rng.uniform(*ends)),
    "block": _block,
    "choice": lambda rng, values, _: rng.choice(values),
}


@dataclass(frozen=True)
class SweepMethod:
    """A method of the paper.

    Attributes:
        editor: the editor, as ``harness run`` takes it.
        settings: what is drawn, and what is fixed.
        of_task: what differs for single tasks.
    """

    editor: str
    settings: Mapping[str, Any]
    of_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_LAMBDA = {"log10": [-1, 0]}
_SENSES = {"lr": {"log10": [-4, -1.5]}, "kl": _LAMBDA, "k": {"integer": [5, 11]}, "unusual": 1000.0, "epochs": 10}
_SENSES_OF_TASK = {"country_capital": {"unusual": {"log10_integer": [2, 3.5]}}}
_MEMIT = {
    "clamp": {"log10": [-1.35, 0]},
    "lam": {"integer": [9000, 75000]},
    "kl_factor": {"uniform": [0.001, 0.1]},
    "v_steps": 20,
    "v_lr": 0.5,
    "v_weight_decay": 0.5,
}

PUBLISHED: Mapping[str, SweepMethod] = {
    "full": SweepMethod("full", {**CANONICAL, "lr": {"log10": [-8.5, -4]}, "kl": _LAMBDA}),
    "lora": SweepMethod(
        "lora",
        {
            **CANONICAL,
            "lr": {"log10": [-6.5, -2]},
            "kl": _LAMBDA,
            "rank": {"integer": [1, 256]},
            "layers": {"block": [0.1, 0.9]},
            "alpha": 8,
        },
    ),
    "memit-standard": SweepMethod("memit+prefix", _MEMIT),
    "memit-oracle": SweepMethod("memit", _MEMIT),
    "senses": SweepMethod("senses", _SENSES, _SENSES_OF_TASK),
    # What wins for the companion alone is examined beside the large model, where beta is lowered to stay in the ball.
    "ensemble": SweepMethod("companion", _SENSES, _SENSES_OF_TASK),
}
"""The methods of the paper, by the name under which its tables show them."""


def method_named(name: str, task: str, changed: Mapping[str, Any]) -> SweepMethod:
    """A published method, or any editor, with some distributions replaced.

    Args:
        name: a published method, or an editor (also ``memit+rect``) with no settings of its own.
        task: the task that it learns.
        changed: distributions or values by field; ``editor`` names another editor.
    """
    known = PUBLISHED.get(name, SweepMethod(name, {}))
    settings = {**known.settings, **known.of_task.get(task, {}), **changed}
    return SweepMethod(str(settings.pop("editor", known.editor)), settings)


def draw_settings(settings: Mapping[str, Any], seed: object, layers: int, *, where: str) -> dict[str, Any]:
    """One configuration.

    Args:
        settings: a value or a distribution for each field.
        seed: names the draw; the same seed and settings give the same configuration.
        layers: how many layers the model has.
        where: what an error is about.

    Raises:
        UsageError: a distribution does not exist, or its ends cannot be used.
    """
    rng = random.Random(str(seed))
    return {name: _drawn(rng, value, layers, f"{where}, {name}") for name, value in sorted(settings.items())}


def _drawn(rng: random.Random, value: Any, layers: int, where: str) -> object:
    if not isinstance(value, Mapping):
        return value
    kind = str(next(iter(value), ""))
    if len(value) != 1 or kind not in _KINDS:
        raise UsageError(f"{where}: '{kind}' is not a distribution{near(kind, _KINDS)}")
    try:
        return _KINDS[kind](rng, _listed(value[kind]), layers)
    except (TypeError, ValueError, IndexError, OverflowError):
        raise UsageError(f"{where}: {kind} of {value[kind]!r}; write for example {{log10: [-6, -4]}}") from None


def _listed(ends: Any) -> Any:
    """What a distribution is given, if that is a list: a text would be taken letter by letter."""
    if not isinstance(ends, list | tuple):
        raise TypeError
    return ends
