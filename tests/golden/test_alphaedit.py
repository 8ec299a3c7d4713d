"""AlphaEdit against the authors' code (jianghoucheng/AlphaEdit at f5248d3), on a tiny GPT-2: two batches in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.alphaedit import AlphaEdit
from harness.methods.keys import Unedited, read_keys
from harness.methods.null_space import null_space
from harness.methods.value import optimise
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

FOLDER = "C_alphaedit_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
REL = {"fp64": 1e-6, "fp32": 2e-4}


def editor(golden: Any, l2: float) -> AlphaEdit:
    said = golden.json(f"{FOLDER}/inputs.json")["hparams"]
    return AlphaEdit(**golden.value_settings(said), nullspace_threshold=said["nullspace_threshold"], l2=l2)


def prior(golden: Any) -> Unedited:
    return Unedited(golden.contexts(golden.json(f"{FOLDER}/inputs.json")), golden.raw_moments())


def test_the_projector(golden):
    theirs = golden.tensors(f"{FOLDER}/expected.safetensors")
    threshold = golden.json(f"{FOLDER}/inputs.json")["hparams"]["nullspace_threshold"]
    for (layer, moment), directions in zip(sorted(golden.raw_moments().items()), (87, 93, 90), strict=False):
        basis = null_space(moment, threshold)
        assert basis.shape[1] == directions
        assert float((basis @ basis.T - theirs[f"fp64/P.{layer}"]).abs().max()) <= 1e-6


@pytest.mark.parametrize("l2", [1, 10])
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_two_batches_with_the_key_cache(golden, close, precision, l2):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    lm, method, rel = golden.lm("tiny-gpt2", precision), editor(golden, float(l2)), REL[precision]
    layers, total = method.edited_layers(lm), Patch(memory=prior(golden))
    for b, cases in enumerate(said["batches"]):
        stem, edits = f"{precision}/L2_{l2}/batch{b}", list(golden.edits(cases).values())
        with patched(lm, total):
            values = optimise(lm, edits, total.memory.contexts, objective=method.objective(layers[-1]))
            change = method.edit(lm, edits, total.memory)
        for i, case in enumerate(cases):
            close(values.value[i], theirs[f"{stem}/z.{case}"], rel, f"z of {case}")
        below = Patch(total.weights)
        for layer in layers:
            if precision == "fp64":
                with patched(lm, below):
                    mine, _ = read_keys(
                        lm, edits, layer, templates=total.memory.contexts, fact_token=method.fact_token, kind="memit"
                    )
                close(mine, theirs[f"{stem}/keys_before.{layer}"], rel, f"keys that are solved for, layer {layer}")
            below = below + Patch({DOWN.format(layer): change.weights[DOWN.format(layer)]})
        total = total + change
        for layer in layers:
            close(change.weights[DOWN.format(layer)].dense(), theirs[f"{stem}/delta_weight_out_in.{layer}"], rel, stem)
            if f"{stem}/cache_c.{layer}" in theirs:
                close(total.memory.total(layer), theirs[f"{stem}/cache_c.{layer}"], rel, f"key cache of {layer}")
            if f"{stem}/keys_after.{layer}" in theirs:
                with patched(lm, total):
                    mine, _ = read_keys(
                        lm, edits, layer, templates=total.memory.contexts, fact_token=method.fact_token, kind="memit"
                    )
                close(mine, theirs[f"{stem}/keys_after.{layer}"], rel, f"keys on the edited model, layer {layer}")


def test_the_solution_in_the_null_space_is_the_authors_system(golden, close):
    """``(P (K K^T + M) + l2 I) X = P K R^T``, solved as it stands, with the authors' own projector, keys and cache."""
    theirs, method = golden.tensors(f"{FOLDER}/expected.safetensors"), editor(golden, 1.0)
    key, cache, p = (theirs[f"fp64/{n}"] for n in ("L2_1/batch1/keys_before.1", "L2_1/batch0/cache_c.1", "P.1"))
    residual = torch.randn(6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    system = p @ (key.T @ key + cache) + torch.eye(128, dtype=torch.float64)
    plain = torch.linalg.solve(system, p @ key.T @ residual)
    known = method.prior(golden.lm("tiny-gpt2", "fp64"), prior(golden), ())
    known.sums[1] = cache  # type: ignore[index]
    change = method.solver(known)(1, key, residual)
    assert isinstance(change, LowRank) and change.left.shape[1] == 6
    close(change.dense(), plain.T, 1e-9)
