"""Commands that read what others published: ``import`` and ``audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click

from harness.cli import options as opt
from harness.cli import terminal

__all__ = ["ToldOptions", "audit", "import_"]

_FILES = "what the files say"


@dataclass(frozen=True)
class ToldOptions:
    """What the files do not say themselves."""

    model: Annotated[str | None, opt.MODEL.but(help="The model that was edited.", otherwise=_FILES)]
    editor: Annotated[str | None, opt.EDITOR.but(help="The method, as its authors call it.", otherwise=_FILES)]
    edit_set: Annotated[str | None, opt.EDITS.but(help="What was edited.", otherwise=_FILES)]
    num_edits: Annotated[int | None, opt.NUM_EDITS.but(help="How many edits were made.", kind=opt.COUNT)]
    mode: Annotated[str | None, opt.MODE.but(help="How edits were made.", kind=opt.MODES, otherwise=_FILES)]
    repository: Annotated[str | None, opt.REPOSITORY]
    commit: Annotated[str | None, opt.COMMIT]
    licence: Annotated[str | None, opt.LICENCE]
    unedited: Annotated[Path | None, opt.UNEDITED]


@click.command("import")
@click.argument("form", metavar="FORMAT", type=opt.FOREIGN)
@click.argument("path", type=opt.PATH)
@opt.OUTPUT.but(help="Folder of the records.", required=True)
@opt.taken(ToldOptions)
def import_(told: ToldOptions, *, form: str, path: Path, output: Path) -> None:
    """Make records of the result files of other programs, marked as published and not run here.

    FORMAT is the program that wrote them; PATH is a file or a folder of its results.
    """
    from harness.reports.importing import Told, import_files

    written = import_files(form, path, output, told=Told(**vars(told)))
    terminal.say_where(f"[green]{len(written)} records[/] of {form} in", output)


@click.command()
@click.argument("path", type=opt.PATH)
@opt.FORMAT.but(help="The program that wrote the files.", kind=opt.FOREIGN, otherwise=_FILES)
@opt.taken(ToldOptions)
def audit(told: ToldOptions, path: Path, form: str | None) -> None:
    """Say what our checks say of result files, records or a table of published values; exit 1 where they say anything.

    One line a finding, with the name of its check: protocols, covariance, unedited, few, power, no difference, seeds.
    """
    from harness.errors import CheckFailed
    from harness.reports.auditing import audit_path
    from harness.reports.importing import Told

    findings = audit_path(path, Told(**vars(told)), form)
    for finding in findings:
        click.echo(str(finding))
    if findings:
        raise CheckFailed(f"{path}: {len(findings)} finding{'s' if len(findings) > 1 else ''}")
    terminal.say_where("[green]ok[/] nothing found in", path)
