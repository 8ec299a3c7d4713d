"""What EMMET, AlphaEdit, MEMIT's norm control, NAS and ENCORE solve, computed another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.alphaedit import AlphaEdit
from editors.blue import Blue
from editors.emmet import Emmet
from editors.encore import Encore
from editors.evoedit import EvoEdit, without_directions
from editors.ft import FineTuning
from editors.lyaplock import LyapLock, preservation_loss
from editors.memit import Memit
from editors.nas import Anchored, NormAnchorScaling
from editors.nse import Nse, busiest_neurons
from editors.r_rome import RRome
from editors.rome import Rome
from editors.sphere import Sphere, principal_directions
from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.errors import ModelError, NumericalError, UsageError
from harness.io.plain_text import read_documents
from harness.methods import keys as facts
from harness.methods.keys import Unedited
from harness.methods.locate_then_edit import SpreadMemory, inverse_of_preserved, require_additive, ridge_adjoint
from harness.methods.null_space import null_space, null_space_memory
from harness.methods.rank_one import update_direction
from harness.methods.second_moments import Moment, accumulate_moments
from harness.methods.value import anchor_norm, optimise
from harness.models.activations import read_activations
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

F, D, N = 24, 8, 3
QUICK: dict[str, Any] = {"cov_tokens": 4000, "v_steps": 8, "v_weight_decay": 1e-3, "clamp": 4.0}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed: int = 1, tokens: int = 100) -> Moment:
    keys = draw(tokens, F, seed=seed)
    return Moment(keys.T @ keys / tokens, tokens)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def kept(known: Moment, earlier: Tensor | None = None) -> SpreadMemory:
    return SpreadMemory(("{}",), {0: known}, {} if earlier is None else {0: earlier})


def change(method: Memit | Emmet | AlphaEdit, known: SpreadMemory, keys: Tensor, residual: Tensor) -> Tensor:
    """The change ``[D, F]`` of layer 0."""
    found = method.solver(known)(0, keys, residual)
    assert isinstance(found, LowRank) and found.left.shape == (D, len(keys))
    return found.dense()


# EMMET


def test_emmet_of_one_edit_is_romes_least_squares_solution():
    """``dW = r u^T / (k . u)`` with ``u = C^-1 k`` (Meng et al. 2022, equation 2), whatever the weight of C."""
    key, residual = draw(1, F), draw(1, D, seed=2)
    u = update_direction(key, moment())[0]
    rome = torch.outer(residual[0], u) / (key[0] @ u)
    for lam in (1.0, 1000.0):
        ours = change(Emmet(lam=lam, emmet_lambda=0.1), kept(moment()), key, residual)
        assert torch.allclose(ours, rome, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("relaxed", "norm"), [(0.0, 0.0), (0.1, 0.0), (0.1, 2.0)])
def test_emmet_of_a_batch_is_the_solution_of_its_lagrangian(relaxed, norm):
    """``min tr(D G D^T)`` under ``D K = R``: one linear system in D and the multipliers."""
    keys, residual, lam = draw(N, F), draw(N, D, seed=2), 3.0
    kept_part = lam * moment().matrix + norm * eye(F)
    system = torch.cat([torch.cat([kept_part, keys.T], 1), torch.cat([keys, -relaxed * eye(N)], 1)])
    solution = torch.linalg.solve(system, torch.cat([torch.zeros(F, D, dtype=torch.float64), residual]))[:F].T
    ours = change(Emmet(lam=lam, emmet_lambda=relaxed, norm_control=norm), kept(moment()), keys, residual)
    assert torch.allclose(ours, solution, rtol=1e-9, atol=1e-11)


def test_emmet_without_relaxation_gives_every_key_its_value():
    keys, residual = draw(N, F), draw(N, D, seed=2)
    exact = change(Emmet(emmet_lambda=0.0), kept(moment()), keys, residual) @ keys.T
    assert torch.allclose(exact, residual.T, rtol=1e-10, atol=1e-12)
    relaxed = change(Emmet(emmet_lambda=0.1), kept(moment()), keys, residual) @ keys.T
    assert not torch.allclose(relaxed, residual.T, rtol=1e-3)


def test_emmet_refuses_dependent_keys_without_relaxation():
    keys, residual = torch.cat([draw(2, F), draw(2, F)[:1]]), draw(N, D, seed=2)
    with pytest.raises(
        NumericalError, match=r"keys of 3 edits at layer 0 are linearly dependent; raise .*emmet_lambda"
    ):
        change(Emmet(emmet_lambda=0.0), kept(moment()), keys, residual)
    assert bool(torch.isfinite(change(Emmet(emmet_lambda=0.1), kept(moment()), keys, residual)).all())


def hidden(lm: LM, edits: list[Edit], block: int, patch: Patch) -> Tensor:
    """What leaves a block at the subject's last token, under a patch."""
    rows = [row for edit in edits for row in facts.prompt_rows(lm, edit, ("{}",), fact_token="subject_last")]
    name = lm.arch.block(block)
    with patched(lm, patch):
        return read_activations(lm, rows, outputs=[name]).outputs[name]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_emmet_on_a_model_puts_the_optimised_state_there(tiny, edits, family):
    """One context, no relaxation: after the edit the block's output is the optimised one."""
    lm = tiny(family)
    method = Emmet(layers=(1,), contexts=("{}",), emmet_lambda=0.0, **QUICK)
    values = optimise(lm, edits, ("{}",), objective=method.objective(1))
    patch = method.edit(lm, edits)
    assert torch.allclose(hidden(lm, edits, 1, patch), values.value, atol=1e-4)
    assert not torch.allclose(hidden(lm, edits, 1, Patch()), values.value, atol=1e-1)


