"""GRACE: which keys follow from which edits, what is looked up, what is trained, what can be taken back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor

from editors.grace import Codebook, Grace
from harness.editing.edit import Edit
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.supervised_tokens import supervise_target
from harness.patches.patch import Patch, Step, patched

CPU = torch.device("cpu")


def book(*edits: tuple[str, str, float, float], eps: float = 1.0) -> Codebook:
    """A codebook in one dimension: id, target, query, value of each edit."""
    made = Codebook.empty(1, 1, eps=eps, device=CPU)
    for name, label, query, value in edits:
        made = made.added(name, label=label, query=tensor([query]), value=tensor([value]))
    return made


def looked_up(made: Codebook, *queries: float) -> list[float | None]:
    """The value at each query, None where the layer's output stays."""
    entered = tensor(queries)[None, :, None]
    ids = torch.zeros(1, len(queries), dtype=torch.long)
    out = made(torch.full_like(entered, 99.0), Step(ids, torch.ones_like(ids), len(queries), entered))
    return [None if v == 99.0 else float(v) for v in out[0, :, 0]]


# ------------------------------------------------------------------------------------------- keys, radii and labels


def test_a_far_query_makes_a_key_of_its_own():
    made = book(("a", "Rome", 0.0, 10.0), ("b", "Oslo", 2.5, 20.0))
    assert [(c.maker, c.last, c.radius) for c in made.cells] == [(0, 0, 1.0), (1, 1, 1.0)]
    assert looked_up(made, 0.9, 1.2, 1.6, 4.0) == [10.0, None, 20.0, None]


def test_defect_4_a_neighbour_with_the_same_target_widens_the_radius():
    """Beyond eps_i but within eps_i + eps_init: one key, whose radius becomes the distance (pitfalls 4.2, defect 4)."""
    made = book(("far", "Oslo", 9.0, 5.0), ("a", "Rome", 0.0, 10.0), ("b", "Rome", 1.5, 20.0))
    assert [(c.maker, c.last) for c in made.cells] == [(0, 0), (1, 2)]
    assert made.cells[0].radius == 1.0
    assert made.cells[1].radius == pytest.approx(1.5, rel=2e-5)
    assert looked_up(made, 1.5, -1.5, 1.6) == [20.0, 20.0, None]
    nearer = made.added("c", label="Rome", query=tensor([0.3]), value=tensor([30.0]))
    assert nearer.cells[1].radius == made.cells[1].radius
    assert looked_up(nearer, 1.5) == [30.0]


def test_a_neighbour_with_another_target_halves_both_radii():
    made = book(("a", "Rome", 0.0, 10.0), ("b", "Oslo", 0.8, 20.0))
    assert [c.radius for c in made.cells] == [pytest.approx(0.4 - 1e-5), pytest.approx(0.4)]
    assert looked_up(made, 0.0, 0.39, 0.41, 0.8, 1.19, 1.21) == [10.0, 10.0, 20.0, 20.0, 20.0, None]


def test_a_second_target_for_the_very_same_query_replaces_the_first():
    """Halving would leave two keys of radius zero in one place, and the first of them would win."""
    made = book(("a", "Rome", 3.0, 10.0), ("b", "Oslo", 3.0, 20.0))
    assert len(made.cells) == 1
    assert looked_up(made, 3.0, 3.5) == [20.0, 20.0]
    assert looked_up(made.without("b"), 3.0) == [10.0]


def test_defect_4_the_first_of_three_edits_can_be_taken_back():
    """Labels and keys stay side by side, so that conflicts are judged by the right label, and ids are a flat list."""
    three = [("a", "Rome", 0.0, 10.0), ("b", "Oslo", 0.8, 20.0), ("c", "Rome", 5.0, 30.0)]
    made = book(*three)
    back = made.without("a")
    alone = book(*three[1:])
    assert back.ids == ("b", "c")
    assert back.cells == alone.cells
    assert looked_up(back, 0.0, 0.8, 5.0) == looked_up(alone, 0.0, 0.8, 5.0) == [20.0, 20.0, 30.0]
    assert looked_up(made.without("c"), 0.0, 5.0) == [10.0, None]
    with pytest.raises(UsageError, match="holds no edit 'd'; it holds a, b, c"):
        made.without("d")


def test_defect_4_taking_back_the_maker_of_a_shared_key_leaves_the_one_that_joined():
    made = book(("a", "Rome", 0.0, 10.0), ("b", "Rome", 1.5, 20.0), ("c", "Oslo", 7.0, 30.0))
    assert looked_up(made.without("a"), -0.5, 1.5, 7.0) == [None, 20.0, 30.0]
    assert looked_up(made.without("b"), 0.0, 1.5, 7.0) == [10.0, None, 30.0]


