"""NAS (Liu et al. 2026): answers after so many edits, as the checkpoints of its ``experiments/evaluate.py`` have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import DataError
from harness.exam.data import read_jsonl
from harness.reports.case_files import CaseFile, case_scores, edit_set_of, exam_of, protocol_of, simple_settings
from harness.reports.foreign_files import Once, model_name, read_json, require_shape
from harness.reports.importing import Reader, Told
from harness.reports.published_runs import PublishedRun, Scores, one_line_name

__all__ = ["NasCheckpoints"]

SETS: Mapping[str, str] = {
    "mcf": "MultiCounterFact",
    "cf": "CounterFact",
    "zsre": "zsRE",
    "wikibigedit": "WikiBigEdit",
    "mquake": "MQuAKE",
}
"""What ``--ds_name`` is called -> the data set."""


class NasCheckpoints(Reader):
    """NAS: a folder with ``checkpoint_evals/after_N/results.jsonl``, or of such folders."""

    name: ClassVar[str] = "nas"

    def reads(self, path: Path) -> bool:
        """Whether there is a checkpoint of answers."""
        return path.is_dir() and any(path.rglob("checkpoint_evals/after_*/results.jsonl"))

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each folder that has checkpoints."""
        found = sorted({file.parents[2] for file in path.rglob("checkpoint_evals/after_*/results.jsonl")})
        yield from (_run(folder, told) for folder in found)


def _run(folder: Path, told: Told) -> PublishedRun:
    state = _state(folder)
    checkpoints = {_count(file): _cases(file) for file in sorted(folder.glob("checkpoint_evals/after_*/results.jsonl"))}
    last = [case for case, _ in checkpoints[max(checkpoints)]]
    edit_set = one_line_name(told.edit_set or SETS.get(str(state.get("ds_name")), edit_set_of(last)), "an edit set")
    scores: dict[int, dict[str, Scores]] = {
        count: {edit_set: case_scores(cases, "post")} for count, cases in checkpoints.items()
    }
    size = state.get("num_edits")
    return PublishedRun(
        model=model_name(one_line_name(told.model or _said(state, "hf_model_name", folder, "--model"), "a model")),
        editor=one_line_name(told.editor or _said(state, "algo", folder, "--editor"), "an editor"),
        edit_set=edit_set,
        mode=told.mode or "sequential",
        batch_size=size if isinstance(size, int) else None,
        protocol=protocol_of(last),
        exams={edit_set: exam_of(scores[max(scores)][edit_set])},
        scores=scores,
        settings=simple_settings(folder / "params.json"),
        notes=tuple(_notes({count: len(cases) for count, cases in checkpoints.items()})),
        files=tuple(sorted(folder.glob("checkpoint_evals/after_*/results.jsonl"))),
    )


def _count(file: Path) -> int:
    """After how many edits a checkpoint was asked."""
    found = re.fullmatch(r"after_(\d+)", file.parent.name)
    if found is None or int(found[1]) == 0:
        raise DataError(f"{file.parent}: its name is no after_N with a number of edits; rename or remove it")
    return int(found[1])


def _cases(file: Path) -> list[tuple[CaseFile, str]]:
    once, found = Once(), list[tuple[CaseFile, str]]()
    for number, row in enumerate(read_jsonl(file), start=1):
        where = f"{file}, row {number}"
        require_shape(CaseFile, row, where=where, what="NAS's checkpoints")
        once(row["case_id"], where, f"case {row['case_id']}")
        found.append((row, where))  # type: ignore[arg-type]
    return found


def _state(folder: Path) -> Mapping[str, Any]:
    """What the program keeps to resume a run: the method, the model, the data set; nothing where it is not there."""
    path = folder / "resume" / "state.json"
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise DataError(f"{path}: no state of a run; remove it, and name the run with --model and --editor")
    return found


def _said(state: Mapping[str, Any], key: str, folder: Path, option: str) -> str:
    if state.get(key) is None:
        raise DataError(f"{folder}: no resume/state.json that says {key}; name it with {option}")
    return str(state[key])


def _notes(counts: Mapping[int, int]) -> Iterator[str]:
    sampled = {edits: cases for edits, cases in counts.items() if cases < edits}
    if sampled:
        edits, cases = max(sampled.items())
        yield f"A sample was asked: {cases} cases after {edits} edits."
