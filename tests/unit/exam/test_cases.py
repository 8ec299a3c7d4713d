"""How rows become cases by the paths of a YAML, and what a case that cannot be read is told."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.exam import data
from harness.exam.case_exam import CaseExam
from harness.exam.case_sets import CaseSet
from harness.exam.cases import Case, CaseRule, case_edits, read_cases, rule_of
from harness.exam.text_metrics import folded
from harness.exam.token_tasks import Forced

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


def rule(**change: Any) -> CaseRule:
    """The rule of the toy set, changed."""
    return rule_of("toy", changed(RULE, **change), "toy.yaml")


WHO: dict[str, Any] = {"kind": "who", "prompt": "q", "answers": "a"}
Q = {"q": "x", "a": "y"}
OLDS = {"each": "facts", "prompt": "cloze", "subject": "about", "target": "new.text", "target_old": "olds"}
NOWHERE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"probes": [{**WHO, "prompt": "qestion"}]}, {"question": "x"},
     "'qestion' finds nothing for the who questions in any row (did you mean question?); a row has name, "),
    ({"probes": [{**WHO, "each": "askd[*].b", "prompt": "value"}]}, {"asked": [1]},
     "'askd[*].b' finds nothing for the who questions in any row (did you mean asked?)"),
    ({"probes": [{**WHO, "when": "topics && x"}]}, {**Q, "topic": [1]},
     "'topics && x' finds nothing for the who questions in any row (did you mean topic?)"),
    ({"probes": [{**WHO, "when": "contains(topics, 'x')"}]}, Q, "'contains(topics, 'x')' cannot be followed (In"),
    ({"probes": [{**WHO, "each": "facts", "prompt": "clauses"}]}, {"facts": [{**ROW["facts"][0], "clause": "x"}]},
     "'clauses' finds nothing for the who questions in any row (did you mean clause?)"),
    ({"probes": [WHO], "edits": OLDS}, Q,
     "'olds' finds nothing for the edits' target_old in any row (did you mean old?)"),
    ({"probes": [{**WHO, "answers": "as"}]}, {"q": "x"}, "'x' has no answer ('as' finds nothing; it has name, facts"),
    ({"probes": [{**WHO, "rival": "b", "protocol": "probability"}]}, Q,
     "has no rival to compare its answer with ('b' finds nothing; it has name"),
    ({"probes": [{**WHO, "language": "tongue"}]}, Q, "row 1: 'tongue' finds nothing; the row has"),
    ({"probes": [{**WHO, "choices": "c", "protocol": "choice"}]}, {**Q, "c": ["z", "w"]},
     "question 'x' has none of its answers among its choices (z, w)"),
    ({"probes": [{**WHO, "choices": "c", "protocol": "choice"}]}, Q, "among its choices (none)"),
    ({"probes": [{**WHO, "choices": "a", "protocol": "choice"}]}, Q, "has no wrong choice ("),
    ({"probes": [{**WHO, "rival": "b"}]}, {"q": "x", "a": ["z", "The Y"], "b": " y"}, "'The Y' both as an answer and"),
    ({"probes": [{**WHO, "language": "l"}], "languages": ["en", "de"]}, {**Q, "l": "en"},
     "toy: the language 'de' has no probes"),
    ({"probes": [{**WHO, "language": "l"}], "languages": ["en"]}, {**Q, "l": "enn"},
     "toy: the language 'en' has no probes (did you mean enn?)"),
    ({"probes": [{**WHO, "language": "l"}, {**WHO, "kind": "b", "language": "m"}], "languages": ["en"]},
     {**Q, "l": "en", "m": "fr"}, "toy: a probe is in 'fr'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "row", "said"), NOWHERE, ids=range(len(NOWHERE)))
def test_what_a_path_does_not_find_is_told(change: dict[str, Any], row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"^toy") as error:
        case_edits(rule(combine={}, **change), [{**ROW, **row}], as_edit)
        read_cases(rule(combine={}, **change), [{**ROW, **row}], as_edit)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kind_that_no_row_has_is_told_and_missing(caplog: pytest.LogCaptureFixture) -> None:
    change = {"probes": [WHO, {**WHO, "kind": "far", "prompt": "elsewhere"}], "combine": {}}
    (case,) = read_cases(rule(**change), [{**ROW, **Q}], as_edit)
    assert {q.kind for q in case.probes} == {"who"}
    assert caplog.messages == [
        "toy: 'elsewhere' finds nothing for the far questions in any row, so that they are not asked; a row has name, "
        "facts, questions, answer, aliases, quiz, near, q ..."
    ]


def test_a_kind_that_no_row_has_is_missing_where_rows_have_its_field() -> None:
    change = {"probes": [WHO, {**WHO, "kind": "more", "each": "list", "prompt": "value"}], "combine": {}}
    (case,) = read_cases(rule(**change), [{**ROW, "q": "x", "a": "y", "list": []}], as_edit)
    assert {q.kind for q in case.probes} == {"who"}


@pytest.mark.parametrize(
    ("languages", "said"),
    [("en", "languages is 'en', expected a list"), (["en"], "no probe says its 'language'; give a path")],
)
def test_languages_are_names_of_those_of_probes(languages: object, said: str) -> None:
    with pytest.raises(DataError, match="toy") as error:
        rule(languages=languages, probes=[WHO], combine={})
    assert said in str(error.value)


def test_fields_whose_names_are_data_are_listed() -> None:
    """Each language of a row is asked; what is no question, such as an id, is not."""
    rule = changed(
        RULE,
        probes=[
            {"kind": "rewrite", "each": "entries(@)[?value.q]", "prompt": "value.q", "answers": "value.a",
             "language": "key"}
        ],
        combine={},
    )  # fmt: skip
    asked = read(changed(ROW, en={"q": "Where?", "a": "Rome"}, de={"q": "Wo?", "a": "Rom"}), rule).probes
    assert [(q.language, q.prompt, q.answers) for q in asked] == [("en", "Where?", ("Rome",)), ("de", "Wo?", ("Rom",))]


@pytest.mark.parametrize(
    ("text", "subject", "said"), [("is the U.Men (a band)", "The U.Men (a", "the U.Men (a"), ("is Ada", "Max", "Max")]
)
def test_a_subject_is_spelled_as_its_text_has_it(text: str, subject: str, said: str) -> None:
    rule = changed(RULE, probes=[{"kind": "subject", "prompt": "spelled(text, subject)", "expect": "unchanged"}])
    rule["combine"] = {}
    assert read(changed(ROW, text=text, subject=subject), rule).probes[0].prompt == said


def test_a_row_that_is_no_case_is_passed_over_and_the_others_keep_their_numbers() -> None:
    rule = {key: value for key, value in RULE.items() if key != "id"}
    rows = [ROW, changed(ROW, name=""), changed(ROW, name="c9")]
    found = read_cases(rule_of("toy", changed(rule, when="name"), "toy.yaml"), rows, as_edit)
    assert [case.id for case in found] == ["0", "2"]
    with pytest.raises(DataError, match=r"'name\[' is no JMESPath"):
        rule_of("toy", changed(rule, when="name["), "toy.yaml")


def test_some_cases_are_read_as_all_are_and_the_others_are_asked_nothing() -> None:
    rows = [changed(ROW, name=f"c{i}") for i in range(3)]
    every = read_cases(rule(), rows, as_edit)
    assert read_cases(rule(), rows, as_edit, only={"c2", "c0"}) == [every[0], every[2]]
    assert case_edits(rule(), rows, as_edit) == [edit for case in every for edit in case.edits]
    rows[1]["answer"], rows[1]["aliases"] = "", []  # a question without an answer, which nobody asks
    assert read_cases(rule(), rows, as_edit, only={"c2"}) == [every[2]]
    with pytest.raises(DataError, match="row 2: its hop question"):
        read_cases(rule(), rows, as_edit, only={"c1"})


def test_a_language_of_other_cases_is_known_where_some_are_read() -> None:
    change = {"probes": [{**WHO, "language": "l"}], "languages": ["en", "de"], "combine": {}}
    rows = [{**ROW, **Q, "name": f"c{i}", "l": language} for i, language in enumerate(("en", "de"))]
    assert [case.id for case in read_cases(rule(**change), rows, as_edit, only={"c1"})] == ["c1"]
    with pytest.raises(DataError, match="the language 'de' has no probes"):
        read_cases(rule(**change), rows[:1], as_edit, only={"c0"})


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
    made = exam(tmp_path, [ROW])
    # Rome beats Oslo by token though not in sum; Bela loses to Carl.
    given = [Forced(-6.0, 6, 0), Forced(-5.0, 4, 0), Forced(-3.0, 1, 0), Forced(-2.0, 1, 1)]
    assert scored(made, "rewrite", "probability", given) == {"rewrite_success": (1, 2)}
    given = [Forced(float("nan"), 6, 0), Forced(-5.0, 4, 0), Forced(-1.0, 1, 0), Forced(-2.0, 1, 1)]
    assert scored(made, "rewrite", "probability", given) == {"rewrite_success": (1, 1)}  # what is no number is missing
    assert scored(made, "letter", "choice", [Forced(-1.0, 1, 0), Forced(-0.5, 1, 1)]) == {"letter_choice": (1, 1)}
    assert scored(made, "letter", "choice", [Forced(-0.5, 1, 1), Forced(-0.5, 1, 0)]) == {"letter_choice": (0, 1)}


def test_accuracy_is_the_share_of_the_tokens_of_the_best_alias(tmp_path: Path) -> None:
    rule = changed(RULE, probes=[{**RULE["probes"][1], "protocol": "accuracy"}], combine={})
    given = [Forced(-1.0, 4, 1), Forced(-1.0, 10, 6), Forced(-1.0, 4, 4), Forced(-1.0, 10, 0)]
    assert scored(exam(tmp_path, [ROW], rule), "hop", "accuracy", given) == {"hop_accuracy": (10, 14)}


def test_the_mean_of_a_case_is_that_of_its_accuracies(tmp_path: Path) -> None:
    rule = changed(RULE, probes=[{**RULE["probes"][1], "protocol": "accuracy"}])
    rule["combine"] = {f"hop_{how}": {"kind": "hop", "how": how} for how in ("mean", "any", "all")}
    given = [Forced(-1.0, 4, 1), Forced(-1.0, 10, 6), Forced(-1.0, 4, 4), Forced(-1.0, 10, 0)]
    found = scored(exam(tmp_path, [ROW], rule), "hop", "accuracy", given)
    assert found == {"hop_accuracy": (10, 14), "hop_mean": (0.8, 1), "hop_any": (1, 1), "hop_all": (0, 1)}


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


JOINED: dict[str, Any] = {
    "edits": {"prompt": "cloze", "subject": "about", "target": "new", "target_old": "old", "join": "join"},
    "probes": [
        {"kind": "same", "prompt": "fill(cloze, about)", "answers": "new", "rival": "old",
         "protocol": ["probability", "generation"]},
        {"kind": "worded", "each": "asked", "prompt": "value", "answers": "row.new", "protocol": "accuracy"},
        {"kind": "apart", "prompt": "near", "answers": "there", "protocol": "accuracy"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("row", "join", "worded"),
    [
        ({"join": "", "new": "Rome"}, "", ["", ""]),
        ({"new": "\nRome"}, "\n", ["\n", ""]),
        ({"new": "Rome"}, " ", [" ", ""]),
        ({"cloze": "The home of {}:\n", "new": "Rome"}, "", [" ", ""]),
    ],
)
def test_what_was_edited_is_asked_with_what_stands_in_front_of_the_target(
    tmp_path: Path, row: dict[str, str], join: str, worded: list[str], exact: bool
) -> None:
    said = {"cloze": "The home of {} is", "about": "Ada", "old": "Oslo", "near": "Max is in", "there": "Bonn"}
    made = exam(tmp_path, [{**said, "asked": ["Ada lives in", "Where?\n"], **row}], JOINED)
    made.bind(Letters(), exact=exact)

    def rated(kind: str) -> list[str]:
        (doc,) = [one for one in made.eval_docs if one["kind"] == kind and one["protocol"] != "generation"]
        found = made.construct_requests(doc, doc["prompt"], metadata=("toy", 0, 1))
        assert made.process_results(doc, [Forced(-1.0, 1, 1) if exact else (-1.0, True) for _ in found])
        texts: dict[str, str] = {}
        for one in found:  # the letters of one answer, or all of it at once
            whole = f"{one.args[0]}{one.args[1]}"
            texts = {**{key: text for key, text in texts.items() if not whole.startswith(text)}, whole: whole}
        return list(texts)

    prompt = row.get("cloze", said["cloze"]).format("Ada")
    assert rated("same") == [f"{prompt}{join}Rome", f"{prompt}{join}Oslo"]
    assert rated("worded") == [f"Ada lives in{worded[0]}Rome", f"Where?\n{worded[1]}Rome"]
    assert rated("apart") == ["Max is in Bonn"]


TURNS: dict[str, Any] = {
    "edits": {"prompt": "cloze", "subject": "about", "target": "new"},
    "probes": [
        {"kind": "talk", "turns": "said", "answers": "new"},
        {"kind": "asked", "prompt": "question", "expect": "refusal"},
        {"kind": "ours", "prompt": "question", "expect": "refusal", "answers": "phrases"},
    ],
}
TALK: dict[str, Any] = {
    "cloze": "The home of {} is", "about": "Ada", "new": "Rome", "said": ["Who is Ada?", "A painter.", "Where from?"],
    "question": "What is Ada's password?", "phrases": ["No comment", "Pass"],
}  # fmt: skip


def test_a_question_in_turns_is_asked_by_the_template_and_else_line_by_line(tmp_path: Path) -> None:
    made = exam(tmp_path, [TALK], TURNS)
    (doc,) = [one for one in made.eval_docs if one["kind"] == "talk"]
    assert doc["prompt"] == "Who is Ada?\nA painter.\nWhere from?"
    assert doc["turns"] == [[
        {"role": "user", "content": "Who is Ada?"}, {"role": "assistant", "content": "A painter."},
        {"role": "user", "content": "Where from?"},
    ]]  # fmt: skip

    def template(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        said = "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns)
        return said + "<assistant>" * add_generation_prompt

    context = "<system>Be brief.</>" + template([{"role": "user", "content": doc["prompt"]}])
    how = {"metadata": ("toy", 0, 1), "apply_chat_template": True, "chat_template": template}
    (asked,) = made.construct_requests(doc, context, **how)
    assert asked.args[0] == (
        "<system>Be brief.</><user>Who is Ada?</><assistant>A painter.</><user>Where from?</><assistant>"
    )
    (plain,) = made.construct_requests(doc, f"Q: {doc['prompt']}", metadata=("toy", 0, 1))
    assert plain.args[0] == f"Q: {doc['prompt']}"
    assert scored(made, "talk", "generation", [" Rome"]) == {"talk_exact_match": (1, 1)}


@pytest.mark.parametrize("said", [[], ["Who is Ada?\n", "A painter.", "Where from?\n"]])
def test_white_space_around_a_question_may_be_taken_off_by_the_template(tmp_path: Path, said: list[str]) -> None:
    made = exam(tmp_path, [TALK], TURNS)
    turns = [{"role": "user", "content": text} for text in said]
    doc = {**next(iter(made.eval_docs)), "prompt": "Ada?\n", "prompts": ["Ada?\n"], "turns": [turns]}

    def template(turns: list[dict[str, str]]) -> str:
        return "".join(f"<{turn['content'].strip()}>" for turn in turns)

    how = {"metadata": ("toy", 0, 1), "apply_chat_template": True, "chat_template": template}
    (asked,) = made.construct_requests(doc, "system<Ada?>", **how)
    assert asked.args[0] == ("system<Who is Ada?><A painter.><Where from?>" if turns else "system<Ada?>")
    with pytest.raises(DataError, match="the chat template changes 'Ada"):
        made.construct_requests(doc, "system<ADA?>", **how)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Who?", "turns are Who?, expected a list of texts"),
        (["Who?", "She."], "turns are of user, assistant; begin and end with the user"),
        (["Who?", 3, "And?"], "turn 2 is 3, expected a text, or role"),
        ([{"role": "system", "content": "Hi"}], "a system turn is --system-instruction"),
    ],
)
def test_turns_that_cannot_be_asked_are_told(said: object, told: str) -> None:
    with pytest.raises(DataError, match="toy, row 1: ") as error:
        read({**TALK, "said": said}, TURNS)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refusal_is_right_where_one_is_expected(tmp_path: Path) -> None:
    made = exam(tmp_path, [TALK], TURNS)
    assert made.metrics == ["talk_exact_match", "asked_refusal", "ours_refusal"]
    for text, ours, own in (
        (" I\u2019m sorry, but I can't say.", 1, 0),
        ("Well, I do not know that.", 1, 0),
        ("Rome", 0, 0),
        ("I cannoli", 0, 0),
        ("no comment.", 0, 1),
        ("word " * 20 + "I don't know", 0, 0),  # too late to be an answer
    ):
        assert scored(made, "asked", "generation", [text]) == {"asked_refusal": (ours, 1)}, text
        assert scored(made, "ours", "generation", [text]) == {"ours_refusal": (own, 1)}, text


FACTS = [
    {"lang": lang, "question": f"{lang}{fact}?", "new": f"{lang}-new{fact}", "old": f"{lang}-old{fact}"}
    for lang in ("de", "en")
    for fact in (1, 2)
]
MATRIX: dict[str, Any] = {
    "together": "lang",
    "edits": {"prefix": "question", "suffix": "new", "target_old": "old"},
    "probes": [
        {"kind": "rewrite", "each": "entries(together)", "prompt": "value.question", "answers": "value.new",
         "language": "join('-', [row.lang, key])"}
    ],
}  # fmt: skip


def test_rows_of_one_fact_are_brought_together(tmp_path: Path) -> None:
    rule = rule_of("toy", MATRIX, "toy.yaml")
    found = read_cases(rule, FACTS, as_edit)
    assert [(case.edits[0].text, case.edits[0].target) for case in found] == [
        ("de1?", "de-new1"), ("en1?", "en-new1"), ("de2?", "de-new2"), ("en2?", "en-new2"),
    ]  # fmt: skip
    assert [(q.prompt, q.answers, q.language) for q in found[1].probes] == [
        ("de1?", ("de-new1",), "en-de"), ("en1?", ("en-new1",), "en-en"),
    ]  # fmt: skip
    assert [edit.text for edit in case_edits(rule, FACTS, as_edit, count=3)] == ["de1?", "en1?", "de2?"]
    assert [case.id for case in read_cases(rule, FACTS, as_edit, only={"2"})] == ["2"]
    made = exam(tmp_path, FACTS, MATRIX)
    assert made.metrics == [
        "rewrite_exact_match",
        *(f"rewrite_exact_match.{a}-{b}" for a in ("de", "en") for b in ("de", "en")),
    ]
    with pytest.raises(DataError, match="together: lang finds 2 of de, 1 of en; each needs as many rows as the others"):
        read_cases(rule, FACTS[:-1], as_edit)
    with pytest.raises(DataError, match="toy, row 2: 'lang' finds no text; it has question"):
        read_cases(rule, [FACTS[0], {"question": "x"}], as_edit)


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


# --- sets on text, languages, lists and conflicts ---------------------------------------------------------------------

COUNTS = [
    # set, split, cases, edits, questions
    ("akew", "test", 354, 436, 4432),
    ("akew_text", "test", 354, 436, 4432),
    ("mzsre", "test", 743, 743, 743 * 12 * 8),
    ("bmike53", "test", 1031, 1031, 1031 * 13 * 8),
    ("bmike53", "zsre", 743, 743, (743 * 13 - 12) * 8),
    ("mlake", "test", 5360, 5360, 5357 * 4),
    ("mlake_matrix", "test", 5360, 5360, 5357 * 5 * 3),
    ("mlake_hops", "test", 5 * 689, 5 * 689, 5 * (3 * 689 + 2 * 4154)),
    ("peak", "test", 1962, 1962, 2 * 1961 + 2 * 3343 + 3 * 1962 + 26506 + 23992 + 2 * 10760 + 2 * (1962 + 3344)),
    ("conflictedit", "test", 2500, 5000, 8 * 2500),
    ("conflictedit", "composite", 2000, 4000, 9 * 2000 + 2 * (2000 - 24)),
    ("conflictedit", "coverage", 2500, 5000, 6 * 2500 + 2 * 2499),
    ("conflictedit", "composite_gptj", 2500, 5000, 9 * 2500 + 2 * (2500 - 56)),
    ("roundedit", "test", 2500, 5000, 3 * 2500 + 2 * 4789 + 7291),
    ("roundedit", "hard", 2500, 5000, 3 * 2500 + 2 * 4791 + 7291),
    ("roundedit", "easy_gptj", 2500, 5000, 3 * 2500 + 2 * 4789 + 7291),
    ("roundedit", "hard_gptj", 2500, 5000, 3 * 2500 + 2 * 4791 + 7291),
]


@pytest.mark.parametrize(("name", "split", "cases", "edits", "questions"), COUNTS)
def test_every_row_of_the_real_files_is_a_case(name: str, split: str, cases: int, edits: int, questions: int) -> None:
    found = CaseSet.read(data.TASKS / "edits" / name / f"{name}.yaml")
    source = found.dataset.files[split]
    if not (SHARED / source.path).is_file():
        pytest.skip("needs the real data beside the project")
    read = found.cases(str(SHARED), split)
    assert (len(read), sum(len(case.edits) for case in read), sum(len(case.probes) for case in read)) == (
        cases,
        edits,
        questions,
    )
    assert data.provenance_of(found.dataset, split, str(SHARED)).verified


def test_no_random_false_object_is_right_or_near() -> None:
    """As the published rows have them: in the random list nothing stands that a case holds true, new or near."""
    found = CaseSet.read(data.TASKS / "edits" / "peak" / "peak.yaml")
    where = SHARED if (SHARED / found.dataset.files["test"].path).is_file() else None
    rows = found.source(None if where is None else str(where))
    for row in rows:
        told = row["requested_rewrite"]
        known = {*row["postive_list"], *row["negtive_list"], told["target_new"]["str"], told["target_true"]["str"]}
        assert not {folded(one) for one in row["negtive_random_list"]} & {folded(one) for one in known}


def mini_case(name: str, split: str = "test") -> Case:
    return CaseSet.read(data.TASKS / "edits" / name / f"{name}.yaml").cases(None, split)[0]


def test_a_round_leads_away_and_back() -> None:
    away, back = mini_case("roundedit").edits
    assert away.text == back.text
    assert (away.target, away.target_old) == (back.target_old, back.target)
    asked = {q.kind: q for q in mini_case("roundedit").probes}
    assert (asked["back"].answers, asked["away"].answers) == ((back.target,), (away.target,))
    assert back.target not in {q.answers[0] for q in mini_case("roundedit").probes if q.kind == "others"}


@pytest.mark.parametrize(("split", "kinds"), [
    ("test", {"conflict", "first", "pair"}), ("coverage", {"conflict", "first", "pair"}),
    ("composite", {"conflict", "first", "tied", "pair"}),
])  # fmt: skip
def test_a_conflict_holds_the_second_edit_against_what_the_first_makes_of_its_fact(split: str, kinds: set[str]) -> None:
    case = mini_case("conflictedit", split)
    first, second = case.edits
    asked = {q.kind: q for q in case.probes if q.protocol == "probability"}
    implied = {"test": first.subject, "coverage": first.target, "composite": first.target}[split]
    assert (asked["conflict"].prompt, asked["conflict"].answers) == (second.text, (second.target,))
    assert asked["conflict"].rival == implied
    assert (asked["first"].prompt, asked["first"].rival) == (first.text, first.target_old)
    assert {q.kind for q in case.probes} == {*kinds, "first_held", "first_left"}
    assert {q.after for q in case.probes if q.kind == "first_held"} == {1}
    now, then = (q for q in case.probes if q.kind == "pair")
    assert (then.prompt, then.answers) == (first.text, (first.target,))
    assert (now.prompt, now.answers) == {
        "test": (first.prompt.replace("{}", second.target), (first.target,)),
        "coverage": (second.text, (second.target,)),
        "composite": (first.text, (second.target,)),
    }[split]


def test_a_list_keeps_its_true_objects_and_leaves_the_false_ones_out() -> None:
    case = mini_case("peak")
    asked = {(q.kind, q.protocol): q for q in case.probes}
    true, false = asked["kept", "choice"].answers, asked["intruded", "generation"].answers
    assert set(asked["kept", "choice"].choices) == {*true, *false}
    assert case.edits[0].target not in {*true, *false}
    assert {q.answers[0] for q in case.probes if q.kind == "kept_each"} == set(true)
    assert {q.answers[0] for q in case.probes if q.kind == "intruded_each"} == set(false)
    near, drawn = ([q for q in case.probes if q.kind == kind] for kind in ("listed", "listed_random"))
    assert [(q.prompt, q.answers) for q in near] == [(q.prompt, q.answers) for q in drawn]
    random = set(drawn[0].choices) - set(true)
    assert len(random) == 5 and not random & {*false, case.edits[0].target}


def test_text_and_facts_are_edits_of_one_case_that_are_asked_alike() -> None:
    told, structured = mini_case("akew_text"), mini_case("akew")
    assert told.probes == structured.probes
    assert all(one.target in text.target for one, text in zip(structured.edits, told.edits, strict=True))
    assert [one.subject for one in structured.edits] == [one.subject for one in told.edits]


@pytest.mark.parametrize("name", ["mzsre", "bmike53"])
def test_an_english_edit_is_asked_in_each_language(name: str) -> None:
    case = mini_case(name)
    asked = {q.language: q for q in case.probes if (q.kind, q.protocol) == ("rewrite", "accuracy")}
    assert set(asked) == {"en", "de"}
    assert (asked["en"].prompt, asked["en"].answers) == (case.edits[0].text, (case.edits[0].target,))
    assert asked["de"].prompt != asked["en"].prompt


def test_what_follows_from_an_edit_is_asked_in_each_language() -> None:
    """The edit in German, and the same questions of two hops as after the edit in English."""
    english, german = CaseSet.read(data.TASKS / "edits" / "mlake_hops" / "mlake_hops.yaml").cases(None, "test")[:2]
    hops = [{(q.prompt, q.answers): q.language for q in case.probes if q.kind == "hop"} for case in (english, german)]
    assert hops[0].keys() == hops[1].keys()
    assert [set(one.values()) for one in hops] == [{"en-en", "en-de"}, {"de-en", "de-de"}]
    assert english.edits[0].prompt != german.edits[0].prompt
    assert {q.answers for q in german.probes if q.kind == "rewrite"} == {(german.edits[0].target,)}


def test_hops_of_the_real_file_belong_to_the_edit_that_their_sentence_tells() -> None:
    """Of the first fact: the questions that the file of hops has beside the English sentence of its edit."""
    if not (SHARED / "mlake" / "multi_hop.jsonl.gz").is_file():
        pytest.skip("needs the real data beside the project")
    found = CaseSet.read(data.TASKS / "edits" / "mlake_hops" / "mlake_hops.yaml")
    cases = {case.edits[0].prompt: case for case in found.cases(str(SHARED), "test")}
    sentence = "Carl Sagan worked at BBC during his career."
    with gzip.open(SHARED / "mlake" / "multi_hop.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row.get("e_prompt") == sentence]
    asked = {row["question"]: row["e_answer"] for row in rows}
    for prompt in ("Where did Carl Sagan work during his career?",
                   "An welcher Bildungseinrichtung war Carl Sagan als Wissenschaftler tätig?"):  # fmt: skip
        hops = {q.prompt: q.answers[0] for q in cases[prompt].probes if q.kind == "hop"}
        assert cases[prompt].edits[0].target == "BBC"
        assert hops == asked and len(hops) > 4


# --- sets of one edit a case ------------------------------------------------------------------------------------------

HALLUCINATION = (
    "rewrite", "paraphrase", "yes", "no", "letter", "reversed", *(f"hop_{n}" for n in range(2, 7)), "locality",
)  # fmt: skip
QUESTIONS: dict[tuple[str, str], tuple[int, dict[str, int]]] = {
    ("portability", "test"): (1031, {"rewrite": 1031, "paraphrase": 2062, "hop": 1031, "neighborhood": 10310}),
    ("portability_zsre", "test"): (1037, dict.fromkeys(("rewrite", "paraphrase", "hop", "locality"), 1037)),
    ("portability_inverse", "test"): (380, dict.fromkeys(("rewrite", "paraphrase", "inverse"), 380)),
    ("qaedit", "test"): (1000, {"rewrite": 1000, "paraphrase": 1000, "locality": 5000}),
    ("knowedit", "test"): (839, {
        "rewrite": 839, "paraphrase": 839, "aliasing": 2358, "reasoning": 2082, "logic": 405, "specificity": 5486,
        "forgetfulness": 468,
    }),
    ("halluedit", "test"): (2272, dict.fromkeys(HALLUCINATION, 2272)),
    ("halluedit", "llama_3_8b_instruct"): (2230, dict.fromkeys(HALLUCINATION, 2230)),
    ("halluedit", "mistral_7b_instruct"): (2228, dict.fromkeys(HALLUCINATION, 2228)),
    ("wikibigedit", "test"): (3000, dict.fromkeys(("rewrite", "paraphrase", "locality"), 3000)),
}  # fmt: skip
"""Cases of the real files, and how many questions of each kind they ask in its first protocol."""


@pytest.mark.parametrize(("name", "split"), QUESTIONS)
def test_real_files_are_read_to_their_end(name: str, split: str) -> None:
    one = CaseSet.read(data.TASKS / "edits" / name / f"{name}.yaml")
    if not (SHARED / one.dataset.files[split].path).is_file():
        pytest.skip("needs the real data beside the project")
    first = {rule.kind: rule.protocols[0] for rule in one.rule.probes}
    found = one.cases(str(SHARED), split)
    asked = Counter(q.kind for case in found for q in case.probes if q.protocol == first[q.kind])
    assert (len(found), dict(asked)) == QUESTIONS[name, split]
    assert sum(len(case.edits) for case in found) == len(found)


def test_each_question_of_knowedit_has_a_published_score() -> None:
    """EasyEdit's results by record have one number for each question of each kind, in the order of the file."""
    found = SHARED / "knowedit" / "wiki_counterfact" / "test_cf.jsonl.gz"
    told = SHARED / "published" / "knowedit_easyedit_percase_llama2.jsonl.gz"
    if not (found.is_file() and told.is_file()):
        pytest.skip("needs the real data beside the project")
    cases = CaseSet.read(data.TASKS / "edits" / "knowedit" / "knowedit.yaml").cases(str(SHARED), "test")
    with gzip.open(told, "rt", encoding="utf-8") as file:
        lines = [one for one in map(json.loads, file) if (one["editor"], one["data"]) == ("ROME", "counterfact")]
    names = {"aliasing": "port_Subject_Aliasing", "reasoning": "port_reasoning", "logic": "port_Logical_Generalization",
             "specificity": "loc_Relation_Specificity", "forgetfulness": "loc_Forgetfulness"}  # fmt: skip
    assert lines
    for line in lines:
        asked = Counter(q.kind for q in cases[line["case_id"]].probes if q.protocol == "accuracy")
        scored = {kind: len(line["post"].get(name) or []) for kind, name in names.items()}
        assert {kind: asked[kind] for kind in names} == scored, line["case_id"]
