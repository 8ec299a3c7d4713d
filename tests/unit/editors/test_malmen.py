"""MALMEN: an edit against ridge regression by hand, and its split training against the gradient of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from births import births
from torch import Tensor
from torch.func import functional_call

from editors import malmen
from editors.malmen import Malmen
from harness.editing.edit import Edit, Example
from harness.errors import NumericalError, UsageError
from harness.methods import ridge_network
from harness.methods.hypernetwork import Hypernetwork, layout
from harness.methods.meta_training import read_lessons
from harness.methods.ridge_network import NormalisationState
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank

SMALL: dict[str, Any] = {
    "layers": (1, 2), "rank": 8, "lr": 1e-2, "meta_lr": 1e-3, "steps": 4, "together": 3, "validate_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return births()


def identity(lm: LM, editor: Malmen) -> Malmen:
    """MALMEN with a network and statistics that change no pair, in float64."""
    learned = {}
    for name, tensor in editor.start(lm).tensors.items():
        # A standard deviation that what is added to it makes one.
        one = (1 - torch.finfo(torch.float32).eps) ** 2
        learned[name] = torch.full_like(tensor, one).double() if name.endswith("squares") else tensor.double()
        if name.endswith("squares"):
            learned[name] = torch.full(tensor.shape, one, dtype=torch.float64)
        if name.endswith("count"):
            learned[name] = torch.tensor(2)
    return replace(editor, learned=learned)


def by_hand(lm: LM, edits: Sequence[Edit], name: str) -> tuple[Tensor, Tensor]:
    """What enters a matrix, and the gradient of the sum of the targets' NLL at what leaves it, edit after edit."""
    keys, gradients = [], []
    for edit in edits:
        prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
        seen: dict[str, Tensor] = {}

        def listen(_module: Any, args: Any, output: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen["in"], seen["out"] = args[0].detach(), output.detach().requires_grad_()
            return seen["out"]

        handle = lm.module(name).register_forward_hook(listen)
        with torch.enable_grad():
            log_p = lm.model(input_ids=torch.tensor([prompt + target[:-1]])).logits[0].log_softmax(-1)
            nll = -log_p[len(prompt) - 1 :].gather(1, torch.tensor(target)[:, None]).sum()
            (slope,) = torch.autograd.grad(nll, [seen["out"]])
        handle.remove()
        keys.append(seen["in"].reshape(-1, seen["in"].shape[-1])[len(prompt) - 1 :])
        gradients.append(slope.reshape(-1, slope.shape[-1])[len(prompt) - 1 :])
    return torch.cat(keys), torch.cat(gradients)


# --- an edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("count", [1, 3])
def test_without_a_network_it_is_ridge_regression(
    fresh: Callable[..., LM], edits: list[Edit], family: str, count: int
) -> None:
    """``W + dW`` is the minimum of ``|X K - (W K + V)|^2 + e^l |X - W|^2`` with ``v = -a |k|^2 g``."""
    lm = fresh(family, 0, torch.float64)
    editor = identity(lm, Malmen(layers=(1, 2), lr=0.25))
    known = dict(editor.knowledge(lm))
    for name in editor.places(lm):
        known[f"damping/{name}"] = torch.tensor(math.log(0.1), dtype=torch.float64)
    patch = replace(editor, learned=known).edit(lm, edits[:count])
    assert len(patch.weights) == 2
    for name in editor.places(lm):
        key, gradient = by_hand(lm, edits[:count], name)
        value = -0.25 * key.square().sum(1, keepdim=True) * gradient
        rows = torch.cat([key, math.sqrt(0.1) * torch.eye(key.shape[1], dtype=key.dtype)])
        wanted = torch.linalg.lstsq(rows, torch.cat([value, torch.zeros(key.shape[1], value.shape[1]).double()]))
        found = patch.weights[f"{name}.weight"].dense()
        assert float((found.T - wanted.solution).norm()) <= 1e-6 * float(found.norm()) > 0, name


def test_edits_do_not_depend_on_their_company(fresh: Callable[..., LM], edits: list[Edit]) -> None:
    """Neither on the mini-batch that they share nor on those that are made beside them."""
    lm = fresh("gpt2")
    editor = identity(lm, Malmen(layers=(1,), lr=0.1))
    name = f"{lm.arch.down_of(1)}.weight"
    many, few = (replace(editor, batch_size=size).edit(lm, edits).weights[name].dense() for size in (8, 1))
    assert torch.allclose(many, few, rtol=1e-3, atol=1e-5 * float(many.abs().max()))
    for loss in ("edit", "batch"):
        own = replace(editor, loss=loss)
        for edit, patch in zip(edits, own.edit_each(lm, edits), strict=True):
            alone = own.edit(lm, [edit]).weights[name].dense()
            assert isinstance(patch.weights[name], LowRank)
            assert torch.allclose(patch.weights[name].dense(), alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()))


