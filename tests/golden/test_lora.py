"""LoRA against EasyEdit's code (zjunlp/EasyEdit at 14cea82, through peft 0.13.2), from the same first adapters.

Their loss is the mean over all target tokens of a batch, ``token_mean="batch"`` here, which is that of the edit where a
batch holds one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.lora import Lora
from harness.models.lm import LM

FOLDER = "M_lora"
REL = {
    "tiny-gpt2": {"fp64": 1e-6, "fp32": 2e-4},
    # Norms and rotary tables of Llama stay in float32.
    "tiny-llama": {"fp64": 1e-4, "fp32": 5e-4},
}
LOSS = {"tiny-gpt2": {"fp64": 1e-8, "fp32": 1e-5}, "tiny-llama": {"fp64": 1e-5, "fp32": 1e-5}}


class Given(Lora):
    """LoRA whose adapters begin as told, and which notes how they end and the loss of each batch."""

    begins: dict[str, Tensor]
    ends: dict[str, Tensor]
    losses: list[float]

    @contextmanager
    def _adapters(self, lm: LM) -> Iterator[dict[str, tuple[str, str]]]:
        with super()._adapters(lm) as parts, torch.no_grad():
            assert {f"{name}.lora_A.weight" for name in parts} == self.begins.keys()
            for name, (a, _) in parts.items():
                lm.parameter(a).copy_(self.begins[f"{name}.lora_A.weight"])
            yield parts

    def _merged(self, parts: Any, start: Any, trained: Any) -> Any:
        for name, pair in parts.items():
            for kind, parameter in zip(("lora_A", "lora_B"), pair, strict=True):
                ended = trained.deltas[parameter].dense() + start[parameter]
                self.ends[f"{name}/{kind}"] = ended
        self.losses.extend(trained.losses)
        return super()._merged(parts, start, trained)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize(
    "variant", ["gpt2_batch1_two_steps", "gpt2_all_layers_attention", "llama_batch1", "llama_batch_token_mean"]
)
def test_their_adapters(golden, close, variant, precision):
    said = golden.json(f"{FOLDER}/inputs.json")["variants"][variant]
    theirs, given = (golden.tensors(f"{FOLDER}/{part}.safetensors") for part in ("expected", "inputs"))
    lm = golden.lm(said["model"], precision)
    method = Given(
        layers=tuple(said["layers"]) or None,
        modules=tuple(said["target_modules"]),
        rank=said["rank"],
        alpha=said["lora_alpha"],
        lr=said["lr"],
        steps=said["num_steps"],
        batch_size=said["batch_size"],
        threshold=0.0,
        token_mean="batch",
    )
    own = {key.split("/", 1)[1]: value for key, value in given.items() if key.startswith(f"{variant}/")}
    for name, value in (("begins", own), ("ends", {}), ("losses", [])):
        object.__setattr__(method, name, value)
    patch = method.edit(lm, list(golden.edits(said["case_ids"]).values()))
    rel, stem = REL[said["model"]][precision], f"{precision}/{variant}"
    wanted = {key.removeprefix(f"{stem}/"): value for key, value in theirs.items() if key.startswith(f"{stem}/")}
    assert wanted
    for name, value in wanted.items():
        module, _, kind = name.rpartition("/")
        found = patch.weights[f"{module}.weight"].dense() if kind == "change_out_in" else method.ends[name]
        close(found, value, rel, name)
    losses = golden.json(f"{FOLDER}/expected.json")[variant]["batch_losses"][precision]
    assert method.losses == pytest.approx(losses, rel=LOSS[said["model"]][precision])
