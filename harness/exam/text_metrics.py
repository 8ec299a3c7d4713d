"""What is measured on texts: exact match, agreement of two, n-gram entropy, consistency.

Sources: K. Meng et al. (2022, ROME), section 3 and appendix J (fluency GE, consistency RS); Y. Zhang et al. (2018), the
entropy of n-grams.  Pure functions; nothing here knows a model.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.exam.statistics import Ratio

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

__all__ = [
    "agreement",
    "begins_with",
    "consistency",
    "entropy",
    "folded",
    "vectorizer",
    "words",
]

_ARTICLE = re.compile(r"^(?:the|an?)\s+")
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
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _ARTICLE.sub("", text)


def begins_with(continuation: str, target: str) -> bool:
    """Whether a continuation begins with the target, ending where a word ends; both are normalised first."""
    said, wanted = folded(continuation), folded(target)
    return bool(wanted) and said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()


def agreement(doc: Mapping[str, str], edited: str, unedited: str) -> Ratio:
    """Whether two models continue one locality prompt with the same words, as many as the gold answer has.

    The answer's length sets how far the texts are compared: what follows the answer is another matter.

    Args:
        doc: the probe, with ``case`` and ``target_true``.
        edited: the free continuation by the edited model.
        unedited: the one by the unedited model.
    """
    count = max(1, len(words(folded(doc["target_true"]))))
    same = words(folded(edited))[:count] == words(folded(unedited))[:count]
    return Ratio(float(same), 1.0, doc["case"])


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
