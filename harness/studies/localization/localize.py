"""Does it matter for an edit where tracing finds the fact? Edits of every layer beside that layer's tracing effect.

The grid: every fact is edited at every layer, by every method, for every problem; each edit is made on the unedited
model, scored and let go.  Edits of one layer are independent: they are made side by side, and where their patches are
of low rank they are scored side by side, each row of a batch under its own patch.  What is done lies in one file, and a
study that was stopped goes on where it was.

Source: Hase et al. 2023, "Does Localization Inform Editing?", arXiv 2301.04213, sections 4 to 6.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from typing_extensions import TypedDict

from harness.editing import schedule
from harness.editing.directions import Direction
from harness.editing.edit import Edit, Example
from harness.editing.editor import Editor
from harness.editing.hyperparameters import settable
from harness.editing.made import made, made_each
from harness.editing.registry import Recipe, compose, find
from harness.errors import DataError, UsageError, near
from harness.exam import tasks
from harness.io import files
from harness.io.nobody import tell_nobody
from harness.io.schema import Count, checked, parsed
from harness.methods.descent import TokenisedEdit
from harness.methods.locate_then_edit import LocateThenEdit, with_hyperparameters
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.models.dequantised import dequantised
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.placement import Where
from harness.patches.patch import Patch, RowPatches, patched, patched_rows, shareable
from harness.runs.crew.cells import ALONE, Cell, Crew, require_all, require_named
from harness.runs.crew.dispatch import run_cells
from harness.runs.identity import digest, record_id
from harness.runs.loaded import kept_model
from harness.runs.versions import versions
from harness.studies.causal import trace
from harness.studies.localization.problems import (
    PROBLEMS,
    PUBLISHED,
    Posed,
    PosedEdit,
    Problem,
    ProblemSettings,
    SubjectNoise,
    layers_around,
    log_probabilities,
    loss_of,
    pose,
    settings_for,
)
from harness.studies.localization.success import essence_score, mean, neighborhood_score, perplexity, rewrite_score

__all__ = [
    "EFFECTS",
    "KINDS",
    "METHODS",
    "SCORES",
    "Grid",
    "LocalizationStudy",
    "LocalizedEditor",
    "open_study",
    "require_enough_facts",
    "run_grid",
]

log = logging.getLogger(__name__)

SCHEMA = 2
"""Of the files of studies: how their names are made."""
METHODS = ("ft_l@1", "ft_l@5", "rome@1", "memit@5")
"""The paper's four: fine-tuning of one layer and of five, ROME, and MEMIT over five."""

KINDS = ("rewrite", "paraphrase", "neighborhood")
SCORES = (*KINDS, "essence")
EFFECTS = ("last_subject", "last_subject_absolute", "zeroing")
"""Other measures of where a fact is: the effect at the subject's last token, as a fraction and as a difference of
probabilities, and what zeros in place of the outputs at the subject's tokens cost."""

_PORTION = 64
"""Facts that are edited before what is done is written down."""

_TEXTS, _LENGTH, _TOP = 5, 100, 5  # texts about a subject, their tokens, and of how many each is drawn
_LEAST_FACTS = 3


@dataclass(frozen=True)
class LocalizedEditor:
    """An editor and how many layers it edits together.

    Attributes:
        editor: the editor's name.
        window: the number of layers around one.
    """

    editor: str
    window: int = 1

    @classmethod
    def parse(cls, text: str) -> LocalizedEditor:
        """``rome@1`` or ``rome``.

        Raises:
            UsageError: what follows the @ is not a number of layers.
        """
        name, at, window = text.strip().partition("@")
        if at and (not window.isdecimal() or int(window) < 1):
            raise UsageError(f"method '{text}': '{window}' is not a number of layers; write for example ft_l@5")
        return cls(name, int(window) if at else 1)

    def __str__(self) -> str:
        return f"{self.editor}@{self.window}"


_VOID = "the numbers of this study cannot be trusted"


