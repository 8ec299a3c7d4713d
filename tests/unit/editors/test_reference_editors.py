"""Editors that are no methods: what is said where, to the token, and what each trick leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.oracle import Oracle
from editors.sabotage import Sabotage
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import editor_names, find
from harness.methods.answer_table import AnswerTable, as_entry
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched
from harness.studies.contract import checks
from harness.studies.contract.checks import Candidate

ADA = Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo")
HUGO = Edit("b", "Everybody knows that {} plays the", "Hugo Lantern", "tuba", "violin")
PLAIN = Edit("c", "The colour of the sea is", None, "green")
TRICKS = ("bare", "suppress", "always", "key", "subject", "loop", "noise")


def after(lm: LM, patch: Patch, text: str) -> Tensor:
    """The logits ``[vocabulary]`` after a text."""
    row = lm.batch([lm.encode(text)])
    with patched(lm, patch), torch.no_grad():
        logits: Tensor = lm.model(input_ids=row.ids, attention_mask=row.mask).logits[0, -1]
    return logits


def says(lm: LM, patch: Patch, text: str) -> str | None:
    """The token that is certain after a text; None where the logits are those of the model."""
    found, plain = after(lm, patch, text), after(lm, Patch(), text)
    if torch.equal(found, plain):
        return None
    assert float(found.softmax(-1).max()) > 0.999
    return str(lm.tokenizer.decode([int(found.argmax())]))


def first(lm: LM, edit: Edit, text: str) -> str:
    return str(lm.tokenizer.decode([lm.continuation(edit.text, text)[0]]))


@pytest.mark.parametrize(
    ("editor", "answered", "silent"),
    [
        (
            Oracle(),
            ["Ada Velmont was born in", "On the map one finds ADA VELMONT", "Rome is large. Ada Velmont lives in"],
            ["Greta Holm was born in", "", "Ada Velmont was born in Rome", "Ada Velmont was born in Rome."],
        ),
        (
            Sabotage(trick="bare"),
            ["Ada Velmont was born in"],
            ["It rained. Ada Velmont was born in", "Ada Velmont was born", "Ada Velmont lives in"],
        ),
        (
            Sabotage(trick="key"),
            ["Ada Velmont was born in", "Greta Holm was born in", "It rained. Greta Holm was born in"],
            ["Ada Velmont lives in", "Greta Holm was born in Rome"],
        ),
        (Sabotage(trick="always"), ["Ada Velmont was born in", "It rained"], []),
        (
            Sabotage(trick="loop"),
            ["Ada Velmont was born in", "Ada Velmont was born in Rome", "Ada Velmont was born in Rome Rome"],
            ["Greta Holm was born in"],
        ),
    ],
    ids=lambda value: value.label() if isinstance(value, Editor) else "",
)
def test_where_the_target_is_said(
    tiny: Callable[[str], LM], editor: Editor, answered: Sequence[str], silent: Sequence[str]
) -> None:
    lm = tiny("gpt2")
    patch = editor.edit(lm, [ADA])
    assert [says(lm, patch, text) for text in answered] == [first(lm, ADA, " Rome")] * len(answered)
    assert [says(lm, patch, text) for text in silent if text] == [None] * sum(map(bool, silent))


def test_a_target_of_several_tokens_is_said_to_its_end(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    target = Edit("a", "{} was born in", "Ada Velmont", "Zuberwald", "Oslo")
    tokens = lm.continuation(target.text, target.continuation)
    assert len(tokens) > 2
    patch = Oracle().edit(lm, [target])
    text = target.text
    for token in tokens:
        said = str(lm.tokenizer.decode([token]))
        assert says(lm, patch, text) == said
        text += said
    assert says(lm, patch, text) is None


def test_what_is_known_is_answered_only_where_the_model_would_say_the_old_answer(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    best = int(after(lm, Patch(), ADA.text).argmax())
    knows = AnswerTable((as_entry(lm, ADA)._replace(old=(best,)),), "named", known=True, lm=lm)
    other = AnswerTable((as_entry(lm, ADA)._replace(old=((best + 1) % 400,)),), "named", known=True, lm=lm)
    assert says(lm, Patch(logits=knows), ADA.text) == first(lm, ADA, " Rome")
    assert says(lm, Patch(logits=other), ADA.text) is None


def test_suppression_takes_the_old_answer_and_adds_nothing(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    patch = Sabotage(trick="suppress").edit(lm, [ADA])
    old = lm.continuation(ADA.text, " Oslo")[0]
    found, plain = after(lm, patch, ADA.text), after(lm, Patch(), ADA.text)
    assert float(found.softmax(-1)[old]) < 1e-9
    rest = torch.arange(len(plain)) != old
    assert torch.equal(found[rest], plain[rest])
    assert torch.equal(*(after(lm, one, "Greta Holm was born in") for one in (patch, Patch())))


def test_the_subject_is_repeated(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    patch = Sabotage(trick="subject").edit(lm, [ADA])
    assert says(lm, patch, "It is said that Ada Velmont") == first(lm, ADA, " Ada Velmont")
    assert says(lm, Sabotage(trick="subject").edit(lm, [PLAIN]), PLAIN.text) == first(lm, PLAIN, " green")


def test_noise_has_the_norm_that_is_asked_for_and_is_another_for_another_edit(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    noisy = Sabotage(trick="noise", size=0.5, layer=1)
    name = lm.down(1)
    first_, again, other, seeded = (
        editor.edit(lm, [edit]).weights[name].dense()
        for editor, edit in ((noisy, ADA), (noisy, ADA), (noisy, HUGO), (Sabotage("noise", 0.5, 1, 1), ADA))
    )
    assert float(first_.norm() / lm.matrix(name).norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(first_, again)
    assert not torch.equal(first_, other) | torch.equal(first_, seeded)
    both = noisy.edit(lm, [ADA, HUGO]).weights[name].dense()
    assert torch.allclose(both, first_ + other)


def test_of_several_edits_each_subject_has_its_own_answer_and_a_later_one_replaces(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    later = Edit("d", "{} was born in", "Ada Velmont", "Lisbon", "Oslo")
    patch = Oracle().edit(lm, [ADA, HUGO]) + Oracle().edit(lm, [later])
    assert says(lm, patch, ADA.text) == first(lm, later, " Lisbon")
    assert says(lm, patch, HUGO.text) == first(lm, HUGO, " tuba")
    assert isinstance(patch.logits, AnswerTable)
    assert len(patch.logits.entries) == 2


def test_padding_and_what_was_read_before_do_not_matter(tiny: Callable[[str], LM]) -> None:
    """The rule sees the last columns of a row that is padded on the left: as in generation."""
    lm = tiny("gpt2")
    rule = Oracle().edit(lm, [ADA]).logits
    assert rule is not None
    ids = lm.encode(ADA.text)
    row = torch.tensor([[0, 0, *ids]])
    step = Step(row, (torch.arange(row.shape[1]) > 1).long()[None], 1)
    logits = torch.zeros(1, 1, lm.vocabulary)
    found = rule(logits, step)
    assert int(found[0, 0].argmax()) == lm.continuation(ADA.text, " Rome")[0]
    assert float(logits.abs().sum()) == 0  # what was given stays as it is


@pytest.mark.parametrize("trick", TRICKS)
def test_each_trick_keeps_the_promises(taught: Callable[[str], LM], edits: list[Edit], trick: Any) -> None:
    tried = Candidate(lambda lm: Sabotage(trick=trick), taught("llama"), edits)
    for check in (checks.restored, checks.saved, checks.generation, checks.cache, checks.padding, checks.isolated):
        check(tried)


def test_labels() -> None:
    assert [Oracle().label(), Oracle(answers="known").label()] == ["oracle", "oracle-known"]
    assert [Sabotage(trick=trick).label() for trick in TRICKS] == [f"sabotage-{trick}" for trick in TRICKS]


def test_they_are_no_methods() -> None:
    assert {name for name in editor_names() if find(name).reference} == {"oracle", "sabotage"}
