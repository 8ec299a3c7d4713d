"""What editing does to text that no edit is about: perplexity, divergence from the unedited model, repetition.

Every document gives the sum over its tokens and their number, so that means are over tokens and intervals over
documents. Sources: Ma et al. 2024 (PRUNE) and Yang et al. 2024 (arXiv 2402.09656) watch perplexity for collapse; the
divergence is ``KL(unedited || edited)`` of the next token, in nats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

import torch
from torch import Tensor

from harness.exam.exam_parts import NEUTRAL_TEXT
from harness.exam.greedy import Writing
from harness.exam.quiet import quiet_padding
from harness.exam.statistics import Ratio
from harness.io.plain_text import read_documents
from harness.models.lm import LM
from harness.models.memory import Room
from harness.patches.delta import double
from harness.patches.patch import PromptRule

__all__ = ["NAME", "TextReading", "Texts", "read_neutral_text", "repetition", "texts", "unedited_reading"]

NAME = NEUTRAL_TEXT
_NUMBERS = 2**27
"""How many log-probabilities of the unedited model are kept in memory (half a gigabyte)."""
_BATCH = 16
_WRITTEN = 32  # tokens
_OPENINGS = 8
_LONGEST = 256  # tokens


@dataclass(frozen=True, eq=False)
class Texts:
    """Neutral documents.

    Attributes:
        documents: what is read, cut to the model's context.
        rows: their tokens.
        sha256: over the tokens.
    """

    documents: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    sha256: str


@dataclass(frozen=True, eq=False)
class TextReading:
    """What a model makes of the texts.

    Attributes:
        values: metric -> document -> contribution.
        log_p: of each document ``[tokens - 1, vocabulary]``, float32 on the CPU; kept of the unedited model only.
        repetition: the share of repeated trigrams in what it writes; None where it cannot write.
    """

    values: dict[str, dict[str, Ratio]]
    log_p: tuple[Tensor, ...]
    repetition: float | None


def texts(lm: LM, count: int = 100) -> Texts:
    """The first documents of the model's plain text; of the shipped models, of a text that training did not draw.

    Args:
        lm: the model.
        count: how many at most; fewer where the log-probabilities of a large vocabulary would fill the memory.
    """
    room = _NUMBERS // lm.parameter(f"{lm.arch.head}.weight").shape[0]
    found: list[tuple[str, tuple[int, ...]]] = []
    used = 0
    for text in islice(_source(lm), 20 * count):
        row = tuple(lm.encode(text)[: min(lm.context // 2, _LONGEST)])
        if len(row) > 2 and len(found) < count and used + len(row) <= room:
            found.append((str(lm.tokenizer.decode(list(row), skip_special_tokens=True)), row))
            used += len(row)
    rows = tuple(row for _, row in found)
    return Texts(tuple(text for text, _ in found), rows, hashlib.sha256(repr(rows).encode()).hexdigest())


def _source(lm: LM) -> Iterator[str]:
    """The documents of the model's plain text, or the held-out ones that ship."""
    if lm.text != "mini":
        return read_documents(lm.text)
    return iter((files("harness") / "mini" / "text_heldout.txt").read_text(encoding="utf-8").splitlines())


def read_neutral_text(
    lm: LM, found: Texts, base: TextReading | None, *, prompt: PromptRule | None = None, writes: bool = True
) -> TextReading:
    """Read the texts with the model as it is now.

    Args:
        lm: the model.
        found: the texts.
        base: the reading of the unedited model; None where this is it.
        prompt: what a patch makes of a context; only the document's own tokens count.
        writes: whether the model writes too, for the share of repeated trigrams.
    """
    nll: dict[str, Ratio] = {}
    kl: dict[str, Ratio] = {}
    kept: list[Tensor] = []
    for start in range(0, len(found.rows), _BATCH):
        rows = found.rows[start : start + _BATCH]
        written = [_written_as(lm, found.documents[start + i], row, prompt) for i, row in enumerate(rows)]
        for i, (row, log_p) in enumerate(zip(rows, _log_p(lm, rows, written), strict=True), start=start):
            name, steps = f"{NAME}/{i}", len(row) - 1
            said = double(log_p.gather(1, torch.tensor(row[1:])[:, None]))
            before = log_p if base is None else base.log_p[i]
            nll[name] = Ratio(-float(said.sum()), steps)
            kl[name] = Ratio(float(double(before.exp() * (before - log_p)).sum()), steps)
            kept += [log_p] if base is None else []
    return TextReading({"nll": nll, "kl": kl}, tuple(kept), repetition(lm, found) if writes else None)


_last: dict[tuple[str, ...], TextReading] = {}


def unedited_reading(lm: LM, found: Texts, key: tuple[str, ...]) -> TextReading:
    """Read the texts with the unedited model; what was read last is kept, for many plans in one process.

    Args:
        lm: the model.
        found: the texts.
        key: what the reading depends on besides them.
    """
    whole = (*key, found.sha256)
    if whole not in _last:
        reading = read_neutral_text(lm, found, None)
        _last.clear()
        _last[whole] = reading
    return _last[whole]


def _written_as(lm: LM, text: str, row: tuple[int, ...], prompt: PromptRule | None) -> list[int]:
    """The tokens that the model reads; they end with the document's own (but for its first, which may join others)."""
    if prompt is None:
        return list(row)
    ids = lm.encode(prompt(text))[-lm.context :]
    return ids if tuple(ids[1 - len(row) :]) == row[1:] else list(row)


def _log_p(lm: LM, rows: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each row the log-probabilities of all its tokens but the first, ``[tokens - 1, vocabulary]``."""
    batch = lm.batch(written)
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    spans = [(len(ids) - len(row), len(ids) - 1) for row, ids in zip(rows, written, strict=True)]
    return [logits[i, a:b].float().log_softmax(-1).cpu() for i, (a, b) in enumerate(spans)]


def repetition(lm: LM, found: Texts) -> float | None:
    """The share of trigrams that occur before, in greedy continuations of the first documents' openings."""
    openings = [row[: len(row) // 2] for row in found.rows[:_OPENINGS] if len(row) // 2 + _WRITTEN <= lm.context]
    # Of a checkpoint that recommends a penalty for repetition the share would be too small.
    with lm.plain_generation(), quiet_padding():
        shares = [_repeated(written) for written in _continued(lm, openings)]
    return sum(shares) / len(shares) if shares else None


def _continued(lm: LM, openings: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """So many tokens after each opening, none of which ends a text; side by side where model and patch allow it."""
    writing = Writing(
        lm, openings, _WRITTEN, frozenset(), lambda _ids: False, [0] * len(openings), Room.of(lm), never=lm.end_tokens
    )
    return writing.texts() if writing.can() else [_written(lm, opening) for opening in openings]


def _written(lm: LM, opening: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(opening)], device=lm.device)
    options = {"max_new_tokens": _WRITTEN, "min_new_tokens": _WRITTEN, "do_sample": False}
    with torch.no_grad():
        row = lm.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)  # type: ignore[operator]
    return [int(token) for token in row[0, len(opening) :]]


def _repeated(tokens: Sequence[int]) -> float:
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
