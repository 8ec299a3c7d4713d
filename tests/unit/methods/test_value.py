"""Keys, context templates, the value optimisation, and the formulas of ROME, R-ROME and MEMIT on small numbers."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import tensor

from editors.memit import Memit
from editors.r_rome import RRome
from editors.rome import Rome
from harness.editing import registry
from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, NumericalError, UsageError
from harness.exam import tasks
from harness.methods import context_templates, value, value_forward
from harness.methods.keys import Unedited, find_fact_token, rank_one_changes, read_keys, spread_residuals
from harness.methods.locate_then_edit import ridge_adjoint
from harness.methods.rank_one import update_direction
from harness.methods.second_moments import Moment
from harness.methods.value import Values, anchor_norm, optimise
from harness.methods.value_forward import BlocksAbove, BlocksFrom, WholeModel, fastest_forward
from harness.methods.value_rows import Objective, PreparedEdit, prefixes, prepare_edit
from harness.models.activations import TokenRow, fused_gelu, prefix_cache, read_activations, skip_blocks
from harness.models.lm import load
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

CONTEXTS = ("{}", "The weather is. {}", "Nobody knows. {}")


# ------------------------------------------------------------------------------------------ formulas on known numbers


def test_tv_11_rome_and_r_rome_rank_one():
    weight = tensor([[1.0, 0, 2], [0, 1, 1]], dtype=torch.float64)
    moment = Moment(torch.diag(tensor([1.0, 2, 4], dtype=torch.float64)), 100)
    mean, bare = tensor([[2.0, 2, 4]], dtype=torch.float64), tensor([[1.0, 0, 1]], dtype=torch.float64)
    value = tensor([[5.0, -1]], dtype=torch.float64)
    u = update_direction(mean, moment)
    assert torch.allclose(u, tensor([[0.816497, 0.408248, 0.408248]], dtype=torch.float64), atol=1e-6)

    (rome,) = rank_one_changes(u, key=bare, output=bare @ weight.T, value=value)
    assert torch.allclose(rome.left[:, 0], tensor([1.632993, -1.632993], dtype=torch.float64), atol=1e-6)
    after = weight + rome.dense()
    wanted = [[2.333333, 0.666667, 2.666667], [-1.333333, 0.333333, 0.333333]]
    assert torch.allclose(after, tensor(wanted, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(after @ bare[0], value[0])
    assert torch.allclose(after @ mean[0], tensor([16.666667, -0.666667], dtype=torch.float64), atol=1e-6)

    (r_rome,) = rank_one_changes(u, key=mean, output=mean @ weight.T, value=value)
    after = weight + r_rome.dense()
    wanted = [[0, -0.5, 1.5], [-1.4, 0.3, 0.3]]
    assert torch.allclose(after, tensor(wanted, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(after @ mean[0], value[0])
    assert torch.allclose(after @ bare[0], tensor([1.5, -1.1], dtype=torch.float64), atol=1e-6)


def test_tv_12_memit_update_and_key_average():
    moment = Moment(torch.diag(tensor([1.0, 2, 4], dtype=torch.float64)), 100)
    key = tensor([[1.0, 0, 1]], dtype=torch.float64)
    adj = ridge_adjoint(moment, key, 2.0)
    assert torch.allclose(adj[:, 0], tensor([0.307692, 0, 0.076923], dtype=torch.float64), atol=1e-6)
    change = tensor([[1.0], [2.0]], dtype=torch.float64) @ adj.T
    wanted = [[0.307692, 0, 0.076923], [0.615385, 0, 0.153846]]
    assert torch.allclose(change, tensor(wanted, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(change @ key[0], tensor([0.384615, 0.769231], dtype=torch.float64), atol=1e-6)

    each = tensor([[2.0, 0]] + [[0, i] for i in range(1, 6)], dtype=torch.float64)
    templates = ["{}"] * 6
    assert torch.allclose(
        context_templates.template_weights(templates, "memit") @ each, tensor([1.0, 1.5], dtype=torch.float64)
    )
    wanted = tensor([0.333333, 2.5], dtype=torch.float64)
    assert torch.allclose(context_templates.template_weights(templates, "rome") @ each, wanted, atol=1e-6)


def test_tv_13_the_pieces_of_the_loss(tiny, edits, monkeypatch):
    """KL has the edited distribution as its weight; the weight decay is a norm over a squared norm."""

    def given(self, delta):
        new = tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
        old = tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
        places = len(self.places.row)
        return torch.zeros(places, 500, dtype=torch.float64), new if float(delta.detach().norm()) else old

    monkeypatch.setattr(BlocksAbove, "logits", given)
    lm = tiny("gpt2")
    objective = Objective(1, kl_factor=1.0, weight_decay=0.5)
    task = prepare_edit(lm, edits[0], templates=("{}",), fact_token="subject_last")
    stage = value._ActiveEdits(lm, [task], [0], objective=objective, runner=BlocksAbove, front=None)
    start = torch.zeros(1, 32, dtype=torch.float64)
    start[0, 0] = 4.0
    delta = torch.zeros(1, 32, dtype=torch.float64)
    _, _, reference = stage.losses(delta, start, None)
    delta[0, 1] = 3.0
    (terms,), _, _ = stage.losses(delta, start, reference)
    assert float(terms[2]) == pytest.approx(0.085123, abs=1e-6)
    assert float(terms[3]) == pytest.approx(0.09375)
    assert float(terms[1]) == pytest.approx(torch.log(tensor(500.0)).item())
    assert float(terms[0]) == pytest.approx(float(terms[1:].sum()))


# ------------------------------------------------------------------------------------------------- keys on the way


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon", "gptj"])
@pytest.mark.parametrize("seam", ["mlp", "block"])
def test_keys_are_read_on_the_way(tiny, edits, family, seam):
    lm, objective = tiny(family), Objective(1, seam=seam, steps=2)
    values = optimise(lm, edits, CONTEXTS, objective=objective, keys=True)
    for which, templates in enumerate((("{}",), CONTEXTS)):
        key, output = read_keys(lm, edits, 1, templates=templates, fact_token="subject_last", outputs=True)
        assert torch.allclose(values.keys[:, which], key, atol=1e-5)
        assert torch.allclose(values.outputs[:, which], output, atol=1e-5)
    assert not torch.allclose(values.keys[:, 0], values.keys[:, 1], atol=1e-2)
    assert not optimise(lm, edits, CONTEXTS, objective=objective).keys.numel()


@pytest.mark.parametrize("method", [Rome, RRome])
def test_a_column_of_padding_is_read_as_it_was_released(tiny, edits, method):
    """Where the last column is meant, the target behind a prompt moves it."""
    lm = tiny("gpt2")
    prior = Unedited(CONTEXTS, {0: Moment(torch.eye(lm.arch.inner, dtype=torch.float64), 10_000)})
    rome = method(layers=(0,), v_steps=2, fact_token="last_released")
    long = [replace(edits[0], target="the old town of Rome")]
    u = rome.edit(lm, long, prior).weights[lm.down(0)].right[0]
    mean, _ = read_keys(lm, long, 0, templates=CONTEXTS, fact_token="last_released")
    assert torch.allclose(u, mean[0] / mean[0].norm(), atol=1e-6)
    moved = optimise(lm, long, CONTEXTS, objective=rome.objective(0), keys=True).keys[0, 1]
    assert not torch.allclose(u, moved / moved.norm(), atol=1e-4)


@pytest.mark.parametrize("name", ["rome", "r_rome"])
def test_a_moment_without_an_inverse_is_told_before_anything_is_optimised(tiny, edits, monkeypatch, name):
    lm, cls = tiny("gpt2"), registry.find(name)
    monkeypatch.setattr(sys.modules[cls.__module__], "optimise", lambda *_args, **_options: pytest.fail("optimised"))
    prior = Unedited(CONTEXTS, {0: Moment(torch.zeros(lm.arch.inner, lm.arch.inner, dtype=torch.float64), 3)})
    with pytest.raises(NumericalError, match="has no inverse: 3 tokens were read"):
        cls(layers=(0,)).edit(lm, edits[:1], prior)


# ------------------------------------------------------------------------------------------ defects of others' code


def test_defect_0_rome_whitens_its_key(tiny, edits, fresh):
    """Elsewhere every ROME preset leaves out ``C^-1``; here ``u`` is ``C^-1 k`` for a known ``C``."""
    lm = tiny("gpt2")
    spectrum = torch.linspace(0.5, 4.0, lm.arch.inner, dtype=torch.float64)
    prior = Unedited(CONTEXTS, {0: Moment(torch.diag(spectrum), 10_000)})
    rome = Rome(layers=(0,), v_steps=3)
    mean, _ = read_keys(lm, edits[:1], 0, templates=CONTEXTS, fact_token="subject_last")
    wanted = mean[0].double() / spectrum
    patch = rome.edit(lm, edits[:1], prior)
    u = patch.weights[lm.down(0)].right[0].double()
    assert torch.allclose(u, wanted / wanted.norm(), atol=1e-6)
    plain = replace(rome, covariance=False).edit(lm, edits[:1], prior).weights[lm.down(0)].right[0].double()
    assert not torch.allclose(u, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["rome", "r_rome"])
def test_defect_0_no_preset_drops_the_covariance_silently(name):
    cls = registry.find(name)
    assert cls.presets
    for model, preset in cls.presets.items():
        made = registry.configure(cls, model, {})
        assert made.covariance or made.label() == f"{name}-nocov", model
        assert preset.get("covariance", True)
    assert registry.configure(cls, "gpt2-xl", {"covariance": False}).label() == f"{name}-nocov"


@pytest.mark.parametrize("variant", ["prefix", "prompt"])
def test_defect_12_r_rome_uses_one_key(tiny, edits, variant):
    """After the edit the key that made ``u`` gives exactly the value; ROME keeps that promise for another key only."""
    lm = tiny("gpt2")
    prior = Unedited(CONTEXTS, {0: Moment(torch.eye(lm.arch.inner, dtype=torch.float64), 10_000)})
    method = RRome(layers=(0,), v_steps=6, variant=variant)
    templates = CONTEXTS if variant == "prefix" else ("{}",)
    key, before = read_keys(lm, edits[:1], 0, templates=templates, fact_token="subject_last", outputs=True)
    values = optimise(lm, edits[:1], CONTEXTS, objective=method.objective(0))
    wanted = values.value if variant == "prefix" else before + values.delta
    change = method.edit(lm, edits[:1], prior).weights[lm.down(0)].dense()
    assert torch.allclose(before[0] + change @ key[0], wanted[0], atol=1e-4)
    if variant == "prefix":
        rome = Rome(layers=(0,), v_steps=6).edit(lm, edits[:1], prior).weights[lm.down(0)].dense()
        bare, y0 = read_keys(lm, edits[:1], 0, templates=("{}",), fact_token="subject_last", outputs=True)
        assert torch.allclose(y0[0] + rome @ bare[0], values.value[0], atol=1e-4)
        assert not torch.allclose(before[0] + rome @ key[0], values.value[0], atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "mpt", "falcon"])
def test_what_is_optimised_is_what_the_feed_forward_part_adds(tiny, edits, family):
    """BLOOM and MPT add the residual stream inside of that part, Falcon adds attention to its output in place."""
    lm, method = tiny(family), Rome(layers=(1,), v_steps=4)
    prior = Unedited(CONTEXTS, {1: Moment(torch.eye(lm.arch.inner, dtype=torch.float64), 10_000)})
    values = optimise(lm, edits[:1], CONTEXTS, objective=method.objective(1))
    _, before = read_keys(lm, edits[:1], 1, templates=("{}",), fact_token="subject_last", outputs=True)
    assert torch.allclose(values.start, before, atol=1e-5)
    ids, place = find_fact_token(lm, edits[0], template="{}", fact_token="subject_last")
    at = TokenRow(tuple(ids), place)
    with patched(lm, method.edit(lm, edits[:1], prior)):
        after = read_activations(lm, [at], outputs=[lm.arch.block(1)]).outputs[lm.arch.block(1)]
    block = read_activations(lm, [at], outputs=[lm.arch.block(1)]).outputs[lm.arch.block(1)]
    assert torch.allclose(after, block + values.delta, atol=1e-4)
    assert float(values.delta.norm()) > 0.1


def test_a_tokenizer_without_a_token_that_starts_a_text_is_told(tiny, make_tokenizer):
    tokenizer = make_tokenizer(False)
    tokenizer.bos_token = tokenizer.eos_token = None
    lm = replace(tiny("gpt2"), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="no token that begins or ends a text; set its bos_token"):
        context_templates.sample_templates(lm, "rome")
    assert tiny("gpt2").start == 0


def test_a_loss_layer_below_the_first_is_refused():
    """As minus one would be taken for the edited layer, and not for the last."""
    with pytest.raises(UsageError, match="'v_loss_layer' is -1, expected at least 0"):
        Rome(v_loss_layer=-1)


def test_defect_13_templates_are_seeded(tiny):
    lm = tiny("gpt2")
    for kind, count in (("rome", 21), ("memit", 6)):
        one, same, other = (context_templates.sample_templates(lm, kind, seed) for seed in (3, 3, 4))
        assert one == same != other
        assert len(one) == count
        assert one[0] == "{}"
        context_templates.require_templates(one)


def test_defect_13_values_follow_the_models_state(tiny, edits):
    """A value is never a stale one: the same edit on an edited model gets another."""
    lm = tiny("gpt2")
    objective = Objective(1, seam="block", steps=4)
    before = optimise(lm, edits[:1], CONTEXTS, objective=objective)
    prior = Unedited(CONTEXTS, {0: Moment(torch.eye(lm.arch.inner), 1000)})
    with patched(lm, Rome(layers=(0,), v_steps=5).edit(lm, edits[1:2], prior)):
        during = optimise(lm, edits[:1], CONTEXTS, objective=objective)
    after = optimise(lm, edits[:1], CONTEXTS, objective=objective)
    assert torch.equal(before.value, after.value)
    assert not torch.allclose(before.value, during.value, atol=1e-4)


# ------------------------------------------------------------------------------------------ the optimisation


@pytest.mark.parametrize(
    "family", ["gpt2", "gptj", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "phi"]
)
@pytest.mark.parametrize("seam", ["mlp", "block"])
def test_running_only_what_the_change_reaches_gives_the_models_logits(fresh, edits, family, seam):
    """Split rows and whole rows, from the edited block up, against the whole model; with their gradients."""
    lm = fresh(family, dtype=torch.float64)
    objective = Objective(1, seam=seam)
    whole = [prepare_edit(lm, edit, templates=CONTEXTS, fact_token="subject_last") for edit in edits]
    split = [task.split() for task in whole]
    assert any(task.prefixes != split[0].prefixes for task in split[1:])
    way = fastest_forward(lm, whole, objective)
    assert way.runner is BlocksAbove
    assert [task.rows for task in way.rows(whole)] == [task.rows for task in split]
    delta = torch.linspace(-1, 1, 32 * len(edits), dtype=torch.float64).reshape(-1, 32).requires_grad_()
    every = []
    front = prefix_cache(lm, prefixes(split), budget=20)
    for made in (
        *(kind(lm, split, objective, front=front) for kind in (BlocksAbove, BlocksFrom)),
        *(kind(lm, whole, objective) for kind in (BlocksAbove, BlocksFrom, WholeModel)),
    ):
        supervised, essence = made.logits(delta)
        gradient = torch.autograd.grad(supervised.log_softmax(-1)[:, 3].sum() + essence[:, 5].sum(), delta)[0]
        every.append((made.start(), supervised.detach(), essence.detach(), gradient))
    *others, reference = every
    for ours in others:
        for mine, models in zip(ours, reference, strict=True):
            # Rotary tables, RMS norms and all of GPT-J's attention are float32 inside transformers.
            assert float((mine - models).norm()) <= 1e-6 * float(models.norm())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma", "opt"])
def test_what_several_rows_begin_with_is_computed_once(fresh, family):
    """Keys and values are those of each row by itself, also of a head that begins another, and of none."""
    lm = fresh(family, dtype=torch.float64)
    stem = tuple(range(5, 25))
    heads = [(*stem, 6, 2), (*stem, 6, 1), (*stem, 6, 3), (*stem, 2), (11, 12), (11,), (), (*stem, 6, 2)]
    read: list[int] = []
    handle = lm.module(lm.arch.block(0)).register_forward_pre_hook(
        lambda _module, args: read.append(args[0].shape[0] * args[0].shape[1])
    )
    front = prefix_cache(lm, heads)
    handle.remove()
    assert front is not None
    # The stem, with and without the 6, and the 11; then the last token of each.  The heads themselves have 90 tokens.
    assert read == [3 * 21, 6]
    assert front.lengths.tolist() == [len(head) for head in heads]
    for row, head in enumerate(heads):
        if not head:
            continue
        alone = prefix_cache(lm, [head])
        assert alone is not None
        for kind in ("keys", "values"):
            for mine, theirs in zip(getattr(front, kind), getattr(alone, kind), strict=True):
                # Rotary tables are float32 inside transformers.
                assert torch.allclose(mine[row, :, -len(head) :], theirs[0], rtol=1e-6, atol=1e-7)


def test_only_the_edited_block_and_those_below_run_to_prepare_an_evaluation(fresh, edits):
    """The others are asked for their arguments alone, and are themselves again afterwards, also after a failure."""
    lm = fresh("llama")
    split = [prepare_edit(lm, edit, templates=CONTEXTS, fact_token="subject_last").split() for edit in edits]
    ran: list[int] = []
    for layer in range(lm.arch.layers):
        inner = lm.module(lm.arch.attn_of(layer))
        inner.register_forward_pre_hook(lambda _module, _args, layer=layer: ran.append(layer))
    front = prefix_cache(lm, prefixes(split))
    ran.clear()
    BlocksAbove(lm, split, Objective(0), front=front)
    assert ran == [0]
    blocks = [lm.module(lm.arch.block(layer)) for layer in range(lm.arch.layers)]
    assert not any("forward" in vars(block) for block in blocks)
    own = vars(blocks[1])["forward"] = lambda *_args, **_kwargs: None
    with pytest.raises(KeyError), skip_blocks(blocks[1:], blocks[0]):
        raise KeyError
    assert vars(blocks[1])["forward"] is own


def test_one_kernel_computes_what_gelu_new_spells_out(fresh):
    """To float64's last digits, with its gradient; and only as long as it is asked for."""
    lm = fresh("gpt2", dtype=torch.float64)
    activation = lm.model.transformer.h[0].mlp.act
    x = torch.linspace(-6, 6, 97, dtype=torch.float64, requires_grad=True)
    (spelt,) = torch.autograd.grad((plain := activation(x)).sum(), x)
    with fused_gelu(lm.model):
        ours = activation(x)
        (gradient,) = torch.autograd.grad(ours.sum(), x)
        assert type(ours.grad_fn) is not type(plain.grad_fn)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-14)
    assert torch.allclose(gradient, spelt, rtol=0, atol=1e-14)
    assert type(activation(x).grad_fn) is type(plain.grad_fn)


