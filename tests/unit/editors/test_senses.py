"""Sense finetuning against its formulas: what is chosen, what is trained, what is added."""

from __future__ import annotations

import math
from itertools import islice
from statistics import fmean

import pytest
import torch
from torch import Tensor

from editors.senses import (
    SENSES,
    Background,
    SenseChange,
    Senses,
    background,
    choose_senses,
    divergence,
    gradients,
    weighed,
)
from harness.editing.edit import Edit
from harness.errors import DataError, NumericalError, UsageError
from harness.io.plain_text import read_documents
from harness.methods.descent import cosine_rate
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

QUICK = {"k": 3, "chunks": 6, "chunk_tokens": 24, "lr": 0.2, "kl": 2e-3, "epochs": 4, "accumulate": 2}


# --- the vectors of the specification ---------------------------------------------------------------------------------


def test_tv_15_the_divergence_of_both_variants() -> None:
    unedited, edited = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.4, 0.4, 0.2]]).log()
    assert float(divergence(edited, unedited, "released")) == pytest.approx(0.0252672, abs=1e-7)
    assert float(divergence(edited, unedited, "paper")) == pytest.approx(0.0258154, abs=1e-7)
    many = divergence(edited.expand(500, -1), unedited.expand(500, -1), "released")
    assert 0.3 * float(many) == pytest.approx(3.79007, abs=1e-5)


def test_tv_16_the_learning_rate_of_each_epoch() -> None:
    wanted = [0.01, 0.00975528, 0.00904508, 0.00793893, 0.00654508, 0.005, 0.00345492, 0.00206107, 0.00095492]
    assert [cosine_rate(0.01, epoch, 10) for epoch in range(10)] == pytest.approx([*wanted, 0.00024472], abs=1e-8)


def test_tv_17_whose_gradient_an_update_takes() -> None:
    assert gradients(range(7), 5, "released") == [[4]]
    assert gradients(range(7), 5) == [[0, 1, 2, 3, 4], [5, 6]]
    assert gradients(range(3), 5, "released") == []


def test_tv_19_the_senses_that_are_chosen() -> None:
    weight, ordinary = torch.zeros(4, 2), torch.zeros(4, 2)
    for (token, sense), value in {(0, 0): 0.9, (2, 1): 0.3, (3, 0): 0.6, (3, 1): 0.05}.items():
        weight[token, sense] = value
    for (token, sense), value in {(0, 0): 2.0, (1, 0): 0.7, (2, 1): 1e-4, (3, 0): 5e-4}.items():
        ordinary[token, sense] = value
    assert choose_senses(weight, ordinary, factor=1000.0, k=2) == [(2, 1), (3, 0)]
    assert choose_senses(weight, ordinary, factor=1000.0, k=3) == [(2, 1), (3, 0), (3, 1)]
    assert choose_senses(weight, ordinary, factor=1000.0, k=4) == [(2, 1), (3, 0), (3, 1), (0, 0)]
    assert choose_senses(weight, ordinary, factor=1000.0, k=5) == [(2, 1), (3, 0), (3, 1), (0, 0)]
    assert choose_senses(weight, ordinary, factor=1000.0, k=5, fill=True) == [(2, 1), (3, 0), (3, 1), (0, 0), (0, 1)]


# --- what is weighed --------------------------------------------------------------------------------------------------


def mass(lm: LM, ids: list[int], positions: range) -> dict[tuple[int, int], float]:
    """``a(v, l)``, one term after the other."""
    with torch.no_grad():
        alpha = lm.model(input_ids=torch.tensor([ids])).contextualization[0]
    found: dict[tuple[int, int], float] = {}
    for sense in range(len(alpha)):
        for t in positions:
            for s in range(t + 1):
                pair = (ids[s], sense)
                found[pair] = found.get(pair, 0.0) + float(alpha[sense, t, s])
    return found


