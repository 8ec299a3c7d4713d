"""What is written is what was optimised, whatever stands between a down-projection and the residual stream."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from editors.memit import Memit
from editors.rome import Rome
from harness.errors import ModelError
from harness.methods.keys import prompt_rows
from harness.methods.value import optimise
from harness.models.activations import read_activations
from harness.models.lm import LM
from harness.patches.patch import patched

QUICK = {"layers": (0,), "v_steps": 4, "contexts": ("{}",), "cov_tokens": 1000}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64}


@pytest.fixture(scope="module")
def multiplied(make_tokenizer, text):
    """A tiny Falcon-H1, which multiplies what its down-projection gives by 0.3."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 400, "max_position_embeddings": 96}
    config = hf.FalconH1Config(**sizes, **heads, **MAMBA, mlp_multipliers=[0.7, 0.3], pad_token_id=0)
    return LM.wrap(hf.FalconH1ForCausalLM(config), make_tokenizer(False), name="multiplied", text=text)


def written(lm, editor, edit):
    """What the edited layer's down-projection gives, and what was optimised for it."""
    name = lm.arch.down_of(0)
    rows = prompt_rows(lm, edit, ("{}",), fact_token="subject_last")
    value = optimise(lm, [edit], ("{}",), objective=editor.objective(0)).value[0]
    with patched(lm, editor.edit(lm, [edit])):
        return read_activations(lm, rows, outputs=[name]).outputs[name][0], value


@pytest.mark.parametrize("editor", [Rome(**QUICK), Memit(**QUICK, lam=1e-7, site="mlp")])
@pytest.mark.parametrize("family", ["multiplied", "gemma2", "olmo2", "granite", "llama"])
def test_the_value_is_what_is_written(tiny, edits, multiplied, family, editor):
    lm = multiplied if family == "multiplied" else tiny(family)
    editor.require(lm)
    found, value = written(lm, editor, edits[0])
    assert float((found - value).norm() / value.norm()) < (1e-5 if editor.name == "rome" else 1e-3)


@pytest.mark.parametrize("family", ["multiplied", "gemma2", "olmo2", "granite"])
def test_what_does_not_arrive_is_refused_before_anything_is_measured(tiny, multiplied, family):
    lm = multiplied if family == "multiplied" else tiny(family)
    with pytest.raises(ModelError, match=r"between '.*down_proj' and the residual stream.* --set site=mlp"):
        Memit(**QUICK).require(lm)
