"""Records for others' tools: every file of ``harness/reports/exports`` is a format, and nothing lists them.

A new one is a file there with one subclass of :class:`Export`; ``harness export --format NAME`` offers it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import DataError, UsageError, near
from harness.io.files import beside, require_writable
from harness.reports import exports
from harness.reports.one_a_file import parts_by_name
from harness.reports.tidy import Documents
from harness.runs.record import Record, record_name

__all__ = ["Export", "ExportRequest", "distinct", "export_names", "export_records", "find_export", "plain_text"]


@dataclass(frozen=True)
class ExportRequest:
    """What is asked of an export besides its format.

    Attributes:
        when: the time of the export, in seconds since 1970.
        documents: whose documents are written.
        hub: task -> the data set on the Hub that its rows are of, ``OWNER/NAME`` or ``OWNER/NAME:TASK``.
        samples: id of a record -> the file of its samples, where there is one.
    """

    when: int
    documents: Documents = "shown"
    hub: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Path] = field(default_factory=dict)


class Export(ABC):
    """A way to write records for others' tools.  The first line of a child's docstring says what it is.

    Attributes:
        name: what it is called on the command line.
    """

    name: ClassVar[str]

    @abstractmethod
    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """Write files into an empty folder.

        Args:
            records: records of different ids, with the values of their documents where those are there.
            folder: the folder.
            asked: what else is asked for.

        Raises:
            UsageError: they cannot be written in this format.
        """


def export_names() -> list[str]:
    """The names of all formats, by the alphabet."""
    return sorted(_known())


def find_export(name: str) -> Export:
    """The format of a name.

    Raises:
        UsageError: there is none.
    """
    known = _known()
    if name not in known:
        raise UsageError(f"format '{name}' does not exist{near(name, known)}; choose {', '.join(sorted(known))}")
    return known[name]()


def _known() -> dict[str, type[Export]]:
    found: dict[str, type[Export]] = parts_by_name(exports, Export)
    return found


def export_records(records: Sequence[Record], form: str, *, to: Path, asked: ExportRequest) -> list[Path]:
    """Write records in a format, all of it or nothing; files of the same names are replaced, others stay.

    Args:
        records: the records.
        form: the name of the format.
        to: the folder, which is made where there is none.
        asked: what else is asked for.

    Returns:
        The files, in the order of their names.

    Raises:
        UsageError: there is no such format, the records cannot be written in it, or nothing can be written there.
        DataError: two of the records claim one id with other numbers.
    """
    known, different = find_export(form), distinct(records)
    _require_folder(to)
    try:
        with beside(to) as temporary:
            temporary.mkdir()
            known.write(different, temporary, asked)
            names = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
            _put(temporary, to, names)
    except OSError as error:
        raise UsageError(f"{to}: cannot be written ({error.strerror}); make room, or choose another folder") from error
    return [to / name for name in names]


def _require_folder(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to}: is a file; give a folder with --to")
    require_writable(to.parent, "choose another folder with --to")


def _put(temporary: Path, to: Path, names: Sequence[Path]) -> None:
    if not to.exists():
        temporary.replace(to)
        return
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).replace(to / name)


def distinct(records: Sequence[Record]) -> list[Record]:
    """The records, each once.

    Raises:
        DataError: two of them claim one id with other numbers.
    """
    found: dict[str, Record] = {}
    for record in records:
        known = found.setdefault(record.id, record)
        if known is not record and known.seal() != record.seal():
            raise DataError(
                f"{record_name(record)}: two records claim this id with other numbers; leave one of them out"
            )
    return list(found.values())


def plain_text(value: Any) -> str:
    """A value as text, for formats whose details are texts: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
