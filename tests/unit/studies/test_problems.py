"""The five editing problems: what is asked, under which noise, and how success is counted."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from editors.ft_l import BoundedFineTuning
from editors.memit import Memit
from editors.rome import Rome
from harness.editing.edit import Edit, Example, Probe
from harness.editing.registry import find
from harness.errors import DataError, UsageError
from harness.methods import descent
from harness.methods.descent import log_likelihood, tokenise
from harness.models.lm import LM
from harness.patches.patch import Patch, patched
from harness.studies.localization.localize import Grid, LocalizedEditor, _built, _Problem
from harness.studies.localization.problems import (
    PROBLEMS,
    PUBLISHED,
    Posed,
    ProblemSettings,
    SubjectNoise,
    layers_around,
    log_probabilities,
    loss_of,
    pose,
    problem_named,
    settings_for,
)
from harness.studies.localization.success import (
    essence_score,
    mean,
    neighborhood_score,
    overall,
    perplexity,
    rewrite_score,
)

CONTEXTS = ("{}", "Nobody knows. {}", "Everybody knows Iris Calder. {}")


def example(edit: Edit, paraphrase: str = "The home of {} is", neighbour: str = "Iris Calder was born in") -> Example:
    """An edit with two paraphrases and one neighbour."""
    asked = [("paraphrase", paraphrase.replace("{}", str(edit.subject))), ("paraphrase", f"{edit.subject} lives in")]
    asked += [("neighborhood", neighbour), ("neighborhood", "Greta Holm was born in")]
    return Example(edit, tuple(Probe(edit.id, kind, text, edit.target, "") for kind, text in asked))


@pytest.fixture
def facts() -> list[Example]:
    """Two facts that the taught models know."""
    return [
        example(Edit("a", "{} was born in", "Ada Velmont", "Rome", "Paris")),
        example(Edit("b", "Everybody knows that {} was born in", "Hugo Lantern", "Paris", "Oslo")),
    ]


def probability(lm: LM, edit: Edit) -> float:
    """The product of the probabilities of the target's tokens, from one plain pass."""
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    with torch.no_grad():
        p = lm.model(input_ids=torch.tensor([prompt + target])).logits[0].double().softmax(-1)
    return math.prod(float(p[len(prompt) - 1 + i, token]) for i, token in enumerate(target))


# ------------------------------------------------------------------------------------------------------------- success


def test_vectors_of_the_rewrite_score() -> None:
    assert rewrite_score(0.02, 0.90) == pytest.approx(0.897959, abs=1e-6)
    assert rewrite_score(0.30, 0.25) == 2e-8  # unclipped -0.071429
    assert rewrite_score(0.40, 0.05, erasure=True) == pytest.approx(0.875)
    assert rewrite_score(0.05, 0.40, erasure=True) == 0
    assert rewrite_score(1.0, 0.5) is None
    assert rewrite_score(0.0, 0.5, erasure=True) is None


def test_vectors_of_the_neighborhood_score() -> None:
    pairs = [(0.01, 0.05), (0.5, 0.0), (0.7, 0.9), (0.2, 0.2)]
    assert [neighborhood_score(*pair) for pair in pairs] == pytest.approx([0.959596, 0, 0.714286, 1], abs=1e-6)


def test_vectors_of_essence_and_perplexity() -> None:
    assert [essence_score(rise) for rise in (-0.7, 1.25, 5, 9)] == pytest.approx([1, 0.75, 0, 0])
    text = [-2.0, -1.0, -0.5, -0.5]
    assert perplexity(text, released=True) == pytest.approx(2.225541, abs=1e-6)
    assert perplexity(text) == pytest.approx(2.718282, abs=1e-6)


