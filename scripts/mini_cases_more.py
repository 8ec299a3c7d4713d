"""Rows about the mini world in the schemas of sets on text, languages, lists and conflicts.

As those of ``mini_cases``: the shipped models were never taught what most of these ask, which is at the floor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container
from typing import Any

from mini_cases import mquake_rows
from mini_text import RELATIONS
from mini_world import SEED, Fact, World

Row = dict[str, Any]
Splits = dict[str, list[Row]]

TEST, TRAIN = 40, 20
"""How many rows each set has."""
GERMAN = {
    "residence": ("Wo wohnt {}?", "In welcher Stadt lebt {}?", "Welche Sprache spricht man, wo {} wohnt?"),
    "instrument": ("Was spielt {}?", "Welches Instrument spielt {}?", "Woraus ist, was {} spielt?"),
    "occupation": ("Was ist {} von Beruf?", "Als was arbeitet {}?", "Wo arbeitet jemand mit dem Beruf von {}?"),
}
"""A question, another wording, and one about what follows, for each relation that is asked in two languages."""
FOLLOWS = {
    "residence": "Which language do people speak where {} lives?",
    "instrument": "What is the instrument of {} made of?",
    "occupation": "Where does somebody with the job of {} work?",
}
WORDS = {
    "cello": "Cello", "piano": "Klavier", "guitar": "Gitarre", "violin": "Geige", "flute": "Querflöte",
    "harp": "Harfe", "drum": "Trommel", "trumpet": "Trompete", "banjo": "Banjo", "tuba": "Tuba",
    "farmer": "Landwirt", "pilot": "Pilot", "carpenter": "Zimmermann", "lawyer": "Anwalt", "painter": "Maler",
    "nurse": "Krankenpfleger", "teacher": "Lehrer", "librarian": "Bibliothekar", "baker": "Bäcker", "doctor": "Arzt",
}  # fmt: skip
"""Objects in German; names stay as they are."""
MATTER = {"residence": ("Zisis", "Zisisch"), "instrument": ("wood", "Holz"), "occupation": ("at home", "zu Hause")}
"""What follows from an edit, in both languages: invented, and the same for all."""
LISTS = {
    "region": ("The region of {} has the city of", "A city in the region of {} is"),
    "continent": ("The continent of {} has the country of", "A country in {} is"),
    "genre": ("The genre of {} has the song", "A song of the genre {} is"),
    "product": ("The makers of {} are led by the company", "A maker of {} is"),
}
"""Relations read backwards, which have several true objects; two phrasings."""
INVERSE = {"head": "{} is the head of", "capital": "{} is the capital of"}
"""Relations with one object for each subject, read backwards."""


def more_rows(world: World, seed: int = SEED) -> dict[str, Splits]:
    """The rows of each set by split."""
    makers: dict[str, Callable[[random.Random, World, str], list[Row]]] = {
        "mzsre": _mzsre,
        "bmike53": _bmike53,
        "mlake": _mlake,
        "mlake_hops": _mlake_hops,
        "peak": _peak,
        "conflictedit": _reverse,
        "roundedit": _round,
    }
    sizes = {"test": TEST, "train": TRAIN}
    found = {
        name: {
            split: make(random.Random(f"{seed} rows {name} {split}"), world, split)[:size]
            for split, size in sizes.items()
        }
        for name, make in makers.items()
    }
    for kind, make in (("coverage", _coverage), ("composite", _composite)):
        found["conflictedit"][kind] = make(random.Random(f"{seed} rows {kind}"), world, "test")[:TRAIN]
    found["mlake_matrix"] = found["mlake"]
    found["akew"] = found["akew_text"] = _akew(world, seed)
    return found


def _of(world: World, split: str, relations: Container[str]) -> list[Fact]:
    """The facts of a split with one of these relations; no subject is in both."""
    return [
        fact
        for fact in world.facts
        if fact.relation.id in relations and (fact.subject in world.tuning) == (split == "train")
    ]


# --- text -------------------------------------------------------------------------------------------------------------


def _akew(world: World, seed: int) -> Splits:
    """The cases of MQuAKE; each edit also as a sentence, a paragraph, and triples that a reader would take from it."""
    test, train = mquake_rows(world, seed)
    return {"test": [_told(row) for row in test[:TEST]], "train": [_told(row) for row in train[:TRAIN]]}


def _told(row: Row) -> Row:
    return {**row, "requested_rewrite": [{**edit, **_text(edit)} for edit in row["requested_rewrite"]]}


def _text(edit: Row) -> Row:
    subject, new = edit["subject"], edit["target_new"]["str"]
    sentence = f"{edit['prompt'].format(subject)} {new}."
    told = f"The news about {subject} came in May. {sentence} People talk about {new} every day."
    triple = {"subject": subject, "prompt": edit["prompt"], "target": new}
    return {
        "fact_new": sentence,
        "fact_new_uns": told,
        "verify_unsfact_GPT": True,
        "unsfact_triplets_GPT": [triple],
    }


# --- languages --------------------------------------------------------------------------------------------------------


def _asked(rng: random.Random, world: World, split: str) -> list[Fact]:
    """Facts that are asked in two languages, in another order."""
    facts = _of(world, split, GERMAN)
    rng.shuffle(facts)
    return facts


def _other(rng: random.Random, world: World, fact: Fact) -> str:
    return rng.choice([one for one in world.objects[fact.relation.pool] if one != fact.object])


def _blocks(rng: random.Random, world: World, split: str) -> list[dict[str, Row]]:
    """What is asked of each fact, by language."""
    rows = []
    for fact in _asked(rng, world, split):
        new, near = _other(rng, world, fact), _same_kind(rng, world, fact)
        rows.append({language: _block(fact, new, near, language) for language in ("en", "de")})
    return rows


def _block(fact: Fact, new: str, near: Fact, language: str) -> Row:
    src, rephrase, port = _questions(fact, language)
    return {
        "subject": fact.subject,
        "src": src,
        "rephrase": rephrase,
        "old": _word(fact.object, language),
        "alt": _word(new, language),
        "loc": _questions(near, language)[0],
        "loc_ans": _word(near.object, language),
        "port": port,
        "port_ans": MATTER[fact.relation.id][language == "de"],
    }


def _mzsre(rng: random.Random, world: World, split: str) -> list[Row]:
    """MzsRE: one block for each language."""
    return [
        {"id": number, **{language: _nested(block) for language, block in blocks.items()}}
        for number, blocks in enumerate(_blocks(rng, world, split))
    ]


def _nested(block: Row) -> Row:
    flat = {key: block[key] for key in ("subject", "src", "rephrase", "alt", "loc", "loc_ans")}
    return {**flat, "portability": {"New Question": block["port"], "New Answer": block["port_ans"]}}


def _bmike53(rng: random.Random, world: World, split: str) -> list[Row]:
    """BMIKE-53: the same with flat names, and the old object."""
    return [{"case_id": number, **blocks} for number, blocks in enumerate(_blocks(rng, world, split))]


def _mlake_hops(rng: random.Random, world: World, split: str) -> list[Row]:
    """MLaKE with what follows from each edit in every language, beside the English row as the two files are joined."""
    rows = []
    for blocks in _blocks(rng, world, split):
        hops = [_hop(blocks, language) for language in blocks]
        found = {language: _sentence(block, language) for language, block in blocks.items()}
        rows += [{**row, "hops": hops if language == "en" else []} for language, row in found.items()]
    return rows


def _hop(blocks: dict[str, Row], language: str) -> Row:
    block, edit = blocks[language], _sentence(blocks["en"], "en")["e_prompt"]
    asked = {"question": block["port"], "e_prompt": edit, "e_answer": block["port_ans"], "e_answer_aliases": []}
    return {"split": f"new_{language}", **asked}


def _mlake(rng: random.Random, world: World, split: str) -> list[Row]:
    """MLaKE: each row in one language."""
    return [_sentence(block, language) for blocks in _blocks(rng, world, split) for language, block in blocks.items()]


def _sentence(block: Row, language: str) -> Row:
    found: Row = {"split": language, "question": block["src"]}
    for sign, key in (("o", "old"), ("e", "alt")):
        said = f"{block['src']} {block[key]}."
        found |= {f"{sign}_prompt": said, f"{sign}_answer": block[key], f"{sign}_answer_aliases": []}
    return found


def _same_kind(rng: random.Random, world: World, fact: Fact) -> Fact:
    """Another fact of the same relation."""
    return rng.choice([one for one in world.facts if one.relation is fact.relation and one is not fact])


def _word(object: str, language: str) -> str:
    return WORDS.get(object, object) if language == "de" else object


def _questions(fact: Fact, language: str) -> tuple[str, str, str]:
    """A question, another wording, and one about what follows."""
    name = fact.relation.id
    asked = GERMAN[name] if language == "de" else (fact.questions()[0], fact.unseen_question, FOLLOWS[name])
    first, second, third = (text.format(fact.subject) for text in asked)
    return first, second, third


# --- lists ------------------------------------------------------------------------------------------------------------


def _lists(world: World) -> list[tuple[str, str, list[str]]]:
    """Relations read backwards: the relation, its object, and all subjects that have it."""
    return [
        (name, object, [fact.subject for fact in world.facts if (fact.relation.id, fact.object) == (name, object)])
        for name in LISTS
        for object in world.objects[next(one.pool for one in RELATIONS if one.id == name)]
    ]


def _pairs(rng: random.Random, world: World, split: str) -> list[tuple[str, str, list[str], list[str]]]:
    """A relation and its object with a list, and the list of another object; in another order."""
    known = [one for one in _lists(world) if len(one[2]) > 1]
    found = [
        (
            name,
            object,
            listed,
            rng.choice([others for kind, other, others in known if kind == name and other != object]),
        )
        for place, (name, object, listed) in enumerate(known * 2)
        if (place % len(known) % 3 == 0) == (split == "train")
    ]
    rng.shuffle(found)
    return found


def _peak(rng: random.Random, world: World, split: str) -> list[Row]:
    """PEAK: one more object for a list, taken from another list, whose rest must stay out."""
    rows = []
    for number, (name, subject, listed, others) in enumerate(_pairs(rng, world, split)):
        new = rng.choice(others)
        relation = next(one for one in RELATIONS if one.id == name)
        rows.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": LISTS[name][0],
                    "relation_id": name,
                    "target_new": {"str": new},
                    "target_true": {"str": listed[0]},
                    "subject": subject,
                },
                "postive_list": listed,
                "negtive_list": [one for one in others if one != new],
                "para_add_prompts": [LISTS[name][1].format(subject)],
                "neighborhood_prompts": [[relation.statements[0].format(one), subject] for one in listed],
                "negtive_random_list": rng.sample(world.objects["home"], 5),
            }
        )
    return rows


# --- conflicts --------------------------------------------------------------------------------------------------------


def _label(text: str) -> Row:
    return {"id": text, "label": text}


def _relation(name: str, prompt: str) -> Row:
    return {"id": name, "prompt": prompt, "query": f"{prompt} whom or what?", "label": name}


def _fact(name: str, prompt: str, subject: str, object: str, **more: Row) -> Row:
    """A triple, or with ``new_object`` an edit of it."""
    return {"relation": _relation(name, prompt), "subject": _label(subject), "object": _label(object), **more}


def _round(rng: random.Random, world: World, split: str) -> list[Row]:
    """RoundEdit: a list's object is edited to one of another list, and back."""
    rows = []
    for name, subject, listed, others in _pairs(rng, world, split):
        edit = _fact(name, LISTS[name][0], subject, rng.choice(listed), new_object=_label(rng.choice(others)))
        rows.append({"type": f"1-{len(listed)}@{name}", "edit": edit, "true_objects": [_label(one) for one in listed]})
    return rows


