"""UltraEdit against the authors' code (XiaojieGu/UltraEdit at 0beb222), on a tiny GPT-2.

What they do otherwise than the plain meaning are three settings: the mean over a mini-batch (``loss``), the squares of
each mini-batch (``deviation``), and a last mini-batch that is not full (``last_batch``).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.stableedit import StableEdit
from editors.ultraedit import UltraEdit
from harness.methods.descent import tokenise
from harness.methods.shifts import read_features
from harness.patches.patch import Patch, patched

FOLDER = "M_ultraedit_gpt2"
REL = {"fp64": 1e-6, "fp32": 2e-4}
VARIANTS = [
    ("one_turn_one_matrix", "fp64", 2),
    ("two_turns", "fp64", 1),
    ("mini_batches", "fp64", 1),
    ("incomplete_mini_batch", "fp64", 1),
]
"""Variant, precision, and how many tensors beside the statistics are held here."""


def released(said: dict[str, Any], variant: str, **changed: Any) -> UltraEdit:
    one = said["variants"][variant]
    settings = {"loss": "batch", "deviation": "batch", "last_batch": "released", **changed}
    return UltraEdit(modules=tuple(one["modules"]), lr=said["hparams"]["lr"], batch_size=one["batch_size"], **settings)


@pytest.mark.parametrize(("variant", "precision", "held"), VARIANTS)
def test_every_turn(golden, close, variant, precision, held):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    method, lm, total = released(said, variant), golden.lm("tiny-gpt2", precision), Patch()
    rel, compared = REL[precision], 0
    for turn, cases in enumerate(said["variants"][variant]["turns"]):
        edits, stem = list(golden.edits(cases).values()), f"{precision}/{variant}/turn{turn}"
        with patched(lm, total):
            features = read_features(lm, method._batches(tokenise(lm, edits)), names=method.places(lm), mean=True)
            patch = method.edit(lm, edits, total.memory)
        for name, (keys, gradients) in features.items():
            for what, ours in (
                (f"keys/{name}", torch.cat(keys)),
                (f"gradients/{name}", torch.cat(gradients)),
                (f"shift/{name}", patch.weights[f"{name}.weight"].dense().T),
            ):
                if f"{stem}/{what}" in theirs:
                    close(ours, theirs[f"{stem}/{what}"], rel, f"{stem}/{what}")
                    compared += 1
        for shape, seen in patch.memory.statistics.items():
            spread = (seen.squares / (seen.count - 1)).sqrt()
            last = turn == len(said["variants"][variant]["turns"]) - 1
            for part, value in (("mean", seen.mean), ("std", spread), ("n", torch.tensor([float(seen.count)]))):
                # Their mean is changed in place, so that the folder holds the one after the last turn at every turn.
                if f"{stem}/normaliser/{shape}/{part}" in theirs and (last or part != "mean"):
                    close(value, theirs[f"{stem}/normaliser/{shape}/{part}"], rel, f"{stem}/{shape}/{part}")
        total = total + patch
    assert compared == held


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("mini_batches", {"loss": "edit"}),
        ("mini_batches", {"deviation": "data"}),
        ("one_turn_one_matrix", {"deviation": "data"}),
        ("incomplete_mini_batch", {"last_batch": "counted"}),
    ],
)
def test_each_setting_is_needed(golden, variant, changed):
    """Their numbers are missed by more than a hundredth without it."""
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    method, lm = released(said, variant, **changed), golden.lm("tiny-gpt2", "fp64")
    edits = list(golden.edits(said["variants"][variant]["turns"][0]).values())
    (name,) = method.modules or ()
    found, wanted = (
        method.edit(lm, edits).weights[f"{name}.weight"].dense().T,
        theirs[f"fp64/{variant}/turn0/shift/{name}"],
    )
    assert float((found - wanted).norm() / wanted.norm()) > 1e-2


def test_a_mini_batch_of_one_token_has_no_squares(golden):
    """Of which their code makes a NaN, in every weight and ever after."""
    lm = golden.lm("tiny-gpt2", "fp64")
    edits = list(golden.edits([0, 1, 2, 5, 8]).values())
    one = next(edit for edit in edits if len(tokenise(lm, [edit])[0].target) == 1)
    method = UltraEdit(modules=("transformer.h.1.mlp.c_proj",), lr=1e-3, batch_size=1, loss="batch", deviation="batch")
    patch = method.edit(lm, [one, *(edit for edit in edits if edit is not one)])
    assert all(bool(torch.isfinite(delta.dense()).all()) for delta in patch.weights.values())


# StableEdit, of the same family


@pytest.mark.parametrize("variant", ["preheat_one_turn", "no_preheat"])
def test_stableedit_turn_by_turn(golden, close, variant):
    """With and without the turn that warms up: c_proj's gradients are whitened, c_fc's have too few tokens for it."""
    folder = "N_stableedit_gpt2"
    said, theirs = golden.json(f"{folder}/inputs.json"), golden.tensors(f"{folder}/expected.safetensors")
    h, lm, total, compared = said["hparams"], golden.lm("tiny-gpt2", "fp64"), Patch(), 0
    warm = h["preheat"]["turns"] if variant == "preheat_one_turn" else []
    method = StableEdit(
        modules=tuple(said["edit_modules"]), lr=h["lr"], batch_size=5, alpha=h["alpha"], warm_up=len(warm)
    )
    turns = [*(("preheat", cases) for cases in warm), *((f"turn{i}", cases) for i, cases in enumerate(said["turns"]))]
    for turn, cases in turns:
        stem = f"fp64/{variant}/{turn}"
        with patched(lm, total):
            patch = method.edit(lm, list(golden.edits(cases).values()), total.memory)
        for name in method.places(lm):
            close(patch.weights[f"{name}.weight"].dense().T, theirs[f"{stem}/shift/{name}"], 1e-6, f"{stem} {name}")
            compared += 1
        total = total + patch
    (shape,) = [shape for shape in total.memory.statistics if shape == (128, 32)]
    seen = total.memory.statistics[shape]
    close(seen.scatter, theirs[f"{stem}/normaliser/{shape}/cov_value"], 1e-6, "scatter of gradients")
    close(seen.rows.mean, theirs[f"{stem}/normaliser/{shape}/mean"], 1e-6, "mean")
    assert compared == 3 * len(turns)
