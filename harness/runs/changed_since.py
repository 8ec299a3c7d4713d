"""What a record depends on and its plan only names: whether it is still what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.editing import learned_file
from harness.errors import UsageError
from harness.exam import data
from harness.exam.prompting import template_sha256
from harness.io.hashes import combined_sha256
from harness.io.plain_text import text_identity
from harness.models.lm import load
from harness.models.placement import Where
from harness.runs.loaded import checkpoint_files
from harness.runs.new_record import edits_sha256
from harness.runs.record import Record
from harness.runs.resolve import Resolved
from harness.runs.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["changed_since", "checkpoint_sha256", "weights_sha256"]


def changed_since(record: Record, resolved: Resolved, *, load_model: bool = True) -> list[str]:
    """What is not what it was when the record of this plan was made, in words.

    Args:
        record: the record.
        resolved: its plan, and what it names now.
        load_model: whether the weights and the chat template are looked at, too.
    """
    found = list(_changed(record, resolved))
    if not found and load_model:
        # Where matrices were dequantised for the run, the checkpoint is that of before.
        if record.model.get("loaded_sha256", record.model.get("sha256")) != weights_sha256(resolved):
            found.append("weights of the model")
        if record.model.get("chat_template") != _template_sha256(resolved):
            found.append("chat template")
    return found


def _changed(record: Record, resolved: Resolved) -> Iterator[str]:
    plan = resolved.plan
    asked = record.edits.get("known", {}).get("sha256", record.edits.get("sha256"))  # known facts alone are fewer
    if asked != edits_sha256(resolved.edits):
        yield "edits"
    if record.editor.get("sources", {}) != resolved.recipe.sources:
        yield "files of editors"
    if plan.fitted and record.editor.get("learned") != learned_file.learned_content(Path(plan.fitted)):
        yield "knowledge of the editor"
    if any(
        _rows(name, resolved) != kept.get("sha256")
        for name, kept in record.data.items()
        if name in data.find_datasets(include=plan.include_path)
    ):
        yield "rows"
    text = resolved.text if resolved.lm is None else resolved.lm.text
    if text not in (None, "mini") and record.model.get("text", now := text_identity(text)) != now:
        yield "text"
    if record.versions != versions():
        yield "versions"


def _rows(name: str, resolved: Resolved) -> object:
    """The sha256 of the file from which the rows of a data set come now."""
    plan = resolved.plan
    dataset = data.find_datasets(include=plan.include_path)[name]
    return data.file_sha256(dataset, plan.split if name == plan.edits else "test", plan.data_dir)


def weights_sha256(resolved: Resolved) -> str:
    """The sha256 of the weights of the model of a plan, as its record would say it."""
    plan = resolved.plan
    if resolved.lm is not None:
        return combined_sha256(resolved.lm.state_hashes())
    return checkpoint_sha256(plan.model, dtype=plan.dtype, arch=plan.arch, args=plan.model_args)


def _template_sha256(resolved: Resolved) -> str | None:
    """The hash of the chat template of a plan, as its record would say it; None where it has none."""
    plan = resolved.plan
    if not plan.prompting.template:
        return None
    if resolved.lm is not None:
        tokenizer = resolved.lm.tokenizer
    else:
        tokenizer = _read(plan.model, dtype=plan.dtype, arch=plan.arch, args=plan.model_args).tokenizer
    try:
        return template_sha256(tokenizer, plan.prompting.template, plan.model)
    except UsageError:  # it is gone, or has another name
        return None


def checkpoint_sha256(
    model: str,
    *,
    dtype: str,
    arch: Mapping[str, str] | None = None,
    args: Mapping[str, Any] | None = None,
    device: Where = "cpu",
) -> str:
    """The sha256 of the weights of a checkpoint, which is loaded for it, once for all plans of a call that name it.

    Args:
        model: a shipped model, a folder, or a Hub repository.
        dtype: of the weights.
        arch: parts of the architecture named by hand.
        args: more of how it is read.
        device: where the model goes for that.
    """
    return _read(model, dtype=dtype, arch=arch, args=args, device=device).sha256


class _Seen(NamedTuple):
    """What of a checkpoint a record depends on."""

    sha256: str
    tokenizer: PreTrainedTokenizerBase


def _read(
    model: str,
    *,
    dtype: str,
    arch: Mapping[str, str] | None = None,
    args: Mapping[str, Any] | None = None,
    device: Where = "cpu",
) -> _Seen:
    read = json.dumps(dict(args or {}), sort_keys=True)
    named = tuple(sorted((arch or {}).items()))
    return _seen(model, dtype, named, read, device=device, files=checkpoint_files(Path(model)))


@lru_cache(maxsize=4)
def _seen(
    model: str,
    dtype: str,
    arch: tuple[tuple[str, str], ...],
    args: str,
    *,
    device: Where,
    files: tuple[object, ...],  # noqa: ARG001
) -> _Seen:
    """Other bytes in a folder are another model."""
    read = load(model, dtype=dtype, device=device, names=dict(arch) or None, args=json.loads(args))
    return _Seen(combined_sha256(read.state_hashes()), read.tokenizer)
