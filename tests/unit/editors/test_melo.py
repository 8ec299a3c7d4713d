"""MELO: its clusters and routing by hand, blocks by hand, training against a plain loop, what the user is told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import tensor

from editors.melo import Blocks, Cluster, Clusters, Melo
from harness.editing.edit import Edit
from harness.errors import ModelError, UsageError
from harness.methods.codebook import GAP
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

FEW: dict[str, Any] = {"n_iter": 8, "edit_lr": 1e-2, "eps": 1.0, "scale": 20.0}


def book(*edits: tuple[str, float, int], eps: float = 2.0, routing: Any = "onward") -> Clusters:
    """Edits with a target, a query on a line, and a block."""
    made = replace(Clusters.empty(1, 1, eps=eps, device=torch.device("cpu")), routing=routing)
    for i, (label, query, block) in enumerate(edits):
        made = made.added(str(i), label=label, query=tensor([query]), value=tensor([float(block)]))
    return made


def clusters(made: Clusters) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    return [(c.members, c.points, round(c.radius, 3)) for c in made.cells if isinstance(c, Cluster)]


def test_clusters_grow_about_their_mean_and_halve_where_targets_differ():
    """By hand: 0 and 3 join (mean 1.5), 10 is new, 5.5 of another target splits the first at distance 4."""
    made = book(("a", 0.0, 0), ("a", 3.0, 1), ("b", 10.0, 2))
    assert clusters(made) == [((0, 1), (0, 1), 2.0), ((2,), (2,), 2.0)]
    assert made.keys[:, 0].tolist() == [1.5, 10.0]
    wide = book(("a", 0.0, 0), ("a", 4.0, 1), ("a", 6.0, 2), eps=2.5)
    assert clusters(wide) == [((0, 1, 2), (0, 1, 2), 3.333)]
    split = made.added("s", label="c", query=tensor([5.4]), value=tensor([3.0]))
    assert clusters(split)[0] == ((0, 1), (0, 1), round(3.9 / 2 - GAP, 3))
    assert clusters(split)[2] == ((3,), (3,), round(3.9 / 2 + GAP, 3))
    forgets = made.added("s", label="c", query=tensor([3.5]), value=tensor([3.0]))
    assert clusters(forgets)[0][:2] == ((0, 1), ())
    assert forgets.chosen(tensor([[1.5], [3.0], [10.0]])).tolist() == [-1, 3, 2]
    assert split.without("1").cells[0] == Cluster((0,), 2.0, (0,), (0,))


def test_the_block_is_that_of_the_nearest_edit_in_the_nearest_cluster():
    made = book(("a", 0.0, 4), ("a", 3.0, 7), ("b", 10.0, 2))
    queries = tensor([[0.2], [1.4], [1.6], [3.5], [3.6], [8.1], [7.9]])
    assert made.chosen(queries).tolist() == [4, 4, 7, 7, -1, 2, -1]
    assert made.chosen(queries[None]).shape == (1, 7)


def test_two_targets_of_one_query_the_later_one_stands():
    made = book(("a", 0.0, 0), ("b", 0.0, 1))
    assert made.chosen(tensor([[0.0]])).tolist() == [1]


def passing(made: Clusters, queries: list[float], mask: list[int] | None = None) -> list[int]:
    hidden, ids = tensor(queries)[None, :, None], torch.arange(len(queries))[None]
    step = Step(ids, tensor([mask or [1] * len(queries)]), len(queries), hidden)
    assert torch.equal(made(hidden, step), hidden)
    return step.said["melo"][0].tolist()


def test_a_block_stays_on_until_another_is_near():
    """In pieces, as with a key-value cache, and behind padding, too; with one decision for a pass its last token's."""
    edits = (("a", 0.0, 0), ("b", 10.0, 3))
    assert passing(book(*edits), [50.0, 0.1, 50.0, 60.0, 10.0, 20.0]) == [-1, 0, 0, 0, 3, 3]
    assert passing(book(*edits), [0.0, 50.0, 10.0, 70.0], [0, 1, 1, 1]) == [-1, -1, 3, 3]
    made, found = book(*edits), []
    ids, queries = torch.arange(5)[None], tensor([50.0, 0.1, 50.0, 10.0, 7.0])[None, :, None]
    for begin, end in ((0, 2), (2, 3), (3, 4), (4, 5)):
        step = Step(ids[:, :end], torch.ones(1, end), end - begin)
        made(queries[:, begin:end], step)
        found += step.said["melo"][0].tolist()
    assert found == [-1, 0, 0, 3, 3]
    with pytest.raises(ModelError, match="melo: a key-value cache of a text that was read without its memories"):
        made(queries[:, :1], Step(ids[:, :3] + 1, torch.ones(1, 3), 1))
    assert passing(book(*edits, routing="pass"), [0.1, 50.0, 10.0]) == [3, 3, 3]
    assert passing(book(*edits, routing="pass"), [0.1, 50.0, 10.0], [1, 1, 0]) == [-1, -1, -1]


def test_a_block_adds_its_scaled_product_where_it_is_on():
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 3, 2, generator=draw), torch.randn(2, 2, 4, generator=draw)
    entered, hidden = torch.randn(1, 3, 3, generator=draw), torch.randn(1, 3, 4, generator=draw)
    blocks = Blocks(("a", "b"), down, up, 5.0)
    step = Step(tensor([[1, 2, 3]]), torch.ones(1, 3), 3, entered)
    assert blocks(hidden, step) is hidden
    step.said["melo"] = tensor([[-1, 1, 0]])
    wanted = [hidden[0, 0], *(hidden[0, t] + 5 * up[b].T @ (down[b].T @ entered[0, t]) for t, b in ((1, 1), (2, 0)))]
    assert torch.allclose(blocks(hidden, step)[0], torch.stack(wanted), atol=1e-5)


