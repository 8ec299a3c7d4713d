"""Real models to begin with: small ones that fit a laptop, and those of the papers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIRST_RUN", "GATED", "SUGGESTED", "Suggested"]

_BYTES = 4 * 1.3
"""Of a parameter in float32, with what scoring needs beside the weights."""


@dataclass(frozen=True)
class Suggested:
    """A model of the Hub.

    Attributes:
        name: the repository.
        parameters: how many it has, in millions.
        licence: of its weights.
        access: ``open``, or ``gated`` (:data:`GATED`).
    """

    name: str
    parameters: int
    licence: str
    access: str

    @property
    def memory(self) -> str:
        """What a run needs in float32."""
        return f"{self.parameters * 1e6 * _BYTES / 2**30:.1f} GiB"


FIRST_RUN = "harness run --model NAME --editor rome --edits counterfact:10 --exam probability"
"""What is typed first, with any of them."""

GATED = "accept the licence on the model's page, then type hf auth login"
"""What must be done before such a model can be fetched."""

_OPEN, _GATED = "open", "gated"

SUGGESTED = (
    Suggested("openai-community/gpt2", 124, "MIT", _OPEN),
    Suggested("HuggingFaceTB/SmolLM2-135M-Instruct", 135, "Apache-2.0", _OPEN),
    Suggested("EleutherAI/pythia-160m", 162, "Apache-2.0", _OPEN),
    Suggested("google/gemma-3-270m", 268, "Gemma terms", _GATED),
    Suggested("HuggingFaceTB/SmolLM2-360M-Instruct", 362, "Apache-2.0", _OPEN),
    Suggested("Qwen/Qwen2.5-0.5B-Instruct", 494, "Apache-2.0", _OPEN),
    Suggested("Qwen/Qwen3-0.6B", 596, "Apache-2.0", _OPEN),
    Suggested("meta-llama/Llama-3.2-1B", 1236, "Llama 3.2 licence", _GATED),
    Suggested("openai-community/gpt2-xl", 1558, "MIT", _OPEN),
    Suggested("EleutherAI/gpt-j-6b", 6051, "Apache-2.0", _OPEN),
)
