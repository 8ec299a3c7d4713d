"""EasyEdit (Wang et al. 2024): accuracies of each edit before and after it, as its ``*_results.json`` have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError
from harness.exam.data import read_jsonl
from harness.reports.foreign_files import Once, all_files, mean_answer, model_name, read_json, require_shape
from harness.reports.importing import Reader, Told
from harness.reports.published_runs import Origin, PublishedExam, PublishedRun, Scores, one_line_name

__all__ = ["EasyEdit"]

PROTOCOL = (
    "Teacher-forced: the share of the answer's tokens that are the most probable, each behind the right ones before it "
    "(EasyEdit's token accuracy); locality: of the tokens that were most probable before."
)
GROUPS: Mapping[str, str] = {
    "lm.free_generation.llm_judge": "Free answers, judged by a language model (EasyEdit's LLM-judge).",
    "lm.free_generation.exact_match_fallback": "Free answers, compared with the right one.",
}
"""What newer versions call a way of measuring (``metric_meta``) -> in words."""
PROTOCOLS: Mapping[str, str] = {
    "GRACE": "GRACE alone is measured on what it generates, not teacher-forced (EasyEdit's evaluate.py)."
}
"""Editors that EasyEdit measures otherwise."""
KINDS: Mapping[str, str] = {
    "subject_aliasing": "aliasing",
    "reasoning": "reasoning",
    "logical_generalization": "logic",
    "relation_specificity": "specificity",
    "forgetfulness": "forgetfulness",
}
"""What EasyEdit calls a kind of question -> what our edit sets call it."""
KNOWEDIT = ("counterfact", "recent", "wikibio", "zsre", "convsent", "sanitation", "sanitization")
EXAM_NAME = "EasyEdit"

_Knowedit = re.compile(r"(?P<editor>[^_]+)_(?P<data>[^_]+)_(?P<model>[^_]+)_results\.json")
_PILED = {"True": "sequential", "False": "isolated"}
_Wise = re.compile(r"(?P<model>.+)_(?P<editor>[^_]+)_N=(?P<count>\d+)_Sequential=(?P<sequential>True|False)\.json")


class _Case(TypedDict):
    """An edit: what was asked before and after it."""

    case_id: NotRequired[int]
    editor: NotRequired[str]
    data: NotRequired[str]
    pre: NotRequired[dict[str, Any]]
    post: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """Which run a case belongs to; None where its file does not say."""

    model: str | None
    editor: str | None
    data: str | None
    mode: str | None = None


_Cases = list[tuple[str, Mapping[str, Any], Path]]
"""Of a run: the id of each case, the case, and its file."""


class EasyEdit(Reader):
    """EasyEdit: its ``METHOD_DATA_MODEL_results.json``, a folder of those, or their cases as JSON lines."""

    name: ClassVar[str] = "easyedit"
    origin: ClassVar[Origin] = Origin()

    def reads(self, path: Path) -> bool:
        """Whether there are files named as EasyEdit names them."""
        names = [path.name] if path.is_file() else [found.name for found in path.rglob("*.json*")]
        return any(_Knowedit.fullmatch(one) or _Wise.fullmatch(one) or "easyedit" in one for one in names)

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each editor, model and edit set."""
        once, runs = Once(), dict[_Run, _Cases]()
        for file in all_files(path, "*_results.json", "*_Sequential=*.json", "*.jsonl", "*.jsonl.gz"):
            for number, (said, case_id, case) in enumerate(_cases(file), start=1):
                where = f"{file}, row {number}"
                run = _with(said, told, where)
                once((run, case_id), where, f"case {case_id} of {run.editor} on {run.data}")
                runs.setdefault(run, []).append((case_id, case, file))
        yield from (_published(run, cases) for run, cases in runs.items())


def _cases(file: Path) -> Iterator[tuple[_Run, str, Mapping[str, Any]]]:
    """The run, the id and the answers of each case of a file."""
    lines = ".jsonl" in file.suffixes[-2:]
    cases: Any = read_jsonl(file) if lines else read_json(file)
    if not isinstance(cases, list):
        raise DataError(f"{file}: no array of cases, as EasyEdit writes; give its results of single edits")
    named = _from_name(file)
    for number, case in enumerate(cases, start=1):
        require_shape(_Case, case, where=f"{file}, row {number}", what="EasyEdit's results")
        run = _Run(named.model, case.get("editor", named.editor), case.get("data", named.data), named.mode)
        # In batches EasyEdit counts the cases of each batch from 0: of its own files the place names the case.
        yield run, str(case["case_id"] if lines and "case_id" in case else number - 1), case


def _from_name(file: Path) -> _Run:
    """What the name of a file says of its run."""
    if found := _Knowedit.fullmatch(file.name):
        return _Run(found["model"], found["editor"], found["data"])
    if found := _Wise.fullmatch(file.name):
        return _Run(found["model"], found["editor"], None, _PILED[found["sequential"]])
    collected = re.fullmatch(r"knowedit_easyedit_percase_(.+)\.jsonl(\.gz)?", file.name)
    return _Run(collected[1] if collected else None, None, None)


