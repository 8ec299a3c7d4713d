"""WISE: routing, the routing loss, the mask, the threshold, shards and their merging, against numbers."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, tensor

import editors.wise
from editors.wise import SideMemories, Wise, margins, ties
from harness.editing.edit import Edit
from harness.errors import ModelError, NumericalError, UsageError
from harness.io.plain_text import read_documents
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.patches.patch import Patch, Step, patched

CONTEXTS = ("{}", "Nobody knows. {}")
OURS = {"memories": "mixed", "distance": "token"}
FEW = {**OURS, "n_iter": 4, "alpha": 0.1, "beta": 1.0, "gamma": 0.5, "texts": 3, "contexts": CONTEXTS}


def moved(side: SideMemories, entered: Tensor) -> Tensor:
    """What the memories add to a zero output, ``[columns, d]``."""
    ids = torch.zeros(1, len(entered), dtype=torch.long)
    hidden = torch.zeros(1, len(entered), side.deltas.shape[1])
    return side(hidden, Step(ids, torch.ones_like(ids), len(entered), entered[None]))[0]


# --------------------------------------------------------------------------------------------- formulas on numbers


def test_a_position_takes_the_memory_that_moves_it_most_among_those_above_their_thresholds():
    deltas = tensor([[[3.0, 0.0]], [[0.0, 2.0]]])
    side = SideMemories(("a", "b"), deltas, tensor([2.0, 3.0]))
    entered = tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.6], [0.5, 1.0], [0.5, 2.0], [-1.0, 0.0]])
    #        ||3x||, ||2y||:  3, 0         3, 2        3, 3.2      1.5, 2      1.5, 4      3, 0
    assert torch.allclose(moved(side, entered)[:, 0], tensor([3.0, 3.0, 3.2, 0.0, 4.0, -3.0]))


def test_routing_loss_on_numbers():
    """max(0, outside - alpha), max(0, beta - inside), max(0, gamma - (inside - outside)), means over violations."""
    inside, outside = tensor([8.0, 3.0]), tensor([0.5, 2.0, 4.0])
    #  outside - 1: (-, 1, 3) -> 2;  6 - inside: (-, 3) -> 3;
    #  gaps 4 - (inside - outside): 8: (-3.5, -2, 0); 3: (1.5, 3, 5) -> mean of (1.5, 3, 5)
    assert float(margins(inside, outside, alpha=1.0, beta=6.0, gamma=4.0)) == pytest.approx(2 + 3 + 9.5 / 3)
    assert float(margins(tensor([9.0]), tensor([0.5]), alpha=1.0, beta=6.0, gamma=4.0)) == 0


def test_routing_loss_has_a_gradient_where_nothing_is_moved_yet():
    delta = torch.zeros(2, 3, requires_grad=True)
    entered = torch.ones(4, 3)
    dact = (entered @ delta.T).norm(dim=1)
    (gradient,) = torch.autograd.grad(margins(dact, dact, alpha=1.0, beta=2.0, gamma=3.0), delta)
    assert bool(torch.isfinite(gradient).all())


def test_ties_on_numbers():
    """Trim to the largest three of four, elect the sign of the weighted sum, average what agrees (arXiv 2306.01708)."""
    a, b = tensor([[4.0, -2.0], [1.0, 3.0]]), tensor([[2.0, 6.0], [-0.5, -1.0]])
    # trimmed: a loses 1, b loses -0.5; signs of the sums: +, +, 0 counts as +, +
    half = tensor([0.5, 0.5])
    assert torch.allclose(ties(torch.stack([a, b]), half, 0.75), tensor([[3.0, 6.0], [0.0, 3.0]]))
    # with weights 0.1 and 0.9: -0.2 + 5.4 > 0, 0.3 - 0.9 < 0
    assert torch.allclose(ties(torch.stack([a, b]), tensor([0.1, 0.9]), 0.75), tensor([[2.2, 6.0], [0.0, -1.0]]))
    assert torch.equal(ties(a[None], tensor([1.0]), 1.0), a)


def test_ties_keeps_memories_that_do_not_overlap():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(8, 9, generator=generator) < 0.4
    full = torch.randn(8, 9, generator=generator)
    a, b = full * mask, full * ~mask * (torch.rand(8, 9, generator=generator) < 0.5)
    assert torch.allclose(ties(torch.stack([a, b]), tensor([0.5, 0.5]), 0.53), a + b)


# ------------------------------------------------------------------------------------------------------ on a model


def entered_at(lm, layer: int, rows) -> Tensor:
    """What enters the down-projection at the edited tokens."""
    seen: list[Tensor] = []
    handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        lm.model(input_ids=rows.batch.ids, attention_mask=rows.batch.mask)
    handle.remove()
    return seen[0].reshape(*rows.batch.ids.shape, -1)[rows.row, rows.column]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_updates_are_gradient_descent_on_both_losses_within_the_mask_and_the_bound(fresh, edits, family):
    """One update of a first edit and one of a second, on the NLL with W + D at the edited tokens and the routing loss.

    At D = 0 the routing loss has no gradient, as the norm has none at zero; the second edit starts from D != 0.
    """
    lm, layer, lr, bound = fresh(family), 1, 0.7, 2e-3
    method = Wise(**{**FEW, "n_iter": 1, "layer": layer, "edit_lr": lr, "norm_constraint": bound, "act_ratio": 0.5})
    mask = torch.rand(lm.arch.width, lm.arch.inner, generator=torch.Generator().manual_seed(0)) < 0.2
    delta, least, state = torch.zeros(mask.shape), math.inf, None
    for count, edit in enumerate(edits[:2]):
        state = method.edit(lm, [edit], state).memory
        rows = supervise_target(lm, edit, CONTEXTS)
        inside, outside = entered_at(lm, layer, rows), entered_at(lm, layer, unrelated(lm, count))
        delta.requires_grad_()
        routing = margins(
            (inside @ delta.T).norm(dim=1), (outside @ delta.T).norm(dim=1), alpha=0.1, beta=1.0, gamma=0.5
        )
        (gradient,) = torch.autograd.grad(edited_nll(lm, layer, rows, delta) + routing, delta)
        delta = (delta - lr * gradient * mask).clamp(-bound, bound).detach()
        assert torch.allclose(state.side.deltas[0], delta, atol=1e-6)
        least = min(least, float((inside @ delta.T).norm(dim=1).min()))
        assert float(state.side.thresholds[0]) == pytest.approx(0.5 * least, rel=1e-4)
    assert float(state.side.deltas.abs().max()) == pytest.approx(bound)
    assert float((state.side.deltas.abs() < bound).float().mean()) > 0.8


def edited_nll(lm, layer: int, rows, delta: Tensor) -> Tensor:
    """The NLL where the edited tokens, and no others, are mapped by ``W + delta``."""

    def hook(module, args, output):
        flat = args[0].reshape(*rows.batch.ids.shape, -1)
        where = torch.zeros(rows.batch.ids.shape, dtype=torch.bool)
        where[rows.row, rows.column] = True
        return output + torch.where(where[..., None], flat @ delta.T, 0.0).reshape(output.shape)

    handle = lm.module(lm.arch.down_of(layer)).register_forward_hook(hook)
    loss = rows.nll(lm)
    handle.remove()
    return loss


def unrelated(lm, count: int) -> SupervisedTokens:
    """All tokens of the three documents that are drawn for an edit, with seed 0."""
    texts = list(read_documents(lm.text))[:512]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(count))[:3]
    batch = lm.batch([lm.encode(texts[i]) for i in order])
    row, column = batch.mask.bool().nonzero(as_tuple=True)
    return SupervisedTokens(Edit("u", "none", None, "none"), batch, row, column, column)


def test_the_edit_holds_by_routing_alone_and_unmoved_positions_keep_their_output_bitwise(tiny, edits):
    lm = tiny("llama")
    patch = Wise(layer=1, **{**FEW, "n_iter": 40}).edit(lm, edits[:1])
    rows = supervise_target(lm, edits[0])
    name = lm.arch.down_of(1)
    outputs: list[Tensor] = []
    losses = []
    for held in (Patch(), patch):
        with patched(lm, held), torch.no_grad():
            handle = lm.module(name).register_forward_hook(lambda m, a, out: outputs.append(out.clone()))
            losses.append(float(rows.nll(lm)))
            handle.remove()
    assert losses[1] < losses[0] - 0.5
    side = patch.memory.side
    batch = rows.batch.ids
    every = Step(batch, torch.ones_like(batch), batch.shape[1])
    assert every.entered is None
    moves = (outputs[1] != outputs[0]).any(-1)[0]
    at = int(rows.column[0])
    assert bool(moves[at])
    with (
        patched(lm, Patch(hooks={name: SideMemories(side.ids, side.deltas, side.thresholds * math.inf)})),
        torch.no_grad(),
    ):
        assert float(rows.nll(lm)) == losses[0]


def test_shards_have_masks_of_their_own_and_are_merged(tiny, edits):
    """Two edits a memory, four edits a merge: 1, 1, 2, then one memory, whose entries are those of TIES."""
    lm = tiny("gpt2")
    method = Wise(layer=1, shard=2, merge_every=4, **FEW)
    more = [*edits, Edit("d", "{} has never seen", "Iris Calder", "Athens"), Edit("e", "{} saw", "Greta Holm", "Rome")]
    sides, total = [], Patch()
    for edit in more:
        with patched(lm, total):
            total = total + method.edit(lm, [edit], total.memory)
        sides.append(total.memory.side)
    assert [len(side.deltas) for side in sides] == [1, 1, 2, 1, 2]
    used = [sides[0].deltas[0] != 0, sides[1].deltas[0] != 0, sides[2].deltas[1] != 0, sides[4].deltas[1] != 0]
    masks = [torch.rand(32, 64, generator=torch.Generator().manual_seed(seed)) < 0.2 for seed in (0, 0, 1, 2)]
    for which, mask in zip(used, masks, strict=True):
        assert not bool((which & ~mask).any())
        assert bool(which.any())
    assert torch.equal(sides[2].deltas[0], sides[1].deltas[0])
    # What was merged: the first memory, and the second after its second edit, which `merge_every=5` leaves as it is.
    plain = Wise(layer=1, shard=2, merge_every=400, **FEW)
    whole = plain.edit(lm, more[:4]).memory.side
    assert torch.allclose(sides[3].deltas[0], ties(whole.deltas, tensor([0.5, 0.5]), 0.53), atol=1e-5)
    assert float(sides[3].thresholds[0]) == pytest.approx(float(whole.thresholds.min()), rel=1e-4)
    assert sides[4].ids == ("a", "b", "c", "d", "e")


def test_a_later_merge_weighs_the_earlier_one_more(tiny, edits):
    """0.6 for what was merged before, 0.4 for all new memories together, where both changed an entry."""
    lm = tiny("gpt2")
    method = Wise(layer=1, shard=1, merge_every=2, mask_ratio=1.0, density=1.0, **FEW)
    third = method.edit(lm, edits).memory
    fourth = method.edit(lm, [Edit("d", "{} has never seen", "Iris Calder", "Athens")], third).memory.side.deltas
    unmerged = Wise(layer=1, shard=1, merge_every=400, mask_ratio=1.0, density=1.0, **FEW)
    state = unmerged.edit(lm, [Edit("d", "{} has never seen", "Iris Calder", "Athens")], third).memory.side.deltas
    assert len(third.side.deltas) == 2
    assert torch.allclose(fourth[0], ties(state, tensor([0.6, 0.2, 0.2]), 1.0), atol=1e-6)


def test_defect_5_the_history_of_edits_lives_in_what_an_edit_returns(tiny, edits):
    """Nothing of one model's or one user's edits reaches another's (pitfalls 4.2, defect 5: module globals)."""
    lm = tiny("gpt2")
    method = Wise(layer=1, shard=2, merge_every=2, **FEW)
    alone = method.edit(lm, edits[2:]).memory.side
    held = {name: repr(value) for name, value in vars(editors.wise).items() if not inspect.ismodule(value)}
    other = method.edit(lm, edits[:2])
    method.edit(tiny("llama"), edits[:2], None)
    again = method.edit(lm, edits[2:]).memory.side
    assert {name: repr(value) for name, value in vars(editors.wise).items() if not inspect.ismodule(value)} == held
    assert torch.equal(alone.deltas, again.deltas)
    assert alone.ids == again.ids == ("c",)
    assert other.memory.side.ids == ("a", "b")


