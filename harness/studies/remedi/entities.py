"""Cases of REMEDI's benchmarks: an entity, a sentence about it, a question, and the answer that the sentence entails.

Source: Hernandez, Li, Andreas 2023, arXiv 2304.00740, and the authors' code (evandez/REMEDI at fe16234): how records of
CounterFact, Bias in Bios and the McRae norms become cases.  Two things differ: sentences end at a full stop, question
or exclamation mark and a space (there: spaCy), and a biography that comes without its name gets :data:`NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.editing.edit import SLOT, Edit, Example, Probe

__all__ = [
    "NAME",
    "PUBLISHED_HALF",
    "EntityCase",
    "clean_paraphrase",
    "example",
    "from_biography",
    "from_counterfact",
    "halves",
    "in_context",
    "stand_ins",
]

Row = Mapping[str, Any]
Item = TypeVar("Item")

NAME = "Alex"
"""Whom a biography is about that comes without a name."""
PUBLISHED_HALF = 5000
"""Rows that are learned from, and rows that are examined."""
_TITLES = ("professor", "prof", "dr", "mr", "mrs", "ms", "miss", "sir")
_LEADS = (" (b. ", "(tr. ", "(min. ")
_MIN_WORDS = 10


@dataclass(frozen=True)
class EntityCase:
    """One case.

    Attributes:
        id: unique within its set.
        edit: what the sentence says of the entity (its subject); the sentence is ``edit.text + edit.continuation``.
        prompt: the question, which names the entity once.
        target: the answer that the sentence entails.
        target_old: the answer that was right without it; None where none is known.
        more: what one benchmark alone needs (paraphrases, features, ...).
    """

    id: str
    edit: Edit
    prompt: str
    target: str
    target_old: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entity(self) -> str:
        """Whom or what the case is about."""
        return str(self.edit.subject)

    @property
    def context(self) -> str:
        """The sentence."""
        return self.edit.text + self.edit.continuation


def in_context(context: str, prompt: str, space: str = " ") -> str:
    """A question with the sentence in front, which then ends in one full stop.

    Args:
        context: the sentence.
        prompt: the question.
        space: what stands between the two.
    """
    return f"{context.rstrip('. ')}.{space}{prompt}"


def example(case: EntityCase) -> Example:
    """What an editor may learn from a case: the question is the paraphrase."""
    probe = Probe(case.edit.id, "paraphrase", case.prompt, case.target, case.target_old or "")
    return Example(case.edit, (probe,))


def halves(items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """What is learned from, and what is examined: the first 5,000 and the next as published, halves of fewer."""
    cut = min(PUBLISHED_HALF, len(items) // 2)
    return items[:cut], items[cut : cut + PUBLISHED_HALF]


# --- CounterFact ------------------------------------------------------------------------------------------------------


def from_counterfact(row: Row, edit: Edit) -> EntityCase:
    """A record: its rewrite prompt with the new target is the sentence, its first paraphrase, cleaned, the question.

    Args:
        row: the record, in the schema of CounterFact.
        edit: its edit.
    """
    paraphrases = list(dict.fromkeys(row.get("paraphrase_prompts") or [edit.text]))
    entity = str(edit.subject)
    more = {
        "paraphrases": [prompt for prompt in paraphrases if entity in prompt],
        "neighborhood": list(dict.fromkeys(row.get("neighborhood_prompts") or [])),
        "generation": list(dict.fromkeys(row.get("generation_prompts") or [])),
        "relation": edit.relation or "",
        "target_id": row["requested_rewrite"]["target_new"].get("id") or "",
    }
    prompt = clean_paraphrase(paraphrases[0], entity)
    return EntityCase(edit.id, edit, prompt if entity in prompt else edit.text, edit.target, edit.target_old, more)


def clean_paraphrase(prompt: str, entity: str) -> str:
    """A paraphrase without the text that CounterFact puts in front; as published, see the module's text."""
    kept = prompt.rpartition("\n")[2]
    if kept.startswith("Category:") and entity in kept:
        kept = kept[kept.index(entity) :]
    for lead in _LEADS:
        kept = kept.rpartition(lead)[2]
    partly = kept
    parts = _sentences(kept, entity)
    if len(parts) == 2:
        parts = parts if entity in parts[0] else parts[1:]
    elif len(parts) > 2:
        parts = parts[-2:] if "?" in parts[-2] else parts[-1:]
    kept = " ".join(parts)
    if "." in kept and "." not in entity:
        kept = kept.rpartition(".")[2]
    return (kept if entity in kept else partly).strip()


def _sentences(text: str, entity: str) -> list[str]:
    """Sentences; what is split inside the entity is joined again."""
    kept = text.replace(entity, SLOT)
    return [part.replace(SLOT, entity) for part in re.split(r"(?<=[.!?])\s+", kept) if part]


def stand_ins(
    cases: Sequence[EntityCase], known: Iterable[tuple[str, str, str]], draw: Callable[[int], int]
) -> list[str]:
    """For each case an entity of which the new target is true (the baseline ``replace``); empty where none is known.

    Args:
        cases: cases of CounterFact.
        known: relation, entity, and what is true of it.
        draw: from a number of choices to one of them.
    """
    table: dict[tuple[str, str], list[str]] = {}
    for relation, entity, true in known:
        table.setdefault((relation, true), []).append(entity)
    found = []
    for case in cases:
        others = [e for e in table.get((case.more["relation"], case.target), []) if e != case.entity]
        found.append(others[draw(len(others))] if others else "")
    return found


# --- Bias in Bios -----------------------------------------------------------------------------------------------------


def from_biography(row: Row, number: int) -> EntityCase | None:
    """A biography without its first sentence: its next sentence, and the question for the occupation.

    The full and the last name, with and without titles, become the first name.  None where the sentence is too short
    (ten words) or does not name its person exactly once.

    Args:
        row: ``text`` (the first sentence removed), ``profession``; ``name`` and ``prompt`` (with a slot) where known.
        number: the number of the row.
    """
    name = str(row.get("name") or NAME).split()
    entity, text = name[0], str(row["text"])
    # Before sentences are told apart: the full stop of a title ends none.
    for variant in _variants(name):
        text = re.sub(rf"(?<!\w){re.escape(variant)}(?!\w)", entity, text)
    text = _second_sentence(text).strip("*\N{BULLET} ")
    if entity not in text:
        text = f"About {entity}: {text}"
    if text.count(entity) != 1 or len(text.split()) < _MIN_WORDS or SLOT in text:
        return None
    before, _, after = text.partition(entity)
    # What hangs on the name ("'s", ",", ":") stays with the prompt, so that the parts make the sentence again.
    hanging, _, said = after.partition(" ")
    if not said.strip(". :"):
        return None
    edit = Edit(str(number), f"{before}{SLOT}{hanging}", entity, said.strip())
    prompt = str(row.get("prompt") or f"{SLOT} has the occupation of").replace(SLOT, entity)
    return EntityCase(str(number), edit, prompt, str(row["profession"]).replace("_", " "))


def _second_sentence(text: str) -> str:
    """The first sentence of at least three words of what is left of a biography, or all of it."""
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    return next((part for part in parts if len(part.split()) >= 3), text.strip())


def _variants(name: Sequence[str]) -> Iterator[str]:
    """The ways to write a full or last name, the longest first."""
    if len(name) < 2:
        return
    for base in (" ".join(name), name[-1]):
        for title in _TITLES:
            for cased in (title, title.capitalize(), title.upper()):
                yield f"{cased}. {base}"
                yield f"{cased} {base}"
        yield base
