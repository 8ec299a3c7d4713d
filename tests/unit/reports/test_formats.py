"""Formats: what is markup in a name stays text, what is marked is significant, and all of them are found by file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import fixed

from harness.errors import UsageError
from harness.exam.statistics import Difference, significant
from harness.reports import formats, leaderboard
from harness.reports.cells import significant_change, verdict
from harness.reports.registry import Format, find_format, format_names
from harness.reports.table import Data, Page, Section, Table, TableCell, TableColumn, TableRow
from harness.runs.record import Record

HOSTILE = "a|b <script>alert(1)</script> _&%$#{}~^\\ *c* `d` [e](f)\ng"


def page(text: str, **cell: object) -> Page:
    """A page that holds a text wherever a text may stand."""
    row = TableRow(
        (TableCell(text), TableCell(text, below=(text,)), TableCell(text, best=True), TableCell(text, note=text))
    )
    table = Table(text, tuple(TableColumn((text,)) for _ in row.cells), (row,), (text,))
    return Page(text, (text,), (Section(text, (table,)),), (text,), Data((text, "value"), ((text, -0.5), (None, True))))


def written(kind: str, text: str = HOSTILE) -> str:
    return find_format(kind).write([page(text)])


# --- escaping ---------------------------------------------------------------------------------------------------------


def test_markdown_takes_no_text_for_markup() -> None:
    text = written("md")
    assert not re.search(r"(?<!\\)<script|(?<!\\)`|(?<!\\)&|(?<!\\)\$|(?<!\\)_", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [5, 5, 5]
    assert r"a\|b \<script>alert(1)\</script> \_\&%\$#{}\~^\\ \*c\* \`d\` [e\](f) g" in text


def test_latex_takes_no_text_for_commands() -> None:
    lines = written("latex").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("% "))
    assert r"a\textbar{}b $<$script$>$alert(1)$<$/script$>$ \_\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}" in body
    assert r"\textbackslash{} *c* `d` {[}e](f) g" in body
    (row,) = (line for line in lines if line.endswith(r" \\") and "textbf" in line)
    assert len(re.findall(r"(?<!\\)&", row)) == 3
    assert not re.search(r"(?<!\\)[#%]|(?<!\\)_", body)
    assert body.count("\n\\begin{table}") == body.count("\n\\end{table}") == 1
    comments = [line for line in lines if "[e](f)" in line or line.endswith("g")]
    assert all(line.startswith("%") for line in lines[: lines.index("")]) and comments


def test_html_takes_no_text_for_tags() -> None:
    text = written("html", HOSTILE + '" onclick="x')
    assert text.count("<script>") == 1  # our own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r'<[^>]*" onclick', text)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_holds_no_formulas(start: str) -> None:
    formula = f'{start}HYPERLINK("x"),1'
    head, row, empty = csv.reader(io.StringIO(written("csv", formula)))
    assert (head, row) == ([f"'{formula}", "value"], [f"'{formula}", "-0.5"])
    assert empty == ["", "1"]
    assert next(csv.reader(io.StringIO(written("csv", "a=1")))) == ["a=1", "value"]


def test_json_holds_texts_as_they_are() -> None:
    assert json.loads(written("json")) == {HOSTILE: [{HOSTILE: HOSTILE, "value": -0.5}, {HOSTILE: None, "value": True}]}


def test_json_has_no_infinity() -> None:
    data = Data(("a", "b"), ((float("inf"), float("nan")),))
    assert json.loads(find_format("json").write([replace(page("x"), data=data)])) == {"x": [{"a": None, "b": None}]}


@pytest.mark.parametrize("kind", ["md", "latex", "html", "csv", "json"])
@pytest.mark.parametrize("place", ["editor", "model", "reason"])
def test_names_and_reasons_of_records_are_escaped(kind: str, place: str) -> None:
    record = fixed("=1|<script>" if place == "editor" else "memit", 0.5, 0.1)
    if place == "model":
        record.model["name"] = "=1|<script>"
    if place == "reason":
        record.tasks(50)["NLI"]["accuracy"] |= {"value": None, "reason": "=1|<script>"}
    text = leaderboard.leaderboard([record], kind)
    shown = {
        "md": r"=1\|\<script>",
        "latex": r"=1\textbar{}$<$script$>$",
        "html": "=1|&lt;script&gt;",
        "csv": "'=1|<script>",
        "json": '"=1|<script>',
    }
    assert (shown[kind] in text) == (place != "reason" or kind not in ("csv", "json"))
    if kind not in ("csv", "json"):  # which hold text, no markup
        assert len(re.findall(r"(?<!\\)<script>", text)) == (kind == "html")  # our own


# --- what is marked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "low", "high", "wanted"),
    [
        (0.2, 0.1, 0.3, False),
        (0.06, 0.1, 0.3, False),
        (0.05, 0.1, 0.3, False),
        (0.049, 0.1, 0.3, True),
        (0.049, -0.3, -0.1, True),
        (0.049, -0.1, 0.3, False),
        (0.049, 0.0, 0.3, False),
        (None, 0.1, 0.3, False),
        (0.049, None, None, False),
    ],
)
def test_significant_is_below_one_in_twenty_with_an_interval_without_zero(
    p: float | None, low: float | None, high: float | None, wanted: bool
) -> None:
    assert significant(p, low, high) is wanted
    assert Difference(0.2, 9, low, high, p).significant is wanted
    change = {"value": 0.2, "p": p, "interval": None if low is None else [low, high]}
    assert significant_change(change) is wanted
    assert (verdict(change, True), verdict(change, False)) == (("better", "worse") if wanted else (None, None))
    assert verdict(change, None) is None
    assert not significant_change(change, 0.2)


BEST: dict[str, Callable[[str], bool]] = {
    "md": lambda text: "**" in text,
    "latex": lambda text: r"\textbf" in text,
    "html": lambda text: "<b>" in text,
    "csv": lambda text: any(row["NLI.accuracy.best"] == "1" for row in csv.DictReader(io.StringIO(text))),
    "json": lambda text: any(row["NLI.accuracy.best"] is True for row in json.loads(text)["Leaderboard"]),
}


@pytest.mark.parametrize("kind", BEST)
@pytest.mark.parametrize(("p", "marked"), [(0.2, False), (0.06, False), (0.04, True)])
def test_the_best_is_marked_only_where_it_is_significant(
    kind: str, p: float, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Difference(0.1, 100, 0.05, 0.15, p)
    monkeypatch.setattr(leaderboard, "pair_difference", lambda *_, **__: lead)
    text = leaderboard.leaderboard([fixed("a", 0.8, 0.1), fixed("b", 0.4, 0.1)], kind)
    assert BEST[kind](text) is marked


AT_CHANCE: dict[str, tuple[str, str]] = {
    "md": ("0.300†<br>[0.200, 0.400] |", "0.800†<br>+0.500"),
    "latex": (r"\shortstack[r]{$0.300$$^{\dagger}$ \\", r"\shortstack[r]{$0.800$$^{\dagger}$ \\"),
    "html": ('<td data-v="0.3">0.300†<small>', '<td data-v="0.8" class="better">0.800†<small>'),
}


@pytest.mark.parametrize("kind", AT_CHANCE)
def test_a_column_at_chance_is_marked_and_the_mark_explained(kind: str) -> None:
    record = fixed("a", 0.8, 0.5)
    text = leaderboard.leaderboard([replace(record, chance={"NLI": {"accuracy": 0.5}})], kind)
    for shown in AT_CHANCE[kind]:
        assert text.count(shown) == 1  # of NLI, and not of counterfact with the same numbers
    assert text.count("a difference there shows nothing") == 1
    plain = leaderboard.leaderboard([record], kind)
    assert not any(shown in plain for shown in (*AT_CHANCE[kind], "†", "shows nothing"))


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_machine_reads_what_is_at_chance(kind: str) -> None:
    text = leaderboard.leaderboard([replace(fixed("a", 0.8, 0.5), chance={"NLI": {"accuracy": 0.5}})], kind)
    rows = list(csv.DictReader(io.StringIO(text))) if kind == "csv" else json.loads(text)["Leaderboard"]
    assert [bool(int(row["NLI.accuracy.at_chance"])) for row in rows] == [True, True]
    assert [bool(int(row["counterfact.efficacy.at_chance"])) for row in rows] == [False, False]


@pytest.mark.parametrize(("p", "marks"), [(0.2, 0), (0.06, 0), (0.04, 2)])
def test_a_difference_is_coloured_only_where_it_is_significant(p: float, marks: int) -> None:
    text = leaderboard.leaderboard([_with_p(fixed("a", 0.8, 0.1), p)], "html")
    assert text.count('class="better"') == marks
    worse = leaderboard.leaderboard([_with_p(fixed("a", 0.8, -0.1), p)], "html")
    assert (worse.count('class="worse"'), worse.count('class="better"')) == (marks, 0)


@pytest.mark.parametrize("kind", BEST)
def test_a_difference_that_is_not_significant_is_written_alike_but_for_its_p(kind: str) -> None:
    """Nothing but the colours of HTML and the p of tables for machines tells p = 0.2 from p = 0.06."""
    one, other = (leaderboard.leaderboard([_with_p(fixed("a", 0.8, 0.1), p)], kind) for p in (0.2, 0.06))
    assert one.replace("0.2,", "0.06,") == other.replace("0.2,", "0.06,")


def _with_p(record: Record, p: float) -> Record:
    for measures in record.tasks(50).values():
        for measure in measures.values():
            measure["difference"] |= {"p": p}
    return record


# --- found by file ----------------------------------------------------------------------------------------------------


def test_formats_are_the_files_of_their_folder() -> None:
    (folder,) = formats.__path__
    assert len(format_names()) == len([path for path in Path(folder).glob("*.py") if path.stem != "__init__"]) >= 5
    for name in format_names():
        form = find_format(name)
        assert form.name == name and form.ending.startswith(".") and type(form).__doc__


def test_pages_stand_below_one_another() -> None:
    both = [page("one"), page("two")]
    for name in format_names():
        text = find_format(name).write(both)
        assert 0 <= text.index("one") < text.index("two")
    assert list(json.loads(find_format("json").write(both))) == ["one", "two"]
    assert find_format("html").write(both).count("<html") == 1


def test_a_file_that_defines_no_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty_format.py").write_text("")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    with pytest.raises(UsageError, match=r"empty_format\.py: defines 0 formats; a file defines one"):
        format_names()


def test_a_format_is_not_one_without_write() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Format()  # type: ignore[abstract]
