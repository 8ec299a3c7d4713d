"""Pages in LaTeX: a floating table each, ruled by booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from harness.reports.registry import Format
from harness.reports.table import AT_CHANCE, MISSING, Footnotes, Page, Table, TableCell, TableRow, caption

__all__ = ["Latex"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be the argument of the line break before it
    "²": "$^2$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    AT_CHANCE: r"$^{\dagger}$",
    MISSING: "--",
}
_NUMBERS = re.compile(r"[-+\d\[(.][-+\d\[\]()/., ±]*")
"""What is set as mathematics, so that a minus is no hyphen."""
_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}"


class Latex(Format):
    """LaTeX tables; they need booktabs and graphicx."""

    name: ClassVar[str] = "latex"
    ending: ClassVar[str] = ".tex"

    def write(self, pages: Sequence[Page]) -> str:
        """The tables of all pages; what stands around them are comments."""
        return "\n".join("\n".join(_lines(page)) + "\n" for page in pages)


def _lines(page: Page) -> Iterator[str]:
    yield "% needs \\usepackage{booktabs,graphicx}"
    yield from _comments([*page.introduction, *page.notes])
    for section in page.sections:
        for table in section.tables:
            yield ""
            yield from _table(table, caption(section, table))


def _comments(texts: Iterable[str]) -> Iterator[str]:
    return (f"% {line}" for text in texts for line in text.splitlines())


def _table(table: Table, title: str) -> Iterator[str]:
    notes = Footnotes()
    layout = "".join("l" if column.left else "r" for column in table.columns)
    yield from ("\\begin{table}", "\\centering\\small", f"\\caption{{{_escape(title)}}}")
    yield from (f"{_FIT}{{\\begin{{tabular}}{{{layout}}}", "\\toprule")
    yield " & ".join(_stack([_escape(line) for line in column.lines]) for column in table.columns) + r" \\"
    yield "\\midrule"
    for row in table.rows:
        yield from _row(row, notes)
    yield from ("\\bottomrule", "\\end{tabular}}")
    yield from (rf"\par\footnotesize ${{}}^{{{i}}}$ {_escape(text)}" for i, text in enumerate(notes.texts, start=1))
    yield from (rf"\par\footnotesize {_escape(text)}" for text in table.notes)
    yield "\\end{table}"


def _row(row: TableRow, notes: Footnotes) -> Iterator[str]:
    if row.kind == "total":
        yield "\\midrule"
    yield " & ".join(_cell(cell, notes) for cell in row.cells) + r" \\"


def _cell(cell: TableCell, notes: Footnotes) -> str:
    if cell.note is not None:
        return rf"{_escape(cell.text)}${{}}^{{{notes.mark(cell.note)}}}$"
    text = rf"\textbf{{{_escape(cell.text)}}}" if cell.best else _set(cell.text)
    return _stack([text + _escape(cell.mark), *(rf"\scriptsize {_set(part)}" for part in cell.below)])


def _stack(lines: Sequence[str]) -> str:
    """Lines above one another, so that columns stay narrow."""
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r" \\ ".join(lines) + "}"


def _set(text: str) -> str:
    """Numbers as mathematics, words as they are."""
    return f"${text.replace('±', chr(92) + 'pm')}$" if _NUMBERS.fullmatch(text) else _escape(text)


def _escape(text: str) -> str:
    """The text on one line, with what LaTeX would take for commands escaped."""
    return "".join(_SPECIAL.get(c, c) for c in " ".join(text.splitlines()))
