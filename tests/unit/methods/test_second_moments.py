"""Second moments: numbers, one pass, the cache and what it refuses."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from editors.memit import Memit
from editors.rome import Rome
from harness.errors import DataError, NumericalError
from harness.io import hub, tensor_file
from harness.io.plain_text import read_documents, text_identity
from harness.methods import second_moments
from harness.methods.second_moments import Moment, accumulate_moments, cached_moments, moments, verify_cached


def plain_moment(lm, layer, texts, longest=None):
    """The definition, one text at a time."""
    total, count = torch.zeros(lm.arch.inner, lm.arch.inner, dtype=torch.float64), 0
    for text in texts:
        seen = []
        handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
        with torch.no_grad():
            lm.model(torch.tensor([lm.encode(text)[: longest or lm.context]]))
        handle.remove()
        keys = seen[0].reshape(-1, lm.arch.inner).double()
        total += keys.T @ keys
        count += len(keys)
    return total / count, count


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_moments_are_their_definition(fresh, sentences, family):
    lm, texts = fresh(family, dtype=torch.float64), [*sentences[:9], "a", " ".join(sentences[:40])]
    made = accumulate_moments(lm, [0, 2], texts, budget=100)
    for layer, moment in made.items():
        matrix, count = plain_moment(lm, layer, texts)
        assert moment.count == count
        assert torch.allclose(moment.matrix, matrix, rtol=1e-6, atol=1e-12)


def test_documents_of_long_contexts_are_cut(fresh, sentences, monkeypatch, tmp_path):
    """Keys of all layers stand in memory, so a context of 100,000 tokens must not become one batch."""
    lm, long = fresh("llama", dtype=torch.float64), " ".join(sentences[:10])
    whole = moments(lm, [1], tokens=50, folder=tmp_path)[1]
    monkeypatch.setattr(second_moments, "_LONGEST", 7)
    made = accumulate_moments(lm, [1], [long, long], budget=1)[1]
    matrix, _ = plain_moment(lm, 1, [long], longest=7)
    assert made.count == 14
    assert torch.allclose(made.matrix, matrix, rtol=1e-6, atol=1e-12)
    assert moments(lm, [1], tokens=50, folder=tmp_path)[1].key != whole.key


def test_only_the_upper_stripes_are_computed_and_mirrored(monkeypatch):
    """Also where the width is no multiple of a stripe; nothing below the diagonal is touched before the end."""
    monkeypatch.setattr(second_moments, "_STRIPE", 5)
    draws = torch.randn(2, 30, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(13, 13, dtype=torch.float64)
    for keys in draws:
        second_moments._add_upper(total, keys)
    assert not total[5:, :5].any()
    assert not total[10:, :10].any()
    whole = draws.flatten(0, 1)
    assert torch.allclose(second_moments._mirrored(total), whole.T @ whole, rtol=1e-12)


def test_the_pass_stops_after_the_last_layer(tiny, sentences):
    lm, ran = tiny("gpt2"), []
    handle = lm.module(lm.arch.block(2)).register_forward_hook(lambda *_: ran.append(1))
    try:
        accumulate_moments(lm, [0, 1], sentences[:4])
    finally:
        handle.remove()
    assert not ran


@pytest.mark.parametrize("tokens", [1, 37, 500])
def test_exactly_as_many_tokens_as_asked_for(tiny, tokens):
    told = []
    made = accumulate_moments(
        tiny("gpt2"), [0], read_documents(tiny("gpt2").text), tokens=tokens, progress=lambda *x: told.append(x)
    )
    assert made[0].count == tokens
    assert told[-1] == (tokens, tokens)


def test_the_cache_gives_back_what_was_made(fresh, tmp_path):
    lm = fresh("gpt2")
    made = moments(lm, [0, 1], tokens=900, folder=tmp_path)
    ran = []
    handle = lm.module(lm.arch.block(0)).register_forward_hook(lambda *_: ran.append(1))
    again = moments(lm, [1, 0], tokens=900, folder=tmp_path)
    handle.remove()
    assert not ran
    for layer in (0, 1):
        assert torch.equal(made[layer].matrix, again[layer].matrix)
        assert made[layer].count == again[layer].count == 900
    assert {entry.manifest.module for entry in cached_moments(tmp_path)} == {lm.arch.down_of(0), lm.arch.down_of(1)}
    assert not list(tmp_path.glob("*.part"))


def test_every_input_is_part_of_the_key(fresh, tmp_path, sentences):
    lm = fresh("gpt2")
    other_text = tmp_path / "other.txt"
    other_text.write_text("\n".join(sentences[::-1]), encoding="utf-8")
    changed = fresh("gpt2")
    with torch.no_grad():
        changed.parameter("transformer.h.2.ln_2.weight")[0] += 1e-3
    shorter = fresh("gpt2")
    shorter.model.config.n_positions = 40
    keys = {
        moments(model, layers, tokens=tokens, folder=tmp_path / "c")[layers[0]].key
        for model, layers, tokens in [
            (lm, [0], 300),
            (lm, [1], 300),
            (lm, [0], 301),
            (replace(lm, text=str(other_text)), [0], 300),
            (replace(lm, tokenizer=fresh("llama").tokenizer), [0], 300),
            (changed, [0], 300),
            (shorter, [0], 300),
        ]
    }
    assert len(keys) == 7
    assert moments(fresh("gpt2"), [0], tokens=300, folder=tmp_path / "c")[0].key in keys


def test_defect_3_a_file_of_another_model_is_refused(fresh, tmp_path, caplog):
    """Two models of equal shape do not share statistics, also where a file is given by hand or renamed."""
    one, two = fresh("gpt2", 0), fresh("gpt2", 1)
    first, second = (moments(lm, [0], tokens=300, folder=tmp_path)[0] for lm in (one, two))
    assert first.key != second.key
    path = tmp_path / f"{first.key}.safetensors"
    assert torch.equal(verify_cached(path, one).matrix, first.matrix)
    with pytest.raises(DataError, match=r"made from the model .* make it for this model"):
        verify_cached(path, two)
    path.replace(tmp_path / f"{second.key}.safetensors")
    assert torch.equal(moments(two, [0], tokens=300, folder=tmp_path)[0].matrix, second.matrix)
    assert "holds the second moment of something else; it is made again" in caplog.text


def damage(path: Path, value: float) -> None:
    with safe_open(path, "pt") as file:
        matrix, said = file.get_tensor("moment"), file.metadata()
    matrix[1, 1] = value
    save_file({"moment": matrix}, path, metadata=said)


def test_a_changed_a_truncated_and_a_nan_file_are_refused_and_made_again(fresh, tmp_path, caplog):
    lm = fresh("gpt2")
    right = moments(lm, [1], tokens=300, folder=tmp_path)[1].matrix
    (path,) = (entry.path for entry in (moments(lm, [1], tokens=300, folder=tmp_path) and cached_moments(tmp_path)))
    damage(path, 0.5)
    with pytest.raises(DataError, match="not what was written"):
        verify_cached(path, lm)
    assert torch.equal(moments(lm, [1], tokens=300, folder=tmp_path)[1].matrix, right)
    assert "the matrix is not what was written; it is made again" in caplog.text
    damage(path, float("nan"))
    with pytest.raises(NumericalError, match=r"transformer.h.1.mlp.c_proj holds a NaN"):
        verify_cached(path, lm)
    assert torch.equal(moments(lm, [1], tokens=300, folder=tmp_path)[1].matrix, right)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable file of second moments; delete the file"):
        verify_cached(path, lm)
    assert torch.equal(moments(lm, [1], tokens=300, folder=tmp_path)[1].matrix, right)
    assert torch.equal(verify_cached(path, lm).matrix, right)


@pytest.mark.parametrize("key", ["count", "manifest", "sha256"])
def test_a_head_that_was_changed_is_refused(fresh, tmp_path, key):
    lm = fresh("gpt2")
    (path,) = (entry.path for entry in (moments(lm, [1], tokens=300, folder=tmp_path) and cached_moments(tmp_path)))
    with safe_open(path, "pt") as file:
        matrix, said = file.get_tensor("moment"), dict(file.metadata())
    said[key] = said[key].replace("3", "4", 1) if "3" in said[key] else "1"
    save_file({"moment": matrix}, path, metadata=said)
    with pytest.raises(DataError, match="not a readable file of second moments"):
        verify_cached(path, lm)


def test_a_nan_names_the_layer_and_is_not_cached(fresh, tmp_path):
    lm = fresh("gpt2")
    with torch.no_grad():
        lm.parameter("transformer.h.1.mlp.c_fc.weight")[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="the second moment of layer 1 holds a NaN"):
        moments(lm, [0, 1], tokens=300, folder=tmp_path)
    assert {entry.manifest.module for entry in cached_moments(tmp_path)} <= {"transformer.h.0.mlp.c_proj"}


@pytest.mark.parametrize("method", [Rome(cov_tokens=40), Memit(cov_tokens=40)])
def test_too_little_text_says_how_much_there_was_and_how_much_is_needed(tiny, edits, method):
    with pytest.raises(NumericalError, match=r"40 tokens were read, at least 64 are needed .* cov_tokens=640"):
        method.edit(tiny("gpt2"), edits[:1])


def test_a_singular_moment_has_no_inverse_however_many_tokens():
    flat = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(NumericalError, match="has no inverse"):
        Moment(flat, 1000).solve(torch.ones(3, 1))
    with pytest.raises(NumericalError, match="layer 5 holds a NaN"):
        Moment(flat * float("nan"), 1000, name="layer 5").solve(torch.ones(3, 1))


def test_solve_is_the_inverse():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    right = torch.tensor([[1.0], [3.0]])
    assert torch.allclose(matrix.double() @ Moment(matrix, 100).solve(right), right.double())


def test_texts_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  two \n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "three\nlines"}) + "\n")
    (tmp_path / "notes.md").write_text("not text", encoding="utf-8")
    assert list(read_documents(str(tmp_path / "a.txt"))) == ["one", "two"]
    assert list(read_documents(str(tmp_path))) == ["one", "two", "three\nlines"]
    assert len(list(read_documents("mini"))) > 100


def test_texts_that_cannot_be_read(tmp_path, tiny):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.jsonl:2: expected a JSON object with the key 'text'"):
        list(read_documents(str(tmp_path / "bad.jsonl")))
    with pytest.raises(DataError, match="no such text"):
        list(read_documents(str(tmp_path / "absent.txt")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .txt or .jsonl file in there"):
        list(read_documents(str(tmp_path / "empty")))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        moments(replace(tiny("gpt2"), text=str(tmp_path / "empty.txt")), [0], tokens=10, folder=tmp_path / "c")
    with pytest.raises(DataError, match="give at least 1"):
        moments(tiny("gpt2"), [0], tokens=0, folder=tmp_path / "c")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        list(read_documents(str(tmp_path / "latin.txt")))


@pytest.mark.parametrize("source", ["wikitext", "wikipedia", "owner/name@abc"])
def test_without_a_network_the_error_says_what_to_give(monkeypatch, source):
    import datasets

    def offline(*args: object, **kwargs: object) -> object:
        raise ConnectionError("Offline mode is enabled.\nmore")

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"Offline mode is enabled.*give a text with --text FILE"):
        list(read_documents(source))


def test_a_text_that_does_not_come_is_told_before_anything_is_traced_or_measured(monkeypatch, tiny, tmp_path):
    """What an editor asks of a model first is that there is text for the second moments that it lacks."""

    def offline(*args: object, **kwargs: object) -> object:
        raise ConnectionError("Offline mode is enabled.")

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr("datasets.load_dataset", offline)
    lm = replace(tiny("gpt2"), text="wikitext")
    for editor in (Rome(layers=(1,)), Memit(layers=(0, 1))):
        with pytest.raises(DataError, match="give a text with --text FILE"):
            editor.require(lm)
    Rome(layers=(1,), covariance=False).require(lm)


def test_hub_texts_are_read_at_a_fixed_commit(monkeypatch):
    import datasets

    asked = {}

    def load(name, config, **rest):
        asked.update(rest, name=name, config=config)
        return [{"text": " A text. "}, {"text": "  "}]

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_documents("wikitext")) == ["A text."]
    assert asked["streaming"] is True
    assert (asked["name"], asked["config"]) == ("Salesforce/wikitext", "wikitext-103-raw-v1")
    assert len(asked["revision"]) == 40
    assert asked["revision"] in text_identity("wikitext")


def test_an_unwritable_cache_is_told(fresh, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be written .* set HARNESS_CACHE"):
        moments(fresh("gpt2"), [0], tokens=50, folder=tmp_path / "file" / "below")


def test_a_full_cache_is_told(fresh, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(DataError, match=r"cannot be written \(I/O error: No space left on device\); set HARNESS_CACHE"):
        moments(fresh("gpt2"), [0], tokens=50, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
