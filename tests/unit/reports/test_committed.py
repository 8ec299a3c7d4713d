"""The committed tables are what their records give, to the byte."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.reports.comparison import pair_difference
from harness.reports.leaderboard import leaderboard
from harness.reports.published_values import alike, read_published_values
from harness.reports.registry import find_format
from harness.runs.record_file import read_records
from harness.studies.localization import localize_report
from harness.studies.localization.localize import LocalizationStudy
from harness.studies.localization.localize_report import localize_page, rows_of
from harness.studies.sweeps.sweep_tables import format_tables
from harness.studies.sweeps.trial import read_trials

RESULTS = Path(__file__).parents[3] / "results"
STUDIES = sorted((RESULTS / "localize").glob("*.json.gz"))


@pytest.mark.parametrize(
    "board",
    [RESULTS, RESULTS / "smollm2", RESULTS / "questions", RESULTS / "hops"],
    ids=["mini", "smollm2", "questions", "hops"],
)
def test_the_leaderboard(board: Path) -> None:
    found = leaderboard(read_records(board / "records", values=True), "md")
    assert found == (board / "LEADERBOARD.md").read_text(encoding="utf-8")


IMPORTED = RESULTS / "imported"


def test_the_leaderboard_of_published_runs() -> None:
    values = read_published_values(IMPORTED / "published.csv")
    found = leaderboard(read_records(IMPORTED / "records", values=True), "md", values)
    assert found == (IMPORTED / "LEADERBOARD.md").read_text(encoding="utf-8")
    size = sum(path.stat().st_size for path in IMPORTED.rglob("*") if path.is_file())
    assert size < 4_000_000


def test_what_was_printed_follows_from_the_cases() -> None:
    """All 21 averages of HalluEditBench and 12 accuracies of KnowEdit, to the last printed digit."""
    kept = {
        (alike(r.model["name"]), r.edits["dataset"], r.editor["name"]): r for r in read_records(IMPORTED / "records")
    }
    compared = 0
    for printed in read_published_values(IMPORTED / "published.csv"):
        record = kept.get((alike(printed.model), printed.data, printed.method))
        if record is not None:
            metric = {"generalization": "generalization_released", "accuracy": "efficacy"}[printed.metric]
            value = record.points[-1]["tasks"][printed.data][metric]["value"]
            digits = 6 if printed.metric == "generalization" else 2
            assert f"{100 * value:.{digits}f}" == f"{printed.number:.{digits}f}", printed
            compared += 1
    assert compared == 21 + 12


def test_the_page_of_published_runs_says_what_pairing_says() -> None:
    kept = {
        (r.model["name"][-8:], r.edits["dataset"], r.editor["name"]): r
        for r in read_records(IMPORTED / "records", True)
    }
    page = (IMPORTED / "README.md").read_text(encoding="utf-8")
    pairs = [
        ("Instruct", "HalluEditBench", "efficacy", "ROME", "MEMIT"),
        ("Instruct", "HalluEditBench", "generalization", "MEMIT", "LoRA"),
        ("-chat-hf", "HalluEditBench", "generalization", "ROME", "MEMIT"),
        ("-chat-hf", "KnowEdit wikibio", "efficacy", "ROME", "MEMIT"),
    ]
    rows = [line for line in page.splitlines() if line.startswith(("| Llama", "| KnowEdit"))]
    for line, (model, data, metric, first, second) in zip(rows, pairs, strict=True):
        one, other = kept[model, data, first], kept[model, data, second]
        count = one.edits["count"]
        change = pair_difference((other, count), (one, count), task=data, metric=metric)
        assert change is not None and change.value is not None and change.low is not None and change.high is not None
        shown = f"{100 * change.value:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
        assert f"| {shown} |" in line
        assert ("no difference" in line) == (not change.significant)


@pytest.mark.parametrize("page", ["results/on-real-data.md", "README.md"])
def test_a_page_of_the_real_model_says_what_its_records_say(page: str) -> None:
    said = (RESULTS.parent / page).read_text(encoding="utf-8")
    columns = [("counterfact", name) for name in ("score", "efficacy", "paraphrase", "neighborhood")]
    columns += [("piqa", "acc_norm"), ("sciq", "acc_norm"), ("arc_easy", "acc_norm"), ("lambada_openai", "acc")]
    columns += [("neutral_text", "kl")]
    lines = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith(("| unedited |", "| `"))]
    rows = {line[0].split()[0].strip("`,"): line[1:] for line in lines if len(line) == 1 + len(columns)}
    compared = []
    for record in read_records(RESULTS / "smollm2" / "records"):
        editor = {"none": "unedited"}.get(record.plan["editor"], record.plan["editor"])
        last = record.tasks(record.points[-1]["edits"])
        if record.plan["num_edits"] != 20:
            continue
        if "counterfact" in last and editor in rows:
            values = [f"{last[task][metric]['value']:.3f}" if task in last else "" for task, metric in columns]
            assert [cell.strip() for cell in rows[editor]] == values, editor
            compared.append(editor)
        assert "counterfact" not in last or editor in rows or page == "README.md", editor
    assert sorted(compared) == sorted(rows)
    assert len(rows) >= 6


def rows_behind(head: str, page: str = "on-real-data.md") -> list[list[str]]:
    """The cells of the table of a page that begins with a head."""
    said = (RESULTS / page).read_text(encoding="utf-8").partition(head)[2]
    lines = said.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]


def hundred_edits(found: Mapping[str, Any]) -> list[str]:
    """What a table of a hundred edits shows of one measurement; no difference of the unedited model."""
    four = [found["counterfact"][name] for name in ("score", "efficacy", "paraphrase", "neighborhood")]
    change = four[-1].get("difference") or {}
    between = "[{:+.3f}, {:+.3f}]".format(*change["interval"]) if change.get("interval") else ""  # none of one edit
    moved = f"{change['value']:+.3f} {between}".strip() if change else ""
    return [*(f"{one['value']:.3f}" for one in four), moved, f"{found['neutral_text']['kl']['value']:.3f}"]


def test_the_page_of_the_real_model_says_what_a_hundred_edits_give() -> None:
    """Of every record of a hundred edits in one batch: the values, and the paired difference of the neighbours."""
    rows = rows_behind("| editor, a hundred edits |")
    records = {
        one.plan["editor"]: one
        for one in read_records(RESULTS / "smollm2" / "records")
        if one.plan["num_edits"] == 100 and one.plan["mode"] == "batch"
    }
    for editor, *shown in rows:
        record = records[{"unedited": "none"}.get(editor, editor)]
        last = record.tasks(record.points[-1]["edits"])
        assert shown == hundred_edits(last)
    assert {"none" if editor == "unedited" else editor for editor, *_ in rows} == set(records)


def test_the_page_of_the_real_model_says_what_a_hundred_edits_in_sequence_give() -> None:
    """At every stop: the values, and the paired difference of the neighbours."""
    rows = rows_behind("| editor, in sequence | edits |")
    records = {
        one.plan["editor"]: one
        for one in read_records(RESULTS / "smollm2" / "records")
        if one.plan["mode"] == "sequential" and one.plan["num_edits"] == 100
    }
    for editor, edits, *shown in rows:
        assert shown == hundred_edits(records[editor].tasks(int(edits)))
    stops = [(editor, str(point["edits"])) for editor, one in records.items() for point in one.points if point["edits"]]
    assert sorted((editor, edits) for editor, edits, *_ in rows) == sorted(stops)


def test_the_page_of_tracing_says_what_the_real_model_gives() -> None:
    """Where restoring feed-forward outputs brings most back, in each window."""
    said = (RESULTS / "where-facts-are-recalled.md").read_text(encoding="utf-8").partition("| layers restored")[2]
    lines = said.partition("\n\n")[0].splitlines()[2:]
    rows = {cells[0]: cells[1:] for line in lines for cells in [[cell.strip() for cell in line.split("|")[1:-1]]]}
    studies = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (RESULTS / "trace").glob("SmolLM2*.json")
        if ".values" not in path.name
    ]
    for study in studies:
        traced, probability = study["facts"]["traced"], study["probability"]
        shown = [str(traced), f"{probability['clean']['value']:.3f}, {probability['low']['value']:.3f}"]
        for role in ("last subject token", "last token"):
            effects = study["roles"][role]["effects"]
            best = max(effects, key=lambda one: one["value"])
            low, high = best["interval"]
            shown += [f"{best['value']:.3f} [{low:.3f}, {high:.3f}]", str(effects.index(best))]
        assert rows[str(study["plan"]["settings"]["window"])] == shown
        assert traced >= 50
    assert sorted(rows) == sorted(str(study["plan"]["settings"]["window"]) for study in studies)


def test_the_page_of_the_real_model_says_what_sequences_give() -> None:
    rows = rows_behind("| editor | edits | efficacy |")
    metrics = [("zsre", name) for name in ("efficacy", "paraphrase", "locality_agreement", "generation_exact_match")]
    records = {
        one.plan["editor"]: one
        for one in read_records(RESULTS / "smollm2" / "records")
        if one.plan["mode"] == "sequential" and one.plan["edits"].startswith("zsre")
    }
    for editor, edits, *shown in rows:
        found = records[editor].tasks(int(edits))
        assert shown == [f"{found[task][name]['value']:.3f}" for task, name in (*metrics, ("neutral_text", "kl"))]
    stops = [(editor, str(point["edits"])) for editor, one in records.items() for point in one.points if point["edits"]]
    assert sorted((editor, edits) for editor, edits, *_ in rows) == sorted(stops)


def test_the_page_of_questions_says_what_its_records_say() -> None:
    """Every number of its tables, and every record of edits made alone, of which each set has at least twenty cases."""
    said = (RESULTS / "what-follows-from-an-edit.md").read_text(encoding="utf-8")
    records = read_records(RESULTS / "questions" / "records")
    kept = {
        (record.plan["edits"], record.plan["editor"]): record for record in records if record.plan["mode"] == "isolated"
    }
    shown = set()
    for table in said.split("\n\n"):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"]
        if not lines or lines[0][:2] != ["set", "metric"]:
            continue
        editors = ["none" if one == "unedited" else one.strip("`") for one in lines[0][2:]]
        for name, metric, *cells in lines[2:]:
            for editor, cell in zip(editors, cells, strict=True):
                record = kept.get((name.strip("`"), editor))
                assert (record is None) == (cell == "refused"), (name, editor)
                if record is not None:
                    shown.add((name.strip("`"), editor))
                    found = record.tasks(record.points[-1]["edits"])[name.strip("`")]
                    last = found.get(metric.strip("`"), {}).get("value")
                    assert cell == ("" if last is None else f"{last:.3f}"), (name, metric, editor)
    assert shown == set(kept)
    together = {(one.plan["edits"], one.plan["mode"], one.plan["editor"]): one for one in records} | {
        (name, mode, "none"): kept[name, "none"] for name, _ in kept for mode in ("batch", "sequential")
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:1] == "|"]
    (head,) = (line for line in lines if line[0] == "set, edits")
    told = set()
    for where, metric, *cells in lines[lines.index(head) + 2 :]:
        name, mode = where.replace("`", "").split(", ")
        for editor, cell in zip(("none", *(one.strip("`") for one in head[3:])), cells, strict=True):
            record = together.get((name, mode, editor))
            assert (record is None) == (cell == ""), (name, mode, editor)
            if record is not None:
                each = [record] if editor == "none" else [record, kept[name, editor]]
                values = [one.tasks(one.points[-1]["edits"])[name][metric.strip("`")]["value"] for one in each]
                assert cell == f"{values[0]:.3f}" + "".join(f" ({value:.3f})" for value in values[1:])
                told |= {(name, mode, editor)} if editor != "none" else set()
    assert told == {key for key in together if key[1] != "isolated" and key[2] != "none"}
    assert len({name for name, _ in kept}) >= 6
    assert all(record.plan["num_edits"] >= 20 for record in records)
    assert all(record.edits["count"] >= 20 for record in records if record.plan["editor"] != "none")
    size = sum(path.stat().st_size for path in (RESULTS / "questions").rglob("*") if path.is_file())
    assert size < 1_200_000
    assert not list((RESULTS / "questions").rglob("*samples*"))


def test_the_page_of_hops_says_what_its_records_say() -> None:
    """Every number and interval of its table, in a row for every record, each of the same twenty cases alone."""
    said = (RESULTS / "what-hops-cost.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:1] == "|"]
    metrics = [name.strip("`") for name in lines[0][1:]]
    records = {one.id[:8]: one for one in read_records(RESULTS / "hops" / "records")}
    shown = {}
    for name, *cells in lines[2:]:
        editor, _, number = name.replace("unedited", "none").replace("`", "").partition(", ")
        shown[number] = (editor, cells)
    assert sorted(shown) == sorted(records)
    for number, record in records.items():
        found = record.tasks(record.points[-1]["edits"])["mquake"]
        values = [(found[name]["value"], *found[name]["interval"]) for name in metrics]
        cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in values]
        assert shown[number] == (record.plan["editor"], cells)
        assert {found[name]["n"] for name in metrics} == {20}
        assert record.plan["mode"] == "isolated"
        assert record.plan["editor"] == "none" or record.edits["count"] >= 20
    assert len({one.edits["sha256"] for one in records.values()}) == 1
    size = sum(path.stat().st_size for path in (RESULTS / "hops").rglob("*") if path.is_file())
    assert size < 400_000


@pytest.mark.parametrize("folder", ["sweeps", "real/canonical"])
@pytest.mark.parametrize(("name", "kind"), [("TABLES.md", "md"), ("tables.tex", "latex")])
def test_the_tables_of_sweeps(folder: str, name: str, kind: str) -> None:
    trials = read_trials(RESULTS / folder)
    assert len(trials) >= 4
    assert format_tables(trials, kind) == (RESULTS / folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_tables_of_localisation(path: Path) -> None:
    study = LocalizationStudy(path, **json.loads(gzip.decompress(path.read_bytes())))
    page = localize_page(study, rows_of(study), published=True)
    for kind in ("md", "latex"):
        form = find_format(kind)
        kept = path.with_name(path.name.removesuffix(".json.gz") + form.ending)
        assert form.write([page]) == kept.read_text(encoding="utf-8"), kind
    assert len(STUDIES) >= 2


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_figures_of_localisation_hold_their_legends(path: Path) -> None:
    """Seven layers below one panel, too."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    study = LocalizationStudy(path, **json.loads(gzip.decompress(path.read_bytes())))
    for make in (localize_report._by_layer, localize_report._by_effect):
        figure = make(study, study.plan["problems"])
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        extent = legend.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width and 0 <= extent.y0 < extent.y1 <= figure.bbox.height


