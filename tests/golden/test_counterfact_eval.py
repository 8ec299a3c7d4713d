"""CounterFact scores against the numbers of the authors' released evaluation (MEMIT's), before and after edits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.exam.adapter import EditedLM
from harness.exam.data import TASKS
from harness.exam.statistics import aggregate, harmonic
from harness.exam.text_metrics import consistency, entropy, vectorizer, words
from harness.exam.token_tasks import Forced
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.studies.localization.success import perplexity

KINDS = {"rewrite": "rewrite_prompts", "paraphrase": "paraphrase_prompts", "neighborhood": "neighborhood_prompts"}
CASES = ("0", "1", "2", "5")
METRICS = {
    "success": ("efficacy", "paraphrase", "neighborhood"),
    "diff": ("efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude"),
    "acc": ("efficacy_accuracy", "paraphrase_accuracy", "neighborhood_accuracy"),
}

Measured = tuple[dict[str, list[Forced]], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def golden() -> Path:
    return Path(__file__).with_name("data")


@pytest.fixture(scope="module")
def given(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "H_counterfact_eval" / "inputs.json").read_text())


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "H_counterfact_eval" / "expected.json").read_text())


@pytest.fixture(scope="module")
def folder(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose CounterFact file holds the four golden records."""
    path = tmp_path_factory.mktemp("data") / "counterfact" / "counterfact_500_full.json"
    path.parent.mkdir()
    path.write_text(json.dumps(given["records"]))
    return path.parents[1]


@pytest.fixture(scope="module")
def lm(golden: Path, given: dict[str, Any]) -> HFLM:
    model = AutoModelForCausalLM.from_pretrained(golden / given["model"], dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(golden / given["model"]), batch_size=8)


def measure(lm: HFLM, folder: Path) -> Measured:
    """The ratings of every probe, and the metrics of every probe, by probe id."""
    manager = TaskManager(include_path=str(TASKS / "edits"), include_defaults=False, metadata={"data_dir": str(folder)})
    loaded = manager.load(["counterfact_probability"])
    task = loaded["tasks"]["counterfact_probability"]
    task.bind(lm.tokenizer)
    ratings: dict[str, list[Forced]] = {}
    score = task.config.process_results

    def keep(doc: dict[str, Any], rated: list[Forced]) -> Any:
        ratings[doc["id"]] = rated
        return score(doc, rated)

    task.config.process_results = keep
    samples = evaluate(lm, loaded, bootstrap_iters=0)["samples"]["counterfact_probability"]
    return ratings, {s["doc"]["id"]: {name: s[name] for name in s["metrics"]} for s in samples}


@contextmanager
def edited(lm: HFLM, golden: Path, case: str) -> Iterator[None]:
    """The model with the rank-one update of a record."""
    weight = lm.model.transformer.h[1].mlp.c_proj.weight
    with safe_open(golden / "A_rome_gpt2" / "expected.safetensors", "pt") as updates:
        left, right = (updates.get_tensor(f"fp32/mom2_true/{case}/{name}") for name in ("u", "right_vector"))
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += torch.outer(left, right)
        yield
        weight.copy_(kept)


@pytest.fixture(scope="module")
def states(lm: HFLM, golden: Path, folder: Path) -> dict[str, Measured]:
    """What is measured before any edit, and under each record's own rank-one update."""
    found = {"pre": measure(lm, folder)}
    for case in CASES:
        with edited(lm, golden, case):
            found[case] = measure(lm, folder)
    return found


