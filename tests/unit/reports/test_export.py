"""Exports: what others' schemas and readers say of them; all files or none; found by file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from jsonschema import Draft7Validator
from lm_eval.api.metrics import mean_stderr
from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table
from published_files import hallu_row, write_lines
from synthetic import record

import harness
from harness.errors import DataError, UsageError
from harness.reports import export as exports
from harness.reports.export import ExportRequest, export_names, export_records, find_export
from harness.reports.importing import read_published
from harness.reports.tables_file import samples_at
from harness.runs.record import Record, record_name
from harness.runs.record_file import read_record, record_paths
from harness.runs.sample_file import iterate_samples

RESULTS = Path(__file__).parents[3] / "results"
SCHEMAS = Path(__file__).parent / "every_eval_ever"
WHEN = 1_764_450_000
HOSTILE = "../../=x|<b>\n"

Json = dict[str, Any]


def committed(every: int) -> list[Path]:
    """One in so many of the committed records, all of real models among them."""
    mini = record_paths(RESULTS / "records")
    return [*mini[::every], *record_paths(RESULTS / "real"), *record_paths(RESULTS / "smollm2")]


def write(records: list[Record], form: str, folder: Path, **asked: Any) -> list[Path]:
    return export_records(records, form, to=folder, asked=ExportRequest(WHEN, **asked))


@cache
def schema(name: str) -> Callable[[Json], Iterator[object]]:
    return Draft7Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text())).iter_errors


# --- all or nothing ---------------------------------------------------------------------------------------------------


def test_they_are_found_by_file() -> None:
    files = {path.stem for path in Path(exports.exports.__file__).parent.glob("[!_]*.py")}
    assert len(export_names()) == len(files) >= 3
    with pytest.raises(UsageError, match=r"format 'exel' does not exist.*choose csv, eee"):
        find_export("exel")


def test_two_records_that_claim_one_id_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one = record("rome", 0.5, tasks=())
    other = replace(record("rome", 0.9, tasks=()), id=one.id)
    with pytest.raises(DataError, match=f"{record_name(one)}: two records claim this id with other numbers"):
        write([one, other], "csv", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    write([one, replace(one)], "csv", tmp_path / "out")
    assert (tmp_path / "out" / "records.csv").read_text().count("\n") == 2


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(records: object, folder: Path, asked: object) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports.find_export("csv").__class__, "write", staticmethod(fail))
    with pytest.raises(UsageError, match=r"out: cannot be written \(No space left on device\)"):
        write([record("rome", 0.5, tasks=())], "csv", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    write([record("rome", 0.5, tasks=())], "csv", tmp_path)
    first = (tmp_path / "values.csv").read_bytes()
    write([record("memit", 0.9, tasks=())], "csv", tmp_path)
    assert (tmp_path / "values.csv").read_bytes() != first
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "documents.csv", "records.csv", "values.csv"}
    with pytest.raises(UsageError, match=r"mine\.txt: is a file; give a folder"):
        write([record("rome", 0.5, tasks=())], "csv", tmp_path / "mine.txt")


@pytest.mark.parametrize("form", export_names())
def test_no_name_leads_out_of_the_folder(form: str, tmp_path: Path) -> None:
    made = replace(record(HOSTILE, 0.5, model=HOSTILE, tasks=("NLI",), documents=3), id="../../../escaped")
    made.edits["dataset"] = HOSTILE
    written = write([made], form, tmp_path / "a" / "b" / "out", **HUB.get(form, {}))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and sorted(found) == sorted(written)
    assert all(path.resolve().is_relative_to(tmp_path / "a" / "b" / "out") for path in written)


HUB: dict[str, Json] = {}


# --- Every Eval Ever --------------------------------------------------------------------------------------------------


def evaluations(paths: list[Path]) -> list[Json]:
    return [json.loads(path.read_text()) for path in paths if path.suffix == ".json"]


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_committed_records_are_valid_every_eval_ever(tmp_path: Path) -> None:
    records = [read_record(path, values=True) for path in committed(24)]
    written = write(records, "eee", tmp_path / "out")
    found = evaluations(written)
    assert len(found) == sum(len(record.points) for record in records) > 30
    assert [error for one in found for error in schema("eval")(one)] == []
    samples = [line for path in written if path.suffix == ".jsonl" for line in lines(path)[::300]]
    assert len(samples) > 100
    assert [error for one in samples for error in schema("instance_level_eval")(one)] == []
    # What its validator asks beyond the schema: scores inside their scale, and one place and name for each evaluation.
    for one in found:
        for result in one["evaluation_results"]:
            config, score = result["metric_config"], result["score_details"]["score"]
            if "score_type" in config:
                assert config["min_score"] <= score <= float(config["max_score"])
    assert len({one["evaluation_id"] for one in found}) == len(found)


def test_an_evaluation_says_what_its_record_says(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI",), documents=10, counts=(0, 10, 50))
    written = write([made], "eee", tmp_path)
    assert len(written) == 6
    by_edits = {one["model_info"]["additional_details"]["edits"]: one for one in evaluations(written)}
    assert set(by_edits) == {"0", "10", "50"}
    one = by_edits["50"]
    assert one["model_info"]["id"] == "lm-edit-harness/mini" and one["retrieved_timestamp"] == str(WHEN)
    assert one["model_info"]["additional_details"]["editor"] == "rome"
    assert "editor" not in by_edits["0"]["model_info"]["additional_details"]
    [result] = [r for r in one["evaluation_results"] if r["evaluation_result_id"] == "NLI.accuracy"]
    numbers = made.tasks(50)["NLI"]["accuracy"]
    assert result["score_details"]["score"] == numbers["value"]
    uncertainty = result["score_details"]["uncertainty"]
    assert [uncertainty["confidence_interval"][end] for end in ("lower", "upper")] == numbers["interval"]
    assert uncertainty["num_samples"] == 10
    assert float(result["score_details"]["details"]["difference"]) == numbers["difference"]["value"]
    assert result["metric_config"]["metric_id"] == "accuracy" and not result["metric_config"]["lower_is_better"]


def test_the_documents_of_an_evaluation_are_those_of_its_record(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NER",), documents=10)
    written = write([made], "eee", tmp_path)
    [whole] = [one for one in evaluations(written) if one["evaluation_id"].endswith("-50-edits")]
    about = whole["detailed_evaluation_results"]
    path = tmp_path / about["file_path"]
    assert about["checksum"] == hashlib.sha256(path.read_bytes()).hexdigest()
    rows = lines(path)
    assert about["total_rows"] == len(rows) == 50 * (1 + 2 + 5) + 10
    assert {row["evaluation_id"] for row in rows} == {whole["evaluation_id"]}
    mine = [row for row in rows if row["evaluation_result_id"] == "NER.f1"]
    known = (made.values or {})[50]["NER"]["f1"]
    assert {row["sample_id"]: row["evaluation"]["score"] for row in mine} == {
        name: row.num / row.den for name, row in known.items()
    }
    assert all(row["evaluation"]["is_correct"] is (row["evaluation"]["score"] == 1) for row in rows)


def test_a_missing_value_is_no_score(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI",), documents=4)
    made.points[1]["tasks"]["NLI"]["accuracy"].update(value=None, n=0, interval=None, reason="all were empty")
    written = write([replace(made, values=None)], "eee", tmp_path)
    [one] = [one for one in evaluations(written) if one["evaluation_id"].endswith("-50-edits")]
    assert list(schema("eval")(one)) == []
    assert "NLI.accuracy" not in {result["evaluation_result_id"] for result in one["evaluation_results"]}
    told = json.loads(one["source_metadata"]["additional_details"]["without_value"])
    assert told == {"NLI.accuracy": "all were empty"}
    assert "detailed_evaluation_results" not in one and [path.suffix for path in written] == [".json"] * 2


def published(folder: Path) -> list[Record]:
    return read_published("halluedit", write_lines(folder / "halluedit_percase_meta_llama_3_8b_instruct.jsonl", ROWS))


ROWS = [hallu_row("ROME", case, [1, case % 2, 0, 1, 0, 1, 1]) for case in range(4)]


def test_a_published_run_is_a_third_partys(tmp_path: Path) -> None:
    records = published(tmp_path)
    found = evaluations(write(records, "eee", tmp_path / "out"))
    assert found and [error for one in found for error in schema("eval")(one)] == []
    assert {one["model_info"]["id"] for one in found} == {"meta-llama/Meta-Llama-3-8B-Instruct"}
    assert {one["source_metadata"]["evaluator_relationship"] for one in found} == {"third_party"}
    assert {one["eval_library"]["name"] for one in found} == {"halluedit"}
    assert all("not run here" in one["source_metadata"]["additional_details"]["label"] for one in found)


def test_names_that_a_datastore_refuses_are_changed(tmp_path: Path) -> None:
    for name in ("CON", "data", "a/..", "..", "a:b*c"):
        for path in write([record("rome", 0.5, model=name, tasks=())], "eee", tmp_path / "out"):
            data, collection, developer, model, _ = path.relative_to(tmp_path / "out").parts
            assert (data, collection) == ("data", "lm-edit-harness")
            assert {developer.lower(), model.lower()}.isdisjoint({"con", "data", "..", "."})


# --- lm-evaluation-harness --------------------------------------------------------------------------------------------


def results_of(written: list[Path], edits: int) -> Json:
    [path] = [path for path in written if path.parent.name.endswith(f".edits-{edits}")]
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_committed_records_are_read_by_what_reads_lm_eval(tmp_path: Path) -> None:
    records = [read_record(path, values=True) for path in committed(24)]
    written = write(records, "lm-eval", tmp_path / "out")
    names = [path.as_posix() for path in written]
    assert get_results_filenames(names) == names and len(names) == sum(len(record.points) for record in records)
    for one in records:
        last = one.points[-1]
        [path] = [path for path in written if path.parent.name == f"{record_name(one)}.edits-{last['edits']}"]
        table = make_table(json.loads(path.read_text()))
        valued = [task for task, found in last["tasks"].items() if any(n["value"] is not None for n in found.values())]
        assert valued and all(f"|{task}" in table for task in valued)


def test_results_are_those_of_the_record(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI", "NER"), documents=10)
    made.points[1]["tasks"]["NER"]["f1"].update(value=None, n=0, interval=None, reason="nothing was said")
    made.points[1]["tasks"]["NLI"]["acc,strict"] = made.points[1]["tasks"]["NLI"]["accuracy"]
    found = results_of(write([made], "lm-eval", tmp_path), 50)
    numbers = made.tasks(50)["NLI"]["accuracy"]
    assert found["results"]["NLI"]["accuracy,none"] == numbers["value"] == found["results"]["NLI"]["acc,strict"]
    assert found["results"]["NLI"]["accuracy_stderr,none"] == pytest.approx(
        mean_stderr([row.num for row in (made.values or {})[50]["NLI"]["accuracy"].values()])
    )
    assert found["results"]["NLI"]["acc_stderr,strict"] == "N/A"  # no documents are known
    assert "NER" not in found["results"] and found["without_value"] == {"NER.f1": "nothing was said"}
    assert found["n-samples"]["NLI"] == {"original": 10, "effective": 10}
    assert found["own"]["NLI"]["accuracy"]["interval"] == numbers["interval"]
    assert found["date"] == WHEN and found["edited"]["editor"] == "rome"
    assert results_of(write([made], "lm-eval", tmp_path), 0)["edited"]["editor"] == "none"


# --- pages on the Hub -------------------------------------------------------------------------------------------------


HUB["hf"] = {"hub": {"NLI": "nyu-mll/glue:rte"}}


def test_the_page_of_a_model_gets_the_headlines(tmp_path: Path) -> None:
    made = record("rome", 0.5, tasks=("NLI", "NER"), documents=10)
    hub = {"NLI": "nyu-mll/glue:rte", "counterfact": "someone/counterfact"}
    written = write([made], "hf", tmp_path, hub=hub)
    assert {path.parent.name for path in written} == {".eval_results"} and len(written) == 4
    [path] = [path for path in written if path.name == "NLI.yaml" and ".edits-50" in str(path)]
    [entry] = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id) == ("nyu-mll/glue", "rte")
    assert entry.value == made.tasks(50)["NLI"]["accuracy"]["value"]
    assert entry.notes is not None and "50 edits of counterfact by rome, batch; accuracy, n = 10" in entry.notes
    made.points[1]["tasks"]["NLI"]["accuracy"].update(value=None, interval=None, reason="none")
    assert len(write([made], "hf", tmp_path / "again", hub=hub)) == 3


NO_PAGE = [
    (record("rome", 0.5, tasks=("NLI",)), {}, "hf: a page shows results of data sets on the Hub"),
    (record("rome", 0.5, tasks=("NLI",)), {"NLI": "glue"}, "NLI=glue: expected OWNER/NAME"),
    (record("rome", 0.5, tasks=("NLI",)), {"NER": "a/b"}, "hf: no record has a headline of NER"),
    (record("rome", 0.5, mode="isolated", tasks=("NLI",)), {"NLI": "a/b"}, "isolated edits make as many models"),
]


@pytest.mark.parametrize(("made", "hub", "said"), NO_PAGE)
def test_what_has_no_page_is_told(made: Record, hub: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        write([made], "hf", tmp_path / "out", hub=hub)
    assert list(tmp_path.iterdir()) == []


# --- what was asked and replied ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_with_samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A run of two edits on the shipped model, with its samples."""
    folder = tmp_path_factory.mktemp("samples")
    made = harness.run(
        "mini", "ft_m", "counterfact:2", ["NLI"], mode="batch", limit=3, settings={"steps": 2}, output=folder
    )
    return read_record(folder / f"{record_name(made)}.json", values=True), samples_at(folder)[made.id]


