"""Features of a sparse autoencoder: read from its files, chosen by edits, and set in what a block writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from tiny_models import save_autoencoder

from editors.sae import Clamps, Sae
from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, UsageError
from harness.methods.autoencoder import read_autoencoder
from harness.models.activations import capture_activations
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

EDITS = [
    Edit("a", "{} was born in", "Ada Velmont", "Rome", "Oslo, Norway"),
    Edit("b", "The home of {} is", "Hugo Lantern", "Oslo, Norway", "Rome"),
]


def written(lm: LM, text: str | list[int], patch: Patch | None = None, layer: int = 1) -> Tensor:
    """What a block hands on, ``[tokens, d]``."""
    rows, above = lm.batch([lm.encode(text) if isinstance(text, str) else text]), lm.arch.block(layer + 1)
    with patched(lm, patch or Patch()):
        return capture_activations(lm, rows, inputs=[above]).inputs[above][0]


# --- its files --------------------------------------------------------------------------------------------------------


def test_a_feature_is_active_by_its_formula(tmp_path: Path) -> None:
    """``max((h - b_dec) W_enc + b_enc, 0)``, by SAELens' file; as it is in ``h`` where ``b_dec`` is not taken off."""
    held = save_autoencoder(tmp_path / "whole", width=6, features=9)
    save_autoencoder(tmp_path / "plain", width=6, features=9, apply_b_dec_to_input=False, architecture="standard")
    h = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for folder, before in (("whole", held["b_dec"]), ("plain", torch.zeros(6))):
        read = read_autoencoder(tmp_path / folder)
        expected = torch.relu((h - before) @ held["W_enc"] + held["b_enc"])
        torch.testing.assert_close(read.activations(h), expected)
        torch.testing.assert_close(read.feature(4).activation(h), expected[:, 4])
        assert read.layer == 1 and torch.equal(read.feature(4).decoder, held["W_dec"][4])


def test_a_jump_is_what_exceeds_the_threshold(tmp_path: Path) -> None:
    """SAELens' file and Gemma Scope's say the same; what is not above the threshold is 0, above it is whole."""
    held = save_autoencoder(tmp_path / "a", width=6, features=9, architecture="jumprelu", apply_b_dec_to_input=False)
    threshold = torch.linspace(0, 1, 9)
    save_file({**held, "threshold": threshold}, tmp_path / "a" / "sae_weights.safetensors")
    (tmp_path / "b").mkdir()
    named = {**held, "threshold": threshold}
    np.savez(tmp_path / "b" / "params.npz", **{name: each.numpy() for name, each in named.items()})
    h = 2 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    raw = h @ held["W_enc"] + held["b_enc"]
    for folder, layer in (("a", 1), ("b", None)):
        read = read_autoencoder(tmp_path / folder)
        torch.testing.assert_close(read.activations(h), raw * (raw > threshold))
        assert read.layer == layer
    assert bool(((raw > 0) & (raw <= threshold)).any())


@pytest.mark.parametrize(("name", "layer"), [("blocks.4.hook_resid_pre", 3), ("blocks.4.hook_mlp_out", None)])
def test_the_block_is_the_one_that_the_file_names(tmp_path: Path, name: str, layer: int | None) -> None:
    save_autoencoder(tmp_path, width=6, features=9, metadata={}, hook_name=name)
    assert read_autoencoder(tmp_path).layer == layer


def test_a_folder_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(DataError) as told:
            read_autoencoder(folder)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "there is no sae_weights.safetensors and no cfg.json" in refused(tmp_path / "none")
    held = save_autoencoder(tmp_path / "x", width=6, features=9)
    weights, config = tmp_path / "x" / "sae_weights.safetensors", tmp_path / "x" / "cfg.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:100])
    assert "cannot be read" in refused(tmp_path / "x")
    save_file({"W_enc": held["W_enc"]}, weights)
    assert "lacks b_enc, W_dec, b_dec; it has W_enc" in refused(tmp_path / "x")
    save_file({**held, "b_enc": torch.zeros(8)}, weights)
    assert "do not fit: (6, 9), (8,), (9, 6), (6,)" in refused(tmp_path / "x")
    weights.write_bytes(good)
    config.write_text("{")
    assert "cannot be read" in refused(tmp_path / "x")
    for said, expected in (
        ({"architecture": "topk"}, "a 'topk' autoencoder"),
        ({"architecture": "jumprelu"}, "no threshold for each of its 9 features"),
        ({"normalize_activations": "layer_norm"}, r"scales what it reads \(layer_norm\)".replace("\\", "")),
    ):
        config.write_text(json.dumps(said))
        assert expected in refused(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "params.npz").write_bytes(b"PK\x03\x04 cut")
    assert "cannot be read" in refused(tmp_path / "y")