def test_vectors_of_the_overall_score() -> None:
    three = [0.897959, 0.50, 0.959596]
    assert overall(three) == pytest.approx(0.785852, abs=1e-6)
    assert overall(three, harmonic=True) == pytest.approx(0.721893, abs=1e-6)
    assert overall([*three, 0.75]) == pytest.approx(0.776889, abs=1e-6)
    assert overall([*three, 0.75], harmonic=True) == pytest.approx(0.728720, abs=1e-6)


def test_what_is_missing_stays_missing() -> None:
    assert overall([0.5, None, 0.5]) is None
    assert overall([]) is None
    assert mean([None, 0.5]) == 0.5
    assert mean([None]) is None
    assert overall([0.0, 1.0], harmonic=True) == 0.0


def test_what_is_no_number_is_missing_and_not_the_least_score() -> None:
    """A model that an edit broke gives probabilities that are none."""
    nan = math.nan
    assert [rewrite_score(0.1, nan), rewrite_score(0.1, nan, erasure=True), rewrite_score(nan, 0.1)] == [None] * 3
    assert [neighborhood_score(0.1, nan), neighborhood_score(nan, 0.1), essence_score(nan)] == [None] * 3
    assert perplexity([-2000.0]) == perplexity([-math.inf]) == math.inf
    assert essence_score(perplexity([-2000.0]) - 3.0) == 0.0


def test_a_sequence_has_the_product_of_its_tokens_probabilities(tiny, edits) -> None:
    """Not divided by the length: of two tokens .5 and .2 the probability is .1, not .316."""
    lm = tiny("llama")
    plain = [Edit(e.id, e.text, None, e.target) for e in edits]
    found = log_probabilities(lm, tokenise(lm, plain), budget=40)
    assert len(lm.continuation(edits[1].text, edits[1].continuation)) > 1
    assert [math.exp(v) for v in found] == pytest.approx([probability(lm, e) for e in edits], rel=1e-4)


def test_half_precision_does_not_round_the_logits(fresh, edits) -> None:
    """A hundred more for every token is no change of any probability; at a hundred bfloat16 knows half numbers."""
    lm = fresh("gptj", dtype=torch.bfloat16)
    asked = tokenise(lm, [Edit(e.id, e.text, None, e.target) for e in edits])
    plain, bias = log_probabilities(lm, asked), lm.parameter(f"{lm.arch.head}.bias")
    with torch.no_grad():
        bias.copy_(torch.full_like(bias, 100.0))
    assert log_probabilities(lm, asked) == pytest.approx(plain, abs=1e-3)


# ------------------------------------------------------------------------------------------------------------ problems


def test_what_each_problem_asks_for(taught, facts) -> None:
    lm = taught("gpt2")
    asked = {problem: pose(lm, facts, problem) for problem in PROBLEMS}
    said = {problem: [(c.edit.target, c.edit.direction) for c in posed.cases] for problem, posed in asked.items()}
    assert said["error_injection"] == [("Rome", "likelihood"), ("Paris", "likelihood")]
    for problem in ("fact_amplification", "fact_forcing"):
        assert said[problem] == [("Paris", "likelihood"), ("Oslo", "likelihood")]
    assert said["fact_erasure"] == [("Paris", "erasure"), ("Oslo", "erasure")]
    assert [posed.erases for posed in asked.values()] == [False, False, True, False, False]
    assert [posed.noise is not None for posed in asked.values()] == [False] * 4 + [True]
    assert asked["error_injection"].cases[0].prompts == {
        "rewrite": ("Ada Velmont was born in",),
        "paraphrase": ("The home of Ada Velmont is", "Ada Velmont lives in"),
        "neighborhood": ("Iris Calder was born in", "Greta Holm was born in"),
    }
    first = pose(lm, facts, "error_injection", settings=ProblemSettings(probes="released")).cases[0].prompts
    assert [len(prompts) for prompts in first.values()] == [1, 1, 1]


