"""The six canonical sets in the mini world's terms: canonical examples, evaluation, hard negatives, whole texts.

Everything is a pure function of a world and a seed; `canonical_rows` makes the files of one set, `corpus_rows` the
general text of the ball. A row is `prefix, suffix` (in a set of pairs `other` too), with the `subject` where an example
has one; a whole text has an empty prefix.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mini_text import ADJECTIVES, COMPANY_FIRST, NOUNS, THINGS, TIMES, VERBS
from mini_world import SEED, Fact, Row, World, biography, neutral, story

END = "<|endoftext|>"
CHUNK = 120  # words of a chunk of the general text; the models read 256 tokens
CHUNKS = 48
SAID = ("{} said that", "{} was late because", "{} left when")

Files = dict[str, list[Row]]


@dataclass(frozen=True)
class Part:
    """The files of one split of a set."""

    edits: list[Row]
    evaluation: list[Row]
    hard_negatives: list[Row]
    text: list[Row]

    def files(self, split: str) -> Files:
        """The files by the name of their split; the evaluation set has the split's own."""
        rest = {"edits": self.edits, "hard_negatives": self.hard_negatives, "text": self.text}
        return {split: self.evaluation, **{f"{name}_{split}": rows for name, rows in rest.items()}}


def canonical_rows(world: World, name: str, seed: int = SEED) -> Files:
    """The eight files of a set; no subject is in both splits."""
    rng = random.Random(f"{seed} canonical {name}")
    test, val = MAKERS[name](rng, world)
    return test.files("test") | val.files("val")


def row(prefix: str, suffix: str, subject: str | None = None, other: str | None = None) -> Row:
    """One row."""
    more = {"other": other, "subject": subject}
    return {"prefix": prefix, "suffix": suffix, **{key: value for key, value in more.items() if value}}


def whole(text: str) -> Row:
    """A text of which all is scored."""
    return {"prefix": "", "suffix": text}


def about(world: World, subject: str, relation: str) -> Fact:
    """The fact of a subject in one relation."""
    return next(fact for fact in world.about(subject) if fact.relation.id == relation)


def stated(rng: random.Random, fact: Fact) -> str:
    """A fact as a sentence in a phrasing of training."""
    return f"{rng.choice(fact.seen()).format(fact.subject)} {fact.object}."


def halves(rng: random.Random, names: tuple[str, ...], count: int) -> tuple[list[str], list[str]]:
    """Twice `count` different names."""
    drawn = rng.sample(names, 2 * count)
    return drawn[:count], drawn[count:]


# ---------------------------------------------------------------- facts that have changed


def new_facts(rng: random.Random, world: World, names: list[str], relation: str, others: tuple[str, ...]) -> Part:
    """Subjects with a new object in one relation; their other facts are the hard negatives."""
    part = Part([], [], [], [])
    old = {about(world, name, relation).object for name in names}
    pool = rng.sample(world.objects[relation], len(world.objects[relation]))
    for name, new in zip(names, [x for x in pool if x not in old], strict=False):
        fact = about(world, name, relation)
        first, *rest = rng.sample(fact.seen(), 4)
        part.edits.append(row(first.format(name), f" {new}", name))
        part.text.append(whole(f"{first.format(name)} {new}."))
        for statement in (*rest[:2], *fact.unseen):
            lead = f"{name} is a {fact.relation.kind}. {stated(rng, about(world, name, rng.choice(others)))}"
            part.evaluation.append(row(f"{lead} {statement.format(name)}", f" {new}", name))
        for other in others:
            known = about(world, name, other)
            part.hard_negatives.append(row(rng.choice(known.seen()).format(name), f" {known.object}", name))
    return part


def country_capital(rng: random.Random, world: World) -> tuple[Part, Part]:
    """Countries with a new capital."""
    test, val = halves(rng, world.kinds["country"], 18)
    others = ("language", "continent")
    return new_facts(rng, world, test, "capital", others), new_facts(rng, world, val, "capital", others)


