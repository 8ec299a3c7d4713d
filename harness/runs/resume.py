"""How far a run has come, on disk, so that a run that was killed goes on where it was.

The file holds the accumulated change with the editor's memory, exactly; it lies beside the record under way and goes
when the record is complete. It is read by the same program on the same machine, and holds pickled objects.
"""

from __future__ import annotations

import io
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from harness.editing.schedule import Begun
from harness.io.files import write_whole

__all__ = ["Checkpoint"]

log = logging.getLogger(__name__)


class Checkpoint:
    """The file of one run's state."""

    def __init__(self, path: Path, key: str, every: float = 20.0) -> None:
        """A checkpoint.

        Args:
            path: the file.
            key: what the state depends on (plan, model, versions); another key is another run.
            every: seconds between two writings, but for :meth:`now`.
        """
        self.path, self.key, self._every = path, key, every
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
        content = io.BytesIO()
        try:
            torch.save({"key": self.key, "state": self._newest}, content)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            log.warning("this editor's state cannot be kept (%s): a run that is killed begins anew", error)
        else:
            write_whole(self.path, content.getvalue())
        self._last, self._newest = time.monotonic(), None

    def read(self) -> Begun | None:
        """The state of an earlier run of the same key; None where there is none that can be read."""
        try:
            # Each tensor comes back where it was: an editor's memory meets new keys there.
            found: dict[str, Any] = torch.load(self.path, weights_only=False)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, AttributeError, ModuleNotFoundError):
            return None
        state = found.get("state")
        return state if found.get("key") == self.key and isinstance(state, Begun) else None

    def remove(self) -> None:
        """Delete the file; the run is complete."""
        self.path.unlink(missing_ok=True)
