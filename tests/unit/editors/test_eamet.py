"""EAMET's likeness by hand, its limits, and what its values are known by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import tensor

from editors.eamet import Eamet
from editors.memit import Memit
from harness.methods.alignment import Alignment, Neighbours
from harness.methods.keys import read_keys
from harness.methods.value import optimise
from harness.methods.value_cache import ValueCache

CONTEXTS = ("{}", "The weather is. {}", "Nobody knows. {}")
QUICK = {"layers": (0, 1), "v_steps": 6, "v_lr": 0.1, "contexts": CONTEXTS, "cov_tokens": 2000, "lam": 1e-2}


@pytest.mark.parametrize("order", ["residuals", "released"])
def test_the_likeness_by_hand(order):
    """Cosines 0.6 and 0.8 of residuals, 0.5 and -0.5 of keys, at temperature 0.5; the nearer key alone is compared."""
    rule = Alignment(2.0, 3.0, 0.5, 1, order)
    near = Neighbours(tensor([[3.0, 0.0], [0.0, 7.0]]), tensor([0.5, -0.5]), rule)
    ours, theirs = tensor([1.2, 1.6]).softmax(0), tensor([1.0, -1.0]).softmax(0)
    first, second = (ours, theirs) if order == "residuals" else (theirs, ours)
    wanted = float((first * (first / second).log()).sum())
    found = near.loss(tensor([[0.06, 0.08], [5.0, 0.0]]).double())
    assert float(found[0]) == pytest.approx(2 * wanted + 3 * 0.1**2, rel=1e-5)
    assert float(found[1]) != pytest.approx(float(found[0]), rel=0.1)


def test_residuals_that_lie_as_their_keys_cost_nothing():
    keys = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    near = Neighbours(keys[:4] * 3, keys[:4] @ keys[4], Alignment(2.0, 8.0, 0.07, 50))
    assert float(near.loss(keys[4:] * 9)) == pytest.approx(0.0, abs=1e-12)
    assert float(near.loss(-keys[4:])) > 1


def test_without_weights_an_edit_is_that_of_side_by_side(tiny, edits):
    """And with them the cosines of residuals come nearer to those of keys."""
    lm, plain = tiny("gpt2"), Eamet(**QUICK, divergence=0.0, distance=0.0)
    prior = plain.prior(lm, None, (0, 1))
    alone = optimise(lm, edits, CONTEXTS, objective=plain.objective(1)).value
    nothing = [plain.edit(lm, [])]
    assert torch.allclose(plain.values(lm, [edits], prior, layer=1, begun=nothing), alone, atol=1e-5)
    keys, _ = read_keys(lm, edits, 1, templates=CONTEXTS, fact_token="subject_last", kind="memit")
    start = optimise(lm, edits, CONTEXTS, objective=plain.objective(1)).start
    apart = {}
    for weight in (0.0, 1.0):
        method = replace(plain, divergence=2 * weight, distance=8 * weight)
        found = method.values(lm, [edits], prior, layer=1, begun=nothing) - start
        cosines = [torch.nn.functional.normalize(part, dim=1) for part in (found, keys)]
        apart[weight] = float((cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T).norm())
    assert apart[1.0] < 0.8 * apart[0.0]


def test_what_is_written_is_memits_of_the_same_values(tiny, edits, monkeypatch):
    lm, method = tiny("gpt2"), Eamet(**QUICK)
    wanted = method.edit(lm, edits)
    values = method.values(lm, [edits], method.prior(lm, None, (0, 1)), layer=1, begun=[method.edit(lm, [])])
    monkeypatch.setattr(Memit, "values", lambda *_args, **_options: values)
    memit = Memit(**QUICK).edit(lm, edits)
    for name, delta in wanted.weights.items():
        assert torch.allclose(delta.dense(), memit.weights[name].dense(), atol=1e-6)


def test_where_a_value_sets_out_from(tiny, edits):
    """Along the state, as long as the key; the KL term is against the unedited model, in the released code not."""
    lm, method = tiny("gpt2"), Eamet(**QUICK, clamp=1.0)
    first = optimise(lm, edits, CONTEXTS, objective=replace(method.objective(1), steps=1))
    keys, _ = read_keys(lm, edits, 1, templates=CONTEXTS, fact_token="subject_last", kind="memit")
    along = torch.nn.functional.normalize(first.start, dim=1) * keys.norm(dim=1, keepdim=True)
    assert torch.allclose(first.delta, along, atol=1e-5)
    assert all(float(losses[0, 2]) > 0 for losses in first.losses)
    released = replace(method, rule="released").objective(1)
    theirs = optimise(lm, edits, CONTEXTS, objective=replace(released, steps=1))
    assert all(float(losses[0, 2]) == 0 for losses in theirs.losses)
    last = optimise(lm, edits, CONTEXTS, objective=method.objective(1))
    assert bool((last.delta.norm(dim=1) <= keys.norm(dim=1) * (1 + 1e-5)).all())


def test_kept_values_are_known_by_their_neighbours(tiny, tmp_path):
    lm, objective, cache = tiny("gpt2"), Eamet(**QUICK).objective(1), ValueCache(tmp_path)
    rule = Alignment(2.0, 8.0, 0.07, 50)
    terms = [
        (),
        (Neighbours(torch.ones(1, 32), torch.ones(1), rule),),
        (Neighbours(torch.ones(1, 32) * 2, torch.ones(1), rule),),
        (Neighbours(torch.ones(1, 32), torch.ones(1) / 2, rule),),
        (Neighbours(torch.ones(1, 32), torch.ones(1), replace(rule, nearest=1)),),
    ]
    known = [cache.identity(lm, replace(objective, terms=some)) for some in terms]
    assert len(set(known)) == len(terms)
    assert known[1] == cache.identity(lm, replace(objective, terms=terms[1]))
