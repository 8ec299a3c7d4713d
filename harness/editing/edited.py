"""A model while it carries edits: what it says, how likely a continuation is, and the edits as a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.editing import patch_file, schedule
from harness.errors import RestoreError, UsageError
from harness.models.guard import unchanged
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch, patched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.editing.edit import Edit
    from harness.editing.editor import Editor

__all__ = ["Edited", "held", "patch_of"]

_HELD: WeakKeyDictionary[nn.Module, list[object]] = WeakKeyDictionary()
"""Marks of the edits that a model holds now, in the order in which they were made."""


@dataclass(frozen=True, eq=False)
class Edited:
    """A model that carries edits for as long as its context lasts.

    Attributes:
        lm: the model with its tokenizer.
        patch: what the editor changed.
        editor: the method's name, as a file of saved edits names it.
        edits: what the model shall say.
        unedited: the sha256 of the model without the edits.
        source: where the edits come from, as the fields of a plan; empty where no file holds them.
    """

    lm: LM
    patch: Patch
    editor: str
    edits: tuple[Edit, ...]
    unedited: str
    source: Mapping[str, object] = field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        """The edited model itself; an editor's change of the prompt is not in it."""
        return self.lm.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.lm.tokenizer

    def generate(self, prompt: str, max_new_tokens: int = 20) -> str:
        """The greedy continuation of a prompt, without the prompt.

        Args:
            prompt: the text to continue.
            max_new_tokens: how many tokens at most; it may end before.

        Raises:
            UsageError: the prompt and the continuation do not fit into the model.
        """
        ids = self.lm.encode(self._read(prompt)) or [self.lm.start]
        self._require_room(len(ids) + max_new_tokens)
        batch = self.lm.batch([ids])
        with torch.no_grad(), self.lm.plain_generation():
            found: Tensor = self.lm.model.generate(  # type: ignore[operator]  # transformers types it as a tensor
                input_ids=batch.ids,
                attention_mask=batch.mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.lm.pad,
            )
        return str(self.lm.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))

    def log_likelihood(self, prompt: str, continuation: str) -> float:
        """The sum of the log-probabilities of a continuation's tokens, in nats.

        Args:
            prompt: what stands in front.
            continuation: what is scored, with its leading space.

        Raises:
            UsageError: both together do not fit into the model.
            DataError: the continuation has no tokens.
        """
        read = self._read(prompt)
        said = self.lm.continuation(read, continuation)
        ids = [*(self.lm.encode(read) or [self.lm.start]), *said]
        self._require_room(len(ids))
        batch = self.lm.batch([ids])
        with torch.no_grad():
            logits = self.lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits[0, -len(said) - 1 : -1]
        precise = double(logits)
        right = torch.tensor(said, device=precise.device)
        return float(precise.log_softmax(-1).gather(1, right[:, None]).sum())

    def save(self, path: str | Path) -> Path:
        """Write the edits to a file, which ``harness apply``, ``--patch`` and :func:`harness.evaluate` take.

        Raises:
            ModelError: a change of activations, prompt or logits is none that can be saved.
            UsageError: the file cannot be written.
        """
        about = {"model": self.lm.name, "dtype": str(self.model.dtype).removeprefix("torch.")}
        ids = {"num_edits": len(self.edits), "ids": [edit.id for edit in self.edits]}
        patch_file.save_patch(
            self.patch,
            self.lm,
            Path(path),
            editor=self.editor,
            about={**self.source, **about, **ids},
            unedited=self.unedited,
        )
        return Path(path)

    def _read(self, prompt: str) -> str:
        return prompt if self.patch.prompt is None else self.patch.prompt(prompt)

    def _require_room(self, tokens: int) -> None:
        if tokens > self.lm.context:
            raise UsageError(f"{tokens} tokens, but {self.lm.name} takes {self.lm.context}; give a shorter prompt")


def patch_of(editor: Editor, lm: LM, edits: Sequence[Edit], *, mode: str) -> Patch:
    """The change that makes the model say all edits, in one operation or one on top of the other.

    Args:
        editor: the method.
        lm: the unedited model; unchanged when this returns.
        edits: the edits, in order.
        mode: ``batch`` or ``sequential``.

    Raises:
        UsageError: the editor cannot make these edits in this mode, or there is none.
        ModelError: the editor is made for another family of models.
    """
    if mode not in ("batch", "sequential"):
        raise UsageError(f"mode '{mode}' does not exist here; choose batch or sequential")
    if not edits:
        raise UsageError("there is no edit; give at least one row of prompt, subject and target")
    if mode == "batch" and not editor.root.batch and len(edits) > 1:  # here is no isolated mode to turn to
        raise UsageError(f"{editor.name} edits one fact at a time; give mode='sequential', or one edit")
    *_, stop = schedule.walk(editor, lm, edits, mode=mode, batch_size=None, at=[len(edits)])
    return stop.patches[0]


@contextmanager
def held(
    lm: LM,
    editor: Editor,
    *,
    name: str,
    edits: Sequence[Edit],
    mode: str = "batch",
    source: Mapping[str, object] | None = None,
) -> Iterator[Edited]:
    """Make edits and hold them; afterwards the whole model is bitwise what it was, also after an exception.

    Args:
        lm: the unedited model.
        editor: the method, configured.
        name: the method's name, as :func:`harness.editing.registry.find` takes it.
        edits: what the model shall say.
        mode: ``batch`` or ``sequential``.
        source: where the edits come from, as the fields of a plan.

    Raises:
        UsageError: the editor cannot make these edits in this mode, or there is none.
        RestoreError: the editor left something behind, the model is not what it was, or edits that were made on top of
            these are still held.
    """
    with _last_first(lm), unchanged(lm) as guard:
        unedited = lm.fingerprint()
        patch = patch_of(editor, lm, edits, mode=mode)
        guard.require("load the model again", weights=False, before=f" before {editor.name} edited")
        with patched(lm, patch):
            yield Edited(lm, patch, name, tuple(edits), unedited, source or {})


@contextmanager
def _last_first(lm: LM) -> Iterator[None]:
    """See that of several edits of one model the last is let go first: each puts back what it found.

    Raises:
        RestoreError: another is held that was made later.
    """
    mark, held_now = object(), _HELD.setdefault(lm.model, [])
    held_now.append(mark)
    try:
        yield
    finally:
        last = held_now[-1]
        held_now.remove(mark)
        if last is not mark:
            raise RestoreError(
                f"{lm.name}: edits that were made on top of these are still held, and will put these back; let go of "
                "the last ones first, and load the model again"
            )