# AlphaEdit


def test_alphaedit_with_every_direction_free_is_its_ridge_form():
    keys, residual, earlier = draw(N, F), draw(N, D, seed=2), draw(F, F, seed=3)
    earlier = earlier @ earlier.T
    ours = change(AlphaEdit(nullspace_threshold=1e9, l2=2.0), kept(moment(), earlier), keys, residual)
    ridge = residual.T @ keys @ torch.linalg.inv(keys.T @ keys + earlier + 2.0 * eye(F))
    assert torch.allclose(ours, ridge, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("remembered", [False, True])
def test_alphaedit_solves_the_authors_system_and_stays_in_the_null_space(remembered):
    keys, residual, seen, l2 = draw(N, F), draw(N, D, seed=2), draw(5, F, seed=3), 0.7
    earlier = seen.T @ seen if remembered else None
    values, vectors = torch.linalg.eigh(moment().matrix)
    threshold = float(values[9:11].mean())
    p = vectors[:, :10] @ vectors[:, :10].T
    past = seen.T @ seen if remembered else torch.zeros(F, F, dtype=torch.float64)
    system = p @ (keys.T @ keys + past) + l2 * eye(F)
    plain = torch.linalg.solve(system, p @ keys.T @ residual).T
    ours = change(AlphaEdit(nullspace_threshold=threshold, l2=l2), kept(moment(), earlier), keys, residual)
    assert torch.allclose(ours, plain, rtol=1e-9, atol=1e-11)
    assert torch.allclose(ours @ vectors[:, 10:], torch.zeros(D, F - 10, dtype=torch.float64), atol=1e-12)


def test_a_projector_without_a_direction_names_a_threshold_that_has_some():
    with pytest.raises(UsageError, match=r"no eigenvalue .* is below 1e-09") as caught:
        null_space(moment(), 1e-9)
    cure = float(str(caught.value).rpartition("=")[2])
    assert F // 8 <= null_space(moment(), cure).shape[1] <= F // 2


def test_defect_3_a_projector_belongs_to_one_model_and_its_covariance(fresh, edits):
    """Two models of one shape in one process, edited one after the other with one editor (pitfalls 4.2, defect 3)."""

    def made(seed: int) -> tuple[LM, dict[int, Moment]]:
        lm = fresh("gpt2", seed)
        return lm, accumulate_moments(lm, [0], read_documents(lm.text), tokens=4000)

    (one, first), (two, second) = made(1), made(2)
    threshold = float(torch.stack([m[0].spectrum[0][40] for m in (first, second)]).mean())
    method = AlphaEdit(layers=(0,), nullspace_threshold=threshold, l2=0.1, **QUICK)
    alone = method.edit(two, edits, Unedited(("{}",), second)).weights[two.down(0)].dense()
    method.edit(one, edits, Unedited(("{}",), first))
    after = method.edit(two, edits, Unedited(("{}",), made(2)[1])).weights[two.down(0)].dense()
    assert torch.equal(alone, after)
    foreign = method.edit(two, edits, Unedited(("{}",), first)).weights[two.down(0)].dense()
    assert float((foreign - alone).norm()) > 0.1 * float(alone.norm())
    values, vectors = second[0].spectrum
    used = vectors[:, values >= threshold].to(alone)
    assert float((alone @ used).norm()) < 1e-4 * float(alone.norm()) < float((foreign @ used).norm())


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt"])
@pytest.mark.parametrize(
    "method", [AlphaEdit(nullspace_threshold=1e9, l2=0.1, **QUICK), Memit(keep_edits=True, **QUICK)]
)
def test_the_memory_holds_the_keys_of_the_fully_edited_model(tiny, edits, method, family):
    """They are taken while layers are written; read again after all are, they are the same."""
    lm = tiny(family)
    method = replace(method, layers=(0, 1))
    first = method.edit(lm, edits[:2])
    with patched(lm, first):
        second = method.edit(lm, edits[2:], first.memory)
    for layer in (0, 1):
        total = torch.zeros(64, 64, dtype=torch.float64)
        for portion, patch in ((edits[:2], first), (edits[2:], first + second)):
            with patched(lm, patch):
                key, _ = facts.read_keys(
                    lm, portion, layer, templates=first.memory.contexts, fact_token="subject_last", kind="memit"
                )
            total += key.double().T @ key.double()
        memory = second.memory
        assert torch.allclose(memory.total(layer), total, rtol=1e-4, atol=1e-6)
    assert memory.moments is not None and set(memory.sums) | set(getattr(memory, "keys", ())) == {0, 1}


def test_isolated_edits_are_no_history(tiny, edits):
    method = AlphaEdit(nullspace_threshold=1e9, l2=0.1, **QUICK)
    memories = [patch.memory for patch in method.edit_each(tiny("gpt2"), edits)]
    assert [null_space_memory(memory).total(0) for memory in memories] == [None, None, None]


# MEMIT's norm control, and ENCORE


@pytest.mark.parametrize(("norm", "keep"), [(0.0, False), (2.5, False), (0.0, True), (2.5, True)])
def test_memit_with_norm_control_and_earlier_edits_is_the_dense_formula(norm, keep):
    """``R K^T (lam C + lam_n I + K K^T + sum K_p K_p^T)^-1`` (arXiv 2502.01636)."""
    keys, residual, seen, lam = draw(N, F), draw(N, D, seed=2), draw(5, F, seed=3), 4.0
    ours = change(Memit(lam=lam, norm_control=norm, keep_edits=keep), kept(moment(), seen.T @ seen), keys, residual)
    whole = lam * moment().matrix + norm * eye(F) + keys.T @ keys + (seen.T @ seen if keep else 0.0)
    assert torch.allclose(ours, residual.T @ keys @ torch.linalg.inv(whole), rtol=1e-9, atol=1e-11)


def test_memit_without_them_is_bitwise_what_it_was():
    """One factor of C alone, then Woodbury, step by step."""
    keys, lam = draw(N, F), 7.0
    whitened = torch.cholesky_solve(keys.T, torch.linalg.cholesky(moment().matrix)) / lam
    plain = torch.linalg.solve(eye(N) + keys @ whitened, whitened.T)
    found = Memit(lam=lam).solver(kept(moment()))(0, keys, draw(N, D))
    assert isinstance(found, LowRank)
    right = found.right
    assert torch.equal(right, plain)
    assert torch.equal(right, ridge_adjoint(moment(), keys, lam).T)


def test_what_cannot_be_kept_is_an_error_with_a_cure():
    flat = Moment(torch.zeros(F, F, dtype=torch.float64), 100, name="layer 3")
    assert torch.allclose(inverse_of_preserved(flat, lam=1.0, norm_control=2.0)(draw(F, 1)), draw(F, 1) / 2.0)
    with pytest.raises(NumericalError, match=r"layer 3 .* raise either"):
        inverse_of_preserved(flat, lam=1.0, norm_control=0.0, earlier=torch.zeros(F, F, dtype=torch.float64))
    with pytest.raises(NumericalError, match="NaN"):
        inverse_of_preserved(Moment(torch.full((F, F), torch.nan), 100), lam=1.0, norm_control=2.0)


def test_encore_is_memit_with_its_three_settings(tiny, edits):
    lm = tiny("gpt2")
    inner = Memit(layers=(0, 1), lam=1.0, **QUICK)
    wrapped = Encore(inner, lam_n=0.05)
    by_hand = replace(inner, v_stop="argmax", norm_control=0.05, keep_edits=True)
    assert wrapped.inner == by_hand
    assert wrapped.hyperparameters() == {**by_hand.hyperparameters(), "encore.lam_n": 0.05, "encore.prob_cutoff": None}
    first, plain = wrapped.edit(lm, edits[:2]), inner.edit(lm, edits[:2])
    with patched(lm, first):
        nothing = replace(first.memory, sums={}, keys={}, updates={}, factors={})
        second, forgetful = (wrapped.edit(lm, edits[2:], memory) for memory in (first.memory, nothing))
        again = by_hand.edit(lm, edits[2:], first.memory)
    name = lm.down(1)
    assert torch.equal(second.weights[name].dense(), again.weights[name].dense())
    assert not torch.equal(second.weights[name].dense(), forgetful.weights[name].dense())
    assert first.weights[name].norm() < plain.weights[name].norm()
    assert wrapped.label() == "memit+encore"


def test_encore_refuses_what_has_no_norm_control():
    with pytest.raises(
        UsageError, match=r"encore cannot wrap rome, which has no keep_edits and no norm_control; .* memit"
    ):
        Encore(Rome())


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("memit+encore", {"norm_control": 50.0}, r"encore sets norm_control of memit to 10\.0, not 50\.0; leave out"),
        ("memit+encore", {"v_stop": "never"}, r"encore sets v_stop of memit to argmax, not never; leave out v_stop"),
        ("rome+nas", {"v_anchor": 5.0}, r"nas sets v_anchor of rome to None, not 5\.0; leave out v_anchor"),
    ],
)
def test_a_setting_that_a_wrapper_would_overwrite_is_refused(tiny, name, setting, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        compose(name).build(tiny("gpt2"), setting, seed=0)
    assert compose("memit+encore+nas").build(tiny("gpt2"), {"anchor": 2.0}, seed=0).label() == "memit+encore+nas"


# NAS


def norms(lm: LM, edits: list[Edit], method: Any, patch: Patch, anchor: float | None) -> Tensor:
    """The norm of what each edit writes at the last layer, feed-forward output plus change."""
    last = method.edited_layers(lm)[-1]
    values = optimise(
        lm, edits, patch.memory.inner.contexts, objective=replace(method, v_anchor=anchor).objective(last)
    )
    return (values.value - values.start + values.written).norm(dim=1)


@pytest.mark.parametrize("method", [Memit(lam=1.0, **QUICK), Rome(**QUICK), RRome(**QUICK)])
def test_nas_scales_values_to_the_norm_that_the_first_edits_have(tiny, edits, method):
    lm = tiny("gpt2")
    wrapped = NormAnchorScaling(method)
    first = wrapped.edit(lm, edits[:2])
    assert isinstance(first.memory, Anchored)
    last = method.edited_layers(lm)[-1]
    values = optimise(lm, edits[:2], first.memory.inner.contexts, objective=method.objective(last))
    assert first.memory.anchor == pytest.approx(anchor_norm(values), rel=1e-6)
    found = norms(lm, edits[:2], method, first, first.memory.anchor)
    assert torch.allclose(found, torch.full_like(found, first.memory.anchor), rtol=1e-4)
    with patched(lm, first):
        second = wrapped.edit(lm, edits[2:], first.memory)
        by_hand = replace(method, v_anchor=first.memory.anchor).edit(lm, edits[2:], first.memory.inner)
        free = method.edit(lm, edits[2:], first.memory.inner)
    assert second.memory.anchor == first.memory.anchor
    name = lm.down(last)
    assert torch.equal(second.weights[name].dense(), by_hand.weights[name].dense())
    assert not torch.allclose(second.weights[name].dense(), free.weights[name].dense(), rtol=1e-2)


def test_nas_with_a_given_anchor_takes_it_and_a_lone_edit_is_left_alone(tiny, edits):
    lm, method = tiny("gpt2"), Memit(lam=1.0, **QUICK)
    given = NormAnchorScaling(method, anchor=3.0)
    patch = given.edit(lm, edits)
    assert patch.memory.anchor == 3.0
    assert torch.allclose(norms(lm, edits, method, patch, 3.0), torch.full((3,), 3.0), rtol=1e-4)
    name = lm.down(0)
    for alone, plain in zip(NormAnchorScaling(method).edit_each(lm, edits), method.edit_each(lm, edits), strict=True):
        assert torch.equal(alone.weights[name].dense(), plain.weights[name].dense())
    for one, each in zip(edits, given.edit_each(lm, edits), strict=True):
        alone = given.edit(lm, [one]).weights[name].dense()
        assert float((each.weights[name].dense() - alone).norm()) < 1e-3 * float(alone.norm())


def test_nas_reaches_the_method_through_other_wrappers(tiny, edits):
    lm = tiny("gpt2")
    settings = {"cov_tokens": 4000, "v_steps": 8, "lam": 1.0, "lam_n": 0.05, "anchor": 3.0}
    a, b = (compose(name).build(lm, settings, seed=0) for name in ("memit+encore+nas", "memit+nas+encore"))
    assert a.root == b.root
    assert (a.root.v_anchor, a.root.v_stop, a.root.keep_edits) == (3.0, "argmax", True)  # type: ignore[attr-defined]
    one, other = (method.edit(lm, edits).weights[lm.down(0)].dense() for method in (a, b))
    assert torch.equal(one, other)


def test_nas_refuses_a_method_that_optimises_no_value():
    with pytest.raises(UsageError, match=r"nas cannot wrap ft, which has no v_anchor; it can wrap alphaedit, .*rome"):
        NormAnchorScaling(FineTuning())


def test_the_memory_of_another_editor_is_refused(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="memory is a SpreadMemory of another editor"):
        NormAnchorScaling(Memit(**QUICK)).edit(lm, edits, Memit(lam=1.0, **QUICK).edit(lm, edits[:1]).memory)


# What is written must arrive

PLAIN = ["gpt2", "gptj", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "phi", "bloom", "falcon", "mpt"]


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_feed_forward_module_writes_arrives_in_these_families(fresh, family, dtype):
    require_additive(fresh(family, dtype=dtype), [0, 2], "memit")


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "granite"])
def test_a_norm_or_a_factor_behind_the_feed_forward_module_is_refused(tiny, edits, family):
    """There ROME, which optimises what the module itself writes, finds its value again."""
    lm = tiny(family)
    message = (
        f"memit adds residuals .*, but tiny-{family} has a norm or a factor between 'model.layers.0.mlp.down_proj'"
    )
    with pytest.raises(ModelError, match=message):
        Memit(layers=(0,), **QUICK).edit(lm, edits[:1])
    rome = Rome(layers=(0,), contexts=("{}",), **QUICK)
    value = optimise(lm, edits[:1], ("{}",), objective=rome.objective(0)).value[0]
    rows = facts.prompt_rows(lm, edits[0], ("{}",), fact_token="subject_last")
    with patched(lm, rome.edit(lm, edits[:1])):
        written = read_activations(lm, rows, outputs=["model.layers.0.mlp"]).outputs["model.layers.0.mlp"][0]
    assert torch.allclose(written, value, rtol=1e-3, atol=1e-4)


