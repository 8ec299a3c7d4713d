"""Editors around editors: their names and settings, and what ``memit+rect+prune`` does with each portion of edits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from editors.memit import Memit
from editors.prune import Prune
from editors.rect import Rect
from editors.rome import Rome
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Wrapper
from harness.editing.hyperparameters import Positive
from harness.editing.registry import Recipe, compose, editor_names, find
from harness.editing.schedule import walk
from harness.errors import UsageError
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

MEMIT = {"layers": (0, 1), "cov_tokens": 4000, "lam": 1.0, "clamp": 20.0, "v_weight_decay": 1e-3, "v_steps": 10}
ROME = {k: v for k, v in MEMIT.items() if k != "lam"} | {"layers": (1,)}

# --- names ------------------------------------------------------------------------------------------------------------


def test_the_method_stands_first_and_wrappers_apply_left_to_right():
    recipe = compose("memit+rect+prune")
    assert (recipe.name, recipe.cls, recipe.parts) == ("memit+rect+prune", Memit, (Memit, Rect, Prune))
    assert compose("memit + rect").parts == (Memit, Rect)
    assert compose("memit").parts == (Memit,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rect", r"rect wraps another editor; name that one first, for example memit\+rect"),
        ("prune+memit", r"prune wraps another editor; name that one first, for example memit\+prune"),
        ("memit+rome", r"rome cannot wrap memit; what can stand after a \+ is .*prune.*rect"),
        ("memit+rect+rome", r"rome cannot wrap memit; "),
        ("memit+rect+rect", r"'memit\+rect\+rect' names a part twice; name each once"),
        ("memit+rekt", r"editor 'rekt' does not exist \(did you mean .*rect.*\)"),
        ("memit+", r"editor '' does not exist"),
        ("memmit+rect", r"editor 'memmit' does not exist \(did you mean .*memit"),
    ],
)
def test_a_part_that_cannot_stand_where_it_does_is_refused(name, message):
    with pytest.raises(UsageError, match=f"^{message}") as told:
        compose(name)
    assert "\n" not in str(told.value)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["keep", "rect.keep"])
def test_a_setting_finds_its_part(tiny, key):
    made = compose("memit+rect+prune").build(tiny("gpt2"), {key: 0.2, "memit.lam": 7, "prune.reduce": "log2"}, seed=5)
    assert isinstance(made, Prune) and isinstance(made.inner, Rect) and isinstance(made.inner.inner, Memit)
    assert (made.reduce, made.inner.keep, made.inner.inner.lam) == ("log2", 0.2, 7.0)
    assert (made.inner.seed, made.inner.inner.seed) == (5, 5)
    assert (made.root, made.label()) == (made.inner.inner, "memit+rect20+prune-log2")
    shown = made.hyperparameters()
    own = {"rect.keep": 0.2, "rect.choose": "relative", "rect.seed": 5, "prune.reduce": "log2", "prune.cap": False}
    assert {key: value for key, value in shown.items() if "." in key} == own
    assert shown["lam"] == 7.0


def test_a_seed_is_every_parts_unless_a_part_is_named(tiny):
    made = compose("memit+rect").build(tiny("gpt2"), {"seed": 3}, seed=5)
    assert isinstance(made, Rect)
    assert (made.seed, made.inner.seed) == (3, 3)
    made = compose("memit+rect").build(tiny("gpt2"), {"rect.seed": 3}, seed=5)
    assert (made.seed, made.inner.seed) == (3, 5)


@dataclass(frozen=True)
class Heavier(Wrapper):
    """A wrapper with a hyperparameter that MEMIT has too."""

    name = "heavier"
    lam: Positive = 1.0


def test_a_name_of_two_parts_must_say_which(tiny):
    recipe, lm = Recipe("memit+heavier", (Memit, Heavier)), tiny("gpt2")
    with pytest.raises(UsageError, match=r"^'lam' is a hyperparameter of memit and of heavier; write memit\.lam$"):
        recipe.build(lm, {"lam": 2.0}, seed=0)
    made = recipe.build(lm, {"heavier.lam": 2.0, "memit.lam": 3.0}, seed=0)
    assert isinstance(made, Heavier)
    assert (made.lam, made.inner.lam) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kep": 0.2}, r"memit\+rect\+prune has no hyperparameter 'kep' \(did you mean .*keep.*\?\)"),
        ({"rect.kep": 0.2}, r"rect has no hyperparameter 'kep' \(did you mean keep\?\)"),
        ({"rekt.keep": 0.2}, r"'rekt\.keep': memit\+rect\+prune has no part 'rekt' \(did you mean rect\?\)"),
        ({"prune.keep": 0.2}, r"prune has no hyperparameter 'keep'"),
        ({"inner": "rome"}, r"memit\+rect\+prune has no hyperparameter 'inner'"),
        ({"keep": 1.5}, r"rect: 'keep' is 1\.5, expected at least 0 and at most 1"),
        ({"rect.keep": -0.1}, r"rect: 'keep' is -0\.1, expected at least 0 and at most 1"),
        ({"keep": "much"}, r"rect: 'keep' is 'much', expected float"),
        ({"choose": "best"}, r"rect: 'choose' is 'best', expected .*relative.*random.*pca"),
        ({"reduce": "ln"}, r"prune: 'reduce' is 'ln', expected .*log.*log2.*log1_5.*log1_2.*linear"),
        ({"cap": 1}, r"prune: 'cap' is 1, expected bool"),
        ({"v_steps": 0}, r"memit: 'v_steps' is 0, expected at least 1"),
        ({"lam": -1}, r"memit: 'lam' is -1\.0, expected above 0"),
        ({"lam": math.nan}, r"memit: 'lam' is nan, expected above 0"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused_in_one_line(tiny, settings, message):
    with pytest.raises(UsageError, match=f"^{message}") as told:
        compose("memit+rect+prune").build(tiny("gpt2"), settings, seed=0)
    assert "\n" not in str(told.value)


# --- what becomes of edits --------------------------------------------------------------------------------------------


def rect(lm: LM, patch: Patch) -> dict[str, Tensor]:
    """The 40 % of entries with the largest relative change, by sorting."""
    found = {}
    for name, delta in patch.weights.items():
        change = delta.dense()
        relative = (change / lm.matrix(name)).abs()
        least = relative.flatten().sort(descending=True).values[round(0.4 * change.numel()) - 1]
        found[name] = torch.where(relative >= least, change, 0.0)
    return found


def prune(lm: LM, total: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The change with restrained singular values, and how many were."""
    found, count = {}, 0
    for name, change in total.items():
        bound = torch.linalg.svdvals(lm.matrix(name).double())[0]
        left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
        count += int((values > bound).sum())
        found[name] = (left * torch.where(values > bound, bound + (values / bound).log(), values)) @ right
    return found, count


