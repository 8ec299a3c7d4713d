"""The Backpack: its definition written out in float64, its sizes, its cache, and checkpoints by the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from harness.errors import ModelError
from harness.models import lm as loading
from harness.models.activations import prefix_cache
from harness.models.backpack import BackpackConfig, BackpackForCausalLM
from harness.patches.patch import Patch, patched

TEXTS = ["Ada Velmont was born in Rome", "The home of Hugo Lantern is Oslo, Norway and the home of Hugo is Oslo"]


@pytest.fixture(scope="module")
def model() -> BackpackForCausalLM:
    """Two layers, width 24, four heads, three senses; big weights, so that an error shows."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "num_senses": 3, "n_positions": 40}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = BackpackForCausalLM(BackpackConfig(**sizes, **ends, initializer_range=0.3)).double().eval()
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # biases and norms are not zero and one
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Two rows of eleven tokens, some of them twice."""
    return torch.randint(1, 12, (2, 11), generator=torch.Generator().manual_seed(0))


# --- the definition ---------------------------------------------------------------------------------------------------


def norm(x: np.ndarray, name: str, w: Mapping[str, np.ndarray]) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(x: np.ndarray, name: str, w: Mapping[str, np.ndarray]) -> np.ndarray:
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(x: np.ndarray, name: str, w: Mapping[str, np.ndarray]) -> np.ndarray:
    inner = affine(x, f"{name}.c_fc", w)
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return affine(gelu, f"{name}.c_proj", w)


def causal(scores: np.ndarray) -> np.ndarray:
    scores = np.where(np.tril(np.ones(scores.shape, dtype=bool)), scores, -10000.0)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(x: np.ndarray, layer: int, heads: int, w: Mapping[str, np.ndarray]) -> np.ndarray:
    """GPT-2's, the scores divided by the number of the layer as well."""
    q, k, v = np.split(affine(x, f"h.{layer}.attn.c_attn", w), 3, axis=1)
    size = x.shape[1] // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    mixed = [causal(q[:, p] @ k[:, p].T / np.sqrt(size) / (layer + 1)) @ v[:, p] for p in parts]
    return affine(np.concatenate(mixed, 1), f"h.{layer}.attn.c_proj", w)


