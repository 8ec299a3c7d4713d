"""Parts by name: every file of a folder is one, and nothing lists them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

from harness.errors import UsageError

__all__ = ["parts_by_name"]


def parts_by_name(folder: ModuleType, kind: type[Any]) -> dict[str, type[Any]]:
    """What the files of a package define, by the ``name`` that each gives itself.

    Args:
        folder: the package; each of its files defines one child of the kind.
        kind: a class whose children have a ``name``.

    Raises:
        UsageError: a file defines none, or several.
    """
    files = pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")
    found = [_only(importlib.import_module(file.name), kind) for file in files]
    return {str(vars(one)["name"]): one for one in found}


def _only(module: ModuleType, kind: type[Any]) -> type[Any]:
    """The child of a kind that a file defines."""
    members = inspect.getmembers(module, inspect.isclass)
    own = [one for _, one in members if issubclass(one, kind) and one.__module__ == module.__name__]
    if len(own) != 1:
        what = kind.__name__
        raise UsageError(
            f"{module.__file__}: defines {len(own)} {what.lower()}s; a file defines one subclass of {what}"
        )
    return own[0]
