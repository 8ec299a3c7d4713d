"""UltraEdit: a shift of feed-forward matrices in one step, from what enters them and the gradient of what leaves them.

Source: Gu, Huang, Gu, Zhang 2026, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language
Models", arXiv 2505.14679, and the authors' code (XiaojieGu/UltraEdit at 0beb222).

No training: one forward and one backward pass.  The step is scaled by the mean and the standard deviation of all
edits so far, so that it takes many edits at a time, or many operations: a few tokens have no statistics to speak of,
and one token alone no deviation, hence no step.

Where the code leaves the plain meaning there is a setting for each: ``loss``, ``deviation`` and ``last_batch``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, Positive
from harness.errors import NumericalError, UsageError
from harness.methods.descent import (
    TokenisedEdit,
    capture_gradients,
    feed_forward_matrices,
    log_likelihood,
    target_positions,
    tokenise,
)
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank, double
from harness.patches.patch import Patch

__all__ = ["Seen", "Statistics", "UltraEdit", "shift"]

Shape = tuple[int, int]
"""``(in, out)`` of a matrix."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Running statistics of rows.

    Attributes:
        count: how many rows.
        mean: their mean, ``[dim]``, in float64.
        squares: the sum of squared deviations from it, ``[dim]``, in float64.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor, *, unbiased: bool = False) -> Statistics:
        """Those of some rows, ``[n, dim]``; ``unbiased`` takes ``n / (n - 1)`` of their squares."""
        wide = double(rows)
        found = cls(len(wide), wide.mean(0), (wide - wide.mean(0)).square().sum(0))
        return replace(found, squares=found.squares * (found.count / max(found.count - 1, 1))) if unbiased else found

    def __add__(self, other: Statistics) -> Statistics:
        """Those of both sets of rows together (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean.to(self.mean) - self.mean
        squares = self.squares + other.squares.to(self.squares) + apart.square() * (self.count * other.count / count)
        return Statistics(count, self.mean + apart * (other.count / count), squares)

    def normalised(self, rows: Tensor) -> Tensor:
        """The rows without the mean, in units of the standard deviation."""
        deviation = (self.squares / max(self.count - 1, 1)).sqrt()
        return (double(rows) - self.mean) / (deviation + torch.finfo(torch.float32).eps)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the normalisation of the next operation starts from.

    Attributes:
        statistics: shape of a matrix -> statistics of ``[k, g]`` of all matrices of that shape.
    """

    statistics: Mapping[Shape, Statistics] = field(default_factory=dict)


