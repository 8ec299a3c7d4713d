"""Rows of one's own: every shape in which they are written, where the subject stands, and what is refused."""

from __future__ import annotations

import gzip
import json
import lzma
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import own_rows, row_shapes, tasks
from harness.models.lm import LM

ROW = {"prompt": "The genre of Golden Nopadis is", "subject": "Golden Nopadis", "target": "soul"}
ROME = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The genre of {} is",
        "relation_id": "P136",
        "target_new": {"str": "soul", "id": "Q1"},
        "target_true": {"str": "punk", "id": "Q2"},
        "subject": "Golden Nopadis",
    },
    "paraphrase_prompts": ["Golden Nopadis is known as"],
    "neighborhood_prompts": ["The style of Lonely Zeni is", "Lonely Zeni plays"],
    "attribute_prompts": ["Ada Velmont plays"],
    "generation_prompts": ["Golden Nopadis often"],
}
MEND = {
    "subject": "Golden Nopadis",
    "src": "What is the genre of Golden Nopadis?",
    "pred": "rock",
    "rephrase": "Which genre has Golden Nopadis?",
    "alt": "soul",
    "answers": ["punk", "punk rock"],
    "loc": "nq question: who plays the drums",
    "loc_ans": "Zeni",
    "cond": "rock >> soul || What is the genre of Golden Nopadis?",
}
EASYEDIT = {
    "prompt": "The genre of Golden Nopadis is",
    "subject": "Golden Nopadis",
    "target_new": "soul",
    "ground_truth": "punk",
    "rephrase_prompt": "Golden Nopadis is known as",
    "portability": {"Reasoning": [{"prompt": "Whoever likes Golden Nopadis likes", "ground_truth": "soul"}]},
    "locality": {"Relation_Specificity": [{"prompt": "The style of Lonely Zeni is", "ground_truth": [["punk", "p"]]}]},
}
FLAT = {
    "case_id": 3,
    "prompt": "The genre of Golden Nopadis is",
    "target_new": "soul",
    "subject": "Golden Nopadis",
    "ground_truth": "punk",
    "rephrase_prompt": "Golden Nopadis is known as",
    "locality_prompt": "The style of Lonely Zeni is",
    "locality_ground_truth": "punk",
}
WIKIBIO = {
    "text": "This is a passage about ada velmont. She was born in Rome.",
    "labels": "She lives in Oslo.",
    "concept": "ada velmont",
    "locality": {"Relation_Specificity": [{"prompt": "Hugo Lantern lives in", "ground_truth": "Bergen"}]},
}


def _hop(subject: str, target: str) -> dict[str, Any]:
    return {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "target_new": {"str": target, "id": "Q1"},
        "target_true": {"str": "Peru", "id": "Q2"},
        "subject": subject,
        "question": f"Of which country is {subject} a citizen?",
    }


MQUAKE = {
    "case_id": 5,
    "requested_rewrite": [_hop("Ada", "Croatia")],
    "questions": ["Who leads the country of Ada?", "Who rules where Ada is a citizen?"],
    "answer": "A",
    "answer_alias": [],
    "new_answer": "Kolinda",
    "new_answer_alias": ["K. G."],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {},
}

Asked = list[tuple[str, str, list[str]]]


def asked(path: Path) -> Asked:
    """Kind, prompt and right answers of each probe of a file."""
    functions, rows = tasks._rows(str(path), "mini", "test", None, ())
    return [(p["kind"], p["prompt"], p["answers"]) for row in rows for p in functions.probes(row)]


def facts(path: Path) -> list[tuple[str, str, str | None, str, str | None]]:
    """The edits of a file."""
    return [(e.id, e.prompt, e.subject, e.target, e.target_old) for e in tasks.read_edits(str(path), data_dir="mini")]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """A file of a text."""

    def write(text: str, name: str = "my.json") -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


# --- shapes of other tools ------------------------------------------------------------------------------------------