def _with(run: _Run, told: Told, where: str) -> _Run:
    """The run with what the caller says of it; all is said then."""
    found = {"model": told.model or run.model, "editor": told.editor or run.editor}
    data = told.edit_set or (f"KnowEdit {run.data}" if run.data in KNOWEDIT else run.data)
    options = {"model": "--model", "editor": "--editor", "data": "--edits"}
    for what, value in {**found, "data": data}.items():
        if value is None:
            raise DataError(f"{where}: nothing says the {what} of this run; name it with {options[what]}")
    model, editor = (one_line_name(found[key], f"a {key}") for key in ("model", "editor"))
    return _Run(model_name(model), editor, one_line_name(data, "an edit set"), told.mode or run.mode)


def _published(run: _Run, cases: _Cases) -> PublishedRun:
    before, after = _scores(cases, "pre"), _scores(cases, "post")
    exam, editor = run.data or EXAM_NAME, run.editor or ""
    said = () if run.mode is not None else ("Whether edits were piled up is not told; taken as each edit alone.",)
    return PublishedRun(
        model=run.model or "",
        editor=editor,
        edit_set=exam,
        mode=run.mode or "isolated",
        batch_size=1 if run.mode == "sequential" else None,
        protocol=_protocol(editor, cases),
        exams={exam: _exam(after)},
        scores={**({0: {exam: before}} if before else {}), len(cases): {exam: after}},
        notes=said,
        files=tuple(dict.fromkeys(file for *_, file in cases)),
    )


def _exam(after: Scores) -> PublishedExam:
    directions: dict[str, bool | None] = dict.fromkeys(after, True)
    directions["fluency"] = None
    asked = tuple(sorted(metric for metric in after if metric.startswith(("portability_", "locality_"))))
    return PublishedExam("efficacy", directions, shown=asked)


def _protocol(editor: str, cases: _Cases) -> str:
    """How the answer to the edit's own question was measured, which newer versions say."""
    groups: dict[str, tuple[str, Path]] = {}
    for case_id, case, file in cases:
        said: object = case["post"]
        for key in ("metric_meta", "rewrite", "comparable_group"):
            said = said.get(key) if isinstance(said, Mapping) else None
        groups.setdefault(str(said), (case_id, file))
    if len(groups) > 1:
        first, second = list(groups)[:2]
        (one, _), (other, file) = groups[first], groups[second]
        raise DataError(
            f"{file}: case {one} was measured by {first}, case {other} by {second}: two protocols are mixed; give the "
            "cases of one"
        )
    return GROUPS.get(next(iter(groups)), PROTOCOLS.get(editor, PROTOCOL))


def _scores(cases: _Cases, side: str) -> Scores:
    """What each case contributed before or after its edit."""
    found: Scores = {}
    for case_id, case, file in cases:
        for metric, values in _answers(case.get(side, {})):
            try:
                ratio = mean_answer(_flat(values))
            except (TypeError, ValueError) as error:
                raise DataError(f"{file}, case {case_id}: {side} {metric} is no list of numbers ({error})") from error
            if ratio is not None:
                found.setdefault(metric, {})[case_id] = ratio
    return {metric: found[metric] for metric in sorted(found)}


def _answers(side: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Each of our metrics that a side of a case has values of."""
    for key, value in side.items():
        if key in ("rewrite", "rewrite_acc"):
            yield "efficacy", value
        elif key == "rephrase_acc":
            yield "paraphrase", value
        elif key == "fluency":
            yield key, value.get("ngram_entropy") if isinstance(value, Mapping) else value
        elif key in ("portability", "locality"):
            yield from _kinds(key, value)
        elif key.startswith(("port_", "loc_")):
            yield _metric({"p": "portability", "l": "locality"}[key[0]], key.partition("_")[2]), value


def _kinds(what: str, value: object) -> Iterator[tuple[str, object]]:
    """The kinds of questions of portability or locality, with their values."""
    if not isinstance(value, Mapping):
        yield f"{what}_accuracy", value
        return
    for kind, answers in value.items():
        if str(kind).endswith("_acc"):
            yield _metric(what, str(kind).removesuffix("_acc")), answers


def _metric(what: str, kind: str) -> str:
    return f"{what}_{KINDS.get(kind.lower(), one_line_name(kind, 'a kind of question').lower())}"


def _flat(values: object) -> list[float]:
    """Numbers in lists, however deep; nothing where there is none."""
    if values is None:
        return []
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [one for value in values for one in _flat(value)]
    if isinstance(values, bool | int | float):
        return [float(values)]
    raise TypeError(f"{ascii(values)[:30]} is no number")
