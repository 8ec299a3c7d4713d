"""Checkpoints as people have them: what is odd about them is coped with, or told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from harness.editing.edit import Edit
from harness.errors import ModelError
from harness.exam.adapter import EditedLM
from harness.models import lm as loading
from harness.models.in_memory import wrapped
from harness.models.lm import LM
from harness.models.reading import require_causal

ENDS = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "head_dim": 16,
}


def words(**special: str | None) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of bytes and one token that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<|end|>"])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<|end|>", "eos_token": "<|end|>", **special}
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, **{k: v for k, v in ends.items() if v})


def llama(**other: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, **ENDS, **other}))


def saved(model: hf.PreTrainedModel, tokenizer: hf.PreTrainedTokenizerFast, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def with_settings(folder: str, **changed: object) -> str:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


@pytest.mark.parametrize("special", [{"pad_token": "[PAD]"}, {"pad_token": "[PAD]", "bos_token": None}, {}])
def test_padding_is_a_token_that_the_model_knows(tmp_path, special):
    lm = loading.load(saved(llama(), words(**special), tmp_path), device="cpu")
    assert 0 <= lm.pad < lm.vocabulary == 257
    alone = lm.model(torch.tensor([[5, 6]])).logits[0, 1]
    batch = lm.batch([[5, 6], [5, 6, 7, 8, 9]])
    padded = lm.model(batch.ids, attention_mask=batch.mask).logits[0, 1]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


def test_a_token_without_embedding_is_named():
    tokenizer = words()
    tokenizer.add_tokens(["[NEW]"])
    lm = LM.wrap(llama(), tokenizer, name="small")
    with pytest.raises(ModelError, match=r"small: the tokenizer writes token 257 \('\[NEW\]'\), but the model has 257"):
        lm.batch([lm.encode("a [NEW] thing")])


@pytest.mark.parametrize("ends", ["both", "bos", "eos", "neither"])
def test_tokenizers_without_a_token_that_begins_or_ends_a_text(tmp_path, ends):
    special = {f"{name}_token": None for name in ("bos", "eos") if ends not in ("both", name)}
    folder = saved(llama(), words(**special), tmp_path)
    if ends == "neither":
        with pytest.raises(ModelError, match="the tokenizer has no token that begins or ends a text"):
            loading.load(folder, device="cpu")
        return
    lm = loading.load(folder, device="cpu")
    assert lm.start == 256
    adapter = EditedLM(lm)
    assert adapter.prefix_token_id == adapter.eot_token_id == 256
    assert adapter.tok_encode("ab") == lm.encode("ab")


def gemma3() -> hf.PreTrainedModel:
    text = {**SIZES, **ENDS, "max_position_embeddings": 4096, "sliding_window": 64}
    vision = {k: SIZES[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads")}
    sizes = {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config={**vision, **sizes}, mm_tokens_per_image=4)
    )


def mpt() -> hf.PreTrainedModel:
    return hf.MptForCausalLM(
        hf.MptConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=2, expansion_ratio=2, max_seq_len=77)
    )


def ctrl() -> hf.PreTrainedModel:
    return hf.CTRLLMHeadModel(hf.CTRLConfig(vocab_size=257, n_positions=66, n_embd=32, dff=64, n_layer=2, n_head=2))


@pytest.mark.parametrize(("make", "context"), [(gemma3, 4096), (mpt, 77), (ctrl, 66), (llama, 128)])
def test_how_long_a_text_may_be(make, context):
    lm = LM.wrap(make(), words(), name="long")
    assert (lm.context, lm.vocabulary, lm.arch.width, lm.arch.layers) == (context, 257, 32, 2)
    assert "vision" not in lm.arch.blocks
    score = EditedLM(lm)._loglikelihood_tokens([(("a", "b"), [5, 6], [7])])[0][0]
    with torch.no_grad():
        expected = lm.model(torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1)[7]
    assert score == pytest.approx(float(expected), abs=1e-5)


# Of peft and transformers, where the test makes an adapter; that reading one is quiet is tried beside.
adapting = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@adapting
@pytest.mark.parametrize("where", ["absolute", "beside", "nothing"])
def test_an_adapter_is_merged_into_its_model(tmp_path, where):
    base = saved(llama(), words(), tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(hf.AutoModelForCausalLM.from_pretrained(base), settings)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    if where != "nothing":
        named = {"absolute": base, "beside": "../base"}[where]
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
        lm = loading.load(str(folder), device="cpu")
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            torch.testing.assert_close(lm.model(ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        plain = loading.load(base, device="cpu")
        assert not torch.allclose(lm.matrix(lm.down(0)), plain.matrix(plain.down(0)))
        assert list(lm.model.state_dict()) == list(plain.model.state_dict())
        return
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json names no base_model_name_or_path"):
        loading.load(str(folder), device="cpu")


@adapting
def test_an_adapter_without_weights_to_add(tmp_path):
    base = saved(llama(), words(), tmp_path / "base")
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(hf.AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="a PROMPT_TUNING adapter cannot be merged into the weights; give a LoRA"):
        loading.load(str(tmp_path / "adapter"), device="cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "a library that it needs is not installed"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "a library that it needs is not installed"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "is not installed"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "a library that it needs is not installed"),
        ({"hidden_size": 48}, "cannot be loaded"),
        ({"vocab_size": 300}, "cannot be loaded"),
        ({"model_type": "no-such-model"}, "cannot be loaded"),
        ({"num_hidden_layers": "three"}, "cannot be loaded"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks"),
        ({"is_encoder_decoder": True}, "llama is an encoder-decoder"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_told_in_one_line(tmp_path, changed, message):
    folder = with_settings(saved(llama(), words(), tmp_path), **changed)
    with pytest.raises(ModelError, match=message) as told:
        loading.load(folder, device="cpu")
    assert "\n" not in str(told.value)


def bart() -> hf.PreTrainedModel:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 64))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return hf.BartForConditionalGeneration(hf.BartConfig(vocab_size=257, d_model=32, **sides, **heads))


def t5() -> hf.PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=257, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )


def xlnet() -> hf.PreTrainedModel:
    return hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=257, d_model=32, n_layer=2, n_head=2, d_inner=64))


def bert(**other: object) -> hf.PreTrainedModel:
    sizes = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
    return hf.BertLMHeadModel(hf.BertConfig(**sizes, **other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bart, "bart is an encoder-decoder"),
        (t5, "t5 is an encoder-decoder"),
        (xlnet, "xlnet is no causal language model, as what it predicts depends on later tokens"),
        (bert, "bert is no causal language model"),
    ],
)
def test_other_models_say_what_they_are(tmp_path, make, message):
    folder = saved(make(), words(), tmp_path)
    with pytest.raises(ModelError, match=message):
        loading.load(folder, device="cpu")


def test_a_decoder_of_berts_kin_is_a_causal_model():
    require_causal("decoder", bert(is_decoder=True).eval())
    require_causal("llama", llama(torch_dtype="bfloat16").to(torch.bfloat16).eval())
    with pytest.raises(ModelError, match="in memory: bert is no causal language model"):
        require_causal("in memory", bert().eval())


def test_a_model_that_gives_tuples_is_told_of():
    model = llama().eval()
    model.config.return_dict = False
    with pytest.raises(ModelError, match=r"^in memory: its configuration has return_dict false, .*; set it to true$"):
        require_causal("in memory", model)


def test_weights_that_are_nowhere_are_named():
    model = llama()
    layer = model.model.layers[1].mlp
    layer.down_proj.weight = nn.Parameter(layer.down_proj.weight.to("meta"), requires_grad=False)
    for take in (lambda: LM.wrap(model, words(), name="offloaded"), lambda: wrapped(model, words())):
        with pytest.raises(
            ModelError, match=r"1 of its weights have no values \('model.layers.1.mlp.down_proj.weight'"
        ):
            take()


def test_an_embedding_narrower_than_the_blocks():
    """opt-350m: embeddings are projected to the blocks' width, and what leaves the blocks is projected back."""
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    model = hf.OPTForCausalLM(hf.OPTConfig(vocab_size=257, do_layer_norm_before=False, bos_token_id=256, **sizes))
    lm = LM.wrap(model, words(), name="narrow")
    assert (lm.arch.width, lm.arch.inner, lm.arch.down) == (32, 64, "model.decoder.layers.{}.fc2")
    assert lm.matrix(lm.down(1)).shape == (32, 64)
    assert len(lm.encode(Edit("1", "{} was born in", "Ada", "Rome").text)) > 0
