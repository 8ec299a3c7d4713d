"""Full finetuning and LoRA with the settings of the canonical examples: divergence, schedule, accumulation, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.full import FullFinetuning
from editors.lora import Lora
from harness.editing.edit import Edit
from harness.editing.editor import Wrapper
from harness.editing.registry import compose
from harness.editing.schedule import require_editable
from harness.errors import DataError, UsageError
from harness.methods.descent import DescentSettings, descend, passes
from harness.methods.finetuning import CANONICAL
from harness.methods.kl_regulariser import KLRegulariser, kl_regulariser, summed_kl
from harness.models.lm import LM
from harness.patches.patch import Patch, patched
from harness.studies.sweeps.draws import PUBLISHED, block, draw_settings, method_named


def edits(count: int) -> list[Edit]:
    cities = ["Rome", "Paris", "Oslo", "Lisbon", "Vienna", "Prague", "Athens"]
    return [Edit(str(i), f"Ada Velmont {i} lives in", None, cities[i % 7]) for i in range(count)]


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Plain descent in place of Adam; gives the learning rate of every step that was made."""
    rates: list[float] = []

    class Plain(torch.optim.SGD):
        def __init__(self, free: Any, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
            super().__init__(free, lr=lr)

        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Plain)
    return rates


class Half(Wrapper):
    """Half of every increment."""

    name = "half"

    def increment(self, lm: LM, patch: Patch) -> Patch:
        return Patch({name: delta * 0.5 for name, delta in patch.weights.items()})


def change(lm: LM, some: Sequence[Edit], name: str, **settings: Any) -> Tensor:
    return (
        descend(
            lm,
            some,
            [name],
            settings=DescentSettings(**{"lr": 1.0, "steps": 1, "threshold": 0.0, "batch_size": 1, **settings}),
        )
        .deltas[name]
        .dense()
    )


# --- the specification's vectors --------------------------------------------------------------------------------------


def test_vector_15_divergence_runs_from_the_unedited_to_the_edited_model() -> None:
    before, after = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    assert float(summed_kl(before[None], after[None])) == pytest.approx(0.0252672, abs=1e-7)
    assert float(summed_kl(after[None], before[None])) == pytest.approx(0.0258154, abs=1e-7)
    rows = (before.double().expand(500, 3), after.double().expand(500, 3))
    assert 0.3 * float(summed_kl(*rows)) == pytest.approx(3.79007, abs=1e-4)


def test_vector_16_the_rate_falls_like_a_cosine_once_a_pass(
    tiny: Callable[[str], LM], plain_steps: list[float]
) -> None:
    lm = tiny("gpt2")
    change(lm, edits(2), lm.down(1), lr=0.01, steps=10, cosine=True)
    wanted = [.01, .00975528, .00904508, .00793893, .00654508, .005, .00345492, .00206107, .00095492,
              .00024472]  # fmt: skip
    assert plain_steps[::2] == plain_steps[1::2] == pytest.approx(wanted, abs=5e-9)


def test_vector_17_faithful_accumulation_steps_with_the_fifth_gradient_alone(
    tiny: Callable[[str], LM], plain_steps: list[float]
) -> None:
    lm, some = tiny("gpt2"), edits(7)
    found = change(lm, some, lm.down(1), accumulate=5, accumulation="faithful")
    assert plain_steps == [1.0]
    alone = change(lm, some[4:5], lm.down(1))
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-8)


def test_fixed_accumulation_takes_means_and_the_rest_of_a_pass(
    tiny: Callable[[str], LM], plain_steps: list[float]
) -> None:
    lm, some = tiny("gpt2"), edits(7)
    found = change(lm, some, lm.down(1), accumulate=5)
    assert len(plain_steps) == 2
    # Batches of five say the same: their loss is the mean over edits.
    torch.testing.assert_close(found, change(lm, some, lm.down(1), batch_size=5), rtol=1e-4, atol=1e-7)


def test_vector_18_the_block_of_layers_of_lora() -> None:
    wanted = {(12, .5): (3, 9), (12, .3): (4, 8), (12, .4): (4, 9), (12, .9): (1, 12), (6, .9): (0, 6),
              (32, .1): (14, 18), (28, .55): (6, 22), (24, .9): (1, 23)}  # fmt: skip
    assert {key: block(*key) for key in wanted} == wanted
    assert draw_settings({"layers": {"block": [0.9, 0.9]}}, 0, 12, where="x")["layers"] == list(
        range(1, 12)
    )  # 12 does not exist


# --- the pull towards the unedited model ------------------------------------------------------------------------------


