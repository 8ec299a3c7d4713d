"""FT-M, LocFT-BF, LoRA and UltraEdit against their formulas, written out again."""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

from editors.ft import FineTuning
from editors.ft_l import BoundedFineTuning
from editors.ft_m import MaskedFineTuning
from editors.locft import BreadthFirst
from editors.lora import Lora
from editors.ultraedit import Seen, UltraEdit
from harness.editing.edit import Edit
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods import descent
from harness.methods.descent import DescentSettings, descend, log_likelihood, tokenise
from harness.methods.shifts import Statistics, shift
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched

PEOPLE = ["Ada Velmont", "Hugo Lantern", "Elena Marsh", "Rosa Delgado", "Jonas Wick", "Greta Holm", "Oskar Thorne"]
CITIES = ["Oslo, Norway", "Lisbon", "Vienna", "Prague and Rome", "Athens", "Dublin", "Paris"]


def many(count: int) -> list[Edit]:
    """Edits of one relation, with targets of one and of several tokens."""
    return [Edit(str(i), "{} was born in", PEOPLE[i % 7], CITIES[(i + i // 7) % 7]) for i in range(count)]


def one_token(lm: LM) -> list[Edit]:
    """Edits whose target is one token."""
    found = [e for e in many(7) if len(lm.continuation(e.text, e.continuation)) == 1]
    assert len(found) > 2
    return found


def nll(lm: LM, edits: Sequence[Edit], end: Sequence[int] = ()) -> Tensor:
    """The loss with Hugging Face's labels, the prompt masked: the mean over edits of the mean over the target."""
    losses = []
    for edit in edits:
        prompt = lm.encode(edit.text)
        target = lm.continuation(edit.text, edit.continuation) + list(end)
        ids = torch.tensor([prompt + target])
        labels = torch.tensor([[-100] * len(prompt) + target])
        losses.append(lm.model(input_ids=ids, labels=labels).loss)
    return torch.stack(losses).mean()


def by_hand(lm: LM, names: Sequence[str], batches: Sequence[Sequence[Edit]], end: Sequence[int], lr: float) -> None:
    """Plain Adam on the model itself, one step for each batch."""
    own = [lm.parameter(name).requires_grad_() for name in names]
    adam = torch.optim.Adam(own, lr=lr)
    for batch in batches:
        adam.zero_grad()
        nll(lm, batch, end).backward()
        adam.step()
    for parameter in own:
        parameter.requires_grad_(False)


def stored(lm: LM, patch: Patch) -> dict[str, Tensor]:
    """The edited parameters, as the model stores them."""
    with patched(lm, patch):
        return {name: lm.parameter(name).detach().clone() for name in patch.weights}


# FT, FT-L and FT-M


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_ft_m_is_adam_on_the_targets_cross_entropy_one_edit_an_update(fresh, family):
    lm, other, edits = fresh(family), fresh(family), many(4)
    patch = MaskedFineTuning(layers=(1,), lr=1e-3, steps=2, threshold=0.0).edit(lm, edits)
    names = [name for name, _ in lm.model.named_parameters() if name.startswith(lm.arch.down_of(1))]
    by_hand(other, names, [[e] for e in edits] * 2, [], 1e-3)
    assert set(patch.weights) == set(names)
    for name, value in stored(lm, patch).items():
        assert torch.allclose(value, other.parameter(name), atol=2e-6)
        assert float((value - lm.parameter(name)).abs().max()) > 1e-3


def test_ft_asks_for_all_tokens_after_the_prompt_and_ft_m_for_each_after_those_before(fresh):
    """The released loss of FT is that of FT-M for a target of one token, and another for one of several."""
    lm = fresh("gpt2")
    single, several = one_token(lm), [e for e in many(7) if e not in one_token(lm)]

    def apart(edits: Sequence[Edit]) -> float:
        common = {"layers": (1,), "steps": 3, "batch_size": 4}
        a, b = FineTuning(**common).edit(lm, edits), MaskedFineTuning(**common).edit(lm, edits)
        return max(float((a.weights[n].dense() - b.weights[n].dense()).abs().max()) for n in a.weights)

    assert apart(single) < 1e-7
    assert apart(several) > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("method", [FineTuning(lr=5e-3), BoundedFineTuning(lr=1e-2, steps=40, norm_constraint=0.2)])
def test_the_released_loss_makes_targets_of_one_token_probable(fresh, family, method):
    lm = fresh(family)
    edits = one_token(lm)
    before = [float(nll(lm, [e])) for e in edits]
    with patched(lm, method.edit(lm, edits)):
        assert all(float(nll(lm, [e])) < b - 0.5 for e, b in zip(edits, before, strict=True))


def test_labels_say_where_the_loss_is_not_the_published_one():
    assert [m.label() for m in (FineTuning(), BoundedFineTuning())] == ["ft", "ft_l"]
    other = (FineTuning(loss="target_new"), BoundedFineTuning(loss="target_new"))
    assert [m.label() for m in other] == ["ft-target_new", "ft_l-target_new"]


def test_ft_m_keeps_a_bound_where_one_is_set(fresh):
    lm, bound = fresh("gpt2"), 2e-4
    patch = MaskedFineTuning(lr=1e-3, norm_constraint=bound).edit(lm, many(3))
    sizes = [float(delta.dense().abs().max()) for delta in patch.weights.values()]
    assert max(sizes) == pytest.approx(bound, rel=1e-3)


# LocFT-BF


def test_locft_takes_every_edit_once_a_pass_in_mini_batches(fresh, monkeypatch):
    lm, edits, calls = fresh("gpt2"), many(7), []
    plain = descent.log_likelihood

    def noted(lm, part, **options):
        calls.append(part)
        return plain(lm, part, **options)

    monkeypatch.setattr(descent, "log_likelihood", noted)
    BreadthFirst(batch_size=3, steps=4).edit(lm, edits)
    passes = [[e.edit.id for part in calls[i : i + 3] for e in part] for i in range(0, 12, 3)]
    assert [len(part) for part in calls] == [3, 3, 1] * 4
    assert all(sorted(ids) == [e.id for e in edits] for ids in passes)
    assert len({tuple(ids) for ids in passes}) == 4  # every pass in an order of its own


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_locft_is_adam_on_shuffled_batches_of_targets_that_end(fresh, family):
    lm, other, edits = fresh(family), fresh(family), many(7)
    patch = BreadthFirst(layers=(2,), lr=1e-3, steps=2, batch_size=3, threshold=0.0, seed=5).edit(lm, edits)
    draw = torch.Generator().manual_seed(5)
    orders = [torch.randperm(7, generator=draw).tolist() for _ in range(2)]
    batches = [[edits[i] for i in order[first : first + 3]] for order in orders for first in (0, 3, 6)]
    by_hand(other, [lm.down(2)], batches, [lm.tokenizer.eos_token_id], 1e-3)
    assert set(patch.weights) == {lm.down(2)}
    assert torch.allclose(stored(lm, patch)[lm.down(2)], other.parameter(lm.down(2)), atol=2e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_token_that_ends_a_text_is_a_part_of_the_loss_also_where_it_pads(fresh, family):
    """Edits of different lengths in one batch, padded with the very token (LocFT-BF adds a token to pad with)."""
    lm, edits = fresh(family), many(4)
    end = lm.tokenizer.eos_token_id
    assert lm.tokenizer.pad_token_id == end
    assert len({len(lm.encode(e.text + e.continuation)) for e in edits}) > 1
    ended, plain = (
        descend(lm, edits, [lm.down(1)], settings=DescentSettings(steps=1, end_of_text=flag)).losses[0]
        for flag in (True, False)
    )
    assert ended == pytest.approx(float(nll(lm, edits, [end])), rel=1e-5)
    assert plain == pytest.approx(float(nll(lm, edits)), rel=1e-5)
    assert abs(ended - plain) > 1e-2


def test_locft_makes_the_model_end_its_answer(fresh):
    lm = fresh("gpt2")
    edit = one_token(lm)[0]
    row = torch.tensor([lm.encode(edit.text)])
    options = {"attention_mask": torch.ones_like(row), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with patched(lm, BreadthFirst(lr=5e-3, steps=60).edit(lm, [edit])):
        said = lm.model.generate(row, **options)[0, row.shape[1] :].tolist()
    assert said == [*lm.continuation(edit.text, edit.continuation), lm.tokenizer.eos_token_id]


def test_a_batch_whose_loss_is_small_makes_no_update(fresh):
    lm, edits = fresh("gpt2"), many(2)
    small, large = sorted(edits, key=lambda e: float(nll(lm, [e])))
    between = (float(nll(lm, [small])) + float(nll(lm, [large]))) / 2
    settings = DescentSettings(steps=1, batch_size=1, threshold=between)
    deltas = [
        descend(lm, part, [lm.down(1)], settings=settings).deltas[lm.down(1)].dense() for part in ([small], [large])
    ]
    assert not deltas[0].any()
    assert deltas[1].any()
    # The small one's batch makes no step of its own either: Adam's moments do not carry the step on.
    both = descend(lm, [large, small], [lm.down(1)], settings=settings).deltas[lm.down(1)].dense()
    assert torch.equal(both, deltas[1])


def test_it_ends_when_the_mean_of_a_pass_is_small(fresh):
    lm, edits = fresh("gpt2"), many(3)
    losses = descend(
        lm, edits, [lm.down(1)], settings=DescentSettings(lr=5e-3, steps=200, batch_size=2, threshold=2.0)
    ).losses
    weighted = [(2 * a + b) / 3 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert weighted[-1] < 2.0 <= min(weighted[:-1])
    assert len(weighted) < 200


def test_the_mean_of_a_pass_counts_edits_and_not_batches(fresh):
    lm = fresh("gpt2")
    edits = sorted(many(3), key=lambda e: float(nll(lm, [e])))
    pair, single = float(nll(lm, edits[:2])), float(nll(lm, edits[2:]))
    by_edits, by_batches = (2 * pair + single) / 3, (pair + single) / 2
    assert by_edits < by_batches - 1e-3
    settings = DescentSettings(lr=1e-12, steps=3, batch_size=2, threshold=(by_edits + by_batches) / 2)
    assert len(descend(lm, edits, [lm.down(1)], settings=settings).losses) == 2  # one pass of two batches


def test_the_seed_decides_the_order_of_locft(fresh):
    lm, edits = fresh("gpt2"), many(7)
    a, b, c = (
        BreadthFirst(batch_size=3, steps=2, seed=s).edit(lm, edits).weights[lm.down(2)].dense() for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_locft_trains_the_whole_block_where_the_authors_do(fresh):
    lm = fresh("llama")
    patch = BreadthFirst(layers=(1,), trained="block", steps=1).edit(lm, many(3))
    inside = {name for name, _ in lm.model.named_parameters() if name.startswith("model.layers.1.")}
    assert set(patch.weights) == inside
    assert all(bool(delta.dense().any()) for delta in patch.weights.values())
    assert BreadthFirst.presets["mistral-7b-v0.1"]["trained"] == "block"


def test_a_tokenizer_that_cannot_end_a_text_is_refused(fresh):
    lm = fresh("gpt2")
    lm.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no token that ends a text; set its eos_token"):
        BreadthFirst().edit(lm, many(1))


# LoRA


def anatomy(lm: LM) -> dict[str, object]:
    """Everything that an injection could leave behind."""
    modules = list(lm.model.named_modules(remove_duplicate=False))
    return {
        "state": lm.state_hashes(),
        "modules": [(name, id(module), type(module), module.training) for name, module in modules],
        "attributes": [(name, sorted(vars(module))) for name, module in modules],
        "hooks": [bool(module._forward_hooks or module._forward_pre_hooks) for _, module in modules],
        "parameters": [(name, id(p), p.requires_grad, p.grad) for name, p in lm.model.named_parameters()],
        "config": lm.model.config.to_json_string(),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_lora_leaves_no_trace_in_the_model(fresh, family):
    """EasyEdit continues an adapter that it finds in the model; here a second edit finds the model as it was."""
    lm, method = fresh(family), Lora(steps=3)
    before = anatomy(lm)
    first = method.edit(lm, many(3))
    assert anatomy(lm) == before
    second = method.edit(lm, many(3))
    assert all(torch.equal(first.weights[name].dense(), second.weights[name].dense()) for name in first.weights)


def test_lora_edits_a_mixture_of_experts_that_peft_would_wrap_otherwise(fresh):
    """Told its configuration, peft takes a dense block's matrices for those of experts, and wraps these."""
    config = DeepseekV2Config(
        vocab_size=len(fresh("llama").tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=2,
        num_experts_per_tok=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
    lm = LM.wrap(DeepseekV2ForCausalLM(config), fresh("llama").tokenizer)
    before = anatomy(lm)
    patch = Lora(steps=2, layers=(0,)).edit(lm, many(2))
    assert anatomy(lm) == before
    assert set(patch.weights) == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_lora_leaves_no_trace_after_an_exception(fresh, monkeypatch):
    lm = fresh("gpt2")
    before = anatomy(lm)
    too_long = Edit("long", "word " * 120 + "{} is", "Ada Velmont", "Rome")
    with pytest.raises(Exception, match="takes 96"):
        Lora().edit(lm, [too_long])
    assert anatomy(lm) == before
    plain, seen = peft.tuners.lora.LoraModel._create_and_replace, []

    def third_time_fails(self, *args, **options):
        seen.append(args)
        if len(seen) == 3:
            raise ZeroDivisionError
        plain(self, *args, **options)

    monkeypatch.setattr(peft.tuners.lora.LoraModel, "_create_and_replace", third_time_fails)
    with pytest.raises(ZeroDivisionError):
        Lora().edit(lm, many(2))
    assert anatomy(lm) == before


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_peft_model_trained_by_hand_says_the_same(fresh, family):
    """The patch against peft's own adapter and its own merge, also where GPT-2 stores matrices as [in, out]."""
    lm, other, edits = fresh(family), fresh(family), many(4)
    patch = Lora(token_mean="edit", rank=4, alpha=12, steps=4, lr=2e-3, layers=(0, 2), threshold=0.0, seed=7).edit(
        lm, edits
    )
    names = [name.removesuffix(".weight") for name in patch.weights]
    assert len(names) == 2 * (3 if family == "llama" else 2)
    for name, delta in patch.weights.items():
        assert isinstance(delta, LowRank)
        assert delta.left.shape[1] == 4
        assert delta.shape == lm.matrix(name).shape
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LoraConfig(r=4, lora_alpha=12, target_modules=names, fan_in_fan_out=family == "gpt2")
        theirs = LoraModel(other.model, config, "default")
    adam = torch.optim.AdamW([p for p in other.model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    for _ in range(4):
        adam.zero_grad()
        nll(other, edits).backward()
        adam.step()
    row = torch.tensor([lm.encode("Ada Velmont was born in Rome")])
    with torch.no_grad():
        plain = lm.model(row).logits
        with patched(lm, patch):
            ours = lm.model(row).logits
        assert torch.allclose(ours, theirs(row).logits, atol=1e-4)
        assert torch.allclose(ours, theirs.merge_and_unload()(row).logits, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_the_first_step_of_lora_moves_b_alone_by_the_learning_rate(fresh):
    """B is zero at first, so A has no gradient; Adam's first step is the learning rate in the gradient's direction."""
    lm, lr = fresh("gpt2"), 1e-3
    patch = Lora(token_mean="edit", rank=2, alpha=6, steps=1, lr=lr, layers=(1,)).edit(lm, many(3))
    again = Lora(token_mean="edit", rank=2, alpha=6, steps=1, lr=lr / 2, layers=(1,)).edit(lm, many(3))
    weight = lm.parameter("transformer.h.1.mlp.c_proj.weight").requires_grad_()
    nll(lm, many(3)).backward()
    weight.requires_grad_(False)
    for name, delta in patch.weights.items():
        assert torch.allclose(delta.left.abs(), torch.tensor(lr * 6 / 2), rtol=1e-3)
        assert torch.equal(delta.right, again.weights[name].right)
        assert float(delta.right.abs().max()) <= 1 / math.sqrt(delta.shape[1])  # Kaiming's uniform with a = sqrt 5
    delta = patch.weights["transformer.h.1.mlp.c_proj.weight"]
    assert torch.equal(delta.left.sign(), -(weight.grad.T @ delta.right.T).sign())


def test_the_seed_of_lora_is_its_own(fresh):
    lm = fresh("gpt2")
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    a, b, c = (Lora(steps=2, seed=s).edit(lm, many(2)).weights["transformer.h.0.mlp.c_fc.weight"] for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.dense(), b.dense())
    assert not torch.equal(a.right, c.right)


def test_dropout_of_lora_is_at_work_in_training(fresh):
    lm = fresh("gpt2")
    plain, dropped, again = (
        Lora(steps=2, dropout=p).edit(lm, many(2)).weights["transformer.h.0.mlp.c_fc.weight"].dense()
        for p in (0.0, 0.5, 0.5)
    )
    assert not torch.allclose(plain, dropped)
    assert torch.equal(dropped, again)


def test_lora_takes_other_matrices_by_the_last_part_of_their_names(fresh):
    lm = fresh("llama")
    patch = Lora(steps=1, layers=(1,), modules=("q_proj", "v_proj")).edit(lm, many(2))
    assert set(patch.weights) == {f"model.layers.1.self_attn.{n}.weight" for n in ("q_proj", "v_proj")}
    with pytest.raises(UsageError, match=r"'modules' names 'q_prj', which is no matrix .*did you mean .*q_proj"):
        Lora(modules=("q_prj",)).edit(lm, many(2))


def test_lora_in_half_precision_keeps_its_small_steps(fresh):
    lm = fresh("llama", dtype=torch.bfloat16)
    patch = Lora(steps=2, lr=1e-6).edit(lm, many(2))
    assert all(delta.left.dtype == torch.float32 and bool(delta.left.any()) for delta in patch.weights.values())


# UltraEdit

PLAIN: dict[str, Any] = {"loss": "edit", "deviation": "data"}


def features(lm: LM, edits: Sequence[Edit], names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and gradients, one edit at a time, from the model's own backward pass."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in names}
    for edit in edits:
        prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
        caught: dict[str, tuple[Tensor, Tensor]] = {}

        def catch(module, args, output, name, caught=caught):
            output.retain_grad()
            caught[name] = (args[0], output)

        handles = [
            lm.module(n).register_forward_hook(lambda m, a, o, n=n: catch(m, a, o, n), always_call=False) for n in names
        ]
        lm.model.requires_grad_(True)
        logits = lm.model(torch.tensor([prompt + target])).logits[0]
        where = slice(len(prompt) - 1, len(prompt) + len(target) - 1)
        torch.nn.functional.cross_entropy(logits[where], torch.tensor(target), reduction="sum").backward()
        for handle in handles:
            handle.remove()
        for name, (entered, left) in caught.items():
            found[name][0].append(entered.detach().reshape(-1, entered.shape[-1])[where].double())
            found[name][1].append(left.grad.reshape(-1, left.shape[-1])[where].double())
        lm.model.zero_grad()
        lm.model.requires_grad_(False)
    return {name: (torch.cat(k), torch.cat(g)) for name, (k, g) in found.items()}


def expected(lr: float, now: dict[str, tuple[Tensor, Tensor]], *earlier: dict[str, tuple[Tensor, Tensor]]) -> dict:
    """The published formula with plain means and deviations over everything so far, matrices of one shape together."""
    shifts = {}
    for name, (key, gradient) in now.items():
        alike = [
            torch.cat(pair, 1)
            for operation in (now, *earlier)
            for pair in operation.values()
            if pair[0].shape[1:] == key.shape[1:] and pair[1].shape[1:] == gradient.shape[1:]
        ]
        rows = torch.cat(alike)
        both = (torch.cat([key, gradient], 1) - rows.mean(0)) / (rows.std(0) + torch.finfo(torch.float32).eps)
        k_hat, g_hat = both[:, : key.shape[1]], both[:, key.shape[1] :]
        value = -lr * (k_hat**2).sum(1, keepdim=True) * g_hat
        eye = torch.eye(key.shape[1], dtype=torch.float64)
        shifts[f"{name}.weight"] = torch.linalg.solve(key.T @ key + eye, key.T @ value).T
    return shifts


def same(patch: Patch, want: dict[str, Tensor]) -> None:
    assert set(patch.weights) == set(want)
    for name, value in want.items():
        assert float((patch.weights[name].dense() - value).norm() / value.norm()) < 1e-4, name


def into(lm: LM, layers: Sequence[int]) -> list[str]:
    """The matrices that lead into the feed-forward part, by the names of the tiny models."""
    leaves = {"gpt2": ("c_fc",), "llama": ("gate_proj", "up_proj"), "opt": ("fc1",), "gptj": ("fc_in",)}
    parents = [lm.arch.down_of(layer).rpartition(".")[0] for layer in layers]
    return [f"{parent}.{leaf}" for parent in parents for leaf in leaves[lm.name.removeprefix("tiny-")]]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt"])
def test_ultraedit_is_its_formula(fresh, family):
    lm, edits = fresh(family), many(7)
    patch = UltraEdit(**PLAIN, layers=(0, 1), lr=1e-3).edit(lm, edits)
    same(patch, expected(1e-3, features(lm, edits, into(lm, (0, 1)))))


def test_ultraedit_takes_other_matrices_by_name_each_shape_with_statistics_of_its_own(fresh):
    lm, edits = fresh("llama"), many(7)
    names = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj", "model.layers.0.mlp.up_proj"]
    patch = UltraEdit(**PLAIN, modules=tuple(names), lr=1e-3).edit(lm, edits)
    same(patch, expected(1e-3, features(lm, edits, names)))
    assert {shape: s.count for shape, s in patch.memory.statistics.items()} == {
        (64, 32): 2 * len(features(lm, edits, names)[names[0]][0]),
        (32, 64): len(features(lm, edits, names)[names[0]][0]),
    }


def test_ultraedit_shifts_a_matrix_whose_output_the_model_changes_in_place(fresh):
    """Falcon adds attention to what its feed-forward part gave."""
    lm, edits = fresh("falcon"), many(3)
    name = lm.arch.down_of(1)
    patch = UltraEdit(**PLAIN, modules=(name,), lr=1e-3).edit(lm, edits)
    change = patch.weights[f"{name}.weight"].dense()
    assert bool(torch.isfinite(change).all()) and float(change.norm()) > 0
    with patched(lm, patch):
        after = sum(float(log_likelihood(lm, tokenise(lm, [edit])).sum()) for edit in edits)
    assert after > sum(float(log_likelihood(lm, tokenise(lm, [edit])).sum()) for edit in edits)


def test_the_second_operation_is_normalised_over_both(fresh):
    lm, edits = fresh("gpt2"), many(7)
    method = UltraEdit(**PLAIN, layers=(0, 1), lr=1e-3)
    first = method.edit(lm, edits[:3])
    one = features(lm, edits[:3], into(lm, (0, 1)))
    with patched(lm, first):
        second = method.edit(lm, edits[3:], first.memory)
        two = features(lm, edits[3:], into(lm, (0, 1)))
    same(second, expected(1e-3, two, one))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_defect_of_ultraedit_edits_that_do_not_fill_a_mini_batch_count(fresh, size):
    """The authors read keys of ceil(n / b) mini-batches and gradients of n // b; EasyEdit drops the last edits."""
    lm, edits = fresh("gpt2"), many(7)
    patch = UltraEdit(**PLAIN, layers=(0, 1), lr=1e-3, batch_size=size).edit(lm, edits)
    same(patch, expected(1e-3, features(lm, edits, into(lm, (0, 1)))))


@pytest.mark.parametrize("parts", [[50], [1, 49], [10, 10, 30], [1] * 50])
def test_statistics_do_not_depend_on_how_the_data_were_split(parts):
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 100
    pieces = [Statistics.of(part) for part in rows.split(parts)]
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    assert total.count == 50
    assert torch.allclose(total.mean, rows.double().mean(0), rtol=1e-12)
    assert torch.allclose((total.squares / 49).sqrt(), rows.double().std(0), rtol=1e-10)
    want = (rows.double() - rows.double().mean(0)) / rows.double().std(0)
    assert torch.allclose(total.normalised(rows), want, atol=1e-6)


@pytest.mark.parametrize(("count", "kind"), [(5, LowRank), (11, LowRank), (12, Dense), (15, Dense), (30, Dense)])
@pytest.mark.parametrize("shape", [(16, 12), (12, 16)])
def test_the_shift_is_the_ridge_regression_of_values_on_keys(count, kind, shape):
    draw = torch.Generator().manual_seed(count)
    key, value = (torch.randn(count, width, generator=draw, dtype=torch.float64) for width in shape)
    delta = shift(key, value)
    dense = torch.linalg.solve(key.T @ key + torch.eye(shape[0], dtype=torch.float64), key.T @ value).T
    assert isinstance(delta, kind)
    assert delta.shape == (shape[1], shape[0])
    assert torch.allclose(delta.dense(), dense, rtol=1e-9, atol=1e-12)


def test_ultraedit_shifts_layers_from_two_thirds_of_the_depth_to_the_last_but_one(fresh):
    lm = fresh("llama")
    assert set(UltraEdit().edit(lm, many(3)).weights) == {f"{name}.weight" for name in into(lm, (1,))}
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = 28
    deep = LM.wrap(type(lm.model)(config), lm.tokenizer, name="deep")
    shifted = UltraEdit().edit(deep, many(3)).weights
    assert sorted({int(name.split(".")[2]) for name in shifted}) == list(range(18, 27))  # as published for Qwen 2.5


def test_ultraedit_refuses_the_memory_of_another_editor(fresh):
    lm = fresh("gpt2")
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        UltraEdit().edit(lm, many(2), 3)
    seen = Seen()
    assert UltraEdit().edit(lm, [], seen).memory is seen


def test_what_is_not_finite_is_refused_by_module_and_edit(fresh):
    lm = fresh("gpt2")
    lm.parameter("transformer.h.1.mlp.c_fc.weight").data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"edits 0, 1 give at 'transformer.h.1.mlp.c_fc' holds a NaN"):
        UltraEdit(layers=(1,)).edit(lm, many(2))
    with pytest.raises(NumericalError, match=r"the loss of edits 0, 1 became nan"):
        Lora(steps=1).edit(lm, many(2))


# Of all


def test_defect_10_no_device_is_written_into_the_code():
    """AlphaEdit and LocFT-BF name their GPU by number; here the model's own device is the device."""
    root = Path(__file__).parents[3]
    for path in sorted([*(root / "editors").glob("*.py"), *(root / "harness").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith("cuda"), f"{path.name}:{node.lineno}"
            assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), f"{path.name}:{node.lineno}"
