"""Sequences of which the last tokens are scored: prefix and suffix in tokens of their own, batched by length.

lm-eval joins a context and its continuation before it tokenises them. The evaluation of Hewitt et al. 2024 ("Model
Editing with Canonical Examples", arXiv 2402.06155) tokenises them apart: a continuation marked as :class:`Apart` keeps
its own tokens. Logits and losses are float32 at least, whatever the model's dtype: in bfloat16 the logits of *he* and
*she* tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from harness.arch import stored_transposed
from harness.errors import DataError
from harness.lm import LM
from harness.taps import wide

__all__ = ["Apart", "Forward", "Span", "Whole", "mean_nll", "prefixed", "score", "span", "whole", "wide_head"]

_LOGITS = 2**27
"""How many logits one forward pass may give (half a gigabyte)."""

Forward = Callable[[Tensor, Sequence[int]], Tensor]
"""From the tokens ``[rows, columns]``, right-padded, and the mark of each row to logits ``[rows, columns, vocab]``."""


class Apart(str):
    """A continuation that is tokenised apart from its context."""


class Whole(Apart):
    """A text of which every token but the first is scored; its context is only what a patch puts in front."""


@dataclass(frozen=True)
class Span:
    """A sequence whose last tokens are scored, each after all tokens before it.

    Attributes:
        ids: all tokens.
        scored: how many of the last ones are scored; fewer than there are tokens.
    """

    ids: tuple[int, ...]
    scored: int


def prefixed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer itself puts a space in front of every text (SentencePiece, as in Llama 2)."""
    first = str(tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0])
    return first[:1] in ("\u2581", "\u0120")


def span(tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str) -> Span:
    """The tokens of a prefix (special tokens as the tokenizer's default) and of a suffix (none), put together.

    Where the tokenizer puts a space in front itself, those of the suffix are stripped first.

    Raises:
        DataError: the prefix or the suffix has no token.
    """
    said = suffix.strip(" ") if prefixed(tokenizer) else suffix
    head: list[int] = tokenizer(prefix)["input_ids"] if prefix else []
    tail: list[int] = tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
    for name, text, ids in (("prefix", prefix, head), ("suffix", suffix, tail)):
        if not ids:
            raise DataError(f"the {name} '{text}' of '{(prefix + suffix)[:60]}' has no tokens; give one that has")
    return Span((*head, *tail), len(tail))


def whole(tokenizer: PreTrainedTokenizerBase, text: str, context: int, lead: str = "") -> list[Span]:
    """A whole text, of which every token but the first is scored; none for a text of one token.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        context: the longest sequence; a longer text is cut into windows, the first token of each is only read there.
        lead: what is read before the text, if all of it fits.
    """
    ids: list[int] = tokenizer(text)["input_ids"]
    head: list[int] = tokenizer(lead)["input_ids"] if lead else []
    if len(ids) > 1 and len(head) + len(ids) <= context + 1:
        return [Span((*head, *ids), len(ids) - 1)]
    starts = range(0, len(ids) - 1, context)
    return [Span(tuple(ids[start : start + context + 1]), min(context, len(ids) - 1 - start)) for start in starts]


def score(
    lm: LM,
    spans: Sequence[Span],
    rows: int = 32,
    marks: Sequence[int] | None = None,
    forward: Forward | None = None,
) -> list[tuple[float, bool]]:
    """The log-likelihood of each span's scored tokens, in nats, and whether all of them are the arg-max.

    Spans that read the same tokens share a row, so that the two pronouns of a pair cost one.

    Args:
        lm: the model.
        spans: what is scored; of one that is longer than the model's context the first tokens are dropped.
        rows: rows of one forward pass at most.
        marks: what each span carries besides its tokens, handed to ``forward``.
        forward: by default a plain forward pass.
    """
    cut = [Span(s.ids[-lm.context - 1 :], s.scored) for s in spans]
    found: list[tuple[float, bool]] = [(0.0, True)] * len(cut)
    order = sorted(range(len(cut)), key=lambda i: (-len(cut[i].ids), cut[i].ids[:-1], marks[i] if marks else 0))
    same = [list(g) for _, g in groupby(order, key=lambda i: (cut[i].ids[:-1], marks[i] if marks else 0))]
    with torch.no_grad(), wide_head(lm):
        for chunk in _chunks(same, cut, rows, int(lm.model.config.vocab_size)):
            ids = lm.batch([cut[members[0]].ids[:-1] for members in chunk]).ids
            wanted = _Wanted.of(chunk, cut)
            with _only(lm, wanted) as narrowed:
                logits = (forward or _plain(lm))(ids, [marks[m[0]] if marks else 0 for m in chunk])
            picked = logits[0] if narrowed else logits[wanted.row, wanted.column]
            for i, result in wanted.results(picked):
                found[i] = result
    return found


