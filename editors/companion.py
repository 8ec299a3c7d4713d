"""A companion: a small model is edited in the place of a large one, which is given its change of log-probabilities.

Source: Hewitt, Chen, Xie, Adams, Liang, Manning 2024, "Model Editing with Canonical Examples", arXiv 2402.06155,
section 6: a Backpack whose senses were finetuned (:mod:`editors.senses`) beside GPT-J.  The companion runs in float32
and reads each token once while a text grows, as the large model does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from harness.editing import patch_file
from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Pass, own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive, require_effect
from harness.editing.registry import configure, find
from harness.errors import DataError, ModelError
from harness.methods.logit_ensemble import combine_logits, common_vocabulary
from harness.models.lm import LM, load
from harness.patches.patch import Part, Patch, Step, patched

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

__all__ = ["Companion", "Ensemble", "GrowingText"]


_LEARNING = ("k", "unusual", "lr", "kl", "epochs", "kl_text")
"""What is handed on to the method that finetunes the companion, beside the seed."""


@functools.lru_cache(maxsize=1)
def _opened(model: str, device: str, text: str) -> LM:
    """A companion, kept for the next edit; nothing changes it but for as long as a patch is held."""
    return load(model, dtype="float32", device=device, text=text)


class GrowingText:
    """Reads a text that grows from call to call; what has been read is kept and not read again.

    A text is kept where only its last columns are asked for, as in generation; scoring asks for all of them.
    """

    def __init__(self) -> None:
        """Nothing has been read."""
        self._step: Step | None = None
        self._cache: Cache | None = None

    def logits(self, lm: LM, step: Step) -> Tensor:
        """The logits of the new columns, ``[batch, new, vocabulary]``."""
        known = self._known(step)
        ids, mask = step.ids.to(lm.device), step.mask.to(lm.device)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        whole = step.new == ids.shape[1]
        with torch.no_grad():
            out = lm.model(
                input_ids=ids[:, known:],
                attention_mask=mask,
                position_ids=places[:, known:],
                past_key_values=self._cache if known else None,
                use_cache=not whole,
                logits_to_keep=step.new,
            )
        self._step, self._cache = (None, None) if whole else (step, out.past_key_values)
        logits: Tensor = out.logits
        return logits

    def _known(self, step: Step) -> int:
        """The columns that were read before, if this text goes on from them."""
        last = self._step
        if last is None or last.ids.shape[0] != step.ids.shape[0]:
            return 0
        count = last.ids.shape[1]
        same = torch.equal(step.ids[:, :count], last.ids) and torch.equal(step.mask[:, :count], last.mask)
        return count if same and count + step.new <= step.ids.shape[1] else 0


@dataclass(frozen=True, eq=False)
class Ensemble(Part):
    """``z + beta (log softmax(z_tuned) - log softmax(z_base))`` on the common vocabulary.

    Attributes:
        companion: the small model's name.
        change: what edits it.
        beta: how much of its change is added.
        common: the tokens that both models have.
        device: where the companion runs.
        text: its plain text.
        editor: the method that changed it.
        fixed: whether the change came from a file, and is the same for every operation.
    """

    companion: str
    change: Patch
    beta: float
    common: int
    device: str
    text: str
    editor: str = "senses"
    fixed: bool = False
    base: GrowingText = field(default_factory=GrowingText, repr=False, metadata={"kept": False})
    tuned: GrowingText = field(default_factory=GrowingText, repr=False, metadata={"kept": False})

    @property
    def lm(self) -> LM:
        """The companion."""
        return _opened(self.companion, self.device, self.text)

    def __call__(self, logits: Tensor, step: Step) -> Tensor:
        """A logit rule (:data:`harness.patches.patch.LogitRule`).

        Raises:
            ModelError: the text is longer than the companion reads.
        """
        lm = self.lm
        if step.ids.shape[1] > lm.context:
            raise ModelError(
                f"a text of {step.ids.shape[1]} tokens, but the companion {lm.name} reads {lm.context}; shorten the "
                "prompts, or choose another companion"
            )
        base = self.base.logits(lm, step)
        with patched(lm, self.change):
            tuned = self.tuned.logits(lm, step)
        return combine_logits(logits, tuned, base, beta=self.beta, common=self.common)

    def weighing(self, beta: float) -> Ensemble:
        """The same with another share of the companion's change."""
        return replace(self, beta=beta)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the companion's change."""
        return patch_file.pack_patch(self.change, self.editor)[1]

    def settings(self) -> dict[str, Any]:
        """The companion with the hash of its weights, and what else changes it."""
        return {
            "companion": self.companion,
            "sha256": self.lm.fingerprint(),
            "beta": self.beta,
            "text": self.text,
            "fixed": self.fixed,
            "editor": self.editor,
            "version": patch_file.VERSION,
            "parts": patch_file.pack_patch(self.change, self.editor)[0],
        }

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
        """The rule again.

        Raises:
            DataError: the companion is no longer the model that was edited.
        """
        name, device, text = settings["companion"], str(lm.device), settings["text"]
        companion = _opened(name, device, text)
        if companion.fingerprint() != settings["sha256"]:
            raise DataError(f"the companion {name} is not the model that was edited; give the same checkpoint")
        change = patch_file.unpack_patch(Path(name), head=settings, flat=tensors, lm=companion)
        common = common_vocabulary(lm, companion)
        return cls(name, change, settings["beta"], common, device, text, settings["editor"], settings["fixed"])

    def joined(self, later: Ensemble) -> Ensemble:
        """Both changes of one companion.

        Raises:
            ModelError: the companions differ.
        """
        if (self.companion, self.beta) != (later.companion, later.beta):
            raise ModelError(
                f"two companions, {self.companion} with beta {self.beta:g} and {later.companion} with beta "
                f"{later.beta:g}; use one"
            )
        if self.fixed and later.fixed:
            return self
        change = self.change + later.change
        return Ensemble(self.companion, change, self.beta, self.common, self.device, self.text, self.editor)


