"""The authors' numbers that need no model: directions, rank-one vectors and the MEMIT update.

``data/memory_editing.safetensors`` was made with kmeng01/rome at 0874014 and kmeng01/memit at 80426fd, in float64, on a
GPT-2 of four layers and width 32 (layer 1, lambda 20).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.methods.keys import rank_one_changes
from harness.methods.locate_then_edit import ridge_adjoint
from harness.methods.rank_one import update_direction
from harness.methods.second_moments import Moment

CASES = [0, 2, 5]


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    return load_file(Path(__file__).parent / "data" / "memory_editing.safetensors")


def stack(numbers, name):
    return torch.stack([numbers[f"rome/{case}/{name}"] for case in CASES])


def test_directions(numbers, close):
    close(update_direction(stack(numbers, "kbar"), Moment(numbers["C"], 1000)), stack(numbers, "u"), 1e-9)


def test_rank_one_vectors(numbers, close):
    u, k0, y0, value = (stack(numbers, name) for name in ("u", "k0", "y0", "v_star"))
    changes = rank_one_changes(u, key=k0, output=y0, value=value, names=["0", "2", "5"])
    close(torch.stack([change.left[:, 0] for change in changes]), stack(numbers, "right_vector"), 1e-9)


def test_memit_update(numbers, close):
    close(ridge_adjoint(Moment(numbers["C"], 1000), numbers["memit/keys.1"], 20.0), numbers["memit/adj_k.1"], 1e-9)
