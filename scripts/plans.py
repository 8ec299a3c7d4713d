"""Many plans, some at a time, for scripts that carry them out: fitted first, resumable, kept when complete."""

from __future__ import annotations

import functools
import io
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import yaml

from harness import cli
from harness.editing import learned_file
from harness.editing.editor import Learned
from harness.editing.registry import compose
from harness.errors import HarnessError
from harness.models.lm import load
from harness.runs import plan_grid
from harness.runs.plan import Plan
from harness.runs.resolve import resolve

__all__ = ["call", "identity", "kept", "run_plans", "shown", "study"]


def identity(plan: Plan) -> str:
    """The id of the plan's record."""
    return resolve(plan).id


def study(path: Path) -> list[Plan]:
    """The plans of a file, as ``harness run --config`` reads it."""
    return plan_grid.plans(Plan.read(path), where=str(path))


def kept(plan: Plan, folder: Path) -> list[Path]:
    """The complete record of a plan: one path or none."""
    return list(folder.glob(f"*--{identity(plan)[:8]}.json"))


def shown(plan: Plan) -> str:
    """A plan in one line."""
    settings = " ".join(f"{key}={value}" for key, value in plan.settings.items())
    return f"{plan.editor} {settings}{' ' * bool(settings)}{plan.model} {plan.edits} {plan.mode} {plan.seed}"


def run_plans(plans: Sequence[Plan], folder: Path, device: str, jobs: int) -> int:
    """Run plans, some at a time, each on one thread; their editors learn first.

    Returns:
        How many failed; all of them, where a worker died.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            list(pool.map(call, _lessons(plans, device)))
            return sum(pool.map(_run, plans, repeat(folder), repeat(device)))
        except BrokenProcessPool:
            print("a worker died, perhaps for want of memory; the same command goes on where it was", flush=True)
            return len(plans)


def _lessons(plans: Sequence[Plan], device: str) -> list[list[str]]:
    """The commands by which editors learn what they have not learned yet, each once."""
    missing: dict[Path, list[str]] = {}
    loaded = functools.lru_cache(maxsize=1)(load)
    for plan in plans:
        recipe = compose(plan.editor)
        if plan.fitted or not issubclass(recipe.cls, Learned):
            continue
        lm = loaded(plan.model, dtype=plan.dtype, device=device)
        method = recipe.build(lm, plan.settings, seed=plan.seed).root
        path = learned_file.default_path(method, lm)
        if not path.is_file():
            command = shlex.split(learned_file.fit_command(method, lm))[1:]
            missing[path] = [*command, "--edits", plan.edits, "--data-dir", plan.data_dir, "--device", device]
    return list(missing.values())


def _run(plan: Plan, folder: Path, device: str) -> int:
    """Run one plan; its record appears in ``folder`` when it is complete."""
    try:
        workshop = folder / f".{identity(plan)[:8]}"
    except HarnessError as error:
        print(f"{plan.editor}: {error}", flush=True)
        return 1
    workshop.mkdir(exist_ok=True)
    written = workshop / "plan.yaml"
    written.write_text(yaml.safe_dump(plan.to_json()), encoding="utf-8")
    options = ["--config", str(written), "--output", str(workshop), "--no-save-edits", "--device", device]
    done = call(["run", *options])
    if done == 0:
        for path in workshop.glob("*.json*"):
            path.replace(folder / path.name)
        for leftover in workshop.iterdir():
            leftover.unlink()
        workshop.rmdir()
    return done


def call(options: Sequence[str]) -> int:
    """A command of the harness in this process, which has loaded it already; what it says is printed."""
    said = io.StringIO()
    code: object = 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            cli.main(options)
        except SystemExit as end:
            code = end.code
    print(f"{' '.join(options)}\n{said.getvalue()}" if code else said.getvalue(), flush=True)
    return int(bool(code))
