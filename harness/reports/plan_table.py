"""A plan with what it names, before it is run, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.editing.editor import Editor
from harness.exam.exam_parts import exam_parts
from harness.exam.prompting import told
from harness.runs.estimate import CostEstimate
from harness.runs.record import record_name
from harness.runs.resolve import Resolved
from harness.runs.runner import finished

__all__ = ["estimate_table", "plan_table"]

_SHOWN = 3  # edits that are written out


def plan_table(resolved: Resolved, folder: Path) -> RenderableType:
    """What would be run: the model, the editor, the edits, where it is measured, on what, and the record.

    Args:
        resolved: the plan, and what it names.
        folder: where its record lies or would lie.

    Raises:
        DataError: a record that lies there cannot be read.
    """
    plan = resolved.plan
    title = f"{resolved.recipe.name if not plan.patch else plan.patch} on {plan.model}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(resolved, folder):
        table.add_row(name, Text(value))
    return table


def estimate_table(found: CostEstimate) -> RenderableType:
    """What a plan will take: documents, tokens, seconds and memory of each phase and task, and what is kept."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("phase", "documents", "requests", "tokens read", "written at most", "seconds", "peak MiB"):
        table.add_column(name, justify="left" if name == "phase" else "right", overflow="fold")
    for phase in found.phases:
        for name, one in ((phase.name, phase), *((f"  {part.name}", part) for part in phase.parts)):
            asked = one.asked
            counts = (asked.documents, asked.requests, asked.read, asked.written)
            shown = [f"{count:,}" if asked.documents else "" for count in counts]
            table.add_row(name, *shown, f"{one.seconds:,.1f}", f"{one.peak_memory_mib:,.0f}")
    total = sum(phase.seconds for phase in found.phases)
    said = [f"about {_time(total)} in all", f"{found.edits} edits"]
    said += [f"{found.patch_bytes:,} bytes of changes"] if found.edits else []
    said += [f"{found.statistics_bytes:,} bytes of second moments are made first"] if found.statistics_bytes else []
    return Group(table, Text("; ".join(said)))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} minutes {rest} seconds" if minutes else f"{rest} seconds"


def _rows(resolved: Resolved, folder: Path) -> Iterator[tuple[str, str]]:
    plan = resolved.plan
    yield "model", ", ".join([plan.model, plan.dtype, *_pairs(plan.arch)])
    yield from _editor(resolved)
    yield from _edits(resolved)
    yield "measured after", ", ".join(map(str, resolved.stops)) + " edits"
    if plan.stop_on_collapse:
        yield "ends early", "where the model has collapsed"
    yield from _exam(resolved)
    yield "tasks", ", ".join([*([plan.edits] if resolved.edits else []), *plan.tasks])
    asked = told(plan.to_json())
    if asked:
        yield "asked", ", ".join(asked)
    yield "documents", "all" if plan.limit is None else f"at most {plan.limit} of each task"
    yield "rows from", plan.data_dir
    yield "plain text", resolved.text or "the model's default"
    yield "seed", str(plan.seed)
    yield "id", resolved.id
    yield "record", _record(resolved, folder)


def _editor(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """The method and its wrappers, with their hyperparameters as far as they are known without the model."""
    plan = resolved.plan
    if plan.patch:
        yield "saved edits", plan.patch
        return
    editor: Editor = resolved.editor or resolved.recipe.configured(plan.model, plan.settings, seed=plan.seed)
    yield "editor", editor.label()
    yield "hyperparameters", ", ".join(_pairs(editor.hyperparameters())) or "none"
    if plan.fitted:
        yield "learned", plan.fitted


def _edits(resolved: Resolved) -> Iterator[tuple[str, str]]:
    plan, edits = resolved.plan, resolved.edits
    size = f", {plan.edit_batch_size} at a time" if plan.edit_batch_size is not None else ""
    size += f", {plan.cases_at_once} cases at once" if plan.cases_at_once is not None else ""
    yield "edits", f"{len(edits)} of {plan.edits} ({plan.split}), order: {plan.order}"
    yield "mode", f"{resolved.mode}{size}"
    if resolved.edits_any:
        said = [f"{edit.text} ->{edit.continuation}" for edit in edits[:_SHOWN]]
        yield "the first", "; ".join(said)


def _exam(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """What is asked about each edit; nothing of a set whose YAML names no parts."""
    if resolved.edit_set is None:
        return
    parts = exam_parts(resolved.edit_set)
    asked = [parts[name] for name in resolved.plan.exam or parts]
    if asked:
        yield "exam", "; ".join(f"{part.name}: {part.asks}" for part in asked)


def _record(resolved: Resolved, folder: Path) -> str:
    """Whether there is one."""
    kept = finished(resolved, folder, load_model=False)
    if kept is not None:
        return f"complete: {folder / record_name(kept)}.json"
    begun = sorted(folder.glob(f"*--{resolved.id[:8]}.partial.json"))
    return f"begun, goes on: {begun[0]}" if begun else f"none yet in {folder}"


def _pairs(values: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]
