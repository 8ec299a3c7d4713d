"""The rows of an edit without a subject: which positions predict which token, and the loss over them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.editing.edit import Edit
from harness.errors import DataError
from harness.methods.supervised_tokens import supervise_target
from harness.patches.patch import Patch, patched

CONTEXTS = ("{}", "Nobody knows. {}")


def test_the_loss_is_the_mean_over_rows_and_target_tokens(tiny, edits):
    """Each row alone, unpadded, one token after the other."""
    lm, edit = tiny("gpt2"), edits[1]
    rows = supervise_target(lm, edit, CONTEXTS)
    target = lm.continuation(edit.text, edit.continuation)
    parts = []
    for template in CONTEXTS:
        grown = lm.encode(template.replace("{}", edit.text))
        for token in target:
            with torch.no_grad():
                parts.append(float(lm.model(torch.tensor([grown])).logits[0, -1].log_softmax(-1)[token]))
            grown = [*grown, token]
    assert len(parts) == len(rows.token) == 2 * len(target) > 2
    with torch.no_grad():
        assert float(rows.nll(lm)) == pytest.approx(-sum(parts) / len(parts), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama", "qwen2", "opt"])
def test_the_blocks_above_give_the_whole_models_loss(tiny, edits, family):
    """Also under a hook, and with its gradient: what runs again and again are the blocks from the edited one up."""
    lm, shift = tiny(family), torch.zeros(32, requires_grad=True)
    rows = supervise_target(lm, edits[1], CONTEXTS)
    with patched(lm, Patch(hooks={lm.arch.mlp_of(1): lambda hidden, step: hidden + shift})):
        above = rows.above(lm, 1)
        assert type(above).__name__ == "_Upper"
        for value in (0.0, 0.3):
            with torch.no_grad():
                shift.fill_(value)
            ours, whole = above(), rows.nll(lm)
            assert torch.allclose(ours, whole, rtol=1e-5)
            a, b = (torch.autograd.grad(loss, shift)[0] for loss in (ours, whole))
            assert torch.allclose(a, b, atol=1e-5)


def test_the_blocks_below_do_not_run_again(tiny, edits):
    lm = tiny("gpt2")
    above, runs = supervise_target(lm, edits[0]).above(lm, 2), []
    handles = [lm.module(lm.arch.block(i)).register_forward_hook(lambda *_, i=i: runs.append(i)) for i in range(3)]
    above()
    for handle in handles:
        handle.remove()
    assert runs == [2]


def test_a_model_that_does_more_between_its_blocks_is_run_whole(tiny, edits):
    """Here the final norm is not known, so that the blocks alone give another loss."""
    lm = tiny("gpt2")
    odd = replace(lm, arch=replace(lm.arch, norm=None))
    rows = supervise_target(odd, edits[0])
    above = rows.above(odd, 1)
    assert type(above).__name__ != "_Upper"
    assert torch.equal(above(), rows.nll(lm))


def test_a_row_that_is_too_long_names_the_edit(tiny):
    with pytest.raises(
        DataError, match=r"edit x: \d+ tokens with its longest context and target, but tiny-gpt2 takes 96"
    ):
        supervise_target(tiny("gpt2"), Edit("x", "word " * 200, None, "Rome"))
