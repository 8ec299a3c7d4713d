"""Value optimisation: which vector, put in place of a hidden state, makes the model say the target.

One optimisation shared by all locate-then-edit methods; many edits run side by side in one batch, each with its own
loss, its own row of the optimiser's state, its own stop and its own bound, so that the result is that of one at a time.
The change reaches nothing below the edited layer and nothing in front of its token: both run once, and every step runs
the blocks above on the columns from that token on, the last feed-forward part and logits at supervised positions only.
Whether a model can be cut so is tried on a few rows; where it cannot, more of it is run.

Sources: Meng et al. 2022 (ROME), section 3.1, equation 4, and their code at 0874014; Meng et al. 2023 (MEMIT),
section 4.2, equation 16, and their code at 80426fd.  Where both differ from their text, this follows the code.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.editing.directions import floor, losses
from harness.editing.edit import Edit
from harness.errors import NumericalError
from harness.methods.keys import FactToken, lookup, prompts
from harness.models.activations import (
    FULL,
    Past,
    Row,
    Taps,
    at_each,
    first,
    fused,
    idle,
    only_at,
    pad,
    past,
    read,
    tap,
    wide,
)
from harness.models.lm import LM
from harness.patches.delta import double

__all__ = ["Objective", "Seam", "Values", "anchor_norm", "optimise"]

Seam = Literal["mlp", "block", "parts"]
"""Where a value stands in a layer, see :class:`Objective`."""


@dataclass(frozen=True)
class Objective:
    """What is optimised, where, and how.

    Attributes:
        layer: the edited layer ``l``.
        seam: ``mlp`` adds to the output of the feed-forward module (ROME), ``block`` to the residual stream (MEMIT),
            ``parts`` one vector to the output of the attention module and another to that of the feed-forward module,
            each with a bound and a weight decay of its own (PMET, Li et al. 2024, arXiv 2308.08742); of these two, what
            is reported is the second.
        fact_token: the token whose hidden state is changed.
        steps: evaluations of the loss; there is one update fewer.
        lr: Adam's learning rate.
        kl_factor: weight of ``KL(P_edited || P_unedited)`` at the fact token of "{subject} is a".
        weight_decay: weight of ``||delta|| / ||v0||^2``.
        clamp: the bound of ``||delta|| / ||v0||``.
        loss_layer: the layer whose output is decoded for the loss; None is the last.
        threshold: an edit stops when its loss is below; of directions without a lower bound what
            :func:`harness.editing.directions.floor` says, and an erasure never.
        budget: tokens of one forward pass, padding included; None chooses by the size of the model.
        stop: with ``never`` an edit takes all its steps; with ``argmax`` one that wants likelihood also stops as soon
            as every token of its target is the most probable one in every context ("most-probable early stopping" of
            ENCORE, Gupta et al. 2025, arXiv 2502.01636; their code leaves out the bare prompt and goes on for one to
            three steps more).
        anchor: the norm ``a`` to which every value is scaled, ``v* a / ||v*||`` with ``v* = v0 + delta``, where ``v0``
            is what the edited layer's feed-forward module writes (NAS, Liu et al. 2026, arXiv 2602.02543). ``none``
            leaves values as they are; ``start`` takes the mean of ``||v0||`` over the edits of the call, on the model
            as it is given; a number is ``a`` itself, which the authors find on the unedited model, see
            :func:`anchor_norm`.
    """

    layer: int
    seam: Seam = "mlp"
    fact_token: FactToken = "subject_last"
    steps: int = 20
    lr: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp: float = 4.0
    loss_layer: int | None = None
    threshold: float = 0.05
    budget: int | None = None
    stop: Literal["loss", "argmax", "never"] = "loss"
    anchor: Literal["none", "start"] | float = "none"


@dataclass(frozen=True, eq=False)
class Values:
    """What was found, one row for each edit.

    Attributes:
        start: ``h0 [edits, d]``, the hidden state before.
        delta: ``[edits, d]``, its change, as it was optimised.
        losses: for each edit ``[evaluations, 4]``: total, what the edit minimises (by default the NLL), KL, weight
            decay.
        written: ``v0 [edits, d]``, the part of ``start`` that the layer's feed-forward module writes; but for the seam
            ``block`` it is all of it.
        anchor: the norm to which ``v0 + delta`` is scaled, None for none.
        keys: ``[edits, 2, f]``, what the layer's down-projection reads at the changed token: of the bare prompt, and
            the mean over the context templates; empty if not wanted.
        outputs: ``[edits, 2, d]``, what it gives there; empty if not wanted.
    """

    start: Tensor
    delta: Tensor
    losses: tuple[Tensor, ...]
    written: Tensor
    anchor: float | None = None
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def value(self) -> Tensor:
        """The wanted hidden state ``[edits, d]``: ``h0 + delta``, with an anchor ``h0 - v0 + a v* / ||v*||``."""
        if self.anchor is None:
            return self.start + self.delta
        found = self.written + self.delta
        return self.start - self.written + self.anchor * nn.functional.normalize(found, dim=1)


def anchor_norm(values: Values) -> float:
    """NAS's reference norm: the mean of ``||v0 + delta||`` without the largest twentieth of them.

    The authors take it once, on the unedited model, over 1000 facts that CounterFact rewrites
    (``util/vstar_stats.py`` of SasyaTitech/NAS at 38ac1c8).  Their code also writes ``v0`` itself, so no change, where
    ``||v0 + delta||`` is above twice the anchor (ROME: five times); their text does not, and neither does this.

    Args:
        values: values found on the unedited model.
    """
    norms = double(values.written + values.delta).norm(dim=1).sort().values
    # As many as their code keeps: floor((1 - 0.95) n), in doubles, are dropped.
    return float(norms[: len(norms) - int((1.0 - 0.95) * len(norms))].mean())


@dataclass(frozen=True, eq=False)
class _Task:
    """The rows of one edit: one for each context, the same with the second continuation, then the row of the KL term.

    Attributes:
        edit: the edit.
        rows: what is run on every evaluation.
        said: the continuation's tokens in each row but the last: the target's, then those it is compared with.
        rivals: how many of these rows hold the second continuation; 0 where there is none.
        heads: the tokens in front of each row, whose hidden states the change does not reach.
    """

    edit: Edit
    rows: list[Row]
    said: list[list[int]]
    heads: list[tuple[int, ...]]
    rivals: int = 0

    @property
    def width(self) -> int:
        """The columns that its rows need."""
        return max(max(len(row.ids), row.at + 1) for row in self.rows)

    def split(self) -> _Task:
        """The same with rows that begin where the change, or the first token of the target, is first needed."""
        pairs = zip(self.rows[:-1], self.said, strict=True)
        cuts = [min(row.at, len(row.ids) - len(said)) for row, said in pairs]
        *contexts, essence = self.rows
        cuts.append(min(essence.at, len(essence.ids) - 1))
        # Nothing that follows its position counts in the row of the KL term.
        whole = [*contexts, Row(essence.ids[: essence.at + 1], essence.at)]
        rows = [Row(row.ids[cut:], row.at - cut) for row, cut in zip(whole, cuts, strict=True)]
        heads = [row.ids[:cut] for row, cut in zip(whole, cuts, strict=True)]
        return replace(self, rows=rows, heads=heads)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where logits are needed, and what belongs to which edit.

    Attributes:
        row, column: the supervised positions, ``[p]``.
        token: what they must predict, ``[p]``.
        owner: the edit of each, ``[p]``; plus the number of edits where the token is of the second continuation.
        share: the part of the edit's NLL, ``[p]``.
        first: the row of each edit's bare prompt, ``[edits]``.
        kl_row, kl_column: the position of each edit's KL term, ``[edits]``.
        at: the position of the change in every row, ``[rows]``.
        of: the edit of every row, ``[rows]``.
    """

    row: Tensor
    column: Tensor
    token: Tensor
    owner: Tensor
    share: Tensor
    first: Tensor
    kl_row: Tensor
    kl_column: Tensor
    at: Tensor
    of: Tensor


