"""FT-KL: fine-tuning of one layer's down-projection, guarded by the divergence on plain text.

Source: the baseline FT+KL of Mitchell et al. 2022, "Fast Model Editing at Scale", arXiv 2110.11309, section 5, and its
code (eric-mitchell/mend at e04fdb9, algs/ft.py): the mean over the positions of a text of ``KL(p_0 || p)``, with the
loss of the edit weighted by 0.01 (``kl=100`` here).  There three layers' matrices, RMSprop, and texts beside each edit;
here Adam on one down-projection, as in :mod:`editors.ft_m`, so that the guard is all that differs, and plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.editing.directions import DIRECTIONS
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.descent import down_projection_parameters
from harness.methods.finetuning import FinetuningInPlace
from harness.methods.keys import layer_at_depth, require_layers
from harness.methods.kl_regulariser import KLRegulariser, kl_regulariser
from harness.models.lm import LM

__all__ = ["GuardedFineTuning"]


@dataclass(frozen=True)
class GuardedFineTuning(FinetuningInPlace):
    """``nll + kl KL(p_0 || p)`` by Adam on the weight and, where there is one, the bias of a few down-projections.

    The divergence is a mean over the positions of one text, drawn anew for each batch.

    Attributes:
        layers: the layers; by default one at 66 % of the depth, where the published settings of GPT-J and Llama lie.
        kl_tokens: how many tokens of a text are read.
    """

    name = "ft_kl"
    random = True
    directions = DIRECTIONS

    layers: tuple[int, ...] | None = None
    lr: Positive = 5e-4
    steps: Count = 25
    threshold: NotNegative = 1e-2
    kl: NotNegative = 100.0
    kl_tokens: Count = 64

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # As those of ft_m, so that the guard is all that differs; its weight was tuned on the edit set's tuning rows.
        "smollm2-135m-instruct": {"layers": (7,)},
        "mini-llama": {"layers": (2,), "lr": 3e-3, "batch_size": 10, "kl": 10.0},
        "mini": {"layers": (2,), "lr": 2e-3, "batch_size": 10, "kl": 10.0},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [lm.arch.writer_of(layer) for layer in self._chosen(lm)]

    def trained(self, lm: LM) -> list[str]:
        """Their weights and, where there are any, biases."""
        return down_projection_parameters(lm, self._chosen(lm))

    def prior(self, lm: LM) -> KLRegulariser | None:
        """The guard, None without a weight."""
        return kl_regulariser(lm, weight=self.kl, source=self.kl_text, seed=self.seed, tokens=self.kl_tokens, mean=True)

    def _chosen(self, lm: LM) -> tuple[int, ...]:
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.66),), experts=True)
