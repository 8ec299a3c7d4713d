"""A trained steering vector against the authors' numbers, and its training written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.steer import Added, Steer, preference_loss, taken_out
from harness.editing.edit import Edit
from harness.errors import DataError, NumericalError, UsageError
from harness.models.activations import capture_activations
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

EDITS = [
    Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo, Norway"),
    Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", "Rome"),
    Edit("c", "Everybody knows {}", "Elena Marsh", "lives in Paris", "lives in Athens"),
]


def test_the_loss_is_that_of_the_authors_code() -> None:
    """``preference_loss`` (scaled_simpo) of zjunlp/EasyEdit at 14cea82, steer/trainer/PreferenceModelTrainer.py."""
    winning, losing = torch.tensor([-12.0, -3.5, -20.0]), torch.tensor([-4.0, -9.0, -18.0])
    reluctance = torch.tensor([-5.0 + 15.0, -6.5 + 6.0, -18.5 + 11.0])
    lengths = torch.tensor([[9, 7], [11, 11], [8, 12]])
    found = preference_loss(winning, losing, reluctance, lengths)
    torch.testing.assert_close(found, torch.tensor([12.761908531188965, 0.4740769565105438, 1.3132617473602295]))


def test_a_vector_is_taken_out_as_in_the_authors_code() -> None:
    """``RePSVectorIntervention`` of zjunlp/EasyEdit at 14cea82, factor 0; the second state points elsewhere."""
    vector = torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64)
    hidden = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, -1.0, -2.0]], dtype=torch.float64)
    found = taken_out(hidden, vector, 0.125)
    expected = torch.tensor([[0.3059, 3.3882, 2.6529, 1.2235], [0.0, 1.0, -1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert float((taken_out(hidden, vector) @ vector)[0]) == pytest.approx(0, abs=1e-12)


def answer(lm: LM, edit: Edit, said: str, change: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, int, int]:
    """The log-probability of an answer with a change of what block 1 writes, and the tokens of prompt and answer."""
    prompt, tokens = lm.encode(edit.text), lm.continuation(edit.text, edit.says(said))
    handle = None
    if change is not None:

        def run(_module: object, _args: object, output: object) -> object:
            first, *rest = output if isinstance(output, tuple) else (output,)
            return (change(first), *rest) if isinstance(output, tuple) else change(first)

        handle = lm.module(lm.arch.block(1)).register_forward_hook(run)
    logits = lm.model(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    if handle is not None:
        handle.remove()
    places = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    picked = [logits[place, token] for place, token in zip(places, tokens, strict=True)]
    return torch.stack(picked).sum(), len(prompt), len(tokens)


def by_hand(lm: LM, method: Steer) -> Tensor:
    """The vector that is added: one edit an update, without batches, from the formula."""
    draw = torch.Generator().manual_seed(method.seed)
    width = lm.arch.width
    w = ((torch.rand(width, generator=draw) * 2 - 1) / math.sqrt(width)).requires_grad_()
    b = torch.zeros((), requires_grad=True)
    released = method.variant == "released"
    free = [w, b] if released else [w]
    adam = torch.optim.AdamW(free, lr=method.lr, weight_decay=0.0)
    count, done = method.steps * len(EDITS), 0
    for _ in range(method.steps):
        for edit in EDITS:
            olds = str(edit.target_old)
            with torch.no_grad():
                r = answer(lm, edit, olds, None)[0] - answer(lm, edit, edit.target, None)[0]
            drawn = torch.randint(len(method.factors), (2 if released else 1,), generator=draw).tolist()
            f_new, f_old = (method.factors[i] for i in (drawn if released else drawn * 2))
            scores = {}
            for name, said, f in (("new", edit.target, f_new), ("old", olds, f_old)):
                for way, change in (
                    ("in", lambda h, f=f: h + (f + b) * w),
                    ("out", lambda h: h - torch.relu(h @ w + b)[..., None] * w / w.dot(w)),
                ):
                    log_p, before, own = answer(lm, edit, said, change)
                    scores[name, way] = (log_p, own + (before if released else 0))
            loss = torch.zeros(())
            for won, lost, way, scale in (("new", "old", "in", max(r, 1.0)), ("old", "new", "out", max(-r, 1.0))):
                (p_w, n_w), (p_l, n_l) = scores[won, way], scores[lost, way]
                loss = loss + torch.nn.functional.softplus(p_l / n_l - scale * p_w / n_w)
            for group in adam.param_groups:
                group["lr"] = method.lr * (1 - done / count)
            adam.zero_grad()
            loss.backward()
            norm = torch.sqrt(sum((each.grad.square().sum() for each in free), start=torch.zeros(())))
            for each in free:
                each.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
            adam.step()
            done += 1
    strength = sum(method.factors) / len(method.factors) if method.strength is None else method.strength
    return ((strength + b) * w).detach()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_training_is_its_formula_written_out(tiny: Callable[[str], LM], family: str, variant: str) -> None:
    lm = tiny(family)
    method = Steer(layer=1, steps=2, batch_size=1, factors=(0.5, 1.0, 2.0), lr=0.05, variant=variant)  # type: ignore[arg-type]
    (hook,) = method.edit(lm, EDITS).hooks.values()
    assert isinstance(hook, Added)
    torch.testing.assert_close(hook.vector, by_hand(lm, method), atol=2e-5, rtol=1e-3)


def test_new_answers_win_by_it_and_lose_by_its_opposite(taught: Callable[[str], LM]) -> None:
    lm = taught("llama")
    method = Steer(layer=1, steps=30, factors=(1.0, 2.0), lr=0.05)

    def gap(patch: Patch) -> float:
        """How much more likely a token of the new answers is than one of the old, in nats."""
        with patched(lm, patch), torch.no_grad():
            found = [[answer(lm, e, said, None) for said in (e.target, str(e.target_old))] for e in EDITS]
        return sum(float(new[0] / new[2] - old[0] / old[2]) for new, old in found)

    toward, away = (gap(replace(method, strength=strength).edit(lm, EDITS)) for strength in (1.5, -1.5))
    assert toward > gap(Patch()) + 1 > away + 1


def test_later_vectors_are_added_and_the_mean_factor_is_the_strength(tiny: Callable[[str], LM]) -> None:
    lm, method = tiny("gpt2"), Steer(layer=1, steps=1, factors=(1.0, 3.0))
    whole, double = method.edit(lm, EDITS), replace(method, strength=4.0).edit(lm, EDITS)
    (name,) = whole.hooks
    rows = lm.batch([lm.encode("Greta Holm sings")])
    above = lm.arch.block(2)
    states = {}
    for way, patch in {"none": Patch(), "one": whole, "double": double, "both": whole + whole}.items():
        with patched(lm, patch):
            states[way] = capture_activations(lm, rows, inputs=[above]).inputs[above][0]
    torch.testing.assert_close(states["both"], states["double"], atol=1e-5, rtol=1e-5)
    added = states["one"] - states["none"]
    torch.testing.assert_close(added, whole.hooks[name].vector.expand_as(added), atol=1e-5, rtol=1e-4)  # type: ignore[union-attr]


def test_what_cannot_be_is_told_in_one_line(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(DataError, match=r"^edit a: it names no old answer .*give 'target_old'$"):
        Steer(layer=1).edit(lm, [replace(EDITS[0], target_old=None)])
    with pytest.raises(NumericalError, match=r"^the loss of edits a, b, c became (nan|inf) .*lower lr$"):
        Steer(layer=1, lr=1e30).edit(lm, EDITS)
    with pytest.raises(UsageError, match="factors"):
        Steer(factors=(0.0,))