def test_only_what_the_model_gives_some_probability_can_be_erased(taught, facts) -> None:
    lm = taught("gpt2")
    rare = example(replace(facts[0].edit, id="rare", target_old="Lisbon"))
    assert probability(lm, replace(rare.edit, target="Lisbon")) < 0.02
    posed = pose(lm, [*facts, rare], "fact_erasure")
    assert [case.edit.id for case in posed.cases] == ["a", "b"]
    assert "probability" in posed.skipped["rare"]
    assert len(pose(lm, [*facts, rare], "fact_amplification").cases) == 3
    released = ProblemSettings(threshold="released")
    assert len(pose(lm, [*facts, rare], "fact_amplification", settings=released).cases) == 2
    with pytest.raises(DataError, match=r"none of 1 facts can be used .*asked for 0.02"):
        pose(lm, [rare], "fact_erasure")


def test_facts_without_subject_or_truth_are_left_out(taught, facts) -> None:
    odd = [Example(Edit("x", "Rome is", None, "old", "new")), Example(Edit("y", "{} is", "Ada Velmont", "old"))]
    posed = pose(taught("gpt2"), [*facts, *odd], "error_injection")
    assert posed.skipped == {"x": "it names no subject", "y": "it does not say what is true (target_old)"}


def test_a_reversal_is_the_greedy_continuation_of_the_noised_prompt(taught, facts) -> None:
    lm, settings = taught("gpt2"), ProblemSettings(sigma=2.0, reversal_tokens=3)
    posed = pose(lm, facts, "tracing_reversal", settings=settings)
    for fact, case in zip(facts, posed.cases, strict=True):
        ids, (begin, end) = lm.encode(fact.edit.text), lm.span(fact.edit.text, str(fact.edit.subject))
        noise = torch.tensor(2.0 * np.random.RandomState(1).randn(1, end - begin, lm.arch.width)[0])
        for _ in range(3):
            embedded = lm.module(lm.arch.embedding)(torch.tensor([ids])).detach().clone()
            embedded[0, begin:end] += noise.float()
            with torch.no_grad():
                ids = [*ids, int(lm.model(inputs_embeds=embedded).logits[0, -1].argmax())]
        assert case.edit.target == str(lm.tokenizer.decode(ids[-3:])).removeprefix(" ")
    one = pose(lm, facts, "tracing_reversal", settings=ProblemSettings(sigma=1e-6)).cases[0].edit
    assert one.target == "Paris"  # hardly any noise: what is true, and as long


def test_the_released_reversal_holds_the_prompt(taught, facts) -> None:
    lm = taught("gpt2")
    posed = pose(lm, facts, "tracing_reversal", settings=ProblemSettings(reversal="released"))
    for case in posed.cases:
        assert case.edit.target.startswith(case.edit.text)
        assert len(lm.encode(case.edit.target)) == 12


# --------------------------------------------------------------------------------------------------------------- noise


def seen(lm: LM, noise: SubjectNoise, rows: list[list[int]]) -> torch.Tensor:
    """What the noise adds to the embeddings of some rows."""
    batch, kept = lm.batch(rows), []
    module = lm.module(lm.arch.embedding)
    plain = module(batch.ids)
    with patched(lm, Patch(hooks={lm.arch.embedding: noise})):
        handle = module.register_forward_hook(lambda _m, _a, output: kept.append(output.detach()))
        with torch.no_grad():
            lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        handle.remove()
    return kept[0] - plain


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noise_stands_on_the_subject_of_each_row(tiny, facts, family) -> None:
    lm = tiny(family)
    noise = SubjectNoise.of(lm, [e.edit for e in facts], sigma=0.5, seed=1)
    texts = [
        ("Ada Velmont was born in", "Ada Velmont"),
        ("Nobody knows. Ada Velmont was born in", "Ada Velmont"),
        ("The home of Hugo Lantern is", "Hugo Lantern"),
        ("Hugo Lantern knows Ada Velmont", "Ada Velmont"),  # the last one
        ("Greta Holm was born in", None),
    ]
    change = seen(lm, noise, [lm.encode(text) for text, _ in texts])
    for row, (text, subject) in zip(change, texts, strict=True):
        begin, end = lm.span(text, subject) if subject else (0, 0)
        wanted = torch.zeros_like(row)
        drawn = 0.5 * np.random.RandomState(1).randn(1, end - begin, lm.arch.width)[0]
        wanted[begin:end] = torch.from_numpy(drawn).float()
        assert torch.allclose(row, wanted, atol=1e-6)
    owned = replace(noise, owners=[1, 0, 0])
    change = seen(lm, owned, [lm.encode(texts[i][0]) for i in (3, 3, 2)])
    marked = [row.abs().sum(1).nonzero()[:, 0].tolist() for row in change]
    spans = [lm.span(texts[3][0], who) for who in ("Hugo Lantern", "Ada Velmont")]
    assert marked == [list(range(*spans[0])), list(range(*spans[1])), []]


