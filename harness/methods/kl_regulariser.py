"""A pull towards the model before an operation: the divergence from it on general text, as a term of a loss.

Source: Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, equation 4, and the authors' code
(john-hewitt/model-editing-canonical-examples at 15a1e7b).  They differ: the paper writes ``KL(p || p0)``, the code has
``KL(p0 || p)``, summed over all positions of a text, the last one included.  The code's term is the one here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from harness.errors import DataError
from harness.io.plain_text import read_documents
from harness.models.activations import at_least_float32
from harness.models.lm import LM
from harness.models.offload import call_with

__all__ = ["KLRegulariser", "kl_regulariser", "summed_kl"]

_TEXTS = 3000
"""How many texts are drawn from, as published."""


def summed_kl(
    before: Float[Tensor, "positions vocabulary"], after: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, ""]:
    """``sum over positions of KL(before || after)``, in nats, from logits ``[positions, vocabulary]``."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


@dataclass(frozen=True, eq=False)
class KLRegulariser:
    """The weighted divergence from the model before the operation on one text after the other.

    Of edits one after the other that model carries the earlier ones: what they moved is not pulled back.

    Attributes:
        weight: its weight, per text: on a text of 500 tokens each position counts this much.
        texts: the tokens of the texts, one for each call; it never ends.
        mean: whether the divergence is the mean over the positions of a text, not their sum.
    """

    weight: float
    texts: Iterator[list[int]]
    mean: bool = False

    def __call__(self, lm: LM, held: Mapping[str, Tensor]) -> Tensor:
        """The term for the next text, with some parameters in place of the model's own."""
        ids = torch.tensor([next(self.texts)], device=lm.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with torch.no_grad():
            before = lm.model(**inputs).logits[0]
        after = call_with(lm.model, held, **inputs).logits[0]
        found = summed_kl(at_least_float32(before), at_least_float32(after))
        return self.weight * (found / len(before) if self.mean else found)


def kl_regulariser(
    lm: LM, *, weight: float, source: str | None, seed: int, tokens: int | None = None, mean: bool = False
) -> KLRegulariser | None:
    """The term for texts drawn with replacement; None where it has no weight.

    Args:
        lm: the model.
        weight: the weight.
        source: a file, a folder or a Hub data set of texts; None for the model's plain text.
        seed: of the draw.
        tokens: how many tokens of each text are read; None for as many as the model takes.
        mean: whether the divergence is the mean over the positions of a text, not their sum.

    Raises:
        DataError: the texts cannot be read, or there is none of two tokens.
    """
    if not weight:
        return None
    place = source or lm.text
    most = lm.context if tokens is None else min(tokens, lm.context)
    encoded = (lm.encode(text)[:most] for text in islice(read_documents(place), _TEXTS))
    texts = [ids for ids in encoded if len(ids) > 1]
    if not texts:
        raise DataError(f"{place}: no text of two tokens; give texts for the divergence with --set kl_text=FILE")
    return KLRegulariser(weight, _drawn(texts, seed), mean)


def _drawn(texts: list[list[int]], seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield texts[int(torch.randint(len(texts), (), generator=generator))]
