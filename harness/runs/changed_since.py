"""What a record depends on and its plan only names: whether it is still what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.editing import learned_file, patch_file
from harness.editing.editor import Learned
from harness.errors import UsageError
from harness.exam import data, tasks
from harness.exam.hub_sets import file_in
from harness.exam.measure import configuration_sha256
from harness.exam.prompting import template_sha256
from harness.io.cache import in_cache
from harness.io.hashes import combined_sha256
from harness.io.plain_text import text_identity
from harness.models.lm import LM, load
from harness.models.placement import Where
from harness.runs.loaded import checkpoint_files
from harness.runs.new_record import edits_sha256
from harness.runs.prepare import suite_of
from harness.runs.record import Record
from harness.runs.resolve import Resolved
from harness.runs.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["changed_since", "checkpoint_sha256"]


def changed_since(record: Record, resolved: Resolved, *, load_model: bool = True) -> list[str]:
    """What is not what it was when the record of this plan was made, in words.

    Args:
        record: the record.
        resolved: its plan, and what it names now.
        load_model: whether the weights and the chat template are looked at, too.
    """
    found = list(_changed(record, resolved))
    return list(_changed_model(record, resolved)) if load_model and not found else found


def _changed(record: Record, resolved: Resolved) -> Iterator[str]:
    asked = record.edits.get("known", {}).get("sha256", record.edits.get("sha256"))  # known facts alone are fewer
    if asked != edits_sha256(resolved.edits):
        yield "edits"
    elif _other_rows(record, resolved):
        yield "rows"
    if record.editor.get("sources", {}) != resolved.recipe.sources:
        yield "files of editors"
    if record.editor.get("learned") != _learned(record, resolved):
        yield "knowledge of the editor"
    text = resolved.text if resolved.lm is None else resolved.lm.text
    if text not in (None, "mini") and record.model.get("text", now := text_identity(text)) != now:
        yield "text"
    if record.versions != versions():
        yield "versions"


def _other_rows(record: Record, resolved: Resolved) -> bool:
    """Whether a file from which rows come is another one now."""
    known = data.find_datasets(include=resolved.plan.include_path)
    return any(_rows(name, kept, resolved, known=known) != kept.get("sha256") for name, kept in record.data.items())


def _rows(name: str, kept: Mapping[str, Any], resolved: Resolved, *, known: Mapping[str, data.Dataset]) -> object:
    """The sha256 of the file from which the rows of a reported name come now; that which is kept where nobody knows."""
    plan = resolved.plan
    if name in known:
        return data.file_sha256(known[name], plan.split if name == plan.edits else "test", plan.data_dir)
    path = None
    if name == tasks.OWN:  # its edits may be the same, and what is asked about them not
        path = Path(plan.edits)
    elif kept.get("source") == "folder":  # of a task that reads the rows of another, or a data set of the Hub
        path = file_in(Path(plan.data_dir), str(kept.get("path")))
    return kept.get("sha256") if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _learned(record: Record, resolved: Resolved) -> str | None:
    """The hash of what the editor has learned now; that of the record where nobody knows."""
    plan, kept = resolved.plan, record.editor.get("learned")
    if plan.fitted:
        return learned_file.learned_content(Path(plan.fitted))
    method = (resolved.editor or resolved.recipe.configured(plan.model, plan.settings, seed=plan.seed)).root
    if kept is None or not isinstance(method, Learned):
        return kept
    if method.learned is not None:
        return learned_file.learned_digest(method)
    path = learned_file.path_of_weights(method, str(record.model.get("sha256")))
    return learned_file.learned_content(path) if in_cache(path) else kept


def _changed_model(record: Record, resolved: Resolved) -> Iterator[str]:
    """The same of what is known only when the model is at hand."""
    # Where matrices were dequantised for the run, the checkpoint is that of before.
    if record.model.get("loaded_sha256", record.model.get("sha256")) != _model(resolved).sha256:
        yield "weights of the model"
    if record.model.get("configuration", now := _model(resolved).configuration) != now:
        yield "configuration or tokenizer of the model"
    if record.model.get("chat_template") != _template_sha256(resolved):
        yield "chat template"
    if _other_patch(record, resolved):
        yield "saved edits"
    if _other_tasks(record, resolved):
        yield "tasks"


def _other_patch(record: Record, resolved: Resolved) -> bool:
    """Whether the file of saved edits holds others now."""
    if not resolved.plan.patch:
        return False
    kept = record.editor.get("notes")
    now = patch_file.stored_digest(Path(resolved.plan.patch))
    return isinstance(kept, Mapping) and kept.get("patch_sha256", now) != now


def _other_tasks(record: Record, resolved: Resolved) -> bool:
    """Whether a task of one's own, or its rows, is another one now; those that are installed have a version."""
    plan = resolved.plan
    if not tasks.own_folders(plan.tasks, plan.include_path):
        return False
    edited = set(record.edits.get("ids", ()))  # known facts alone are fewer
    ids = [one for one in resolved.ids_in_order_of_rows() if one in edited]
    suite = suite_of(resolved, _model(resolved).tokenizer, records=ids)
    now = {**{task.name: task.identity for task in suite.tasks}, **suite.left_out}
    return now != record.templates


def _template_sha256(resolved: Resolved) -> str | None:
    """The hash of the chat template of a plan, as its record would say it; None where it has none."""
    plan = resolved.plan
    if not plan.prompting.template:
        return None
    try:
        return template_sha256(_model(resolved).tokenizer, plan.prompting.template, plan.model)
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
    configuration: str
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, lm: LM) -> _Seen:
        """The same of a model that is loaded."""
        return cls(combined_sha256(lm.state_hashes()), configuration_sha256(lm), lm.tokenizer)


def _model(resolved: Resolved) -> _Seen:
    """What a record depends on of the model of a plan, as it is now."""
    plan = resolved.plan
    if resolved.lm is not None:
        return _Seen.of(resolved.lm)
    return _read(plan.model, dtype=plan.dtype, arch=plan.arch, args=plan.model_args)


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
    return _Seen.of(load(model, dtype=dtype, device=device, names=dict(arch) or None, args=json.loads(args)))
