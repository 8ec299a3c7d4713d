"""MEMOIR: masks, routing, the update, what joins and what is refused, against numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from editors import memoir
from editors.memoir import Memoir, ResidualMemory, top_hash
from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, NumericalError, UsageError
from harness.methods.routing import RunningValues, unrelated_texts
from harness.methods.supervised_tokens import supervise_target
from harness.models.lm import LM
from harness.patches.patch import Step, patched

CONTEXTS = ("{}", "Nobody knows. {}")
FEW: dict[str, Any] = {"layer": 1, "n_iter": 4, "texts": 3, "contexts": CONTEXTS}


def step(columns: int, new: int | None = None, ids: Tensor | None = None) -> Step:
    ids = torch.arange(columns)[None] if ids is None else ids
    return Step(ids, torch.ones_like(ids), new or columns)


def side(masks: Tensor, memories: Tensor, **told: Any) -> ResidualMemory:
    """With a permutation and a background that change nothing."""
    width = masks.shape[1]
    own: dict[str, Any] = {"top_k": int(masks[0].sum()), "threshold": 0.5, "feature": "last", "routing": "text"}
    own |= {"owner": torch.zeros(len(masks), dtype=torch.long), "background": torch.zeros(width)}
    return ResidualMemory(("a",), memories, masks, permutation=torch.arange(width), **{**own, **told})


def added(memory: ResidualMemory, entered: Tensor) -> Tensor:
    """What is added to an output of zeros, ``[columns, d]``."""
    hidden = torch.zeros(1, len(entered), memory.memories.shape[1])
    return memory(hidden, replace(step(len(entered)), entered=entered[None]))[0]


# --------------------------------------------------------------------------------------------- formulas on numbers


def test_a_mask_is_where_the_permutation_sends_the_largest_entries():
    features = tensor([[0.1, -3.0, 2.0, 0.5], [4.0, 0.0, -1.0, 3.0]])
    # largest two: 1 and 2; 0 and 3.  The permutation sends 0, 1, 2, 3 to 2, 0, 3, 1.
    masks = top_hash(features, tensor([2, 0, 3, 1]), 2)
    assert masks.tolist() == [[True, False, False, True], [False, True, True, False]]


def test_the_stored_mask_that_overlaps_most_lets_through_where_that_is_enough():
    masks = tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    memory = side(masks, tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
    entered = tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 2.0, -3.0, 1.0], [2.0, 0.0, 1.0, 3.0], [0.5, 0.1, 0.2, 9.0]])
    # own masks: {0,1} -> first; {1,2} -> second; {0,3} -> half of the first; {0,3} likewise
    assert added(memory, entered)[:, 0].tolist() == pytest.approx([23.0, -280.0, 2.0, 1.5])
    strict = replace(memory, threshold=0.51)
    assert added(strict, entered)[:, 0].tolist() == pytest.approx([23.0, -280.0, 0.0, 0.0])


def test_a_position_is_routed_by_the_mean_of_the_text_up_to_it():
    masks = tensor([[1, 0, 0]]).bool()
    entered = tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0], [5.0, 0.0, 0.0]])
    # means: (1, 0, 0), (.5, 0, 1.5), (2, 0, 1): the largest entry is the first, the third, the first
    memory = side(masks, tensor([[[1.0, 1.0, 1.0]]]), feature="mean")
    assert added(memory, entered)[:, 0].tolist() == [1.0, 0.0, 5.0]
    less = replace(memory, feature="mean_decentered", background=tensor([1.8, 0.0, 0.0]))
    # less the background: (-.8, ..), (-1.3, 0, 1.5), (.2, 0, 1)
    assert added(less, entered)[:, 0].tolist() == [1.0, 0.0, 0.0]
    whole = replace(memory, routing="pass")
    assert added(whole, entered)[:, 0].tolist() == [1.0, 0.0, 5.0]
    assert added(whole, entered[:2])[:, 0].tolist() == [0.0, 0.0]
    last = replace(memory, routing="pass", feature="last")
    assert added(last, entered[:2])[:, 0].tolist() == [0.0, 0.0]
    assert added(last, entered)[:, 0].tolist() == [1.0, 0.0, 5.0]


def test_a_token_that_is_written_with_a_cache_is_routed_as_one_that_is_read():
    generator = torch.Generator().manual_seed(0)
    entered = torch.randn(2, 9, 8, generator=generator)
    hidden, ids = torch.zeros(2, 9, 3), torch.randint(0, 50, (2, 9), generator=generator)
    mask = tensor([[1] * 9, [0, 0, *[1] * 7]])
    masks = torch.rand(3, 8, generator=generator).topk(4).indices
    masks = torch.zeros(3, 8, dtype=torch.bool).scatter_(1, masks, True)
    memory = side(masks, torch.randn(1, 3, 8, generator=generator), feature="mean", threshold=0.7)
    whole = memory(hidden, Step(ids, mask, 9, entered))
    assert 0 < int((whole != 0).any(-1).sum()) < 16
    parts = [memory(hidden[:, :4], Step(ids[:, :4], mask[:, :4], 4, entered[:, :4]))]
    for at in range(4, 9):
        one = Step(ids[:, : at + 1], mask[:, : at + 1], 1, entered[:, at : at + 1])
        parts.append(memory(hidden[:, :1], one))
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-6)
    with pytest.raises(ModelError, match="memoir: a key-value cache of a text that was read without its memories"):
        memory(hidden[:, :1], Step(ids + 1, mask, 1, entered[:, :1]))


def test_running_sums_and_largest_values_leave_padding_out():
    values, mask = tensor([[[4.0], [1.0], [2.0]]]), tensor([[0, 1, 1]])
    for kind, found in (("sum", [0.0, 1.0, 3.0]), ("largest", [0.0, 1.0, 2.0])):
        running = RunningValues(kind, asker="x", cure="y")  # type: ignore[arg-type]
        assert running(values, Step(tensor([[0, 5, 6]]), mask, 3))[0, :, 0].tolist() == found


# ------------------------------------------------------------------------------------------------------ on a model


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("released", [False, True])
def test_an_update_is_clipped_gradient_descent_on_the_columns_of_the_mask(fresh, edits, family, released):
    """Two updates, by a plain loop: everywhere and with decay as released, else from the prompt's end on."""
    lm, layer, lr, clip = fresh(family), 1, 0.7, 0.05
    told = {"routing": "pass", "weight_decay": 0.1, "target_mean": "released"} if released else {"threshold": 1.0}
    made = Memoir(**{**FEW, "n_iter": 2, "edit_lr": lr, "clip": clip, "feature": "mean", "top_k": 9, **told})
    state = made.edit(lm, edits[:1]).memory
    rows = supervise_target(lm, edits[0], CONTEXTS)
    end, tokens = int(rows.column[0]), len(rows.token) // 2
    entered = entered_at(lm, layer, rows)
    mask = top_hash(entered[0, : end + 1].mean(0), torch.randperm(64, generator=seeded(0)), 9)
    assert torch.equal(state.side.masks, mask[None])
    where = torch.zeros(rows.batch.ids.shape, dtype=torch.bool)
    where[rows.row, rows.column] = True
    memory = torch.zeros(lm.arch.width, 64)
    for _ in range(2):
        memory.requires_grad_()
        acting = entered * mask * (where[..., None] | released)
        loss = edited_nll(lm, layer, rows, acting @ memory.T) * (tokens / (tokens + released))
        (gradient,) = torch.autograd.grad(loss, memory)
        gradient = gradient * min(1.0, clip / (float(gradient.norm()) + 1e-6))
        memory = (memory - lr * (gradient + 0.1 * released * memory)).detach()
    assert torch.allclose(state.side.memories[0], memory, atol=1e-6)
    # Of OPT some columns of a mask let nothing through, as its ReLU gives zero there.
    assert bool(memory.any()) and not bool(memory[:, ~mask].any())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entered_at(lm: LM, layer: int, rows: Any) -> Tensor:
    seen: list[Tensor] = []
    handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        lm.model(input_ids=rows.batch.ids, attention_mask=rows.batch.mask)
    handle.remove()
    return seen[0].reshape(*rows.batch.ids.shape, -1)


