"""Three tidy tables as comma-separated values in full precision; no cell is a formula to a spreadsheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harness.io.spreadsheet import cell_text, csv_rows
from harness.reports.export import Export, ExportRequest
from harness.reports.tidy import TABLES, TidyColumn, rows_of_table
from harness.runs.record import Record

__all__ = ["CsvTables"]


class CsvTables(Export):
    """CSV: records.csv, values.csv (a row for each number) and documents.csv (a row for each document of a metric)."""

    name: ClassVar[str] = "csv"

    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """The tables; a value that is missing is an empty cell."""
        for table, columns in TABLES.items():
            with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
                rows = csv_rows(file)
                rows.writerow([column.name for column in columns])
                cells = [(column.name, _cell_of(column)) for column in columns]
                rows.writerows(
                    [cell(row[name]) for name, cell in cells] for row in rows_of_table(table, records, asked.documents)
                )


def _cell_of(column: TidyColumn) -> Callable[[Any], object]:
    if column.kind == "text":
        return cell_text
    if column.kind == "truth":
        return lambda value: None if value is None else int(value)
    return lambda value: value
