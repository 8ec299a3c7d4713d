"""Plans as processes of their own, for scripts that carry out many: fitted first, resumable, kept when complete."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from harness import fitted, record
from harness.editor import Learned, compose
from harness.lm import load
from harness.plan import Plan
from harness.runner import settled

__all__ = ["call", "carry_out", "fit", "identity"]


def identity(plan: Plan) -> str:
    """The id of the plan's record."""
    return record.identity(settled(plan)[0].to_json())


def fit(plan: Plan, device: str) -> None:
    """Let an editor learn, unless it has or need not."""
    recipe = compose(plan.editor)
    if plan.fitted or not issubclass(recipe.cls, Learned):
        return
    lm = load(plan.model, plan.dtype, device)
    method = recipe.build(lm, plan.settings, plan.seed).root
    if not fitted.default_path(method, lm).is_file():
        options = ["--edits", plan.edits, "--data-dir", plan.data_dir, "--device", device]
        call(*shlex.split(fitted.command(method, lm))[1:], *options)


def carry_out(plan: Plan, folder: Path, device: str) -> int:
    """Run one plan in a process of its own; its record appears in ``folder`` when it is complete."""
    workshop = folder / f".{identity(plan)[:8]}"
    workshop.mkdir(exist_ok=True)
    written = workshop / "plan.yaml"
    written.write_text(yaml.safe_dump(plan.to_json()), encoding="utf-8")
    done = call("run", "--config", str(written), "--output", str(workshop), "--no-save-edits", "--device", device)
    if done == 0:
        for path in workshop.glob("*.json*"):
            path.replace(folder / path.name)
        for leftover in workshop.iterdir():
            leftover.unlink()
        workshop.rmdir()
    return done


def call(*options: str) -> int:
    """A command of the harness on one thread; what it says is printed."""
    command = [sys.executable, "-m", "harness.cli", *options]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout if done.returncode == 0 else f"{' '.join(options)}\n{done.stderr}", flush=True)
    return int(done.returncode != 0)