def test_many_edits_side_by_side_are_one_at_a_time(fresh, edits):
    """Also where some stop early, are clamped, or are spread over several passes."""
    lm = fresh("gpt2", dtype=torch.float64)
    free = optimise(lm, edits, CONTEXTS, objective=Objective(1, steps=12, clamp=2.0, threshold=0.0))
    best = sorted(float(losses[:, 0].min()) for losses in free.losses)
    objective = Objective(1, seam="mlp", steps=12, clamp=2.0, threshold=(best[0] + best[1]) / 2)
    alone = [optimise(lm, [edit], CONTEXTS, objective=objective) for edit in edits]
    counts = {len(one.losses[0]) for one in alone}
    assert len(counts) > 1, "the edits must stop at different steps for this test to say something"
    for budget in (None, 60):
        together = optimise(lm, edits, CONTEXTS, objective=replace(objective, budget=budget))
        for i, one in enumerate(alone):
            assert torch.allclose(together.delta[i], one.delta[0], rtol=1e-6, atol=1e-9)
            assert len(together.losses[i]) == len(one.losses[0])


def says(lm, edit, delta):
    """Whether the model itself, with a change after the subject at layer 0, says the target in every context."""
    target, right = lm.continuation(edit.text, edit.continuation), []
    for template in CONTEXTS:
        ids, at = find_fact_token(lm, edit, template=template, fact_token="subject_last")

        def shift(_module, _args, output, at=at):
            output[0, at] += delta
            return output

        handle = lm.module(lm.arch.mlp_of(0)).register_forward_hook(shift)
        with torch.no_grad():
            best = lm.model(torch.tensor([[*ids, *target[:-1]]])).logits[0, len(ids) - 1 :].argmax(-1)
        handle.remove()
        right.append(best.tolist() == target)
    return all(right)


