"""Rows from three sources, and what is said when a file is not what it should be."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError, UsageError
from harness.exam import data

ROWS = [{"text": "one\u2028two", "label": 1}, {"text": "zwei", "label": 0}, {"text": "", "label": 1}]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with one file."""
    place = tmp_path / "data"
    (place / "sets").mkdir(parents=True)
    (place / "sets" / "toy.jsonl").write_bytes(_lines(ROWS))
    return place


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """A tasks folder with the data set ``toy``; keywords replace entries of its file table."""

    def make(**entry: object) -> Path:
        place = tmp_path / "tasks" / "own" / "toy"
        place.mkdir(parents=True, exist_ok=True)
        file = {"path": "sets/toy.jsonl", "sha256": _sha(_lines(ROWS)), "url": None} | entry
        source = {"fields": {"text": "str", "label": "int"}, "files": {"test": file}, "citation": "nobody"}
        metadata = {"version": 1.0, "licence": "CC0", "source": source}
        header = "task: toy\nprocess_results: !function functions.nowhere\nmetadata: "
        (place / "toy.yaml").write_text(header + json.dumps(metadata))
        (place / "mini.jsonl").write_bytes(_lines(ROWS[:2]))
        return tmp_path / "tasks"

    return make


class _Server(ThreadingHTTPServer):
    """A loopback server that remembers what was asked for."""

    asked: list[str]
    cut: int = 0  # bytes left out at the end of every body


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.server.cut])


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], _Server]]:
    """Serve a folder on the loopback interface as the mirror of all data; the cache is empty."""
    running: list[tuple[_Server, threading.Thread]] = []
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")

    def start(place: Path) -> _Server:
        server = _Server(("127.0.0.1", 0), partial(_Handler, directory=str(place)))
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        monkeypatch.setenv("HARNESS_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


# --- JSON lines and tables


def test_jsonl_rows_in_order_and_line_separators_inside_strings_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + _lines(ROWS).replace(b"\n", b"\r\n\r\n"))
    assert data.read_jsonl(path) == ROWS


def test_jsonl_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(_lines(ROWS)))
    assert data.read_jsonl(path) == ROWS


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        (b"", ["empty", "JSON object"]),
        (b"\n \n", ["empty"]),
        (b'{"text": "a", "label": 1}\n\n{"text": "b", "lab', ["line 3", "not JSON", "cut off"]),
        (b'{"text": "a", "label": 1}\n[1, 2]\n', ["line 2", "found list"]),
        (b'{"text": "a", "label": 1}\nnull\n', ["line 2", "found NoneType"]),
        (b'{"text": "a", "label": 1}\n{"text": "a", "labels": 1}\n', ["line 2", "'label'", "did you mean labels"]),
        (b'{"text": 3, "label": 1}\n', ["line 1", "'text' is int", "expected str"]),
        (b'{"text": "a", "label": true}\n', ["line 1", "'label' is bool", "expected int"]),
        (b'{"text": "\xff"}\n', ["not UTF-8", "byte 10"]),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path: Path, content: bytes, needles: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.read_jsonl(path, {"text": "str", "label": "int"})
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert [needle for needle in needles if needle not in message] == []


def test_jsonl_field_names_without_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": 1}\n{"promt": 1}\n')
    with pytest.raises(DataError, match=r"line 2: no field 'prompt'.*did you mean promt"):
        data.read_jsonl(path, ["prompt"])


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        data.read_jsonl(tmp_path / name)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(_lines(ROWS))[:-12])
    with pytest.raises(DataError, match="damaged gzip"):
        data.read_jsonl(path)


def test_table_unquotes_fields_that_start_with_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'index\ta\tb\n0\t"x ""y"" z"\tsays "no"\n')
    assert data.read_table(path, ["a", "b"]) == [{"a": 'x "y" z', "b": 'says "no"'}]


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("a\tc\n1\t2\n", r"line 1: no column 'b'.*needs a, b"),
        ("a\tb\n1\t2\n3\n", r"line 3: 1 columns where the header has 2"),
        ("a\tb\n", "no rows"),
        ("", "no column 'a'"),
    ],
)
def test_table_errors_name_the_line(tmp_path: Path, content: str, pattern: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=pattern):
        data.read_table(path, ["a", "b"])


