"""What stands beside a row in a batch moves its last digits: by rounding, which float64 has nine digits later.

So what is scored in shards, whose batches are others, is equal but for rounding (docs/how-to/cluster.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.models.lm import LM, load

ROW = "He lives in a house by the"
LONGER = "A man who was born in the town of Velmont, which lies in the north, has moved away to the south of the land"


def next_token(lm: LM, others: list[str]) -> Tensor:
    """The probabilities of what follows a row, which is read beside others."""
    rows = [lm.encode(text) for text in (ROW, *others)]
    batch = lm.batch(rows)
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    found: Tensor = logits[0, len(rows[0]) - 1].double().softmax(-1)
    return found


def moved(dtype: str) -> float:
    """By how much another length of the batch moves a probability."""
    lm = load("mini", device="cpu", dtype=dtype)
    return float((next_token(lm, [LONGER]) - next_token(lm, [])).abs().max())


def test_the_batch_moves_a_row_by_rounding_alone() -> None:
    single, double = moved("float32"), moved("float64")
    assert single < 1e-5
    assert double < 1e-13
