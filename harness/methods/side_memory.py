"""Memories beside one down-projection, trained edit after edit: what WISE and MEMOIR do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, cast

from harness.editing.edit import Edit
from harness.editing.editor import Editor, own_memory
from harness.methods import context_templates
from harness.methods.keys import layer_at_depth, template_notes
from harness.models.lm import LM
from harness.patches.patch import Hook, Patch

__all__ = ["SideMemory", "SideState"]


@dataclass(frozen=True, eq=False)
class SideState:
    """What the next edit needs.

    Attributes:
        side: the memory, as a hook of the down-projection.
        contexts: context templates of the unedited model.
    """

    side: Hook
    contexts: tuple[str, ...]


State = TypeVar("State", bound=SideState)


@dataclass(frozen=True)
class SideMemory(Editor, ABC, Generic[State]):
    """One edit after the other changes what lies beside a down-projection; no weight changes.

    Attributes:
        layer: the layer; by default one at 80 % of the depth, where the published settings of GPT-J and Llama lie.
        contexts: context templates, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of whatever is drawn, context templates among it.
    """

    seams = frozenset({"activations"})
    batch = False
    random = True
    kept: ClassVar[type[SideState]]
    """The type of the state."""

    layer: int | None = None
    contexts: tuple[str, ...] | None = None
    seed: int = 0

    @abstractmethod
    def begun(self, lm: LM) -> State:
        """The state before the first edit."""

    @abstractmethod
    def learned(self, lm: LM, state: State, edit: Edit) -> State:
        """The state after one more edit.

        Args:
            lm: the model, without the memory.
            state: what was learned before.
            edit: the edit.
        """

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One edit after the other; the memory is a state."""
        before = own_memory(memory, self.kept)
        if not edits:
            return Patch(memory=memory)
        state = self.begun(lm) if before is None else cast(State, before)
        for edit in edits:
            state = self.learned(lm, state, edit)
        return Patch(hooks={self.down(lm): state.side}, memory=state)

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits that begin with the same state."""
        state = self.begun(lm) if edits else None
        return [self.edit(lm, [edit], state) for edit in edits]

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The context templates."""
        return template_notes(lm, "memit", seed=self.seed, given=self.contexts)

    def at(self, lm: LM) -> int:
        """The layer."""
        return layer_at_depth(lm, 0.8) if self.layer is None else self.layer

    def down(self, lm: LM) -> str:
        """The name of its down-projection."""
        return lm.arch.down_of(self.at(lm))

    def templates(self, lm: LM) -> tuple[str, ...]:
        """The context templates that are given, or sampled from the unedited model."""
        if self.contexts is not None:
            context_templates.require_templates(self.contexts)
        return self.contexts or context_templates.sample_templates(lm, "memit", self.seed)
