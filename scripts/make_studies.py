"""Run studies, keep their records, and draw their curves.

    python scripts/make_studies.py                          the mini studies: what is missing; what is complete stays
    python scripts/make_studies.py --list                   what is still to be run
    python scripts/make_studies.py prune --jobs 4 --device cuda

A study is a file of scripts/studies; `harness run --config FILE` runs it as well, one plan after the other. Here each
plan is a process of its own, goes on where it was stopped, and leaves its record in results/studies when it is
complete; plans that two studies share are run once. Editors that learn are fitted first, on the study's own edit set.
The curves of a study lie in results/figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from plans import call, identity, kept, run_plans, shown, study

from harness.runs.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "scripts" / "studies"
MINI = ("rect-mini", "prune-mini")


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=MINI, help="files of scripts/studies, without their ending")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--only", default="*", help="a pattern of 'EDITOR MODEL EDITS MODE SEED'")
    parser.add_argument("--jobs", type=int, default=1, help="plans at a time, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    folder = arguments.results / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    plans = {name: study(STUDIES / f"{name}.yaml") for name in arguments.studies}
    wanted = {identity(plan): plan for found in plans.values() for plan in found if not kept(plan, folder)}
    chosen = [plan for plan in wanted.values() if fnmatch(shown(plan), arguments.only)]
    if arguments.list:
        print("\n".join(shown(plan) for plan in chosen))
        return
    failed = run_plans(chosen, folder, arguments.device, arguments.jobs)
    drawn: set[frozenset[str]] = set()
    for name, found in plans.items():
        draw(name, found, folder, arguments.results / "figures", drawn)
    sys.exit(1 if failed else 0)


def draw(name: str, plans: Sequence[Plan], folder: Path, figures: Path, drawn: set[frozenset[str]]) -> None:
    """The curves of what is complete: the editors alone in one figure, each with its wrapped forms in another.

    ``drawn`` keeps the records of each figure: two studies that share them share the figure.
    """
    found: dict[str, list[str]] = {}
    settings = {(plan.model, plan.edits, plan.mode) for plan in plans}
    for plan in plans:
        where = "" if len(settings) == 1 else f"-{Path(plan.model).name}-{plan.edits}-{plan.mode}"
        method, plus, _ = plan.editor.partition("+")
        for group in (f"{name}{where}-{method}", *([] if plus else [f"{name}{where}"])):
            found.setdefault(group, []).extend(str(path) for path in kept(plan, folder))
    figures.mkdir(parents=True, exist_ok=True)
    for group, paths in found.items():
        if len(set(paths)) > 1 and frozenset(paths) not in drawn:
            drawn.add(frozenset(paths))
            call(["plot", *dict.fromkeys(paths), "--output", str(figures / f"{group}.png")])


if __name__ == "__main__":
    main()
