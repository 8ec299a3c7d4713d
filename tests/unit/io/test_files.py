"""What is kept: short lines for people, the same bytes for programs, whole files or none."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.exam import general_text, measure
from harness.io import files
from harness.studies.localization import localize
from harness.studies.sweeps import trial


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
    assert json.loads(files.json_text(data)) == data


def test_what_fits_stands_on_one_line() -> None:
    row = {"value": 0.5, "n": 50, "interval": [0.4, 0.6]}
    lines = files.json_text({"tasks": {f"task{i}": row for i in range(20)}}).splitlines()
    assert f'  "task3": {json.dumps(row)},' in lines
    assert len(lines) == 24
    assert files.json_text({"layers": [0, 1]}) == '{"layers": [0, 1]}'


def test_packed_reads_back_and_is_the_same_bytes() -> None:
    data = {"ids": [f"doc/{i}" for i in range(500)], "num": [i / 3 for i in range(500)]}
    for small in (True, False):
        assert files.unpack_json(files.pack_json(data, small)) == data
        assert files.pack_json(data, small) == files.pack_json(data, small)
    assert len(files.pack_json(data)) < len(json.dumps(data)) / 3


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"", lambda c: c[:20] + b"?" + c[21:], lambda c: b"{}"])
def test_damage_is_seen(damage: object) -> None:
    content = files.pack_json({"a": list(range(200))})
    with pytest.raises(ValueError, match="not whole xz"):
        files.unpack_json(damage(content))  # type: ignore[operator]


def test_nine_digits_hold_a_float32() -> None:
    import torch

    seeded = torch.Generator().manual_seed(0)
    values = torch.randn(2000, generator=seeded) * 10 ** torch.randn(2000, generator=seeded)
    assert torch.equal(torch.tensor(files.rounded(values.tolist())), values)
    assert files.rounded({"a": (0.1 + 0.2, math.nan, 7, "x", None, True)}) == {"a": [0.3, None, 7, "x", None, True]}


def test_what_is_not_finite_is_refused() -> None:
    for write in (files.json_text, files.pack_json):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"a": math.inf})


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (
            OSError(28, "No space left on device"),
            UsageError,
            r"a\.json: cannot be written \(No space left on device\); make",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_an_interrupted_write_leaves_the_file_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    path = tmp_path / "a.json"
    files.write_whole(path, b"before")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(failure))
    with pytest.raises(raised, match=message):
        files.write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "below", tmp_path / "nowhere" / "a.json", tmp_path):
        with pytest.raises(UsageError, match=f"^{path}: cannot be written"):
            files.write_whole(path, b"x")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_all_that_is_kept_is_written_whole() -> None:
    """No module writes a file in place: what fills a disk, or is killed, leaves what was there before."""
    direct = re.compile(
        r"\.write_(?:text|bytes)\(|savefig\(path|open\([^)]*[\"'][wax]b?[\"']|mkstemp|NamedTemp|[^.\w]save_file\("
    )
    found = {
        f"{path.stem}: {line.strip()}"
        for folder in ("harness", "editors", "tasks")
        for path in (Path(__file__).parents[3] / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if direct.search(line) and not line.strip().startswith(">>>")
    }
    in_folders_that_appear_whole = {
        'index: (folder / MARK).write_text(json.dumps(asdict(index), separators=(",", ":")) + "\\n", encoding="utf-8")',
        'pages: (self.folder / name).write_text(text, encoding="utf-8")',
        'eee: (place / f"{one.uuid}.json").write_text(text + "\\n", encoding="utf-8")',
        'eee: with path.open("wb") as file:',
        'csv_tables: with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:',
        'hub_results: (place / f"{_file_name(task)}.yaml").write_text(text, encoding="utf-8")',
        'lm_eval_results: (place / f"results_{date}.json").write_text(text + "\\n", encoding="utf-8")',
        'lm_eval_results: (place / f"samples_{sanitize_task_name(task)}_{date}.jsonl").write_text(lines, encoding="utf-8")',  # noqa: E501
        'submissions: (folder / _PLAN).write_text(json_text(record.plan) + "\\n", encoding="utf-8")',
        'submissions: (folder / _ABOUT).write_text(json_text({**about, "files": files, **given}) + "\\n", encoding="utf-8")',  # noqa: E501
    }
    assert found == in_folders_that_appear_whole | {
        'data: with part.open("wb") as file:',  # of a download, beside its place
        'files: with temporary.open("wb") as file:',
        "tensor_file: save_file(dict(tensors), partial, metadata=dict(metadata))",
        'clock: Path("/proc/self/clear_refs").write_text("5")',
    }


def test_a_full_disk_is_told_whatever_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line of the program's own, and nothing half-written stays."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", full)
    writers: dict[str, Callable[[], object]] = {
        "the numbers of the unedited model": lambda: measure.save_base("key", measure.Measured()),
        "a corpus": lambda: general_text.write_texts(tmp_path / "corpus.jsonl", ["a"]),
        "a trial of a sweep": lambda: trial.write_trial(
            tmp_path, trial.Trial(trial.Job("m", "temporal", "x", "x"), ())
        ),
        "a study of layers": lambda: localize.LocalizationStudy(tmp_path / "study.json.gz", {}).save(),
    }
    for what, write in writers.items():
        with pytest.raises(UsageError, match=r"cannot be written \(No space left on device\)"):
            write()
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], what


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written to .*; set HARNESS_CACHE to a folder of yours"):
        measure.save_base("key", measure.Measured())


# --- what killed writers leave ----------------------------------------------------------------------------------------


def _ended() -> bytes:
    """The number of a process that lives no more."""
    return subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    ).stdout


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    host, ended = socket.gethostname(), int(_ended())
    names = {
        f".a.json.{host}.{ended}": False,
        f".a.json.{ended}": False,  # of an earlier version
        f".a.json.{host}.{os.getppid()}": True,  # its writer lives
        f".a.json.elsewhere.{ended}": True,  # who knows who lives on another machine
        f".b.json.{host}.{ended}": True,  # of another file
        ".a.json.lock": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    files.write_whole(tmp_path / "a.json", b"whole")
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert (tmp_path / "a.json").read_bytes() == b"whole"


@pytest.mark.parametrize(
    "write",
    [
        "from harness.io.files import write_whole; write_whole(path, b'x' * 9)",
        "import torch; from harness.io import tensor_file; "
        "tensor_file.write_tensors(path, kind='patch', version=1, manifest={}, tensors={'a': torch.ones(2)})",
        "import torch; from harness.methods import second_moments as kept; "
        "about = kept.Manifest('m', 't', 'a.weight', 'text', 9, 9, 'float64'); "
        "kept._write_moment(path.parent, about, kept.Moment(torch.eye(2), 9))",
        "from harness.exam import data; data._fetch = lambda url, source: [b'x']; "
        "data._download('https://a/b', path, None, None)",
        "import os, torch; os.environ['HF_HUB_OFFLINE'] = '1'; from harness.models.lm import load; "
        "from harness.editing import checkpoint; Path.rename = Path.replace; "
        "checkpoint._save_whole(load('mini', device='cpu'), path, None)",
    ],
    ids=["bytes", "tensors", "moments", "download", "checkpoint"],
)
def test_a_writer_that_is_killed_leaves_nothing_after_the_next(write: str, tmp_path: Path) -> None:
    """Killed where the file is whole but not yet in its place."""
    head = f"import os, signal; from pathlib import Path; path = Path({str(tmp_path / 'file')!r}); "
    die = "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
    killed = subprocess.run([sys.executable, "-c", head + die + write], check=False)
    assert (killed.returncode, len(list(tmp_path.iterdir()))) == (-signal.SIGKILL, 1)
    subprocess.run([sys.executable, "-c", head + write], check=True)
    (left,) = tmp_path.iterdir()
    assert left.name == "file" or left.suffix == ".safetensors"


def test_what_safetensors_leaves_when_it_is_killed_goes_with_the_next_writer(tmp_path: Path) -> None:
    """It writes to a temporary file of its own, whose name it draws."""
    head = (
        "import os, signal, torch; from pathlib import Path; from harness.io import tensor_file; "
        f"path = Path({str(tmp_path / 'file')!r}); "
    )
    die = (
        "tensor_file.save_file = lambda tensors, place, metadata: "
        "((place.parent / '.tmpLbN6Xi').touch(), os.kill(os.getpid(), signal.SIGKILL)); "
    )
    write = "tensor_file.write_tensors(path, kind='patch', version=1, manifest={}, tensors={'a': torch.ones(2)})"
    killed = subprocess.run([sys.executable, "-c", head + die + write], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob(".tmp*")] == [".tmpLbN6Xi"]
    subprocess.run([sys.executable, "-c", head + write], check=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("~/a/b.txt", "HOME/a/b.txt"),
        ("rome+~/mine.py", "rome+HOME/mine.py"),
        (["~/a", "b~/c", 3], ["HOME/a", "b~/c", 3]),
        (
            {"text": "~/t", "settings": {"file": "~/f", "rate": 0.5}},
            {"text": "HOME/t", "settings": {"file": "HOME/f", "rate": 0.5}},
        ),
        ("~x", "~x"),
        (None, None),
    ],
)
def test_paths_of_the_home_folder(
    value: object, found: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = json.loads(json.dumps(found).replace("HOME", str(tmp_path)))
    assert files.at_home(value) == wanted
