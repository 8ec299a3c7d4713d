"""How rows become cases by the paths of a YAML, and what a case that cannot be read is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import data
from harness.exam.case_exam import CaseExam
from harness.exam.case_sets import CaseSet
from harness.exam.cases import Case, read_cases, rule_of

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

RULE: dict[str, Any] = {
    "id": "name",
    "edits": {"each": "facts", "prompt": "cloze", "subject": "about", "target": "new.text", "target_old": "old"},
    "probes": [
        {"kind": "rewrite", "each": "facts", "prompt": "fill(cloze, about)", "answers": "new.text", "rival": "old",
         "protocol": ["generation", "probability"]},
        {"kind": "hop", "each": "questions", "prompt": "value", "answers": "[row.answer, row.aliases]"},
        {"kind": "letter", "prompt": "quiz.question", "answers": "quiz.right", "choices": "quiz.options",
         "protocol": "choice"},
        {"kind": "locality", "each": "near", "prompt": "value", "expect": "unchanged"},
    ],
    "combine": {"hop_any": {"kind": "hop", "how": "any"}, "hop_all": {"kind": "hop", "how": "all"}},
}  # fmt: skip
ROW: dict[str, Any] = {
    "name": "c7",
    "facts": [
        {"cloze": "The home of {} is", "about": "Ada", "new": {"text": "Rome"}, "old": "Oslo"},
        {"cloze": "The mayor of {} is", "about": "Rome", "new": {"text": "Bela"}, "old": "Carl"},
    ],
    "questions": ["Who is the mayor where Ada lives?", "Ada's mayor is"],
    "answer": "Bela",
    "aliases": ["Bela the First", "Bela"],
    "quiz": {"question": "Ada lives in A Oslo B Rome. Answer:", "right": "B", "options": ["A", "B"]},
    "near": ["The home of Max is"],
}


def as_edit(row: dict[str, Any]) -> Edit:
    return data.module(data.TASKS / "edits" / "own" / "functions.py").edit(row)  # type: ignore[no-any-return]


def read(row: dict[str, Any], rule: dict[str, Any] = RULE) -> Case:
    (case,) = read_cases(rule_of("toy", rule, "toy.yaml"), [row], as_edit)
    return case


def changed(value: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(value)), **change}


def test_edits_of_one_case_belong_together() -> None:
    case = read(ROW)
    assert [(e.id, e.case, e.text, e.target, e.target_old) for e in case.edits] == [
        ("c7.1", "c7", "The home of Ada is", "Rome", "Oslo"),
        ("c7.2", "c7", "The mayor of Rome is", "Bela", "Carl"),
    ]
    alone = read(changed(ROW, facts=ROW["facts"][:1]))
    assert [(e.id, e.case, e.belongs_to) for e in alone.edits] == [("c7", None, "c7")]


def test_questions_are_picked_with_their_answers() -> None:
    asked = read(ROW).probes
    assert [(q.kind, q.protocol, q.prompt) for q in asked] == [
        ("rewrite", "generation", "The home of Ada is"),
        ("rewrite", "probability", "The home of Ada is"),
        ("rewrite", "generation", "The mayor of Rome is"),
        ("rewrite", "probability", "The mayor of Rome is"),
        ("hop", "generation", "Who is the mayor where Ada lives?"),
        ("hop", "generation", "Ada's mayor is"),
        ("letter", "choice", "Ada lives in A Oslo B Rome. Answer:"),
        ("locality", "generation", "The home of Max is"),
    ]
    assert asked[1].rival == "Oslo"
    assert asked[4].answers == ("Bela", "Bela the First")  # each alias once
    assert asked[6].choices == ("A", "B")
    assert (asked[7].answers, asked[7].expect) == ((), "unchanged")


def test_a_row_without_a_kind_is_not_asked_about_it() -> None:
    bare = {key: value for key, value in ROW.items() if key not in ("quiz", "near", "questions")}
    assert {q.kind for q in read(bare).probes} == {"rewrite"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "'name' finds nothing; the row has name, facts"),
        ({"facts": "Ada"}, "'facts' finds Ada, expected a list; the row has name, facts"),
        ({"facts": [{"cloze": "{} is", "about": "Ada"}]}, "'new.text' finds nothing for the edit's target; it has"),
        ({"facts": [{"cloze": ["x"], "about": "Ada", "new": {"text": "R"}}]}, "for the edit's prompt, expected a text"),
        ({"answer": "", "aliases": []}, "its hop question 'Who is the mayor where Ada lives?' has no answer"),
        ({"facts": [{"cloze": "The home of {} is", "about": "Ada", "new": {"text": "Rome"}, "old": "Rome"}]},
         "has 'Rome' both as an answer and as the rival"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_a_case_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match="toy, row 1: ") as error:
        read(changed(ROW, **change))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit": {}}, "'edit' is no field of it (did you mean edits?)"),
        ({"edits": {"promt": "x"}}, "'promt' is no field of it (did you mean prompt?)"),
        ({"edits": {"prompt": "a[", "target": "b"}}, "'a[' is no JMESPath"),
        ({"probes": []}, "probes is [], expected a list of probes"),
        ({"probes": [{"kind": "hop", "prompt": "q"}]}, "no 'answers'"),
        ({"probes": [{"kind": "hop", "prompt": "q", "answers": "a", "protocol": "guess"}]}, "protocol is 'guess'"),
        ({"probes": [{"kind": "hop", "prompt": "q", "answers": "a", "protocol": "probability"}]}, "to the 'rival'"),
        ({"combine": {"any": {"kind": "hops", "how": "any"}}}, "kind is 'hops' (did you mean hop?)"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_read_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"toy\.yaml") as error:
        rule_of("toy", changed(RULE, **change), "toy.yaml")
    assert said in str(error.value)


def test_an_id_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DataError, match="the id c7 occurs twice"):
        read_cases(rule_of("toy", RULE, "toy.yaml"), [ROW, ROW], as_edit)


# --- the exam ---------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def exam(folder: Path, rows: list[dict[str, Any]], rule: dict[str, Any] = RULE) -> CaseExam:
    """The exam of rows that lie beside their YAML."""
    (folder / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"citation": "none", "files": {"test": {"path": "toy.jsonl"}}}
    said = {"task": "toy", "metadata": {"version": 1.0, "source": source, "case": rule}}
    (folder / "toy.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    made = CaseExam({"task": "toy", "metadata": {**said["metadata"], "config_source": str(folder / "toy.yaml")}})  # type: ignore[dict-item]
    made.bind(Letters(), exact=True)
    return made


def scored(made: CaseExam, kind: str, protocol: str, results: list[Any]) -> dict[str, tuple[float, float]]:
    (doc,) = [d for d in made.eval_docs if (d["kind"], d["protocol"]) == (kind, protocol)]
    asked = made.construct_requests(doc, doc["prompt"], metadata=("toy", 0, 1))
    assert len(asked) == len(results)
    return {metric: (ratio.num, ratio.den) for metric, ratio in made.process_results(doc, results).items()}


def test_metrics_are_those_of_the_questions(tmp_path: Path) -> None:
    made = exam(tmp_path, [ROW])
    assert made.metrics == [
        "rewrite_exact_match",
        "rewrite_success",
        "hop_exact_match",
        "letter_choice",
        "hop_any",
        "hop_all",
    ]
    assert scored(made, "rewrite", "generation", [" Rome, of course", " Berlin"]) == {"rewrite_exact_match": (1, 2)}
    assert scored(made, "hop", "generation", [" no idea", " bela the first!"]) == {
        "hop_exact_match": (1, 2), "hop_any": (1, 1), "hop_all": (0, 1),
    }  # fmt: skip
    assert scored(made, "hop", "generation", ["Bela", "Bela."])["hop_all"] == (1, 1)


def test_probabilities_are_compared_by_token(tmp_path: Path) -> None:
    from harness.exam.token_tasks import Forced

    made = exam(tmp_path, [ROW])
    # Rome beats Oslo by token though not in sum; Bela loses to Carl.
    given = [Forced(-6.0, 6, 0), Forced(-5.0, 4, 0), Forced(-3.0, 1, 0), Forced(-2.0, 1, 1)]
    assert scored(made, "rewrite", "probability", given) == {"rewrite_success": (1, 2)}
    given = [Forced(float("nan"), 6, 0), Forced(-5.0, 4, 0), Forced(-1.0, 1, 0), Forced(-2.0, 1, 1)]
    assert scored(made, "rewrite", "probability", given) == {"rewrite_success": (1, 1)}  # what is no number is missing
    assert scored(made, "letter", "choice", [Forced(-1.0, 1, 0), Forced(-0.5, 1, 1)]) == {"letter_choice": (1, 1)}
    assert scored(made, "letter", "choice", [Forced(-0.5, 1, 1), Forced(-0.5, 1, 0)]) == {"letter_choice": (0, 1)}


def test_accuracy_is_the_share_of_the_tokens_of_the_best_alias(tmp_path: Path) -> None:
    from harness.exam.token_tasks import Forced

    rule = changed(RULE, probes=[{**RULE["probes"][1], "protocol": "accuracy"}], combine={})
    given = [Forced(-1.0, 4, 1), Forced(-1.0, 10, 6), Forced(-1.0, 4, 4), Forced(-1.0, 10, 0)]
    assert scored(exam(tmp_path, [ROW], rule), "hop", "accuracy", given) == {"hop_accuracy": (10, 14)}


def test_languages_have_columns_of_their_own(tmp_path: Path) -> None:
    rule = changed(
        RULE,
        probes=[{"kind": "paraphrase", "each": "said", "prompt": "text", "answers": "right", "language": "lang"}],
        combine={},
    )
    row = {
        **ROW,
        "said": [{"text": "Wo?", "right": "Rom", "lang": "de"}, {"text": "Ou?", "right": "Rome", "lang": "fr"}],
    }
    made = exam(tmp_path, [row], rule)
    assert made.metrics == ["paraphrase_exact_match", "paraphrase_exact_match.de", "paraphrase_exact_match.fr"]
    german = next(d for d in made.eval_docs if d["language"] == "de")
    assert made.process_results(german, ["Rom"])["paraphrase_exact_match.de"].num == 1


def test_what_must_stay_is_compared_with_the_unedited_model(tmp_path: Path) -> None:
    made = exam(tmp_path, [ROW])
    assert made.config.metadata["agreement"] == {"locality_agreement": {"kind": "locality"}}
    (doc,) = [d for d in made.eval_docs if d["kind"] == "locality"]
    assert made.process_results(doc, ["anything"]) == {}


# --- MQuAKE -----------------------------------------------------------------------------------------------------------


def test_the_right_answers_of_mquake_agree_with_published_verdicts() -> None:
    """The published verdicts of 3,000 cases hold the three answers against the answer from *before* the edits."""
    found, told = SHARED / "mquake" / "MQuAKE-CF-3k.jsonl.gz", SHARED / "published" / "mello_cf3k_percase.jsonl.gz"
    if not found.is_file():
        pytest.skip("needs the real data beside the project")
    cases = {
        case.id: case
        for case in CaseSet.read(data.TASKS / "edits" / "mquake" / "mquake.yaml").cases(str(SHARED), "test")
    }
    with gzip.open(told, "rt", encoding="utf-8") as file:
        verdicts = [json.loads(line) for line in file]
    assert len(cases) == len(verdicts) == 3000
    assert sum(len(case.edits) for case in cases.values()) == 6015

    def right(verdict: dict[str, Any], kind: str) -> bool:
        answers = {a for q in cases[str(verdict["case_id"])].probes if q.kind == kind for a in q.answers}
        return any(said in answers for said in verdict["preds"])

    assert all(right(verdict, "hop_old") == verdict["succ"] for verdict in verdicts)
    assert sum(right(verdict, "hop_old") for verdict in verdicts) == 389  # 12.97 %
    assert sum(right(verdict, "hop") for verdict in verdicts) == 732
