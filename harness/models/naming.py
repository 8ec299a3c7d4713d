"""What a model's name says: a folder, a GGUF file, a Hub repository, and the revision behind an ``@``."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from harness.errors import ModelError

__all__ = ["GGUF", "model_key", "shipped", "split_revision"]

GGUF = ".gguf"

_QUANTISED = re.compile(r"[-._](?:i?q\d\w*|b?f16|f32|bf16)$")
"""How the files of one model in several precisions are told apart: ``model.Q4_K_M.gguf``."""


def shipped() -> dict[str, Path]:
    """The models inside the package, by name."""
    root = Path(str(files("harness") / "mini"))
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "config.json").is_file()}


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub repository and its revision, of ``owner/name@revision``; a path that exists is no such thing.

    Raises:
        ModelError: a folder or a file is given a revision, or there is nothing behind the ``@``.
    """
    source, at, revision = name.rpartition("@")
    if not at or Path(name).expanduser().exists():
        return name, None
    if not source or not revision:
        raise ModelError(f"{name}: expected a Hub repository and a revision, for example owner/name@main")
    if Path(source).expanduser().exists():
        raise ModelError(f"{name}: {source} is on this machine and has no revisions; leave @{revision} out")
    return source, revision


def model_key(name: str) -> str:
    """What names a model among the presets: its last part in small letters, without revision, ending and precision."""
    last = name.rstrip("/").rpartition("/")[2].lower().partition("@")[0]
    return _QUANTISED.sub("", last.removesuffix(GGUF)) if last.endswith(GGUF) else last
