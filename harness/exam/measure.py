"""Scores one state of a model on a suite of tasks, and turns what documents contribute into numbers with intervals."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
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
from harness.exam.compared import HIGHER, against_unedited
from harness.exam.prompting import FEWSHOT_SEED
from harness.exam.quiet import quiet_lm_eval
from harness.exam.samples import Sample, SampleLine, samples_of
from harness.exam.statistics import Ratio, Values
from harness.exam.tasks import Task, templates_once, values_of
from harness.io import files
from harness.io.cache import cache_folder, in_cache, share
from harness.io.locks import made_once
from harness.io.schema import Count, Number, checked, parsed
from harness.models.lm import LM
from harness.models.rounding import rounding_of
from harness.models.tokens import tokenizer_text
from harness.patches.patch import Patch

__all__ = [
    "Measured",
    "MeasuredFile",
    "agree",
    "asked_after",
    "base_key",
    "configuration_sha256",
    "contributions",
    "documents_under",
    "fingerprint",
    "hold",
    "join_measured",
    "load_base",
    "measure_task",
    "measured_from",
    "measured_once",
    "measured_to",
    "of_cases",
    "save_base",
    "summarise_tasks",
    "unedited_key",
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
        items: of the metrics in ``plain``, by document, what lm-eval aggregates.
    """

    values: dict[str, dict[str, Ratio]] = field(default_factory=dict)
    plain: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    documents: dict[str, dict[str, str]] = field(default_factory=dict)
    truncated: int = 0
    samples: list[Sample] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

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
    portion: range | None = None,
    documents: Mapping[str, Sequence[int]] | None = None,
) -> AbstractContextManager[EditedLM]:
    """The context in which a stop is measured: no patch, one patch, or a patch for each document.

    In isolated editing a document of the edit set is scored under the edit that its field ``case`` names, and a
    document of any task that has a field ``edit`` under the edit which that names.  Document ``i`` of other tasks is
    scored under edit ``i mod n``, so that the value of a task estimates the mean over single edits at the price of one
    pass.

    Args:
        model: what is measured.
        stop: where the edits have come to; None is the unedited model.
        ids: the ids of all edits, in the order of the patches.
        mode: ``isolated``, ``batch`` or ``sequential``.
        own: lm-eval's names of the tasks of the edit set.
        at_once: cases that a patch of isolated editing holds; None for one.
        portion: which of all patches of isolated editing the stop has; None for all.
        documents: task -> the positions of the documents that are scored; None for all. lm-eval counts those alone.
    """
    if stop is None:
        return model.holding(Patch())
    if mode != "isolated":
        return model.holding(stop.patches[0])
    owners, first = _Owners.of(ids, own, at_once), portion.start if portion else 0

    def patch_of(request: Any) -> int:
        place = int(request.doc_id)
        number = place if documents is None else documents[request.task_name][place]
        mine = owners(request.task_name, number, request.doc) - first
        part = stop.partial and isinstance(request.doc, Mapping) and request.doc.get("after")
        return len(stop.patches) + mine if part else mine

    return model.isolated([*stop.patches, *stop.partial] if stop.partial else stop.patches, patch_of)