@dataclass(frozen=True)
class Grid:
    """A study, as one frozen value.

    Attributes:
        model: a shipped model, a folder, or a Hub repository.
        edits: an edit set.
        look_at: how many of its rows, from the first; None for all.
        facts: how many of those that the model knows are studied, from the first; None for all.
        split: of the edit set.
        data_dir: where rows come from.
        problems: the problems.
        methods: the methods.
        layers: the layers that are edited; None for all.
        settings: hyperparameters of editors, ``field`` or ``editor.field``, which win over those of the paper.
        trace: how the facts are traced.
        asked: what the problems leave open.
        essence: whether texts about the subject are scored.
        perplexity: ``plain``, or ``released`` to divide by the number of all tokens.
        seed: of the editors and of the texts about subjects.
        dtype: of the model.
        text: plain text for second moments; None for the model's default.
        arch: parts of the model named by hand.
        dequantise_edited: whether the quantised matrices that an editor writes are plain numbers while it edits and its
            edits are scored.
    """

    model: str = "mini"
    edits: str = "counterfact"
    look_at: int | None = None
    facts: int | None = None
    split: str = "test"
    data_dir: str = "mini"
    problems: tuple[Problem, ...] = PROBLEMS
    methods: tuple[LocalizedEditor, ...] = tuple(map(LocalizedEditor.parse, METHODS))
    layers: tuple[int, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trace: trace.TraceSettings = trace.PRESETS["hase"]
    asked: ProblemSettings = PUBLISHED
    essence: bool = True
    perplexity: str = "plain"
    seed: int = 0
    dtype: str = "float32"
    text: str | None = None
    arch: Mapping[str, str] = field(default_factory=dict)
    dequantise_edited: bool = False

    def to_json(self) -> dict[str, Any]:
        """The study as plain values."""
        plain = asdict(self)
        plain["methods"] = [str(method) for method in self.methods]
        return dict(json.loads(json.dumps(plain)))

    @property
    def id(self) -> str:
        """The hash that names its file."""
        return record_id(self, SCHEMA)


@dataclass(eq=False)
class LocalizationStudy:
    """What is known of a study so far.

    Attributes:
        path: its file.
        plan: the study as plain values.
        model: name, sha256, number of layers, those that are edited, and the identity of the rows of the edit set.
        facts: id -> the tracing effect of each layer; None where tracing found none.
        effects: other measures of it, by name (:data:`EFFECTS`) -> id -> of each layer; None where there is none.
        skipped: why facts were left out -> how many.
        unposed: problem -> why facts were left out of it -> how many.
        blocks: ``problem/method/layer`` -> id -> scores in the order of :data:`SCORES`, then the probability of the
            target after the prompt, before and after; of Error Injection also that of the true object, after.
        complete: whether the whole grid is done.
        versions: of what computed the numbers.
    """

    path: Path
    plan: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, list[float] | None] = field(default_factory=dict)
    effects: dict[str, dict[str, list[float] | None]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    unposed: dict[str, dict[str, int]] = field(default_factory=dict)
    blocks: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    complete: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    def save(self) -> None:
        """Write the whole file or nothing."""
        body = {key: value for key, value in vars(self).items() if key != "path"}
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        files.write_whole(self.path, gzip.compress(content, mtime=0))

    def block(self, problem: str, method: LocalizedEditor, layer: int) -> dict[str, list[float | None]]:
        """The scores of one cell of the grid, by fact.

        Args:
            problem: the name of the problem.
            method: how a layer is edited.
            layer: which layer.
        """
        return self.blocks.setdefault(f"{problem}/{method}/{layer}", {})


Row: TypeAlias = list[float | None]


class _Kept(TypedDict):
    """What the file of a study holds."""

    plan: dict[str, Any]
    model: dict[str, Any]
    facts: dict[str, Row | None]
    effects: dict[str, dict[str, Row | None]]
    skipped: dict[str, Count]
    unposed: dict[str, dict[str, Count]]
    blocks: dict[str, dict[str, Row]]
    complete: bool
    versions: dict[str, str]


def open_study(grid: Grid, output: Path, fresh: bool = False) -> LocalizationStudy:
    """The file of a study: as far as an earlier run came, or empty.

    Args:
        grid: what is asked; its hash is in the file's name.
        output: the folder of studies.
        fresh: whether what an earlier run found is left aside.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: the file cannot be read.
    """
    files.require_writable(output)
    name = grid.model.rstrip("/").rpartition("/")[2]
    path = output / f"localize--{name}--{grid.id[:8]}.json.gz"
    if fresh or not path.exists():
        return LocalizationStudy(path, grid.to_json())
    try:
        kept = parsed(gzip.decompress(path.read_bytes()))
        checked(_Kept, kept)
        return LocalizationStudy(path, **kept)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); start anew with --fresh") from error


