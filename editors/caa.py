"""CAA: adds the mean difference between the states of new and old answers to what one block writes.

Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681, equation 1; for
free continuations, where an answer's state is the mean over its tokens, as in zjunlp/EasyEdit (at 14cea82,
steer/vector_generators/caa).  As there the vector is added at every token: the paper adds it from the end of the
question on, which a text that is scored does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Range
from harness.methods.contrast import stated_answers
from harness.methods.keys import layer_at_depth
from harness.methods.steering import BlockEditor, add_vector, mean_states
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step

__all__ = ["Caa", "Shift"]


@dataclass(frozen=True)
class Caa(BlockEditor):
    """``h <- h + strength mean_i (h(x_i, new_i) - h(x_i, old_i))`` after one block, at every token.

    ``h(x, y)`` is the mean over the tokens of an answer ``y`` behind its prompt ``x`` of what the block writes.

    Attributes:
        layer: the block; by default one at 40 % of the depth: before, a state is of words, behind it of the next token.
        strength: the factor of the vector; below 0 it steers away.
    """

    name = "caa"
    seams = frozenset({"activations"})
    needs_old = True
    directions = frozenset({"likelihood", "contrast"})
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "a difference of states is no optimum: it points at what comes with an answer, not what asks for it"
    }

    layer: Annotated[int, Range(0)] | None = None
    strength: float = 1.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # harness tune --editor caa --mode isolated --edits counterfact:20 --trials 14
        "mini": {"strength": 0.795},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """One vector for all edits; increments join to the mean over all.

        Raises:
            DataError: an edit does not name the old answer.
        """
        if not edits:
            return Patch()
        return self._steered(lm, self.differences(lm, edits))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """All states in one pass: the rows of a batch do not see each other."""
        return [self._steered(lm, row[None]) for row in self.differences(lm, edits)] if edits else []

    def differences(self, lm: LM, edits: Sequence[Edit]) -> Tensor:
        """``h(x, new) - h(x, old)`` of each edit, ``[edits, d]``.

        Raises:
            DataError: an edit does not name the old answer.
        """
        states = mean_states(lm, stated_answers(lm, edits), self.at(lm))
        return states[: len(edits)] - states[len(edits) :]

    def at(self, lm: LM) -> int:
        """The block."""
        return layer_at_depth(lm, 0.4) if self.layer is None else self.layer

    def _steered(self, lm: LM, differences: Tensor) -> Patch:
        return Patch(hooks={self.block(lm): Shift(differences.sum(0), len(differences), self.strength)})


@dataclass(frozen=True, eq=False)
class Shift(Part):
    """Adds one vector at every token (:data:`harness.patches.patch.Hook`).

    Attributes:
        total: the sum of the differences of all edits, ``[d]``.
        count: how many edits these are.
        strength: the factor of their mean.
    """

    total: Tensor
    count: int
    strength: float

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        """What the block writes, and the vector."""
        return add_vector(hidden, self.strength / self.count * self.total)

    def tensors(self) -> dict[str, Tensor]:
        """The sum."""
        return {"total": self.total}

    def settings(self) -> dict[str, Any]:
        """The number of edits and the strength."""
        return {"count": self.count, "strength": self.strength}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Shift:
        """The vector again."""
        return cls(tensors["total"].to(lm.device), settings["count"], settings["strength"])

    def joined(self, later: Shift) -> Shift:
        """The mean over the edits of both."""
        return replace(later, total=self.total + later.total.to(self.total), count=self.count + later.count)
