"""MEND: the network against its formulas, an edit against plain gradients, and training against itself by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import mend
from editors.mend import Mend
from harness.editing.edit import Edit, Example, Probe
from harness.editing.registry import compose
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.hypernetwork import Hypernetwork
from harness.methods.meta_training import read_lessons
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import patched, shareable

FAMILIES = ["gpt2", "gptj", "neox", "llama", "qwen2", "opt"]
SMALL: dict[str, Any] = {
    "rank": 8, "lr": 1e-3, "alpha": 1e-3, "alpha_lr": 1e-4, "steps": 4, "accumulate": 2, "validate_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    cities = ["Paris", "Vienna", "Athens", "Dublin", "Rome", "Lisbon"]
    people = ["Rosa Delgado", "Jonas Wick", "Greta Holm", "Iris Calder", "Oskar Thorne", "Hugo Lantern"]
    made = []
    for i, (who, city) in enumerate(zip(people, cities, strict=True)):
        edit = Edit(f"t{i}", "{} was born in", who, city, cities[i - 1])
        asked = [
            Probe(edit.id, "paraphrase", f"Everybody knows {who} was born in", city, cities[i - 1]),
            Probe(edit.id, "paraphrase", f"Nobody knows. {who} was born in", city, cities[i - 1]),
            Probe(edit.id, "neighborhood", f"{people[i - 1]} was born in", city, cities[i - 1]),
            Probe(edit.id, "neighborhood", f"The home of {people[i - 2]} is", city, cities[i - 1]),
        ]
        made.append(Example(edit, tuple(asked)))
    return made


def identity(lm: LM, editor: Mend, dtype: torch.dtype = torch.float64) -> Mend:
    """MEND with a network and statistics that change no pair."""
    start = Hypernetwork.start(
        editor.shapes(lm), rank=editor.rank, depth=editor.depth, alpha=editor.alpha, seed=0
    ).tensors
    learned = {}
    for name, tensor in start.items():
        # A standard deviation that the published 1e-7 makes one.
        squares = torch.full(tensor.shape, (1 - 1e-7) ** 2, dtype=dtype)
        learned[name] = squares if name.endswith("squares") else tensor
        learned[name] = torch.tensor(2) if name.endswith("count") else learned[name]
        learned[name] = tensor.to(dtype) if name.endswith("mean") or name.startswith("alpha/") else learned[name]
    return replace(editor, learned=learned)


def descent(lm: LM, edits: Sequence[Edit], names: Sequence[str]) -> dict[str, Tensor]:
    """The gradients ``[out, in]`` of the sum over edits of the mean NLL of the target's tokens, by autograd alone."""
    weights = [lm.parameter(name) for name in names]
    total = 0.0
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        for edit in edits:
            prompt, target = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
            log_p = lm.model(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            total -= log_p[len(prompt) - 1 : -1].gather(1, torch.tensor(target)[:, None]).mean()
        found = torch.autograd.grad(total, weights)
        for weight in weights:
            weight.requires_grad_(False)
    return {n: g.T if lm.transposed(n) else g for n, g in zip(names, found, strict=True)}


# --- the network ------------------------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_all_rows_however_they_come() -> None:
    """The test vector of the specification, and random rows in portions."""
    net = Hypernetwork.start({"w": (1, 1)}, rank=1, depth=1, alpha=1.0, seed=0)
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])
    for row in rows:
        net = net.observed(row[None, :1], row[None, 1:])
    assert net.tensors["1x1/statistics/mean"].tolist() == [3.0, 4.0]
    assert (net.tensors["1x1/statistics/squares"] / 2).sqrt().tolist() == pytest.approx([2.0, 2.0])
    assert torch.allclose(net.normalised(rows[:, :1], rows[:, 1:]), (rows - torch.tensor([3.0, 4.0])) / (2 + 1e-7))

    many = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    net = Hypernetwork.start({"w": (2, 3)}, rank=1, depth=1, alpha=1.0, seed=0)
    for a, b in pairwise([0, 1, 1, 4, 31, 50]):
        net = net.observed(many[a:b, :2], many[a:b, 2:])
    assert torch.allclose(net.tensors["2x3/statistics/mean"], many.mean(0), rtol=1e-6)
    assert torch.allclose((net.tensors["2x3/statistics/squares"] / 49).sqrt(), many.std(0), rtol=1e-6)
    assert int(net.tensors["2x3/statistics/count"]) == 50


