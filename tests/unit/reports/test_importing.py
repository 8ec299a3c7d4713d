"""Published runs brought in: what their files say is what the records say, and what they do not say is missing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from published_files import hallu_case, hallu_hops, hallu_row, write_lines

from harness.errors import DataError, UsageError
from harness.exam.statistics import Ratio
from harness.reports.comparison import pair_difference
from harness.reports.importing import Told, find_reader, keep_published, read_published, reader_names
from harness.reports.leaderboard import leaderboard
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_records
from harness.runs.ties import untied

SET = "HalluEditBench"
ROWS = [
    hallu_row("ROME", 0, [1, 1, 1, 0, 1, 0, 1]),
    hallu_row("ROME", 1, [1, 0, 0, 0, 0, 0, 0]),
    hallu_row("ROME", 0, [0, 0, 1, 0, 0, 0, 1], topic="health_symptom"),
    hallu_row("ICL", 0, [1, 1, 1, 1, 1, 1, 1]),
    hallu_row("ICL", 1, [1, 1, 1, 1, 1, 1, 0]),
    hallu_row("ICL", 0, [0, 1, 1, 0, 1, 0, 0], topic="health_symptom"),
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "halluedit_percase_meta_llama_3_8b_instruct.jsonl", ROWS)


def by_editor(records: list[Record]) -> dict[str, Record]:
    return {record.editor["name"]: record for record in records}


# --- HalluEditBench ---------------------------------------------------------------------------------------------------


def test_each_editor_of_a_model_is_a_record(answers: Path) -> None:
    found = by_editor(read_published("halluedit", answers))
    assert set(found) == {"ROME", "ICE"}  # the files say ICL, the paper ICE
    record = found["ROME"]
    assert record.model == {"name": "meta-llama/Meta-Llama-3-8B-Instruct"}
    assert record.edits["count"] == 3 and record.edits["mode"] == "isolated"
    after = record.tasks(3)[SET]
    assert after["efficacy"]["value"] == pytest.approx(2 / 3)
    assert after["generalization"]["value"] == pytest.approx((3 + 0 + 1) / 15)
    assert after["locality_agreement"]["value"] == pytest.approx(2 / 3)
    assert record.values[3][SET]["generalization"]["art_sculpture/0"] == Ratio(3, 5)  # type: ignore[index]


def test_what_the_files_do_not_tell_is_missing_and_not_zero(answers: Path) -> None:
    record = read_published("halluedit", answers)[0]
    assert record.seed is None
    assert record.cost == [] and record.weights == {} and record.versions == {}
    told = record.published
    assert told["label"] == "published, not run here"
    assert (told["repository"], told["licence"], told["commit"]) == ("llm-editing/HalluEditBench", "MIT", None)
    assert {"seed", "seconds", "the sha256 of the weights", "commit"} <= set(told["unknown"])
    assert "locality_agreement" not in record.tasks(0)[SET]
    assert record.tasks(3)[SET]["locality_agreement"]["difference"] is None


def test_the_released_average_rounds_each_topic(tmp_path: Path) -> None:
    rows = [hallu_row("ROME", case, [1, case == 0, 0, 0, 0, 0, 1]) for case in range(3)]
    rows = [{**row, "post": {k: int(v) for k, v in row["post"].items()}} for row in rows]
    after = read_published("halluedit", write_lines(tmp_path / "m.jsonl", rows))[0].tasks(3)[SET]
    assert after["generalization"]["value"] == pytest.approx(1 / 15, abs=1e-9)
    assert after["generalization_released"]["value"] == pytest.approx(0.3333 / 5, abs=1e-12)


def test_the_authors_own_files_give_the_same(answers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hallu_edit" / "meta_llama_3_8b_instruct"
    folder.mkdir(parents=True)
    for editor in ("ROME", "ICL"):
        for topic in ("art_sculpture", "health_symptom"):
            own = [row for row in ROWS if (row["editor"], row["topic"]) == (editor, topic)]
            cases = [hallu_case(row["case_id"], list(row["post"].values())) for row in own]
            (folder / f"{topic}_{editor}.json").write_text(json.dumps(cases))
    collected, own_files = read_published("halluedit", answers), read_published("halluedit", folder.parent)
    assert [r.points for r in own_files] == [r.points for r in collected]
    assert [r.id for r in own_files] == [r.id for r in collected]


def test_questions_over_hops_are_runs_of_their_own(tmp_path: Path) -> None:
    """Their files repeat the edit, whose answer of that run stands beside its hops; a hop of a case may be missing."""
    plain, hops = (tmp_path / name / "meta_llama_3_8b_instruct" for name in ("hallu_edit", "hallu_edit_multi_hop"))
    for folder, cases in ((plain, [hallu_case(0, [1] * 7)]), (hops, [hallu_hops(0, [1, 1, 0, 0, 0, 1])])):
        folder.mkdir(parents=True)
        (folder / "art_sculpture_ROME.json").write_text(json.dumps(cases))
    short = hallu_hops(0, [0, 0, 1], pre=1)
    (hops / "university_ROME.json").write_text(json.dumps([short, hallu_hops(1, [1, 1, 1])]))
    first, second = read_published("halluedit", tmp_path)
    assert [one.edits["dataset"] for one in (first, second)] == [SET, f"{SET}-hops"]
    assert first.points == read_published("halluedit", plain)[0].points and "hop_2" not in first.tasks(1)[SET]
    (alone,) = read_published("halluedit", hops)
    assert (alone.id, alone.points) == (second.id, second.points)
    before, after = (alone.tasks(edits)[f"{SET}-hops"] for edits in (0, 3))
    assert {metric: (one["value"], one["n"]) for metric, one in after.items()} == {
        "efficacy": (pytest.approx(2 / 3), 3),
        "hop_2": (pytest.approx(2 / 3), 3),
        "hop_3": (pytest.approx(2 / 3), 3),
        **dict.fromkeys(("hop_4", "hop_5"), (0.0, 1)),
        "hop_6": (1.0, 1),
    }
    assert after["hop_2"]["difference"]["value"] == pytest.approx(2 / 3 - 1 / 3) and before["hop_3"]["n"] == 3
    del short["post"]["questions_2hop"], short["post"]["questions_3hop"]
    (hops / "university_ROME.json").write_text(json.dumps([{**short, "pre": short["post"]}]))
    with pytest.raises(
        DataError, match=r"university_ROME.json, row 1: no locality.locality_acc; results of many turns"
    ):
        read_published("halluedit", hops)


LLAMA_2 = {"FT-L": 42.697308, "FT-M": 42.877538, "GRACE": 0.520692, "ICE": 77.858154, "LoRA": 47.484462,
           "MEMIT": 49.981846, "ROME": 50.924615}  # fmt: skip
LLAMA_3 = {"FT-L": 30.153923, "FT-M": 40.305692, "GRACE": 7.981077, "ICE": 80.611846, "LoRA": 50.759462,
           "MEMIT": 50.810923, "ROME": 54.050846}  # fmt: skip
"""As printed in the authors' ``code/result_table.ipynb``."""


