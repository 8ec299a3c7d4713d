"""Key-value caches of our own: layers that forget what is added, texts that come and go, passes that end when filled.

This module and the Backpack are the ones that need transformers when they are imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from harness.models.activations import PrefixCache

__all__ = ["Filling", "RepeatableLayer", "SlotLayer"]


class RepeatableLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a cache that forgets what is added, so that a block can be run again on what came before."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """What was kept and what is added, which is not kept."""
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a cache whose rows are of different lengths and come and go.

    Attributes:
        keys: ``[slots, heads, columns, dim]``; those of a text begin in the first column.
        values: the same of the values.
        at: of each row of the next pass, the column of its new token, ``[rows]``.
        width: the columns that the next pass sees, the new ones included.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, slots: int, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Zeros, since what is hidden still counts as zero times what stands there.
        self.keys: Tensor = keys.new_zeros(slots, keys.shape[1], columns, keys.shape[3])
        self.values: Tensor = values.new_zeros(slots, values.shape[1], columns, values.shape[3])
        self.is_initialized = True
        self.at = torch.zeros(0, dtype=torch.long)
        self.width = 0

    def put(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Copy what is kept of a text.

        Args:
            slot: where it goes.
            keys: its keys, ``[heads, tokens, dim]``.
            values: its values, the same.
        """
        tokens = keys.shape[1]
        self.keys[slot, :, :tokens], self.values[slot, :, :tokens] = keys, values

    def text(self, slot: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a text of so many tokens."""
        return self.keys[slot, :, :tokens], self.values[slot, :, :tokens]

    def get_seq_length(self) -> int:
        """The columns in front of a new token."""
        return self.width - 1

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep one new token of each row, and give what there is of each."""
        rows = len(key_states)
        each, at = torch.arange(rows, device=self.keys.device), self.at.to(self.keys.device)
        self.keys[each, :, at], self.values[each, :, at] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:rows, :, : self.width], self.values[:rows, :, : self.width]


class Filling(DynamicCache):
    """A cache that ends the forward pass when its last layer is filled.

    Args:
        layers: how many it has.
        front: what stands in front of the rows.
        enough: what is raised when the last layer is filled.
    """

    def __init__(self, layers: int, front: PrefixCache | None, enough: type[Exception]) -> None:
        super().__init__()
        self.last, self.enough = layers - 1, enough
        if front:
            for layer, (keys, values) in enumerate(zip(front.keys, front.values, strict=True)):
                super().update(keys, values, layer)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep keys and values of a layer.

        Args:
            key_states: the keys that a layer adds, ``[rows, heads, columns, dim]``.
            value_states: its values, the same.
            layer_idx: the layer.
            *args: what else transformers passes on.
            **kwargs: the same, by keyword.

        Returns:
            The keys and values of the layer so far.

        Raises:
            Exception: the one that was asked for, where the layer is the last.
        """
        both = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.last:
            raise self.enough
        return both
