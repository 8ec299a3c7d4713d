"""What a call is answered with: options that contradict, code that a file names, and output that nobody takes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_calls import ROWS, without_progress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness import api
from harness.editing.patch_file import save_patch
from harness.errors import DataError, ModelError, UsageError
from harness.io.plain_text import read_documents
from harness.models import lm as loading
from harness.patches.patch import Part, Patch

Harness = Callable[..., Any]
ROOT = Path(__file__).parents[2]

RUNS = '''
from dataclasses import dataclass
from pathlib import Path
from harness.editing.editor import Editor
from harness.patches.patch import Patch

Path("{marker}").touch()

@dataclass(frozen=True)
class Mine(Editor):
    """Says that it was imported."""
    name = "mine"

    def edit(self, lm, edits, memory=None):
        return Patch()
'''


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Path]:
    """An editor's file, and the file that is there once its code has run."""
    path, marker = tmp_path / "mine.py", tmp_path / "has_run"
    path.write_text(RUNS.replace("{marker}", str(marker)))
    return path, marker


def written(path: Path, values: object) -> Path:
    """A YAML file."""
    path.write_text(yaml.safe_dump(values))
    return path


# --- code that a file names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["one", "list", "runs", "wrapped"])
def test_a_configuration_runs_no_code_that_it_names(
    harness: Harness, mine: tuple[Path, Path], tmp_path: Path, shape: str
) -> None:
    path, marker = mine
    fields: dict[str, object] = {
        "one": {"editor": str(path)},
        "list": {"editor": ["none", str(path)]},
        "runs": {"runs": [{"editor": "rome"}, {"editor": str(path)}]},
        "wrapped": {"editor": f"rome+{path}"},
    }[shape]
    config = written(tmp_path / "plan.yaml", {"edits": "counterfact", "num_edits": 1, **fields})
    found = harness("run", "--config", config, "--dry-run")
    assert found.code == 2
    assert found.err == (
        f"error: {config}: names the editor '{path}', whose code would run; read it, and then give --trust-code (in "
        f"Python trust_code=True) or type --editor {path}"
    )
    assert not marker.exists()


@pytest.mark.parametrize("how", ["trusted", "typed"])
def test_code_runs_that_is_trusted_or_typed(
    harness: Harness, mine: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    path, marker = mine
    config = written(tmp_path / "plan.yaml", {"editor": str(path), "edits": "counterfact", "num_edits": 1})
    said = ["--trust-code"] if how == "trusted" else ["--editor", path]
    found = harness("run", "--config", config, *said, "--dry-run")
    assert (found.code, found.err) == (0, "")
    assert marker.exists()


TASK = {
    "task": "shouted",
    "dataset_path": "json",
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_target": 0,
    "doc_to_choice": ["yes", "no"],
}


@pytest.fixture(params=["function", "functions.py", "included", "named", "escaped", "directive"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], Path, Path]:
    """Fields of a plan that name a task with code, the file that holds it, and the file that is there once it ran."""
    folder, marker = tmp_path / "tasks", tmp_path / "has_run"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"q": "Is it?"}) + "\n")
    path, shape = folder / "shouted.yaml", request.param
    said = {**TASK, "dataset_kwargs": {"data_files": str(rows)}}
    (folder / "helpers.py").write_text(f"open({str(marker)!r}, 'w')\ndef loud(docs):\n    return docs\n")
    if shape == "functions.py":
        (folder / shape).write_text(f"open({str(marker)!r}, 'w')\n")
        said |= {"metadata": {"licence": "CC0-1.0"}}
    holder = {"functions.py": folder / shape, "included": tmp_path / "base.yaml"}.get(shape, path)
    if shape == "included":
        (folder / "helpers.py").rename(tmp_path / "helpers.py")
        holder.write_text("process_docs: !function helpers.loud\n")
        said = {"include": "../base.yaml", **said}
    path.write_text(yaml.safe_dump(said))
    written_as = {"escaped": "!%66unction", "directive": "!x!tion"}.get(shape, "!function")
    if shape not in ("functions.py", "included"):
        path.write_text(path.read_text() + f"process_docs: {written_as} helpers.loud\n")
    if shape == "directive":
        path.write_text("%TAG !x! !func\n---\n" + path.read_text())
    named = {"tasks": [str(path)]} if shape == "named" else {"tasks": ["shouted"], "include_path": [str(folder)]}
    return named, holder, marker


