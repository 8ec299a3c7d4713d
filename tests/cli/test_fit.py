"""``harness fit``, and what ``harness run`` says of what was fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.editing import learned_file
from harness.editing.editor import Learned
from harness.editing.registry import configure, find
from harness.io import progress
from harness.models.lm import load

ROWS = [
    {
        "prompt": "{} was born in",
        "subject": "Ada Velmont",
        "target": "Rome",
        "paraphrases": ["Nobody knows Ada Velmont"],
    },
    {"prompt": "The home of {} is", "subject": "Hugo Lantern", "target": "Paris"},
    {"prompt": "{} was born in", "subject": "Greta Holm", "target": "Oslo"},
]
QUICK = {"rank": 4, "steps": 4, "validate_every": 2, "accumulate": 1, "alpha": 0.01}
SET = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "learn.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def fit(harness: Callable[..., Any], checkpoint: Callable[..., Path], rows: str, text: str) -> Callable[..., Any]:
    """``fit(...)``: MEND with quick settings on a tiny model; options come on top."""

    def call(*options: object, model: object = checkpoint("gpt2"), editor: str = "mend") -> Any:
        basic = ["fit", "--editor", editor, "--model", model, "--edits", rows, "--text", text, "--device", "cpu"]
        return harness(*basic, *(SET if editor != "rome" else []), *options)

    return call


@pytest.fixture
def run(
    harness: Callable[..., Any], checkpoint: Callable[..., Path], own_rows: str, tmp_path: Path
) -> Callable[..., Any]:
    """``run(...)``: two edits of the tiny model, measured on themselves alone."""

    def call(*options: object, model: object = checkpoint("gpt2"), editor: str = "mend") -> Any:
        basic = ["run", "--model", model, "--editor", editor, "--edits", own_rows, "--device", "cpu"]
        return harness(*basic, "--output", tmp_path / "out", *options)

    return call


def told(found: Any, *parts: str) -> None:
    """One line, code 2, nothing on standard output."""
    lines = found.err.strip().splitlines()
    assert (found.code, found.out, len(lines)) == (2, "", 1), (found.out, found.err)
    for part in parts:
        assert part in lines[0], lines[0]


def plain(output: str) -> str:
    return " ".join(output.split())


# --- fit, then run ----------------------------------------------------------------------------------------------------


def test_what_is_fitted_is_found_by_a_run(
    fit: Callable[..., Any], run: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    # The cache is that of all tests of a worker, some of which fit MEND, too.
    before = set((cache / "fitted").glob("mend-*.safetensors"))
    made = fit("--seed", 7)
    assert made.code == 0, made.err
    assert "fitted mend to" in made.out
    assert "on 3 examples" in made.out
    (path,) = set((cache / "fitted").glob("mend-*.safetensors")) - before
    assert str(path) in plain(made.out)
    found = run(*SET, "--seed", 7)
    assert found.code == 0, found.err
    (record,) = (p for p in (tmp_path / "out").glob("*.json") if "--mend--" in p.name)
    assert json.loads(record.read_text())["editor"]["learned"] is not None


def test_a_run_without_it_says_the_command(
    run: Callable[..., Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = checkpoint("llama")
    told(run("--set", "layers=[1]", model=model), "mend must learn before its first edit", "harness fit --editor mend")
    found = run("--set", "layers=[1]", "--set", "alpha=0.5", "--seed", 3, "--dtype", "float64", model=model)
    wanted = (
        f"run `harness fit --editor mend --model {model} --set 'layers=[1]' --set alpha=0.5 --seed 3 --dtype float64`"
    )
    told(found, wanted)
    assert not list((tmp_path / "out").glob("*"))


def test_the_command_that_is_said_makes_what_was_missing(
    fit: Callable[..., Any], checkpoint: Callable[..., Path]
) -> None:
    """The path that ``run`` looks at is the one that ``fit`` writes, whatever the order of the settings."""
    lm = load(str(checkpoint("gpt2")), device="cpu")
    editor = configure(find("mend"), lm.name, {**dict(reversed(QUICK.items())), "seed": 9})
    assert not learned_file.default_path(editor, lm).exists()
    assert fit("--seed", 9).code == 0
    assert learned_file.default_path(editor, lm).exists()
    known = learned_file.require_learned(editor, lm, None)
    assert isinstance(known, Learned)
    assert known.knowledge(lm)["32x64/0/V"].shape == (4, 96)


def test_a_wrapped_editor_is_fitted_at_its_root(
    fit: Callable[..., Any], run: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "mend.safetensors"
    assert fit("--output", path, editor="mend+prune").code == 0
    found = run(*SET, "--fitted", path, editor="mend+prune")
    assert found.code == 0, found.err


def test_a_bar_on_a_terminal(fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from io import StringIO

    drawn = StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "progress_console", lambda: terminal)
    assert fit("--output", tmp_path / "mend.safetensors").code == 0
    assert "mend learns to edit" in drawn.getvalue()
    assert "4/4" in drawn.getvalue()
    assert "best validation" in drawn.getvalue()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(checkpoint: Callable[..., Path], rows: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MEND learned of the tiny GPT-2 with quick settings."""
    from harness.exam.tasks import read_examples

    lm = load(str(checkpoint("gpt2")), device="cpu", text=text)
    editor = configure(find("mend"), lm.name, QUICK).fit(lm, read_examples(rows, data_dir="mini"))
    assert isinstance(editor, Learned)
    path = tmp_path_factory.mktemp("fitted") / "mend.safetensors"
    learned_file.save_learned(editor, lm, path, trained={"edits": rows})
    return path


