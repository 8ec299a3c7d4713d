"""What Ray is told of this machine, without Ray; trainings that it carries out are in ``test_sweep.py``."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.studies.sweeps import crew
from harness.studies.sweeps.crew import Cluster


@pytest.mark.parametrize(("workers", "cpus", "wanted"), [(2, 1.0, 2), (2, 4.0, 8), (3, 0.5, 2), (2, 0.0, 1)])
def test_all_trainings_side_by_side_find_processors(
    workers: int, cpus: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits for ever for what is nowhere: a training of four processors where two were declared."""
    asked: dict[str, object] = {}
    closed: list[bool] = []
    ray = SimpleNamespace(
        init=lambda **where: asked.update(where),
        cluster_resources=lambda: {"CPU": 8.0},
        shutdown=lambda: closed.append(True),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    crew._ray(Cluster(workers=workers, cpus=cpus))
    assert (asked["num_cpus"], closed) == (wanted, [])
    with pytest.raises(UsageError, match=r"asks for 0\.5 accelerators, and this machine has 0; lower 'gpus' of"):
        crew._ray(Cluster(workers=workers, cpus=cpus, gpus=0.5))
    assert closed == [True]
