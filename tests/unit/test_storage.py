"""What is kept: short lines for people, the same bytes for programs, whole files or none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness import storage


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        None,
        "[\n 1 ]",
        {"a": {"b": [1, 2.5, None], "c": 'é, "x": 1'}},
        {"wide": {f"metric{i}": {"value": i / 7, "interval": [0.0, 1.0]} for i in range(60)}},
        [list(range(300)), "x" * 500, {"y" * 450: [{}, [], True]}],
    ],
)
def test_text_reads_back(data: object) -> None:
    assert json.loads(storage.text(data)) == data


def test_what_fits_stands_on_one_line() -> None:
    row = {"value": 0.5, "n": 50, "interval": [0.4, 0.6]}
    lines = storage.text({"tasks": {f"task{i}": row for i in range(20)}}).splitlines()
    assert f'  "task3": {json.dumps(row)},' in lines
    assert len(lines) == 24
    assert storage.text({"layers": [0, 1]}) == '{"layers": [0, 1]}'


def test_packed_reads_back_and_is_the_same_bytes() -> None:
    data = {"ids": [f"doc/{i}" for i in range(500)], "num": [i / 3 for i in range(500)]}
    for small in (True, False):
        assert storage.unpacked(storage.packed(data, small)) == data
        assert storage.packed(data, small) == storage.packed(data, small)
    assert len(storage.packed(data)) < len(json.dumps(data)) / 3


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"", lambda c: c[:20] + b"?" + c[21:], lambda c: b"{}"])
def test_damage_is_seen(damage: object) -> None:
    content = storage.packed({"a": list(range(200))})
    with pytest.raises(ValueError, match="not whole xz"):
        storage.unpacked(damage(content))  # type: ignore[operator]


def test_nine_digits_hold_a_float32() -> None:
    import torch

    seeded = torch.Generator().manual_seed(0)
    values = torch.randn(2000, generator=seeded) * 10 ** torch.randn(2000, generator=seeded)
    assert torch.equal(torch.tensor(storage.rounded(values.tolist())), values)
    assert storage.rounded({"a": (0.1 + 0.2, math.nan, 7, "x", None, True)}) == {"a": [0.3, None, 7, "x", None, True]}


def test_what_is_not_finite_is_refused() -> None:
    for write in (storage.text, storage.packed):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"a": math.inf})


def test_an_interrupted_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    storage.write_whole(path, b"before")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        storage.write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
