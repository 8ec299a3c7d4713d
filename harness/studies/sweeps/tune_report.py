"""What tuning leaves: a preset, which is a plan for ``harness run --config``, and a report of everything it tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.io import files
from harness.runs.plan import Plan
from harness.studies.sweeps.tune import Tuned, tuned_name

__all__ = ["preset_fields", "preset_line", "report_text", "write_tuned"]


def write_tuned(found: Tuned, folder: Path) -> tuple[Path, Path]:
    """Write the preset and the report.

    Args:
        found: what tuning found.
        folder: where they go.

    Returns:
        The preset, ``<model>--<editor>.yaml``, and the report beside it, ``.md``.

    Raises:
        UsageError: the folder cannot be written.
        NumericalError: every trial failed.
    """
    files.require_writable(folder)
    preset, report = (folder / f"{tuned_name(found.plan)}.{ending}" for ending in ("yaml", "md"))
    head = f"# Tuned by `{_command(found)}`: {_spent(found)}.\n# harness run --config {preset} --edits counterfact:50\n"
    files.write_whole(preset, (head + yaml.safe_dump(preset_fields(found), sort_keys=False)).encode())
    files.write_whole(report, report_text(found, preset).encode())
    return preset, report


def preset_fields(found: Tuned) -> dict[str, Any]:
    """The fields of a plan that use what was found."""
    plan = found.plan
    settings = {**found.best.settings, **plan.settings}
    fields: dict[str, Any] = {"model": plan.model, "editor": plan.editor, "settings": settings}
    fields["data_dir"] = plan.data_dir  # what is left out follows the model
    same = {name: getattr(plan, name) for name in ("dtype", "text", "dequantise_edited")} | {"arch": dict(plan.arch)}
    return fields | {key: value for key, value in same.items() if value != getattr(Plan(), key)}


def preset_line(found: Tuned) -> str:
    """The preset as an entry of an editor's own ``presets``."""
    settings = {**found.best.settings, **found.plan.settings}
    pairs = ", ".join(f'"{key}": {tuple(v) if isinstance(v, list) else v!r}' for key, v in settings.items())
    return f'"{tuned_name(found.plan).partition("--")[0]}": {{{pairs}}},'


def report_text(found: Tuned, preset: Path) -> str:
    """The report, in Markdown."""
    return "\n".join(_lines(found, preset)) + "\n"


def _lines(found: Tuned, preset: Path) -> Iterator[str]:
    plan, best = found.plan, found.best
    yield f"# {plan.editor} on {plan.model}, tuned"
    yield ""
    yield f"`{_command(found)}`: {_spent(found)}."
    yield ""
    yield (
        f"Rows: {plan.num_edits} of {plan.edits} ({plan.split}, {plan.data_dir}; sha256 {found.sha256}), no test row "
        f"among them, made as {plan.mode}; of each at most {found.budget.probes} probes of a kind; "
        f"neutral text: {found.budget.texts} documents. Objective: `(score + strength / 10) * exp(-kl)`: the score is "
        "the harmonic mean of the columns before it, strength how much likelier the new answer is than the old one, kl "
        "the divergence from the unedited model, in nats a token."
    )
    yield ""
    yield "## Where facts are recalled"
    yield ""
    yield from _traced(found)
    yield ""
    yield "## What was tried"
    yield ""
    yield from _trials(found)
    yield ""
    yield "## What is best"
    yield ""
    chosen = _settings({**best.settings, **plan.settings}) or "the editor as it is"
    yield f"{chosen}: objective {best.objective:.3f}; the untuned editor has {_number(found.trials[0].objective)}."
    yield ""
    yield f"    harness run --config {preset}"
    yield ""
    yield "As an entry of the editor's own `presets`:"
    yield ""
    yield f"    {preset_line(found)}"
    yield ""
    yield (
        f"{plan.num_edits} edits tell small differences apart badly: an objective hardly better than another may "
        "be so by chance."
    )


def _traced(found: Tuned) -> Iterator[str]:
    """The mean effect of each layer."""
    if found.effects is None:
        yield f"Nothing was traced: {found.untraced}; layers at a quarter, half and three quarters of the depth."
        return
    yield (
        f"Causal tracing of {found.traced} facts that the model knows (Hase et al. 2023, feed-forward modules): the "
        "mean share of the probability that comes back when a window around the layer is restored."
    )
    yield ""
    yield from _table(
        ["layer", *map(str, range(len(found.effects)))], [["effect", *(f"{x:.2f}" for x in found.effects)]]
    )


def _trials(found: Tuned) -> Iterator[str]:
    names = list(dict.fromkeys(name for one in found.trials for name in one.metrics)) or ["score", "kl"]
    rows = [["unedited", "", *(_number(found.unedited.get(name)) for name in names), "", ""]]
    for one in found.trials:
        measured = [_number(one.metrics.get(name)) for name in names]
        told = f"failed: {one.reason}" if one.objective is None else _number(one.objective)
        mark = "**" if one is found.best else ""
        rows.append([one.stage, _settings(one.settings), *measured, f"{mark}{told}{mark}", f"{one.seconds:.0f}"])
    yield from _table(["tried", "settings", *names, "objective", "seconds"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _spent(found: Tuned) -> str:
    seconds = sum(one.seconds for one in found.trials)
    return f"{len(found.trials)} trials of {found.plan.num_edits} edits in {seconds:.0f} s"


def _command(found: Tuned) -> str:
    plan = found.plan
    fixed = "".join(f" --set {key}={value}" for key, value in plan.settings.items())
    rows = f"{plan.edits}:{plan.num_edits} --split {plan.split}"
    return (
        f"harness tune --editor {plan.editor} --model {plan.model} --edits {rows} --trials {found.budget.trials}{fixed}"
    )
