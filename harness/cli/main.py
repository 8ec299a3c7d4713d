"""Runs a command; every mistake of the user is one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from harness.cli.group import harness
from harness.cli.terminal import be_quiet, fail
from harness.errors import HarnessError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or what stands in ``arguments``; every mistake of the user is one line and an exit code."""
    be_quiet()
    try:
        harness(arguments, "harness" if arguments else None, standalone_mode=False)
    except HarnessError as error:
        fail(str(error), error.exit_code)
    except click.UsageError as error:
        if error.ctx is not None and isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            click.echo(error.ctx.get_help())
            return
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        fail(f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted; what was measured is in the *.partial.json of the output folder", 130)
    except BrokenPipeError:
        # What is still to be flushed at the end of the program would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
