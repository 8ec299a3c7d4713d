"""One state of a model on one task: who is scored under which edit, and when the unedited numbers may be reused."""

from __future__ import annotations

import gzip
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors

from harness.editing.schedule import Stop
from harness.errors import DataError
from harness.exam import data, measure, tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import Measured
from harness.exam.statistics import Ratio
from harness.exam.tasks import Task
from harness.models.lm import LM
from harness.patches.patch import Patch

NLI = data.TASKS / "general" / "NLI" / "NLI.yaml"


def task(name: str = "NLI", identity: str = "0" * 64, source: Path | None = NLI, **metadata: Any) -> Task:
    """A task with these metadata, whose YAML lies somewhere, and nothing else."""
    built = SimpleNamespace(
        config=SimpleNamespace(metadata={**metadata, "config_source": str(source)} if source else metadata),
        higher_is_better=lambda: {"accuracy": True, "invalid_rate": False, "unsaid": None},
        eval_docs=[{"text": "a"}],
        aggregation=lambda: {},
    )
    return Task(name, name, built, identity)


def request(doc_id: int, task: str = "other", **doc: Any) -> Any:
    """A request as lm-eval hands it to a model."""
    return SimpleNamespace(doc=doc, doc_id=doc_id, task_name=task)


# --- what is held -----------------------------------------------------------------------------------------------------


def test_unedited_and_batch_hold_one_patch(tiny: Callable[[str], LM]) -> None:
    model, seen = EditedLM(tiny("gpt2")), []
    rule = Patch(prompt=lambda text: text)
    for stop in (None, Stop(3, [rule])):
        with measure.hold(model, stop, ids=["a", "b", "c"], mode="batch", own=["own"]):
            seen.append((model._prompt, model._patch_of))
    assert seen == [(None, None), (rule.prompt, None)]


def test_cases_that_are_made_at_once_share_a_patch(tiny: Callable[[str], LM]) -> None:
    model, patches = EditedLM(tiny("gpt2")), [Patch(), Patch(), Patch()]
    with measure.hold(model, Stop(5, patches), ids=[*"abcde"], mode="isolated", own=["own"], at_once=2):
        patch_of = model._patch_of
    assert patch_of is not None
    assert [patch_of(request(0, task="own", case=case)) for case in "abcde"] == [0, 0, 1, 1, 2]
    assert [patch_of(request(i)) for i in range(4)] == [0, 1, 2, 0]


