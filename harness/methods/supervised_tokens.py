"""What an edit asks of a model, as rows of tokens: which positions shall predict which token of the target.

Unlike :mod:`harness.methods.keys` this needs no subject: all that counts is the prompt and the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.models.activations import at_least_float32, capture_activations, first_output
from harness.models.lm import LM, Batch

__all__ = ["SupervisedTokens", "supervise_target", "supervise_targets"]


@dataclass(frozen=True, eq=False)
class SupervisedTokens:
    """An edit's prompt behind each of some contexts, followed by all tokens of the target but the last.

    Attributes:
        edit: the edit.
        batch: the rows, right-padded.
        row, column: the positions that predict the target, ``[p]``; the first of each row is the prompt's last token.
        token: what they shall predict, ``[p]``.
        share: how much each counts in the loss, ``[p]``; None where all count alike.
    """

    edit: Edit
    batch: Batch
    row: Tensor
    column: Tensor
    token: Tensor
    share: Tensor | None = None

    def nll(self, lm: LM) -> Tensor:
        """The mean over rows of the mean NLL of the target's tokens, each after those before it, or their shares."""
        batch = self.batch
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        return self._nll(logits[self.row, self.column])

    def whole(self, lm: LM) -> Batch:
        """The rows with the target's last token behind them."""
        count, rows = len(self.batch.ids), zip(self.batch.ids, self.batch.mask, strict=True)
        last = self.token.reshape(count, -1)[:, -1].tolist()
        return lm.batch([[*ids[mask.bool()].tolist(), end] for (ids, mask), end in zip(rows, last, strict=True)])

    def above(self, lm: LM, layer: int) -> Callable[[], Tensor]:
        """What computes the same NLL again and again while nothing below a layer changes: the blocks below run once.

        A patch that is to act must be held before this is called, and during the calls. Where a model does more
        between its blocks than hand on a hidden state, what is returned runs the whole model.
        """
        with torch.no_grad():
            whole = self.nll(lm)
            try:
                upper = _Upper(lm, self, layer)
                same = torch.allclose(upper(), whole, rtol=1e-3, atol=1e-4)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                same = False
        return upper if same else lambda: self.nll(lm)

    def _nll(self, logits: Tensor) -> Tensor:
        log_p = at_least_float32(logits).log_softmax(-1)
        each = -log_p.gather(1, self.token.to(log_p.device)[:, None])[:, 0]
        return each.mean() if self.share is None else (each * self.share.to(each)).sum()


class _Upper:
    """The blocks from one layer up, run on what entered them in one pass."""

    def __init__(self, lm: LM, rows: SupervisedTokens, layer: int) -> None:
        self.lm, self.rows = lm, rows
        names = [lm.arch.block(i) for i in range(layer, lm.arch.layers)]
        self.blocks = [lm.module(name) for name in names]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handles = [block.register_forward_pre_hook(self._record, with_kwargs=True) for block in self.blocks]
        try:
            capture_activations(lm, rows.batch, outputs=names[-1:])
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What entered the lowest block is kept; the others are given what leaves the one below.
        if self.calls:
            args, kwargs = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append((args, kwargs))

    def __call__(self) -> Tensor:
        args, kwargs = self.calls[0]
        hidden = first_output(self.blocks[0](*args, **kwargs))
        for block, (args, kwargs) in zip(self.blocks[1:], self.calls[1:], strict=True):
            hidden = first_output(block(hidden, *args, **kwargs))
        picked = hidden[self.rows.row, self.rows.column]
        norm = self.lm.arch.norm
        normed = self.lm.module(norm)(picked) if norm else picked
        return self.rows._nll(self.lm.module(self.lm.arch.head)(normed))


def supervise_target(lm: LM, edit: Edit, templates: Sequence[str] = ("{}",)) -> SupervisedTokens:
    """The rows of an edit.

    Args:
        lm: the model.
        edit: the edit; it needs no subject.
        templates: context templates, the first ``{}``.

    Raises:
        DataError: a row is longer than the model's context.
    """
    target = lm.continuation(edit.text, edit.continuation)
    heads = [lm.encode(edit.behind(template)) for template in templates]
    longest = max(len(head) for head in heads) + len(target)
    if longest > lm.context:
        raise DataError(
            f"edit {edit.id}: {longest} tokens with its longest context and target, but {lm.name} takes {lm.context}; "
            "shorten the prompt"
        )
    batch = lm.batch([head + target[:-1] for head in heads])
    row = torch.arange(len(heads)).repeat_interleave(len(target))
    column = torch.tensor([len(head) - 1 + t for head in heads for t in range(len(target))])
    return SupervisedTokens(edit, batch, row, column, torch.tensor(target * len(heads)))


def supervise_targets(lm: LM, edits: Sequence[Edit]) -> SupervisedTokens:
    """The rows of several edits, of whose targets all tokens count alike.

    Args:
        lm: the model.
        edits: the edits, at least one; they need no subject.

    Raises:
        DataError: a row is longer than the model's context.
    """
    each = [supervise_target(lm, edit) for edit in edits]
    rows = [one.batch.ids[0, one.batch.mask[0].bool()].tolist() for one in each]
    row = torch.cat([torch.full_like(one.row, i) for i, one in enumerate(each)])
    column, token = (torch.cat([getattr(one, name) for one in each]) for name in ("column", "token"))
    return SupervisedTokens(edits[0], lm.batch(rows), row, column, token)