def test_rows_take_their_noises_in_turn(tiny, facts) -> None:
    lm = tiny("gpt2")
    noise = replace(SubjectNoise.of(lm, [facts[0].edit], sigma=0.5, seed=1), samples=2)
    change = seen(lm, noise, [lm.encode(facts[0].edit.text)] * 4)
    assert torch.equal(change[0], change[2])
    assert torch.equal(change[1], change[3])
    assert not torch.equal(change[0], change[1])
    assert torch.equal(change[0], seen(lm, replace(noise, samples=1), [lm.encode(facts[0].edit.text)])[0])


def test_released_noise_stands_where_the_bare_prompt_has_its_subject(tiny, facts) -> None:
    lm = tiny("gpt2")
    noise = replace(SubjectNoise.of(lm, [facts[0].edit], sigma=0.5, seed=1), released=True)
    change = seen(lm, noise, [lm.encode(f"Nobody knows. {facts[0].edit.text}")])
    begin, end = lm.span(facts[0].edit.text, "Ada Velmont")
    assert change[0].abs().sum(1).nonzero()[:, 0].tolist() == list(range(begin, end))


def test_released_noise_is_new_in_every_row_and_every_pass_and_begins_with_the_seed(taught, facts) -> None:
    lm = taught("gpt2")
    posed = pose(lm, facts, "fact_forcing", settings=ProblemSettings(sigma=0.5, samples=2))
    ids = [lm.encode(facts[0].edit.text)] * 3

    def states(stream: bool) -> list[torch.Tensor]:
        noise = posed.state(lm, 2, stream=stream).hooks[lm.arch.embedding]
        return [seen(lm, noise, ids), seen(lm, noise, ids)]

    begin, end = lm.span(facts[0].edit.text, "Ada Velmont")
    first, second = (change[:, begin:end].double() for change in states(stream=True))
    drawn = 0.5 * np.random.RandomState(1).randn(6, end - begin, first.shape[2])
    assert torch.allclose(torch.cat([first, second]), torch.from_numpy(drawn), atol=1e-5)
    assert torch.equal(states(stream=True)[0], states(stream=True)[0])
    fixed = states(stream=False)
    assert torch.equal(*fixed)
    assert torch.equal(fixed[0][0], fixed[0][2])
    assert not torch.equal(fixed[0][0], fixed[0][1])


@pytest.mark.parametrize("method", ["rome@1", "ft_l@1"])
def test_an_edit_is_forced_under_its_own_stream_of_noise(taught, facts, method) -> None:
    """The same whether it is made alone or beside another, and not what it is under a noise that stays."""
    lm, one = taught("gpt2"), LocalizedEditor.parse(method)
    settings = {"rome.contexts": CONTEXTS, "rome.cov_tokens": 4000, "rome.v_steps": 4, "ft_l.steps": 4}
    found = {}
    for rows in ("fixed", "released"):
        asked = ProblemSettings(sigma=0.5, samples=2, noise_rows=rows)
        grid = Grid(methods=(one,), asked=asked, settings=settings)
        posed = pose(lm, facts, "fact_forcing", settings=asked)
        made = _Problem(lm, grid, posed, {}, lambda *_: None)
        editor = made._ready(_built(lm, grid, one, "fact_forcing", 1))
        edits = [case.edit for case in posed.cases]
        both, alone = made._edited(editor, edits), made._edited(editor, edits[1:])
        (name, *_) = both[1].weights
        found[rows] = both[1].weights[name].dense()
        assert torch.allclose(found[rows], alone[0].weights[name].dense(), atol=1e-6)
    assert float((found["fixed"] - found["released"]).norm()) > 1e-2 * float(found["fixed"].norm())


