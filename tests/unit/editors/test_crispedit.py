"""CrispEdit: the projection by hand, its limits, the training against a plain loop, and what a sequence remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editors.crispedit import CrispEdit, Kept
from editors.locft import BreadthFirst
from harness.editing.edit import Edit
from harness.methods.curvature import Curvature, LowCurvature, curvatures, curvatures_of, low_curvature, low_energy
from harness.methods.second_moments import Moment, accumulate_gradient_moments
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

QUICK: dict[str, Any] = {"layers": (1,), "lr": 2e-3, "steps": 3, "batch_size": 2, "threshold": 0.0, "cov_tokens": 600}


def changed(patch: Patch) -> Tensor:
    (delta,) = patch.weights.values()
    return delta.dense()


@pytest.mark.parametrize(
    ("energy", "left"), [(0.0, 4), (0.5, 3), (0.6, 3), (0.61, 2), (0.9, 2), (0.91, 1), (0.98, 0), (1.0, 0)]
)
def test_the_largest_products_are_taken_away_as_few_as_have_the_energy(energy: float, left: int) -> None:
    """Of 6, 3, 0.75 and 0.25: the first alone has 0.6 of their sum, the first two 0.9, the first three 0.975."""
    values = torch.tensor([[0.25, 3.0], [6.0, 0.75]], dtype=torch.float64)
    assert sorted(values[low_energy(values, energy)].tolist()) == [0.25, 0.75, 3.0, 6.0][:left]


def test_the_projection_by_hand() -> None:
    """Turned by 45 degrees on the side of the inputs: the first pair is gone, the others stay."""
    root = 0.5**0.5
    flat = LowCurvature(
        torch.tensor([[root, -root], [root, root]]), torch.eye(2), torch.tensor([[False, True], [True, True]])
    )
    change = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert torch.allclose(flat.onto(change), torch.tensor([[-1.0, 1.0], [5.0, 7.0]]), atol=1e-6)
    assert torch.allclose(flat.onto(flat.onto(change)), flat.onto(change), atol=1e-6)


def test_the_projection_is_that_onto_the_kept_eigenvectors_of_the_kronecker_product() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b, change = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((9, 4), (9, 3), (3, 4)))
    found = Curvature(Moment(a.T @ a, 9), Moment(b.T @ b, 9))
    values, vectors = torch.linalg.eigh(torch.kron(b.T @ b, a.T @ a))
    count = int((values.flip(0).cumsum(0) / values.sum() < 0.8).sum()) + 1
    left = vectors[:, :-count]
    assert 0 < left.shape[1] < 11
    expected = (left @ left.T @ change.flatten()).reshape(3, 4)
    assert torch.allclose(low_curvature({1: found}, 0.8)[1].onto(change), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_moments_of_gradients_are_their_definition(fresh: Callable[..., LM], sentences: list[str], family: str) -> None:
    lm, total, count = fresh(family, dtype=torch.float64), torch.zeros(()), 0
    module = lm.module(lm.arch.down_of(1))
    for text in sentences[:5]:
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _m, _a, out, s=seen: s.append(out.requires_grad_()) or None)
        ids = torch.tensor([lm.encode(text)])
        loss = cross_entropy(lm.model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        handle.remove()
        slope = torch.autograd.grad(loss, seen[0])[0].reshape(ids.shape[1], -1)[:-1].double()
        total, count = total + slope.T @ slope, count + len(slope)
    found = accumulate_gradient_moments(lm, [1], sentences[:5])[1]
    assert found.count == count
    assert torch.allclose(found.matrix, total / count, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("projected", ["gradient", "change"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_adam_on_projected_gradients(
    fresh: Callable[..., LM], edits: list[Edit], family: str, projected: Any
) -> None:
    """CrispEdit: the loss is a mean over all tokens of a batch, and biases stay."""
    lm, other = fresh(family), fresh(family)
    method = CrispEdit(**{**QUICK, "batch_size": 3}, energy=0.7, projected=projected)
    flat = low_curvature(curvatures(lm, [1], tokens=600), 0.7)[1]
    name = other.down(1)
    turn = (lambda t: t.T) if other.transposed(name) else (lambda t: t)
    weight, start = other.parameter(name).requires_grad_(), other.parameter(name).detach().clone()
    adam = torch.optim.Adam([weight], lr=2e-3)
    for _ in range(3):
        nll, count = torch.zeros(()), 0
        for edit in edits:
            prompt, said = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
            logits = other.model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            nll, count = nll + cross_entropy(logits, torch.tensor(said), reduction="sum"), count + len(said)
        adam.zero_grad()
        (nll / count).backward()
        assert weight.grad is not None
        weight.grad = turn(flat.onto(turn(weight.grad))).contiguous()
        adam.step()
        if projected == "change":
            with torch.no_grad():
                weight.copy_(start + turn(flat.onto(turn(weight - start))))
    patch = method.edit(lm, edits)
    assert list(patch.weights) == [name]
    assert torch.allclose(changed(patch), turn(weight.detach() - start), atol=2e-5)
    inside = torch.dist(flat.onto(changed(patch)), changed(patch)) / changed(patch).norm()
    assert (float(inside) < 1e-5) == (projected == "change")


def test_without_energy_it_is_plain_and_with_all_of_it_nothing_moves(
    tiny: Callable[[str], LM], edits: list[Edit]
) -> None:
    lm = tiny("llama")
    (one,) = edits[:1]
    plain = replace(CrispEdit(**QUICK), energy=0.0).edit_each(lm, [one])[0]
    common = {key: value for key, value in QUICK.items() if key != "cov_tokens"}
    # Without the end of text that LocFT-BF adds, the two have the same loss of one edit.
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr("harness.methods.descent._end_of_text", lambda _lm: None)
        replaced.setattr("harness.methods.descent._answer", _without_end)
        breadth = BreadthFirst(**common).edit(lm, [one])
    assert torch.allclose(changed(plain), changed(breadth), atol=1e-5)
    assert not changed(replace(CrispEdit(**QUICK), energy=1.0).edit_each(lm, [one])[0]).any()


def _without_end(lm: LM, edit: Edit, _end: list[int]) -> Any:
    from harness.methods.descent import TokenisedEdit

    return TokenisedEdit(edit, lm.encode(edit.text), lm.continuation(edit.text, edit.continuation))


def test_a_sequence_remembers_means_over_all_tokens(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm, method = tiny("llama"), CrispEdit(**QUICK)
    first = method.edit(lm, edits[:2])
    base = curvatures(lm, [1], tokens=600)[1]
    with patched(lm, first):
        added = curvatures_of(lm, [1], [e.text + e.continuation for e in edits[:2]])[1]
        second = method.edit(lm, edits[2:], first.memory)
        alone = method.edit(lm, edits[2:], Kept({1: base}))
    assert isinstance(first.memory, Kept)
    found = first.memory.found[1]
    for got, one, two in ((found.keys, base.keys, added.keys), (found.gradients, base.gradients, added.gradients)):
        assert got.count == one.count + two.count
        mean = (one.matrix * one.count + two.matrix * two.count) / (one.count + two.count)
        assert torch.allclose(got.matrix, mean, rtol=1e-12)
    assert not torch.equal(changed(second), changed(alone))
