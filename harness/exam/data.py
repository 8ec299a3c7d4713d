"""Rows of a data set: shipped, in a folder, or published.  The same rows whatever the source.

A data set is a folder below ``tasks/`` whose YAML carries the name of the folder and a ``metadata.source`` block
(``tasks/README.md`` shows it).  Nothing is registered: :func:`find_datasets` reads the YAMLs, without lm-eval.  Where a
file is not JSON lines, ``rows(path)`` in the folder's ``functions.py`` parses it.

* ``data_dir`` None or ``"mini"``: the shipped ``mini.jsonl`` (split ``test``) and ``mini_<split>.jsonl`` beside the
  YAML;
* ``data_dir`` a path: a folder laid out as the ``path`` entries say;
* ``data_dir`` ``"hub"``: the published address, or ``$HARNESS_MIRROR`` (the same folder layout, served over http),
  cached under ``$HARNESS_CACHE`` (default ``~/.cache/lm-edit-harness``).  No byte is used before its sha256 was
  checked against the recorded one, where one is recorded.
"""

from __future__ import annotations

import csv
import functools
import glob
import gzip
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from harness.errors import DataError, UsageError, near
from harness.io.cache import cache_folder
from harness.io.files import XZ, beside, unpack_xz, write_whole

if TYPE_CHECKING:
    import datasets

__all__ = [
    "MINI",
    "PUBLISHED",
    "TASKS",
    "Dataset",
    "Joined",
    "Provenance",
    "Source",
    "Status",
    "compose_yaml",
    "dataset_of",
    "dataset_rows",
    "file_sha256",
    "find_datasets",
    "find_one",
    "functions",
    "including",
    "load",
    "module",
    "own_yamls",
    "provenance",
    "provenance_of",
    "read_any_rows",
    "read_jsonl",
    "read_numbered_rows",
    "read_table",
    "read_text",
    "read_yaml",
    "splits",
    "status",
]

log = logging.getLogger(__name__)

Row = dict[str, Any]

MINI = "mini"
PUBLISHED = "hub"
_TYPES: dict[str, type] = {"str": str, "bool": bool, "int": int, "float": float, "list": list, "dict": dict}
_BLOCK = 1 << 20
_LARGE = 4 << 20  # bytes from which a download shows a bar
_SAFE = ("https://", "http://127.0.0.1:", "http://localhost:")  # nobody stands between this machine and itself
_LIMIT = 2 << 30  # bytes of one published file; the largest of this project has 0.1 of that
_TIMEOUT = 60.0  # seconds without an answer
_PARTS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_GZIP = b"\x1f\x8b"  # how such a file begins
_GAP = re.compile(r"[ \t\r\n]*")


def _tasks_root() -> Path:
    """``tasks/`` inside the package or beside it, whichever the installation has."""
    return Path(__file__).resolve().parents[2] / "tasks"


TASKS = _tasks_root()


@dataclass(frozen=True)
class Source:
    """Where the rows of one split lie.

    path: file in a data folder, relative, with ``/``;  sha256: of that file, None where not known;
    url: published address, pinned to a revision, None where there is none; ``{1..n}`` stands for numbered parts, which
    are joined by newlines;
    published_sha256: of what the address gives;  joined: another file, whose rows stand in those of this one.
    """

    path: str
    sha256: str | None
    url: str | None
    published_sha256: str | None
    joined: Joined | None = None


@dataclass(frozen=True)
class Joined:
    """A second file of a split: each row of the first has under a name the rows of the second that belong to it.

    source: the file;  by: the field whose value both have;  name: the field under which they stand, a list.
    """

    source: Source
    by: str
    name: str


