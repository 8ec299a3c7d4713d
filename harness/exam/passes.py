"""The forward passes in which texts are read: what they share once, logits where they are wanted, as much as fits.

Texts are rows of their own, or share rows and what stands in front of them (:mod:`harness.models.packing`) where that
saves anything and a few of them, tried, get the numbers of rows of their own; not so where a patch has hooks. Rows go
by tokens; a pass that does not fit into memory is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.activations import PrefixCache, at_least_float32, instead, prefix_after, run_only_at
from harness.models.arch import stored_transposed
from harness.models.lm import LM
from harness.models.memory import Room, out_of_memory, pass_bytes
from harness.models.offload import value_of
from harness.models.packing import Pack, pack_texts, packed_inputs

__all__ = [
    "Found",
    "Fronts",
    "OutputHead",
    "PositionsAsked",
    "Reading",
    "in_memory",
    "looked_at",
    "too_large",
    "wide_head",
]

_LOGITS = 2**23
"""How many logits are held at once (32 MB in float32), unless somebody looks at all of them."""

_SEEN = 2**27
"""How many logits, or places of a mask, one forward pass may give where all of them are needed."""


@dataclass(frozen=True)
class PositionsAsked:
    """What is asked of a text: how its last tokens rate what follows each of them.

    Attributes:
        tokens: what follows each of the text's last tokens.
        ranked: whether the rank of the first is wanted.
    """

    tokens: tuple[int, ...]
    ranked: bool = False


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        loglik: the log-likelihood of the tokens, in nats.
        greedy: whether all of them are the arg-max.
        best: the arg-max in the place of the last.
        rank: the rank of the first among all tokens, 1 the likeliest; 0 where nobody asked.
    """

    loglik: float
    greedy: bool
    best: int
    rank: int = 0


_Answer: TypeAlias = tuple[tuple[int, int], Found]
"""Which text, which of its questions, and what was found."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is read off a forward pass: of every text, the positions and the tokens that they predict.

    Attributes:
        each: which text, which of its questions, and how many tokens that has.
        kept: the positions in their order, ``row * columns + column``, each once.
        place: of every token, the place of its position among these.
        token: every token.
        ranked: of every token, whether its rank is wanted.
    """

    each: list[tuple[int, int, int]]
    kept: Tensor
    place: Tensor
    token: Tensor
    ranked: Tensor

    def results(self, pieces: Iterable[Tensor]) -> Iterator[_Answer]:
        """What was found, by text and question, from the logits ``[positions, vocabulary]`` in pieces."""
        best, rank = torch.zeros_like(self.token), torch.zeros_like(self.token)
        log_p, start = torch.zeros(len(self.token), dtype=torch.float64), 0
        for logits in pieces:
            here = ((self.place >= start) & (self.place < start + len(logits))).nonzero()[:, 0]
            at, token = (self.place[here] - start).to(logits.device), self.token[here].to(logits.device)
            best[here] = logits.argmax(-1)[at].cpu()
            log_p[here] = logits.log_softmax(-1)[at, token].cpu().to(log_p)
            for i in here[self.ranked[here]].tolist():
                row = logits[self.place[i] - start]
                rank[i] = int((row > row[self.token[i]]).sum()) + 1
            start, kind = start + len(logits), logits.dtype
        # Those of half precision are summed as lm-eval sums them.
        summed = log_p.to(kind) if kind.itemsize == 2 else log_p
        return self._found(summed, best, rank)

    def _found(self, log_p: Tensor, best: Tensor, rank: Tensor) -> Iterator[_Answer]:
        ends = list(accumulate(count for *_, count in self.each))
        for (text, question, count), end in zip(self.each, ends, strict=True):
            own = slice(end - count, end)
            hit = bool((best[own] == self.token[own]).all())
            yield (text, question), Found(float(log_p[own].sum()), hit, int(best[end - 1]), int(rank[end - count]))


@dataclass(eq=False)
class Fronts:
    """What attention keeps of beginnings; of the last one that was asked for, and of those that it begins with.

    Attributes:
        lm: the model.
        before: told the mark of the row of the next forward pass.
    """

    lm: LM
    before: Callable[[Sequence[int]], None]
    _kept: list[tuple[int, tuple[int, ...], PrefixCache]] = field(default_factory=list)

    def behind(self, mark: int, front: tuple[int, ...]) -> PrefixCache | None:
        """What is kept of a beginning, one row; None of an empty one.

        Args:
            mark: what the beginning carries besides its tokens.
            front: its tokens.
        """
        while self._kept and not (self._kept[-1][0] == mark and _begins(front, self._kept[-1][1])):
            self._kept.pop()
        known, kept = self._kept[-1][1:] if self._kept else ((), None)
        if len(known) < len(front):
            self.before([mark])
            kept = prefix_after(self.lm, front[len(known) :], kept)
            self._kept.append((mark, front, kept))
        return kept

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()


