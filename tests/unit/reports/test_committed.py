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


@pytest.mark.parametrize("board", [RESULTS, RESULTS / "smollm2"], ids=["mini", "smollm2"])
def test_the_leaderboard(board: Path) -> None:
    found = leaderboard(read_records(board / "records", values=True), "md")
    assert found == (board / "LEADERBOARD.md").read_text(encoding="utf-8")


def test_the_page_of_the_real_model_says_what_its_records_say() -> None:
    said = (RESULTS / "on-real-data.md").read_text(encoding="utf-8")
    columns = [("counterfact", name) for name in ("score", "efficacy", "paraphrase", "neighborhood")]
    columns += [("piqa", "acc_norm"), ("sciq", "acc_norm"), ("arc_easy", "acc_norm"), ("lambada_openai", "acc")]
    lines = [line.split("|")[1:] for line in said.splitlines() if line.startswith(("| unedited |", "| `"))]
    rows = {line[0].split()[0].strip("`,"): line[1:] for line in lines}
    for record in read_records(RESULTS / "smollm2" / "records"):
        row = rows[{"none": "unedited"}.get(record.plan["editor"], record.plan["editor"])]
        last = record.tasks(record.points[-1]["edits"])
        shown = [cell.split()[0] for cell in row[:8]]
        assert shown == [f"{last[task][metric]['value']:.3f}" for task, metric in columns]


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
