"""Texts that begin alike share a row: the tree, the numbers of each family, and when rows stay apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from harness.exam.span_scores import Span, score
from harness.models.lm import LM
from harness.models.packing import Pack, pack_texts, packed_inputs
from harness.patches.patch import Patch, patched

FAMILIES = ["gpt2", "neox", "llama", "gptj", "opt", "mistral", "qwen2", "qwen3", "gemma", "phi"]


def alike(count: int = 60, stem: int = 12, seed: int = 0) -> list[Span]:
    """Texts of three stems, with one to four tokens of their own, of which the last one or two are scored."""
    made = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(1, 300, (length,), generator=made).tolist()

    stems = [draw(stem) for _ in range(3)]
    return [Span((*stems[i % 3], *draw(2 + i % 3)), 1 + i % 2) for i in range(count)]


def by_hand(lm: LM, one: Span) -> float:
    """One text alone, in float64, by the definition."""
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[i - 1, one.ids[i]]) for i in range(len(one.ids) - one.scored, len(one.ids)))


def computed(lm: LM, spans: Sequence[Span]) -> tuple[list[float], int]:
    """What is scored, and how many tokens went through the model."""
    seen: list[int] = []
    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    found = [value for value, _ in score(lm, spans)]
    handle.remove()
    return found, sum(seen)


def test_a_row_is_the_tree_of_its_texts() -> None:
    (row,) = pack_texts([(5, 6, 7), (5, 6), (5, 8, 9), (4,), (5, 6, 7, 1)], [0] * 5)
    assert row.ids == [4, 5, 6, 7, 1, 8, 9]
    assert row.depth == [0, 0, 1, 2, 3, 1, 2]
    assert row.after == [-1, -1, 1, 2, 3, 1, 5]
    assert row.texts == {3: [0], 1: [1, 2], 0: [1, 2, 3], 4: [1, 2, 3, 4], 2: [1, 5, 6]}


def test_a_row_holds_texts_of_one_mark() -> None:
    first, second, third = pack_texts([(5, 6), (5, 7), (5, 6, 9), (5, 8), (4,)], [1, 2, 1, 2, 0])
    assert (first.ids, set(first.texts)) == ([5, 6, 9], {0, 2})
    assert (second.ids, set(second.texts)) == ([5, 7, 8], {1, 3})
    assert (third.ids, set(third.texts)) == ([4], {4})


def test_every_text_is_found_in_its_row_and_long_rows_hold_what_is_alike() -> None:
    long = list(range(1, 400))
    texts = [(*long, i) for i in range(20)] + [(i, i) for i in range(200)] + [tuple(range(2, 400))]
    found = pack_texts(texts, [0] * len(texts))
    assert [len(pack.ids) for pack in found] == sorted((len(pack.ids) for pack in found), reverse=True)
    assert len(found[0].ids) == 399 + 20  # what all begin with stands there once
    held = {i: tuple(pack.ids[c] for c in columns) for pack in found for i, columns in pack.texts.items()}
    assert held == dict(enumerate(texts))
    assert all(len(pack.ids) <= 64 for pack in found if len(pack.texts) > 1 and 200 not in pack.ids)


def test_a_token_sees_its_own_beginning_and_padding_itself(tiny: Callable[[str], LM]) -> None:
    given = packed_inputs(tiny("gpt2"), [pack_texts([(5, 6), (5, 7)], [0, 0])[0], Pack.of(0, (9,))])
    seen = (given["attention_mask"] == 0)[:, 0].tolist()
    assert seen[0] == [[True, False, False], [True, True, False], [True, False, True]]
    assert seen[1] == [[True, False, False], [False, True, False], [False, False, True]]
    assert given["position_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_each_text_alone(family: str, tiny: Callable[[str], LM]) -> None:
    lm, spans = tiny(family), alike()
    found, tokens = computed(lm, spans)
    assert found == pytest.approx([by_hand(lm, s) for s in spans], rel=2e-5)
    assert tokens < 0.9 * sum(len(s.ids) - 1 for s in spans)  # with what was tried
    assert found == pytest.approx([value for value, _ in score(lm, spans, rows=1)], rel=2e-5)


def test_a_window_of_attention_is_respected(fresh: Callable[..., LM]) -> None:
    lm, spans = fresh("mistral"), alike()
    lm.model.config.sliding_window = 6
    found, tokens = computed(lm, spans)
    lm.model.config.sliding_window = None
    without, fewer = computed(lm, spans)
    assert tokens > sum(len(s.ids) - 1 for s in spans) > fewer  # tried, and left
    assert found != pytest.approx(without, rel=1e-3)
    lm.model.config.sliding_window = 6
    assert found == pytest.approx([by_hand(lm, s) for s in spans], rel=2e-5)


def test_a_backpack_reads_single_rows(tiny: Callable[[str], LM]) -> None:
    lm, spans = tiny("backpack"), alike()  # its senses are weighed by what leaves the last block at every position
    found, tokens = computed(lm, spans)
    assert found == pytest.approx([by_hand(lm, s) for s in spans], rel=2e-5)
    assert tokens > sum(len(s.ids) - 1 for s in spans)  # tried, and left


def test_a_model_that_takes_no_positions_reads_single_rows(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, spans = fresh("gpt2"), alike()
    plain = lm.model.forward

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> object:
        return plain(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(lm.model, "forward", forward)
    found = [value for value, _ in score(lm, spans)]
    assert found == pytest.approx([by_hand(lm, s) for s in spans], rel=2e-5)


def test_a_hook_of_a_patch_is_told_of_whole_texts(tiny: Callable[[str], LM]) -> None:
    lm, spans, seen = tiny("gpt2"), alike(), set[tuple[int, ...]]()

    def look(hidden: Tensor, step: object) -> Tensor:
        seen.update(tuple(row[row != 0].tolist()) for row in step.ids)  # type: ignore[attr-defined]
        return hidden

    with patched(lm, Patch(hooks={lm.arch.block(1): look})):
        score(lm, spans)
    assert seen == {s.ids[:-1] for s in spans}


def test_nothing_is_tried_where_nothing_is_shared(tiny: Callable[[str], LM]) -> None:
    spans = [Span((i, i + 1, i + 2), 1) for i in range(1, 60, 3)]
    assert computed(tiny("gpt2"), spans)[1] == 2 * len(spans)
    assert computed(tiny("gpt2"), spans[:1])[1] == 2
    assert score(tiny("gpt2"), []) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_up_to_its_rounding(dtype: torch.dtype, fresh: Callable[..., LM]) -> None:
    lm, spans = fresh("neox", dtype=dtype), alike()
    found, tokens = computed(lm, spans)
    assert tokens < 0.9 * sum(len(s.ids) - 1 for s in spans)
    assert found == pytest.approx([by_hand(lm, s) for s in spans], abs=0.05)