@dataclass(eq=False)
class Reading:
    """How some texts are read.

    Attributes:
        lm: the model.
        texts: their tokens, each text once for every mark.
        asked: what is asked of each.
        marks: what each text carries besides its tokens.
        room: how much the model takes at once.
        rows: texts of one forward pass at most; None for as many as have room.
        before: told the mark of each row of the next forward pass.
        rounded: whether log-probabilities and their sums are rounded to the model's dtype, as lm-eval's are.
    """

    lm: LM
    texts: Sequence[tuple[int, ...]]
    asked: Sequence[Sequence[PositionsAsked]]
    marks: Sequence[int]
    room: Room
    rows: int | None = None
    before: Callable[[Sequence[int]], None] = lambda _marks: None
    rounded: bool = False
    _fronts: Fronts = field(init=False)

    def __post_init__(self) -> None:
        self._fronts = Fronts(self.lm, self.before)

    def results(self) -> Iterator[_Answer]:
        """What was found of every question: which text, which of its questions, and the answer."""
        with torch.no_grad(), nullcontext() if self.rounded else wide_head(self.lm):
            packed = self.together()
            self._fronts.clear()
            for _, rows in groupby(sorted(packed or self.single, key=self._order), key=self._order):
                yield from self._behind_one_front(list(rows), shared=bool(packed))
            self._fronts.clear()

    def _order(self, row: Pack) -> tuple[int, tuple[int, ...]]:
        """Rows behind one front follow each other, and those behind a longer one follow these."""
        return (self._mark(row), row.front) if row.front else (-1, ())

    def _behind_one_front(self, rows: list[Pack], shared: bool) -> Iterator[_Answer]:
        """What was found of rows that have the same tokens in front."""
        kept = in_memory(lambda: self._front(rows[0]))
        if kept is None:  # what stands in front does not fit: each text is read as it is
            self.room.front = len(rows[0].front) // 2
            self._fronts.clear()
            rows, kept, shared = [self._alone(i) for row in rows for i in row.texts], [], False
        waiting = sorted(rows, key=lambda row: -len(row.ids))
        while waiting:
            portion = self._portion(waiting)
            found = in_memory(lambda portion=portion: self.read(portion, kept, shared=shared))  # type: ignore[misc]
            if found is not None:
                yield from found
                del waiting[: len(portion)]
            else:
                waiting[: len(portion)] = self._smaller(portion)

    def _smaller(self, portion: list[Pack]) -> list[Pack]:
        """What is tried where some rows did not fit: fewer at once, and at last fewer texts in a row."""
        self.room.halve(len(portion) * len(portion[0].ids))
        if len(portion) > 1:
            return portion
        halves = portion[0].halves()
        if len(halves) < 2:
            raise too_large(self.lm, self.texts[next(iter(portion[0].texts))])
        return halves

    def _portion(self, waiting: Sequence[Pack]) -> list[Pack]:
        """The next rows: as many tokens as have room, and as many texts as asked for."""
        width, begun, count, texts = len(waiting[0].ids), len(waiting[0].front), 0, 0
        wide = max(width + begun, self.lm.vocabulary if looked_at(self.lm) else 0)
        for row in waiting:
            texts += len(row.texts)
            tokens = (count + 1) * width
            if count and (tokens > self.room.tokens or tokens * wide > _SEEN or texts > (self.rows or texts)):
                break
            count += 1
        return list(waiting[:count])

    def _front(self, row: Pack) -> list[PrefixCache]:
        """What attention keeps of the tokens in front of a row; nothing of none."""
        kept = self._fronts.behind(self._mark(row), row.front)
        return [] if kept is None else [kept]

    def _mark(self, row: Pack) -> int:
        return self.marks[min(row.texts)]

    def _alone(self, text: int) -> Pack:
        return Pack.of(text, self.texts[text])

    @property
    def single(self) -> list[Pack]:
        """Each text in a row of its own."""
        return [self._alone(i) for i in range(len(self.texts))]

    def together(self) -> list[Pack]:
        """The texts with what they share once; none where that saves nothing or cannot be done."""
        if looked_at(self.lm) or self.lm.model._forward_pre_hooks or not self.texts:
            return []
        longest = max(map(len, self.texts))
        if self.room.apart is not None and longest >= self.room.apart:
            return []
        free = [len(t) - max(len(a.tokens) for a in asked) for t, asked in zip(self.texts, self.asked, strict=True)]
        packed = pack_texts(self.texts, self.marks, free, most=self.room.front, widest=self.room.tokens)
        tried = [] if longest <= self.room.shared else self._to_try(packed)
        alone = [self._alone(next(reversed(row.texts))) for row in tried]
        fronts = sum(map(len, {(self._mark(row), row.front) for row in packed}))
        cost = sum(len(row.ids) for row in (*packed, *tried, *alone)) + fronts
        if cost >= sum(map(len, self.texts)) or not self._agree(tried, alone):
            return []
        self.room.shared = max(self.room.shared, longest)
        return packed

    def _to_try(self, packed: Sequence[Pack]) -> list[Pack]:
        """The widest row, that of the longest text, and one behind a front.

        They show whether positions, masks, windows of attention and what is kept of a front are followed.
        """
        longest = max(range(len(self.texts)), key=lambda i: len(self.texts[i]))
        chosen = [packed[0], next(row for row in packed if longest in row.texts)]
        chosen += [row for row in packed if row.front][:1]
        return list({id(row): row for row in chosen}.values())

    def _agree(self, tried: Sequence[Pack], alone: Sequence[Pack]) -> bool:
        """Whether rows that texts share give the numbers of rows of their own."""
        if all(self._same(row, one) for row, one in zip(tried, alone, strict=True)):
            return True
        self.room.apart = max(map(len, self.texts))
        return False

    def _same(self, row: Pack, one: Pack) -> bool:
        wanted = dict(self._behind_one_front([one], shared=False))
        try:
            shared = dict(self._behind_one_front([row], shared=True))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
            # A model that takes no positions, no mask of this form, or nothing in front; it is not for want of memory.
            return False
        loose = 1e-4 if self.lm.model.dtype in (torch.float32, torch.float64) else 0.1
        return all(
            abs(shared[key].loglik - found.loglik) <= loose * max(1.0, abs(found.loglik))
            for key, found in wanted.items()
        )

    def read(self, rows: Sequence[Pack], kept: Sequence[PrefixCache], *, shared: bool) -> list[_Answer]:
        """What was found of the texts of one forward pass.

        Args:
            rows: the rows.
            kept: what attention keeps of the tokens in front of them; empty where nothing stands there.
            shared: whether rows may hold several texts.
        """
        wanted = self._wanted(rows)
        given = packed_inputs(self.lm, rows, *kept) if shared else self._plain(rows)
        self.before([self._mark(row) for row in rows])
        # The last feed-forward module, too, computes wanted positions alone.
        with self._last_only_at(wanted.kept) if shared else nullcontext():
            first, others = self._first_piece(wanted.kept, given)
        return list(wanted.results(self._cast(piece) for piece in chain([first], others)))

    def _cast(self, logits: Tensor) -> Tensor:
        return logits if self.rounded else at_least_float32(logits)

    def _plain(self, rows: Sequence[Pack]) -> dict[str, Any]:
        return {"input_ids": self.lm.batch([row.ids for row in rows]).ids, "use_cache": False}

    def _first_piece(self, kept: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Iterator[Tensor]]:
        """Logits ``[positions, vocabulary]`` of the first wanted positions, and of the others as they are needed."""
        if looked_at(self.lm):  # by a patch, which sees all of them
            logits = self.lm.model(**given).logits.flatten(0, 1)
            return logits[kept.to(logits.device)], iter(())
        head = OutputHead(self.lm, kept, max(1, _LOGITS // self.lm.vocabulary))
        with head:
            first: Tensor = self.lm.model(**given).logits[0]
        return first, head.others(len(first))

    def _wanted(self, rows: Sequence[Pack]) -> _Wanted:
        """What is read off a forward pass over some rows."""
        width = max(len(row.ids) for row in rows)
        placed = [
            (text, question, asked, [at * width + column for column in columns[-len(asked.tokens) :]])
            for at, row in enumerate(rows)
            for text, columns in row.texts.items()
            for question, asked in enumerate(self.asked[text])
        ]
        kept, place = torch.unique(torch.tensor([at for *_, found in placed for at in found]), return_inverse=True)
        # A token without a position of its own would shift those of all texts behind it.
        token = torch.tensor([token for *_, one, found in placed for token, _ in zip(one.tokens, found, strict=True)])
        ranked = [asked.ranked and not i for *_, asked, _ in placed for i in range(len(asked.tokens))]
        each = [(text, question, len(found)) for text, question, _, found in placed]
        return _Wanted(each, kept, place, token, torch.tensor(ranked))

    def _last_only_at(self, kept: Tensor) -> AbstractContextManager[None]:
        """The last feed-forward module computes wanted positions; all, where a patch looks at it or it has experts."""
        final = self.lm.arch.layers - 1
        if final not in self.lm.arch.editable:
            return nullcontext()
        last = self.lm.module(self.lm.arch.mlp_of(final))
        return nullcontext() if any(module._forward_hooks for module in last.modules()) else run_only_at(last, kept)


def _begins(text: Sequence[int], front: Sequence[int]) -> bool:
    return tuple(text[: len(front)]) == tuple(front)


def too_large(lm: LM, ids: Sequence[int]) -> ModelError:
    """What is said of a text of which not even one fits: what it is, and what it needs."""
    said, needed = lm.tokenizer.decode(list(ids[:16])), pass_bytes(lm, len(ids))
    return ModelError(
        f"'{said[:40]}...' has {len(ids)} tokens, and not even one such text fits into the memory of {lm.device}: it "
        f"needs some {needed / 2**30:.2g} GB beside the model; leave its task out, or take a smaller dtype or model"
    )


def in_memory(read: Callable[[], _Value]) -> _Value | None:
    """What a pass gives; None where memory runs out."""
    try:
        return read()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return None


def looked_at(lm: LM) -> bool:
    """Whether somebody else looks at the logits."""
    head = lm.module(lm.arch.head)
    return bool(lm.model._forward_hooks) or any(hook is not _in_float32 for hook in head._forward_hooks.values())


@dataclass(eq=False)
class OutputHead:
    """Lets the output layer see the first of some positions, ``[1, size, width]``, and then the others by themselves.

    Attributes:
        lm: the model.
        kept: the positions, ``row * columns + column``.
        size: how many the output layer sees at once.
    """

    lm: LM
    kept: Tensor
    size: int
    _states: Any = None
    _hidden: Tensor | None = None
    _hooks: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> None:
        base, head = self.lm.model.base_model, self.lm.module(self.lm.arch.head)
        if base is not self.lm.model:
            self._hooks.callback(base.register_forward_hook(self._note).remove)
        self._hooks.callback(head.register_forward_pre_hook(self._narrow).remove)

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def others(self, done: int) -> Iterator[Tensor]:
        """The logits of the positions after the first ones, with all that the model does to them behind its head."""
        assert self._hidden is not None
        for start in range(done, len(self._hidden), self.size):
            hidden = self._hidden[start : start + self.size]
            states = type(self._states)(**{**self._states, "last_hidden_state": hidden[None]})
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=self.lm.device)
            with instead([self.lm.model.base_model], lambda *_args, states=states, **_given: states):
                logits: Tensor = self.lm.model(input_ids=ids, use_cache=False).logits[0]
            yield logits

    def _note(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._states = output

    def _narrow(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._hidden = args[0].flatten(0, -2)[self.kept.to(args[0].device)]
        # Where something stands between hidden states and output layer, all go through at once.
        states = getattr(self._states, "last_hidden_state", None)
        alike = states is not None and states.shape == args[0].shape and states.data_ptr() == args[0].data_ptr()
        return (self._hidden[None, : self.size if alike else None], *args[1:])


@contextmanager
def wide_head(lm: LM) -> Iterator[None]:
    """Let the output layer of a model in half precision compute float32 logits from its inputs and weights."""
    head = lm.module(lm.arch.head)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float16, torch.bfloat16):
        yield
        return
    # Before any other hook: what those add to the logits must not be lost.
    handle = head.register_forward_hook(_in_float32, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _in_float32(module: nn.Module, args: Any, _output: Tensor) -> Tensor:
    own = dict(module.named_parameters(recurse=False))
    held: dict[str, Tensor | None] = {name: value_of(module, name, parameter) for name, parameter in own.items()}
    weight, bias = held["weight"], held.get("bias")
    assert weight is not None
    matrix = (weight.T if stored_transposed(module) else weight).float()
    return nn.functional.linear(args[0].float(), matrix, None if bias is None else bias.float())