@dataclass(frozen=True)
class Dataset:
    """One data set: the folder of its task, the fields of a row with their types, and a source for each split.

    cases: how a row becomes a case, see :mod:`harness.exam.cases`; empty where Python beside the YAML says it.
    """

    name: str
    folder: Path
    licence: str
    citation: str
    fields: Mapping[str, str]
    files: Mapping[str, Source]
    cases: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Which bytes were used, as a record keeps it.

    source: "mini", "folder" or "published";  path: the file relative to its source, or the address;
    verified: the bytes have the recorded sha256 (the shipped rows are their own reference).
    """

    source: str
    path: str
    sha256: str
    rows: int
    verified: bool


@dataclass(frozen=True)
class Status:
    """One line of ``harness data``: a split of a data set and where it can be had.

    mini: shipped rows, None where there are none;
    folder: "present", "changed" (another sha256), "missing", or None where no folder was asked about or the split has
    no file.
    """

    name: str
    split: str
    mini: int | None
    folder: str | None
    url: str | None
    licence: str


# --- the table: YAML blocks

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is some eight times as fast, where it is there


class _Loader(_Safe):  # type: ignore[misc]  # chosen as it is imported
    """YAML in which ``!function a.b`` is only its text: nothing is imported to read a table."""


def _as_text(_loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> object:
    return node.value


_Loader.add_multi_constructor("!", _as_text)


def compose_yaml(path: Path) -> yaml.Node | None:
    """The nodes of a task YAML, with the tags that are meant, however they are written; None of an empty file.

    Raises:
        DataError: it is no readable YAML.
    """
    with _readable(path):
        found: yaml.Node | None = yaml.compose(path.read_bytes(), Loader=_Safe)
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable YAML file ({_one_line(error)}); correct it") from error


def read_yaml(path: Path) -> Row:
    """The mapping in a task YAML, ``!function`` values as text; DataError where it is not one."""
    with _readable(path):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping of task settings, found {type(content).__name__}")
    return content


def own_yamls(folders: Iterable[str | Path], pattern: str = "*.yaml") -> list[Path]:
    """The YAMLs below folders of one's own, folder after folder."""
    return [path for folder in folders for path in sorted(Path(folder).rglob(pattern))]


def find_datasets(root: Path = TASKS, include: Iterable[str | Path] = ()) -> dict[str, Dataset]:
    """Every data set below ``root``, and below folders of one's own, by name."""
    own = own_yamls(include)
    return _collect([*sorted(root.rglob("*.yaml")), *own], own)


def _collect(paths: Iterable[Path], own: Iterable[Path] = ()) -> dict[str, Dataset]:
    """The data sets among YAML files; DataError where two have one name.

    Of this project's the file is called as its folder is; one's own lie as one likes.
    """
    found: dict[str, Dataset] = {}
    anywhere = set(own)
    for path in paths:
        dataset = dataset_of(path) if path in anywhere or path.stem == path.parent.name else None
        if dataset is None:
            continue
        if dataset.name in found:
            other = found[dataset.name].folder
            raise DataError(f"{path}: the data set {dataset.name} is also in {other}; rename one of the folders")
        found[dataset.name] = dataset
    return found


def dataset_of(path: Path) -> Dataset | None:
    """The data set that one YAML describes, None where it has no ``metadata.source`` block."""
    return _dataset(path, _stamp(path))


@functools.lru_cache(maxsize=1024)  # a run asks some ten times which sets there are
def _dataset(path: Path, _stamp: tuple[int, ...]) -> Dataset | None:
    """The data set that a YAML describes as it was written last."""
    metadata = read_yaml(path).get("metadata") or {}
    block = metadata.get("source")
    if not isinstance(block, dict):
        return None
    splits, said = (_said_in(path, block, key) for key in ("files", "fields"))
    files = {split: _source(path, split, entry) for split, entry in splits.items()}
    fields = {name: str(kind) for name, kind in said.items()}
    for name, kind in fields.items():
        if kind not in _TYPES:
            raise DataError(f"{path}: metadata.source.fields.{name} is {kind!r}{near(kind, _TYPES)}")
    licence, citation = str(metadata.get("licence", "not stated")), str(block.get("citation", ""))
    return Dataset(path.stem, path.parent, licence, citation, fields, files, metadata.get("case") or {})


