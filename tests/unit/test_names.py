"""One name, one meaning: a public function has a name that no other module of the package gives to a function."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

HARNESS = Path(__file__).parents[2] / "harness"

SHARED = {"api.py", "cli", "studies/contract/checks.py", "reports/formats"}
"""Where names are shared on purpose.

The front door and the command line say the same words; a check has the name of its promise, and a format is a module
that has the functions of every format.
"""

SAME = {"load": "models, and the rows of a data set, which tasks call `data.load`"}


def public_functions() -> dict[str, list[str]]:
    """Name -> the modules that have a public function of it."""
    found = defaultdict(list)
    for path in sorted(HARNESS.rglob("*.py")):
        place = path.relative_to(HARNESS).as_posix()
        if not any(place == one or place.startswith(f"{one}/") for one in SHARED):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    found[node.name].append(place)
    return found


def test_a_name_stands_in_one_module() -> None:
    found = public_functions()
    assert len(found) > 250
    twice = {name: places for name, places in found.items() if len(places) > 1 and name not in SAME}
    assert twice == {}
    assert all(len(found[name]) > 1 for name in SAME)
