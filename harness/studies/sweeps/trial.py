"""One training on canonical examples: what is measured before it and after each pass, and the record of that.

The set's evaluation, its hard negatives and texts, and the general text of the ball are scored through lm-eval like any
task.  A state of the weights that was measured before is not measured again, whichever pass it comes after; the
unedited state is measured once for all trainings of a process on one pair.  On the validation pair only what chooses is
measured, as in the published runs: the evaluation and the general text.

A companion (Hewitt et al. 2024, section 6) is trained and chosen alone on the validation pair.  On the test pair the
large model is examined with the companion beside it, and after each pass as much of the companion's change is added as
the ball allows (:func:`harness.methods.logit_ensemble.largest_beta`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from harness.editing.hyperparameters import settable
from harness.editing.made import finished_patch, require_patch
from harness.editing.registry import compose, find
from harness.errors import DataError, NumericalError, RestoreError
from harness.exam import data, general_text, measure, tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.io import cache, files
from harness.io.hashes import combined_sha256
from harness.io.schema import Number, checked, parsed
from harness.methods.logit_ensemble import largest_beta
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.placement import Placement, Where
from harness.patches.patch import Patch
from harness.runs.changed_since import checkpoint_sha256
from harness.runs.identity import digest, record_id
from harness.runs.new_record import edits_sha256
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.versions import versions
from harness.studies.sweeps.ball import Epoch
from harness.studies.sweeps.trial_paths import trial_paths

__all__ = [
    "Job",
    "Trial",
    "hashed_at",
    "read_trial",
    "read_trials",
    "train",
    "trial_changes",
    "trial_identity",
    "write_trial",
]

SCHEMA = 2
"""Of the records of jobs: how their names are made."""
BALL = "ball"
COMPANION = "companion"  # the editor of a large model that examines what another one has learned
_MEASURED = ("hard_negative", "hard_negative_released", "text_nll")


@dataclass(frozen=True)
class Job:
    """What is trained, on which pair of a set.

    Attributes:
        model: a shipped model, a folder, or a Hub repository: what is trained.
        task: the canonical set.
        method: the name under which tables show it.
        editor: the editor.
        settings: its hyperparameters.
        split: ``val`` or ``test``.
        seed: of everything random.
        data_dir: where the rows come from.
        dtype: of the model; of the large one where there are two, as a companion is float32.
        beside: the large model, whose companion is trained; None where what is trained is examined itself.
        ball: the tolerance that a companion keeps to beside it, on the test pair.
    """

    model: str
    task: str
    method: str
    editor: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str = "val"
    seed: int = 0
    data_dir: str = "mini"
    dtype: str = "float32"
    beside: str | None = None
    ball: float | None = None

    @property
    def configuration(self) -> str:
        """What is the same for all splits, balls and seeds of one configuration."""
        return record_id(self, SCHEMA, leave_out=("split", "ball", "seed"))

    @property
    def shown(self) -> str:
        """The model whose tables it belongs to."""
        return self.beside or self.model

    @property
    def examined(self) -> str:
        """The model that is measured."""
        return self.shown if self.split == "test" else self.model

    @property
    def plan(self) -> Plan:
        """What trains, as a plan: a companion that is examined beside the large model is that one's editor."""
        editor, settings = self.editor, _settings(self)
        if self.examined != self.model:
            editor, settings = COMPANION, {**settings, "model": self.model}
        return Plan(
            model=self.examined,
            editor=editor,
            settings=settings,
            edits=self.task,
            split=self.split,
            data_dir=self.data_dir,
            seed=self.seed,
            dtype=self.dtype,
        )

    @property
    def name(self) -> str:
        """The name of its record."""
        model = Path(self.shown).name
        return f"{model}--{self.task}--{self.method}--{self.split}--{record_id(self, SCHEMA)[:12]}"