def test_a_file_of_another_model(run: Callable[..., Any], checkpoint: Callable[..., Path], file: Path) -> None:
    told(
        run(*SET, "--fitted", file, model=checkpoint("gpt2", 1)),
        f"{file}: was fitted to the model",
        "in float32",
        "not to",
        "run `harness fit --editor mend --model",
        "--set rank=4",
    )
    told(run(*SET, "--fitted", file, "--dtype", "bfloat16"), "in float32", "in bfloat16", "--dtype bfloat16`")


def test_a_file_of_another_setting(run: Callable[..., Any], file: Path) -> None:
    told(
        run(*SET, "--set", "steps=6", "--fitted", file),
        f"{file}: was fitted with steps=4, not 6; give --set steps=4, or",
    )
    told(run(*SET, "--seed", 1, "--fitted", file), "was fitted with seed=0, not 1; give --seed 0, or fit again")


def test_a_damaged_file(run: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "not a readable fitted editor"),
        (whole[:5], "not a readable fitted editor"),
        (b"", "not a readable fitted editor"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "the tensors are not what was written; make it again"),
    ):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        told(run(*SET, "--fitted", path), f"{path}: {message}")
    told(run(*SET, "--fitted", tmp_path / "nowhere"), "nowhere: not a readable fitted editor", "No such file")


def test_a_file_of_another_kind(run: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    from harness.io import tensor_file

    head = tensor_file.read_manifest(file, "fitted editor", 1)
    about = {key: value for key, value in head.items() if key not in ("kind", "format", "sha256")}
    _, tensors = tensor_file.read_tensors(file, "fitted editor", 1)
    for kind, changes, message in (
        ("fitted editor", {"editor": "remedi"}, "holds what remedi learned, not mend; give another file"),
        ("patch", {}, "holds no fitted editor but a patch; give another file"),
    ):
        path = tmp_path / "other.safetensors"
        tensor_file.write_tensors(path, kind=kind, version=1, manifest={**about, **changes}, tensors=tensors)
        told(run(*SET, "--fitted", path), f"{path}: {message}")


def test_a_file_for_an_editor_that_learns_nothing(run: Callable[..., Any], file: Path) -> None:
    told(run("--fitted", file, editor="ft"), "ft learns nothing before its first edit; leave out --fitted")


def test_fitting_an_editor_that_learns_nothing(fit: Callable[..., Any]) -> None:
    told(fit(editor="rome"), "rome learns nothing before its first edit; run it at once with `harness run`")


def test_too_few_examples_and_no_text(fit: Callable[..., Any], rows: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    told(fit("--edits", f"{rows}:1"), "mend: 1 examples to learn from, expected at least 2")
    told(fit("--text", tmp_path / "empty.txt"), "empty.txt' holds no text; give plain text with --text FILE")


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "setting": (["--set", "rnk=3"], ("has no hyperparameter 'rnk' (did you mean rank", )),
    "range": (["--set", "rank=0"], ("mend: 'rank' is 0, expected at least 1",)),
    "layer": (["--set", "layers=[7]"], ("layer 7: the model has layers 0 to 2",)),
    "split": (["--edits", "counterfact", "--split", "tset"], ("tset",)),
    "dtype": (["--dtype", "int4"], ("dtype 'int4' does not exist",)),
    "device": (["--device", "nope"], ("device 'nope' cannot be used", "give cpu")),
    "arch": (["--arch", "blocs=x"], ("architecture part 'blocs' does not exist",)),
    "edits": (["--edits", "nowhere.jsonl"], ("nowhere.jsonl: no such file",)),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_call(fit: Callable[..., Any], case: str) -> None:
    options, parts = MISTAKES[case]
    told(fit(*options), *parts)


def test_an_output_that_cannot_be_written_is_found_before_training(
    fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(find("mend"), "fit", train)
    (tmp_path / "file").write_text("content")
    for output in (tmp_path, tmp_path / "file" / "below"):
        told(fit("--output", output), f"{output}: cannot be written", "choose another place")
    assert (tmp_path / "file").read_text() == "content"
