"""MEMOIR as SasyaTitech/NAS at 5acab48 has it, on a tiny Llama: masks, losses, the memory, routing.

The permutation and the background are theirs.  One of their cases ships; the others are read where the reference data
is.  Their loss divides the NLL of a row's target by all positions from the one before the prompt's end to the end of
the longest row, padding and an unrelated text included: the test counts them, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import memoir
from editors.memoir import Memoir, MemoirState
from harness.editing.edit import Edit
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched

FOLDER = "Q_memoir_llama"
LAYER = 2


@dataclass
class Theirs:
    """One case: what was asked for, and what came out."""

    lm: LM
    numbers: Any
    variant: str

    def __post_init__(self) -> None:
        self.inputs, self.stem = self.numbers.json(f"{FOLDER}/inputs.json"), f"fp64/{self.variant}"
        self.told = self.numbers.json(f"{FOLDER}/expected.json")[self.stem]
        self.tensors = self.numbers.tensors(f"{FOLDER}/expected.safetensors")
        self.said = self.inputs["variants"][self.variant]
        self.given = self.numbers.tensors(f"{FOLDER}/inputs.safetensors")
        self.losses: dict[str, list[float]] = {}

    def method(self) -> Memoir:
        said = self.said
        own = {name: said[name] for name in ("n_iter", "edit_lr", "top_k")}
        own |= {"threshold": said["irr_threshold"], "feature": said["prompt_feature_agg"]}
        return Memoir(layer=LAYER, routing="pass", weight_decay=1e-5, contexts=tuple(said["templates"]), **own)

    def states(self, monkeypatch: Any) -> list[MemoirState]:
        """Our states after each edit, with their permutation, background and denominators."""
        method, states, memory = self.method(), [], None
        begun, settled, background = Memoir.begun, memoir._settled, self.given["background"].mean(0)

        def begin(own: Memoir, lm: LM) -> MemoirState:
            state = begun(own, lm)
            side = replace(state.side, permutation=self.given["permutation"])
            return replace(state, side=replace(side, background=background) if side.background.any() else side)

        monkeypatch.setattr(Memoir, "begun", begin)
        monkeypatch.setattr(Memoir, "_background", lambda own, _: background * (own.feature == "mean_decentered"))
        for name in self.said["edits"]:
            seen: list[float] = []
            self.losses[name] = seen

            def watched(losses: list[float], seen: list[float] = seen) -> bool:
                seen[:] = losses
                return settled(losses)

            monkeypatch.setattr(memoir, "_settled", watched)
            monkeypatch.setattr(Memoir, "_shares", lambda _, rows, n=name: self.shares(n, len(rows.token)))
            row = next(row for row in self.inputs["edits"] if row["id"] == name)
            memory = method.edit(self.lm, [Edit(name, row["prompt"], None, row["target_new"])], memory).memory
            states.append(memory)
        return states

    def shares(self, edit: str, tokens: int) -> Tensor:
        """One over what their loss divides by, for each token of the target."""
        ends, width = self.told[edit]["last_prompt_token"][:-1], len(self.told[edit]["rows"][0])
        each = torch.tensor([1 / (len(ends) * (width - end)) for end in ends], dtype=torch.float64)
        return each.repeat_interleave(tokens // len(ends))


@pytest.fixture(params=["plain", "templates", "mean", "last"])
def theirs(request: Any, golden: Any) -> Theirs:
    lm = golden.lm("tiny-llama", "fp64")
    shipped = request.param == "plain"
    numbers = golden if shipped else type(golden)(request.getfixturevalue("shared") / "golden")
    return Theirs(lm, numbers, request.param)


def test_edits_are_theirs(theirs, close, monkeypatch):
    """The memory after each edit, the loss of each step, and the masks."""
    states = theirs.states(monkeypatch)
    for state, name in zip(states, theirs.said["edits"], strict=True):
        whole = theirs.tensors.get(f"{theirs.stem}/{name}/new_weight")
        if whole is not None:
            close(state.side.memories[0], whole, 1e-6, name)
        assert theirs.losses[name] == pytest.approx(theirs.told[name]["losses"], rel=1e-6)
        assert len(state.side.masks) == theirs.told[name]["n_masks"]
    assert torch.equal(states[-1].side.masks, theirs.tensors[f"{theirs.stem}/masks"].bool())


def test_probes_are_routed_as_theirs(theirs, monkeypatch):
    """The overlaps of a probe, the mask that it takes, and the next token that it is given."""
    side, lm, used = theirs.states(monkeypatch)[-1].side, theirs.lm, set()
    for i, (probe, told) in enumerate(zip(theirs.inputs["probes"], theirs.told["probes"], strict=True)):
        seen: list[Tensor] = []

        def hook(hidden: Tensor, step: Step, seen: list[Tensor] = seen) -> Tensor:
            seen.append(side.overlaps(side.features(step.entered, step))[0, -1])
            return side(hidden, step)

        with patched(lm, Patch(hooks={lm.arch.down_of(LAYER): hook})), torch.no_grad():
            log_p = lm.model(input_ids=torch.tensor([lm.encode(probe)])).logits[0, -1].log_softmax(-1)
        assert seen[0].tolist() == pytest.approx(told["overlap_with_each_mask"], abs=1e-6)
        taken = int(seen[0].argmax()) if float(seen[0].max()) >= side.threshold else None
        assert taken == told["used"]
        used.add(taken)
        theirs_p = theirs.tensors.get(f"{theirs.stem}/probe_logprobs_last.{i}")
        if theirs_p is not None:
            assert torch.allclose(log_p, theirs_p.to(log_p), atol=2e-5), probe
    assert (None in used) is (theirs.variant == "last")