def test_argmax_stops_as_soon_as_every_context_says_the_target():
    lm, edits = load("mini"), tasks.read_edits("counterfact", data_dir="mini", count=4)
    objective = Objective(0, steps=25, lr=0.2, clamp=10.0, weight_decay=1e-3, threshold=0.0)
    free = optimise(lm, edits, CONTEXTS, objective=objective)
    found = optimise(lm, edits, CONTEXTS, objective=replace(objective, stop="argmax"))
    counts = [len(losses) for losses in found.losses]
    assert any(1 < count < 25 for count in counts), counts
    for i, (edit, count) in enumerate(zip(edits, counts, strict=True)):
        assert says(lm, edit, found.delta[i]) or count == 25
        before = (
            optimise(lm, [edit], CONTEXTS, objective=replace(objective, steps=count - 1)).delta[0]
            if count > 1
            else None
        )
        assert before is None or not says(lm, edit, before)
        assert torch.allclose(found.losses[i], free.losses[i][:count], rtol=1e-4, atol=1e-5)


def test_an_anchor_scales_what_the_feed_forward_module_writes():
    found = {"start": tensor([[0.0, 3], [6, 0]]), "delta": tensor([[4.0, 0], [0, 8]]), "losses": ()}
    assert torch.equal(Values(**found, written=found["start"]).value, tensor([[4.0, 3], [6, 8]]))
    anchored = Values(**found, written=found["start"], anchor=2.0)
    assert torch.allclose(anchored.value, tensor([[1.6, 1.2], [1.2, 1.6]]))
    # Of a hidden state (1, 3) the module wrote (0, 3): v0 + delta = (4, 3) is scaled, (1, 0) is added.
    block = Values(tensor([[1.0, 3]]), tensor([[4.0, 0]]), (), tensor([[0.0, 3]]), 2.0)
    assert torch.allclose(block.value, tensor([[2.6, 1.2]]))


