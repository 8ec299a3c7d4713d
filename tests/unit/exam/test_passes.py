"""What forward passes of the exam compute, and how much: beginnings once, logits in pieces, and never too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.errors import ModelError
from harness.exam import passes
from harness.exam.adapter import EditedLM
from harness.exam.span_scores import Span, score
from harness.models import packing
from harness.models.lm import LM
from harness.models.memory import Room, kept_bytes, out_of_memory
from harness.patches.delta import LowRank
from harness.patches.patch import Patch

FAMILIES = ["gpt2", "neox", "llama", "gptj", "opt", "mistral", "qwen2", "qwen3", "gemma", "phi"]
OTHERS = ["gemma2", "olmo2", "granite", "bloom", "falcon", "mpt", "backpack"]
"""Families that do something to the logits behind the output layer, or that have no positions."""


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so short that what tiny texts share stands in front of them."""
    monkeypatch.setattr(packing, "_ROW", 12)
    monkeypatch.setattr(packing, "_STEM", 4)
    monkeypatch.setattr(packing, "_ROOM", 10)


def draw(length: int, seed: int) -> list[int]:
    """Random tokens."""
    return torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def questions() -> list[Span]:
    """Two sets of examples, before each three questions of which each has three answers; a text on its own."""
    found = [Span((*draw(9, 99), 7), 3)]
    for shot in range(2):
        for asked in range(3):
            stem = [*draw(20, shot), *draw(6, 10 + asked)]
            found += [Span((*stem, *draw(1 + i, 20 + i)), 1 + i) for i in range(3)]
    return found


def by_hand(lm: LM, one: Span) -> float:
    """One text alone, in float64, by the definition."""
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[i - 1, one.ids[i]]) for i in range(len(one.ids) - one.scored, len(one.ids)))


@contextmanager
def tokens(lm: LM) -> Iterator[list[int]]:
    """How many tokens went through the model in each pass."""
    seen: list[int] = []
    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    try:
        yield seen
    finally:
        handle.remove()


# --- beginnings ------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("short_rows")
def test_what_stands_in_front_of_many_rows_is_computed_once(family: str, tiny: Callable[[str], LM]) -> None:
    lm, spans, room = tiny(family), questions(), Room(1024, front=60)
    expected = [by_hand(lm, span) for span in spans]
    for _ in range(2):  # what was tried once is not tried again
        with tokens(lm) as seen:
            found = score(lm, spans, room=room)
        assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)
    assert room.shared and room.apart is None
    tree = {span.ids[:i] for span in spans for i in range(1, len(span.ids))}
    assert sum(seen) <= len(tree) + 20  # with padding; each beginning once
    assert max(seen) < sum(seen) / 2  # in several passes


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.usefixtures("short_rows")
def test_models_of_other_kinds_get_the_same_numbers(family: str, tiny: Callable[[str], LM]) -> None:
    lm, spans = tiny(family), questions()
    found = score(lm, spans, room=Room(1024, front=60))
    assert [value for value, _ in found] == pytest.approx([by_hand(lm, span) for span in spans], abs=1e-4)


@pytest.mark.usefixtures("short_rows")
def test_rows_behind_a_front_carry_their_own_patch(tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")
    made = torch.Generator().manual_seed(0)
    out, width = lm.matrix(lm.down(0)).shape
    patches = [
        Patch({lm.down(i): LowRank(torch.randn(out, 1, generator=made), torch.randn(1, width, generator=made))})
        for i in range(2)
    ]
    start = "Ada Velmont was born in Rome. Everybody knows that Hugo Lantern lives in Oslo."
    pairs = [(f"{start} {who} is", said) for who in ("Ada", "Hugo", "Elena") for said in (" old.", " in Paris", " ill")]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("t", i % 2, 1)) for i in range(2) for pair in pairs]  # type: ignore[arg-type]
    model = EditedLM(lm)
    model.room.front = 60
    with model.isolated(patches, lambda request: int(request.doc_id or 0)), tokens(lm) as seen:
        found = model.loglikelihood(asked)
    assert sum(seen) < 0.6 * sum(len(lm.encode("".join(one.args))) - 1 for one in asked)
    for i, (request, (value, _)) in enumerate(zip(asked, found, strict=True)):
        with EditedLM(lm).holding(patches[int(request.doc_id or 0)]) as alone:
            assert value == pytest.approx(alone.loglikelihood([request])[0][0], abs=1e-4), i


