"""Records: whole or absent, read back as written, one writer at a time."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from harness.errors import DataError, UsageError
from harness.exam.numbers import summarise
from harness.exam.ratios import Columns
from harness.exam.statistics import Ratio, difference, estimate, harmonic_difference
from harness.io import files
from harness.io.files import unpack_json, values_path
from harness.runs import record_file, ties
from harness.runs.folder import exclusive
from harness.runs.identity import SCHEMA, digest
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record, read_records
from harness.runs.versions import versions
from harness.runs.writer import RecordWriter

PLAN = {"model": "mini", "editor": "memit", "edits": "counterfact", "num_edits": 50, "mode": "batch", "seed": 0}


def make(**changes: object) -> Record:
    record = Record(
        id=digest(PLAN),
        plan=dict(PLAN),
        model={
            "name": "mini",
            "sha256": "ab" * 32,
            "parameters": 2_000_000,
            "dtype": "float32",
            "architecture": "gpt2",
        },
        editor={"name": "memit", "hyperparameters": {"layers": [1, 2]}, "notes": []},
        edits={"dataset": "counterfact", "count": 50, "unique": 50, "ids": ["0"], "sha256": "cd", "warnings": []},
        headlines={"NLI": "accuracy"},
        versions=versions(),
    )
    for key, value in changes.items():
        setattr(record, key, value)
    return record


def accuracies(right: int, n: int = 20) -> dict[str, dict[str, Ratio]]:
    return {"accuracy": {f"NLI/{i}": Ratio(float(i < right)) for i in range(n)}}


def numbers(values: dict[str, dict[str, Ratio]], base: dict[str, dict[str, Ratio]] | None = None) -> dict[str, object]:
    return summarise(values, base, {"accuracy": True}, seed=0)


def write(folder: Path, record: Record) -> Path:
    with RecordWriter(folder, record) as writer:
        writer.measured(0, "NLI", numbers=numbers(accuracies(15)), values=accuracies(15))
        writer.measured(50, "NLI", numbers=numbers(accuracies(9), accuracies(15)), values=accuracies(9))
        return writer.complete()


# --- name -------------------------------------------------------------------------------------------------------------


def test_the_name_says_what_the_run_was() -> None:
    assert record_name(make()) == f"mini--memit--counterfact-50--batch--{digest(PLAN)[:8]}"


@pytest.mark.parametrize(
    ("given", "part"),
    [("../models/stories260K/", "stories260K"), ("EleutherAI/gpt-j-6b", "gpt-j-6b"), ("my model:v1", "my-model-v1")],
)
def test_the_name_is_one_file_name(given: str, part: str) -> None:
    name = record_name(make(model={"name": given}, editor={"name": "rome+prune"}))
    assert name.startswith(f"{part}--rome+prune--")
    assert "/" not in name


def test_a_long_name_leaves_room_for_what_is_put_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.socket, "gethostname", lambda: "h" * 63)
    long = make(
        model={"name": "m" * 250}, editor={"name": "e" * 90}, edits={"dataset": "d" * 90 + ".jsonl", "count": 7}
    )
    assert "-7--" in record_name(long)
    with RecordWriter(tmp_path, long) as writer:
        writer.measured(0, "NLI", numbers={}, values={})
        writer.complete()
    assert read_record(writer.path).status == "complete"


def test_versions_name_what_computed_the_numbers() -> None:
    found = versions()
    assert set(found) == {"python", "harness", "torch", "transformers", "lm_eval", "numpy", "scikit-learn"}
    assert found["numpy"] == np.__version__


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_summarise_gives_the_documented_layout() -> None:
    base, edited = accuracies(15), accuracies(9)
    measure = numbers(edited, base)["accuracy"]
    found, change = estimate(edited["accuracy"], 0), difference(base["accuracy"], edited["accuracy"], seed=0)
    assert measure == {
        "value": 0.45,
        "n": 20,
        "interval": [found.low, found.high],
        "reason": None,
        "higher_is_better": True,
        "difference": {
            "value": pytest.approx(-0.3),
            "interval": [change.low, change.high],
            "p": 2 / 2**6,
            "n": 20,
            "detectable": change.detectable,
            "reason": None,
        },
    }
    assert numbers(base)["accuracy"]["difference"] is None


def test_a_derived_score_is_a_paired_harmonic_mean() -> None:
    base = {k: {f"{k}{i}": Ratio(float(i < r), 1, str(i)) for i in range(20)} for k, r in (("es", 2), ("ns", 18))}
    edited = {k: {f"{k}{i}": Ratio(float(i < r), 1, str(i)) for i in range(20)} for k, r in (("es", 19), ("ns", 15))}
    score = summarise(edited, base, {}, seed=3, derived={"score": ["es", "ns"]})["score"]
    assert score["value"] == pytest.approx(2 / (1 / 0.95 + 1 / 0.75))
    assert score["clusters"] == 20
    assert score["difference"]["p"] == harmonic_difference(list(base.values()), list(edited.values()), seed=3).p


def test_a_plain_value_has_no_interval_and_says_so() -> None:
    found = summarise({}, None, {"x": False}, seed=0, plain={"x": 1.5, "y": math.nan})
    assert (found["x"]["value"], found["x"]["interval"]) == (1.5, None)
    assert found["x"]["reason"] == "no interval: not a mean over documents"
    assert (found["y"]["value"], found["y"]["reason"]) == (None, "not a finite value")


def test_a_metric_that_the_unedited_model_lacks_has_no_difference() -> None:
    change = numbers(accuracies(9), {})["accuracy"]["difference"]
    assert (change["value"], change["interval"], change["p"]) == (None, None, None)
    assert change["reason"] == "no document has a value on both sides; 20 of 20 documents have no value on both sides"


# --- round trip -------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = make()
    path = write(tmp_path, written)
    found = read_record(path, values=True)
    assert found == written
    assert found.values == written.values == {0: {"NLI": accuracies(15)}, 50: {"NLI": accuracies(9)}}
    assert (found.status, found.schema) == ("complete", SCHEMA)
    assert read_record(path).values is None


def test_the_top_level_layout(tmp_path: Path) -> None:
    data = json.loads(write(tmp_path, make()).read_text())
    expected = "schema id plan status reason model editor edits headlines derived shown chance caveats points collapse "
    expected += "weights delta data templates"
    assert list(data) == [*expected.split(), "cost", "versions", "seed"]
    assert [point["edits"] for point in data["points"]] == [0, 50]


def test_values_keep_every_field_and_what_is_missing(tmp_path: Path) -> None:
    rows = {"a": Ratio(0.300000001, 3.0, "c", "s"), "b": Ratio(math.nan, 1.0, None, "t"), "c": Ratio(1e-17)}
    values = {"f1": rows, "some": {"c": Ratio(1.0), "a": Ratio(0.0)}, "none": {}}
    with RecordWriter(tmp_path, make()) as writer:
        writer.measured(0, "NER", numbers={}, values=values)
        path = writer.complete()
    read = read_record(path, values=True).values[0]["NER"]
    assert read.keys() == values.keys()
    found = {metric: dict(rows) for metric, rows in read.items()}
    assert math.isnan(found["f1"].pop("b").num)
    del rows["b"]
    assert found == values


def test_the_values_file_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = values_path(write(tmp_path / "a", make())).read_bytes()
    assert values_path(write(tmp_path / "b", make())).read_bytes() == first
    assert unpack_json(first)["points"]["0"]["NLI"]["metrics"]["accuracy"].keys() == {"num"}


def test_documents_that_count_once_share_what_nobody_can_change(tmp_path: Path) -> None:
    path = write(tmp_path, make())
    values = read_record(path, values=True).values
    assert values is not None
    before, after = (values[edits]["NLI"]["accuracy"] for edits in (0, 50))
    assert isinstance(before, Columns) and isinstance(after, Columns)
    assert (before.den == 1).all() and len(before.den) == len(before)
    assert after.den is before.den and after.num is not before.num
    with pytest.raises(ValueError, match="read-only"):
        before.den[0] = 2.0


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, make(delta={"w": {"spectral": math.inf, "rank": 1}})) as writer:
        path = writer.complete()
    assert json.loads(path.read_text())["delta"] == {"w": {"spectral": None, "rank": 1}}


def test_lists_on_one_line_change_no_text(tmp_path: Path) -> None:
    notes = ["a [ b  c ] d", "[\n 1 ]", 'quote " [ ]', "café"]
    with RecordWriter(tmp_path, make(editor={"name": "x", "notes": notes, "layers": [1, 2]})) as writer:
        path = writer.complete()
    assert read_record(path).editor["notes"] == notes
    assert '"layers": [1, 2]' in path.read_text()


def test_a_record_of_twenty_tasks_is_small(tmp_path: Path) -> None:
    values = {f"metric{k}": {str(i): Ratio(float(i % (k + 2) == 0)) for i in range(100)} for k in range(5)}
    with RecordWriter(tmp_path, make()) as writer:
        for task in range(10):
            for edits in (0, 50):
                writer.measured(edits, f"task{task}", numbers=summarise(values, values, {}, seed=0), values=values)
        path = writer.complete()
    assert path.stat().st_size < 60_000
    assert values_path(path).stat().st_size < 20_000


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 200, -3])
def test_a_truncated_record_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, make())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"not whole JSON.*repeat the run") as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"schema": 1}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"other\.json: not a record"):
        read_record(path)


@pytest.mark.parametrize(
    "change",
    [
        {"points": "none"},
        {"points": ["none"]},
        {"points": [{"edits": 0, "tasks": []}]},
        {"points": [{"edits": 0}]},
        {"points": [{"edits": 0, "tasks": {"NLI": {"accuracy": 0.5}}}]},
        {"plan": "mini"},
    ],
)
def test_a_record_of_another_layout_is_named(change: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path, make())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"not what a run writes \(p(oints|lan).*\); repeat the run"):
        read_record(path)


@pytest.mark.parametrize(
    ("schema", "cure"),
    [("1", "repeat the run$"), ("3", "install a newer"), ('"x"', "install")],
)
def test_another_schema_is_named(tmp_path: Path, schema: str, cure: str) -> None:
    path = write(tmp_path, make())
    path.write_text(path.read_text().replace('"schema": 2', f'"schema": {schema}'))
    with pytest.raises(DataError, match=rf"record schema {json.loads(schema)}, this version reads 2; {cure}"):
        read_record(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read \(No such file or directory\)"):
        read_record(tmp_path / "absent.json")


def test_truncated_values_are_named_and_only_when_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, make())
    beside = values_path(path)
    beside.write_bytes(beside.read_bytes()[:-9])
    assert read_record(path).id
    with pytest.raises(DataError, match=r"values\.json\.xz: not whole; repeat"):
        read_record(path, values=True)


def test_values_of_another_record_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, make())
    other = write(tmp_path / "other", make(id="f" * 16))
    values_path(path).write_bytes(values_path(other).read_bytes())
    with pytest.raises(DataError, match="not the values of record"):
        read_record(path, values=True)


def test_a_folder_is_read_in_order_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for key in ("b", "a"):
        write(tmp_path / "records", make(id=key * 16))
    (tmp_path / "notes.json").write_text('{"hello": 1}')
    assert [record.id[0] for record in read_records(tmp_path)] == ["a", "b"]
    assert [record.id[0] for record in read_records(tmp_path / "records")] == ["a", "b"]
    with pytest.raises(DataError, match="holds no record"):
        read_records(_empty(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        read_records(tmp_path / "nowhere")


def test_what_is_called_like_a_record_and_is_no_file_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, make())
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.json")
    assert [record.id for record in read_records(tmp_path)] == [make().id]


def test_a_file_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, make())

    def refused(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read (Permission denied)")):
        read_records(tmp_path)


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


# --- the run under way ------------------------------------------------------------------------------------------------


def test_every_measured_task_is_on_disk_at_once(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, make()) as writer:
        writer.measured(0, "NLI", numbers=numbers(accuracies(15)), values=accuracies(15))
        found = read_record(writer.path, values=True)
        assert (found.status, found.tasks(0)["NLI"]["accuracy"]["value"]) == ("interrupted", 0.75)
        assert found.values == {0: {"NLI": accuracies(15)}}
        writer.complete()
    assert sorted(path.name.split(".", 1)[1] for path in tmp_path.glob("[!.]*")) == ["json", "values.json.xz"]


def test_points_stand_in_order_whatever_was_measured_first(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, make()) as writer:
        for edits in (50, 0, 10):
            writer.measured(edits, "NLI", numbers=numbers(accuracies(9)), values=accuracies(9))
        assert [point["edits"] for point in read_record(writer.complete()).points] == [0, 10, 50]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted before the end"),
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
    ],
)
def test_an_interruption_keeps_what_was_measured(
    tmp_path: Path, error: BaseException, status: str, reason: str
) -> None:
    with pytest.raises(type(error)), RecordWriter(tmp_path, make()) as writer:
        writer.measured(0, "NLI", numbers=numbers(accuracies(15)), values=accuracies(15))
        raise error
    (found,) = read_records(tmp_path, values=True)
    assert (found.status, found.reason) == (status, reason)
    assert found.values == {0: {"NLI": accuracies(15)}}


def test_an_interrupted_run_leaves_an_earlier_complete_record_alone(tmp_path: Path) -> None:
    path = write(tmp_path, make())
    before = path.read_bytes(), values_path(path).read_bytes()
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path, make()) as writer:
        writer.measured(0, "NLI", numbers=numbers(accuracies(3)), values=accuracies(3))
        raise KeyboardInterrupt
    assert (path.read_bytes(), values_path(path).read_bytes()) == before
    assert write(tmp_path, make()) == path
    assert len(read_records(tmp_path)) == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, make())
    before, names = path.read_bytes(), sorted(tmp_path.iterdir())

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UsageError, match="No space"):
        write(tmp_path, make(seed=1))
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == names


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file.*cannot be written to.*--output"):
        RecordWriter(tmp_path / "file", make())
    with pytest.raises(UsageError, match="cannot be written to"):
        RecordWriter("/proc/nowhere", make())


def test_a_second_run_of_the_same_plan_is_told(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path, "1" * 16),
        pytest.raises(UsageError, match="another run is writing the record 11111111 of this plan"),
        exclusive(tmp_path, "1" * 16),
    ):
        pytest.fail("two runs write it")
    with pytest.raises(KeyError), exclusive(tmp_path, "1" * 16):
        raise KeyError
    with exclusive(tmp_path, make().id), RecordWriter(tmp_path, make()) as writer:  # released
        writer.complete()
    assert list(tmp_path.glob(".*.lock")) == []


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock here")])
def test_a_folder_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refused)
    with pytest.raises(UsageError, match="the record 11111111 cannot be held"), exclusive(tmp_path, "1" * 16):
        pytest.fail("nobody holds it")


def test_runs_of_other_plans_write_to_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    first, second = make(id="1" * 16), make(id="2" * 16)
    with exclusive(tmp_path, first.id), RecordWriter(tmp_path, first) as one:
        one.measured(0, "NLI", numbers={}, values={})
        with exclusive(tmp_path, second.id), RecordWriter(tmp_path, second) as two:
            two.measured(0, "NLI", numbers={}, values={})
            two.complete()
        one.complete()
    assert [(record.id, record.status) for record in read_records(tmp_path)] == [
        (first.id, "complete"),
        (second.id, "complete"),
    ]


HOLD = """
import sys, time
from harness.runs import record_file, ties
from harness.runs.folder import exclusive
from harness.runs.record import Record
from harness.runs.writer import RecordWriter
with exclusive(sys.argv[1], "1" * 16), RecordWriter(sys.argv[1], Record(id="1" * 16, plan={})) as writer:
    writer.measured(0, "NLI", numbers={}, values={})
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run is writing"), exclusive(tmp_path, "1" * 16):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with exclusive(tmp_path, "1" * 16), RecordWriter(tmp_path, make()) as writer:
            writer.complete()
    finally:
        process.kill()
        process.communicate()
    assert {record.status for record in read_records(tmp_path)} == {"interrupted", "complete"}