def test_nas_anchor_leaves_out_the_largest_twentieth():
    for count, mean in ((20, 10.0), (19, 10.0), (40, 19.5)):
        norms = torch.arange(count, 0, -1).float()
        values = Values(torch.zeros(count, 1), norms[:, None] - 1, (), torch.ones(count, 1))
        assert anchor_norm(values) == pytest.approx(mean)


@pytest.mark.parametrize("seam", ["mlp", "block"])
def test_the_anchor_of_a_call(tiny, edits, seam):
    lm = tiny("gpt2")
    plain = optimise(lm, edits, CONTEXTS, objective=Objective(1, seam=seam, steps=4))
    assert plain.anchor is None
    seen = []
    for edit in edits:
        ids, at = find_fact_token(lm, edit, template="{}", fact_token="subject_last")
        seen.append(
            read_activations(lm, [TokenRow(tuple(ids), at)], outputs=[lm.arch.mlp_of(1)]).outputs[lm.arch.mlp_of(1)]
        )
    written = torch.cat(seen)
    assert torch.allclose(plain.written, written, atol=1e-5)
    for anchor, norm in (("start", float(written.norm(dim=1).mean())), (0.5, 0.5)):
        found = optimise(lm, edits, CONTEXTS, objective=Objective(1, seam=seam, steps=4, anchor=anchor))
        assert found.anchor == pytest.approx(norm, rel=1e-5)
        assert torch.equal(found.delta, plain.delta)
        part = found.value - (found.start - found.written)
        assert torch.allclose(part.norm(dim=1), torch.full((len(edits),), norm), rtol=1e-4)
        wanted = plain.written + plain.delta
        assert torch.allclose(torch.cosine_similarity(part, wanted), torch.ones(len(edits)))


