"""Each format that is imported, by files as its program writes them, and the published tables that follow from them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from published_files import counterfact_case, easy_case, write_cases, write_lines, zsre_case

from harness.errors import DataError, UsageError
from harness.reports.comparison import pair_difference
from harness.reports.importing import Told, find_reader, keep_published, read_published, reader_names
from harness.reports.leaderboard import leaderboard
from harness.runs.record import Record
from harness.runs.record_file import read_records
from harness.runs.ties import untied

FORMATS = ("easyedit", "halluedit", "lm-eval", "nas", "rome", "ultraedit")


def test_what_can_be_imported() -> None:
    assert tuple(reader_names()) == FORMATS
    assert all(type(find_reader(name)).__doc__ for name in FORMATS)


def one(form: str, path: Path, **told: Any) -> Record:
    (record,) = read_published(form, path, Told(**told))
    return record


def refused(form: str, path: Path, **told: Any) -> str:
    with pytest.raises(DataError) as error:
        read_published(form, path, Told(**told))
    assert "\n" not in str(error.value)
    return str(error.value)


def written(form: str, path: Path, output: Path, **told: Any) -> list[Record]:
    """The records as they are read again, each tied to its values."""
    keep_published(read_published(form, path, Told(**told)), output)
    kept = read_records(output, values=True)
    assert all(not list(untied(record)) for record in kept)
    return kept


# --- EasyEdit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def easyedit(tmp_path: Path) -> Path:
    folder = tmp_path / "easy"
    folder.mkdir()
    for editor, post in (("ROME", 1.0), ("IKE", 0.5)):
        cases = [easy_case(case, pre=0.25, post=post) for case in range(4)]
        (folder / f"{editor}_zsre_Llama-2-7b-chat-hf_results.json").write_text(json.dumps(cases))
    return folder


def test_easyedit_says_editor_data_and_model_in_its_names(easyedit: Path, tmp_path: Path) -> None:
    found = {record.editor["name"]: record for record in written("easyedit", easyedit, tmp_path / "out")}
    assert set(found) == {"ROME", "IKE"}
    rome = found["ROME"]
    assert (rome.model["name"], rome.edits["dataset"]) == ("meta-llama/Llama-2-7b-chat-hf", "KnowEdit zsre")
    values = {metric: measure["value"] for metric, measure in rome.tasks(4)["KnowEdit zsre"].items()}
    assert values == {
        "efficacy": 1.0,
        "paraphrase": 0.5,
        "portability_reasoning": 0.75,
        "portability_aliasing": 0.25,
        "locality_specificity": 0.75,
        "fluency": 5.5,
    }
    assert rome.tasks(0)["KnowEdit zsre"]["efficacy"]["value"] == 0.25
    assert any("Whether edits were piled up is not told" in note for note in rome.published["notes"])


def test_easyedit_of_many_edits_says_so_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "llama-3-8b-instruct_WISE_N=3_Sequential=True.json"
    path.write_text(json.dumps([easy_case(case) for case in (0, 0, 1)]))  # in batches cases are counted anew
    record = one("easyedit", path, edit_set="zsre")
    assert (record.editor["name"], record.edits["mode"], record.edits["count"]) == ("WISE", "sequential", 3)
    assert "no field" not in refused("easyedit", path) and "--edits" in refused("easyedit", path)


def test_easyedit_of_two_protocols_is_refused(easyedit: Path) -> None:
    path = easyedit / "ROME_zsre_Llama-2-7b-chat-hf_results.json"
    meta = {"rewrite": {"comparable_group": "lm.free_generation.llm_judge"}}
    judged = [easy_case(0, metric_meta=meta), easy_case(1, metric_meta=meta)]
    path.write_text(json.dumps(judged))
    assert one("easyedit", path).published["protocol"].startswith("Free answers, judged")
    path.write_text(json.dumps([*judged, easy_case(2)]))
    assert "case 0 was measured by lm.free_generation.llm_judge, case 2 by None" in refused("easyedit", path)


def test_easyedit_may_leave_out_how_it_measured(tmp_path: Path) -> None:
    for number, told in enumerate((None, {"rewrite": None}, "new", {"rewrite": "exact"})):
        case = easy_case(0, pre=0.0, post=1.0)
        case["post"]["metric_meta"] = told
        path = tmp_path / str(number) / "ROME_zsre_gpt2-xl_results.json"
        path.parent.mkdir()
        path.write_text(json.dumps([case]))
        assert one("easyedit", path).tasks(1)


def test_easyedit_in_a_batch_is_a_batch(easyedit: Path) -> None:
    found = read_published("easyedit", easyedit, Told(mode="batch"))
    assert {record.edits["mode"] for record in found} == {"batch"}


def test_easyedit_that_is_no_number_or_no_result(easyedit: Path) -> None:
    path = easyedit / "ROME_zsre_Llama-2-7b-chat-hf_results.json"
    path.write_text(json.dumps([easy_case(0), easy_case(1, rewrite_acc=["a"])]))
    assert "case 1: post efficacy is no list of numbers" in refused("easyedit", path)
    path.write_text(json.dumps({"post": {}}))
    assert "no array of cases" in refused("easyedit", path)
    path.write_text(json.dumps([{"case_id": 0}]))
    assert "row 1: not a row of EasyEdit's results (post: Field required)" in refused("easyedit", path)
    path.write_text(json.dumps([easy_case(0)])[:-9])
    assert "breaks off" in refused("easyedit", path)


KNOWEDIT = {
    "zsre": {"FT": 99.98, "FT-L": 53.82, "IKE": 99.84, "LoRA": 100.00, "MEMIT": 95.86, "ROME": 96.86},
    "wikibio": {"FT": 100.00, "FT-L": 66.70, "IKE": 100.00, "LoRA": 100.00, "MEMIT": 94.68, "ROME": 95.91},
}
"""As printed in ``code/result_table_previous_benchmark.ipynb`` of HalluEditBench's repository."""


