"""Make the committed records of a board, and the leaderboard from them.

    python scripts/make_results.py                    the shipped models: what is missing; what is complete stays
    python scripts/make_results.py --fresh            everything
    python scripts/make_results.py --only '*memit*mini-llama*'
    python scripts/make_results.py --board smollm2    a real model, real data: the plans of scripts/boards/smollm2.yaml
    python scripts/make_results.py --board smollm2 --list

Editors that learn do so first, where they have not. A plan that was stopped goes on where it was. Two cores take two
at a time (--jobs 2). What comes first is the first seed of everything, and the first plan of a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from plans import kept, run_plans, shown, study

from harness.editing.editor import Editor, Wrapper
from harness.editing.registry import compose, editor_names, find
from harness.runs.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ROOT / "scripts" / "boards"
SHIPPED = "mini"
MODELS = ("mini", "mini-llama")
BACKPACK = ("none", "ft_m", "lora", "memit", "senses")  # on the shipped Backpack, which knows facts and no tasks
COMPOSED = ("memit+rect", "memit+prune", "memit+encore", "alphaedit+nas", "rome+rect", "mend+prune")
ZSRE = ("none", "ft", "ft_l", "rome", "r_rome", "memit")
WITHOUT = ("sae",)  # needs an autoencoder of the model, and none is shipped
COUNT = 50
SEEDS = (0, 1, 2)  # of editors that are random


def plans() -> list[Plan]:
    """Every editor on both models: isolated, and in one batch where the method takes one; over the eight tasks."""
    found = [plan for seed in SEEDS for model in MODELS for plan in _of(model, seed)]
    return found + [plan for seed in SEEDS for plan in _on_backpack(seed)]


def _on_backpack(seed: int) -> Iterator[Plan]:
    for editor in BACKPACK:
        method = find(editor)
        if method.random or not seed:
            yield from (
                Plan("mini-backpack", editor, num_edits=COUNT, mode=m, seed=seed) for m in _modes(method, editor)
            )


def _of(model: str, seed: int) -> Iterator[Plan]:
    shipped = ((name, find(name)) for name in editor_names() if name not in WITHOUT)
    editors = [n for n, cls in shipped if not issubclass(cls, Wrapper) and not cls.family and not cls.reference]
    for editor in (*editors, *COMPOSED):
        method = compose(editor).cls
        if seed and not method.random:
            continue
        for mode in _modes(method, editor):
            yield Plan(model, editor, num_edits=COUNT, mode=mode, tasks=("general",), seed=seed)
            if editor in ZSRE and mode == _modes(method, editor)[-1] and not seed:
                yield Plan(model, editor, edits="zsre", num_edits=COUNT, mode=mode, tasks=("general",))


def _modes(method: type[Editor], editor: str) -> tuple[str, ...]:
    """PRUNE restrains sums, of which an isolated edit is none; the unedited model has no mode to choose."""
    if editor == "none" or "prune" in editor:
        return ("batch",)
    return ("isolated", "batch") if method.batch else ("isolated",)


def main() -> None:
    """Run what is missing, then write the leaderboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default=SHIPPED, help=f"'{SHIPPED}', or a file of scripts/boards without its ending")
    parser.add_argument("--fresh", action="store_true", help="run complete plans again")
    parser.add_argument("--only", default="*", help="a pattern of 'EDITOR MODEL EDITS MODE SEED'")
    parser.add_argument("--jobs", type=int, default=2, help="plans at a time, one thread each")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    folder, page = places(arguments.board, arguments.results)
    board = plans() if arguments.board == SHIPPED else study(BOARDS / f"{arguments.board}.yaml")
    named = [plan for plan in board if fnmatch(shown(plan), arguments.only)]
    if not named:
        sys.exit(f"--only '{arguments.only}': no plan of {arguments.board} is called so; --list shows their names")
    wanted = [plan for plan in named if arguments.fresh or not kept(plan, folder)]
    if arguments.list:
        print("\n".join(shown(plan) for plan in wanted))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # the numbers of an optimisation depend on it in the last digits
    failed = run_plans(wanted, folder, arguments.device, arguments.jobs)
    table = [sys.executable, "-m", "harness.cli", "leaderboard", str(folder), "--format", "md"]
    subprocess.run([*table, "--output", str(page)], check=True)
    sys.exit(1 if failed else 0)


def places(board: str, results: Path) -> tuple[Path, Path]:
    """The folder of a board's records, and its leaderboard."""
    if board == SHIPPED:
        return results / "records", results / "LEADERBOARD.md"
    return results / board / "records", results / board / "LEADERBOARD.md"


if __name__ == "__main__":
    main()
