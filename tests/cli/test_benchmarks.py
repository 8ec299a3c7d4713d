"""`harness bench`: one benchmark in, a record and a table out; mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--set", "epochs=1", "--tokens", "60", "--device", "cpu")


def record_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def stories(shared: Path) -> Path:
    model = shared / "models" / "stories260K"
    if not (model / "config.json").is_file():
        pytest.skip("the model stories260K is not there")
    return model


def test_a_benchmark_of_the_shipped_model(harness: Callable[..., Any], tmp_path: Path) -> None:
    done = harness("bench", "mediation", "--editor", "none", "--cases", "10", "--device", "cpu", "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "mediation · mini · 10 cases of counterfact" in done.out
    record = record_in(tmp_path)
    assert record["cases"]["examined"] == 10
    found = record["results"]["none"]["decontextual_accuracy"]
    assert found == {"value": 1.0, "n": 10, "interval": [0.722467, 1.0], "reason": None}  # Wilson


def test_facts_of_every_method(harness: Callable[..., Any], checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    common = ("--model", checkpoint("gpt2"), "--data-dir", "mini", "--cases", "6", "--learn", "4", *QUICK)
    done = harness("bench", "facts", *common, "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    results = record_in(tmp_path)["results"]
    assert list(results) == ["none", "prefix", "replace", "remedi"]
    for name, found in results.items():
        assert {"efficacy", "paraphrase", "neighborhood", "consistency", "fluency", "essence"} <= set(found), name
        assert all(one["n"] > 0 for one in found.values()), name
    assert "difference" not in results["none"]["efficacy"]
    assert results["remedi"]["fluency"]["difference"]["interval"]
    again = harness("bench", "facts", *common, "--output", tmp_path / "again")
    assert again.code == 0
    assert record_in(tmp_path / "again")["results"] == results


def test_fact_classification(harness: Callable[..., Any], checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    common = ("--model", checkpoint("gpt2"), "--data-dir", "mini", "--cases", "8", "--learn", "6", *QUICK)
    done = harness("bench", "fact-classification", *common, "--output", tmp_path, "--published")
    assert (done.code, done.err) == (0, "")
    assert "published" in done.out
    assert "0.982" in done.out
    results = record_in(tmp_path)["results"]
    assert set(results) == {"remedi", "identity", "control_task", "control_model", "bilinear"}
    assert all(found["contextual_accuracy"]["n"] == 8 for found in results.values())


def test_the_norms_through_a_real_model(
    harness: Callable[..., Any], stories: Path, shared: Path, tmp_path: Path
) -> None:
    common = ("--model", stories, "--data-dir", shared / "data", "--learn", "30", *QUICK)
    done = harness("bench", "features", *common, "--output", tmp_path)
    assert (done.code, done.err) == (0, "")
    record = record_in(tmp_path)
    assert record["cases"]["examined"] == 50
    assert list(record["results"]) == ["none", "prefix", "remedi"]
    for name in ("prefix", "remedi"):
        found = record["results"][name]
        for metric in ("entailment", "entailment_magnitude", "change_co", "change_original", "change_unrelated"):
            assert (found[metric]["n"], found[metric]["value"] is None) == (50, False), metric
        assert found["correlation_co"]["n"] > 30


def test_biographies_through_a_real_model(
    harness: Callable[..., Any], stories: Path, shared: Path, tmp_path: Path
) -> None:
    common = ("--model", stories, "--data-dir", shared / "data", "--learn", "30", *QUICK)
    for name in ("bios", "bios-classification"):
        done = harness("bench", name, *common, "--output", tmp_path / name)
        assert (done.code, done.err) == (0, "")
        assert "too short, or not about one person" in done.out
    results = record_in(tmp_path / "bios")["results"]
    for name in ("none", "remedi"):
        for setting in ("contextual", "decontextual"):
            for metric in ("accuracy", "accuracy_top3", "fluency", "consistency"):
                assert results[name][f"{setting}_{metric}"]["n"] == 50
    probe = record_in(tmp_path / "bios-classification")["results"]["remedi"]
    assert probe["probe_recall_3"]["n"] == probe["accuracy"]["n"] == 50


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("fact",), "benchmark 'fact' does not exist (did you mean facts"),
        (("bios", "--editor", "prefix"), "bios has no baseline 'prefix'; its baselines are none"),
        (("fact-classification", "--editor", "none"), "it examines editors alone"),
        (("fact-classification", "--editor", "rome"), "rome adds no direction"),
        (("mediation", "--cases", "0"), "cases is 0, expected at least 1"),
        (("mediation", "--cases", "99999"), "99999 were asked for"),
        (("bios-classification", "--entity-layer", "9", "--set", "epochs=1", "--learn", "2"), "mini has layers 0 to 3"),
        (("mediation", "--data-dir", "nowhere"), "nowhere: no such folder"),
        (("mediation", "--editor", "rmedi"), "editor 'rmedi' does not exist"),
    ],
)
def test_mistakes_are_one_line(
    harness: Callable[..., Any], tmp_path: Path, extra: tuple[str, ...], message: str
) -> None:
    done = harness("bench", *extra, "--device", "cpu", "--output", tmp_path)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("*.json"))
