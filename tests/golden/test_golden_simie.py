"""SimIE against its authors' code: three edits in a row, from the unedited model and from the current one.

The inner editor takes half of what a direction gives, so that what it does depends on the weights from which it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.simie import SimIE
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

LAM = 3.0
WRITTEN = {
    "tiny-gpt2": ("transformer.h.0.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight"),
    "tiny-llama": ("model.layers.1.mlp.down_proj.weight",),
}


def direction(width: int, number: int) -> Tensor:
    found = torch.sin(torch.arange(1, width + 1, dtype=torch.float64) * (number + 1))
    return found / found.norm()


def probes(width: int) -> Tensor:
    """Of a change ``[out, in]`` what it gives for these two inputs is kept."""
    count = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.stack([torch.cos(count * 0.7), torch.sin(count * 1.3)], 1)


@dataclass(frozen=True)
class Halving(Editor):
    """``-W u u^T / 2`` with a direction of each edit."""

    name = "halving"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        weights = {}
        for name in WRITTEN[lm.name.rpartition("/")[2]]:
            matrix = lm.matrix(name)
            u = direction(matrix.shape[1], int(edits[0].id)).to(matrix)
            weights[name] = LowRank(-0.5 * (matrix @ u)[:, None], u[None])
        return Patch(weights)


@pytest.mark.parametrize("start", ["unedited", "current"])
@pytest.mark.parametrize("model", WRITTEN)
def test_three_edits_in_a_row(golden: Any, close: Any, model: str, start: Any) -> None:
    lm, theirs = golden.lm(model, "fp64"), golden.tensors("simie.safetensors")
    method, total = SimIE(Halving(), lam=LAM, start=start), Patch()
    for number, edit in golden.edits([0, 1, 2]).items():
        with patched(lm, total):
            total = total + method.edit(lm, [edit], total.memory)
        for name in WRITTEN[model]:
            stored = f"{model}/{start}/{number}/{name}"
            close(total.weights[name].dense() @ probes(lm.matrix(name).shape[1]), theirs[stored], 1e-6, stored)