def test_the_loss_of_a_batch_is_a_mean_over_its_tokens(fresh: Callable[..., LM], edits: list[Edit]) -> None:
    lm = fresh("gpt2")
    editor = identity(lm, Malmen(layers=(1,), lr=0.1))
    tokens = sum(len(lm.continuation(edit.text, edit.continuation)) for edit in edits)
    own, shared = (replace(editor, loss=loss).edit(lm, edits) for loss in ("edit", "batch"))
    for name, delta in own.weights.items():
        assert torch.allclose(delta.dense(), tokens * shared.weights[name].dense(), rtol=1e-3, atol=1e-9)


def test_running_statistics_are_carried_from_one_operation_to_the_next(
    tiny: Callable[[str], LM], examples: list[Example]
) -> None:
    """Those of both operations together; by default an operation leaves none."""
    lm = tiny("gpt2")
    fixed = Malmen(**SMALL).fit(lm, examples)
    edits = [example.edit for example in examples]
    assert isinstance(fixed, Malmen)
    assert fixed.edit(lm, edits[:3]).memory is None
    running = replace(fixed, statistics="running")
    first = running.edit(lm, edits[:3])
    assert isinstance(first.memory, NormalisationState)
    second = running.edit(lm, edits[3:], first.memory)
    once = running.edit(lm, edits)
    assert isinstance(second.memory, NormalisationState)
    assert isinstance(once.memory, NormalisationState)
    for name, tensor in once.memory.tensors.items():
        assert torch.allclose(tensor, second.memory.tensors[name], rtol=1e-4, atol=1e-9), name
    again = running.edit(lm, edits[3:])
    name = f"{lm.arch.down_of(1)}.weight"
    assert not torch.allclose(second.weights[name].dense(), again.weights[name].dense(), rtol=1e-3)
    with pytest.raises(UsageError, match="the memory is a str of another editor"):
        running.edit(lm, edits, "x")


def test_a_layer_scales_and_shifts_outside_of_the_rectifier() -> None:
    """``x + scale max(0, U V x + bias) + shift``, number by number."""
    like = layout({"a": (2, 1)}, rank=2, depth=1, damped=True)
    draw = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(t.shape, generator=draw) for name, t in like.items() if "/statistics" not in name}
    tensors |= {"2x1/statistics/mean": torch.zeros(3), "2x1/statistics/squares": torch.tensor([1.0, 4.0, 9.0])}
    net = Hypernetwork(tensors | {"2x1/statistics/count": torch.tensor(2)}, 1, rectified="first", eps=0.0)
    row = [3.0, -2.0, 1.5]
    x = [n / d for n, d in zip(row, [1.0, 2.0, 3.0], strict=True)]
    part = {k: tensors[f"2x1/0/{k}"].tolist() for k in ("U", "V", "bias", "scale/a", "shift/a")}
    low = [sum(w * n for w, n in zip(line, x, strict=True)) for line in part["V"]]
    high = [
        sum(w * n for w, n in zip(line, low, strict=True)) + b for line, b in zip(part["U"], part["bias"], strict=True)
    ]
    assert min(high) < 0 < max(high)
    wanted = [x[j] + part["scale/a"][j] * max(0.0, high[j]) + part["shift/a"][j] for j in range(3)]
    found = torch.cat(net("a", torch.tensor([row[:2]]), torch.tensor([row[2:]])), 1)[0]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_values_that_are_not_finite_name_the_matrix(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    editor = identity(lm, Malmen(layers=(1,)))
    bad = {**editor.knowledge(lm), f"alpha/{lm.arch.down_of(1)}": torch.tensor(math.nan)}
    with pytest.raises(NumericalError, match=r"malmen's values of 'transformer.h.1.mlp.c_proj' are not finite"):
        replace(editor, learned=bad).edit(lm, edits)
    with pytest.raises(UsageError, match="malmen must learn before its first edit; run `harness fit --editor malmen"):
        Malmen().edit(lm, edits)


# --- training ---------------------------------------------------------------------------------------------------------


def training(lm: LM, examples: list[Example], **settings: Any) -> malmen._Training:
    lessons = read_lessons(lm, examples)
    made = malmen._Training(Malmen(**{**SMALL, **settings}), lm, lessons[1:], lessons[:1])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the start, where much of the gradient is zero
        for name, tensor in made.network.trainable.items():
            tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.3 if "damping" in name else 1e-3)
    return made


