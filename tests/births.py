"""Facts that learners are taught, and what they are asked of each: one paraphrase, one neighbour."""

from __future__ import annotations

from harness.editing.edit import Edit, Example, Probe

__all__ = ["CITIES", "PEOPLE", "births"]

CITIES = ["Paris", "Vienna", "Athens", "Dublin", "Rome", "Lisbon"]
PEOPLE = ["Rosa Delgado", "Jonas Wick", "Greta Holm", "Iris Calder", "Oskar Thorne", "Hugo Lantern"]


def births() -> list[Example]:
    """Where six people were born."""
    made = []
    for i, (who, city) in enumerate(zip(PEOPLE, CITIES, strict=True)):
        edit = Edit(f"t{i}", "{} was born in", who, city, CITIES[i - 1])
        asked = [
            Probe(edit.id, "paraphrase", f"Everybody knows {who} was born in", city, CITIES[i - 1]),
            Probe(edit.id, "neighborhood", f"{PEOPLE[i - 1]} was born in", city, CITIES[i - 1]),
        ]
        made.append(Example(edit, tuple(asked)))
    return made
