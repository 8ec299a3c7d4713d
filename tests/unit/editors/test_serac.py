"""SERAC: its loss and scope by hand, and a classifier that tells held-out facts of the small world from neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from editors import serac
from editors.serac import Scoped, Serac, last_states
from harness.editing.edit import Edit, Example
from harness.errors import UsageError
from harness.models import lm as loading
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.runs.fitting import read_training


def knowing(method: Serac, lm: LM) -> Serac:
    """The editor with a random map."""
    draw = torch.Generator().manual_seed(1)
    return replace(method, learned={"weight": torch.randn(method.width, lm.arch.width, generator=draw) / 8})


def rule_of(patch: Patch) -> Scoped:
    assert isinstance(patch.prompt, Scoped)
    return patch.prompt


def test_the_loss_by_hand() -> None:
    """Two edits of two numbers, another way to ask each, a neighbour each, one plain text."""
    embedded = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5], [1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    found = serac._loss(embedded, serac._Draw([0, 1], [2, 3], [4, 5], [6, 6]))

    def out(*distances: float) -> float:
        return sum(-math.log(1 - math.exp(-d)) for d in distances) / len(distances)

    expected = (0.25 + 1.0) / 2 + out(4.0, 5.0) + out(18.0, 13.0) + out(2.0, 1.25)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_same_edit_is_not_its_own_negative() -> None:
    embedded = torch.tensor([[0.0], [0.1], [9.0], [8.0]])
    once = serac._loss(embedded, serac._Draw([0], [1], [2], [3]))
    assert torch.allclose(serac._loss(embedded, serac._Draw([0, 0], [1, 1], [2, 2], [3, 3])), once)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_state_is_what_the_block_writes_at_the_last_token(fresh: Callable[..., LM], family: str) -> None:
    lm, texts = fresh(family), ["Ada Velmont was born in", "Oslo", "The home of Jonas Wick is"]
    found = last_states(lm, texts, 1)
    for text, state in zip(texts, found, strict=True):
        every = lm.model(input_ids=torch.tensor([lm.encode(text)]), output_hidden_states=True).hidden_states
        assert torch.allclose(state, every[2][0, -1], atol=1e-5)


def test_the_edit_of_the_greatest_scope_is_read_if_that_is_enough(
    fresh: Callable[..., LM], edits: Sequence[Edit]
) -> None:
    lm = fresh("gpt2")
    method = knowing(Serac(layer=1), lm)
    rule = rule_of(method.edit(lm, edits))
    weight = (method.learned or {})["weight"]
    context = "Everybody knows Ada Velmont was born in"
    mine, theirs = (last_states(lm, texts, 1) @ weight.T for texts in ([context], [e.question for e in edits]))
    expected = torch.exp(-(theirs - mine).square().sum(1))
    assert torch.allclose(rule.scopes(context), expected, atol=1e-6)
    best = int(expected.argmax())
    scope = float(rule.scopes(context)[best])
    assert replace(rule, threshold=scope).chosen(context) == [best]
    assert replace(rule, threshold=min(1.0, scope * 1.001)).chosen(context) == []
    assert replace(rule, threshold=0.0).chosen("") == []
    assert all(rule.chosen(edit.question) == [i] for i, edit in enumerate(edits))
    assert rule(edits[0].question).endswith(edits[0].question)
    assert edits[0].statement in rule(edits[0].question)


def test_a_later_operation_replaces_what_it_asks_anew(fresh: Callable[..., LM], edits: Sequence[Edit]) -> None:
    lm = fresh("gpt2")
    method = knowing(Serac(layer=1), lm)
    again = replace(edits[0], id="z", target="Athens")
    rule = rule_of(method.edit(lm, edits) + method.edit(lm, [again]))
    assert len(rule.facts) == len(edits)
    assert "Athens" in rule(again.question)


def test_it_learns_from_four_examples_at_least(fresh: Callable[..., LM], edits: Sequence[Edit]) -> None:
    with pytest.raises(UsageError, match="serac: 1 examples to learn from, expected at least 4"):
        Serac().fit(fresh("gpt2"), [Example(edits[0])])
    with pytest.raises(UsageError, match="harness fit --editor serac"):
        Serac().edit(fresh("gpt2"), edits)


@pytest.mark.parametrize("model", ["mini", "mini-llama"])
def test_facts_that_it_did_not_learn_from_are_told_from_neighbours(model: str) -> None:
    """Of one edit alone and of fifty in memory; no subject of the test rows is one of the training rows."""
    lm = loading.load(model, device="cpu")
    taught = read_training("counterfact", "mini", "train").examples
    asked = read_training("counterfact", "mini", "test").examples[:50]
    assert not {one.edit.subject for one in taught} & {one.edit.subject for one in asked}
    method = Serac().fit(lm, taught)
    every = rule_of(method.edit(lm, [one.edit for one in asked]))
    found: dict[str, list[bool]] = {"in scope": [], "out of scope": [], "right of fifty": [], "none of fifty": []}
    for i, one in enumerate(asked):
        rule = rule_of(method.edit(lm, [one.edit]))
        for probe in one.of("paraphrase"):
            found["in scope"].append(rule.chosen(probe.prompt) == [0])
            found["right of fifty"].append(every.chosen(probe.prompt) == [i])
        for probe in one.of("neighborhood"):
            found["out of scope"].append(not rule.chosen(probe.prompt))
            found["none of fifty"].append(not every.chosen(probe.prompt))
    shares = {name: sum(told) / len(told) for name, told in found.items()}
    assert shares["in scope"] >= 0.93
    assert shares["right of fifty"] >= 0.9
    assert shares["out of scope"] >= 0.98
    assert shares["none of fifty"] >= 0.9
