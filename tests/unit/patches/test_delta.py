"""The algebra of weight changes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.prune import spectral_norm
from harness.methods.second_moments import CachedMoment, Manifest, Moment, _read_moment, _write_moment
from harness.patches.delta import Delta, Dense, LowRank, double

sizes = st.integers(1, 6)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Delta, Delta]:
    """Two changes of one shape, each low rank or dense."""
    out, width = draw(sizes), draw(sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def one() -> Delta:
        if draw(st.booleans()):
            return Dense(torch.randn(out, width, generator=generator, dtype=torch.float64))
        rank = draw(st.integers(0, 4))
        left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
        return LowRank(left, torch.randn(rank, width, generator=generator, dtype=torch.float64))

    return one(), one()


@settings(max_examples=60)
@given(pairs(), st.floats(-4, 4))
def test_sum_and_product_are_those_of_the_matrices(pair, factor):
    a, b = pair
    assert torch.allclose((a + b).dense(), a.dense() + b.dense())
    assert torch.allclose((a + b).dense(), (b + a).dense())
    assert torch.allclose(((a + b) * factor).dense(), (a * factor + b * factor).dense())
    assert torch.allclose((a + a * -1.0).dense(), torch.zeros(a.shape, dtype=torch.float64), atol=1e-12)
    assert a.shape == a.dense().shape
    low = isinstance(a, LowRank) and isinstance(b, LowRank)
    smaller = sum(t.numel() for change in pair for t in change.tensors().values()) < a.shape.numel()
    assert isinstance(a + b, LowRank) == (low and smaller)


@settings(max_examples=60)
@given(pairs())
def test_singular_values_norm_and_rank_are_those_of_the_matrix(pair):
    for change in pair:
        full = torch.linalg.svdvals(change.dense())
        ours = change.singular_values()
        assert torch.allclose(ours, full[: len(ours)], atol=1e-9)
        assert float(full[len(ours) :].sum()) == pytest.approx(0, abs=1e-9)
        assert change.norm() == pytest.approx(float(change.dense().norm()), abs=1e-9)
        assert change.rank() == int(torch.linalg.matrix_rank(change.dense(), rtol=1e-6))


@settings(max_examples=60)
@given(pairs())
def test_svd_gives_orthonormal_factors_of_the_matrix_as_small_as_its_low_rank(pair):
    for change in pair:
        left, values, right = change.svd()
        assert torch.allclose((left * values) @ right, change.dense(), atol=1e-9)
        assert torch.allclose(values, change.singular_values(), atol=1e-9)
        eye = torch.eye(len(values), dtype=torch.float64)
        assert torch.allclose(left.T @ left, eye, atol=1e-9)
        assert torch.allclose(right @ right.T, eye, atol=1e-9)
        bound = change.left.shape[1] if isinstance(change, LowRank) else min(change.shape)
        assert len(values) == min(bound, *change.shape)


def test_svd_is_in_double_precision_whatever_the_change_is_kept_in():
    """The values 1 and 1e-6 of a change kept in float32: in float32 arithmetic the small one would be off by 10 %."""
    one, other = torch.full((40, 1), 40**-0.5), torch.tensor([[1.0, -1.0] * 20]).T * 40**-0.5
    change = LowRank(torch.cat([one, one * 1e-6 + other * 1e-6], 1), torch.cat([one.T, other.T]))
    expected = torch.linalg.svdvals(change.left.double() @ change.right.double())[:2]
    assert torch.allclose(change.svd()[1], expected, rtol=1e-9)
    assert torch.allclose(change.svd()[1], change.singular_values(), rtol=1e-9)


def test_a_sum_is_kept_as_factors_only_while_they_are_smaller_than_the_matrix():
    """Factors of ``[6, 3]`` hold nine numbers a rank; two ranks hold as many numbers as the matrix."""
    one = LowRank(torch.arange(6.0).reshape(6, 1), torch.tensor([[1.0, 2.0, 3.0]]))
    assert isinstance(one + LowRank(one.left[:, :0], one.right[:0]), LowRank)
    assert isinstance(one + one, Dense)
    wide = LowRank(torch.ones(6, 1), torch.ones(1, 7))
    assert isinstance((wide + wide) + wide, LowRank)  # 39 numbers against 42
    assert isinstance(wide + wide + wide + wide, Dense)  # 52
    assert torch.equal((one + one).dense(), 2 * one.dense())


def test_a_long_run_of_edits_grows_no_larger_than_the_matrix():
    total, expected = LowRank(torch.zeros(20, 0), torch.zeros(0, 30)), torch.zeros(20, 30, dtype=torch.float64)
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        one = LowRank(torch.randn(20, 1, generator=generator), torch.randn(1, 30, generator=generator))
        total, expected = total + one, expected + one.dense().double()
        assert sum(tensor.numel() for tensor in total.tensors().values()) <= 20 * 30
    assert torch.allclose(total.dense().double(), expected, atol=1e-4)


def test_a_bias_is_a_change_too():
    bias = Dense(torch.tensor([3.0, 4.0]))
    assert bias.norm() == pytest.approx(5.0)
    assert (bias + bias).dense().tolist() == [6.0, 8.0]


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="different shapes"):
        Dense(torch.zeros(2, 3)) + Dense(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"left \[out, r\] and right \[r, in\]"):
        LowRank(torch.zeros(2, 3), torch.zeros(2, 3))


# --- devices without float64 ------------------------------------------------------------------------------------------


class Apple(Tensor):
    """A tensor on the processor that behaves as one on Apple's GPUs: there is no float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        if func is Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(Tensor)
        if func == Tensor.device.__get__:  # a new wrapper each time
            return torch.device("mps")
        return super().__torch_function__(func, types, args, kwargs or {})


def apple(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).as_subclass(Apple)


def test_a_device_without_float64_leaves_it_to_the_processor():
    left, right, weight = apple(6, 2), apple(2, 5, seed=1), apple(6, 5, seed=2)
    with pytest.raises(TypeError, match="float64"):
        left.double()
    plain = [tensor.cpu() for tensor in (left, right, weight)]
    assert torch.equal(double(left), plain[0].double())
    for change, same in ((LowRank(left, right), LowRank(*plain[:2])), (Dense(weight), Dense(plain[2]))):
        assert torch.equal(change.singular_values(), same.singular_values())
        for ours, theirs in zip(change.svd(), same.svd(), strict=True):
            assert torch.equal(ours, theirs)
    assert Dense(apple(4)).norm() == pytest.approx(float(apple(4).cpu().norm()))
    assert spectral_norm(weight) == spectral_norm(plain[2])


def test_a_moment_that_is_read_again_stays_on_the_processor_where_the_device_has_no_float64(tmp_path):
    manifest = Manifest("m", "t", "h.0", "mini", 9, 8, "float64")
    made = _write_moment(tmp_path, manifest, Moment(torch.eye(3, dtype=torch.float64), 9))
    found = _read_moment(
        tmp_path / f"{manifest.key}.safetensors", CachedMoment(tmp_path, manifest, 9), torch.device("mps")
    )
    assert torch.equal(found.matrix, made.matrix)
    assert (found.matrix.dtype, found.matrix.device.type) == (torch.float64, "cpu")


def test_float64_is_made_in_one_place_or_of_what_is_on_the_processor():
    root, found = Path(__file__).parents[3], []
    for path in sorted([*(root / "harness").rglob("*.py"), *(root / "editors").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "double":
                of = ast.unparse(node.func.value)
                found += [] if of.endswith(".cpu()") else [f"{path.name}: {of}"]
    assert found == ["delta.py: tensor.cpu() if tensor.device.type == 'mps' else tensor"]
