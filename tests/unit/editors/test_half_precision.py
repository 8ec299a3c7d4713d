"""In bfloat16 an editor computes its change in float32 and does not round it, however often it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from harness.editing.edit import Edit
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.hyperparameters import settable
from harness.editing.registry import configure, editor_names, find
from harness.editing.schedule import increment
from harness.models.lm import LM
from harness.patches.patch import Patch

QUICK = {
    "cov_tokens": 2000, "v_steps": 3, "steps": 3, "layers": (0, 1), "nullspace_threshold": 0.4, "energy": 0.5,
    "texts": 2, "kl_tokens": 16, "lr": 5e-3, "norm_constraint": 2e-2,
}  # fmt: skip
# KN sets a neuron's column to a multiple of what it is, and nothing else: twice a number of the type is one.
MULTIPLES = {"kn"}
NAMES = [
    name
    for name in editor_names()
    if "weights" in find(name).seams
    and not issubclass(find(name), Learned)
    and not find(name).reference
    and name not in MULTIPLES | {"none"}
]


def quick(name: str) -> Editor:
    cls = find(name)
    chosen = {key: value for key, value in QUICK.items() if key in settable(cls)}
    if not cls.batch:  # editors of single facts write one layer
        chosen.pop("layers", None)
    return configure(cls, "x", chosen, quick("memit") if issubclass(cls, Wrapper) else None)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_several_operations_is_added_once(fresh: Callable[..., LM], edits: list[Edit], name: str) -> None:
    """Were it a difference of weights in bfloat16, the sum of weight and change would be a number of that type."""
    lm, method = fresh(find(name).family or "llama", dtype=torch.bfloat16), quick(name)
    known = [replace(edit, target_old="Oslo") for edit in edits] if find(name).needs_old else edits
    total = Patch()
    for edit in known[:2]:
        total = total + increment(method, lm, [edit], held=total)
    changes = method.finish(lm, total).weights
    assert changes
    for parameter, delta in changes.items():
        assert all(tensor.dtype.itemsize >= torch.float32.itemsize for tensor in delta.tensors().values())
        change, weight = delta.dense().double(), lm.matrix(parameter).double()
        moved = change != 0
        assert float(_of_the_type(change)[moved].float().mean()) < 0.2, "the change itself was rounded"
        assert float(_of_the_type(weight + change)[moved].float().mean()) < 0.2, "the edited weight was rounded"


def _of_the_type(values: torch.Tensor) -> torch.Tensor:
    """Which numbers bfloat16 holds as they are."""
    return values.bfloat16().double() == values
