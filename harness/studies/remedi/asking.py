"""Questions to a model, each under a patch of its own: probabilities of answers, sampled texts, hidden states.

A benchmark that examines every edit alone asks many questions under many patches.  Patches that only have hooks share
a forward pass, in which each hook sees the rows that are its own; others are held one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import GenerationConfig

from harness.errors import DataError
from harness.exam.span_scores import wide_head
from harness.models.activations import TokenRow, at_least_float32, read_activations, row_portions
from harness.models.lm import LM
from harness.patches.patch import Hook, Patch, Step, patched

__all__ = ["PatchedPrompt", "hidden_states", "mention", "next_log_p", "sampled", "target_log_p"]

BUDGET = 4096
"""Tokens of one forward pass, padding included."""
TOP = 5
"""The most probable tokens of which one is drawn (ROME and REMEDI)."""


@dataclass(frozen=True, eq=False)
class PatchedPrompt:
    """A text that the model goes on from, under a patch."""

    text: str
    patch: Patch


def next_log_p(lm: LM, questions: Sequence[PatchedPrompt], wanted: Sequence[Sequence[str]]) -> list[list[float]]:
    """The log-probabilities of the first tokens of some continuations.

    Args:
        lm: the model.
        questions: the questions.
        wanted: for each the continuations, without their leading space.

    Raises:
        DataError: a question is longer than the model's context.
    """
    ids = [_ids(lm, one) for one in questions]
    tokens = [[_first(lm, _read(one), text) for text in texts] for one, texts in zip(questions, wanted, strict=True)]
    found: dict[int, list[float]] = {}
    for portion in _portions(questions, [len(row) for row in ids]):
        logits = _logits(lm, [ids[i] for i in portion], [questions[i].patch for i in portion])
        for row, i in enumerate(portion):
            log_p = logits[row, len(ids[i]) - 1].log_softmax(-1)
            found[i] = [float(log_p[token]) for token in tokens[i]]
    return [found[i] for i in range(len(questions))]


def target_log_p(lm: LM, questions: Sequence[PatchedPrompt], targets: Sequence[str]) -> list[float]:
    """The log-probability of the whole of a continuation, each token after the right ones; arguments as above.

    Args:
        lm: the model.
        questions: what is read before the continuations.
        targets: a continuation for each question.

    Returns:
        natural logarithms, in the order of the questions.

    Raises:
        DataError: a question with its target is longer than the model's context.
    """
    heads = [_ids(lm, one) for one in questions]
    tails = [lm.continuation(_read(one), _spaced(text)) for one, text in zip(questions, targets, strict=True)]
    ids = [_fits(lm, [*head, *tail]) for head, tail in zip(heads, tails, strict=True)]
    found: dict[int, float] = {}
    for portion in _portions(questions, [len(row) for row in ids]):
        logits = _logits(lm, [ids[i] for i in portion], [questions[i].patch for i in portion])
        for row, i in enumerate(portion):
            log_p = logits[row, len(heads[i]) - 1 : len(ids[i]) - 1].log_softmax(-1)
            found[i] = float(log_p[torch.arange(len(tails[i])), tails[i]].sum())
    return [found[i] for i in range(len(questions))]


def sampled(lm: LM, questions: Sequence[PatchedPrompt], *, length: int, seed: int) -> list[str]:
    """The texts of the questions, each continued by sampling from the five most probable tokens.

    Args:
        lm: the model.
        questions: the questions.
        length: tokens of a whole text, the question's counted; less where the model takes less.
        seed: of what is drawn; a portion of rows is drawn together.

    Returns:
        Questions and continuations; what a patch puts in front of a question is neither counted nor given.
    """
    ids, found = [_ids(lm, one) for one in questions], dict[int, str]()
    most = [
        min(length + len(row) - len(lm.encode(one.text)), lm.context) for one, row in zip(questions, ids, strict=True)
    ]
    for number, portion in enumerate(_portions(questions, most)):
        rows, patches = [ids[i] for i in portion], [questions[i].patch for i in portion]
        drawn = _drawn(lm, rows, patches, [most[i] for i in portion], 1_000_003 * seed + number)
        for i, text in zip(portion, drawn, strict=True):
            found[i] = _said(lm, text)
            if questions[i].patch.prompt is not None:
                found[i] = questions[i].text + found[i].removeprefix(_said(lm, ids[i]))
    return [found[i] for i in range(len(questions))]


def _said(lm: LM, ids: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _drawn(
    lm: LM, rows: Sequence[Sequence[int]], patches: Sequence[Patch], most: Sequence[int], seed: int
) -> list[list[int]]:
    """Rows of tokens, each continued to so many tokens."""
    width = max(map(len, rows))
    room = min(max(count - len(row) for count, row in zip(most, rows, strict=True)), lm.context - width)
    if room <= 0:
        return [list(row) for row in rows]
    short, pad = [width - len(row) for row in rows], lm.pad
    ids = torch.tensor([[pad] * n + list(row) for n, row in zip(short, rows, strict=True)], device=lm.device)
    mask = torch.tensor([[0] * n + [1] * len(row) for n, row in zip(short, rows, strict=True)], device=lm.device)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, top_k=TOP, max_new_tokens=room, pad_token_id=pad, eos_token_id=lm.tokenizer.eos_token_id
    )
    with _held(lm, patches), lm.plain_generation(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out: Tensor = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)  # type: ignore[operator, unused-ignore]
    return [out[i, n : max(n + count, width)].tolist() for i, (n, count) in enumerate(zip(short, most, strict=True))]


def hidden_states(lm: LM, places: Sequence[tuple[str, int]], layer: int) -> Tensor:
    """What a block writes at one token of each text, ``[places, d]``, at least in float32.

    Args:
        lm: the model.
        places: texts, each with the position of a token.
        layer: the block.
    """
    block = lm.arch.block(layer)
    rows = [TokenRow(tuple(_fits(lm, lm.encode(text))), at) for text, at in places]
    return read_activations(lm, rows, outputs=[block], budget=BUDGET).outputs[block]


def mention(lm: LM, text: str, *, entity: str, which: int) -> int:
    """The position of the last token of a mention of an entity.

    Args:
        lm: whose tokens are counted.
        text: the text.
        entity: the name that is looked for.
        which: 1 is the first mention.

    Raises:
        DataError: the text has fewer mentions.
    """
    start = -1
    for _ in range(which):
        start = text.find(entity, start + 1)
        if start < 0:
            raise DataError(f"'{entity}' has no mention {which} in '{text}'; give a text that names it as often")
    return lm.span(text, entity, start)[1] - 1


# --- rows under patches -----------------------------------------------------------------------------------------------


def _read(question: PatchedPrompt) -> str:
    """The text that the model reads: a patch may have a say in it."""
    return question.text if question.patch.prompt is None else question.patch.prompt(question.text)


def _ids(lm: LM, question: PatchedPrompt) -> list[int]:
    return _fits(lm, lm.encode(_read(question)))


def _fits(lm: LM, ids: list[int]) -> list[int]:
    if len(ids) > lm.context:
        raise DataError(
            f"'{lm.tokenizer.decode(ids[:12])}...' has {len(ids)} tokens, but {lm.name} takes {lm.context}; leave its "
            "case out, or take a model with a longer context"
        )
    return ids


def _spaced(text: str) -> str:
    return text if text.startswith(" ") else f" {text}"


def _first(lm: LM, prompt: str, text: str) -> int:
    return lm.continuation(prompt, _spaced(text))[0]


def _portions(questions: Sequence[PatchedPrompt], lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows of each forward pass: those whose patches can share one."""
    alike: dict[int, list[int]] = {}
    for i, one in enumerate(questions):
        alike.setdefault(0 if _shares(one.patch) else id(one.patch), []).append(i)
    for members in alike.values():
        for portion in row_portions([[lengths[i]] for i in members], BUDGET):
            yield [members[i] for i in portion]


