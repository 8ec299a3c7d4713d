"""What a site was made from, so that the next one makes only what changed.

Everything is known by its contents: a record by the sha256 of its files, the code by that of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.exam.data import TASKS
from harness.io.files import values_path

__all__ = [
    "MARK",
    "SUBMISSION",
    "MadeFamily",
    "RecordSource",
    "SiteIndex",
    "code_sha256",
    "read_index",
    "sources_of",
    "write_index",
]

MARK = "board.json"
"""The file that says that a folder is a board, and what it was made from."""
SUBMISSION = "submission.json"
"""The file that says that a folder is a submission (:mod:`harness.reports.submissions`)."""
_CODE = Path(__file__).resolve().parents[3]
_ROOMS = ("harness/reports", "harness/exam", "harness/runs", "editors")


@dataclass(frozen=True)
class RecordSource:
    """A record on disk.

    Attributes:
        path: its file.
        sha256: of it and of all that lies beside it.
        patches: the files of its edits.
        given: whether it is a submission, which others gave.
    """

    path: Path
    sha256: str
    patches: tuple[Path, ...] = ()
    given: bool = False


@dataclass(frozen=True)
class MadeFamily:
    """A family that stands in a site.

    Attributes:
        members: the sha256 of each record, in order.
        files: what was written.
        made: what the pages of all families together are made from.
    """

    members: list[str]
    files: list[str]
    made: dict[str, list[dict[str, Any]]]


@dataclass
class SiteIndex:
    """What a site was made from.

    Attributes:
        code: the sha256 of the code and cards.
        records: sha256 of a record -> its id and its family.
        families: by their keys.
    """

    code: str
    records: dict[str, tuple[str, str]] = field(default_factory=dict)
    families: dict[str, MadeFamily] = field(default_factory=dict)


def sources_of(paths: Sequence[Path]) -> list[RecordSource]:
    """Records with the sha256 of their files, of which each folder is listed once.

    Of the file of edits the name and the size stand for the contents. A submission is known by all of its files.

    Args:
        paths: the records.
    """
    patches = {folder: _patches(folder) for folder in {path.parent for path in paths}}
    return [_source(path, patches[path.parent].get(path.name.removesuffix(".json"), ())) for path in paths]


def _patches(folder: Path) -> dict[str, list[Path]]:
    """The name of a record without its ending -> the files of its edits."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.edits-*.safetensors")):
        found.setdefault(path.name.rpartition(".edits-")[0], []).append(path)
    return found


def _source(path: Path, patches: Sequence[Path]) -> RecordSource:
    found = hashlib.sha256()
    given = (path.parent / SUBMISSION).is_file()
    if given:
        patches = [one for one in (path.with_suffix(".safetensors"),) if one.is_file()]
    more = sorted(path.parent.iterdir()) if given else []
    for one in (path, values_path(path), path.with_name(f"{path.stem}.samples.jsonl.xz"), *more):
        content = one.read_bytes() if one.is_file() else b""
        found.update(f"{len(content)} ".encode() + content)
    for patch in patches:
        found.update(f"{patch.name} {patch.stat().st_size}".encode())
    return RecordSource(path, found.hexdigest(), tuple(patches), given)


def code_sha256(*others: Path) -> str:
    """The sha256 of everything but records that a site shows or is made by.

    Args:
        others: files that it shows as well.
    """
    found = hashlib.sha256()
    for path in [*sorted(_code_files()), *others]:
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)} ".encode() + content)
    return found.hexdigest()


def _code_files() -> Iterable[Path]:
    for room in _ROOMS:
        yield from (path for path in (_CODE / room).rglob("*") if path.suffix in (".py", ".html", ".js", ".css"))
    yield from (path for path in TASKS.rglob("*") if path.suffix in (".md", ".yaml"))


def read_index(folder: Path, code: str) -> SiteIndex:
    """The index of a site; an empty one where there is none, or other code made it.

    Args:
        folder: of the site.
        code: the sha256 of the code that asks.
    """
    try:
        said = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if said["code"] == code:
            records = {sha: (one[0], one[1]) for sha, one in said["records"].items()}
            return SiteIndex(code, records, {key: MadeFamily(**one) for key, one in said["families"].items()})
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return SiteIndex(code)


def write_index(index: SiteIndex, folder: Path) -> None:
    """Write an index into the folder of its site."""
    (folder / MARK).write_text(json.dumps(asdict(index), separators=(",", ":")) + "\n", encoding="utf-8")
