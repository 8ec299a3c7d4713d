"""Belief: questions made of any edit, answers after a thought, and what each counts as."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

import harness
from harness.editing.edit import Edit
from harness.errors import UsageError
from harness.exam import belief, tasks
from harness.exam.adapter import EditedLM
from harness.exam.asked import asked_of
from harness.exam.prompting import Prompting, require_room_to_think
from harness.exam.text_metrics import mentions
from harness.exam.thought import Thought, thought_through
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.runs.plan import Plan

MARKS = "\n</think>\n"


def built(lm: LM, records: list[str], edit_set: str = "counterfact", **given: Any) -> Any:
    suite = tasks.load_suite(
        ["belief"], edit_set=edit_set, records=records, data_dir="mini", tokenizer=lm.tokenizer, **given
    )
    (found,) = [task for task in suite.tasks if task.name == "belief"]
    return found.task


def doc(kind: str, **given: str) -> dict[str, Any]:
    shared = {
        "case": "a",
        "edited": "Ada lives in",
        "target_new": "Rome",
        "target_old": "Oslo",
        "prompt": "Ada lives in",
    }
    return {"kind": kind, "lead": ["It rained.", "The cat slept on the wall."], **shared, **given}


@pytest.fixture(scope="module")
def mini() -> LM:
    return harness.load("mini")


@pytest.fixture(scope="module")
def task(mini: LM) -> Any:
    return built(mini, ["3", "1"])


# --- documents --------------------------------------------------------------------------------------------------------


def test_each_edit_is_asked_five_questions_in_the_order_of_the_records(task: Any) -> None:
    rows = list(task.eval_docs)
    assert [row["id"] for row in rows] == [
        f"{case}/{kind}" for case in ("3", "1") for kind in ("bare", "prefix", "thinking", "long", "negation")
    ]
    assert {row["case"] for row in rows} == {row["edit"] for row in rows} == {"1", "3"}
    negated = [row["prompt"] for row in rows if row["kind"] == "negation"]
    assert negated[1] == "It is not true that West Sisaria is found in"
    assert task.metrics == [*belief._METRICS, "long_believed"]


def test_a_prompt_that_begins_with_its_subject_keeps_its_capital() -> None:
    rows = [
        [one["prompt"] for one in belief._questions(edit, ["It rained."], "It is false that {}")][-1]
        for edit in (
            Edit("a", "{} lives in", "Ada", "Rome", "Oslo"),
            Edit("b", "The home of {} is", "Ada", "Rome", "x"),
        )
    ]
    assert rows == ["It is false that Ada lives in", "It is false that the home of Ada is"]


def test_an_old_answer_that_is_the_new_one_is_none() -> None:
    asked = list(belief._questions(Edit("a", "{} lives in", "Ada", "Rome", "rome"), ["It rained."], "Not so: {}"))
    assert {one["target_old"] for one in asked} == {""}
    assert "negation" not in {one["kind"] for one in asked}


def test_what_nobody_says_of_an_edit_is_missing(mini: LM, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"id": "x", "prompt": "{} lives in", "subject": "Ada", "target": "Rome"}) + "\n")
    found = built(mini, ["x"], "own", own_file=str(path))
    assert found.metrics == ["bare_exact_match", "prefix_exact_match", "thinking_exact_match", "long_believed"]
    assert "negation" not in {row["kind"] for row in found.eval_docs}


def test_answers_behind_a_negation_are_joined_as_those_of_the_edit(mini: LM, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    row = {"id": "x", "prompt": "{} lives in", "subject": "Ada", "target": "Rome", "target_old": "Oslo"}
    rated = []
    for join in ("\n", None):
        path.write_text(json.dumps(row if join is None else {**row, "join": join}) + "\n")
        found = built(mini, ["x"], "own", own_file=str(path))
        (negated,) = [one for one in found.eval_docs if one["kind"] == "negation"]
        assert ("join" in negated) == (join is not None)  # rows that say nothing of it keep their hash
        asked = found.construct_requests(negated, negated["prompt"], metadata=("belief", 0, 1))
        rated.append([one.args[1] for one in asked])
    assert rated == [["\nRome", "\nOslo"], [" Rome", " Oslo"]]


def test_a_prefix_is_whole_neutral_sentences_of_at_most_fifty_tokens(task: Any, mini: LM) -> None:
    for row in task.eval_docs:
        prefix = task._prefix(row["lead"])
        assert prefix.endswith(". ")
        assert 25 < len(mini.encode(prefix)) <= 50
        sentences = prefix.strip().split(". ")
        assert all(word.islower() for sentence in sentences for word in sentence.strip(".").split()[1:])
        assert not any(mentions(prefix, row[name]) for name in ("target_new", "target_old"))
    leads = {tuple(row["lead"]) for row in task.eval_docs}
    assert len(leads) == 2
    for data_dir in ("mini", "elsewhere"):
        neutral = belief._neutral(data_dir, Path(tasks.data.TASKS / "belief" / "belief.yaml"))
        assert len(set(neutral)) >= 20
        assert all(sentence.endswith(".") for sentence in neutral)


def test_requests(task: Any) -> None:
    (prefixed,) = task.construct_requests(doc("prefix"), "Ada lives in", metadata=("belief", 0, 1))
    assert prefixed.args[0] == "It rained. The cat slept on the wall. Ada lives in"
    (bare,) = task.construct_requests(doc("bare"), "Q: Ada lives in", metadata=("belief", 0, 1))
    assert bare.args[0] == "Q: Ada lives in"
    (thinking,) = task.construct_requests(doc("thinking"), "Ada lives in", metadata=("belief", 0, 1))
    assert (thinking.args[0], thinking.args[0].tokens) == ("Ada lives in\n<think>\n", 32)
    assert thinking.args[0].closes == f"{MARKS}Ada lives in"
    (long,) = task.construct_requests(doc("long"), "Ada lives in", metadata=("belief", 0, 1))
    assert long.args[1]["max_gen_toks"] == 64
    rated = task.construct_requests(doc("negation"), "It is not true that Ada lives in", metadata=("belief", 0, 1))
    assert [one.args[1] for one in rated] == [" Rome", " Oslo"]


def test_a_prefix_stands_in_the_turn_of_a_template_that_trims(task: Any) -> None:
    asked = doc("prefix", prompt="Ada lives in\n")
    (prefixed,) = task.construct_requests(asked, "<user>Ada lives in<assistant>", metadata=("belief", 0, 1))
    assert prefixed.args[0] == "<user>It rained. The cat slept on the wall. Ada lives in<assistant>"


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("bare", " Rome, of course", {"bare_exact_match": 1}),
        ("prefix", " in Rome", {"prefix_exact_match": 0}),
        ("long", " a house in rome. It is old.", {"long_believed": 1}),
        ("long", " Rome. Before that, Oslo.", {"long_believed": 0}),
        ("long", " Romeo's house", {"long_believed": 0}),
        ("thinking", f"was it Oslo? {MARKS}Ada lives in Rome.", {"thinking_exact_match": 1, "thinking_old": 1}),
        ("thinking", f"was it Rome? {MARKS}Ada lives in Oslo.", {"thinking_exact_match": 0, "thinking_old": 0}),
        ("thinking", "Rome", {"thinking_exact_match": 0, "thinking_old": 0}),
    ],
)
def test_what_an_answer_counts_as(task: Any, kind: str, text: str, wanted: dict[str, int]) -> None:
    found = task.process_results(doc(kind), [text])
    assert {name: ratio.num for name, ratio in found.items()} == wanted
    assert {ratio.cluster for ratio in found.values()} == {"a"}


def test_a_negation_is_understood_where_the_old_answer_is_the_likelier(task: Any) -> None:
    from harness.exam.token_tasks import Forced

    low, high = Forced(math.log(0.1), 1, 0), Forced(math.log(0.6), 1, 1)
    assert task.process_results(doc("negation"), [low, high])["negation_success"].num == 1
    assert task.process_results(doc("negation"), [high, low])["negation_success"].num == 0


# --- thoughts ---------------------------------------------------------------------------------------------------------


def instance(context: str, place: int = 0) -> Instance:
    return Instance("generate_until", {}, (context, {"until": [], "max_gen_toks": 5}), place, metadata=("t", place, 1))


def test_a_thought_is_written_closed_and_answered() -> None:
    asked: list[list[tuple[str, Any]]] = []

    def write(requests: list[Instance]) -> list[str]:
        asked.append([(one.args[0], one.args[1]["max_gen_toks"]) for one in requests])
        assert not any(isinstance(one.args[0], Thought) for one in requests)
        return [f"<{len(one.args[0])}></think> rest" for one in requests]

    thought = Thought.of("Q<think>", tokens=9, closes="</think>\nA:")
    found = thought_through([instance("plain"), instance(thought, 1)], write)
    assert asked == [[("plain", 5), ("Q<think>", 9)], [("Q<think><8></think>\nA:", 5)]]
    assert found == ["<5></think> rest", "<8></think>\nA:<22></think> rest"]


def test_our_adapter_thinks_as_it_writes(mini: LM) -> None:
    """The chain is what it writes after the mark, and the answer what it writes after the chain."""
    model, question = EditedLM(mini), "West Sisaria is found in"
    thought = Thought.of(f"{question}\n<think>\n", tokens=6, closes=f"{MARKS}{question}")
    with model.holding(Patch()):
        (found,) = model.generate_until([instance(thought)])
        chain, closed, answer = found.partition(thought.closes)
        (alone,) = model.generate_until(
            [Instance("generate_until", {}, (str(thought), {"until": [], "max_gen_toks": 6}), 0, metadata=("t", 0, 1))]
        )
        assert closed
        assert chain == alone
        assert answer == model.generate_until([instance(f"{thought}{chain}{closed}")])[0]


def written(model: EditedLM, context: str, tokens: int) -> str:
    """What a model writes after a text."""
    options = {"until": [], "max_gen_toks": tokens}
    asked = Instance("generate_until", {}, (context, options), 0, metadata=("t", 0, 1))
    return str(model.generate_until([asked])[0])


def test_a_budget_of_the_plan_is_the_length_of_the_thought(mini: LM) -> None:
    plain, model = EditedLM(mini), EditedLM(mini, prompting=Prompting(thinking_budget=3))
    question = "West Sisaria is found in"
    thought = Thought.of(f"{question}\n<think>\n", tokens=6, closes=f"{MARKS}{question}")
    with plain.holding(Patch()):
        chain = written(plain, str(thought), 3)
    with model.holding(Patch()):
        (found,) = model.generate_until([instance(thought)])
    assert found.partition(thought.closes)[0] == chain != ""
    assert asked_of([instance(thought)], model).written == 3 + 5
    assert asked_of([instance(thought)], plain).written == 5 + 6


def test_a_thought_that_does_not_end_in_its_budget_is_ended_and_answered(mini: LM) -> None:
    """The answer is what the plain model writes behind the thought and the mark; the thought is no part of it."""
    end = "</think>"
    plain, model = EditedLM(mini), EditedLM(mini, prompting=Prompting(thinking_budget=4, think_end_token=end))
    question = "West Sisaria is found in"
    with plain.holding(Patch()):
        chain = written(plain, question, 4)
        answer = written(plain, f"{question}{chain}{end}", 5)
    with model.holding(Patch()):
        assert model.generate_until([instance(question)]) == [answer.lstrip()]
        assert model.think_end_token == end  # as it was
    assert chain not in answer
    assert asked_of([instance(question)], model).written == 4 + 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"thinking_budget": 0, "think_end_token": "x"}, "thinking_budget is 0, expected at least 1 token"),
        ({"thinking_budget": 9}, "thinking_budget is 9, and nothing is thought about; add --think-end-token"),
    ],
)
def test_a_budget_that_means_nothing_is_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Plan(**given)
    assert "\n" not in str(error.value)


def test_a_budget_beyond_the_context_is_told_before_anything_is_measured(mini: LM) -> None:
    said = f"--thinking-budget {mini.context}: mini takes {mini.context} tokens in all, the question and the answer"
    with pytest.raises(UsageError, match=said):
        harness.run("mini", "ft_m", "counterfact:1", ["belief"], thinking_budget=mini.context)
    require_room_to_think(Prompting(thinking_budget=mini.context - 1), mini.context)


def test_belief_needs_edits() -> None:
    with pytest.raises(
        UsageError, match="task 'belief' asks about edits, and nothing is edited; name a set with --edits"
    ):
        harness.run("mini", "none", "none", ["belief"])


def test_the_oracle_believes_what_tables_can_say(tmp_path: Path) -> None:
    record = harness.run(
        "mini", "oracle", "counterfact:3", ["belief"], exam="generation", mode="isolated", output=tmp_path
    )
    values = {name: one["value"] for name, one in record.points[-1]["tasks"]["belief"].items()}
    assert values == {
        **{"bare_exact_match": 1, "prefix_exact_match": 1, "negation_success": 0, "thinking_exact_match": 1},
        **{"thinking_old": 0, "long_believed": 1},
    }
    bare = harness.run("mini", "sabotage", "counterfact:3", ["belief"], exam="generation", mode="isolated")
    found = {name: one["value"] for name, one in bare.points[-1]["tasks"]["belief"].items()}
    assert (found["bare_exact_match"], found["prefix_exact_match"], found["negation_success"]) == (1, 0, 1)
