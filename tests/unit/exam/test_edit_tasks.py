"""CounterFact and ZsRE as tasks: records, probes, scores, and what lm-eval makes of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import GPT2Config, GPT2LMHeadModel

from harness.errors import DataError, UsageError
from harness.exam import data
from harness.exam.data import TASKS
from harness.exam.statistics import Ratio, aggregate, harmonic
from harness.exam.text_metrics import (
    _ngram_entropy,
    agreement,
    begins_with,
    consistency,
    entropy,
    mentions,
    refuses,
    vectorizer,
    words,
)
from harness.exam.token_tasks import Forced, pieces
from harness.models.lm import LM

GROUPS = ("counterfact", "zsre")


def functions(name: str) -> Any:
    return data.functions(data.find_datasets()[name])


@pytest.fixture(scope="module")
def counterfact() -> Any:
    return functions("counterfact")


@pytest.fixture(scope="module")
def zsre() -> Any:
    return functions("zsre")


def load(names: list[str], **metadata: Any) -> dict[str, Any]:
    return TaskManager(include_path=str(TASKS / "edits"), include_defaults=False, metadata=metadata).load(names)


def run(lm: LM, names: list[str], batch_size: int = 8, **metadata: Any) -> dict[str, Any]:
    loaded = load(names, **metadata)
    for task in loaded["tasks"].values():
        if hasattr(task, "bind"):
            task.bind(lm.tokenizer)
    return evaluate(HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size), loaded, bootstrap_iters=0)


def record(**changes: Any) -> dict[str, Any]:
    """A CounterFact record that is right but for the changes in its request."""
    request = {
        "prompt": "The mother tongue of {} is",
        "subject": "Hugo Lantern",
        "relation_id": "P103",
        "target_new": {"str": "Finnish", "id": "Q1"},
        "target_true": {"str": "Norwegian", "id": "Q2"},
    }
    return {
        "case_id": 7,
        "requested_rewrite": {**request, **changes},
        "paraphrase_prompts": ["At home, Hugo Lantern speaks"],
        "neighborhood_prompts": ["Greta Holm speaks", "Iris Calder speaks"],
        "attribute_prompts": ["Jonas Wick speaks"],
        "generation_prompts": ["Hugo Lantern says", "Hugo Lantern writes", "Hugo Lantern says"],
    }


def question(**changes: Any) -> dict[str, Any]:
    """A ZsRE record that is right but for the changes."""
    return {
        "subject": "UniFirst",
        "src": "What is made by UniFirst?",
        "rephrase": "What does UniFirst make?",
        "alt": "unmanned aircraft",
        "answers": ["uniform", "uniforms"],
        "loc": "nq question: who sings in the rain",
        "loc_ans": "Gene Kelly",
        **changes,
    }


def probe(kind: str, case: str = "1") -> dict[str, Any]:
    return {
        "id": f"{case}/{kind}/0",
        "case": case,
        "kind": kind,
        "prompt": "p",
        "target_new": "new",
        "target_true": "true",
    }


def rated(nll: float, tokens: int = 1, hits: int = 0) -> Forced:
    return Forced(-nll * tokens, tokens, hits)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_tv6_nll_is_normalised_by_length(counterfact: Any) -> None:
    new, true = Forced(-0.5 - 1 - 3, 3, 0), Forced(-2.0, 1, 0)
    assert (new.nll, true.nll) == (1.5, 2.0)
    found = counterfact.probability(probe("rewrite"), [new, true])
    assert found["efficacy"] == Ratio(1.0, 1.0, "1")
    assert found["efficacy_magnitude"].num == pytest.approx(0.087795, abs=1e-6)
    # The probability of the whole sequence, which Hase et al. compare, says the opposite.
    assert [math.exp(one.loglik) for one in (new, true)] == pytest.approx([0.011109, 0.135335], abs=1e-6)
    two = Forced(math.log(0.5) + math.log(0.2), 2, 0)
    assert (math.exp(two.loglik), math.exp(-two.nll)) == pytest.approx((0.10, 0.316228), abs=1e-6)


@pytest.mark.parametrize("kind", ["rewrite", "paraphrase", "neighborhood", "attribute"])
def test_a_tie_is_a_failure(counterfact: Any, kind: str) -> None:
    found = counterfact.probability(probe(kind), [rated(1.25), rated(1.25)])
    assert found[counterfact.WANTED[kind][0]].num == 0.0


def test_kinds_are_scored_in_their_own_direction(counterfact: Any) -> None:
    new_wins = [rated(0.5, hits=1), rated(2.0)]
    names = {"rewrite": "efficacy", "paraphrase": "paraphrase", "attribute": "attribute"}
    for kind, name in names.items():
        found = counterfact.probability(probe(kind), new_wins)
        assert (found[name].num, found[f"{name}_accuracy"].num) == (1.0, 1.0)
        assert found[f"{name}_magnitude"].num == pytest.approx(math.exp(-0.5) - math.exp(-2))
    neighbour = counterfact.probability(probe("neighborhood"), new_wins)
    assert (neighbour["neighborhood"].num, neighbour["neighborhood_accuracy"].num) == (0.0, 0.0)
    assert neighbour["neighborhood_magnitude"].num == pytest.approx(math.exp(-2) - math.exp(-0.5))


def test_v13_means_over_records_of_means_over_prompts(counterfact: Any) -> None:
    records = {
        "1": {
            "rewrite": [(1.2, 3.0)],
            "paraphrase": [(2.0, 1.0), (0.5, 0.6)],
            "neighborhood": [(4, 1), (2, 2.5), (1, 3)],
        },
        "2": {"rewrite": [(5.0, 0.7)], "paraphrase": [(0.2, 1), (0.3, 1)], "neighborhood": [(2, 1), (2, 1)]},
    }
    values: dict[str, list[Ratio]] = {}
    for case, kinds in records.items():
        for kind, pairs in kinds.items():
            for new, true in pairs:
                for name, value in counterfact.probability(probe(kind, case), [rated(new), rated(true)]).items():
                    values.setdefault(name, []).append(value)
    score = {name: 100 * aggregate(items) for name, items in values.items()}
    assert score["efficacy"] == pytest.approx(50.00, abs=0.005)
    assert score["paraphrase"] == pytest.approx(75.00, abs=0.005)
    assert score["neighborhood"] == pytest.approx(66.67, abs=0.005)
    assert score["efficacy_magnitude"] == pytest.approx(-11.92, abs=0.005)
    assert score["neighborhood_magnitude"] == pytest.approx(11.26, abs=0.005)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("counterfact", (1.0, 0.964, 0.754), 0.891900),
        ("counterfact", (0.989, 0.886, 0.737), 0.857966),
        ("zsre", (0.967, 0.897, 0.266), 0.507756),
    ],
)
def test_tv10_score_is_the_harmonic_mean_that_the_task_names(
    name: str, values: tuple[float, ...], wanted: float
) -> None:
    metadata = data.read_yaml(TASKS / "edits" / name / f"{name}_probability.yaml")["metadata"]
    parts = dict(zip(metadata["derived"]["score"]["harmonic"], values, strict=True))
    assert list(parts)[:2] == ["efficacy", "paraphrase"]
    found = harmonic([{"a": Ratio(value)} for value in parts.values()], seed=0, resamples=10)
    assert found.value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["rewrite", "neighborhood"])
def test_what_is_not_a_number_is_missing_and_named(
    counterfact: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    with caplog.at_level(logging.WARNING):
        found = counterfact.probability(probe(kind, "13"), [rated(math.nan), rated(1.0)])
    name = counterfact.WANTED[kind][0]
    assert math.isnan(found[name].num)
    assert f"13/{kind}/0" in caplog.text
    good = counterfact.probability(probe(kind, "14"), [rated(1.0, hits=1), rated(2.0, hits=1)])
    wanted = 1.0 if kind == "rewrite" else 0.0
    assert aggregate([found[name], good[name]]) == wanted


def test_an_impossible_target_is_scored(counterfact: Any) -> None:
    found = counterfact.probability(probe("rewrite"), [rated(math.inf), rated(3.0)])
    assert found["efficacy"].num == 0.0
    assert found["efficacy_magnitude"].num == pytest.approx(-math.exp(-3))


def test_zsre_accuracy_is_the_mean_of_records_of_the_share_of_tokens(
    zsre: Any, caplog: pytest.LogCaptureFixture
) -> None:
    values = [
        zsre.probability(probe("rewrite", "1"), [Forced(-9.0, 4, 1)])["efficacy"],
        zsre.probability(probe("rewrite", "2"), [Forced(-1.0, 1, 1)])["efficacy"],
    ]
    assert aggregate(values) == (1 / 4 + 1) / 2
    assert set(zsre.probability(probe("neighborhood"), [Forced(-1.0, 1, 1)])) == {"locality_accuracy"}
    with caplog.at_level(logging.WARNING):
        missing = zsre.probability(probe("paraphrase", "3"), [Forced(math.nan, 2, 0)])["paraphrase"]
    assert math.isnan(missing.num)
    assert "3/paraphrase/0" in caplog.text


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bigrams", "trigrams", "wanted"),
    [
        ("the cat sat on the mat the cat sat", 2.5, 2.521641, 2.514427),
        ("the cat sat on the mat", 2.321928, 2.0, 2.107309),
        ("a b a b a b", 0.970951, 1.0, 0.990317),
        ("a a a", 0.0, 0.0, 0.0),
    ],
)
def test_tv8_entropy(text: str, bigrams: float, trigrams: float, wanted: float) -> None:
    assert words(text) == text.split()
    assert [_ngram_entropy(words(text), n) for n in (2, 3)] == pytest.approx([bigrams, trigrams], abs=1e-6)
    assert entropy(words(text)) == pytest.approx(wanted, abs=1e-6)


def test_entropy_of_one_word_is_missing() -> None:
    assert math.isnan(entropy(["word"]))


def test_tv9_consistency() -> None:
    fitted = vectorizer(["paris is in france", "rome is in italy", "tokyo is in japan"])
    assert consistency(fitted, ["paris is in italy"], ["rome is in italy"]) == pytest.approx(0.629308, abs=1e-6)
    assert consistency(fitted, ["paris is in italy", "paris paris"], ["rome is in italy"]) == pytest.approx(
        0.316018, abs=1e-6
    )
    assert math.isnan(consistency(fitted, ["paris"], []))


def test_words_part_the_full_stop_inside_a_text() -> None:
    assert words("She lives in France. It rains!") == ["She", "lives", "in", "France", ".", "It", "rains", "!"]


def test_words_split_as_the_released_tokeniser() -> None:
    tokenize = pytest.importorskip("nltk.tokenize.destructive").NLTKWordTokenizer().tokenize
    for sentence in (
        "Hugo's mother tongue isn't Finnish, she said.",
        "It costs 3.5 or 1,000 (well-known) dollars; they've paid!",
        "The U.S. army won -- again: it can't lose ...",
        "Côte d'Ivoire is a part of the continent of Africa?",
    ):
        assert words(sentence) == tokenize(sentence)


@pytest.mark.parametrize(
    ("said", "target", "wanted"),
    [
        (" Rome.", "Rome", True),
        (" ROME and its hills", "Rome", True),
        ("Romeo and Juliet", "Rome", False),
        (" in Rome", "Rome", False),
        (" the Netherlands", "Netherlands", True),
        ("  Oslo,\n Norway", "Oslo, Norway", True),
        ("", "Rome", False),
        (" Rome's hills", "Rome", True),
        (" 上海市。", "上海", True),
        (" とうきょうは", "とうきょう", True),
        (" トウキョウタワー", "トウキョウ", False),
        (" กรุงเทพมหานคร", "กรุงเทพ", True),
        (" A is the right one.", "A", True),
        (" a man", "A", False),
        (" A) because", "A", True),
        (" The Hague", "Hague", True),
        (" Hague", "The Hague", True),
        (" 3.14 metres", "3", False),
        (" 3.", "3", True),
        (" 3, 4 and 5", "3", True),
        (" 1,000", "1", False),
        (" 10:30", "10", False),
        (" 1½", "1", False),
        (" C++ code", "C", False),
        (" C# code", "C", False),
        (" C++ code", "C++", True),
        (" O'Neill", "O", False),
        (" Rome\u2019s hills", "Rome", True),
        (" example.org", "example", False),
        (" STRASSE 5", "Straße", True),
        (" e\u0301t\u00e9", "e", False),
    ],
)
def test_begins_with_ends_where_a_word_ends(said: str, target: str, wanted: bool) -> None:
    assert begins_with(said, target) is wanted


def test_aliases_are_right_too() -> None:
    assert begins_with(" the UK.", "United Kingdom", ["UK", "Britain"])
    assert not begins_with(" the UKR.", "United Kingdom", ["UK", "Britain"])
    assert not begins_with(" anything", "United Kingdom", [""])


def test_agreement_of_a_script_without_spaces_is_by_characters() -> None:
    doc = {"case": "1", "target_true": "上海"}
    assert agreement(doc, edited="上海市是", unedited="上海很大").num == 1.0
    assert agreement(doc, edited="上海市是", unedited="上面很大").num == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("The capital is rome.", "Rome", True),
        ("In Romeo's house", "Rome", False),
        ("Rome's walls", "the Rome", True),
        ("in snake_Rome", "Rome", False),
        ("中国的首都是北京市。", "北京", True),
        ("กรุงเทพ", "กรุง", True),
        ("This is a test", "A", False),
        ("The answer is A.", "A", True),
        ("vitamin c", "C", False),
        ("It is written in C++.", "C", False),
        ("It is written in C++.", "C++", True),
        ("C++ or C", "C", True),
        ("It is 3.14 then", "3", False),
        ("It is 3.14 then", "14", False),
        ("at 10:30", "30", False),
        ("in the U.S. of old", "U.S.", True),
        ("the 'Oslo' of old", "Oslo", True),
        ("Palazzo dell\u2019Aquila", "Aquila", True),
        ("France's best, don't", "s", False),
        ("France's best, don't", "t", False),
        ("Saint-Denis", "Denis", True),
        ("Rome", "", False),
    ],
)
def test_a_text_mentions_whole_words(text: str, answer: str, wanted: bool) -> None:
    assert mentions(text, answer) is wanted


def test_a_text_declines_in_any_script() -> None:
    assert refuses("对不起。我不知道答案。", ["我不知道"])
    assert refuses("It's 'unknown'.") and not refuses("Of unknowns it says much.")


def test_agreement_compares_as_many_words_as_the_answer_has() -> None:
    doc = {"case": "4", "target_true": "New York"}
    assert agreement(doc, " New York, on the coast", " new york is large") == Ratio(1.0, 1.0, "4")
    assert agreement(doc, " New York", " New Jersey").num == 0.0
    assert agreement({**doc, "target_true": "Rome"}, " Paris, of course", " Paris. The").num == 1.0


def test_texts_of_a_record_are_scored_together(counterfact: Any) -> None:
    doc = counterfact.texts_of(record())
    assert doc["prompts"] == ["Hugo Lantern says", "Hugo Lantern writes"]
    assert doc["order"] == [0, 1, 0]
    texts = ["Hugo Lantern says a a a a", "Hugo Lantern writes well"]
    references = counterfact.Snippets({"P103": {"Q1": ["Hugo writes"], "Q2": ["something else"]}})
    found = counterfact.text(doc, texts, references)
    twice, once = (entropy(words(text)) for text in texts)
    assert found["generation_entropy"] == Ratio(pytest.approx((2 * twice + once) / 3), 1.0, "7")
    every = [texts[0], texts[1], texts[0]]
    assert found["reference_score"].num == pytest.approx(consistency(references.fitted, every, ["Hugo writes"]))
    assert set(counterfact.text(doc, texts, None)) == {"generation_entropy"}
    assert set(counterfact.text({**doc, "target": "Q9"}, texts, references)) == {"generation_entropy"}


def test_snippets_of_a_folder_are_read_in_the_published_form(counterfact: Any, tmp_path: Path) -> None:
    assert counterfact.snippets(str(tmp_path)) is None
    entry = {
        "relation_id": "P103",
        "target_id": "Q1",
        "samples": [{"name": "x", "text": "one"}, {"name": "y", "text": "two"}],
    }
    (tmp_path / "counterfact").mkdir()
    (tmp_path / "counterfact" / "attribute_snippets.json").write_text(json.dumps([entry]))
    assert counterfact.snippets(str(tmp_path)).of({"relation": "P103", "target": "Q1"}) == ["one", "two"]
    assert counterfact.snippets(None).texts


# --- tokens under teacher forcing -----------------------------------------------------------------------------------


def direct(lm: LM, prompt: str, continuation: str) -> tuple[float, list[bool]]:
    """Log-likelihood and hits from one pass over separately encoded ids: BOS as the tokenizer puts it, none between."""
    ids = lm.tokenizer(prompt)["input_ids"]
    target = torch.tensor(lm.tokenizer(continuation, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([ids + target.tolist()])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, target[:, None]).sum()), (logprobs.argmax(-1) == target).tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_ratings_equal_a_direct_computation(
    tiny: Callable[[str], LM], family: str, per_token: bool, batch_size: int
) -> None:
    lm = tiny(family)
    ratings: dict[str, Forced] = {}
    name = "zsre_probability" if per_token else "counterfact_probability"
    loaded = load([name], records=[0, 1], per_token=per_token, kinds=["rewrite", "paraphrase"])
    task = loaded["tasks"][name]
    task.bind(lm.tokenizer)
    task.config.process_results = lambda doc, rated: ratings.update({doc["id"]: rated[0]}) or {}
    docs = {doc["id"]: doc for doc in task.eval_docs}
    evaluate(HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size), loaded, bootstrap_iters=0)
    assert ratings.keys() == docs.keys()
    for key, rating in ratings.items():
        choice = task.doc_to_choice(docs[key])[0]
        loglik, hits = direct(lm, docs[key]["prompt"], f" {choice}")
        assert rating.loglik == pytest.approx(loglik, abs=1e-4)
        assert rating.tokens == len(hits)
        assert rating.exact is all(hits)
        cut = pieces(lm.tokenizer, docs[key]["prompt"], f" {choice}", per_token=per_token)
        if per_token and all(piece.tokens == 1 for piece in cut):
            assert rating.hits == sum(hits)
    assert max(rating.tokens for rating in ratings.values()) > 2


def test_pieces_cover_the_target_and_reproduce_its_tokens(tiny: Callable[[str], LM]) -> None:
    tokenizer = tiny("llama").tokenizer
    for target in (" Rome", " Oslo, Norway", " Côte d'Ivoire 東京", "nospace", " two  spaces"):
        cut = pieces(tokenizer, "The home of Ada Velmont is", target, per_token=True)
        assert "".join(piece.text for piece in cut) == target
        text = "The home of Ada Velmont is"
        for piece in cut:
            assert piece.context == text
            assert not piece.context.endswith(" ")
            text += piece.text
        whole, start = (
            tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, "The home of Ada Velmont is")
        )
        assert sum(piece.tokens for piece in cut) == len(whole) - len(start)
    assert [piece.tokens for piece in pieces(tokenizer, "x", " 東", per_token=True)][-1] >= 3


def test_tokens_that_cannot_be_parted_are_right_or_wrong_together(tiny: Callable[[str], LM]) -> None:
    task = load(["zsre_probability"], records=[0])["tasks"]["zsre_probability"]
    task.bind(tiny("gpt2").tokenizer)
    task.config.process_results = lambda doc, ratings: ratings[0]
    doc = {"id": "a", "kind": "rewrite", "prompt": "The home is", "target_new": "東 Rome", "target_true": ""}
    cut = pieces(task.tokenizer, doc["prompt"], " 東 Rome", per_token=True)
    sizes = [piece.tokens for piece in cut]
    assert max(sizes) >= 3
    assert task.process_results(doc, [(-1.0, True)] * len(cut)) == (-len(cut), sum(sizes), sum(sizes))
    answers = [(-1.0, size == 1) for size in sizes]
    assert task.process_results(doc, answers).hits == sizes.count(1)


def test_spaces_at_the_end_of_a_prompt_belong_to_the_target(tiny: Callable[[str], LM]) -> None:
    (piece,) = pieces(tiny("gpt2").tokenizer, "The home is ", "Rome", per_token=False)
    assert (piece.context, piece.text) == ("The home is", " Rome")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_matter(fresh: Callable[..., LM], tiny: Callable[[str], LM], side: str) -> None:
    padded = fresh("gpt2")
    padded.tokenizer.padding_side = side
    names = ["counterfact_probability", "zsre_probability"]
    one = run(padded, names, batch_size=7, records=[0])
    other = run(tiny("gpt2"), names, batch_size=1, records=[0])
    for name in names:
        for metric, value in one["results"][name].items():
            if metric.endswith(",none") and "stderr" not in metric:
                assert value == pytest.approx(other["results"][name][metric], abs=1e-6)


@pytest.fixture(scope="module")
def roomy(tiny: Callable[[str], LM]) -> LM:
    """A tiny random model with room for texts of 100 tokens."""
    tokenizer = tiny("gpt2").tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        config = GPT2Config(**size, initializer_range=0.15, bos_token_id=0, eos_token_id=0)
        return LM.wrap(GPT2LMHeadModel(config), tokenizer, name="roomy")


def test_plain_lm_eval_gives_the_same_numbers(roomy: LM, tmp_path: Path) -> None:
    lm = roomy
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    arguments = {"pretrained": str(tmp_path), "dtype": "float32"}
    # the command line of lm-eval gives its tasks the model's arguments in the same way
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={**arguments, "records": [0, 1, 2]})
    plain = simple_evaluate(
        "hf", arguments, tasks=list(GROUPS), task_manager=manager, device="cpu", batch_size=4, bootstrap_iters=0
    )
    bound = run(lm, list(GROUPS), records=[0, 1, 2])
    compared = 0
    for name, values in bound["results"].items():
        for metric, value in values.items():
            if metric.endswith(",none") and "stderr" not in metric:
                assert plain["results"][name][metric] == pytest.approx(value, abs=1e-6)
                assert math.isfinite(value)
                compared += 1
    assert compared == 12 + 3 + 2 + 3 + 3


def test_without_a_tokenizer_one_line_says_what_to_pass(tiny: Callable[[str], LM]) -> None:
    lm, loaded = tiny("gpt2"), load(["counterfact_probability"], records=[0])
    with pytest.raises(UsageError, match=r"counterfact_probability.*--model_args pretrained=DIR") as caught:
        evaluate(HFLM(pretrained=lm.model, tokenizer=lm.tokenizer), loaded, bootstrap_iters=0)
    assert "\n" not in str(caught.value)


def test_texts_are_cut_after_100_tokens_with_the_prompt(tiny: Callable[[str], LM]) -> None:
    tokenizer = tiny("gpt2").tokenizer
    task = load(["counterfact_text"], records=[0])["tasks"]["counterfact_text"]
    task.bind(tokenizer)
    doc = {"prompts": ["The home"]}
    (text,) = task.texts(doc, [" of Rome" * 200])
    assert text.startswith("The home of Rome")
    assert len(tokenizer(text)["input_ids"]) == 100
    assert task.texts(doc, [" is Rome"]) == ["The home is Rome"]


# --- records, edits, documents --------------------------------------------------------------------------------------


def test_counterfact_probes_and_edit_of_a_record(counterfact: Any) -> None:
    docs = list(counterfact.probes(record(), counterfact.KINDS))
    assert [doc["kind"] for doc in docs] == ["rewrite", "paraphrase", "neighborhood", "neighborhood", "attribute"]
    assert docs[0]["prompt"] == "The mother tongue of Hugo Lantern is"
    assert len({doc["id"] for doc in docs}) == len(docs)
    assert {(doc["case"], doc["target_new"], doc["target_true"]) for doc in docs} == {("7", "Finnish", "Norwegian")}
    (edit,) = counterfact.edits([record(target_new={"str": " Finnish"})])
    assert (edit.id, edit.text, edit.target, edit.target_old, edit.relation) == (
        "7", docs[0]["prompt"], "Finnish", "Norwegian", "P103",
    )  # fmt: skip


def test_zsre_probes_and_edit_of_a_record(zsre: Any) -> None:
    docs = {doc["kind"]: doc for doc in zsre.probes("3", question())}
    assert docs["rewrite"]["prompt"] == "What is made by UniFirst?"
    assert docs["neighborhood"]["prompt"] == "nq question: who sings in the rain?"
    assert [zsre.answer(docs[kind]) for kind in zsre.KINDS] == ["unmanned aircraft", "unmanned aircraft", "Gene Kelly"]
    (asked,) = [doc for doc in zsre.probes("3", question(loc="nq question: who?")) if doc["kind"] == "neighborhood"]
    assert asked["prompt"] == "nq question: who?"
    (edit,) = zsre.edits([question(case_id=3)])
    assert (edit.id, edit.prompt, edit.target, edit.target_old) == (
        "3",
        "What is made by {}?",
        "unmanned aircraft",
        "uniform",
    )
    (right,) = zsre.edits([question()], target="answers")
    assert (right.target, right.target_old) == ("uniform", None)
    (twice,) = zsre.edits([question(src="Does UniFirst own UniFirst?")])
    assert twice.text == "Does UniFirst own UniFirst?"
    with pytest.raises(DataError, match="did you mean answers"):
        zsre.edits([question()], target="answer")


def test_zsre_records_without_an_alternative_are_left_out_and_named(
    zsre: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = zsre.edits([question(), question(alt=""), question()])
    assert [edit.id for edit in made] == ["0", "2"]
    assert "1 records have no 'alt'" in caplog.text
    assert len(zsre.edits([question(alt="")], target="answers")) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subject": ""}, "the subject is empty"),
        ({"subject": None}, "the subject is empty"),
        ({"prompt": "The mother tongue of Hugo Lantern is"}, "the subject is not in the prompt"),
        ({"prompt": "{} and {} are"}, "put {} once"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"target_new": {"str": " "}}, "target_new is empty"),
        ({"target_true": None}, "target_true is empty"),
    ],
)
def test_a_bad_counterfact_record_is_named(
    counterfact: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([record(), record(**changes)]))
    with pytest.raises(DataError) as caught:
        counterfact.rows(path)
    message = str(caught.value)
    assert str(path) in message and "record 7" in message and said in message and "\n" not in message
    with pytest.raises(DataError, match="record 7"):
        counterfact.edits([record(**changes)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subject": " "}, "the subject is empty"),
        ({"subject": "Unifirst"}, "is not in"),
        ({"answers": []}, "the answers are empty"),
        ({"loc_ans": ""}, "the loc_ans is empty"),
    ],
)
def test_a_bad_zsre_record_is_named(zsre: Any, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(question()) + "\n" + json.dumps(question(**changes)) + "\n")
    with pytest.raises(DataError) as caught:
        zsre.rows(path)
    message = str(caught.value)
    assert str(path) in message and "record 1" in message and said in message and "\n" not in message


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("content", ["[", '[{"a": 1},', "[1]", "", '{"a": '])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "cut.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"cut\.json"):
        functions(name).rows(path)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_shipped_records_are_edits_and_probes(name: str, split: str) -> None:
    module = functions(name)
    rows = module.source(None, split)
    edits = module.edits(rows)
    assert len(edits) == len(rows) >= 150
    assert len({edit.id for edit in edits}) == len(edits)
    assert all(edit.target != edit.target_old for edit in edits)
    docs = module.dataset(split=split)["test"]
    assert set(docs["case"]) == {edit.id for edit in edits}
    assert {kind: docs["kind"].count(kind) for kind in ("rewrite", "neighborhood")} == {
        "rewrite": len(rows), "neighborhood": len(rows) * (10 if name == "counterfact" else 1),
    }  # fmt: skip


def plainly(name: str, row: dict[str, Any]) -> list[tuple[str, str, str, str | None]]:
    """Kind, prompt, right answer and rival of each probe of a record, taken from its fields one by one."""
    if name == "zsre":
        loc = row["loc"].strip()
        loc = loc if loc.endswith("?") else f"{loc}?"
        asked = [("rewrite", row["src"].strip(), row["alt"].strip())]
        asked += [("paraphrase", row["rephrase"].strip(), row["alt"].strip())]
        asked += [("neighborhood", loc, row["loc_ans"].strip())]
        return [(*one, None) for one in asked]
    request = row["requested_rewrite"]
    new, true = request["target_new"]["str"].strip(), request["target_true"]["str"].strip()
    found = [("rewrite", request["prompt"].replace("{}", request["subject"]), new, true)]
    found += [("paraphrase", prompt, new, true) for prompt in row["paraphrase_prompts"]]
    found += [("neighborhood", prompt, true, new) for prompt in row["neighborhood_prompts"]]
    return [
        (kind, prompt.rstrip(" \t"), *answers)
        for kind, prompt, *answers in [*found, *(("attribute", one, new, true) for one in row["attribute_prompts"])]
    ]


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("real", [False, True])
def test_what_the_yaml_declares_is_what_the_fields_say(request: Any, name: str, real: bool) -> None:
    module = functions(name)
    folder = str(request.getfixturevalue("shared") / "data") if real else None
    every = [row for row in module.source(folder) if name == "counterfact" or module.wanted(row)]
    cases = module.declared().of_rows(every)
    assert len(cases) == len(every) >= 500
    for case, row in zip(cases, every, strict=True):
        first = "probability" if name == "counterfact" else "accuracy"
        asked = [(q.kind, q.prompt, q.answers[0], q.rival) for q in case.probes if q.protocol == first]
        assert asked == plainly(name, row)
        (edit,) = case.edits
        assert (edit.text, edit.target, edit.relation) == (
            asked[0][1], asked[0][2], row["requested_rewrite"]["relation_id"] if name == "counterfact" else None,
        )  # fmt: skip
        assert edit.target_old == (asked[0][3] or row["answers"][0].strip())


def test_only_the_named_records_are_examined(counterfact: Any, zsre: Any) -> None:
    docs = counterfact.dataset(records=[5, "2"], kinds=["rewrite", "paraphrase"])["test"]
    assert list(docs["case"]) == ["5", "5", "5", "2", "2", "2"]
    assert set(zsre.dataset(records=[4])["test"]["case"]) == {"4"}
    assert set(counterfact.generation_dataset(records=[0])["test"]["kind"]) == {"rewrite", "paraphrase", "neighborhood"}
    with pytest.raises(DataError, match="no record 999999"):
        counterfact.dataset(records=[999999])
    with pytest.raises(DataError, match="no record 999999"):
        zsre.dataset(records=[999999])
    with pytest.raises(DataError, match="no kind of probe 'rewrites'"):
        counterfact.dataset(records=[1], kinds=["rewrites"])


def test_the_real_records_load(shared: Path, counterfact: Any, zsre: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(shared / "data")
    original = counterfact.source(folder)
    assert len(original) == len(counterfact.edits(original)) == 500
    assert len(counterfact.dataset(data_dir=folder)["test"]) == 500 * 23
    with caplog.at_level(logging.WARNING):
        more = counterfact.source(folder, count=600)
    assert len(more) == 21919
    assert more[:500] == original
    assert all(row["rebuilt"] for row in more[500:])
    assert "500 original records do not suffice" in caplog.text
    assert len({row["case_id"] for row in more}) == 21919
    assert len(counterfact.dataset(data_dir=folder, records=[0], kinds=["rewrite"])["test"]) == 1
    questions = zsre.source(folder)
    assert (len(questions), len(zsre.edits(questions)), len(zsre.edits(questions, target="answers"))) == (
        1000,
        998,
        1000,
    )
