"""Saved edits as a checkpoint: the edited model, for every program that loads models of transformers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from harness.editing import patch_file
from harness.errors import ModelError, UsageError
from harness.models.lm import LM
from harness.patches.patch import patched

__all__ = ["export"]


def export(path: Path, lm: LM, folder: Path) -> None:
    """Write a model with a saved patch in its weights, and its tokenizer.

    Args:
        path: the patch.
        lm: the unedited model; unchanged when this returns.
        folder: the checkpoint; a new or an empty folder.

    Raises:
        DataError: the patch cannot be used, or is of another model.
        ModelError: the patch changes another seam than weights, which no checkpoint can hold.
        UsageError: the folder is a file, holds something, or cannot be written to.
    """
    patch = patch_file.load_patch(path, lm)
    if not patch.only_weights:
        where = ", ".join(filter(None, [*patch.hooks, patch.prompt and "the prompt", patch.logits and "the logits"]))
        raise ModelError(
            f"{path}: changes {where}, which no checkpoint can hold; score it with `harness run --patch {path}`"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "is not empty" if folder.is_dir() else "is a file"
        raise UsageError(f"{folder}: {found}; give --to a new folder")
    with patched(lm, patch):
        try:
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{folder}: cannot be written ({error}); choose another place") from error
