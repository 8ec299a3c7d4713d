"""Second moments against the authors' code (kmeng01/memit at 80426fd, rome/layer_stats.py), on a tiny GPT-2."""

from __future__ import annotations

import pytest

from harness.methods.second_moments import accumulate_moments

FOLDER = "B_covariance_gpt2"


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_moments_of_given_texts(golden, close, precision):
    said, counts = golden.json(f"{FOLDER}/inputs.json"), golden.json(f"{FOLDER}/expected.json")
    theirs, lm = golden.tensors(f"{FOLDER}/expected.safetensors"), golden.lm("tiny-gpt2", precision)
    tolerance = {"fp64": 1e-9, "fp32": 1e-5}[precision]
    for case, layer in (("all63", 1), ("sample40", 2)):
        indices = counts[case].get("indices", range(63))
        moment = accumulate_moments(lm, [layer], [said["texts"][i] for i in indices])[layer]
        assert moment.count == counts[case][precision]["count"]
        close(moment.matrix, theirs[f"{precision}/{case}/moment.{layer}"], tolerance, case)


@pytest.mark.parametrize("precision", ["fp64"])
def test_all_layers_in_one_pass_are_the_layers_one_by_one(golden, close, precision):
    texts, lm = golden.json(f"{FOLDER}/inputs.json")["texts"], golden.lm("tiny-gpt2", precision)
    together = accumulate_moments(lm, [0, 1, 2], texts)
    for layer in (0, 2):
        alone = accumulate_moments(lm, [layer], texts, budget=300)
        close(together[layer].matrix, alone[layer].matrix, 1e-12, f"layer {layer}")
