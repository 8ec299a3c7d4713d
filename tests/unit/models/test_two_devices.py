"""A model over two devices: a stand-in of :mod:`two_devices`, which refuses what two accelerators would refuse.

LoRA is not among the editors: peft moves its adapters past what the stand-in can follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from two_devices import FIRST, SECOND, Devices, place_of, spread_over_two

from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.methods import decompositions, value_cache
from harness.models.lm import LM, load
from harness.patches.patch import Patch, patched

SETTINGS: dict[str, dict[str, object]] = {
    "rome": {"v_steps": 3, "cov_tokens": 4000, "layers": [2]},
    "memit": {"v_steps": 3, "cov_tokens": 4000, "layers": [1, 2, 3]},
    "alphaedit": {"v_steps": 3, "cov_tokens": 4000, "layers": [1, 2, 3]},
    "ultraedit": {"layers": [1, 2]},
    "ft_m": {"layers": [2], "steps": 3},
    "grace": {"layer": 2, "n_iter": 5},
    "wise": {"layer": 2, "n_iter": 3},
    "rag": {},
}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[LM]:
    """The shipped model, the lower half of it on one device and the upper half on another."""
    for module in (decompositions, value_cache):
        monkeypatch.setattr(module, "rounding_of", lambda device: ["a stand-in"])
    lm = load("mini", device="cpu")
    # A tied weight lies on one device; accelerate makes two of it.
    own = torch.nn.Parameter(lm.model.transformer.wte.weight.detach().clone(), requires_grad=False)
    lm.model.lm_head.weight = own
    blocks = {lm.arch.block(i): FIRST if i < 2 else SECOND for i in range(lm.arch.layers)}
    ends = {"transformer.wte": FIRST, "transformer.wpe": FIRST, "transformer.ln_f": SECOND, "lm_head": SECOND}
    with spread_over_two(lm.model, ends | blocks):
        yield lm


@pytest.fixture(scope="module")
def one() -> LM:
    return load("mini", device="cpu")


def logits(lm: LM, text: str) -> torch.Tensor:
    rows = lm.batch([lm.encode(text)])
    with torch.no_grad():
        found: torch.Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return found


def said(lm: LM, patch: Patch) -> torch.Tensor:
    text = "Ada Velmont was born in"
    with patched(lm, patch):
        return logits(lm, text if patch.prompt is None else patch.prompt(text))


def test_the_stand_in_refuses_what_torch_refuses() -> None:
    with Devices():
        left, right = torch.ones(2, 2).to(FIRST), torch.ones(2, 2, device=SECOND)
        assert (left.device, right.device, (left @ left).sum().device) == (FIRST, SECOND, FIRST)
        for mixed in (lambda: left @ right, lambda: left + torch.ones(2), lambda: torch.cat([left, right])):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError, match="indices should be"):
            left[torch.tensor([0], device=SECOND)]
        with pytest.raises(TypeError, match="can't convert xpu:0"):
            left.numpy()
        assert (left.to(SECOND) + right).device == SECOND
        assert (left + torch.tensor(2.0)).device == left[torch.tensor([0])].device == FIRST
        leaf = torch.ones(2, device=SECOND, requires_grad=True)
        (slope,) = torch.autograd.grad((leaf * right[0]).sum(), [leaf])
        assert slope.device == SECOND


@pytest.mark.parametrize("name", SETTINGS)
def test_an_edit_over_two_devices_is_that_on_one(one: LM, two: LM, edits: Sequence[Edit], name: str) -> None:
    """Numbers are computed alike, so they are equal; and each change lies on the device that holds its layer."""
    there = compose(name).build(two, SETTINGS[name], seed=0).edit(two, edits[:2])
    here = compose(name).build(one, SETTINGS[name], seed=0).edit(one, edits[:2])
    assert (two.device, two.device_at(two.arch.down_of(2))) == (FIRST, SECOND)
    assert there.weights.keys() == here.weights.keys()
    for where, delta in there.weights.items():
        held = FIRST if two.arch.block(2) not in where and two.arch.block(3) not in where else SECOND
        assert {place_of(tensor) for tensor in delta.tensors().values()} == {held}, where
        assert torch.equal(delta.dense().cpu(), here.weights[where].dense())
    moved = said(two, there)
    assert place_of(moved) == SECOND
    assert torch.equal(moved.cpu(), said(one, here))
    digests = two.state_hashes()
    said(two, there)
    assert two.state_hashes() == digests
