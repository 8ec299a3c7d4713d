"""The canonical sets: losses and thresholds, rows and what is wrong with them, edits, documents, the shipped rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.editing.directions import losses, nll
from harness.errors import DataError, UsageError
from harness.exam import data, measure, tasks
from harness.exam.adapter import EditedLM
from harness.exam.canonical import SETS, CanonicalSet, Exam, failed, loss, read_rows
from harness.exam.general_text import build, cut, published, token_chunks, write_texts
from harness.exam.span_scores import Span, mean_nll, score, span
from harness.exam.statistics import aggregate
from harness.models.lm import LM, load
from harness.patches.patch import Patch

FOLDER = data.TASKS / "canonical"


def canonical(name: str) -> CanonicalSet:
    return CanonicalSet.at(FOLDER / name)


def succeeds(name: str, *log_p: list[float]) -> bool:
    """Whether an example succeeds, from the log-probabilities of the tokens of its continuations."""
    found = canonical(name)
    return not failed(loss(found.loss, *(-sum(tokens) for tokens in log_p)), found.threshold)


# --- the specification's vectors --------------------------------------------------------------------------------------


def test_vector_1_country() -> None:
    assert loss("good", 1.5) == 1.5
    assert succeeds("country_capital", [-0.7, -0.8])
    assert not succeeds("country_capital", [-0.9, -0.8])


def test_vector_2_company_is_judged_by_the_sum_and_not_the_mean() -> None:
    assert not succeeds("company_ceo", [-1.5, -1.5])
    assert succeeds("company_ceo", [-1.5, -1.49])


def test_vector_3_temporal() -> None:
    assert succeeds("temporal", [-0.5, -2.0, -0.4])


def test_vector_4_stereoset() -> None:
    assert loss("bad", 7.2) == -7.2
    assert [succeeds("stereoset", tokens) for tokens in ([-6.5], [-7.0], [-4.0, -3.2])] == [False, True, True]


def test_vector_5_gender() -> None:
    pairs = ((-1.2, -1.5), (-1.2, -1.7), (-2.0, -1.6))
    assert [succeeds("pronoun_gender_bias", [he], [she]) for he, she in pairs] == [True, False, True]


def test_vector_6_verb() -> None:
    right = [-4.0, -5.0, -3.0]
    assert succeeds("verb_conjugation", right, [-7.0, -5.0, -3.0])
    assert not succeeds("verb_conjugation", right, [-6.5, -5.0, -3.0])
    assert not succeeds("verb_conjugation", [-6.5, -5.0, -3.0], right)


def test_vector_8_equality_is_a_success() -> None:
    above = [-1, 0, 0.1, -0.2, 3, -5]
    outcomes = [failed(value + 2.0, 2.0) for value in above]
    assert sum(outcomes) / len(outcomes) == pytest.approx(1 / 3)


def test_thresholds_are_those_of_the_paper_to_the_last_digit() -> None:
    exact = {
        "country_capital": ("good", -math.log(0.2)),
        "company_ceo": ("good", -math.log(0.05)),
        "temporal": ("good", -math.log(0.05)),
        "stereoset": ("bad", math.log(0.001)),
        "pronoun_gender_bias": ("balance", math.log(1.5)),
        "verb_conjugation": ("good-v-bad", math.log(1 / 16)),
    }
    for name, (kind, value) in exact.items():
        assert canonical(name).loss == kind
        assert canonical(name).threshold == pytest.approx(value, abs=1e-15)
    assert canonical("country_capital").threshold == 1.6094379124341003
    assert canonical("stereoset").threshold == -6.907755278982137


def test_vector_14_training_means_over_tokens_and_evaluation_sums() -> None:
    log_p, owner = torch.tensor([-2.0, -4.0, -5.0]), torch.tensor([0, 0, 1])
    for kind, wanted in (("mean", (3.0, -3.0, -2.0, 2.0)), ("sum", (6.0, -6.0, 1.0, 1.0))):
        target, other = nll(log_p, owner, 2, normalisation=kind).split(1)  # type: ignore[arg-type]
        directions = ("likelihood", "unlikelihood", "contrast", "balance")
        assert tuple(float(losses([d], target, other)) for d in directions) == wanted  # type: ignore[list-item]
    assert [loss(kind, 6.0, 5.0) for kind in ("good", "bad", "good-v-bad", "balance")] == [6.0, -6.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def exam(tiny: Callable[[str], LM]) -> Exam:
    """The task ``verb_conjugation`` with a tiny model's tokenizer."""
    lm = tiny("gpt2")
    task = (
        tasks.load_suite(["verb_conjugation"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer)
        .tasks[0]
        .task
    )
    assert isinstance(task, Exam)
    return task


def test_vector_9_hard_negatives_are_means_of_sums(exam: Exam) -> None:
    found = [exam.process_results({"kind": "hard_negatives"}, [(-total, True)]) for total in (1.0 + 2.0, 5.0)]
    assert aggregate([row["hard_negative"] for row in found]) == 4.0
    assert set(exam.process_results({"kind": "hard_negatives_released"}, [(-1.0, True)])) == {"hard_negative_released"}


def test_a_loss_that_is_no_number_is_missing_and_not_a_failure(exam: Exam) -> None:
    found = exam.process_results({"kind": "evaluation"}, [(math.nan, False), (-1.0, True)])
    assert math.isnan(found["success"].num)
    assert exam.process_results({"kind": "evaluation"}, [(-12.0, False), (-15.0, True)])["success"].num == 1.0
    assert exam.process_results({"kind": "evaluation"}, [(-12.0, False), (-14.5, True)])["success"].num == 0.0


# --- rows -------------------------------------------------------------------------------------------------------------


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_each_form_are_read(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl",
        {"prefix": "a", "suffix": " b"},
        {"prefix": "a", "suffix1": " b", "suffix2": " c"},
        {"text": "a b"},
    )
    rows = [{k: row[k] for k in ("prefix", "suffix", "other") if k in row} for row in read_rows(path)]
    assert rows == [
        {"prefix": "a", "suffix": " b"},
        {"prefix": "a", "suffix": " b", "other": " c"},
        {"prefix": "", "suffix": "a b"},
    ]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"suffix": " b"}, "rows.jsonl, row 2: no 'prefix'; a row needs a prefix and a suffix"),
        ({"prefix": "a"}, "row 2: no 'suffix'"),
        ({"prefix": "", "suffix": " b"}, "row 2: an empty 'prefix'"),
        ({"prefix": "a", "suffix": 3}, "row 2: int as 'suffix'"),
        (
            {"prefix": "a", "suffix1": " b"},
            "row 2: one continuation, but a pair needs two; give 'suffix1' and 'suffix2'",
        ),
        ({"text": ""}, "row 2: an empty 'text'"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", {"prefix": "a", "suffix": " b"}, row)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def folder_with(tmp_path: Path, name: str, **files: list[dict[str, Any]]) -> Path:
    """A data folder with some files of a set."""
    for split, rows in files.items():
        path = tmp_path / data.find_datasets()[name].files[split].path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, *rows)
    return tmp_path


