"""Tensors with a manifest in one file: what was written is what is read, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.errors import DataError, UsageError
from harness.io import tensor_file

ABOUT = {"editor": "x", "settings": {"radius": 0.5, "texts": ["a", "ä"]}}


def made() -> dict[str, torch.Tensor]:
    """Tensors of several kinds, two of them views of one memory, one empty."""
    whole = torch.arange(6.0).reshape(2, 3)
    return {
        "row": whole[0],
        "column": whole.T[1],
        "empty": torch.zeros(4, 0),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "tokens": torch.tensor([3, 4]),
        "which": torch.tensor([True, False]),
        "number": torch.tensor(2.5, dtype=torch.float64),
    }


def write(path: Path, version: int = 1) -> None:
    tensor_file.write_tensors(path, kind="patch", version=version, manifest=ABOUT, tensors=made())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.safetensors"
    write(path)
    head, tensors = tensor_file.read_tensors(path, "patch", 1)
    assert head == {**ABOUT, "kind": "patch", "format": 1, "sha256": tensor_file.content_sha256(made())}
    assert head == tensor_file.read_manifest(path, "patch", 1)
    assert set(tensors) == set(made())
    for name, tensor in made().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_read_lies_in_memory_as_what_is_computed(tmp_path: Path) -> None:
    """By where a matrix begins its products round."""
    path, fresh = tmp_path / "x.safetensors", {str(n): torch.ones(n) for n in (1, 3, 16, 5)}
    assert all(tensor.data_ptr() % 64 == 0 for tensor in fresh.values())
    tensor_file.write_tensors(path, kind="patch", version=1, manifest={}, tensors=fresh)
    _, read = tensor_file.read_tensors(path, "patch", 1)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_manifest_cannot_say_another_kind_or_format(tmp_path: Path) -> None:
    tensor_file.write_tensors(
        tmp_path / "f", kind="patch", version=1, manifest={"kind": "other", "format": 9, "sha256": ""}, tensors={}
    )
    assert tensor_file.read_tensors(tmp_path / "f", "patch", 1)[0]["format"] == 1


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    """One bit of each byte of the file in turn."""
    tensors = {name: tensor for name, tensor in made().items() if name in ("row", "column")}
    tensor_file.write_tensors(tmp_path / "whole", kind="patch", version=1, manifest=ABOUT, tensors=tensors)
    whole = (tmp_path / "whole").read_bytes()
    changed = tmp_path / "changed"
    for at in range(len(whole)):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError) as caught:
            tensor_file.read_tensors(changed, "patch", 1)
        assert str(caught.value).startswith(f"{changed}: "), at


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"cut: not a readable patch \(.*\); make it again or give another file"):
        tensor_file.read_tensors(path, "patch", 1)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=f"{path}: not a readable patch"):
            tensor_file.read_manifest(path, "patch", 1)


def test_another_kind_is_named(tmp_path: Path) -> None:
    write(tmp_path / "patch")
    save_file({"w": torch.ones(1)}, tmp_path / "plain")
    save_file({"w": torch.ones(1)}, tmp_path / "model", metadata={"format": "pt"})
    for name, held in (("patch", "a patch"), ("plain", "plain tensors"), ("model", "plain tensors")):
        with pytest.raises(DataError, match=f"{name}: holds no fitted editor but {held}; give another file"):
            tensor_file.read_tensors(tmp_path / name, "fitted editor", 1)


def test_a_newer_format_is_named_and_an_older_one_is_read(tmp_path: Path) -> None:
    write(tmp_path / "new", version=3)
    with pytest.raises(DataError, match="new: has format 3, this program reads up to 2; install a newer one"):
        tensor_file.read_tensors(tmp_path / "new", "patch", 2)
    write(tmp_path / "old", version=1)
    assert tensor_file.read_tensors(tmp_path / "old", "patch", 2)[0]["format"] == 1


def test_a_manifest_that_was_edited_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "edited"
    head = json.dumps({"kind": "patch", "format": 1, "sha256": tensor_file.content_sha256({}), "settings": {}})
    save_file({}, path, metadata={"manifest": f"{hashlib.sha256(head.encode()).hexdigest()} {head}"})
    assert tensor_file.read_manifest(path, "patch", 1)["settings"] == {}
    save_file({}, path, metadata={"manifest": f"{hashlib.sha256(b'another').hexdigest()} {head}"})
    with pytest.raises(DataError, match="edited: its manifest is not what was written; make it again"):
        tensor_file.read_manifest(path, "patch", 1)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (OSError(28, "No space left on device"), UsageError, r"cannot be written \(No space left on device\)"),
        (SafetensorError("I/O error: disk full"), UsageError, r"cannot be written \(I/O error: disk full\)"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_write_that_fails_halfway_leaves_the_earlier_file_and_no_litter(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    path = tmp_path / "file"
    write(path)
    before = path.read_bytes()

    def half(tensors: Any, target: Path, **_: Any) -> None:
        target.write_bytes(before[:100])
        raise failure

    monkeypatch.setattr(tensor_file, "save_file", half)
    with pytest.raises(raised, match=message):
        tensor_file.write_tensors(path, kind="patch", version=1, manifest={}, tensors={"w": torch.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    for path in (tmp_path / "file" / "below", tmp_path, tmp_path / ("x" * 300), Path("/dev/null/x"), Path()):
        with pytest.raises(UsageError, match=r"cannot be written \(.*\); choose another place") as caught:
            write(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert (tmp_path / "file").read_text() == "content"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
