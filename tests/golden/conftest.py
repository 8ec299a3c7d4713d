"""The authors' numbers: the tiny models, the inputs and the expected tensors of ``data``, told in its README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.editing.edit import Edit
from harness.methods.second_moments import Moment
from harness.models import lm as loading
from harness.models.lm import LM

REL = {"fp64": 1e-6, "fp32": 2e-4}


class Golden:
    """One folder of reference numbers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: dict[tuple[str, str], LM] = {}

    def json(self, path: str) -> Any:
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def tensors(self, path: str) -> dict[str, Tensor]:
        """The tensors of a file; those of a run in double precision as doubles, also where they are kept in float32."""
        found = load_file(self.root / path)
        return {name: value.double() if _narrowed(name, value) else value for name, value in found.items()}

    def lm(self, name: str, precision: str) -> LM:
        if (name, precision) not in self.models:
            dtype = {"fp64": "float64", "fp32": "float32"}[precision]
            self.models[name, precision] = loading.load(str(self.root / "models" / name), dtype=dtype, device="cpu")
        return self.models[name, precision]

    def moments(self, name: str) -> dict[int, Moment]:
        found = self.tensors(f"inputs/C_{name}.safetensors")
        return {int(key.split(".")[1]): Moment(value, 100_000) for key, value in found.items()}

    def raw_moments(self, name: str = "tiny-gpt2") -> dict[int, Moment]:
        """Second moments without what is added to their diagonals."""
        found = self.tensors(f"inputs/Craw_{name}.safetensors")
        return {int(key.split(".")[1]): Moment(value, 100_000) for key, value in found.items()}

    @staticmethod
    def contexts(said: dict[str, Any]) -> tuple[str, ...]:
        """The context templates of a folder of numbers, the bare prompt first."""
        first, others = said["context_templates"]
        return (*first, *others)

    @staticmethod
    def value_settings(said: dict[str, Any]) -> dict[str, Any]:
        """Their hyperparameters of the value optimisation, under our names."""
        return {
            "layers": tuple(said["layers"]),
            "v_steps": said["v_num_grad_steps"],
            "v_lr": said["v_lr"],
            "v_loss_layer": said["v_loss_layer"],
            "v_weight_decay": said["v_weight_decay"],
            "clamp": said["clamp_norm_factor"],
            "kl_factor": said["kl_factor"],
        }

    def edits(self, ids: list[int] | None = None, extra: list[dict[str, Any]] | None = None) -> dict[int, Edit]:
        rows = self.json("inputs/requests.json") + (extra or [])
        made = {row["case_id"]: edit_of(row) for row in rows}
        return made if ids is None else {i: made[i] for i in ids}


def _narrowed(name: str, value: Tensor) -> bool:
    return name.startswith("fp64/") and value.dtype == torch.float32


def edit_of(row: dict[str, Any]) -> Edit:
    return Edit(str(row["case_id"]), row["prompt"], row["subject"], row["target_new"]["str"])


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(Path(__file__).with_name("data"))


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """``close(ours, theirs, tolerance, what)``: the relative distance of two tensors is within the tolerance."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float, what: str = "") -> None:
        assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
        distance = float(
            (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=torch.finfo().tiny)
        )
        assert distance <= tolerance, f"{what}: relative distance {distance:.2e}, at most {tolerance:.0e}"

    return check
