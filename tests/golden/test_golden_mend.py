"""MEND against the authors' code (eric-mitchell/mend at e04fdb9) with a random network, on a tiny GPT-2, in float32.

Their step sizes are the negative of ours.  A batch is one mean over the tokens of both edits there:
``token_mean="batch"`` here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors.mend import Mend, _backward, _factors
from harness.methods.descent import tokenise
from harness.methods.hypernetwork import Hypernetwork
from harness.patches.patch import patched

FOLDER = "F_mend_gpt2"
REL = 1e-4
SHAPES = {(128, 32): "c_proj", (32, 128): "c_fc"}


def network(golden: Any) -> dict[str, Tensor]:
    """Their network under our names."""
    said, given = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/inputs.safetensors")
    made = {f"alpha/{n}": -rate for n, rate in zip(said["edit_lr_order"], given["edit_lrs"], strict=True)}
    for shape, part in SHAPES.items():
        ours, names = f"{shape[0]}x{shape[1]}", [name for name in said["inner_params"] if part in name]
        for i in range(2):
            stem = f"{shape}.mlp.layers.{i}"
            made |= {f"{ours}/{i}/U": given[f"{stem}.u"], f"{ours}/{i}/V": given[f"{stem}.v"]}
            made[f"{ours}/{i}/bias"] = given[f"{stem}.bias"]
            for row, name in enumerate(names):
                made[f"{ours}/{i}/scale/{name}"] = given[f"{stem}.mode_scale.weight"][row]
                made[f"{ours}/{i}/shift/{name}"] = given[f"{stem}.mode_shift.weight"][row]
        mean, spread = (torch.cat([given[f"{shape}.{x}_{of}"] for x in "uv"]) for of in ("mean", "std"))
        count = int(given[f"{shape}.k"])
        made[f"{ours}/statistics/mean"], made[f"{ours}/statistics/count"] = mean, torch.tensor(count)
        made[f"{ours}/statistics/squares"] = spread.double().square() * (count - 1)
    return made


def names(golden: Any) -> list[str]:
    return list(golden.json(f"{FOLDER}/inputs.json")["inner_params"])


@pytest.mark.parametrize("batch", ["single", "batch_of_two"])
def test_what_the_network_makes_of_their_gradients(golden, close, batch):
    theirs, net = golden.tensors(f"{FOLDER}/expected.safetensors"), Hypernetwork(network(golden), 2)
    for name in names(golden):
        u, v = (theirs[f"{batch}/{name}/{part}"].flatten(0, 1) for part in ("x", "grad_out"))
        there = u.ne(0).any(1) & v.ne(0).any(1)
        x, delta = net(name, u[there], v[there])
        close(x, theirs[f"{batch}/{name}/transformed_x"], REL, f"{name}, u")
        close(delta, theirs[f"{batch}/{name}/transformed_delta"], REL, f"{name}, v")
        left, right = _factors(net, {name: (u[there], v[there])})[name]
        close((left @ right).T, theirs[f"{batch}/{name}/weight_update"], REL, f"{name}, change")


@pytest.mark.parametrize("batch", ["single", "batch_of_two"])
def test_gradients(golden, close, batch):
    """What enters each matrix, and the gradient at what leaves it: theirs of a mean over the tokens of the batch."""
    told, theirs = golden.json(f"{FOLDER}/expected.json")[batch], golden.tensors(f"{FOLDER}/expected.safetensors")
    lm, edits = golden.lm("tiny-gpt2", "fp32"), list(golden.edits(told["case_ids"]).values())
    said = tokenise(lm, edits)
    asked = [sum(label != -100 for label in row) for row in told["labels"]]
    assert [len(answer.target) for answer in said] == asked
    for i, pairs in enumerate(_backward(lm, said, names(golden))):
        for name, (u, v) in pairs.items():
            x, slope = (theirs[f"{batch}/{name}/{part}"][i] for part in ("x", "grad_out"))
            there = x.ne(0).any(1) & slope.ne(0).any(1)
            close(u, x[there], REL, f"{name}, what enters")
            close(v * asked[i] / sum(asked), slope[there], REL, f"{name}, gradient")


@pytest.mark.parametrize("batch", ["single", "batch_of_two"])
def test_the_change(golden, close, batch):
    told, theirs = golden.json(f"{FOLDER}/expected.json")[batch], golden.tensors(f"{FOLDER}/expected.safetensors")
    lm, edits = golden.lm("tiny-gpt2", "fp32"), list(golden.edits(told["case_ids"]).values())
    mend = Mend(layers=(2, 3), rank=12, learned=network(golden), token_mean="batch")
    patch = mend.edit(lm, edits)
    assert patch.weights.keys() == set(names(golden))
    for name in names(golden):
        close(patch.weights[name].dense().T, theirs[f"{batch}/{name}/weight_update"], REL, name)
    row = torch.tensor(told["input_ids"])
    last = torch.tensor([max(i for i, label in enumerate(labels) if label != -100) for labels in told["labels"]])
    with patched(lm, patch), torch.no_grad():
        logits = lm.model(row).logits
    for i, end in enumerate(last.tolist()):
        close(logits[i, : end + 1], theirs[f"{batch}/post_logits"][i, : end + 1], REL, "logits after the edit")


def test_a_mean_over_the_batch_is_another_change_of_several_edits_and_the_same_of_one(golden):
    told, lm = golden.json(f"{FOLDER}/expected.json"), golden.lm("tiny-gpt2", "fp32")
    pair = list(golden.edits(told["batch_of_two"]["case_ids"]).values())
    own, shared = (Mend(layers=(2, 3), rank=12, learned=network(golden), token_mean=m) for m in ("edit", "batch"))
    for name in names(golden):
        two = [mend.edit(lm, pair).weights[name].dense() for mend in (own, shared)]
        one = [mend.edit(lm, pair[:1]).weights[name].dense() for mend in (own, shared)]
        assert torch.equal(*one)
        assert float((two[0] - two[1]).norm()) > 1e-2 * float(two[0].norm())
        each = [mend.edit_each(lm, pair)[1].weights[name].dense() for mend in (own, shared)]
        assert torch.equal(*each), "edits made each alone share no mean"
