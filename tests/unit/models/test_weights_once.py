"""The sha256 of weights is computed once for the bytes that a weight has, and is what it always was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.io.cache import cache_folder
from harness.io.hashes import combined_sha256, tensor_sha256, tensor_xxh3
from harness.models import published
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.models.published import Published, fast_hashes
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors of which a sha256 was computed."""
    found: list[Tensor] = []

    def counting(tensor: Tensor) -> str:
        found.append(tensor)
        return tensor_sha256(tensor)

    monkeypatch.setattr(published, "tensor_sha256", counting)
    return found


def test_a_sha256_is_that_of_type_shape_and_bytes() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    body = b"torch.bfloat16(3, 2)" + tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert Published().of({"a": tensor}) == {"a": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("change", ["one bit", "the shape", "the type", "the sign of zero"])
def test_a_fast_hash_tells_all_that_a_sha256_tells(change: str) -> None:
    one = torch.zeros(4, 4)
    other = {
        "one bit": torch.zeros(4, 4).index_put_((torch.tensor(0), torch.tensor(1)), torch.tensor(1e-45)),
        "the shape": torch.zeros(2, 8),
        "the type": torch.zeros(4, 4, dtype=torch.int32),
        "the sign of zero": -torch.zeros(4, 4),
    }[change]
    assert tensor_xxh3(one) == tensor_xxh3(one.clone()) != tensor_xxh3(other)
    assert tensor_sha256(one) != tensor_sha256(other)


def test_tensors_that_share_memory_are_told_apart_by_how_they_lie() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    views = {"whole": base, "turned": base.T, "flat": base.reshape(-1), "part": base[:, :2], "same": base}
    assert fast_hashes(views) == {name: tensor_xxh3(view) for name, view in views.items()}
    empty = {"a": torch.zeros(0, 2), "b": torch.zeros(2, 0)}
    assert fast_hashes(empty) == {name: tensor_xxh3(tensor) for name, tensor in empty.items()}


def test_only_what_was_written_is_hashed_again(fresh: Callable[[str], LM], hashed: list[Tensor]) -> None:
    lm = fresh("gpt2")
    before, whole = lm.fingerprint(), len(hashed)
    assert lm.fingerprint() == before
    assert whole == len(hashed) > 1
    weight = lm.parameter(f"{lm.down(0)}.weight") if not lm.down(0).endswith(".weight") else lm.parameter(lm.down(0))
    kept = weight.detach().clone()
    weight.data[0, 0] += 1  # past what torch counts
    assert lm.fingerprint() != before
    assert len(hashed) == whole + 1
    weight.data.copy_(kept)
    assert lm.fingerprint() == before
    assert len(hashed) == whole + 1


def test_a_guard_sees_one_bit_and_computes_no_sha256(fresh: Callable[[str], LM], hashed: list[Tensor]) -> None:
    lm = fresh("gpt2")
    guard = Guard.of(lm)
    assert guard.differing() == []
    name, tensor = next((n, p) for n, p in lm.model.named_parameters() if p.dim() == 2)
    bits = tensor.data.view(torch.int32)
    bits[0, 0] ^= 1
    assert name in guard.differing()
    bits[0, 0] ^= 1
    assert guard.differing() == []
    assert hashed == []


def test_a_run_hashes_the_whole_model_once(
    checkpoint: Callable[..., Path], nudge: str, tmp_path: Path, hashed: list[Tensor]
) -> None:
    rows = tmp_path / "my.jsonl"
    rows.write_text('{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}\n')
    plan = Plan(str(checkpoint("gpt2")), nudge, {"scale": 3.0}, str(rows), mode="batch", exam=("probability",))
    kept = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu", save_edits=True))
    lm = load(plan.model, device="cpu")
    state = lm.model.state_dict()
    different = {tensor_xxh3(tensor) for tensor in state.values()}
    assert len(hashed) == len(different) + len(kept.weights["edited"])
    assert kept.model["sha256"] == combined_sha256({name: tensor_sha256(tensor) for name, tensor in state.items()})
    assert kept.weights["before"] == kept.weights["restored"] != kept.weights["edited"]
    assert all(tensor_sha256(lm.parameter(name)) == sha256 for name, sha256 in kept.weights["before"].items())


def test_the_hashes_of_a_large_model_are_kept_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    large = {"a": torch.ones(2**23), "b": torch.zeros(2**23)}
    small = {"a": torch.ones(4)}
    Published().of_model(small)
    assert not (cache_folder() / "weights").exists()
    found = Published().of_model(large)
    assert len(hashed) == 3
    assert Published().of_model(large) == found
    assert len(hashed) == 3
    large["b"][7] = 1
    assert Published().of_model(large)["b"] != found["b"]
    assert len(hashed) == 5
    for path in (cache_folder() / "weights").glob("*.json"):
        path.write_text('{"sha256": {"a": 1}}')
    large["b"][7] = 0
    assert Published().of_model(large) == found
    assert "they are computed again" in caplog.text
