"""UnKE: a whole block is trained to give the hidden state that makes a model say a long answer, and others as before.

Source: Deng, Wei, Pang, Ding, Shen, Cheng 2024, "Everything is Editable: Extend Knowledge Editing to Unstructured Data
in Large Language Models", arXiv 2405.15349, and the authors' code (TrustedLLM/UnKE at ae24801).  A value of the
prompt's last token is found as in MEMIT, without a KL term; then every parameter of the block, attention and norms
included, is trained to give it there, and what it gave before at all other tokens of the prompts and of other texts.

Where this leaves their code: padding counts in its errors (``error_mean``), its other texts are instructions and
answers of Alpaca, drawn anew for each batch, here plain text, and its program writes the end of the text behind each
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.methods.block_training import (
    BlockTraining,
    ErrorMean,
    Retained,
    WantedStates,
    require_blocks,
    train_in_turn,
)
from harness.methods.keys import layer_at_depth, require_layers
from harness.methods.long_answers import LongAnswers
from harness.methods.value import optimise
from harness.models.lm import LM, Batch
from harness.patches.patch import Patch

__all__ = ["Retained", "Unke"]


@dataclass(frozen=True)
class Unke(LongAnswers):
    """``min ||f(h) - (f0(h) + delta)||^2 + ||f(h') - f0(h')||^2`` over all parameters of a block ``f``, by AdamW.

    Of several layers each is trained in turn, on its share of what is missing of the value that leaves the last.

    Attributes:
        layers: the layers; by default one at 22 % of the depth, the published one of Llama-2.
        error_mean: what the error of a pass is a mean over: its ``tokens``, or as in the authors' code its padding, too
            (``released``).
    """

    name = "unke"

    layers: tuple[int, ...] | None = None
    error_mean: ErrorMean = "tokens"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # TrustedLLM/UnKE at ae24801, code/config.py.
        "llama-2-7b-chat-hf": {"layers": (7,)},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (1,), "lr": 1e-3},
        "mini": {"layers": (1,), "lr": 1e-3},
    }

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers that are trained, ascending; the value is of what leaves the last."""
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.22),))

    def places(self, lm: LM) -> Sequence[str]:
        """The blocks that are trained."""
        return [lm.arch.block(layer) for layer in self.edited_layers(lm)]

    def require(self, lm: LM) -> None:
        """See that every block that is trained hands on one vector a token, and can be written.

        Raises:
            ModelError: it does not (Gemma 3n), has no down-projection, or a parameter of it is quantised.
        """
        super().require(lm)
        require_blocks(lm, self.edited_layers(lm), self.name)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once; the memory says which texts were drawn from, and how often."""
        known = own_memory(memory, Retained)
        if not edits:
            return Patch(memory=memory)
        before, layers = known or Retained.of(lm), self.edited_layers(lm)
        # As in the authors' code a value takes all its steps.
        objective = replace(self.value_objective(layers[-1]), stop="never")
        values = optimise(lm, edits, ("{}",), objective=objective).value
        prompts = lm.batch([lm.encode(edit.text) for edit in edits])
        wanted = WantedStates(prompts, torch.arange(len(edits)), prompts.lengths - 1, values, prompts.mask)
        settings = BlockTraining(self.steps, self.lr, self.weight_decay, self.error_mean)
        kept, names = self._kept(lm, before), [edit.id for edit in edits]
        found = train_in_turn(lm, layers, wanted, kept=kept, settings=settings, edits=names)
        return found.remember(before.next)

    def _kept(self, lm: LM, retained: Retained) -> Batch:
        """The texts of one operation on which a block shall give what it gave."""
        return retained.drawn(lm, count=self.texts, seed=self.seed)
