"""HalluEditBench (Huang et al. 2025): answers to facts that a model had wrong, before and after each was corrected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError
from harness.exam.data import read_jsonl
from harness.exam.statistics import Ratio
from harness.reports.foreign_files import Once, all_files, model_name, read_json, require_shape
from harness.reports.importing import Reader, Told
from harness.reports.published_runs import Origin, PublishedExam, PublishedRun, Scores, one_line_name

__all__ = ["HalluEditBench"]

EDIT_SET, HOPS_SET = "HalluEditBench", "HalluEditBench-hops"
"""The questions about an edit alone, and those over several hops, which the authors asked in runs of their own."""
HOPS = {f"{hops}hop": f"hop_{hops}" for hops in range(2, 7)}
"""What the authors' files call a question over several hops -> our metric."""
METRICS: Mapping[str, str] = {
    "edit": "efficacy",
    "rephrase": "paraphrase",
    "yes": "yes",
    "no": "no",
    "mc": "multiple_choice",
    "reversed": "reversed",
    "locality": "locality_agreement",
    **HOPS,
}
"""What the authors' files call a question -> our metric."""
GENERALISED = ("rephrase", "yes", "no", "mc", "reversed")
"""The questions of which the published "Avg Generalization" is the mean."""
PLACES: Mapping[str, tuple[str, ...]] = {
    "edit": ("edit_acc",),
    "rephrase": ("rephrase_acc",),
    "yes": ("yes_questions", "yes_acc"),
    "no": ("no_questions", "no_acc"),
    "mc": ("multiple_choice_questions", "multiple_choice_acc"),
    "reversed": ("reversed_relation_questions", "reversed_relation_acc"),
    "locality": ("locality", "locality_acc"),
    **{hops: (f"questions_{hops}", f"{hops}_acc") for hops in HOPS},
}
"""Where the authors' files have the answer to a question."""
PUBLISHED_AS: Mapping[str, str] = {"ICL": "ICE"}
"""What the files call an editor -> what the published table calls it."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {"ROME": {"mom2_adjustment": False}, "MEMIT": {"mom2_adjustment": True}}
"""What the authors' hyperparameter files say of these models, in ``code/hparams``."""
PROTOCOL = (
    "Free answers of at most 16 tokens to each question, right where they contain the answer, or it contains them, or "
    "a local model judges them alike; locality: the answer is judged alike before and after."
)
PROTOCOLS: Mapping[str, str] = {
    "GRACE": "GRACE alone was asked after its edit without the chat template, for as many tokens as the right answer "
    "has (hallucination_editor.py); otherwise as the rest."
}
"""Editors that the authors' program asks otherwise."""
_RELEASED = ("generalization_released",)
EXAM = PublishedExam(
    headline="efficacy",
    directions=dict.fromkeys(
        [*(metric for question, metric in METRICS.items() if question not in HOPS), "generalization", *_RELEASED], True
    ),
    shown=("generalization", *_RELEASED, "yes", "no", "multiple_choice", "reversed"),
)
HOPS_EXAM = PublishedExam(
    headline="efficacy", directions=dict.fromkeys(["efficacy", *HOPS.values()], True), shown=tuple(HOPS.values())
)

_File = re.compile(r"(?P<topic>.+)_(?P<editor>[A-Za-z0-9+-]+)\.json")
_Bits = dict[str, int]


class _Collected(TypedDict):
    """A row of the answers of many files, a row a case."""

    topic: str
    editor: str
    case_id: int
    pre: _Bits
    post: _Bits


class _Case(TypedDict):
    """An element of the authors' own files."""

    case_id: int
    pre: dict[str, Any]
    post: dict[str, Any]
    time: NotRequired[float]


@dataclass(frozen=True)
class _Answers:
    """The answers about one case under one editor: question -> whether it was right."""

    model: str
    editor: str
    topic: str
    case: str
    pre: _Bits
    post: _Bits
    file: Path

    @property
    def edit_set(self) -> str:
        """Whether these are questions over hops."""
        return HOPS_SET if HOPS.keys() & self.post.keys() else EDIT_SET


