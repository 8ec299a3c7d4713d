"""LyapLock: every operation weighs what shall be kept by a queue of how much of it has been lost so far.

Source: Wang, Lu et al. 2025, "LyapLock: Bounded Knowledge Preservation in Sequential Large Language Model Editing",
EMNLP 2025, arXiv 2505.15702, and the authors' code (wpwpwpyo/LyapLock at c5e6186).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from harness.editing.hyperparameters import Positive
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, inverse_of_preserved, ridge_solver
from harness.methods.second_moments import Moment
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, double
from harness.patches.patch import Patch

__all__ = ["LyapLock", "LyapMemory", "Queue", "preservation_loss"]


@dataclass(frozen=True)
class Queue:
    """The virtual queue of one layer.

    Attributes:
        length: ``Z``.
        base: ``D_base``, what the first operation lost of what was kept; with ``alpha`` it is the bound.
    """

    length: float
    base: float


@dataclass(frozen=True, eq=False)
class LyapMemory(SpreadMemory):
    """What earlier operations wrote, and what they lost.

    Attributes:
        original: layer -> ``W_0 [d, f]``, unedited.
        current: layer -> ``W [d, f]`` before the operation under way; not kept.
        values: layer -> ``sum v k^T [d, f]`` over earlier edits, float64; ``v = W k`` when its layer had been written.
        queues: layer -> the queue; empty before the first operation.
    """

    original: Mapping[int, Tensor] = field(default_factory=dict)
    current: Mapping[int, Tensor] = field(default_factory=dict, metadata={"kept": False})
    values: Mapping[int, Tensor] = field(default_factory=dict)
    queues: Mapping[int, Queue] = field(default_factory=dict)


def preservation_loss(change: Tensor, moment: Moment) -> float:
    """``D = tr(dW C dW^T)``, the mean over tokens of ``||W k - W_0 k||^2``.

    Args:
        change: ``dW = W - W_0``.
        moment: the second moment ``C [f, f]`` of the unedited model's keys.
    """
    return float(((change @ double(moment.matrix).to(change)) * change).sum())


@dataclass(frozen=True)
class LyapLock(SpreadHidden):
    """MEMIT, whose weight of what shall be kept grows while more of it is lost than ``alpha`` times the first loss.

    The first operation is MEMIT's. From then on, at each layer with its own queue ``Z``::

        dW = (R K^T + a Z lam (W_0 - W) C + S_vk - W S_kk) (K K^T + a Z lam C + S_kk)^-1
        Z <- max(Z + a (D - alpha D_base), sqrt(alpha D_base)),   a = 1 / sqrt(alpha D_base)

    ``S_kk`` and ``S_vk`` sum over earlier edits, ``D`` is what is lost now. The authors call the least length of the
    queue ``zmax``.

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
        alpha: how many times the loss of the first operation may be lost in all.
    """

    name = "lyaplock"

    lam: Positive = 1000.0
    alpha: Positive = 60.0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # wpwpwpyo/LyapLock at c5e6186, hparams/LyapLock.
        "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "v_steps": 20},
        "gpt-j-6b": {"layers": (3, 4, 5, 6, 7, 8)},
        "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1},
        # The shipped models: the values as tuned for MEMIT.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 6.0, "lam": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0, "lam": 100.0},
    }

    @property
    def remembers(self) -> bool:
        """Keys, values and queues are kept."""
        return True

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> LyapMemory:
        """What earlier operations left, and the weights as they are now."""
        known = super().prior(lm, memory, layers)
        now = {layer: lm.matrix(lm.down(layer)) for layer in layers}
        if isinstance(memory, LyapMemory):
            return replace(memory, current=now)
        return LyapMemory(known.contexts, known.moments, original={n: w.clone() for n, w in now.items()}, current=now)

    def solver(self, prior: SpreadMemory) -> Solver:
        """MEMIT's at first; later with what earlier operations wrote, lost and owe."""
        assert isinstance(prior, LyapMemory)
        if not prior.queues:
            return ridge_solver(prior, lam=self.lam)

        def solve(layer: int, key: Tensor, residual: Tensor) -> Delta:
            keys, moment = double(key), prior.moments[layer]
            weight = self._rate(prior.queues[layer]) * prior.queues[layer].length * self.lam
            now, sums = double(prior.current[layer]).to(keys), prior.sums[layer].to(keys)
            lost = (double(prior.original[layer]).to(keys) - now) @ double(moment.matrix).to(keys)
            wanted = double(residual).T.to(keys) @ keys + weight * lost + prior.values[layer].to(keys) - now @ sums
            solved = inverse_of_preserved(moment, lam=weight, earlier=sums + keys.T @ keys)(wanted.T)
            return Dense(solved.T.to(key))

        return solve

    def after(self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Tensor], patch: Patch) -> LyapMemory:
        """The sums over one more operation, and each layer's queue."""
        assert isinstance(prior, LyapMemory)
        known = super().after(lm, prior, keys=keys, patch=patch)
        values, queues = dict(prior.values), dict(prior.queues)
        for layer, key in keys.items():
            written = double(prior.current[layer] + patch.weights[lm.down(layer)].dense())
            products = (written @ double(key.T).to(written)) @ double(key).to(written)
            values[layer] = products + values[layer].to(products) if layer in values else products
            lost = preservation_loss(written - double(prior.original[layer]), prior.moments[layer])
            queues[layer] = self._next(prior.queues.get(layer), lost)
        return LyapMemory(known.contexts, known.moments, known.sums, prior.original, values=values, queues=queues)

    def _rate(self, queue: Queue) -> float:
        """``a``."""
        return 1 / math.sqrt(self.alpha * queue.base)

    def _next(self, queue: Queue | None, lost: float) -> Queue:
        """The queue after an operation, begun by the first."""
        bound = self.alpha * (queue.base if queue else lost)
        least = math.sqrt(bound)
        begun = queue or Queue(least, lost)
        return Queue(max(begun.length + (lost - bound) / least, least), begun.base)