@dataclass(frozen=True)
class Trial:
    """A job and what came out.

    Attributes:
        job: the job.
        log: the unedited model, and the model after each pass; an infinite general loss where training broke down.
        values: metric -> pass -> what each document of the evaluation set has; not part of the small record.
        reason: why training ended early; None where it did not.
        seconds: how long it took.
        identity: what it depends on and its job only names, see :func:`trial_identity`.
    """

    job: Job
    log: tuple[Epoch, ...]
    values: Mapping[str, list[list[float]]] = field(default_factory=dict)
    reason: str | None = None
    seconds: float = 0.0
    identity: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record, as plain values; what is not finite is null."""
        return {
            "job": asdict(self.job),
            "log": [{k: _finite(v) for k, v in asdict(epoch).items()} for epoch in self.log],
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
            "identity": dict(self.identity),
            "versions": versions(),
            "schema": SCHEMA,
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


State = tuple[str, str]
"""The hash of all weights, and what was scored with them."""


@dataclass(eq=False)
class _Exam:
    """The suite of a job on its model, with the states of the weights that were measured.

    Attributes:
        model: the model.
        suite: the set of the job, and the general text.
        task: the set's name.
        documents: which documents of the set are scored; None for all.
        hashes: of the weights as they are without a patch.
        known: what was measured.
    """

    model: EditedLM
    suite: tasks.Suite
    task: str
    documents: list[int] | None
    hashes: Mapping[str, str]
    known: dict[State, Measured] = field(default_factory=dict)

    def look(self, patch: Patch, loss: float | None) -> tuple[Epoch, Measured]:
        """Measure one state; the losses and successes of single documents come with it.

        Raises:
            DataError: no document of the ball has a token that is scored.
        """
        with self.model.holding(patch):
            found = {task.name: self._scored(task, self._state(patch)) for task in self.suite.tasks}
        if not any(ratio.den for ratio in found[BALL].values["general"].values()):
            raise DataError(
                f"{BALL}: no text has two tokens, so that none is scored; give longer ones in the data folder"
            )
        means = {
            metric: _ratio_of_sums(values) for measured in found.values() for metric, values in measured.values.items()
        }
        rest = {name: means.get(name) for name in _MEASURED}
        return Epoch(means["general"], 1 - means["success"], train_loss=loss, **rest), found[self.task]

    def weighed(self, patch: Patch, loss: float | None, ball: float) -> tuple[Epoch, Measured]:
        """Measure a companion's change, as much of it as the ball allows."""
        whole, start = self.look(patch, loss), self.look(Patch(), None)[0].general
        known = {0.0: start, 1.0: whole[0].general}
        beta = largest_beta(lambda share: known[share] if share in known else self._general(_of(patch, share)), ball)
        epoch, measured = whole if beta == 1 else self.look(_of(patch, beta), loss)
        return replace(epoch, beta=beta), measured

    def _general(self, patch: Patch) -> float:
        """The general loss alone."""
        (text,) = (task for task in self.suite.tasks if task.name == BALL)
        with self.model.holding(patch):
            return _ratio_of_sums(self._scored(text, self._state(patch)).values["general"])

    def _state(self, patch: Patch) -> str | None:
        """The hash of the weights as they are now; None where a patch changes more than weights."""
        if not patch.only_weights:
            return None
        return combined_sha256({**self.hashes, **self.model.lm.hashes(patch.weights)})

    def _scored(self, task: tasks.Task, state: str | None) -> Measured:
        if state is not None and (state, task.name) in self.known:
            return self.known[state, task.name]
        chosen = self.documents if task.name == self.task else None
        found = measure.measure_task(self.model, task, limit=None, documents=chosen)
        if state is not None:
            self.known[state, task.name] = found
        return found


def _ratio_of_sums(values: Mapping[str, Any]) -> float:
    weight = math.fsum(ratio.den for ratio in values.values())
    return math.fsum(ratio.num for ratio in values.values()) / weight if weight else math.nan


def _of(patch: Patch, beta: float) -> Patch:
    """So much of a companion's change."""
    rule: Any = patch.logits
    return replace(patch, logits=rule.weighing(beta)) if beta else Patch()


