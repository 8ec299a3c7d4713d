"""MEND: a trained network rewrites the gradient of an edit into a change of weights.

Source: Mitchell et al. 2022, "Fast Model Editing at Scale", arXiv 2110.11309; code eric-mitchell/mend at e04fdb9.
Where they differ this follows the paper: an edit is ``W - alpha * sum_t v~_t u~_t^T``, so that with a network that
changes nothing it is one step of gradient descent (the code adds, and learns the sign: its ``alpha`` is the negative
of ours), and edits made at once add up, each with its own token mean (the code divides by the tokens of all: the
setting ``token_mean``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from harness.editing.edit import Edit, Example
from harness.editing.editor import Learned
from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.errors import DataError, NumericalError, UsageError
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
from harness.models.activations import at_least_float32, row_portions
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch, require_plain

__all__ = ["Mend"]

_BUDGET = 4096
"""Tokens of one forward pass, padding included."""
_TEXTS = 1000
"""Lines of plain text that stand for unrelated texts where the examples bring none."""


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
class Mend(Learned):
    """One pass forward and back for an edit; what a trained network makes of the gradient is the change.

    The defaults are the published ones, the same for every model; the authors' data bring a validation set of their
    own, here a share of the examples is kept for it.

    Attributes:
        layers: whose feed-forward matrices are changed; by default the last three.
        rank: of a layer of the network, at most the size of a pair.
        depth: layers of the network.
        alpha: the step size of each matrix before training.
        c_edit: the weight of the edit's loss.
        c_loc: the weight of the divergence on unrelated text.
        lr: Adam's learning rate for the network.
        alpha_lr: Adam's learning rate for the step sizes.
        steps: the most edits, or groups of ``together``, that are trained on.
        together: edits made at once in training.
        token_mean: whether the loss of edits made at once is the sum of each ``edit``'s mean over its target's tokens,
            or as in the authors' code one mean over the tokens of the whole ``batch``.
        accumulate: steps of one update.
        clip: the bound of the gradient's norm.
        validation: the share of the examples that is kept for validation.
        validate_every: steps between two validations.
        patience: steps without a better validation after which training ends.
        seed: of the network's first weights and of the order of the examples.
    """

    name = "mend"
    random = True

    layers: tuple[int, ...] | None = None
    rank: Count = 1920
    depth: Count = 2
    alpha: Positive = 1e-4
    c_edit: NotNegative = 0.1
    c_loc: NotNegative = 1.0
    lr: NotNegative = 1e-6
    alpha_lr: NotNegative = 1e-4
    steps: Count = 1_000_000
    together: Count = 1
    token_mean: TokenMean = field(default="edit", metadata={"before": "edit"})
    accumulate: Count = 10
    clip: Positive = 100.0
    validation: Share = 0.1
    validate_every: Count = 5000
    patience: Count = 20_000
    seed: int = 0

    # The shipped models: tuned on the edit set's tuning rows; a thousand steps of training, not a hundred thousand.
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"mini": _MINI, "mini-llama": _MINI}

    def fit(self, lm: LM, train: Sequence[Example]) -> Mend:
        """Train the network on examples; the best of all validations is kept.

        Raises:
            UsageError: there are fewer than two examples.
            DataError: a text is longer than the model's context, or there is no unrelated text.
            NumericalError: a loss is not finite.
        """
        if len(train) < 2:
            raise UsageError(
                f"{self.name}: {len(train)} examples to learn from, expected at least 2: one is kept for validation"
            )
        lessons = _lessons(lm, train)
        random.Random(self.seed).shuffle(lessons)
        kept = min(max(1, round(self.validation * len(lessons))), len(lessons) - 1)
        return replace(self, learned=_Training(self, lm, lessons[kept:], lessons[:kept]).run())

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


class _Lesson(NamedTuple):
    """An example in tokens.

    Attributes:
        edit: what is edited.
        wanted: other ways to ask for the same.
        kept: unrelated texts.
    """

    edit: TokenisedEdit
    wanted: list[TokenisedEdit]
    kept: list[list[int]]


def _lessons(lm: LM, train: Sequence[Example]) -> list[_Lesson]:
    """The examples in tokens; plain text stands in where an example has no neighborhood."""
    plain: list[list[int]] = []
    if not all(example.of("neighborhood") for example in train):
        plain = [row for text in islice(lm.documents(), _TEXTS) if (row := lm.encode(text)[: lm.context])]
        if not plain:
            raise DataError(f"'{lm.text}' holds no text; give plain text with --text FILE")
    return [_lesson(lm, example, plain) for example in train]


def _lesson(lm: LM, example: Example, plain: list[list[int]]) -> _Lesson:
    edit = example.edit
    asked = [probe.prompt for probe in example.of("paraphrase")] or [edit.text]
    near = [f"{probe.prompt} {probe.target_true}" for probe in example.of("neighborhood")]
    return _Lesson(
        tokenise(lm, [edit])[0],
        tokenise(lm, [Edit(edit.id, prompt, None, edit.target) for prompt in asked]),
        [lm.encode(text)[: lm.context] for text in near] or plain,
    )


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


class _Training:
    """The training of one network on one model.

    Attributes:
        editor: the settings.
        lm: the model.
        train: what is learned from.
        validation: what decides which network is kept.
        names: the matrices.
        network: the network as it is now.
        adam: the optimiser, with a learning rate of its own for the step sizes.
    """

    def __init__(self, editor: Mend, lm: LM, train: Sequence[_Lesson], validation: Sequence[_Lesson]) -> None:
        self.editor, self.lm, self.train, self.validation = editor, lm, train, validation
        shapes = editor.shapes(lm)
        self.names = list(shapes)
        start = Hypernetwork.start(shapes, rank=editor.rank, depth=editor.depth, alpha=editor.alpha, seed=editor.seed)
        self.network = replace(start, tensors={n: t.to(lm.device) for n, t in start.tensors.items()})
        free = {name: tensor.requires_grad_() for name, tensor in self.network.trainable.items()}
        alphas = [self.network.alpha(name) for name in self.names]
        others = [tensor for name, tensor in free.items() if not name.startswith("alpha/")]
        self.adam = torch.optim.Adam(
            [{"params": others, "lr": editor.lr}, {"params": alphas, "lr": editor.alpha_lr}], lr=editor.lr
        )

    def run(self) -> dict[str, Tensor]:
        """Train; the tensors of the best validation, as copies."""
        editor, draws = self.editor, self._draws()
        best, best_at, kept = float("inf"), 0, dict[str, Tensor]()
        with editor.progress(self.lm, editor.steps) as tell:
            for step in range(1, editor.steps + 1):
                self._learn(next(draws))
                if step % editor.accumulate == 0 or step == editor.steps:
                    self._update()
                if step % editor.validate_every == 0 or step == editor.steps:
                    loss = self._validate()
                    if loss < best:
                        best, best_at, kept = loss, step, self._copy()
                    elif step - best_at >= editor.patience:
                        break
                tell(step, f"best validation {best:.3f}" if kept else "")
        return kept

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.tensors.items()}

    def _draws(self) -> Iterator[list[_Lesson]]:
        """The lessons of each step: all in a new order at each pass, each with one question and one unrelated text."""
        draw, waiting = random.Random(self.editor.seed), list[_Lesson]()
        while True:
            while len(waiting) < self.editor.together:
                waiting += draw.sample(self.train, len(self.train))
            taken, waiting = waiting[: self.editor.together], waiting[self.editor.together :]
            yield [_Lesson(t.edit, [draw.choice(t.wanted)], [draw.choice(t.kept)]) for t in taken]

    def _learn(self, lessons: Sequence[_Lesson]) -> None:
        """Add the gradient of one step."""
        pairs = _pairs(self.lm, [lesson.edit for lesson in lessons], self.names, self.editor.token_mean)
        for each in pairs:
            for u, v in each.values():
                self.network = self.network.observed(u, v)
        loss = self._loss(lessons, pairs)
        torch.autograd.backward(loss / self.editor.accumulate)

    def _update(self) -> None:
        free = [tensor for group in self.adam.param_groups for tensor in group["params"]]
        torch.nn.utils.clip_grad_norm_(free, self.editor.clip)
        self.adam.step()
        self.adam.zero_grad()

    def _validate(self) -> float:
        """The mean loss of edits that are not learned from, with the first question and the first unrelated text."""
        total = 0.0
        for lesson in self.validation:
            pairs = _pairs(self.lm, [lesson.edit], self.names)
            with torch.no_grad():
                total += float(self._loss([_Lesson(lesson.edit, lesson.wanted[:1], lesson.kept[:1])], pairs))
        return total / len(self.validation)

    def _loss(self, lessons: Sequence[_Lesson], pairs: Sequence[Mapping[str, Pair]]) -> Tensor:
        """Of the model that carries all the edits: token means of the NLL and of KL(unedited || edited)."""
        held = self._edited(pairs)
        kept = [row for lesson in lessons for row in lesson.kept]
        edit = -log_likelihood(self.lm, [answer for lesson in lessons for answer in lesson.wanted], held=held).mean()
        with torch.no_grad():
            before = self._log_p(kept, {})
        after = self._log_p(kept, held)
        loc = (before.exp() * (before - after)).sum(1).mean()
        loss = self.editor.c_edit * edit + self.editor.c_loc * loc
        if not bool(torch.isfinite(loss)):
            ids = ", ".join(lesson.edit.edit.id for lesson in lessons[:3])
            what = f"the loss of edits {ids} became {float(loss.detach())}"
            raise NumericalError(f"{self.editor.name}: {what} in training; lower lr or alpha")
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
        logits: Tensor = functional_call(self.lm.model, held, args=(), kwargs=inputs).logits[batch.mask.bool()]
        return at_least_float32(logits).log_softmax(-1)
