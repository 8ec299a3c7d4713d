"""What a value optimisation runs: the rows of tokens of each edit, and the positions at which logits are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from harness.editing.edit import Edit
from harness.methods.keys import FactToken, find_fact_token, prompt_rows
from harness.models.activations import TokenRow
from harness.models.lm import LM

__all__ = [
    "Begin",
    "Objective",
    "Positions",
    "PreparedEdit",
    "Seam",
    "Stop",
    "Term",
    "positions",
    "prefixes",
    "prepare_edit",
]


Seam = Literal["mlp", "block", "parts"]
"""Where a value stands in a layer, see :class:`Objective`."""

Stop = Literal["loss", "argmax", "argmax_kl", "never"]
"""When the optimisation of a value ends early, see :class:`Objective`."""

Begin = Literal["zero", "key", "key_released"]
"""From which change an optimisation sets out, and what its bound is a multiple of, see :class:`Objective`."""


@runtime_checkable
class Term(Protocol):
    """One more term of a loss, whose value each edit's change decides."""

    def identity(self) -> object:
        """All that decides the term, as JSON holds it: values that are kept are known by it."""

    def loss(self, delta: Float[Tensor, "members d"]) -> Float[Tensor, "members"]:
        """What is added to the loss of each edit whose change is given."""


@dataclass(frozen=True)
class Objective:
    """What is optimised, where, and how.

    Attributes:
        layer: the edited layer ``l``.
        seam: ``mlp`` adds to the output of the down-projection (ROME), which is that of the feed-forward module but
            where a factor stands between (Falcon-H1), ``block`` to the residual stream (MEMIT),
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
            ENCORE, Gupta et al. 2025, arXiv 2502.01636); with ``argmax_kl`` it stops there if its KL term is at most
            0.01, and else the next evaluation counts a tenth of the NLL (the code of PMET at 80643f2).
        cutoff: with ``argmax`` how many evaluations, not necessarily in a row, must have the target on top after every
            context but the bare prompt, the last of which ends the optimisation (ENCORE's code, ``prob_cutoff`` of the
            opposite sign); None for the first at which the bare prompt has it on top too.
        anchor: the norm ``a`` to which every value is scaled, ``v* a / ||v*||`` with ``v* = v0 + delta``, where ``v0``
            is what the edited layer's feed-forward module writes (NAS, Liu et al. 2026, arXiv 2602.02543). ``none``
            leaves values as they are; ``start`` takes the mean of ``||v0||`` over the edits of the call, on the model
            as it is given; a number is ``a`` itself, which the authors find on the unedited model, see
            :func:`anchor_norm`.
        anchor_skip: a value whose norm is above so many times the anchor stays the hidden state that it was, so that
            its edit changes nothing (NAS's code); None for none.
        begin: with ``zero`` the change sets out from nothing; with ``key`` from ``||k|| h0 / ||h0||``, where ``k`` is
            the key of the edited layer, MEMIT's mean over the context templates, and ``clamp`` bounds
            ``||delta|| / ||k||`` (EAMET, Dai et al. 2026, arXiv 2505.11876). With ``key_released``, as in their code, a
            state of norm 100 or more sets out from nothing, the KL term is against the model with the first change,
            and no edit ends at its first evaluation.
        agreement: weight of how far apart the context templates leave the changed token's hidden states in later
            layers: of each layer the sum of ``||h_i - h_j||^2 / d`` over all pairs of templates, the mean over layers
            (CORE, Park et al. 2025, arXiv 2505.23026).
        agreement_layers: how many layers above the edited one are looked at; None for all.
        terms: what is added to the loss of each edit.
    """

    layer: int
    _: KW_ONLY
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
    stop: Stop = "loss"
    cutoff: int | None = None
    anchor: Literal["none", "start"] | float = "none"
    anchor_skip: float | None = None
    begin: Begin = "zero"
    agreement: float = 0.0
    agreement_layers: int | None = None
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedEdit:
    """The rows of one edit: one for each context, the same with the second continuation, then the row of the KL term.

    Attributes:
        edit: the edit.
        rows: what is run on every evaluation.
        said: the continuation's tokens in each row but the last: the target's, then those it is compared with.
        rivals: how many of these rows hold the second continuation; 0 where there is none.
        prefixes: the tokens in front of each row, whose hidden states the change does not reach.
    """

    edit: Edit
    rows: list[TokenRow]
    said: list[list[int]]
    prefixes: list[tuple[int, ...]]
    rivals: int = 0

    @property
    def width(self) -> int:
        """The columns that its rows need."""
        return max(max(len(row.ids), row.at + 1) for row in self.rows)

    def split(self) -> PreparedEdit:
        """The same with rows that begin where the change, or the first token of the target, is first needed."""
        pairs = zip(self.rows[:-1], self.said, strict=True)
        cuts = [min(row.at, len(row.ids) - len(said)) for row, said in pairs]
        *contexts, essence = self.rows
        cuts.append(min(essence.at, len(essence.ids) - 1))
        # Nothing that follows its position counts in the row of the KL term.
        whole = [*contexts, TokenRow(essence.ids[: essence.at + 1], essence.at)]
        rows = [TokenRow(row.ids[cut:], row.at - cut) for row, cut in zip(whole, cuts, strict=True)]
        prefixes = [row.ids[:cut] for row, cut in zip(whole, cuts, strict=True)]
        return replace(self, rows=rows, prefixes=prefixes)


