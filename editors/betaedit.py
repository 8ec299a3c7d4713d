"""BetaEdit: AlphaEdit whose null space follows what was edited, and that pays for what leaks out of it.

Source: Liu et al. 2026, BetaEdit, and the authors' code (lbq8942/BetaEdit at 740e323).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory
from harness.methods.null_space import SHIPPED, NullSpaceMemory, NullSpaceRidge, null_space
from harness.methods.second_moments import Moment
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch

__all__ = ["BetaEdit", "BetaMemory"]


@dataclass(frozen=True, eq=False)
class BetaMemory(NullSpaceMemory):
    """What earlier operations wrote.

    Attributes:
        edits: how many.
        refreshed: after how many the null space was found that is used.
        bases: layer -> its basis ``[f, r]``; empty while it is that of the unedited model.
    """

    edits: int = 0
    refreshed: int = 0
    bases: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BetaEdit(SpreadHidden):
    """``dW = R K^T P (P (K K^T + M + lambda1 C) P + lambda2 I)^-1``, ``P`` found anew every ``tau`` edits.

    ``M`` sums ``k k^T`` over earlier edits. ``P`` projects on the null space of ``C``, and from the first refresh on
    of ``(M / edits + lambda1 C) / (lambda1 + 1)``. The authors' code ends a run at a change whose Frobenius norm,
    divided by the root of its edits, is above 20; ``--stop-on-collapse`` is this harness's word for that.

    Attributes:
        nullspace_threshold: the eigenvalue below which a direction counts as unused.
        lambda1: weight of ``C``, of what the projection lets through.
        lambda2: weight of the Frobenius norm of the change.
        tau: after how many edits the null space is found anew.
    """

    name = "betaedit"

    nullspace_threshold: Positive = 2e-2
    lambda1: NotNegative = 3000.0
    lambda2: Positive = 10.0
    tau: Count = 1000

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # lbq8942/BetaEdit at 740e323, configs/llms.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8)},
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        # The shipped models: the values as tuned for AlphaEdit, lambda1 a thousandth of the published one.
        "mini-llama": {**SHIPPED["mini-llama"], "lambda1": 3.0, "lambda2": 0.1},
        "mini": {**SHIPPED["mini"], "lambda1": 3.0, "lambda2": 1.0},
    }

    @property
    def remembers(self) -> bool:
        """The keys of earlier operations are ``M``."""
        return True

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> BetaMemory:
        """What earlier operations left, with the null space that is due."""
        known = super().prior(lm, memory, layers)
        if not isinstance(memory, BetaMemory):
            memory = BetaMemory(known.contexts, known.moments)
        elif memory.edits - memory.refreshed >= self.tau:
            bases = {layer: self._refreshed(memory, layer) for layer in layers}
            memory = replace(memory.summed_up(layers), refreshed=memory.edits, bases=bases)
        memory = self._ridge(memory).caught_up(layers)
        assert isinstance(memory, BetaMemory)
        return memory

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression inside the null space, against earlier keys and against what leaks."""
        assert isinstance(prior, BetaMemory)
        return self._ridge(prior).solver()

    def after(self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Tensor], patch: Patch) -> BetaMemory:  # noqa: ARG002
        """The keys of one more operation, and how many edits there were."""
        assert isinstance(prior, BetaMemory)
        return replace(prior.with_keys(keys), edits=prior.edits + len(next(iter(keys.values()))))

    def _ridge(self, prior: BetaMemory) -> NullSpaceRidge:
        def leaks(layer: int) -> Tensor:
            return self.lambda1 * double(prior.moments[layer].matrix)

        memory = prior.under((self.nullspace_threshold, self.lambda1, self.lambda2))
        return NullSpaceRidge(
            memory, lambda layer: self._basis(prior, layer), self.lambda2, leaks if self.lambda1 else None
        )

    def _basis(self, prior: BetaMemory, layer: int) -> Tensor:
        if layer in prior.bases:
            return prior.bases[layer]
        return null_space(prior.moments[layer], self.nullspace_threshold, self.name)

    def _refreshed(self, memory: BetaMemory, layer: int) -> Tensor:
        """The null space of what the unedited model and the edits so far use."""
        moment = memory.moments[layer]
        earlier = memory.total(layer)
        assert earlier is not None, "there were tau edits"
        used = earlier / memory.edits + self.lambda1 * double(moment.matrix).to(earlier)
        return null_space(
            Moment(used / (self.lambda1 + 1), moment.count, name=moment.name), self.nullspace_threshold, self.name
        )
