"""Objects of a program as JSON and tensors, and back: what is kept of a run under way, without pickle.

Reading makes nothing but numbers, texts, tensors, the plain containers, and dataclasses (or named tuples) of packages
that the caller names and that are imported already: no content of a file can run code or import a module.

What lies in a file of its own already, such as a second moment, is not written again: its class says by which name
it can be read (:class:`KeptElsewhere`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptElsewhere", "flatten", "rebuild"]

Tree: TypeAlias = Any
"""What JSON can hold; what is no plain number or text is an object with the field ``kind``."""


@runtime_checkable
class KeptElsewhere(Protocol):
    """A dataclass whose objects may lie in files of their own."""

    def kept_as(self) -> dict[str, str] | None:
        """By what an object can be read again; None where it lies nowhere, and is written like any other."""

    @classmethod
    def read_kept(cls, name: Mapping[str, str]) -> KeptElsewhere:
        """The object of a name, bitwise what it was.

        Raises:
            DataError: there is none any more, or it is another.
        """


def flatten(value: object, given: Mapping[str, object] | None = None) -> tuple[Tree, dict[str, Tensor]]:
    """An object as a tree and the tensors that it names.

    A field of a dataclass whose metadata says ``kept=False`` is left out and must have a default; so is what a frozen
    dataclass caches.

    Args:
        value: the object.
        given: what is not kept but stands by its name, such as the model, which whoever reads has at hand.

    Raises:
        TypeError: something in it is neither plain data nor a tensor nor a dataclass; says what.
    """
    flattening = _Flattening(given or {})
    tree = flattening.tree(value)
    return tree, flattening.tensors


def rebuild(
    tree: Tree,
    tensors: Mapping[str, Tensor],
    *,
    packages: Collection[str],
    given: Mapping[str, object] | None = None,
) -> Any:
    """The object that :func:`flatten` took apart, each tensor on the device where it was.

    Args:
        tree: the tree.
        tensors: the tensors that it names.
        packages: the top-level names of the modules whose dataclasses may be made.
        given: as :func:`flatten` was given.

    Raises:
        ValueError: the tree is not what :func:`flatten` writes, or names another class.
    """
    try:
        return _Rebuilding(tensors, packages, given or {}).value(tree)
    except (LookupError, TypeError, AttributeError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _Flattening:
    """Makes nodes of a tree from values; a tensor that stands in several places is kept once."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._given = {id(one): name for name, one in given.items()}
        # The originals are held, so that no other tensor takes the place of one in memory.
        self._known: dict[int, tuple[str, Tensor]] = {}

    def tree(self, value: object) -> Tree:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
            return value
        if id(value) in self._given:
            return {"kind": "given", "name": self._given[id(value)]}
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {"kind": "mapping", "items": [[self.tree(key), self.tree(one)] for key, one in value.items()]}
        items = _items(value)
        if items is None:
            return self._dataclass(value)
        return {"kind": type(value).__name__.lower(), "items": [self.tree(one) for one in items]}

    def _tensor(self, tensor: Tensor) -> Tree:
        """With the order of its strides, by which products round."""
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        if not tensor.permute(order).is_contiguous():
            order = list(range(tensor.dim()))
        name, _ = self._known.setdefault(id(tensor), (str(len(self._known)), tensor))
        self.tensors[name] = tensor.permute(order)
        return {"kind": "tensor", "name": name, "order": order, "device": str(tensor.device)}

    def _dataclass(self, value: object) -> Tree:
        cls = type(value)
        if not _has_fields(cls) or _class(cls.__module__, cls.__qualname__) is not cls:
            raise TypeError(f"a {cls.__module__}.{cls.__qualname__} is neither plain data nor a dataclass")
        name = value.kept_as() if isinstance(value, KeptElsewhere) else None
        if name is not None:
            return {"kind": "kept", "module": cls.__module__, "class": cls.__qualname__, "name": name}
        kept = {name: self.tree(getattr(value, name)) for name in _kept_fields(cls)}
        return {"kind": "dataclass", "module": cls.__module__, "class": cls.__qualname__, "fields": kept}


def _items(value: object) -> Sequence[object] | None:
    """What a plain sequence, a range or a number without end holds; None for others."""
    if type(value) is float:
        return [repr(value)]
    if type(value) is range:
        return [value.start, value.stop, value.step]
    return value if isinstance(value, list | tuple) and type(value) in (list, tuple, torch.Size) else None


def _has_fields(cls: type) -> bool:
    """Whether it is a dataclass or a named tuple."""
    return is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))


def _kept_fields(cls: Any) -> list[str]:
    return [f.name for f in fields(cls) if f.metadata.get("kept", True)] if is_dataclass(cls) else list(cls._fields)


def _class(module: str, name: str) -> object:
    """A class of a module that is imported; nothing is imported for it."""
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


class _Rebuilding:
    """Makes values from nodes of a tree."""

    def __init__(self, tensors: Mapping[str, Tensor], packages: Collection[str], given: Mapping[str, object]) -> None:
        self._tensors, self._packages, self._given = tensors, packages, given

    def value(self, node: Tree) -> Any:
        if not isinstance(node, dict):
            return node
        makers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "float": lambda node: float(*node["items"]),
            "given": lambda node: self._given[node["name"]],
            "tensor": self._tensor,
            "list": lambda node: [self.value(one) for one in node["items"]],
            "tuple": lambda node: tuple(self.value(one) for one in node["items"]),
            "range": lambda node: range(*node["items"]),
            "size": lambda node: torch.Size(node["items"]),
            "mapping": lambda node: {self.value(key): self.value(one) for key, one in node["items"]},
            "dataclass": self._dataclass,
            "kept": self._kept,
        }
        return makers[node["kind"]](node)

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        back = sorted(range(len(node["order"])), key=node["order"].__getitem__)
        return self._tensors[node["name"]].to(torch.device(node["device"])).permute(back)

    def _dataclass(self, node: dict[str, Any]) -> Any:
        return self._allowed(node)(**{name: self.value(one) for name, one in node["fields"].items()})

    def _kept(self, node: dict[str, Any]) -> Any:
        cls: Any = self._allowed(node)
        if not (issubclass(cls, KeptElsewhere) and all(isinstance(part, str) for part in node["name"].values())):
            raise ValueError(f"{node['module']}.{node['class']} has no files of its own")
        return cls.read_kept(node["name"])

    def _allowed(self, node: dict[str, Any]) -> type:
        """The class of a node, which is a dataclass of a package that was named."""
        cls = _class(node["module"], node["class"])
        allowed = str(node["module"]).partition(".")[0] in self._packages
        if not (allowed and isinstance(cls, type) and _has_fields(cls) and cls.__module__ == node["module"]):
            raise ValueError(f"{node['module']}.{node['class']} is no dataclass that may be made here")
        return cls
