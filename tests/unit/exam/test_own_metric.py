"""A metric of one data set is measured and shown by files of that data set's folder alone."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from harness.errors import DataError
from harness.exam import data, tasks
from harness.models.lm import load
from harness.reports.leaderboard import leaderboard
from harness.reports.terminal_tables import run_table
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

YAML = """
task: counterfact_rank
class: !function functions.RankOfTarget
custom_dataset: !function functions.rank_dataset
output_type: multiple_choice
test_split: test
doc_to_text: prompt
doc_to_choice: !function functions.choices
doc_to_target: 0
process_results: !function functions.rank
metric_list:
  - {metric: target_rank, aggregation: !function harness.task_kit.aggregate, higher_is_better: false}
metadata: {version: 1.0, headline: target_rank, shown: [target_rank], source: counterfact}
"""
CODE = '''

from lm_eval.api.instance import Instance
from harness.task_kit import Ranked, Tokenized


class RankOfTarget(Tokenized):
    """Asks for the rank of the new target's first token."""

    def construct_requests(self, doc, ctx, **kwargs):
        for key in ("apply_chat_template", "chat_template"):
            kwargs.pop(key, None)
        return [Instance("loglikelihood", doc, (ctx, Ranked(" " + doc["target_new"])), 0, **kwargs)]

    def process_results(self, doc, results):
        return {"target_rank": Ratio(results[0][0], 1.0, doc["case"])}


def rank_dataset(**options):
    return dataset(kinds=["rewrite"], **options)


def rank(doc, results):
    return {}
'''


def test_the_rank_of_the_target_is_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(data.TASKS, tmp_path / "tasks")
    folder = tmp_path / "tasks" / "edits" / "counterfact"
    (folder / "counterfact_rank.yaml").write_text(YAML)
    with (folder / "functions.py").open("a") as file:
        file.write(CODE)
    group, last = (folder / "counterfact.yaml").read_text(), "- counterfact_text\n"
    (folder / "counterfact.yaml").write_text(group.replace(last, f"{last}  - counterfact_rank\n"))
    monkeypatch.setattr(data, "TASKS", tmp_path / "tasks")
    plan = Plan(editor="rome", num_edits=2, mode="isolated")
    kept = run_plan(resolve(plan), RunOptions(output=tmp_path / "out", device="cpu"))
    before, after = (kept.tasks(count)["counterfact"]["target_rank"] for count in (0, 2))
    assert (before["n"], after["n"], after["higher_is_better"]) == (2, 2, False)
    assert 1 <= after["value"] < before["value"]
    assert kept.shown == {"counterfact": ["target_rank"]}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_table(kept))
    assert "target_rank" in console.export_text()
    assert "target_rank" in leaderboard([kept], "csv")


def test_a_misspelt_function_is_told_with_its_file_and_the_near_name(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text("def process_results(doc, results):\n    return {}\n")
    (tmp_path / "one.yaml").write_text(
        "task: one\noutput_type: generate_until\nprocess_results: !function functions.proces_results\n"
    )
    with pytest.raises(DataError) as caught:
        tasks.load_suite(
            [str(tmp_path / "one.yaml")], edit_set=None, records=None, data_dir="mini", tokenizer=load("mini").tokenizer
        )
    said = "has no function 'proces_results', which the YAML of 'one' asks for (did you mean process_results?)"
    assert str(caught.value) == f"{tmp_path / 'functions.py'}: {said}"


@pytest.mark.parametrize("by", ["folder", "path"])
def test_a_task_with_python_beside_it_is_found_where_it_lies(by: str, tmp_path: Path) -> None:
    """The three files of the guide, in a folder of one's own."""
    page = (Path(__file__).parents[3] / "docs/how-to/own-task.md").read_text()
    blocks = re.findall(r'^```\w+ title="tasks/general/(colours/\S+)"\n(.*?)^```', page, re.M | re.S)
    assert [name for name, _ in blocks] == ["colours/mini.jsonl", "colours/colours.yaml", "colours/functions.py"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    named = {
        "folder": {"tasks": ("colours",), "include_path": (str(tmp_path),)},
        "path": {"tasks": (str(tmp_path / "colours/colours.yaml"),)},
    }[by]
    plan = Plan("mini", edits="none", **named)  # type: ignore[arg-type]
    record = run_plan(resolve(plan), RunOptions(tmp_path / "out", device="cpu"))
    assert record.tasks(0)["colours"]["right"]["n"] == 2
    assert record.data["colours"]["rows"] == 2


FILTERED = """
task: filtered
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "(a)"}, {function: take_first}]}
  - {name: loose, filter: [{function: take_first}]}
metadata: {version: 1.0SHOWN}
"""


def filtered(folder: Path, shown: str = "") -> Path:
    """A task whose answers go through filters that have names, as gsm8k's do."""
    (folder / "rows.jsonl").write_text('{"question": "The sky is", "answer": "blue"}\n')
    said = FILTERED.replace("ROWS", str(folder / "rows.jsonl")).replace("SHOWN", shown)
    (folder / "filtered.yaml").write_text(said)
    return folder / "filtered.yaml"


@pytest.mark.parametrize(
    ("shown", "headline", "beside"),
    [
        ("", "exact_match,strict", []),
        (", headline: exact_match", "exact_match,strict", []),
        (', headline: "exact_match,loose"', "exact_match,loose", []),
        (", shown: [exact_match]", "exact_match,strict", ["exact_match,strict", "exact_match,loose"]),
    ],
)
def test_metrics_of_named_filters_are_shown(shown: str, headline: str, beside: list[str], tmp_path: Path) -> None:
    path = filtered(tmp_path, shown)
    kept = run_plan(resolve(Plan(editor="none", edits="none", tasks=(str(path),))), RunOptions(tmp_path, device="cpu"))
    assert kept.headlines["filtered"] == headline
    assert kept.shown.get("filtered", []) == beside
    assert headline in kept.tasks(0)["filtered"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_table(kept))
    assert "no headline metric" not in console.export_text()


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (", headline: exact_mach", "headline names 'exact_mach', which is no metric of 'filtered' (did you mean exact"),
        (", shown: [acc]", "shown names 'acc', which is no metric of 'filtered' (there are: exact_match, exact_match,"),
        (", shown: exact_match", "shown is 'exact_match', expected a list of metrics, such as [exact_match]"),
    ],
)
def test_a_metric_to_be_shown_that_is_none_is_told(shown: str, said: str, tmp_path: Path) -> None:
    path = filtered(tmp_path, shown)
    with pytest.raises(DataError) as caught:
        tasks.load_suite([str(path)], edit_set=None, records=None, data_dir="mini", tokenizer=load("mini").tokenizer)
    assert str(caught.value).startswith(f"{path}: metadata.{said}")