@dataclass(frozen=True, eq=False)
class _Memory:
    """What edits the companion so far, and what its own editor remembers."""

    change: Patch
    inner: object


@dataclass(frozen=True)
class Companion(Editor):
    """Sense finetuning of a companion, or a saved change of it, felt in the logits of the model.

    Attributes:
        model: the companion: a Backpack with the tokenizer of the model.
        patch: a file with a change of the companion, as a run with ``--model COMPANION`` keeps it, in place of
            finetuning on the edits.
        beta: how much of the change is added.
        k: senses chosen for each example; like all below, by default the preset of ``senses`` for the companion.
        unusual: how much what ordinary text weighs counts against a sense.
        lr: the learning rate.
        kl: the weight of the divergence.
        epochs: passes over the examples.
        kl_text: the ordinary text; by default the model's plain text.
        seed: of the finetuning.
    """

    name = "companion"
    seams = frozenset({"logits"})
    random = True
    directions = DIRECTIONS
    method: ClassVar[str] = "senses"

    model: str = "mini-backpack"
    patch: str | None = None
    beta: NotNegative = 1.0
    k: Count | None = None
    unusual: NotNegative | None = None
    lr: Positive | None = None
    kl: NotNegative | None = None
    epochs: Count | None = None
    kl_text: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch is not None:
            require_effect(self, _LEARNING, where="on the change that 'patch' holds; leave one of them out")

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """What the companion learns of the edits; the memory is what it has learned so far."""
        before = own_memory(memory, _Memory)
        if not edits:
            return Patch(memory=memory)
        small = _opened(self.model, str(lm.device), lm.text)
        if self.patch is not None:
            path = Path(self.patch)
            change = patch_file.load_patch(path, small)
            if change.prompt is not None:
                raise ModelError(
                    f"{path}: changes the prompt, but a companion reads what the model reads; give a change of its "
                    "weights, activations or logits"
                )
            return self._felt(lm, small, change, patch_file.patch_manifest(path)["editor"])
        before = before or _Memory(Patch(), None)
        with patched(small, before.change):
            change = self._method(small).edit(small, edits, before.inner)
        remembered = _Memory(before.change + change, change.memory)
        return self._felt(lm, small, change).remember(remembered)

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """What the companion learns of each edit alone."""
        if self.patch is not None or not edits:
            return super().edit_each(lm, edits)
        small = _opened(self.model, str(lm.device), lm.text)
        return [self._felt(lm, small, change) for change in self._method(small).edit_each(small, edits)]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """What the companion has learned after each epoch."""
        if self.patch is not None:
            yield from super().passes(lm, edits)
            return
        small = _opened(self.model, str(lm.device), lm.text)
        for done in self._method(small).passes(small, edits):
            yield replace(done, patch=self._felt(lm, small, done.patch))

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The companion with the hash of its weights, and what is changed in it."""
        small = _opened(self.model, str(lm.device), lm.text)
        if self.patch is not None:
            return {"companion": small.fingerprint(), "patch": patch_file.patch_manifest(Path(self.patch))["sha256"]}
        return {"companion": small.fingerprint(), "method": self._method(small).hyperparameters()}

    def _method(self, small: LM) -> Editor:
        given = {name: getattr(self, name) for name in (*_LEARNING, "seed") if getattr(self, name) is not None}
        return configure(find(self.method), small.name, given)

    def _felt(self, lm: LM, small: LM, change: Patch, editor: str = method) -> Patch:
        common, device = common_vocabulary(lm, small), str(lm.device)
        fixed = self.patch is not None
        return Patch(logits=Ensemble(self.model, change, self.beta, common, device, lm.text, editor, fixed))
