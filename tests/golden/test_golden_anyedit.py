"""AnyEdit against its authors' code on a tiny GPT-2 and a tiny Llama: the values of all chunks, and what is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors import anyedit
from editors.anyedit import AnyEdit
from harness.editing.edit import Edit
from harness.methods.block_training import Retained
from harness.methods.keys import Unedited

ANSWERS = {
    "d0": ("Ada Velmont was born in", "Rome. The mother tongue of Ada Velmont is Finnish."),
    "d2": ("Greta Holm plays", "basketball in Dublin, and the guitar in the evening."),
}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "memit/gpt2": ("tiny-gpt2", "d0", {"layers": (0, 1), "window": 4}),
    "memit/overlap": ("tiny-gpt2", "d0", {"layers": (1,), "window": 4, "overlap": 1, "clamp": 0.6}),
    "memit/llama": ("tiny-llama", "d0", {"layers": (0, 1), "window": 4}),
    "unke/llama": ("tiny-llama", "d0", {"blocks": (1,), "window": 4, "steps": 10}),
    "unke/two": ("tiny-llama", "d2", {"blocks": (0, 1), "window": 3, "steps": 4}),
}


def applied(delta: Tensor) -> Tensor:
    """What a change ``[out, in]`` gives for two inputs, ``[out, 2]``."""
    inputs = torch.arange(2 * delta.shape[1], dtype=torch.float64).sin()
    return delta.double() @ inputs.reshape(2, -1).T


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_of_several_chunks(golden, close, monkeypatch, variant):
    """Norms and rotary tables of the Llama are in float32 there."""
    name, which, settings = VARIANTS[variant]
    lm, near, write = golden.lm(name, "fp64"), 1e-6 if name == "tiny-gpt2" else 1e-4, variant.partition("/")[0]
    method = AnyEdit(write=write, v_steps=12, v_loss_layer=3, lam=20.0, lr=1e-3, **settings)
    kept = lm.batch([lm.encode(text) for text in golden.json("Q_unke_llama/inputs.json")["preserved_texts"][:1]])
    monkeypatch.setattr(Retained, "drawn", lambda *_args, **_named: kept)
    values: list[Tensor] = []
    find = anyedit.chunk_values
    monkeypatch.setattr(anyedit, "chunk_values", lambda *a, **k: values.extend(found := find(*a, **k)) or found)
    memory = Unedited(("{}",), golden.raw_moments(name)) if write == "memit" else Retained(("none",))
    prompt, answer = ANSWERS[which]
    patch = method.edit(lm, [Edit(which, prompt, None, answer)], memory)
    theirs = golden.tensors("anyedit.safetensors")
    close(values[0], theirs[f"{variant}/values"], near, "values")
    for parameter, delta in patch.weights.items():
        if f"{variant}/{parameter}" in theirs:
            close(applied(delta.dense()), theirs[f"{variant}/{parameter}"], near, parameter)
        if write == "unke":
            norm = float(theirs[f"{variant}/norm.{parameter}"])
            assert float(delta.dense().norm()) == pytest.approx(norm, rel=1e-4), parameter
    told = {
        key.removeprefix(f"{variant}/") for key in theirs if key.startswith(f"{variant}/") and key.endswith("weight")
    }
    assert {key for key in told if not key.startswith("norm.")} <= patch.weights.keys()