# --- the table of data sets


def test_unknown_data_set_and_split_name_what_is_near(make_root: Callable[..., Path], folder: Path) -> None:
    root = make_root()
    with pytest.raises(UsageError, match=r"'toi' \(did you mean toy\?\)"):
        data.load("toi", root=root)
    with pytest.raises(UsageError, match=r"no split 'tset' \(did you mean test\?\)"):
        data.load("toy", "tset", folder, root=root)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("task: [", "not a readable YAML"),
        ("- task", "expected a mapping"),
        ("metadata: {source: {files: {test: {url: x}}}}", "files.test needs at least `path`"),
        ("metadata: {source: {fields: {a: strr}, files: {}}}", r"fields.a is 'strr' \(did you mean .*str"),
    ],
)
def test_a_broken_yaml_is_named_not_passed_over(tmp_path: Path, content: str, pattern: str) -> None:
    place = tmp_path / "own" / "broken"
    place.mkdir(parents=True)
    (place / "broken.yaml").write_text(content)
    with pytest.raises(DataError, match=pattern) as caught:
        data.find_datasets(tmp_path)
    assert str(place / "broken.yaml") in str(caught.value)


def test_two_folders_of_one_name_are_an_error(make_root: Callable[..., Path]) -> None:
    root = make_root()
    twin = root / "other" / "toy"
    twin.mkdir(parents=True)
    (twin / "toy.yaml").write_text((root / "own" / "toy" / "toy.yaml").read_text())
    with pytest.raises(DataError, match="toy is also in"):
        data.find_datasets(root)


def test_a_new_task_folder_needs_no_registration(make_root: Callable[..., Path]) -> None:
    found = data.find_datasets(make_root())["toy"]
    assert (found.licence, found.citation, dict(found.fields)) == ("CC0", "nobody", {"text": "str", "label": "int"})
    assert found.files["test"].published_sha256 == _sha(_lines(ROWS))


def test_a_parser_beside_the_yaml_is_used_for_files_only(make_root: Callable[..., Path], folder: Path) -> None:
    root = make_root()
    functions = root / "own" / "toy" / "functions.py"
    functions.write_text("def rows(path):\n    return [{'text': path.name, 'label': 7}]\n")
    assert data.load("toy", data_dir=folder, root=root) == [{"text": "toy.jsonl", "label": 7}]
    assert data.load("toy", root=root) == ROWS[:2]


def test_rows_of_a_parser_are_checked(make_root: Callable[..., Path], folder: Path) -> None:
    root = make_root()
    functions = root / "own" / "toy" / "functions.py"
    functions.write_text("def rows(path):\n    return [{'text': 'a', 'label': 7}, {'text': 'b'}]\n")
    with pytest.raises(DataError, match=r"toy\.jsonl, row 2: no field 'label'"):
        data.load("toy", data_dir=folder, root=root)


# --- shipped rows and folders


def test_mini_is_the_default(make_root: Callable[..., Path]) -> None:
    root = make_root()
    assert data.load("toy", root=root) == data.load("toy", data_dir="mini", root=root) == ROWS[:2]
    found = data.provenance("toy", root=root)
    assert found == data.Provenance("mini", "toy/mini.jsonl", _sha(_lines(ROWS[:2])), 2, True)
    with pytest.raises(DataError, match=r"toy ships no rows for the split 'train' \(mini_train\.jsonl"):
        data.load("toy", "train", root=root)


def test_folder_rows_are_verified(make_root: Callable[..., Path], folder: Path) -> None:
    root = make_root()
    assert data.load("toy", data_dir=folder, root=root) == ROWS
    found = data.provenance("toy", data_dir=str(folder), root=root)
    assert found == data.Provenance("folder", "sets/toy.jsonl", _sha(_lines(ROWS)), 3, True)


