"""The command line: arguments to a call of the API, results to the terminal. The only room that prints."""

from harness.cli.main import main

__all__ = ["main"]
