"""What is tried when an editor is tuned: its layers, and the settings of its own that decide most.

A field is searched around the value that the editor has without tuning. A distribution is written as in
:mod:`harness.studies.sweeps.draws`; fields that decide only how a value is written into weights come first, so that the
trials in which nothing else changes share the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.editing.editor import Editor
from harness.editing.hyperparameters import settable
from harness.studies.causal.trace import layer_window

__all__ = ["LAYER_FIELDS", "layer_choices", "portion", "rises", "scale_field", "searched", "width_of"]

LAYER_FIELDS = ("layers", "layer")
"""What an editor calls where it edits: several layers, or one."""

_AROUND: Mapping[str, tuple[float, float]] = {
    "lam": (-2.5, 0.5),
    "nullspace_threshold": (-1.0, 1.0),
    "l2": (-2.0, 1.0),
    "norm_constraint": (-0.5, 1.5),
    "eps": (-0.5, 1.0),
    "edit_lr": (-1.0, 0.5),
    "strength": (-0.5, 1.0),
    "lr": (-1.0, 1.0),
}
"""Powers of ten by which a number may be smaller or greater than the editor's own."""

_UP = {"ultraedit": (0.0, 4.0)}
"""The published rates of these editors are for models a hundred times as large, and small ones need far greater."""

_CHOICES: Mapping[str, tuple[float, ...]] = {
    "clamp": (0.75, 2.0, 4.0, 8.0),
    "v_weight_decay": (0.5, 1e-3),
    "v_lr": (0.1, 0.5),
    "rank": (4, 8, 16),
}


def searched(editor: Editor) -> dict[str, dict[str, Any]]:
    """The distributions of the fields of an editor that are searched, in the order in which they are.

    Args:
        editor: the editor as it is without tuning.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, (low, high) in _AROUND.items():
        value = _number(editor, name)
        if value:
            ends = _UP.get(editor.name, (low, high)) if name == "lr" else (low, high)
            found[name] = {"log10": [round(math.log10(value) + end, 3) for end in ends]}
    for name, values in _CHOICES.items():
        if _number(editor, name) is not None:
            found[name] = {"choice": list(values)}
    return found


def scale_field(editor: Editor) -> str | None:
    """The field that scales what is written; its published value is for models far larger than one tunes on a laptop.

    Args:
        editor: the editor as it is without tuning.
    """
    if rises(editor):
        return "lr"
    return "lam" if _number(editor, "lam") else None


def rises(editor: Editor) -> bool:
    """Whether the rate that an editor needs on a small model is far above the published one."""
    return editor.name in _UP


def portion(distribution: Mapping[str, Any], visit: int, *, now: object, rising: bool = False) -> dict[str, Any]:
    """The part of a distribution from which a field is drawn when it is visited again.

    Of a range its lower third, its upper third and its middle, in turn; of a choice all but the value of now.

    Args:
        distribution: as :func:`searched` gives it.
        visit: how often the field has been visited before.
        now: its value in the best trial so far.
        rising: whether the upper third and the middle come before the lower third.
    """
    if "choice" in distribution:
        return {"choice": [value for value in distribution["choice"] if value != now]}
    low, high = distribution["log10"]
    third = ((2, 1, 0) if rising else (0, 2, 1))[visit % 3]
    start = low + (high - low) * third / 3
    return {"log10": [start, start + (high - low) / 3]}


def _number(editor: Editor, name: str) -> float | None:
    """The value of a field that is a number; None where there is no such field, or it holds nothing."""
    value = getattr(editor, name, None) if name in settable(type(editor)) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def layer_choices(effects: Sequence[float] | None, width: int, layers: int) -> list[tuple[int, ...]]:
    """Where an editor may edit, the most promising place first.

    With tracing: as many layers as the editor edits around the layer of the greatest effect, those that end there (what
    follows reads what they write), that layer alone, and the same around the next peak that is not beside the first.
    Without: as many layers around a quarter, half and three quarters of the depth.

    Args:
        effects: the mean tracing effect of each layer; None where no fact can be traced.
        width: how many layers the editor edits.
        layers: how many the model has.
    """
    if effects is None:
        tried = [layer_window(round(share * (layers - 1)), width, layers) for share in (0.25, 0.5, 0.75)]
    else:
        order = sorted(range(layers), key=lambda layer: -effects[layer])
        first = order[0]
        second = next((layer for layer in order if abs(layer - first) > max(1, width // 2)), first)
        tried = [
            layer_window(first, width, layers),
            range(max(0, first - width + 1), first + 1),
            range(first, first + 1),
            layer_window(second, width, layers),
        ]
    return list(dict.fromkeys(tuple(one) for one in tried))


def width_of(editor: Editor, edited: Sequence[int] | None) -> int:
    """How many layers an editor edits together.

    Args:
        editor: the editor.
        edited: the layers that it edits without tuning; None where it does not say.
    """
    own = getattr(editor, "layers", None)
    return len(own or edited or (0,))