def optimise(
    lm: LM, edits: Sequence[Edit], templates: Sequence[str], objective: Objective, keys: bool = False
) -> Values:
    """Find a value for each of many independent edits.

    Args:
        lm: the model, unchanged when this returns.
        edits: the edits; each needs a subject.
        templates: context templates; the first is the bare prompt, whose hidden state is ``v0``.
        objective: what is optimised.
        keys: whether keys and outputs are wanted too, of which the optimisation makes the model compute all.

    Raises:
        UsageError: an edit has no subject.
        DataError: a prompt is longer than the model's context.
        NumericalError: a loss is not finite; names the edit and the layer.
        ModelError: a layer does not exist.
    """
    whole = [_task(lm, edit, templates, objective.fact_token) for edit in edits]
    parts: dict[int, tuple[Tensor, ...]] = {}
    with fused(lm.model):
        runner, tasks = _way(lm, whole, objective)
        for chunk in _portions(tasks, objective.budget or _budget(lm)):
            found = _descend(lm, [tasks[i] for i in chunk], objective, runner)
            each = zip(*(found if keys else found[:3]), strict=True)
            parts.update(zip(chunk, each, strict=True))
    ordered = [parts[i] for i in range(len(tasks))]
    # Of two parts, the second is what the feed-forward module writes.
    start, delta = (torch.stack([part[k][-lm.arch.width :] for part in ordered]) for k in (0, 1))
    written = _written(lm, whole, start, objective)
    seen = [torch.stack([part[k] for part in ordered]) for k in (3, 4)] if keys else []
    return Values(start, delta, tuple(part[2] for part in ordered), written, _anchor(objective, written), *seen)


