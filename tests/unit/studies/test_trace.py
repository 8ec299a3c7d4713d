"""Causal tracing: against one forward pass per restoration with plain hooks, and the vectors of the specification."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, UsageError
from harness.models.lm import LM
from harness.patches.patch import Patch, patched
from harness.studies.causal.facts import FactTokens, TracedFact, tokenise_fact
from harness.studies.causal.restore import Overwriting, Restorer
from harness.studies.causal.trace import (
    PRESETS,
    ROLES,
    Traced,
    TraceSettings,
    concentrated,
    layer_window,
    noise_scale,
    preset,
    roles,
    select_facts,
    trace_each,
    trace_facts,
)

FACTS = [
    TracedFact("start", "Ada Velmont was born in", "Ada Velmont", "Paris"),
    TracedFact("middle", "The home of Hugo Lantern is", "Hugo Lantern", "Lisbon, Portugal"),
    TracedFact("end", "Everybody knows Elena Marsh", "Elena Marsh", "has seen Rome"),
]
WINDOWS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
QUICK = TraceSettings(window=3, samples=3, sigma=0.4, known="all")


# --- one forward pass for each restoration, with plain hooks ----------------------------------------------------------


def plain(lm: LM, fact: TracedFact, settings: TraceSettings) -> tuple[float, float, Tensor, Tensor]:
    """clean, low, restored ``[tokens, layers]`` and removed ``[layers]``, row 0 clean and the others noised."""
    prompt, answer = lm.encode(fact.prompt), lm.continuation(fact.prompt, f" {fact.object}")
    begin, end = lm.span(fact.prompt, str(fact.subject))
    ids = torch.tensor([prompt + answer[:-1]] * (settings.samples + 1))
    name = {"mlp": lm.arch.mlp_of, "attn": lm.arch.attn_of, "block": lm.arch.block}[settings.kind]

    def run(noisy: bool, change: Callable[[Tensor], None], layers: Sequence[int]) -> Tensor:
        def noise(_module: object, _args: object, output: Tensor) -> Tensor:
            draw = np.random.RandomState(settings.seed).randn(settings.samples, end - begin, lm.arch.width)
            output = output.clone()
            output[1:, begin:end] += float(settings.sigma) * torch.from_numpy(draw).to(output.dtype)
            return output

        def overwrite(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            hidden = output if isinstance(output, Tensor) else output[0]
            changed = hidden.clone()
            change(changed.view(len(ids), ids.shape[1], -1))
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        handles = [lm.module(name(layer)).register_forward_hook(overwrite) for layer in layers]
        if noisy:
            handles.append(lm.module(lm.arch.embedding).register_forward_hook(noise))
        log_p = lm.model(input_ids=ids).logits.double().log_softmax(-1)
        for handle in handles:
            handle.remove()
        at = log_p[:, len(prompt) - 1 :]
        return torch.stack([at[:, i, token] for i, token in enumerate(answer)]).sum(0).exp()

    def nothing(_hidden: Tensor) -> None:
        pass

    clean, low = float(run(False, nothing, ())[0]), float(run(True, nothing, ())[1:].mean())
    restored = torch.full((len(prompt), lm.arch.layers), low, dtype=torch.float64)
    removed = torch.zeros(lm.arch.layers, dtype=torch.float64)
    for layer in range(lm.arch.layers):
        window = [i for i in range(lm.arch.layers) if i in layer_window(layer, settings.window, lm.arch.layers)]

        def zero(hidden: Tensor) -> None:
            hidden[:, begin:end] = 0

        removed[layer] = 1 - run(False, zero, window)[0] / clean
        for token in range(begin, len(prompt)):

            def restore(hidden: Tensor, token: int = token) -> None:
                hidden[1:, token] = hidden[0, token]

            restored[token, layer] = run(True, restore, window)[1:].mean()
    return clean, low, restored, removed


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama", "opt", "gemma", "falcon", "lfm2", "backpack"])
@pytest.mark.parametrize(("kind", "window"), [("mlp", 1), ("mlp", 3), ("attn", 2), ("block", 1), ("block", 2)])
def test_it_is_one_forward_pass_for_each_restoration(
    tiny: Callable[[str], LM], family: str, kind: str, window: int
) -> None:
    lm, settings = tiny(family), replace(QUICK, kind=kind, window=window)
    for fact, found in zip(FACTS, trace_facts(lm, FACTS, settings), strict=True):
        clean, low, restored, removed = plain(lm, fact, settings)
        assert (found.clean, found.low) == pytest.approx((clean, low), rel=1e-5)
        torch.testing.assert_close(found.restored, restored, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(found.removed, removed, rtol=1e-4, atol=1e-5)
        assert found.high == found.clean


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "mlp"), ("neox", "block"), ("llama", "attn")])
def test_facts_of_one_shape_go_side_by_side(tiny: Callable[[str], LM], family: str, kind: str) -> None:
    lm, settings = tiny(family), replace(QUICK, kind=kind, window=1)
    facts = [
        TracedFact(f"{who} {where}", f"{who} was born in", who, where)
        for who in ("Ada Velmont", "Hugo Lantern", "Elena Marsh")
        for where in ("Rome", "Paris", "Lisbon, Portugal")
    ]
    chosen = select_facts(lm, facts, settings)
    shapes = {(len(one.prompt), len(one.target), one.span) for one in chosen.asked}
    assert len(shapes) < len(facts)
    found = trace_facts(lm, facts, settings, budget=100_000)
    assert [one.fact for one in found] == facts
    for fact, one in zip(facts, found, strict=True):
        clean, low, restored, removed = plain(lm, fact, settings)
        assert (one.clean, one.low) == pytest.approx((clean, low), rel=1e-5)
        torch.testing.assert_close(one.restored, restored, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(one.removed, removed, rtol=1e-4, atol=1e-5)


def test_facts_that_are_left_keep_their_numbers(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    facts = [TracedFact(where, "Ada Velmont was born in", "Ada Velmont", where) for where in ("Rome", "Paris", "Oslo")]
    chosen = select_facts(lm, facts, QUICK)
    every = {one.fact.id: one for one in trace_each(lm, chosen, QUICK, budget=100_000)}
    left = list(trace_each(lm, chosen, QUICK, budget=100_000, done=("Paris",)))
    assert {one.fact.id for one in left} == {"Rome", "Oslo"}
    assert all(torch.equal(one.restored, every[one.fact.id].restored) for one in left)


def question(lm: LM, fact: TracedFact) -> FactTokens:
    asked = tokenise_fact(lm, fact)
    assert isinstance(asked, FactTokens)
    return asked


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "opt"])
@pytest.mark.parametrize(("kind", "budget"), [("mlp", 40), ("attn", 10_000), ("block", 10_000), ("mlp", 10_000)])
def test_the_ways_give_the_same_numbers(tiny: Callable[[str], LM], family: str, kind: str, budget: int) -> None:
    lm = tiny(family)
    asked = question(lm, FACTS[1])
    noise = 0.4 * torch.randn(4, 2, lm.arch.width, generator=torch.manual_seed(0))
    several = [Overwriting(t, t + n, range(a, b)) for t, n in ((2, 1), (3, 2), (4, 1)) for a, b in WINDOWS]
    found = []
    for way in (None, False):
        restorer = Restorer(lm, kind, budget=budget)  # type: ignore[arg-type]
        seen = restorer.observe([asked] * 4, noise, 2)
        restorer._by_blocks = way
        found.append(restorer.probabilities(seen, [w[:1] for w in seen.wrote], several))
        assert restorer._by_blocks is (way is None)
        torch.testing.assert_close(found[-1], found[0], rtol=1e-5, atol=0)


def test_a_patch_that_follows_tokens_is_run_with_the_whole_model(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")

    def follow(hidden: Tensor, step: object) -> Tensor:
        return 1.1 * hidden

    with patched(lm, Patch(hooks={lm.arch.block(0): follow})):
        restorer = Restorer(lm, "mlp")
        seen = restorer.observe([question(lm, FACTS[0])], torch.zeros(1, 2, lm.arch.width), 0)
        restorer.probabilities(seen, seen.wrote, [Overwriting(1, 2, range(1))])
    assert restorer._by_blocks is False


@pytest.mark.parametrize("budget", [1, 50, 100_000])
def test_the_budget_changes_no_number(tiny: Callable[[str], LM], budget: int) -> None:
    lm = tiny("llama")
    for one, other in zip(trace_facts(lm, FACTS, QUICK), trace_facts(lm, FACTS, QUICK, budget=budget), strict=True):
        torch.testing.assert_close(one.restored, other.restored, rtol=1e-5, atol=0)


def test_half_precision(fresh: Callable[..., LM]) -> None:
    whole, half = (trace_facts(fresh("llama", dtype=dtype), FACTS, QUICK) for dtype in (torch.float32, torch.bfloat16))
    for one, other in zip(whole, half, strict=True):
        assert other.restored.dtype == torch.float64
        torch.testing.assert_close(other.restored, one.restored, rtol=0.3, atol=1e-4)


def test_half_precision_does_not_round_the_logits(fresh: Callable[..., LM]) -> None:
    """A hundred more for every token is no change of any probability; at a hundred bfloat16 knows half numbers."""
    lm = fresh("gptj", dtype=torch.bfloat16)
    plain = trace_facts(lm, FACTS, QUICK)
    bias = lm.parameter(f"{lm.arch.head}.bias")
    with torch.no_grad():
        bias.copy_(torch.full_like(bias, 100.0))
    for one, other in zip(plain, trace_facts(lm, FACTS, QUICK), strict=True):
        assert other.clean == pytest.approx(one.clean, rel=1e-2)
        torch.testing.assert_close(other.restored, one.restored, rtol=1e-2, atol=1e-6)


def test_the_model_is_what_it_was(tiny: Callable[[str], LM]) -> None:
    lm = tiny("neox")
    before = lm.fingerprint()
    trace_facts(lm, FACTS, QUICK)
    assert lm.fingerprint() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


# --- what is computed from it -----------------------------------------------------------------------------------------


def traced(restored: list[list[float]], low: float, high: float, span: tuple[int, int] = (0, 1)) -> Traced:
    table = torch.tensor(restored, dtype=torch.float64)
    return Traced(FACTS[0], ("x",) * len(table), span, "y", high, low, high, table, torch.zeros(table.shape[1]))


def test_tv3_fraction_restored() -> None:
    found = traced([[0.30, 0.03, 0.80]], 0.05, 0.80)
    assert found.fractions[0].tolist() == pytest.approx([1 / 3, 0.0, 1.0], abs=1e-6)
    assert found.effects[0].tolist() == pytest.approx([0.25, -0.02, 0.75])


def test_the_effect_of_a_layer_is_the_greatest_of_a_token_or_that_of_the_last_subject_token() -> None:
    found = traced([[0.05, 0.2], [0.45, 0.01], [0.25, 0.35]], 0.05, 0.85, span=(0, 2))
    assert found.layer_effect().tolist() == pytest.approx([0.5, 0.375])
    assert found.layer_effect("last_subject").tolist() == pytest.approx([0.5, -0.05])
    assert found.layer_effect(scaled=False).tolist() == pytest.approx([0.4, 0.3])
    assert found.layer_effect("last_subject", scaled=False).tolist() == pytest.approx([0.4, -0.04])


def test_where_noise_changes_nothing_there_is_no_fraction() -> None:
    found = traced([[0.3, 0.2]], 0.3, 0.3)
    assert found.fractions.isnan().all()
    assert found.layer_effect().isnan().all()
    assert found.layer_effect("last_subject").isnan().all()
    assert found.layer_effect(scaled=False).tolist() == pytest.approx([0.0, -0.1])
    assert concentrated(found.layer_effect()) is None


def test_tv14_windows() -> None:
    assert layer_window(5, 10, 28) == range(10)
    assert layer_window(4, 10, 28) == range(9)
    assert layer_window(27, 10, 28) == range(22, 28)
    assert layer_window(5, 3, 28) == range(4, 7)
    assert layer_window(0, 5, 28) == range(3)
    assert layer_window(27, 5, 28) == range(25, 28)
    assert layer_window(0, 10, 28) == range(5)
    assert [layer_window(layer, 1, 28) for layer in (0, 27)] == [range(1), range(27, 28)]


def test_tv16_concentrated() -> None:
    assert concentrated((0.1, 0.2, 0.9, 0.5, 0.46, 0.3, 0.44)) is True
    assert concentrated((0.5, 0.5, 0.9, 0.5, 0.46, 0.3, 0.44)) is False
    assert concentrated((0.0, 0.0)) is None


def test_roles_of_tokens() -> None:
    assert list(roles(9, (2, 6)).items()) == list(zip(ROLES, ([2], [3, 4], [5], [6], [7], [8]), strict=True))
    assert list(roles(5, (1, 2)).values()) == [[1], [], [1], [2], [3], [4]]
    assert list(roles(3, (1, 3)).values()) == [[1], [], [2], [], [], [2]]


def test_high_is_the_clean_probability_or_the_greatest(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    for plainly, released in zip(
        trace_facts(lm, FACTS, QUICK), trace_facts(lm, FACTS, replace(QUICK, high="max")), strict=True
    ):
        assert plainly.high == plainly.clean
        assert released.high == max(plainly.clean, float(plainly.restored.max()))
    assert any(one.restored.max() > one.clean for one in trace_facts(lm, FACTS, QUICK))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_the_noise_is_that_of_the_published_programs(tiny: Callable[[str], LM]) -> None:
    """``RandomState(1).randn(samples, tokens, d)``, added to the embedding of the subject alone."""
    lm, settings = tiny("llama"), replace(QUICK, samples=2, sigma=0.5)
    from harness.studies.causal import trace as module

    drawn = module._noise(lm, settings, 2, 0.5)
    assert drawn.shape == (3, 2, lm.arch.width)
    assert not drawn[0].any()
    first = [1.6243453636632417, -0.6117564136500754, -0.5281717522634557]  # numpy's, documented for seed 1
    assert drawn[1, 0, :3].tolist() == pytest.approx([0.5 * number for number in first])
    assert torch.equal(drawn, module._noise(lm, settings, 2, 0.5))
    assert not torch.equal(drawn, module._noise(lm, replace(settings, seed=2), 2, 0.5))


def test_seeds(tiny: Callable[[str], LM]) -> None:
    lm = tiny("neox")
    one, again, other = (trace_facts(lm, FACTS, replace(QUICK, seed=seed)) for seed in (1, 1, 2))
    for a, b, c in zip(one, again, other, strict=True):
        assert torch.equal(a.restored, b.restored)
        assert a.low == b.low != c.low
        assert a.clean == b.clean == c.clean
    assert torch.equal(trace_facts(lm, FACTS[::-1], QUICK)[0].restored, one[-1].restored)  # no fact depends on another


def test_how_strong_the_noise_is(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    subjects = [str(fact.subject) for fact in FACTS]
    weight = lm.parameter(f"{lm.arch.embedding}.weight").double()
    table = torch.cat([weight[lm.encode(subject)] for subject in subjects])
    assert noise_scale(lm, replace(QUICK, sigma="s3"), subjects) == pytest.approx(3 * float(table.std()), rel=1e-6)
    assert noise_scale(lm, replace(QUICK, sigma=0.25), subjects) == 0.25
    assert noise_scale(lm, PRESETS["hase"], subjects) == noise_scale(lm, PRESETS["rome"], subjects)
    for name, hase, rome in (("EleutherAI/gpt-j-6B", 0.094, 0.025), ("openai-community/gpt2-xl", 0.1, 0.1)):
        named = replace(lm, name=name)
        assert (
            noise_scale(named, PRESETS["hase"], subjects),
            noise_scale(named, replace(QUICK, sigma="rome"), subjects),
        ) == (hase, rome)


# --- which facts ------------------------------------------------------------------------------------------------------


def test_facts_that_the_model_does_not_know_are_left_out_and_named(taught: Callable[[str], LM]) -> None:
    lm = taught("gpt2")
    facts = [
        TracedFact("known", "Ada Velmont was born in", "Ada Velmont", "Paris"),
        TracedFact("unknown", "Hugo Lantern was born in", "Hugo Lantern", "Rome"),
        TracedFact("folded", "The home of Elena Marsh is", "Elena Marsh", "PRAGUE"),
    ]
    found = select_facts(lm, facts, replace(QUICK, known="continuation"))
    said = {one.fact.id for one in found.asked}, [(one.fact.id, one.reason) for one in found.skipped]
    assert said == ({"known", "folded"}, [("unknown", "unknown to the model")])
    assert "expected 'Rome', it says" in found.skipped[0].detail
    assert len(trace_facts(lm, facts, replace(QUICK, known="all"))) == 3
    strict = select_facts(lm, facts, replace(QUICK, known="prediction"))
    assert {one.fact.id for one in strict.asked} <= {"known"}  # ROME's compares case and looks at one token


def test_the_models_own_prediction_is_explained(taught: Callable[[str], LM]) -> None:
    lm, wrong = taught("gpt2"), TracedFact("x", "Ada Velmont was born in", "Ada Velmont", "Oslo")
    batch = lm.batch([lm.encode(wrong.prompt)])
    log_p = lm.model(input_ids=batch.ids).logits[0, -1].log_softmax(-1)
    (found,) = trace_facts(lm, [wrong], replace(QUICK, answer="prediction"))
    assert found.clean == pytest.approx(float(log_p.max().exp()), rel=1e-5)
    assert found.answer == lm.tokenizer.decode([int(log_p.argmax())])


def test_improbable_facts_can_be_left_out(taught: Callable[[str], LM]) -> None:
    lm = taught("gpt2")
    found = select_facts(
        lm, [FACTS[0], TracedFact("no", FACTS[0].prompt, FACTS[0].subject, "Rome")], replace(QUICK, threshold=0.5)
    )
    assert [one.fact.id for one in found.asked] == ["start"]
    assert [(one.fact.id, one.reason) for one in found.skipped] == [("no", "improbable")]


def test_what_cannot_be_traced_says_why(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    rows = {
        "no subject": TracedFact("a", "a plain prefix", None, "Rome"),
        "no true object": TracedFact("b", "Ada Velmont was born in", "Ada Velmont", None),
        "subject not found": TracedFact("c", "She was born in", "Ada Velmont", "Rome"),
        "too long": TracedFact("d", "Ada Velmont " + "and on " * 90, "Ada Velmont", "Rome"),
    }
    found = select_facts(lm, [*rows.values(), FACTS[0]], QUICK)
    assert [(one.fact.id, one.reason) for one in found.skipped] == [(fact.id, why) for why, fact in rows.items()]
    assert [one.fact.id for one in found.asked] == ["start"]
    with pytest.raises(DataError, match="none of 4 facts can be traced"):
        select_facts(lm, list(rows.values()), QUICK)


def test_edits_are_facts(tiny: Callable[[str], LM]) -> None:
    edit = Edit("start", "{} was born in", "Ada Velmont", "Rome", target_old="Paris")
    (of_edit,), (of_fact,) = trace_facts(tiny("gpt2"), [edit], QUICK), trace_facts(tiny("gpt2"), FACTS[:1], QUICK)
    assert torch.equal(of_edit.restored, of_fact.restored)
    twice = TracedFact.of(Edit("x", "Rome, and {}", "Rome", "a", target_old="b"))
    assert twice.start == 10  # the slot, not the first occurrence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window is 0, expected at least 1"),
        ({"samples": 0}, "samples is 0"),
        ({"sigma": -0.1}, "sigma is -0.1, expected a number above 0"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"threshold": 2.0}, "threshold is 2.0, expected a probability"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(QUICK, **change)  # type: ignore[arg-type]


def test_a_window_wider_than_the_model(tiny: Callable[[str], LM]) -> None:
    with pytest.raises(UsageError, match=r"window 5 is wider than the model: around each of its 3 layers .* at most 4"):
        trace_facts(tiny("gpt2"), FACTS, replace(QUICK, window=5))
    assert trace_facts(tiny("gpt2"), FACTS[:1], replace(QUICK, window=4))


def test_blocks_without_a_single_attention_module(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    each = tuple(replace(layer, attn=None) for layer in lm.arch.each)
    without = replace(lm, arch=replace(lm.arch, attn=None, each=each))
    with pytest.raises(ModelError, match="--arch attn="):
        trace_facts(without, FACTS, replace(QUICK, kind="attn"))
    assert trace_facts(without, FACTS[:1], QUICK)


def test_presets() -> None:
    assert preset("hase") == TraceSettings()
    assert preset("rome").window == 10
    with pytest.raises(UsageError, match=r"variant 'hse' does not exist .did you mean hase"):
        preset("hse")


def test_progress_and_order(tiny: Callable[[str], LM]) -> None:
    told: list[tuple[int, int]] = []
    found = trace_facts(tiny("gpt2"), FACTS, QUICK, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [one.fact.id for one in found] == ["start", "middle", "end"]
    assert found[1].tokens == tuple(tiny("gpt2").tokenizer.decode([i]) for i in tiny("gpt2").encode(FACTS[1].prompt))
