"""Shifts of matrices in one step, from what enters them and the gradient of what leaves them (UltraEdit's family).

Sources: Tan, Zhang, Fu 2024 (MALMEN), arXiv 2311.04661; Gu et al. 2026 (UltraEdit), arXiv 2505.14679.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, Positive
from harness.errors import NumericalError
from harness.methods.descent import (
    TokenisedEdit,
    capture_gradients,
    feed_forward_matrices,
    log_likelihood,
    target_positions,
)
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank, double

__all__ = [
    "LLAMA_3_8B",
    "Features",
    "GradientShift",
    "Shape",
    "Statistics",
    "gate_and_up",
    "mini_batches",
    "read_features",
    "regressor",
    "shape_of",
    "shift",
    "shift_values",
]

Shape = tuple[int, int]
"""``(in, out)`` of a matrix."""

LLAMA_3_8B = (
    *(f"model.layers.{i}.mlp.gate_proj" for i in range(11, 16)),
    *(f"model.layers.{i}.mlp.up_proj" for i in range(18, 25)),
)
"""The matrices of Llama 3 8B that the family's published settings shift."""


def gate_and_up(layers: Iterable[int]) -> tuple[str, ...]:
    """The two matrices that lead into the feed-forward parts of some layers of a Llama, all gates first."""
    return tuple(f"model.layers.{i}.mlp.{part}_proj" for part in ("gate", "up") for i in layers)


Features = dict[str, tuple[list[Tensor], list[Tensor]]]
"""Of each module what each mini-batch gives: ``k [tokens, in]``, which enters it, and ``g [tokens, out]``."""


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
        wide = double(rows)  # of a layer that may lie on another device than the first of its shape
        deviation = (self.squares.to(wide) / max(self.count - 1, 1)).sqrt()
        return (wide - self.mean.to(wide)) / (deviation + torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class GradientShift(Editor):
    """What the family shares: which matrices are shifted, how far, and how many edits make a mini-batch.

    Attributes:
        layers: where the matrices that lead into the feed-forward part (gate and up) are shifted; by default from 66 %
            of the depth to the last layer but one, where the published settings of Qwen 2.5 and Gemma 3 lie.
        modules: the names of the matrices instead.
        lr: the step.
        batch_size: edits of one forward and backward pass, the mini-batch.
    """

    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] | None = None
    lr: Positive = 1e-6
    batch_size: Count = 10

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that are shifted."""
        if self.modules is not None:
            return list(self.modules)
        start, end = layer_at_depth(lm, 0.66), lm.arch.layers - 1
        layers = require_layers(lm, self.layers or range(start, max(end, start + 1)))
        return [name for layer in layers for name in feed_forward_matrices(lm, layer) if name != lm.arch.down_of(layer)]


def mini_batches(examples: Sequence[TokenisedEdit], size: int, *, longest_first: bool) -> list[list[TokenisedEdit]]:
    """The edits of each forward and backward pass.

    Args:
        examples: the edits.
        size: how many make one, but for the last.
        longest_first: whether they are taken in the order of their lengths, as the authors' code does.
    """
    if longest_first:
        examples = sorted(examples, key=lambda e: len(e.prompt) + len(e.target), reverse=True)
    return [list(examples[first : first + size]) for first in range(0, len(examples), size)]


def shift_values(both: Float64[Tensor, "n features"], width: int, lr: float) -> Float64[Tensor, "n out"]:
    """``v = -lr ||k^||^2 g^`` of every token.

    Args:
        both: ``[k^, g^]``, normalised.
        width: of ``k``.
        lr: the step.
    """
    return -lr * both[:, :width].square().sum(1, keepdim=True) * both[:, width:]


def shift(key: Float[Tensor, "n d_in"], value: Float[Tensor, "n out"], *, ridge: float = 1.0) -> Delta:
    """The ridge regression of values on keys, ``V^T K (K^T K + a I)^-1``.

    Args:
        key: ``K [n, in]``.
        value: ``V [n, out]``.
        ridge: ``a``.

    Returns:
        The change, ``[out, in]``; of rank ``n`` where that is less than full.
    """
    right, v = regressor(key, ridge=ridge), double(value)
    if len(key) < min(key.shape[1], value.shape[1]):
        return LowRank(v.T.to(key), right.to(key))
    return Dense((v.T @ right).to(key))


def regressor(key: Float[Tensor, "n d_in"], *, ridge: float) -> Float64[Tensor, "n d_in"]:
    """What values are multiplied by in a ridge regression, ``K (K^T K + a I)^-1 = (K K^T + a I)^-1 K``.

    Args:
        key: ``K [n, in]``.
        ridge: ``a``.
    """
    k = double(key)
    count, width = k.shape
    eye = ridge * torch.eye(min(count, width), dtype=k.dtype, device=k.device)
    # The smaller of the two systems.
    right: Tensor = torch.linalg.solve(k @ k.T + eye, k) if count < width else torch.linalg.solve(k.T @ k + eye, k.T).T
    return right


def shape_of(key: Tensor, gradient: Tensor) -> Shape:
    """The shape of the matrix whose keys ``[n, in]`` and gradients ``[n, out]`` these are."""
    return key.shape[1], gradient.shape[1]


def read_features(lm: LM, batches: Sequence[Sequence[TokenisedEdit]], *, names: Sequence[str], mean: bool) -> Features:
    """What enters each module, and the gradient of what leaves it, at every token of every target.

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
