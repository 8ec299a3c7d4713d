"""AnyEdit: a long target is cut into chunks, each with a value of its own, and all of them are written together.

Source: Jiang, Fang, Zhang, Wan, Ma, Wang, He, Chua 2025, "AnyEdit: Edit Any Knowledge Encoded in Language Models",
ICML 2025, arXiv 2502.05628, and the authors' code (jianghoucheng/AnyEdit at ac8e652, memit_ARE and unke_ARE).  Chunk
after chunk, the hidden state of the last token in front of it is changed until the chunk follows, with the changes of
the earlier chunks in place; then the states of all chunks are written as MEMIT or UnKE write those of prompts.

Where this leaves their code: padding has no part in what is kept (there its keys and errors count), the texts that stay
as they are with UnKE are plain text and no instructions, their program writes the end of the text behind each answer,
and with an overlap their last chunk is asked for one token too late where it holds nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.errors import UsageError
from harness.methods.block_training import BlockTraining, Retained, require_blocks, train_in_turn
from harness.methods.chunks import ChunkedTarget, Rest, chunk_values, cut_target, wanted_states, write_values
from harness.methods.keys import Unedited, layer_at_depth, require_layers, take_unedited
from harness.methods.locate_then_edit import (
    SpreadMemory,
    require_additive,
    require_keys,
    ridge_solver,
    spread_layers,
)
from harness.methods.long_answers import LongAnswers
from harness.methods.value_rows import Objective
from harness.models.lm import LM
from harness.patches.patch import Patch, require_plain

__all__ = ["AnyEdit"]

_THRESHOLD = {"memit": 0.01, "unke": 0.005}
_PLAIN = ("{}",)  # no context stands in front of a prompt


@dataclass(frozen=True)
class AnyEdit(LongAnswers):
    """``h_k* = h_k + argmin_delta -log P(X_k | X_1 .. X_k-1, h_1* .. h_k + delta)`` for each chunk ``X_k`` of a target.

    A target of one chunk is edited as the method that writes does it, without context templates and KL term.

    Attributes:
        window: tokens of a chunk (``window_size``).
        overlap: tokens that a chunk shares with the one before.
        write: ``memit`` solves MEMIT's least squares for all chunks, ``unke`` trains whole blocks.
        rest: which other tokens of the prompt and the target shall give what they gave: ``all``, those ``before`` the
            last value, or ``none``; MEMIT has none, UnKE those before.
        layers: the layers that MEMIT writes; by default up to five that end at 27 % of the depth.
        blocks: the blocks that UnKE trains; by default one at 22 % of the depth.
        v_threshold: a value is found when its loss is below; by default 0.01, with UnKE 0.005, as in the authors' code.
        lam: weight of what a layer already knows, of MEMIT (``mom2_update_weight``).
        cov_tokens: tokens of text for second moments, of MEMIT.

    How blocks are trained is a matter of UnKE.
    """

    name = "anyedit"

    window: Count = 40
    overlap: Annotated[int, Range(0)] = 0
    write: Literal["memit", "unke"] = "memit"
    rest: Rest = "all"
    layers: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    v_threshold: NotNegative | None = None
    lam: Positive = 15000.0
    cov_tokens: Count = 100_000

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # jianghoucheng/AnyEdit at ac8e652, hparams/MEMIT_ARE and hparams/unke_ARE.
        "meta-llama-3-8b-instruct": {"layers": (4, 5, 6, 7, 8), "blocks": (7,), "window": 40},
        "qwen2.5-7b-instruct": {"layers": (4, 5, 6, 7, 8), "blocks": (7,), "window": 50},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (2,), "v_steps": 40, "clamp": 6.0, "lam": 10.0},
        "mini": {"layers": (2,), "v_steps": 40, "clamp": 10.0, "lam": 100.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.window:
            raise UsageError(
                f"anyedit: overlap is {self.overlap}, and a chunk has {self.window} tokens; give an overlap below that"
            )

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers that are written, ascending; the values are of what leaves the last."""
        if self.write == "memit":
            return spread_layers(lm, self.layers)
        return require_layers(lm, self.blocks or (layer_at_depth(lm, 0.22),))

    def places(self, lm: LM) -> Sequence[str]:
        """The blocks in which something is written."""
        return [lm.arch.block(layer) for layer in self.edited_layers(lm)]

    def require(self, lm: LM) -> None:
        """See that the model can be edited in the way that is asked for.

        Raises:
            ModelError: it has no such layer, a parameter is quantised, or values do not arrive.
        """
        super().require(lm)
        layers = self.edited_layers(lm)
        if self.write == "unke":
            require_blocks(lm, layers, self.name)
            return
        for layer in layers:
            require_plain(lm, lm.down(layer))
        require_keys(lm, layers, whitened=layers, tokens=self.cov_tokens)
        require_additive(lm, layers, self.name)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once; the memory is that of the method that writes."""
        own_memory(memory, Unedited if self.write == "memit" else Retained)
        if not edits:
            return Patch(memory=memory)
        targets = self._cut(lm, edits)
        values = chunk_values(lm, targets, objective=self.objective(lm))
        if self.write == "unke":
            return self._trained(lm, targets, values, memory)
        return self._solved(lm, [targets], [values], memory)[0]

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits: their values side by side."""
        if not edits:
            return []
        targets = self._cut(lm, edits)
        values = chunk_values(lm, targets, objective=self.objective(lm))
        if self.write == "unke":
            return [self._trained(lm, [one], [value], None) for one, value in zip(targets, values, strict=True)]
        return self._solved(lm, [[one] for one in targets], [[value] for value in values], None)

    def objective(self, lm: LM) -> Objective:
        """The optimisation of one chunk's value."""
        threshold = _THRESHOLD[self.write] if self.v_threshold is None else self.v_threshold
        return replace(self.value_objective(self.edited_layers(lm)[-1]), threshold=threshold)

    def _cut(self, lm: LM, edits: Sequence[Edit]) -> list[ChunkedTarget]:
        """The targets in chunks."""
        return [cut_target(lm, edit, window=self.window, overlap=self.overlap) for edit in edits]

    def _solved(
        self,
        lm: LM,
        groups: Sequence[Sequence[ChunkedTarget]],
        values: Sequence[Sequence[Tensor]],
        memory: object,
    ) -> list[Patch]:
        """The change that gives each batch its values by least squares, and what the next operation is given."""
        layers = self.edited_layers(lm)
        known = take_unedited(
            lm, memory, kind="memit", layers=layers, seed=self.seed, tokens=self.cov_tokens, given=_PLAIN
        )
        solve = ridge_solver(SpreadMemory(known.contexts, known.moments), lam=self.lam)
        found = write_values(lm, groups, values, layers=layers, solve=solve, rest=self.rest)
        return [patch.remember(known) for patch in found]

    def _trained(self, lm: LM, targets: Sequence[ChunkedTarget], values: Sequence[Tensor], memory: object) -> Patch:
        """The change that gives the values by training of blocks, and what the next operation is given."""
        before = memory if isinstance(memory, Retained) else Retained.of(lm)
        found = train_in_turn(
            lm,
            self.edited_layers(lm),
            wanted_states(lm, targets, values, rest=self.rest),
            kept=before.drawn(lm, count=self.texts, seed=self.seed),
            settings=BlockTraining(self.steps, self.lr, self.weight_decay),
            edits=[target.edit.id for target in targets],
        )
        return found.remember(before.next)