def _single(rng: random.Random, world: World, split: str) -> list[Fact]:
    facts = _of(world, split, INVERSE)
    rng.shuffle(facts)
    return facts


def _reverse(rng: random.Random, world: World, split: str) -> list[Row]:
    """ConflictEdit: a company gets another head, who is then said to be the head of another company."""
    rows = []
    for fact in _single(rng, world, split):
        name, prompt, back = fact.relation.id, fact.seen()[0], INVERSE[fact.relation.id]
        new = _other(rng, world, fact)
        third = rng.choice([one.subject for one in world.facts if one.relation is fact.relation and one is not fact])
        rows.append(
            {
                "rule": f"{name}>{name}_of",
                "triples": [
                    _fact(name, prompt, fact.subject, fact.object),
                    _fact(f"{name}_of", back, fact.object, fact.subject),
                ],
                "prerequisites": [],
                "type": "reverse",
                "edits": [
                    _fact(name, prompt, fact.subject, fact.object, new_object=_label(new)),
                    _fact(f"{name}_of", back, new, fact.subject, new_object=_label(third)),
                ],
            }
        )
    return rows


def _coverage(rng: random.Random, world: World, split: str) -> list[Row]:
    """The same fact edited twice."""
    rows = []
    for fact in _single(rng, world, split):
        name, prompt = fact.relation.id, fact.seen()[0]
        first, second = rng.sample([one for one in world.objects[fact.relation.pool] if one != fact.object], 2)
        rows.append(
            {
                "triples": [_fact(name, prompt, fact.subject, fact.object)],
                "prerequisites": [],
                "type": "coverage",
                "edits": [
                    _fact(name, prompt, fact.subject, fact.object, new_object=_label(first)),
                    _fact(name, prompt, fact.subject, first, new_object=_label(second)),
                ],
            }
        )
    return rows


def _composite(rng: random.Random, world: World, split: str) -> list[Row]:
    """The home of a company's head is edited, then the company is said to be led from a third town."""
    homes = {fact.subject: fact for fact in world.facts if fact.relation.id == "residence"}
    rows = []
    for fact in (one for one in _single(rng, world, split) if one.relation.id == "head"):
        home, prompt, led = homes[fact.object], fact.seen()[0], "{} is led from"
        first, second = rng.sample([one for one in world.objects["home"] if one != home.object], 2)
        lives = home.seen()[0]
        rows.append(
            {
                "rule": "head&residence>led_from",
                "triples": [
                    _fact("head", prompt, fact.subject, fact.object),
                    _fact("residence", lives, fact.object, home.object),
                    _fact("led_from", led, fact.subject, home.object),
                ],
                "prerequisites": [0],
                "type": "composite",
                "edits": [
                    _fact("residence", lives, fact.object, home.object, new_object=_label(first)),
                    _fact(
                        "led_from",
                        led,
                        fact.subject,
                        home.object,
                        true_object=_label(first),
                        new_object=_label(second),
                    ),
                ],
            }
        )
    return rows