GENRE = ("The genre of {} is", "Golden Nopadis", "soul", "punk")
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]], Asked]] = {
    "ROME": (
        ROME,
        [("7", *GENRE)],
        [
            ("rewrite", "The genre of Golden Nopadis is", ["soul"]),
            ("paraphrase", "Golden Nopadis is known as", ["soul"]),
            ("neighborhood", "The style of Lonely Zeni is", ["punk"]),
            ("neighborhood", "Lonely Zeni plays", ["punk"]),
        ],
    ),
    "MEND": (
        MEND,
        [("1", "What is the genre of {}?", "Golden Nopadis", "soul", "punk")],
        [
            ("rewrite", "What is the genre of Golden Nopadis?", ["soul"]),
            ("paraphrase", "Which genre has Golden Nopadis?", ["soul"]),
            ("neighborhood", "nq question: who plays the drums", ["Zeni"]),
        ],
    ),
    "one hop": (
        {**MEND, "portability": {"Recalled Relation": "(a, b, c)", "New Question": "Whom?", "New Answer": "Hugo"}},
        [("1", "What is the genre of {}?", "Golden Nopadis", "soul", "punk")],
        [
            ("rewrite", "What is the genre of Golden Nopadis?", ["soul"]),
            ("paraphrase", "Which genre has Golden Nopadis?", ["soul"]),
            ("neighborhood", "nq question: who plays the drums", ["Zeni"]),
            ("portability", "Whom?", ["Hugo"]),
        ],
    ),
    "EasyEdit": (
        EASYEDIT,
        [("1", *GENRE)],
        [
            ("rewrite", "The genre of Golden Nopadis is", ["soul"]),
            ("paraphrase", "Golden Nopadis is known as", ["soul"]),
            ("neighborhood", "The style of Lonely Zeni is", ["punk", "p"]),
            ("portability", "Whoever likes Golden Nopadis likes", ["soul"]),
        ],
    ),
    "EasyEdit's inputs": (
        {
            **{k: v for k, v in EASYEDIT.items() if k != "portability"},
            "ground_truth": ["punk", "punk rock"],
            "locality": {"neighborhood": {"prompt": ["A is", "B is"], "ground_truth": ["a", "b"]}},
        },
        [("1", *GENRE)],
        [
            ("rewrite", "The genre of Golden Nopadis is", ["soul"]),
            ("paraphrase", "Golden Nopadis is known as", ["soul"]),
            ("neighborhood", "A is", ["a"]),
            ("neighborhood", "B is", ["b"]),
        ],
    ),
    "EasyEdit, flat": (
        FLAT,
        [("3", *GENRE)],
        [
            ("rewrite", "The genre of Golden Nopadis is", ["soul"]),
            ("paraphrase", "Golden Nopadis is known as", ["soul"]),
            ("neighborhood", "The style of Lonely Zeni is", ["punk"]),
        ],
    ),
    "WikiBio": (
        WIKIBIO,
        [("1", "This is a passage about {}. She was born in Rome.", "ada velmont", "She lives in Oslo.", None)],
        [
            ("rewrite", "This is a passage about ada velmont. She was born in Rome.", ["She lives in Oslo."]),
            ("neighborhood", "Hugo Lantern lives in", ["Bergen"]),
        ],
    ),
    "MQuAKE": (
        MQUAKE,
        [("5", "{} is a citizen of", "Ada", "Croatia", "Peru")],
        [
            ("rewrite", "Ada is a citizen of", ["Croatia"]),
            ("paraphrase", "Of which country is Ada a citizen?", ["Croatia"]),
            ("portability", "Who leads the country of Ada?", ["Kolinda", "K. G."]),
            ("portability", "Who rules where Ada is a citizen?", ["Kolinda", "K. G."]),
        ],
    ),
    "ours": (
        {**ROW, "neighborhood": [{"prompt": "Zeni is", "answer": ["x", "y"]}], "portability": []},
        [("1", "The genre of {} is", "Golden Nopadis", "soul", None)],
        [("rewrite", "The genre of Golden Nopadis is", ["soul"]), ("neighborhood", "Zeni is", ["x", "y"])],
    ),
}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_each_shape_is_read_and_examined(file: Callable[..., Path], shape: str, name: str) -> None:
    row, edits, probes = SHAPES[shape]
    array = ".jsonl" not in name
    path = file(json.dumps([row], indent=1) if array else json.dumps(row) + "\n", name)
    assert facts(path) == edits
    assert asked(path) == probes


