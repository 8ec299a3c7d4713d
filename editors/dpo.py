"""DPO: fine-tuning of one layer's down-projection until the new target is preferred to the old answer.

Source: Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, equation 7; as an editor in
zjunlp/EasyEdit (at 14cea82, easyeditor/models/dpo), whose loss is 1 % of it and 99 % the likelihood of the target
(``nll=0.99``), on adapters of attention.  Here the loss of the paper is the default, and Adam moves one
down-projection, as in :mod:`editors.ft_m`, so that the loss is all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.methods.contrast import answer_log_likelihoods, as_contrast
from harness.methods.descent import (
    DescentSettings,
    TokenisedEdit,
    descend,
    down_projection_parameters,
    tokenise,
)
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Dpo", "preference_loss"]


def preference_loss(after: Tensor, before: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(beta ((log p(y_w|x) - log p_0(y_w|x)) - (log p(y_l|x) - log p_0(y_l|x))))``, ``[edits]``.

    Args:
        after: the log-probabilities of the new target ``y_w`` and of the old answer ``y_l`` by the edited model ``p``,
            ``[edits, 2]``.
        before: the same by the reference ``p_0``, the model before the operation.
        beta: how far ``p`` may go from it: the less, the further.
    """
    gained = after - before
    return -nn.functional.logsigmoid(beta * (gained[:, 0] - gained[:, 1]))


@dataclass(frozen=True)
class Dpo(Editor):
    """Adam on the weight and, where there is one, the bias of a few layers' down-projections.

    The old answer is an edit's ``target_old``, of an edit that contrasts two continuations the second one.

    Attributes:
        layers: the layers; by default one at 66 % of the depth, where the published settings of GPT-J and Llama lie.
        beta: the divergence that is allowed from the model before the operation: the less, the further.
        nll: the share of the loss that is the mean negative log-likelihood of the target's tokens.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is.
    """

    name = "dpo"
    needs_old = True
    directions = frozenset({"likelihood", "contrast"})
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "the loss compares two answers, and falls also where both become less likely, the old one more so"
    }

    layers: tuple[int, ...] | None = None
    beta: Positive = 0.1
    nll: Share = 0.0
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 1
    weight_decay: NotNegative = 0.0
    threshold: NotNegative = 1e-2

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # As those of ft_m, so that the loss is all that differs.
        "smollm2-135m-instruct": {"layers": (7,)},
        "mini-llama": {"layers": (2,), "lr": 3e-3, "batch_size": 10},
        "mini": {"layers": (2,), "lr": 2e-3, "batch_size": 10},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [lm.arch.writer_of(layer) for layer in self._chosen(lm)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits, in mini-batches; what the model says is computed before.

        Raises:
            DataError: an edit does not name the old answer.
        """
        if not edits:
            return Patch()
        pairs = [as_contrast(edit) for edit in edits]
        settings = DescentSettings(
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            threshold=self.threshold,
        )
        where = down_projection_parameters(lm, self._chosen(lm))
        preferred = _Preferred(self.beta, self.nll, _reference(lm, pairs, self.batch_size))
        return Patch(descend(lm, pairs, where, settings=settings, objective=preferred).deltas)

    def label(self) -> str:
        """The name, with ``nll`` where the likelihood has a share of the loss."""
        return self.name if not self.nll else f"{self.name}-nll"

    def _chosen(self, lm: LM) -> tuple[int, ...]:
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.66),), experts=True)


@dataclass(frozen=True, eq=False)
class _Preferred:
    """The loss of a batch (:data:`harness.methods.descent.Objective`).

    Attributes:
        beta: the factor of the comparison.
        nll: the share of the target's likelihood.
        before: for each edit the log-probabilities of its two answers by the model as it was, ``[2]``.
    """

    beta: float
    nll: float
    before: Mapping[Edit, Tensor]

    def __call__(self, lm: LM, examples: Sequence[TokenisedEdit], held: Mapping[str, Tensor]) -> Tensor:
        after = answer_log_likelihoods(lm, examples, held)
        before = torch.stack([self.before[example.edit] for example in examples])
        loss = preference_loss(after, before, self.beta).mean()
        if not self.nll:
            return loss
        tokens = torch.tensor([len(example.target) for example in examples]).to(after)
        return self.nll * -(after[:, 0] / tokens).mean() + (1 - self.nll) * loss


def _reference(lm: LM, pairs: Sequence[Edit], rows: int) -> dict[Edit, Tensor]:
    """The log-probabilities of both answers of each edit by the model as it is, ``[2]``."""
    examples, found = tokenise(lm, pairs), dict[Edit, Tensor]()
    with torch.no_grad():
        for first in range(0, len(examples), rows):
            batch = examples[first : first + rows]
            found.update(zip((one.edit for one in batch), answer_log_likelihoods(lm, batch), strict=True))
    return found
