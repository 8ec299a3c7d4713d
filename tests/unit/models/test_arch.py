"""Where the parts of a model are, found by shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.errors import ModelError
from harness.models import arch

DOWNS = {
    "gpt2": ("transformer.h.{}", "transformer.h.{}.mlp", "transformer.h.{}.mlp.c_proj", "transformer.ln_f"),
    "backpack": (
        "backpack.gpt2_model.h.{}",
        "backpack.gpt2_model.h.{}.mlp",
        "backpack.gpt2_model.h.{}.mlp.c_proj",
        "backpack.gpt2_model.ln_f",
    ),
    "gptj": ("transformer.h.{}", "transformer.h.{}.mlp", "transformer.h.{}.mlp.fc_out", "transformer.ln_f"),
    "neox": (
        "gpt_neox.layers.{}",
        "gpt_neox.layers.{}.mlp",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
    ),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma"),
        ("model.layers.{}", "model.layers.{}.mlp", "model.layers.{}.mlp.down_proj", "model.norm"),
    ),
    "opt": (
        "model.decoder.layers.{}",
        "model.decoder.layers.{}.fc2",
        "model.decoder.layers.{}.fc2",
        "model.decoder.final_layer_norm",
    ),
    "phi": ("model.layers.{}", "model.layers.{}.mlp", "model.layers.{}.mlp.fc2", "model.final_layernorm"),
}


@pytest.mark.parametrize("family", DOWNS)
def test_parts_of_each_family(tiny, family):
    found = tiny(family).arch
    assert (found.blocks, found.mlp, found.down, found.norm) == DOWNS[family]
    assert (found.layers, found.width, found.inner) == (3, 32, 64)
    lm = tiny(family)
    assert lm.module(found.embedding) is lm.model.get_input_embeddings()
    assert lm.module(found.head) is lm.model.get_output_embeddings()
    assert lm.matrix(lm.down(2)).shape == (32, 64)


ATTENTION = {
    **dict.fromkeys(("gpt2", "gptj"), "transformer.h.{}.attn"),
    "backpack": "backpack.gpt2_model.h.{}.attn",
    "neox": "gpt_neox.layers.{}.attention",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi"), "model.layers.{}.self_attn"),
    "opt": "model.decoder.layers.{}.self_attn",
}


@pytest.mark.parametrize("family", ATTENTION)
def test_the_attention_of_each_family(tiny, family):
    found = tiny(family).arch
    assert found.attn == ATTENTION[family]
    assert found.attn_of(2) == ATTENTION[family].format(2)
    with pytest.raises(ModelError, match="layer 3"):
        found.attn_of(3)


@pytest.mark.parametrize("family", DOWNS)
def test_the_input_of_the_down_projection_gives_its_output(tiny, family):
    """What is found is the matrix that is used: ``y = W k + b`` with the matrix as ``[out, in]``."""
    lm, seen = tiny(family), {}
    owner = lm.module(lm.arch.down_of(1))
    handle = owner.register_forward_hook(lambda _, args, out: seen.update(k=args[0], y=out))
    try:
        with torch.no_grad():
            lm.model(torch.tensor([lm.encode("Ada Velmont was born in Rome")]))
    finally:
        handle.remove()
    bias = owner.bias if getattr(owner, "bias", None) is not None else 0
    assert torch.allclose(seen["k"] @ lm.matrix(lm.down(1)).T + bias, seen["y"], atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there(tiny, layer):
    with pytest.raises(ModelError, match="the model has layers 0 to 2"):
        tiny("gpt2").arch.down_of(layer)


def test_names_by_hand(tiny):
    model = tiny("gpt2").model
    by_hand = arch.resolve_architecture(model, {"down": "transformer.h.{}.attn.c_proj", "mlp": "transformer.h.{}.attn"})
    assert by_hand.down_of(1) == "transformer.h.1.attn.c_proj"
    assert by_hand.inner == 32
    with pytest.raises(ModelError, match=r"did you mean .*transformer"):
        arch.resolve_architecture(model, {"down": "transformer.h.{}.mlp.c_prj"})
    with pytest.raises(ModelError, match="the parts are embedding, blocks"):
        arch.resolve_architecture(model, {"downs": "transformer.h.{}.mlp.c_proj"})
    with pytest.raises(ModelError, match="does not end in"):
        arch.resolve_architecture(model, {"blocks": "transformer.h"})


class _Strange(nn.Module):
    """A model of another build: one block with a single matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.ModuleDict({"only": nn.Linear(8, 8)}) for _ in range(2))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.embed


def test_an_unknown_architecture_says_what_was_looked_for_and_how_to_name_it():
    with pytest.raises(ModelError, match=r"no down found \(looked for two or three matrices .* --arch blocks="):
        arch.resolve_architecture(_Strange()).down_of(0)  # type: ignore[arg-type]
