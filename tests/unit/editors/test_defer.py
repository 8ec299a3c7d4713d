"""DEFER: what is mixed in training, what stands in use, where its routings agree."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from editors.defer import Defer, Deferral
from editors.grace import Grace
from harness.editing.edit import Edit
from harness.errors import ModelError, UsageError
from harness.methods.supervised_tokens import supervise_target
from harness.patches.patch import Step, patched


def heads(*rows: tuple[float, float, float], threshold: float = 0.5, routing: str = "token") -> Deferral:
    """Deferrals of one number: ``w`` (with ``b = 0``), ``V``, ``c`` of each."""
    w, v, c = (tensor([row[i] for row in rows]) for i in range(3))
    ids = tuple("abc"[: len(rows)])
    return Deferral(ids, w[:, None], torch.zeros(len(rows)), v[:, None, None], c[:, None], threshold, routing)


def used(held: Deferral, *entered: float, mask: list[int] | None = None) -> list[float]:
    """What leaves where the module itself gives 99."""
    x = tensor(entered)[None, :, None]
    real = tensor([mask or [1] * len(entered)])
    return held(torch.full_like(x, 99.0), Step(torch.zeros_like(real), real, len(entered), x))[0, :, 0].tolist()


def test_the_answer_stands_where_the_deferral_reaches_the_threshold():
    assert used(heads((1.0, 2.0, 5.0)), -1.0, 0.0, 3.0) == [99.0, 5.0, 11.0]
    assert used(heads((1.0, 2.0, 5.0), threshold=0.9), -1.0, 0.0, 3.0) == [99.0, 99.0, 11.0]
    assert used(heads((1.0, 2.0, 5.0), (-1.0, 1.0, 0.0)), -1.0, 3.0) == [-1.0, 11.0]


def test_with_pass_the_last_position_that_is_read_decides_for_all():
    held = heads((1.0, 2.0, 5.0), routing="pass")
    assert used(held, -1.0, 3.0) == [11.0, 11.0]
    assert used(held, 3.0, -1.0) == [99.0, 99.0]
    assert used(held, -1.0, 3.0, -7.0, mask=[1, 1, 0]) == [11.0, 11.0, 11.0]


def test_training_mixes_by_the_deferral():
    held, x = heads((1.0, 2.0, 5.0)), tensor([[[0.5]]])
    s = torch.sigmoid(tensor(0.5))
    assert held.mixed(tensor([[[7.0]]]), x).item() == pytest.approx(float(s * 6.0 + (1 - s) * 7.0))


def test_the_first_update_is_adams_on_the_mixture_written_out(fresh, edits):
    """One step of Adam moves every number by the learning rate against its gradient, which a plain hook gives."""
    lm, edit = fresh("gpt2"), edits[1]
    method = Defer(layer=1, site="down", n_iter=1, edit_lr=1e-3)
    rows, name = supervise_target(lm, edit), lm.arch.down_of(1)
    width, out = lm.arch.each[1].inner, lm.arch.width
    begun = method.begun(width, out, torch.zeros(1))
    free = [part.clone().requires_grad_() for part in (begun.weight, begun.bias, begun.answer, begun.shift)]

    def hook(module, args, output):
        w, b, v, c = free
        s = torch.sigmoid(args[0] @ w[0] + b)[..., None]
        return s * (args[0] @ v[0].T + c[0]) + (1 - s) * output

    handle = lm.module(name).register_forward_hook(hook)
    log_p = lm.model(rows.batch.ids).logits[rows.row, rows.column].log_softmax(-1)
    gradients = torch.autograd.grad(-log_p[range(len(rows.token)), rows.token].mean(), free)
    handle.remove()
    found = method.edit(lm, [edit]).memory
    for part, moved, gradient in zip(
        free, (found.weight, found.bias, found.answer, found.shift), gradients, strict=True
    ):
        clear = gradient.abs() > 1e-6
        assert torch.allclose((moved - part)[clear], -1e-3 * gradient.sign()[clear], atol=2e-5)


def test_of_a_prompt_of_one_token_and_a_target_of_one_both_routings_are_one(fresh, edits):
    lm = fresh("gpt2")
    words = (lm.tokenizer.decode([i]).strip() for i in range(20, len(lm.tokenizer)))
    short = (Edit("x", word, None, word) for word in words if word.isalpha())
    edit = next(e for e in short if len(lm.encode(e.text)) == len(lm.continuation(e.text, e.continuation)) == 1)
    token, whole = (Defer(layer=1, n_iter=4, routing=routing).edit(lm, [edit]).memory for routing in ("token", "pass"))
    assert torch.equal(token.answer, whole.answer)
    assert torch.equal(token.weight, whole.weight)
    longer = edits[0]
    token, whole = (
        Defer(layer=1, n_iter=4, routing=routing).edit(lm, [longer]).memory for routing in ("token", "pass")
    )
    assert not torch.equal(token.answer, whole.answer)


def test_a_threshold_that_nothing_reaches_leaves_the_model(tiny, edits):
    lm = tiny("llama")
    patch = Defer(layer=1, n_iter=2, edit_lr=1e-3, threshold=1.0).edit(lm, edits[:1])
    rows = supervise_target(lm, edits[0]).batch
    with torch.no_grad():
        plain = lm.model(rows.ids).logits
        with patched(lm, patch):
            assert torch.equal(lm.model(rows.ids).logits, plain)


def test_independent_deferrals_join_and_one_that_goes_on_replaces(tiny, edits):
    lm, method = tiny("gpt2"), Defer(layer=1, n_iter=2, edit_lr=1e-2)
    a, b = (method.edit(lm, [edit]) for edit in edits[:2])
    (name,) = a.hooks
    grown = method.edit(lm, edits[1:2], a.memory)
    assert (a + grown).hooks[name] is grown.hooks[name]
    both = (a + b).hooks[name]
    assert both.ids == ("a", "b")
    assert torch.equal(both.answer, torch.cat([a.memory.answer, b.memory.answer]))
    other = Defer(layer=1, n_iter=2, threshold=0.7).edit(lm, edits[1:2])
    with pytest.raises(ModelError, match="two patches of defer route in different ways"):
        a + other
    with pytest.raises(ModelError, match="joined from independent patches; start again without memory"):
        method.edit(lm, edits[2:], both)


def test_what_the_user_is_told(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match=r"'threshold' is 2\.0"):
        Defer(threshold=2.0)
    with pytest.raises(UsageError, match="memory is a Codebook of another editor; start again without memory"):
        Defer(layer=1).edit(lm, edits, Grace(layer=1, n_iter=1).edit(lm, edits[:1]).memory)
    wide = Grace(layer=1, site="down", n_iter=1).edit(lm, edits[:1]).memory
    with pytest.raises(UsageError, match=r"grace: the codebook is of another model: it takes \d+ numbers to \d+, but"):
        Grace(layer=1, n_iter=1).edit(lm, edits[1:], wide)
    held = Defer(layer=1, site="down", n_iter=1).edit(lm, edits[:1]).memory
    with pytest.raises(UsageError, match="defer: the deferral is of another model"):
        Defer(layer=1, n_iter=1).edit(lm, edits[1:], held)
