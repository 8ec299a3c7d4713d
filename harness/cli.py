"""The command line: arguments to a plan, results to the terminal. The only module that prints."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import yaml
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from harness import __version__
from harness.errors import CheckFailed, DataError, HarnessError, UsageError
from harness.io.progress import progress_console

if TYPE_CHECKING:
    from harness.methods.second_moments import Cached
    from harness.reports.terminal_tables import Moved
    from harness.runs.plan import Plan
    from harness.runs.record import Record
    from harness.runs.runner import Options
    from harness.studies.causal.restore import Kind
    from harness.studies.causal.trace import TraceSettings
    from harness.studies.localization.localize import Grid
    from harness.studies.sweeps.cells import Format

__all__ = ["main", "make_plans"]

_PAGE = 110  # columns
_EDITS = 50
"""How many edits where the user names neither a set nor a number."""
_FORMATS = ("md", "csv", "latex", "html")


class _Group(click.Group):
    """A click group that answers a near miss with the command that was meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one is near."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from harness.errors import near

            raise UsageError(f"command '{args[0]}' does not exist{near(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure what an edit of a language model gains, and what it costs.

    \b
    harness run --editor memit --tasks NER,NLI       the shipped model, the shipped data
    harness leaderboard results/ --format md
    """,
)
@click.version_option(__version__, prog_name="harness")
def harness() -> None:
    """The group of all commands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or what stands in ``arguments``; every mistake of the user is one line and an exit code."""
    _quiet()
    try:
        harness(arguments, "harness" if arguments else None, standalone_mode=False)
    except HarnessError as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        if error.ctx is not None and isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            click.echo(error.ctx.get_help())
            return
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; what was measured is in the *.partial.json of the output folder", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, code: int) -> None:
    _tell(message)
    sys.exit(code)


def _tell(message: str) -> None:
    """An error, in one line."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[bold red]error:[/] {_escape(' '.join(message.split()))}"
    )


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _quiet() -> None:
    """Keep the libraries' chatter off the terminal; ``HARNESS_VERBOSE=1`` lets it through."""
    if os.environ.get("HARNESS_VERBOSE"):
        logging.basicConfig(level=logging.INFO)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("lm_eval", "datasets", "transformers", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")


def _out() -> Console:
    """The terminal; where there is none, a page wide enough for a table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PAGE)


# --- run --------------------------------------------------------------------------------------------------------------


def _plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a plan."""
    options = [
        click.option("--model", help="A shipped model, a folder, or a Hub repository.  [default: mini]"),
        click.option("--editor", help="The method, or path/to/file.py.  [default: none]"),
        click.option("--tasks", help="Tasks and groups, separated by commas; lm-eval's own too."),
        click.option(
            "--edits", help="An edit set (NAME or NAME:N), or a JSONL file of your own.  [default: counterfact:50]"
        ),
        click.option("--num-edits", type=int, help="How many of its rows, from the first."),
        click.option(
            "--mode",
            type=click.Choice(
                ["isolated", "batch", "sequential", "instance-sequential", "batch-single", "batch-sequential"]
            ),
            help="How edits are made; the last three are the names of Gu et al.",
        ),
        click.option("--batch-size", type=int, help="Edits of one sequential operation."),
        click.option("--eval-at", help="Edit counts to measure at: 0,10,final or every:K.  [default: final]"),
        click.option(
            "--stop-on-collapse", is_flag=True, default=None, help="End where the edited model has collapsed."
        ),
        click.option("--order", type=click.Choice(["file", "random"]), help="The order of the edits.  [default: file]"),
        click.option("--patch", help="Put back the edits of this file instead of making new ones."),
        click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="A hyperparameter of the editor."),
        click.option(
            "--fitted", help="What the editor has learned.  [default: that of `harness fit` with these settings]"
        ),
        click.option("--data-dir", help="Rows: 'mini', a folder, or 'hub'.  [default: mini]"),
        click.option("--text", help="Plain text for second moments: a file, a folder, or a Hub data set."),
        click.option("--limit", type=int, help="Documents of each task."),
        click.option("--seed", type=int, help="Of everything random.  [default: 0]"),
        click.option("--dtype", help="float32, bfloat16, float16 or float64.  [default: float32]"),
        click.option(
            "--arch", "arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand."
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="A YAML file with any of the above; lists in it make several runs.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@harness.command()
@_plan_options
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the record."
)
@click.option("--device", help="Where the model goes; 'auto' spreads it.  [default: an accelerator, else the CPU]")
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True, help="Rows of one forward pass.")
@click.option("--no-cache", is_flag=True, help="Measure the unedited model again.")
@click.option("--no-save-edits", is_flag=True, help="Do not keep the edits that were made as a file.")
@click.option("--fresh", is_flag=True, help="Start anew where an earlier run of the same plan was stopped.")
@click.option("--seeds", help="Several runs, such as 0,1,2, each with its own seed and order of the edits.")
def run(
    output: Path,
    device: str | None,
    rows: int,
    no_cache: bool,
    no_save_edits: bool,
    fresh: bool,
    seeds: str | None,
    **chosen: Any,
) -> None:
    """Edit a model, and measure it before and after.

    A run that was stopped, even killed, goes on where it was when the same command is given again. Of several runs
    (--seeds, or lists in the --config file) those that are complete are kept, unless --fresh is given.
    """
    from harness.runs.runner import Options

    each = make_plans(**chosen, seeds=seeds)

    kept = _carry_out(each, Options(output, device, rows, not no_cache, not no_save_edits, fresh))
    if len(kept) > 1:
        from harness.reports.seeds import pool

        for whole in pool(kept):
            if "seeds" in whole.plan:
                _show_run(whole)


