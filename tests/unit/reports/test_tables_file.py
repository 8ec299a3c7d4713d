"""Records as tables and back: nothing is lost, nothing is a formula, and what is damaged is told in one line."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from published_files import hallu_row, write_lines
from synthetic import record

from harness.errors import DataError
from harness.exam.statistics import Ratio
from harness.reports.export import ExportRequest, export_records
from harness.reports.importing import read_published
from harness.reports.leaderboard import leaderboard
from harness.reports.tables_file import read_tables, records_at
from harness.runs.record import Record
from harness.runs.record_file import read_record

RESULTS = Path(__file__).parents[3] / "results"
SEEDS = sorted((RESULTS / "records").glob("mini--*m*t--counterfact-50--batch--*.json"))
KINDS = pytest.mark.parametrize("kind", ["csv", "parquet"])
HOSTILE = '=HYPERLINK("x"),1\n\r"\'|<script>../..'


def exported(records: list[Record], folder: Path, kind: str, documents: str = "shown") -> Path:
    export_records(records, kind, to=folder, asked=ExportRequest(0, documents))  # type: ignore[arg-type]
    return folder


def same(one: Record, other: Record) -> bool:
    return one.to_json() == other.to_json() and one.seal() == other.seal() and one.sealed == other.sealed


@pytest.fixture(scope="module")
def several_seeds() -> tuple[list[Record], str]:
    """Committed records of two editors under three seeds each, and their leaderboard."""
    records = [read_record(path, values=True) for path in SEEDS]
    board = leaderboard(records, "csv")
    assert len(records) >= 6 and "3 seeds" in board
    return records, board


@KINDS
def test_committed_records_give_the_same_leaderboard(
    kind: str, tmp_path: Path, several_seeds: tuple[list[Record], str]
) -> None:
    records, board = several_seeds
    back = read_tables(exported(records, tmp_path / "tables", kind))
    assert all(map(same, records, back))
    assert leaderboard(back, "csv") == board


@KINDS
def test_nothing_of_a_record_is_lost(kind: str, tmp_path: Path) -> None:
    """Several stops, metrics without a value, a missing interval, latest edits, documents that are not finite."""
    sequential = read_record(next((RESULTS / "real").glob("*memit*.json")), values=True)
    odd = record(HOSTILE, 0.5, model=HOSTILE, tasks=("NLI",), documents=4)
    numbers = odd.points[1]["tasks"]["NLI"]["accuracy"]
    numbers.update(value=None, n=0, interval=None, reason=HOSTILE, higher_is_better=None)
    numbers["difference"].update(value=None, interval=None, p=None, reason="nothing to compare")
    assert odd.values is not None
    odd.values[50]["NLI"] = {
        "accuracy": {HOSTILE: Ratio(math.nan, 1.0), "": Ratio(0.25, 3.0, "", HOSTILE), "'": Ratio(1.0, 0.0, "c")}
    }
    bare = replace(record("none", 1.0, counts=(0, 5)), values=None, points=[], status="interrupted")
    back = read_tables(exported([sequential, odd, bare], tmp_path / "t", kind, "all"))
    assert all(map(same, [sequential, odd, bare], back))
    assert any("latest" in point for point in back[0].points)
    read = (back[1].values or {})[50]["NLI"]["accuracy"]
    assert list(read) == [HOSTILE, "", "'"] and math.isnan(read[HOSTILE].num)
    assert list(read.values())[1:] == list(odd.values[50]["NLI"]["accuracy"].values())[1:]
    assert back[2].values is None


@KINDS
def test_a_published_run_is_read_again(kind: str, tmp_path: Path) -> None:
    rows = [hallu_row("ROME", case, [1, case % 2, 0, 1, 0, 1, 1]) for case in range(4)]
    records = read_published("halluedit", write_lines(tmp_path / "halluedit_percase_llama_2_7b_chat.jsonl", rows))
    back = read_tables(exported(records, tmp_path / "tables", kind))
    assert records[0].seed is None and all(map(same, records, back))
    assert leaderboard(back) == leaderboard(records)


def test_missing_is_empty_and_never_zero(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI",), documents=4)
    made.points[1]["tasks"]["NLI"]["accuracy"].update(value=None, n=0, interval=None, reason="no value")
    folder = exported([made], tmp_path / "csv", "csv")
    with (folder / "values.csv").open(newline="") as file:
        [row] = [one for one in csv.DictReader(file) if (one["task"], one["kind"]) == ("NLI", "edited")]
    assert (row["value"], row["low"], row["high"], row["reason"]) == ("", "", "", "no value")
    table = pyarrow.parquet.read_table(exported([made], tmp_path / "parquet", "parquet") / "values.parquet")
    [typed] = [one for one in table.to_pylist() if (one["task"], one["kind"]) == ("NLI", "edited")]
    assert typed["value"] is None and typed["n"] == 0 and typed["higher_is_better"] is True


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    folder = exported([record("@SUM(1)", 0.9, model="-2+3", tasks=())], tmp_path / "csv", "csv")
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        texts = [cell for cell in cells if cell[:1] in "=+-@\t\r\n" and cell]
        assert all(float(text) < 0 for text in texts), path


@pytest.mark.parametrize(("documents", "metrics"), [
    ("none", set()),
    ("shown", {"efficacy", "paraphrase", "neighborhood", "accuracy"}),
    ("all", {"efficacy", "paraphrase", "neighborhood", "accuracy", "invalid_rate"}),
])  # fmt: skip
def test_whose_documents_are_written(documents: str, metrics: set[str], tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI",), documents=4)
    assert made.values is not None
    for count in (0, 50):
        table = made.values[count]["NLI"]
        made.values[count]["NLI"] = {**table, "invalid_rate": dict.fromkeys(table["accuracy"], Ratio(0.0))}
        made.points[count > 0]["tasks"]["NLI"]["invalid_rate"] = made.points[0]["tasks"]["NLI"]["accuracy"]
    with (exported([made], tmp_path / "t", "csv", documents) / "documents.csv").open(newline="") as file:
        assert {row["metric"] for row in csv.DictReader(file)} == metrics


def test_records_are_read_from_tables_and_from_files(tmp_path: Path) -> None:
    folder = exported([record("rome", 0.5, tasks=())], tmp_path / "csv", "csv")
    assert [r.editor["name"] for r in records_at(folder)] == ["rome"]
    assert [r.editor["name"] for r in records_at(folder / "values.csv")] == ["rome"]
    assert records_at(SEEDS[0])[0].values


def damaged_head(text: str) -> str:
    return text.replace('""status"": ""complete""', '""status"": ""finished""')


DAMAGED = [
    ("values.csv", lambda text: text[: len(text) // 2], "cells of|may be cut short|lack"),
    ("values.csv", lambda text: "\n".join(text.splitlines()[:-3]) + "\n", "the values of record .* lack "),
    ("values.csv", lambda text: text.replace("0.9", "nine", 1), "could not convert|invalid literal"),
    ("values.csv", lambda text: text.replace(",accuracy,", ",recall,", 1), "has no NLI recall after 0 edits"),
    ("values.csv", lambda text: text.replace("record,", "recrod,", 1), "column 'record' is missing"),
    ("records.csv", damaged_head, "a record is not what an export writes"),
    ("records.csv", lambda text: text + text.partition("\n")[2], "stands in it twice"),
    ("records.csv", lambda text: text.partition("\n")[0] + "\n", "which is not in its records"),
    ("records.csv", lambda text: text + '"', "not a table in UTF-8|cells of"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGED)
def test_damage_is_told_in_one_line(name: str, damage: object, said: str, tmp_path: Path) -> None:
    folder = exported([record("rome", 0.5, tasks=("NLI",), documents=4)], tmp_path / "csv", "csv")
    read_tables(folder)
    text = (folder / name).read_text(encoding="utf-8")
    changed = damage(text)  # type: ignore[operator]
    assert changed != text
    (folder / name).write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=said) as found:
        read_tables(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", bytes(range(256))])
def test_a_parquet_that_is_not_whole_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    folder = exported([record("rome", 0.5, tasks=())], tmp_path / "p", "parquet")
    (folder / "values.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"values\.parquet") as found:
        read_tables(folder)
    assert "\n" not in str(found.value)


def test_a_place_without_tables_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        read_tables(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"records\.csv: no such file"):
        read_tables(tmp_path / "other.csv")


def test_a_head_of_another_schema_is_refused(tmp_path: Path) -> None:
    folder = exported([record("rome", 0.5, tasks=())], tmp_path / "csv", "csv")
    with (folder / "records.csv").open(newline="") as file:
        heads, row = csv.reader(file)
    row[heads.index("head")] = json.dumps({**json.loads(row[heads.index("head")]), "schema": 1})
    with (folder / "records.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heads, row])
    with pytest.raises(DataError, match="of schema 2"):
        read_tables(folder)