def test_the_yaml_says_what_is_asked_of_a_row() -> None:
    """The kinds that have metrics are those of the YAML, and in its order; what is generated is so by its protocol."""
    functions = tasks.data.module(tasks.data.TASKS / "edits" / "own" / "functions.py")
    rules = functions.declared().probes
    assert [rule.kind for rule in rules] == list(functions.PREFIX)
    assert [rule.kind for rule in rules if "generation" in rule.protocols] == list(functions.EXACT)
    assert set(functions.declared().edit) == {key for key in functions.TEXTS if key != "id"}


def test_what_the_yaml_asks_and_what_probes_ask_has_the_ids_of_its_place(file: Callable[..., Path]) -> None:
    row = {
        **ROW, "target_old": "pop", "aliases": ["Soul ", "soul"], "paraphrases": ["Its genre is ", "Its genre is\n"],
        "neighborhood": [{"prompt": "Zeni is\t", "answer": [" x ", "y", "x"]}],
        "portability": [{"prompt": "Who sings?", "answer": "Ada"}],
        "probes": [
            {"kind": "portability", "prompt": "Where?", "answers": ["Rome"]},
            {"kind": "paraphrase", "prompt": "The genre:", "answers": ["funk", "disco"]},
            {"kind": "own", "prompt": "Not asked here", "answers": ["x"]},
        ],
    }  # fmt: skip
    functions, rows = tasks._rows(str(file(json.dumps([row]))), "mini", "test", None, ())
    keys = ("id", "kind", "prompt", "target_new", "target_old", "answers", "join")
    assert [tuple(doc[key] for key in keys) for doc in functions.probes(rows[0])] == [
        ("1/0", "rewrite", "The genre of Golden Nopadis is", "soul", "pop", ["soul", "Soul"], None),
        ("1/1", "paraphrase", "Its genre is", "soul", "pop", ["soul", "Soul"], None),
        ("1/2", "paraphrase", "Its genre is\n", "soul", "pop", ["soul", "Soul"], ""),
        ("1/3", "neighborhood", "Zeni is", "soul", "pop", ["x", "y"], None),
        ("1/4", "portability", "Who sings?", "soul", "pop", ["Ada"], None),
        ("1/5", "portability", "Where?", "soul", "pop", ["Rome"], None),
        ("1/6", "paraphrase", "The genre:", "funk", "", ["funk", "disco"], None),
    ]


@pytest.mark.parametrize(
    ("said", "joins"),
    [
        ({}, ["\n", "", None, None]),
        ({"target": "\nsoul"}, ["\n", "", "\n", None]),  # a line break of the edit goes with the edit's own answer
        ({"join": "\n"}, ["\n", "", "\n", None]),
        ({"join": ""}, ["\n", "", "", None]),
    ],
)
def test_questions_of_a_row_have_what_it_says_between_prompt_and_answer(
    said: dict[str, str], joins: list[str | None], file: Callable[..., Path]
) -> None:
    asked_of = [
        {"prompt": "Zeni is", "answer": "\nx"},
        {"prompt": "Zeni was\n", "answer": "x"},
        {"prompt": "It is", "answer": "soul"},
        {"prompt": "Who sings?", "answer": "Ada"},
    ]
    in_probes = [{"kind": "portability", "prompt": one["prompt"], "answers": one["answer"]} for one in asked_of[1:]]
    row = {**ROW, "neighborhood": asked_of, "portability": asked_of, "probes": in_probes, **said}
    functions, rows = tasks._rows(str(file(json.dumps([row]))), "mini", "test", None, ())
    found = [doc["join"] for doc in functions.probes(rows[0]) if doc["kind"] in functions.OTHERS]
    assert [found[:4], found[4:8], found[8:]] == [joins, joins, joins[1:]]


