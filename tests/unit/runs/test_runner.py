"""A run from a plan to a record: complete, repeatable, interrupted, failed, refused."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from transformers import AutoModelForCausalLM

from harness.errors import HarnessError, ModelError, RestoreError, UsageError
from harness.exam import measure, statistics, tasks, weight_change
from harness.models import lm as loading
from harness.reports.terminal_tables import record_table
from harness.runs import runner
from harness.runs.clock import Clock
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.prepare import prepare_run
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

ROWS = [
    {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"},
    {"prompt": "The home of {} is", "subject": "Hugo Lantern", "target": "Paris", "target_old": "Oslo"},
    {"prompt": "{} has never seen", "subject": "Iris Calder", "target": "Vienna", "target_old": "Rome"},
]

BREAKS = '''
from dataclasses import dataclass
import torch
from harness.patches.delta import Dense
from harness.editing.editor import Editor
from harness.patches.patch import Patch

@dataclass(frozen=True)
class Breaks(Editor):
    """Writes into the model for good."""
    name = "breaks"
    weight: str = "named"

    def edit(self, lm, edits, memory=None):
        matrix = lm.matrix(lm.down(0))
        with torch.no_grad():
            (lm.parameter(lm.down(0)) if self.weight == "named" else lm.parameter("transformer.ln_f.bias")).add_(1.0)
        return Patch({lm.down(0): Dense(torch.ones_like(matrix))})
'''
FAILS = '''
from dataclasses import dataclass
from harness.editing.editor import Editor

@dataclass(frozen=True)
class Fails(Editor):
    """Cannot."""
    name = "fails"

    def edit(self, lm, edits, memory=None):
        raise ArithmeticError("no solution\\nfor these edits")
'''


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of three edits."""
    path = tmp_path_factory.mktemp("rows") / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture(scope="module")
def plan(checkpoint: Callable[..., Path], nudge: str, rows: str) -> Plan:
    """Three random edits in one batch, examined on themselves and on four documents of NLI."""
    settings = {"scale": 6.0}
    return Plan(str(checkpoint("gpt2")), nudge, settings, rows, mode="batch", tasks=("NLI",), limit=4, seed=3)


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """The folder of a run, and the record that it returned."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_plan(resolve(plan), options(folder))


def options(folder: Path, **changes: Any) -> RunOptions:
    """On the CPU, eight rows a pass."""
    return RunOptions(folder, device="cpu", rows=8, **changes)


def written(folder: Path) -> Record:
    """The one record in a folder, with its values."""
    (path,) = folder.glob("*.json")
    return read_record(path, values=True)


def editor_file(folder: Path, code: str) -> str:
    """An editor of one's own."""
    path = folder / "editor.py"
    path.write_text(code)
    return str(path)


# --- a complete run ---------------------------------------------------------------------------------------------------


def test_the_record_is_complete(done: tuple[Path, Record], plan: Plan, rows: str) -> None:
    folder, kept = done
    assert {path.name.removeprefix(record_name(kept)) for path in folder.iterdir()} == {".json", ".values.json.xz"}
    assert written(folder).to_json() == kept.to_json()
    assert (kept.status, kept.reason) == ("complete", None)
    assert Plan.from_json(kept.plan) == replace(plan, num_edits=3)
    assert kept.id == Plan.from_json(kept.plan).id
    assert kept.headlines == {"own": "efficacy_accuracy", "NLI": "accuracy"}
    assert (kept.edits["count"], kept.edits["ids"], kept.edits["dataset"]) == (3, ["1", "2", "3"], "my.jsonl")
    assert kept.editor["name"] == "nudge"
    assert kept.editor["hyperparameters"] == {"scale": 6.0, "layer": 1, "form": "low", "seed": 3}  # the plan's seed
    assert kept.data["own"]["sha256"] == hashlib.sha256(Path(rows).read_bytes()).hexdigest()
    assert kept.data["NLI"]["rows"] == 150
    assert {name: len(str(digest)) for name, digest in kept.templates.items()} == {
        "own_probability": 64, "own_generation": 64, "NLI": 64,
    }  # fmt: skip
    assert {"python", "torch", "transformers", "lm_eval", "harness"} <= set(kept.versions)
    assert max(path.stat().st_size for path in folder.iterdir()) < 100_000


