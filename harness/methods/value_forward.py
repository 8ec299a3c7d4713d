"""The forward passes of a value optimisation: from the edited layer up where a model can be cut so, else all of it.

The change reaches nothing below the edited layer and nothing in front of its token: both run once, and every step runs
the blocks above on the columns from that token on, the last feed-forward part and logits at supervised positions only.
Whether a model can be cut so is tried on a few rows (:func:`fastest_forward`); where it cannot, more of it is run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.value_rows import Objective, PreparedEdit, positions, prefixes
from harness.models.activations import (
    Activations,
    PrefixCache,
    at_least_float32,
    capture_activations,
    first_output,
    hidden_at,
    pad_rows,
    prefix_cache,
    run_only_at,
    skip_blocks,
    with_first,
)
from harness.models.lm import LM

__all__ = ["BlocksAbove", "BlocksFrom", "Forward", "Way", "WholeModel", "fastest_forward"]


class Forward:
    """Computes logits at the supervised places with a change at the seam.

    Attributes:
        names: the edited modules.
        seam: the unchanged output of each, ``[rows, columns, d]``, at least float32.
        key: what the down-projection reads at the change, ``[rows, f]``, at least float32.
        output: what it gives there, ``[rows, d]``, at least float32.
        states: what left each of the layers whose agreement is wanted there, at the last call of :meth:`logits`,
            ``[rows, d]``.
    """

    seam: Sequence[Float[Tensor, "rows columns d"]]
    key: Float[Tensor, "rows f"]
    output: Float[Tensor, "rows d"]
    states: list[Float[Tensor, "rows d"]]

    def __init__(
        self, lm: LM, prepared: Sequence[PreparedEdit], objective: Objective, *, front: PrefixCache | None = None
    ) -> None:
        self.lm, self.objective, self.front = lm, objective, front
        self.batch = pad_rows(lm, [row for one in prepared for row in one.rows])
        self.places = positions(prepared, lm.device)
        last = lm.arch.layers - 1
        wanted = last if objective.loss_layer is None else max(objective.loss_layer, objective.layer)
        lm.arch.block(wanted)
        self.lens = None if wanted == last else lm.arch.block(wanted)
        parts = {
            # Where something stands behind the down-projection, only what that gives itself can be written.
            "mlp": (lm.arch.writer_of,),
            "block": (lm.arch.block,),
            "parts": (lm.arch.attn_of, lm.arch.writer_of),
        }
        self.names = [part(objective.layer) for part in parts[objective.seam]]
        self.down = lm.arch.writer_of(objective.layer)
        self.contexts = len(prepared[0].said) - prepared[0].rivals
        above = range(objective.layer + 1, last + 1)[: objective.agreement_layers] if objective.agreement else ()
        self.watched, self.states = [lm.arch.block(layer) for layer in above], []

    def _see(self, inputs: Collection[str] = (), outputs: Collection[str] = ()) -> Activations:
        """Run the model until all that is wanted, and these modules, have been seen unchanged."""
        wanted = {*self.names, self.down, *outputs}
        seen = capture_activations(
            self.lm, self.batch, inputs={self.down, *inputs}, outputs=wanted, front=self.front, at=self.places.at
        )
        self.seam = [at_least_float32(seen.outputs[name]) for name in self.names]
        self.key, self.output = (hidden_at(kept[self.down], self.places.at) for kept in (seen.inputs, seen.outputs))
        return seen

    def seen(self) -> tuple[Float[Tensor, "edits 2 f"], Float[Tensor, "edits 2 d"]]:
        """Keys and outputs of every edit, ``[edits, 2, f]`` and ``[edits, 2, d]``, see :class:`Values`."""
        rows = self.places.first[:, None] + torch.arange(self.contexts, device=self.lm.device)
        each = (kept[rows.to(kept.device)].to(self.lm.device) for kept in (self.key, self.output))
        key, output = (torch.stack([part[:, 0], part.mean(1)], 1) for part in each)
        return key, output

    def start(self) -> Float[Tensor, "edits parts_d"]:
        """What is changed, at its position in the first row of every edit, ``[edits, parts * d]``."""
        rows = self.places.first
        found = [seam[rows.to(seam.device), self.places.at[rows].to(seam.device)] for seam in self.seam]
        return torch.cat([part.to(self.lm.device) for part in found], 1)

    def logits(
        self, delta: Float[Tensor, "edits parts_d"]
    ) -> tuple[Float[Tensor, "p vocabulary"], Float[Tensor, "edits vocabulary"]]:
        """Logits at the supervised positions ``[p, vocabulary]`` and at the KL positions ``[edits, vocabulary]``."""
        raise NotImplementedError

    def _decode(
        self, hidden: Float[Tensor, "rows columns d"], row: Int[Tensor, "p"], column: Int[Tensor, "p"]
    ) -> Float[Tensor, "p vocabulary"]:
        norm = self.lm.arch.norm
        picked = hidden[row.to(hidden.device), column.to(hidden.device)]
        normed = self.lm.module(norm)(picked) if norm else picked
        return at_least_float32(self.lm.module(self.lm.arch.head)(normed)).to(self.lm.device)

    def _moved(self, output: Float[Tensor, "*shape"], delta: Float[Tensor, "edits d"]) -> Float[Tensor, "*shape"]:
        """An output of the edited layer with each edit's change at its rows' positions."""
        hidden = output.reshape(*self.batch.ids.shape, -1)
        where = (torch.arange(len(hidden), device=hidden.device), self.places.at.to(hidden.device))
        moved = at_least_float32(hidden[where]) + delta[self.places.of].to(hidden.device)
        return hidden.index_put(where, moved.to(hidden.dtype)).reshape(output.shape)

    @contextmanager
    def _shifted(self, delta: Float[Tensor, "edits parts_d"]) -> Iterator[None]:
        """Every pass carries the change, ``[edits, parts * d]``."""

        def shift(part: Tensor, output: Any) -> Any:
            return with_first(output, self._moved(first_output(output), part))

        with ExitStack() as stack:
            for name, part in zip(self.names, torch.split(delta, self.lm.arch.width, 1), strict=True):
                hook = functools.partial(lambda part, _module, _args, output: shift(part, output), part)
                stack.enter_context(_hooked(self.lm.module(name), hook))
            yield

    @contextmanager
    def _seen(self) -> Iterator[dict[str, Tensor]]:
        """What leaves the block that is decoded for the loss, where that is not the last."""
        seen: dict[str, Tensor] = {}
        if self.lens is None:
            yield seen
            return
        with _hooked(self.lm.module(self.lens), lambda _module, _args, output: seen.update(lens=first_output(output))):
            yield seen

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """The states of the layers whose agreement is wanted are kept as they come."""
        shape = (*self.batch.ids.shape, -1)

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self.states.append(hidden_at(first_output(output).reshape(shape), self.places.at))

        with ExitStack() as stack:
            for name in self.watched:
                stack.enter_context(_hooked(self.lm.module(name), keep))
            yield


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class BlocksAbove(Forward):
    """Runs the blocks above the edited one, on what it gave and on what stands in front of the rows.

    For models that add what the seam gives to the residual stream as it is.
    """

    lowest = 1

    def __init__(
        self, lm: LM, prepared: Sequence[PreparedEdit], objective: Objective, *, front: PrefixCache | None = None
    ) -> None:
        super().__init__(lm, prepared, objective, front=front)
        edited = lm.arch.block(objective.layer)
        names = [lm.arch.block(i) for i in range(objective.layer + self.lowest, lm.arch.layers)]
        self.blocks = [lm.module(name) for name in names]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with ExitStack() as stack:
            for block in self.blocks:
                handle = block.register_forward_pre_hook(self._record, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(skip_blocks(self.blocks[1 - self.lowest :], lm.module(edited)))
            self.given = self._see(names[-1:], [edited]).outputs[edited]
        columns, (row, column) = self.batch.ids.shape[1], (self.places.row, self.places.column)
        decoded = [row * columns + column, self.places.kl_row * columns + self.places.kl_column]
        if lm.arch.block(lm.arch.layers - 1) in self.watched:
            decoded.append(torch.arange(len(self.places.at), device=row.device) * columns + self.places.at)
        self.decoded: Tensor = torch.unique(torch.cat(decoded))

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What entered the edited block is kept; the others are given what leaves the one below.
        if self.calls or self.lowest:
            args, kwargs = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append((args, kwargs))

    def logits(
        self, delta: Float[Tensor, "edits parts_d"]
    ) -> tuple[Float[Tensor, "p vocabulary"], Float[Tensor, "edits vocabulary"]]:
        places, self.states = self.places, []
        watched = [self.lm.module(name) for name in self.watched]
        with self._seen() as seen, self._wanted():
            hidden = seen["lens"] = self._given(delta)
            for block, (args, kwargs) in zip(
                self.blocks[1 - self.lowest :], self.calls[1 - self.lowest :], strict=True
            ):
                hidden = first_output(block(hidden, *args, **kwargs))
                if block in watched:
                    self.states.append(hidden_at(hidden, places.at))
        if self.lens:
            shown = self._decode(seen["lens"], places.row, places.column)
            return shown, self._decode(hidden, places.kl_row, places.kl_column)
        # At once: of few positions, reading a large vocabulary's matrix takes longer than multiplying with it.
        row, column = torch.cat([places.row, places.kl_row]), torch.cat([places.column, places.kl_column])
        supervised, essence = self._decode(hidden, row, column).tensor_split([len(places.row)])
        return supervised, essence

    def _given(self, delta: Float[Tensor, "edits parts_d"]) -> Float[Tensor, "rows columns d"]:
        """What leaves the edited block with the change, ``[rows, columns, d]``."""
        return self._moved(self.given, delta)

    def _wanted(self) -> AbstractContextManager[None]:
        """The last block's feed-forward module computes the positions that are decoded; zeros stand at the others."""
        last = self.lm.arch.layers - 1
        if self.lens or last == self.objective.layer or last not in self.lm.arch.editable:
            return nullcontext()
        return run_only_at(self.lm.module(self.lm.arch.mlp_of(last)), self.decoded)


