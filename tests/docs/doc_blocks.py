"""Blocks of code in documents: found, told apart by what stands behind their language, and run.

```` ```python ````               is executed; the blocks of a page share their names
```` ```bash ````                 every line is a command of ``harness``, run in the same folder
```` ```bash clone ````           the same in a copy of the repository with the page's files in it
```` ```text ````                 behind such a block: what it prints, numbers within a tolerance
```` ```yaml title="a.yaml" ````  a file that the page writes; also json, toml and python
```` ```bash skip: REASON ````    is not run
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w+)([^\n`]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
MARKS = ("<!-- run -->\n", "<!-- tests -->\n")  # what .ci/run looks for in the README
TOLERANCE = 0.03


@dataclass(frozen=True)
class Block:
    """One block: its page and line, its language, what stands behind that, and its text."""

    page: str
    line: int
    language: str
    info: str
    text: str

    @property
    def skip(self) -> str | None:
        """Why it is not run; None where it is."""
        found = re.match(r"skip\b:?\s*(.*)", self.info)
        return found[1] if found else None

    @property
    def title(self) -> str | None:
        """The file that it is."""
        found = re.search(r'title="([^"]+)"', self.info)
        return found[1] if found else None

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of a document, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        above = text[: match.start()]
        info = "skip: CI runs it in a clean environment" if above.endswith(MARKS) else match[3].strip()
        found.append(Block(page, above.count("\n") + 1, match[2], info, textwrap.dedent(match[4])))
    return found


def commands(block: Block) -> Iterator[str]:
    """The commands of a block, comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s)#.*$", "", line).strip()
        if command:
            yield command


def parse(block: Block) -> Any:
    """What a file of data holds; raises what its parser raises."""
    if block.language == "yaml":
        return yaml.compose(block.text)  # tags such as !function stay as they are
    if block.language == "json":
        return [json.loads(line) for line in block.text.splitlines()]
    return None


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: the same words, and numbers within the tolerance."""
    (words, numbers), (said, found) = _parts(shown), _parts(printed)
    near = len(numbers) == len(found) and all(abs(a - b) <= TOLERANCE for a, b in zip(numbers, found, strict=True))
    return words == said and near


def _parts(text: str) -> tuple[list[str], list[float]]:
    """The words of a text, and its numbers."""
    numbers = [float(found) for found in NUMBER.findall(text)]
    return NUMBER.sub("#", text).split(), numbers
