"""Value optimisation: which vector, put in place of a hidden state, makes the model say the target.

One optimisation shared by all locate-then-edit methods; many edits run side by side in one batch, each with its own
loss, its own row of the optimiser's state, its own stop and its own bound, so that the result is that of one at a time.
The blocks below the edited one do not change and run once; logits are computed at supervised positions only.

Sources: Meng et al. 2022 (ROME), section 3.1, equation 4, and their code at 0874014; Meng et al. 2023 (MEMIT),
section 4.2, equation 16, and their code at 80426fd.  Where both differ from their text, this follows the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.editor import Edit
from harness.errors import NumericalError
from harness.keys import FactToken, lookup, prompts
from harness.lm import LM, Batch
from harness.taps import Row, chunks, first, pad, tap

__all__ = ["Objective", "Values", "optimise"]


@dataclass(frozen=True)
class Objective:
    """What is optimised, where, and how.

    Attributes:
        layer: the edited layer ``l``.
        seam: ``mlp`` adds to the output of the feed-forward module (ROME), ``block`` to the residual stream (MEMIT).
        fact_token: the token whose hidden state is changed.
        steps: evaluations of the loss; there is one update fewer.
        lr: Adam's learning rate.
        kl_factor: weight of ``KL(P_edited || P_unedited)`` at the fact token of "{subject} is a".
        weight_decay: weight of ``||delta|| / ||v0||^2``.
        clamp: the bound of ``||delta|| / ||v0||``.
        loss_layer: the layer whose output is decoded for the loss; None is the last.
        threshold: an edit stops when its loss is below.
        budget: tokens of one forward pass, padding included; None chooses by the size of the model.
    """

    layer: int
    seam: Literal["mlp", "block"] = "mlp"
    fact_token: FactToken = "subject_last"
    steps: int = 20
    lr: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp: float = 4.0
    loss_layer: int | None = None
    threshold: float = 0.05
    budget: int | None = None


@dataclass(frozen=True, eq=False)
class Values:
    """What was found, one row for each edit.

    Attributes:
        start: ``v0 [edits, d]``, the hidden state before.
        delta: ``[edits, d]``, its change.
        losses: for each edit ``[evaluations, 4]``: total, NLL, KL, weight decay.
    """

    start: Tensor
    delta: Tensor
    losses: tuple[Tensor, ...]

    @property
    def value(self) -> Tensor:
        """``v* = v0 + delta``, ``[edits, d]``."""
        return self.start + self.delta


@dataclass(frozen=True, eq=False)
class _Task:
    """The rows of one edit: one for each context, then the row of the KL term."""

    edit: Edit
    rows: list[Row]
    target: list[int]

    @property
    def lengths(self) -> list[int]:
        return [max(len(row.ids), row.at + 1) for row in self.rows]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where logits are needed, and what belongs to which edit.

    Attributes:
        row, column: the supervised positions, ``[p]``.
        token: what they must predict, ``[p]``.
        owner: the edit of each, ``[p]``.
        share: the part of the edit's NLL, ``[p]``.
        kl_row, kl_column: the position of each edit's KL term, ``[edits]``.
        at: the position of the change in every row, ``[rows]``.
        of: the edit of every row, ``[rows]``.
    """

    row: Tensor
    column: Tensor
    token: Tensor
    owner: Tensor
    share: Tensor
    kl_row: Tensor
    kl_column: Tensor
    at: Tensor
    of: Tensor


def optimise(lm: LM, edits: Sequence[Edit], templates: Sequence[str], objective: Objective) -> Values:
    """Find a value for each of many independent edits.

    Args:
        lm: the model, unchanged when this returns.
        edits: the edits; each needs a subject.
        templates: context templates; the first is the bare prompt, whose hidden state is ``v0``.
        objective: what is optimised.

    Raises:
        UsageError: an edit has no subject.
        DataError: a prompt is longer than the model's context.
        NumericalError: a loss is not finite; names the edit and the layer.
        ModelError: a layer does not exist.
    """
    tasks = [_task(lm, edit, templates, objective.fact_token) for edit in edits]
    runner = _Above if _truncates(lm, tasks[0], objective) else _Whole
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    budget = objective.budget or _budget(lm)
    for chunk in chunks([task.lengths for task in tasks], budget):
        start, delta, losses = _descend(lm, [tasks[i] for i in chunk], objective, runner)
        parts.update({i: (start[j], delta[j], losses[j]) for j, i in enumerate(chunk)})
    ordered = [parts[i] for i in range(len(tasks))]
    start, delta = (torch.stack([part[k] for part in ordered]) for k in (0, 1))
    return Values(start, delta, tuple(part[2] for part in ordered))


