"""The standard error of a ratio of sums: lm-eval's of a mean, and that of the bootstrap of everything else."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from lm_eval.api.metrics import mean_stderr

from harness.exam.statistics import Ratio, estimate
from harness.reports.standard_error import standard_error

DRAWN = random.Random(3)


def test_of_a_mean_it_is_that_of_lm_eval() -> None:
    numbers = [DRAWN.random() for _ in range(40)]
    values = {str(i): Ratio(number) for i, number in enumerate(numbers)}
    assert standard_error(values) == pytest.approx(mean_stderr(numbers))
    values |= {"nothing": Ratio(3.0, 0.0), "no number": Ratio(math.nan)}
    assert standard_error(values) == pytest.approx(mean_stderr(numbers))


def test_of_too_few_there_is_none() -> None:
    assert standard_error({}) is None
    assert standard_error({"a": Ratio(1.0)}) is None
    assert standard_error({"a": Ratio(1.0, 1.0, "c"), "b": Ratio(0.0, 1.0, "c")}) is None  # one cluster


def test_the_documents_of_a_cluster_are_one() -> None:
    values = {f"{i}/{k}": Ratio(float(k <= i), 1.0, f"c{i}") for i in range(4) for k in range(4)}
    means = [(i + 1) / 4 for i in range(4)]
    assert standard_error(values) == pytest.approx(statistics.stdev(means) / 2)


@pytest.mark.parametrize("kind", ["sums", "strata", "clusters"])
def test_it_is_a_quarter_of_the_bootstraps_interval(kind: str) -> None:
    values = {}
    for i in range(300):
        den = DRAWN.randint(1, 4) if kind == "sums" else 1
        stratum = str(i % 3) if kind == "strata" else None
        cluster = str(i // 3) if kind == "clusters" else None
        values[str(i)] = Ratio(sum(DRAWN.random() ** (1 + i % 3) for _ in range(den)), den, cluster, stratum)
    found = estimate(values, seed=0)
    error = standard_error(values)
    assert error is not None and found.low is not None and found.high is not None
    assert error == pytest.approx((found.high - found.low) / (2 * 1.96), rel=0.1)
