"""The level of chance of a task: where it is said, what follows where it is not, and when a score lies at it."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask
from test_task_yaml import CHOICE, FREE, GENERAL, _config, _id

from harness.exam import chance, data
from harness.exam.quiet import quiet_lm_eval
from harness.exam.tasks import Task

CHOICES = {"ClosedDomainQA": 2, "dialogue": 4, "NLI": 2, "SentimentAnalysis": 2}


@pytest.mark.parametrize("path", GENERAL, ids=_id)
def test_each_general_task_says_the_chance_of_its_scores(path: Any) -> None:
    config = _config(path)
    said = config["metadata"]["chance"]
    assert list(said) == [metric["metric"] for metric in config["metric_list"] if metric["higher_is_better"]]
    assert config["metadata"]["headline"] in said
    choices = CHOICES.get(path.parent.name)
    assert set(said.values()) == {1 / choices if choices else 0.0}
    assert chance.named_levels(path.stem) == said
    assert path in FREE or len(config["doc_to_choice"]) == choices
    assert len(CHOICE) == len(CHOICES)


def test_a_name_without_a_yaml_of_ours_says_nothing() -> None:
    assert chance.named_levels("mmlu") == {}
    assert chance.named_levels("counterfact") == {}


def _task(rows: list[dict[str, Any]], **config: Any) -> Task:
    """A task of lm-eval's kind over some rows; no YAML of ours names it."""
    made = {"test": datasets.Dataset.from_list(rows)}
    base = {"task": "theirs", "custom_dataset": lambda **_: made, "test_split": "test", "num_fewshot": 0}
    with quiet_lm_eval():
        return Task("theirs", "theirs", ConfigurableTask(config=base | {"doc_to_text": "q", **config}), "")


def test_choices_are_counted_in_the_documents() -> None:
    rows = [{"choices": ["a", "b"]}, {"choices": ["a", "b", "c", "d"]}]
    task = _task(rows, output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target=0)
    assert chance.task_levels(task) == {"acc": 0.375, "acc_norm": 0.375}


def test_the_floor_of_free_text_and_of_a_last_word_is_zero() -> None:
    means = {"aggregation": "mean", "higher_is_better": True}
    written = _task([{"a": "x"}], output_type="generate_until", doc_to_target="{{a}}")
    assert chance.task_levels(written) == {"exact_match": 0.0}
    metrics = [{"metric": "acc", **means}, {"metric": "perplexity", "aggregation": "perplexity"}]
    last = _task([{"a": "x"}], output_type="loglikelihood", doc_to_target=" {{a}}", metric_list=metrics)
    assert chance.task_levels(last) == {"acc": 0.0}


def test_what_a_task_says_holds_and_scores_of_its_own_have_no_known_level() -> None:
    closed = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "doc_to_target": 0}
    said = _task([{"a": "x"}], **closed, metadata={"chance": {"acc": 0.7}})
    assert chance.task_levels(said) == {"acc": 0.7}
    own = _task([{"a": "x"}], **closed, process_results=lambda _doc, _results: {"acc": 1.0})
    assert chance.task_levels(own) == {}


@pytest.mark.parametrize(
    ("level", "value", "low", "marked"),
    [
        (0.25, 0.40, 0.26, False),  # above
        (0.25, 0.40, 0.25, True),  # the interval begins at chance
        (0.25, 0.30, 0.20, True),  # it contains chance
        (0.25, 0.10, 0.02, True),  # it lies below
        (0.0, 0.0, 0.0, True),  # the floor of free text
        (0.0, 0.05, 0.01, False),
        (0.5, 0.5, None, True),  # without an interval the value counts
        (0.5, 0.6, None, False),
        (0.5, None, None, False),  # no value is not zero
    ],
)
def test_at_chance(level: float, value: float | None, low: float | None, marked: bool) -> None:
    assert chance.at_chance(level, value, low) is marked


def test_the_level_of_chance_names_no_task() -> None:
    """It says how numbers are to be read: a record made before it was written down is of the same task."""
    from harness.exam.task_identity import definition

    path = data.TASKS / "general" / "NLI" / "NLI.yaml"
    said = _config(path)
    kept = {key: value for key, value in said["metadata"].items() if key != "chance"}
    assert definition(path) == said | {"metadata": kept}