def _carry_out(plans: Sequence[Plan], options: Options) -> list[Record]:
    """Run plans one after the other, and show what came out.

    Of several, those whose record is complete are not run again, and one that fails does not keep the others from it.
    """
    from harness.runs.record import record_name
    from harness.runs.runner import finished

    several = len(plans) > 1
    known = [finished(plan, options.output) if several and not options.fresh else None for plan in plans]
    kept: list[Record] = []
    failed: list[HarnessError] = []
    for plan, complete in zip(plans, known, strict=True):
        try:
            kept.append(complete or _run_one(plan, options))
        except HarnessError as error:
            if not several:
                raise
            failed.append(error)
            _tell(f"{plan.editor}: {error}")
            continue
        path = options.output / f"{record_name(kept[-1])}.json"
        _out().print(f"{'complete' if complete else 'record'}: {path}", soft_wrap=True)
    if failed:
        raise type(failed[0])(f"{len(failed)} of {len(plans)} plans failed; the same command runs them again")
    return kept


def _run_one(plan: Plan, options: Options) -> Record:
    from harness.runs.runner import run as carry_out

    with _progress() as report:
        kept = carry_out(plan, replace(options, report=report))
    _show_run(kept)
    return kept


def make_plans(
    config: Path | None, settings: Sequence[str], arch: Sequence[str], seeds: str | None = None, **chosen: Any
) -> list[Plan]:
    """The plans that arguments, on top of a configuration file, describe; a file with lists describes several.

    Several seeds are a plan each; the order of the edits is drawn from the seed unless one is asked for.
    """
    from harness.runs.plan import Plan
    from harness.runs.plan_grid import expand

    values = Plan.read(config) if config else {}
    if seeds is not None:
        values = {"order": "random", **values}
    found = [_plan(one, settings, arch, chosen, str(config or "plan")) for one in expand(values, str(config))]
    if seeds is not None:
        found = [replace(plan, seed=seed) for plan in found for seed in _distinct(seeds)]
    return list({plan.sha256: plan for plan in found}.values())


def _distinct(seeds: str) -> list[int]:
    found = _integers(seeds, "--seeds")
    if len(set(found)) < len(found):
        raise UsageError(f"--seeds '{seeds}': a seed stands there twice; give each once")
    return found


def _plan(
    values: dict[str, Any], settings: Sequence[str], arch: Sequence[str], chosen: dict[str, Any], at: str
) -> Plan:
    """One plan: options laid over the fields of a configuration."""
    from harness.runs.plan import Plan, parse_edits

    if "edits" not in values and chosen.get("edits") is None:
        values = {"edits": "counterfact", "num_edits": _EDITS, **values}
    values |= {key: value for key, value in chosen.items() if value is not None}
    if isinstance(values["edits"], str):
        values["edits"], count = parse_edits(values["edits"])
        if count is not None and chosen.get("num_edits") is None:
            values["num_edits"] = count
    _add(values, "settings", _pairs(settings, "--set"))
    _add(values, "arch", _pairs([p for a in arch for p in a.split(",")], "--arch"))
    return Plan.from_json(values, at)


def _add(values: dict[str, Any], key: str, more: dict[str, Any]) -> None:
    """Lay options over a mapping of the configuration; what is no mapping there is left for the plan to refuse."""
    known = values.get(key, {})
    values[key] = {**known, **more} if isinstance(known, dict) else known


