"""Every YAML under tasks/ is found and loaded by lm-eval, and says what its numbers mean and where they come from."""

from __future__ import annotations

import json
import logging
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.exam import data

YAMLS = sorted(data.TASKS.rglob("*.yaml"))
SETS = sorted(data.find_datasets())
HEX = re.compile(r"[0-9a-f]{64}")
REVISION = re.compile(r"/[0-9a-f]{40}/")


@cache
def _config(path: Path) -> dict[str, Any]:
    return data.read_yaml(path)


TASKS = [path for path in YAMLS if isinstance(_config(path).get("task"), str)]
GROUPS = [path for path in YAMLS if "group" in _config(path)]


def _id(path: Path) -> str:
    return str(path.relative_to(data.TASKS))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lm-eval's index of this folder alone, with a file of one's own edits for the tasks that ask for one."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    file = tmp_path_factory.mktemp("own") / "edits.jsonl"
    probes = [{"kind": "hop", "prompt": "Ann's mayor is", "answers": "Bela"}]
    row = {"prompt": "{} lives in", "subject": "Ann", "target": "Rome", "probes": probes}
    file.write_text(json.dumps(row) + "\n")
    return TaskManager(include_path=str(data.TASKS), include_defaults=False, metadata={"file": str(file)})


GENERAL = [path for path in TASKS if path.parts[-3] == "general"]
CHOICE = [path for path in GENERAL if path.stem.endswith("_choice")]
FREE = [path for path in GENERAL if path not in CHOICE]


def test_the_eight_general_tasks_and_their_group_are_there() -> None:
    names = {path.stem for path in FREE}
    assert names == set(_config(data.TASKS / "general" / "general.yaml")["task"])
    assert len(names) == 8


def test_tasks_with_closed_answers_have_a_sibling_that_chooses() -> None:
    names = {path.stem for path in CHOICE}
    assert names == set(_config(data.TASKS / "general" / "general_choice.yaml")["task"])
    assert names == {"ClosedDomainQA_choice", "dialogue_choice", "NLI_choice", "SentimentAnalysis_choice"}


def test_no_yaml_is_passed_over(manager: Any) -> None:
    # lm-eval skips a YAML that it cannot read without a word.
    indexed = {Path(entry.yaml_path).resolve() for entry in manager.task_index.values() if entry.yaml_path}
    assert indexed == {path.resolve() for path in YAMLS}
    assert len(TASKS) + len(GROUPS) == len(YAMLS)
    names = [_config(path)["task"] for path in TASKS] + [_config(path)["group"] for path in GROUPS]
    assert sorted(names) == sorted(manager.all_tasks)  # no name stands for two files


@pytest.mark.parametrize("path", TASKS, ids=_id)
def test_a_task_loads_with_documents(path: Path, manager: Any) -> None:
    name = _config(path)["task"]
    task = manager.load([name])["tasks"][name]
    docs = task.eval_docs
    assert len(docs) > 0
    assert task.doc_to_text(docs[0])


@pytest.mark.parametrize("path", GROUPS, ids=_id)
def test_a_group_has_its_members(path: Path, manager: Any) -> None:
    config = _config(path)
    members = config["task"]
    assert "version" in config["metadata"]
    if "hub" in config["metadata"]:  # lm-eval's own tasks, on data of the Hub: see test_abilities.py
        return
    assert set(manager.load([config["group"]])["tasks"]) == set(members)


def _metrics(config: dict[str, Any], manager: Any) -> list[str]:
    """The metrics of a task: those that it lists, or those that its cases have."""
    if "metric_list" not in config:  # its class says them
        (task,) = manager.load([config["task"]])["tasks"].values()
        assert set(task.aggregation()) == set(task.higher_is_better()) == set(task.metrics)
        against = (task.config.metadata.get(key) or {} for key in ("agreement", "compared"))
        return [*task.metrics, *(name for said in against for name in said)]
    assert all(isinstance(metric["higher_is_better"], bool) for metric in config["metric_list"])
    assert all(metric["aggregation"] for metric in config["metric_list"])
    return [metric["metric"] for metric in config["metric_list"]]


@pytest.mark.parametrize("path", TASKS, ids=_id)
def test_metadata_say_what_a_table_needs(path: Path, manager: Any) -> None:
    config = _config(path)
    metadata = config["metadata"]
    if config["task"] == "own_cases":  # its kinds are those of the user's file
        (task,) = manager.load(["own_cases"])["tasks"].values()
        assert task.metrics == task.config.metadata["shown"] == ["hop_exact_match"]
        return
    metrics = _metrics(config, manager)
    assert {metadata["headline"], *metadata.get("shown", [])} <= set(metrics)
    assert len(set(metrics)) == len(metrics)
    assert isinstance(metadata["version"], float)
    assert metadata["licence"]
    assert metadata["source"]


@pytest.mark.parametrize("path", TASKS, ids=_id)
def test_a_member_that_names_its_source_names_its_folder(path: Path) -> None:
    source = _config(path)["metadata"]["source"]
    if isinstance(source, str) and " " not in source:
        assert source == path.parent.name
        assert source in SETS


@pytest.mark.parametrize("path", FREE, ids=_id)
def test_released_readings_are_no_headlines(path: Path) -> None:
    config = _config(path)
    assert "_released" not in config["metadata"]["headline"]
    assert any(metric["metric"].find("_released") > 0 for metric in config["metric_list"])


@pytest.mark.parametrize("name", SETS)
def test_sources_are_exact(name: str) -> None:
    described = data.find_datasets()[name]
    assert described.citation
    assert described.fields
    assert "test" in described.files
    for source in described.files.values():
        place = PurePosixPath(source.path)
        assert not place.is_absolute()
        assert ".." not in place.parts
        assert source.sha256 and HEX.fullmatch(source.sha256)
        if source.url is None:
            continue
        assert source.url.startswith("https://")
        # A pinned address gives one file for ever, whose hash is known; any other is held to one where it is known.
        assert source.published_sha256 or not REVISION.search(source.url)
        assert source.published_sha256 is None or HEX.fullmatch(source.published_sha256)


@pytest.mark.parametrize("folder", sorted({path.parent for path in TASKS}), ids=lambda folder: folder.name)
def test_a_card_names_every_metric(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    metrics = {metric["metric"] for path in folder.glob("*.yaml") for metric in _config(path).get("metric_list", ())}
    # `paraphrase_*` names `paraphrase` and what begins with it.
    named = [name.replace("_*", "*") for name in re.findall(r"`([a-z0-9_*]+)`", card.lower())]
    assert sorted(metric for metric in metrics if not any(fnmatch(metric.lower(), name) for name in named)) == []


@pytest.mark.parametrize("name", SETS)
def test_recorded_sha256_are_those_of_the_reference_data(name: str, shared: Path) -> None:
    states = {line.split: line.folder for line in data.status(shared / "data") if line.name == name}
    described = data.find_datasets()[name]
    assert {split: states[split] for split in described.files} == dict.fromkeys(described.files, "present")
