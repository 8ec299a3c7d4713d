"""Editors of the prompt: what is retrieved and what is not, how it is put in front, and what may not be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from editors import rag
from editors.ike import Demonstration, Demonstrations, Ike
from editors.prompt import AllFacts, Prompt
from editors.rag import Rag, Recall
from harness.editing.edit import Edit, Example, Probe
from harness.editing.registry import configure
from harness.errors import UsageError
from harness.methods.retrieval import Index, Sentences, as_fact, join_facts
from harness.models.lm import LM

ADA = Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo")
HUGO = Edit("b", "Everybody knows that {} plays the", "Hugo Lantern", "tuba", "violin")
PLAIN = Edit("c", "The colour of the sea is", None, "green")


def recall(lm: LM, *edits: Edit, **settings: Any) -> Recall:
    rule = Rag(**{"room": 8, **settings}).edit(lm, edits).prompt
    assert isinstance(rule, Recall)
    return rule


# --- retrieval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "named"),
    [
        ("Ada Velmont was born in", True),
        ("It rained all day. On stage one hears Ada Velmont's", True),
        ("the home of ADA VELMONT, that is", True),
        ("Greta Holm was born in", False),
        ("Ada Holm was born in", False),
        ("Adam Velmontes was born in", False),
        ("", False),
        ("?!", False),
    ],
)
def test_a_fact_is_used_only_where_its_subject_is_named(tiny: Callable[[str], LM], context: str, named: bool) -> None:
    rule = recall(tiny("gpt2"), ADA)
    assert rule(context) == (f"Ada Velmont was born in Rome. {context}" if named else context)


def test_a_neighbour_is_nearer_in_words_but_not_about_the_fact() -> None:
    """Why retrieval does not go by the cosine of sentences: in that a neighbour outdoes a paraphrase."""
    neighbour, paraphrase = (
        "Everybody knows that Greta Holm plays the",
        "The sun was low. On stage one hears Hugo Lantern",
    )
    near = [Sentences((as_fact(HUGO).sentence,)).cosines(text)[0] for text in (neighbour, paraphrase)]
    assert near[0] > near[1]
    index = Index((as_fact(HUGO),))
    assert index.named(paraphrase) == [1.0]
    assert index.named(neighbour)[0] < 0.1


def test_a_last_name_says_more_than_a_first_name_that_many_share() -> None:
    people = ["Ada Velmont", "Ada Marsh", "Ada Delgado", "Ada Wick"]
    index = Index(tuple(as_fact(replace(ADA, subject=who)) for who in people))
    assert index.named("One saw Marsh")[1] > index.named("One saw Ada")[1]
    assert index.ranked("Friends of Ada Marsh say")[0] == (1, 1.0)


def test_the_share_of_a_key_by_hand() -> None:
    """One key, so that all pieces weigh the same: of ``" bob "`` the context ``" bo "`` has only ``" bo"``.

    Pieces of three to five characters: " bo", "bob", "ob ", " bob", "bob ", " bob ".
    """
    index = Index((as_fact(Edit("a", "{} is", "Bob", "here")),))
    assert index.named("bo!") == [pytest.approx(1 / 6, abs=1e-9)]
    assert index.named("Bob.") == [1.0]


def test_a_name_without_letters_can_be_asked_for(tiny: Callable[[str], LM]) -> None:
    rule = recall(tiny("gpt2"), replace(ADA, subject="!!!"))
    assert rule("Fans love !!!").startswith("!!! was born in Rome.")
    assert rule("Fans love it") == "Fans love it"


def test_without_a_subject_the_prompt_is_the_key(tiny: Callable[[str], LM]) -> None:
    rule = recall(tiny("gpt2"), PLAIN, ADA)
    assert rule("The colour of the sea is") == "The colour of the sea is green. The colour of the sea is"
    assert rule("The colour of grass is") == "The colour of grass is"


def test_of_facts_about_one_subject_the_nearest_stands_next_to_the_context(tiny: Callable[[str], LM]) -> None:
    home = Edit("d", "The home of {} is in", "Ada Velmont", "Paris")
    work = Edit("e", "{} works as a", "Ada Velmont", "judge")
    context = "One says the home of Ada Velmont is in"
    rule = recall(tiny("gpt2"), ADA, home, work, HUGO)
    assert rule(context).endswith(f"The home of Ada Velmont is in Paris. {context}")
    assert rule(context).count("Ada Velmont") == 4
    assert "Hugo" not in rule(context)
    assert (
        recall(tiny("gpt2"), ADA, home, work, HUGO, k=1)(context) == f"The home of Ada Velmont is in Paris. {context}"
    )


def test_what_the_target_already_says_does_not_change_what_is_retrieved(tiny: Callable[[str], LM]) -> None:
    """A continuation is scored token by token: the rule of a longer prefix is the longer rule."""
    home = Edit("d", "The home of {} is in", "Ada Velmont", "Paris")
    rule = recall(tiny("gpt2"), ADA, home)
    for context in ("Ada Velmont was born in", "The home of Ada Velmont is in"):
        assert rule(f"{context} Ro") == rule(context) + " Ro"


# --- RAG --------------------------------------------------------------------------------------------------------------


def test_a_later_edit_of_the_same_prompt_replaces_the_earlier(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    first, later = recall(lm, ADA, HUGO), recall(lm, replace(ADA, id="z", target="Lisbon"))
    both = first.joined(later)
    assert [one.sentence for one in both.facts] == [as_fact(HUGO).sentence, "Ada Velmont was born in Lisbon."]
    assert both("Ada Velmont was born in") == "Ada Velmont was born in Lisbon. Ada Velmont was born in"
    assert first("Ada Velmont was born in") == "Ada Velmont was born in Rome. Ada Velmont was born in"
    assert join_facts((), [as_fact(ADA), as_fact(replace(ADA, target="Oslo"))]) == (
        as_fact(replace(ADA, target="Oslo")),
    )


def test_facts_that_do_not_fit_are_left_out_the_less_relevant_first(tiny: Callable[[str], LM]) -> None:
    """A fact is never cut in two: the model would read half of it."""
    lm = tiny("gpt2")
    context = "Ada Velmont was born in"
    needed = len(lm.encode(f"{as_fact(ADA).sentence} {context}"))
    assert recall(lm, ADA, room=lm.context - needed)(context) != context
    assert recall(lm, ADA, room=lm.context - needed + 1)(context) == context
    home = Edit("d", "The home of {} is in", "Ada Velmont", "Paris")
    assert recall(lm, ADA, home, room=lm.context - needed)(context) == f"{as_fact(ADA).sentence} {context}"


def test_braces_in_facts_and_contexts_are_text(tiny: Callable[[str], LM]) -> None:
    rule = recall(tiny("gpt2"), replace(ADA, target="{context} {0}"), template="Fact: {facts}\n{context}")
    assert rule("{facts} Ada Velmont") == "Fact: Ada Velmont was born in {context} {0}.\n{facts} Ada Velmont"


@pytest.mark.parametrize("template", ["{context}", "{facts}", "{context} {facts}", "{facts} {context} {context}"])
def test_a_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match=r"expected {facts} and, at the end, {context}"):
        configure(Rag, "x", {"template": template})


@pytest.mark.parametrize("before", ["", "The sun was low. "])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_how_much_likelier_a_question_is_after_a_fact(tiny: Callable[[str], LM], family: str, before: str) -> None:
    """By hand: the log-probability of its tokens behind the fact, less that without; others do not count."""
    lm = tiny(family)
    rule, context = recall(lm, ADA, HUGO, choose="model"), f"{before}The home of Ada Velmont is"

    def log_p(head: list[int], tail: list[int]) -> float:
        with torch.no_grad():
            rows = lm.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
        return float(sum(rows[len(head) + i - 1, token] for i, token in enumerate(tail)))

    def tokens(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    question = "The home of Ada Velmont is"
    alone = log_p([0, *tokens(before.rstrip())], tokens(f" {question}" if before else question))
    for i, edit in enumerate((ADA, HUGO)):
        told = tokens(f"{as_fact(edit).sentence} {before}".rstrip())
        assert rule.gains([i], context)[0] == pytest.approx(log_p([0, *told], tokens(f" {question}")) - alone, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Ada lives in", "Ada lives in"),
        ("It rained. Ada lives in", "Ada lives in"),
        ("It rained? Yes!\n\nWhere does Ada live?", "Where does Ada live?"),
        ("Ada, aged 3.5, lives in ", "Ada, aged 3.5, lives in "),
    ],
)
def test_the_last_sentence_asks(text: str, last: str) -> None:
    assert text[rag._last_sentence(text) :] == last


@pytest.mark.parametrize(
    ("gains", "used"), [([1.0, 2.0], [1]), ([3.0, 2.0], [0]), ([-1.0, -2.0], []), ([0.0, 0.0], [])]
)
def test_the_model_chooses_one_fact_or_none(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch, gains: list[float], used: list[int]
) -> None:
    rule = recall(tiny("gpt2"), ADA, replace(ADA, id="z", prompt="The home of {} is"), choose="model")
    given = dict(enumerate(gains))
    monkeypatch.setattr(Recall, "gains", lambda _self, proposed, _context: [given[i] for i in proposed])
    assert rule.chosen("Ada Velmont lives in") == used
    assert rule.chosen("Greta Holm lives in") == []


def test_a_restored_rule_answers_as_before(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    rule = recall(lm, ADA, HUGO, k=2, threshold=0.5, template="{facts}\n{context}")
    again = Recall.restore(lm, rule.settings(), rule.tensors())
    for context in ("Ada Velmont was born in", "Greta Holm", "Hugo Lantern and Ada Velmont"):
        assert again(context) == rule(context)


# --- all facts --------------------------------------------------------------------------------------------------------


def all_facts(lm: LM, *edits: Edit, **settings: Any) -> AllFacts:
    rule = Prompt(**{"room": 8, **settings}).edit(lm, edits).prompt
    assert isinstance(rule, AllFacts)
    return rule


def people(count: int) -> list[Edit]:
    return [replace(ADA, id=str(i), subject=f"Person{i} Last{i}") for i in range(count)]


@pytest.mark.parametrize("context", ["Ada Velmont was born in", "Nobody is named here"])
def test_every_question_is_told_all_facts_in_their_order(tiny: Callable[[str], LM], context: str) -> None:
    rule = all_facts(tiny("gpt2"), ADA, PLAIN, HUGO, template="New: {facts}\n{context}")
    told = " ".join(as_fact(edit).sentence for edit in (ADA, PLAIN, HUGO))
    assert rule(context) == f"New: {told}\n{context}"
    assert rule("  ") == "  "
    later = all_facts(tiny("gpt2"), replace(ADA, id="z", target="Lisbon"), template="New: {facts}\n{context}")
    assert [one.sentence for one in rule.joined(later).facts][-1] == "Ada Velmont was born in Lisbon."
    again = AllFacts.restore(rule.lm, rule.settings(), rule.tensors())
    assert again(context) == rule(context)


@pytest.mark.parametrize("room", [1, 20, 50])
def test_the_latest_facts_are_told_as_many_as_fit(
    tiny: Callable[[str], LM], caplog: pytest.LogCaptureFixture, room: int
) -> None:
    """Against trying every number of facts."""
    lm = tiny("gpt2")
    edits, context = people(60), "Ada Velmont was born in"
    sentences = [as_fact(edit).sentence for edit in edits]

    def told(count: int) -> str:
        return " ".join([*sentences[len(sentences) - count :], context])

    most = max(n for n in range(60) if len(lm.encode(told(n))) + room <= lm.context)
    assert 1 <= most < 60
    rule = all_facts(lm, *edits, room=room)
    assert rule(context) == told(most)
    assert rule("Who is born in") != rule(context)
    (said,) = [one.getMessage() for one in caplog.records if one.name == "editors.prompt"]
    assert said == (
        f"prompt: {most} of 60 edits, the latest, fit in front of a question ({lm.name} takes {lm.context} tokens, "
        f"{room} are kept free)"
    )


def test_nothing_is_said_where_all_facts_fit(tiny: Callable[[str], LM], caplog: pytest.LogCaptureFixture) -> None:
    rule = all_facts(tiny("gpt2"), ADA, HUGO)
    assert rule("Where?").startswith("Ada Velmont")
    assert caplog.messages == []


def test_a_template_of_prompt_that_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match=r"prompt: 'template' is 'x', expected {facts} and, at the end, {context}"):
        configure(Prompt, "x", {"template": "x"})


# --- IKE --------------------------------------------------------------------------------------------------------------


def corpus(count: int = 40) -> list[Example]:
    """Facts of other people, each with two paraphrases and two neighbours; every fifth also names Ada Velmont."""
    made = []
    for i in range(count):
        edit = Edit(str(i), "{} was born in", f"Person{i} Last{i}", f"City{i}", f"Town{i}")
        near = ("Ada Velmont", "Someone Else") if i % 5 == 0 else (f"Near{i} Other{i}", "Someone Else")
        probes = [
            Probe(edit.id, "paraphrase", f"{how} {edit.subject} in", edit.target, "x") for how in ("Raised", "Fed")
        ]
        probes += [Probe(edit.id, "neighborhood", f"{who} was born in", edit.target, f"Town{i}") for who in near]
        made.append(Example(edit, tuple(probes)))
    return made


def wide(lm: LM, monkeypatch: pytest.MonkeyPatch, context: int) -> LM:
    """The model as if it took another number of tokens."""
    monkeypatch.setattr(lm.model.config, "n_positions", context)
    return lm


def demonstrations(lm: LM, edit: Edit, seed: int = 0, k: int = 32) -> Demonstrations:
    rule = Ike(k=k, seed=seed).fit(lm, corpus()).edit(lm, [edit]).prompt
    assert isinstance(rule, Demonstrations)
    return rule


def test_the_new_fact_stands_last_and_the_demonstrations_before_it(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = demonstrations(wide(fresh("gpt2"), monkeypatch, 100_000), ADA, k=8)
    text = rule("Everybody asks where Ada Velmont was born:")
    blocks = text.split("\n\n")
    assert len(blocks) == 9
    assert blocks[-1] == "New Fact: Ada Velmont was born in Rome\nPrompt: Everybody asks where Ada Velmont was born:"
    assert blocks[:-1] == [made.text.removesuffix("\n\n") for made in rule.shown[0]]


def test_copy_update_and_retain_are_one_to_three_to_four(fresh: Callable[..., LM]) -> None:
    """k = 32: 4, 12 and 16; a copy asks the fact, an update paraphrases it, a retention keeps the old answer."""
    (shown,) = demonstrations(fresh("gpt2"), ADA).shown

    def kind(made: Demonstration) -> str:
        number = made.fact.split("Person")[1].split()[0]
        if made.question.startswith(("Raised", "Fed")):
            assert made.answer == f" City{number}"
            return "update"
        if made.question == made.fact.rpartition(" ")[0]:
            assert made.answer == f" City{number}"
            return "copy"
        assert made.answer == f" Town{number}"
        return "retain"

    counted = Counter(map(kind, shown))
    # Retentions that name the subject are passed over, and their places taken by the next facts.
    assert counted == {"copy": 4, "update": 12, "retain": 16}
    assert len({made.fact for made in shown}) == 32


@pytest.mark.parametrize("subject", ["Ada Velmont", "ada velmont", "Person7 Last7"])
def test_defect_244_no_demonstration_tells_of_what_is_edited(fresh: Callable[..., LM], subject: str) -> None:
    """Pitfalls 4.3: the released and the most used implementation both demonstrate the tested fact itself."""
    for seed in range(3):
        (shown,) = demonstrations(fresh("gpt2"), replace(ADA, subject=subject), seed).shown
        assert shown
        assert not any(subject.casefold() in made.text.casefold() for made in shown)
    everyone = [made for seed in range(3) for made in demonstrations(fresh("gpt2"), HUGO, seed).shown[0]]
    assert any("Ada Velmont" in made.text for made in everyone)  # the corpus does tell of her


def test_defect_244_no_demonstration_repeats_what_is_asked(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = demonstrations(wide(fresh("gpt2"), monkeypatch, 100_000), HUGO)
    asked = next(made.question for made in rule.shown[0] if made.question.startswith("Someone Else"))
    assert f"Prompt: {asked}" in rule("Greta Holm was born in")
    assert rule(asked).count(asked) == 1


def test_as_many_demonstrations_as_fit_and_never_a_part_of_the_fact(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = fresh("gpt2")
    rule, asked = demonstrations(lm, ADA), "Ada Velmont was born in"
    last = f"New Fact: Ada Velmont was born in Rome\nPrompt: {asked}"
    shown = rule.shown[0]
    for count in (0, 1, 3):
        whole = "".join(made.text for made in shown[len(shown) - count :]) + last
        wide(lm, monkeypatch, len(lm.encode(whole)) + rule.room)
        assert replace(rule)(asked) == whole
        wide(lm, monkeypatch, len(lm.encode(whole)) + rule.room - 1)
        assert replace(rule)(asked) == (asked if count == 0 else whole.removeprefix(shown[len(shown) - count].text))


def test_the_nearest_demonstrations_are_shown_last(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    rows = [
        Example(Edit(str(i), p, f"P{i}", "x", "y")) for i, p in enumerate(["{} plays the", "{} sold", "Walls by {}"])
    ]
    rule = Ike(k=3).fit(lm, rows).edit(lm, [HUGO]).prompt
    assert isinstance(rule, Demonstrations)
    assert rule.shown[0][-1].fact == "P0 plays the x"


def test_the_seed_orders_the_kinds(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    first, again, other = (demonstrations(lm, ADA, seed).shown for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_where_nothing_is_asked_nothing_is_told(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    assert demonstrations(lm, ADA)("") == recall(lm, ADA)("") == ""


def test_of_several_facts_the_one_that_is_named(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    method = Ike(k=2, room=8).fit(lm, corpus(4))
    first, later = method.edit(lm, [ADA]).prompt, method.edit(lm, [HUGO]).prompt
    assert isinstance(first, Demonstrations)
    assert isinstance(later, Demonstrations)
    both = first.joined(later)
    assert "New Fact: Ada Velmont was born in Rome\nPrompt: Ada Velmont" in both("Ada Velmont")
    assert "that Hugo Lantern plays the tuba\nPrompt: Hugo Lantern" in both("Hugo Lantern")
    renewed = both.joined(method.edit(lm, [replace(ADA, target="Lisbon")]).prompt)
    assert [one.sentence for one in renewed.facts] == [as_fact(HUGO).sentence, "Ada Velmont was born in Lisbon."]
    assert len(renewed.shown) == 2


def test_a_restored_rule_shows_the_same(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    rule = demonstrations(lm, ADA)
    again = Demonstrations.restore(lm, rule.settings(), rule.tensors())
    assert again.shown == rule.shown
    assert again("Ada Velmont was born in") == rule("Ada Velmont was born in")


def test_the_corpus_is_one_tensor_of_bytes_and_must_be_there(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    fitted = Ike().fit(lm, corpus(3))
    assert {name: tensor.dtype for name, tensor in fitted.knowledge(lm).items()} == {"corpus": torch.uint8}
    with pytest.raises(UsageError, match="ike must learn before its first edit"):
        Ike().edit(lm, [ADA])
    with pytest.raises(UsageError, match="no examples to demonstrate with"):
        Ike().fit(lm, [])
