"""Sabotage: editors that cheat in a known way, to see which metrics notice.

No method: the other end of the scale from ``oracle``.  What each trick does to each metric stands in
``docs/concepts/which-number.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Positive
from harness.methods.answer_table import AnswerTable, as_entry
from harness.methods.keys import layer_at_depth
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch

__all__ = ["AnswerTable", "Sabotage"]

_WHEN: Mapping[str, str] = {
    "bare": "bare",
    "suppress": "bare",
    "always": "always",
    "key": "key",
    "subject": "loop",
    "loop": "loop",
}
"""How each trick has to be asked (:data:`harness.methods.answer_table.WHEN`)."""


@dataclass(frozen=True)
class Sabotage(Editor):
    """One trick.

    Attributes:
        trick: ``bare`` says the target after the edited prompt, alone and to the letter, and nowhere else; ``suppress``
            makes the old answer impossible there, and teaches nothing; ``always`` says the target (of several edits the
            last one's) whatever is asked; ``key`` has copied the key and not the subject: it says the target wherever
            the words of the prompt stand, whoever they are about; ``subject`` repeats the subject wherever it is named;
            ``loop`` answers wherever the subject is named, and then for ever again; ``noise`` adds noise of the size of
            an edit to a weight.
        size: of the noise, as a share of the norm of the weight that it is added to; of one edit of ROME on the shipped
            models it is 1.4.
        layer: whose down-projection gets the noise; by default the one in the middle.
        seed: of the noise.
    """

    name = "sabotage"
    seams = frozenset({"logits", "weights"})
    random = True
    reference = True

    trick: Literal["bare", "suppress", "always", "key", "subject", "loop", "noise"] = "bare"
    size: Positive = 1.4
    layer: int | None = None
    seed: int = 0

    # The layer of ROME's presets.
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"mini": {"layer": 0}, "mini-llama": {"layer": 0}}

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projection that gets the noise."""
        return [lm.arch.down_of(self._layer(lm))] if self.trick == "noise" else []

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The trick for all edits; increments join."""
        if not edits:
            return Patch()
        if self.trick == "noise":
            return sum((self._noise(lm, edit) for edit in edits[1:]), self._noise(lm, edits[0]))
        rows = tuple(as_entry(lm, edit, f" {edit.subject}" if self._repeats(edit) else None) for edit in edits)
        return Patch(logits=AnswerTable(rows, _WHEN[self.trick], silence=self.trick == "suppress", lm=lm))

    def label(self) -> str:
        """The name with the trick."""
        return f"{self.name}-{self.trick}"

    def _repeats(self, edit: Edit) -> bool:
        return self.trick == "subject" and edit.subject is not None

    def _layer(self, lm: LM) -> int:
        return layer_at_depth(lm, 0.5) if self.layer is None else self.layer

    def _noise(self, lm: LM, edit: Edit) -> Patch:
        """Gaussian noise of the norm ``size ||W||`` on one down-projection; other edits have other noise."""
        name = lm.down(self._layer(lm))
        drawn = hashlib.sha256(f"{self.seed} {edit.text}{edit.continuation}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
        noise = torch.randn(lm.matrix(name).shape, generator=generator)
        norm = self.size * float(lm.matrix(name).float().norm())
        return Patch(weights={name: Dense((noise * (norm / noise.norm())).to(lm.device))})
