"""The settings of a tracing study: a published variant, and what is changed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from harness.errors import UsageError, near
from harness.exam.knowledge import Known
from harness.studies.causal.restore import Kind
from harness.studies.causal.trace import TraceSettings, preset

__all__ = ["noise", "trace_settings"]

_KINDS: Mapping[str, Kind] = {"block": "block", "mlp": "mlp", "attn": "attn"}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "known": get_args(Known),
    "answer": ("object", "prediction"),
    "high": ("clean", "max"),
}


def trace_settings(
    variant: str = "hase",
    kind: str | Sequence[str] | None = None,
    window: int | Sequence[int] | None = None,
    *,
    samples: int | None = None,
    sigma: float | str | None = None,
    seed: int | None = None,
    known: str | None = None,
    new_tokens: int | None = None,
    answer: str | None = None,
    threshold: float | None = None,
    high: str | None = None,
) -> list[TraceSettings]:
    """The settings of each kind and window; what is None stays as the variant has it.

    Args:
        variant: ``hase`` or ``rome``.
        kind: what is restored, or several; in a text, separated by commas.
        window: layers restored together, or several such numbers.
        samples: noise samples.
        sigma: the noise, as :func:`noise` takes it.
        seed: of the noise.
        known: the correctness filter.
        new_tokens: the length of the continuation in which the filter looks.
        answer: what is explained.
        threshold: the least probability of the answer.
        high: what fractions are of.

    Raises:
        UsageError: a name does not exist, or a number is out of range.
    """
    chosen: dict[str, Any] = {
        "samples": samples, "seed": seed, "known": known, "new_tokens": new_tokens, "answer": answer,
        "threshold": threshold, "high": high, "sigma": None if sigma is None else noise(sigma),
    }  # fmt: skip
    for key, names in _CHOICES.items():
        if chosen[key] not in (None, *names):
            raise UsageError(f"{key} '{chosen[key]}' does not exist; choose {', '.join(names)}")
    settings = replace(preset(variant), **{key: value for key, value in chosen.items() if value is not None})
    widths = [window] if isinstance(window, int) else window
    return [
        replace(settings, kind=one, window=width)
        for one in _kinds(kind, variant)
        for width in dict.fromkeys(widths or [1 if one == "block" else settings.window])
    ]


def _kinds(kind: str | Sequence[str] | None, variant: str) -> list[Kind]:
    """What is restored; of ``rome`` all of it, unless it is said."""
    named = kind.split(",") if isinstance(kind, str) else kind
    names = named or (list(_KINDS) if variant == "rome" else ["mlp"])
    for one in names:
        if one not in _KINDS:
            raise UsageError(f"--kind '{one}' does not exist{near(one, _KINDS)}")
    return [_KINDS[one] for one in dict.fromkeys(names)]


def noise(sigma: float | str) -> Any:
    """The standard deviation of the noise: a number, also written as a text, or a rule's name.

    Raises:
        UsageError: it is neither.
    """
    if sigma in ("s3", "hase", "rome"):
        return sigma
    try:
        return float(sigma)
    except ValueError:
        raise UsageError(f"--sigma '{sigma}': expected a number above 0, s3, hase or rome") from None
