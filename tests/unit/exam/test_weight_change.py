"""What is said of an edited matrix, against numbers worked out by hand and by plain linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from harness.errors import NumericalError
from harness.exam import weight_change
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch


def test_numbers_of_diagonal_matrices() -> None:
    weight = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    change = Dense(torch.diag(torch.tensor([0.0, 6.0, 0.0])))
    found = weight_change._one(weight, change)
    assert found["rank"] == 1
    assert found["l1"] == found["frobenius"] == found["spectral"] == pytest.approx(6)
    assert found["relative_frobenius"] == pytest.approx(6 / 21**0.5)
    assert found["norm_ratio"] == pytest.approx((81 / 21) ** 0.5)  # 4, 8, 1 against 4, 2, 1
    assert (found["largest"], found["condition"], found["condition_before"]) == (
        pytest.approx(8), pytest.approx(8), pytest.approx(4),
    )  # fmt: skip
    assert found["relative_spectral"] == pytest.approx(1.5)
    assert found["above"] == 1


def test_low_rank_and_dense_say_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, 30, generator=generator)
    low = LowRank(torch.randn(20, 2, generator=generator), torch.randn(2, 30, generator=generator))
    first, second = weight_change._one(weight, low), weight_change._one(weight, Dense(low.dense()))
    assert first["rank"] == second["rank"] == 2
    for key, value in first.items():
        assert value == pytest.approx(second[key], rel=1e-5), key


def test_large_dense_matrices_are_not_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_change, "_LARGEST_SVD", 4)
    weight = torch.ones(5, 6)
    dense = weight_change._one(weight, Dense(torch.ones(5, 6)))
    assert dense["rank"] is dense["spectral"] is dense["condition"] is None
    assert dense["norm_ratio"] == pytest.approx(2)
    low = weight_change._one(weight, LowRank(torch.ones(5, 1), torch.ones(1, 6)))
    assert (low["rank"], low["condition"]) == (1, None)


def test_biases_have_no_spectrum_of_their_own() -> None:
    found = weight_change._one(torch.tensor([3.0, 4.0]), Dense(torch.tensor([0.0, 5.0])))
    assert (found["frobenius"], found["norm_ratio"]) == (pytest.approx(5), pytest.approx((9 + 81) ** 0.5 / 5))
    assert found["condition"] is None


def test_a_parameter_that_was_zero_has_no_ratio() -> None:
    found = weight_change._one(torch.zeros(2), Dense(torch.tensor([3.0, 4.0])))
    assert (found["frobenius"], found["relative_frobenius"], found["norm_ratio"]) == (pytest.approx(5), None, None)
    matrix = weight_change._one(torch.zeros(2, 2), Dense(torch.eye(2)))
    assert (matrix["relative_spectral"], matrix["condition_before"], matrix["spectral"]) == (None, None, 1.0)


def test_describe_names_every_changed_parameter(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    out, width = lm.matrix(lm.down(0)).shape
    patch = Patch({lm.down(0): LowRank(torch.ones(out, 1), torch.ones(1, width))})
    assert list(weight_change.describe(lm, patch)) == [lm.down(0)]


def test_a_change_that_is_no_number_is_told_by_name(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    out, width = lm.matrix(lm.down(0)).shape
    for change in (
        Dense(torch.full((out, width), math.nan)),
        LowRank(torch.ones(out, 1), torch.full((1, width), math.inf)),
    ):
        with pytest.raises(NumericalError, match=f"the change of '{lm.down(0)}' holds a NaN or an infinity; lower the"):
            weight_change.describe(lm, Patch({lm.down(0): change}))


def test_means_over_isolated_patches_are_missing_where_one_is() -> None:
    rows = [{"w": {"rank": 1.0, "condition": None}}, {"w": {"rank": 2.0, "condition": 3.0}}, {"v": {"rank": 4.0}}]
    assert weight_change.means(rows) == {"v": {"rank": 4.0}, "w": {"rank": 1.5, "condition": None}}