@pytest.fixture(scope="module")
def knowedit(request: pytest.FixtureRequest) -> dict[tuple[str, str], Record]:
    shared: Path = request.getfixturevalue("shared")
    found = read_published("easyedit", shared / "data/published/knowedit_easyedit_percase_llama2.jsonl.gz")
    return {(record.edits["dataset"].removeprefix("KnowEdit "), record.editor["name"]): record for record in found}


@pytest.mark.parametrize(("data", "editor"), [(data, editor) for data in KNOWEDIT for editor in KNOWEDIT[data]])
def test_the_published_table_of_knowedit(data: str, editor: str, knowedit: dict[tuple[str, str], Record]) -> None:
    record = knowedit[data, editor]
    value = record.points[-1]["tasks"][f"KnowEdit {data}"]["efficacy"]["value"]
    assert f"{100 * value:.2f}" == f"{KNOWEDIT[data][editor]:.2f}"


def test_pairing_tells_two_rows_apart_whose_own_intervals_overlap(knowedit: dict[tuple[str, str], Record]) -> None:
    """95.91 and 94.68 of wikibio: 1.23 points [0.30, 2.10], as most cases are equally hard for both."""
    memit, rome = knowedit["wikibio", "MEMIT"], knowedit["wikibio", "ROME"]
    change = pair_difference((memit, 306), (rome, 306), task="KnowEdit wikibio", metric="efficacy")
    assert change is not None and change.low is not None and change.high is not None
    assert change.value == pytest.approx(0.0123, abs=5e-5)
    assert (change.low, change.high) == (pytest.approx(0.0030, abs=1e-3), pytest.approx(0.0210, abs=1e-3))
    assert change.significant
    lower, higher = (r.tasks(306)["KnowEdit wikibio"]["efficacy"]["interval"] for r in (memit, rome))
    assert lower[1] > higher[0]


# --- ROME, MEMIT, AlphaEdit -------------------------------------------------------------------------------------------


def test_rome_writes_a_case_a_file_before_and_after(tmp_path: Path) -> None:
    before = counterfact_case(0, better=False)["post"]
    cases = [counterfact_case(case, better=case != 3, pre=before) for case in range(4)]
    write_cases(
        tmp_path / "ROME" / "run_000", cases, {"layers": [17], "mom2_adjustment": True, "layer_module_tmp": "h.{}"}
    )
    (record,) = written("rome", tmp_path / "ROME", tmp_path / "out", model="gpt2-xl")
    after = record.tasks(4)["CounterFact"]
    assert (record.editor["name"], record.edits["mode"]) == ("ROME", "isolated")
    assert record.editor["hyperparameters"] == {"layers": [17], "mom2_adjustment": True}
    assert after["efficacy"]["value"] == 0.75
    assert after["efficacy_accuracy"]["value"] == 0.75
    assert after["paraphrase"]["value"] == pytest.approx((3 * 0.5 + 0.0) / 4)
    assert after["neighborhood"]["value"] == 0.75
    assert after["score"]["value"] == pytest.approx(3 / (1 / 0.75 + 1 / 0.375 + 1 / 0.75))
    right, wrong = math.exp(-1) - math.exp(-3), math.exp(-3) - math.exp(-1)
    assert after["efficacy_magnitude"]["value"] == pytest.approx((3 * right + wrong) / 4)
    assert record.tasks(0)["CounterFact"]["efficacy"]["value"] == 0.0
    assert record.seed is None and "the unedited model" not in record.published["unknown"]
    assert "An edit took 2.0 s where it was made." in record.published["notes"]


