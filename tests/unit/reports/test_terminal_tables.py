"""What a person reads: widths, words, and golden leaderboards."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import synthetic
from rich.console import Console, RenderableType

from harness.errors import UsageError
from harness.exam.statistics import Ratio
from harness.reports import terminal_tables
from harness.reports.leaderboard import brackets, number, pair_difference, signed
from harness.runs.record import Record
from harness.runs.record_file import read_record, read_records

DASH = "\N{EN DASH}"


def text(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@cache
def made(editor: str, skill: float, **more: Any) -> Record:
    return synthetic.record(editor, skill, **more)


def row(output: str, label: str) -> str:
    (found,) = (line for line in output.splitlines() if line.strip().startswith(label))
    return re.sub(r"\s+", " ", found).strip()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, DASH), (0.0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (626.94, "626.9")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.1, "+0.100"), (-0.1, "-0.100"), (-1e-9, "0.000"), (1e-9, "0.000")])
def test_signed(value: float, shown: str) -> None:
    assert signed(value) == shown


def test_brackets() -> None:
    assert brackets([0.1, 0.25]) == "[0.100, 0.250]"
    assert brackets([-0.1, 0.25], sign=True) == "[-0.100, +0.250]"
    assert brackets(None) == ""


# --- the table of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [100, 160])
@pytest.mark.parametrize("counts", [(0, 50), (0, 10, 20, 50)])
def test_the_table_of_ten_tasks_fits_the_terminal(width: int, counts: tuple[int, ...]) -> None:
    wide = made("rome+prune", 0.3, counts=counts)
    output = text(terminal_tables.run_table(wide), width)
    assert max(map(len, output.splitlines())) <= width
    for task, metric in synthetic.HEADLINES.items():
        assert output.count(f"{task} {metric}") == (2 if len(counts) > 2 else 1)
    first = output.split("after so many edits")[0]
    whole = r"^ .*\d +\d\.\d{3} +\d\.\d{3} +\S+ \[\S+, \S+\] +(▼ worse|▲ better|none \(±0\.\d{3}\)) *$"
    assert len(re.findall(whole, first, flags=re.M)) == 12


def test_a_row_says_what_was_measured() -> None:
    record = made("memit", 0.95)
    output = text(terminal_tables.run_table(record))
    measure = record.tasks(50)["reasoning"]["exact_match"]
    change = measure["difference"]
    low, high = change["interval"]
    expected = (
        f"reasoning exact_match 100 0.920 {measure['value']:.3f} {change['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    assert row(output, "reasoning") == f"{expected} ▼ worse"
    assert change["p"] < 0.05
    assert "memit on mini · 50 edits of counterfact (batch) · seed 0" in output


def test_a_change_that_cannot_be_seen_says_how_large_one_would_have_to_be() -> None:
    record = made("memit", 0.95)
    detectable = record.tasks(50)["NLI"]["accuracy"]["difference"]["detectable"]
    assert row(text(terminal_tables.run_table(record)), "NLI").endswith(f"none (±{detectable:.3f})")


@pytest.mark.parametrize(
    ("value", "higher_is_better", "words"),
    [
        (0.2, True, "▲ better"),
        (-0.2, True, "▼ worse"),
        (0.2, False, "▲ worse"),
        (-0.2, False, "▼ better"),
        (0.2, None, "▲ higher"),
    ],
)
def test_the_direction_of_a_metric(value: float, higher_is_better: bool | None, words: str) -> None:
    record = fixed("x", 0.5, value)
    record.tasks(50)["NLI"]["accuracy"]["higher_is_better"] = higher_is_better
    assert row(text(terminal_tables.run_table(record)), "NLI").endswith(words)


def test_an_interval_that_holds_zero_is_no_change_whatever_p() -> None:
    record = fixed("x", 0.5, 0.2)
    record.tasks(50)["NLI"]["accuracy"]["difference"]["interval"] = [-0.01, 0.41]
    assert "none (±0.100)" in row(text(terminal_tables.run_table(record)), "NLI")


def test_what_has_no_value_is_a_dash_with_its_reason() -> None:
    record = fixed("x", 0.5, 0.2)
    record.points[1]["tasks"]["NLI"]["accuracy"] |= {
        "value": None,
        "n": 0,
        "reason": "no documents",
        "difference": None,
    }
    output = text(terminal_tables.run_table(record))
    assert row(output, "NLI accuracy  ") == f"NLI accuracy 0 0.300 {DASH}"
    assert "NLI accuracy: no documents" in output


def test_a_change_without_an_interval_is_not_called_none() -> None:
    record = fixed("x", 0.5, 0.2)
    record.tasks(50)["NLI"]["accuracy"]["difference"] |= {"interval": None, "p": None, "detectable": None}
    for width in (80, 120):
        assert row(text(terminal_tables.run_table(record), width), "NLI").endswith("+0.200 no test")


def test_an_unfinished_run_says_so() -> None:
    record = replace(fixed("x", 0.5, 0.2), status="interrupted", reason="interrupted before the end")
    assert "interrupted: interrupted before the end" in text(terminal_tables.run_table(record))
    assert "nothing was measured" in text(terminal_tables.run_table(replace(record, points=[])))


def test_the_unedited_model_alone_has_its_own_interval() -> None:
    record = fixed("none", 0.5, 0.2)
    output = text(terminal_tables.run_table(replace(record, points=record.points[:1])))
    assert row(output, "NLI") == "NLI accuracy 100 0.300 [0.200, 0.400]"


def test_measurements_on_the_way_are_shown() -> None:
    output = text(terminal_tables.run_table(made("rome+prune", 0.3, counts=(0, 10, 20, 50))))
    assert row(output, "after so many edits") == "after so many edits 0 10 20 50"
    assert re.search(r"NLI accuracy +0\.900 +0\.590\* +0\.590\* +0\.590\*", output)


def test_prompts_that_were_cut_are_told() -> None:
    record = made("rome", 0.3)
    record.points[-1]["truncated"] = {"NLI": 7}
    assert "NLI: 7 requests were longer than the model's context and were cut from the left" in text(
        terminal_tables.run_table(record)
    )


def test_markup_in_a_name_is_text() -> None:
    record = fixed("x", 0.5, 0.2)
    record.model["name"] = "[bold]m[/bold]"
    record.edits["warnings"] = ["[red]careful[/red]"]
    output = text(terminal_tables.run_table(record))
    assert "[bold]m[/bold]" in output
    assert output.count("warning: [red]careful[/red]") == 1


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_tells_everything() -> None:
    record = made("ft", 0.6)
    output = text(terminal_tables.show(record), 120)
    for wanted in (
        "3,600,000 parameters",
        "lr=0.5",
        "without covariance",
        "1 of 1 touched weights changed; restored bitwise",
        "torch=2.13.0",
    ):
        assert wanted in output
    assert row(output, "h.1.w") == "h.1.w 50 3.250 0.040 1.500"
    assert row(output, "tasks  ") == "tasks 20.00 640"
    assert max(map(len, output.splitlines())) <= 120


def test_of_isolated_edits_no_weight_is_said_to_be_unchanged() -> None:
    record = replace(made("ft", 0.6), weights={"before": {"w": "a"}, "edited": {}, "restored": {"w": "a"}})
    assert "1 weights touched; restored bitwise" in text(terminal_tables.show(record))


def test_show_tells_when_weights_were_not_restored() -> None:
    record = replace(made("ft", 0.6), weights={"before": {"w": "a"}, "edited": {"w": "b"}, "restored": {"w": "b"}})
    assert "NOT RESTORED" in text(terminal_tables.show(record))


# --- compare ----------------------------------------------------------------------------------------------------------


def test_compare_is_paired_and_turns_with_its_sides() -> None:
    good, bad = made("memit", 0.95), made("ft", 0.6)
    output = text(terminal_tables.compare(good, bad))
    change = pair_difference((good, 50), (bad, 50), "NLI", "accuracy")
    assert change is not None and change.low is not None and change.high is not None
    shown = f"accuracy 100 0.880 0.780 -0.100 [{change.low:+.3f}, {change.high:+.3f}]"
    assert any(re.sub(r"\s+", " ", line).strip().startswith(shown) for line in output.splitlines())
    assert output.count("▼ worse") == 12
    assert text(terminal_tables.compare(bad, good)).count("▲ better") == 12
    assert "editor: memit | ft" in output
    assert max(map(len, output.splitlines())) <= 100


def test_a_record_compared_with_itself_differs_in_nothing() -> None:
    record = made("memit", 0.95)
    output = text(terminal_tables.compare(record, record))
    assert output.count("none (±") == 12 + 1  # the legend explains it once
    assert not re.search("worse|better", output)


def test_many_comparisons_are_adjusted() -> None:
    """p = 0.031 alone would be significant; among three it is not."""
    a, b = fixed("a", 0.5, 0.1), fixed("b", 0.5, 0.1)
    one = {str(i): Ratio(1.0) for i in range(40)}
    other = {str(i): Ratio(float(i >= 6)) for i in range(40)}
    for record, values in ((a, one), (b, other)):
        measure = record.tasks(50)["NLI"]["accuracy"]
        record.points[1]["tasks"] = {"NLI": {f"m{k}": measure for k in range(3)}}
        record.values = {50: {"NLI": {f"m{k}": values if k == 0 else one for k in range(3)}}}
    assert row(text(terminal_tables.compare(a, b)), "m0").endswith("0.094 none (adjusted)")


def test_compare_without_values_says_what_is_missing() -> None:
    a, b = made("memit", 0.95), made("ft", 0.6)
    output = text(terminal_tables.compare(a, replace(b, values=None)), 160)
    assert re.search(rf"accuracy +{DASH} +0\.880 +0\.780 +-0\.100 +{DASH}", output)
    assert re.search(r"no intervals: .* are missing beside mini--ft--", output)


# --- leaderboard ------------------------------------------------------------------------------------------------------


def fixed(editor: str, value: float, change: float, right: int = 0, **edits: Any) -> Record:
    """A record of literal numbers: one edit metric, one task."""
    measure = {"n": 100, "reason": None, "higher_is_better": True, "difference": None}
    base = measure | {"value": 0.3, "interval": [0.2, 0.4]}
    changed = {"value": change, "interval": sorted([change / 2, change * 1.5]), "p": 0.01, "n": 100, "detectable": 0.1}
    after = measure | {"value": value, "interval": [value - 0.1, value + 0.1], "difference": changed | {"reason": None}}
    points = [
        {"edits": count, "tasks": {"counterfact": {"efficacy": dict(m)}, "NLI": {"accuracy": dict(m)}}}
        for count, m in ((0, base), (50, after))
    ]
    outcomes = {str(i): Ratio(float(i < right)) for i in range(100)}
    return Record(
        id=f"{editor:0<16}",
        plan={"mode": "batch", "limit": 100, "data_dir": "mini"},
        status="complete",
        model={"name": "mini_x", "sha256": "m", "dtype": "float32"},
        editor={"name": editor},
        edits={"dataset": "counterfact", "count": 50, "sha256": "e"} | edits,
        headlines={"NLI": "accuracy", "counterfact": "efficacy"},
        points=points,
        cost=[
            {"phase": "edit", "seconds": 1.25, "peak_memory_mib": 100.0},
            {"phase": "NLI", "seconds": 2.5, "peak_memory_mib": None},
        ],
        values={50: {"counterfact": {"efficacy": outcomes}, "NLI": {"accuracy": outcomes}}},
    )


def board() -> list[Record]:
    first, second = fixed("a_b", 0.8, 0.5, right=80), fixed("ft", 0.4, 0.1, right=40)
    del second.points[1]["tasks"]["NLI"]
    third = fixed("other|x", 0.9, 0.6, mode="isolated")
    third.tasks(50)["counterfact"]["efficacy"] |= {"value": None, "reason": "none of 3 documents has a finite value"}
    return [third, second, first]


MARKDOWN = f"""\
## mini\\_x · 50 edits of counterfact · batch · float32 · data: mini · at most 100 documents a task