Pair = tuple[str, str, str]
"""A set, where its rows come from, and the split."""


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str, device: Where = None) -> tuple[EditedLM, dict[Pair, _Exam]]:
    """The model, and the exams that it has had; both go when another model comes."""
    return EditedLM(load(model, dtype=dtype, device=device)), {}


def _exam(job: Job, device: Where) -> _Exam:
    """The exam of a job, with what is known of the unedited model."""
    model, exams = _loaded(job.examined, job.dtype if job.examined == job.shown else "float32", device)
    pair = (job.task, job.data_dir, job.split)
    if pair not in exams:
        exams[pair] = _unedited(model, *pair)
    # Hashed anew: weights that an earlier training left behind are not the unedited ones.
    return replace(exams[pair], hashes=_hashes(model.lm), known=dict(exams[pair].known))


def _unedited(model: EditedLM, task: str, data_dir: str, split: str) -> _Exam:
    suite = tasks.load_suite(
        [BALL], edit_set=task, records=None, data_dir=data_dir, tokenizer=model.lm.tokenizer, split=split
    )
    exam = _Exam(model, suite, task, _chosen(suite, task) if split == "val" else None, _hashes(model.lm))
    exam.look(Patch(), None)
    return exam


def _chosen(suite: tasks.Suite, task: str) -> list[int]:
    """The documents of the evaluation, by which a configuration is chosen."""
    (rows,) = (one.task.eval_docs for one in suite.tasks if one.name == task)
    return [i for i, row in enumerate(rows) if row["kind"] == "evaluation"]


def _hashes(lm: LM) -> dict[str, str]:
    return lm.hashes(name for name, _ in lm.model.named_parameters())


def _settings(job: Job) -> dict[str, Any]:
    """The settings, with the regulariser's text of the data source where the editor reads one and none is named."""
    settings = dict(job.settings)
    if "kl_text" not in settings and "kl_text" in settable(find(job.editor.partition("+")[0])):
        settings["kl_text"] = str(_regulariser(job.data_dir))
    return settings


def _regulariser(data_dir: str) -> Path:
    """A file with the regulariser's text of a data source."""
    functions: Any = data.functions(data.find_datasets()[BALL])
    texts = functions.texts(data_dir, "regularisation")
    path = cache.cache_folder() / "corpora" / f"{digest({'texts': texts})}.jsonl"
    return path if path.is_file() else general_text.write_texts(path, texts)


def trial_identity(job: Job, device: Where = "cpu") -> dict[str, Any]:
    """What a trial depends on and its job only names: weights, rows, files of editors.

    Args:
        job: the job.
        device: where models go whose weights are hashed.
    """
    dtypes = {job.shown: job.dtype, job.model: job.dtype if job.beside is None else "float32"}
    return {
        "weights": {model: checkpoint_sha256(model, dtype=dtype, device=device) for model, dtype in dtypes.items()},
        "edits": edits_sha256(resolve(job.plan).edits),
        "editors": compose(job.editor).sources,
    }


def trial_changes(kept: Trial, device: Where = "cpu") -> list[str]:
    """What a trial depends on and is not what it was, in words; one of before this was kept says it of nothing.

    Args:
        kept: the trial.
        device: where models go whose weights are hashed.
    """
    said = {"weights": "weights", "edits": "rows", "editors": "files of editors"}
    now = trial_identity(kept.job, device)
    known = {"editors": {}, **kept.identity}
    return [what for key, what in said.items() if known.get(key, now[key]) != now[key]]


def hashed_at(device: Where) -> Where:
    """Where a model goes whose weights are only hashed: where it fits if it is spread, else to the CPU."""
    return device if isinstance(device, Placement) and device.spread else "cpu"


