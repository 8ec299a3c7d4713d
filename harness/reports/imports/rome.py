"""ROME, MEMIT and AlphaEdit: a file for each case, as their ``experiments/evaluate.py`` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from harness.errors import DataError
from harness.reports.case_files import CaseFile, case_scores, edit_set_of, exam_of, protocol_of, simple_settings
from harness.reports.foreign_files import Once, model_name, read_json, require_shape
from harness.reports.importing import Reader, Told
from harness.reports.published_runs import PublishedRun, one_line_name

__all__ = ["RomeCases"]

_File = re.compile(r"(?:\d+_edits-)?case_(\d+)\.json")
_Cases = list[tuple[CaseFile, Path]]


class RomeCases(Reader):
    """ROME, MEMIT, AlphaEdit and what follows them: a folder of ``case_*.json``, or of such folders."""

    name: ClassVar[str] = "rome"

    def reads(self, path: Path) -> bool:
        """Whether there is a file named by a case."""
        return any(True for _ in _case_files(path))

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each folder that has files of cases."""
        folders: dict[Path, list[Path]] = {}
        for file in _case_files(path):
            folders.setdefault(file.parent, []).append(file)
        for folder, files in sorted(folders.items()):
            yield _run(folder, _read(files), told)


def _case_files(path: Path) -> Iterator[Path]:
    files = [path] if path.is_file() else path.rglob("*case_*.json")
    return (file for file in files if _File.fullmatch(file.name))


def _read(files: Sequence[Path]) -> _Cases:
    """The cases of one folder, in the order of their numbers."""
    once, found = Once(), []
    for file in sorted(files, key=lambda file: (int(_File.fullmatch(file.name)[1]), file.name)):  # type: ignore[index]
        case = read_json(file)
        require_shape(CaseFile, case, where=str(file), what="ROME's, MEMIT's or AlphaEdit's results")
        once(case["case_id"], str(file), f"case {case['case_id']}")
        found.append((case, file))
    _require_one_run(found)
    return found


def _require_one_run(cases: _Cases) -> None:
    """See that all cases were edited in groups of one size and asked alike."""
    kinds: dict[str, list[int] | list[str]] = {
        "the size of a group": [case.get("num_edits", 1) for case, _ in cases],
        "what was asked": [edit_set_of([case]) for case, _ in cases],
    }
    for what, found in kinds.items():
        each = list(map(str, found))
        usual = max(set(each), key=lambda one: (each.count(one), one))
        others = [(file, one) for (_, file), one in zip(cases, each, strict=True) if one != usual]
        if others:
            names = ", ".join(file.name for file, _ in others[:3]) + (" and more" if len(others) > 3 else "")
            raise DataError(
                f"{others[0][0].parent}: runs are mixed: {what} is {usual} in {each.count(usual)} files, but "
                f"{others[0][1]} in {names}; give the files of one run"
            )


def _run(folder: Path, cases: _Cases, told: Told) -> PublishedRun:
    settings = simple_settings(folder / "params.json")
    mode, edits, batch = _made([case for case, _ in cases], told)
    placed = [(case, str(file)) for case, file in cases]
    before, after = case_scores(placed, "pre"), case_scores(placed, "post")
    edit_set = told.edit_set or edit_set_of(case for case, _ in cases)
    return PublishedRun(
        model=model_name(one_line_name(told.model or _model(folder), "a model")),
        editor=one_line_name(told.editor or _editor(folder), "an editor"),
        edit_set=one_line_name(edit_set, "an edit set"),
        mode=mode,
        batch_size=batch,
        protocol=protocol_of(case for case, _ in cases),
        exams={edit_set: exam_of(after)},
        scores={**({0: {edit_set: before}} if before else {}), edits: {edit_set: after}},
        settings=settings,
        notes=tuple(_notes(cases, mode, batch)),
        files=tuple(file for _, file in cases),
    )


def _made(cases: Sequence[CaseFile], told: Told) -> tuple[str, int, int | None]:
    """How edits were made, how many of them each answer was given after, and how many at a time.

    MEMIT's program asks about a group of cases and takes its edits back; AlphaEdit's asks about all cases at the end,
    and writes the last group into each file: there a case stands outside the group of its own file.
    """
    size = cases[0].get("num_edits", 1)
    piled = any(case["case_id"] not in case.get("grouped_case_ids", [case["case_id"]]) for case in cases)
    mode = told.mode or ("sequential" if piled else "batch" if size > 1 else "isolated")
    if mode == "batch":  # the last group may be smaller, and of a group not all cases may have been asked about
        groups = [len(case["grouped_case_ids"]) for case in cases if "grouped_case_ids" in case]
        return mode, max(groups, default=min(size, len(cases))), None
    return mode, len(cases), size if mode == "sequential" else None


def _notes(cases: _Cases, mode: str, batch: int | None) -> Iterator[str]:
    size = cases[0][0].get("num_edits", 1)
    if mode == "batch" and size < len(cases):
        yield f"{len(cases)} cases in groups of {size}, each asked after the edits of its own group alone."
    seconds = [case["time"] for case, _ in cases if "time" in case]
    if seconds and batch is None and size == 1:
        yield f"An edit took {fmean(seconds):.1f} s where it was made."


def _model(folder: Path) -> str:
    """The name that the hyperparameters have of the model, which AlphaEdit's and NAS's do."""
    params = folder / "params.json"
    found = read_json(params).get("model_name") if params.is_file() else None
    if found is None:
        raise DataError(f"{folder}: nothing says which model was edited; name it with --model")
    return str(found)


def _editor(folder: Path) -> str:
    """The name of the folder of the method, in which runs are called ``run_000``."""
    folder = folder.resolve()
    name = folder.parent.name if re.fullmatch(r"run_\d+", folder.name) else folder.name
    if not name:
        raise DataError(f"{folder}: nothing says which method edited; name it with --editor")
    return name
