"""Read what enters and leaves modules during a forward pass, and stop the pass where nothing more is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.lm import LM, Batch

__all__ = ["Row", "Taps", "chunks", "first", "pad", "read", "tap"]


@dataclass(frozen=True)
class Row:
    """A sequence of tokens and the position that is looked at.

    Attributes:
        ids: the tokens.
        at: the position; it may lie in the padding, where a released code looks there.
    """

    ids: tuple[int, ...]
    at: int


@dataclass(frozen=True, eq=False)
class Taps:
    """What was read; every tensor is ``[rows, columns, dim]``.

    Attributes:
        inputs: module name -> what entered it.
        outputs: module name -> what left it.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class _Enough(Exception):  # noqa: N818
    """Everything that was asked for has been read."""


def first(output: Any) -> Tensor:
    """A module's hidden states: its output, or the first part of it."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def tap(lm: LM, batch: Batch, inputs: Collection[str] = (), outputs: Collection[str] = ()) -> Taps:
    """Run the model on a batch until the named modules have been seen; the blocks above the last one do not run.

    Raises:
        ModelError: a module does not exist, or the forward pass never reached it.
    """
    taps = Taps()
    missing = {("in", name) for name in inputs} | {("out", name) for name in outputs}
    rows, columns = batch.ids.shape

    def keep(kind: str, name: str, hidden: Tensor) -> None:
        # OPT flattens rows and columns inside its blocks.
        (taps.inputs if kind == "in" else taps.outputs)[name] = hidden.detach().reshape(rows, columns, -1)
        missing.discard((kind, name))
        if not missing:
            raise _Enough

    with _hooks(lm, inputs, outputs, keep), torch.no_grad():
        try:
            lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        except _Enough:
            return taps
    unseen = ", ".join(sorted(name for _, name in missing))
    raise ModelError(f"{lm.name}: the forward pass never reached {unseen}; name the architecture's parts with --arch")


@contextmanager
def _hooks(
    lm: LM, inputs: Collection[str], outputs: Collection[str], keep: Callable[[str, str, Tensor], None]
) -> Iterator[None]:
    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: keep("in", name, args[0])

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _args, output: keep("out", name, first(output))

    handles = [lm.module(name).register_forward_pre_hook(before(name)) for name in inputs]
    # Hooks run in the order of registration: what is read here is what the hooks of a patch made of it.
    handles += [lm.module(name).register_forward_hook(after(name)) for name in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read(
    lm: LM,
    rows: Sequence[Row],
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    budget: int = 8192,
    before: Callable[[Sequence[int]], None] = lambda _chunk: None,
) -> Taps:
    """What modules read or wrote at each row's position: tensors of ``[rows, dim]``, at least in float32.

    Args:
        lm: the model.
        rows: tokens and positions.
        inputs: modules whose input is wanted.
        outputs: modules whose output is wanted.
        budget: tokens of one forward pass, padding included.
        before: told which rows the next forward pass holds.
    """
    entered: dict[str, list[Tensor]] = {name: [] for name in inputs}
    left: dict[str, list[Tensor]] = {name: [] for name in outputs}
    order: list[int] = []
    for chunk in chunks([[len(row.ids)] for row in rows], budget):
        before(chunk)
        seen = tap(lm, pad(lm, [rows[i] for i in chunk]), inputs, outputs)
        at = torch.tensor([rows[i].at for i in chunk])
        for parts, tensors in ((entered, seen.inputs), (left, seen.outputs)):
            for name, tensor in tensors.items():
                parts[name].append(_at(tensor, at))
        order.extend(chunk)
    return Taps(_in_order(entered, order), _in_order(left, order))


def pad(lm: LM, rows: Sequence[Row]) -> Batch:
    """The rows as a batch that is wide enough for every position looked at."""
    batch = lm.batch([row.ids for row in rows])
    more = max(0, *(row.at + 1 - batch.ids.shape[1] for row in rows))
    return Batch(nn.functional.pad(batch.ids, (0, more)), nn.functional.pad(batch.mask, (0, more)))


def _at(hidden: Tensor, at: Tensor) -> Tensor:
    picked = hidden[torch.arange(len(hidden), device=hidden.device), at.to(hidden.device)]
    return picked.to(torch.promote_types(picked.dtype, torch.float32))


def _in_order(parts: dict[str, list[Tensor]], order: Sequence[int]) -> dict[str, Tensor]:
    back = torch.tensor(order).argsort()
    return {name: torch.cat(tensors)[back.to(tensors[0].device)] for name, tensors in parts.items()}


def chunks(lengths: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Portions of groups of rows, of similar length, each at most ``budget`` tokens with padding (or one group).

    Args:
        lengths: for each group the lengths of its rows.
        budget: tokens of one portion.
    """
    chunk: list[int] = []
    width = rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: (max(lengths[i]), i)):
        width, rows = max(width, *lengths[i]), rows + len(lengths[i])
        if chunk and width * rows > budget:
            yield chunk
            chunk, width, rows = [], max(lengths[i]), len(lengths[i])
        chunk.append(i)
    if chunk:
        yield chunk
