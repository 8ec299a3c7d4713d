"""How likely answers are against how likely they were: closed forms, and a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import DataError
from harness.exam import data
from harness.exam.compared import COMPARED, LISTED, against_unedited, told_apart
from harness.exam.measure import Measured, agree
from harness.exam.tasks import Task
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

SET = data.TASKS / "edits" / "conflictedit"


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
        ("magnitude", [0.4], [0.1], 0.75),
        ("magnitude", [0.1], [0.9], -1.0),  # not below
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


def sigma(*values: float) -> float:
    return sum(1 / (1 + math.exp(-value)) for value in values)


BEFORE = ([0.5, 0.3, 0.01], [0.2, 0.1, 0.05, 0.04, 0.02])
"""Two right answers are known and the third is not; every wrong one is below both."""
AFTER = ([0.4, 0.15, 0.9], [0.2, 0.1, 0.05, 0.04, 0.02])
"""The second has fallen behind the likeliest wrong one; the third does not count."""
NOISE = ([0.5, 0.3, 0.01], [0.45, 0.1, 0.05, 0.04, 0.18])
"""A wrong one has risen above the second."""


def test_answers_count_that_the_unedited_model_tells_apart() -> None:
    assert told_apart(BEFORE) == ([0, 1], [0, 1, 2, 3, 4])
    assert told_apart(([0.5, 0.15], [0.2, 0.1, 0.1, 0.1, 0.1, 0.1])) == ([0, 1], [1, 2, 3, 4, 5])  # a sixth exceeds
    assert told_apart(([0.5, 0.15], [0.2, 0.1, 0.1, 0.1, 0.1])) == ([0], [0, 1, 2, 3, 4])  # a fifth does
    assert told_apart(([0.1], [0.2, 0.3])) == ([], [])
    assert told_apart(([0.3], [0.3])) == ([], [])


@pytest.mark.parametrize(
    ("how", "after", "value"),
    [
        *((how, BEFORE, 0.0) for how in LISTED),
        ("relative_forgetting", AFTER, sigma(0.15) / sigma(0.4, 0.15)),
        ("absolute_forgetting", AFTER, 1 - (1 - sigma(0.15) / sigma(0.4, 0.15)) * 0.275 / 0.4),
        ("relative_noising", AFTER, sigma(0.2) / sigma(0.2, 0.1, 0.05, 0.04, 0.02)),
        ("absolute_noising", AFTER, sigma(0.2) / sigma(0.2, 0.1, 0.05, 0.04, 0.02)),  # no wrong one is likelier
        ("relative_forgetting", NOISE, sigma(0.3) / sigma(0.5, 0.3)),
        ("absolute_forgetting", NOISE, sigma(0.3) / sigma(0.5, 0.3)),
        ("relative_noising", NOISE, sigma(0.45) / sigma(0.45, 0.1, 0.05, 0.04, 0.18)),
        ("absolute_noising", NOISE, 1 - (1 - sigma(0.45) / sigma(0.45, 0.1, 0.05, 0.04, 0.18)) * 0.41 / 0.82),
    ],
)
def test_forgetting_and_noising_in_closed_form(how: str, after: tuple[list[float], list[float]], value: float) -> None:
    assert against_unedited(how, [BEFORE], [after]) == pytest.approx(value, abs=1e-12)
    unknown = ([0.1], [0.2])
    assert against_unedited(how, [BEFORE, unknown], [after, unknown]) == pytest.approx(value, abs=1e-12)
    assert against_unedited(how, [BEFORE, BEFORE], [after, BEFORE]) == pytest.approx(value / 2, abs=1e-12)


RANDOM = ([0.5, 0.3, 0.01], [0.06, 0.35, 0.02])
"""Random wrong answers beside the same right ones: by the near ones of BEFORE the first two right ones are known."""
RANDOM_AFTER = ([0.4, 0.15, 0.9], [0.2, 0.9, 0.02])
"""One random answer has risen above the second right one; the likeliest was never below both and does not count."""


def test_near_answers_tell_which_right_ones_are_known_and_random_ones_are_counted() -> None:
    assert told_apart(RANDOM) == ([0], [0, 1, 2])  # a third of the random ones exceeds the second
    assert told_apart(RANDOM, BEFORE) == ([0, 1], [0, 2])
    assert told_apart(([0.5, 0.3, 0.01], [0.6, 0.4]), BEFORE) == ([], [])
    assert told_apart(RANDOM, ([0.1], [0.2])) == ([], [])


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("relative_forgetting", sigma(0.15) / sigma(0.4, 0.15)),
        ("absolute_forgetting", 1 - (1 - sigma(0.15) / sigma(0.4, 0.15)) * 0.275 / 0.4),
        ("relative_noising", sigma(0.2) / sigma(0.2, 0.02)),
        ("absolute_noising", 1 - (1 - sigma(0.2) / sigma(0.2, 0.02)) * 0.04 / 0.11),
    ],
)
def test_random_false_objects_in_closed_form(how: str, value: float) -> None:
    found = against_unedited(how, [RANDOM], [RANDOM_AFTER], known_by=[BEFORE])
    assert found == pytest.approx(value, abs=1e-12)
    assert against_unedited(how, [RANDOM], [RANDOM], known_by=[BEFORE]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(against_unedited(how, [RANDOM], [RANDOM_AFTER], known_by=[]))
    assert math.isnan(against_unedited(how, [RANDOM], [RANDOM_AFTER], known_by=[([0.5, math.nan, 0.01], BEFORE[1])]))
    assert math.isnan(against_unedited(how, [RANDOM], [RANDOM_AFTER], known_by=[([0.5], BEFORE[1])]))


@pytest.mark.parametrize("how", LISTED)
def test_lists_that_are_not_told_apart_or_not_rated_are_missing(how: str) -> None:
    unknown, unrated = [([0.1], [0.2])], [([0.5, math.nan, 0.01], BEFORE[1])]
    assert math.isnan(against_unedited(how, unknown, unknown))
    assert math.isnan(against_unedited(how, [BEFORE], unrated))
    assert math.isnan(against_unedited(how, [], []))
    assert math.isnan(against_unedited(how, [BEFORE], []))


def run(edits: str, output: Path, **options: object) -> Record:
    """An edit set through an editor that makes one edit at a time."""
    plan = Plan(**{"editor": "ft_m", "edits": edits, "mode": "isolated", "num_edits": 3, **options})  # type: ignore[arg-type]
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


def test_lists_have_the_published_numbers_beside_the_plain_ones(tmp_path: Path) -> None:
    table = run("peak", tmp_path).tasks(3)["peak"]
    for setting in ("", "_random"):
        factors = [table[f"{name}{setting}"] for name in ("RFF", "AFF", "RNF", "ANF")]
        for one in factors:
            assert one["higher_is_better"] is False
            assert 0 <= one["value"] <= 1
            assert 0 < one["n"] <= 3
        assert len({one["n"] for one in factors}) == 1
        assert factors[1]["value"] >= factors[0]["value"]
        assert factors[3]["value"] >= factors[2]["value"]


def test_documents_of_two_kinds_of_a_case_are_brought_together() -> None:
    """The right answers of each case are known by its own near list, as the unedited model has it."""
    rule = {"kind": "listed_random", "how": "relative_forgetting", "known_by": "listed"}
    told = SimpleNamespace(config=SimpleNamespace(metadata={"compared": {"RFF_random": rule}}))
    task = Task("peak", "peak", told, "")

    def measured(**lists: tuple[list[float], list[float]]) -> Measured:
        said = {name: json.dumps([value]) for name, value in lists.items()}
        rows = {name: {"case": name[-1], "kind": name[:-2], "asks": "likelihood"} for name in lists}
        return Measured(answers=said, documents=rows)

    base = measured(listed_1=BEFORE, listed_random_1=RANDOM, listed_2=RANDOM, listed_random_2=RANDOM)
    edited = measured(listed_1=AFTER, listed_random_1=RANDOM_AFTER, listed_2=AFTER, listed_random_2=RANDOM_AFTER)
    agree(task, edited, base)
    assert {name: (ratio.num, ratio.cluster) for name, ratio in edited.values["RFF_random"].items()} == {
        "listed_random_1": (pytest.approx(sigma(0.15) / sigma(0.4, 0.15)), "1"),
        "listed_random_2": (pytest.approx(1.0), "2"),  # by its own list the first is known alone, and falls below 0.9
    }


def test_conflicts_have_the_published_numbers_beside_the_plain_ones(tmp_path: Path) -> None:
    record = run("conflictedit", tmp_path, split="composite")
    table = record.tasks(3)["conflictedit"]
    assert table["conflict_score"]["n"] == table["tied_fact_damage"]["n"] == 3
    assert table["tied_fact_damage"]["value"] <= 1
    once = run("conflictedit", tmp_path, split="coverage").tasks(3)["conflictedit"]
    # Where one fact is edited twice, both compare the same two answers to one prompt.
    assert once["conflict_score"]["value"] == once["conflict_success"]["value"] > 0
    assert once["tied_fact_damage"]["n"] == 0


def test_conflict_magnitude_is_against_the_model_of_the_first_edit_alone(tmp_path: Path) -> None:
    """What the first edit alone gives is what a run of the first edits gives, document by document."""
    rows = [json.loads(line) for line in (SET / "mini_coverage.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    cases = []
    for row in rows:
        edit = row["edits"][0]
        said = {"prompt": edit["relation"]["prompt"], "subject": edit["subject"]["label"],
                "target": edit["new_object"]["label"]}  # fmt: skip
        asked = {"kind": "held", "prompt": said["prompt"].format(said["subject"]), "answers": said["target"],
                 "protocol": "likelihood"}  # fmt: skip
        cases.append({"edits": [said], "probes": [asked]})
    path = tmp_path / "first.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    alone = run(str(path), tmp_path).values[3]["own"]["held_probability"]
    record = run("conflictedit", tmp_path, split="coverage")
    values = record.values[3]["conflictedit"]
    held, left = (values[f"first_{name}_probability"] for name in ("held", "left"))
    assert [ratio.num for ratio in held.values()] == pytest.approx([ratio.num for ratio in alone.values()], rel=1e-4)
    expected = [max(1 - b.num / a.num, -1) for a, b in zip(held.values(), left.values(), strict=True)]
    found = [ratio.num for ratio in values["conflict_magnitude"].values()]
    assert found == pytest.approx(expected, rel=1e-4)
    assert max(found) > 0.01  # the second edit takes the place of the first
    assert record.tasks(3)["conflictedit"]["conflict_magnitude"]["higher_is_better"] is True
    batch = run("conflictedit", tmp_path, split="coverage", mode="batch").tasks(3)["conflictedit"]
    assert batch["conflict_magnitude"]["value"] is None
    assert batch["first_held_probability"]["value"] is None
    assert batch["first_left_probability"]["n"] == 3


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"compare": {"x": {"kind": "who", "how": "distortion"}}}, "which needs the protocol likelihood, is 'who'"),
        ({"compare": {"x": {"kind": "how_likely", "how": "distort"}}}, "how is 'distort' (did you mean distortion"),
        ({"combine": {"x": {"kind": "who", "how": "first_likelier"}}}, "first_likelier of generation"),
        ({"combine": {"x": {"kind": "how_likely", "how": "any"}}}, "any of likelihood"),
        ({"compare": {"x": {"kind": "how_likely", "how": "magnitude", "against": "who"}}}, "against is 'who'"),
        ({"compare": {"x": {"kind": "how_likely", "how": "damage", "known_by": "how_likely"}}}, "known_by goes with"),
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