def _shares(patch: Patch) -> bool:
    """Whether it can stand beside others in a forward pass: nothing but hooks changes what the model computes."""
    return not patch.weights and patch.logits is None


@contextmanager
def _held(lm: LM, patches: Sequence[Patch]) -> Iterator[None]:
    """Each row of the next forward passes under its own patch, or all under the one that cannot share them."""
    names = sorted({name for patch in patches for name in patch.hooks})
    together = Patch(hooks={name: _by_row(name, patches) for name in names})
    with patched(lm, together if _shares(patches[0]) else patches[0]):
        yield


def _by_row(name: str, patches: Sequence[Patch]) -> Hook:
    """The hook of a module that hands each row to the hook of its own patch."""
    owners: dict[int, list[int]] = {}
    for row, patch in enumerate(patches):
        if name in patch.hooks:
            owners.setdefault(id(patch), []).append(row)

    def run(hidden: Tensor, step: Step) -> Tensor:
        changed = hidden.clone()
        for rows in owners.values():
            entered = None if step.entered is None else step.entered[rows]
            mine = replace(step, ids=step.ids[rows], mask=step.mask[rows], entered=entered)
            changed[rows] = patches[rows[0]].hooks[name](hidden[rows], mine).to(hidden)
        return changed

    return run


def _logits(lm: LM, rows: Sequence[Sequence[int]], patches: Sequence[Patch]) -> Tensor:
    """The logits of right-padded rows, ``[rows, columns, vocabulary]``, at least in float32."""
    batch = lm.batch(rows)
    # In half precision logits of two answers would tie.
    with _held(lm, patches), wide_head(lm), torch.no_grad():
        logits: Tensor = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return at_least_float32(logits)
