"""Task files become tasks, and rows become edits: what is found, what is refused, and what is examined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.editing.hyperparameters import plain, settable, with_newer
from harness.editing.registry import compose, find
from harness.errors import DataError, UsageError
from harness.exam import data, task_identity, tasks
from harness.exam.canonical import SETS
from harness.exam.statistics import Ratio
from harness.models.lm import LM
from harness.runs.record_file import read_record, record_paths

GENERAL = [
    "ClosedDomainQA", "NER", "NLI", "OpenDomainQA", "SentimentAnalysis", "dialogue", "reasoning", "summarization",
]  # fmt: skip
CHOICE = ["ClosedDomainQA_choice", "NLI_choice", "SentimentAnalysis_choice", "dialogue_choice"]
CASES = [
    "akew", "akew_text", "bmike53", "conflictedit", "halluedit", "knowedit", "mlake", "mlake_hops", "mlake_matrix",
    "mquake", "mzsre", "peak", "portability", "portability_inverse", "portability_zsre", "qaedit", "roundedit",
    "wikibigedit",
]  # fmt: skip
ROW = {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """A JSONL file of one's own: rows, or lines as they are."""

    def write(*rows: dict[str, Any] | str) -> Path:
        path = tmp_path / "my.jsonl"
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return path

    return write


def suite(tiny: Callable[[str], LM], *names: str, edit_set: str | None = None, **options: Any) -> tasks.Suite:
    """The tasks of these names on the shipped rows."""
    records = options.pop("records", None)
    return tasks.load_suite(
        names, edit_set=edit_set, records=records, data_dir="mini", tokenizer=tiny("gpt2").tokenizer, **options
    )


# --- what there is -------------------------------------------------------------------------------------------------


def test_the_catalogue() -> None:
    found = tasks.catalogue()
    sets = sorted(["counterfact", "zsre", *CASES, *SETS])
    assert [name for name, kind in found.items() if kind == "task"] == sorted(
        [*GENERAL, *CHOICE, "ball", "belief", "bias_in_bios", "mcrae"]
    )
    assert [name for name, kind in found.items() if kind == "group"] == [
        "abilities", "canonical", "general", "general_choice",
    ]  # fmt: skip
    assert [name for name, kind in found.items() if kind == "edits"] == sets
    assert tasks.edit_sets() == sets


def test_a_group_expands_and_nothing_is_examined_twice(tiny: Callable[[str], LM]) -> None:
    assert sorted(suite(tiny, "general").shown) == GENERAL
    assert sorted(suite(tiny, "NLI", "general", "NER", "NLI").shown) == GENERAL
    assert suite(tiny, "NLI", "general").shown[0] == "NLI"  # in the order asked for
    assert suite(tiny, "NLI", "NER").shown == ["NLI", "NER"]


def test_lm_evals_own_tasks_stand_beside_ours() -> None:
    index = tasks._manager({}, ["hellaswag"]).task_index
    assert {"hellaswag", "mmlu", "NLI", "counterfact"} <= set(index)
    assert str(index["NLI"].yaml_path).startswith(str(data.TASKS))


@pytest.mark.parametrize("name", ["NIL", "nli", "counterfct"])
@pytest.mark.usefixtures("small_index")
def test_an_unknown_task_is_answered_with_near_names(tiny: Callable[[str], LM], name: str) -> None:
    wanted = {"NIL": "NLI", "nli": "NLI", "counterfct": "counterfact"}[name]
    with pytest.raises(UsageError, match=rf"task '{name}' does not exist \(did you mean .*{wanted}.*`harness tasks`"):
        suite(tiny, "NER", name)


def test_a_task_says_what_a_record_needs(tiny: Callable[[str], LM]) -> None:
    (nli,) = suite(tiny, "NLI").tasks
    assert (nli.name, nli.shown, nli.headline) == ("NLI", "NLI", "accuracy")
    assert nli.directions == {
        "accuracy": True, "invalid_rate": False, "accuracy_released": True, "accuracy_answered": True,
    }  # fmt: skip
    assert all(nli.per_document(metric) for metric in nli.directions)
    assert len(nli.identity) == 64
    assert nli.folder == data.TASKS / "general" / "NLI"


