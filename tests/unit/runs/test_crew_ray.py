"""A crew on a cluster of Ray: who does not answer is told, two nodes share the work, other versions are refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from crew_jobs import noted

from harness.errors import UsageError
from harness.runs.crew import ray_actors
from harness.runs.crew.cells import Cell, Crew
from harness.runs.crew.dispatch import run_cells

TESTS = Path(__file__).parents[2]


def tried(address: str) -> str:
    """What is said of an address, within ten seconds."""
    began = time.monotonic()
    with pytest.raises(UsageError) as raised:
        list(run_cells([Cell("a", ("", "a"))], noted, Crew(0, address)))
    assert time.monotonic() - began < 10
    return str(raised.value)


@pytest.fixture
def silent() -> Iterator[str]:
    """A port behind which is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:1",
            "--cluster '127.0.0.1:1': no Ray cluster answers (Connection refused); start one with",
        ),
        ("here", "--cluster 'here': expected HOST:PORT of a Ray cluster such as 10.0.0.1:6379, auto or local"),
        ("ray://127.0.0.1:1", "no Ray cluster answers"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(address: str, message: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    assert message in tried(address)


def test_a_port_behind_which_is_something_else_is_told(silent: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    assert f"--cluster '{silent}': no Ray cluster answers (it is no Ray)" in tried(silent)


def test_without_ray_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "needs Ray: pip install 'lm-edit-harness[cluster]'; --workers N takes the cores" in tried("local")


@pytest.mark.parametrize(("workers", "cpus", "wanted"), [(2, 1.0, 2), (2, 4.0, 8), (3, 0.5, 2), (2, 0.0, 1)])
def test_all_workers_of_a_cluster_of_this_machine_find_processors(
    workers: int, cpus: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits for ever for what is nowhere: a worker of four processors where two were declared."""
    asked: dict[str, object] = {}
    closed: list[bool] = []
    ray = SimpleNamespace(
        init=lambda **where: asked.update(where),
        cluster_resources=lambda: {"CPU": 8.0},
        shutdown=lambda: closed.append(True),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    crew = Crew(workers, "local", cpus=cpus)
    assert ray_actors._places(ray_actors._connected(crew), crew) == workers
    assert (asked["num_cpus"], closed) == (wanted, [])
    assert ray_actors._places(ray, Crew(0, "local", cpus=3)) == 2
    with pytest.raises(UsageError, match=r"a worker asks for 0\.5 GPU, and the cluster 'local' has 0"):
        ray_actors._places(ray, Crew(workers, "local", cpus=cpus, gpus=0.5))


def test_other_versions_say_both() -> None:
    mine = {"harness": "1.0", "torch": "2.9.0"}
    assert ray_actors._differing(mine, {**mine, "more": "1"}) is None
    said = ray_actors._differing(mine, {**mine, "torch": "2.8.1"})
    assert said is not None
    assert "has torch 2.8.1 and this process has torch 2.9.0; install the same versions there" in said


TWO_NODES = """
import json, logging, sys
from ray.cluster_utils import Cluster
from crew_jobs import noted
from harness.errors import UsageError
from harness.runs.crew import ray_actors
from harness.runs.crew.cells import Cell, Crew
from harness.runs.crew.dispatch import run_cells

heard = []
handler = logging.Handler()
handler.emit = lambda record: heard.append(record.getMessage())
logging.getLogger("harness.crew_jobs").addHandler(handler)
logging.getLogger("harness.runs").setLevel(logging.ERROR)
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes.add_node(num_cpus=1)
folder, crew, found = sys.argv[1], Crew(0, nodes.address), {}
names = ["a", "b", "refuse", "die", "c", "d", "warn"]
for one in run_cells([Cell(name, (folder, name)) for name in names], noted, crew):
    found[one.cell.name] = str(one.error) if one.error else one.done[1]
ray_actors.versions = lambda: {"harness": "1.0", "torch": "9.9"}
try:
    list(run_cells([Cell("e", (folder, "e"))], noted, crew))
except UsageError as error:
    found["refused"] = str(error)
nodes.shutdown()
found["heard"] = heard
print(json.dumps(found))
"""


def test_two_nodes_do_each_cell_and_a_worker_of_other_versions_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_DEDUP_LOGS": "0", "RAY_ENABLE_METRICS_COLLECTION": "0"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    times = {name: len(list(tmp_path.glob(f"{name}.*"))) for name in ("a", "b", "c", "d", "die", "refuse", "e")}
    assert times == {"a": 1, "b": 1, "c": 1, "d": 1, "die": 2, "refuse": 1, "e": 0}
    assert found["heard"] == ["warn: nobody knows this fact"]
    assert found["refuse"] == "refuse: cannot be used; use another"
    assert len({found[name] for name in ("a", "b")}) == 2  # the first two were given to two workers
    assert "has harness 0" in found["refused"] and "this process has harness 1.0" in found["refused"]