@dataclass(frozen=True)
class UltraEdit(Editor):
    """``dW = (solve(K^T K + I, K^T V))^T`` with ``v = -lr ||k^||^2 g^`` for every token of every target.

    ``k`` is what enters a matrix at the position where the token is asked for, ``g`` the gradient of the edit's
    negative log-likelihood at what leaves it there; ``k^`` and ``g^`` are both after normalisation over all operations
    so far, this one included, for all matrices of a shape together; ``K`` holds the plain ``k``.

    Attributes:
        layers: where the matrices that lead into the feed-forward part (gate and up) are shifted; by default from 66 %
            of the depth to the last layer but one, where the published settings of Qwen 2.5 and Gemma 3 lie.
        modules: the names of the matrices instead.
        lr: the step.
        batch_size: edits of one forward and backward pass, the mini-batch; the result does not depend on it where
            ``loss`` is ``edit``, ``deviation`` is ``data`` and ``last_batch`` is ``counted``. Else the edits are taken
            in the order of their lengths, the longest first, as in the authors' code.
        loss: whether the gradient of an ``edit`` is that of its own negative log-likelihood, or that of the mean over
            all answer tokens of the mini-``batch`` that it happens to share, as in the authors' code.
        deviation: whether the standard deviation is that of the ``data``, or as in the authors' code a larger one, to
            which every mini-``batch`` of ``n`` tokens adds ``n / (n - 1)`` of its squares, and one of a lone token (of
            which their code makes a NaN) none.
        last_batch: whether edits that do not fill the last mini-batch are ``counted``, or as in the authors' code are
            given the gradient zero (``released``).
    """

    name = "ultraedit"

    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] | None = None
    lr: Positive = 1e-6
    batch_size: Count = 10
    loss: Literal["edit", "batch"] = field(default="batch", metadata={"before": "edit"})
    deviation: Literal["data", "batch"] = field(default="batch", metadata={"before": "data"})
    last_batch: Literal["counted", "released"] = "counted"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # XiaojieGu/UltraEdit at 0beb222, config/model, the settings of zsRE and UltraEditBench.
        "meta-llama-3-8b-instruct": {
            "modules": (
                *(f"model.layers.{i}.mlp.gate_proj" for i in range(11, 16)),
                *(f"model.layers.{i}.mlp.up_proj" for i in range(18, 25)),
            )
        },
        "qwen2.5-7b-instruct": {"layers": tuple(range(18, 27))},
        "mistral-7b-v0.3": {"modules": ("model.layers.29.mlp.down_proj", "model.layers.30.mlp.down_proj")},
        "gpt-j-6b": {"modules": tuple(f"transformer.h.{i}.mlp.fc_out" for i in range(18, 27))},
        "gemma-3-27b-it": {"layers": tuple(range(52, 61))},
        "phi-4": {"modules": tuple(f"model.layers.{i}.mlp.down_proj" for i in range(30, 39))},
        # harness tune: 5 trials of 8 tuning rows of real CounterFact.
        "smollm2-135m-instruct": {"layers": tuple(range(19, 29)), "lr": 1.24e-4},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0, 1, 2, 3), "lr": 2e-3},
        "mini": {"layers": (1, 2, 3), "lr": 4e-3},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that are shifted."""
        return self._names(lm)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        if memory is not None and not isinstance(memory, Seen):
            raise UsageError(f"the memory is a {type(memory).__name__} of another editor; start again without memory")
        if not edits:
            return Patch(memory=memory)
        batches = self._batches(tokenise(lm, edits))
        features = _features(lm, batches, names=self._names(lm), mean=self.loss == "batch")
        found = {name: (torch.cat(keys), torch.cat(gradients)) for name, (keys, gradients) in features.items()}
        statistics = dict(memory.statistics) if memory else {}
        for name, (keys, gradients) in features.items():
            new, shape = self._statistics(keys, gradients), _shape(*found[name])
            statistics[shape] = statistics[shape] + new if shape in statistics else new
        lost = self._lost(batches)
        weights = {}
        for name, (key, gradient) in found.items():
            gradient[len(gradient) - lost :] = 0
            both = statistics[_shape(key, gradient)].normalised(torch.cat([key, gradient], 1))
            size = both[:, : key.shape[1]].square().sum(1, keepdim=True)
            weights[f"{name}.weight"] = shift(key, -self.lr * size * both[:, key.shape[1] :])
        return Patch(weights, memory=Seen(statistics))

    def _batches(self, examples: Sequence[TokenisedEdit]) -> list[list[TokenisedEdit]]:
        """The mini-batches."""
        if (self.loss, self.deviation, self.last_batch) != ("edit", "data", "counted"):
            examples = sorted(examples, key=lambda e: len(e.prompt) + len(e.target), reverse=True)
        return [list(examples[first : first + self.batch_size]) for first in range(0, len(examples), self.batch_size)]

    def _lost(self, batches: Sequence[Sequence[TokenisedEdit]]) -> int:
        """How many tokens of a last, incomplete mini-batch have their gradients taken away."""
        if self.last_batch == "counted" or len(batches[-1]) == self.batch_size:
            return 0
        return sum(len(example.target) for example in batches[-1])

    def _statistics(self, keys: Sequence[Tensor], gradients: Sequence[Tensor]) -> Statistics:
        """Those of ``[k, g]`` of one matrix, from what each mini-batch gives."""
        if self.deviation == "data":
            return Statistics.of(torch.cat([torch.cat(list(keys)), torch.cat(list(gradients))], 1))
        first, *others = (
            Statistics.of(torch.cat(pair, 1), unbiased=True) for pair in zip(keys, gradients, strict=True)
        )
        return functools.reduce(operator.add, others, first)

    def _names(self, lm: LM) -> list[str]:
        """The matrices that are shifted."""
        if self.modules is not None:
            return list(self.modules)
        start, end = layer_at_depth(lm, 0.66), lm.arch.layers - 1
        layers = require_layers(lm, self.layers or range(start, max(end, start + 1)))
        return [name for layer in layers for name in feed_forward_matrices(lm, layer) if name != lm.arch.down_of(layer)]


def shift(key: Tensor, value: Tensor) -> Delta:
    """The ridge regression of values on keys, ``V^T K (K^T K + I)^-1 = V^T (K K^T + I)^-1 K``.

    Args:
        key: ``K [n, in]``.
        value: ``V [n, out]``.

    Returns:
        The change, ``[out, in]``; of rank ``n`` where that is less than full.
    """
    k, v = double(key), double(value)
    count, width = k.shape
    eye = torch.eye(min(count, width), dtype=k.dtype, device=k.device)
    # K (K^T K + I)^-1 = (K K^T + I)^-1 K: the smaller of the two systems.
    right = torch.linalg.solve(k @ k.T + eye, k) if count < width else torch.linalg.solve(k.T @ k + eye, k.T).T
    if count < min(width, value.shape[1]):
        return LowRank(v.T.to(key), right.to(key))
    return Dense((v.T @ right).to(key))


def _shape(key: Tensor, gradient: Tensor) -> Shape:
    return key.shape[1], gradient.shape[1]


def _features(
    lm: LM, batches: Sequence[Sequence[TokenisedEdit]], *, names: Sequence[str], mean: bool
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Of each module what each mini-batch gives: ``k [tokens, in]``, which enters it, and ``g [tokens, out]``.

    Args:
        lm: the model.
        batches: the mini-batches.
        names: the modules.
        mean: whether ``g`` is the gradient of the mean over a mini-batch's tokens, and not of their sum.

    Raises:
        NumericalError: a number is not finite; names the edits.
    """
    keys: dict[str, list[Tensor]] = {name: [] for name in names}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    for chunk in batches:
        for name, (key, gradient) in _backward(lm, chunk, names).items():
            if not bool(torch.isfinite(key).all() and torch.isfinite(gradient).all()):
                ids = ", ".join(e.edit.id for e in chunk[:3])
                raise NumericalError(f"what edits {ids} give at '{name}' holds a NaN or an infinity; use another dtype")
            keys[name].append(key)
            gradients[name].append(gradient / len(gradient) if mean else gradient)
    return {name: (keys[name], gradients[name]) for name in names}


def _backward(lm: LM, examples: Sequence[TokenisedEdit], names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and gradients of one batch at the positions where its targets' tokens are asked for."""
    with torch.enable_grad(), capture_gradients(lm, names) as seen:
        loss = -log_likelihood(lm, examples).sum()
        slopes = torch.autograd.grad(loss, [seen[name][1] for name in names])
    rows, columns = target_positions(examples)

    def at(hidden: Tensor) -> Tensor:
        # OPT flattens rows and columns inside its blocks.
        picked = hidden.detach().reshape(len(examples), -1, hidden.shape[-1])[rows, columns]
        return at_least_float32(picked)

    return {name: (at(seen[name][0]), at(slope)) for name, slope in zip(names, slopes, strict=True)}
