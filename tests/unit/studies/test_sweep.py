"""Sweeps: the file, drawn jobs, records, what is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.editing.edit import Edit
from harness.editing.editor import Editor, Pass
from harness.editing.hyperparameters import settable
from harness.editing.registry import find
from harness.errors import DataError, NumericalError, UsageError
from harness.exam.canonical import SETS
from harness.exam.statistics import Ratio
from harness.methods import value
from harness.methods.value_rows import Objective
from harness.models.lm import LM
from harness.models.placement import Placement, Where
from harness.patches.delta import Dense
from harness.patches.patch import Patch, Step, patched
from harness.runs.crew.cells import ALONE
from harness.runs.plan import Plan
from harness.runs.resolve import Resolved, resolve
from harness.studies.sweeps import sweep as sweeps
from harness.studies.sweeps import trial
from harness.studies.sweeps.ball import Epoch
from harness.studies.sweeps.sweep import Sweep, test_jobs, validation_jobs
from harness.studies.sweeps.trial import Job, Trial

test_jobs.__test__ = False  # type: ignore[attr-defined]  # what is trained at test, no test

ROOT = Path(__file__).resolve().parents[3]


def log(*epochs: tuple[float, float]) -> tuple[Epoch, ...]:
    return tuple(Epoch(g, f, 4.0 - i, 2.0 + i, 3.0, None) for i, (g, f) in enumerate(epochs))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_sweep_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("model: mini\nmethods: [full, lora]\nballs: [1e-3, 0.0001]\ntasks: temporal\nseeds: 2\n")
    found = Sweep.read(path)
    assert found == Sweep("mini", ("temporal",), {"full": {}, "lora": {}}, seeds=2, balls=(1e-3, 1e-4))
    path.write_text("methods: {full: {lr: 0.1}, memit+rect: }\n")
    assert Sweep.read(path).methods == {"full": {"lr": 0.1}, "memit+rect": {}}
    assert Sweep().tasks == SETS


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: mini\nconfiguration: 3", r"sweep.yaml: 'configuration' is not a field of a sweep \(did you mean conf"),
        ("configurations: 0", "'configurations' is 0, expected at least 1"),
        ("seeds: two", "'seeds' is 'two', expected a whole number"),
        ("tasks: [capital]", "'tasks' names 'capital', which is no canonical set"),
        ("balls: [big]", "'balls' is .*, expected tolerances such as"),
        ("balls: [-1]", "'balls' is .*, expected tolerances"),
        ("methods: 3", "'methods' is .*, expected names such as full, lora"),
        ("cpus: many", "'cpus' is 'many', expected a number"),
        ("model: 3", "'model' is 3, expected a text"),
        ("[1, 2]", "holds list, expected fields"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_in_the_file_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Sweep.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Sweep.read(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweep_files_can_be_drawn_and_built(path: Path) -> None:
    found = Sweep.read(path)
    jobs = validation_jobs(found, 12)
    assert len(jobs) == len(found.methods) * len(SETS) * found.configurations
    for job in jobs:
        known = settable(find(job.editor.partition("+")[0]))
        assert set(job.settings) <= set(known), job.method


# --- jobs and choices -------------------------------------------------------------------------------------------------


def test_each_cell_gets_its_own_configurations_and_the_same_again() -> None:
    sweep = Sweep(tasks=("temporal", "stereoset"), methods={"full": {}, "lora": {"rank": 4}}, configurations=3)
    jobs = validation_jobs(sweep, 12)
    assert jobs == validation_jobs(sweep, 12)
    assert len({job.configuration for job in jobs}) == len({job.name for job in jobs}) == 12
    assert {job.split for job in jobs} == {"val"}
    assert all(job.settings["rank"] == 4 and job.settings["alpha"] == 8 for job in jobs if job.method == "lora")
    assert len({job.settings["lr"] for job in jobs}) == 12
    other = replace(jobs[0], split="test", seed=3)
    assert other.configuration == jobs[0].configuration
    assert other.name != jobs[0].name


def test_a_method_without_distributions_is_one_configuration() -> None:
    sweep = Sweep(tasks=("temporal",), methods={"ft_m": {}, "full": {}}, configurations=3)
    assert [job.method for job in validation_jobs(sweep, 12)] == ["ft_m", "full", "full", "full"]


def trials(*logs: tuple[Epoch, ...], split: str = "val", seed: int = 0) -> list[Trial]:
    return [Trial(Job("mini", "temporal", "full", "full", {"lr": i}, split, seed), one) for i, one in enumerate(logs)]


def test_what_some_ball_has_chosen_is_trained_at_test_once_with_each_seed() -> None:
    sweep = Sweep(tasks=("temporal",), methods={"full": {}}, configurations=2, seeds=2, balls=(1e-3, 1e-5))
    gentle, strong = log((3.0, 0.9), (3.00001, 0.85)), log((3.0, 0.9), (3.001, 0.8))
    jobs = test_jobs(sweep, trials(gentle, strong))
    assert sorted((job.settings["lr"], job.seed, job.split) for job in jobs) == [
        (0, 0, "test"),
        (0, 1, "test"),
        (1, 0, "test"),
        (1, 1, "test"),
    ]
    (only,) = {job.settings["lr"] for job in test_jobs(sweep, trials(gentle))}
    assert only == 0  # both balls have chosen it


def test_a_ball_that_leaves_the_unedited_model_needs_no_training_of_its_own() -> None:
    sweep = Sweep(tasks=("temporal",), methods={"full": {}}, configurations=2, seeds=2, balls=(1e-3, 1e-5))
    outside, strong = log((3.0, 0.9), (3.1, 0.1)), log((3.0, 0.9), (3.001, 0.8))
    assert {job.settings["lr"] for job in test_jobs(sweep, trials(outside, strong))} == {1}
    assert len(test_jobs(sweep, trials(outside, outside))) == 2  # one all the same: it tells how the test pair begins


ENSEMBLE = {"ensemble": {"epochs": 2, "lr": 1.0, "unusual": 1, "kl": 0}}


def test_a_companion_is_chosen_alone_and_examined_beside_the_model_for_each_ball() -> None:
    sweep = Sweep("large", ("temporal",), ENSEMBLE, configurations=2, seeds=2, balls=(1e-3, 1e-5))
    jobs = validation_jobs(sweep, 4)
    assert [(job.model, job.beside, job.editor, job.method, job.ball) for job in jobs] == [
        ("mini-backpack", "large", "senses", "ensemble", None)
    ] * 2
    assert {job.examined for job in jobs} == {"mini-backpack"}
    assert all(job.name.startswith("large--temporal--ensemble--val--") for job in jobs)
    first, second = Trial(jobs[0], log((3, 0.9), (3.001, 0.5))), Trial(jobs[1], log((3, 0.9), (3, 0.8)))
    tested = test_jobs(sweep, [first, second])
    chosen = [(first.job.configuration, 1e-3)] * 2 + [(second.job.configuration, 1e-5)] * 2
    assert [(job.configuration, job.ball) for job in tested] == chosen
    assert [(job.seed, job.split, job.examined) for job in tested] == [(0, "test", "large"), (1, "test", "large")] * 2
    assert len({job.name for job in tested}) == 4
    named = validation_jobs(replace(sweep, methods={"ensemble": {"model": "some/backpack"}}), 4)
    assert {job.model for job in named} == {"some/backpack"}
    assert "model" not in named[0].settings
    with pytest.raises(UsageError, match="accumulate"):
        validation_jobs(replace(sweep, methods={"ensemble": {"accumulate": 2}}), 4)


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    one = replace(trials(log((3.0, 0.9), (math.inf, 1.0)))[0], reason="lower lr", values={"loss": [[1.0, 2.0]]})
    path = trial.write_trial(tmp_path, one)
    back = trial.read_trial(tmp_path, one.job)
    assert back is not None
    assert (back.log, back.reason) == (one.log, "lower lr")
    assert json.loads(path.read_text())["log"][1]["general"] is None
    assert trial.read_trial(tmp_path, replace(one.job, seed=5)) is None
    path.write_text("{")
    with pytest.raises(DataError, match=r"a damaged record .*; remove it"):
        trial.read_trial(tmp_path, one.job)


def test_what_has_a_record_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tasks=("temporal",), methods={"full": {}}, configurations=3, seeds=2, balls=(1e-3,))
    done: list[str] = []

    def work(job: Job, device: Where = None) -> Trial:
        done.append(job.name)
        return Trial(job, log((3.0, 0.9), (3.0001, 0.8 - 0.1 * job.settings["lr"])))

    monkeypatch.setattr(trial, "train", work)
    said: list[tuple[str, int, int]] = []
    first = sweeps.run_sweep(sweep, tmp_path, crew=ALONE, progress=lambda *state: said.append(state))
    assert len(done) == len(set(done)) == 5
    assert said[-1] == ("test", 2, 2)
    again = sweeps.run_sweep(sweep, tmp_path, crew=ALONE, progress=lambda *state: None)
    assert len(done) == 5
    assert [t.log for t in again[1]] == [t.log for t in first[1]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lrr": {"log10": [-4, -3]}}, r"lora has no hyperparameter 'lrr' \(did you mean lr\?\)"),
        ({"rank": {"choice": [4, -8]}}, "lora: 'rank' is -8, expected"),
    ],
)
def test_what_an_editor_cannot_take_is_told_before_any_training(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Job] = []
    monkeypatch.setattr(trial, "train", lambda job, device=None: done.append(job))
    sweep = Sweep(tasks=("temporal",), methods={"full": {}, "lora": settings}, configurations=5, seeds=1)
    with pytest.raises(UsageError, match=message):
        sweeps.run_sweep(sweep, tmp_path, crew=ALONE, progress=lambda *state: None)
    assert not done


@pytest.mark.parametrize("what", ["files of editors", "weights", "rows"])
def test_what_is_of_something_else_is_trained_again(
    tmp_path: Path, nudge: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    own = tmp_path / "mine.py"
    own.write_text(Path(nudge).read_text())
    sweep = Sweep(tasks=("temporal",), methods={"mine": {"editor": str(own)}}, configurations=1, seeds=1, balls=(1e-3,))
    done: list[str] = []

    def work(job: Job, device: Where = None) -> Trial:
        done.append(job.name)
        return Trial(job, log((3.0, 0.9), (3.0001, 0.5)), identity=trial.trial_identity(job))

    monkeypatch.setattr(trial, "train", work)

    def run() -> None:
        sweeps.run_sweep(sweep, tmp_path / "out", crew=ALONE, progress=lambda *state: None)

    run()
    run()
    assert len(done) == 2  # of the validation and of the test pair, each once
    if what == "files of editors":
        own.write_text(own.read_text() + "\n# a change\n")
    elif what == "weights":
        monkeypatch.setattr(trial, "checkpoint_sha256", lambda *_, **__: "0" * 64)
    else:
        monkeypatch.setattr(trial, "edits_sha256", lambda _: "0" * 16)
    run()
    assert len(done) == 4
    assert len(caplog.messages) == 2
    assert all(said.endswith(f".json: is of other {what}; trained again") for said in caplog.messages)
    run()
    assert len(done) == 4


# --- a trial ----------------------------------------------------------------------------------------------------------


class Still(Editor):
    """Three passes, of which the first two change nothing and the third breaks down."""

    name = "still"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return Patch()

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Any:
        yield Pass(Patch(), 2.0)
        yield Pass(Patch(), 1.0)
        raise NumericalError("the loss became nan")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the tasks that are measured, on one document of each kind."""
    names: list[str] = []
    score = trial.measure.measure_task

    def few(model: Any, task: Any, *, limit: None, documents: list[int] | None) -> Any:
        names.append(task.name)
        kinds = {row["kind"]: i for i, row in reversed(list(enumerate(task.task.eval_docs)))}
        chosen = sorted(i for i in kinds.values() if documents is None or i in documents)
        return score(model, task, limit=limit, documents=chosen)

    monkeypatch.setattr(trial.measure, "measure_task", few)
    trial._loaded.cache_clear()
    yield names
    trial._loaded.cache_clear()


