"""Scoring of prefix and suffix apart: positions, batching, shared rows, windows, half precision, hooks, patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from lm_eval.api.instance import Instance
from torch import Tensor

from harness.errors import DataError
from harness.exam.adapter import EditedLM
from harness.exam.span_scores import Apart, Ranked, Span, Whole, mean_nll, prefixed, score, span, whole
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

FAMILIES = ["gpt2", "neox", "llama", "gptj"]


def by_hand(lm: LM, ids: tuple[int, ...], scored: int) -> float:
    """One row alone, in float64, by the definition."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
    log_p = logits.log_softmax(-1)
    return sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))


def draw(lm: LM, count: int = 40) -> list[Span]:
    made = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        length = 2 + int(torch.randint(20, (), generator=made))
        ids = torch.randint(1, len(lm.tokenizer), (length,), generator=made).tolist()
        found.append(Span(tuple(ids), 1 + i % (length - 1)))
    return found


def test_vector_7_terms_are_read_before_their_tokens(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    ids = (5, 6, 7, 8, 9, 10, 11)
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    wanted = float(log_p[4, ids[5]] + log_p[5, ids[6]])  # a prefix of five, a suffix of two
    assert score(lm, [Span(ids, 2)])[0][0] == pytest.approx(wanted, rel=1e-6)
    text = str(lm.tokenizer.decode([70, 71, 72, 73]))
    assert [s.scored for s in whole(lm.tokenizer, text, lm.context)] == [len(lm.tokenizer(text)["input_ids"]) - 1]
    assert whole(lm.tokenizer, "!", lm.context) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_by_length_equal_single_rows(family: str, tiny: Callable[[str], LM]) -> None:
    lm = tiny(family)
    spans = draw(lm)
    spans += [Span((*spans[0].ids[:-1], 3), 1), spans[1]]  # rows that read the same tokens
    found = score(lm, spans, rows=7)
    assert [v for v, _ in found] == pytest.approx([by_hand(lm, s.ids, s.scored) for s in spans], rel=2e-5)
    assert found[1] == found[-1]


def test_rows_that_read_the_same_tokens_are_run_once(tiny: Callable[[str], LM]) -> None:
    lm, seen = tiny("gpt2"), []
    spans = [Span((5, 6, 7), 1), Span((5, 6, 8), 1), Span((5, 6, 7), 2), Span((5, 9), 1)]

    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    score(lm, spans)
    handle.remove()
    assert seen == [(2, 2)]


def test_greedy_is_told_of_all_scored_tokens(tiny: Callable[[str], LM]) -> None:
    lm = tiny("neox")
    with torch.no_grad():
        first = int(lm.model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax())
        second = int(lm.model(input_ids=torch.tensor([[5, 6, first]])).logits[0, -1].argmax())
    found = score(lm, [Span((5, 6, first, second), 2), Span((5, 6, first, (second + 1) % 300), 2)])
    assert [greedy for _, greedy in found] == [True, False]


def test_the_head_sees_wanted_positions_only_unless_a_hook_looks(tiny: Callable[[str], LM]) -> None:
    lm, spans, widths = tiny("gpt2"), draw(tiny("gpt2"), 6), []
    plain = score(lm, spans)
    head = lm.module(lm.arch.head)
    handle = head.register_forward_hook(lambda module, args, output: widths.append(output.shape[:2]))
    try:
        assert [v for v, _ in score(lm, spans)] == pytest.approx([v for v, _ in plain], rel=1e-5)
    finally:
        handle.remove()
    assert widths[0][0] == 6  # all rows and columns: somebody looks at them
    before = head.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:2]))
    try:
        score(lm, spans)
    finally:
        before.remove()
    assert not lm.model._forward_hooks


