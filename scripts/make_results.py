"""Make the committed records of the shipped models, and the leaderboard from them.

    python scripts/make_results.py              what is missing; what is complete is not run again
    python scripts/make_results.py --fresh      everything
    python scripts/make_results.py --only mini-llama

Each plan is a process of its own, so that a stop loses at most one; two cores take two at a time (--jobs 2).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import record, schedule
from harness.editor import find
from harness.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("mini", "mini-llama")
EDITORS = ("none", "ft", "ft_l", "rome", "r_rome", "memit")
SETS = ("counterfact", "zsre")
COUNT = 50


def plans() -> list[Plan]:
    """Every editor on every model and edit set, in the editor's own mode, over the eight general tasks."""
    every = []
    for model in MODELS:
        for edits in SETS:
            for editor in EDITORS:
                mode = schedule.default_mode(find(editor))
                every.append(Plan(model, editor, edits=edits, num_edits=COUNT, mode=mode, tasks=("general",)))
    return every


def main() -> None:
    """Run what is missing, then write the leaderboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="run complete plans again")
    parser.add_argument("--only", default="", help="only plans of this model")
    parser.add_argument("--jobs", type=int, default=2, help="plans at a time, one thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    folder = arguments.results / "records"
    folder.mkdir(parents=True, exist_ok=True)
    known = set() if arguments.fresh else {path.name.rsplit("--", 1)[1][:8] for path in folder.glob("*--*.json")}
    wanted = [p for p in plans() if arguments.only in ("", p.model) and record.identity(p.to_json())[:8] not in known]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(pool.map(lambda plan: carry_out(plan, folder), wanted))
    board = [sys.executable, "-m", "harness.cli", "leaderboard", str(folder), "--format", "md"]
    subprocess.run([*board, "--output", str(arguments.results / "LEADERBOARD.md")], check=True)
    sys.exit(1 if failed else 0)


def carry_out(plan: Plan, folder: Path) -> int:
    """Run one plan in a process of its own; its records appear in ``folder`` when they are complete."""
    workshop = folder / f".{record.identity(plan.to_json())[:8]}"
    command = [sys.executable, "-m", "harness.cli", "run", "--output", str(workshop)]
    for name in ("model", "editor", "mode", "edits"):
        command += [f"--{name}", str(getattr(plan, name))]
    command += ["--num-edits", str(plan.num_edits), "--tasks", ",".join(plan.tasks)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    print(done.stdout if done.returncode == 0 else f"{' '.join(command)}\n{done.stderr}", flush=True)
    if done.returncode == 0:
        for path in workshop.glob("*.json*"):
            path.replace(folder / path.name)
        for leftover in workshop.iterdir():
            leftover.unlink()
        workshop.rmdir()
    return done.returncode


if __name__ == "__main__":
    main()
