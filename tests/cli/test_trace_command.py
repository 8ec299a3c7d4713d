"""`harness trace` and `harness trace-plot`, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--samples", "2", "--device", "cpu", "--known", "all")


@pytest.fixture
def command(checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[str, ...]:
    model = str(checkpoint("gpt2"))
    return (
        "trace",
        "--model",
        model,
        "--edits",
        "counterfact:3",
        "--data-dir",
        "mini",
        "--output",
        str(tmp_path / "out"),
        *QUICK,
    )


def test_a_study_of_several_kinds_and_windows(
    harness: Callable[..., Any], command: tuple[str, ...], tmp_path: Path
) -> None:
    done = harness(*command, "--kind", "mlp,block", "--window", "1,2")
    assert (done.code, done.err) == (0, "")
    paths = sorted((tmp_path / "out").glob("*.json"))
    made = {(r["plan"]["settings"]["kind"], r["plan"]["settings"]["window"]) for r in map(_json, paths)}
    assert made == {("mlp", 1), ("mlp", 2), ("block", 1), ("block", 2)}
    assert done.out.count("record: ") == 4
    assert "trace of block outputs, 2 layers" in done.out
    assert "3 of 3 facts of counterfact" in done.out
    drawn = harness("trace-plot", *paths, "--output", tmp_path / "figure.svg")
    assert (drawn.code, (tmp_path / "figure.svg").is_file()) == (0, True)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_variants(harness: Callable[..., Any], command: tuple[str, ...], tmp_path: Path) -> None:
    done = harness(*command, "--variant", "rome", "--window", "3")
    assert (done.code, done.err) == (0, "")
    settings = [_json(path)["plan"]["settings"] for path in sorted((tmp_path / "out").glob("*.json"))]
    assert [(s["kind"], s["window"]) for s in settings] == [("attn", 3), ("block", 3), ("mlp", 3)]
    assert {(s["sigma"], s["answer"], s["known"]) for s in settings} == {("s3", "prediction", "all")}
    wide = harness(*command, "--variant", "rome", "--kind", "mlp")
    assert (wide.code, wide.out) == (2, "")
    assert "window 10 is wider than the model" in wide.err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--kind", "mpl"), "--kind 'mpl' does not exist (did you mean mlp?)"),
        (("--window", "99"), "window 99 is wider than the model"),
        (("--window", "0"), "window is 0, expected at least 1"),
        (("--window", "a"), "--window 'a': expected numbers"),
        (("--sigma", "loud"), "--sigma 'loud': expected a number above 0, s3, hase or rome"),
        (("--sigma", "nan"), "sigma is nan"),
        (("--samples", "0"), "samples is 0"),
        (("--variant", "meng"), "variant 'meng' does not exist"),
        (("--edits", "counterfat"), "edit set 'counterfat' does not exist"),
        (("--edits", "counterfact:99999"), "99999 were asked for"),
        (("--edits", "none.jsonl"), "none.jsonl: no such file"),
        (("--edits", "known_1000"), "known_1000 does not ship with the package"),
        (("--threshold", "3"), "threshold is 3.0, expected a probability"),
    ],
)
def test_mistakes_are_one_line(
    harness: Callable[..., Any], command: tuple[str, ...], extra: tuple[str, ...], message: str
) -> None:
    done = harness(*command, *extra)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert "Traceback" not in done.err


def test_subjects_that_are_not_there_are_named_and_left_out(
    harness: Callable[..., Any], command: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        {"id": "good", "prompt": "Ada Velmont was born in", "subject": "Ada Velmont", "attribute": "Rome"},
        {"id": "lost", "prompt": "She was born in", "subject": "Ada Velmont", "attribute": "Rome"},
        {"id": "mute", "prompt": "Ada Velmont was born in", "subject": "Ada Velmont"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = harness(*command, "--edits", path, "--window", "1")
    assert (done.code, done.err) == (0, "")
    assert "left out: 1 of 3, subject not found (lost)" in done.out
    assert "left out: 1 of 3, no true object (mute)" in done.out


def test_help(harness: Callable[..., Any]) -> None:
    done = harness("trace", "--help")
    assert done.code == 0
    for said in ("--window", "--kind", "--sigma", "--known", "harness trace --edits counterfact:50 --window 1,3\n"):
        assert said in done.out


def test_published_facts_through_a_real_model(harness: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "stories260K"
    if not (model / "config.json").is_file():
        pytest.skip("the model stories260K is not there")
    common = ("trace", "--model", model, "--edits", "known_1000:5", "--data-dir", shared / "data", "--device", "cpu")
    filtered = harness(*common, "--output", tmp_path / "known")
    assert (filtered.code, filtered.err) == (0, "")
    assert "left out: 5 of 5, unknown to the model (0, 1, 2, 3, 4)" in filtered.out
    done = harness(*common, "--output", tmp_path / "all", "--known", "all")
    assert (done.code, done.err) == (0, "")
    (path,) = (tmp_path / "all").glob("*.json")
    record = _json(path)
    assert (record["status"], record["facts"]["traced"], record["model"]["layers"]) == ("complete", 5, 5)
    assert all(layer["value"] is not None for layer in record["layers"]["effect"])