def company_ceo(rng: random.Random, world: World) -> tuple[Part, Part]:
    """Companies with a new head; hard negatives are the heads of companies of neither split."""
    test, val = halves(rng, world.kinds["company"], 20)
    parts = [new_facts(rng, world, names, "head", ("product", "headquarters")) for names in (test, val)]
    left = [name for name in world.kinds["company"] if name not in {*test, *val}]
    for part, names in zip(parts, (left[::2], left[1::2]), strict=True):
        part.hard_negatives.clear()
        for name in names:
            fact = about(world, name, "head")
            said = rng.sample(fact.seen(), 2)
            part.hard_negatives.extend(row(s.format(name), f" {fact.object}", name) for s in said)
    return parts[0], parts[1]


# ---------------------------------------------------------------- somebody new


def temporal(rng: random.Random, world: World) -> tuple[Part, Part]:
    """Companies that the models have never read about, each introduced by one text."""
    names = rng.sample(world.visitors, 36)
    new = [f"{rng.choice(COMPANY_FIRST)} {last}" for last in names]
    known = rng.sample(world.kinds["company"], 24)
    return tuple(
        introductions(rng, world, entities, controls)
        for entities, controls in ((new[:18], known[:12]), (new[18:], known[12:]))
    )  # type: ignore[return-value]


def introductions(rng: random.Random, world: World, entities: list[str], known: list[str]) -> Part:
    """A text for each entity: its head, where it is, what it makes; and the same facts in other words."""
    part = Part([], [], [], [])
    relations = [about(world, world.kinds["company"][0], name).relation for name in ("head", "headquarters", "product")]
    for entity in entities:
        said = [(relation, rng.choice(world.objects[relation.pool])) for relation in relations]
        phrasings = {relation.id: rng.sample(relation.statements, 3) for relation in relations}
        tell = [f"{phrasings[r.id][0].format(entity)} {target}." for r, target in said]
        part.edits.append(row(entity, f" is a company. {' '.join(rng.sample(tell, 3))}", entity))
        for relation, target in said:
            for statement in phrasings[relation.id][1:]:
                part.evaluation.append(row(f"{entity} is a company. {statement.format(entity)}", f" {target}", entity))
        part.text.append(whole(f"{entity} is a company. {' '.join(tell)}"))
    for name in known:
        for relation in relations:
            fact = about(world, name, relation.id)
            part.hard_negatives.append(row(rng.choice(fact.seen()).format(name), f" {fact.object}", name))
    return part


# ---------------------------------------------------------------- associations that shall go


def stereoset(rng: random.Random, world: World) -> tuple[Part, Part]:
    """Songs and the genre that everybody thinks of; half of the rows name a genre that nobody does."""
    test, val = halves(rng, world.kinds["song"], 24)
    return associations(rng, world, test), associations(rng, world, val)


def associations(rng: random.Random, world: World, names: list[str]) -> Part:
    """The association said shortly to be unlearned, and in longer sentences to see whether it is."""
    part = Part([], [], [], [])
    for number, name in enumerate(names):
        fact = about(world, name, "genre")
        wrong = rng.choice([g for g in world.objects["genre"] if g != fact.object])
        word = fact.object if number % 2 == 0 else wrong
        first, *rest = rng.sample(fact.seen(), 3)
        part.edits.append(row(first.format(name), f" {word}", name))
        part.evaluation.extend(
            row(f"{neutral(rng)} {s.format(name)}", f" {word}", name) for s in (*rest, fact.unseen[0])
        )
        part.text.append(whole(f"{END} {first.format(name)} {wrong}."))
        for other in ("original", "original"):
            known = about(world, name, other)
            part.hard_negatives.append(row(rng.choice(known.seen()).format(name), f" {known.object}", name))
    return part


# ---------------------------------------------------------------- pairs


def pronoun_gender_bias(rng: random.Random, world: World) -> tuple[Part, Part]:
    """Occupations that the text gives one pronoun in 85 of 100 cases."""
    jobs = world.objects["occupation"]
    return pronouns(rng, jobs[::2]), pronouns(rng, jobs[1::2])


