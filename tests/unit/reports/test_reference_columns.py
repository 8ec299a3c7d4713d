"""Published values beside rows: where names are alike, in columns of their own, marked where they were only quoted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from published_files import hallu_row, write_lines

from harness.errors import DataError
from harness.reports.importing import read_published
from harness.reports.leaderboard import leaderboard, leaderboard_page
from harness.reports.published_values import alike, read_published_values
from harness.reports.table import MISSING
from harness.runs.record import Record

HEAD = "paper,table,model,data,protocol,n_edits,batch,method,metric,value,sd,source,certainty\n"
MODEL = "Llama-3-8B-Instruct"
READ = f"A,T1,{MODEL},HalluEditBench (26 topics),isolated,~2240,1,ROME,efficacy,79.22,0.5,p. 3,read in the paper"
QUOTED = "B,T2,Llama-3-8B-Instruct,HalluEditBench,,,,ICE,locality,62.55,,a blog,read in notes that quote it"
OTHER = "A,T1,GPT2-XL,CounterFact,isolated,,,ROME,efficacy,99.9,,p. 3,read in the paper"


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rows = [hallu_row(editor, case, [1] * 7) for editor in ("ROME", "ICL") for case in range(3)]
    return read_published("halluedit", write_lines(tmp_path / "meta_llama_3_8b_instruct.jsonl", rows))


def write(tmp_path: Path, *lines: str, head: str = HEAD) -> Path:
    path = tmp_path / "values.csv"
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("papers", "ours"),
    [
        ("Llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf"),
        ("LLaMA3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("GPT2-XL", "gpt2-xl"),
        ("GPT-J-6B", "EleutherAI/gpt-j-6b"),
        ("HalluEditBench (26 topics)", "HalluEditBench"),
        ("FT-L", "ft_l"),
        ("zsRE", "zsre"),
    ],
)
def test_names_are_alike_however_they_are_spelled(papers: str, ours: str) -> None:
    assert alike(papers) == alike(ours)
    assert alike("Llama-2-7b") != alike("Llama-2-7b-chat") and alike("LLaMA3-8B") != alike("LLaMA3-8B-Instruct")


def test_values_stand_in_columns_of_their_own(records: list[Record], tmp_path: Path) -> None:
    page = leaderboard_page(records, read_published_values(write(tmp_path, READ, QUOTED, OTHER)))
    table = page.sections[0].tables[0]
    assert [column.lines for column in table.columns[-2:]] == [
        ("published", "efficacy [a]"),
        ("published", "locality [b]"),
    ]
    cells = {row.cells[0].text: [(cell.text, cell.below) for cell in row.cells[-2:]] for row in table.rows}
    assert cells == {
        "unedited": [(MISSING, ()), (MISSING, ())],
        "ROME": [("79.22", ("±0.5",)), (MISSING, ())],
        "ICE": [(MISSING, ()), ("62.55", ("(quoted)",))],
    }
    assert table.notes[-2:] == (
        "[a] A, T1: isolated, ~2240 edits, 1 at a time. Source: p. 3. Certainty: read in the paper.",
        "[b] B, T2: how it was measured is not told. Source: a blog. Certainty: read in notes that quote it.",
    )


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_a_table_of_values_may_end_its_lines_in_any_way(end: str, tmp_path: Path) -> None:
    path = tmp_path / "values.csv"
    path.write_bytes((HEAD + READ + "\n").replace("\n", end).encode())
    assert [one.value for one in read_published_values(path)] == ["79.22"]


def test_two_values_of_one_method_keep_a_column_each(records: list[Record], tmp_path: Path) -> None:
    """In another batch, or spelled with a star: neither takes the other's place, in a table or for a program."""
    again = READ.replace(",1,ROME,efficacy,79.22", ",100,ROME,efficacy,50.0")
    starred = READ.replace("ROME,efficacy,79.22", "ROME*,efficacy,13.0")
    values = read_published_values(write(tmp_path, READ, again, starred))
    text = leaderboard(records, "csv", values)
    (row,) = (row for row in csv.DictReader(io.StringIO(text)) if row["editor"] == "ROME")
    found = [value for key, value in row.items() if key.startswith("published: A") and "certainty" not in key]
    assert sorted(found) == ["13.0", "50.0", "79.22"]
    assert all(value in leaderboard(records, "md", values) for value in ("79.22", "50.0", "13.0"))


def test_a_program_reads_them_too(records: list[Record], tmp_path: Path) -> None:
    text = leaderboard(records, "csv", read_published_values(write(tmp_path, READ, QUOTED)))
    rows = {row["editor"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["ROME"]["published: A, T1, efficacy, isolated, ~2240 edits, 1 at a time, p. 3"] == "79.22"
    assert rows["ICE"]["published: B, T2, locality, a blog, certainty"] == "read in notes that quote it"
    assert rows["unedited"]["published: A, T1, efficacy, isolated, ~2240 edits, 1 at a time, p. 3"] == ""


def test_a_page_without_a_published_value_says_so(records: list[Record], tmp_path: Path) -> None:
    page = leaderboard_page(records, read_published_values(write(tmp_path, OTHER)))
    assert any("No published value that was given belongs to" in line for line in page.introduction)
    assert page.data == leaderboard_page(records).data


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (READ.replace("79.22", "79,22"), "another number of cells than the head has"),
        (READ.replace("79.22", "high"), "line 2: value 'high' is no number"),
        (READ.replace("79.22", "nan"), "is no number"),
        (READ.replace("79.22", ""), "'value' is empty"),
        (READ.replace("efficacy", "a\x1b[2Jb"), "is no name of 'metric'"),
        (READ.rpartition(",")[0], "another number of cells"),
    ],
)
def test_a_line_that_cannot_be_used(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_published_values(write(tmp_path, line))
    assert says in str(error.value) and "\n" not in str(error.value) and "line 2" in str(error.value)


def test_a_table_without_a_column_says_which(tmp_path: Path) -> None:
    path = write(tmp_path, head="paper,model,dataset,method,metric,value\n")
    with pytest.raises(DataError, match=r"no column 'data' .did you mean dataset"):
        read_published_values(path)
    with pytest.raises(DataError, match="no such file"):
        read_published_values(tmp_path / "none.csv")


def test_what_a_table_holds_is_text_in_every_format(records: list[Record], tmp_path: Path) -> None:
    hostile = READ.replace("p. 3", "<script>alert(1)</script>").replace("T1", "=HYPERLINK(1)")
    values = read_published_values(write(tmp_path, hostile))
    assert "<script>alert" not in leaderboard(records, "html", values)
    assert "\\<script>" in leaderboard(records, "md", values)