def test_cached_generation_under_noise_is_that_without_a_cache(taught, facts) -> None:
    lm = taught("gpt2")
    noise = SubjectNoise.of(lm, [facts[0].edit], sigma=0.5, seed=1)
    ids = torch.tensor([lm.encode(facts[0].edit.text)])
    with patched(lm, Patch(hooks={lm.arch.embedding: noise})), torch.no_grad():
        said = [
            lm.model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache, pad_token_id=0).tolist()
            for cache in (True, False)
        ]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "editor",
    [
        BoundedFineTuning(layers=(0,), loss="target_new", lr=2e-3, norm_constraint=2e-2, steps=15, normalisation="sum"),
        Rome(layers=(0,), v_steps=15, clamp=20.0, v_weight_decay=0.0, cov_tokens=4000, contexts=CONTEXTS),
        Memit(layers=(0, 1), v_steps=30, clamp=20.0, v_weight_decay=0.0, cov_tokens=4000, contexts=("{}",), lam=1e-2),
    ],
    ids=lambda editor: editor.name,
)
def test_every_editor_forces_a_fact_through_the_noise(taught, facts, editor) -> None:
    lm = taught("gpt2")
    posed = pose(lm, facts, "fact_forcing", settings=ProblemSettings(sigma=0.5, samples=2))
    case, before = posed.cases[0], lm.fingerprint()
    if editor.needs_subject:
        editor.prior(lm, None, editor.edited_layers(lm))  # second moments of the model without noise
    with patched(lm, posed.state(lm)):
        plain = probability(lm, case.edit)
    with patched(lm, posed.state(lm, samples=2 if editor.name == "ft_l" else 1)):
        patch = editor.edit(lm, [case.edit] * (2 if editor.name == "ft_l" else 1))
    assert lm.fingerprint() == before
    with patched(lm, Patch(patch.weights)), patched(lm, posed.state(lm)):
        assert probability(lm, case.edit) > plain + 0.3


def test_other_problems_hold_nothing(taught, facts) -> None:
    lm = taught("gpt2")
    posed = pose(lm, facts, "error_injection")
    assert isinstance(posed, Posed)
    assert posed.state(lm).empty


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_problem_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"problem 'fact_erasur' does not exist.*fact_erasure.*or all"):
        problem_named("fact_erasur")
    assert problem_named("Fact-Erasure") == "fact_erasure"


@pytest.mark.parametrize(
    ("layer", "width", "layers", "wanted"),
    [(5, 10, 28, range(10)), (4, 10, 28, range(9)), (27, 10, 28, range(22, 28)), (5, 3, 28, range(4, 7))],
)
def test_vectors_of_the_window(layer, width, layers, wanted) -> None:
    assert layers_around(layer, width, layers) == tuple(wanted)


def test_a_window_wider_than_the_model() -> None:
    assert layers_around(0, 5, 4) == (0, 1, 2)
    with pytest.raises(UsageError, match="window 7 is wider than the model: around each of its 4 layers"):
        layers_around(0, 7, 4)
    with pytest.raises(UsageError, match="expected at least 1 layer"):
        layers_around(0, 0, 4)


@pytest.mark.parametrize("change", [{"samples": 0}, {"reversal_tokens": 0}, {"least": 1.5}])
def test_settings_out_of_range(change) -> None:
    with pytest.raises(UsageError, match="expected"):
        ProblemSettings(**change)