def test_a_task_that_reads_the_rows_of_another_says_so(plan: Plan, tmp_path: Path) -> None:
    kept = run_plan(resolve(replace(plan, editor="none", settings={}, tasks=("NLI", "NLI_choice"))), options(tmp_path))
    assert kept.data["NLI_choice"] == kept.data["NLI"]
    assert kept.data["NLI_choice"]["path"] == "NLI/mini.jsonl"
    assert kept.headlines["NLI_choice"] == "acc"
    assert {metric: numbers["n"] for metric, numbers in kept.tasks(0)["NLI_choice"].items()} == {
        "acc": 4,
        "acc_norm": 4,
    }


def test_every_number_has_what_a_reader_needs(done: tuple[Path, Record]) -> None:
    _, kept = done
    assert [point["edits"] for point in kept.points] == [0, 3]
    for edits in (0, 3):
        assert list(kept.tasks(edits)) == ["own", "NLI"]
        assert kept.tasks(edits)["NLI"]["accuracy"]["n"] == 4
        assert kept.tasks(edits)["own"]["efficacy"]["n"] == 3
        for measures in kept.tasks(edits).values():
            for metric, numbers in measures.items():
                assert (numbers["value"] is None) <= bool(numbers["reason"]), metric
                assert (numbers["difference"] is None) == (edits == 0), metric
    moved = kept.tasks(3)["own"]["efficacy_probability"]["difference"]["value"]
    before, after = (kept.tasks(e)["own"]["efficacy_probability"]["value"] for e in (0, 3))
    assert moved == pytest.approx(after - before)
    assert moved != 0


