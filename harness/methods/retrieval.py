"""Finds, among sentences kept as text, those that a context asks about; no network, no model, no randomness.

A context is judged to be about a fact by how much of the fact's *key* it names: its subject, or its prompt where it has
none.  The cosine of whole sentences, which follows the words that many facts share, ranks what is equal in that; alone
it is misled by neighbours ("Ann plays the" is nearer to "Bob plays the tuba" than "On stage one hears Bob on the").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from harness.editing.edit import Edit
from harness.io.schema import checked, parsed
from harness.models.lm import LM

__all__ = ["Fact", "Index", "Sentences", "as_fact", "fits_context", "join_facts", "kept_rows", "words_of"]


class Fact(NamedTuple):
    """An edit as a sentence.

    Attributes:
        prompt: the edit's prompt, with its subject.
        sentence: the prompt and the target, with a full stop.
        subject: whom or what it is about, if known.
    """

    prompt: str
    sentence: str
    subject: str | None


def as_fact(edit: Edit) -> Fact:
    """What an edit states."""
    sentence = edit.statement
    return Fact(edit.question, sentence if sentence.endswith((".", "!", "?")) else f"{sentence}.", edit.subject)


def join_facts(earlier: Iterable[Fact], later: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts of both; a later one replaces an earlier one of the same prompt."""
    found = {one.prompt: one for one in earlier}
    for one in later:
        found.pop(one.prompt, None)
        found[one.prompt] = one
    return tuple(found.values())


@dataclass(frozen=True)
class Sentences:
    """Texts that are compared by their words.

    Attributes:
        texts: the texts.
    """

    texts: tuple[str, ...]

    def cosines(self, query: str) -> list[float]:
        """The cosine of a text with each: words and punctuation, weighted by TF-IDF over the texts that are kept."""
        rows, vectorizer = self._rows
        found: list[float] = (rows @ vectorizer.transform([query]).T).toarray()[:, 0].tolist()
        return [round(value, 9) for value in found]

    @cached_property
    def _rows(self) -> tuple[Any, Any]:
        """The texts as rows ``[texts, words]``, and what takes a text apart."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import

        vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", dtype=np.float64)
        return vectorizer.fit_transform(self.texts), vectorizer


@dataclass(frozen=True)
class Index:
    """Facts that can be asked for.

    Attributes:
        facts: the facts.
    """

    facts: tuple[Fact, ...]

    def named(self, context: str) -> list[float]:
        """For each fact the share of its key that the context names, from 0 to 1.

        The key and the context are taken apart into pieces of three to five characters; a piece weighs the square of
        its inverse document frequency, so that a last name says more than a first name that many share.
        """
        weights, vectorizer = self._keys
        found = (weights @ vectorizer.transform([words_of(context)]).sign().T).toarray()[:, 0]
        shares: list[float] = (found / np.asarray(weights.sum(1))[:, 0]).tolist()
        return [round(share, 9) for share in shares]

    def ranked(self, context: str) -> list[tuple[int, float]]:
        """The positions of the facts with the share of each, the most relevant first; of equals the later one."""
        shares, near = self.named(context), self._sentences.cosines(context)
        order = sorted(range(len(self.facts)), key=lambda i: (shares[i], near[i], i), reverse=True)
        return [(i, shares[i]) for i in order]

    @cached_property
    def _sentences(self) -> Sentences:
        return Sentences(tuple(one.sentence for one in self.facts))

    @cached_property
    def _keys(self) -> tuple[Any, Any]:
        """The squared weights of the keys' pieces, ``[facts, pieces]``, and what takes a text apart."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import

        vectorizer = TfidfVectorizer(
            analyzer="char", ngram_range=(3, 5), lowercase=False, binary=True, norm=None, dtype=np.float64
        )
        weights = vectorizer.fit_transform([words_of(one.subject or one.prompt) for one in self.facts])
        return weights.multiply(weights).tocsr(), vectorizer


def fits_context(lm: LM, text: str, room: int) -> bool:
    """Whether a model can read a text and write ``room`` tokens.

    Args:
        lm: the model.
        text: the text.
        room: tokens that are to stay free behind it.
    """
    return len(lm.encode(text)) + room <= lm.context


def words_of(text: str) -> str:
    """Words and marks in lower case, one space around each."""
    words = re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())
    return f" {' '.join(words)} "


def kept_rows(tensor: Tensor, kind: type) -> list[dict[str, Any]]:
    """The rows that a tensor of bytes holds as JSON.

    Args:
        tensor: the bytes, ``[n]``.
        kind: a ``TypedDict`` of one row.

    Raises:
        ValueError: they are no such rows.
        TypeError: it holds no bytes.
    """
    rows = parsed(bytes(tensor.cpu().tolist()))
    checked(list[kind], rows)  # type: ignore[valid-type]
    return list(rows)