def test_each_edit_of_a_case_is_a_row_and_their_question_is_asked_once_of_all(file: Callable[..., Path]) -> None:
    both = {**MQUAKE, "requested_rewrite": [_hop("Ada", "Croatia"), _hop("Hugo", "Peru")]}
    path = file(json.dumps([both]))
    assert [fact[0] for fact in facts(path)] == ["5.1", "5.2"]
    assert {edit.belongs_to for edit in tasks.read_edits(str(path), data_dir="mini")} == {"5"}
    assert [prompt for kind, prompt, _ in asked(path) if kind == "portability"] == MQUAKE["questions"]
    functions, rows = tasks._rows(str(path), "mini", "test", None, ())
    assert {probe["case"] for row in rows for probe in functions.probes(row)} == {"5"}


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.json.xz", "rows.xz"])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_rows_are_read_whatever_their_file_is_called(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / name
    packed = pack(b"\xef\xbb\xbf" + json.dumps([ROW]).encode())
    path.write_bytes(packed)
    if pack is gzip.compress and path.suffix == ".xz":
        with pytest.raises(DataError, match=r"rows\S*\.xz: not whole xz \(.*\); copy it again$"):
            facts(path)
        return
    assert [fact[0] for fact in facts(path)] == ["1"]
    path.write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"copy it again$"):
        facts(path)


@pytest.mark.parametrize(
    ("prompts", "answers", "asked_of"),
    [
        (["a", "b"], ["x", "y"], [("a", ["x"]), ("b", ["y"])]),
        (["a", "b"], [["x", "z"], "y"], [("a", ["x", "z"]), ("b", ["y"])]),
        (["a", "b"], "x", [("a", ["x"]), ("b", ["x"])]),
        (["a"], ["x", "z"], [("a", ["x", "z"])]),
        ("a", ["x", "z"], [("a", ["x", "z"])]),
    ],
)
@pytest.mark.parametrize("shape", ["EasyEdit", "MEND"])
def test_questions_in_a_list_have_the_answers_of_their_place(
    shape: str, prompts: object, answers: object, asked_of: list[tuple[str, list[str]]], file: Callable[..., Path]
) -> None:
    bare = {key: value for key, value in EASYEDIT.items() if key not in ("locality", "portability")}
    row = {
        "EasyEdit": {**bare, "locality_prompt": prompts, "locality_ground_truth": answers},
        "MEND": {**MEND, "loc": prompts, "loc_ans": answers},
    }[shape]
    functions, rows = tasks._rows(str(file(json.dumps([row]))), "mini", "test", None, ())
    found = [(doc["prompt"], doc["answers"]) for doc in functions.probes(rows[0]) if doc["kind"] == "neighborhood"]
    assert found == asked_of


def test_lists_of_questions_and_answers_that_do_not_match_are_told(file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"line 1, row 1: 'neighborhood' has 2 prompts and 1 answers; give one for"):
        facts(file(json.dumps([{**MEND, "loc": ["a", "b"], "loc_ans": ["x"]}])))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"0": ROW, "1": ROW}, r"holds only objects \('0', '1'\); give rows as an array, or one object a line$"),
        (
            {key: [value] * 2 for key, value in ROW.items()},
            r"holds columns \('prompt' is a list\); give one object a",
        ),
        ({key: {"0": value} for key, value in ROW.items()}, r"holds columns \('prompt' is a dict\); give one object"),
        ({**ROW, "id": [1]}, r"'id' is \[1\], expected a name or a number; or leave it out$"),
        ({"id": " ", "edits": [ROW]}, r"'id' is ' ', expected a name or a number; or leave it out$"),
    ],
)
def test_what_is_no_row_is_told_by_its_form(content: object, told: str, file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=told):
        facts(file(json.dumps(content)))


def test_a_field_that_is_null_says_nothing(file: Callable[..., Path]) -> None:
    """A table that is written as JSON has null in its empty cells."""
    empty = dict.fromkeys(["id", "case", "join", "aliases", *row_shapes.OURS[4:]])
    rows = [ROW, {**empty, **ROW}, {**empty, "id": None, "edits": [{**empty, **ROW}]}, {"edits": None, **ROW}]
    kept = [row if "edits" not in row or row["edits"] is None else {k: row[k] for k in ("id", "edits")} for row in rows]
    functions, read = tasks._rows(str(file(json.dumps(kept))), "mini", "test", None, ())
    assert [row["id"] for row in read] == ["1", "2", "3", "4"]
    assert [{**row, "id": ""} for row in read] == [{**read[0], "id": ""}] * 4
    assert [len(list(functions.probes(row))) for row in read] == [1] * 4


