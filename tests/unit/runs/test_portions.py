"""Isolated edits in portions: the record is the same whoever made which portion, and in whatever order."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.exam import measure
from harness.exam.measure import Measured
from harness.exam.statistics import Ratio
from harness.exam.tasks import Task
from harness.runs import portions
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.portions import Portions
from harness.runs.record import Record
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.several import run_each

PEOPLE = ["Ada Velmont", "Hugo Lantern", "Elena Marsh", "Rosa Delgado", "Ida Frost"]


@pytest.fixture
def plan(checkpoint: Callable[..., Path], nudge: str, tmp_path: Path) -> Plan:
    """Five isolated edits, examined on themselves and on seven documents."""
    rows = tmp_path / "my.jsonl"
    row = {"prompt": "{} was born in", "target": "Rome", "target_old": "Oslo"}
    rows.write_text("".join(json.dumps({**row, "subject": who}) + "\n" for who in PEOPLE))
    settings = {"scale": 6.0}
    return Plan(str(checkpoint("gpt2")), nudge, settings, str(rows), mode="isolated", tasks=("NLI",), limit=7)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of two edits."""
    monkeypatch.setattr(portions, "PORTION", 2)


def options(folder: Path, **changes: Any) -> RunOptions:
    return replace(RunOptions(folder, device="cpu", rows=8, log_samples=True), **changes)


def said(record: Record) -> dict[str, Any]:
    """A record but for the time that it took."""
    return {**record.to_json(), "cost": [row["phase"] for row in record.cost]}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def close(one: object, other: object) -> bool:
    """Whether two values are the same up to the rounding of other batches."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    return one == other


def test_portions_give_the_record_of_the_whole(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    whole = run_plan(resolve(plan), options(tmp_path / "whole"))
    request.getfixturevalue("small")
    divided = run_plan(resolve(plan), options(tmp_path / "divided"))
    assert files(tmp_path / "whole") == files(tmp_path / "divided")
    assert close(said(whole), said(divided))
    assert whole.values is not None and divided.values is not None
    for task, metrics in whole.values[5].items():
        for metric, rows in metrics.items():
            assert list(divided.values[5][task][metric]) == list(rows)  # every document, in its order


@pytest.mark.usefixtures("small")
def test_shards_give_the_same_record_to_the_last_digit(plan: Plan, tmp_path: Path) -> None:
    one = run_plan(resolve(plan), options(tmp_path / "one"))
    (done,) = run_each([plan], options(tmp_path / "two", shards=2))
    assert done.path is not None
    two = read_record(done.path, values=True)
    again = read_record(tmp_path / "one" / done.path.name, values=True)
    assert said(two) == said(one)
    assert two.values == again.values
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        if name.endswith(".xz"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.usefixtures("small")
def test_a_run_that_was_stopped_goes_on_at_its_portion(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []
    own = Portions._made

    def counted(self: Portions, number: int) -> portions.Portion:
        made.append(number)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return own(self, number)

    monkeypatch.setattr(Portions, "_made", counted)
    with pytest.raises(KeyboardInterrupt):
        run_plan(resolve(plan), options(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.portion-*"))) == 1
    run_plan(resolve(plan), options(tmp_path / "out"))
    assert made == [0, 1, 1, 2]
    assert list((tmp_path / "out").glob("*.portion-*")) == []


@pytest.mark.usefixtures("small")
def test_a_portion_of_another_plan_is_refused(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(portions.Portions, "each", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_plan(resolve(plan), options(tmp_path / "out"))
    other = replace(plan, settings={"scale": 2.0})
    with monkeypatch.context() as patch:
        patch.setattr("harness.runs.runner.note_described", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_plan(resolve(other), options(tmp_path / "other"))
    mine = resolve(plan).id[:8]
    for path in (tmp_path / "other").glob("*.portion-*"):
        named = path.name.replace(resolve(other).id[:8], mine)
        (tmp_path / "out" / named).write_bytes(path.read_bytes())
    (tmp_path / "out" / named).write_bytes(b"cut off")
    with caplog.at_level(logging.WARNING):
        kept = run_plan(resolve(plan), options(tmp_path / "out"))
    assert caplog.text.count("refused: it is a portion of another plan, or of something that has changed since") == 2
    assert caplog.text.count("refused: not whole xz") == 1
    assert said(kept) == said(run_plan(resolve(plan), options(tmp_path / "alone")))


def test_what_is_no_mean_over_documents_is_computed_of_all() -> None:
    task = cast(Task, SimpleNamespace(task=SimpleNamespace(aggregation=lambda: {"worst": min}), name="t"))
    parts = [
        Measured(
            {"hit": {"t/10": Ratio(1.0), "t/2": Ratio(0.0)}}, {"worst": 3.0}, items={"worst": {"t/10": 3, "t/2": 5}}
        ),
        Measured({"hit": {"t/3": Ratio(1.0)}}, {"worst": 2.0}, truncated=1, items={"worst": {"t/3": 2}}),
    ]
    found = measure.join_measured(task, parts)
    assert found.plain == {"worst": 2.0}
    assert list(found.values["hit"]) == ["t/2", "t/3", "t/10"]
    assert found.truncated == 1
    assert measure.measured_from(measure.measured_to(found)).items == found.items


@pytest.mark.usefixtures("small")
def test_what_cannot_be_divided_is_made_as_a_whole_and_said(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batch = replace(plan, mode="batch", tasks=())
    with caplog.at_level(logging.WARNING):
        list(run_each([batch], options(tmp_path, shards=2)))
    assert "made as a whole: --shards divides isolated edits, where there are enough" in caplog.text
