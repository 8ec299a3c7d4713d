"""The state of a run under way: exactly what it was, of nothing else, and never code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.editing.schedule import Begun
from harness.io import tensor_file
from harness.io.plain_objects import flatten, rebuild
from harness.methods.second_moments import Moment, moments, moments_folder
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch
from harness.runs import resume
from harness.runs.resume import StateFile

OURS = (__name__.partition(".")[0],)


@dataclass(frozen=True, eq=False)
class Memory:
    """All that an editor may remember."""

    sums: Mapping[int, Tensor]
    shapes: Mapping[tuple[int, int], float]
    words: tuple[str, ...]
    inner: object = None
    scratch: list[int] = field(default_factory=list, metadata={"kept": False})


def state() -> Begun:
    generator = torch.Generator().manual_seed(0)
    left, right, sums = (torch.randn(shape, generator=generator) for shape in ((6, 2), (2, 4), (4, 4)))
    memory = Memory({3: sums.double(), -1: sums.T}, {(6, 4): float("nan")}, ("\u202e", "ü"), inner=[True, None, 2**80])
    weights = {"a.weight": LowRank(left, right), "b.weight": Dense(left.bfloat16())}
    return Begun(2, Patch(weights, memory=memory), range(1, 2))


def checkpoint(path: Path, key: str = "key", every: float = 0.0) -> StateFile:
    return StateFile(path / "x.state", key, packages=OURS, every=every)


def kept(path: Path) -> Path:
    checkpoint(path).keep(state())
    return path / "x.state"


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    kept(tmp_path)
    wanted, found = state(), checkpoint(tmp_path).read()
    assert found is not None
    assert (found.edits, found.latest) == (2, range(1, 2))
    for name, delta in wanted.total.weights.items():
        for role, tensor in delta.tensors().items():
            again = found.total.weights[name].tensors()[role]
            assert type(found.total.weights[name]) is type(delta)
            assert again.dtype == tensor.dtype
            assert again.device == tensor.device
            assert torch.equal(again, tensor)
    mine, memory = wanted.total.memory, found.total.memory
    assert isinstance(mine, Memory)
    assert isinstance(memory, Memory)
    for layer, sums in mine.sums.items():
        assert torch.equal(memory.sums[layer], sums)
        assert memory.sums[layer].stride() == sums.stride()  # a product rounds by the order of what it adds
    assert memory.shapes.keys() == mine.shapes.keys()
    assert memory.words == mine.words
    assert memory.inner == mine.inner


def test_a_tensor_comes_back_where_it_was() -> None:
    tree, tensors = flatten(torch.ones(3, device="meta"))
    assert tree["device"] == "meta"
    again = rebuild(tree, tensors, packages=())
    assert again.device.type == "meta"


def test_what_stands_twice_is_kept_once_and_a_scratch_pad_not_at_all() -> None:
    one = torch.ones(2)
    tree, tensors = flatten(Memory({0: one, 1: one}, {}, (), scratch=[1]))
    assert len(tensors) == 1
    assert rebuild(tree, tensors, packages=OURS).scratch == []


# --- what lies in files of its own ------------------------------------------------------------------------------------


@pytest.fixture
def moment(tiny: Callable[[str], LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moment:
    """A second moment that a cache of its own holds."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return moments(tiny("gpt2"), [1], tokens=300)[1]


def remembered(moment: Moment, path: Path) -> Path:
    """The file of a state whose editor remembers a moment."""
    checkpoint(path).keep(Begun(1, Patch(memory=Memory({}, {}, (), inner=moment)), range(1)))
    return path / "x.state"