def _pairs(items: Sequence[str], option: str) -> dict[str, Any]:
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} '{item}': expected NAME=VALUE, for example {option} layers=[3]")
        try:
            found[key.strip()] = value if option == "--arch" else _scalar(value)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
            raise UsageError(f"{option} '{item}': the value is not YAML; write for example [1,2] or 0.5") from None
    return found


def _scalar(text: str) -> Any:
    """YAML, but with 5e-4 a number."""
    try:
        return float(text) if "e" in text.lower() and "." not in text else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the phase under way, with an estimate of the time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    console = progress_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        current: dict[str, Any] = {"name": None, "id": None}

        def report(name: str, done: int, total: int) -> None:
            if current["name"] != name:
                if current["id"] is not None:
                    bar.remove_task(current["id"])
                current.update(name=name, id=bar.add_task(name, total=total or None))
            bar.update(current["id"], completed=done, total=total or None)

        yield report


def _show_run(kept: Record) -> None:
    from harness.reports import terminal_tables

    _out().print(terminal_tables.run_table(kept))


# --- fit --------------------------------------------------------------------------------------------------------------


@harness.command()
@click.option("--editor", required=True, help="An editor that learns before its first edit.")
@click.option("--model", default="mini", show_default=True)
@click.option("--edits", default="counterfact", show_default=True, help="What it learns from: NAME, NAME:N, or a file.")
@click.option("--split", default="train", show_default=True, help="The split of the edit set.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="A hyperparameter of the editor.")
@click.option("--data-dir", default="mini", show_default=True, help="Rows: 'mini', a folder, or 'hub'.")
@click.option("--text", help="Plain text, for editors that read some: a file, a folder, or a Hub data set.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", help="Where the model goes.")
@click.option("--arch", "arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand.")
@click.option("--output", type=click.Path(path_type=Path), help="The file.  [default: the cache, where `run` looks]")
def fit(
    editor: str,
    model: str,
    edits: str,
    split: str,
    settings: Sequence[str],
    data_dir: str,
    text: str | None,
    seed: int,
    dtype: str,
    device: str | None,
    arch: Sequence[str],
    output: Path | None,
) -> None:
    """Let an editor learn what it needs before its first edit (MEND, REMEDI)."""
    from harness.editing import learned_file
    from harness.editing.editor import Learned
    from harness.editing.registry import compose
    from harness.exam.tasks import read_examples
    from harness.models.lm import load
    from harness.runs.plan import parse_edits

    recipe = compose(editor)
    if not issubclass(recipe.cls, Learned):
        raise UsageError(f"{editor} learns nothing before its first edit; run it at once with `harness run`")
    name, count = parse_edits(edits)
    train = read_examples(name, data_dir, split, count)
    lm = load(model, dtype, device, _pairs([p for a in arch for p in a.split(",")], "--arch"), text)
    method = recipe.build(lm, _pairs(settings, "--set"), seed).root
    path = output or learned_file.default_path(method, lm)
    learned_file.require_writable(path)
    learned = method.fit(lm, train).root
    assert isinstance(learned, Learned)
    learned_file.save(learned, lm, path, {"edits": name, "split": split, "count": len(train), "data_dir": data_dir})
    _out().print(f"[green]fitted[/] {method.name} to {model} on {len(train)} examples: {path}", soft_wrap=True)


@harness.command()
@click.argument("patch", type=click.Path(path_type=Path))
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="The folder of the checkpoint.")
@click.option("--model", help="The unedited model.  [default: that which the patch names]")
@click.option("--dtype", help="Of the checkpoint.  [default: that which the patch was made in]")
def apply(patch: Path, folder: Path, model: str | None, dtype: str | None) -> None:
    """Write the model with saved edits in its weights, as a checkpoint for transformers and lm_eval."""
    from harness.editing import patch_file
    from harness.editing.checkpoint import export
    from harness.models.lm import load

    about = patch_file.manifest(patch)["about"]
    lm = load(model or str(about.get("model")), dtype or str(about.get("dtype", "float32")), "cpu")
    export(patch, lm, folder)
    _out().print(f"[green]written[/] {folder}: load it with transformers, or lm_eval --model hf", soft_wrap=True)


# --- records ----------------------------------------------------------------------------------------------------------


@harness.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(_FORMATS), default="md", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write to a file instead of the terminal.")
def leaderboard(folder: Path, kind: str, output: Path | None) -> None:
    """Make a table of the records in FOLDER: a row for each editor, a column for each task; of a sweep the paper's.

    Records of a sweep (`harness sweep`) are read from FOLDER, its `runs`, or the `runs` of its folders.
    """
    from harness.io import files
    from harness.reports import terminal_tables
    from harness.runs.record_file import read_records, record_paths
    from harness.studies.sweeps import swept, trial

    trials = trial.read_all(folder)
    parts = [swept.tables(trials, cast("Format", kind))] if trials else []
    if not trials or record_paths(folder):
        parts.insert(0, terminal_tables.leaderboard(read_records(folder, values=True), kind))
    text = "\n".join(parts)
    if output is None:
        click.echo(text, nl=False)
        return
    files.write_whole(output, text.encode())


