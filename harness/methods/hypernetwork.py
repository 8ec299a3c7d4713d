"""A network that rewrites the gradient of a matrix: residual and of low rank, as a flat dict of tensors.

The gradient of a linear layer is a sum over tokens of ``v u^T``: ``u [in]`` entered the layer, ``v [out]`` is the
gradient at its output.  The network maps each pair ``x = [u; v]`` to a pseudo-pair of the same size.

Sources: Mitchell et al. 2022 (MEND), "Fast Model Editing at Scale", arXiv 2110.11309, section 3.2 and equation 3; their
code at e04fdb9 (per-matrix scale and shift, running statistics, initial values).  Tan, Zhang, Fu 2024 (MALMEN), arXiv
2311.04661, and their code at 1df295d (scale and shift outside of the rectifier, a damping for each matrix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.errors import DataError
from harness.methods.shifts import Statistics
from harness.patches.delta import double

__all__ = ["Hypernetwork", "Pair", "Rectified", "Shape", "layout"]

Shape = tuple[int, int]
"""``(in, out)`` of a matrix."""

Pair = tuple[Tensor, Tensor]
"""``u [tokens, in]`` and ``v [tokens, out]`` of one matrix."""

Rectified = Literal["last", "first"]
"""Whether a layer scales and shifts before it takes the positive part (MEND), or after that (MALMEN)."""


@dataclass(frozen=True, eq=False)
class Hypernetwork:
    """One network for each shape of matrix; everything that belongs to one matrix is kept under its name.

    Attributes:
        tensors: ``alpha/<matrix>`` the step size, and where there is one ``damping/<matrix>``, its logarithm; for each
            shape ``s`` and layer ``i`` ``<s>/<i>/U [d, r]``, ``V [r, d]`` and ``bias [d]``, and ``scale/<matrix> [d]``
            and ``shift/<matrix> [d]``, where ``d = in + out``; the running statistics ``<s>/statistics/mean [d]``,
            ``squares [d]`` and ``count``.
        depth: the number of layers.
        rectified: when a layer takes the positive part.
        eps: what is added to a standard deviation.
    """

    tensors: Mapping[str, Tensor]
    depth: int
    rectified: Rectified = "last"
    eps: float = 1e-7

    @classmethod
    def start(
        cls, shapes: Mapping[str, Shape], *, rank: int, depth: int, alpha: float, seed: int, damped: bool = False
    ) -> Hypernetwork:
        """The network that changes no pair: ``U`` and ``bias`` are zero, and a damping is 1.

        Args:
            shapes: the matrices by name.
            rank: the most that the rank of a layer may be; never above ``d``.
            depth: the number of layers.
            alpha: the step size of each matrix.
            seed: of ``V``, which is standard normal.
            damped: whether each matrix has a damping.
        """
        draw = torch.Generator().manual_seed(seed)
        like = layout(shapes, rank=rank, depth=depth, damped=damped)
        made = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in like.items()}
        for name, tensor in made.items():
            if name.startswith("alpha/"):
                tensor.fill_(alpha)
            elif name.endswith("/V"):
                tensor.copy_(torch.randn(tensor.shape, generator=draw))
            elif "/scale/" in name:
                tensor.fill_(1.0)
        return cls(made, depth)

    @property
    def trainable(self) -> dict[str, Tensor]:
        """What descends: all but the statistics."""
        return {name: tensor for name, tensor in self.tensors.items() if "/statistics/" not in name}

    def alpha(self, name: str) -> Tensor:
        """The step size of a matrix."""
        return self.tensors[f"alpha/{name}"]

    def damping(self, name: str) -> Tensor:
        """The logarithm of the damping of a matrix."""
        return self.tensors[f"damping/{name}"]

    def observed(self, u: Tensor, v: Tensor, *, unbiased: bool = False) -> Hypernetwork:
        """The network with running statistics that have seen more pairs.

        Args:
            u: ``[tokens, in]``.
            v: ``[tokens, out]``.
            unbiased: whether ``n`` pairs add ``n / (n - 1)`` of their squares.
        """
        if not len(u):
            return self
        seen = self.statistics(u, v) + Statistics.of(torch.cat([u, v], 1), unbiased=unbiased)
        prefix = f"{_of(u, v)}/statistics"
        old = self.tensors[f"{prefix}/mean"]
        new = {f"{prefix}/mean": seen.mean.to(old), f"{prefix}/squares": seen.squares.to(old)}
        return replace(self, tensors={**self.tensors, **new, f"{prefix}/count": torch.tensor(seen.count)})

    def normalised(self, u: Tensor, v: Tensor) -> Tensor:
        """``(x - mean) / (std + eps)`` of each number of ``x = [u; v]``, with the sample standard deviation.

        A number that never varied in training (a neuron that was never active) is only centred.

        Raises:
            DataError: fewer than two pairs have been observed.
        """
        seen = self.statistics(u, v)
        if seen.count < 2:
            raise DataError(f"{seen.count} tokens to normalise gradients by, expected two or more; give more examples")
        spread = (seen.squares / (seen.count - 1)).sqrt()
        spread = torch.where(spread > 0, spread + self.eps, torch.ones_like(spread))
        return ((double(torch.cat([u, v], 1)).to(spread) - seen.mean) / spread).to(u)

    def __call__(self, name: str, u: Tensor, v: Tensor) -> Pair:
        """The pseudo-pairs of a matrix: each layer adds ``max(0, scale * (U V x + bias) + shift)``.

        With ``rectified="first"`` it adds ``scale * max(0, U V x + bias) + shift``.

        Args:
            name: the matrix.
            u: ``[tokens, in]``, at least float32.
            v: ``[tokens, out]``.
        """
        x = self.normalised(u, v)
        for i in range(self.depth):
            upper, lower, bias, scale, shift = (
                self.tensors[f"{_of(u, v)}/{i}/{part}"].to(x)
                for part in ("U", "V", "bias", f"scale/{name}", f"shift/{name}")
            )
            inner = x @ lower.T @ upper.T + bias
            # clamp and not relu: at zero, where training starts, the gradient of relu is zero, and nothing would learn.
            first = self.rectified == "first"
            x = x + (scale * inner.clamp(min=0) + shift if first else (scale * inner + shift).clamp(min=0))
        return x[:, : u.shape[1]], x[:, u.shape[1] :]

    def statistics(self, u: Tensor, v: Tensor) -> Statistics:
        """The running statistics of the pairs of one shape, of which these are some."""
        mean, squares, count = (self.tensors[f"{_of(u, v)}/statistics/{k}"] for k in ("mean", "squares", "count"))
        return Statistics(int(count), double(mean), double(squares))


def layout(shapes: Mapping[str, Shape], *, rank: int, depth: int, damped: bool = False) -> dict[str, Tensor]:
    """The tensors of a network, without their numbers (on the device ``meta``).

    Args:
        shapes: the matrices by name.
        rank: the most that the rank of a layer may be.
        depth: the number of layers.
        damped: whether each matrix has a damping.
    """
    scalars = ("alpha", "damping") if damped else ("alpha",)
    sizes: dict[str, tuple[int, ...]] = {f"{scalar}/{name}": () for scalar in scalars for name in shapes}
    for shape in sorted(set(shapes.values())):
        names, prefix, d = [n for n, s in shapes.items() if s == shape], _key(shape), sum(shape)
        for i in range(depth):
            r = min(rank, d)
            sizes |= {f"{prefix}/{i}/U": (d, r), f"{prefix}/{i}/V": (r, d), f"{prefix}/{i}/bias": (d,)}
            sizes |= {f"{prefix}/{i}/{part}/{name}": (d,) for part in ("scale", "shift") for name in names}
        sizes |= {f"{prefix}/statistics/{key}": (d,) for key in ("mean", "squares")}
        sizes[f"{prefix}/statistics/count"] = ()
    kinds = {name: torch.int64 if name.endswith("/count") else torch.float32 for name in sizes}
    return {name: torch.empty(size, dtype=kinds[name], device="meta") for name, size in sizes.items()}


def _of(u: Tensor, v: Tensor) -> str:
    return _key((u.shape[1], v.shape[1]))


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"