def test_the_pull_is_the_weighted_divergence_of_the_whole_text(tiny: Callable[[str], LM]) -> None:
    lm, name = tiny("neox"), tiny("neox").down(1)
    ids = [5, 6, 7, 8]
    held = {name: lm.parameter(name) * 1.5}
    with torch.no_grad():
        found = float(KLRegulariser(0.3, repeat(ids))(lm, held))
        before = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        after = torch.func.functional_call(lm.model, held, kwargs={"input_ids": torch.tensor([ids])}).logits[0]
        after = after.double().log_softmax(-1)
    assert found == pytest.approx(0.3 * float((before.exp() * (before - after)).sum()), rel=1e-4)
    assert float(KLRegulariser(0.3, repeat(ids))(lm, {})) == pytest.approx(0.0, abs=1e-6)


def test_a_stronger_pull_leaves_less_change(tiny: Callable[[str], LM], text: str) -> None:
    lm = tiny("gpt2")
    quick = FullFinetuning(lr=1e-3, steps=4, kl_text=text)
    sizes = []
    for weight in (0.0, 30.0):
        with patched(lm, replace(quick, kl=weight).edit(lm, edits(3))):
            after = lm.model(input_ids=torch.tensor([lm.encode("Greta Holm has never seen Rome.")])).logits[0]
        before = lm.model(input_ids=torch.tensor([lm.encode("Greta Holm has never seen Rome.")])).logits[0]
        sizes.append(float(summed_kl(before, after)))
    assert sizes[1] < 0.5 * sizes[0]


def test_texts_of_the_pull_are_drawn_from_the_seed(tiny: Callable[[str], LM], text: str) -> None:
    lm = tiny("gpt2")

    def first(seed: int) -> list[list[int]]:
        found = kl_regulariser(lm, weight=0.1, source=text, seed=seed)
        assert found is not None
        return [next(found.texts) for _ in range(8)]

    assert first(0) == first(0) != first(1)
    assert all(2 <= len(ids) <= lm.context for ids in first(0))
    assert kl_regulariser(lm, weight=0.0, source=text, seed=0) is None


