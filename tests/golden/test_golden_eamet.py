"""EAMET against its authors' code on a tiny GPT-2: the residuals and values of four edits in a row."""

from __future__ import annotations

from typing import Any

import pytest

from editors.eamet import Eamet
from harness.methods.locate_then_edit import SpreadMemory
from harness.patches.patch import Patch


@pytest.mark.parametrize(
    ("variant", "settings"), [("published", {}), ("bound", {"clamp": 1.05, "kl_factor": 2.0, "v_lr": 0.3})]
)
def test_values_of_four_edits(golden: Any, close: Any, variant: str, settings: dict[str, float]) -> None:
    """Each is aligned with those before it; with the second settings the bound holds and the KL term weighs."""
    said = golden.json("inputs/contexts.json")["memit"]
    contexts = golden.contexts({"context_templates": said})
    lm, edits = golden.lm("tiny-gpt2", "fp64"), list(golden.edits([0, 1, 2, 3]).values())
    method = Eamet(layers=(0, 1, 2), v_steps=12, v_loss_layer=3, rule="released", **settings)
    prior = SpreadMemory(contexts, golden.moments("tiny-gpt2"))
    values = method.values(lm, [edits], prior, layer=2, begun=[Patch()])
    theirs = golden.tensors("eamet.safetensors")
    close(values, theirs[f"{variant}/value"], 1e-6, variant)
    start = theirs[f"{variant}/value"] - theirs[f"{variant}/delta"]
    close(values - start, theirs[f"{variant}/delta"], 1e-6, variant)