# ------------------------------------------------------------------------------------------ what is run


def test_portions_hold_one_width_and_the_budget():
    def task(width, head):
        rows = [TokenRow(tuple(range(width)), 0)] * 50
        return PreparedEdit(Edit("a", "{}", "b", "c"), rows, [[1]], [(0,) * head] * 50)

    tasks = [task(width, 16) for width in (3, 5, 3, 4, 3, 4, 5, 5)]
    # 50 rows of 3 columns and of heads that count 2: two edits are 500 tokens, above 256 a wider one starts anew.
    assert list(value._portions(tasks, 8000)) == [[0, 2, 4], [3, 5], [1, 6, 7]]
    assert list(value._portions(tasks, 500)) == [[0, 2], [4], [3], [5], [1], [6], [7]]
    # 150 tokens are too few for a pass of their own.
    assert list(value._portions(tasks[:2], 8000)) == [[0, 1]]


def test_rows_begin_where_the_change_is(tiny, edits):
    lm = tiny("gpt2")
    whole = prepare_edit(lm, edits[0], templates=CONTEXTS, fact_token="subject_last")
    split = whole.split()
    for row, part, head in zip(whole.rows, split.rows, split.prefixes, strict=True):
        assert head == row.ids[: row.at]
        assert part.at == 0
    assert [len(part.ids) for part in split.rows[:-1]] == [len(row.ids) - row.at for row in whole.rows[:-1]]
    assert len(split.rows[-1].ids) == 1
    # The last column of padded rows: a row begins with the first logits that are wanted.
    padded = prepare_edit(lm, edits[0], templates=CONTEXTS, fact_token="last_released").split()
    assert [len(row.ids) for row in padded.rows[:-1]] == [len(whole.said[0])] * len(CONTEXTS)
    assert all(
        row.at + len(head) == padded.rows[0].at + len(padded.prefixes[0])
        for row, head in zip(padded.rows, padded.prefixes, strict=True)
    )


