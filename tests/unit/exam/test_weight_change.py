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
from harness.patches.patch import Patch, patched


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
        assert value == (None if second[key] is None else pytest.approx(second[key], rel=1e-5)), key


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


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_what_rounding_loses_of_a_change_is_told(dtype: torch.dtype, ulp: float) -> None:
    """Between 1 and 2 numbers of the type are one ``ulp`` apart, and what lies between two goes to the nearer one."""
    weight = torch.ones(4, 6, dtype=dtype)
    for steps, share in ((0.25, 1.0), (0.75, 1 / 3), (1.0, 0.0), (1.25, 1 / 5), (2.0, 0.0)):
        for change in (
            Dense(torch.full((4, 6), steps * ulp)),
            LowRank(torch.full((4, 1), steps), torch.full((1, 6), ulp)),
        ):
            assert weight_change._one(weight, change)["lost_in_rounding"] == pytest.approx(share, abs=1e-12), steps
    assert weight_change._one(weight, Dense(torch.zeros(4, 6)))["lost_in_rounding"] is None
    for whole in (torch.float32, torch.float64):
        assert weight_change._one(weight.to(whole), Dense(torch.ones(4, 6)))["lost_in_rounding"] is None


def test_what_is_lost_of_all_matrices_is_weighed_by_their_changes() -> None:
    """Errors of 3 and 8 against changes of 6 and 10: their roots of squares, ``sqrt(73 / 136)``."""
    row = {"a": {"frobenius": 6.0, "lost_in_rounding": 0.5}, "b": {"frobenius": 10.0, "lost_in_rounding": 0.8}}
    assert weight_change.lost_in_all([row]) == pytest.approx((73 / 136) ** 0.5)
    still = {**row, "c": {"frobenius": 0.0, "lost_in_rounding": None}}
    assert weight_change.lost_in_all([still]) == weight_change.lost_in_all([row])
    other = {"a": {"frobenius": 6.0, "lost_in_rounding": 0.25}}
    assert weight_change.lost_in_all([row, other]) == pytest.approx(((73 / 136) ** 0.5 + 0.25) / 2)
    none = {"a": {"frobenius": 6.0, "lost_in_rounding": None}}
    assert weight_change.lost_in_all([none]) is weight_change.lost_in_all([]) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_said_to_be_lost_is_what_a_held_patch_lacks(fresh: Callable[..., LM], dtype: torch.dtype) -> None:
    lm = fresh("gpt2", dtype=dtype)
    name, generator = lm.down(1), torch.Generator().manual_seed(3)
    left = 1e-2 * torch.randn(lm.arch.width, 2, generator=generator)
    change = LowRank(left, torch.randn(2, lm.arch.inner, generator=generator))
    wanted = lm.matrix(name).double() + change.dense().double()
    with patched(lm, Patch({name: change})):
        lacks = float((lm.matrix(name).double() - wanted).norm() / change.dense().double().norm())
    assert weight_change.describe(lm, Patch({name: change}))[name]["lost_in_rounding"] == pytest.approx(lacks, rel=1e-3)
    assert 1e-4 < lacks < 0.1


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
