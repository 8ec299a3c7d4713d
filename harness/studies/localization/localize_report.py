"""A study of localisation as tables in the paper's layout, and as figures.

Source of the layout and of the published numbers: Hase et al. 2023, "Does Localization Inform Editing?", arXiv
2301.04213, tables 3 to 7; GPT-J, 652 facts of CounterFact (489 in erasure), 9 layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DataError
from harness.io.files import write_whole
from harness.reports.curves import save_figure
from harness.reports.registry import find_format
from harness.reports.table import Data, Page, Section, Table, TableColumn, TableRow, text_cells
from harness.studies.causal.trace import concentrated
from harness.studies.localization.localize import KINDS, SCORES, LocalizationStudy, require_enough_facts
from harness.studies.localization.regression import Correlation, Fit, regress
from harness.studies.localization.success import overall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "METRICS",
    "PAPER",
    "VIEWS",
    "Regression",
    "View",
    "draw_localization",
    "few_layers",
    "localize_page",
    "rows_of",
    "write_report",
]

METRICS = ("rewrite", "paraphrase", "neighborhood", "essence", "overall", "overall_essence", "overall_harmonic")
"""What is explained. ``overall`` is the mean of the first three, as published; ``overall_essence`` of all four."""

_TITLES = {
    "rewrite": "Rewrite score",
    "paraphrase": "Paraphrase score",
    "neighborhood": "Neighborhood score",
    "essence": "Essence score",
    "overall": "Overall edit success (arithmetic mean of rewrite, paraphrase and neighborhood)",
    "overall_essence": "Overall edit success with essence (arithmetic mean of four)",
    "overall_harmonic": "Overall edit success (harmonic mean of rewrite, paraphrase and neighborhood)",
    "magnitude": "Rewrite magnitude",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*"

_FOUR = ("ft_l@1", "ft_l@5", "rome@1", "memit@5")


def _paper(text: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """``problem: cell | cell | cell | cell`` lines as (problem, method) -> layer, trace, both, difference, p."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for line in text.strip().splitlines():
        problem, _, cells = line.strip().partition(": ")
        for method, cell in zip(_FOUR, cells.split(" | "), strict=True):
            if cell.strip() != "-":
                found[problem, method] = tuple(cell.strip().split("/"))
    return found


PAPER = {
    "rewrite": _paper(
        """
        error_injection: .756/.062/.758/.002/<1e-4 | .775/.055/.777/.002/<1e-4 | .947/.016/.948/.001/<1e-4 | .677/.024/.678/.001/.199
        tracing_reversal: .067/0/.067/0/.997 | .751/.045/.752/.001/.032 | .294/.017/.310/.015/<1e-4 | .212/.036/.218/.006/<1e-4
        fact_erasure: .643/.028/.646/.003/<1e-4 | .698/.025/.700/.002/<1e-4 | .857/.019/.858/0/.555 | .925/.019/.925/0/.669
        fact_amplification: .383/.014/.393/.010/<1e-4 | .424/.010/.436/.011/<1e-4 | .880/.020/.880/0/.654 | .905/.018/.906/.001/<1e-4
        fact_forcing: .697/.104/.724/.027/<1e-4 | .634/.100/.666/.032/<1e-4 | .422/.004/.425/.003/<1e-4 | .345/.041/.354/.009/<1e-4
        """  # noqa: E501
    ),
    "paraphrase": _paper(
        """
        error_injection: .061/.005/.063/.002/.258 | .036/.003/.038/.001/.582 | .279/.001/.303/.024/<1e-4 | .246/0/.269/.023/<1e-4
        tracing_reversal: .004/.001/.004/0/.989 | .001/0/.002/.001/.841 | .010/0/.012/.002/.121 | .001/0/.001/0/.997
        fact_erasure: .046/.001/.048/.002/.303 | .079/.007/.084/.005/.004 | .537/.012/.539/.001/.218 | .586/.015/.587/.001/.184
        fact_amplification: .005/.012/.022/.017/<1e-4 | .017/.013/.035/.018/<1e-4 | .240/.002/.267/.027/<1e-4 | .236/.001/.263/.026/<1e-4
        fact_forcing: .044/.004/.046/.002/.367 | .023/.002/.025/.002/.387 | .357/.010/.360/.003/.003 | .095/.001/.105/.010/<1e-4
        """  # noqa: E501
    ),
    "neighborhood": _paper(
        """
        error_injection: .005/0/.008/.002/.197 | .014/.001/.015/.001/.55 | .011/.003/.015/.005/.001 | .004/.001/.006/.002/.154
        fact_erasure: .010/0/.014/.004/.037 | .010/0/.013/.004/.06 | - | -
        fact_forcing: - | - | .299/.022/.311/.012/<1e-4 | -
        """  # noqa: E501
    ),
    "overall": _paper(
        """
        error_injection: .642/.054/.643/.002/.001 | .663/.047/.665/.002/.001 | .620/.003/.629/.009/<1e-4 | .525/.008/.534/.009/<1e-4
        tracing_reversal: .294/.025/.296/.002/.054 | .751/.045/.752/.001/.032 | .296/.016/.310/.014/<1e-4 | .210/.036/.216/.006/<1e-4
        fact_erasure: .280/.007/.283/.004/.008 | .119/0/.124/.004/.015 | .718/.023/.718/0/.729 | .794/.025/.794/0/.555
        fact_amplification: .188/.003/.199/.011/<1e-4 | .224/.002/.236/.013/<1e-4 | .583/.005/.590/.007/<1e-4 | .597/.005/.607/.010/<1e-4
        fact_forcing: .487/.056/.500/.013/<1e-4 | .459/.057/.475/.017/<1e-4 | .285/.004/.291/.006/<1e-4 | .226/.017/.227/.001/.419
        """  # noqa: E501
    ),
}
"""Tables 3, 4, 6, and what of table 5 could be read: R^2 of layer, trace and both, the difference, p."""


