"""How a run is carried out; none of it changes what is measured beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.io.nobody import tell_nobody
from harness.models.placement import Placement

if TYPE_CHECKING:
    from harness.runs.plan import Plan

__all__ = ["RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out.

    Attributes:
        output: the folder of the record.
        device: where the model goes; None for an accelerator where there is one.
        device_map: how it is spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most.
        offload_folder: where weights go that lie on disk.
        rows: texts of one forward pass at most; None for as many as fit.
        cache: whether the numbers of the unedited model, and the values of edits, may come from the cache.
        save_edits: whether the accumulated change goes to disk at each stop (not of isolated edits).
        log_samples: whether what was asked and replied is kept beside the record.
        fresh: whether to start anew where an earlier run of the plan was stopped.
        shards: in how many pieces the portions of isolated edits are made by themselves before the run begins.
        report: told what is done (``phase``), how far it is, and how much there is.
    """

    output: Path
    device: str | None = None
    device_map: str | Mapping[str, object] | None = None
    max_memory: str | Mapping[Any, object] | None = None
    offload_folder: str | Path | None = None
    rows: int | None = None
    cache: bool = True
    save_edits: bool = False
    log_samples: bool = False
    fresh: bool = False
    shards: int = 1
    report: Callable[[str, int, int], None] = tell_nobody

    def require_kept(self, plan: Plan) -> None:
        """See that what a plan gives is kept.

        Raises:
            UsageError: it gives replies alone, and none are kept.
        """
        if plan.predict_only and not self.log_samples:
            raise UsageError(
                "predict_only keeps the replies alone, as samples; add --log-samples and a folder for them"
            )

    @property
    def placement(self) -> Placement:
        """Where the weights go.

        Raises:
            UsageError: they cannot go there.
        """
        return Placement.of(
            self.device, device_map=self.device_map, max_memory=self.max_memory, offload_folder=self.offload_folder
        )