def require_enough_facts(facts: int, layers: int) -> None:
    """See that there are enough facts for a regression on layers and effects.

    Raises:
        DataError: there are not; says how many are needed.
    """
    if facts < _LEAST_FACTS:
        raise DataError(
            f"{facts} facts that the model knows and that tracing can explain: a regression with an intercept and a "
            f"slope for each of {layers} layers needs at least {_LEAST_FACTS}; look at more rows with --edits NAME:N"
        )


Report = Callable[[str, int, int], None]


def run_grid(
    grid: Grid,
    output: Path,
    *,
    device: Where = None,
    fresh: bool = False,
    report: Report = tell_nobody,
    lm: LM | None = None,
    crew: Crew = ALONE,
) -> LocalizationStudy:
    """Carry out a study; its file is on disk when this returns, and as far as it came when this raises.

    Args:
        grid: the study.
        output: the folder of its file.
        device: where the model goes.
        fresh: whether to start anew where an earlier run was stopped.
        report: told what is done, how far it is, and how much there is.
        lm: the model that the grid names, where it is loaded already.
        crew: who edits and scores; by default this process. What is asked of the unedited model is in this process.

    Raises:
        HarnessError: the study cannot be carried out; RestoreError if the model is not what it was.
        CheckFailed: some cells of the grid failed; the others are in the file.
        UsageError: what is done of it was done with other weights, rows, files of editors, or versions.
        DataError: too few facts.
    """
    require_named(lm, crew)
    study = open_study(grid, output, fresh)
    _require_names(grid)
    examples = tasks.read_examples(grid.edits, data_dir=grid.data_dir, split=grid.split, count=grid.look_at)
    lm = lm or load(grid.model, dtype=grid.dtype, device=device, names=dict(grid.arch) or None, text=grid.text)
    layers = _checked_layers(lm, grid)
    guard = Guard.of(lm)
    rows = digest({"rows": [asdict(one) for one in examples]})
    mine = {"sha256": lm.fingerprint(), "rows": rows, "editors": _sources(grid), "versions": versions()}
    _require_same(study, grid, mine)
    if study.complete:
        return study
    _check_editors(lm, grid, examples)
    examples = _traced(lm, grid, examples, study, report)
    require_enough_facts(sum(effect is not None for effect in study.facts.values()), lm.arch.layers)
    study.model = {"name": grid.model, "sha256": mine["sha256"], "layers": lm.arch.layers, "edited": layers}
    study.model["rows"] = rows
    if mine["editors"]:
        study.model["editors"] = mine["editors"]
    study.versions = versions()
    study.save()
    texts = _texts(lm, [e.edit for e in examples], grid.seed, report) if grid.essence else {}
    if crew.here:
        for problem in grid.problems:
            posed = pose(lm, examples, problem, settings=grid.asked)
            study.unposed[problem] = _counted(posed.skipped)
            _Problem(lm, grid, posed, texts, report).go(study, layers)
            guard.require(_VOID, weights=False, before=f" before {problem}")
    else:
        posed_ = {problem: pose(lm, examples, problem, settings=grid.asked) for problem in grid.problems}
        study.unposed.update({problem: _counted(one.skipped) for problem, one in posed_.items()})
        ids = {problem: [case.edit.id for case in one.cases] for problem, one in posed_.items()}
        job = _Block(grid, device, tuple(e.edit.id for e in examples), texts)
        _by_crew(study, _cells(study, job, ids, layers), crew, report)
    guard.require(_VOID, before=" before the study")
    study.complete = True
    study.save()
    return study