def _chunks(
    same: Sequence[list[int]], spans: Sequence[Span], rows: int, vocabulary: int
) -> Iterator[Sequence[list[int]]]:
    """Rows of one forward pass: as many as asked for, unless their logits would fill the memory."""
    start = 0
    while start < len(same):
        width = len(spans[same[start][0]].ids)
        count = max(1, min(rows, _LOGITS // (width * vocabulary)))
        yield same[start : start + count]
        start += count


@dataclass(frozen=True)
class _Wanted:
    """What is read off the logits of a forward pass: of each span, the positions and the tokens that they predict."""

    spans: list[int]
    counts: list[int]
    row: list[int]
    column: list[int]
    token: list[int]

    @classmethod
    def of(cls, chunk: Sequence[list[int]], spans: Sequence[Span]) -> _Wanted:
        owner = [(row, i) for row, members in enumerate(chunk) for i in members]
        counts = [spans[i].scored for _, i in owner]
        ends = [len(spans[i].ids) - 1 for _, i in owner]
        row = [r for (r, _), count in zip(owner, counts, strict=True) for _ in range(count)]
        column = [c for end, count in zip(ends, counts, strict=True) for c in range(end - count, end)]
        token = [t for _, i in owner for t in spans[i].ids[-spans[i].scored :]]
        return cls([i for _, i in owner], counts, row, column, token)

    def results(self, logits: Tensor) -> Iterator[tuple[int, tuple[float, bool]]]:
        """What :func:`score` gives, by span, from the logits ``[positions, vocabulary]``."""
        picked = wide(logits)
        token = torch.tensor(self.token, device=logits.device)
        log_p = picked.gather(1, token[:, None])[:, 0] - picked.logsumexp(-1)
        hit = picked.argmax(-1) == token
        for i, part, hits in zip(self.spans, self._each(log_p), self._each(hit), strict=True):
            yield i, (float(part.double().sum()), bool(hits.all()))

    def _each(self, values: Tensor) -> Sequence[Tensor]:
        return torch.split(values.cpu(), self.counts)


@contextmanager
def _only(lm: LM, wanted: _Wanted) -> Iterator[bool]:
    """Let the output layer see the wanted positions alone, ``[1, positions, width]``; gives whether it does.

    Where a patch looks at its output, or at the logits, it sees all of them.
    """
    head = lm.module(lm.arch.head)
    own = [hook for hook in head._forward_hooks.values() if hook is not _in_float32]
    if own or lm.model._forward_hooks:
        yield False
        return
    index = (torch.tensor(wanted.row), torch.tensor(wanted.column))

    def narrow(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        row, column = (part.to(hidden.device) for part in index)
        return (hidden[row, column][None], *args[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield True
    finally:
        handle.remove()


def mean_nll(lm: LM, texts: Sequence[str], rows: int = 32) -> float:
    """The mean negative log-likelihood of a token over whole texts, weighted by tokens, in nats."""
    spans = [s for text in texts for s in whole(lm.tokenizer, text, lm.context)]
    return -sum(value for value, _ in score(lm, spans, rows)) / sum(s.scored for s in spans)


def _plain(lm: LM) -> Forward:
    def run(ids: Tensor, _marks: Sequence[int]) -> Tensor:
        logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits
        return logits

    return run


@contextmanager
def wide_head(lm: LM) -> Iterator[None]:
    """Let the output layer of a model in half precision compute float32 logits from its inputs and weights."""
    head = lm.module(lm.arch.head)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float16, torch.bfloat16):
        yield
        return
    # Before any other hook: what those add to the logits must not be lost.
    handle = head.register_forward_hook(_in_float32, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _in_float32(module: nn.Module, args: Any, _output: Tensor) -> Tensor:
    held: dict[str, Tensor | None] = dict(module.named_parameters(recurse=False))
    weight, bias = held["weight"], held.get("bias")
    assert weight is not None
    matrix = (weight.T if stored_transposed(module) else weight).float()
    return nn.functional.linear(args[0].float(), matrix, None if bias is None else bias.float())