def test_models_that_cannot_be_cut_are_run_whole(fresh, edits, monkeypatch):
    """A norm between seam and residual stream, a cache of another kind, blocks that cannot be called: same values."""
    lm, objective = fresh("gpt2", dtype=torch.float64), Objective(1, steps=4)
    prepared = [prepare_edit(lm, edit, templates=CONTEXTS, fact_token="subject_last") for edit in edits]

    def refuse(*_args):
        raise ValueError("no cache")

    with monkeypatch.context() as patch:
        wanted = optimise(lm, edits, CONTEXTS, objective=objective).delta
        for module in (value, value_forward):
            patch.setattr(module, "prefix_cache", lambda _lm, heads: refuse() if any(heads) else None)
        way = fastest_forward(lm, prepared, objective)
        assert (way.runner, way.rows(prepared)) == (BlocksAbove, prepared)
        assert torch.allclose(optimise(lm, edits, CONTEXTS, objective=objective).delta, wanted)
        patch.setattr(value_forward, "_agrees", lambda *_args, **_options: False)
        assert fastest_forward(lm, prepared, objective).runner is WholeModel
        assert torch.allclose(optimise(lm, edits, CONTEXTS, objective=objective).delta, wanted)
    # The block doubles what it gives, and the change with it.
    lm.module(lm.arch.block(1)).register_forward_hook(lambda _module, _args, output: output * 2)
    way = fastest_forward(lm, prepared, objective)
    assert way.runner is BlocksFrom
    assert any(task.prefixes[1] for task in way.rows(prepared))


