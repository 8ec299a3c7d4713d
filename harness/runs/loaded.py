"""The model that was loaded last, for plans that name the same one after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.models.lm import LM, load
from harness.models.placement import Placement, Where
from harness.runs.resolve import Resolved

__all__ = ["OneModel", "checkpoint_files", "kept_model"]


def kept_model(model: str, *, dtype: str, device: Where, names: Mapping[str, str], text: str | None = None) -> LM:
    """A model that this process keeps loaded, for cells of a study that name it one after the other.

    Args:
        model: a shipped model, a folder, or a Hub repository.
        dtype: of the model.
        device: where it goes.
        names: parts of the architecture named by hand.
        text: plain text for second moments.
    """
    named = tuple(sorted(names.items()))
    return _kept_model(model, dtype, device, named, text, checkpoint_files(Path(model)))


@functools.lru_cache(maxsize=1)
def _kept_model(
    model: str,
    dtype: str,
    device: Where,
    names: tuple[tuple[str, str], ...],
    text: str | None,
    _files: tuple[object, ...],
) -> LM:
    return load(model, dtype=dtype, device=device, names=dict(names) or None, text=text)


class OneModel:
    """Keeps one model for as long as plans name it. Whoever sees that a run went wrong is to let go of it."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._lm: LM | None = None

    def of(self, resolved: Resolved, read: Callable[[], LM], *, place: Placement) -> LM:
        """The model of a plan, which is read where it is not at hand.

        Args:
            resolved: the plan, and what it names.
            read: reads the model.
            place: where it goes.
        """
        key = _key(resolved, place)
        if self._lm is None or key != self._key:
            self.forget()  # before the next one is read: two may not fit
            self._lm, self._key = read(), key
        return self._lm

    def forget(self) -> None:
        """Let go of the model."""
        self._key = self._lm = None


def _key(resolved: Resolved, place: Placement) -> tuple[object, ...]:
    """What decides which model is read, the state of its files among it."""
    plan = resolved.plan
    parts = json.dumps([dict(plan.arch), dict(plan.model_args)], sort_keys=True, default=str)
    return plan.model, plan.dtype, parts, resolved.text, place, checkpoint_files(Path(plan.model))


def checkpoint_files(folder: Path) -> tuple[object, ...]:
    """What tells that a file of a checkpoint was written since."""
    found = sorted(path for path in (folder.glob("*") if folder.is_dir() else [folder]) if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)
