"""What is measured on texts: exact match, agreement of two, n-gram entropy, consistency.

Sources: K. Meng et al. (2022, ROME), section 3 and appendix J (fluency GE, consistency RS); Y. Zhang et al. (2018), the
entropy of n-grams; word boundaries: Unicode Standard Annex 29.  Pure functions; nothing here knows a model.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import regex

from harness.exam.statistics import Ratio

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

__all__ = [
    "REFUSALS",
    "agreement",
    "begins_with",
    "consistency",
    "entropy",
    "folded",
    "mentions",
    "refuses",
    "vectorizer",
    "words",
]

REFUSALS = (
    "I don't know", "I do not know", "I'm not sure", "I am not sure", "I'm sorry", "I am sorry", "I can't", "I cannot",
    "I'm unable", "I am unable", "I won't", "I will not", "I have no information", "I have no knowledge",
    "it is not known", "it is unknown", "unknown", "cannot be determined", "no answer",
)  # fmt: skip
"""What a text says that declines to answer, in English; an edit set may bring phrases of its own."""
_OPENING = 20
"""Words of a text in which a refusal stands: what comes later is no longer an answer to the question."""
_COMPARED = 5
"""Words that are compared where no answer says how many."""
_ARTICLES = ("a", "an", "the")
_ARTICLE = re.compile(r"^(?:the|an?)\s+")
_BOUNDARY = regex.compile(r"\b", regex.WORD)
_ENDING = regex.compile(r"['\u2019](?:s|d|m|ll|re|ve)?(?!\w)", regex.IGNORECASE)
"""What hangs on a word and does not make it another: France's."""
_GOES_ON = regex.compile(r"(?<=\w)[+#]|(?<=\d)[.,:/\u2044]\d")
"""What makes another answer of the same beginning: C++, C#, 3.14, 10:30, 3/4."""
_CARRIED_ON = regex.compile(r"(?<=\d[.,:/\u2044])\d")
"""What is the rest of a number: the 30 of 10:30."""
_OPENED = regex.compile(r"(?<=['\u2018\u2019])(?!(?<=\w.)(?:s|d|m|t|ll|re|ve)(?!\w))\w", regex.IGNORECASE)
"""A word behind a quotation mark, or in front of which another one lost its end: 'Oslo', l'Aquila; not France's."""
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*")
_TOKEN = re.compile(
    r"""\w+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b    # contractions stand apart: do n't, France 's
    |(?:[^\W\d_]\.){2,}                             # U.S.
    |\d+(?:[.,:]\d+)+                               # 3.5 and 1,000 are one token
    |\w+(?:[-']\w+)*?(?=n't\b|'(?:s|m|d|ll|re|ve)\b)|\w+(?:[-'.]\w+)*
    |\.\.\.|--|[^\w\s]""",
    re.IGNORECASE | re.VERBOSE,
)


def folded(text: str) -> str:
    """Compatible characters, lower case, single spaces, no leading article."""
    return _ARTICLE.sub("", _plain(text).casefold())


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def begins_with(continuation: str, target: str, aliases: Sequence[str] = ()) -> bool:
    """Whether a continuation begins with the target, or an alias of it, and a word ends there.

    Case, spacing and a leading article of either text do not count.  Words end where Unicode has a word boundary, so
    that scripts without spaces have ends too; ``'s`` hangs on a word, while a number goes on in ``3.14`` and a name in
    ``C++``.  An answer that is itself an article (the letter of a choice) counts in its own case.

    Args:
        continuation: what is said.
        target: what is wanted.
        aliases: what is right as well.
    """
    return any(_begins(_plain(continuation), _plain(wanted)) for wanted in (target, *aliases))


def mentions(text: str, answer: str) -> bool:
    """Whether a text says an answer anywhere, as whole words, which end as in :func:`begins_with`.

    Case, spacing and a leading article of the answer do not count; an answer of one letter, or that is itself an
    article, counts in its own case.

    Args:
        text: the text.
        answer: the answer.
    """
    wanted = _plain(answer)
    if len(wanted) == 1 or wanted.casefold() in _ARTICLES:
        return _says(_plain(text), wanted)
    return _says(folded(text), folded(answer))


