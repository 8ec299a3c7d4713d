"""The algebra of a weight change: low rank where it can be, dense where it must be.

A change is always written ``[out, in]``, whatever the module stores (GPT-2's ``Conv1D`` stores ``[in, out]``).
Low rank stays low rank through addition and scaling, so that a rank-one edit of a large matrix stays small on disk,
and so that many edits can share one forward pass (:func:`harness.patches.patch.patched_rows`). A sum becomes dense
where its
factors would hold as many numbers as the matrix, so that in a long run it never grows beyond it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from harness.errors import DataError

__all__ = ["Delta", "Dense", "LowRank", "delta_from_tensors", "double", "numerical_rank"]


def double(tensor: Shaped[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """The tensor in float64; on the processor where its device has none."""
    # Apple's GPUs have no float64.
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class Delta(ABC):
    """A change of one parameter."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape of the change, ``[out, in]`` for a matrix."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "*shape"]:
        """The change as one tensor."""

    @abstractmethod
    def __add__(self, other: Delta) -> Delta:
        """The sum of two changes; low rank if both are, while its factors are smaller than their product."""

    @abstractmethod
    def __mul__(self, factor: float) -> Delta:
        """The change, scaled."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Delta:
        """The change on another device, in another precision."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the change, by role."""

    @abstractmethod
    def singular_values(self) -> Float64[Tensor, "r"]:
        """The non-trivial singular values, in descending order, in float64; shape ``[min(rank bound, out, in)]``."""

    @abstractmethod
    def svd(self) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r"], Float64[Tensor, "r d_in"]]:
        """``U [out, r]``, the singular values ``[r]`` of :meth:`singular_values`, and ``V^T [r, in]``, of a matrix."""

    def norm(self) -> float:
        """The Frobenius norm."""
        return float(self.singular_values().norm())

    def rank(self) -> int:
        """The numerical rank: singular values above ``s_max * max(out, in) * eps(float32)``."""
        return numerical_rank(self.singular_values(), self.shape)


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """``left @ right``.

    Attributes:
        left: ``[out, r]``.
        right: ``[r, in]``.
    """

    left: Float[Tensor, "out r"]
    right: Float[Tensor, "r d_in"]

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            shapes = f"{tuple(self.left.shape)} and {tuple(self.right.shape)}"
            raise ValueError(f"a low-rank change needs left [out, r] and right [r, in], not {shapes}")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.left.shape[0], self.right.shape[1]))

    def dense(self) -> Float[Tensor, "out d_in"]:
        product: Tensor = self.left @ self.right
        return product

    def __add__(self, other: Delta) -> Delta:
        _same_shape(self, other)
        rank = self.left.shape[1] + (other.left.shape[1] if isinstance(other, LowRank) else 0)
        if isinstance(other, LowRank) and rank * sum(self.shape) < self.shape.numel():
            return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 0))
        return Dense(self.dense() + other.dense())

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.left * factor, self.right)

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        return LowRank(self.left.to(device, dtype), self.right.to(device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def singular_values(self) -> Float64[Tensor, "r"]:
        if self.left.shape[1] >= min(self.shape):
            return _svdvals(double(self.dense()))
        return _svdvals(self._core()[1])

    def svd(self) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r"], Float64[Tensor, "r d_in"]]:
        if self.left.shape[1] >= min(self.shape):
            return _svd(double(self.left) @ double(self.right))
        rows, small, columns = self._core()
        left, values, right = _svd(small)
        return rows @ left, values, right @ columns

    def _core(self) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r r"], Float64[Tensor, "r d_in"]]:
        """``left @ right = Q_left (R_left R_right^T) Q_right^T`` in float64, these three factors.

        The middle one, ``[r, r]``, has the same singular values, as the orthogonal factors of the two QRs change none.
        """
        rows, columns = torch.linalg.qr(double(self.left)), torch.linalg.qr(double(self.right).T)
        return rows.Q, rows.R @ columns.R.T, columns.Q.T


@dataclass(frozen=True, eq=False)
class Dense(Delta):
    """A change of any shape (matrices as ``[out, in]``, biases as ``[out]``)."""

    value: Float[Tensor, "*shape"]

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def dense(self) -> Float[Tensor, "*shape"]:
        return self.value

    def __add__(self, other: Delta) -> Delta:
        _same_shape(self, other)
        return Dense(self.value + other.dense())

    def __mul__(self, factor: float) -> Dense:
        return Dense(self.value * factor)

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return Dense(self.value.to(device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def singular_values(self) -> Float64[Tensor, "r"]:
        if self.value.dim() < 2:
            length: Tensor = double(self.value).norm().reshape(1)
            return length
        return _svdvals(double(self.value))

    def svd(self) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r"], Float64[Tensor, "r d_in"]]:
        return _svd(double(self.value))


def numerical_rank(values: Float[Tensor, "r"], shape: torch.Size) -> int:
    """How many singular values, in descending order, are above ``s_max * max(shape) * eps(float32)``."""
    if values.numel() == 0:
        return 0
    cut = float(values[0]) * max(shape) * torch.finfo(torch.float32).eps
    return int((values > cut).sum())


def _svdvals(matrix: Float64[Tensor, "out d_in"]) -> Float64[Tensor, "r"]:
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def _svd(
    matrix: Float64[Tensor, "out d_in"],
) -> tuple[Float64[Tensor, "out r"], Float64[Tensor, "r"], Float64[Tensor, "r d_in"]]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _same_shape(a: Delta, b: Delta) -> None:
    if a.shape != b.shape:
        raise ValueError(f"two changes of different shapes cannot be added: {tuple(a.shape)} and {tuple(b.shape)}")


def delta_from_tensors(roles: Mapping[str, Tensor], path: Path, name: str) -> Delta:
    """A change from what :meth:`Delta.tensors` gave.

    Args:
        roles: the tensors by role: ``left [out, r]`` and ``right [r, in]``, or ``value``.
        path: the file that they come from, for the error.
        name: the parameter, for the error.

    Raises:
        DataError: the roles are not those of a change; names the file and the parameter.
    """
    if not all(tensor.is_floating_point() for tensor in roles.values()):
        raise DataError(
            f"{path}: '{name}' holds no fractions but {[str(t.dtype) for t in roles.values()]}; save it again"
        )
    if set(roles) == {"left", "right"}:
        left, right = roles["left"], roles["right"]
        if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
            shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
            raise DataError(f"{path}: '{name}' holds shapes {shapes}, expected [out, r] and [r, in]; save it again")
        return LowRank(left, right)
    if set(roles) == {"value"}:
        return Dense(roles["value"])
    raise DataError(f"{path}: '{name}' holds {sorted(roles)}, expected left and right, or value; save it again")