@dataclass(frozen=True)
class View:
    """Which facts are looked at, and what counts as the tracing effect.

    Attributes:
        name: a word for it.
        title: what it says of the tables; empty for the main ones.
        metrics: what is explained.
        effect: one of :data:`harness.studies.localization.localize.EFFECTS`; None for the greatest over all tokens.
        concentrated: whether only facts count whose effect sits in few layers.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    effect: str | None = None
    concentrated: bool = False


_KEPT = ("md", "latex")  # a page to read, and one to publish
_MAIN = ("rewrite", "overall")
VIEWS = (
    View("all", "", METRICS),
    View("concentrated", "facts whose tracing effect is concentrated", _MAIN, concentrated=True),
    View("last_subject", "tracing effect at the subject's last token", _MAIN, "last_subject"),
    View(
        "unscaled",
        "p*(false) - p*(true) against the absolute tracing effect at the subject's last token",
        ("magnitude",),
        "last_subject_absolute",
    ),
    View("zeroing", "share of the probability that zeros at the subject take", _MAIN, "zeroing"),
)
"""The paper's main analysis, its table 2, and its robustness checks (section 5 and appendix B)."""

_PAPER_CONCENTRATED: dict[tuple[str, str], tuple[str, ...]] = {
    ("error_injection", "rome@1"): (".927", ".02", ".929", ".002", "-")
}
"""Table 2: 74 facts; the difference follows."""
_OTHERS_OF, _OTHERS = 27, 3  # of GPT-J's other layers, how many may reach half of the greatest effect


@dataclass(frozen=True)
class Regression:
    """One regression: a score of a method on a problem."""

    metric: str
    problem: str
    method: str
    fit: Fit
    facts: int
    view: View = VIEWS[0]


def _values(study: LocalizationStudy, problem: str, method: str) -> list[tuple[str, int, list[float | None]]]:
    """(fact, layer, scores) of the blocks of one method; nothing where a layer is missing or not whole."""
    found = []
    blocks = [study.blocks.get(f"{problem}/{method}/{layer}", {}) for layer in study.model.get("edited", [])]
    whole = max((len(block) for block in blocks), default=0)
    if any(len(block) < whole or not block for block in blocks):
        return []
    for layer, block in zip(study.model["edited"], blocks, strict=True):
        found += [(fact, int(layer), scores) for fact, scores in block.items()]
    return found