# SPHERE, LyapLock


def test_sphere_of_no_strength_is_its_inner_editor(tiny, edits):
    lm, inner = tiny("gpt2"), Memit(layers=(0, 1), lam=1.0, **QUICK)
    plain, free, bound = (m.edit(lm, edits[:2]).weights for m in (inner, Sphere(inner, strength=0.0), Sphere(inner)))
    for name, delta in plain.items():
        assert torch.equal(free[name].dense(), delta.dense())
        directions = principal_directions(lm.matrix(name), 0.5).float()
        along = bound[name].dense() @ directions
        assert torch.allclose(along, 0.5 * delta.dense() @ directions, atol=1e-6 * float(delta.dense().norm()))
        assert not torch.allclose(bound[name].dense(), delta.dense())


def test_the_first_operation_of_lyaplock_is_memit(tiny, edits):
    lm = tiny("gpt2")
    ours, plain = (cls(layers=(0, 1), lam=3.0, **QUICK).edit(lm, edits[:2]) for cls in (LyapLock, Memit))
    assert all(torch.equal(delta.dense(), plain.weights[name].dense()) for name, delta in ours.weights.items())
    for layer in (0, 1):  # what it lost is the bound of what may be lost
        change = plain.weights[lm.down(layer)].dense().double()
        queue = ours.memory.queues[layer]
        assert queue.base == pytest.approx(preservation_loss(change, plain.memory.moments[layer]), rel=1e-5)
        assert queue.length == pytest.approx((60.0 * queue.base) ** 0.5)


