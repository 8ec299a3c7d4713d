"""How far a run has come, on disk, so that a run that was killed goes on where it was.

The file holds the accumulated change with the editor's memory, exactly, as tensors and JSON; it lies beside the record
under way and goes when the record is complete. It is taken only if it is bitwise what was written and if all that it
depends on is the same; otherwise edits are made again from the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from harness.editing.editor import Editor, Wrapper
from harness.editing.schedule import Begun
from harness.errors import DataError
from harness.io import tensor_file
from harness.io.plain_objects import flatten, rebuild
from harness.models.lm import LM
from harness.patches.delta import Delta
from harness.patches.patch import Patch

__all__ = ["StateFile", "packages_of"]

log = logging.getLogger(__name__)

KIND = "state of a run"
FORMAT = 1
PACKAGES = ("harness", "editors")
"""Whose dataclasses a state may hold, besides those of the editor's own package."""


def packages_of(editor: Editor) -> set[str]:
    """The top-level names of the modules that an editor and what it wraps come from."""
    found = {type(editor).__module__.partition(".")[0]}
    return found | packages_of(editor.inner) if isinstance(editor, Wrapper) else found


def _is_patch(total: object) -> bool:
    """Whether it is a patch of changes, hooks and rules; what an editor remembers is its own."""
    if not (isinstance(total, Patch) and isinstance(total.weights, Mapping) and isinstance(total.hooks, Mapping)):
        return False
    names = [*total.weights, *total.hooks]
    rules = [rule for rule in (*total.hooks.values(), total.prompt, total.logits) if rule is not None]
    deltas = all(isinstance(delta, Delta) for delta in total.weights.values())
    return deltas and all(isinstance(name, str) for name in names) and all(callable(rule) for rule in rules)


class StateFile:
    """The file of one run's state."""

    def __init__(
        self,
        path: Path,
        key: str,
        *,
        packages: Collection[str] = (),
        lm: LM | None = None,
        every: float = 20.0,
    ) -> None:
        """A checkpoint.

        Args:
            path: the file.
            key: the identity of all that the state depends on; another key is another run.
            packages: whose dataclasses it may hold besides ours.
            lm: the model, which a state may name but does not hold.
            every: seconds between two writings, but for :meth:`now`.
        """
        self.path, self.key, self._every = path, key, every
        self._packages, self._given = {*PACKAGES, *packages}, {} if lm is None else {"lm": lm}
        self._last = time.monotonic()
        self._newest: Begun | None = None

    def keep(self, state: Begun) -> None:
        """Remember a state, and write it if the last writing is some time ago."""
        self._newest = state
        if time.monotonic() - self._last >= self._every:
            self.now()

    def now(self) -> None:
        """Write the newest state; what was written before survives a failure.

        Raises:
            UsageError: it cannot be written.
        """
        if self._newest is None:
            return
        try:
            tree, tensors = flatten(self._newest, self._given)
        except (TypeError, RecursionError) as error:
            # Not to be able to go on after a kill is no reason to refuse an editor that can run.
            log.warning("this editor's state cannot be kept (%s): a run that is killed begins anew", error)
        else:
            about = {"key": self.key, "state": tree}
            tensor_file.write_tensors(self.path, kind=KIND, version=FORMAT, manifest=about, tensors=tensors)
        self._last, self._newest = time.monotonic(), None

    def read(self) -> Begun | None:
        """The state of an earlier run of the same key; None where there is none that can be used, and a line says why.

        Each tensor comes back where it was: an editor's memory meets new keys there.
        """
        if not self.path.is_file():
            return None
        try:
            return self._read()
        except (DataError, ValueError, KeyError) as error:
            log.warning("%s; the edits are made again from the first", str(error).partition("; ")[0])
            return None

    def _read(self) -> Begun:
        head, tensors = tensor_file.read_tensors(self.path, KIND, FORMAT)
        if head["key"] != self.key:
            raise DataError(f"{self.path}: is of a run of something else")
        try:
            state = rebuild(head["state"], tensors, packages=self._packages, given=self._given)
        except ValueError as error:
            raise DataError(f"{self.path}: cannot be used ({error})") from error
        if not (isinstance(state, Begun) and isinstance(state.edits, int) and _is_patch(state.total)):
            raise DataError(f"{self.path}: holds no state of a run")
        return state

    def remove(self) -> None:
        """Delete the file; the run is complete."""
        self.path.unlink(missing_ok=True)