def nll(lm: LM, edit: Edit, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> torch.Tensor:
    """The mean NLL of a target in a plain pass with a block on from the prompt's last token."""
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    end, handles = len(prompt) - 1, []
    for name, (down, up) in factors.items():

        def add(_module: Any, args: Any, output: Any, down: Any = down, up: Any = up) -> Any:
            added = scale * args[0] @ down @ up
            return output + added * (torch.arange(output.shape[1]) >= end)[:, None]

        handles.append(lm.module(name).register_forward_hook(add))
    logits = lm.model(input_ids=tensor([prompt + target[:-1]])).logits[0, end:]
    for handle in handles:
        handle.remove()
    return -logits.log_softmax(-1)[torch.arange(len(target)), tensor(target)].mean()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_block_is_trained_by_adam_whose_rate_halves(fresh, edits, family):
    """Twenty-two updates of both factors of each matrix, the learning rate halved after twenty."""
    lm = fresh(family)
    method = Melo(n_iter=22, edit_lr=5e-3, scale=10.0, layer=0, layers=(1, 2))
    found = method.edit(lm, edits[1:2]).memory
    begun = method._begun(lm, torch.zeros(1, found.book.queries.shape[1]))
    free = method._first(begun)
    bound = 1 / math.sqrt(10.0 * 2)
    assert all(0.5 * bound < float(down.detach().abs().max()) <= bound for down, _ in free.values())
    adam = torch.optim.Adam([part for pair in free.values() for part in pair], lr=5e-3)
    losses = []
    for i in range(22):
        adam.param_groups[0]["lr"] = 5e-3 if i < 20 else 2.5e-3
        loss = nll(lm, edits[1], free, 10.0)
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < 0.7 * losses[0]
    assert len(free) == (2 if family == "gpt2" else 4)
    for name, (down, up) in free.items():
        assert torch.allclose(found.blocks[name].down[0], down.detach(), atol=2e-3), name
        assert torch.allclose(found.blocks[name].up[0], up.detach(), atol=2e-3), name


def test_edits_share_blocks_and_a_later_operation_adds_its_own(tiny, edits):
    lm, method = tiny("gpt2"), Melo(**FEW, edits_per_block=2)
    first = method.edit(lm, edits)
    assert first.memory.book.values[:, 0].tolist() == [0, 0, 1]
    with patched(lm, first):
        second = method.edit(lm, [Edit("d", "The home of Rosa Delgado is", None, "Paris")], first.memory)
    held = second.memory.blocks
    assert second.memory.book.values[:, 0].tolist() == [0, 0, 1, 2]
    assert all(torch.equal(held[n].up[:2], first.memory.blocks[n].up) and len(held[n].up) == 3 for n in held)
    joined = first + second
    assert all(joined.hooks[name] is second.hooks[name] for name in joined.hooks)
    assert method.edit(lm, [], first.memory).memory is first.memory


def test_independent_patches_join_with_blocks_of_their_own(tiny, edits):
    lm, method = tiny("gpt2"), Melo(**FEW)
    one, other = method.edit(lm, edits[:1]), method.edit(lm, edits[1:2])
    both = one + other
    read = {name: both.hooks[name] for name in both.hooks}
    made = next(hook for hook in read.values() if isinstance(hook, Clusters))
    assert made.values[:, 0].tolist() == [0, 1]
    for patch, edit in ((one, edits[0]), (other, edits[1])):
        ids = tensor([lm.encode(edit.text)])
        with torch.no_grad():
            with patched(lm, patch):
                alone = lm.model(input_ids=ids).logits
            with patched(lm, both):
                assert torch.allclose(lm.model(input_ids=ids).logits, alone, atol=1e-5)
    with pytest.raises(ModelError, match="route in different ways"):
        one + method.__class__(**{**FEW, "routing": "pass"}).edit(lm, edits[1:2])
    with pytest.raises(ModelError, match="blocks of different kinds"):
        Patch(hooks={"m": Blocks(("a",), torch.zeros(1, 3, 2), torch.zeros(1, 2, 3), 1.0)}) + Patch(
            hooks={"m": Blocks(("b",), torch.zeros(1, 3, 2), torch.zeros(1, 2, 3), 2.0)}
        )


def test_what_the_user_is_told(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="layers names 1, which is not above 1, that of the query"):
        Melo(layer=1, layers=(1, 2)).require(lm)
    for others in ({}, {"modules": ("c_fc",)}, {"layers": (2,)}):
        with pytest.raises(UsageError, match=r"^melo: layer is 2, the last of tiny-gpt2, .* give a lower one$"):
            Melo(layer=2, **others).require(lm)
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        Melo(**FEW).edit(lm, edits, 7)
    with pytest.raises(UsageError, match=r"'modules' names 'c_fx', which is no matrix of a layer .did you mean c_fc"):
        Melo(modules=("c_fx",)).require(lm)
    memory = Melo(**FEW).edit(lm, edits[:1]).memory
    with pytest.raises(UsageError, match="the memory is of another model or other layers"):
        Melo(**{**FEW, "layer": 0, "layers": (1,)}).edit(lm, edits[1:], memory)
