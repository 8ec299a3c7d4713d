"""Values that lie to one another as their keys do: what is added to the loss of each, and in which order they come.

Facts whose keys are alike pull at the same weights; where what they want is not alike, least squares gives each of them
something between. Source: Dai, Ji, Li, Wang 2026, "EAMET: Robust Massive Model Editing via Embedding Alignment
Optimization", ICLR 2026, arXiv 2505.11876, and the authors' code (ybdai7/EAMET-massive-editing at 1fe317f).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from harness.editing.edit import Edit
from harness.methods.keys import read_keys
from harness.methods.value import optimise
from harness.methods.value_cache import cache_in_use, values_from
from harness.methods.value_rows import Objective
from harness.models.lm import LM

__all__ = ["Alignment", "Neighbours", "aligned_values"]

_LITTLE = 1e-8  # what the authors' code adds to both probabilities


@dataclass(frozen=True)
class Alignment:
    """How much likeness counts.

    Attributes:
        divergence: weight of the KL divergence between the likeness of residuals and that of keys (``cs_factor``).
        distance: weight of the mean squared difference of both, over the nearest (``mse_factor``).
        temperature: by which cosines are divided before the softmax (``tau``).
        nearest: how many earlier edits count in the second, those whose keys are most alike.
        order: ``residuals`` for ``KL(P_r || P_k)``, ``released`` for ``KL(P_k || P_r)``.
    """

    divergence: float
    distance: float
    temperature: float
    nearest: int
    order: Literal["residuals", "released"] = "residuals"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The term (:class:`harness.methods.value_rows.Term`) of one edit whose earlier ones have been found.

    Attributes:
        residuals: what was found for the earlier edits, ``[n, d]``.
        likeness: the cosines of the edit's key with theirs, ``[n]``.
        rule: how much each part counts.
    """

    residuals: Float[Tensor, "n d"]
    likeness: Float[Tensor, "n"]
    rule: Alignment

    def identity(self) -> object:
        """The numbers, as a hash, and the rule."""
        digest = hashlib.sha256()
        for numbers in (self.residuals, self.likeness):
            digest.update(str(numbers.dtype).encode() + numbers.detach().cpu().contiguous().numpy().tobytes())
        return ["neighbours", digest.hexdigest(), vars(self.rule)]

    def loss(self, delta: Float[Tensor, "members d"]) -> Float[Tensor, "members"]:
        """``divergence KL + distance sum_j p_j (cos(k, k_j) - cos(r, r_j))^2``, ``p`` over the nearest."""
        rule, keys = self.rule, self.likeness.to(delta)
        residuals = normalize(delta, dim=1) @ normalize(self.residuals.to(delta), dim=1).T
        near = keys.topk(min(rule.nearest, len(keys))).indices
        share = (keys[near] / rule.temperature).softmax(0)
        distance = (share * (keys[near] - residuals[:, near]) ** 2).sum(1)
        return rule.divergence * self._divergence(residuals, keys) + rule.distance * distance

    def _divergence(self, residuals: Float[Tensor, "members n"], keys: Float[Tensor, "n"]) -> Float[Tensor, "members"]:
        """Between the softmax of both cosines, one distribution over the earlier edits for each member."""
        ours, theirs = ((part / self.rule.temperature).log_softmax(-1) for part in (residuals, keys))
        if self.rule.order == "released":
            return (theirs.exp() * ((theirs.exp() + _LITTLE).log() - (ours.exp() + _LITTLE).log())).sum(-1)
        return (ours.exp() * (ours - theirs)).sum(-1)


def aligned_values(
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    templates: Sequence[str],
    *,
    objective: Objective,
    alignment: Alignment,
) -> Float[Tensor, "edits d"]:
    """The wanted hidden states of batches of edits, in their order: of a batch one after the other.

    The first edit of each batch has nothing to be aligned with; these are found side by side.

    Args:
        lm: the model.
        groups: batches of edits, none of them empty.
        templates: context templates.
        objective: what is optimised besides.
        alignment: how much likeness counts.
    """
    # How the model is run is tried once, and not for every edit.
    with values_from(cache_in_use()):
        first = optimise(lm, [group[0] for group in groups], templates, objective=objective)
        found = []
        for g, group in enumerate(groups):
            residuals, value = [first.delta[g]], first.value[g]
            found.append(value)
            for edit, likeness in zip(group[1:], _likeness(lm, group, templates, objective), strict=True):
                term = Neighbours(torch.stack(residuals), likeness, alignment)
                one = optimise(lm, [edit], templates, objective=replace(objective, terms=(term,)))
                residuals.append(one.delta[0])
                found.append(one.value[0])
    return torch.stack(found)


def _likeness(lm: LM, group: Sequence[Edit], templates: Sequence[str], objective: Objective) -> list[Tensor]:
    """For each edit but the first, the cosines of its key with those of all before it."""
    if len(group) == 1:
        return []
    keys, _ = read_keys(lm, group, objective.layer, templates=templates, fact_token=objective.fact_token, kind="memit")
    cosines = normalize(keys, dim=1) @ normalize(keys, dim=1).T
    return [cosines[i, :i] for i in range(1, len(group))]
