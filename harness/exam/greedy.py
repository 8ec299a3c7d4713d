"""Greedy continuations of many contexts: side by side, by length, and a text that is done gives its place to the next.

Contexts that begin alike are read behind one front.  Each text that is being written has a slot of a cache, in which
its keys and values begin in the first column, so that rows of every length share a pass without padding between them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from harness.exam.passes import Fronts, OutputHead, PositionsAsked, Reading, in_memory, looked_at, too_large
from harness.models.cache_layers import SlotLayer
from harness.models.lm import LM
from harness.models.memory import Room, out_of_memory
from harness.models.packing import split_at_fronts

__all__ = ["Writing"]

_SLOTS = 32
"""Texts that are written side by side at most, where nothing else is asked for."""


_ALL_TOKENS = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Layers of a cache that keep all tokens, as long as these are no more than a window."""


@dataclass
class _Text:
    """A text that is being written: which it is, how many tokens the cache holds of it, and what was written last."""

    index: int
    length: int
    last: int


@dataclass(eq=False)
class Writing:
    """How some contexts are continued.

    Attributes:
        lm: the model.
        contexts: their tokens.
        most: the tokens that are written to each at most.
        ends: tokens that end a text; they are part of it.
        stopped: whether what was written so far holds its end.
        marks: what each context carries besides its tokens.
        room: how much the model takes at once.
        rows: texts written side by side at most; None for as many as have room.
        before: told the mark of each row of the next forward pass.
        done: told how many more texts have been written.
        never: tokens that are not written, of texts of several tokens.
    """

    lm: LM
    contexts: Sequence[tuple[int, ...]]
    most: int
    ends: frozenset[int]
    stopped: Callable[[Sequence[int]], bool]
    marks: Sequence[int]
    room: Room
    rows: int | None = None
    before: Callable[[Sequence[int]], None] = lambda _marks: None
    done: Callable[[int], None] = lambda _texts: None
    never: frozenset[int] = frozenset()
    _written: list[list[int]] = field(init=False)
    _left: set[int] = field(init=False)
    _active: list[_Text] = field(default_factory=list, init=False)
    _layers: list[SlotLayer] = field(default_factory=list, init=False)
    _fronts: Fronts = field(init=False)

    def __post_init__(self) -> None:
        self._written = [[] for _ in self.contexts]
        self._left = set(range(len(self.contexts)))
        self._fronts = Fronts(self.lm, self.before)

    def texts(self) -> list[list[int]]:
        """The tokens that continue each context."""
        if self.most == 1:
            return self._next()
        with torch.no_grad():
            for front, members in split_at_fronts(self.contexts, self.marks, self.room.front):
                self._write(sorted(members, key=lambda i: -len(self.contexts[i])), front)
        return self._written

    def can(self) -> bool:
        """Whether texts can be written so, tried on two short contexts.

        Not so where a patch looks at hidden states or logits, where a model keeps something else than keys and values
        of all tokens, or where it counts positions by the columns of a cache.
        """
        if looked_at(self.lm) or self.lm.model._forward_pre_hooks:
            return False
        if self.most == 1:
            return True
        window = getattr(self.lm.model.config.get_text_config(decoder=True), "sliding_window", None)
        if window and max(map(len, self.contexts), default=0) + self.most >= window:
            return False
        if self.room.fits is None and self.contexts:
            with torch.no_grad():
                self.room.fits = in_memory(self._agree)
            self._drop()
        return self.room.fits is not False

    def _next(self) -> list[list[int]]:
        """The one token after each context, for which nothing is kept; equal contexts are read once."""
        same: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, ids in enumerate(self.contexts):
            same.setdefault((self.marks[i], ids), []).append(i)
        reading = Reading(
            self.lm,
            [ids for _, ids in same],
            [[PositionsAsked((0,))]] * len(same),
            [mark for mark, _ in same],
            self.room,
            self.rows,
            self.before,
            rounded=True,
        )
        members = list(same.values())
        for (text, _), found in reading.results():
            for i in members[text]:
                self._goes_on(i, found.best)
        return self._written

    def _agree(self) -> bool:
        # Two of different lengths show it, and short ones cost little.
        order = sorted(range(len(self.contexts)), key=lambda i: len(self.contexts[i]))
        longer = (i for i in order if len(self.contexts[i]) > len(self.contexts[order[0]]))
        chosen = [*islice(longer, 1), order[0]]
        try:
            logits, layers = self._read(chosen, 0)
            if not all(type(layer).__name__ in _ALL_TOKENS for layer in layers):
                return False
            tokens = logits.argmax(-1).tolist()
            self._place(chosen, range(len(chosen)), layers, tokens=tokens, slots=len(chosen))
            found = self._step()
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            return False
        return all(self._near(row, i, token) for row, i, token in zip(found, chosen, tokens, strict=True))

    def _near(self, logits: Tensor, i: int, token: int) -> bool:
        """Whether logits are those after a context and a token that are read by themselves."""
        ids = [*self.contexts[i], token]
        self.before([self.marks[i]])
        with OutputHead(self.lm, torch.tensor([len(ids) - 1]), 1):
            alone = self.lm.model(input_ids=self.lm.batch([ids]).ids, use_cache=False).logits[0, 0].float()
        loose = 1e-3 if self.lm.model.dtype in (torch.float32, torch.float64) else 0.1
        return float((logits.float() - alone).abs().max()) <= loose * max(1.0, float(alone.abs().max()))

    def _write(self, waiting: Sequence[int], front: int) -> None:
        """Write texts that share a front, the longest contexts first; fewer at once where memory runs out."""
        fit = max(1, self.room.written // (len(self.contexts[waiting[0]]) + self.most))
        slots = min(self.rows or _SLOTS, fit, len(waiting))
        while in_memory(partial(self._side_by_side, waiting, front, slots)) is None:
            self._drop()
            self.room.release()
            waiting = [i for i in waiting if i in self._left]
            if slots == 1 and not front:
                raise too_large(self.lm, self.contexts[waiting[0]])
            # At last, contexts are read as they are.
            slots, front = (slots // 2, front) if slots > 1 else (1, 0)
            self.room.written = slots * (len(self.contexts[waiting[0]]) + self.most)
        self._drop()

    def _drop(self) -> None:
        """Forget what is being written, and give its memory back."""
        self._active, self._layers = [], []
        self._fronts.clear()
        for i in self._left:
            self._written[i] = []

    def _side_by_side(self, waiting: Sequence[int], front: int, slots: int) -> bool:
        """Write texts; those that wait take the places of others as soon as a quarter of all is free."""
        queue = list(waiting)
        while queue or self._active:
            free = slots - len(self._active)
            if queue and (not self._active or 4 * free >= slots):
                fit = max(1, self.room.tokens // (len(self.contexts[queue[0]]) - front))
                portion, queue = queue[: min(free, fit)], queue[min(free, fit) :]
                logits, layers = self._read(portion, front)
                tokens = self._likeliest(logits)
                on = [row for row, i in enumerate(portion) if self._goes_on(i, tokens[row])]
                self._place(portion, on, layers, tokens=tokens, slots=slots)
            if self._active:
                self._go_on(self._likeliest(self._step()))
        return True

    def _read(self, portion: Sequence[int], front: int) -> tuple[Tensor, list[Any]]:
        """Read contexts: logits ``[contexts, vocabulary]`` after each, and the layers of a cache that holds them."""
        batch = self.lm.batch([self.contexts[i][front:] for i in portion])
        given: dict[str, Any] = {"input_ids": batch.ids, "use_cache": True}
        if front:
            kept = self._fronts.behind(self.marks[portion[0]], self.contexts[portion[0]][:front])
            assert kept is not None
            at = front + torch.arange(batch.ids.shape[1], device=self.lm.device)
            given["attention_mask"] = torch.cat([batch.mask.new_ones(len(portion), front), batch.mask], 1)
            given["past_key_values"] = kept.growing(len(portion))
            given |= self._positions(at.expand(len(portion), -1))
        self.before([self.marks[i] for i in portion])
        last = torch.arange(len(portion)) * batch.ids.shape[1] + batch.lengths.cpu() - 1
        with OutputHead(self.lm, last, len(portion)):
            output = self.lm.model(**given)
        return output.logits[0], output.past_key_values.layers

    def _positions(self, at: Tensor) -> dict[str, Tensor]:
        """Positions as an argument, of a model that takes them."""
        return {"position_ids": at} if "position_ids" in inspect.signature(self.lm.model.forward).parameters else {}

    def _place(
        self, portion: Sequence[int], rows: Iterable[int], layers: Sequence[Any], *, tokens: Sequence[int], slots: int
    ) -> None:
        """Give a slot to contexts that have been read and go on.

        Args:
            portion: the contexts that have been read, the longest first.
            rows: which of them go on.
            layers: the layers of the cache that holds them, row by row.
            tokens: the token after each.
            slots: how many texts there are at once.
        """
        if not self._layers:
            columns = len(self.contexts[portion[0]]) + self.most
            self._layers = [SlotLayer(layer.keys, layer.values, slots=slots, columns=columns) for layer in layers]
        for row in rows:
            length = len(self.contexts[portion[row]])
            for kept, layer in zip(self._layers, layers, strict=True):
                kept.put(len(self._active), layer.keys[row, :, :length], layer.values[row, :, :length])
            self._active.append(_Text(portion[row], length, tokens[row]))

    def _goes_on(self, i: int, token: int) -> bool:
        """Note a token of a text, and tell whether more are wanted."""
        written = self._written[i]
        written.append(token)
        if token not in self.ends and len(written) < self.most and not self.stopped(written):
            return True
        self._left.discard(i)
        self.done(1)
        return False

    def _step(self) -> Tensor:
        """Logits ``[texts, vocabulary]`` after the last token of each text that is being written."""
        from transformers.cache_utils import Cache

        at = torch.tensor([text.length for text in self._active])
        width = int(at.max()) + 1
        for layer in self._layers:
            layer.at, layer.width = at, width
        self.before([self.marks[text.index] for text in self._active])
        logits: Tensor = self.lm.model(
            input_ids=torch.tensor([[text.last] for text in self._active], device=self.lm.device),
            attention_mask=(torch.arange(width) <= at[:, None]).long().to(self.lm.device),
            past_key_values=Cache(list(self._layers)),
            use_cache=True,
            **self._positions(at[:, None].to(self.lm.device)),
        ).logits[:, -1]
        for text in self._active:
            text.length += 1
        return logits

    def _likeliest(self, logits: Tensor) -> list[int]:
        """The likeliest token of each text, of those that may be written; ``logits`` are ``[texts, vocabulary]``."""
        if self.never:
            logits = logits.index_fill(-1, torch.tensor(sorted(self.never), device=logits.device), -torch.inf)
        found: list[int] = logits.argmax(-1).tolist()
        return found

    def _go_on(self, tokens: Sequence[int]) -> None:
        """Note the next token of each text; the last one takes the slot of one that is done."""
        for slot in reversed(range(len(tokens))):
            text = self._active[slot]
            text.last = tokens[slot]
            if not self._goes_on(text.index, text.last):
                last = self._active.pop()
                if slot < len(self._active):
                    self._active[slot] = last
                    for layer in self._layers:
                        layer.put(slot, *layer.text(len(self._active), last.length))
