"""The scores of the eight general-ability tasks: plain meaning, and the released scorers number by number.

Test vectors V1-V9 and the oddities 5-18 of the released scorers are described in the cards of the task folders.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.errors import DataError
from harness.exam import answer_scores, data
from harness.exam.statistics import Ratio, aggregate

TASKS = ("ClosedDomainQA", "dialogue", "NER", "NLI", "OpenDomainQA", "reasoning", "SentimentAnalysis", "summarization")


@cache
def _functions(name: str) -> ModuleType:
    module = data.functions(data.find_datasets()[name])
    assert module is not None
    return module


def _values(name: str, cases: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    """Metrics of a data set from (continuation, document) pairs, aggregated as lm-eval does."""
    module = _functions(name)
    found: dict[str, list[Any]] = {}
    for text, doc in cases:
        for metric, value in module.process_results(doc, [text]).items():
            found.setdefault(metric, []).append(value)
    own = {"em_released": module.em_released} if name == "OpenDomainQA" else {}
    return {metric: own.get(metric, aggregate)(items) for metric, items in found.items()}


# --- reading an answer


@pytest.mark.parametrize(
    ("text", "word"),
    [(" Yes", "Yes"), (" yes, he is", "yes"), ("\n\n'no'.", "no"), ("", ""), (" ", ""), (" (A)B", "A)B"), (" ...", "")],
)
def test_first_word(text: str, word: str) -> None:
    assert answer_scores.first_word(text) == word


@pytest.mark.parametrize(
    ("text", "line"), [("\n\n Paris \nQuestion: x", "Paris"), ("", ""), ("\n \n", ""), (" one two", "one two")]
)
def test_first_line(text: str, line: str) -> None:
    assert answer_scores.first_line(text) == line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.A., an example!", "usa example"),
        ("A+", ""),
        ("May 18 , 2018", "may 18 2018"),
        ("Wilhelm Conrad Röntgen<|endoftext|>", "wilhelm conrad röntgenendoftext"),
    ],
)
def test_v1_normalisation(text: str, expected: str) -> None:
    assert answer_scores.normalise(text) == expected


@given(st.text())
def test_normalisation_twice_is_once_on_words_without_articles(text: str) -> None:
    once = answer_scores.normalise(text)
    assert once == " ".join(once.split())
    assert answer_scores.normalise(once.replace("'", "")) == answer_scores.normalise(once)


# --- NLI

NLI = [
    (" True", "entailment"),
    (" False", "not_entailment"),
    (" True", "not_entailment"),
    (" the", "entailment"),
    ("falsetrue", "entailment"),
]


@pytest.mark.parametrize(("case", "counts"), list(zip(NLI, [(1, 1), (1, 1), (0, 1), (0, 0), (1, 2)], strict=True)))
def test_v4_nli_counts(case: tuple[str, str], counts: tuple[int, int]) -> None:
    text, label = case
    assert _functions("NLI").released(text, entailed=label == "entailment") == counts


def test_v4_nli_values_and_oddity_15_double_counting() -> None:
    values = _values("NLI", [(text, {"label": label}) for text, label in NLI])
    assert values["accuracy_answered"] == pytest.approx(3 / 5)
    assert values["accuracy_released"] == pytest.approx(3 / 6)
    # The plain reading: two right of five; " the" and "falsetrue" are no answers and count as wrong.
    assert values["accuracy"] == pytest.approx(2 / 5)
    assert values["invalid_rate"] == pytest.approx(2 / 5)


def test_oddity_15_csv_quoting_and_the_training_split(tmp_path: Path, shared: Path) -> None:
    path = shared / "data" / "general" / "test-NLI.tsv"
    raw = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    rows = data.load("NLI", data_dir=shared / "data")
    changed = [r for r, row in zip(raw, rows, strict=True) if r[1:3] != [row["sentence1"], row["sentence2"]]]
    assert len(changed) == 69
    indices = {int(r[0]) for r in raw}
    assert set(range(2490)) - indices == {2164}


def test_nli_rows_with_another_label(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\tneutral\n")
    with pytest.raises(DataError, match=r"x\.tsv, row 2: label 'neutral'"):
        _functions("NLI").rows(path)


def test_oddity_16_unanswered_documents_are_wrong_not_left_out() -> None:
    collapsed = [(" True", {"label": "entailment"})] + [(" the", {"label": "entailment"})] * 9
    values = _values("NLI", collapsed)
    assert values["accuracy_answered"] == 1.0  # the released first number: perfect, although nine of ten say nothing
    assert values["accuracy"] == values["accuracy_released"] == pytest.approx(0.1)
    assert values["invalid_rate"] == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["NLI", "SentimentAnalysis", "ClosedDomainQA"])
def test_no_answer_at_all_is_missing_where_answers_are_counted(name: str) -> None:
    docs = {"NLI": {"label": "entailment"}, "SentimentAnalysis": {"label": 1}, "ClosedDomainQA": {"answer": True}}
    values = _values(name, [("", docs[name])] * 3)
    assert math.isnan(values["accuracy_answered"])
    assert (values["accuracy"], values["accuracy_released"], values["invalid_rate"]) == (0.0, 0.0, 1.0)


# --- SentimentAnalysis


@pytest.mark.parametrize(
    ("text", "label", "plain", "counts"),
    [
        (" positive", 1, 1.0, (1, 1)),
        (" Negative", 0, 1.0, (1, 1)),
        (" positive", 0, 0.0, (0, 1)),
        ("negativepositive", 1, 0.0, (1, 1)),  # "positive" wins in the released rule
        ("negativepositive", 0, 0.0, (0, 1)),
        (" neutral", 1, 0.0, (0, 0)),
    ],
)
def test_sentiment(text: str, label: int, plain: float, counts: tuple[int, int]) -> None:
    values = _functions("SentimentAnalysis").process_results({"label": label}, [text])
    assert values["accuracy"] == Ratio(plain)
    assert values["accuracy_answered"][:2] == counts


def test_sentiment_labels_must_be_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("sentence\tlabel\ngood \t1\nbad \t2\n")
    with pytest.raises(DataError, match=r"row 2: label '2'"):
        _functions("SentimentAnalysis").rows(path)


# --- ClosedDomainQA

CDQA = [
    (" Yes", True, 1, 1),
    (" no", False, 1, 1),
    (" No", True, 0, 1),
    (" not", False, 1, 1),
    (" maybe", True, 0, 0),
    (" Know", True, 0, 1),
    ("yes", False, 0, 1),
]


@pytest.mark.parametrize(("text", "gold", "correct", "answered"), CDQA)
def test_v5_closed_domain_substring_rule(text: str, gold: bool, correct: int, answered: int) -> None:
    values = _functions("ClosedDomainQA").process_results({"answer": gold}, [text])
    assert values["accuracy_answered"][:2] == (correct, answered)
    assert values["accuracy_released"][:2] == (correct, 1)


@pytest.mark.parametrize(
    ("text", "gold", "correct", "answered"),
    [(" not", False, 0, 0), (" Know", True, 0, 0), ("yes", False, 0, 0), (" Yes", True, 1, 1), (" no", True, 0, 1)],
)
def test_oddity_13_strict_rule_before_editing(text: str, gold: bool, correct: int, answered: int) -> None:
    assert _functions("ClosedDomainQA").released_strict(text, gold) == (correct, answered)


def test_oddity_13_one_rule_for_every_state_of_the_model() -> None:
    values = _values("ClosedDomainQA", [(text, {"answer": gold}) for text, gold, _, _ in CDQA])
    assert values["accuracy_released"] == pytest.approx(3 / 7)  # Yes, no, and " not" for a "no"
    assert values["accuracy_released_strict"] == pytest.approx(2 / 7)
    assert values["accuracy"] == pytest.approx(2 / 7)
    assert values["invalid_rate"] == pytest.approx(3 / 7)  # " not", " maybe", " Know"


# --- dialogue

DIALOGUE = [
    (" A", "A", (1, 1), (1, 1)),
    (" (", "B", (0, 0), (0, 0)),
    (" Chi", "C", (1, 1), (0, 0)),
    (" Ch", "C", (1, 1), (1, 1)),
    (" BA", "A", (1, 1), (1, 1)),
    (" D", "B", (0, 1), (0, 1)),
]


@pytest.mark.parametrize(("text", "gold", "before", "after"), DIALOGUE)
def test_v6_dialogue(text: str, gold: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    module = _functions("dialogue")
    values = module.process_results({"answers": gold}, [text])
    assert module.released(text, gold) == before
    assert values["accuracy_released_chi"].num == before[0]
    assert values["accuracy_answered"][:2] == after
    assert values["accuracy_released"].num == after[0]


def test_oddity_14_one_rule_for_every_state_and_the_plain_letter() -> None:
    values = _values("dialogue", [(text, {"answers": gold}) for text, gold, _, _ in DIALOGUE])
    assert values["accuracy_released"] == pytest.approx(3 / 6)
    assert values["accuracy_released_chi"] == pytest.approx(4 / 6)
    assert values["accuracy"] == pytest.approx(1 / 6)  # only " A"
    assert values["invalid_rate"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(("text", "right"), [(" A.", 1.0), (" (A)", 1.0), (" a", 0.0), (" At", 0.0)])
def test_dialogue_plain_letter(text: str, right: float) -> None:
    assert _functions("dialogue").process_results({"answers": "A"}, [text])["accuracy"] == Ratio(right)


def test_dialogue_rows_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"article": "a", "options": ["1", "2", "3", "4"], "answers": ""}\n')
    with pytest.raises(DataError, match="row 1: expected four options and an answer A, B, C or D, found ''"):
        _functions("dialogue").rows(path)


# --- OpenDomainQA

RONTGEN, PARIS, NEW_YORK, CYRUS = ["Wilhelm Conrad Röntgen"], ["Paris"], ["New York City", "NYC"], ["Cyrus"]
ODQA = [
    (" Wilhelm Conrad Röntgen", RONTGEN, 1, True, 1, 1),
    (" It was Wilhelm Conrad Röntgen in 1901", RONTGEN, 1, True, 1, 0),
    (" maybe Paris or Paris yes", PARIS, 2, False, 1, 0),
    (" Paris<|endoftext|>", PARIS, 0, False, 0, 0),
    (" it is New York City I think", NEW_YORK, 1, True, 1, 0),
    (" in Paris today", PARIS, 1, False, 1, 0),
    (" Cyrus", CYRUS, 1, False, 1, 1),
    ("", CYRUS, 0, False, 0, 0),
]
Odqa = tuple[str, list[str], int, bool, int, int]


@pytest.mark.parametrize("case", ODQA)
def test_v2_open_domain_single_items(case: Odqa) -> None:
    text, golds, increment, sticky, span, exact = case
    module = _functions("OpenDomainQA")
    values = module.process_results({"answer": golds}, [text])
    item = values["em_released"]
    assert module.released_increment(item["words"], set(item["golds"]), False) == (increment, sticky)
    assert (values["contains"].num, values["exact_match"].num) == (span, exact)


def test_v3_open_domain_run() -> None:
    values = _values("OpenDomainQA", [(case[0], {"answer": case[1]}) for case in ODQA])
    assert values == {"em_released": 0.25, "contains": 0.75, "exact_match": 0.25}


def test_v3_increments_one_by_one() -> None:
    module, sticky, increments = _functions("OpenDomainQA"), False, []
    for text, golds, *_ in ODQA:
        words, answers = module.released_words(text), {answer_scores.normalise(gold) for gold in golds}
        increment, sticky = module.released_increment(words, answers, sticky)
        increments.append(increment)
    assert increments == [1, 0, 0, 0, 0, 0, 1, 0]


def test_oddity_05_a_hit_of_several_words_spoils_the_later_documents() -> None:
    first = (" Wilhelm Conrad Röntgen", {"answer": RONTGEN})
    later = [(" it is in Paris today", {"answer": PARIS})] * 4
    assert _values("OpenDomainQA", later)["em_released"] == 1.0
    assert _values("OpenDomainQA", [first, *later])["em_released"] == pytest.approx(1 / 5)
    assert _values("OpenDomainQA", [first, *later])["contains"] == 1.0


def test_oddity_06_several_increments_for_one_document() -> None:
    values = _values("OpenDomainQA", [(" maybe Paris or Paris yes", {"answer": PARIS})])
    assert values["em_released"] == 2.0  # more than all of them
    assert (values["contains"], values["exact_match"]) == (1.0, 0.0)


def test_oddity_07_the_prompt_has_a_cue_and_is_not_searched() -> None:
    config = data.read_yaml(data.TASKS / "general" / "OpenDomainQA" / "OpenDomainQA.yaml")
    assert config["doc_to_text"].endswith("Question: {{question}}. Answer:")
    doc = {"answer": PARIS, "output": ["Paris is the capital."], "question": "what is the capital of france?"}
    assert _values("OpenDomainQA", [(" London", doc)]) == {"em_released": 0.0, "contains": 0.0, "exact_match": 0.0}
    # A model that writes the cue itself is read after the last one, by the released counter only.
    text = " Paris. Answer: Oslo. Answer: Rome\nis it"
    assert _functions("OpenDomainQA").released_words(text) == ["rome", "is", "it"]


def test_oddity_08_end_of_text_and_empty_golds() -> None:
    glued = _values("OpenDomainQA", [(" Paris<|endoftext|>", {"answer": PARIS})])
    clean = _values("OpenDomainQA", [(" Paris", {"answer": PARIS})])
    assert (glued["em_released"], clean["em_released"], clean["exact_match"]) == (0.0, 1.0, 1.0)
    empty = _values("OpenDomainQA", [("", {"answer": ["A+"]}), (" Rome", {"answer": ["A+", "Rome"]})])
    assert empty == {"em_released": 1.0, "exact_match": 1.0, "contains": 1.0}  # the first document counts only there
    nothing = _functions("OpenDomainQA").process_results({"answer": ["A+"]}, [""])
    assert nothing["exact_match"] == nothing["contains"] == Ratio(0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "golds", "right"),
    [
        (" Paris\nQuestion: where", PARIS, 1.0),
        ("\n\nthe Paris.", PARIS, 1.0),
        (" NYC", NEW_YORK, 1.0),
        (" Paris, France", PARIS, 0.0),
    ],
)
def test_open_domain_exact_match_is_of_the_first_line(text: str, golds: list[str], right: float) -> None:
    assert _functions("OpenDomainQA").process_results({"answer": golds}, [text])["exact_match"] == Ratio(right)


@pytest.mark.parametrize(
    ("text", "found"), [("in paris today", True), ("parisian", False), ("new york", False), ("a new york city b", True)]
)
def test_contains_whole_words_only(text: str, found: bool) -> None:
    assert answer_scores.contains_span(text, {"paris", "new york city", ""}) is found


def test_nothing_does_not_contain_an_empty_answer() -> None:
    assert answer_scores.contains_span("", {""}) is False


def test_no_documents_is_not_a_number() -> None:
    assert math.isnan(_functions("OpenDomainQA").em_released([]))


# --- reasoning

REASONING = [
    (" $18 per day", "18", 1, 1),
    (" 180", "18", 1, 0),
    (" 70,000 dollars", "70000", 0, 1),
    (" 13", "3", 1, 0),
    (" -10", "-10", 1, 1),
    (" 2125", "2,125", 0, 1),
]


@pytest.mark.parametrize(("text", "gold", "released", "exact"), REASONING)
def test_v7_reasoning(text: str, gold: str, released: int, exact: int) -> None:
    values = _functions("reasoning").process_results({"answer": f"so it is\n#### {gold}"}, [text])
    assert values["solve_rate_released"] == Ratio(released)
    assert values["exact_match"] == Ratio(exact)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 18.00.", "18"),
        ("-$1,234.5", "-1234.5"),
        (" none", None),
        ("", None),
        (" 5, 6", "5"),
        (" 0.50 cents", "0.5"),
        ("10", "10"),
    ],
)
def test_first_number(text: str, number: str | None) -> None:
    found = _functions("reasoning").first_number(text)
    assert (found is None) == (number is None)
    assert number is None or found == _functions("reasoning").Decimal(number)


def test_oddity_09_the_rationale_is_given_and_the_match_is_a_substring(shared: Path) -> None:
    config = data.read_yaml(data.TASKS / "general" / "reasoning" / "reasoning.yaml")
    assert "{{answer.split('#### ')[0]}} Therefore, the answer (arabic numerals) is:" in config["doc_to_text"]
    rows = data.load("reasoning", data_dir=shared / "data")
    module = _functions("reasoning")
    assert sum("," in module.final(row["answer"]) for row in rows) == 14

    def last_number(row: dict[str, Any]) -> str:
        return " " + module.NUMBER.findall(row["answer"].split(module.MARK)[0])[-1].strip("$")

    values = _values("reasoning", [(last_number(row), row) for row in rows])
    # Copying the last number of the rationale solves nearly everything: the task measures copying.
    assert values["solve_rate_released"] == pytest.approx(0.960, abs=5e-4)
    assert 0.96 < values["exact_match"] < 0.98  # here "70,000" is 70000


def test_reasoning_rows_without_a_final_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "so\\n#### 18"}\n{"question": "q", "answer": "18"}\n')
    with pytest.raises(DataError, match=r"row 2: expected an answer `rationale #### number`"):
        _functions("reasoning").rows(path)


# --- summarization

ROUGE = [
    (
        "Emma and Rob love the advent calendar.",
        "Emma and Rob love the advent calendar. Lauren fits inside calendar various items.",
        0.736842,
        0.666667,
        0.736842,
        0.713450,
        0.527233,
    ),
    (
        "A will go to the shelter",
        "A will go to the animal shelter tomorrow to get a puppy for her son.",
        0.6,
        0.421053,
        0.6,
        0.540351,
        0.300654,
    ),
    ("the cat the cat sat", "the cat sat on the mat", 0.75, 0.5, 0.5, 0.583333, 0.190476),
    ("Tom is happy. Ann is sad.", "Ann is sad. Tom is happy.", 1.0, 0.8, 1.0, 0.933333, 0.690476),
    ("word", "word", 1.0, 0.0, 1.0, 0.666667, 0.0),
    ("no overlap here", "Completely different text.", 0.0, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("hypothesis", "reference", "one", "two", "long", "mean", "chopped"), ROUGE)
def test_v8_rouge(
    hypothesis: str, reference: str, one: float, two: float, long: float, mean: float, chopped: float
) -> None:
    module = _functions("summarization")
    assert module.released_scores(hypothesis, reference) == pytest.approx((one, two, long), abs=1e-6)
    values = module.process_results({"summary": reference}, [hypothesis])
    assert values["rouge_released"].num == pytest.approx(mean, abs=1e-6)
    assert values["rouge_released_chop13"].num == pytest.approx(chopped, abs=1e-6)


def test_released_f_lies_below_the_fraction_by_the_epsilon() -> None:
    one, _, _ = _functions("summarization").released_scores("word", "word")
    assert one == 2 / (2 + 1e-8)


@pytest.mark.parametrize(("end", "lost"), [("<|endoftext|>", 0), ("</s>", 9), ("<|end_of_text|>", -2), ("", 13)])
def test_oddity_10_thirteen_characters_whatever_the_end_of_text_is(end: str, lost: int) -> None:
    module = _functions("summarization")
    summary = "Emma and Rob love the advent calendar"
    shown = (summary + end)[: -module.CHOP]
    assert len(summary) - len(shown) == lost
    values = module.process_results({"summary": summary}, [summary + end])
    assert values["rouge_released_chop13"].num == module.released_rouge(shown, summary)


@pytest.mark.parametrize("text", ["", ".", "....", " ", "a", ". . ."])
def test_oddity_11_texts_of_full_stops_only_do_not_crash(text: str) -> None:
    values = _functions("summarization").process_results({"summary": "Ann is sad."}, [text])
    assert {name: ratio.num for name, ratio in values.items()} == dict.fromkeys(values, 0.0)


def test_a_released_summary_of_one_character_is_none() -> None:
    module = _functions("summarization")
    assert module.released_rouge("a", "a") == 0.0
    assert module.released_rouge("ab", "ab") > 0.6


def test_rouge_of_the_package() -> None:
    values = _values("summarization", [("Tom is Happy; ann sad", {"summary": "Ann is sad. Tom is happy."})])
    # Five words of six; the bigrams (tom, is) and (is, happy); the longest common subsequence is tom is happy.
    assert values["rouge1"] == pytest.approx(2 * 5 / (5 + 6))
    assert values["rouge2"] == pytest.approx(2 * 2 / (4 + 5))
    assert values["rougeL"] == pytest.approx(2 * 3 / (5 + 6))
    assert values["rouge"] == pytest.approx((10 / 11 + 4 / 9 + 6 / 11) / 3)


def test_a_second_cue_is_read_by_the_released_score_only() -> None:
    values = _values("summarization", [("nonsense TL;DR: Ann is sad", {"summary": "Ann is sad"})])
    assert values["rouge_released"] == pytest.approx(1.0, abs=1e-6)
    assert values["rouge1"] < 1.0


@given(st.text(alphabet="ab. \n", max_size=30), st.text(alphabet="ab. \n", max_size=30))
def test_released_rouge_is_bounded_and_symmetric_in_its_sets(hypothesis: str, reference: str) -> None:
    module = _functions("summarization")
    scores = module.released_scores(hypothesis, reference)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert module.released_scores(reference, hypothesis)[:2] == pytest.approx(scores[:2])


@pytest.mark.parametrize(
    ("content", "pattern"), [("[{", "line 1: not JSON"), ("{}", "JSON list"), ('["a"]', "JSON list")]
)
def test_summaries_that_cannot_be_read(tmp_path: Path, content: str, pattern: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=pattern):
        _functions("summarization").rows(path)


# --- NER

NER = [
    (
        "U.N. official Ekeus heads for Baghdad .",
        "B-ORG O B-PER O O B-LOC O",
        [" Ekeus, who", " Iraq and", " U.N. official", " none"],
    ),
    ("He met John Smith", "O O B-PER I-PER", [" John", " x", " x", ""]),
    ("visited Paris", "O B-LOC", [" x", " London", " x", " x"]),
    ("Bill Clinton Washington said", "B-PER I-PER B-LOC O", [" Bill Clinton", " Washington", "", " x"]),
]


def _sentences() -> list[dict[str, list[str]]]:
    return [{"tokens": words.split(), "tags": tags.split()} for words, tags, _ in NER]


def _ner_cases() -> list[tuple[str, dict[str, Any]]]:
    docs = _functions("NER").documents(_sentences())
    return list(zip([answer for _, _, answers in NER for answer in answers], docs, strict=True))


def test_v9_texts_and_documents() -> None:
    docs = _functions("NER").documents(_sentences())
    assert [doc["text"] for doc in docs[::4]] == [
        "U.N. official Ekeus heads for Baghdad.",
        "He met John Smith",
        "visited Paris",
        "Bill Clinton Washington said",
    ]
    assert [doc["entity"] for doc in docs[:4]] == ["Person", "Location", "Organization", "Miscellaneous"]
    assert [doc["names"] for doc in docs[:4]] == [["Ekeus"], ["Baghdad"], ["U.N."], []]


@pytest.mark.parametrize(
    ("sentence", "kind", "released", "correct"),
    [
        (0, "PER", ["Ekeus"], ["Ekeus"]),
        (1, "PER", ["John"], ["John Smith"]),  # the last token of a sentence is lost
        (2, "LOC", [""], ["Paris"]),  # nothing is left, which is in every answer
        (3, "PER", ["Bill Clinton Washington"], ["Bill Clinton"]),  # what follows directly is swallowed
        (3, "LOC", ["Washington"], ["Washington"]),
    ],
)
def test_oddity_12_gold_strings(sentence: int, kind: str, released: list[str], correct: list[str]) -> None:
    module, row = _functions("NER"), _sentences()[sentence]
    assert module.released_names(row["tokens"], row["tags"], kind) == released
    assert module.names(row["tokens"], row["tags"], kind) == correct


def test_oddity_12_the_token_after_an_entity_is_never_a_start() -> None:
    tags = ["B-PER", "O", "B-PER", "O", "O"]
    assert _functions("NER").released_names(list("abcde"), tags, "PER") == ["a", "c"]
    # The search goes on behind the O at which an entity ended, or behind the end of the sentence.
    assert _functions("NER").released_names(list("abc"), ["B-PER", "I-PER", "B-PER"], "PER") == ["a b"]


@pytest.mark.parametrize(
    ("answer", "golds", "kind", "counts"),
    [
        ("", [], "PER", (1, 1)),
        (" x", [], "PER", (0, 0)),
        (" x", [], "MISC", (0, 1)),  # the only penalty for a wrong answer
        (" x", [""], "LOC", (1, 1)),  # an empty gold string is always found
        (" Ann and Bob", ["Ann", "Bob", "Ann"], "PER", (3, 3)),
    ],
)
def test_oddity_12_counting(answer: str, golds: list[str], kind: str, counts: tuple[int, int]) -> None:
    assert _functions("NER").released(answer, golds, kind) == counts


def test_v9_released_macro_recall() -> None:
    module = _functions("NER")
    by_type: dict[str, tuple[float, float]] = {}
    for answer, doc in _ner_cases():
        ratio = module.process_results(doc, [answer]).get("ner_released", Ratio(0, 0, None, doc["type"]))
        num, den = by_type.get(doc["type"], (0.0, 0.0))
        by_type[doc["type"]] = (num + ratio.num, den + ratio.den)
    assert by_type == {"PER": (2, 3), "LOC": (2, 3), "ORG": (2, 2), "MISC": (1, 4)}
    assert _values("NER", _ner_cases())["ner_released"] == pytest.approx(0.645833, abs=1e-6)


def test_v9_recall_of_correct_names() -> None:
    values = _values("NER", _ner_cases())
    assert values["recall_substring"] == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)


def test_ner_f1_of_the_vector() -> None:
    # Right: Ekeus, Bill Clinton, Washington.  Wrong: "who", Iraq, "U.N. official", John, six times x, London, x, x.
    values = _values("NER", _ner_cases())
    predicted, gold, right = 14, 7, 3
    assert values["precision"] == pytest.approx(right / predicted)
    assert values["recall"] == pytest.approx(right / gold)
    assert values["f1"] == pytest.approx(2 * right / (predicted + gold))


@pytest.mark.parametrize(
    ("answer", "spans", "unknown"),
    [
        (" Paris Hilton", [(0, 2), (4, 6)], []),  # every occurrence
        (
            " Paris, Paris Hilton",
            [(0, 2), (4, 6)],
            ["Paris"][:0],
        ),  # the longer name first, the shorter finds no place left
        (" Paris.", [(0, 1), (4, 5)], []),
        (" Hilton; U.N. and Rome", [(1, 2), (3, 4), (5, 6)], ["Rome"]),
        (" none", [], []),
        (" None.\nText: Paris", [], []),
        ("", [], []),
        ("\n Paris Hilton\n", [(0, 2), (4, 6)], []),
        (" paris", [], ["paris"]),
    ],
)
def test_ner_answer_to_spans(answer: str, spans: list[tuple[int, int]], unknown: list[str]) -> None:
    tokens = ["Paris", "Hilton", "left", "U.N.", "Paris", "Hilton", "."]
    assert _functions("NER").located(answer, tokens) == (spans, unknown)


NAMES = st.sampled_from(["Ann", "Bob", "Ann Bob", "x", "none", "Rome", "a Ann", "."])
TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "B-MISC"])


@given(
    st.lists(st.tuples(st.sampled_from(["Ann", "Bob", "Rome", "a", "."]), TAGS), min_size=1, max_size=7),
    st.lists(NAMES, max_size=3),
)
def test_ner_f1_equals_seqeval_on_any_sentence(tokens: list[tuple[str, str]], names: list[str]) -> None:
    _compare_with_seqeval([([word for word, _ in tokens], [tag for _, tag in tokens], ", ".join(names))])


def test_ner_f1_equals_seqeval_on_real_sentences(shared: Path) -> None:
    rows = data.load("NER", data_dir=shared / "data")[:400]
    module = _functions("NER")
    # An answer that knows some of it: persons of the sentence, and one token of it.
    cases = []
    for row in rows:
        persons = module.names(row["tokens"], row["tags"], "PER")
        cases.append((row["tokens"], row["tags"], ", ".join([*persons, row["tokens"][0]])))
    value = _compare_with_seqeval(cases)
    assert 0.1 < value < 0.9


def _compare_with_seqeval(cases: list[tuple[list[str], list[str], str]]) -> float:
    import warnings

    from seqeval.metrics import f1_score

    module = _functions("NER")
    gold, predicted, ratios = [], [], []
    for tokens, raw, answer in cases:
        tags = module.iob2(raw)
        for doc in module.documents([{"tokens": tokens, "tags": tags}]):
            kind = doc["type"]
            found = module.predicted_tags(answer, tokens, kind)
            of_type = [tag if tag.endswith(kind) else "O" for tag in tags]
            gold.append(of_type + ["O"] * (len(found) - len(tokens)))
            predicted.append(found)
            ratios.append(module.process_results(doc, [answer])["f1"])
    value = aggregate(ratios)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where there is neither gold nor prediction
        expected = f1_score(gold, predicted)
    assert (0.0 if math.isnan(value) else value) == pytest.approx(expected)
    return value


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER O I-LOC B-LOC", "B-PER I-PER O B-LOC B-LOC"),
        ("I-PER I-LOC", "B-PER B-LOC"),
        ("B-PER I-PER B-PER", "B-PER I-PER B-PER"),
        ("O O", "O O"),
    ],
)
def test_iob1_to_iob2(tags: str, expected: str) -> None:
    module = _functions("NER")
    assert module.iob2(tags.split()) == expected.split()
    assert module.iob2(expected.split()) == expected.split()


def test_ner_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("-DOCSTART- -X- -X- O\n\nAnn NNP I-NP I-PER\nran VB I-VP O\n\n\nRome NNP I-NP B-LOC")
    assert _functions("NER").rows(path) == [
        {"tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]},
        {"tokens": ["Rome"], "tags": ["B-LOC"]},  # the last sentence, though no blank line follows
    ]


@pytest.mark.parametrize("line", ["Ann NNP I-PER", "Ann NNP I-NP X-PER", "Ann NNP I-NP B-CITY"])
def test_ner_file_with_a_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(f"Ann NNP I-NP O\n{line}\n")
    with pytest.raises(DataError, match=r"x\.txt, line 2: expected `token pos chunk tag`"):
        _functions("NER").rows(path)


@pytest.mark.parametrize(("tokens", "text"), [([".", "a", ",", "b", "."], " a, b."), (["a", "'s"], "a 's")])
def test_ner_text_as_released(tokens: list[str], text: str) -> None:
    assert _functions("NER").text(tokens) == text


# --- through lm-eval

ANSWERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "ClosedDomainQA": lambda doc: " yes" if doc["answer"] else " no",
    "dialogue": lambda doc: " " + doc["answers"],
    "NER": lambda doc: " " + (", ".join(doc["names"]) or "none"),
    "NLI": lambda doc: " True" if doc["label"] == "entailment" else " False",
    "OpenDomainQA": lambda doc: " " + doc["answer"][0],
    "reasoning": lambda doc: " " + doc["answer"].split("#### ")[1],
    "SentimentAnalysis": lambda doc: " positive" if doc["label"] else " negative",
    "summarization": lambda doc: " " + doc["summary"],
}


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Any]:
    """The group ``general`` on shipped rows, answered by an oracle, through plain lm-eval; the requests are kept."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    requests: dict[str, list[Any]] = {}

    class Oracle(LM):  # type: ignore[misc]
        """Knows every answer."""

        def generate_until(self, instances: list[Any]) -> list[str]:
            for instance in instances:
                requests.setdefault(instance.task_name, []).append(instance)
            return [ANSWERS[instance.task_name](instance.doc) for instance in instances]

        def loglikelihood(self, instances: list[Any]) -> list[Any]:
            raise AssertionError("no task asks for a log-likelihood")

        loglikelihood_rolling = loglikelihood

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(data.TASKS), include_defaults=False)
    found = simple_evaluate(model=Oracle(), tasks=["general"], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return {**found, "requests": requests}


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_is_right_through_lm_eval(name: str, evaluated: dict[str, Any]) -> None:
    config = data.read_yaml(data.TASKS / "general" / name / f"{name}.yaml")
    assert evaluated["results"][name][f"{config['metadata']['headline']},none"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", TASKS)
def test_exactly_the_declared_metrics_come_out(name: str, evaluated: dict[str, Any]) -> None:
    config = data.read_yaml(data.TASKS / "general" / name / f"{name}.yaml")
    found = {key.removesuffix(",none") for key in evaluated["results"][name] if key.endswith(",none")}
    assert {key for key in found if not key.endswith("_stderr")} == {m["metric"] for m in config["metric_list"]}


@pytest.mark.parametrize("name", TASKS)
def test_oddity_17_values_are_over_the_documents_that_there_are(name: str, evaluated: dict[str, Any]) -> None:
    rows = len(data.load(name))
    assert evaluated["n-samples"][name]["effective"] == (4 * rows if name == "NER" else rows)
    # Documents are counted; the size of a data set is written down nowhere.
    assert not any(
        size in path.read_text()
        for path in (data.TASKS / "general" / name).glob("*.py")
        for size in ("1319", "3610", "3267", "2489", "818", "886", "872")
    )


LENGTHS = {"reasoning": 5, "NER": 10, "OpenDomainQA": 20, "summarization": 25}


@pytest.mark.parametrize("name", TASKS)
def test_oddity_18_always_greedy_and_stopped_by_the_end_of_text_alone(name: str, evaluated: dict[str, Any]) -> None:
    for instance in evaluated["requests"][name]:
        _, settings = instance.args
        assert settings == {"until": [], "max_gen_toks": LENGTHS.get(name, 1), "do_sample": False, "num_beams": 1}


PROMPTS = {
    "ClosedDomainQA": "Please answer the given question based on the passage. The answer should be exact 'yes' or "
    "'no'. passage: {d[passage]} question: {d[question]}. answer:",
    "dialogue": "Q: {d[article]} Which choice is correct? Answer Chioces: (A){d[options][0]}(B){d[options][1]}"
    "(C){d[options][2]}(D){d[options][3]} A: Among A through D, the answer is",
    "NER": "Please identify {d[entity]} Entity from the given text. Text: {d[text]} Entity:",
    "NLI": "{d[sentence1]} entails the {d[sentence2]}. True or False? answer:",
    "OpenDomainQA": "Refer to the passage below and answer the following question. Passage: {d[output][0]} "
    "Question: {d[question]}. Answer:",
    "reasoning": "Q: {d[question]} A:Let's think step by step. {rationale} Therefore, the answer (arabic numerals) is:",
    "SentimentAnalysis": "For each snippet of text,label the sentiment of the text as positive or negative."
    "The answer should be exact 'positive' or 'negative'. text: {d[sentence]} answer:",
    "summarization": "{d[dialogue]}\nTL;DR:",
}


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_the_published_ones(name: str, evaluated: dict[str, Any]) -> None:
    for instance in evaluated["requests"][name]:
        rationale = instance.doc["answer"].split("#### ")[0] if name == "reasoning" else ""
        assert instance.args[0] == PROMPTS[name].format(d=instance.doc, rationale=rationale)


@pytest.mark.parametrize("name", TASKS)
def test_no_shipped_prompt_is_cut_by_the_shipped_models(name: str, evaluated: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(harness.__file__).parent / "mini" / "mini")
    instances = evaluated["requests"][name]
    lengths = [len(tokenizer(instance.args[0])["input_ids"]) for instance in instances]
    assert max(lengths) + instances[0].args[1]["max_gen_toks"] <= tokenizer.model_max_length == 256


# --- shipped rows


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("name", TASKS)
def test_shipped_rows_have_the_schema_of_the_real_ones(name: str, split: str) -> None:
    rows = data.load(name, split)
    fields = data.find_datasets()[name].fields
    assert len(rows) >= 100
    assert all(set(fields) <= set(row) for row in rows)
    distinct = {str(sorted(row.items())) for row in rows}
    assert len(distinct) > 0.9 * len(rows)


@pytest.mark.parametrize("name", TASKS)
def test_shipped_labels_are_balanced_and_valid(name: str) -> None:
    rows = data.load(name)
    labels = {
        "ClosedDomainQA": [row.get("answer") for row in rows],
        "dialogue": [row.get("answers") for row in rows],
        "NLI": [row.get("label") for row in rows],
        "SentimentAnalysis": [row.get("label") for row in rows],
    }.get(name)
    kinds = {"ClosedDomainQA": 2, "dialogue": 4, "NLI": 2, "SentimentAnalysis": 2}
    if labels is not None:
        assert len(set(labels)) == kinds[name]
        assert max(labels.count(label) for label in set(labels)) <= 0.65 * len(rows)
    elif name == "reasoning":
        assert all(
            _functions("reasoning").first_number(_functions("reasoning").final(row["answer"])) is not None
            for row in rows
        )
    elif name == "NER":
        assert all(len(row["tokens"]) == len(row["tags"]) for row in rows)
        assert {tag[2:] for row in rows for tag in row["tags"]} == {"", "PER", "LOC", "ORG", "MISC"}
    else:
        assert all(all(row.values()) for row in rows)
