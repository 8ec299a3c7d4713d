"""The numbers of a record are those that its documents give: what is changed by hand is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.exam.numbers import summarise
from harness.exam.statistics import Ratio
from harness.runs.record import Record
from harness.runs.record_file import read_records
from harness.runs.ties import require_tied, untied

NAN = float("nan")
SAMPLES: dict[str, dict[str, Ratio]] = {
    "plain": {f"d{i}": Ratio(i % 3 == 0) for i in range(20)},
    "weighed": {f"d{i}": Ratio(2.0 * i, i + (i % 2)) for i in range(20)},
    "clustered": {f"d{i}": Ratio(0.1 * i, 1.0 + i % 2, f"c{i // 3}") for i in range(20)},
    "strata": {f"d{i}": Ratio(float(i), 2.0 * i, None, f"s{i % 4}") for i in range(20)},
    "both": {f"d{i}": Ratio(float(i), 1.0, f"c{i // 3}" if i % 5 else None, f"s{i % 2}") for i in range(20)},
    "missing": {f"d{i}": Ratio(NAN if i % 4 == 0 else 0.5, 0.0 if i % 5 == 0 else 1.0) for i in range(20)},
    "nothing": {"d1": Ratio(NAN)},
    "empty": {},
}
BASE = {f"d{i}": Ratio(0.25 * (i % 4), 1.0 + i % 2, f"c{i // 3}") for i in range(3, 20)}


def record(metric: str) -> Record:
    """One metric of one task, with and without edits, and a harmonic mean of it with itself."""
    numbers = {"score": ("m", "m")}
    points = []
    values = {0: {"T": {"m": BASE}}, 5: {"T": {"m": SAMPLES[metric]}}}
    for edits, tasks in values.items():
        table = summarise(tasks["T"], values[0]["T"] if edits else None, {}, seed=0, derived=numbers)
        points.append({"edits": edits, "tasks": {"T": table}})
    derived = {"T": {"score": ["m", "m"]}}
    return Record("x", {}, status="complete", points=points, derived=derived, values=values)


@pytest.mark.parametrize("metric", SAMPLES)
def test_what_was_measured_is_tied(metric: str) -> None:
    assert list(untied(record(metric))) == []


@pytest.mark.parametrize("metric", ["plain", "weighed", "clustered", "strata", "both", "missing"])
@pytest.mark.parametrize(
    "path", [(1, "m", "value"), (0, "m", "n"), (1, "m", "difference", "value"), (1, "score", "value")]
)
def test_a_number_that_was_changed_is_named(metric: str, path: tuple[Any, ...]) -> None:
    kept = record(metric)
    point, *keys, last = path
    place: dict[str, Any] = kept.points[point]["tasks"]["T"]
    for key in keys:
        place = place[key]
    place[last] += 1 if last == "n" else 1e-4
    (said,) = untied(kept)
    assert said.startswith(
        f"T {keys[0]} after {5 * point} edits, the {'difference' if keys[-1:] == ['difference'] else last} is"
    )


def test_a_value_where_there_is_none_is_named() -> None:
    kept = record("nothing")
    kept.points[1]["tasks"]["T"]["m"] |= {"value": 0.999, "n": 1}
    assert "the value is 0.999, but its documents give nothing" in next(untied(kept))


def test_only_what_is_wanted_is_looked_at() -> None:
    kept = record("plain")
    kept.points[1]["tasks"]["T"]["m"]["value"] = 0.999
    assert list(untied(kept, lambda *_: ["score"])) == []
    with pytest.raises(DataError, match=r"the value is 0\.999, but .*; repeat the run"):
        require_tied([kept])


def test_a_record_without_values_says_nothing_against_itself() -> None:
    kept = record("plain")
    kept.values = None
    require_tied([kept])


def test_committed_records_are_tied() -> None:
    records = Path(__file__).parents[3] / "results" / "records"
    if not records.is_dir():
        pytest.skip("results are not part of this copy")
    kept = read_records(records, values=True)
    assert len(kept) > 100
    require_tied(kept[::10])
