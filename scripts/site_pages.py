"""Pages of the site that are made from files elsewhere in the repository: results, cards, notebooks, reference.

mkdocs calls the functions named ``on_...`` (``hooks`` in mkdocs.yml).  A file outside ``docs/`` keeps its place in the
repository as its place on the site, so that a link between two files works in both.
"""

from __future__ import annotations

import ast
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import click
import griffe
from editor_pages import editor_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from harness.editing.registry import editor_names

ROOT = Path(__file__).resolve().parents[1]
MIRRORED = (
    "results/**/*.md",
    "results/**/*.png",
    "tasks/**/README.md",
    "editors/README.md",
    "harness/mini/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)")
EDITOR = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
FENCE = re.compile(r"^( *```\w+) (?:skip|clone).*$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in ``docs/``."""
    for pattern in MIRRORED:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    pages = {room: room_page(room) for room in rooms()} | {door: door_page(door) for door in ("editor_kit", "task_kit")}
    for name, content in {**pages, "harness": api_page(), "commands": command_page()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for editor in editor_names():
        files.append(File.generated(config, f"editors/{editor}.md", content=editor_page(editor)))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """A link to another file of the repository becomes a link to its page, or its bare text where it has none.

    What the tests read behind the language of a block of code is left out.
    """
    here = page.file.src_uri
    if here == "editors/README.md":
        markdown = EDITOR.sub(r"| [`\1`](\1.md) |", markdown)
    source = here if (ROOT / here).is_file() else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        if "://" in link or link.startswith(("mailto:", "data:")):
            return found[0]
        target = repository_path(link, source)
        uri = target.removeprefix("docs/")
        if files.get_file_from_path(uri) is None and (ROOT / target).exists():
            return text
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(moved, FENCE.sub(r"\1", markdown))


def on_page_content(html: str, **_: object) -> str:
    """The roles of Sphinx that docstrings use (``:class:`Edit` ``) are shown as plain code."""
    return ROLE.sub("", html)


def repository_path(link: str, source: str) -> str:
    """What a link in the file `source` leads to, from the root of the repository; a folder's page is its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return f"{target}/README.md" if (ROOT / target / "README.md").is_file() else target


def rooms() -> list[str]:
    """The folders and files of ``harness/`` that have a page in the reference."""
    folders = [path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")]
    return sorted({*folders, "errors"} - {"cli"})


def api_page() -> str:
    """The reference page of what ``import harness`` offers."""
    return "\n".join(
        [
            "# harness",
            "",
            _first(ROOT / "harness/__init__.py"),
            "",
            "::: harness.api",
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
            "      heading_level: 2",
            "",
        ]
    )


def door_page(door: str) -> str:
    """The reference page of a door: each name that it hands on, what it is, and where it is explained."""
    tree = ast.parse((ROOT / f"harness/{door}.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    places = {alias.name: f"{node.module}.{alias.name}" for node in found for alias in node.names}
    package = griffe.load("harness", search_paths=[ROOT], submodules=True)
    rows = [f"| [`{name}`][{places[name]}] | {_summary(package, places[name])} |" for name in exported(tree)]
    head = [f"# harness.{door}", "", ast.get_docstring(tree) or "", "", "| name | what it is |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


def _summary(package: griffe.Object | griffe.Alias, name: str) -> str:
    """The first line of the docstring of something in the package, by its full name."""
    found = package[name.removeprefix("harness.")].docstring
    text = found.value.split("\n\n")[0].replace("\n", " ") if found else ""
    return _cell_text(re.sub(r":[a-z]+:(?=`)", "", text))


def exported(tree: ast.Module) -> list[str]:
    """The names in the ``__all__`` of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _first(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def room_page(room: str) -> str:
    """The reference page of a room: its docstring, and what each of its modules offers."""
    first, *others = modules(room)
    title = f"::: {first}\n    options:\n      heading_level: 1\n      show_symbol_type_heading: false\n"
    return "\n".join([title, *(f"::: {module}\n" for module in others)])


def command_page() -> str:
    """The reference page of the command line, from click's own description of it."""
    from harness.cli.group import harness

    return "\n\n".join(["# Commands", *_command(harness, click.Context(harness, info_name="harness"), 2), ""])


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """A command, its options as a table, and the commands below it."""
    yield f"{'#' * level} {context.command_path}"
    yield _paragraphs(command.help or "")
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```"
    records = [found for one in command.params if (found := one.get_help_record(context)) and found[1]]
    if records:
        rows = [f"| `{names}` | {_cell_text(text)} |" for names, text in records]
        yield "\n".join(["| option | what it says |", "|---|---|", *rows])
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _command(below, click.Context(below, info_name=name, parent=context), level + 1)


def _paragraphs(text: str) -> str:
    """The help of a command; click keeps the lines of a paragraph that begins with a backspace."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"```text\n{p[2:]}\n```" if p.startswith("\b\n") else escape(p) for p in paragraphs)


def _cell_text(text: str) -> str:
    return escape(text).replace("|", "\\|")


def modules(room: str) -> Iterator[str]:
    """The modules of a room by their full names, the room itself first."""
    if (ROOT / "harness" / f"{room}.py").is_file():
        yield f"harness.{room}"
        return
    folder = ROOT / "harness" / room
    for path in sorted([folder, *folder.rglob("[!_]*.py"), *(p.parent for p in folder.glob("*/__init__.py"))]):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that stand in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})", ""])


def _cell(cell: dict[str, object]) -> Iterator[str]:
    source = "".join(cell["source"])  # type: ignore[arg-type]
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:  # type: ignore[attr-defined]
        data = output.get("data", {})
        if "text/html" in data:
            yield re.sub(r"<table [^>]*>", "<table>", "".join(data["text/html"]))
        elif "image/png" in data:
            yield f"![figure](data:image/png;base64,{''.join(data['image/png'])})"
        else:
            yield "```text\n" + "".join(data.get("text/plain", output.get("text", ""))).rstrip() + "\n```"