def test_a_configuration_runs_no_code_of_tasks(
    harness: Harness, task: tuple[dict[str, Any], Path, Path], tmp_path: Path
) -> None:
    named, holder, marker = task
    config = written(tmp_path / "plan.yaml", {"editor": "none", "edits": "none", "limit": 1, **named})
    found = harness("run", "--config", config, "--output", tmp_path / "out")
    assert (found.code, found.err) == (
        2,
        f"error: {config}: names the task file '{holder}', whose code would run; read it, and then give --trust-code "
        "or type --include-path or --tasks",
    )
    assert not marker.exists()
    assert harness("run", "--config", config, "--trust-code", "--output", tmp_path / "out").code == 0
    assert marker.exists() or holder.name == "functions.py"  # rows are parsed by it only where they are no JSON


def test_a_typed_task_runs_and_its_record_is_not_trusted(
    harness: Harness, task: tuple[dict[str, Any], Path, Path], tmp_path: Path
) -> None:
    named, holder, marker = task
    typed = [f"--{key.replace('_', '-')}={','.join(value)}" for key, value in named.items()]
    out = tmp_path / "out"
    assert harness("run", "--editor", "none", "--edits", "none", "--limit", "1", *typed, "--output", out).code == 0
    marker.unlink(missing_ok=True)
    found = harness("check", "--baseline", out)
    assert (found.code, len(found.err.splitlines())) == (2, 1)
    assert f"names the task file '{holder}', whose code would run" in found.err
    assert not marker.exists()


@pytest.mark.parametrize("beside", [False, True], ids=["ours", "a file of that name"])
def test_a_set_that_is_one_yaml_needs_no_trust(harness: Harness, tmp_path: Path, beside: bool) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kings.jsonl").write_text(json.dumps({"k": "a", "p": "{} is", "s": "Utopia", "t": "far"}) + "\n")
    edits = {"prompt": "p", "subject": "s", "target": "t"}
    probe = {"kind": "rewrite", "prompt": "fill(p, s)", "answers": "t", "protocol": "accuracy"}
    about = {
        "version": 1.0, "licence": "CC0", "headline": "rewrite_accuracy",
        "source": {"citation": "none", "files": {"test": {"path": "kings.jsonl"}}},
        "case": {"id": "k", "edits": edits, "probes": [probe]},
    }  # fmt: skip
    head = "task: kings\nclass: !function harness.task_kit.CaseExam\n"
    (folder / "kings.yaml").write_text(head + yaml.safe_dump({"metadata": about}))
    if beside:
        (folder / "harness").mkdir()
        (folder / "harness" / "task_kit.py").write_text("class CaseExam: pass\n")
    plan = {"editor": "rome", "edits": "kings", "include_path": [str(folder)]}
    found = harness("run", "--config", written(tmp_path / "plan.yaml", plan), "--dry-run")
    assert found.code == (2 if beside else 0)
    assert ("names the task file" in found.err) == beside


