"""What a model was asked and what it said before and after editing, as a page shows it: with what changed marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from harness.exam.samples import Reply, Sample
from harness.reports.cells import number
from harness.reports.table import MISSING
from harness.runs.sample_file import iterate_samples, samples_path

__all__ = ["SampleView", "SamplesView", "samples_view"]

A_TASK = 6
"""Samples of one task after so many edits that a page shows."""
_LONGEST = 1500
_WORDS = re.compile(r"\s+|\S+")

Marked = tuple[tuple[str, bool], ...]
"""Parts of a text, each with whether it changed."""


@dataclass(frozen=True)
class SampleView:
    """One question, and the replies to it.

    Attributes:
        task: the task.
        kind: of the question; empty where the task has one kind.
        at: after how many edits.
        prompt: what the model continued.
        target: the right answer.
        before: what the unedited model said.
        after: what the edited model said.
        changed: whether the two differ.
    """

    task: str
    kind: str
    at: int
    prompt: str
    target: str
    before: Marked
    after: Marked
    changed: bool


@dataclass(frozen=True)
class SamplesView:
    """The samples that a page shows.

    Attributes:
        samples: of each task some, those that changed first.
        count: how many there are.
        changed: how many of them changed.
    """

    samples: tuple[SampleView, ...]
    count: int
    changed: int


def samples_view(path: Path) -> SamplesView | None:
    """The samples beside a record; None where none lie there.

    Args:
        path: the file of the record.

    Raises:
        DataError: the file of samples is not what a run writes.
    """
    if not samples_path(path).is_file():
        return None
    groups: dict[tuple[str, int], tuple[list[Sample], list[Sample]]] = {}
    count = changed = 0
    for sample in iterate_samples(path):
        count, changed = count + 1, changed + sample.changed
        mine = groups.setdefault((sample.group or sample.task, sample.at), ([], []))[not sample.changed]
        if len(mine) < A_TASK:
            mine.append(sample)
    shown = (one for moved, kept in groups.values() for one in islice([*moved, *kept], A_TASK))
    return SamplesView(tuple(map(_view, shown)), count, changed)


def _view(sample: Sample) -> SampleView:
    before, after = (_said(reply, sample.choices) for reply in (sample.before, sample.after))
    marked = _marked(before, after) if sample.after is not None else (((before, False),), ())
    return SampleView(
        sample.group or sample.task,
        sample.kind or "",
        sample.at,
        _cut(sample.prompt),
        _cut(sample.target),
        *marked,
        changed=sample.changed,
    )


def _said(reply: Reply | None, choices: Sequence[str]) -> str:
    """A reply in words; of rated choices each with its log-likelihood, the likeliest first."""
    if reply is None:
        return MISSING
    if reply.text is not None:
        return _cut(reply.text)
    names = [*choices, *(f"choice {i + 1}" for i in range(len(choices), len(reply.loglikelihoods)))]
    rated = sorted(
        zip(reply.loglikelihoods, names, strict=False), key=lambda one: -(one[0] if one[0] is not None else 1e9)
    )
    return "\n".join(f"{name.strip()} ({number(value)})" for value, name in rated)


def _cut(text: str) -> str:
    """A text with its end, which is what is asked, where it is too long for a page."""
    return text if len(text) <= _LONGEST else f"… {text[-_LONGEST:]}"


def _marked(before: str, after: str) -> tuple[Marked, Marked]:
    """Both texts in parts, those that are not in the other marked."""
    first, second = _WORDS.findall(before), _WORDS.findall(after)
    steps = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    return tuple(_parts(first, ((a, b, tag != "equal") for tag, a, b, _, _ in steps))), tuple(
        _parts(second, ((a, b, tag != "equal") for tag, _, _, a, b in steps))
    )


def _parts(words: Sequence[str], spans: Iterator[tuple[int, int, bool]]) -> Iterator[tuple[str, bool]]:
    for start, end, changed in spans:
        if end > start:
            yield "".join(words[start:end]), changed
