"""What an edit may want of its continuation: one list for all editors, tasks and problems.

An edit names its direction (``Edit.direction``) and, where the direction compares two continuations, the second one
(``Edit.against``).  From there on everything is one function of two numbers per edit: the negative log-likelihood of
the target, and that of the other continuation.

============== ==================================== ====================================================================
direction      loss                                 source
============== ==================================== ====================================================================
likelihood     ``nll``                              Meng et al. 2022, equation 4; canonical examples "good"
unlikelihood   ``-nll``                             canonical examples "bad"
erasure        ``exp(-nll)``                        Hase et al. 2023, section 5: the probability itself is minimised
balance        ``|nll - nll(against)|``             canonical examples "balance" (gender)
contrast       ``nll - nll(against)``               canonical examples "good-v-bad" (verbs)
============== ==================================== ====================================================================

How to use it::

    each = nll(log_p, owner, count)                       # [count], from log-probabilities of single tokens
    loss = losses(directions, each, against)              # [count], differentiable, directions mixed as they come
    enough = [floor(d, 0.05) for d in directions]         # below which an edit has what it wants

``normalisation="mean"`` divides by the tokens of the continuation (training), ``"sum"`` does not (evaluation of
canonical examples; the sequence probability of Hase et al.).

Sources: Hase, Bansal, Kim, Ghandeharioun 2023, "Does Localization Inform Editing?", arXiv 2301.04213; Hewitt et al.
2024, "Model Editing with Canonical Examples", arXiv 2402.06155, section 3 and appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["DIRECTIONS", "LIKELIHOOD", "PAIRED", "Direction", "Normalisation", "floor", "losses", "nll"]

Direction = Literal["likelihood", "unlikelihood", "erasure", "balance", "contrast"]
"""What an edit wants of its target."""

Normalisation = Literal["mean", "sum"]
"""Whether the negative log-likelihood of a continuation is divided by its number of tokens."""

DIRECTIONS: frozenset[Direction] = frozenset(get_args(Direction))
"""All of them: what an editor declares that follows any loss."""

LIKELIHOOD: frozenset[Direction] = frozenset({"likelihood"})
"""What an editor declares that can only make a target likelier."""

PAIRED: frozenset[Direction] = frozenset({"balance", "contrast"})
"""The directions that need a second continuation."""

_UNBOUNDED = -50.0  # appendix D of Hewitt et al.: where value optimisation of an unbounded loss ends


def nll(log_p: Tensor, owner: Tensor, count: int, *, normalisation: Normalisation = "mean") -> Tensor:
    """The negative log-likelihood of each of some continuations, ``[count]``.

    Args:
        log_p: the log-probability of each token, ``[tokens]``.
        owner: the continuation that each token belongs to, ``[tokens]``.
        count: the number of continuations; each has at least one token.
        normalisation: ``mean`` over tokens, or their ``sum``.
    """
    zeros = log_p.new_zeros(count)
    total = zeros.index_add(0, owner, -log_p)
    return total if normalisation == "sum" else total / zeros.index_add(0, owner, torch.ones_like(log_p))


def losses(directions: Sequence[Direction], target: Tensor, against: Tensor | None = None) -> Tensor:
    """What is minimised for each edit, ``[edits]``; the targets' own numbers where all directions are ``likelihood``.

    Args:
        directions: what each edit wants.
        target: the negative log-likelihood of each target, ``[edits]``.
        against: that of each second continuation, ``[edits]``; anything where the direction does not compare.
    """
    total = target
    for direction in dict.fromkeys(directions):
        if direction != "likelihood":
            mine = torch.tensor([d == direction for d in directions], device=target.device)
            total = torch.where(mine, _loss(direction, target, target if against is None else against), total)
    return total


def _loss(direction: Direction, target: Tensor, against: Tensor) -> Tensor:
    if direction == "unlikelihood":
        return -target
    if direction == "erasure":
        return torch.exp(-target)
    difference = target - against
    return difference.abs() if direction == "balance" else difference


def floor(direction: Direction, threshold: float) -> float:
    """The loss below which an edit has what it wants: ``threshold`` of those that end at zero, -50 of the others.

    Args:
        direction: what the edit wants.
        threshold: the threshold of a likelihood.
    """
    return _UNBOUNDED if direction in ("unlikelihood", "contrast") else threshold
