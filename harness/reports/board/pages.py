"""Templates to files: what is written into the folder of a site."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.reports.board.cards import markdown_html
from harness.reports.board.index import RecordSource
from harness.reports.board.record_view import RecordView
from harness.reports.board.sample_view import samples_view

__all__ = ["Pages", "script_of"]

STATIC = ("board.css", "common.js", "overview.js", "compare.js")


def script_of(kind: str, key: str, content: object) -> str:
    """Data as a script, which a page that was opened from a file may load where it may not fetch JSON.

    Args:
        kind: what it is.
        key: its name.
        content: plain data.
    """
    said = ",".join(json.dumps(one, separators=(",", ":"), allow_nan=False) for one in (kind, key, content))
    return f"board.put({said});\n"


class Pages:
    """Writes the pages of a site; all that comes from records is escaped.

    Attributes:
        folder: of the site.
        written: the files, in the order in which they were written.
    """

    def __init__(self, folder: Path) -> None:
        """Pages in a folder, which is made."""
        self.folder = folder
        self.written: list[str] = []
        for name in ("", "data", "records", "editors", "tasks", "files"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write one file."""
        self.written.append(name)
        (self.folder / name).write_text(text, encoding="utf-8")

    def keep(self, names: Sequence[str], old: Path) -> None:
        """Take files from an earlier site as they are.

        Args:
            names: the files.
            old: the folder of that site.
        """
        for name in names:
            self.written.append(name)
            try:
                os.link(old / name, self.folder / name)
            except OSError:  # a file system without links
                shutil.copyfile(old / name, self.folder / name)

    def page(self, name: str, template: str, /, **context: object) -> None:
        """Write the page of a template.

        Args:
            name: its file.
            template: the name of the template, without its ending.
            context: what the template shows.
        """
        root = "../" * name.count("/")
        self.write(name, _templates().get_template(f"{template}.html").render(root=root, page=template, **context))

    def record(self, view: RecordView, source: RecordSource) -> None:
        """Write the page of a record, and copy what lies beside it and is offered.

        Args:
            view: what it shows.
            source: the record on disk.
        """
        patches = [(one.name, one.stat().st_size) for one in source.patches]
        for one in source.patches:
            self.written.append(f"files/{one.name}")
            shutil.copyfile(one, self.folder / "files" / one.name)
        samples = samples_view(source.path)
        self.page(f"records/{view.name}.html", "record", record=view, patches=patches, samples=samples)

    def static(self) -> None:
        """Write the style and the scripts."""
        folder = files("harness.reports.board") / "static"
        for name in STATIC:
            self.write(name, (folder / name).read_text(encoding="utf-8"))

    def index(
        self, sections: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], **more: object
    ) -> None:
        """Write the overview and the page of comparisons.

        Args:
            sections: the heads of all tables.
            records: a line for each record.
            more: what else the overview shows.
        """
        self.write("data/index.js", script_of("index", "sections", list(sections)))
        self.write("data/records.js", script_of("index", "records", list(records)))
        self.page("index.html", "overview", sections=sections, records=records, **more)
        self.page("compare.html", "compare")


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """What knows the templates; each is compiled once, for the pages of all families."""
    found = Environment(
        loader=PackageLoader("harness.reports.board"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["markdown"] = markdown_html
    return found
