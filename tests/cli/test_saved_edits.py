"""Edits that were saved: scored again without editing, and written as a checkpoint that others load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from cli_calls import ROWS, Outcome
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.exam import tasks
from harness.reports.seeds import pool
from harness.runs.record_file import read_record, read_records

Harness = Callable[..., Outcome]


@pytest.fixture
def edited(harness: Harness, checkpoint: Callable[..., Path], nudge: str, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The model, the folder of a run, and the file of its edits."""
    rows = tmp_path / "my.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model, out = checkpoint("gpt2"), tmp_path / "runs"
    options = [
        "--edits",
        rows,
        "--mode",
        "batch",
        "--tasks",
        "NLI",
        "--limit",
        6,
        "--device",
        "cpu",
        "--data-dir",
        "mini",
    ]
    done = harness("run", "--model", model, "--editor", nudge, "--set", "scale=6.0", *options, "--output", out)
    assert done.code == 0, done.err
    (patch,) = out.glob("*.safetensors")
    return model, out, patch


def numbers(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*--*[0-9a-f].json")
    return read_record(path).tasks(2)


def test_a_saved_patch_scores_as_the_run_that_saved_it(
    harness: Harness, edited: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, out, patch = edited
    again = tmp_path / "again"
    done = harness("run", "--model", model, "--patch", patch, "--tasks", "NLI", "--limit", 6, "--output", again)
    assert done.code == 0, done.err
    assert numbers(again) == numbers(out)
    (path,) = again.glob("*--*[0-9a-f].json")
    kept = read_record(path)
    assert kept.editor["name"] == "nudge"
    assert kept.editor["hyperparameters"]["scale"] == 6.0
    assert len(kept.editor["notes"]["patch_sha256"]) == 64
    assert list(again.glob("*.safetensors")) == []  # the edits stand in their file, under their editor's name


def test_edits_saved_on_the_way_are_scored_on_those_that_were_made(
    harness: Harness, checkpoint: Callable[..., Path], nudge: str, tmp_path: Path
) -> None:
    """The first edit of a random order is not the first of the rows."""
    rows, model, out = tmp_path / "my.jsonl", checkpoint("gpt2"), tmp_path / "runs"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ["--edits", rows, "--mode", "sequential", "--eval-at", "1,final", "--order", "random", "--seed", 0]
    assert harness("run", "--model", model, "--editor", nudge, *options, "--output", out).code == 0
    (path,), (patch,) = out.glob("*--*[0-9a-f].json"), out.glob("*edits-1.safetensors")
    first = read_record(path)
    assert first.edits["ids"] == ["2", "1"]
    assert harness("run", "--model", model, "--patch", patch, "--output", tmp_path / "again").code == 0
    (path,) = (tmp_path / "again").glob("*--*[0-9a-f].json")
    again = read_record(path)
    assert again.edits["ids"] == ["2"]
    for metric, measure in first.tasks(1)["own"].items():
        found = again.tasks(1)["own"][metric]
        # The whole run asks about two edits beside each other: a pass of other rows rounds the last digits otherwise.
        pairs = zip((found, found["difference"]), (measure, measure["difference"]), strict=True)
        assert all(one["value"] == pytest.approx(other["value"], abs=1e-7) for one, other in pairs)


def test_an_applied_patch_is_a_checkpoint_that_others_load(
    harness: Harness, edited: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, out, patch = edited
    folder = tmp_path / "checkpoint"
    done = harness("apply", patch, "--to", folder)
    assert done.code == 0, done.err
    plain, base = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, model))
    changed = [name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])]
    assert changed == ["transformer.h.1.mlp.c_proj.weight"]
    suite = tasks.load_suite(
        ["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    found = lm_eval.evaluate(
        HFLM(pretrained=str(folder), device="cpu", batch_size=8),
        {"tasks": {"NLI": suite.tasks[0].task}, "groups": {}, "group_map": {}},
        limit=6,
        bootstrap_iters=0,
    )
    assert found["results"]["NLI"]["accuracy,none"] == pytest.approx(numbers(out)["NLI"]["accuracy"]["value"])


def test_what_cannot_be_applied_is_told(
    harness: Harness, edited: tuple[Path, Path, Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model, _, patch = edited
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    cut, changed = tmp_path / "cut.safetensors", tmp_path / "changed.safetensors"
    content = bytearray(patch.read_bytes())
    cut.write_bytes(content[: len(content) // 2])
    content[-3] ^= 1
    changed.write_bytes(content)
    for arguments, message in (
        (("apply", patch, "--to", full), "is not empty"),
        (("apply", patch, "--to", tmp_path / "new", "--model", checkpoint("gpt2", 1)), "changes the model"),
        (("run", "--model", model, "--dtype", "bfloat16", "--patch", patch), "give that model with --dtype float32"),
        (("apply", cut, "--to", tmp_path / "new"), "not a readable patch"),
        (("apply", changed, "--to", tmp_path / "new"), "not what was written"),
        (("run", "--model", checkpoint("gpt2", 1), "--patch", patch, "--output", tmp_path / "o"), "changes the model"),
        (
            ("run", "--model", model, "--patch", patch, "--editor", "rome", "--output", tmp_path / "o"),
            "give one of them",
        ),
        (("run", "--model", model, "--patch", tmp_path / "none", "--output", tmp_path / "o"), "not a readable patch"),
    ):
        done = harness(*arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


IN_PLACE = """
import torch
from harness.editor_kit import Editor, Patch


class Rude(Editor):
    name = "rude"

    def edit(self, lm, edits, memory=None):
        with torch.no_grad():
            lm.parameter(lm.down(0)).add_(1.0)
        return Patch()
"""


@pytest.mark.parametrize("mode", ["batch", "isolated"])
def test_an_editor_that_writes_into_the_model_is_not_told_that_it_changed_nothing(
    harness: Harness, checkpoint: Callable[..., Path], mode: str, tmp_path: Path
) -> None:
    (tmp_path / "rude.py").write_text(IN_PLACE)
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ["--edits", tmp_path / "my.jsonl", "--mode", mode, "--output", tmp_path / "o"]
    done = harness("run", "--model", checkpoint("gpt2"), "--editor", tmp_path / "rude.py", *options)
    assert done.code == 1
    assert "transformer.h.0.mlp.c_proj.weight is not bitwise what it was" in done.err
    assert "changed nothing" not in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--edits", "counterfact:4"), ["--edits counterfact --num-edits 4 out", "my.jsonl --num-edits 2"]),
        (("--num-edits", 1), ["made with --num-edits 2; leave --num-edits 1 out"]),
        (("--mode", "sequential"), ["made with --mode batch; leave --mode sequential out"]),
        (("--order", "random"), ["made with --order file; leave --order random out"]),
        (("--split", "train", "--seed", 3), ["made with --split test --seed 0; leave --split train --seed 3 out"]),
        (("--data-dir", "elsewhere"), ["made with --data-dir mini; leave --data-dir elsewhere out"]),
        (("--eval-at", "1,final"), ["leave --eval-at 1,final out"]),
        (("--edit-batch-size", 1), ["edits of its file; leave --edit-batch-size 1 out"]),
        (("--cases-at-once", 2), ["edits of its file; leave --cases-at-once 2 out"]),
    ],
)
def test_what_saved_edits_would_not_heed_is_refused(
    harness: Harness, edited: tuple[Path, Path, Path], options: tuple[object, ...], told: list[str], tmp_path: Path
) -> None:
    model, _, patch = edited
    done = harness("run", "--model", model, "--patch", patch, *options, "--dry-run", "--output", tmp_path / "o")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert all(part in done.err for part in told), done.err


def test_what_saved_edits_say_of_themselves_may_be_said_again(
    harness: Harness, edited: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, patch = edited
    monkeypatch.chdir(tmp_path)
    said = ["--edits", "my.jsonl", "--num-edits", 2, "--mode", "batch", "--split", "test", "--data-dir", "mini"]
    done = harness("run", "--model", model, "--patch", patch, *said, "--dry-run", "--no-probes")
    assert done.code == 0, done.err


def test_seeds_are_runs_of_their_own_and_their_mean(
    harness: Harness, checkpoint: Callable[..., Path], nudge: str, tmp_path: Path
) -> None:
    rows = tmp_path / "my.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ["--edits", rows, "--mode", "sequential", "--eval-at", "1,final", "--device", "cpu"]
    model = checkpoint("gpt2")
    done = harness("run", "--model", model, "--editor", nudge, *options, "--seeds", "0,1,2", "--output", tmp_path / "o")
    assert done.code == 0, done.err
    kept = read_records(tmp_path / "o")
    assert sorted(one.seed for one in kept) == [0, 1, 2]
    assert {tuple(one.edits["ids"]) for one in kept} == {("1", "2"), ("2", "1")}  # orders are drawn from the seed
    assert done.out.count("record: ") == 3
    (whole,) = pool(read_records(tmp_path / "o", values=True))  # one run, whatever the order
    assert whole.plan["seeds"] == [0, 1, 2]
    assert done.out.count(" edits of my.jsonl") == 4  # a table for each seed, and their mean
    twice = harness("run", "--model", model, "--editor", nudge, *options, "--seeds", "0,0", "--output", tmp_path / "p")
    assert (twice.code, len(twice.err.splitlines())) == (2, 1)