def refuses(continuation: str, phrases: Sequence[str] = REFUSALS) -> bool:
    """Whether a continuation declines to answer: one of the phrases stands among its first words, as whole words.

    Args:
        continuation: what is said.
        phrases: what is said by a text that declines.
    """
    opening = " ".join(_straight(continuation).split()[:_OPENING])
    return any(_says(opening, _straight(phrase)) for phrase in phrases)


def _straight(text: str) -> str:
    """Lower case, single spaces, straight apostrophes."""
    return _plain(text).casefold().replace("\u2019", "'")


def _begins(said: str, wanted: str) -> bool:
    if not wanted:
        return False
    if wanted.casefold() in _ARTICLES:
        return said.startswith(wanted) and _ends(said, len(wanted))
    said, wanted = folded(said), folded(wanted)
    return said.startswith(wanted) and _ends(said, len(wanted))


def _ends(text: str, at: int) -> bool:
    """Whether a word, a number or a name ends at a character of a text."""
    if at == len(text):
        return True
    if _GOES_ON.match(text, at):
        return False
    return _BOUNDARY.match(text, at) is not None or _ENDING.match(text, at) is not None


def _says(text: str, wanted: str) -> bool:
    """Whether some words stand anywhere in a text, and none of them goes on at either side."""
    at = text.find(wanted) if wanted else -1
    while at >= 0 and not (_starts(text, at) and _ends(text, at + len(wanted))):
        at = text.find(wanted, at + 1)
    return at >= 0


def _starts(text: str, at: int) -> bool:
    """Whether a word, a number or a name begins at a character of a text."""
    if at == 0:
        return True
    if _CARRIED_ON.match(text, at):
        return False
    return _BOUNDARY.match(text, at) is not None or _OPENED.match(text, at) is not None


def agreement(doc: Mapping[str, str], edited: str, unedited: str) -> Ratio:
    """Whether two models continue one locality prompt with the same words, as many as the gold answer has.

    The answer's length sets how far the texts are compared: what follows the answer is another matter.  Where no answer
    is known, the first five words are.

    Args:
        doc: the probe, with ``case`` and ``target_true``.
        edited: the free continuation by the edited model.
        unedited: the one by the unedited model.
    """
    count = max(1, len(_apart(doc["target_true"]))) if doc["target_true"] else _COMPARED
    return Ratio(float(_apart(edited)[:count] == _apart(unedited)[:count]), 1.0, doc["case"])


def _apart(text: str) -> list[str]:
    """The words of a text, of a script without spaces its characters."""
    return words(_UNSPACED.sub(r" \g<0> ", folded(text)))


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks of a text, contractions split as in the Penn Treebank."""
    return _TOKEN.findall(text)


def entropy(tokens: Sequence[str]) -> float:
    """Weighted entropy of the bigrams and trigrams of one text, in bits: (2/3 H2 + 4/3 H3) / 2 (ROME's GE of one text).

    Not a number when the text has no bigram.
    """
    if len(tokens) < 2:
        return math.nan
    return (2 / 3 * _ngram_entropy(tokens, 2) + 4 / 3 * _ngram_entropy(tokens, 3)) / 2


def _ngram_entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return sum(-c / total * math.log2(c / total) for c in counts.values())


def vectorizer(texts: Sequence[str]) -> TfidfVectorizer:
    """TF-IDF fitted on all reference texts: lower case, words of two characters or more, smoothed idf, L2 norm."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second: only who needs it pays

    return TfidfVectorizer().fit(texts)


def consistency(fitted: TfidfVectorizer, generations: Sequence[str], references: Sequence[str]) -> float:
    """Cosine between the TF-IDF vectors of the joined generations and the joined references (ROME's RS).

    Not a number when there is no reference.

    Args:
        fitted: the TF-IDF weights of words, learned on the data set's reference texts.
        generations: what the model wrote about one subject.
        references: what is known to be true of what the subject was edited to.
    """
    if not references:
        return math.nan
    said, meant = fitted.transform([" ".join(generations), " ".join(references)])
    return float(said.multiply(meant).sum())
