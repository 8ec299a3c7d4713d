"""PMET: its two values against a plain loop, and how its change is spread, from the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.memit import Memit
from editors.pmet import Pmet
from harness.editing.edit import Edit
from harness.io.plain_text import read_documents
from harness.methods import keys as facts
from harness.methods.second_moments import accumulate_moments
from harness.methods.value import optimise
from harness.methods.value_rows import Objective
from harness.models.activations import read_activations
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

TEMPLATES = ("{}", "Yesterday the paper said. {}", "As far as we know, {}")
QUICK: dict[str, Any] = {"cov_tokens": 4000, "v_steps": 6, "v_weight_decay": 0.5, "clamp": 2.0}


def plain(lm: LM, edit: Edit, objective: Objective) -> dict[str, Tensor]:
    """The loop of section "Optimized TC hidden states": one edit, hooks, the whole model, every row by itself.

    Returns:
        ``attention`` and ``feed_forward``: the start of each, ``[d]``, plus its change.
    """
    target = lm.continuation(edit.text, edit.continuation)
    rows = facts.prompt_rows(lm, edit, TEMPLATES, fact_token="subject_last", suffix=target[:-1])
    essence, last = facts.find_fact_token(
        lm, Edit(edit.id, "{} is a", edit.subject, edit.target), template="{}", fact_token="subject_last"
    )
    names = [lm.arch.attn_of(objective.layer), lm.arch.mlp_of(objective.layer)]
    change = {name: torch.zeros(lm.arch.width, requires_grad=True) for name in names}
    start: dict[str, Tensor] = {}
    adam = torch.optim.Adam(change.values(), lr=objective.lr)

    def logits(ids: list[int], at: int) -> Tensor:
        def add(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                flat = hidden.reshape(1, len(ids), -1)
                start.setdefault(name, flat[0, at].detach().clone())
                moved = flat.clone()
                moved[0, at] = moved[0, at] + change[name]
                moved = moved.reshape(hidden.shape)
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return hook

        handles = [lm.module(name).register_forward_hook(add(name)) for name in names]
        found = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        return found

    reference: list[Tensor] = []
    for step in range(objective.steps):
        nll = torch.zeros(())
        for row in rows:
            log_p = logits(list(row.ids), row.at)[len(row.ids) - len(target) :]
            nll = nll - log_p[range(len(target)), target].mean() / len(rows)
        now = logits(list(essence), last)[last]
        reference = reference or [now.detach()]
        kl = (now.exp() * (now - reference[0])).sum()
        decay = sum((change[n].norm() / start[n].norm() ** 2 for n in names), torch.zeros(()))
        loss = nll + objective.kl_factor * kl + objective.weight_decay * decay
        if loss < 0.05 or step == objective.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for name in names:
                change[name] *= min(1.0, float(objective.clamp * start[name].norm() / change[name].norm()))
    attention, feed_forward = (start[name] + change[name].detach() for name in names)
    return {"attention": attention, "feed_forward": feed_forward}


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama", "opt"])
def test_values_are_those_of_the_plain_loop(tiny: Any, edits: list[Edit], family: str) -> None:
    lm = tiny(family)
    objective = Pmet(layers=(1,), **QUICK).objective(1)
    assert objective.seam == "parts"
    values = optimise(lm, edits, TEMPLATES, objective=objective)
    assert values.value.shape == (len(edits), lm.arch.width)
    for edit, value in zip(edits, values.value, strict=True):
        expected = plain(lm, edit, objective)["feed_forward"]
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-4)
    # Attention's own vector matters: without it another value is found.
    alone = optimise(
        lm, edits, TEMPLATES, objective=Objective(1, seam="mlp", steps=6, lr=0.2, kl_factor=1.0, clamp=2.0)
    )
    assert not torch.allclose(alone.value, values.value, rtol=1e-2, atol=1e-2)


def written(lm: LM, edits: list[Edit], layer: int, patch: Patch) -> Tensor:
    """What the feed-forward module of a layer writes at the subject's last token, under a patch."""
    rows = [row for edit in edits for row in facts.prompt_rows(lm, edit, ("{}",), fact_token="subject_last")]
    name = lm.arch.mlp_of(layer)
    with patched(lm, patch):
        return read_activations(lm, rows, outputs=[name]).outputs[name]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_change_is_spread_by_square_roots_of_what_the_feed_forward_part_lacks(
    tiny: Any, edits: list[Edit], family: str
) -> None:
    lm = tiny(family)
    method = Pmet(layers=(0, 1), contexts=("{}",), lam=7.0, **QUICK)
    wanted = optimise(lm, edits, ("{}",), objective=method.objective(1)).value
    moments = accumulate_moments(lm, (0, 1), read_documents(lm.text), tokens=4000)
    ours, done = method.edit(lm, edits), Patch()
    for i, layer in enumerate((0, 1)):
        with patched(lm, done):
            key = facts.read_keys(lm, edits, layer, templates=("{}",), fact_token="subject_last")[0].double()
        residual = (wanted - written(lm, edits, 1, done)).double() / math.sqrt(2 - i)
        gram = 7.0 * moments[layer].matrix.double() + key.T @ key
        expected = residual.T @ torch.linalg.solve(gram, key.T).T
        found = ours.weights[lm.down(layer)].dense().double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 + 1e-3 * float(expected.abs().max()))
        done = done + Patch({lm.down(layer): ours.weights[lm.down(layer)]})


def test_one_layer_without_regularisation_writes_the_value_itself(tiny: Any, edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    method = Pmet(layers=(1,), contexts=("{}",), lam=1e-9, **QUICK)
    wanted = optimise(lm, edits, ("{}",), objective=method.objective(1)).value
    torch.testing.assert_close(written(lm, edits, 1, method.edit(lm, edits)), wanted, rtol=1e-3, atol=1e-3)


def test_memit_takes_linear_shares_where_pmet_takes_roots() -> None:
    assert [Memit().divisor(left) for left in (3, 2, 1)] == [3, 2, 1]
    assert [Pmet().divisor(left) for left in (4, 2, 1)] == [2.0, math.sqrt(2), 1.0]
