"""CORE against its authors' code on a tiny GPT-2: the values of three edits, with given contexts."""

from __future__ import annotations

from typing import Any

import pytest

from editors.core import Core
from harness.methods.locate_then_edit import SpreadMemory
from harness.patches.patch import Patch


@pytest.mark.parametrize(
    ("variant", "settings"), [("published", {}), ("near", {"agreement": 0.05, "agreement_layers": 1, "v_lr": 0.1})]
)
def test_values_of_three_edits(golden: Any, close: Any, variant: str, settings: dict[str, float]) -> None:
    """States of both later layers agree; with the second settings those of the next alone."""
    contexts = golden.contexts({"context_templates": golden.json("inputs/contexts.json")["memit"]})
    lm, edits = golden.lm("tiny-gpt2", "fp64"), list(golden.edits([0, 1, 2]).values())
    method = Core(layers=(0, 1), v_steps=12, v_loss_layer=3, contexts=contexts, **settings)
    prior = SpreadMemory(contexts, golden.moments("tiny-gpt2"))
    values = method.values(lm, [edits], prior, layer=1, begun=[Patch()])
    close(values, golden.tensors("core.safetensors")[variant], 1e-6, variant)
