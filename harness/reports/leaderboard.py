"""Records to leaderboards: Markdown, CSV, LaTeX, HTML.  Pure: the same records give the same bytes.

Only what is comparable shares a table: one model, one edit set, one way of editing, one number of edits, one limit.
Only what is measured alike shares a column: one task, one metric, one set of documents, one prompt.  A value is bold
only where it is significantly better than the second best, paired by document.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError, near
from harness.exam.statistics import Difference, difference, harmonic_difference
from harness.reports.seeds import pool, stability
from harness.runs.record import Record, record_name

__all__ = ["EDIT_METRICS", "FORMATS", "brackets", "leaderboard", "number", "pair_difference", "signed"]

Json = dict[str, Any]

EDIT_METRICS = ("score", "efficacy", "paraphrase", "neighborhood", "locality_accuracy", "locality_agreement")
"""What stands for an edit set: the score S, and what it is made of.  A task with an efficacy is an edit set."""
MISSING = "\N{EN DASH}"
UNEDITED = "unedited"
FORMATS = ("md", "csv", "latex", "html")


# --- numbers in words -------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A value with as many decimals as it deserves; a dash where there is none."""
    if value is None:
        return MISSING
    size = abs(value)
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def signed(value: float | None) -> str:
    """A difference with its sign; a difference that rounds to zero has none."""
    text = number(value)
    if value is None:
        return text
    return text.removeprefix("-") if float(text) == 0 else text if value < 0 else f"+{text}"


def brackets(interval: Sequence[float] | None, sign: bool = False) -> str:
    """An interval as ``[low, high]``; nothing where there is none."""
    return "" if interval is None else f"[{', '.join((signed if sign else number)(limit) for limit in interval)}]"


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """One task and metric, measured in one way; ``variant`` tells apart what is not."""

    task: str
    metric: str
    variant: str
    higher_is_better: bool | None


@dataclass
class _Cell:
    measure: Json | None
    reason: str | None = None
    best: bool = False


@dataclass
class _Row:
    label: str
    cells: list[_Cell]
    record: Record | None = None
    edits: int = 0

    @property
    def seconds(self) -> float | None:
        """The whole run, all phases."""
        costs = [float(phase["seconds"]) for phase in self.record.cost] if self.record else []
        return sum(costs) if costs else None

    @property
    def memory(self) -> float | None:
        """The peak over all phases, in MiB."""
        peaks = [phase.get("peak_memory_mib") for phase in self.record.cost] if self.record else []
        known = [float(peak) for peak in peaks if peak is not None]
        return max(known) if known else None


