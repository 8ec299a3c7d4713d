"""A small model's change of log-probabilities on top of a large model's logits, and how much of it is admissible.

Source: Hewitt et al. 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 6, and the authors' code
(john-hewitt/model-editing-canonical-examples at 15a1e7b).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.models.activations import at_least_float32
from harness.models.lm import LM

__all__ = ["combine_logits", "common_vocabulary", "largest_beta"]

STEPS = 10  # betas that are tried between 1 and 0


def combine_logits(logits: Tensor, tuned: Tensor, base: Tensor, *, beta: float, common: int) -> Tensor:
    """``z + beta (log softmax(z_tuned) - log softmax(z_base))``; tokens beside the common ones become impossible.

    Args:
        logits: ``z [..., V]`` of the large model.
        tuned: logits of the edited small model, ``[..., V']``; its softmax is over all of them.
        base: those of the unedited one.
        beta: how much of the change is added.
        common: the tokens that both models have.
    """
    change = at_least_float32(tuned).log_softmax(-1) - at_least_float32(base).log_softmax(-1)
    kept = at_least_float32(logits[..., :common]) + beta * change[..., :common].to(logits.device)
    rest = logits.new_full((*logits.shape[:-1], logits.shape[-1] - common), torch.finfo(logits.dtype).min)
    return torch.cat([kept.to(logits.dtype), rest], -1)


def common_vocabulary(lm: LM, companion: LM) -> int:
    """The number of tokens that two models share: the shorter of both vocabularies, its tokens the same in both.

    Raises:
        ModelError: their tokenizers differ.
    """
    count = min(len(lm.tokenizer), len(companion.tokenizer))
    ours, theirs = (one.tokenizer.convert_ids_to_tokens(list(range(count))) for one in (lm, companion))
    differing = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    if differing:
        i = differing[0]
        raise ModelError(
            f"token {i} is '{ours[i]}' to {lm.name} and '{theirs[i]}' to {companion.name}; give a companion that has "
            "the same tokenizer"
        )
    return count


def largest_beta(general: Callable[[float], float], epsilon: float) -> float:
    """The first of 1, 0.9, 0.8, ... whose loss on general text is inside the ball; 0 where none is.

    Inside is ``general(beta) < (1 + epsilon) general(0)``, so that a search begins and ends at what beta 0 gives.

    Args:
        general: the mean loss per token on general text, of the ensemble with a beta.
        epsilon: the tolerance.
    """
    bound = (1 + epsilon) * general(0.0)
    tried = (round(1 - i / STEPS, 10) for i in range(STEPS))
    return next((beta for beta in tried if general(beta) < bound), 0.0)
