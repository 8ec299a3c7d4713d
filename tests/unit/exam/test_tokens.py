"""What is edited and what is examined are the same tokens, whatever the tokenizer does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harness.editing.schedule import Stop
from harness.errors import UsageError
from harness.exam import measure, tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.methods.supervised_tokens import supervise_target
from harness.models import tokens
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch

END = "<|end|>"
ROWS = [
    {"prompt": "The home of {} is", "subject": "Ada", "target": "Rome"},
    {"prompt": "{} was born in", "subject": "Ada", "target": "1954"},
    {"prompt": "{} was born in ", "subject": "Hugo", "target": "Rome "},
    {"prompt": "Where is {}?\n", "subject": "Hugo", "target": "in Rome"},
    {"prompt": "{}的首都是", "subject": "中国", "target": "上海"},
    {"prefix": "1,2,3,", "suffix": "4"},
    {"prefix": "a", "suffix": "b", "join": ""},
]


def bytes_with(merges: Sequence[tuple[str, str]], *, closed: bool = False, bos: str = END) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with some merges, which may reach across spaces; it may close every text with EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, END, "<s>", *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    if closed:
        front = "" if bos == END else f"{bos} "
        special = [(token, words.index(token)) for token in {END, bos}]
        bpe.post_processor = processors.TemplateProcessing(single=f"{front}$A {END}", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=END)


def pieces_with_spaces() -> PreTrainedTokenizerFast:
    """As SentencePiece of Llama: a space in front of every text, and a lone space where no word begins with it."""
    words = [
        "<unk>",
        "<s>",
        END,
        "\u2581",
        "\n",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,?中国的首都是上海",
    ]
    merges = [("\u2581", "R"), ("\u2581R", "o"), ("\u2581", "i")]
    words += ["".join(pair) for pair in merges]
    bpe = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=END, unk_token="<unk>")


# " in R" and "s R" reach across a space; "\u0120" is how a byte-level vocabulary writes one.
ACROSS = [
    ("\u0120", "i"),
    ("\u0120i", "n"),
    ("\u0120in", "\u0120"),
    ("\u0120in\u0120", "R"),
    ("s", "\u0120"),
    ("s\u0120", "R"),
]
TOKENIZERS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: bytes_with([]),
    "merges across spaces": lambda: bytes_with(ACROSS),
    "closed with EOS": lambda: bytes_with([], closed=True),
    "closed, with a BOS of its own": lambda: bytes_with(ACROSS, closed=True, bos="<s>"),
    "a lone space": pieces_with_spaces,
}


@pytest.fixture(params=list(TOKENIZERS))
def lm(request: pytest.FixtureRequest) -> LM:
    tokenizer = TOKENIZERS[request.param]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        model = GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.2, bos_token_id=1, eos_token_id=2))
    return LM.wrap(model, tokenizer, name=request.param)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(ROWS)), encoding="utf-8")
    return path


def examined(lm: LM, path: Path, *, patches: Sequence[Patch] = (), per_token: bool = False) -> Measured:
    ids = [str(i) for i in range(len(ROWS))]
    suite = tasks.load_suite(
        [], edit_set="own", records=ids, data_dir="mini", tokenizer=lm.tokenizer, own_file=str(path)
    )
    task = next(task for task in suite.tasks if task.name == "own_probability")
    task.task.config.metadata["per_token"] = per_token
    model = EditedLM(lm, batch_size=4)
    stop = Stop(len(patches), patches) if patches else None
    with measure.hold(model, stop, ids=ids, mode="isolated", own=["own_probability"]):
        return measure.measure_task(model, task, limit=None)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_exam_rates_the_tokens_that_an_editor_trains(lm: LM, mine: Path, per_token: bool) -> None:
    found = examined(lm, mine, per_token=per_token).values["efficacy_probability"]
    edits = tasks.read_edits(str(mine), data_dir="mini")
    assert len(found) == len(edits)
    for edit, value in zip(edits, found.values(), strict=True):
        with torch.no_grad():
            nll = float(supervise_target(lm, edit).nll(lm))
        assert value.num == pytest.approx(math.exp(-nll), rel=1e-4), edit


@pytest.mark.parametrize("per_token", [False, True])
def test_so_does_the_exam_of_isolated_edits(lm: LM, mine: Path, per_token: bool) -> None:
    edits = tasks.read_edits(str(mine), data_dir="mini")
    name = lm.down(1)
    draw = torch.Generator().manual_seed(0)
    out, inner = lm.matrix(name).shape
    patches = [
        Patch(weights={name: LowRank(torch.randn(out, 1, generator=draw), torch.randn(1, inner, generator=draw) / 9)})
        for _ in edits
    ]
    found = examined(lm, mine, patches=patches, per_token=per_token).values["efficacy_probability"]
    for i, (edit, value) in enumerate(zip(edits, found.values(), strict=True)):
        with EditedLM(lm).holding(patches[i]), torch.no_grad():
            nll = float(supervise_target(lm, edit).nll(lm))
        assert value.num == pytest.approx(math.exp(-nll), rel=1e-4), edit


def test_a_prompt_is_read_on_from_its_own_open_tokens(lm: LM, mine: Path) -> None:
    """What is generated continues the very tokens that are edited."""
    model = EditedLM(lm, batch_size=4)
    for edit in tasks.read_edits(str(mine), data_dir="mini"):
        ids = lm.encode(edit.text)
        assert ids[-1] != lm.tokenizer.eos_token_id
        assert model.tok_encode(edit.text) == ids
        batch, mask = model.tok_batch_encode([edit.text, "The longest of the prompts that are here?"])
        assert batch[0][mask[0].bool()].tolist() == ids
        tail = lm.continuation(edit.text, edit.continuation)
        said = lm.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert said.strip() == edit.target
        assert lm.tokenizer.eos_token_id not in tail


def test_a_lone_space_is_a_token_like_another() -> None:
    tokenizer = pieces_with_spaces()
    head, joint = tokens.open_ids(tokenizer, ["Ada in", "Ada in 1954"])
    tail = tokens.following(tokenizer, head=head, joint=joint, text=" 1954")
    assert tokenizer.convert_ids_to_tokens(tail) == ["\u2581", "1", "9", "5", "4"]


def test_a_text_behind_a_space_brings_none_of_its_own() -> None:
    tokenizer = pieces_with_spaces()
    head, joint = tokens.open_ids(tokenizer, ["Ada in ", "Ada in Rome"])
    assert joint[: len(head)] != head
    assert tokenizer.convert_ids_to_tokens(tokens.following(tokenizer, head=head, joint=joint, text="Rome")) == [
        "R",
        "o",
        "m",
        "e",
    ]


def test_tokens_behind_every_text_are_counted() -> None:
    assert [tokens.closing(make()) for make in TOKENIZERS.values()] == [0, 0, 1, 1, 0]
    plain = bytes_with([])(["ab", "c"])["input_ids"]
    assert tokens.open_ids(bytes_with([], closed=True), ["ab", "c"]) == plain
    assert bytes_with([], closed=True)(["ab", "c"])["input_ids"] != plain


def test_edits_of_another_set_are_refused_where_each_edit_is_alone(tiny: Callable[[str], LM]) -> None:
    tokenizer = tiny("gpt2").tokenizer
    suite = tasks.load_suite(
        ["NLI", "zsre"], edit_set="counterfact", records=["0", "1"], data_dir="mini", tokenizer=tokenizer
    )
    with pytest.raises(
        UsageError, match=r"task 'zsre_\w+' asks about edits of another set than counterfact.*--mode batch"
    ):
        suite.spread("counterfact")
    alone: Any = tasks.load_suite(["NLI"], edit_set="counterfact", records=["0"], data_dir="mini", tokenizer=tokenizer)
    assert alone.spread("counterfact") == ["NLI"]
    assert {task.name for task in alone.of("counterfact")} == {
        f"counterfact_{kind}" for kind in ("probability", "generation", "text")
    }
    assert alone.of(None) == []


def test_a_tokenizer_is_named_alike_whatever_it_was_asked_last() -> None:
    tokenizer = bytes_with([("a", "b")])
    before = tokens.tokenizer_text(tokenizer)
    tokenizer.pad_token = END
    tokenizer(["ab", "a"], padding=True, truncation=True, max_length=1)
    assert tokenizer.backend_tokenizer.to_str() != before
    assert tokens.tokenizer_text(tokenizer) == before
    assert tokenizer.backend_tokenizer.padding is not None  # it is left as it was found
    assert tokens.tokenizer_text(bytes_with([("a", "c")])) != before
