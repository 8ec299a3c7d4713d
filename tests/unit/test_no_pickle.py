"""Nothing that the harness reads can run code: no module of the tree pickles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}
UNSAFE = {"yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader", "yaml.FullLoader"}


def forbidden(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            named = {f"{module}.{alias.name}" for alias in node.names}
            found += [module] if module.partition(".")[0] in MODULES else sorted(named & (CALLS | UNSAFE))
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found += [name] if name in CALLS | UNSAFE else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


@pytest.mark.parametrize("folder", ["harness", "editors", "tasks", "scripts"])
def test_no_module_pickles(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / folder).rglob("*.py")
        if (names := forbidden(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "from pickle import loads",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.unsafe_load('')",
        "save = torch.save",
    ],
)
def test_a_module_that_pickles_is_seen(source: str) -> None:
    assert forbidden(source)
