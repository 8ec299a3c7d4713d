"""Long targets in chunks: a value for each chunk, given those of the earlier ones, and all of them written at once.

Source: Jiang, Fang, Zhang, Wan, Ma, Wang, He, Chua 2025, "AnyEdit: Edit Any Knowledge Encoded in Language Models",
arXiv 2502.05628, and the authors' code (jianghoucheng/AnyEdit at ac8e652, memit_ARE and unke_ARE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.methods.block_training import WantedStates
from harness.methods.keys import AdjointSolver
from harness.methods.value import optimise_rows
from harness.methods.value_rows import Objective, PreparedEdit
from harness.models.activations import TokenRow, at_least_float32, capture_activations, row_portions
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, Step, patched

__all__ = ["ChunkedTarget", "Rest", "chunk_values", "cut_target", "wanted_states", "write_values"]

Rest = Literal["all", "before", "none"]
"""Which tokens of a prompt and its target, besides those at which values stand, shall give what they gave: ``all``,
those ``before`` the last value, or ``none``."""

_BUDGET = 8192  # tokens of one forward pass, padding included


@dataclass(frozen=True)
class ChunkedTarget:
    """The tokens of an edit's prompt and of its target, and where that is cut.

    Attributes:
        edit: the edit.
        prompt: its tokens.
        target: the target's.
        cuts: where each chunk begins and ends in the target.
    """

    edit: Edit
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the whole target."""
        return self.prompt + self.target

    @property
    def places(self) -> tuple[int, ...]:
        """Where the value of each chunk stands: at the last token in front of it."""
        return tuple(len(self.prompt) + begin - 1 for begin, _ in self.cuts)

    def prepared(self, chunk: int) -> PreparedEdit:
        """What the optimisation of one chunk's value runs: all in front of the chunk, and the chunk."""
        begin, end = self.cuts[chunk]
        front, said = self.prompt + self.target[:begin], self.target[begin:end]
        # There is no KL term; its row is as short as can be.
        rows = [TokenRow(front + said[:-1], len(front) - 1), TokenRow(front[-1:], 0)]
        return PreparedEdit(self.edit, rows, [list(said)], [()] * len(rows))

    def counted(self, rest: Rest) -> list[int]:
        """1 at the tokens with a value and the rest that is kept, 0 at the others."""
        last = max(self.places)
        whole = range(len(self.ids))
        return [int(i in self.places or rest == "all" or (rest == "before" and i < last)) for i in whole]


def cut_target(lm: LM, edit: Edit, *, window: int, overlap: int = 0) -> ChunkedTarget:
    """Cut an edit's target into chunks of so many tokens.

    Args:
        lm: the model.
        edit: the edit.
        window: tokens of a chunk.
        overlap: tokens that a chunk shares with the one before; below the window.

    Raises:
        DataError: prompt and target are longer than the model's context.
    """
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    if len(prompt) + len(target) > lm.context:
        raise DataError(
            f"edit {edit.id}: {len(prompt) + len(target)} tokens with its target, but {lm.name} takes {lm.context}; "
            "shorten the target"
        )
    begins = range(0, max(1, len(target) - overlap), window - overlap)
    cuts = tuple((begin, min(begin + window, len(target))) for begin in begins)
    return ChunkedTarget(edit, tuple(prompt), tuple(target), cuts)


@dataclass(frozen=True, eq=False)
class _Earlier:
    """A hook (:data:`harness.patches.patch.Hook`) that adds the changes of earlier chunks to the rows of the next.

    Attributes:
        changes: the tokens of a row -> where changes stand in it, and these, ``[n, d]``.
    """

    changes: Mapping[tuple[int, ...], tuple[Sequence[int], Float[Tensor, "n d"]]]

    def __call__(self, hidden: Float[Tensor, "rows columns d"], step: Step) -> Float[Tensor, "rows columns d"]:
        moved = hidden.clone()
        for r, (ids, mask) in enumerate(zip(step.ids, step.mask, strict=True)):
            found = self.changes.get(tuple(ids[mask.bool()].tolist()))
            if found is not None:
                moved[r, list(found[0])] = (
                    at_least_float32(hidden[r, list(found[0])]) + found[1].to(hidden.device)
                ).to(hidden.dtype)
        return moved