def portions(mode: str, edits: Sequence[Edit]) -> list[list[Edit]]:
    return [list(edits)] if mode == "batch" else [[edit] for edit in edits]


def sums(plain: Editor, lm: LM, edits: Sequence[Edit], mode: str, reduced: bool) -> list[dict[str, Tensor]]:
    """What the increments, reduced or not, add up to after each portion; isolated ones do not add up."""
    stops, total, memory = [], Patch(), None
    for portion in portions(mode, edits):
        with patched(lm, Patch() if mode == "isolated" else total):
            made = plain.edit(lm, portion, None if mode == "isolated" else memory)
            part = rect(lm, made) if reduced else {n: d.dense() for n, d in made.weights.items()}
        as_patch = Patch({n: LowRank(change, torch.eye(change.shape[1])) for n, change in part.items()})
        total, memory = (as_patch if mode == "isolated" else total + as_patch), made.memory
        stops.append({n: d.dense() for n, d in total.weights.items()})
    return stops


def largest_error(ours: Patch, expected: Mapping[str, Tensor]) -> float:
    assert set(ours.weights) == set(expected)
    return max(float((ours.weights[n].dense() - change).norm() / change.norm()) for n, change in expected.items())


@pytest.mark.parametrize("mode", ["isolated", "batch", "sequential"])
@pytest.mark.parametrize("name", ["memit+rect+prune", "rome+prune"])
def test_rect_on_each_increment_then_prune_on_the_sum(fresh, edits, name, mode):
    lm, settings = fresh("gpt2"), MEMIT if name.startswith("memit") else ROME
    editor = compose(name).build(lm, settings, seed=0)
    if mode == "batch" and not editor.root.batch:
        with pytest.raises(UsageError, match="edits one fact at a time"):
            list(walk(editor, lm, edits, mode=mode, batch_size=None, at=[len(edits)]))
        return
    at = [1, 2, 3] if mode == "sequential" else [3]
    stops = list(walk(editor, lm, edits, mode=mode, batch_size=1 if mode == "sequential" else None, at=at))
    patches = [patch for stop in stops for patch in stop.patches]
    expected = sums(editor.root, lm, edits, mode, reduced="rect" in name)
    assert len(patches) == len(expected)
    touched = 0
    for patch, total in zip(patches, expected, strict=True):
        restrained, count = prune(lm, total)
        touched += count
        assert largest_error(patch, restrained) < 1e-3
        assert count == 0 or largest_error(patch, total) > 1e-2
    assert touched > 0, "nothing was restrained; the test shows nothing"
    if "rect" not in name:
        assert all(isinstance(delta, LowRank) for patch in patches for delta in patch.weights.values())