@harness.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=Path("curves.png"), show_default=True)
def plot(paths: Sequence[Path], output: Path) -> None:
    """Draw records (files or folders): what is left after so many edits, or what a sweep gained; png, svg or pdf."""
    from harness.reports import curves
    from harness.runs.record_file import read_records
    from harness.studies.sweeps import sweptplot, trial

    trials = [one for path in paths for one in trial.read_all(path)]
    if trials:
        sweptplot.draw(trials, output)
    else:
        curves.draw([kept for path in paths for kept in read_records(path, values=True)], output)
    _out().print(f"figure: {output}", soft_wrap=True)


@harness.command()
@click.argument("path", type=click.Path(path_type=Path))
def show(path: Path) -> None:
    """Show one record whole: every metric, the plan, hashes and cost."""
    from harness.reports import terminal_tables
    from harness.runs.record_file import read_record

    _out().print(terminal_tables.show(read_record(path)))


@harness.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare two records, document by document."""
    from harness.reports import terminal_tables
    from harness.runs.record_file import read_record

    _out().print(terminal_tables.compare(read_record(first, values=True), read_record(second, values=True)))


@harness.command()
@click.option("--baseline", type=click.Path(path_type=Path), required=True, help="A record, or a folder of records.")
@click.option("--only", default="*", show_default=True, help="A pattern of record names, for example '*--memit--*'.")
@click.option("--tolerance", type=float, help="Largest difference of a value that still counts as equal.")
@click.option("--device", help="Where the model goes.")
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True)
def check(baseline: Path, only: str, tolerance: float | None, device: str | None, rows: int) -> None:
    """Run recorded plans again; exit 1, with a table of what moved, when a number leaves its tolerance."""
    from fnmatch import fnmatch

    from harness.runs.record import record_name
    from harness.runs.record_file import read_records

    found = [kept for kept in read_records(baseline) if fnmatch(record_name(kept), only)]
    if not found:
        raise DataError(
            f"{baseline}: no record is named '{only}'; names look like mini--memit--counterfact-50--batch--1a2b3c4d"
        )
    moved: dict[str, Sequence[Moved]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kept in found:
            moved[record_name(kept)] = _check_one(kept, Path(folder), device, rows, tolerance)
    if any(moved.values()):
        from harness.reports.terminal_tables import moved_table

        _out().print(moved_table(moved))
        count = sum(len(items) for items in moved.values())
        raise CheckFailed(f"{count} numbers of {len(found)} records left their tolerance; the table says which")
    _out().print(f"[green]ok[/] {len(found)} records, no number left its tolerance")


def _check_one(kept: Record, folder: Path, device: str | None, rows: int, tolerance: float | None) -> Sequence[Moved]:
    """Run the plan of a record again, and say what moved."""
    from harness.reports import terminal_tables
    from harness.runs.plan import Plan
    from harness.runs.record import record_name
    from harness.runs.runner import Options
    from harness.runs.runner import run as carry_out

    with _progress() as progress:
        again = carry_out(Plan.from_json(kept.plan), Options(folder, device, rows, report=progress))
    moved = (
        terminal_tables.regressions(kept, again)
        if tolerance is None
        else terminal_tables.regressions(kept, again, tolerance)
    )
    mark = f"[red]{len(moved)} moved[/]" if moved else "[green]ok[/]"
    _out().print(f"{mark} {record_name(kept)}", soft_wrap=True)
    return moved


# --- tracing ----------------------------------------------------------------------------------------------------------


@harness.command(
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
@click.option("--model", default="mini", show_default=True, help="A shipped model, a folder, or a Hub repository.")
@click.option(
    "--edits",
    default="counterfact:200",
    show_default=True,
    help="Facts: an edit set (its old targets are true), known_1000, or a file; NAME:N takes the first N.",
)
@click.option("--data-dir", default="mini", show_default=True, help="Rows: 'mini', a folder, or 'hub'.")
@click.option("--split", default="test", show_default=True, help="The split of an edit set.")
@click.option(
    "--variant", default="hase", show_default=True, help="Published settings: hase (2023), or rome (Meng et al. 2022)."
)
@click.option(
    "--kind",
    help="What is restored: mlp, attn, block (hidden state), or several: mlp,block.  [default: mlp; rome: all three]",
)
@click.option(
    "--window",
    help="Layers restored together, or several: 1,3,5.  [default: 5; rome: 10; of blocks: 1]",
)
@click.option("--samples", type=int, help="Noise samples.  [default: 10]")
@click.option(
    "--sigma",
    help="Noise: a number, s3 (3 x std of embeddings), hase or rome (that paper's).  [default: the variant's]",
)
@click.option("--seed", type=int, help="Of the noise.  [default: 1, as published]")
@click.option(
    "--known",
    type=click.Choice(["continuation", "prediction", "all"]),
    help="Which facts: the answer is in the greedy continuation, is the first token, or all.  [default: the variant's]",
)
@click.option("--new-tokens", type=int, help="The length of that continuation.  [default: 36]")
@click.option(
    "--answer",
    type=click.Choice(["object", "prediction"]),
    help="What is explained: the true object, or the most probable token.  [default: the variant's]",
)
@click.option("--threshold", type=float, help="The least probability of the answer.  [default: 0]")
@click.option(
    "--high",
    type=click.Choice(["clean", "max"]),
    help="Fractions are of the clean probability, or of the greatest seen (as released).  [default: clean]",
)
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16 or float64.")
@click.option("--device", help="Where the model goes; 'auto' spreads it.  [default: an accelerator, else the CPU]")
@click.option("--arch", "arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand.")
@click.option("--budget", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of one pass.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the record."
)
@click.option("--fresh", is_flag=True, help="Start anew where an earlier study of the same plan was stopped.")
def trace(
    model: str,
    edits: str,
    data_dir: str,
    split: str,
    variant: str,
    kind: str | None,
    window: str | None,
    dtype: str,
    device: str | None,
    arch: Sequence[str],
    budget: int,
    output: Path,
    fresh: bool,
    **chosen: Any,
) -> None:
    """Find where a model recalls facts: causal tracing."""
    from harness.runs.plan import parse_edits
    from harness.studies.causal.tracing import TracePlan, carry_out, study_name, study_table

    settings = _trace_settings(variant, kind, window, chosen)
    name, count = parse_edits(edits)
    parts = _pairs([p for a in arch for p in a.split(",")], "--arch")
    plans = [TracePlan(one, model, name, count, split, data_dir, dtype, parts) for one in settings]
    with _progress() as report:
        for study in carry_out(plans, output, device, fresh, report, budget):
            _out().print(study_table(study.record))
            _out().print(f"record: {output / (study_name(study.record) + '.json')}", soft_wrap=True)


def _trace_settings(variant: str, kind: str | None, window: str | None, chosen: dict[str, Any]) -> list[TraceSettings]:
    """The settings of each kind and window, from a variant and what was changed of it."""
    from dataclasses import replace

    from harness.errors import near
    from harness.studies.causal.trace import preset

    settings = preset(variant)
    if chosen["sigma"] is not None:
        chosen["sigma"] = _sigma(chosen["sigma"])
    settings = replace(settings, **{key: value for key, value in chosen.items() if value is not None})
    known: dict[str, Kind] = {"block": "block", "mlp": "mlp", "attn": "attn"}
    kinds = (kind or (",".join(known) if variant == "rome" else "mlp")).split(",")
    for one in kinds:
        if one not in known:
            raise UsageError(f"--kind '{one}' does not exist{near(one, known)}")
    widths = _integers(window, "--window") if window else None
    return [
        replace(settings, kind=known[one], window=width)
        for one in dict.fromkeys(kinds)
        for width in dict.fromkeys(widths or [1 if one == "block" else settings.window])
    ]


def _sigma(text: str) -> float | str:
    if text in ("s3", "hase", "rome"):
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--sigma '{text}': expected a number above 0, s3, hase or rome") from None


@harness.command("trace-plot")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(["layers", "roles", "fact"]),
    default="layers",
    show_default=True,
    help="Averages by layer, averages by the role of a token, or one fact.",
)
@click.option("--fact", help="The id of the fact.  [default: the first]")
@click.option("--output", type=click.Path(path_type=Path), default=Path("trace.png"), show_default=True)
def trace_plot(paths: Sequence[Path], what: str, fact: str | None, output: Path) -> None:
    """Draw records of `harness trace`: png, svg or pdf."""
    from harness.studies.causal.traceplot import draw
    from harness.studies.causal.tracing import read_study

    draw([read_study(path) for path in paths], what if fact is None else "fact", output, fact)
    _out().print(f"figure: {output}", soft_wrap=True)


# --- localisation -----------------------------------------------------------------------------------------------------

_QUIRKS = ("reversal", "threshold", "probes", "noise_at", "perplexity", "high")
"""What the program of Hase et al. does otherwise than their text, as ``--released`` names it."""


@harness.command()
@click.option("--model", default="mini", show_default=True)
@click.option(
    "--edits", default="counterfact", show_default=True, help="An edit set; NAME:N looks at its first N rows."
)
@click.option("--facts", type=click.IntRange(min=1), help="How many of the facts that the model knows.  [default: all]")
@click.option("--problems", default="all", show_default=True, help="Problems, separated by commas.")
@click.option(
    "--methods",
    default="ft_l@1,ft_l@5,rome@1,memit@5",
    show_default=True,
    help="Editors, each with the number of layers that it edits together.",
)
@click.option("--layers", default="all", show_default=True, help="Layers, separated by commas.")
@click.option("--set", "settings", multiple=True, metavar="[EDITOR.]FIELD=VALUE", help="A hyperparameter.")
@click.option("--trace-window", type=int, default=5, show_default=True, help="Layers that tracing restores together.")
@click.option("--sigma", help="The noise: a number, s3, hase or rome.  [default: hase]")
@click.option("--samples", type=int, default=10, show_default=True, help="Noise samples of tracing.")
@click.option("--forcing-samples", type=int, default=10, show_default=True, help="Noises that fine-tuning forces.")
@click.option("--released", help=f"What the paper's program does otherwise: {','.join(_QUIRKS)}, or all.")
@click.option("--no-essence", is_flag=True, help="Do not score texts about the subject.")
@click.option("--published", is_flag=True, help="Put the paper's numbers beside.")
@click.option("--tables", is_flag=True, help="Run nothing: tables and figures of what is done.")
@click.option("--split", default="test", show_default=True, help="The split of the edit set.")
@click.option("--data-dir", default="mini", show_default=True, help="Rows: 'mini', a folder, or 'hub'.")
@click.option("--text", help="Plain text for second moments: a file, a folder, or a Hub data set.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", help="Where the model goes.")
@click.option("--arch", "arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--fresh", is_flag=True, help="Start anew where an earlier run of the same study was stopped.")
def localize(
    output: Path, device: str | None, fresh: bool, published: bool, tables: bool, problems: str, **chosen: Any
) -> None:
    """Edit every layer, and see whether tracing tells which (Hase et al. 2023).

    Five problems (error_injection, tracing_reversal, fact_erasure, fact_amplification, fact_forcing), every method at
    every layer, and a regression of the scores on the layer and on the tracing effect there. What was stopped goes on
    where it was when the same command is given again.
    """
    from harness.studies.localization import localize as study
    from harness.studies.localization import localize_report
    from harness.studies.localization import problems as known

    names = known.PROBLEMS if problems == "all" else tuple(map(known.problem_named, problems.split(",")))
    grid = _grid(names, **chosen)
    if tables:
        kept = study.open_study(grid, output)
    else:
        with _progress() as report:
            kept = study.localize(grid, output, device, fresh, report)
    made = localize_report.write(kept, published)
    console = _out()
    for row in localize_report.rows_of(kept):
        if row.view == localize_report.VIEWS[0] and row.metric == "rewrite" and row.fit.reason is None:
            console.print(
                f"{row.problem}, {row.method}: R2 layer {row.fit.r2_layer:.3f}, trace {row.fit.r2_trace:.3f}, both "
                f"{row.fit.r2_both:.3f}"
            )
    console.print("study: " + ", ".join(map(str, [kept.path, *made])), soft_wrap=True)


def _grid(problems: tuple[Any, ...], **chosen: Any) -> Grid:
    """The study that the options describe."""
    from dataclasses import replace

    from harness.runs.plan import parse_edits
    from harness.studies.causal.trace import PRESETS
    from harness.studies.localization.localize import Grid, Method
    from harness.studies.localization.problems import PUBLISHED

    quirks = _quirks(chosen["released"])
    noise: dict[str, Any] = {} if chosen["sigma"] is None else {"sigma": _sigma(chosen["sigma"])}
    tracing = replace(
        PRESETS["hase"],
        window=chosen["trace_window"],
        samples=chosen["samples"],
        high="max" if "high" in quirks else "clean",
        **noise,
    )
    released: dict[str, Any] = dict.fromkeys(quirks & {"reversal", "threshold", "probes", "noise_at"}, "released")
    edits, rows = parse_edits(chosen["edits"])
    return Grid(
        model=chosen["model"],
        edits=edits,
        look_at=rows,
        facts=chosen["facts"],
        split=chosen["split"],
        data_dir=chosen["data_dir"],
        problems=tuple(problems),
        methods=tuple(map(Method.parse, chosen["methods"].split(","))),
        layers=None if chosen["layers"] == "all" else tuple(_integers(chosen["layers"], "--layers")),
        settings=_pairs(chosen["settings"], "--set"),
        trace=tracing,
        asked=replace(PUBLISHED, samples=chosen["forcing_samples"], **noise, **released),
        essence=not chosen["no_essence"],
        perplexity="released" if "perplexity" in quirks else "plain",
        seed=chosen["seed"],
        dtype=chosen["dtype"],
        text=chosen["text"],
        arch=_pairs([p for a in chosen["arch"] for p in a.split(",")], "--arch"),
    )


def _quirks(released: str | None) -> set[str]:
    from harness.errors import near

    named = {part.strip() for part in (released or "").split(",") if part.strip()}
    for name in named - {*_QUIRKS, "all"}:
        raise UsageError(
            f"--released '{name}' does not exist{near(name, _QUIRKS)}; choose {', '.join(_QUIRKS)}, or all"
        )
    return set(_QUIRKS) if "all" in named else named


@harness.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=Path("sweep"), show_default=True)
@click.option("--address", help="HOST:PORT of a Ray cluster.  [default: this machine]")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at a time on this machine."
)
@click.option("--format", "kind", type=click.Choice(["md", "latex"]), default="md", show_default=True)
def sweep(path: Path, output: Path, address: str | None, workers: int, kind: str) -> None:
    """Draw configurations, choose on the validation pairs, train anew on the test pairs, and print the tables.

    PATH is a YAML file; README.md shows one. What has a record in the output folder is never run again.
    """
    from harness.io import files
    from harness.studies.sweeps.crew import Cluster
    from harness.studies.sweeps.sweep import Sweep, run
    from harness.studies.sweeps.swept import tables

    asked = Sweep.read(path)
    files.require_writable(output)
    with _progress() as report:
        validated, tested = run(asked, output / "runs", Cluster(address, workers, asked.cpus, asked.gpus), report)
    trials = [*validated, *tested]
    forms: tuple[tuple[str, Format], ...] = (("TABLES.md", "md"), ("tables.tex", "latex"))
    for name, form in forms:
        files.write_whole(output / name, tables(trials, form, asked.balls).encode())
    click.echo(tables(trials, cast("Format", kind), asked.balls), nl=False)


# --- REMEDI's benchmarks ----------------------------------------------------------------------------------------------


@harness.command(
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
@click.option(
    "--editor", "editors_", help="Editors and baselines.  [default: the baselines of the benchmark, and remedi]"
)
@click.option("--model", default="mini", show_default=True, help="A shipped model, a folder, or a Hub repository.")
@click.option("--cases", type=int, default=50, show_default=True, help="Cases that are examined, from the first.")
@click.option("--learn", type=int, help="Cases that a learning editor learns from.  [default: all others]")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="A hyperparameter of the editors.")
@click.option("--data-dir", default="mini", show_default=True, help="Rows: 'mini', a folder, or 'hub'.")
@click.option("--entity-layer", type=int, help="Where entities are read.  [default: the paper's, or at 90 % of depth]")
@click.option("--tokens", type=int, help="Of each sampled text, its prompt counted.  [default: 100; bios: 150]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", help="Where the model goes; 'auto' spreads it.  [default: an accelerator, else the CPU]")
@click.option("--arch", "arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand.")
@click.option("--published", is_flag=True, help="Put the authors' numbers beside, where there are any.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the record."
)
def bench(
    name: str,
    editors_: str | None,
    settings: Sequence[str],
    device: str | None,
    arch: Sequence[str],
    output: Path,
    published: bool,
    **chosen: Any,
) -> None:
    """REMEDI's benchmarks: does a model say what an edit entails, and can one tell beforehand?"""
    from harness.studies.remedi.benching import BenchPlan, bench_name, bench_table, carry_out, usual

    names = tuple(dict.fromkeys(editors_.split(","))) if editors_ else usual(name)
    parts = _pairs([p for a in arch for p in a.split(",")], "--arch")
    plan = BenchPlan(name, names, settings=_pairs(settings, "--set"), arch=parts, **chosen)
    with _progress() as report:
        record = carry_out(plan, output, device, report)
    _out().print(bench_table(record, published))
    _out().print(f"record: {output / (bench_name(record) + '.json')}", soft_wrap=True)


