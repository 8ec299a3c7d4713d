"""One contract, every method a row: what each editor promises, on each family of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import delta, editor
from harness.editor import Edit, Editor
from harness.lm import LM
from harness.patch import Patch, patched, patched_rows, shareable

FAMILIES = ["gpt2", "gptj", "neox", "llama", "qwen2", "opt"]
# Quick settings: far fewer tokens and steps than published, on models of three layers.
QUICK: dict[str, object] = {
    "cov_tokens": 4000,
    "v_steps": 20,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "clamp": 20.0,
    "lam": 1.0,
    "steps": 8,
    "lr": 5e-3,
    "norm_constraint": 2e-2,
}
OWN = ["none", "ft", "ft_l", "rome", "r_rome", "memit"]


def shipped() -> list[str]:
    """The editors that the contract covers: those that ship and need no training before the first edit."""
    return [name for name in editor.names() if editor.find(name).fit is Editor.fit]


def quick(name: str) -> Editor:
    """An editor with quick settings, where it has those fields."""
    cls = editor.find(name)
    known = {f.name for f in fields(cls)}
    return replace(cls(), **{k: v for k, v in QUICK.items() if k in known})


def log_likelihood(lm: LM, edit: Edit) -> float:
    """The log-probability of the target after the prompt."""
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    return float(score(lm, [prompt + target], [len(prompt)])[0])


def score(lm: LM, rows: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
    """The log-probability of each row from a position on, right-padded."""
    batch = lm.batch(rows)
    with torch.no_grad():
        log_p = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits.double().log_softmax(-1)
    picked = log_p[:, :-1].gather(2, batch.ids[:, 1:, None])[..., 0] * batch.mask[:, 1:]
    return torch.stack([row[start - 1 :].sum() for row, start in zip(picked, starts, strict=True)])


def weights(lm: LM) -> dict[str, str]:
    return lm.hashes(name for name, _ in lm.model.named_parameters())


def held(lm: LM, patch: Patch) -> dict[str, Tensor]:
    """The changed parameters, as they are under the patch."""
    with patched(lm, patch):
        return {name: lm.matrix(name).clone() for name in patch.weights}


@pytest.fixture(scope="module")
def edited(taught: Callable[[str], LM], edits: list[Edit]) -> Callable[[str, str], tuple[LM, Patch, bool]]:
    """A model, the patch of one editor for all edits, and whether the model was left as it was; made once for each
    pair."""
    made: dict[tuple[str, str], tuple[LM, Patch, bool]] = {}

    def get(name: str, family: str) -> tuple[LM, Patch, bool]:
        if (name, family) not in made:
            lm = taught(family)
            before = weights(lm)
            patch = quick(name).edit(lm, edits)
            made[name, family] = lm, patch, weights(lm) == before
        return made[name, family]

    return get


pair = pytest.mark.parametrize(("name", "family"), [(n, f) for f in FAMILIES for n in shipped()])
changing = pytest.mark.parametrize(("name", "family"), [(n, f) for f in FAMILIES for n in shipped() if n != "none"])
one_family = pytest.mark.parametrize("name", [n for n in shipped() if n != "none"])


def test_the_matrix_is_not_empty():
    assert set(OWN) <= set(shipped())


@changing
def test_raises_the_targets_probability(edited, edits, name, family):
    lm, patch, _ = edited(name, family)
    method = quick(name)
    # A method that edits one fact at a time does not promise that the next one leaves it.
    each = [patch] * len(edits) if method.batch else method.edit_each(lm, edits)
    for edit, held_patch in zip(edits, each, strict=True):
        before = log_likelihood(lm, edit)
        with patched(lm, held_patch):
            assert log_likelihood(lm, edit) > before + 0.5


@pair
def test_edit_leaves_the_model_bitwise_unchanged(edited, name, family):
    assert edited(name, family)[2]


@pair
def test_restores_bitwise_also_after_an_exception(edited, name, family):
    lm, patch, _ = edited(name, family)
    before = weights(lm)
    with patched(lm, patch):
        assert (weights(lm) != before) == bool(patch.weights)
    assert weights(lm) == before
    with pytest.raises(ZeroDivisionError), patched(lm, patch):
        raise ZeroDivisionError
    assert weights(lm) == before


@pair
def test_survives_save_and_load(edited, tmp_path: Path, name, family):
    lm, patch, _ = edited(name, family)
    if not patch.weights:
        assert name == "none" or patch.hooks or patch.prompt or patch.logits
        return
    delta.save(patch.weights, tmp_path / "patch.safetensors")
    again = Patch(delta.load(tmp_path / "patch.safetensors"))
    ours, theirs = held(lm, patch), held(lm, again)
    assert all(torch.equal(ours[n], theirs[n]) for n in patch.weights)


@pair
def test_generation_and_log_likelihood_agree(edited, edits, name, family):
    """Greedy generation, cached and uncached, writes tokens that scoring finds to be the most probable."""
    lm, patch, _ = edited(name, family)
    prompts = [lm.encode(e.text) for e in edits]
    with patched(lm, patch), torch.no_grad():
        for prompt in prompts:
            row = torch.tensor([prompt])
            options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
            cached, uncached = (
                lm.model.generate(row, attention_mask=torch.ones_like(row), use_cache=use, **options)[0]
                for use in (True, False)
            )
            assert torch.equal(cached, uncached)
            logits = lm.model(input_ids=cached[None], attention_mask=torch.ones_like(cached[None])).logits[0]
            chosen = logits[len(prompt) - 1 : -1].gather(1, cached[len(prompt) :, None])[:, 0]
            best = logits[len(prompt) - 1 : -1].clone()
            best[:, 0] = -torch.inf  # the end of text, which generation was told not to write
            assert torch.allclose(chosen, best.amax(1), atol=1e-4)


@pair
def test_padding_side_does_not_matter(edited, edits, name, family):
    lm, patch, _ = edited(name, family)
    rows = [lm.encode(e.text) for e in edits]
    width = max(map(len, rows)) + 3
    left = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    # Positions are given, as generation gives them: not every family counts them from the mask.
    positions = {} if family == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    right = lm.batch(rows)
    with patched(lm, patch), torch.no_grad():
        a = lm.model(input_ids=left, attention_mask=mask, **positions).logits[:, -1]
        full = lm.model(input_ids=right.ids, attention_mask=right.mask).logits
    b = torch.stack([full[i, len(r) - 1] for i, r in enumerate(rows)])
    assert torch.allclose(a, b, atol=2e-4, rtol=1e-3)


@one_family
def test_seeded_twice_is_the_same(fresh, edits, name):
    first, second = (held(fresh("gpt2"), quick(name).edit(fresh("gpt2"), edits)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@one_family
def test_two_models_in_one_process_do_not_mix(fresh, edits, name):
    """What an editor makes of one model does not depend on what it made of another."""
    method = quick(name)
    alone = held(fresh("llama", 1), method.edit(fresh("llama", 1), edits))
    method.edit(fresh("llama", 2), edits)
    after = held(fresh("llama", 1), method.edit(fresh("llama", 1), edits))
    assert all(torch.equal(alone[n], after[n]) for n in alone)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("name", [n for n in shipped() if n != "none"])
def test_side_by_side_is_one_by_one(tiny, edits, name, family):
    lm, method = tiny(family), quick(name)
    for edit, patch in zip(edits, method.edit_each(lm, edits), strict=True):
        alone = held(lm, method.edit(lm, [edit]))
        for parameter, value in held(lm, patch).items():
            change = float((alone[parameter] - lm.matrix(parameter)).norm())
            assert float((value - alone[parameter]).norm()) <= 2e-3 * change


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rome", "r_rome", "memit"])
def test_rows_of_one_pass_each_carry_their_patch(tiny, edits, name, family):
    lm = tiny(family)
    patches = quick(name).edit_each(lm, edits)
    assert all(shareable(patch) for patch in patches)
    rows = lm.batch([lm.encode(f"{e.text} {e.target}") for e in edits])
    with torch.no_grad():
        plain = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
        with patched_rows(lm, patches) as carrier:
            carrier.index = torch.tensor([1, 0, -1])
            together = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
        for row, which in ((0, 1), (1, 0)):
            with patched(lm, patches[which]):
                alone = lm.model(input_ids=rows.ids[row : row + 1], attention_mask=rows.mask[row : row + 1]).logits[0]
            real = rows.mask[row].bool()
            assert torch.allclose(together[row][real], alone[real], atol=1e-3, rtol=1e-3)
            assert not torch.allclose(together[row][real], plain[row][real], atol=1e-3)
    assert torch.allclose(together[2][rows.mask[2].bool()], plain[2][rows.mask[2].bool()], atol=1e-4)


@pytest.mark.parametrize("name", ["rome", "r_rome", "memit"])
def test_memory_keeps_what_was_taken_from_the_unedited_model(tiny, edits, name):
    """Templates and moments of a second operation are those of the unedited model, not of the edited one."""
    lm, method = tiny("gpt2"), quick(name)
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        second = method.edit(lm, edits[1:2], first.memory)
    assert second.memory.contexts == first.memory.contexts
    assert {k: v.key for k, v in second.memory.moments.items()} == {k: v.key for k, v in first.memory.moments.items()}
    assert not torch.equal(*(next(iter(p.weights.values())).dense() for p in (first, second)))


@pytest.mark.parametrize("name", shipped())
def test_no_edits_change_nothing(tiny, name):
    method = quick(name)
    if editor.find(name).edit is not Editor.edit:
        assert method.edit(tiny("gpt2"), []).empty
        assert method.edit_each(tiny("gpt2"), []) == []
