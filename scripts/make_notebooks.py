#!/usr/bin/env python3
"""Runs the code of the notebooks in ``docs/notebooks`` and writes what it prints into them; no Jupyter is needed.

A cell's output is what it prints, and the value of its last line where that is an expression.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs/notebooks"
Cell = dict[str, Any]


def main() -> None:
    """Run all notebooks, each in a folder that is gone afterwards."""
    here = Path.cwd()
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            notebook["cells"] = executed(notebook["cells"])
            os.chdir(here)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def executed(cells: list[Cell]) -> list[Cell]:
    """The cells with the outputs of running them, one after the other; raises what the code raises."""
    names: dict[str, object] = {"__name__": "__main__"}
    found: list[Cell] = []
    for cell in cells:
        if cell["cell_type"] == "code":
            count = sum(one["cell_type"] == "code" for one in found) + 1
            outputs = _run("".join(cell["source"]), names, count)
            found.append({**cell, "execution_count": count, "outputs": outputs})
        else:
            found.append(cell)
    return found


def _run(source: str, names: dict[str, object], count: int) -> list[Cell]:
    """Run one cell; gives its outputs as a notebook holds them."""
    body = ast.parse(source).body
    last = body[-1] if body and isinstance(body[-1], ast.Expr) else None
    out, value = io.StringIO(), None
    with contextlib.redirect_stdout(out):
        exec(compile(ast.Module(body if last is None else body[:-1], []), f"cell {count}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    printed = {"output_type": "stream", "name": "stdout", "text": out.getvalue().splitlines(keepends=True)}
    shown = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": _data(value)}
    return [*([printed] if out.getvalue() else []), *([shown] if value is not None else [])]


def _data(value: object) -> dict[str, list[str]]:
    """A value as text, and as the HTML that it gives of itself."""
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    html = getattr(value, "_repr_html_", None)
    return data | ({"text/html": html().splitlines(keepends=True)} if html else {})


if __name__ == "__main__":
    main()
