"""RLEdit: limits in which it is MALMEN, what earlier operations count, and what its L2 term pulls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from births import births
from torch import Tensor

from editors import malmen, rledit
from editors.malmen import Malmen
from editors.rledit import RlEdit
from harness.editing.edit import Example
from harness.methods.meta_training import Lesson, read_lessons
from harness.models.lm import LM
from harness.patches.patch import patched

SMALL: dict[str, Any] = {
    "layers": (1, 2), "rank": 8, "depth": 2, "lr": 1e-2, "meta_lr": 1e-3, "steps": 4, "together": 2,
    "validate_every": 2, "batch_size": 8, "c_loc": 0.5,
}  # fmt: skip
ALONE: dict[str, Any] = {"sequence": 1, "back_depth": 1, "l2": 0.0}


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return births()


def training(lm: LM, examples: list[Example], **settings: Any) -> tuple[rledit._Training, list[list[Lesson]]]:
    """A training away from its start, where much of the gradient is zero, and three operations of two edits."""
    lessons = read_lessons(lm, examples)
    made = rledit._Training(RlEdit(**{**SMALL, **settings}), lm, lessons, lessons[:2])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in made.network.trainable.items():
            tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.3 if "damping" in name else 1e-3)
    return made, [lessons[first : first + 2] for first in (0, 2, 4)]


def summed(made: rledit._Training, operations: list[list[Lesson]]) -> Tensor:
    """The gradient after some operations, all tensors in one row."""
    for lessons in operations:
        made.learn(lessons)
    free = made.network.trainable.values()
    return torch.cat([(torch.zeros_like(t) if t.grad is None else t.grad).reshape(-1) for t in free])


def test_sequences_of_one_operation_are_malmen(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    """The same network, number by number, after updates and a validation."""
    lm = tiny("gpt2")
    ours = RlEdit(**{**SMALL, **ALONE}).fit(lm, examples)
    theirs = Malmen(**SMALL).fit(lm, examples)
    assert ours.learned is not None
    assert theirs.learned is not None
    start = Malmen(**SMALL).start(lm).tensors
    assert any(not torch.equal(tensor, start[name]) for name, tensor in ours.learned.items() if "alpha" in name)
    for name, tensor in ours.learned.items():
        assert torch.allclose(tensor, theirs.learned[name], rtol=1e-6, atol=1e-9), name
    edits = [example.edit for example in examples]
    ours_made, theirs_made = (editor.edit(lm, edits).weights for editor in (ours, theirs))
    assert ours_made.keys() == theirs_made.keys()
    for name, delta in ours_made.items():
        assert torch.allclose(delta.dense(), theirs_made[name].dense(), rtol=1e-5, atol=1e-9), name


def test_an_operation_is_made_on_the_model_that_the_last_one_left(
    tiny: Callable[[str], LM], examples: list[Example]
) -> None:
    """And a sequence that is over is followed by one from the unedited model."""
    lm = tiny("gpt2")
    before, (made, operations) = lm.fingerprint(), training(lm, examples, sequence=2, back_depth=1, l2=0.0)
    made.learn(operations[0])
    first = made.now.written
    with patched(lm, first):
        malmen_there = malmen._Training(Malmen(**SMALL), lm, operations[1], operations[1])
        malmen_there.network = made.editor.observed(made.network, made.editor.read(lm, edits_of(operations[1])))
        there = malmen_there.changes(operations[1])
    made.learn(operations[1])
    for name, change in there.items():
        whole = made.now.written.weights[f"{name}.weight"].dense() - first.weights[f"{name}.weight"].dense()
        assert torch.allclose(whole, change, rtol=1e-3, atol=1e-6 * float(change.abs().max())), name
    made.learn(operations[2])
    assert made.now.operations == 1
    assert lm.fingerprint() == before


def edits_of(lessons: list[Lesson]) -> list[Any]:
    return [lesson.edit for lesson in lessons]


def test_what_earlier_operations_count(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    """The gradient is linear in their weights ``decay^i``; further back than ``back_depth`` they count nothing."""
    found = {}
    for decay, depth in ((0.0, 3), (0.5, 3), (1.0, 3), (0.5, 2), (0.5, 1)):
        made, operations = training(tiny("gpt2"), examples, sequence=3, time_decay=decay, back_depth=depth, l2=0.0)
        found[decay, depth] = summed(made, operations)
    none, half, whole = found[0.0, 3], found[0.5, 3], found[1.0, 3]
    assert torch.allclose(none, found[0.5, 1], rtol=1e-5, atol=1e-7)
    once = found[0.5, 2] - none  # 1/2 of the second's share in the first, and of the third's in the second
    twice = half - found[0.5, 2]  # 1/4 of the third's share in the first
    assert float(once.norm()) > 1e-3 * float(none.norm()) > 0
    assert float(twice.norm()) > 1e-4 * float(none.norm())
    assert torch.allclose(none + 2 * once + 4 * twice, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_the_l2_term_has_the_gradient_of_the_squared_norm(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    """In the authors' code it has none."""
    lm, weight = tiny("gpt2"), 1e3
    made, operations = training(lm, examples, l2=0.0)
    bare = summed(made, operations[:1])
    made, operations = training(lm, examples, l2=weight)
    pulled = summed(made, operations[:1])
    net, loss = made.network, torch.zeros(())
    for name, (keys, gradients) in made.editor.read(lm, edits_of(operations[0])).items():
        key, gradient = torch.cat(keys), torch.cat(gradients)
        u, v = net(name, key, gradient)
        value = -net.alpha(name) * (key * u).sum(1, keepdim=True) * v
        gram = key.T @ key + net.damping(name).exp() * torch.eye(key.shape[1])
        loss = loss + torch.linalg.solve(gram, key.T @ value).square().sum()
    slopes = torch.autograd.grad(weight * loss, list(net.trainable.values()), allow_unused=True)
    wanted = torch.cat(
        [
            (torch.zeros_like(t) if g is None else g).reshape(-1)
            for t, g in zip(net.trainable.values(), slopes, strict=True)
        ]
    )
    assert float((pulled - bare - wanted).norm()) <= 2e-3 * float(wanted.norm()) > 0


def test_what_is_summed_up_is_bounded_after_each_operation_if_so_wished(
    tiny: Callable[[str], LM], examples: list[Example]
) -> None:
    norms = []
    for clipping in ("sequence", "operation"):
        made, operations = training(tiny("gpt2"), examples, sequence=3, clip=1e-3, clipping=clipping)
        norms.append(float(summed(made, operations).norm()))
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0] > 2e-3


def test_training_lowers_the_loss_of_a_sequence_it_has_not_seen(
    taught: Callable[[str], LM], examples: list[Example]
) -> None:
    lm = taught("gpt2")
    before, lessons, losses = lm.fingerprint(), read_lessons(lm, examples), list[float]()
    for steps in (3, 60):
        settings = {"lr": 1e-4, "meta_lr": 5e-4, "steps": steps, "validate_every": 3, "together": 1, "sequence": 3}
        editor = RlEdit(**{**SMALL, **settings})
        made = rledit._Training(editor, lm, lessons[2:], lessons[:2])
        made.network = replace(made.network, tensors=made.run())
        losses.append(made.validate())
    assert losses[1] < 0.8 * losses[0]
    assert lm.fingerprint() == before