def test_prompts_that_were_cut_are_counted(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.LM, "context", 90)
    lm = loading.load(plan.model, device="cpu")
    (nli,) = tasks.load_suite(["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer).tasks
    sizes = [len(lm.encode(nli.task.doc_to_text(row))) for row in list(nli.task.eval_docs)[:4]]
    room = 90 - nli.task.config.generation_kwargs["max_gen_toks"]
    kept = run_plan(resolve(plan), options(tmp_path, cache=False))
    assert 0 < sum(size > room for size in sizes) < 4
    assert [point.get("truncated") for point in kept.points] == [{"NLI": sum(size > room for size in sizes)}] * 2


def test_the_numbers_are_those_of_the_values_beside_the_record(done: tuple[Path, Record]) -> None:
    kept = written(done[0])
    assert kept.values is not None
    compared = 0
    for edits, by_task in kept.values.items():
        for name, by_metric in by_task.items():
            for metric, values in by_metric.items():
                shown = kept.tasks(edits)[name][metric]["value"]
                again = statistics.aggregate(list(values.values()))
                assert shown == (None if math.isnan(again) else pytest.approx(again, rel=1e-8))  # nine digits
                compared += 1
    assert compared == sum(len(measures) for point in kept.points for measures in point["tasks"].values())


def test_hashes_and_sizes_of_the_weights(done: tuple[Path, Record], checkpoint: Callable[..., Path]) -> None:
    _, kept = done
    name = "transformer.h.1.mlp.c_proj.weight"
    model = loading.load(str(checkpoint("gpt2")), device="cpu")
    assert kept.model["sha256"] == model.fingerprint()
    assert kept.weights["before"] == kept.weights["restored"] == model.hashes([name])
    assert set(kept.weights["edited"]) == {name}
    assert kept.weights["edited"] != kept.weights["before"]
    size = kept.delta[name]
    assert size["rank"] == 3
    assert size["spectral"] <= size["frobenius"] <= 3 * 6.0 + 1e-3
    assert size["relative_frobenius"] == pytest.approx(size["frobenius"] / float(model.matrix(name).norm()), rel=1e-5)


def test_every_phase_has_its_cost(done: tuple[Path, Record]) -> None:
    _, kept = done
    assert [row["phase"] for row in kept.cost] == ["load", "measure unedited", "edit", "measure after 3 edits", "check"]
    assert all(row["seconds"] >= 0 and row["peak_memory_mib"] > 10 for row in kept.cost)


def test_values_are_kept_from_run_to_run_and_the_record_says_so(
    checkpoint: Callable[..., Path], rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    settings = {"layers": [0, 1], "v_steps": 3, "cov_tokens": 2000, "lam": 10.0}
    plan = Plan(
        str(checkpoint("gpt2")),
        "memit",
        settings,
        rows,
        mode="sequential",
        edit_batch_size=2,
        eval_at="2,3",
        text="mini",
    )
    plain, first, second = (
        run_plan(resolve(plan), options(tmp_path / name, cache=cache))
        for name, cache in [("plain", False), ("first", True), ("second", True)]
    )
    counts = [next(row for row in done.cost if row["phase"] == "edit")["values"] for done in (plain, first, second)]
    assert [(count["found"], count["optimised"]) for count in counts] == [(0, 3), (0, 3), (3, 0)]
    assert counts[0]["seconds"] == counts[1]["seconds"] == 0 < counts[2]["seconds"]
    assert second.seconds == pytest.approx(sum(row["seconds"] for row in second.cost) + counts[2]["seconds"])
    assert plain.points == first.points == second.points and plain.weights == second.weights
    assert "3 of 3 values were kept" in _shown(second) and "were kept" not in _shown(first)
    pruned = run_plan(resolve(replace(plan, editor="memit+prune")), options(tmp_path / "pruned"))
    assert next(row for row in pruned.cost if row["phase"] == "edit")["values"]["found"] == 3


def _shown(record: Record) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(record_table(record))
    return console.export_text()


def test_the_same_plan_gives_the_same_numbers_bit_for_bit(
    done: tuple[Path, Record], plan: Plan, tmp_path: Path
) -> None:
    again = run_plan(resolve(plan), options(tmp_path, cache=False))
    assert again.id == done[1].id
    assert again.points == done[1].points
    assert written(tmp_path).values == written(done[0]).values
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in sorted(done[0].iterdir())]


def test_no_edit_measures_the_unedited_model_only(done: tuple[Path, Record], plan: Plan, tmp_path: Path) -> None:
    kept = run_plan(resolve(replace(plan, editor="none", settings={}, mode=None)), options(tmp_path))
    assert [point["edits"] for point in kept.points] == [0]
    assert (kept.weights, kept.delta, kept.edits["count"]) == ({"before": {}, "restored": {}}, {}, 0)
    assert kept.status == "complete"
    assert kept.tasks(0) == done[1].tasks(0)  # another seed of the bootstrap would show here


def test_sequential_edits_are_measured_where_asked(plan: Plan, tmp_path: Path) -> None:
    sequential = replace(plan, mode="sequential", edit_batch_size=2, eval_at="every:2", tasks=())
    kept = run_plan(resolve(sequential), options(tmp_path))
    assert [point["edits"] for point in kept.points] == [0, 2, 3]
    assert kept.delta["transformer.h.1.mlp.c_proj.weight"]["rank"] == 3
    assert [row["phase"] for row in kept.cost if "measure" in row["phase"]] == [
        "measure unedited", "measure after 2 edits", "measure after 3 edits",
    ]  # fmt: skip


def test_a_document_is_the_same_one_at_every_stop_and_in_every_order(plan: Plan, tmp_path: Path) -> None:
    orders, whose = set(), set()
    for seed in (0, 1, 2):
        drawn = replace(plan, mode="sequential", eval_at="1,final", tasks=(), order="random", seed=seed)
        kept = run_plan(resolve(drawn), options(tmp_path / str(seed)))
        orders.add(tuple(kept.edits["ids"]))
        values = kept.values
        assert values is not None
        for stop in (0, 1, 3):
            cases = {d: ratio.cluster for d, ratio in values[stop]["own"]["efficacy_probability"].items()}
            assert set(cases.values()) == set(kept.edits["ids"][: stop or 3])
            whose |= set(cases.items())
        (document,) = values[1]["own"]["efficacy_probability"]
        change = kept.tasks(1)["own"]["efficacy_probability"]["difference"]["value"]
        before, after = (values[stop]["own"]["efficacy_probability"][document].num for stop in (0, 1))
        assert change == pytest.approx(after - before)
    assert len(orders) > 1
    assert len(whose) == 3  # each document belongs to one edit


def test_the_latest_edits_are_those_of_the_edit_set_alone(plan: Plan, tmp_path: Path) -> None:
    """ZsRE names its records 0, 1, 2; one's own rows are named 1, 2, 3."""
    kept = run_plan(
        resolve(
            replace(plan, mode="sequential", eval_at="2", edit_batch_size=1, num_edits=2, tasks=("zsre",), limit=9)
        ),
        RunOptions(tmp_path, device="cpu", rows=7),  # what it leaves in the cache is no other test's
    )
    assert list(kept.point(2)["latest"]) == ["own"]


@pytest.mark.parametrize("device", [None, "cpu"])
def test_peak_memory_is_of_the_device_that_the_run_is_on(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's accelerator is one that cannot say; a run on the CPU is no concern of an accelerator."""

    def fails() -> int:
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.accelerator, name, fails if device is None else lambda: 0)
    clock = Clock(lambda *_: None, device)
    with clock.phase("load"):
        pass
    assert clock.cost[0]["peak_memory_mib"] > 10


def test_documents_of_an_edit_set_stand_in_the_order_of_its_rows(plan: Plan) -> None:
    drawn = replace(plan, edits="counterfact", num_edits=4, order="random", tasks=())
    ready = prepare_run(resolve(drawn), "cpu")
    rows = [edit.id for edit in tasks.read_edits("counterfact", data_dir="mini", split="test", count=4)]
    assert [edit.id for edit in ready.resolved.edits] != rows
    for task in ready.suite.tasks:
        assert list(dict.fromkeys(task.task.eval_docs["case"])) == rows


@pytest.mark.parametrize("form", ["low", "dense"])
def test_isolated_edits_are_each_measured_alone(plan: Plan, tmp_path: Path, form: str) -> None:
    settings = {**plan.settings, "form": form}
    run_plan(resolve(replace(plan, mode="isolated", settings=settings, tasks=())), options(tmp_path / "all"))
    run_plan(resolve(replace(plan, num_edits=1, settings=settings, tasks=())), options(tmp_path / "one"))
    together, alone = (written(tmp_path / folder).values for folder in ("all", "one"))
    assert together is not None
    assert alone is not None
    for metric, values in alone[1]["own"].items():
        for document, ratio in values.items():
            assert together[3]["own"][metric][document].num == pytest.approx(ratio.num, abs=1e-4), metric
    unedited = together[0]["own"]["efficacy_probability"]
    assert all(together[3]["own"]["efficacy_probability"][d].num != unedited[d].num for d in unedited)


def test_bfloat16_is_edited_and_restored(plan: Plan, tmp_path: Path) -> None:
    kept = run_plan(resolve(replace(plan, dtype="bfloat16", tasks=())), options(tmp_path))
    assert kept.model["dtype"] == "bfloat16"
    assert kept.weights["before"] == kept.weights["restored"] != kept.weights["edited"]
    (change,) = kept.points[-1]["weights"].values()
    assert kept.points[-1]["lost_in_rounding"] == pytest.approx(change["lost_in_rounding"])
    assert 0 < change["lost_in_rounding"] < 1
    assert "lost_in_rounding" not in kept.points[0]


def test_in_float32_no_rounding_is_told(done: tuple[Path, Record]) -> None:
    assert not any("lost_in_rounding" in point for point in done[1].points)
    assert all(change["lost_in_rounding"] is None for change in done[1].delta.values())


# --- the cache of the unedited model ----------------------------------------------------------------------------------


def test_the_unedited_model_is_measured_once_and_again_when_anything_changes(
    done: tuple[Path, Record],
    plan: Plan,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []
    measure_task = measure.measure_task

    def spy(model: Any, task: Any, *, limit: int | None) -> Any:
        measured.append(task.name)
        return measure_task(model, task, limit=limit)

    monkeypatch.setattr(measure, "measure_task", spy)
    base = replace(plan, editor="none", settings={}, mode=None)

    def scored(changed: Plan, folder: str, **how: Any) -> list[str]:
        measured.clear()
        run_plan(resolve(changed), options(tmp_path / folder, **how))
        return sorted(measured)

    own = ["own_generation", "own_probability"]
    assert scored(base, "same") == []
    assert scored(base, "asked", cache=False) == ["NLI", *own]
    assert scored(replace(base, limit=3), "limit") == ["NLI"]  # one's own edits are never cut
    assert scored(replace(base, num_edits=2), "records") == own
    assert scored(replace(base, model=str(checkpoint("gpt2", 1))), "weights") == ["NLI", *own]


# --- what goes wrong -----------------------------------------------


@pytest.mark.parametrize(
    ("weight", "named"),
    [("named", r": transformer\.h\.0\.mlp\.c_proj\.weight is not"), ("other", r": transformer\.ln_f\.bias is not")],
)
def test_weights_that_are_not_restored_fail_the_run(plan: Plan, tmp_path: Path, weight: str, named: str) -> None:
    broken = replace(plan, editor=editor_file(tmp_path, BREAKS), settings={"weight": weight}, tasks=())
    with pytest.raises(RestoreError, match=named):
        run_plan(resolve(broken), options(tmp_path / "out"))
    kept = written(tmp_path / "out")
    assert kept.status == "failed"
    assert str(kept.reason).startswith("RestoreError: ")
    assert (kept.weights["before"] == kept.weights["restored"]) == (weight == "other")
    assert [path.name for path in (tmp_path / "out").glob("*.json") if ".partial." not in path.name] == []


def test_an_editor_that_fails_leaves_what_was_measured(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError):
        run_plan(resolve(replace(plan, editor=editor_file(tmp_path, FAILS), settings={})), options(tmp_path / "out"))
    kept = written(tmp_path / "out")
    assert (kept.status, kept.reason) == ("failed", "ArithmeticError: no solution for these edits")
    assert [point["edits"] for point in kept.points] == [0]


@pytest.mark.parametrize("mode", ["batch", "isolated"])
@pytest.mark.parametrize("form", ["low", "dense"])
def test_edits_that_change_nothing_are_an_error(plan: Plan, tmp_path: Path, mode: str, form: str) -> None:
    idle = replace(plan, mode=mode, settings={"scale": 0.0, "form": form}, tasks=())
    with pytest.raises(HarnessError, match="nudge: the edits changed nothing"):
        run_plan(resolve(idle), options(tmp_path))
    assert written(tmp_path).status == "failed"


def test_edits_lost_in_rounding_are_an_error(plan: Plan, tmp_path: Path) -> None:
    small = replace(plan, settings={"scale": 1e-9}, dtype="bfloat16", tasks=())
    with pytest.raises(HarnessError, match="nudge: the edits are too small for the weights' type; use --dtype float32"):
        run_plan(resolve(small), options(tmp_path))


def test_an_interruption_keeps_what_was_measured(done: tuple[Path, Record], plan: Plan, tmp_path: Path) -> None:
    def stop(phase: str, at: int, total: int) -> None:
        if phase == "NLI, after 3 edits":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(resolve(plan), options(tmp_path, report=stop))
    (path,) = tmp_path.glob("*.json")
    assert path.name.endswith(".partial.json")
    kept = written(tmp_path)
    assert (kept.status, kept.reason) == ("interrupted", "interrupted before the end")
    complete = done[1]
    assert kept.id == complete.id
    assert kept.tasks(0) == complete.tasks(0)
    assert kept.tasks(3) == {"own": complete.tasks(3)["own"]}
    assert kept.values is not None
    assert set(kept.values[3]) == {"own"}
    assert [row["phase"] for row in kept.cost] == ["load", "measure unedited", "edit", "measure after 3 edits"]
    run_plan(resolve(plan), options(tmp_path))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [file.name for file in sorted(done[0].iterdir())]


def test_a_second_run_of_one_plan_is_told(plan: Plan, tmp_path: Path) -> None:
    resolved = resolve(plan)
    with FileLock(tmp_path / f".{resolved.id[:8]}.lock"), pytest.raises(UsageError, match="another run is writing the"):
        run_plan(resolved, options(tmp_path))
    assert list(tmp_path.glob("*.json")) == []


def test_a_folder_that_cannot_be_written_is_told_first(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(runner, "prepare_run", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(UsageError, match=r"file/out: cannot be written to \(.*\); choose another folder with --output"):
        run_plan(resolve(plan), options(tmp_path / "file" / "out"))


def test_a_nan_in_the_weights_is_told_by_name(plan: Plan, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("gpt2")
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken" / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ModelError, match=r"the weight 'transformer\.h\.1\.mlp\.c_fc\.weight' holds a NaN"):
        run_plan(resolve(replace(plan, model=str(tmp_path / "broken"))), options(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("device", ["nope", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there(plan: Plan, tmp_path: Path, device: str) -> None:
    with pytest.raises(
        UsageError, match=rf"device '{device}' cannot be used \(.*\); give cpu, cuda, mps or auto"
    ) as caught:
        run_plan(resolve(plan), RunOptions(tmp_path, device=device))
    assert "\n" not in str(caught.value)


def test_edits_that_contradict_each_other_are_warned_of(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({**ROWS[0], "target": target}) + "\n" for target in ("Rome", "Oslo")))
    ready = prepare_run(resolve(replace(plan, edits=str(path), tasks=())), "cpu")
    assert ready.warnings == ["edit 2 contradicts edit 1: 'Ada Velmont was born in' -> 'Oslo', not 'Rome'"]


def test_no_time_is_outside_of_the_phases(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describing the change counts as editing, hashing the model as loading."""
    describe, new_record = weight_change.describe, runner.new_record

    def slowly(given: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            time.sleep(0.4)
            return given(*arguments)

        return work

    monkeypatch.setattr(weight_change, "describe", slowly(describe))
    monkeypatch.setattr(runner, "new_record", slowly(new_record))
    record = run_plan(resolve(plan), options(tmp_path))
    spent = {row["phase"]: row["seconds"] for row in record.cost}
    assert spent["edit"] >= 0.4
    assert spent["load"] >= 0.4
