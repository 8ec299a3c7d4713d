"""A run that is killed goes on where it was, and ends with the numbers of a run that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DRIVER = '''
"""Runs a plan undisturbed, then again while killing it at ten random moments; each run is a process of its own."""

import faulthandler, json, os, random, shutil, signal, sys, threading, time, traceback
from pathlib import Path

import torch
import tqdm

torch.set_num_threads(1)
# Progress bars share a semaphore with all forks; one that is killed while it draws would keep it from the next forever.
tqdm.tqdm.set_lock(threading.RLock())
from harness.runs.plan import Plan
from harness.runs.options import RunOptions
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

given = json.loads(sys.argv[1])
root, draw = Path(sys.argv[2]), random.Random(int(sys.argv[3]))
plan = Plan.from_json(given)
# What a run imports is imported before it forks: most of the time of a child is then its run, which a blow can hit.
import harness.exam.measure, harness.runs.measuring
from harness.models.lm import load

resolve(plan), load(plan.model, device="cpu")


def start(folder):
    child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(240, exit=True)  # a run that hangs says where
    try:
        run_plan(resolve(plan), RunOptions(folder, device="cpu", rows=8, save_edits=True))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


assert os.waitpid(start(root / "warm"), 0)[1] == 0  # fills the cache of the unedited model
began = time.monotonic()
assert os.waitpid(start(root / "alone"), 0)[1] == 0
span = time.monotonic() - began
kills, seen = 0, set()
while kills < 10:
    child = start(root / "killed")
    time.sleep(draw.uniform(0.1, 0.9) * span)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
        seen.add(len(list((root / "killed").glob("*.state"))))
    else:
        assert status == 0
        shutil.rmtree(root / "killed")  # it was complete before the blow: from the beginning
assert os.waitpid(start(root / "killed"), 0)[1] == 0
print(json.dumps({"kills": kills, "states": sorted(seen)}))
'''


@pytest.fixture(scope="module")
def plan(checkpoint: Callable[..., Path], nudge: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Eight random edits, one at a time, measured after every two, also on four documents of NLI."""
    rows = tmp_path_factory.mktemp("rows") / "my.jsonl"
    people = ["Ada Velmont", "Hugo Lantern", "Elena Marsh", "Rosa Delgado", "Jonas Wick", "Greta Holm", "Iris Calder"]
    lines = [{"prompt": "{} was born in", "subject": who, "target": "Rome", "target_old": "Oslo"} for who in people]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(checkpoint("gpt2")),
        "editor": nudge,
        "edits": str(rows),
        "mode": "sequential",
        "eval_at": "every:2",
        "tasks": ["NLI"],
        "limit": 4,
    }


def test_killed_at_ten_random_moments_a_run_ends_with_the_same_numbers(plan: dict[str, object], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(plan), str(tmp_path), "0"]
    environment = {**os.environ, "HARNESS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 10
    assert 1 in told["states"]  # at least one blow fell while there was a state to go on from
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("alone", "killed")]
    assert names[0] == names[1]
    for name in names[0]:
        alone, killed = ((tmp_path / folder / name).read_bytes() for folder in ("alone", "killed"))
        if name.endswith(".json"):
            first, second = json.loads(alone), json.loads(killed)
            first.pop("cost"), second.pop("cost")
            assert first == second
        else:
            assert alone == killed, name
