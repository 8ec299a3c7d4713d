"""The site in a real browser: Debian's Chromium, driven by Playwright, with axe-core's checks of accessibility."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from synthetic import record, write
from test_board import PUBLISHED, believing

from harness.reports.board.site import write_board
from harness.reports.table import MISSING

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lm-edit-harness[browser]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`${1}"
WIDTHS, THEMES = (1400, 400), ("light", "dark")

pytestmark = pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"needs Chromium at {CHROMIUM}; set CHROMIUM")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    for editor, skill in (("memit", 0.95), ("rome", 0.8), ("ft", 0.4), (HOSTILE, 0.6)):
        write(folder / "runs", record(editor, skill))
    for seed in (0, 1):
        write(folder / "runs", record("lora", 0.7, seed=seed))
    write(folder / "runs", record("rome", 0.8, mode="isolated"))
    write(folder / "runs", believing())
    (folder / "values.csv").write_text(PUBLISHED)
    write_board([folder / "runs"], folder / "site", published=folder / "values.csv")
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may say nothing on the console, open no dialog and fetch nothing but files."""
    yield from opened(browser, 1400, "light")


def opened(browser: Browser, width: int, theme: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, offline=True)
    context.set_default_timeout(120_000)  # of a machine that does much else
    made, said = context.new_page(), []
    made.on("console", lambda message: said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    made.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    yield made
    context.close()
    assert said == []


def visit(page: Page, site: Path, name: str = "index.html", address: str = "") -> None:
    page.goto(f"{(site / name).as_uri()}{address}")


def board(page: Page, site: Path, address: str = "") -> None:
    """The overview of the table that most records stand in."""
    slug = next(path.name.removesuffix(".0.js") for path in (site / "data").glob("*batch*.0.js"))
    visit(page, site, address=f"#s={quote(slug)}{address}")
    page.wait_for_selector("#rows tbody tr.base")


def editors(page: Page) -> list[str]:
    return page.locator("#rows tbody th[scope=row]").all_inner_texts()


def said_by(script: str) -> list[Any]:
    """What a script of data brings: its kind, its name, its content."""
    found: list[Any] = json.loads(f"[{script[len('board.put(') : -3]}]")
    return found


def pages_of(site: Path) -> dict[str, str]:
    names = sorted(path.stem for path in (site / "records").glob("*--batch--*"))
    return {
        "overview": "index.html",
        "record": f"records/{names[0]}.html",
        "compare": f"compare.html#a={names[0]}&b={names[1]}",
        "editor": "editors/memit.html",
        "task": "tasks/NER.html",
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_every_page_is_accessible_and_fits(browser: Browser, site: Path, width: int, theme: str) -> None:
    for made in opened(browser, width, theme):
        for name, where in pages_of(site).items():
            made.goto(f"{site.as_uri()}/{where}")
            made.wait_for_selector("#rows tbody tr" if name == "overview" else "table.plain, .card, .list")
            for fold in made.locator("details.fold").all():
                fold.evaluate("one => { one.open = true; }")
            made.wait_for_timeout(100)
            # What axe-core preloads for rules on style sheets it fetches, which no page that is a file may do.
            found = axe.Axe().run(made, options={"preload": False})
            assert found.violations_count == 0, f"{name}: {found.generate_report()}"
            assert made.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_a_click_on_a_head_sorts_and_the_address_keeps_it(page: Page, site: Path) -> None:
    board(page, site)
    first = editors(page)
    assert first[0] == "unedited" and len(first) == 6
    head = page.locator("#rows thead button", has_text="neighborhood")
    head.click()
    values = [
        float(text.split()[0]) for text in page.locator("#rows tbody tr td:nth-child(5) .value").all_inner_texts()
    ]
    assert values[1:] == sorted(values[1:], reverse=True) and editors(page)[0] == "unedited"
    head.press("Enter")
    assert editors(page)[1:] != first[1:] and page.locator("th[aria-sort=ascending]").count() == 1
    kept = editors(page)
    page.reload()
    page.wait_for_selector("#rows tbody tr.base")
    assert editors(page) == kept and page.locator("th[aria-sort=ascending]").inner_text().startswith("counterfact")


def test_the_filter_and_the_columns_are_kept_in_the_address(page: Page, site: Path) -> None:
    board(page, site)
    page.fill("#filter", "MEM")
    assert editors(page) == ["unedited", "memit"]
    assert page.inner_text("#shown") == "1 of 5 rows"
    page.click("#columns summary")
    page.get_by_role("checkbox", name="counterfact efficacy").uncheck()
    assert page.locator("#rows thead button", has_text="efficacy ↑").count() == 0
    page.reload()
    page.wait_for_selector("#rows tbody tr.base")
    assert editors(page) == ["unedited", "memit"] and page.input_value("#filter") == "MEM"
    assert page.locator("#rows thead button", has_text="efficacy ↑").count() == 0


def test_the_first_column_stays(page: Page, site: Path) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    board(page, site)
    place = page.locator("#rows tbody th").nth(1)
    before = place.bounding_box()
    page.locator("#scroll").evaluate("box => { box.scrollLeft = 600; }")
    after = place.bounding_box()
    assert before and after and before["x"] == after["x"] and before["width"] < 130
    assert page.locator("#scroll").evaluate("box => box.scrollLeft") > 300


def test_links_lead_to_the_record_and_back(page: Page, site: Path) -> None:
    board(page, site)
    page.locator("#rows tbody th a", has_text="memit").click()
    page.wait_for_selector("h1")
    assert page.inner_text("h1") == "memit on mini"
    page.click("text=Compare with another record")
    names = page.locator("#names option").evaluate_all("all => all.map(one => one.value)")
    page.fill("#second", next(name for name in names if "--rome--" in name and "--batch--" in name))
    page.press("#second", "Enter")
    page.wait_for_selector("#result table")
    assert "paired by document" in page.inner_text("#said")
    score = page.locator("#result tbody tr").first.inner_text()
    assert score.split()[0:2] == ["counterfact", "score"] and "[" in score
    page.click("nav >> text=Board")
    page.wait_for_selector("#rows tbody tr.base")


def test_the_comparison_is_turned_with_the_records(page: Page, site: Path) -> None:
    names = [next(path.stem for path in (site / "records").glob(f"*--{one}--*--batch--*")) for one in ("memit", "rome")]
    found = []
    for one, other in (names, reversed(names)):
        visit(page, site, "compare.html", f"#a={one}&b={other}")
        page.reload()
        page.wait_for_selector("#result table")
        found.append(page.locator("#result tbody tr .change").all_inner_texts()[:4])
    assert [float(text.lstrip("▲▼ ")) for text in found[0]] == [-float(text.lstrip("▲▼ ")) for text in found[1]]
    assert any(float(text.lstrip("▲▼ ")) for text in found[0])


def test_any_two_rows_are_compared_in_the_panel(page: Page, site: Path) -> None:
    board(page, site)
    page.click("#panel summary")
    page.wait_for_selector("#panel-rows tbody tr")
    assert "Holm" in page.inner_text("#panel-said")
    ranks = page.locator("#panel-rows tbody td:nth-child(7)").all_inner_texts()
    assert sum(int(text.removesuffix(" %")) for text in ranks) in (99, 100, 101)
    page.select_option("#panel-row", index=2)
    page.wait_for_function("document.querySelectorAll('#panel-rows tbody tr')[2].cells[1].innerText.length === 1")


def test_the_plot_has_a_point_with_bars_for_every_row(page: Page, site: Path) -> None:
    board(page, site)
    assert page.locator("#plot circle, #plot rect").count() == 5
    assert page.locator("#plot g.bars line").count() == 10
    page.select_option("#axis-x", "seconds")
    assert "seconds" in page.inner_text("#plot-title")
    assert "memit: change of counterfact score" in "".join(page.locator("#plot title").all_text_contents())


def plotted(page: Page) -> dict[str, tuple[float, float]]:
    """The point of each row, up and right, with * before the names of those that are filled."""
    found = {}
    for dot in page.locator("#plot .dot").all():
        name, numbers = (dot.locator("title").text_content() or "").rsplit(": ", 1)
        up, right = (float(text.split()[-1]) for text in numbers.split("[")[:2])
        found["*" * ("on" in (dot.get_attribute("class") or "").split()) + name] = (up, right)
    return found


@pytest.mark.parametrize(("axis", "sign"), [("abilities", 1), ("seconds", -1)])
def test_the_points_that_nothing_beats_are_filled(page: Page, site: Path, axis: str, sign: int) -> None:
    board(page, site)
    page.select_option("#axis-x", axis)
    points = {name: (up, sign * right) for name, (up, right) in plotted(page).items()}
    best = {
        name
        for name, (up, right) in points.items()
        if not any((u, r) != (up, right) and u >= up and r >= right for u, r in points.values())
    }
    assert best == {name for name in points if name.startswith("*")} and 0 < len(best) < len(points)


def test_what_is_markup_in_a_name_is_shown_as_it_is(page: Page, site: Path) -> None:
    board(page, site)
    assert HOSTILE in editors(page) and page.locator("main img").count() == 0
    page.locator("#rows tbody th a", has_text="onerror").click()
    page.wait_for_selector("h1")
    assert page.inner_text("h1").startswith(HOSTILE) and page.locator("main img").count() == 0


def test_published_values_are_shown_sorted_and_explained(page: Page, site: Path) -> None:
    board(page, site)
    head = page.locator("#rows thead button", has_text="efficacy [a]")
    head.click()
    assert editors(page)[:2] == ["unedited", "memit"]
    place = [text.split("\n")[-1] for text in page.locator("#rows thead th").all_inner_texts()].index("efficacy [a]")
    cells = page.locator(f"#rows tbody tr td:nth-child({place + 1})")
    assert cells.all_inner_texts()[:3] == ["12", "96.5", MISSING]
    cells.nth(1).click()
    assert "Certainty: read in the paper." in page.locator("#cell").inner_text()


def test_the_theme_is_the_readers_until_it_is_chosen(browser: Browser, site: Path) -> None:
    for made in opened(browser, 1400, "dark"):
        visit(made, site)
        dark = made.evaluate("getComputedStyle(document.body).backgroundColor")
        made.click("#theme")
        light = made.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != light == "rgb(255, 255, 255)" and made.get_attribute("#theme", "aria-pressed") == "false"


@contextmanager
def rows_instead(site: Path, made: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """While it lasts the largest table of the site has the rows that are made of its own."""
    (first,) = (site / "data").glob("*batch*.0.js")
    slug, kept = first.name.removesuffix(".0.js"), {path: path.read_text() for path in (site / "data").glob("*")}
    many = made(said_by(kept[first])[2])
    chunks = range(0, len(many), 400)
    head = said_by(kept[first.with_name(f"{slug}.js")])[2] | {"count": len(many), "chunks": len(chunks)}
    try:
        for i, start in enumerate(chunks):
            said = json.dumps(many[start : start + 400])
            first.with_name(f"{slug}.{i}.js").write_text(f'board.put("rows",{json.dumps(f"{slug}.{i}")},{said});\n')
        first.with_name(f"{slug}.js").write_text(f'board.put("section",{json.dumps(slug)},{json.dumps(head)});\n')
        yield
    finally:
        for path in (site / "data").glob(f"{slug}.*.js"):
            path.unlink()
        for path, text in kept.items():
            path.write_text(text)


def test_of_thousands_of_rows_only_those_in_sight_are_drawn(page: Page, site: Path) -> None:
    """The data of one table with its rows repeated to 10,000."""
    with rows_instead(site, lambda rows: [{**rows[i % len(rows)], "label": f"copy{i}"} for i in range(10_000)]):
        board(page, site)
        page.wait_for_function("document.getElementById('shown').textContent === '10000 of 10000 rows'")
        assert page.locator("#rows tbody tr").count() < 120
        page.locator("#scroll").evaluate("box => { box.scrollTop = box.scrollHeight; }")
        page.wait_for_function("document.getElementById('rows').innerText.includes('copy9999')")
        assert page.locator("#rows tbody tr").count() < 120
        page.fill("#filter", "copy77")
        assert page.inner_text("#shown") == "111 of 10000 rows"


@pytest.mark.parametrize(
    ("far", "at_the_edge"),
    [
        ([], []),
        ([-1.0], ["-1.00"]),
        ([-0.48, -1.0], ["-0.48", "-1.00"]),  # neither alone halves the range
        ([0.9, -1.0], ["-1.00", "0.90"]),
        ([-0.04], []),
        ([-0.5, -0.6, -0.7], []),  # too many to be set aside
    ],
)
def test_a_few_points_far_from_all_others_are_put_at_the_edge(
    page: Page, site: Path, far: list[float], at_the_edge: list[str]
) -> None:
    costs = [*(-0.002 * i for i in range(14)), *far]
    with rows_instead(
        site,
        lambda rows: [
            {**rows[0], "editor": f"e{i}", "label": "", "abilities": [cost, cost - 0.001, cost + 0.001]}
            for i, cost in enumerate(costs)
        ],
    ):
        board(page, site)
        page.select_option("#axis-x", "abilities")
        assert page.locator("#plot .dot").count() == len(costs)
        assert page.locator("#plot .dot.out").count() == len(at_the_edge)
        names = "".join(page.locator("#plot text.name").all_text_contents())
        assert all(f"({value})" in names for value in at_the_edge)
