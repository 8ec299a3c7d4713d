"""Scores one state of a model on a suite of tasks, and turns what documents contribute into numbers with intervals."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import lm_eval
import torch
from annotated_types import Len
from typing_extensions import TypedDict

from harness import __version__
from harness.editing.schedule import Stop
from harness.errors import DataError
from harness.exam import numbers, statistics, text_metrics
from harness.exam.adapter import EditedLM
from harness.exam.prompting import FEWSHOT_SEED
from harness.exam.quiet import quiet_lm_eval
from harness.exam.samples import Sample, SampleLine, samples_of
from harness.exam.statistics import Ratio, Values
from harness.exam.tasks import Task, templates_once, values_of
from harness.io import files
from harness.io.cache import cache_folder
from harness.io.locks import made_once
from harness.io.schema import Count, Number, checked, parsed
from harness.models.lm import LM
from harness.models.rounding import rounding_of
from harness.patches.patch import Patch

__all__ = [
    "Measured",
    "agree",
    "base_key",
    "contributions",
    "fingerprint",
    "hold",
    "load_base",
    "measure_task",
    "measured_once",
    "of_cases",
    "save_base",
    "summarise_tasks",
]


log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_DECISIVE = ("models", "patches", "exam")
"""The rooms whose code decides the numbers of an unedited model."""


@dataclass(eq=False)
class Measured:
    """What one task gave at one stop.

    Attributes:
        values: metric -> document -> contribution.
        plain: metrics that are no mean over documents, as lm-eval aggregates them.
        answers: the text of each document that was generated, for agreement between two models.
        documents: each document's row, as far as agreement needs it.
        truncated: how many requests were cut from the left to fit the model.
        samples: what was asked and replied.
    """

    values: dict[str, dict[str, Ratio]] = field(default_factory=dict)
    plain: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    documents: dict[str, dict[str, str]] = field(default_factory=dict)
    truncated: int = 0
    samples: list[Sample] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All metrics."""
        return [*self.values, *self.plain]