def test_later_memories_replace_those_they_go_on_from_and_join_independent_ones(tiny, edits):
    lm = tiny("gpt2")
    method = Wise(layer=1, **FEW)
    a, b = (method.edit(lm, [edit]) for edit in edits[:2])
    grown = method.edit(lm, edits[1:2], a.memory)
    (name,) = a.hooks
    assert (a + grown).hooks[name] is grown.memory.side
    joined = (a + b).hooks[name]
    assert torch.equal(joined.deltas, torch.cat([a.memory.side.deltas, b.memory.side.deltas]))
    assert torch.equal(joined.thresholds, torch.cat([a.memory.side.thresholds, b.memory.side.thresholds]))


def test_another_seed_draws_another_mask_and_other_texts(tiny, edits):
    lm = tiny("gpt2")
    one, two = (Wise(layer=1, seed=seed, **FEW).edit(lm, edits[:1]).memory.side.deltas for seed in (1, 2))
    assert not torch.equal(one != 0, two != 0)
    sampled = Wise(layer=1, **{**FEW, "contexts": None}).edit(lm, edits[:1]).memory
    assert list(sampled.contexts) == Wise().notes(lm)["contexts"]


def test_a_cache_of_a_text_that_was_read_without_the_memories_is_refused():
    """Distances go on where the text before is the one that was read last."""
    side = SideMemories(("a",), torch.eye(2)[None], tensor([1.0]), "text", "relu")
    ids = tensor([[5, 6, 7]])

    def read(ids: Tensor, new: int) -> Tensor:
        hidden = torch.ones(1, new, 2)
        return side(hidden, Step(ids, torch.ones_like(ids), new, hidden))

    with pytest.raises(ModelError, match="a key-value cache of a text that was read without its memories"):
        read(ids, 1)
    read(ids[:, :2], 2)
    assert read(ids, 1).tolist() == [[[2.0, 2.0]]]
    with pytest.raises(ModelError, match="or take distance=token"):
        read(tensor([[5, 9, 7]]), 1)


