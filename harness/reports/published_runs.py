"""Runs that others made and published: what their files tell, as a record that every table takes.

A reader (:mod:`harness.reports.importing`) turns files into :class:`PublishedRun`; :func:`published_record` turns one
into a record. Values, intervals and differences are computed here from what each case contributed, as those of a run.
What the files do not tell is named as not known, and is missing from the record: it is never zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.exam.numbers import Json, summarise
from harness.exam.statistics import Ratio
from harness.io.files import rounded
from harness.runs.identity import SCHEMA, digest
from harness.runs.record import Record

__all__ = ["LABEL", "Origin", "PublishedExam", "PublishedRun", "Scores", "one_line_name", "published_record"]

LABEL = "published, not run here"
UNKNOWN = ("memory", "the sha256 of the weights", "whether the weights were restored")
"""What no file of other programs tells."""
LONGEST_NAME = 200

Scores = dict[str, dict[str, Ratio]]
"""Metric -> case -> what it contributed."""


@dataclass(frozen=True)
class Origin:
    """Where numbers are published.

    Attributes:
        repository: ``owner/name``; None where it is not told.
        commit: of the repository.
        licence: of the files.
        citation: the paper.
    """

    repository: str | None = None
    commit: str | None = None
    licence: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class PublishedExam:
    """What is asked under one name, and how its numbers are shown.

    Attributes:
        headline: the metric that stands for it.
        directions: metric -> whether higher is better; None where it has no better direction.
        shown: metrics that tables show besides the usual ones.
        derived: score -> the metrics whose harmonic mean it is.
        chance: metric -> what a model gets that knows nothing.
    """

    headline: str
    directions: Mapping[str, bool | None]
    shown: tuple[str, ...] = ()
    derived: Mapping[str, Sequence[str]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedRun:
    """One editor on one model and one edit set, as the files of others tell it.

    Attributes:
        model: its name, on the Hub where that is known.
        editor: as its authors call it.
        edit_set: what was edited.
        mode: ``isolated``, ``batch`` or ``sequential``.
        protocol: how the answers were asked for and judged, in a sentence.
        exams: name -> what was asked under it.
        scores: number of edits -> name of the exam -> metric -> case -> what it contributed; 0 is the unedited model.
        plain: number of edits -> name of the exam -> metric -> value, where only the value is told.
        batch_size: edits of one operation.
        settings: the hyperparameters that the files tell.
        notes: what a reader must know beside the numbers.
        seed: None where it is not told.
        seconds: of the whole run; None where they are not told.
        versions: of libraries, as far as they are told.
        rows: name of the exam -> a hash of its documents, as far as it is told.
        files: the files, with their hashes.
    """

    model: str
    editor: str
    edit_set: str
    mode: str
    protocol: str
    exams: Mapping[str, PublishedExam]
    scores: Mapping[int, Mapping[str, Scores]]
    plain: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    batch_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seed: int | None = None
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def one_line_name(text: object, what: str) -> str:
    """A name from a file of others as a record takes it: one line, not empty, not endless.

    Args:
        text: the name.
        what: what is named, for the message.

    Raises:
        DataError: it is no such name.
    """
    name = " ".join(str(text).split()) if isinstance(text, str | int) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        shown = ascii(text)[:60]
        raise DataError(f"{shown} is no name of {what}; expected one line of at most {LONGEST_NAME} characters")
    return name


def published_record(run: PublishedRun, origin: Origin, form: str) -> Record:
    """The record of a published run.

    Args:
        run: what its files tell.
        origin: where they are published.
        form: the name of their format.
    """
    edits = max([*run.scores, *run.plain])
    cases = list(
        dict.fromkeys(case for exam in run.scores.get(edits, {}).values() for m in exam.values() for case in m)
    )
    plan = _plan(run, edits)
    names = {"form": form, "repository": origin.repository, "commit": origin.commit, **plan}
    return Record(
        id=digest({"schema": SCHEMA, "published": names}),
        plan=plan,
        status="complete",
        model={"name": run.model},
        editor={"name": run.editor, "hyperparameters": dict(run.settings)},
        edits=_edits(run, edits, cases),
        headlines={name: exam.headline for name, exam in run.exams.items()},
        derived={
            name: {k: list(v) for k, v in exam.derived.items()} for name, exam in run.exams.items() if exam.derived
        },
        shown={name: list(exam.shown) for name, exam in run.exams.items() if exam.shown},
        chance={name: dict(exam.chance) for name, exam in run.exams.items() if exam.chance},
        points=[_point(run, count) for count in sorted({0, *run.scores, *run.plain})],
        data={name: _rows(run, name, edits, origin) for name in run.exams},
        cost=[] if run.seconds is None else [{"phase": "whole run", "seconds": run.seconds, "peak_memory_mib": None}],
        versions=dict(run.versions),
        seed=run.seed,
        published=_told(run, origin, form),
        values={count: dict(exams) for count, exams in sorted(run.scores.items())},
    )


def _plan(run: PublishedRun, edits: int) -> Json:
    plan: Json = {"model": run.model, "editor": run.editor, "edits": run.edit_set, "num_edits": edits, "mode": run.mode}
    more = {"edit_batch_size": run.batch_size, "settings": dict(run.settings), "seed": run.seed}
    return plan | {key: value for key, value in more.items() if value not in (None, {})}


def _edits(run: PublishedRun, edits: int, cases: Sequence[str]) -> Json:
    return {"dataset": run.edit_set, "count": edits, "mode": run.mode, "sha256": digest({"cases": sorted(cases)})}


def _point(run: PublishedRun, edits: int) -> Json:
    """The numbers after so many edits, with the differences from the unedited model where that was measured."""
    mine, base = run.scores.get(edits, {}), run.scores.get(0, {}) if edits else None
    plain = run.plain.get(edits, {})
    tasks = {
        name: summarise(
            mine.get(name, {}),
            None if base is None else base.get(name, {}),
            exam.directions,
            seed=0,
            derived=exam.derived if set().union(*exam.derived.values()) <= mine.get(name, {}).keys() else {},
            plain=plain.get(name, {}),
        )
        for name, exam in run.exams.items()
        if name in mine or name in plain
    }
    for name, measures in tasks.items():
        for metric, measure in measures.items():
            if metric in plain.get(name, {}) and not metric.endswith("_released"):
                measure["reason"] = "no interval: only the value is told"
            if (measure["difference"] or {}).get("n") == 0:  # nothing of the kind was asked before
                measure["difference"] = None
    return {"edits": edits, "tasks": rounded(tasks)}


def _told(run: PublishedRun, origin: Origin, form: str) -> Json:
    missing = [key for key, value in asdict(origin).items() if value is None]
    told = {
        "seconds": run.seconds is not None,
        "versions of libraries": bool(run.versions),
        "seed": run.seed is not None,
        "hyperparameters": bool(run.settings),
        "the unedited model": 0 in run.scores or 0 in run.plain,
        "what each case gave": bool(run.scores),
    }
    unknown = [*UNKNOWN, *(what for what, known in told.items() if not known)]
    files = [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in run.files[:1]]
    return {
        "label": LABEL,
        "format": form,
        "protocol": run.protocol,
        **asdict(origin),
        "unknown": [*unknown, *missing],
        "notes": list(run.notes),
        "files": files if len(run.files) == 1 else [{"count": len(run.files), "sha256": _sha256(run.files)}],
    }


def _sha256(files: Sequence[Path]) -> str:
    """Over the names and the bytes of several files."""
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _rows(run: PublishedRun, name: str, edits: int, origin: Origin) -> Json:
    """What is known of the documents of an exam."""
    each = run.scores.get(edits, {}).get(name, {}).values()
    count = len({case for metric in each for case in metric})
    known = {"rows": count or None, "sha256": run.rows.get(name)}
    return {"source": _place(origin), **{key: value for key, value in known.items() if value is not None}}


def _place(origin: Origin) -> str:
    return "@".join(part for part in (origin.repository, origin.commit) if part) or "not told"
