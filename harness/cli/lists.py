"""Commands that say what there is: ``editors``, ``tasks``, ``models``, ``data``, and second moments (``cov``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli import options as opt
from harness.cli import terminal, values

__all__ = ["cov", "data", "editors", "list_", "make", "models", "tasks", "verify"]


@click.command()
@opt.FORMAT.but(kind=click.Choice(["table", "md"]), default="table")
def editors(form: str) -> None:
    """List the editors: what they do, at which seam they change a model, and their hyperparameters."""
    from harness.editing import promises
    from harness.editing.hyperparameters import settable
    from harness.editing.registry import editor_names, find

    if form == "md":
        click.echo(promises.promises_table(), nl=False)
        return
    rows = []
    for name, cls in ((name, find(name)) for name in editor_names()):
        settings = ", ".join(f"{field.name}={field.default}" for field in settable(cls).values())
        rows.append((name, promises.editor_summary(cls), promises.changes(cls), settings))
    columns = ("name", "what it does", "changes", "hyperparameters (--set)")
    terminal.write_table(terminal.plain_table("editors", columns, rows))


@click.command()
def tasks() -> None:
    """List this project's tasks and edit sets; any task of lm-eval's own can be named too."""
    from harness.exam.data import status
    from harness.exam.exam_parts import exam_parts
    from harness.exam.tasks import catalogue

    counts = {row.name: row.mini for row in status() if row.split == "test"}
    rows = []
    for name, kind in catalogue().items():
        parts = exam_parts(name).values() if kind == "edits" else ()
        asked = "; ".join(f"{part.name}: {part.asks}" for part in parts)
        rows.append((name, kind, _or(counts.get(name), ""), asked))
    columns = ("name", "kind", "shipped rows", "parts of the exam of an edit (--exam)")
    terminal.write_table(terminal.plain_table("tasks", columns, rows))


_OF_A_MODEL = ("name", "parameters", "memory, float32", "licence", "access")


@click.command()
def models() -> None:
    """List the models that ship with the package, and real ones to begin with: what they need, and the command."""
    import json

    from harness.models.lm import shipped
    from harness.models.suggested import FIRST_RUN, GATED, SUGGESTED

    rows = []
    for name, folder in shipped().items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = (folder / "model.safetensors").stat().st_size / 2**20
        rows.append((name, str(config.get("model_type", "")), f"{size:.1f} MiB"))
    terminal.write_table(terminal.plain_table("shipped models", ("name", "architecture", "size"), rows))
    facts = [(one.name, f"{one.parameters} M", one.memory, one.licence, one.access) for one in SUGGESTED]
    terminal.say("")
    terminal.write_table(terminal.plain_table("real models to begin with", _OF_A_MODEL, facts))
    terminal.say(f"\na first run: {FIRST_RUN}\ngated: {GATED}")


@click.command()
@opt.DATA_DIR.but(help="A folder to look into.", otherwise="")
def data(data_dir: str | None) -> None:
    """Say which data are there, which are missing, and under which licence."""
    from harness.exam.data import status

    rows = [
        (row.name, row.split, _or(row.mini), _or(row.folder), _address(row.url), row.licence)
        for row in status(data_dir)
    ]
    columns = ("name", "split", "shipped", "folder", "published", "licence")
    terminal.write_table(terminal.plain_table("data", columns, rows))


def _or(value: object, missing: str = "-") -> str:
    return missing if value is None else str(value) or missing


def _address(url: str | None) -> str:
    """The host of an address, with the repository where the host is one of repositories."""
    if url is None:
        return "-"
    host, *path = url.partition("://")[2].split("/")
    return "/".join([host, *path[:2]]) if host.endswith("githubusercontent.com") else host


@click.group()
def cov() -> None:
    """Make, list and verify second moments of keys (the covariance C of ROME and MEMIT)."""


@cov.command("make")
@opt.MODEL.but(default="mini")
@opt.LAYERS
@opt.TOKENS.but(kind=opt.COUNT, default=100_000)
@opt.TEXT.but(help="A file, a folder, or a Hub data set.")
@opt.DTYPE.but(default="float32")
@opt.DEVICE
@opt.ARCH
def make(
    *, model: str, layers: str, tokens: int, text: str | None, dtype: str, device: str | None, arch: Sequence[str]
) -> None:
    """Gather second moments of many layers in one pass over the text."""
    from harness.methods.second_moments import moments
    from harness.models.lm import load

    asked = None if layers == "all" else values.integers(layers, "--layers")
    lm = load(model, dtype=dtype, device=device, names=values.modules(arch) or None, text=text)
    chosen = list(range(lm.arch.layers)) if asked is None else asked
    with terminal.watched() as report:
        found = moments(lm, chosen, tokens=tokens, progress=lambda done, total: report("second moments", done, total))
    rows = [(str(layer), f"{moment.count:,}", moment.key[:16]) for layer, moment in found.items()]
    terminal.write_table(terminal.plain_table(f"second moments of {model}", ("layer", "tokens", "key"), rows))


@cov.command("list")
def list_() -> None:
    """List the second moments in the cache."""
    from harness.methods.second_moments import cached_moments

    rows = []
    for entry in cached_moments():
        made = entry.manifest
        rows.append((made.model[:12], made.module, f"{entry.count:,}", made.text[:12], made.dtype, str(entry.path)))
    columns = ("model", "module", "tokens", "text", "dtype", "file")
    terminal.write_table(terminal.plain_table("second moments", columns, rows))


@cov.command("verify")
@click.argument("path", type=opt.PATH)
@opt.MODEL.but(default="mini")
@opt.DTYPE.but(default="float32")
def verify(path: Path, model: str, dtype: str) -> None:
    """See that a file of second moments is whole and belongs to a model."""
    from harness.methods import second_moments
    from harness.models.lm import load

    second_moments.read_cached_header(path)  # a mistake in the path is told before the model is loaded
    second_moments.verify_cached(path, load(model, dtype=dtype))
    terminal.say_where("[green]ok[/]", path)
