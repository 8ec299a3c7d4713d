"""What is kept of a document: its questions, right answers and replies, and what counts as a change."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from harness.exam.samples import Reply, Sample, SampleLine, pair_samples, rated_texts, samples_of
from harness.exam.statistics import Ratio
from harness.exam.token_tasks import Forced
from harness.io.schema import checked, parsed


def logged(arguments: list[tuple[Any, ...]], replies: list[Any], **more: Any) -> dict[str, Any]:
    """A document as lm-eval keeps it."""
    known = {"doc_id": 0, "doc": {}, "target": "", "arguments": arguments, "resps": [[one] for one in replies]}
    return {**known, "filter": "none", **more}


def one(*given: Any, **more: Any) -> Sample:
    """The only sample of a document."""
    (sample,) = samples_of("t", [logged(*given, **more)], values={})
    return sample


def test_a_text_with_its_target_and_what_the_document_contributes() -> None:
    document = logged([("The home of Ada is", {"until": []})], [" Rome."], target="Rome", doc_id=7)
    values = {"exact_match": {"t/7": Ratio(1.0)}, "share": {"t/7": Ratio(1.0, 4.0)}, "other": {"t/8": Ratio(1.0)}}
    (sample,) = samples_of("t", [document], values={**values, "none": {"t/7": Ratio(math.nan)}}, group="g")
    assert (sample.task, sample.group, sample.doc_id, sample.prompt) == ("t", "g", 7, "The home of Ada is")
    assert (sample.target, sample.answers, sample.choices) == ("Rome", (), ())
    assert sample.before == Reply(" Rome.", scores={"exact_match": 1.0, "share": 0.25, "none": None})


def test_choices_keep_their_likelihoods_and_the_target_is_the_right_one() -> None:
    sample = one([("Is it?", " yes"), ("Is it?", " no")], [(-0.5, True), (-2.25, False)], target=1)
    assert sample.choices == (" yes", " no") and sample.target == "no"
    assert sample.before == Reply(loglikelihoods=(-0.5, -2.25), greedy=(True, False), scores={})
    assert sample.before.likeliest == 0


def test_a_rating_by_tokens_is_greedy_where_every_token_is() -> None:
    ratings = [Forced(-3.0, tokens=2, hits=2), Forced(-1.0, tokens=3, hits=2)]
    assert one([("a", " b c"), ("a", " d")], ratings, target=0).before == Reply(
        loglikelihoods=(-3.0, -1.0), greedy=(True, False), scores={}
    )


def test_a_likelihood_that_is_no_number_is_none() -> None:
    sample = one([("a", " b"), ("a", " c")], [(math.nan, False), (-1.0, True)], target=0)
    assert sample.before is not None
    assert (sample.before.loglikelihoods, sample.before.likeliest) == ((None, -1.0), None)


def test_a_whole_text_is_rated_alone() -> None:
    sample = one([("A whole text.",)], [-12.5], target="A whole text.")
    assert sample.before == Reply(loglikelihoods=(-12.5,), scores={})


def test_each_prompt_of_a_document_is_a_question_with_its_own_answers() -> None:
    doc = {"kind": "hop", "case": "4", "answers": [["Rome", "Roma"], ["Oslo"]]}
    found = samples_of("t", [logged([("a", {}), ("b", {})], [" Rome", " Bonn"], doc=doc)], values={})
    assert [(s.question, s.prompt, s.target, s.answers) for s in found] == [
        (0, "a", "Rome", ("Rome", "Roma")), (1, "b", "Oslo", ()),
    ]  # fmt: skip
    assert {(s.kind, s.case) for s in found} == {("hop", "4")}


def test_neighbouring_questions_with_one_prompt_keep_their_own_answers() -> None:
    doc = {"kind": "hop", "case": "4", "answers": [["Rome"], ["Oslo"], ["Bonn"]]}
    texts = samples_of("t", [logged([("a", {}), ("a", {}), ("b", {})], ["x", "y", "z"], doc=doc)], values={})
    assert [(s.question, s.prompt, s.target, s.before and s.before.text) for s in texts] == [
        (0, "a", "Rome", "x"), (1, "a", "Oslo", "y"), (2, "b", "Bonn", "z"),
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["probability", "accuracy", "choice"])
def test_ratings_are_those_of_their_question_though_its_neighbour_has_the_same_prompt(protocol: str) -> None:
    answers = [["Rome", "Roma"], ["Oslo"]]
    doc = {"kind": "hop", "protocol": protocol, "prompts": ["a", "a"], "answers": answers, "rivals": ["Bern", "Kiel"]}
    doc["choices"] = [["Rome", "Bern"], ["Oslo", "Kiel", "Bern"]] if protocol == "choice" else [[], []]
    wanted = [tuple(f" {text}" for text in texts) for texts in rated_texts(doc)]
    pairs = [("a", text) for texts in wanted for text in texts]
    found = samples_of("t", [logged(pairs, [(-1.0, True)] * len(pairs), doc=doc)], values={})
    assert [(s.question, s.target, s.choices) for s in found] == [(0, "Rome", wanted[0]), (1, "Oslo", wanted[1])]


def test_the_right_answer_of_a_neighbour_is_the_true_one() -> None:
    doc = {"kind": "neighborhood", "target_new": "Paris", "target_true": "Oslo", "case": "1"}
    asked = [("a", " Paris"), ("a", " Oslo")]
    assert one(asked, [(-1.0, True), (-2.0, False)], doc=doc, target=0).target == "Oslo"
    assert one(asked, [(-1.0, True), (-2.0, False)], doc={**doc, "kind": "rewrite"}, target=0).target == "Paris"


def test_of_several_filters_the_first_is_kept_once() -> None:
    documents = [logged([("a", {})], ["x"], filter=name, doc_id=i) for name in ("strict", "loose") for i in (3, 5)]
    assert [sample.doc_id for sample in samples_of("t", documents, values={})] == [3, 5]


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (Reply(" Rome"), Reply(" Oslo"), True),
        (Reply(" Rome", scores={"em": 1.0}), Reply(" Rome", scores={"em": 0.0}), False),
        (Reply(None, (-1.0, -2.0), (False, False)), Reply(None, (-1.5, -1.6), (False, False)), False),
        (Reply(None, (-1.0, -2.0), (False, False)), Reply(None, (-2.0, -1.9), (False, False)), True),
        (Reply(None, (-1.0,), (True,)), Reply(None, (-1.1,), (False,)), True),
        (Reply(None, (-100.0,)), Reply(None, (-100.9,)), False),
        (Reply(None, (-100.0,)), Reply(None, (-102.0,)), True),
        (Reply(None, (-100.0,)), Reply(None, (None,)), True),
    ],
)
def test_what_is_a_change(before: Reply, after: Reply, changed: bool) -> None:
    assert Sample("t", 0, "a", "b", before=before, after=after).changed is changed
    assert not Sample("t", 0, "a", "b", before=before).changed


def test_replies_of_two_models_are_paired_by_question() -> None:
    base = [Sample("t", i, "a", "b", before=Reply(f" base {i}")) for i in range(3)]
    edited = [Sample("t", 2, "a", "b", before=Reply(" edited 2")), Sample("t", 9, "a", "b", before=Reply(" edited 9"))]
    paired = pair_samples(edited, base, at=10)
    assert [(s.doc_id, s.at, s.before, s.after) for s in paired] == [
        (2, 10, Reply(" base 2"), Reply(" edited 2")), (9, 10, None, Reply(" edited 9")),
    ]  # fmt: skip


def test_a_line_holds_the_sample_whole() -> None:
    before = Reply(None, (-1.0, None), (True, False), {"acc": 1.0, "none": None})
    whole = Sample("t", 1, "a\n\x1b[31m", "b", "g", "hop", "4", 2, ("b", "c"), (" b", " d"), 10, before, None)
    for sample in (whole, Sample("t", 0, "", "", before=Reply(""), after=Reply(" x"))):
        line = json.dumps(sample.to_json())
        checked(SampleLine, parsed(line))
        assert Sample.from_json(json.loads(line)) == sample
    assert list(whole.to_json())[:6] == ["task", "doc_id", "kind", "at", "prompt", "target"]
