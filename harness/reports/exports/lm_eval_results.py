"""The result files of lm-evaluation-harness, for whatever reads those.

A record gives one file for each number of edits, in a folder of its own, as if ``lm_eval --output_path`` had measured
the model then. Standard errors are those of the documents; what is not lm-eval's (who edited, intervals, differences,
what has no value) stands under keys that its readers pass over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.utils import hash_string, sanitize_model_name, sanitize_task_name

from harness.reports.asked_and_said import AskedAndSaid, asked_and_said
from harness.reports.export import Export, ExportRequest
from harness.reports.standard_error import standard_error
from harness.runs.record import Record, record_name

__all__ = ["LmEvalResults"]

Json = dict[str, Any]

_OWN = ("n", "interval", "difference", "clusters", "reason")


class LmEvalResults(Export):
    """lm-eval's results: RECORD.edits-N/results_DATE.json for each number of edits, and samples where they are kept."""

    name: ClassVar[str] = "lm-eval"

    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """The files; a metric without a value is left out of the results and named under ``without_value``."""
        date = datetime.fromtimestamp(asked.when, timezone.utc).strftime("%Y-%m-%dT%H-%M-%S.%f")
        for record in records:
            for point in record.points:
                edits = int(point["edits"])
                place = folder / f"{record_name(record)}.edits-{edits}"
                place.mkdir()
                text = json.dumps(_results(record, edits, asked.when), ensure_ascii=False, allow_nan=False, indent=2)
                (place / f"results_{date}.json").write_text(text + "\n", encoding="utf-8")
                for task, lines in _samples(record, edits, asked).items():
                    (place / f"samples_{sanitize_task_name(task)}_{date}.jsonl").write_text(lines, encoding="utf-8")


def _results(record: Record, edits: int, when: int) -> Json:
    tasks = record.tasks(edits)
    shown = {task: measured for task, measures in tasks.items() if (measured := _valued(measures))}
    values = (record.values or {}).get(edits, {})
    return {
        "results": {task: _task(task, measures, values.get(task, {})) for task, measures in shown.items()},
        "group_subtasks": {task: [] for task in shown},
        "configs": {task: _task_config(record, task, measures) for task, measures in shown.items()},
        "versions": {task: record.versions.get("harness", "N/A") for task in shown},
        "n-shot": {},
        "higher_is_better": {
            task: {_parts(metric)[0]: numbers["higher_is_better"] for metric, numbers in measures.items()}
            for task, measures in shown.items()
        },
        "n-samples": {task: _counts(record, task, measures) for task, measures in shown.items()},
        "config": _config(record),
        "git_hash": None,
        "date": float(when),
        "transformers_version": record.versions.get("transformers"),
        "lm_eval_version": record.versions.get("lm_eval"),
        "task_hashes": {name: identity for name, identity in record.templates.items() if identity},
        "model_source": "hf",
        "model_name": _model(record),
        "model_name_sanitized": sanitize_model_name(_model(record)),
        "total_evaluation_time_seconds": f"{record.seconds:.3f}",
        "edited": _edited(record, edits),
        "own": {
            task: {metric: {key: numbers.get(key) for key in _OWN} for metric, numbers in measures.items()}
            for task, measures in tasks.items()
        },
        "without_value": {
            f"{task}.{metric}": numbers["reason"]
            for task, measures in tasks.items()
            for metric, numbers in measures.items()
            if numbers["value"] is None
        },
    }


def _valued(measures: Mapping[str, Json]) -> dict[str, Json]:
    return {metric: numbers for metric, numbers in measures.items() if numbers["value"] is not None}


def _parts(metric: str) -> tuple[str, str]:
    """The metric and the filter behind its comma, ``none`` where there is none, as lm-eval names them."""
    name, _, chosen = metric.partition(",")
    return name, chosen or "none"


def _task(task: str, measures: Mapping[str, Json], values: Mapping[str, Any]) -> Json:
    found: Json = {"alias": task}
    for metric, numbers in measures.items():
        name, chosen = _parts(metric)
        error = standard_error(values[metric]) if metric in values else None
        found[f"{name},{chosen}"] = numbers["value"]
        found[f"{name}_stderr,{chosen}"] = "N/A" if error is None else error
    return found


