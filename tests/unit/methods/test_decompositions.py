"""Factors and spectra that are kept: bitwise those that are computed, of the same moment alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.alphaedit import AlphaEdit
from editors.memit import Memit
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.errors import NumericalError
from harness.methods import decompositions
from harness.methods.second_moments import Moment, moments
from harness.models.lm import LM


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The decompositions of small models are kept, too, in a cache of each test's own."""
    monkeypatch.setattr(decompositions, "LARGE", 8)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on nothing may be decomposed."""

    def forbid() -> None:
        for name in ("cholesky_ex", "eigh"):
            monkeypatch.setattr(torch.linalg, name, lambda *_: pytest.fail("computed again"))

    return forbid


def decomposed(lm: LM, tokens: int = 2000) -> list[Tensor]:
    found = moments(lm, [0, 1], tokens=tokens)
    return [part for moment in found.values() for part in (moment.factor, *moment.spectrum)]


def test_a_decomposition_is_computed_once_and_bitwise_the_same(
    tiny: Callable[[str], LM], tmp_path: Path, never: Callable[[], None]
) -> None:
    lm = tiny("gpt2")
    first = decomposed(lm)
    assert len(list((tmp_path / "factors").iterdir())) == len(list((tmp_path / "spectra").iterdir())) == 2
    matrix = moments(lm, [0], tokens=2000)[0].matrix
    assert torch.allclose(first[0] @ first[0].T, matrix) and torch.allclose(first[2] * first[1] @ first[2].T, matrix)
    never()
    second = decomposed(lm)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "editor",
    [
        Memit(layers=(0, 1), v_steps=3, cov_tokens=2000, lam=10.0),
        AlphaEdit(layers=(0, 1), v_steps=3, cov_tokens=2000, nullspace_threshold=0.3),
    ],
    ids=lambda editor: editor.name,
)
def test_patches_are_bitwise_the_same_with_what_was_kept(
    editor: Editor, tiny: Callable[[str], LM], edits: list[Edit], never: Callable[[], None]
) -> None:
    lm = tiny("gpt2")
    first = editor.edit(lm, edits)
    never()
    second = editor.edit(lm, edits)
    assert all(torch.equal(first.weights[name].dense(), second.weights[name].dense()) for name in first.weights)


def test_another_moment_has_another_decomposition(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    first, second = (decomposed(tiny("gpt2"), tokens) for tokens in (2000, 3000))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(list((tmp_path / "factors").iterdir())) == 4


def test_what_is_kept_on_another_machine_is_computed_here(
    tiny: Callable[[str], LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed(tiny("gpt2"))
    monkeypatch.setattr(decompositions, "rounding_of", lambda _device: "other")
    decomposed(tiny("gpt2"))
    assert len(list((tmp_path / "factors").iterdir())) == 4


@pytest.mark.parametrize("kind", ["factors", "spectra"])
def test_a_damaged_file_is_computed_again(
    kind: str, tiny: Callable[[str], LM], tmp_path: Path, caplog: pytest.LogCaptureFixture, never: Callable[[], None]
) -> None:
    lm = tiny("gpt2")
    first = decomposed(lm)
    one, other = sorted((tmp_path / kind).iterdir())
    content = bytearray(one.read_bytes())
    content[-5] ^= 1
    one.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        second = decomposed(lm)
    assert "not what was written; it is computed again" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    one.write_bytes(other.read_bytes())
    assert all(torch.equal(a, b) for a, b in zip(first, decomposed(lm), strict=True))
    assert "of something else" in caplog.text
    never()
    decomposed(lm)


def test_nothing_is_kept_of_a_moment_that_is_not_kept(tmp_path: Path) -> None:
    moment = Moment(torch.eye(16, dtype=torch.float64), 100)
    assert moment.factor.shape == (16, 16) and moment.spectrum[0].shape == (16,)
    assert list(tmp_path.iterdir()) == []


def test_a_moment_without_an_inverse_leaves_no_file(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    (moment,) = moments(tiny("gpt2"), [0], tokens=20).values()
    with pytest.raises(NumericalError, match="has no inverse"):
        _ = moment.factor
    assert not (tmp_path / "factors").exists()


def test_where_nothing_can_be_written_it_is_used_all_the_same(
    tiny: Callable[[str], LM], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (moment,) = moments(tiny("gpt2"), [0], tokens=2000).values()
    (tmp_path / "factors").write_text("")
    assert torch.allclose(moment.factor @ moment.factor.T, moment.matrix)
    assert "cannot be written" in caplog.text
