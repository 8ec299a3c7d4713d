"""SCR and MeLLo: what the model picks, how a question is taken apart, and what the memory says on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from editors import mello, scr
from editors.mello import Decomposed, Mello
from editors.scr import Picked, Scr
from harness.editing.edit import Edit
from harness.editing.registry import configure
from harness.errors import UsageError
from harness.exam.adapter import EditedLM
from harness.methods.retrieval import Fact, as_fact
from harness.methods.writing import written
from harness.models.lm import LM

ELLIE = Edit("a", "{} is a citizen of", "Ellie Kemper", "Croatia", "Canada")
HEAD = Edit("b", "The head of state of {} is", "Croatia", "Emma Watson", "Zoran")
HUGO = Edit("c", "Everybody knows that {} plays the", "Hugo Lantern", "tuba", "violin")
FACTS = [as_fact(edit) for edit in (ELLIE, HEAD, HUGO)]
QUESTION = "Who leads the country of Ellie Kemper?"


def wide(lm: LM, monkeypatch: pytest.MonkeyPatch, context: int = 100_000) -> LM:
    """The model as if it took another number of tokens."""
    monkeypatch.setattr(lm.model.config, "n_positions", context)
    return lm


@pytest.fixture
def lm(fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch) -> LM:
    return wide(fresh("gpt2"), monkeypatch)


class Writer:
    """Writes what it is given, turn by turn, and keeps what it has read."""

    def __init__(self, *turns: str) -> None:
        self.turns, self.most = list(turns), 0
        self.read: list[str] = []
        self.ends: tuple[str, ...] = ()

    def __call__(self, _lm: LM, text: str, *, tokens: int, ends: Sequence[str]) -> str:
        self.read.append(text)
        self.ends, self.most = tuple(ends), tokens
        return self.turns.pop(0)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_written_is_greedy_and_stops_before_what_ends_it(taught: Callable[[str], LM], family: str) -> None:
    """Against the likeliest token of pass after pass."""
    lm, text = taught(family), "The home of Elena Marsh"
    ids, start = lm.encode(text), len(lm.encode(text))
    while len(ids) < start + 8 and ids[start:][-1:] != [0]:
        with torch.no_grad():
            ids = [*ids, int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    whole = lm.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert written(lm, text, tokens=8, ends=()) == whole
    assert len(whole) > 6
    end = whole[4:6]
    assert written(lm, text, tokens=8, ends=("never", end)) == whole[: whole.index(end)]
    both = (end, whole[2:6])  # written with the same token; the one that begins first ends it
    assert written(lm, text, tokens=8, ends=both) == whole[: min(map(whole.index, both))]


# --- SCR --------------------------------------------------------------------------------------------------------------


def picked(lm: LM, *edits: Edit, **settings: Any) -> Picked:
    rule = Scr(**{"room": 8, **settings}).edit(lm, edits).prompt
    assert isinstance(rule, Picked)
    return rule


def test_the_model_is_asked_about_the_nearest_facts_and_told_the_one_that_it_writes(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(" The head of state of Croatia is Emma Watson.\nas said")
    monkeypatch.setattr(scr, "written", writer)
    rule = picked(lm, ELLIE, HUGO, HEAD, k=2, ask="Pick:\n{facts}\nQ: {context}\nPick:", tokens=7)
    asked = "Who is Ellie Kemper, and who is the head of state of Croatia?"
    assert rule(asked) == f"The head of state of Croatia is Emma Watson. {asked}"
    (read,) = writer.read
    assert sorted(read.splitlines()[1:3]) == sorted(FACTS[i].sentence for i in (0, 1))
    assert read.splitlines()[0] == "Pick:"
    assert read.endswith(f"\nQ: {asked}\nPick:")
    assert writer.most == 7
    assert rule(asked)  # not asked twice
    assert len(writer.read) == 1


@pytest.mark.parametrize(
    ("said", "which"),
    [
        ("Ellie Kemper is a citizen of Croatia.", 0),
        ("ellie kemper is a citizen of croatia", 0),
        ('I think "The head of state of Croatia is Emma Watson", as Ellie Kemper is a citizen of Croatia', 1),
        ("Ellie Kemper is a citizen of Croatian islands", None),
        ("Ellie Kemper is a citizen of Canada", None),
        ("no relevant fact.", None),
        ("", None),
    ],
)
def test_only_a_fact_of_the_list_that_is_written_whole_is_picked(said: str, which: int | None) -> None:
    assert scr._named_first(said, FACTS) == ([] if which is None else [FACTS[which]])


def test_of_two_facts_that_begin_alike_the_longer_one() -> None:
    short, long = Fact("p", "Ada is in Rome.", None), Fact("q", "Ada is in Rome and Paris.", None)
    assert scr._named_first("Ada is in Rome and Paris.", [short, long]) == [long]
    assert scr._named_first("Ada is in Rome.", [short, long]) == [short]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Something made up", "Something made up."),
        (" Canada is far away.\nNo more.", " Canada is far away.\nNo more."),
        ("The fact that best matches the question is: Rome is far. Or so", "Rome is far."),
        ('The fact that best matches the core knowledge in the question is "Rome is far", I hope', "Rome is far."),
        ("There is No Relevant Fact here", None),
        ("no relevant information", None),
        ("It is false that he lived there.", None),
        ("", ""),
    ],
)
def test_what_the_released_code_tells_is_whatever_was_written(said: str, told: str | None) -> None:
    """By `SummaryTool.summary` of ECNU-Text-Computing/Knowledge-Updating at 836ff52, on the same replies."""
    found = [one.sentence for one in scr._as_released(said, FACTS)]
    assert found == ([] if told is None else [told])
    assert scr._as_released(said, FACTS[:1]) == ([] if told is None else FACTS[:1])


def test_the_released_form_of_an_answer(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(" He made it up", "no relevant fact")
    monkeypatch.setattr(scr, "written", writer)
    form: dict[str, Any] = {"template": "Fact: {facts}\nQuestion: {context}", "cue": "\nAnswer:", "pick": "released"}
    rule = picked(lm, ELLIE, HEAD, **form)
    assert rule("Who?") == "Fact:  He made it up.\nQuestion: Who?\nAnswer:"
    assert writer.ends == ()
    assert rule("Where?") == "Where?"


def test_where_nothing_is_asked_or_nothing_fits_the_model_is_not_asked(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    monkeypatch.setattr(scr, "written", writer)
    rule = picked(lm, ELLIE, HEAD, tokens=5)
    assert rule(" ") == " "
    one = replace(rule, k=1)
    needed = len(lm.encode(one._asked(one.chosen(QUESTION), QUESTION))) + 5
    wide(lm, monkeypatch, needed)
    assert rule.chosen(QUESTION) == one.chosen(QUESTION)
    wide(lm, monkeypatch, needed - 1)
    assert rule(QUESTION) == QUESTION
    assert writer.read == []


def test_a_picked_fact_that_does_not_fit_beside_the_question_is_not_told(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = f"{FACTS[0].sentence} {QUESTION}"
    needed = len(lm.encode(whole))
    for room, told in ((50, whole), (51, QUESTION)):
        monkeypatch.setattr(scr, "written", Writer(FACTS[0].sentence))
        rule = picked(lm, ELLIE, ask="{facts} {context}", tokens=1, room=room)
        wide(lm, monkeypatch, needed + 50)
        assert rule(QUESTION) == told


@pytest.mark.parametrize("ask", ["{facts}", "{context}", "{facts} {facts} {context}"])
def test_an_instruction_that_cannot_work_is_refused(ask: str) -> None:
    with pytest.raises(UsageError, match=r"scr: 'ask' is .*, expected {facts} and {context}, once each"):
        configure(Scr, "x", {"ask": ask})


# --- MeLLo ------------------------------------------------------------------------------------------------------------


def decomposed(lm: LM, *edits: Edit, **settings: Any) -> Decomposed:
    rule = Mello(**{"room": 8, "shown": 0, **settings}).edit(lm, edits or (ELLIE, HEAD, HUGO)).prompt
    assert isinstance(rule, Decomposed)
    return rule


TURNS = (
    " Which country is Ellie Kemper from?\nGenerated answer: Ellie Kemper is from Canada.\n",
    "Retrieved fact contradicts generated answer, so the intermediate answer is: Croatia\n"
    "Subquestion: Who is the head of state of Croatia?\nGenerated answer: It is Zoran.\n",
    "Retrieved fact contradicts generated answer, so the intermediate answer is: Emma Watson\n"
    "Final answer: Emma Watson\n",
)


def test_a_question_is_taken_apart_and_each_answer_is_checked(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(*TURNS)
    monkeypatch.setattr(mello, "written", writer)
    assert decomposed(lm, tokens=11)(QUESTION) == (
        f"Question: {QUESTION}\n"
        "Subquestion: Which country is Ellie Kemper from?\n"
        "Generated answer: Ellie Kemper is from Canada.\n"
        "Retrieved fact: Ellie Kemper is a citizen of Croatia.\n"
        "Retrieved fact contradicts generated answer, so the intermediate answer is: Croatia\n"
        "Subquestion: Who is the head of state of Croatia?\n"
        "Generated answer: It is Zoran.\n"
        "Retrieved fact: The head of state of Croatia is Emma Watson.\n"
        "Retrieved fact contradicts generated answer, so the intermediate answer is: Emma Watson\n"
        "Final answer:"
    )
    assert writer.read[0] == f"Question: {QUESTION}\nSubquestion:"
    assert writer.read[1].endswith("Retrieved fact: Ellie Kemper is a citizen of Croatia.\n")
    assert writer.ends[0] == "Retrieved fact:"
    assert writer.most == 11
    assert writer.turns == []


def test_by_scope_a_fact_takes_the_place_of_the_answer_and_elsewhere_the_model_answers(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PokeMQA's order: the model writes no answer before it is known whether a fact is in scope."""
    writer = Writer(
        " Which country is Ellie Kemper from?\n",
        "So the intermediate answer is: Croatia\nSubquestion: What is the anthem of that country?\n",
        " It is the Lijepa.\nSo the intermediate answer is: Lijepa\nFinal answer: Lijepa",
    )
    monkeypatch.setattr(mello, "written", writer)
    assert decomposed(lm, check="scope")(QUESTION) == (
        f"Question: {QUESTION}\n"
        "Subquestion: Which country is Ellie Kemper from?\n"
        "Generated answer: Ellie Kemper is a citizen of Croatia.\n"
        "So the intermediate answer is: Croatia\n"
        "Subquestion: What is the anthem of that country?\n"
        "Generated answer: It is the Lijepa.\n"
        "So the intermediate answer is: Lijepa\n"
        "Final answer:"
    )
    assert writer.ends[0] == "Generated answer:"