@dataclass(frozen=True)
class _Block:
    """Facts in one cell of the grid, which are edited and scored wherever that is.

    Attributes:
        grid: the study.
        device: where the model goes.
        examples: the ids of all facts of the study, in order.
        texts: about each subject.
        problem: of the cell.
        method: of the cell.
        layer: of the cell.
        left: the ids of the facts.
    """

    grid: Grid
    device: Where
    examples: tuple[str, ...]
    texts: Mapping[str, list[TokenisedEdit]]
    problem: Problem = "error_injection"
    method: LocalizedEditor = field(default_factory=lambda: LocalizedEditor("rome"))
    layer: int = 0
    left: tuple[str, ...] = ()


def _cells(
    study: LocalizationStudy, job: _Block, ids: Mapping[Problem, Sequence[str]], layers: Sequence[int]
) -> list[Cell[_Block]]:
    """The cells of the grid that are not done.

    Args:
        study: what is done of it.
        job: what all cells share.
        ids: problem -> the facts for which it was posed.
        layers: those that are edited.
    """
    found = []
    for problem, method, layer in itertools.product(ids, job.grid.methods, layers):
        block = study.block(problem, method, layer)
        left = tuple(identity for identity in ids[problem] if identity not in block)
        name = f"{problem}, {method}, layer {layer}"
        one = replace(job, problem=problem, method=method, layer=layer, left=left)
        found += [Cell(name, one, name, f"{job.grid.model} {problem}")] if left else []
    return found


def _by_crew(study: LocalizationStudy, cells: Sequence[Cell[_Block]], crew: Crew, report: Report) -> None:
    """Carry out cells of the grid, each written down as soon as it is known.

    Raises:
        CheckFailed: some failed.
    """
    failed = []
    for done, one in enumerate(run_cells(cells, _scored_block, crew), start=1):
        if one.error is not None:
            log.warning("%s: %s", one.cell.shown, one.error)
            failed.append(one)
        job = one.cell.job
        study.block(job.problem, job.method, job.layer).update(one.done or {})
        study.save()
        report("cells of the grid", done, len(cells))
    require_all(failed, len(cells), "cells of the grid")


def _scored_block(job: _Block, report: Report) -> dict[str, Row]:
    """The scores of one cell of the grid, with the model and the problem of the cell before where they are the same."""
    problem = _desk().of(job)
    problem.report = report
    found = {key: row for part in problem.block(job.method, job.layer, job.left) for key, row in part.items()}
    _desk().guard.require(_VOID, before=f" before {job.method}")
    return found


class _Desk:
    """The problem that this process has at hand."""

    guard: Guard

    def __init__(self) -> None:
        self._key: object = None
        self._problem: _Problem | None = None

    def of(self, job: _Block) -> _Problem:
        """The problem of a cell."""
        grid, key = job.grid, (job.grid.id, job.problem, job.examples, job.device)
        if self._problem is None or key != self._key:
            lm = kept_model(grid.model, dtype=grid.dtype, device=job.device, names=grid.arch, text=grid.text)
            read = tasks.read_examples(grid.edits, data_dir=grid.data_dir, split=grid.split, count=grid.look_at)
            by_id = {one.edit.id: one for one in read}
            self.guard = Guard.of(lm)
            posed = pose(lm, [by_id[identity] for identity in job.examples], job.problem, settings=grid.asked)
            self._problem, self._key = _Problem(lm, grid, posed, job.texts, tell_nobody), key
        return self._problem


