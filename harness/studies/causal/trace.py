"""Causal tracing: where in a model a fact is recalled.

Noise on the subject's embedding makes the model forget a fact; restoring what a module wrote at one token, in a window
of layers, brings part of the answer's probability back. That part is the module's effect.

Sources: Meng et al. 2022 (ROME, arXiv 2202.05262), section 2 and appendix B; Hase et al. 2023 (arXiv 2301.04213),
sections 3 to 5. Letters: ``p_clean = clean``, ``p_low = low`` (mean over noise samples), ``p_rest(t, l) = restored``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.errors import DataError, UsageError, near
from harness.exam.knowledge import Known, Report
from harness.exam.span_scores import wide_head
from harness.io.nobody import tell_nobody
from harness.models.lm import LM
from harness.patches.delta import double
from harness.studies.causal.facts import FactTokens, Skipped, TracedFact, known_facts, tokenise_fact
from harness.studies.causal.restore import ForwardPass, Kind, Overwriting, Restorer

__all__ = [
    "CONSTANTS",
    "PRESETS",
    "ROLES",
    "Selection",
    "TraceSettings",
    "Traced",
    "concentrated",
    "layer_window",
    "layer_windows",
    "noise_scale",
    "preset",
    "require_traceable",
    "roles",
    "select_facts",
    "side_by_side",
    "trace_each",
    "trace_facts",
]

CONSTANTS: dict[str, dict[str, float]] = {
    "hase": {"gpt-j-6b": 0.094, "gpt2-xl": 0.1, "gpt2-medium": 0.1, "gpt-neox-20b": 0.03},
    "rome": {"gpt-j-6b": 0.025, "gpt2-xl": 0.1, "gpt-neox-20b": 0.03},
}
"""The noise that the papers' programs use for the papers' models, by the last part of the model's name."""


@dataclass(frozen=True)
class TraceSettings:
    """How facts are traced; the defaults are those of Hase et al.

    Attributes:
        kind: what is restored: what feed-forward modules (``mlp``) or attention modules (``attn``) write, or the hidden
            state that leaves a block (``block``).
        window: how many layers are restored together, see :func:`layer_window`.
        samples: noise samples; probabilities are means over them.
        sigma: the standard deviation of the noise: a number; ``s3``, three times that of the subjects' embeddings (Meng
            et al., the text); ``hase`` or ``rome``, the constant of that paper's program where the model is one of the
            paper's, ``s3`` for others.
        seed: of the noise; texts of one shape get the same noise, as in both programs.
        answer: what is explained: the true ``object``, all of its tokens, or the model's own most probable next token
            (``prediction``, Meng et al.).
        known: the correctness filter, see :data:`harness.exam.knowledge.Known`.
        new_tokens: the length of the continuation in which the filter looks.
        threshold: the least ``p_clean``; Hase et al. ask for 0.02 for Fact Erasure (their program always).
        high: what a fraction is measured against: ``clean``, the probability without noise, or ``max``, the greatest of
            it and of all restored ones (Hase et al., the program).

    Raises:
        UsageError: a number is out of range.
    """

    kind: Kind = "mlp"
    window: int = 5
    samples: int = 10
    sigma: float | Literal["s3", "hase", "rome"] = "hase"
    seed: int = 1
    answer: Literal["object", "prediction"] = "object"
    known: Known = "continuation"
    new_tokens: int = 36
    threshold: float = 0.0
    high: Literal["clean", "max"] = "clean"

    def __post_init__(self) -> None:
        for name in ("window", "samples", "new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1")
        if isinstance(self.sigma, float | int) and not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise UsageError(f"sigma is {self.sigma}, expected a number above 0, s3, hase or rome")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}, expected a probability")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}, expected 0 to 4294967295")


PRESETS = {
    "hase": TraceSettings(),
    "rome": TraceSettings(window=10, sigma="s3", answer="prediction", known="prediction"),
}
"""The two published variants: Hase et al. 2023, and Meng et al. 2022."""


