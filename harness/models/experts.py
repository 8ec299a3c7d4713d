"""The experts of one layer as one matrix, and the keys that enter it.

The routed part of a block is ``y = sum_e g_e W_e k_e``: with the matrix ``W = [W_1 ... W_E]``, ``[d, E f]``, and the
stacked key ``x = [g_1 k_1; ...; g_E k_E]`` it is ``y = W x``, a down-projection like any other, of all experts at
once and with the router's weights in its keys (Gu et al. 2026, MoEEdit, arXiv 2602.10965).

What the experts compute of a token before their down-projections is nobody's business here: the module that holds them
is linear in the one parameter, so that ``A x`` of any matrix ``A [n, E f]`` is what the module gives with ``A`` in the
parameter's place, ``d`` rows of it a pass; with selections of the key's numbers it is the key.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.offload import resident

__all__ = ["Call", "Experts", "products", "stacked_experts", "stacked_keys"]


@dataclass(frozen=True)
class Experts:
    """The down-projections of a layer's experts, which are one parameter.

    Attributes:
        module: the name of the module that holds all experts.
        leaf: the name in it of the stacked down-projections, ``[E, d, f]``, or ``[E, f, d]`` where they are transposed.
        bias: the name in it of their biases, ``[E, d]``; None where there are none.
        count: ``E``, the number of experts.
        inner: ``f``, the size of one expert's key.
        transposed: whether each matrix is stored as ``[in, out]``.
    """

    module: str
    leaf: str
    bias: str | None
    count: int
    inner: int
    transposed: bool

    @property
    def parameter(self) -> str:
        """The full name of the parameter."""
        return f"{self.module}.{self.leaf}"

    @property
    def width(self) -> int:
        """``E f``, the size of a stacked key."""
        return self.count * self.inner

    def as_matrix(self, stored: Tensor) -> Tensor:
        """What is stored as the one matrix ``[W_1 ... W_E]``, ``[d, E f]``, a copy."""
        return stored.permute(2, 0, 1).flatten(1) if self.transposed else stored.permute(1, 0, 2).flatten(1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """The one matrix ``[d, E f]`` as the module stores it, a view."""
        parts = matrix.reshape(-1, self.count, self.inner)
        return parts.permute(1, 2, 0) if self.transposed else parts.permute(1, 0, 2)


def stacked_experts(name: str, module: nn.Module, width: int) -> Experts | None:
    """The experts of a module, where their down-projections are one parameter and tokens are routed inside it.

    Two or three stacked parameters lead from ``d`` to ``f`` (or ``2 f``) and back; the last of them is the way back.
    Told of each token's experts and their weights, the module adds up what they write.

    Args:
        name: the module's name.
        module: the module.
        width: ``d``, the size of the residual stream.
    """
    own = dict(module.named_parameters(recurse=False))
    stacks = [leaf for leaf, p in own.items() if p.dim() == 3 and len(p) > 1]
    if not 2 <= len(stacks) <= 3 or len(inspect.signature(type(module).forward).parameters) < 4:
        return None
    *ups, down = (own[leaf] for leaf in stacks)
    # The up-projection tells how matrices are stored, also where the down-projection is square (GPT-OSS).
    square = ups[0].shape[1] == ups[0].shape[2]
    transposed = bool(getattr(module, "is_transposed", False)) if square else ups[0].shape[1] == width
    back = down if transposed else down.transpose(1, 2)
    forth = [up if transposed else up.transpose(1, 2) for up in ups]
    inner = int(back.shape[1])
    fits = all(up.shape[1] == width and up.shape[2] in (inner, 2 * inner) for up in forth) and back.shape[2] == width
    if not fits or len({len(own[leaf]) for leaf in stacks}) > 1:
        return None
    biases = [leaf for leaf, p in own.items() if p.shape == (len(down), width)]
    return Experts(name, stacks[-1], biases[-1] if biases else None, len(down), inner, transposed)


@dataclass(frozen=True, eq=False)
class Call:
    """One pass through experts.

    Attributes:
        experts: where their down-projections are.
        module: the module that holds them.
        args: what it is given.
        kwargs: what it is given by name.
    """

    experts: Experts
    module: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def of(self, at: Tensor) -> Call:
        """The pass of some of its tokens."""
        tokens = len(self.args[0])
        args = [_some(one, at, tokens) for one in self.args]
        return replace(self, args=args, kwargs={name: _some(one, at, tokens) for name, one in self.kwargs.items()})


def stacked_keys(call: Call, at: Tensor | None = None) -> Tensor:
    """The stacked keys of the tokens that experts are given, ``[tokens, E f]``.

    Args:
        call: what they are given.
        at: which tokens; by default all.
    """
    with torch.no_grad():
        passes = _passes(call if at is None else call.of(at), _selections(call.experts, call.module))
        return torch.cat(list(passes), 1)


def _some(given: Any, at: Tensor, tokens: int) -> Any:
    """What is given of some tokens: one row of each tensor, ``[tokens, ...]``."""
    return given[at.to(given.device)] if isinstance(given, Tensor) and len(given) == tokens else given


def products(call: Call, matrix: Tensor) -> Tensor:
    """``A x`` of the stacked key of every token, ``[tokens, n]``, ``d`` rows of ``A`` a pass.

    Args:
        call: what the experts are given.
        matrix: ``A [n, E f]``.
    """
    return torch.cat(list(_passes(call, torch.split(matrix, _out(call.experts, call.module)))), 1)


def _out(experts: Experts, module: nn.Module) -> int:
    return int(getattr(module, experts.leaf).shape[2 if experts.transposed else 1])


def _selections(experts: Experts, module: nn.Module) -> Iterator[Tensor]:
    """The rows of the identity, as many at a time as the module has outputs."""
    rows = _out(experts, module)
    for begin in range(0, experts.width, rows):
        count = min(rows, experts.width - begin)
        chosen = torch.zeros(count, experts.width)
        chosen[torch.arange(count), begin + torch.arange(count)] = 1.0
        yield chosen


def _passes(call: Call, matrices: Iterator[Tensor] | Sequence[Tensor]) -> Iterator[Tensor]:
    """What the module gives with each of some matrices ``[n, E f]``, ``n <= d``, in place of its down-projections.

    Its hooks do not run: they are about what it computes for the model.
    """
    experts, module = call.experts, call.module
    with resident(module, [experts.leaf]):
        kept = module._parameters[experts.leaf]
        held = module._parameters.get(experts.bias or "")
        assert kept is not None
        rows = _out(experts, module)
        try:
            if experts.bias is not None and held is not None:
                module._parameters[experts.bias] = _frozen(torch.zeros_like(held))
            for matrix in matrices:
                whole = torch.zeros(rows, experts.width, dtype=kept.dtype, device=kept.device)
                whole[: len(matrix)] = matrix.to(whole)
                module._parameters[experts.leaf] = _frozen(experts.as_stored(whole).contiguous())
                given: Tensor = module.forward(*call.args, **call.kwargs)
                yield given.flatten(0, -2)[:, : len(matrix)]
        finally:
            module._parameters[experts.leaf] = kept
            if experts.bias is not None:
                module._parameters[experts.bias] = held


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