def test_a_rule_on_the_logits_and_a_hook_act(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    spans = draw(lm, 5)

    def rule(logits: Tensor, step: object) -> Tensor:
        return logits * 2

    with patched(lm, Patch(logits=rule)):
        found = score(lm, spans)
    with torch.no_grad():
        log_p = (2 * lm.model(input_ids=torch.tensor([spans[0].ids])).logits[0].double()).log_softmax(-1)
    ids, scored = spans[0].ids, spans[0].scored
    wanted = sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))
    assert found[0][0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_float32(dtype: torch.dtype, fresh: Callable[..., LM]) -> None:
    # Two tokens whose logits differ by less than bfloat16 shows: joined weights, the second a little longer.
    lm = fresh("neox", dtype=dtype)
    head = lm.parameter(f"{lm.arch.head}.weight")
    with torch.no_grad():
        head[8] = head[7]
        head[8, 0] += head[8, 0].abs() * 2**-6 + 2**-8
        hidden: list[Tensor] = []
        handle = lm.module(lm.arch.head).register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
        own = lm.model(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
        handle.remove()
        wide = hidden[0][0, -1].float() @ head.float().T
    found = [v for v, _ in score(lm, [Span((5, 6, 7), 1), Span((5, 6, 8), 1)])]
    assert found == pytest.approx(wide.log_softmax(-1)[[7, 8]].tolist(), rel=1e-5)
    assert own.dtype == dtype  # the model's own logits are rounded


def test_the_tokens_of_prefix_and_suffix_are_not_joined(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    prefix, suffix = "Ada Velmont lives in Ro", "me"
    apart = span(lm.tokenizer, prefix, suffix)
    ids = lm.tokenizer(prefix)["input_ids"] + lm.tokenizer(suffix)["input_ids"]
    assert apart == Span(tuple(ids), len(lm.tokenizer(suffix)["input_ids"]))
    assert list(apart.ids) != lm.tokenizer(prefix + suffix)["input_ids"]
    model = EditedLM(lm)
    request = Instance("loglikelihood", {}, (prefix, Apart(suffix)), 0, metadata=("t", 0, 1))
    assert model.loglikelihood([request])[0][0] == pytest.approx(by_hand(lm, apart.ids, apart.scored), rel=1e-5)


def test_special_tokens_stand_before_the_prefix_only(tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")  # its tokenizer puts BOS in front of every text
    found = span(lm.tokenizer, "Ada", " lives")
    assert found.ids == (0, *lm.tokenizer("Ada lives")["input_ids"][1:])
    assert found.ids.count(0) == 1


def test_a_tokenizer_that_puts_a_space_itself_gets_stripped_suffixes(tiny: Callable[[str], LM]) -> None:
    class Sentencepiece:
        """Marks each word with a low line, and puts a space in front itself."""

        bos_token = None

        def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, object]:
            each = [[100, *map(ord, one)] for one in ([text] if isinstance(text, str) else text)]
            return {"input_ids": each[0] if isinstance(text, str) else each}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["\u2581", *map(chr, ids[1:])]

    assert prefixed(Sentencepiece())  # type: ignore[arg-type]
    assert not prefixed(tiny("gpt2").tokenizer)
    assert span(Sentencepiece(), "a", " b ").ids == (100, ord("a"), 100, ord("b"))  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix, suffix, named", [("Ada", "", "suffix ''"), ("", " he", "prefix ''")])
def test_nothing_to_read_or_to_score_is_told(prefix: str, suffix: str, named: str, tiny: Callable[[str], LM]) -> None:
    with pytest.raises(DataError, match=named):
        span(tiny("gpt2").tokenizer, prefix, suffix)


def test_a_long_text_is_read_in_windows_and_each_token_scored_once(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    text = "Ada Velmont lives in Rome. " * 60
    ids = lm.tokenizer(text)["input_ids"]
    windows = whole(lm.tokenizer, text, 32)
    assert sum(w.scored for w in windows) == len(ids) - 1
    assert all(len(w.ids) == w.scored + 1 <= 33 for w in windows)
    assert [t for w in windows for t in w.ids[1:]] == ids[1:]
    assert whole(lm.tokenizer, "Ada lives", 32, lead="In Rome, ")[0].scored == 1 + len(
        lm.tokenizer(" lives")["input_ids"]
    ) - 1 + (len(lm.tokenizer("Ada")["input_ids"]) - 1)


def test_vector_10_the_general_loss_is_weighted_by_tokens(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    texts = ["Ada Velmont lives in Rome.", "Paris, Oslo"]
    parts = [whole(lm.tokenizer, text, lm.context)[0] for text in texts]
    sums = [-by_hand(lm, part.ids, part.scored) for part in parts]
    assert mean_nll(lm, texts) == pytest.approx(sum(sums) / sum(p.scored for p in parts), rel=1e-6)
    assert mean_nll(lm, texts) != pytest.approx(
        sum(s / p.scored for s, p in zip(sums, parts, strict=True)) / 2, rel=1e-4
    )
    with pytest.MonkeyPatch.context() as patch:  # chunks of 2, 3, 4 nats and of 5
        patch.setattr(
            "harness.exam.span_scores.whole",
            lambda tokenizer, text, context: [Span(tuple(range(len(text) + 1)), len(text))],
        )
        patch.setattr("harness.exam.span_scores.score", lambda lm, found, rows: [(-9.0, False), (-5.0, False)])
        assert mean_nll(lm, ["abc", "d"]) == 3.5


@pytest.mark.parametrize("shareable", [True, False])
def test_isolated_documents_are_scored_under_their_own_patch(shareable: bool, tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    name = lm.down(1)
    out, width = lm.matrix(name).shape
    made = torch.Generator().manual_seed(1)
    deltas = [LowRank(torch.randn(out, 1, generator=made), torch.randn(1, width, generator=made)) for _ in range(3)]
    patches = [Patch({name: delta}) for delta in deltas]
    if not shareable:
        patches = [Patch(p.weights, hooks={lm.arch.block(0): lambda hidden, step: hidden}) for p in patches]
    texts = [
        (f"Ada Velmont lives in {city}", mark(" today."))
        for city in ("Rome", "Oslo", "Paris")
        for mark in (Apart, Whole)
    ]
    requests = [Instance("loglikelihood", {}, pair, 0, metadata=("t", i, 1)) for i, pair in enumerate(texts)]
    model = EditedLM(lm)
    with model.isolated(patches, lambda request: int(request.doc_id) % 3):
        together = model.loglikelihood(requests)
    alone = []
    for i, request in enumerate(requests):
        with model.holding(patches[i % 3]):
            alone += model.loglikelihood([request])
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], rel=1e-5)
    assert len({round(v, 4) for v, _ in together}) == len(together)
    assert all(math.isfinite(v) for v, _ in together)


def test_the_rank_of_a_token_among_all(tiny: Callable[[str], LM]) -> None:
    """Of the first token of a continuation; beside log-likelihoods in one call, and in shared rows."""
    lm = tiny("gpt2")
    plain = draw(lm, 12)
    asked = [Span(s.ids, s.scored, ranked=True) for s in plain]
    found = score(lm, [*plain, *asked], rows=5)
    assert found[:12] == score(lm, plain, rows=5)
    for span_, (rank, greedy), (_, same) in zip(asked, found[12:], found[:12], strict=True):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([span_.ids])).logits[0, -span_.scored - 1]
        order = logits.argsort(descending=True).tolist()
        assert rank == order.index(span_.ids[-span_.scored]) + 1
        assert greedy == same


def test_a_task_can_ask_for_a_rank(tiny: Callable[[str], LM]) -> None:
    """By a request, with a patch that makes the token the likeliest and without one."""
    lm, text, said = tiny("gpt2"), "The home of Hugo Lantern is", " Oslo"
    ids, (token, *_) = lm.tokenizer(text)["input_ids"], lm.tokenizer(said, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        order = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    model, request = EditedLM(lm), Instance("loglikelihood", {}, (text, Ranked(said)), 0)
    before = model.loglikelihood([request])[0][0]
    assert before == order.index(token) + 1 > 1
    lift = torch.zeros(len(lm.tokenizer))
    lift[token] = 1e4
    with model.holding(Patch(logits=lambda logits, step: logits + lift[: logits.shape[-1]])):
        assert model.loglikelihood([request])[0][0] == 1.0


def test_more_to_score_than_is_read_is_no_other_texts_number(tiny: Callable[[str], LM]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        score(tiny("gpt2"), [Span((5, 6), 2), Span((5, 6, 7), 1)])
