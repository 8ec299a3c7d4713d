"""CORE: its term by hand on every way of running a model, its contexts, and MEMIT where the term is off."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from editors.core import Core
from editors.memit import Memit
from harness.editing.edit import Edit
from harness.methods import value_cache
from harness.methods.value import optimise
from harness.methods.value_forward import BlocksAbove, BlocksFrom, Forward, Way, WholeModel
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

CONTEXTS = ("{}", "The weather is. {}", "Nobody knows. {}")
QUICK: dict[str, Any] = {"v_steps": 4, "v_lr": 0.3, "contexts": CONTEXTS, "cov_tokens": 2000, "lam": 1e-2}


@pytest.fixture
def paired(edits: list[Edit]) -> list[Edit]:
    return [replace(edit, target_old=old) for edit, old in zip(edits, ("Lisbon", "Vienna", "Athens"), strict=True)]


def left(lm: LM, text: str, *, layer: int, add: Any) -> torch.Tensor:
    """What leaves one block, with a change in what leaves the first, ``[tokens, d]``."""
    seen: list[torch.Tensor] = []
    handle = lm.module(lm.arch.block(layer)).register_forward_hook(
        lambda _m, _a, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with patched(lm, Patch(hooks={lm.arch.block(0): add})), torch.no_grad():
        lm.model(input_ids=torch.tensor([lm.encode(text)]))
    handle.remove()
    return seen[0][0]


def apart(lm: LM, edit: Edit, delta: torch.Tensor, layers: tuple[int, ...]) -> float:
    """The sum over pairs of contexts of ``||h_i - h_j||^2 / d``, the mean over layers, from plain passes."""
    states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for template in CONTEXTS:
        text = edit.behind(template)
        _, end = lm.span(text, edit.subject or "", edit.begins_behind(template))

        def add(hidden: torch.Tensor, _step: Step, at: int = end - 1) -> torch.Tensor:
            moved = hidden.clone()
            moved[:, at] += delta
            return moved

        for layer in layers:
            states[layer].append(left(lm, text, layer=layer, add=add)[end - 1])
    pairs = [(a - b).square().sum() / len(a) for held in states.values() for a, b in combinations(held, 2)]
    return float(sum(pairs)) / len(layers)


@pytest.mark.parametrize("runner", [BlocksAbove, BlocksFrom, WholeModel])
@pytest.mark.parametrize(("reach", "layers"), [(None, (1, 2)), (1, (1,))])
def test_the_term_is_the_distance_of_all_pairs_of_contexts(
    tiny: Any,
    paired: list[Edit],
    monkeypatch: pytest.MonkeyPatch,
    runner: type[Forward],
    *,
    reach: int | None,
    layers: tuple[int, ...],
) -> None:
    """From plain passes with the change so far; edits side by side do not mix."""
    lm = tiny("llama")
    monkeypatch.setattr(value_cache, "fastest_forward", lambda *_: Way(runner, False, 0, 999))
    method = Core(layers=(0,), agreement=0.3, agreement_layers=reach, **{**QUICK, "v_weight_decay": 0.0})
    for steps in (1, 3):
        objective = replace(method.objective(0), steps=steps)
        found = optimise(lm, paired, CONTEXTS, objective=objective)
        for i, edit in enumerate(paired):
            total, nll, kl, decay = found.losses[i][-1].tolist()
            wanted = 0.3 * apart(lm, edit, found.delta[i], layers)
            assert total - nll - kl - decay == pytest.approx(wanted, rel=1e-3, abs=1e-5)
            assert wanted > 1e-3


def test_without_the_term_and_with_given_contexts_it_is_memit(tiny: Any, paired: list[Edit]) -> None:
    lm, shared = tiny("gpt2"), {**QUICK, "layers": (0, 1), "v_weight_decay": 1e-3, "clamp": 3.0}
    plain, method = Memit(**shared).edit(lm, paired), Core(**shared, agreement=0.0)
    for name, delta in method.edit(lm, paired).weights.items():
        assert torch.allclose(delta.dense(), plain.weights[name].dense(), atol=1e-6)
        assert not torch.allclose(
            replace(method, agreement=1.0).edit(lm, paired).weights[name].dense(), delta.dense(), atol=1e-4
        )


def test_states_behind_contexts_come_nearer(tiny: Any, paired: list[Edit]) -> None:
    lm, found = tiny("llama"), {}
    for weight in (0.0, 3.0):
        method = Core(layers=(0,), agreement=weight, **{**QUICK, "v_steps": 12})
        values = optimise(lm, paired, CONTEXTS, objective=method.objective(0))
        found[weight] = sum(apart(lm, edit, values.delta[i], (1, 2)) for i, edit in enumerate(paired))
    assert found[3.0] < 0.8 * found[0.0]


def test_the_contexts_of_a_value_go_on_from_both_answers_and_the_subject(tiny: Any, paired: list[Edit]) -> None:
    """As many from each, of so many tokens, the same whichever edits stand beside."""
    lm, method = tiny("gpt2"), Core(texts=7, text_length=12)
    said = method._about(lm, paired[0])
    assert said[0] == "{}"
    assert len(said) == 1 + 3 * 2
    for begins, pair in zip(("Lisbon", "Ada Velmont", "Rome"), (said[1:3], said[3:5], said[5:7]), strict=True):
        assert all(text.startswith(begins) and text.endswith(". {}") for text in pair)
    assert method._about(lm, paired[0]) == said
    assert replace(method, seed=1)._about(lm, paired[0]) != said
    alone = method.edit_each(lm, paired[:1])[0]
    beside = method.edit_each(lm, paired)[0]
    assert all(torch.allclose(alone.weights[n].dense(), beside.weights[n].dense(), atol=1e-5) for n in alone.weights)
