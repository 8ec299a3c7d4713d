"""Steering: the vector of CAA and the map of LoReFT, each against its formula written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.caa import Caa, Shift
from editors.reft import Intervention, Interventions, Reft
from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, NumericalError, UsageError
from harness.models.activations import capture_activations
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

EDITS = [
    Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo, Norway"),
    Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", "Rome"),
    Edit("c", "Everybody knows {}", "Elena Marsh", "lives in Paris", "lives in Athens"),
]


def hidden_states(lm: LM, ids: list[int], layer: int) -> Tensor:
    """What a block writes, ``[tokens, d]``, as transformers gives it."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]


def logits(lm: LM, text: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=torch.tensor([lm.encode(text)])).logits[0]
    return found


# --- CAA --------------------------------------------------------------------------------------------------------------


def difference(lm: LM, edit: Edit, layer: int) -> Tensor:
    prompt, means = lm.encode(edit.text), []
    for answer in (edit.target, str(edit.target_old)):
        said = lm.continuation(edit.text, edit.says(answer))
        means.append(hidden_states(lm, prompt + said, layer)[len(prompt) :].mean(0))
    return means[0] - means[1]


@pytest.mark.parametrize("strength", [1.0, -2.5])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_vector_is_the_mean_difference_of_states_by_hand(
    fresh: Callable[..., LM], family: str, strength: float
) -> None:
    """Both answers have one prompt: what stands before them cancels out."""
    lm = fresh(family)  # transformers leaves hooks on a model that was asked for hidden states
    vector = torch.stack([difference(lm, edit, 1) for edit in EDITS]).mean(0)
    patch = Caa(layer=1, strength=strength).edit(lm, EDITS)
    (name,) = patch.hooks
    assert name == lm.arch.block(1)
    above, rows = lm.arch.block(2), lm.batch([lm.encode("Greta Holm sings")])
    plain = capture_activations(lm, rows, inputs=[above]).inputs[above][0]
    with patched(lm, patch):
        steered = capture_activations(lm, rows, inputs=[above]).inputs[above][0]
    torch.testing.assert_close(steered - plain, (strength * vector).expand_as(plain), atol=2e-5, rtol=1e-4)
    assert float(vector.norm()) > 1e-3


def test_operations_one_after_the_other_are_the_mean_over_all_edits(tiny: Callable[[str], LM]) -> None:
    lm, caa = tiny("llama"), Caa(layer=1)
    whole = caa.edit(lm, EDITS)
    first = caa.edit(lm, EDITS[:2])
    with patched(lm, first):
        second = caa.edit(lm, EDITS[2:])
    each = caa.edit_each(lm, EDITS)
    joined = [first + second, each[0] + each[1] + each[2]]
    (name,) = whole.hooks
    for patch in joined:
        hook, expected = patch.hooks[name], whole.hooks[name]
        assert isinstance(hook, Shift) and isinstance(expected, Shift)
        assert hook.count == expected.count == 3
        torch.testing.assert_close(hook.total, expected.total, atol=1e-5, rtol=1e-4)
    assert caa.edit_each(lm, []) == []


def test_the_old_answer_is_needed(tiny: Callable[[str], LM]) -> None:
    bare = replace(EDITS[0], target_old=None)
    with pytest.raises(DataError, match=r"^edit a: it names no old answer .*give 'target_old'$"):
        Caa(layer=1).edit(tiny("gpt2"), [bare])
    contrast = replace(bare, direction="contrast", against="Oslo, Norway")
    one, other = (Caa(layer=1).differences(tiny("gpt2"), [edit]) for edit in (EDITS[0], contrast))
    assert torch.equal(one, other)


def test_a_layer_that_does_not_exist_is_refused(tiny: Callable[[str], LM]) -> None:
    for editor in (Caa(layer=7), Reft(layer=7)):
        with pytest.raises(ModelError, match="7"):
            editor.require(tiny("gpt2"))


# --- LoReFT -----------------------------------------------------------------------------------------------------------


def made(width: int, rank: int, *subjects: tuple[str, tuple[tuple[int, ...], ...]], seed: int = 0) -> Intervention:
    draw = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, rank, generator=draw))[0].T.contiguous()
    names, ways = zip(*subjects, strict=True)
    weight, bias = torch.randn(rank, width, generator=draw), torch.randn(rank, generator=draw)
    return Intervention(names, ways, rotation, weight, bias)


def step(rows: list[list[int]], new: int | None = None) -> Step:
    ids = torch.tensor(rows)
    return Step(ids, torch.ones_like(ids), ids.shape[1] if new is None else new)


def by_hand(one: Intervention, h: Tensor) -> Tensor:
    """``h + R^T (W h + b - R h)`` of one vector."""
    return h + one.rotation.T @ (one.weight @ h + one.bias - one.rotation @ h)


