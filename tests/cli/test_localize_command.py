"""``harness localize`` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ("localize", "--edits", "counterfact:4", "--facts", "3", "--methods", "ft_l@1", "--problems", "error-injection")
QUICK = ("--set", "ft_l.steps=2", "--trace-window", "1", "--samples", "2", "--no-essence", "--device", "cpu")


def test_a_small_study_is_tables_and_figures(harness: Callable[..., Any], tmp_path: Path) -> None:
    found = harness(*SMALL, *QUICK, "--output", tmp_path, "--published")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("error_injection, ft_l@1: R2 layer 0.")
    endings = {path.name.partition("--mini--")[2][8:] for path in tmp_path.iterdir()}
    assert endings == {".json.gz", ".md", ".tex", "--layers.png", "--effects.png"}
    page = next(tmp_path.glob("*.md")).read_text()
    assert r"| error\_injection | ft\_l@1 |" in page
    assert r".756 / .062 / .758 / .002 / \<1e-4 |" in page
    again = harness(*SMALL, *QUICK, "--output", tmp_path, "--published", "--tables")
    assert (again.code, again.out) == (0, found.out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--problems", "fact_erasur"),
            "problem 'fact_erasur' does not exist (did you mean fact_erasure, fact_forcing?); choose",
        ),
        (("--methods", "ultraedit@1", "--problems", "fact_erasure"), "which ultraedit cannot follow; editors that can"),
        (("--methods", "memit@9"), "window 9 is wider than the model: around each of its 4 layers it holds all"),
        (("--trace-window", "9"), "window 9 is wider than the model"),
        (("--methods", "rome@x"), "method 'rome@x': 'x' is not a number of layers"),
        (("--layers", "7"), "layer 7: the model has layers 0 to 3"),
        (("--released", "high,prob"), "--released 'prob' does not exist"),
        (("--sigma", "much"), "--sigma 'much': expected a number above 0, s3, hase or rome"),
        (("--facts", "2"), "2 facts that the model knows"),
    ],
)
def test_mistakes_are_one_line(
    harness: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    found = harness(*SMALL, *QUICK, *options, "--output", tmp_path)
    assert (found.code, found.out) == (2, "")
    assert len(found.err.strip().splitlines()) == 1
    assert said in found.err
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_the_problems(harness: Callable[..., Any]) -> None:
    found = harness("localize", "--help")
    assert found.code == 0
    for word in ("error_injection", "fact_forcing", "--published", "--released", "--tables"):
        assert word in found.out