| editor | counterfact<br>efficacy ↑ | NLI<br>accuracy ↑ | seconds | peak<br>MiB |
| :-- | --: | --: | --: | --: |
| unedited | 0.300<br>[0.200, 0.400] | 0.300<br>[0.200, 0.400] |  |  |
| a\\_b | **0.800**<br>+0.500 [+0.250, +0.750] | 0.800<br>+0.500 [+0.250, +0.750] | 3.8 | 100 |
| ft | 0.400<br>+0.100 [+0.050, +0.150] | {DASH}<sup>1</sup> | 3.8 | 100 |

<sup>1</sup> not measured

## mini\\_x · 50 edits of counterfact · isolated · float32 · data: mini · at most 100 documents a task

| editor | counterfact<br>efficacy ↑ | NLI<br>accuracy ↑ | seconds | peak<br>MiB |
| :-- | --: | --: | --: | --: |
| unedited | 0.300<br>[0.200, 0.400] | 0.300<br>[0.200, 0.400] |  |  |
| other\\|x | {DASH}<sup>1</sup> | 0.900<br>+0.600 [+0.300, +0.900] | 3.8 | 100 |

<sup>1</sup> none of 3 documents has a finite value
"""


def test_markdown() -> None:
    output = terminal_tables.leaderboard(board(), "md")
    assert output[output.index("## ") :] == MARKDOWN


LATEX = r"""
\begin{table}
\centering\small
\caption{mini\_x $\cdot$ 50 edits of counterfact $\cdot$ batch $\cdot$ float32 $\cdot$ data: mini $\cdot$ at most 100 documents a task}
\resizebox{\textwidth}{!}{\begin{tabular}{lrrrr}
\toprule
editor & \shortstack[r]{counterfact \\ efficacy $\uparrow$} & \shortstack[r]{NLI \\ accuracy $\uparrow$} & seconds & \shortstack[r]{peak \\ MiB} \\
\midrule
unedited & \shortstack[r]{$0.300$ \\ \scriptsize $[0.200, 0.400]$} & \shortstack[r]{$0.300$ \\ \scriptsize $[0.200, 0.400]$} &  &  \\
a\_b & \shortstack[r]{\textbf{0.800} \\ \scriptsize $+0.500$ \\ \scriptsize $[+0.250, +0.750]$} & \shortstack[r]{$0.800$ \\ \scriptsize $+0.500$ \\ \scriptsize $[+0.250, +0.750]$} & 3.8 & 100 \\
ft & \shortstack[r]{$0.400$ \\ \scriptsize $+0.100$ \\ \scriptsize $[+0.050, +0.150]$} & --${}^{1}$ & 3.8 & 100 \\
\bottomrule
\end{tabular}}
\par\footnotesize ${}^{1}$ not measured
\end{table}
"""  # noqa: E501


def test_latex() -> None:
    output = terminal_tables.leaderboard(board(), "latex")
    assert output.startswith("% needs \\usepackage{booktabs,graphicx}\n")
    assert LATEX in output
    # what TeX would choke on is escaped everywhere
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"^%.*$", "", output, flags=re.M))


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(terminal_tables.leaderboard(board(), "csv"))))
    assert [(r["editor"], r["mode"], r["record"]) for r in rows] == [
        ("unedited", "batch", ""),
        ("a_b", "batch", "a_b0000000000000"),
        ("ft", "batch", "ft00000000000000"),
        ("unedited", "isolated", ""),
        ("other|x", "isolated", "other|x000000000"),
    ]
    shown = {k: v for k, v in rows[1].items() if k.startswith("counterfact.efficacy")}
    assert list(shown.values()) == ["0.8", "100", "0.7000000000000001", "0.9", "0.5", "0.25", "0.75", "0.01", "1"]
    assert (rows[2]["NLI.accuracy"], rows[2]["NLI.accuracy.p"], rows[4]["counterfact.efficacy"]) == ("", "", "")
    assert (rows[1]["seconds"], rows[1]["mib"], rows[1]["limit"]) == ("3.75", "100.0", "100")


def test_html() -> None:
    output = terminal_tables.leaderboard(board(), "html")
    small = "<small>+0.500 [+0.250, +0.750]</small>"
    assert f'<td data-v="a_b">a_b</td><td data-v="0.8" class="better"><b>0.800</b>{small}</td>' in output
    assert f'<td data-v="">{DASH}<sup>1</sup></td>' in output
    assert not re.search(r"(src|href)=|https?:", output)  # nothing is fetched
    assert len(output) < 8000


def test_html_escapes_names() -> None:
    record = fixed('<script>"&', 0.5, 0.1)
    output = terminal_tables.leaderboard([record], "html")
    assert "&lt;script&gt;&quot;&amp;" in output
    assert output.count("<script>") == 1


@pytest.mark.parametrize("fmt", ["md", "csv", "latex", "html"])
def test_a_leaderboard_does_not_depend_on_the_order_of_records_or_on_the_clock(fmt: str) -> None:
    assert terminal_tables.leaderboard(board(), fmt) == terminal_tables.leaderboard(board()[::-1], fmt)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UsageError, match=r"format 'mdd' does not exist \(did you mean md\?\)"):
        terminal_tables.leaderboard([], "mdd")


def _bold(records: list[Record]) -> list[str]:
    return re.findall(r"\*\*(.+?)\*\*", terminal_tables.leaderboard(records, "md"))


def test_bold_needs_a_significant_lead() -> None:
    """46 against 40 of the same 100 documents, six won and none lost: p = 0.031; five: p = 0.0625."""
    assert _bold([fixed("a", 0.46, 0.1, right=46), fixed("b", 0.40, 0.1, right=40)]) == ["0.460", "0.460"]
    assert _bold([fixed("a", 0.45, 0.1, right=45), fixed("b", 0.40, 0.1, right=40)]) == []


def test_bold_needs_the_values_of_both() -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    assert _bold([a, replace(b, values=None)]) == []
    assert _bold([a]) == []


def test_the_best_is_the_lowest_where_lower_is_better() -> None:
    records = [fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)]
    for record in records:
        for point in record.points:
            point["tasks"]["NLI"]["accuracy"]["higher_is_better"] = False
    assert _bold(records) == ["0.800", "0.400"]
    assert "accuracy ↓" in terminal_tables.leaderboard(records, "md")


def test_a_derived_score_can_be_bold() -> None:
    output = terminal_tables.leaderboard([made("memit", 0.95), made("ft", 0.6)], "md")
    memit = next(line for line in output.splitlines() if line.startswith("| memit"))
    assert memit.split(" | ")[1].startswith("**0.845**<br>")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.model.update(name="other"),
        lambda r: r.model.update(sha256="other"),
        lambda r: r.model.update(dtype="bfloat16"),
        lambda r: r.edits.update(dataset="zsre"),
        lambda r: r.edits.update(sha256="other"),
        lambda r: r.edits.update(mode="isolated"),
        lambda r: r.plan.update(batch_size=5),
        lambda r: r.plan.update(limit=7),
        lambda r: r.plan.update(data_dir="/data/real"),
        lambda r: r.points[1].update(edits=20),
    ],
)
def test_another_protocol_is_another_table(change: Callable[[Record], None]) -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    assert terminal_tables.leaderboard([a, b], "md").count("\n## ") == 1
    change(b)
    output = terminal_tables.leaderboard([a, b], "md")
    assert output.count("\n## ") == 2
    assert "**" not in output
    assert "/data" not in output


def test_the_prompts_of_the_members_of_a_group_count() -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    b.templates = {"counterfact_generation": "other", "counterfactual": "other task"}
    output = terminal_tables.leaderboard([a, b], "md")
    assert len(re.findall(r"counterfact<br>efficacy @[0-9a-f]{6} ↑", output)) == 2
    assert "NLI<br>accuracy ↑" in output


@pytest.mark.parametrize("field", ["data", "templates"])
def test_other_documents_or_another_prompt_are_another_column(field: str) -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    setattr(b, field, {"NLI": {"sha256": "other"}})
    output = terminal_tables.leaderboard([a, b], "md")
    assert len(re.findall(r"NLI<br>accuracy @[0-9a-f]{6} ↑", output)) == 2
    assert "**0.800**" in output.split("| a |")[1].split(" | ")[0]  # efficacy is still comparable
    assert output.count("**") == 2
    assert "measured on other documents or with another prompt" in output


def test_rows_of_one_editor_are_told_apart() -> None:
    seeds = [replace(fixed("a", 0.5, 0.1), seed=s, id=f"{s}" * 16, values=None) for s in (1, 2)]
    assert re.findall(r"^\| (a.*?) \|", terminal_tables.leaderboard(seeds, "md"), re.M) == ["a (seed 1)", "a (seed 2)"]
    same = [replace(record, seed=0) for record in seeds]
    assert re.findall(r"^\| (a.*?) \|", terminal_tables.leaderboard(same, "md"), re.M) == [
        "a (11111111)",
        "a (22222222)",
    ]


def test_unfinished_records_are_left_out_and_named() -> None:
    output = terminal_tables.leaderboard([fixed("a", 0.5, 0.1), replace(fixed("b", 0.5, 0.1), status="failed")], "md")
    assert "- mini\\_x--b--counterfact-50--batch--b0000000 is left out: failed" in output.replace("mini_x", "mini\\_x")
    assert "| b |" not in output


def test_the_best_editor_stands_first() -> None:
    output = terminal_tables.leaderboard([fixed("a", 0.4, 0.1), fixed("b", 0.8, 0.1), fixed("c", 0.6, 0.1)], "md")
    assert re.findall(r"^\| ([abc]) \|", output, re.M) == ["b", "c", "a"]


def test_a_leaderboard_of_records_on_disk(tmp_path: Path) -> None:
    for editor, skill in (("memit", 0.95), ("ft", 0.6)):
        synthetic.write(tmp_path, made(editor, skill))
    again = terminal_tables.leaderboard(read_records(tmp_path, values=True), "md")
    assert again == terminal_tables.leaderboard([made("memit", 0.95), made("ft", 0.6)], "md")
    assert "**0.845**" in again


# --- the regression check ---------------------------------------------------------------------------------------------


def moved(
    before: float | None, after: float | None, n: tuple[int, int] = (100, 100), **clusters: int
) -> list[terminal_tables.Moved]:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.5, 0.1)
    old.tasks(50)["NLI"]["accuracy"] |= {"value": before, "n": n[0]} | clusters
    new.tasks(50)["NLI"]["accuracy"] |= {"value": after, "n": n[1]} | clusters
    return terminal_tables.regressions(old, new)


@pytest.mark.parametrize("after", [0.5, 0.5 + 1e-9, 0.5009, 0.51, 0.49])
def test_rounding_and_one_document_may_move(after: float) -> None:
    assert moved(0.5, after) == []


@pytest.mark.parametrize("after", [0.52, 0.48, 0.0])
def test_two_documents_may_not_move_in_either_direction(after: float) -> None:
    (found,) = moved(0.5, after)
    assert (found.edits, found.task, found.metric, found.what) == (50, "NLI", "accuracy", "value")
    assert (found.before, found.after, found.allowed) == (0.5, after, pytest.approx(0.011))


def test_exactly_one_document_may_move_whatever_the_last_digit() -> None:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.51, 0.1)
    assert 0.51 - 0.5 > 0.01
    assert terminal_tables.regressions(old, new, tolerance=0.0) == []
    assert len(terminal_tables.regressions(old, new, tolerance=0.0, documents=0.0)) == 2


def test_clusters_are_the_documents_that_count() -> None:
    assert moved(0.5, 0.51, n=(1000, 1000)) != []
    assert moved(0.5, 0.51, n=(1000, 1000), clusters=100) == []


@pytest.mark.parametrize(("before", "after"), [(0.5, None), (None, 0.5)])
def test_a_number_may_not_appear_or_vanish(before: float | None, after: float | None) -> None:
    (found,) = moved(before, after)
    assert (found.what, found.before, found.after) == ("missing", before, after)


def test_what_was_missing_may_stay_missing() -> None:
    assert moved(None, None) == []


def test_the_number_of_documents_may_move_by_one() -> None:
    assert moved(0.5, 0.5, n=(100, 101)) == []
    (found,) = moved(0.5, 0.5, n=(100, 98))
    assert (found.what, found.before, found.after) == ("n", 100, 98)


def test_a_missing_task_or_point_is_named() -> None:
    old, new = fixed("a", 0.5, 0.1), fixed("a", 0.5, 0.1)
    del new.points[1]["tasks"]["NLI"]
    assert [m.what for m in terminal_tables.regressions(old, new)] == ["missing"]
    assert len(terminal_tables.regressions(old, replace(new, points=new.points[:1]))) == 2
    assert terminal_tables.regressions(replace(new), old) == []  # what is new is no regression


def test_the_table_of_what_moved() -> None:
    output = text(
        terminal_tables.moved_table({"mini--ft": [*moved(0.5, 0.3), *moved(0.5, None), *moved(0.5, 0.5, n=(9, 4))]}),
        120,
    )
    rows = [re.sub(r"\s+", " ", line).strip() for line in output.splitlines() if "mini--ft" in line]
    assert rows == [
        "mini--ft 50 NLI accuracy 0.500 0.300 -0.200 ±0.0110 value",
        f"mini--ft 50 NLI accuracy 0.500 {DASH} {DASH} missing",
        "mini--ft 50 NLI accuracy 9 4 -5 ±1 documents",
    ]
    assert text(terminal_tables.moved_table({"a": [], "b": []})) == "nothing moved in 2 records\n"


def test_a_record_does_not_move_from_itself(tmp_path: Path) -> None:
    record = made("memit", 0.95)
    path = synthetic.write(tmp_path, record)
    assert terminal_tables.regressions(read_record(path), record) == []
    assert terminal_tables.regressions(record, record, tolerance=0.0, documents=0.0) == []
    assert not math.isnan(record.tasks(50)["NLI"]["accuracy"]["value"])


def test_table_of_a_run_fits_a_terminal_of_80_columns() -> None:
    record = made("memit", 0.9)
    wide, narrow = (text(terminal_tables.run_table(record), width).splitlines() for width in (100, 80))
    assert max(len(line.rstrip()) for line in narrow) <= 80
    assert "detectable change" in "".join(wide) and "detectable change " not in "".join(narrow)
    verdicts = [sum("better" in line or "worse" in line for line in lines) for lines in (wide, narrow)]
    assert verdicts[0] == verdicts[1] > 0
