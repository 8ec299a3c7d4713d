"""Runs a command; every mistake of the user is one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from harness.cli.group import harness
from harness.cli.terminal import be_quiet, output_kept, stopped_like_ctrl_c, tell
from harness.errors import HarnessError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or what stands in ``arguments``; every mistake of the user is one line and an exit code."""
    be_quiet()
    with output_kept() as written, stopped_like_ctrl_c():
        code = _run(arguments)
    # Whoever closed a pipe has read what they wanted; what a full device did not take is lost.
    if not code and isinstance(written.error, OSError) and not isinstance(written.error, BrokenPipeError):
        tell(f"the output cannot be written ({written.error.strerror}); make room, or send it elsewhere")
        code = 2
    if code:
        sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    """The exit code of a command, whose mistake has been told."""
    try:
        harness(arguments, "harness" if arguments else None, standalone_mode=False)
    except HarnessError as error:
        return _told(str(error), error.exit_code)
    except click.UsageError as error:
        if error.ctx is not None and isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            click.echo(error.ctx.get_help())
            return 0
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _told(_why_not(error) or f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        return _told(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _told("interrupted; what was measured is in the *.partial.json of the output folder", 130)
    return 0


def _why_not(error: click.UsageError) -> str | None:
    """Why a command does not take an option that others take; None where there is no more to say."""
    if error.ctx is None or not isinstance(error, click.NoSuchOption):
        return None
    if error.option_name.replace("_", "-") != "--chat-edits":
        return None
    from harness.runs.handed import AS_TEXT, plain_edits

    return plain_edits(error.ctx.info_name) if error.ctx.info_name in AS_TEXT else None


def _told(message: str, code: int) -> int:
    tell(message)
    return code
