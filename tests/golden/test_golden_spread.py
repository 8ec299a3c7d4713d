"""BLUE and NSE against their authors' code on a tiny GPT-2, two batches: what the changes give for two inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors.blue import Blue
from editors.nse import Nse, NseMemory
from harness.editing.editor import Editor
from harness.methods.keys import Unedited
from harness.patches.patch import Patch, patched

SETTINGS = {"v_steps": 20, "v_lr": 0.5, "v_loss_layer": 3}


def probes(width: int) -> Tensor:
    """The inputs."""
    count = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.stack([torch.cos(count * 0.7), torch.sin(count * 1.3)], 1)


def contexts(golden: Any) -> tuple[str, ...]:
    return golden.contexts({"context_templates": golden.json("inputs/contexts.json")["memit"]})


def in_batches(golden: Any, close: Any, stem: str, method: Editor, memory: object) -> None:
    """Two batches of three edits, one on top of the other."""
    theirs, lm, total = golden.tensors(f"{stem.partition('/')[0]}.safetensors"), golden.lm("tiny-gpt2", "fp64"), Patch()
    total = Patch(memory=memory)
    compared = 0
    for b, cases in enumerate(([0, 1, 2], [3, 4, 5])):
        with patched(lm, total):
            change = method.edit(lm, list(golden.edits(cases).values()), total.memory)
        for name, delta in change.weights.items():
            stored = f"{stem}/batch{b}/{name.split('.')[2]}"
            close(delta.dense() @ probes(delta.shape[1]), theirs[stored], 1e-6, stored)
            compared += 1
        total = total + change
    assert compared == sum(name.startswith(f"{stem}/") for name in theirs) > 0


def test_blue_in_two_batches(golden: Any, close: Any) -> None:
    """Layers 0 and 2 of three; the second batch stands beside the keys of the first."""
    threshold = golden.json("C_alphaedit_gpt2/inputs.json")["hparams"]["nullspace_threshold"]
    method = Blue(layers=(0, 1, 2), **SETTINGS, nullspace_threshold=threshold, l2=1.0)
    in_batches(golden, close, "blue", method, Unedited(contexts(golden), golden.raw_moments()))


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("all", {"neurons": 0.8}), ("some", {"neurons": 0.5, "least": 1.0, "most": 6.0})],
)
def test_nse_in_two_batches(golden: Any, close: Any, variant: str, settings: dict[str, float]) -> None:
    """With the bounds one edit is left alone from the first, and others have arrived after one round of two."""
    method = Nse(layers=(0, 1, 2), **SETTINGS, lam=20.0, counting="released", **settings)
    lm = golden.lm("tiny-gpt2", "fp64")
    original = {lm.down(layer): lm.matrix(lm.down(layer)).clone() for layer in method.layers or ()}
    memory = NseMemory(contexts(golden), golden.moments("tiny-gpt2"), original=original)
    in_batches(golden, close, f"nse/{variant}", method, memory)
