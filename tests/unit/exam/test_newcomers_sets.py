"""What a newcomer's YAML gets wrong, over rows that are flat, nested, or of several edits: one line says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import DataError
from harness.exam import tasks
from harness.exam.case_sets import CaseSet
from harness.models.lm import LM
from harness.runs.options import RunOptions
from harness.runs.plan_grid import plans
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

FLAT: dict[str, Any] = {
    "id": "id",
    "edits": {"prompt": "question", "subject": "entity", "target": "new", "target_old": "old"},
    "probes": [
        {"kind": "rewrite", "prompt": "question", "answers": "new", "rival": "old", "protocol": "probability"},
        {"kind": "reworded", "prompt": "reworded", "answers": "new"},
        {"kind": "far", "prompt": "far", "answers": "far_answer", "expect": "old"},
    ],
}
FLAT_ROWS = [
    {"id": f"a{i}", "question": f"Where is {who}?", "entity": who, "new": new, "old": old, "reworded": f"{who} is in",
     "far": "The sky is", "far_answer": "blue"}
    for i, (who, new, old) in enumerate([("Ada", "Rome", "Oslo"), ("Bela", "Bonn", "Graz")])
]  # fmt: skip
AFTER = "record.fact.object.after"
NESTED: dict[str, Any] = {
    "id": "record.uid",
    "edits": {"prompt": "record.fact.cloze", "subject": "record.fact.who", "target": f"{AFTER}.label",
              "target_old": "record.fact.object.before.label"},
    "probes": [
        {"kind": "same", "each": "record.checks.same", "prompt": "q",
         "answers": f"[row.{AFTER}.label, row.{AFTER}.aliases]"},
        {"kind": "elsewhere", "each": "record.checks.elsewhere", "prompt": "q", "answers": "gold", "expect": "old"},
    ],
}  # fmt: skip
NESTED_ROWS = [
    {"record": {
        "uid": f"b{i}",
        "fact": {"cloze": "The home of {} is", "who": who,
                 "object": {"before": {"label": old}, "after": {"label": new, "aliases": [[f"{new} city"]]}}},
        "checks": {"same": [{"q": f"{who} dwells in"}],
                   "elsewhere": [{"q": "The sea is", "gold": [["blue", "azure"], ["deep"]]}]},
    }}
    for i, (who, new, old) in enumerate([("Ada", "Rome", "Oslo"), ("Bela", "Bonn", "Graz")])
]  # fmt: skip
SEVERAL: dict[str, Any] = {
    "id": "case",
    "languages": ["en", "de"],
    "edits": {"each": "changes", "prompt": "p", "subject": "s", "target": "to", "target_old": "was"},
    "probes": [
        {"kind": "quiz", "each": "quiz", "prompt": "ask", "answers": "correct", "choices": "options",
         "protocol": "choice", "language": "in"},
    ],
}  # fmt: skip
SEVERAL_ROWS = [
    {"case": f"c{i}",
     "changes": [{"p": "{} is in", "s": who, "to": new, "was": old},
                 {"p": "{} has a", "s": new, "to": "mayor", "was": "king"}],
     "quiz": [{"ask": f"Who rules where {who} is?", "options": ["mayor", "king"], "correct": "mayor", "in": "en"},
              {"ask": f"Wer regiert, wo {who} ist?", "options": ["mayor", "king"], "correct": "mayor", "in": "de"}]}
    for i, (who, new, old) in enumerate([("Ada", "Rome", "Oslo"), ("Bela", "Bonn", "Graz")])
]  # fmt: skip
SETS = {"flat": (FLAT, FLAT_ROWS), "nested": (NESTED, NESTED_ROWS), "several": (SEVERAL, SEVERAL_ROWS)}


def put(value: Any, path: str, new: object) -> Any:
    """A copy of a rule or of rows with another value at a place, such as ``probes.0.prompt``."""
    copied = deepcopy(value)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner = copied
    for part in way:
        inner = inner[part]
    inner[last] = new
    return copied


@pytest.fixture
def brought(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set as a newcomer does: rows beside a YAML, outside of the project."""

    def write(
        name: str, rule: object, rows: object, head: str = "class: !function harness.task_kit.CaseExam\n"
    ) -> Path:
        (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        source = {"citation": "mine", "files": {"test": {"path": "rows.json"}}}
        said = {"metadata": {"version": 1.0, "licence": "CC0", "source": source, "case": rule}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"task: {name}\n{head}{yaml.safe_dump(said)}", encoding="utf-8")
        return path

    return write


def asked(path: Path) -> None:
    """Read the edits and the exam, as a run does."""
    found = CaseSet.read(path)
    edits = found.edits(found.source())
    found.cases(None, "test", {edit.belongs_to for edit in edits})


@pytest.mark.parametrize("name", SETS)
def test_three_shapes_are_read(brought: Callable[..., Path], name: str, caplog: pytest.LogCaptureFixture) -> None:
    asked(brought(name, *SETS[name]))
    assert not caplog.text


MISUSES = [
    # in the YAML
    ("flat", "edits.subject", "entty", "flat, row 1: 'entty' finds nothing for the edit's subject; it has id,"),
    ("nested", "edits.target", "record.fact.objct.after.label",
     "nested, row 1: 'record.fact.objct.after.label' finds nothing for the edit's target; 'record.fact' has cloze, "
     "who, object (did you mean object?)"),
    ("nested", "edits.target_old", "record.fact.object.befor.label",
     "nested: 'record.fact.object.befor.label' finds nothing for the edits' target_old in any row; "
     "'record.fact.object' has before, after (did you mean before?)"),
    ("nested", "edits.prompt", "record.fact", "nested, row 1: 'record.fact' finds {'cloze': "),
    ("nested", "probes.0.each", "record.checks.sam",
     "nested: 'record.checks.sam' finds nothing for the same questions in any row; 'record.checks' has same, "
     "elsewhere (did you mean same?)"),
    ("nested", "probes.0.prompt", "row.record.fact.cloz",
     "nested: 'row.record.fact.cloz' finds nothing for the same questions in any row; 'row.record.fact' has cloze"),
    ("nested", "probes.0.prompt", "@", "nested, row 1: '@' finds {'q': "),
    ("nested", "probes.0.answers", f"row.{AFTER}", f"nested, row 1: 'row.{AFTER}' finds {{'label': "),
    ("nested", "probes.1.answers", "golds",
     "nested, row 1: its elsewhere question 'The sea is' has no answer ('golds' finds nothing; it has q, gold)"),
    ("nested", "id", "record.uidd", "nested, row 1: 'record.uidd' finds nothing; 'record' has uid, fact, checks (did"),
    ("several", "edits.each", "chnges", "several, row 1: 'chnges' finds nothing, expected a list; the row has case"),
    ("several", "probes.0.choices", "optons",
     "several, row 1: its quiz question 'Who rules where Ada is?' has none of its answers among its choices (none) "
     "('optons' finds nothing; it has ask, options, correct, in)"),
    ("several", "languages", ["en", "de", "fr"], "several: the language 'fr' has no probes (there are: de, en)"),
    ("several", "languages", ["en"], "several: a probe is in 'de'"),
    ("flat", "id", 3, "FILE: metadata.case.id is 3, expected a path, a text such as"),
    ("nested", "id", "record.fact", "nested, row 1: 'record.fact' finds {'cloze': 'The home of {} is', 'who': 'Ada', "),
    ("flat", "when", True, "FILE: metadata.case.when is True, expected a path, a text such as"),
    ("flat", "when", "kept", "flat: no row is a case: 'kept' finds nothing true in any; a row has id, question, "),
    ("flat", "edits", {"prompt": "question", "target": "new"}, "FILE: metadata.case.edits: no 'subject'; give paths"),
    ("flat", "edits.subject", None, "FILE: metadata.case.edits.subject is None, expected a path, a text such as"),
    ("flat", "probes.1.answers", ["new"], "FILE: metadata.case.probes[1].answers is ['new'], expected a path, a text"),
    ("flat", "probes.1.protocol", [], "FILE: metadata.case.probes[1]: its protocol is [], expected one or several"),
    ("flat", "probes.1.protocol", ["accuracy"] * 2, "FILE: metadata.case.probes[1]: its protocol is ['accuracy', 'acc"),
    ("flat", "probes.2", {"kind": "far", "prompt": "far", "expect": "unchanged", "protocol": "accuracy"},
     "FILE: metadata.case.probes[2]: unchanged is what two free texts say; leave 'protocol' out, or give generation"),
    ("flat", "probes.2.lower_is_better", "no", "FILE: metadata.case.probes[2].lower_is_better is 'no', expected true"),
    ("flat", "probes.2.kind", "far.off", "FILE: metadata.case.probes[2].kind is 'far.off'; leave dots, commas and"),
    ("flat", "probes.2.kind", "reworded", "FILE: metadata.case.probes: those of the kind 'reworded' have expect new "
     "and old; give each a name"),
    ("flat", "combine", {"rewrite_success": {"kind": "rewrite", "how": "any"}},
     "FILE: metadata.case: 'rewrite_success' is a metric already; give what is put together another name"),
    ("flat", "combine", {"any.of": {"kind": "rewrite", "how": "any"}}, "FILE: metadata.case: the name of a metric is"),
    ("several", "edits.each", "changes[].[p, s]", "several, row 1: 'p' finds nothing for the edit's prompt; it has "
     "value, ['{} is in', 'Ada']"),
    ("flat", "probes.0.rival", "[old]", "flat, row 1: the rival of a rewrite question is ['Oslo'], expected one text"),
    ("several", "probes.0.language", "options", "several, row 1: the language of a quiz question is ['mayor', 'ki"),
    # in the rows
    ("flat", "1.far_answer", "", "flat, row 2: its far question 'The sky is' has no answer ('far_answer' finds"),
    ("flat", "1.entity", "Bob", "flat, row 2: the subject 'Bob' is not in the prompt 'Where is Bela?'"),
    ("flat", "1.new", "graz", "flat, row 2: its rewrite question 'Where is Bela?' has 'graz' both as an answer"),
    ("flat", "1.id", "a0", "flat: the id a0 occurs twice (rows 1 and 2)"),
    ("several", "1.quiz.0.correct", "Zed", "several, row 2: its quiz question 'Who rules where Bela is?' has none of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "new", "said"), MISUSES)
def test_a_mistake_is_told_with_row_and_path(
    brought: Callable[..., Path], name: str, place: str, new: object, said: str
) -> None:
    rule, rows = SETS[name]
    given = (rule, put(rows, place, new)) if place[0].isdigit() else (put(rule, place, new), rows)
    path = brought(name, *given)
    with pytest.raises(DataError) as told:
        asked(path)
    assert str(told.value).startswith(said.replace("FILE", str(path)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"test": {"path": "row.json"}}, "row.json: no such file, where flat.yaml says that rows of its split 'test'"),
        ({"test": {"path": "rows.json", "joined": {"path": "more.json", "by": "id", "as": "more"}}},
         "more.json: no such file, where flat.yaml says that rows of its split 'test' lie; place it there, or"),
        ({"train": {"path": "rows.json"}}, "flat.yaml: it has no split 'test' (there are: train)"),
        (["rows.json"], "flat.yaml: metadata.source.files is ['rows.json'], expected a mapping such as {test: {path: "),
    ],
)  # fmt: skip
def test_a_file_that_is_not_beside_its_yaml_is_told(brought: Callable[..., Path], files: object, said: str) -> None:
    path = brought("flat", FLAT, FLAT_ROWS)
    told = yaml.safe_load(path.read_text().replace("!function ", ""))
    told["metadata"]["source"]["files"] = files
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(DataError) as caught:
        asked(path)
    assert str(caught.value).startswith(str(path.parent / said))


def test_an_old_answer_among_the_right_ones_is_told(
    brought: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Published sets have such aliases: it is counted, and the exam goes on."""
    rows = put(NESTED_ROWS, "1.record.fact.object.after.aliases", [["the Graz"]])
    asked(brought("nested", NESTED, rows))
    (told,) = [one.getMessage() for one in caplog.records]
    assert told == (
        "nested: an alias is the old answer of the edit, and counts as right (questions: 1); the first: nested, row 2, "
        "its same question 'Bela dwells in' has 'the Graz'"
    )


def test_a_path_that_leads_nowhere_and_is_like_no_other_is_warned_of(
    brought: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    asked(brought("nested", put(NESTED, "probes.0.each", "record.checks.reversed"), NESTED_ROWS))
    assert "'record.checks.reversed' finds nothing for the same questions in any row, so that they" in caplog.text
    assert "'record.checks' has same, elsewhere" in caplog.text


def test_a_set_without_its_class_is_told(
    brought: Callable[..., Path], tiny: Callable[[str], LM], tmp_path: Path, small_index: None
) -> None:
    path = brought("flat", FLAT, FLAT_ROWS, head="")
    with pytest.raises(DataError, match=r"flat\.yaml: it has metadata\.case and no class; add the line `class: "):
        tasks.load_suite(
            [], edit_set="flat", records=["a0"], data_dir="mini", tokenizer=tiny("gpt2").tokenizer,
            include=[str(path.parent)],
        )  # fmt: skip


@pytest.mark.parametrize("known_only", [False, True])
def test_a_mistake_in_a_question_is_told_before_the_model_is_asked(
    brought: Callable[..., Path], tmp_path: Path, small_index: None, known_only: bool
) -> None:
    path = brought("flat", FLAT, put(FLAT_ROWS, "1.far_answer", ""))
    (plan,) = plans({"editor": "ft_m", "edits": "flat", "include_path": [str(path.parent)], "known_only": known_only})
    done: list[str] = []
    options = RunOptions(tmp_path / "out", device="cpu", report=lambda what, *_: done.append(what))
    with pytest.raises(DataError, match=r"flat, row 2: its far question 'The sky is' has no answer"):
        run_plan(resolve(plan), options)
    assert "load" in done
    assert not [what for what in done if "the model knows" in what]