def test_random_edits_follow_the_rule_in_float64():
    """Against the rule written down once more, one number at a time, over 60 edits in 5 dimensions."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(60, 5, generator=generator)
    labels = [f"{int(n)}" for n in torch.randint(0, 3, (60,), generator=generator)]
    made = Codebook.empty(5, 1, eps=1.0, device=CPU)
    keys: list[Tensor] = []
    radii: list[float] = []
    said: list[str] = []
    for i, query in enumerate(queries):
        made = made.added(str(i), label=labels[i], query=query, value=tensor([float(i)]))
        distances = [float(((key.double() - query.double()) ** 2).sum() ** 0.5) for key in keys]
        d = min(distances, default=torch.inf)
        k = distances.index(d) if keys else -1
        if not keys or d > 1.0 + radii[k]:
            keys, radii, said = [*keys, query], [*radii, 1.0], [*said, labels[i]]
        elif said[k] == labels[i]:
            radii[k] = max(radii[k], d)
        else:
            radii[k] = d / 2 - 1e-5
            keys, radii, said = [*keys, query], [*radii, d / 2], [*said, labels[i]]
    assert torch.equal(made.keys, torch.stack(keys))
    assert len(keys) < 60
    assert torch.allclose(made.radii, tensor(radii), rtol=1e-3, atol=1e-6)


def test_the_nearest_key_is_that_of_float64_also_for_large_keys():
    """Keys of norm 1000 that lie 0.1 apart: a product of matrices in float32 could not tell them apart."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(64, generator=generator) * 125 + torch.randn(40, 64, generator=generator) * 1e-2
    made = Codebook.empty(64, 1, eps=0.024, device=CPU)
    for i, key in enumerate(keys):
        made = made.added(str(i), label=str(i), query=key, value=tensor([float(i)]))
    chosen = torch.randint(0, 40, (7, 11), generator=generator)
    queries = keys[chosen] + 3e-3 * torch.randn(7, 11, 64, generator=generator)
    exact = (queries.double()[:, :, None] - made.keys.double()).norm(dim=-1)
    index, inside = made.nearest(queries)
    assert torch.equal(index, exact.argmin(-1))
    assert torch.equal(inside, exact.min(-1).values <= made.radii.double()[index])
    assert bool(inside.any())
    assert not bool(inside.all())


# ------------------------------------------------------------------------------------------------------ on a model


def test_the_value_stands_at_the_prompts_last_token_and_nowhere_else(tiny, edits):
    lm = tiny("llama")
    method = Grace(layer=1, n_iter=5, eps=1e-3)
    patch = method.edit(lm, edits[:1])
    name = lm.arch.mlp_of(1)
    rows = supervise_target(lm, edits[0])
    outputs = []
    for held in (Patch(), patch):
        with patched(lm, held), torch.no_grad():
            handle = lm.module(name).register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
            lm.model(input_ids=rows.batch.ids, use_cache=False)
            handle.remove()
    at = int(rows.column[0])
    moved = (outputs[0] - outputs[1]).norm(dim=1)
    assert moved[at] > 0.1
    assert float(moved[:at].max()) == float(moved[at + 1 :].sum()) == 0
    assert torch.allclose(outputs[1][at], patch.memory.values[patch.memory.latest[0]])


def test_the_value_is_that_of_adam_on_the_nll_of_all_target_tokens(fresh, edits):
    """The optimisation written out with a plain hook on the whole model, two steps of Adam by its formula."""
    lm, edit, lr = fresh("gpt2"), edits[1], 0.1
    found = Grace(layer=1, n_iter=2, edit_lr=lr).edit(lm, [edit]).memory.values[0]
    prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
    assert len(target) > 1
    ids, at, name = torch.tensor([prompt + target]), len(prompt) - 1, lm.arch.mlp_of(1)
    put: list[Tensor] = []

    def hook(module, args, output):
        if put:
            return output.index_put((torch.tensor([0]), torch.tensor([at])), put[0])
        start.append(output[0, at])
        return output

    start: list[Tensor] = []
    handle = lm.module(name).register_forward_hook(hook)
    lm.model(ids)
    value, m, v = start[0].clone(), 0, 0
    for t in (1, 2):
        put[:] = [value.detach().requires_grad_()]
        log_p = lm.model(ids).logits[0, at:-1].log_softmax(-1)
        loss = -log_p[range(len(target)), target].mean()
        (g,) = torch.autograd.grad(loss, put[0])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        value = value - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    handle.remove()
    assert torch.allclose(found, value, atol=1e-4)


def test_three_edits_one_after_the_other_all_hold_and_each_can_be_taken_back(tiny, edits):
    lm = tiny("gpt2")
    method = Grace(layer=1, n_iter=30, edit_lr=0.5, eps=0.05)
    total = Patch()
    for edit in edits:
        with patched(lm, total):
            total = total + method.edit(lm, [edit], total.memory)
    (name,) = total.hooks
    held = total.hooks[name]
    assert held is total.memory
    assert held.ids == ("a", "b", "c")

    def losses(patch: Patch) -> list[float]:
        with patched(lm, patch), torch.no_grad():
            return [float(supervise_target(lm, edit).nll(lm)) for edit in edits]

    before, after, without = losses(Patch()), losses(total), losses(Patch(hooks={name: held.without("a")}))
    assert min(b - a for a, b in zip(after, before, strict=True)) > 0.5
    assert without[0] == pytest.approx(before[0], abs=1e-5)
    assert without[1:] == pytest.approx(after[1:], abs=1e-5)
    together = method.edit(lm, edits)
    assert torch.allclose(together.memory.values, held.values, atol=1e-4)


