"""Records made up for tests: real statistics over invented documents, no model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from harness.exam.numbers import summarise
from harness.exam.statistics import Ratio
from harness.runs.identity import digest
from harness.runs.record import Record
from harness.runs.writer import RecordWriter

HEADLINES = {
    "ClosedDomainQA": "accuracy",
    "dialogue": "accuracy",
    "NER": "f1",
    "NLI": "accuracy",
    "OpenDomainQA": "exact_match",
    "reasoning": "exact_match",
    "SentimentAnalysis": "accuracy",
    "summarization": "rouge",
}
DERIVED = {"counterfact": {"score": ["efficacy", "paraphrase", "neighborhood"]}}


def record(
    editor: str,
    skill: float,
    *,
    model: str = "mini",
    mode: str = "batch",
    counts: tuple[int, ...] = (0, 50),
    tasks: tuple[str, ...] = tuple(HEADLINES),
    documents: int = 100,
    seed: int = 0,
    **plan: object,
) -> Record:
    """A complete record: ``skill`` near 1 edits well and harms little."""
    chosen = {"model": model, "editor": editor, "edits": "counterfact", "num_edits": counts[-1], "mode": mode}
    full = {
        **chosen,
        "edit_batch_size": None,
        "data_dir": "mini",
        "limit": None,
        "seed": seed,
        "tasks": list(tasks),
        **plan,
    }
    made = Record(
        id=digest(full),
        plan=full,
        status="complete",
        model={
            "name": model,
            "sha256": f"{model:0<64}",
            "parameters": 3_600_000,
            "dtype": "float32",
            "architecture": "gpt2",
        },
        editor={"name": editor, "hyperparameters": {"layers": [1, 2], "lr": 0.5}, "notes": ["without covariance"]},
        edits={
            "dataset": "counterfact",
            "count": counts[-1],
            "unique": counts[-1],
            "ids": [],
            "sha256": "e1",
            "warnings": [],
        },
        headlines={"counterfact": "score", **{task: HEADLINES[task] for task in tasks}},
        derived=dict(DERIVED),
        chance={},
        cost=[
            {"phase": "edit", "seconds": 4.25 / skill, "peak_memory_mib": 512.0},
            {"phase": "tasks", "seconds": 20.0, "peak_memory_mib": 640.4},
        ],
        weights={"before": {"h.1.w": "a"}, "edited": {"h.1.w": "b"}, "restored": {"h.1.w": "a"}},
        delta={"h.1.w": {"rank": 50, "frobenius": 3.25, "relative_frobenius": 0.04, "spectral": 1.5}},
        data={
            task: {"source": "mini", "path": None, "sha256": f"{task:x<64}", "rows": documents, "verified": True}
            for task in ("counterfact", *tasks)
        },
        templates=dict.fromkeys(("counterfact", *tasks), "t1"),
        versions={"python": "3.11.9", "torch": "2.13.0", "harness": "0.1.0"},
        seed=seed,
        values={},
    )
    for count in counts:
        measure(made, count, skill, documents)
    return made


def measure(made: Record, count: int, skill: float, documents: int) -> None:
    """Adds one point to a record: edit metrics, and the headline of every task."""
    strength = skill if count else 0.1
    harm = (1 - skill) * 0.4 * (count > 0)
    values = {"counterfact": _exam(made.edits["count"], strength, harm)}
    for task in (task for task in made.headlines if task != "counterfact"):
        values[task] = {made.headlines[task]: _abilities(task, documents, harm)}
    assert made.values is not None
    made.values[count] = values
    direction = {"generation_entropy": None} | {m: True for task in values.values() for m in task}
    tasks = {}
    for task, found in values.items():
        base = made.values[0][task] if count else None
        tasks[task] = summarise(found, base, direction, seed=0, derived=DERIVED.get(task))
    made.points.append({"edits": count, "tasks": tasks})


def _exam(edits: int, strength: float, harm: float) -> dict[str, dict[str, Ratio]]:
    chance = {"efficacy": strength, "paraphrase": strength * 0.9, "neighborhood": 0.85 - harm}
    probes = {"efficacy": 1, "paraphrase": 2, "neighborhood": 5}
    rng = {kind: random.Random(kind) for kind in probes}
    return {
        kind: {
            f"{kind}/{i}/{k}": Ratio(float(rng[kind].random() < chance[kind]), 1, f"c{i}")
            for i in range(edits)
            for k in range(n)
        }
        for kind, n in probes.items()
    }


def _abilities(task: str, documents: int, harm: float) -> dict[str, Ratio]:
    """Documents that are right before stay right unless harmed: outcomes are paired, as real ones are."""
    rng = random.Random(task)
    rows = {}
    for i in range(documents):
        right, spared, entities = rng.random() < 0.9, rng.random() >= harm, rng.randint(1, 4)
        good = float(right and spared)
        rows[f"{task}/{i}"] = {
            "NER": Ratio(2 * good * entities, 2.0 * entities),
            "summarization": Ratio(0.3 + 0.5 * good * rng.random()),
        }.get(task, Ratio(good))
    return rows


def write(folder: Path, made: Record) -> Path:
    """The record on disk, as a run leaves it."""
    with RecordWriter(folder, made) as writer:
        return writer.complete()


def fixed(editor: str, value: float, change: float, right: int = 0, **edits: Any) -> Record:
    """A record of literal numbers: one edit metric, one task."""
    measure = {"n": 100, "reason": None, "higher_is_better": True, "difference": None}
    base = measure | {"value": 0.3, "interval": [0.2, 0.4]}
    changed = {"value": change, "interval": sorted([change / 2, change * 1.5]), "p": 0.01, "n": 100, "detectable": 0.1}
    after = measure | {"value": value, "interval": [value - 0.1, value + 0.1], "difference": changed | {"reason": None}}
    points = [
        {"edits": count, "tasks": {"counterfact": {"efficacy": dict(m)}, "NLI": {"accuracy": dict(m)}}}
        for count, m in ((0, base), (50, after))
    ]
    outcomes = {str(i): Ratio(float(i < right)) for i in range(100)}
    return Record(
        id=f"{editor:0<16}",
        plan={"mode": "batch", "limit": 100, "data_dir": "mini"},
        status="complete",
        model={"name": "mini_x", "sha256": "m", "dtype": "float32"},
        editor={"name": editor},
        edits={"dataset": "counterfact", "count": 50, "sha256": "e"} | edits,
        headlines={"NLI": "accuracy", "counterfact": "efficacy"},
        chance={},
        points=points,
        cost=[
            {"phase": "edit", "seconds": 1.25, "peak_memory_mib": 100.0},
            {"phase": "NLI", "seconds": 2.5, "peak_memory_mib": None},
        ],
        values={50: {"counterfact": {"efficacy": outcomes}, "NLI": {"accuracy": outcomes}}},
    )
