"""The singular values of an edited matrix are those that a decomposition of the whole matrix gives."""

from __future__ import annotations

import pytest
import torch

from harness.exam import spectra
from harness.exam.spectra import Spectra, Spectrum
from harness.patches.delta import Dense, LowRank


def low_rank(out: int, width: int, rank: int, scale: float = 1.0) -> LowRank:
    return LowRank(scale * torch.randn(out, rank), torch.randn(rank, width))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (12, 12), (12, 14)])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_values_after_a_change_are_those_of_the_whole_matrix(shape: tuple[int, int], rank: int, scale: float) -> None:
    torch.manual_seed(0)
    matrix, delta = torch.randn(*shape, dtype=torch.float64), low_rank(*shape, rank, scale)
    found = Spectrum(matrix).after(delta)
    wanted = torch.linalg.svdvals(matrix + delta.left.double() @ delta.right.double())
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-13 * float(wanted.max()))


def test_a_change_inside_of_the_rows_of_the_matrix() -> None:
    """Nothing leaves the space of the matrix, so that what stands outside is nought."""
    torch.manual_seed(1)
    matrix = torch.randn(5, 20, dtype=torch.float64)
    delta = LowRank(torch.randn(5, 1), matrix[:1].float())
    wanted = torch.linalg.svdvals(matrix + delta.left.double() @ delta.right.double())
    assert torch.allclose(Spectrum(matrix).after(delta), wanted, rtol=1e-12)


def test_a_dense_change_is_decomposed_whole() -> None:
    torch.manual_seed(2)
    matrix, delta = torch.randn(4, 9, dtype=torch.float64), Dense(torch.randn(4, 9))
    assert torch.equal(Spectrum(matrix).after(delta), torch.linalg.svdvals(matrix + delta.value.double()))


def test_the_unedited_matrix_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    own = torch.linalg.svdvals

    def counted(matrix: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(matrix.shape))
        return own(matrix)

    monkeypatch.setattr(spectra.torch.linalg, "svdvals", counted)
    known, matrix = Spectra(), torch.randn(6, 30, dtype=torch.float64)
    for _ in range(4):
        spectrum = known.of("w", matrix.clone())
        assert spectrum.values.shape == spectrum.after(low_rank(6, 30, 2)).shape
    assert seen == [(6, 30), *[(6, 8)] * 4]