def test_every_eval_ever_gets_what_was_asked_and_replied(run_with_samples: tuple[Record, Path], tmp_path: Path) -> None:
    made, samples = run_with_samples
    for path in write([made], "eee", tmp_path / "out", samples={made.id: samples}):
        if path.suffix == ".jsonl":
            rows = lines(path)
            edits = int(rows[0]["evaluation_id"].split("-")[-2])
            assert [error for row in rows for error in schema("instance_level_eval")(row)] == []
            known = {f"{one.task}/{one.doc_id}": one for one in iterate_samples(samples) if not one.question}
            without = [row for row in rows if row["sample_id"] not in known]
            assert {row["evaluation_name"] for row in without} == {"neutral_text"}
            assert all(row["input"]["raw"] == "" and "not kept" in row["metadata"]["text"] for row in without)
            for row in (row for row in rows if row["sample_id"] in known):
                sample = known[row["sample_id"]]
                reply = sample.after if edits else sample.before
                assert row["input"]["raw"].startswith(sample.prompt) and sample.target in row["input"]["reference"]
                if reply is not None and reply.text is not None:
                    assert row["output"]["raw"][0] == reply.text
            assert {row["evaluation_name"] for row in rows} == {"counterfact", "NLI", "neutral_text"}


def test_lm_eval_gets_its_samples(run_with_samples: tuple[Record, Path], tmp_path: Path) -> None:
    made, samples = run_with_samples
    written = [path.as_posix() for path in write([made], "lm-eval", tmp_path / "out", samples={made.id: samples})]
    found = get_sample_results_filenames(written)
    assert {Path(path).name.split("_")[1] for path in found} >= {"NLI", "counterfact"}
    [path] = [path for path in found if "edits-2/samples_NLI" in path]
    rows = lines(Path(path))
    known = [one for one in iterate_samples(samples) if one.task == "NLI"]
    assert [row["doc_id"] for row in rows] == [one.doc_id for one in known]
    assert [row["resps"][0][0] for row in rows] == [one.after and one.after.text for one in known]
    values = (made.values or {})[2]["NLI"]["accuracy"]
    assert {f"NLI/{row['doc_id']}": row["accuracy"] for row in rows} == {name: r.num for name, r in values.items()}
    assert write([made], "lm-eval", tmp_path / "none", samples={made.id: samples}, documents="none") != []
    assert not list((tmp_path / "none").rglob("samples_*"))
