"""Models whose weights torchao has quantised: edited at every seam, of the weights where they are dequantised."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.errors import ModelError
from harness.io.hashes import inner_tensors, tensor_sha256
from harness.models.dequantised import dequantised
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.models.weight_hashes import WeightHashes
from harness.patches.patch import patched

OTHERS: dict[str, dict[str, object]] = {"rag": {}, "grace": {"layer": 1, "n_iter": 5}}
QUICK: dict[str, dict[str, object]] = {
    "rome": {"cov_tokens": 2000, "v_steps": 3},
    "memit": {"cov_tokens": 2000, "v_steps": 3},
    "alphaedit": {"cov_tokens": 2000, "v_steps": 3, "nullspace_threshold": 0.4},
    "ft_m": {"steps": 3, "lr": 5e-3},
}
OF_WEIGHTS: dict[str, dict[str, object]] = {
    "rome": {"layers": [1]},
    "memit": {"layers": [1]},
    "ft_m": {"layers": [1]},
    "alphaedit": {"layers": [1]},
}


@pytest.fixture(scope="module")
def eight_bit(fresh: Callable[..., LM]) -> LM:
    """A tiny Llama in bfloat16 whose linear modules hold int8 and a scale for each output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        lm = fresh("llama", dtype=torch.bfloat16)
        quantization.quantize_(lm.model, quantization.Int8WeightOnlyConfig())
    return LM.wrap(lm.model, lm.tokenizer, name="tiny in int8", text=lm.text)


def logits(lm: LM, text: str = "Ada Velmont was born in") -> torch.Tensor:
    rows = lm.batch([lm.encode(text)])
    with torch.no_grad():
        found: torch.Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return found


def test_it_is_known_by_its_codes_and_scales(eight_bit: LM) -> None:
    weight = eight_bit.parameter(eight_bit.down(1))
    parts = inner_tensors(weight)
    assert {"qdata", "scale"} <= parts.keys() and parts["qdata"].dtype == torch.int8
    eight_bit.check_finite()
    before, known = eight_bit.state_hashes(), WeightHashes()
    also, one = known.of(eight_bit), tensor_sha256(weight.detach())
    guard = Guard.of(eight_bit)
    for name in ("qdata", "scale"):
        kept = parts[name].clone()
        parts[name].view(-1)[0] += 1
        assert eight_bit.state_hashes() != before
        assert known.of(eight_bit) != also
        assert guard.differing() == [eight_bit.down(1)]
        parts[name].copy_(kept)
    assert eight_bit.state_hashes() == before
    assert known.of(eight_bit) == also
    assert tensor_sha256(weight.detach()) == one
    assert not guard.differing()


def test_a_scale_that_is_no_number_is_seen(eight_bit: LM) -> None:
    scale = inner_tensors(eight_bit.parameter(eight_bit.down(1)))["scale"]
    kept = scale.clone()
    scale.view(-1)[0] = torch.nan
    try:
        with pytest.raises(ModelError, match=rf"the weight '{eight_bit.down(1)}' holds a NaN or an infinity"):
            eight_bit.check_finite()
    finally:
        scale.copy_(kept)


@pytest.mark.parametrize("name", OTHERS)
def test_editors_of_other_seams_work(eight_bit: LM, edits: list[Edit], name: str) -> None:
    guard, before = Guard.of(eight_bit), logits(eight_bit)
    patch = compose(name).build(eight_bit, OTHERS[name], seed=0).edit(eight_bit, edits)
    text = "Ada Velmont was born in"
    with patched(eight_bit, patch):
        changed = logits(eight_bit, text if patch.prompt is None else patch.prompt(text))
    assert changed.shape != before.shape or not torch.equal(changed, before)
    assert torch.equal(logits(eight_bit), before)
    assert not guard.differing()


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_editors_of_weights_are_refused_in_one_line(eight_bit: LM, edits: list[Edit], name: str) -> None:
    guard = Guard.of(eight_bit)
    with pytest.raises(ModelError, match=r"^'model\.layers\.1\.mlp\.down_proj\.weight' is quantised \(int8\)") as told:
        compose(name).build(eight_bit, OF_WEIGHTS[name], seed=0).edit(eight_bit, edits)
    assert "\n" not in str(told.value)
    assert not guard.differing()


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_editors_of_weights_edit_what_is_dequantised(eight_bit: LM, edits: list[Edit], name: str) -> None:
    """What stands there meanwhile is what torchao says that its codes and scales are."""
    settings = {**OF_WEIGHTS[name], **QUICK.get(name, {})}
    guard, before, own = Guard.of(eight_bit), logits(eight_bit), eight_bit.parameter(eight_bit.down(1))
    method = compose(name).build(eight_bit, settings, seed=0)
    with dequantised(eight_bit, method.edited_modules(eight_bit), name) as modules:
        assert modules == (eight_bit.arch.down_of(1),)
        parts = inner_tensors(own)
        said = parts["qdata"].double() * parts["scale"].double().reshape(-1, 1)
        assert torch.equal(eight_bit.matrix(eight_bit.down(1)), said.bfloat16())
        apart = float((logits(eight_bit) - before).norm() / before.norm())
        assert apart < 0.02
        patch = method.edit(eight_bit, edits[:1])
        with patched(eight_bit, patch):
            assert float((logits(eight_bit) - before).norm() / before.norm()) > apart
    assert torch.equal(logits(eight_bit), before)
    assert not guard.differing()
