"""The two doors for what is made elsewhere, and the old places of what they offer."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from harness import editor_kit, task_kit

ROOT = Path(__file__).parents[2]
OLD = {
    "delta": ("editor_kit", "LowRank"),
    "editor": ("editor_kit", "Editor"),
    "lm": ("editor_kit", "LM"),
    "metrics": ("task_kit", "aggregate"),
    "objectives": ("editor_kit", "DIRECTIONS"),
    "patch": ("editor_kit", "Part"),
    "tasks": ("task_kit", "read_edits"),
}
DOORS = {"editor_kit", "task_kit"}


@pytest.mark.parametrize("door", [editor_kit, task_kit], ids=lambda door: door.__name__)
def test_a_door_offers_what_it_says(door):
    assert all(getattr(door, name) is not None for name in door.__all__)
    assert len(set(door.__all__)) == len(door.__all__) > 15


def test_the_door_of_tasks_gives_one_list_of_names_to_all():
    """To mypy (imports for types), at run time (places), and to ``import *``."""
    tree = ast.parse(Path(task_kit.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    shown = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    given = {name for names in task_kit._PLACES.values() for name in names} | set(task_kit._MODULES)
    assert shown == given == set(task_kit.__all__)


def test_the_door_of_tasks_says_what_it_does_not_offer():
    with pytest.raises(AttributeError, match=r"offers no 'Rations'; it offers .*Ratio"):
        task_kit.Rations  # noqa: B018


def test_the_door_of_tasks_is_light():
    heavy = {"torch", "transformers", "lm_eval", "datasets", "sklearn", "scipy"}
    code = f"import sys, harness.task_kit; harness.task_kit.DataError; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def old(name: str):
    """The module at an old place, as if it were imported for the first time."""
    sys.modules.pop(f"harness.{name}", None)
    return importlib.import_module(f"harness.{name}")


@pytest.mark.parametrize("name", OLD)
def test_an_old_place_says_what_replaced_it(name):
    door, offered = OLD[name]
    with pytest.warns(
        DeprecationWarning, match=rf"harness\.{name} is an old place; write: from harness\.{door} import"
    ):
        module = old(name)
    assert getattr(module, offered) is getattr({"editor_kit": editor_kit, "task_kit": task_kit}[door], offered)
    assert all(hasattr(module, public) for public in module.__all__)


def test_the_old_place_of_rows_says_what_replaced_it():
    with pytest.warns(DeprecationWarning, match=r"write: from harness\.task_kit import data"):
        module = old("data")
    assert module.splits is task_kit.data.splits
    assert module.TASKS is task_kit.data.TASKS


def test_the_old_place_of_models_loads_them():
    with pytest.warns(DeprecationWarning, match=r"load is harness\.load"):
        module = old("lm")
    assert set(module.shipped()) >= {"mini", "mini-llama"}
    assert module.load("mini", device="cpu").name == "mini"


def test_every_old_place_is_tested():
    places = {p.stem for p in (ROOT / "harness").glob("[!_]*.py") if "is an old place" in p.read_text()}
    assert places == {*OLD, "data"}


RECIPE = """
from collections.abc import Sequence
from dataclasses import dataclass

from harness.delta import LowRank
from harness.editor import Edit, Editor, Positive
from harness.lm import LM
from harness.patch import Patch


@dataclass(frozen=True)
class Elder(Editor):
    \"\"\"As the guide of version 0.1 showed it.\"\"\"

    name = "elder"
    strength: Positive = 0.1

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return Patch()
"""


def test_an_editor_of_the_old_guide_is_still_found(tmp_path):
    from harness.editing.registry import find

    file = tmp_path / "elder.py"
    file.write_text(RECIPE)
    for name in ("delta", "editor", "lm", "patch"):
        sys.modules.pop(f"harness.{name}", None)
    with pytest.warns(DeprecationWarning) as told:
        found = find(str(file))
    assert found.name == "elder"
    assert {Path(str(w.filename)).name for w in told} == {"elder.py"}, "a warning points at the file that must change"
    assert len(told) == 4


TASK = """
task: elder
custom_dataset: !function functions.dataset
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["no", "yes"]
doc_to_target: 1
test_split: test
metric_list:
  - {metric: acc, aggregation: !function harness.metrics.aggregate, higher_is_better: true}
metadata: {version: 1.0, headline: acc}
"""


def test_a_task_of_the_old_guide_is_still_read(tmp_path):
    from lm_eval.tasks._yaml_loader import load_yaml

    (tmp_path / "elder.yaml").write_text(TASK)
    (tmp_path / "functions.py").write_text("from harness.metrics import Ratio\n\ndef dataset(**_):\n    return Ratio\n")
    sys.modules.pop("harness.metrics", None)
    with pytest.warns(DeprecationWarning, match=r"from harness\.task_kit import"):
        read = load_yaml(tmp_path / "elder.yaml")
    assert read["metric_list"][0]["aggregation"] is task_kit.aggregate
    assert read["custom_dataset"]() is task_kit.Ratio