def test_ones_own_version_of_a_file_is_used_and_noted(make_root: Callable[..., Path], folder: Path) -> None:
    root = make_root()
    (folder / "sets" / "toy.jsonl").write_bytes(_lines(ROWS[1:]))
    assert data.load("toy", data_dir=folder, root=root) == ROWS[1:]
    found = data.provenance("toy", data_dir=folder, root=root)
    assert (found.rows, found.verified, found.sha256) == (2, False, _sha(_lines(ROWS[1:])))


def test_a_file_directly_in_the_folder_is_found(make_root: Callable[..., Path], folder: Path) -> None:
    assert data.load("toy", data_dir=folder / "sets", root=make_root()) == ROWS


# --- a second file


MORE = [{"of": "b", "n": 1}, {"of": "a", "n": 2}, {"n": 3}, {"of": "b", "n": 4}]
"""Rows of a second file; one names no row of the first."""
TOLD = [{"of": name, "text": name, "label": place} for place, name in enumerate("abc")]


@pytest.fixture
def two(make_root: Callable[..., Path], folder: Path) -> Callable[..., Path]:
    """A tasks folder whose data set has two files in the data folder; keywords replace what is said of the second."""

    def make(*more: dict[str, Any], **joined: object) -> Path:
        (folder / "sets" / "toy.jsonl").write_bytes(_lines(TOLD))
        (folder / "sets" / "more.jsonl").write_bytes(_lines([*MORE, *more]))
        told = {"path": "sets/more.jsonl", "sha256": _sha(_lines(MORE)), "by": "of", "as": "more"} | joined
        return make_root(sha256=_sha(_lines(TOLD)), joined=told)

    return make


def test_rows_of_a_second_file_stand_in_those_of_the_first(two: Callable[..., Path], folder: Path) -> None:
    found = data.load("toy", data_dir=folder, root=two())
    assert [[one["n"] for one in row["more"]] for row in found] == [[2], [1, 4], []]
    assert data.load("toy", root=two()) == ROWS[:2]  # shipped rows have what they need in them


def test_both_files_are_known_by_their_hashes(two: Callable[..., Path], folder: Path) -> None:
    root = two()
    found = data.provenance("toy", data_dir=folder, root=root)
    both = _sha(f"{_sha(_lines(TOLD))} {_sha(_lines(MORE))}".encode())
    assert found == data.Provenance("folder", "sets/toy.jsonl + sets/more.jsonl", both, 3, True)
    assert data.status(folder, root)[0].folder == "present"
    (folder / "sets" / "more.jsonl").write_bytes(_lines(MORE[1:]))
    changed = data.provenance("toy", data_dir=folder, root=root)
    assert not changed.verified and changed.sha256 != both
    assert data.status(folder, root)[0].folder == "changed"
    (folder / "sets" / "more.jsonl").unlink()
    assert data.status(folder, root)[0].folder == "missing"
    with pytest.raises(DataError, match=r"more\.jsonl: not found, needed for toy"):
        data.load("toy", data_dir=folder, root=root)


