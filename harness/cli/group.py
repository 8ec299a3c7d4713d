"""The group of all commands, which imports a command's module when the command is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from keyword import iskeyword

import click

from harness import __version__
from harness.errors import UsageError, near

__all__ = ["COMMANDS", "Group", "function_name", "harness"]

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "edit_and_measure": ("run", "fit", "apply"),
    "records": ("leaderboard", "board", "plot", "belief", "show", "compare", "check"),
    "judging": ("judge",),
    "share": ("export", "submit"),
    "studies": ("trace", "trace-plot", "localize", "sweep", "tune", "bench", "contract", "durability"),
    "lists": ("editors", "tasks", "models", "data", "cov"),
    "published": ("import", "audit"),
}
"""Module of this room -> its commands; a command is the function that :func:`function_name` says."""


def function_name(command: str) -> str:
    """The name of a command's function: with ``_`` for ``-``, and behind a word that Python keeps for itself."""
    name = command.replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


class Group(click.Group):
    """A click group that imports its commands late, and answers a near miss with the command that was meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """The names of the commands, for which nothing is imported."""
        return sorted(name for names in COMMANDS.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, from its module; None where there is none."""
        for module, names in COMMANDS.items():
            if cmd_name.replace("_", "-") in names:
                found = getattr(import_module(f"harness.cli.{module}"), function_name(cmd_name))
                assert isinstance(found, click.Command)
                return found
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is near."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UsageError(f"command '{args[0]}' does not exist{near(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Group,
    # Options can be typed with dashes or underscores: --num-fewshot, or --num_fewshot as for lm_eval.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
    help="""Measure what an edit of a language model gains, and what it costs.

    \b
    harness run --editor memit --tasks NER,NLI       the shipped model, the shipped data
    harness leaderboard results/ --format md
    """,
)
@click.version_option(__version__, prog_name="harness")
def harness() -> None:
    """The group of all commands."""