def test_a_pair_set_with_one_continuation_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "verb_conjugation", edits_test=[{"prefix": ". The dog", "suffix": " runs"}])
    with pytest.raises(DataError, match=r"verb_conjugation, edits, row 1: one continuation, but 'good-v-bad' compares"):
        tasks.read_edits("verb_conjugation", data_dir=str(folder))


def test_a_split_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="country_capital has no split 'tests'"):
        tasks.read_edits("country_capital", data_dir="mini", split="tests")


@pytest.mark.parametrize(
    "kind, threshold, wanted",
    [("good", -1.6, "above zero"), ("balance", -0.4, "above"), ("bad", 6.9, "below"), ("good-v-bad", 0.69, "below")],
)
def test_a_threshold_of_the_wrong_sign_is_refused(kind: str, threshold: float, wanted: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(f"task: mine\nmetadata:\n  loss: {kind}\n  threshold: {threshold}\n")
    with pytest.raises(DataError, match=rf"threshold is {threshold}; the loss '{kind}' needs a number {wanted}"):
        CanonicalSet.at(folder)
    whole = -1 if kind in ("bad", "good-v-bad") else 1  # a whole number is a number
    (folder / "mine.yaml").write_text(f"task: mine\nmetadata:\n  loss: {kind}\n  threshold: {whole}\n")
    assert CanonicalSet.at(folder).threshold == float(whole)
    (folder / "mine.yaml").write_text("task: mine\nmetadata:\n  loss: god\n  threshold: 1.0\n")
    with pytest.raises(DataError, match=r"metadata.loss is 'god' \(did you mean good"):
        CanonicalSet.at(folder)


def test_a_suffix_without_tokens_is_named_with_its_document(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from harness.exam.span_scores import Apart

    class Silent:
        """A tokenizer for which a zero-width space is nothing."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
            if isinstance(text, list):
                return {"input_ids": [self(one, **options)["input_ids"] for one in text]}
            return {"input_ids": [] if text == "\u200b" else self.inner(text, **options)["input_ids"]}

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    lm = tiny("gpt2")
    model = EditedLM(lm)
    model.lm = LM(lm.model, Silent(lm.tokenizer), lm.name, lm.arch, lm.text)  # type: ignore[arg-type]
    request = Instance("loglikelihood", {}, ("Ada", Apart("\u200b")), 0, metadata=("stereoset", 3, 1))
    with pytest.raises(DataError, match=r"stereoset, document 3: the suffix .* has no tokens"):
        model.loglikelihood([request])


# --- edits and documents ----------------------------------------------------------------------------------------------


def test_examples_become_edits_that_say_what_is_wanted() -> None:
    wanted = {
        "country_capital": "likelihood",
        "company_ceo": "likelihood",
        "temporal": "likelihood",
        "stereoset": "unlikelihood",
        "pronoun_gender_bias": "balance",
        "verb_conjugation": "contrast",
    }
    assert tuple(sorted(wanted)) == tuple(sorted(SETS))
    for name, direction in wanted.items():
        rows = canonical(name).rows("edits", "mini", "test")
        edits = tasks.read_edits(name, data_dir="mini")
        assert {edit.direction for edit in edits} == {direction}
        for row, edit in zip(rows, edits, strict=True):
            assert (edit.text, edit.continuation, edit.rival) == (row["prefix"], row["suffix"], row.get("other"))


def test_the_subject_has_a_slot_where_the_prefix_names_it() -> None:
    found = canonical("country_capital")
    rows = [
        {"prefix": "The capital of Peru is", "suffix": " Lima", "subject": "Peru"},
        {"prefix": "The capital of", "suffix": " Algeria is Alger", "subject": "Algeria"},
        {"prefix": "Oman, Oman and", "suffix": " Oman", "subject": "Oman"},
    ]
    edits = found.edits(rows)
    assert [(e.prompt, e.subject) for e in edits] == [
        ("The capital of {} is", "Peru"),
        ("{}", "The capital of"),
        ("{}", "Oman, Oman and"),
    ]
    assert found.examples(rows)[0].probes == ()


@pytest.mark.parametrize("name", SETS)
def test_documents_of_a_split(name: str) -> None:
    found = canonical(name)
    for split in ("test", "val"):
        rows = found.dataset("mini", split)["test"]
        kinds = [row["kind"] for row in rows]
        assert kinds.count("hard_negatives_released") == len(found.rows("hard_negatives", "mini", "val"))
        assert kinds.count("hard_negatives") == len(found.rows("hard_negatives", "mini", split))
        assert kinds.count("evaluation") == len(found.rows("evaluation", "mini", split))
        assert len({row["id"] for row in rows}) == len(rows)
        paired = {row["kind"] for row in rows if row["other"]}
        assert paired == ({"evaluation"} if found.loss in ("balance", "good-v-bad") else set())


def test_the_task_scores_as_the_definition_says(tiny: Callable[[str], LM]) -> None:
    """Through lm-eval and the model adapter, against a loop over single rows."""
    lm = load("mini")
    found, task = (
        canonical("pronoun_gender_bias"),
        tasks.load_suite(["pronoun_gender_bias"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer),
    )
    with EditedLM(lm).holding(Patch()) as model:
        measured = measure.measure_task(model, task.tasks[0], limit=None)
    numbers = measure.summarise_tasks(task.tasks, {"pronoun_gender_bias": measured}, base=None, seed=0)

    def alone(prefix: str, suffix: str) -> float:
        one = span(lm.tokenizer, prefix, suffix)
        with torch.no_grad():
            log_p = lm.model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        return -sum(float(log_p[i - 1, one.ids[i]]) for i in range(len(one.ids) - one.scored, len(one.ids)))

    rows = found.rows("evaluation", "mini", "test")[:20]
    wanted = [abs(alone(r["prefix"], r["suffix"]) - alone(r["prefix"], r["other"])) for r in rows]
    got = [measured.values["loss"][f"pronoun_gender_bias/{i}"].num for i in range(len(rows))]
    assert got == pytest.approx(wanted, abs=2e-5)
    said = [measured.values["success"][f"pronoun_gender_bias/{i}"].num for i in range(len(rows))]
    assert said == [float(value <= found.threshold) for value in wanted]
    assert numbers["success"]["n"] == 60
    hard = found.rows("hard_negatives", "mini", "test")
    released = found.rows("hard_negatives", "mini", "val")
    for metric, some in (("hard_negative", hard), ("hard_negative_released", released)):
        total = sum(alone(r["prefix"], r["suffix"]) for r in some)
        assert numbers[metric]["value"] == pytest.approx(total / len(some), rel=1e-5)
    texts = [r["suffix"] for r in found.rows("text", "mini", "test")]
    assert numbers["text_nll"]["value"] == pytest.approx(mean_nll(lm, texts), rel=1e-6)


# --- the shipped rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_no_subject_is_in_both_splits_and_none_is_unknown_to_its_sentence(name: str) -> None:
    found = canonical(name)
    subjects = {
        split: {row["subject"] for row in found.rows("edits", "mini", split) if name != "verb_conjugation"}
        for split in ("test", "val")
    }
    assert not subjects["test"] & subjects["val"]
    for split in ("test", "val"):
        for row in found.rows("evaluation", "mini", split):
            assert row["subject"] in row["prefix"]
            assert name == "verb_conjugation" or row["subject"] in subjects[split]


@pytest.mark.parametrize("model", ["mini", "mini-llama"])
def test_the_unedited_models_leave_room(model: str) -> None:
    lm = load(model)
    for name in SETS:
        found = canonical(name)
        rows = found.rows("evaluation", "mini", "val")[::4]
        spans: list[Span] = [span(lm.tokenizer, r["prefix"], r[k]) for k in ("suffix", "other") for r in rows if k in r]
        sums = [-v for v, _ in score(lm, spans)]
        other = sums[len(rows) :] or [0.0] * len(rows)
        losses = [loss(found.loss, a, b) for a, b in zip(sums, other, strict=False)]
        assert sum(failed(value, found.threshold) for value in losses) >= len(rows) / 2, name


# --- corpora ----------------------------------------------------------------------------------------------------------


def test_chunks_are_cut_from_the_stream_and_the_rest_is_dropped() -> None:
    documents = [[1, 2, 3], [], [4, 5], [6, 7, 8, 9]]
    assert list(token_chunks(documents, 4, 10)) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert list(token_chunks(documents, 2, 3)) == [[1, 2], [3, 4], [5, 6]]


def test_documents_are_followed_by_the_end_of_text(tiny: Callable[[str], LM]) -> None:
    tokenizer = tiny("gpt2").tokenizer
    found = cut(["Rome", "", "Paris"], tokenizer, size=2, count=99)
    ids = [i for text in ("Rome<|end|>", "Paris<|end|>") for i in tokenizer(text)["input_ids"]]
    assert "".join(found) == tokenizer.decode(ids[: len(ids) // 2 * 2])
    with pytest.raises(DataError, match="shorter than one chunk of 500 tokens"):
        cut(["Rome", "Paris"], tokenizer)


def test_where_the_hub_cannot_be_reached_building_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(DataError, match=r"gpt2: the tokenizer cannot be had from the Hub \(We couldn't connect"):
        build(tmp_path)


def test_the_ball_reads_the_rebuilt_text_before_the_stand_in(tmp_path: Path) -> None:
    functions = data.functions(data.find_datasets()["ball"])
    assert functions is not None
    path = tmp_path / "canonical" / "val100-val.jsonl"
    write_texts(path, [f"row {i}" for i in range(3005)])
    general, rest = functions.texts(str(tmp_path)), functions.texts(str(tmp_path), "regularisation")
    assert (len(general), rest) == (3000, [f"row {i}" for i in range(3000, 3005)])
    write_texts(path, [f"row {i}" for i in range(3000)])
    with pytest.raises(
        DataError, match="the general text has 3000 documents, and the first 3000 are the ball's; give mor"
    ):
        functions.texts(str(tmp_path), "regularisation")
    write_texts(published(tmp_path, "general"), ["rebuilt"])
    assert functions.texts(str(tmp_path)) == ["rebuilt"]
    assert len(functions.texts("mini")) == len(functions.texts("mini", "regularisation")) == 48


def test_real_rows_of_every_file_are_read(shared: Path) -> None:
    counts = {
        "country_capital": (583, 119, 117, 119),
        "company_ceo": (425, 86, 221, 86),
        "pronoun_gender_bias": (360, 20, 231, 360),
        "verb_conjugation": (360, 240, 720, 360),
        "stereoset": (1053, 1053, 1053, 1053),
        "temporal": (486, 76, 325, 76),
    }
    for name, expected in counts.items():
        found = canonical(name)
        parts = ("evaluation", "edits", "hard_negatives", "text")
        assert tuple(len(found.rows(part, str(shared / "data"), "test")) for part in parts) == expected
    edits = {name: tasks.read_edits(name, data_dir=str(shared / "data")) for name in SETS}
    named = {name: sum(edit.prompt != "{}" for edit in found) for name, found in edits.items()}
    assert named["pronoun_gender_bias"] == 20
    assert named["verb_conjugation"] == 240
    assert named["country_capital"] == 114  # the others are cut before they name their country
    assert edits["pronoun_gender_bias"][0].prompt == "The {} said"