def test_files_that_do_not_go_together_are_told(
    two: Callable[..., Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = two({"of": "z"})
    assert len(data.load("toy", data_dir=folder, root=root)) == 3
    assert "of 3 values of 'of' 1 stand in no row of the other file, so that their rows are not asked" in caplog.text
    (folder / "sets" / "more.jsonl").write_bytes(_lines([{"of": "z"}]))
    with pytest.raises(DataError, match=r"of 1 values of 'of' 1 stand in no row .*'z'.*do not go together"):
        data.load("toy", data_dir=folder, root=root)


@pytest.mark.parametrize(
    ("joined", "said"),
    [
        ({"by": None}, "files.test.joined.by is None, expected the field that rows of both files have"),
        ({"as": 3}, "files.test.joined.as is 3, expected the field that holds them"),
        ({"path": "../x.jsonl"}, "files.test.joined.path is '../x.jsonl', expected a place inside the data folder"),
        ({"path": None}, "files.test.joined needs at least `path`"),
        ({"joined": {"path": "x", "by": "of", "as": "y"}}, "files.test.joined.joined: a third file is not read"),
    ],
)
def test_a_second_file_is_described_whole(two: Callable[..., Path], joined: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        data.find_datasets(two(**joined))


def test_missing_folder_and_file(make_root: Callable[..., Path], tmp_path: Path) -> None:
    root = make_root(url="https://example.org/toy.jsonl")
    with pytest.raises(DataError, match="no such folder"):
        data.load("toy", data_dir=tmp_path / "nowhere", root=root)
    with pytest.raises(DataError, match=r"toy\.jsonl: not found.*https://example\.org/toy\.jsonl.*--data-dir mini"):
        data.load("toy", data_dir=tmp_path, root=root)


@pytest.mark.parametrize(("change", "state"), [(None, "present"), (b"{}\n", "changed"), (b"", "missing")])
def test_status(make_root: Callable[..., Path], folder: Path, change: bytes | None, state: str) -> None:
    root = make_root(url="https://example.org/toy.jsonl")
    path = folder / "sets" / "toy.jsonl"
    if change:
        path.write_bytes(change)
    elif change is not None:
        path.unlink()
    expected = data.Status("toy", "test", 2, state, "https://example.org/toy.jsonl", "CC0")
    assert data.status(folder, root) == [expected]
    assert data.status(None, root)[0].folder is None


# --- the published address


def test_published_rows_are_those_of_the_folder_and_cached(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server]
) -> None:
    root, server = make_root(), serve(folder)
    assert data.load("toy", data_dir="hub", root=root) == data.load("toy", data_dir=folder, root=root) == ROWS
    found = data.provenance("toy", data_dir="hub", root=root)
    assert (found.source, found.sha256, found.rows, found.verified) == ("published", _sha(_lines(ROWS)), 3, True)
    assert found.path == f"http://127.0.0.1:{server.server_port}/sets/toy.jsonl"
    assert server.asked == ["/sets/toy.jsonl"]  # the second use came from the cache


def test_a_damaged_cache_is_fetched_again(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], tmp_path: Path
) -> None:
    root, server = make_root(), serve(folder)
    data.load("toy", data_dir="hub", root=root)
    (cached,) = (tmp_path / "cache").rglob("toy.jsonl")
    cached.write_bytes(_lines(ROWS[:1]))
    assert data.load("toy", data_dir="hub", root=root) == ROWS
    assert len(server.asked) == 2


def _kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_another_sha256_is_refused(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], tmp_path: Path
) -> None:
    serve(folder)
    (folder / "sets" / "toy.jsonl").write_bytes(_lines(ROWS[:1]))
    with pytest.raises(DataError, match=f"sha256 {_sha(_lines(ROWS[:1]))} where {_sha(_lines(ROWS))} was expected"):
        data.load("toy", data_dir="hub", root=make_root())
    assert _kept(tmp_path) == []


def test_a_cut_download_is_refused(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], tmp_path: Path
) -> None:
    serve(folder).cut = 10
    size = len(_lines(ROWS))
    with pytest.raises(DataError, match=f"cut off after {size - 10} of {size} bytes"):
        data.load("toy", data_dir="hub", root=make_root(sha256=None))
    assert _kept(tmp_path) == []


def test_a_file_that_is_gone(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], tmp_path: Path
) -> None:
    serve(folder)
    with pytest.raises(DataError, match=r"sets/gone\.jsonl: the server answers 404.*FOLDER/sets/gone\.jsonl"):
        data.load("toy", data_dir="hub", root=make_root(path="sets/gone.jsonl"))
    assert _kept(tmp_path) == []


def test_no_connection_says_how_to_get_the_file(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server]
) -> None:
    server = serve(folder)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused.*\).*FOLDER/sets/toy\.jsonl"):
        data.load("toy", data_dir="hub", root=make_root())