# BLUE


def test_blue_of_one_layer_is_alphaedit_and_of_several_takes_the_ends(tiny, edits):
    lm, settings = tiny("gpt2"), {"nullspace_threshold": 1e9, "l2": 0.1, **QUICK}
    ours, plain = (cls(layers=(1,), **settings).edit(lm, edits) for cls in (Blue, AlphaEdit))
    assert torch.equal(ours.weights[lm.down(1)].dense(), plain.weights[lm.down(1)].dense())
    assert torch.equal(ours.memory.keys[1], plain.memory.keys[1])
    both = Blue(layers=(0, 1, 2), contexts=("{}",), **settings)
    assert both.edited_layers(lm) == (0, 2)
    patch = both.edit(lm, edits)
    first = AlphaEdit(layers=(0,), contexts=("{}",), **settings).edit(lm, edits)
    with patched(lm, Patch(first.weights)):
        second = AlphaEdit(layers=(2,), contexts=("{}",), **settings)
        change = second.edit(lm, edits, replace(patch.memory, keys={})).weights[lm.down(2)]
    assert torch.equal(patch.weights[lm.down(0)].dense(), first.weights[lm.down(0)].dense())
    assert torch.allclose(patch.weights[lm.down(2)].dense(), change.dense(), atol=1e-6)
    assert set(patch.memory.keys) == {0, 2}


