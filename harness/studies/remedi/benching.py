"""A run of one of REMEDI's benchmarks: a plan in, a record and a table out.

``<name>.json`` holds the plan and what came out of every method, each number with n and its 95 % interval, and, for
methods beside ``none``, the difference that the edit made, paired by document.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from sklearn.feature_extraction.text import TfidfVectorizer

from harness.editing import learned_file
from harness.editing.edit import Example
from harness.editing.editor import Editor, Learned
from harness.editing.registry import compose
from harness.errors import DataError, UsageError, near
from harness.exam import data
from harness.exam.numbers import interval_of
from harness.exam.statistics import Estimate, difference, estimate
from harness.exam.text_metrics import vectorizer
from harness.io.cache import in_cache
from harness.io.files import json_text, require_writable, write_whole
from harness.io.nobody import tell_nobody
from harness.models.lm import LM, load
from harness.patches.patch import Patch
from harness.reports.cells import brackets, number, signed
from harness.reports.table import MISSING
from harness.runs.identity import record_id
from harness.runs.versions import versions
from harness.studies.remedi.bench import (
    BASELINES,
    BenchMethod,
    Found,
    bios,
    essences,
    facts,
    features,
    mediation,
    unedited_features,
)
from harness.studies.remedi.classify import (
    BenchOutcome,
    Probes,
    bios_classification,
    directed,
    fact_classification,
    random_model,
)
from harness.studies.remedi.entities import (
    PUBLISHED_HALF,
    EntityCase,
    example,
    from_biography,
    from_counterfact,
    halves,
    in_context,
    stand_ins,
)
from harness.studies.remedi.norms import SEED, concepts, samples

__all__ = ["BENCHMARKS", "BenchPlan", "bench_name", "bench_table", "run_bench", "usual"]

SCHEMA = 2
Json = dict[str, Any]
Report = Callable[[str, int, int], None]

BENCHMARKS: dict[str, str] = {
    "facts": "counterfact",
    "features": "mcrae",
    "bios": "bias_in_bios",
    "mediation": "counterfact",
    "fact-classification": "counterfact",
    "bios-classification": "bias_in_bios",
}
"""Each benchmark and its rows."""
_BASELINES = {"facts": BASELINES, "features": ("none", "prefix"), "bios": ("none",), "mediation": ("none",)}
_PUBLISHED: dict[str, dict[str, int]] = {
    "gpt-j-6b": {"counterfact": 1, "bias_in_bios": 12, "mcrae": 12},
    "gpt2-xl": {"counterfact": 0, "bias_in_bios": 4, "mcrae": 4},
    "gpt2": {"counterfact": 0, "bias_in_bios": 10, "mcrae": 10},
}
"""The blocks that the paper edits, by the last part of the model's name."""
_ENTITY: dict[str, dict[str, int]] = {
    "gpt-j-6b": {"counterfact": 26, "bias_in_bios": 15},
    "gpt2-xl": {"counterfact": 34, "bias_in_bios": 37},
    "gpt2": {"counterfact": 10, "bias_in_bios": 11},
}
"""The blocks after which the paper reads an entity."""
_SUPERVISED: dict[str, dict[str, float]] = {
    "fact-classification": {
        "contextual_accuracy": 0.982,
        "contextual_f1": 0.970,
        "contextual_mcc": 0.958,
        "decontextual_accuracy": 0.914,
        "decontextual_f1": 0.598,
        "decontextual_mcc": 0.615,
    },
    "bios-classification": {"accuracy": 0.960, "f1": 0.960, "mcc": 0.920},
}
"""What the authors' repository keeps of its supervised bilinear probe; of the rows that the probe was trained on.  No
other number is in it."""
_TEXT_ROOM = 160
"""Tokens that must be left for a text about a case."""


