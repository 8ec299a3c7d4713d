"""LyapLock, SPHERE and BetaEdit against their authors' code, on tiny models: several batches, one on top of the other.

The tensors are those of the double-precision runs, kept in float32, but for SPHERE on Llama, which was run in float32.
"""

from __future__ import annotations

from typing import Any

import pytest

from editors.alphaedit import AlphaEdit
from editors.betaedit import BetaEdit, BetaMemory
from editors.lyaplock import LyapLock, LyapMemory
from editors.sphere import Sphere, principal_directions
from harness.editing.editor import Editor
from harness.methods.keys import Unedited
from harness.methods.null_space import null_space
from harness.patches.patch import Patch, patched

GPT2 = "transformer.h.{}.mlp.c_proj.weight"
LLAMA = "model.layers.{}.mlp.down_proj.weight"
REL = 1e-6


def in_batches(golden: Any, close: Any, folder: str, stem: str, method: Editor, memory: object) -> list[Any]:
    """Every batch with the changes that are stored; returns what the method remembered after each."""
    said, theirs = golden.json(f"{folder}/inputs.json"), golden.tensors(f"{folder}/expected.safetensors")
    lm, total, remembered, compared = golden.lm("tiny-gpt2", "fp64"), Patch(memory=memory), [], 0
    for b, cases in enumerate(said["batches"]):
        with patched(lm, total):
            change = method.edit(lm, list(golden.edits(cases).values()), total.memory)
        for layer in said["hparams"]["layers"]:
            stored = f"{stem}/batch{b}/delta_weight.{layer}"
            if stored in theirs:
                close(change.weights[GPT2.format(layer)].dense().T, theirs[stored], REL, stored)
                compared += 1
        total = total + change
        remembered.append(total.memory)
    assert compared == sum(name.startswith(f"{stem}/") for name in theirs) > 0
    return remembered


# LyapLock


@pytest.mark.parametrize("variant", ["main", "tight"])
def test_lyaplock_with_its_queue_in_three_batches(golden, close, variant):
    """With alpha 60 the queue never leaves its least length; with 1.001 it grows in the second batch and the third."""
    folder = "L_lyaplock_gpt2"
    said, told = golden.json(f"{folder}/inputs.json"), golden.json(f"{folder}/expected.json")["fp64"][variant]
    h = {**said["hparams"], **said["variant_overrides"][variant]}
    method = LyapLock(**golden.value_settings(h), lam=float(h["mom2_update_weight"]), alpha=h["alpha"])
    begin = Unedited(golden.contexts(said), golden.moments("tiny-gpt2"))
    lm = golden.lm("tiny-gpt2", "fp64")
    memory = LyapMemory(begin.contexts, begin.moments, original={n: lm.matrix(lm.down(n)).clone() for n in h["layers"]})
    remembered = in_batches(golden, close, folder, f"fp64/{variant}", method, memory)
    for b, known in enumerate(remembered):
        for layer in h["layers"]:
            queue = known.queues[layer]
            assert queue.length == pytest.approx(told[f"batch{b}"]["Z"][str(layer)], rel=REL)
            assert queue.base == pytest.approx(told[f"batch{b}"]["D_base"][str(layer)], rel=REL)
    grown = [told[f"batch{b}"]["Z"]["0"] > told[f"batch{b}"]["zmax"]["0"] for b in range(3)]
    assert grown == ([False, True, True] if variant == "tight" else [False] * 3)


# SPHERE


def sphere(golden: Any, said: dict[str, Any], variant: str, side: Any) -> Sphere:
    h = {**said["hparams"], **said["variant_overrides"][variant]}
    inner = AlphaEdit(**golden.value_settings(h), nullspace_threshold=h["nullspace_threshold"], l2=h["L2"])
    return Sphere(inner, energy=h["cumulative_ratio"], strength=h["suppression_strength"], side=side)


@pytest.mark.parametrize("variant", ["main", "ratio90_strength1"])
def test_sphere_on_gpt2_takes_the_output_side(golden, close, variant):
    folder = "L_sphere_gpt2"
    said, told = golden.json(f"{folder}/inputs.json"), golden.json(f"{folder}/expected.json")["fp64"][variant]
    method, lm = sphere(golden, said, variant, "output"), golden.lm("tiny-gpt2", "fp64")
    in_batches(golden, close, folder, f"fp64/{variant}", method, Unedited(golden.contexts(said), golden.raw_moments()))
    counts = [principal_directions(lm.matrix(lm.down(n)).T, method.energy).shape[1] for n in said["hparams"]["layers"]]
    assert counts == told["batch0"]["directions_suppressed_by_layer"]


def test_sphere_on_llama_takes_the_input_side(golden, close):
    """In float32, as it was run: Llama's norms are float32 in any case."""
    folder = "L_sphere_gpt2"
    said, theirs = golden.json(f"{folder}/inputs.json"), golden.tensors(f"{folder}/expected.safetensors")
    moments = golden.raw_moments("tiny-llama")
    method = sphere(golden, {**said["llama"], "variant_overrides": {"main": {}}}, "main", "input")
    lm, edits = golden.lm("tiny-llama", "fp32"), list(golden.edits(said["llama"]["batch"]).values())
    change = method.edit(lm, edits, Unedited(golden.contexts(said), moments))
    for layer in said["llama"]["hparams"]["layers"]:
        stored = f"fp32/llama/batch0/delta_weight_out_in.{layer}"
        close(change.weights[LLAMA.format(layer)].dense(), theirs[stored], 2e-4, stored)


# BetaEdit


@pytest.mark.parametrize("variant", ["main", "lambda1_0", "no_refresh"])
def test_betaedit_in_six_batches(golden, close, variant):
    folder = "L_betaedit_gpt2"
    said, told = golden.json(f"{folder}/inputs.json"), golden.json(f"{folder}/expected.json")["fp64"][variant]
    h = {**said["algorithm"], **said["variant_overrides"][variant]}
    method = BetaEdit(**golden.value_settings(said["hparams"]), **h)
    moments = golden.raw_moments()
    remembered = in_batches(
        golden, close, folder, f"fp64/{variant}", method, BetaMemory(golden.contexts(said), moments)
    )
    for b, known in enumerate(remembered):
        bases = known.bases or {n: null_space(m, h["nullspace_threshold"]) for n, m in moments.items()}
        assert [bases[n].shape[1] for n in said["hparams"]["layers"]] == told[f"batch{b}"]["null_directions"]
    assert [known.refreshed for known in remembered] == ([0, 0, 4, 4, 8, 8] if variant == "main" else [0] * 6)