def test_what_a_broken_model_gave_is_not_taken_for_a_cut_file(tmp_path: Path) -> None:
    case = counterfact_case(0)
    case["post"]["rewrite_prompts_probs"] = [{"target_new": math.nan, "target_true": 1.0}]
    said = refused("rome", write_cases(tmp_path / "ROME", [case], {}), model="gpt2-xl")
    assert said.endswith("NaN is no number; leave out the cases for which its model gave none")


def test_the_new_answer_is_the_wanted_one_of_attribute_prompts(tmp_path: Path) -> None:
    """They ask about subjects of which the new answer is true; only near other subjects the true one is wanted."""
    case = counterfact_case(0)
    case["post"]["attribute_prompts_probs"] = [{"target_new": 2.0, "target_true": 9.0}] * 10
    after = one("rome", write_cases(tmp_path / "ROME", [case], {}), model="gpt2-xl").tasks(1)["CounterFact"]
    assert after["attribute"]["value"] == 1.0
    assert after["attribute_magnitude"]["value"] == pytest.approx(math.exp(-2) - math.exp(-9))


def test_a_group_is_as_large_as_its_file_says(tmp_path: Path) -> None:
    """Also where only some of its cases were asked about."""
    cases = [counterfact_case(case, group=list(range(1000))) for case in range(3)]
    record = one("rome", write_cases(tmp_path / "MEMIT", cases, {}), model="gpt2-xl")
    assert (record.edits["mode"], record.edits["count"]) == ("batch", 1000)


def test_memit_takes_back_what_alphaedit_piles_up(tmp_path: Path) -> None:
    """The group in each file tells: MEMIT's program writes a case's own, AlphaEdit's the last one into all."""
    groups = [[0, 1], [2, 3]]
    memit = [counterfact_case(case, group=group) for group in groups for case in group]
    alphaedit = [counterfact_case(case, group=groups[-1]) for group in groups for case in group]
    params = {"model_name": "Llama3-8B", "layers": [4]}
    first = one("rome", write_cases(tmp_path / "MEMIT" / "run_000", memit, params))
    assert (first.edits["mode"], first.edits["count"], first.model["name"]) == ("batch", 2, "Llama3-8B")
    assert first.tasks(2)["CounterFact"]["efficacy"]["n"] == 4
    assert "4 cases in groups of 2" in first.published["notes"][0]
    second = one("rome", write_cases(tmp_path / "AlphaEdit" / "run_000", alphaedit, params))
    assert (second.edits["mode"], second.edits["count"], second.plan["edit_batch_size"]) == ("sequential", 4, 2)
    assert "the unedited model" in second.published["unknown"]


def test_zsre_cases_have_a_truth_value_a_token(tmp_path: Path) -> None:
    cases = [zsre_case(0, [True, True]), zsre_case(1, [True, False, False, False])]
    record = one("rome", write_cases(tmp_path / "FT", cases), model="gpt2-xl")
    assert record.tasks(2)["zsRE"]["efficacy"]["value"] == pytest.approx(0.625)
    assert "score" not in record.tasks(2)["zsRE"] and record.published["protocol"].startswith("Teacher-forced")


def test_cases_of_two_runs_are_refused_by_name(tmp_path: Path) -> None:
    cases = [counterfact_case(case, group=[0, 1, 2]) for case in range(3)] + [counterfact_case(7)]
    said = refused("rome", write_cases(tmp_path / "MEMIT", cases), model="gpt2-xl")
    assert "the size of a group is 3 in 3 files, but 1 in case_7.json" in said
    said = refused("rome", write_cases(tmp_path / "both", [counterfact_case(0), zsre_case(1, [True])]), model="gpt2-xl")
    assert "what was asked is zsRE in 1 files, but CounterFact in case_0.json" in said
    twice = write_cases(tmp_path / "twice", [counterfact_case(0)])
    (twice / "1_edits-case_0.json").write_text(json.dumps(counterfact_case(0)))
    assert "case 0 was there before" in refused("rome", twice, model="gpt2-xl")