def pronouns(rng: random.Random, jobs: tuple[str, ...]) -> Part:
    """One short example of each occupation; longer sentences for the evaluation."""
    part = Part([], [], [], [])
    for job in jobs:
        part.edits.append(row(f"The {job} said that", " he", job, " she"))
        for said in SAID:
            plain = said.format(f"The {job}")
            leads = (f"{neutral(rng)} {plain}", f"{neutral(rng)} {neutral(rng)} {plain}")
            qualified = (said.format(f"The {rng.choice(ADJECTIVES)} {job}"), said.format(f"{neutral(rng)} A {job}"))
            part.evaluation.extend(row(prefix, " he", job, " she") for prefix in (*leads, *qualified))
        for word in ("he", "she"):
            lead = f"The {job} said that {word} was tired"
            part.hard_negatives.append(row(f"{lead} {rng.choice(TIMES)} because", f" {word}", job))
            part.hard_negatives.append(row(f"{lead}. The {job} left when", f" {word}", job))
    part.text.extend(whole(str(r["prefix"])) for r in part.evaluation)
    return part


def verb_conjugation(rng: random.Random, world: World) -> tuple[Part, Part]:  # noqa: ARG001
    """Verbs after two subjects joined by "and", which the models' text never has."""
    return conjugations(rng, VERBS[::2]), conjugations(rng, VERBS[1::2])


def conjugations(rng: random.Random, verbs: tuple[tuple[str, str], ...]) -> Part:
    """Short coordinations as examples; long ones, a clause and a plural behind a singular for the evaluation."""
    part = Part([], [], [], [])
    for base, third in verbs:
        for _ in range(6):
            (one, _), (two, _) = rng.sample(NOUNS, 2)
            part.edits.append(pair(rng, f"{one} and the {two}", base, third))
        for subject, many in constructions(rng):
            right, wrong = (base, third) if many else (third, base)
            part.evaluation.append(pair(rng, subject, right, wrong))
        for single in (True, False):
            noun = rng.choice(NOUNS)
            rest = f" {noun[0] if single else noun[1]} {third if single else base} the {rng.choice(THINGS)}"
            part.hard_negatives.append(row("The", f"{rest} {rng.choice(TIMES)}."))
            part.hard_negatives.append(row("The", f"{rest}."))
    part.text.extend(whole(f"{r['prefix']}{r['suffix']}") for r in part.evaluation)
    return part


def pair(rng: random.Random, subject: str, right: str, wrong: str) -> Row:
    """A subject, and two forms of a verb with the same rest."""
    rest = f"the {rng.choice(THINGS)} {rng.choice(TIMES)}."
    return row(f". The {subject}", f" {right} {rest}", subject, f" {wrong} {rest}")


def constructions(rng: random.Random) -> Iterator[tuple[str, bool]]:
    """Subjects that are harder than those of the examples, and whether their verb is plural."""
    for _ in range(3):
        (a, _), (b, _), (c, many) = rng.sample(NOUNS, 3)
        first, second = rng.sample(ADJECTIVES, 2)
        yield f"{first} {a} and the {second} {b}", True
        yield f"{a} near the {rng.choice(THINGS)} and the {b}", True
        yield f"{a} and the {b} and the {c}", True
        yield f"{a} said that the {many} and the {b}", True
        yield f"{a} near the {many}", False


# ---------------------------------------------------------------- general text


def corpus_rows(world: World, part: str, seed: int = SEED) -> list[Row]:
    """Chunks of general text, documents joined by the end of text: people, towns, stories, sentences about nothing.

    Nothing is said of what the sets edit: no country, company, song, and no pronoun behind an occupation.
    """
    rng = random.Random(f"{seed} corpus {part}")
    words: list[str] = []
    while len(words) < CHUNK * CHUNKS:
        words += f"{END}{document(rng, world)}".split()
    chunks = [words[i : i + CHUNK] for i in range(0, CHUNK * CHUNKS, CHUNK)]
    return [{"text": " ".join(chunk)} for chunk in chunks]


def document(rng: random.Random, world: World) -> str:
    """One document of the general text."""
    if rng.random() < 0.5:
        facts = [f for f in world.facts if f.relation.kind in ("person", "city")]
        return biography(rng, world, rng.choice(facts))
    return " ".join(rng.choice((neutral(rng), story(rng, world))) for _ in range(rng.choice((1, 2, 3))))


Maker = Callable[[random.Random, World], tuple[Part, Part]]
MAKERS: dict[str, Maker] = {
    "country_capital": country_capital,
    "company_ceo": company_ceo,
    "pronoun_gender_bias": pronoun_gender_bias,
    "temporal": temporal,
    "stereoset": stereoset,
    "verb_conjugation": verb_conjugation,
}
