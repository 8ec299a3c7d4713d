"""The site builds without a warning, says all that is public, and its generated parts are up to date."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest
from doc_blocks import ROOT, blocks

import harness
from harness import editor_kit, task_kit
from harness.editing.registry import editor_names

sys.path.insert(0, str(ROOT / "scripts"))

import make_picture

MINUTES = 10  # a machine that does much else besides takes five


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the builder fails the test (and with --quiet none would be counted)."""
    folder = tmp_path_factory.mktemp("site")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    called = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(called, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60 * MINUTES)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_merge_was_left_half_done() -> None:
    kinds = ("*.md", "*.yml", "*.toml", "docs/**/*.md", "tasks/**/*.md", "tasks/**/*.yaml", "results/**/*.md")
    texts = {path: path.read_text(encoding="utf-8") for kind in kinds for path in ROOT.glob(kind)}
    assert ROOT / "mkdocs.yml" in texts
    assert [path for path, text in texts.items() if re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE)] == []


def public(found: griffe.Module) -> Iterator[griffe.Object]:
    """The public functions and classes of a package, and the methods of these classes."""
    for name, member in found.members.items():
        if member.is_alias or not member.is_public or name.startswith("_"):
            continue
        if isinstance(member, griffe.Module):
            yield from public(member)
        elif isinstance(member, griffe.Function | griffe.Class):
            yield member
        if isinstance(member, griffe.Class):
            yield from (one for one in member.functions.values() if one.is_public and not one.name.startswith("_"))


@pytest.fixture(scope="session")
def package() -> griffe.Module:
    """The package as the reference reads it."""
    found = griffe.load("harness", search_paths=[ROOT], submodules=True)
    assert isinstance(found, griffe.Module)
    return found


def test_every_public_name_is_explained(package: griffe.Module) -> None:
    found = list(public(package))
    assert len(found) > 400
    # A method that a child defines anew is explained where it was first defined.
    explained = {one.name for one in found if one.has_docstring}
    bare = [one.path for one in found if not one.has_docstring]
    assert [path for path in bare if path.rsplit(".", 1)[1] not in explained] == []


@pytest.mark.parametrize("name", harness.__all__)
def test_the_front_door_is_on_its_page(name: str, site: Path) -> None:
    assert f'id="harness.api.{name}"' in (site / "reference/harness.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("door", [editor_kit, task_kit], ids=lambda door: door.__name__)
def test_every_name_of_a_door_is_linked_to_its_explanation(door: object, site: Path) -> None:
    page = (site / f"reference/{door.__name__.split('.')[1]}.html").read_text(encoding="utf-8")  # type: ignore[attr-defined]
    for name in door.__all__:  # type: ignore[attr-defined]
        linked = re.search(rf'href="([a-z]+\.html)#([\w.]+)"[^>]*><code>{name}</code>', page)
        assert linked, name
        target = (site / "reference" / linked[1]).read_text(encoding="utf-8")
        assert f'id="{linked[2]}"' in target, name


def test_every_page_is_in_the_navigation_or_linked(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    linked = {"index.html", "404.html"}
    for name, text in pages.items():
        for link in re.findall(r'href="([^"#:]+\.html)', text):
            linked.add(os.path.normpath(os.path.join(os.path.dirname(name), link)))  # noqa: PTH118, PTH120
    assert set(pages) - linked == set()
    assert len(pages) > 60


def test_the_site_fetches_nothing(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?://', text), path


def test_the_picture_of_the_rooms_is_that_of_the_imports() -> None:
    drawn = make_picture.svg(make_picture.reduced(make_picture.imports()))
    assert make_picture.PICTURE.read_text(encoding="utf-8") == drawn, "run python scripts/make_picture.py"


def test_a_new_arrow_changes_the_picture() -> None:
    graph = make_picture.reduced(make_picture.imports())
    graph["exam"] = graph["exam"] | {"methods"}
    assert make_picture.svg(graph) != make_picture.PICTURE.read_text(encoding="utf-8")


def test_the_table_of_the_readme_is_that_of_the_committed_record() -> None:
    (path,) = [
        path
        for path in (ROOT / "results/records").glob("mini--memit--counterfact-50--batch--*.json")
        if json.loads(path.read_text(encoding="utf-8"))["seed"] == 0
    ]
    tasks = json.loads(path.read_text(encoding="utf-8"))["points"][-1]["tasks"]
    (table,) = [block.text for block in blocks("README.md") if block.language == "text"]
    rows = re.findall(r"^ (?:  (\w+)|(\w+) (\w+)) +\d+ +([\d.]+) +([\d.]+) +([-+\d.]+)", table, re.MULTILINE)
    assert len(rows) == 11
    for inner, task, metric, unedited, edited, change in rows:
        numbers = tasks[task or "counterfact"][metric or inner]
        value, difference = numbers["value"], numbers["difference"]["value"]
        assert f"{value:.3f}" == edited, (task, metric or inner)
        assert float(f"{difference:.3f}") == float(change)
        assert abs(value - difference - float(unedited)) < 1e-3


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == harness.__version__  # type: ignore[index]
    assert re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)[:2] == ["Unreleased", harness.__version__]
    assert not re.search(r"^(<<<<<<<|>>>>>>>|=======)", changes, re.MULTILINE)


def test_the_readme_counts_the_editors_without_the_two_that_no_board_shows_and_none() -> None:
    found = re.search(r"any of (\d+) editors", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    assert int(found[1]) == len(set(editor_names()) - {"none", "oracle", "sabotage"})


def test_no_change_is_told_twice() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.split(r"^## ", changes, flags=re.MULTILINE)[1]
    heads = re.findall(r"^#{3,4} .*$", unreleased, re.MULTILINE)
    first = [line[:25] for line in re.findall(r"^\* .*$", unreleased, re.MULTILINE)]
    assert len(first) > 50
    assert [text for text in (*heads, *first) if (*heads, *first).count(text) > 1] == []
