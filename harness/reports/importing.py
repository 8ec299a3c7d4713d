"""Published runs brought in: every file of ``harness/reports/imports`` reads one format, and nothing lists them.

A new format is a file there with one subclass of :class:`Reader`; ``harness import NAME PATH`` offers it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from harness.errors import DataError, UsageError, near
from harness.reports import imports
from harness.reports.one_a_file import parts_by_name
from harness.reports.published_runs import Origin, PublishedRun, published_record
from harness.runs.folder import exclusive
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_records, record_paths, write_record
from harness.runs.ties import require_one_each

__all__ = ["OPTIONS", "Reader", "Told", "find_reader", "keep_published", "read_published", "reader_names"]


@dataclass(frozen=True)
class Told:
    """What the caller says of files that do not say it themselves; None where they do.

    Attributes:
        model: the model that was edited.
        editor: the method.
        edit_set: what was edited.
        num_edits: how many edits were made.
        mode: ``isolated``, ``batch`` or ``sequential``.
        repository: ``owner/name`` of where they are published.
        commit: of the repository.
        licence: of the files.
        unedited: the same files of the unedited model.
    """

    model: str | None = None
    editor: str | None = None
    edit_set: str | None = None
    num_edits: int | None = None
    mode: str | None = None
    repository: str | None = None
    commit: str | None = None
    licence: str | None = None
    unedited: Path | None = None


OPTIONS: Mapping[str, str] = {
    "model": "--model",
    "editor": "--editor",
    "edit_set": "--edits",
    "num_edits": "--num-edits",
    "mode": "--mode",
    "unedited": "--unedited",
}
"""The attributes of :class:`Told` that not every format takes, as they are typed."""


class Reader(ABC):
    """How the result files of one program are read.  The first line of a child's docstring says which.

    Attributes:
        name: what the format is called on the command line.
        origin: where files of the format are published, unless the caller says otherwise.
        takes: what the files may leave to be told, attributes of :class:`Told`.
    """

    name: ClassVar[str]
    origin: ClassVar[Origin] = Origin()
    takes: ClassVar[frozenset[str]] = frozenset({"model", "editor", "edit_set", "mode"})

    @abstractmethod
    def reads(self, path: Path) -> bool:
        """Whether a file or folder looks as if it were of this format; nothing in it is checked."""

    @abstractmethod
    def read(self, path: Path, told: Told) -> Iterable[PublishedRun]:
        """The runs of a file or folder.

        Raises:
            DataError: it is cut, of another version, or of mixed runs; says where.
        """


def reader_names() -> list[str]:
    """The names of all formats, by the alphabet."""
    return sorted(parts_by_name(imports, Reader))


def find_reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        UsageError: there is none.
    """
    known: dict[str, type[Reader]] = parts_by_name(imports, Reader)
    if name not in known:
        raise UsageError(f"format '{name}' cannot be imported{near(name, known)}; choose {', '.join(sorted(known))}")
    return known[name]()


def read_published(form: str, path: Path, told: Told | None = None) -> list[Record]:
    """The records of published files, in the order of their names.

    Args:
        form: the name of their format.
        path: a file or a folder.
        told: what the files do not say.

    Raises:
        UsageError: there is no such format, or something is told that its files say themselves.
        DataError: the files cannot be used, or two runs in them are one with other numbers.
    """
    reader, told = find_reader(form), told or Told()
    for key, option in OPTIONS.items():
        if getattr(told, key) is not None and key not in reader.takes:
            raise UsageError(f"{option}: the files of {form} say it themselves, or do not need it; leave it out")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give the result files of {form}")
    given = {key: value for key in ("repository", "commit", "licence") if (value := getattr(told, key)) is not None}
    origin = replace(reader.origin, **given)
    found = [published_record(run, origin, form) for run in reader.read(path, told)]
    if not found:
        raise DataError(f"{path}: holds no results of {form}; see docs/how-to/published-runs.md for what is read")
    require_one_each(found, path)
    return sorted(found, key=lambda record: (record_name(record), record.id))


def keep_published(found: Sequence[Record], output: Path) -> list[Path]:
    """Write the records of published files into a folder; all of them, or none.

    Args:
        found: the records.
        output: the folder.

    Returns:
        Their files.

    Raises:
        DataError: the folder holds a record of the same id with other numbers.
        UsageError: the folder cannot be written to.
    """
    paths = [output / f"{record_name(record)}.json" for record in found]
    with ExitStack() as held:
        for record in found:
            held.enter_context(exclusive(output, record.id))
        there = read_records(output) if record_paths(output) else []
        require_one_each([*there, *found], output)
        for place, record in zip(paths, found, strict=True):
            write_record(place, record, small=True)
    return paths
