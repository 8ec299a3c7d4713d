"""Overwrite what modules write at some tokens, and see what becomes of the probability of an answer.

Every row of a pass is the same text, with other noise; an overwriting touches some of its columns at some layers. What
lies in front of the first touched column, and below the first touched layer, is as it was: many overwritings go
through the upper blocks side by side, each joining at its own layer, with the keys and values of the columns in front
taken from the pass that they start from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from harness.facts import Asked
from harness.lm import LM
from harness.taps import first

__all__ = ["Kind", "Overwriting", "Pass", "Restorer"]

Kind = Literal["mlp", "attn", "block"]
"""Whose output is overwritten: the feed-forward module, the attention module, or the whole block (hidden state)."""

_DECODED = 256
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Overwriting:
    """Which outputs are overwritten.

    Attributes:
        start: the first token.
        stop: one past the last token.
        layers: the layers, consecutive.
    """

    start: int
    stop: int
    layers: range


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass over rows of one text, and all of it that others start from.

    Attributes:
        ids: the tokens of the text.
        target: the tokens whose probability is wanted, the last of them not among ``ids``.
        noise: what was added to the embedding of each row at ``noised`` columns, ``[rows, width, d]``.
        noised: the first of these columns.
        entered: what entered each block, and what left the last, ``[rows, columns, d]`` each.
        wrote: what the modules of the kind wrote, by layer, ``[rows, columns, d]`` each.
        keys: what attention keeps, by layer, ``[rows, heads, columns, dim]`` each.
        values: the same of its values.
        probability: of the target, ``[rows]``, float64.
    """

    ids: tuple[int, ...]
    target: tuple[int, ...]
    noise: Tensor
    noised: int
    entered: list[Tensor]
    wrote: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    probability: Tensor

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.noise)

    def select(self, rows: slice) -> Pass:
        """Some of the rows."""
        entered, wrote, keys, values = (
            [tensor[rows] for tensor in kind] for kind in (self.entered, self.wrote, self.keys, self.values)
        )
        noise, probability = self.noise[rows], self.probability[rows]
        return Pass(self.ids, self.target, noise, self.noised, entered, wrote, keys, values, probability)


class _Front(DynamicLayer):
    """One layer of a cache: what stands in front, the same for every group of rows; what is added is forgotten."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        groups = len(key_states) // len(self.keys)
        keys, values = (kept.repeat(groups, 1, 1, 1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


class _Enough(Exception):  # noqa: N818
    """The blocks have been called."""


_CACHE = object()
"""Stands where a recorded call was given a cache."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]
_Way = Callable[[Pass, Sequence[Tensor], Sequence[Overwriting]], Tensor]


