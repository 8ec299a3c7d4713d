"""The shapes in the signatures of the numerical core are checked while tests run."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest
import torch
from checked_shapes import CHECKED
from jaxtyping import TypeCheckError

from harness.exam.statistics import Ratio, _is_binary, estimate
from harness.methods.keys import rank_one_changes
from harness.methods.locate_then_edit import sum_key_products, woodbury
from harness.methods.second_moments import Moment
from harness.methods.value import Values
from harness.patches.delta import Dense, LowRank, double, numerical_rank
from harness.patches.patch import Step


def test_a_key_of_another_width_is_refused() -> None:
    good = {"key": torch.ones(2, 5), "output": torch.ones(2, 3), "value": torch.zeros(2, 3), "names": ["0", "1"]}
    assert len(rank_one_changes(torch.ones(2, 5), **good)) == 2
    with pytest.raises(TypeCheckError, match="key"):
        rank_one_changes(torch.ones(2, 1), **good)  # torch would stretch it over all five


def test_a_value_for_every_edit_is_asked_for() -> None:
    pair = torch.ones(2, 3)
    assert Values(pair, pair, (torch.zeros(4, 4), torch.zeros(1, 4)), pair).value.shape == (2, 3)
    with pytest.raises(TypeCheckError):
        Values(pair, torch.ones(1, 3), (), pair)
    with pytest.raises(TypeCheckError):
        Values(pair, pair, (torch.zeros(4, 3),), pair)


def test_what_must_be_float64_is_refused_in_float32() -> None:
    key = torch.ones(4, 2)
    assert woodbury(key.double(), key.double()).shape == (4, 2)
    with pytest.raises(TypeCheckError):
        woodbury(key, key)
    with pytest.raises(TypeCheckError):
        sum_key_products(torch.ones(2, 4), torch.ones(4, 4))
    assert sum_key_products(torch.ones(2, 4), torch.ones(4, 4).double()).shape == (4, 4)


def test_a_moment_is_square() -> None:
    with pytest.raises(TypeCheckError):
        Moment(torch.ones(3, 4), 10)


def test_changes_are_of_numbers_with_a_point() -> None:
    assert double(torch.arange(3)).dtype == torch.float64
    with pytest.raises(TypeCheckError):
        Dense(torch.arange(3))
    with pytest.raises(TypeCheckError):
        numerical_rank(torch.ones(3, 1), torch.Size((3, 3)))
    with pytest.raises(TypeCheckError):
        LowRank(torch.ones(3, 1), torch.ones(2, 3))


def test_a_step_has_a_mask_for_every_token() -> None:
    with pytest.raises(TypeCheckError):
        Step(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 3), 1)


def test_statistics_are_checked() -> None:
    assert estimate({"a": Ratio(1.0)}, seed=0).value == 1.0
    with pytest.raises(TypeCheckError):
        _is_binary(np.zeros((3, 2)), np.zeros((2, 3)))


def test_every_module_of_the_core_is_under_the_hook() -> None:
    """Each was imported after the hook was set, by the loader that decorates its functions."""
    found = []
    for name in CHECKED:
        module = importlib.import_module(name)
        found += [module, *(importlib.import_module(f"{name}.{one.name}") for one in _parts(module))]
    loaders = {module.__name__: type(module.__spec__.loader).__module__ for module in found if module.__spec__}
    assert len(loaders) > 18
    assert set(loaders.values()) == {"jaxtyping._import_hook"}, loaders


def _parts(module: object) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(getattr(module, "__path__", [])))
