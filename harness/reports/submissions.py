"""Rows that others give to the board: one folder each, which says all that is needed to check it.

``NAME/NAME.json`` is the record, ``NAME.values.json.xz`` what each document contributed, ``plan.json`` the plan, and
``submission.json`` who gives it, on what it was run, and the sha256 of every file. Samples and saved edits lie beside
them where they are small. ``rescored.json`` is written where the plan was carried out again, and its numbers held.

How far a row was checked is never what its folder claims: it follows from the files each time they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from harness.editing.patch_file import patch_manifest
from harness.errors import DataError, UsageError
from harness.io.files import beside, json_text, require_writable, values_path, write_whole
from harness.io.schema import Count, checked, parsed
from harness.reports.board.index import SUBMISSION
from harness.reports.cells import CHECKED, RESCORED
from harness.runs.plan import Plan, current_names
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record, record_paths
from harness.runs.sample_file import iterate_samples, samples_path
from harness.runs.saved_edits import patch_path
from harness.runs.ties import untied

__all__ = [
    "Submission",
    "folders_of_submissions",
    "make_submission",
    "note_rescored",
    "read_submission",
    "submissions_in",
]

Json = dict[str, Any]

_ABOUT, _PLAN, _AGAIN = SUBMISSION, "plan.json", "rescored.json"
_SCHEMA = 1
_KEPT_AT_MOST = 2 * 2**20
"""Bytes of samples, or of saved edits, that lie in the folder; larger ones stay with their authors."""
_VERSIONS = ("python", "harness", "torch", "transformers", "lm_eval")
_LINE = 200  # characters
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _File(TypedDict):
    name: str
    sha256: str


class _SubmissionFile(TypedDict):
    schema: Count
    record: str
    contact: str
    hardware: str
    files: dict[str, str]
    patch: _File | None
    samples: NotRequired[_File | None]


class _RescoredFile(TypedDict):
    record: str
    seal: str
    numbers: Count
    date: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Submission:
    """A submission that is in order.

    Attributes:
        folder: where it lies.
        record: its record, with the values of its documents and how far it was checked.
        notes: what a reader should know, such as that no samples were given.
        contact: who can be asked about it.
        hardware: on what it was run.
    """

    folder: Path
    record: Record
    notes: tuple[str, ...] = ()
    contact: str = ""
    hardware: str = ""


# --- making one -------------------------------------------------------------------------------------------------------


def make_submission(
    path: Path, to: Path, *, contact: str, hardware: str | None = None, patch: Path | None = None
) -> Submission:
    """Write the folder of a record, all of it or nothing, if all is in order.

    Args:
        path: the JSON of a run, with its values beside it; or a folder that holds one.
        to: the folder of submissions.
        contact: who can be asked about it.
        hardware: on what it was run; by default the device that the record names.
        patch: the file of saved edits; by default that beside the record.

    Raises:
        DataError: something is not in order; says what, in one line.
        UsageError: it is there already, or cannot be written.
    """
    path = _only_record(path)
    record = read_record(path, values=True)
    _require_sound(record, str(path))
    _require_plain(path)
    place = to / record_name(record)
    if place.exists():
        raise UsageError(f"{place}: is there already; delete it to submit its record anew")
    require_writable(to, "choose another folder with --to")
    about = {
        "schema": _SCHEMA,
        "record": record.id,
        "contact": contact,
        "hardware": hardware or str(record.model.get("device") or "not told"),
    }
    edits = patch or _saved_edits(path, record)
    try:
        with beside(place) as temporary:
            temporary.mkdir()
            _fill(temporary, path=path, record=record, about=about, patch=edits)
            read_submission(temporary, place.name)
            temporary.replace(place)
    except OSError as error:
        raise UsageError(
            f"{place}: cannot be written ({error.strerror}); make room, or choose another folder"
        ) from error
    return read_submission(place)


def _saved_edits(path: Path, record: Record) -> Path | None:
    """The file of the edits of the last stop beside a record, where there is one."""
    last = max((int(point["edits"]) for point in record.points), default=0)
    found = patch_path(path.parent, record, last)
    return found if found.is_file() else None


def _fill(folder: Path, *, path: Path, record: Record, about: Json, patch: Path | None) -> None:
    """Write the files of a submission.

    Args:
        folder: an empty folder.
        path: the JSON of the record.
        record: the record.
        about: who gives it, and on what it was run.
        patch: the file of saved edits.
    """
    name = record_name(record)
    target = folder / f"{name}.json"
    shutil.copyfile(path, target)
    shutil.copyfile(values_path(path), values_path(target))
    (folder / _PLAN).write_text(json_text(record.plan) + "\n", encoding="utf-8")
    given = {
        "patch": _given(patch, folder / f"{name}.safetensors"),
        "samples": _given(samples_path(path), samples_path(target)),
    }
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / _ABOUT).write_text(json_text({**about, "files": files, **given}) + "\n", encoding="utf-8")


def _given(source: Path | None, target: Path) -> Json | None:
    """What names a file, which is copied where it is small; None where there is none."""
    if source is None or not source.is_file():
        return None
    if source.stat().st_size <= _KEPT_AT_MOST:
        shutil.copyfile(source, target)
    return {"name": target.name, "sha256": _sha256(source)}


def _only_record(path: Path) -> Path:
    """The record itself, or the one in a folder.

    Raises:
        DataError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = record_paths(path)
    if len(found) != 1:
        raise DataError(f"{path}: holds {len(found)} records; name the one that is to be submitted")
    return found[0]


