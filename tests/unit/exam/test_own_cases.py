"""Cases of a file of one's own: edits that belong together, and questions of any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import data, own_rows, tasks
from harness.exam.own_cases import OwnCaseSet
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

FACTS = [row["requested_rewrite"] for row in data.load("counterfact")[:4]]


def flat(fact: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A fact of the world that the shipped model knows, as a flat row."""
    old = fact["target_true"]["str"]
    return {"prompt": fact["prompt"], "subject": fact["subject"], "target": fact["target_new"]["str"],
            "target_old": old, **more}  # fmt: skip


def bare(fact: dict[str, Any]) -> str:
    """Its prompt with the subject written out."""
    return str(fact["prompt"].format(fact["subject"]))


def case(**change: Any) -> dict[str, Any]:
    """Two facts that belong together, with a probe of each sort."""
    first, second = FACTS[:2]
    new, old = first["target_new"]["str"], first["target_true"]["str"]
    probes: list[dict[str, Any]] = [
        {"kind": "both", "question": bare(first), "answer": new, "aliases": ["Nobody"]},
        {"kind": "both", "prompt": bare(second), "answers": [[second["target_new"]["str"]]], "rival": "Nobody",
         "protocol": ["generation", "probability"]},
        {"kind": "letter", "prompt": "Which?", "choices": ["A", "B"], "answers": "B"},
        {"kind": "sky", "prompt": "The sky is", "expect": "unchanged"},
        {"kind": "was", "prompt": bare(FACTS[3]), "answers": FACTS[3]["target_true"]["str"], "expect": "old",
         "language": "en"},
        {"kind": "paraphrase", "prompt": bare(first), "answers": [new]},
        {"kind": "portability", "prompt": bare(FACTS[3]), "answers": [old, "x"]},
    ]  # fmt: skip
    return {"id": "c1", "edits": [flat(first), flat(second)], "probes": probes, **change}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "my.json") -> Path:
    """A file of rows: an array, or lines."""
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines if name.endswith("l") else json.dumps(rows), encoding="utf-8")
    return path


def run(path: Path, output: Path, **options: Any) -> Record:
    """A file edited into the shipped model."""
    plan = Plan(editor="ft_m", edits=str(path), **{"mode": "isolated", **options})
    return run_plan(resolve(plan), RunOptions(output=output, device="cpu"))


def read(rows: list[dict[str, Any]], folder: Path) -> list[Edit]:
    """The edits of a file."""
    return tasks.read_edits(str(write(folder, rows)), data_dir="mini")


@pytest.mark.parametrize("name", ["my.json", "my.jsonl"])
def test_cases_and_flat_rows_are_read_from_one_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, [case(), flat(FACTS[2], paraphrases=["x y"])], name)
    found = tasks.read_edits(str(path), data_dir="mini")
    assert [(edit.id, edit.belongs_to) for edit in found] == [("c1.1", "c1"), ("c1.2", "c1"), ("2", "2")]
    assert [edit.target for edit in found] == [fact["target_new"]["str"] for fact in FACTS[:3]]


def test_rows_of_one_case_belong_together_wherever_they_stand(tmp_path: Path) -> None:
    rows = [flat(FACTS[0], case="a"), flat(FACTS[1]), flat(FACTS[2], case="a", id="z")]
    assert [(edit.id, edit.belongs_to) for edit in read(rows, tmp_path)] == [("1", "a"), ("z", "a"), ("2", "2")]
    assert [edit.belongs_to for edit in own_rows.edits_of_rows(rows)] == ["a", "a", "2"]
    kept = tasks.read_edits(str(own_rows.keep_rows(rows)), data_dir="mini")
    assert [(edit.id, edit.belongs_to) for edit in kept] == [("1", "a"), ("z", "a"), ("2", "2")]


def test_rows_of_other_tools_name_a_case_and_aliases_too(tmp_path: Path) -> None:
    theirs = [
        {"prompt": bare(fact), "subject": fact["subject"], "target_new": fact["target_new"]["str"],
         "ground_truth": fact["target_true"]["str"], "case": "k", "aliases": ["Nobody"]}
        for fact in FACTS[:2]
    ]  # fmt: skip
    assert [(edit.id, edit.belongs_to) for edit in read(theirs, tmp_path)] == [("1", "k"), ("2", "k")]
    functions, rows = tasks._rows(str(tmp_path / "my.json"), "mini", "test", None, ())
    assert [p["answers"] for row in rows for p in functions.probes(row)] == [
        [fact["target_new"]["str"], "Nobody"] for fact in FACTS[:2]
    ]