def _score(metric: str, scores: Sequence[float | None]) -> float | None:
    if metric == "magnitude":
        after, true = (*scores[len(SCORES) + 1 :], None, None)[:2]
        return None if after is None or true is None else after - true
    if metric in SCORES:
        return scores[SCORES.index(metric)]
    used = len(SCORES) if metric == "overall_essence" else len(KINDS)
    return overall(scores[:used], metric == "overall_harmonic")


def rows_of(study: LocalizationStudy) -> list[Regression]:
    """The regressions of all problems and methods that are complete.

    Raises:
        DataError: too few facts, or nothing is complete.
        UsageError: statsmodels is not installed.
    """
    require_enough_facts(sum(effect is not None for effect in study.facts.values()), int(study.model.get("layers", 0)))
    found = [
        row
        for view in VIEWS
        for metric in view.metrics
        for problem in study.plan["problems"]
        for method in study.plan["methods"]
        if (row := _row(study, view, metric, problem, method)) is not None
    ]
    if not found:
        raise DataError(f"{study.path}: no method is complete at all layers; run the same command again to go on")
    return found


def _row(study: LocalizationStudy, view: View, metric: str, problem: str, method: str) -> Regression | None:
    points = list(_points(study, view, metric, problem, method))
    if not points:
        return None
    scores, effects, layers, facts = (list(column) for column in zip(*points, strict=True))
    return Regression(metric, problem, method, regress(scores, effects, layers), len(set(facts)), view)


def _points(
    study: LocalizationStudy, view: View, metric: str, problem: str, method: str
) -> Iterator[tuple[float, float, int, str]]:
    """(score, tracing effect, layer, fact) of each edit that has both."""
    effects = study.facts if view.effect is None else study.effects.get(view.effect, {})
    chosen = _concentrated(study) if view.concentrated else effects.keys()
    for fact, layer, scores in _values(study, problem, method):
        score, effect = _score(metric, scores), effects.get(fact)
        if fact in chosen and score is not None and effect is not None:
            yield score, effect[layer], layer, fact


def _concentrated(study: LocalizationStudy) -> set[str]:
    """The facts whose effect is concentrated."""
    others = few_layers(int(study.model["layers"]))
    return {fact for fact, effect in study.facts.items() if effect and concentrated(effect, others=others)}


def few_layers(layers: int) -> int:
    """How many layers beside the greatest may reach half of it: three of GPT-J's other 27, as large a share of fewer.

    (With three of three, every fact of a model of four layers would be concentrated.)
    """
    return round(_OTHERS / _OTHERS_OF * (layers - 1))


# --- tables -----------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    # Of what explains nothing, rounding decides the sign.
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<1e-4" if value < 1e-4 else f"{value:.4f}" if value < 1e-3 else f"{value:.3f}"


def _cells(row: Regression, published: bool) -> list[str]:
    fit = row.fit
    found = [_number(v) for v in (fit.r2_layer, fit.r2_trace, fit.r2_both, fit.difference)]
    found += [_p(fit.p), str(row.facts)]
    return [*found, " / ".join(_published(row)) or "-"] if published else found


def _published(row: Regression) -> tuple[str, ...]:
    """What the paper has of the same regression; empty where it has none."""
    known = PAPER.get(row.metric, {}) if row.view == VIEWS[0] else {}
    known = _PAPER_CONCENTRATED if row.view.concentrated and row.metric == "rewrite" else known
    return known.get((row.problem, _like(row.method)), ())


def _like(method: str) -> str:
    """The paper's method that one corresponds to: one layer, or several."""
    editor, _, window = method.partition("@")
    return f"{editor}@{1 if window == '1' else 5}"


def _head(published: bool) -> list[str]:
    head = ["problem", "method", "R² layer", "R² trace", "R² both", "difference", "p", "facts"]
    return [*head, "paper, GPT-J (layer / trace / both / difference / p)"] if published else head