def test_a_patch_with_hooks_sees_whole_rows(fresh, edits, monkeypatch):
    """A patch of another editor that follows the tokens: values are those of the whole model with it."""
    lm, objective = fresh("gpt2", dtype=torch.float64), Objective(1, steps=4)

    def hook(hidden, step):
        return hidden + (step.ids[:, -step.new :] % 3 == 0)[..., None] * torch.linspace(-1, 1, 32)

    cut = []
    for module in (value, value_forward):
        monkeypatch.setattr(
            module, "prefix_cache", lambda model, heads: cut.append(any(heads)) or prefix_cache(model, heads)
        )
    with patched(lm, Patch(hooks={lm.arch.block(0): hook})):
        found = optimise(lm, edits, CONTEXTS, objective=objective)
        assert not any(cut), "such a patch cannot follow tokens that are run ahead"
        monkeypatch.setattr(value_forward, "_agrees", lambda *_args, **_options: False)
        assert torch.allclose(found.delta, optimise(lm, edits, CONTEXTS, objective=objective).delta)
    assert not torch.allclose(found.delta, optimise(lm, edits, CONTEXTS, objective=objective).delta)


def test_the_change_is_clamped(tiny, edits):
    ratios = []
    for clamp in (0.5, 50.0):
        found = optimise(tiny("gpt2"), edits, CONTEXTS, objective=Objective(1, clamp=clamp, steps=6))
        ratios.append(found.delta.norm(dim=1) / found.start.norm(dim=1))
    bounded, free = ratios
    assert bool((bounded <= 0.5 + 1e-6).all())
    assert float(bounded.max()) == pytest.approx(0.5, abs=1e-6)
    assert bool((free > 0.5).any())


def test_one_evaluation_changes_nothing_and_the_gradient_at_zero_is_finite(tiny, edits):
    lm = tiny("gpt2")
    assert not optimise(lm, edits[:1], CONTEXTS, objective=Objective(1, steps=1)).delta.any()
    moved = optimise(lm, edits[:1], CONTEXTS, objective=Objective(1, steps=2)).delta
    assert bool(torch.isfinite(moved).all())
    assert bool(moved.any())


def test_half_precision_models_are_optimised_in_float32(fresh, edits):
    lm = fresh("llama", dtype=torch.bfloat16)
    found = optimise(lm, edits, CONTEXTS, objective=Objective(1, steps=6))
    assert found.delta.dtype == torch.float32
    assert all(losses.dtype == torch.float32 for losses in found.losses)
    assert sum(float(losses[:, 1].min() - losses[0, 1]) for losses in found.losses) < -0.5


def test_a_nan_names_the_edit_and_the_layer(fresh, edits):
    lm = fresh("gpt2")
    with torch.no_grad():
        lm.parameter("transformer.h.2.mlp.c_fc.weight")[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"edit a: the loss at layer 1 became nan"):
        optimise(lm, edits[:1], CONTEXTS, objective=Objective(1))


# ------------------------------------------------------------------------------------------ positions and bad input


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_token_that_is_edited(tiny, family):
    lm = tiny(family)
    edit = Edit("1", "The home of {} is", "Hugo Lantern", "Oslo")
    for template in ("{}", "Nobody knows. {}"):
        text = template.replace("{}", edit.text)

        def read_at(fact_token: str, template: str = template) -> str:
            ids, at = find_fact_token(lm, edit, template=template, fact_token=fact_token)
            return lm.tokenizer.decode(ids[: at + 1]).replace("<|end|>", "")

        assert read_at("subject_last") == text[: text.index(" is")]
        assert read_at("last") == text
        begin = read_at("subject_first")
        assert begin.startswith(text[: text.index("Hugo") + 1])
        assert len(begin) < len(read_at("subject_last"))
        assert read_at("subject_first_after_last") == text
    ending = Edit("2", "Everybody knows {}", "Hugo Lantern", "Oslo")
    assert find_fact_token(lm, ending, template="{}", fact_token="subject_first_after_last") == find_fact_token(
        lm, ending, template="{}", fact_token="subject_last"
    )