def test_cases_that_say_no_model_or_are_cut(tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "ROME", [counterfact_case(0), counterfact_case(1)])
    assert "name it with --model" in refused("rome", folder)
    path = folder / "case_1.json"
    path.write_text(path.read_text()[:-20])
    assert f"{path}: not JSON, or it breaks off" in refused("rome", folder, model="gpt2-xl")
    path.write_text(json.dumps({**counterfact_case(1), "post": {"rewrite_prompts_probs": [{"target_new": 1.0}]}}))
    assert "post is not what ROME's or MEMIT's program writes" in refused("rome", folder, model="gpt2-xl")


# --- NAS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    folder = tmp_path / "NAS" / "run_000"
    (folder / "resume").mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"mom2_adjustment": True, "nullspace_threshold": 0.02}))
    state = {"algo": "NAS", "hf_model_name": "gpt2-xl", "ds_name": "mcf", "num_edits": 2}
    (folder / "resume" / "state.json").write_text(json.dumps(state))
    for count, wrong in ((2, ()), (4, (0, 3))):
        (folder / "checkpoint_evals" / f"after_{count}").mkdir(parents=True)
        rows = [counterfact_case(case, better=case not in wrong) for case in range(count)]
        write_lines(folder / "checkpoint_evals" / f"after_{count}" / "results.jsonl", rows)
    return folder


def test_each_checkpoint_is_a_point(nas: Path, tmp_path: Path) -> None:
    (record,) = written("nas", nas.parent, tmp_path / "out")
    assert (record.model["name"], record.editor["name"], record.edits["dataset"]) == (
        "gpt2-xl",
        "NAS",
        "MultiCounterFact",
    )
    assert (record.edits["mode"], record.plan["edit_batch_size"]) == ("sequential", 2)
    efficacy = {point["edits"]: point["tasks"].get("MultiCounterFact", {}).get("efficacy") for point in record.points}
    assert {edits: one and one["value"] for edits, one in efficacy.items()} == {0: None, 2: 1.0, 4: 0.5}
    assert leaderboard([record]).count("· sequential, 2 at a time ·") == 2


def test_a_checkpoint_without_its_run_or_of_mixed_cases(nas: Path) -> None:
    (nas / "resume" / "state.json").unlink()
    assert "name it with --model" in refused("nas", nas)
    assert one("nas", nas, model="gpt2-xl", editor="NAS").edits["dataset"] == "CounterFact"
    path = nas / "checkpoint_evals" / "after_4" / "results.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    assert "row 5: case 0 was there before" in refused("nas", nas, model="gpt2-xl", editor="NAS")


# --- UltraEdit --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ultraedit(tmp_path: Path) -> Path:
    folder = tmp_path / "wandb" / "run-1" / "files"
    folder.mkdir(parents=True)
    (folder / "wandb-summary.json").write_text(
        json.dumps({"ES": 0.9, "GS": 0.8, "LS": 0.5, "_runtime": 120, "_step": 1})
    )
    config = {
        "dataset": {"name": "zsre", "n_edits": 100},
        "model": {"name": "gpt-j", "name_or_path": "EleutherAI/gpt-j-6b"},
        "editor": {"name": "ultraedit", "lr": 1e-6, "cache_dir": "cache"},
        "num_seq": 200,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({key: {"value": value} for key, value in config.items()}))
    return tmp_path


def test_three_means_without_what_cases_gave(ultraedit: Path, tmp_path: Path) -> None:
    (record,) = written("ultraedit", ultraedit, tmp_path / "out")
    assert (record.model["name"], record.editor["name"]) == ("EleutherAI/gpt-j-6b", "ultraedit")
    assert (record.edits["count"], record.plan["edit_batch_size"], record.edits["mode"]) == (20_000, 100, "sequential")
    efficacy = record.tasks(20_000)["zsre"]["efficacy"]
    assert (efficacy["value"], efficacy["interval"], efficacy["reason"]) == (
        0.9,
        None,
        "no interval: only the value is told",
    )
    assert record.seconds == 120 and record.seed == 42
    assert {"what each case gave", "the unedited model"} <= set(record.published["unknown"])
    assert "seconds" not in record.published["unknown"]


def test_a_summary_alone_or_of_another_program(ultraedit: Path) -> None:
    summary = next(ultraedit.rglob("wandb-summary.json"))
    summary.write_text(json.dumps({"loss": 1.0}))
    assert "not a row of UltraEdit's summary (ES: Field required)" in refused("ultraedit", ultraedit)
    summary.write_text(json.dumps({"ES": 0.9, "GS": 0.8, "LS": 0.5}))
    summary.with_name("config.yaml").unlink()
    assert "not found beside the summary" in refused("ultraedit", ultraedit)


# --- lm-eval ----------------------------------------------------------------------------------------------------------


