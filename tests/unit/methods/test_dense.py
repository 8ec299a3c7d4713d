"""Retrieval by an encoder: vectors against a plain loop, what is near, and folders that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config

from editors.rag import Rag, Recall
from harness.editing.edit import Edit
from harness.errors import UsageError
from harness.methods.dense import DenseIndex, Similarity, index_of, load_encoder
from harness.methods.retrieval import Index, as_fact
from harness.models.lm import LM

ADA = Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo")
HUGO = Edit("b", "Everybody knows that {} plays the", "Hugo Lantern", "tuba", "violin")
IRIS = Edit("c", "The home of {} is", "Iris Calder", "Paris", "Rome")
FACTS = tuple(map(as_fact, (ADA, HUGO, IRIS)))
QUESTION = "Where was Ada Velmont born?"


def regular(model: BertModel) -> BertModel:
    """The model with weights that a formula gives, the same with every version of torch."""
    with torch.no_grad():
        for n, (name, weight) in enumerate(sorted(model.named_parameters())):
            waves = 0.3 * torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 0.7 + n)
            weight.data.copy_((waves + ("LayerNorm.weight" in name)).reshape(weight.shape))
    return model


@pytest.fixture(scope="session")
def folder(make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as transformers saves one."""
    where = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=400,
        max_position_embeddings=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    regular(BertModel(config)).save_pretrained(where)
    make_tokenizer().save_pretrained(where)
    return where


def by_hand(folder: Path, text: str) -> torch.Tensor:
    """The mean of the last states over a text's tokens, of this text alone."""
    model = BertModel.from_pretrained(folder)
    model.train(False)
    with torch.no_grad():
        ids = PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"]
        states: torch.Tensor = model(torch.tensor([ids])).last_hidden_state
    return states[0].mean(0)


def test_a_text_is_the_mean_of_its_tokens_whatever_stands_beside_it(folder: Path) -> None:
    texts = [one.sentence for one in FACTS] * 12 + [QUESTION]
    found = load_encoder(str(folder)).embed(texts)
    for row, text in [*zip(found[:3], texts[:3], strict=True), (found[-1], QUESTION)]:
        assert torch.allclose(row, by_hand(folder, text), atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "product"])
def test_the_nearest_are_ranked_by_cosine_or_by_product(folder: Path, similarity: Similarity) -> None:
    index = index_of(FACTS, str(folder), similarity)
    asked = by_hand(folder, QUESTION)
    near = {}
    for i, one in enumerate(FACTS):
        row = by_hand(folder, one.sentence)
        near[i] = float(row @ asked) / (float(row.norm() * asked.norm()) if similarity == "cosine" else 1.0)
    ranked = index.ranked(QUESTION)
    assert [i for i, _ in ranked] == sorted(near, key=lambda i: -near[i])
    assert [value for _, value in ranked] == pytest.approx([near[i] for i, _ in ranked], abs=1e-4)
    assert index.ranked(" ") == [(2, 0.0), (1, 0.0), (0, 0.0)]


def test_products_are_those_of_the_authors_of_mello_and_scr(folder: Path) -> None:
    """Of `get_sent_embeddings` and `retrieve_facts` on this encoder, and of `RetrieveTool`, which gives the same.

    princeton-nlp/MQuAKE at fb43dad (`run_mello.ipynb`), ECNU-Text-Computing/Knowledge-Updating at 836ff52
    (`retrieve.py`). Both take products and say nothing of a scale.
    """
    theirs = [9.113187789916992, 8.738781929016113, 8.009089469909668]
    ranked = index_of(FACTS, str(folder), "product").ranked(QUESTION)
    assert [i for i, _ in ranked] == [0, 1, 2]
    assert [value for _, value in ranked] == pytest.approx(theirs, abs=2e-5)


def test_of_equals_the_later_one_and_no_encoder_means_words(folder: Path) -> None:
    index = index_of((FACTS[0], FACTS[0]), str(folder))
    assert isinstance(index, DenseIndex)
    assert [i for i, _ in index.ranked(QUESTION)] == [1, 0]
    assert isinstance(index_of(FACTS, None), Index)


