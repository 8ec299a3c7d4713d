"""What several processes need at once is made by one of them, and a killed one is no obstacle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.io.cache import cache_apart, cache_folder
from harness.io.locks import made_once

MAKE = """
import sys, time
from pathlib import Path
from harness.io.locks import made_once
with made_once(Path("values/abc.safetensors")) as waited:
    print(waited, flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def start(seconds: float) -> subprocess.Popen[str]:
    made = subprocess.Popen([sys.executable, "-c", MAKE, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    return made


def said(made: subprocess.Popen[str]) -> str:
    assert made.stdout is not None
    return made.stdout.readline().strip()


def test_who_comes_second_waits_and_is_told_so() -> None:
    first = start(0.5)
    assert said(first) == "False"
    began = time.monotonic()
    with made_once(Path("elsewhere/abc.safetensors")) as waited:  # the name says what it is, wherever the cache lies
        assert waited
        assert time.monotonic() - began > 0.2
    with made_once(Path("values/abc.safetensors")) as waited, made_once(Path("values/other.safetensors")) as other:
        assert not waited
        assert not other
    first.communicate()


def test_a_killed_maker_lets_go() -> None:
    first = start(60)
    assert said(first) == "False"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    with made_once(Path("values/abc.safetensors")):
        pass


def test_where_no_lock_can_be_had_each_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with made_once(Path("values/abc.safetensors")) as waited:
        assert not waited


def test_a_cache_apart_has_locks_of_its_own() -> None:
    with made_once(Path("values/abc.safetensors")), cache_apart(), made_once(Path("values/abc.safetensors")) as waited:
        assert not waited
    assert [path.name for path in cache_folder().rglob("*") if path.is_file()] == ["abc.safetensors.lock"]
