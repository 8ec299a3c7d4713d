"""Models as a user names them on the command line: arguments of a model in the record, and what is told of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import values
from harness.errors import UsageError
from harness.runs.record_file import read_record

Harness = Callable[..., Any]


def test_arguments_are_read_as_lm_eval_reads_them() -> None:
    found = values.model_args("revision=main,low_cpu_mem_usage=True,factor=0.5,n=3,tokenizer='7'")
    assert found == {"revision": "main", "low_cpu_mem_usage": True, "factor": 0.5, "n": 3, "tokenizer": "7"}
    assert values.model_args(None) == values.model_args("") == {}
    with pytest.raises(
        UsageError, match="--model-args 'x': expected NAME=VALUE, for example --model-args revision=main"
    ):
        values.model_args("x")


def test_the_record_says_how_a_model_was_read(
    harness: Harness, checkpoint: Callable[..., Path], own_rows: str, tmp_path: Path
) -> None:
    model = checkpoint("gpt2")
    common = ["run", "--model", model, "--edits", own_rows, "--data-dir", "mini", "--exam", "probability"]
    done = harness(
        *common,
        "--model-args",
        "attn_implementation=eager",
        "--dtype",
        "auto",
        "--device-map",
        "cpu",
        "--output",
        tmp_path,
    )
    assert done.code == 0, done.err
    (path,) = (path for path in tmp_path.glob("*.json") if not path.name.startswith("."))
    kept = read_record(path)
    assert kept.model["args"] == kept.plan["model_args"] == {"attn_implementation": "eager"}
    assert (kept.plan["dtype"], kept.model["dtype"]) == ("auto", "float32")
    assert "revision" not in kept.model


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model-args", "dtype=float16"), "model_args: dtype=float16 is said with --dtype; leave it out there"),
        (("--model-args", "pretrained=gpt2"), "model_args: pretrained=gpt2 is said with --model"),
        (("--model", "./absent.gguf"), "./absent.gguf: no such file"),
        (("--model", "./@main"), "./ is on this machine and has no revisions"),
        (("--device", "cpu", "--device-map", "auto"), "device is cpu and device_map auto; give one of them"),
        (("--max-memory", "cpu=1GB"), "max_memory is cpu=1GB without device_map, which it belongs to"),
        (("--device-map", "auto", "--offload-folder", "/proc/none"), "offload_folder: /proc/none cannot be made"),
        (("--model-args", "offload_folder=x"), "model_args: offload_folder=x is said with --offload-folder"),
    ],
)
def test_mistakes_are_one_line(
    harness: Harness, own_rows: str, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = harness("run", "--edits", own_rows, "--editor", "rome", *options, "--output", tmp_path)
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if "warning" not in line]
    assert len(errors) == 1 and told in errors[0]