def learning(monkeypatch: pytest.MonkeyPatch, editor: Editor) -> None:
    class Recipe:
        def build(self, *_: Any, **options: Any) -> Editor:
            return editor

    def made(plan: Plan) -> Resolved:
        return replace(resolve(replace(plan, settings={})), recipe=Recipe())  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "resolve", made)


def test_a_state_that_was_measured_is_not_measured_again(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    learning(monkeypatch, Still())
    found = trial.train(Job("mini", "pronoun_gender_bias", "still", "none", {"steps": 4}))
    assert sorted(seen) == ["ball", "pronoun_gender_bias"]
    assert len(found.log) == 5
    assert found.reason == "the loss became nan"
    assert [e.train_loss for e in found.log[:3]] == [None, 2.0, 1.0]
    assert [math.isinf(e.general) for e in found.log] == [False, False, False, True, True]
    assert len({(e.general, e.failure) for e in found.log[:3]}) == 1
    assert len(found.values["loss"]) == 3
    again = trial.train(Job("mini", "pronoun_gender_bias", "still", "none", {"steps": 4}, seed=3))
    assert len(seen) == 2  # the unedited model has been measured by the first training
    assert again.log == found.log


@dataclass(frozen=True)
class Push(Editor):
    """One pass: a bias of the last norm goes up by so much."""

    name = "push"
    by: float = 0.1

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        (name,) = (name for name, _ in lm.model.named_parameters() if name.endswith("ln_f.bias"))
        return Patch({name: Dense(torch.full_like(lm.parameter(name), self.by))})


def test_a_changed_weight_is_measured(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("mini", "pronoun_gender_bias", "push", "none")
    learning(monkeypatch, Push(0.5))
    first = trial.train(job)
    assert len(seen) == 4  # unedited and edited
    assert first.log[0].general != first.log[1].general
    assert trial.train(job).log == first.log
    assert len(seen) == 6  # the unedited model is known, what an earlier training measured is not
    learning(monkeypatch, Push(0.25))
    assert trial.train(job).log[1].general not in (first.log[0].general, first.log[1].general)


@dataclass(frozen=True)
class Written(Push):
    """A push as large as the values of two edits."""

    name = "written"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        found = value.optimise(lm, edits[:2], ("{}",), objective=Objective(2, steps=2))
        return replace(self, by=float(found.delta.norm()) / 10).push(lm)

    def push(self, lm: LM) -> Patch:
        return Push.edit(self, lm, ())


def test_a_training_takes_kept_values(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("mini", "country_capital", "written", "none")
    learning(monkeypatch, Written())
    first = trial.train(job)
    monkeypatch.setattr(value, "_descend", lambda *_args, **_options: pytest.fail("optimised"))
    assert trial.train(replace(job, seed=1)).log == first.log and first.log[0].general != first.log[1].general
    assert len(seen) == 6


def test_weights_that_were_left_changed_are_not_taken_for_the_unedited_ones(
    seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("mini", "pronoun_gender_bias", "push", "none")
    learning(monkeypatch, Push(0.5))
    first = trial.train(job)
    lm = trial._loaded("mini", "float32", None)[0].lm
    with patched(lm, Push(0.5).edit(lm, [])):
        again = trial.train(job)
    assert again.log[0].general == first.log[1].general


def test_on_the_validation_pair_only_what_chooses_is_measured(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    learning(monkeypatch, Push(0.5))
    chosen, tested = (
        trial.train(Job("mini", "pronoun_gender_bias", "push", "none", split=split)) for split in ("val", "test")
    )
    assert all(None is e.hard_negative is e.hard_negative_released is e.text_nll for e in chosen.log)
    assert not any(None in (e.hard_negative, e.hard_negative_released, e.text_nll) for e in tested.log)
    assert [len(chosen.values["loss"]), len(chosen.values["loss"][0])] == [2, 1]


@dataclass(frozen=True)
class Weighed:
    """A logit rule that holds a share of a companion's change."""

    share: float

    def weighing(self, share: float) -> Weighed:
        return Weighed(share)

    def __call__(self, logits: torch.Tensor, step: Step) -> torch.Tensor:
        return logits


@pytest.mark.parametrize("ball, beta, asked", [(1e-2, 1.0, []), (1e-3, 0.9, [0.9]), (1e-9, 0.0, None)])
def test_tv_21_as_much_of_a_companion_as_the_ball_allows(
    ball: float, beta: float, asked: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    general = {0.0: 2.385603089679371, 0.9: 2.38790, 1.0: 2.38800}
    patch = Patch(logits=Weighed(1.0))
    shares: list[float] = []

    def share_of(patch: Any) -> float:
        return patch.logits.share if patch.logits else 0.0

    def loss(self: Any, patch: Any) -> float:
        shares.append(share_of(patch))
        return general.get(share_of(patch), 2.3859)

    monkeypatch.setattr(trial._Exam, "_general", loss)
    monkeypatch.setattr(
        trial._Exam, "look", lambda self, patch, loss: (Epoch(general[share_of(patch)], 0.5), share_of(patch))
    )
    exam = trial._Exam(SimpleNamespace(), SimpleNamespace(), "temporal", None, {})  # type: ignore[arg-type]
    epoch, measured = exam.weighed(patch, 1.0, ball)
    assert (epoch.beta, measured, epoch.general) == (beta, beta, general[beta])
    assert shares == (asked if asked is not None else [round(1 - i / 10, 10) for i in range(1, 10)])


def test_a_companion_keeps_to_its_ball_on_the_test_pair(seen: list[str]) -> None:
    validated = validation_jobs(Sweep("mini", ("verb_conjugation",), ENSEMBLE, configurations=1), 4)[0]
    wide, narrow = (replace(validated, split="test", ball=ball) for ball in (1.0, 1e-5))
    alone, free, kept = (trial.train(job) for job in (validated, wide, narrow))
    unedited = trial.train(Job("mini", "verb_conjugation", "none", "none", split="test"))
    assert alone.log[0].beta is alone.log[1].beta is None
    assert free.log[0] == kept.log[0] == unedited.log[0]
    assert alone.log[0].general != free.log[0].general  # alone: the small model
    assert [epoch.beta for epoch in free.log] == [None, 1.0, 1.0]
    start = kept.log[0].general
    assert free.log[2].general > start * (1 + 1e-5)  # so that it is the ball that lowers beta
    assert 0 <= (kept.log[2].beta or 0) < 1
    assert all(epoch.general < start * (1 + 1e-5) for epoch in kept.log)
    assert free.log[2].failure <= kept.log[2].failure


def test_an_epoch_on_the_real_pronouns(seen: list[str], shared: Path) -> None:
    """Of a model that is no model of ours; its loss before the updates is told, and the epoch changes it."""
    model, data = shared / "models" / "stories260K", shared / "data"
    if not model.is_dir():
        pytest.skip("the model stories260K is not there")
    settings = {"steps": 1, "lr": 1e-12, "kl": 0.0}
    still = trial.train(Job(str(model), "pronoun_gender_bias", "full", "full", settings, data_dir=str(data)))
    lm = trial._loaded(str(model), "float32", None)[0].lm
    rows = data / "canonical" / "pronoun_gender_bias" / "split" / "pronoun_gender_bias_train-val.jsonl"
    losses = []
    for row in (json.loads(line) for line in rows.read_text().splitlines()):
        ids = [lm.tokenizer(row["prefix"]).input_ids] * 2
        said = [lm.tokenizer(row[k].strip(), add_special_tokens=False).input_ids for k in ("suffix1", "suffix2")]
        with torch.no_grad():
            logs = [lm.model(torch.tensor([a + b])).logits[0].log_softmax(-1) for a, b in zip(ids, said, strict=True)]
        nlls = [-log[len(a) - 1 :][range(len(b)), b].mean() for a, b, log in zip(ids, said, logs, strict=True)]
        losses.append(abs(float(nlls[0] - nlls[1])))
    assert len(losses) == 20
    assert still.log[1].train_loss == pytest.approx(sum(losses) / 20, rel=1e-5)
    assert still.log[1].general == pytest.approx(still.log[0].general, rel=1e-6)
    moved = trial.train(replace(still.job, settings={"steps": 1, "lr": 1e-4, "kl": 0.5}))
    assert moved.reason is None
    assert moved.log[0] == still.log[0]
    assert abs(moved.log[1].general / moved.log[0].general - 1) > 1e-5


def test_a_ball_of_which_nothing_is_scored_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one token have no token after another: the loss is missing, and no model is in such a ball."""
    names = ("ball", "temporal")
    empty = trial.Measured({"general": {"general/0": Ratio(0.0, 0.0)}, "success": {"evaluation/0": Ratio(1.0)}})
    monkeypatch.setattr(trial._Exam, "_scored", lambda self, task, state: empty)
    model = SimpleNamespace(holding=nullcontext, lm=SimpleNamespace(hashes=lambda weights: {}))
    suite = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in names])
    with pytest.raises(DataError, match=r"^ball: no text has two tokens, so that none is scored; give longer ones"):
        trial._Exam(model, suite, "temporal", None, {}).look(Patch(), None)  # type: ignore[arg-type]


def test_the_text_of_the_regulariser_is_read_only_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_regulariser", lambda data_dir: Path(data_dir) / "general.jsonl")
    job = Job("mini", "temporal", "full", "full", {"lr": 0.1}, data_dir="there")
    assert trial._settings(job) == {"lr": 0.1, "kl_text": "there/general.jsonl"}
    monkeypatch.setattr(trial, "_regulariser", lambda data_dir: pytest.fail("was read"))
    assert trial._settings(replace(job, settings={"kl_text": "mine"})) == {"kl_text": "mine"}
    assert trial._settings(replace(job, method="ft_l", editor="ft_l")) == {"lr": 0.1}


# --- where models go --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("seen")
def test_a_model_that_is_spread_is_trained_the_same(tmp_path: Path) -> None:
    """Two blocks lie on disk; neither the name of the job nor what it depends on is another."""
    job = Job("mini", "pronoun_gender_bias", "lora", "lora", {"steps": 1})
    whole = trial.train(job, "cpu")
    parts = dict.fromkeys(["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"], "cpu")
    layers = whole_layers()
    where = parts | {f"transformer.h.{i}": "disk" if i in (1, 2) else "cpu" for i in range(layers)}
    spread = trial.train(job, Placement.of(device_map=where, offload_folder=tmp_path))
    lm = trial._loaded("mini", "float32", Placement.of(device_map=where, offload_folder=tmp_path))[0].lm
    assert any(parameter.is_meta for parameter in lm.model.parameters())
    assert spread.identity == whole.identity
    for a, b in zip(spread.log, whole.log, strict=True):
        assert (a.general, a.failure) == (pytest.approx(b.general, rel=1e-4), pytest.approx(b.failure, abs=1e-4))
    assert spread.log[1].general != spread.log[0].general


def whole_layers() -> int:
    return trial._loaded("mini", "float32", "cpu")[0].lm.arch.layers


def test_a_sweep_hands_on_where_models_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Where] = []

    def work(job: Job, device: Where = None) -> Trial:
        places.append(device)
        return Trial(job, log((3.0, 0.9), (3.0001, 0.5)), identity=trial.trial_identity(job))

    monkeypatch.setattr(trial, "train", work)
    sweep = Sweep(tasks=("temporal",), methods={"full": {}}, configurations=1, seeds=1, balls=(1e-3,))
    place = Placement.of(device_map="cpu")
    sweeps.run_sweep(sweep, tmp_path, crew=ALONE, progress=lambda *state: None, device=place)
    assert places == [place, place]


def test_a_type_that_is_typed_stands_before_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("dtype: bfloat16\n")
    assert (Sweep.read(path).dtype, Sweep.read(path, "float16").dtype) == ("bfloat16", "float16")
