"""A stand-in for several accelerators on a machine that has none: every tensor knows on which device it lies.

The numbers are computed on the CPU. What a tensor is asked for its device, what is made on one, and what is moved to
another, goes by the stand-in; an operation on tensors of two devices is refused, as torch refuses it. Numbers of no
dimension, and indices, may come from the CPU. What it does not show: the rounding, the streams and the memory of
accelerators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("xpu:0"), torch.device("xpu:1")

_FREE = ("copy_", "to", "cpu", "device", "grad", "backward", "set_", "data", "_foreach", "_use_count")
"""What may see tensors of two devices: it moves them, or is called with many that do not meet."""

_INDEXING = ("__getitem__", "__setitem__", "index_put", "index_put_")


def place_of(tensor: Tensor) -> torch.device:
    """The device on which a tensor lies."""
    found: torch.device = getattr(tensor, "place", CPU)
    return found


class Devices(TorchFunctionMode):
    """Follows on which device each tensor lies."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = _name_of(function)
        if name == "device" and isinstance(args[0], Tensor):
            return place_of(args[0])
        if name == "is_cpu":
            return place_of(args[0]) == CPU
        wanted = _asked(name, args, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = _met(name, args, given)
        plain_args, plain_kwargs = (tree_map(_plain, one) for one in (args, kwargs))
        found = function(*plain_args, **plain_kwargs)
        if name == "grad" and isinstance(found, Tensor):
            here = place_of(args[0])
        if name == "grad" and isinstance(found, tuple):  # torch.autograd.grad
            for one, of in zip(found, _listed(args, kwargs), strict=True):
                _put(one, place_of(of))
            return found
        if name in ("numpy", "__array__") and here != CPU:
            raise TypeError(f"can't convert {here} device type tensor to numpy")
        return _moved(found, wanted or here, given)


def _name_of(function: Any) -> str:
    name: str = getattr(function, "__name__", "")
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name


def _listed(args: Any, kwargs: Mapping[str, Any]) -> Iterable[Tensor]:
    inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _asked(name: str, args: Any, kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device that a call names."""
    if name == "cpu":
        return CPU
    named = kwargs.get("device")
    if name == "to":
        others = [one for one in args[1:] if isinstance(one, torch.device | str | Tensor)]
        named = named if named is not None else next(iter(others), kwargs.get("other"))
    if isinstance(named, Tensor):
        return place_of(named)
    return None if named is None else torch.device(named)


def _met(name: str, args: Any, given: list[Tensor]) -> torch.device:
    """The device on which an operation is carried out."""
    if name in _INDEXING:
        others = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if any(place_of(one) not in (CPU, place_of(args[0])) for one in others):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        return place_of(args[0])
    places = {place_of(one) for one in given if one.dim()} or {place_of(one) for one in given}
    if len(places) > 1 and not name.startswith(_FREE):
        found = ", ".join(sorted(map(str, places)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {name}")
    return place_of(given[0]) if name.startswith(_FREE) and given else next(iter(places), CPU)


def _plain(leaf: Any) -> Any:
    """What torch is given in place of a device that is not there."""
    return CPU if isinstance(leaf, torch.device | str) and str(leaf).startswith("xpu") else leaf


def _moved(found: Any, place: torch.device, given: list[Tensor]) -> Any:
    """What came out, on its device; a tensor that came in and is to lie elsewhere is another tensor."""

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or place_of(leaf) == place:
            return leaf
        if any(leaf is one for one in given):
            with torch._C.DisableTorchFunction():
                leaf = leaf.clone() if leaf.requires_grad else leaf.detach().clone()
        return _put(leaf, place)

    # A size is a tuple to a tree, and would come out as one.
    return found if isinstance(found, torch.Size) else tree_map(put, found)


def _put(tensor: Tensor, place: torch.device) -> Tensor:
    if tensor is not None:
        tensor.place = place  # type: ignore[attr-defined]
    return tensor


@contextmanager
def spread_over_two(model: nn.Module, places: Mapping[str, torch.device]) -> Iterator[None]:
    """Let modules of a model lie on devices, and move what enters them, as accelerate's hooks do.

    Args:
        model: the model; its weights are those of the stand-in afterwards, too.
        places: module -> its device; a module inside another follows it.
    """
    handles = []
    for name, place in places.items():
        module = model.get_submodule(name)
        for tensor in (*module.parameters(), *module.buffers()):
            _put(tensor, place)
        handles.append(module.register_forward_pre_hook(_sending(place), with_kwargs=True))
    try:
        with Devices():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _sending(place: torch.device) -> Any:
    def send(leaf: Any) -> Any:
        return leaf.to(place) if isinstance(leaf, Tensor) else leaf

    def run(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(send, args), {k: v if k == "past_key_values" else tree_map(send, v) for k, v in kwargs.items()}

    run.__module__ = "accelerate.hooks"  # the guard leaves hooks of libraries out
    return run
