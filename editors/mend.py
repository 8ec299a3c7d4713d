"""MEND: a trained network rewrites the gradient of an edit into a change of weights.

Source: Mitchell et al. 2022, "Fast Model Editing at Scale", arXiv 2110.11309; code eric-mitchell/mend at e04fdb9.
Where they differ this follows the paper: an edit is ``W - alpha * sum_t v~_t u~_t^T``, so that with a network that
changes nothing it is one step of gradient descent (the code adds, and learns the sign: its ``alpha`` is the negative
of ours), and edits made at once add up, each with its own token mean (the code divides by the tokens of all: the
setting ``token_mean``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.errors import NumericalError
from harness.methods.descent import (
    TokenisedEdit,
    TokenMean,
    capture_gradients,
    feed_forward_matrices,
    log_likelihood,
    tokenise,
)
from harness.methods.hypernetwork import Hypernetwork, Pair, Shape, layout
from harness.methods.keys import require_layers
from harness.methods.meta_training import GradientNetwork, Lesson, MetaTraining
from harness.models.activations import at_least_float32, row_portions
from harness.models.lm import LM
from harness.models.offload import call_with
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch, require_plain

__all__ = ["Mend"]

_BUDGET = 4096
"""Tokens of one forward pass, padding included."""

_MINI: Mapping[str, object] = {
    "rank": 128,
    "lr": 3e-5,
    "alpha": 5e-4,
    "alpha_lr": 1e-5,
    "c_edit": 0.3,
    "steps": 1200,
    "accumulate": 4,
    "validate_every": 200,
}


@dataclass(frozen=True)
class Mend(GradientNetwork):
    """One pass forward and back for an edit; what a trained network makes of the gradient is the change.

    The defaults are the published ones, the same for every model; the authors' data bring a validation set of their
    own, here a share of the examples is kept for it.

    Attributes:
        layers: whose feed-forward matrices are changed; by default the last three.
        alpha: the step size of each matrix before training.
        c_edit: the weight of the edit's loss.
        lr: Adam's learning rate for the network.
        alpha_lr: Adam's learning rate for the step sizes.
        token_mean: whether the loss of edits made at once is the sum of each ``edit``'s mean over its target's tokens,
            or as in the authors' code one mean over the tokens of the whole ``batch``.
        accumulate: steps of one update.
    """

    name = "mend"

    layers: tuple[int, ...] | None = None
    alpha: Positive = 1e-4
    c_edit: NotNegative = 0.1
    lr: NotNegative = 1e-6
    alpha_lr: NotNegative = 1e-4
    steps: Count = 1_000_000
    token_mean: TokenMean = field(default="edit", metadata={"before": "edit"})
    accumulate: Count = 10
    clip: Positive = 100.0
    validate_every: Count = 5000
    patience: Count = 20_000

    # The shipped models: tuned on the edit set's tuning rows; a thousand steps of training, not a hundred thousand.
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"mini": _MINI, "mini-llama": _MINI}

    def training(self, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> MetaTraining:
        """The training of a new network."""
        return _Training(self, lm, train, validation)

    def layout(self, lm: LM) -> Mapping[str, Tensor]:
        """The tensors of the network."""
        return layout(self.shapes(lm), rank=self.rank, depth=self.depth)

    def places(self, lm: LM) -> Sequence[str]:
        """The matrices that are changed."""
        return [name.removesuffix(".weight") for name in self.shapes(lm)]

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The sum of the changes that each edit would make alone, or those of one mean over all their tokens."""
        each = self._changes(lm, edits, self.token_mean)
        return Patch({name: _delta([change[name] for change in each]) for name in (each[0] if each else ())})

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """All edits in one pass: the rows of a batch do not see each other."""
        return [
            Patch({n: _delta([factors]) for n, factors in change.items()})
            for change in self._changes(lm, edits, "edit")
        ]

    def shapes(self, lm: LM) -> dict[str, Shape]:
        """The matrices that are changed, ``(in, out)`` by name, in the order of the model."""
        last = range(max(0, lm.arch.layers - 3), lm.arch.layers)
        names = [
            f"{m}.weight" for layer in require_layers(lm, self.layers or last) for m in feed_forward_matrices(lm, layer)
        ]
        for name in names:
            require_plain(lm, name)
        return {name: (lm.matrix(name).shape[1], lm.matrix(name).shape[0]) for name in names}

    def _changes(self, lm: LM, edits: Sequence[Edit], token_mean: TokenMean) -> list[dict[str, Pair]]:
        """For each edit and matrix the factors of its change, as :func:`_factors` gives them."""
        network = Hypernetwork(self.knowledge(lm), self.depth)
        with torch.no_grad():
            pairs = _pairs(lm, tokenise(lm, edits), list(self.shapes(lm)), token_mean)
            found = [_factors(network, each) for each in pairs]
        for edit, change in zip(edits, found, strict=True):
            for name, factors in change.items():
                if not all(bool(torch.isfinite(factor).all()) for factor in factors):
                    raise NumericalError(
                        f"edit {edit.id}: {self.name}'s change of '{name}' is not finite; use float32, or fit again"
                    )
        return found


