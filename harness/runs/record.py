"""The record of a run, as one value: what the run was, and what came out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.exam.numbers import Json, TaskValues
from harness.io.files import json_sha256
from harness.runs.identity import SCHEMA
from harness.runs.plan import current_names

if TYPE_CHECKING:
    import pandas

__all__ = ["PointValues", "Record", "record_name"]


PointValues: TypeAlias = dict[int, dict[str, TaskValues]]
"""Number of edits -> task -> metric -> document id -> contribution."""


@dataclass
class Record:
    """What a run was, and what came out.  The fields are those of the JSON, in its order.

    ``status``: ``complete``, ``interrupted`` (also while the run is under way) or ``failed``, with the ``reason``.
    ``headlines``: the metric that stands for a task.  ``points``: what was measured, by number of edits; 0 is unedited;
    ``collapse``: tripwire -> the number of edits at which it was first set off.
    ``values``: per-document contributions, kept in the file beside the record; ``None`` where they were not read.
    What is changed by hand is told by them (:mod:`harness.runs.ties`).
    """

    id: str
    plan: Json
    schema: int = SCHEMA
    status: str = "interrupted"
    reason: str | None = None
    model: Json = field(default_factory=dict)
    editor: Json = field(default_factory=dict)
    edits: Json = field(default_factory=dict)
    headlines: dict[str, str] = field(default_factory=dict)
    derived: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Task -> score -> the metrics whose harmonic mean it is."""
    shown: dict[str, list[str]] = field(default_factory=dict)
    """Task -> the metrics that its YAML wants tables to show besides the usual ones."""
    chance: dict[str, dict[str, float]] | None = None
    """Task -> metric -> what a model gets that knows nothing; None where a record is older than this field."""
    caveats: dict[str, str] = field(default_factory=dict)
    """Task -> what its YAML wants a reader to know beside its numbers."""
    points: list[Json] = field(default_factory=list)
    collapse: dict[str, int] = field(default_factory=dict)
    weights: Json = field(default_factory=dict)
    delta: Json = field(default_factory=dict)
    data: Json = field(default_factory=dict)
    templates: Json = field(default_factory=dict)
    cost: list[Json] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = 0
    """None where it is not told: of a published run."""
    published: Json = field(default_factory=dict)
    """Of a run that was not made here but brought in: where its numbers are published, and what is not known."""
    values: PointValues | None = field(default=None, compare=False)
    sealed: str | None = field(default=None, compare=False)
    """What :meth:`seal` was when the values beside the record were written; None where they were not read."""
    standing: str | None = field(default=None, compare=False)
    """How far a row that others gave was checked (:mod:`harness.reports.submissions`); no file of a record says it."""
    judged: list[Any] | None = field(default=None, compare=False)
    """What judges said of its texts (:mod:`harness.runs.judged_file`); None where that was not read."""
    judges: Json = field(default_factory=dict, compare=False)
    """Who gave the verdicts that stand among the numbers."""

    def point(self, edits: int) -> Json:
        """All that is known after so many edits; empty where nothing is."""
        return next((point for point in self.points if point["edits"] == edits), {})

    def tasks(self, edits: int) -> dict[str, dict[str, Json]]:
        """What was measured after so many edits: task -> metric -> numbers; empty where nothing was."""
        return dict(self.point(edits).get("tasks", {}))

    @property
    def seconds(self) -> float:
        """All phases of the run; values of edits that were kept from an earlier run count as they took then."""
        spent = [float(phase["seconds"]) for phase in self.cost]
        return sum(spent) + sum(float(phase["values"]["seconds"]) for phase in self.cost if "values" in phase)

    def seal(self) -> str:
        """The sha256 of all that came out, intervals and p values among it."""
        said = {key: _plain(getattr(self, key)) for key in _SEALED}
        return json_sha256(said)

    def to_json(self) -> Json:
        """The JSON of the record, without the values of its documents.  Numbers that are not finite become null."""
        shown = {key: getattr(self, key) for key in _FIELDS if key != "published" or self.published}
        return {key: _plain(shown[key]) for key in _ORDER if key in shown}

    def to_frame(self) -> pandas.DataFrame:
        """The numbers as a table: a row for each metric of each task after each number of edits.

        Columns: see :data:`harness.runs.frame.COLUMNS`.
        """
        from harness.runs.frame import frame

        return frame(self)

    @classmethod
    def from_json(cls, data: Json) -> Record:
        """The record that :meth:`to_json` wrote, its plan under the names that fields have now."""
        found = cls(**{key: data[key] for key in _FIELDS if key in data})
        return replace(found, plan=current_names(found.plan))


_BESIDE = ("values", "sealed", "standing", "judged", "judges")  # what stands in the file beside the record
_SEALED = ("headlines", "derived", "points", "collapse", "weights", "delta")
_FIELDS = [f.name for f in fields(Record) if f.name not in _BESIDE]
_ORDER = ["schema", *(key for key in _FIELDS if key != "schema")]


_LONG = 40
"""Characters of a part of a name: with all that is put behind it, a name is to have no more than 255."""


def record_name(record: Record) -> str:
    """The file name of a record without its ending, such as ``mini--memit--counterfact-50--batch--1a2b3c4d``."""
    edits = f"{_slug(str(record.edits.get('dataset') or 'no-edits'))}-{record.edits.get('count', 0)}"
    about = [record.model.get("name", "model"), record.editor.get("name", "editor")]
    last = [record.plan.get("mode", ""), record.id[:8]]
    before, behind = ([_slug(str(part)) for part in parts if part] for parts in (about, last))
    return "--".join([*before, edits, *behind])


def _slug(text: str) -> str:
    """The last part of a path or Hub name, in characters that every file system takes, and no more than it takes."""
    last = re.sub(r"[^A-Za-z0-9+._]+", "-", text.rstrip("/").rsplit("/", 1)[-1])
    return last.strip("-.")[:_LONG].rstrip("-.") or "unnamed"


def _plain(value: Any) -> Any:
    """The value as JSON takes it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