def test_two_independent_codebooks_join_and_one_that_goes_on_replaces(tiny, edits):
    lm = tiny("gpt2")
    method = Grace(layer=1, n_iter=2, eps=0.05)
    a, b = (method.edit(lm, [edit]) for edit in edits[:2])
    grown = method.edit(lm, edits[1:2], a.memory)
    (name,) = a.hooks
    assert (a + grown).hooks[name] is grown.hooks[name]
    joined = (a + b).hooks[name]
    assert joined.ids == ("a", "b")
    assert torch.equal(joined.values, torch.cat([a.memory.values, b.memory.values]))


def test_what_the_user_is_told(tiny, edits):
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match=r"'edit_lr' is 0\.0, expected above 0"):
        Grace(edit_lr=0.0)
    with pytest.raises(UsageError, match="memory is a int of another editor"):
        Grace().edit(lm, edits, 7)
    with pytest.raises(DataError, match=r"edit x: .* but tiny-gpt2 takes 96; shorten the prompt"):
        Grace().edit(lm, [Edit("x", "word " * 200, None, "Rome")])
    with pytest.raises(NumericalError, match=r"edit a: the loss at transformer.h.2.mlp became nan after 1 steps"):
        Grace(edit_lr=1e30).edit(lm, edits[:1])
    plain = Edit("y", "No subject at all here, the city of", None, "Rome")
    assert Grace(n_iter=1).edit(lm, [plain]).memory.ids == ("y",)


# ------------------------------------------------------------------------------------------------- long codebooks


def long_book(edits: int, width: int = 24) -> Codebook:
    """A codebook of random queries, some of them near one another, with few targets."""
    draw = torch.Generator().manual_seed(0)
    about = torch.randn(edits // 2, width, generator=draw)
    queries = torch.cat([about, about + 0.2 * torch.randn(about.shape, generator=draw)])
    names = tuple(f"{i}" for i in range(len(queries)))
    labels = tuple(f"{label}" for label in torch.randint(2, (len(queries),), generator=draw).tolist())
    return Codebook(names, labels, queries, torch.randn(len(queries), 3, generator=draw), 1.0, ()).replayed()


def measured(made: Codebook, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest key of each query with every distance measured."""
    far = torch.cdist(queries, made.centres(made.cells), compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = far.min(1)
    return index, distance <= made.radii[index]


def test_the_nearest_of_many_keys_is_that_of_all_distances():
    made = long_book(600)
    assert 300 < len(made.cells) < 600  # some are new, some join
    assert torch.equal(made.keys, made.centres(made.cells))
    draw = torch.Generator().manual_seed(1)
    queries = torch.cat([made.queries, made.queries[:50] + 0.3 * torch.randn(50, 24, generator=draw)])
    for found, wanted in zip(made.nearest(queries), measured(made, queries), strict=True):
        assert torch.equal(found, wanted)


def test_a_small_distance_among_large_keys_does_not_drown():
    """The keys lie so far from zero that the product cannot tell them apart."""
    draw = torch.Generator().manual_seed(0)
    queries = 1000 + 0.01 * torch.randn(200, 24, generator=draw)
    names = tuple(f"{i}" for i in range(200))
    made = Codebook(names, names, queries, torch.zeros(200, 3), 1e-4, ()).replayed()
    assert len(made.cells) == 200
    index, inside = made.nearest(queries)
    assert index.tolist() == list(range(200)) and bool(inside.all())


def test_a_codebook_grown_by_one_is_the_codebook_of_all():
    whole = long_book(300)
    grown = Codebook.empty(24, 3, eps=1.0, device=CPU)
    for i, name in enumerate(whole.ids):
        grown = grown.added(name, label=whole.labels[i], query=whole.queries[i], value=whole.values[i])
    assert grown.cells == whole.cells
    assert torch.equal(grown.keys, whole.keys)
    assert torch.equal(grown.squares, grown.valued(torch.ones(3)).squares)


def test_a_step_asks_no_long_codebook(tiny, edits, monkeypatch):
    """Neither the one that is trained nor that of the earlier edits, which the model carries."""
    asked: list[int] = []
    real = Codebook.nearest

    def counted(made: Codebook, queries: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(made.cells))
        return real(made, queries)

    monkeypatch.setattr(Codebook, "nearest", counted)
    counts, lm = [], tiny("gpt2")
    for steps in (2, 12):
        method = Grace(layer=1, n_iter=steps)
        first = method.edit(lm, edits[:1])
        asked.clear()
        with patched(lm, first):
            method.edit(lm, edits[1:2], first.memory)
        counts.append(len(asked))
    assert counts[0] == counts[1]
