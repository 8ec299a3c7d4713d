"""FT and FT+L against the authors' code (kmeng01/memit at 80426fd, baselines/ft), on a tiny GPT-2."""

from __future__ import annotations

import math

import pytest

from editors.ft import FineTuning
from editors.ft_l import BoundedFineTuning
from harness.editing.editor import Editor
from harness.errors import UsageError
from harness.methods.descent import DescentSettings, descend, down_projection_parameters

FOLDER = "D_ft_memit_baseline"
REL = {"fp64": 1e-6, "fp32": 2e-4}
VARIANTS = [
    "constrained_single",
    "unconstrained_batch6",
    "chunks_of_2_weight_decay_2layers",
    "stop_when_loss_small",
    "wd_power_law",
]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(golden, close, precision, variant):
    said = golden.json(f"{FOLDER}/inputs.json")
    h, ids = said["variants"][variant]["hparams"], said["variants"][variant]["case_ids"]
    edits = list(golden.edits(ids, said["extra_requests"]).values())
    lm, theirs = golden.lm("tiny-gpt2", precision), golden.tensors(f"{FOLDER}/expected.safetensors")
    common = {
        "layers": tuple(h["layers"]),
        "loss": "prompt_last",
        "lr": h["lr"],
        "steps": h["num_steps"],
        "batch_size": h.get("batch_size", said["default_batch_size"]),
        "weight_decay": h["weight_decay"],
    }
    editor: Editor
    if h["norm_constraint"]:
        editor = BoundedFineTuning(norm_constraint=h["norm_constraint"], **common)
    else:
        editor = FineTuning(wd_power_law=tuple(h["wd_power_law"]) if "wd_power_law" in h else None, **common)
    patch = editor.edit(lm, edits)
    want = {k.split("/", 2)[2]: v for k, v in theirs.items() if k.startswith(f"{precision}/{variant}/")}
    assert set(patch.weights) == set(want)
    for name, value in want.items():
        change = patch.weights[name].dense()
        close(change.T if change.dim() == 2 else change, value, REL[precision], name)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses(golden, precision, variant):
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.json(f"{FOLDER}/expected.json")["batch_losses"]
    h, ids = said["variants"][variant]["hparams"], said["variants"][variant]["case_ids"]
    edits = list(golden.edits(ids, said["extra_requests"]).values())
    lm = golden.lm("tiny-gpt2", precision)
    a, b = h.get("wd_power_law", (0.0, -math.inf))
    settings = DescentSettings(
        "prompt_last",
        h["lr"],
        h["num_steps"],
        h.get("batch_size", said["default_batch_size"]),
        h["weight_decay"] + len(edits) ** a * math.exp(b),
        h["norm_constraint"] or None,
    )
    ours = descend(lm, edits, down_projection_parameters(lm, h["layers"]), settings=settings).losses
    assert ours == pytest.approx(theirs[variant][precision], rel=1e-5 if precision == "fp32" else 1e-8, abs=1e-6)


def test_a_power_law_that_is_not_of_two_numbers_is_refused():
    with pytest.raises(UsageError, match=r"^ft: 'wd_power_law' is \(1\.0, 2\.0, 3\.0\), expected two numbers"):
        FineTuning(wd_power_law=(1.0, 2.0, 3.0))
