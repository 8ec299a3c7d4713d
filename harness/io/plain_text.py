"""Documents of plain text: of the shipped text, a file, a folder, or a Hub data set."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from harness.errors import DataError, near
from harness.io import hub

__all__ = ["on_hub", "read_documents", "require_answer", "require_text", "text_identity"]


# A commit of each data set, so that its name stands for one text and can be part of a cache key without a network.
_HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"),
}


def read_documents(source: str) -> Iterator[str]:
    """The documents of a text source.

    Args:
        source: ``mini`` (shipped), a file (``.txt`` one document a line, ``.jsonl`` with ``text``, both also
            ``.gz``), a folder of those, ``wikitext``, ``wikipedia``, or a Hub data set
            ``owner/name[:config][@revision]`` with a column ``text``.

    Raises:
        DataError: it does not exist, cannot be read, or the Hub cannot be reached.
    """
    paths = _files(source)
    if paths is None:
        yield from _hub(source)
        return
    for path in paths:
        yield from _lines(path)


def require_text(source: str) -> None:
    """See that a text source is there; of a Hub data set no more than that its name is one is seen.

    Raises:
        DataError: it is not.
    """
    _files(source)


def on_hub(source: str) -> bool:
    """Whether the Hub has to be asked for a text source.

    Raises:
        DataError: it is a file or folder that does not exist.
    """
    return _files(source) is None


@functools.lru_cache(maxsize=8)  # every cell of a study asks; what could not be read is asked for again
def require_answer(source: str) -> None:
    """See that a first document of a text source can be read.

    Raises:
        DataError: it cannot.
    """
    next(iter(read_documents(source)), None)


def text_identity(source: str) -> str:
    """What names the content of a text source: a hash of its files, or the revision of a Hub data set.

    Raises:
        DataError: it does not exist, or cannot be read.
    """
    paths = _files(source)
    if paths is None:
        return "hub:" + ":".join(part or "" for part in _hub_parts(source))
    digest = hashlib.sha256()
    for path in paths:
        _digest(path, digest)
    return f"sha256:{digest.hexdigest()}"


def _digest(path: Path, digest: hashlib._Hash) -> None:
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a text with --text FILE") from error


def _files(source: str) -> list[Path] | None:
    """The files of a source, None for a Hub data set."""
    if source == "mini":
        return [Path(str(files("harness") / "mini" / "text.txt"))]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.removesuffix(".gz").endswith((".txt", ".jsonl")))
        if not found:
            raise DataError(f"{source}: no .txt or .jsonl file in there; give plain text with --text FILE")
        return found
    if path.is_file():
        return [path]
    if source in _HUB or (
        source.count("/") == 1 and not source.startswith((".", "~", "/")) and path.suffix not in (".txt", ".gz")
    ):
        return None
    raise DataError(
        f"{source}: no such text{near(source, ['mini', *_HUB])}; give a file, a folder or a Hub data set with --text"
    )


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, path, number)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error}); give another file with --text FILE"
        ) from error


def _text_of(line: str, path: Path, number: int) -> str:
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return line.strip()
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}:{number}: expected a JSON object with the key 'text'; mend or drop the line"
        ) from error
    return str(text)


def _hub(source: str) -> Iterator[str]:
    reason = hub.unreachable()
    if reason is not None:
        raise DataError(
            f"{source}: the Hub text cannot be read ({reason}); without a network give a text with --text FILE"
        )
    name, config, revision = _hub_parts(source)
    import datasets  # it takes a second to import, and most runs do not need it

    try:
        rows = datasets.load_dataset(name, config, split="train", revision=revision, streaming=True)
        for row in rows:
            if row["text"].strip():
                yield row["text"].strip()
    except KeyError as error:
        raise DataError(f"{source}: the data set has no column {error}; give plain text with --text FILE") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: the Hub text cannot be read ({reason}); without a network give a text with --text FILE"
        ) from error


def _hub_parts(source: str) -> tuple[str, str | None, str | None]:
    if source in _HUB:
        return _HUB[source]
    rest, _, revision = source.partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, revision or None