def _require_plain(path: Path) -> None:
    if path.is_symlink():
        raise DataError(f"{path}: is a link; give the file itself")


# --- reading one ------------------------------------------------------------------------------------------------------


def submissions_in(folder: Path) -> list[Path]:
    """The submissions in a folder, in the order of their names; itself where it is one; none where there is none."""
    if (folder / _ABOUT).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{_ABOUT}"))


def folders_of_submissions(folder: Path) -> list[Path]:
    """Every folder of a folder of submissions, in order or not; itself where it is one.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of submissions")
    if (folder / _ABOUT).is_file():
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: holds no submission; make one with: harness submit RECORD --contact ...")
    return found


def read_submission(folder: Path, name: str | None = None) -> Submission:
    """A submission, every file of which was looked at.

    Args:
        folder: where it lies.
        name: what the folder is to be called; by default what it is called.

    Raises:
        DataError: something is not in order; says what, in one line.
    """
    name = name or folder.name
    about = _about(folder)
    _require_files(folder, name, about)
    record = read_record(folder / f"{name}.json", values=True)
    if record_name(record) != name or record.id != about["record"]:
        raise DataError(f"{folder}: holds the record {record_name(record)}; the folder is to have its name")
    _require_sound(record, str(folder))
    _require_same_plan(folder, record)
    _require_patch(folder, name, about=about, record=record)
    notes = tuple(_notes(folder, about, record))
    record = replace(record, standing=_standing(folder, record))
    return Submission(folder, record, notes, about["contact"], about["hardware"])


def _about(folder: Path) -> Json:
    found = _json(folder / _ABOUT, _SubmissionFile)
    if found["schema"] != _SCHEMA:
        raise DataError(f"{folder / _ABOUT}: schema {found['schema']}, this version reads {_SCHEMA}; submit it anew")
    for key in ("contact", "hardware"):
        text = found[key]
        if not text.strip() or len(text) > _LINE or not text.isprintable():
            raise DataError(
                f"{folder / _ABOUT}: {key} {ascii(text)[:40]}: expected one line of at most {_LINE} characters"
            )
    return found


def _json(path: Path, kind: type) -> Json:
    """What a file of the folder holds.

    Raises:
        DataError: it is not there, or not what :func:`make_submission` writes.
    """
    try:
        found: Json = parsed(path.read_bytes())
        checked(kind, found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with: harness submit RECORD") from error
    except ValueError as error:
        raise DataError(f"{path}: not what harness submit writes ({error}); submit the record anew") from error
    return found


def _require_files(folder: Path, name: str, about: Json) -> None:
    """See that the folder holds the files that it names, as they were, and no other."""
    needed = {f"{name}.json", f"{name}.values.json.xz", _PLAN}
    small = {f"{name}.safetensors", samples_path(f"{name}.json").name}
    there = {path.name for path in folder.iterdir()} - {_ABOUT, _AGAIN}
    for odd in sorted(there - needed - small):
        raise DataError(f"{folder}: {odd!a} is no file of a submission; take it out")
    for absent in sorted((needed | set(about["files"])) - there):
        raise DataError(f"{folder}: {absent!a} is missing; submit the record anew")
    for file in sorted(there | {_ABOUT}):
        if not (folder / file).is_file() or (folder / file).is_symlink():
            raise DataError(f"{folder / file}: is no plain file; submit the record anew")
        if file != _ABOUT and about["files"].get(file) != (found := _sha256(folder / file)):
            said = about["files"].get(file) or "nothing"
            raise DataError(
                f"{folder / file}: its sha256 is {found[:12]}, submission.json says {said[:12]}; submit it anew"
            )


def _require_sound(record: Record, where: str) -> None:
    """See that a record can stand on a board: whole, with its numbers, hashes and versions.

    Raises:
        DataError: it cannot.
    """
    for fault in _faults(record):
        raise DataError(f"{where}: {fault}")


def _faults(record: Record) -> Iterator[str]:
    if record.published:
        yield "is a published run that was brought in; give its files to harness import instead"
    if record.status != "complete":
        yield f"the run is {record.status}, expected complete; finish it with the same command"
    if record.values is None:
        yield "what its documents contributed is missing; submit the files of the run"
    yield from _odd_plan(record)
    yield from _odd_hashes(record)
    for library in _VERSIONS:
        if record.versions.get(library) in (None, "", "not installed"):
            yield f"the version of {library} is not told; repeat the run"
    yield from _without_documents(record)
    if record.sealed is not None and record.sealed != record.seal():
        yield "its numbers are not those that were sealed beside its documents; repeat the run"
    # The seal is no secret: whoever changes numbers can write another, so that all are computed again.
    yield from (f"{found}; repeat the run" for found in untied(replace(record, sealed=None)))


def _odd_plan(record: Record) -> Iterator[str]:
    try:
        plan = Plan.from_json(record.plan)
    except UsageError as error:
        yield f"its plan cannot be carried out ({error})"
        return
    if plan.id != record.id:
        yield f"its plan has the id {plan.id}, its record {record.id}; repeat the run"


def _odd_hashes(record: Record) -> Iterator[str]:
    """Hashes without which nobody knows what was measured."""
    if not _SHA256.fullmatch(str(record.model.get("sha256"))):
        yield "the sha256 of the model's weights is not told; repeat the run"
    if record.edits.get("count") and not record.edits.get("sha256"):
        yield "the sha256 of its edits is not told; repeat the run"
    for task, source in record.data.items():
        if not source.get("sha256") and not source.get("reason"):
            yield f"the sha256 of the rows of {task!a} is not told; repeat the run"
    before, restored = record.weights.get("before", {}), record.weights.get("restored", {})
    if before != restored:
        yield "the weights were not what they had been after the run; repeat it"


def _without_documents(record: Record) -> Iterator[str]:
    """Numbers that no document is behind, though they say so: of those that have a count, an interval or a test."""
    for point in record.points:
        values = (record.values or {}).get(int(point["edits"]), {})
        for task, measures in point["tasks"].items():
            for metric, numbers in measures.items():
                parts = record.derived.get(task, {}).get(metric, [metric])
                claims = numbers["n"] or numbers["interval"] is not None or numbers["difference"] is not None
                if numbers["value"] is not None and claims and not all(part in values.get(task, {}) for part in parts):
                    yield f"{task} {metric} after {point['edits']} edits has no documents; repeat the run"


def _require_same_plan(folder: Path, record: Record) -> None:
    plan = current_names(_json(folder / _PLAN, dict))
    changed = [key for key in {**plan, **record.plan} if plan.get(key, _PLAN) != record.plan.get(key, _PLAN)]
    if changed:
        raise DataError(f"{folder / _PLAN}: {changed[0]!a} is another one than in its record; submit the record anew")


def _require_patch(folder: Path, name: str, *, about: Json, record: Record) -> None:
    """See that saved edits and samples are those that the submission names, and those of its record.

    Args:
        folder: the submission.
        name: of the record.
        about: what the submission says.
        record: its record.
    """
    for key, file in (("patch", f"{name}.safetensors"), ("samples", samples_path(f"{name}.json").name)):
        told = about.get(key)
        if told is not None and (told["name"] != file or not _SHA256.fullmatch(told["sha256"])):
            raise DataError(f"{folder / _ABOUT}: {key} {ascii(told['name'])[:60]}: expected {file} and its sha256")
        if (folder / file).exists():
            found = _sha256(folder / file)
            if told is None or told["sha256"] != found:
                said = "nothing" if told is None else told["sha256"][:12]
                raise DataError(f"{folder / file}: the {key} has the sha256 {found[:12]}, submission.json says {said}")
    if (folder / f"{name}.safetensors").exists():
        _require_own_patch(folder / f"{name}.safetensors", record)
    if samples_path(folder / f"{name}.json").exists():
        for _ in iterate_samples(folder / f"{name}.json"):
            pass


def _require_own_patch(path: Path, record: Record) -> None:
    """See that saved edits say that they are those of a record."""
    about: Mapping[str, Any] = patch_manifest(path)["about"]
    last = max((int(point["edits"]) for point in record.points), default=0)
    mine = {
        "ids": record.edits.get("ids", [])[:last],
        "label": record.editor.get("name"),
        "hyperparameters": record.editor.get("hyperparameters"),
        "seed": record.seed,
        "model": record.plan.get("model"),
        "num_edits": last,
    }
    for key, value in mine.items():
        if json.loads(json.dumps(about.get(key))) != json.loads(json.dumps(value)):
            raise DataError(
                f"{path}: these edits are of another run: {key} is another one than in the record; give its own"
            )


def _notes(folder: Path, about: Json, record: Record) -> Iterator[str]:
    for key, what in (("samples", "samples"), ("patch", "saved edits")):
        told = about.get(key)
        if told is None:
            yield f"no {what} were given"
        elif not (folder / told["name"]).exists():
            yield f"the {what} are with their author (sha256 {told['sha256'][:12]})"
    unknown = sorted(
        f"{task} {metric}"
        for task, measures in record.tasks(max(int(point["edits"]) for point in record.points)).items()
        for metric, numbers in measures.items()
        if numbers["value"] is not None and not numbers["n"]
    )
    if unknown:
        yield f"no mean over documents, so that only repeating the run tells: {', '.join(unknown)}"


# --- carried out again ------------------------------------------------------------------------------------------------


def note_rescored(submission: Submission, *, numbers: int, date: str, versions: Mapping[str, str]) -> Submission:
    """Write down that a submission's plan was carried out again with the same numbers.

    Args:
        submission: the submission.
        numbers: how many numbers were compared.
        date: of today, as ``2026-11-29``.
        versions: of what computed them.

    Raises:
        UsageError: it cannot be written.
    """
    record = submission.record
    said = {
        "record": record.id,
        "seal": record.seal(),
        "numbers": numbers,
        "date": date,
        "versions": dict(versions),
    }
    write_whole(submission.folder / _AGAIN, (json_text(said) + "\n").encode())
    return read_submission(submission.folder)


def _standing(folder: Path, record: Record) -> str:
    """How far a record was checked; that it was repeated counts for the numbers that it has now."""
    if not (folder / _AGAIN).exists():
        return CHECKED
    again = _json(folder / _AGAIN, _RescoredFile)
    return RESCORED if (again["record"], again["seal"]) == (record.id, record.seal()) and again["numbers"] else CHECKED


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()
