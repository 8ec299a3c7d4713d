"""What is known of a task besides its numbers: its card, the definitions of its metrics, its first rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness.exam import data

__all__ = ["Card", "card_of", "markdown_html"]

_PLAIN = re.compile(r"\w[\w.-]*")
_BRACKETS = r"\s*(?:\([^)]*\))?"
_LONGEST = 300
_ROWS = 3

Cells = list[str]


@dataclass(frozen=True)
class Card:
    """What ships beside a task.

    Attributes:
        text: its card, in Markdown; empty where it has none.
        rows: its first shipped rows, as JSON.
        licence: of its rows.
        citation: of its rows.
    """

    text: str = ""
    rows: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""

    def definition(self, metric: str) -> str:
        """What the card says that a metric is; empty where it says nothing."""
        name = metric.partition(",")[0]
        found = next((said for said in (_in_tables(self.text, name), _in_prose(self.text, name)) if said), "")
        found = found.replace("`", "")
        found = found if found.count("(") <= found.count(")") else found.rpartition("(")[0].strip()
        return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 1]}…"


@lru_cache(maxsize=512)
def card_of(task: str) -> Card:
    """The card of a task that ships; an empty one of any other."""
    paths = sorted(data.TASKS.rglob(f"{task}.yaml")) if _PLAIN.fullmatch(task) else []
    if not paths:
        return Card()
    folder, readme = paths[0].parent, paths[0].parent / "README.md"
    found = data.dataset_of(paths[0])
    return Card(
        readme.read_text(encoding="utf-8") if readme.is_file() else "",
        tuple(_first_rows(folder / "mini.jsonl")),
        found.licence if found else "",
        found.citation if found else "",
    )


def markdown_html(text: str) -> str:
    """Markdown as HTML; tags in it stay text, and links that run code are none."""
    return str(_reader().render(text))


def _reader() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _first_rows(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in islice(file, _ROWS):
                yield json.dumps(json.loads(line), indent=1, ensure_ascii=False)


@lru_cache(maxsize=64)
def _tables(text: str) -> tuple[Cells, ...]:
    """The rows of all tables, as the Markdown of their cells."""
    rows: list[Cells] = []
    inside = False
    for token in _reader().parse(text):
        if token.type == "tr_open":
            rows.append([])
        inside = inside or token.type in ("td_open", "th_open")
        if token.type == "inline" and inside:
            rows[-1].append(_plain(token))
        inside = inside and token.type not in ("td_close", "th_close")
    return tuple(rows)


def _plain(token: Token) -> str:
    return "".join(f"`{c.content}`" if c.type == "code_inline" else c.content or " " for c in token.children or [])


def _in_tables(text: str, name: str) -> str:
    for cells in _tables(text):
        for place, cell in enumerate(cells):
            if f"`{name}`" not in cell:
                continue
            rest = re.sub(r"^[\s:]*\((\w+)\):?\s*", r"\1: ", cell.partition(f"`{name}`")[2]).strip(" :")
            said = cells[place + 1] if place == 0 and len(cells) > 1 else rest and f"{cells[0]}, {rest}"
            if said:
                return said.strip()
    return ""


def _in_prose(text: str, name: str) -> str:
    """From the name to the end of its sentence."""
    flat = " ".join(line for line in text.splitlines() if not line.startswith("|"))
    others = rf"{_BRACKETS}(?:,\s*`\w+`{_BRACKETS})*\s*:?\s*"
    found = re.search(rf"`{re.escape(name)}`{others}(.*?)(?:[.;](?:\s|$)|$)", flat)
    return found[1].strip() if found else ""
