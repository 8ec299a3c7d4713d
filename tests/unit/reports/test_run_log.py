"""What is logged of a record, and what the programs themselves read back: offline, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from synthetic import record, write

from harness.errors import UsageError
from harness.reports import run_log
from harness.reports.run_log import find_logger, logged_config, logged_cost, logged_files, logged_numbers, logger_names
from harness.runs.record import Record


def needs(package: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{package} is not installed: pip install 'lm-edit-harness[{package}]'")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Record, Path]:
    """A record of three stops on disk, one metric of which has no value at the last."""
    one = record("rome", 0.6, tasks=("NLI", "NER"), documents=20, counts=(0, 10, 50))
    one.collapse = {"norm": 10}
    one.points[2]["tasks"]["NER"]["f1"].update(value=None, n=0, interval=None, reason="nothing was said")
    one.points[2]["tasks"]["NER"]["f1"]["difference"].update(value=None, interval=None, p=None)
    return one, write(tmp_path / "runs", one)


@pytest.fixture
def plain_environment() -> Iterator[None]:
    """None of the variables that say where runs are logged; they are as before afterwards."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            del os.environ[name]
        yield


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_numbers_have_the_names_of_lm_eval_and_steps_of_edits(made: tuple[Record, Path]) -> None:
    found = logged_numbers(made[0])
    assert list(found) == [0, 10, 50]
    numbers = made[0].tasks(10)["NLI"]["accuracy"]
    assert found[10]["NLI/accuracy"] == numbers["value"]
    assert [found[10][f"NLI/accuracy_{end}"] for end in ("low", "high")] == numbers["interval"]
    assert found[10]["NLI/accuracy_difference"] == numbers["difference"]["value"]
    assert "NLI/accuracy_difference" not in found[0] and "NLI/accuracy_p" in found[50]


def test_what_is_missing_is_not_logged(made: tuple[Record, Path]) -> None:
    assert not [name for name in logged_numbers(made[0])[50] if name.startswith("NER/f1")]
    assert all(isinstance(number, float) for found in logged_numbers(made[0]).values() for number in found.values())
    bare = replace(made[0], cost=[{"phase": "edit", "seconds": 2.0, "peak_memory_mib": None}], collapse={})
    assert logged_cost(bare) == {"cost/edit_seconds": 2.0, "cost/seconds": 2.0}


def test_cost_and_tripwires_are_logged(made: tuple[Record, Path]) -> None:
    found = logged_cost(made[0])
    assert found["cost/seconds"] == made[0].seconds and found["collapse/norm_edits"] == 10
    assert found["cost/peak_memory_mib"] == 640.4
    assert logged_config(made[0])["plan"] == made[0].plan
    assert [path.name.partition(".")[2] for path in logged_files(made[1])] == ["json", "values.json.xz"]


def test_what_is_not_there_is_told() -> None:
    assert logger_names() == ["mlflow", "tensorboard", "wandb"]
    with pytest.raises(UsageError, match=r"--log-to wandbb: does not exist \(did you mean wandb\?\)"):
        find_logger("wandbb")


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb is not installed; pip install 'lm-edit-harness\[wandb\]'"):
        find_logger("wandb")


# --- what the programs read -------------------------------------------------------------------------------------------


@needs("tensorboard")
def test_tensorboard_reads_the_scalars(made: tuple[Record, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(find_logger("tensorboard").log(*made))
    find_logger("tensorboard").log(*made)  # once more is no more
    events = EventAccumulator(str(folder))
    events.Reload()
    known = logged_numbers(made[0])
    read = {one.step: one.value for one in events.Scalars("NLI/accuracy")}
    assert read == {edits: pytest.approx(numbers["NLI/accuracy"]) for edits, numbers in known.items()}
    assert [one.step for one in events.Scalars("NER/f1")] == [0, 10]
    assert json.loads((folder / made[1].name).read_text())["id"] == made[0].id


@needs("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mlflow_reads_the_run(made: tuple[Record, Path], plain_environment: None) -> None:
    import mlflow

    before = dict(os.environ)
    where = find_logger("mlflow").log(*made)
    assert {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_ALLOW")} == {
        key: value for key, value in before.items() if key.startswith("MLFLOW_ALLOW")
    }
    run_id, uri = where.removeprefix("run ").split(" of ")
    assert uri == (made[1].parent / "mlruns").as_uri()
    with mock.patch.dict(os.environ, {"MLFLOW_ALLOW_FILE_STORE": "true"}):
        client = mlflow.MlflowClient(uri)
        run = client.get_run(run_id)
        history = {one.step: one.value for one in client.get_metric_history(run_id, "NLI/accuracy")}
        files = {one.path for one in client.list_artifacts(run_id)}
    assert history == {edits: numbers["NLI/accuracy"] for edits, numbers in logged_numbers(made[0]).items()}
    assert run.data.tags["record"] == made[0].id and run.data.params["plan.editor"] == "rome"
    assert run.data.metrics["cost/seconds"] == made[0].seconds
    assert files == {path.name for path in logged_files(made[1])}


@needs("mlflow")
def test_what_mlflow_refuses_is_one_line(made: tuple[Record, Path], plain_environment: None) -> None:
    with (
        mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": "nonsense://x"}),
        pytest.raises(UsageError, match=r"mlflow: .*set MLFLOW_TRACKING_URI") as found,
    ):
        find_logger("mlflow").log(*made)
    assert "\n" not in str(found.value)


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file that wandb keeps offline: LevelDB's log format behind a head of seven bytes."""
    place, whole = 7, b""
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


BLOCK = 32768


@needs("wandb")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_wandb_keeps_the_run_offline(made: tuple[Record, Path], plain_environment: None) -> None:
    from wandb.proto.wandb_internal_pb2 import Record as Line

    os.environ["WANDB_MODE"] = "offline"
    find_logger("wandb").log(*made)
    [file] = made[1].parent.rglob(f"run-{made[0].id}.wandb")
    lines: list[Line] = []
    last = time.monotonic() + 20
    while not any(line.HasField("exit") for line in lines) and time.monotonic() < last:  # a service of its own writes
        lines = [Line.FromString(content) for content in log_records(file.read_bytes())]
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in line.history.item}
        for line in lines
        if line.HasField("history")
    ]
    known = logged_numbers(made[0])
    assert {row["edits"]: row["NLI/accuracy"] for row in rows} == {
        edits: pytest.approx(numbers["NLI/accuracy"]) for edits, numbers in known.items()
    }
    assert "NER/f1" not in next(row for row in rows if row["edits"] == 50)
    [run] = [line.run for line in lines if line.HasField("run")]
    assert (run.run_id, run.project) == (made[0].id, "lm-edit-harness")
    config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key}
    assert config["plan"]["editor"] == "rome"
