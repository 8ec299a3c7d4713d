"""REMEDI's hook finds the right mention, its examples are converted as published, and the best epoch is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import remedi
from editors.remedi import Additions, Remedi
from harness.editing.edit import Edit, Example, Probe
from harness.errors import DataError, NumericalError, UsageError
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

FAMILIES = ["gpt2", "llama", "opt"]
EDITS = [
    Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo"),
    Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", "Paris"),
    Edit("c", "Everybody knows {}", "Ada", "lives in Paris", "sleeps"),
]


def known(lm: LM, seed: int = 0) -> dict[str, Tensor]:
    """A map that was not learned."""
    width, draw = lm.matrix(lm.down(0)).shape[0], torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(width, width, generator=draw), torch.randn(width, generator=draw)
    return {"weight": weight, "bias": bias}


def hook_of(lm: LM, edits: Sequence[Edit], **settings: Any) -> Additions:
    (hook,) = Remedi(layer=1, learned=known(lm), **settings).edit(lm, edits).hooks.values()
    assert isinstance(hook, Additions)
    return hook


def step(lm: LM, texts: Sequence[str], new: int | None = None, left: int = 0) -> Step:
    """The step of a right-padded batch, or with ``left`` columns of padding in front of every row."""
    batch = lm.batch([lm.encode(text) for text in texts])
    ids, mask = (torch.cat([torch.zeros(len(texts), left, dtype=torch.long), t], 1) for t in (batch.ids, batch.mask))
    return Step(ids, mask, new or ids.shape[1])


def found(hook: Additions, at: Step) -> set[tuple[int, int, str]]:
    """Row, column and subject of the mentions that are edited."""
    names = list(dict.fromkeys(hook.subjects))
    return {(r, c, names[w]) for r, c, w in zip(*(t.tolist() for t in hook.mentions(at)), strict=True)}


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_edited_at_its_own_subjects_last_token(tiny: Callable[[str], LM], family: str, left: int) -> None:
    """At the start of a text and after a space; the longer of two subjects that end at one token; nobody else."""
    lm = tiny(family)
    texts = ["Ada Velmont lives in", "Nobody knows Ada Velmont", "The home of Hugo Lantern is", "Greta Holm has seen"]
    names = ["Ada Velmont", "Ada Velmont", "Hugo Lantern"]
    hook = hook_of(lm, EDITS[:2])
    expected = {(i, left + lm.span(texts[i], name)[1] - 1, name) for i, name in enumerate(names)}
    assert found(hook, step(lm, texts, left=left)) == expected


def test_of_two_subjects_that_end_together_the_longer_is_meant(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    edits = [Edit("a", "{} was born in", "Velmont", "Rome"), Edit("b", "{} was born in", "Ada Velmont", "Oslo")]
    for order in (edits, edits[::-1]):
        hook = hook_of(lm, order)
        assert {name for _, _, name in found(hook, step(lm, ["Ada Velmont lives in"]))} == {"Ada Velmont"}
        assert {name for _, _, name in found(hook, step(lm, ["Nobody Velmont lives in"]))} == {"Velmont"}


@pytest.mark.parametrize("mention", [1, 2, 3])
def test_the_mention_that_is_asked_for(tiny: Callable[[str], LM], mention: int) -> None:
    """With and without a space in front it is the same subject; a fourth mention would not be edited."""
    lm, text = tiny("gpt2"), "Ada Velmont and Ada Velmont and Ada Velmont"
    hook = hook_of(lm, EDITS[:1], mention=mention)
    starts = [i for i in range(len(text)) if text.startswith("Ada", i)]
    last = lm.span(text, "Ada Velmont", starts[mention - 1])[1] - 1
    assert found(hook, step(lm, [text])) == {(0, last, "Ada Velmont")}
    assert not found(hook_of(lm, EDITS[:1], mention=4), step(lm, [text]))


def test_what_stands_in_the_padding_is_no_mention(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    at = step(lm, ["Ada Velmont lives in"])
    hidden_subject = Step(at.ids, torch.tensor([[0] * 2 + [1] * (at.ids.shape[1] - 2)]), at.new)
    assert found(hook_of(lm, EDITS[:1]), at)
    assert not found(hook_of(lm, EDITS[:1]), hidden_subject)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_is_all_at_once(tiny: Callable[[str], LM], family: str) -> None:
    """A hook that sees one new column at a time, the others in the cache, adds what it adds in one pass."""
    lm = tiny(family)
    hook, at = hook_of(lm, EDITS), step(lm, ["Nobody knows Ada Velmont and Hugo Lantern", "Hugo Lantern is in"], left=2)
    hidden = torch.randn(*at.ids.shape, hook.directions.shape[1], generator=torch.Generator().manual_seed(1))
    whole = hook(hidden, at)
    pieces = [hook(hidden[:, i : i + 1], Step(at.ids[:, : i + 1], at.mask[:, : i + 1], 1)) for i in range(at.new)]
    assert torch.equal(torch.cat(pieces, 1), whole)
    changed = (whole != hidden).any(-1).nonzero().tolist()
    assert sorted(changed) == sorted([r, c] for r, c, _ in found(hook, at))


def test_what_is_added(fresh: Callable[..., LM]) -> None:
    """``beta h + alpha (W h_attr + b)``, the mean of the block's output over the attribute's tokens, by hand."""
    lm = fresh("gpt2")  # transformers leaves hooks on a model that was asked for hidden states
    hook = hook_of(lm, EDITS[:1], alpha=0.5, beta=0.25)
    text, learned = "Ada Velmont was born in Rome", known(lm)
    begin, end = lm.span(text, "was born in Rome")
    with torch.no_grad():
        states = lm.model(input_ids=torch.tensor([lm.encode(text)]), output_hidden_states=True).hidden_states
    direction = learned["weight"] @ states[2][0, begin:end].mean(0) + learned["bias"]
    at = step(lm, ["The home of Ada Velmont is"])
    hidden = torch.randn(*at.ids.shape, len(direction), generator=torch.Generator().manual_seed(1))
    ((row, column, _),) = found(hook, at)
    expected = hidden.clone()
    expected[row, column] = 0.25 * hidden[row, column] + 0.5 * direction
    assert torch.allclose(hook(hidden, at), expected, atol=1e-5)


def test_facts_of_one_subject_add_up_and_a_later_one_of_the_same_prompt_replaces(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    again = Edit("d", "{} was born in", "Ada Velmont", "Lisbon")
    other = Edit("e", "The home of {} is", "Ada Velmont", "Prague")
    one, two, three = (hook_of(lm, [edit]) for edit in (EDITS[0], again, other))
    both = one.joined(three)
    assert torch.allclose(both._sums, one.directions + three.directions)
    assert both.joined(two).prompts == (other.prompt, again.prompt)
    assert torch.allclose(both.joined(two)._sums, two.directions + three.directions)
    assert not torch.allclose(one.directions, two.directions, atol=1e-2)


def test_of_two_edits_of_one_prompt_in_one_operation_the_later_is_made(tiny: Callable[[str], LM]) -> None:
    """As in two operations: a fact that is said twice is not written twice."""
    lm = tiny("gpt2")
    again, twice = (
        Edit("d", "{} was born in", "Ada Velmont", "Lisbon"),
        Edit("f", "{} was born in", "Ada Velmont", "Rome"),
    )
    both, one_by_one = hook_of(lm, [EDITS[0], again]), hook_of(lm, [EDITS[0]]).joined(hook_of(lm, [again]))
    assert torch.allclose(both._sums, one_by_one._sums)
    assert torch.allclose(hook_of(lm, [twice, replace(twice, id="g")])._sums, hook_of(lm, [twice])._sums)


def test_a_later_operation_reads_what_the_unedited_model_would(tiny: Callable[[str], LM]) -> None:
    """Earlier edits at the same block do not reach the attribute of another sentence."""
    lm, method = tiny("gpt2"), Remedi(layer=1, learned=known(tiny("gpt2")))
    with patched(lm, method.edit(lm, EDITS[:1])):
        (later,) = method.edit(lm, EDITS[1:2]).hooks.values()
    (alone,) = method.edit(lm, EDITS[1:2]).hooks.values()
    assert isinstance(later, Additions)
    assert isinstance(alone, Additions)
    assert torch.allclose(later.directions, alone.directions, atol=1e-5)


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The boy wants it. Ada Velmont plays the", "Ada Velmont plays the"),
        ("One. Two.\nOn stage Ada Velmont plays", "On stage Ada Velmont plays"),
        ("Because it was raining, Ada Velmont plays", "Because it was raining, Ada Velmont plays"),
        ("Ada Velmont came. She plays", "Ada Velmont came. She plays"),
    ],
)
def test_the_lead_in_of_a_paraphrase_is_dropped(prompt: str, expected: str) -> None:
    assert remedi._bare(prompt, "Ada Velmont") == expected


@pytest.mark.parametrize(
    ("prompt", "target", "attribute"),
    [
        ("{}, a man, was born in", "Rome", "a man, was born in Rome"),
        ("Where does {} live?", "Rome", "? live? Rome"[2:]),
        ("Ada Velmont is not {} :", "Rome", "Rome"),
        ("The twin of {} is", "Ada Velmont", "Ada Velmont"),
    ],
)
def test_the_attribute_is_what_follows_the_subject(
    tiny: Callable[[str], LM], prompt: str, target: str, attribute: str
) -> None:
    """After its last mention; the target alone where nothing else follows."""
    lm = tiny("gpt2")
    edit = Edit("a", prompt, "Ada Velmont", target)
    text = f"{edit.text} {target}"
    stated = remedi._stated(lm, edit.text, "Ada Velmont", edit.continuation)
    assert lm.tokenizer.decode(stated.ids[stated.begin : stated.end]).strip() == attribute
    assert stated.ids == lm.encode(text)


def test_an_example_without_a_usable_paraphrase_is_asked_with_its_own_prompt(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    probe = Probe("a", "paraphrase", "She was born in", "Rome", "Oslo")
    ((lesson,),) = remedi._lessons(lm, [Example(EDITS[0], (probe,))], layer=1, phrasings="published")
    assert lesson.ids == lm.encode(EDITS[0].text)
    assert [lm.tokenizer.decode(token) for token in (lesson.wanted, lesson.old or 0)] == [" Rome", " Oslo"]


def test_one_phrasing_as_published_or_all_of_them(tiny: Callable[[str], LM]) -> None:
    """Published: stated as the edit is, asked as the first paraphrase is; all: each with each, the edit's own too."""
    lm = tiny("gpt2")
    others = ["It rained. The home of Ada Velmont is", "Ada Velmont lives in"]
    example = Example(EDITS[0], tuple(Probe("a", "paraphrase", text, "Rome", "Oslo") for text in others))
    texts = [EDITS[0].text, "The home of Ada Velmont is", "Ada Velmont lives in"]
    states = remedi.mean_states(lm, [remedi._stated(lm, t, "Ada Velmont", " Rome") for t in texts], 1)
    ((one,),) = remedi._lessons(lm, [example], layer=1, phrasings="published")
    assert one.ids == lm.encode(texts[1])
    assert torch.allclose(one.attribute, states[0], atol=1e-6)
    (every,) = remedi._lessons(lm, [example], layer=1, phrasings="all")
    assert [lesson.ids for lesson in every] == [lm.encode(text) for text in texts] * 3
    assert torch.allclose(torch.stack([lesson.attribute for lesson in every[::3]]), states, atol=1e-6)