class BlocksFrom(BlocksAbove):
    """Runs the edited block too: for models with something between the seam and the residual stream, such as a norm."""

    lowest = 0

    def _given(self, delta: Float[Tensor, "edits parts_d"]) -> Float[Tensor, "rows columns d"]:
        args, kwargs = self.calls[0]
        with self._shifted(delta):
            return first_output(self.blocks[0](*args, **kwargs))


class WholeModel(Forward):
    """Runs the whole model, for those that do more between blocks than hand on a hidden state."""

    def __init__(
        self, lm: LM, prepared: Sequence[PreparedEdit], objective: Objective, *, front: PrefixCache | None = None
    ) -> None:
        super().__init__(lm, prepared, objective, front=front)
        self._see()

    def logits(
        self, delta: Float[Tensor, "edits parts_d"]
    ) -> tuple[Float[Tensor, "p vocabulary"], Float[Tensor, "edits vocabulary"]]:
        places, self.states = self.places, []
        with self._shifted(delta), self._seen() as seen, self._watching():
            full = self.lm.model(input_ids=self.batch.ids, attention_mask=self.batch.mask, use_cache=False).logits
        if self.lens:
            supervised = self._decode(seen["lens"], places.row, places.column)
        else:
            supervised = at_least_float32(full[places.row.to(full.device), places.column.to(full.device)])
        essence = at_least_float32(full[places.kl_row.to(full.device), places.kl_column.to(full.device)])
        return supervised.to(self.lm.device), essence.to(self.lm.device)


