"""The ensemble with a companion: its formula, its limits, and what the companion reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.companion import Companion, Ensemble, GrowingText, _opened
from editors.rag import Rag
from editors.senses import SENSES, SenseChange, Senses
from harness.editing import patch_file
from harness.editing.edit import Edit
from harness.editing.registry import configure
from harness.errors import DataError, ModelError, UsageError
from harness.io.plain_objects import flatten, rebuild
from harness.methods.logit_ensemble import combine_logits, common_vocabulary, largest_beta
from harness.models.lm import LM, load
from harness.patches.patch import Patch, Step, patched

# --- the vectors of the specification, and limits ---------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "wanted"), [(1.0, 0.803050), (0.9, 0.796558), (0.0, 0.731059)])
def test_tv_20_two_words(beta: float, wanted: float) -> None:
    logits, tuned, base = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.4]).log(), torch.tensor([0.5, 0.5]).log()
    found = combine_logits(logits, tuned, base, beta=beta, common=2)
    assert float(found.softmax(-1)[0]) == pytest.approx(wanted, abs=1e-6)
    if beta == 1:
        assert found.tolist() == pytest.approx([1.18232, -0.22314], abs=1e-5)


def test_only_common_tokens_are_possible_and_the_softmax_is_over_all_of_the_companions() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, tuned, base = (torch.randn(2, 3, n, generator=draw) for n in (9, 7, 7))
    found = combine_logits(logits, tuned, base, beta=0.7, common=5)
    assert found.shape == logits.shape
    wanted = logits[..., :5] + 0.7 * (tuned.log_softmax(-1) - base.log_softmax(-1))[..., :5]
    assert torch.allclose(found[..., :5], wanted)
    assert not found.softmax(-1)[..., 5:].any()
    assert torch.equal(combine_logits(logits, base, base, beta=1.0, common=5)[..., :5], logits[..., :5])
    half = combine_logits(logits.half(), tuned, base, beta=0.7, common=5)
    assert half.dtype == torch.float16
    assert torch.allclose(half[..., :5].float(), wanted, atol=5e-3)


def test_tv_21_the_largest_beta_in_the_ball() -> None:
    asked = []

    def general(beta: float) -> float:
        asked.append(beta)
        return {0.0: 2.385603089679371, 1.0: 2.38800, 0.9: 2.38790}[beta]

    assert largest_beta(general, 1e-3) == 0.9
    assert asked == [0.0, 1.0, 0.9]
    assert largest_beta(lambda beta: 3.0 + beta, 1e-3) == 0.0
    assert largest_beta(lambda beta: 3.0, 1e-5) == 1.0
    assert largest_beta(lambda beta: 3.0 + 0.001 * beta, 1e-4) == pytest.approx(0.2)


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(checkpoint: Callable[..., Path], text: str) -> LM:
    """The companion."""
    return _opened(str(checkpoint("backpack")), "cpu", text)


@pytest.fixture
def change(small: LM) -> Patch:
    """A change of five senses of the companion."""
    ids = torch.tensor(sorted(set(small.encode("Ada Velmont was born in Rome"))))[:5]
    deltas = 3 * torch.randn(5, small.arch.width, generator=torch.Generator().manual_seed(4))
    return Patch(hooks={SENSES: SenseChange(ids, torch.tensor([0, 1, 2, 3, 0]), deltas)})


def rule(small: LM, change: Patch, beta: float = 1.0) -> Ensemble:
    return Ensemble(small.name, change, beta, 400, "cpu", small.text)


def logits_of(lm: LM, patch: Patch, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    with patched(lm, patch), torch.no_grad():
        found: Tensor = lm.model(input_ids=ids, attention_mask=mask, **more).logits
    return found


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_the_rule_adds_the_companions_change_of_log_probabilities(tiny, small, change, beta) -> None:
    lm = tiny("gptj")
    batch = lm.batch([lm.encode("Ada Velmont was born in Rome"), lm.encode("The home of Ada")])
    plain = logits_of(lm, Patch(), batch.ids, batch.mask)
    base = logits_of(small, Patch(), batch.ids, batch.mask).log_softmax(-1)
    tuned = logits_of(small, change, batch.ids, batch.mask).log_softmax(-1)
    found = logits_of(lm, Patch(logits=rule(small, change, beta)), batch.ids, batch.mask)
    real = batch.mask.bool()
    assert torch.allclose(found[real], (plain + beta * (tuned - base))[real], atol=1e-3, rtol=1e-4)
    assert float((found - plain)[real].abs().max()) > 1


def test_a_companion_that_is_not_edited_changes_nothing(tiny, small) -> None:
    lm = tiny("gptj")
    batch = lm.batch([lm.encode("Ada Velmont was born in Rome")])
    found = logits_of(lm, Patch(logits=rule(small, Patch())), batch.ids, batch.mask)
    assert torch.equal(found, logits_of(lm, Patch(), batch.ids, batch.mask))


def read_by(small: LM, run: Callable[[], object]) -> int:
    """The columns that the companion's blocks compute during a call."""
    columns: list[int] = []
    block = small.module(small.arch.block(0))
    handle = block.register_forward_pre_hook(lambda _, args: columns.append(args[0].shape[1]))
    try:
        run()
    finally:
        handle.remove()
    return sum(columns)