@dataclass(frozen=True)
class _Owners:
    """Under which patch of isolated editing a document is scored.

    Attributes:
        position: the patch of each edit.
        patches: how many patches there are.
        own: lm-eval's names of the tasks of the edit set.
    """

    position: Mapping[str, int]
    patches: int
    own: Collection[str]

    @classmethod
    def of(cls, ids: Sequence[str], own: Collection[str], at_once: int | None) -> _Owners:
        """The owners where so many cases share a patch."""
        size = at_once or 1
        return cls({edit: i // size for i, edit in enumerate(ids)}, -(-len(ids) // size), own)

    def __call__(self, task: str, number: int, doc: object) -> int:
        """The place of the patch of a document.

        Raises:
            DataError: the document belongs to an edit that is not made.
        """
        named = self._edit_of(task, doc)
        if named is None:
            return number % self.patches
        if named not in self.position:
            raise DataError(
                f"{task}, document {number}: belongs to edit '{named}', which is not made; leave the document out, or "
                "name one of the edits"
            )
        return self.position[named]

    def _edit_of(self, task: str, doc: object) -> str | None:
        """The edit that a document belongs to; None where it belongs to none."""
        if not isinstance(doc, Mapping):
            return None
        named = doc.get("edit")
        if named is None and task in self.own:
            named = doc.get("case")
        return None if named is None else str(named)


def documents_under(
    task: Task,
    portion: range,
    *,
    ids: Sequence[str],
    own: Collection[str],
    at_once: int | None,
    limit: int | None,
    partial: bool = False,
) -> list[int]:
    """The positions of the documents of a task that are scored under some patches of isolated editing.

    Args:
        task: the task.
        portion: which patches.
        ids: the ids of all edits, in the order of the patches.
        own: lm-eval's names of the tasks of the edit set.
        at_once: cases that a patch holds; None for one.
        limit: documents of the task at most; None for all.
        partial: whether those are wanted, too, that are asked of a model which holds only some edits of a case.
    """
    owners, rows = _Owners.of(ids, own, at_once), task.task.eval_docs
    count = len(rows) if limit is None else min(limit, len(rows))
    mine = [i for i in range(count) if owners(task.name, i, rows[i]) in portion]
    return mine if partial else [i for i in mine if not (isinstance(rows[i], Mapping) and rows[i].get("after"))]


def join_measured(task: Task, parts: Sequence[Measured]) -> Measured:
    """What a task gave whose documents were scored in portions, as if they had been scored at once.

    Args:
        task: the task.
        parts: what each portion gave.
    """

    def together(kind: str) -> dict[str, dict[str, Any]]:
        names = dict.fromkeys(name for part in parts for name in getattr(part, kind))
        return {name: _in_order(getattr(part, kind).get(name, {}) for part in parts) for name in names}

    items, rules = together("items"), task.task.aggregation()
    plain = {name: float(rules[name.partition(",")[0]](list(rows.values()))) for name, rows in items.items()}
    samples = sorted((one for part in parts for one in part.samples), key=lambda one: one.doc_id)
    return Measured(
        together("values"),
        plain,
        _in_order(part.answers for part in parts),
        _in_order(part.documents for part in parts),
        sum(part.truncated for part in parts),
        samples,
        items,
    )


def _in_order(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What portions say of documents, in the order of the documents."""
    found = {name: value for part in parts for name, value in part.items()}
    return dict(sorted(found.items(), key=lambda item: int(item[0].rpartition("/")[2])))


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
            measured.items[name] = {
                f"{task.name}/{sample['doc_id']}": sample[metric]
                for sample in samples
                if metric in sample and sample.get("filter", kind) == kind
            }
    compared = task.metadata.get("agreement") or task.metadata.get("compared")
    if compared and not model.prompting.predict_only:
        for sample in samples:
            document = f"{task.name}/{sample['doc_id']}"
            likely = task.task.likelihoods(sample["doc"], _replies(sample)) if task.metadata.get("compared") else []
            measured.answers[document] = json.dumps(likely) if likely else str(sample["filtered_resps"][0])
            measured.documents[document] = {k: str(sample["doc"][k]) for k in ("case", "kind", "target_true")} | {
                "asks": "likelihood" if likely else "text"
            }
    return measured


def _replies(sample: Mapping[str, Any]) -> list[Any]:
    """What the model answered to each request of a document."""
    return list(sample["filtered_resps"])


def agree(task: Task, edited: Measured, base: Measured) -> None:
    """Add the metrics that hold the edited model against the unedited one: agreement, and how likely answers are.

    Args:
        task: whose YAML says which such metrics there are, and for which kind of probe.
        edited: what the edited model gave; the metrics are added to it.
        base: what the unedited model gave.
    """
    for metric, rule in (task.metadata.get("agreement") or {}).items():
        edited.values[metric] = {
            document: text_metrics.agreement(row, edited.answers[document], base.answers[document])
            for document, row in edited.documents.items()
            if row["kind"] == rule["kind"] and row.get("asks", "text") == "text" and document in base.answers
        }
    likely = {d: row for d, row in edited.documents.items() if row.get("asks") == "likelihood"}
    for metric, rule in (task.metadata.get("compared") or {}).items():
        other = {row["case"]: edited.answers[d] for d, row in likely.items() if row["kind"] == rule.get("against")}
        before = {d: other.get(row["case"]) if "against" in rule else base.answers.get(d) for d, row in likely.items()}
        near = {row["case"]: base.answers.get(d) for d, row in likely.items() if row["kind"] == rule.get("known_by")}
        edited.values[metric] = {
            document: Ratio(
                against_unedited(
                    rule["how"],
                    json.loads(was),
                    json.loads(edited.answers[document]),
                    known_by=json.loads(near.get(row["case"]) or "[]") if "known_by" in rule else None,
                ),
                1.0,
                row["case"],
            )
            for document, row in likely.items()
            if row["kind"] == rule["kind"] and (was := before[document]) is not None
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
        directions |= {name: rule["how"] in HIGHER for name, rule in (task.metadata.get("compared") or {}).items()}
        plain |= measured[task.name].plain
        derived |= {score: rule["harmonic"] for score, rule in (task.metadata.get("derived") or {}).items()}
    table = numbers.summarise(mine, before, directions, seed=seed, derived=derived, plain=plain)
    for task in tasks:
        for metric, needed in (task.metadata.get("needs") or {}).items():
            if metric not in table:
                table[metric] = numbers.missing(f"the source of the rows has no {needed}")
    return table


def of_cases(task: Task, cases: Collection[str], *, partial: bool = False) -> list[int] | None:
    """The positions of the documents that belong to some edits; None where documents belong to none.

    Args:
        task: the task.
        cases: the ids of the edits, or of their cases.
        partial: whether those are wanted, too, that are asked of a model which holds only some edits of a case.
    """
    rows = task.task.eval_docs
    if not len(rows) or "case" not in rows[0]:
        return None
    return [i for i, row in enumerate(rows) if row["case"] in cases and (partial or not row.get("after"))]


def asked_after(tasks: Sequence[Task]) -> int | None:
    """Of how many edits of a case a model holds that some documents are asked of; None where all are of all."""
    asking = [task.task.eval_docs for task in tasks]
    stages = [row["after"] or 0 for docs in asking if "after" in getattr(docs, "column_names", ()) for row in docs]
    return max(stages, default=0) or None


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
    }
    return unedited_key(fingerprint, device, parts)


def unedited_key(fingerprint: str, device: torch.device, parts: Mapping[str, object]) -> str:
    """What something that the unedited model gave depends on, as a hash.

    Args:
        fingerprint: of the model, see :func:`fingerprint`.
        device: where the model is.
        parts: what was asked, and how.
    """
    whole = {
        "model": fingerprint,
        "machine": rounding_of(device),  # the kind of a device, not its number: eight of one kind measure once
        "code": _code_sha256([_PACKAGE / room for room in _DECISIVE]),
        "versions": [__version__, *(version(name) for name in ("transformers", "lm_eval", "tokenizers"))],
        **parts,
    }
    return files.json_sha256(whole)


def fingerprint(lm: LM, weights: str) -> str:
    """What the numbers of a model depend on besides a task: its weights, its configuration, its tokenizer.

    Args:
        lm: the model.
        weights: the sha256 of its weights.
    """
    return files.json_sha256([weights, *_configuration(lm)])


def configuration_sha256(lm: LM) -> str:
    """What the numbers of a model depend on besides a task and its weights: its configuration, its tokenizer."""
    return files.json_sha256(_configuration(lm))


def _configuration(lm: LM) -> list[object]:
    config, written = lm.model.config.to_dict(), str(lm.model.generation_config)
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return [kept, written, tokenizer_text(lm.tokenizer), lm.tokenizer.special_tokens_map]


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
    if key is None or not in_cache(_base_path(key)):
        return None
    try:
        stored = parsed(gzip.decompress(_base_path(key).read_bytes()))
        checked(_Kept, stored)
        if stored["key"] != key:
            raise ValueError("it is of something else")
        return measured_from(stored)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        log.warning(
            "%s: cached numbers of the unedited model cannot be used (%s); measured again", _base_path(key), error
        )
        return None


def measured_once(
    key: str | None, measure: Callable[[], Measured], *, cache: bool = True, metrics: Collection[str] = ()
) -> Measured:
    """What the unedited model gave: as an earlier run has kept it, or anew, and then kept.

    While it is measured, another process that needs the same waits, and takes what this one keeps.

    Args:
        key: what it depends on; None for what is not kept.
        measure: measures it.
        cache: whether it may come from the cache.
        metrics: those that a kept file must have.

    Raises:
        UsageError: the cache cannot be written.
    """

    def kept() -> Measured | None:
        found = load_base(key) if cache else None
        return found if found is not None and found.values.keys() >= set(metrics) else None

    found = kept()
    if found is not None:
        return found
    with nullcontext(False) if key is None else made_once(_base_path(key)) as waited:
        found = kept() if waited else None
        if found is None:
            found = measure()
            save_base(key, found)
    return found


class MeasuredFile(TypedDict):
    """What a file holds of one task; a contribution is as :class:`harness.exam.statistics.Ratio`."""

    values: dict[str, dict[str, Annotated[list[float | str | None], Len(4, 4)]]]
    plain: dict[str, Number]
    answers: dict[str, str]
    documents: dict[str, dict[str, str]]
    truncated: Count
    samples: list[SampleLine]
    items: dict[str, dict[str, Any]]


class _Kept(MeasuredFile):
    """What a file of cached numbers holds."""

    key: str


def measured_to(measured: Measured) -> MeasuredFile:
    """What a task gave, as a file holds it."""
    return {
        "values": {m: {d: _row(ratio) for d, ratio in rows.items()} for m, rows in measured.values.items()},
        "plain": {metric: _finite(value) for metric, value in measured.plain.items()},
        "answers": measured.answers,
        "documents": measured.documents,
        "truncated": measured.truncated,
        "samples": [sample.to_json() for sample in measured.samples],  # type: ignore[misc]
        "items": measured.items,
    }


def measured_from(kept: Mapping[str, Any]) -> Measured:
    """What a task gave, from what :func:`measured_to` made.

    Raises:
        ValueError: it is not that.
    """
    values = {m: {d: statistics.as_ratio(v) for d, v in rows.items()} for m, rows in kept["values"].items()}
    plain = {metric: math.nan if value is None else value for metric, value in kept["plain"].items()}
    samples = [Sample.from_json(line) for line in kept["samples"]]
    return Measured(values, plain, kept["answers"], kept["documents"], kept["truncated"], samples, kept["items"])


def save_base(key: str | None, measured: Measured) -> None:
    """Keep the numbers of the unedited model, atomically.

    Raises:
        UsageError: the cache cannot be written.
    """
    if key is None:
        return
    path = _base_path(key)
    files.require_writable(path.parent, "set HARNESS_CACHE to a folder of yours")
    body = {"key": key, **measured_to(replace(measured, items={}))}
    files.write_whole(path, gzip.compress(json.dumps(body, allow_nan=False).encode(), mtime=0))
    share(path)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(ratio: Ratio) -> list[float | str | None]:
    return [_finite(ratio.num), _finite(ratio.den), ratio.cluster, ratio.stratum]


def _base_path(key: str) -> Path:
    return cache_folder() / "unedited" / f"{key}.json.gz"
