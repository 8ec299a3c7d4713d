"""The regression check: what may move, and what may not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from synthetic import fixed

from harness.reports.regressions import Moved, regressions
from harness.runs.record_file import read_record


def moved(before: float | None, after: float | None, n: tuple[int, int] = (100, 100), **clusters: int) -> list[Moved]:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.5, 0.1)
    old.tasks(50)["NLI"]["accuracy"] |= {"value": before, "n": n[0]} | clusters
    new.tasks(50)["NLI"]["accuracy"] |= {"value": after, "n": n[1]} | clusters
    return regressions(old, new)


@pytest.mark.parametrize("after", [0.5, 0.5 + 1e-9, 0.5009, 0.51, 0.49])
def test_rounding_and_one_document_may_move(after: float) -> None:
    assert moved(0.5, after) == []


@pytest.mark.parametrize("after", [0.52, 0.48, 0.0])
def test_two_documents_may_not_move_in_either_direction(after: float) -> None:
    (found,) = moved(0.5, after)
    assert (found.edits, found.task, found.metric, found.what) == (50, "NLI", "accuracy", "value")
    assert (found.before, found.after, found.allowed) == (0.5, after, pytest.approx(0.011))


def test_exactly_one_document_may_move_whatever_the_last_digit() -> None:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.51, 0.1)
    assert 0.51 - 0.5 > 0.01
    assert regressions(old, new, tolerance=0.0) == []
    assert len(regressions(old, new, tolerance=0.0, documents=0.0)) == 2


def test_clusters_are_the_documents_that_count() -> None:
    assert moved(0.5, 0.51, n=(1000, 1000)) != []
    assert moved(0.5, 0.51, n=(1000, 1000), clusters=100) == []


@pytest.mark.parametrize(("before", "after"), [(0.5, None), (None, 0.5)])
def test_a_number_may_not_appear_or_vanish(before: float | None, after: float | None) -> None:
    (found,) = moved(before, after)
    assert (found.what, found.before, found.after) == ("missing", before, after)


def test_what_was_missing_may_stay_missing() -> None:
    assert moved(None, None) == []


def test_the_number_of_documents_may_move_by_one() -> None:
    assert moved(0.5, 0.5, n=(100, 101)) == []
    (found,) = moved(0.5, 0.5, n=(100, 98))
    assert (found.what, found.before, found.after) == ("n", 100, 98)


def test_a_missing_task_or_point_is_named() -> None:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.5, 0.1)
    del new.points[1]["tasks"]["NLI"]
    assert [m.what for m in regressions(old, new)] == ["missing"]
    assert len(regressions(old, replace(new, points=new.points[:1]))) == 2
    assert regressions(replace(new), old) == []  # what is new is no regression


def test_a_record_does_not_move_from_itself(tmp_path: Path) -> None:
    record = synthetic.record("memit", 0.95)
    path = synthetic.write(tmp_path, record)
    assert regressions(read_record(path), record) == []
    assert regressions(record, record, tolerance=0.0, documents=0.0) == []
    assert not math.isnan(record.tasks(50)["NLI"]["accuracy"]["value"])
