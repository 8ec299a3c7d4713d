"""ENCORE's closed form against the authors' code (scalable-model-editing/knowledge-editing-regularization at 6e3ba9a).

MEMIT with norm control and the sum of earlier keys, two batches on a tiny GPT-2.  Their early stop, which counts the
evaluations at which all contexts but the bare prompt have the target on top, is ``prob_cutoff`` of encore here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from editors.encore import Encore
from editors.memit import Memit
from harness.methods.keys import read_keys
from harness.methods.locate_then_edit import SpreadMemory
from harness.methods.value import optimise
from harness.patches.patch import Patch, patched

FOLDER = "K_encore_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
REL = {"fp64": 1e-6, "fp32": 2e-4}


def editor(said: dict[str, Any], overrides: dict[str, Any]) -> Memit:
    h = {**said["hparams"], **overrides}
    return replace(
        Memit(),
        layers=tuple(h["layers"]),
        v_steps=h["v_num_grad_steps"],
        v_lr=h["v_lr"],
        v_loss_layer=h["v_loss_layer"],
        v_weight_decay=h["v_weight_decay"],
        clamp=h["clamp_norm_factor"],
        kl_factor=h["kl_factor"],
        lam=float(h["mom2_update_weight"]),
        norm_control=float(h["update_norm_lambda"]),
        keep_edits=True,
    )


def released(said: dict[str, Any], variant: str) -> Memit:
    """What encore makes of MEMIT with the cut-off of their run."""
    h = {**said["hparams"], **said["variant_overrides"][variant]}
    made = editor(said, said["variant_overrides"][variant])
    if not h["prob_cutoff"]:
        return made
    return Encore(
        inner=replace(made, norm_control=0.0), lam_n=float(h["update_norm_lambda"]), prob_cutoff=h["prob_cutoff"]
    ).inner


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        ("no_cutoff", "fp64"),
        ("no_cutoff", "fp32"),
        ("no_norm_control", "fp64"),
        ("early_stop", "fp64"),
        ("early_stop", "fp32"),
        ("early_stop_cutoff1", "fp64"),
    ],
)
def test_two_batches(golden, close, variant, precision):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    method, rel = released(said, variant), REL[precision]
    early = variant.startswith("early_stop")
    told = golden.json(f"{FOLDER}/expected.json")[precision][variant]
    first, others = said["context_templates"]
    lm = golden.lm("tiny-gpt2", precision)
    total = Patch(memory=SpreadMemory((*first, *others), golden.moments("tiny-gpt2")))
    for b, cases in enumerate(said["early_stop_batches" if early else "batches"]):
        edits = golden.edits(cases, said["early_stop_requests"])
        stem = f"{precision}/{variant}/batch{b}"
        few, layers = list(edits.values()), method.layers or ()
        with patched(lm, total):
            values = optimise(lm, few, total.memory.contexts, objective=method.objective(layers[-1]))
            change = method.edit(lm, few, total.memory)
        for i, case in enumerate(edits):
            assert len(values.losses[i]) == told[str(case)]["evaluations"], case
            close(values.value[i], theirs[f"{stem}/z.{case}"], rel, f"z of {case}")
            if f"{stem}/z_losses.{case}" in theirs:
                close(values.losses[i], theirs[f"{stem}/z_losses.{case}"], rel, f"losses of {case}")
        below = total
        for layer in layers:
            if f"{stem}/keys_before.{layer}" in theirs:
                with patched(lm, below):
                    mine, _ = read_keys(
                        lm, few, layer, templates=total.memory.contexts, fact_token=method.fact_token, kind="memit"
                    )
                close(mine, theirs[f"{stem}/keys_before.{layer}"], rel, f"keys of {layer}")
            name = DOWN.format(layer)
            stored = f"{stem}/delta_weight.{layer}"
            assert stored in theirs or (precision, b) == ("fp32", 1) or early, "the folder lacks these alone"
            if stored in theirs:
                close(change.weights[name].dense().T, theirs[stored], rel, stored)
            below = below + Patch({name: change.weights[name]}, memory=below.memory)
        total = total + change


def test_the_bare_prompt_counts_without_a_cut_off(golden):
    """The rule of the text ends no value before the bare prompt has its target on top; theirs does not look."""
    said = golden.json(f"{FOLDER}/inputs.json")
    method, (first, others) = released(said, "early_stop"), said["context_templates"]
    lm, edits = golden.lm("tiny-gpt2", "fp64"), list(golden.edits([101], said["early_stop_requests"]).values())
    counts = []
    for cutoff in (None, 1, 2, 4):
        objective = replace(method, v_cutoff=cutoff).objective(2)
        counts.append(len(optimise(lm, edits, (*first, *others), objective=objective).losses[0]))
    assert counts == [18, 18, 19, 21]
    # With the bare prompt alone there is no other context to look at.
    alone = [
        len(optimise(lm, edits, first, objective=replace(method, v_cutoff=c).objective(2)).losses[0]) for c in (None, 1)
    ]
    assert alone[0] == alone[1] < 40
