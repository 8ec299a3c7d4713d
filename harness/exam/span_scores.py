"""Sequences of which the last tokens are scored: prefix and suffix in tokens of their own, batched by length.

lm-eval joins a context and its continuation before it tokenises them. The evaluation of Hewitt et al. 2024 ("Model
Editing with Canonical Examples", arXiv 2402.06155) tokenises them apart: a continuation marked as :class:`Apart` keeps
its own tokens. Logits and losses are float32 at least, whatever the model's dtype: in bfloat16 the logits of *he* and
*she* tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harness.errors import DataError
from harness.exam.passes import PositionsAsked, Reading, wide_head
from harness.models.lm import LM
from harness.models.memory import Room
from harness.models.tokens import open_ids, prefixed

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
    rows: int | None = None,
    marks: Sequence[int] | None = None,
    before: Callable[[Sequence[int]], None] = lambda _marks: None,
    done: Callable[[int], None] = lambda _spans: None,
    rounded: bool = False,
    room: Room | None = None,
) -> list[tuple[float, bool]]:
    """The log-likelihood of each span's scored tokens, in nats, and whether all of them are the arg-max.

    Spans that read the same tokens are read once, so that the two pronouns of a pair cost one. What others begin with
    alike is read once where that can be done, see :mod:`harness.exam.passes`.

    Args:
        lm: the model.
        spans: what is scored; of one that is longer than the model's context the first tokens are dropped.
        rows: texts of one forward pass at most (or those that share one row); None for as many as have room.
        marks: what each span carries besides its tokens; by default all the same.
        before: told the mark of each row of the next forward pass.
        done: told how many more spans have been scored.
        rounded: whether log-probabilities and their sums are rounded to the model's dtype, as lm-eval's are.
        room: how much the model takes at once, where that is known from before.
    """
    read = [span.ids[-lm.context - 1 : -1] for span in spans]
    carried = marks or [0] * len(spans)
    same: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, ids in enumerate(read):
        same.setdefault((carried[i], ids), []).append(i)
    members = list(same.values())
    reading = Reading(
        lm,
        [ids for _, ids in same],
        [[PositionsAsked(spans[i].ids[-spans[i].scored :], spans[i].ranked) for i in some] for some in members],
        [mark for mark, _ in same],
        room or Room.of(lm),
        rows,
        before,
        rounded,
    )
    found: list[tuple[float, bool]] = [(0.0, True)] * len(spans)
    for (text, question), one in reading.results():
        i = members[text][question]
        found[i] = (float(one.rank) if spans[i].ranked else one.loglik, one.greedy)
        done(1)
    return found


def mean_nll(lm: LM, texts: Sequence[str], rows: int | None = None) -> float:
    """The mean negative log-likelihood of a token over whole texts, weighted by tokens, in nats.

    Args:
        lm: the model.
        texts: whole texts; each is cut into windows of the model's context.
        rows: texts of a forward pass at most; None for as many as have room.
    """
    spans = [s for text in texts for s in whole(lm.tokenizer, text, lm.context)]
    return -sum(value for value, _ in score(lm, spans, rows=rows)) / sum(s.scored for s in spans)