def test_a_text_of_the_pull_that_is_too_short_is_told(tiny: Callable[[str], LM], tmp_path: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a\n")
    with pytest.raises(DataError, match=r"short.txt: no text of two tokens"):
        kl_regulariser(tiny("gpt2"), weight=0.1, source=str(path), seed=0)


# --- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: FullFinetuning(lr=1e-3), lambda: Lora(lr=1e-2, steps=4, rank=2)])
def test_the_change_after_each_pass_is_given_and_the_last_is_the_edit(
    make: Callable[[], Any], tiny: Callable[[str], LM], text: str
) -> None:
    lm = tiny("llama")
    editor = replace(
        make(), steps=3, batch_size=1, threshold=0.0, kl=0.1, kl_text=text, shuffle=True, schedule="cosine"
    )
    before = lm.fingerprint()
    said, found = [], []
    for done in editor.passes(lm, edits(4)):
        assert lm.fingerprint() == before
        with patched(lm, done.patch):
            said.append(done.loss)
        found.append({name: delta.dense().clone() for name, delta in done.patch.weights.items()})
    assert lm.fingerprint() == before
    assert len(found) == 3
    assert said[0] > said[2]
    last = editor.edit(lm, edits(4))
    assert set(last.weights) == set(found[-1])
    for name, delta in last.weights.items():
        torch.testing.assert_close(found[-1][name], delta.dense())
        assert not torch.equal(found[0][name], found[-1][name]) or "q_proj" in name


def test_a_method_of_one_pass_gives_its_edit_and_wrappers_change_each(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    plain = compose("ft_m").build(lm, {"steps": 2}, seed=0)
    (only,) = plain.passes(lm, edits(2))
    assert only.loss is None
    (one,) = Half(plain).passes(lm, edits(2))
    for name, delta in only.patch.weights.items():
        torch.testing.assert_close(one.patch.weights[name].dense(), delta.dense() / 2)


def test_full_finetuning_trains_tied_weights_once(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    patch = FullFinetuning(lr=1e-3, steps=1).edit(lm, edits(2))
    assert set(patch.weights) == {name for name, _ in lm.model.named_parameters()}
    assert "lm_head.weight" not in patch.weights


def test_every_direction_moves_the_way_it_says(taught: Callable[[str], LM]) -> None:
    lm = taught("gpt2")
    wanted = [
        Edit("a", "Ada Velmont was born in", None, "Rome", direction="unlikelihood"),
        Edit("b", "The home of Hugo Lantern is", None, "Oslo", direction="contrast", against="Paris"),
        Edit("c", "Elena Marsh was born in", None, "Oslo", direction="balance", against="Paris"),
    ]
    losses = list(
        passes(lm, wanted, [lm.down(2)], settings=DescentSettings(lr=3e-3, steps=6, batch_size=3, threshold=0.0))
    )
    assert losses[-1].losses[0] < losses[0].losses[0] - 1


# --- the whole prompt as the subject ----------------------------------------------------------------------------------


def test_the_standard_subject_of_memit_is_the_prompt(tiny: Callable[[str], LM], text: str) -> None:
    lm = replace(tiny("gpt2"), text=text)
    asked = [Edit("a", "{} was born in", "Ada Velmont", "Rome"), Edit("b", "Hugo lives in", None, "Oslo")]
    settings = {"layers": [0, 1], "v_steps": 3, "cov_tokens": 2000, "lam": 1.0, "contexts": ["{}"]}
    standard = compose("memit+prefix").build(lm, settings, seed=0).edit(lm, asked)
    whole = [Edit(e.id, "{}", e.text, e.target) for e in asked]
    plain = compose("memit").build(lm, settings, seed=0).edit(lm, whole)
    for name, delta in plain.weights.items():
        torch.testing.assert_close(standard.weights[name].dense(), delta.dense())


# --- drawn settings ---------------------------------------------------------------------------------------------------


def test_drawn_settings_lie_in_the_published_ranges() -> None:
    found = [draw_settings(PUBLISHED["lora"].settings, i, 12, where="lora") for i in range(200)]
    assert all(10**-6.5 <= s["lr"] <= 1e-2 and 0.1 <= s["kl"] <= 1 and 1 <= s["rank"] <= 256 for s in found)
    assert all(set(s["layers"]) <= set(range(12)) and s["alpha"] == 8 for s in found)
    assert {s["accumulate"] for s in found} == {5}
    assert len({s["lr"] for s in found}) == 200
    assert found[0] == draw_settings(PUBLISHED["lora"].settings, 0, 12, where="lora")
    full = [draw_settings(PUBLISHED["full"].settings, i, 12, where="full") for i in range(200)]
    assert all(10**-8.5 <= s["lr"] <= 1e-4 for s in full)
    memit = [draw_settings(PUBLISHED["memit-oracle"].settings, i, 12, where="memit") for i in range(200)]
    assert all(
        10**-1.35 <= s["clamp"] <= 1 and 9000 <= s["lam"] <= 75000 and 0.001 <= s["kl_factor"] <= 0.1 for s in memit
    )
    senses = [
        draw_settings(method_named("senses", "country_capital", {}).settings, i, 12, where="s") for i in range(100)
    ]
    assert all(100 <= s["unusual"] <= 3162 and isinstance(s["unusual"], int) and 5 <= s["k"] <= 11 for s in senses)
    assert method_named("senses", "temporal", {}).settings["unusual"] == 1000.0


def test_published_methods_can_be_built_with_what_was_drawn(tiny: Callable[[str], LM]) -> None:
    for name in ("full", "lora", "memit-standard", "memit-oracle"):
        found = method_named(name, "country_capital", {})
        built = compose(found.editor).build(tiny("gpt2"), draw_settings(found.settings, 3, 3, where=name), seed=7)
        assert getattr(built.root, "seed", 7) == 7
    for name in ("senses", "ensemble"):
        found = method_named(name, "country_capital", {})
        built = compose(found.editor).build(tiny("backpack"), draw_settings(found.settings, 3, 3, where=name), seed=7)
        assert (built.name, getattr(built, "seed", 7)) == ({"ensemble": "companion"}.get(name, name), 7)
    assert method_named("ensemble", "temporal", {}).settings == method_named("senses", "temporal", {}).settings
    assert CANONICAL["beta2"] == 0.995


def test_distributions_can_be_replaced_and_mistakes_are_named() -> None:
    found = method_named("full", "x", {"lr": {"choice": [1e-3]}, "editor": "ft_m"})
    assert (found.editor, found.settings["lr"], found.settings["steps"]) == ("ft_m", {"choice": [1e-3]}, 10)
    assert method_named("rome+rect", "x", {}).editor == "rome+rect"
    with pytest.raises(UsageError, match=r"full, lr: 'log' is not a distribution \(did you mean log10, block"):
        draw_settings({"lr": {"log": [1, 2]}}, 0, 4, where="full")
    with pytest.raises(UsageError, match=r"full, lr: log10 of \[1\]; write for example"):
        draw_settings({"lr": {"log10": [1]}}, 0, 4, where="full")
    for value in ("full", {"full": 1}):  # a text is no list of letters, a mapping none of its keys
        with pytest.raises(UsageError, match=r"full, lr: choice of .*; write for example"):
            draw_settings({"lr": {"choice": value}}, 0, 4, where="full")


def test_an_order_is_drawn_anew_each_pass(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    quick = FullFinetuning(lr=1e-9, steps=3, shuffle=True)
    losses = [tuple(t.losses) for t in passes(lm, edits(6), [lm.down(1)], settings=quick.settings())]
    assert len(set(losses)) == 3
    for row in losses:
        assert sorted(row) == pytest.approx(sorted(losses[0]), abs=1e-4)
    require_editable(quick, lm, edits(6), mode="batch")
