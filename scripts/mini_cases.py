"""Rows about the mini world in the schemas of the sets that ask what follows from an edit.

The shipped models were never taught to put two facts together: what they cannot answer is at the floor, and these rows
show that everything runs, not how well editing works.
"""

from __future__ import annotations

import random
from typing import Any

from mini_text import RELATIONS, Relation
from mini_world import SEED, Fact, World, target

Row = dict[str, Any]

SECOND = ("residence", "occupation", "instrument")
"""Relations of people that a second hop asks for."""
HOPS = {
    "residence": ("Where does the head of {} live?", "In which city lives the head of {}?", "The head of {} lives in"),
    "occupation": ("What is the job of the head of {}?", "As what does the head of {} work?", "The head of {} is a"),
    "instrument": (
        "What does the head of {} play?",
        "Which instrument plays the head of {}?",
        "The head of {} plays the",
    ),
}
"""Three ways to ask for it."""


def mquake_rows(world: World, seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """Test and tuning rows of MQuAKE: a company gets another head, and every second time the new head another fact."""
    rng = random.Random(f"{seed} rows mquake")
    relation = {one.id: one for one in RELATIONS}
    known = {(fact.relation.id, fact.subject): fact for fact in world.facts}
    heads = [fact for fact in world.facts if fact.relation.id == "head"]
    rng.shuffle(heads)
    made = [_case(rng, world, relation[rng.choice(SECOND)], number, (fact, known)) for number, fact in enumerate(heads)]
    test = [row for row, fact in zip(made, heads, strict=True) if fact.subject not in world.tuning]
    return test, [row for row, fact in zip(made, heads, strict=True) if fact.subject in world.tuning]


def _case(
    rng: random.Random, world: World, second: Relation, number: int, facts: tuple[Fact, dict[tuple[str, str], Fact]]
) -> Row:
    """A case of two hops in MQuAKE's schema; of one edit where its number is even, else of two."""
    first, known = facts
    leader = rng.choice([name for name in world.objects["head"] if name != first.object])
    before, after = known[second.id, first.object], known[second.id, leader]
    edits, answer = [_rewrite(world, first, leader)], after.object
    if number % 2:
        answer = rng.choice([one for one in world.objects[second.pool] if one != after.object])
        edits.append(_rewrite(world, after, answer))
    return {
        "case_id": number + 1,
        "requested_rewrite": edits,
        "questions": [asked.format(first.subject) for asked in HOPS[second.id]],
        "answer": before.object,
        "answer_alias": [],
        "new_answer": answer,
        "new_answer_alias": [],
        "single_hops": [_hop(first, first.object), _hop(before, before.object)],
        "new_single_hops": [_hop(first, leader), _hop(after, answer)],
    }


def _rewrite(world: World, fact: Fact, new: str) -> Row:
    """An edit of a fact."""
    pool = fact.relation.pool
    return {
        "prompt": fact.seen()[0],
        "relation_id": fact.relation.id,
        "target_new": target(world, pool, new),
        "target_true": target(world, pool, fact.object),
        "subject": fact.subject,
        "question": fact.unseen_question.format(fact.subject),
    }


def _hop(fact: Fact, answer: str) -> Row:
    """A question about one fact on the way."""
    return {
        "question": fact.questions()[0].format(fact.subject),
        "cloze": fact.seen()[0].format(fact.subject),
        "answer": answer,
        "answer_alias": [],
    }
