"""What ``--dry-run`` says that a plan takes, beside what it then took: a table of some plans.

    python scripts/estimates.py                               plans on the shipped model
    python scripts/estimates.py --model DIR --data-dir DIR    also on a real model and real data

Times are processor time on one thread, so that other work on the machine does not count. The numbers of the unedited
model and second moments are made anew.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from harness.runs import clock
from harness.runs.estimate import CostEstimate, estimate_run
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import Resolved, resolve
from harness.runs.runner import run_plan

HEAD = ("plan", "documents", "tokens", "seconds", "took", "peak MiB", "was")


def plans(model: str | None, data_dir: str) -> Iterator[tuple[str, Plan]]:
    """The plans, each with what a reader is told of it."""
    yield (
        "`mini`, rome, 10 isolated edits, two tasks",
        Plan(editor="rome", num_edits=10, tasks=("NER", "NLI"), limit=40),
    )
    yield "`mini`, memit, 20 zsRE edits in one batch", Plan(editor="memit", edits="zsre", num_edits=20)
    yield (
        "`mini`, memit, 10 edits one after another, two stops",
        Plan(
            editor="memit", num_edits=10, mode="sequential", edit_batch_size=1, eval_at="5,final", exam=("probability",)
        ),
    )
    if model is not None:
        where: dict[str, Any] = {"model": model, "data_dir": data_dir}
        tasks = ("NLI", "SentimentAnalysis", "reasoning")
        yield "SmolLM2-135M, unedited, three tasks of 10", Plan(**where, edits="none", tasks=tasks, limit=10)
        settings = {"cov_tokens": 2000}
        yield (
            "SmolLM2-135M, rome, 4 isolated edits, probabilities",
            Plan(**where, editor="rome", settings=settings, num_edits=4, exam=("probability",)),
        )


def _alone(work: Callable[[Resolved, RunOptions], Any], plan: Plan, folder: Path) -> Any:
    """What some work gives in a process of its own, so that memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_timed, work, plan, folder).result()


def _timed(work: Callable[[Resolved, RunOptions], Any], plan: Plan, folder: Path) -> Any:
    """Do some work with processor time for a clock."""
    vars(clock)["time"] = SimpleNamespace(perf_counter=time.process_time)
    os.environ["HARNESS_CACHE"] = str(folder / "cache")
    return work(resolve(plan), RunOptions(folder / "out", device="cpu", cache=False))


def row(said: str, found: CostEstimate, kept: Record) -> str:
    """A line of the table."""
    documents = sum(phase.asked.documents for phase in found.phases)
    tokens = sum(phase.asked.tokens for phase in found.phases)
    told, took = sum(phase.seconds for phase in found.phases), sum(phase["seconds"] for phase in kept.cost)
    peaks = max(phase.peak_memory_mib for phase in found.phases), max(phase["peak_memory_mib"] for phase in kept.cost)
    return f"| {said} | {documents:,} | {tokens:,} | {told:.1f} | {took:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} |"


def main() -> None:
    """Estimate each plan, run it, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder with a real model")
    parser.add_argument("--data-dir", default="mini", help="where its rows come from")
    parser.add_argument("--only", default="*", help="a pattern of plans")
    parser.add_argument("--phases", action="store_true", help="print every phase too")
    asked = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for said, plan in plans(asked.model, asked.data_dir):
        if not fnmatch(said, asked.only):
            continue
        with TemporaryDirectory() as folder:
            found, kept = (_alone(work, plan, Path(folder)) for work in (estimate_run, run_plan))
        print(row(said, found, kept), flush=True)
        for phase, spent in zip(found.phases, kept.cost, strict=True) if asked.phases else ():
            print(f"    {phase.name}: {phase.seconds:.1f}, {spent['seconds']:.1f}", flush=True)


if __name__ == "__main__":
    main()