def test_a_subject_that_occurs_twice_is_found_in_its_slot(tiny):
    lm = tiny("gpt2")
    edit = Edit("1", "Rome is not {} and", "Rome", "Oslo")
    ids, at = find_fact_token(lm, edit, template="In Rome. {}", fact_token="subject_last")
    assert lm.tokenizer.decode(ids[: at + 1]) == "In Rome. Rome is not Rome"


def test_reading_stops_and_keeps_the_order(tiny):
    lm = tiny("gpt2")
    rows = [
        TokenRow(tuple(lm.encode(text)), 1) for text in ("Ada Velmont was born in Rome", "Ada lives", "Hugo Lantern is")
    ]
    name = lm.arch.down_of(0)
    together = read_activations(lm, rows, inputs=[name], outputs=[lm.arch.block(1)], budget=12)
    for i, row in enumerate(rows):
        alone = read_activations(lm, [row], inputs=[name], outputs=[lm.arch.block(1)])
        assert torch.allclose(together.inputs[name][i], alone.inputs[name][0], atol=1e-5)
    ran = []
    handle = lm.module(lm.arch.block(2)).register_forward_hook(lambda *_: ran.append(1))
    try:
        read_activations(lm, rows, inputs=[name])
    finally:
        handle.remove()
    assert not ran


@pytest.mark.parametrize("method", [Rome(), RRome(), Memit()])
def test_an_edit_without_a_subject_is_refused_by_name(tiny, method):
    method = replace(method, cov_tokens=2500)
    with pytest.raises(UsageError, match="edit plain: it has no subject"):
        method.edit(tiny("gpt2"), [Edit("plain", "The capital is", None, "Rome")])


@pytest.mark.parametrize("name", ["ft", "ft_l", "rome", "memit"])
def test_a_prompt_longer_than_the_context_names_the_edit_and_the_limit(tiny, name):
    long = Edit("long", "word " * 120 + "{} is", "Ada Velmont", "Rome")
    method = registry.configure(registry.find(name), "x", {"cov_tokens": 2500} if name in ("rome", "memit") else {})
    with pytest.raises(DataError, match=r"edit long: \d+ tokens .*takes 96"):
        method.edit(tiny("gpt2"), [long])


@pytest.mark.parametrize("name", ["ft", "ft_l", "rome", "memit"])
def test_an_unknown_layer_is_refused(tiny, edits, name):
    method = registry.configure(registry.find(name), "x", {"layers": [7]})
    with pytest.raises(ModelError, match="layer 7: the model has layers 0 to 2"):
        method.edit(tiny("gpt2"), edits)


@pytest.mark.parametrize("templates", [("x. {}",), ("{}", "no slot"), ("{}", "a { b. {}")])
def test_templates_that_cannot_be_used(tiny, edits, templates):
    with pytest.raises(UsageError, match="contexts: the"):
        Rome(covariance=False, contexts=templates).edit(tiny("gpt2"), edits[:1])


def test_no_templates_at_all_are_refused():
    with pytest.raises(UsageError, match="rome: 'contexts' is an empty list, expected at least one"):
        Rome(covariance=False, contexts=())


def test_an_update_across_its_key_is_refused():
    u, key = tensor([[1.0, 0]]), tensor([[0.0, 1]])
    with pytest.raises(NumericalError, match="edit 5: the update direction is orthogonal"):
        rank_one_changes(u, key=key, output=tensor([[0.0]]), value=tensor([[1.0]]), names=["edit 5"])


def test_spreading_divides_what_is_left_by_the_layers_that_remain(tiny, edits):
    """With a solver that does nothing, the residual stays, and each layer is given a larger part of it."""
    lm, seen = tiny("gpt2"), []
    targets = torch.zeros(1, 32)

    def solve(layer, key, residual):
        seen.append(residual)
        return LowRank(torch.zeros(32, 1), torch.zeros(1, lm.arch.inner))

    spread_residuals(
        lm, [edits[:1]], targets=targets, layers=[0, 1, 2], templates=("{}",), fact_token="subject_last", solve=solve
    )
    assert torch.allclose(seen[1], seen[0] * 1.5)
    assert torch.allclose(seen[2], seen[0] * 3)
