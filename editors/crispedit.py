"""CrispEdit: fine-tuning whose gradients keep off the directions in which the loss on plain text bends most.

Source: Ikram, Firouzkouhi, Tu, Soltanolkotabi, Rashidinejad 2026, "CrispEdit: Low-Curvature Projections for Scalable
Non-Destructive LLM Editing", arXiv 2602.15823, algorithms 1 and 2, and the authors' code (zarifikram/CrispEdit at
f0ab701).  The curvature is that of K-FAC (:mod:`harness.methods.curvature`), and the loss that of FT-M.

Both project the gradient, and Adam takes its step from that; but Adam scales each number by itself, so that the step
leaves the subspace which the paper wants the change to lie in.  ``projected=change`` brings it back after every step.

Elsewhere than there plain text is read as for all editors here; ``over=followed`` leaves out the last token of each
text as their code does, which also passes over the first token of the vocabulary.  There one Adam goes through a whole
sequence, its mean of gradients projected before each operation (``adam=kept``), while here an operation begins with a
new one.  Its further ways to remember edits, a mixture with plain text that is read again, and its new curvature where
weights have changed by a quarter, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from harness.editing.directions import DIRECTIONS, Normalisation
from harness.editing.edit import Edit
from harness.editing.editor import Editor, own_memory
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range
from harness.methods.curvature import Curvature, CurvatureTokens, curvatures, curvatures_of, low_curvature
from harness.methods.descent import AdamState, DescentSettings, Restriction, Trained, descend
from harness.methods.keys import layer_at_depth, require_layers
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

__all__ = ["CrispEdit", "Kept"]


@dataclass(frozen=True, eq=False)
class Kept:
    """What later operations shall not undo.

    Attributes:
        found: by layer the curvature of the loss on plain text and on the edits so far.
        adam: what Adam has seen; None where an operation begins with a new one.
    """

    found: Mapping[int, Curvature]
    adam: AdamState | None = None


@dataclass(frozen=True)
class CrispEdit(Editor):
    """Adam on a few down-projections, of each the gradient ``g`` made ``U_B ((U_B^T g U_A) * M) U_A^T``.

    ``U_A`` and ``U_B`` have the eigenvectors of ``E[a a^T]`` and ``E[g g^T]`` over plain text; ``M`` is 0 for the pairs
    with the largest products of eigenvalues.  In a sequence both means are over the earlier edits, too.

    Attributes:
        layers: the layers; by default five that end at 72 % of the depth, where the published ones of Llama 3 lie.
        energy: the share of all products of eigenvalues whose directions are left alone; 0 is plain fine-tuning, and
            with 1 nothing changes.
        projected: ``gradient``, as published, or after every step the whole ``change``, too.
        over: the tokens over which ``E[a a^T]`` is a mean: ``all``, or those that another ``followed``, as those of
            ``E[g g^T]`` are.
        adam: whether every operation of a sequence begins with a ``new`` one, or the first one's is ``kept``.
        lr: the learning rate.
        steps: passes over the edits.
        batch_size: edits of one update.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is.
        normalisation: whether the loss of an edit is a ``mean`` over its target's tokens, or their ``sum`` (Hase et al.
            2023, arXiv 2301.04213).
        cov_tokens: tokens of text for the curvature.
        seed: the seed of the order of the edits.
    """

    name = "crispedit"
    random = True
    directions = DIRECTIONS

    layers: tuple[int, ...] | None = None
    energy: Annotated[float, Range(0, 1)] = 0.9
    projected: Literal["gradient", "change"] = "gradient"
    over: CurvatureTokens = "all"
    adam: Literal["new", "kept"] = "new"
    lr: Positive = 5e-4
    steps: Count = 25
    batch_size: Count = 32
    threshold: NotNegative = 1e-2
    normalisation: Normalisation = "mean"
    cov_tokens: Count = 100_000
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The paper's table 2, and zarifikram/CrispEdit at 1d9f833, hparams/CrispEdit.
        "meta-llama-3-8b-instruct": {"layers": (19, 20, 21, 22, 23)},
        "qwen2.5-1.5b-instruct": {"layers": (4, 5, 6)},
        "qwen2.5-7b-instruct": {"layers": (15, 16, 17, 18, 19)},
        "mistral-7b-v0.1": {"layers": (19, 20, 21, 22, 23)},
        # As those of ft_m, so that the projection is all that differs.
        "mini-llama": {"layers": (2,), "lr": 3e-3, "batch_size": 10},
        "mini": {"layers": (2,), "lr": 2e-3, "batch_size": 10},
    }

    def places(self, lm: LM) -> Sequence[str]:
        """The down-projections that are trained."""
        return [lm.arch.down_of(layer) for layer in self._layers(lm)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once, in mini-batches; then the curvature of the loss on them is remembered."""
        before = own_memory(memory, Kept)
        if not edits:
            return Patch(memory=memory)
        before = before or Kept(self._unedited(lm))
        within = self._within(lm, before.found)
        trained = self._trained(lm, edits, within, before.adam and before.adam.within(within))
        with patched(lm, Patch(trained.deltas)):
            texts = [edit.text + edit.continuation for edit in edits]
            added = curvatures_of(lm, list(before.found), texts, over=self.over)
        known = {layer: one.joined(added[layer]) for layer, one in before.found.items()}
        return Patch(trained.deltas, memory=Kept(known, trained.adam if self.adam == "kept" else None))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits, for which the curvature of plain text is decomposed once."""
        if not edits:
            return []
        within = self._within(lm, self._unedited(lm))
        return [Patch(self._trained(lm, [edit], within).deltas) for edit in edits]

    def _trained(self, lm: LM, edits: Sequence[Edit], within: Restriction, begun: AdamState | None = None) -> Trained:
        settings = DescentSettings(
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            threshold=self.threshold,
            normalisation=self.normalisation,
            token_mean="batch",
            shuffle=self.seed,
        )
        names = [lm.down(layer) for layer in self._layers(lm)]
        return descend(lm, edits, names, settings=settings, within=within, begun=begun)

    def _unedited(self, lm: LM) -> Mapping[int, Curvature]:
        return curvatures(lm, self._layers(lm), tokens=self.cov_tokens, over=self.over)

    def _within(self, lm: LM, known: Mapping[int, Curvature]) -> Restriction:
        flat = {lm.down(layer): found for layer, found in low_curvature(known, self.energy).items()}

        def onto(name: str, change: Tensor) -> Tensor:
            return flat[name].onto(change.T).T if lm.transposed(name) else flat[name].onto(change)

        return Restriction(onto, change=self.projected == "change")

    def _layers(self, lm: LM) -> tuple[int, ...]:
        last = layer_at_depth(lm, 0.72)
        return require_layers(lm, self.layers or range(max(0, last - 4), last + 1))
