"""Dialogue summaries: ROUGE of the rouge-score package, and the ROUGE that the released scorer uses.

The released numbers come from the package ``rouge`` 1.0.1, which counts sets of unique n-grams, keeps case and
punctuation and has its own union form of ROUGE-L.  It is written here anew from its rules, because it fails on texts of
full stops only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets

CHOP = 13  # characters of "<|endoftext|>", which the released scorer cuts off whether they are there or not
EPSILON = 1e-8
TYPES = ("rouge1", "rouge2", "rougeL")


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSON list of ``{id, dialogue, summary}``; DataError where it is not one."""
    try:
        found = json.loads(data.read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); the file may be cut off") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path}: expected a JSON list of objects with id, dialogue and summary")
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("summarization", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``rouge`` (mean of the three F values), each of them, and the released mean of the whole and of the cut text."""
    scores = _scorer().score(doc["summary"], results[0])
    values = {name: float(scores[name].fmeasure) for name in TYPES}
    text = answer_scores.after_cue(results[0], "DR:")
    values["rouge"] = sum(values.values()) / len(TYPES)
    values["rouge_released"] = released_rouge(text, doc["summary"])
    values["rouge_released_chop13"] = released_rouge(text[:-CHOP], doc["summary"])
    return {name: Ratio(value) for name, value in values.items()}


@cache
def _scorer() -> Any:
    """The scorer of the rouge-score package: lower case, letters and digits only, no stemming."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(TYPES, use_stemmer=False)


# --- the released ROUGE


def released_rouge(hypothesis: str, reference: str) -> float:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L; 0 for a text of at most one character or without words."""
    if len(hypothesis) <= 1:
        return 0.0
    return sum(released_scores(hypothesis, reference)) / len(TYPES)


def released_scores(hypothesis: str, reference: str) -> tuple[float, float, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L as ``rouge`` 1.0.1 computes them; zeros where either text has no piece."""
    hyp, ref = _pieces(hypothesis), _pieces(reference)
    if not hyp or not ref:
        return 0.0, 0.0, 0.0
    hyp_words, ref_words = _words(hyp), _words(ref)
    one, two = (_f_score(_ngrams(hyp_words, n), _ngrams(ref_words, n)) for n in (1, 2))
    return one, two, _rouge_l(hyp, ref)


def _pieces(text: str) -> list[list[str]]:
    """Words of each piece between full stops; a piece of blanks keeps one empty word, a piece of nothing goes."""
    return [" ".join(piece.split()).split(" ") for piece in text.split(".") if piece]


def _words(pieces: Iterable[Sequence[str]]) -> list[str]:
    return [word for piece in pieces for word in piece]


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _f_score(hyp: set[Any], ref: set[Any], overlap: int | None = None) -> float:
    """F = 2 P R / (P + R + 1e-8), P = overlap / |hyp|, R = overlap / |ref|; 0 where a set is empty."""
    if not hyp or not ref:
        return 0.0
    common = len(hyp & ref) if overlap is None else overlap
    precision, recall = common / len(hyp), common / len(ref)
    return 2 * precision * recall / (precision + recall + EPSILON)


def _rouge_l(hyp: Sequence[Sequence[str]], ref: Sequence[Sequence[str]]) -> float:
    """Union over all pairs of pieces of the words of one longest common subsequence, against the unique words."""
    union = {word for r in ref for h in hyp for word in _common_subsequence(r, h)}
    return _f_score(set(_words(hyp)), set(_words(ref)), overlap=len(union))


def _common_subsequence(ref: Sequence[str], hyp: Sequence[str]) -> list[str]:
    """One longest common subsequence; which one, where there are several, matters: ties go back in ``hyp``."""
    lengths = [[0] * (len(hyp) + 1) for _ in range(len(ref) + 1)]
    for i, a in enumerate(ref, start=1):
        for j, b in enumerate(hyp, start=1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if a == b else max(lengths[i - 1][j], lengths[i][j - 1])
    i, j, found = len(ref), len(hyp), []
    while i and j:
        if ref[i - 1] == hyp[j - 1]:
            found.append(ref[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]
