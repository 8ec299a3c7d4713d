"""What lm-eval's model of vLLM calls, done by transformers: greedy continuations of rows of tokens, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MADE: list[dict[str, Any]] = []
"""With what each model was made."""


class SamplingParams:
    """How a text is continued."""

    def __init__(self, *, max_tokens: int, stop: Sequence[str] = (), **rest: Any) -> None:
        self.max_tokens, self.stop, self.rest = max_tokens, stop, rest


@dataclass
class TokensPrompt:
    """What is continued."""

    prompt_token_ids: list[int]


class LLM:
    """A checkpoint."""

    def __init__(self, **arguments: Any) -> None:
        MADE.append(arguments)
        folder = arguments["model"]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments["dtype"])).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = SimpleNamespace(max_model_len=arguments["max_model_len"])
        self.llm_engine = SimpleNamespace(model_config=config)

    def generate(
        self, prompts: Sequence[TokensPrompt], *, sampling_params: Sequence[SamplingParams], **_rest: Any
    ) -> list[Any]:
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=self._text(prompt.prompt_token_ids, asked))])
            for prompt, asked in zip(prompts, sampling_params, strict=True)
        ]

    def _text(self, ids: list[int], asked: SamplingParams) -> str:
        assert asked.rest["temperature"] == 0
        read = torch.tensor([ids])
        options = {"do_sample": False, "max_new_tokens": asked.max_tokens, "pad_token_id": 0}
        with torch.no_grad():
            said = self.model.generate(read, attention_mask=torch.ones_like(read), **options)[0, len(ids) :]
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        for stop in asked.stop:
            text = text.partition(stop)[0] if stop else text
        return text
