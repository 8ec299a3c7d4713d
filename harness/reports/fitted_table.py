"""A table in a terminal of any width: names are folded, then cells are broken at spaces; a number is never cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

__all__ = ["FittedTable"]

_NAME = 12  # columns that a name keeps before cells of numbers are broken
_ENDLESS = 10_000


class FittedTable(Table):
    """A table of which every digit is shown.

    As wide as it is where that fits.  Otherwise its columns of names are folded, then the others are broken at spaces;
    where that is still too wide, each row becomes lines, one for each cell.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, as wide as there is room."""
        texts = [list(self._texts(console, column)) for column in self.columns]
        widths = [max(map(_width, column), default=0) for column in texts]
        endless = options.update(width=_ENDLESS)
        frame = super().__rich_measure__(console, endless).maximum - sum(max(1, width) for width in widths)
        fitted = self._fitted(texts, widths, options.max_width - frame)
        if fitted is None:
            yield from self._lines(texts)
            return
        for column, width, natural in zip(self.columns, fitted, widths, strict=True):
            column.width = None if width == natural else width
            column.no_wrap, column.overflow = width == natural, "fold"
        yield from super().__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """What it takes at most; a table in lines takes what there is."""
        return Measurement(min(40, options.max_width), options.max_width)

    def _texts(self, console: Console, column: Column) -> Iterator[Text]:
        """The head and the cells of a column."""
        for cell in (column.header, *column.cells):
            yield cell if isinstance(cell, Text) else console.render_str(str(cell))

    def _fitted(self, texts: Sequence[Sequence[Text]], widths: Sequence[int], room: int) -> list[int] | None:
        """The width of each column so that all of them fit; None where none is narrow enough."""
        names = [column.overflow == "fold" for column in self.columns]
        least = [
            min(width, _NAME) if named else max(map(_longest_word, column), default=0)
            for column, width, named in zip(texts, widths, names, strict=True)
        ]
        fitted = list(widths)
        for kind in (True, False):
            places = [i for i, named in enumerate(names) if named is kind]
            while sum(fitted) > room and any(fitted[i] > least[i] for i in places):
                widest = max((i for i in places if fitted[i] > least[i]), key=lambda i: fitted[i])
                fitted[widest] -= 1
        return fitted if sum(fitted) <= room else None

    def _lines(self, texts: Sequence[Sequence[Text]]) -> Iterator[Padding | Table | Text]:
        """Each row as its name and a line for each cell."""
        heads = [column[0] for column in texts]
        for row in zip(*(column[1:] for column in texts), strict=True):
            yield row[0]
            cells = [(head, cell) for head, cell in zip(heads[1:], row[1:], strict=True) if cell.plain.strip()]
            if cells:
                grid = Table.grid(padding=(0, 2, 0, 0))
                grid.add_column(no_wrap=True, style="dim")
                grid.add_column(overflow="fold")
                for head, cell in cells:
                    grid.add_row(head, cell)
                yield Padding(grid, (0, 0, 0, 4))


def _width(text: Text) -> int:
    return max((line.cell_len for line in text.split()), default=0)


def _longest_word(text: Text) -> int:
    return max((Text(word).cell_len for word in text.plain.split()), default=0)