def test_the_page_of_localisation_says_what_the_real_model_gives() -> None:
    """The mean scores of every layer, and what layer and tracing explain."""
    (path,) = (one for one in STUDIES if "SmolLM2" in one.name)
    study = json.loads(gzip.decompress(path.read_bytes()))
    shown = {row[0]: row[1:] for row in rows_behind("| layer | rewrite |", "does-tracing-tell-where-to-edit.md")}
    for name, edits in study["blocks"].items():
        means = [sum(scores[i] for scores in edits.values()) / len(edits) for i in range(3)]
        assert shown[name.rpartition("/")[2]] == [f"{mean:.3f}" for mean in means]
    assert len(shown) == len(study["blocks"]) == 7 and {len(one) for one in study["blocks"].values()} == {30}
    best = [effects.index(max(effects)) for effects in study["facts"].values()]
    assert (sum(layer <= 3 for layer in best), sum(layer >= 20 for layer in best)) == (14, 12)
    table = path.with_name(path.name.replace(".json.gz", ".md")).read_text(encoding="utf-8")
    assert "| rome@1 | 0.622 | 0.002 | 0.644 | 0.022 | 0.101 | 30 |" in table
    assert "| rome@1 | 0.570 | 0.001 | 0.598 | 0.028 | 0.064 | 30 |" in table


