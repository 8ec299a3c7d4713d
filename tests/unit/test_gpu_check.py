"""The check of a large model's shape: what it does on a tiny one, and the formula that it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import gpu_check
from counted_bytes import CountedBytes

from editors.ultraedit import UltraEdit
from harness.editing.registry import compose
from harness.errors import ModelError
from harness.exam.tasks import read_edits
from harness.methods import second_moments
from harness.models.lm import load
from harness.models.offload import total_bytes

TINY = ["gpu_check.py", "--device", "cpu", "--tiny"]


def test_a_tiny_model_goes_through_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(cache))  # which the script changes
    monkeypatch.setattr(sys, "argv", [*TINY, "--edits", "3", "--steps", "2", "--tokens", "2000"])
    gpu_check.main()
    head, rule, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cell.strip() for cell in head.strip("|").split("|")] == list(gpu_check.HEAD)
    assert rule.count("---") == len(gpu_check.HEAD)
    assert [row[:3] for row in cells] == [
        ["second moments, 2,000 tokens", "3", ""],
        ["memit", "3", "3"],
        ["alphaedit", "3", "3"],
        ["ultraedit", "3", "3"],
    ]
    assert all(float(row[3]) >= 0 and float(row[4]) > 0.05 for row in cells)
    assert [row[5] for row in cells] == ["0.00", "0.00", "0.00", "0.00"]


def test_what_is_documented_is_what_second_moments_are_refused_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte less than 8 (n + 1) d_ff^2 beside the weights is too little."""
    lm = gpu_check.random_model(gpu_check.Check("cpu", "tiny", 3, 3, ("memit",), 2000, 2))
    beside = 8 * (3 + 1) * 224**2
    assert gpu_check.moment_bytes(lm, 3) == beside
    assert gpu_check.documented(lm, 7) * 2**30 == total_bytes(dict(lm.model.named_parameters())) + 7
    monkeypatch.setattr(second_moments, "free_bytes", lambda _: beside)
    second_moments.require_room(lm, [0, 1, 2])
    monkeypatch.setattr(second_moments, "free_bytes", lambda _: beside - 1)
    with pytest.raises(ModelError, match="the second moments of layers 0, 1, 2 need"):
        second_moments.require_room(lm, [0, 1, 2])


@pytest.mark.parametrize(("count", "together"), [(100, 1), (300, 10)])
def test_what_is_documented_is_what_ultraedit_takes(count: int, together: int) -> None:
    """Beside the weights, all that is allocated while it edits: at its height no pass of a mini-batch is under way."""
    lm, edits = load("mini-llama", device="cpu"), read_edits("counterfact", data_dir="mini")[:count]
    method = compose("ultraedit").build(lm, {"batch_size": together}, seed=0)
    assert isinstance(method, UltraEdit)
    with CountedBytes() as counted:
        method.edit(lm, edits)
    assert gpu_check.shift_bytes(lm, method, edits) == pytest.approx(counted.most, rel=0.02)


def test_the_published_layers_and_numbers_of_edits() -> None:
    deep = gpu_check.Check("cpu", "Llama-3-8B", 32, None, gpu_check.EDITORS, 20_000, 25)
    assert deep.moved == (4, 5, 6, 7, 8)
    assert [deep.count(editor) for editor in gpu_check.EDITORS] == [100, 100, 1000]
    flat = gpu_check.Check("cpu", "Llama-3-8B", 2, None, gpu_check.EDITORS, 20_000, 25)
    assert flat.moved == (0, 1)
    assert [flat.count(editor) for editor in gpu_check.EDITORS] == [100, 100, 100]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--editors", "rmoe"], "editors: 'rmoe' is not among memit, alphaedit, ultraedit; name some of these"),
        (["--edits", "0"], "edits is 0; give at least 1"),
        (["--device", "nope"], "device 'nope' cannot be used"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    monkeypatch.setattr(sys, "argv", [*TINY, *given])
    with pytest.raises(SystemExit) as left:
        gpu_check.main()
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1