# NSE


def test_the_busiest_neurons_hold_a_share_of_the_activations():
    keys = torch.tensor([[1.0, -4.0, 0.0, 2.0], [0.0, 1.0, 0.0, -2.0]])  # 1, 5, 0, 4 of 10
    wanted = {0.4: [1], 0.5: [1], 0.6: [1, 3], 0.9: [1, 3], 0.95: [1, 3, 0], 1.0: [1, 3, 0]}
    assert {share: busiest_neurons(keys, share).tolist() for share in wanted} == wanted
    released = {0.4: [1], 0.6: [1], 0.95: [1, 3], 1.0: [1, 3, 0, 2]}
    assert {share: busiest_neurons(keys, share, "released").tolist() for share in released} == released


def test_nse_of_all_neurons_and_one_round_is_memit(tiny, edits):
    lm = tiny("gpt2")
    settings: dict[str, Any] = {"layers": (0, 1), "lam": 3.0, "contexts": ("{}",), **QUICK}
    ours, plain = Nse(neurons=1.0, repeats=1, **settings).edit(lm, edits), Memit(**settings).edit(lm, edits)
    for name, delta in plain.weights.items():
        assert torch.allclose(ours.weights[name].dense(), delta.dense(), atol=1e-5 * float(delta.dense().abs().max()))