def _sections(rows: Sequence[Regression], published: bool) -> Iterator[Section]:
    """A table each: what explains each score, then errors and correlations."""
    able = [row for row in rows if row.fit.reason is None]
    for view in VIEWS:
        for metric in view.metrics:
            mine = [row for row in able if (row.view, row.metric) == (view, metric)]
            if mine:
                beside = published and any(map(_published, mine))
                body = [[row.problem, row.method, *_cells(row, beside)] for row in mine]
                yield _section(f"{_TITLES[metric]}: what explains it{_of(view)}", _head(beside), body, left=2)
    main = [row for row in able if row.view == VIEWS[0] and row.metric in _MAIN]
    if main:
        head = ["problem", "method", "score", "RMSE layer", "RMSE trace", "MAE layer", "MAE trace"]
        body = [[r.problem, r.method, r.metric, *map(_number, (*(r.fit.rmse or ()), *(r.fit.mae or ())))] for r in main]
        yield _section("Errors of the two models", head, body, left=3)
    for view in VIEWS:
        mine = [row for row in able if row.view == view and row.metric in (*_MAIN, "magnitude")]
        if mine:
            head = ["problem", "method", "score", *(f"layer {c.layer}" for c in mine[0].fit.correlations)]
            body = [[r.problem, r.method, r.metric, *map(_correlation, r.fit.correlations)] for r in mine]
            yield _section(f"Correlation within a layer (Pearson's r, its p){_of(view)}", head, body, left=3)


def _section(title: str, head: Sequence[str], body: Sequence[Sequence[str]], *, left: int) -> Section:
    """One table, whose first so many columns hold words."""
    columns = tuple(TableColumn((text,), left=place < left) for place, text in enumerate(head))
    return Section(title, (Table("", columns, tuple(TableRow(text_cells(cells)) for cells in body)),))


def _of(view: View) -> str:
    return f"; {view.title}" if view.title else ""


def _correlation(found: Correlation) -> str:
    return "-" if found.r is None else f"{found.r:.2f} ({_p(found.p)})"


def localize_page(study: LocalizationStudy, rows: Sequence[Regression], published: bool = False) -> Page:
    """All tables, with what was left out.

    Args:
        study: the study.
        rows: its regressions.
        published: whether the paper's numbers stand beside.
    """
    without = sorted(
        {f"{r.metric} of {r.problem}, {r.method}{_of(r.view)}: {r.fit.reason}" for r in rows if r.fit.reason}
    )
    notes = (f"Without numbers: {'; '.join(without)}.",) if without else ()
    title = f"{study.model.get('name')}: does tracing tell where to edit?"
    return Page(title, tuple(_introduction(study)), tuple(_sections(rows, published)), notes, _data(rows))


def _data(rows: Sequence[Regression]) -> Data:
    fields = ("facts_of", "metric", "problem", "method", "r2_layer", "r2_trace", "r2_both", "difference", "p", "facts")
    fits = ((row, row.fit) for row in rows)
    values = (
        (r.view.name, r.metric, r.problem, r.method, f.r2_layer, f.r2_trace, f.r2_both, f.difference, f.p, r.facts)
        for r, f in fits
    )
    return Data(fields, tuple(values))


def _introduction(study: LocalizationStudy) -> list[str]:
    plan, known = study.plan, sum(effect is not None for effect in study.facts.values())
    lines = [
        f"{known} facts of {plan['edits']} that the model knows, edited at layers "
        f"{', '.join(map(str, study.model.get('edited', [])))}; tracing with a window of {plan['trace']['window']}. A "
        "method is an editor and the number of layers that it edits together. R² of the layer alone (categorical), of "
        "the tracing effect of that layer alone, of both with their interaction; p of the F-test of both against the "
        "layer alone.",
        f"The tracing effect of {len(_concentrated(study))} facts is concentrated: besides the layer of the greatest, "
        f"at most {few_layers(int(study.model['layers']))} others reach half of it (in GPT-J, of 28 layers, 3).",
    ]
    left = [f"{count} facts: {reason}" for reason, count in study.skipped.items()]
    left += [
        f"{problem}, {count} facts: {why}" for problem, found in study.unposed.items() for why, count in found.items()
    ]
    if left:
        lines.append("Left out: " + "; ".join(left) + ".")
    if not study.complete:
        lines.append("The study is not complete: what stands here is of the methods that are done at every layer.")
    return lines


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_localization(study: LocalizationStudy, folder: Path) -> list[Path]:
    """The score by layer, and the score beside the tracing effect, as two files.

    Raises:
        UsageError: matplotlib is not installed.
    """
    problems = [p for p in study.plan["problems"] if any(_values(study, p, m) for m in study.plan["methods"])]
    made = []
    for name, make in (("layers", _by_layer), ("effects", _by_effect)):
        path = folder / f"{_stem(study)}--{name}.png"
        save_figure(partial(make, study, problems), path)
        made.append(path)
    return made