def test_the_page_of_long_streams_says_what_was_measured() -> None:
    """Every row of its table, and the ranges of its sentences."""
    with (RESULTS / "long-streams.csv").open(encoding="utf-8", newline="") as file:
        kept = {(row["editor"], row["edits"]): row for row in csv.DictReader(file)}
    said = (RESULTS / "long-streams.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:2] == "| "][1:]
    for editor, at_once, edits, spent, memory, share, interval in rows:
        one = kept["memit" if editor == "unedited" else editor, edits]
        assert [share, interval] == [one["kept"], f"{one['low']} to {one['high']}"]
        assert editor == "unedited" or [at_once, spent, memory] == [one["at_once"], one["ms_per_edit"], one["mib"]]
    steady = [float(one["ms_per_edit"]) for (name, n), one in kept.items() if name == "ultraedit" and int(n) >= 1000]
    assert len(steady) == 19 and sum(1.6 < value < 1.7 for value in steady) == 18
    shares = [float(one["kept"]) for (name, n), one in kept.items() if name == "ultraedit" and int(n)]
    assert min(shares) >= 0.48 and max(shares) <= 0.62
    later = [one for (name, n), one in kept.items() if name == "memit" and int(n) >= 1500]
    assert all(135 < float(one["ms_per_edit"]) < 159 and 719 <= int(one["mib"]) <= 838 for one in later)
    grace = [one for (name, n), one in kept.items() if name == "grace" and int(n)]
    spent = {one["edits"]: float(one["ms_per_edit"]) for one in grace}
    assert len(grace) == 16 and round(min(spent.values())) == 162 and round(max(spent.values())) == 201
    assert max(spent.values()) < 1.2 * spent["500"] and spent["8000"] < 1.2 * spent["500"]
    assert (min(float(one["kept"]) for one in grace), max(float(one["kept"]) for one in grace)) == (0.925, 0.96)
    found = [one for (name, n), one in kept.items() if name == "rag" and int(n) >= 1000]
    assert len(found) == 19 and all(
        one["ms_per_edit"] == "0.02" and 0.57 <= float(one["kept"]) <= 0.69 for one in found
    )