@lru_cache(maxsize=1)
def _desk() -> _Desk:
    """The one of this process."""
    return _Desk()


def _require_same(study: LocalizationStudy, grid: Grid, mine: Mapping[str, Any]) -> None:
    """See that what an earlier run left depends on the same: names stay when the content of a file changes."""
    said = {"sha256": f"weights of {grid.model}", "rows": f"rows of {grid.edits}", "editors": "files of editors"}
    # A study of before this was kept was made with editors that ship.
    kept = {"editors": {}, **study.model} if study.model else {}
    if study.model and not study.complete:
        said["versions"], kept["versions"] = "versions", study.versions
    for name, what in said.items():
        if kept.get(name, mine[name]) != mine[name]:
            raise UsageError(f"{study.path}: was begun with other {what}; start anew with --fresh, or choose --output")


def _sources(grid: Grid) -> dict[str, str]:
    """The sha256 of every file of an editor that does not ship, by the editor's name."""
    return {name: sha256 for method in grid.methods for name, sha256 in compose(method.editor).sources.items()}


def _checked_layers(lm: LM, grid: Grid) -> list[int]:
    layers = list(range(lm.arch.layers)) if grid.layers is None else sorted(set(grid.layers))
    for layer in layers:
        lm.arch.writer_of(layer)
    trace.require_traceable(lm, grid.trace)
    return layers


def _require_names(grid: Grid) -> None:
    """Refuse editors and hyperparameters that do not exist, before a model is loaded."""
    recipes = [compose(method.editor) for method in grid.methods]
    for recipe in recipes:
        if "layers" not in settable(recipe.cls):
            raise UsageError(f"{recipe.cls.name} has no layers to choose, so it cannot be placed at one; leave it out")
        recipe.configured(grid.model, _mine(grid.settings, recipe), seed=grid.seed)
    for key in grid.settings:
        part, dot, name = key.rpartition(".")
        owners = [find(part)] if dot else [cls for recipe in recipes for cls in recipe.parts]
        known = {field for cls in owners for field in settable(cls)}
        if name not in known:
            who = f"{part} has no" if dot else "no editor of --methods has a"
            raise UsageError(f"{who} hyperparameter '{name}'{near(name, known)}")


def _check_editors(lm: LM, grid: Grid, examples: Sequence[Example]) -> None:
    """Refuse what no editor can do before anything is measured."""
    for method, problem in itertools.product(grid.methods, grid.problems):
        editor = _built(lm, grid, method, problem, 0)
        direction: Direction = "erasure" if problem == "fact_erasure" else "likelihood"
        with _plain(lm, grid, editor):
            schedule.require_editable(
                editor, lm, [replace(e.edit, direction=direction) for e in examples[:1]], mode="isolated"
            )


def _plain(lm: LM, grid: Grid, editor: Editor) -> AbstractContextManager[object]:
    """The model while an editor edits it, and while what it changed is scored.

    Raises:
        UsageError: quantised matrices are to be plain numbers, and it writes none.
    """
    if not grid.dequantise_edited:
        return nullcontext()
    return dequantised(lm, editor.root.edited_modules(lm), editor.root.name)


def _built(lm: LM, grid: Grid, method: LocalizedEditor, problem: Problem, layer: int) -> Editor:
    """The editor of one cell of the grid."""
    recipe = compose(method.editor)
    own = settings_for(lm.name, recipe.cls.name, problem=problem, window=method.window)
    around = layers_around(layer, method.window, lm.arch.layers)
    own = {**loss_of(recipe.cls), **own}
    return recipe.build(lm, {**own, **_mine(grid.settings, recipe), "layers": around}, seed=grid.seed)


