"""UnKE as it is released (TrustedLLM/UnKE at ae24801), on a tiny Llama: values, errors, the change of the block.

The texts that are kept are theirs.  Two of their cases ship; the others, with every parameter's change, are read where
the reference data is.  Their library keeps norms and rotary tables in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import unke
from editors.unke import Unke
from harness.editing.edit import Edit
from harness.methods import block_training
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

FOLDER = "Q_unke_llama"
ZEROED = 1e-5  # their norms and rotary tables are in float32


@dataclass
class Theirs:
    """One case: what was asked for, and what came out."""

    lm: LM
    numbers: Any
    variant: str

    def __post_init__(self) -> None:
        self.inputs, self.stem = self.numbers.json(f"{FOLDER}/inputs.json"), f"fp64/{self.variant}"
        self.told = self.numbers.json(f"{FOLDER}/expected.json")[self.stem]
        self.tensors = self.numbers.tensors(f"{FOLDER}/expected.safetensors")
        self.said = self.inputs["variants"][self.variant]
        self.values: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.errors: list[float] = []

    def patch(self, monkeypatch: Any) -> Patch:
        """Our change, with their texts; ``values``, ``losses`` and ``errors`` are filled."""
        said, lm = self.said, self.lm
        method = Unke(
            layers=tuple(said["layers"]),
            v_steps=said["v_num_grad_steps"],
            v_lr=said["v_lr"],
            v_loss_layer=said["v_loss_layer"],
            v_weight_decay=said["v_weight_decay"],
            clamp=said["clamp_norm_factor"],
            steps=said["optim_num_step"],
            lr=said["lr"],
            error_mean="released",
        )
        rows = {row["id"]: row for row in self.inputs["data"]}
        edits = [Edit(i, rows[i]["question"], None, rows[i]["answer"].strip()) for i in said["data"]]
        optimise, train_block = unke.optimise, block_training.train_block

        def found(*given: Any, **named: Any) -> Any:
            values = optimise(*given, **named)
            self.values, self.losses = list(values.value), list(values.losses)
            return values

        def trained(*given: Any, **named: Any) -> Any:
            done = train_block(*given, **named)
            self.errors += done.losses
            return done

        kept = lm.batch([lm.encode(text) for text in self.inputs["preserved_texts"]])
        monkeypatch.setattr(Unke, "_kept", lambda *_: kept)
        monkeypatch.setattr(block_training, "unrelated_texts", lambda _: ("none",))
        monkeypatch.setattr(unke, "optimise", found)
        monkeypatch.setattr(block_training, "train_block", trained)
        return method.edit(lm, edits)


@pytest.fixture(params=["batch", "small_clamp", "single", "two_layers"])
def theirs(request: Any, golden: Any) -> Theirs:
    lm = golden.lm("tiny-llama", "fp64")
    shipped = request.param in ("batch", "small_clamp")
    numbers = golden if shipped else type(golden)(request.getfixturevalue("shared") / "golden")
    return Theirs(lm, numbers, request.param)


def test_the_edit_is_theirs(theirs, close, monkeypatch):
    """Values and their losses, both errors of every step, the norm of every parameter's change, and each change."""
    patch = theirs.patch(monkeypatch)
    for name, value, losses, told in zip(
        theirs.said["data"], theirs.values, theirs.losses, theirs.told["z_losses_before_each_update"], strict=True
    ):
        close(value, theirs.tensors[f"{theirs.stem}/z.{name}"], ZEROED, name)
        assert losses[: len(told), 0].tolist() == pytest.approx(told, rel=ZEROED)
    errors = [sum(both) for both in theirs.told["block_mse_preserve_then_edit"]]
    assert theirs.errors == pytest.approx(errors, rel=ZEROED)
    changes = {name: delta.dense() for name, delta in patch.weights.items()}
    assert {name: float(change.norm()) for name, change in changes.items()} == pytest.approx(
        theirs.told["delta_norms"], rel=ZEROED
    )
    each = {name: key for name in changes if (key := f"{theirs.stem}/delta.{name}") in theirs.tensors}
    assert bool(each) is (theirs.variant in ("single", "two_layers"))
    for name, key in each.items():
        close(changes[name], theirs.tensors[key], 1e-4, name)


def test_probes_are_answered_as_theirs(theirs, monkeypatch):
    lm, compared = theirs.lm, 0
    with patched(lm, theirs.patch(monkeypatch)), torch.no_grad():
        for i, probe in enumerate(theirs.inputs["probes"]):
            told = theirs.tensors.get(f"{theirs.stem}/probe_logprobs_last.{i}")
            if told is not None:
                compared += 1
                log_p = lm.model(input_ids=torch.tensor([lm.encode(probe)])).logits[0, -1].log_softmax(-1)
                assert torch.allclose(log_p, told.to(log_p), atol=1e-4), probe
    assert compared or theirs.variant == "small_clamp"