def test_what_an_example_weighs_is_the_sum_over_its_predictions(tiny) -> None:
    lm = tiny("backpack")
    ids = lm.encode("The home of Ada is the home of Hugo")
    with torch.no_grad():
        alpha = lm.model(input_ids=torch.tensor([ids])).contextualization[0]
    found = weighed(alpha, torch.tensor(ids), positions=torch.tensor([3, 4, 6]), vocabulary=400)
    assert found.shape == (400, 4)
    # Every sense gives each prediction a weight of one in all.
    assert torch.allclose(found.sum(0), torch.full((4,), 3.0), atol=1e-5)
    wanted = {}
    for position in (3, 4, 6):
        for pair, value in mass(lm, ids, range(position, position + 1)).items():
            wanted[pair] = wanted.get(pair, 0.0) + value
    assert {pair: float(found[pair]) for pair in wanted} == pytest.approx(wanted, abs=1e-5)
    assert int((found > 0).sum()) == len(wanted)
    few = weighed(alpha, torch.tensor(ids), positions=torch.tensor([3, 4, 6]), vocabulary=max(ids))
    assert torch.equal(few, found[: max(ids)])


def test_ordinary_text_is_weighed_chunk_by_chunk(tiny) -> None:
    lm = tiny("backpack")
    held = [token for text in islice(read_documents(lm.text), 40) for token in [*lm.encode(text), 0]]
    chunks = [held[i * 20 : (i + 1) * 20] for i in range(9)]
    found = background(lm, chunks=9, columns=20)
    assert found.chunks.tolist() == chunks
    wanted = torch.zeros(400, 4)
    for chunk in chunks:
        for pair, value in mass(lm, chunk, range(19)).items():
            wanted[pair] += value / 9
    assert torch.allclose(found.weight, wanted, atol=1e-5)
    assert background(lm, chunks=1, columns=10_000).chunks.shape == (1, lm.context)


def test_text_shorter_than_a_chunk_is_refused(fresh, tmp_path) -> None:
    lm = fresh("backpack")
    path = tmp_path / "short.txt"
    path.write_text("Ada lives.\n")
    with pytest.raises(DataError, match="has fewer than 96 tokens; give more plain text with --text"):
        background(LM(lm.model, lm.tokenizer, lm.name, lm.arch, str(path)), chunks=3, columns=500)


def test_a_comparison_chooses_by_both_continuations(tiny) -> None:
    """The paper adds what both weigh (equation 9); the released code subtracts for ``contrast``."""
    lm = tiny("backpack")
    ordinary = background(lm, chunks=6, columns=24)
    prompt, said, other = "Ada Velmont was born in", " Rome", " Oslo, Norway"
    edit = Edit("c", prompt, None, said, direction="contrast", against=other)
    first, second = (torch.zeros(400, 4) for _ in range(2))
    for table, text in ((first, said), (second, other)):
        start, ids = len(lm.encode(prompt)), lm.encode(prompt) + lm.continuation(prompt, text)
        for pair, value in mass(lm, ids, range(start - 1, len(ids) - 1)).items():
            table[pair] += value
    for variant, weight in (("paper", first + second), ("released", first - second)):
        method = Senses(**{**QUICK, "k": 5, "variant": variant, "unusual": 0.5, "accumulate": 1})
        change = method.edit(lm, [edit], ordinary).hooks[SENSES]
        assert isinstance(change, SenseChange)
        wanted = sorted(choose_senses(weight, ordinary.weight, factor=0.5, k=5, fill=variant == "released"))
        assert list(zip(change.tokens.tolist(), change.senses.tolist(), strict=True)) == wanted


# --- what is trained --------------------------------------------------------------------------------------------------


