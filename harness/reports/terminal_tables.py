"""Records to what a person reads in a terminal: the table of a run, a record in full, a comparison, what moved.

Nothing here prints: every function returns something that a rich console renders.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.exam.prompting import told
from harness.exam.statistics import holm
from harness.reports.cells import (
    CHANCE,
    EDIT_METRICS,
    brackets,
    headline_deviation,
    number,
    shown_interval,
    signed,
    significant_change,
    unedited_at_chance,
)
from harness.reports.comparison import pair_difference
from harness.reports.fitted_table import FittedTable
from harness.reports.languages import language_tables
from harness.reports.regressions import Moved
from harness.reports.table import AT_CHANCE, MISSING
from harness.runs.judged_file import judged_notes, with_verdicts
from harness.runs.record import Record, record_name

__all__ = ["comparison_table", "moved_table", "record_table", "run_table"]

Json = dict[str, Any]

EXAM = (*EDIT_METRICS, "generation_exact_match", "paraphrase_exact_match", "generation_entropy", "reference_score")
"""What the table of a run shows of an edit set, in this order."""
_WIDE = 100  # columns of a terminal
_STYLES = {True: "green", False: "red", None: "yellow"}
_LEGEND = (
    "[ ]: 95 % interval, paired by document.  better, worse, higher, lower: it excludes zero.  none (±x): it does not, "
    "and a true change of x or more would be found 4 times in 5.  no test: one document, or all of them change alike, "
    f"which does not say how sure the change is.  {MISSING}: no value."
)
_ADJUSTED = (
    "none (adjusted): the interval excludes zero, but not p after Holm's adjustment for the number of comparisons."
)
_STARRED = "*: the interval of the difference from unedited excludes zero."


# --- the table of a run -----------------------------------------------------------------------------------------------


def run_table(record: Record) -> RenderableType:
    """What editing gained and what it cost: unedited, edited, difference with its interval.

    From 100 columns on, with the documents behind each number and the change that they could show; fits 80 without.
    """
    return _RunTable(with_verdicts(record))


@dataclass(frozen=True)
class _RunTable:
    """The table of a run, as wide as there is room."""

    record: Record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _results(self.record, everything=False, narrow=options.max_width < _WIDE)


def _results(record: Record, everything: bool, narrow: bool = False) -> RenderableType:
    counts = [int(point["edits"]) for point in record.points]
    if not counts:
        return Group(_title(record), Text("nothing was measured", style="yellow"))
    last = max(counts)
    edited = "edited" if last else ""
    if narrow:
        table = _table("task", "unedited", edited, "difference", "")
        table.show_edge, table.padding = False, (0, 1, 0, 0)
    else:
        table = _table("task", "n", "unedited", edited, "difference", "detectable change")
    for task in _tasks(record, last):
        _add_task(table, record, task, last, everything)
    marks = [_mark(record, t, m) for t in _tasks(record, last) for m in _shown(record, t, last, everything)]
    parts: list[RenderableType] = [_title(record), table, Text(_LEGEND, style="dim"), *_explained(marks)]
    parts += [Text(line, style="dim") for line in judged_notes(record.judges)]
    if len(counts) > 2:
        parts += [Text(), _retention(record, sorted(counts)), Text(_STARRED, style="dim")]
    return Group(*parts, *(Text(line, style="yellow") for line in _remarks(record, last)))


def _table(*headings: str) -> Table:
    """A table whose first column holds names."""
    table = FittedTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for i, heading in enumerate(headings):
        left = i in (0, len(headings) - 1)
        table.add_column(heading, justify="left" if left else "right", overflow="fold" if i == 0 else "ignore")
    return table


def _title(record: Record) -> Text:
    edits = record.edits
    count = edits.get("count", 0)
    mode = edits.get("mode") or record.plan.get("mode") or ""
    made = (
        f"{count} edit{'s' if count != 1 else ''} of {edits.get('dataset', 'no edits')}{f' ({mode})' if mode else ''}"
    )
    title = Text.assemble((str(record.editor.get("name", "editor")), "bold cyan"), " on ")
    title.append(str(record.model.get("name", "model")), "bold")
    title.append("".join(f" · {part}" for part in [made, _seed(record), *told(record.plan)]))
    return title


def _seed(record: Record) -> str:
    """The seed of a run, those that a mean is over, or where a run was published."""
    seeds = record.plan.get("seeds")
    if seeds:
        widest = headline_deviation(record, _last(record))
        apart = "" if widest is None else f" (sd at most {number(widest)})"
        return f"mean of seeds {', '.join(map(str, seeds))}{apart}"
    return str(record.published.get("label", "published")) if record.seed is None else f"seed {record.seed}"


def _tasks(record: Record, edits: int) -> list[str]:
    """Edit sets first, then the others, each in the order in which they were measured."""
    names = list(dict.fromkeys([*record.tasks(edits), *record.tasks(0)]))
    return sorted(names, key=lambda task: "efficacy" not in record.tasks(edits).get(task, {}))


def _add_task(table: Table, record: Record, task: str, last: int, everything: bool) -> None:
    before, after = record.tasks(0).get(task, {}), record.tasks(last).get(task, {})
    shown = _shown(record, task, last, everything)
    exam = _is_exam(before, after)
    if not shown:
        table.add_row(f"{task} [yellow]no headline metric was measured[/]")
    if exam or everything:
        table.add_row(Text(task, style="bold"))
    for metric in shown:
        label = f"  {metric}" if exam or everything else f"{task} [dim]{metric}[/]"
        mark = _mark(record, task, metric)
        cells = _cells(before.get(metric), after.get(metric) if last else None, mark)
        table.add_row(label, *(cells if len(table.columns) > len(cells) else _fewer(cells)))
    if exam and not everything:
        table.add_section()


def _shown(record: Record, task: str, last: int, everything: bool) -> list[str]:
    """The metrics of a task that stand in the table."""
    before, after = record.tasks(0).get(task, {}), record.tasks(last).get(task, {})
    present = list(dict.fromkeys([*after, *before]))
    wanted = EXAM if _is_exam(before, after) else (record.headlines.get(task),)
    shown = [metric for metric in wanted if metric in present]
    shown += [m for m in record.shown.get(task, ()) if m in present and m not in shown]
    return [*shown, *(m for m in present if everything and m not in shown)]


def _is_exam(*tables: Mapping[str, Json]) -> bool:
    """Whether measures are those of an edit set."""
    return any("efficacy" in table for table in tables)


def _mark(record: Record, task: str, metric: str) -> str:
    """What stands behind a value of the unedited model, where it cannot be told from one that knows nothing."""
    return AT_CHANCE if unedited_at_chance(record, task, metric) else ""


def _explained(marks: Iterable[str]) -> list[Text]:
    """What the mark means, where one stands."""
    return [Text(CHANCE, style="dim")] if any(marks) else []


def _cells(before: Json | None, after: Json | None, mark: str) -> list[Text]:
    """n, unedited with its mark, edited, difference, detectable change."""
    measure = after or before or {}
    change = measure.get("difference") or {}
    own = before or {}
    unedited = number(own.get("value")) + mark + (f" {brackets(own.get('interval'))}" if after is None else "")
    edited = "" if after is None else number(after.get("value"))
    n = change.get("n") or measure.get("n") or 0
    return [
        Text(str(n), style="dim"),
        Text(unedited),
        Text(edited, style="bold"),
        Text(_difference(change)),
        _verdict(change, measure.get("higher_is_better")),
    ]


def _fewer(cells: list[Text]) -> list[Text]:
    """Without the documents and the detectable change, which the record and its table have."""
    verdict = cells[-1]
    short = Text("none", style=verdict.style) if verdict.plain.startswith("none") else verdict
    return [*cells[1:-1], short]


def _difference(change: Mapping[str, Any]) -> str:
    if not change or change.get("value") is None:
        return ""
    return f"{signed(change['value'])} {brackets(shown_interval(change), sign=True)}".rstrip()


def _verdict(change: Mapping[str, Any], higher_is_better: bool | None) -> Text:
    """Better, worse, or that no change can be seen, and how large one would have to be."""
    if not change or change.get("value") is None:
        return Text()
    if change.get("interval") is None:  # one document, or all of them change alike: nothing says how sure that is
        return Text("no test", style="dim")
    if not significant_change(change):
        return Text(_none(change), style="dim")
    return _direction(change["value"], higher_is_better)


def _none(change: Mapping[str, Any]) -> str:
    detectable = change.get("detectable")
    return "none" if detectable is None else f"none (±{number(detectable)})"


def _direction(value: float, higher_is_better: bool | None) -> Text:
    up = value > 0
    better = None if higher_is_better is None else up == higher_is_better
    words = {True: "better", False: "worse", None: "higher" if up else "lower"}
    return Text(f"{'▲' if up else '▼'} {words[better]}", style=_STYLES[better])


def _retention(record: Record, counts: Sequence[int]) -> Table:
    """Headlines after each number of edits; ``*`` where the difference from unedited is significant."""
    table = _table("after so many edits", *(str(count) for count in counts))
    for task in _tasks(record, counts[-1]):
        exam = "efficacy" in record.tasks(counts[-1]).get(task, {})
        for metric in EDIT_METRICS if exam else (record.headlines.get(task, ""),):
            mark = _mark(record, task, metric)
            measures = {count: record.tasks(count).get(task, {}).get(metric) for count in counts}
            cells = [_point(measure) + ("" if count else mark) for count, measure in measures.items()]
            if any(cell != MISSING for cell in cells):
                table.add_row(f"{task} {metric}", *cells)
    return table


def _point(measure: Json | None) -> str:
    if measure is None:
        return MISSING
    change = measure.get("difference") or {}
    return number(measure["value"]) + ("*" if significant_change(change) else "")


def _remarks(record: Record, last: int) -> Iterator[str]:
    """What the reader must know: how the run ended, what has no value and why, warnings about the edits."""
    if record.status != "complete":
        yield f"{record.status}: {record.reason or 'no reason given'}"
    for task, measures in record.tasks(last).items():
        for metric, measure in measures.items():
            wanted = metric == record.headlines.get(task) or metric in EXAM
            if wanted and measure["value"] is None:
                yield f"{task} {metric}: {measure.get('reason') or 'no value'}"
    yield from (f"{task}: {caveat}" for task, caveat in record.caveats.items())
    for task, count in record.point(last).get("truncated", {}).items():
        yield f"{task}: {count} requests were longer than the model's context and were cut from the left"
    yield from (f"warning: {warning}" for warning in record.edits.get("warnings", []))


# --- a record in full -------------------------------------------------------------------------------------------------


def record_table(record: Record) -> RenderableType:
    """Everything that a record holds: who, what, all metrics, weights, data, cost."""
    record = with_verdicts(record)
    parts: list[RenderableType] = [_facts(record), Text(), _results(record, everything=True)]
    for matrix in language_tables(record):
        parts += [Text(), matrix]
    for table in (_delta_table(record), _routing_table(record), _data_table(record), _cost_table(record)):
        if table.row_count:
            parts += [Text(), table]
    return Group(*parts)


@dataclass(frozen=True)
class _Facts:
    """What a record says in words, a line a fact; a pair that is wider than its column is broken behind its name."""

    facts: Mapping[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - max(map(len, self.facts), default=0) - 2
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self.facts.items():
            said = (word if len(word) <= room else word.replace("=", "= ") for word in value.split(" "))
            grid.add_row(name, Text(" ".join(said)))
        yield grid


def _facts(record: Record) -> _Facts:
    model, editor = record.model, record.editor
    sha = str(model.get("sha256") or "")[:12]
    size = f"{model['parameters']:,} parameters" if "parameters" in model else ""
    described = [model.get("name"), model.get("architecture"), size, model.get("dtype"), f"sha256 {sha}" if sha else ""]
    rows = {
        "record": record_name(record),
        "status": record.status + (f": {record.reason}" if record.reason else ""),
        "model": " · ".join(str(part) for part in described if part),
        "editor": str(editor.get("name", "")),
        "hyperparameters": _pairs(editor.get("hyperparameters") or {}),
        "notes": "; ".join(str(note) for note in editor.get("notes") or []),
        "published": _published(record.published),
        "not known": ", ".join(record.published.get("unknown", [])),
        "plan": _pairs({key: value for key, value in record.plan.items() if value not in (None, [], {}, ())}),
        "each edit alone": _spread(record.edits),
        "joins": _pairs({edit: repr(join) for edit, join in record.edits.get("joins", {}).items()}),
        "weights": _weights(record.weights),
        "versions": _pairs(record.versions),
    }
    return _Facts({key: value for key, value in rows.items() if value})


def _published(source: Mapping[str, Any]) -> str:
    """Where the numbers of a run that was not made here come from, and how they were measured there."""
    named = "@".join(str(source[key]) for key in ("repository", "commit") if source.get(key))
    licence = f"licence {source['licence']}" if source.get("licence") else ""
    said = (source.get("label"), named, licence, source.get("citation"), source.get("protocol"))
    return " · ".join(str(part) for part in said if part)


def _spread(edits: Mapping[str, Any]) -> str:
    """Under which edit documents are scored that belong to none, where edits are isolated."""
    found = ", ".join(edits.get("spread", []))
    return f"document i under edit i mod {edits['count']} in {found}" if found else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={value}" for key, value in values.items())


def _weights(weights: Mapping[str, Mapping[str, str]]) -> str:
    """How many weights were touched, and whether they are again what they were."""
    before, edited, restored = (weights.get(key, {}) for key in ("before", "edited", "restored"))
    if not before:
        return ""
    changed = sum(edited.get(key, value) != value for key, value in before.items())
    same = all(restored.get(key) == value for key, value in before.items())
    # Isolated edits are many states, of which no hash is kept.
    touched = f"{changed} of {len(before)} touched weights changed" if edited else f"{len(before)} weights touched"
    return f"{touched}; {'restored bitwise' if same else 'NOT RESTORED'}"


def _delta_table(record: Record) -> Table:
    """How each weight was changed; of a type that rounds changes the share that was lost, and that of all together."""
    keys = ["frobenius", "relative_frobenius", "spectral"]
    lost = record.points[-1].get("lost_in_rounding") if record.points else None
    rounds = ["lost in rounding"] if lost is not None else []
    table = _table("change of", "rank", "Frobenius", "relative", "spectral", *rounds, "")
    for weight, facts in record.delta.items():
        rank = facts.get("rank")
        said = [number(facts.get(key)) for key in [*keys, *(["lost_in_rounding"] if rounds else [])]]
        table.add_row(weight, MISSING if rank is None else str(rank), *said, "")
    if rounds:
        table.add_row("all of them", *[""] * 4, number(lost), "")
    return table


def _routing_table(record: Record) -> Table:
    """Of a mixture of experts the share of tokens that are still sent to the same ones, after the last edit."""
    table = _table("routing of", "share kept", "")
    for module, share in (record.points[-1].get("routing", {}) if record.points else {}).items():
        table.add_row(module, number(share), "")
    return table


def _data_table(record: Record) -> Table:
    table = _table("data", "rows", "sha256", "source")
    for dataset, facts in record.data.items():
        source = f"{facts.get('source', '')}{'' if facts.get('verified', True) else ' (not the published file)'}"
        table.add_row(dataset, str(facts.get("rows", MISSING)), str(facts.get("sha256") or MISSING)[:12], source)
    return table


def _cost_table(record: Record) -> Table:
    table = _table("phase", "seconds", "peak MiB", "")
    for phase in record.cost:
        peak = phase.get("peak_memory_mib")
        seconds, memory = f"{phase['seconds']:.2f}", MISSING if peak is None else f"{peak:.0f}"
        table.add_row(str(phase["phase"]), seconds, memory, _values_of(phase))
    return table


def _values_of(phase: Mapping[str, Any]) -> str:
    """How many values of edits a phase took from the cache; nothing where it took none."""
    values = phase.get("values", {})
    if not values.get("found"):
        return ""
    return (
        f"{values['found']} of {values['found'] + values['optimised']} values were kept from an earlier run, which "
        f"took {values['seconds']:.2f} s for them"
    )


# --- two records ------------------------------------------------------------------------------------------------------


def comparison_table(a: Record, b: Record, seed: int = 0) -> RenderableType:
    """B minus A on every task and metric that both have, paired by document.

    The p values are adjusted for the number of comparisons (Holm).  Without per-document values in both records
    (``read(path, values=True)``) the differences have no interval.

    Args:
        a: a record; what is compared is its last number of edits.
        b: another one.
        seed: of the bootstrap.
    """
    a, b = with_verdicts(a), with_verdicts(b)
    last = _last(a), _last(b)
    rows = list(_comparisons(a, b, last, seed))
    table = _table("task", "n", "A", "B", "B - A", "p (Holm)", "detectable change")
    adjusted = iter(holm([change["p"] for *_, change in rows if change["p"] is not None]))
    previous, marked = "", list[str]()
    for task, metric, first, second, change in rows:
        if task != previous:
            table.add_row(Text(task, style="bold"), *[""] * 6)
            previous = task
        p = None if change["p"] is None else next(adjusted)
        marks = _mark(a, task, metric), _mark(b, task, metric)
        marked += marks
        table.add_row(f"  {metric}", *_comparison(first, second, change, p, marks))
    notes = (
        [Text(_LEGEND, style="dim"), Text(_ADJUSTED, style="dim"), *_explained(marked)]
        if rows
        else [Text("the records have no task in common", style="yellow")]
    )
    heads = (_heading("A", a, last[0]), _heading("B", b, last[1]))
    caveats = [Text(text, style="yellow") for text in _caveats([a, b], {task for task, *_ in rows})]
    return Group(*heads, *_apart(a, b), table, *notes, *caveats, *_unpaired(a, b))


def _caveats(records: Sequence[Record], tasks: Collection[str]) -> list[str]:
    """What the YAMLs of tasks that are compared want a reader to know."""
    told = ((task, caveat) for record in records for task, caveat in record.caveats.items() if task in tasks)
    return [f"{task}: {caveat}" for task, caveat in dict.fromkeys(told)]


def _last(record: Record) -> int:
    return max((int(point["edits"]) for point in record.points), default=0)


def _heading(letter: str, record: Record, edits: int) -> Text:
    return Text.assemble((f"{letter} ", "bold"), _title(record), f" · after {edits} · {record_name(record)}")


def _apart(a: Record, b: Record) -> list[Text]:
    """The fields of the plan in which the records differ."""
    keys = [key for key in dict.fromkeys([*a.plan, *b.plan]) if (a.plan.get(key) or None) != (b.plan.get(key) or None)]
    lines = [Text(f"  {key}: {a.plan.get(key)} | {b.plan.get(key)}", style="cyan") for key in keys]
    if a.model.get("sha256") != b.model.get("sha256"):
        lines.append(Text("  the models differ (sha256)", style="cyan"))
    return lines


def _comparisons(a: Record, b: Record, last: tuple[int, int], seed: int) -> Iterator[tuple[str, str, Json, Json, Json]]:
    """Task, metric, both measures, and the difference, of everything that both records have."""
    first, second = a.tasks(last[0]), b.tasks(last[1])
    for task in (task for task in _tasks(a, last[0]) if task in first and task in second):
        for metric in (metric for metric in first[task] if metric in second[task]):
            x, y = first[task][metric], second[task][metric]
            paired = pair_difference((a, last[0]), (b, last[1]), task=task, metric=metric, seed=seed)
            yield task, metric, x, y, _plain_difference(x, y) if paired is None else _as_json(paired)


def _plain_difference(x: Json, y: Json) -> Json:
    known = x["value"] is not None and y["value"] is not None
    value = y["value"] - x["value"] if known else None
    return {"value": value, "interval": None, "p": None, "n": 0, "detectable": None}


def _as_json(change: Any) -> Json:
    limits = None if change.low is None else [change.low, change.high]
    return {"value": change.value, "interval": limits, "p": change.p, "n": change.n, "detectable": change.detectable}


def _comparison(first: Json, second: Json, change: Json, p: float | None, marks: tuple[str, str]) -> list[Text]:
    significant = p is not None and significant_change(change, p)
    verdict = _direction(change["value"], first.get("higher_is_better")) if significant else Text()
    if p is not None and not significant:
        alone = significant_change(change)
        verdict = Text("none (adjusted)" if alone else _none(change), style="dim")
    return [
        Text(str(change["n"] or MISSING), style="dim"),
        Text(number(first["value"]) + marks[0]),
        Text(number(second["value"]) + marks[1]),
        Text(_difference(change)),
        Text(MISSING if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001"),
        verdict,
    ]


def _unpaired(a: Record, b: Record) -> list[Text]:
    lacking = [record_name(record) for record in (a, b) if record.values is None]
    text = "no intervals: the per-document values (*.values.json.xz) are missing beside"
    return [Text(f"{text} {', '.join(lacking)}", style="yellow")] if lacking else []


# --- the regression check ---------------------------------------------------------------------------------------------


def moved_table(moved: Mapping[str, Sequence[Moved]]) -> RenderableType:
    """What moved, by record.

    Args:
        moved: the name of each record, and what :func:`regressions` found in it.
    """
    table = _table("record", "edits", "task", "was", "is", "moved", "allowed", "")
    table.columns[2].justify, table.columns[2].overflow = "left", "fold"
    for record, items in moved.items():
        for item in items:
            table.add_row(record, str(item.edits), f"{item.task} {item.metric}", *_move(item))
    return table if table.row_count else Text(f"nothing moved in {len(moved)} records", style="green")


def _move(item: Moved) -> list[Text]:
    if item.what == "n":
        change = (item.after or 0) - (item.before or 0)
        shown = [f"{item.before:g}", f"{item.after:g}", f"{change:+g}", f"±{item.allowed:g}"]
        return [*map(Text, shown), Text("documents", style="red")]
    return _move_of_value(item)


def _move_of_value(item: Moved) -> list[Text]:
    change = None if item.before is None or item.after is None else item.after - item.before
    values = [Text(number(item.before)), Text(number(item.after)), Text(signed(change))]
    return [*values, Text(f"±{item.allowed:.4f}" if change is not None else ""), Text(item.what, style="red")]
