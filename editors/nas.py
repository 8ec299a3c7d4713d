"""NAS: gives every value that an inner editor writes the norm that values have on the unedited model.

Source: Liu, Zhu, Miao, Fujisawa 2026, "Norm Anchors Make Model Edits Last", arXiv 2602.02543, and the authors' code
(SasyaTitech/NAS at 38ac1c8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.editing.edit import Edit
from harness.editing.editor import Editor, Pass, Wrapper, own_memory
from harness.editing.hyperparameters import Positive
from harness.editing.made import made
from harness.methods.locate_then_edit import LocateThenEdit, with_hyperparameters
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Anchored", "NormAnchorScaling"]


@dataclass(frozen=True, eq=False)
class Anchored:
    """What the next operation is given.

    Attributes:
        anchor: the norm of values on the unedited model.
        inner: what the inner editor remembers.
    """

    anchor: float
    inner: object


@dataclass(frozen=True)
class NormAnchorScaling(Wrapper):
    """``v* <- v* a / ||v*||``, against the loop in which larger weights and larger values ask for each other.

    The authors find ``a`` on a thousand facts that CounterFact rewrites, which an editor here must not see; found on
    the first operation's edits instead, it leaves a lone edit as it is.

    Without a given anchor, edits made each alone are their own, and nothing is scaled.

    Attributes:
        anchor: ``a``; by default the mean norm of the values that the first operation's edits ask for on the
            unedited model, at the last of the edited layers.
        anchor_prompts: whether that norm is found after the ``contexts`` of the inner editor, or on ``bare`` prompts
            alone, as in the authors' code.
        skip: how many times the anchor the norm of a value may be; where it is more, the edit changes nothing. By
            default none is skipped, as in the authors' text; their code has 2, for ROME 5.
    """

    name = "nas"

    anchor: Positive | None = None
    anchor_prompts: Literal["contexts", "bare"] = "contexts"
    skip: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inner", self._anchored(self.anchor))

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The inner increment with scaled values."""
        before = own_memory(memory, Anchored)
        if not edits:
            return Patch(memory=memory)
        anchor = before.anchor if before else self.anchor or self._found(lm, edits)
        patch = made(self._anchored(anchor), lm, edits, memory=before.inner if before else None)
        return self.increment(lm, patch.remember(Anchored(anchor, patch.memory)))

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The one change: what locates first makes no second pass."""
        yield Pass(self.edit(lm, edits))

    def _anchored(self, anchor: float | None) -> Editor:
        """The inner editor with an anchor."""
        skip = {} if self.skip is None else {"v_anchor_skip": self.skip}
        return with_hyperparameters(self.inner, self.name, v_anchor=anchor, **skip)

    def _found(self, lm: LM, edits: Sequence[Edit]) -> float:
        """The anchor that the first operation's edits give, on the unedited model."""
        assert isinstance(self.root, LocateThenEdit)
        return self.root.value_norm(lm, edits, bare=self.anchor_prompts == "bare")
