"""A system that grows by a few keys at each operation, solved without being factored anew (Woodbury's identity).

``(G + U U^T)^-1`` takes, beside one factor ``G = L L^T``, the Cholesky factor of ``I + V^T V`` with ``V = L^-1 U``:
``[m, m]`` for ``m`` columns of ``U``. A new column adds a row to it, and the rows before stay bitwise as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

__all__ = ["RankUpdate"]


@dataclass(frozen=True, eq=False)
class RankUpdate:
    """``I + V V^T`` with ``V [r, m]``, as it is kept to be solved with.

    Attributes:
        rows: ``V^T [m, r]``.
        lower: the Cholesky factor of ``I + V^T V``, ``[m, m]``.
    """

    rows: Float64[Tensor, "m r"]
    lower: Float64[Tensor, "m m"]

    @classmethod
    def empty(cls, like: Float64[Tensor, "_ r"]) -> RankUpdate:
        """``I`` alone.

        Args:
            like: rows of the length and on the device of those to come.
        """
        return cls(like[:0], like.new_zeros(0, 0))

    def grown(self, rows: Float64[Tensor, "n r"]) -> RankUpdate:
        """With ``n`` more columns of ``V``: of the order ``n m r``, where to factor anew takes ``m^2 r``.

        Args:
            rows: the new columns, as rows.
        """
        m, n = len(self.rows), len(rows)
        across = torch.linalg.solve_triangular(self.lower, self.rows @ rows.T, upper=False)
        corner = rows @ rows.T - across.T @ across
        corner.diagonal().add_(1.0)
        lower = rows.new_zeros(m + n, m + n)
        lower[:m, :m], lower[m:, :m] = self.lower, across.T
        # Where rounding has eaten the corner no solution fits, and whoever solves sees it by :meth:`fits`.
        lower[m:, m:] = torch.linalg.cholesky_ex(corner)[0]
        return RankUpdate(torch.cat([self.rows, rows]), lower)

    def solve(self, right: Float64[Tensor, "r k"]) -> Float64[Tensor, "r k"]:
        """``(I + V V^T)^-1 right = right - V (I + V^T V)^-1 V^T right``."""
        inner = torch.linalg.solve_triangular(self.lower, self.rows @ right, upper=False)
        inner = torch.linalg.solve_triangular(self.lower.T, inner, upper=True)
        found: Tensor = right - self.rows.T @ inner
        return found

    def fits(self, found: Float64[Tensor, "r k"], right: Float64[Tensor, "r k"], tolerance: float) -> Bool[Tensor, ""]:
        """Whether a solution of every column solves it, to ``tolerance`` of its norm; no number that is a NaN does.

        Args:
            found: the solutions.
            right: what was solved for.
            tolerance: the norm of the residual, relative to that of the column.
        """
        residual = right - found - self.rows.T @ (self.rows @ found)
        fitting: Tensor = (residual.norm(dim=0) <= tolerance * right.norm(dim=0)).all()
        return fitting