def _figure(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 * columns + 0.4, 2.1 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    return figure, [list(line) for line in axes]


def _by_layer(study: LocalizationStudy, problems: Sequence[str]) -> Figure:
    """Mean and 95 % interval of each score by layer: a row a problem, a column a score, a line a method."""
    metrics = ("rewrite", "paraphrase", "neighborhood", "overall")
    figure, axes = _figure(len(problems), len(metrics))
    for line, problem in zip(axes, problems, strict=True):
        for axis, metric in zip(line, metrics, strict=True):
            for place, method in enumerate(study.plan["methods"]):
                _line_of(axis, study, metric, problem, method, place)
            _dress(axis, metric if problem == problems[0] else "", problem if metric == metrics[0] else "")
    for axis in axes[-1]:
        axis.set_xlabel("edited layer", fontsize=8)
        axis.set_xticks(study.model["edited"])
    _explain(figure, axes)
    return figure


def _line_of(axis: Axes, study: LocalizationStudy, metric: str, problem: str, method: str, place: int) -> None:
    points = list(_points(study, VIEWS[0], metric, problem, method))
    layers = sorted({layer for _, _, layer, _ in points})
    means, errors = [], []
    for layer in layers:
        scores = [score for score, _, at, _ in points if at == layer]
        middle = math.fsum(scores) / len(scores)
        spread = math.fsum((s - middle) ** 2 for s in scores) / max(1, len(scores) - 1)
        means.append(middle)
        errors.append(1.96 * math.sqrt(spread / len(scores)))
    if layers:
        style = {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
        axis.errorbar(layers, means, errors, label=method, markersize=3.5, linewidth=1.2, capsize=2, **style)  # type: ignore[arg-type]


def _by_effect(study: LocalizationStudy, problems: Sequence[str]) -> Figure:
    """The rewrite score of each edit beside the tracing effect at its layer: a row a problem, a column a method."""
    methods = study.plan["methods"]
    figure, axes = _figure(len(problems), len(methods))
    layers = study.model["edited"]
    for line, problem in zip(axes, problems, strict=True):
        for axis, method in zip(line, methods, strict=True):
            points = list(_points(study, VIEWS[0], "rewrite", problem, method))
            for place, layer in enumerate(layers):
                effects = [effect for _, effect, at, _ in points if at == layer]
                scores = [score for score, _, at, _ in points if at == layer]
                colour = _COLOURS[place % len(_COLOURS)]
                axis.scatter(effects, scores, s=5, alpha=0.55, color=colour, label=f"layer {layer}")
            _dress(axis, method if problem == problems[0] else "", problem if method == methods[0] else "")
    for axis in axes[-1]:
        axis.set_xlabel("tracing effect", fontsize=8)
    _explain(figure, axes)
    return figure


def _explain(figure: Figure, axes: Sequence[Sequence[Axes]]) -> None:
    """The legend below all panels, in as many lines as its entries need."""
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 3 * len(axes[0])))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _dress(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_ylabel(label, fontsize=8)
    axis.set_ylim(-0.03, 1.03)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _stem(study: LocalizationStudy) -> str:
    return study.path.name.removesuffix(".json.gz")


def write_report(study: LocalizationStudy, published: bool = False) -> list[Path]:
    """Tables and figures beside the study's file.

    Raises:
        DataError, UsageError: as :func:`rows_of` and :func:`draw_localization`.
    """
    rows, folder = rows_of(study), study.path.parent
    page, made = localize_page(study, rows, published), []
    for form in map(find_format, _KEPT):
        path = folder / f"{_stem(study)}{form.ending}"
        write_whole(path, form.write([page]).encode())
        made.append(path)
    return [*made, *draw_localization(study, folder)]
