"""Read what enters and leaves modules during a forward pass that goes no further than needed, and repeats no prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.experts import Call, Experts, stacked_keys
from harness.models.lm import LM, Batch
from harness.models.packing import shared_length

__all__ = [
    "FULL",
    "Activations",
    "PrefixCache",
    "TokenRow",
    "at_least_float32",
    "capture_activations",
    "first_output",
    "fused_gelu",
    "hidden_at",
    "instead",
    "pad_rows",
    "prefix_after",
    "prefix_cache",
    "read_activations",
    "row_portions",
    "run_only_at",
    "skip_blocks",
    "with_first",
]

FULL = 256
"""Tokens from which on padding costs more than another pass does."""


@dataclass(frozen=True)
class TokenRow:
    """A sequence of tokens and the position that is looked at.

    Attributes:
        ids: the tokens.
        at: the position; it may lie in the padding, where a released code looks there.
    """

    ids: tuple[int, ...]
    at: int


@dataclass(frozen=True, eq=False)
class Activations:
    """What was read; every tensor is ``[rows, columns, dim]``.

    Attributes:
        inputs: module name -> what entered it.
        outputs: module name -> what left it.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class _Enough(Exception):  # noqa: N818
    """Everything that was asked for has been read."""


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """What attention keeps of the tokens in front of some rows, computed once and read any number of times.

    Attributes:
        keys: for each layer ``[rows, heads, columns, dim]``; a row's last token is in the last column.
        values: the same of the values.
        lengths: the number of tokens of each row, ``[rows]``.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    def select(self, rows: Tensor) -> PrefixCache:
        """Some of the rows."""
        keys, values = ([tensor[rows.to(tensor.device)] for tensor in kind] for kind in (self.keys, self.values))
        return PrefixCache(keys, values, self.lengths[rows])

    def cache(self, rows: int | None = None) -> Any:
        """As a model takes it; what is one row, any number of ``rows`` times, without a copy."""
        from transformers.cache_utils import Cache

        from harness.models.cache_layers import RepeatableLayer

        def given(kept: Tensor) -> Tensor:
            return kept if rows is None else kept.expand(rows, -1, -1, -1)

        return Cache([RepeatableLayer(given(k), given(v)) for k, v in zip(self.keys, self.values, strict=True)])

    def growing(self, rows: int) -> Any:
        """A cache of transformers that holds one row any number of times, and keeps what is added."""
        from transformers.cache_utils import DynamicCache

        made = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            made.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return made

    def inputs(self, lm: LM, batch: Batch) -> dict[str, Any]:
        """The arguments of a forward pass over rows that go on where these tokens end."""
        columns = torch.arange(self.keys[0].shape[-2], device=self.lengths.device)
        mask = columns >= len(columns) - self.lengths[:, None]
        positions = self.lengths[:, None] + torch.arange(batch.ids.shape[1], device=self.lengths.device)
        return {
            "attention_mask": torch.cat([mask.to(batch.mask), batch.mask], 1),
            # Padding may stand behind the last position that the model knows.
            "position_ids": positions.clamp(max=lm.context - 1),
            "past_key_values": self.cache(),
            "use_cache": True,
        }


def first_output(output: Any) -> Tensor:
    """A module's hidden states: its output, or the first part of it."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, Tensor)
    return hidden