class Restorer:
    """Runs a model with outputs of one kind overwritten."""

    def __init__(self, lm: LM, kind: Kind, budget: int = 4096) -> None:
        """A restorer.

        Args:
            lm: the model; unchanged by all that is done here.
            kind: whose outputs are overwritten.
            budget: tokens that go through a block at once (or the rows of one overwriting).

        Raises:
            ModelError: the attention module of the blocks was not found, and its outputs are meant.
        """
        self.lm, self.kind, self.budget = lm, kind, budget
        name = {"mlp": lm.arch.mlp_of, "attn": lm.arch.attn_of, "block": lm.arch.block}[kind]
        self._modules = [lm.module(name(layer)) for layer in range(lm.arch.layers)]
        self._blocks = [lm.module(lm.arch.block(layer)) for layer in range(lm.arch.layers)]
        self._calls_of: dict[tuple[int, int], list[_Call]] = {}
        self._whole: bool | None = None

    def observe(self, asked: Asked, noise: Tensor, noised: int) -> Pass:
        """Run the model on rows of one text, with noise on the embedding of each.

        Args:
            asked: the text, and the answer whose probability is wanted.
            noise: ``[rows, width, d]``.
            noised: the first column that it is added to.
        """
        entered: list[Tensor] = []
        wrote: list[Tensor] = []
        rows = len(noise)
        batch, cache = self.lm.batch([asked.ids] * rows), DynamicCache()

        def shaped(output: Any) -> Tensor:
            # OPT flattens rows and columns inside its blocks.
            return first(output).reshape(rows, len(asked.ids), -1)

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self._noisy(noise, noised))
            for block, module in zip(self._blocks, self._modules, strict=True):
                stack.enter_context(_before(block, lambda args, kwargs: entered.append(_hidden(args, kwargs))))
                stack.enter_context(_after(module, lambda output: wrote.append(shaped(output))))
            stack.enter_context(_after(self._blocks[-1], lambda output: entered.append(shaped(output))))
            logits = self.lm.model(
                input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=True
            ).logits
        keys, values = ([getattr(layer, kind) for layer in cache.layers] for kind in ("keys", "values"))
        probability = _likelihood(logits[:, -len(asked.target) :], asked.target).exp()
        return Pass(asked.ids, asked.target, noise, noised, entered, wrote, keys, values, probability)

    def probabilities(self, start: Pass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]) -> Tensor:
        """The probability of the target under each overwriting, in each row, ``[overwritings, rows]``, float64.

        Args:
            start: the pass that is overwritten.
            values: what stands in place of what each layer wrote, ``[columns, d]`` each.
            overwritings: at which columns and layers.
        """
        if self._whole is None:
            self._whole = self._must_run_whole(start, values, overwritings)
        found = torch.empty(len(overwritings), start.rows, dtype=torch.float64)
        way, portions = (self._through_all, self._mixed) if self._whole else (self._upwards, self._alike)
        with torch.no_grad():
            for portion in portions(start, overwritings):
                found[portion] = way(start, values, [overwritings[i] for i in portion]).exp()
        return found

    def _must_run_whole(self, start: Pass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]) -> bool:
        """Whether running blocks by themselves gives other numbers than the whole model, or cannot be done."""
        # A patch with hooks follows the tokens of every pass, and is told of whole rows only.
        if self.lm.model._forward_pre_hooks:
            return True
        by_layer = sorted(overwritings, key=lambda o: (o.start, o.layers.start))
        few = [by_layer[i * (len(by_layer) - 1) // 3] for i in range(4)]
        loose = 1e-4 if next(self.lm.model.parameters()).dtype in (torch.float32, torch.float64) else 0.1
        with torch.no_grad():
            wanted = torch.cat([self._through_all(start, values, [one]) for one in few])
            try:
                ours = torch.cat([self._upwards(start, values, [one]) for one in few])
            except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
                # Blocks that cannot be called by themselves, or a cache of another kind.
                return True
        return not bool((ours - wanted).abs().max() <= loose)

    def _alike(self, start: Pass, overwritings: Sequence[Overwriting]) -> Iterator[list[int]]:
        """Portions of overwritings of the same columns, lowest layers first, each within the budget (or one alone)."""
        same: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i in sorted(range(len(overwritings)), key=lambda i: overwritings[i].layers.start):
            same[overwritings[i].start, overwritings[i].stop].append(i)
        for (column, _), members in same.items():
            size = max(1, self.budget // (start.rows * (len(start.ids) - column)))
            yield from (members[i : i + size] for i in range(0, len(members), size))

    def _mixed(self, start: Pass, overwritings: Sequence[Overwriting]) -> Iterator[list[int]]:
        """Portions within the budget (or one alone)."""
        size, every = max(1, self.budget // (start.rows * len(start.ids))), list(range(len(overwritings)))
        yield from (every[i : i + size] for i in range(0, len(every), size))

    # --- the blocks by themselves

    def _upwards(self, start: Pass, values: Sequence[Tensor], group: Sequence[Overwriting]) -> Tensor:
        """The log-likelihoods ``[overwritings, rows]``; all overwrite the same columns, lowest layers first."""
        column, stop = group[0].start, group[0].stop
        calls, cache = self._calls(start, column), _front(start, column)
        hidden = start.entered[0][:0, column:]
        own = self.kind == "block"
        for layer in range(group[0].layers.start, len(self._blocks)):
            joining = sum(one.layers.start == layer for one in group)
            inside = [i for i, one in enumerate(group) if layer in one.layers]

            def put(output: Tensor, inside: list[int] = inside, value: Tensor = values[layer][column:stop]) -> Tensor:
                by_group = output.reshape(-1, start.rows, len(start.ids) - column, output.shape[-1]).clone()
                by_group[inside, :, : stop - column] = value.to(output)
                return by_group.reshape(output.shape)

            if not own:
                hidden = _joined(hidden, start.entered[layer][:, column:], joining)
            if len(hidden):
                with _replacing(self._modules[layer], put if inside and not own else None):
                    hidden = first(
                        self._blocks[layer](
                            hidden, *_with(calls[layer][0], cache), **_with_named(calls[layer][1], cache)
                        )
                    )
            if own:
                hidden = _joined(hidden, start.entered[layer + 1][:, column:], joining)
                hidden = put(hidden) if inside else hidden
        return self._decoded(hidden[:, -len(start.target) :], start.target).reshape(len(group), start.rows)

    def _calls(self, start: Pass, column: int) -> list[_Call]:
        """What each block is given besides hidden states, for rows that go on at a column.

        Masks and positions; they depend on the numbers of columns alone, and broadcast over rows.
        """
        shape = (column, len(start.ids))
        if shape not in self._calls_of:
            self._calls_of[shape] = self._recorded(start.select(slice(0, 1)), column)
        return self._calls_of[shape]

    def _recorded(self, start: Pass, column: int) -> list[_Call]:
        calls: list[_Call] = []

        def record(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append((_without(args[1:]), dict(zip(named, _without(tuple(named.values())), strict=True))))
            if len(calls) == len(self._blocks):
                raise _Enough

        batch = self.lm.batch([start.ids])
        given: dict[str, Any] = {"attention_mask": batch.mask, "use_cache": False}
        if column:
            positions = torch.arange(column, len(start.ids), device=self.lm.device)[None]
            given |= {"past_key_values": _front(start, column), "use_cache": True, "position_ids": positions}
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(_before(block, record))
            with suppress(_Enough):
                self.lm.model(input_ids=batch.ids[:, column:], **given)
        return calls

    def _decoded(self, hidden: Tensor, target: tuple[int, ...]) -> Tensor:
        """The log-likelihood of the target from what left the last block at its positions, ``[rows]``."""
        norm, head = self.lm.arch.norm, self.lm.module(self.lm.arch.head)
        found = []
        for part in torch.split(hidden, max(1, _DECODED // len(target))):
            normed = self.lm.module(norm)(part) if norm else part
            found.append(_likelihood(head(normed), target))
        return torch.cat(found)

    # --- the whole model

    def _through_all(self, start: Pass, values: Sequence[Tensor], group: Sequence[Overwriting]) -> Tensor:
        """The log-likelihoods ``[overwritings, rows]`` by the whole model, for those that do more between blocks."""
        batch = self.lm.batch([start.ids] * (start.rows * len(group)))
        with ExitStack() as stack:
            stack.enter_context(self._noisy(start.noise.repeat(len(group), 1, 1), start.noised))
            for layer, module in enumerate(self._modules):
                inside = [(i, one) for i, one in enumerate(group) if layer in one.layers]

                def put(output: Tensor, inside: list[tuple[int, Overwriting]] = inside, layer: int = layer) -> Tensor:
                    by_group = output.reshape(len(group), start.rows, len(start.ids), output.shape[-1]).clone()
                    for i, one in inside:
                        by_group[i, :, one.start : one.stop] = values[layer][one.start : one.stop].to(output)
                    return by_group.reshape(output.shape)

                stack.enter_context(_replacing(module, put if inside else None))
            logits = self.lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        return _likelihood(logits[:, -len(start.target) :], start.target).reshape(len(group), start.rows)

    @contextmanager
    def _noisy(self, noise: Tensor, column: int) -> Iterator[None]:
        """Every pass carries noise on the embedding."""

        def add(output: Tensor) -> Tensor:
            noised = output.clone()
            noised[:, column : column + noise.shape[1]] += noise.to(output)
            return noised

        with _replacing(self.lm.module(self.lm.arch.embedding), add):
            yield


def _likelihood(logits: Tensor, target: tuple[int, ...]) -> Tensor:
    """``sum_t log p(y_t)``, ``[rows]``, float64 on the processor, from logits ``[rows, tokens, vocabulary]``."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = torch.tensor(target, device=logits.device).expand(len(logits), -1)
    picked = wide.gather(-1, index[..., None])[..., 0]
    return (picked.cpu().double() - wide.logsumexp(-1).cpu().double()).sum(-1)


def _joined(hidden: Tensor, rows: Tensor, times: int) -> Tensor:
    """The rows below those that are under way, some times over."""
    return torch.cat([hidden.to(rows.device), rows.repeat(times, 1, 1)]) if times else hidden


def _front(start: Pass, column: int) -> Cache | None:
    """What attention sees in front of a column; nothing where that is the first."""
    if column == 0:
        return None
    pairs = zip(start.keys, start.values, strict=True)
    return Cache([_Front(keys[:, :, :column], values[:, :, :column]) for keys, values in pairs])


def _without(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_CACHE if isinstance(value, Cache) else value for value in values)


def _with(values: tuple[Any, ...], cache: Cache | None) -> tuple[Any, ...]:
    return tuple(cache if value is _CACHE else value for value in values)


def _with_named(values: dict[str, Any], cache: Cache | None) -> dict[str, Any]:
    return {name: cache if value is _CACHE else value for name, value in values.items()}


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor)
    return hidden


@contextmanager
def _before(module: nn.Module, look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Look at what a module is given."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _after(module: nn.Module, look: Callable[[Any], None]) -> Iterator[None]:
    """Look at what a module gives."""
    handle = module.register_forward_hook(lambda _module, _args, output: look(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replacing(module: nn.Module, change: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Change the hidden states that a module gives."""
    if change is None:
        yield
        return

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = change(first(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
