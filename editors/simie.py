"""SimIE: makes each edit as if the model had never been edited, and lets one regression over all edits join them.

Source: Guo, Guo, Zhu, Sun 2025, "Towards Lifelong Model Editing via Simulating Ideal Editor", ICML 2025, and the
authors' code (in zjunlp/EasyEdit at 14cea82, easyeditor/models/simie, and in wyren726/benchmark-1 at 7840105, 6SimIE).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import Pass, Wrapper, own_memory
from harness.editing.hyperparameters import Positive
from harness.editing.made import made, made_each
from harness.errors import UsageError
from harness.methods.descent import tokenise
from harness.methods.keys import read_every_token
from harness.methods.locate_then_edit import sum_key_products, woodbury
from harness.methods.original import originals_held
from harness.models.arch import is_matrix
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank, double
from harness.patches.patch import Patch

__all__ = ["Ideal", "SimIE", "share_of_keys"]


@dataclass(frozen=True, eq=False)
class Ideal:
    """What the next operation is given.

    Attributes:
        inner: what the inner editor remembers.
        original: parameter name -> ``W_0 [out, in]``, unedited; empty with ``start=current``.
        sums: parameter name -> ``sum k k^T [in, in]`` over all tokens of earlier edits, float64.
    """

    inner: object = None
    original: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)


def share_of_keys(keys: Tensor, *, lam: float, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
    """``K^T`` and ``K^T (lam I + M + K K^T)^-1``, of at most as many rows as a key is wide.

    Args:
        keys: ``K^T``, a row for each token.
        lam: the weight of the Frobenius norm of the change.
        earlier: ``M``, the sum over the keys of earlier operations; None for none.
    """
    wide = double(keys)
    if len(wide) > wide.shape[1]:
        # K K^T = R^T R, and nothing else of the keys counts.
        wide = torch.linalg.qr(wide).R
    if earlier is None:
        return wide, woodbury(wide.T / lam, wide.T).T
    kept = earlier.to(wide).clone()
    kept.diagonal().add_(lam)
    return wide, woodbury(torch.cholesky_solve(wide.T, torch.linalg.cholesky(kept)), wide.T).T


@dataclass(frozen=True)
class SimIE(Wrapper):
    """``W_t = W_{t-1} + (W* - W_{t-1}) K K^T (lam I + sum_{s<=t} K_s K_s^T)^-1``, recursive least squares.

    ``W* = W_0 + D_t`` is what the inner editor makes of the unedited model, and ``K`` are what enters the matrix there,
    at every token of prompt and target. The sum is the ridge regression of all edits at once on the unedited model,
    ``W_t = W_0 + (sum_s D_s K_s K_s^T) (lam I + sum_s K_s K_s^T)^-1``: what an ideal editor would have made of them.

    Attributes:
        lam: weight of the Frobenius norm of the whole change (``lamHyper``).
        start: where each edit starts: from the ``unedited`` model, or from the ``current`` one, as in the authors' own
            repository by default (``init_model``); there ``W_{t-1}`` stands for ``W_0``, and its keys for those above.

    Raises:
        UsageError: the inner editor changes no weights, or others than matrices.
    """

    name = "simie"
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "an edit is weighed against lam and, with several layers, by keys that its lower layers change"
    }

    lam: Positive = 1.0
    start: Literal["unedited", "current"] = "unedited"

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # wyren726/benchmark-1 at 7840105, 6SimIE/README.md.
        "llama-2-7b-hf": {"lam": 10.0},
        # zjunlp/EasyEdit at 14cea82, hparams/SimIE.
        "gpt2-xl": {"lam": 10000.0},
        "meta-llama-3-8b": {"lam": 10000.0},
        # The shipped models: tuned on the edit set's tuning rows, one at a time with ROME.
        "mini-llama": {"lam": 0.01},
        "mini": {"lam": 0.01},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_weights("joins", "rome")

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """What the edits add, with all that was made before."""
        known = own_memory(memory, Ideal) or Ideal()
        if not edits:
            return Patch(memory=memory)
        with self._started(lm, known):
            given = made(self.inner, lm, edits, memory=known.inner)
            keys = {name: torch.cat(rows) for name, rows in self._keys(lm, edits, given).items()}
        original = {name: lm.matrix(name).clone() for name in keys} | dict(known.original)
        weights = {}
        for name, delta in given.weights.items():
            behind = double(original[name]) - double(lm.matrix(name)) if name in known.original else None
            weights[name] = self._joined(delta, behind, keys[name], earlier=known.sums.get(name))
        sums = {name: sum_key_products(key, known.sums.get(name)) for name, key in keys.items()}
        kept = original if self.start == "unedited" else {}
        return replace(given, weights=weights, memory=Ideal(given.memory, kept, {**known.sums, **sums}))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits, each the first on the unedited model; no edit remembers."""
        each = made_each(self.inner, lm, edits)
        keys = self._keys(lm, edits, *each)
        found = []
        for i, patch in enumerate(each):
            parts = patch.weights.items()
            weights = {name: self._joined(delta, None, keys[name][i], earlier=None) for name, delta in parts}
            found.append(replace(patch, weights=weights, memory=Ideal(patch.memory)))
        return found

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The one change: that of the last pass of the inner editor."""
        yield Pass(self.edit(lm, edits))

    def _started(self, lm: LM, known: Ideal) -> AbstractContextManager[object]:
        return originals_held(lm, known.original) if self.start == "unedited" else nullcontext()

    def _keys(self, lm: LM, edits: Sequence[Edit], *made: Patch) -> dict[str, list[Tensor]]:
        """Parameter name -> what enters its matrix at every token of each edit, ``[tokens, in]``."""
        names = dict.fromkeys(name for patch in made for name in patch.weights)
        for name in names:
            owner, _, leaf = name.rpartition(".")
            if leaf != "weight" or not is_matrix(lm.module(owner)):
                raise UsageError(
                    f"{self.name} joins changes of linear modules' matrices, but {self.root.name} changes '{name}'; "
                    f"wrap an editor that changes nothing else, for example rome+{self.name}"
                )
        rows = [[*edit.prompt, *edit.target] for edit in tokenise(lm, edits)]
        found = read_every_token(lm, rows, [name.removesuffix(".weight") for name in names])
        return {name: found[name.removesuffix(".weight")] for name in names}

    def _joined(
        self,
        delta: Delta,
        behind: Tensor | None,
        keys: Tensor,
        *,
        earlier: Tensor | None,
    ) -> Delta:
        """``(D + W_0 - W) K K^T (lam I + M + K K^T)^-1``, of the rank of ``D`` where that is all.

        Args:
            delta: ``D``, the change that the inner editor makes.
            behind: ``W_0 - W``; None for nothing.
            keys: ``K^T``.
            earlier: ``M``.
        """
        right, share = share_of_keys(keys, lam=self.lam, earlier=earlier)
        if behind is None and isinstance(delta, LowRank):
            return LowRank(delta.left, (double(delta.right) @ right.T @ share).to(delta.right))
        change = delta.dense()
        wanted = double(change) if behind is None else double(change) + behind
        return Dense((wanted @ right.T @ share).to(change))