def reference(model: BackpackForCausalLM, ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits ``[t, V]``, ``alpha [k, t, t]`` and senses ``[t, k, d]`` of one row, by sums over positions and senses."""
    everything = {n.removeprefix("backpack."): p.numpy() for n, p in model.state_dict().items()}
    w = {n.removeprefix("gpt2_model.").removeprefix("sense_network."): p for n, p in everything.items()}
    config, embedding = model.config, w["wte.weight"]
    senses, width = config.num_senses, config.n_embd
    e = embedding[ids]
    r1 = norm(e, "ln", w) + e
    r2 = mlp(norm(r1, "block.ln_1", w), "block.mlp", w) + r1
    c = mlp(norm(r2, "block.ln_2", w), "final_mlp", w).reshape(len(ids), senses, width)
    h = e + w["wpe.weight"][: len(ids)]
    for layer in range(config.n_layer):
        h = h + attention(norm(h, f"h.{layer}.ln_1", w), layer, config.n_head, w)
        h = h + mlp(norm(h, f"h.{layer}.ln_2", w), f"h.{layer}.mlp", w)
    both = norm(h, "ln_f", w) @ w["sense_weight_net.c_attn.weight"].T + w["sense_weight_net.c_attn.bias"]
    q, k = (part.reshape(len(ids), senses, -1) for part in np.split(both, 2, axis=1))
    alpha = np.stack([causal(q[:, s] @ k[:, s].T / np.sqrt(width / senses)) for s in range(senses)])
    o = np.zeros((len(ids), width))
    for t in range(len(ids)):
        for s in range(t + 1):
            for sense in range(senses):
                o[t] += alpha[sense, t, s] * c[s, sense]
    return o @ embedding.T, alpha, c


def test_the_definition_written_out(model: BackpackForCausalLM, ids: Tensor) -> None:
    out = model(input_ids=ids)
    for row in range(2):
        logits, alpha, senses = reference(model, ids[row].tolist())
        assert np.allclose(out.logits[row], logits, atol=1e-10)
        assert np.allclose(out.contextualization[row], alpha, atol=1e-12)
        found = model.backpack.sense_network(model.get_input_embeddings()(ids[row : row + 1]))[0]
        assert np.allclose(found, senses, atol=1e-10)


def test_alpha_is_a_distribution_over_earlier_positions_for_each_sense(model: BackpackForCausalLM, ids: Tensor) -> None:
    alpha = model(input_ids=ids).contextualization
    assert alpha.shape == (2, 3, 11, 11)
    assert torch.allclose(alpha.sum(-1), torch.ones(2, 3, 11).double())
    assert float(alpha.min()) >= 0
    assert float(alpha.triu(1).max()) < 1e-6
    assert not torch.allclose(alpha[:, 0], alpha[:, 1])


def test_senses_depend_on_the_token_alone(model: BackpackForCausalLM) -> None:
    senses = model.backpack.sense_network(model.get_input_embeddings()(torch.tensor([[5, 9, 5], [7, 7, 5]])))
    assert senses.shape == (2, 3, 3, 24)
    for same in (senses[0, 2], senses[1, 2]):
        assert torch.allclose(senses[0, 0], same, atol=1e-12)
    assert not torch.allclose(senses[0, 0], senses[0, 1], atol=0.1)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "count"),
    [(768, 12, 12, 170_083_584), (640, 8, 8, 103_856_000), (384, 6, 6, 41_659_776)],
)
def test_published_sizes(width: int, layers: int, heads: int, count: int) -> None:
    with torch.device("meta"):
        model = BackpackForCausalLM(BackpackConfig(n_embd=width, n_layer=layers, n_head=heads))
    assert sum(p.numel() for p in model.parameters()) == count
    assert (model.config.vocab_size, model.config.n_positions, model.config.num_senses) == (50264, 512, 16)


def test_start_values_are_small_where_they_add_to_a_sum() -> None:
    config = BackpackConfig(vocab_size=300, n_embd=96, n_layer=8, n_head=4, num_senses=4)
    model = BackpackForCausalLM(config).requires_grad_(False)
    last = model.backpack.sense_network.final_mlp
    assert float(last.c_fc.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(last.c_proj.weight.std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert float(model.backpack.gpt2_model.h[0].mlp.c_proj.weight.std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert not last.c_proj.bias.any()


def test_senses_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ModelError, match="width 24 cannot have 5 senses"):
        BackpackForCausalLM(BackpackConfig(vocab_size=8, n_embd=24, n_layer=1, n_head=2, num_senses=5))


def test_a_change_of_one_sense_changes_logits_by_what_the_formula_says(tiny) -> None:
    """Logits change by ``E sum over s with x_s = v of alpha[l, t, s] D``, and nowhere before ``v`` first stands."""
    lm = tiny("backpack")
    row = lm.encode(TEXTS[1])
    batch, token, sense = lm.batch([row]), row[6], 2
    width = lm.arch.width
    change = torch.randn(width, generator=torch.Generator().manual_seed(1))

    def hook(senses: Tensor, step: object) -> Tensor:
        found = senses.reshape(*batch.ids.shape, -1, width).clone()
        found[:, :, sense] += (batch.ids == token)[..., None] * change
        return found.reshape(senses.shape)

    with torch.no_grad():
        plain = lm.model(input_ids=batch.ids)
        with patched(lm, Patch(hooks={"backpack.sense_network": hook})):
            edited = lm.model(input_ids=batch.ids)
    weight = (plain.contextualization[0, sense] * (batch.ids[0] == token)).sum(-1)
    wanted = weight[:, None] * (lm.matrix("lm_head.weight") @ change)
    assert torch.allclose(edited.logits[0] - plain.logits[0], wanted, atol=1e-3, rtol=1e-4)
    first = row.index(token)
    assert torch.equal(edited.logits[0, :first], plain.logits[0, :first])
    assert float(wanted[first:].abs().max()) > 0.1


# --- cache, padding, labels -------------------------------------------------------------------------------------------


def test_a_text_read_in_parts_is_the_text_read_at_once(model: BackpackForCausalLM, ids: Tensor) -> None:
    whole = model(input_ids=ids)
    cache, parts = None, []
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        out = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
        assert torch.allclose(out.contextualization, whole.contextualization[:, :, start:stop, :stop], atol=1e-12)
    assert torch.allclose(torch.cat(parts, 1), whole.logits, atol=1e-10)
    assert len(cache.layers) == model.cache_layers == 3


def test_generation_with_a_cache_and_padding_on_the_left(model: BackpackForCausalLM, ids: Tensor) -> None:
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(14) >= 3).long().expand(2, -1)
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    left = model.generate(padded, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(plain, cached)
    assert torch.equal(left[:, 3:], plain)
    beams = [
        model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, use_cache=use, **options)
        for use in (True, False)
    ]
    assert torch.equal(*beams)


def test_what_is_hidden_gets_no_weight(model: BackpackForCausalLM, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[:, 2] = 0
    seen = model(input_ids=ids, attention_mask=mask)
    assert not seen.contextualization[:, :, 3:, 2].any()
    assert torch.allclose(seen.contextualization.sum(-1), torch.ones(2, 3, 11).double())
    tile = (mask[:, None, :] * torch.ones(11, 11).tril()).bool()[:, None]
    added = torch.zeros(tile.shape).double().masked_fill(~tile, -1e9)
    assert torch.allclose(model(input_ids=ids, attention_mask=added).logits[:, 3:], seen.logits[:, 3:], atol=1e-10)


def test_last_logits_labels_and_embeddings(model: BackpackForCausalLM, ids: Tensor) -> None:
    whole = model(input_ids=ids, labels=ids)
    log_p = whole.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    assert float(whole.loss) == pytest.approx(-float(log_p.mean()))
    assert torch.allclose(model(input_ids=ids, logits_to_keep=2).logits, whole.logits[:, -2:])
    assert torch.allclose(model(input_ids=ids, logits_to_keep=torch.tensor([1, 4])).logits, whole.logits[:, [1, 4]])
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids))
    assert torch.equal(embedded.logits, whole.logits)


def test_a_cache_without_senses_is_refused(model: BackpackForCausalLM, ids: Tensor) -> None:
    cache = DynamicCache()
    model.backpack.gpt2_model(input_ids=ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ModelError, match="holds no senses"):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_what_stands_in_front_of_rows_is_computed_once(tiny) -> None:
    lm = tiny("backpack")
    rows = [lm.encode(text) for text in TEXTS]
    front = prefix_cache(lm, [tuple(row[:3]) for row in rows])
    assert front is not None and len(front.keys) == lm.cache_layers == 4
    rest = lm.batch([row[3:] for row in rows])
    with torch.no_grad():
        logits = lm.model(input_ids=rest.ids, **front.inputs(lm, rest)).logits
        for i, row in enumerate(rows):
            whole = lm.model(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(logits[i, : len(row) - 3], whole[3:], atol=1e-3, rtol=1e-4)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tiny, tmp_path: Path) -> None:
    lm = tiny("backpack")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = loading.load(str(tmp_path), device="cpu")
    assert isinstance(again.model, BackpackForCausalLM)
    assert again.fingerprint() == lm.fingerprint()
    assert again.arch == lm.arch
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), BackpackForCausalLM)


PUBLISHED = {
    "backpack.gpt2_model.wte.weight": (400, 64),
    "backpack.gpt2_model.wpe.weight": (512, 64),
    "backpack.word_embeddings.weight": (400, 64),
    "backpack.position_embeddings.weight": (512, 64),
    "backpack.gpt2_model.h.0.ln_1.weight": (64,),
    "backpack.gpt2_model.h.0.ln_1.bias": (64,),
    "backpack.gpt2_model.h.0.attn.bias": (1, 1, 512, 512),
    "backpack.gpt2_model.h.0.attn.c_attn.weight": (64, 192),
    "backpack.gpt2_model.h.0.attn.c_attn.bias": (192,),
    "backpack.gpt2_model.h.0.attn.c_proj.weight": (64, 64),
    "backpack.gpt2_model.h.0.attn.c_proj.bias": (64,),
    "backpack.gpt2_model.h.0.ln_2.weight": (64,),
    "backpack.gpt2_model.h.0.ln_2.bias": (64,),
    "backpack.gpt2_model.h.0.mlp.c_fc.weight": (64, 256),
    "backpack.gpt2_model.h.0.mlp.c_fc.bias": (256,),
    "backpack.gpt2_model.h.0.mlp.c_proj.weight": (256, 64),
    "backpack.gpt2_model.h.0.mlp.c_proj.bias": (64,),
    "backpack.gpt2_model.ln_f.weight": (64,),
    "backpack.gpt2_model.ln_f.bias": (64,),
    "backpack.sense_network.block.ln_1.weight": (64,),
    "backpack.sense_network.block.ln_1.bias": (64,),
    "backpack.sense_network.block.ln_2.weight": (64,),
    "backpack.sense_network.block.ln_2.bias": (64,),
    "backpack.sense_network.block.mlp.c_fc.weight": (64, 256),
    "backpack.sense_network.block.mlp.c_fc.bias": (256,),
    "backpack.sense_network.block.mlp.c_proj.weight": (256, 64),
    "backpack.sense_network.block.mlp.c_proj.bias": (64,),
    "backpack.sense_network.ln.weight": (64,),
    "backpack.sense_network.ln.bias": (64,),
    "backpack.sense_network.final_mlp.c_fc.weight": (64, 256),
    "backpack.sense_network.final_mlp.c_fc.bias": (256,),
    "backpack.sense_network.final_mlp.c_proj.weight": (256, 1024),
    "backpack.sense_network.final_mlp.c_proj.bias": (1024,),
    "backpack.sense_weight_net.c_attn.weight": (128, 64),
    "backpack.sense_weight_net.c_attn.bias": (128,),
    "lm_head.weight": (400, 64),
}
"""The names of stanfordnlp/backpack-gpt2, with the shapes of one block of width 64."""


@pytest.fixture
def published(tiny, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as published: its own class names in a config of GPT-2's type, shared matrices under every name."""
    draw = torch.Generator().manual_seed(5)
    state = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in PUBLISHED.items()}
    state["backpack.gpt2_model.h.0.attn.bias"] = torch.ones(1, 1, 512, 512).tril().bool()
    for alias in ("backpack.word_embeddings.weight", "lm_head.weight"):
        state[alias] = state["backpack.gpt2_model.wte.weight"]
    state["backpack.position_embeddings.weight"] = state["backpack.gpt2_model.wpe.weight"]
    about = {
        "model_type": "gpt2",
        "architectures": ["BackpackGPT2LMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_backpack_gpt2.BackpackGPT2LMHeadModel"},
        "vocab_size": 400,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": 512,
        "num_senses": 16,
        "sense_intermediate_scale": 4,
        "scale_attn_by_inverse_layer_idx": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    torch.save(state, tmp_path / "pytorch_model.bin")
    tiny("gpt2").tokenizer.save_pretrained(tmp_path)
    return tmp_path, state


def test_a_published_checkpoint_loads_by_its_names(published: tuple[Path, dict[str, Tensor]]) -> None:
    folder, state = published
    lm = loading.load(str(folder), device="cpu")
    assert isinstance(lm.model, BackpackForCausalLM)
    held = lm.model.state_dict()
    assert set(held) <= set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())
    ids = lm.encode(TEXTS[0])
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
    wanted, _, _ = reference(lm.model.double(), ids)
    assert np.allclose(logits, wanted, atol=1e-3)


def test_a_checkpoint_that_lacks_weights_is_refused(published: tuple[Path, dict[str, Tensor]]) -> None:
    folder, state = published
    del state["backpack.sense_network.ln.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks backpack\.sense_network\.ln\.weight, which would be random"):
        loading.load(str(folder), device="cpu")