def test_the_map_is_its_formula_where_the_subject_ends_and_nowhere_else() -> None:
    """Subject ``7 8`` stands at columns 1 and 2 of the first row, and twice in the second: its first mention counts."""
    one = made(6, 2, ("Ada", ((7, 8),)))
    hook = Interventions((one,), "subject")
    rows = [[1, 7, 8, 2, 3], [7, 8, 4, 7, 8], [7, 1, 8, 7, 5]]
    h = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    found, changed = hook(h, step(rows)), {(0, 2), (1, 1)}
    for row in range(3):
        for column in range(5):
            if (row, column) in changed:
                torch.testing.assert_close(found[row, column], by_hand(one, h[row, column]))
                assert float((found[row, column] - h[row, column]).norm()) > 0.1
            else:
                assert torch.equal(found[row, column], h[row, column])
    # With a cache: the columns that were read before are not computed again.
    assert torch.equal(hook(h[:, 2:], step(rows, 3)), found[:, 2:])
    every = Interventions((one,), "all")(h, step(rows))
    torch.testing.assert_close(every[2, 4], by_hand(one, h[2, 4]))


def test_what_it_writes_into_the_subspace_does_not_depend_on_what_stood_there_across_it() -> None:
    """``R Phi(h) = W h + b``, and the part of ``h`` that is orthogonal to the rows of ``R`` stays what it is."""
    one = made(8, 3, ("Ada", ((1,),)))
    h = torch.randn(20, 8)
    after = one(h)
    torch.testing.assert_close(after @ one.rotation.T, h @ one.weight.T + one.bias, atol=1e-5, rtol=1e-4)
    apart = torch.eye(8) - one.rotation.T @ one.rotation
    torch.testing.assert_close(after @ apart, h @ apart, atol=1e-5, rtol=1e-4)


def test_maps_of_several_operations_act_one_after_the_other_each_at_its_own_subjects() -> None:
    first = made(6, 2, ("Ada", ((7, 8),)), ("Hugo", ((5,),)))
    later = made(6, 3, ("Hugo", ((5,), (6,))), seed=3)
    both = Interventions((first,), "subject").joined(Interventions((later,), "subject"))
    h = torch.randn(1, 4, 6)
    found = both(h, step([[7, 8, 5, 2]]))
    torch.testing.assert_close(found[0, 1], by_hand(first, h[0, 1]))
    torch.testing.assert_close(found[0, 2], by_hand(later, by_hand(first, h[0, 2])))
    again = Interventions.restore(_Device(), both.settings(), both.tensors())  # type: ignore[arg-type]
    assert torch.equal(again(h, step([[7, 8, 5, 2]])), found)


class _Device:
    device = torch.device("cpu")


@pytest.mark.parametrize("positions", ["subject", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_map_begins_as_identity_learns_the_targets_and_keeps_its_rows_orthonormal(
    taught: Callable[[str], LM], family: str, positions: str
) -> None:
    lm = taught(family)
    method = Reft(layer=1, positions=positions, lr=3e-2, steps=30)  # type: ignore[arg-type]
    text = f"{EDITS[0].text} Rome"
    with patched(lm, replace(method, threshold=1e9).edit(lm, EDITS)):  # one update, no more
        moved = logits(lm, text)
    still = replace(method, lr=1e-30, steps=1).edit(lm, EDITS)
    with patched(lm, still):
        torch.testing.assert_close(logits(lm, text), begun := logits(lm, text))
    torch.testing.assert_close(begun, logits(lm, text), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(moved, logits(lm, text), atol=1e-3)

    def likely(patch: Patch) -> list[float]:
        found = []
        with patched(lm, patch):
            for edit in EDITS:
                prompt, said = lm.encode(edit.text), lm.continuation(edit.text, edit.continuation)
                rows = logits_of(lm, prompt + said).log_softmax(-1)[len(prompt) - 1 : -1]
                found.append(float(rows.gather(1, torch.tensor(said)[:, None]).sum()))
        return found

    patch = method.edit(lm, EDITS)
    assert all(after > before + 1 for before, after in zip(likely(Patch()), likely(patch), strict=True))
    (hook,) = patch.hooks.values()
    assert isinstance(hook, Interventions)
    (one,) = hook.maps
    torch.testing.assert_close(one.rotation @ one.rotation.T, torch.eye(4), atol=1e-5, rtol=0)
    assert not one.rotation.requires_grad and not one.weight.requires_grad and not one.bias.requires_grad
    if positions == "subject":
        with patched(lm, patch):
            there = logits(lm, "Greta Holm was born in")
        assert torch.equal(there, logits(lm, "Greta Holm was born in"))


def logits_of(lm: LM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=torch.tensor([ids])).logits[0]
    return found


def test_the_released_start_is_no_identity(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    quick = Reft(layer=1, lr=1e-30, steps=1)
    plain = logits(lm, EDITS[0].text)
    with patched(lm, quick.edit(lm, EDITS)):
        torch.testing.assert_close(logits(lm, EDITS[0].text), plain, atol=1e-4, rtol=1e-4)
    with patched(lm, replace(quick, start="released").edit(lm, EDITS)):
        assert float((logits(lm, EDITS[0].text) - plain).abs().max()) > 1e-2


def test_what_reft_cannot_do_is_told(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="edit c: reft needs a subject; give rows of prompt, subject and target"):
        Reft(layer=1).edit(lm, [Edit("c", "The sea is", None, "green")])
    with pytest.raises(ModelError, match=rf"^reft: 'rank' is 99, but {lm.name} has states of {lm.arch.width} numbers"):
        Reft(layer=1, rank=99).require(lm)
    with pytest.raises(NumericalError, match=r"edits a, b, c became nan in training a map of .*; lower lr"):
        Reft(layer=1, lr=1e30, steps=9).edit(lm, EDITS)
