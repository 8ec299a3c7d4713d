"""Records of CounterFact, biographies and feature norms become REMEDI's cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.editing.edit import Edit
from harness.exam import data
from harness.studies.remedi import norms
from harness.studies.remedi.entities import (
    EntityCase,
    clean_paraphrase,
    example,
    from_biography,
    from_counterfact,
    halves,
    in_context,
    stand_ins,
)

ROW: dict[str, Any] = {
    "requested_rewrite": {"target_new": {"str": "Rome", "id": "Q1"}, "target_true": {"str": "Oslo", "id": "Q2"}},
    "paraphrase_prompts": ["He sang. Ada Velmont was born in", "In short, Ada Velmont is from"],
    "generation_prompts": ["Ada Velmont is", "Ada Velmont is", "Ada Velmont likes"],
}
EDIT = Edit("7", "{} was born in", "Ada Velmont", "Rome", "Oslo", "P19")


# --- CounterFact ------------------------------------------------------------------------------------------------------


def test_a_record_is_stated_as_its_edit_is_and_asked_as_its_first_paraphrase() -> None:
    case = from_counterfact(ROW, EDIT)
    assert case.context == "Ada Velmont was born in Rome"
    assert (case.prompt, case.target, case.target_old) == ("Ada Velmont was born in", "Rome", "Oslo")
    assert case.more["generation"] == ["Ada Velmont is", "Ada Velmont likes"]
    assert (case.more["relation"], case.more["target_id"]) == ("P19", "Q1")
    (probe,) = example(case).probes
    assert (probe.prompt, probe.target_new, probe.target_true) == ("Ada Velmont was born in", "Rome", "Oslo")


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("It rains. Ada Velmont lives in", "Ada Velmont lives in"),
        ("It rains. He left. Ada Velmont lives in", "Ada Velmont lives in"),
        ("He left. Why? Ada Velmont lives in", "Why? Ada Velmont lives in"),
        ("Ada Velmont is old. She lives in", "Ada Velmont is old. She lives in"),  # the last part names nobody
        ("Old text\nAda Velmont lives in", "Ada Velmont lives in"),
        ("Category:Cities Ada Velmont lives in", "Ada Velmont lives in"),
        ("Category:Cities\nCategory:Ada Velmont lives in", "Ada Velmont lives in"),
        ("Hugo (b. 1900 Ada Velmont lives in", "1900 Ada Velmont lives in"),
        ("approx.Ada Velmont lives in", "Ada Velmont lives in"),
        ("Ada Velmont lives in", "Ada Velmont lives in"),
    ],
)
def test_a_paraphrase_loses_what_stands_in_front(prompt: str, kept: str) -> None:
    assert clean_paraphrase(prompt, "Ada Velmont") == kept


def test_an_entity_with_a_full_stop_is_not_cut() -> None:
    assert clean_paraphrase("He left. Dr. J. Doe lives in", "Dr. J. Doe") == "Dr. J. Doe lives in"


def test_the_sentence_ends_in_one_full_stop_before_the_question() -> None:
    assert in_context("Ann sings. ", "Ann is a") == "Ann sings. Ann is a"
    assert in_context("Ann sings", "Ann is a", "\n\n") == "Ann sings.\n\nAnn is a"


def test_halves_are_the_published_five_thousand_or_halves() -> None:
    assert [len(part) for part in halves(range(7))] == [3, 4]
    taught, examined = halves(range(21_919))
    assert (taught[0], taught[-1], examined[0], examined[-1]) == (0, 4999, 5000, 9999)


def test_who_stands_in_is_another_entity_of_which_the_target_is_true() -> None:
    cases = [from_counterfact(ROW, EDIT), from_counterfact(ROW, Edit("8", "{} is in", "Ada", "Bonn", "Oslo", "P19"))]
    known = [("P19", "Ada Velmont", "Rome"), ("P19", "Hugo", "Rome"), ("P20", "Iris", "Rome"), ("P19", "Ada", "Bonn")]
    assert stand_ins(cases, known, lambda n: n - 1) == ["Hugo", ""]


# --- Bias in Bios -----------------------------------------------------------------------------------------------------


def bio(text: str, **more: Any) -> EntityCase | None:
    return from_biography({"text": text, "profession": "software_engineer", **more}, 3)


def test_a_biography_is_its_first_whole_sentence_about_the_first_name() -> None:
    case = bio("Yes. Before, Dr. Ann Lee ran the big old lab in Rome, Italy. More.", name="Ann Lee")
    assert case is not None
    assert case.context == "Before, Ann ran the big old lab in Rome, Italy."  # ten words
    assert (case.entity, case.edit.prompt) == ("Ann", "Before, {}")
    assert (case.prompt, case.target) == ("Ann has the occupation of", "software engineer")


def test_what_hangs_on_a_name_stays_with_it() -> None:
    case = bio("Ann's long work on the many kinds of bees won prizes.", name="Ann Lee")
    assert case is not None
    assert (case.edit.prompt, case.context[:10]) == ("{}'s", "Ann's long")


@pytest.mark.parametrize(
    ("text", "name", "kept"),
    [
        ("He has been with the firm for all of seventeen years.", None, "About Alex: He has been"),
        ("She ran the big old lab in Rome for many years.", "Ann Lee", "About Ann: She ran"),
        ("MRS LEE ran the big old lab in Rome for many years.", "Ann LEE", "Ann ran"),
        ("Ann saw Ann and the big old lab in Rome for years.", "Ann Lee", None),
        ("Ann ran the big old lab in Rome, in Italy.", "Ann Lee", "Ann ran"),
        ("Ann ran the big old lab in Rome, Italy.", "Ann Lee", None),
    ],
)
def test_whom_a_biography_is_about(text: str, name: str | None, kept: str | None) -> None:
    case = bio(text, **({} if name is None else {"name": name}))
    assert (case is None) == (kept is None)
    assert case is None or case.context.startswith(str(kept))


# --- norms ------------------------------------------------------------------------------------------------------------


def test_tv17_cooccurrence() -> None:
    """Of three concepts with f: P(f) .6, .3, .9; P(g) .5, .2, absent."""
    known = {"a": {"f": 0.6, "g": 0.5}, "b": {"f": 0.3, "g": 0.2}, "c": {"f": 0.9}, "d": {"g": 1.0}}
    found = norms.cooccurrence(known)
    assert found["f"]["g"] == pytest.approx(0.12)
    assert found["g"]["f"] == pytest.approx(0.12)  # three concepts have g


def test_a_feature_in_plain_words() -> None:
    rows = [("cat", "inbeh_-_purrs", 30), ("cat", "beh_-_eats_mice", 15), ("cat", "eg_-_tabby", 5)]
    known = norms.concepts({"Concept": c, "Feature": f, "Prod_Freq": p} for c, f, p in rows)
    assert known == {"cat": {"purrs": 1.0, "eats mice": 0.5}}


@pytest.mark.parametrize(
    ("concept", "feature", "said", "prompt", "target"),
    [
        ("accordion", "a musical instrument", "is a musical instrument", "An accordion is a", "musical instrument"),
        ("cat", "has a tail", "has a tail", "A cat has a", "tail"),
        ("cat", "different colours", "has different colours", "A cat has different", "colours"),
        ("cat", "used for company", "is used for company", "A cat is used for", "company"),
        ("cat", "eaten by dogs", "is eaten by dogs", "A cat is", "eaten by dogs"),
        ("cat", "purrs", "purrs", "A cat", "purrs"),
        ("cat", "is attached to people", "is attached to people", "A cat is attached to", "people"),
        ("Ada Velmont", "is a person", "is a person", "Ada Velmont is a", "person"),
    ],
)
def test_how_a_feature_is_said_and_asked(concept: str, feature: str, said: str, prompt: str, target: str) -> None:
    assert norms.fluent(feature) == said
    assert norms.feature_question(concept, feature) == (prompt, target)


def test_a_sample_gives_a_concept_a_feature_that_it_does_not_have() -> None:
    known = {
        "cat": {"has a tail": 0.9, "purrs": 0.8, "is small": 0.1},
        "dog": {"has a tail": 0.9, "barks": 0.7},
        "chair": {"has legs": 1.0, "is wood": 0.6},
    }
    together = norms.cooccurrence(known)
    found = norms.samples(known)
    assert [case.context for case in found] == [case.context for case in norms.samples(known)]
    assert len({case.id for case in found}) == len(found)
    for case in found:
        said = next(f for f in together if norms.fluent(f) == case.edit.target)
        asked = next(g for g in together[said] if norms.feature_question(case.entity, g) == (case.prompt, case.target))
        assert together[said][asked] >= norms.LEAST
        assert not {said, asked} & set(known[case.entity])
        assert case.more["co"] == {g: round(p, 2) for g, p in together[said].items()}
        assert case.more["original"] == known[case.entity]
        assert not set(case.more["unrelated"]) & {*known[case.entity], *together[said], said}


def test_the_published_norms(shared: Path) -> None:
    rows = data.load("mcrae", "test", shared / "data")
    known = norms.concepts(rows)
    assert (len(rows), len(known)) == (7259, 541)
    assert known["accordion"]["a musical instrument"] == pytest.approx(28 / 30)
    assert norms.cooccurrence(known)["has keys"].keys() >= {"a musical instrument"}
    first = norms.samples(known, 3)
    assert [len(case.more["unrelated"]) for case in first] == [5, 5, 5]


def test_the_published_biographies(shared: Path) -> None:
    found = [from_biography(row, i) for i, row in enumerate(data.load("bias_in_bios", "test", shared / "data"))]
    kept = [case for case in found if case is not None]
    assert len(found) == 1270
    assert len(kept) > 1150
    assert all(case.context.count(case.entity) == 1 and len(case.context.split()) >= 10 for case in kept)
    assert len({case.target for case in kept}) == 28


def test_the_shipped_sets_teach_the_mini_world() -> None:
    cases = norms.samples(norms.concepts(data.load("mcrae")))
    assert len(cases) > 100
    assert any((case.prompt, case.target) == (f"{case.entity} is a", "person") for case in cases)
    bios = [from_biography(row, i) for i, row in enumerate(data.load("bias_in_bios"))]
    assert all(case is not None and case.target in case.context for case in bios)
