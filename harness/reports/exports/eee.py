"""Every Eval Ever 0.3.0, the shared schema of evaluations (https://github.com/evaleval/every_eval_ever).

A record gives one evaluation for each number of edits at which the model was measured, the unedited model among them:
an aggregate file, and beside it a line for each document of each metric. Editor and settings are details of the model,
whose id stays that of the unedited one, as its guide wants it for variants.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from harness.exam.statistics import Ratio
from harness.reports.asked_and_said import AskedAndSaid, asked_and_said
from harness.reports.export import Export, ExportRequest, plain_text
from harness.reports.metric_facts import scale
from harness.reports.model_names import PROJECT, is_public, model_parts
from harness.reports.tidy import document_metrics
from harness.runs.record import Record

__all__ = ["EveryEvalEver"]

Json = dict[str, Any]

SCHEMA_VERSION = "0.3.0"
_GLOBAL = {"accuracy": "accuracy", "acc": "accuracy", "f1": "f1", "exact_match": "exact-match"}
"""Metrics that mean what everybody's metric of the name means; others are named as this project's."""
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d|data)")


class EveryEvalEver(Export):
    """Every Eval Ever 0.3.0: data/.../UUID.json for each number of edits, and UUID_samples.jsonl with its documents."""

    name: ClassVar[str] = "eee"

    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """The files, in the folders of the project's datastore; the same record has the same names each time."""
        for record in records:
            for point in record.points:
                _write_evaluation(_Evaluation(record, int(point["edits"]), asked), folder)


class _Evaluation:
    """A record after so many edits."""

    def __init__(self, record: Record, edits: int, asked: ExportRequest) -> None:
        self.record, self.edits, self.asked = record, edits, asked
        self.developer, self.model = model_parts(record)
        self.model_id = f"{self.developer}/{self.model}"
        self.id = f"{PROJECT}/{self.model_id}/{record.id}-{edits}-edits"
        content = hashlib.sha256(self.id.encode()).digest()[:16]
        self.uuid = str(UUID(bytes=content, version=4))
        self.folder = f"data/{PROJECT}/{_component(self.developer)}/{_component(self.model)}"


def _write_evaluation(one: _Evaluation, folder: Path) -> None:
    place = folder / one.folder
    place.mkdir(parents=True, exist_ok=True)
    samples = place / f"{one.uuid}_samples.jsonl"
    whole = _aggregate(one)
    if details := _write_samples(one, samples):
        whole["detailed_evaluation_results"] = {"file_path": f"{one.folder}/{samples.name}", **details}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1)
    (place / f"{one.uuid}.json").write_text(text + "\n", encoding="utf-8")


# --- the aggregate ----------------------------------------------------------------------------------------------------


def _aggregate(one: _Evaluation) -> Json:
    record = one.record
    tasks = record.tasks(one.edits)
    results = [
        _result(one, task, metric, numbers)
        for task, measures in tasks.items()
        for metric, numbers in measures.items()
        if numbers["value"] is not None
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": one.id,
        "retrieved_timestamp": str(one.asked.when),
        "source_metadata": _source(record, tasks),
        "eval_library": _library(record),
        "model_info": _model_info(one),
        "evaluation_results": results,
    }


def _source(record: Record, tasks: Mapping[str, Mapping[str, Json]]) -> Json:
    """Who reports it; and what has no value, with the reason: the schema has no place for a score that is missing."""
    absent = {
        f"{task}.{metric}": plain_text(numbers["reason"] or "no value")
        for task, measures in tasks.items()
        for metric, numbers in measures.items()
        if numbers["value"] is None
    }
    told = {**({"without_value": absent} if absent else {}), **record.published}
    return {
        "source_name": PROJECT,
        "source_type": "evaluation_run",
        "source_organization_name": str(record.published.get("repository") or "unknown"),
        "evaluator_relationship": "third_party" if record.published else "other",
        **({"additional_details": {key: plain_text(value) for key, value in told.items()}} if told else {}),
    }