def test_rows_in_memory_are_read_as_those_of_a_file() -> None:
    found = own_rows.edits_of_rows([EASYEDIT, Edit("mine", "{} sings", "Ada", "soul"), MEND])
    assert [(e.id, e.target) for e in found] == [("1", "soul"), ("mine", "soul"), ("3", "soul")]
    with pytest.raises(DataError, match=r"^edits, row 2: 'subject' is missing.*; row 3: the subject 'X' is not in"):
        own_rows.edits_of_rows([ROW, {"prompt": "a", "target": "b"}, {**ROW, "subject": "X"}])


def test_questions_without_an_answer_are_passed_over(file: Callable[..., Path]) -> None:
    open_ended = {"Reasoning": [{"prompt": "Why?", "ground_truth": [[]]}, {"prompt": "How?", "ground_truth": ""}]}
    assert [kind for kind, *_ in asked(file(json.dumps([{**EASYEDIT, "portability": open_ended}])))].count(
        "portability"
    ) == 0


def test_own_questions_are_scored_by_any_right_answer(tiny: Callable[[str], LM], file: Callable[..., Path]) -> None:
    path = file(json.dumps([EASYEDIT]))
    found = tasks.load_suite(
        [],
        edit_set="own",
        records=["1"],
        data_dir="mini",
        tokenizer=tiny("gpt2").tokenizer,
        own_file=str(path),
    )
    scored = {task.name: [doc["kind"] for doc in task.task.eval_docs] for task in found.tasks}
    assert scored["own_probability"] == ["rewrite", "paraphrase", "neighborhood", "portability"]
    assert scored["own_generation"] == ["rewrite", "paraphrase", "portability"]
    functions, rows = tasks._rows(str(path), "mini", "test", None, ())
    doc = next(p for p in functions.probes(rows[0]) if p["kind"] == "neighborhood")
    assert functions.choices(doc) == ["punk", "p"]
    wrong, right = (type("Rated", (), {"nll": 1.0, "exact": exact})() for exact in (False, True))
    assert functions.probability(doc, [wrong, right])["locality_accuracy"].num == 1.0
    assert functions.probability(doc, [wrong, wrong])["locality_accuracy"].num == 0.0
    assert functions.generation({**doc, "kind": "portability"}, [" p, of course"])["portability_exact_match"].num == 1.0