def _said_in(path: Path, block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the source of a data set; none where it says nothing."""
    said = block.get(key) or {}
    if not isinstance(said, dict):
        like = {"files": "{test: {path: rows.jsonl}}", "fields": "{question: str}"}[key]
        raise DataError(f"{path}: metadata.source.{key} is {_short(said)}, expected a mapping such as {like}")
    return said


def _source(path: Path, split: str, entry: object) -> Source:
    return _file(path, f"metadata.source.files.{split}", entry)


def _file(path: Path, where: str, entry: object) -> Source:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise DataError(f"{path}: {where} needs at least `path`, the file's place in a data folder")
    _require_inside(path, where, entry)
    sha256 = entry.get("sha256")
    second = _second(path, f"{where}.joined", entry["joined"]) if "joined" in entry else None
    return Source(entry["path"], sha256, entry.get("url"), entry.get("published_sha256", sha256), second)


def _second(path: Path, where: str, entry: object) -> Joined:
    source = _file(path, where, entry)
    told = dict(entry) if isinstance(entry, dict) else {}
    for key, what in (("by", "the field that rows of both files have"), ("as", "the field that holds them")):
        if not isinstance(told.get(key), str):
            raise DataError(f"{path}: {where}.{key} is {told.get(key)!r}, expected {what}")
    if source.joined is not None:
        raise DataError(f"{path}: {where}.joined: a third file is not read; leave it out")
    return Joined(source, told["by"], told["as"])


def _require_inside(path: Path, where: str, entry: Mapping[str, Any]) -> None:
    """See that a YAML names a place inside a data folder, and an address that nobody on the way can change."""
    parts = PurePosixPath(entry["path"]).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in entry["path"] or ":" in parts[0]:
        raise DataError(
            f"{path}: {where}.path is {entry['path']!r}, expected a place inside the data folder, without .."
        )
    url = entry.get("url")
    if url is not None and not str(url).startswith(_SAFE):
        raise DataError(f"{path}: {where}.url is {url!r}, expected an address that begins with https://")


def find_one(name: str, root: Path = TASKS, include: Iterable[str | Path] = ()) -> Dataset | None:
    """The data set of a name, None where there is none.

    Args:
        name: what its YAML is called.
        root: the folder in which data sets lie.
        include: folders of one's own.
    """
    # Only the YAMLs of that name are parsed: a load must not cost the parsing of every task.
    own = own_yamls(include, f"{glob.escape(name)}.yaml")
    return _collect([*(path for path in sorted(root.rglob("*.yaml")) if path.stem == name), *own], own).get(name)


_INCLUDED: ContextVar[tuple[str, ...]] = ContextVar("included", default=())


@contextmanager
def including(folders: Iterable[str | Path]) -> Iterator[None]:
    """Find the data sets of folders of one's own, too, when a task reads its rows, while this lasts."""
    # The Python beside a YAML names its data set and is told of no folder.
    before = _INCLUDED.set(tuple(map(str, folders)))
    try:
        yield
    finally:
        _INCLUDED.reset(before)


def _named(name: str, root: Path) -> Dataset:
    found = find_one(name, root, _INCLUDED.get())
    if found is None:
        raise UsageError(f"no data set {name!r}{near(name, find_datasets(root, _INCLUDED.get()))}")
    return found


def functions(dataset: Dataset) -> ModuleType | None:
    """The ``functions.py`` beside a data set's YAML, None where there is none."""
    path = dataset.folder / "functions.py"
    return module(path) if path.is_file() else None


def module(path: Path) -> ModuleType:
    """A Python file of a task folder, imported once."""
    # The path is part of the module's name because every folder calls its file functions.py.
    name = f"_harness_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: cannot be imported as Python")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found


# --- rows


def load(dataset: str, split: str = "test", data_dir: str | Path | None = None, *, root: Path = TASKS) -> list[Row]:
    """The rows of a data set.

    Args:
        dataset: name of a folder below ``root`` (``NLI``, ``counterfact``, ...).
        split: ``test``, or another split that the data set has.
        data_dir: None or "mini", a folder, or "hub" (see the module's text).
        root: the folder in which data sets lie.

    Raises:
        UsageError: no such data set or split.
        DataError: a file that is missing, damaged, or has rows without the declared fields.
    """
    described = _named(dataset, root)
    place = _locate(described, split, data_dir)
    return _rows(described, place)


def dataset_rows(dataset: Dataset, split: str, data_dir: str | Path | None) -> list[Row]:
    """The rows of a data set that has been found; as :func:`load`.

    Args:
        dataset: the data set.
        split: ``test``, or another split that it has.
        data_dir: None or "mini", a folder, or "hub".
    """
    return _rows(dataset, _locate(dataset, split, data_dir))