def test_each_token_is_read_once_by_each_of_both_companions(tiny, small, change) -> None:
    lm = tiny("llama")
    ids = torch.tensor([lm.encode("Ada Velmont was born in")])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with patched(lm, Patch(logits=rule(small, change))):
        read = read_by(small, lambda: lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options))
    assert read == 2 * (ids.shape[1] + 11)


def test_texts_that_do_not_go_on_are_read_anew(small, change) -> None:
    first = torch.tensor([small.encode("Ada Velmont was born in"), small.encode("Hugo Velmont was born in")])
    reader, ones = GrowingText(), torch.ones_like(first)
    for ids in (first, first.flip(0)):  # as a beam search does, which changes the rows' order
        longer = torch.cat([ids, ids[:, :1]], 1)
        for step in (Step(ids, ones, 1), Step(longer, torch.ones_like(longer), 1)):
            wanted = logits_of(small, Patch(), step.ids, step.mask)[:, -1:]
            assert torch.allclose(reader.logits(small, step), wanted, atol=1e-3, rtol=1e-4)
    whole = Step(longer, torch.ones_like(longer), longer.shape[1])
    assert reader.logits(small, whole).shape[1] == longer.shape[1]
    again = Step(longer[:, :4], torch.ones_like(longer[:, :4]), 4)
    assert read_by(small, lambda: reader.logits(small, again)) == 4


def test_padding_on_the_left(tiny, small, change) -> None:
    lm = tiny("gpt2")
    ids = torch.tensor([lm.encode("Ada Velmont was born in")])
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 4).long()[None]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with patched(lm, Patch(logits=rule(small, change))):
        found = [
            lm.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=u, **options) for u in (True, False)
        ]
        left = lm.model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(found[0], found[1])
    assert torch.equal(left[:, 4:], found[0])


def test_what_a_companion_cannot_read_is_refused(tiny, small, change, monkeypatch) -> None:
    lm = tiny("gpt2")
    monkeypatch.setattr(small.model.config, "n_positions", 5)
    batch = lm.batch([lm.encode("Ada Velmont was born in Rome")])
    with pytest.raises(ModelError, match=r"^a text of \d+ tokens, but the companion .* reads 5; shorten the prompts"):
        logits_of(lm, Patch(logits=rule(small, change)), batch.ids, batch.mask)


def test_another_tokenizer_is_refused(tiny, make_tokenizer) -> None:
    lm = tiny("gpt2")
    assert common_vocabulary(lm, tiny("llama")) == 400
    other = make_tokenizer(False)
    other.add_tokens(["<more>"])
    assert common_vocabulary(lm, LM(lm.model, other, "more", lm.arch)) == 400

    with pytest.raises(ModelError, match=r"^token 0 is '<\|end\|>' to tiny-gpt2 and '<\|endoftext\|>' to mini; give"):
        common_vocabulary(lm, load("mini", device="cpu"))


# --- the editor -------------------------------------------------------------------------------------------------------