def trained_by_hand(
    lm: LM, edits: list[Edit], method: Senses, pairs: list[tuple[int, int]], chunks: Tensor
) -> list[tuple[Tensor, float | None]]:
    """The loop of the method with a table of all senses in the model and a whole forward pass for every loss.

    After each epoch: the table's pairs, and the mean of what the examples wanted before their updates.
    """
    states = []
    table = torch.zeros(400, 4, lm.arch.width, requires_grad=True)
    keep = torch.zeros(400, 4, 1)
    for pair in pairs:
        keep[pair] = 1
    adam = torch.optim.Adam([table], lr=method.lr, betas=(0.9, 0.995))
    draw = torch.Generator().manual_seed(method.seed)

    def log_p(ids: list[int], change: bool = True) -> Tensor:
        hook = lambda senses, step: senses + (table * keep)[step.ids].flatten(2)  # noqa: E731
        with patched(lm, Patch(hooks={SENSES: hook} if change else {})):
            return lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    def nll(edit: Edit, text: str) -> Tensor:
        prompt, target = lm.encode(edit.text), lm.continuation(edit.text, text)
        found = log_p(prompt + target)
        return -sum(found[len(prompt) - 1 + i, token] for i, token in enumerate(target)) / len(target)

    for epoch in range(method.epochs):
        adam.param_groups[0]["lr"] = method.lr * (1 + math.cos(math.pi * epoch / method.epochs)) / 2
        order = torch.randperm(len(edits), generator=draw).tolist()
        groups = [order[i : i + method.accumulate] for i in range(0, len(order), method.accumulate)]
        if method.variant == "released":
            groups = [group[-1:] for group in groups if len(group) == method.accumulate]
        said = []
        for group in groups:
            adam.zero_grad()
            for i in group:
                chunk = chunks[int(torch.randint(len(chunks), (), generator=draw))].tolist()
                new, old = log_p(chunk), log_p(chunk, change=False).detach()
                forward, backward = (old.exp() * (old - new)).sum(), (new.exp() * (new - old)).sum()
                loss = nll(edits[i], edits[i].continuation)
                if edits[i].direction == "unlikelihood":
                    loss = -loss
                if edits[i].direction == "balance":
                    loss = (loss - nll(edits[i], str(edits[i].rival))).abs()
                said.append(float(loss.detach()))
                loss = loss + method.kl * (forward if method.variant == "released" else backward)
                (loss / len(group)).backward()
            adam.step()
        states.append((torch.stack([table.detach()[pair] for pair in pairs]), fmean(said) if said else None))
    return states


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_training_is_the_loop_of_the_method_on_a_table_of_all_senses(tiny, variant) -> None:
    lm = tiny("backpack")
    edits = [
        Edit("a", "{} was born in", "Ada Velmont", "Rome"),
        Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", direction="unlikelihood"),
        Edit("c", "Everybody knows that", None, "Ada", direction="balance", against="Hugo lives"),
    ]
    method = Senses(**{**QUICK, "epochs": 8, "variant": variant})
    patch = method.edit(lm, edits)
    change = patch.hooks[SENSES]
    pairs = list(zip(change.tokens.tolist(), change.senses.tolist(), strict=True))
    assert pairs == sorted(set(pairs)) and 3 <= len(pairs) <= 9
    wanted = trained_by_hand(lm, edits, method, pairs, patch.memory.chunks)
    assert float(wanted[-1][0].abs().max()) > 0.1
    assert torch.allclose(change.deltas, wanted[-1][0], atol=1e-4)
    passes = list(method.passes(lm, edits))
    assert len(passes) == 8
    for done, (deltas, loss) in zip(passes, wanted, strict=True):
        found = done.patch.hooks[SENSES]
        assert isinstance(found, SenseChange)
        assert torch.allclose(found.deltas, deltas, atol=1e-4)
        assert done.loss == pytest.approx(loss, abs=1e-4)
    assert len({round(float(deltas.norm()), 3) for deltas, _ in wanted}) == 8
    assert torch.equal(passes[-1].patch.hooks[SENSES].deltas, change.deltas)  # type: ignore[attr-defined]


