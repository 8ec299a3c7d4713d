"""Overwrite what modules write at some tokens, and see what becomes of the probability of an answer.

The rows of a pass are texts of one length, each with noise of its own; an overwriting touches some columns of all of
them at some layers. What lies in front of the first touched column, and below the first touched layer, is as it was:
many overwritings go through the upper blocks side by side, each joining at its own layer, with the keys and values of
the columns in front taken from the pass that they start from.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from harness.models.activations import at_least_float32, first_output, run_only_at, with_first
from harness.models.cache_layers import RepeatableLayer
from harness.models.lm import LM
from harness.studies.causal.facts import FactTokens

__all__ = ["ForwardPass", "Kind", "Overwriting", "Restorer"]

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
class ForwardPass:
    """A forward pass over rows of one length, and all of it that others start from.

    Attributes:
        ids: the tokens, ``[rows, columns]``.
        target: the tokens whose probability is wanted, the last of them not among ``ids``, ``[rows, tokens]``.
        noise: what was added to the embedding of each row at ``noised`` columns, ``[rows, width, d]``.
        noised: the first of these columns.
        entered: what entered each block, and what left the last, ``[rows, columns, d]`` each.
        wrote: what the modules of the kind wrote, by layer, ``[rows, columns, d]`` each.
        keys: what attention keeps, by layer, ``[rows, heads, columns, dim]`` each.
        values: the same of its values.
        probability: of the target, ``[rows]``, float64.
    """

    ids: Tensor
    target: Tensor
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

    @property
    def columns(self) -> int:
        """The number of tokens of a row."""
        return self.ids.shape[1]

    def select(self, rows: Sequence[int]) -> ForwardPass:
        """Some of the rows."""
        entered, wrote, keys, values = (
            [tensor[list(rows)] for tensor in kind] for kind in (self.entered, self.wrote, self.keys, self.values)
        )
        ids, target, noise, probability = (
            tensor[list(rows)] for tensor in (self.ids, self.target, self.noise, self.probability)
        )
        return ForwardPass(ids, target, noise, self.noised, entered, wrote, keys, values, probability)


class _Front(RepeatableLayer):  # type: ignore[no-untyped-call]
    """What stands in front, the same for every group of rows."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, kept: Tensor, added: Tensor) -> Tensor:
        by_group = added.reshape(-1, len(kept), *added.shape[1:])
        return torch.cat([kept.expand(len(by_group), *kept.shape), by_group], -2).flatten(0, 1)


class _Enough(Exception):  # noqa: N818
    """The blocks have been called."""