def provenance(
    dataset: str, split: str = "test", data_dir: str | Path | None = None, *, root: Path = TASKS
) -> Provenance:
    """Which bytes :func:`load` uses for the same arguments; raises what it raises.

    Args:
        dataset: name of a folder below ``root``.
        split: ``test``, or another split that the data set has.
        data_dir: None or "mini", a folder, or "hub".
        root: the folder in which data sets lie.
    """
    return provenance_of(_named(dataset, root), split, data_dir)


def provenance_of(dataset: Dataset, split: str, data_dir: str | Path | None) -> Provenance:
    """Which bytes :func:`dataset_rows` uses for the same arguments; raises what it raises.

    Args:
        dataset: the data set.
        split: ``test``, or another split that it has.
        data_dir: None or "mini", a folder, or "hub".
    """
    place = _locate(dataset, split, data_dir)
    files = [place, *([place.second] if place.second else [])]
    verified = all(one.source == MINI or one.sha256 == _sha256(one.file) for one in files)
    label = " + ".join(one.label for one in files)
    return Provenance(place.source, label, _digest(place), len(_rows(dataset, place)), verified)


def file_sha256(dataset: Dataset, split: str = "test", data_dir: str | Path | None = None) -> str:
    """The hash of the file that :func:`load` reads of a data set, of two that of both hashes; raises what it raises.

    Args:
        dataset: the data set, as :func:`find_datasets` describes it.
        split: ``test``, or another split that the data set has.
        data_dir: None or "mini", a folder, or "hub".
    """
    return _digest(_locate(dataset, split, data_dir))


def splits(dataset: str, data_dir: str | Path | None = None, split: str = "test") -> dict[str, datasets.Dataset]:
    """One split as lm-eval's ``custom_dataset`` must return it.

    Args:
        dataset: name of a data set.
        data_dir: None or "mini", a folder, or "hub".
        split: ``test``, or another split that the data set has.
    """
    import datasets

    return {split: datasets.Dataset.from_list(load(dataset, split, data_dir))}


def status(data_dir: str | Path | None = None, root: Path = TASKS) -> list[Status]:
    """What is there, one entry for each split of each data set; reads no rows and opens no connection.

    Raises:
        DataError: the folder does not exist.
    """
    folder = None if data_dir in (None, MINI, PUBLISHED) else Path(str(data_dir))
    if folder is not None and not folder.is_dir():
        raise DataError(f"--data-dir {folder}: no such folder; give one with data files, or {MINI}, or {PUBLISHED}")
    lines: list[Status] = []
    for described in find_datasets(root).values():
        minis = [split for split in ("test", "train") if _mini_path(described, split).is_file()]
        for split in dict.fromkeys([*described.files, *minis]):
            source = described.files.get(split)
            there = _folder_state(source, folder) if source and folder else None
            lines.append(
                Status(
                    described.name,
                    split,
                    _count_lines(_mini_path(described, split)),
                    there,
                    source.url if source else None,
                    described.licence,
                )
            )
    return lines


@dataclass(frozen=True)
class _Place:
    """A file that exists, what it is called in a record, the sha256 that it should have, and a file that joins it."""

    source: str
    file: Path
    label: str
    sha256: str | None
    second: _Place | None = None
    joined: Joined | None = None


def _locate(dataset: Dataset, split: str, data_dir: str | Path | None) -> _Place:
    """The file of a split, with that which joins it; shipped rows have in them what it would bring."""
    place = _locate_first(dataset, split, data_dir)
    joined = dataset.files[split].joined if split in dataset.files else None
    if joined is None or place.source == MINI:
        return place
    alone = replace(dataset, files={split: joined.source})
    return replace(place, second=_locate_first(alone, split, data_dir, shipped=False), joined=joined)


def _digest(place: _Place) -> str:
    """The sha256 of a file; where another joins it, that of the hashes of both."""
    own = _sha256(place.file)
    return own if place.second is None else hashlib.sha256(f"{own} {_sha256(place.second.file)}".encode()).hexdigest()


