"""What a memory beside a model is routed by: what was read of a text up to each position, and what is unrelated."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from harness.errors import DataError, ModelError
from harness.models.lm import LM
from harness.patches.patch import Step

__all__ = ["RunningValues", "last_real", "unrelated_texts"]

_POOL = 512  # documents of unrelated text that are read at most


class RunningValues:
    """Sums or largest values up to each position of a text, carried from pass to pass as keys and values are."""

    def __init__(self, kind: Literal["sum", "largest"], *, asker: str, cure: str) -> None:
        """Begin with no text.

        Args:
            kind: what is taken of the values up to a position.
            asker: the editor, for the error.
            cure: what to do where a text was begun without the memories, for the error.
        """
        self._kind, self._asker, self._cure = kind, asker, cure
        self._ids: Tensor | None = None
        self._kept = torch.empty(0)

    def __call__(self, values: Tensor, step: Step) -> Tensor:
        """The sum or the largest up to each of the new positions, ``[batch, new, width]``; padding counts as zero.

        Args:
            values: those of the new positions, ``[batch, new, width]``.
            step: the pass.

        Raises:
            ModelError: it goes on with a key-value cache of other texts than those of the last pass.
        """
        real = values * step.mask[:, -step.new :, None].to(values)
        found = real.cumsum(1) if self._kind == "sum" else real.cummax(1).values
        past = step.ids.shape[1] - step.new
        if past:
            if self._ids is None or not torch.equal(self._ids[:, :past], step.ids[:, :past]):
                raise ModelError(
                    f"{self._asker}: a key-value cache of a text that was read without its memories; read the text "
                    f"again, or {self._cure}"
                )
            before = self._kept[:, :past]
            last = before[:, -1:]
            found = torch.cat([before, last + found if self._kind == "sum" else torch.maximum(last, found)], 1)
        self._ids, self._kept = step.ids, found.detach()
        return found[:, past:]


def last_real(values: Tensor, step: Step) -> Tensor:
    """What stands at the last real position of each row of a pass, ``[batch, 1, width]``.

    Args:
        values: those of the new positions, ``[batch, new, width]``.
        step: the pass.
    """
    real = step.mask[:, -step.new :, None].to(values.device)
    places = torch.arange(1, real.shape[1] + 1, device=real.device)[None, :, None] * real
    return values.take_along_dim(places.argmax(1, keepdim=True), 1)


def unrelated_texts(lm: LM, count: int = _POOL) -> tuple[str, ...]:
    """The first documents of the model's plain text.

    Raises:
        DataError: there are none.
    """
    texts = tuple(islice(lm.documents(), count))
    if not texts:
        raise DataError(f"'{lm.text}' holds no text; give unrelated text with --text FILE")
    return texts