def test_in_isolated_editing_each_document_has_its_own_edit(tiny: Callable[[str], LM]) -> None:
    model, patches = EditedLM(tiny("gpt2")), [Patch(), Patch(), Patch()]
    with measure.hold(model, Stop(3, patches), ids=["a", "b", "c"], mode="isolated", own=["own"]):
        patch_of = model._patch_of
        assert model._patches is patches
    assert patch_of is not None
    assert [patch_of(request(0, task="own", case=case)) for case in "cab"] == [2, 0, 1]
    assert [patch_of(request(0, edit=edit)) for edit in "cab"] == [2, 0, 1]
    assert patch_of(request(1, case="c")) == 1, "the case of another task is no edit of this run"
    for stranger in (request(4, edit="d"), request(4, task="own", case="d"), request(4, task="own", edit="", case="a")):
        with pytest.raises(DataError, match=r"document 4: belongs to edit '.?', which is not made"):
            patch_of(stranger)
    assert [patch_of(request(i, sentence1="x")) for i in range(5)] == [0, 1, 2, 0, 1]
    assert model._patch_of is None


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_measuring_scores_every_document_and_stays_quiet(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    (nli,) = tasks.load_suite(["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer).tasks
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    found = measure.measure_task(EditedLM(lm, batch_size=4), nli, limit=5)
    assert logging.getLogger("lm_eval").level == logging.WARNING
    assert set(found.values) == {"accuracy", "invalid_rate", "accuracy_released", "accuracy_answered"}
    assert list(found.values["accuracy"]) == [f"NLI/{i}" for i in range(5)]
    assert found.plain == {}


def test_chosen_documents_keep_their_numbers_and_no_document_is_not_all_of_them(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    (nli,) = tasks.load_suite(["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer).tasks
    found = measure.measure_task(EditedLM(lm, batch_size=4), nli, limit=None, documents=[2, 7])
    assert set(found.values["accuracy"]) == {"NLI/2", "NLI/7"}
    assert measure.measure_task(EditedLM(lm, batch_size=4), nli, limit=None, documents=[]).values == {}


def test_a_metric_that_is_no_mean_is_taken_as_lm_eval_gives_it(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    (nli,) = tasks.load_suite(["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer).tasks
    nli.task._aggregation_list = {**nli.task._aggregation_list, "accuracy": lambda items: 42.0}
    found = measure.measure_task(EditedLM(lm, batch_size=4), nli, limit=3)
    assert "accuracy" not in found.values
    assert found.plain == {"accuracy": 42.0}
    table = measure.summarise_tasks([nli], {"NLI": found}, base=None, seed=0)
    assert (table["accuracy"]["value"], table["accuracy"]["interval"]) == (42.0, None)
    assert "not a mean over documents" in table["accuracy"]["reason"]


def test_numbers_are_paired_with_the_unedited_model() -> None:
    edited = Measured({"accuracy": {f"NLI/{i}": Ratio(float(i < 3)) for i in range(10)}})
    base = Measured({"accuracy": {f"NLI/{i}": Ratio(float(i < 8)) for i in range(10)}})
    (nli,) = [task()]
    assert measure.summarise_tasks([nli], {"NLI": base}, base=None, seed=0)["accuracy"]["difference"] is None
    table = measure.summarise_tasks([nli], {"NLI": edited}, base={"NLI": base}, seed=0)
    assert table["accuracy"]["value"] == pytest.approx(0.3)
    assert table["accuracy"]["n"] == 10
    assert table["accuracy"]["difference"]["value"] == pytest.approx(-0.5)
    assert table["accuracy"]["higher_is_better"] is True
    unsaid = Measured({"unsaid": {"NLI/0": Ratio(1.0)}})
    assert measure.summarise_tasks([nli], {"NLI": unsaid}, base=None, seed=0)["unsaid"]["higher_is_better"] is None


def test_what_the_rows_lack_is_missing_with_its_reason() -> None:
    needy = task(needs={"reference_score": "attribute_snippets.json"})
    table = measure.summarise_tasks([needy], {"NLI": Measured({"accuracy": {"NLI/0": Ratio(1.0)}})}, base=None, seed=0)
    assert table["reference_score"]["value"] is None
    assert table["reference_score"]["n"] == 0
    assert table["reference_score"]["reason"] == "the source of the rows has no attribute_snippets.json"


def test_agreement_compares_the_answers_of_the_two_models() -> None:
    rows = {f"d/{i}": {"case": "1", "kind": kind, "target_true": "Rome"} for i, kind in enumerate(["n", "n", "n", "r"])}
    base = Measured(answers=dict.fromkeys(rows, " Rome is old"), documents=rows)
    edited = Measured(answers={"d/0": " Rome", "d/1": " Oslo", "d/2": " rome or", "d/3": " Oslo"}, documents=rows)
    measure.agree(task(agreement={"neighborhood_agreement": {"kind": "n"}}), edited, base)
    found = edited.values["neighborhood_agreement"]
    assert {document: ratio.num for document, ratio in found.items()} == {"d/0": 1.0, "d/1": 0.0, "d/2": 1.0}
    assert {ratio.cluster for ratio in found.values()} == {"1"}


# --- the cache of the unedited model ----------------------------------------------------------------------------------


def key(**changes: Any) -> str | None:
    """The key of some numbers, but for the changes."""
    arguments = {
        "fingerprint": "f", "task": task(data_dir="mini", records=["1"]), "limit": 5, "batch_size": 8,
        "provenance": {"sha256": "d"}, "device": torch.device("cpu"),
    }  # fmt: skip
    return measure.base_key(**{**arguments, **changes})


def test_the_key_changes_with_everything_the_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key(),
        key(fingerprint="g"),
        key(limit=None),
        key(batch_size=9),
        key(asked={"num_fewshot": 5}),
        key(provenance={"sha256": "e"}),
        key(task=task("NER", data_dir="mini", records=["1"])),
        key(task=task(identity="1" * 64, data_dir="mini", records=["1"])),
        key(task=task(data_dir="mini", records=["1", "2"])),
        key(task=task(data_dir="mini", records=["1"], split="train")),
        key(task=task(data_dir="other", records=["1"])),
        key(task=task(data_dir="mini", records=["1"], file="my.jsonl")),
    ]
    other = task(data_dir="mini", records=["1"])
    other.task.eval_docs = [{"text": "b"}]
    keys.append(key(task=other))
    monkeypatch.setattr(measure, "version", lambda name: "9.9")
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(measure, "__version__", "9.9")
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(measure, "rounding_of", lambda device: ["another machine"])
    keys.append(key())
    monkeypatch.undo()
    assert len(set(keys)) == len(keys) == 16
    assert key() == keys[0]


def test_devices_of_one_kind_share_the_numbers_of_the_unedited_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(get_device_name=lambda device: "H200")
    monkeypatch.setattr("torch.get_device_module", lambda device: module)
    first, second = key(device=torch.device("cuda:0")), key(device=torch.device("cuda:7"))
    assert first == second != key()


PACKAGE = Path(measure.__file__).parents[1]
DECISIVE = [
    path.relative_to(PACKAGE).as_posix()
    for room in ("models", "patches", "exam")
    for path in sorted((PACKAGE / room).rglob("*.py"))
]


def test_a_line_more_in_any_file_of_the_decisive_rooms_is_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "harness"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("mini", "__pycache__"))
    before = key()
    monkeypatch.setattr(measure, "_PACKAGE", copy)
    assert key() == before  # what counts is what the files say, not where they lie
    seen = {before}
    for name in DECISIVE:
        with (copy / name).open("a") as file:
            file.write("# a line more\n")
        seen.add(key())
    assert len(seen) == len(DECISIVE) + 1 > 20
    (copy / "reports" / "curves.py").write_text("# a page is no number")
    assert key() in seen
    (copy / "exam" / "anew.py").write_text("")
    assert key() not in seen


def test_a_line_more_in_a_tasks_functions_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "general" / "NLI"
    shutil.copytree(NLI.parent, folder)
    before = key()
    monkeypatch.setattr(data, "TASKS", tmp_path)
    copied = task(source=folder / "NLI.yaml", data_dir="mini", records=["1"])
    assert key(task=copied) == before
    with (folder / "functions.py").open("a") as file:
        file.write("# a line more\n")
    assert key(task=copied) != before


def test_a_file_that_a_metric_needs_reaches_the_key_when_it_comes(tmp_path: Path) -> None:
    needy = task(data_dir=str(tmp_path), needs={"reference_score": "attribute_snippets.json"})
    before = key(task=needy)
    (tmp_path / "counterfact").mkdir()
    (tmp_path / "counterfact" / "attribute_snippets.json").write_text("[]")
    assert key(task=needy) != before


def test_a_model_is_more_than_its_weights(fresh: Callable[..., LM]) -> None:
    first, second, third = fresh("gpt2"), fresh("gpt2"), fresh("gpt2")
    assert measure.fingerprint(first, "w") == measure.fingerprint(second, "w") != measure.fingerprint(first, "v")
    second.model.config.scale_attn_weights = False
    third.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    assert len({measure.fingerprint(lm, "w") for lm in (first, second, third)}) == 3


def test_tasks_of_others_are_known_by_the_files_beside_their_yaml(tmp_path: Path) -> None:
    shutil.copytree(NLI.parent, tmp_path / "theirs")
    theirs = task(source=tmp_path / "theirs" / "NLI.yaml")
    before = key(task=theirs)
    assert before is not None
    (tmp_path / "theirs" / "utils.py").write_text("# another way to ask")
    assert key(task=theirs) != before


def test_a_task_that_lies_in_no_file_is_measured_every_time() -> None:
    assert key(task=task(source=None)) is None
    assert measure.load_base(None) is None
    measure.save_base(None, Measured())  # nothing is written, nothing fails


def test_the_cache_gives_back_what_it_was_given() -> None:
    made = Measured(
        {"accuracy": {"a": Ratio(1.0, 2.0, "c", "s"), "b": Ratio(math.nan)}},
        {"f1": 0.5},
        {"a": " Rome"},
        {"a": {"case": "1", "kind": "n", "target_true": "Rome"}},
        truncated=3,
    )
    measure.save_base("a" * 64, made)
    found = measure.load_base("a" * 64)
    assert found is not None
    assert found.values["accuracy"]["a"] == Ratio(1.0, 2.0, "c", "s")
    assert math.isnan(found.values["accuracy"]["b"].num)
    assert (found.plain, found.answers, found.documents) == (made.plain, made.answers, made.documents)
    assert found.truncated == 3
    assert measure.load_base("b" * 64) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{", mtime=0), gzip.compress(b"{}", mtime=0), gzip.compress(b"[]", mtime=0)],
)
def test_a_damaged_cache_is_measured_again(content: bytes) -> None:
    measure.save_base("c" * 64, Measured())
    path = measure._base_path("c" * 64)
    assert measure.load_base("c" * 64) is not None
    path.write_bytes(content)
    assert measure.load_base("c" * 64) is None


def test_another_identity_of_a_task_reaches_the_key(tiny: Callable[[str], LM]) -> None:
    (nli,) = tasks.load_suite(
        ["NLI"], edit_set=None, records=None, data_dir="mini", tokenizer=tiny("gpt2").tokenizer
    ).tasks
    assert key(task=nli) != key(task=replace(nli, identity="1" * 64))