def train(job: Job, device: Where = None) -> Trial:
    """Carry out a job.

    Args:
        job: what is trained.
        device: where models go; None for an accelerator where there is one.

    Raises:
        HarnessError: something that the job names does not exist or cannot be used.
        RestoreError: the editor left something behind in the model, which is loaded again for the next job.
    """
    started = time.perf_counter()
    resolved = resolve(job.plan)
    identity = trial_identity(job, hashed_at(device))  # first: what is spread does not fit twice
    exam = _exam(job, device)
    lm, guard = exam.model.lm, Guard.of(exam.model.lm)
    editor = resolved.recipe.build(lm, resolved.plan.settings, seed=job.seed)
    seen, reason = [exam.look(Patch(), None)], None
    if not math.isfinite(seen[0][0].general):
        raise DataError(f"{job.examined}: the unedited model's general loss is no number; use another --dtype")
    try:
        with values_from(ValueCache(values_folder())):
            for done in editor.passes(lm, resolved.edits):  # one by one: what was measured before a break-down is kept
                patch = finished_patch(editor, lm, require_patch(editor, lm, done.patch, by="passes()"))
                _require(guard, job, weights=False)
                ball = job.ball
                seen.append(exam.look(patch, done.loss) if ball is None else exam.weighed(patch, done.loss, ball))
    except NumericalError as error:
        reason = str(error)
    _require(guard, job, weights=True)
    log = [epoch for epoch, _ in seen]
    # What comes after a training that broke down is outside of every ball.
    passes = int(job.settings.get("steps", job.settings.get("epochs", 1)))
    log += [Epoch(math.inf, 1.0)] * max(0, passes + 1 - len(log)) if reason else []
    values = {
        metric: [[ratio.num for ratio in measured.values[metric].values()] for _, measured in seen]
        for metric in ("success", "loss")
    }
    return Trial(job, tuple(log), values, reason, time.perf_counter() - started, identity)


def _require(guard: Guard, job: Job, weights: bool) -> None:
    """See that training left nothing behind; a model in which it did is loaded anew for the next job."""
    try:
        guard.require("this training's numbers are void", weights=weights, before=f" before {job.editor} was trained")
    except RestoreError:
        _loaded.cache_clear()
        raise


def write_trial(folder: Path, trial: Trial) -> Path:
    """Write the record of a trial, whole or not at all, and beside it the values of single documents."""
    files.require_writable(folder)
    path = folder / f"{trial.job.name}.json"
    rounded = {m: [[round(v, 5) for v in row] for row in rows] for m, rows in trial.values.items()}
    files.write_whole(files.values_path(path), files.pack_json(rounded))
    files.write_whole(path, (files.json_text(trial.to_json()) + "\n").encode())
    return path


def read_trial(folder: Path, job: Job) -> Trial | None:
    """The trial of a job, where its record lies in a folder; None where it does not.

    Raises:
        DataError: the record is damaged.
    """
    path = folder / f"{job.name}.json"
    return _read(path) if path.is_file() else None


def read_trials(folder: Path) -> list[Trial]:
    """The trials whose records lie in a folder, its ``runs``, or the ``runs`` of its folders; other files are left.

    Raises:
        DataError: a record is damaged.
    """
    return [_read(path) for path in trial_paths(folder)]


class _Job(TypedDict):
    model: str
    task: str
    method: str
    editor: str
    settings: dict[str, Any]
    split: str
    seed: int
    data_dir: str
    dtype: str
    beside: str | None
    ball: Number


class _Pass(TypedDict):
    general: Number
    failure: float
    train_loss: Number
    hard_negative: Number
    hard_negative_released: Number
    text_nll: Number
    beta: Number


class _Kept(TypedDict):
    """The record of a job."""

    job: _Job
    log: list[_Pass]
    reason: str | None
    seconds: float
    identity: NotRequired[dict[str, Any]]


def _read(path: Path) -> Trial:
    try:
        kept = parsed(path.read_bytes())
        checked(_Kept, kept)
        log = tuple(Epoch(**{**row, "general": _infinite(row["general"])}) for row in kept["log"])
        job, known = Job(**kept["job"]), kept.get("identity", {})
        return Trial(job, log, reason=kept["reason"], seconds=kept["seconds"], identity=known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: a damaged record ({str(error)[:80]}); remove it, and it is made again") from error


def _infinite(value: float | None) -> float:
    return math.inf if value is None else float(value)