def test_nse_chooses_neurons_and_goes_on_until_edits_have_arrived(tiny, edits):
    lm = tiny("gpt2")
    settings: dict[str, Any] = {"layers": (0, 1), "lam": 3.0, "contexts": ("{}",), **QUICK}
    few = Nse(neurons=0.3, repeats=1, **settings).edit(lm, edits).weights
    assert all(0 < int((delta.dense().abs().sum(0) > 0).sum()) < 32 for delta in few.values())

    def missing(repeats: int, **bounds: float) -> Tensor:
        method = Nse(neurons=0.3, repeats=repeats, **bounds, **settings)
        patch = method.edit(lm, edits)
        wanted = optimise(lm, edits, ("{}",), objective=method.objective(1)).value
        return (hidden(lm, edits, 1, patch) - wanted).norm(dim=1)

    untouched = missing(1, least=1e6)
    assert bool((missing(1) < untouched).all()) and bool((missing(4) < missing(1)).all())
    least = float(untouched.sort().values[1])  # two have arrived before the first round, the third has not
    alone = int(untouched.argmax())
    assert bool(missing(1, least=least)[alone] < 0.9 * untouched[alone])
    assert torch.equal(missing(1, most=0.5 * float(untouched.min())), untouched)


def test_nse_leaves_an_edit_alone_whichever_stands_first(tiny, edits):
    """Beside an edit that has arrived already, others are what they are alone: later rounds see what was written."""
    lm = tiny("gpt2")
    settings: dict[str, Any] = {"layers": (0, 1), "lam": 3.0, "contexts": ("{}",), **QUICK}
    wanted = optimise(lm, edits, ("{}",), objective=Nse(**settings).objective(1)).value
    missing = (hidden(lm, edits, 1, Patch()) - wanted).norm(dim=1)
    ordered = [edits[i] for i in missing.argsort()]
    method = Nse(neurons=0.3, repeats=3, least=float(missing.sort().values[:2].mean()), **settings)
    for order in (ordered, ordered[::-1]):
        for edit, patch in zip(order, method.edit_each(lm, order), strict=True):
            alone = method.edit(lm, [edit]).weights
            assert patch.weights.keys() == alone.keys() and bool(alone) == (edit is not ordered[0])
            for name, delta in alone.items():
                change = delta.dense()
                assert float((patch.weights[name].dense() - change).norm()) < 1e-4 * float(change.norm())


