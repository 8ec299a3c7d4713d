"""The site of a board: its numbers are those of the leaderboard, hostile text stays text, it appears whole or not."""

from __future__ import annotations

import csv
import html
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import weakref
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import numpy as np
import pytest
from synthetic import record, write

from harness.cli.edit_and_measure import PlanOptions
from harness.cli.edit_and_measure import run as run_command
from harness.editing.editor_files import docs_of_file, shipped_editors
from harness.editing.registry import find
from harness.errors import DataError, UsageError
from harness.exam.statistics import Ratio, difference, is_exact
from harness.reports.board.cards import card_of, markdown_html
from harness.reports.board.figures import curve_of, radar_of
from harness.reports.board.index import MARK
from harness.reports.board.record_view import RecordView, record_view
from harness.reports.board.repeat import repeat_command
from harness.reports.board.site import Built, write_board
from harness.reports.comparison import mean_difference
from harness.reports.leaderboard import leaderboard
from harness.reports.retention import retention
from harness.reports.submissions import submissions_in
from harness.runs.crew.cells import Crew
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.record_file import read_records

COMMUNITY = Path(__file__).parents[3] / "results" / "community"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`${1}{{1}}\u2028=1+1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for editor, skill in (("memit", 0.95), ("rome", 0.8), ("ft", 0.4)):
        write(tmp_path / "runs", record(editor, skill))
    for seed in (0, 1):
        write(tmp_path / "runs", record("lora", 0.7, seed=seed))
    return tmp_path / "runs"


def data_of(site: Path, kind: str) -> list[Any]:
    """What the scripts of a site bring, of one kind."""
    found = []
    for path in sorted((site / "data").glob("*.js")):
        said = re.fullmatch(r"board\.put\((.*)\);\n", path.read_text(), re.DOTALL)
        assert said
        is_of, _, content = json.loads(f"[{said[1]}]")
        found += [content] if is_of == kind else []
    return found


class Links(HTMLParser):
    """The addresses that a page names, and the tags it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("href", "src") and value]
        if tag == "script":
            self.scripts.append(str(dict(attrs).get("src")))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_leaderboard(folder: Path, tmp_path: Path) -> None:
    built = write_board([folder], tmp_path / "site")
    assert (built.records, built.sections) == (5, 1)
    (head,), (rows,) = data_of(tmp_path / "site", "section"), data_of(tmp_path / "site", "rows")
    board = list(csv.DictReader(leaderboard(read_records(folder, values=True), "csv").splitlines()))
    base, *others = board
    assert [row["editor"] for row in rows] == [line["editor"].split(" ")[0] for line in others]
    assert [row["seeds"] for row in rows if row["editor"] == "lora"] == [[0, 1]]
    for row, line in zip([{"cells": head["base"]}, *rows], [base, *others], strict=True):
        for cell, column in zip(row["cells"], head["columns"], strict=True):
            name = f"{column['task']}.{column['metric']}"
            assert cell[3] == pytest.approx(float(line[name]), rel=1e-5)
            assert cell[6] == int(line[f"{name}.n"])
            assert bool(cell[11] & 1) == (line[f"{name}.best"] == "1")
            if line[f"{name}.p"]:
                assert cell[10] == pytest.approx(float(line[f"{name}.p"]), rel=1e-5)
    shown = leaderboard(read_records(folder, values=True), "md")
    assert all(f" {cell[0]}" in shown or f"**{cell[0]}" in shown for row in rows for cell in row["cells"])


def test_every_link_leads_somewhere(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_board([folder], site)
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 2 + 5 + 4 + 9
    for page in pages:
        for link in Links(page).found:
            if page.parent.name == "tasks" and link.startswith("https://"):
                continue  # the card of a task names its paper
            assert not re.match(r"\w+:|//", link), f"{page}: {link}"
            target = unquote(link.partition("#")[0])
            assert not target or (page.parent / target).is_file(), f"{page}: {link}"


def test_names_that_are_markup_stay_text(tmp_path: Path) -> None:
    made = record("memit", 0.9, model=HOSTILE)
    made.editor["name"], made.editor["notes"] = HOSTILE, [HOSTILE]
    made.plan["settings"] = {HOSTILE: HOSTILE}
    made.edits["dataset"], made.edits["warnings"], made.caveats = HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}
    made.versions[HOSTILE] = HOSTILE
    write(tmp_path / "runs", made)
    site = tmp_path / "site"
    write_board([tmp_path / "runs"], site)
    assert all(site in path.resolve().parents for path in site.rglob("*"))
    for page in site.rglob("*.html"):
        seen = Links(page)
        assert "img" not in seen.tags and not seen.handlers, page
        assert all(link.endswith(".js") for link in seen.scripts), page
    (head,) = data_of(site, "section")
    assert head["protocol"]["edit_set"] == HOSTILE
    for script in (site / "data").glob("*.js"):
        assert "\u2028" not in script.read_text()


def test_a_card_is_no_place_for_tags() -> None:
    assert "<img" not in markdown_html("<img src=x onerror=alert(1)>\n\n[a](javascript:alert(1))")
    assert "href" not in markdown_html("[a](javascript:alert(1))")
    assert card_of("../../etc/passwd").text == ""
    assert "harmonic mean" in card_of("counterfact").definition("score")
    assert card_of("NER").definition("f1").startswith("micro F1 over whole entities")
    assert card_of("NER").definition("no_such") == ""
    assert len(card_of("NER").rows) == 3


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_board_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something that is no board; give --to a new folder"):
        write_board([folder], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_record_that_cannot_be_used_leaves_the_site_as_it_was(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_board([folder], site)
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    broken = next(folder.glob("*--memit--*.json"))
    whole = broken.read_text()
    broken.write_text(whole.replace('"value": 0.', '"value": 1.', 1))
    with pytest.raises(DataError, match="changed after the run"):
        write_board([folder], site)
    broken.write_text(whole[:300])
    with pytest.raises(DataError, match="not whole JSON"):
        write_board([folder], site)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]


def test_two_records_that_claim_one_id(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    same = record("memit", 0.95)
    write(other, same)
    assert write_board([folder, other], tmp_path / "site").records == 5
    changed = record("memit", 0.6)
    changed.id = same.id
    write(other, changed)
    with pytest.raises(DataError, match=r"claims the id of .* with other numbers"):
        write_board([folder, other], tmp_path / "site")


def test_only_what_changed_is_made(folder: Path, tmp_path: Path) -> None:
    """Of two families one changes: the pages of the other stay the same files."""
    write(folder, record("rome", 0.7, mode="isolated"))
    site = tmp_path / "site"
    assert write_board([folder], site).read == 6
    assert write_board([folder], site) == Built(6, 2, read=0)
    kept = {path.name: path.stat().st_ino for path in (site / "records").iterdir()}
    write(folder, record("ft", 0.3, mode="isolated"))
    assert write_board([folder], site) == Built(7, 2, read=2)
    now = {path.name: path.stat().st_ino for path in (site / "records").iterdir()}
    assert {name for name in kept if now[name] == kept[name]} == {name for name in kept if "batch" in name}
    (fresh,) = (write_board([folder], tmp_path / "fresh") for _ in "x")
    assert fresh.records == 7
    same = [path for path in site.rglob("*") if path.is_file() and path.name != MARK]
    assert all((tmp_path / "fresh" / path.relative_to(site)).read_bytes() == path.read_bytes() for path in same)
    for path in folder.glob("*isolated*"):
        path.unlink()
    assert write_board([folder], site) == Built(5, 1, read=0)
    assert len(list((site / "records").iterdir())) == 5 and len(data_of(site, "section")) == 1


def test_two_workers_make_the_same_site(folder: Path, tmp_path: Path) -> None:
    write(folder, record("rome", 0.7, mode="isolated"))
    seen: list[tuple[int, int]] = []
    assert write_board([folder], tmp_path / "alone") == Built(6, 2, read=6)
    made = write_board([folder], tmp_path / "site", crew=Crew(2), report=lambda _, *far: seen.append(far))
    assert (made, seen) == (Built(6, 2, read=6), [(0, 6), seen[1], (6, 6)])
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*") if path.is_file()}
    same = [path for path in files if path.name != MARK]
    assert all((tmp_path / "alone" / path).read_bytes() == (tmp_path / "site" / path).read_bytes() for path in same)
    broken = next(folder.glob("*--isolated--*.json"))
    broken.write_text(broken.read_text().replace('"value": 0.', '"value": 0.5', 1))
    with pytest.raises(DataError, match="were changed after the run"):
        write_board([folder], tmp_path / "site", crew=Crew(2))


LIGHT = """
import sys
from harness.cli.main import main
main(["board", *sys.argv[1:]])
heavy = {"torch", "transformers", "lm_eval", "datasets", "sklearn", "scipy.stats", "pandas", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_what_a_page_showed_does_not_stay_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[weakref.ref[RecordView]] = []
    left: list[int] = []

    def viewed(*about: Any) -> RecordView:
        left.append(sum(view() is not None for view in shown))
        view = record_view(*about)
        shown.append(weakref.ref(view))
        return view

    monkeypatch.setattr("harness.reports.board.family.record_view", viewed)
    write_board([folder], tmp_path / "site")
    assert left == [0, 0, 0, 0, 0]


def test_a_site_is_made_without_what_takes_seconds_to_import(folder: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-c", LIGHT, str(folder), "--to", str(tmp_path / "site")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 records in 1 tables; 5 of them were read" in done.stdout


def test_an_editor_says_of_itself_what_its_file_does() -> None:
    """Read from the file, the documentation of an editor is that of its module and its class."""
    for name, path in shipped_editors().items():
        cls = find(name)
        said = (inspect.getdoc(sys.modules[cls.__module__]), inspect.getdoc(cls))
        assert docs_of_file(path, name) == "\n\n".join(filter(None, said)), name


def believing(editor: str = "memit") -> Record:
    """A record that is asked by which questions its edits are believed."""
    made = record(editor, 0.95, mode="sequential", counts=(0, 10, 50))
    blank = {"n": 4, "interval": [0.2, 0.9], "reason": None, "higher_is_better": True, "difference": None}
    asked = {"bare_exact_match": 0.75, "negation_success": 0.5}
    made.points[-1]["tasks"]["belief"] = {metric: {**blank, "value": value} for metric, value in asked.items()}
    made.points[0]["tasks"]["belief"] = {metric: {**blank, "value": 0.25} for metric in asked}
    return made


def test_the_page_of_an_editor_shows_what_is_believed_and_what_is_left(folder: Path, tmp_path: Path) -> None:
    write(folder, believing())
    write_board([folder], tmp_path / "site")
    page = (tmp_path / "site" / "editors" / "memit.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "What is believed" in page and "half-life (further edits)" in page
    assert re.search(
        r'<th scope="row">negation <small>belief negation_success</small></th><td>0.500 \[0.200, 0.900\]', page
    )
    left = retention(believing())
    assert left is not None
    assert all(f"<b>{name}</b> {value}" in html.unescape(page) for name, value in left.facts.items())
    for x, y in curve_of(left.rows, left.latest)["dots"]:
        assert f'cx="{x}" cy="{y}"' in page
    assert "<svg" not in (tmp_path / "site" / "editors" / "rome.html").read_text(encoding="utf-8")


def test_a_radar_is_broken_where_there_is_no_answer() -> None:
    blank = {"metric": "m", "n": 3, "unedited": 0.0, "interval": None}
    found = radar_of([{**blank, "question": str(i), "value": value} for i, value in enumerate((1.0, 0.5, None, 0.25))])
    assert found["lines"]["edited"]["path"] == "M150.0 33.0L196.0 125.0 M127.0 125.0L150.0 33.0"
    assert found["lines"]["unedited"]["path"].count("M") == 4
    assert found["spokes"][1] == {"x": 242.0, "y": 125.0, "label": (254.9, 125.0), "anchor": "start", "name": "1"}


def test_a_curve_has_its_ends_at_the_edges() -> None:
    found = curve_of([(1, 1.0, 0.5, 1.0), (10, 0.5, 0.25, 0.75), (100, 0.0, 0.0, 0.25)], [(10, 1.0)])
    assert found["dots"] == [(34.0, 12.0), (181.0, 88.0), (328.0, 164.0)]
    assert found["line"] == "M34.0 12.0L181.0 88.0L328.0 164.0" and found["latest"] == "M181.0 12.0"
    assert found["band"] == "M34.0 12.0L181.0 50.0L328.0 126.0L328.0 164.0L181.0 126.0L34.0 88.0Z"
    assert [edits for _, edits in found["ticks"]] == [1, 10, 100]


def test_submissions_stand_among_the_rows_with_a_badge(tmp_path: Path) -> None:
    """The committed submission beside a record of the same plan but for its seed: badges, who gave it, its edits."""
    site, given = tmp_path / "site", shutil.copytree(COMMUNITY, tmp_path / "community")
    [place] = submissions_in(given)
    assert write_board([given], site) == Built(1, 1, read=1)
    (rows,) = data_of(site, "rows")
    assert [row["badge"] for row in rows] == ["re-scored here"]
    assert write_board([place], tmp_path / "one") == Built(1, 1, read=1)
    page = (site / "records" / f"{place.name}.html").read_text(encoding="utf-8")
    assert "the maintainers of lm-edit-harness" in page and "two cores of an x86-64 CPU" in page
    assert (site / "files" / f"{place.name}.safetensors").is_file()
    assert 'class="badge">re-scored here<' in (site / "editors" / "memit.html").read_text(encoding="utf-8")
    (place / "rescored.json").unlink()
    assert write_board([given], site) == Built(1, 1, read=1)
    assert [row["badge"] for row in data_of(site, "rows")[0]] == ["checked"]
    copy = shutil.copyfile(place / f"{place.name}.json", tmp_path / f"{place.name}.json")
    assert write_board([given, tmp_path], tmp_path / "other") == Built(1, 1, read=1)
    copy.write_text(re.sub(r'"value": 0\.\d+', '"value": 0.123', copy.read_text(), count=1))
    with pytest.raises(DataError, match="with other numbers"):
        write_board([given, tmp_path], tmp_path / "other")
    (place / "plan.json").write_text("{}")
    with pytest.raises(DataError, match=r"plan.json: its sha256 is"):
        write_board([given], site)


PUBLISHED = """paper,table,model,data,method,metric,value,source,certainty
A,T1,mini,counterfact,MEMIT,efficacy,96.5,p. 3,read in the paper
A,T1,mini,counterfact,unedited,efficacy,12,p. 3,read in the paper
B,T2,mini,CounterFact,ROME,score,>70,a blog,quoted
"""


def test_published_values_stand_in_columns_of_their_own(folder: Path, tmp_path: Path) -> None:
    site, values = tmp_path / "site", tmp_path / "values.csv"
    values.write_text(PUBLISHED)
    assert write_board([folder], site, published=values).read == 5
    (head,), (rows,) = data_of(site, "section"), data_of(site, "rows")
    assert [(one["name"], one["metric"], one["base"]) for one in head["references"]] == [
        ("a", "efficacy", ["12", 12.0, ""]),
        ("b", "score", None),
    ]
    by_editor = {row["editor"]: row["references"] for row in rows}
    assert by_editor["memit"] == [["96.5", 96.5, ""], None]
    assert by_editor["rome"] == [None, [">70", 70.0, "(quoted)"]]
    assert any("A, T1" in note and "read in the paper" in note for note in head["notes"])
    assert write_board([folder], site, published=values).read == 0
    values.write_text(PUBLISHED.replace("96.5", "97"))
    assert write_board([folder], site, published=values).read == 5
    assert write_board([folder], site).read == 5
    assert data_of(site, "section")[0]["references"] == []


def test_other_code_makes_everything_again(folder: Path, tmp_path: Path) -> None:
    write_board([folder], tmp_path / "site")
    mark = tmp_path / "site" / MARK
    mark.write_text(mark.read_text().replace('"code":"', '"code":"x'))
    assert write_board([folder], tmp_path / "site").read == 5
    mark.write_text("{}")
    assert write_board([folder], tmp_path / "site").read == 5


def test_the_edits_of_a_record_are_offered(folder: Path, tmp_path: Path) -> None:
    path = next(folder.glob("*--memit--*.json"))
    path.with_name(f"{path.stem}.edits-50.safetensors").write_bytes(b"edits")
    write_board([folder], tmp_path / "site")
    assert (tmp_path / "site" / "files" / f"{path.stem}.edits-50.safetensors").read_bytes() == b"edits"
    assert "edits-50.safetensors" in (tmp_path / "site" / "records" / f"{path.stem}.html").read_text()


def test_folders_without_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no record"):
        write_board([tmp_path], tmp_path / "site")
    with pytest.raises(DataError, match="no such folder"):
        write_board([tmp_path / "none"], tmp_path / "site")
    assert not (tmp_path / "site").exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan("mini", "memit", {"layers": [0, 1], "v_lr": 5e-4, "v_stop": "loss", "x": "1e3", "y": None, "z": "true"}),
        Plan("a b'c", "rome+rect", edits="zsre", num_edits=5, tasks=("NER", "NLI"), seed=3, limit=10),
        Plan(arch={"blocks": "h"}, stop_on_collapse=True, known_only=True, eval_at="1,10,final", order="random"),
        Plan(num_fewshot=0, apply_chat_template=True, system_instruction="Be brief.", fewshot_as_multiturn=False),
        Plan(gen_kwargs={"until": ["a", "b"], "temperature": 0.5, "do_sample": True}, think_end_token=7),
        Plan(apply_chat_template="tool_use", enable_thinking=False, think_end_token="</think>"),
        Plan(model_args={"revision": "main", "trust_remote_code": False}, mode="sequential", edit_batch_size=2),
    ],
    ids=range(8),
)
def test_the_command_makes_the_same_plan(plan: Plan) -> None:
    said = repeat_command(plan.to_json())
    assert said is not None
    _, _, *arguments = shlex.split(said)
    with click.Context(run_command) as context:
        run_command.parse_args(context, arguments)
    options = {key: value for key, value in context.params.items() if key in PlanOptions.__dataclass_fields__}
    (found,) = PlanOptions(**options).plans()
    assert found.id == plan.id


def test_a_plan_of_another_version_has_no_command() -> None:
    assert repeat_command({"model": "mini", "new_field": 1}) is None


# --- numbers of several tasks -----------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_difference_covers_it() -> None:
    """Of 400 pairs of samples with true changes of -0.1 and 0.04, the mean of which is -0.03."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        measures = []
        for kept, gained in ((0.75, 0.05), (0.95, 0.09)):
            before = rng.random(120) < 0.5
            after = np.where(before, rng.random(120) < kept, rng.random(120) < gained)
            sides = [{str(i): Ratio(float(one)) for i, one in enumerate(side)} for side in (before, after)]
            found = difference(*sides, seed=0)
            measures.append({"difference": {"value": found.value, "interval": (found.low, found.high)}})
        mean = mean_difference(measures)
        assert mean is not None
        truth = ((0.5 * 0.75 + 0.5 * 0.05 - 0.5) + (0.5 * 0.95 + 0.5 * 0.09 - 0.5)) / 2
        hits += mean[1] <= truth <= mean[2]
    assert 0.925 <= hits / 400 <= 0.985


def test_a_mean_difference_needs_every_difference() -> None:
    one = {"difference": {"value": 0.2, "interval": [0.1, 0.5]}}
    assert mean_difference([one, None]) is None and mean_difference([]) is None
    assert mean_difference([one, one]) == pytest.approx((0.2, 0.2 - 0.02**0.5 / 2, 0.2 + 0.18**0.5 / 2))


def test_which_test_a_difference_has() -> None:
    right, half = {"a": Ratio(1.0), "b": Ratio(0.0)}, {"a": Ratio(0.5), "b": Ratio(0.0)}
    assert is_exact(right, right) and not is_exact(right, half)
