"""The samples of a run, beside its record: complete, paired with the unedited model, whole after an interruption."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.exam import measure
from harness.exam.samples import Sample
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record, record_name
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.sample_file import chosen_samples, iterate_samples, samples_path

PEOPLE = ("Ada Velmont", "Hugo Lantern", "Iris Calder")


@pytest.fixture(scope="module")
def plan(checkpoint: Callable[..., Path], nudge: str, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three random edits, one after the other, measured after the first and the last."""
    path = tmp_path_factory.mktemp("rows") / "my.jsonl"
    rows = [{"prompt": "{} was born in", "subject": who, "target": "Rome", "target_old": "Oslo"} for who in PEOPLE]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"scale": 6.0}
    model = str(checkpoint("gpt2"))
    return Plan(
        model, nudge, settings, str(path), mode="sequential", eval_at="1,final", tasks=("NLI", "NLI_choice"), limit=4
    )


def run(plan: Plan, folder: Path, **changes: Any) -> tuple[Record, Path]:
    """A run that keeps samples, and the path of its record."""
    kept = run_plan(resolve(plan), RunOptions(folder, device="cpu", rows=8, **{"log_samples": True, **changes}))
    return kept, folder / f"{record_name(kept)}.json"


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    return run(plan, tmp_path_factory.mktemp("done"))