@pytest.mark.parametrize(("model", "printed"), [("llama_2_7b_chat_hf", LLAMA_2), ("meta_llama_3_8b_instruct", LLAMA_3)])
def test_the_published_table_to_its_last_digit(model: str, printed: dict[str, float], shared: Path) -> None:
    found = by_editor(read_published("halluedit", shared / f"data/published/halluedit_percase_{model}.jsonl.gz"))
    values = {name: one.points[-1]["tasks"][SET]["generalization_released"]["value"] for name, one in found.items()}
    assert {name: f"{100 * value:.6f}" for name, value in values.items()} == {k: f"{v:.6f}" for k, v in printed.items()}


def test_pairing_tells_rome_from_memit_on_llama_3(shared: Path) -> None:
    """+6.05 points [4.04, 8.03]: ends within one of the 2,230 cases of those that a bootstrap gave."""
    path = shared / "data/published/halluedit_percase_meta_llama_3_8b_instruct.jsonl.gz"
    found = by_editor(read_published("halluedit", path))
    change = pair_difference((found["MEMIT"], 2230), (found["ROME"], 2230), task=SET, metric="efficacy")
    assert change is not None and change.low is not None and change.high is not None
    assert round(100 * float(change.value or 0), 2) == 6.05
    assert 100 * change.low == pytest.approx(4.04, abs=100 / 2230)
    assert 100 * change.high == pytest.approx(8.03, abs=100 / 2230)
    assert change.n == 2230 and change.significant


# --- records and tables -----------------------------------------------------------------------------------------------


def test_records_are_written_read_and_tied(answers: Path, tmp_path: Path) -> None:
    paths = keep_published(read_published("halluedit", answers, Told(commit="a07439e")), tmp_path / "out")
    kept = read_records(tmp_path / "out", values=True)
    assert [f"{record_name(record)}.json" for record in kept] == [path.name for path in paths]
    assert all(not list(untied(record)) for record in kept)
    assert [record.to_json() for record in kept] == [
        record.to_json() for record in read_published("halluedit", answers, Told(commit="a07439e"))
    ]
    assert (
        keep_published(read_published("halluedit", answers, Told(commit="a07439e")), tmp_path / "out") == paths
    )  # once more


