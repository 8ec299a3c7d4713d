"""What a run changes in a model: seen to be something, described, hashed, and gone at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.editing.editor import Editor
from harness.editing.schedule import Stop
from harness.errors import DataError, HarnessError
from harness.exam import expert_choice, neutral_text, weight_change
from harness.exam.spectra import Spectra
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.patch import Patch, patched
from harness.runs.prepare import VOID
from harness.runs.record import Record

__all__ = ["Routing", "changes_anything", "note_change", "note_described", "note_restored"]

log = logging.getLogger(__name__)

_DOCUMENTS = 20
"""Neutral documents whose tokens are followed to the experts that they are sent to."""


def note_change(record: Record, *, lm: LM, editor: Editor, stop: Stop, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Note in a record which weights a stop changes, by how much, and their hashes with the change in place.

    Args:
        record: the record, which is changed.
        lm: the unedited model.
        editor: what made the edits.
        stop: the edits so far.
        hashes: the sha256 of every parameter and buffer before anything was edited.

    Raises:
        HarnessError: the edits changed nothing, or nothing that the weights' type can hold.

    Returns:
        What :meth:`harness.runs.writer.RecordWriter.noted` takes of the change.
    """
    names = sorted({name for patch in stop.patches for name in patch.weights})
    spectra = Spectra()
    rows = [weight_change.describe(lm, patch, spectra) for patch in stop.patches]
    changed = any(map(changes_anything, stop.patches))
    noted = note_described(record, rows, editor=editor, changed=changed, hashes=hashes)
    if len(stop.patches) == 1:
        with patched(lm, stop.patches[0]):
            record.weights["edited"] = lm.hashes(names)
        _require_written(editor, stop.patches[0], record.weights)
    return noted


def note_described(
    record: Record,
    rows: Sequence[dict[str, dict[str, float | None]]],
    *,
    editor: Editor,
    changed: bool,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Note in a record how patches change weights, as :func:`harness.exam.weight_change.describe` says it of each.

    Args:
        record: the record, which is changed.
        rows: of each patch.
        editor: what made the edits.
        changed: whether any of them changes anything.
        hashes: the sha256 of every parameter and buffer before anything was edited.

    Raises:
        HarnessError: the edits changed nothing.

    Returns:
        What :meth:`harness.runs.writer.RecordWriter.noted` takes of the change: that of each weight, and, where the
        weights' type rounds it, the share of the whole that is lost.
    """
    if not changed:
        raise HarnessError(f"{editor.name}: the edits changed nothing; every target may already be what the model says")
    record.delta = weight_change.means(rows)
    names = sorted({name for row in rows for name in row})
    before = {**record.weights.get("before", {}), **{name: hashes[name] for name in names}}
    record.weights = {"before": before, "edited": {}, "restored": {}}
    lost = weight_change.lost_in_all(rows)
    return {"weights": record.delta, **({} if lost is None else {"lost_in_rounding": lost})}


def note_restored(record: Record, guard: Guard) -> None:
    """Note in a record the hashes of the weights that were changed, now that they are what they were.

    Args:
        record: the record, which is changed.
        guard: the model before the run.

    Raises:
        RestoreError: something that decides the model's numbers is not what it was.
    """
    before = record.weights.get("before", {})
    record.weights = {**record.weights, "before": before, "restored": guard.lm.hashes(before)}
    guard.require(VOID)


def changes_anything(patch: Patch) -> bool:
    """Whether a patch changes anything; a run of which none does is a mistake, not a result."""
    return not (patch.empty or (patch.weights and not _moves(patch)))


class Routing:
    """How stable the routing of a mixture of experts is under edits, against the model as it is before any."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def after(self, stop: Stop) -> dict[str, dict[str, float]]:
        """What a record says of a stop beside its weights; nothing of other models, nor of isolated edits.

        Args:
            stop: the edits so far; isolated ones are many models, of none of which tables show anything.
        """
        if len(stop.patches) != 1 or not self.lm.arch.stacked or self._texts is None:
            return {}
        before = self._unedited
        with patched(self.lm, stop.patches[0]):
            return {
                "routing": expert_choice.routing_stability(before, expert_choice.chosen_experts(self.lm, self._texts))
            }

    @cached_property
    def _texts(self) -> neutral_text.Texts | None:
        """Neutral documents; None where there are none."""
        try:
            found = neutral_text.texts(self.lm, _DOCUMENTS)
        except DataError as error:
            log.warning("the stability of routing is not measured: %s", error)
            return None
        return found if found.rows else None

    @cached_property
    def _unedited(self) -> Mapping[str, Any]:
        assert self._texts is not None
        return expert_choice.chosen_experts(self.lm, self._texts)


def _require_written(editor: Editor, patch: Patch, weights: Mapping[str, Mapping[str, Any]]) -> None:
    """A change that is lost in the rounding of the weights' own type is none."""
    if patch.only_weights and all(sha256 == weights["before"][name] for name, sha256 in weights["edited"].items()):
        raise HarnessError(f"{editor.name}: the edits are too small for the weights' type; use --dtype float32")


def _moves(patch: Patch) -> bool:
    return not patch.only_weights or any(bool((delta.dense() != 0).any()) for delta in patch.weights.values())