def edited_nll(lm: LM, layer: int, rows: Any, change: Tensor) -> Tensor:
    """The NLL with something added to what leaves the down-projection."""
    handle = lm.module(lm.arch.down_of(layer)).register_forward_hook(lambda m, a, out: out + change.reshape(out.shape))
    loss: Tensor = rows.nll(lm)
    handle.remove()
    return loss


def test_an_edit_holds_for_its_prompt_and_leaves_the_columns_of_others_alone(fresh, edits):
    """With masks of two edits that share few columns, the second changes none but its own."""
    lm = fresh("llama")
    made = Memoir(**{**FEW, "n_iter": 40, "top_k": 12})
    before = [float(supervise_target(lm, edit).nll(lm)) for edit in edits[:2]]
    first = made.edit(lm, edits[:1])
    with patched(lm, first):
        second = made.edit(lm, edits[1:2], first.memory)
    (_, two), memory = second.memory.side.masks, second.memory.side.memories[0]
    moved = (memory != first.memory.side.memories[0]).any(0)
    assert bool(moved.any())
    assert not bool((moved & ~two).any())
    assert torch.equal(memory[:, ~two], first.memory.side.memories[0][:, ~two])
    with patched(lm, second), torch.no_grad():
        after = [float(supervise_target(lm, edit).nll(lm)) for edit in edits[:2]]
    assert all(new < old - 0.3 for new, old in zip(after, before, strict=True))