# --- gradients --------------------------------------------------------------------------------------------------------


def _pairs(
    lm: LM, said: Sequence[TokenisedEdit], names: Sequence[str], token_mean: TokenMean = "edit"
) -> list[dict[str, Pair]]:
    """For each edit and matrix what entered it and the gradient at its output, of the mean NLL of the target's tokens.

    Tokens without a gradient (padding) or without an input are left out; the others are at least float32.

    Args:
        lm: the model.
        said: the edits in tokens.
        names: the matrices.
        token_mean: over the tokens of each edit, or of all of them.
    """
    found: dict[int, dict[str, Pair]] = {}
    for chunk in row_portions([[len(answer.prompt) + len(answer.target)] for answer in said], _BUDGET):
        found |= dict(zip(chunk, _backward(lm, [said[i] for i in chunk], names), strict=True))
    if token_mean == "edit":
        return [found[i] for i in range(len(said))]
    every = sum(len(answer.target) for answer in said)
    shares = [len(answer.target) / every for answer in said]
    return [{name: (u, share * v) for name, (u, v) in found[i].items()} for i, share in enumerate(shares)]


def _backward(lm: LM, said: Sequence[TokenisedEdit], names: Sequence[str]) -> list[dict[str, Pair]]:
    """The pairs of one batch. Each edit has its own mean, so that its gradient is the same in any company."""
    with torch.enable_grad(), capture_gradients(lm, [name.removesuffix(".weight") for name in names]) as heard:
        nll = -log_likelihood(lm, said)
        each = torch.split(nll, [len(answer.target) for answer in said])
        loss = torch.stack([tokens.mean() for tokens in each]).sum()
        slopes = torch.autograd.grad(loss, [probe for _, probe in heard.values()])

    def rows(hidden: Tensor) -> Tensor:
        # OPT flattens rows and columns inside its blocks.
        return at_least_float32(hidden).to(lm.device).reshape(len(said), -1, hidden.shape[-1])

    parts = zip(names, heard.values(), slopes, strict=True)
    both = {name: (rows(entered), rows(slope)) for name, (entered, _), slope in parts}
    return [{name: _present(u[i], v[i]) for name, (u, v) in both.items()} for i in range(len(said))]


def _present(u: Tensor, v: Tensor) -> Pair:
    there = u.ne(0).any(1) & v.ne(0).any(1)
    return u[there], v[there]


