"""UltraEdit (Gu et al. 2025): the three means that its ``main.py`` logs; what each case gave is nowhere written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError
from harness.exam.data import read_yaml
from harness.io.schema import Count
from harness.reports.foreign_files import model_name, read_json, require_shape
from harness.reports.importing import Reader, Told
from harness.reports.published_runs import PublishedExam, PublishedRun, one_line_name

__all__ = ["UltraEdit"]

METRICS: Mapping[str, str] = {
    "ES": "efficacy",
    "GS": "paraphrase",
    "LS": "locality_accuracy",
    "person_score": "person",
    "mhop_score": "multi_hop",
}
"""What the summary calls a mean -> our metric."""
PROTOCOL = "Teacher-forced: the share of the answer's tokens that are the most probable, each behind the right ones."


class _Summary(TypedDict):
    """What Weights & Biases keeps of a run as its summary."""

    ES: float
    GS: float
    LS: float
    person_score: NotRequired[float]
    mhop_score: NotRequired[float]
    _runtime: NotRequired[float]


class _Config(TypedDict):
    """The part of the configuration that says what was run."""

    dataset: dict[str, Any]
    model: dict[str, Any]
    editor: dict[str, Any]
    num_seq: Count


class UltraEdit(Reader):
    """UltraEdit: ``wandb-summary.json`` beside the ``config.yaml`` of its run, or folders of those."""

    name: ClassVar[str] = "ultraedit"

    def reads(self, path: Path) -> bool:
        """Whether there is a summary."""
        return path.name == "wandb-summary.json" or (path.is_dir() and any(path.rglob("wandb-summary.json")))

    def read(self, path: Path, told: Told) -> Iterator[PublishedRun]:
        """A run for each summary."""
        files = [path] if path.is_file() else sorted(path.rglob("wandb-summary.json"))
        yield from (_run(file, told) for file in files)


def _run(file: Path, told: Told) -> PublishedRun:
    summary = read_json(file)
    require_shape(_Summary, summary, where=str(file), what="UltraEdit's summary")
    config = _config(file.with_name("config.yaml"))
    size, turns = config["dataset"].get("n_edits"), config["num_seq"]
    if not isinstance(size, int) or size < 1 or turns < 1:
        raise DataError(f"{file.with_name('config.yaml')}: dataset.n_edits and num_seq are no numbers of edits")
    edit_set = one_line_name(told.edit_set or config["dataset"].get("name"), "an edit set")
    means = {METRICS[key]: float(value) for key, value in summary.items() if key in METRICS}
    editor = config["editor"]
    return PublishedRun(
        model=model_name(one_line_name(told.model or config["model"].get("name_or_path"), "a model")),
        editor=one_line_name(told.editor or editor.get("name"), "an editor"),
        edit_set=edit_set,
        mode=told.mode or "sequential",
        batch_size=size,
        protocol=PROTOCOL,
        exams={edit_set: PublishedExam("efficacy", dict.fromkeys(means, True))},
        scores={},
        plain={size * turns: {edit_set: means}},
        settings={key: value for key, value in editor.items() if isinstance(value, bool | int | float)},
        seconds=summary.get("_runtime"),
        seed=42,
        notes=("Its main.py seeds everything with 42.",),
        files=(file,),
    )


def _config(path: Path) -> _Config:
    """The configuration of a run; Weights & Biases puts each value into an object of its own."""
    if not path.is_file():
        raise DataError(f"{path}: not found beside the summary; it says which editor, model and data were run")
    found = read_yaml(path)
    plain = {key: one["value"] if isinstance(one, dict) and "value" in one else one for key, one in found.items()}
    require_shape(_Config, plain, where=str(path), what="UltraEdit's configuration")
    return plain  # type: ignore[return-value]
