"""ROME against the authors' code (kmeng01/rome at 0874014), on a tiny GPT-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.rome import Rome
from harness.editing.edit import Edit
from harness.methods.keys import Unedited, read_keys
from harness.methods.rank_one import update_direction
from harness.methods.value import optimise
from harness.patches.patch import Patch, patched

FOLDER = "A_rome_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
pytestmark = pytest.mark.parametrize("precision", ["fp64", "fp32"])
REL = {"fp64": 1e-6, "fp32": 2e-4}
RIGHT = {"fp64": 1e-6, "fp32": 5e-4}  # the right vector divides by a small dot product


def editor(golden: Any, **changes: object) -> Rome:
    h = golden.json(f"{FOLDER}/inputs.json")["hparams"]
    published = Rome(
        layers=tuple(h["layers"]),
        v_steps=h["v_num_grad_steps"],
        v_lr=h["v_lr"],
        v_weight_decay=h["v_weight_decay"],
        clamp=float(h["clamp_norm_factor"]),
        kl_factor=h["kl_factor"],
    )
    return replace(published, **changes)


def prior(golden: Any) -> Unedited:
    return Unedited(tuple(golden.json("inputs/contexts.json")["rome"]), golden.moments("tiny-gpt2"))


def check_pieces(golden: Any, close: Any, precision: str, rome: Rome, edits: dict[int, Edit], stem: str) -> None:
    """Keys, directions, values, losses and rank-one vectors of edits made side by side."""
    lm, known, theirs = (
        golden.lm("tiny-gpt2", precision),
        prior(golden),
        golden.tensors(f"{FOLDER}/expected.safetensors"),
    )
    few, rel = list(edits.values()), REL[precision]
    (layer,) = rome.layers or ()
    mean, _ = read_keys(lm, few, layer, templates=known.contexts, fact_token=rome.fact_token)
    u = update_direction(mean, known.moments[layer] if rome.covariance else None)
    values = optimise(lm, few, known.contexts, objective=rome.objective(layer))
    k0, y0 = read_keys(lm, few, layer, templates=("{}",), fact_token=rome.fact_token, outputs=True)
    changes = rome.changes(lm, few, layer, prior=known)
    for i, case in enumerate(edits):
        want = {
            name: theirs[f"{precision}/{stem}/{case}/{name}"]
            for name in ("kbar", "u", "k0", "y0", "v0", "delta_v", "v_star")
        }
        ours = {"kbar": mean[i], "u": u[i], "k0": k0[i], "y0": y0[i], "v0": values.start[i], "v_star": values.value[i]}
        for name, tensor in ours.items():
            close(tensor, want[name], rel, f"case {case}, {name}")
        if float(want["delta_v"].norm()) > 0:
            close(values.delta[i], want["delta_v"], rel, f"case {case}, delta")
        losses = theirs[f"{precision}/{stem}/{case}/losses"]
        assert values.losses[i].shape == losses.shape, f"case {case}: stops elsewhere"
        close(values.losses[i], losses, rel, f"losses of {case}")
        delta = changes[i]
        right = theirs[f"{precision}/{stem}/{case}/right_vector"]
        if float(want["delta_v"].norm()) > 0:
            close(delta.dense(), torch.outer(right, want["u"]), RIGHT[precision], f"case {case}, change")
        else:
            # Stopped at once: both are what rounding leaves of v0 - y0.
            assert max(float(right.norm()), delta.norm()) < (1e-12 if precision == "fp64" else 1e-4)


@pytest.mark.parametrize("covariance", [True, False])
def test_twelve_requests(golden, close, precision, covariance):
    rome = editor(golden, covariance=covariance)
    stem = f"mom2_{str(covariance).lower()}"
    check_pieces(golden, close, precision, rome, golden.edits(), stem)


def test_stored_change_and_log_probabilities(golden, close, precision):
    lm, theirs = golden.lm("tiny-gpt2", precision), golden.tensors(f"{FOLDER}/expected.safetensors")
    rome, stem = editor(golden), f"{precision}/mom2_true"
    compared = 0
    name, edits = DOWN.format(1), golden.edits()
    for (case, edit), change in zip(
        edits.items(), rome.changes(lm, list(edits.values()), 1, prior=prior(golden)), strict=True
    ):
        patch = Patch({name: change})
        if f"{stem}/{case}/delta_weight" in theirs:
            close(
                patch.weights[name].dense().T, theirs[f"{stem}/{case}/delta_weight"], RIGHT[precision], f"case {case}"
            )
            compared += 1
        with patched(lm, patch), torch.no_grad():
            logits = lm.model(torch.tensor([lm.encode(edit.text)])).logits[0, -1]
        close(
            logits.log_softmax(-1), theirs[f"{stem}/{case}/post_logprobs_last"], RIGHT[precision], f"case {case}, log p"
        )
    assert compared == (3 if precision == "fp64" else 0)


def test_long_optimisation(golden, close, precision):
    over = golden.json(f"{FOLDER}/inputs.json")["long_overrides"]
    rome = editor(
        golden,
        v_steps=over["v_num_grad_steps"],
        v_lr=over["v_lr"],
        clamp=float(over["clamp_norm_factor"]),
        kl_factor=over["kl_factor"],
        v_weight_decay=over["v_weight_decay"],
    )
    check_pieces(golden, close, precision, rome, golden.edits([0, 3, 5, 7, 10]), "long")


def test_early_stop(golden, close, precision):
    said = golden.json(f"{FOLDER}/inputs.json")["early_stop"]
    over = said["overrides"]
    rome = editor(
        golden,
        v_steps=over["v_num_grad_steps"],
        v_lr=over["v_lr"],
        clamp=float(over["clamp_norm_factor"]),
        kl_factor=over["kl_factor"],
        v_weight_decay=over["v_weight_decay"],
    )
    edits = golden.edits([100, 101, 102, 103], said["requests"])
    check_pieces(golden, close, precision, rome, edits, "early_stop")


def test_three_edits_on_top_of_each_other(golden, close, precision):
    lm, theirs = golden.lm("tiny-gpt2", precision), golden.tensors(f"{FOLDER}/expected.safetensors")
    patch = editor(golden).edit(lm, list(golden.edits([0, 1, 2]).values()), prior(golden))
    want = {k: v for k, v in theirs.items() if k.startswith(f"{precision}/sequential3/")}
    assert want
    for key, value in want.items():
        close(patch.weights[DOWN.format(1)].dense().T, value, RIGHT[precision], key)


def test_two_layers(golden, close, precision):
    lm, theirs = golden.lm("tiny-gpt2", precision), golden.tensors(f"{FOLDER}/expected.safetensors")
    patch = editor(golden, layers=(1, 2)).edit(lm, [golden.edits()[1]], prior(golden))
    want = {k.split("/", 2)[2]: v for k, v in theirs.items() if k.startswith(f"{precision}/two_layers/")}
    for layer in (1, 2):
        delta = patch.weights[DOWN.format(layer)]
        u, right = (next(v for k, v in want.items() if k == f"layer{layer}/{n}") for n in ("u", "right_vector"))
        close(delta.dense(), torch.outer(right, u), RIGHT[precision], f"layer {layer}")


@pytest.mark.parametrize("fact_token", ["subject_first", "subject_first_after_last", "last"])
def test_other_fact_tokens(golden, close, precision, fact_token):
    lm, theirs = golden.lm("tiny-gpt2", precision), golden.tensors(f"{FOLDER}/expected.safetensors")
    # The released 'last' is the last column of the padded rows, the released 'subject_first' may be a lone space.
    ours = fact_token if fact_token == "subject_first_after_last" else f"{fact_token}_released"
    rome = editor(golden, fact_token=ours)
    for case in (1, 2):
        delta = rome.edit(lm, [golden.edits()[case]], prior(golden)).weights[DOWN.format(1)]
        stem = f"{precision}/fact_token_{fact_token}/{case}"
        close(delta.right[0], theirs[f"{stem}/u"], REL[precision], f"case {case}, u")
        close(delta.left[:, 0], theirs[f"{stem}/right_vector"], RIGHT[precision], f"case {case}")


def test_side_by_side_is_one_by_one(golden, close, precision):
    lm = golden.lm("tiny-gpt2", precision)
    templates = prior(golden).contexts
    edits = list(golden.edits().values())
    together = optimise(lm, edits, templates, objective=replace(editor(golden).objective(1), budget=700))
    for i, edit in enumerate(edits):
        alone = optimise(lm, [edit], templates, objective=editor(golden).objective(1))
        close(together.delta[i], alone.delta[0], 1e-10 if precision == "fp64" else 1e-4, edit.id)
