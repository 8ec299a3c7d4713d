"""How long the site of a board takes: of the committed records, and of thousands of copies of them.

    python scripts/bench_board.py                    results/records, then 10,000 copies of them
    python scripts/bench_board.py --count 1000 --workers 2 --keep DIR

A copy is a record of its own, with an id and a model of its own: 10,000 of 301 are the records of 33 times as many
models. With --same-tables it has a setting of its own instead, and stands in the table of its original. Printed are
the seconds of processor and of the clock, and the peak of memory of the largest process, of `harness board`, first and
when nothing changed. Copies are made in a temporary folder, or in the one that --keep names.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.io.files import compact_json, values_path
from harness.runs.identity import digest
from harness.runs.record import Record, record_name
from harness.runs.record_file import record_paths

ROOT = Path(__file__).resolve().parents[1]

Json = dict[str, Any]


def copies(sources: list[Path], count: int, folder: Path, same_tables: bool = False) -> None:
    """Write so many copies of records into a folder."""
    changed = _with_setting if same_tables else _with_model
    for place, path in enumerate(sources):
        data, values = json.loads(path.read_bytes()), _values_of(path)
        for number in range((count - place + len(sources) - 1) // len(sources)):
            _copy(data, changed(data, number), values, folder)


def _values_of(path: Path) -> str | None:
    return lzma.decompress(values_path(path).read_bytes()).decode() if values_path(path).exists() else None


def _with_model(data: Json, number: int) -> Json:
    """What a copy has of its own: its model."""
    model = f"{data['model']['name']}-{number:04d}"
    about = {**data["model"], "name": model, "sha256": digest({"sha256": data["model"]["sha256"], "copy": number})}
    return {"id": _id(data, number), "model": about, "plan": {**data["plan"], "model": model}}


def _with_setting(data: Json, number: int) -> Json:
    """What a copy has of its own: a setting of its editor, which leaves it in the table of its original."""
    settings = {**(data["plan"].get("settings") or {}), "copy": number}
    return {"id": _id(data, number), "plan": {**data["plan"], "settings": settings}}


def _id(data: Json, number: int) -> str:
    return digest({"id": data["id"], "copy": number})


def _copy(data: Json, changed: Json, values: str | None, folder: Path) -> None:
    made = {**data, **changed}
    target = folder / f"{record_name(Record.from_json(made))}.json"
    target.write_text(compact_json(made), encoding="utf-8")
    if values is not None:
        text = values.replace(compact_json(data["id"]), compact_json(made["id"]), 1)
        values_path(target).write_bytes(lzma.compress(text.encode(), preset=0))


def timed(folder: Path, site: Path, what: str, workers: str = "1") -> None:
    """Make the site in a process of its own, and print what that took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "harness.cli", "board", str(folder), "--to", str(site), "--workers", workers]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, used = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    spent, taken = used.ru_utime + used.ru_stime, time.perf_counter() - began
    print(f"{what:<34} {spent:7.1f} s of processor, {taken:7.1f} s, {used.ru_maxrss / 1024:6.0f} MiB", flush=True)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / "results" / "records")
    parser.add_argument("--count", type=int, default=10_000, help="copies (default: 10,000; 0: none)")
    parser.add_argument("--same-tables", action="store_true", help="copies of the same models, with other settings")
    parser.add_argument("--workers", default="1", help="as of harness board (default: 1)")
    parser.add_argument("--keep", type=Path, help="a folder for the copies and their site")
    arguments = parser.parse_args()
    sources = record_paths(arguments.records)
    with TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        timed(arguments.records, place / "first", f"{len(sources)} records")
        if arguments.count > 0:
            (place / "copies").mkdir(parents=True)
            copies(sources, arguments.count, place / "copies", arguments.same_tables)
            timed(place / "copies", place / "site", f"{arguments.count} copies", arguments.workers)
            timed(place / "copies", place / "site", f"{arguments.count} copies, none of which changed")


if __name__ == "__main__":
    main()
