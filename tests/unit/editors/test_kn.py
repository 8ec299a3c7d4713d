"""Knowledge neurons: the attribution against calculus, the choice of neurons, the exact change of their values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from editors import kn
from editors.kn import KnowledgeNeurons, attribution, greedy
from harness.editing.edit import Edit
from harness.errors import DataError, UsageError
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import patched

SMOOTH = ["gpt2", "gptj", "neox", "llama", "qwen2"]


def probability(lm, ids: list[int], token: int, layer: int, factor: float) -> float:
    """The probability of a token where all neurons of one layer are scaled at the last position."""

    def scale(module, args):
        (x,) = args
        flat = x.reshape(-1, x.shape[-1]).clone()
        flat[-1] *= factor
        return flat.reshape(x.shape)

    handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(scale)
    with torch.no_grad():
        found = float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token])
    handle.remove()
    return found


@pytest.mark.parametrize(("family", "points", "close"), [*((f, 200, 1e-3) for f in SMOOTH), ("opt", 800, 5e-3)])
def test_attributions_of_a_layer_sum_to_what_its_neurons_do_together(fresh, family, points, close):
    """Completeness of integrated gradients, ``sum_i IG_i = p(a) - p(0)`` (Sundararajan et al. 2017, section 3).

    The sum over ``m`` points weighs both ends fully, so it is off by ``c / m + O(1 / m^2)``; two sizes give the limit,
    in a smooth function; the kinks of OPT's ReLU ask for more points.
    """
    lm = fresh(family, dtype=torch.float64)
    ids = lm.encode("Ada Velmont was born in")
    token = lm.encode(" Oslo")[-1]
    coarse, fine = (attribution(lm, ids, token=token, steps=m).sum(1) for m in (points, 2 * points))
    for layer in range(lm.arch.layers):
        change = probability(lm, ids, token, layer, 1.0) - probability(lm, ids, token, layer, 0.0)
        assert float(2 * fine[layer] - coarse[layer]) == pytest.approx(change, rel=close, abs=1e-9)
        assert float(fine[layer]) == pytest.approx(change, rel=0.05, abs=1e-7)


def test_attribution_is_the_published_sum_over_points(fresh):
    """Finite differences at 5 points from 0 to 1, both ends counted fully, divided by 5."""
    lm = fresh("gpt2", dtype=torch.float64)
    ids, token, layer, steps, h = lm.encode("The home of Hugo Lantern is"), 7, 1, 5, 1e-4
    found = attribution(lm, ids, token=token, steps=steps)[layer]
    seen: list[Tensor] = []
    shift = torch.zeros(lm.arch.inner, dtype=torch.float64)
    alpha = 1.0

    def change(module, args):
        x = args[0].clone()
        seen.append(x[0, -1].clone())
        x[0, -1] = alpha * x[0, -1] + shift
        return x

    handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(change)

    def p() -> float:
        with torch.no_grad():
            return float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token])

    for neuron in (0, 17, 63):
        total = 0.0
        for j in range(steps):
            alpha = j / (steps - 1)
            shift[neuron] = h
            up = p()
            shift[neuron] = -h
            total += (up - p()) / (2 * h)
            shift[neuron] = 0.0
        assert float(found[neuron]) == pytest.approx(float(seen[0][neuron]) * total / steps, rel=1e-5, abs=1e-12)
    handle.remove()


def test_many_points_are_taken_in_portions(fresh, monkeypatch):
    lm = fresh("gpt2")
    ids = lm.encode("Ada Velmont was born in")
    whole = attribution(lm, ids, token=5, steps=20)
    monkeypatch.setattr(kn, "_ROWS", 7)
    assert torch.allclose(attribution(lm, ids, token=5, steps=20), whole, atol=1e-9)


@pytest.mark.parametrize("neuron", ["activation", "pre_activation"])
def test_layers_may_have_different_numbers_of_neurons(fresh, edits, neuron):
    """The last neurons of a layer are idle and without effect; the model without them is edited alike."""
    lm = fresh("gpt2")
    block = copy.deepcopy(lm.model)
    lm.model.transformer.h[1].mlp.c_proj.weight[40:] = 0
    mlp = block.transformer.h[1].mlp
    for module, weight in ((mlp.c_fc, mlp.c_fc.weight[:, :40]), (mlp.c_proj, mlp.c_proj.weight[:40])):
        module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    mlp.c_fc.bias, mlp.c_fc.nf = torch.nn.Parameter(mlp.c_fc.bias[:40].clone(), requires_grad=False), 40
    narrow = LM.wrap(block, lm.tokenizer, name="narrow", text=lm.text)
    assert [layer.inner for layer in narrow.arch.each] == [64, 40, 64]
    method = KnowledgeNeurons(steps=4, threshold=0.05, neuron=neuron)
    ours, wanted = (method.edit(one, edits[:1]) for one in (narrow, lm))
    assert narrow.down(1) in ours.weights and ours.weights.keys() == wanted.weights.keys()
    for name, delta in ours.weights.items():
        found = delta.dense()
        assert torch.allclose(found, wanted.weights[name].dense()[:, : found.shape[1]], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_value_of_each_neuron_loses_the_answer_twice_and_gains_each_target_token(tiny, edits, family):
    lm, edit = tiny(family), edits[1]
    patch = KnowledgeNeurons(steps=4).edit(lm, [edit])
    head = lm.model.get_output_embeddings().weight.detach()
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    answer = int(lm.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    vector = sum(head[t] for t in target) - 2 * head[answer]
    assert len(target) > 1
    wanted = torch.stack(
        [attribution(lm, [*prompt, *greedy(lm, prompt, i)], token=t, steps=4) for i, t in answers(lm, prompt, target)]
    )
    scores = wanted.mean(0)
    chosen = scores > 0.2 * scores.max()
    assert 1 <= int(chosen.sum()) < chosen.numel() / 2
    before = {layer: lm.matrix(lm.down(layer)).clone() for layer in range(lm.arch.layers)}
    with patched(lm, patch):
        for layer, old in before.items():
            moved = lm.matrix(lm.down(layer)) - old
            assert torch.allclose(
                moved[:, chosen[layer]], vector[:, None].expand(-1, int(chosen[layer].sum())), atol=1e-6
            )
            assert float(moved[:, ~chosen[layer]].abs().sum()) == 0
    assert all(isinstance(delta, LowRank) and delta.left.shape[1] == 1 for delta in patch.weights.values())


def answers(lm, prompt: list[int], target: list[int]) -> list[tuple[int, int]]:
    """The model's own answer, as long as the target, with the number of tokens in front of each."""
    return list(enumerate(greedy(lm, prompt, len(target))))


