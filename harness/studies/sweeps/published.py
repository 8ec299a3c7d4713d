"""The published result files of "Model Editing with Canonical Examples", read into the cells that a sweep gives.

Source: Hewitt et al. 2024, arXiv 2402.06155; the folder ``plotting`` of john-hewitt/model-editing-canonical-examples at
15a1e7b.  What is odd in them, and kept:

* finetuning and LoRA: success rates; a configuration that never enters the ball falls back to no change.  Unedited
  values of one model differ between runs by up to five points (bfloat16, hardware); each change uses its own run's.
* MEMIT: failure rates; only trials inside the ball are averaged, so a cell without one is empty.  Its task ``verbs`` is
  ``verb`` here.  The published table prints 1.2 / -0.2 for the verb cell of Pythia 6.9b where the file has -0.3 / 2.9.
* the ensemble: the aggregated file is what the paper prints; the file of single runs holds other runs of the same
  cells.  Its hard negatives in the paper are the last of those single runs, not their mean (0.00 stands where
  stereoset at 1e-5 has none).
* the single runs of the Backpack were not published.  Its unedited scores were, of a run in float32; the paper prints
  those of finetuning runs, whose weights were rounded to bfloat16: three of the six differ, by 0.1 to 0.3 points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from harness.errors import DataError
from harness.exam import data
from harness.studies.sweeps.ball import change, mean_change
from harness.studies.sweeps.cells import SweepCell

__all__ = ["ensemble", "ensemble_runs", "finetuned", "last_hard_negatives", "memit", "unedited_cells"]

Row = Mapping[str, Any]


def finetuned(folder: Path) -> list[SweepCell]:
    """The cells of full finetuning and LoRA, from ``initial``, ``results`` and their ``-hn`` files in a folder."""
    initial, hard_initial, hard = (
        _by_cell(folder / f"{name}.jsonl") for name in ("initial", "initial-hn", "results-hn")
    )
    found = []
    for key, row in _by_cell(folder / "results.jsonl").items():
        model, task, method, league = key
        start, end = 100 * initial[key]["score"], 100 * row["score"]
        nats = hard_initial[key]["score"]
        found.append(
            SweepCell(
                model.rpartition("/")[2],
                task,
                method,
                float(league),
                initial=start,
                success=end,
                change=end - start,
                error=row["improvement_stddev"],
                hard_initial=nats,
                hard_change=hard[key]["score"] - nats,
            )
        )
    return found


def _by_cell(path: Path) -> dict[tuple[str, str, str, str], Row]:
    rows = data.read_jsonl(path, ("model", "task", "method", "league", "score"))
    return {(row["model"], row["task"], row["method"], row["league"]): row for row in rows}


def ensemble(path: Path, model: str = "gpt-j-6b") -> list[SweepCell]:
    """The aggregated cells of the ensemble (``intervention.jsonl``)."""
    found = []
    for row in data.read_jsonl(path, ("task", "league", "score", "initial_score", "improvement_stddev")):
        moved = change([row["initial_score"]], [row["score"]])
        start, end = 100 * (1 - row["initial_score"]), 100 * (1 - row["score"])
        tolerance, error = float(row["league"]), row["improvement_stddev"]
        found.append(SweepCell(model, row["task"], "ensemble", tolerance, start, end, moved.value, error))
    return found


def ensemble_runs(path: Path, model: str = "gpt-j-6b") -> list[SweepCell]:
    """The cells of the ensemble from its single runs (``gptj_intervene_results.jsonl``)."""
    found = []
    for (task, league), rows in _runs(path).items():
        before, after = [r["initial"]["intervention"] for r in rows], [r["intervention"] for r in rows]
        hard = mean_change([r["initial"]["hard_negative"] for r in rows], [r["hard_negative"] for r in rows])
        moved = change(before, after)
        start = 100 - 100 * sum(before) / len(rows)
        found.append(
            SweepCell(
                model,
                task,
                "ensemble",
                float(league),
                initial=start,
                success=start + (moved.value or 0.0),
                change=moved.value,
                error=moved.error,
                hard_initial=rows[0]["initial"]["hard_negative"],
                hard_change=hard.value,
                runs=moved.n,
                of=moved.n,
            )
        )
    return found


def last_hard_negatives(path: Path) -> dict[tuple[str, float], float]:
    """The change of hard negatives of the last single run of each cell: what the paper prints for the ensemble."""
    runs = {key: rows[-1] for key, rows in _runs(path).items()}
    return {(t, float(x)): row["hard_negative"] - row["initial"]["hard_negative"] for (t, x), row in runs.items()}


def _runs(path: Path) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in data.read_jsonl(path, ("intervention", "hard_negative", "initial", "config")):
        groups.setdefault((row["config"]["task"], row["config"]["league"]), []).append(row)
    return groups


def memit(path: Path, subject: Literal["standard", "oracle"]) -> list[SweepCell]:
    """The cells of MEMIT with one type of subject (``memit_results.test.final*.json``)."""
    models = _json(path)["prefix" if subject == "standard" else "oracle"]
    return [
        _memit_cell(model, "verb" if task == "verbs" else task, f"memit-{subject}", float(league), entry)
        for model, tasks in models.items()
        for task, leagues in tasks.items()
        for league, entry in leagues.items()
    ]


def _memit_cell(model: str, task: str, method: str, tolerance: float, entry: Row) -> SweepCell:
    runs = entry["n"]
    if runs == 0:
        return SweepCell(model, task, method, tolerance, runs=0, of=entry.get("out_of"))
    moved, failure = entry["success_rate_change"], entry["intervention_score"]["mean"]
    hard, moved_hard = entry["hard_negative_score"]["mean"], entry["hard_negative_score_change"]["mean"]
    return SweepCell(
        model,
        task,
        method,
        tolerance,
        initial=100 * (1 - failure - moved["mean"]),
        success=100 * (1 - failure),
        change=100 * moved["mean"],
        error=100 * moved["stdv"] / runs**0.5,
        hard_initial=hard - moved_hard,
        hard_change=moved_hard,
        runs=runs,
        of=entry.get("out_of"),
    )


def unedited_cells(path: Path) -> list[SweepCell]:
    """What MEMIT's unedited models score (``memit_results.noedit.test*.json``)."""
    found = []
    for model, tasks in _json(path).items():
        for task, entry in tasks.items():
            success, hard = 100 * (1 - entry["intervention_score"]), entry["hard_negative_score"]
            name = "verb" if task == "verbs" else task
            found.append(SweepCell(model, name, "none", None, success, success, hard_initial=hard))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data.read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); copy the published file again"
        ) from error
    return dict(found)
