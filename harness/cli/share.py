"""Commands that give records to others: ``export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli import options as opt
from harness.cli import terminal, values

__all__ = ["export"]


@click.command()
@click.argument("paths", nargs=-1, required=True, type=opt.PATH, metavar="RECORD...")
@opt.EXPORT
@opt.TO.but(help="The folder of the files.")
@opt.DOCUMENTS
@opt.HUB_DATASET
def export(*, paths: Sequence[Path], form: str, folder: Path, documents: str, hub: Sequence[str]) -> None:
    r"""Write records (files, folders, or exported tables) for others' tools.

    \b
    csv, parquet   three tidy tables; `harness leaderboard DIR` reads them again
    eee            Every Eval Ever 0.3.0
    lm-eval        the result files of lm-evaluation-harness
    hf             .eval_results of the page of a model on the Hub
    """
    from harness import api

    written = api.export(paths, folder, format=form, documents=documents, hub=values.hub_datasets(hub))
    terminal.say_where(f"[green]{len(written)} file{'s' * (len(written) != 1)} written to[/]", folder)