def test_nse_takes_values_from_the_unedited_weights_and_keys_from_the_edited_ones(tiny, edits):
    lm, method = tiny("gpt2"), Nse(layers=(0, 1), lam=1.0, contexts=("{}",), **QUICK)
    first = method.edit(lm, edits[:2])
    alone = optimise(lm, edits[2:], ("{}",), objective=method.objective(1)).value
    with patched(lm, first):
        known = method.prior(lm, first.memory, (0, 1))
        ours = method.values(lm, [edits[2:]], known, layer=1, begun=[Patch()])
        changed = optimise(lm, edits[2:], ("{}",), objective=method.objective(1)).value
        key, _ = facts.read_keys(lm, edits[:2], 1, templates=("{}",), fact_token="subject_last", kind="memit")
    assert torch.allclose(ours, alone, atol=1e-4) and not torch.allclose(ours, changed, atol=1e-2)
    assert torch.allclose(first.memory.sums[1], key.double().T @ key.double(), rtol=1e-5, atol=1e-8)


# EvoEdit


def test_evoedit_deflates_its_projector_by_the_keys_it_has_written(tiny, edits):
    """Two operations on two layers against the dense formula; what the second writes reaches no key of the first."""
    lm, l2 = tiny("gpt2"), 0.1
    settings: dict[str, Any] = {"layers": (0, 1), "nullspace_threshold": 0.4, "l2": l2, "contexts": ("{}",), **QUICK}
    method = EvoEdit(**settings)
    first, plain = method.edit(lm, edits[:2]), AlphaEdit(**settings).edit(lm, edits[:2])
    for name, delta in plain.weights.items():
        assert torch.allclose(first.weights[name].dense(), delta.dense(), atol=1e-6)
    with patched(lm, first):
        second = method.edit(lm, edits[2:], first.memory)
        sums = AlphaEdit(**settings).edit(lm, edits[2:], replace(plain.memory)).weights
        written = facts.read_keys(lm, edits[:2], 0, templates=("{}",), fact_token="subject_last", kind="memit")[
            0
        ].double()
        new = facts.read_keys(lm, edits[2:], 0, templates=("{}",), fact_token="subject_last", kind="memit")[0].double()
        value = optimise(lm, edits[2:], ("{}",), objective=method.objective(1)).value
        residual = (value - hidden(lm, edits[2:], 1, Patch())).double() / 2
    name = lm.down(0)
    values, vectors = torch.linalg.eigh(first.memory.moments[0].matrix.double())
    p = vectors[:, values < 0.4] @ vectors[:, values < 0.4].T
    u = torch.linalg.svd(p @ written.T, full_matrices=False)[0]
    p = p - u @ u.T
    dense = residual.T @ torch.linalg.solve(new @ p @ new.T + l2 * eye(1), new @ p)
    change = second.weights[name].dense().double()
    assert float((change - dense).norm()) < 1e-4 * float(dense.norm())
    assert float((change @ written.T).norm()) < 1e-5 * float(change.norm() * written.norm())
    assert float((sums[name].dense().double() @ written.T).norm()) > 1e-3 * float(change.norm() * written.norm())