# --- lists ------------------------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    return table


@harness.command()
@click.option("--format", "kind", type=click.Choice(["table", "md"]), default="table", show_default=True)
def editors(kind: str) -> None:
    """List the editors: what they do, at which seam they change a model, and their hyperparameters."""
    from harness.editing import promises
    from harness.editing.hyperparameters import settable
    from harness.editing.registry import find, names

    if kind == "md":
        click.echo(promises.table(), nl=False)
        return
    rows = []
    for name in names():
        cls = find(name)
        settings = ", ".join(f"{f.name}={f.default}" for f in settable(cls).values())
        rows.append((name, promises.summary(cls), promises.changes(cls), settings))
    _out().print(_table("editors", ("name", "what it does", "changes", "hyperparameters (--set)"), rows))


@harness.command()
def tasks() -> None:
    """List this project's tasks and edit sets; any task of lm-eval's own can be named too."""
    from harness.exam.data import status
    from harness.exam.tasks import catalogue

    counts = {row.name: row.mini for row in status() if row.split == "test"}
    rows = [(name, kind, "" if counts.get(name) is None else str(counts[name])) for name, kind in catalogue().items()]
    _out().print(_table("tasks", ("name", "kind", "shipped rows"), rows))


@harness.command()
def models() -> None:
    """List the models that ship with the package."""
    from harness.models.lm import shipped

    rows = []
    for name, folder in shipped().items():
        config = json.loads((folder / "config.json").read_text())
        size = (folder / "model.safetensors").stat().st_size / 2**20
        rows.append((name, str(config.get("model_type", "")), f"{size:.1f} MiB"))
    _out().print(_table("shipped models", ("name", "architecture", "size"), rows))


