"""The numbers of a record are those that its documents give: what is changed by hand is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.exam.numbers import summarise
from harness.exam.statistics import Ratio
from harness.runs.record import Record
from harness.runs.record_file import read_record, read_records, write_record
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


@pytest.mark.parametrize("metric", ["plain", "weighed", "clustered", "strata", "both", "missing"])
@pytest.mark.parametrize("path", [(0, "m"), (1, "m"), (1, "score"), (1, "m", "difference"), (1, "score", "difference")])
def test_an_interval_that_was_moved_is_named(metric: str, path: tuple[Any, ...]) -> None:
    kept = record(metric)
    point, *keys = path
    place: dict[str, Any] = kept.points[point]["tasks"]["T"]
    for key in keys:
        place = place[key]
    if place["interval"] is None:
        place["interval"] = [place["value"] - 0.1, place["value"] + 0.1]
    else:
        low, high = place["interval"]
        place["interval"] = [low + 0.5 * (high - low), high]
    (said,) = untied(kept)
    what = "difference's interval" if keys[-1] == "difference" else "interval"
    assert said.startswith(f"T {keys[0]} after {5 * point} edits, the {what} is [")


@pytest.mark.parametrize("p", [0.001, 0.9, None])
def test_a_p_value_that_was_changed_is_named(p: float | None) -> None:
    kept = record("plain")
    change = kept.points[1]["tasks"]["T"]["m"]["difference"]
    assert 0.1 < change["p"] < 0.8
    change["p"] = p
    (said,) = untied(kept)
    assert said.startswith("T m after 5 edits, the difference's p value is ")


def test_whole_numbers_leave_no_room() -> None:
    """No rounding moves what the bootstrap draws of them."""
    kept = record("weighed")
    kept.values[0]["T"]["m"] = {doc: Ratio(float(i % 4)) for i, doc in enumerate(kept.values[5]["T"]["m"])}  # type: ignore[index]
    table = summarise(kept.values[5]["T"], kept.values[0]["T"], {}, seed=0)  # type: ignore[index]
    kept.points = [{"edits": 5, "tasks": {"T": table}}]
    assert list(untied(kept)) == []
    table["m"]["interval"][0] += 1e-4
    (said,) = untied(kept)
    assert "the interval is [" in said


def written(folder: Path, metric: str = "plain") -> tuple[Path, dict[str, Any]]:
    """A record on disk with its seal, and what its JSON says."""
    path = folder / "r.json"
    write_record(path, record(metric), small=False)
    return path, json.loads(path.read_text())


def again(path: Path, said: dict[str, Any]) -> Record:
    """The record after somebody wrote something else into its JSON."""
    path.write_text(json.dumps(said))
    return read_record(path, values=True)


def test_a_record_is_what_was_written_beside_its_documents(tmp_path: Path) -> None:
    path, said = written(tmp_path)
    kept = again(path, said)
    assert kept.sealed is not None
    assert list(untied(kept, intervals=False)) == []
    assert list(untied(again(path, {**said, "plan": {"model": "another"}, "cost": []}), intervals=False)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("points", 1, "tasks", "T", "m", "difference", "p"), 0.04),
        (("points", 1, "tasks", "T", "m", "difference", "detectable"), 0.01),
        (("points", 1, "tasks", "T", "m", "interval", 0), 0.3),
        (("points", 1, "tasks", "T", "m", "higher_is_better"), True),
        (("points", 0, "tasks", "T", "m", "reason"), "none"),
        (("points", 0, "truncated"), {"T": 3}),
        (("collapse",), {"repetition": 5}),
        (("headlines",), {"T": "score"}),
        (("weights",), {"before": {"w": "a"}}),
    ],
)
@pytest.mark.parametrize("intervals", [False, True])
def test_whatever_came_out_is_tied(tmp_path: Path, place: tuple[Any, ...], value: object, intervals: bool) -> None:
    path, said = written(tmp_path)
    inner: Any = said
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert len(list(untied(again(path, said), intervals=intervals))) == 1


def test_a_run_that_was_killed_between_its_two_files_says_nothing_against_itself(tmp_path: Path) -> None:
    path, said = written(tmp_path)
    del said["points"][1]
    assert len(list(untied(again(path, said)))) == 1
    assert list(untied(again(path, {**said, "status": "interrupted"}))) == []


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