def test_patches_of_two_distances_do_not_join():
    one = SideMemories(("a",), torch.zeros(1, 2, 3), tensor([1.0]))
    with pytest.raises(ModelError, match="two patches of wise route by distance=token and distance=text"):
        one.joined(SideMemories(("b",), torch.zeros(1, 2, 3), tensor([1.0]), "text", "silu"))


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ({}, None),
        ({"activation_function": "gelu_new"}, "gelu_new"),
        ({"afn": "gelu"}, "gelu"),
        ({"hidden_act": "no"}, None),
    ],
)
def test_where_a_model_names_no_activation_function_the_outputs_themselves_are_compared(
    fresh, monkeypatch, named, found
):
    lm = fresh("gpt2")
    monkeypatch.setattr(type(lm.model.config), "get_text_config", lambda *_, **__: SimpleNamespace(**named))
    assert Wise(layer=1, distance="text")._activation(lm) == found
    assert Wise(layer=1, distance="token")._activation(lm) is None
    Wise(layer=1, distance="text").require(lm)


def test_patch_files_of_earlier_versions_route_by_positions(tiny):
    lm, side = tiny("gpt2"), SideMemories(("a",), torch.ones(1, 2, 3), tensor([1.0]), "text", "gelu_new")
    again = SideMemories.restore(lm, side.settings(), side.tensors())
    assert (again.distance, again.activation) == ("text", "gelu_new")
    older = SideMemories.restore(lm, {"ids": ["a"]}, side.tensors())
    assert (older.distance, older.activation) == ("token", None)


def test_what_the_user_is_told(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match=r"'mask_ratio' is 1\.5, expected at least 0 and at most 1"):
        Wise(mask_ratio=1.5)
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        Wise().edit(lm, edits, 7)
    with pytest.raises(UsageError, match="the first template must be"):
        Wise(contexts=("So. {}",)).edit(lm, edits)
    with pytest.raises(
        NumericalError, match=r"edit a: the loss at transformer.h.2.mlp.c_proj became nan after \d+ step"
    ):
        Wise(edit_lr=1e30, norm_constraint=1e30, **FEW).edit(lm, edits[:1])
    plain = Edit("y", "No subject at all here, the city of", None, "Rome")
    assert Wise(**FEW).edit(lm, [plain]).memory.side.ids == ("y",)