def test_parts_of_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fronts grow with what more texts share; they hold no token that is asked about."""
    monkeypatch.setattr(packing, "_ROW", 12)
    monkeypatch.setattr(packing, "_STEM", 4)
    first, second = tuple(range(1, 9)), tuple(range(20, 26))
    texts = [(*first, *second, i, i, i) for i in range(30, 36)] + [(*first, i, i, i) for i in range(40, 46)] + [(5, 6)]
    found = packing.pack_texts(texts, [0] * len(texts), [len(t) - 1 for t in texts], most=40)
    assert {row.front for row in found} == {(), first, first + second}
    held = {i: (*row.front, *(row.ids[c] for c in cs)) for row in found for i, cs in row.texts.items()}
    assert held == dict(enumerate(texts))
    assert all(row.depth[row.texts[i][0]] == len(row.front) for row in found for i in row.texts)
    assert {row.front for row in packing.pack_texts(texts, [0] * len(texts), [10] * len(texts), most=40)} == {(), first}
    assert {row.front for row in packing.pack_texts(texts, [0] * len(texts), [10] * len(texts), most=7)} == {
        (),
        first[:7],
    }
    assert {row.front for row in packing.pack_texts(texts, [0] * len(texts))} == {()}


# --- logits ------------------------------------------


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_logits_come_in_pieces(family: str, tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the model does to them behind its output layer, and never more at once than asked for."""
    lm, widths = tiny(family), list[int]()
    spans = [Span((*draw(12, i), 7), 11 - i % 2) for i in range(5)]
    monkeypatch.setattr(passes, "_LOGITS", 8 * lm.vocabulary)
    head = lm.module(lm.arch.head)
    plain = head.forward

    def forward(hidden: Tensor) -> Tensor:
        widths.append(hidden.shape[:-1].numel())
        return plain(hidden)

    with monkeypatch.context() as patch:
        patch.setattr(head, "forward", forward)
        found = [value for value, _ in score(lm, spans)]
    assert found == pytest.approx([by_hand(lm, span) for span in spans], abs=1e-4)
    assert sum(widths) == sum(span.scored for span in spans)
    assert max(widths) == (8 if family not in ("opt", "backpack") else sum(widths))  # these show no hidden states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pieces_in_half_precision_are_float32(
    dtype: torch.dtype, fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, spans = fresh("llama", dtype=dtype), [Span((*draw(12, i), 7), 11) for i in range(3)]
    whole = score(lm, spans)
    monkeypatch.setattr(passes, "_LOGITS", 8 * lm.vocabulary)
    assert [v for v, _ in score(lm, spans)] == pytest.approx([v for v, _ in whole], rel=1e-5)
    assert [v for v, _ in score(lm, spans, rounded=True)] != pytest.approx([v for v, _ in whole], rel=1e-6)


# --- memory ------------------------------------------


@contextmanager
def little_memory(lm: LM, most: int, error: Callable[[], Exception]) -> Iterator[list[int]]:
    """The model's embedding takes at most so many tokens in a pass; gives the sizes that were tried."""
    tried: list[int] = []

    def refuse(_module: object, args: tuple[Tensor, ...]) -> None:
        tried.append(args[0].numel())
        if args[0].numel() > most:
            raise error()

    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(refuse)
    try:
        yield tried
    finally:
        handle.remove()


ERRORS: Sequence[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory"),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError,
]


@pytest.mark.parametrize("error", ERRORS)
def test_want_of_memory_is_known_by_what_is_said(error: Callable[[], Exception]) -> None:
    assert out_of_memory(error())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("error", [ERRORS[0], ERRORS[-1]], ids=["device", "host"])
def test_a_pass_that_does_not_fit_is_halved(error: Callable[[], Exception], tiny: Callable[[str], LM]) -> None:
    lm, room = tiny("gpt2"), Room(1024, front=60)
    spans = [*questions(), *(Span((*draw(8, 50 + i), 7), 2) for i in range(20))]
    expected = score(lm, spans)
    with little_memory(lm, 40, error) as tried:
        found = score(lm, spans, room=room)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert room.tokens <= 40 < max(tried)
        assert room.shared and room.apart is None  # want of memory does not say that rows cannot be shared
        tried.clear()
        score(lm, spans, room=room)
    assert len([tokens for tokens in tried if tokens > 40]) <= 2  # what was learned is kept; single rows may be wide


@pytest.mark.usefixtures("short_rows")
def test_a_front_that_does_not_fit_is_read_with_its_texts(tiny: Callable[[str], LM]) -> None:
    lm, spans = tiny("gpt2"), questions()
    refused = []

    def refuse(_module: object, _args: object, given: dict[str, Any]) -> None:
        if given.get("past_key_values") is not None:
            refused.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = lm.module(lm.arch.attn_of(0)).register_forward_pre_hook(refuse, with_kwargs=True)
    found = score(lm, spans, room=Room(1024, front=60, shared=90))
    handle.remove()
    assert refused
    assert [value for value, _ in found] == pytest.approx([by_hand(lm, span) for span in spans], abs=1e-4)


def test_one_text_that_does_not_fit_is_told(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    spans = [Span((*lm.encode("Ada Velmont was born in Rome and lives in Oslo"), 7), 1)]
    length = len(spans[0].ids) - 1
    with (
        little_memory(lm, length - 1, ERRORS[0]),
        pytest.raises(ModelError, match=rf"^'Ada Velm.*' has {length} tokens.*needs some .* GB.*; leave its task out"),
    ):
        score(lm, spans)


def test_other_errors_are_not_taken_for_want_of_memory(tiny: Callable[[str], LM]) -> None:
    assert not out_of_memory(RuntimeError("shape mismatch"))
    with little_memory(tiny("gpt2"), 0, lambda: RuntimeError("shape mismatch")), pytest.raises(RuntimeError):
        score(tiny("gpt2"), questions())


def test_what_attention_keeps(tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")
    with torch.no_grad():
        cache = lm.model(torch.tensor([[5, 6]]), use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 2 * kept_bytes(lm)


# --- plain lm-eval ------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.usefixtures("short_rows")
def test_shared_beginnings_are_plain_lm_eval(
    family: str, tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(family)
    start = "Ada Velmont was born in Rome. Everybody knows that Hugo Lantern lives in Oslo."
    pairs = [
        (f"{start} {who} {does}", said)
        for who in ("Ada", "Hugo Lantern", "")
        for does in ("is", "was born in", "has never seen")
        for said in (" old.", " Paris", " in Rome and lives in Vienna")
    ]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]
    plain = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4).loglikelihood(asked, disable_tqdm=True)
    monkeypatch.setattr(passes, "_LOGITS", 4 * lm.vocabulary)
    model = EditedLM(lm)
    model.room.front = 60
    with model.holding(Patch()):
        found = model.loglikelihood(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in plain], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in plain]
