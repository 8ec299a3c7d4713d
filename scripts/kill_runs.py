"""Kill commands at random moments, call them again until they end, and see that nothing is lost and nothing remains.

    python scripts/kill_runs.py                                50 kills, shared out among the commands
    python scripts/kill_runs.py --kills 3 --only "cov make" --only fit --seed 7

Each command is first carried out undisturbed, in a folder and a cache of its own. Then it is begun in empty ones, is
killed by SIGKILL, and is called again with the same words until it ends; and so on until it was killed often enough.
Every other blow falls at a random time, the others before a random step that changes a file: those are what a random
time hardly ever hits. After each blow every file that has its name is whole; in the end there are the same files with
the same content as without any blow, but for the seconds that a run took. What differs is named; the exit code is 1.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import lzma
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm

from harness.io.hashes import tensor_sha256
from harness.models.lm import load

__all__ = ["COMMANDS", "Outcome", "kill_often"]

SMALL = ("--device", "cpu", "--data-dir", "mini")
QUICK = ("--set", "cov_tokens=2000", "--set", "v_steps=5")
FULL = {"lr": 0.001, "batch_size": 5, "accumulate": 1, "steps": 1}
SWEEP = {"tasks": ["country_capital"], "methods": {"full": FULL}, "configurations": 1, "seeds": 2, "balls": [0.9]}
LOCALIZE = ("--edits", "counterfact:6", "--facts", "3", "--methods", "ft_l@1,rome@1", "--trace-window", "1")
EDITED = ("run", "--edits", "counterfact:4", "--tasks", "NLI", "--limit", "8", "--text", "{inputs}/text.txt", *SMALL)

COMMANDS: Mapping[str, Sequence[str]] = {
    "run, sequential": (*EDITED, "--editor", "memit", *QUICK, "--mode", "sequential", "--eval-at", "every:1"),
    "run, batch": (*EDITED, "--editor", "memit", *QUICK, "--mode", "batch"),
    "run, isolated": (*EDITED, "--editor", "rome", *QUICK, "--mode", "isolated"),
    "run, several": (*EDITED, "--editor", "ft_l", "--set", "steps=3", "--mode", "batch", "--seeds", "0,1"),
    "fit": ("fit", "--editor", "mend", "--edits", "counterfact:8", "--set", "steps=8", "--device", "cpu"),
    "sweep": ("sweep", "{inputs}/sweep.yaml"),
    "localize": (
        *("localize", *LOCALIZE, "--problems", "error-injection,fact-erasure", "--samples", "2", "--device", "cpu"),
        *("--set", "ft_l.steps=2", "--set", "rome.v_steps=3", "--set", "rome.cov_tokens=2000"),
    ),
    "cov make": ("cov", "make", "--model", "mini", "--tokens", "5000", "--device", "cpu"),
    "leaderboard": ("leaderboard", "{inputs}/runs"),
}
"""What is typed, but for ``--output``."""

USED = (
    *("harness.cli.main", "harness.runs.several", "harness.runs.measuring", "harness.reports.leaderboard"),
    *("harness.studies.localization.localize_report", "harness.studies.sweeps.sweep"),
)

OUTPUT = {"leaderboard": "{root}/out/board.md", "fit": "{root}/out/mend.safetensors", "cov make": None}
"""Where a command writes, if it is not to a folder; None where it is to the cache alone."""

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Outcome:
    """What became of a command.

    Attributes:
        kills: how often it was killed.
        kept: how often a file was there to go on from.
        ends: how often it ended.
        faults: what differs, or was not whole.
    """

    kills: int = 0
    kept: int = 0
    ends: int = 0
    faults: list[str] = field(default_factory=list)


# --- a command in a process of its own --------------------------------------------------------------------------------


def words_of(name: str, root: Path, inputs: Path) -> list[str]:
    """What is typed for a command that writes below a folder."""
    output = OUTPUT.get(name, "{root}/out")
    words = [*COMMANDS[name], *([] if output is None else ["--output", output])]
    return [word.replace("{root}", str(root)).replace("{inputs}", str(inputs)) for word in words]


def start(words: Sequence[str], root: Path, last_step: int = 0) -> int:
    """Begin a command in a process of its own, which is killed before the step of that number; 0 is never.

    It is a fork, so that all that is imported is there: most of its time is then work, which a blow can hit.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = _called(words, root, last_step)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _called(words: Sequence[str], root: Path, last_step: int) -> int:
    from harness import cli

    # Torch's pool of threads is made anew after a fork by whoever asks first: of two threads that load weights, one
    # would find none.
    torch.set_num_threads(torch.get_num_threads())
    (root / "out").mkdir(parents=True, exist_ok=True)
    log = os.open(root.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["HARNESS_CACHE"] = str(root / "cache")
    steps = _Steps(root, last_step)
    sys.addaudithook(steps)
    try:
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        steps.root = ""
        root.with_suffix(".steps").write_text(str(steps.count))
    return 0


class _Steps:
    """Counts what changes a file below a folder, before it does, and kills the process at one of them."""

    def __init__(self, root: Path, last: int) -> None:
        self.root, self.last, self.count = str(root), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook of Python."""
        if not self.root or not (event in CHANGES or (event == "open" and _writes(arguments))):
            return
        if str(arguments[0]).startswith(self.root):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[0], str) and bool(int(arguments[2] or 0) & WRITES)


# --- what lies in a folder --------------------------------------------------------------------------------------------


def files_of(root: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones too."""
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def contents(root: Path) -> dict[str, bytes]:
    """What each file says, by its place; without the seconds that something took."""
    return {str(path.relative_to(root)): _untimed(path, root) for path in files_of(root)}


def _untimed(path: Path, root: Path) -> bytes:
    if path.suffix == ".safetensors" and _readable(path):
        return _tensors(path)
    content = path.read_bytes().replace(str(root).encode(), b"ROOT")
    if path.suffix != ".json":
        return content
    return json.dumps(_without_time(json.loads(content)), sort_keys=True).encode()


def _tensors(path: Path) -> bytes:
    """The tensors and what is said of them: safetensors writes the latter in an order that changes by process."""
    with safe_open(path, "pt") as file:
        hashes = {name: tensor_sha256(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        said = dict(file.metadata())
    # A sha256 of the manifest stands in front of it, in most kinds of files.
    about = json.loads(re.sub("^[0-9a-f]{64} ", "", said.pop("manifest")))
    said = said if "seconds" not in about else {}  # what is said besides is a hash of it
    return json.dumps([hashes, said, _without_time(about)], sort_keys=True).encode()


def _without_time(said: Any) -> Any:
    if not isinstance(said, dict):
        return said
    return {key: value for key, value in said.items() if key not in ("cost", "seconds")}


def not_whole(root: Path) -> list[str]:
    """The files that have their name and place and cannot be read; what a writer has begun lies behind a dot."""
    named = (path for path in files_of(root) if not any(part[0] == "." for part in path.relative_to(root).parts))
    return [f"{path.name} is half-written" for path in named if not _readable(path)]


def _readable(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".xz":
            json.loads(lzma.decompress(path.read_bytes()))
        elif path.suffix == ".gz":
            json.loads(gzip.decompress(path.read_bytes()))
        elif path.suffix in (".safetensors", ".state"):
            with safe_open(path, "pt"):
                pass
    except Exception:  # whatever a reader says of half a file
        return False
    return True


def differences(alone: Mapping[str, bytes], killed: Mapping[str, bytes]) -> list[str]:
    """Files that are missing, are too many, or say something else."""
    missing = [f"{name} is missing" for name in alone.keys() - killed.keys()]
    more = [f"{name} remains" for name in killed.keys() - alone.keys()]
    other = [f"{name} is another" for name in alone.keys() & killed.keys() if alone[name] != killed[name]]
    return sorted([*missing, *more, *other])


# --- the blows --------------------------------------------------------------------------------------------------------


def kill_often(name: str, kills: int, *, rng: random.Random, folder: Path, inputs: Path) -> Outcome:
    """Kill a command so often, and call it again until it ends.

    Args:
        name: of the command.
        kills: how often.
        rng: of the moments.
        folder: where it writes; empty.
        inputs: what commands read, see :func:`make_inputs`.
    """
    root, found = folder / "killed", Outcome()
    wanted, span, steps = _undisturbed(name, folder, root, inputs)
    by_time = cycle([True, False])
    while not found.faults and (found.kills < kills or not found.ends):
        shutil.rmtree(root, ignore_errors=True)
        while not found.faults:
            if found.kills == kills:
                status = _waited(start(words_of(name, root, inputs), root))
            elif next(by_time):
                status = _struck(start(words_of(name, root, inputs), root), rng.uniform(0.02, 1.1) * span)
            else:
                status = _waited(start(words_of(name, root, inputs), root, rng.randint(1, steps)))
            if not os.WIFSIGNALED(status):
                found.ends += 1
                found.faults += _ended(status, root, wanted)
                break
            found.kills += 1
            found.kept += any(path.name[0] != "." for path in files_of(root))
            found.faults += not_whole(root)
    return found


def _undisturbed(name: str, folder: Path, root: Path, inputs: Path) -> tuple[dict[str, bytes], float, int]:
    """What a command leaves that nobody kills, how long it takes, and how many steps change a file."""
    began = time.monotonic()
    status = _waited(start(words_of(name, root, inputs), root))
    span = time.monotonic() - began
    if status:
        raise SystemExit(f"{name} fails undisturbed: {root.with_suffix('.log').read_text()}")
    wanted, steps = contents(root), int(root.with_suffix(".steps").read_text())
    root.rename(folder / "alone")
    return wanted, span, steps


def _ended(status: int, root: Path, wanted: Mapping[str, bytes]) -> list[str]:
    if status:
        return [f"ends with code {os.waitstatus_to_exitcode(status)}: {root.with_suffix('.log').read_text()[-400:]}"]
    return differences(wanted, contents(root))


def _waited(child: int) -> int:
    return os.waitpid(child, 0)[1]


def _struck(child: int, after: float) -> int:
    time.sleep(after)
    os.kill(child, signal.SIGKILL)  # one that has ended is there until it is waited for
    return _waited(child)


def make_inputs(folder: Path) -> None:
    """What commands read: a file of a sweep, plain text, and records."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(json.dumps(SWEEP))
    lines = (Path(__file__).parents[1] / "harness" / "mini" / "text_heldout.txt").read_text().splitlines(keepends=True)
    (folder / "text.txt").write_text("".join(lines[:400]))
    words = [word.replace("{inputs}", str(folder)) for word in COMMANDS["run, several"]]
    if _waited(start([*words, "--output", str(folder / "runs")], folder / "made")):
        raise SystemExit(f"the records of a leaderboard cannot be made: {(folder / 'made.log').read_text()}")


def _ready() -> None:
    """Import what commands import, before they fork."""
    # Progress bars share a semaphore with all forks; one that is killed while it draws keeps it from the next for ever.
    tqdm.set_lock(threading.RLock())
    for name in USED:
        importlib.import_module(name)
    load("mini", device="cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill commands, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="a command; may be given several times")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _ready()
    names, faults = asked.only or list(COMMANDS), 0
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder) / "inputs")
        for place, name in enumerate(names):
            mine = asked.kills // len(names) + (place < asked.kills % len(names))
            (Path(folder) / str(place)).mkdir()
            where = {"folder": Path(folder) / str(place), "inputs": Path(folder) / "inputs"}
            found = kill_often(name, mine, rng=random.Random(f"{asked.seed} {name}"), **where)
            print(
                f"{name}: killed {found.kills} times, {found.kept} of them with something kept; ended {found.ends} "
                f"times, {'each as if never killed' if not found.faults else 'not as if never killed'}",
                flush=True,
            )
            for fault in found.faults:
                print(f"  {fault}", file=sys.stderr, flush=True)
            faults += len(found.faults)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