def test_offline_mode_opens_no_connection(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(folder)
    root = make_root(url=f"http://127.0.0.1:{server.server_port}/sets/toy.jsonl")
    monkeypatch.delenv("HARNESS_MIRROR")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="not fetched, HF_HUB_OFFLINE is set"):
        data.load("toy", data_dir="hub", root=root)
    assert server.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert data.load("toy", data_dir="hub", root=root) == ROWS


def test_without_an_address(make_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_MIRROR", raising=False)
    with pytest.raises(DataError, match=r"toy: no published address is known for sets/toy\.jsonl"):
        data.load("toy", data_dir="hub", root=make_root())


def test_published_bytes_may_differ_from_those_of_the_folder(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(folder)
    content = _lines(ROWS[:1])
    (folder / "else.jsonl").write_bytes(content)
    monkeypatch.delenv("HARNESS_MIRROR")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    url = f"http://127.0.0.1:{server.server_port}/else.jsonl"
    root = make_root(url=url, published_sha256=_sha(content))
    assert data.provenance("toy", data_dir="hub", root=root).verified
    assert data.provenance("toy", data_dir="hub", root=make_root(url=url, published_sha256=None)).verified is False


def test_numbered_parts_are_joined_in_order(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": str(number), "label": number} for number in range(1, 13)]
    for row in rows:
        (folder / f"part_{row['label']}.txt").write_text(json.dumps(row))
    server = serve(folder)
    monkeypatch.delenv("HARNESS_MIRROR")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    url = f"http://127.0.0.1:{server.server_port}/part_{{1..12}}.txt"
    root = make_root(url=url, published_sha256=_sha(_lines(rows)))
    assert data.load("toy", data_dir="hub", root=root) == rows


def test_a_cache_that_cannot_be_written(
    make_root: Callable[..., Path],
    folder: Path,
    serve: Callable[[Path], _Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set HARNESS_CACHE"):
        data.load("toy", data_dir="hub", root=make_root())


# --- real data

COUNTS = {
    "reasoning": 1319,
    "NLI": 2489,
    "OpenDomainQA": 3610,
    "ClosedDomainQA": 3270,
    "dialogue": 886,
    "NER": 3453,
    "SentimentAnalysis": 872,
    "summarization": 818,
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows_are_complete_and_the_same_from_the_published_address(
    name: str, shared: Path, serve: Callable[[Path], _Server]
) -> None:
    found = data.provenance(name, data_dir=shared / "data")
    assert (found.rows, found.verified) == (COUNTS[name], True)
    serve(shared / "data")
    assert data.load(name, data_dir="hub") == data.load(name, data_dir=shared / "data")


def test_the_published_conll_file_gives_the_rows_of_the_folder(shared: Path) -> None:
    described = data.find_datasets()["NER"]
    functions = data.functions(described)
    assert functions is not None
    published = shared / "data" / "general" / "conll2003" / "eng.testb"
    assert _sha(published.read_bytes()) == described.files["test"].published_sha256
    assert functions.rows(published) == data.load("NER", data_dir=shared / "data")


@pytest.mark.parametrize(
    ("name", "rows"), [("reasoning", 7473), ("NLI", 277), ("NER", 14041), ("dialogue", 7088)]
)  # fmt: skip
def test_real_held_out_rows(name: str, rows: int, shared: Path) -> None:
    found = data.provenance(name, "train", shared / "data")
    assert (found.rows, found.verified) == (rows, True)


def test_real_labels(shared: Path) -> None:
    labels = [row["label"] for row in data.load("NLI", data_dir=shared / "data")]
    assert (labels.count("entailment"), labels.count("not_entailment")) == (1249, 1240)
    tags = [tag for row in data.load("NER", data_dir=shared / "data") for tag in row["tags"] if tag.startswith("B-")]
    counts = {kind: tags.count(f"B-{kind}") for kind in ("PER", "LOC", "ORG", "MISC")}
    assert counts == {"PER": 1617, "LOC": 1668, "ORG": 1661, "MISC": 702}


# --- what a YAML may name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.jsonl", "sets/../../x.jsonl", "C:/x.jsonl", "sets\\x.jsonl", ""]
)
def test_a_path_stays_inside_the_data_folder(make_root: Callable[..., Path], folder: Path, path: str) -> None:
    with pytest.raises(
        DataError, match=r"toy.yaml: metadata.source.files.test.path is .*, expected a place inside the data"
    ):
        data.load("toy", data_dir=folder, root=make_root(path=path))


@pytest.mark.parametrize("url", ["http://example.org/x.jsonl", "ftp://example.org/x", "file:///etc/passwd", "//x"])
def test_an_address_is_on_https(make_root: Callable[..., Path], url: str) -> None:
    with pytest.raises(DataError, match=r"files.test.url is .*, expected an address that begins with https://"):
        data.load("toy", data_dir="hub", root=make_root(url=url))


@pytest.mark.parametrize("announced", [True, False])
def test_a_download_has_a_limit(
    make_root: Callable[..., Path],
    folder: Path,
    serve: Callable[[Path], _Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    announced: bool,
) -> None:
    serve(folder)
    monkeypatch.setattr(data, "_LIMIT", 20 if announced else 60)
    monkeypatch.setattr(data, "_BLOCK", 16)
    with pytest.raises(DataError, match=r"has more than \d+ bytes"):
        data.load("toy", data_dir="hub", root=make_root())
    assert _kept(tmp_path) == []


def test_a_file_without_a_known_hash_is_held_to_its_first_download(
    make_root: Callable[..., Path], folder: Path, serve: Callable[[Path], _Server], tmp_path: Path
) -> None:
    server = serve(folder)
    root = make_root(sha256=None)
    assert data.load("toy", data_dir="hub", root=root) == ROWS
    (kept,) = (path for path in (tmp_path / "cache").rglob("toy.jsonl"))
    kept.write_bytes(kept.read_bytes().replace(b"zwei", b"drei"))  # the disk flips bits
    assert data.load("toy", data_dir="hub", root=root) == ROWS
    assert len(server.asked) == 2
    (folder / "sets" / "toy.jsonl").write_bytes(_lines([*ROWS, ROWS[0]]))  # the publisher changes the file
    kept.unlink()
    with pytest.raises(DataError, match=r"sha256 .* where .* was expected"):
        data.load("toy", data_dir="hub", root=root)


def test_every_published_file_has_an_address_on_https_and_the_two_large_sets_a_hash() -> None:
    sources = {name: found.files["test"] for name, found in data.find_datasets().items() if "test" in found.files}
    assert all(source.url is None or source.url.startswith("https://") for source in sources.values())
    assert sources["counterfact"].published_sha256 == (
        "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
    )


def test_the_ids_of_many_rows_are_looked_up_once(tmp_path: Path) -> None:
    """A set of all ids was built anew for every row: 100,000 rows took hours."""

    class Counted(list[str]):
        read = 0

        def __iter__(self) -> Iterator[str]:
            Counted.read += 1
            return super().__iter__()

    rows = [{"prompt": "{} is in", "subject": f"Town {i}", "target": "Rome"} for i in range(200)]
    path = tmp_path / "many.jsonl"
    path.write_bytes(_lines(rows))
    functions: Any = data.module(data.TASKS / "edits" / "own" / "functions.py")
    found = functions.dataset(file=str(path), records=Counted(str(i) for i in range(1, 101)))["test"]
    assert (len(found), Counted.read) == (100, 1)


def test_rows_that_are_read_again_are_those_of_the_file_as_it_is_and_nobody_elses(tmp_path: Path) -> None:
    described = data.find_datasets()["mquake"]
    own = replace(described, folder=tmp_path, name="own", fields={})
    (tmp_path / "mini.jsonl").write_text('{"a": 1}\n')
    first = data.dataset_rows(own, "test", None)
    first[0]["a"] = 9
    assert data.dataset_rows(own, "test", None) == [{"a": 1}]
    (tmp_path / "mini.jsonl").write_text('{"a": 2}\n{"a": 3}\n')
    assert data.dataset_rows(own, "test", None) == [{"a": 2}, {"a": 3}]