@dataclass(frozen=True)
class BenchPlan:
    """Everything that the numbers of a run depend on.

    Attributes:
        bench: one of :data:`BENCHMARKS`.
        editors: editors and baselines, in the order of the table.
        model: a shipped model, a folder, or a Hub repository.
        cases: how many cases are examined, from the first; None for all.
        learn: how many cases a learning editor learns from; None for all.
        settings: hyperparameters of the editors.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``.
        entity_layer: the block after which entities are read; None for the paper's, or one at 90 % of the depth.
        tokens: of each sampled text; None for the paper's.
        seed: of everything random.
        dtype: of the model.
        arch: parts of the architecture named by hand.

    Raises:
        UsageError: a name or a number is not possible.
    """

    bench: str
    editors: tuple[str, ...]
    model: str = "mini"
    cases: int | None = 50
    learn: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str = "mini"
    entity_layer: int | None = None
    tokens: int | None = None
    seed: int = 0
    dtype: str = "float32"
    arch: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bench not in BENCHMARKS:
            raise UsageError(f"benchmark '{self.bench}' does not exist{near(self.bench, BENCHMARKS)}")
        allowed = _BASELINES.get(self.bench, ())
        for name in self.editors:
            if name in BASELINES and name not in allowed:
                has = f"its baselines are {', '.join(allowed)}" if allowed else "it examines editors alone"
                raise UsageError(f"{self.bench} has no baseline '{name}'; {has}")
        for key in ("cases", "learn", "tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UsageError(f"{key} is {value}, expected at least 1")

    @property
    def rows(self) -> str:
        """The data set."""
        return BENCHMARKS[self.bench]


@dataclass(frozen=True, eq=False)
class _Cases:
    """What is learned from, what is examined, and how many were left out, by reason."""

    taught: Sequence[EntityCase]
    examined: Sequence[EntityCase]
    left_out: Mapping[str, int]
    known: Sequence[tuple[str, str, str]] = ()


def usual(bench: str) -> tuple[str, ...]:
    """What a benchmark compares by default: its baselines and remedi."""
    return (*_BASELINES.get(bench, ()), "remedi")


def run_bench(plan: BenchPlan, folder: Path, *, device: str | None = None, report: Report = tell_nobody) -> Json:
    """Carry out a plan; its record is on disk when this returns.

    Args:
        plan: the benchmark, the model and the editors.
        folder: where the record is written.
        device: where the model runs; None is what there is.
        report: called with what is being done, how much of it is done, and how much there is.

    Returns:
        the record.

    Raises:
        HarnessError: it cannot be carried out.
    """
    require_writable(folder)
    begun = time.monotonic()
    for name in plan.editors:
        if name not in BASELINES:
            compose(name).configured(plan.model, plan.settings, seed=plan.seed)
    rows = _READERS[plan.rows](plan)
    lm = load(plan.model, dtype=plan.dtype, device=device, names=dict(plan.arch) or None)
    cases = _usable(plan, lm, rows)
    run = {"fact-classification": _classified, "bios-classification": _classified}.get(plan.bench, _generated)
    outcomes = run(plan, lm, cases, report)
    record = _record(plan, lm, cases, outcomes)
    record["seconds"] = round(time.monotonic() - begun, 1)
    path = folder / f"{bench_name(record)}.json"
    write_whole(path, (json_text(record) + "\n").encode())
    return record


# --- cases ------------------------------------------------------------------------------------------------------------


def _usable(plan: BenchPlan, lm: LM, found: _Cases) -> _Cases:
    """The cases that leave the model room for a text, as many as the plan asks for."""
    left_out = dict(found.left_out)
    short = [case for case in found.examined if _fits(lm, case)]
    taught = [case for case in found.taught if _fits(lm, case)]
    long = len(found.examined) + len(found.taught) - len(short) - len(taught)
    left_out |= {"longer than the model takes": long} if long else {}
    if not short or not taught:
        raise DataError(f"{plan.rows}: no case to learn from or to examine is left ({left_out}); give more rows")
    if plan.cases is not None and plan.cases > len(short):
        raise UsageError(f"{plan.rows}: has {len(short)} cases to examine, {plan.cases} were asked for; ask for fewer")
    return _Cases(taught[: plan.learn], short[: plan.cases], left_out, found.known)


def _fits(lm: LM, case: EntityCase) -> bool:
    """Whether the sentence and the question leave room for a text, or half of the model does."""
    room = min(_TEXT_ROOM, lm.context // 4)
    return len(lm.encode(in_context(case.context, case.prompt, "\n\n"))) + room <= lm.context


def _counterfact(plan: BenchPlan) -> _Cases:
    functions: Any = data.functions(data.find_datasets()["counterfact"])
    if plan.data_dir == "mini":
        taught, examined = (functions.source(plan.data_dir, split) for split in ("train", "test"))
    else:
        # Both halves of what is read must hold what is asked for.
        wanted = 2 * min(PUBLISHED_HALF, max(plan.cases or PUBLISHED_HALF, plan.learn or PUBLISHED_HALF))
        taught, examined = halves(functions.source(plan.data_dir, "test", wanted))
    both = [[from_counterfact(row, edit) for row, edit in zip(rows, functions.edits(rows), strict=True)]
            for rows in (taught, examined)]  # fmt: skip
    known = [(case.more["relation"], case.entity, str(case.target_old)) for cases in both for case in cases]
    return _Cases(both[0], both[1], {}, known)


def _mcrae(plan: BenchPlan) -> _Cases:
    taught, examined = halves(samples(concepts(data.load("mcrae", "test", plan.data_dir)), 10_000))
    return _Cases(taught, examined, {})


def _bias_in_bios(plan: BenchPlan) -> _Cases:
    rows = data.load("bias_in_bios", "test", plan.data_dir)
    made = [from_biography(row, i) for i, row in enumerate(rows)]
    usable = [case for case in made if case is not None]
    # A file may be sorted by occupation.
    random.Random(SEED).shuffle(usable)
    lost = len(made) - len(usable)
    return _Cases(*halves(usable), {"too short, or not about one person": lost} if lost else {})


_READERS: Mapping[str, Callable[[BenchPlan], _Cases]] = {
    "counterfact": _counterfact,
    "mcrae": _mcrae,
    "bias_in_bios": _bias_in_bios,
}


# --- methods ----------------------------------------------------------------------------------------------------------


def _method(name: str, plan: BenchPlan, lm: LM, cases: _Cases) -> BenchMethod:
    if name == "replace":
        draw = random.Random(plan.seed).randrange
        others = stand_ins(cases.examined, cases.known, draw)
        return BenchMethod(name, None, dict(zip([case.id for case in cases.examined], others, strict=True)))
    return BenchMethod(name, None if name in BASELINES else _fitted(name, plan, lm, cases.taught))


def _fitted(name: str, plan: BenchPlan, lm: LM, taught: Sequence[EntityCase]) -> Editor:
    """The editor, after it has learned what it must; what it learned is kept in the cache."""
    recipe = compose(name)
    layer = _PUBLISHED.get(_last(lm.name), {}).get(plan.rows)
    settings = {"layer": layer, **plan.settings} if layer is not None and name == "remedi" else plan.settings

    def learn(method: Editor) -> Editor:
        if not isinstance(method, Learned):
            return method
        lessons = _lessons(plan, taught)
        path = _kept(method, lm, lessons)
        if in_cache(path):
            return learned_file.load_learned(method, lm, path)
        learned = method.fit(lm, lessons).root
        assert isinstance(learned, Learned)
        learned_file.require_writable_file(path)
        learned_file.save_learned(learned, lm, path, trained={"benchmark": plan.bench, "count": len(lessons)})
        return learned

    return recipe.build(lm, settings, seed=plan.seed, prepare=learn)


def _lessons(plan: BenchPlan, taught: Sequence[EntityCase]) -> list[Example]:
    if plan.rows != "counterfact":
        return [example(case) for case in taught]
    functions: Any = data.functions(data.find_datasets()["counterfact"])
    split, chosen = ("train" if plan.data_dir == "mini" else "test"), {case.id for case in taught}
    rows = [row for row in functions.source(plan.data_dir, split, 10_000) if str(row["case_id"]) in chosen]
    return list(functions.examples(rows))


def _kept(method: Learned, lm: LM, lessons: Sequence[Example]) -> Path:
    """Where the cache keeps what was learned from these examples."""
    usual = learned_file.default_path(method, lm)
    content = json.dumps([asdict(one) for one in lessons], sort_keys=True, ensure_ascii=False)
    return usual.with_name(f"{usual.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors")


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


# --- runs -------------------------------------------------------------------------------------------------------------


def _generated(plan: BenchPlan, lm: LM, cases: _Cases, report: Report) -> dict[str, BenchOutcome]:
    """What the model says under each method."""
    # An editor that does not exist, or a wrong setting, is told before anything is measured.
    methods = [_method(name, plan, lm, cases) for name in plan.editors]
    examine = _examiner(plan, lm, cases)
    found = {}
    for done, method in enumerate(methods):
        report(f"{plan.bench}: {method.name}", done, len(methods))
        found[method.name] = BenchOutcome(examine(method), {})
    return found


def _examiner(plan: BenchPlan, lm: LM, cases: _Cases) -> Callable[[BenchMethod], Found]:
    """The benchmark, with what all methods are compared with."""
    examined = cases.examined
    length = {} if plan.tokens is None else {"length": plan.tokens}
    if plan.bench == "features":
        before = unedited_features(lm, examined)
        return lambda method: features(lm, method, examined, before=before)
    if plan.bench == "bios":
        labels = sorted({case.target for case in examined})
        return lambda method: bios(lm, method, examined, labels=labels, seed=plan.seed, **length)
    if plan.bench == "mediation":
        return lambda method: mediation(lm, method, examined)
    none = BenchMethod("none")
    essence = essences(lm, none, examined, patches=[Patch()] * len(examined), seed=plan.seed + 1, **length)
    vectors, references = _references(plan, examined, essence)
    return lambda method: facts(
        lm, method, examined, fitted=vectors, references=references, essence=essence, seed=plan.seed, **length
    )


def _references(
    plan: BenchPlan, cases: Sequence[EntityCase], essence: Mapping[str, str]
) -> tuple[TfidfVectorizer, dict[str, list[str]]]:
    """The TF-IDF and the texts about the new target of each case, where the source of the rows has such texts."""
    functions: Any = data.functions(data.find_datasets()["counterfact"])
    known = functions.snippets(plan.data_dir)
    if known is None:
        return vectorizer(list(essence.values())), {}
    asked = {case.id: {"relation": case.more["relation"], "target": case.more["target_id"]} for case in cases}
    return known.fitted, {name: known.of(doc) for name, doc in asked.items()}


def _classified(plan: BenchPlan, lm: LM, cases: _Cases, report: Report) -> dict[str, BenchOutcome]:
    """What the representations predict, by variant."""
    if len(plan.editors) != 1:
        raise UsageError(f"{plan.bench} reads the directions of one editor; name one, such as --editor remedi")
    entity_layer = _entity_layer(plan, lm)
    report(f"{plan.bench}: the editor", 0, 3)
    (name,) = plan.editors
    editor = directed(_fitted(name, plan, lm, cases.taught))
    report(f"{plan.bench}: the control model", 1, 3)
    control_lm = random_model(lm, plan.seed)
    control = directed(_fitted(name, plan, replace(control_lm, name=lm.name), cases.taught))
    probes = Probes(lm, editor, control_lm, control, entity_layer, plan.seed)
    report(f"{plan.bench}: probes", 2, 3)
    if plan.bench == "fact-classification":
        return fact_classification(probes, cases.taught, cases.examined)
    return bios_classification(probes, cases.examined, sorted({case.target for case in cases.examined}))


def _entity_layer(plan: BenchPlan, lm: LM) -> int:
    chosen = plan.entity_layer
    if chosen is None:
        chosen = _ENTITY.get(_last(lm.name), {}).get(plan.rows, round(0.9 * (lm.arch.layers - 1)))
    if not 0 <= chosen < lm.arch.layers:
        raise UsageError(f"entity layer {chosen}: {lm.name} has layers 0 to {lm.arch.layers - 1}")
    return chosen


# --- the record -------------------------------------------------------------------------------------------------------


def _record(plan: BenchPlan, lm: LM, cases: _Cases, outcomes: Mapping[str, BenchOutcome]) -> Json:
    base = outcomes["none"].values if "none" in outcomes else None
    content = json.dumps([asdict(case) for case in cases.examined], sort_keys=True, ensure_ascii=False, default=str)
    settled = asdict(plan)
    settled["editors"] = list(plan.editors)
    return {
        "study": "bench",
        "schema": SCHEMA,
        "id": record_id(plan, SCHEMA),
        "plan": settled,
        "model": {
            "name": lm.name,
            "sha256": lm.fingerprint(),
            "layers": lm.arch.layers,
            "device": lm.device.type,
        },
        "cases": {
            "examined": len(cases.examined),
            "learned_from": len(cases.taught),
            "left_out": dict(cases.left_out),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        },
        "results": {
            name: _numbers(outcome, None if name == "none" else base, plan.seed) for name, outcome in outcomes.items()
        },
        "versions": versions(),
        "seconds": 0.0,
    }


def _numbers(outcome: BenchOutcome, base: Found | None, seed: int) -> Json:
    found: Json = {}
    for metric, values in outcome.values.items():
        found[metric] = _plain(estimate(values, seed))
        if base is not None and metric in base:
            moved = difference(base[metric], values, seed=seed)
            found[metric]["difference"] = {
                "value": _short(moved.value),
                "interval": interval_of(_short(moved.low), _short(moved.high)),
                "p": _short(moved.p),
            }
    return found | {metric: _plain(one) for metric, one in outcome.estimates.items()}


def _plain(one: Estimate) -> Json:
    return {
        "value": _short(one.value),
        "n": one.n,
        "interval": interval_of(_short(one.low), _short(one.high)),
        "reason": one.reason,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def bench_name(record: Json) -> str:
    """The file name of a record without its ending, such as ``mini--bench-facts--50--1a2b3c4d``."""
    parts = [_last(record["model"]["name"]), f"bench-{record['plan']['bench']}", str(record["cases"]["examined"])]
    return "--".join([*(re.sub(r"[^A-Za-z0-9+._]+", "-", part).strip("-.") for part in parts), record["id"][:8]])


def bench_table(record: Json, published: bool = False) -> RenderableType:
    """What a terminal shows of a record: a line for each metric, a column for each method.

    Args:
        record: the record.
        published: whether the authors' numbers stand beside, where there are any.
    """
    cases, plan = record["cases"], record["plan"]
    title = (
        f"{plan['bench']} · {_last(record['model']['name'])} · {cases['examined']} cases of {BENCHMARKS[plan['bench']]}"
        f" · learned from {cases['learned_from']} · seed {plan['seed']}"
    )
    left = [f"left out: {count}, {reason}" for reason, count in cases["left_out"].items()]
    results = record["results"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    theirs = _SUPERVISED.get(plan["bench"], {}) if published else {}
    for column in ("", "n", *results, *(["published (bilinear, on its training rows)"] if theirs else [])):
        table.add_column(column)
    for metric in dict.fromkeys(metric for found in results.values() for metric in found):
        cells = [results[name].get(metric) for name in results]
        beside = [number(theirs.get(metric))] if theirs else []
        table.add_row(metric, _counts(cells), *map(_cell, cells), *beside)
    behind = " In brackets behind it the difference from none, where it is significant." if "none" in results else ""
    note = Text(f"[ ]: 95 % interval.{behind}", "dim")
    return Group(Text(title, "bold"), *map(Text, left), Text(), table, Text(), note)


def _counts(cells: Sequence[Json | None]) -> str:
    counts = [cell["n"] for cell in cells if cell is not None]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _cell(found: Json | None) -> str:
    if found is None or found["value"] is None:
        return MISSING
    moved = found.get("difference") or {}
    sure = moved.get("p") is not None and moved["p"] < 0.05
    change = f" ({signed(moved['value'])})" if sure else ""
    return f"{number(found['value'])} {brackets(found['interval'])}{change}".strip()
