"""RECT against its port in AlphaEdit (jianghoucheng/AlphaEdit at f5248d3), its formula, and its own promises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from editors.memit import Memit
from editors.rect import Rect, keep_largest, keep_principal, keep_random
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import find
from harness.errors import UsageError
from harness.methods.keys import Unedited
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched

FOLDER = "G_rect_memit_gpt2"
DOWN = "transformer.h.{}.mlp.c_proj.weight"
# The authors' figure 6: relative changes of 0.1 on four entries, of 0.01 on the others; their k of 25 % keeps the four.
WEIGHT = torch.tensor([[2, 6, 5, 8], [3, 4, 1, 9], [8, 5, 6, 1], [6, 4, 3, 2]], dtype=torch.float64)
CHANGE = WEIGHT * torch.tensor([[1, 10, 1, 1], [1, 1, 10, 1], [10, 1, 1, 1], [1, 1, 1, 10]]) / 100


@dataclass(frozen=True)
class Given(Editor):
    """Returns patches that are given, by the edit's id, for one edit and for several."""

    name = "given"
    patches: Any = None

    def edit(self, lm: Any, edits: Any, memory: object = None) -> Patch:
        return self.patches["".join(edit.id for edit in edits)]

    def edit_each(self, lm: Any, edits: Any) -> list[Patch]:
        return [self.patches[edit.id] for edit in edits]


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the port's numbers -----------------------------------------------------------------------------------------------


def memit(golden: Any) -> tuple[Memit, Unedited, list[Edit]]:
    said = golden.json("B_memit_gpt2/inputs.json")
    theirs, names = said["hparams"], {"v_num_grad_steps": "v_steps", "clamp_norm_factor": "clamp"}
    names |= {"mom2_update_weight": "lam", **{k: k for k in ("v_lr", "v_loss_layer", "v_weight_decay", "kl_factor")}}
    ours = {mine: theirs[name] for name, mine in names.items() if name in theirs}
    first, others = golden.json("inputs/contexts.json")["memit"]
    prior = Unedited((*first, *others), golden.moments("tiny-gpt2"))
    return Memit(**ours, layers=tuple(theirs["layers"])), prior, list(golden.edits(said["batch_case_ids"]).values())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-6), ("fp32", 2e-4)])
def test_memit_with_rect_is_the_ports(golden, close, precision, tolerance):
    """The port keeps ``numel - int(0.6 numel) + 1`` entries; ``keep`` is chosen so that as many stay."""
    theirs, lm = golden.tensors(f"{FOLDER}/expected.safetensors"), golden.lm("tiny-gpt2", precision)
    method, prior, edits = memit(golden)
    size = lm.matrix(DOWN.format(0)).numel()
    count = size - int(0.6 * size) + 1
    patch = Rect(inner=method, keep=count / size).edit(lm, edits, prior)
    for layer in method.layers or ():
        ours = patch.weights[DOWN.format(layer)].dense()
        assert int(theirs[f"{precision}/kept.{layer}"]) == count == int((ours != 0).sum())
        close(ours.T, theirs[f"{precision}/applied_delta_in_out.{layer}"], tolerance, f"layer {layer}")
    assert patch.memory.contexts == prior.contexts


# --- the formula ------------------------------------------------------------------------------------------------------


def test_the_published_example_keeps_a_quarter():
    expected = torch.where(CHANGE / WEIGHT > 0.05, CHANGE, 0.0)
    assert torch.equal(keep_largest(CHANGE, WEIGHT, 4), expected)
    assert float(CHANGE.abs().sum()) == pytest.approx(2.26)
    assert float(expected.abs().sum()) == pytest.approx(1.70)


def test_v10_of_sixteen_entries_the_nearest_whole_number_stays(edits):
    """The authors' code sets ``int(16 (1 - k))`` of them to zero, which can keep one more."""
    lm: Any = SimpleNamespace(matrix=lambda name: WEIGHT)
    inner, shares = Given(), (0.8, 0.6, 0.4, 0.25, 0.2)
    found = [Rect(inner=inner, keep=keep)._part(lm, edits[:1], "w", Dense(CHANGE)).dense() for keep in shares]
    assert [int((change != 0).sum()) for change in found] == [13, 10, 6, 4, 3]
    assert [16 - int(16 * (1 - keep) + 1e-9) for keep in shares] == [13, 10, 7, 4, 4]  # zero: 3, 6, 9, 12, 12
    assert torch.equal(found[3], keep_largest(CHANGE, WEIGHT, 4))