def test_a_task_is_known_by_its_yaml_and_its_rows(
    tiny: Callable[[str], LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "general" / "NLI"
    shutil.copytree(data.TASKS / "general" / "NLI", folder)
    (before,) = suite(tiny, "NLI").tasks
    monkeypatch.setattr(data, "TASKS", tmp_path)

    def identity() -> str:
        return suite(tiny, "NLI").tasks[0].identity

    assert identity() == before.identity  # what counts is what the files say, not where they lie
    (folder / "README.md").write_text("a card is no part of a task")
    (folder / "NLI.yaml").write_text("# nor is a comment\n" + (folder / "NLI.yaml").read_text())
    (folder / "functions.py").write_text((folder / "functions.py").read_text().replace('"true"', '"yes"'))
    assert identity() == before.identity
    seen = {before.identity}
    for old, new in (("True or False?", "Yes or no?"), ("version: 1.0", "version: 1.1")):
        text = (folder / "NLI.yaml").read_text()
        assert old in text
        (folder / "NLI.yaml").write_text(text.replace(old, new))
        seen.add(identity())
    assert len(seen) == 3


def test_other_rows_are_another_task(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    found = data.find_datasets()["counterfact"]
    rows = (found.folder / "mini.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / found.files["test"].path
    path.parent.mkdir(parents=True)
    seen = []
    for some in (rows, rows[:-1], rows):
        path.write_text("".join(some))
        built = tasks.load_suite(
            [], edit_set="counterfact", records=["0"], data_dir=str(tmp_path), tokenizer=tiny("gpt2").tokenizer
        ).tasks
        seen.append([task.identity for task in built])
    assert seen[0] == seen[2]
    assert not set(seen[0]) & set(seen[1])


def test_the_edits_that_are_examined_are_no_part_of_the_task(tiny: Callable[[str], LM]) -> None:
    """Their hash stands beside it: a curve over ever more edits stays in one column."""
    few, more = (
        suite(
            tiny, edit_set="zsre", records=[edit.id for edit in tasks.read_edits("zsre", data_dir="mini", count=n)]
        ).tasks
        for n in (2, 5)
    )
    assert [task.identity for task in few] == [task.identity for task in more]
    assert tasks._rows_of("zsre", "train", "mini", None) != tasks._rows_of("zsre", "test", "mini", None)


PLAIN = """
task: plain
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["no", "yes"]
doc_to_target: 1
"""


def test_rows_that_come_by_a_plain_path_name_their_task(
    tiny: Callable[[str], LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.json"
    monkeypatch.setattr(data, "TASKS", tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "plain.yaml").write_text(PLAIN.format(file=rows))
    seen = []
    for text in ("a", "b", "a"):
        rows.write_text(json.dumps({"text": text}) + "\n")
        seen.append(suite(tiny, "plain").tasks[0].identity)
    assert seen[0] == seen[2] != seen[1]


def test_a_definition_is_what_the_yaml_says_with_what_it_includes(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("a: 1\nb: !function functions.b\n")
    (tmp_path / "above.yaml").write_text("include: below.yaml\na: 2  # a comment\n")
    assert task_identity.definition(tmp_path / "above.yaml") == {"a": 2, "b": "functions.b"}
    (tmp_path / "below.yaml").write_text("include: [above.yaml]\n")
    with pytest.raises(DataError, match="includes itself"):
        task_identity.definition(tmp_path / "above.yaml")


def test_values_of_samples(tiny: Callable[[str], LM]) -> None:
    (nli,) = suite(tiny, "NLI").tasks
    sample = {"filter": "none", "doc_id": 3, "metrics": ["accuracy", "invalid_rate"]}
    samples = [
        {**sample, "accuracy": Ratio(1.0), "invalid_rate": 0.0},
        {**sample, "doc_id": 4, "accuracy": None, "invalid_rate": [1.0, 2.0, "c", None]},
        {**sample, "doc_id": 4, "filter": "strict", "metrics": ["accuracy"], "accuracy": 0.5},
    ]
    found = tasks.values_of(nli, samples)
    assert found["accuracy"]["NLI/3"] == Ratio(1.0)
    assert found["accuracy"]["NLI/4"].num != found["accuracy"]["NLI/4"].num  # missing is not zero
    assert found["invalid_rate"] == {"NLI/3": Ratio(0.0), "NLI/4": Ratio(1.0, 2.0, "c")}
    assert found["accuracy,strict"] == {"NLI/4": Ratio(0.5)}


# --- edit sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_edits_come_in_the_order_of_the_rows(name: str) -> None:
    all_of_them = tasks.read_edits(name, data_dir="mini")
    assert tasks.read_edits(name, data_dir="mini", count=3) == all_of_them[:3]
    assert len({edit.id for edit in all_of_them}) == len(all_of_them) > 400
    assert tasks.read_edits(name, data_dir="mini", split="train", count=3) != all_of_them[:3]


def test_an_edit_set_is_examined_first_and_only_on_the_edited_records(tiny: Callable[[str], LM]) -> None:
    ids = [edit.id for edit in tasks.read_edits("counterfact", data_dir="mini", count=3)]
    # A member that is named again does not bring back all its rows.
    found = suite(tiny, "NLI", "counterfact", "counterfact_text", edit_set="counterfact", records=ids)
    assert found.shown == ["counterfact", "NLI"]
    members = [task for task in found.tasks if task.shown == "counterfact"]
    assert {task.name for task in members} == {
        "counterfact_probability", "counterfact_generation", "counterfact_text",
    }  # fmt: skip
    for task in members:
        cases = {str(doc["case"]) for doc in task.task.test_docs()}
        assert cases == set(ids), task.name


def test_the_split_reaches_the_examination(tiny: Callable[[str], LM]) -> None:
    ids = [edit.id for edit in tasks.read_edits("zsre", data_dir="mini", split="train", count=2)]
    found = suite(tiny, edit_set="zsre", records=ids, split="train")
    prompts = {edit.text for edit in tasks.read_edits("zsre", data_dir="mini", split="train", count=2)}
    docs = [doc for task in found.tasks for doc in task.task.eval_docs if doc["kind"] == "rewrite"]
    assert {doc["prompt"] for doc in docs} == prompts


def test_an_unknown_edit_set(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"edit set 'counterfct' does not exist \(did you mean counterfact, country_capital, conflictedit\?\); "
        r"or give",
    ):
        tasks.read_edits("counterfct", data_dir="mini")
    with pytest.raises(DataError, match=r"no\.jsonl: no such file; give JSON lines"):
        tasks.read_edits(str(tmp_path / "no.jsonl"), data_dir="mini")


def test_fewer_rows_than_asked_for(own: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"zsre: has \d+ edits, 9999 were asked for; ask for fewer"):
        tasks.read_edits("zsre", data_dir="mini", count=9999)
    path = own(ROW, ROW)
    with pytest.raises(UsageError, match=r"my\.jsonl: has 2 edits, 3 were asked for"):
        tasks.read_edits(str(path), data_dir="mini", count=3)
    assert len(tasks.read_edits(str(path), data_dir="mini", count=2)) == 2


# --- one's own rows -------------------------------------------------------------------------------------------------


def test_own_rows(own: Callable[..., Path]) -> None:
    path = own(
        ROW,
        {**ROW, "prompt": "Ada Velmont was born in", "target": " Oslo", "id": 17},
        {"prefix": "It rains in", "suffix": " Bergen", "id": "rain"},
        "",
        {**ROW, "prompt": "The mother of Ada Velmont, Adaline, lives in", "target_old": "Paris"},
    )
    a, b, c, d = tasks.read_edits(str(path), data_dir="mini")
    assert (a.id, a.prompt, a.subject, a.target) == ("1", "{} was born in", "Ada Velmont", "Rome")
    assert (b.id, b.prompt, b.target) == ("17", "{} was born in", "Oslo")
    assert (c.id, c.text, c.subject, c.target) == ("rain", "It rains in", None, "Bergen")
    assert (d.prompt, d.target_old) == ("The mother of {}, Adaline, lives in", "Paris")


def test_own_rows_are_examined(tiny: Callable[[str], LM], own: Callable[..., Path]) -> None:
    path = own(ROW, {**ROW, "subject": "Hugo Lantern", "paraphrases": ["Hugo Lantern's birthplace is"]})
    found = suite(tiny, edit_set="own", records=["2"], own_file=str(path))
    assert found.shown == ["own"]
    docs = list(found.tasks[0].task.test_docs())
    assert [(doc["kind"], doc["prompt"]) for doc in docs] == [
        ("rewrite", "Hugo Lantern was born in"),
        ("paraphrase", "Hugo Lantern's birthplace is"),
    ]


BAD = {
    "no subject": ({"prompt": "{} was born in", "target": "Rome"}, "line 2: 'subject' is missing; name what"),
    "empty subject": ({**ROW, "subject": " "}, "line 2: edit 2: the subject is empty"),
    "subject elsewhere": (
        {**ROW, "prompt": "Hugo was born in"},
        "line 2: the subject 'Ada Velmont' is not in the prompt 'Hugo was born in'; write it there, or a {}",
    ),
    "two slots": ({**ROW, "prompt": "{} and {} are"}, "line 2: edit 2: the prompt '{} and {} are' has 2 slots {}"),
    "empty target": ({**ROW, "target": ""}, "line 2: edit 2: the target is empty"),
    "blank target": ({**ROW, "target": "  "}, "line 2: edit 2: the target is empty"),
    "no target": ({"prompt": "{} is", "subject": "Ada"}, "line 2: 'target' is missing; rows hold"),
    "no suffix": ({"prefix": "It rains"}, "line 2: 'suffix' is missing; rows hold"),
    "empty suffix": ({"prefix": "It rains", "suffix": ""}, "line 2: edit 2: the target is empty"),
    "neither": ({"question": "Who?"}, "line 2: 'prompt' is missing; rows hold prompt, subject and target"),
    "a number": ({**ROW, "target": 5}, "line 2: 'target' is 5, expected a text"),
    "null": ({**ROW, "target": None}, "line 2: 'target' is missing"),
    "cut off": ('{"prompt": "{} was born in", "subj', "line 2: not JSON"),
    "no object": ("[1, 2]", "line 2: expected a JSON object {...}, found list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(own: Callable[..., Path], case: str) -> None:
    row, message = BAD[case]
    path = own(ROW, row)
    with pytest.raises(DataError) as caught:
        tasks.read_edits(str(path), data_dir="mini")
    assert str(caught.value).startswith(f"{path}, {message}")
    assert "\n" not in str(caught.value)


def test_the_line_is_that_of_the_file(own: Callable[..., Path]) -> None:
    """Blank lines count, as in every text editor."""
    path = own(ROW, "", "", {**ROW, "target": ""})
    with pytest.raises(DataError, match=r"my\.jsonl, line 4: "):
        tasks.read_edits(str(path), data_dir="mini")


def test_an_empty_file(own: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"my\.jsonl: empty; expected one JSON object a line"):
        tasks.read_edits(str(own()), data_dir="mini")


def test_one_id_for_two_rows(own: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"my\.jsonl: the id a occurs twice \(edits 1 and 2\); give each row an id"):
        tasks.read_edits(str(own({**ROW, "id": "a"}, {**ROW, "id": "a"})), data_dir="mini")


def test_the_committed_records_were_measured_with_the_task_files_as_they_are(tiny: Callable[[str], LM]) -> None:
    """A row that is measured today stands in one column with them."""
    folder = Path(__file__).parents[3] / "results"
    found = [read_record(path) for part in ("records", "studies") for path in record_paths(folder / part)]
    said = {(name, sha256) for kept in found for name, sha256 in kept.templates.items()}
    now = {
        (task.name, task.identity)
        for edits in ("counterfact", "zsre")
        for task in suite(
            tiny,
            "general",
            edit_set=edits,
            records=[edit.id for edit in tasks.read_edits(edits, data_dir="mini", count=2)],
        ).tasks
    }
    assert len(found) > 100
    assert said == now


def test_the_committed_records_name_the_hyperparameters_that_editors_have_now() -> None:
    """A seed that is added today stands in one row with them; what is newer than a record has its default there."""
    folder = Path(__file__).parents[3] / "results" / "records"
    found = [kept for path in record_paths(folder) if "+" not in (kept := read_record(path)).plan["editor"]]
    assert len(found) > 100
    for kept in found:
        named, cls = kept.editor["hyperparameters"], find(kept.plan["editor"])
        assert set(named) <= set(settable(cls)), kept.id
        whole = with_newer(cls, named)
        assert set(whole) == set(settable(cls)), kept.id
        today = compose(kept.plan["editor"]).configured(kept.plan["model"], kept.plan["settings"], seed=0)
        for name in set(whole) - set(named):
            assert whole[name] == plain(getattr(today, name)), (
                f"{kept.id} was made with {name}={whole[name]}, today's {getattr(today, name)} is another row"
            )