@pytest.mark.parametrize("name", [name for name in editor_names() if issubclass(find(name), Wrapper)])
def test_the_last_pass_of_a_wrapper_is_its_edit(fresh, edits, name):
    """What is measured after each pass is the composed editor, and not what it wraps."""
    lm = fresh("gpt2")
    settings = {f"memit.{key}": value for key, value in {**MEMIT, "v_steps": 3, "layers": (1,)}.items()}
    plain, editor = (compose(which).build(lm, settings, seed=0) for which in ("memit", f"memit+{name}"))
    (done,) = editor.passes(lm, edits[:2])
    whole, inner = editor.edit(lm, edits[:2]), plain.edit(lm, edits[:2])
    for parameter, delta in whole.weights.items():
        assert torch.equal(done.patch.weights[parameter].dense(), delta.dense())
        changed = not torch.equal(inner.weights[parameter].dense(), delta.dense())
        assert changed == (name != "prune"), "prune shapes the sum, every other one the increment"


def test_rect_reduces_the_change_after_every_pass(fresh, edits):
    lm = fresh("gpt2")
    settings = {"steps": 2, "threshold": 0.0, "lr": 1e-3, "keep": 0.4}
    found = list(compose("full+rect").build(lm, settings, seed=0).passes(lm, edits[:2]))
    assert len(found) == 2
    for done in found:
        for delta in done.patch.weights.values():
            assert int((delta.dense() != 0).sum()) <= round(0.4 * delta.shape.numel())


@dataclass(frozen=True)
class Silent(Memit):
    """An editor that forgets to return what it made."""

    name = "silent"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return None  # type: ignore[return-value]

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        return [self.edit(lm, [edit]) for edit in edits]

    def finish(self, lm: LM, total: Patch) -> Patch:
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("mode", ["isolated", "batch", "sequential"])
@pytest.mark.parametrize("name", [name for name in editor_names() if issubclass(find(name), Wrapper)])
def test_what_the_wrapped_editor_gave_is_looked_at(tiny, edits, name, mode):
    lm = tiny("gpt2")
    editor = Recipe(f"silent+{name}", (Silent, find(name))).build(
        lm, {"nas.anchor": 1.0} if name == "nas" else {}, seed=0
    )
    with pytest.raises(UsageError, match=r"^silent: edit\(\) gave None, expected a Patch; ") as told:
        list(walk(editor, lm, edits[:2], mode=mode, batch_size=None, at=[2]))
    assert "\n" not in str(told.value)


def test_what_the_wrapped_editor_makes_of_the_sum_is_looked_at(tiny):
    with pytest.raises(UsageError, match=r"^silent: finish\(\) gave None, expected a Patch; "):
        Prune(inner=Silent()).finish(tiny("gpt2"), Patch())


def test_rome_is_a_method_of_one_fact_in_every_wrapping():
    assert not compose("rome+prune").cls.batch
    assert Prune(inner=Rect(inner=Rome())).root == Rome()
