"""RLEdit: MALMEN's network, trained on whole sequences of edits, in which each operation answers for earlier ones too.

Source: Li et al. 2025, "Reinforced Lifelong Editing for Language Models", arXiv 2502.05759, and the authors' code
(zhrli324/RLEdit at c6576a1).

The states of a sequence are the models that its operations leave, the action is the change of the next one, and the
reward is minus the loss below.  No gradient goes from one operation to those before it, as in their code.

In their code the L2 term has no gradient (``l2=0`` here, or theirs at any weight), and the gradient of the divergence
passes layers below through matrices from which the change has been taken away again; here it is that of the model whose
divergence it is.  ``clipping``, ``loss``, ``deviation`` and ``statistics`` have what else it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.methods.meta_training import Lesson
from harness.methods.ridge_network import RidgeNetwork, RidgeTraining
from harness.methods.shifts import gate_and_up
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched

__all__ = ["RlEdit"]

_MINI: Mapping[str, object] = {
    "rank": 128,
    "depth": 2,
    "meta_lr": 1e-4,
    "together": 10,
    "sequence": 10,
    "steps": 400,
    "validate_every": 50,
    "patience": 200,
    "back_depth": 3,
}


@dataclass(frozen=True)
class RlEdit(RidgeNetwork):
    """The loss of operation ``t`` is ``sum_i decay^i (nll_(t-i) + c_loc KL_(t-i)) + l2 |dW_t|^2``, ``i < back_depth``.

    ``nll_s`` is that of other ways to ask for what operation ``s`` wrote, ``KL_s`` how far the answers to its unrelated
    texts are from those before operation ``t``; both are of the model after ``t``.

    Attributes:
        steps: operations that are trained on.
        together: edits of one operation.
        sequence: operations of one sequence, which starts from the unedited model; Adam makes one step after each.
        time_decay: what an operation counts for the next one, of what it counts for itself.
        back_depth: how many operations count, the present one included.
        l2: weight of the squared Frobenius norm of what an operation changes.
        clipping: whether the gradient of a ``sequence`` is bounded, or as in the authors' code what has been summed up
            after each ``operation``.
    """

    name = "rledit"

    lr: Positive = 1e-6
    rank: Count = 1024
    depth: Count = 4
    c_loc: NotNegative = 0.6
    batch_size: Count = 4
    steps: Count = 400
    together: Count = 20
    validate_every: Count = 400
    sequence: Count = 400
    time_decay: Share = 0.95
    back_depth: Count = 10
    l2: NotNegative = 1e-4
    clipping: Literal["sequence", "operation"] = "sequence"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zhrli324/RLEdit at c6576a1, config/model.
        "meta-llama-3-8b-instruct": {
            "modules": gate_and_up(range(22, 31)),
        },
        "mistral-7b-v0.3": {"layers": (17, 18)},
        "gemma-2-9b": {
            "modules": gate_and_up(range(32, 41)),
        },
        # The shipped models: matrices and first step of malmen; sequences as those that are measured.
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


class _Sequence:
    """A sequence as far as it has come.

    Attributes:
        written: what its operations changed.
        latest: their lessons, the latest first, as many as count.
        operations: how many there were.
    """

    def __init__(self) -> None:
        self.written = Patch()
        self.latest: list[Sequence[Lesson]] = []
        self.operations = 0

    def judged(self, lessons: Sequence[Lesson], editor: RlEdit) -> list[tuple[Sequence[Lesson], float]]:
        """What the model is asked after one more operation, and how much each counts."""
        self.latest = [lessons, *self.latest][: editor.back_depth]
        self.operations += 1
        return [(group, editor.time_decay**age) for age, group in enumerate(self.latest)]

    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Go on from the model that an operation leaves."""
        self.written += Patch({f"{name}.weight": Dense(change) for name, change in changes.items()})


class _Training(RidgeTraining):
    """The training of one network on one model.

    Attributes:
        editor: the settings.
    """

    editor: RlEdit

    def __init__(self, editor: RlEdit, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> None:
        super().__init__(editor, lm, train, validation)
        self.accumulate, self.now = editor.sequence, _Sequence()

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Add the gradient of one operation, and make it."""
        own = self.editor
        if self.now.operations == own.sequence:
            self.now = _Sequence()
        with patched(self.lm, self.now.written):
            changes = self.descend(lessons, self.now.judged(lessons, own), l2=own.l2)
        self.now.write(changes)
        if own.clipping == "operation":
            torch.nn.utils.clip_grad_norm_(self.network.trainable.values(), own.clip)

    def validate(self) -> float:
        """The mean loss of the operations of a sequence that is not learned from."""
        own, now, losses = self.editor, _Sequence(), list[float]()
        with torch.no_grad():
            for lessons in self.batches_to_validate():
                with patched(self.lm, now.written):
                    changes = self.changes(lessons)
                    squares = sum(float(change.square().sum()) for change in changes.values())
                    losses.append(self.loss(now.judged(lessons, own), changes) + own.l2 * squares)
                now.write(changes)
        return sum(losses) / len(losses)
