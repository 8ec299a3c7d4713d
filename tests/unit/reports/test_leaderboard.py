"""Leaderboards in every format, to the letter; what shares a table, a row and a column; what is bold."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import synthetic
from synthetic import fixed

from harness.errors import UsageError
from harness.reports.leaderboard import leaderboard
from harness.reports.registry import format_names
from harness.runs.record import Record
from harness.runs.record_file import read_records

DASH = "\N{EN DASH}"


@cache
def made(editor: str, skill: float, **more: Any) -> Record:
    return synthetic.record(editor, skill, **more)


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
    output = leaderboard(board(), "md")
    assert output[output.index("## ") :] == MARKDOWN


def test_a_part_of_the_exam_that_was_not_asked_is_missing_and_not_zero() -> None:
    first, second = fixed("a_b", 0.8, 0.5, right=80), fixed("ft", 0.4, 0.1, right=40)
    for point in second.points:
        del point["tasks"]["NLI"]
        point["tasks"]["counterfact"] = {"generation_exact_match": point["tasks"]["counterfact"]["efficacy"]}
    second.plan |= {"edits": "counterfact", "exam": ["generation"]}
    second.headlines["counterfact"] = "generation_exact_match"
    output = leaderboard([first, second], "md")
    (row,) = [line for line in output.splitlines() if line.startswith("| ft |")]
    assert row.startswith(f"| ft | {DASH}<sup>2</sup> | 0.400<br>+0.100 [+0.050, +0.150] | {DASH}<sup>1</sup> | ")
    assert "<sup>1</sup> not measured" in output
    assert "<sup>2</sup> not asked" in output


LATEX = r"""
\begin{table}
\centering\small
\caption{mini\_x $\cdot$ 50 edits of counterfact $\cdot$ batch $\cdot$ float32 $\cdot$ data: mini $\cdot$ at most 100 documents a task}
\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{\begin{tabular}{lrrrr}
\toprule
editor & \shortstack[r]{counterfact \\ efficacy $\uparrow$} & \shortstack[r]{NLI \\ accuracy $\uparrow$} & seconds & \shortstack[r]{peak \\ MiB} \\
\midrule
unedited & \shortstack[r]{$0.300$ \\ \scriptsize $[0.200, 0.400]$} & \shortstack[r]{$0.300$ \\ \scriptsize $[0.200, 0.400]$} &  &  \\
a\_b & \shortstack[r]{\textbf{0.800} \\ \scriptsize $+0.500$ \\ \scriptsize $[+0.250, +0.750]$} & \shortstack[r]{$0.800$ \\ \scriptsize $+0.500$ \\ \scriptsize $[+0.250, +0.750]$} & $3.8$ & $100$ \\
ft & \shortstack[r]{$0.400$ \\ \scriptsize $+0.100$ \\ \scriptsize $[+0.050, +0.150]$} & --${}^{1}$ & $3.8$ & $100$ \\
\bottomrule
\end{tabular}}
\par\footnotesize ${}^{1}$ not measured
\end{table}
"""  # noqa: E501


def test_latex() -> None:
    output = leaderboard(board(), "latex")
    assert output.startswith("% needs \\usepackage{booktabs,graphicx}\n")
    assert LATEX in output
    # what TeX would choke on is escaped everywhere
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"^%.*$", "", output, flags=re.M))


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard(board(), "csv"))))
    assert [(r["editor"], r["mode"], r["record"]) for r in rows] == [
        ("unedited", "batch", ""),
        ("a_b", "batch", "a_b0000000000000"),
        ("ft", "batch", "ft00000000000000"),
        ("unedited", "isolated", ""),
        ("other|x", "isolated", "other|x000000000"),
    ]
    shown = {k: v for k, v in rows[1].items() if k.startswith("counterfact.efficacy")}
    assert list(shown.values()) == ["0.8", "100", "0.7000000000000001", "0.9", "0.5", "0.25", "0.75", "0.01", "1", "0"]
    assert (rows[2]["NLI.accuracy"], rows[2]["NLI.accuracy.p"], rows[4]["counterfact.efficacy"]) == ("", "", "")
    assert (rows[1]["seconds"], rows[1]["mib"], rows[1]["limit"]) == ("3.75", "100.0", "100")


def test_html() -> None:
    output = leaderboard(board(), "html")
    small = "<small>+0.500 [+0.250, +0.750]</small>"
    assert f'<td data-v="a_b">a_b</td><td data-v="0.8" class="better"><b>0.800</b>{small}</td>' in output
    assert f'<td data-v="">{DASH}<sup>1</sup></td>' in output
    assert not re.search(r"(src|href)=|https?:", output)  # nothing is fetched
    assert len(output) < 8000


def test_html_escapes_names() -> None:
    record = fixed('<script>"&', 0.5, 0.1)
    output = leaderboard([record], "html")
    assert "&lt;script&gt;&quot;&amp;" in output
    assert output.count("<script>") == 1


@pytest.mark.parametrize("fmt", format_names())
def test_a_leaderboard_does_not_depend_on_the_order_of_records_or_on_the_clock(fmt: str) -> None:
    assert leaderboard(board(), fmt) == leaderboard(board()[::-1], fmt)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UsageError, match=r"format 'mdd' does not exist \(did you mean md\?\)"):
        leaderboard([], "mdd")


def _bold(records: list[Record]) -> list[str]:
    return re.findall(r"\*\*(.+?)\*\*", leaderboard(records, "md"))


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
    assert "accuracy ↓" in leaderboard(records, "md")


def test_a_derived_score_can_be_bold() -> None:
    output = leaderboard([made("memit", 0.95), made("ft", 0.6)], "md")
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
        lambda r: r.plan.update(edit_batch_size=5),
        lambda r: r.plan.update(limit=7),
        lambda r: r.plan.update(num_fewshot=0),
        lambda r: r.plan.update(apply_chat_template=True),
        lambda r: r.model.update(chat_template="other"),
        lambda r: r.plan.update(gen_kwargs={"temperature": 0.5}),
        lambda r: r.plan.update(data_dir="/data/real"),
        lambda r: r.points[1].update(edits=20),
    ],
)
def test_another_protocol_is_another_table(change: Callable[[Record], None]) -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    assert leaderboard([a, b], "md").count("\n## ") == 1
    change(b)
    output = leaderboard([a, b], "md")
    assert output.count("\n## ") == 2
    assert "**" not in output
    assert "/data" not in output


def test_how_tasks_are_asked_stands_over_the_table() -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    b.plan.update(num_fewshot=5, apply_chat_template=True, think_end_token=None)
    titles = [line for line in leaderboard([a, b], "md").splitlines() if line.startswith("## ")]
    assert [title.endswith(" · 5-shot · chat template") for title in titles] == [False, True]


def test_the_prompts_of_the_members_of_a_group_count() -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    b.templates = {"counterfact_generation": "other", "counterfactual": "other task"}
    output = leaderboard([a, b], "md")
    assert len(re.findall(r"counterfact<br>efficacy @[0-9a-f]{6} ↑", output)) == 2
    assert "NLI<br>accuracy ↑" in output


@pytest.mark.parametrize("field", ["data", "templates"])
def test_other_documents_or_another_prompt_are_another_column(field: str) -> None:
    a, b = fixed("a", 0.8, 0.1, right=80), fixed("b", 0.4, 0.1, right=40)
    setattr(b, field, {"NLI": {"sha256": "other"}})
    output = leaderboard([a, b], "md")
    assert len(re.findall(r"NLI<br>accuracy @[0-9a-f]{6} ↑", output)) == 2
    assert "**0.800**" in output.split("| a |")[1].split(" | ")[0]  # efficacy is still comparable
    assert output.count("**") == 2
    assert "measured on other documents or with another prompt" in output


def test_rows_of_one_editor_are_told_apart() -> None:
    seeds = [replace(fixed("a", 0.5, 0.1), seed=s, id=f"{s}" * 16, values=None) for s in (1, 2)]
    assert re.findall(r"^\| (a.*?) \|", leaderboard(seeds, "md"), re.M) == ["a (seed 1)", "a (seed 2)"]
    same = [replace(record, seed=0) for record in seeds]
    assert re.findall(r"^\| (a.*?) \|", leaderboard(same, "md"), re.M) == [
        "a (11111111)",
        "a (22222222)",
    ]


@pytest.mark.parametrize(("fmt", "said"), [("md", "counterfact: two \\_ words"), ("html", "counterfact: two _ words"),
                                            ("latex", "counterfact: two \\_ words")])  # fmt: skip
def test_the_caveat_of_a_set_stands_once_below_its_table(fmt: str, said: str) -> None:
    told = {"counterfact": "two _ words", "elsewhere": "not here"}
    records = [replace(fixed(name, 0.5, 0.1), caveats=told) for name in "ab"]
    output = leaderboard(records, fmt)
    assert output.count(said) == 1
    assert "not here" not in output


def test_unfinished_records_are_left_out_and_named() -> None:
    output = leaderboard([fixed("a", 0.5, 0.1), replace(fixed("b", 0.5, 0.1), status="failed")], "md")
    assert "- mini\\_x--b--counterfact-50--batch--b0000000 is left out: failed" in output.replace("mini_x", "mini\\_x")
    assert "| b |" not in output


def test_records_without_edits_have_no_row_and_a_page_without_rows_says_so() -> None:
    plain = fixed("none", 0.5, 0.1)
    plain = replace(plain, points=[point for point in plain.points if not point["edits"]])
    assert "- 1 record edits nothing and has no row" in leaderboard([plain], "md")
    assert "- 2 records edit nothing and have no row" in leaderboard([plain, replace(plain, id="b" * 64)], "md")
    assert "edits nothing" not in leaderboard([plain, fixed("a", 0.5, 0.1)], "md")


def test_the_best_editor_stands_first() -> None:
    output = leaderboard([fixed("a", 0.4, 0.1), fixed("b", 0.8, 0.1), fixed("c", 0.6, 0.1)], "md")
    assert re.findall(r"^\| ([abc]) \|", output, re.M) == ["b", "c", "a"]


def test_a_leaderboard_of_records_on_disk(tmp_path: Path) -> None:
    for editor, skill in (("memit", 0.95), ("ft", 0.6)):
        synthetic.write(tmp_path, made(editor, skill))
    again = leaderboard(read_records(tmp_path, values=True), "md")
    assert again == leaderboard([made("memit", 0.95), made("ft", 0.6)], "md")
    assert "**0.845**" in again