def test_a_file_asks_for_no_modelling_code(harness: Harness, tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    model, asks = str(checkpoint("gpt2")), {"trust_remote_code": True}
    config = written(tmp_path / "plan.yaml", {"model": model, "edits": "none", "tasks": ["NLI"], "model_args": asks})
    found = harness("run", "--config", config, "--dry-run")
    assert found.code == 2
    assert found.err.startswith(f"error: {config}: asks for trust_remote_code, with which the checkpoint's own code")
    typed = ("--model-args", "trust_remote_code=true")
    for said in (("--trust-code",), typed):
        assert harness("run", "--config", config, "--data-dir", "mini", "--limit", "1", "--dry-run", *said).code == 0
    lm = loading.load(model, device="cpu")
    about = {"model": model, "dtype": "float32", "num_edits": 1, "ids": ["1"], "model_args": asks}
    file = tmp_path / "theirs.safetensors"
    save_patch(Patch(), lm, file, editor="rome", about=about)
    found = harness("apply", file, "--to", tmp_path / "out")
    assert (found.code, found.err.startswith(f"error: {file}: asks for trust_remote_code")) == (2, True)


@pytest.mark.parametrize("methods", [["{}"], {"{}": {}}, {"mine": {"editor": "{}"}}], ids=["list", "name", "field"])
def test_a_sweep_runs_no_code_that_it_names(
    harness: Harness, mine: tuple[Path, Path], tmp_path: Path, methods: object
) -> None:
    path, marker = mine
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(json.dumps({"methods": methods}).replace("{}", str(path)).replace(f": {path}", ": {}"))
    found = harness("sweep", sweep, "--output", tmp_path / "out")
    assert (found.code, found.err.startswith(f"error: {sweep}: names the editor '{path}', whose code")) == (2, True)
    assert not marker.exists()


class Doubled(Part):
    """A hook of a stranger's editor."""

    def __call__(self, hidden: torch.Tensor, step: object) -> torch.Tensor:
        """Twice as much."""
        return hidden * 2

    def tensors(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    @classmethod
    def restore(cls, lm: Any, settings: Any, tensors: Any) -> Doubled:
        """The hook."""
        return cls()

    def joined(self, later: Any) -> Doubled:
        """Itself."""
        return self


def test_a_patch_runs_no_code_that_it_names(
    harness: Harness, mine: tuple[Path, Path], tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    path, marker = mine
    lm = loading.load(str(checkpoint("gpt2")), device="cpu")
    file = tmp_path / "theirs.safetensors"
    about = {"model": str(checkpoint("gpt2")), "dtype": "float32", "num_edits": 1, "ids": ["1"]}
    save_patch(Patch(hooks={"transformer.h.0": Doubled()}), lm, file, editor=str(path), about=about)
    for call in (("apply", file, "--to", tmp_path / "out"), ("run", "--patch", file, "--output", tmp_path / "out")):
        found = harness(*call)
        assert (found.code, found.err.startswith(f"error: {file}: names the editor '{path}', whose code")) == (2, True)
    assert not marker.exists()


def test_a_check_runs_no_code_that_a_record_names(
    harness: Harness, mine: tuple[Path, Path], tmp_path: Path, arguments: list[str]
) -> None:
    path, marker = mine
    out = tmp_path / "out"
    assert harness(*arguments, "--output", out).code == 0
    (record,) = out.glob("*.json")
    said = json.loads(record.read_text())
    said["plan"]["editor"] = str(path)
    record.write_text(json.dumps(said))
    for baseline in (out, record):
        found = harness("check", "--baseline", baseline)
        assert (found.code, len(found.err.splitlines())) == (2, 1)
        assert found.err.startswith(f"error: {record}: names the editor '{path}', whose code")
    assert not marker.exists()
    found = harness("check", "--baseline", out, "--trust-code")
    assert "names the editor" not in found.err
    assert marker.exists()


def test_python_runs_no_code_that_a_file_names(
    mine: tuple[Path, Path], tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    path, marker = mine
    model = str(checkpoint("gpt2"))
    lm = loading.load(model, device="cpu")
    file = tmp_path / "theirs.safetensors"
    about = {"model": model, "dtype": "float32", "num_edits": 1, "ids": ["1"]}
    save_patch(Patch(hooks={"transformer.h.0": Doubled()}), lm, file, editor=str(path), about=about)
    config = written(tmp_path / "sweep.yaml", {"methods": {"mine": {"editor": str(path)}}, "tasks": "temporal"})
    calls: list[Callable[..., object]] = [
        lambda **more: api.run(model, edits=ROWS, patch=file, tasks="NLI", data_dir="mini", **more),
        lambda **more: api.evaluate(model, "NLI", patch=file, edits=ROWS, data_dir="mini", **more),
        lambda **more: api.sweep(config, tmp_path / "swept", **more),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"names the editor '.*mine\.py', whose code .* trust_code=True"):
            call()
        assert not marker.exists()
    for call in calls[:2]:
        with pytest.raises(DataError, match="has no part 'Doubled'"):  # its code has run, and it has none
            call(trust_code=True)
        assert marker.exists()
        marker.unlink()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "seeds"), [("3", "0,1"), ("0", "0"), ("7", "7,8,9")])
def test_seed_beside_seeds_is_refused(harness: Harness, seed: str, seeds: str) -> None:
    found = harness("run", "--editor", "rome", "--seed", seed, "--seeds", seeds, "--dry-run")
    assert (found.code, found.err) == (
        2,
        f"error: --seed {seed} and --seeds {seeds}: each seed is a run; give one of the two",
    )


def test_paths_of_the_home_folder_in_a_configuration(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[..., Path]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(checkpoint("gpt2"))
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "text.txt").write_text("A text.\n")
    fields = {"model": "~/model", "editor": "none", "edits": "~/my.jsonl:1", "text": "~/text.txt", "data_dir": "mini"}
    config = written(tmp_path / "plan.yaml", fields)
    found = harness("run", "--config", config, "--output", tmp_path / "out")
    assert found.code == 0, found.err
    (path,) = (tmp_path / "out").glob("*.json")
    plan = json.loads(path.read_text())["plan"]
    assert [plan[key] for key in ("model", "edits", "text")] == [
        str(tmp_path / name) for name in ("model", "my.jsonl", "text.txt")
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_checkpoint_has_the_type_that_apply_is_asked_for(
    harness: Harness, tmp_path: Path, checkpoint: Callable[..., Path], nudge: str, own_rows: str, dtype: str
) -> None:
    """The sum is rounded once: not the model, not the change, and then the sum again."""
    model, out, folder = checkpoint("gpt2"), tmp_path / "out", tmp_path / "checkpoint"
    done = harness("run", "--model", model, "--editor", nudge, "--edits", own_rows, "--mode", "batch", "--output", out)
    assert done.code == 0, done.err
    (patch,) = out.glob("*.safetensors")
    for to, asked in ((tmp_path / "whole", []), (folder, ["--dtype", dtype])):
        done = harness("apply", patch, "--to", to, *asked)
        assert done.code == 0, done.err
    wanted = getattr(torch, dtype)
    found, whole = load_file(folder / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name].to(wanted)) for name in whole)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == wanted


def test_apply_refuses_a_type_that_does_not_exist_before_a_model_is_loaded(
    harness: Harness, tmp_path: Path, no_model: None
) -> None:
    found = harness("apply", tmp_path / "p.safetensors", "--to", tmp_path / "out", "--dtype", "bfloat61")
    assert found.code == 2
    assert found.err.startswith("error: dtype 'bfloat61' does not exist (did you mean bfloat16")


def test_every_file_of_a_run_can_be_read_by_whom_others_can(
    harness: Harness, tmp_path: Path, arguments: list[str]
) -> None:
    before = os.umask(0o027)
    try:
        assert harness(*arguments, "--output", tmp_path).code == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.is_file()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert {mode for name, mode in modes.items() if not name.startswith(".")} == {0o640}


def test_a_hub_that_does_not_answer_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its client would try for a minute; nothing listens at port 9 here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(ModelError, match="nobody/nothing: cannot be loaded"):
        loading.load("nobody/nothing")
    with pytest.raises(DataError, match=r"wikitext: the Hub text cannot be read .*127.0.0.1 does not answer"):
        next(read_documents("wikitext"))
    assert time.monotonic() - started < 20


# --- output -----------------------------------------------------------------------------------------------------------


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of bash, in which ``harness`` is ours."""
    ours = f'harness() {{ {sys.executable} -m harness.cli "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", ours],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=1800,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_one_line_and_no_success(unbuffered: str) -> None:
    done = shell("harness models > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.decode().strip() == (
        "error: the output cannot be written (No space left on device); make room, or send it elsewhere"
    )


@pytest.mark.parametrize(
    ("command", "code"), [("harness models", 0), ("harness editors --format md", 0), ("harness show nowhere", 2)]
)
def test_a_pipe_that_closes_ends_with_the_code_of_the_command(command: str, code: int) -> None:
    done = shell(f"{command} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == code
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


def test_work_goes_on_when_nobody_reads_the_output(arguments: list[str], tmp_path: Path) -> None:
    """The second of two runs is made although the table of the first had no reader."""
    words = " ".join(f"'{word}'" for word in [*arguments, "--seeds", "0,1", "--output", str(tmp_path)])
    done = shell(f"harness {words} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, without_progress(done.stderr.decode().splitlines())) == (0, [])
    assert len(list(tmp_path.glob("*[0-9a-f].json"))) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_every_encoding_takes_every_line(encoding: str, records: dict[str, Path], tmp_path: Path) -> None:
    name = "Größe 東京"
    kept = json.loads(records["weak"].read_text())
    kept["plan"]["model"] = name
    (tmp_path / "r.json").write_text(json.dumps(kept))
    done = shell(f"harness show '{tmp_path / 'r.json'}'", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    wanted = name.encode(encoding, "backslashreplace")
    assert wanted in done.stdout