def whole(made: malmen._Training, lessons: Sequence[Any]) -> Tensor:
    """The loss with its whole graph: network, regression, edited model, each text in a pass of its own."""
    lm, net, held = made.lm, made.network, {}
    for name in made.editor.places(lm):
        key, gradient = by_hand(lm, [lesson.edit.edit for lesson in lessons], name)
        u, v = net(name, key, gradient)
        value = -net.alpha(name) * (key * u).sum(1, keepdim=True) * v
        gram = key.T @ key + net.damping(name).exp() * torch.eye(key.shape[1])
        weight, change = lm.parameter(f"{name}.weight"), torch.linalg.solve(gram, key.T @ value)
        held[f"{name}.weight"] = weight + (change if lm.transposed(f"{name}.weight") else change.T)

    def log_p(answer: Any, held: dict[str, Tensor]) -> Tensor:
        row = {"input_ids": torch.tensor([answer.prompt + answer.target])}
        found: Tensor = functional_call(lm.model, held, args=(), kwargs=row).logits[0].log_softmax(-1)
        return found[len(answer.prompt) - 1 : -1]

    wanted = [answer for lesson in lessons for answer in lesson.wanted]
    nll = [-log_p(a, held).gather(1, torch.tensor(a.target)[:, None]) for a in wanted]
    kept = [text for lesson in lessons for text in lesson.kept]
    plain, after = (torch.cat([log_p(text, which) for text in kept]) for which in ({}, held))
    loc = (plain.exp() * (plain - after)).sum(1).mean()
    return torch.cat(nll).mean() + made.editor.c_loc * loc


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_split_gradient_is_that_of_the_whole(
    tiny: Callable[[str], LM], examples: list[Example], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Of every tensor of the network, whatever the portions of texts and of tokens are."""
    lm = tiny(family)
    monkeypatch.setattr(ridge_network, "_PORTION", 2)
    monkeypatch.setattr(ridge_network, "_BUDGET", 20)
    made = training(lm, examples, c_loc=2.0, batch_size=2)
    lessons = next(made.draws())
    made.learn(lessons)
    found = {name: tensor.grad.clone() for name, tensor in made.network.trainable.items() if tensor.grad is not None}
    made.adam.zero_grad()
    torch.autograd.backward(whole(made, lessons))
    for name, tensor in made.network.trainable.items():
        assert tensor.grad is not None
        assert float((found[name] - tensor.grad).norm()) <= 1e-3 * float(tensor.grad.norm()) > 0, name
    with torch.no_grad():
        assert float(whole(made, lessons)) == pytest.approx(
            sum(float(part) for part in made._parts(lessons, _changes(made, lessons))), rel=1e-4
        )


def _changes(made: malmen._Training, lessons: Sequence[Any]) -> dict[str, Tensor]:
    seen = made.editor.read(made.lm, [lesson.edit for lesson in lessons])
    return {name: one.change.to(one.key) for name, one in made._solved(seen).items()}


def test_training_lowers_the_loss_of_edits_it_has_not_seen(
    taught: Callable[[str], LM], examples: list[Example]
) -> None:
    lm = taught("gpt2")
    before, lessons, losses = lm.fingerprint(), read_lessons(lm, examples), list[float]()
    for steps in (5, 60):
        editor = Malmen(**{**SMALL, "lr": 1e-4, "meta_lr": 1e-4, "steps": steps, "validate_every": 5})
        made = malmen._Training(editor, lm, lessons[1:], lessons[:1])
        made.network = replace(made.network, tensors=made.run())
        losses.append(made.validate())
    assert losses[1] < 0.6 * losses[0]
    assert lm.fingerprint() == before


def test_a_batch_is_never_larger_than_the_examples(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    made = training(tiny("gpt2"), examples, together=512)
    assert sorted(lesson.edit.edit.id for lesson in next(made.draws())) == ["t1", "t2", "t3", "t4", "t5"]


def test_a_loss_that_is_not_finite_is_told(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    with pytest.raises(NumericalError, match=r"malmen: the loss of edits t\d.* in training; lower lr or"):
        Malmen(**{**SMALL, "lr": 1e38}).fit(tiny("gpt2"), examples)


def test_many_tokens_are_kept_dense(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    patch = identity(lm, Malmen(layers=(1,))).edit(lm, edits * 5)
    assert isinstance(patch.weights[f"{lm.arch.down_of(1)}.weight"], Dense)