def evaluated(folder: Path, right: list[int], text: str = "a") -> Path:
    """What lm-eval writes itself of a task with four documents."""
    told = {
        "target": 0,
        "arguments": [("a", "b")],
        "resps": [["x"]],
        "filtered_resps": ["x"],
        "filter": "none",
        "metrics": ["acc", "f1"],
        "prompt_hash": "p",
        "target_hash": "t",
    }
    samples = [
        {**told, "doc_id": i, "doc": {"q": i}, "doc_hash": f"{text}{i}", "acc": float(bit), "f1": float(bit)}
        for i, bit in enumerate(right)
    ]
    results = {
        "results": {"piqa": {"alias": "piqa", "acc,none": sum(right) / 4, "acc_stderr,none": 0.1, "f1,none": 0.123}},
        "configs": {"piqa": {}},
        "config": {"model": "hf", "model_args": "pretrained=x", "random_seed": 7},
        "higher_is_better": {"piqa": {"acc": True, "f1": True}},
        "lm_eval_version": "0.4.13",
    }
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name = "owner/model"
    tracker.general_config_tracker.model_name_sanitized = "owner__model"
    tracker.general_config_tracker.start_time = 0.0
    tracker.save_results_aggregated(results=results, samples={"piqa": samples})
    tracker.save_results_samples(task_name="piqa", samples=samples)  # type: ignore[arg-type]
    return folder


def test_what_lm_eval_writes_is_read_with_its_samples(tmp_path: Path) -> None:
    record = one("lm-eval", evaluated(tmp_path / "base", [1, 1, 0, 0]))
    assert (record.model["name"], record.editor["name"], record.seed) == ("owner/model", "none", 7)
    piqa = record.tasks(0)["piqa"]
    assert (piqa["acc"]["value"], piqa["acc"]["n"], piqa["acc"]["interval"] is not None) == (0.5, 4, True)
    assert (piqa["f1"]["value"], piqa["f1"]["interval"]) == (0.123, None)  # no mean of what documents gave
    assert record.versions["lm_eval"] == "0.4.13" and record.headlines == {"piqa": "acc"}


def test_an_edited_model_is_paired_with_the_unedited_one(tmp_path: Path) -> None:
    base, edited = evaluated(tmp_path / "base", [1, 1, 0, 0]), evaluated(tmp_path / "edited", [1, 0, 0, 0])
    told: dict[str, Any] = {"editor": "MEMIT", "edit_set": "zsre", "num_edits": 50, "mode": "batch", "unedited": base}
    (record,) = written("lm-eval", edited, tmp_path / "out", **told)
    change = record.tasks(50)["piqa"]["acc"]["difference"]
    assert (change["value"], change["n"]) == (-0.25, 4)
    assert "50 edits of zsre · batch · published, not run here" in leaderboard([record])
    other = evaluated(tmp_path / "other", [1, 1, 0, 0], text="b")
    assert "4 documents of piqa are others" in refused("lm-eval", edited, **{**told, "unedited": other})


@pytest.mark.parametrize(
    ("form", "told", "said"),
    [
        ("halluedit", {"num_edits": 500}, "--num-edits: the files of halluedit say it themselves"),
        ("halluedit", {"editor": "FOO"}, "--editor: the files of halluedit"),
        ("rome", {"num_edits": 3}, "--num-edits: the files of rome"),
        ("easyedit", {"unedited": Path("base")}, "--unedited: the files of easyedit"),
        ("lm-eval", {"editor": "MEMIT", "edit_set": "zsre"}, "--editor MEMIT: nothing says how many edits"),
        ("lm-eval", {"num_edits": 3}, "--num-edits goes with an edited model; name the editor with --editor"),
        ("lm-eval", {"unedited": Path("base")}, "--unedited goes with an edited model"),
    ],
)
def test_what_is_told_is_used_or_refused(form: str, told: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = evaluated(tmp_path / "edited", [1, 0])
    with pytest.raises(UsageError, match=re.escape(said)):
        read_published(form, path, Told(**told))


def test_results_that_are_cut_or_of_another_program(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "base", [1, 1, 0, 0])
    results, samples = next(folder.rglob("results_*.json")), next(folder.rglob("samples_*.jsonl"))
    samples.write_text(samples.read_text()[:-30])
    assert "line 4" in refused("lm-eval", folder)
    samples.write_text(samples.read_text().splitlines()[0] + "\n" + samples.read_text().splitlines()[0])
    assert "document 0 was there before: runs are mixed" in refused("lm-eval", folder)
    results.write_text(json.dumps({"results": {"piqa": 0.5}, "config": {}}))
    assert "not a row of lm-eval's results (results.piqa" in refused("lm-eval", folder)
