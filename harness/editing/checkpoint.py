"""Saved edits as a checkpoint: the edited model, for every program that loads models of transformers."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from harness.editing import patch_file
from harness.errors import ModelError, UsageError
from harness.io.files import beside
from harness.models.lm import LM, require_dtype
from harness.patches.patch import patched

__all__ = ["export"]


def export(path: Path, lm: LM, folder: Path, *, dtype: str | None = None) -> None:
    """Write a model with a saved patch in its weights, and its tokenizer.

    Args:
        path: the patch.
        lm: the unedited model; unchanged when this returns.
        folder: the checkpoint; a new or an empty folder.
        dtype: the type of its weights; None or ``auto`` for that of the model.

    Raises:
        DataError: the patch cannot be used, or is of another model.
        ModelError: the patch changes another seam than weights, which no checkpoint can hold, or there is no such type.
        UsageError: the folder is a file, holds something, or cannot be written to.
    """
    if dtype is not None:
        require_dtype(dtype)
    dtype = None if dtype == "auto" else dtype
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
            _save_whole(lm, folder, dtype)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{folder}: cannot be written ({error}); choose another place") from error


def _save_whole(lm: LM, folder: Path, dtype: str | None) -> None:
    """The model and its tokenizer: where the folder is new, all of it or nothing."""
    if folder.exists():  # what a volume is mounted on cannot be replaced
        _save(lm, folder, dtype)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with beside(folder) as part:
        _save(lm, part, dtype)
        part.rename(folder)


def _save(lm: LM, folder: Path, dtype: str | None) -> None:
    """The model's weights, rounded once to the type that is asked for, its configuration, and its tokenizer."""
    lm.tokenizer.save_pretrained(folder)
    wanted = lm.model.dtype if dtype is None else getattr(torch, dtype)
    if wanted == lm.model.dtype:
        lm.model.save_pretrained(folder)
        return
    lm.model.save_pretrained(folder, state_dict=_cast(lm.model.state_dict(), wanted))
    config = copy.deepcopy(lm.model.config)
    config.dtype = wanted
    config.save_pretrained(folder)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Each tensor of floats in another type; those that share memory go on sharing it."""
    made: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    for tensor in state.values():
        key = tensor.data_ptr(), tensor.shape, tensor.stride()
        if key not in made:
            made[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: made[tensor.data_ptr(), tensor.shape, tensor.stride()] for name, tensor in state.items()}