@pytest.mark.parametrize(("hops", "read"), [(1, 2), (2, 3)])
def test_after_the_last_hop_only_the_final_answer_is_left(
    lm: LM, monkeypatch: pytest.MonkeyPatch, hops: int, read: int
) -> None:
    """What the model asked beyond is left out; the released code gives up there, and so may this one."""
    on = "Retrieved fact contradicts generated answer, so the intermediate answer is: Croatia\nSubquestion: And?\nG"
    for unfinished in ("ask", "leave"):
        writer = Writer(TURNS[0], on, on)
        monkeypatch.setattr(mello, "written", writer)
        found = decomposed(lm, hops=hops, unfinished=unfinished)(QUESTION)
        assert len(writer.read) == read
        if unfinished == "leave":
            assert found == QUESTION
        else:
            assert found.endswith("so the intermediate answer is: Croatia\nFinal answer:")
            assert found.count("Retrieved fact: ") == hops


@pytest.mark.parametrize(("asked", "answered"), [(1, True), (2, True), (3, True), (4, False)])
def test_the_released_loop_has_no_answer_to_four_subquestions(
    lm: LM, monkeypatch: pytest.MonkeyPatch, asked: int, answered: bool
) -> None:
    """As the loop of `run_mello.ipynb` (princeton-nlp/MQuAKE at fb43dad) did with the same replies.

    It looked up one subquestion a turn, in their order, in four turns at most.
    """
    found = [
        "Retrieved fact contradicts generated answer, so the intermediate answer is: a\n"
        f"Subquestion: s{i}?\nGenerated answer: g{i}.\n"
        for i in range(2, asked + 1)
    ]
    turns = [" s1?\nGenerated answer: g1.\n", *found, "so the intermediate answer is: z\nFinal answer: z"]
    looked_up: list[str] = []
    monkeypatch.setattr(Decomposed, "recalled", lambda _self, one: (looked_up.append(one), " f\n")[1])
    for hops, unfinished, works in ((3, "leave", answered), (4, "ask", True)):
        looked_up.clear()
        writer = Writer(*turns)
        monkeypatch.setattr(mello, "written", writer)
        read = decomposed(lm, hops=hops, unfinished=unfinished)(QUESTION)
        assert read.endswith("so the intermediate answer is: z\nFinal answer:") == works
        assert (read == QUESTION) == (not works)
        assert len(writer.read) == min(asked, hops) + 1
        assert looked_up == [f"s{i}?" for i in range(1, min(asked, hops) + 1)]


