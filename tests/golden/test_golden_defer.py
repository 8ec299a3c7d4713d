"""DEFER against the authors' code (Thartvigsen/GRACE at f674183), on a tiny GPT-2 and a tiny Llama, three edits.

There as here one deferral is trained on, edit after edit.  Both maps start from sines, so that no draw is stored.  What
their code does otherwise than ours by default: one token decides for all positions of a pass (``routing=pass``).
"""

from __future__ import annotations

import math

import pytest
import torch

from editors.defer import Defer, Deferral
from harness.editing.edit import Edit
from harness.patches.patch import Patch, patched

EDITS = "P_grace_gpt2/inputs.json"
REL = {"tiny-gpt2": 1e-6, "tiny-llama": 1e-4}  # a Llama normalises in float32 there, too


def sines(*shape: int, begin: float, width: int) -> torch.Tensor:
    count = math.prod(shape)
    return (torch.sin(torch.arange(count, dtype=torch.float64) + begin) / math.sqrt(width)).reshape(shape)


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama"])
def test_three_edits_in_a_row(golden, close, model):
    edits, theirs = golden.json(EDITS)["edits"][:3], golden.tensors("defer.safetensors")
    lm, stem = golden.lm(model, "fp64"), f"fp64/{model}"
    method = Defer(layer=2, site="down", routing="pass", n_iter=6, edit_lr=1e-2)
    width, out = lm.arch.each[2].inner, lm.arch.width
    start = {
        "weight": sines(1, width, begin=1, width=width),
        "bias": torch.tensor([0.1], dtype=torch.float64),
        "answer": sines(1, out, width, begin=2, width=width),
        "shift": sines(1, out, begin=3, width=width),
    }
    held = Deferral((), threshold=0.5, routing="pass", **start)
    probe = torch.cos(torch.arange(width, dtype=torch.float64) + 1)
    for i, row in enumerate(edits):
        held = method.edit(lm, [Edit(row["id"], row["prompt"], None, row["target_new"])], held).memory
        close(held.weight[0], theirs[f"{stem}/e{i}/weight"], REL[model], "w")
        close(held.bias, theirs[f"{stem}/e{i}/bias"], REL[model], "b")
        close(held.answer[0] @ probe, theirs[f"{stem}/e{i}/probed"], REL[model], "V")
        close(held.shift[0], theirs[f"{stem}/e{i}/shift"], REL[model], "c")
    ids = torch.tensor([lm.encode(edits[2]["prompt"])])
    with patched(lm, Patch(hooks={method.module(lm): held})), torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0]
    close(logits[:, :16], theirs[f"{stem}/logits"], REL[model], "logits in use")
