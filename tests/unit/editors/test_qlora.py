"""QLoRA: four-bit normal floats by their definition, and LoRA on a model that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from editors.lora import Lora
from editors.qlora import QLora
from harness.editing.edit import Edit
from harness.methods.nf4 import nf4_levels, nf4_round_trip
from harness.models.arch import is_matrix, stored_transposed
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched

QUICK: dict[str, Any] = {"lr": 5e-3, "steps": 3, "layers": (1,)}
PRINTED = [
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500),
    *(0.0, 0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
]


def same(one: Patch, other: Patch) -> bool:
    kinds = zip(one.weights.values(), other.weights.values(), strict=True)
    return list(one.weights) == list(other.weights) and all(torch.equal(a.dense(), b.dense()) for a, b in kinds)


def rounded_by_hand(lm: LM) -> None:
    for layer in range(lm.arch.layers):
        for part in lm.module(lm.arch.block(layer)).modules():
            if is_matrix(part):
                matrix = part.weight.data.T if stored_transposed(part) else part.weight.data
                matrix.copy_(nf4_round_trip(matrix))


def test_the_levels_are_the_printed_ones() -> None:
    """Appendix E of the paper."""
    assert nf4_levels().tolist() == pytest.approx(PRINTED, abs=1e-6)


def test_every_number_becomes_the_nearest_level_of_its_block() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 50, generator=draw)
    flat, expected = matrix.flatten(), []
    for first in range(0, 150, 64):
        block = flat[first : first + 64]
        levels = nf4_levels() * block.abs().max()
        expected.append(levels[(block[:, None] - levels).abs().argmin(1)])
    found = nf4_round_trip(matrix, double=False)
    assert torch.allclose(found, torch.cat(expected).reshape(3, 50), atol=1e-6)
    assert torch.allclose(nf4_round_trip(found, double=False), found, atol=1e-6)
    assert not nf4_round_trip(torch.zeros(2, 70)).any()


def test_doubly_quantised_magnitudes_are_near_and_not_the_same() -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    single, double = nf4_round_trip(matrix, double=False), nf4_round_trip(matrix)
    largest = [one.reshape(-1, 64).abs().amax(1) for one in (single, double)]
    assert 0 < float((largest[0] - largest[1]).abs().max() / largest[0].max()) < 0.02


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_lora_on_the_rounded_model(fresh: Callable[..., LM], edits: list[Edit], family: str) -> None:
    lm, other = fresh(family), fresh(family)
    rounded_by_hand(other)
    found, expected = QLora(**QUICK).edit(lm, edits), Lora(**QUICK).edit(other, edits)
    assert found.weights
    assert all(isinstance(delta, LowRank) for delta in found.weights.values())
    for name, delta in found.weights.items():
        assert torch.allclose(delta.dense(), expected.weights[name].dense(), atol=1e-4)
    apart = [torch.dist(d.dense(), Lora(**QUICK).edit(lm, edits).weights[n].dense()) for n, d in found.weights.items()]
    assert max(apart) > 1e-3


def test_the_rounding_stays_where_the_base_is_quantised(fresh: Callable[..., LM], edits: list[Edit]) -> None:
    lm, other = fresh("llama"), fresh("llama")
    rounded_by_hand(other)
    method = QLora(**QUICK, base="quantised")
    patch, adapters = method.edit(lm, edits), QLora(**QUICK).edit(lm, edits)
    assert {name.removesuffix(".weight") for name in patch.weights} == set(method.places(lm))
    assert any(isinstance(delta, Dense) for delta in patch.weights.values())
    with patched(lm, patch), patched(other, adapters):
        for name in patch.weights:
            assert torch.allclose(lm.parameter(name), other.parameter(name), atol=1e-5)


@pytest.mark.parametrize("base", ["given", "quantised"])
def test_edits_side_by_side_and_passes_are_those_one_by_one(
    fresh: Callable[..., LM], edits: list[Edit], base: Any
) -> None:
    lm, method = fresh("llama"), QLora(**QUICK, base=base)
    for one, edit in zip(method.edit_each(lm, edits), edits, strict=True):
        assert same(one, method.edit(lm, [edit]))
    assert same(list(method.passes(lm, edits))[-1].patch, method.edit(lm, edits))


@pytest.mark.parametrize("base", ["given", "quantised"])
def test_adapters_of_earlier_operations_are_not_rounded(
    fresh: Callable[..., LM], edits: list[Edit], base: Literal["given", "quantised"]
) -> None:
    """The base is rounded once, as in the paper (2305.14314, section 3): later operations add adapters alone."""
    lm, method = fresh("llama"), QLora(**QUICK, base=base)
    first = method.edit(lm, edits[:1])
    rounding, given = method.rounding(lm), QLora(**QUICK).edit(lm, edits[:1])
    with patched(lm, first):
        second = method.edit(lm, edits[1:2], first.memory)
    with patched(lm, rounding), patched(lm, Patch(given.weights)):
        wanted = Lora(**QUICK).edit(lm, edits[1:2])
    name = next(iter(wanted.weights))
    assert isinstance(second.weights[name], LowRank)
    assert list(second.weights) == list(wanted.weights)
    change, expected = second.weights[name].dense(), wanted.weights[name].dense()
    assert float((change - expected).norm()) < 1e-3 * float(expected.norm())