def test_the_questions_of_cases_are_asked_of_a_model_that_holds_all_their_edits(tmp_path: Path) -> None:
    record = run(write(tmp_path, [case(), flat(FACTS[2])]), tmp_path / "out")
    assert record.edits["ids"] == ["c1", "2"]
    table = record.tasks(2)["own"]
    assert {name: table[name]["n"] for name in table if not name.startswith("efficacy_prob")} == {
        "efficacy_accuracy": 3, "efficacy": 3, "generation_exact_match": 3,
        "paraphrase_accuracy": 1, "paraphrase_probability": 1, "paraphrase": 1, "paraphrase_exact_match": 1,
        "portability_accuracy": 1, "portability_exact_match": 1,
        "both_exact_match": 1, "both_success": 1, "letter_choice": 1, "sky_agreement": 1,
        "was_exact_match": 1, "was_exact_match.en": 1,
    }  # fmt: skip
    assert {name: table[name]["value"] for name in ("efficacy_accuracy", "both_exact_match", "both_success")} == {
        "efficacy_accuracy": 1.0, "both_exact_match": 1.0, "both_success": 1.0,
    }  # fmt: skip
    assert {"both_exact_match", "letter_choice", "sky_agreement"} <= set(record.shown["own"])


def test_a_probe_may_have_turns_and_want_a_refusal(tmp_path: Path) -> None:
    probes = [
        {"kind": "talk", "turns": ["Who?", "She.", {"role": "user", "content": "And where?"}], "answers": "Rome"},
        {"kind": "secret", "prompt": "Her password is", "expect": "refusal"},
    ]
    rows = data.module(data.TASKS / "edits" / "own" / "functions.py").rows(write(tmp_path, [case(probes=probes)]))
    talk, secret = rows[0]["probes"]
    assert talk["prompt"] == "Who?\nShe.\nAnd where?"
    assert talk["turns"] == (("user", "Who?"), ("assistant", "She."), ("user", "And where?"))
    assert "I don't know" in secret["answers"]
    for probe, said in (
        ({**probes[0], "prompt": "Who?"}, "probe 1: has a prompt and turns, and is asked once"),
        (
            {**probes[0], "turns": ["Who?", "She."]},
            "probe 1: turns are of user, assistant; begin and end",
        ),
        ({**probes[1], "protocol": "accuracy"}, "probe 1: a refusal is what a free text says"),
        ({**probes[1], "kind": "paraphrase"}, "leave 'expect' out"),
    ):
        with pytest.raises(DataError, match=said):
            data.module(data.TASKS / "edits" / "own" / "functions.py").rows(write(tmp_path, [case(probes=[probe])]))


def test_probes_are_asked_with_what_stands_in_front_of_the_target(tmp_path: Path) -> None:
    edit = {"prompt": "The home of {} is", "subject": "Ada", "target": "Rome", "join": ""}
    kinds = ("mine", "portability")
    probes = [{"kind": kind, "prompt": "The home of Ada is", "answers": "Oslo"} for kind in kinds]
    probes += [{"kind": kind, "prompt": "Ada's home is", "answers": "Rome"} for kind in kinds]
    probes += [{"kind": kind, "prompt": "Ada's home is", "answers": "Oslo"} for kind in kinds]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"id": "c", "edits": [edit], "probes": probes}]), encoding="utf-8")
    (case,) = OwnCaseSet.read(file).cases(None, "test")
    assert [one.join for one in case.probes] == ["", "", None]
    functions = data.module(data.TASKS / "edits" / "own" / "functions.py")
    asked = [probe for probe in functions.probes(functions.rows(file)[0]) if probe["kind"] == "portability"]
    assert [probe["join"] for probe in asked] == ["", "", None]


def test_a_file_without_probes_is_examined_as_before(tmp_path: Path) -> None:
    record = run(write(tmp_path, [flat(FACTS[0]), flat(FACTS[1])]), tmp_path / "out", exam=("probability",))
    assert set(record.templates) == {"own_probability", "own_generation"}
    with_probes = run(write(tmp_path, [case()]), tmp_path / "out", exam=("probability",))
    assert "both_exact_match" not in with_probes.tasks(1)["own"]  # parts that are named are asked, and nothing else


