"""The model with its tokenizer: tokens, spans, names, hashes, and what cannot be loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.editing.edit import Edit
from harness.errors import DataError, ModelError
from harness.exam import knowledge
from harness.io.nobody import tell_nobody
from harness.models import lm as loading
from harness.patches.patch import Patch
from harness.studies.localization import localize
from harness.studies.remedi import asking

BOTH = pytest.mark.parametrize("family", ["gpt2", "llama"])


@BOTH
def test_a_continuation_is_what_follows_the_prompt(tiny, family):
    lm = tiny(family)
    prompt, target = "The home of Hugo Lantern is", " Oslo, Norway"
    joined = lm.encode(prompt) + lm.continuation(prompt, target)
    assert joined == lm.encode(prompt + target)
    assert lm.tokenizer.decode(joined, skip_special_tokens=True) == prompt + target


@BOTH
def test_the_tokens_of_a_text_are_the_callers_own(tiny, family):
    """A text that is asked for again is not read again, and nobody sees what another made of its tokens."""
    lm = replace(tiny(family))
    before = lm.encode("The home of Hugo Lantern")
    lm.encode("The home of Hugo Lantern").append(-1)
    assert lm.encode("The home of Hugo Lantern") == before == lm.tokenizer("The home of Hugo Lantern")["input_ids"]
    lm.span("The home of Hugo Lantern", "Hugo")
    assert lm._tokens.cache_info().misses == 1


@BOTH
def test_the_span_of_a_subject_covers_it(tiny, family):
    lm = tiny(family)
    text = "Nobody knows. The home of Hugo Lantern is Rome, and Hugo Lantern knows"
    ids = lm.encode(text)
    begin, end = lm.span(text, "Hugo Lantern")
    assert lm.tokenizer.decode(ids[begin:end]).strip() == "Hugo Lantern"
    second = text.rindex("Hugo")
    later = lm.span(text, "Hugo Lantern", second)
    assert later[0] > begin
    assert lm.tokenizer.decode(ids[later[0] : later[1]]).strip() == "Hugo Lantern"
    with pytest.raises(DataError, match="the subject 'Iris' is not in"):
        lm.span(text, "Iris")


@BOTH
def test_batches_are_padded_on_the_right(tiny, family):
    lm = tiny(family)
    rows = [lm.encode("Ada"), lm.encode("Ada Velmont was born in Rome")]
    batch = lm.batch(rows)
    assert batch.lengths.tolist() == [len(row) for row in rows]
    for i, row in enumerate(rows):
        assert batch.ids[i, : len(row)].tolist() == row
        assert batch.mask[i].tolist() == [1] * len(row) + [0] * (batch.ids.shape[1] - len(row))


@BOTH
def test_matrices_are_views_out_by_in(fresh, family):
    lm = fresh(family)
    view = lm.matrix(lm.down(0))
    with torch.no_grad():
        view[3, 5] = 42.0
    stored = lm.parameter(lm.down(0))
    assert float(stored[(5, 3) if lm.transposed(lm.down(0)) else (3, 5)]) == 42.0
    assert lm.transposed(lm.down(0)) == (family == "gpt2")


def test_names_that_do_not_exist_are_met_with_near_ones(tiny):
    lm = tiny("gpt2")
    with pytest.raises(ModelError, match=r"did you mean .*transformer.h.1.mlp"):
        lm.module("transformer.h.1.mpl")
    with pytest.raises(ModelError, match=r"is not a parameter of tiny-gpt2 \(did you mean"):
        lm.parameter("transformer.h.1.mlp.c_proj.wight")


def test_the_fingerprint_is_that_of_the_weights(fresh):
    one, same, other = fresh("gpt2"), fresh("gpt2"), fresh("gpt2", 1)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    before = one.fingerprint()
    with torch.no_grad():
        one.parameter(one.down(0))[0, 0] += 1e-6
    assert one.fingerprint() != before


def test_what_is_saved_is_loaded(fresh, tmp_path):
    lm = fresh("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = loading.load(str(tmp_path), dtype="float32", device="cpu")
    assert again.fingerprint() == lm.fingerprint()
    assert again.encode("Ada Velmont") == lm.encode("Ada Velmont")
    assert loading.load(str(tmp_path), dtype="bfloat16", device="cpu").matrix(lm.down(0)).dtype == torch.bfloat16


def test_a_nan_in_the_weights_is_named(fresh, tmp_path):
    lm = fresh("gpt2")
    with torch.no_grad():
        lm.parameter("transformer.h.1.mlp.c_proj.weight")[0, 0] = float("nan")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'transformer.h.1.mlp.c_proj.weight' holds a NaN"):
        loading.load(str(tmp_path), dtype="float32", device="cpu")


def test_models_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json there"):
        loading.load(str(tmp_path))
    with pytest.raises(ModelError, match=r"dtype 'float31' does not exist \(did you mean"):
        loading.load(str(tmp_path), dtype="float31")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard"}), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        loading.load(str(tmp_path), device="cpu")


def test_the_context_is_that_of_the_model(tiny):
    assert {tiny(family).context for family in ("gpt2", "llama", "opt")} == {96}


@BOTH
def test_texts_are_written_as_asked_for_and_not_as_a_checkpoint_recommends(fresh, family):
    """Llama 3 recommends a temperature of 0.6 and top_p 0.9, Qwen a repetition penalty."""
    lm = fresh(family)

    def written():
        prompt, about = "The home of Hugo Lantern is", Edit("1", "{} is in", "Hugo Lantern", "Rome")
        greedy = knowledge.continuations(lm, [tuple(lm.encode(prompt))], new_tokens=20, report=tell_nobody)
        sampled = asking.sampled(lm, [asking.PatchedPrompt(prompt, Patch())] * 3, length=40, seed=0)
        texts = localize._texts(lm, [about], 0, lambda *_: None)["1"]
        return greedy, sampled, [text.target for text in texts]

    plain, recommended = written(), lm.model.generation_config
    recommended.update(do_sample=True, temperature=0.3, top_p=0.2, repetition_penalty=3.0, no_repeat_ngram_size=2)
    assert written() == plain
    assert lm.model.generation_config is recommended
