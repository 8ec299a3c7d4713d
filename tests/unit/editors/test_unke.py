"""UnKE: the training of a block against a plain loop, what stays, shares of several layers, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import unke
from editors.unke import Retained, Unke
from harness.editing.edit import Edit
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods import block_training
from harness.methods.block_training import BlockPass, BlockTraining, record_pass, train_block
from harness.models.lm import LM
from harness.patches.patch import patched

FEW: dict[str, Any] = {"layers": (1,), "v_steps": 5, "steps": 3, "lr": 1e-3, "texts": 2}
PLAIN = Edit("plain", "The capital of the north is", None, "Rome")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("mean", ["tokens", "released"])
def test_a_block_is_trained_by_adamw_on_the_mean_squared_error(fresh, family, mean):
    """Three updates of a copy of the block, norms without decay; rows of unequal length."""
    lm = fresh(family)
    batch = lm.batch([lm.encode("Ada Velmont was born in"), lm.encode("The name")])
    seen = record_pass(lm, 1, batch)
    target = seen.output + torch.randn(seen.output.shape, generator=torch.Generator().manual_seed(0))
    settings = BlockTraining(3, 1e-2, 0.3, mean)
    found = train_block(lm, 1, [(seen, target), (seen, seen.output)], settings=settings, edits=["a"])
    block = copy.deepcopy(lm.module(lm.arch.block(1))).requires_grad_()
    names = dict(block.named_parameters())
    norms = [name for name in names if "ln_" in name or "layernorm" in name]
    assert norms
    rest = [p for name, p in names.items() if name not in norms]
    adam = torch.optim.AdamW(
        [{"params": [names[name] for name in norms], "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.3}], 1e-2
    )
    real, losses = batch.mask.bool(), []
    for _ in range(3):
        out = block(*seen.args, **seen.kwargs)
        out = out if isinstance(out, Tensor) else out[0]
        squares = [(out - target) ** 2, (out - seen.output) ** 2]
        loss = sum((one.mean() if mean == "released" else one[real].mean()) for one in squares)
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert list(found.losses) == pytest.approx(losses, rel=1e-5)
    for name, parameter in names.items():
        whole = f"{lm.arch.block(1)}.{name}"
        change = (parameter - dict(lm.model.named_parameters())[whole]).detach()
        own = found.deltas[whole].dense()
        if name == "attn.c_attn.bias":
            continue  # of a key's bias no output depends, and Adam turns what rounding leaves into whole steps
        assert torch.allclose(own, change.T if lm.transposed(whole) else change, atol=2e-4), name
    assert set(found.deltas) == {f"{lm.arch.block(1)}.{name}" for name in names}


def last_hidden(lm: LM, layer: int, edits: list[Edit]) -> Tensor:
    batch = lm.batch([lm.encode(edit.text) for edit in edits])
    return record_pass(lm, layer, batch).output[torch.arange(len(edits)), batch.lengths - 1]


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_value_stands_at_the_prompts_last_token_and_other_tokens_stay(fresh, edits, monkeypatch, layers):
    """Of two layers the first takes half of what is missing, and the second what then is."""
    lm, kept = fresh("llama"), []
    optimise, train = unke.optimise, block_training.train_block
    monkeypatch.setattr(unke, "optimise", lambda *a, **k: kept.append(optimise(*a, **k)) or kept[-1])
    missing: list[Tensor] = []

    def trained(lm: LM, layer: int, wanted: Any, **said: Any) -> Any:
        moved = wanted[1][1] - wanted[1][0].output
        assert int((moved.norm(dim=-1) > 1e-6).sum()) == len(edits)
        missing.append(moved.sum(1))
        assert torch.equal(wanted[0][1], wanted[0][0].output)
        return train(lm, layer, wanted, **said)

    monkeypatch.setattr(block_training, "train_block", trained)
    before = last_hidden(lm, 1, edits)
    patch = Unke(**{**FEW, "layers": layers, "steps": 60, "lr": 5e-3}).edit(lm, edits)
    value = kept[0].value
    assert torch.allclose(missing[0], (value - before) / len(layers), atol=1e-5)
    with patched(lm, patch):
        after = last_hidden(lm, 1, edits)
    assert float((after - value).norm()) < 0.5 * float((before - value).norm())
    assert {name.split(".")[2] for name in patch.weights} == {str(layer) for layer in layers}


def test_each_operation_draws_other_texts_and_an_edit_needs_no_subject(fresh, monkeypatch):
    lm, rows = fresh("gpt2"), []
    draw = Unke._kept
    monkeypatch.setattr(Unke, "_kept", lambda *given: rows.append(draw(*given)) or rows[-1])
    method = Unke(**FEW)
    first = method.edit(lm, [PLAIN])
    again = method.edit(lm, [PLAIN])
    second = method.edit(lm, [PLAIN], first.memory)
    assert isinstance(second.memory, Retained)
    assert (first.memory.operations, second.memory.operations) == (1, 2)
    assert rows[0].ids.tolist() == rows[1].ids.tolist() != rows[2].ids.tolist()
    assert all(torch.equal(first.weights[n].dense(), again.weights[n].dense()) for n in first.weights)
    assert method.edit(lm, [], first.memory).memory is first.memory


def test_what_the_user_is_told(fresh, monkeypatch):
    lm = fresh("gpt2")
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        Unke(**FEW).edit(lm, [PLAIN], 7)
    with pytest.raises(NumericalError, match=r"edits plain: the error of 'transformer\.h\.1' became nan after \d"):
        Unke(**{**FEW, "lr": 1e30}).edit(lm, [PLAIN])
    with pytest.raises(ModelError, match="layer 9"):
        Unke(**{**FEW, "layers": (9,)}).require(lm)
    wide = torch.zeros(1, 1, 7)
    monkeypatch.setattr(block_training, "record_pass", lambda *_: BlockPass((), {}, wide, wide))
    with pytest.raises(
        ModelError, match=r"'transformer\.h\.1' hands on 7 numbers a token, where its matrices write 32"
    ):
        Unke(**FEW).require(lm)
