"""Tasks that lm-eval ships, with solved examples and a chat template: both command lines give the same numbers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
from cli_calls import Outcome
from lm_eval._cli import HarnessCLI
from transformers import AutoTokenizer

from harness.runs.record_file import read_records

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
METRICS = {
    "arc_easy": ("acc", "acc_norm"),
    "piqa": ("acc", "acc_norm"),
    "winogrande": ("acc",),
    "lambada_openai": ("acc", "perplexity"),
    "mmlu_high_school_geography": ("acc",),
    "mmlu_high_school_geography_generative": ("exact_match",),
}
"""Tasks of each kind (choices, choices of contexts, one continuation, free text), and what they are measured by."""
ROOT = Path(lm_eval.tasks.__file__).parent
FOLDERS = [str(ROOT / name) for name in ("arc", "piqa", "winogrande", "lambada", "mmlu/default", "mmlu/generative")]
DOCUMENTS = 5
WORDS = {
    "examples as turns": ["--num_fewshot", "2", "--apply_chat_template", "--fewshot_as_multiturn", "true"],
    "examples in one turn, behind a system turn": [
        *("--num_fewshot", "1", "--apply_chat_template", "--fewshot_as_multiturn", "false"),
        *("--system_instruction", "Be brief."),
    ],
}
"""lm-eval's words, which both command lines take as they are."""


@pytest.fixture
def served(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The data sets of these tasks from files, as their makers published them, in place of the Hub."""
    path = shared / "data" / "lm_eval" / "serve.py"
    if not path.is_file():
        pytest.skip("the files of lm-eval's own tasks (../shared/data/lm_eval) are not there")
    monkeypatch.setattr(datasets, "load_dataset", datasets.load_dataset)  # put back afterwards
    spec = importlib.util.spec_from_file_location("served_to_lm_eval", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storyteller of 260,000 parameters whose tokenizer has a chat template."""
    if not (shared / "models" / "stories260K").is_dir():
        pytest.skip("the model stories260K is not there")
    folder = tmp_path_factory.mktemp("models") / "storyteller"
    shutil.copytree(shared / "models" / "stories260K", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch, small_index: None) -> None:
    """lm-eval indexes its folders of these tasks, and not all 14,000 of its files."""
    whole = lm_eval.tasks.TaskManager

    def without_defaults(*args: Any, **options: Any) -> Any:
        return whole(*args, **{**options, "include_path": FOLDERS, "include_defaults": False})

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without_defaults)


def theirs(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> dict[str, dict[str, Any]]:
    """What ``lm_eval`` writes."""
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *map(str, arguments), "--output_path", str(folder)])
    command = HarnessCLI()
    command.execute(command.parse_args())
    (path,) = folder.rglob("results_*.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return found


@pytest.mark.parametrize("how", WORDS)
def test_both_command_lines_give_the_same_numbers(
    how: str,
    served: None,
    few_tasks: None,
    model: Path,
    harness: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked = ["--tasks", ",".join(METRICS), "--limit", DOCUMENTS, *WORDS[how]]
    ours = ["--include-path", ",".join(FOLDERS), "--data-dir", "hub", "--output", tmp_path / "ours"]
    done = harness("run", "--model", model, "--editor", "none", "--device", "cpu", *asked, *ours)
    assert done.code == 0, done.err
    (record,) = read_records(tmp_path / "ours")
    expected = theirs(
        monkeypatch, tmp_path / "theirs", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
        "--device", "cpu", *asked,
    )  # fmt: skip
    for task, metrics in METRICS.items():
        for metric in metrics:
            (found,) = [one for name, one in record.tasks(0)[task].items() if name.partition(",")[0] == metric]
            (value,) = [one for name, one in expected[task].items() if name.partition(",")[0] == metric]
            assert found["n"] == (0 if metric == "perplexity" else DOCUMENTS), (task, metric)  # no mean has no n
            assert found["value"] == pytest.approx(value, rel=1e-4), (how, task, metric)
    assert record.plan["num_fewshot"] == int(WORDS[how][1])
    assert record.plan["apply_chat_template"] is True
