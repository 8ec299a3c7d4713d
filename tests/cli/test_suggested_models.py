"""Real models to begin with: what the table says of them, and that its command is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.cli.edit_and_measure import run
from harness.models.suggested import FIRST_RUN, GATED, SUGGESTED


def test_each_is_named_with_what_it_needs(harness: Callable[..., Any]) -> None:
    done = harness("models")
    assert done.code == 0
    lines = done.out.splitlines()
    for one in SUGGESTED:
        (line,) = (line for line in lines if line.startswith(f"{one.name} "))
        for said in (f"{one.parameters} M", one.memory, one.licence, one.access):
            assert said in line
    assert FIRST_RUN in done.out and GATED in done.out
    assert [one.parameters for one in SUGGESTED] == sorted(one.parameters for one in SUGGESTED)
    assert {one.access for one in SUGGESTED} == {"open", "gated"}


@pytest.mark.parametrize(("millions", "memory"), [(135, "0.7 GiB"), (1558, "7.5 GiB")])
def test_memory_is_that_of_the_weights_and_a_third(millions: int, memory: str) -> None:
    one = next(model for model in SUGGESTED if model.parameters == millions)
    assert one.memory == memory


def test_the_first_run_is_a_command() -> None:
    name, command, *options = FIRST_RUN.split()
    assert (name, command) == ("harness", "run")
    known = {name for option in run.params for name in option.opts}
    assert set(options[::2]) <= known and options[1] == "NAME"