def contributed(record: Record, samples: Sequence[Sample], at: int, reply: str) -> dict[tuple[str, str], float]:
    """The mean of what samples say that documents contribute, by name of a task and metric."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for sample in samples:
        said = getattr(sample, reply)
        for metric, value in (said.scores or {}).items() if sample.at == at else ():
            if value is not None:
                found.setdefault((sample.group or sample.task, metric), {})[sample.doc_id] = value
    return {key: sum(values.values()) / len(values) for key, values in found.items()}


def test_samples_are_those_of_the_numbers(done: tuple[Record, Path]) -> None:
    record, path = done
    samples = list(iterate_samples(path))
    for at, count in ((1, 1), (3, 3)):
        found = contributed(record, samples, at, "after")
        assert {("NLI", "accuracy"), ("NLI_choice", "acc"), ("own", "generation_exact_match")} <= set(found)
        for (task, metric), value in found.items():
            assert value == pytest.approx(record.tasks(at)[task][metric]["value"], rel=1e-6), (task, metric)
        own = [sample for sample in samples if sample.group == "own" and sample.at == at]
        assert {sample.case for sample in own} == {str(i + 1) for i in range(count)}
        assert {sample.target for sample in own} == {"Rome"}
    before = contributed(record, samples, 3, "before")
    for (task, metric), value in before.items():
        assert value == pytest.approx(record.tasks(0)[task][metric]["value"], rel=1e-6), (task, metric)
    assert any(sample.changed for sample in samples) and not all(sample.changed for sample in samples)
    assert {sample.at for sample in samples} == {1, 3}


def test_samples_change_no_number_and_no_name(done: tuple[Record, Path], plan: Plan, tmp_path: Path) -> None:
    kept, path = run(plan, tmp_path, log_samples=False)
    assert (path.name, kept.points) == (done[1].name, done[0].points)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [path.name, f"{path.stem}.values.json.xz"]
    assert not list(done[1].parent.glob("*partial*"))


def test_the_unedited_replies_are_kept_with_its_cached_numbers(
    done: tuple[Record, Path], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    plainly = measure.measure_task

    def counted(model: Any, task: Any, **options: Any) -> measure.Measured:
        asked.append(task.name)
        return plainly(model, task, **options)

    monkeypatch.setattr(measure, "measure_task", counted)
    unsampled = run(plan, tmp_path / "first", log_samples=False)
    assert len(asked) % 2 == 0 and "NLI" in asked
    asked.clear()
    _, path = run(plan, tmp_path / "second")
    assert asked.count("NLI") == 2, "the unedited model is not asked again"
    assert list(iterate_samples(path)) == list(iterate_samples(done[1]))
    assert not samples_path(unsampled[1]).exists()


def test_without_edits_there_is_no_after(plan: Plan, tmp_path: Path) -> None:
    _, path = run(replace(plan, editor="none", settings={}, mode=None, eval_at="final"), tmp_path)
    samples = list(iterate_samples(path))
    assert {sample.at for sample in samples} == {0}
    assert all(sample.after is None and sample.before is not None for sample in samples)


def test_a_run_that_was_interrupted_ends_with_all_samples(
    done: tuple[Record, Path], plan: Plan, tmp_path: Path
) -> None:
    def stop(phase: str, at: int, total: int) -> None:
        if phase == "NLI, after 3 edits":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, report=stop)
    (path,) = tmp_path.glob("*.partial.json")
    assert {(sample.group or sample.task, sample.at) for sample in iterate_samples(path)} == {
        ("own", 1), ("NLI", 1), ("NLI_choice", 1), ("own", 3),
    }  # fmt: skip
    again = run(plan, tmp_path)[1]
    assert samples_path(again).read_bytes() == samples_path(done[1]).read_bytes()
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        file.name for file in sorted(done[1].parent.iterdir())
    ]


def test_what_a_stopped_run_did_not_keep_is_told(plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stop(phase: str, at: int, total: int) -> None:
        if phase == "NLI_choice, after 3 edits":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, report=stop, log_samples=False)
    _, path = run(plan, tmp_path)
    assert "the run that was stopped kept no samples of own after 1 edits, NLI after 1 edits" in caplog.text
    assert {(sample.task, sample.at) for sample in iterate_samples(path)} == {("NLI_choice", 3)}


def test_samples_of_an_earlier_run_do_not_stay_beside_a_new_record(plan: Plan, tmp_path: Path) -> None:
    _, path = run(plan, tmp_path)
    assert samples_path(path).is_file()
    run(plan, tmp_path, log_samples=False, fresh=True)
    assert not samples_path(path).exists()
    with pytest.raises(
        DataError, match=r"no samples lie beside it \(.*\); keep them with: harness run --fresh --log-s"
    ):
        list(iterate_samples(path))


def test_some_of_the_samples(done: tuple[Record, Path]) -> None:
    every = list(iterate_samples(done[1]))
    assert list(chosen_samples(done[1])) == every
    assert {one.task for one in chosen_samples(done[1], task="own")} == {"own_probability", "own_generation"}
    assert {one.task for one in chosen_samples(done[1], task="NLI")} == {"NLI"}
    assert {one.kind for one in chosen_samples(done[1], kind="rewrite")} == {"rewrite"}
    assert list(chosen_samples(done[1], changed=True, at=3)) == [one for one in every if one.changed and one.at == 3]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"task": "NLY"}, r"no sample has the task 'NLY' \(did you mean NLI"),
        ({"kind": "rewrites"}, r"no sample has the kind 'rewrites' \(did you mean rewrite"),
        ({"at": 2}, r"no sample has the number of edits '2' \(there are: 1, 3\)"),
    ],
)
def test_what_no_sample_has(done: tuple[Record, Path], asked: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        list(chosen_samples(done[1], **asked))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xfd7zXZ\x00half", "not whole"),
        (b"plain", "not whole"),
        (lzma.compress(b'{"task": "t"}\n'), r"line 1: not what a run writes \(doc_id: Field required"),
        (lzma.compress(b"[1, 2\n"), "line 1: not what a run writes"),
        (lzma.compress(b"{}\n")[:-9], "not whole|not what a run writes"),
    ],
)
def test_a_file_that_is_not_what_a_run_writes(
    done: tuple[Record, Path], tmp_path: Path, content: bytes, told: str
) -> None:
    path = samples_path(tmp_path / done[1].name)
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        list(iterate_samples(path))
