"""CrispEdit against its authors' code on a tiny Llama: curvatures, and two operations with one Adam and with two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.crispedit import CrispEdit, Kept
from harness.methods.curvature import curvatures
from harness.models.lm import LM
from harness.patches.patch import patched

LAYERS = (1, 2)
NAMES = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS]
METHOD = CrispEdit(
    layers=LAYERS, energy=0.7, over="followed", lr=2e-3, steps=4, batch_size=2, threshold=0.01, cov_tokens=1000
)


def applied(matrix: Tensor) -> Tensor:
    """What a matrix gives for two inputs."""
    inputs = torch.arange(2 * matrix.shape[1], dtype=torch.float64).sin()
    return matrix.double() @ inputs.reshape(2, -1).T


@pytest.fixture
def lm(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LM:
    """The tiny Llama whose plain text are the texts that their code read."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "read.txt").write_text("\n".join(golden.json("B_covariance_gpt2/inputs.json")["texts"][:24]))
    found: LM = replace(golden.lm("tiny-llama", "fp64"), text=str(tmp_path / "read.txt"))
    return found


def test_curvature_of_plain_text(golden: Any, close: Callable[..., None], lm: LM) -> None:
    theirs = golden.tensors("crispedit.safetensors")
    found = curvatures(lm, LAYERS, tokens=METHOD.cov_tokens, over="followed")[1]
    assert found.keys.count == found.gradients.count == 894
    close(applied(found.keys.matrix), theirs["text/A"], 1e-6, "A")
    close(applied(found.gradients.matrix), theirs["text/B"], 1e-6, "B")
    with pytest.raises(AssertionError, match="A: relative distance"):
        close(applied(curvatures(lm, LAYERS, tokens=1000)[1].keys.matrix), theirs["text/A"], 1e-3, "A")


@pytest.mark.parametrize("adam", ["new", "kept"])
def test_two_operations(golden: Any, close: Callable[..., None], lm: LM, adam: Any) -> None:
    theirs, edits = golden.tensors("crispedit.safetensors"), list(golden.edits([0, 2, 1, 4]).values())
    method = replace(METHOD, adam=adam)
    first = method.edit(lm, edits[:2])
    for name in NAMES:
        close(applied(first.weights[name].dense()), theirs[f"first/{name}"], 1e-5, name)
    with patched(lm, first):
        total = first + method.edit(lm, edits[2:], first.memory)
    for name in NAMES:
        close(applied(total.weights[name].dense()), theirs[f"second/{adam}/{name}"], 1e-5, name)
    if adam == "kept":
        assert isinstance(total.memory, Kept)
        close(applied(total.memory.found[2].keys.matrix), theirs["joined/A"], 1e-5, "A")
        close(applied(total.memory.found[2].gradients.matrix), theirs["joined/B"], 1e-5, "B")
