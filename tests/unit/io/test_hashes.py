"""The hash of a tensor."""

from __future__ import annotations

import torch

from harness.io.hashes import combined_sha256, tensor_sha256


def test_the_hash_of_a_tensor_knows_its_shape_and_type():
    zero = torch.zeros(2, 3)
    hashes = {tensor_sha256(t) for t in (zero, zero.T, zero.half(), torch.zeros(6), torch.zeros(0))}
    assert len(hashes) == 5
    assert tensor_sha256(zero.T) == tensor_sha256(torch.zeros(3, 2))


def test_the_hash_of_several_knows_their_names_and_no_order():
    assert combined_sha256({"a": "1", "b": "2"}) == combined_sha256({"b": "2", "a": "1"})
    assert combined_sha256({"a": "1", "b": "2"}) != combined_sha256({"a": "2", "b": "1"})
