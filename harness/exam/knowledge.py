"""Which facts a model knows, by what it writes after their prompts.

Sources: Hase et al. 2023 (arXiv 2301.04213), section 4: the true answer is in the greedy continuation of 36 tokens,
whatever the capitals; Meng et al. 2022 (ROME, arXiv 2202.05262), appendix B.1: it is the most probable next token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from harness.editing.edit import Edit
from harness.exam import measure
from harness.exam.measure import Measured
from harness.exam.statistics import Ratio
from harness.models.activations import row_portions
from harness.models.lm import LM

__all__ = ["NEW_TOKENS", "Knowledge", "Known", "Report", "continuations", "known_edits", "known_once", "says"]

Known = Literal["continuation", "prediction", "all"]
"""Which facts are looked at: those whose object is in the greedy continuation (Hase et al.), those whose object is the
most probable next token (Meng et al.), or all."""

Report = Callable[[int, int], None]
"""Told how much is done, and how much there is."""

NEW_TOKENS = 36
"""The length of the greedy continuation of Hase et al."""


@dataclass(frozen=True)
class Knowledge:
    """What a model knows of the facts that edits change, before any edit.

    Attributes:
        asked: the edits that say what is true.
        known: the ids of those whose true answer the model writes.
    """

    asked: int
    known: tuple[str, ...]

    @property
    def line(self) -> str:
        """What a user is told."""
        return f"the model knows {len(self.known)} of {self.asked} facts before any edit"


def known_edits(lm: LM, edits: Sequence[Edit], report: Report, *, budget: int = 4096) -> Knowledge:
    """The facts that the unedited model knows: the old target is in its greedy continuation (Hase et al.).

    Args:
        lm: the unedited model.
        edits: the edits; one without ``target_old`` says nothing of what is true, and is not asked.
        report: told how many have been asked.
        budget: tokens of one forward pass.
    """
    asked = _asked(edits)
    prompts = [tuple(lm.encode(edit.text)[-lm.context :]) for edit in asked]
    written = continuations(lm, prompts, new_tokens=NEW_TOKENS, report=report, budget=budget)
    known = [e.id for e, text in zip(asked, written, strict=True) if says(text, str(e.target_old), "continuation")]
    return Knowledge(len(asked), tuple(known))


def known_once(lm: LM, edits: Sequence[Edit], report: Report) -> Knowledge:
    """As :func:`known_edits`, or as the same model has answered the same questions before: the cache keeps it.

    Args:
        lm: the unedited model.
        edits: the edits.
        report: told how many have been asked, where they are.

    Raises:
        UsageError: the cache cannot be written.
    """
    asked = _asked(edits)
    questions = [[edit.id, lm.encode(edit.text), edit.target_old] for edit in asked]
    model = measure.fingerprint(lm, lm.fingerprint())
    key = measure.unedited_key(model, lm.device, {"known": questions, "tokens": NEW_TOKENS})

    def ask() -> Measured:
        known = known_edits(lm, asked, report).known
        return Measured(values={"known": {edit.id: Ratio(float(edit.id in known), 1.0) for edit in asked}})

    answers = measure.measured_once(key, ask, metrics=("known",)).values["known"]
    return Knowledge(len(answers), tuple(name for name, right in answers.items() if right.num))


def _asked(edits: Sequence[Edit]) -> list[Edit]:
    """Those that say what is true."""
    return [edit for edit in edits if (edit.target_old or "").strip()]


def says(text: str, wanted: str, which: Known) -> bool:
    """Whether a continuation gives an answer.

    Args:
        text: the continuation.
        wanted: the answer.
        which: ``continuation``: it holds the answer, whatever the capitals; ``prediction``: it is the answer.
    """
    said, answer = text.strip(), wanted.strip()
    return which == "all" or (answer.lower() in said.lower() if which == "continuation" else answer == said)


def continuations(
    lm: LM, prompts: Sequence[tuple[int, ...]], *, new_tokens: int, report: Report, budget: int = 4096
) -> list[str]:
    """Greedy continuations; prompts of one length share a pass, so that nothing is padded.

    Args:
        lm: the model.
        prompts: the tokens of each prompt.
        new_tokens: how many tokens are written, fewer where the model takes no longer text.
        report: told how many prompts have been continued.
        budget: tokens of one forward pass.
    """
    same: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        same[len(prompt)].append(i)
    found, done = [""] * len(prompts), 0
    for length, members in same.items():
        room = min(new_tokens, lm.context - length)
        for portion in row_portions([[length + room]] * len(members), budget):
            rows = [members[i] for i in portion]
            for i, text in zip(rows, _greedy(lm, [prompts[i] for i in rows], room), strict=True):
                found[i] = text
            done += len(rows)
            report(done, len(prompts))
    return found


def _greedy(lm: LM, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[str]:
    """What the model says after prompts of one length."""
    if new_tokens < 1:
        return [""] * len(prompts)
    ids = torch.tensor(prompts, device=lm.device)
    pad = lm.pad
    with lm.plain_generation(), torch.no_grad():
        rows = lm.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad
        )
    return [str(lm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)) for row in rows]
