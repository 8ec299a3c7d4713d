"""The group ``abilities``: lm-eval's own tasks, word for word, on files of a data folder or on the Hub."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from harness.errors import DataError
from harness.exam import hub_sets, tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import measure_task
from harness.exam.statistics import Ratio, estimate
from harness.models.lm import LM, load
from harness.patches.patch import Patch

NAMES = ["arc_easy", "piqa", "hellaswag", "winogrande", "sciq", "lambada_openai", "boolq", "wikitext"]
ARC = {"stem": "What is hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]}
FILES: dict[str, Any] = {
    "lm_eval/arc_easy/test.jsonl.gz": [{"id": "1", "question": ARC, "answerKey": "B"}],
    "lm_eval/piqa/validation.jsonl.gz": [{"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing.", "label": 0}],
    "lm_eval/hellaswag/validation.jsonl.gz": [
        {
            "activity_label": "Roof",
            "ctx_a": "A man sits.",
            "ctx_b": "he",
            "endings": ["goes.", "is.", "a.", "b."],
            "label": 2,
        }
    ],
    "lm_eval/winogrande/validation.jsonl.gz": [
        {"sentence": "Ann beat Eve so _ won.", "option1": "Ann", "option2": "Eve", "answer": "1"}
    ],
    "lm_eval/sciq/test.jsonl.gz": [
        {
            "question": "What melts?",
            "support": "Ice melts.",
            "correct_answer": "ice",
            **{f"distractor{i}": f"stone {i}" for i in (1, 2, 3)},
        }
    ],
    "lm_eval/lambada_openai/test.jsonl.gz": [{"text": "I saw a man and the man"}],
    "general/test-ClosedDomainQA.jsonl": [
        {"question": "is ice cold", "title": "Ice", "passage": "Ice is cold.", "answer": True}
    ],
    "text/wikitext-2/test.txt": " \n = One = \n \n A first page . \n = = Part = = \n More . \n = Two = \n Another . \n",
}
ASKED = {
    "arc_easy": ("Question: What is hot?\nAnswer:", [" ice", " fire"], 1),
    "piqa": ("Question: Open it.\nAnswer:", [" Pull.", " Sing."], 0),
    "hellaswag": ("Roof: A man sits. He", [" goes.", " is.", " a.", " b."], 2),
    "sciq": ("Ice melts.\nQuestion: What melts?\nAnswer:", [" stone 1", " stone 2", " stone 3", " ice"], 3),
    "boolq": ("Ice -- Ice is cold.\nQuestion: is ice cold?\nAnswer:", [" no", " yes"], 1),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a document for each ability, as its makers published it."""
    for name, rows in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return tmp_path


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What the Hub was asked for; it does not answer."""
    asked: list[tuple[str, str | None]] = []

    def away(path: str, name: str | None = None, **_: object) -> Any:
        asked.append((path, name))
        raise ConnectionError(f"Couldn't reach {path}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", away)
    return asked


@pytest.fixture
def suite(tiny: Callable[[str], LM]) -> Callable[[str | Path], dict[str, tasks.Task]]:
    """The tasks of the group with the rows of a folder, by name."""

    def build(data_dir: str | Path) -> dict[str, tasks.Task]:
        made = tasks.load_suite(
            ["abilities"], edit_set=None, records=None, data_dir=str(data_dir), tokenizer=tiny("gpt2").tokenizer
        )
        return {task.name: task for task in made.tasks}

    return build


def test_the_tasks_are_those_of_lm_eval_with_the_rows_of_the_folder(
    folder: Path, suite: Callable[..., dict[str, tasks.Task]], hub: list[Any]
) -> None:
    found = suite(folder)
    assert list(found) == NAMES
    assert hub == []
    root = Path(lm_eval.tasks.__file__).parent
    assert all(Path(task.metadata["config_source"]).is_relative_to(root) for task in found.values())
    assert {name: len(task.task.eval_docs) for name, task in found.items()} == {
        **dict.fromkeys(NAMES, 1),
        "wikitext": 2,
    }


def test_prompts_choices_and_answers(folder: Path, suite: Callable[..., dict[str, tasks.Task]]) -> None:
    found = {name: task.task for name, task in suite(folder).items()}
    docs = {name: task.eval_docs[0] for name, task in found.items()}
    for name, (prompt, choices, gold) in ASKED.items():
        task, doc = found[name], docs[name]
        requests = task.construct_requests(doc=doc, ctx=task.doc_to_text(doc), metadata=("", 0, 1))
        assert [request.args for request in requests] == [(prompt, choice) for choice in choices], name
        assert int(task.doc_to_target(doc)) == gold, name
    task, doc = found["winogrande"], docs["winogrande"]
    assert task.doc_to_choice(doc) == ["Ann beat Eve so Ann", "Ann beat Eve so Eve"]
    assert (task.doc_to_text(doc), task.doc_to_target(doc)) == (0, "won.")
    task, doc = found["lambada_openai"], docs["lambada_openai"]
    assert (task.doc_to_text(doc), task.doc_to_target(doc)) == ("I saw a man and the", " man")


def test_pages_of_wikitext(folder: Path, suite: Callable[..., dict[str, tasks.Task]]) -> None:
    pages = [doc["page"] for doc in suite(folder)["wikitext"].task.eval_docs]
    assert [page.split("\n")[0] for page in pages] == [" = One = ", " = Two = "]
    assert "".join(pages).count("= = Part = =") == 1


def test_a_record_can_say_which_file_was_read(folder: Path, suite: Callable[..., dict[str, tasks.Task]]) -> None:
    found = suite(folder)
    assert {name: task.file.path for name, task in found.items() if task.file} == dict(zip(NAMES, FILES, strict=True))
    assert all(task.file is not None and task.file.source == "folder" for task in found.values())
    assert not any(task.file.verified for task in found.values() if task.file)  # they are not the published files


def test_the_folder_of_lm_evals_files_may_be_the_data_folder_and_hold_them_unpacked(folder: Path) -> None:
    path = folder / "lm_eval" / "piqa" / "validation.jsonl.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    with hub_sets.from_folder(str(folder / "lm_eval")) as served:
        found = datasets.load_dataset("baber/piqa", None)
    assert found["validation"][0]["goal"] == "Open it."
    assert served["baber/piqa", None].rows == 1


def test_what_the_folder_lacks_comes_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lm_eval" / "piqa" / "validation.jsonl.gz").unlink()
    monkeypatch.setattr(datasets, "load_dataset", lambda *named, **_: ("of the Hub", *named))
    with hub_sets.from_folder(str(folder)) as served:
        assert datasets.load_dataset("baber/piqa", None) == ("of the Hub", "baber/piqa", None)
        assert datasets.load_dataset("other/set", "x") == ("of the Hub", "other/set", "x")
        assert served == {}
    assert datasets.load_dataset("baber/piqa") == ("of the Hub", "baber/piqa")  # as it was before


def test_without_a_file_and_without_the_hub_one_line_says_which_file_is_looked_for(
    folder: Path, suite: Callable[..., dict[str, tasks.Task]]
) -> None:
    path = folder / "lm_eval" / "sciq" / "test.jsonl.gz"
    path.unlink()
    with pytest.raises(DataError) as told:
        suite(folder)
    assert str(told.value).startswith(f"{path}: not found, and the Hub does not give allenai/sciq (Couldn't reach")
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"holds lm_eval/arc_easy/test\.jsonl\.gz with --data-dir"):
        suite("mini")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        (
            "lm_eval/arc_easy/test.jsonl",
            {"question": {"stem": "x"}, "answerKey": "A"},
            "row 1: 'question' needs 'stem'",
        ),
        ("lm_eval/piqa/validation.jsonl", {"goal": "x", "sol1": "a", "sol2": "b"}, "line 1: no field 'label'"),
        ("lm_eval/piqa/validation.jsonl", {"goal": "x", "sol1": "a", "sol2": "b", "label": "0"}, "expected int"),
    ],
)
def test_a_row_of_another_form_is_told_in_one_line(
    folder: Path, suite: Callable[..., dict[str, tasks.Task]], name: str, row: dict[str, Any], said: str
) -> None:
    (folder / f"{name}.gz").unlink()
    (folder / name).write_text(json.dumps(row))
    with pytest.raises(DataError) as told:
        suite(folder)
    assert f"{Path(name).name}, " in str(told.value)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_bits_per_byte_have_an_interval_and_stand_first(
    folder: Path, suite: Callable[..., dict[str, tasks.Task]], tiny: Callable[[str], LM]
) -> None:
    task = suite(folder)["wikitext"]
    assert (task.headline, task.shown_beside) == ("bits_per_byte", ["word_perplexity"])
    model = EditedLM(tiny("gpt2"), batch_size=4)
    with model.holding(Patch()):
        found = measure_task(model, task, limit=None)
    sizes = [len(doc["page"].encode()) for doc in task.task.eval_docs]
    assert [ratio.den for ratio in found.values["bits_per_byte"].values()] == sizes
    bits = estimate(found.values["bits_per_byte"], seed=0)
    assert bits.value == pytest.approx(math.log2(found.plain["byte_perplexity"]))
    assert bits.low < bits.value < bits.high
    assert task.contribution("bits_per_byte", (-math.log(2) * 8, 2)) == Ratio(8.0, 2)


def test_numbers_are_those_of_plain_lm_eval(shared: Path, suite: Callable[..., dict[str, tasks.Task]]) -> None:
    """lm-eval alone, with its rows handed to it by the reference's own script: the same documents and numbers."""
    lm = load(str(shared / "models" / "stories260K"), dtype="float32")
    ours = suite(shared / "data")
    folder = shared / "data" / "lm_eval"
    spec = importlib.util.spec_from_file_location("serve", folder / "serve.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # takes the place of datasets.load_dataset
    names = [name for name in NAMES if name not in ("boolq", "wikitext")]  # which it has no files for
    root = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(
        include_path=[root / name for name in ("arc", "piqa", "hellaswag", "winogrande", "sciq", "lambada")],
        include_defaults=False,
    )
    plain = lm_eval.simple_evaluate(
        model=HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4),
        tasks=names,
        task_manager=manager,
        limit=3,
        bootstrap_iters=0,
    )
    model = EditedLM(lm, batch_size=4)
    for name in names:
        with model.holding(Patch()):
            found = measure_task(model, ours[name], limit=3)
        numbers = {metric: estimate(values, seed=0).value for metric, values in found.values.items()} | found.plain
        theirs = {
            key.partition(",")[0]: value for key, value in plain["results"][name].items() if key.endswith(",none")
        }
        theirs = {key: value for key, value in theirs.items() if not key.endswith("_stderr")}
        assert numbers == pytest.approx(theirs, rel=1e-4), name
        assert [sample["doc"] for sample in plain["samples"][name]] == [
            dict(ours[name].task.eval_docs[i]) for i in range(3)
        ], name
