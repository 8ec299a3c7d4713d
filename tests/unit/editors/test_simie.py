"""SimIE: what the regression over all edits gives, computed another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.ft import FineTuning
from editors.grace import Grace
from editors.memit import Memit
from editors.rome import Rome
from editors.simie import Ideal, SimIE, share_of_keys
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.errors import UsageError
from harness.methods.original import originals_held
from harness.models.activations import capture_activations
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch, patched

QUICK: dict[str, Any] = {"cov_tokens": 4000, "v_steps": 8, "v_weight_decay": 1e-3, "clamp": 4.0}


def every_key(lm: LM, edit: Edit, layer: int = 1) -> Tensor:
    """``K^T [tokens, f]``: what enters the down-projection at all tokens of prompt and target."""
    batch = lm.batch([[*lm.encode(edit.text), *lm.continuation(edit.text, edit.continuation)]])
    name = lm.arch.down_of(layer)
    return capture_activations(lm, batch, inputs=[name]).inputs[name][0].double()


@dataclass(frozen=True)
class Shifting(Editor):
    """A change that belongs to the edit alone, whatever the weights are."""

    name = "shifting"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return Patch({lm.down(1): drawn(lm, edits[0])})


def drawn(lm: LM, edit: Edit) -> LowRank:
    out, width = lm.matrix(lm.down(1)).shape
    generator = torch.Generator().manual_seed(sum(map(ord, edit.id)))
    return LowRank(torch.randn(out, 2, generator=generator), torch.randn(2, width, generator=generator))


def in_a_row(lm: LM, method: Editor, edits: Sequence[Edit]) -> Patch:
    total = Patch()
    for edit in edits:
        with patched(lm, total):
            total = total + method.edit(lm, [edit], total.memory)
    return total


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("lam", [0.5, 20.0])
def test_the_sum_is_the_ridge_regression_of_all_edits_on_the_unedited_model(tiny, edits, family, lam):
    lm = tiny(family)
    method = SimIE(Shifting(), lam=lam)
    ours = in_a_row(lm, method, edits).weights[lm.down(1)].dense().double()
    keys = [every_key(lm, edit) for edit in edits]
    wanted = sum(drawn(lm, e).dense().double() @ k.T @ k for e, k in zip(edits, keys, strict=True))
    whole = lam * torch.eye(ours.shape[1], dtype=torch.float64) + sum(k.T @ k for k in keys)
    direct = torch.linalg.solve(whole, wanted.T).T
    assert float((ours - direct).norm()) < 1e-5 * float(direct.norm())


def test_of_an_exact_editor_every_token_keeps_what_the_ideal_edit_gave_it(tiny, edits):
    """Without ridge, and where no two edits share a token, the sum does for each edit what it did on the base model."""
    lm = tiny("llama")
    subjects = [edit.subject for edit in edits]
    edits = [Edit(e.id, f"{who} {e.prompt}", e.subject, e.target) for who, e in zip("XYZ", edits, strict=True)]
    assert len(set(subjects)) == len(edits) == 3
    keys = [every_key(lm, edit)[len(lm.encode("")) :] for edit in edits]
    assert torch.linalg.matrix_rank(torch.cat(keys)) == sum(map(len, keys))
    lm_change = in_a_row(lm, SimIE(Shifting(), lam=1e-9), edits).weights[lm.down(1)].dense().double()
    for edit, key in zip(edits, keys, strict=True):
        ideal = drawn(lm, edit).dense().double() @ key.T
        assert float((lm_change @ key.T - ideal).norm()) < 1e-3 * float(ideal.norm())


def test_an_edit_starts_from_the_unedited_model_or_from_the_current_one(tiny, edits):
    lm, seen = tiny("gpt2"), []

    @dataclass(frozen=True)
    class Looking(Shifting):
        name = "looking"

        def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
            seen.append(lm.matrix(lm.down(1)).clone())
            return super().edit(lm, edits, memory)

    base = lm.matrix(lm.down(1)).clone()
    in_a_row(lm, SimIE(Looking()), edits)
    assert all(torch.allclose(matrix, base, atol=1e-6) for matrix in seen) and len(seen) == 3
    seen.clear()
    in_a_row(lm, SimIE(Looking(), start="current"), edits)
    assert torch.equal(seen[0], base) and not torch.allclose(seen[1], base, atol=1e-3)


def test_originals_are_held_and_let_go(tiny):
    lm = tiny("gpt2")
    name = lm.down(0)
    was, change = lm.matrix(name).clone(), torch.randn(*lm.matrix(name).shape)
    with patched(lm, Patch({name: Dense(change)})):
        edited = lm.matrix(name).clone()
        with originals_held(lm, {name: was}):
            assert torch.allclose(lm.matrix(name), was, atol=1e-6)
        assert torch.equal(lm.matrix(name), edited)
    assert torch.equal(lm.matrix(name), was)


@pytest.mark.parametrize("count", [3, 40])
def test_the_share_of_keys_is_the_plain_formula_however_many_there_are(count):
    keys, earlier = torch.randn(count, 12, dtype=torch.float64), torch.randn(30, 12, dtype=torch.float64)
    for known in (None, earlier.T @ earlier):
        right, share = share_of_keys(keys, lam=2.0, earlier=known)
        whole = 2.0 * torch.eye(12, dtype=torch.float64) + keys.T @ keys + (0.0 if known is None else known)
        assert len(right) == min(count, 12)
        assert torch.allclose(right.T @ share, keys.T @ keys @ torch.linalg.inv(whole), atol=1e-10)


def test_a_lone_low_rank_edit_stays_low_rank(tiny, edits):
    lm, inner = tiny("gpt2"), Rome(**QUICK)
    method = SimIE(inner, lam=1e-6)
    for plain, joined in zip(inner.edit_each(lm, edits), method.edit_each(lm, edits), strict=True):
        ((name, before),) = plain.weights.items()
        delta: Delta = joined.weights[name]
        assert isinstance(before, LowRank) and isinstance(delta, LowRank) and delta.left.shape == before.left.shape
        assert isinstance(joined.memory, Ideal) and not joined.memory.sums


def test_what_cannot_be_joined_is_refused(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="simie joins a change of weights, but grace changes activations only"):
        SimIE(Grace())
    with pytest.raises(UsageError, match=r"but ft changes '.*\.bias'; wrap an editor .* rome\+simie"):
        SimIE(FineTuning(steps=1)).edit(lm, edits[:1])
    with pytest.raises(UsageError, match="memory is a SpreadMemory of another editor"):
        SimIE(Rome(**QUICK)).edit(lm, edits, Memit(lam=1.0, **QUICK).edit(lm, edits[:1]).memory)
    assert SimIE(Shifting()).edit(lm, [], None).empty
