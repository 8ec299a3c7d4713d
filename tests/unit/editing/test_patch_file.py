"""A patch on disk: all seams come back, low rank stays low rank, and what does not belong together is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models import gpt2

from harness.editing import patch_file
from harness.editing.edit import Edit
from harness.editing.registry import find
from harness.editing.replay import replay
from harness.errors import DataError, ModelError, UsageError
from harness.io import tensor_file
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched

SEAMS = str(Path(__file__).parents[2] / "seams.py")


@pytest.fixture(scope="module")
def patch(tiny: Callable[[str], LM], edits: list[Edit]) -> Callable[[str], Patch]:
    """A patch of all seams for two edits."""
    return lambda family: find(SEAMS)().edit(tiny(family), edits[:2])


def logits(lm: LM, change: Patch, edits: list[Edit]) -> torch.Tensor:
    """What the model says under a patch, at all its seams."""
    assert change.prompt is not None
    rows = lm.batch([lm.encode(change.prompt(f"{e.text}{e.continuation}")) for e in edits])
    with patched(lm, change), torch.no_grad():
        found: torch.Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_every_seam_comes_back(tiny, edits, patch, tmp_path: Path, family: str) -> None:
    lm, path, change = tiny(family), tmp_path / "p", patch(family)
    patch_file.save_patch(change, lm, path, editor=SEAMS, about={"ids": ["a", "b"]})
    again = patch_file.load_patch(path, lm)
    assert {type(delta).__name__ for delta in again.weights.values()} == {"LowRank", "Dense"}
    for name, delta in change.weights.items():
        for role, tensor in delta.tensors().items():
            assert torch.equal(again.weights[name].tensors()[role], tensor)
    assert set(again.hooks) == set(change.hooks) == {lm.arch.block(0)}
    assert again.prompt("X") == change.prompt("X") == f"{edits[0].text} Rome. {edits[1].text} Oslo, Norway. X"
    assert again.memory is None
    assert torch.equal(logits(lm, again, edits), logits(lm, change, edits))
    # Each seam does its part: without any one of them the model says something else.
    for seam in ({"weights": {}}, {"hooks": {}}, {"logits": None}, {"prompt": str}):
        fewer = {"weights": again.weights, "hooks": again.hooks, "prompt": again.prompt, "logits": again.logits, **seam}
        assert not torch.equal(logits(lm, Patch(**fewer), edits), logits(lm, change, edits))


def test_what_is_put_back_is_known_by_all_of_its_seams(tiny, edits, patch, tmp_path: Path) -> None:
    """The record of a run that puts edits back names their hash: hooks, prompts and logits are edits as well."""
    lm, path, change = tiny("gpt2"), tmp_path / "p", patch("gpt2")
    patch_file.save_patch(change, lm, path, editor=SEAMS)
    noted = replay(path, lm).notes(lm)["patch_sha256"]
    assert noted == patch_file.patch_digest(change)
    fewer = find(SEAMS)().edit(lm, edits[:1])
    seams = ("weights", "hooks", "prompt", "logits")
    for seam in seams:
        mixed = Patch(**{one: getattr(fewer if one == seam else change, one) for one in seams})
        assert patch_file.patch_digest(mixed) != noted, seam
    dense = Patch({n: Dense(d.dense()) for n, d in change.weights.items()}, change.hooks, change.prompt, change.logits)
    assert patch_file.patch_digest(dense) == noted  # the same change, however it is kept


def test_the_manifest_says_what_it_is_without_the_tensors(tiny, patch, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch_file.save_patch(patch("gpt2"), lm, tmp_path / "p", editor=SEAMS, about={"plan": "abc"})
    head = patch_file.patch_manifest(tmp_path / "p")
    assert (head["editor"], head["model"], head["about"]) == (SEAMS, lm.fingerprint(), {"plan": "abc"})
    assert {where: part["class"] for where, part in head["parts"].items()} == {
        "hooks/transformer.h.0": "Shift", "prompt": "Preface", "logits": "Bonus",
    }  # fmt: skip


@pytest.mark.parametrize("weights", [{}, {"h.0.weight": LowRank(torch.zeros(32, 0), torch.zeros(0, 64))}])
def test_a_patch_of_nothing_comes_back(tiny, tmp_path: Path, weights: dict[str, LowRank]) -> None:
    change = Patch(weights)
    patch_file.save_patch(change, tiny("gpt2"), tmp_path / "p", editor="none")
    again = patch_file.load_patch(tmp_path / "p", tiny("gpt2"))
    assert again.only_weights
    assert {n: d.shape for n, d in again.weights.items()} == {n: d.shape for n, d in change.weights.items()}


def test_two_blocks_whose_names_begin_alike_keep_their_own_tensors(tiny, tmp_path: Path) -> None:
    lm, shift = tiny("gpt2"), sys.modules[find(SEAMS).__module__].Shift
    hooks = {f"transformer.h.{i}": shift(torch.full((1, 32), float(i)), (i,)) for i in (1, 2)}
    hooks["transformer.h.1.mlp"] = shift(torch.full((1, 32), 7.0), (7,))
    patch_file.save_patch(Patch(hooks=hooks), lm, tmp_path / "p", editor=SEAMS)
    again = patch_file.load_patch(tmp_path / "p", lm).hooks
    assert {n: (float(h.amounts[0, 0]), h.kinds) for n, h in again.items()} == {
        "transformer.h.1": (1.0, (1,)), "transformer.h.2": (2.0, (2,)), "transformer.h.1.mlp": (7.0, (7,)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def wide(make_tokenizer: Callable[[bool], Any]) -> LM:
    """One block of the size of GPT-2 124M: keys of 3072, width 768."""
    tokenizer = make_tokenizer(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = gpt2.GPT2Config(vocab_size=len(tokenizer), n_embd=768, n_layer=1, n_head=12, n_positions=64)
        return LM.wrap(gpt2.GPT2LMHeadModel(config), tokenizer, name="wide")


def test_a_rank_one_edit_of_gpt2s_size_is_small_on_disk(wide: LM, edits: list[Edit], tmp_path: Path) -> None:
    """9.4 MB of weight, 15 KB of change."""
    method = find("rome")(covariance=False, layers=(0,), v_steps=2, contexts=("{}",))
    change = method.edit(wide, edits[:1])
    patch_file.save_patch(change, wide, tmp_path / "p", editor="rome")
    assert wide.matrix(wide.down(0)).shape == (768, 3072)
    assert 4 * (768 + 3072) <= (tmp_path / "p").stat().st_size < 20_000
    again = patch_file.load_patch(tmp_path / "p", wide).weights[wide.down(0)]
    assert isinstance(again, LowRank)
    assert torch.equal(again.dense(), change.weights[wide.down(0)].dense())
    patch_file.save_patch(Patch({wide.down(0): Dense(again.dense())}), wide, tmp_path / "dense", editor="rome")
    assert (tmp_path / "dense").stat().st_size > 9_000_000  # a dense change is as large as the weight


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_hook_that_is_no_part_cannot_be_saved_and_writes_nothing(tiny, tmp_path: Path) -> None:
    rules = [
        ("hooks/transformer.h.0", Patch(hooks={"transformer.h.0": lambda hidden, step: hidden})),
        ("prompt", Patch(prompt=str.upper)),
        ("logits", Patch(logits=lambda scores, step: scores)),
    ]
    for where, change in rules:
        with pytest.raises(ModelError, match=f"mine: what it does at {where} cannot be saved; derive it from harness"):
            patch_file.save_patch(change, tiny("gpt2"), tmp_path / "p", editor="mine")
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(fresh, patch, tiny, tmp_path: Path) -> None:
    patch_file.save_patch(patch("gpt2"), tiny("gpt2"), tmp_path / "p", editor=SEAMS)
    for other in (fresh("gpt2", 1), fresh("gpt2", dtype=torch.bfloat16), tiny("llama")):
        with pytest.raises(DataError, match=r"p: changes the model 'tiny-gpt2' \(\w{12}\), not tiny-\w+ \(\w{12}\)"):
            patch_file.load_patch(tmp_path / "p", other)


def test_a_patch_may_not_be_read_into_the_model_that_it_has_changed(patch, tiny, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch_file.save_patch(patch("gpt2"), lm, tmp_path / "p", editor=SEAMS)
    with patched(lm, patch("gpt2")), pytest.raises(DataError, match="p: changes the model"):
        patch_file.load_patch(tmp_path / "p", lm)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("Part", "has no part 'Shift'; install the version that saved the patch"),  # the part is gone
        ("Other", "cannot make its part 'Shift' again (KeyError: 'radius'); install the version"),  # and here another
        ("", "holds 0 editors"),
        (None, "no such file"),
    ],
)
def test_an_editor_that_no_longer_has_the_part(tiny, edits, tmp_path: Path, code: str | None, message: str) -> None:
    lm, file, path = tiny("gpt2"), tmp_path / "seams.py", tmp_path / "p"
    source = Path(SEAMS).read_text()
    file.write_text(source)
    patch_file.save_patch(find(str(file))().edit(lm, edits[:1]), lm, path, editor=str(file))
    patch_file.load_patch(path, lm)
    changes = {
        "Part": source.replace("Shift", "Push"),
        "Other": source.replace('settings["kinds"]', 'settings["radius"]'),
        "": "",
    }
    if code is None:
        file.unlink()
    else:
        file.write_text(changes[code])
    with pytest.raises(DataError) as caught:
        patch_file.load_patch(path, lm)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_part_is_not_made(tiny, patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can only name parts: it cannot have the program call something else of the editor's module."""
    lm = tiny("gpt2")
    patch_file.save_patch(patch("gpt2"), lm, tmp_path / "p", editor=SEAMS)
    head, tensors = tensor_file.read_tensors(tmp_path / "p", "patch", 1)
    for name in ("Seams", "torch", "LM", "__builtins__"):
        head["parts"]["logits"]["class"] = name
        tensor_file.write_tensors(tmp_path / "p", kind="patch", version=1, manifest=head, tensors=tensors)
        with pytest.raises(DataError, match=f"has no part '{name}'"):
            patch_file.load_patch(tmp_path / "p", lm)


