"""Where locate-then-edit methods write when nobody says where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from editors.memit import Memit
from editors.pmet import Pmet
from editors.rome import Rome
from harness.models.lm import LM


@pytest.fixture
def deep(tiny):
    """The tiny model as if it had so many layers; it is not run."""

    def make(layers: int) -> LM:
        lm = tiny("gpt2")
        return replace(lm, arch=replace(lm.arch, layers=layers, each=lm.arch.each[:1] * layers))

    return make


@pytest.mark.parametrize("method", [Memit(), Pmet()])
@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (32, (4, 5, 6, 7, 8)),  # as published for Llama 2 7B and Llama 3 8B
        (48, (8, 9, 10, 11, 12)),
        (28, (3, 4, 5, 6, 7)),
        (12, (0, 1, 2, 3)),
        (3, (0, 1)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_a_batch_is_spread_over_up_to_five_layers_that_end_at_27_percent(deep, method, layers, wanted):
    assert method.edited_layers(deep(layers)) == wanted


@pytest.mark.parametrize(("layers", "wanted"), [(48, 8), (32, 5), (28, 4), (24, 4), (6, 1), (3, 0), (1, 0)])
def test_one_fact_is_written_at_17_percent_of_the_depth(deep, layers, wanted):
    assert Rome().edited_layers(deep(layers)) == (wanted,)


def test_layers_that_are_given_are_taken_in_order(deep):
    assert Memit(layers=(9, 7, 8, 7)).edited_layers(deep(32)) == (7, 8, 9)
