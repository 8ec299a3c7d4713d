"""KN against ROME's baseline (google/belief-localization at 0886d8d, third_party/baselines/kn), on a tiny GPT-2.

Their neurons are the outputs of ``c_fc`` before the activation function, asked at the last token of each prompt and
refined over paraphrases: ``neuron``, ``position`` and ``paraphrases`` here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.kn import KnowledgeNeurons
from harness.editing.edit import Edit
from harness.errors import ModelError, UsageError

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


def released(golden: Any, case: str, **changed: Any) -> KnowledgeNeurons:
    said = golden.json(f"{FOLDER}/inputs.json")
    settings: dict[str, Any] = {
        "threshold": said["adaptive_threshold"],
        "steps": said["steps"],
        "share": said["p"],
        "refine": True,
        "paraphrases": tuple(said["cases"][case]["templates"]),
        "neuron": "pre_activation",
        "position": "fixed",
    }
    return KnowledgeNeurons(**{**settings, **changed})


def edit_of_case(golden: Any, case: str) -> Edit:
    said = golden.json(f"{FOLDER}/inputs.json")["cases"][case]
    return Edit(case, said["templates"][0], said["subject"], said["target"].strip(), said["ground_truth"].strip())


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("case", ["0", "1", "3"])
def test_their_neurons(golden, case, precision):
    """Those of the first prompt, and those that are found behind more than half of the prompts."""
    told, lm = golden.json(f"{FOLDER}/expected.json")[precision][case], golden.lm("tiny-gpt2", precision)
    edit = edit_of_case(golden, case)
    coarse = released(golden, case, refine=False, paraphrases=None)._neurons(lm, edit, ("{}",))
    assert coarse == sorted(map(tuple, told["coarse_first_prompt"]))
    assert released(golden, case)._neurons(lm, edit, ("{}",)) == sorted(map(tuple, told["refined"]))


@pytest.mark.parametrize("case", ["0", "1", "3"])
def test_their_scores(golden, close, case):
    theirs, lm = golden.tensors(f"{FOLDER}/expected.safetensors"), golden.lm("tiny-gpt2", "fp64")
    edit, method = edit_of_case(golden, case), released(golden, case)
    stored = sorted(name for name in theirs if name.startswith(f"fp64/{case}/scores"))
    assert stored
    for name, prompt in zip(stored, method._prompts(edit, ()), strict=True):
        close(method._scores(lm, edit, lm.encode(prompt)), theirs[name], 1e-6, name)


@pytest.mark.parametrize("case", ["0", "1", "3"])
def test_the_whole_edit(golden, close, case):
    theirs, lm = golden.tensors(f"{FOLDER}/expected.safetensors"), golden.lm("tiny-gpt2", "fp64")
    patch = released(golden, case).edit(lm, [edit_of_case(golden, case)])
    wanted = {DOWN.format(k[-1]): v.T for k, v in theirs.items() if k.startswith(f"fp64/{case}/edit_delta_c_proj/")}
    assert patch.weights.keys() == wanted.keys()
    for name, value in wanted.items():
        close(patch.weights[name].dense(), value, 1e-6, name)


@pytest.mark.parametrize("changed", [{"neuron": "activation"}, {"paraphrases": None, "contexts": ("{}",)}])
def test_each_setting_finds_other_neurons(golden, changed):
    told, lm = golden.json(f"{FOLDER}/expected.json")["fp64"], golden.lm("tiny-gpt2", "fp64")
    found = [released(golden, c, **changed)._neurons(lm, edit_of_case(golden, c), ("{}",)) for c in told]
    assert found != [sorted(map(tuple, one["refined"])) for one in told.values()]


def test_a_gated_part_has_no_one_neuron_before_its_activation(golden):
    with pytest.raises(ModelError, match="2 matrices before its activation function, expected one"):
        released(golden, "0").edit(golden.lm("tiny-llama", "fp32"), [edit_of_case(golden, "0")])


def test_paraphrases_need_a_subject(golden):
    edit = Edit("0", "Ada Velmont was born in", None, "Rome", "Paris")
    with pytest.raises(UsageError, match="names no subject for the paraphrases"):
        released(golden, "0").edit(golden.lm("tiny-gpt2", "fp32"), [edit])