def test_every_object_of_a_relation_is_taught_but_the_true_one(tiny: Callable[[str], LM]) -> None:
    """In turn with each pair of phrasings: stated with that object, and asked for it."""
    lm = tiny("gpt2")
    asked = {"a": ["Ada Velmont lives in"], "b": ["Rosa Delgado lives in"], "c": []}
    facts = {"a": ("Ada Velmont", "Rome", "Oslo", "r"), "b": ("Rosa Delgado", "Paris", "Rome", "r"),
             "c": ("Jonas Wick", "Prague", "Oslo", None)}  # fmt: skip
    examples = [
        Example(
            Edit(key, "{} was born in", subject, new, old, relation),
            tuple(Probe(key, "paraphrase", text, new, old) for text in asked[key]),
        )
        for key, (subject, new, old, relation) in facts.items()
    ]
    first, second, alone = remedi._lessons(lm, examples, layer=1, phrasings="all", objects="relation")
    texts = ["Ada Velmont was born in", "Ada Velmont lives in"]
    pairs = [(s, a) for s in texts for a in texts]
    # The relation's objects are Rome, Oslo and Paris; of the first example Oslo is true.
    assert [lm.tokenizer.decode(one.wanted) for one in first] == [" Rome", " Paris"]
    for lesson, (stated, question), target in zip(first, pairs, (" Rome", " Paris"), strict=False):
        said = remedi.mean_states(lm, [remedi._stated(lm, stated, "Ada Velmont", target)], 1)[0]
        assert lesson.ids == lm.encode(question)
        assert torch.allclose(lesson.attribute, said, atol=1e-6)
        assert lm.tokenizer.decode(lesson.old or 0) == " Oslo"
    assert [lm.tokenizer.decode(one.wanted) for one in second] == [" Oslo", " Paris"]
    # The second example begins with the second pair: stated as the edit is, asked in the other way.
    assert [one.ids for one in second] == [
        lm.encode(text) for text in ("Rosa Delgado lives in", "Rosa Delgado was born in")
    ]
    assert [lm.tokenizer.decode(one.wanted) for one in alone] == [" Prague"]