def test_a_prompt_that_is_edited_again_keeps_its_mask(fresh, edits):
    lm = fresh("gpt2")
    made = Memoir(**FEW)
    again = replace(edits[0], id="again", target="Prague")
    found = made.edit(lm, [edits[0], again, edits[1]]).memory.side
    assert (found.ids, len(found.masks)) == ((edits[0].id, "again", edits[1].id), 2)


def test_each_token_of_a_long_target_has_a_mask_of_its_own_where_the_last_token_makes_it(fresh):
    lm = fresh("gpt2")
    edit = Edit("x", "{} was born in", "Ada Velmont", "the old town of Rome")
    count = len(supervise_target(lm, edit).token)
    assert count > 2
    found = {
        (feature, routing): len(Memoir(**FEW, feature=feature, routing=routing).edit(lm, [edit]).memory.side.masks)
        for feature in ("last", "mean_decentered")
        for routing in ("text", "pass")
    }
    assert found == {("last", "text"): count, ("last", "pass"): 1} | {
        ("mean_decentered", routing): 1 for routing in ("text", "pass")
    }


def test_the_background_is_the_mean_feature_of_unrelated_text(fresh, edits):
    lm = fresh("gpt2")
    texts = unrelated_texts(lm, 3)
    means = []
    for text in texts:
        batch = lm.batch([lm.encode(text)[:16]])
        rows = replace(supervise_target(lm, edits[0]), batch=batch)
        means.append(entered_at(lm, 1, rows)[0].mean(0))
    found = Memoir(**FEW).edit(lm, edits[:1]).memory.side
    assert torch.allclose(found.background, torch.stack(means).mean(0), atol=1e-6)
    assert not bool(Memoir(**FEW, feature="mean").edit(lm, edits[:1]).memory.side.background.any())


def test_later_memories_replace_those_they_go_on_from_and_independent_ones_answer_each_for_itself(fresh, edits):
    lm = fresh("gpt2")
    made = Memoir(**{**FEW, "n_iter": 20})
    a, b = made.edit_each(lm, edits[:2])
    grown = made.edit(lm, edits[1:2], a.memory)
    (name,) = a.hooks
    assert (a + grown).hooks[name] is grown.memory.side
    joined = (a + b).hooks[name]
    assert joined.owner.tolist() == [0, 1]
    for edit, alone in zip(edits[:2], (a, b), strict=True):
        rows = supervise_target(lm, edit)
        entered, hidden = entered_at(lm, 1, rows), torch.zeros(*rows.batch.ids.shape, lm.arch.width)
        now = Step(rows.batch.ids, rows.batch.mask, hidden.shape[1], entered)
        one, both = (side(hidden, now)[0, int(rows.column[0])] for side in (alone.hooks[name], joined))
        assert bool(one.any())
        assert torch.allclose(one, both, atol=1e-6)
    with pytest.raises(ModelError, match="two patches of memoir make masks in different ways"):
        a + Memoir(**{**FEW, "seed": 1}).edit(lm, edits[1:2])
    with pytest.raises(ModelError, match="two patches of memoir make masks in different ways"):
        a + Memoir(**{**FEW, "top_k": 5}).edit(lm, edits[1:2])


def test_it_ends_once_a_loss_is_small_and_no_longer_falls():
    given = [3.0, 0.5, 0.02, 0.019, 0.01895, 0.018]
    found = [memoir._settled(given[:count]) for count in range(1, len(given) + 1)]
    assert found == [False, False, False, False, True, False]
    assert not memoir._settled([0.03, 0.03])


def test_what_the_user_is_told(fresh, edits, monkeypatch):
    lm = fresh("gpt2")
    with pytest.raises(UsageError, match=r"'threshold' is 1\.5, expected at least 0 and at most 1"):
        Memoir(threshold=1.5)
    with pytest.raises(
        ModelError, match=r"memoir: top_k is 65, but 'transformer\.h\.1\.mlp\.c_proj' .* has 64 columns"
    ):
        Memoir(**FEW, top_k=65).require(lm)
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        Memoir(**FEW).edit(lm, edits, 7)
    with pytest.raises(UsageError, match="the first template must be"):
        Memoir(**{**FEW, "contexts": ("So. {}",)}).edit(lm, edits)
    with pytest.raises(NumericalError, match=r"edit a: the loss became \w+ after \d+ steps in training the memory"):
        Memoir(**{**FEW, "edit_lr": 1e38, "clip": 1e38, "n_iter": 20}).edit(lm, edits[:1])
    monkeypatch.setattr(LM, "documents", lambda self: iter(()))
    with pytest.raises(DataError, match="holds no text; give unrelated text with --text FILE"):
        Memoir(**FEW).edit(lm, edits)
