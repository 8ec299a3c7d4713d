"""A model whose weights are spread over memory and disk: edited, measured and restored as in one piece."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.errors import ModelError, UsageError
from harness.methods import second_moments
from harness.models import reading
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.offload import Weights, call_with, count_parameters, resident
from harness.models.weight_hashes import WeightHashes
from harness.patches.patch import Patch, patched
from harness.runs.plan import Plan
from harness.runs.prepare import prepare_run
from harness.runs.resolve import resolve

ON_DISK = (1, 2)
ROUNDING = 1e-5
"""Relative: products of fetched weights lie at other places in memory, where sums may be made in another order."""

SETTINGS: dict[str, dict[str, object]] = {
    "rome": {"v_steps": 3, "cov_tokens": 4000, "layers": [1]},
    "memit": {"v_steps": 3, "cov_tokens": 4000, "layers": [0, 1, 2]},
    "alphaedit": {"v_steps": 3, "cov_tokens": 4000, "layers": [0, 1, 2]},
    "ft_m": {"layers": [1], "steps": 3},
    "grace": {"layer": 2},
    "lora": {"steps": 2},
    "rag": {},
}


def spread_over(layers: Sequence[int], count: int) -> dict[str, str]:
    """A map of GPT-2 that puts some blocks on disk."""
    parts = dict.fromkeys(["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"], "cpu")
    return parts | {f"transformer.h.{i}": "disk" if i in layers else "cpu" for i in range(count)}


@pytest.fixture(scope="module")
def whole() -> LM:
    return load("mini", device="cpu")


@pytest.fixture(scope="module")
def spread(whole: LM, tmp_path_factory: pytest.TempPathFactory) -> LM:
    folder = tmp_path_factory.mktemp("offloaded")
    return load("mini", device_map=spread_over(ON_DISK, whole.arch.layers), offload_folder=folder)


def logits(lm: LM, text: str = "Ada Velmont was born in") -> torch.Tensor:
    rows = lm.batch([lm.encode(text)])
    with torch.no_grad():
        found: torch.Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return found


def test_its_weights_are_those_of_the_whole_model(whole: LM, spread: LM) -> None:
    away = [name for name, parameter in spread.model.named_parameters() if parameter.is_meta]
    assert {name.split(".")[2] for name in away} == {"1", "2"}
    assert spread.state_hashes() == whole.state_hashes()
    assert spread.fast_hashes() == whole.fast_hashes()
    assert WeightHashes().of(spread) == WeightHashes().of(whole)
    assert count_parameters(spread.model) == count_parameters(whole.model)
    assert torch.equal(spread.parameter(spread.down(1)), whole.parameter(whole.down(1)))
    assert spread.hashes([spread.down(2)]) == whole.hashes([whole.down(2)])
    assert (spread.device, spread.dtype) == (whole.device, whole.dtype)
    assert torch.equal(logits(spread), logits(whole))


def test_half_precision_is_fetched_as_it_is_computed_with(whole: LM, tmp_path: Path) -> None:
    place = spread_over(ON_DISK, whole.arch.layers)
    half, there = (load("mini", dtype="bfloat16", device_map=one, offload_folder=tmp_path) for one in (place, "cpu"))
    assert half.state_hashes() == there.state_hashes()
    assert half.parameter(half.down(1)).dtype == torch.bfloat16
    assert torch.equal(logits(half), logits(there))


def test_max_memory_decides_what_lies_on_disk(whole: LM, tmp_path: Path) -> None:
    lm = load("mini", device_map="auto", max_memory="cpu=12MB", offload_folder=tmp_path)
    places = set(lm.model.hf_device_map.values())
    assert places == {"cpu", "disk"}
    held = sum(p.nbytes for p in lm.model.parameters() if not p.is_meta)
    assert held <= 12e6 < sum(p.nbytes for p in whole.model.parameters())
    assert lm.fingerprint() == whole.fingerprint()


def test_a_model_that_lies_on_disk_as_a_whole(whole: LM, tmp_path: Path) -> None:
    lm = load("mini", device_map="auto", max_memory={"cpu": "600KB"}, offload_folder=tmp_path)
    assert set(lm.model.hf_device_map.values()) == {"disk"}
    assert lm.device == whole.device
    assert lm.fingerprint() == whole.fingerprint()
    assert torch.equal(logits(lm), logits(whole))


def made(lm: LM, name: str, edits: Sequence[Edit]) -> Patch:
    editor = compose(name).build(lm, SETTINGS[name], seed=0)
    guard = Guard.of(lm)
    patch = editor.edit(lm, edits)
    assert not guard.differing()
    return patch


@pytest.mark.parametrize("name", SETTINGS)
def test_an_edit_is_that_of_the_whole_model(whole: LM, spread: LM, edits: list[Edit], name: str) -> None:
    """The change, and what the model says under it; afterwards every weight is bitwise what it was."""
    one, other = (made(lm, name, edits[:2]) for lm in (whole, spread))
    assert one.weights.keys() == other.weights.keys()
    for where, delta in one.weights.items():
        apart = (delta.dense() - other.weights[where].dense()).norm() / delta.dense().norm().clamp(min=1e-12)
        assert float(apart) <= ROUNDING, where
    before, digests = logits(spread), spread.state_hashes()
    text = "Ada Velmont was born in"
    asked = [text if patch.prompt is None else patch.prompt(text) for patch in (one, other)]
    assert asked[0] == asked[1]
    with patched(whole, one), patched(spread, other):
        said = [logits(lm, asked[0]) for lm in (whole, spread)]
    assert float((said[0] - said[1]).abs().max()) <= ROUNDING * float(said[0].abs().max())
    assert name == "rag" or not torch.equal(said[1], before)
    assert torch.equal(logits(spread), before)
    assert spread.state_hashes() == digests
    assert all(spread._stored(where).is_meta for where in one.weights if where.split(".")[2] in ("1", "2"))


def test_a_patch_holds_while_layers_are_fetched_and_inside_another(spread: LM, edits: list[Edit]) -> None:
    patch = made(spread, "rome", edits[:1])
    (name,) = patch.weights
    before, digest = logits(spread), spread.hashes([name])
    with pytest.raises(ZeroDivisionError), patched(spread, patch):
        once = logits(spread)
        with patched(spread, patch):
            twice = logits(spread)
        assert torch.equal(logits(spread), once)
        assert not torch.equal(once, before)
        assert not torch.equal(twice, once)
        raise ZeroDivisionError
    assert torch.equal(logits(spread), before)
    assert spread.hashes([name]) == digest


def test_parameters_in_place_of_fetched_ones_are_computed_with(whole: LM, spread: LM) -> None:
    name = spread.down(1)
    held = {name: 2 * whole.parameter(name).detach()}
    rows = whole.batch([whole.encode("Ada Velmont was born in")])
    said = [call_with(lm.model, held, input_ids=rows.ids, use_cache=False).logits for lm in (whole, spread)]
    assert torch.equal(*said)
    assert not torch.equal(said[1], logits(spread))


def test_weights_are_fetched_one_at_a_time(spread: LM) -> None:
    weights = Weights(spread.model, spread.model.state_dict())
    assert {name.split(".")[2] for name in weights.fetched} == {"1", "2"}
    assert all(not tensor.is_meta for tensor in weights.values())
    assert all(spread._stored(name).is_meta for name in weights.fetched)


def test_tied_weights_that_lie_elsewhere_are_not_written(tmp_path: Path, whole: LM) -> None:
    place = spread_over([], whole.arch.layers) | {"transformer.wte": "disk", "lm_head": "disk"}
    lm = load("mini", device_map=place, offload_folder=tmp_path)
    assert lm.fingerprint() == whole.fingerprint()
    assert lm.device == whole.device
    assert count_parameters(lm.model) == count_parameters(whole.model)
    told = r"'lm_head.weight' is tied to another weight and lies on disk"
    with pytest.raises(ModelError, match=told), resident(lm.model, ["lm_head.weight"]):
        pass


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"max_memory": "cpu=1GB"},
            "max_memory is cpu=1GB without device_map, which it belongs to; give device_map auto",
        ),
        ({"device_map": "auto", "max_memory": "cpu"}, "max_memory: 'cpu' is not DEVICE=BYTES; give DEVICE=BYTES,..."),
        ({"device_map": "auto", "max_memory": "cpu=6ZB"}, "max_memory: '6ZB' of cpu is no size"),
        ({"device_map": "auto", "max_memory": {"7": "6GB"}}, "max_memory: '7' is no device of this machine"),
        ({"device_map": "everywhere"}, "device_map 'everywhere' cannot be used .*give auto, balanced"),
        ({"device_map": "transformer=moon"}, "device_map: device 'moon' of 'transformer' cannot be used"),
        (
            {"device_map": {"": "cpu", "transformer.h.77": "disk"}},
            "'transformer.h.77' is not a module of mini",
        ),
        ({"device_map": "/nowhere/map.json"}, "device_map: /nowhere/map.json cannot be read"),
        ({"device_map": "auto", "offload_folder": "/proc/none/x"}, "offload_folder: /proc/none/x cannot be made"),
    ],
)
def test_what_cannot_be_placed_is_told_in_one_line(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        load("mini", **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_map_in_a_file(tmp_path: Path, whole: LM) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(spread_over([0], whole.arch.layers)))
    assert load("mini", device_map=str(path), offload_folder=tmp_path).model.hf_device_map["transformer.h.0"] == "disk"
    path.write_text("[1]")
    with pytest.raises(UsageError, match="holds a list, expected an object of modules and devices"):
        load("mini", device_map=str(path))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reading, "_loaded", full)
    with pytest.raises(ModelError, match="mini: the disk of the offload folder is full; name a larger one"):
        load("mini", device_map="auto", offload_folder=tmp_path)


def test_files_that_vanish_are_told_in_one_line(
    whole: LM, tmp_path: Path, checkpoint: Callable[..., Path], edits: list[Edit]
) -> None:
    path = checkpoint("gpt2")
    layers = load(str(path), device="cpu").arch.layers
    lm = load(str(path), device_map=spread_over([1], layers), offload_folder=tmp_path)
    lm.model.get_submodule("transformer.h.1.mlp.c_proj")._hf_hook.weights_map.dataset.index[
        "transformer.h.1.mlp.c_proj.weight"
    ]["safetensors_file"] = str(tmp_path / "gone.safetensors")
    with pytest.raises(ModelError, match="a weight 'weight' that was put on disk cannot be read") as error:
        lm.parameter(lm.down(1))
    assert "\n" not in str(error.value)


def test_a_device_without_room_for_statistics_is_told_before_anything_is_read(
    spread: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 512 x 512 numbers of 8 bytes, the moments of two layers and what is factored, 2 MiB each."""
    width = spread.arch.inner
    need = 3 * 8 * width**2
    monkeypatch.setattr(second_moments, "free_bytes", lambda device: need)
    second_moments.require_room(spread, [1, 2])
    monkeypatch.setattr(second_moments, "free_bytes", lambda device: need - 1)
    said = f"{need / 2**20:.1f} MiB"
    with pytest.raises(
        ModelError, match=f"mini: the second moments of layers 1, 2 need {said} on cpu, where {said} are"
    ):
        second_moments.require_room(spread, [2, 1])
    with pytest.raises(ModelError, match="the second moments of layers 1, 2 need"):
        prepare_run(resolve(Plan(editor="memit", settings={"layers": [1, 2]}, num_edits=2)))
