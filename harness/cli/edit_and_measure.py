"""Commands that edit a model: ``run``, ``fit`` and ``apply``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from harness.cli import options as opt
from harness.cli import terminal, values

if TYPE_CHECKING:
    from harness.reports.run_log import RunLogger
    from harness.runs import options as carried
    from harness.runs.crew.cells import Crew
    from harness.runs.plan import Plan
    from harness.runs.record import Record
    from harness.runs.several import Outcome

__all__ = ["ExecutionOptions", "FitOptions", "PlanOptions", "apply", "fit", "run"]


@dataclass(frozen=True)
class PlanOptions:
    """The options that make a plan; what is not given is left to the configuration file, and to the plan."""

    model: Annotated[str | None, opt.MODEL] = None
    editor: Annotated[str | None, opt.EDITOR] = None
    tasks: Annotated[str | None, opt.TASKS] = None
    edits: Annotated[str | None, opt.EDITS] = None
    num_edits: Annotated[int | None, opt.NUM_EDITS] = None
    split: Annotated[str | None, opt.SPLIT] = None
    exam: Annotated[str | None, opt.EXAM] = None
    include_path: Annotated[str | None, opt.INCLUDE_PATH] = None
    mode: Annotated[str | None, opt.MODE] = None
    edit_batch_size: Annotated[int | None, opt.EDIT_BATCH_SIZE] = None
    cases_at_once: Annotated[int | None, opt.CASES_AT_ONCE] = None
    eval_at: Annotated[str | None, opt.EVAL_AT] = None
    stop_on_collapse: Annotated[bool, opt.STOP_ON_COLLAPSE] = False
    order: Annotated[str | None, opt.ORDER] = None
    known_only: Annotated[bool, opt.KNOWN_ONLY] = False
    patch: Annotated[str | None, opt.PATCH] = None
    settings: Annotated[Sequence[str], opt.SET] = ()
    fitted: Annotated[str | None, opt.FITTED] = None
    data_dir: Annotated[str | None, opt.DATA_DIR] = None
    text: Annotated[str | None, opt.TEXT] = None
    limit: Annotated[int | None, opt.LIMIT] = None
    seed: Annotated[int | None, opt.SEED] = None
    dtype: Annotated[str | None, opt.DTYPE] = None
    model_args: Annotated[str | None, opt.MODEL_ARGS] = None
    arch: Annotated[Sequence[str], opt.ARCH] = ()
    num_fewshot: Annotated[int | None, opt.NUM_FEWSHOT] = None
    apply_chat_template: Annotated[str | None, opt.APPLY_CHAT_TEMPLATE] = None
    system_instruction: Annotated[str | None, opt.SYSTEM_INSTRUCTION] = None
    fewshot_as_multiturn: Annotated[bool | None, opt.FEWSHOT_AS_MULTITURN] = None
    gen_kwargs: Annotated[str | None, opt.GEN_KWARGS] = None
    enable_thinking: Annotated[bool | None, opt.ENABLE_THINKING] = None
    think_end_token: Annotated[str | None, opt.THINK_END_TOKEN] = None
    thinking_budget: Annotated[int | None, opt.THINKING_BUDGET] = None
    chat_edits: Annotated[bool, opt.CHAT_EDITS] = False
    predict_only: Annotated[bool, opt.PREDICT_ONLY] = False
    dequantise_edited: Annotated[bool, opt.DEQUANTISE_EDITED] = False
    backend: Annotated[str | None, opt.BACKEND] = None
    config: Annotated[Path | None, opt.CONFIG] = None
    trust_code: Annotated[bool, opt.TRUST_CODE] = False

    def plans(self, seeds: str | None = None) -> list[Plan]:
        """The plans that these options, on top of the configuration file, describe; each seed is one more.

        Raises:
            UsageError: an option or the file cannot be read as fields of a plan.
        """
        from harness.runs import plan_grid
        from harness.runs.plan import Plan

        read = {
            "stop_on_collapse": self.stop_on_collapse or None,
            "known_only": self.known_only or None,
            "chat_edits": self.chat_edits or None,
            "predict_only": self.predict_only or None,
            "dequantise_edited": self.dequantise_edited or None,
            "settings": values.settings(self.settings),
            "arch": values.modules(self.arch),
            "model_args": values.model_args(self.model_args),
            "apply_chat_template": values.yes_no_or_name(self.apply_chat_template),
            "gen_kwargs": values.gen_kwargs(self.gen_kwargs),
            "think_end_token": values.text_or_token(self.think_end_token),
        }
        given = {key: value for key, value in (vars(self) | read).items() if key not in ("config", "trust_code")}
        each = None if seeds is None else values.integers(seeds, "--seeds")
        found = plan_grid.plans(
            Plan.read(self.config) if self.config else {}, options=given, seeds=each, where=str(self.config or "plan")
        )
        from harness.runs.trusted import require_trusted_plan  # what is mistyped is told before torch is imported

        typed = {key for key, value in given.items() if value or self.config is None}
        for plan in found:
            require_trusted_plan(plan, self.config or "plan", trusted=self.trust_code, typed=typed)
        return found


@dataclass(frozen=True)
class ExecutionOptions:
    """The options that say how a plan is carried out."""

    output: Annotated[Path, opt.OUTPUT.but(default=Path("runs"))]
    device: Annotated[str | None, opt.DEVICE]
    device_map: Annotated[str | None, opt.DEVICE_MAP]
    max_memory: Annotated[str | None, opt.MAX_MEMORY]
    offload_folder: Annotated[Path | None, opt.OFFLOAD_FOLDER]
    batch_size: Annotated[int | None, opt.BATCH_SIZE]
    no_cache: Annotated[bool, opt.NO_CACHE]
    no_save_edits: Annotated[bool, opt.NO_SAVE_EDITS]
    log_samples: Annotated[bool, opt.LOG_SAMPLES]
    fresh: Annotated[bool, opt.FRESH]
    shards: Annotated[int, opt.SHARDS]

    def options(self) -> carried.RunOptions:
        """As the runner takes them."""
        from harness.runs import options as carried

        return carried.RunOptions(
            self.output,
            device=self.device,
            device_map=self.device_map,
            max_memory=self.max_memory,
            offload_folder=self.offload_folder,
            rows=self.batch_size,
            cache=not self.no_cache,
            save_edits=not self.no_save_edits,
            log_samples=self.log_samples,
            fresh=self.fresh,
            shards=self.shards,
        )


@click.command()
@opt.taken(PlanOptions, ExecutionOptions)
@opt.SEEDS
@opt.WORKERS
@opt.CLUSTER
@opt.LOG_TO
@opt.DRY_RUN
@opt.NO_PROBES
def run(
    plan: PlanOptions,
    execution: ExecutionOptions,
    *,
    seeds: str | None,
    workers: int | None,
    cluster: str | None,
    log_to: Sequence[str],
    dry_run: bool,
    no_probes: bool,
) -> None:
    """Edit a model, and measure it before and after.

    A run that was stopped, even killed, goes on where it was when the same command is given again. Of several runs
    (--seeds, or lists in the --config file) those that are complete are kept, unless --fresh is given; --workers and
    --cluster carry out several at a time.
    """
    from harness.runs.crew.cells import crew_of
    from harness.runs.defaults import note_rows

    loggers, wanted = _loggers(log_to), plan.plans(seeds)
    for one in wanted[:1]:
        note_rows(one, execution.batch_size)
    if dry_run:
        _show_plans(wanted, execution.options(), probes=not no_probes)
    else:
        ended = _carried_out(wanted, execution.options(), crew=crew_of(workers, cluster), loggers=loggers)
        _show_seeds([done.record for done in ended if done.record])


def _carried_out(
    plans: Sequence[Plan], options: carried.RunOptions, *, crew: Crew, loggers: Sequence[RunLogger]
) -> list[Outcome]:
    """Carry out plans, show what became of each, and log it.

    Args:
        plans: the plans.
        options: how.
        crew: who.
        loggers: where records are logged.
    """
    from harness.runs.several import run_each

    ended: list[Outcome] = []
    try:
        with terminal.cells_watched(len(plans), not crew.here) as watcher:
            for done in run_each(plans, options, watcher=watcher, crew=crew):
                ended.append(done)
                if crew.here:
                    _show_outcome(done)
    finally:
        for done in ended if not crew.here else ():  # tables would mix with the bars of what is under way
            _show_outcome(done)
        for done in ended:
            if done.error is not None:
                terminal.tell(f"{done.plan.editor}: {done.error}")
            _log_outcome(done, loggers)
    return ended


def _loggers(names: Sequence[str]) -> Sequence[RunLogger]:
    """What is logged to, known before anything is run."""
    if not names:
        return ()
    from harness.reports.run_log import find_logger

    return [find_logger(name) for name in dict.fromkeys(names)]


def _log_outcome(done: Outcome, loggers: Sequence[RunLogger]) -> None:
    """Log a record that was made now; what cannot be logged is told, and keeps nothing else from being run."""
    if done.record is None or done.path is None or done.known:
        return
    for logger in loggers:
        _log_to(logger, done.record, done.path)


def _log_to(logger: RunLogger, record: Record, path: Path) -> None:
    from harness.errors import UsageError

    try:
        click.echo(f"logged: {logger.name}, {logger.log(record, path)}")
    except UsageError as error:
        terminal.tell(f"{error}; the record is whole")


def _show_plans(plans: Sequence[Plan], options: carried.RunOptions, *, probes: bool) -> None:
    """What would be run, whether its record is there, and what it will take where the model is at hand.

    All names are looked up before the first plan is shown.

    Args:
        plans: the plans.
        options: how they would be carried out.
        probes: whether a little of the work is tried.
    """
    from harness.reports.plan_table import estimate_table, plan_table
    from harness.runs.estimate import at_hand, estimate_run
    from harness.runs.resolve import resolve

    for plan in plans:
        options.require_kept(plan)
    for one in [resolve(plan) for plan in plans]:
        terminal.write_table(plan_table(one, options.output))
        if probes and at_hand(one):
            with terminal.watched() as report:
                found = estimate_run(one, replace(options, report=report))
            terminal.write_table(estimate_table(found))


def _show_outcome(done: Outcome) -> None:
    """The table of a plan that was run now, and where its record lies."""
    from harness.reports.terminal_tables import run_table

    if done.record is None or done.path is None:
        return
    if not done.known:
        terminal.write_table(run_table(done.record))
    terminal.say_where("complete:" if done.known else "record:", done.path)


def _show_seeds(kept: Sequence[Record]) -> None:
    """A table for each group of records that differ in their seed alone."""
    from harness.reports.seeds import pool
    from harness.reports.terminal_tables import run_table

    for whole in pool(kept):
        if "seeds" in whole.plan:
            terminal.write_table(run_table(whole))


@dataclass(frozen=True)
class FitOptions:
    """The options of ``harness fit``."""

    editor: Annotated[str, opt.EDITOR.but(help="An editor that learns before its first edit.", required=True)]
    model: Annotated[str, opt.MODEL.but(default="mini")]
    edits: Annotated[str, opt.EDITS.but(help="What it learns from: NAME, NAME:N, or a file.", default="counterfact")]
    split: Annotated[str, opt.SPLIT.but(default="train")]
    settings: Annotated[Sequence[str], opt.SET]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    text: Annotated[
        str | None, opt.TEXT.but(help="Plain text, for editors that read some: a file, a folder, or a Hub data set.")
    ]
    seed: Annotated[int, opt.SEED.but(default=0)]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    model_args: Annotated[str | None, opt.MODEL_ARGS]
    arch: Annotated[Sequence[str], opt.ARCH]
    output: Annotated[Path | None, opt.OUTPUT.but(help="The file.", otherwise="the cache, where `run` looks")]
    dequantise_edited: Annotated[bool, opt.DEQUANTISE_EDITED]

    def call(self, where: opt.PlacementOptions) -> Path:
        """Let the editor learn.

        Args:
            where: where the model goes.

        Raises:
            HarnessError: an option cannot be read, or something does not exist or cannot be used.
        """
        from harness import api

        return api.fit(
            self.editor, self.model, self.edits, split=self.split, settings=values.settings(self.settings),
            data_dir=self.data_dir, text=self.text, seed=self.seed, dtype=self.dtype, arch=values.modules(self.arch),
            model_args=values.model_args(self.model_args), output=self.output,
            dequantise_edited=self.dequantise_edited, **where.given(),
        )  # fmt: skip


@click.command()
@opt.taken(FitOptions, opt.PlacementOptions)
def fit(asked: FitOptions, where: opt.PlacementOptions) -> None:
    """Let an editor learn what it needs before its first edit (MEND, MALMEN, RLEdit, REMEDI)."""
    from harness.editing.learned_file import learned_by

    path = asked.call(where)
    who, count = learned_by(path)
    terminal.say_where(f"[green]fitted[/] {who} to {asked.model} on {count} examples:", path)


@click.command()
@click.argument("patch", type=opt.PATH)
@opt.TO
@opt.MODEL.but(help="The unedited model.", otherwise="that which the patch names")
@opt.DTYPE.but(help="Of the checkpoint.", otherwise="that which the patch was made in")
@opt.TRUST_CODE
def apply(*, patch: Path, folder: Path, model: str | None, dtype: str | None, trust_code: bool) -> None:
    """Write the model with saved edits in its weights, as a checkpoint for transformers and lm_eval."""
    from harness.editing import patch_file
    from harness.editing.checkpoint import export
    from harness.models.lm import load, require_dtype
    from harness.runs.trusted import require_trusted_model

    if dtype is not None:
        require_dtype(dtype)
    patch_file.require_trusted_parts(patch, trust_code)
    about = patch_file.patch_manifest(patch)["about"]
    named, made_in, args = model or str(about.get("model")), str(about.get("dtype", "float32")), about.get("model_args")
    require_trusted_model(args, patch, trusted=trust_code)
    export(patch, load(named, dtype=made_in, device="cpu", args=args), folder, dtype=dtype)
    terminal.say_where("[green]written[/]", folder, then=": load it with transformers, or lm_eval --model hf")