def golden_records(expected: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for state in ("pre", *CASES):
        for record in expected["pre"] if state == "pre" else expected["post_by_edited_case"][state]:
            yield state, record


def test_nll_agrees(states: dict[str, Measured], expected: dict[str, Any]) -> None:
    compared = 0
    for state, record in golden_records(expected):
        for kind, name in KINDS.items():
            for i, wanted in enumerate(record[f"{name}_probs"]):
                new, true = states[state][0][f"{record['case_id']}/{kind}/{i}"]
                assert new.nll == pytest.approx(wanted["target_new"], abs=1e-4)
                assert true.nll == pytest.approx(wanted["target_true"], abs=1e-4)
                compared += 2
    assert compared == 5 * 4 * 13 * 2


def test_correctness_is_equal(states: dict[str, Measured], expected: dict[str, Any]) -> None:
    seen = []
    for state, record in golden_records(expected):
        for kind, name in KINDS.items():
            for i, wanted in enumerate(record[f"{name}_correct"]):
                new, true = states[state][0][f"{record['case_id']}/{kind}/{i}"]
                assert (true if kind == "neighborhood" else new).exact is wanted
                seen.append(wanted)
    assert 0 < sum(seen) < len(seen) == 5 * 4 * 13


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("statistic", ["success", "diff", "acc"])
def test_summary_agrees(states: dict[str, Measured], expected: dict[str, Any], when: str, statistic: str) -> None:
    summary = expected["summary_each_record_after_its_own_edit"]
    for kind, metric in zip(KINDS, METRICS[statistic], strict=True):
        values = own_state_values(states, when, metric)
        assert 100 * aggregate(values) == pytest.approx(summary[f"{when}_{kind}_{statistic}"][0], abs=0.01)


def own_state_values(states: dict[str, Measured], when: str, metric: str) -> list[Any]:
    """The values of each record before any edit, or after its own."""
    return [
        found[metric]
        for case in CASES
        for probe, found in states["pre" if when == "pre" else case][1].items()
        if metric in found and probe.split("/")[0] == case
    ]


@pytest.mark.parametrize("when", ["pre", "post"])
def test_score_agrees(states: dict[str, Measured], expected: dict[str, Any], when: str) -> None:
    """The harmonic mean of the three means, zero where one of them is."""
    parts = [
        {str(i): value for i, value in enumerate(own_state_values(states, when, metric))}
        for metric in METRICS["success"]
    ]
    wanted = expected["summary_each_record_after_its_own_edit"][f"{when}_score"][0]
    assert 100 * (harmonic(parts, 0, 50).value or 0.0) == pytest.approx(wanted, abs=0.01)


def test_batch_size_and_padding_side_do_not_matter(states: dict[str, Measured], lm: HFLM, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lm.tokenizer.name_or_path, padding_side="left")
    alone, _ = measure(HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=1), folder)
    for probe, ratings in states["pre"][0].items():
        for one, other in zip(ratings, alone[probe], strict=True):
            assert (one.tokens, one.hits) == (other.tokens, other.hits)
            assert one.nll == pytest.approx(other.nll, abs=1e-5)


def test_generation_metrics_agree(given: dict[str, Any], expected: dict[str, Any]) -> None:
    fitted = vectorizer(given["tfidf_fit_texts"])
    for case in expected["generation_metrics"]:
        each = [entropy(words(text)) for text in case["texts"]]
        assert each == pytest.approx(case["per_text_entropy"], abs=1e-12)
        assert mean(each) == pytest.approx(case["ngram_entropy"], abs=1e-12)
        if case["reference_score"] is not None:
            score = consistency(fitted, case["texts"], [case["reference_text"]])
            assert score == pytest.approx(case["reference_score"], abs=1e-12)
    assert any(case["reference_score"] for case in expected["generation_metrics"])


def test_perplexity_agrees(lm: HFLM, golden: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    def check(wanted: list[float]) -> None:
        for text, value in zip(given["perplexity_texts"], wanted, strict=True):
            ids = torch.tensor(lm.tokenizer(text)["input_ids"][: given["perplexity_max_tokens"]])
            with torch.no_grad():
                logprobs = lm.model(ids[None]).logits[0, :-1].log_softmax(-1)
            found = perplexity(logprobs.gather(1, ids[1:, None])[:, 0].tolist(), released=True)
            assert found == pytest.approx(value, rel=1e-5)
            assert math.isfinite(found)

    check(expected["perplexity"]["pre"])
    with edited(lm, golden, "0"):
        check(expected["perplexity"]["post_rewrite_of_case_0"])


def test_greedy_texts_agree_as_far_as_a_text_goes(
    lm: HFLM, golden: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The authors' sampler goes on behind the end of a text and takes its mark away; here a text ends there."""
    model = EditedLM(LM.wrap(lm.model, lm.tokenizer, name="golden", text="x"))
    prompts, most = given["greedy_prompts"], given["greedy_max_out_len"]
    rooms = [most - len(lm.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    requests = [
        Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": room}), 0, metadata=("greedy", i, 1))
        for i, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
    ]

    def check(wanted: list[str]) -> list[str]:
        with model.holding(Patch()):
            found = [prompt + said for prompt, said in zip(prompts, model.generate_until(requests), strict=True)]
        for text, whole in zip(found, wanted, strict=True):
            assert whole.startswith(text)
            assert whole == text or text.endswith(".")
        return found

    before = check(expected["greedy_texts"]["pre"])
    with edited(lm, golden, "0"):
        after = check(expected["greedy_texts"]["post_rewrite_of_case_0"])
    assert all(one != other for one, other in zip(before, after, strict=True))
