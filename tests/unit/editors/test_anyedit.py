"""AnyEdit: with one chunk the method that writes, chunks given the earlier ones, what is kept, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.anyedit import AnyEdit
from editors.memit import Memit
from editors.unke import Unke
from harness.editing.edit import Edit
from harness.errors import DataError, UsageError
from harness.methods import chunks
from harness.methods.chunks import ChunkedTarget, chunk_values, cut_target
from harness.methods.second_moments import moments
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

VALUE: dict[str, Any] = {"v_steps": 5, "v_weight_decay": 1e-3, "clamp": 4.0}
WHOLE = {**VALUE, "window": 100, "v_threshold": 0.0}
LONG = Edit("long", "Ada Velmont was born in", None, "Rome and lives in Oslo, Norway")


def changes(patch: Patch) -> dict[str, torch.Tensor]:
    return {name: delta.dense() for name, delta in patch.weights.items()}


def same(first: Patch, second: Patch) -> bool:
    ours, theirs = changes(first), changes(second)
    assert ours.keys() == theirs.keys()
    assert all(float(change.norm()) > 1e-4 for change in theirs.values())
    return all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_chunk_written_by_memit_is_memit(tiny, edits, family):
    """On the bare prompt, at its last token, without a KL term."""
    lm, shared = tiny(family), {"layers": (0, 1), "lam": 1e-2, "cov_tokens": 2000}
    plain = Memit(**shared, **VALUE, contexts=("{}",), fact_token="last", kl_factor=0.0, v_stop="never")
    method = AnyEdit(**shared, **WHOLE, rest="none")
    assert same(method.edit(lm, edits), plain.edit(lm, edits))
    assert not same(replace(method, rest="all").edit(lm, edits), plain.edit(lm, edits))
    assert not same(replace(method, window=1).edit(lm, edits), plain.edit(lm, edits))


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_one_chunk_written_by_unke_is_unke(tiny, edits, layers):
    lm, shared = tiny("llama"), {"steps": 3, "lr": 1e-3, "texts": 2}
    plain = Unke(**shared, **VALUE, layers=layers)
    method = AnyEdit(**shared, **WHOLE, blocks=layers, write="unke", rest="before")
    assert same(method.edit(lm, edits), plain.edit(lm, edits))
    assert not same(replace(method, rest="all").edit(lm, edits), plain.edit(lm, edits))


@pytest.mark.parametrize(
    ("window", "overlap", "cuts"),
    [
        (100, 0, [(0, 8)]),
        (3, 0, [(0, 3), (3, 6), (6, 8)]),
        (4, 2, [(0, 4), (2, 6), (4, 8)]),
        (5, 2, [(0, 5), (3, 8)]),
        (5, 4, [(0, 5), (1, 6), (2, 7), (3, 8)]),
        (8, 7, [(0, 8)]),
    ],
)
def test_where_a_target_is_cut(tiny, window, overlap, cuts):
    """No chunk without a token that is new; a value stands at the last token in front of its chunk."""
    lm = tiny("gpt2")
    edit = Edit("x", "The home of Hugo Lantern is", None, "Oslo, Norway")
    target = cut_target(lm, edit, window=window, overlap=overlap)
    assert target.ids == tuple(lm.encode(f"{edit.text} {edit.target}"))
    assert len(target.target) == 8
    assert list(target.cuts) == cuts
    assert [target.ids[at + 1] for at in target.places] == [target.target[begin] for begin, _ in cuts]


def nll_with(lm: LM, target: ChunkedTarget, added: torch.Tensor, block: str, chunk: int) -> float:
    """The mean NLL of one chunk in a pass over all tokens, changes added to what leaves a block."""

    def add(hidden: torch.Tensor, _step: Step) -> torch.Tensor:
        return hidden.index_put((torch.tensor(0), torch.tensor(target.places)), added, accumulate=True)

    with patched(lm, Patch(hooks={block: add})), torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([target.ids])).logits[0].log_softmax(-1)
    begin, end = target.cuts[chunk]
    at = len(target.prompt) - 1 + begin
    said = torch.tensor(target.target[begin:end])
    return -float(log_p[at : at + end - begin].gather(1, said[:, None]).mean())


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_each_chunk_is_optimised_with_the_earlier_ones_in_place(tiny, edits, family, monkeypatch):
    """Its reported loss is that of a plain pass with the changes so far; several edits do not mix."""
    lm, kept = tiny(family), []
    method = AnyEdit(layers=(1,), window=2, v_steps=6, v_weight_decay=0.0, v_threshold=0.0)
    # One prompt and what is said behind it is what another's begins with.
    nested = Edit("nested", "Ada Velmont was born in Rome and", None, "lives in Paris, Norway")
    targets = [cut_target(lm, edit, window=2) for edit in (LONG, *edits, nested)]
    optimise = chunks.optimise_rows
    monkeypatch.setattr(chunks, "optimise_rows", lambda *a, **k: kept.append(optimise(*a, **k)) or kept[-1])
    values = chunk_values(lm, targets, objective=method.objective(lm))
    block = lm.arch.block(1)
    first, deltas = targets[0], torch.stack([found.delta[0] for found in kept])
    assert len(first.cuts) == len(deltas) > 2
    for chunk in range(len(first.cuts)):
        added = deltas * (torch.arange(len(deltas)) <= chunk)[:, None]
        assert nll_with(lm, first, added, block, chunk) == pytest.approx(float(kept[chunk].losses[0][-1, 0]), abs=1e-4)
    for target, value in zip(targets, values, strict=True):
        (alone,) = chunk_values(lm, [target], objective=method.objective(lm))
        assert torch.allclose(value, alone, atol=2e-4), target.edit.id


@pytest.mark.parametrize("rest", ["all", "before", "none"])
def test_what_is_written_is_least_squares_over_all_tokens_that_count(tiny, rest):
    """``R K^T (lam C + K K^T + P P^T)^-1``, inverted in full; ``P`` are the keys of the rest."""
    lm, edits = tiny("gpt2"), [LONG, Edit("b", "The home of Hugo Lantern is", None, "Oslo")]
    method = AnyEdit(layers=(1,), window=2, v_steps=3, lam=0.5, cov_tokens=2000, rest=rest)
    targets = [cut_target(lm, edit, window=2) for edit in edits]
    values = chunk_values(lm, targets, objective=method.objective(lm))
    down, block = lm.arch.writer_of(1), lm.arch.block(1)
    keys, kept, residuals = [], [], []
    for target, value in zip(targets, values, strict=True):
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            lm.module(down).register_forward_hook(lambda _m, a, _o, seen=seen: seen.update(key=a[0][0])),
            lm.module(block).register_forward_hook(
                lambda _m, _a, o, seen=seen: seen.update(state=(o if isinstance(o, torch.Tensor) else o[0])[0])
            ),
        ]
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([target.ids]))
        for hook in hooks:
            hook.remove()
        last = max(target.places)
        for i in range(len(target.ids)):
            if i in target.places:
                keys.append(seen["key"][i])
                residuals.append(value[target.places.index(i)] - seen["state"][i])
            elif rest == "all" or (rest == "before" and i < last):
                kept.append(seen["key"][i])
    k, r = torch.stack(keys).double(), torch.stack(residuals).double()
    p = torch.stack(kept).double() if kept else k[:0]
    moment = moments(lm, [1], tokens=2000)[1]
    wanted = r.T @ k @ torch.linalg.inv(0.5 * moment.matrix.double() + k.T @ k + p.T @ p)
    found = method.edit(lm, edits).weights[lm.down(1)]
    assert found.left.shape[1] == len(keys)
    assert torch.allclose(found.dense().double(), wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-6)


@pytest.mark.parametrize("write", ["memit", "unke"])
def test_edits_side_by_side_are_those_one_by_one(tiny, edits, write):
    lm = tiny("llama")
    method = AnyEdit(layers=(0, 1), window=2, v_steps=3, cov_tokens=2000, write=write, steps=2, texts=2, lam=1.0)
    for one, edit in zip(method.edit_each(lm, [LONG, *edits]), [LONG, *edits], strict=True):
        assert same(one, method.edit(lm, [edit]))
    assert method.edit_each(lm, []) == []


def test_a_second_operation_goes_on_from_the_memory(tiny, edits):
    lm = tiny("gpt2")
    for write in ("memit", "unke"):
        method = AnyEdit(layers=(1,), window=2, v_steps=3, cov_tokens=2000, write=write, steps=2, texts=2)
        first = method.edit(lm, edits[:1])
        with patched(lm, first):
            second = method.edit(lm, edits[1:], first.memory)
        assert type(second.memory) is type(first.memory)
        assert method.edit(lm, [], first.memory).memory is first.memory
        with pytest.raises(UsageError, match="memory is a int of another editor"):
            method.edit(lm, edits, 7)


def test_what_the_user_is_told(tiny):
    with pytest.raises(UsageError, match="anyedit: overlap is 4, and a chunk has 4 tokens"):
        AnyEdit(window=4, overlap=4)
    lm = tiny("gpt2")
    endless = Edit("endless", "Ada Velmont was born in", None, "Rome and " * lm.context + "Oslo")
    with pytest.raises(DataError, match=rf"edit endless: \d+ tokens with its target, but tiny-gpt2 takes {lm.context}"):
        AnyEdit().edit(lm, [endless])