@dataclass(frozen=True)
class Way:
    """How a model is run, and on which rows that was tried.

    Attributes:
        runner: the forward pass.
        split: whether rows are split.
        least: the fewest tokens in front of the change, over the edits that it was tried on.
        most: the most.
    """

    runner: type[Forward]
    split: bool
    least: int
    most: int

    def rows(self, prepared: Sequence[PreparedEdit]) -> list[PreparedEdit]:
        """The rows of each edit as this way takes them."""
        return [one.split() for one in prepared] if self.split else list(prepared)

    def covers(self, prepared: Sequence[PreparedEdit]) -> bool:
        """Whether it was tried on rows with as little and with as much in front of the change."""
        return self.least <= min(map(_reach, prepared)) and max(map(_reach, prepared)) <= self.most

    def widened(self, other: Way | None) -> Way:
        """The same, tried on the rows of another, too, where that is the same way."""
        if other is None or (other.runner, other.split) != (self.runner, self.split):
            return self
        return replace(self, least=min(self.least, other.least), most=max(self.most, other.most))


def fastest_forward(lm: LM, prepared: Sequence[PreparedEdit], objective: Objective) -> Way:
    """The fastest way that gives the model's own logits: on split rows, on whole ones, or the whole model.

    Tried with a change at the seam, on rows with little and with much in front of it.

    Args:
        lm: the model.
        prepared: the rows of each edit, whole.
        objective: where the change stands.
    """
    ends = min(prepared, key=_reach), max(prepared, key=_reach)
    few = [_few(one) for one in dict.fromkeys(ends)]
    whole = WholeModel(lm, few, objective)
    change = whole.start()
    with torch.no_grad():
        wanted = whole.logits(change)
    least, most = map(_reach, ends)
    # A patch with hooks follows the tokens of every pass, and is told of whole rows only.
    for split in (False,) if lm.model._forward_pre_hooks else (True, False):
        mine = [one.split() for one in few] if split else few
        for runner in (BlocksAbove, BlocksFrom):
            if _agrees(runner, lm, mine, objective=objective, change=change, wanted=wanted):
                return Way(runner, split, least, most)
    return Way(WholeModel, False, least, most)


def _reach(one: PreparedEdit) -> int:
    return max(row.at for row in one.rows)


def _few(one: PreparedEdit) -> PreparedEdit:
    far = max(range(len(one.said)), key=lambda r: one.rows[r].at)
    rows = [one.rows[0], one.rows[far], one.rows[-1]]
    return replace(one, rows=rows, said=[one.said[0], one.said[far]], prefixes=[()] * len(rows), rivals=0)


def _agrees(
    runner: type[Forward],
    lm: LM,
    prepared: Sequence[PreparedEdit],
    *,
    objective: Objective,
    change: Float[Tensor, "edits parts_d"],
    wanted: tuple[Float[Tensor, "p vocabulary"], Float[Tensor, "edits vocabulary"]],
) -> bool:
    """Whether running some blocks by themselves gives the logits of the whole model."""
    try:
        with torch.no_grad():
            ours = runner(lm, prepared, objective, front=prefix_cache(lm, prefixes(prepared))).logits(change)
    except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
        # Blocks that cannot be called by themselves, or a cache of another kind.
        return False
    loose = 1e-5 if next(lm.model.parameters()).dtype in (torch.float32, torch.float64) else 2e-2
    return all(float((a - b).norm()) <= loose * float(b.norm()) for a, b in zip(ours, wanted, strict=True))