def with_first(output: Any, hidden: Tensor) -> Any:
    """A module's output with other hidden states, of the kind that the module gives (a list in OpenAI's GPT)."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


def capture_activations(
    lm: LM,
    batch: Batch,
    *,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    front: PrefixCache | None = None,
    at: Tensor | None = None,
    early: bool = False,
) -> Activations:
    """Run the model on a batch until the named modules have been seen; the blocks above the last one do not run.

    Args:
        lm: the model.
        batch: the rows.
        inputs: modules whose input is wanted; of experts it is their stacked key (:mod:`harness.models.experts`).
        outputs: modules whose output is wanted.
        front: what stands in front of the rows.
        at: where in each row stacked keys are wanted, which are then ``[rows, 1, dim]``; by default everywhere.
        early: whether outputs are read before the hooks of a patch make something else of them.

    Raises:
        ModelError: a module does not exist, or the forward pass never reached it.
    """
    taps, mixtures = Activations(), lm.arch.stacked
    missing = {("in", name) for name in inputs} | {("out", name) for name in outputs}
    rows, columns = batch.ids.shape

    def keep(kind: str, name: str, hidden: Tensor) -> None:
        # OPT flattens rows and columns inside its blocks.
        seen = hidden.detach().reshape(rows, 1 if at is not None and kind == "in" and name in mixtures else columns, -1)
        missing.discard((kind, name))
        # Falcon adds attention to what its feed-forward module gave in place.
        (taps.inputs if kind == "in" else taps.outputs)[name] = seen.clone() if missing and kind == "out" else seen
        if not missing:
            raise _Enough

    plain = {"attention_mask": batch.mask, "use_cache": False}
    tokens = None if at is None else torch.arange(rows) * columns + at.cpu()
    with _hooks(lm, inputs, outputs=outputs, keep=keep, tokens=tokens, early=early), torch.no_grad():
        try:
            lm.model(input_ids=batch.ids, **(front.inputs(lm, batch) if front else plain))
        except _Enough:
            return taps
    unseen = ", ".join(sorted(name for _, name in missing))
    raise ModelError(f"{lm.name}: the forward pass never reached {unseen}; name the architecture's parts with --arch")


def prefix_cache(lm: LM, heads: Sequence[tuple[int, ...]], budget: int = 8192) -> PrefixCache | None:
    """What stands in front of some rows, a beginning that several share computed once; None where nothing does.

    Args:
        lm: the model; its attention is causal, and its cache one of transformers.
        heads: the tokens in front of each row.
        budget: tokens of one forward pass, padding included.
    """
    known = sorted({head for head in heads if head})
    if not known:
        return None
    stems = _stems(known)
    front = prefix_cache(lm, stems, budget)
    rests = [head[len(stem) :] for head, stem in zip(known, stems, strict=True)]
    width, parts, order = max(map(len, known)), [], []
    for portion in row_portions([[len(rest)] for rest in rests], budget):
        begun = front.select(torch.tensor(portion, device=lm.device)) if front else None
        parts.append(_past(lm, [rests[i] for i in portion], width, begun))
        order += portion
    keys, values = (
        [torch.cat(same) for same in zip(*kind, strict=True)]
        for kind in ([part.keys for part in parts], [part.values for part in parts])
    )
    whole = PrefixCache(keys, values, torch.cat([part.lengths for part in parts]))
    place = {known[i]: row for row, i in enumerate(order)}
    rows = torch.tensor([place.get(head, 0) for head in heads], device=lm.device)
    # A row that nothing stands in front of takes another's keys, and sees none of them.
    lengths = torch.tensor([len(head) for head in heads], device=lm.device)
    return replace(whole.select(rows), lengths=lengths)


def prefix_after(lm: LM, ids: Sequence[int], front: PrefixCache | None = None) -> PrefixCache:
    """What attention keeps of one row of tokens, and of what stands in front of it.

    Args:
        lm: the model; its attention is causal, and its cache one of transformers.
        ids: the tokens.
        front: what stands in front of them, one row.
    """
    return _past(lm, [tuple(ids)], len(ids) + (int(front.lengths[0]) if front else 0), front)


def _stems(heads: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The longest beginning of each sorted head that a neighbour shares; empty where that saves less than a quarter."""
    shared = [0, *map(shared_length, heads, heads[1:]), 0]
    # At least one token of each is left.
    stems = [
        head[: max(n for n in (before, after, 0) if n < len(head))]
        for head, before, after in zip(heads, shared, shared[1:], strict=False)
    ]
    saved = sum(map(len, stems)) - sum(map(len, set(stems)))
    return stems if 4 * saved >= sum(map(len, heads)) else [()] * len(heads)


def _past(lm: LM, heads: Sequence[tuple[int, ...]], width: int, front: PrefixCache | None) -> PrefixCache:
    """Keys and values of rows of tokens and of what stands in front of them, in ``width`` columns."""
    from harness.models.cache_layers import Filling

    batch, cache = lm.batch(heads), Filling(lm.cache_layers, front, _Enough)
    inputs = front.inputs(lm, batch) if front else {"attention_mask": batch.mask, "use_cache": True}
    with torch.no_grad(), suppress(_Enough):
        lm.model(input_ids=batch.ids, **{**inputs, "past_key_values": cache})
    begun = front.keys[0].shape[-2] if front else 0
    columns = torch.arange(width, device=lm.device) + (begun + batch.lengths - width)[:, None]
    rows = torch.arange(len(heads), device=lm.device)[:, None]

    def aligned(kept: Tensor) -> Tensor:
        at = kept.transpose(1, 2)[rows.to(kept.device), columns.clamp(min=0).to(kept.device)]
        return at.transpose(1, 2)

    keys, values = ([aligned(getattr(layer, kind)) for layer in cache.layers] for kind in ("keys", "values"))
    return PrefixCache(keys, values, batch.lengths + (front.lengths if front else 0))


