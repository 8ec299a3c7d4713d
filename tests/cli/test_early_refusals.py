"""A wrong name is told before a model is loaded, and a record in use before anything is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness.runs import plan_grid
from harness.runs.resolve import resolve

CALLS: list[tuple[str, str]] = [
    ("run --editor rmoe", "editor 'rmoe' does not exist (did you mean rome"),
    ("run --editor memit+rcet", "editor 'rcet' does not exist"),
    ("run --editor memit --edits counterfct", "edit set 'counterfct' does not exist (did you mean counterfact"),
    ("run --editor memit --edits nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("run --editor memit --edits counterfact:100000", "counterfact: has 679 edits, 100000 were asked for"),
    ("run --editor memit --set v_lrr=1", "memit has no hyperparameter 'v_lrr' (did you mean v_lr"),
    ("run --editor memit --set v_steps=0", "memit: 'v_steps' is 0, expected at least 1"),
    ("run --editor rome --mode batch", "rome edits one fact at a time"),
    ("run --editor memit --tasks NER,NIL", "task 'NIL' does not exist (did you mean NLI"),
    ("run --editor mend --fitted nowhere.safetensors", "nowhere.safetensors: "),
    ("run --editor memit --eval-at often", "--eval-at 'often' cannot be read"),
    ("run --editor memit --data-dir nowhere", "--data-dir nowhere: no such folder"),
    ("run --editor rag --dequantise-edited", "dequantise_edited: rag writes no weights, so that no edited matrix is"),
    ("run --editor memit --dtype int4", "dtype 'int4' does not exist"),
    ("run --editor memit --device nope", "device 'nope' cannot be used"),
    ("run --editor memit --text nowhere.txt", "nowhere.txt"),
    ("run --patch nowhere.safetensors", "nowhere.safetensors: "),
    ("run --config nowhere.yaml", "nowhere.yaml: cannot be read"),
    ("run --editor memit --output FILE", "cannot be written to"),
    ("run --editor memit --output LOCKED", "another run is writing the record "),
    ("fit --editor mnd", "editor 'mnd' does not exist (did you mean mend"),
    ("fit --editor rome", "rome learns nothing before its first edit"),
    ("fit --editor mend --set stps=1", "mend has no hyperparameter 'stps' (did you mean steps"),
    ("fit --editor mend --edits counterfct", "edit set 'counterfct' does not exist"),
    ("fit --editor mend --device nope", "device 'nope' cannot be used"),
    ("fit --editor mend --output FOLDER", "cannot be written (it is a folder)"),
    ("apply nowhere.safetensors --to out", "nowhere.safetensors: "),
    ("check --baseline nowhere", "nowhere: no such folder"),
    ("sweep SWEEP --max-memory cpu=1GB", "max_memory is cpu=1GB without device_map"),
    ("trace --edits counterfct", "edit set 'counterfct' does not exist"),
    ("trace --kind mpl", "--kind 'mpl' does not exist"),
    ("trace --window x", "--window 'x': expected numbers"),
    ("trace --variant hse", "'hse'"),
    ("trace --device nope", "device 'nope' cannot be used"),
    ("trace --output FILE", "cannot be written to"),
    ("localize --problems eror_injection", "'eror_injection'"),
    ("localize --methods rmoe@1", "editor 'rmoe' does not exist (did you mean rome"),
    ("localize --methods rome@x", "'x' is not a number of layers"),
    ("localize --methods rome@1 --set v_stps=1", "no editor of --methods has a hyperparameter 'v_stps' (did you mean"),
    ("localize --methods rome@1 --set memit.v_stps=1", "memit has no hyperparameter 'v_stps' (did you mean v_steps"),
    ("localize --methods rome@1 --set memt.v_steps=1", "editor 'memt' does not exist (did you mean memit"),
    ("localize --methods rome@1 --set v_steps=0", "rome: 'v_steps' is 0, expected at least 1"),
    ("localize --edits counterfct", "edit set 'counterfct' does not exist"),
    ("localize --layers x", "--layers 'x': expected numbers"),
    ("localize --output FILE", "cannot be written to"),
    ("bench fcats", "'fcats'"),
    ("bench facts --editor rmoe", "'rmoe' does not exist (did you mean rome"),
    ("bench facts --editor rome --set v_stps=1", "v_stps"),
    ("bench facts --data-dir nowhere", "--data-dir nowhere: no such folder"),
    ("bench facts --output FILE", "cannot be written to"),
    ("sweep nowhere.yaml", "nowhere.yaml: cannot be read"),
    ("cov make --layers x", "--layers 'x': expected numbers"),
    ("cov make --text nowhere.txt", "nowhere.txt"),
    ("cov make --device nope", "device 'nope' cannot be used"),
    ("cov verify nowhere.safetensors", "nowhere.safetensors: "),
]


@pytest.mark.usefixtures("no_model", "small_index")
@pytest.mark.parametrize(("call", "message"), CALLS, ids=[call for call, _ in CALLS])
def test_a_mistake_is_told_before_a_model_is_loaded(
    harness: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("content")
    (tmp_path / "SWEEP").write_text("tasks: [temporal]")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "LOCKED").mkdir()
    (plan,) = plan_grid.plans({}, options={"editor": "memit"})
    with FileLock(tmp_path / "LOCKED" / f".{resolve(plan).id[:8]}.lock"):
        found = harness(*call.split())
    assert (found.code, found.out) == (2, "")
    assert len(found.err.strip().splitlines()) == 1
    assert message in found.err


@pytest.mark.usefixtures("no_model")
def test_what_is_right_opens_the_model(harness: Callable[..., Any], tmp_path: Path) -> None:
    """The fixture above sees a model that is opened."""
    with pytest.raises(pytest.fail.Exception, match="mini was opened"):
        harness("run", "--editor", "memit", "--output", tmp_path)
