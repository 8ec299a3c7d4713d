"""The committed tables are what their records give, to the byte."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from harness.reports.leaderboard import leaderboard
from harness.reports.registry import find_format
from harness.runs.record_file import read_records
from harness.studies.localization.localize import Study
from harness.studies.localization.localize_report import localize_page, rows_of
from harness.studies.sweeps.sweep_tables import format_tables
from harness.studies.sweeps.trial import read_trials

RESULTS = Path(__file__).parents[3] / "results"
STUDIES = sorted((RESULTS / "localize").glob("*.json.gz"))


def test_the_leaderboard() -> None:
    found = leaderboard(read_records(RESULTS / "records", values=True), "md")
    assert found == (RESULTS / "LEADERBOARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["sweeps", "real/canonical"])
@pytest.mark.parametrize(("name", "kind"), [("TABLES.md", "md"), ("tables.tex", "latex")])
def test_the_tables_of_sweeps(folder: str, name: str, kind: str) -> None:
    trials = read_trials(RESULTS / folder)
    assert len(trials) >= 4
    assert format_tables(trials, kind) == (RESULTS / folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_tables_of_localisation(path: Path) -> None:
    study = Study(path, **json.loads(gzip.decompress(path.read_bytes())))
    page = localize_page(study, rows_of(study), published=True)
    for kind in ("md", "latex"):
        form = find_format(kind)
        kept = path.with_name(path.name.removesuffix(".json.gz") + form.ending)
        assert form.write([page]) == kept.read_text(encoding="utf-8"), kind
    assert len(STUDIES) >= 2
