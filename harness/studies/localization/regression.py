"""How much of an edit's success its layer explains, how much the tracing effect there, and how much both.

Source: Hase et al. 2023, "Does Localization Inform Editing?", arXiv 2301.04213, section 5 and appendix B: ordinary
least squares, plain R^2, an F-test of the model of both against that of the layer alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    import pandas

__all__ = ["Correlation", "Fit", "regress"]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of score and effect at one layer; None where one of them does not vary."""

    layer: int
    r: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class Fit:
    """Three regressions of one score; a number that does not exist is None.

    Attributes:
        n: rows, one for each fact and layer.
        layers: how many layers.
        r2_layer: R^2 of ``y ~ layer``, the layer categorical.
        r2_trace: R^2 of ``y ~ effect``.
        r2_both: R^2 of ``y ~ layer * effect``: an intercept and a slope for each layer.
        f: the F statistic of both against the layer alone.
        df: its degrees of freedom.
        p: its p-value.
        rmse: root mean squared error of the layer's model, and of the effect's.
        mae: mean absolute error of the same.
        correlations: within each layer.
        reason: why there are no numbers; None where there are.
    """

    n: int
    layers: int
    r2_layer: float | None = None
    r2_trace: float | None = None
    r2_both: float | None = None
    f: float | None = None
    df: tuple[int, int] | None = None
    p: float | None = None
    rmse: tuple[float, float] | None = None
    mae: tuple[float, float] | None = None
    correlations: tuple[Correlation, ...] = ()
    reason: str | None = None

    @property
    def difference(self) -> float | None:
        """What the tracing effect adds to the layer: ``R^2_both - R^2_layer``."""
        return None if self.r2_both is None or self.r2_layer is None else self.r2_both - self.r2_layer


def regress(scores: Sequence[float], effects: Sequence[float], layers: Sequence[int]) -> Fit:
    """Explain the scores of edits.

    Args:
        scores: of each edit.
        effects: the tracing effect of its fact at its layer.
        layers: its layer.

    Raises:
        UsageError: statsmodels is not installed.
    """
    smf = _formulas()
    n, count = len(scores), len(set(layers))
    if min((list(layers).count(layer) for layer in set(layers)), default=0) < 3:
        return Fit(n, count, reason="a layer has fewer than three edits")
    if max(scores) - min(scores) < 1e-12:
        return Fit(n, count, reason="the score is the same for every edit")
    frame = _frame(scores, effects, layers)
    with warnings.catch_warnings():
        # Where an effect does not vary within a layer, its slope is not determined; R^2 is.  A perfect fit leaves no
        # variance to divide by; F is then not a number.
        warnings.simplefilter("ignore")
        by_layer = smf.ols("y ~ C(layer)" if count > 1 else "y ~ 1", data=frame).fit()
        by_trace = smf.ols("y ~ effect", data=frame).fit()
        both = smf.ols("y ~ C(layer) * effect" if count > 1 else "y ~ effect", data=frame).fit()
        f, p, df = both.compare_f_test(by_layer)
    tested = df > 0 and both.df_resid > 0
    return Fit(
        n,
        count,
        float(by_layer.rsquared),
        float(by_trace.rsquared),
        float(both.rsquared),
        _finite(f) if tested else None,
        (int(df), int(both.df_resid)) if tested else None,
        _finite(p) if tested else None,
        (_rmse(by_layer.resid), _rmse(by_trace.resid)),
        (_mae(by_layer.resid), _mae(by_trace.resid)),
        tuple(_correlation(scores, effects, layers, layer) for layer in sorted(set(layers))),
    )


def _formulas() -> Any:
    try:
        import statsmodels.formula.api as smf
    except ImportError as error:
        raise UsageError(
            "the regression needs statsmodels; install it with pip install 'lm-edit-harness[study]'"
        ) from error
    return smf


def _frame(scores: Sequence[float], effects: Sequence[float], layers: Sequence[int]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame({"y": list(scores), "effect": list(effects), "layer": list(layers)})


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rmse(residuals: Any) -> float:
    return float((residuals**2).mean() ** 0.5)


def _mae(residuals: Any) -> float:
    return float(abs(residuals).mean())


def _correlation(scores: Sequence[float], effects: Sequence[float], layers: Sequence[int], layer: int) -> Correlation:
    from scipy import stats

    mine = [i for i, other in enumerate(layers) if other == layer]
    y, x = [scores[i] for i in mine], [effects[i] for i in mine]
    if max(y) - min(y) < 1e-12 or max(x) - min(x) < 1e-12:
        return Correlation(layer, None, None, len(mine))
    found = stats.pearsonr(x, y)
    return Correlation(layer, float(found.statistic), float(found.pvalue), len(mine))
