"""lm-evaluation-harness: ``results_*.json`` and, beside it, the ``samples_*.jsonl`` of its tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError, UsageError
from harness.exam.data import read_jsonl
from harness.exam.statistics import Ratio
from harness.reports.foreign_files import all_files, read_json, require_shape
from harness.reports.importing import OPTIONS, Reader, Told
from harness.reports.published_runs import PublishedExam, PublishedRun, Scores, one_line_name

__all__ = ["LmEval"]

PROTOCOL = "As lm-evaluation-harness asks and scores each task."
UNEDITED = "none"
NEAR = 1e-6
"""How far the mean over samples may lie from the value that is told, to be its mean and not some other statistic."""

_File = re.compile(r"results_(?P<date>.+)\.json")


class _Results(TypedDict):
    """What lm-eval writes of a whole evaluation."""

    results: dict[str, dict[str, Any]]
    config: dict[str, Any]
    configs: NotRequired[dict[str, Any]]
    higher_is_better: NotRequired[dict[str, dict[str, bool | None]]]
    task_hashes: NotRequired[dict[str, str]]
    total_evaluation_time_seconds: NotRequired[str | None]
    model_name: NotRequired[str | None]


class _Sample(TypedDict):
    """A document, and what each metric gave."""

    doc_id: int
    filter: NotRequired[str]
    metrics: NotRequired[list[str]]
    doc_hash: NotRequired[str]


@dataclass(frozen=True)
class _Found:
    """One evaluation: its results, what documents gave, and the values of which only the mean is told."""

    results: _Results
    scores: Mapping[str, Scores]
    plain: Mapping[str, Mapping[str, float]]
    documents: Mapping[str, Mapping[str, str]]
    """Task -> document -> its hash."""
    files: tuple[Path, ...]


class LmEval(Reader):
    """lm-evaluation-harness: ``results_*.json``, or a folder of those, with ``samples_*.jsonl`` beside them."""

    name: ClassVar[str] = "lm-eval"
    takes: ClassVar[frozenset[str]] = frozenset({"model", "editor", "edit_set", "num_edits", "mode", "unedited"})

    def reads(self, path: Path) -> bool:
        """Whether there is a file of results."""
        names = [path.name] if path.is_file() else [found.name for found in path.rglob("results_*.json")]
        return any(_File.fullmatch(one) for one in names)

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each file of results; of an edited model ``told`` says what was edited."""
        _require_whole(told)
        base = None if told.unedited is None else _only(told.unedited)
        for file in all_files(path, "results_*.json"):
            yield _run(_read(file), base, told)


def _require_whole(told: Told) -> None:
    """See that an edited model is told as one: nothing in the files says that there were edits, or how many."""
    if told.editor is None:
        of_edits = ("unedited", "edit_set", "num_edits", "mode")
        said = [OPTIONS[key] for key in of_edits if getattr(told, key) is not None]
        if said:
            raise UsageError(f"{said[0]} goes with an edited model; name the editor with --editor")
    elif not told.num_edits:
        raise UsageError(f"--editor {told.editor}: nothing says how many edits were made; add --num-edits")


def _only(path: Path) -> _Found:
    files = all_files(path, "results_*.json")
    if len(files) != 1:
        raise DataError(f"{path}: holds {len(files)} files results_*.json; give the one of the unedited model")
    return _read(files[0])


def _read(file: Path) -> _Found:
    """An evaluation, with the samples that were written with it."""
    if _File.fullmatch(file.name) is None:
        raise DataError(f"{file}: its name is no results_DATE.json, as lm-eval's files have; give the file of results")
    results = read_json(file)
    require_shape(_Results, results, where=str(file), what="lm-eval's results")
    scores: dict[str, Scores] = {}
    plain: dict[str, dict[str, float]] = {}
    documents: dict[str, dict[str, str]] = {}
    files = [file]
    date = _File.fullmatch(file.name)["date"]  # type: ignore[index]
    for task, values in results["results"].items():
        samples = file.with_name(f"samples_{task}_{date}.jsonl")
        each, documents[task] = _samples(samples, task) if samples.is_file() else ({}, {})
        files += [samples] if samples.is_file() else []
        for metric, value in _values(values):
            if _is_mean(value, each.get(metric, {})):
                scores.setdefault(task, {})[metric] = each[metric]
            else:
                plain.setdefault(task, {})[metric] = value
    return _Found(results, scores, plain, documents, tuple(files))