def test_one_token_is_too_few_and_a_number_that_never_varied_is_only_centred() -> None:
    net = Hypernetwork.start({"w": (1, 1)}, rank=1, depth=1, alpha=1.0, seed=0).observed(
        torch.tensor([[5.0]]), torch.tensor([[1.0]])
    )
    with pytest.raises(DataError, match="1 tokens to normalise gradients by, expected two or more"):
        net.normalised(torch.ones(1, 1), torch.ones(1, 1))
    net = net.observed(torch.tensor([[5.0]]), torch.tensor([[3.0]]))
    found = net.normalised(torch.tensor([[7.0]]), torch.tensor([[4.0]]))
    assert found.tolist() == [[2.0, pytest.approx(2.0 / math.sqrt(2.0))]]


def test_each_layer_adds_what_its_formula_says() -> None:
    """``x + max(0, scale (U V x + bias) + shift)``, twice, for one matrix of two, number by number."""
    net = Hypernetwork.start({"a": (2, 1), "b": (2, 1)}, rank=2, depth=2, alpha=0.5, seed=0)
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(t.shape, generator=draw) for name, t in net.tensors.items() if "/statistics" not in name
    }
    statistics = {"2x1/statistics/mean": [0.5, -1.0, 2.0], "2x1/statistics/squares": [4.0, 1.0, 9.0]}
    tensors |= {name: torch.tensor(values) for name, values in statistics.items()} | {
        "2x1/statistics/count": torch.tensor(2)
    }
    net = replace(net, tensors=tensors)
    u, v = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[3.0], [0.1]])
    for name in ("a", "b"):
        rows = []
        for row in torch.cat([u, v], 1):
            x = [(float(n) - m) / (s + 1e-7) for n, m, s in zip(row, [0.5, -1.0, 2.0], [2.0, 1.0, 3.0], strict=True)]
            for i in range(2):
                part = {
                    k: tensors[f"2x1/{i}/{k}"].tolist() for k in ("U", "V", "bias", f"scale/{name}", f"shift/{name}")
                }
                low = [sum(w * n for w, n in zip(line, x, strict=True)) for line in part["V"]]
                high = [sum(w * n for w, n in zip(line, low, strict=True)) for line in part["U"]]
                x = [
                    n + max(0.0, part[f"scale/{name}"][j] * (high[j] + part["bias"][j]) + part[f"shift/{name}"][j])
                    for j, n in enumerate(x)
                ]
            rows.append(x)
        assert torch.allclose(torch.cat(net(name, u, v), 1), torch.tensor(rows), rtol=1e-4)
    assert not torch.allclose(net("a", u, v)[0], net("b", u, v)[0])


def test_the_start_changes_nothing_and_yet_learns() -> None:
    """At zero the gradient of a rectifier may be zero; then no training would ever begin."""
    net = Hypernetwork.start({"w": (3, 2)}, rank=1920, depth=2, alpha=1e-4, seed=0)
    assert net.tensors["3x2/0/V"].shape == (5, 5)  # never above the size of a pair
    assert Hypernetwork.start({"w": (3, 2)}, rank=2, depth=1, alpha=1e-4, seed=0).tensors["3x2/0/U"].shape == (5, 2)
    assert float(net.alpha("w")) == pytest.approx(1e-4)
    u, v = torch.randn(4, 3), torch.randn(4, 2)
    net = net.observed(u, v)
    assert torch.equal(torch.cat(net("w", u, v), 1), net.normalised(u, v))
    free = {name: tensor.requires_grad_() for name, tensor in net.trainable.items()}
    u_new, v_new = net("w", u, v)
    (u_new.square().sum() + v_new.pow(3).sum()).backward()  # type: ignore[no-untyped-call]
    assert all(float(free[f"3x2/{i}/{part}"].grad.abs().sum()) > 0 for i in (0, 1) for part in ("U", "bias", "shift/w"))


# --- an edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_network_it_is_one_step_of_gradient_descent(
    fresh: Callable[..., LM], edits: list[Edit], family: str, dtype: torch.dtype
) -> None:
    """Also ties orientation (GPT-2 stores ``[in, out]``), the sign, and the batch to plain autograd."""
    lm = fresh(family, 0, dtype)
    editor = identity(lm, Mend(alpha=0.25))
    patch = editor.edit(lm, edits)
    gradients = descent(lm, edits, list(patch.weights))
    # GPT-J computes its attention in float32 whatever its weights are.
    tolerance = 1e-4 if dtype is torch.float32 else 1e-6 if family == "gptj" else 1e-12
    for name, delta in patch.weights.items():
        wanted = -0.25 * gradients[name]
        assert float((delta.dense() - wanted).norm()) <= tolerance * float(wanted.norm()) > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_are_those_of_the_last_three_feed_forward_parts(tiny: Callable[[str], LM], family: str) -> None:
    lm = tiny(family)
    assert len(Mend().shapes(lm)) == 3 * (3 if family in ("llama", "qwen2") else 2)
    last = Mend(layers=(2,)).shapes(lm)
    assert sorted(set(last.values())) == [(32, 64), (64, 32)]
    assert lm.down(2) in last
    assert last[lm.down(2)] == (64, 32)


