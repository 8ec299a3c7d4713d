"""PMET against the authors' code (xpq-tech/PMET at 80643f2), on a tiny GPT-2.

Its rule that ends a value early, and lowers the weight of the target until then, is ``v_stop="argmax_kl"`` here.  It
never fires but in ``early_stop``, of which the folder also holds a run with that rule switched off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.pmet import Pmet
from harness.methods.keys import read_keys
from harness.methods.locate_then_edit import SpreadMemory
from harness.methods.value import optimise
from harness.patches.patch import Patch, patched

FOLDER = "K_pmet_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
REL = {"fp64": 1e-6, "fp32": 2e-4}
VARIANTS = [
    "main", "strong", "few_steps", "lambda2000", "one_layer", "loss_layer2", "early_stop_rule_off", "early_stop"
]  # fmt: skip
NAMES = {
    "layers": "layers",
    "v_num_grad_steps": "v_steps",
    "v_lr": "v_lr",
    "v_loss_layer": "v_loss_layer",
    "v_weight_decay": "v_weight_decay",
    "clamp_norm_factor": "clamp",
    "kl_factor": "kl_factor",
    "mom2_update_weight": "lam",
}


def editor(said: dict[str, Any], overrides: dict[str, Any]) -> Pmet:
    found = {NAMES[key]: value for key, value in {**said["hparams"], **overrides}.items() if key in NAMES}
    return replace(Pmet(), **{**found, "layers": tuple(found["layers"])})


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(golden, close, precision, variant):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    if variant.startswith("early_stop"):
        pmet = editor(said, said["early_stop"]["overrides"])
        pmet = replace(pmet, v_stop="argmax_kl") if variant == "early_stop" else pmet
        edits = golden.edits([100, 101, 102, 103], said["early_stop"]["requests"])
    else:
        pmet, edits = editor(said, said["variant_overrides"][variant]), golden.edits(said["batch_case_ids"])
    first, others = said["context_templates"]
    lm, known = golden.lm("tiny-gpt2", precision), SpreadMemory((*first, *others), golden.moments("tiny-gpt2"))
    # Of the authors' run of this variant in float32 the numbers are 1.4e-3 away from those in float64.
    rel = 5e-3 if (variant, precision) == ("loss_layer2", "fp32") else REL[precision]
    few, layers, stem = list(edits.values()), pmet.layers or (), f"{precision}/{variant}"
    values = optimise(lm, few, known.contexts, objective=pmet.objective(layers[-1]))
    told = golden.json(f"{FOLDER}/expected.json")[precision][variant]
    for i, case in enumerate(edits):
        assert len(values.losses[i]) == told[str(case)]["evaluations"], case
        close(values.value[i], theirs[f"{stem}/z.{case}"], rel, f"z of {case}")
        if f"{stem}/z_losses.{case}" in theirs:
            close(values.losses[i], theirs[f"{stem}/z_losses.{case}"], rel, f"losses of {case}")
    patch, so_far = pmet.edit(lm, few, known), Patch()
    for layer in layers:
        change = Patch({DOWN.format(layer): patch.weights[DOWN.format(layer)]})
        if f"{stem}/delta_weight.{layer}" in theirs:
            close(change.weights[DOWN.format(layer)].dense().T, theirs[f"{stem}/delta_weight.{layer}"], rel, f"{layer}")
        if f"{stem}/keys.{layer}" in theirs:
            with patched(lm, so_far):
                mine, _ = read_keys(lm, few, layer, templates=known.contexts, fact_token=pmet.fact_token, kind="memit")
                _, written = read_keys(lm, few, layers[-1], templates=("{}",), fact_token=pmet.fact_token, outputs=True)
            close(mine, theirs[f"{stem}/keys.{layer}"], rel, f"keys of {layer}")
            close(written, theirs[f"{stem}/cur_mlp_before_layer.{layer}"], rel, f"written before {layer}")
        so_far = so_far + change


@pytest.mark.parametrize("variant", VARIANTS[:-2])
def test_the_rule_fires_in_no_other_variant(golden, variant):
    """What the released rule would give is what the paper's gives, so both are held by their numbers."""
    said = golden.json(f"{FOLDER}/inputs.json")
    pmet, edits = editor(said, said["variant_overrides"][variant]), list(golden.edits(said["batch_case_ids"]).values())
    first, others = said["context_templates"]
    lm, layer = golden.lm("tiny-gpt2", "fp64"), (pmet.layers or ())[-1]
    each = [
        optimise(lm, edits, (*first, *others), objective=replace(pmet, v_stop=stop).objective(layer)).delta
        for stop in ("loss", "argmax_kl")
    ]
    assert torch.equal(*each)


def test_each_variant_has_numbers(golden):
    theirs = golden.tensors(f"{FOLDER}/expected.safetensors")
    for variant in VARIANTS:
        for precision in ("fp64", "fp32"):
            held = {name.split("/")[2].split(".")[0] for name in theirs if name.startswith(f"{precision}/{variant}/")}
            assert {"z", "delta_weight"} <= held or precision == "fp32", (variant, precision, held)
            assert held, (variant, precision)
    assert all(torch.isfinite(value).all() for value in theirs.values())