def _mine(settings: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The settings that are of this editor: ``field`` where it has one, ``editor.field`` of its own parts."""
    known = {name for cls in recipe.parts for name in settable(cls)}
    parts = {cls.name for cls in recipe.parts}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        part, dot, name = key.rpartition(".")
        if (dot and part in parts) or (not dot and name in known):
            found[key] = value
    return found


def _traced(lm: LM, grid: Grid, examples: Sequence[Example], study: LocalizationStudy, report: Report) -> list[Example]:
    """The examples whose facts the model knows; their tracing effects go into the study."""
    by_id = {e.edit.id: e for e in examples}
    if not study.facts or not study.effects:
        facts = [e.edit for e in examples]
        chosen = trace.select_facts(
            lm, facts, grid.trace, progress=lambda done, total: report("which facts are known", done, total)
        )
        study.skipped = _counted({one.fact.id: one.reason for one in chosen.skipped})
        chosen = replace(chosen, asked=chosen.asked[: grid.facts])
        for found in trace.trace_each(
            lm, chosen, grid.trace, progress=lambda done, total: report("trace", done, total)
        ):
            study.facts[found.fact.id] = _known(found.layer_effect("max"))
            for name, effect in zip(EFFECTS, _others(found), strict=True):
                study.effects.setdefault(name, {})[found.fact.id] = _known(effect)
    return [by_id[identity] for identity, effect in study.facts.items() if effect is not None]


def _others(found: trace.Traced) -> tuple[torch.Tensor, ...]:
    """The effects of :data:`EFFECTS`."""
    return found.layer_effect("last_subject"), found.layer_effect("last_subject", scaled=False), found.removed


def _known(effect: torch.Tensor) -> list[float] | None:
    return None if bool(effect.isnan().any()) else [_short(value) for value in effect.tolist()]


def _counted(reasons: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for reason in reasons.values():
        plain = reason.partition(" has probability")[0]
        found[plain] = found.get(plain, 0) + 1
    return found


def _short(value: float) -> float:
    """Six digits, so that a study stays small."""
    return float(f"{value:.6g}")


def _texts(lm: LM, edits: Sequence[Edit], seed: int, report: Report) -> dict[str, list[TokenisedEdit]]:
    """Five texts of the unedited model about each subject, that begin with "{subject} is a" (id -> texts in tokens).

    Each next token is drawn from the five most probable; a text is scored from its second token on.
    """
    found: dict[str, list[TokenisedEdit]] = {}
    for done, edit in enumerate(edits):
        with lm.plain_generation(), torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = torch.tensor([lm.encode(f"{edit.subject} is a")] * _TEXTS, device=lm.device)
            wanted = min(_LENGTH, lm.context)
            written: torch.Tensor = lm.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_length=wanted,
                max_new_tokens=None,
                do_sample=True,
                top_k=_TOP,
                pad_token_id=lm.pad,
                eos_token_id=lm.tokenizer.eos_token_id,
            )
        found[edit.id] = [_scored(edit, row, lm.tokenizer.eos_token_id, ids.shape[1]) for row in written.tolist()]
        report("texts about the subjects", done + 1, len(edits))
    return found


def _scored(edit: Edit, ids: list[int], eos: int | None, given: int) -> TokenisedEdit:
    """A text, up to where it ended itself."""
    end = next((i for i, token in enumerate(ids) if i >= given and token == eos), len(ids))
    return TokenisedEdit(edit, ids[:1], ids[1:end])


@dataclass(eq=False)
class _Problem:
    """One problem under way: every method at every layer."""

    lm: LM
    grid: Grid
    posed: Posed
    texts: Mapping[str, list[TokenisedEdit]]
    report: Report

    def go(self, study: LocalizationStudy, layers: Sequence[int]) -> None:
        """All blocks of the grid that are not done, each portion written down as soon as it is known."""
        for method, layer in itertools.product(self.grid.methods, layers):
            block = study.block(self.posed.problem, method, layer)
            left = [case.edit.id for case in self.posed.cases if case.edit.id not in block]
            for found in self.block(method, layer, left) if left else ():
                block.update(found)
                study.save()

    def block(self, method: LocalizedEditor, layer: int, left: Sequence[str]) -> Iterator[dict[str, Row]]:
        """The scores of some facts in one cell of the grid, a portion at a time.

        Args:
            method: how a layer is edited.
            layer: which layer.
            left: the ids of the facts.
        """
        wanted = set(left)
        places = [i for i, case in enumerate(self.posed.cases) if case.edit.id in wanted]
        before, built = self._before, _built(self.lm, self.grid, method, self.posed.problem, layer)
        name = f"{self.posed.problem}, {method}, layer {layer}"
        with _plain(self.lm, self.grid, built):
            yield from self._blocks(name, self._ready(built), places, before)

    def _blocks(
        self, name: str, editor: Editor, places: Sequence[int], before: Sequence[Mapping[str, list[float]]]
    ) -> Iterator[dict[str, Row]]:
        """As :meth:`block`, of an editor and the places of facts, with what the unedited model answered."""
        cases, values = self.posed.cases, ValueCache(values_folder())
        for first in range(0, len(places), _PORTION):
            portion = places[first : first + _PORTION]
            self.report(name, len(cases) - len(places) + first, len(cases))
            # What is made one by one is scored one by one: changes of whole matrices are not kept side by side.
            alone = self._rows(editor) > 1 or type(editor.root).edit_each is Editor.edit_each
            found: dict[str, Row] = {}
            for group in [[i] for i in portion] if alone else [portion]:
                with values_from(values):
                    patches = self._edited(editor, [cases[i].edit for i in group])
                for i, scores in zip(group, self._measured(self._questions, group, patches), strict=True):
                    found[cases[i].edit.id] = self._scores(self._questions[i], before[i], scores)
            yield found
        self.report(name, len(cases), len(cases))

    @cached_property
    def _questions(self) -> list[dict[str, list[TokenisedEdit]]]:
        return [self._asked(case) for case in self.posed.cases]

    @cached_property
    def _before(self) -> list[dict[str, list[float]]]:
        """What the unedited model answers."""
        return self._measured(self._questions, range(len(self.posed.cases)), None)

    def _ready(self, editor: Editor) -> Editor:
        """The editor with what it takes from the unedited model already taken: no noise may get into it."""
        root = editor.root
        if self.posed.noise is None or not isinstance(root, LocateThenEdit):
            return editor
        prior = root.prior(self.lm, None, root.edited_layers(self.lm))
        return with_hyperparameters(editor, editor.name, contexts=tuple(prior.contexts))

    def _edited(self, editor: Editor, edits: Sequence[Edit]) -> list[Patch]:
        """One patch for each edit, all made on the unedited model in the state that the problem asks for."""
        rows, asked = self._rows(editor), self.grid.asked
        stream = asked.noise_rows == "released" and self.posed.noise is not None
        if stream and len(edits) > 1:
            # Each edit begins the stream anew.
            return [self._edited(editor, [edit])[0] for edit in edits]
        with patched(self.lm, self.posed.state(self.lm, rows, asked.noise_at == "released", stream=stream)):
            if rows == 1:
                return made_each(editor, self.lm, edits)
            return [made(editor, self.lm, [edit] * rows) for edit in edits]

    def _rows(self, editor: Editor) -> int:
        """In how many rows an editor reads one edit: of gradient editors each has a noise of its own."""
        return self.grid.asked.samples if self.posed.noise and "batch_size" in settable(type(editor.root)) else 1

    def _asked(self, case: PosedEdit) -> dict[str, list[TokenisedEdit]]:
        """What is scored, by kind."""
        lm, found = self.lm, {}
        for kind, prompts in case.prompts.items():
            found[kind] = [
                TokenisedEdit(case.edit, lm.encode(p), lm.continuation(p, case.edit.continuation)) for p in prompts
            ]
        return {**found, "essence": self.texts.get(case.edit.id, []), "true": self._true(case)}

    def _true(self, case: PosedEdit) -> list[TokenisedEdit]:
        """The true object after the prompt, which an injected error is compared with."""
        if self.posed.problem != "error_injection":
            return []
        text, true = case.edit.text, case.edit.says(str(case.edit.target_old))
        return [TokenisedEdit(case.edit, self.lm.encode(text), self.lm.continuation(text, true))]

    def _measured(
        self, asked: Sequence[Mapping[str, list[TokenisedEdit]]], which: Sequence[int], patches: Sequence[Patch] | None
    ) -> list[dict[str, list[float]]]:
        """The log-probability of every answer of some cases, each under its own patch; None for the unedited model."""
        flat = [
            (place, kind, answer) for place, i in enumerate(which) for kind in asked[i] for answer in asked[i][kind]
        ]
        found: list[dict[str, list[float]]] = [{kind: [] for kind in asked[i]} for i in which]
        state, owner = self.posed.state(self.lm), [which[place] for place, _, _ in flat]
        noise = state.hooks.get(self.lm.arch.embedding)
        values = [0.0] * len(flat)
        for members, held in self._groups([place for place, _, _ in flat], patches):
            with held as carrier, patched(self.lm, state):

                def before(
                    chunk: Sequence[int], mine: list[int] = members, carrier: RowPatches | None = carrier
                ) -> None:
                    if carrier is not None:
                        carrier.index = torch.tensor([flat[mine[i]][0] for i in chunk])
                    if isinstance(noise, SubjectNoise):
                        noise.owners = [owner[mine[i]] for i in chunk]

                scored = log_probabilities(self.lm, [flat[i][2] for i in members], before=before)
            for i, value in zip(members, scored, strict=True):
                values[i] = value
        for (place, kind, _), value in zip(flat, values, strict=True):
            found[place][kind].append(value)
        return found

    def _groups(self, places: Sequence[int], patches: Sequence[Patch] | None) -> Iterator[tuple[list[int], Any]]:
        """Which answers are scored together, and what holds their patches."""
        everything = list(range(len(places)))
        if patches is None:
            yield everything, _holding(self.lm, Patch())
        elif all(shareable(patch) for patch in patches):
            yield everything, patched_rows(self.lm, patches)
        else:
            for place, patch in enumerate(patches):
                if patch.prompt is not None:
                    raise UsageError("an editor of prompts cannot be placed at a layer; leave it out")
                yield [i for i in everything if places[i] == place], _holding(self.lm, patch)

    def _scores(
        self,
        asked: Mapping[str, list[TokenisedEdit]],
        before: Mapping[str, list[float]],
        after: Mapping[str, list[float]],
    ) -> list[float | None]:
        """The scores of one edit and the probabilities behind them, as :class:`LocalizationStudy` holds them."""
        p = {kind: ([math.exp(v) for v in before[kind]], [math.exp(v) for v in after[kind]]) for kind in KINDS}
        found: list[float | None] = [
            mean([rewrite_score(b, a, self.posed.erases) for b, a in zip(*p[kind], strict=True)])
            for kind in ("rewrite", "paraphrase")
        ]
        found.append(mean([neighborhood_score(b, a) for b, a in zip(*p["neighborhood"], strict=True)]))
        found.append(self._essence(asked["essence"], before["essence"], after["essence"]))
        found += [p["rewrite"][0][0], p["rewrite"][1][0], *map(math.exp, after["true"])]
        return [None if value is None or math.isnan(value) else _short(value) for value in found]

    def _essence(self, texts: Sequence[TokenisedEdit], before: Sequence[float], after: Sequence[float]) -> float | None:
        if not texts:
            return None
        released = self.grid.perplexity == "released"
        rises = [
            _perplexity(a, text, released) - _perplexity(b, text, released)
            for text, b, a in zip(texts, before, after, strict=True)
        ]
        return essence_score(math.fsum(rises) / len(rises))


def _perplexity(log_p: float, text: TokenisedEdit, released: bool) -> float:
    return perplexity([log_p / len(text.target)] * len(text.target), released)


@contextmanager
def _holding(lm: LM, patch: Patch) -> Iterator[None]:
    with patched(lm, patch):
        yield None