def test_damage_another_kind_and_a_newer_format_are_refused(tiny, patch, tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "p"
    patch_file.save_patch(patch("gpt2"), lm, path, editor=SEAMS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="p: not a readable patch"):
        patch_file.load_patch(path, lm)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="p: the tensors are not what was written; make it again"):
        patch_file.load_patch(path, lm)
    for kind, version, message in (("fitted editor", 1, "holds no patch but a fitted"), ("patch", 2, "has format 2")):
        tensor_file.write_tensors(path, kind=kind, version=version, manifest={}, tensors={})
        with pytest.raises(DataError, match=message):
            patch_file.load_patch(path, lm)


def test_a_weight_without_its_other_half_is_named(tiny, patch, tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "p"
    patch_file.save_patch(patch("gpt2"), lm, path, editor=SEAMS)
    head, tensors = tensor_file.read_tensors(path, "patch", 1)
    del tensors[f"weights/{lm.down(1)}::right"]
    tensor_file.write_tensors(path, kind="patch", version=1, manifest=head, tensors=tensors)
    with pytest.raises(DataError, match=rf"p: '{lm.down(1)}' holds \['left'\], expected left and right, or value"):
        patch_file.load_patch(path, lm)


def test_a_failed_write_leaves_the_earlier_patch(tiny, patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, path = tiny("gpt2"), tmp_path / "p"
    patch_file.save_patch(patch("gpt2"), lm, path, editor=SEAMS)
    before = path.read_bytes()

    def full(tensors: Any, target: Path, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(UsageError, match=r"p: cannot be written \(No space left on device\); choose another place"):
        patch_file.save_patch(Patch(), lm, path, editor="none")
    assert path.read_bytes() == before
    patch_file.load_patch(path, lm)