def test_signs_do_not_matter_and_a_vector_is_treated_alike():
    weight, change = torch.tensor([1.0, -2.0, 4.0, 0.5, -1.0]), torch.tensor([0.1, 0.5, 0.2, -0.4, 0.03])
    assert keep_largest(change, weight, 2).tolist() == pytest.approx([0.0, 0.5, 0.0, -0.4, 0.0])


def test_a_change_of_zero_is_infinite_and_no_change_of_zero_is_none():
    weight, change = torch.tensor([0.0, 1.0, 0.0, 1e9, 0.0]), torch.tensor([1e-9, 5.0, 0.0, 1.0, -1e-20])
    assert keep_largest(change, weight, 2).tolist() == pytest.approx([1e-9, 0.0, 0.0, 0.0, -1e-20])
    assert keep_largest(change, weight, 3).tolist() == pytest.approx([1e-9, 5.0, 0.0, 0.0, -1e-20])
    assert torch.equal(keep_largest(change, weight, 4), change)


def test_half_precision_weights_are_divided_in_single_precision():
    """In bfloat16 the two ratios are one number, and the first entry would be kept."""
    weight, change = torch.tensor([1.0, 1.0], dtype=torch.bfloat16), torch.tensor([1.001, 1.002])
    assert keep_largest(change, weight, 1)[0] == 0


@settings(max_examples=80)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 2**31))
def test_what_is_kept_is_as_given_and_outranks_what_is_not(out, width, share, seed):
    change, weight = matrix(seed, out, width), matrix(seed + 1, out, width)
    count = round(share * change.numel())
    ours = keep_largest(change, weight, count)
    stays = ours != 0
    assert int(stays.sum()) == count
    assert torch.equal(ours[stays], change[stays])
    relative = (change / weight).abs()
    if 0 < count < change.numel():
        assert float(relative[stays].min()) >= float(relative[~stays].max())


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 2**31))
def test_scaling_change_or_weight_keeps_the_same_entries(out, width, share, seed):
    change, weight = matrix(seed, out, width), matrix(seed + 1, out, width)
    count = round(share * change.numel())
    assert torch.equal(keep_largest(change * 4, weight, count), keep_largest(change, weight, count) * 4)
    assert torch.equal(keep_largest(change, weight * -8, count), keep_largest(change, weight, count))


# --- the controls -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_random_keeps_exactly_so_many(size, share, seed):
    change = matrix(seed, size, 3)
    ours = keep_random(change, round(share * change.numel()), seed)
    assert int((ours != 0).sum()) == round(share * change.numel())
    assert torch.equal(ours, torch.where(ours != 0, change, 0.0))
    assert torch.equal(ours, keep_random(change, round(share * change.numel()), seed))


def test_random_is_uniform():
    """Each of six entries is one of the two that stay in a third of 3000 draws, within four standard deviations."""
    counts = sum((keep_random(torch.ones(6), 2, seed) for seed in range(3000)), torch.zeros(6))
    assert float((counts - 1000).abs().max()) < 4 * (3000 * 2 / 9) ** 0.5


@pytest.mark.parametrize("count", [1, 2, 4])
def test_pca_is_that_of_scikit_learn_mapped_back(close, count):
    """Inputs are observations, as in the authors' matrix of 6400 x 1600 (stored by inputs)."""
    change = matrix(3, 5, 9) + 2
    theirs = PCA(n_components=count)
    back = theirs.inverse_transform(theirs.fit_transform(change.T.numpy())).T
    close(keep_principal(Dense(change), count).dense(), torch.tensor(np.asarray(back)), 1e-12)
    # The components and the mean, as factors where these are smaller than the matrix.
    assert isinstance(keep_principal(Dense(change), count), LowRank) == ((count + 1) * (5 + 9) < 5 * 9)


def test_pca_leaves_what_has_no_more_components():
    low, bias = LowRank(matrix(0, 5, 2), matrix(1, 2, 9)), Dense(matrix(2, 5))
    assert keep_principal(low, 2) is low
    assert keep_principal(low, 3) is low
    assert keep_principal(bias, 0) is bias
    assert not torch.allclose(keep_principal(low, 1).dense(), low.dense())


# --- the editor -------------------------------------------------------------------------------------------------------


