"""Reading an answer out of a generated text, and counting it.  Pure functions shared by the task folders.

A *plain* reading takes the first word for the answer.  The *released* readings are those of the code that accompanies
Gu et al. (2024, arXiv 2401.04700) and Ma et al. (2025, arXiv 2405.16821): they look for a word anywhere in the text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection

from harness.exam.statistics import Ratio

__all__ = ["after_cue", "choice", "contains_span", "first_line", "first_word", "normalise", "two_way", "yes_no"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_word(text: str) -> str:
    """The first word, without punctuation around it; empty where there is none.  `` Yes, he`` gives ``Yes``."""
    words = text.split(maxsplit=1)
    return words[0].strip(string.punctuation) if words else ""


def first_line(text: str) -> str:
    """The first line that holds anything, stripped: what follows a newline is no longer the answer."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def after_cue(text: str, cue: str) -> str:
    """The text after the last ``cue``: a released reading, for a model that writes the cue again itself."""
    return text.rsplit(cue, 1)[-1]


def normalise(text: str) -> str:
    """SQuAD normalisation (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains_span(text: str, answers: Collection[str]) -> bool:
    """Whether some run of whole words of ``text`` is one of ``answers``; both normalised, empty answers never are."""
    return any(answer and f" {answer} " in f" {text} " for answer in answers)


def choice(text: str, gold: str, labels: Collection[str], *, fold_case: bool = True) -> dict[str, Ratio]:
    """``accuracy`` and ``invalid_rate`` of one answer: its first word against the gold label; no label is wrong.

    Args:
        text: what the model answered.
        gold: the right label.
        labels: every label that counts as an answer.
        fold_case: whether the answer is looked at in lower case; labels are then lower case too.
    """
    word = first_word(text)
    answer = word.lower() if fold_case else word
    return {"accuracy": Ratio(float(answer == gold)), "invalid_rate": Ratio(float(answer not in labels))}


def two_way(correct: int, answered: int) -> dict[str, Ratio]:
    """The released counts of one document: ``correct`` of ``answered`` recognised labels, or one "other" without any.

    ``accuracy_released`` = sum correct / (sum answered + sum other);  ``accuracy_answered`` = sum correct / sum
    answered, which rises when a model stops answering and is therefore no headline.
    """
    other = int(answered == 0)
    return {
        "accuracy_released": Ratio(float(correct), float(answered + other)),
        "accuracy_answered": Ratio(float(correct), float(answered)),
    }


def yes_no(text: str, yes: str, no: str, *, gold: bool) -> tuple[int, int]:
    """(correct, answered) where ``yes`` anywhere in the text wins over ``no`` anywhere in it.

    Args:
        text: what the model answered.
        yes: the word that means yes, in lower case.
        no: the word that means no, in lower case.
        gold: whether yes is right.
    """
    folded = text.lower()
    if yes in folded:
        return int(gold), 1
    return (int(not gold), 1) if no in folded else (0, 0)