def test_a_state_names_a_second_moment_instead_of_holding_it(tmp_path: Path, moment: Moment) -> None:
    file = remembered(moment, tmp_path)
    assert file.stat().st_size < 4000 < moment.matrix.nbytes
    found = checkpoint(tmp_path).read()
    assert found is not None
    assert isinstance(found.total.memory, Memory)
    again = found.total.memory.inner
    assert isinstance(again, Moment)
    assert torch.equal(again.matrix, moment.matrix)
    names = ("count", "key", "name", "sha256")
    assert [getattr(again, name) for name in names] == [getattr(moment, name) for name in names]


def test_a_state_holds_a_second_moment_that_lies_nowhere_else(tmp_path: Path, moment: Moment) -> None:
    file = remembered(Moment(moment.matrix, moment.count), tmp_path)
    assert file.stat().st_size > moment.matrix.nbytes
    (path,) = moments_folder().glob("*.safetensors")
    path.unlink()
    assert remembered(moment, tmp_path).stat().st_size > moment.matrix.nbytes
    assert checkpoint(tmp_path).read() is not None


def gone(path: Path) -> None:
    path.unlink()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("happens", [gone, flipped])
def test_a_state_whose_second_moment_is_lost_is_told_and_not_taken(
    tmp_path: Path, moment: Moment, caplog: pytest.LogCaptureFixture, happens: Callable[[Path], None]
) -> None:
    remembered(moment, tmp_path)
    (path,) = moments_folder().glob("*.safetensors")
    happens(path)
    assert checkpoint(tmp_path).read() is None
    assert len(caplog.messages) == 1
    assert str(path) in caplog.text
    assert "the edits are made again from the first" in caplog.text


def test_a_state_of_another_second_moment_of_that_name_is_not_taken(
    tmp_path: Path, moment: Moment, caplog: pytest.LogCaptureFixture
) -> None:
    tree, _ = flatten(moment)
    tree["name"]["sha256"] = "0" * 64
    write_state(tmp_path / "x.state", begun(memory=tree))
    assert checkpoint(tmp_path).read() is None
    assert "holds another second moment than the one that was used" in caplog.text


@pytest.mark.parametrize("bit", [7, 1000, -1, -90])
def test_a_flipped_bit_is_told_and_the_state_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bit: int
) -> None:
    path = kept(tmp_path)
    content = bytearray(path.read_bytes())
    content[bit] ^= 0x40
    path.write_bytes(content)
    assert checkpoint(tmp_path).read() is None
    (said,) = caplog.messages
    assert str(path) in said
    assert said.endswith("the edits are made again from the first")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N.", b"{}", struct.pack("<Q", 2**63)])
def test_a_file_of_another_kind_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / "x.state").write_bytes(content)
    assert checkpoint(tmp_path).read() is None
    assert len(caplog.messages) == 1


def test_a_state_of_another_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept(tmp_path)
    assert checkpoint(tmp_path, "another key").read() is None
    assert "is of a run of something else" in caplog.text
    assert checkpoint(tmp_path).read() is not None


def test_a_state_of_that_form_is_taken(tmp_path: Path) -> None:
    """What is refused above is refused for the one field that was changed."""
    dense = node("harness.patches.delta", "Dense", value=TENSOR)
    tree = begun(weights={"kind": "mapping", "items": [["a.weight", dense]]})
    manifest = {"key": "key", "state": tree}
    tensor_file.write_tensors(
        tmp_path / "x.state", kind=resume.KIND, version=resume.FORMAT, manifest=manifest, tensors={"0": torch.ones(1)}
    )
    found = checkpoint(tmp_path).read()
    assert found is not None
    assert torch.equal(found.total.weights["a.weight"].dense(), torch.ones(1))


@dataclass
class Trap:
    """A dataclass that is not ours."""

    def __post_init__(self) -> None:
        raise AssertionError("code of a file has run")


def node(module: str, cls: str, /, **fields: Any) -> dict[str, Any]:
    return {"kind": "dataclass", "module": module, "class": cls, "fields": fields}


