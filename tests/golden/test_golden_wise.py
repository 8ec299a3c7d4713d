"""WISE's memories against EasyEdit's code (zjunlp/EasyEdit at 14cea82), on a tiny Llama: what is merged, and when.

Each edit's own change is theirs here (``test_golden_wise_distance.py`` makes it); what becomes of the memories after it
is compared: ``P_wise_llama`` holds what is merged again, ``P_wise_retrieve_llama`` what stays apart.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.wise import Wise
from harness.editing.edit import Edit

DELTAS, MERGED = "P_wise_retrieve_llama", "P_wise_llama"
ROOT = Path(__file__).parents[2]


def made(golden: Any, monkeypatch: Any, memories: Any, *, shard: int = 1, merge_every: int = 2) -> list[Any]:
    """The states after each edit; their edits change the same weights in both of their modes."""
    inputs, theirs = golden.json(f"{DELTAS}/inputs.json"), golden.tensors(f"{DELTAS}/expected.safetensors")
    said = inputs["variants"]["retrieve_two_merges"]
    lm, rows = copy.copy(golden.lm("tiny-llama", "fp64")), {row["id"]: row for row in inputs["edits"]}
    object.__setattr__(lm, "text", str(ROOT / "harness" / "mini" / "text.txt"))
    method = Wise(
        layer=2,
        shard=shard,
        merge_every=merge_every,
        density=said["densities"],
        act_ratio=said["act_ratio"],
        memories=memories,
        distance="token",
        contexts=("{}",),
    )

    def theirs_of(_self: Wise, _lm: Any, rows: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        delta = theirs[f"fp64/retrieve_two_merges/{rows.edit.id}/delta"]
        return delta, given[2].moved(delta, None).min()

    monkeypatch.setattr(Wise, "_trained", theirs_of)
    states, memory = [], None
    for name in said["edits"]:
        memory = method.edit(lm, [Edit(name, rows[name]["prompt"], None, rows[name]["target_new"])], memory).memory
        states.append(memory)
    return states


def test_the_settings_of_both_folders_are_one(golden):
    """But for the mode, so that the changes of the one are those of the other."""
    one = golden.json(f"{MERGED}/inputs.json")["variants"]["merge_twice"]
    other = golden.json(f"{DELTAS}/inputs.json")["variants"]["retrieve_two_merges"]
    assert {key for key in one if one[key] != other[key]} == {"retrieve"}
    assert (one["save_freq"], one["merge_freq"], one["retrieve"]) == (1, 2, False)


@pytest.mark.parametrize("memories", ["merge", "mixed"])
def test_what_was_merged_is_merged_again(golden, close, monkeypatch, memories):
    theirs, states = golden.tensors(f"{MERGED}/expected.safetensors"), made(golden, monkeypatch, memories)
    for i in (1, 3):
        (delta,) = states[i].side.deltas
        close(delta, theirs[f"fp64/merge_twice/e{i}/merged_delta"], 1e-6, f"merged after {i}")
        assert states[i].merged == 1


def test_merged_memories_stay_apart_as_released(golden, close, monkeypatch):
    theirs, states = golden.tensors(f"{DELTAS}/expected.safetensors"), made(golden, monkeypatch, "retrieve")
    assert [(state.merged, len(state.side.deltas)) for state in states] == [(0, 1), (1, 1), (1, 2), (2, 2)]
    for i in range(2):
        close(states[-1].side.deltas[i], theirs[f"fp64/retrieve_two_merges/memory.{i}"], 1e-6, f"memory {i}")
    # A memory's threshold is the least of those that it was merged of.
    before, after = states[1].side.thresholds, states[3].side.thresholds
    assert float(after[0]) == float(before[0]) < float(after[1])


def test_a_full_memory_waits_for_its_merging_where_memories_are_merged(golden, monkeypatch):
    states = made(golden, monkeypatch, "merge", shard=2, merge_every=4)
    assert [torch.isfinite(state.side.thresholds).tolist() for state in states] == [
        [True],
        [False],
        [False, True],
        [True],
    ]
    assert float(states[3].side.thresholds[0]) == pytest.approx(states[3].least)
    for memories in ("mixed", "retrieve"):
        apart = made(golden, monkeypatch, memories, shard=2, merge_every=4)
        assert all(bool(torch.isfinite(state.side.thresholds).all()) for state in apart)


def test_merged_memories_have_one_threshold(golden, monkeypatch):
    states = made(golden, monkeypatch, "merge", shard=2, merge_every=4)
    assert [state.least for state in states] == sorted((state.least for state in states), reverse=True)
    assert float(states[2].side.thresholds[1]) == pytest.approx(states[2].least)
