"""Verdicts on disk, beside a record, and the numbers that they give.

``<name>.judged.json.xz`` holds for each judge what it is, what names the words it was asked in, and what it said of
each text.  Verdicts belong to the record that they were given on: where its numbers are others now, they do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError
from harness.exam.numbers import Json, summarise
from harness.exam.statistics import Ratio
from harness.exam.verdicts import Verdict
from harness.io.files import json_sha256, pack_json, rounded, unpack_json, write_whole
from harness.io.schema import Count, Number, checked
from harness.runs.record import Record

__all__ = [
    "JUDGED_FORMAT",
    "JudgedClaim",
    "JudgedRow",
    "Judgement",
    "judge_digest",
    "judged_notes",
    "judged_path",
    "read_judged",
    "with_verdicts",
    "write_judged",
]

JUDGED_FORMAT = 1


class JudgedRow(TypedDict):
    """What a judge said of one text."""

    task: str
    group: str
    doc_id: Count
    question: Count
    kind: str | None
    case: str | None
    at: Count
    prompt: str
    verdict: Verdict | None
    exact: bool


class JudgedClaim(TypedDict):
    """What a judge said of a passage and a claim, and what their label says."""

    id: str
    cluster: str
    prompt: str
    verdict: Verdict | None
    label: Verdict


class Judgement(TypedDict):
    """All that one judge said.

    ``judge``: its name, its kind, and the hash of its weights or its address.  ``prompt_sha256``: the words that it is
    asked in.  ``said``: prompt -> its answer, or the log-likelihood of each verdict.
    """

    judge: dict[str, Any]
    prompt_sha256: str
    record: str
    rows: list[JudgedRow]
    said: dict[str, str | list[Number] | None]
    claims: NotRequired[list[JudgedClaim]]


class _JudgedFile(TypedDict):
    format: Count
    id: str
    judges: list[Judgement]


def judged_path(path: str | Path) -> Path:
    """Where the verdicts on a record lie, beside it."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".judged.json.xz")


def judge_digest(judge: Mapping[str, Any], prompt_sha256: str) -> str:
    """What names a judge in a column: six hex digits of what it is and of the words that it is asked in."""
    return json_sha256([dict(judge), prompt_sha256])[:6]


def read_judged(path: str | Path, owner: str) -> list[Judgement]:
    """The verdicts beside a record; none where there is no file.

    Args:
        path: the JSON of the record.
        owner: its id.

    Raises:
        DataError: the file is not whole, or not what a judge's run writes for this record.
    """
    beside = judged_path(path)
    if not beside.is_file():
        return []
    cure = "delete it, and judge again"
    try:
        found = unpack_json(beside.read_bytes())
        checked(_JudgedFile, found)
    except (OSError, ValueError) as error:
        raise DataError(f"{beside}: not what harness judge writes ({error}); {cure}") from error
    if found["format"] != JUDGED_FORMAT or found["id"] != owner:
        raise DataError(f"{beside}: not verdicts on record {owner} in form {JUDGED_FORMAT}; {cure}")
    judges: list[Judgement] = found["judges"]
    return judges


def write_judged(path: str | Path, owner: str, judges: Sequence[Judgement]) -> None:
    """Write the verdicts beside a record, whole or not at all.

    Args:
        path: the JSON of the record.
        owner: its id.
        judges: all that is known.

    Raises:
        UsageError: the file cannot be written.
    """
    write_whole(judged_path(path), pack_json({"format": JUDGED_FORMAT, "id": owner, "judges": list(judges)}))


# --- the numbers ------------------------------------------------------------------------------------------------------


def with_verdicts(record: Record) -> Record:
    """The record with the share of right texts as one more metric of each task and kind, for each judge.

    The record itself where nothing was judged, or where its numbers are others than when it was.
    """
    judged = [one for one in record.judged or () if one["record"] == (record.sealed or record.seal())]
    if not judged:
        return record
    found = replace(record, points=deepcopy(record.points), shown={k: list(v) for k, v in record.shown.items()})
    found.values = {at: dict(tasks) for at, tasks in (record.values or {}).items()}
    for judgement in judged:
        _add(found, judgement)
    return replace(found, judged=None, judges={**record.judges, **{_name(one): one["judge"] for one in judged}})


def _name(judgement: Judgement) -> str:
    return f"judged@{judge_digest(judgement['judge'], judgement['prompt_sha256'])}"


def _add(record: Record, judgement: Judgement) -> None:
    """Add the numbers of one judge to a record."""
    values = _contributions(judgement)
    for task, at in sorted({(task, at) for task, at in values}, key=lambda key: key[1]):
        point = record.point(at)
        if task not in point.get("tasks", {}):
            continue
        mine, base = values[task, at], values.get((task, 0)) if at else None
        table = rounded(summarise(mine, base, dict.fromkeys(mine, True), seed=record.seed or 0))
        point["tasks"][task] = {**point["tasks"][task], **table}
        assert record.values is not None
        record.values[at][task] = {**record.values.get(at, {}).get(task, {}), **mine}
        shown = record.shown.setdefault(task, [])
        shown += [metric for metric in mine if metric not in shown]


def _contributions(judgement: Judgement) -> dict[tuple[str, int], dict[str, dict[str, Ratio]]]:
    """Reported name and stop -> metric -> text -> 1 where it is right; what was not answered is not a number."""
    name = _name(judgement)
    found: dict[tuple[str, int], dict[str, dict[str, Ratio]]] = {}
    for row in judgement["rows"]:
        metric = f"{row['kind']}_{name}" if row["kind"] else name
        document = f"{row['task']}/{row['doc_id']}" + (f"/{row['question']}" if row["question"] else "")
        right = math.nan if row["verdict"] is None else float(row["verdict"] == "right")
        table = found.setdefault((row["group"], row["at"]), {})
        table.setdefault(metric, {})[document] = Ratio(right, 1.0, row["case"])
    return found


def judged_notes(judges: Mapping[str, Json]) -> list[str]:
    """Who judged, a line a judge, for below a table.

    Args:
        judges: the name in a column -> what the judge is.
    """
    return [
        f"{name}: the share of texts that {said.get('name')} marks right; texts it gave no verdict on do not count."
        for name, said in judges.items()
    ]
