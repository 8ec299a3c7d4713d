"""Sweeps of canonical examples: draw configurations, choose on the validation pairs, train anew on the test pairs.

Protocol of Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 4: in each cell (a
model, a task, a method) some configurations are drawn and trained on the validation pair; for each ball the one that
gains most inside it is trained again on the test pair, several times (:mod:`harness.studies.sweeps.sweep_tables`).

The trainings run side by side (:mod:`harness.runs.crew`).  One whose record is there is never run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from harness.editing.registry import compose, configure, find, require_trusted
from harness.errors import UsageError, near
from harness.exam.canonical import SETS
from harness.io.files import at_home
from harness.io.yaml_text import parse_yaml
from harness.models.lm import load
from harness.models.placement import Where
from harness.runs.crew.cells import Cell, Crew, Report, require_all
from harness.runs.crew.dispatch import run_cells
from harness.runs.defaults import rows_for
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.studies.sweeps import trial
from harness.studies.sweeps.ball import TOLERANCES
from harness.studies.sweeps.draws import PUBLISHED, draw_settings, method_named
from harness.studies.sweeps.sweep_tables import chosen_trials, groups
from harness.studies.sweeps.trial import Job, Trial

__all__ = ["Sweep", "run_sweep", "test_jobs", "validation_jobs"]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        model: a shipped model, a folder, or a Hub repository.
        tasks: canonical sets.
        methods: method -> distributions that differ from the published ones; see :mod:`harness.studies.sweeps.draws`.
        configurations: how many are drawn in each cell: published are 25 (Backpack) and 10.
        seeds: how often the chosen one is trained on the test pair.
        balls: tolerances.
        data_dir: where the rows come from; of a file by default ``mini`` for a shipped model and ``hub`` for others.
        dtype: of the model.
        seed: of the draws.
        cpus: of one training.
        gpus: of one training; parts of one are allowed.
    """

    model: str = "mini"
    tasks: tuple[str, ...] = SETS
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"full": {}, "lora": {}})
    configurations: int = 10
    seeds: int = 5
    balls: tuple[float, ...] = TOLERANCES
    data_dir: str = "mini"
    dtype: str = "float32"
    seed: int = 0
    cpus: float = 1
    gpus: float = 0

    @classmethod
    def read(cls, path: Path, dtype: str | None = None) -> Sweep:
        """A sweep from a YAML file.

        Args:
            path: the file.
            dtype: of the model, instead of that of the file.

        Raises:
            UsageError: the file cannot be read, or a field does not exist or has the wrong type.
        """
        try:
            values = parse_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}); give a YAML file of a sweep") from error
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{path}: not YAML ({str(error).splitlines()[0]}); give fields of a sweep") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path}: holds {type(values).__name__}, expected fields such as 'methods: [full, lora]'")
        return cls.of(at_home(values) | ({} if dtype is None else {"dtype": dtype}), str(path))

    def require_trusted(self, where: Path, trusted: bool) -> None:
        """Refuse editors that a file names by the path of their code, unless the user trusts it.

        Raises:
            UsageError: one is named, and it is not trusted.
        """
        for name, changed in self.methods.items():
            require_trusted(str(changed.get("editor", name)), where, trusted)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "sweep") -> Sweep:
        """A sweep from plain values; raises what :meth:`read` raises."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UsageError(f"{where}: '{key}' is not a field of a sweep{near(str(key), known)}")
        chosen = {**values}
        if isinstance(chosen.get("methods"), list | str):
            names = chosen["methods"] if isinstance(chosen["methods"], list) else [chosen["methods"]]
            chosen["methods"] = {str(name): {} for name in names}
        if "methods" in chosen:
            chosen["methods"] = _methods(chosen["methods"], where)
        for key, kind in _TYPES.items():
            if key in chosen:
                chosen[key] = kind(chosen[key], f"{where}: '{key}'")
        chosen.setdefault("data_dir", rows_for(chosen.get("model", cls.model)))
        return cls(**chosen)


def _methods(value: object, where: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(value, dict) or not value or not all(isinstance(v, dict | None) for v in value.values()):
        raise UsageError(f"{where}: 'methods' is {value!r}, expected names such as {', '.join(PUBLISHED)}")
    return {str(name): dict(changed or {}) for name, changed in value.items()}


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} is {value!r}, expected a text")
    return value


def _whole(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{where} is {value!r}, expected a whole number")
    return value


def _count(value: object, where: str) -> int:
    if not _whole(value, where):
        raise UsageError(f"{where} is 0, expected at least 1")
    return int(str(value))


def _share(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{where} is {value!r}, expected a number from 0")
    return float(value)


def _sets(value: object, where: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name not in SETS:
            raise UsageError(f"{where} names '{name}', which is no canonical set{near(str(name), SETS)}")
    return tuple(names)


def _balls(value: object, where: str) -> tuple[float, ...]:
    found = value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(str(v)) for v in found)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(number > 0 for number in numbers):
        raise UsageError(f"{where} is {value!r}, expected tolerances such as [0.001, 0.0001]")
    return numbers


_TYPES: Mapping[str, Callable[[object, str], Any]] = {
    **dict.fromkeys(("model", "data_dir", "dtype"), _text),
    **dict.fromkeys(("configurations", "seeds"), _count),
    **dict.fromkeys(("cpus", "gpus"), _share),
    "seed": _whole,
    "tasks": _sets,
    "balls": _balls,
}


# --- jobs -------------------------------------------------------------------------------------------------------------


def validation_jobs(sweep: Sweep, layers: int) -> list[Job]:
    """The trainings on the validation pairs: of each cell as many configurations as asked for, each of them once.

    Args:
        sweep: the sweep.
        layers: how many layers the model has.
    """
    found: dict[str, Job] = {}
    for name, changed in sweep.methods.items():
        for task in sweep.tasks:
            known = method_named(name, task, changed)
            for number in range(sweep.configurations):
                where = f"{sweep.seed} {name} {task} {number}"
                settings = draw_settings(known.settings, where, layers, where=f"method {name}")
                job = Job(sweep.model, task, name, known.editor, settings)
                job = replace(job, data_dir=sweep.data_dir, dtype=sweep.dtype, seed=sweep.seed)
                job = _companion(job) if job.editor == trial.COMPANION else job
                found[job.name] = job
    return list(found.values())


def _companion(job: Job) -> Job:
    """The training of the companion itself."""
    editor: Any = configure(
        find(job.editor), job.model, job.settings
    )  # what it cannot take is told before any training
    settings = {name: value for name, value in job.settings.items() if name != "model"}
    return replace(job, model=editor.model, editor=editor.method, settings=settings, beside=job.model)


def test_jobs(sweep: Sweep, validated: Sequence[Trial]) -> list[Job]:
    """The trainings on the test pairs: whatever some ball and rule has chosen, with each seed, once.

    A companion is examined for each ball by itself.
    """
    picks = []
    for trials in groups(validated).values():
        if trials[0].job.beside is None:
            picks += [one.job for one in chosen_trials(trials, sweep.balls)]
        else:
            picks += [replace(one.job, ball=ball) for ball in sweep.balls for one in chosen_trials(trials, [ball])]
    return [replace(job, split="test", seed=seed) for job in picks for seed in range(sweep.seeds)]


# --- carrying out -----------------------------------------------------------------------------------------------------


def run_sweep(
    sweep: Sweep, folder: Path, *, crew: Crew, progress: Progress, device: Where = None
) -> tuple[list[Trial], list[Trial]]:
    """Carry out a sweep; what has a record in the folder is not run again.

    Args:
        sweep: what is asked.
        folder: the records of single trainings.
        crew: who carries out the trainings.
        progress: called with the part (``validation``, ``test``), how many trainings are done, and how many there are.
        device: where models go; None for an accelerator where there is one. What is measured is the same.

    Returns:
        the trials of the validation pairs, and of the test pairs.

    Raises:
        HarnessError: something that the sweep names cannot be used; what was finished stays.
    """
    for plan in _plans(sweep):
        resolve(plan)  # what does not exist is told before a model is loaded
    layers = load(sweep.model, dtype=sweep.dtype, device=trial.hashed_at(device)).arch.layers

    asked = validation_jobs(sweep, layers)
    for job in asked:  # so is a setting that an editor cannot take, before any training
        compose(job.editor).configured(job.model, job.settings, seed=job.seed)

    def finished(jobs: Sequence[Job], part: str) -> list[Trial]:
        placed = [_Placed(job, device) for job in jobs]
        return _finished(placed, folder, crew, lambda done, total: progress(part, done, total))

    validated = finished(asked, "validation")
    return validated, finished(test_jobs(sweep, validated), "test")


@dataclass(frozen=True)
class _Placed:
    """A job, and where its models go, which its record does not depend on."""

    job: Job
    device: Where


def _plans(sweep: Sweep) -> Iterator[Plan]:
    """Each method on each set, with the settings of none of its configurations yet."""
    for name, changed in sweep.methods.items():
        for task in sweep.tasks:
            editor = method_named(name, task, changed).editor
            yield Plan(sweep.model, editor, edits=task, split="val", data_dir=sweep.data_dir, dtype=sweep.dtype)


def _is_done(one: _Placed, folder: Path) -> bool:
    """Whether there is a record of a job that is of what the job names now; of another one a line says so."""
    path = folder / f"{one.job.name}.json"
    kept = trial.read_trial(folder, one.job)
    changed = trial.trial_changes(kept, trial.hashed_at(one.device)) if kept else []
    if changed:
        log.warning("%s: is of other %s; trained again", path, " and ".join(changed))
    return kept is not None and not changed


def _trained(one: _Placed, report: Report) -> Trial:
    """Carry out a training, wherever that is."""
    report(one.job.name, 0, 0)
    return trial.train(one.job, one.device)


def _finished(jobs: Sequence[_Placed], folder: Path, crew: Crew, progress: Callable[[int, int], None]) -> list[Trial]:
    missing = [one for one in jobs if not _is_done(one, folder)]
    done = len(jobs) - len(missing)
    progress(done, len(jobs))
    failed = []
    cells = [Cell(one.job.name, one, shares=f"{one.job.examined} {one.job.dtype}") for one in missing]
    for one in run_cells(cells, _trained, crew):
        if one.done is not None:
            trial.write_trial(folder, one.done)
        if one.error is not None:
            log.warning("%s: %s", one.cell.name, one.error)
            failed.append(one)
        done += 1
        progress(done, len(jobs))
    if len(failed) == 1 and failed[0].error is not None:
        raise failed[0].error
    require_all(failed, len(jobs), "trainings")
    found = [trial.read_trial(folder, one.job) for one in jobs]
    return [one for one in found if one is not None]
