"""MEMIT against the authors' code (kmeng01/memit at 80426fd), on a tiny GPT-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.memit import Memit
from harness.methods.keys import Unedited, read_keys
from harness.methods.locate_then_edit import ridge_adjoint
from harness.methods.value import optimise
from harness.methods.value_rows import Objective
from harness.patches.patch import Patch, patched

FOLDER = "B_memit_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
REL = {"fp64": 1e-6, "fp32": 2e-4}
pytestmark = pytest.mark.parametrize("precision", ["fp64", "fp32"])
NAMES = {
    "v_num_grad_steps": "v_steps",
    "clamp_norm_factor": "clamp",
    "mom2_update_weight": "lam",
    "layers": "layers",
    "v_lr": "v_lr",
    "v_loss_layer": "v_loss_layer",
    "v_weight_decay": "v_weight_decay",
    "kl_factor": "kl_factor",
}


def editor(golden: Any, overrides: dict[str, Any]) -> Memit:
    said = {**golden.json(f"{FOLDER}/inputs.json")["hparams"], **overrides}
    ours = {NAMES[k]: tuple(v) if k == "layers" else v for k, v in said.items() if k in NAMES}
    return replace(Memit(), **ours)


def prior(golden: Any) -> Unedited:
    first, others = golden.json("inputs/contexts.json")["memit"]
    return Unedited((*first, *others), golden.moments("tiny-gpt2"))


def objective(memit: Memit) -> Objective:
    return memit.objective((memit.layers or ())[-1])


@pytest.mark.parametrize("variant", ["main", "lambda2000", "single", "one_layer", "loss_layer2", "long", "early_stop"])
def test_variant(golden, close, precision, variant):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    if variant == "early_stop":
        memit = editor(golden, said["early_stop"]["overrides"])
        edits = golden.edits([100, 101, 102, 103], said["early_stop"]["requests"])
    else:
        memit = editor(golden, said["variant_overrides"][variant])
        edits = golden.edits(said["single_case_ids"] if variant == "single" else said["batch_case_ids"])
    lm, known, stem, rel = golden.lm("tiny-gpt2", precision), prior(golden), f"{precision}/{variant}", REL[precision]
    few = list(edits.values())
    values = optimise(lm, few, known.contexts, objective=objective(memit))
    for i, case in enumerate(edits):
        close(values.value[i], theirs[f"{stem}/z.{case}"], rel, f"z of {case}")
        losses = theirs[f"{stem}/z_losses.{case}"]
        assert values.losses[i].shape == losses.shape, f"case {case}: stops elsewhere"
        close(values.losses[i], losses, rel, f"losses of {case}")
    patch, so_far = memit.edit(lm, few, known), Patch()
    for i, layer in enumerate(memit.layers or ()):
        delta = patch.weights[DOWN.format(layer)]
        stored = f"{stem}/delta_weight.{layer}"
        assert stored in theirs or precision == "fp32", "the folder holds every change in double precision"
        if stored in theirs:
            close(delta.dense().T, theirs[stored], rel, f"layer {layer}")
        if f"{stem}/resid.{layer}" in theirs:
            close(delta.left, theirs[f"{stem}/resid.{layer}"], rel, f"residual {layer}")
            close(delta.right.T, theirs[f"{stem}/adj_k.{layer}"], rel, f"adjoint {layer}")
        if f"{stem}/keys.{layer}" in theirs:
            with patched(lm, so_far):
                mine, _ = read_keys(lm, few, layer, templates=known.contexts, fact_token=memit.fact_token, kind="memit")
            close(mine, theirs[f"{stem}/keys.{layer}"], rel, f"keys {layer}")
            hidden = values.value - delta.left.T * (len(memit.layers or ()) - i)
            close(hidden, theirs[f"{stem}/cur_z_before_layer.{layer}"], rel, f"hidden state before {layer}")
        so_far = so_far + Patch({DOWN.format(layer): delta})


def test_log_probabilities_after_the_edit(golden, close, precision):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    lm, edits = golden.lm("tiny-gpt2", precision), golden.edits(said["batch_case_ids"])
    patch = editor(golden, {}).edit(lm, list(edits.values()), prior(golden))
    with patched(lm, patch), torch.no_grad():
        for case, edit in golden.edits().items():
            logits = lm.model(torch.tensor([lm.encode(edit.text)])).logits[0, -1]
            close(
                logits.log_softmax(-1), theirs[f"{precision}/main/post_logprobs_last.{case}"], REL[precision], f"{case}"
            )


def test_adjoint_is_the_plain_solve(golden, close, precision):
    """The update through one factor of C equals the float64 solve of ``lam C + K K^T`` of the authors."""
    theirs, moment = golden.tensors(f"{FOLDER}/expected.safetensors"), golden.moments("tiny-gpt2")[1]
    keyed = theirs["fp64/main/keys.1"]
    plain = torch.linalg.solve(20 * moment.matrix.double() + keyed.T @ keyed, keyed.T)
    close(ridge_adjoint(moment, keyed, 20.0), plain, 1e-9, precision)