def _written(lm: LM, tasks: Sequence[_Task], start: Tensor, objective: Objective) -> Tensor:
    """What the edited layer's feed-forward module writes at the changed token of the bare prompts, ``[edits, d]``."""
    if objective.seam != "block":
        return start
    name = lm.arch.mlp_of(objective.layer)
    return read(lm, [task.rows[0] for task in tasks], outputs=[name]).outputs[name].to(start)


def _anchor(objective: Objective, written: Tensor) -> float | None:
    if objective.anchor == "none":
        return None
    if objective.anchor == "start":
        return float(double(written).norm(dim=1).mean())
    return float(objective.anchor)


def _portions(tasks: Sequence[_Task], budget: int) -> Iterator[list[int]]:
    """Portions of edits for one pass: rows of one width where these fill it, at most ``budget`` tokens, or one edit.

    A token in front of a row, of which keys and values are kept, counts as an eighth.
    """
    portion: list[int] = []
    width = rows = 0
    for i in sorted(range(len(tasks)), key=lambda i: (tasks[i].width, i)):
        task = tasks[i]
        each = task.width + max(len(head) for head in task.heads) / 8
        wider = task.width > width and rows * width >= FULL
        if portion and (wider or (rows + len(task.rows)) * each > budget):
            yield portion
            portion, rows = [], 0
        portion.append(i)
        width, rows = task.width, rows + len(task.rows)
    if portion:
        yield portion


