"""Context templates: short texts of the model's own, in front of which an edit shall hold as well.

A template is a text with one ``{}`` where the prompt stands. They are sampled from the unedited model with a seed, so
that an edit can be repeated, and are part of what an editor returns, so that they stand in the record.
Sources: Meng et al. 2022 (ROME), appendix E.5; Meng et al. 2023 (MEMIT), appendix B.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from harness.errors import UsageError
from harness.models.lm import LM

__all__ = ["TemplateKind", "require_templates", "sample_about", "sample_templates", "template_weights"]

TemplateKind = Literal["rome", "memit"]

_TOP = 5
_MEMIT_STARTS = ("The", "Therefore", "Because", "I", "You")


def sample_templates(lm: LM, kind: TemplateKind, seed: int = 0) -> tuple[str, ...]:
    """Context templates sampled from the model as it is now; the first is ``{}``, the bare prompt.

    ``rome``: ten texts of 5 tokens and ten of 10, BOS included, that start from nothing. ``memit``: one text of 10
    tokens for each of five first words.

    Args:
        lm: the model.
        kind: whose templates.
        seed: the seed of the sampler.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "memit":
        texts = [
            text for start in _MEMIT_STARTS for text in _sample(lm, [lm.encode(start)], length=10, generator=generator)
        ]
    else:
        texts = [
            text for length in (5, 10) for text in _sample(lm, [[lm.start]] * 10, length=length, generator=generator)
        ]
    return ("{}", *(f"{text}. {{}}" for text in texts))


def sample_about(
    lm: LM, beginnings: Sequence[str], *, each: int, length: int, generator: torch.Generator
) -> tuple[str, ...]:
    """Context templates that the model continues from some texts (CORE, arXiv 2505.23026); the first is ``{}``.

    Args:
        lm: the model.
        beginnings: the texts.
        each: how many templates begin with each.
        length: tokens of a template, its beginning included.
        generator: what the sampler draws from.
    """
    texts = [
        text
        for beginning in beginnings
        for text in _sample(lm, [lm.encode(beginning)] * each, length=length, generator=generator)
    ]
    return ("{}", *(f"{text}. {{}}" for text in texts))


def _sample(lm: LM, rows: Sequence[Sequence[int]], *, length: int, generator: torch.Generator) -> list[str]:
    """Texts of ``length`` tokens, the given ones included, each next token one of the five most probable."""
    batch = lm.batch(rows)
    ids = batch.ids
    with torch.no_grad():
        while ids.shape[1] < min(length, lm.context):
            logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
            ids = torch.cat([ids, _draw(logits, generator).to(ids.device)], 1)
    return [_clean(text) for text in lm.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _draw(logits: Float[Tensor, "rows vocabulary"], generator: torch.Generator) -> Int[Tensor, "rows 1"]:
    # On the CPU, so that one seed gives one text on every device.
    values, tokens = logits.float().cpu().topk(min(_TOP, logits.shape[-1]))
    return tokens.gather(1, torch.multinomial(values.softmax(-1), 1, generator=generator))


def _clean(text: str) -> str:
    """A text that can stand in a template: normal form KD, one line, no braces."""
    for character in "{}\n\r":
        text = text.replace(character, " ")
    return " ".join(unicodedata.normalize("NFKD", text).split())


def template_weights(templates: Sequence[str], kind: TemplateKind) -> Float64[Tensor, "templates"]:
    """How much each template counts in the mean key, ``[templates]``, float64, of sum 1.

    ``rome``: all the same. ``memit``: the bare prompt counts one half, the others share the other half (the mean of
    two means).
    """
    count = len(templates)
    if kind == "rome" or count == 1:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    return torch.tensor([0.5] + [0.5 / (count - 1)] * (count - 1), dtype=torch.float64)


def require_templates(templates: Sequence[str]) -> None:
    """Look at templates that a user gave.

    Raises:
        UsageError: the first is not ``{}``, or one has not exactly one slot.
    """
    if not templates or templates[0] != "{}":
        raise UsageError("contexts: the first template must be '{}', the bare prompt; put it in front")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise UsageError(f"contexts: the template '{template}' must have exactly one slot {{}} and no other brace")
