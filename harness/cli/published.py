"""Commands that read what others published: ``import`` and ``audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import click

from harness.cli import options as opt
from harness.cli import terminal

__all__ = ["Given", "ToldOptions", "audit", "import_"]

_FILES = "what the files say"


class Given(TypedDict):
    """What the files do not say themselves, by the names of the arguments of the API."""

    model: str | None
    editor: str | None
    edits: str | None
    num_edits: int | None
    mode: str | None
    repository: str | None
    commit: str | None
    licence: str | None
    unedited: Path | None


@dataclass(frozen=True)
class ToldOptions:
    """What the files do not say themselves."""

    model: Annotated[str | None, opt.MODEL.but(help="The model that was edited.", otherwise=_FILES)]
    editor: Annotated[str | None, opt.EDITOR.but(help="The method, as its authors call it.", otherwise=_FILES)]
    edits: Annotated[str | None, opt.EDITS.but(help="What was edited.", otherwise=_FILES)]
    num_edits: Annotated[int | None, opt.NUM_EDITS.but(help="How many edits were made.", kind=opt.COUNT)]
    mode: Annotated[str | None, opt.MODE.but(help="How edits were made.", kind=opt.MODES, otherwise=_FILES)]
    repository: Annotated[str | None, opt.REPOSITORY]
    commit: Annotated[str | None, opt.COMMIT]
    licence: Annotated[str | None, opt.LICENCE]
    unedited: Annotated[Path | None, opt.UNEDITED]

    def given(self) -> Given:
        """As functions of the API take it."""
        return Given(
            model=self.model,
            editor=self.editor,
            edits=self.edits,
            num_edits=self.num_edits,
            mode=self.mode,
            repository=self.repository,
            commit=self.commit,
            licence=self.licence,
            unedited=self.unedited,
        )


@click.command("import")
@click.argument("form", metavar="FORMAT", type=opt.FOREIGN)
@click.argument("path", type=opt.PATH)
@opt.OUTPUT.but(help="Folder of the records.", required=True)
@opt.taken(ToldOptions)
def import_(told: ToldOptions, *, form: str, path: Path, output: Path) -> None:
    """Make records of the result files of other programs, marked as published and not run here.

    FORMAT is the program that wrote them; PATH is a file or a folder of its results.
    """
    from harness import api

    found = api.import_records(form, path, output=output, **told.given())
    terminal.say_where(f"[green]{len(found)} records[/] of {form} in", output)


@click.command()
@click.argument("path", type=opt.PATH)
@opt.FORMAT.but(help="The program that wrote the files.", kind=opt.FOREIGN, otherwise=_FILES)
@opt.taken(ToldOptions)
def audit(told: ToldOptions, path: Path, form: str | None) -> None:
    """Say what our checks say of result files, records or a table of published values; exit 1 where they say anything.

    One line a finding, with the name of its check: protocols, covariance, unedited, few, power, no difference, seeds.
    """
    from harness import api
    from harness.errors import CheckFailed

    findings = api.audit(path, format=form, **told.given())
    for finding in findings:
        click.echo(str(finding))
    if findings:
        raise CheckFailed(f"{path}: {len(findings)} finding{'s' if len(findings) > 1 else ''}")
    terminal.say_where("[green]ok[/] nothing found in", path)