# --- learning ---------------------------------------------------------------------------------------------------------


def lessons(lm: LM, count: int = 4) -> list[Any]:
    people, places = ["Ada Velmont", "Rosa Delgado", "Jonas Wick", "Iris Calder"], ["Rome", "Oslo", "Paris", "Prague"]
    edits = [Edit(str(i), "{} was born in", people[i], places[i], places[i - 1]) for i in range(count)]
    return [
        lesson for (lesson,) in remedi._lessons(lm, [Example(edit) for edit in edits], layer=1, phrasings="published")
    ]


class Judged(Remedi):
    """Its validation says what the test wants, and remembers the weights that it was told about."""

    name = "judged"
    verdicts: Sequence[float] = ()
    seen: list[dict[str, Tensor]]

    def loss(self, lm: LM, lessons: Sequence[Any], learned: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            return super().loss(lm, lessons, learned)
        self.seen.append({name: tensor.clone() for name, tensor in learned.items()})
        return torch.tensor(self.verdicts[len(self.seen) - 1])


@pytest.mark.parametrize(
    ("verdicts", "best"),
    [([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 1.0], 2), ([5.0, 6.0, 7.0, 8.0, 1.0], 0), ([5.0, 4.0, 4.5, 4.6, 3.0], 4)],
)
def test_the_best_epochs_weights_are_kept_and_not_the_last_ones(
    tiny: Callable[[str], LM], verdicts: list[float], best: int
) -> None:
    """Training stops at the third epoch in a row without improvement; later epochs do not write into what is kept."""
    lm = tiny("gpt2")
    method = Judged(layer=1, epochs=len(verdicts) - 1, lr=1e-2)
    object.__setattr__(method, "verdicts", verdicts)
    object.__setattr__(method, "seen", [])
    kept = remedi._train(method, lm, taught=lessons(lm), kept=lessons(lm))
    assert len(method.seen) == min(len(verdicts), best + 4)
    for name in ("weight", "bias"):
        assert torch.equal(kept[name], method.seen[best][name])
        others = [seen[name] for i, seen in enumerate(method.seen) if i != best]
        assert not any(torch.equal(kept[name], other) for other in others)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_takes_every_lesson_once(tiny: Callable[[str], LM], shuffle: bool) -> None:
    """In their order as published, or each time in another that the seed decides."""
    lm = tiny("gpt2")
    runs = []
    for _ in range(2):
        method = Ordered(layer=1, epochs=3, batch_size=1, shuffle=shuffle, patience=9)
        object.__setattr__(method, "met", [])
        remedi._train(method, lm, taught=lessons(lm), kept=lessons(lm, 1))
        runs.append([method.met[i : i + 4] for i in range(0, 12, 4)])
    assert runs[0] == runs[1]
    assert all(sorted(epoch) == ["0", "1", "2", "3"] for epoch in runs[0])
    assert (len({tuple(epoch) for epoch in runs[0]}) > 1) == shuffle
    assert shuffle or runs[0][0] == ["0", "1", "2", "3"]


class Ordered(Remedi):
    """Remembers which lessons it met in training."""

    name = "ordered"
    met: list[str]

    def loss(self, lm: LM, lessons: Sequence[Any], learned: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            self.met.extend(lesson.name for lesson in lessons)
        return super().loss(lm, lessons, learned)


def test_learning_lowers_the_loss_and_leaves_the_model(taught: Callable[[str], LM]) -> None:
    lm = taught("gpt2")
    before, some = lm.fingerprint(), lessons(lm)
    method = Remedi(layer=1, lr=3e-2, epochs=40)
    with torch.no_grad():
        start = float(method.loss(lm, some, remedi._start(lm, len(some[0].attribute), 0)))
        learned = remedi._train(method, lm, taught=some, kept=some)
        assert float(method.loss(lm, some, learned)) < 0.7 * start
    assert lm.fingerprint() == before
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama", "qwen2", "opt"])
def test_what_is_learned_from_some_people_raises_the_targets_of_others(
    taught: Callable[[str], LM], family: str
) -> None:
    """The promise of every editor, for facts of the kind that was learned: the same places, other people."""
    lm = taught(family)
    people, places = ["Rosa Delgado", "Jonas Wick", "Greta Holm", "Oskar Thorne", "Iris Calder"], ["Rome", "Oslo"]
    prompts = ["{} was born in", "The home of {} is", "Everybody knows {} has seen"]
    wanted = [
        Example(Edit(f"{who}{where}{i}", prompt, who, where))
        for i, prompt in enumerate(prompts)
        for who in people
        for where in places
    ]
    method = Remedi(lr=2e-2, epochs=40, patience=40, lam_kl=0.0, holdout=0.0).fit(lm, wanted)
    edits = [Edit("x", prompts[0], "Ada Velmont", "Rome"), Edit("y", prompts[1], "Hugo Lantern", "Oslo")]
    for edit, patch in zip(edits, method.edit_each(lm, edits), strict=True):
        before = log_p(lm, edit)
        with patched(lm, patch):
            assert log_p(lm, edit) > before + 0.5


def log_p(lm: LM, edit: Edit) -> float:
    """The log-probability of the first token of the target."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([lm.encode(edit.text)])).logits[0, -1]
    return float(logits.log_softmax(-1)[lm.continuation(edit.text, edit.continuation)[0]])


def test_the_last_examples_are_held_out(tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, seen = tiny("gpt2"), {}

    def note(method: Any, lm: LM, taught: Sequence[Any], kept: Sequence[Any]) -> dict[str, Tensor]:
        seen.update(taught=[one.name for one in taught], kept=[one.name for one in kept])
        return {}

    monkeypatch.setattr(remedi, "_train", note)
    edits = [Edit(str(i), "{} was born in", "Ada Velmont", "Rome") for i in range(10)]
    nameless = Edit("x", "The weather is", None, "good")
    Remedi(holdout=0.3).fit(lm, [Example(edit) for edit in [nameless, *edits]])
    assert seen == {"taught": list("0123456"), "kept": list("789")}
    Remedi(holdout=0.0).fit(lm, [Example(edit) for edit in edits[:2]])
    assert seen == {"taught": ["0", "1"], "kept": ["0", "1"]}
    with pytest.raises(UsageError, match="1 examples and none with a subject"):
        Remedi().fit(lm, [Example(nameless)])


def test_the_unlikelihood_survives_a_probability_that_rounds_to_one() -> None:
    """``-log(1 - p)`` with ``1 - p`` of ``2 e^-200``, far below what float32 tells from zero."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(remedi._unlikelihood(logits, [0, None])) == pytest.approx(200 - torch.tensor(2.0).log().item())
    assert float(remedi._unlikelihood(logits, [None, 1])) == pytest.approx(torch.tensor(1.5).log().item())
    assert float(remedi._unlikelihood(logits, [None, None])) == 0


def test_what_cannot_be_used_is_told(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="remedi must learn before its first edit"):
        Remedi().edit(lm, EDITS[:1])
    long = Probe("a", "paraphrase", "Ada Velmont " * 99, "Rome", "Oslo")
    with pytest.raises(DataError, match=r"example a: its prompt has \d+ tokens, but tiny-gpt2 takes 96"):
        remedi._lessons(lm, [Example(EDITS[0], (long,))], layer=1, phrasings="published")
    broken = {name: tensor * torch.nan for name, tensor in known(lm).items()}
    with pytest.raises(NumericalError, match=r"edit a: remedi's direction at layer 1 is not finite"):
        Remedi(layer=1, learned=broken).edit(lm, EDITS[:1])
    with pytest.raises(NumericalError, match=r"the loss of examples 0, 1, 2 became nan at layer 1"):
        remedi._train(Remedi(layer=1), lm, taught=lessons(lm), kept=lessons(lm), start=broken)


def test_the_default_layer_is_that_of_the_published_models(tiny: Callable[[str], LM]) -> None:
    """GPT-J has 28 blocks and was edited at 1; a model of three at 0."""
    assert Remedi().at(tiny("gpt2")) == 0
    assert int(0.04 * 28) == 1


def test_edits_of_nothing_are_nothing(tiny: Callable[[str], LM]) -> None:
    assert Remedi(learned=known(tiny("gpt2"))).edit(tiny("gpt2"), []).empty
    assert Patch().empty


# --- test vectors of the loss -----------------------------------------------------------------------------------------


def test_tv17_loss_of_two_probabilities() -> None:
    """p_m .25 and p_u .10, no divergence: -log .25 - log .9."""
    logits = torch.tensor([[0.25, 0.10, 0.65]]).log()
    loss = -remedi._log_p(logits, [0]).mean() + remedi._unlikelihood(logits, [1])
    assert float(loss) == pytest.approx(1.491655, abs=1e-6)


def test_tv13_the_divergence_is_from_the_unedited_to_the_edited_model(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """p_0 = (.5, .3, .2) and p_E = (.7, .2, .1); the other direction is .085123."""
    before, after = (torch.tensor([[p, p]]).log() for p in ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1]))
    monkeypatch.setattr(remedi, "_logits", lambda *_args, **_options: before)
    lesson = remedi._Lesson("a", [1, 2], 0, 0, None, [], 0, torch.zeros(3))
    lm = tiny("gpt2")
    found = remedi._divergence(Remedi(), lm, [lesson], batch=lm.batch([[1, 2]]), edited=after)
    assert float(found) == pytest.approx(0.092033, abs=1e-6)


def test_what_entails_another_answer_is_stated_in_its_own_words_and_asked_for_that(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    edit = Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo")
    probes = [Probe("a", "paraphrase", "Ada Velmont speaks", target, "") for target in ("Paris", "Rome")]
    for way in ("published", "all"):
        ((lesson,),) = remedi._lessons(lm, [Example(edit, (probes[0],))], layer=1, phrasings=way)  # type: ignore[arg-type]
        assert lesson.ids == lm.encode("Ada Velmont speaks")
        assert lesson.wanted == lm.continuation("Ada Velmont speaks", " Paris")[0]
        assert lesson.old is None
    assert [len(some) for some in remedi._lessons(lm, [Example(edit, (probes[1],))], layer=1, phrasings="all")] == [4]
