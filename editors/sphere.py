"""SPHERE: takes from every change what lies along the directions in which the weights of a matrix crowd.

Source: Liu et al. 2026, "Energy-Regularized Sequential Model Editing on Hyperspheres", ICLR 2026, arXiv 2510.01172,
and the authors' code in EasyEdit (zjunlp/EasyEdit at 14cea82, easyeditor/models/SPHERE).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Wrapper
from harness.editing.hyperparameters import Share
from harness.editing.made import made_each
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank, double
from harness.patches.patch import Patch

__all__ = ["Side", "Sphere", "principal_directions"]

Side = Literal["input", "output"]

_TINY = 1e-8  # what the authors add to the norm of a row


def principal_directions(weight: Tensor, energy: float) -> Tensor:
    """The directions that the rows of a matrix share, as many as hold a share of their energy and one more.

    Args:
        weight: the matrix ``[rows, columns]``; each row counts with norm one.
        energy: the share of the trace of the mean outer product of the rows.

    Returns:
        The eigenvectors ``U [columns, r]`` of the mean outer product with the largest eigenvalues.
    """
    rows = double(weight)
    rows = rows / (rows.norm(dim=1, keepdim=True) + _TINY)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    held = values.flip(0).cumsum(0) / values.sum()
    count = min(int((held <= energy).sum()) + 1, len(values))
    found: Tensor = vectors[:, len(values) - count :]
    return found


@dataclass(frozen=True)
class Sphere(Wrapper):
    """``dW <- dW (I - strength U U^T)``: what is edited keeps the neurons' directions spread over the sphere.

    ``U`` are the principal directions of the rows of ``W [out, in]``, each normalised, as ``W`` is just before the
    change. The authors wrap AlphaEdit: ``alphaedit+sphere``.

    Attributes:
        energy: the share of the energy that the directions hold (``cumulative_ratio``).
        strength: how much of the change along them is taken; 0 is the inner editor (``suppression_strength``).
        side: ``input``, where the rows of ``W [out, in]`` lie. The authors' code takes the rows of the stored matrix,
            which for GPT-2 is ``[in, out]``: that is ``output``.

    Raises:
        UsageError: the inner editor changes no weights.
    """

    name = "sphere"

    energy: Share = 0.5
    strength: Share = 0.5
    side: Side = "input"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # zjunlp/EasyEdit at 14cea82, hparams/SPHERE: gpt2-xl.yaml, read with the matrix as GPT-2 stores it.
        "gpt2-xl": {"side": "output"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_weights("projects", "alphaedit")

    def increment(self, lm: LM, patch: Patch) -> Patch:
        """The inner increment without its part along the principal directions of what it changes."""
        return self._projected(patch, functools.partial(self._directions, lm))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """The inner patches, projected; the directions of a matrix are the same for all, and found once."""
        directions = functools.cache(functools.partial(self._directions, lm))
        return [self._projected(patch, directions) for patch in made_each(self.inner, lm, edits)]

    def _directions(self, lm: LM, name: str) -> Tensor:
        """The principal directions of a matrix on the side that is projected."""
        weight = lm.matrix(name)
        return principal_directions(weight.T if self.side == "output" else weight, self.energy)

    def _projected(self, patch: Patch, directions: Callable[[str], Tensor]) -> Patch:
        """The patch with its matrices projected; of a bias all stays."""

        def part(name: str, delta: Delta) -> Delta:
            if len(delta.shape) != 2 or not self.strength:
                return delta
            return _without(delta, directions(name), self.strength, left=self.side == "output")

        return replace(patch, weights={name: part(name, delta) for name, delta in patch.weights.items()})


def _without(delta: Delta, directions: Tensor, strength: float, *, left: bool) -> Delta:
    """A change less a share of its projection on some directions, low rank if it was."""

    def taken(rows: Tensor) -> Tensor:
        """Each row less a share of its projection."""
        along = double(rows)
        basis = directions.to(along.device)
        return (along - strength * (along @ basis) @ basis.T).to(rows)

    if isinstance(delta, LowRank):
        if left:
            return LowRank(taken(delta.left.T).T.contiguous(), delta.right)
        return LowRank(delta.left, taken(delta.right))
    change = delta.dense()
    return Dense(taken(change.T).T.contiguous() if left else taken(change))
