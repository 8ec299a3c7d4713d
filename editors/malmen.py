"""MALMEN: a trained network says what keys shall give, and one ridge regression a matrix writes a large batch.

Source: Tan, Zhang, Fu 2024, "Massive Editing for Large Language Models via Meta Learning", arXiv 2311.04661, and the
authors' code (ChenmienTan/malmen at 1df295d).

The settings ``loss``, ``deviation`` and ``statistics`` have what the code does otherwise than its plain meaning.  Its
loss of training is the sum of the means of its mini-batches; here it is the mean over all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.editing.hyperparameters import Count
from harness.methods.meta_training import Lesson
from harness.methods.ridge_network import RidgeNetwork, RidgeTraining
from harness.methods.shifts import LLAMA_3_8B, gate_and_up
from harness.models.lm import LM

__all__ = ["Malmen"]

_LATER: Mapping[str, object] = {"rank": 1024, "depth": 4, "c_loc": 0.6}
_MINI: Mapping[str, object] = {"rank": 128, "meta_lr": 1e-4, "steps": 100, "together": 50}


@dataclass(frozen=True)
class Malmen(RidgeNetwork):
    """The network is trained on batches of edits, each made on the unedited model."""

    name = "malmen"

    steps: Count = 320
    together: Count = 512
    validate_every: Count = 20
    patience: Count = 100

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # MINE-USTC/StableEdit at 6ea8eae, config/model and config/editor/malmen.yaml, the settings of zsRE.
        "meta-llama-3-8b-instruct": {"modules": LLAMA_3_8B, **_LATER},
        "mistral-7b-v0.3": {"layers": (28, 29, 30), **_LATER},
        "qwen2.5-7b-instruct": {
            "modules": gate_and_up(range(18, 27)),
            **_LATER,
        },
        # The shipped models: chosen by validation on the training rows; batches as large as those that are measured.
        "mini": {"modules": tuple(f"transformer.h.{i}.mlp.c_fc" for i in (1, 2, 3)), "lr": 2e-3, **_MINI},
        "mini-llama": {
            "modules": gate_and_up((1, 2, 3)),
            "lr": 4e-3,
            **_MINI,
        },
    }

    def training(self, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> RidgeTraining:
        """The training of a new network."""
        return _Training(self, lm, train, validation)


class _Training(RidgeTraining):
    """The training of one network on one model."""

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Add the gradient of one batch of edits."""
        self.descend(lessons, [(lessons, 1.0)])

    def validate(self) -> float:
        """The mean loss of the batches."""
        with torch.no_grad():
            losses = [self.loss([(batch, 1.0)], self.changes(batch)) for batch in self.batches_to_validate()]
        return sum(losses) / len(losses)