_CACHE = object()
"""Stands where a recorded call was given a cache."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class _Branch:
    """Rows of one overwriting on their way up.

    Attributes:
        window: the layers that are overwritten.
        joins: the first block that runs on them alone.
        leader: the branch that they are equal to until then; None where they come from the unchanged pass.
    """

    window: range
    joins: int
    leader: int | None


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
        self._by_blocks: bool | None = None

    def observe(self, asked: Sequence[FactTokens], noise: Tensor, noised: int) -> ForwardPass:
        """Run the model on texts of one length, with noise on the embedding of each.

        Args:
            asked: the text of each row, and the answer whose probability is wanted, of one length too.
            noise: ``[rows, width, d]``.
            noised: the first column that it is added to.
        """
        target = torch.tensor([one.target for one in asked], device=self.lm.device)
        if self._by_blocks is not False:
            # A recurrent block keeps something else than keys and values, or wants a cache of its own.
            with suppress(TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
                return self._observed(asked, target, noise, noised, DynamicCache())
            self._by_blocks = False
        return self._observed(asked, target, noise, noised, None)

    def _observed(
        self, asked: Sequence[FactTokens], target: Tensor, noise: Tensor, noised: int, cache: Cache | None
    ) -> ForwardPass:
        """As :meth:`observe`; without a cache no keys and values are kept."""
        entered: list[Tensor] = []
        wrote: list[Tensor] = []
        batch = self.lm.batch([one.ids for one in asked])

        def shaped(output: Any) -> Tensor:
            # OPT flattens rows and columns inside its blocks; Falcon adds attention to what is given here in place.
            return first_output(output).reshape(*batch.ids.shape, -1).clone()

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self._noisy(noise, noised))
            for block, module in zip(self._blocks, self._modules, strict=True):
                stack.enter_context(_before(block, lambda args, kwargs: entered.append(_hidden(args, kwargs))))
                stack.enter_context(_after(module, lambda output: wrote.append(shaped(output))))
            stack.enter_context(_after(self._blocks[-1], lambda output: entered.append(shaped(output))))
            logits = self._logits(batch.ids, target.shape[1], past_key_values=cache, use_cache=cache is not None)
        keys, values = ([] if cache is None else _kept(cache, kind, self._blocks) for kind in ("keys", "values"))
        probability = _likelihood(logits, target).exp()
        return ForwardPass(batch.ids, target, noise, noised, entered, wrote, keys, values, probability)

    def probabilities(
        self, start: ForwardPass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]
    ) -> Tensor:
        """The probability of the target under each overwriting, in each row, ``[overwritings, rows]``, float64.

        Args:
            start: the pass that is overwritten.
            values: what stands in place of what each layer wrote, ``[rows or 1, columns, d]`` each.
            overwritings: at which columns and layers.
        """
        if self._by_blocks is None:
            self._by_blocks = self._can_by_blocks(start, values, overwritings)
        seen = [self._seen(start, one) for one in overwritings] if self._by_blocks else list(overwritings)
        distinct = [one for one in dict.fromkeys(seen) if one.layers]
        found = {one: start.probability for one in seen if not one.layers}
        with torch.no_grad():
            for portion, log_p in (self._upwards if self._by_blocks else self._through)(start, values, distinct):
                found.update(zip(portion, log_p.exp(), strict=True))
        return torch.stack([found[one] for one in seen])

    def _seen(self, start: ForwardPass, one: Overwriting) -> Overwriting:
        """What of an overwriting can be seen, where nothing reads the last block's output in front of the answer."""
        if one.stop > start.columns - start.target.shape[1]:
            return one
        return replace(one, layers=range(one.layers.start, min(one.layers.stop, len(self._blocks) - 1)))

    def _can_by_blocks(self, start: ForwardPass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]) -> bool:
        """Whether the blocks by themselves give the numbers of the whole model, tried on some of the overwritings."""
        able = [one for one in overwritings if self._seen(start, one).layers]
        # A patch with hooks follows the tokens of every pass, and is told of whole rows only.
        if not able or self.lm.model._forward_pre_hooks:
            return False
        few = [able[i * (len(able) - 1) // 3] for i in range(4)]
        rows = range(0, start.rows, max(1, start.rows // 3))
        start, values = start.select(rows), [value[list(rows)] if len(value) > 1 else value for value in values]
        with torch.no_grad():
            wanted = dict(
                zip((self._seen(start, one) for one in few), self._through_all(start, values, few), strict=True)
            )
            try:
                ours = list(self._upwards(start, values, list(wanted)))
            except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
                # Blocks that cannot be called by themselves, or a cache of another kind.
                return False
        loose = 1e-4 if self.lm.model.dtype in (torch.float32, torch.float64) else 0.1
        pairs = ((log_p, wanted[one]) for group, found in ours for one, log_p in zip(group, found, strict=True))
        return all(bool((a - b).abs().max() <= loose) for a, b in pairs)

    def _alike(self, start: ForwardPass, overwritings: Sequence[Overwriting]) -> Iterator[list[Overwriting]]:
        """Portions of overwritings of the same columns, lowest layers first, each within the budget (or one alone)."""
        same: dict[tuple[int, int], list[Overwriting]] = defaultdict(list)
        for one in sorted(overwritings, key=lambda one: (one.layers.start, one.layers.stop)):
            same[one.start, one.stop].append(one)
        for (column, _), members in same.items():
            size = max(1, self.budget // (start.rows * (start.columns - column)))
            yield from (members[i : i + size] for i in range(0, len(members), size))

    def _mixed(self, start: ForwardPass, overwritings: Sequence[Overwriting]) -> Iterator[list[Overwriting]]:
        """Portions within the budget (or one alone)."""
        size = max(1, self.budget // (start.rows * start.columns))
        yield from (list(overwritings[i : i + size]) for i in range(0, len(overwritings), size))

    # --- the blocks by themselves

    def _upwards(
        self, start: ForwardPass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]
    ) -> Iterator[tuple[list[Overwriting], Tensor]]:
        """Portions of distinct overwritings, and their log-likelihoods ``[overwritings, rows]``."""
        left = self._left(start, values, overwritings)
        for portion in self._alike(start, overwritings):
            yield portion, self._together(start, values, left, portion)

    def _left(
        self, start: ForwardPass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]
    ) -> dict[int, Tensor]:
        """What leaves the first block of each overwriting, by layer, ``[rows, columns, d]``.

        All columns are overwritten at once: inside a block attention alone looks at other columns, and what it looks at
        is unchanged, so each column is as if it alone had been.
        """
        layers = {one.layers.start for one in overwritings}
        if self.kind == "block":
            return {layer: values[layer] for layer in layers}
        calls, found = self._calls(start, 0), dict[int, Tensor]()
        for layer in layers:
            with _replacing(self._modules[layer], functools.partial(_like, values[layer])):
                args, named = calls[layer]
                hidden = first_output(
                    self._blocks[layer](start.entered[layer], *_with(args, None), **_with_named(named, None))
                )
            found[layer] = hidden.reshape(start.entered[layer].shape)
        return found

    def _together(
        self, start: ForwardPass, values: Sequence[Tensor], left: dict[int, Tensor], group: Sequence[Overwriting]
    ) -> Tensor:
        """The log-likelihoods ``[overwritings, rows]`` of distinct overwritings of the same columns."""
        column, stop, last = group[0].start, group[0].stop, len(self._blocks) - 1
        branches = _branches([one.layers for one in group])
        calls, cache = self._calls(start, column), _front(start, column)
        hidden = start.entered[0][:0, column:]
        for layer in range(last + 2):
            for branch in branches:
                if branch.joins == layer:
                    rows = _rows(hidden, branch.leader, start.rows)
                    if branch.leader is None:
                        rows = start.entered[layer][:, column:].clone()
                        rows[:, : stop - column] = left[layer - 1][:, column:stop].to(rows)
                    hidden = torch.cat([hidden.to(rows.device), rows])
            if not len(hidden) or layer > last:
                continue
            inside = [i for i, branch in enumerate(branches) if branch.joins <= layer and layer in branch.window]

            def put(
                output: Tensor, inside: list[int] = inside, value: Tensor = values[layer][:, column:stop]
            ) -> Tensor:
                by_group = output.reshape(-1, start.rows, start.columns - column, output.shape[-1]).clone()
                by_group[inside, :, : stop - column] = value.to(output)
                return by_group.reshape(output.shape)

            with ExitStack() as stack:
                if layer == last:
                    places = torch.arange(hidden[..., 0].numel()).reshape(hidden.shape[:2])[:, -start.target.shape[1] :]
                    stack.enter_context(run_only_at(self.lm.module(self.lm.arch.mlp_of(layer)), places.flatten()))
                stack.enter_context(_replacing(self._modules[layer], put if inside else None))
                args, named = calls[layer]
                hidden = first_output(self._blocks[layer](hidden, *_with(args, cache), **_with_named(named, cache)))
        answer = start.target.repeat(len(group), 1)
        found = self._decoded(hidden[:, -answer.shape[1] :], answer).reshape(len(group), start.rows)
        place = {(branch.window.start, branch.window.stop): i for i, branch in enumerate(branches)}
        return found[[place[one.layers.start, one.layers.stop] for one in group]]

    def _calls(self, start: ForwardPass, column: int) -> list[_Call]:
        """What each block is given besides hidden states, for rows that go on at a column.

        Masks and positions; they depend on the numbers of columns alone, and broadcast over rows.
        """
        shape = (column, start.columns)
        if shape not in self._calls_of:
            self._calls_of[shape] = self._recorded(start.select([0]), column)
        return self._calls_of[shape]

    def _recorded(self, start: ForwardPass, column: int) -> list[_Call]:
        calls: list[_Call] = []

        def record(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append((_without(args[1:]), dict(zip(named, _without(tuple(named.values())), strict=True))))
            if len(calls) == len(self._blocks):
                raise _Enough

        given: dict[str, Any] = {"attention_mask": torch.ones_like(start.ids), "use_cache": False}
        if column:
            positions = torch.arange(column, start.columns, device=self.lm.device)[None]
            given |= {"past_key_values": _front(start, column), "use_cache": True, "position_ids": positions}
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(_before(block, record))
            with suppress(_Enough):
                self.lm.model(input_ids=start.ids[:, column:], **given)
        return calls

    def _decoded(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The log-likelihood of the target from what left the last block at its positions, ``[rows]``."""
        norm, head = self.lm.arch.norm, self.lm.module(self.lm.arch.head)
        found = []
        size = max(1, _DECODED // target.shape[1])
        for part, answer in zip(torch.split(hidden, size), torch.split(target, size), strict=True):
            normed = self.lm.module(norm)(part) if norm else part
            found.append(_likelihood(head(normed), answer))
        return torch.cat(found)

    # --- the whole model

    def _through(
        self, start: ForwardPass, values: Sequence[Tensor], overwritings: Sequence[Overwriting]
    ) -> Iterator[tuple[list[Overwriting], Tensor]]:
        """Portions of overwritings, and their log-likelihoods ``[overwritings, rows]``."""
        for portion in self._mixed(start, overwritings):
            yield portion, self._through_all(start, values, portion)

    def _through_all(self, start: ForwardPass, values: Sequence[Tensor], group: Sequence[Overwriting]) -> Tensor:
        """The log-likelihoods ``[overwritings, rows]`` by the whole model, for those that do more between blocks."""
        ids, answer = start.ids.repeat(len(group), 1), start.target.repeat(len(group), 1)
        with ExitStack() as stack:
            stack.enter_context(self._noisy(start.noise.repeat(len(group), 1, 1), start.noised))
            for layer, module in enumerate(self._modules):
                inside = [(i, one) for i, one in enumerate(group) if layer in one.layers]

                def put(output: Tensor, inside: list[tuple[int, Overwriting]] = inside, layer: int = layer) -> Tensor:
                    by_group = output.reshape(len(group), start.rows, start.columns, output.shape[-1]).clone()
                    for i, one in inside:
                        by_group[i, :, one.start : one.stop] = values[layer][:, one.start : one.stop].to(output)
                    return by_group.reshape(output.shape)

                stack.enter_context(_replacing(module, put if inside else None))
            logits = self._logits(ids, answer.shape[1], use_cache=False)
        return _likelihood(logits, answer).reshape(len(group), start.rows)

    def _logits(self, ids: Tensor, last: int, **options: Any) -> Tensor:
        """The logits at the last columns, ``[rows, last, vocabulary]``, and of these alone where the model can."""
        if "logits_to_keep" in inspect.signature(self.lm.model.forward).parameters:
            options["logits_to_keep"] = last
        logits: Tensor = self.lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits
        return logits[:, -last:]

    @contextmanager
    def _noisy(self, noise: Tensor, column: int) -> Iterator[None]:
        """Every pass carries noise on the embedding."""

        def add(output: Tensor) -> Tensor:
            noised = output.clone()
            noised[:, column : column + noise.shape[1]] += noise.to(output)
            return noised

        with _replacing(self.lm.module(self.lm.arch.embedding), add):
            yield


def _likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """``sum_t log p(y_t)``, ``[rows]``, float64 on the processor, from logits ``[rows, tokens, vocabulary]``."""
    logits = at_least_float32(logits)
    picked = logits.gather(-1, target.to(logits.device)[..., None])[..., 0]
    return (picked.cpu().double() - logits.logsumexp(-1).cpu().double()).sum(-1)


def _branches(windows: Sequence[range]) -> list[_Branch]:
    """Distinct windows in the order of joining; those that begin at one layer are equal until the shorter ends."""
    longest = {window.start: window for window in sorted(windows, key=len)}
    joins = {w: w.stop if w != longest[w.start] else w.start + 1 for w in windows}
    # A leader comes before those that leave it at the same block.
    order = sorted(windows, key=lambda w: (joins[w], w != longest[w.start]))
    return [_Branch(w, joins[w], None if w == longest[w.start] else order.index(longest[w.start])) for w in order]


def _like(value: Tensor, output: Tensor) -> Tensor:
    """A value, for all rows of a module's output and in its form (OPT flattens rows and columns inside its blocks)."""
    # Never the value itself: Falcon adds attention to it in place.
    return value.expand(output.numel() // value[0].numel(), -1, -1).reshape(output.shape).to(output, copy=True)


def _rows(hidden: Tensor, group: int | None, rows: int) -> Tensor:
    """The rows of one group."""
    return hidden[:0] if group is None else hidden[group * rows : (group + 1) * rows]


def _kept(cache: Cache, kind: str, blocks: Sequence[nn.Module]) -> list[Tensor]:
    """The ``keys`` or the ``values`` that each block has kept.

    Raises:
        TypeError: a block has kept none.
    """
    found = [getattr(layer, kind) for layer in cache.layers]
    if len(found) != len(blocks) or not all(isinstance(one, Tensor) for one in found):
        raise TypeError(f"not every block keeps {kind}")
    return found


def _front(start: ForwardPass, column: int) -> Cache | None:
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
        return with_first(output, change(first_output(output)))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
