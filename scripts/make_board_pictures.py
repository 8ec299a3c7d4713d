#!/usr/bin/env python3
"""Makes the pictures of the board in ``docs/images``: overview, record and comparison, wide and narrow, light and dark.

    python scripts/make_board_pictures.py

Needs Playwright and Chromium (pip install -e '.[browser]'; CHROMIUM names another one than /usr/bin/chromium).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from harness.reports.board.site import write_board

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
FOLDERS = (ROOT / "results", ROOT / "results/smollm2")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SIZES = {"wide": (1400, 1500), "narrow": (400, 820)}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
COLOURS = 256


def views(site: Path) -> dict[str, str]:
    """What is shown: the address of each page within a site."""
    memit, other = (
        next(path.stem for path in sorted((site / "records").glob(f"mini--{editor}--counterfact-50--batch--*")))
        for editor in ("memit", "emmet")
    )
    return {
        "overview": "index.html",
        "record": f"records/{memit}.html",
        "compare": f"compare.html#a={memit}&b={other}",
    }


def pictures(browser: Browser, site: Path, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Each page in each size and theme, as the name of a file and a small PNG.

    Args:
        browser: an open one.
        site: the folder of a board.
        wanted: the address of each page within it.
    """
    for theme in THEMES:
        for size, (width, height) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
            page = context.new_page()
            for name, address in wanted.items():
                page.goto(f"{site.as_uri()}/{address}")
                page.wait_for_selector("#rows tbody tr" if name == "overview" else "table.plain")
                if name == "overview" and size == "narrow":
                    page.locator("#table-title").scroll_into_view_if_needed()
                    page.evaluate("document.getElementById('table-title').scrollIntoView()")
                yield f"board-{name}-{size}-{theme}.png", _small(page.screenshot())
            context.close()


def _small(content: bytes) -> bytes:
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    """Make a board of the committed records, and its pictures."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = Path(folder) / "site"
        write_board(FOLDERS, site)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, content in pictures(browser, site, views(site)):
            (IMAGES / name).write_bytes(content)
            print(f"{name}: {len(content) // 1024} KiB")
        browser.close()


if __name__ == "__main__":
    main()
