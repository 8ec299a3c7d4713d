"""The training of a network that turns gradients of edits into changes of weights (MEND, MALMEN, RLEdit).

Sources: Mitchell et al. 2022, arXiv 2110.11309, algorithm 1; Tan, Zhang, Fu 2024, arXiv 2311.04661, algorithm 1.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from harness.editing.edit import Edit, Example
from harness.editing.editor import Learned
from harness.editing.hyperparameters import Count, NotNegative, Positive, Share
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.descent import TokenisedEdit, tokenise
from harness.methods.hypernetwork import Hypernetwork
from harness.models.lm import LM

__all__ = ["GradientNetwork", "Lesson", "MetaTraining", "read_lessons"]

_TEXTS = 1000
"""Lines of plain text that stand for unrelated texts where the examples bring none."""


class Lesson(NamedTuple):
    """An example in tokens.

    Attributes:
        edit: what is edited.
        wanted: other ways to ask for the same.
        kept: unrelated texts, each with the answer that it ends with; of plain text all but its first token.
    """

    edit: TokenisedEdit
    wanted: list[TokenisedEdit]
    kept: list[TokenisedEdit]


def read_lessons(lm: LM, train: Sequence[Example]) -> list[Lesson]:
    """The examples in tokens; plain text stands in where an example has no neighborhood.

    Raises:
        DataError: a text is longer than the model's context, or there is no unrelated text.
    """
    plain: list[TokenisedEdit] = []
    if not all(example.of("neighborhood") for example in train):
        rows = [row for text in islice(lm.documents(), _TEXTS) if (row := lm.encode(text)[: lm.context])]
        plain = [TokenisedEdit(train[0].edit, row[:1], row[1:]) for row in rows]  # of no edit: any will do
        if not plain:
            raise DataError(f"'{lm.text}' holds no text; give plain text with --text FILE")
    return [_lesson(lm, example, plain) for example in train]


def _lesson(lm: LM, example: Example, plain: list[TokenisedEdit]) -> Lesson:
    edit = example.edit
    asked = [probe.prompt for probe in example.of("paraphrase")] or [edit.text]
    near = [_near(lm, edit, probe.prompt, probe.target_true) for probe in example.of("neighborhood")]
    return Lesson(
        tokenise(lm, [edit])[0],
        tokenise(lm, [Edit(edit.id, prompt, None, edit.target) for prompt in asked]),
        near or plain,
    )


def _near(lm: LM, edit: Edit, prompt: str, answer: str | None) -> TokenisedEdit:
    row, start = lm.encode(f"{prompt} {answer}")[: lm.context], len(lm.encode(prompt))
    return TokenisedEdit(edit, row[:start], row[start:])


@dataclass(frozen=True)
class GradientNetwork(Learned):
    """An editor whose change is what a trained network makes of gradients.

    Attributes:
        rank: of a layer of the network, at most the size of a pair.
        depth: layers of the network.
        c_loc: the weight of the divergence on unrelated text.
        steps: the most edits, or groups of ``together``, that are trained on.
        together: edits made at once in training, never more than there are.
        clip: the bound of the gradient's norm.
        validation: the share of the examples that is kept for validation.
        validate_every: steps between two validations.
        patience: steps without a better validation after which training ends.
        seed: of the network's first weights and of the order of the examples.
    """

    random = True

    rank: Count = 1920
    depth: Count = 2
    c_loc: NotNegative = 1.0
    steps: Count = 1000
    together: Count = 1
    clip: Positive = 1.0
    validation: Share = 0.1
    validate_every: Count = 100
    patience: Count = 1000
    seed: int = 0

    def fit(self, lm: LM, train: Sequence[Example]) -> GradientNetwork:
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
        lessons = read_lessons(lm, train)
        random.Random(self.seed).shuffle(lessons)
        kept = min(max(1, round(self.validation * len(lessons))), len(lessons) - 1)
        return replace(self, learned=self.training(lm, lessons[kept:], lessons[:kept]).run())

    @abstractmethod
    def training(self, lm: LM, train: Sequence[Lesson], validation: Sequence[Lesson]) -> MetaTraining:
        """The training of a new network.

        Args:
            lm: the model.
            train: what is learned from.
            validation: what decides which network is kept.
        """


class MetaTraining(ABC):
    """The training of one network on one model.

    Attributes:
        settings: those of the editor.
        lm: the model.
        train: what is learned from.
        validation: what decides which network is kept.
        network: the network as it is now.
        adam: the optimiser, which a child makes.
        accumulate: steps of one update.
    """

    adam: torch.optim.Optimizer
    accumulate: int = 1

    def __init__(
        self,
        settings: GradientNetwork,
        lm: LM,
        *,
        train: Sequence[Lesson],
        validation: Sequence[Lesson],
        start: Hypernetwork,
    ) -> None:
        """A training that has not begun.

        Args:
            settings: those of the editor.
            lm: the model.
            train: what is learned from.
            validation: what decides which network is kept.
            start: the network as it is before.
        """
        self.settings, self.lm, self.train, self.validation = settings, lm, train, validation
        self.network = replace(start, tensors={name: tensor.to(lm.device) for name, tensor in start.tensors.items()})
        for tensor in self.network.trainable.values():
            tensor.requires_grad_()

    @abstractmethod
    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Add the gradient of one step."""

    @abstractmethod
    def validate(self) -> float:
        """The loss of the lessons that are not learned from."""

    def run(self) -> dict[str, Tensor]:
        """Train; the tensors of the best validation, as copies."""
        own, draws = self.settings, self.draws()
        best, best_at, kept = float("inf"), 0, dict[str, Tensor]()
        with own.progress(self.lm, own.steps) as tell:
            for step in range(1, own.steps + 1):
                self.learn(next(draws))
                if step % self.accumulate == 0 or step == own.steps:
                    self.update()
                if step % own.validate_every == 0 or step == own.steps:
                    loss = self.validate()
                    if loss < best:
                        best, best_at, kept = loss, step, self.copy()
                    elif step - best_at >= own.patience:
                        break
                tell(step, f"best validation {best:.3f}" if kept else "")
        return kept

    def copy(self) -> dict[str, Tensor]:
        """The tensors of the network as it is now."""
        return {name: tensor.detach().clone() for name, tensor in self.network.tensors.items()}

    def draws(self) -> Iterator[list[Lesson]]:
        """The lessons of each step: all in a new order at each pass, each with one question and one unrelated text."""
        draw, waiting = random.Random(self.settings.seed), list[Lesson]()
        together = min(self.settings.together, len(self.train))
        while True:
            while len(waiting) < together:
                waiting += draw.sample(self.train, len(self.train))
            taken, waiting = waiting[:together], waiting[together:]
            yield [Lesson(t.edit, [draw.choice(t.wanted)], [draw.choice(t.kept)]) for t in taken]

    def update(self) -> None:
        """One step of the optimiser, the gradient's norm bounded."""
        free = [tensor for group in self.adam.param_groups for tensor in group["params"]]
        torch.nn.utils.clip_grad_norm_(free, self.settings.clip)
        self.adam.step()
        self.adam.zero_grad()

    def require_finite(self, loss: Tensor, lessons: Sequence[Lesson], cure: str) -> None:
        """See that a loss is a number.

        Args:
            loss: the loss.
            lessons: whose it is.
            cure: what to change where it is not.

        Raises:
            NumericalError: it is not; names the edits.
        """
        if not bool(torch.isfinite(loss)):
            ids = ", ".join(lesson.edit.edit.id for lesson in lessons[:3])
            what = f"the loss of edits {ids} became {float(loss.detach())}"
            raise NumericalError(f"{self.settings.name}: {what} in training; {cure}")
