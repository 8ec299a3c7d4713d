"""The most memory that new tensors of some work take at a time, counted and not measured: alike on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedBytes(TorchDispatchMode):
    """Counts what operations allocate until it is let go of; what was there before is none of it.

    Attributes:
        now: bytes that are held.
        most: the most that were held at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, object] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out an operation, and count the storages of its results that are new."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._known:
                self.now += size
                self.most = max(self.most, self.now)
                self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))
        return found

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        del self._known[key]


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
