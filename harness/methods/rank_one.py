"""What ROME and R-ROME share: one rank-one change for each fact and layer.

Source: Meng et al. 2022 (ROME), section 3.1.  ``u = C^-1 k / ||C^-1 k||`` says where in key space to write, the value
optimisation says what (:mod:`harness.methods.value`), :func:`harness.methods.keys.rank_one_changes` writes it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.keys import Unedited, layer_at_depth, read_keys, require_layers
from harness.methods.locate_then_edit import LocateThenEdit
from harness.methods.second_moments import Moment
from harness.methods.value import Values
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

__all__ = ["RankOne", "update_direction"]


def update_direction(keys: Float[Tensor, "edits f"], moment: Moment | None) -> Float[Tensor, "edits f"]:
    """``u = C^-1 k / ||C^-1 k||``, or ``k / ||k||`` where no moment is given.

    Args:
        keys: ``[edits, f]``.
        moment: the second moment of the layer's keys.

    Raises:
        NumericalError: the moment has no inverse.
    """
    u = keys if moment is None else moment.solve(keys.T).T.to(keys)
    unit: Tensor = u / u.norm(dim=1, keepdim=True)
    return unit


@dataclass(frozen=True)
class RankOne(LocateThenEdit):
    """The common form; a child says which keys stand in which place.

    Attributes:
        covariance: whether keys are whitened by their second moment ``C``, as the paper does.
    """

    kind = "rome"
    seam = "mlp"
    batch = False

    v_steps: Count = 20
    v_weight_decay: NotNegative = 0.5
    clamp: Positive = 4.0
    covariance: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/rome, hparams/ROME.
        "gpt2-medium": {"layers": (8,), "clamp": 3.0},
        "gpt2-large": {"layers": (12,), "clamp": 4.0},
        "gpt2-xl": {"layers": (17,), "clamp": 4.0},
        "gpt-j-6b": {"layers": (5,), "clamp": 4.0},
        # kmeng01/memit, hparams/ROME.
        "gpt-neox-20b": {"layers": (15,), "clamp": 4.0},
        # mjy1111/PRUNE at 046c2a6: the settings with covariance (zjunlp/EasyEdit publishes these models without it).
        "llama-2-7b-hf": {"layers": (5,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        "meta-llama-3-8b": {"layers": (4,), "v_steps": 25, "v_weight_decay": 1e-3, "clamp": 4.0},
        # The shipped models: tuned on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "v_weight_decay": 1e-3, "clamp": 10.0},
        "mini": {"layers": (0,), "v_steps": 40, "v_lr": 0.2, "v_weight_decay": 1e-3, "clamp": 10.0},
    }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One fact after the other, each on top of the one before, as the published code does."""
        prior = self._unedited(lm, memory)
        total = Patch(memory=prior)
        for edit in edits:
            for layer in self.edited_layers(lm):
                with patched(lm, total):
                    change = self.changes(lm, [edit], layer, prior=prior)[0]
                total = total + Patch({lm.down(layer): change}, memory=prior)
        return total

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits, side by side where there is one layer."""
        layers = self.edited_layers(lm)
        prior = self._unedited(lm, None)
        if len(layers) > 1 or not edits:
            return [self.edit(lm, [edit], prior) for edit in edits]
        changes = self.changes(lm, edits, layers[0], prior=prior)
        return [Patch({lm.down(layers[0]): change}, memory=prior) for change in changes]

    def label(self) -> str:
        """The name, with ``-nocov`` where keys are not whitened."""
        return self.name if self.covariance else f"{self.name}-nocov"

    @abstractmethod
    def changes(self, lm: LM, edits: Sequence[Edit], layer: int, *, prior: Unedited) -> list[LowRank]:
        """The change of one layer for each of some independent edits.

        Args:
            lm: the model.
            edits: independent edits.
            layer: the layer that is written.
            prior: templates and second moments of the unedited model.

        Returns:
            One change of rank one for each edit, ``left [d, 1]`` and ``right [1, f]``.

        Raises:
            NumericalError: the moment has no inverse, a loss is not finite, or ``k . u`` is zero.
        """

    def seen(
        self, lm: LM, edits: Sequence[Edit], *, layer: int, templates: Sequence[str], values: Values
    ) -> tuple[Float[Tensor, "edits f"], Float[Tensor, "edits d"]]:
        """Keys ``[edits, f]`` and outputs ``[edits, d]`` of the bare prompt, or their means over all context templates.

        Args:
            lm: the model.
            edits: the edits.
            layer: the layer.
            templates: ``("{}",)``, or those of the value optimisation.
            values: what the optimisation found, and read on its way.
        """
        if self.fact_token == "last_released":  # a column of padding, and where it lies depends on the batch
            return read_keys(lm, edits, layer, templates=templates, fact_token=self.fact_token, outputs=True)
        which = int(len(templates) > 1)
        place = lm.device_at(lm.arch.writer_of(layer))
        return values.keys[:, which].to(place), values.outputs[:, which].to(place)

    def moment(self, prior: Unedited, layer: int) -> Moment | None:
        """The second moment to whiten with, None without covariance.

        Raises:
            NumericalError: it has no inverse.
        """
        if not self.covariance:
            return None
        found = prior.moments[layer]
        _ = found.factor  # computed here, so that one without an inverse is told before anything is optimised
        return found

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers; by default one at 17 % of the depth."""
        return require_layers(lm, self.layers or (layer_at_depth(lm, 0.17),), experts=True)

    def whitened_layers(self, lm: LM) -> tuple[int, ...]:
        """All that are written, none without covariance."""
        return self.edited_layers(lm) if self.covariance else ()

    def _unedited(self, lm: LM, memory: object) -> Unedited:
        return self.prior(lm, memory, self.whitened_layers(lm))