RELEASED: dict[str, Any] = {"loop": "released", "hops": 3, "unfinished": "leave", "tokens": 256}
FIRST = "\nSubquestion: Which country is Ellie Kemper from?\nGenerated answer: Canada.\n"
NEXT = (
    "\nRetrieved fact contradicts to generated answer, so the intermediate answer is: Croatia\n"
    "Subquestion: Who is the head of state of Croatia?\nGenerated answer: Zoran.\n"
)
LAST = "\nRetrieved fact contradicts to generated answer, so the intermediate answer is: Emma Watson\n"


def test_the_released_loop_reads_what_the_authors_loop_read(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of `run_mello.ipynb` (princeton-nlp/MQuAKE at fb43dad) on the same replies, without demonstrations.

    Nothing is begun for the model, no line is ended for it, and a fact is looked up without its full stop.
    """
    writer = Writer(FIRST, NEXT, f"{LAST}Final answer: Emma Watson")
    monkeypatch.setattr(mello, "written", writer)
    rule = decomposed(lm, **RELEASED)
    first = f"Qustion: {QUESTION}"
    second = f"{first}{FIRST}Retrieved fact: Ellie Kemper is a citizen of Croatia."
    third = f"{second}{NEXT}Retrieved fact: The head of state of Croatia is Emma Watson."
    assert rule(QUESTION) == f"{third}{LAST}Final answer:"
    assert writer.read == [first, second, third]
    assert (writer.ends, writer.most) == (("Retrieved fact:",), 256)
    assert [one.sentence for one in rule._index.facts] == [one.sentence.removesuffix(".") for one in FACTS]


@pytest.mark.parametrize(
    ("turns", "behind"),
    [
        ([FIRST, f"{LAST}Final answer: Emma Watson\n \n"], LAST),
        ([FIRST, "Final answer: Emma Watson"], ""),
        ([FIRST, f"{LAST}Final answer: "], None),
        ([FIRST, f"{LAST} Final answer: Emma Watson"], None),
        ([FIRST, f"{LAST}Final answer: Emma Watson\n\nQuestion: And who follows her?"], None),
        ([FIRST, "Subquestion: Who is the head of state of Croatia?\n"], None),
        ([FIRST, " Subquestion: Who is?\nSubquestion: Who is?\nGenerated: a\nb"], None),
        ([FIRST, f"{LAST}Subquestion:\nGenerated answer: x"], None),
        ([FIRST, ""], None),
        ([FIRST, NEXT, NEXT, NEXT], None),
    ],
)
def test_the_released_loop_knows_a_line_by_its_place_and_gives_up_where_another_stands_there(
    lm: LM, monkeypatch: pytest.MonkeyPatch, turns: list[str], behind: str | None
) -> None:
    """Answered or not as `run_mello.ipynb` did with the same replies; of four that ask on none is the answer."""
    writer = Writer(*turns, "never read")
    monkeypatch.setattr(mello, "written", writer)
    front = f"Qustion: {QUESTION}{FIRST}Retrieved fact: {FACTS[0].sentence}"
    found = decomposed(lm, **RELEASED)(QUESTION)
    assert found == (QUESTION if behind is None else f"{front}{behind}Final answer:")
    assert writer.turns == ["never read"]


def test_an_answer_behind_which_the_model_wrote_on_is_one_unless_the_loop_is_the_released_one(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = "Retrieved fact contradicts generated answer, so the intermediate answer is: x\nFinal answer: x\nQuestion: y"
    for loop, begun in (("plain", " s?\nGenerated answer: g\n"), ("released", FIRST)):
        monkeypatch.setattr(mello, "written", Writer(begun, on))
        found = decomposed(lm, loop=loop, unfinished="leave")(QUESTION)
        assert (found == QUESTION) == (loop == "released")


def test_of_a_form_that_is_left_in_the_released_loop_the_final_answer_can_be_asked_for(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mello, "written", Writer(FIRST, "I do not know"))
    found = decomposed(lm, **{**RELEASED, "unfinished": "ask"})(QUESTION)
    assert found == f"Qustion: {QUESTION}{FIRST}Retrieved fact: {FACTS[0].sentence}I do not know\nFinal answer:"


def test_the_released_loop_lets_the_model_judge() -> None:
    with pytest.raises(UsageError, match=r"mello: 'loop' is 'released', .* leave out check=scope or loop=released"):
        configure(Mello, "x", {"loop": "released", "check": "scope"})


def test_a_rule_that_was_saved_before_there_were_two_loops_is_of_the_plain_one(lm: LM) -> None:
    settings = decomposed(lm, loop="released").settings()
    assert Decomposed.restore(lm, settings, {}).settings() == settings
    del settings["loop"]
    assert Decomposed.restore(lm, settings, {}).settings()["loop"] == "plain"


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["\n\n"], ""),
        (["", "never"], ""),
        ([TURNS[0], "I do not know"], f"Subquestion:{TURNS[0]}Retrieved fact: {FACTS[0].sentence}\nI do not know\n"),
        ([" Who?\nFinal answer: x"], "Subquestion: Who?\n"),
    ],
)
def test_where_the_form_is_left_the_final_answer_is_asked_for(
    lm: LM, monkeypatch: pytest.MonkeyPatch, turns: list[str], kept: str
) -> None:
    monkeypatch.setattr(mello, "written", Writer(*turns))
    assert decomposed(lm)(QUESTION) == f"Question: {QUESTION}\n{kept}Final answer:"


def test_without_room_to_begin_or_a_question_nothing_is_worked_out(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(*TURNS)
    monkeypatch.setattr(mello, "written", writer)
    rule = decomposed(lm, tokens=20)
    assert rule("  ") == "  "
    wide(lm, monkeypatch, len(lm.encode(rule.opening(QUESTION))) + 19)
    assert rule(QUESTION) == QUESTION
    assert writer.read == []
    wide(lm, monkeypatch, len(lm.encode(rule.opening(QUESTION))) + 20)
    assert replace(rule)(QUESTION) == f"Question: {QUESTION}\nFinal answer:"  # no room for what is retrieved
    assert len(writer.read) == 1


@pytest.mark.parametrize("method", [Mello(room=8, shown=0), Scr(room=8)])
def test_a_likelihood_is_that_of_an_answer_behind_what_was_written_for_the_context_alone(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch, method: Mello | Scr
) -> None:
    """By hand: the answer's tokens behind the text that is read; what is scored has no part in what is written."""
    lm = fresh("llama")
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 1000)
    writer = Writer(*((TURNS[0], TURNS[2]) if isinstance(method, Mello) else (FACTS[1].sentence,)))
    for module in (scr, mello):
        monkeypatch.setattr(module, "written", writer)
    patch = method.edit(lm, [ELLIE, HEAD])
    assert patch.prompt is not None
    read = patch.prompt(QUESTION)
    head, adapter = lm.encode(read), EditedLM(lm)
    for answer in (" Emma Watson", " Croatia"):
        tail = lm.continuation(read, answer)
        with torch.no_grad():
            rows = lm.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
        by_hand = float(sum(rows[len(head) + i - 1, token] for i, token in enumerate(tail)))
        with adapter.holding(patch):
            ((scored, _),) = adapter.loglikelihood([Instance("loglikelihood", {}, (QUESTION, answer), 0)])
        assert scored == pytest.approx(by_hand, abs=1e-4)
    assert writer.turns == []
    assert not any("Croatia" in text.partition(QUESTION)[2] for text in writer.read[:1])


