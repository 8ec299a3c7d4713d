"""A cache behind the cache folder: what one machine keeps another takes, and a place that fails takes nothing along."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from harness.editing.edit import Edit
from harness.editing.editor import Learned
from harness.editing.learned_file import default_path, require_learned, save_learned
from harness.editing.registry import configure, find
from harness.errors import UsageError
from harness.exam import measure
from harness.io import cache as cache_module
from harness.io import remote
from harness.io.cache import cache_folder, in_cache, share
from harness.methods import decompositions
from harness.methods.second_moments import missing_moments, moments, moments_folder
from harness.methods.value import optimise
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.methods.value_rows import Objective
from harness.models import published
from harness.models.lm import LM

Machine = Callable[[str], None]

SHARED_WORK = """
from harness.exam.tasks import read_edits
from harness.io.hashes import tensor_sha256
from harness.methods.second_moments import moments
from harness.methods.value import optimise
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.methods.value_rows import Objective
from harness.models.lm import load

lm, edits = load("mini", device="cpu"), read_edits("counterfact", data_dir="mini", count=2)
with values_from(ValueCache(values_folder())) as cache:
    found = optimise(lm, edits, ("{}",), objective=Objective(1, steps=2), keys=True)
print(cache.found, tensor_sha256(found.delta), moments(lm, [1], tokens=3000)[1].sha256)
"""


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address that is empty."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://shared" if request.param == "memory" else f"file://{tmp_path}/shared"


@pytest.fixture
def machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """From a call on this process is on the machine of that name, which has copies of its own."""

    def on(name: str) -> None:
        cache_module._remote.cache_clear()
        monkeypatch.setenv("HARNESS_CACHE", address)
        monkeypatch.setenv("HARNESS_CACHE_COPIES", str(tmp_path / name))

    yield on
    cache_module._remote.cache_clear()


def place() -> Any:
    """What lies behind the cache."""
    found = cache_module._behind()
    assert found is not None
    return found


def there() -> set[str]:
    """The names of what lies behind the cache."""
    held = place()
    return {str(path).removeprefix(held._root).lstrip("/") for path in held._files.find(held._root)}


def kept(name: str, content: bytes) -> Path:
    """A file of this machine's copies, shared."""
    path = cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    share(path)
    return path


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """From the call on what lies behind the cache has room for nothing, or does not answer."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in names:
        monkeypatch.setattr(type(place()._files), name, refused)


def values(lm: LM, edits: list[Edit]) -> tuple[torch.Tensor, ValueCache]:
    with values_from(ValueCache(values_folder())) as cache:
        return optimise(lm, edits, ("{}",), objective=Objective(1, steps=3), keys=True).delta, cache


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_one_machine_keeps_another_takes(machine: Machine, tmp_path: Path) -> None:
    machine("one")
    path = kept("values/a.bin", b"a")
    assert path == tmp_path / "one" / "values" / "a.bin"
    assert there() == {"values/a.bin"}
    machine("two")
    assert in_cache(cache_folder() / "values" / "a.bin")
    assert not in_cache(cache_folder() / "values" / "b.bin")
    assert (tmp_path / "two" / "values" / "a.bin").read_bytes() == b"a"
    assert [path.name for path in (tmp_path / "two" / "values").iterdir()] == ["a.bin"]


def test_what_is_kept_anew_takes_the_place_of_what_was(machine: Machine) -> None:
    machine("one")
    kept("values/a.bin", b"a")
    kept("values/a.bin", b"b")
    machine("two")
    path = cache_folder() / "values" / "a.bin"
    assert in_cache(path)
    assert path.read_bytes() == b"b"


def test_what_is_here_is_not_asked_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("one")
    path = kept("values/a.bin", b"a")
    monkeypatch.setattr(remote.Remote, "fetch", lambda *_: pytest.fail("asked"))
    assert in_cache(path)


def test_files_elsewhere_are_not_shared(machine: Machine, tmp_path: Path) -> None:
    machine("one")
    path = tmp_path / "x.bin"
    assert not in_cache(path)
    path.write_bytes(b"x")
    share(path)
    assert there() == set()
    assert in_cache(path)


def test_a_folder_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "one"))
    monkeypatch.setenv("HARNESS_CACHE_COPIES", str(tmp_path / "two"))
    monkeypatch.setattr(cache_module, "_remote", lambda _address: pytest.fail("asked"))
    path = kept("values/a.bin", b"a")
    assert path.is_relative_to(tmp_path / "one")
    assert not in_cache(path.with_name("b.bin"))


def test_each_address_has_copies_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_CACHE_COPIES", raising=False)
    found = set()
    for address in ("memory://one", "memory://two"):
        monkeypatch.setenv("HARNESS_CACHE", address)
        found.add(cache_folder())
    assert len(found) == 2


# --- addresses that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "why"), [("nowhere://x", "Protocol not known: nowhere"), ("s3://bucket/cache", "Install s3fs")]
)
def test_an_address_that_cannot_be_used_is_one_line(wrong: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    monkeypatch.setenv("HARNESS_CACHE", wrong)
    with pytest.raises(UsageError, match=why):
        cache_folder()


def test_an_address_that_cannot_be_used_is_told_by_a_command_before_it_loads(tmp_path: Path) -> None:
    words = ["run", "--editor", "memit", "--edits", "counterfact:1", "--output", str(tmp_path)]
    environment = {**os.environ, "HARNESS_CACHE": "nowhere://x"}
    call = [sys.executable, "-m", "harness.cli", *words]
    done = subprocess.run(call, env=environment, check=False, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2
    assert "nowhere://x: no place for a cache (Protocol not known: nowhere); " in done.stderr
    told = [line for line in done.stderr.splitlines() if not line.endswith("] load")]
    assert len(told) == 1 and "Loading weights" not in done.stderr


# --- places that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["put_file", "mv"])
def test_a_full_place_is_told_once_and_has_all_when_there_is_room(
    broken: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine("one")
    with monkeypatch.context() as patch:
        refuse(patch, broken)
        paths = [kept(f"values/{name}.bin", name.encode()) for name in "abc"]
    assert [path.read_bytes() for path in paths] == [b"a", b"b", b"c"]
    assert there() == set()  # also nothing half
    (line,) = caplog.messages
    assert line.startswith(f"{place().address}: cannot be written (No space left on device); for now ")
    kept("values/d.bin", b"d")
    assert there() == set()  # left alone for a while
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    place()._silent_until["written"] = 0.0
    kept("values/e.bin", b"e")
    assert there() == {f"values/{name}.bin" for name in "abcde"}
    assert len(caplog.messages) == 1


def test_a_place_that_vanishes_is_told_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine("one")
    path = kept("values/a.bin", b"a")
    machine("two")
    refuse(monkeypatch, "get_file")
    assert not in_cache(cache_folder() / "values" / "a.bin")
    assert not in_cache(cache_folder() / "values" / "b.bin")
    assert len(caplog.messages) == 1
    assert "cannot be read (No space left on device)" in caplog.text
    assert path.read_bytes() == b"a"
    kept("values/c.bin", b"c")  # what can be written to is
    assert "values/c.bin" in there()


def test_a_file_that_is_gone_before_there_is_room_is_no_obstacle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    with monkeypatch.context() as patch:
        refuse(patch, "put_file")
        kept("values/a.bin", b"a").unlink()
    place()._silent_until["written"] = 0.0
    kept("values/b.bin", b"b")
    assert there() == {"values/b.bin"}


# --- what runs keep --------------------------------------------------------------------------------------------------


def test_values_are_shared(
    tiny: Callable[[str], LM], edits: list[Edit], machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("gpt2")
    machine("one")
    made, first = values(lm, edits)
    machine("two")
    taken, second = values(lm, edits)
    assert (first.optimised, first.found, second.optimised, second.found) == (3, 0, 0, 3)
    assert torch.equal(made, taken)
    # A file that was cut there is told, made again, and whole there afterwards.
    (name,) = there()
    place()._files.pipe_file(f"{place()._root}/{name}", b"cut")
    machine("three")
    again, third = values(lm, edits)
    assert third.optimised == 3 and torch.equal(made, again)
    assert "these values are optimised again" in caplog.text
    machine("four")
    assert values(lm, edits)[1].found == 3


def test_values_are_used_where_the_place_refuses_them(
    tiny: Callable[[str], LM], edits: list[Edit], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    with monkeypatch.context() as patch:
        refuse(patch, "put_file", "get_file")
        made, first = values(tiny("gpt2"), edits)
    taken, second = values(tiny("gpt2"), edits)
    assert (first.optimised, second.found) == (3, 3) and torch.equal(made, taken)
    assert there() == set()


def test_moments_and_their_factors_are_shared(
    tiny: Callable[[str], LM], machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decompositions, "LARGE", 8)
    lm = tiny("gpt2")
    machine("one")
    made = moments(lm, [1], tokens=2000)[1]
    factor, spectrum = made.factor, made.spectrum
    assert sorted(name.partition("/")[0] for name in there()) == ["factors", "moments", "spectra"]
    machine("two")
    assert missing_moments(lm, [1], tokens=2000) == []
    with monkeypatch.context() as patch:
        patch.setattr("harness.methods.second_moments.accumulate_moments", lambda *_, **__: pytest.fail("made again"))
        for name in ("cholesky_ex", "eigh"):
            patch.setattr(torch.linalg, name, lambda *_: pytest.fail("computed again"))
        taken = moments(lm, [1], tokens=2000)[1]
        assert torch.equal(taken.factor, factor)
        assert torch.equal(taken.spectrum[1], spectrum[1])
    # What names a moment finds it on a machine that has not read it yet.
    name = taken.kept_as()
    assert name is not None
    machine("three")
    assert torch.equal(type(taken).read_kept(name).matrix, made.matrix)
    for path in there():
        place()._files.pipe_file(f"{place()._root}/{path}", b"cut")
    machine("four")
    assert torch.equal(moments(lm, [1], tokens=2000)[1].factor, factor)
    assert "it is made again" in caplog.text and "it is computed again" in caplog.text
    assert (moments_folder() / f"{made.key}.safetensors").is_file()


def test_numbers_of_the_unedited_model_are_shared(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine("one")
    measured = measure.Measured(documents={"x": {"prompt": "y"}})
    assert measure.measured_once("key", lambda: measured) == measured
    machine("two")
    assert measure.measured_once("key", lambda: pytest.fail("measured again")).documents == measured.documents
    (name,) = there()
    place()._files.pipe_file(f"{place()._root}/{name}", b"cut")
    machine("three")
    assert measure.measured_once("key", lambda: measured) == measured
    assert "measured again" in caplog.text
    machine("four")
    assert measure.load_base("key") is not None


def test_fitted_editors_are_shared(tiny: Callable[[str], LM], machine: Machine) -> None:
    lm = tiny("gpt2")
    method = configure(find("mend"), lm.name, {})
    assert isinstance(method, Learned)
    layout = method.layout(lm)
    assert layout is not None
    learned = replace(method, learned={name: torch.ones_like(like, device="cpu") for name, like in layout.items()})
    machine("one")
    save_learned(learned, lm, default_path(method, lm), trained={})
    machine("two")
    found = require_learned(method, lm, None)
    assert isinstance(found, Learned) and found.learned is not None
    assert all(bool((tensor == 1).all()) for tensor in found.learned.values())


def test_hashes_of_weights_are_shared(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_LARGE", 0)
    tensors = {"a": torch.ones(3)}
    machine("one")
    made = published.Published().of_model(tensors)
    machine("two")
    monkeypatch.setattr(published, "tensor_sha256", lambda _: pytest.fail("hashed again"))
    assert published.Published().of_model(tensors) == made


def test_processes_of_two_machines_share(tmp_path: Path) -> None:
    """What the first has made the second takes, which has none of its files but the shared ones."""
    said = []
    for name in ("one", "two"):
        environment = {
            **os.environ, "HARNESS_CACHE": f"file://{tmp_path}/shared", "HARNESS_CACHE_COPIES": str(tmp_path / name)
        }  # fmt: skip
        call = [sys.executable, "-c", SHARED_WORK]
        done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True, timeout=1800)
        said.append(done.stdout.split())
    (first, *made), (second, *taken) = said
    assert (first, second) == ("0", "2")
    assert made == taken
    assert not [path for path in (tmp_path / "shared").rglob("*") if path.name.startswith(".")]


def test_a_failure_says_its_reason(caplog: pytest.LogCaptureFixture, machine: Machine, tmp_path: Path) -> None:
    """A place below a file is none, whatever the driver raises."""
    machine("one")
    (tmp_path / "file").touch()
    held = remote.Remote(f"file://{tmp_path}/file/cache")
    with caplog.at_level(logging.WARNING):
        held.put("values/a.bin", kept("values/a.bin", b"a"))
    assert "cannot be written (Not a directory)" in caplog.text or "cannot be written (File exists)" in caplog.text
