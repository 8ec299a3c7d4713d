"""How likely answers are against how likely they were: closed forms, and a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.errors import DataError
from harness.exam.compared import COMPARED, against_unedited
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan


@pytest.mark.parametrize(
    ("how", "before", "after", "value"),
    [
        ("distortion", [0.2, 0.2], [0.4, 0.4], 0.0),  # the same distribution
        ("distortion", [0.3, 0.0], [0.0, 0.1], math.log(2)),  # nothing in common
        ("distortion", [0.1, 0.1], [0.3, 0.1], (math.log(4 / 5) + math.log(4 / 3)) / 4
         + (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) / 2),
        ("distortion_released", [0.3, 0.0], [0.0, 0.1], math.log(2) / 2),
        ("distortion_released", [0.3, 0.0, 0.0], [0.0, 0.1, 0.0], math.log(2) / 3),
        ("ignore_rate", [0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4], 0.25),
        ("failure_rate", [0.2, 0.2], [0.1, 0.3], 0.0),  # half is not more than half
        ("failure_rate", [0.2, 0.2, 0.2], [0.1, 0.1, 0.3], 1.0),
        ("damage", [0.4], [0.1], 0.75),
        ("damage", [0.4, 0.2], [0.1, 0.4], (0.75 - 1.0) / 2),
    ],
)  # fmt: skip
def test_closed_forms(how: str, before: list[float], after: list[float], value: float) -> None:
    assert against_unedited(how, before, after) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("how", COMPARED)
@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([0.1], [0.1, 0.2]), ([math.nan], [0.1]), ([0.0, 0.0], [0.1, 0.1])]
)
def test_what_is_not_known_is_missing(how: str, before: list[float], after: list[float]) -> None:
    assert math.isnan(against_unedited(how, before, after))


def run(edits: str, output: Path, **options: object) -> Record:
    """An edit set through an editor that makes one edit at a time."""
    plan = Plan(editor="ft_m", edits=edits, mode="isolated", num_edits=3, **options)  # type: ignore[arg-type]
    return run_plan(resolve(plan), RunOptions(output=output, device="cpu"))


def test_rounds_have_the_published_numbers_beside_the_plain_ones(tmp_path: Path) -> None:
    record = run("roundedit", tmp_path)
    table = record.tasks(3)["roundedit"]
    for name in ("distortion", "distortion_released", "ignore_rate", "failure_rate"):
        assert table[name]["n"] == 3
        assert table[name]["higher_is_better"] is False
        assert name not in record.tasks(0)["roundedit"]
    assert 0 < table["distortion_released"]["value"] < table["distortion"]["value"] < math.log(2)
    assert 0 < table["object_probability"]["value"] < 1


def test_conflicts_have_the_published_numbers_beside_the_plain_ones(tmp_path: Path) -> None:
    record = run("conflictedit", tmp_path, split="composite")
    table = record.tasks(3)["conflictedit"]
    assert table["conflict_score"]["n"] == table["tied_fact_damage"]["n"] == 3
    assert table["tied_fact_damage"]["value"] <= 1
    once = run("conflictedit", tmp_path, split="coverage").tasks(3)["conflictedit"]
    # Where one fact is edited twice, both compare the same two answers to one prompt.
    assert once["conflict_score"]["value"] == once["conflict_success"]["value"] > 0
    assert once["tied_fact_damage"]["n"] == 0


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"compare": {"x": {"kind": "who", "how": "distortion"}}}, "which needs the protocol likelihood, is 'who'"),
        ({"compare": {"x": {"kind": "how_likely", "how": "distort"}}}, "how is 'distort' (did you mean distortion"),
        ({"combine": {"x": {"kind": "who", "how": "first_likelier"}}}, "first_likelier of generation"),
        ({"combine": {"x": {"kind": "how_likely", "how": "any"}}}, "any of likelihood"),
    ],
)
def test_likelihoods_are_compared_and_other_answers_are_not(block: dict[str, object], said: str) -> None:
    from harness.exam.cases import rule_of

    probes = [{"kind": "who", "prompt": "q", "answers": "a"},
              {"kind": "how_likely", "prompt": "q", "answers": "a", "protocol": "likelihood"}]  # fmt: skip
    rule = {"edits": {"prompt": "p", "target": "t"}, "probes": probes, **block}
    with pytest.raises(DataError, match=r"^toy") as error:
        rule_of("toy", rule, "toy.yaml: metadata.case")
    assert said in str(error.value)
