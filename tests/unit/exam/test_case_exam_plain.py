"""Exams of cases under plain lm-eval: a task by its name, a model of lm-eval's own, and not the harness's adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from harness.exam import data, measure, tasks
from harness.exam.adapter import EditedLM
from harness.models.lm import load, shipped
from harness.patches.patch import Patch

DOCUMENTS = 16


def plain(name: str, **metadata: Any) -> dict[str, float]:
    """The numbers of a task as ``lm_eval --model hf --tasks NAME --include_path tasks`` gives them."""
    metadata |= {"pretrained": str(shipped()["mini"])}  # the command hands its --model_args to every task
    manager = TaskManager(include_path=str(data.TASKS), include_defaults=False, metadata=metadata)
    found = simple_evaluate(
        "hf",
        model_args={"pretrained": str(shipped()["mini"]), "dtype": "float32"},
        tasks=[name],
        task_manager=manager,
        limit=DOCUMENTS,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        metadata=metadata,
    )
    results = found["results"][name]
    return {
        key.partition(",")[0]: value for key, value in results.items() if key.endswith(",none") and "_stderr" not in key
    }


def through_the_harness(task: tasks.Task) -> dict[str, tuple[float, int]]:
    """The numbers of a task, and of how many documents each is."""
    model = EditedLM(load("mini"))
    with model.holding(Patch()):
        found = measure.measure_task(model, task, limit=DOCUMENTS)
    table = measure.summarise_tasks([task], {task.name: found}, base=None, seed=0)
    return {metric: (numbers["value"], numbers["n"]) for metric, numbers in table.items()}


def same(task: tasks.Task, expected: dict[str, float]) -> None:
    """The harness gives these numbers, and no others where a document has one."""
    ours = {name: value for name, (value, n) in through_the_harness(task).items() if n}
    assert ours == pytest.approx({name: value for name, value in expected.items() if name in ours}, abs=1e-5)
    assert len(ours) >= 4


@pytest.mark.parametrize("name", ["peak", "mquake", "halluedit", "mzsre"])
def test_a_declarative_set_gives_the_same_numbers_in_lm_eval(name: str, small_index: None) -> None:
    (task,) = tasks.load_suite(
        [name], edit_set=None, records=None, data_dir="mini", tokenizer=load("mini").tokenizer
    ).tasks
    same(task, plain(name))


def test_probes_of_ones_own_give_the_same_numbers_in_lm_eval(tmp_path: Path, small_index: None) -> None:
    facts = [row["requested_rewrite"] for row in data.load("counterfact")[:3]]
    bare = [fact["prompt"].format(fact["subject"]) for fact in facts]
    rows = [
        {
            "id": f"c{i}",
            "edits": [{"prompt": fact["prompt"], "subject": fact["subject"], "target": fact["target_new"]["str"]}],
            "probes": [
                {"kind": "was", "prompt": bare[i], "answers": fact["target_true"]["str"],
                 "rival": fact["target_new"]["str"], "expect": "old",
                 "protocol": ["probability", "accuracy", "generation"]},
                {"kind": "pick", "prompt": bare[i], "answers": fact["target_true"]["str"],
                 "choices": [fact["target_true"]["str"], fact["target_new"]["str"], "Nobody"]},
            ],
        }
        for i, fact in enumerate(facts)
    ]  # fmt: skip
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    suite = tasks.load_suite(
        [], edit_set="own", records=["c0", "c1", "c2"], data_dir="mini", tokenizer=load("mini").tokenizer,
        own_file=str(file),
    )  # fmt: skip
    expected = plain("own_cases", file=str(file))
    assert set(expected) == {"was_success", "was_accuracy", "was_exact_match", "pick_choice"}
    assert expected["was_exact_match"] == 1.0  # the shipped model knows these facts
    same(next(task for task in suite.tasks if task.name == "own_cases"), expected)
