"""One module of a layer, what enters it and what it makes of that: where GRACE and DEFER read and write."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.editing.editor import Editor
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods.descent import first_matrix
from harness.methods.keys import layer_at_depth
from harness.methods.supervised_tokens import SupervisedTokens
from harness.models.activations import at_least_float32, capture_activations, first_output
from harness.models.lm import LM
from harness.patches.patch import Hook, Patch, Step, patched

__all__ = ["Site", "SiteEditor", "descend_under", "own_output"]

Site = Literal["mlp", "down", "first"]
"""Which module of a layer, see :class:`SiteEditor`."""


@dataclass(frozen=True)
class SiteEditor(Editor, ABC):
    """An editor that looks up, by what enters one module of a layer, what shall leave it.

    Attributes:
        layer: the layer; by default one at 75 % of the depth, where GRACE's published settings lie (73 to 89 %).
        site: the feed-forward module ``mlp``, its down-projection ``down``, or its ``first`` matrix, before the
            activation function (the authors' file of GRACE for GPT-2 XL).
    """

    seams = frozenset({"activations"})

    layer: int | None = None
    site: Site = "mlp"

    def places(self, lm: LM) -> Sequence[str]:
        """The module."""
        return [self.module(lm)]

    def require(self, lm: LM) -> None:
        """See that the module's output follows from what enters it, as that alone is what is looked up by.

        Raises:
            ModelError: it does not, or cannot be computed.
        """
        super().require(lm)
        name = self.module(lm)
        seen = capture_activations(lm, lm.batch([lm.encode("The name of")]), inputs=[name], outputs=[name])
        try:
            with torch.no_grad():
                own = first_output(lm.module(name).forward(seen.inputs[name])).reshape(seen.outputs[name].shape)
            same = torch.allclose(own, seen.outputs[name], rtol=1e-2, atol=1e-2 * float(own.abs().max()))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
            same = False
        if not same:
            raise ModelError(
                f"{lm.name}: '{name}' needs more than what enters it, but {self.name} looks a value up by that alone; "
                "take --set site=down, or another editor"
            )

    def at(self, lm: LM) -> int:
        """The layer."""
        return layer_at_depth(lm, 0.75) if self.layer is None else self.layer

    def module(self, lm: LM) -> str:
        """The name of the module."""
        if self.site == "first":
            return first_matrix(lm, self.at(lm), asker=self.name)
        part = lm.arch.mlp_of if self.site == "mlp" else lm.arch.down_of
        return part(self.at(lm))

    def require_widths(self, lm: LM, what: str, *, held: Sequence[int], here: Sequence[int]) -> None:
        """See that a memory was made of this model.

        Args:
            lm: the model.
            what: the memory, for the error.
            held: the numbers of a query and of a value that it holds.
            here: those of this model.

        Raises:
            UsageError: it was not.
        """
        if tuple(held) != tuple(here):
            raise UsageError(
                f"{self.name}: the {what} is of another model: it takes {held[0]} numbers to {held[1]}, but "
                f"'{self.module(lm)}' of {lm.name} {here[0]} to {here[1]}; start again without memory"
            )

    def at_the_end(self, lm: LM, rows: SupervisedTokens) -> tuple[Tensor, Tensor]:
        """What enters the module at the prompt's last token, ``[k]``, and what it makes of it, ``[d]``."""
        name = self.module(lm)
        entered = capture_activations(lm, rows.batch, inputs=[name]).inputs[name][0, rows.column[0]]
        with torch.no_grad():
            # Experts take rows and columns of tokens.
            output = first_output(lm.module(name).forward(entered[None, None])).reshape(-1)
        return at_least_float32(entered), at_least_float32(output)

    def descend(
        self, lm: LM, rows: SupervisedTokens, free: Sequence[Tensor], *, hook: Hook, steps: int, lr: float
    ) -> None:
        """Adam on the NLL of the target, in place.

        Args:
            lm: the model.
            rows: what it shall say.
            free: what changes.
            hook: the module with that on its way.
            steps: updates.
            lr: the learning rate.

        Raises:
            NumericalError: the loss is not finite.
        """
        descend_under(lm, rows, free, hooks={self.module(lm): hook}, at=self.at(lm), steps=steps, lr=lr)


def descend_under(
    lm: LM,
    rows: SupervisedTokens,
    free: Sequence[Tensor],
    *,
    hooks: Mapping[str, Hook],
    at: int,
    steps: int,
    lr: float,
    halved_after: int | None = None,
) -> None:
    """Adam on the NLL of the target, in place, while hooks change what some modules give.

    Args:
        lm: the model.
        rows: what it shall say.
        free: what changes.
        hooks: the modules with that on its way.
        at: the lowest layer that a hook changes.
        steps: updates.
        lr: the learning rate.
        halved_after: updates after which the learning rate is halved, again and again; None keeps it.

    Raises:
        NumericalError: the loss is not finite; names the first edit.
    """
    adam = torch.optim.Adam(list(free), lr=lr)
    rate = torch.optim.lr_scheduler.StepLR(adam, halved_after or steps + 1, gamma=0.5)
    with patched(lm, Patch(hooks=hooks)), torch.enable_grad():
        nll = rows.above(lm, at)
        for i in range(steps):
            loss = nll()
            if not bool(torch.isfinite(loss.detach())):
                raise NumericalError(
                    f"edit {rows.edit.id}: the loss at {', '.join(hooks)} became {float(loss.detach())} after {i} "
                    "steps; lower edit_lr, or load the model in float32"
                )
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            rate.step()


def own_output(lm: LM, name: str, *, hidden: Tensor, step: Step) -> Tensor:
    """What a module itself gives: the hook of an earlier edit may have changed what arrives.

    Args:
        lm: the model.
        name: the module.
        hidden: what arrives, whose shape the result has.
        step: the pass, with what entered the module.
    """
    assert step.entered is not None
    return first_output(lm.module(name).forward(step.entered)).reshape(hidden.shape)
