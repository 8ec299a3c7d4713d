"""What a model writes for an editor of the prompt before it is asked: greedily, up to a word that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.lm import LM

__all__ = ["written"]


def written(lm: LM, text: str, *, tokens: int, ends: Sequence[str]) -> str:
    """The greedy continuation of a text, without the text and without what ends it.

    Args:
        lm: the model.
        text: what it reads.
        tokens: how many it writes at most.
        ends: strings of which the first that is written ends it.
    """
    from transformers import StoppingCriteriaList

    ids = lm.encode(text) or [lm.start]
    batch = lm.batch([ids])
    stop = StoppingCriteriaList([_Written(lm, len(ids), ends)])
    with torch.no_grad(), lm.plain_generation():
        found: Tensor = lm.model.generate(  # type: ignore[operator]  # transformers types it as a tensor
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=lm.pad,
            stopping_criteria=stop,
        )
    said = str(lm.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))
    return said[: min((said.index(end) for end in ends if end in said), default=len(said))]


@dataclass(frozen=True, eq=False)
class _Written:
    """Whether one of some strings has been written: what transformers calls a stopping criterion.

    Attributes:
        lm: the model.
        start: the tokens that it read.
        ends: the strings.
    """

    lm: LM
    start: int
    ends: Sequence[str]

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:  # noqa: ARG002
        said = str(self.lm.tokenizer.decode(input_ids[0, self.start :], skip_special_tokens=True))
        return torch.tensor([any(end in said for end in self.ends)], device=input_ids.device)
