"""Patches: what holds, where, for how long, and that the model is afterwards what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.editing.registry import find
from harness.errors import ModelError, NumericalError, RestoreError
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, Step, patched, patched_rows, require_plain, shareable

SEAMS = sys.modules[find(str(Path(__file__).parents[2] / "seams.py")).__module__]
FAMILIES = ["gpt2", "gptj", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "phi"]


def low(lm, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(lm.arch.width, 2, generator=generator) * scale
    return LowRank(left, torch.randn(2, lm.arch.inner, generator=generator) * scale)


def hashes(lm):
    return lm.hashes(name for name, _ in lm.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_change_adds_left_right_x_to_the_output(fresh, family):
    lm = fresh(family)
    name, owner = lm.down(1), lm.module(lm.arch.down_of(1))
    x = torch.randn(4, lm.arch.inner)
    change, before = low(lm), owner(x)
    with patched(lm, Patch({name: change})):
        assert torch.allclose(owner(x), before + x @ change.dense().T, atol=1e-4)
    assert torch.equal(owner(x), before)


def test_two_patches_add_and_nest(fresh):
    lm = fresh("gpt2")
    name = lm.down(1)
    a, b = Patch({name: low(lm, seed=1)}), Patch({name: low(lm, seed=2), lm.down(0): low(lm)}, memory=7)
    start = hashes(lm)
    both = a + b
    assert both.memory == 7
    with patched(lm, both):
        together = lm.matrix(name).clone()
    with patched(lm, a), patched(lm, b):
        assert torch.allclose(lm.matrix(name), together, atol=1e-6)
    assert hashes(lm) == start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_bitwise_after_an_exception_in_any_precision(fresh, dtype):
    lm = fresh("llama", dtype=dtype)
    start = hashes(lm)
    with pytest.raises(KeyError), patched(lm, Patch({lm.down(1): low(lm)})):
        assert hashes(lm) != start
        raise KeyError
    assert hashes(lm) == start


def test_a_change_that_fails_halfway_restores_the_rest(fresh):
    lm = fresh("gpt2")
    start = hashes(lm)
    bad = Dense(torch.full((lm.arch.width, lm.arch.inner), float("inf")))
    with (
        pytest.raises(NumericalError, match=r"h.1.mlp.c_proj.weight' holds a NaN"),
        patched(lm, Patch({lm.down(0): low(lm), lm.down(1): bad})),
    ):
        pass
    assert hashes(lm) == start


def test_a_weight_that_cannot_be_restored_fails_the_run(fresh, monkeypatch):
    """The guard is real: where restoring is broken on purpose, leaving the patch raises."""
    from harness.patches import patch as module

    lm = fresh("gpt2")
    with pytest.raises(RestoreError, match="is not what it was before the edit"):  # noqa: SIM117
        with patched(lm, Patch({lm.down(1): low(lm)})):
            monkeypatch.setattr(module, "same_bits", lambda first, second: False)


def test_names_and_shapes_that_do_not_fit(fresh):
    lm = fresh("gpt2")
    with (
        pytest.raises(ModelError, match="did you mean"),
        patched(lm, Patch({"transformer.h.1.mlp.c_prj.weight": low(lm)})),
    ):
        pass
    wrong = Dense(torch.zeros(3, 3))
    with (
        pytest.raises(ModelError, match=r"\(32, 64\), its change is \(3, 3\)"),
        patched(lm, Patch({lm.down(1): wrong})),
    ):
        pass


def test_two_hooks_on_one_module_are_an_error(fresh):
    one = Patch(hooks={"a": lambda hidden, step: hidden})
    with pytest.raises(ModelError, match="both change a"):
        one + one
    logits = Patch(logits=lambda logits, step: logits)
    with pytest.raises(ModelError, match="the logits"):
        logits + logits
    prompt = Patch(prompt=str.upper)
    with pytest.raises(ModelError, match="the prompt"):
        prompt + prompt
    assert (one + logits + prompt).prompt is str.upper
    assert Patch().empty
    assert not one.empty


def test_parts_of_one_editor_join(tiny, edits):
    """An increment of the same editor does not stand in the way of the first: together they do what both do."""
    lm = tiny("gpt2")
    method = SEAMS.Seams()
    first, second = (method.edit(lm, [edit]) for edit in edits[:2])
    both = first + second
    assert both.hooks[lm.arch.block(0)].kinds == tuple(lm.encode(edit.text)[-1] for edit in edits[:2])
    assert both.prompt("X") == first.prompt(second.prompt("X"))
    rows = lm.batch([lm.encode(edit.text) for edit in edits])
    with torch.no_grad():
        with patched(lm, both):
            joined = lm.model(rows.ids, attention_mask=rows.mask).logits
        with patched(lm, first), patched(lm, second):  # one around the other
            nested = lm.model(rows.ids, attention_mask=rows.mask).logits
        with patched(lm, first):
            alone = lm.model(rows.ids, attention_mask=rows.mask).logits
    assert torch.allclose(joined, nested, atol=1e-4)
    assert not torch.allclose(joined, alone, atol=1e-2)


def test_parts_that_differ_do_not_join():
    part = Patch(prompt=SEAMS.Preface(("a",)), logits=SEAMS.Bonus(torch.ones(3)))
    assert (part + Patch(prompt=SEAMS.Preface(("b",)))).prompt("X") == "a b X"
    assert (part + part).logits.bonus.tolist() == [2.0, 2.0, 2.0]
    for other, where in (
        (Patch(prompt=str.upper), "the prompt"),
        (Patch(prompt=SEAMS.Bonus(torch.ones(3))), "the prompt"),
        (Patch(logits=lambda logits, step: logits), "the logits"),
    ):
        for pair in ((part, other), (other, part)):
            with pytest.raises(ModelError, match=f"both change {where}; hold one of them, or merge them in the editor"):
                pair[0] + pair[1]


def test_a_rule_of_no_entries_is_still_a_rule():
    """A rule may have a length; a length of nothing does not make it nothing."""

    class Table(SEAMS.Preface):
        def __len__(self):
            return len(self.texts)

    empty = Table(())
    assert not Patch(prompt=empty).only_weights
    assert (Patch(prompt=empty) + Patch()).prompt is empty
    assert (Patch() + Patch(prompt=empty)).prompt is empty


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_is_given_what_entered_its_module(fresh, family):
    """``[batch, new, width]`` in every family, with and without a cache."""
    lm, seen = fresh(family), []

    def hook(hidden: torch.Tensor, step: Step) -> torch.Tensor:
        module = lm.module(lm.arch.down_of(1))
        assert step.entered.shape == (1, step.new, lm.arch.inner)
        assert torch.allclose(module.forward(step.entered), hidden, atol=1e-5)
        seen.append(step.new)
        return hidden

    ids = torch.tensor([lm.encode("Ada Velmont was born")])
    with patched(lm, Patch(hooks={lm.arch.down_of(1): hook})):
        lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert seen == [ids.shape[1], 1, 1]


def test_what_entered_a_module_is_unknown_where_it_is_no_tensor(fresh):
    lm, seen = fresh("gpt2"), []

    def hook(hidden: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append(step.entered)
        return hidden

    def by_keyword(module, args, kwargs):
        return (), {**kwargs, "hidden_states": args[0]}

    name = f"{lm.arch.block(0)}.attn"
    lm.module(name).register_forward_pre_hook(by_keyword, with_kwargs=True)
    with torch.no_grad(), patched(lm, Patch(hooks={name: hook})):
        lm.model(torch.tensor([[5, 6, 7]]))
    assert seen == [None]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_quantised_weight_is_refused_and_its_model_is_not_touched(fresh, dtype):
    lm = fresh("llama")
    name = lm.down(1)
    owner = lm.module(lm.arch.down_of(1))
    owner.weight = nn.Parameter(owner.weight.to(dtype), requires_grad=False)
    start = hashes(lm)
    kind = str(dtype).removeprefix("torch.")
    with (
        pytest.raises(ModelError, match=rf"'{name}' is quantised \({kind}\) .* load the model in bfloat16, let"),
        patched(lm, Patch({lm.down(0): low(lm), name: low(lm)})),
    ):
        pass
    assert hashes(lm) == start
    require_plain(lm, lm.down(0))


def test_a_hook_seam_works_on_a_quantised_weight(fresh):
    """What a quantised model cannot take at its weights it can take at another seam."""
    lm = fresh("llama")
    owner = lm.module(lm.arch.down_of(1))
    owner.weight = nn.Parameter((owner.weight * 64).round().to(torch.int8), requires_grad=False)
    owner.forward = lambda x: x @ (owner.weight.to(x) / 64).T
    rows = lm.batch([lm.encode("Ada Velmont was born in")])
    with torch.no_grad():
        plain = lm.model(rows.ids).logits
        with patched(lm, Patch(hooks={lm.arch.block(1): SEAMS.Shift(torch.ones(1, 32), (int(rows.ids[0, -1]),))})):
            assert not torch.allclose(lm.model(rows.ids).logits[0, -1], plain[0, -1], atol=1e-3)
        assert torch.equal(lm.model(rows.ids).logits, plain)


def test_a_hook_sees_the_whole_prefix_also_with_a_cache(fresh):
    lm, seen = fresh("llama"), []

    def hook(hidden: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append((step.ids.shape[1], step.new, hidden.shape[1], step.mask.shape[1]))
        return hidden

    ids = torch.tensor([lm.encode("Ada Velmont was born")])
    with patched(lm, Patch(hooks={lm.arch.block(1): hook})):
        lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    length = ids.shape[1]
    assert seen == [(length, length, length, length), (length + 1, 1, 1, length + 1), (length + 2, 1, 1, length + 2)]
    lm.model(ids)
    assert len(seen) == 3


def test_a_logit_rule_is_told_how_many_columns_it_sees(fresh):
    lm, seen = fresh("gpt2"), []

    def rule(logits: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append((logits.shape[1], step.new))
        return logits + 1

    ids = torch.tensor([lm.encode("Ada Velmont was born")])
    with torch.no_grad():
        plain = lm.model(ids).logits
        with patched(lm, Patch(logits=rule)):
            assert torch.allclose(lm.model(ids).logits, plain + 1)
            lm.model(ids, logits_to_keep=1)
    assert seen == [(ids.shape[1], ids.shape[1]), (1, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_carry_their_own_patch(fresh, family):
    lm = fresh(family)
    patches = [Patch({lm.down(1): low(lm, seed=1)}), Patch({lm.down(2): low(lm, seed=2), lm.down(1): low(lm, seed=3)})]
    rows = lm.batch([lm.encode("Ada Velmont was born in")] * 3)
    with torch.no_grad():
        with patched_rows(lm, patches) as carrier:
            carrier.index = torch.tensor([1, -1, 0])
            together = lm.model(rows.ids, attention_mask=rows.mask).logits
        plain = lm.model(rows.ids, attention_mask=rows.mask).logits
        assert torch.allclose(together[1], plain[1], atol=1e-5)
        for row, which in ((0, 1), (2, 0)):
            with patched(lm, patches[which]):
                alone = lm.model(rows.ids, attention_mask=rows.mask).logits[row]
            assert torch.allclose(together[row], alone, atol=2e-3, rtol=1e-3)
            assert not torch.allclose(together[row], plain[row], atol=1e-2)


def test_only_low_rank_changes_share_a_pass(fresh):
    lm = fresh("gpt2")
    dense = Patch({lm.down(1): Dense(torch.zeros(32, 64))})
    assert not shareable(dense)
    assert not shareable(Patch({lm.down(1): low(lm)}, prompt=str.upper))
    with pytest.raises(ModelError, match="only low-rank"), patched_rows(lm, [dense]):
        pass


def test_no_edits_are_the_identity(fresh):
    lm = fresh("gpt2")
    ids = torch.tensor([lm.encode("Ada Velmont")])
    before = lm.model(ids).logits
    with patched(lm, Patch()):
        assert torch.equal(lm.model(ids).logits, before)
    zero = LowRank(torch.zeros(32, 0), torch.zeros(0, 64))
    with patched(lm, Patch({lm.down(1): zero})):
        assert torch.equal(lm.model(ids).logits, before)