def _budget(lm: LM) -> int:
    """Tokens of one pass: at 34 half-precision numbers a token, layer and dimension some 9 GiB of activations."""
    return max(256, min(8192, 2**27 // (lm.arch.width * lm.arch.layers)))


def _task(lm: LM, edit: Edit, templates: Sequence[str], fact_token: FactToken) -> _Task:
    target = lm.continuation(edit.text, edit.continuation)
    about = Edit(edit.id, "{} is a", edit.subject, edit.target)
    ids, at = lookup(lm, about, "{}", fact_token)
    rows = prompts(lm, edit, templates, fact_token, target[:-1], [Row(tuple(ids), at)])
    return _Task(edit, rows, target)


def _descend(
    lm: LM, tasks: Sequence[_Task], objective: Objective, runner: type[_Runner]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Adam on one row for each edit; an edit that has stopped keeps its row."""
    stage = _Stage(lm, tasks, list(range(len(tasks))), objective, runner)
    start, reference = stage.start, None
    delta = torch.zeros_like(start, requires_grad=True)
    bound = objective.clamp * start.norm(dim=1, keepdim=True)
    adam = torch.optim.Adam([delta], lr=objective.lr)
    active = torch.ones(len(tasks), dtype=torch.bool, device=start.device)
    losses: list[list[Tensor]] = [[] for _ in tasks]
    for step in range(objective.steps):
        with torch.enable_grad():
            terms, reference = stage.losses(delta, start, reference)
        _note(terms.detach(), stage.members, active, losses, tasks, objective)
        total = torch.full_like(start[:, 0], torch.inf).index_copy(0, stage.index, terms[:, 0].detach())
        active = active & (total >= objective.threshold)
        if step == objective.steps - 1 or not bool(active.any()):
            break
        adam.zero_grad()
        torch.autograd.backward(terms[:, 0][active[stage.index]].sum())
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            norm = delta.norm(dim=1, keepdim=True)
            moved = torch.where(norm > bound, delta * bound / norm, delta)
            delta.copy_(torch.where(active[:, None], moved, before))
        left = [i for i in stage.members if bool(active[i])]
        if len(left) <= len(stage.members) // 2:
            # Fewer rows are worth one more pass below the edited layer.
            stage = _Stage(lm, tasks, left, objective, runner)
    return start, delta.detach(), [torch.stack(rows) for rows in losses]


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
        self, lm: LM, tasks: Sequence[_Task], members: Sequence[int], objective: Objective, runner: type[_Runner]
    ) -> None:
        mine = [tasks[i] for i in members]
        batch = pad(lm, [row for task in mine for row in task.rows])
        self.members = list(members)
        self.objective = objective
        self.places = _places(mine, lm.device)
        self.runner = runner(lm, batch, self.places, objective)
        self.index = torch.tensor(self.members, device=lm.device)
        heads = torch.tensor([0, *(len(task.rows) for task in mine[:-1])], device=lm.device).cumsum(0)
        seam = self.runner.seam
        self.start = seam[heads.to(seam.device), self.places.at[heads].to(seam.device)].to(lm.device)

    def losses(self, delta: Tensor, start: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        """Total, NLL, KL, weight decay of each member, ``[members, 4]``; ``log P_unedited [edits, vocabulary]``."""
        mine, places = delta[self.index], self.places
        supervised, essence = self.runner.logits(mine)
        log_p = supervised.log_softmax(-1).gather(1, places.token[:, None])[:, 0]
        nll = torch.zeros_like(mine[:, 0]).index_add(0, places.owner, -log_p * places.share.to(log_p))
        edited = essence.log_softmax(-1)
        reference = edited.detach() if reference is None else reference
        change = edited - reference[self.index.to(reference.device)]
        kl = self.objective.kl_factor * (edited.exp() * change).sum(-1)
        # The norm's derivative at zero is zero here (a square root of a sum of squares would give NaN).
        decay = self.objective.weight_decay * mine.norm(dim=1) / start[self.index].norm(dim=1) ** 2
        return torch.stack([nll + kl + decay, nll, kl, decay], 1), reference


def _places(tasks: Sequence[_Task], device: torch.device) -> _Places:
    row: list[int] = []
    column: list[int] = []
    token: list[int] = []
    owner: list[int] = []
    share: list[float] = []
    kl_row: list[int] = []
    kl_column: list[int] = []
    at: list[int] = []
    of: list[int] = []
    for e, task in enumerate(tasks):
        for r, line in enumerate(task.rows):
            if r == len(task.rows) - 1:
                kl_row.append(len(at))
                kl_column.append(line.at)
            else:
                begin = len(line.ids) - len(task.target)
                row += [len(at)] * len(task.target)
                column += range(begin, begin + len(task.target))
                token += task.target
                owner += [e] * len(task.target)
                share += [1 / (len(task.target) * (len(task.rows) - 1))] * len(task.target)
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
        kl_row=whole(kl_row),
        kl_column=whole(kl_column),
        at=whole(at),
        of=whole(of),
    )


class _Runner:
    """Computes logits at the supervised places with a change at the seam.

    Attributes:
        seam: the unchanged output of the edited module, ``[rows, columns, d]``, at least float32.
    """

    seam: Tensor

    def __init__(self, lm: LM, batch: Batch, places: _Places, objective: Objective) -> None:
        self.lm, self.batch, self.places, self.objective = lm, batch, places, objective
        last = lm.arch.layers - 1
        wanted = last if objective.loss_layer is None else max(objective.loss_layer, objective.layer)
        lm.arch.block(wanted)
        self.lens = None if wanted == last else lm.arch.block(wanted)
        part = lm.arch.mlp_of if objective.seam == "mlp" else lm.arch.block
        self.name = part(objective.layer)

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the supervised positions ``[p, vocabulary]`` and at the KL positions ``[edits, vocabulary]``."""
        raise NotImplementedError

    def _decode(self, hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
        norm = self.lm.arch.norm
        picked = hidden[row.to(hidden.device), column.to(hidden.device)]
        normed = self.lm.module(norm)(picked) if norm else picked
        return _wide(self.lm.module(self.lm.arch.head)(normed)).to(self.lm.device)

    @contextmanager
    def _shifted(self, delta: Tensor) -> Iterator[dict[str, Tensor]]:
        """Add each edit's change at its rows' positions; gives what left the lens block."""
        seen: dict[str, Tensor] = {}
        rows = torch.arange(len(self.places.at))
        change = delta[self.places.of]

        def shift(_module: nn.Module, _args: Any, output: Any) -> Any:
            flat = first(output)
            hidden = flat.reshape(*self.batch.ids.shape, -1)
            where = (rows.to(flat.device), self.places.at.to(flat.device))
            moved = (_wide(hidden[where]) + change.to(flat.device)).to(flat.dtype)
            changed = hidden.index_put(where, moved).reshape(flat.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            seen["lens"] = first(output)

        handles = [self.lm.module(self.name).register_forward_hook(shift)]
        if self.lens:
            handles.append(self.lm.module(self.lens).register_forward_hook(look))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Above(_Runner):
    """Runs the edited block and those above it, from what entered it in one full pass."""

    def __init__(self, lm: LM, batch: Batch, places: _Places, objective: Objective) -> None:
        super().__init__(lm, batch, places, objective)
        names = [lm.arch.block(i) for i in range(objective.layer, lm.arch.layers)]
        self.blocks = [lm.module(name) for name in names]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handles = [block.register_forward_pre_hook(self._record, with_kwargs=True) for block in self.blocks]
        try:
            self.seam = _wide(tap(lm, batch, inputs=names[-1:], outputs=[self.name]).outputs[self.name])
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What entered the edited block is kept; the others are given what leaves the one below.
        if self.calls:
            args, kwargs = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append((args, kwargs))

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places
        with self._shifted(delta) as seen:
            args, kwargs = self.calls[0]
            hidden = first(self.blocks[0](*args, **kwargs))
            for block, (args, kwargs) in zip(self.blocks[1:], self.calls[1:], strict=True):
                hidden = first(block(hidden, *args, **kwargs))
        shown = seen["lens"] if self.lens else hidden
        return self._decode(shown, places.row, places.column), self._decode(hidden, places.kl_row, places.kl_column)


class _Whole(_Runner):
    """Runs the whole model, for those that do more between blocks than hand on a hidden state."""

    def __init__(self, lm: LM, batch: Batch, places: _Places, objective: Objective) -> None:
        super().__init__(lm, batch, places, objective)
        self.seam = _wide(tap(lm, batch, outputs=[self.name]).outputs[self.name])

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places
        with self._shifted(delta) as seen:
            full = self.lm.model(input_ids=self.batch.ids, attention_mask=self.batch.mask, use_cache=False).logits
        if self.lens:
            supervised = self._decode(seen["lens"], places.row, places.column)
        else:
            supervised = _wide(full[places.row.to(full.device), places.column.to(full.device)])
        essence = _wide(full[places.kl_row.to(full.device), places.kl_column.to(full.device)])
        return supervised.to(self.lm.device), essence.to(self.lm.device)


def _truncates(lm: LM, task: _Task, objective: Objective) -> bool:
    """Whether the truncated run gives the model's own logits; tried on two rows with a change at the seam."""
    probe = _Task(task.edit, [task.rows[0], task.rows[-1]], task.target)
    batch, places = pad(lm, probe.rows), _places([probe], lm.device)
    try:
        above = _Above(lm, batch, places, objective)
        change = above.seam[:1, int(places.at[0])]
        with torch.no_grad():
            ours = above.logits(change)
            whole = _Whole(lm, batch, places, objective).logits(change)
    except (TypeError, AttributeError, IndexError, KeyError):
        # A model whose blocks cannot be called by themselves.
        return False
    loose = 1e-5 if next(lm.model.parameters()).dtype in (torch.float32, torch.float64) else 2e-2
    return all(float((a - b).norm()) <= loose * float(b.norm()) for a, b in zip(ours, whole, strict=True))
