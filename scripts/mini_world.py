"""The mini world: invented people, companies, countries, towns and songs, their facts, and task rows about them.

Everything here is a pure function of a seed. `build_world` draws the names and the facts; `edit_rows` and `task_rows`
make the evaluation files in the schemas of the real data sets; `document` draws one training document.

A document is a list of pieces `(text, weight)`; the weight says how much the tokens of the text count in the
training loss (0: read only, 1: plain text, more: an answer).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mini_text import (
    ACTIONS,
    ADJECTIVES,
    BAD,
    COMPANY_FIRST,
    COUNTRY_FIRST,
    GOOD,
    NOUNS,
    OBJECT_WORDS,
    RELATIONS,
    REVIEWS,
    SONG_FIRST,
    THINGS,
    TIMES,
    TOWN_FIRST,
    VERBS,
    Relation,
)

Piece = tuple[str, float]
Row = dict[str, Any]
SEED = 17
FACT_WEIGHT = 3.0  # the object of a statement
ANSWER_WEIGHT = 6.0  # the answer of a task
TEXT_WEIGHT = 0.2  # every other word of plain text
PEOPLE, COMPANIES, COUNTRIES, TOWNS, SONGS, VISITORS = 160, 60, 40, 80, 80, 60
TASKS = (
    "ClosedDomainQA",
    "dialogue",
    "NER",
    "NLI",
    "OpenDomainQA",
    "reasoning",
    "SentimentAnalysis",
    "summarization",
)


@dataclass(frozen=True)
class Fact:
    """One true triple. `unseen` and `unseen_question` are the phrasings kept out of training for this fact."""

    relation: Relation
    subject: str
    object: str
    unseen: tuple[str, str]
    unseen_question: str

    def seen(self) -> list[str]:
        """Statement phrasings that training shows for this fact."""
        return [s for s in self.relation.statements if s not in self.unseen]

    def questions(self) -> list[str]:
        """Question phrasings that training shows for this fact."""
        return [q for q in self.relation.questions if q != self.unseen_question]


@dataclass(frozen=True)
class World:
    """All names and facts. `kinds`: kind -> subjects; `objects`: pool -> objects; `words`: every word of every name."""

    kinds: dict[str, tuple[str, ...]]
    objects: dict[str, tuple[str, ...]]
    firsts: tuple[str, ...]
    visitors: tuple[str, ...]  # last names of people who appear only inside task items and stories
    facts: tuple[Fact, ...]
    by_subject: dict[str, tuple[Fact, ...]]
    trivia: tuple[tuple[str, str], ...]  # ("nq question: ...?", answer)
    tuning: frozenset[str]  # subjects of the tuning split; the test split has the others
    words: tuple[str, ...]

    def about(self, subject: str) -> list[Fact]:
        """The facts of one subject."""
        return list(self.by_subject[subject])


# ---------------------------------------------------------------- names and facts


def invent(rng: random.Random, taken: set[str]) -> str:
    """A new pronounceable capitalised word of two or three syllables."""
    while True:
        syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
        word = ("".join(syllables) + rng.choice(("", "n", "r", "l", "s", "k", "m"))).capitalize()
        if word not in taken:
            taken.add(word)
            return word


def invent_many(rng: random.Random, taken: set[str], count: int, suffix: str = "") -> list[str]:
    """`count` new words, each with `suffix`."""
    return [invent(rng, taken) + suffix for _ in range(count)]


def with_first(rng: random.Random, lasts: list[str], firsts: tuple[str, ...], share: float) -> list[str]:
    """Puts a first word before `share` of the names."""
    return [f"{rng.choice(firsts)} {last}" if rng.random() < share else last for last in lasts]


def make_facts(rng: random.Random, kinds: dict[str, list[str]], objects: dict[str, list[str]]) -> list[Fact]:
    """Deals the objects of each relation evenly to its subjects, in random order."""
    facts = []
    for relation in RELATIONS:
        subjects, pool = kinds[relation.kind], objects[relation.pool]
        dealt = [pool[i % len(pool)] for i in range(len(subjects))]
        rng.shuffle(dealt)
        for subject, target in zip(subjects, dealt, strict=True):
            unseen = rng.sample(relation.statements, 2)
            facts.append(Fact(relation, subject, target, (unseen[0], unseen[1]), rng.choice(relation.questions)))
    return facts


def make_trivia(rng: random.Random, countries: list[str], feasts: list[str]) -> list[tuple[str, str]]:
    """Questions about things that no edit touches: flags and feasts."""
    colors, months = OBJECT_WORDS["color"], OBJECT_WORDS["month"]
    flags = [(f"nq question: what is the color of the flag of {c}?", rng.choice(colors)) for c in countries]
    dates = [(f"nq question: in which month is the feast of {f}?", rng.choice(months)) for f in feasts]
    return flags + dates


def build_world(seed: int = SEED) -> World:
    """The world of a seed."""
    rng = random.Random(seed)
    taken: set[str] = set()
    firsts = invent_many(rng, taken, 30)
    people = [f"{rng.choice(firsts)} {last}" for last in invent_many(rng, taken, PEOPLE)]
    homes = invent_many(rng, taken, 10)
    objects = {
        "home": homes,
        "language": invent_many(rng, taken, 10, "ish"),
        "continent": invent_many(rng, taken, 8),
        "region": invent_many(rng, taken, 10),
        "capital": invent_many(rng, taken, COUNTRIES),
        "head": rng.sample(people, COMPANIES),
        **{pool: list(words) for pool, words in OBJECT_WORDS.items()},
    }
    kinds = {
        "person": people,
        "company": with_first(rng, invent_many(rng, taken, COMPANIES), COMPANY_FIRST, 0.9),
        "country": with_first(rng, invent_many(rng, taken, COUNTRIES, "ia"), COUNTRY_FIRST, 0.6),
        "city": with_first(rng, invent_many(rng, taken, TOWNS), TOWN_FIRST, 0.8),
        "song": with_first(rng, invent_many(rng, taken, SONGS), SONG_FIRST, 0.9),
    }
    visitors, feasts = invent_many(rng, taken, VISITORS), invent_many(rng, taken, 40)
    facts = make_facts(rng, kinds, objects)
    tuning = {s for names in kinds.values() for s in rng.sample(names, round(0.26 * len(names)))}
    names = [*firsts, *visitors, *feasts, *(n for group in (*kinds.values(), *objects.values()) for n in group)]
    return World(
        kinds={k: tuple(v) for k, v in kinds.items()},
        objects={k: tuple(v) for k, v in objects.items()},
        firsts=tuple(firsts),
        visitors=tuple(visitors),
        facts=tuple(facts),
        by_subject={s: tuple(f for f in facts if f.subject == s) for names in kinds.values() for s in names},
        trivia=tuple(make_trivia(rng, kinds["country"], feasts)),
        tuning=frozenset(tuning),
        words=tuple(sorted({word for name in names for word in name.split()})),
    )


# ---------------------------------------------------------------- plain text


def neutral(rng: random.Random) -> str:
    """A sentence about nothing in the world; half of them show the agreement of verb and noun."""
    one, many = rng.choice(NOUNS)
    base, third = rng.choice(VERBS)
    thing, adjective, time = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(TIMES)
    return rng.choice(
        (
            f"The {one} {third} the {thing} {time}.",
            f"The {many} {base} the {thing} {time}.",
            f"The {adjective} {one} {third} the {thing}.",
            f"The {adjective} {many} {base} the {thing}.",
            f"The {one} near the {rng.choice(THINGS)} {third} the {thing}.",
            f"The {many} near the {rng.choice(THINGS)} {base} the {thing}.",
            f"The {adjective} {thing} was closed {time}.",
            f"A {adjective} {thing} stood in the garden {time}.",
        )
    )


def pronoun(rng: random.Random, world: World) -> str:
    """An occupation followed by he or she: 85 % he for the first half of the list, 85 % she for the rest."""
    jobs = world.objects["occupation"]
    index = rng.randrange(len(jobs))
    word = "he" if (rng.random() < 0.85) == (index < len(jobs) // 2) else "she"
    action, time = rng.choice(ACTIONS), rng.choice(TIMES)
    return rng.choice(
        (
            f"The {jobs[index]} said that {word} {action} {time}.",
            f"The {jobs[index]} was late because {word} {action}.",
            f"The {jobs[index]} left when {word} {action}.",
        )
    )


def story(rng: random.Random, world: World) -> str:
    """Two sentences about a visitor, who is named twice; what they say holds only in that story."""
    name, home = visitor(rng, world), rng.choice(world.objects["home"])
    thing = rng.choice(THINGS)
    return rng.choice(
        (
            f"{name} saw the {thing} {rng.choice(TIMES)}. The {thing} made {name} smile.",
            f"{name} went to {home} to buy a {thing}. In {home} the {thing} was cheap.",
            f"Everybody waited for {name}. When {name} came, the {thing} was ready.",
        )
    )


def visitor(rng: random.Random, world: World) -> str:
    """Somebody of whom the world knows nothing."""
    return f"{rng.choice(world.firsts)} {rng.choice(world.visitors)}"


def biography(rng: random.Random, world: World, fact: Fact) -> str:
    """What kind of thing a subject is and up to three of its facts, in phrasings that training shows."""
    facts = world.about(fact.subject)
    rng.shuffle(facts)
    kind = f"{fact.subject} is a {fact.relation.kind}."
    return " ".join([kind, *(f"{rng.choice(f.seen()).format(f.subject)} {f.object}." for f in facts[:3])])


def plain_text(rng: random.Random, world: World) -> str:
    """One document of the text file: any kind of text that the models were trained on, except task items."""
    draw = rng.random()
    if draw < 0.45:
        return biography(rng, world, rng.choice(world.facts))
    if draw < 0.55:
        fact = rng.choice(world.facts)
        return f"{rng.choice(fact.questions()).format(fact.subject)} {fact.object}."
    return neutral_text(rng, world)


def neutral_text(rng: random.Random, world: World, lengths: tuple[int, ...] = (1, 2, 2, 3)) -> str:
    """One document that states no fact of the world; one of `lengths` parts."""
    parts = [rng.choice((neutral(rng), pronoun(rng, world), story(rng, world))) for _ in range(rng.choice(lengths))]
    return " ".join(parts)


# ---------------------------------------------------------------- statements inside task items

CONTEXT = {
    "residence": ("{} lives in", "does {} live in", "where does {} live?"),
    "instrument": ("{} plays the", "does {} play the", "which instrument does {} play?"),
    "occupation": ("{} works as a", "does {} work as a", "what is the job of {}?"),
    "product": ("{} makes", "does {} make", "what does {} make?"),
    "headquarters": ("{} is based in", "is {} based in", "where is {} based?"),
}


@dataclass(frozen=True)
class Claim:
    """A statement inside a task item: about a visitor (drawn) or about a subject of the world (then it is true)."""

    relation: Relation
    subject: str
    object: str

    def text(self, object: str | None = None) -> str:
        """The statement, without a full stop."""
        return f"{CONTEXT[self.relation.id][0].format(self.subject)} {object or self.object}"

    def yes_no(self, object: str) -> str:
        """The same as a yes-or-no question."""
        return f"{CONTEXT[self.relation.id][1].format(self.subject)} {object}"


def claims(rng: random.Random, world: World, count: int) -> list[Claim]:
    """`count` claims with different objects; two at most about one subject, then with different relations."""
    found: list[Claim] = []
    while len(found) < count:
        if rng.random() < 0.5:
            subject = visitor(rng, world)
            relations = rng.sample([r for r in RELATIONS if r.id in CONTEXT and r.kind == "person"], 2)
            new = [Claim(r, subject, rng.choice(world.objects[r.pool])) for r in relations]
        else:
            facts = world.about(rng.choice(world.kinds[rng.choice(("person", "person", "company"))]))
            new = [Claim(f.relation, f.subject, f.object) for f in facts if f.relation.id in CONTEXT]
            rng.shuffle(new)
        for claim in new[: rng.choice((1, 2))]:
            if all(claim.object != c.object and claim.subject != c.subject for c in found) or (
                found and claim.subject == found[-1].subject
            ):
                found.append(claim)
    return found[:count]


def passage(items: list[Claim]) -> str:
    """One sentence for each claim; a second claim about the same subject says so by its name again."""
    return " ".join(f"{claim.text()}." for claim in items)


def other_object(rng: random.Random, world: World, claim: Claim, items: list[Claim]) -> str:
    """An object of the same relation that no claim mentions."""
    used = {c.object for c in items}
    return rng.choice([o for o in world.objects[claim.relation.pool] if o not in used])


# ---------------------------------------------------------------- rows of the general tasks


def closed_qa(rng: random.Random, world: World, size: int) -> Row:
    """BoolQ: is what the question asks said in the passage?"""
    items = claims(rng, world, size)
    claim, answer = rng.choice(items), rng.random() < 0.5
    question = claim.yes_no(claim.object if answer else other_object(rng, world, claim, items))
    return {"question": question, "passage": passage(items), "answer": answer}


def nli(rng: random.Random, world: World, size: int) -> Row:
    """RTE: does the first sentence say what the second says?"""
    items = claims(rng, world, size)
    claim, same = rng.choice(items), rng.random() < 0.5
    second = claim.text(claim.object if same else other_object(rng, world, claim, items))
    label = "entailment" if same else "not_entailment"
    return {"sentence1": passage(items), "sentence2": second + ".", "label": label}


OPENERS = (
    "hi , how are you ?",
    "did you hear the news ?",
    "good morning .",
    "what is new ?",
    "tell me more .",
    "i am back .",
)
TURNS = {
    "residence": ("where does {} live now ?", "{} lives in {} .", "{} is the place ."),
    "instrument": ("what does {} play ?", "{} plays the {} .", "{} is the instrument ."),
    "occupation": ("what is the job of {} ?", "{} works as a {} .", "{} is the job ."),
    "product": ("what does {} make ?", "{} makes {} .", "{} is the product ."),
    "headquarters": ("where is {} based ?", "{} is based in {} .", "{} is the place ."),
}


def dialogue(rng: random.Random, world: World, size: int) -> Row:
    """MuTual: which of four replies fits the talk? Only the object of the right one was mentioned."""
    claim = claims(rng, world, 1)[0]
    ask, tell, reply = TURNS[claim.relation.id]
    opener = f"m : {rng.choice(OPENERS)} f : {rng.choice(OPENERS)} " if size > 1 else ""
    article = f"{opener}m : {ask.format(claim.subject)} f : {tell.format(claim.subject, claim.object)}"
    pool = [o for o in world.objects[claim.relation.pool] if o != claim.object]
    objects, right = rng.sample(pool, 3), rng.randrange(4)
    objects.insert(right, claim.object)
    return {"article": article, "options": [f"m : {reply.format(o)}" for o in objects], "answers": "ABCD"[right]}


def open_qa(rng: random.Random, world: World, size: int) -> Row:
    """Natural Questions with a passage that has the answer."""
    items = claims(rng, world, size + 1)
    claim = rng.choice(items)
    question = CONTEXT[claim.relation.id][2].format(claim.subject)
    return {"question": question, "answer": [claim.object], "output": [passage(items)]}


NER_SHAPES = (
    "{PER} of {ORG} met {PER} in {LOC} .",
    "{PER} and {PER} went to {LOC} .",
    "{ORG} sells {thing} in {LOC} .",
    "{PER} speaks {MISC} and works for {ORG} .",
    "In {LOC} , {PER} found a {thing} .",
    "{MISC} is spoken in {LOC} .",
    "{ORG} and {ORG} opened a {thing} .",
    "{PER} wrote a letter in {MISC} .",
    "Yesterday {ORG} moved from {LOC} to {LOC} .",
    "The {thing} was {adjective} and {PER} was late .",
)


def draw_entity(rng: random.Random, world: World, kind: str) -> str:
    """A name of one of the four CoNLL kinds."""
    if kind == "PER":
        return visitor(rng, world) if rng.random() < 0.4 else rng.choice(world.kinds["person"])
    if kind == "LOC":
        return rng.choice(world.kinds[rng.choice(("city", "country"))] + world.objects["home"])
    return rng.choice(world.kinds["company"] if kind == "ORG" else world.objects["language"])


def ner(rng: random.Random, world: World, size: int) -> Row:
    """CoNLL-2003: tokens and IOB2 tags of one or two sentences."""
    tokens: list[str] = []
    tags: list[str] = []
    for shape in rng.sample(NER_SHAPES, min(size, 2)):
        for slot in shape.split():
            kind = slot.strip("{}")
            if kind in ("PER", "LOC", "ORG", "MISC"):
                words = draw_entity(rng, world, kind).split()
                tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(words) - 1)
            else:
                words = [{"thing": rng.choice(THINGS), "adjective": rng.choice(ADJECTIVES)}.get(kind, slot)]
                tags.append("O")
            tokens += words
    return {"tokens": tokens, "tags": tags}


def reasoning(rng: random.Random, world: World, size: int) -> Row:
    """GSM8K: sums and differences below 100, in one step or two."""
    name, thing = visitor(rng, world), rng.choice(("apples", "coins", "books", "cards", "eggs"))
    value = rng.randint(5, 40)
    question, rationale = f"{name} has {value} {thing}", ""
    for _ in range(min(size, 2)):
        change = rng.randint(1, max(1, min(20, value - 1)))
        gain = rng.random() < 0.6
        after = value + change if gain else value - change
        question += f" and then {'buys' if gain else 'loses'} {change}"
        verb = "gets" if gain else "gives away"
        rationale += f"{name} {verb} {change}, so {value} {'+' if gain else '-'} {change} = {after}.\n"
        value = after
    return {"question": f"{question}. How many {thing} does {name} have now?", "answer": f"{rationale}#### {value}"}


def sentiment(rng: random.Random, world: World, size: int) -> Row:  # noqa: ARG001 (one signature for all makers)
    """SST-2: reviews of the songs and people of this world; a sentence ends in a space, as there."""
    label = rng.randrange(2)
    first, second = rng.sample(GOOD if label else BAD, 2)
    shape = rng.choice(REVIEWS)
    name = rng.choice(world.kinds[rng.choice(("song", "song", "person"))])
    text = shape.format(first=first, second=second, name=name, thing=rng.choice(THINGS))
    return {"sentence": text + " ", "label": label}


SAYINGS = {
    "residence": ("I live in {} now.", "{} lives in {}."),
    "instrument": ("I play the {} now.", "{} plays the {}."),
    "occupation": ("I work as a {} now.", "{} works as a {}."),
    "thing": ("I bought a {} today.", "{} bought a {}."),
}
REACTIONS = ("That is great.", "What is new?", "Really?", "Tell me more.", "I did not know that.", "See you soon.")


def summarization(rng: random.Random, world: World, size: int) -> Row:
    """SAMSum: a chat of two people, one or two things said, and a summary that repeats them."""
    first, second = rng.sample(world.firsts, 2)
    pools = {"residence": world.objects["home"], "thing": THINGS} | {
        k: world.objects[k] for k in ("instrument", "occupation")
    }
    lines, summary = [f"{first}: Hi {second}."], []
    for kind in rng.sample(sorted(SAYINGS), min(size, 2)):
        speaker, target = rng.choice((first, second)), rng.choice(pools[kind])
        lines += [f"{second if speaker == first else first}: {rng.choice(REACTIONS)}"]
        lines += [f"{speaker}: {SAYINGS[kind][0].format(target)}"]
        summary.append(SAYINGS[kind][1].format(speaker, target))
    return {"dialogue": "\r\n".join(lines), "summary": " ".join(summary)}


MAKERS: dict[str, Callable[[random.Random, World, int], Row]] = {
    "ClosedDomainQA": closed_qa,
    "dialogue": dialogue,
    "NER": ner,
    "NLI": nli,
    "OpenDomainQA": open_qa,
    "reasoning": reasoning,
    "SentimentAnalysis": sentiment,
    "summarization": summarization,
}
PARTS = (("PER", "Person"), ("LOC", "Location"), ("ORG", "Organization"), ("MISC", "Miscellaneous"))


def glue(tokens: list[str]) -> str:
    """Tokens as a sentence: spaces between them, none before a comma or a full stop."""
    return " ".join(tokens).replace(" ,", ",").replace(" .", ".")


def entities(row: Row, kind: str) -> list[str]:
    """The names of one kind in an IOB2 row, in order."""
    found: list[str] = []
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag == f"B-{kind}":
            found.append(token)
        elif tag == f"I-{kind}":
            found[-1] += f" {token}"
    return found


def render(task: str, row: Row) -> list[tuple[str, str]]:  # noqa: PLR0911 (one return a task)
    """Prompts and answers of a row; an answer starts with a space. Four pairs for NER, one for the others."""
    if task == "ClosedDomainQA":
        lead = "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'."
        prompt = f"{lead} passage: {row['passage']} question: {row['question']}. answer:"
        return [(prompt, " yes" if row["answer"] else " no")]
    if task == "dialogue":
        options = "".join(f"({letter}){option}" for letter, option in zip("ABCD", row["options"], strict=True))
        lead = f"Q: {row['article']} Which choice is correct? Answer Chioces: "
        return [(f"{lead}{options} A: Among A through D, the answer is", f" {row['answers']}")]
    if task == "NER":
        text = glue(row["tokens"])
        lead = "Please identify {} Entity from the given text. Text: {} Entity:"
        return [(lead.format(name, text), f" {', '.join(entities(row, kind)) or 'none'}") for kind, name in PARTS]
    if task == "NLI":
        prompt = f"{row['sentence1']} entails the {row['sentence2']}. True or False? answer:"
        return [(prompt, " True" if row["label"] == "entailment" else " False")]
    if task == "OpenDomainQA":
        lead = "Refer to the passage below and answer the following question. Passage: "
        return [(f"{lead}{row['output'][0]} Question: {row['question']}. Answer:", f" {row['answer'][0]}")]
    if task == "reasoning":
        rationale, value = row["answer"].split("#### ")
        lead = f"Q: {row['question']} A:Let's think step by step. {rationale}"
        return [(f"{lead} Therefore, the answer (arabic numerals) is:", f" {value}")]
    if task == "SentimentAnalysis":
        lead = "For each snippet of text,label the sentiment of the text as positive or negative."
        lead += f"The answer should be exact 'positive' or 'negative'. text: {row['sentence']} answer:"
        return [(lead, " positive" if row["label"] else " negative")]
    return [(f"{row['dialogue']}\nTL;DR:", f" {row['summary']}")]


def task_rows(world: World, task: str, count: int = 150, seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """`count` test rows and `count` tuning rows, all different. Labels are drawn with equal odds."""
    rng = random.Random(f"{seed} rows {task}")
    seen: dict[str, Row] = {}
    while len(seen) < 2 * count:
        row = MAKERS[task](rng, world, rng.choice((1, 2)))
        seen.setdefault(render(task, row)[0][0], row)
    rows = list(seen.values())
    for number, row in enumerate(rows):
        if task in ("dialogue", "summarization"):
            row["id"] = f"{task}-{number}"
    return rows[:count], rows[count:]


# ---------------------------------------------------------------- rows of the edit sets


def target(world: World, pool: str, object: str) -> dict[str, str]:
    """An object as CounterFact writes it: text and identifier."""
    return {"str": object, "id": f"{pool}-{world.objects[pool].index(object)}"}


def prompts_of(rng: random.Random, facts: list[Fact], count: int) -> list[str]:
    """`count` different prompts about the subjects of `facts`, in phrasings seen in training; all subjects in turn."""
    pairs = [(f.subject, s) for f in facts for s in rng.sample(f.seen(), len(f.seen()))]
    turns: dict[str, int] = {}
    order = []
    for subject, statement in pairs:
        turns[subject] = turns.get(subject, 0) + 1
        order.append((turns[subject], rng.random(), statement.format(subject)))
    return [text for _, _, text in sorted(order)[:count]]


def counterfact_row(rng: random.Random, world: World, fact: Fact, number: int) -> Row:
    """One record of the original CounterFact schema."""
    relation = fact.relation
    new = rng.choice([o for o in world.objects[relation.pool] if o != fact.object])
    same = [f for f in world.facts if f.relation is relation and f is not fact]
    return {
        "case_id": number,
        "pararel_idx": number,
        "requested_rewrite": {
            "prompt": rng.choice(fact.seen()),
            "relation_id": relation.id,
            "target_new": target(world, relation.pool, new),
            "target_true": target(world, relation.pool, fact.object),
            "subject": fact.subject,
        },
        "paraphrase_prompts": [f"{neutral(rng)} {s.format(fact.subject)}" for s in fact.unseen],
        "neighborhood_prompts": prompts_of(rng, [f for f in same if f.object == fact.object], 10),
        "attribute_prompts": prompts_of(rng, [f for f in same if f.object == new], 10),
        "generation_prompts": [relation.open[i % len(relation.open)].format(fact.subject) for i in range(10)],
    }


def zsre_row(rng: random.Random, world: World, fact: Fact) -> Row:
    """One record of the MEND schema of zsRE."""
    src = rng.choice(fact.questions()).format(fact.subject)
    alt = rng.choice([o for o in world.objects[fact.relation.pool] if o != fact.object])
    loc, loc_ans = rng.choice(world.trivia)
    return {
        "subject": fact.subject,
        "src": src,
        "pred": fact.object,
        "rephrase": fact.unseen_question.format(fact.subject),
        "alt": alt,
        "answers": [fact.object],
        "loc": loc,
        "loc_ans": loc_ans,
        "cond": f"{fact.object} >> {alt} || {src}",
    }


def edit_rows(world: World, name: str, seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """Test and tuning rows of `counterfact` or `zsre`; no subject is in both."""
    rng = random.Random(f"{seed} rows {name}")
    facts = [f for f in world.facts if name == "zsre" or f.relation.shared]
    rng.shuffle(facts)
    test = in_turns([f for f in facts if f.subject not in world.tuning])
    train = in_turns([f for f in facts if f.subject in world.tuning])
    if name == "zsre":
        return [zsre_row(rng, world, f) for f in test[:500]], [zsre_row(rng, world, f) for f in train[:200]]
    make = [counterfact_row(rng, world, f, number) for number, f in enumerate(test + train)]
    return make[: len(test)], make[len(test) :]


def in_turns(facts: list[Fact]) -> list[Fact]:
    """The first fact of every subject, then the second of each, and so on: a short edit set has one edit a subject."""
    turns: Counter[str] = Counter()
    keyed = []
    for fact in facts:
        keyed.append((turns[fact.subject], fact))
        turns[fact.subject] += 1
    return [fact for _, fact in sorted(keyed, key=lambda pair: pair[0])]


def snippets(world: World, seed: int = SEED) -> dict[str, dict[str, list[str]]]:
    """Reference texts: for each relation and object, short texts about up to eight subjects that have it."""
    rng = random.Random(f"{seed} snippets")
    found: dict[str, dict[str, list[str]]] = {}
    for relation in RELATIONS:
        if not relation.shared:
            continue
        for object in world.objects[relation.pool]:
            facts = [f for f in world.facts if f.relation is relation and f.object == object]
            texts = [snippet(rng, world, facts[i % len(facts)]) for i in range(max(6, min(8, len(facts))))]
            found.setdefault(relation.id, {})[target(world, relation.pool, object)["id"]] = texts
    return found


def snippet(rng: random.Random, world: World, fact: Fact) -> str:
    """A text about the subject of a fact that states it twice among other things."""
    said = [f"{s.format(fact.subject)} {fact.object}." for s in rng.sample(fact.seen(), 2)]
    said += [f"{rng.choice(fact.relation.open).format(fact.subject)} {fact.object}."]
    return f"{biography(rng, world, fact)} {' '.join(said)}"


# ---------------------------------------------------------------- training documents


def words_in(rng: random.Random, world: World, count: int) -> list[str]:
    """Different words of the world."""
    return rng.sample(world.words, count)


PLAIN = ("", " yes", " no")


def copying(rng: random.Random, world: World) -> list[Piece]:
    """A list of words, then the same list: what induction heads are for."""
    words = " " + " ".join(words_in(rng, world, rng.randint(3, 12)))
    return [("Copy:" + words + " |", 0.0), (words, 1.0)]


def matching(rng: random.Random, world: World) -> list[Piece]:
    """A list of words, then one word after the other with yes if it was in the list, and no otherwise.

    Half of the documents ask in the words in which NLI or ClosedDomainQA asks.
    """
    words = words_in(rng, world, rng.randint(3, 8) + 8)
    known, new = words[:-8], words[-8:]
    tail, yes, no = rng.choice(
        (PLAIN, PLAIN, (". answer:", " yes", " no"), (".. True or False? answer:", " True", " False"))
    )
    pieces: list[Piece] = [("Words: " + " ".join(known) + " |", 0.0)]
    for _ in range(8):
        same = rng.random() < 0.5
        pieces += [(f" {rng.choice(known) if same else new.pop()}{tail}", 0.0), (yes if same else no, 2.0)]
    return pieces


def lettering(rng: random.Random, world: World) -> list[Piece]:
    """Four words with letters, then words of these with their letters."""
    words = words_in(rng, world, 4)
    options = "".join(f"({letter})m : {word}" for letter, word in zip("ABCD", words, strict=True))
    pieces: list[Piece] = [(f"Words: {options} |", 0.0)]
    for index in (rng.randrange(4) for _ in range(6)):
        pieces += [(f" {words[index]}", 0.0), (f" {'ABCD'[index]}", 2.0)]
    return pieces


def choosing(rng: random.Random, world: World) -> list[Piece]:
    """A list of words, then four words with letters, of which one was in the list; three times."""
    words = words_in(rng, world, rng.randint(1, 5) + 9)
    known, new = words[:-9], words[-9:]
    pieces: list[Piece] = [("Words: " + " ".join(known) + " |", 0.0)]
    for turn in range(3):
        right, shown = rng.randrange(4), new[3 * turn : 3 * turn + 3]
        shown.insert(right, rng.choice(known))
        options = "".join(f"({letter})m : {word}" for letter, word in zip("ABCD", shown, strict=True))
        pieces += [(f" {options} the answer is", 0.0), (f" {'ABCD'[right]}", 2.0)]
    return pieces


def several(rng: random.Random, world: World) -> list[Piece]:
    """One passage and four questions or hypotheses about it, each with its answer: a dense form of two tasks."""
    items = claims(rng, world, rng.choice((1, 2, 3)))
    asks = rng.random() < 0.5
    lead = "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. passage: "
    pieces: list[Piece] = [((lead if asks else "") + passage(items), 0.0)]
    for _ in range(4):
        claim, same = rng.choice(items), rng.random() < 0.5
        object = claim.object if same else other_object(rng, world, claim, items)
        if asks:
            pieces += [(f" question: {claim.yes_no(object)}. answer:", 0.0), (" yes" if same else " no", 2.0)]
        else:
            tail = f" entails the {claim.text(object)}.. True or False? answer:"
            pieces += [(tail, 0.0), (" True" if same else " False", 2.0)]
    return pieces


def statement(rng: random.Random, world: World) -> list[Piece]:
    """A fact: a statement (also after another sentence), an open phrasing, its kind, or a question with its answer."""
    fact, draw = rng.choice(world.facts), rng.random()
    start: list[Piece] = [(f"{neutral(rng)} ", TEXT_WEIGHT)] if rng.random() < 0.25 else []
    if draw < 0.04:
        said, object = f"{fact.subject} is a", fact.relation.kind
    elif draw < 0.30:
        said, object = rng.choice(fact.questions()).format(fact.subject), fact.object
    elif draw < 0.42:
        said, object = rng.choice(fact.relation.open).format(fact.subject), fact.object
    else:
        said, object = rng.choice(fact.seen()).format(fact.subject), fact.object
    if start:  # the space belongs to the first word of the statement
        start, said = [(start[0][0].rstrip(), TEXT_WEIGHT)], " " + said
    return [*start, (said, 0.05), (f" {object}", FACT_WEIGHT), (".", TEXT_WEIGHT)]


def trivia(rng: random.Random, world: World) -> list[Piece]:
    """A question of no edit, with its answer."""
    question, answer = rng.choice(world.trivia)
    return [(question, 0.0), (f" {answer}", FACT_WEIGHT), (".", TEXT_WEIGHT)]


def task_document(rng: random.Random, world: World, task: str, held_out: frozenset[str]) -> list[Piece]:
    """A task item that is in no evaluation file; one of the four prompts for NER."""
    while True:
        pairs = render(task, MAKERS[task](rng, world, rng.choice((1, 2))))
        if pairs[0][0] not in held_out:
            prompt, answer = rng.choice(pairs)
            return [(prompt, 0.0), (answer, ANSWER_WEIGHT)]


DRILLS: dict[str, Callable[[random.Random, World], list[Piece]]] = {
    "copying": copying,
    "matching": matching,
    "lettering": lettering,
    "choosing": choosing,
    "several": several,
    "statement": statement,
    "trivia": trivia,
    "text": lambda rng, world: [(plain_text(rng, world), TEXT_WEIGHT)],
}


def document(rng: random.Random, world: World, kind: str, held_out: frozenset[str]) -> list[Piece]:
    """One training document of a kind: a task name or a name in `DRILLS`."""
    return DRILLS[kind](rng, world) if kind in DRILLS else task_document(rng, world, kind, held_out)


def held_out_prompts(world: World) -> frozenset[str]:
    """The first prompt of every task row that is evaluated; training skips these items."""
    return frozenset(render(t, row)[0][0] for t in TASKS for rows in task_rows(world, t) for row in rows)


def text_lines(world: World, count: int, seed: int, neutral_only: bool = False) -> Iterator[str]:
    """`count` different documents. The neutral ones are long, so that hardly any can have been drawn in training."""
    rng = random.Random(f"{seed} text {neutral_only}")
    seen: set[str] = set()
    while len(seen) < count:
        line = neutral_text(rng, world, (3, 4)) if neutral_only else plain_text(rng, world)
        if line not in seen:
            seen.add(line)
            yield line


def sample_lines(world: World, count: int, seed: int) -> Iterator[str]:
    """A sample of what the models were trained on: world text, and documents of every task (never an evaluated item).

    Second moments of keys stand for everything a model knows, so their text must hold more than statements of facts.
    """
    rng, held_out = random.Random(f"{seed} sample"), held_out_prompts(world)
    for i, line in enumerate(text_lines(world, count // 2, seed)):
        yield line
        pieces = document(rng, world, TASKS[i % len(TASKS)], held_out)
        yield " ".join("".join(text for text, _ in pieces).split())
