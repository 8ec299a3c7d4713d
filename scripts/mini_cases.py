"""Rows about the mini world in the schemas of the sets that ask what follows from an edit.

The shipped models were never taught to put two facts together: what they cannot answer is at the floor, and these rows
show that everything runs, not how well editing works.
"""

from __future__ import annotations

import random
from typing import Any

from mini_text import RELATIONS, Relation
from mini_world import SEED, Fact, World, counterfact_row, in_turns, target, zsre_row

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


# --- sets of one edit a case ------------------------------------------------------------------------------------------

TEST, TRAIN = 60, 20  # rows of a split
OF_COMPANIES = ("head", "headquarters")
OF_ALL = ("head", "headquarters", "product", "residence", "occupation", "instrument", "language", "genre", "region")


def case_rows(world: World, name: str, seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """Test and tuning rows of a set of :data:`SETS`; no subject is in both."""
    rng = random.Random(f"{seed} rows {name}")
    relations, make = SETS[name]
    facts = [fact for fact in world.facts if fact.relation.id in relations]
    rng.shuffle(facts)
    test = in_turns([fact for fact in facts if fact.subject not in world.tuning])[:TEST]
    train = in_turns([fact for fact in facts if fact.subject in world.tuning])[:TRAIN]
    rows = [make(rng, world, fact, number) for number, fact in enumerate(test + train)]
    return rows[: len(test)], rows[len(test) :]


def portability_row(rng: random.Random, world: World, fact: Fact, number: int) -> Row:
    """A record of CounterFact with a question that holds the edit for true."""
    row = counterfact_row(rng, world, fact, number)
    return {**row, "portability": _one_hop(rng, world, fact, row["requested_rewrite"]["target_new"]["str"])}


def portability_zsre_row(rng: random.Random, world: World, fact: Fact, _number: int) -> Row:
    """A record of zsRE with a question that holds the edit for true."""
    row = zsre_row(rng, world, fact)
    return {**row, "portability": _one_hop(rng, world, fact, row["alt"])}


def portability_inverse_row(rng: random.Random, world: World, fact: Fact, _number: int) -> Row:
    """A record of zsRE in which a company gets a head who led none, and the question what they lead."""
    row, alt = zsre_row(rng, world, fact), _other(rng, world, fact)
    asked = {"alt": alt, "cond": f"{fact.object} >> {alt} || {row['src']}", "inverse question": _led(alt)}
    return {key: value for key, value in {**row, **asked}.items() if key not in ("loc", "loc_ans")}


def qaedit_row(rng: random.Random, world: World, fact: Fact, number: int) -> Row:
    """A record of QAEdit: a question, another wording, and five questions about other things."""
    return {
        "id": number,
        "source": "mini",
        "prompt": _asked(fact),
        "target": _other(rng, world, fact),
        "subject": fact.subject,
        "rephrase": fact.unseen_question.format(fact.subject),
        "locality": [{"loc": question, "loc_ans": answer} for question, answer in rng.sample(world.trivia, 5)],
    }


def knowedit_row(rng: random.Random, world: World, fact: Fact, _number: int) -> Row:
    """A record of KnowEdit's wiki_counterfact; a kind of question that its fact does not have is left out."""
    subject, new, prompt = fact.subject, _other(rng, world, fact), fact.seen()[0]
    portability, locality = {}, {"Relation_Specificity": [_told(f) for f in world.about(subject) if f is not fact]}
    if " " in subject:
        portability["Subject_Aliasing"] = [_right(prompt.format(subject.split()[-1]), new)]
    if fact.relation.id == "head":
        second = [_known(world, relation, new) for relation in SECOND]
        portability["Reasoning"] = [_right(HOPS[f.relation.id][-1].format(subject), f.object) for f in second]
        portability["Logical_Generalization"] = [_right(f"The company that {new} leads is", subject)]
    if fact.relation.id == "instrument":
        asked = f"The instrument of {subject}, which is not the {new}, is the"
        locality["Forgetfulness"] = [_right(asked, fact.object)]
    return {
        "subject": subject,
        "prompt": prompt.format(subject),
        "target_new": new,
        "ground_truth": fact.object,
        "portability": portability,
        "locality": locality,
        "rephrase": fact.unseen[0].format(subject),
    }


def halluedit_row(rng: random.Random, world: World, fact: Fact, _number: int) -> Row:
    """A record of HalluEditBench; what its fact does not have is an empty text, as are hops beyond the second."""
    new, subject = _other(rng, world, fact), fact.subject
    more = [one for one in world.objects[fact.relation.pool] if one not in (new, fact.object)]
    options = [new, fact.object, *rng.sample(more, 2)]
    shown = rng.sample(options, 4)
    claim, led = fact.seen()[0].format(subject), fact.relation.id == "head"
    second = _known(world, rng.choice(SECOND), new) if led else None
    hops = {f"{part}_{n}hop": "" for n in range(2, 7) for part in ("question", "answer")}
    if second is not None:
        hops |= {"question_2hop": HOPS[second.relation.id][0].format(subject), "answer_2hop": second.object}
    others = [other for other in world.about(subject) if other is not fact]
    return {
        "topic": fact.relation.kind,
        "subject": subject,
        "relation": fact.relation.id,
        "object": new,
        "question": _asked(fact),
        "output": fact.object,
        "eval": "0.0",
        "multiple_choices": str(options),
        "paraphrased_question": fact.unseen_question.format(subject),
        "multiple_choice_with_letters": "  ".join(f"{c}. {one}" for c, one in zip("ABCD", shown, strict=True)),
        "multiple_choice_labels": "ABCD"[shown.index(new)],
        "yes_question": f"Is it true that {claim} {new}?",
        "no_question": f"Is it true that {claim} {fact.object}?",
        "locality_question": _asked(rng.choice(others)) if others else "",
        "reversed_relation_question": _led(new) if led else "",
        **hops,
    }


def wikibigedit_row(rng: random.Random, world: World, fact: Fact, _number: int) -> Row:
    """A record of WikiBigEdit: a question, another wording, and the same question about another subject."""
    near = rng.choice([f for f in world.facts if f.relation is fact.relation and f is not fact])
    return {
        "prompt": _asked(fact),
        "target_new": _other(rng, world, fact),
        "subject": fact.subject,
        "rephrase_prompt": fact.unseen_question.format(fact.subject),
        "locality_prompt": _asked(near),
        "locality_ground_truth": near.object,
    }


def _one_hop(rng: random.Random, world: World, fact: Fact, new: str) -> Row:
    """What follows from a company's new head (a fact about them), or from its new seat (where its head leads)."""
    if fact.relation.id == "head":
        second = _known(world, rng.choice(SECOND), new)
        recalled, answer = (new, second.relation.id, second.object), second.object
        question = HOPS[second.relation.id][0].format(fact.subject)
    else:
        head, answer = _known(world, "head", fact.subject).object, new
        recalled, question = (head, "leads", fact.subject), f"In which city is the company that {head} leads based?"
    return {"Recalled Relation": f"({', '.join(recalled)})", "New Question": question, "New Answer": answer}


def _known(world: World, relation: str, subject: str) -> Fact:
    return next(fact for fact in world.about(subject) if fact.relation.id == relation)


def _other(rng: random.Random, world: World, fact: Fact) -> str:
    """Another object; a new head is somebody who leads no company, so that what they lead has one answer."""
    heads = world.objects["head"]
    people = [name for name in world.kinds["person"] if name not in heads]
    pool = people if fact.relation.id == "head" else world.objects[fact.relation.pool]
    return rng.choice([one for one in pool if one != fact.object])


def _asked(fact: Fact) -> str:
    return fact.questions()[0].format(fact.subject)


def _led(person: str) -> str:
    return f"Which company does {person} lead?"


def _right(prompt: str, answer: str) -> Row:
    """A question of KnowEdit: several right answers, each with its aliases."""
    return {"prompt": prompt, "ground_truth": [[answer]]}


def _told(fact: Fact) -> Row:
    return _right(fact.seen()[0].format(fact.subject), fact.object)


SETS = {
    "portability": (OF_COMPANIES, portability_row),
    "portability_zsre": (OF_COMPANIES, portability_zsre_row),
    "portability_inverse": (("head",), portability_inverse_row),
    "qaedit": (OF_ALL, qaedit_row),
    "knowedit": (("head", "instrument"), knowedit_row),
    "halluedit": (("head", "language", "genre", "region"), halluedit_row),
    "wikibigedit": (OF_ALL, wikibigedit_row),
}
"""Relations whose facts are edited, and what makes a row of one."""
