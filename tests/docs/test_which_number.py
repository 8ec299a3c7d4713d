"""The page that says which number to trust is held to what the metrics make of known cheats."""

from __future__ import annotations

import sys

import pytest
from doc_blocks import ROOT, same

sys.path.insert(0, str(ROOT / "scripts"))

import which_number
from which_number import BEST, GOLDEN, TRICKS, Row


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """The rows by task and metric."""
    return {f"{row.task} {row.metric}": row for row in which_number.measured()}


def caught(row: Row) -> set[str]:
    return {trick for trick in TRICKS if row.notices(trick)}


def test_the_table_is_the_committed_one(rows: dict[str, Row]) -> None:
    made, kept = which_number.table(list(rows.values())).splitlines(), which_number.committed().splitlines()
    assert len(made) == len(kept)
    for new, old in zip(made, kept, strict=True):
        assert new.count("|") == old.count("|")
        marks = [[cell.count("**") for cell in line.split("|")] for line in (new, old)]
        assert marks[0] == marks[1], new
        assert same(old, new), new


def test_the_claims_of_the_page(rows: dict[str, Row]) -> None:
    """Each sentence of the page that names a trick."""
    free = "counterfact generation_exact_match"
    assert caught(rows["counterfact efficacy"]) == {"subject", "noise"}
    assert {"suppress"} <= caught(rows[free]) & caught(rows["counterfact efficacy_accuracy"])
    assert {"suppress"} <= caught(rows["counterfact efficacy_magnitude"])
    assert not {"bare", "key", "always"} & caught(rows[free])
    assert {"bare", "key", "suppress"} <= caught(rows["counterfact paraphrase_exact_match"])
    assert "always" not in caught(rows["counterfact paraphrase_exact_match"])
    for metric in ("neighborhood_exact_match", "neighborhood_agreement"):
        assert caught(rows[f"counterfact {metric}"]) == {"always", "key"}
        assert 0.8 < rows[f"counterfact {metric}"].values["key"] < 1  # type: ignore[operator]
    for metric in ("knowedit specificity_exact_match", "halluedit locality_agreement"):
        assert caught(rows[metric]) == {"always", "subject", "loop"}
        assert rows[metric].values["oracle"] == 0
    for metric in ("knowedit aliasing_exact_match", "mquake hop_any"):
        assert [rows[metric].values[name] for name in GOLDEN] == [0, 0]
        assert min(rows[metric].values[name] for name in ("key", "always")) > 0.2  # type: ignore[type-var, operator]
    assert rows["mquake instance_wise"].values["always"] == 0 < rows["mquake edit_wise"].values["always"]  # type: ignore[operator]
    assert caught(rows["counterfact generation_entropy"]) == {"always", "subject", "loop"}
    assert rows["counterfact reference_score"].values["loop"] > 1.4 * rows["counterfact reference_score"].values[BEST]  # type: ignore[operator]
    assert caught(rows["neutral_text kl"]) == {"always", "noise"}
    assert set(TRICKS) - caught(rows["counterfact score"]) == {"loop"}
    assert not caught(rows["counterfact attribute"]) | caught(rows["halluedit letter_choice"])


def test_every_trick_is_noticed_by_something_and_the_golden_editors_have_the_ceiling(rows: dict[str, Row]) -> None:
    assert set.union(*map(caught, rows.values())) == set(TRICKS)
    for metric in ("efficacy", "paraphrase", "neighborhood", "score"):
        assert [rows[f"counterfact {metric}"].values[name] for name in GOLDEN] == [1, 1]


def test_what_is_noticed() -> None:
    def row(higher: bool | None, best: float | None, value: float | None) -> bool | None:
        return Row("x", "batch", "x", "x", higher, {BEST: best, "loop": value}).notices("loop")

    assert [row(True, 1.0, value) for value in (1.2, 1.0, 0.96, 0.94, None)] == [False, False, False, True, None]
    assert [row(False, 0.0, value) for value in (-1.0, 0.019, 0.021)] == [False, False, True]
    assert [row(None, 0.5, value) for value in (0.52, 0.53, 0.47)] == [False, True, True]
    assert row(True, None, 1.0) is None
