"""Files that appear whole or not at all, and the two forms of what is kept in them.

What people read is JSON in which everything short stands on one line; what is only for programs, such as the values of
single documents, is the same JSON without spaces, packed by xz.
"""

from __future__ import annotations

import glob
import hashlib
import json
import lzma
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.io.schema import parsed

__all__ = [
    "XZ",
    "at_home",
    "beside",
    "compact_json",
    "discard",
    "json_sha256",
    "json_text",
    "pack_json",
    "pack_text",
    "require_writable",
    "rounded",
    "unpack_json",
    "unpack_xz",
    "values_path",
    "write_whole",
]

XZ = b"\xfd7zXZ\x00"  # how a stream begins
LINE = 400  # characters: a metric with its interval and its difference stands on one line
UNPACKED_AT_MOST = 2**31  # bytes
DIGITS = 9  # significant: as many as a float32 holds


def json_text(data: Any, _depth: int = 1) -> str:
    """The value as JSON: what fits on a line of :data:`LINE` characters on one, else one item a line.

    Raises:
        ValueError: a number in it is not finite.
    """
    flat = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if len(flat) <= LINE or not data or not isinstance(data, Mapping | list):
        return flat
    if isinstance(data, Mapping):
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {json_text(item, _depth + 1)}" for key, item in data.items()
        ]
    else:
        parts = [json_text(item, _depth + 1) for item in data]
    opened, closed = "{}" if isinstance(data, Mapping) else "[]"
    return f"{opened}\n" + ",\n".join(" " * _depth + part for part in parts) + f"\n{' ' * (_depth - 1)}{closed}"


def json_sha256(value: object) -> str:
    """The sha256 of a value's JSON with sorted keys; what JSON cannot say stands in it as Python writes it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def pack_json(data: Any, small: bool = True) -> bytes:
    """The value as packed JSON, the same bytes each time; ``small`` takes longer.

    Raises:
        ValueError: a number in it is not finite.
    """
    content = compact_json(data).encode()
    return lzma.compress(content, preset=6 if small else 1)


def unpack_json(content: bytes) -> Any:
    """The value that :func:`pack_json` packed.

    Raises:
        ValueError: the content is not whole, or of another kind.
    """
    return parsed(unpack_xz(content))


def unpack_xz(content: bytes) -> bytes:
    """What xz packed, in one stream or several, if it is no more than :data:`UNPACKED_AT_MOST`.

    Raises:
        ValueError: the content is not whole, or too large.
    """
    try:
        return _decompressed(content)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise ValueError(f"not whole xz ({error})") from error


def pack_text(text: str) -> bytes:
    """A part of a JSON, packed quickly and by itself: such parts, one behind the other, are a packed value."""
    return lzma.compress(text.encode(), preset=1)


def compact_json(data: Any) -> str:
    """The value as JSON without spaces.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _decompressed(content: bytes) -> bytes:
    """What xz packed; some bytes can stand for terabytes."""
    found, left = bytearray(), content
    while True:
        unpacker = lzma.LZMADecompressor(memlimit=UNPACKED_AT_MOST)
        found += unpacker.decompress(left, max_length=UNPACKED_AT_MOST - len(found))
        left = unpacker.unused_data
        if not unpacker.eof or (left and not left.startswith(XZ)):
            raise ValueError("not whole xz (it breaks off, goes on after its end, or is too large)")
        if not left:
            return bytes(found)


def rounded(value: Any) -> Any:
    """The value with every float of nine significant digits; one that is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def values_path(path: str | Path) -> Path:
    """Where the values of single documents lie, beside a record."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".values.json.xz")


def at_home(value: Any) -> Any:
    """A value with each text in it that begins with ``~/`` as a path of the home folder: no shell reads a file's.

    Args:
        value: fields of a configuration; of an editor such as ``rome+~/mine.py`` each part is looked at.
    """
    if isinstance(value, str):
        return "+".join(str(Path(part).expanduser()) if part.startswith("~/") else part for part in value.split("+"))
    if isinstance(value, Mapping):
        return {at_home(key): at_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(at_home(item) for item in value)
    return value


def require_writable(folder: Path, cure: str = "choose another folder with --output") -> None:
    """Make the folder if need be, and see that files can be written to it; UsageError with the cure otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{folder}: cannot be written to ({reason}); {cure}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing: a reader never sees half of it, also after a power cut.

    Raises:
        UsageError: it cannot be written, for instance to a full disk.
    """
    try:
        with beside(path) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"{path}: cannot be written ({reason}); make room or choose another place, what was written before is whole"
        ) from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary place beside a file, for what is to replace it; what a killed writer of this machine left goes.

    Yields:
        A path that only this process writes to; what lies there afterwards, a file or a folder, is removed.
    """
    host = socket.gethostname()
    _clear(path, host)
    temporary = path.parent / f".{path.name}.{host}.{os.getpid()}"
    discard(temporary)  # of a killed writer that had this number before
    try:
        yield temporary
    finally:
        discard(temporary)


def _clear(path: Path, host: str) -> None:
    """Remove what writers of a file left that live no more; those of another machine may be at work."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner, _, process = left.name.removeprefix(f".{path.name}.").rpartition(".")
        if owner in ("", host) and process.isdecimal() and not _alive(int(process)):
            discard(left)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
