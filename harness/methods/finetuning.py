"""What full finetuning and LoRA have in common: passes over the edits, and a pull towards the model before them.

The plain settings take all edits in large batches until their loss is small.  Those of Hewitt et al. 2024 ("Model
Editing with Canonical Examples", arXiv 2402.06155, section 4) are :data:`CANONICAL`: one example an update, drawn in a
new order each pass, ten passes, the divergence on general text (``kl``) added, a learning rate that falls to zero, and
no end before the last pass.  Adam is the usual one, with float32 states and weights; theirs had states of 8 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

from harness.editing.directions import Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Pass
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.methods.descent import Accumulation, DescentSettings, descend, passes
from harness.methods.kl_regulariser import KLRegulariser, kl_regulariser
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["CANONICAL", "Finetuning", "FinetuningInPlace"]

CANONICAL: Mapping[str, object] = {
    "batch_size": 1,
    "steps": 10,
    "threshold": 0.0,
    "schedule": "cosine",
    "beta2": 0.995,
    "shuffle": True,
    "accumulate": 5,
}
"""The settings of Hewitt et al. that are not sampled; ``accumulation`` says how far their code is followed."""


@dataclass(frozen=True)
class Finetuning(Editor, ABC):
    """Adam on some parameters.

    Attributes:
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one batch.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
        schedule: whether the learning rate is constant, or falls to zero over the passes like a cosine.
        beta2: Adam's second decay rate.
        accumulate: batches behind one update.
        accumulation: ``fixed``: the mean of their gradients; ``faithful``: as in the code of Hewitt et al., the
            gradient of the last of them, and no update for the rest of a pass.
        shuffle: whether every pass takes the edits in a new order.
        kl: weight of the divergence from the model before the operation, summed over a text of ``kl_text`` at each
            batch.
        kl_text: a file, a folder or a Hub data set of texts; by default the model's plain text.
        seed: the seed of everything that is drawn.
    """

    lr: Positive = 1e-5
    steps: Count = 10
    batch_size: Count = 1
    threshold: NotNegative = 0.0
    normalisation: Normalisation = "mean"
    schedule: Literal["constant", "cosine"] = "constant"
    beta2: Annotated[float, Range(0, 0.9999)] = 0.999
    accumulate: Count = 1
    accumulation: Accumulation = "fixed"
    shuffle: bool = False
    kl: NotNegative = 0.0
    kl_text: str | None = None
    seed: int = 0

    def settings(self) -> DescentSettings:
        """How to descend."""
        return DescentSettings(
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            threshold=self.threshold,
            normalisation=self.normalisation,
            shuffle=self.seed if self.shuffle else None,
            cosine=self.schedule == "cosine",
            beta2=self.beta2,
            accumulate=self.accumulate,
            accumulation=self.accumulation,
        )

    def prior(self, lm: LM) -> KLRegulariser | None:
        """The pull towards the model as it is, None without a weight."""
        return kl_regulariser(lm, weight=self.kl, source=self.kl_text, seed=self.seed)


@dataclass(frozen=True)
class FinetuningInPlace(Finetuning, ABC):
    """Adam on parameters that the model has."""

    @abstractmethod
    def trained(self, lm: LM) -> list[str]:
        """The names of the parameters."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits, in mini-batches."""
        if not edits:
            return Patch()
        return Patch(descend(lm, edits, self.trained(lm), settings=self.settings(), prior=self.prior(lm)).deltas)

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each pass."""
        for done in passes(lm, edits, self.trained(lm), settings=self.settings(), prior=self.prior(lm)):
            yield Pass(Patch(done.deltas), fmean(done.losses))
