"""The hash of a tensor."""

from __future__ import annotations

import math

import pytest
import torch

from harness.io.hashes import combined_sha256, same_bits, tensor_sha256


def test_the_hash_of_a_tensor_knows_its_shape_and_type():
    zero = torch.zeros(2, 3)
    hashes = {tensor_sha256(t) for t in (zero, zero.T, zero.half(), torch.zeros(6), torch.zeros(0))}
    assert len(hashes) == 5
    assert tensor_sha256(zero.T) == tensor_sha256(torch.zeros(3, 2))


def test_the_hash_of_several_knows_their_names_and_no_order():
    assert combined_sha256({"a": "1", "b": "2"}) == combined_sha256({"b": "2", "a": "1"})
    assert combined_sha256({"a": "1", "b": "2"}) != combined_sha256({"a": "2", "b": "1"})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_the_same_bits_are_more_than_the_same_numbers(dtype: torch.dtype) -> None:
    one = torch.tensor([[math.nan, 0.0, 1.5], [2.0, -1.0, 4.0]]).to(dtype)
    assert same_bits(one, one.clone())
    assert same_bits(one.T, one.clone().T)
    signed = one.clone()
    signed[0, 1] = -0.0
    assert not same_bits(one, signed)
    assert not same_bits(one, one.T.reshape(2, 3))
    assert not same_bits(one, one.double() if dtype != torch.float64 else one.float())
    assert not same_bits(one, one.reshape(3, 2))
