"""The grid of a localisation study from what a user says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.errors import UsageError, near
from harness.studies.causal.trace import PRESETS
from harness.studies.causal.variants import noise
from harness.studies.localization.localize import METHODS, Grid, LocalizedEditor
from harness.studies.localization.problems import PROBLEMS, PUBLISHED, Problem, problem_named

__all__ = ["QUIRKS", "grid"]

QUIRKS = ("reversal", "threshold", "probes", "noise_at", "noise_rows", "perplexity", "high")
"""What the program of Hase et al. does otherwise than their text, as ``released`` names it."""

_OF_PROBLEMS = ("reversal", "threshold", "probes", "noise_at", "noise_rows")


def grid(
    model: str,
    edits: str,
    look_at: int | None,
    *,
    facts: int | None = None,
    problems: str | Sequence[str] = "all",
    methods: str | Sequence[str] = METHODS,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    trace_window: int = 5,
    sigma: float | str | None = None,
    samples: int = 10,
    forcing_samples: int = 10,
    released: str | Sequence[str] = (),
    essence: bool = True,
    split: str = "test",
    data_dir: str = "mini",
    text: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    arch: Mapping[str, str] | None = None,
    dequantise_edited: bool = False,
) -> Grid:
    """The study that the options describe; those of :class:`Grid` mean what they mean there.

    Args:
        model: the model.
        edits: an edit set.
        look_at: how many of its rows.
        facts: how many of those that the model knows.
        problems: ``all``, or names, in a text separated by commas.
        methods: editors, each with the number of layers that it edits together, in a text separated by commas.
        layers: the layers that are edited; None for all.
        settings: hyperparameters.
        trace_window: layers that tracing restores together.
        sigma: the noise of tracing and of the problems; None for that of the paper.
        samples: noise samples of tracing.
        forcing_samples: noises that fine-tuning forces.
        released: some of :data:`QUIRKS`, or ``all``, in a text separated by commas.
        essence: whether texts about the subject are scored.
        split: of the edit set.
        data_dir: where rows come from.
        text: plain text for second moments.
        seed: of the editors and of the texts about subjects.
        dtype: of the model.
        arch: parts of the model named by hand.
        dequantise_edited: whether the quantised matrices that an editor writes are plain numbers meanwhile.

    Raises:
        UsageError: a name does not exist, or a number is out of range.
    """
    quirks = _quirks(released)
    noised: dict[str, Any] = {} if sigma is None else {"sigma": noise(sigma)}
    tracing = replace(
        PRESETS["hase"],
        window=trace_window,
        samples=samples,
        high="max" if "high" in quirks else "clean",
        **noised,
    )
    changed: dict[str, Any] = {quirk: "released" for quirk in _OF_PROBLEMS if quirk in quirks}
    return Grid(
        model=model, edits=edits, look_at=look_at, facts=facts, split=split, data_dir=data_dir,
        problems=_problems(problems), methods=tuple(map(LocalizedEditor.parse, _names(methods))),
        layers=None if layers is None else tuple(layers), settings=dict(settings or {}), trace=tracing,
        asked=replace(PUBLISHED, samples=forcing_samples, **noised, **changed), essence=essence,
        perplexity="released" if "perplexity" in quirks else "plain", seed=seed, dtype=dtype, text=text,
        arch=dict(arch or {}), dequantise_edited=dequantise_edited,
    )  # fmt: skip


def _names(value: str | Sequence[str]) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)


def _problems(value: str | Sequence[str]) -> tuple[Problem, ...]:
    return PROBLEMS if value == "all" else tuple(map(problem_named, _names(value)))


def _quirks(released: str | Sequence[str]) -> set[str]:
    named = {part.strip() for part in _names(released) if part.strip()}
    for name in named - {*QUIRKS, "all"}:
        raise UsageError(f"--released '{name}' does not exist{near(name, QUIRKS)}; choose {', '.join(QUIRKS)}, or all")
    return set(QUIRKS) if "all" in named else named