def hold(
    model: EditedLM,
    stop: Stop | None,
    *,
    ids: Sequence[str],
    mode: str,
    own: Collection[str],
    at_once: int | None = None,
) -> AbstractContextManager[EditedLM]:
    """The context in which a stop is measured: no patch, one patch, or a patch for each document.

    In isolated editing a document of the edit set is scored under the edit that its field ``case`` names, and a
    document of any task that has a field ``edit`` under the edit which that names.  Document ``i`` of other tasks is
    scored under edit ``i mod n``, so that the value of a task estimates the mean over single edits at the price of one
    pass.

    Args:
        model: what is measured.
        stop: where the edits have come to; None is the unedited model.
        ids: the ids of all edits, in the order of the stop's patches.
        mode: ``isolated``, ``batch`` or ``sequential``.
        own: lm-eval's names of the tasks of the edit set.
        at_once: cases that a patch of isolated editing holds; None for one.
    """
    if stop is None:
        return model.holding(Patch())
    if mode != "isolated":
        return model.holding(stop.patches[0])
    position = {edit: i // (at_once or 1) for i, edit in enumerate(ids)}

    def patch_of(request: Any) -> int:
        named = _edit_of(request, own)
        if named is None:
            return int(request.doc_id) % len(stop.patches)
        if named not in position:
            raise DataError(
                f"{request.task_name}, document {request.doc_id}: belongs to edit '{named}', which is not made; leave "
                "the document out, or name one of the edits"
            )
        return position[named]

    return model.isolated(stop.patches, patch_of)


def _edit_of(request: Any, own: Collection[str]) -> str | None:
    """The edit that a request's document belongs to; None where it belongs to none."""
    if not isinstance(request.doc, Mapping):
        return None
    named = request.doc.get("edit")
    if named is None and request.task_name in own:
        named = request.doc.get("case")
    return None if named is None else str(named)


def measure_task(model: EditedLM, task: Task, *, limit: int | None, documents: Sequence[int] | None = None) -> Measured:
    """Score one task with whatever the model holds.

    Args:
        model: the model.
        task: the task.
        limit: documents at most; None for all.
        documents: the positions of the documents that are wanted; None for all.
    """
    if documents is not None and not documents:  # lm-eval would take no positions for all of them
        return Measured()
    chosen = None if documents is None else {task.name: list(documents)}
    cut = model.truncated
    # Drawn anew each time: the edited model is shown the solved examples that the unedited one was.
    task.task.set_fewshot_seed(FEWSHOT_SEED)
    with quiet_lm_eval(), templates_once():
        found = lm_eval.evaluate(
            model,
            {"tasks": {task.name: task.task}, "groups": {}, "group_map": {}},
            limit=limit if chosen is None else None,
            samples=chosen,
            bootstrap_iters=0,
            system_instruction=model.prompting.system_instruction,
            apply_chat_template=model.prompting.apply_chat_template,
            fewshot_as_multiturn=model.prompting.multiturn,
        )
    samples = found["samples"][task.name]
    values = values_of(task, samples)
    kept = samples_of(task.name, samples, values=values, group=None if task.shown == task.name else task.shown)
    measured = Measured(values=values, truncated=model.truncated - cut, samples=kept)
    for key, value in found["results"][task.name].items():
        metric, comma, kind = key.partition(",")
        name = metric if kind == "none" else key
        if comma and not metric.endswith("_stderr") and name not in measured.values and isinstance(value, int | float):
            measured.plain[name] = float(value)
    if task.metadata.get("agreement"):
        for sample in samples:
            document = f"{task.name}/{sample['doc_id']}"
            measured.answers[document] = str(sample["filtered_resps"][0])
            measured.documents[document] = {k: str(sample["doc"][k]) for k in ("case", "kind", "target_true")}
    return measured


def agree(task: Task, edited: Measured, base: Measured) -> None:
    """Add the metrics of agreement with the unedited model (locality without a gold answer).

    Args:
        task: whose YAML says which metrics of agreement there are, and for which kind of probe.
        edited: what the edited model gave; the metrics are added to it.
        base: what the unedited model gave.
    """
    for metric, rule in (task.metadata.get("agreement") or {}).items():
        edited.values[metric] = {
            document: text_metrics.agreement(row, edited.answers[document], base.answers[document])
            for document, row in edited.documents.items()
            if row["kind"] == rule["kind"] and document in base.answers
        }


def summarise_tasks(
    tasks: Sequence[Task], measured: Mapping[str, Measured], *, base: Mapping[str, Measured] | None, seed: int
) -> dict[str, dict[str, Any]]:
    """What is reported under one name: metric -> value, n, interval, reason, and the difference from unedited.

    Args:
        tasks: the lm-eval tasks that share the name.
        measured: what each gave, by lm-eval's name.
        base: the same of the unedited model; None where this is the unedited model.
        seed: of the bootstrap.
    """
    mine, before = contributions(tasks, measured), None if base is None else contributions(tasks, base)
    directions: dict[str, bool | None] = {}
    plain: dict[str, float | None] = {}
    derived: dict[str, Sequence[str]] = {}
    for task in tasks:
        directions |= {m: task.directions.get(m.partition(",")[0], True) for m in measured[task.name].names}
        plain |= measured[task.name].plain
        derived |= {score: rule["harmonic"] for score, rule in (task.metadata.get("derived") or {}).items()}
    table = numbers.summarise(mine, before, directions, seed=seed, derived=derived, plain=plain)
    for task in tasks:
        for metric, needed in (task.metadata.get("needs") or {}).items():
            if metric not in table:
                table[metric] = numbers.missing(f"the source of the rows has no {needed}")
    return table


def of_cases(task: Task, cases: Collection[str]) -> list[int] | None:
    """The positions of the documents that belong to some edits; None where documents belong to none."""
    rows = task.task.eval_docs
    if not len(rows) or "case" not in rows[0]:
        return None
    return [i for i, row in enumerate(rows) if row["case"] in cases]


def contributions(tasks: Sequence[Task], measured: Mapping[str, Measured]) -> dict[str, Values]:
    """What documents contribute to the metrics of some tasks, by metric."""
    found: dict[str, Values] = {}
    for task in tasks:
        found.update(measured[task.name].values)
    return found


def base_key(
    fingerprint: str,
    task: Task,
    *,
    limit: int | None,
    batch_size: int | None,
    provenance: object,
    device: torch.device,
    asked: Mapping[str, object] | None = None,
) -> str | None:
    """What the numbers of the unedited model depend on, as a hash; None for tasks that lie in no file.

    Args:
        fingerprint: of the model, see :func:`fingerprint`.
        task: the task, with its documents.
        limit: documents at most.
        batch_size: texts of one forward pass at most; None for as many as fit.
        provenance: which file the rows come from.
        device: where the model is.
        asked: how the model is asked (:attr:`harness.exam.adapter.EditedLM.asked`).
    """
    beside = task.metadata.get("config_source")
    if beside is None:
        return None
    parts = {
        "model": fingerprint,
        "task": task.name,
        "identity": task.identity,
        "functions": _code_sha256([Path(beside).parent]),
        "metadata": {k: v for k, v in task.metadata.items() if k in ("records", "data_dir", "file", "target", "split")},
        "data": provenance,
        "documents": files.json_sha256(list(task.task.eval_docs)),
        "beside": {name: _files(task, name) for name in (task.metadata.get("needs") or {}).values()},
        "asked": dict(asked or {}),
        "limit": limit,
        "batch": batch_size,
        "machine": rounding_of(device),  # the kind of a device, not its number: eight of one kind measure once
        "code": _code_sha256([_PACKAGE / room for room in _DECISIVE]),
        "versions": [__version__, *(version(name) for name in ("transformers", "lm_eval", "tokenizers"))],
    }
    return files.json_sha256(parts)


def fingerprint(lm: LM, weights: str) -> str:
    """What the numbers of a model depend on besides a task: its weights, its configuration, its tokenizer.

    Args:
        lm: the model.
        weights: the sha256 of its weights.
    """
    config, written = lm.model.config.to_dict(), str(lm.model.generation_config)
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return files.json_sha256(
        [weights, kept, written, lm.tokenizer.backend_tokenizer.to_str(), lm.tokenizer.special_tokens_map]
    )


def _files(task: Task, name: str) -> list[str]:
    """The hashes of the files of a name in the data folder, and one folder below."""
    folder = Path(str(task.metadata.get("data_dir") or "mini"))
    return [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted([*folder.glob(name), *folder.glob(f"*/{name}")])
    ]


def _code_sha256(folders: Sequence[Path]) -> str:
    """Over the names and the bytes of all Python files of some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def load_base(key: str | None) -> Measured | None:
    """The cached numbers of the unedited model; None where there are none, or where the file is damaged."""
    if key is None:
        return None
    try:
        stored = parsed(gzip.decompress(_base_path(key).read_bytes()))
        checked(_Kept, stored)
        if stored["key"] != key:
            raise ValueError("it is of something else")
        values = {m: {d: statistics.as_ratio(v) for d, v in rows.items()} for m, rows in stored["values"].items()}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        log.warning(
            "%s: cached numbers of the unedited model cannot be used (%s); measured again", _base_path(key), error
        )
        return None
    plain = {metric: math.nan if value is None else value for metric, value in stored["plain"].items()}
    samples = [Sample.from_json(line) for line in stored["samples"]]
    return Measured(values, plain, stored["answers"], stored["documents"], stored["truncated"], samples)


def measured_once(key: str | None) -> AbstractContextManager[bool]:
    """While the unedited model is measured: another process that needs the same waits; says whether this one has."""
    return nullcontext(False) if key is None else made_once(_base_path(key))


class _Kept(TypedDict):
    """What a file of cached numbers holds; a contribution is as :class:`harness.exam.statistics.Ratio`."""

    key: str
    values: dict[str, dict[str, Annotated[list[float | str | None], Len(4, 4)]]]
    plain: dict[str, Number]
    answers: dict[str, str]
    documents: dict[str, dict[str, str]]
    truncated: Count
    samples: list[SampleLine]


def save_base(key: str | None, measured: Measured) -> None:
    """Keep the numbers of the unedited model, atomically.

    Raises:
        UsageError: the cache cannot be written.
    """
    if key is None:
        return
    path = _base_path(key)
    files.require_writable(path.parent, "set HARNESS_CACHE to a folder of yours")
    body = {
        "key": key,
        "values": {m: {d: _row(ratio) for d, ratio in rows.items()} for m, rows in measured.values.items()},
        "plain": {metric: _finite(value) for metric, value in measured.plain.items()},
        "answers": measured.answers,
        "documents": measured.documents,
        "truncated": measured.truncated,
        "samples": [sample.to_json() for sample in measured.samples],
    }
    files.write_whole(path, gzip.compress(json.dumps(body, allow_nan=False).encode(), mtime=0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(ratio: Ratio) -> list[float | str | None]:
    return [_finite(ratio.num), _finite(ratio.den), ratio.cluster, ratio.stratum]


def _base_path(key: str) -> Path:
    return cache_folder() / "unedited" / f"{key}.json.gz"