def _locate_first(dataset: Dataset, split: str, data_dir: str | Path | None, *, shipped: bool = True) -> _Place:
    if data_dir is None or data_dir == MINI:
        return _locate_mini(dataset, split) if shipped else _locate_beside(dataset, split)
    source = dataset.files.get(split)
    if source is None:
        raise UsageError(f"the data set {dataset.name} has no split {split!r}{near(split, dataset.files)}")
    if data_dir == PUBLISHED:
        return _published(dataset, source)
    return _locate_in_folder(source, Path(data_dir), dataset.name)


def _mini_path(dataset: Dataset, split: str) -> Path:
    return dataset.folder / ("mini.jsonl" if split == "test" else f"mini_{split}.jsonl")


def _locate_mini(dataset: Dataset, split: str) -> _Place:
    path = _mini_path(dataset, split)
    beside = dataset.folder / dataset.files[split].path if split in dataset.files else path
    if not path.is_file() and beside.is_file():
        return _Place("folder", beside, dataset.files[split].path, dataset.files[split].sha256)
    ships = dataset.folder.is_relative_to(TASKS) or _mini_path(dataset, "test").is_file()
    if not path.is_file() and not ships:
        raise _none_beside(dataset, split)
    if not path.is_file():
        raise DataError(
            f"{dataset.name} ships no rows for the split {split!r} ({path.name} is not in its task folder); "
            "use --data-dir FOLDER or --data-dir hub"
        )
    return _Place(MINI, path, f"{dataset.name}/{path.name}", None)


def _locate_beside(dataset: Dataset, split: str) -> _Place:
    source = dataset.files[split]
    path = _in_folder(source, dataset.folder)
    if path is None:
        raise _none_beside(dataset, split)
    return _Place("folder", path, source.path, source.sha256)


def _none_beside(dataset: Dataset, split: str) -> DataError:
    """What is wrong with a data set of one's own that has no rows beside its YAML."""
    if split not in dataset.files:
        named = near(split, dataset.files) or "; name its file in metadata.source.files"
        return DataError(f"{dataset.folder / dataset.name}.yaml: it has no split {split!r}{named}")
    path = dataset.files[split].path
    return DataError(
        f"{dataset.folder / path}: no such file, where {dataset.name}.yaml says that rows of its split {split!r} lie; "
        "place it there, or name the folder that holds it with --data-dir"
    )


def _in_folder(source: Source, folder: Path) -> Path | None:
    """The file at its place in the folder, or directly in it, as the authors' own folders have it."""
    candidates = (folder / source.path, folder / Path(source.path).name)
    return next((path for path in candidates if path.is_file()), None)


def _locate_in_folder(source: Source, folder: Path, name: str) -> _Place:
    if not folder.is_dir():
        raise DataError(f"--data-dir {folder}: no such folder; give a folder with {source.path}, or mini, or hub")
    path = _in_folder(source, folder)
    if path is None:
        cure = f"place it there (it is published at {source.url})" if source.url else "place it there"
        raise DataError(f"{folder / source.path}: not found, needed for {name}; {cure}, or use --data-dir mini")
    return _Place("folder", path, source.path, source.sha256)


def _folder_state(source: Source, folder: Path) -> str:
    path = _in_folder(source, folder)
    if path is None:
        return "missing"
    own = "present" if source.sha256 in (None, _sha256(path)) else "changed"
    other = _folder_state(source.joined.source, folder) if source.joined else own
    return next(state for state in ("missing", "changed", "present") if state in (own, other))


def _count_lines(path: Path) -> int | None:
    if not path.is_file():
        return None
    return sum(1 for line in read_text(path).split("\n") if line.strip())


def _rows(dataset: Dataset, place: _Place) -> list[Row]:
    """Parsed and checked rows of a file."""
    module = None if place.source == MINI else functions(dataset)
    parse = getattr(module, "rows", None) or read_any_rows
    # Edits, exam and record each ask for the rows of a file; what they are given is theirs to change.
    found = [dict(row) for row in _read_once(parse, place.file)]
    if not found:
        raise DataError(f"{place.file}: no rows; expected rows with {', '.join(dataset.fields)}")
    if place.second is not None and place.joined is not None:
        _join(found, place.joined, place.second.file)
    for number, row in enumerate(found, start=1):
        _check_row(row, dataset.fields, f"{place.file}, row {number}")
    return found


