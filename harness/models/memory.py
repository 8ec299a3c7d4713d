"""What fits: the tokens of a forward pass, what attention keeps of each, and errors that say there was no room."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.models.lm import LM

__all__ = ["Room", "free_bytes", "gibibytes", "kept_bytes", "out_of_memory", "pass_bytes"]

_PORTION = 1024
"""Tokens of a forward pass on a processor, which more of them do not make faster."""

_LARGEST = 2**16
"""Tokens of the first pass on an accelerator, halved until they fit: the larger the faster."""

_WRITTEN = 0.5
"""Share of the weights' memory that texts may take which are written side by side."""

_FRONTS = 0.1
"""Share of the weights' memory that beginnings may take which are kept for several rows."""

_LEAST = 2**25
"""Bytes that either may take of the smallest model, whose weights are less than a few texts."""


@dataclass
class Room:
    """How much a model takes at once, as far as is known; learned while it is used.

    Attributes:
        tokens: the tokens of one forward pass, padding included.
        front: the longest beginning that may be kept for several rows, in tokens.
        shared: the longest text for which rows that texts share gave the numbers of rows of their own; 0 untried.
        apart: the shortest longest text for which they did not; None for none.
        written: the tokens of all texts that are written side by side.
        fits: whether texts can be written side by side with a cache of our own; None untried.
    """

    tokens: int
    front: int = 0
    shared: int = 0
    apart: int | None = None
    written: int = 0
    fits: bool | None = None

    @classmethod
    def of(cls, lm: LM) -> Room:
        """The room to begin with."""
        weights = sum(parameter.nbytes for parameter in lm.model.parameters())
        front, written = (int(max(share * weights, _LEAST) / kept_bytes(lm)) for share in (_FRONTS, _WRITTEN))
        return cls(_PORTION if lm.device.type == "cpu" else _LARGEST, front=front, written=written)

    def halve(self, tokens: int) -> None:
        """A pass of so many tokens did not fit; gives the memory back that is held for later ones."""
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        self.release()

    def release(self) -> None:
        """Give memory back that is held for later passes."""
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)


def kept_bytes(lm: LM) -> int:
    """What attention keeps of one token, in bytes: keys and values of all layers."""
    config = lm.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or lm.arch.width // heads
    return int(2 * lm.cache_layers * kept * width * lm.model.dtype.itemsize)


def pass_bytes(lm: LM, tokens: int) -> int:
    """About what a forward pass over so many tokens holds at its height, in bytes: hidden states, logits, attention."""
    states = tokens * lm.model.dtype.itemsize * (8 * lm.arch.width + 3 * lm.arch.inner)
    return states + kept_bytes(lm) * tokens // lm.cache_layers + 8 * lm.vocabulary * min(tokens, 128)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Libraries that torch calls have words of their own.
    return should_reduce_batch_size(error) or "ALLOC_FAILED" in str(error) or "out of memory" in str(error)


def free_bytes(device: torch.device) -> int | None:
    """What is free on a device, in bytes; None where that cannot be told."""
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, NotImplementedError, AttributeError):  # not every backend, nor every torch, tells
        return None


def gibibytes(count: int) -> str:
    """Bytes as a reader takes them in."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