BAD: list[tuple[dict[str, Any], str]] = [
    (case(edits=[]), "row 1: 'edits' is [], expected a list of rows"),
    (case(edits=[flat(FACTS[0]), {"prompt": "x"}]), "row 1: edit 2: 'subject' is missing"),
    (case(edits=[flat(FACTS[0]), 3]), "row 1: edit 2 is 3, expected a row"),
    (case(probe=[]), "row 1: 'probe' is no field of a case (did you mean probes?)"),
    (case(probes={"kind": "x"}), "'probes' is {'kind': 'x'}, expected a list of probes"),
    (case(probes=[{"kind": "x", "prompt": "Who?"}]), "probe 1: its x question 'Who?' has no answer"),
    (case(probes=[{"kind": "portability", "prompt": "Who?", "answers": [[" "]]}]), "question 'Who?' has no answer"),
    (case(probes=[{"kind": "x", "answers": "y"}]), "probe 1: its prompt is None, expected a text"),
    (case(probes=[{"prompt": "Who?", "answers": "y"}]), "probe 1: its kind is None, expected a text"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": "y", "promt": "z"}]), "'promt' is no field of it (did"),
    (case(probes=[{"kind": "efficacy", "prompt": "Who?", "answers": "y"}]), "is what is asked of the edit itself"),
    (case(probes=[{"kind": "portability", "prompt": "Who?", "answers": "y", "protocol": "choice"}]), "leave 'protocol"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": "y", "protocol": "genration"}]), "(did you mean gener"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": "y", "expect": "olden"}]), "(did you mean old?)"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": "y", "protocol": "probability"}]), "has no rival to comp"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": ["y", "The Z"], "rival": "z"}]), "'The Z' both as an ans"),
    (
        case(probes=[{"kind": "x", "prompt": "Who?", "answers": "y", "choices": ["A"]}]),
        "none of its answers among its c",
    ),
    (case(probes=[{"kind": "x", "prompt": "Who?", "answers": ["y", "z"], "choices": "y"}]), "has no wrong choice (y)"),
    (case(probes=[{"kind": "x", "prompt": "Who?", "expect": "new", "answers": []}]), "has no answer; give one, or"),
    (
        flat(FACTS[0], aliases=[f"the {FACTS[0]['target_true']['str'].upper()}"]),
        "is target_old, what the model says no",
    ),
    (flat(FACTS[0], neighborhood=[{"prompt": "Who?"}]), "the neighborhood question 'Who?' has no answer; give one"),
    (flat(FACTS[0], case=""), "'case' is '', expected the name of the case"),
    (flat(FACTS[0], case=["a"]), "'case' is ['a'], expected the name of the case"),
]


@pytest.mark.parametrize(("row", "said"), BAD, ids=range(len(BAD)))
def test_a_case_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match="line 1, row 1: ") as error:
        read([row], tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_case_is_not_called_as_another_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the case '1' has the name of another row's id"):
        read([flat(FACTS[0]), flat(FACTS[1], case="1")], tmp_path)


def test_a_kind_expects_one_thing(tmp_path: Path) -> None:
    probes = [{"kind": "x", "prompt": "A", "answers": "y"}, {"kind": "x", "prompt": "B", "expect": "unchanged"}]
    with pytest.raises(DataError, match=r"of the kind 'x' expect new and unchanged; give each a name"):
        run(write(tmp_path, [case(probes=probes)]), tmp_path / "out")


def test_a_case_that_contradicts_itself_is_warned_of_and_counted(tmp_path: Path) -> None:
    again = flat(FACTS[0]) | {"target": FACTS[1]["target_new"]["str"]}
    rows = [case(), {"id": "c2", "edits": [flat(FACTS[0]), again]}]
    record = run(write(tmp_path, rows), tmp_path / "out", exam=("probability",))
    assert record.edits["contradicting_cases"] == 1
    assert any(line.startswith("case c2 contradicts itself: ") for line in record.edits["warnings"])
    plain = run(write(tmp_path, [case()]), tmp_path / "out", exam=("probability",))
    assert "contradicting_cases" not in plain.edits


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ({"kind": "a.b"}, "its kind is 'a.b'; leave dots, commas and slashes out of it"),
        ({"expect": "unchanged", "protocol": "accuracy"}, "unchanged is what two free texts say; leave 'protocol' out"),
        ({"protocol": []}, r"its protocol is \[\], expected one or several different ones"),
        ({"protocol": ["accuracy", "accuracy"]}, "expected one or several different ones"),
        ({"protocol": "probability", "rival": ["y"]}, r"its rival is \['y'\], expected one text"),
        ({"language": ["en"]}, r"its language is \['en'\], expected one text"),
        ({"answers": {"str": "x"}}, "{'str': 'x'} stands among the answers or choices of a probe, expected texts"),
    ],
)
def test_a_probe_that_would_measure_something_else_is_refused(probe: dict[str, Any], said: str, tmp_path: Path) -> None:
    asked = {"kind": "mine", "prompt": "Ada is in", "answers": "x", **probe}
    row = {"prompt": "The home of {} is", "subject": "Ada", "target": "Rome", "probes": [asked]}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        OwnCaseSet.read(file)