def _library(record: Record) -> Json:
    """What computed the numbers: of a published run the program of its authors, whose version is its commit."""
    if record.published:
        found = record.published
        return {"name": str(found.get("format", "unknown")), "version": str(found.get("commit") or "unknown")}
    versions = {name: str(version) for name, version in record.versions.items() if name != "harness"}
    return {"name": PROJECT, "version": record.versions.get("harness", "unknown"), "additional_details": versions}


def _model_info(one: _Evaluation) -> Json:
    model, record = one.record.model, one.record
    known = {
        key: model[key] for key in ("sha256", "parameters", "dtype", "architecture", "revision", "args") if key in model
    }
    edited: Json = {"edits": one.edits} if not one.edits else {
        "edits": one.edits, "editor": record.editor.get("name"), "edit_set": record.edits.get("dataset"),
        "edits_sha256": record.edits.get("sha256"), "hyperparameters": record.editor.get("hyperparameters", {}),
        "weights_sha256": record.weights.get("edited") or {},
    }  # fmt: skip
    return {
        "name": str(model.get("name") or "model"),
        "id": one.model_id,
        "developer": one.developer,
        "inference_platform": "unknown",
        "inference_engine": {"name": "transformers", "version": record.versions.get("transformers", "unknown")},
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "open_weights" if is_public(record) else "unknown",
            **{key: plain_text(value) for key, value in [*known.items(), *edited.items()]},
        },
    }


def _result(one: _Evaluation, task: str, metric: str, numbers: Json) -> Json:
    settings = {**one.record.plan, "edits_made": one.edits, "record": one.record.id}
    return {
        "evaluation_result_id": f"{task}.{metric}",
        "evaluation_name": task,
        "source_data": _source_data(one, task),
        "metric_config": _metric(metric, numbers),
        "score_details": _score(one, task, metric, numbers),
        "generation_config": {"additional_details": {key: plain_text(value) for key, value in settings.items()}},
    }


def _source_data(one: _Evaluation, task: str) -> Json:
    known = {key: value for key, value in (one.record.data.get(task) or {}).items() if value is not None}
    details = {"task": task, **known}
    repository = one.asked.hub.get(task)
    if repository is not None:
        kind: Json = {"source_type": "hf_dataset", "hf_repo": repository.partition(":")[0]}
    elif known.get("source") == "published":  # then its path is an address
        kind = {"source_type": "url", "url": [known["path"]]}
    else:
        kind = {"source_type": "other"}
    return {"dataset_name": task, **kind, "additional_details": {k: plain_text(v) for k, v in details.items()}}


def _metric(metric: str, numbers: Json) -> Json:
    better = numbers["higher_is_better"]
    ends = scale(metric)
    # A value outside its scale by rounding, or a name that means something else: better no scale than a wrong one.
    if ends is None or not ends[0] <= numbers["value"] <= ends[1]:
        bounds: Json = {}
    else:
        greatest = ends[1] if math.isfinite(ends[1]) else "Infinity"
        bounds = {"score_type": "continuous", "min_score": ends[0], "max_score": greatest}
    said = "none" if better is None else "higher" if better else "lower"
    return {
        "metric_id": _GLOBAL.get(metric.partition(",")[0], f"{PROJECT}.{metric}"),
        "metric_name": metric,
        "lower_is_better": better is False,
        **bounds,
        "additional_details": {"better_direction": said, **({} if bounds else {"bounds_status": "unknown"})},
    }


