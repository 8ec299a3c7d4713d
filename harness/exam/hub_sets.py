"""Data sets of the Hub that lm-eval's own tasks read, from files in a data folder.

The tasks are lm-eval's, untouched.  A group of this project says under ``metadata.hub`` which files stand for which
data set, and a function beside it makes the rows; ``metadata.lm_eval`` says in which of lm-eval's folders its members
are, so that 14,000 files need not be looked through for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks

from harness.errors import DataError
from harness.exam import data

__all__ = ["Served", "file_in", "folders_of", "from_folder"]

Key = tuple[str, str | None]
"""The name of a data set on the Hub, and of its configuration."""
Served = dict[Key, data.Provenance]
"""Which file was read in place of a data set of the Hub."""


@dataclass(frozen=True)
class _HubSet:
    """A data set of the Hub, and what stands for it in a data folder.

    Attributes:
        key: its name and its configuration.
        files: split -> its file in a data folder; the first is the one that is examined.
        rows: makes the rows of a file.
        sha256: of the file that is examined; None where it is not known.
    """

    key: Key
    files: Mapping[str, str]
    rows: Callable[[Path], list[dict[str, Any]]]
    sha256: str | None

    @property
    def examined(self) -> str:
        """The split that is examined."""
        return next(iter(self.files))

    def read(self, folder: Path) -> tuple[datasets.DatasetDict, data.Provenance] | None:
        """The splits that a folder has, and which file is examined; None where it lacks that one."""
        found = {split: path for split, name in self.files.items() if (path := file_in(folder, name)) is not None}
        if self.examined not in found:
            return None
        made = {split: datasets.Dataset.from_list(self.rows(path)) for split, path in found.items()}
        # lm-eval looks at every split that a task names; one that is not there has no rows.
        none = {split: made[self.examined].select([]) for split in ("train", "validation", "test") if split not in made}
        sha256 = hashlib.sha256(found[self.examined].read_bytes()).hexdigest()
        place, rows = self.files[self.examined], len(made[self.examined])
        used = data.Provenance("folder", place, sha256, rows, sha256 == self.sha256)
        return datasets.DatasetDict(made | none), used


def file_in(folder: Path, name: str) -> Path | None:
    """A file of a data folder, packed or not; the folder of lm-eval's files may itself be the data folder.

    Args:
        folder: the data folder.
        name: the file, as a record names it.
    """
    names = (name, name.removesuffix(".gz"))
    places = [folder / place for name in names for place in (name, name.removeprefix("lm_eval/"))]
    return next((path for path in places if path.is_file()), None)


def folders_of(metadata: Mapping[str, Any]) -> list[str]:
    """lm-eval's folders in which the members of a group are.

    Args:
        metadata: of the group.
    """
    root = Path(lm_eval.tasks.__file__).parent
    return [str(root / name) for name in metadata.get("lm_eval") or ()]


@contextmanager
def from_folder(data_dir: str) -> Iterator[Served]:
    """Let lm-eval read data sets of the Hub from a folder, and on the Hub what the folder lacks.

    Args:
        data_dir: a folder; ``mini`` and ``hub`` have nothing that stands for a data set of the Hub.

    Yields:
        which files were read.
    """
    folder = None if data_dir in (data.MINI, data.PUBLISHED) else Path(data_dir)
    known, served, hub = _known(), Served(), datasets.load_dataset

    def load(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
        wanted = known.get((path, name))
        found = None if wanted is None or folder is None else wanted.read(folder)
        if wanted is None or found is None:
            return _from_hub(lambda: hub(path, name, *args, **options), wanted, folder)
        served[wanted.key] = found[1]
        return found[0]

    datasets.load_dataset = load
    try:
        yield served
    finally:
        datasets.load_dataset = hub


def _from_hub(ask: Callable[[], Any], wanted: _HubSet | None, folder: Path | None) -> Any:
    """What the Hub gives; where it gives nothing, which file was looked for.

    Raises:
        DataError: the Hub does not have it, or does not answer.
    """
    if wanted is None:
        return ask()
    try:
        return ask()
    except (OSError, ValueError) as error:
        what = " ".join(part for part in wanted.key if part)
        place = wanted.files[wanted.examined]
        told = f"the Hub does not give {what} ({' '.join(str(error).split())[:120]})"
        if folder is None:
            raise DataError(f"{told}; give a folder that holds {place} with --data-dir") from error
        raise DataError(f"{folder / place}: not found, and {told}; place it there") from error


def _known() -> dict[Key, _HubSet]:
    """What the groups of this project say of data sets of the Hub."""
    found: dict[Key, _HubSet] = {}
    for path in sorted(data.TASKS.glob("*/*.yaml")):
        for said in (data.read_yaml(path).get("metadata") or {}).get("hub") or ():
            rows = getattr(data.module(path.with_name("functions.py")), str(said["rows"]).rpartition(".")[2])
            key = (said["dataset"], said["config"])
            found[key] = _HubSet(key, said["files"], rows, said.get("sha256"))
    return found
