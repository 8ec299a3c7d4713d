"""Commands of studies: tracing, localisation, sweeps, tuning, REMEDI's benchmarks, the contract, durability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from harness.cli import options as opt
from harness.cli import terminal, values

if TYPE_CHECKING:
    from harness.api import Progress
    from harness.models.lm import LM
    from harness.runs.plan import Plan
    from harness.studies.causal.tracing import TracingStudy
    from harness.studies.localization.localize import LocalizationStudy
    from harness.studies.remedi.benching import BenchPlan

__all__ = [
    "BenchOptions",
    "ContractOptions",
    "DurabilityOptions",
    "LocalizeOptions",
    "TraceOptions",
    "TuneOptions",
    "bench",
    "contract",
    "durability",
    "localize",
    "sweep",
    "trace",
    "trace_plot",
    "tune",
]


_TABLES: Mapping[str, str] = {"TABLES.md": "md", "tables.tex": "latex"}
"""The files in which a sweep leaves its tables."""


@dataclass(frozen=True)
class TraceOptions:
    """The options that say what is traced, and how."""

    model: Annotated[str, opt.MODEL.but(default="mini")]
    edits: Annotated[
        str,
        opt.EDITS.but(
            help="Facts: an edit set (its old targets are true), known_1000, or a file; NAME:N takes the first N.",
            default="counterfact:200",
        ),
    ]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    split: Annotated[str, opt.SPLIT.but(help="The split of an edit set.", default="test")]
    variant: Annotated[str, opt.VARIANT]
    kind: Annotated[str | None, opt.KIND]
    window: Annotated[str | None, opt.WINDOW]
    samples: Annotated[int | None, opt.SAMPLES]
    sigma: Annotated[str | None, opt.SIGMA]
    seed: Annotated[int | None, opt.SEED.but(help="Of the noise.", otherwise="1, as published")]
    known: Annotated[str | None, opt.KNOWN]
    new_tokens: Annotated[int | None, opt.NEW_TOKENS]
    answer: Annotated[str | None, opt.ANSWER]
    threshold: Annotated[float | None, opt.THRESHOLD]
    high: Annotated[str | None, opt.HIGH]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    arch: Annotated[Sequence[str], opt.ARCH]
    budget: Annotated[int, opt.BUDGET]
    output: Annotated[Path, opt.OUTPUT.but(default=Path("runs"))]
    fresh: Annotated[bool, opt.FRESH.but(help="Start anew where an earlier study of the same plan was stopped.")]
    workers: Annotated[int | None, opt.WORKERS]
    cluster: Annotated[str | None, opt.CLUSTER]

    def call(self, where: opt.PlacementOptions, report: Progress) -> list[TracingStudy]:
        """Trace.

        Args:
            where: where the model goes.
            report: told what is done.

        Raises:
            HarnessError: an option cannot be read, or something does not exist or cannot be used.
        """
        from harness import api

        return api.trace(
            self.model, self.edits, data_dir=self.data_dir, split=self.split, variant=self.variant, kind=self.kind,
            window=values.integers(self.window, "--window") if self.window else None, samples=self.samples,
            sigma=self.sigma, seed=self.seed, known=self.known, new_tokens=self.new_tokens, answer=self.answer,
            threshold=self.threshold, high=self.high, dtype=self.dtype, arch=values.modules(self.arch),
            budget=self.budget, output=self.output, fresh=self.fresh, workers=self.workers, cluster=self.cluster,
            progress=report, **where.given(),
        )  # fmt: skip


@click.command(
    short_help="Find where a model recalls facts: causal tracing.",
    help="""Find where a model recalls facts: causal tracing.

    Noise on a subject makes the model forget; restoring what a module wrote at one token, in a window of layers, brings
    part of the answer's probability back. Facts that the model does not know are left out, counted and named. A study
    that was stopped goes on where it was when the same command is given again.

    \b
    harness trace --edits counterfact:50 --window 1,3
    harness trace --model gpt2-xl --variant rome --edits known_1000 --data-dir DIR
    harness trace-plot runs/*trace*.json --output layers.png
    """,
)
@opt.taken(TraceOptions, opt.PlacementOptions)
def trace(asked: TraceOptions, where: opt.PlacementOptions) -> None:
    """Find where a model recalls facts: causal tracing."""
    from harness.studies.causal.tracing import study_name, study_table

    with terminal.watched() as report:
        found = asked.call(where, report)
    for study in found:
        terminal.write_table(study_table(study.record))
        terminal.say_where("record:", asked.output / f"{study_name(study.record)}.json")


@click.command("trace-plot")
@click.argument("paths", nargs=-1, required=True, type=opt.PATH)
@opt.WHAT
@opt.FACT
@opt.OUTPUT.but(help="The figure.", default=Path("trace.png"))
def trace_plot(*, paths: Sequence[Path], what: str, fact: str | None, output: Path) -> None:
    """Draw records of `harness trace`: png, svg or pdf."""
    from harness.studies.causal.trace_figures import draw_traces
    from harness.studies.causal.tracing import read_study

    draw_traces([read_study(path) for path in paths], what if fact is None else "fact", path=output, fact=fact)
    terminal.say_where("figure:", output)


@dataclass(frozen=True)
class LocalizeOptions:
    """The options that say what is edited where, and how it is scored."""

    model: Annotated[str, opt.MODEL.but(default="mini")]
    edits: Annotated[str, opt.EDITS.but(help="An edit set; NAME:N looks at its first N rows.", default="counterfact")]
    facts: Annotated[int | None, opt.FACTS]
    problems: Annotated[str, opt.PROBLEMS]
    methods: Annotated[str, opt.METHODS]
    layers: Annotated[str, opt.LAYERS]
    settings: Annotated[Sequence[str], opt.SET.but(help="A hyperparameter.", metavar="[EDITOR.]FIELD=VALUE")]
    trace_window: Annotated[int, opt.TRACE_WINDOW]
    sigma: Annotated[str | None, opt.SIGMA.but(help="The noise: a number, s3, hase or rome.", otherwise="hase")]
    samples: Annotated[int, opt.SAMPLES.but(help="Noise samples of tracing.", default=10)]
    forcing_samples: Annotated[int, opt.FORCING_SAMPLES]
    released: Annotated[str | None, opt.RELEASED]
    no_essence: Annotated[bool, opt.NO_ESSENCE]
    split: Annotated[str, opt.SPLIT.but(default="test")]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    text: Annotated[str | None, opt.TEXT]
    seed: Annotated[int, opt.SEED.but(default=0)]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    arch: Annotated[Sequence[str], opt.ARCH]
    dequantise_edited: Annotated[bool, opt.DEQUANTISE_EDITED]

    tables: Annotated[bool, opt.TABLES]
    output: Annotated[Path, opt.OUTPUT.but(help="Folder of the study.", default=Path("runs"))]
    fresh: Annotated[bool, opt.FRESH.but(help="Start anew where an earlier run of the same study was stopped.")]
    workers: Annotated[int | None, opt.WORKERS]
    cluster: Annotated[str | None, opt.CLUSTER]

    def call(self, where: opt.PlacementOptions, report: Progress) -> LocalizationStudy:
        """Edit every layer.

        Args:
            where: where the model goes.
            report: told what is done.

        Raises:
            HarnessError: an option cannot be read, or something does not exist or cannot be used.
        """
        from harness import api

        return api.localize(
            self.model, self.edits, facts=self.facts, problems=self.problems, methods=self.methods,
            layers=None if self.layers == "all" else values.integers(self.layers, "--layers"),
            settings=values.settings(self.settings), trace_window=self.trace_window, sigma=self.sigma,
            samples=self.samples, forcing_samples=self.forcing_samples, released=self.released or (),
            essence=not self.no_essence, split=self.split, data_dir=self.data_dir, text=self.text, seed=self.seed,
            dtype=self.dtype, arch=values.modules(self.arch), dequantise_edited=self.dequantise_edited,
            output=self.output, fresh=self.fresh, only_done=self.tables, workers=self.workers, cluster=self.cluster,
            progress=report, **where.given(),
        )  # fmt: skip


@click.command()
@opt.taken(LocalizeOptions, opt.PlacementOptions)
@opt.PUBLISHED.but(help="Put the paper's numbers beside.")
def localize(asked: LocalizeOptions, where: opt.PlacementOptions, *, published: bool) -> None:
    """Edit every layer, and see whether tracing tells which (Hase et al. 2023).

    Five problems (error_injection, tracing_reversal, fact_erasure, fact_amplification, fact_forcing), every method at
    every layer, and a regression of the scores on the layer and on the tracing effect there. What was stopped goes on
    where it was when the same command is given again.
    """
    from harness.studies.localization.localize_report import write_report

    with terminal.watched() as report:
        kept = asked.call(where, report)
    made = write_report(kept, published)
    _say_fits(kept)
    terminal.say_where("study:", kept.path, *made)


def _say_fits(kept: LocalizationStudy) -> None:
    """How much of the main score the layer, tracing and both explain, of each problem and method."""
    from harness.studies.localization.localize_report import VIEWS, rows_of

    for row in rows_of(kept):
        if row.view == VIEWS[0] and row.metric == "rewrite" and row.fit.reason is None:
            fit = row.fit
            r2 = f"R2 layer {fit.r2_layer:.3f}, trace {fit.r2_trace:.3f}, both {fit.r2_both:.3f}"
            terminal.say(f"{row.problem}, {row.method}: {r2}")


@click.command()
@click.argument("path", type=opt.PATH)
@opt.taken(opt.PlacementOptions)
@opt.OUTPUT.but(help="Folder of the records and tables.", default=Path("sweep"))
@opt.DTYPE.but(otherwise="that of the file")
@opt.WORKERS
@opt.CLUSTER
@opt.ADDRESS
@opt.FORMAT.but(default="md")
@opt.TRUST_CODE
def sweep(
    where: opt.PlacementOptions,
    *,
    path: Path,
    output: Path,
    dtype: str | None,
    address: str | None,
    workers: int | None,
    cluster: str | None,
    form: str,
    trust_code: bool,
) -> None:
    """Draw configurations, choose on the validation pairs, train anew on the test pairs, and print the tables.

    PATH is a YAML file; README.md shows one. What has a record in the output folder is never run again.
    """
    from harness import api
    from harness.io import files
    from harness.studies.sweeps.sweep import Sweep
    from harness.studies.sweeps.sweep_tables import format_tables

    asked = Sweep.read(path, dtype)
    asked.require_trusted(path, trust_code)
    with terminal.watched() as report:
        trials = api.sweep(
            asked, output, workers=workers, cluster=cluster or address, progress=report, **where.given()
        )  # fmt: skip
    for name, kind in _TABLES.items():
        files.write_whole(output / name, format_tables(trials, kind, asked.balls).encode())
    click.echo(format_tables(trials, form, asked.balls), nl=False)


@dataclass(frozen=True)
class TuneOptions:
    """The options of ``harness tune``."""

    editor: Annotated[str, opt.EDITOR.but(required=True)]
    model: Annotated[str, opt.MODEL.but(default="mini")]
    edits: Annotated[str, opt.EDITS.but(help="Tuning rows: NAME, NAME:N, or a file.", default="counterfact:20")]
    split: Annotated[str, opt.SPLIT.but(default="train")]
    against: Annotated[str | None, opt.AGAINST]
    mode: Annotated[str | None, opt.MODE]
    settings: Annotated[Sequence[str], opt.SET.but(help="A hyperparameter that is not searched.")]
    trials: Annotated[int, opt.TRIALS]
    probes: Annotated[int, opt.PROBES]
    texts: Annotated[int, opt.TEXTS]
    traced: Annotated[int, opt.TRACED]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    text: Annotated[str | None, opt.TEXT]
    seed: Annotated[int, opt.SEED.but(default=0)]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    arch: Annotated[Sequence[str], opt.ARCH]
    dequantise_edited: Annotated[bool, opt.DEQUANTISE_EDITED]

    def plan(self) -> Plan:
        """The untuned editor on the tuning rows.

        Raises:
            UsageError: an option cannot be read.
        """
        from harness.runs.plan_grid import plans

        named = ("editor", "model", "edits", "split", "mode", "data_dir", "text", "seed", "dtype")
        fields = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        read = {
            "settings": values.settings(self.settings),
            "arch": values.modules(self.arch),
            "dequantise_edited": self.dequantise_edited,
        }
        (found,) = plans({}, options={**fields, **read}, where="tune")
        return found


@click.command(short_help="Tune an editor for a model, on tuning rows alone.")
@opt.taken(TuneOptions, opt.PlacementOptions)
@opt.OUTPUT.but(help="Folder of the preset, the report and the trials.", default=Path("tune"))
@opt.WORKERS
@opt.CLUSTER
def tune(
    asked: TuneOptions, where: opt.PlacementOptions, *, output: Path, workers: int | None, cluster: str | None
) -> None:
    """Tune an editor for a model, on tuning rows alone.

    The layers that causal tracing proposes are tried first, then learning rates, lam and the editor's other main
    settings, one at a time. What comes out is a preset, for `harness run --config`, and a report of all that was tried.
    What was stopped goes on where it was when the same command is given again.
    """
    from harness.runs.crew.cells import crew_of
    from harness.studies.sweeps import tune as study
    from harness.studies.sweeps.tune_report import write_tuned

    budget, crew = study.Budget(asked.trials, asked.probes, asked.texts, asked.traced), crew_of(workers, cluster)
    place = where.placement()
    with terminal.watched() as told:
        found = study.tune(
            asked.plan(), output / "trials", budget=budget, against=asked.against, device=place, report=told, crew=crew
        )
    best = f"the best of {len(found.trials)} trials has objective {found.best.objective:.3f}"
    terminal.say(f"{best}, the untuned editor {found.trials[0].objective or math.nan:.3f}")
    terminal.say_where("preset:", *write_tuned(found, output))


@dataclass(frozen=True)
class BenchOptions:
    """The options of ``harness bench``."""

    editors: Annotated[
        str | None,
        opt.EDITOR.but(help="Editors and baselines.", otherwise="the baselines of the benchmark, and remedi"),
    ]
    model: Annotated[str, opt.MODEL.but(default="mini")]
    cases: Annotated[int, opt.CASES]
    learn: Annotated[int | None, opt.LEARN]
    settings: Annotated[Sequence[str], opt.SET.but(help="A hyperparameter of the editors.")]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    entity_layer: Annotated[int | None, opt.ENTITY_LAYER]
    tokens: Annotated[
        int | None, opt.TOKENS.but(help="Of each sampled text, its prompt counted.", otherwise="100; bios: 150")
    ]
    seed: Annotated[int, opt.SEED.but(default=0)]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    arch: Annotated[Sequence[str], opt.ARCH]

    def plan(self, bench: str) -> BenchPlan:
        """The plan of a benchmark.

        Raises:
            UsageError: an option cannot be read.
        """
        from harness.runs.defaults import rows_for
        from harness.studies.remedi.benching import BenchPlan, usual

        return BenchPlan(
            bench,
            values.name_list(self.editors) if self.editors else usual(bench),
            model=self.model,
            cases=self.cases,
            learn=self.learn,
            settings=values.settings(self.settings),
            data_dir=rows_for(self.model, self.data_dir),
            entity_layer=self.entity_layer,
            tokens=self.tokens,
            seed=self.seed,
            dtype=self.dtype,
            arch=values.modules(self.arch),
        )


@click.command(
    short_help="REMEDI's benchmarks: does a model say what an edit entails?",
    help="""REMEDI's benchmarks: does a model say what an edit entails, and can one tell beforehand?

    \b
    facts                CounterFact: efficacy, consistency, fluency, essence
    features             McRae norms: what becomes likelier with the feature that was said
    bios                 Bias in Bios: occupations, with the biography in front and without it
    mediation            CounterFact: which of two answers is given, with the sentence in front and without it
    fact-classification  will the model fail? F1 and Matthews correlation of REMEDI's probe and its controls
    bios-classification  the same on Bias in Bios

    An editor that learns does so on other rows of the same set; the cache keeps what it learned.

    \b
    harness bench facts
    harness bench features --editor none,prefix,remedi --data-dir DIR
    """,
)
@click.argument("name", metavar="BENCHMARK")
@opt.taken(BenchOptions)
@opt.DEVICE
@opt.PUBLISHED
@opt.OUTPUT.but(default=Path("runs"))
def bench(asked: BenchOptions, *, name: str, device: str | None, published: bool, output: Path) -> None:
    """REMEDI's benchmarks: does a model say what an edit entails, and can one tell beforehand?"""
    from harness.studies.remedi.benching import bench_name, bench_table, run_bench

    plan = asked.plan(name)
    with terminal.watched() as report:
        record = run_bench(plan, output, device=device, report=report)
    terminal.write_table(bench_table(record, published))
    terminal.say_where("record:", output / f"{bench_name(record)}.json")


@dataclass(frozen=True)
class ContractOptions:
    """The options of ``harness contract``."""

    editor: Annotated[str, opt.EDITOR.but(help="The method, a wrapper, or path/to/file.py.", required=True)]
    model: Annotated[str, opt.MODEL.but(default="mini")]
    settings: Annotated[Sequence[str], opt.SET]
    edits: Annotated[str, opt.EDITS.but(help="The set whose first edits are made.", default="counterfact")]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    text: Annotated[str | None, opt.TEXT]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    device: Annotated[str | None, opt.DEVICE]
    arch: Annotated[Sequence[str], opt.ARCH]

    def lm(self) -> LM:
        """The model.

        Raises:
            HarnessError: it cannot be loaded.
        """
        from harness.models.lm import load
        from harness.runs.defaults import text_for

        text = text_for(self.model, self.data_dir, self.text)
        return load(self.model, dtype=self.dtype, device=self.device, names=values.modules(self.arch), text=text)


@click.command(short_help="Hold an editor to every promise.")
@opt.taken(ContractOptions)
def contract(asked: ContractOptions) -> None:
    """Hold an editor to every promise, on one model; exit 1 where one is broken.

    A wrapper that is named alone stands around MEMIT. What an editor says that it cannot promise is not tried.
    """
    from harness.errors import CheckFailed
    from harness.runs.defaults import rows_for
    from harness.studies.contract import contract as study

    recipe, settings = study.recipe_of(asked.editor), values.settings(asked.settings)
    lm = asked.lm()
    with terminal.watched() as report:
        where = {"edits": asked.edits, "data_dir": rows_for(asked.model, asked.data_dir)}
        found = study.run_contract(recipe, lm, settings=settings, progress=report, **where)
    title = f"{recipe.name} on {asked.model}"
    terminal.write_table(terminal.plain_table(title, study.COLUMNS, [one.row for one in found]))
    broken = [one.promise for one in found if one.outcome == "broken"]
    if broken:
        raise CheckFailed(f"{recipe.name} breaks {len(broken)} of {len(found)} promises: {', '.join(broken)}")


@dataclass(frozen=True)
class DurabilityOptions:
    """The options of ``harness durability``."""

    editor: Annotated[str, opt.EDITOR.but(required=True)]
    after: Annotated[str, opt.AFTER]
    model: Annotated[str, opt.MODEL.but(default="mini")]
    edits: Annotated[
        str, opt.EDITS.but(help="An edit set, or a file; NAME:N follows its first N rows.", default="counterfact:20")
    ]
    split: Annotated[str, opt.SPLIT.but(default="test")]
    exam: Annotated[str | None, opt.EXAM]
    mode: Annotated[str | None, opt.MODE.but(help="All in one model: batch, or sequential.", otherwise="the editor's")]
    edit_batch_size: Annotated[int | None, opt.EDIT_BATCH_SIZE]
    settings: Annotated[Sequence[str], opt.SET]
    fitted: Annotated[str | None, opt.FITTED]
    data_dir: Annotated[str | None, opt.DATA_DIR]
    text: Annotated[str | None, opt.TEXT.but(help="Plain text: what fine-tuning reads, and for second moments.")]
    lr: Annotated[float | None, opt.LR]
    seed: Annotated[int, opt.SEED.but(default=0)]
    dtype: Annotated[str, opt.DTYPE.but(default="float32")]
    arch: Annotated[Sequence[str], opt.ARCH]

    device: Annotated[str | None, opt.DEVICE]
    batch_size: Annotated[int | None, opt.BATCH_SIZE]
    output: Annotated[Path, opt.OUTPUT.but(default=Path("runs"))]
    fresh: Annotated[bool, opt.FRESH.but(help="Start anew where an earlier study of the same plan was stopped.")]

    def call(self, report: Progress) -> dict[str, object]:
        """Follow the edits.

        Args:
            report: told what is done.

        Raises:
            HarnessError: an option cannot be read, or something does not exist or cannot be used.
        """
        from harness import api

        return api.durability(
            self.model, self.editor, self.edits, after=self.after, settings=values.settings(self.settings),
            split=self.split, exam=tuple(name.strip() for name in (self.exam or "").split(",") if name.strip()),
            mode=self.mode, edit_batch_size=self.edit_batch_size, data_dir=self.data_dir, text=self.text, lr=self.lr,
            seed=self.seed, dtype=self.dtype, arch=values.modules(self.arch), fitted=self.fitted, output=self.output,
            device=self.device, batch_size=self.batch_size, fresh=self.fresh, progress=report,
        )  # fmt: skip


@click.command(
    short_help="See which edits last.",
    help="""See which edits last: the same questions after further edits, fine-tuning, quantisation, a trip to disk.

    Of what held right after the edits, the share that still does, each with its interval, and after how many further
    edits half is gone. Each treatment begins with the edited model. A study that was stopped goes on with the
    treatments that are not done when the same command is given again.

    \b
    harness durability --editor memit --edits counterfact:20 --after further=10,50,finetune=100,int8,int4,reload
    """,
)
@opt.taken(DurabilityOptions)
def durability(asked: DurabilityOptions) -> None:
    """See which edits last."""
    from harness.studies.durability.study import durability_name, durability_table

    with terminal.watched() as report:
        record = asked.call(report)
    terminal.write_table(durability_table(record))
    terminal.say_where("record:", asked.output / f"{durability_name(record)}.json")
