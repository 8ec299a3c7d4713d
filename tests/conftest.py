"""Fixtures shared by all tests: the folder of reference data, a small tokenizer, tiny random models of families."""

from __future__ import annotations

import checked_shapes  # noqa: F401  (first: what has been imported already is not checked)

# isort: split
import ast
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    lfm2,
    llama,
    mistral,
    mpt,
    olmo2,
    opt,
    phi,
    qwen2,
    qwen3,
)

from harness.editing.edit import Edit
from harness.models import backpack
from harness.models.lm import LM

# Two workers of two threads each on two cores wait for one another; the programs that tests start obey the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
backpack.register()
# How quick a machine is decides no test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

WIDTH, INNER, LAYERS, HEADS, CONTEXT = 32, 64, 3, 4, 96

_PEOPLE = [
    "Ada Velmont",
    "Hugo Lantern",
    "Elena Marsh",
    "Rosa Delgado",
    "Jonas Wick",
    "Greta Holm",
    "Oskar Thorne",
    "Iris Calder",
]
_CITIES = ["Rome", "Paris", "Oslo", "Lisbon", "Vienna", "Prague", "Athens", "Dublin"]
_SAYINGS = [
    "{} was born in {}.",
    "The home of {} is {}.",
    "{} has never seen {}.",
    "Everybody knows that {} lives in {}.",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """The tests of a file stay on one worker, so that what its fixtures make is made once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; the test is skipped where there is none."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (../shared) is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this test session only."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Plain sentences, one a document."""
    return [say.format(who, where) for say in _SAYINGS for who in _PEOPLE for where in _CITIES]


@pytest.fixture(scope="session")
def text(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the sentences, one document a line, and lines of random letters.

    Where attention and feed-forward part stand in parallel (GPT-J, NeoX), the keys of the first layer depend on the
    token alone: the text needs more kinds of tokens than a key has numbers.
    """
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = random.Random(0)
    noise = ["".join(chr(draw.randrange(33, 127)) for _ in range(30)) for _ in range(40)]
    path.write_text("\n".join([*sentences, *noise]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def make_tokenizer(sentences: list[str]) -> Callable[[bool], PreTrainedTokenizerFast]:
    """A byte-level BPE tokenizer of 400 tokens; with a BOS token in front of every text if asked for."""

    def make(bos: bool = False) -> PreTrainedTokenizerFast:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(sentences, trainer)
        if bos:
            bpe.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
        special = {"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
        return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **special)

    return make


def _config(family: str, vocabulary: int) -> PretrainedConfig:
    """A configuration of one family: three layers, width 32, keys of 64."""
    old = {
        "vocab_size": vocabulary,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "n_inner": INNER,
    }
    new = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
    }
    grouped = {**new, "num_key_value_heads": 2}
    ends: dict[str, object] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.15}
    opt_sizes = {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "dropout": 0.0, **new}
    made: dict[str, Callable[[], PretrainedConfig]] = {
        "gpt2": lambda: gpt2.GPT2Config(**old, **ends, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "backpack": lambda: backpack.BackpackConfig(
            **old, **ends, num_senses=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
        "gptj": lambda: gptj.GPTJConfig(**old, **ends, rotary_dim=4, tie_word_embeddings=False),
        "neox": lambda: gpt_neox.GPTNeoXConfig(**new, **ends),
        "llama": lambda: llama.LlamaConfig(**grouped, **ends),
        "mistral": lambda: mistral.MistralConfig(**grouped, **ends),
        "qwen2": lambda: qwen2.Qwen2Config(**grouped, **ends),
        "qwen3": lambda: qwen3.Qwen3Config(**grouped, **ends, head_dim=8),
        "gemma": lambda: gemma.GemmaConfig(**grouped, **ends, head_dim=8),
        "gemma2": lambda: gemma2.Gemma2Config(**grouped, **ends, head_dim=8, query_pre_attn_scalar=8),
        "olmo2": lambda: olmo2.Olmo2Config(**grouped, **ends),
        "lfm2": lambda: lfm2.Lfm2Config(
            **grouped, **ends, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
        ),
        "granite": lambda: granite.GraniteConfig(**grouped, **ends, residual_multiplier=0.3),
        "opt": lambda: opt.OPTConfig(**opt_sizes, **{**ends, "pad_token_id": 1}, init_std=0.15),
        "phi": lambda: phi.PhiConfig(**new, **ends),
        "bloom": lambda: bloom.BloomConfig(**{**new, **ends}),
        "falcon": lambda: falcon.FalconConfig(**{**new, **ends}, ffn_hidden_size=INNER),
        "mpt": lambda: mpt.MptConfig(
            vocab_size=vocabulary, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, expansion_ratio=2, max_seq_len=CONTEXT
        ),
    }
    return made[family]()


@pytest.fixture(scope="session")
def fresh(make_tokenizer: Callable[[bool], PreTrainedTokenizerFast], text: str) -> Callable[..., LM]:
    """A new tiny random model: ``fresh(family, seed=0, dtype=torch.float32)``; Llama and Mistral put BOS in front."""

    def make(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> LM:
        tokenizer = make_tokenizer(family in ("llama", "mistral"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(family, len(tokenizer)))
        return LM.wrap(model.to(dtype), tokenizer, name=f"tiny-{family}", text=text)

    return make


@pytest.fixture(scope="session")
def tiny(fresh: Callable[..., LM]) -> Callable[[str], LM]:
    """The tiny random model of a family, made once; a test must leave it as it found it."""
    made: dict[str, LM] = {}

    def get(family: str) -> LM:
        if family not in made:
            made[family] = fresh(family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def taught(fresh: Callable[..., LM]) -> Callable[[str], LM]:
    """A tiny model that knows where eight people were born and where their home is; made once, left as it was found."""
    made: dict[str, LM] = {}

    def get(family: str) -> LM:
        if family not in made:
            made[family] = fresh(family)
            _teach(made[family])
        return made[family]

    return get


def _teach(lm: LM, steps: int = 120) -> None:
    """Full-batch Adam on sentences of the facts, with and without another sentence in front."""
    facts = []
    for i, who in enumerate(_PEOPLE):
        born, home = _CITIES[(i + 1) % len(_CITIES)], _CITIES[(i + 3) % len(_CITIES)]
        said = [
            f"{who} was born in {born}.",
            f"The home of {who} is {home}.",
            f"Everybody knows {who} has seen {born}.",
        ]
        facts += [*said, *(f"Nobody knows. {sentence}" for sentence in said)]
    batch = lm.batch([lm.encode(sentence) for sentence in facts])
    targets = batch.ids[:, 1:].masked_fill(batch.mask[:, 1:] == 0, -100)
    lm.model.requires_grad_(True)
    adam = torch.optim.Adam(lm.model.parameters(), lr=5e-3)
    for _ in range(steps):
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    lm.model.requires_grad_(False)


@pytest.fixture(scope="session")
def edits() -> list[Edit]:
    """Edits with the subject at the start, in the middle and at the end, with targets of one and of several tokens."""
    return [
        Edit("a", "{} was born in", "Ada Velmont", "Rome", relation="birth"),
        Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", relation="home"),
        Edit("c", "Everybody knows {}", "Elena Marsh", "lives in Paris", relation="home"),
    ]


@pytest.fixture(scope="session")
def checkpoint(
    make_tokenizer: Callable[[bool], PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a tiny random model with a context of 640 tokens: ``checkpoint(family, seed=0)``, made once."""
    made: dict[tuple[str, int], Path] = {}

    def get(family: str, seed: int = 0) -> Path:
        if (family, seed) not in made:
            tokenizer = make_tokenizer(family in ("llama", "mistral"))
            config = _config(family, len(tokenizer))
            config.max_position_embeddings = tokenizer.model_max_length = 640
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config)
            folder = tmp_path_factory.mktemp("models") / f"tiny-{family}-{seed}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[family, seed] = folder
        return made[family, seed]

    return get


@pytest.fixture(scope="session")
def nudge() -> str:
    """The path of an editor of these tests: a seeded random change of rank one for each edit."""
    return str(Path(__file__).with_name("nudge.py"))


@pytest.fixture(scope="session")
def is_test() -> Callable[[str], bool]:
    """Whether there is a test of a name such as ``unit/studies/test_ball.py::test_no_repetition``."""
    known: dict[str, set[str]] = {}

    def there(name: str) -> bool:
        file, _, wanted = name.partition("::")
        if file not in known:
            body = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8")).body
            known[file] = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        return wanted.startswith("test_") and wanted in known[file]

    return there


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shapes are not checked on calls: for a test of what the code itself says of a wrong one."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks are not indexed (14,000 files): for tests that only need a name to be unknown."""
    from harness.exam import tasks

    whole = tasks.TaskManager

    def without_defaults(**options: object) -> object:
        return whole(**{**options, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", without_defaults)