@pytest.fixture
def given_patches(tiny) -> tuple[Any, dict[str, Patch]]:
    """A low-rank change, a dense one, one of a bias, and a hook."""
    lm = tiny("gpt2")
    name, bias = lm.down(1), f"{lm.arch.down_of(1)}.bias"
    low = LowRank(matrix(0, 32, 1).float(), matrix(1, 1, 64).float())
    first = Patch(
        {name: low, bias: Dense(matrix(2, 32).float())}, {"transformer.h.0": lambda hidden, step: hidden}, memory="mine"
    )
    return lm, {"a": first, "b": Patch({name: low * 2.0}), "ab": first}


@pytest.mark.parametrize("choose", ["relative", "random", "pca"])
def test_keeping_all_is_the_identity(given_patches, edits, choose):
    lm, patches = given_patches
    got = Rect(inner=Given(patches=patches), keep=1.0, choose=choose).edit(lm, edits[:1])
    assert all(got.weights[name] is delta for name, delta in patches["a"].weights.items())


def test_keeping_nothing_changes_nothing(given_patches, edits):
    lm, patches = given_patches
    got = Rect(inner=Given(patches=patches), keep=0.0).edit(lm, edits[:1])
    assert all(not delta.dense().any() for delta in got.weights.values())


def test_defect_11_every_edited_parameter_is_reduced_and_the_rest_passes(given_patches, edits):
    """The released function returns None; here the reduced change comes back, other seams and the memory untouched."""
    lm, patches = given_patches
    got = Rect(inner=Given(patches=patches)).edit(lm, edits[:1])
    for name, delta in patches["a"].weights.items():
        count = round(0.4 * delta.shape.numel())
        assert torch.equal(got.weights[name].dense(), keep_largest(delta.dense(), lm.matrix(name), count))
        assert int((got.weights[name].dense() != 0).sum()) == count
    assert (got.hooks, got.memory) == (patches["a"].hooks, "mine")


def test_the_weight_is_the_one_with_the_earlier_edits(given_patches, edits):
    lm, patches = given_patches
    rect, name = Rect(inner=Given(patches=patches)), lm.down(1)
    earlier = Patch({name: Dense(matrix(7, 32, 64).float())})
    change, count = patches["b"].weights[name].dense(), round(0.4 * 32 * 64)
    with patched(lm, earlier):
        now = rect.edit(lm, edits[1:2]).weights[name].dense()
        assert torch.equal(now, keep_largest(change, lm.matrix(name), count))
    assert not torch.equal(now, rect.edit(lm, edits[1:2]).weights[name].dense())


@pytest.mark.parametrize("choose", ["relative", "random", "pca"])
def test_side_by_side_is_one_by_one(given_patches, edits, choose):
    lm, patches = given_patches
    rect = Rect(inner=Given(patches=patches), choose=choose)
    for edit, patch in zip(edits[:2], rect.edit_each(lm, edits[:2]), strict=True):
        alone = rect.edit(lm, [edit])
        assert all(torch.equal(patch.weights[n].dense(), alone.weights[n].dense()) for n in alone.weights)


def test_random_draws_anew_for_each_edit_parameter_and_seed(given_patches, edits):
    lm, patches = given_patches
    same = Patch({lm.down(i): patches["b"].weights[lm.down(1)] for i in (0, 1)})
    rect = Rect(inner=Given(patches={"a": same, "b": same}), choose="random", seed=3)

    def stays(method: Rect, edit: Edit, layer: int) -> Tensor:
        return method.edit(lm, [edit]).weights[lm.down(layer)].dense() != 0

    one = stays(rect, edits[0], 1)
    assert torch.equal(one, stays(rect, edits[0], 1))
    others = [stays(rect, edits[1], 1), stays(rect, edits[0], 0), stays(replace(rect, seed=4), edits[0], 1)]
    # Independent draws of 40 % agree on 52 % of the entries.
    assert all(float((one == other).float().mean()) == pytest.approx(0.52, abs=0.05) for other in others)


def test_labels_say_what_is_not_the_default():
    inner = find("memit")()
    assert Rect(inner=inner).label() == "memit+rect"
    assert Rect(inner=inner, keep=0.2).label() == "memit+rect20"
    assert Rect(inner=inner, choose="random").label() == "memit+rect40-random"
    assert Rect(inner=inner, keep=0.025, choose="pca").label() == "memit+rect2.5-pca"


def test_an_editor_without_weights_is_refused():
    @dataclass(frozen=True)
    class Shifts(Given):
        name = "shifts"
        seams = frozenset({"activations", "prompt"})

    with pytest.raises(UsageError, match=r"rect keeps a share .* but shifts changes activations, prompt only; wrap"):
        Rect(inner=Shifts())
