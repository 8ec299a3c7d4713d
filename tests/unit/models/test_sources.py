"""Where a model comes from: a GGUF file, a revision, an adapter, and what lm-eval's arguments of a model mean here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import pre_tokenizers

from harness.errors import ModelError, UsageError
from harness.models import lm as loading
from harness.models.naming import model_key, split_revision
from harness.models.reading import Checkpoint, read_checkpoint

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

# peft asks a model by a name that transformers has given up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

HEADS, WIDTH, LAYERS = 4, 32, 2


def llama(layers: int = LAYERS, width: int = WIDTH, seed: int = 0) -> hf.LlamaForCausalLM:
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=258, hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=256, eos_token_id=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).eval()


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensor_name(name: str) -> str:
    """What llama.cpp calls a weight of a Llama."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries and keys in the order of llama.cpp."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: hf.LlamaForCausalLM, architecture: str = "llama") -> Path:
    """A Llama as a file of llama.cpp, with a tokenizer of bytes."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "ab"])
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        found = next((n for part, n in heads.items() if part in name), None)
        writer.add_tensor(tensor_name(name), permuted(array, found) if found else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_a_gguf_file_gives_the_logits_of_its_model(tmp_path: Path) -> None:
    model = llama()
    path = write_gguf(tmp_path / "Tiny-Llama.Q8_0.gguf", model)
    lm = loading.load(str(path), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(lm.model(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)
    assert lm.encode("abc") and lm.arch.layers == LAYERS and lm.dtype == torch.float32
    lm.model.save_pretrained(tmp_path / "plain")  # a checkpoint that says nothing of a quantisation
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_damaged_and_unknown_files_are_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", llama()).read_bytes()
    cases = {
        "cut.gguf": (whole[: len(whole) // 2], "cut off or damaged .*fetch it again"),
        "short.gguf": (whole[:40], "cut off or damaged .*fetch it again"),
        "text.gguf": (b"once upon a time", "is no GGUF file"),
    }
    for name, (content, told) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=told) as error:
            loading.load(str(tmp_path / name), device="cpu")
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"absent\.gguf: no such file"):
        loading.load(str(tmp_path / "absent.gguf"), device="cpu")
    other = write_gguf(tmp_path / "other.gguf", llama(), "rwkv7")
    with pytest.raises(ModelError, match=r"other\.gguf: .*rwkv7.* not supported.*; give another file"):
        loading.load(str(other), device="cpu")


def test_without_its_reader_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama())
    monkeypatch.setattr("harness.models.reading.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'lm-edit-harness\[gguf\]'"):
        loading.load(str(path), device="cpu")


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama with the tokenizer of its GGUF file."""
    path = write_gguf(tmp_path / "base.gguf", llama())
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    llama().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: hf.PreTrainedModel, name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the Hub for the base
    return folder


def test_an_adapter_is_put_on_the_base_that_an_argument_names(base: Path, tmp_path: Path) -> None:
    folder = adapter(llama(), "somewhere/else", tmp_path / "adapter")
    lm = loading.load(str(base), device="cpu", args={"peft": str(folder)})
    wanted = hf.AutoModelForCausalLM.from_pretrained(base)
    wanted = PeftModel.from_pretrained(wanted, folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(lm.model(IDS).logits, wanted(IDS).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(lm.model(IDS).logits, llama()(IDS).logits, atol=1e-3)


@pytest.mark.parametrize("other", ["wider", "deeper", "shallower", "another family"])
def test_an_adapter_of_another_base_is_one_line(base: Path, tmp_path: Path, other: str) -> None:
    theirs = {
        "wider": lambda: llama(width=64),
        "deeper": lambda: llama(layers=3),
        "shallower": lambda: llama(layers=1),
        "another family": lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=2)
        ),
    }[other]()
    names = ["query_key_value"] if other == "another family" else ["q_proj"]
    model = get_peft_model(theirs, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"the adapter was trained for another base .*; name that model in") as error:
        loading.load(str(tmp_path / "adapter"), device="cpu")
    assert "\n" not in str(error.value)


# --- revisions and arguments ------------------------------------------------------------------------------------------


def test_names_with_revisions(tmp_path: Path) -> None:
    assert split_revision("owner/name@v1.0") == ("owner/name", "v1.0")
    assert split_revision("owner/name") == ("owner/name", None)
    (tmp_path / "with@sign").mkdir()
    assert split_revision(str(tmp_path / "with@sign")) == (str(tmp_path / "with@sign"), None)
    with pytest.raises(ModelError, match="has no revisions; leave @main out"):
        split_revision(f"{tmp_path}@main")
    with pytest.raises(ModelError, match="expected a Hub repository and a revision"):
        split_revision("owner/name@")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("openai-community/GPT2-XL@main", "gpt2-xl"),
        ("/models/SmolLM2-135M-Instruct/", "smollm2-135m-instruct"),
        ("x/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct"),
        ("Llama-3.2-1B-bf16.gguf", "llama-3.2-1b"),
        ("mini", "mini"),
    ],
)
def test_what_names_a_model_among_presets(name: str, key: str) -> None:
    assert model_key(name) == key


def test_two_revisions_are_refused() -> None:
    with pytest.raises(ModelError, match="the name says revision a and model_args b; give one of them"):
        _ = Checkpoint("o/n@a", "o/n@a", args={"revision": "b"}).revision


@pytest.mark.parametrize(("key", "option"), [("pretrained", "--model"), ("dtype", "--dtype"), ("parallelize", "auto")])
def test_arguments_that_are_options_are_refused(key: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"model_args: {key}=x is said with .*{option}"):
        read_checkpoint(Checkpoint("mini", "mini", args={key: "x"}))


def test_arguments_reach_transformers(base: Path) -> None:
    lm = loading.load(str(base), device="cpu", args={"attn_implementation": "eager"})
    assert lm.model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="nowhere"):
        loading.load(str(base), device="cpu", args={"tokenizer": "./nowhere"})


def test_a_subfolder(base: Path) -> None:
    lm = loading.load(str(base.parent), device="cpu", args={"subfolder": "base"})
    assert lm.arch.layers == LAYERS


def test_a_revision_that_is_not_here_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"nobody/nothing@v9: cannot be loaded .*not on this machine"):
        loading.load("nobody/nothing@v9", device="cpu")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nobody/nothing@v9: ") as error:
        loading.load("nobody/nothing@v9", device="cpu")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20


# --- types and devices ------------------------------------------------------------------------------------------------


def test_the_type_of_the_checkpoint(base: Path, tmp_path: Path) -> None:
    half = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    hf.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    assert loading.load(str(tmp_path / "half"), device="cpu", dtype="auto").dtype == torch.bfloat16
    assert loading.load(str(tmp_path / "half"), device="cpu").dtype == torch.float32
    assert loading.load("mini", device="cpu", dtype="auto").dtype == torch.float32


def test_a_device_map_or_a_device(base: Path) -> None:
    assert loading.load(str(base), device_map="cpu").device.type == "cpu"
    with pytest.raises(UsageError, match="device is cpu and device_map auto; give one of them"):
        loading.load(str(base), device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="device_map 'everywhere' cannot be used"):
        loading.load(str(base), device_map="everywhere")
