"""REMEDI's benchmarks: numbers by hand, questions one by one, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.remedi import Remedi
from harness.editing.edit import Edit
from harness.editing.registry import find
from harness.errors import DataError, UsageError
from harness.exam.statistics import estimate
from harness.exam.text_metrics import consistency, vectorizer
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched
from harness.studies.remedi import asking, bench, benching, classify
from harness.studies.remedi.asking import PatchedPrompt, hidden_states, mention, next_log_p, sampled, target_log_p
from harness.studies.remedi.bench import BenchMethod, compared, correlation
from harness.studies.remedi.classify import Probes, directed, matthews, rated, standardised
from harness.studies.remedi.entities import EntityCase, in_context

FAMILIES = ["gpt2", "llama"]
WHO = ["Ada Velmont", "Hugo Lantern", "Elena Marsh", "Rosa Delgado"]
WHERE = ["Rome", "Paris", "Oslo", "Lisbon"]


def case(i: int, **more: Any) -> EntityCase:
    edit = Edit(str(i), "{} was born in", WHO[i], WHERE[i], WHERE[i - 1])
    asked = {"paraphrases": [f"The home of {WHO[i]} is", f"Everybody knows {WHO[i]} in"], "neighborhood": [], **more}
    return EntityCase(str(i), edit, f"The home of {WHO[i]} is", WHERE[i], WHERE[i - 1], asked)


def remedi(lm: LM, seed: int = 0) -> Remedi:
    """An editor that was not taught, strong enough to change every answer."""
    draw = torch.Generator().manual_seed(seed)
    width = lm.arch.width
    learned = {"weight": torch.randn(width, width, generator=draw), "bias": torch.randn(width, generator=draw)}
    return Remedi(layer=1, learned=learned)


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_that_share_a_pass_are_each_alone(tiny: Callable[[str], LM], family: str) -> None:
    """Hooks side by side; a change of weights held alone; texts of several lengths: as one question after the other."""
    lm, cases = tiny(family), [case(i) for i in range(4)]
    patches = BenchMethod("remedi", remedi(lm)).patches(lm, cases)
    down = lm.down(1)
    out, width = lm.matrix(down).shape
    change = Patch(weights={down: LowRank(torch.arange(out)[:, None] / out, torch.ones(1, width))})
    questions = [
        PatchedPrompt(text, patch)
        for one, patch in zip(cases, patches, strict=True)
        for text in (one.prompt, f"Nobody knows. {one.prompt}", cases[0].prompt)
    ]
    questions += [PatchedPrompt(cases[1].prompt, change), PatchedPrompt(cases[1].prompt, Patch())]
    found = next_log_p(lm, questions, [WHERE] * len(questions))
    whole = target_log_p(lm, questions, ["Rome, Italy"] * len(questions))
    for question, row, together in zip(questions, found, whole, strict=True):
        head, tail = lm.encode(question.text), lm.continuation(question.text, " Rome, Italy")
        firsts = [lm.continuation(question.text, f" {where}")[0] for where in WHERE]
        with patched(lm, question.patch), torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
        assert row == pytest.approx(logits[len(head) - 1, firsts].tolist(), abs=1e-4)
        steps = logits[len(head) - 1 : -1]
        assert together == pytest.approx(float(sum(steps[i, t] for i, t in enumerate(tail))), abs=1e-4)
    assert found[-1] != pytest.approx(found[-2], abs=1e-3)
    assert found[0] != pytest.approx(next_log_p(lm, [PatchedPrompt(cases[0].prompt, Patch())], [WHERE])[0], abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_drawn_token_is_one_of_the_five_likeliest_under_the_rows_own_patch(
    tiny: Callable[[str], LM], family: str
) -> None:
    lm, cases = tiny(family), [case(i) for i in range(3)]
    patches = BenchMethod("remedi", remedi(lm)).patches(lm, cases)
    rows = [lm.encode(text) for text in (cases[0].prompt, f"Nobody knows. {cases[1].prompt}", cases[2].prompt)]
    drawn = asking._drawn(lm, rows, patches, [30] * 3, seed=1)
    assert drawn != asking._drawn(lm, rows, [Patch()] * 3, [30] * 3, seed=1)
    for row, patch, ids in zip(rows, patches, drawn, strict=True):
        ids = ids[: ids.index(lm.tokenizer.eos_token_id, len(row)) + 1] if lm.tokenizer.eos_token_id in ids[len(row) :] else ids  # fmt: skip  # noqa: E501, PLW2901
        assert ids[: len(row)] == row
        assert len(row) < len(ids) <= 30
        with patched(lm, patch), torch.no_grad():
            likely = lm.model(input_ids=torch.tensor([ids])).logits[0].topk(5).indices.tolist()
        assert all(ids[at] in likely[at - 1] for at in range(len(row), len(ids)))


def test_sampled_texts_are_seeded(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    questions = [PatchedPrompt(case(i).prompt, Patch()) for i in range(3)]
    before = torch.random.get_rng_state()
    texts = sampled(lm, questions, length=40, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert texts == sampled(lm, questions, length=40, seed=1) != sampled(lm, questions, length=40, seed=2)
    assert all(text.startswith(question.text) for question, text in zip(questions, texts, strict=True))


def test_a_text_ends_where_the_model_does(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    long = "Ada Velmont was born in Rome. " * 4
    question, ids = PatchedPrompt(long.strip(), Patch()), lm.encode(long.strip())
    assert len(ids) < len(asking._drawn(lm, [ids], [Patch()], [lm.context], seed=0)[0]) <= lm.context
    assert sampled(lm, [question], length=3, seed=0) == [long.strip()]  # already longer than asked for
    with pytest.raises(DataError, match=r"has \d+ tokens, but tiny-gpt2 takes 96"):
        next_log_p(lm, [PatchedPrompt(long * 6, Patch())], [["Rome"]])


def test_what_a_patch_puts_in_front_is_no_part_of_a_text(tiny: Callable[[str], LM]) -> None:
    """An editor of prompts (IKE): its demonstrations are read, and neither counted nor scored."""
    lm, one = tiny("gpt2"), case(0)
    shown = "Everybody knows that Iris Calder lives in Oslo. "
    told = Patch(prompt=lambda text: shown + text)
    for length in (20, 30):
        (text,) = sampled(lm, [PatchedPrompt(one.prompt, told)], length=length, seed=1)
        (whole,) = sampled(
            lm, [PatchedPrompt(shown + one.prompt, Patch())], length=length + len(lm.encode(shown)), seed=1
        )
        assert shown + text == whole
        assert text.startswith(one.prompt)
        assert text != one.prompt
    told = Patch(prompt=lambda text: "So. " + text)
    (text,) = bench.essences(lm, BenchMethod("none"), [one], patches=[told], seed=1, length=96).values()
    assert text
    assert "excerpt" not in text


def test_half_precision_does_not_round_the_logits(fresh: Callable[..., LM]) -> None:
    """A hundred more for every token is no change of any probability; at a hundred bfloat16 knows half numbers."""
    lm = fresh("gptj", dtype=torch.bfloat16)
    questions, wanted = [PatchedPrompt(case(i).prompt, Patch()) for i in range(4)], [WHERE] * 4
    plain = next_log_p(lm, questions, wanted), target_log_p(lm, questions, WHERE)
    bias = lm.parameter(f"{lm.arch.head}.bias")
    with torch.no_grad():
        bias.copy_(torch.full_like(bias, 100.0))
    for found, before in zip(next_log_p(lm, questions, wanted), plain[0], strict=True):
        assert found == pytest.approx(before, abs=1e-3)
    assert target_log_p(lm, questions, WHERE) == pytest.approx(plain[1], abs=1e-3)


def test_the_second_mention(tiny: Callable[[str], LM]) -> None:
    lm, text = tiny("gpt2"), "Ada Velmont sings. The home of Ada Velmont is"
    assert [mention(lm, text, entity="Ada Velmont", which=n) for n in (1, 2)] == [
        lm.span(text, "Ada Velmont", at)[1] - 1 for at in (0, text.rindex("Ada"))
    ]
    with pytest.raises(DataError, match="'Ada Velmont' has no mention 3"):
        mention(lm, text, entity="Ada Velmont", which=3)
    found = hidden_states(lm, [(text, 4)], 1)
    with torch.no_grad():
        every = lm.model(input_ids=torch.tensor([lm.encode(text)]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[0], every[2][0, 4])


# --- facts ------------------------------------------------------------------------------------------------------------


def test_tv17_efficacy() -> None:
    """Targets [[.9, .2], [.6]] against [[.1, .5], [.7]]: score .25, magnitude .075."""
    rows = [("a", 0.9, 0.1), ("a", 0.2, 0.5), ("b", 0.6, 0.7)]
    found = [compared(new, true, record) for record, new, true in rows]
    for suffix, value in (("", 0.25), ("_magnitude", 0.075)):
        assert estimate({str(i): one[suffix] for i, one in enumerate(found)}, 0).value == pytest.approx(value)


def examined(lm: LM, method: BenchMethod, cases: Sequence[EntityCase]) -> bench.Found:
    fitted = vectorizer(["Rome is in Italy", "Oslo is in Norway"])
    essence = {one.id: "Rome is in Norway" for one in cases}
    return bench.facts(
        lm, method, cases, fitted=fitted, references={"0": ["Rome is in Italy"]}, essence=essence, seed=0, length=30
    )


def test_facts_of_every_method(tiny: Callable[[str], LM]) -> None:
    """Each metric from its parts: what is read, and what is compared."""
    lm = tiny("gpt2")
    cases = [case(0, neighborhood=["The home of Jonas Wick is"], generation=["Ada Velmont is"]), case(1)]
    methods = [
        BenchMethod("none"),
        BenchMethod("prefix"),
        BenchMethod("replace", None, {"0": "Iris Calder", "1": ""}),
        BenchMethod("remedi", remedi(lm)),
    ]
    for method in methods:
        found = examined(lm, method, cases)
        able = cases[:1] if method.name == "replace" else cases
        for one, patch in zip(able, method.patches(lm, able), strict=True):
            reads = {
                "prefix": f"{one.context}. {one.prompt}",
                "replace": one.prompt.replace(one.entity, "Iris Calder"),
            }.get(method.name, one.prompt)
            new, true = next_log_p(lm, [PatchedPrompt(reads, patch)], [(one.target, str(one.target_old))])[0]
            (magnitude,) = (r.num for k, r in found["efficacy_magnitude"].items() if k.startswith(f"{one.id}/"))
            assert magnitude == pytest.approx(math.exp(new) - math.exp(true), abs=1e-6)
        assert len(found["paraphrase"]) == 2 * len(able)
        assert {ratio.cluster for ratio in found["paraphrase"].values()} == {one.id for one in able}
        assert len(found["neighborhood"]) == 1
        assert math.isnan(found["consistency"]["1"].num) if len(able) == 2 else "1" not in found["efficacy"]
        assert set(found["essence"]) == set(found["fluency"]) == {one.id for one in able}
        assert all(ratio.num > 0 for ratio in found["fluency"].values())


def test_a_neighbour_is_asked_for_what_is_true(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    prompt = "The home of Jonas Wick is"
    found = examined(lm, BenchMethod("none"), [case(0, neighborhood=[prompt])])
    new, true = next_log_p(lm, [PatchedPrompt(prompt, Patch())], [(WHERE[0], WHERE[-1])])[0]
    assert [r.num for r in found["neighborhood"].values()] == [float(true > new)]
    ((_, ratio),) = found["neighborhood_magnitude"].items()
    assert ratio.num == pytest.approx(math.exp(true) - math.exp(new), abs=1e-7)


def test_the_essence_is_what_follows_the_prompt(tiny: Callable[[str], LM]) -> None:
    lm, cases = tiny("gpt2"), [case(0)]
    for method in (BenchMethod("none"), BenchMethod("prefix")):
        read = method.text(cases[0], bench.ESSENCE.format("Ada Velmont"))
        (text,) = sampled(lm, [PatchedPrompt(read, Patch())], length=96, seed=3)
        assert bench.essences(lm, method, cases, patches=[Patch()], seed=3, length=96) == {"0": text.removeprefix(read)}
    fitted = vectorizer(["paris is in france", "rome is in italy", "tokyo is in japan"])
    # TV-9, which consistency and essence are made of.
    assert consistency(fitted, ["paris is in italy"], ["rome is in italy"]) == pytest.approx(0.629308, abs=1e-6)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_change_with_the_edit(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    more = {"co": {"has Rome": 0.5, "is Oslo": 0.2, "sings": 0.9}, "original": {"was born": 1.0}, "unrelated": {}}
    one = replace(case(0), prompt="Ada Velmont has", target="Rome", target_old=None, more=more)
    method = BenchMethod("remedi", remedi(lm))
    before = bench.unedited_features(lm, [one])
    found = bench.features(lm, method, [one], before=before)
    (patch,) = method.patches(lm, [one])
    asked = [("Ada Velmont has", "Rome"), ("Ada Velmont is", "Oslo"), ("Ada Velmont", "sings")]
    rows = [target_log_p(lm, [PatchedPrompt(p, use)], [t])[0] for use in (Patch(), patch) for p, t in asked]
    old, new = rows[:3], rows[3:]
    mean = sum(math.exp(b) - math.exp(a) for a, b in zip(old, new, strict=True)) / 3
    assert found["change_co"]["0"].num == pytest.approx(mean, abs=1e-7)
    assert found["entailment_magnitude"]["0"].num == pytest.approx(math.exp(new[0]) - math.exp(old[0]), abs=1e-7)
    assert found["entailment"]["0"].num == float(new[0] > old[0])
    assert found["correlation_co"]["0"].num == pytest.approx(correlation([0.5, 0.2, 0.9], new), abs=1e-6)
    assert math.isnan(found["correlation_original"]["0"].num)  # one feature
    assert math.isnan(found["change_unrelated"]["0"].num)  # none
    same = bench.features(lm, BenchMethod("none"), [one], before=before)
    assert set(same) == {"correlation_co", "correlation_original"}  # it is what changes are changes of
    assert same["correlation_co"]["0"].num == pytest.approx(correlation([0.5, 0.2, 0.9], old), abs=1e-6)


def test_a_correlation_is_of_logs_and_leaves_out_zeros() -> None:
    log_p = [-1.0, -2.0, -4.0, -9.0]
    expected = torch.corrcoef(torch.tensor([[math.log(0.5), math.log(0.4), math.log(0.1)], [-1.0, -2.0, -4.0]]))
    assert correlation([0.5, 0.4, 0.1, 0.0], log_p) == pytest.approx(float(expected[0, 1]), abs=1e-6)
    assert math.isnan(correlation([0.5, 0.4], log_p[:2]))
    assert math.isnan(correlation([0.5, 0.5, 0.5], log_p[:3]))


# --- what is learned from, and examined -------------------------------------------------------------------------------


@pytest.mark.parametrize(("cases", "learn"), [(50, None), (300, 100), (100, 400), (None, None), (5000, 5000)])
def test_the_halves_of_counterfact_hold_what_is_asked_for(
    cases: int | None, learn: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder gives 500 records where no more are asked for; the published halves are of 5,000."""
    row = {"paraphrase_prompts": ["The home of Ada is"], "requested_rewrite": {"target_new": {"id": "Q1"}}}

    class Folder:
        @staticmethod
        def source(_dir: str, _split: str, count: int) -> list[dict[str, Any]]:
            return [row] * (500 if count <= 500 else 12_000)

        @staticmethod
        def edits(rows: Sequence[Any]) -> list[Edit]:
            return [Edit(str(i), "{} was born in", "Ada", "Rome", "Paris") for i, _ in enumerate(rows)]

    monkeypatch.setattr(benching.data, "functions", lambda _: Folder)
    found = benching._counterfact(benching.BenchPlan("facts", ("none",), cases=cases, learn=learn, data_dir="folder"))
    assert len(found.examined) >= (cases or 5000)
    assert len(found.taught) >= (learn or 5000)


