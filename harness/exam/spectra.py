"""Singular values of matrices with small changes: those of the unedited matrix once, those of each edited one cheaply.

``W = R^T Q^T`` with orthonormal columns of ``Q [in, out]`` (of a matrix with more rows than columns, its transpose). A
change ``L V`` of rank ``r`` leaves the space of ``Q`` by ``r`` directions at most: ``V = C Q^T + B^T P^T`` with ``P``
orthonormal and orthogonal to ``Q``. So ``W + L V = [R^T + L C, L B^T] [Q, P]^T``, whose singular values are those of
the ``[out, out + r]`` matrix in front, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from harness.patches.delta import Delta, LowRank, double

__all__ = ["Spectra", "Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of a matrix, also with changes of low rank.

    Attributes:
        matrix: the unedited matrix, ``[out, in]``, float64.
    """

    matrix: Tensor

    @cached_property
    def values(self) -> Tensor:
        """The singular values of the unedited matrix ``[n]``, the largest first."""
        return _values(self.matrix)

    @property
    def _tall(self) -> bool:
        return self.matrix.shape[0] > self.matrix.shape[1]

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """``Q [long, short]`` and ``R [short, short]`` of the matrix whose rows are the longer side."""
        found = torch.linalg.qr(self.matrix if self._tall else self.matrix.T)
        return found.Q, found.R

    def after(self, delta: Delta) -> Tensor:
        """The singular values of the matrix with a change, ``[n]``, the largest first.

        Args:
            delta: the change, ``[out, in]``.
        """
        short, long = sorted(self.matrix.shape)
        if not isinstance(delta, LowRank):
            return _values(self.matrix + double(delta.dense().cpu()))
        left, right = double(delta.left.cpu()), double(delta.right.cpu())
        if left.shape[1] + short >= long:
            return _values(self.matrix + left @ right)
        return self._updated(right.T, left.T) if self._tall else self._updated(left, right)

    def _updated(self, left: Tensor, right: Tensor) -> Tensor:
        """Those with ``left [short, r] @ right [r, long]`` added."""
        basis, upper = self._factors
        inside = right @ basis
        outside = torch.linalg.qr((right - inside @ basis.T).T).R  # B [r, r]
        return _values(torch.cat([upper.T + left @ inside, left @ outside.T], 1))


@dataclass(eq=False)
class Spectra:
    """The spectra of the unedited matrices of a model, each decomposed when it is first asked for."""

    known: dict[str, Spectrum] = field(default_factory=dict)

    def of(self, name: str, matrix: Tensor) -> Spectrum:
        """The spectrum of a matrix.

        Args:
            name: of its parameter, which is the same matrix each time.
            matrix: the unedited matrix, ``[out, in]``, float64.
        """
        return self.known.setdefault(name, Spectrum(matrix))


def _values(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrix)
    return values
