"""The feature norms of McRae et al. (2005) as REMEDI uses them: which features entail which.

Source: Hernandez, Li, Andreas 2023, arXiv 2304.00740, section 5, and the authors' code (evandez/REMEDI at fe16234).
``P(f|c) = Prod_Freq / 30``, the share of people who named feature ``f`` for concept ``c``;
``co(g|f) = 1/N_f sum_{c with f and g} P(f|c) P(g|c)``, ``N_f`` the number of concepts with ``f``.

Whether a concept takes *a* or *an* is decided by its first letter (there: a pronouncing dictionary); a name takes none.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.editing.edit import SLOT, Edit
from harness.studies.remedi.entities import EntityCase

__all__ = ["concepts", "cooccurrence", "feature_question", "fluent", "samples", "with_article"]

Norms = Mapping[str, Mapping[str, float]]
"""Concept -> feature -> ``P(f|c)``."""

PEOPLE = 30
LEAST = 0.1
"""The least co-occurrence of a pair."""
UNRELATED = 5
SEED = 123456
_DROPPED = ("bought/sold", "eg -", "killed", "king of")
_IS = ("a ", "an ", "associated ", "hunted ", "eaten ", "found ", "like ", "made ", "part ", "owned ", "used ", "worn ")
_PREFIXES = (
    *("associated with", "an", "a", "becomes a", "causes", "comes from", "comes in", "comes on", "different"),
    *(f"found {word}" for word in ("at", "below", "by", "in", "on", "over", "near")),
    *("has an", "has a", "has", "is an", "is attached to", "is a", "is", "like a"),
    *(f"made {word}" for word in ("by", "of", "with", "from")),
    *("owned by", "part of a", "part of", "requires a", "requires"),
    *(f"used {word}" for word in ("as", "at", "by", "for", "in", "on", "with")),
    "uses",
)


def concepts(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Concepts with their features in plain words, and how likely people name each.

    Args:
        rows: ``Concept``, ``Feature`` and ``Prod_Freq``, as in the published table.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        concept = str(row["Concept"]).replace("_", " ")
        feature = str(row["Feature"]).removeprefix("inbeh_-_").removeprefix("beh_-_").replace("_", " ")
        if not feature.startswith(_DROPPED):
            found.setdefault(concept, {}).setdefault(feature, float(row["Prod_Freq"]) / PEOPLE)
    return found


def fluent(feature: str) -> str:
    """A feature as it follows its concept: ``a musical instrument`` becomes ``is a musical instrument``."""
    if feature.startswith(_IS):
        return f"is {feature}"
    return f"has {feature}" if feature.startswith("different ") else feature


def with_article(concept: str) -> str:
    """A concept as a sentence begins with it: ``An accordion``; a name stays as it is."""
    if concept[:1].isupper():
        return concept
    return f"{'An' if concept[:1] in 'aeiou' else 'A'} {concept}"


def feature_question(concept: str, feature: str) -> tuple[str, str]:
    """The question that a feature answers, and the answer: ``An accordion is a``, ``musical instrument``."""
    for prefix in _PREFIXES:
        rest = feature.removeprefix(f"{prefix} ")
        if rest != feature:
            return f"{with_article(concept)} {fluent(f'{prefix} ').strip()}", rest
    whole = fluent(feature)
    lead = whole.removesuffix(feature).strip()
    return f"{with_article(concept)} {lead}".strip(), feature


def cooccurrence(norms: Norms) -> dict[str, dict[str, float]]:
    """``co(g|f)`` for every ``f`` and every ``g`` that some concept has beside it."""
    holders: dict[str, list[str]] = {}
    for concept, features in norms.items():
        for feature in features:
            holders.setdefault(feature, []).append(concept)
    found: dict[str, dict[str, float]] = {}
    for f, who in holders.items():
        sums: dict[str, float] = {}
        for concept in who:
            for g, p in norms[concept].items():
                if g != f:
                    sums[g] = sums.get(g, 0.0) + norms[concept][f] * p
        found[f] = {g: total / len(who) for g, total in sums.items()}
    return found


def samples(norms: Norms, count: int | None = None) -> list[EntityCase]:
    """One case for each pair of features that co-occur, in a seeded order: the first is said, the second is asked.

    The concept is one that has neither; its name stands in neither.

    Args:
        norms: concepts and features.
        count: the most cases; None for all.
    """
    together, rng = cooccurrence(norms), random.Random(SEED)
    pairs = [(f, g) for f, row in together.items() for g, co in row.items() if co >= LEAST]
    rng.shuffle(pairs)
    every, names = list(together), list(norms)
    found: list[EntityCase] = []
    for f, g in pairs:
        if count is not None and len(found) == count:
            break
        free = [c for c in names if f not in norms[c] and g not in norms[c] and c not in f and c not in g]
        if free:
            found.append(_sample(rng, len(found), rng.choice(free), (f, g), norms, together, every))
    return found


def _sample(
    rng: random.Random,
    number: int,
    concept: str,
    pair: tuple[str, str],
    norms: Norms,
    together: Norms,
    every: Sequence[str],
) -> EntityCase:
    (f, g), article = pair, with_article(concept).removesuffix(concept)
    co, own = together[f], norms[concept]
    others = [feature for feature in every if feature not in co and feature not in own and feature != f]
    more = {
        "co": {feature: round(value, 2) for feature, value in co.items()},
        "original": {feature: round(value, 2) for feature, value in own.items()},
        "unrelated": dict.fromkeys(rng.sample(others, min(UNRELATED, len(others))), 0.0),
    }
    edit = Edit(str(number), f"{article}{SLOT}", concept, fluent(f))
    prompt, target = feature_question(concept, g)
    return EntityCase(str(number), edit, prompt, target, None, more)