def test_neurons_are_those_of_the_old_answer_where_it_is_known(taught):
    """The model knows where Ada Velmont was born (Paris): the same neurons with the answer given and found."""
    lm = taught("gpt2")
    said = lm.tokenizer.decode(greedy(lm, lm.encode("Ada Velmont was born in"), 1)).strip()
    assert said == "Paris"
    new = {"id": "a", "prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}
    known, unknown, other = (
        KnowledgeNeurons().edit(lm, [Edit(**new, target_old=old)]) for old in (said, None, "Vienna")
    )

    def rows(patch):
        return {name: delta.right for name, delta in patch.weights.items()}

    assert len(lm.continuation("Ada Velmont was born in", " Rome")) == 1
    assert all(torch.equal(rows(known)[name], rows(unknown)[name]) for name in rows(known) | rows(unknown))
    assert any(not torch.equal(rows(known)[name], found) for name, found in rows(other).items() if name in rows(known))


def test_the_neurons_of_the_old_answer_carry_it(taught):
    """Silencing the found neurons lowers the old answer more than silencing as many others (paper, figure 4)."""
    lm = taught("gpt2")
    edit = Edit("a", "{} was born in", "Ada Velmont", "Rome", "Paris")
    patch = KnowledgeNeurons().edit(lm, [edit])
    ids, token = lm.encode(edit.text), lm.continuation(edit.text, " Paris")[0]

    def silenced(which: dict[str, Tensor]) -> float:
        weights = {
            name: LowRank(-lm.matrix(name) @ torch.diag(row[0]), torch.eye(lm.arch.inner))
            for name, row in which.items()
        }
        with patched(lm, type(patch)(weights)), torch.no_grad():
            return float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])

    found = {name: delta.right for name, delta in patch.weights.items()}
    others = {
        name: row[:, torch.randperm(row.shape[1], generator=torch.Generator().manual_seed(0))]
        for name, row in found.items()
    }
    assert silenced(found) < silenced(others) - 0.5


def test_refined_neurons_are_found_behind_more_than_a_share_of_the_contexts(tiny, edits):
    lm, edit = tiny("gpt2"), edits[0]
    around = ("{}", "Nobody knows. {}", "The weather is fine. {}")

    def rows(method: KnowledgeNeurons) -> Tensor:
        patch = method.edit(lm, [edit])
        none = torch.zeros(1, lm.arch.inner)
        found = [patch.weights.get(lm.down(layer)) for layer in range(lm.arch.layers)]
        return torch.cat([delta.right if isinstance(delta, LowRank) else none for delta in found])

    alone = [rows(KnowledgeNeurons(steps=4, refine=True, contexts=("{}",)))]
    assert len(lm.continuation(edit.text, edit.continuation)) == 1
    for template in around[1:]:
        text = template.replace("{}", edit.text)
        scores = attribution(lm, lm.encode(text), token=greedy(lm, lm.encode(text), 1)[0], steps=4)
        alone.append((scores > 0.2 * scores.max()).float())
    count = sum(alone)
    for share in (0.4, 0.7):
        refined = rows(KnowledgeNeurons(steps=4, refine=True, contexts=around, share=share))
        assert torch.equal(refined, (count > share * 3).float())
    assert KnowledgeNeurons(refine=True).label() == "kn-refined"
    assert torch.equal(alone[0], rows(KnowledgeNeurons(steps=4)))


def test_templates_are_sampled_once_from_the_unedited_model(tiny, edits):
    lm = tiny("gpt2")
    method = KnowledgeNeurons(steps=2, refine=True, share=0.1)
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        second = method.edit(lm, edits[1:2], first.memory)
    assert second.memory.contexts == first.memory.contexts == tuple(method.notes(lm)["contexts"])
    assert KnowledgeNeurons().notes(lm) == {}


def test_what_the_user_is_told(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match=r"'threshold' is 1\.5, expected at least 0 and at most 1"):
        KnowledgeNeurons(threshold=1.5)
    with pytest.raises(UsageError, match="memory is a str of another editor"):
        KnowledgeNeurons().edit(lm, edits, "x")
    with pytest.raises(DataError, match=r"edit x: \d+ tokens with the old answer, but tiny-gpt2 takes 96"):
        KnowledgeNeurons().edit(lm, [Edit("x", "Rome " * 80, None, "Rome", "Rome " * 40)])