@dataclass
class _Section:
    protocol: Json
    columns: list[_Column]
    labels: list[str]
    rows: list[_Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What all rows of the table have in common, in words."""
        p = self.protocol
        batch = f", {p['batch_size']} at a time" if p["batch_size"] else ""
        limit = f"at most {p['limit']} documents a task" if p["limit"] else ""
        rows = f"{p['edits']} edit{'s' if p['edits'] != 1 else ''} of {p['edit_set']}"
        parts = [p["model"], rows, f"{p['mode']}{batch}", p["dtype"], f"data: {p['data']}", limit]
        return " · ".join(str(part) for part in parts if part)


def leaderboard(records: Sequence[Record], fmt: str = "md") -> str:
    """The leaderboard of records, in the format ``md``, ``csv``, ``latex`` or ``html``.

    Records that differ in their seed alone are one row, their mean.  Records that are not complete are left out and
    named.  Bold needs the per-document values of the records
    (``read_all(folder, values=True)``).

    Raises:
        UsageError: there is no such format.
    """
    writers: dict[str, Callable[[list[_Section], list[str]], str]] = {
        "md": _markdown,
        "csv": _csv,
        "latex": _latex,
        "html": _html,
    }
    if fmt not in writers:
        raise UsageError(f"format '{fmt}' does not exist{near(fmt, writers)}")
    whole = sorted((r for r in records if r.status == "complete"), key=lambda r: (record_name(r), r.id))
    left_out = sorted(f"{record_name(r)} is left out: {r.status}" for r in records if r.status != "complete")
    return writers[fmt](_sections(pool(whole)), left_out)


def _sections(records: Sequence[Record]) -> list[_Section]:
    groups: dict[str, list[tuple[Record, int]]] = {}
    for record in records:
        for point in record.points:
            if point["edits"]:
                groups.setdefault(json.dumps(_protocol(record, point["edits"])), []).append((record, point["edits"]))
    return [_section(json.loads(key), groups[key]) for key in sorted(groups, key=_order)]


def _order(key: str) -> tuple[Any, ...]:
    p = json.loads(key)
    return (p["model"], p["edit_set"], p["mode"], p["edits"], p["batch_size"] or 0, key)


def _protocol(record: Record, edits: int) -> Json:
    """What two records must share to stand in one table."""
    plan = record.plan
    return {
        "model": record.model.get("name", "model"),
        "edit_set": record.edits.get("dataset", "no edits"),
        "edits": edits,
        "mode": record.edits.get("mode") or plan.get("mode") or "",
        "batch_size": plan.get("batch_size"),
        "dtype": record.model.get("dtype", ""),
        "data": str(plan.get("data_dir") or "mini").rstrip("/").rsplit("/", 1)[-1],
        "limit": plan.get("limit"),
        "weights": record.model.get("sha256"),
        "ids": record.edits.get("sha256"),
    }


def _orders(section: _Section) -> list[str]:
    """How stable the order of the editors is over seeds, in words; nothing where fewer than two share two seeds."""
    groups: dict[tuple[int, ...], list[_Row]] = {}
    for row in section.rows:
        if row.record and row.record.plan.get("seeds"):
            groups.setdefault(tuple(row.record.plan["seeds"]), []).append(row)
    return [_order_over(seeds, rows, section) for seeds, rows in groups.items() if len(rows) > 1]


def _order_over(seeds: Sequence[int], rows: Sequence[_Row], section: _Section) -> str:
    found = []
    for j, (column, label) in enumerate(zip(section.columns, section.labels, strict=True)):
        known = {row.label.partition(" (")[0]: (row.cells[j].measure or {}).get("each") for row in rows}
        each: dict[str, list[float]] = {editor: values for editor, values in known.items() if values}
        if column.higher_is_better is not None and len(each) == len(rows):
            found.append((label.rstrip(" ↑↓"), stability(each, column.higher_is_better)))
    taus = ", ".join(f"{label} {MISSING if one.tau is None else f'{one.tau:.2f}'}" for label, one in found)
    steps = "; ".join(f"{a} ahead of {b} in {count}" for a, b, count in found[0][1].steps) if found else ""
    says = f" By {found[0][0]}, of {len(seeds)} seeds: {steps}." if found else ""
    return f"Order of {len(rows)} editors under seeds {', '.join(map(str, seeds))}, Kendall's tau: {taus}.{says}"


def _section(protocol: Json, members: Sequence[tuple[Record, int]]) -> _Section:
    columns = _columns(members)
    rows = [_Row(label, [], record, edits) for label, (record, edits) in zip(_names(members), members, strict=True)]
    for row in rows:
        row.cells = [_cell(row.record, row.edits, column) for column in columns]
    rows.sort(key=lambda row: _rank(row, columns))
    for j, column in enumerate(columns):
        _mark_best(rows, j, column)
    base = _Row(UNEDITED, [_unedited(members, column) for column in columns])
    return _Section(protocol, columns, _labels(columns), [base, *rows])


def _columns(members: Sequence[tuple[Record, int]]) -> list[_Column]:
    """Edit metrics first, then the headline of every other task, each in the order of first appearance."""
    exams: dict[tuple[str, str, str], _Column] = {}
    others: dict[tuple[str, str, str], _Column] = {}
    for record, edits in members:
        for task, measures in record.tasks(edits).items():
            exam = "efficacy" in measures
            shown = EDIT_METRICS if exam else (record.headlines.get(task, ""),)
            for metric in (m for m in shown if m in measures):
                key = (task, metric, _variant(record, task))
                column = _Column(*key, measures[metric].get("higher_is_better"))
                (exams if exam else others).setdefault(key, column)
    ordered = sorted(others.values(), key=lambda c: (c.task.lower(), c.metric, c.variant))
    return [*sorted(exams.values(), key=lambda c: (c.task, EDIT_METRICS.index(c.metric), c.variant)), *ordered]


def _variant(record: Record, task: str) -> str:
    """A hash of the documents and the prompts that a task, or the members of a group, were measured with."""
    prompts = {k: v for k, v in record.templates.items() if k == task or k.startswith(f"{task}_")}
    what = [(record.data.get(task) or {}).get("sha256"), prompts]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:6]


def _labels(columns: Sequence[_Column]) -> list[str]:
    """A heading for every column: the task, with the metric, and with the variant where there are several."""
    plain = [f"{c.task} {c.metric}" for c in columns]
    arrows = {True: " ↑", False: " ↓", None: ""}
    return [
        f"{text}{f' @{c.variant}' if plain.count(text) > 1 else ''}{arrows[c.higher_is_better]}"
        for c, text in zip(columns, plain, strict=True)
    ]


def _names(members: Sequence[tuple[Record, int]]) -> list[str]:
    """The editors with their number of seeds, told apart by seed or by record where the name alone does not."""
    names = [f"{record.editor.get('name', 'editor')}{_seeds(record, edits)}" for record, edits in members]
    seeded = [f"{n} (seed {r.seed})" for n, (r, _) in zip(names, members, strict=True)]
    unique = [f"{n} ({r.id[:8]})" for n, (r, _) in zip(names, members, strict=True)]
    best = [s if names.count(n) > 1 else n for n, s in zip(names, seeded, strict=True)]
    return [u if best.count(b) > 1 else b for b, u in zip(best, unique, strict=True)]


def _seeds(record: Record, edits: int) -> str:
    """How many runs a row is the mean of, and how far their headlines lie apart at most."""
    seeds = record.plan.get("seeds")
    if not seeds:
        return ""
    headlines = [
        m for t, table in record.tasks(edits).items() for k, m in table.items() if record.headlines.get(t) == k
    ]
    widest = max((m["deviation"] for m in headlines if m.get("deviation") is not None), default=None)
    return f" ({len(seeds)} seeds{'' if widest is None else f', sd at most {number(widest)}'})"


def _cell(record: Record | None, edits: int, column: _Column) -> _Cell:
    measures = record.tasks(edits).get(column.task, {}) if record else {}
    if record is None or column.metric not in measures or _variant(record, column.task) != column.variant:
        return _Cell(None, "not measured")
    measure = measures[column.metric]
    return _Cell(measure, None if measure["value"] is not None else str(measure["reason"] or "no value"))


def _unedited(members: Sequence[tuple[Record, int]], column: _Column) -> _Cell:
    cells = [_cell(record, 0, column) for record, _ in members]
    return next((cell for cell in cells if cell.measure is not None), _Cell(None, "not measured"))


def _rank(row: _Row, columns: Sequence[_Column]) -> tuple[float, str]:
    """By the first column (the score S, or the efficacy) where it has a better direction, then by name."""
    if not columns or columns[0].higher_is_better is None:
        return (0.0, row.label)
    value = _value(row.cells[0])
    sign = -1.0 if columns[0].higher_is_better else 1.0
    return (float("inf") if value is None else sign * value, row.label)


def _value(cell: _Cell) -> float | None:
    return None if cell.measure is None else cell.measure["value"]


def _mark_best(rows: Sequence[_Row], j: int, column: _Column) -> None:
    """Marks the best cell of a column where it is significantly better than the second best."""
    valued = [(v, row) for row in rows if (v := _value(row.cells[j])) is not None]
    if column.higher_is_better is None or len(valued) < 2:
        return
    ordered = sorted(valued, key=lambda pair: pair[0], reverse=column.higher_is_better)
    (top, best), (runner_up, second) = ordered[:2]
    if top == runner_up or best.record is None or second.record is None:
        return
    change = pair_difference((second.record, second.edits), (best.record, best.edits), column.task, column.metric)
    best.cells[j].best = change is not None and change.significant


def pair_difference(
    first: tuple[Record, int], second: tuple[Record, int], task: str, metric: str, seed: int = 0
) -> Difference | None:
    """Second minus first, paired by document; ``None`` where either has no values to pair.

    Args:
        first: a record, and the number of edits at which it is looked at.
        second: the same.
        task: the task.
        metric: one of its metrics, or a score derived from several.
        seed: of the bootstrap.
    """
    sides = [(record.values or {}).get(edits, {}).get(task, {}) for record, edits in (first, second)]
    parts = first[0].derived.get(task, {}).get(metric)
    needed = parts or [metric]
    if not all(part in side for side in sides for part in needed):
        return None
    if parts:
        return harmonic_difference([sides[0][p] for p in parts], [sides[1][p] for p in parts], seed)
    return difference(sides[0][metric], sides[1][metric], seed)


# --- notes ------------------------------------------------------------------------------------------------------------


class _Notes:
    """Numbered footnotes; the same reason has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> int:
        """The number of a footnote."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


LEGEND = (
    "Each cell: the value, and edited minus unedited on the same documents with its 95 % interval; "
    "the unedited row: the value with its own 95 % interval.",
    "Bold: significantly better than the second best of the column, paired by document.",
    "Tables are told apart by what makes numbers incomparable: the model, the edits, how they were made, how many.",
    "Several seeds: the mean over runs that differ in the seed alone; intervals are over documents under these seeds, "
    "sd is the standard deviation over the seeds, the largest of the row's headline metrics.",
    "Seconds and peak memory are those of the whole run, measuring included.",
)
VARIANTS = "@: columns of one task that were measured on other documents or with another prompt."


def _legend(sections: Sequence[_Section], left_out: Sequence[str]) -> list[str]:
    split = any(" @" in label for section in sections for label in section.labels)
    return [*LEGEND, *([VARIANTS] if split else []), *left_out]


def _change(cell: _Cell) -> tuple[str, str]:
    """The second line of a cell: a difference and its interval, or the interval of an unedited value."""
    measure: Mapping[str, Any] = cell.measure or {}
    change = measure.get("difference")
    if change is None:
        return "", brackets(measure.get("interval"))
    return (signed(change["value"]) if change["value"] is not None else ""), brackets(change["interval"], sign=True)


def _cost(row: _Row) -> list[str]:
    seconds, memory = row.seconds, row.memory
    return ["" if seconds is None else f"{seconds:.1f}", "" if memory is None else f"{memory:.0f}"]


COST = ("seconds", "peak MiB")


# --- Markdown ---------------------------------------------------------------------------------------------------------


def _markdown(sections: list[_Section], left_out: list[str]) -> str:
    lines = ["# Leaderboard", "", *(f"- {text}" for text in _legend(sections, left_out))]
    for section in sections:
        notes = _Notes()
        head = ["editor", *section.labels, *COST]
        lines += ["", f"## {_md(section.title)}", "", _md_row(_md(text).replace(" ", "<br>", 1) for text in head)]
        lines.append(_md_row([":--", *["--:"] * (len(head) - 1)]))
        for row in section.rows:
            lines.append(_md_row([_md(row.label), *(_md_cell(cell, notes) for cell in row.cells), *_cost(row)]))
        if notes.texts:
            lines += ["", "<br>".join(f"<sup>{i}</sup> {_md(text)}" for i, text in enumerate(notes.texts, start=1))]
        for text in _orders(section):
            lines += ["", _md(text)]
    return "\n".join(lines) + "\n"


def _md_row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    """The text, with what Markdown or a table would take for markup escaped."""
    return "".join(f"\\{c}" if c in "\\|*_`<" else c for c in text)


def _md_cell(cell: _Cell, notes: _Notes) -> str:
    if cell.reason is not None:
        return f"{MISSING}<sup>{notes.mark(cell.reason)}</sup>"
    value = number(_value(cell))
    second = " ".join(part for part in _change(cell) if part)
    return (f"**{value}**" if cell.best else value) + (f"<br>{second}" if second else "")


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(sections: list[_Section], left_out: list[str]) -> str:
    """One line a row of any table, what makes it comparable first; full precision, empty where there is nothing."""
    del left_out  # a comment line would break readers of CSV
    protocol = ["model", "edit_set", "edits", "mode", "batch_size", "dtype", "data", "limit"]
    columns = list(dict.fromkeys((c.task, c.metric, c.variant) for section in sections for c in section.columns))
    fields = ("", ".n", ".low", ".high", ".difference", ".difference_low", ".difference_high", ".p", ".best")
    heads = [column + field for column in _csv_names(columns) for field in fields]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*protocol, "editor", "seed", "record", *heads, "seconds", "mib"])
    for section in sections:
        keys = [(c.task, c.metric, c.variant) for c in section.columns]
        for row in section.rows:
            cells = dict(zip(keys, row.cells, strict=True))
            who = [row.label, row.record.seed if row.record else "", row.record.id if row.record else ""]
            numbers = [x for key in columns for x in _csv_cell(cells.get(key))]
            writer.writerow([*(section.protocol[p] for p in protocol), *who, *numbers, row.seconds, row.memory])
    return out.getvalue()


def _csv_names(columns: Sequence[tuple[str, str, str]]) -> list[str]:
    plain = [f"{task}.{metric}" for task, metric, _ in columns]
    return [f"{p}@{c[2]}" if plain.count(p) > 1 else p for p, c in zip(plain, columns, strict=True)]


def _csv_cell(cell: _Cell | None) -> list[Any]:
    if cell is None or cell.measure is None:
        return [None] * 9
    measure, change = cell.measure, cell.measure.get("difference") or {}
    own, paired = measure.get("interval") or [None, None], change.get("interval") or [None, None]
    return [measure["value"], measure["n"], *own, change.get("value"), *paired, change.get("p"), int(cell.best)]


# --- LaTeX ------------------------------------------------------------------------------------------------------------


def _latex(sections: list[_Section], left_out: list[str]) -> str:
    lines = ["% needs \\usepackage{booktabs,graphicx}", *(f"% {text}" for text in _legend(sections, left_out))]
    for section in sections:
        notes = _Notes()
        head = ["editor", *section.labels, *COST]
        body = [[_tex(row.label), *(_tex_cell(c, notes) for c in row.cells), *_cost(row)] for row in section.rows]
        lines += ["", "\\begin{table}", "\\centering\\small", f"\\caption{{{_tex(section.title)}}}"]
        lines += [f"\\resizebox{{\\textwidth}}{{!}}{{\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
        lines += [" & ".join(_tex_head(text) for text in head) + r" \\", "\\midrule"]
        lines += [" & ".join(cells) + r" \\" for cells in body]
        lines += ["\\bottomrule", "\\end{tabular}}"]
        lines += [rf"\par\footnotesize ${{}}^{{{i}}}$ {_tex(text)}" for i, text in enumerate(notes.texts, start=1)]
        lines += [rf"\par\footnotesize {_tex(text)}" for text in _orders(section)]
        lines += ["\\end{table}"]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    MISSING: "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _tex_head(text: str) -> str:
    """The task over the metric, so that columns stay narrow."""
    return _stack([_tex(word) for word in text.split(" ", 1)])


def _stack(lines: Sequence[str]) -> str:
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r" \\ ".join(lines) + "}"


def _tex_cell(cell: _Cell, notes: _Notes) -> str:
    if cell.reason is not None:
        return rf"--${{}}^{{{notes.mark(cell.reason)}}}$"
    value = rf"\textbf{{{number(_value(cell))}}}" if cell.best else f"${number(_value(cell))}$"
    second = [rf"\scriptsize ${part}$" for part in _change(cell) if part]
    return _stack([value, *second])


# --- HTML -------------------------------------------------------------------------------------------------------------

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#1c1e21;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2.2rem 0 .6rem}ul{color:#555;padding-left:1.2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e6ea}
th{cursor:pointer;border-bottom:2px solid #444;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
th[aria-sort=ascending]::after{content:" ▴"}th[aria-sort=descending]::after{content:" ▾"}
small{display:block;color:#667}tr.base{background:#f6f7f9}.worse small{color:#b3261e}.better small{color:#1b7f3b}
@media(prefers-color-scheme:dark){body{background:#16181b;color:#e8eaed}tr.base{background:#1f2226}
th,td{border-color:#33373d}small,ul{color:#9aa}.worse small{color:#f2827a}.better small{color:#6fd08c}}"""

_SCRIPT = """document.querySelectorAll("th").forEach(th=>th.addEventListener("click",()=>{
const table=th.closest("table"),body=table.tBodies[0],i=th.cellIndex,up=th.getAttribute("aria-sort")==="descending";
table.querySelectorAll("th").forEach(h=>h.removeAttribute("aria-sort"));
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>row.cells[i].dataset.v,rows=[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);
if(x===""||y==="")return(x==="")-(y==="");const d=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;return up?d:-d});
body.append(...rows)}))"""


def _html(sections: list[_Section], left_out: list[str]) -> str:
    lines = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title>']
    lines += ['<meta name="viewport" content="width=device-width">', f"<style>{_STYLE}</style>", "<h1>Leaderboard</h1>"]
    lines += ["<ul>", *(f"<li>{html.escape(text)}</li>" for text in _legend(sections, left_out)), "</ul>"]
    for section in sections:
        notes = _Notes()
        head = "".join(f"<th>{_html_head(text)}</th>" for text in ["editor", *section.labels, *COST])
        lines += [
            f"<h2>{html.escape(section.title)}</h2>",
            '<div class="scroll"><table>',
            f"<thead><tr>{head}</tr></thead>",
        ]
        lines += [
            "<tbody>",
            *(_html_row(row, section.columns, notes) for row in section.rows),
            "</tbody></table></div>",
        ]
        lines += [f"<small>{i} {html.escape(text)}</small>" for i, text in enumerate(notes.texts, start=1)]
        lines += [f"<small>{html.escape(text)}</small>" for text in _orders(section)]
    return "\n".join([*lines, f"<script>{_SCRIPT}</script></html>"]) + "\n"


def _html_head(text: str) -> str:
    return "<br>".join(html.escape(word) for word in text.split(" ", 1))


def _html_row(row: _Row, columns: Sequence[_Column], notes: _Notes) -> str:
    first = f'<td data-v="{html.escape(row.label)}">{html.escape(row.label)}</td>'
    cells = [_html_cell(cell, column, notes) for cell, column in zip(row.cells, columns, strict=True)]
    costs = [f'<td data-v="{text}">{text}</td>' for text in _cost(row)]
    opening = '<tr class="base">' if row.record is None else "<tr>"
    return opening + "".join([first, *cells, *costs]) + "</tr>"


def _html_cell(cell: _Cell, column: _Column, notes: _Notes) -> str:
    if cell.reason is not None:
        return f'<td data-v="">{MISSING}<sup>{notes.mark(cell.reason)}</sup></td>'
    value = number(_value(cell))
    shown = f"<b>{value}</b>" if cell.best else value
    second = " ".join(part for part in _change(cell) if part)
    small = f"<small>{second}</small>" if second else ""
    return f'<td data-v="{_value(cell)}"{_html_class(cell, column)}>{shown}{small}</td>'


def _html_class(cell: _Cell, column: _Column) -> str:
    """Whether the difference from unedited is significant, and which way."""
    change = (cell.measure or {}).get("difference") or {}
    limits = change.get("interval")
    if column.higher_is_better is None or limits is None or change["p"] >= 0.05 or limits[0] <= 0 <= limits[1]:
        return ""
    return ' class="better"' if (change["value"] > 0) == column.higher_is_better else ' class="worse"'