def _score(one: _Evaluation, task: str, metric: str, numbers: Json) -> Json:
    change = numbers["difference"] or {}
    low, high = change.get("interval") or (None, None)
    told = {
        "unedited": one.record.tasks(0).get(task, {}).get(metric, {}).get("value") if one.edits else None,
        "difference": change.get("value"), "difference_low": low, "difference_high": high,
        "difference_p": change.get("p"), "difference_documents": change.get("n"), "reason": numbers["reason"],
        "clusters": numbers.get("clusters"),
    }  # fmt: skip
    details = {key: plain_text(value) for key, value in told.items() if value is not None}
    uncertainty: Json = {"num_samples": numbers["n"]} if numbers["n"] else {}
    if numbers["interval"] is not None:
        low, high = numbers["interval"]
        uncertainty["confidence_interval"] = {
            "lower": low,
            "upper": high,
            "confidence_level": 0.95,
            "method": "Wilson where every document is 0 or 1, else bootstrap over documents or their clusters",
        }
    return {
        "score": numbers["value"],
        **({"uncertainty": uncertainty} if uncertainty else {}),
        **({"details": details} if details else {}),
    }


# --- the documents ----------------------------------------------------------------------------------------------------


def _write_samples(one: _Evaluation, path: Path) -> Json:
    """Writes a line for each document of each metric, and says what was written; nothing where there is none."""
    rows, sha256 = 0, hashlib.sha256()
    with path.open("wb") as file:
        for sample in _samples(one):
            line = (json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n").encode()
            file.write(line)
            sha256.update(line)
            rows += 1
    if not rows:
        path.unlink()
        return {}
    return {"format": "jsonl", "hash_algorithm": "sha256", "checksum": sha256.hexdigest(), "total_rows": rows}


def _samples(one: _Evaluation) -> Iterator[Json]:
    said = asked_and_said(one.asked.samples.get(one.record.id), one.edits) if one.asked.documents != "none" else {}
    for task, table in (one.record.values or {}).get(one.edits, {}).items():
        measures = one.record.tasks(one.edits).get(task, {})
        for metric in document_metrics(one.record, task, measures=measures, documents=one.asked.documents):
            if measures.get(metric, {}).get("value") is None:  # there is no result that its documents could belong to
                continue
            for document, row in table.get(metric, {}).items():
                if row.den > 0 and math.isfinite(row.num / row.den):
                    yield {
                        "schema_version": SCHEMA_VERSION,
                        "evaluation_id": one.id,
                        "model_id": one.model_id,
                        "evaluation_name": task,
                        "evaluation_result_id": f"{task}.{metric}",
                        "sample_id": document,
                        **_scored(row, said.get(document, [])),
                    }


def _scored(row: Ratio, said: Sequence[AskedAndSaid]) -> Json:
    """What a document contributed; and what was asked and replied, where samples lie beside the record."""
    score = row.num / row.den
    told = {"num": row.num, "den": row.den, "cluster": row.cluster, "stratum": row.stratum}
    if not said:
        told["text"] = "not kept beside the record"
    return {
        **_asked(said),
        "interaction_type": "single_turn",
        "evaluation": {"score": score, "is_correct": score == 1.0},
        "metadata": {key: plain_text(value) for key, value in told.items() if value is not None},
    }


def _asked(said: Sequence[AskedAndSaid]) -> Json:
    """Prompts, right answers and replies of a document; those of several questions one after the other."""
    samples = [one.sample for one in said]
    answers = [one.answer for one in said if one.answer is not None]
    raw = "\n\n".join(sample.prompt for sample in samples)
    reference = [right for sample in samples for right in (sample.answers or (sample.target,))]
    content = json.dumps({"raw": raw, "reference": reference}, sort_keys=True, separators=(",", ":"))
    return {
        **({"sample_hash": hashlib.sha256(content.encode()).hexdigest()} if said else {}),
        "input": {
            "raw": raw,
            "reference": reference,
            **({"choices": list(samples[0].choices)} if len(samples) == 1 and len(samples[0].choices) > 1 else {}),
        },
        "output": {"raw": answers},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answers[-1],
                "extraction_method": "none" if said[-1].reply.text is not None else "likeliest choice",
                "is_terminal": True,
            }
        ]
        if answers
        else [],
    }


# --- names ------------------------------------------------------------------------------------------------------------


def _component(name: str) -> str:
    """A name as one folder that every file system takes."""
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("._ ") or "unnamed"
    return f"{safe}_" if _RESERVED.fullmatch(safe) else safe