def begun(**fields: Any) -> dict[str, Any]:
    """A walk with a patch whose fields somebody has changed."""
    total = node("harness.patches.patch", "Patch", **fields)
    return node("harness.editing.schedule", "Begun", edits=2, total=total, latest={"kind": "range", "items": [1, 2, 1]})


def write_state(path: Path, tree: object) -> None:
    """A file of a state, whatever its tree says."""
    about = {"key": "key", "state": tree}
    tensor_file.write_tensors(
        path, kind=resume.KIND, version=resume.FORMAT, manifest=about, tensors={"0": torch.ones(1)}
    )


MOMENT = {"kind": "kept", "module": "harness.methods.second_moments", "class": "Moment"}
TENSOR = {"kind": "tensor", "name": "0", "order": [0], "device": "cpu"}

FORGED = [
    begun(weights=[0, 1]),
    begun(weights=None),
    begun(weights={"kind": "mapping", "items": [["a.weight", "a text"]]}),
    begun(weights={"kind": "mapping", "items": [[0, node("harness.patches.delta", "Dense", value=TENSOR)]]}),
    begun(hooks="mapping"),
    begun(hooks={"kind": "mapping", "items": [["a", 3]]}),
    begun(prompt=1.5),
    begun(logits="a rule"),
    node("os", "system"),
    node("subprocess", "Popen", args=["true"]),
    node("harness.models.lm", "load", name="mini"),
    node("antigravity", "x"),
    node("harness.patches.patch", "Any"),
    node("harness.editing.schedule", "Begun", edits="two"),
    node("harness.editing.schedule", "Begun", other=1),
    node("harness.patches.patch", "Patch"),
    {**MOMENT, "name": {"key": "../../elsewhere", "sha256": "0", "device": "cpu"}},
    {**MOMENT, "name": {"key": "0", "sha256": "0", "device": "cpu"}},
    {**MOMENT, "name": {"key": 0, "sha256": "0", "device": "cpu"}},
    {**MOMENT, "name": {}},
    {**MOMENT, "name": []},
    {**MOMENT, "class": "Manifest", "name": {}},
    {"kind": "kept", "module": "os", "class": "system", "name": {}},
    {"kind": "call", "items": []},
    {"kind": "range", "items": [1, 2, 0]},
    {"kind": "mapping", "items": [[{"kind": "list", "items": []}, 1]]},
    {"kind": "tensor", "name": "0", "order": [0], "device": "nowhere"},
    {"kind": "tensor", "name": "7", "order": [], "device": "cpu"},
    {},
    [],
    "text",
    None,
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("tree", FORGED)
def test_a_forged_state_makes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, tree: object) -> None:
    write_state(tmp_path / "x.state", tree)
    assert checkpoint(tmp_path).read() is None
    assert len(caplog.messages) == 1


def test_a_dataclass_of_another_package_is_not_made(tmp_path: Path) -> None:
    tree = node(__name__, "Trap")
    with pytest.raises(AssertionError, match="has run"):
        rebuild(tree, {}, packages=OURS)
    with pytest.raises(ValueError, match="Trap is no dataclass that may be made here"):
        rebuild(tree, {}, packages=("harness",))


def test_nesting_without_end_is_told() -> None:
    tree: Any = 1
    for _ in range(100_000):
        tree = {"kind": "list", "items": [tree]}
    with pytest.raises(ValueError, match="RecursionError"):
        rebuild(tree, {}, packages=())


@pytest.mark.parametrize("value", [lambda: 0, object(), {1, 2}, torch.nn.Linear(1, 1), Path("x")])
def test_what_is_no_plain_data_is_told_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: object
) -> None:
    checkpoint(tmp_path).keep(Begun(1, Patch(memory=value)))
    assert "this editor's state cannot be kept" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_state_is_json_and_tensors(tmp_path: Path) -> None:
    content = kept(tmp_path).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    assert json.loads(content[8 : 8 + size])["__metadata__"]["manifest"].partition(" ")[2].startswith("{")
