"""An edit as a pair of answers, the new and the old one: what methods that compare the two share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.editing import directions
from harness.editing.edit import Edit
from harness.errors import DataError
from harness.methods.descent import TokenisedEdit, log_likelihood, tokenise
from harness.methods.steering import StatedText
from harness.models.lm import LM

__all__ = ["answer_log_likelihoods", "as_contrast", "stated_answers"]


def as_contrast(edit: Edit) -> Edit:
    """The edit as one that contrasts its target with the old answer.

    Raises:
        DataError: it names no old answer, or its target is the old one.
    """
    if edit.direction == "contrast":
        return edit
    if edit.target_old is None:
        raise DataError(f"edit {edit.id}: it names no old answer to compare the target with; give 'target_old'")
    return replace(edit, direction="contrast", against=edit.target_old)


def answer_log_likelihoods(
    lm: LM, examples: Sequence[TokenisedEdit], held: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The log-probability of the target and of the old answer of each edit, ``[edits, 2]``.

    Args:
        lm: the model; the rows of its one pass are all targets, then all old answers.
        examples: edits that contrast two answers (:func:`as_contrast`).
        held: parameters in place of the model's own.
    """
    rows = [*examples, *(example.rival for example in examples)]
    log_p = log_likelihood(lm, rows, held=held or {})
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in row.target], device=log_p.device)
    each = -directions.nll(log_p, owner, len(rows), normalisation="sum")
    return each.reshape(2, len(examples)).T


def stated_answers(lm: LM, edits: Sequence[Edit]) -> list[StatedText]:
    """The new answers of all edits behind their prompts, then their old answers.

    Raises:
        DataError: an edit does not name the old answer.
    """
    examples = tokenise(lm, [as_contrast(edit) for edit in edits])
    answers = [*((one.prompt, one.target) for one in examples), *((one.prompt, one.against) for one in examples)]
    return [StatedText(prompt + said, len(prompt), len(prompt) + len(said)) for prompt, said in answers]
