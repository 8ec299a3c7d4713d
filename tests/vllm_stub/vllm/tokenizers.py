"""As there."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer


def get_tokenizer(name: str, **_rest: Any) -> Any:
    """The tokenizer of a checkpoint."""
    return AutoTokenizer.from_pretrained(name)
