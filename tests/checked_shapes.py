"""Shapes and dtypes of the numerical core are checked on every call that a test makes.

Imported by ``conftest.py`` before anything of the package: what has been imported already is not checked.
Under the hook are all functions and dataclasses of the rooms below; what is no tensor in them is checked with it, but
not the bodies of functions, and not the programs that tests start (``tests/cli`` runs some commands in a process of
their own).
"""

from __future__ import annotations

from jaxtyping import install_import_hook

__all__ = ["CHECKED"]

CHECKED = ("harness.patches", "harness.methods", "harness.exam.statistics")

# An int is a float, as type checkers have it.
install_import_hook(CHECKED, "beartype.beartype(conf=__import__('beartype').BeartypeConf(is_pep484_tower=True))")
