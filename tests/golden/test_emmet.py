"""EMMET on the authors' MEMIT numbers: the same keys and values, its own solution of the layer.

Keys and optimised values are those of kmeng01/memit at 80426fd on a tiny GPT-2 at one layer; the update is computed as
scalable-model-editing/unified-model-editing at 23d72b5 does, with explicit inverses.
"""

from __future__ import annotations

import pytest
import torch

from editors.emmet import Emmet
from harness.methods.keys import Unedited

STEM = "fp64/one_layer"
DOWN = "transformer.h.1.mlp.c_proj.weight"


@pytest.mark.parametrize(
    ("lam", "relaxed", "norm"), [(1.0, 0.1, 0.0), (20.0, 0.1, 0.0), (1.0, 0.0, 0.0), (1.0, 0.1, 0.5)]
)
def test_batch_of_six(golden, close, lam, relaxed, norm):
    said, theirs = golden.json("B_memit_gpt2/inputs.json"), golden.tensors("B_memit_gpt2/expected.safetensors")
    shared, moments = said["hparams"], golden.moments("tiny-gpt2")
    cases = said["batch_case_ids"]
    method = Emmet(
        layers=(1,),
        v_steps=shared["v_num_grad_steps"],
        v_lr=shared["v_lr"],
        v_loss_layer=shared["v_loss_layer"],
        v_weight_decay=shared["v_weight_decay"],
        clamp=shared["clamp_norm_factor"],
        kl_factor=shared["kl_factor"],
        lam=lam,
        emmet_lambda=relaxed,
        norm_control=norm,
    )
    first, others = golden.json("inputs/contexts.json")["memit"]
    edits = list(golden.edits(cases).values())
    patch = method.edit(golden.lm("tiny-gpt2", "fp64"), edits, Unedited((first[0], *others), moments))
    wanted = torch.stack([theirs[f"{STEM}/z.{case}"] for case in cases])
    key, residual = theirs[f"{STEM}/keys.1"].T, (wanted - theirs[f"{STEM}/cur_z_before_layer.1"]).T
    kept = torch.inverse(lam * moments[1].matrix.double() + norm * torch.eye(128, dtype=torch.float64))
    inner = key.T @ kept @ key + relaxed * torch.eye(6, dtype=torch.float64)
    plain = residual @ torch.inverse(inner) @ key.T @ kept
    close(patch.weights[DOWN].dense(), plain, 1e-6, f"lam {lam}, emmet_lambda {relaxed}, norm_control {norm}")