def _task_config(record: Record, task: str, measures: Mapping[str, Json]) -> Json:
    source = record.data.get(task) or {}
    return {
        "task": task,
        "dataset_path": source.get("path"),
        "metric_list": [
            {"metric": _parts(metric)[0], "higher_is_better": numbers["higher_is_better"]}
            for metric, numbers in measures.items()
        ],
        "metadata": {"headline": record.headlines.get(task), "source": source},
    }


def _counts(record: Record, task: str, measures: Mapping[str, Json]) -> Json:
    """Documents there are, and documents that were measured: those of the headline, else the most of any metric."""
    headline = measures.get(record.headlines.get(task, ""))
    measured = headline["n"] if headline else max(numbers["n"] for numbers in measures.values())
    return {"original": (record.data.get(task) or {}).get("rows") or measured, "effective": measured}


def _config(record: Record) -> Json:
    model, plan = record.model, record.plan
    return {
        "model": "hf",
        "model_args": {"pretrained": _model(record), "dtype": model.get("dtype"), **(model.get("args") or {})},
        "model_num_parameters": model.get("parameters"),
        "model_dtype": model.get("dtype"),
        "model_revision": model.get("revision") or "",
        "model_sha": model.get("sha256") or "",
        "batch_size": None,
        "device": model.get("device"),
        "limit": plan.get("limit"),
        "gen_kwargs": plan.get("gen_kwargs"),
        "random_seed": record.seed,
        "numpy_seed": record.seed,
        "torch_seed": record.seed,
    }


def _edited(record: Record, edits: int) -> Json:
    return {
        "record": record.id,
        "edits": edits,
        "editor": record.editor.get("name") if edits else "none",
        "edit_set": record.edits.get("dataset"),
        "plan": record.plan,
        "published": record.published,
        "weights": record.weights.get("edited") if edits else None,
    }


# --- samples ----------------------------------------------------------------------------------------------------------


def _samples(record: Record, edits: int, asked: ExportRequest) -> dict[str, str]:
    """lm-eval's name of a task -> its lines, where samples are kept."""
    found: dict[str, list[str]] = {}
    said = asked_and_said(asked.samples.get(record.id), edits) if asked.documents != "none" else {}
    for questions in said.values():
        line = json.dumps(_sample(questions), ensure_ascii=False, allow_nan=False)
        found.setdefault(questions[0].sample.task, []).append(line + "\n")
    return {task: "".join(lines) for task, lines in found.items()}


def _sample(questions: Sequence[AskedAndSaid]) -> Json:
    first = questions[0].sample
    requests = [pair for one in questions for pair in _requests(one)]
    scores = dict(questions[-1].reply.scores or {})
    about = {"prompt": first.prompt, "kind": first.kind, "case": first.case}
    target = first.answers or first.target
    return {
        "doc_id": first.doc_id,
        "doc": {key: value for key, value in about.items() if value is not None},
        "target": target,
        "arguments": {
            f"gen_args_{i}": {"arg_0": prompt, "arg_1": given} for i, (prompt, given, _) in enumerate(requests)
        },
        "resps": [[reply] for _, _, reply in requests],
        "filtered_resps": [reply for _, _, reply in requests],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": hash_string(json.dumps(about, sort_keys=True)),
        "prompt_hash": hash_string(first.prompt),
        "target_hash": hash_string(str(target)),
        **scores,
    }


def _requests(one: AskedAndSaid) -> list[tuple[str, Any, Any]]:
    """Prompt, what was asked of it (settings of a generation, or a choice), and the reply, as lm-eval logs them."""
    if one.reply.text is not None:
        return [(one.sample.prompt, {}, one.reply.text)]
    greedy = one.reply.greedy or (False,) * len(one.reply.loglikelihoods)
    choices = one.sample.choices or ("",) * len(one.reply.loglikelihoods)
    rated = zip(choices, one.reply.loglikelihoods, greedy, strict=False)
    return [(one.sample.prompt, choice, [str(value), str(exact)]) for choice, value, exact in rated]


def _model(record: Record) -> str:
    return str(record.model.get("name") or "model")