@contextmanager
def _hooks(
    lm: LM,
    inputs: Collection[str],
    *,
    outputs: Collection[str],
    keep: Callable[[str, str, Tensor], None],
    tokens: Tensor | None = None,
    early: bool = False,
) -> Iterator[None]:
    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: keep("in", name, args[0])

    def stacked(name: str, experts: Experts) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, args, kwargs: keep("in", name, stacked_keys(Call(experts, module, args, kwargs), tokens))

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _args, output: keep("out", name, first_output(output))

    mixtures = lm.arch.stacked
    handles = [lm.module(name).register_forward_pre_hook(before(name)) for name in inputs if name not in mixtures]
    handles += [
        lm.module(name).register_forward_pre_hook(stacked(name, mixtures[name]), with_kwargs=True)
        for name in inputs
        if name in mixtures
    ]
    # Hooks run in the order of registration: what is read last is what the hooks of a patch made of it.
    handles += [lm.module(name).register_forward_hook(after(name), prepend=early) for name in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_activations(
    lm: LM,
    rows: Sequence[TokenRow],
    *,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    budget: int = 8192,
    before: Callable[[Sequence[int]], None] = lambda _chunk: None,
) -> Activations:
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
    for chunk in row_portions([[len(row.ids)] for row in rows], budget):
        before(chunk)
        at = torch.tensor([rows[i].at for i in chunk])
        seen = capture_activations(lm, pad_rows(lm, [rows[i] for i in chunk]), inputs=inputs, outputs=outputs, at=at)
        for parts, tensors in ((entered, seen.inputs), (left, seen.outputs)):
            for name, tensor in tensors.items():
                parts[name].append(hidden_at(tensor, at))
        order.extend(chunk)
    return Activations(_in_order(entered, order), _in_order(left, order))


def pad_rows(lm: LM, rows: Sequence[TokenRow]) -> Batch:
    """The rows as a batch that is wide enough for every position looked at."""
    batch = lm.batch([row.ids for row in rows])
    more = max(0, *(row.at + 1 - batch.ids.shape[1] for row in rows))
    return Batch(nn.functional.pad(batch.ids, (0, more)), nn.functional.pad(batch.mask, (0, more)))


@contextmanager
def run_only_at(module: nn.Module, kept: Tensor) -> Iterator[None]:
    """Run a module that treats every token alike at some of them only; zeros stand at the others.

    Args:
        module: the module.
        kept: where, ``row * columns + column``.
    """
    shape: list[torch.Size] = []

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shape.append(args[0].shape[:-1])
        return (args[0].flatten(0, -2)[kept.to(args[0].device)], *args[1:])

    def place(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        rows = shape.pop()
        whole = output.new_zeros(rows.numel(), output.shape[-1])
        return whole.index_copy(0, kept.to(output.device), output).reshape(*rows, -1)

    # What other hooks see is whole.
    handles = [module.register_forward_pre_hook(pick), module.register_forward_hook(place, prepend=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skip_blocks(blocks: Sequence[nn.Module], below: nn.Module) -> Iterator[None]:
    """Blocks compute nothing for one pass: they hand on what a block below them gave, so only their calls count."""
    given: list[Any] = []
    handle = below.register_forward_hook(lambda _module, _args, output: given.append(output))
    try:
        with instead(blocks, lambda *_args, **_kwargs: given[-1]):
            yield
    finally:
        handle.remove()


def fused_gelu(model: nn.Module) -> AbstractContextManager[None]:
    """Let one kernel compute GELU's tanh approximation, which transformers' ``gelu_new`` spells out in eight.

    The formula is the same (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).  A step takes a third of the time,
    and one tensor is kept for the gradient instead of four.
    """
    from transformers.activations import NewGELUActivation

    spelt = [module for module in model.modules() if isinstance(module, NewGELUActivation)]
    return instead(spelt, functools.partial(nn.functional.gelu, approximate="tanh"))


@contextmanager
def instead(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Modules compute something else."""
    # accelerate, too, puts a forward of its own into a module.
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor at least in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def hidden_at(hidden: Tensor, at: Tensor) -> Tensor:
    """Hidden states ``[rows, columns, dim]`` at one position of each row, ``[rows, dim]``, at least in float32.

    What is of one column has been read there alone.
    """
    if hidden.shape[1] == 1:
        return at_least_float32(hidden[:, 0])
    return at_least_float32(hidden[torch.arange(len(hidden), device=hidden.device), at.to(hidden.device)])


def _in_order(parts: dict[str, list[Tensor]], order: Sequence[int]) -> dict[str, Tensor]:
    back = torch.tensor(order).argsort()
    return {name: torch.cat(tensors)[back.to(tensors[0].device)] for name, tensors in parts.items()}


def row_portions(lengths: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Portions of groups of rows, of similar length, each at most ``budget`` tokens with padding (or one group).

    Args:
        lengths: for each group the lengths of its rows.
        budget: tokens of one portion.
    """
    chunk: list[int] = []
    width = rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: (max(lengths[i]), i)):
        wider = max(width, *lengths[i])
        if chunk and ((rows + len(lengths[i])) * wider > budget or rows * (wider - width) > FULL):
            yield chunk
            chunk, wider, rows = [], max(lengths[i]), 0
        chunk.append(i)
        width, rows = wider, rows + len(lengths[i])
    if chunk:
        yield chunk
