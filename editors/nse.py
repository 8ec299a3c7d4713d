"""NSE: values as on the unedited model, written into the neurons that the edits use most, until they have arrived.

Source: Jiang, Fang, Zhang, Zhang, Wang, Liang, Wang 2024, "Neuron-Level Sequential Editing for Large Language Models",
ACL 2025, arXiv 2410.04045, and the authors' code (jianghoucheng/AlphaEdit at f5248d3, nse).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.methods.keys import read_hidden_states, read_keys
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, inverse_of_preserved, woodbury
from harness.methods.original import originals_held
from harness.methods.second_moments import Moment
from harness.models.lm import LM
from harness.patches.delta import LowRank, double
from harness.patches.patch import Patch, patched

__all__ = ["Counting", "Nse", "NseMemory", "busiest_neurons"]

Counting = Literal["smallest", "released"]


@dataclass(frozen=True, eq=False)
class NseMemory(SpreadMemory):
    """What earlier operations wrote, and the weights before the first.

    Attributes:
        original: parameter name -> ``W_0 [d, f]``, unedited.
    """

    original: Mapping[str, Tensor] = field(default_factory=dict)


def busiest_neurons(keys: Tensor, share: float, counting: Counting = "smallest") -> Tensor:
    """Which neurons hold a share of ``sum_i |k_i|``, the busiest first.

    Args:
        keys: ``K^T [n, f]``.
        share: the share.
        counting: whether they are the smallest set that holds it, or as in the authors' code the largest that holds no
            more, which for a share of 1 is a matter of rounding.
    """
    scores, order = double(keys).abs().sum(0).sort(descending=True)
    held = scores.cumsum(0)
    if counting == "released":
        return order[: max(int((held <= share * scores.sum()).sum()), 1)]
    return order[: min(int((held < share * held[-1]).sum()) + 1, len(order))]


@dataclass(frozen=True)
class Nse(SpreadHidden):
    """``dW_S = R K_S^T (lam C_SS + M_SS + K_S K_S^T)^-1`` for the neurons ``S`` that the edits use most, some rounds.

    The value of an edit is optimised on the unedited weights, also where others were made before. In each round it is
    written anew for the edits whose residual ``||z - h||`` lies between two bounds: first to last layer, as in MEMIT.
    ``M`` sums ``k k^T`` over earlier edits, with the keys of the model that carries them.

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
        neurons: the share of ``sum |k|`` that the chosen neurons hold (``neuron_threshold``).
        counting: ``smallest`` set that holds it, or that of the ``released`` code, which is one neuron smaller.
        repeats: rounds (their ``max_iterations`` counts one more, which writes nothing).
        least: an edit whose residual is no longer than this has arrived (``alpha``).
        most: an edit whose residual is as long as this or longer is left alone (``upper_bound``); None for no bound.
    """

    name = "nse"

    lam: Positive = 15000.0
    neurons: Annotated[float, Range(0, 1, open=True)] = 0.8
    counting: Counting = "smallest"
    repeats: Count = 2
    least: NotNegative = 0.0
    most: Positive | None = None

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # jianghoucheng/AlphaEdit at f5248d3, hparams/NSE.
        "gpt2-xl": {
            "layers": (13, 14, 15, 16, 17),
            "v_steps": 20,
            "lam": 10000.0,
            "neurons": 1.0,
            "least": 35.0,
            "most": 150.0,
        },
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8), "least": 15.0, "most": 100.0},
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1, "neurons": 1.0, "least": 2.5, "most": 50.0},
        # The shipped models: the values as tuned for MEMIT.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "lam": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0, "lam": 100.0},
    }

    @property
    def remembers(self) -> bool:
        """The keys of earlier operations are ``M``."""
        return True

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> NseMemory:
        """What earlier operations left; of the first, the weights as they are."""
        known = super().prior(lm, memory, layers)
        if isinstance(memory, NseMemory):
            return memory
        names = map(lm.down, layers)
        return NseMemory(known.contexts, known.moments, original={name: lm.matrix(name).clone() for name in names})

    def values(
        self, lm: LM, groups: Sequence[Sequence[Edit]], prior: SpreadMemory, *, layer: int, begun: Sequence[Patch]
    ) -> Tensor:
        """The wanted hidden states, optimised on the unedited weights."""
        assert isinstance(prior, NseMemory)
        with originals_held(lm, prior.original):
            return super().values(lm, groups, prior, layer=layer, begun=begun)

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression for the chosen neurons, against what they already know and earlier keys."""

        def solve(layer: int, key: Tensor, residual: Tensor) -> LowRank:
            chosen, moment = busiest_neurons(key, self.neurons, self.counting), prior.moments[layer]
            of = (chosen[:, None], chosen)
            known = Moment(double(moment.matrix)[of], moment.count, name=moment.name)
            earlier = prior.sums[layer][of] if layer in prior.sums else None
            wide = double(key)[:, chosen].T
            whitened = inverse_of_preserved(known, lam=self.lam, earlier=earlier)(wide)
            right = torch.zeros_like(key).index_copy(1, chosen, woodbury(whitened, wide).T.to(key))
            return LowRank(residual.T, right)

        return solve

    def _written(
        self, lm: LM, groups: list[list[Edit]], prior: SpreadMemory
    ) -> tuple[list[Patch], dict[int, list[Tensor]]]:
        """The patch of each group after all rounds, and of one group layer -> its keys on the model that carries it."""
        layers = self.edited_layers(lm)
        patches = [Patch() for _ in groups]
        whole = self.values(lm, groups, prior, layer=layers[-1], begun=patches)
        targets = torch.split(whole, [len(group) for group in groups])
        for _ in range(self.repeats):
            left = self._left(lm, groups, whole, patches)
            going = [g for g, some in enumerate(left) if some]
            if not going:
                break
            changed = self.spread(
                lm,
                [[groups[g][i] for i in left[g]] for g in going],
                prior,
                targets=torch.cat([targets[g][left[g]] for g in going]),
                layers=layers,
                solve=self.solver(prior),
                begun=[patches[g] for g in going],
            )
            for g, patch in zip(going, changed, strict=True):
                patches[g] = patch
        return patches, self._keys(lm, groups[0], prior, patches[0]) if len(groups) == 1 else {}

    def _left(
        self, lm: LM, groups: Sequence[Sequence[Edit]], whole: Tensor, patches: Sequence[Patch]
    ) -> list[list[int]]:
        """Of each group the edits whose residual lies between the bounds."""
        place = (lm.arch.block if self.at == "block" else lm.arch.writer_of)(self.edited_layers(lm)[-1])
        owner = [g for g, group in enumerate(groups) for _ in group]
        flat = [edit for group in groups for edit in group]
        hidden = read_hidden_states(
            lm, flat, owner=owner, patches=patches, place=place, template="{}", fact_token=self.fact_token
        )
        norms = (whole.to(hidden) - hidden).norm(dim=1)
        wanted = (norms > self.least) & (norms < (self.most or torch.inf))
        return [part.nonzero()[:, 0].tolist() for part in torch.split(wanted, [len(group) for group in groups])]

    def _keys(self, lm: LM, edits: Sequence[Edit], prior: SpreadMemory, patch: Patch) -> dict[int, list[Tensor]]:
        """Layer -> the keys of all edits, those that were left alone too, on the model that carries the patch."""
        with patched(lm, patch):
            return {
                layer: [
                    read_keys(lm, edits, layer, templates=prior.contexts, fact_token=self.fact_token, kind=self.kind)[0]
                ]
                for layer in self.edited_layers(lm)
            }