def test_the_rank_is_the_number_of_tokens_and_padding_does_not_count(tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")
    edits = [Edit("s", "{} was born in", "Ada", "Rome"), Edit("l", "The home of {} is", "Hugo", "Oslo, Norway")]
    editor = identity(lm, Mend())
    for edit, patch in zip(edits, editor.edit_each(lm, edits), strict=True):
        tokens = len(lm.encode(edit.text)) + len(lm.continuation(edit.text, edit.continuation)) - 1
        assert tokens < 21
        assert shareable(patch)
        for name, delta in patch.weights.items():
            assert isinstance(delta, LowRank)
            assert delta.left.shape[1] <= tokens
            assert delta.left.shape[1] == tokens or "2." in name  # above the last layer only targets have a gradient
            assert torch.allclose(delta.dense(), editor.edit(lm, [edit]).weights[name].dense(), rtol=1e-3, atol=1e-9)


def test_many_tokens_are_kept_dense(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    patch = identity(lm, Mend()).edit(lm, edits * 3)
    assert all(isinstance(patch.weights[f"transformer.h.0.mlp.{n}.weight"], Dense) for n in ("c_fc", "c_proj"))


def test_defect_of_the_release_only_the_last_chunk_of_a_batch_counted(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of MEMIT's authors edits 128 at a time and keeps the factors of the last portion."""
    lm = tiny("gpt2")
    many = [Edit(str(i), "{} was born in", f"Person {i}", ("Rome", "Oslo")[i % 2]) for i in range(140)]
    monkeypatch.setattr(mend, "_BUDGET", 16 * 128)
    editor = identity(lm, Mend(layers=(1,), alpha=1.0))
    patch = editor.edit(lm, many)
    gradients = descent(lm, many, list(patch.weights))
    for name, delta in patch.weights.items():
        assert torch.allclose(
            delta.dense(), -gradients[name], rtol=1e-3, atol=1e-5 * float(gradients[name].abs().max())
        )
    first, last = editor.edit(lm, many[:128]), editor.edit(lm, many[128:])
    for name, delta in patch.weights.items():
        total = first.weights[name].dense() + last.weights[name].dense()
        assert torch.allclose(delta.dense(), total, rtol=1e-3, atol=1e-5 * float(total.abs().max()))


def test_defect_of_the_release_step_sizes_were_swapped_between_matrices(
    tiny: Callable[[str], LM], edits: list[Edit]
) -> None:
    """There they are a list, in another order than the matrices; here each is kept under its matrix's name."""
    lm = tiny("gpt2")
    editor = identity(lm, Mend(layers=(1,), alpha=1.0))
    up, down = editor.shapes(lm)
    plain = editor.edit(lm, edits)
    sizes = {f"alpha/{up}": torch.tensor(0.0), f"alpha/{down}": torch.tensor(3.0)}
    learned = dict(reversed([*{**editor.knowledge(lm), **sizes}.items()]))
    patch = replace(editor, learned=learned).edit(lm, edits)
    assert float(patch.weights[up].dense().abs().max()) == 0.0
    assert torch.allclose(patch.weights[down].dense(), 3 * plain.weights[down].dense(), rtol=1e-4, atol=1e-6)


def test_a_change_that_is_not_finite_names_the_edit_and_the_matrix(
    tiny: Callable[[str], LM], edits: list[Edit]
) -> None:
    lm = tiny("gpt2")
    editor = identity(lm, Mend(layers=(1,)))
    bad = {**editor.knowledge(lm), f"alpha/{lm.down(1)}": torch.tensor(math.nan)}
    with pytest.raises(NumericalError, match=r"edit a: mend's change of 'transformer.h.1.mlp.c_proj.weight'"):
        replace(editor, learned=bad).edit(lm, edits)


# --- training ---------------------------------------------------------------------------------------------------------


def training(lm: LM, examples: list[Example], **settings: Any) -> mend._Training:
    lessons = read_lessons(lm, examples)
    return mend._Training(Mend(**{**SMALL, **settings}), lm, lessons[1:], lessons[:1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("together", [1, 3])
def test_the_loss_is_that_of_the_model_under_the_patch(
    tiny: Callable[[str], LM], examples: list[Example], family: str, together: int
) -> None:
    """Both parts recomputed row by row on the model that holds the edit's patch."""
    lm = tiny(family)
    made = training(lm, examples, c_edit=0.3, c_loc=2.0, together=together, lr=1e-2, alpha=0.03)
    draws = made.draws()
    for _ in range(4):
        made.learn(next(draws))
    made.update()
    lessons = next(draws)
    with torch.no_grad():
        loss = float(made._loss(lessons, mend._pairs(lm, [one.edit for one in lessons], made.names)))
    editor = replace(made.editor, learned=made.copy())
    patch = editor.edit(lm, [lesson.edit.edit for lesson in lessons])

    def log_p(row: list[int]) -> Tensor:
        with torch.no_grad():
            found: Tensor = lm.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        return found

    kept = [text.prompt + text.target for lesson in lessons for text in lesson.kept]
    plain = [log_p(row) for row in kept]
    with patched(lm, patch):
        nll, divergence = [], []
        for answer in (answer for lesson in lessons for answer in lesson.wanted):
            said = log_p(answer.prompt + answer.target)[len(answer.prompt) - 1 : -1]
            nll += [-float(row[token]) for row, token in zip(said, answer.target, strict=True)]
        for row, before in zip(kept, plain, strict=True):
            divergence += [float((b.exp() * (b - a)).sum()) for b, a in zip(before, log_p(row), strict=True)]
    wanted = 0.3 * sum(nll) / len(nll) + 2.0 * sum(divergence) / len(divergence)
    assert sum(divergence) > 1e-3
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_lessons_are_other_questions_and_unrelated_texts(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    lm = tiny("gpt2")
    lesson = read_lessons(lm, examples)[0]
    read = lm.tokenizer.decode
    assert read(lesson.edit.prompt + lesson.edit.target) == "Rosa Delgado was born in Paris"
    assert [read(a.prompt + a.target) for a in lesson.wanted] == [
        "Everybody knows Rosa Delgado was born in Paris",
        "Nobody knows. Rosa Delgado was born in Paris",
    ]
    assert [read(text.prompt + text.target) for text in lesson.kept] == [
        "Hugo Lantern was born in Lisbon",
        "The home of Oskar Thorne is Lisbon",
    ]
    bare = read_lessons(lm, [Example(examples[0].edit)])[0]
    assert [read(a.prompt + a.target) for a in bare.wanted] == ["Rosa Delgado was born in Paris"]
    assert [read(text.target) for text in lesson.kept] == [" Lisbon", " Lisbon"]
    assert len(bare.kept[0].prompt) == 1
    assert (
        read(bare.kept[0].prompt + bare.kept[0].target) == "Ada Velmont was born in Rome."
    )  # the first line of the model's plain text


def test_every_lesson_is_drawn_once_in_each_pass(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    made = training(tiny("gpt2"), examples, together=2)
    draws = made.draws()
    drawn = [lesson.edit.edit.id for _ in range(5) for lesson in next(draws)]
    for part in (drawn[:5], drawn[5:]):
        assert sorted(part) == ["t1", "t2", "t3", "t4", "t5"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_training_lowers_the_loss_of_edits_it_has_not_seen(
    taught: Callable[[str], LM], examples: list[Example], family: str
) -> None:
    lm = taught(family)
    before = lm.fingerprint()
    settings: dict[str, Any] = {"steps": 60, "validate_every": 20, "c_edit": 1.0, "alpha": 1e-2, "alpha_lr": 1e-3}
    made = training(lm, examples, **settings)
    for lesson in made.train:
        for u, v in mend._pairs(lm, [lesson.edit], made.names)[0].values():
            made.network = made.network.observed(u, v)
    start = made.validate()
    learned = training(lm, examples, **settings)
    learned.network = replace(learned.network, tensors=learned.run())
    assert learned.validate() < 0.8 * start
    assert lm.fingerprint() == before


def test_the_best_network_is_kept_as_a_copy(
    tiny: Callable[[str], LM], examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on after the best validation, and must not carry what was kept along."""
    lm = tiny("gpt2")
    short = Mend(**SMALL).fit(lm, examples).knowledge(lm)
    losses = iter([2.0, 1.0, 3.0, 1.5])
    monkeypatch.setattr(mend._Training, "validate", lambda self: next(losses))
    long = Mend(**{**SMALL, "steps": 8}).fit(lm, examples).knowledge(lm)
    assert short.keys() == long.keys()
    assert all(torch.equal(short[name], long[name]) for name in short)
    assert not any(tensor.requires_grad for tensor in long.values())


def test_training_ends_when_patience_does(
    tiny: Callable[[str], LM], examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    losses = iter([1.0, 0.5, 0.6, 0.7, 0.4])
    monkeypatch.setattr(mend._Training, "learn", lambda self, lessons: steps.append(1))
    monkeypatch.setattr(mend._Training, "update", lambda self: None)
    monkeypatch.setattr(mend._Training, "validate", lambda self: next(losses))
    Mend(**{**SMALL, "steps": 100, "validate_every": 3, "patience": 6}).fit(tiny("gpt2"), examples)
    assert len(steps) == 12


@pytest.mark.parametrize(("frozen", "moving"), [("lr", "alpha_lr"), ("alpha_lr", "lr")])
def test_network_and_step_sizes_have_their_own_learning_rates(
    tiny: Callable[[str], LM], examples: list[Example], frozen: str, moving: str
) -> None:
    lm = tiny("gpt2")
    editor = Mend(**{**SMALL, "steps": 2, frozen: 0.0, moving: 1e-2})
    start = Hypernetwork.start(
        editor.shapes(lm), rank=editor.rank, depth=editor.depth, alpha=editor.alpha, seed=editor.seed
    ).trainable
    found = editor.fit(lm, examples).knowledge(lm)
    moved = {name for name in start if not torch.equal(start[name], found[name])}
    sizes = {name for name in start if name.startswith("alpha/")}
    assert moved <= (sizes if moving == "alpha_lr" else start.keys() - sizes)
    assert moved
    if moving == "alpha_lr":  # the first step of Adam is the learning rate, whatever the gradient
        assert all(abs(float(found[name]) - 1e-3) == pytest.approx(1e-2, rel=1e-3) for name in sizes)


def test_gradients_are_means_over_the_steps_of_an_update(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    """Of two steps the mean; and the norm is clipped."""
    lm = tiny("gpt2")
    grown: list[Tensor] = []
    for count in (1, 2):
        made = training(lm, examples, accumulate=count)
        lessons = next(made.draws())
        for u, v in mend._pairs(lm, [made.train[1].edit], made.names)[0].values():
            made.network = made.network.observed(u, v)
        observed = made.network
        for _ in range(count):
            made.network = observed
            made.learn(lessons)
        grown.append(torch.cat([t.grad.flatten() for t in made.network.trainable.values() if t.grad is not None]))
    assert torch.allclose(*grown, rtol=1e-4, atol=1e-7)


def test_the_same_seed_learns_the_same(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    lm = tiny("gpt2")
    first, again, other = (Mend(**{**SMALL, "seed": seed}).fit(lm, examples).knowledge(lm) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["32x64/0/V"], other["32x64/0/V"])


def test_mistakes_in_training_are_told(tiny: Callable[[str], LM], examples: list[Example]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="mend: 1 examples to learn from, expected at least 2"):
        Mend(**SMALL).fit(lm, examples[:1])
    with pytest.raises(NumericalError, match=r"mend: the loss of edits t\d became (nan|inf) in training; lower lr or"):
        Mend(**{**SMALL, "alpha": 1e30}).fit(lm, examples)
    with pytest.raises(UsageError, match="mend must learn before its first edit; run `harness fit --editor mend"):
        Mend().edit(lm, [examples[0].edit])


@pytest.mark.parametrize("name", ["mend+rect", "mend+prune"])
def test_it_composes_with_wrappers(
    tiny: Callable[[str], LM], examples: list[Example], edits: list[Edit], name: str
) -> None:
    lm = tiny("gpt2")
    fitted = Mend(**SMALL).fit(lm, examples)
    editor = compose(name).build(lm, SMALL, seed=0, prepare=lambda method: fitted)
    assert editor.root is fitted
    inner = fitted.edit(lm, edits)
    patch = editor.finish(lm, editor.edit(lm, edits))
    assert patch.weights.keys() == inner.weights.keys()
    changed = [not torch.equal(patch.weights[n].dense(), inner.weights[n].dense()) for n in inner.weights]
    # RECT drops the smaller changes; PRUNE leaves a change alone whose singular values are below the weight's.
    assert all(changed) == (name == "mend+rect")