def test_a_text_that_is_too_long_loses_its_end(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    assert encoder.longest == 64
    first, other = encoder.embed(["Rome " * 200, "Rome " * 300])
    assert torch.allclose(first, other, atol=1e-6)


def test_rag_retrieves_by_the_encoder_and_is_told_the_same_from_its_file(
    tiny: Callable[[str], LM], folder: Path
) -> None:
    lm, nearest = tiny("gpt2"), index_of(FACTS, str(folder)).ranked(QUESTION)
    cosine, texts = nearest[0][1], [FACTS[i].sentence for i, _ in nearest]
    for threshold, k, told in ((0.0, 1, texts[:1]), (cosine - 1e-4, 3, texts[:1]), (min(cosine + 1e-4, 1.0), 3, [])):
        rule = Rag(k=k, threshold=threshold, room=8, encoder=str(folder)).edit(lm, [ADA, HUGO, IRIS]).prompt
        assert isinstance(rule, Recall)
        assert rule(QUESTION) == " ".join([*told, QUESTION])
        again = Recall.restore(lm, json.loads(json.dumps(rule.settings())), rule.tensors())
        assert again(QUESTION) == rule(QUESTION)
    assert isinstance(rule, Recall)
    older = {key: value for key, value in rule.settings().items() if key != "encoder"}
    assert Recall.restore(lm, older, {}).settings()["encoder"] is None


def test_a_record_says_which_encoder_it_was(tiny: Callable[[str], LM], folder: Path) -> None:
    lm = tiny("gpt2")
    said = Rag(encoder=str(folder)).notes(lm)
    assert said == {"encoder_sha256": load_encoder(str(folder)).sha256}
    assert Rag().notes(lm) == {}


def as_sentence_encoder(folder: Path, where: Path, pooling: Mapping[str, object], *steps: str) -> Path:
    """The folder as sentence-transformers saves it."""
    shutil_copy(folder, where)
    types = ("Transformer", "Pooling", *steps)
    rows = [
        {"idx": i, "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(types)
    ]
    (where / "modules.json").write_text(json.dumps(rows))
    (where / "1_Pooling").mkdir()
    (where / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return where


def shutil_copy(folder: Path, where: Path) -> None:
    where.mkdir()
    for path in folder.iterdir():
        (where / path.name).write_bytes(path.read_bytes())


OLD = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("pooling", "first"),
    [
        (OLD, False),
        ({**OLD, "include_prompt": True}, False),
        ({**OLD, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": "mean"}, False),
    ],
)
def test_a_sentence_encoder_is_pooled_as_its_folder_says(
    folder: Path, tmp_path: Path, pooling: Mapping[str, object], first: bool
) -> None:
    where = as_sentence_encoder(folder, tmp_path / "it", pooling, "Normalize")
    encoder, plain = load_encoder(str(where)), load_encoder(str(folder))
    wanted = replace(plain, pooling="cls") if first else plain
    assert torch.equal(encoder.embed([QUESTION]), wanted.embed([QUESTION]))
    assert first != torch.equal(encoder.embed([QUESTION]), plain.embed([QUESTION]))


def test_what_cannot_be_an_encoder_is_refused_in_a_line(
    tiny: Callable[[str], LM],
    folder: Path,
    tmp_path: Path,
) -> None:
    both = as_sentence_encoder(folder, tmp_path / "both", {**OLD, "pooling_mode_cls_token": True})
    more = as_sentence_encoder(folder, tmp_path / "more", OLD, "Dense")
    (tmp_path / "empty").mkdir()
    shutil_copy(folder, tmp_path / "broken")
    (tmp_path / "broken" / "modules.json").write_text("{")
    shutil_copy(folder, tmp_path / "half")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    t5 = tmp_path / "t5"
    T5Config().save_pretrained(t5)
    for where, said in (
        (tmp_path / "nowhere", "is no folder; give the folder of an encoder"),
        (tmp_path / "empty", "cannot be read"),
        (tmp_path / "broken", "cannot be read"),
        (tmp_path / "half", "has no weights of encoder.layer.2"),
        (both, "has pooling by cls, mean; expected"),
        (more, "has the steps Transformer, Pooling, Dense; expected"),
        (t5, "has a decoder; expected"),
    ):
        with pytest.raises(UsageError, match=said) as found:
            Rag(encoder=str(where)).require(tiny("gpt2"))
        assert "\n" not in str(found.value)
