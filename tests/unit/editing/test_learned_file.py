"""What an editor learned, read from a file: only what it learns of this model, and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.editing.editor import Learned
from harness.editing.learned_file import load_learned, save_learned
from harness.editing.registry import configure, find
from harness.errors import DataError
from harness.methods.hypernetwork import Hypernetwork
from harness.models.lm import LM

Tensors = dict[str, Tensor]
MEND = {"layers": [1], "rank": 3}
REMEDI = {"layer": 1}


def learner(name: str) -> Learned:
    made = configure(find(name), "other", MEND if name == "mend" else REMEDI)
    assert isinstance(made, Learned)
    return made


def file(lm: LM, name: str, path: Path, change: Callable[[Tensors], object] = lambda _: None) -> Path:
    """What an editor could have learned, after a change; the checksum is of what is written."""
    layout = learner(name).layout(lm)
    assert layout is not None
    learned = {key: torch.full_like(like, 2, device="cpu") for key, like in layout.items()}
    change(learned)
    save_learned(replace(learner(name), learned=learned), lm, path, trained={})
    return path


def put(key: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    """Another tensor in the place of the first whose name ends so."""

    def change(learned: Tensors) -> None:
        name = next(name for name in learned if name.endswith(key))
        learned[name] = make(learned[name])

    return change


def infinite(tensor: Tensor) -> Tensor:
    tensor.view(-1)[-1] = float("inf")
    return tensor


@pytest.mark.parametrize("name", ["mend", "remedi"])
def test_what_is_learned_is_read(tiny: Callable[[str], LM], name: str, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    found = load_learned(learner(name), lm, file(lm, name, tmp_path / "x.safetensors"))
    assert found.learned is not None
    assert all(bool((tensor == 2).all()) for tensor in found.learned.values())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mend", put("/V", infinite), "/V' holds a NaN or an infinity"),
        (
            "mend",
            put("/U", lambda t: t[:-1]),
            "/U' is float32 of shape [95, 3], but mend learns float32 of shape [96, 3]",
        ),
        ("mend", put("/bias", lambda t: t.long()), "/bias' is int64 of shape [96], but mend learns float32"),
        ("mend", put("/count", lambda t: t.float()), "/count' is float32 of shape [], but mend learns int64"),
        ("mend", lambda found: found.pop(next(iter(found))), "is nothing, but mend learns float32 of shape []"),
        (
            "mend",
            lambda found: found.update(extra=torch.ones(2)),
            "'extra' is float32 of shape [2], but mend learns nothing",
        ),
        ("remedi", put("weight", lambda t: t * float("nan")), "'weight' holds a NaN or an infinity"),
        ("remedi", put("bias", lambda t: t.half()), "'bias' is float16 of shape [32], but remedi learns float32"),
        ("remedi", put("weight", lambda t: t[:, 1:]), "'weight' is float32 of shape [32, 31], but remedi learns"),
        ("remedi", lambda found: found.clear(), "'weight' is nothing, but remedi learns float32 of shape [32, 32]"),
    ],
)
def test_what_is_not_what_is_learned_is_one_line(
    tiny: Callable[[str], LM], name: str, change: Callable[[Tensors], object], said: str, tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    path = file(lm, name, tmp_path / "x.safetensors", change)
    with pytest.raises(DataError) as told:
        load_learned(learner(name), lm, path)
    message = str(told.value)
    assert message.startswith(f"{path}: '")
    assert said in message
    assert "fit it again with `harness fit --editor " in message
    assert "\n" not in message


@pytest.mark.parametrize("bit", [-1, -77, 300])
@pytest.mark.parametrize("name", ["mend", "remedi"])
def test_a_flipped_bit_is_one_line(tiny: Callable[[str], LM], name: str, bit: int, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    path = file(lm, name, tmp_path / "x.safetensors")
    content = bytearray(path.read_bytes())
    content[bit] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*(not what was written|not a readable)[^\n]*$"):
        load_learned(learner(name), lm, path)


def test_the_layout_is_that_of_what_is_learned(tiny: Callable[[str], LM]) -> None:
    """Of the network that training starts from, whose numbers are the published first ones."""
    shapes = {"a": (4, 3), "b": (4, 3), "c": (2, 2)}
    start = Hypernetwork.start(shapes, rank=5, depth=2, alpha=0.5, seed=1)
    draw = torch.Generator().manual_seed(1)
    for key in ("2x2/0/V", "2x2/1/V", "4x3/0/V", "4x3/1/V"):
        d = 4 if key.startswith("2x2") else 7
        assert torch.equal(start.tensors[key], torch.randn(min(5, d), d, generator=draw))
    assert {float(start.tensors[f"alpha/{name}"]) for name in shapes} == {0.5}
    for key, tensor in start.tensors.items():
        if "/V" not in key and not key.startswith("alpha/"):
            assert set(tensor.reshape(-1).tolist()) == {1.0 if "/scale/" in key else 0}
