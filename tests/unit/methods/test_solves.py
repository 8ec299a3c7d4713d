"""One solve for many edits, and a system that grows instead of being factored anew, against the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.alphaedit import AlphaEdit
from editors.betaedit import BetaEdit, BetaMemory
from editors.blue import Blue
from editors.core import Core
from editors.eamet import Eamet
from editors.emmet import Emmet
from editors.evoedit import EvoEdit, EvoMemory
from editors.memit import Memit
from editors.pmet import Pmet
from harness.editing.schedule import Begun
from harness.io.tensor_file import read_tensors
from harness.methods import null_space
from harness.methods.keys import AdjointSolver, spread_residuals
from harness.methods.locate_then_edit import Spread, SpreadMemory, ridge_solver
from harness.methods.null_space import NullSpaceMemory, NullSpaceRidge
from harness.methods.rank_updates import RankUpdate
from harness.methods.second_moments import Moment
from harness.patches.delta import LowRank
from harness.patches.patch import Patch
from harness.runs.resume import FORMAT, KIND, StateFile

F, D, R, L2 = 40, 6, 30, 0.5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment() -> Moment:
    keys = draw(100, F, seed=1)
    return Moment(keys.T @ keys / 100, 100)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


# --- many edits, one solve --------------------------------------------------------------------------------------------

INSIDE: dict[str, Any] = {"nullspace_threshold": 0.8}
SHARING = [
    (Memit(lam=3.0), SpreadMemory),
    (Memit(lam=3.0, norm_control=0.2, keep_edits=True), NullSpaceMemory),
    (Pmet(lam=3.0), SpreadMemory),
    (Eamet(lam=3.0), SpreadMemory),
    (Core(lam=3.0), SpreadMemory),
    (Emmet(emmet_lambda=0.1), SpreadMemory),
    (AlphaEdit(l2=L2, **INSIDE), NullSpaceMemory),
    (Blue(l2=L2, **INSIDE), NullSpaceMemory),
    (EvoEdit(l2=L2, **INSIDE), EvoMemory),
    (BetaEdit(lambda1=2.0, lambda2=L2, **INSIDE), BetaMemory),
]


@pytest.mark.parametrize(("method", "memory"), SHARING, ids=[f"{i}-{one.name}" for i, (one, _) in enumerate(SHARING)])
@pytest.mark.parametrize("sizes", [[1] * 9, [2, 1, 3, 1, 2]])
@pytest.mark.parametrize("at_once", [4, 256])
def test_edits_side_by_side_are_written_as_each_alone(
    method: Spread, memory: type[SpreadMemory], sizes: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.methods.keys._AT_ONCE", at_once)
    earlier = draw(5, F, seed=3)
    solve = method.solver(memory(("{}",), {0: moment()}, {0: earlier.T @ earlier}))
    keys, residuals = draw(9, F, seed=5), draw(9, D, seed=6)
    assert isinstance(solve, AdjointSolver)
    together = solve.side_by_side(0, keys, residuals, sizes=sizes)
    batches = zip(torch.split(keys, sizes), torch.split(residuals, sizes), strict=True)
    alone = [solve(0, key, residual) for key, residual in batches]
    assert [delta.shape for delta in together] == [(D, F)] * len(sizes)
    assert max(apart(one.dense(), other.dense()) for one, other in zip(together, alone, strict=True)) < 1e-10
    # All keys of a batch stand in its system: other batches of the same keys are other changes.
    (whole,) = solve.side_by_side(0, keys, residuals, sizes=[9])
    assert apart(torch.stack([delta.dense() for delta in together]).sum(0), whole.dense()) > 1e-4


def test_a_portion_of_keys_is_solved_for_at_once_and_each_change_holds_its_own_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    solved = Moment.solve

    def counted(self: Moment, right: Tensor) -> Tensor:
        asked.append(right.shape[1])
        return solved(self, right)

    monkeypatch.setattr(Moment, "solve", counted)
    solve = ridge_solver(SpreadMemory(("{}",), {0: moment()}), lam=3.0)
    assert isinstance(solve, AdjointSolver)
    changes = solve.side_by_side(0, draw(600, F), draw(600, D), sizes=[1] * 600)
    assert asked == [256, 256, 88]
    for change in changes:
        assert isinstance(change, LowRank)
        assert change.left.untyped_storage().nbytes() == 8 * D
        assert change.right.untyped_storage().nbytes() == 8 * F
    asked.clear()
    solve.side_by_side(0, draw(400, F), draw(400, D), sizes=[300, 100])
    assert asked == [300, 100]


def test_isolated_edits_of_a_model_share_their_solves(tiny: Any, edits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = tiny("gpt2"), []
    solved = Moment.solve
    monkeypatch.setattr(Moment, "solve", lambda self, right: asked.append(right.shape[1]) or solved(self, right))
    method = Memit(layers=(0, 1), cov_tokens=4000, v_steps=3, contexts=("{}",))
    together = method.edit_each(lm, edits)
    assert asked == [len(edits)] * 2
    alone = [method.edit(lm, [edit]) for edit in edits]
    for one, other in zip(together, alone, strict=True):
        for name, delta in other.weights.items():
            assert apart(one.weights[name].dense(), delta.dense()) < 1e-4


def test_a_solver_of_one_batch_is_asked_for_each(tiny: Any, edits: Any) -> None:
    lm, asked = tiny("gpt2"), []

    def solve(layer: int, key: Tensor, residual: Tensor) -> LowRank:
        asked.append((layer, len(key)))
        return LowRank(residual.T, torch.zeros_like(key))

    spread_residuals(
        lm,
        [edits[:2], edits[2:]],
        targets=torch.zeros(len(edits), 32),
        layers=[0, 1],
        templates=("{}",),
        fact_token="subject_last",
        solve=solve,
    )
    assert asked == [(0, 2), (0, len(edits) - 2), (1, 2), (1, len(edits) - 2)]


# --- a system that grows ----------------------------------------------------------------------------------------------


def test_a_system_that_grew_is_solved_as_one_that_was_there_from_the_first() -> None:
    rows, right = draw(11, R, seed=2), draw(R, 3, seed=4)
    update = RankUpdate.empty(rows)
    assert torch.equal(update.solve(right), right)
    for portion in torch.split(rows, [1, 4, 1, 5]):
        before, update = update, update.grown(portion)
        assert torch.equal(update.lower[: len(before.rows), : len(before.rows)], before.lower)
    dense = torch.linalg.solve(torch.eye(R, dtype=torch.float64) + rows.T @ rows, right)
    found = update.solve(right)
    assert apart(found, dense) < 1e-12
    assert bool(update.fits(found, right, 1e-12))
    assert not bool(update.fits(found + 1e-9, right, 1e-12))
    assert not bool(update.fits(found * torch.nan, right, 1e-12))
    assert bool(update.fits(torch.zeros_like(right), torch.zeros_like(right), 1e-12))


def basis() -> Tensor:
    q: Tensor = torch.linalg.qr(draw(F, R, seed=7)).Q
    return q


def ridge(memory: NullSpaceMemory, leaks: Tensor | None = None) -> NullSpaceRidge:
    return NullSpaceRidge(memory, lambda _layer: basis(), L2, None if leaks is None else lambda _layer: leaks)


def nothing() -> NullSpaceMemory:
    return NullSpaceMemory(("{}",), {})


def operations(scale: float = 1.0) -> list[Tensor]:
    """The keys of nine operations of one to three edits, eighteen in all; after the sixth, ten have been summed up."""
    return [scale * draw(1 + i % 3, F, seed=20 + i) for i in range(9)]


@pytest.mark.parametrize("leaking", [False, True])
def test_every_operation_is_solved_against_all_keys_before_it(leaking: bool) -> None:
    """``(Q^T (K K^T + M + leaks) Q + l2 I)^-1``, from nothing each time, through growth and sums of keys."""
    leaks = moment().matrix if leaking else None
    memory, q, seen = nothing(), basis(), torch.zeros(F, F, dtype=torch.float64)
    summed = []
    for keys in operations():
        residual = draw(len(keys), D, seed=8)
        memory = ridge(memory, leaks).caught_up([0])
        found = ridge(memory, leaks).solver()(0, keys, residual).dense()
        kept = seen + keys.T @ keys + (0.0 if leaks is None else leaks)
        inner = q.T @ kept @ q + L2 * torch.eye(R, dtype=torch.float64)
        assert apart(found, residual.T @ (q @ torch.linalg.solve(inner, q.T @ keys.T)).T) < 1e-10
        seen += keys.T @ keys
        memory = memory.with_keys({0: keys})
        total = memory.total(0)
        assert total is not None and apart(total, seen) < 1e-12
        summed.append(0 in memory.sums)
        assert len(memory.keys.get(0, ())) <= F // 4
    assert summed[0] is False and summed[-1] is True


def test_a_system_is_factored_once_for_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    factor = torch.linalg.cholesky

    def counted(matrix: Tensor) -> Tensor:
        made.append(len(matrix))
        return factor(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky", counted)
    memory = nothing()
    for keys in operations():
        memory = ridge(memory).caught_up([0])
        ridge(memory).solver()(0, keys, draw(len(keys), D))
        memory = memory.with_keys({0: keys})
    assert made == [R]
    assert memory.factors[0].shape == (R, R)


@pytest.mark.parametrize("error", [1e-6, float("nan")])
def test_where_an_update_does_not_solve_all_is_factored_anew(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, key, residual = nothing().with_keys({0: draw(6, F)}), draw(1, F, seed=30), draw(1, D, seed=8)
    right = ridge(memory).solver()(0, key, residual).right
    solved = RankUpdate.solve
    monkeypatch.setattr(RankUpdate, "solve", lambda self, right: solved(self, right) + error)
    assert apart(ridge(memory).solver()(0, key, residual).right, right) < 1e-12
    monkeypatch.setattr(RankUpdate, "fits", lambda *_: torch.tensor(True))
    assert not apart(ridge(memory).solver()(0, key, residual).right, right) < 1e-9


@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_long_and_short_keys_are_solved_for_without_factoring_anew(scale: float) -> None:
    memory = nothing().with_keys({0: scale * draw(6, F)})
    key = scale * draw(6, F)[:1]
    update = ridge(memory).caught_up([0]).updates[0]
    right = basis().T @ key.T / L2**0.5
    assert bool(update.fits(update.solve(right), right, null_space._TOLERANCE))


@pytest.mark.parametrize("leaking", [False, True])
def test_a_memory_that_was_kept_at_any_operation_goes_on_bitwise(leaking: bool, tmp_path: Path) -> None:
    leaks = moment().matrix if leaking else None

    def after(memory: NullSpaceMemory, keys: Tensor) -> tuple[Tensor, NullSpaceMemory]:
        memory = ridge(memory, leaks).caught_up([0])
        return ridge(memory, leaks).solver()(0, keys, draw(len(keys), D)).right, memory.with_keys({0: keys})

    going = killed = nothing()
    for i, keys in enumerate(operations()):
        state = StateFile(tmp_path / f"{i}.state", "key", every=0)
        state.keep(Begun(i, Patch(memory=killed), range(i)))
        again = state.read()
        assert again is not None and isinstance(again.total.memory, NullSpaceMemory)
        assert again.total.memory.factors == {}
        one, going = after(going, keys)
        other, killed = after(again.total.memory, keys)
        assert torch.equal(one, other)


def solved(l2: float, memory: NullSpaceMemory) -> Tensor:
    method = AlphaEdit(l2=l2, **INSIDE)
    known = method._ridge(memory).caught_up([0])
    return method.solver(known)(0, draw(2, F, seed=9), draw(2, D)).dense()


def test_other_hyperparameters_do_not_take_what_was_made_with_the_first() -> None:
    plain = NullSpaceMemory(("{}",), {0: moment()}, keys={0: draw(4, F)})
    taught = AlphaEdit(l2=L2, **INSIDE)._ridge(plain).caught_up([0])
    assert taught.updates
    assert torch.equal(solved(2.0, taught), solved(2.0, plain))
    assert apart(solved(2.0, taught), solved(L2, taught)) > 1e-3


def test_what_is_kept_of_few_keys_is_small(tmp_path: Path) -> None:
    """Their sum has ``f^2`` numbers, of one edit as of ten thousand."""
    memory = ridge(nothing().with_keys({0: draw(1, F)})).caught_up([0]).with_keys({0: draw(1, F)})
    state = StateFile(tmp_path / "x.state", "key", every=0)
    state.keep(Begun(2, Patch(memory=memory), range(2)))
    _, tensors = read_tensors(state.path, KIND, FORMAT)
    assert sum(tensor.numel() for tensor in tensors.values()) == 2 * F + R + 1