def _values(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Our name of each metric of a task, with its value; without its error, which is computed here."""
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if comma and number and not metric.endswith("_stderr"):
            yield (metric if kind == "none" else key), float(value)


def _samples(file: Path, task: str) -> tuple[Scores, dict[str, str]]:
    """What documents gave to each metric, and the hash of each document."""
    found: Scores = {}
    hashes: dict[str, str] = {}
    for number, sample in enumerate(read_jsonl(file), start=1):
        where = f"{file}, line {number}"
        require_shape(_Sample, sample, where=where, what="lm-eval's samples")
        document, kind = f"{task}/{sample['doc_id']}", sample.get("filter", "none")
        hashes[document] = str(sample.get("doc_hash", ""))
        for metric in sample.get("metrics", []):
            value = sample.get(metric)
            if isinstance(value, bool | int | float) and math.isfinite(value):
                column = found.setdefault(metric if kind == "none" else f"{metric},{kind}", {})
                if document in column:
                    raise DataError(f"{where}: document {sample['doc_id']} was there before: runs are mixed")
                column[document] = Ratio(float(value))
    return found, hashes


def _is_mean(value: float, each: Mapping[str, Ratio]) -> bool:
    """Whether a value is the mean of what documents gave; else it is another statistic of them, such as an F1."""
    return bool(each) and abs(math.fsum(one.num for one in each.values()) / len(each) - value) <= NEAR


def _run(found: _Found, base: _Found | None, told: Told) -> PublishedRun:
    if base is not None:
        _require_same_documents(found, base)
    edits = told.num_edits or 0
    sides = {**({0: base} if base and edits else {}), edits: found}
    config = found.results["config"]
    model = told.model or found.results.get("model_name") or config.get("model_args")
    return PublishedRun(
        model=one_line_name(model, "a model"),
        editor=one_line_name(told.editor or UNEDITED, "an editor"),
        edit_set=one_line_name(told.edit_set or "no edits", "an edit set"),
        mode=told.mode or "",
        protocol=PROTOCOL,
        exams={task: _exam(task, found) for task in {**found.scores, **found.plain}},
        scores={count: side.scores for count, side in sides.items()},
        plain={count: side.plain for count, side in sides.items()},
        notes=_notes(told, base),
        seed=_seed(config),
        seconds=_seconds(found.results),
        versions=_versions(found.results),
        rows=found.results.get("task_hashes") or {},
        files=found.files,
    )


def _require_same_documents(found: _Found, base: _Found) -> None:
    for task, documents in found.documents.items():
        before = base.documents.get(task, {})
        other = [name for name, told in documents.items() if before.get(name, told) != told]
        if other:
            raise DataError(
                f"{base.files[0]}: {len(other)} documents of {task} are others than those of {found.files[0].name}, "
                f"{other[0]} the first; give the evaluation of the unedited model on the same documents"
            )


def _exam(task: str, found: _Found) -> PublishedExam:
    said = found.results.get("higher_is_better", {}).get(task, {})
    metrics = [*found.scores.get(task, {}), *found.plain.get(task, {})]
    directions = {metric: said.get(metric.partition(",")[0]) for metric in metrics}
    usual = next((name for name in ("acc_norm", "acc", "exact_match", "f1") if name in metrics), metrics[0])
    return PublishedExam(usual, directions, shown=tuple(metric for metric in metrics if metric != usual))


def _notes(told: Told, base: _Found | None) -> tuple[str, ...]:
    if told.editor and base is None:
        return ("The unedited model was not given (--unedited): no difference is told.",)
    return ()


def _seed(config: Mapping[str, Any]) -> int | None:
    seed = config.get("random_seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def _seconds(results: _Results) -> float | None:
    try:
        return float(results.get("total_evaluation_time_seconds") or "")
    except ValueError:
        return None


def _versions(results: Mapping[str, Any]) -> dict[str, str]:
    known = {"lm_eval": results.get("lm_eval_version"), "transformers": results.get("transformers_version")}
    return {name: str(version) for name, version in known.items() if version}
