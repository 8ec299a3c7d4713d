"""Whether an edited mixture still sends tokens to the experts that it sent them to: the stability of its routing.

Of tokens of neutral text, which no edit is about, the share whose set of chosen experts is the unedited model's: of
each layer with experts, and of all of them together. A change of experts moves the hidden states above them, and with
these what routers choose (Gu et al. 2026, MoEEdit, arXiv 2602.10965).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from harness.exam.neutral_text import Texts
from harness.models.lm import LM

__all__ = ["ALL", "chosen_experts", "routing_stability"]

ALL = "all layers"
_BATCH = 16


def chosen_experts(lm: LM, found: Texts) -> dict[str, Tensor]:
    """Module of experts -> which of them each token of the texts is sent to, ``[tokens, k]``, in ascending order.

    Args:
        lm: the model as it is now.
        found: the texts.
    """
    each: dict[str, list[Tensor]] = {name: [] for name in lm.arch.stacked}
    real: list[Tensor] = []

    def note(name: str) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        return lambda _module, args, kwargs: each[name].append(_choice(args, kwargs)[real[-1]].cpu())

    with ExitStack() as stack, torch.no_grad():
        for name in each:
            handle = lm.module(name).register_forward_pre_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        for start in range(0, len(found.rows), _BATCH):
            batch = lm.batch(found.rows[start : start + _BATCH])
            real.append(batch.mask.flatten().bool().cpu())
            lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return {name: torch.cat(parts).sort(1).values for name, parts in each.items() if parts}


def _choice(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Of what experts are given, the numbers of those that each token is sent to, ``[tokens, k]``."""
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and not one.is_floating_point()]
    return given[0].detach().cpu()


def routing_stability(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Module of experts -> the share of tokens whose experts are the same; under :data:`ALL` that of all modules.

    Args:
        before: what :func:`chosen_experts` says of the unedited model.
        after: what it says of the edited one.
    """
    same = {name: (choice == after[name]).all(1) for name, choice in before.items()}
    if not same:
        return {}
    each = {name: int(kept.sum()) / len(kept) for name, kept in same.items()}
    everywhere = torch.cat(list(same.values()))
    return {**each, ALL: int(everywhere.sum()) / len(everywhere)}
