"""Tiny random models of the families that transformers has: what editors do on them is measured.

A family is its ``model_type``; what stands in brackets is a variant. Sizes are as small as a family bears: three
blocks, 32 numbers a token, keys of 64, and a tokenizer of bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.models import backpack

__all__ = [
    "FAMILIES",
    "known_families",
    "make_model",
    "make_tokenizer",
    "save_autoencoder",
    "save_model",
    "write_text",
]

_OLD = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 96, "n_inner": 64}
_NEW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
}
_GROUPED = {**_NEW, "num_key_value_heads": 1, "head_dim": 16}
_EXPERTS = {
    **_GROUPED,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
_MLA = {
    **_NEW,
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
}
_LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _OLD,
    "gpt_bigcode": _OLD,
    "gptj": {**_OLD, "rotary_dim": 8},
    "codegen": {**_OLD, "rotary_dim": 8, "n_head": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 2,
        "intermediate_size": 64,
        "attention_types": [[["global"], 3]],
        "max_position_embeddings": 96,
    },
    "gpt_neox": _NEW,
    "gpt_neox_japanese": _NEW,
    "openai-gpt": _OLD,
    "ctrl": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 96, "dff": 64},
    "opt": {**_NEW, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "opt (narrow embedding)": {
        **_NEW,
        "activation_function": "gelu",  # of neurons that no token wakes a second moment has no inverse
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 2, "expansion_ratio": 2, "max_seq_len": 96},
    "falcon": {**_NEW, "ffn_hidden_size": 64},
    "xglm": {
        "pad_token_id": 1,
        "d_model": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "attention_heads": 2,
        "max_position_embeddings": 96,
    },
    "biogpt": _NEW,
    "phi": _NEW,
    "phi3": _GROUPED,
    "persimmon": _NEW,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "ministral": _GROUPED,
    "ministral3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_GROUPED, "query_pre_attn_scalar": 16},
    "vaultgemma": {**_GROUPED, "query_pre_attn_scalar": 16},
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "cohere": _GROUPED,
    "cohere2": _GROUPED,
    "glm": _GROUPED,
    "glm4": _GROUPED,
    "granite": {**_GROUPED, "residual_multiplier": 0.3},
    "helium": _GROUPED,
    "nemotron": _GROUPED,
    "smollm3": _GROUPED,
    "ernie4_5": _GROUPED,
    "exaone4": _GROUPED,
    "arcee": _GROUPED,
    "seed_oss": _GROUPED,
    "apertus": _GROUPED,
    "hunyuan_v1_dense": _GROUPED,
    "nanochat": _GROUPED,
    "cwm": _GROUPED,
    "bitnet": _GROUPED,
    "modernbert-decoder": _NEW,
    "bert (decoder)": {**_NEW, "is_decoder": True},
    "backpack": {**_OLD, "num_senses": 4},
    "falcon_h1": {**_GROUPED, **_MAMBA, "mlp_multipliers": [0.7, 0.3]},
    "bamba": {**_GROUPED, **_MAMBA, "attn_layer_indices": [1]},
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "qwen3_5_text": {**_GROUPED, **_LINEAR},
    "recurrent_gemma": {
        **_GROUPED,
        "intermediate_size": 128,
        "lru_width": 32,
        "attention_window_size": 32,
        "block_types": ["recurrent", "attention"],
    },
    "jamba": {
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "zamba": {
        **_NEW,
        "num_key_value_heads": 2,
        "attention_hidden_size": 64,
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "mamba_d_state": 4,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        **_NEW,
        "num_key_value_heads": 2,
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "mamba_d_state": 4,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "nemotron_h": {
        **_EXPERTS,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 24,
    },
    "granitemoehybrid (dense)": {
        **_GROUPED,
        **_MAMBA,
        "num_local_experts": 0,
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 64,
    },
    "olmo_hybrid": {**_GROUPED, **_LINEAR},
    "qwen3_next": {**_EXPERTS, **_LINEAR},
    "qwen3_5_moe_text": {**_EXPERTS, **_LINEAR},
    "kimi_linear": {
        **_MLA,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "linear_attn_config": {
            "kda_layers": [1, 2],
            "full_attn_layers": [3],
            "num_heads": 2,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
    },
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 3, "context_length": 96},
    "xlstm": {"hidden_size": 128, "num_hidden_layers": 3, "num_heads": 2, "chunk_size": 16, "ffn_proj_factor": 0.5},
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "flex_olmo": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "phimoe": _EXPERTS,
    "granitemoe": _EXPERTS,
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 24},
    "jetmoe": {**_EXPERTS, "num_key_value_heads": 2, "kv_channels": 16},
    "dbrx": {
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 3,
        "max_seq_len": 96,
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 2, "moe_top_k": 1},
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "minimax": {
        **_EXPERTS,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 16,
    },
    "minimax_m2": _EXPERTS,
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": [1, 1, 1], "num_shared_expert": [1, 1, 1]},
    "ernie4_5_moe": {
        **_EXPERTS,
        "moe_num_experts": 2,
        "moe_k": 1,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "llama4_text": {
        **_EXPERTS,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    },
    "glm4_moe": {
        **_GROUPED,
        **{k: v for k, v in _MLA.items() if k not in _NEW and "rank" not in k},
        "n_shared_experts": 1,
    },
    "dots1": {
        **_GROUPED,
        **{k: v for k, v in _MLA.items() if k not in _NEW and "rank" not in k},
        "n_shared_experts": 1,
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "longcat_flash": {
        **_MLA,
        "head_dim": 8,
        "num_layers": 2,
        "num_hidden_layers": 4,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 24,
        "num_experts_per_tok": 2,
        "moe_topk": 2,
        "zero_expert_num": 1,
    },
    "afmoe": {**_EXPERTS, "num_dense_layers": 1, "num_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "exaone_moe": {**_EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "gemma3n_text": {
        **_GROUPED,
        "intermediate_size": [64, 64, 64],
        "vocab_size_per_layer_input": 257,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "layer_types": ["full_attention"] * 3,
        "activation_sparsity_pattern": [0.0] * 3,
    },
    "gemma4_text": {
        **_GROUPED,
        "vocab_size_per_layer_input": 257,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 3,
        "global_head_dim": 16,
    },
    "bert": _NEW,
    "xlnet": {"d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 64},
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
}
"""Configuration of a tiny model of each family; what stands in brackets is a variant."""


def known_families() -> list[str]:
    """The families that this version of transformers has."""
    backpack.register()
    return [name for name in FAMILIES if _kind(name) in CONFIG_MAPPING]


def _kind(family: str) -> str:
    return family.partition(" (")[0]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and one token that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<|end|>"])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<|end|>", "eos_token": "<|end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **ends)  # type: ignore[no-untyped-call]


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family; every parameter is moved, norms and biases too, so that none of them hides another.

    Args:
        family: one of :data:`FAMILIES`.
        seed: of its parameters.
    """
    backpack.register()
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    config = CONFIG_MAPPING[_kind(family)](**{"vocab_size": 257, **ends, **FAMILIES[family]})
    make = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = make.from_config(config)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_model(family: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a random model of a family, as transformers saves it.

    Args:
        family: one of :data:`FAMILIES`.
        folder: where it is saved.
        seed: of its parameters.
    """
    make_model(family, seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path) -> str:
    """Plain text for second moments, with more kinds of tokens than a key has numbers.

    Where attention and feed-forward part stand in parallel, the keys of the first layer depend on the token alone.
    """
    draw = random.Random(0)
    noise = ["".join(chr(draw.randrange(33, 127)) for _ in range(30)) for _ in range(40)]
    said = [f"The town of number {i} lies by a river, and {i * 7} people live there." for i in range(60)]
    path.write_text("\n".join(line for pair in zip(noise, said, strict=False) for line in pair), encoding="utf-8")
    return str(path)


def save_autoencoder(folder: Path, *, width: int, features: int, seed: int = 0, **config: object) -> dict[str, Tensor]:
    """Write a random autoencoder of unit directions that are read as they are written; its tensors.

    Args:
        folder: where; it is made.
        width: the numbers of a state.
        features: how many it has.
        seed: of its directions.
        config: more of ``cfg.json``.
    """
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(features, width, generator=draw), dim=1)
    held = {
        "W_enc": decoder.T.contiguous(),
        "b_enc": 0.1 * torch.randn(features, generator=draw),
        "W_dec": decoder,
        "b_dec": 0.1 * torch.randn(width, generator=draw),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(held, folder / "sae_weights.safetensors")
    said = {"architecture": "standard", "d_in": width, "d_sae": features}
    named = {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    (folder / "cfg.json").write_text(json.dumps({**said, **named, **config}), encoding="utf-8")
    return held
