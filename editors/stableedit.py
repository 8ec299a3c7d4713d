"""StableEdit: UltraEdit's shift with fully whitened gradients, whose statistics the first operations warm up.

Source: "More Edits, More Stable: Understanding the Lifelong Normalization in Sequential Model Editing", ICML 2026, and
the authors' code (MINE-USTC/StableEdit at 6ea8eae), of which ``editor/base.py`` is no Python as released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.editing.hyperparameters import Positive, Range
from harness.methods.descent import tokenise
from harness.methods.shifts import (
    LLAMA_3_8B,
    GradientShift,
    Shape,
    Statistics,
    mini_batches,
    read_features,
    shape_of,
    shift,
    shift_values,
)
from harness.models.lm import LM
from harness.patches.delta import Delta, double
from harness.patches.patch import Patch

__all__ = ["Normaliser", "StableEdit", "Warmed"]

_LEAST = 1e-6  # of an eigenvalue of a covariance of gradients


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Running statistics of ``[k, g]``, with the covariance of ``g``.

    Attributes:
        rows: of both, entry by entry.
        width: of ``k``.
        scatter: the sum of outer products of deviations of ``g`` from its mean, ``[out, out]``, float64.
    """

    rows: Statistics
    width: int
    scatter: Tensor

    @classmethod
    def of(cls, key: Tensor, gradient: Tensor) -> Normaliser:
        """That of the tokens of one mini-batch."""
        wide = double(gradient)
        apart = wide - wide.mean(0)
        return cls(Statistics.of(torch.cat([key, gradient], 1)), key.shape[1], apart.T @ apart)

    def __add__(self, other: Normaliser) -> Normaliser:
        """That of both sets of tokens together."""
        rows = self.rows + other.rows
        apart = (other.rows.mean.to(self.rows.mean) - self.rows.mean)[self.width :]
        share = self.rows.count * other.rows.count / rows.count
        return Normaliser(rows, self.width, self.scatter + other.scatter.to(self.scatter) + share * apart.outer(apart))

    def normalised(self, rows: Tensor, *, whiten: bool) -> Tensor:
        """``[k^, g^]``, ``g`` whitened by its covariance where that is wanted and enough tokens were seen.

        Args:
            rows: ``[k, g]``.
            whiten: whether it is wanted; else every entry is divided by its own standard deviation.
        """
        plain = self.rows.normalised(rows)
        free = self.rows.count - len(self.scatter) - 1
        if not whiten or free < 1:
            return plain
        values, vectors = torch.linalg.eigh(self.scatter / free)
        root = vectors * values.clamp(min=_LEAST).rsqrt() @ vectors.T
        centred = double(rows)[:, self.width :] - self.rows.mean[self.width :]
        return torch.cat([plain[:, : self.width], centred @ root], 1)


@dataclass(frozen=True, eq=False)
class Warmed:
    """What the next operation starts from.

    Attributes:
        statistics: shape of a matrix -> the statistics of all matrices of that shape.
        operations: how many there were.
    """

    statistics: Mapping[Shape, Normaliser] = field(default_factory=dict)
    operations: int = 0


@dataclass(frozen=True)
class StableEdit(GradientShift):
    """``dW = (solve(K^T K + alpha I, K^T V))^T`` with ``v = -lr ||k^||^2 g^``, ``g^`` whitened by its covariance.

    ``k^`` is divided by standard deviations, ``g^`` multiplied by the inverse root of the covariance of all gradients
    so far, once more tokens were seen than a gradient has entries; before, it is divided by its deviations, too.

    The authors edit a batch of other facts first, to warm the statistics up. An editor here sees none but its edits:
    ``warm_up`` says how many of the first operations are made as that batch is, without whitening.

    Attributes:
        alpha: the weight of the Frobenius norm of the change.
        warm_up: how many operations there are before gradients are whitened.
    """

    name = "stableedit"

    alpha: Positive = 1.0
    warm_up: Annotated[int, Range(0)] = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # MINE-USTC/StableEdit at 6ea8eae, config/model, the settings of zsRE.
        "meta-llama-3-8b-instruct": {"modules": LLAMA_3_8B},
        "mistral-7b-v0.3": {"modules": tuple(f"model.layers.{i}.mlp.down_proj" for i in (28, 29, 30))},
        "gpt-j-6b": {"modules": tuple(f"transformer.h.{i}.mlp.fc_out" for i in range(18, 27))},
        # The shipped models: as tuned for UltraEdit.
        "mini-llama": {"layers": (0, 1, 2, 3), "lr": 2e-3},
        "mini": {"layers": (1, 2, 3), "lr": 4e-3},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        before = own_memory(memory, Warmed) or Warmed()
        if not edits:
            return Patch(memory=memory)
        # The mean over a mini-batch is what each gradient belongs to: the longest edits first, as in the authors' code.
        batches = mini_batches(tokenise(lm, edits), self.batch_size, longest_first=True)
        seen = read_features(lm, batches, names=self.places(lm), mean=True)
        statistics = dict(before.statistics)
        for pairs in seen.values():
            for key, gradient in zip(*pairs, strict=True):
                new, shape = Normaliser.of(key, gradient), shape_of(key, gradient)
                statistics[shape] = statistics[shape] + new if shape in statistics else new
        known = replace(before, statistics=statistics, operations=before.operations + 1)
        return Patch({f"{name}.weight": self._shift(known, *pairs) for name, pairs in seen.items()}, memory=known)

    def _shift(self, known: Warmed, keys: Sequence[Tensor], gradients: Sequence[Tensor]) -> Delta:
        """The change of one matrix."""
        key, gradient = torch.cat(list(keys)), torch.cat(list(gradients))
        normaliser, whiten = known.statistics[shape_of(key, gradient)], known.operations > self.warm_up
        both = normaliser.normalised(torch.cat([key, gradient], 1), whiten=whiten)
        return shift(key, shift_values(both, key.shape[1], self.lr), ridge=self.alpha)
