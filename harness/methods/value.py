"""Value optimisation: which vector, put in place of a hidden state, makes the model say the target.

One optimisation shared by all locate-then-edit methods; many edits run side by side in one batch, each with its own
loss, its own row of the optimiser's state, its own stop and its own bound, so that the result is that of one at a time.
What is run is in :mod:`harness.methods.value_rows`, how in :mod:`harness.methods.value_forward`.

Sources: Meng et al. 2022 (ROME), section 3.1, equation 4, and their code at 0874014; Meng et al. 2023 (MEMIT),
section 4.2, equation 16, and their code at 80426fd.  Where both differ from their text, this follows the code.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.editing.directions import floor, losses
from harness.editing.edit import Edit
from harness.errors import NumericalError
from harness.methods.value_cache import Optimised, cache_in_use, portion_key
from harness.methods.value_forward import Forward
from harness.methods.value_rows import Objective, PreparedEdit, prefixes, prepare_edit
from harness.models.activations import FULL, PrefixCache, fused_gelu, prefix_cache
from harness.models.lm import LM
from harness.patches.delta import double

__all__ = ["Values", "anchor_norm", "optimise", "optimise_rows"]

_LITTLE = 0.01  # the KL term at which PMET's code ends a value whose target is on top
_LONG = 100  # the norm of a hidden state from which EAMET's code sets out from no change
_LESS = 0.1  # what the NLL counts in the evaluation after one in which the target was on top, there


@dataclass(frozen=True, eq=False)
class Values:
    """What was found, one row for each edit.

    Attributes:
        start: ``h0 [edits, d]``, the hidden state before.
        delta: ``[edits, d]``, its change, as it was optimised.
        losses: for each edit ``[evaluations, 4]``: total with further terms, what the edit minimises (by
            default the NLL), KL, weight decay.
        written: ``v0 [edits, d]``, the part of ``start`` that the layer's feed-forward module writes; but for the seam
            ``block`` it is all of it.
        anchor: the norm to which ``v0 + delta`` is scaled, None for none.
        anchor_skip: how many times the anchor a norm may be; where it is more, the value is ``h0``. None for any.
        keys: ``[edits, 2, f]``, what the layer's down-projection reads at the changed token: of the bare prompt, and
            the mean over the context templates; empty if not wanted.
        outputs: ``[edits, 2, d]``, what it gives there; empty if not wanted.
    """

    start: Float[Tensor, "edits d"]
    delta: Float[Tensor, "edits d"]
    losses: tuple[Float[Tensor, "_ 4"], ...]
    written: Float[Tensor, "edits d"]
    anchor: float | None = None
    anchor_skip: float | None = None
    keys: Float[Tensor, "edits 2 f"] | Float[Tensor, "0"] = field(default_factory=lambda: torch.empty(0))
    outputs: Float[Tensor, "edits 2 d"] | Float[Tensor, "0"] = field(default_factory=lambda: torch.empty(0))

    @property
    def value(self) -> Float[Tensor, "edits d"]:
        """The wanted hidden state ``[edits, d]``: ``h0 + delta``, with an anchor ``h0 - v0 + a v* / ||v*||``."""
        if self.anchor is None:
            return self.start + self.delta
        found = self.written + self.delta
        scaled = self.start - self.written + self.anchor * nn.functional.normalize(found, dim=1)
        if self.anchor_skip is None:
            return scaled
        skipped = double(found).norm(dim=1, keepdim=True) > self.anchor_skip * self.anchor
        return torch.where(skipped.to(scaled.device), self.start, scaled)


def anchor_norm(values: Values) -> float:
    """NAS's reference norm: the mean of ``||v0 + delta||`` without the largest twentieth of them.

    The authors take it once, on the unedited model, over 1000 facts that CounterFact rewrites
    (``util/vstar_stats.py`` of SasyaTitech/NAS at 38ac1c8).

    Args:
        values: values found on the unedited model.
    """
    norms = double(values.written + values.delta).norm(dim=1).sort().values
    # As many as their code keeps: floor((1 - 0.95) n), in doubles, are dropped.
    return float(norms[: len(norms) - int((1.0 - 0.95) * len(norms))].mean())


def optimise(
    lm: LM, edits: Sequence[Edit], templates: Sequence[str], *, objective: Objective, keys: bool = False
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
    whole = [prepare_edit(lm, edit, templates=templates, fact_token=objective.fact_token) for edit in edits]
    return optimise_rows(lm, whole, objective=objective, keys=keys)


def optimise_rows(lm: LM, whole: Sequence[PreparedEdit], *, objective: Objective, keys: bool = False) -> Values:
    """:func:`optimise` of edits whose rows are given.

    Args:
        lm: the model, unchanged when this returns.
        whole: the rows of each edit.
        objective: what is optimised.
        keys: whether keys and outputs are wanted too.

    Raises:
        NumericalError: a loss is not finite; names the edit and the layer.
        ModelError: a layer does not exist.
    """
    parts: dict[int, tuple[Tensor, ...]] = {}
    with fused_gelu(lm.model):
        identity = cache_in_use().identity(lm, objective)
        way = cache_in_use().way(lm, whole, objective)
        prepared = way.rows(whole)
        for chunk in _portions(prepared, objective.budget or _budget(lm)):
            found = _optimised(
                lm, [prepared[i] for i in chunk], objective=objective, runner=way.runner, identity=identity
            )
            each = zip(found.start, found.delta, found.losses, found.keys, found.outputs, strict=True)
            parts.update(zip(chunk, each, strict=True))
    ordered = [parts[i] for i in range(len(prepared))]
    # Of two parts, the second is what the feed-forward module writes.
    start, delta = (torch.stack([part[k][-lm.arch.width :] for part in ordered]) for k in (0, 1))
    seen = [torch.stack([part[k] for part in ordered]) for k in (3, 4)]
    # A block hands on more than its feed-forward module writes at the changed token of the bare prompt.
    written = seen[1][:, 0].to(start) if objective.seam == "block" else start
    losses, anchor = tuple(part[2] for part in ordered), _anchor(objective, written)
    return Values(start, delta, losses, written, anchor, objective.anchor_skip, *(seen if keys else []))


def _optimised(
    lm: LM, prepared: Sequence[PreparedEdit], *, objective: Objective, runner: type[Forward], identity: str | None
) -> Optimised:
    """What is found for some edits side by side: kept from an earlier time, or now.

    Args:
        lm: the model.
        prepared: the rows of each edit.
        objective: what is optimised.
        runner: the forward pass.
        identity: what decides values besides, see :meth:`harness.methods.value_cache.ValueCache.identity`.
    """
    cache, key = cache_in_use(), portion_key(identity, prepared, runner.__name__)
    found = cache.take(key, lm)
    if found is not None:
        return found
    with cache.making(key) as waited:
        found = cache.take(key, lm) if waited else None
        if found is None:
            began = time.perf_counter()
            found = _descend(lm, prepared, objective=objective, runner=runner)
            found = replace(found, seconds=time.perf_counter() - began)
            cache.keep(key, found)
    return found


def _anchor(objective: Objective, written: Float[Tensor, "edits d"]) -> float | None:
    if objective.anchor == "none":
        return None
    if objective.anchor == "start":
        return float(double(written).norm(dim=1).mean())
    return float(objective.anchor)


def _portions(prepared: Sequence[PreparedEdit], budget: int) -> Iterator[list[int]]:
    """Portions of edits for one pass: rows of one width where these fill it, at most ``budget`` tokens, or one edit.

    A token in front of a row, of which keys and values are kept, counts as an eighth.
    """
    portion: list[int] = []
    width = rows = 0
    for i in sorted(range(len(prepared)), key=lambda i: (prepared[i].width, i)):
        one = prepared[i]
        cost = one.width + max(len(prefix) for prefix in one.prefixes) / 8
        wider = one.width > width and rows * width >= FULL
        if portion and (wider or (rows + len(one.rows)) * cost > budget):
            yield portion
            portion, rows = [], 0
        portion.append(i)
        width, rows = one.width, rows + len(one.rows)
    if portion:
        yield portion


def _budget(lm: LM) -> int:
    """Tokens of one pass: at 34 half-precision numbers a token, layer and dimension some 9 GiB of activations."""
    return max(256, min(8192, 2**27 // (lm.arch.width * lm.arch.layers)))


def _descend(lm: LM, prepared: Sequence[PreparedEdit], *, objective: Objective, runner: type[Forward]) -> Optimised:
    """Adam on one row for each edit; an edit that has stopped keeps its row."""
    front = prefix_cache(lm, prefixes(prepared))
    stage = _ActiveEdits(lm, prepared, range(len(prepared)), objective=objective, runner=runner, front=front)
    start, reference, seen = stage.start, None, stage.runner.seen()
    unit = _norms(start, lm.arch.width)
    delta = torch.zeros_like(start)
    if objective.begin != "zero":
        key = _key_norms(seen[0], stage.runner.contexts).to(unit)
        if objective.begin == "key":
            with torch.no_grad():
                reference = stage.losses(delta, start, None)[2]
        delta, unit = _along(start, unit, key, objective), key
    delta.requires_grad_()
    bound = objective.clamp * unit
    floors = torch.tensor([_floor(one.edit, objective) for one in prepared], device=start.device).to(start)
    adam = torch.optim.Adam([delta], lr=objective.lr)
    active, rule = torch.ones(len(prepared), dtype=torch.bool, device=start.device), _StopRule.of(objective, start)
    losses: list[list[Tensor]] = [[] for _ in prepared]
    for step in range(objective.steps):
        with torch.enable_grad():
            terms, hit, reference = stage.losses(delta, start, reference, weight=rule.weight)
        stage.note(terms.detach(), active, losses)
        total = torch.full_like(start[:, 0], torch.inf).index_copy(0, stage.index, terms[:, 0].detach())
        if step or objective.begin != "key_released":
            active = active & (total >= floors)
        ended = rule.seen(hit, kl=terms[:, 2].detach(), index=stage.index)
        active = active.index_put((stage.index,), active[stage.index] & ~ended)
        if step == objective.steps - 1 or not bool(active.any()):
            break
        adam.zero_grad()
        torch.autograd.backward(terms[:, 0][active[stage.index]].sum())
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            norm, parts = _norms(delta, lm.arch.width), delta.view(len(prepared), -1, lm.arch.width)
            moved = torch.where(norm > bound, parts * bound / norm, parts).view_as(delta)
            delta.copy_(torch.where(active[:, None], moved, before))
        left = [i for i in stage.members if bool(active[i])]
        if 8 * len(left) <= 7 * len(stage.members):
            # Preparing anew costs a third of an evaluation.
            stage = _ActiveEdits(lm, prepared, left, objective=objective, runner=runner, front=front)
    return Optimised(start, delta.detach(), [torch.stack(rows) for rows in losses], *seen)


def _norms(vectors: Float[Tensor, "n parts_width"], width: int) -> Float[Tensor, "n parts 1"]:
    """The norms of the parts of some vectors, ``[n, parts * width] -> [n, parts, 1]``."""
    norms: Tensor = vectors.view(len(vectors), -1, width).norm(dim=2, keepdim=True)
    return norms


def _key_norms(keys: Float[Tensor, "edits 2 f"], contexts: int) -> Float[Tensor, "edits 1 1"]:
    """The norms of MEMIT's mean keys: of the bare prompt's, and the mean of those of the other contexts."""
    bare, mean = keys.unbind(1)
    others = (contexts * mean - bare) / (contexts - 1) if contexts > 1 else bare
    norms: Tensor = ((bare + others) / 2).norm(dim=1)
    return norms[:, None, None]


def _along(
    start: Float[Tensor, "edits parts_d"],
    norm: Float[Tensor, "edits parts 1"],
    key: Float[Tensor, "edits 1 1"],
    objective: Objective,
) -> Float[Tensor, "edits parts_d"]:
    """Changes along what is changed, as long as the key."""
    parts = start.view(len(start), norm.shape[1], -1)
    found = nn.functional.normalize(parts, dim=2) * key
    if objective.begin == "key_released":
        found = torch.where(norm < _LONG, found, 0.0)
    return found.reshape_as(start)


@dataclass(eq=False)
class _StopRule:
    """What besides a small loss ends the optimisation of an edit whose target is on top.

    Attributes:
        objective: names the rule.
        count: how many evaluations had the target on top, ``[edits]``.
        weight: what the NLL of the next evaluation is multiplied by, ``[edits]``.
    """

    objective: Objective
    count: Int[Tensor, "edits"]
    weight: Float[Tensor, "edits"]

    @classmethod
    def of(cls, objective: Objective, start: Float[Tensor, "edits parts_d"]) -> _StopRule:
        """The rule before the first evaluation."""
        return cls(
            objective, torch.zeros(len(start), dtype=torch.long, device=start.device), torch.ones_like(start[:, 0])
        )

    def seen(
        self, hit: Bool[Tensor, "members"], *, kl: Float[Tensor, "members"], index: Int[Tensor, "members"]
    ) -> Bool[Tensor, "members"]:
        """Which members end after one more evaluation.

        Args:
            hit: whether the target of each is on top.
            kl: the KL term of each.
            index: which edits the members are.
        """
        if self.objective.stop == "argmax":
            self.count[index] += hit.long()
            return hit & (self.count[index] >= (self.objective.cutoff or 1))
        if self.objective.stop == "argmax_kl":
            self.weight[index] = torch.where(hit, _LESS, 1.0).to(self.weight)
            return hit & (kl <= _LITTLE)
        return torch.zeros_like(hit)


def _floor(edit: Edit, objective: Objective) -> float:
    never = objective.stop == "never" or edit.direction == "erasure"
    return -math.inf if never else floor(edit.direction, objective.threshold)


class _ActiveEdits:
    """The edits that are still optimised together: their rows, and the model above the edited layer."""

    def __init__(
        self,
        lm: LM,
        prepared: Sequence[PreparedEdit],
        members: Sequence[int],
        *,
        objective: Objective,
        runner: type[Forward],
        front: PrefixCache | None,
    ) -> None:
        ends = list(itertools.accumulate(len(one.rows) for one in prepared))
        rows = torch.tensor(
            [r for i in members for r in range(ends[i] - len(prepared[i].rows), ends[i])], device=lm.device
        )
        self.members = list(members)
        self.directions = [prepared[i].edit.direction for i in members]
        self.prepared, self.objective = prepared, objective
        kept = front.select(rows) if front and len(members) < len(prepared) else front
        self.runner = runner(lm, [prepared[i] for i in members], objective, front=kept)
        self.places = self.runner.places
        self.index = torch.tensor(self.members, device=lm.device)
        self.start = self.runner.start()
        self.unlike = torch.tensor([float(d != "likelihood") for d in self.directions], device=lm.device)

    def losses(
        self,
        delta: Float[Tensor, "edits parts_d"],
        start: Float[Tensor, "edits parts_d"],
        reference: Float[Tensor, "edits vocabulary"] | None,
        *,
        weight: Float[Tensor, "edits"] | None = None,
    ) -> tuple[Float[Tensor, "members 4"], Bool[Tensor, "members"], Float[Tensor, "edits vocabulary"]]:
        """One evaluation.

        Args:
            delta: the changes.
            start: what is changed.
            reference: ``log P_unedited``; None before the first evaluation.
            weight: what multiplies the part that an edit minimises; None for nothing.

        Returns:
            Total, what it minimises, KL, weight decay of each member, ``[members, 4]``; whether likelihood is wanted
            of its target and it is the most probable everywhere (with a cutoff: everywhere but after the bare prompt),
            ``[members]``; ``log P_unedited [edits, vocabulary]``.
        """
        mine, places = delta[self.index], self.places
        supervised, essence = self.runner.logits(mine)
        missed = (supervised.detach().argmax(-1) != places.token).to(mine)
        if self.objective.cutoff is not None and self.runner.contexts > 1:
            missed = missed * torch.isin(places.row, places.first, invert=True).to(missed)
        # The edits' targets, then the continuations that these are compared with.
        zeros = mine.new_zeros(2 * len(mine))
        wrong = zeros.index_add(0, places.owner, missed)[: len(mine)] + self.unlike
        log_p = supervised.log_softmax(-1).gather(1, places.token[:, None])[:, 0]
        nll = zeros.index_add(0, places.owner, -log_p * places.share.to(log_p))
        wanted = losses(self.directions, nll[: len(mine)], nll[len(mine) :])
        wanted = wanted if weight is None else wanted * weight[self.index]
        edited = essence.log_softmax(-1)
        reference = edited.detach() if reference is None else reference
        change = edited - reference[self.index.to(reference.device)]
        kl = self.objective.kl_factor * (edited.exp() * change).sum(-1)
        # The norm's derivative at zero is zero here (a square root of a sum of squares would give NaN).
        width = self.runner.lm.arch.width
        ratio = self.objective.weight_decay * _norms(mine, width) / _norms(start[self.index], width) ** 2
        decay = ratio.sum((1, 2))
        total = wanted + kl + decay
        if self.runner.states:
            total = total + self.objective.agreement * self._apart()
        for term in self.objective.terms:
            total = total + term.loss(mine)
        return torch.stack([total, wanted, kl, decay], 1), wrong == 0, reference

    def _apart(self) -> Float[Tensor, "members"]:
        """How far apart the contexts leave the states of later layers (:attr:`Objective.agreement`), ``[members]``."""
        places, count = self.places, self.runner.contexts
        rows = places.first[:, None] + torch.arange(count, device=places.first.device)
        each = []
        for states in self.runner.states:
            mine = states[rows.to(states.device)]  # [members, contexts, d]
            # The sum over pairs is so many times the sum about the mean, in which nothing large cancels.
            spread = (mine - mine.mean(1, keepdim=True)).square().sum((1, 2))
            each.append((count * spread / mine.shape[2]).to(places.first.device))
        return torch.stack(each).mean(0)

    def note(
        self, terms: Float[Tensor, "members 4"], active: Bool[Tensor, "edits"], losses: list[list[Tensor]]
    ) -> None:
        """Keep the losses of the edits that have not stopped.

        Args:
            terms: the losses of each member, ``[members, 4]``.
            active: whether an edit has not stopped, ``[edits]``.
            losses: what has been kept of each edit; changed.

        Raises:
            NumericalError: a loss is not finite; names the edit and the layer.
        """
        for row, i in zip(terms, self.members, strict=True):
            if not bool(active[i]):
                continue
            if not bool(torch.isfinite(row).all()):
                raise NumericalError(
                    f"edit {self.prepared[i].edit.id}: the loss at layer {self.objective.layer} became "
                    f"{row[0].item()} after {len(losses[i])} steps; lower v_lr, or load the model in float32"
                )
            losses[i].append(row)
