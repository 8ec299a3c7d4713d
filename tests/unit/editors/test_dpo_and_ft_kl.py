"""Fine-tuning with a guard and by preference: both against plain loops that say their formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from editors import dpo
from editors.dpo import Dpo, preference_loss
from editors.ft_kl import GuardedFineTuning
from editors.ft_m import MaskedFineTuning
from harness.editing.edit import Edit
from harness.editing.schedule import require_able
from harness.errors import DataError, UsageError
from harness.methods.kl_regulariser import kl_regulariser
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

EDITS = [
    Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo, Norway"),
    Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", "Rome"),
    Edit("c", "Everybody knows {}", "Elena Marsh", "lives in Paris", "lives in Athens"),
]


def log_p(lm: LM, edit: Edit, text: str) -> Tensor:
    """The log-probability of a whole continuation."""
    prompt, said = lm.encode(edit.text), lm.continuation(edit.text, edit.says(text))
    rows = lm.model(input_ids=torch.tensor([prompt + said])).logits[0].log_softmax(-1)
    return torch.stack([rows[len(prompt) - 1 + i, token] for i, token in enumerate(said)]).sum()


def adam_by_hand(
    lm: LM, names: Sequence[str], batches: Sequence[Sequence[Edit]], lr: float, loss: Callable[[Sequence[Edit]], Tensor]
) -> None:
    own = [lm.parameter(name).requires_grad_() for name in names]
    adam = torch.optim.Adam(own, lr=lr)
    for batch in batches:
        adam.zero_grad()
        loss(batch).backward()
        adam.step()
    for parameter in own:
        parameter.requires_grad_(False)


def parameters(lm: LM) -> list[str]:
    return [name for name, _ in lm.model.named_parameters() if name.startswith(lm.arch.down_of(1))]


def assert_same(lm: LM, patch: Patch, other: LM) -> None:
    """The patched parameters are those of another model, and moved."""
    assert sorted(patch.weights) == sorted(parameters(lm))
    with patched(lm, patch):
        moved = {name: lm.parameter(name).detach().clone() for name in patch.weights}
    for name, value in moved.items():
        assert torch.allclose(value, other.parameter(name), atol=5e-6), name
    assert max(float((value - lm.parameter(name)).abs().max()) for name, value in moved.items()) > 1e-3


# --- DPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_loss_of_preference_by_hand(beta: float) -> None:
    """Gained 2 and lost 1 nats: a margin of 3; lost 1 and gained 3: of -4; both alike: log 2."""
    before = torch.tensor([[-5.0, -1.0], [-2.0, -6.0], [-3.0, -4.0]])
    after = torch.tensor([[-3.0, -2.0], [-3.0, -3.0], [-9.0, -10.0]])
    expected = [math.log(1 + math.exp(-beta * margin)) for margin in (3.0, -4.0, 0.0)]
    assert preference_loss(after, before, beta).tolist() == pytest.approx(expected, rel=1e-6)
    assert expected[2] == pytest.approx(math.log(2))


@pytest.mark.parametrize("nll", [0.0, 0.6])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dpo_is_adam_on_its_loss_against_a_frozen_copy(fresh: Callable[..., LM], family: str, nll: float) -> None:
    lm, other = fresh(family), fresh(family)
    frozen = copy.deepcopy(other)
    method = Dpo(layers=(1,), beta=0.4, nll=nll, lr=1e-3, steps=3, batch_size=2, threshold=0.0)

    def loss(batch: Sequence[Edit]) -> Tensor:
        each = []
        for edit in batch:
            assert edit.target_old is not None
            with torch.no_grad():
                old_w, old_l = log_p(frozen, edit, edit.target), log_p(frozen, edit, edit.target_old)
            new_w, new_l = log_p(other, edit, edit.target), log_p(other, edit, edit.target_old)
            preferred = -logsigmoid(0.4 * ((new_w - old_w) - (new_l - old_l)))
            tokens = len(lm.continuation(edit.text, edit.continuation))
            each.append(nll * -new_w / tokens + (1 - nll) * preferred)
        return torch.stack(each).mean()

    adam_by_hand(other, parameters(other), [EDITS[:2], EDITS[2:]] * 3, 1e-3, loss)
    assert_same(lm, method.edit(lm, EDITS), other)


def test_the_first_loss_is_log_2_and_the_threshold_is_that_of_the_loss(fresh: Callable[..., LM]) -> None:
    """The reference is the model that the edits are made on: a later operation begins at log 2 again."""
    lm, seen = fresh("gpt2"), []

    def keep(*given: Any) -> Tensor:
        seen.append(preference_loss(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(dpo, "preference_loss", keep)
        method = Dpo(layers=(1,), lr=1e-2, steps=2, batch_size=3)
        first = method.edit(lm, EDITS)
        with patched(lm, first):
            method.edit(lm, EDITS)
    assert [len(one) for one in seen] == [3] * 4
    for begun, gone_on in (seen[:2], seen[2:]):
        assert begun.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-5)
        assert float(gone_on.detach().mean()) < math.log(2) - 1e-3
    still = Dpo(layers=(1,), steps=2, threshold=0.7).edit(lm, EDITS)
    assert all(float(delta.dense().abs().max()) == 0 for delta in still.weights.values())


def test_dpo_widens_the_margin_and_with_the_likelihood_raises_the_target(taught: Callable[[str], LM]) -> None:
    lm = taught("llama")

    def margins() -> list[float]:
        return [float(log_p(lm, e, e.target) - log_p(lm, e, str(e.target_old))) for e in EDITS]

    before, likely = margins(), [float(log_p(lm, e, e.target)) for e in EDITS]
    quick = Dpo(layers=(1,), lr=5e-3, steps=15, batch_size=3)
    with patched(lm, quick.edit(lm, EDITS)):
        assert all(new > old + 2 for old, new in zip(before, margins(), strict=True))
    with patched(lm, replace(quick, nll=0.99).edit(lm, EDITS)):
        assert all(float(log_p(lm, e, e.target)) > old + 1 for e, old in zip(EDITS, likely, strict=True))


def test_what_an_edit_contrasts_is_the_old_answer(tiny: Callable[[str], LM]) -> None:
    lm, quick = tiny("gpt2"), Dpo(layers=(1,), steps=2, lr=1e-3)
    contrast = [replace(e, direction="contrast", against=e.target_old, target_old=None) for e in EDITS]
    for name, delta in quick.edit(lm, EDITS).weights.items():
        assert torch.equal(delta.dense(), quick.edit(lm, contrast).weights[name].dense())


def test_an_edit_without_an_old_answer_is_refused_before_anything_is_computed(tiny: Callable[[str], LM]) -> None:
    bare = replace(EDITS[0], target_old=None)
    with pytest.raises(UsageError, match=r"^edit a: dpo compares the target with the old answer; give 'target_old'$"):
        require_able(Dpo(), [EDITS[1], bare], "batch")
    require_able(Dpo(), [replace(bare, direction="contrast", against="Oslo")], "batch")
    with pytest.raises(DataError, match=r"^edit a: it names no old answer .*give 'target_old'$"):
        Dpo(layers=(1,)).edit(tiny("gpt2"), [bare])
    with pytest.raises(DataError, match="edit a: target and against are both 'Rome'"):
        Dpo(layers=(1,)).edit(tiny("gpt2"), [replace(bare, target_old="Rome")])


def test_the_label_says_where_the_likelihood_has_a_share() -> None:
    assert [Dpo().label(), Dpo(nll=0.99).label()] == ["dpo", "dpo-nll"]


# --- FT-KL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ft_kl_is_adam_on_the_likelihood_and_the_mean_divergence(fresh: Callable[..., LM], family: str) -> None:
    lm, other = fresh(family), fresh(family)
    frozen = copy.deepcopy(other)
    method = GuardedFineTuning(layers=(1,), lr=1e-3, steps=2, batch_size=2, threshold=0.0, kl=7.0, kl_tokens=9, seed=3)
    drawn = kl_regulariser(lm, weight=7.0, source=None, seed=3, tokens=9)
    assert drawn is not None
    texts = iter(list(islice(drawn.texts, 4)))

    def loss(batch: Sequence[Edit]) -> Tensor:
        ids = next(texts)
        assert 2 <= len(ids) <= 9
        with torch.no_grad():
            before = frozen.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        after = other.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        divergence = (before.exp() * (before - after)).sum(-1).mean()
        tokens = [len(lm.continuation(e.text, e.continuation)) for e in batch]
        nll = [-log_p(other, e, e.target) / count for e, count in zip(batch, tokens, strict=True)]
        return torch.stack(nll).mean() + 7.0 * divergence

    adam_by_hand(other, parameters(other), list(islice(cycle([EDITS[:2], EDITS[2:]]), 4)), 1e-3, loss)
    assert_same(lm, method.edit(lm, EDITS), other)


def test_without_its_guard_it_is_ft_m(tiny: Callable[[str], LM]) -> None:
    lm, common = tiny("gpt2"), {"layers": (1,), "lr": 2e-3, "steps": 3, "batch_size": 2}
    bare = MaskedFineTuning(**common).edit(lm, EDITS)  # type: ignore[arg-type]
    guarded = GuardedFineTuning(kl=0.0, **common).edit(lm, EDITS)  # type: ignore[arg-type]
    for name, delta in bare.weights.items():
        assert torch.equal(delta.dense(), guarded.weights[name].dense())


def test_the_guard_keeps_what_the_model_says_of_plain_text(taught: Callable[[str], LM], sentences: list[str]) -> None:
    lm = taught("llama")
    rows = lm.batch([lm.encode(text)[:30] for text in sentences[:8]])

    def said() -> Tensor:
        with torch.no_grad():
            logits: Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
        return logits.log_softmax(-1)[rows.mask.bool()]

    before, moved = said(), []
    for kl in (0.0, 100.0):
        with patched(lm, GuardedFineTuning(layers=(1,), lr=3e-3, steps=8, kl=kl).edit(lm, EDITS)):
            moved.append(float((before.exp() * (before - said())).sum(-1).mean()))
    assert moved[1] < 0.6 * moved[0]