def _factors(network: Hypernetwork, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """``left [out, tokens]`` and ``right [tokens, in]`` of each matrix, ``-alpha * sum_t v~_t u~_t^T``."""
    made = {name: network(name, u, v) for name, (u, v) in pairs.items()}
    return {name: (-network.alpha(name).to(v) * v.T, u) for name, (u, v) in made.items()}


def _delta(changes: Sequence[Pair]) -> Delta:
    """The sum of changes; dense where the factors would take more room."""
    left, right = torch.cat([left for left, _ in changes], 1), torch.cat([right for _, right in changes])
    out, tokens, width = *left.shape, right.shape[1]
    return LowRank(left, right) if tokens * (out + width) <= out * width else Dense(left @ right)


# --- training ---------------------------------------------------------------------------------------------------------


class _Training(MetaTraining):
    """The training of one network on one model.

    Attributes:
        editor: the settings.
        names: the matrices.
        adam: the optimiser, with a learning rate of its own for the step sizes.
    """

    def __init__(self, editor: Mend, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> None:
        shapes = editor.shapes(lm)
        start = Hypernetwork.start(shapes, rank=editor.rank, depth=editor.depth, alpha=editor.alpha, seed=editor.seed)
        super().__init__(editor, lm, train=train, validation=validation, start=start)
        self.editor, self.names, self.accumulate = editor, list(shapes), editor.accumulate
        alphas = [self.network.alpha(name) for name in self.names]
        others = [tensor for name, tensor in self.network.trainable.items() if not name.startswith("alpha/")]
        self.adam = torch.optim.Adam(
            [{"params": others, "lr": editor.lr}, {"params": alphas, "lr": editor.alpha_lr}], lr=editor.lr
        )

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Add the gradient of one step."""
        pairs = _pairs(self.lm, [lesson.edit for lesson in lessons], self.names, self.editor.token_mean)
        for each in pairs:
            for u, v in each.values():
                self.network = self.network.observed(u, v)
        loss = self._loss(lessons, pairs)
        torch.autograd.backward(loss / self.editor.accumulate)

    def validate(self) -> float:
        """The mean loss of edits that are not learned from, with the first question and the first unrelated text."""
        total = 0.0
        for lesson in self.validation:
            pairs = _pairs(self.lm, [lesson.edit], self.names)
            with torch.no_grad():
                total += float(self._loss([Lesson(lesson.edit, lesson.wanted[:1], lesson.kept[:1])], pairs))
        return total / len(self.validation)

    def _loss(self, lessons: Sequence[Lesson], pairs: Sequence[Mapping[str, Pair]]) -> Tensor:
        """Of the model that carries all the edits: token means of the NLL and of KL(unedited || edited)."""
        held = self._edited(pairs)
        kept = [text.prompt + text.target for lesson in lessons for text in lesson.kept]
        edit = -log_likelihood(self.lm, [answer for lesson in lessons for answer in lesson.wanted], held=held).mean()
        with torch.no_grad():
            before = self._log_p(kept, {})
        after = self._log_p(kept, held)
        loc = (before.exp() * (before - after)).sum(1).mean()
        loss = self.editor.c_edit * edit + self.editor.c_loc * loc
        self.require_finite(loss, lessons, "lower lr or alpha")
        return loss

    def _edited(self, pairs: Sequence[Mapping[str, Pair]]) -> dict[str, Tensor]:
        """The matrices after the edits, as the model stores them."""
        each = [_factors(self.network, edit) for edit in pairs]
        return {name: self._sum(name, [factors[name] for factors in each]) for name in self.names}

    def _sum(self, name: str, changes: Sequence[Pair]) -> Tensor:
        weight = self.lm.parameter(name).detach()
        left, right = torch.cat([left for left, _ in changes], 1), torch.cat([right for _, right in changes])
        change = (right.T @ left.T if self.lm.transposed(name) else left @ right).to(weight.device)
        return (weight.to(change.dtype) + change).to(weight.dtype)

    def _log_p(self, rows: Sequence[list[int]], held: dict[str, Tensor]) -> Tensor:
        """The log-probabilities at every real token, ``[tokens, vocabulary]``."""
        batch = self.lm.batch(rows)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        logits: Tensor = call_with(self.lm.model, held, **inputs).logits[batch.mask.bool()]
        return at_least_float32(logits).log_softmax(-1)
