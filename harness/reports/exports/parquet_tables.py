"""The tidy tables as parquet, typed and compressed: what pandas, polars, DuckDB and the Hub's viewer read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.reports.export import Export, ExportRequest
from harness.reports.tidy import TABLES, TidyColumn, rows_of_table
from harness.runs.record import Record

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ParquetTables"]

_ROWS = 100_000
"""Of one group of rows, which is what is held in memory."""


class ParquetTables(Export):
    """Parquet: the tables of csv, typed: records, values and documents."""

    name: ClassVar[str] = "parquet"

    def write(self, records: Sequence[Record], folder: Path, asked: ExportRequest) -> None:
        """The tables; a value that is missing is null."""
        import pyarrow
        from pyarrow import parquet

        for table, columns in TABLES.items():
            schema = _schema(columns)
            rows = rows_of_table(table, records, asked.documents)
            with parquet.ParquetWriter(folder / f"{table}.parquet", schema, compression="zstd") as file:
                while group := list(islice(rows, _ROWS)):
                    file.write_table(pyarrow.Table.from_pylist(group, schema))


def _schema(columns: Sequence[TidyColumn]) -> pyarrow.Schema:
    import pyarrow

    kinds = {
        "text": pyarrow.string(),
        "number": pyarrow.float64(),
        "count": pyarrow.int64(),
        "truth": pyarrow.bool_(),
    }
    return pyarrow.schema([(column.name, kinds[column.kind]) for column in columns])