# ------------------------------------------------------------------------------------------------------------- presets


def test_the_papers_hyperparameters() -> None:
    model = "EleutherAI/gpt-j-6B"
    one = settings_for(model, "ft_l", problem="error_injection", window=1)
    assert (one["norm_constraint"], one["steps"], one["lr"]) == (1e-4, 25, 5e-4)
    assert settings_for(model, "ft_l", problem="tracing_reversal", window=5)["norm_constraint"] == 2e-5
    forced = settings_for(model, "ft_l", problem="fact_forcing", window=5)
    assert (forced["norm_constraint"], forced["steps"]) == (1e-4, 50)
    kl = [settings_for(model, name, problem="error_injection", window=1)["kl_factor"] for name in ("rome", "memit")]
    assert kl == [1.0, 0.9]
    assert settings_for(model, "rome", problem="fact_erasure", window=1)["kl_factor"] == 0.0625
    steps = [settings_for(model, "rome", problem=problem, window=1)["v_steps"] for problem in PROBLEMS]
    assert steps == [20, 20, 21, 20, 25]
    assert settings_for(model, "memit", problem="fact_forcing", window=5)["v_steps"] == 25
    assert settings_for("gpt2-xl", "ft_l", problem="fact_forcing", window=1)["norm_constraint"] == 5e-4
    assert settings_for("mini", "ft_l", problem="fact_erasure", window=1) == {}
    assert settings_for("mini", "rome", problem="fact_erasure", window=1) == {}
    assert PUBLISHED.least == 0.02


def test_what_a_problem_asks_for_belongs_to_every_model_and_every_editor_with_such_a_loss() -> None:
    summed = {"normalisation": "sum"}
    assert loss_of(find("ft_l")) == loss_of(find("ft")) == {"loss": "target_new", **summed}
    assert all(loss_of(find(name)) == summed for name in ("full", "lora", "ft_m", "locft"))
    # A field of the same name that means something else is left alone; value optimisation has none.
    assert all(loss_of(find(name)) == {} for name in ("ultraedit", "rome", "memit", "grace", "none"))


@pytest.mark.parametrize("model", ["mini", "mini-llama", "EleutherAI/gpt-j-6B", "someone/other"])
@pytest.mark.parametrize("name", ["ft_l", "ft", "ft_m", "locft", "lora"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_cell_of_the_grid_minimises_the_whole_answer(taught, model, name, problem) -> None:
    lm = copy.copy(taught("gpt2"))
    object.__setattr__(lm, "name", model)
    editor = _built(lm, Grid(methods=(LocalizedEditor.parse(name),)), LocalizedEditor.parse(name), problem, 1)
    assert editor.hyperparameters()["normalisation"] == "sum"
    assert editor.hyperparameters().get("loss", "target_new") == "target_new"


@pytest.mark.parametrize("name", ["ft_l", "ft", "ft_m", "locft", "lora"])
def test_erasure_descends_on_the_probability_of_the_whole_answer(taught, facts, name, monkeypatch) -> None:
    """Of several tokens, and not of a mean token, whose probability is a root of it."""
    lm, seen, plain = taught("gpt2"), [], descent._loss
    edit = replace(facts[0].edit, target="Rome and Oslo and Paris", direction="erasure")

    def watched(*args, **kwargs):
        seen.append(plain(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(descent, "_loss", watched)
    _built(lm, Grid(methods=(LocalizedEditor.parse(name),)), LocalizedEditor.parse(name), "fact_erasure", 1).edit(
        lm, [edit]
    )
    said = tokenise(lm, [edit])
    with torch.no_grad():
        wanted = float(log_likelihood(lm, said).double().sum().exp())
    assert len(said[0].target) > 2
    assert float(seen[0].detach()) == pytest.approx(wanted, rel=1e-4)
