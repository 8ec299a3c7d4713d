"""The versions of what computed the numbers of a record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from harness import __version__

__all__ = ["versions"]

LIBRARIES = ("torch", "transformers", "lm_eval", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """The versions of what computed the numbers; nothing is imported for it."""
    found = {"python": platform.python_version(), "harness": __version__}
    return found | {library: _version(library) for library in LIBRARIES}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