def test_what_may_be_written_shrinks_by_the_keys_above_the_truncation():
    basis = torch.linalg.qr(draw(F, 5)).Q
    keys = torch.cat([draw(2, F, seed=2), draw(2, F, seed=2)[:1]])  # the third is the first again
    left = without_directions(basis, keys)
    assert left.shape == (F, 3)
    assert torch.allclose(left.T @ left, eye(3), atol=1e-12) and float((keys @ left).abs().max()) < 1e-12
    middle = float(torch.linalg.svdvals(basis.T @ keys.T)[:2].mean())
    assert without_directions(basis, keys, middle).shape == (F, 4)
    whole = without_directions(basis, keys, 1e9)
    assert torch.allclose(whole @ whole.T, basis @ basis.T, atol=1e-12)
    assert without_directions(basis, draw(9, F, seed=3)).shape == (F, 0)


def test_a_key_that_was_written_before_takes_no_direction():
    basis, keys = torch.linalg.qr(draw(F, 5)).Q, draw(1, F, seed=2)
    left = without_directions(basis, keys)
    assert torch.equal(without_directions(left, keys), left)
    single = keys.float()
    rounded = without_directions(basis, single)
    assert without_directions(rounded, single.nextafter(2 * single)).shape == rounded.shape == (F, 4)


def test_a_null_space_that_is_used_up_is_told(tiny, edits):
    lm, method = tiny("gpt2"), EvoEdit(layers=(0,), nullspace_threshold=1e9, contexts=("{}",), **QUICK)
    patch = method.edit(lm, edits[:1])
    known = replace(patch.memory, bases={0: patch.memory.bases[0][:, :0]})
    with pytest.raises(UsageError, match="evoedit: earlier edits have taken all directions of layer 0 that may be"):
        method.edit(lm, edits[1:], known)


def test_memit_that_keeps_edits_factors_its_system_once_for_many_operations(monkeypatch):
    """Every operation is that of the dense formula; keys become an update until they are a quarter of their length."""
    method, made = Memit(lam=4.0, norm_control=0.5, keep_edits=True), []
    factor = torch.linalg.cholesky

    def counted(matrix):
        made.append(len(matrix))
        return factor(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky", counted)
    memory, whole = kept(moment()), 4.0 * moment().matrix + 0.5 * eye(F)
    for i in range(F // 4):
        keys, residual = draw(1, F, seed=40 + i), draw(1, D, seed=50 + i)
        known = memory if i == 0 else method._ridge(memory).caught_up([0])
        whole = whole + keys.T @ keys
        ours = change(method, known, keys, residual)
        assert torch.allclose(ours, residual.T @ keys @ torch.linalg.inv(whole), rtol=1e-9, atol=1e-11)
        memory = method.after(None, known, keys={0: keys}, patch=Patch())
    assert made == [F]


def test_what_memit_cannot_keep_is_an_error_with_a_cure():
    flat = Moment(torch.zeros(F, F, dtype=torch.float64), 100, name="layer 0")
    method = Memit(norm_control=0.0, keep_edits=True)
    memory = method.after(None, kept(flat), keys={0: draw(1, F)}, patch=Patch())
    with pytest.raises(NumericalError, match=r"what layer 0 shall keep has no inverse; raise .* norm_control"):
        method._ridge(memory).caught_up([0])