# --- a run under way packs what is new --------------------------------------------------------------------------------


def test_values_of_a_run_under_way_are_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []
    own = record_file.pack_text

    def counted(text: str) -> bytes:
        packed.append(text)
        return own(text)

    monkeypatch.setattr(record_file, "pack_text", counted)
    values = {"hit": {f"t/{i}": Ratio(float(i % 2)) for i in range(50)}}
    with RecordWriter(tmp_path, make()) as writer:
        for stop in range(6):
            for task in ("t", "u\u00e9"):
                writer.measured(stop, task, numbers={}, values=values)
        tables = [text for text in packed if '"ids"' in text]
        assert len(tables) == 12
        writer.measured(3, "t", numbers={}, values={"hit": {"t/0": Ratio(5.0)}})  # measured anew: packed anew
        assert len([text for text in packed if '"ids"' in text]) == 13
        found = read_record(writer.path, values=True)
        assert found.values is not None and writer.record.values is not None
        assert {stop: dict(tasks) for stop, tasks in found.values.items()} == writer.record.values
        assert found.values[3]["t"]["hit"] == {"t/0": Ratio(5.0)}
        assert list(ties.untied(found)) == list(ties.untied(writer.record))
        content = values_path(writer.path).read_bytes()
        for damaged in (content[:-5], content + b"more", content[:40] + b"x" + content[41:]):
            values_path(writer.path).write_bytes(damaged)
            with pytest.raises(DataError, match="not whole"):
                read_record(writer.path, values=True)


def test_a_stream_behind_a_stream_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "UNPACKED_AT_MOST", 100_000_000)
    whole = files.pack_text("[") + files.pack_text("1]")
    assert files.unpack_json(whole) == [1]
    bomb = files.pack_text('["') + files.pack_text(" " * 60_000_000) + files.pack_text(" " * 60_000_000)
    with pytest.raises(ValueError, match="too large"):
        files.unpack_json(bomb)
