"""Samples on the page of a record: those that changed first, what changed marked, hostile text as text."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from synthetic import record, write

from harness.errors import DataError
from harness.reports.board.sample_view import A_TASK, samples_view
from harness.reports.board.site import write_board
from harness.runs.sample_file import samples_path

HOSTILE = "</pre><img src=x onerror=alert(1)>"


def line(task: str, doc: int, before: str | None, after: str | None, **more: object) -> dict[str, object]:
    asked = {"task": task, "doc_id": doc, "kind": "efficacy", "at": 50, "prompt": HOSTILE, "target": "Rome"}
    said = {key: None if text is None else {"text": text} for key, text in (("before", before), ("after", after))}
    return {**asked, **said, **more}


def keep(path: Path, lines: list[dict[str, object]]) -> None:
    samples_path(path).write_bytes(lzma.compress("".join(f"{json.dumps(one)}\n" for one in lines).encode()))


def test_what_changed_comes_first_and_is_marked(tmp_path: Path) -> None:
    path = write(tmp_path, record("memit", 0.9))
    assert samples_view(path) is None
    same = [line("NLI", i, "true", "true") for i in range(A_TASK)]
    keep(path, [*same, line("NLI", 90, "in the city of Paris now", "in the city of Rome now")])
    found = samples_view(path)
    assert found is not None and (found.count, found.changed, len(found.samples)) == (A_TASK + 1, 1, A_TASK)
    assert found.samples[0].before == (("in the city of ", False), ("Paris", True), (" now", False))
    assert found.samples[0].after == (("in the city of ", False), ("Rome", True), (" now", False))
    assert [one.changed for one in found.samples] == [True] + [False] * (A_TASK - 1)


def test_rated_choices_stand_with_their_likelihoods(tmp_path: Path) -> None:
    path = write(tmp_path, record("memit", 0.9))
    sides = {"before": {"loglikelihoods": [-1.0, -2.5]}, "after": {"loglikelihoods": [-3.0, -0.5]}}
    keep(path, [line("NLI", 0, None, None) | sides | {"choices": [" Paris", " Rome"]}])
    found = samples_view(path)
    assert found is not None and found.samples[0].changed
    texts = ["".join(text for text, _ in side) for side in (found.samples[0].before, found.samples[0].after)]
    assert texts == ["Paris (-1.000)\nRome (-2.500)", "Rome (-0.500)\nParis (-3.000)"]


def test_samples_on_the_page(tmp_path: Path) -> None:
    path = write(tmp_path / "runs", record("memit", 0.9))
    keep(path, [line("NLI", 0, HOSTILE, "true")])
    write_board([tmp_path / "runs"], tmp_path / "site")
    (page,) = (tmp_path / "site" / "records").glob("*.html")
    text = page.read_text()
    assert "<img" not in text and "<ins>true</ins>" in text
    keep(path, [line("NLI", 0, "a", "b")])
    assert write_board([tmp_path / "runs"], tmp_path / "site").read == 1
    assert "<ins>b</ins>" in page.read_text()
    samples_path(path).write_bytes(samples_path(path).read_bytes()[:-8])
    with pytest.raises(DataError, match="not whole"):
        write_board([tmp_path / "runs"], tmp_path / "site")
