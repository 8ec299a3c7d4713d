"""Quantised matrices that stand in a model as plain numbers for a while: those that an editor writes, and no others.

A library's own module multiplies with numbers that are nowhere stored (codes, scales, zeros). They are asked of the
tensor that knows them, else of the module, which is linear: what it gives of a unit vector is a column. So it does not
matter whose format it is. The module itself is put aside as it is, and put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError, RestoreError, UsageError
from harness.io.hashes import inner_tensors
from harness.models.lm import LM
from harness.models.published import fast_hashes

__all__ = ["dequantised", "float_matrix", "quantised_as", "quantised_modules"]

_VECTORS = 1024
"""Unit vectors of one pass."""


def quantised_as(weight: Tensor) -> torch.dtype | None:
    """The type in which a weight is quantised; None of one that holds floating-point numbers of its own.

    Args:
        weight: the parameter.
    """
    parts = inner_tensors(weight)
    # A quantised tensor of many parts says the type that it is computed in.
    kind = next((part.dtype for part in parts.values()), weight.dtype)
    return kind if parts or not kind.is_floating_point or kind.itemsize < 2 else None


def quantised_modules(lm: LM, places: Iterable[str]) -> list[str]:
    """The modules at some places of a model, or within them, whose weight is quantised.

    Args:
        lm: the model.
        places: names of modules.

    Raises:
        ModelError: the model has no such module.
    """
    inside = [(place, name, module) for place in places for name, module in lm.module(place).named_modules()]
    weights = {f"{place}.{name}".rstrip("."): module._parameters.get("weight") for place, name, module in inside}
    return [name for name, weight in weights.items() if weight is not None and quantised_as(weight) is not None]


@contextmanager
def dequantised(lm: LM, places: Iterable[str], asker: str) -> Iterator[tuple[str, ...]]:
    """Let quantised matrices stand in the model as plain ones; afterwards it has its own modules again, bitwise.

    Args:
        lm: the model.
        places: the modules that are written, or those around them.
        asker: the editor, for the error.

    Yields:
        The names of the modules that were replaced.

    Raises:
        UsageError: none of them is quantised.
        ModelError: one lies on disk or in the CPU's memory, or does not say what it multiplies with.
        RestoreError: a module is not what it was.
    """
    names = quantised_modules(lm, places)
    if not names:
        raise UsageError(
            f"dequantise_edited: no matrix that {asker} edits in {lm.name} is quantised; leave --dequantise-edited out"
        )
    own = {name: lm.module(name) for name in names}
    before = {name: fast_hashes(module.state_dict()) for name, module in own.items()}
    try:
        for name, module in own.items():
            _put(lm, name, _plain(lm, name, module))
        yield tuple(names)
    finally:
        for name, module in own.items():
            _put(lm, name, module)
        for name, module in own.items():
            if fast_hashes(module.state_dict()) != before[name]:
                raise RestoreError(f"'{name}' is not what it was before it was dequantised; load the model again")


def float_matrix(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The matrix ``[out, in]`` that a quantised linear module multiplies with.

    Args:
        module: the module.
        dtype: of the matrix, and of what the module is given.

    Raises:
        ModelError: it does not say how many numbers it takes.
    """
    weight = module._parameters["weight"]
    told = getattr(weight, "dequantize", None)
    if weight is not None and inner_tensors(weight) and told is not None:
        found: Tensor = told()
        return found.detach().to(dtype).contiguous()
    width = getattr(module, "in_features", None)
    if not isinstance(width, int):
        raise ModelError(f"a {type(module).__name__} does not say how many numbers it takes; load it in bfloat16")
    device = next(module.parameters()).device
    starts = range(0, width, _VECTORS)
    return torch.cat([_columns(module, _units(width, start, dtype, device)) for start in starts], 1)


def _units(width: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some unit vectors, ``[n, width]``."""
    count = min(_VECTORS, width - start)
    found = torch.zeros(count, width, dtype=dtype, device=device)
    found[torch.arange(count), start + torch.arange(count)] = 1
    return found


def _columns(module: nn.Module, vectors: Tensor) -> Tensor:
    """What a module gives of some vectors ``[n, in]`` without its bias, as columns, ``[out, n]``."""
    # Subtracted afterwards, a bias would take digits with it.
    places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    kept = [(place, place["bias"]) for place in places if "bias" in place]
    try:
        for place, _ in kept:
            place["bias"] = None
        with torch.no_grad():
            given: Tensor = module.forward(vectors)
    finally:
        for place, bias in kept:
            place["bias"] = bias
    return given.T.to(vectors.dtype)


def _plain(lm: LM, name: str, module: nn.Module) -> nn.Linear:
    """A plain linear module that multiplies with the same numbers, on the same device."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ModelError(
            f"'{name}' is quantised and lies on disk or in the CPU's memory, where it cannot be dequantised; keep it "
            "on a device"
        )
    matrix = float_matrix(module, lm.parameter(f"{lm.arch.embedding}.weight").dtype)
    bias = getattr(module, "bias", None)
    plain = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(matrix, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(matrix.dtype), requires_grad=False)
    return _placed(plain, module).train(False)


def _placed(plain: nn.Linear, module: nn.Module) -> nn.Linear:
    """With what accelerate set on the module, so that it takes what comes from another device."""
    from accelerate.hooks import add_hook_to_module

    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return plain
    placed: nn.Linear = add_hook_to_module(plain, hook)
    return placed


def _put(lm: LM, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    lm.module(owner)._modules[leaf] = module