def _budget(lm: LM) -> int:
    """Tokens of one pass: at 34 half-precision numbers a token, layer and dimension some 9 GiB of activations."""
    return max(256, min(8192, 2**27 // (lm.arch.width * lm.arch.layers)))


def _task(lm: LM, edit: Edit, templates: Sequence[str], fact_token: FactToken) -> _Task:
    target = lm.continuation(edit.text, edit.continuation)
    about = Edit(edit.id, "{} is a", edit.subject, edit.target)
    ids, at = lookup(lm, about, "{}", fact_token)
    essence, said = [Row(tuple(ids), at)], [target] * len(templates)
    if edit.rival is None:
        rows = prompts(lm, edit, templates, fact_token, target[:-1], essence)
        return _Task(edit, rows, said, [()] * len(rows))
    against, count = lm.continuation(edit.text, edit.rival), len(templates)
    mine = prompts(lm, edit, templates, fact_token, target[:-1])
    rows = prompts(lm, edit, templates, fact_token, against[:-1], [*mine, *essence])
    rows = [*rows[count:-1], *rows[:count], rows[-1]]
    return _Task(edit, rows, said + [against] * count, [()] * len(rows), count)


def _descend(
    lm: LM, tasks: Sequence[_Task], objective: Objective, runner: type[_Runner]
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """Adam on one row for each edit; an edit that has stopped keeps its row.

    Returns:
        Start, delta, losses, keys and outputs, as :class:`Values` has them.
    """
    front = past(lm, _heads(tasks))
    stage = _Stage(lm, tasks, list(range(len(tasks))), objective, runner, front)
    start, reference, seen = stage.start, None, stage.runner.seen()
    delta = torch.zeros_like(start, requires_grad=True)
    bound = objective.clamp * _norms(start, lm.arch.width)
    floors = torch.tensor([_floor(task.edit, objective) for task in tasks], device=start.device).to(start)
    adam = torch.optim.Adam([delta], lr=objective.lr)
    active = torch.ones(len(tasks), dtype=torch.bool, device=start.device)
    losses: list[list[Tensor]] = [[] for _ in tasks]
    for step in range(objective.steps):
        with torch.enable_grad():
            terms, hit, reference = stage.losses(delta, start, reference)
        _note(terms.detach(), stage.members, active, losses, tasks, objective)
        total = torch.full_like(start[:, 0], torch.inf).index_copy(0, stage.index, terms[:, 0].detach())
        active = active & (total >= floors)
        if objective.stop == "argmax":
            active = active.index_put((stage.index,), active[stage.index] & ~hit)
        if step == objective.steps - 1 or not bool(active.any()):
            break
        adam.zero_grad()
        torch.autograd.backward(terms[:, 0][active[stage.index]].sum())
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            norm, parts = _norms(delta, lm.arch.width), delta.view(len(tasks), -1, lm.arch.width)
            moved = torch.where(norm > bound, parts * bound / norm, parts).view_as(delta)
            delta.copy_(torch.where(active[:, None], moved, before))
        left = [i for i in stage.members if bool(active[i])]
        if 8 * len(left) <= 7 * len(stage.members):
            # Preparing anew costs a third of an evaluation.
            stage = _Stage(lm, tasks, left, objective, runner, front)
    return start, delta.detach(), [torch.stack(rows) for rows in losses], *seen


def _norms(vectors: Tensor, width: int) -> Tensor:
    """The norms of the parts of some vectors, ``[n, parts * width] -> [n, parts, 1]``."""
    norms: Tensor = vectors.view(len(vectors), -1, width).norm(dim=2, keepdim=True)
    return norms


def _floor(edit: Edit, objective: Objective) -> float:
    never = objective.stop == "never" or edit.direction == "erasure"
    return -math.inf if never else floor(edit.direction, objective.threshold)


def _note(
    terms: Tensor,
    members: Sequence[int],
    active: Tensor,
    losses: list[list[Tensor]],
    tasks: Sequence[_Task],
    objective: Objective,
) -> None:
    for row, i in zip(terms, members, strict=True):
        if not bool(active[i]):
            continue
        if not bool(torch.isfinite(row).all()):
            raise NumericalError(
                f"edit {tasks[i].edit.id}: the loss at layer {objective.layer} became {row[0].item()} after "
                f"{len(losses[i])} steps; lower v_lr, or load the model in float32"
            )
        losses[i].append(row)


class _Stage:
    """The edits that are still optimised together: their rows, and the model above the edited layer."""

    def __init__(
        self,
        lm: LM,
        tasks: Sequence[_Task],
        members: Sequence[int],
        objective: Objective,
        runner: type[_Runner],
        front: Past | None,
    ) -> None:
        ends = list(itertools.accumulate(len(task.rows) for task in tasks))
        rows = torch.tensor(
            [r for i in members for r in range(ends[i] - len(tasks[i].rows), ends[i])], device=lm.device
        )
        self.members = list(members)
        self.directions = [tasks[i].edit.direction for i in members]
        self.objective = objective
        kept = front.select(rows) if front and len(members) < len(tasks) else front
        self.runner = runner(lm, [tasks[i] for i in members], objective, kept)
        self.places = self.runner.places
        self.index = torch.tensor(self.members, device=lm.device)
        self.start = self.runner.start()
        self.unlike = torch.tensor([float(d != "likelihood") for d in self.directions], device=lm.device)

    def losses(self, delta: Tensor, start: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation.

        Returns:
            Total, what it minimises, KL, weight decay of each member, ``[members, 4]``; whether likelihood is wanted
            of its target and it is the most probable everywhere, ``[members]``; ``log P_unedited [edits, vocabulary]``.
        """
        mine, places = delta[self.index], self.places
        supervised, essence = self.runner.logits(mine)
        missed = (supervised.detach().argmax(-1) != places.token).to(mine)
        # The edits' targets, then the continuations that these are compared with.
        zeros = mine.new_zeros(2 * len(mine))
        wrong = zeros.index_add(0, places.owner, missed)[: len(mine)] + self.unlike
        log_p = supervised.log_softmax(-1).gather(1, places.token[:, None])[:, 0]
        nll = zeros.index_add(0, places.owner, -log_p * places.share.to(log_p))
        wanted = losses(self.directions, nll[: len(mine)], nll[len(mine) :])
        edited = essence.log_softmax(-1)
        reference = edited.detach() if reference is None else reference
        change = edited - reference[self.index.to(reference.device)]
        kl = self.objective.kl_factor * (edited.exp() * change).sum(-1)
        # The norm's derivative at zero is zero here (a square root of a sum of squares would give NaN).
        width = self.runner.lm.arch.width
        ratio = self.objective.weight_decay * _norms(mine, width) / _norms(start[self.index], width) ** 2
        decay = ratio.sum((1, 2))
        return torch.stack([wanted + kl + decay, wanted, kl, decay], 1), wrong == 0, reference


def _places(tasks: Sequence[_Task], device: torch.device) -> _Places:
    row: list[int] = []
    column: list[int] = []
    token: list[int] = []
    owner: list[int] = []
    share: list[float] = []
    head: list[int] = []
    kl_row: list[int] = []
    kl_column: list[int] = []
    at: list[int] = []
    of: list[int] = []
    for e, task in enumerate(tasks):
        head.append(len(at))
        contexts = len(task.said) - task.rivals
        for r, line in enumerate(task.rows):
            if r == len(task.rows) - 1:
                kl_row.append(len(at))
                kl_column.append(line.at)
            else:
                said = task.said[r]
                begin = len(line.ids) - len(said)
                row += [len(at)] * len(said)
                column += range(begin, begin + len(said))
                token += said
                owner += [e if r < contexts else e + len(tasks)] * len(said)
                share += [1 / (len(said) * contexts)] * len(said)
            at.append(line.at)
            of.append(e)

    def whole(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    return _Places(
        row=whole(row),
        column=whole(column),
        token=whole(token),
        owner=whole(owner),
        share=torch.tensor(share, dtype=torch.float64),
        first=whole(head),
        kl_row=whole(kl_row),
        kl_column=whole(kl_column),
        at=whole(at),
        of=whole(of),
    )


class _Runner:
    """Computes logits at the supervised places with a change at the seam.

    Attributes:
        names: the edited modules.
        seam: the unchanged output of each, ``[rows, columns, d]``, at least float32.
        key: what the down-projection reads at the change, ``[rows, f]``, at least float32.
        output: what it gives there, ``[rows, d]``, at least float32.
    """

    seam: Sequence[Tensor]
    key: Tensor
    output: Tensor

    def __init__(self, lm: LM, tasks: Sequence[_Task], objective: Objective, front: Past | None = None) -> None:
        self.lm, self.objective, self.front = lm, objective, front
        self.batch = pad(lm, [row for task in tasks for row in task.rows])
        self.places = _places(tasks, lm.device)
        last = lm.arch.layers - 1
        wanted = last if objective.loss_layer is None else max(objective.loss_layer, objective.layer)
        lm.arch.block(wanted)
        self.lens = None if wanted == last else lm.arch.block(wanted)
        parts = {
            "mlp": (lm.arch.mlp_of,),
            "block": (lm.arch.block,),
            "parts": (lm.arch.attn_of, lm.arch.mlp_of),
        }
        self.names = [part(objective.layer) for part in parts[objective.seam]]
        self.down = lm.arch.down_of(objective.layer)
        self.contexts = len(tasks[0].said) - tasks[0].rivals

    def _see(self, inputs: Collection[str] = (), outputs: Collection[str] = ()) -> Taps:
        """Run the model until all that is wanted, and these modules, have been seen unchanged."""
        wanted = {*self.names, self.down, *outputs}
        seen = tap(self.lm, self.batch, {self.down, *inputs}, wanted, self.front)
        self.seam = [wide(seen.outputs[name]) for name in self.names]
        self.key, self.output = (at_each(kept[self.down], self.places.at) for kept in (seen.inputs, seen.outputs))
        return seen

    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and outputs of every edit, ``[edits, 2, f]`` and ``[edits, 2, d]``, see :class:`Values`."""
        rows = self.places.first[:, None] + torch.arange(self.contexts, device=self.lm.device)
        each = (kept[rows.to(kept.device)].to(self.lm.device) for kept in (self.key, self.output))
        key, output = (torch.stack([part[:, 0], part.mean(1)], 1) for part in each)
        return key, output

    def start(self) -> Tensor:
        """What is changed, at its position in the first row of every edit, ``[edits, parts * d]``."""
        rows = self.places.first
        found = [seam[rows.to(seam.device), self.places.at[rows].to(seam.device)] for seam in self.seam]
        return torch.cat([part.to(self.lm.device) for part in found], 1)

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the supervised positions ``[p, vocabulary]`` and at the KL positions ``[edits, vocabulary]``."""
        raise NotImplementedError

    def _decode(self, hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
        norm = self.lm.arch.norm
        picked = hidden[row.to(hidden.device), column.to(hidden.device)]
        normed = self.lm.module(norm)(picked) if norm else picked
        return wide(self.lm.module(self.lm.arch.head)(normed)).to(self.lm.device)

    def _moved(self, output: Tensor, delta: Tensor) -> Tensor:
        """An output of the edited layer with each edit's change at its rows' positions."""
        hidden = output.reshape(*self.batch.ids.shape, -1)
        where = (torch.arange(len(hidden), device=hidden.device), self.places.at.to(hidden.device))
        moved = wide(hidden[where]) + delta[self.places.of].to(hidden.device)
        return hidden.index_put(where, moved.to(hidden.dtype)).reshape(output.shape)

    @contextmanager
    def _shifted(self, delta: Tensor) -> Iterator[None]:
        """Every pass carries the change, ``[edits, parts * d]``."""

        def shift(part: Tensor, output: Any) -> Any:
            changed = self._moved(first(output), part)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

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
        with _hooked(self.lm.module(self.lens), lambda _module, _args, output: seen.update(lens=first(output))):
            yield seen


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Above(_Runner):
    """Runs the blocks above the edited one, on what it gave and on what stands in front of the rows.

    For models that add what the seam gives to the residual stream as it is.
    """

    lowest = 1

    def __init__(self, lm: LM, tasks: Sequence[_Task], objective: Objective, front: Past | None = None) -> None:
        super().__init__(lm, tasks, objective, front)
        edited = lm.arch.block(objective.layer)
        names = [lm.arch.block(i) for i in range(objective.layer + self.lowest, lm.arch.layers)]
        self.blocks = [lm.module(name) for name in names]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with ExitStack() as stack:
            for block in self.blocks:
                handle = block.register_forward_pre_hook(self._record, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(idle(self.blocks[1 - self.lowest :], lm.module(edited)))
            self.given = self._see(names[-1:], [edited]).outputs[edited]
        columns, (row, column) = self.batch.ids.shape[1], (self.places.row, self.places.column)
        decoded = [row * columns + column, self.places.kl_row * columns + self.places.kl_column]
        self.decoded: Tensor = torch.unique(torch.cat(decoded))

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What entered the edited block is kept; the others are given what leaves the one below.
        if self.calls or self.lowest:
            args, kwargs = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append((args, kwargs))

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places
        with self._seen() as seen, self._wanted():
            hidden = seen["lens"] = self._given(delta)
            for block, (args, kwargs) in zip(
                self.blocks[1 - self.lowest :], self.calls[1 - self.lowest :], strict=True
            ):
                hidden = first(block(hidden, *args, **kwargs))
        shown = seen["lens"] if self.lens else hidden
        return self._decode(shown, places.row, places.column), self._decode(hidden, places.kl_row, places.kl_column)

    def _given(self, delta: Tensor) -> Tensor:
        """What leaves the edited block with the change, ``[rows, columns, d]``."""
        return self._moved(self.given, delta)

    def _wanted(self) -> AbstractContextManager[None]:
        """The last block's feed-forward module computes the positions that are decoded; zeros stand at the others."""
        last = self.lm.arch.layers - 1
        if self.lens or last == self.objective.layer:
            return nullcontext()
        return only_at(self.lm.module(self.lm.arch.mlp_of(last)), self.decoded)


class _From(_Above):
    """Runs the edited block too: for models with something between the seam and the residual stream, such as a norm."""

    lowest = 0

    def _given(self, delta: Tensor) -> Tensor:
        args, kwargs = self.calls[0]
        with self._shifted(delta):
            return first(self.blocks[0](*args, **kwargs))


class _Whole(_Runner):
    """Runs the whole model, for those that do more between blocks than hand on a hidden state."""

    def __init__(self, lm: LM, tasks: Sequence[_Task], objective: Objective, front: Past | None = None) -> None:
        super().__init__(lm, tasks, objective, front)
        self._see()

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places
        with self._shifted(delta), self._seen() as seen:
            full = self.lm.model(input_ids=self.batch.ids, attention_mask=self.batch.mask, use_cache=False).logits
        if self.lens:
            supervised = self._decode(seen["lens"], places.row, places.column)
        else:
            supervised = wide(full[places.row.to(full.device), places.column.to(full.device)])
        essence = wide(full[places.kl_row.to(full.device), places.kl_column.to(full.device)])
        return supervised.to(self.lm.device), essence.to(self.lm.device)


def _way(lm: LM, tasks: Sequence[_Task], objective: Objective) -> tuple[type[_Runner], list[_Task]]:
    """The fastest way that gives the model's own logits, and the tasks for it: split rows, whole ones, the whole model.

    Tried with a change at the seam, on rows with little and with much in front of it.
    """
    few = [_few(task) for task in dict.fromkeys((min(tasks, key=_reach), max(tasks, key=_reach)))]
    whole = _Whole(lm, few, objective)
    change = whole.start()
    with torch.no_grad():
        wanted = whole.logits(change)
    # A patch with hooks follows the tokens of every pass, and is told of whole rows only.
    for split in (False,) if lm.model._forward_pre_hooks else (True, False):
        mine = [task.split() for task in few] if split else few
        for runner in (_Above, _From):
            if _agrees(runner, lm, mine, objective, change, wanted):
                return runner, [task.split() for task in tasks] if split else list(tasks)
    return _Whole, list(tasks)


def _reach(task: _Task) -> int:
    return max(row.at for row in task.rows)


def _few(task: _Task) -> _Task:
    far = max(range(len(task.said)), key=lambda r: task.rows[r].at)
    rows = [task.rows[0], task.rows[far], task.rows[-1]]
    return replace(task, rows=rows, said=[task.said[0], task.said[far]], heads=[()] * len(rows), rivals=0)


def _agrees(
    runner: type[_Runner],
    lm: LM,
    tasks: Sequence[_Task],
    objective: Objective,
    change: Tensor,
    wanted: tuple[Tensor, Tensor],
) -> bool:
    """Whether running some blocks by themselves gives the logits of the whole model."""
    try:
        with torch.no_grad():
            ours = runner(lm, tasks, objective, past(lm, _heads(tasks))).logits(change)
    except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
        # Blocks that cannot be called by themselves, or a cache of another kind.
        return False
    loose = 1e-5 if next(lm.model.parameters()).dtype in (torch.float32, torch.float64) else 2e-2
    return all(float((a - b).norm()) <= loose * float(b.norm()) for a, b in zip(ours, wanted, strict=True))


def _heads(tasks: Sequence[_Task]) -> list[tuple[int, ...]]:
    return [head for task in tasks for head in task.heads]
