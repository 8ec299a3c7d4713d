"""Gradient descent on a few parameters of a model, which stay as they are: what is trained are copies.

Sources: Zhu et al. 2020, "Modifying Memories in Transformer Models", arXiv 2012.00363 (the L-infinity bound); the
baselines FT and FT+L of Meng et al. 2022 (kmeng01/rome) and 2023 (kmeng01/memit at 80426fd).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from harness.delta import Dense
from harness.editor import Edit
from harness.errors import DataError, NumericalError
from harness.lm import LM

__all__ = ["Loss", "Settings", "Trained", "descend", "feed_forward"]

Loss = Literal["target_new", "prompt_last"]
"""``target_new``: mean NLL of the target's tokens, each after those before it.  ``prompt_last``: as in the authors'
code, the mean NLL of all the target's tokens at the one position after the prompt; the same for targets of one
token."""


@dataclass(frozen=True)
class Settings:
    """How to descend.

    Attributes:
        loss: what is minimised.
        lr: Adam's learning rate.
        steps: passes over all edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        norm_constraint: the bound of every single weight's change; None for no bound.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is.
    """

    loss: Loss = "target_new"
    lr: float = 5e-4
    steps: int = 25
    batch_size: int = 64
    weight_decay: float = 0.0
    norm_constraint: float | None = None
    threshold: float = 1e-2


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out: the change of each parameter, ``[out, in]``, and the loss of each batch before its update."""

    deltas: Mapping[str, Dense]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Example:
    edit: Edit
    prompt: list[int]
    target: list[int]


def feed_forward(lm: LM, layers: Sequence[int]) -> list[str]:
    """The weights and, where there are any, biases of some layers' down-projections."""
    owners = [lm.arch.down_of(layer) for layer in sorted(set(layers))]
    return [f"{owner}.{leaf}" for owner in owners for leaf, _ in lm.module(owner).named_parameters(recurse=False)]


def descend(lm: LM, edits: Sequence[Edit], parameters: Sequence[str], settings: Settings) -> Trained:
    """Train copies of some parameters until the model says the targets.

    Args:
        lm: the model, unchanged when this returns.
        edits: what it shall say; edits need no subject.
        parameters: the names of the parameters.
        settings: how.

    Raises:
        DataError: a prompt and its target are longer than the model's context.
        NumericalError: a loss is not finite; names the edits.
    """
    examples = [_example(lm, edit) for edit in edits]
    start = {name: _wide(lm.parameter(name).detach()) for name in parameters}
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = torch.optim.Adam(free.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    losses: list[float] = []
    for _ in range(settings.steps):
        passed = []
        for first in range(0, len(examples), settings.batch_size):
            chunk = examples[first : first + settings.batch_size]
            passed.append((_update(lm, chunk, start, free, adam, settings), len(chunk)))
        losses += [loss for loss, _ in passed]
        if sum(loss * count for loss, count in passed) < settings.threshold * len(examples):
            break
    changes = {name: (free[name] - start[name]).detach() for name in parameters}
    return Trained(
        {name: Dense(c.T.contiguous() if lm.transposed(name) else c) for name, c in changes.items()}, tuple(losses)
    )


def _wide(tensor: Tensor) -> Tensor:
    # Updates of 5e-4 are lost in half precision.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _example(lm: LM, edit: Edit) -> _Example:
    example = _Example(edit, lm.encode(edit.text), lm.continuation(edit.text, edit.continuation))
    length = len(example.prompt) + len(example.target)
    if length > lm.context:
        raise DataError(
            f"edit {edit.id}: {length} tokens with its target, but {lm.name} takes {lm.context}; shorten the prompt"
        )
    return example


def _update(
    lm: LM,
    examples: Sequence[_Example],
    start: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    adam: torch.optim.Optimizer,
    settings: Settings,
) -> float:
    """One step of Adam on one batch, unless its loss is small already; the loss before the step."""
    with torch.enable_grad():
        loss = _loss(lm, examples, free, settings.loss)
    value = float(loss.detach())
    if not math.isfinite(value):
        ids = ", ".join(example.edit.id for example in examples[:3])
        raise NumericalError(f"the loss of edits {ids} became {value} in training {', '.join(free)}; lower lr")
    if value >= settings.threshold:
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        if settings.norm_constraint is not None:
            bound = settings.norm_constraint
            with torch.no_grad():
                for name, tensor in free.items():
                    tensor.copy_(torch.clamp(tensor, start[name] - bound, start[name] + bound))
    return value


def _loss(lm: LM, examples: Sequence[_Example], free: Mapping[str, Tensor], kind: Loss) -> Tensor:
    """The mean over edits of the mean NLL of their target's tokens."""
    forced = kind == "target_new"
    batch = lm.batch([e.prompt + (e.target[:-1] if forced else []) for e in examples])
    held = {name: tensor.to(lm.parameter(name).dtype) for name, tensor in free.items()}
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
    logits = functional_call(lm.model, held, args=(), kwargs=inputs).logits
    rows = [i for i, e in enumerate(examples) for _ in e.target]
    columns = [len(e.prompt) - 1 + (t if forced else 0) for e in examples for t in range(len(e.target))]
    tokens = torch.tensor([token for e in examples for token in e.target], device=logits.device)
    share = torch.tensor([1 / (len(e.target) * len(examples)) for e in examples for _ in e.target], dtype=torch.float64)
    log_p = _wide(logits[rows, columns]).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return -(log_p * share.to(log_p)).sum()