def test_a_saved_change_of_the_companion(tiny, small, change, edits, tmp_path) -> None:
    patch_file.save_patch(change, small, tmp_path / "small.safetensors", editor="senses")
    lm = tiny("gpt2")
    method = Companion(model=small.name, patch=str(tmp_path / "small.safetensors"), beta=0.5)
    first, second = method.edit(lm, edits[:1]), method.edit(lm, edits[1:])
    batch = lm.batch([lm.encode("Ada Velmont was born in Rome")])
    wanted = logits_of(lm, Patch(logits=rule(small, change, 0.5)), batch.ids, batch.mask)
    assert torch.equal(logits_of(lm, first, batch.ids, batch.mask), wanted)
    assert torch.equal(logits_of(lm, first + second, batch.ids, batch.mask), wanted)
    patch_file.save_patch(first, lm, tmp_path / "both.safetensors", editor="companion")
    again = patch_file.load_patch(tmp_path / "both.safetensors", lm)
    assert torch.equal(logits_of(lm, again, batch.ids, batch.mask), wanted)
    notes = method.notes(lm)
    assert notes == {"companion": small.fingerprint(), "patch": patch_file.patch_manifest(Path(method.patch))["sha256"]}
    assert Companion(model=small.name, lr=0.5).notes(lm)["method"]["lr"] == 0.5


def test_a_saved_change_of_the_prompt_is_refused(tiny, small, edits, tmp_path) -> None:
    patch_file.save_patch(Rag().edit(small, edits), small, tmp_path / "facts.safetensors", editor="rag")
    method = Companion(model=small.name, patch=str(tmp_path / "facts.safetensors"))
    with pytest.raises(ModelError, match=r"facts\.safetensors: changes the prompt, but a companion reads what"):
        method.edit(tiny("gpt2"), edits)


def test_increments_of_the_companion_add(tiny, small, edits) -> None:
    lm = tiny("gpt2")
    method = Companion(model=small.name, lr=0.5, kl=0.0, epochs=2)
    first = method.edit(lm, edits[:1])
    second = method.edit(lm, edits[1:2], first.memory)
    both = (first + second).logits
    batch = small.batch([small.encode("The home of Hugo Lantern is Oslo")])
    with patched(small, first.memory.change):
        assert torch.equal(
            small.model(input_ids=batch.ids).logits, logits_of(small, first.logits.change, batch.ids, batch.mask)
        )
    sums = [logits_of(small, change, batch.ids, batch.mask) for change in (both.change, second.memory.change)]
    assert torch.equal(*sums)


def test_a_companion_is_felt_after_each_of_its_epochs(tiny, small, edits) -> None:
    lm = tiny("gptj")
    settings = {"k": 3, "epochs": 3, "lr": 0.2, "kl": 1e-3, "kl_text": small.text, "seed": 3}
    found = list(Companion(model=small.name, **settings).passes(lm, edits))
    alone = list(configure(Senses, small.name, settings).passes(small, edits))
    assert len(found) == len(alone) == 3
    for with_it, without in zip(found, alone, strict=True):
        rule = with_it.patch.logits
        assert isinstance(rule, Ensemble)
        change, wanted = (patch.hooks[SENSES].deltas for patch in (rule.change, without.patch))
        assert torch.equal(change, wanted)
        assert with_it.loss == without.loss
    assert len({done.loss for done in found}) == 3


def test_what_cannot_be_joined_or_put_back_is_refused(tiny, small, change, checkpoint, edits) -> None:
    lm, made = tiny("gpt2"), rule(small, change)
    with pytest.raises(ModelError, match=r"two companions, .* with beta 1 and .* with beta 0\.5; use one"):
        made.joined(rule(small, change, 0.5))
    other = {**made.settings(), "companion": str(checkpoint("backpack", 1))}
    with pytest.raises(DataError, match="is not the model that was edited; give the same checkpoint"):
        Ensemble.restore(lm, other, made.tensors())
    with pytest.raises(UsageError, match="the memory is a str of another editor"):
        Companion(model=small.name).edit(lm, edits, "words")
    with pytest.raises(ModelError, match="senses edits backpack models, and mini is a gpt2"):
        Companion(model="mini").edit(lm, [Edit("a", "Ada is", None, "here")])


def test_what_was_read_is_not_kept(small, change) -> None:
    made = rule(small, change)
    ids = torch.tensor([small.encode("Ada Velmont was born in")])
    made(torch.zeros(1, 1, 400), Step(ids, torch.ones_like(ids), 1))
    assert made.base._cache is not None
    again = rebuild(*flatten(made), packages=("harness", "editors"))
    assert again.base._cache is None
    assert torch.equal(again.change.hooks[SENSES].deltas, change.hooks[SENSES].deltas)
