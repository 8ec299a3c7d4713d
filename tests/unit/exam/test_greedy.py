"""Greedy continuations side by side: transformers' own texts, for families, stops, fronts, and with little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.errors import ModelError
from harness.exam import adapter, greedy
from harness.exam.adapter import EditedLM
from harness.models import packing
from harness.models.lm import LM
from harness.patches.patch import Patch

FAMILIES = ["gpt2", "neox", "llama", "gptj", "opt", "mistral", "qwen2", "qwen3", "gemma", "phi", "olmo2", "granite"]
OTHERS = ["gemma2", "bloom", "falcon", "mpt", "backpack"]
START = "The home of Greta Holm is Oslo. Everybody knows that Rosa Delgado lives in Rome. "
PROMPTS = [
    *("Ada Velmont was born in", "The home of Hugo Lantern is", "Elena Marsh", "Jonas Wick has never seen"),
    *(START + tail for tail in ("Ada", "Hugo Lantern was born in", "The home of Iris Calder is")),
    *("Oskar", "Greta Holm was born in Vienna. Greta Holm lives in", "Everybody knows that"),
]


def asked(most: int = 12, until: tuple[str, ...] = (), **more: Any) -> list[Instance]:
    """A request for each prompt."""
    options = {"until": list(until), "max_gen_toks": most, "do_sample": False, **more}
    return [Instance("generate_until", {}, (p, dict(options)), 0, metadata=("t", i, 1)) for i, p in enumerate(PROMPTS)]  # type: ignore[arg-type]


def plain(lm: LM, requests: list[Instance]) -> list[str]:
    """The texts of lm-eval's own model, each written alone."""
    found: list[str] = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1).generate_until(requests)
    return found


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be written by transformers."""

    def refuse(*_: object) -> None:
        raise AssertionError("transformers wrote a text")

    monkeypatch.setattr(adapter.EditedLM, "_written_plainly", refuse)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("ours")
def test_every_text_is_that_of_lm_eval(family: str, tiny: Callable[[str], LM]) -> None:
    lm = tiny(family)
    for requests in (asked(), asked(until=(".", " in")), asked(most=1)):
        expected = plain(lm, requests)
        for rows in (3, 32):
            assert EditedLM(lm, batch_size=rows).generate_until(requests) == expected
    assert len(set(expected)) >= 3


@pytest.mark.parametrize("family", OTHERS)
def test_models_of_other_kinds_write_the_same(family: str, tiny: Callable[[str], LM]) -> None:
    lm = tiny(family)
    assert EditedLM(lm).generate_until(asked()) == plain(lm, asked())


@pytest.mark.usefixtures("ours")
def test_the_end_of_a_text_ends_it(fresh: Callable[..., LM]) -> None:
    """Whatever token the checkpoint names beside the tokenizer's own."""
    lm = fresh("llama")
    unbounded = EditedLM(lm).generate_until(asked())
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in unbounded]
    lm.model.generation_config.eos_token_id = [0, ids[2][1], ids[8][3]]
    expected = plain(lm, asked())
    assert expected != unbounded
    assert EditedLM(lm, batch_size=4).generate_until(asked()) == expected


@pytest.mark.usefixtures("ours")
def test_a_text_that_is_done_costs_nothing_more(tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is taken by the next, and what contexts begin with is read once."""
    monkeypatch.setattr(packing, "_STEM", 4)
    lm, seen = tiny("llama"), list[tuple[int, ...]]()
    requests = asked(until=(" in",))
    expected = plain(lm, requests)
    model = EditedLM(lm, batch_size=4)
    model.generate_until(requests)  # what is tried once is not tried again
    model.room.front = 60
    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    assert model.generate_until(requests) == expected
    handle.remove()
    read = sum(rows * columns for rows, columns in seen if columns > 1)
    assert read < 0.9 * sum(len(lm.encode(prompt)) for prompt in PROMPTS)
    steps = sum(rows for rows, columns in seen if columns == 1)
    assert steps <= sum(len(lm.encode(text)) + 2 for text in expected)
    assert max(rows for rows, columns in seen if columns == 1) == 4


@pytest.mark.parametrize("most", [70, 30])
@pytest.mark.usefixtures("ours")
def test_with_little_memory_fewer_are_written_at_once(most: int, tiny: Callable[[str], LM]) -> None:
    lm, refused = tiny("gpt2"), list[int]()
    expected = plain(lm, asked())

    def refuse(_module: object, args: tuple[Tensor, ...], given: dict[str, Any]) -> None:
        cache = given.get("past_key_values")
        held = sum(layer.keys.shape[0] * layer.keys.shape[2] for layer in cache.layers[:1] if layer.is_initialized)
        if held + args[0].shape[0] * args[0].shape[1] > most * 3:
            refused.append(held)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = EditedLM(lm)
    model.room.fits, model.room.written = True, 10_000
    handle = lm.module(lm.arch.attn_of(0)).register_forward_pre_hook(refuse, with_kwargs=True)
    assert model.generate_until(asked()) == expected
    handle.remove()
    assert refused


def test_one_context_that_does_not_fit_is_told(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for patch in (Patch(), Patch(hooks={lm.arch.block(0): lambda hidden, step: hidden})):
        handle = lm.module(lm.arch.block(0)).register_forward_pre_hook(refuse)
        with EditedLM(lm).holding(patch) as model, pytest.raises(ModelError, match="not even one such text fits into"):
            model.generate_until(asked())
        handle.remove()


@pytest.mark.parametrize("more", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}])
def test_what_greedy_decoding_does_not_know_is_left_to_transformers(more: Any, tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")
    expected = plain(lm, asked(**more))
    assert expected != plain(lm, asked())
    assert EditedLM(lm).generate_until(asked(**more)) == expected


def test_a_checkpoint_that_penalises_repetition_is_followed(fresh: Callable[..., LM]) -> None:
    lm = fresh("llama")
    before = plain(lm, asked())
    lm.model.generation_config.repetition_penalty = 1.5
    expected = plain(lm, asked())
    assert expected != before
    assert EditedLM(lm).generate_until(asked()) == expected


def test_a_model_that_does_not_keep_all_tokens_is_left_to_transformers(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = fresh("mistral")
    lm.model.config.sliding_window = 6
    model = EditedLM(lm)
    assert model.generate_until(asked()) == plain(lm, asked())
    assert model._written_greedily(asked(), None) is None
    monkeypatch.setattr(greedy.Writing, "_near", lambda *_: False)
    model = EditedLM(fresh("llama"))
    assert model.generate_until(asked()) == plain(model.lm, asked())
    assert model.room.fits is False
