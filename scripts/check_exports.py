"""Write every committed record in each form that others read, and hold the files to those forms; a minute or two.

    python scripts/check_exports.py            all of results/
    python scripts/check_exports.py FOLDER     the records of a folder, and of the folders in it

Every Eval Ever: aggregate files, and each hundredth document, against the official JSON schemas, which the tests ship.
lm-eval: its own table of each file has a line for each number.
Tables: what is read back is the same record, to the last digit. Needs ``jsonschema`` (the extra ``test``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jsonschema import Draft7Validator
from lm_eval.utils import make_table

from harness.reports.export import ExportRequest, export_records
from harness.reports.tables_file import read_tables
from harness.runs.record import Record
from harness.runs.record_file import read_record, record_paths

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "tests" / "unit" / "reports" / "every_eval_ever"
EACH = 100


def main() -> None:
    """Check them, and say how many there were."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results"
    paths = [path for folder in [place, *sorted(place.rglob("*/"))] for path in record_paths(folder)]
    records = [read_record(path, values=True) for path in sorted(set(paths))]
    wrong = [*_tables(records), *_every_eval_ever(records), *_lm_eval(records)]
    for line in wrong[:20]:
        print(line)
    print(f"{len(records)} records, {len(wrong)} faults")
    sys.exit(bool(wrong))


def _tables(records: list[Record]) -> Iterator[str]:
    """Records that are others when they are read from tables."""
    for form in ("csv", "parquet"):
        with tempfile.TemporaryDirectory() as folder:
            export_records(records, form, to=Path(folder) / "out", asked=ExportRequest(0))
            back = {record.id: record for record in read_tables(Path(folder) / "out")}
        for record in records:
            if back[record.id].to_json() != record.to_json() or back[record.id].seal() != record.seal():
                yield f"{form}: record {record.id} is another one when it is read"


def _every_eval_ever(records: list[Record]) -> Iterator[str]:
    """What the schemas say of the files."""
    whole, one = (_validator(name) for name in ("eval", "instance_level_eval"))
    for record in records:
        with tempfile.TemporaryDirectory() as folder:
            for path in export_records([record], "eee", to=Path(folder) / "out", asked=ExportRequest(int(time.time()))):
                lines = path.read_text(encoding="utf-8").splitlines()
                values = [json.loads(line) for line in lines[::EACH]] if path.suffix == ".jsonl" else [_whole(path)]
                schema = one if path.suffix == ".jsonl" else whole
                for error in (error for value in values for error in schema.iter_errors(value)):
                    yield f"eee: {record.id} {path.name}: {error.message}"


def _lm_eval(records: list[Record]) -> Iterator[str]:
    """Values that lm-eval's own table of a file does not show."""
    for record in records:
        with tempfile.TemporaryDirectory() as folder:
            written = export_records(
                [record], "lm-eval", to=Path(folder) / "out", asked=ExportRequest(int(time.time()))
            )
            said = {
                path.parent.name.rpartition("-")[2]: json.loads(path.read_text(encoding="utf-8")) for path in written
            }
        for point in record.points:
            table = make_table(said[str(point["edits"])])
            numbers = [one for found in point["tasks"].values() for one in found.values() if one["value"] is not None]
            if table.count("\n") != len(numbers) + 2:
                yield f"lm-eval: {record.id} after {point['edits']} edits: a table of other numbers"


def _validator(name: str) -> Draft7Validator:
    return Draft7Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def _whole(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
