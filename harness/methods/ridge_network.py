"""A network that says what keys shall give, and the ridge regression that writes it: what MALMEN and RLEdit share.

Training never holds the graph of a batch.  The loss of the edited model is differentiated as far as the change of each
matrix, some texts at a time; from there the derivative of the regression is a formula, and the network is run again
over some tokens at a time.

Sources: Tan, Zhang, Fu 2024 (MALMEN), arXiv 2311.04661, section 3 and algorithm 1, and their code at 1df295d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.editing.hyperparameters import Count, NotNegative
from harness.errors import NumericalError
from harness.methods.descent import TokenisedEdit, log_likelihood, target_distributions, tokenise
from harness.methods.hypernetwork import Hypernetwork, Pair, Shape, layout
from harness.methods.keys import require_layers
from harness.methods.meta_training import GradientNetwork, Lesson, MetaTraining
from harness.methods.shifts import Features, GradientShift, mini_batches, read_features, regressor, shift
from harness.models.activations import row_portions
from harness.models.lm import LM
from harness.patches.delta import Delta, double
from harness.patches.patch import Patch, require_plain

__all__ = ["NormalisationState", "RidgeNetwork", "RidgeTraining"]

_PORTION = 1024
"""Tokens that the network is given at once."""
_BUDGET = 4096
"""Tokens of one forward pass over what training asks, padding included."""


@dataclass(frozen=True, eq=False)
class NormalisationState:
    """What the normalisation of the next operation starts from.

    Attributes:
        tensors: the statistics of the network, by their names in it.
    """

    tensors: Mapping[str, Tensor]


Judged = Sequence[tuple[Sequence[Lesson], float]]
"""What an edited model is asked, group after group, each with its weight in the loss."""


@dataclass(frozen=True)
class RidgeNetwork(GradientShift, GradientNetwork):
    """``dW = (solve(K^T K + e^l I, K^T V))^T`` with ``v = -a (k . k~) g~`` for every token of every target.

    ``k`` is what enters a matrix at the position where the token is asked for, ``g`` the gradient of the edit's
    negative log-likelihood at what leaves it there; ``[k~, g~]`` is what the network makes of ``[k, g]`` after
    normalisation.  The network (one for each shape), ``a`` and ``l`` (one for each matrix) are trained.

    Attributes:
        layers: whose down-projections are shifted; by default the last six, as published for GPT-2 and GPT-J.
        lr: the step ``a`` before training.
        batch_size: edits of one forward and backward pass, the mini-batch; the result does not depend on it where
            ``loss`` is ``edit`` and ``deviation`` is ``data``.
        meta_lr: Adam's learning rate.
        loss: whether the gradient of an ``edit`` is that of its own negative log-likelihood, or that of the mean over
            all answer tokens of the mini-``batch`` that it happens to share, as in the authors' code.
        deviation: whether the standard deviation is that of the ``data``, or as in the authors' code a larger one, to
            which every mini-``batch`` of ``n`` tokens adds ``n / (n - 1)`` of its squares, and one of a lone token (of
            which their code makes a NaN) none.
        statistics: whether edits are normalised by what was seen in ``training``, or as in the authors' code by
            ``running`` statistics, to which every operation adds its own edits first.
    """

    batch_size: Count = 32
    meta_lr: NotNegative = 1e-5
    loss: Literal["edit", "batch"] = "edit"
    deviation: Literal["data", "batch"] = "data"
    statistics: Literal["training", "running"] = "training"

    def layout(self, lm: LM) -> Mapping[str, Tensor]:
        """The tensors of the network."""
        return layout(self.shapes(lm), rank=self.rank, depth=self.depth, damped=True)

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that are shifted."""
        if self.modules is not None:
            return list(self.modules)
        last = range(max(0, lm.arch.layers - 6), lm.arch.layers)
        return [lm.arch.down_of(layer) for layer in require_layers(lm, self.layers or last)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        before = own_memory(memory, NormalisationState)
        network = self.network({**self.knowledge(lm), **(before.tensors if before else {})})
        return self._patch(network, self.read(lm, tokenise(lm, edits))) if edits else Patch(memory=memory)

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """All edits in the passes of one batch: what is read of an edit does not depend on its company."""
        network, said = self.network(self.knowledge(lm)), tokenise(lm, edits)
        if not said:
            return []
        counts = [len(one.target) for one in said]
        batches = mini_batches(said, self.batch_size, longest_first=False)
        alone: list[Features] = [{} for _ in edits]
        for name, (keys, gradients) in read_features(lm, batches, names=self.places(lm), mean=False).items():
            both = (torch.split(torch.cat(part), counts) for part in (keys, gradients))
            for features, key, gradient in zip(alone, *both, strict=True):
                features[name] = ([key], [gradient / len(key) if self.loss == "batch" else gradient])
        return [self._patch(network, features) for features in alone]

    def shapes(self, lm: LM) -> dict[str, Shape]:
        """The matrices that are shifted, ``(in, out)`` by name."""
        for name in self.places(lm):
            require_plain(lm, f"{name}.weight")
        stored = {name: lm.matrix(f"{name}.weight") for name in self.places(lm)}
        return {name: (matrix.shape[1], matrix.shape[0]) for name, matrix in stored.items()}

    def network(self, tensors: Mapping[str, Tensor]) -> Hypernetwork:
        """The network of these tensors; its layers are not quite those of MEND."""
        return Hypernetwork(tensors, self.depth, rectified="first", eps=torch.finfo(torch.float32).eps)

    def start(self, lm: LM) -> Hypernetwork:
        """The network before training, which changes no pair and has seen none."""
        first = Hypernetwork.start(
            self.shapes(lm), rank=self.rank, depth=self.depth, alpha=self.lr, seed=self.seed, damped=True
        )
        return self.network(first.tensors)

    def read(self, lm: LM, said: Sequence[TokenisedEdit]) -> Features:
        """Keys and gradients of edits that are made at once."""
        batches = mini_batches(said, self.batch_size, longest_first=True)
        return read_features(lm, batches, names=self.places(lm), mean=self.loss == "batch")

    def observed(self, network: Hypernetwork, seen: Features) -> Hypernetwork:
        """The network with statistics that have seen more."""
        for keys, gradients in seen.values():
            if self.deviation == "data":
                network = network.observed(torch.cat(keys), torch.cat(gradients))
            else:
                for key, gradient in zip(keys, gradients, strict=True):
                    network = network.observed(key, gradient, unbiased=True)
        return network

    def _patch(self, network: Hypernetwork, seen: Features) -> Patch:
        """The change that edits make from what was read of them."""
        running = self.statistics == "running"
        network = self.observed(network, seen) if running else network
        weights = {
            f"{name}.weight": self._shift(network, name, torch.cat(keys), torch.cat(gradients))
            for name, (keys, gradients) in seen.items()
        }
        kept = {name: tensor for name, tensor in network.tensors.items() if "/statistics/" in name}
        return Patch(weights, memory=NormalisationState(kept) if running else None)

    def _shift(self, network: Hypernetwork, name: str, key: Tensor, gradient: Tensor) -> Delta:
        with torch.no_grad():
            value = torch.cat([_values(network, name, *part) for part in _portions(key, gradient)])
            ridge = float(network.damping(name).exp())
        if not bool(torch.isfinite(value).all()):
            raise NumericalError(f"{self.name}'s values of '{name}' are not finite; use float32, or fit again")
        return shift(key, value, ridge=ridge)


def _portions(key: Tensor, gradient: Tensor) -> Iterator[Pair]:
    yield from zip(torch.split(key, _PORTION), torch.split(gradient, _PORTION), strict=True)


def _values(network: Hypernetwork, name: str, key: Tensor, gradient: Tensor) -> Tensor:
    """What the outputs at some keys shall change by, ``v = -a (k . k~) g~``, ``[tokens, out]``."""
    u, v = network(name, key, gradient)
    return -network.alpha(name).to(v) * (key * u).sum(1, keepdim=True) * v


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Regression:
    """The change of one matrix, ``S = V^T R`` with ``R = K (K^T K + e^l I)^-1``, and what it was made of.

    Attributes:
        key: ``K [tokens, in]``.
        gradient: ``[tokens, out]``.
        value: ``V [tokens, out]``, in float64.
        right: ``R [tokens, in]``, in float64.
    """

    key: Tensor
    gradient: Tensor
    value: Tensor
    right: Tensor

    @classmethod
    def of(cls, network: Hypernetwork, name: str, *, key: Tensor, gradient: Tensor) -> _Regression:
        """That of the tokens of a batch."""
        with torch.no_grad():
            value = torch.cat([_values(network, name, *part) for part in _portions(key, gradient)])
            return cls(key, gradient, double(value), regressor(key, ridge=float(network.damping(name).exp())))

    @property
    def change(self) -> Tensor:
        """``S [out, in]``."""
        return self.value.T @ self.right

    def backward(self, network: Hypernetwork, name: str, slope: Tensor) -> None:
        """Add to the gradients of the network those that follow from that of ``S``.

        ``dL/dV = R (dL/dS)^T`` and ``dL/dl = -sum(dL/dV * (V - K S^T))``.

        Args:
            network: the network.
            name: the matrix.
            slope: ``dL/dS [out, in]``.
        """
        by_value = self.right @ double(slope).T
        left_over = self.value - double(self.key) @ self.change.T
        damping = network.damping(name)
        torch.autograd.backward(damping, -(by_value * left_over).sum().to(damping))
        parts = zip(_portions(self.key, self.gradient), torch.split(by_value, _PORTION), strict=True)
        for part, wanted in parts:
            value = _values(network, name, *part)
            torch.autograd.backward(value, wanted.to(value))


class RidgeTraining(MetaTraining):
    """The training of one such network on one model.

    Attributes:
        editor: the settings.
    """

    def __init__(self, editor: RidgeNetwork, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> None:
        super().__init__(editor, lm, train=train, validation=validation, start=editor.start(lm))
        self.editor = editor
        self.adam = torch.optim.Adam(list(self.network.trainable.values()), lr=editor.meta_lr)

    def descend(self, lessons: Sequence[Lesson], judged: Judged, *, l2: float = 0.0) -> dict[str, Tensor]:
        """Add the gradient of one batch of edits to those of the network.

        Args:
            lessons: the edits.
            judged: what the edited model is asked, group after group, each with its weight.
            l2: the weight of the squared Frobenius norm of the changes.

        Returns:
            What the edits change, by matrix.
        """
        seen = self.editor.read(self.lm, [lesson.edit for lesson in lessons])
        self.network = self.editor.observed(self.network, seen)
        solved = self._solved(seen)
        changes = {name: one.change.to(one.key).requires_grad_() for name, one in solved.items()}
        with torch.enable_grad():
            for group, weight in judged:
                for part in self._parts(group, changes):
                    torch.autograd.backward(weight * part)
            for name, one in solved.items():
                slope = changes[name].grad
                assert slope is not None
                one.backward(self.network, name, slope + 2 * l2 * changes[name].detach())
        return {name: change.detach() for name, change in changes.items()}

    def changes(self, lessons: Sequence[Lesson]) -> dict[str, Tensor]:
        """What edits change, by matrix, with the network as it is."""
        solved = self._solved(self.editor.read(self.lm, [lesson.edit for lesson in lessons]))
        return {name: one.change.to(one.key) for name, one in solved.items()}

    def loss(self, judged: Judged, changes: Mapping[str, Tensor]) -> float:
        """The loss of the edited model.

        Args:
            judged: what it is asked, group after group, each with its weight.
            changes: what the edits change.
        """
        return sum(weight * float(part) for group, weight in judged for part in self._parts(group, changes))

    def batches_to_validate(self) -> Iterator[list[Lesson]]:
        """Batches that are not learned from, with the first question and the first unrelated text."""
        size = self.editor.together
        for first in range(0, len(self.validation), size):
            batch = self.validation[first : first + size]
            yield [Lesson(lesson.edit, lesson.wanted[:1], lesson.kept[:1]) for lesson in batch]

    def _solved(self, seen: Features) -> dict[str, _Regression]:
        return {
            name: _Regression.of(self.network, name, key=torch.cat(keys), gradient=torch.cat(gradients))
            for name, (keys, gradients) in seen.items()
        }

    def _parts(self, lessons: Sequence[Lesson], changes: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The loss of the edited model in parts that add up: token means of the NLL and of KL(unedited || edited)."""
        wanted = [answer for lesson in lessons for answer in lesson.wanted]
        kept = [text for lesson in lessons for text in lesson.kept if text.target]
        for part, share in _shares(wanted):
            nll = -log_likelihood(self.lm, part, held=self._held(changes))
            yield self._finite(nll.mean() * share, lessons)
        for part, share in _shares(kept):
            with torch.no_grad():
                before = target_distributions(self.lm, part)
            after = target_distributions(self.lm, part, held=self._held(changes))
            divergence = (before.exp() * (before - after)).sum(1)
            yield self._finite(self.editor.c_loc * divergence.mean() * share, lessons)

    def _finite(self, loss: Tensor, lessons: Sequence[Lesson]) -> Tensor:
        self.require_finite(loss, lessons, "lower lr or meta_lr")
        return loss

    def _held(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The matrices after the edits, as the model stores them."""
        held = {}
        for module, change in changes.items():
            name = f"{module}.weight"
            weight = self.lm.parameter(name).detach()
            held[name] = (weight + (change.T if self.lm.transposed(name) else change)).to(weight.dtype)
        return held


def _shares(answers: Sequence[TokenisedEdit]) -> Iterator[tuple[list[TokenisedEdit], float]]:
    """Answers of one forward pass at a time, each time with the share that they have of all tokens."""
    every = sum(len(answer.target) for answer in answers)
    for chunk in row_portions([[len(answer.prompt) + len(answer.target)] for answer in answers], _BUDGET):
        part = [answers[i] for i in chunk]
        yield part, sum(len(answer.target) for answer in part) / every