@pytest.mark.parametrize("check", ["model", "scope"])
def test_demonstrations_have_the_form_that_is_read_and_name_their_answer(lm: LM, check: Any) -> None:
    opening = decomposed(lm, shown=4, check=check).opening(QUESTION)
    blocks = opening.split("\n\n")
    assert len(blocks) == 5
    assert blocks[-1] == f"Question: {QUESTION}\nSubquestion:"
    for block in blocks[:-1]:
        first, *_, before, last = block.splitlines()
        assert first.startswith("Question: ")
        assert last == f"Final answer: {before.rpartition(': ')[2]}"
        assert block.count("\nSubquestion: ") == block.count("\nGenerated answer: ") == block.count("intermediate")
        assert block.count("\nRetrieved fact: ") == (block.count("intermediate") if check == "model" else 0)
    assert {"contradicts" in opening, "does not contradict" in opening} == {check == "model"}
    assert [block.count("\nSubquestion: ") for block in blocks[:-1]] == [3, 2, 3, 4]
    assert decomposed(lm, shown=1, check=check).opening(QUESTION) == f"{blocks[0]}\n\n{blocks[-1]}"
    assert Mello().shown == 3


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Subquestion: Who?\nGenerated answer: x\n", "Who?"),
        ("so the answer is: y\n Subquestion:  Where?", "Where?"),
        ("Subquestion: Who?\nSubquestion: Where?\n", "Where?"),
        ("Subquestion:\n", None),
        ("Who? Subquestion: Where?", None),
        ("", None),
    ],
)
def test_the_last_subquestion_is_looked_up(said: str, asked: str | None) -> None:
    assert mello._subquestion(said) == asked


@pytest.mark.parametrize("build", [picked, decomposed])
def test_a_restored_rule_reads_as_before_and_increments_join(
    lm: LM, monkeypatch: pytest.MonkeyPatch, build: Callable[..., Any]
) -> None:
    rule = build(lm, ELLIE, HEAD)
    again = type(rule).restore(lm, json.loads(json.dumps(rule.settings())), rule.tensors())
    both = again.joined(build(lm, replace(ELLIE, id="z", target="Peru")))
    assert [one.sentence for one in both.facts] == [FACTS[1].sentence, "Ellie Kemper is a citizen of Peru."]
    for module in (scr, mello):
        monkeypatch.setattr(module, "written", lambda *_a, **_k: f" {FACTS[0].sentence}\nFinal answer:")
    assert again(QUESTION) == rule(QUESTION) != QUESTION


@pytest.mark.parametrize("method", [Scr(room=8), Mello(room=8)])
def test_no_edits_change_nothing(lm: LM, method: Scr | Mello) -> None:
    assert method.edit(lm, []).empty
