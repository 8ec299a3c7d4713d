"""Numbers of YAML as its users write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.values import settings
from harness.io.yaml_text import parse_yaml
from harness.runs.plan import Plan
from harness.studies.sweeps.sweep import Sweep


@pytest.mark.parametrize("text", ["1e-4", "-2E3", "+1.5e2", "1.e-3", ".5e+1", "0e0"])
def test_a_number_with_an_exponent_is_one(text: str) -> None:
    found = parse_yaml(f"a: [{text}]")
    assert found == {"a": [float(text)]}
    assert isinstance(found["a"][0], float)


@pytest.mark.parametrize("text", ["e5", "1e", "1e-4x", "0x1e4z", "'1e-4'", "1e-4 of it", "v1e4"])
def test_what_only_looks_like_one_is_a_text(text: str) -> None:
    assert parse_yaml(text) == text.strip("'")


def test_everything_else_is_as_yaml_has_it() -> None:
    assert parse_yaml("[1, 0.5, true, null, yes, 1_000, 2020-01-01]")[:4] == [1, 0.5, True, None]
    assert parse_yaml(json.dumps({"lr": 1e-7})) == {"lr": 1e-7}


def test_a_plan_a_sweep_and_an_option_read_the_same_number(tmp_path: Path) -> None:
    plan, sweep = tmp_path / "plan.yaml", tmp_path / "sweep.yaml"
    plan.write_text("settings: {lr: 1e-4, wd_power_law: [1e-3, 2]}\n")
    sweep.write_text("tasks: [temporal]\nmethods: {full: {lr: {choice: [1e-4, 2e-4]}}}\nballs: [1e-3]\n")
    assert Plan.read(plan)["settings"] == settings(["lr=1e-4", "wd_power_law=[1e-3, 2]"])
    assert Plan.read(plan)["settings"] == {"lr": 1e-4, "wd_power_law": [1e-3, 2]}
    found = Sweep.read(sweep)
    assert found.methods["full"] == {"lr": {"choice": [1e-4, 2e-4]}}
    assert found.balls == (1e-3,)