def prepare_edit(lm: LM, edit: Edit, *, templates: Sequence[str], fact_token: FactToken) -> PreparedEdit:
    """The rows of one edit: its prompts with the target, those with a second continuation, and the KL prompt.

    Args:
        lm: the model.
        edit: the edit.
        templates: texts that stand in front of the prompt, one row each.
        fact_token: at which token of the subject the value is written.
    """
    target = lm.continuation(edit.text, edit.continuation)
    # In the same turn of a chat, if it is one; of an edit without a subject its own prompt.
    about = edit if edit.subject is None else replace(edit, prompt="{} is a", slot=None)
    ids, at = find_fact_token(lm, about, template="{}", fact_token=fact_token)
    essence, said = [TokenRow(tuple(ids), at)], [target] * len(templates)
    if edit.rival is None:
        rows = prompt_rows(lm, edit, templates, fact_token=fact_token, suffix=target[:-1], extra=essence)
        return PreparedEdit(edit, rows, said, [()] * len(rows))
    against, count = lm.continuation(edit.text, edit.rival), len(templates)
    mine = prompt_rows(lm, edit, templates, fact_token=fact_token, suffix=target[:-1])
    rows = prompt_rows(lm, edit, templates, fact_token=fact_token, suffix=against[:-1], extra=[*mine, *essence])
    rows = [*rows[count:-1], *rows[:count], rows[-1]]
    return PreparedEdit(edit, rows, said + [against] * count, [()] * len(rows), count)


def prefixes(prepared: Sequence[PreparedEdit]) -> list[tuple[int, ...]]:
    """The tokens in front of each row, in the order of the rows."""
    return [prefix for one in prepared for prefix in one.prefixes]


@dataclass(frozen=True, eq=False)
class Positions:
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

    row: Int[Tensor, "p"]
    column: Int[Tensor, "p"]
    token: Int[Tensor, "p"]
    owner: Int[Tensor, "p"]
    share: Float64[Tensor, "p"]
    first: Int[Tensor, "edits"]
    kl_row: Int[Tensor, "edits"]
    kl_column: Int[Tensor, "edits"]
    at: Int[Tensor, "rows"]
    of: Int[Tensor, "rows"]


def positions(prepared: Sequence[PreparedEdit], device: torch.device) -> Positions:
    """Where the rows of all edits, one below the other, need logits."""
    row: list[int] = []
    column: list[int] = []
    token: list[int] = []
    owner: list[int] = []
    share: list[float] = []
    bare: list[int] = []
    kl_row: list[int] = []
    kl_column: list[int] = []
    at: list[int] = []
    of: list[int] = []
    for e, one in enumerate(prepared):
        bare.append(len(at))
        contexts = len(one.said) - one.rivals
        for r, line in enumerate(one.rows):
            if r == len(one.rows) - 1:
                kl_row.append(len(at))
                kl_column.append(line.at)
            else:
                said = one.said[r]
                begin = len(line.ids) - len(said)
                row += [len(at)] * len(said)
                column += range(begin, begin + len(said))
                token += said
                owner += [e if r < contexts else e + len(prepared)] * len(said)
                share += [1 / (len(said) * contexts)] * len(said)
            at.append(line.at)
            of.append(e)

    def whole(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    return Positions(
        row=whole(row),
        column=whole(column),
        token=whole(token),
        owner=whole(owner),
        share=torch.tensor(share, dtype=torch.float64),
        first=whole(bare),
        kl_row=whole(kl_row),
        kl_column=whole(kl_column),
        at=whole(at),
        of=whole(of),
    )
