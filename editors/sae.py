"""SAE: sets features of a given sparse autoencoder to fixed values in what one block writes.

Source: Templeton et al. 2024, "Scaling Monosemanticity", transformer-circuits.pub (clamped features); the exam beside
editors as in zjunlp/EasyEdit (at 14cea82, steer/vector_generators/sae_feature), which adds the features' directions
whatever is active already.  Here a feature that is active already is only brought to its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, Range
from harness.errors import DataError, ModelError, UsageError
from harness.methods.autoencoder import Autoencoder, Feature, read_autoencoder
from harness.methods.contrast import stated_answers
from harness.methods.steering import BlockEditor, part_states
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, Step

__all__ = ["Clamp", "Clamps", "Sae"]


@dataclass(frozen=True)
class Sae(BlockEditor):
    """``h <- h + sum_f (c_f - z_f(h)) w_f`` after one block, at every token, over a few features ``f``.

    ``z_f(h)`` is how active a feature is and ``w_f`` its direction.  ``c_f`` is ``strength`` times its largest
    activation over the tokens of the new answers.

    Attributes:
        path: the autoencoder: a folder of SAELens (``cfg.json``, ``sae_weights.safetensors``) or of Gemma Scope
            (``params.npz``).
        layer: the block; by default the one that the autoencoder's ``cfg.json`` names.
        features: the numbers of the features; by default those whose mean activation over the new answers exceeds that
            over the old ones most, in the mean over the edits of an operation.
        k: how many are chosen by default.
        strength: the factor of the activation.
    """

    name = "sae"
    seams = frozenset({"activations"})
    needs_old = True
    directions = frozenset({"likelihood", "contrast"})
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "a feature is what the autoencoder happens to have, which need not lead to the answer"
    }

    path: str | None = None
    layer: Annotated[int, Range(0)] | None = None
    features: tuple[int, ...] | None = None
    k: Count = 1
    strength: float = 2.0

    def require(self, lm: LM) -> None:
        """See that there is an autoencoder of what one of the model's blocks writes.

        Raises:
            UsageError: none is given, or it does not say of which block.
            DataError: it cannot be read.
            ModelError: it is made for other states, lacks a feature, or there is no such block.
        """
        read = self._read()
        super().require(lm)
        if len(read.encoder) != lm.arch.width:
            raise ModelError(
                f"{self.path}: an autoencoder of states of {len(read.encoder)} numbers, but {lm.name} has states of "
                f"{lm.arch.width}; give one that was trained on this model"
            )
        beyond = [number for number in self.features or () if not 0 <= number < len(read.bias)]
        if beyond:
            raise UsageError(f"{self.path}: has features 0 to {len(read.bias) - 1}; 'features' names {beyond[0]}")

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The same features for all edits; a feature that a later operation sets, too, has the later value.

        Raises:
            DataError: an edit does not name the old answer, or a feature is not active on the new answers.
        """
        if not edits:
            return Patch()
        read = self._read().to(lm.device)
        # Not what earlier operations set: their multiples would grow from one to the next.
        states = part_states(lm, stated_answers(lm, edits), self.at(lm), early=True)
        active = [read.activations(each) for each in states]
        new, old = active[: len(edits)], active[len(edits) :]
        chosen = self.features or self._chosen(new, old)
        largest = torch.cat(new).amax(0)
        silent = [number for number in chosen if float(largest[number]) == 0]
        if silent:
            raise DataError(
                f"{self.path}: feature {silent[0]} is not active on the new answers of edits "
                f"{', '.join(edit.id for edit in edits[:3])}; give others with 'features'"
            )
        clamps = {number: Clamp(read.feature(number), self.strength * largest[number]) for number in chosen}
        return Patch(hooks={self.block(lm): Clamps(clamps)})

    def at(self, lm: LM) -> int:  # noqa: ARG002
        """The block.

        Raises:
            UsageError: neither the settings nor the autoencoder say which.
        """
        layer = self._read().layer if self.layer is None else self.layer
        if layer is None:
            raise UsageError(f"{self.path}: does not say which block it reads; give 'layer'")
        return layer

    def _read(self) -> Autoencoder:
        if self.path is None:
            raise UsageError("sae: there is no autoencoder; give one with --set path=FOLDER")
        return read_autoencoder(Path(self.path).expanduser())

    def _chosen(self, new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[int, ...]:
        """The features that new answers activate more than old ones, the most telling first."""
        means = [torch.stack([each.mean(0) for each in answers]) for answers in (new, old)]
        difference = (means[0] - means[1]).mean(0)
        found = difference.topk(min(self.k, len(difference)))
        chosen = tuple(int(i) for i, value in zip(found.indices, found.values, strict=True) if float(value) > 0)
        if not chosen:
            raise DataError(f"{self.path}: no feature is more active on the new answers than on the old ones")
        return chosen


class Clamp(NamedTuple):
    """A feature and what it is set to, a scalar."""

    feature: Feature
    value: Tensor


@dataclass(frozen=True, eq=False)
class Clamps(Part):
    """Sets features at every token, each by what the block wrote (:data:`harness.patches.patch.Hook`).

    Attributes:
        clamps: what is set, by the features' numbers.
    """

    clamps: Mapping[int, Clamp]

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        """What the block writes, with the features set."""
        h = read = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        for clamp in self.clamps.values():
            feature = clamp.feature.like(h)
            h = h + (clamp.value.to(h) - feature.activation(read))[..., None] * feature.decoder
        return h.to(hidden.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The parts of each feature, and its value."""
        parts = ("encoder", "bias", "threshold", "decoder")
        held = {f"{i}.{part}": getattr(c.feature, part) for i, c in self.clamps.items() for part in parts}
        return held | {f"{i}.value": c.value for i, c in self.clamps.items()}

    def settings(self) -> dict[str, Any]:
        """The numbers of the features, in their order."""
        return {"features": list(self.clamps)}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Clamps:
        """The features again."""

        def read(i: int) -> Clamp:
            parts = (tensors[f"{i}.{part}"].to(lm.device) for part in ("encoder", "bias", "threshold", "decoder"))
            return Clamp(Feature(*parts), tensors[f"{i}.value"].to(lm.device))

        return cls({int(i): read(int(i)) for i in settings["features"]})

    def joined(self, later: Clamps) -> Clamps:
        """The features of both; of one that both set the later value."""
        return Clamps({**self.clamps, **later.clamps})
