"""PRUNE against the authors' code (mjy1111/PRUNE at 046c2a6), its formula, and what it must leave alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.prune import Prune, Reduction, pruned, restrain, spectral_norm
from editors.rect import Rect
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import find
from harness.editing.schedule import walk
from harness.errors import NumericalError
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch, patched

REDUCTIONS = get_args(Reduction)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}


@dataclass(frozen=True)
class Nothing(Editor):
    """Makes no edits; its sum is what is given to ``finish``."""

    name = "nothing"

    def edit(self, lm: Any, edits: Any, memory: object = None) -> Patch:
        return Patch()


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low(seed: int, out: int, width: int, rank: int, largest: float) -> LowRank:
    """A low-rank change whose largest singular value is given."""
    change = LowRank(matrix(seed, out, rank), matrix(seed + 1, rank, width))
    return change * (largest / float(change.singular_values()[0]))


# --- the authors' numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("case", ["square_low_sigma", "untouched", "wide_sigma_above_1.5"])
@pytest.mark.parametrize("form", ["dense", "low"])
def test_the_final_matrix_is_theirs(golden, close, case, reduce, precision, form):
    given_, expected = golden.tensors("G_prune/inputs.safetensors"), golden.tensors("G_prune/expected.safetensors")
    assert len(expected) == 3 * len(REDUCTIONS) * len(DTYPES)
    before, after = (given_[f"{case}.{which}"].to(DTYPES[precision]) for which in ("W0", "Wn"))
    delta: Delta = Dense(after - before)
    if form == "low":
        left, values, right = torch.linalg.svd((after - before).double(), full_matrices=False)
        delta = LowRank(left[:, :9] * values[:9], right[:9]).to(before.device, before.dtype)
    change, _, _ = pruned(delta, bound=spectral_norm(before), reduce=reduce)
    assert type(change) is type(delta)
    assert change.dense().dtype == DTYPES[precision]
    close(before + change.dense(), expected[f"{precision}/{case}/{reduce}"], 1e-5, case)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("log", [3.609438, 2.693147, 2, 1]),
        ("log2", [4.321928, 3, 2, 1]),
        ("log1_5", [5.969362, 3.709511, 2, 1]),
        ("log1_2", [10.827469, 5.801784, 2, 1]),
        ("linear", [6, 3, 2, 1]),
    ],
)
def test_the_reductions(reduce, expected):
    """``sigma_max = 2``; base 1.2 enlarges values, which a cap forbids."""
    values = torch.tensor([10.0, 4, 2, 1], dtype=torch.float64)
    assert restrain(values, bound=2.0, reduce=reduce).tolist() == pytest.approx(expected, abs=1e-6)
    assert restrain(values, bound=2.0, reduce=reduce, cap=True).tolist() == pytest.approx(
        [min(old, new) for old, new in zip(values.tolist(), expected, strict=True)], abs=1e-6
    )


def test_a_matrix_by_hand():
    """``W0 = diag(3, 2, 1)`` and a change with singular values 8, 1/2, 0: 8 becomes ``3 + ln(8 / 3)``."""
    weight = torch.diag(torch.tensor([3.0, 2, 1], dtype=torch.float64))
    change = torch.tensor([[0, 4, 4], [0, 4, 4], [0.5, 0, 0]], dtype=torch.float64)
    found, before, after = pruned(Dense(change), bound=spectral_norm(weight))
    assert before.tolist() == pytest.approx([8, 0.5])
    assert after.tolist() == pytest.approx([3 + math.log(8 / 3), 0.5])
    half = (3 + math.log(8 / 3)) / 2
    expected = torch.tensor([[3, half, half], [0, 2 + half, half], [0.5, 0, 1]], dtype=torch.float64)
    assert torch.allclose(weight + found.dense(), expected, atol=1e-12)
    assert float(torch.linalg.cond(weight + change)) == pytest.approx(15.937304, abs=1e-5)
    assert float(torch.linalg.cond(weight + found.dense())) == pytest.approx(8.003103, abs=1e-5)
    assert found.norm() == pytest.approx(4.012107, abs=1e-6)


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.sampled_from(REDUCTIONS), st.floats(0.1, 50), st.floats(0, 8))
def test_no_jump_at_the_bound_and_never_falling(reduce, bound, more):
    at = restrain(
        torch.tensor([bound * (1 - 1e-9), bound, bound * (1 + 1e-9)], dtype=torch.float64), bound=bound, reduce=reduce
    )
    assert at.tolist() == pytest.approx([bound] * 3, rel=1e-6)
    values = torch.tensor([bound * (1 + more), bound * (1 + more) + 1], dtype=torch.float64)
    smaller, larger = restrain(values, bound=bound, reduce=reduce).tolist()
    assert bound <= smaller < larger
    capped = restrain(values, bound=bound, reduce=reduce, cap=True)
    assert bool((capped <= values).all())


@settings(max_examples=40)
@given(st.sampled_from(REDUCTIONS), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31))
def test_below_the_bound_it_is_the_identity(reduce, out, width, rank, seed):
    change = low(seed, out, width, rank, 0.99)
    for delta in (change, Dense(change.dense())):
        assert pruned(delta, bound=1.0, reduce=reduce)[0] is delta


@settings(max_examples=40)
@given(st.sampled_from(REDUCTIONS), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31))
def test_singular_vectors_stay_and_values_are_restrained(reduce, out, width, rank, seed):
    change = low(seed, out, width, rank, 20.0)
    found, before, after = pruned(change, bound=3.0, reduce=reduce)
    left, values, right = torch.linalg.svd(change.dense(), full_matrices=False)
    keep = values > values[0] * max(out, width) * torch.finfo(torch.float32).eps
    expected = (left * torch.where(keep, restrain(values, bound=3.0, reduce=reduce), 0.0)) @ right
    assert torch.allclose(found.dense(), expected, atol=1e-9)
    assert torch.allclose(before, values[keep], atol=1e-9)
    assert torch.allclose(after, restrain(values, bound=3.0, reduce=reduce)[keep], atol=1e-9)
    assert isinstance(found, LowRank)
    assert found.left.shape[1] <= rank


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 1e4]))
def test_spectral_norm_is_the_largest_singular_value(out, width, seed, scale):
    weight = (matrix(seed, out, width) * scale).float()
    assert spectral_norm(weight) == pytest.approx(float(torch.linalg.svdvals(weight.double())[0]), rel=1e-12)


# --- the editor -------------------------------------------------------------------------------------------------------


def test_defect_6_what_is_added_to_the_unedited_weight_is_the_restrained_change_alone(tiny):
    """A peer adds it to the edited weight: twice the change, where nothing is restrained at all."""
    lm = tiny("gpt2")
    name, prune = lm.down(1), Prune(inner=Nothing())
    weight = lm.matrix(name).clone()
    bound = float(torch.linalg.svdvals(weight)[0])
    small, large = (low(0, 32, 64, 3, share * bound).to(lm.device, torch.float32) for share in (0.9, 6.0))
    with patched(lm, prune.finish(lm, Patch({name: small}))):
        assert torch.equal(lm.matrix(name), weight + small.dense())
    finished = prune.finish(lm, Patch({name: large}))
    with patched(lm, finished):
        left, values, right = torch.linalg.svd(large.dense(), full_matrices=False)
        values = torch.where(values < bound, values, bound + (values / bound).log())
        assert torch.allclose(lm.matrix(name), weight + (left * values) @ right, atol=1e-4)
    assert isinstance(finished.weights[name], LowRank)
    assert torch.equal(lm.matrix(name), weight)


def test_each_matrix_has_its_own_bound_and_everything_else_passes(tiny):
    lm = tiny("gpt2")
    bias = Dense(torch.full((32,), 1e3))
    names = [lm.down(layer) for layer in (0, 2)]
    changes = {name: low(i, 32, 64, 2, 30.0).to(lm.device, torch.float32) for i, name in enumerate(names)}
    total = Patch(
        {**changes, f"{lm.arch.down_of(0)}.bias": bias}, {"transformer.h.0": lambda hidden, step: hidden}, memory="mine"
    )
    finished = Prune(inner=Nothing()).finish(lm, total)
    for name in names:
        bound = float(torch.linalg.svdvals(lm.matrix(name))[0])
        largest = float(finished.weights[name].singular_values()[0])
        assert largest == pytest.approx(bound + math.log(30 / bound), rel=1e-5)
    assert finished.weights[f"{lm.arch.down_of(0)}.bias"] is bias
    assert (finished.hooks, finished.memory) == (total.hooks, "mine")


@dataclass(frozen=True)
class Doubles(Nothing):
    """Doubles the sum when it is finished."""

    name = "doubles"

    def finish(self, lm: Any, total: Patch) -> Patch:
        return Patch({name: delta * 2.0 for name, delta in total.weights.items()})


def test_it_restrains_what_the_inner_editor_makes_of_the_sum_also_inside_another_wrapper(tiny):
    lm = tiny("gpt2")
    name, prune = lm.down(1), Prune(inner=Doubles())
    bound, change = spectral_norm(lm.matrix(name)), low(0, 32, 64, 2, 9.0).to(lm.device, torch.float32)
    expected = pruned(change * 2.0, bound=bound)[0].dense()
    for editor in (prune, Rect(inner=prune)):
        assert torch.equal(editor.finish(lm, Patch({name: change})).weights[name].dense(), expected)


def test_an_empty_sum_stays_empty(tiny):
    assert Prune(inner=Nothing()).finish(tiny("gpt2"), Patch()).empty


def test_a_reduction_that_enlarges_is_told_once_and_can_be_capped(tiny, caplog):
    lm = tiny("gpt2")
    bounds = [float(torch.linalg.svdvals(lm.matrix(lm.down(layer)))[0]) for layer in (0, 1)]
    old = [bound * (1.5 + i) for i, bound in enumerate(bounds)]
    new = [bound + math.log(1.5 + i) / math.log(1.2) for i, bound in enumerate(bounds)]
    assert all(after > before for before, after in zip(old, new, strict=True))
    total = Patch({lm.down(i): low(i, 32, 64, 1, old[i]).to(lm.device, torch.float32) for i in (0, 1)})
    with caplog.at_level(logging.WARNING):
        Prune(inner=Nothing(), reduce="log1_2").finish(lm, total)
        worst = max((0, 1), key=lambda i: new[i] - old[i])
        assert [record.getMessage() for record in caplog.records] == [
            f"prune: the reduction 'log1_2' enlarges 2 singular values of the change, at most from {old[worst]:.4g} to "
            f"{new[worst]:.4g} in '{lm.down(worst)}'; set prune.cap=true to leave them as they are"
        ]
        caplog.clear()
        Prune(inner=Nothing(), reduce="linear").finish(lm, total)
        finished = Prune(inner=Nothing(), reduce="log1_2", cap=True).finish(lm, total)
        assert not caplog.records
    for name, delta in total.weights.items():
        assert torch.allclose(finished.weights[name].dense(), delta.dense(), atol=1e-5)


def test_what_has_no_bound_or_is_not_finite_is_named(fresh):
    lm = fresh("gpt2")
    name, prune = lm.down(1), Prune(inner=Nothing())
    bad = LowRank(torch.full((32, 1), math.nan), torch.ones(1, 64))
    with pytest.raises(NumericalError, match=r"the change of 'transformer\.h\.1\.mlp\.c_proj\.weight' holds a NaN"):
        prune.finish(lm, Patch({name: bad}))
    with torch.no_grad():
        lm.parameter(name).zero_()
    with pytest.raises(NumericalError, match=r"'transformer\.h\.1\.mlp\.c_proj\.weight' is zero everywhere"):
        prune.finish(lm, Patch({name: low(0, 32, 64, 1, 1.0)}))


@dataclass(frozen=True)
class Seen(Editor):
    """Edits with a fixed change that depends on the weights it finds, and notes each increment and its memory."""

    name = "seen"
    log: Any = None

    def edit(self, lm: Any, edits: Sequence[Edit], memory: object = None) -> Patch:
        name = lm.down(1)
        change = 3 * torch.outer(lm.matrix(name)[:, len(edits[0].text)], matrix(len(edits[0].text), 64).float())
        self.log.append((change, memory))
        return Patch({name: Dense(change)}, memory=len(self.log))


def test_it_is_never_fed_back(tiny, edits):
    """Increments, and the memory that goes with them, are those of the plain editor; each stop has its own sum."""
    lm, plain, under = tiny("gpt2"), Seen(log=[]), Seen(log=[])
    stops = list(walk(plain, lm, edits, mode="sequential", batch_size=1, at=[1, 2, 3]))
    restrained_stops = list(walk(Prune(inner=under), lm, edits, mode="sequential", batch_size=1, at=[1, 2, 3]))
    assert [memory for _, memory in under.log] == [memory for _, memory in plain.log] == [None, 1, 2]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain.log, under.log, strict=True))
    name = lm.down(1)
    bound = spectral_norm(lm.matrix(name))
    for before, after in zip(stops, restrained_stops, strict=True):
        total, ours = before.patches[0].weights[name], after.patches[0].weights[name]
        assert torch.equal(ours.dense(), pruned(total, bound=bound)[0].dense())
        assert not torch.equal(ours.dense(), total.dense())


def test_labels_say_what_is_not_the_default():
    inner = find("memit")()
    assert Prune(inner=inner).label() == "memit+prune"
    assert Prune(inner=inner, reduce="log1_5").label() == "memit+prune-log1_5"
    assert Prune(inner=inner, cap=True).label() == "memit+prune-cap"
    assert Prune(inner=inner, reduce="linear", cap=True).label() == "memit+prune-linear-cap"