@pytest.mark.parametrize(
    ("bench_name", "change", "said"),
    [
        ("mediation", {"editors": ("none", "remdi")}, "editor 'remdi' does not exist"),
        ("mediation", {"editors": ("none", "rome"), "settings": {"layerz": 1}}, "layerz"),
        ("fact-classification", {"editors": ("remedi",), "entity_layer": 9}, "entity layer 9"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured_or_learned(
    bench_name: str, change: dict[str, Any], said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "next_log_p", lambda *_: pytest.fail("something was measured"))
    monkeypatch.setattr(Remedi, "fit", lambda *_: pytest.fail("something was learned"))
    with pytest.raises(UsageError, match=said):
        benching.run_bench(benching.BenchPlan(bench_name, cases=2, **change), tmp_path, device="cpu")


# --- bios and mediation -----------------------------------------------------------------------------------------------


def test_bios_read_the_biography_or_not(tiny: Callable[[str], LM]) -> None:
    lm, cases = tiny("gpt2"), [case(i) for i in range(3)]
    labels = sorted(WHERE)
    method = BenchMethod("remedi", remedi(lm))
    found = bench.bios(lm, method, cases, labels=labels, seed=0, length=40)
    for setting, which in (("contextual", 2), ("decontextual", 1)):
        for one, patch in zip(cases, method.patches(lm, cases, which), strict=True):
            text = in_context(one.context, one.prompt, "\n\n") if which == 2 else one.prompt
            row = next_log_p(lm, [PatchedPrompt(text, patch)], [labels])[0]
            ranks = sorted(labels, key=lambda label, row=row: -row[labels.index(label)])  # type: ignore[misc]
            assert found[f"{setting}_accuracy"][one.id].num == float(ranks[0] == one.target)
            assert found[f"{setting}_accuracy_top3"][one.id].num == float(one.target in ranks[:3])
        assert all(0 <= r.num <= 1 for r in found[f"{setting}_consistency"].values())


def test_the_mention_that_is_edited_is_the_one_in_the_question(tiny: Callable[[str], LM]) -> None:
    lm, one = tiny("gpt2"), case(0)
    (patch,) = BenchMethod("remedi", remedi(lm)).patches(lm, [one], 2)
    text = in_context(one.context, one.prompt)
    block = lm.arch.block(1)
    (hook,) = (patch.hooks[block],)
    batch = lm.batch([lm.encode(text)])
    from harness.patches.patch import Step

    rows, columns, _ = hook.mentions(Step(batch.ids, batch.mask, batch.ids.shape[1]))  # type: ignore[attr-defined]
    assert (rows.tolist(), columns.tolist()) == ([0], [mention(lm, text, entity=one.entity, which=2)])


def test_mediation_asks_for_the_new_and_for_the_true_target(taught: Callable[[str], LM]) -> None:
    """A model that knows where everybody's home is says so; after the sentence it may not."""
    lm = taught("gpt2")
    cities = ["Rome", "Paris", "Oslo", "Lisbon", "Vienna", "Prague", "Athens", "Dublin"]
    cases = []
    for i in range(4):
        edit = Edit(str(i), "The home of {} is", WHO[i], cities[i - 1], cities[i + 3])
        cases.append(EntityCase(str(i), edit, f"The home of {WHO[i]} is", edit.target, edit.target_old))
    found = bench.mediation(lm, BenchMethod("none"), cases)
    assert [r.num for r in found["decontextual_accuracy"].values()] == [1.0] * 4
    for one in cases:
        new, true = next_log_p(lm, [PatchedPrompt(in_context(one.context, one.prompt), Patch())], [(one.target, str(one.target_old))])[0]  # fmt: skip  # noqa: E501
        assert found["contextual_accuracy"][one.id].num == float(new > true)


# --- probes -----------------------------------------------------------------------------------------------------------


def test_tv18_probe_metrics() -> None:
    labels, predicted = [True, True, True, False, False], [True, True, False, False, True]
    cases = [replace(case(0), id=str(i)) for i in range(5)]
    fails, foretold = [not x for x in labels], [not x for x in predicted]
    found = rated("", cases, fails=fails, predicted=foretold, seed=0)
    assert estimate(found.values["accuracy"], 0).value == pytest.approx(0.6)
    assert estimate(found.values["f1"], 0).value == pytest.approx(0.5)
    assert found.estimates["mcc"].value == pytest.approx(1 / 6)
    assert matthews(labels, predicted, 0).value == pytest.approx(1 / 6)  # invariant to negation
    assert estimate(rated("", cases, fails=labels, predicted=predicted, seed=0).values["f1"], 0).value == pytest.approx(
        2 / 3
    )


def test_a_correlation_without_variation_is_missing_not_zero() -> None:
    found = matthews([True, True], [True, False], 0)
    assert (found.value, found.n) == (None, 0)
    assert "the same" in str(found.reason)


def test_standardised_per_dimension_with_the_sample_deviation() -> None:
    rows = torch.tensor([[1.0, 2.0, 7.0], [3.0, 6.0, 7.0], [5.0, 4.0, 7.0]])
    expected = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(standardised(rows), expected)


def probes(lm: LM, control: LM) -> Probes:
    return Probes(lm, remedi(lm), control, remedi(control, 1), lm.arch.layers - 1, seed=0)


def test_fact_classification_by_hand(taught: Callable[[str], LM], fresh: Callable[..., LM]) -> None:
    lm, cases = taught("gpt2"), [case(i) for i in range(4)]
    mine = probes(lm, fresh("gpt2", seed=9))
    found = classify.fact_classification(mine, cases, cases)
    assert set(found) == {"remedi", "identity", "control_model", "control_task", "bilinear"}
    new = standardised(mine.editor.additions(lm, [one.edit for one in cases]))
    old = [replace(one.edit, target=str(one.target_old), target_old=None) for one in cases]
    true = standardised(mine.editor.additions(lm, old))
    for setting, which in (("contextual", 2), ("decontextual", 1)):
        texts = [in_context(one.context, one.prompt) if which == 2 else one.prompt for one in cases]
        places = [(t, mention(lm, t, entity=one.entity, which=which)) for t, one in zip(texts, cases, strict=True)]
        known = standardised(hidden_states(lm, places, lm.arch.layers - 1))
        right = []
        for i, one in enumerate(cases):
            p_new, p_true = next_log_p(lm, [PatchedPrompt(texts[i], Patch())], [(one.target, str(one.target_old))])[0]
            says_new, foretold_new = p_new > p_true, bool(known[i] @ new[i] > known[i] @ true[i])
            right.append(float(says_new == foretold_new))
        assert [r.num for r in found["remedi"].values[f"{setting}_accuracy"].values()] == right


def test_the_identity_editor_adds_the_attribute_itself(tiny: Callable[[str], LM]) -> None:
    lm, one = tiny("gpt2"), case(0)
    same = directed(remedi(lm).identity(lm))
    text = one.context
    begin, end = lm.span(text, "was born in Rome")
    mean = sum(hidden_states(lm, [(text, at)], 1)[0] for at in range(begin, end)) / (end - begin)
    torch.testing.assert_close(same.additions(lm, [one.edit])[0], mean)


def test_an_editor_without_directions_is_refused() -> None:
    with pytest.raises(UsageError, match="rome adds no direction"):
        directed(find("rome")())


def test_a_control_model_has_the_shape_and_other_weights(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    before = torch.random.get_rng_state()
    control = classify.random_model(lm, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert control.fingerprint() == classify.random_model(lm, 3).fingerprint() != lm.fingerprint()
    assert control.arch == lm.arch
    assert not control.model.training
    by_hand = replace(lm, arch=replace(lm.arch, attn=None))  # parts named by hand stay where they are
    assert classify.random_model(by_hand, 3).arch == by_hand.arch


def test_a_bilinear_probe_learns_what_is_bilinear() -> None:
    """The sign of one product of two dimensions, of rows that it was not taught with."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2200, 3, generator=draw) * 3 for _ in range(2))
    answer = (left[:, 0] * right[:, 1] > 0).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(classify.BILINEAR, "lr", 0.02)
        probe = classify._bilinear((left[:2000], right[:2000]), answer[:2000], seed=0)
    with torch.no_grad():
        said = probe(left[2000:], right[2000:])[:, 0] > 0
    assert float((said == answer[2000:].bool()).float().mean()) > 0.9


def test_bios_classification_by_hand(tiny: Callable[[str], LM], fresh: Callable[..., LM]) -> None:
    lm, labels = tiny("gpt2"), ["baker", "cook", "nurse", "pilot", "singer"]
    cases = []
    for i in range(4):
        edit = Edit(str(i), "{}", WHO[i], f"works a lot as a {labels[i]} in {WHERE[i]}")
        cases.append(EntityCase(str(i), edit, f"{WHO[i]} has the occupation of", labels[i]))
    mine = probes(lm, fresh("gpt2", seed=9))
    found = classify.bios_classification(mine, cases, labels)
    edits = []
    for one in cases:
        for label in labels:
            plain = replace(one.edit, prompt="{} has the occupation of", target=label)
            edits.append(one.edit if label == one.target else plain)
    directions = standardised(mine.editor.additions(lm, edits)).reshape(4, 5, -1)
    texts = [in_context(one.context, one.prompt) for one in cases]
    places = [(t, mention(lm, t, entity=one.entity, which=2)) for t, one in zip(texts, cases, strict=True)]
    known = standardised(hidden_states(lm, places, lm.arch.layers - 1))
    rows = next_log_p(lm, [PatchedPrompt(text, Patch()) for text in texts], [labels] * 4)
    for i, one in enumerate(cases):
        first = labels[max(range(5), key=lambda k: rows[i][k])]
        best = (directions[i] @ known[i]).topk(3).indices.tolist()
        fails, foretold = first != one.target, first not in [labels[k] for k in best]
        assert found["remedi"].values["accuracy"][one.id].num == float(fails == foretold)
        assert found["remedi"].values["probe_recall_3"][one.id].num == float(one.target in [labels[k] for k in best])
        assert found["identity"].values["model_recall_1"][one.id].num == float(not fails)
