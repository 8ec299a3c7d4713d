"""A patch that was saved, as an editor: it makes no edits, it puts back those of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.editing import patch_file
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Replay", "replay"]


@dataclass(frozen=True)
class Replay(Editor):
    """Returns one patch, whatever the edits.

    Attributes:
        patch: what was saved. No hyperparameter.
        shown: the label of the editor that made it. No hyperparameter.
        made: the hyperparameters of that editor. No hyperparameter.
    """

    name = "saved"

    patch: Patch = field(default_factory=Patch, repr=False, compare=False, metadata={"hidden": True})
    shown: str = field(default="saved", metadata={"hidden": True})
    made: Mapping[str, object] = field(default_factory=dict, metadata={"hidden": True})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """The saved patch."""
        return self.patch

    def label(self) -> str:
        """The label of the editor that made it."""
        return self.shown

    def hyperparameters(self) -> dict[str, object]:
        """Those of the editor that made it."""
        return dict(self.made)

    def notes(self, lm: LM) -> Mapping[str, object]:  # noqa: ARG002
        """The hash of what was put back, at every seam."""
        return {"patch_sha256": patch_file.patch_digest(self.patch)}


def replay(path: Path, lm: LM) -> Replay:
    """The editor that puts a file's patch back.

    Raises:
        DataError: the file cannot be used, or is of another model.
    """
    about = patch_file.patch_manifest(path)["about"]
    patch = patch_file.load_patch(path, lm)
    return Replay(patch=patch, shown=str(about.get("label", "saved")), made=about.get("hyperparameters", {}))
