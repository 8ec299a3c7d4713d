"""KN against ROME's baseline (google/belief-localization at 0886d8d, third_party/baselines/kn), on a tiny GPT-2.

What is written into the neurons that they found.  Which neurons are found cannot be compared: theirs are the outputs of
``c_fc`` before the activation function, ours what enters the down-projection, as in the paper.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.kn import KnowledgeNeurons
from harness.editing.edit import Edit

FOLDER = "E_kn_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("case", ["0", "1", "3"])
def test_what_is_written_into_their_neurons(golden, close, monkeypatch, case, precision):
    said, told = golden.json(f"{FOLDER}/inputs.json")["cases"][case], golden.json(f"{FOLDER}/expected.json")["fp64"]
    neurons = [(layer, index) for layer, index in told[case]["refined"]]
    monkeypatch.setattr(KnowledgeNeurons, "_neurons", lambda *_: neurons)
    edit = Edit(case, said["templates"][0], said["subject"], said["target"].strip(), said["ground_truth"].strip())
    patch = KnowledgeNeurons().edit(golden.lm("tiny-gpt2", precision), [edit])
    theirs: dict[str, Any] = golden.tensors(f"{FOLDER}/expected.safetensors")
    wanted = {DOWN.format(k[-1]): v.T for k, v in theirs.items() if k.startswith(f"fp64/{case}/edit_delta_c_proj/")}
    assert patch.weights.keys() == wanted.keys()
    for name, value in wanted.items():
        close(patch.weights[name].dense(), value, {"fp64": 1e-6, "fp32": 2e-4}[precision], name)
        assert int(torch.count_nonzero(value.abs().sum(0))) == sum(f".{layer}." in name for layer, _ in neurons)