class HalluEditBench(Reader):
    """HalluEditBench: ``results/hallu_edit``, ``hallu_edit_multi_hop``, one of their folders, or JSON lines."""

    name: ClassVar[str] = "halluedit"
    takes: ClassVar[frozenset[str]] = frozenset({"model"})
    origin: ClassVar[Origin] = Origin(
        "llm-editing/HalluEditBench", None, "MIT", "Huang et al. 2025, HalluEditBench (arXiv 2410.16251)"
    )

    def reads(self, path: Path) -> bool:
        """Whether there are files named by a topic and an editor, or lines with a topic and an editor."""
        if path.is_file():
            return "halluedit" in path.name.lower()
        named = {"hallu_edit", "hallu_edit_multi_hop"} & set(path.resolve().parts)
        return bool(named) or any(path.rglob("*hallu*edit*"))

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each model and editor, and another one for its questions over hops."""
        runs: dict[tuple[str, str, str], list[_Answers]] = {}
        for answers in _answers(path, told):
            runs.setdefault((answers.model, answers.editor, answers.edit_set), []).append(answers)
        yield from (_run(*key, found) for key, found in runs.items())


def _answers(path: Path, told: Told) -> Iterator[_Answers]:
    """The answers of all files, each case of each run once."""
    once = Once()
    files = all_files(path, "*.jsonl", "*.jsonl.gz", "*_*.json")
    for file in files:
        rows = _collected(file) if ".jsonl" in file.suffixes[-2:] else _own(file)
        for number, answers in enumerate(rows, start=1):
            model = told.model or answers.model
            editor = PUBLISHED_AS.get(answers.editor, answers.editor)
            case = (model, editor, answers.edit_set, answers.topic, answers.case)
            once(case, f"{file}, row {number}", f"case {answers.case} of {answers.topic} under {editor}")
            yield replace(answers, model=model, editor=editor)


def _collected(file: Path) -> Iterator[_Answers]:
    """The rows of a file of JSON lines, which names the model."""
    short = re.sub(r"\.jsonl(\.gz)?$", "", file.name).removeprefix("halluedit_percase_")
    for number, row in enumerate(read_jsonl(file), start=1):
        where = f"{file}, row {number}"
        require_shape(_Collected, row, where=where, what="HalluEditBench's answers")
        names = one_line_name(row["editor"], "an editor"), one_line_name(row["topic"], "a topic")
        pre, post = (_bits(row[side], where) for side in ("pre", "post"))
        yield _Answers(model_name(one_line_name(short, "a model")), *names, str(row["case_id"]), pre, post, file)


def _own(file: Path) -> Iterator[_Answers]:
    """The cases of one of the authors' files, whose folder names the model."""
    found = _File.fullmatch(file.name)
    if found is None:
        raise DataError(
            f"{file}: its name is no TOPIC_EDITOR.json, as HalluEditBench's files have; rename or remove it"
        )
    cases = read_json(file)
    if not isinstance(cases, list):
        raise DataError(f"{file}: no array of cases, as HalluEditBench writes; give its results/hallu_edit")
    names = one_line_name(found["editor"], "an editor"), one_line_name(found["topic"], "a topic")
    model = model_name(one_line_name(file.resolve().parent.name, "a model"))
    for number, case in enumerate(cases, start=1):
        where = f"{file}, row {number}"
        require_shape(_Case, case, where=where, what="HalluEditBench's results")
        pre, post = (_found(case[side], where, side == "post") for side in ("pre", "post"))
        yield _Answers(model, *names, str(case["case_id"]), pre, post, file)


def _found(side: Mapping[str, Any], where: str, after: bool) -> _Bits:
    """The answers of one side of a case of the authors' files."""
    found: _Bits = {}
    over_hops = any(side.get(PLACES[question][0]) for question in HOPS)
    for question, place in PLACES.items():
        value: Any = side
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, list) and value:
            found[question] = value[0]
        elif question == "edit" or (after and question == "locality" and not over_hops):
            raise DataError(f"{where}: no {'.'.join(place)}; results of many turns are not read")
    return _bits(found, where)


def _bits(answers: Mapping[str, Any], where: str) -> _Bits:
    """The answers of one side, each 0 or 1."""
    for question, value in answers.items():
        if question not in METRICS or isinstance(value, bool) or value not in (0, 1):
            known = ", ".join(METRICS)
            raise DataError(
                f"{where}: {ascii(question)[:40]} is {ascii(value)[:40]}; expected 0 or 1 for each of {known}"
            )
    return dict(answers)


def _run(model: str, editor: str, edit_set: str, answers: list[_Answers]) -> PublishedRun:
    before, after = _scores(answers, "pre"), _scores(answers, "post")
    edits = len(answers)
    return PublishedRun(
        model=model,
        editor=editor,
        edit_set=edit_set,
        mode="isolated",
        protocol=PROTOCOLS.get(editor, PROTOCOL),
        exams={edit_set: HOPS_EXAM if edit_set == HOPS_SET else EXAM},
        scores={0: {edit_set: before}, edits: {edit_set: after}},
        plain={0: {edit_set: _released(answers, "pre")}, edits: {edit_set: _released(answers, "post")}},
        settings=SETTINGS.get(editor, {}),
        files=tuple(dict.fromkeys(answer.file for answer in answers)),
    )


def _scores(answers: list[_Answers], side: str) -> Scores:
    """What each case contributed before or after its edit; generalization is the mean of five questions."""
    found: Scores = {}
    for answer in answers:
        case, bits = f"{answer.topic}/{answer.case}", getattr(answer, side)
        for question, bit in bits.items():
            found.setdefault(METRICS[question], {})[case] = Ratio(bit)
        if all(question in bits for question in GENERALISED):
            right = sum(bits[question] for question in GENERALISED)
            found.setdefault("generalization", {})[case] = Ratio(right, len(GENERALISED))
    return found


def _released(answers: list[_Answers], side: str) -> dict[str, float]:
    """The published average of generalization (``code/result_table.ipynb``).

    Each question's mean over the cases of a topic is rounded to two digits of a per cent, and the mean over topics and
    questions is taken of what was rounded.
    """
    topics: dict[str, list[_Bits]] = {}
    for answer in answers:
        topics.setdefault(answer.topic, []).append(getattr(answer, side))
    if not all(question in bits for found in topics.values() for bits in found for question in GENERALISED):
        return {}
    rounded = [
        fmean(round(100 * fmean(bits[question] for bits in found), 2) for found in topics.values())
        for question in GENERALISED
    ]
    return {"generalization_released": fmean(rounded) / 100}