@harness.command()
@click.option("--data-dir", help="A folder to look into.")
def data(data_dir: str | None) -> None:
    """Say which data are there, which are missing, and under which licence."""
    from harness.exam.data import status

    rows = [
        (
            row.name,
            row.split,
            "-" if row.mini is None else str(row.mini),
            row.folder or "-",
            _address(row.url),
            row.licence,
        )
        for row in status(data_dir)
    ]
    _out().print(_table("data", ("name", "split", "shipped", "folder", "published", "licence"), rows))


def _address(url: str | None) -> str:
    """The host of an address, with the repository where the host is one of repositories."""
    if url is None:
        return "-"
    host, *path = url.partition("://")[2].split("/")
    return "/".join([host, *path[:2]]) if host.endswith("githubusercontent.com") else host


# --- second moments ---------------------------------------------------------------------------------------------------


@harness.group()
def cov() -> None:
    """Make, list and verify second moments of keys (the covariance C of ROME and MEMIT)."""


@cov.command("make")
@click.option("--model", default="mini", show_default=True)
@click.option("--layers", default="all", show_default=True, help="Layers, separated by commas.")
@click.option("--tokens", type=click.IntRange(min=1), default=100_000, show_default=True, help="How much text.")
@click.option("--text", help="A file, a folder, or a Hub data set.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", help="Where the model goes.")
@click.option("--arch", multiple=True, metavar="PART=NAME", help="A module of the model, named by hand.")
def cov_make(
    model: str, layers: str, tokens: int, text: str | None, dtype: str, device: str | None, arch: Sequence[str]
) -> None:
    """Gather second moments of many layers in one pass over the text."""
    from harness.methods import second_moments
    from harness.models.lm import load

    lm = load(model, dtype, device, _pairs([p for a in arch for p in a.split(",")], "--arch") or None, text)
    chosen = list(range(lm.arch.layers)) if layers == "all" else _integers(layers, "--layers")
    with _progress() as report:
        found = second_moments.moments(
            lm, chosen, tokens=tokens, progress=lambda done, total: report("second moments", done, total)
        )
    rows = [(str(layer), f"{m.count:,}", m.key[:16]) for layer, m in found.items()]
    _out().print(_table(f"second moments of {model}", ("layer", "tokens", "key"), rows))


def _integers(text: str, option: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"{option} '{text}': expected numbers separated by commas, for example {option} 3,4,5")
    return [int(part) for part in parts]


def _cached_row(entry: Cached) -> tuple[str, ...]:
    made = entry.manifest
    return (made.model[:12], made.module, f"{entry.count:,}", made.text[:12], made.dtype, str(entry.path))


@cov.command("list")
def cov_list() -> None:
    """List the second moments in the cache."""
    from harness.methods import second_moments

    columns = ("model", "module", "tokens", "text", "dtype", "file")
    _out().print(_table("second moments", columns, [_cached_row(entry) for entry in second_moments.cached()]))


@cov.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--model", default="mini", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
def cov_verify(path: Path, model: str, dtype: str) -> None:
    """See that a file of second moments is whole and belongs to a model."""
    from harness.methods import second_moments
    from harness.models.lm import load

    second_moments.verify(path, load(model, dtype))
    _out().print(f"[green]ok[/] {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
