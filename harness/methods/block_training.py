"""Training all parameters of one block until it gives wanted outputs: a hidden state becomes what others ask for.

Source: Deng, Wei, Pang, Ding, Shen, Cheng 2024, "Everything is Editable: Extend Knowledge Editing to Unstructured Data
in Large Language Models" (UnKE), arXiv 2405.15349, equations 9 and 10, and the authors' code (TrustedLLM/UnKE at
ae24801, code/unke.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import ModelError, NumericalError
from harness.methods.descent import Trained
from harness.methods.routing import unrelated_texts
from harness.models.activations import at_least_float32, capture_activations, first_output
from harness.models.lm import LM, Batch
from harness.models.offload import call_with
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched, require_plain

__all__ = [
    "BlockPass",
    "BlockTraining",
    "ErrorMean",
    "Retained",
    "WantedStates",
    "record_pass",
    "require_blocks",
    "train_block",
    "train_in_turn",
]

_LENGTH = 64  # tokens that are read of each text that is kept as it was

ErrorMean = Literal["tokens", "released"]
"""What the error of a pass is a mean over: its ``tokens``, or as in the authors' code its padding, too."""


@dataclass(frozen=True, eq=False)
class BlockPass:
    """One pass of some rows through a block.

    Attributes:
        args, kwargs: what the block was given.
        output: what left it, ``[rows, columns, d]``, at least float32.
        mask: 1 where a token is real, ``[rows, columns]``.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor
    mask: Tensor

    def again(self, block: nn.Module, held: Mapping[str, Tensor]) -> Tensor:
        """What leaves the block with other parameters, ``[rows, columns, d]``."""
        # A block may add to what it is given in place.
        args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)
        return first_output(call_with(block, held, *args, **self.kwargs)).reshape(self.output.shape)


@dataclass(frozen=True)
class BlockTraining:
    """How a block is trained.

    Attributes:
        steps: updates.
        lr: AdamW's learning rate.
        weight_decay: its weight decay, of all parameters but those of norms.
        error_mean: what the error of a pass is a mean over.
    """

    steps: int
    lr: float
    weight_decay: float
    error_mean: ErrorMean = "tokens"


@dataclass(frozen=True, eq=False)
class WantedStates:
    """What shall leave the last of some blocks, at single tokens of some rows.

    Attributes:
        batch: the rows.
        row, column: the tokens, ``[n]``.
        values: the hidden states that are wanted there, ``[n, d]``.
        counted: the tokens whose error counts, ``[rows, columns]``; at those without a wanted state it is that of what
            left a block before.
    """

    batch: Batch
    row: Tensor
    column: Tensor
    values: Tensor
    counted: Tensor


@dataclass(frozen=True, eq=False)
class Retained:
    """What the next operation of an editor that trains blocks starts from.

    Attributes:
        texts: the texts that are drawn from.
        operations: how many there were.
    """

    texts: tuple[str, ...]
    operations: int = 0

    @classmethod
    def of(cls, lm: LM) -> Retained:
        """Before the first operation.

        Raises:
            DataError: the model has no plain text.
        """
        return cls(unrelated_texts(lm))

    def drawn(self, lm: LM, *, count: int, seed: int) -> Batch:
        """The texts of one operation on which a block shall give what it gave.

        Args:
            lm: the model.
            count: how many.
            seed: the seed of the draw, which each operation makes anew.
        """
        draw = torch.Generator().manual_seed(seed * 1_000_003 + self.operations)
        order = torch.randperm(len(self.texts), generator=draw)[:count].tolist()
        return lm.batch([lm.encode(self.texts[i])[: min(_LENGTH, lm.context)] for i in order])

    @property
    def next(self) -> Retained:
        """After one more operation."""
        return Retained(self.texts, self.operations + 1)


def require_blocks(lm: LM, layers: Sequence[int], asker: str) -> None:
    """See that every block that is trained hands on one vector a token, and can be written.

    Args:
        lm: the model.
        layers: the layers.
        asker: the editor, for the error.

    Raises:
        ModelError: one does not (Gemma 3n), or a parameter of it is quantised.
    """
    for layer in layers:
        block = lm.arch.block(layer)
        for name, _ in lm.module(block).named_parameters():
            require_plain(lm, f"{block}.{name}")
        handed = record_pass(lm, layer, lm.batch([lm.encode("The name of")])).output.shape[-1]
        if handed != lm.arch.width:
            raise ModelError(
                f"{lm.name}: '{block}' hands on {handed} numbers a token, where its matrices write "
                f"{lm.arch.width}; {asker} adds one vector to the state of a token, so take another editor"
            )


def train_in_turn(
    lm: LM,
    layers: Sequence[int],
    wanted: WantedStates,
    *,
    kept: Batch,
    settings: BlockTraining,
    edits: Sequence[str],
) -> Patch:
    """Each block trained in turn, on its share of what is missing of the states that leave the last.

    Args:
        lm: the model, unchanged when this returns.
        layers: the layers, ascending.
        wanted: what shall leave the last.
        kept: rows on which each shall give what it gave.
        settings: how each is trained.
        edits: the edits that this is for, for the error.

    Raises:
        ModelError: a parameter is quantised.
        NumericalError: an error is not finite; names the edits.
    """
    total = Patch()
    for i, layer in enumerate(layers):
        with patched(lm, total):
            last = record_pass(lm, layers[-1], wanted.batch).output
            at = wanted.row.to(last.device), wanted.column.to(last.device)
            missing = (wanted.values.to(last) - last[at]) / (len(layers) - i)
            asked = replace(record_pass(lm, layer, wanted.batch), mask=wanted.counted)
            target = asked.output.index_put(at, missing, accumulate=True)
            same = record_pass(lm, layer, kept)
            both = [(same, same.output), (asked, target)]
            total = total + Patch(weights=train_block(lm, layer, both, settings=settings, edits=edits).deltas)
    return total


def record_pass(lm: LM, layer: int, batch: Batch) -> BlockPass:
    """The pass of some rows through one block of the model as it is.

    Args:
        lm: the model.
        layer: the layer.
        batch: the rows.
    """
    name, given = lm.arch.block(layer), []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args), dict(kwargs)))

    handle = lm.module(name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        output = capture_activations(lm, batch, outputs=[name]).outputs[name]
    finally:
        handle.remove()
    return BlockPass(*given[0], at_least_float32(output), batch.mask)


def train_block(
    lm: LM, layer: int, wanted: Sequence[tuple[BlockPass, Tensor]], *, settings: BlockTraining, edits: Sequence[str]
) -> Trained:
    """AdamW on copies of a block's parameters, on the sum of the mean squared errors of some passes.

    Args:
        lm: the model, unchanged when this returns.
        layer: the layer.
        wanted: passes, and what shall leave the block in each, ``[rows, columns, d]``.
        settings: how.
        edits: the edits that this is for, for the error.

    Raises:
        ModelError: a parameter is quantised.
        NumericalError: an error is not finite; names the edits.
    """
    name = lm.arch.block(layer)
    block = lm.module(name)
    own = dict(block.named_parameters())
    for each in own:
        require_plain(lm, f"{name}.{each}")
    start = {each: at_least_float32(lm.parameter(f"{name}.{each}").detach()) for each in own}
    free = {each: value.clone().requires_grad_() for each, value in start.items()}
    decays = {True: 0.0, False: settings.weight_decay}
    groups = [
        {"params": [free[each] for each in free if _of_norm(block, each) is norm], "weight_decay": decay}
        for norm, decay in decays.items()
    ]
    adam = torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr)
    losses: list[float] = []
    for step in range(settings.steps):
        with torch.enable_grad():
            held = {each: value.to(own[each].dtype) for each, value in free.items()}
            loss = sum(
                (_error(one.again(block, held), target, one.mask, settings.error_mean) for one, target in wanted),
                start=torch.zeros((), device=lm.device),
            )
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            said = ", ".join(edits[:3])
            raise NumericalError(
                f"edits {said}: the error of '{name}' became {losses[-1]} after {step} steps; lower lr"
            )
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    changes = {f"{name}.{each}": (free[each] - start[each]).detach() for each in free}
    deltas = {each: Dense(lm.as_matrix(each, c).contiguous()) for each, c in changes.items()}
    return Trained(deltas, tuple(losses))


def _of_norm(block: nn.Module, parameter: str) -> bool:
    """Whether a parameter is that of a norm."""
    return "norm" in type(block.get_submodule(parameter.rpartition(".")[0])).__name__.lower()


def _error(output: Tensor, target: Tensor, mask: Tensor, mean: ErrorMean) -> Tensor:
    """The mean squared error of a pass."""
    squared = (at_least_float32(output) - target.to(output.device)) ** 2
    return squared.mean() if mean == "released" else squared[mask.bool().to(squared.device)].mean()