def test_published_rows_stand_in_a_section_of_their_own(answers: Path, tmp_path: Path) -> None:
    keep_published(read_published("halluedit", answers, Told(commit="a07439e")), tmp_path)
    page = leaderboard(read_records(tmp_path, values=True))
    title = next(line for line in page.splitlines() if line.startswith("## "))
    assert title.endswith("· isolated · published, not run here: llm-editing/HalluEditBench@a07439e")
    assert "Not known of some or all rows: memory" in page
    rows = [line for line in page.splitlines() if line.startswith("| ROME")]
    assert rows[0].endswith("|  |  |")  # neither seconds nor memory
    assert len(rows) == 2 and "### HalluEditBench efficacy, every two editors" in page


def test_a_run_and_a_published_row_share_no_section(answers: Path) -> None:
    published = read_published("halluedit", answers)
    own = Record.from_json({**published[0].to_json(), "published": {}, "id": "0" * 16})
    page = leaderboard([own, *published])
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(titles) == 2 and "published" not in titles[0] and "published" in titles[1]


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(path: Path, form: str = "halluedit") -> str:
    with pytest.raises(DataError) as error:
        read_published(form, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_cut_names_the_line(answers: Path) -> None:
    text = answers.read_text()
    answers.write_text(text[: len(text) - 40])
    assert "line 6" in refused(answers)
    packed = answers.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(text.encode())[:-30])
    assert "gzip" in refused(packed)


def test_a_file_of_another_version_names_the_row(answers: Path) -> None:
    row = hallu_row("ROME", 7, [1] * 7)
    write_lines(answers, [*ROWS, {**row, "post": [1, 1]}])
    assert "row 7: not a row of HalluEditBench's answers (post" in refused(answers)
    write_lines(answers, [{**row, "post": {**row["post"], "edit": 0.5}}])
    assert re.search(r"row 1: .*edit", refused(answers))
    write_lines(answers, [{**row, "post": {**row["post"], "harm": 1}}])
    assert re.search(r"row 1: 'harm' is 1; expected 0 or 1 for each of edit", refused(answers))


def test_runs_that_are_mixed_name_both_rows(answers: Path) -> None:
    write_lines(answers, [*ROWS, hallu_row("ROME", 1, [0] * 7)])
    said = refused(answers)
    assert "row 7: case 1 of art_sculpture under ROME was there before" in said and "row 2)" in said


@pytest.mark.parametrize("name", ["", " ", "a\x1b[31mb", "x" * 300, 7.5])
def test_a_name_that_is_none_is_refused(answers: Path, name: object) -> None:
    write_lines(answers, [{**ROWS[0], "editor": name}])
    assert "editor" in refused(answers)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "=HYPERLINK(1)", "../../etc/passwd", "a|b", "C:\\x"])
def test_a_hostile_name_is_text_in_every_format_and_no_path(answers: Path, tmp_path: Path, name: str) -> None:
    write_lines(answers, [{**ROWS[0], "editor": name}, {**ROWS[0], "editor": "ROME"}])
    out = tmp_path / "deep" / "out"
    paths = keep_published(read_published("halluedit", answers), out)
    assert all(path.parent == out and path.is_file() for path in paths)
    kept = read_records(out, values=True)
    assert "<script" not in leaderboard(kept, "html").partition("<tbody>")[2].partition("<script>document")[0]
    assert "\n=HYPERLINK" not in leaderboard(kept, "csv") and ",=HYPERLINK" not in leaderboard(kept, "csv")


def test_a_folder_without_results_and_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no results of halluedit" in refused(tmp_path / "empty")
    assert "no such file or folder" in refused(tmp_path / "missing")


def test_an_id_with_other_numbers_is_refused_and_nothing_is_written(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keep_published(read_published("halluedit", answers), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_lines(answers, [*ROWS[:-1], hallu_row("ICL", 0, [1] * 7, topic="health_symptom")])
    with pytest.raises(DataError, match=r"two records claim the id [0-9a-f]{16} .* with other numbers"):
        keep_published(read_published("halluedit", answers), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_format_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"format 'haluedit' cannot be imported .did you mean halluedit"):
        find_reader("haluedit")
    assert "halluedit" in reader_names()
