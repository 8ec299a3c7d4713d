"""Key-value caches of our own: layers that forget what is added, and a cache that ends a pass once it is filled.

This module and the Backpack are the ones that need transformers when they are imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from harness.models.activations import PrefixCache

__all__ = ["Filling", "RepeatableLayer"]


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