@pytest.mark.parametrize("old", ["soul", "The Soul"])
def test_an_old_answer_that_is_the_new_one_is_no_rival(
    old: str, file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    rows_of = json.dumps([{**ROW, "target_old": old, "paraphrases": ["Its genre is"]}, {**ROW, "target_old": "pop"}])
    functions, rows = tasks._rows(str(file(rows_of)), "mini", "test", None, ())
    tied, *_, other = [probe for row in rows for probe in functions.probes(row)]
    assert (functions.choices(tied), functions.choices(other)) == (["soul"], ["soul", "pop"])
    rated = type("Rated", (), {"nll": 1.0, "exact": True})()
    assert set(functions.probability(tied, [rated])) == {"efficacy_accuracy", "efficacy_probability"}
    functions.edits(rows)
    assert caplog.text.count("nothing says which is likelier in 1 rows: 1") == 1


# --- an array, and where its rows stand -----------------------------------------------------------------------------


def test_rows_of_an_array_on_one_line_have_ids_of_their_own(file: Callable[..., Path]) -> None:
    assert [fact[0] for fact in facts(file(json.dumps([ROW, ROW, ROW])))] == ["1", "2", "3"]


def test_one_object_over_several_lines_is_a_row(file: Callable[..., Path]) -> None:
    assert [fact[3] for fact in facts(file(json.dumps(ROW, indent=2)))] == ["soul"]


BROKEN = {
    "[\n" + json.dumps(ROW) + ",\n5,\n{}]": r"line 3, row 2: expected a JSON object \{\.\.\.\}, found int: 5; "
    r"line 4, row 3: 'prompt' is missing",
    "[\n" + json.dumps(ROW) + ",\n{": "line 3, row 2: not JSON",
    "[" + json.dumps(ROW) + "\n": "line 1, row 2: the array is cut off after this row",
    "[" + json.dumps(ROW) + "]\n[]": "line 1, row 2: text stands behind the array",
    "": "empty; expected one JSON object a line, or an array",
    "[" * 100_000: "line 1, row 1: JSON nested too deeply",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_a_broken_array_is_named_by_line_and_row(file: Callable[..., Path], text: str) -> None:
    with pytest.raises(DataError, match=BROKEN[text]) as caught:
        facts(file(text))
    assert "\n" not in str(caught.value)


def test_all_bad_rows_are_named_up_to_ten(file: Callable[..., Path]) -> None:
    bad = [{**ROW, "subject": f"Ada {i}"} for i in range(12)]
    lines = [json.dumps(ROW), '{"prompt":', *map(json.dumps, bad), "", json.dumps({"prompt": "a", "target": "b"})]
    with pytest.raises(DataError) as caught:
        facts(file("\n".join(lines), "my.jsonl"))
    message = str(caught.value)
    assert "my.jsonl, line 2: not JSON" in message
    assert [f"line {i}: the subject 'Ada {i - 3}'" in message for i in range(3, 15)] == [True] * 9 + [False] * 3
    assert message.endswith("; and 4 more rows")


def test_rows_with_the_same_fault_are_named_together(file: Callable[..., Path]) -> None:
    lines = "\n".join(json.dumps({**ROW, "noted": 1}) for _ in range(30))
    with pytest.raises(DataError, match=r"line 9, line 10: 'noted' is not read; leave it out.*; and 20 more rows$"):
        facts(file(lines, "my.jsonl"))


# --- fields that are not read ---------------------------------------------------------------------------------------

UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "another tool's": ({**ROW, "rephrase_prompt": "a"}, r"'rephrase_prompt' \(did you mean paraphrases\?\) is not"),
    "the old answer": ({**ROW, "target_true": "punk"}, r"'target_true' \(did you mean target_old\?\)"),
    "misspelt": ({**ROW, "paraphrase": ["a"]}, r"'paraphrase' \(did you mean paraphrases"),
    "several": ({**ROW, "locality": {}, "note": 1}, r"'locality' \(did you mean neighborhood\?\), 'note' are not read"),
    "far from any": ({**ROW, "zzz": 1}, r"'zzz' is not read; leave it out, or rename it: such a row has id, prompt"),
    "misspelt and missing": ({"promt": "a", "subject": "b", "target": "c"}, r"'prompt' is missing.*'promt' \(did you"),
    "in another shape": ({**EASYEDIT, "paraphrases": ["a"]}, r"'paraphrases'.* is not read.*EasyEdit's shape has"),
    "inside a field": (
        {**ROME, "requested_rewrite": {**ROME["requested_rewrite"], "targets": "x"}},  # type: ignore[dict-item]
        r"'requested_rewrite.targets'.* is not read",
    ),
    "inside a question": (
        {**ROW, "portability": [{"prompt": "a", "answr": "b"}]},
        r"'answr' \(did you mean answer\?\) is not read in 'portability'; a question has a prompt and an answer",
    ),
    "no question": ({**ROW, "neighborhood": ["Zeni is"]}, r"'neighborhood' holds 'Zeni is', expected questions"),
    "a number": ({**EASYEDIT, "ground_truth": 5}, r"'ground_truth' holds 5, expected a text or a list of texts"),
    "uneven": (
        {**EASYEDIT, "locality": {"n": {"prompt": ["a", "b"], "ground_truth": ["c"]}}},
        r"'locality.n' has 2 prompts and 1 answers; give one for each",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_field_that_is_not_read_is_refused_with_the_near_name(file: Callable[..., Path], case: str) -> None:
    row, message = UNREAD[case]
    with pytest.raises(DataError, match=message) as caught:
        facts(file(json.dumps([row])))
    assert "\n" not in str(caught.value)


def test_field_names_of_other_tools_stand_in_one_place() -> None:
    """No name that only another tool uses occurs in what reads the edit set ``own``."""
    folder = Path(__file__).parents[3]
    text = (folder / "tasks/edits/own/functions.py").read_text() + (folder / "harness/exam/own_rows.py").read_text()
    for name in ("requested_rewrite", "rephrase", "ground_truth", "case_id", "loc_ans", 'target_true"]'):
        assert name not in text, name


# --- where the subject stands ---------------------------------------------------------------------------------------

PLACES = [
    ("中国", "中国的首都是", 0),
    ("東京タワー", "東京タワーは日本の", 0),
    ("서울", "서울은 어느 나라의 수도인가", 0),
    ("กรุงเทพ", "กรุงเทพเป็นเมืองหลวงของ", 0),
    ("Ada", "Adamant Ada was born", 8),  # a whole word before a part of one
    ("Ankara", "Türkiye'nin başkenti Ankara'dır", 21),  # noqa: RUF001
    ("Oslo", "Oslos Bürgermeister heißt", 0),
    ("C++", "In C++ a class is", 3),
    ("3", "3.14 is", 0),
    ("a_b", "xa_b a_b", 5),
]


@pytest.mark.parametrize(("subject", "prompt", "place"), PLACES)
def test_a_subject_stands_at_a_whole_word_or_else_anywhere(subject: str, prompt: str, place: int) -> None:
    assert row_shapes.place_of(subject, prompt) == place


def test_space_around_a_subject_is_taken_off(file: Callable[..., Path]) -> None:
    rows = [{**ROW, "subject": " Golden Nopadis\n"}, {"prompt": "{} is", "subject": "Ada ", "target": "x"}]
    assert [fact[1:3] for fact in facts(file(json.dumps(rows)))] == [
        ("The genre of {} is", "Golden Nopadis"),
        ("{} is", "Ada"),
    ]


NFD = unicodedata.normalize("NFD", "São Tomé")
ABSENT = [
    (NFD, "São Tomé is in", r"another Unicode normal form \(subject in NFD, prompt in NFC\); write both in NFC"),
    ("각", unicodedata.normalize("NFD", "각 나라"), r"another Unicode normal form \(subject in NFC, prompt in NFD\)"),
    ("Golden Nopadis", "The genre of Golden\u00a0Nopadis is", r"characters that are not seen \(U\+00A0\)"),
    ("Golden\u200bNopadis", "The genre of GoldenNopadis is", r"characters that are not seen \(U\+200B\)"),
    ("\ufeffAda", "Ada is", r"characters that are not seen \(U\+FEFF\)"),
    ("ada velmont", "Ada Velmont is", "they differ in capitals or in the width of letters"),
    ("\uff21\uff24\uff21", "ADA is", "they differ in capitals or in the width of letters"),
    ("Hugo", "Ada is", r"is not in the prompt 'Ada is'; write it there, or a \{\} in its place"),
]


@pytest.mark.parametrize(("subject", "prompt", "message"), ABSENT)
def test_a_subject_that_differs_in_form_alone_is_told_so(subject: str, prompt: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        row_shapes.place_of(subject, prompt)


# --- many rows ------------------------------------------------------------------------------------------------------


def test_what_many_rows_cost_grows_as_their_number(file: Callable[..., Path]) -> None:
    functions = tasks.data.module(tasks.data.TASKS / "edits" / "own" / "functions.py")

    def seconds(count: int) -> float:
        rows = [{"prompt": f"Name {i} lives in", "subject": f"Name {i}", "target": "Oslo"} for i in range(count)]
        path = file("\n".join(map(json.dumps, rows)), f"{count}.jsonl")
        start = time.process_time()
        docs = functions.dataset(file=str(path), records=[str(i) for i in range(1, count + 1)])["test"]
        known = tasks.read_edits(str(path), data_dir="mini")
        assert len(docs) == len(known) == len(own_rows.edits_of_rows(rows)) == count
        return time.process_time() - start

    seconds(1)  # what is imported first
    # Of eight times as many some eight times; where a set or a count is made anew for every row, 30 and more.
    assert seconds(24_000) < 20 * seconds(3_000)
