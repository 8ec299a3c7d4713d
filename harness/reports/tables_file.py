"""Reads the tables of ``harness export --format csv`` or ``parquet`` back as records."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.io.spreadsheet import text_of_cell
from harness.reports.submissions import read_submission, submissions_in
from harness.reports.tidy import TABLES, TidyColumn, records_of
from harness.runs.record import Record
from harness.runs.record_file import read_record, read_records, record_paths
from harness.runs.sample_file import samples_path

__all__ = ["read_tables", "records_at", "samples_at", "tables_in"]

_ENDINGS = (".csv", ".parquet")


def tables_in(path: str | Path) -> Path | None:
    """The table of records that a path means: itself, one beside another table, or one in a folder; None if none."""
    path = Path(path)
    if path.is_dir():
        return next((place for end in _ENDINGS if (place := path / f"records{end}").is_file()), None)
    return path.with_name(f"records{path.suffix}") if path.suffix in _ENDINGS else None


def records_at(path: str | Path) -> list[Record]:
    """The records of a file or a folder, with the values of their documents; those of exported tables, or given ones.

    Args:
        path: the JSON of a run, one of the tables, or a folder of either, or of submissions; records come first.

    Raises:
        DataError: there is no such place, it holds neither, or what it holds cannot be read.
    """
    path = Path(path)
    if path.is_dir() and not record_paths(path) and (given := submissions_in(path)):
        return [read_submission(folder).record for folder in given]
    tables = tables_in(path)
    if tables is None or (path.is_dir() and record_paths(path)):
        return read_records(path, values=True)
    return read_tables(path)


def samples_at(path: str | Path) -> dict[str, Path]:
    """Id of a record -> the file of its samples, of the records of a file or a folder that have one."""
    path = Path(path)
    places = record_paths(path) if path.is_dir() else [path]
    beside = {place: samples_path(place) for place in places if place.suffix == ".json"}
    return {read_record(place).id: file for place, file in beside.items() if file.is_file()}


def read_tables(path: str | Path) -> list[Record]:
    """The records that three tables hold.

    Args:
        path: one of the tables, or the folder that they lie in.

    Raises:
        DataError: there are none, or they are not what an export wrote.
    """
    first = tables_in(path)
    if first is None:
        raise DataError(
            f"{path}: holds no table of records; write one with: harness export --format csv RECORD --to DIR"
        )
    for given in (Path(path), first):
        if not given.exists():
            raise DataError(f"{given}: no such file; give a table of an export, or the folder of its tables")
    read = _csv_rows if first.suffix == ".csv" else _parquet_rows

    def rows(table: str) -> Iterator[dict[str, Any]]:
        place = first.with_name(f"{table}{first.suffix}")
        if table == "documents" and not place.exists():
            return iter(())
        return read(place, TABLES[table])

    found = records_of(rows, str(path))
    if not found:
        raise DataError(f"{first}: holds no record; export some")
    return found


def _csv_rows(path: Path, columns: tuple[TidyColumn, ...]) -> Iterator[dict[str, Any]]:
    with _told(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        heads = next(rows, [])
        _require_heads(path, heads, columns)
        cells = [(column.name, heads.index(column.name), _READ[column.kind]) for column in columns]
        for number, row in enumerate(rows, start=2):
            if len(row) != len(heads):
                raise DataError(
                    f"{path}: row {number} has {len(row)} cells, expected {len(heads)}; it may be cut short"
                )
            try:
                yield {name: read(row[place]) for name, place, read in cells}
            except ValueError as error:
                raise DataError(f"{path}: row {number}: {error}; export the records again") from error


def _parquet_rows(path: Path, columns: tuple[TidyColumn, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    with _told(path):
        try:
            file = parquet.ParquetFile(path)
            _require_heads(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(columns=[column.name for column in columns]):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not whole parquet ({' '.join(str(error).split())}); export it again") from error


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong with a file, in one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a table of an export") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table in UTF-8 ({error}); export the records again") from error


def _require_heads(path: Path, heads: list[str], columns: tuple[TidyColumn, ...]) -> None:
    absent = [column.name for column in columns if column.name not in heads]
    if absent:
        raise DataError(f"{path}: not a table of an export, column '{absent[0]}' is missing; export the records again")


def _number(cell: str) -> float | None:
    if not cell:
        return None
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError(f"'{cell}' is no finite number")
    return number


def _count(cell: str) -> int | None:
    return int(cell) if cell else None


def _truth(cell: str) -> bool | None:
    if cell not in ("", "0", "1"):
        raise ValueError(f"'{cell}' is neither 0 nor 1")
    return cell == "1" if cell else None


_READ: dict[str, Callable[[str], Any]] = {"text": text_of_cell, "number": _number, "count": _count, "truth": _truth}