# --- what is set ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_feature_has_its_value_at_every_token(tiny: Callable[[str], LM], tmp_path: Path, family: str) -> None:
    """Its direction has length 1 and is read as it is written: behind the change it is exactly as active as told."""
    lm = tiny(family)
    held = save_autoencoder(tmp_path, width=lm.arch.width, features=12)
    patch = Sae(path=str(tmp_path), strength=3.0).edit(lm, EDITS)
    (hook,) = patch.hooks.values()
    assert isinstance(hook, Clamps)
    ((number, clamp),) = hook.clamps.items()
    plain, changed = written(lm, "Greta Holm sings"), written(lm, "Greta Holm sings", patch)
    active = torch.relu((changed - held["b_dec"]) @ held["W_enc"] + held["b_enc"])[:, number]
    before = torch.relu((plain - held["b_dec"]) @ held["W_enc"] + held["b_enc"])[:, number]
    shift = (clamp.value - before)[:, None] * held["W_dec"][number]
    torch.testing.assert_close(changed - plain, shift, atol=2e-5, rtol=1e-4)
    on = before > 0
    torch.testing.assert_close(active[on], clamp.value.expand_as(active[on]), atol=2e-5, rtol=1e-4)


def test_the_feature_is_the_one_that_tells_new_answers_from_old(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    lm = tiny("llama")
    held = save_autoencoder(tmp_path, width=lm.arch.width, features=12)
    means = {}
    tops = []
    for old in (False, True):
        each = []
        for edit in EDITS:
            prompt = lm.encode(edit.text)
            said = lm.continuation(edit.text, edit.says(str(edit.target_old) if old else edit.target))
            states = written(lm, prompt + said)[len(prompt) :]
            active = torch.relu((states - held["b_dec"]) @ held["W_enc"] + held["b_enc"])
            each.append(active.mean(0))
            tops += [] if old else [active.amax(0)]
        means[old] = torch.stack(each).mean(0)
    order = (means[False] - means[True]).argsort(descending=True).tolist()
    (hook,) = Sae(path=str(tmp_path), k=2, strength=1.5).edit(lm, EDITS).hooks.values()
    assert isinstance(hook, Clamps) and list(hook.clamps) == order[:2]
    for number, clamp in hook.clamps.items():
        assert float(clamp.value) == pytest.approx(1.5 * float(torch.stack(tops).amax(0)[number]), rel=1e-4)


def test_later_values_replace_earlier_ones(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    save_autoencoder(tmp_path, width=lm.arch.width, features=12)
    chosen = Sae(path=str(tmp_path)).edit(lm, EDITS)
    (name,) = chosen.hooks
    (number,) = chosen.hooks[name].clamps  # type: ignore[union-attr]
    twice = Sae(path=str(tmp_path), features=(number,), strength=4.0).edit(lm, EDITS)
    both = chosen + twice
    assert torch.equal(written(lm, "Greta Holm sings", both), written(lm, "Greta Holm sings", twice))
    assert not torch.equal(written(lm, "Greta Holm sings", both), written(lm, "Greta Holm sings", chosen))


def test_what_a_feature_is_set_to_does_not_grow_over_a_sequence(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    """Each operation sets a multiple of what the block itself writes, not of what earlier operations set."""
    lm = tiny("gpt2")
    save_autoencoder(tmp_path, width=lm.arch.width, features=12)
    (hook,) = Sae(path=str(tmp_path)).edit(lm, EDITS).hooks.values()
    method = Sae(path=str(tmp_path), features=tuple(hook.clamps))  # type: ignore[attr-defined]
    alone = method.edit(lm, EDITS)
    carried = alone
    for _ in range(3):
        with patched(lm, carried):
            again = method.edit(lm, EDITS, carried.memory)
        carried = carried + again
    (first,), (last,) = alone.hooks.values(), carried.hooks.values()
    for number, clamp in first.clamps.items():  # type: ignore[attr-defined]
        assert torch.equal(last.clamps[number].value, clamp.value)  # type: ignore[attr-defined]


def test_what_does_not_fit_is_told_in_one_line(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    save_autoencoder(tmp_path / "good", width=lm.arch.width, features=12)
    save_autoencoder(tmp_path / "narrow", width=8, features=12)
    save_autoencoder(tmp_path / "nowhere", width=lm.arch.width, features=12, metadata={})
    good = Sae(path=str(tmp_path / "good"))
    for editor, kind, expected in (
        (Sae(), UsageError, r"^sae: there is no autoencoder; give one with --set path=FOLDER$"),
        (Sae(path=str(tmp_path / "narrow")), ModelError, "states of 8 numbers, but tiny-gpt2 has states of 32"),
        (Sae(path=str(tmp_path / "nowhere")), UsageError, "does not say which block it reads; give 'layer'$"),
        (replace(good, features=(3, 12)), UsageError, "has features 0 to 11; 'features' names 12$"),
        (replace(good, layer=7), ModelError, "7"),
    ):
        with pytest.raises(kind, match=expected):
            editor.require(lm)
    with pytest.raises(DataError, match=r"^edit a: it names no old answer"):
        good.edit(lm, [replace(EDITS[0], target_old=None)])
    held = save_autoencoder(tmp_path / "silent", width=lm.arch.width, features=12)
    save_file({**held, "b_enc": held["b_enc"] - 1e3}, tmp_path / "silent" / "sae_weights.safetensors")
    silent = Sae(path=str(tmp_path / "silent"))
    with pytest.raises(DataError, match=r"no feature is more active on the new answers than on the old ones$"):
        silent.edit(lm, EDITS)
    with pytest.raises(DataError, match="feature 5 is not active on the new answers of edits a, b"):
        replace(silent, features=(5,)).edit(lm, EDITS)
