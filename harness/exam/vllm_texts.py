"""Texts that vLLM writes: lm-eval's own model of it, on a checkpoint as it lies in a folder.

Only what is generated comes from there. Likelihoods stay with the model in this process, and so does every editor that
acts while a model runs: vLLM has no place for a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from harness.errors import UsageError
from harness.models.lm import LM

__all__ = ["BACKENDS", "VllmTexts", "require_vllm"]

BACKENDS = ("hf", "vllm")
"""What writes texts: transformers in this process, or vLLM."""

_OF_FREE = 0.9
"""The part of an accelerator's free memory that vLLM takes; the model of this process is there already."""


def require_vllm(folder: str) -> None:
    """See that vLLM is installed, and that it can read what it is given.

    Args:
        folder: the checkpoint.

    Raises:
        UsageError: it is not, or cannot.
    """
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise UsageError(
            f"backend vllm: {folder} is no folder with a checkpoint; give --model one that `harness apply` has written"
        )
    if find_spec("vllm") is None:
        raise UsageError(
            "backend vllm: vLLM is not installed; pip install 'lm-edit-harness[vllm]', or leave --backend out"
        )


@dataclass(eq=False)
class VllmTexts:
    """vLLM on a checkpoint, begun when the first text is asked for.

    Attributes:
        folder: the checkpoint.
        lm: the same model in this process.
    """

    folder: str
    lm: LM

    @property
    def name(self) -> str:
        """VLLM and its version, on which its numbers depend."""
        return f"vllm {version('vllm')}"

    @cached_property
    def engine(self) -> Any:
        """lm-eval's model of vLLM."""
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(Path(self.folder).expanduser()),
            dtype=str(self.lm.dtype).removeprefix("torch."),
            max_length=self.lm.context,
            **self._memory(),
        )

    def write(self, requests: Sequence[Instance], *, thought_ends: str | None) -> list[str]:
        """The continuation of each context.

        Args:
            requests: to generate.
            thought_ends: what ends a thought, behind which the answer stands; None where nothing is cut off.
        """
        self.engine.think_end_token = thought_ends
        return list(self.engine.generate_until(list(requests), disable_tqdm=True))

    def _memory(self) -> dict[str, float]:
        if self.lm.device.type == "cpu":
            return {}
        free, whole = torch.accelerator.get_memory_info(self.lm.device)
        return {"gpu_memory_utilization": round(_OF_FREE * free / whole, 3)}