def _join(rows: list[Row], joined: Joined, file: Path) -> None:
    """Give each row the rows of a second file that have the same value of a field."""
    belonging: dict[str, list[Row]] = {}
    for row in _read_once(read_any_rows, file):
        if isinstance(row.get(joined.by), str | int):
            belonging.setdefault(str(row[joined.by]), []).append(dict(row))
    for row in rows:
        row[joined.name] = belonging.get(str(row.get(joined.by)), [])
    left = belonging.keys() - {str(row.get(joined.by)) for row in rows}
    if left:
        said = f"{file}: of {len(belonging)} values of {joined.by!r} {len(left)} stand in no row of the other file"
        if len(left) == len(belonging):
            raise DataError(f"{said} ('{_short(min(left))}'); the two files do not go together")
        log.warning("%s, so that their rows are not asked", said)


def _read_once(parse: Callable[[Path], list[Row]], file: Path) -> list[Row]:
    return _parsed(parse, file, _stamp(file))


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file is written again."""
    stat = file.stat()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


@functools.lru_cache(maxsize=4)
def _parsed(parse: Callable[[Path], list[Row]], file: Path, _stamp: tuple[int, ...]) -> list[Row]:
    """The rows of a file as it was written last."""
    return parse(file)


def _check_row(row: Mapping[str, Any], fields: Mapping[str, str], where: str) -> None:
    for name, kind in fields.items():
        if name not in row:
            raise DataError(f"{where}: no field {name!r}; a row needs {', '.join(fields)}{near(name, row)}")
        value = row[name]
        # True is an int to Python, and a label that became a truth value would be scored as one.
        if not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
            raise DataError(f"{where}: {name!r} is {type(value).__name__} ({_short(value)}), expected {kind}")


# --- files


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, unpacked where gzip or xz packed it; line ends as they are.

    Raises:
        DataError: missing, a folder, damaged gzip or xz, or not UTF-8.
    """
    try:
        return _unpacked(path, path.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: a damaged gzip file ({error}); copy it again") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}; copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _unpacked(path: Path, raw: bytes) -> bytes:
    """What a file holds: its first bytes say how it was packed, whatever it is called."""
    if raw.startswith(XZ) or path.suffix == ".xz":
        return unpack_xz(raw)
    return gzip.decompress(raw) if raw.startswith(_GZIP) or path.suffix == ".gz" else raw


def read_jsonl(path: Path | str, fields: Mapping[str, str] | Sequence[str] = ()) -> list[Row]:
    """The objects of a JSON lines file (``.gz`` too), in order; blank lines are passed over.

    Args:
        path: the file.
        fields: names that every row must have; a mapping says their types too (str, bool, int, float, list, dict).

    Raises:
        DataError: an empty file, a line that is not a JSON object, a row without a field; names the file and the line.
    """
    path = Path(path)
    rows: list[Row] = []
    # Split at "\n" alone: str.splitlines would also cut at characters that JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse_line(line, f"{path}, line {number}")
        _check_fields(row, fields, f"{path}, line {number}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: empty; expected one JSON object a line")
    return rows


def read_any_rows(path: Path) -> list[Row]:
    """The rows of a file as :func:`read_numbered_rows` reads it.

    Raises:
        DataError: the file or a row cannot be read; names the file and the row.
    """
    found: list[Row] = []
    for place, _, row in read_numbered_rows(path):
        if isinstance(row, DataError):
            raise DataError(f"{path}, {place}: {row}") from row
        found.append(row)
    return found


def read_numbered_rows(path: Path) -> Iterator[tuple[str, str, Row | DataError]]:
    """Every row of a file: JSON lines, a JSON array, or one object over several lines (packed, too).

    Where it stands, what it is called where it has no id (its line, in an array its number), and the row.  What is no
    row is given as the error that it is, so that it does not hide the others.

    Raises:
        DataError: the file is missing, damaged, or empty.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: empty; expected one JSON object a line, or an array of them")
    if text.lstrip().startswith("["):
        for number, (line, row) in enumerate(_array_rows(text), start=1):
            yield f"line {line}, row {number}", str(number), row
    elif _is_one_object(text):
        yield "line 1", "1", _row_of(text)
    else:
        # Split at "\n" alone: str.splitlines would also cut at characters that JSON allows inside a string.
        for line, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                yield f"line {line}", str(line), _row_of(content)


def _row_of(text: str) -> Row | DataError:
    try:
        return _parse_object(text)
    except DataError as error:
        return error


def _is_one_object(text: str) -> bool:
    """Whether the text is one object that does not end on its first line."""
    first, _, rest = text.strip().partition("\n")
    return bool(rest.strip()) and isinstance(_row_of(first), DataError) and isinstance(_row_of(text), dict)


def _array_rows(text: str) -> Iterator[tuple[int, Row | DataError]]:
    """The elements of an array with their lines; where it is broken, the line of that."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _GAP.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]  # it matches nothing at all, too
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, _not_json(error, text[at : at + 200])
            return
        yield line, _checked(value, text[at:end])
        at = _GAP.match(text, end).end()  # type: ignore[union-attr]
        if text.startswith(",", at):
            at = _GAP.match(text, at + 1).end()  # type: ignore[union-attr]
        elif not text.startswith("]", at):
            yield line, DataError("the array is cut off after this row; it must end in ]")
            return
    if text[at + 1 :].strip():
        yield 1 + text.count("\n", 0, at), DataError("text stands behind the array; remove it")


def read_table(path: Path, fields: Sequence[str], delimiter: str = "\t") -> list[dict[str, str]]:
    """The rows of a delimited file with a header line, each with the named fields.

    Quoting is that of Python's ``csv``: a field that starts with a double quote is unquoted.

    Args:
        path: the file.
        fields: the columns that are wanted.
        delimiter: what stands between two columns.

    Raises:
        DataError: a header without a field, a line with another number of columns; names the file and the line.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    header = next(reader, [])
    for name in fields:
        if name not in header:
            raise DataError(
                f"{path}, line 1: no column {name!r}; the header needs {', '.join(fields)}, found {_short(header)}"
            )
    rows = []
    for values in reader:
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(values)} columns where the header has {len(header)}; "
                "the line may be cut off"
            )
        record = dict(zip(header, values, strict=True))
        rows.append({name: record[name] for name in fields})
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return rows


def _parse_line(line: str, where: str) -> Row:
    try:
        return _parse_object(line)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _parse_object(text: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, text) from error
    _require_writable(row)
    if not isinstance(row, dict):
        raise _no_object(row, text)
    return row


def _not_json(error: ValueError | RecursionError, text: str) -> DataError:
    if isinstance(error, RecursionError):
        return DataError("JSON nested too deeply")
    if not isinstance(error, json.JSONDecodeError):
        return DataError("a number that cannot be read; give finite numbers")
    return DataError(f"not JSON ({error.msg}, column {error.colno}; the line may be cut off): {_short(text)}")


def _no_object(value: object, text: str) -> DataError:
    return DataError(f"expected a JSON object {{...}}, found {type(value).__name__}: {_short(text)}")


def _checked(value: object, text: str) -> Row | DataError:
    """An element of an array, if it is a row."""
    try:
        _require_writable(value)
    except DataError as error:
        return error
    return value if isinstance(value, dict) else _no_object(value, text)


def _require_writable(row: object) -> None:
    """See that every text of a row can be written again: a lone half of a surrogate pair is no character."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"holds half a character ({error.object[error.start]!a}); mend the text") from error
    except (ValueError, RecursionError) as error:
        raise DataError("holds a number without end; give finite numbers") from error


def _check_fields(row: Row, fields: Mapping[str, str] | Sequence[str], where: str) -> None:
    if isinstance(fields, Mapping):
        _check_row(row, fields, where)
        return
    for name in fields:
        if name not in row:
            raise DataError(f"{where}: no field {name!r}; a row needs {', '.join(fields)}{near(name, row)}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _short(value: object, width: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


# --- the published address


def _published(dataset: Dataset, source: Source) -> _Place:
    """The published file in the cache, downloaded first where it is not there or not what it should be."""
    mirror = os.environ.get("HARNESS_MIRROR")
    url, expected = source.url, source.published_sha256
    if mirror:
        url, expected = f"{mirror.rstrip('/')}/{urllib.parse.quote(source.path)}", source.sha256
    if url is None:
        raise DataError(
            f"{dataset.name}: no published address is known for {source.path}; place it in a FOLDER and use --data-dir"
        )
    key = hashlib.sha256(f"{url} {expected}".encode()).hexdigest()[:16]
    target = cache_folder() / "data" / key / Path(source.path).name
    # Where no hash is known beforehand, that of the first download is what the file is held to from then on.
    noted = target.with_name(f"{target.name}.sha256")
    wanted = expected or (noted.read_text(encoding="ascii").strip() if noted.is_file() else None)
    if not target.is_file() or (wanted is not None and _sha256(target) != wanted):
        _refuse_offline(url, source, mirror)
        _download(url, target, wanted, source)
    if expected is None and wanted is None:
        write_whole(noted, f"{_sha256(target)}\n".encode("ascii"))
    return _Place("published", target, url, expected)


def _refuse_offline(url: str, source: Source, mirror: str | None) -> None:
    if mirror is None and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise DataError(f"{url}: not fetched, HF_HUB_OFFLINE is set; unset it, or {_by_hand(source)}")


def _by_hand(source: Source) -> str:
    return f"fetch the file on another machine, place it at FOLDER/{source.path} and use --data-dir FOLDER"


def _download(url: str, target: Path, expected: str | None, source: Source) -> None:
    """Fetch to a temporary file beside ``target``, check it, then move it there in one step."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as part:
            part.touch()
            found = _fetched(url, part, source)
            if expected is not None and found != expected:
                raise DataError(
                    f"{url}: sha256 {found} where {expected} was expected; nothing was kept. Try again; if it stays so "
                    f"the published file was changed: {_by_hand(source)}"
                )
            part.replace(target)
    except OSError as error:
        raise DataError(
            f"{target.parent}: cannot be written ({error.strerror}); set HARNESS_CACHE to a folder that can"
        ) from error


def _fetched(url: str, part: Path, source: Source) -> str:
    """Write what an address gives to a file, and give its sha256."""
    with part.open("wb") as file:
        for block in _blocks(url, source):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return _sha256(part)


def _blocks(url: str, source: Source) -> Iterator[bytes]:
    """The bytes behind an address; those of a numbered address joined by newlines, in order."""
    parts = _PARTS.search(url)
    if parts is None:
        yield from _fetch(url, source)
        return
    low, high = int(parts[1]), int(parts[2])
    urls = [url[: parts.start()] + str(number) + url[parts.end() :] for number in range(low, high + 1)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        bodies = pool.map(lambda one: b"".join(_fetch(one, source)), urls)
        for body in tqdm(bodies, total=len(urls), desc=Path(source.path).name, unit="file", disable=None):
            yield body.rstrip(b"\r\n") + b"\n"


def _bar(source: Source, total: int | None) -> tqdm[Any]:
    """A bar in bytes for a large file, on a terminal."""
    hidden = None if (total or 0) >= _LARGE else True
    return tqdm(total=total, desc=Path(source.path).name, unit="B", unit_scale=True, disable=hidden)


def _fetch(url: str, source: Source) -> Iterator[bytes]:
    """The body of one address in blocks; DataError where it cannot be had whole."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            announced = answer.headers.get("Content-Length")
            total, got = int(announced) if announced else None, 0
            if url.startswith("https://") and not answer.geturl().startswith("https://"):
                raise DataError(f"{url}: leads to {answer.geturl()}, which is not on https; {_by_hand(source)}")
            with _bar(source, total) as bar:
                while block := answer.read(_BLOCK):
                    got += len(block)
                    if max(got, total or 0) > _LIMIT:
                        raise DataError(
                            f"{url}: has more than {_LIMIT} bytes, which no data set of ours has; {_by_hand(source)}"
                        )
                    bar.update(len(block))
                    yield block
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}; the file was moved or removed: {_by_hand(source)}"
        ) from error
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = _one_line(getattr(error, "reason", error) or type(error).__name__)
        raise DataError(f"{url}: cannot be fetched ({reason}); check the connection, or {_by_hand(source)}") from error
    if total is not None and got != total:
        raise DataError(f"{url}: cut off after {got} of {total} bytes; try again, or {_by_hand(source)}")
