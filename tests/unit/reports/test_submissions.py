"""Submissions: what is in order is checked, what was forged is told in one line, and nothing is half-written."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import record

from harness.errors import DataError, UsageError
from harness.reports.cells import CHECKED, RESCORED
from harness.reports.leaderboard import leaderboard
from harness.reports.rescoring import why_not_here
from harness.reports.submissions import make_submission, note_rescored, read_submission, submissions_in
from harness.reports.tables_file import records_at
from harness.runs.record import Record
from harness.runs.record_file import read_record, write_record

COMMUNITY = Path(__file__).parents[3] / "results" / "community"
RECORDS = COMMUNITY.parent / "records"
[EXAMPLE] = submissions_in(COMMUNITY)

Json = dict[str, Any]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A copy of the committed submission, as somebody could have changed it."""
    place = shutil.copytree(EXAMPLE, tmp_path / "given" / EXAMPLE.name)
    (place / "rescored.json").unlink(missing_ok=True)
    return place


def edit_json(path: Path, change: Callable[[Json], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rehash(folder: Path) -> None:
    """Forge the list of hashes, as whoever changes a file would."""
    names = [path.name for path in folder.iterdir() if path.name not in ("submission.json", "rescored.json")]
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    edit_json(folder / "submission.json", lambda about: about.update(files=found))


def forge(folder: Path, change: Callable[[Record], None]) -> None:
    """Change a record, and write it with another seal and other hashes, as if it had been so."""
    path = folder / f"{folder.name}.json"
    made = read_record(path, values=True)
    change(made)
    write_record(path, made, small=False)
    rehash(folder)


# --- what is in order -------------------------------------------------------------------------------------------------


def test_the_committed_submissions_are_in_order() -> None:
    found = [read_submission(place) for place in submissions_in(COMMUNITY)]
    assert [one.record.standing for one in found] == [RESCORED]
    assert all(one.record.values for one in found)


def test_a_record_becomes_a_submission(tmp_path: Path) -> None:
    path = next(RECORDS.glob("mini--ft_l--zsre-50--batch--*[0-9a-f].json"))
    made = make_submission(path, tmp_path / "community", contact="Ada <a@b.c>", hardware="one core")
    assert made.record.standing == CHECKED and made.record.id == json.loads(path.read_text())["id"]
    assert {"no samples were given", "no saved edits were given"} <= set(made.notes)
    assert made.folder == tmp_path / "community" / path.stem
    about = json.loads((made.folder / "submission.json").read_text())
    assert (about["contact"], about["hardware"], about["patch"]) == ("Ada <a@b.c>", "one core", None)
    assert json.loads((made.folder / "plan.json").read_text()) == made.record.plan
    with pytest.raises(UsageError, match="is there already"):
        make_submission(path, tmp_path / "community", contact="Ada")


def test_a_row_says_how_far_it_was_checked(given: Path) -> None:
    [kept] = records_at(given.parent)
    assert kept.standing == CHECKED
    assert "| memit<br>checked |" in leaderboard([kept], "md")
    assert "<td" in (page := leaderboard([kept], "html")) and "memit<small>checked</small>" in page
    assert leaderboard([kept], "csv").splitlines()[0].endswith(",standing")
    assert "checked" not in leaderboard([replace(kept, standing=None)], "md")
    both = leaderboard([kept, replace(record("rome", 0.5, tasks=()))], "md")
    assert "| rome<br>run here |" in both and "Re-scored here: " in both


def test_repeating_a_run_counts_for_its_numbers_alone(given: Path) -> None:
    one = note_rescored(read_submission(given), numbers=12, date="2026-11-29", versions={"torch": "2"})
    assert one.record.standing == RESCORED and read_submission(given).record.standing == RESCORED

    def slower(made: Record) -> None:
        made.points[1]["weights"] = {}

    forge(given, slower)
    assert read_submission(given).record.standing == CHECKED


def test_large_files_stay_with_their_authors(given: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.reports.submissions._KEPT_AT_MOST", 10)
    edits = given / f"{given.name}.safetensors"
    made = make_submission(given / f"{given.name}.json", tmp_path / "again", contact="Ada", patch=edits)
    assert not (made.folder / edits.name).exists()
    sha256 = hashlib.sha256(edits.read_bytes()).hexdigest()
    assert json.loads((made.folder / "submission.json").read_text())["patch"]["sha256"] == sha256
    assert any(note.startswith("the saved edits are with their author") for note in made.notes)


# --- what is not ------------------------------------------------------------------------------------------------------


def first_metric(made: Record) -> Json:
    numbers: Json = made.points[1]["tasks"]["NLI"]["accuracy"]
    return numbers


def better(made: Record) -> None:
    first_metric(made)["value"] += 0.01


def surer(made: Record) -> None:
    made.points[1]["tasks"]["NER"]["f1"]["difference"]["interval"] = [-0.001, 0.001]


def likelier(made: Record) -> None:
    made.points[1]["tasks"]["NER"]["f1"]["difference"]["p"] = 0.9


def without_documents(made: Record) -> None:
    assert made.values is not None
    made.values[20] = {
        task: {m: v for m, v in table.items() if m != "accuracy"} for task, table in made.values[20].items()
    }
    first_metric(made)["value"] = 1.0


def interrupted(made: Record) -> None:
    made.status = "interrupted"


def not_restored(made: Record) -> None:
    name = next(iter(made.weights["restored"]))
    made.weights["restored"][name] = "0" * 64


def of_no_version(made: Record) -> None:
    made.versions.pop("lm_eval")


def of_no_model(made: Record) -> None:
    made.model["sha256"] = "unknown"


def of_no_rows(made: Record) -> None:
    made.data["NLI"]["sha256"] = ""


def of_another_plan(made: Record) -> None:
    made.plan["seed"] = 5


def of_a_plan_to_come(made: Record) -> None:
    made.plan["colour"] = "red"


def of_other_settings(made: Record) -> None:
    made.editor["hyperparameters"]["lam"] = 1.5


def brought_in(made: Record) -> None:
    made.published = {
        "label": "published", "format": "x", "protocol": "x", "repository": None, "commit": None, "licence": None,
        "unknown": [],
    }  # fmt: skip


FORGED = [
    (better, r"NLI accuracy after 20 edits, the value is .* but its documents give"),
    (surer, r"NER f1 after 20 edits, the difference's interval is .* but its documents give"),
    (likelier, r"NER f1 after 20 edits, the difference's p value is .* but its documents give"),
    (without_documents, r"NLI accuracy after 20 edits has no documents"),
    (interrupted, "the run is interrupted, expected complete"),
    (not_restored, "the weights were not what they had been"),
    (of_no_version, "the version of lm_eval is not told"),
    (of_no_model, "the sha256 of the model's weights is not told"),
    (of_no_rows, "the sha256 of the rows of 'NLI' is not told"),
    (of_another_plan, "its plan has the id .*, its record 816838e7"),
    (of_a_plan_to_come, "its plan cannot be carried out .*'colour' is not a field"),
    (of_other_settings, "these edits are of another run: hyperparameters is another one"),
    (brought_in, "is a published run that was brought in"),
]


@pytest.mark.parametrize(("change", "said"), FORGED)
def test_a_forged_record_is_told_in_one_line(change: Callable[[Record], None], said: str, given: Path) -> None:
    read_submission(given)
    forge(given, change)
    with pytest.raises(DataError, match=said) as found:
        read_submission(given)
    assert "\n" not in str(found.value)


def other_seed_in_the_plan(folder: Path) -> None:
    edit_json(folder / "plan.json", lambda plan: plan.update(seed=3))
    rehash(folder)


def field_left_out_of_the_plan(folder: Path) -> None:
    edit_json(folder / "plan.json", lambda plan: plan.pop("dtype"))
    rehash(folder)


def other_patch(folder: Path) -> None:
    with (folder / f"{folder.name}.safetensors").open("ab") as file:
        file.write(b"x")
    rehash(folder)


def patch_with_another_manifest(folder: Path) -> None:
    path = folder / f"{folder.name}.safetensors"
    content = path.read_bytes()
    assert content.count(b'\\"seed\\": 0') or content.count(b'\\"seed\\":0')
    path.write_bytes(content.replace(b'\\"seed\\": 0', b'\\"seed\\": 1').replace(b'\\"seed\\":0', b'\\"seed\\":1'))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(folder / "submission.json", lambda about: about["patch"].update(sha256=sha256))
    rehash(folder)


def unnamed_patch(folder: Path) -> None:
    edit_json(folder / "submission.json", lambda about: about.update(patch=None))


def patch_by_a_path(folder: Path) -> None:
    edit_json(folder / "submission.json", lambda about: about["patch"].update(name="../../../etc/passwd"))


def cut_values(folder: Path) -> None:
    path = folder / f"{folder.name}.values.json.xz"
    path.write_bytes(path.read_bytes()[:-20])
    rehash(folder)


def cut_samples(folder: Path) -> None:
    path = folder / f"{folder.name}.samples.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"task": "NLI"}\n'))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(folder / "submission.json", lambda about: about["samples"].update(sha256=sha256))
    rehash(folder)


def stranger(folder: Path) -> None:
    (folder / "<b>run me<b>.sh").write_text("rm -rf /")


def link(folder: Path) -> None:
    path = folder / f"{folder.name}.values.json.xz"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def changed_by_hand(folder: Path) -> None:
    path = folder / f"{folder.name}.json"
    path.write_text(path.read_text().replace('"seconds"', '"seconds" '))


def missing_plan(folder: Path) -> None:
    (folder / "plan.json").unlink()


def about(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "submission.json", lambda said: said.update(fields))


ODD = [
    (other_seed_in_the_plan, r"plan\.json: 'seed' is another one than in its record"),
    (field_left_out_of_the_plan, r"plan\.json: 'dtype' is another one than in its record"),
    (other_patch, r"the patch has the sha256 [0-9a-f]{12}, submission\.json says"),
    (patch_with_another_manifest, "its manifest is not what was written"),
    (unnamed_patch, r"the patch has the sha256 [0-9a-f]{12}, submission\.json says nothing"),
    (patch_by_a_path, r"patch '\.\./\.\./\.\./etc/passwd': expected mini--memit"),
    (cut_values, r"values\.json\.xz: not whole"),
    (cut_samples, r"samples\.jsonl\.xz, line 1: not what a run writes"),
    (stranger, r"'<b>run me<b>\.sh' is no file of a submission"),
    (link, "is no plain file"),
    (changed_by_hand, r"its sha256 is [0-9a-f]{12}, submission\.json says"),
    (missing_plan, r"'plan\.json' is missing"),
    (about(contact="Ada\nLovelace"), r"contact 'Ada\\nLovelace': expected one line"),
    (about(contact="  "), r"contact '  ': expected one line"),
    (about(hardware="\x1b[31mred"), r"hardware '\\x1b\[31mred': expected one line"),
    (about(contact=5), r"submission\.json: not what harness submit writes"),
    (about(schema=9), "schema 9, this version reads 1"),
    (about(record="0" * 16), "the folder is to have its name"),
    (lambda folder: (folder / "submission.json").write_text("{"), "not what harness submit writes"),
    (lambda folder: (folder / "rescored.json").write_text('{"record": "x"}'), r"rescored\.json: not what harness"),
]


@pytest.mark.parametrize(("damage", "said"), ODD)
def test_a_damaged_submission_is_told_in_one_line(damage: Callable[[Path], object], said: str, given: Path) -> None:
    damage(given)
    with pytest.raises(DataError, match=said) as found:
        read_submission(given)
    assert "\n" not in str(found.value)


def test_a_folder_of_another_name_is_refused(given: Path) -> None:
    moved = given.rename(given.with_name("..=cmd|x"))
    with pytest.raises(DataError, match=r"'\.\.=cmd\|x\.json' is missing|is no file of a submission"):
        read_submission(moved)


NOT_TAKEN = [
    (better, {}, "but its documents give"),
    (interrupted, {}, "expected complete"),
    (lambda made: None, {"contact": "a\tb"}, "contact"),
    (lambda made: None, {"contact": "x" * 201}, "contact"),
]


@pytest.mark.parametrize(("change", "given_as", "said"), NOT_TAKEN)
def test_what_is_not_in_order_is_not_written(
    change: Callable[[Record], None], given_as: Json, said: str, given: Path, tmp_path: Path
) -> None:
    forge(given, change)
    (tmp_path / "to").mkdir()
    with pytest.raises(DataError, match=said):
        make_submission(given / f"{given.name}.json", tmp_path / "to", **{"contact": "Ada", **given_as})
    assert list((tmp_path / "to").iterdir()) == []


def test_a_record_without_its_values_is_not_taken(tmp_path: Path) -> None:
    path = shutil.copy(EXAMPLE / f"{EXAMPLE.name}.json", tmp_path)
    with pytest.raises(DataError, match=r"what its documents contributed is missing"):
        make_submission(Path(path), tmp_path / "to", contact="Ada")
    assert not (tmp_path / "to").exists()


# --- carried out again ------------------------------------------------------------------------------------------------

ELSEWHERE = [
    ({"model": "gpt2"}, "its model does not ship"),
    ({"editor": "/tmp/mine.py"}, "its editor is a file"),
    ({"data_dir": "/data"}, "its rows or texts do not ship"),
    ({"text": "http://x"}, "its rows or texts do not ship"),
    ({"include_path": ["/tmp"]}, "its plan names files"),
    ({"patch": "/tmp/x.safetensors"}, "its plan names files"),
    ({"tasks": ["humaneval"]}, "its plan names humaneval, which is no task of this project"),
    ({"edits": "/etc/passwd"}, "its plan names /etc/passwd"),
]


@pytest.mark.parametrize(("fields", "said"), ELSEWHERE)
def test_a_strangers_plan_runs_nothing_but_what_ships(fields: Json, said: str) -> None:
    made = read_submission(EXAMPLE).record
    assert why_not_here(made) is None
    assert str(why_not_here(replace(made, plan={**made.plan, **fields}))).startswith(said)