def chunk_values(lm: LM, targets: Sequence[ChunkedTarget], *, objective: Objective) -> list[Float[Tensor, "_ d"]]:
    """The wanted hidden states of each target's chunks: one after the other, all targets side by side.

    The value of a chunk is optimised on what stands in front of it, with the earlier chunks' changes in place.

    Args:
        lm: the model, unchanged when this returns.
        targets: prompts and cut targets.
        objective: what is optimised, without a KL term.

    Raises:
        NumericalError: a loss is not finite; names the edit and the layer.
    """
    place = lm.arch.block(objective.layer)
    starts: list[list[Tensor]] = [[] for _ in targets]
    deltas: list[list[Tensor]] = [[] for _ in targets]
    for chunk in range(max(len(target.cuts) for target in targets)):
        members = [i for i, target in enumerate(targets) if chunk < len(target.cuts)]
        whole = [targets[i].prepared(chunk) for i in members]
        earlier = {
            one.rows[0].ids: (targets[i].places[:chunk], torch.stack(deltas[i]))
            for i, one in zip(members, whole, strict=True)
            if chunk
        }
        with patched(lm, Patch(hooks={place: _Earlier(earlier)} if earlier else {})):
            found = optimise_rows(lm, whole, objective=objective)
        for i, start, delta in zip(members, found.start, found.delta, strict=True):
            starts[i].append(start)
            deltas[i].append(delta)
    pairs = zip(starts, deltas, strict=True)
    return [torch.stack(start) + torch.stack(delta) for start, delta in pairs]


def write_values(
    lm: LM,
    groups: Sequence[Sequence[ChunkedTarget]],
    values: Sequence[Sequence[Float[Tensor, "_ d"]]],
    *,
    layers: Sequence[int],
    solve: AdjointSolver,
    rest: Rest,
) -> list[Patch]:
    """Spread the values of all chunks over down-projections, ascending, as MEMIT does (its algorithm 1).

    The keys of the rest of the tokens are written, too, with a residual of zero.

    Args:
        lm: the model, unchanged when this returns.
        groups: batches of prompts and cut targets; each is written on the unedited model.
        values: of each batch what shall leave the last layer's block at the chunks of each target.
        layers: the layers, ascending.
        solve: how the change of one layer is found, for all batches at once.
        rest: which other tokens shall give what they gave.
    """
    patches, wanted = [Patch() for _ in groups], [torch.cat(list(some)) for some in values]
    for i, layer in enumerate(layers):
        keys, residuals, counts = [], [], []
        for targets, goal, patch in zip(groups, wanted, patches, strict=True):
            with patched(lm, patch):
                key, hidden, others = _read(lm, targets, layer=layer, last=layers[-1], rest=rest)
            residual = ((goal.to(hidden) - hidden) / (len(layers) - i)).to(key.device)
            keys.append(torch.cat([key, others]))
            residuals.append(torch.cat([residual, residual.new_zeros(len(others), residual.shape[1])]))
            counts.append(len(key))
        changes = solve.side_by_side(layer, torch.cat(keys), torch.cat(residuals), sizes=list(map(len, keys)))
        for g, (change, count) in enumerate(zip(changes, counts, strict=True)):
            assert isinstance(change, LowRank), "one column for each key"
            # What has no residual has no part in the product.
            mine = LowRank(change.left[:, :count].contiguous(), change.right[:count].clone())
            patches[g] = patches[g] + Patch(weights={lm.down(layer): mine})
    return patches


def _read(
    lm: LM, targets: Sequence[ChunkedTarget], *, layer: int, last: int, rest: Rest
) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n d"], Float[Tensor, "others f"]]:
    """Keys of a layer and states that leave the last one at all chunks, in order, and the keys of the rest."""
    down, block = lm.arch.writer_of(layer), lm.arch.block(last)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for portion in row_portions([[len(target.ids)] for target in targets], _BUDGET):
        batch = lm.batch([targets[i].ids for i in portion])
        seen = capture_activations(lm, batch, inputs=[down], outputs=[block])
        for r, i in enumerate(portion):
            key, state = at_least_float32(seen.inputs[down][r]), at_least_float32(seen.outputs[block][r])
            at = list(targets[i].places)
            others = [p for p, counts in enumerate(targets[i].counted(rest)) if counts and p not in at]
            found[i] = key[at], state[at], key[others]
    keys, states, rests = zip(*(found[i] for i in range(len(targets))), strict=True)
    return torch.cat(keys), torch.cat(states), torch.cat(rests)


def wanted_states(
    lm: LM, targets: Sequence[ChunkedTarget], values: Sequence[Float[Tensor, "_ d"]], *, rest: Rest
) -> WantedStates:
    """The values of all chunks as blocks are trained to give them.

    Args:
        lm: the model.
        targets: prompts and cut targets.
        values: what shall leave the last block at the chunks of each.
        rest: which other tokens count in the error.
    """
    batch = lm.batch([target.ids for target in targets])
    row = torch.tensor([r for r, target in enumerate(targets) for _ in target.places])
    column = torch.tensor([at for target in targets for at in target.places])
    counted = torch.zeros_like(batch.mask)
    for r, target in enumerate(targets):
        counted[r, : len(target.ids)] = torch.tensor(target.counted(rest)).to(counted)
    return WantedStates(batch, row, column, torch.cat(list(values)), counted)
