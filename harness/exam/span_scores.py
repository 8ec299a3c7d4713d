"""Sequences of which the last tokens are scored: prefix and suffix in tokens of their own, batched by length.

lm-eval joins a context and its continuation before it tokenises them. The evaluation of Hewitt et al. 2024 ("Model
Editing with Canonical Examples", arXiv 2402.06155) tokenises them apart: a continuation marked as :class:`Apart` keeps
its own tokens. Logits and losses are float32 at least, whatever the model's dtype: in bfloat16 the logits of *he* and
*she* tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from harness.errors import DataError
from harness.models.activations import at_least_float32, run_only_at
from harness.models.arch import stored_transposed
from harness.models.lm import LM
from harness.models.packing import Pack, pack_texts, packed_inputs
from harness.models.tokens import open_ids, prefixed
from harness.patches.delta import double

__all__ = [
    "Apart",
    "Encoded",
    "Ranked",
    "Span",
    "Whole",
    "mean_nll",
    "prefixed",
    "score",
    "span",
    "whole",
    "wide_head",
]

_LOGITS = 2**27
"""How many logits one forward pass may give (half a gigabyte)."""


class Apart(str):
    """A continuation that is tokenised apart from its context."""


class Ranked(Apart):
    """A continuation that is answered with the rank of its first token among all tokens, 1 the likeliest."""


class Whole(Apart):
    """A text of which every token but the first is scored; its context is only what a patch puts in front."""


@dataclass(frozen=True)
class Span:
    """A sequence whose last tokens are scored, each after all tokens before it.

    Attributes:
        ids: all tokens.
        scored: how many of the last ones are scored; fewer than there are tokens.
        ranked: whether the rank of the first scored token is wanted instead of the log-likelihood.
    """

    ids: tuple[int, ...]
    scored: int
    ranked: bool = False


@dataclass(frozen=True)
class Encoded:
    """The tokens of prefixes and suffixes, each text encoded once.

    Attributes:
        prefixes: of each prefix (special tokens as the tokenizer's default).
        suffixes: of each suffix (no special tokens).
    """

    prefixes: Mapping[str, Sequence[int]]
    suffixes: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """Encode prefixes and suffixes.

        Where the tokenizer puts a space in front of every text itself, those of a suffix are stripped first.
        """
        bare = prefixed(tokenizer)
        heads = list(dict.fromkeys(prefix for prefix, _ in pairs if prefix))
        tails = list(dict.fromkeys(suffix for _, suffix in pairs if suffix))
        said = [suffix.strip(" ") for suffix in tails] if bare else tails
        return cls(
            dict(zip(heads, open_ids(tokenizer, heads), strict=True)),
            dict(zip(tails, tokenizer(said, add_special_tokens=False)["input_ids"] if said else [], strict=True)),
        )

    def span(self, prefix: str, suffix: str) -> Span:
        """A prefix and a suffix, put together.

        Raises:
            DataError: the prefix or the suffix has no token.
        """
        head, tail = self.prefixes.get(prefix, ()), self.suffixes.get(suffix, ())
        for name, text, ids in (("prefix", prefix, head), ("suffix", suffix, tail)):
            if not ids:
                raise DataError(f"the {name} '{text}' of '{(prefix + suffix)[:60]}' has no tokens; give one that has")
        return Span((*head, *tail), len(tail))


def span(tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str) -> Span:
    """The tokens of one prefix and one suffix, see :class:`Encoded`.

    Args:
        tokenizer: whose tokens.
        prefix: the text in front, which is read but not scored.
        suffix: the text that is scored.

    Raises:
        DataError: the prefix or the suffix has no token.
    """
    return Encoded.of(tokenizer, [(prefix, suffix)]).span(prefix, suffix)


def whole(tokenizer: PreTrainedTokenizerBase, text: str, context: int, *, lead: str = "") -> list[Span]:
    """A whole text, of which every token but the first is scored; none for a text of one token.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        context: the longest sequence; a longer text is cut into windows, the first token of each is only read there.
        lead: what is read before the text, if all of it fits.
    """
    ids, head = open_ids(tokenizer, [text, lead])
    head = head if lead else []
    if len(ids) > 1 and len(head) + len(ids) <= context + 1:
        return [Span((*head, *ids), len(ids) - 1)]
    # A window reads ``context`` tokens and predicts one more, with which the next begins: each token is scored once.
    starts = range(0, len(ids) - 1, context)
    return [Span(tuple(ids[start : start + context + 1]), min(context, len(ids) - 1 - start)) for start in starts]


def score(
    lm: LM,
    spans: Sequence[Span],
    *,
    rows: int = 32,
    marks: Sequence[int] | None = None,
    before: Callable[[Sequence[int]], None] = lambda _marks: None,
    done: Callable[[int], None] = lambda _spans: None,
    rounded: bool = False,
) -> list[tuple[float, bool]]:
    """The log-likelihood of each span's scored tokens, in nats, and whether all of them are the arg-max.

    Spans that read the same tokens are read once, so that the two pronouns of a pair cost one. Those that begin alike
    share a row (:mod:`harness.models.packing`) where that saves anything and a few of them, tried, get the numbers of
    rows of
    their own; so not where a patch has hooks.

    Args:
        lm: the model.
        spans: what is scored; of one that is longer than the model's context the first tokens are dropped.
        rows: texts of one forward pass at most (or those that share one row).
        marks: what each span carries besides its tokens; by default all the same.
        before: told the mark of each row of the next forward pass.
        done: told how many more spans have been scored.
        rounded: whether log-probabilities and their sums are rounded to the model's dtype, as lm-eval's are.
    """
    cut = [Span(s.ids[-lm.context - 1 :], s.scored, s.ranked) for s in spans]
    found: list[tuple[float, bool]] = [(0.0, True)] * len(cut)
    carried = marks or [0] * len(cut)
    order = sorted(range(len(cut)), key=lambda i: (-len(cut[i].ids), cut[i].ids[:-1], carried[i]))
    same = [list(g) for _, g in groupby(order, key=lambda i: (cut[i].ids[:-1], carried[i]))]
    reading = _Reading(lm, cut, same, [carried[members[0]] for members in same], before)
    with torch.no_grad(), nullcontext() if rounded else wide_head(lm):
        together = reading.together()
        read = reading.shared if together else reading.alone
        for portion in _portions(together or reading.single, rows, lm.vocabulary):
            wanted = reading.wanted(portion)
            logits = read(portion, wanted)
            for i, result in wanted.results(logits if rounded else at_least_float32(logits)):
                found[i] = result
            done(len(wanted.spans))
    return found


def _portions(packed: Sequence[Pack], texts: int, vocabulary: int) -> Iterator[Sequence[Pack]]:
    """Rows of one forward pass: of as many texts as asked for, unless their logits or masks would fill the memory."""
    portion: list[Pack] = []
    for pack in packed:
        width = len((portion or [pack])[0].ids)
        held = sum(len(row.texts) for row in portion) + len(pack.texts)
        if portion and (held > texts or (len(portion) + 1) * width * max(width, vocabulary) > _LOGITS):
            yield portion
            portion = []
        portion.append(pack)
    if portion:
        yield portion


@dataclass(frozen=True)
class _Wanted:
    """What is read off a forward pass: of each span, the positions and the tokens that they predict.

    Attributes:
        spans: which they are.
        counts: how many tokens of each are scored.
        kept: the positions in their order, ``row * columns + column``, each once.
        place: of every scored token, the place of its position among these.
        token: every scored token.
        ranked: the spans of which a rank is wanted.
    """

    spans: list[int]
    counts: list[int]
    kept: Tensor
    place: Tensor
    token: Tensor
    ranked: frozenset[int] = frozenset()

    def results(self, logits: Tensor) -> Iterator[tuple[int, tuple[float, bool]]]:
        """What :func:`score` gives, by span, from the logits ``[positions, vocabulary]``."""
        place, token = self.place.to(logits.device), self.token.to(logits.device)
        log_p = logits.log_softmax(-1)[place, token]
        if log_p.dtype.itemsize > 2:  # those of half precision are summed as lm-eval sums them
            log_p = double(log_p)
        hit = logits.argmax(-1)[place] == token
        above = self._above(logits, place, token)
        for i, part, hits, likelier in zip(self.spans, self._each(log_p), self._each(hit), above, strict=True):
            yield i, (float(likelier + 1 if i in self.ranked else part.sum()), bool(hits.all()))

    def _above(self, logits: Tensor, place: Tensor, token: Tensor) -> list[int]:
        """Of each span, how many tokens are likelier than its first scored one; 0 where nobody asks."""
        if not self.ranked:
            return [0] * len(self.spans)
        starts = [0, *accumulate(self.counts)][:-1]
        first = torch.tensor(starts, device=logits.device)
        rows, own = logits[place[first]], logits[place[first], token[first]]
        return [int(count) for count in (rows > own[:, None]).sum(-1)]

    def _each(self, values: Tensor) -> Sequence[Tensor]:
        return torch.split(values.cpu(), self.counts)


@dataclass(frozen=True, eq=False)
class _Reading:
    """How the texts of some spans are read.

    Attributes:
        lm: the model.
        spans: the spans.
        same: the spans that read each text.
        marks: what each text carries.
        before: told the mark of each row of the next forward pass.
    """

    lm: LM
    spans: Sequence[Span]
    same: Sequence[Sequence[int]]
    marks: Sequence[int]
    before: Callable[[Sequence[int]], None]

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The tokens that are read."""
        return [self.spans[members[0]].ids[:-1] for members in self.same]

    @property
    def single(self) -> list[Pack]:
        """Each text in a row of its own, the longest first."""
        return [Pack.of(i, text) for i, text in enumerate(self.texts)]

    def together(self) -> list[Pack]:
        """The texts with what they share once; none where that saves nothing or cannot be done."""
        packed, single = pack_texts(self.texts, self.marks), self.single
        # The widest row and the longest text show whether positions, masks and windows of attention are followed.
        few = [pack for i, pack in enumerate(packed) if i == 0 or 0 in pack.texts]
        apart = [single[i] for i in sorted({i for pack in few for i in (min(pack.texts), list(pack.texts)[-1])})]
        cost = sum(len(pack.ids) for pack in (*packed, *few, *apart))
        if cost >= sum(len(pack.ids) for pack in single) or _looked_at(self.lm) or self.lm.model._forward_pre_hooks:
            return []
        return packed if self._agree(few, apart) else []

    def _agree(self, packed: Sequence[Pack], single: Sequence[Pack]) -> bool:
        wanted = self.wanted(single)
        alone = dict(wanted.results(at_least_float32(self.alone(single, wanted))))
        wanted = self.wanted(packed)
        try:
            shared = dict(wanted.results(at_least_float32(self.shared(packed, wanted))))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
            # A model that takes no positions, or no mask of this form.
            return False
        loose = 1e-4 if self.lm.model.dtype in (torch.float32, torch.float64) else 0.1
        return all(abs(shared[i][0] - value) <= loose * max(1.0, abs(value)) for i, (value, _) in alone.items())

    def wanted(self, packed: Sequence[Pack]) -> _Wanted:
        """What is read off a forward pass over some rows."""
        width = max(len(pack.ids) for pack in packed)
        placed = [
            (i, [row * width + column for column in columns[-self.spans[i].scored :]])
            for row, pack in enumerate(packed)
            for text, columns in pack.texts.items()
            for i in self.same[text]
        ]
        kept, place = torch.unique(torch.tensor([at for _, found in placed for at in found]), return_inverse=True)
        token = torch.tensor([token for i, _ in placed for token in self.spans[i].ids[-self.spans[i].scored :]])
        ranked = frozenset(i for i, _ in placed if self.spans[i].ranked)
        return _Wanted([i for i, _ in placed], [len(found) for _, found in placed], kept, place, token, ranked)

    def alone(self, single: Sequence[Pack], wanted: _Wanted) -> Tensor:
        """The logits ``[positions, vocabulary]`` of texts in rows of their own."""
        ids = self.lm.batch([pack.ids for pack in single]).ids
        with _only(self.lm, wanted.kept) as narrowed:
            logits = self._logits(single, input_ids=ids, use_cache=False)
        return logits[0] if narrowed else logits.flatten(0, 1)[wanted.kept.to(logits.device)]

    def shared(self, packed: Sequence[Pack], wanted: _Wanted) -> Tensor:
        """The same of rows that hold many; the last feed-forward module, too, computes wanted positions alone."""
        with _only(self.lm, wanted.kept), self._last_only_at(wanted.kept):
            return self._logits(packed, **packed_inputs(self.lm, packed))[0]

    def _last_only_at(self, kept: Tensor) -> AbstractContextManager[None]:
        """The last feed-forward module computes wanted positions; all, where a patch looks at it or it has experts."""
        final = self.lm.arch.layers - 1
        if final not in self.lm.arch.editable:
            return nullcontext()
        last = self.lm.module(self.lm.arch.mlp_of(final))
        return nullcontext() if any(module._forward_hooks for module in last.modules()) else run_only_at(last, kept)

    def _logits(self, rows: Sequence[Pack], **given: Any) -> Tensor:
        self.before([self.marks[min(row.texts)] for row in rows])
        logits: Tensor = self.lm.model(**given).logits
        return logits


def _looked_at(lm: LM) -> bool:
    """Whether somebody else looks at the logits."""
    head = lm.module(lm.arch.head)
    return bool(lm.model._forward_hooks) or any(hook is not _in_float32 for hook in head._forward_hooks.values())


@contextmanager
def _only(lm: LM, kept: Tensor) -> Iterator[bool]:
    """Let the output layer see some positions alone, ``[1, positions, width]``; gives whether it does.

    Where a patch looks at its output, or at the logits, it sees all of them.
    """
    if _looked_at(lm):
        yield False
        return

    def narrow(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, -2)[kept.to(args[0].device)][None], *args[1:])

    handle = lm.module(lm.arch.head).register_forward_pre_hook(narrow)
    try:
        yield True
    finally:
        handle.remove()


def mean_nll(lm: LM, texts: Sequence[str], rows: int = 32) -> float:
    """The mean negative log-likelihood of a token over whole texts, weighted by tokens, in nats.

    Args:
        lm: the model.
        texts: whole texts; each is cut into windows of the model's context.
        rows: rows of a forward pass.
    """
    spans = [s for text in texts for s in whole(lm.tokenizer, text, lm.context)]
    return -sum(value for value, _ in score(lm, spans, rows=rows)) / sum(s.scored for s in spans)


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