def test_ordinary_text_may_be_another_than_the_models(tiny, edits, tmp_path) -> None:
    lm, path = tiny("backpack"), tmp_path / "other.txt"
    path.write_text("".join(f"{text}\n" for text in reversed(list(islice(read_documents(lm.text), 40)))))
    other = background(lm, chunks=6, columns=24, source=str(path))
    assert not torch.equal(other.chunks, background(lm, chunks=6, columns=24).chunks)
    found = Senses(**{**QUICK, "kl_text": str(path)}).edit(lm, edits)
    assert isinstance(found.memory, Background)
    assert torch.equal(found.memory.chunks, other.chunks)
    assert torch.equal(found.memory.weight, other.weight)
    (tmp_path / "short.txt").write_text("Ada lives.\n")
    with pytest.raises(DataError, match="has fewer than 24 tokens; give more plain text with --set kl_text=FILE"):
        background(lm, chunks=3, columns=24, source=str(tmp_path / "short.txt"))


def test_without_divergence_no_text_is_read_in_training(tiny, edits, monkeypatch) -> None:
    lm = tiny("backpack")
    ordinary = background(lm, chunks=2, columns=24)
    passes = []
    handle = lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        Senses(**{**QUICK, "kl": 0.0}).edit(lm, edits[:1], ordinary)
    finally:
        handle.remove()
    assert len(passes) == 2  # what the example weighs, and what it says


# --- what is added ----------------------------------------------------------------------------------------------------


def test_a_change_is_added_wherever_its_token_stands(tiny) -> None:
    lm = tiny("backpack")
    row = lm.encode("The home of Hugo Lantern is the home of Hugo")
    draw = torch.Generator().manual_seed(2)
    tokens, senses = torch.tensor([row[1], row[1], row[3], 399]), torch.tensor([0, 3, 2, 1])
    change = SenseChange(tokens, senses, torch.randn(4, 32, generator=draw))
    table = torch.zeros(400, 4, 32).index_put((tokens, senses), change.deltas)
    dense = lambda hidden, step: hidden + table[step.ids[:, -step.new :]].flatten(2)  # noqa: E731
    batch = lm.batch([row, row[3:]])
    with torch.no_grad():
        plain = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        with patched(lm, Patch(hooks={SENSES: dense})):
            wanted = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        with patched(lm, Patch(hooks={SENSES: change})):
            found = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-5)
    assert float((wanted - plain).abs().max()) > 1


def test_changes_of_one_pair_add_and_others_stand_beside_each_other() -> None:
    first = SenseChange(torch.tensor([5, 9]), torch.tensor([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    later = SenseChange(torch.tensor([9, 5]), torch.tensor([0, 0]), torch.tensor([[10.0, 20.0], [0.5, 0.5]]))
    both = first.joined(later)
    assert list(zip(both.tokens.tolist(), both.senses.tolist(), strict=True)) == [(5, 0), (5, 1), (9, 0)]
    assert both.deltas.tolist() == [[0.5, 0.5], [1.0, 2.0], [13.0, 24.0]]


# --- what is refused, and names ---------------------------------------------------------------------------------------


def test_labels_memory_and_losses_that_are_not_finite(tiny, edits) -> None:
    lm = tiny("backpack")
    assert (Senses().label(), Senses(variant="released").label()) == ("senses", "senses-released")
    with pytest.raises(UsageError, match="the memory is a str of another editor"):
        Senses(**QUICK).edit(lm, edits, "words")
    with pytest.raises(NumericalError, match=r"^edit a: the loss became (nan|inf) in epoch \d; lower lr or kl"):
        Senses(**{**QUICK, "kl": 1e39}).edit(lm, edits[:1])


def test_the_released_variant_says_when_it_would_learn_nothing(tiny, edits) -> None:
    with pytest.raises(UsageError, match=r"learns nothing of 1 examples .* takes 2; give --set accumulate=1"):
        Senses(**{**QUICK, "accumulate": 2, "variant": "released"}).edit(tiny("backpack"), edits[:1])