def preset(name: str) -> TraceSettings:
    """The settings of a published variant.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"variant '{name}' does not exist{near(name, PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, eq=False)
class Traced:
    """What tracing found about one fact; all numbers are float64.

    Attributes:
        fact: the fact.
        tokens: the tokens of the prompt, as text.
        span: the subject's tokens, the first and one past the last.
        answer: what is explained, as text.
        clean: its probability.
        low: the mean of its probability over the noise samples, nothing restored.
        high: what fractions are measured against.
        restored: the mean probability where a token's outputs are restored in the window of a layer,
            ``[tokens, layers]``. In front of the subject there is no noise, and nothing to restore: ``low``.
        removed: the share of ``clean`` that is lost where the outputs at the subject's tokens are zero in the window
            of a layer, without noise, ``[layers]`` (Hase et al., representation zeroing); NaN where ``clean`` is 0.
    """

    fact: TracedFact
    tokens: tuple[str, ...]
    span: tuple[int, int]
    answer: str
    clean: float
    low: float
    high: float
    restored: Tensor
    removed: Tensor

    @property
    def effects(self) -> Tensor:
        """``p_rest(t, l) - p_low``, ``[tokens, layers]``."""
        return self.restored - self.low

    @property
    def fractions(self) -> Tensor:
        """``max(0, effect / |p_low - p_high|)``, ``[tokens, layers]``; NaN where the noise changes nothing."""
        distance = abs(self.low - self.high)
        if distance == 0:
            return torch.full_like(self.restored, torch.nan)
        return (self.effects / distance).clamp(min=0)

    def layer_effect(self, kind: Literal["max", "last_subject"] = "max", scaled: bool = True) -> Tensor:
        """The tracing effect of each layer, ``[layers]``; NaN where the noise changes nothing and it is scaled.

        Args:
            kind: the greatest over all tokens of the prompt (Hase et al.), or that of the subject's last token, which
                may be negative.
            scaled: as the fraction of what the noise took, or as a difference of probabilities.
        """
        last = self.span[1] - 1
        if kind == "last_subject":
            distance = abs(self.low - self.high) if scaled else 1.0
            return self.effects[last] / distance if distance else torch.full_like(self.restored[last], torch.nan)
        return (self.fractions if scaled else self.effects).max(0).values


@dataclass(frozen=True, eq=False)
class Selection:
    """The facts that are traced.

    Attributes:
        asked: the facts, in tokens.
        skipped: the others, each with the reason.
        sigma: the standard deviation of the noise.
    """

    asked: tuple[FactTokens, ...]
    skipped: tuple[Skipped, ...]
    sigma: float


def trace_facts(
    lm: LM,
    facts: Sequence[TracedFact | Edit],
    settings: TraceSettings = PRESETS["hase"],
    *,
    progress: Report = tell_nobody,
    budget: int = 4096,
) -> list[Traced]:
    """Trace facts; those that the model does not know, or that cannot be traced, are left out.

    Args:
        lm: the model; it is unchanged when this returns.
        facts: facts, or edits whose ``target_old`` is what is true.
        settings: how.
        progress: told how many facts have been traced, and how many there are.
        budget: tokens that go through a block at once.

    Returns:
        One entry for each fact that was traced, in order; :func:`select_facts` says why others are not.

    Raises:
        UsageError: the window is wider than the model.
        DataError: no fact can be looked at.
    """
    return list(trace_each(lm, select_facts(lm, facts, settings), settings, progress=progress, budget=budget))


def require_traceable(lm: LM, settings: TraceSettings) -> None:
    """See that a window tells layers apart.

    Raises:
        UsageError: every layer's window is the whole model.
        ModelError: the attention modules that are meant were not found.
    """
    layer_windows(settings.window, lm.arch.layers)
    if settings.kind == "attn":
        lm.arch.attn_of(0)


def layer_window(layer: int, width: int, layers: int) -> range:
    """The layers around one: ``l - floor(w / 2)`` to ``l + ceil(w / 2) - 1``, as far as they exist.

    Ten layers are five below and four above, as in the published programs.

    Args:
        layer: the layer ``l`` in the middle.
        width: how many layers together, ``w``.
        layers: how many layers the model has.
    """
    return range(max(0, layer - width // 2), min(layers, layer + (width + 1) // 2))


def layer_windows(width: int, layers: int) -> list[range]:
    """The window of every layer.

    Raises:
        UsageError: every layer's window is the whole model, so that no layer can be told from another.
    """
    windows = [layer_window(layer, width, layers) for layer in range(layers)]
    if width > 1 and all(len(window) == layers for window in windows):
        raise UsageError(
            f"window {width} is wider than the model: around each of its {layers} layers it holds all of them; choose "
            f"at most {max(1, 2 * layers - 2)}"
        )
    return windows


def select_facts(
    lm: LM,
    facts: Sequence[TracedFact | Edit],
    settings: TraceSettings = PRESETS["hase"],
    *,
    progress: Report = tell_nobody,
) -> Selection:
    """Find the subjects, leave out what the model does not know, and decide how strong the noise is.

    Args:
        lm: the model.
        facts: facts, or edits.
        settings: how they will be traced.
        progress: told how many facts have been looked at.

    Raises:
        UsageError: the window is wider than the model.
        DataError: no fact can be looked at; says why not.
    """
    require_traceable(lm, settings)
    seen = [tokenise_fact(lm, TracedFact.of(fact) if isinstance(fact, Edit) else fact) for fact in facts]
    able = [one for one in seen if isinstance(one, FactTokens)]
    skipped = [one for one in seen if isinstance(one, Skipped)]
    if not able:
        why = f"; the first: {skipped[0].detail}" if skipped else ""
        raise DataError(f"none of {len(seen)} facts can be traced{why}; give facts with a subject and what is true")
    sigma = noise_scale(lm, settings, [str(one.fact.subject) for one in able])
    asked: list[FactTokens] = []
    for one in known_facts(lm, able, which=settings.known, new_tokens=settings.new_tokens, report=progress):
        wanted = _explained(lm, one, settings) if isinstance(one, FactTokens) else one
        if isinstance(wanted, FactTokens):
            asked.append(wanted)
        else:
            skipped.append(wanted)
    order = {fact.id: i for i, fact in enumerate(facts)}
    return Selection(tuple(asked), tuple(sorted(skipped, key=lambda one: order[one.fact.id])), sigma)


def _explained(lm: LM, asked: FactTokens, settings: TraceSettings) -> FactTokens | Skipped:
    """The fact with the tokens that are explained, if they are probable enough."""
    if settings.answer == "object" and settings.threshold == 0:
        return asked
    batch = lm.batch([asked.ids])
    with wide_head(lm), torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[0]
    log_p = double(logits).log_softmax(-1)[len(asked.prompt) - 1 :]
    target = (int(log_p[0].argmax()),) if settings.answer == "prediction" else asked.target
    found = math.exp(sum(float(row[token]) for row, token in zip(log_p, target, strict=False)))
    if found < settings.threshold:
        return Skipped(asked.fact, "improbable", f"probability {found:.3g}, asked for {settings.threshold:g}")
    return replace(asked, target=target)


def noise_scale(lm: LM, settings: TraceSettings, subjects: Sequence[str]) -> float:
    """The standard deviation of the noise.

    Args:
        lm: the model.
        settings: whose ``sigma`` is a number or a rule.
        subjects: the subjects of all facts, for the rule ``s3``.

    Raises:
        DataError: the embeddings of the subjects do not differ.
    """
    if not isinstance(settings.sigma, str):
        return float(settings.sigma)
    named = CONSTANTS.get(settings.sigma, {}).get(lm.name.rstrip("/").rpartition("/")[2].lower())
    if named is not None:
        return named
    ids = torch.tensor([token for subject in subjects for token in lm.encode(subject)], device=lm.device)
    with torch.no_grad():
        embedded: Tensor = lm.module(lm.arch.embedding)(ids[None])
    scale = 3 * float(double(embedded).std())
    if not scale > 0:
        raise DataError(f"the embeddings of the subjects do not differ (3 x std is {scale}); give --sigma a number")
    return scale


def trace_each(
    lm: LM,
    selection: Selection,
    settings: TraceSettings,
    *,
    progress: Report = tell_nobody,
    budget: int = 4096,
    done: Collection[str] = (),
) -> Iterator[Traced]:
    """Trace selected facts; those of one shape (length of prompt and answer, place of the subject) go side by side.

    Args:
        lm: the model.
        selection: the facts.
        settings: how.
        progress: told how many facts have been traced, and how many there are.
        budget: tokens that go through a block at once.
        done: ids of facts that are passed over. Those that are left keep their company, and their numbers.

    Yields:
        What was found about each, in order.
    """
    restorer, ready = Restorer(lm, settings.kind, budget), dict[int, Traced]()
    company = {
        i: portion
        for portion in side_by_side(selection, settings, layers=lm.arch.layers, budget=budget)
        for i in portion
    }
    left = [i for i, one in enumerate(selection.asked) if one.fact.id not in done]
    for count, i in enumerate(left):
        if i not in ready:
            together = [selection.asked[j] for j in company[i]]
            with wide_head(lm):
                found = _traced(lm, together, selection.sigma, settings, restorer)
            ready.update(zip(company[i], found, strict=True))
        yield ready.pop(i)
        progress(count + 1, len(left))


def side_by_side(selection: Selection, settings: TraceSettings, *, layers: int, budget: int) -> list[list[int]]:
    """The places of the selected facts that go through the model together.

    Args:
        selection: the facts.
        settings: how they are traced.
        layers: how many layers the model has.
        budget: tokens that go through a block at once.
    """
    return list(_alike(selection.asked, settings.samples + 1, budget // layers))


def _alike(asked: Sequence[FactTokens], rows: int, budget: int) -> Iterator[list[int]]:
    """Portions of facts of one shape, within the budget (or one alone); ``rows`` for each."""
    same: dict[tuple[int, int, tuple[int, int]], list[int]] = defaultdict(list)
    for i, one in enumerate(asked):
        same[len(one.prompt), len(one.target), one.span].append(i)
    for members in same.values():
        size = max(1, budget // (rows * len(asked[members[0]].ids)))
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _traced(
    lm: LM, together: Sequence[FactTokens], sigma: float, settings: TraceSettings, restorer: Restorer
) -> list[Traced]:
    (begin, end), prompt, layers = together[0].span, len(together[0].prompt), lm.arch.layers
    rows, count = settings.samples + 1, len(together)
    noise = _noise(lm, settings, end - begin, sigma).repeat(count, 1, 1)
    seen = restorer.observe([one for one in together for _ in range(rows)], noise, begin)
    clean = seen.select(range(0, count * rows, rows))
    noisy = seen.select([row for row in range(count * rows) if row % rows])
    windows = layer_windows(settings.window, layers)
    pairs = [Overwriting(token, token + 1, window) for token in range(begin, prompt) for window in windows]
    values = [wrote.repeat_interleave(settings.samples, 0) for wrote in clean.wrote]
    found = restorer.probabilities(noisy, values, pairs).reshape(prompt - begin, layers, count, -1).mean(-1)
    removed = _removed(restorer, clean, windows, (begin, end))
    low = noisy.probability.reshape(count, -1).mean(1)
    return [
        _result(lm, one, settings, float(clean.probability[i]), float(low[i]), found[:, :, i], removed[:, i])
        for i, one in enumerate(together)
    ]


def _result(
    lm: LM, asked: FactTokens, settings: TraceSettings, clean: float, low: float, found: Tensor, removed: Tensor
) -> Traced:
    begin = asked.span[0]
    restored = torch.cat([torch.full((begin, found.shape[1]), low, dtype=torch.float64), found])
    high = max(clean, float(restored.max())) if settings.high == "max" else clean
    tokens = tuple(str(lm.tokenizer.decode([token])) for token in asked.prompt)
    answer = str(lm.tokenizer.decode(list(asked.target)))
    return Traced(asked.fact, tokens, asked.span, answer, clean, low, high, restored, removed)


def _noise(lm: LM, settings: TraceSettings, width: int, sigma: float) -> Tensor:
    """No noise for the first row, then ``sigma`` times standard normal numbers, ``[1 + samples, width, d]``."""
    drawn = np.random.RandomState(settings.seed).randn(settings.samples, width, lm.arch.width)
    rows = torch.cat([torch.zeros(1, width, lm.arch.width), torch.from_numpy(sigma * drawn)])
    return rows.to(lm.device, next(lm.module(lm.arch.embedding).parameters()).dtype)


def _removed(restorer: Restorer, clean: ForwardPass, windows: Sequence[range], span: tuple[int, int]) -> Tensor:
    """The share of the clean probability that zeros at the subject take, ``[layers, facts]``."""
    zeroed = [torch.zeros_like(wrote[:1]) for wrote in clean.wrote]
    found = restorer.probabilities(clean, zeroed, [Overwriting(*span, window) for window in windows])
    return torch.where(clean.probability > 0, (clean.probability - found) / clean.probability, torch.nan)


ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


def roles(tokens: int, span: tuple[int, int]) -> dict[str, list[int]]:
    """The positions of a prompt that play each role, as Meng et al. average them.

    A token can play two (the only token of a subject is its first and its last), and a role may have none.

    Args:
        tokens: the length of the prompt.
        span: the subject's tokens, the first and one past the last.
    """
    begin, end = span
    places = (
        [begin],
        list(range(begin + 1, end - 1)),
        [end - 1],
        list(range(end, min(end + 1, tokens))),
        list(range(end + 1, tokens - 1)),
        [tokens - 1],
    )
    return dict(zip(ROLES, places, strict=True))


def concentrated(effects: Sequence[float] | Tensor, share: float = 0.5, others: int = 3) -> bool | None:
    """Whether a fact's tracing effect sits in few layers; None where it has none.

    Besides the layer of the greatest effect, at most ``others`` reach ``share`` of it (Hase et al., section 5.2).

    Args:
        effects: the effect of each layer, as :meth:`Traced.layer_effect` gives it.
        share: of the greatest effect.
        others: layers that may reach it.
    """
    found = torch.as_tensor(effects, dtype=torch.float64)
    if bool(found.isnan().any()) or not float(found.max()) > 0:
        return None
    return int((found >= share * found.max()).sum()) - 1 <= others
