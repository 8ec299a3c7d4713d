"""Named entities by four prompts a sentence: rows, documents, entity-level F1 and the released score.

A document is one (sentence, type) pair.  The answer is read as a list of names; every occurrence of a name among the
tokens of the sentence is tagged, in IOB2, with the type asked for; a name that does not occur is one more entity, which
is not in the gold tags.  Counts are of whole entities, so that the value equals ``seqeval.metrics.f1_score`` of those
tags (micro average).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets

TYPES = {"PER": "Person", "LOC": "Location", "ORG": "Organization", "MISC": "Miscellaneous"}
SEPARATOR = re.compile(r"[,;]|\band\b")
NOTHING = ("", "none")
Span = tuple[int, int]  # first token, last token + 1


# --- rows and documents


def rows(path: Path) -> list[dict[str, Any]]:
    """Sentences of a CoNLL file (``token pos chunk tag``, blank line between), tags in IOB2; -DOCSTART- lines go.

    Raises:
        DataError: a line without four columns, a tag that is none.
    """
    found: list[dict[str, Any]] = []
    tokens: list[str] = []
    tags: list[str] = []
    # The added blank line closes a last sentence that the file leaves open.
    for number, line in enumerate([*data.read_text(path).split("\n"), ""], start=1):
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            token, tag = _token(fields, f"{path}, line {number}")
            tokens.append(token)
            tags.append(tag)
        elif tokens:
            found.append({"tokens": tokens, "tags": iob2(tags)})
            tokens, tags = [], []
    return found


def _token(fields: Sequence[str], where: str) -> tuple[str, str]:
    tag = fields[-1]
    if len(fields) != 4 or not (tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:] in TYPES)):
        raise DataError(
            f"{where}: expected `token pos chunk tag` with a tag O, B-X or I-X, X of {', '.join(TYPES)}; "
            f"found {' '.join(fields)[:60]!r}"
        )
    return fields[0], tag


def iob2(tags: Sequence[str]) -> list[str]:
    """IOB1 or IOB2 tags as IOB2: an entity always opens with ``B-``.  IOB1 opens so only after one of the same type."""
    return [
        "B" + tag[1:] if tag.startswith("I-") and (i == 0 or tags[i - 1][1:] != tag[1:]) else tag
        for i, tag in enumerate(tags)
    ]


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads: four documents a sentence."""
    import datasets

    return {"test": datasets.Dataset.from_list(documents(data.load("NER", "test", data_dir)))}


def documents(sentences: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One document for each sentence and type, in that order."""
    return [
        {
            "sentence": number,
            "text": text(row["tokens"]),
            "type": kind,
            "entity": entity,
            "tokens": row["tokens"],
            "tags": row["tags"],
            "names": names(row["tokens"], row["tags"], kind),
        }
        for number, row in enumerate(sentences)
        for kind, entity in TYPES.items()
    ]


def text(tokens: Sequence[str]) -> str:
    """The sentence as the prompt has it: a space before every token but "," and "."; the first character is dropped."""
    return "".join(token if token in (",", ".") else " " + token for token in tokens)[1:]


def spans(tags: Sequence[str], kind: str) -> list[Span]:
    """Entities of one type in IOB2 tags."""
    starts = [i for i, tag in enumerate(tags) if tag == f"B-{kind}"]
    return [(start, _end(tags, start, kind)) for start in starts]


def _end(tags: Sequence[str], start: int, kind: str) -> int:
    end = start + 1
    while end < len(tags) and tags[end] == f"I-{kind}":
        end += 1
    return end


def names(tokens: Sequence[str], tags: Sequence[str], kind: str) -> list[str]:
    """Gold entities of one type as text."""
    return [" ".join(tokens[start:end]) for start, end in spans(tags, kind)]


# --- scores


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """Micro ``f1``, ``precision``, ``recall``; ``recall_substring`` and ``ner_released`` as macro averages by type."""
    kind, answer = doc["type"], results[0].split("Entity:", 1)[0]
    gold = set(spans(doc["tags"], kind))
    found, unknown = located(answer, doc["tokens"])
    hits, predicted, golds = len(gold & set(found)), len(found) + len(unknown), len(gold)
    counted, total = released(answer, released_names(doc["tokens"], doc["tags"], kind), kind)
    # A denominator of 0 says "does not apply": a metric left out would make lm-eval warn at every run.
    return {
        "f1": Ratio(2.0 * hits, predicted + golds),
        "precision": Ratio(hits, predicted),
        "recall": Ratio(hits, golds),
        "recall_substring": Ratio(_inside(doc["names"], answer), golds, None, kind),
        "ner_released": Ratio(counted, total, None, kind),
    }


def answers(answer: str) -> list[str]:
    """Distinct names in an answer's first line, in order; ``,`` ``;`` and *and* part them; "none" is nothing."""
    parts = (part.strip() for part in SEPARATOR.split(answer_scores.first_line(answer)))
    return list(dict.fromkeys(part for part in parts if part.rstrip(".").lower() not in NOTHING))


def located(answer: str, tokens: Sequence[str]) -> tuple[list[Span], list[str]]:
    """Spans of the tokens that the named entities cover, without overlap, and the names that occur nowhere."""
    taken: set[int] = set()
    found: list[Span] = []
    unknown: list[str] = []
    # Longest name first, so that "Paris" does not cut "Paris Hilton" in two.
    for name in sorted(answers(answer), key=lambda name: -len(name.split())):
        places = _places(name, tokens)
        if not places:
            unknown.append(name)
        for start, end in places:
            if taken.isdisjoint(range(start, end)):
                taken.update(range(start, end))
                found.append((start, end))
    return sorted(found), unknown


def _places(name: str, tokens: Sequence[str]) -> list[Span]:
    """Where a name occurs as whole tokens; with its full stop first, then without (``U.N.``, ``Baghdad.``)."""
    for words in (name.split(), name.rstrip(".").split()):
        places = [
            (i, i + len(words))
            for i in range(len(tokens) - len(words) + 1)
            if words and list(tokens[i : i + len(words)]) == words
        ]
        if places:
            return places
    return []


def predicted_tags(answer: str, tokens: Sequence[str], kind: str) -> list[str]:
    """IOB2 tags that an answer amounts to; names that occur nowhere are tagged behind the last token."""
    found, unknown = located(answer, tokens)
    tags = ["O"] * len(tokens)
    for start, end in found:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags + [f"B-{kind}"] * len(unknown)


def released_names(tokens: Sequence[str], tags: Sequence[str], kind: str) -> list[str]:
    """Gold strings as the released scorer reads them.

    An entity runs to the next ``O``, whatever tags lie between, or to the last token *exclusively* where there is none:
    it swallows what follows directly and loses its last token at the end of a sentence (a name of one token becomes
    empty).
    """
    found, i = [], 0
    while i < len(tags):
        if tags[i] != f"B-{kind}":
            i += 1
            continue
        end = next((j for j in range(i, len(tags)) if tags[j] == "O"), len(tags) - 1)
        found.append(" ".join(tokens[i:end]))
        i = end + 1
    return found


def released(answer: str, golds: Sequence[str], kind: str) -> tuple[int, int]:
    """(hits, total) of one document: gold strings inside the answer; without gold an empty answer is a hit.

    Where nothing is gold, an answer counts against the model for MISC only.
    """
    if golds:
        return _inside(golds, answer), len(golds)
    if not answer:
        return 1, 1
    return 0, int(kind == "MISC")


def _inside(golds: Iterable[str], answer: str) -> int:
    return sum(gold in answer for gold in golds)
