"""Pages in HTML: one file that fetches nothing, with tables that sort on a click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import ClassVar

from harness.reports.registry import Format
from harness.reports.table import Footnotes, Page, Table, TableCell, TableRow

__all__ = ["HtmlPage"]

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


class HtmlPage(Format):
    """One page of HTML that fetches nothing; a click on a head sorts its table."""

    name: ClassVar[str] = "html"
    ending: ClassVar[str] = ".html"

    def write(self, pages: Sequence[Page]) -> str:
        """The pages, one below the other, in one document."""
        title = escape(", ".join(page.title for page in pages))
        head = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>']
        head += ['<meta name="viewport" content="width=device-width">', f"<style>{_STYLE}</style>"]
        body = [line for page in pages for line in _lines(page)]
        return "\n".join([*head, *body, f"<script>{_SCRIPT}</script></html>"]) + "\n"


def _lines(page: Page) -> Iterator[str]:
    yield f"<h1>{escape(page.title)}</h1>"
    if page.introduction:
        yield from ("<ul>", *(f"<li>{escape(text)}</li>" for text in page.introduction), "</ul>")
    for section in page.sections:
        yield f"<h2>{escape(section.title)}</h2>"
        for table in section.tables:
            if table.title:
                yield f"<h3>{escape(table.title)}</h3>"
            yield from _table(table)
    yield from (f"<p>{escape(text)}</p>" for text in page.notes)


def _table(table: Table) -> Iterator[str]:
    notes = Footnotes()
    head = "".join(f"<th>{'<br>'.join(map(escape, column.lines))}</th>" for column in table.columns)
    yield from ('<div class="scroll"><table>', f"<thead><tr>{head}</tr></thead>", "<tbody>")
    yield from (_row(row, notes) for row in table.rows)
    yield "</tbody></table></div>"
    yield from (f"<small>{i} {escape(text)}</small>" for i, text in enumerate(notes.texts, start=1))
    yield from (f"<small>{escape(text)}</small>" for text in table.notes)


def _row(row: TableRow, notes: Footnotes) -> str:
    opening = "<tr>" if row.kind == "plain" else f'<tr class="{row.kind}">'
    return opening + "".join(_cell(cell, notes) for cell in row.cells) + "</tr>"


def _cell(cell: TableCell, notes: Footnotes) -> str:
    if cell.note is not None:
        return f'<td data-v="">{escape(cell.text)}<sup>{notes.mark(cell.note)}</sup></td>'
    text = escape(cell.text)
    sort = text if cell.value is None else cell.value
    verdict = "" if cell.verdict is None else f' class="{cell.verdict}"'
    small = f"<small>{escape(' '.join(cell.below))}</small>" if cell.below else ""
    shown = (f"<b>{text}</b>" if cell.best else text) + escape(cell.mark)
    return f'<td data-v="{sort}"{verdict}>{shown}{small}</td>'
