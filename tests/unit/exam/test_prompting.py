"""Tasks asked in lm-eval's words give lm-eval's own numbers: examples, chat templates, system turns, thinking."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from transformers import AutoTokenizer

import harness
from harness.errors import UsageError
from harness.exam import tasks
from harness.exam.adapter import EditedLM
from harness.exam.measure import measure_task
from harness.exam.prompting import Prompting, chat_template_text, require_roles, told, worded
from harness.models.lm import load
from harness.patches.patch import Patch
from harness.runs.plan import Plan
from harness.runs.resolve import resolve

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
USER_ALONE = "{{ '[' + messages[-1]['content'] + ']' }}"

ROWS = [{"question": f"Who is number {i}?", "names": ["Ann", "Eve", "Bob"], "at": i % 3} for i in range(9)]
COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "Question: {{question}}\nAnswer:",
}
TASKS: dict[str, dict[str, Any]] = {
    "words_choice": {
        **COMMON,
        "output_type": "multiple_choice",
        "description": "Answer by a name.",
        "doc_to_choice": "{{names}}",
        "doc_to_target": "at",
        "metric_list": [
            {"metric": "acc"},
            {"metric": "acc_norm"},
            {"metric": "brier_score", "higher_is_better": False},
        ],
    },
    "words_last": {
        **COMMON,
        "output_type": "loglikelihood",
        "doc_to_target": " {{names[at]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "words_written": {
        **COMMON,
        "output_type": "generate_until",
        "doc_to_target": "{{names[at]}}",
        "generation_kwargs": {"until": ["zq"], "max_gen_toks": 7},
        "process_results": "!function functions.written",
        "metric_list": [{"metric": "letters", "aggregation": "mean", "higher_is_better": True}],
    },
}
FUNCTIONS = """
def written(doc, results):
    return {"letters": sum(i * ord(letter) for i, letter in enumerate(results[0]))}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as lm-eval has them, with rows to ask and others to show."""
    root = tmp_path_factory.mktemp("words")
    (root / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[:4]))
    (root / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[4:]))
    files = {split: str(root / f"{split}.jsonl") for split in ("test", "train")}
    (root / "functions.py").write_text(FUNCTIONS)
    for name, said in TASKS.items():
        text = json.dumps({"task": name, **said, "dataset_kwargs": {"data_files": files}}, indent=1)
        (root / f"{name}.yaml").write_text(text.replace('"!function functions.written"', "!function functions.written"))
    return root


@pytest.fixture(scope="module")
def chat(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random Llama whose tokenizer has a chat template."""

    def made(template: str) -> Path:
        root = tmp_path_factory.mktemp("chat")
        for path in checkpoint("llama").iterdir():
            (root / path.name).write_bytes(path.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(root)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(root)
        return root

    return made


def plain_numbers(model: Path, folder: Path, names: list[str], **words: Any) -> dict[str, dict[str, float]]:
    """What lm-eval's own front door gives."""
    model_args = {key: words.pop(key) for key in ("enable_thinking", "think_end_token") if key in words}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32", **model_args},
        device="cpu",
        tasks=names,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **words,
    )
    return {
        name: {key.partition(",")[0]: value for key, value in found["results"][name].items() if key.endswith(",none")}
        for name in names
    }


ASKED: dict[str, dict[str, Any]] = {
    "as the task says": {},
    "solved examples": {"num_fewshot": 3},
    "a system instruction in front": {"num_fewshot": 1, "system_instruction": "Be brief."},
    "a chat template": {"apply_chat_template": True, "fewshot_as_multiturn": True},
    "examples as turns, and a system turn": {
        "num_fewshot": 2,
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "system_instruction": "Be brief.",
    },
    "examples in one turn": {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": False},
    "longer texts": {"gen_kwargs": {"max_gen_toks": 12, "until": ["e"]}},
}


@pytest.mark.parametrize("how", ASKED)
def test_numbers_are_those_of_lm_eval(how: str, chat: Callable[[str], Path], folder: Path, small_index: None) -> None:
    model, words = chat(CHATML), ASKED[how]
    record = harness.run(str(model), "none", tasks=list(TASKS), include_path=[str(folder)], cache=False, **words)
    expected = plain_numbers(model, folder, list(TASKS), **{"fewshot_as_multiturn": False, **words})
    for name in TASKS:
        found = {metric: one["value"] for metric, one in record.tasks(0)[name].items()}
        theirs = {metric: value for metric, value in expected[name].items() if metric in found}
        assert len(theirs) == len(TASKS[name]["metric_list"])
        assert found == pytest.approx(theirs, rel=1e-4), (how, name)
    asked = {key: value for key, value in words.items() if key != "fewshot_as_multiturn" or not value}
    assert {key: record.plan[key] for key in asked} == asked


def test_each_word_changes_a_number(chat: Callable[[str], Path], folder: Path, small_index: None) -> None:
    model, found = chat(CHATML), set()
    for words in ASKED.values():
        record = harness.run(str(model), "none", tasks=list(TASKS), include_path=[str(folder)], cache=False, **words)
        found.add(tuple(one["value"] for name in TASKS for one in record.tasks(0)[name].values()))
    assert len(found) == len(ASKED)


def test_a_thought_is_no_answer(chat: Callable[[str], Path], folder: Path, small_index: None) -> None:
    """The token that ends a thought is one that the random model writes: what stands before it is left out."""
    model = chat(CHATML)
    words = {"apply_chat_template": True, "enable_thinking": True, "gen_kwargs": {"max_gen_toks": 30, "until": []}}
    for end in ("e", "a"):
        expected = plain_numbers(
            model, folder, ["words_written"], **words, think_end_token=end, fewshot_as_multiturn=True
        )
        record = harness.run(
            str(model), "none", tasks=["words_written"], include_path=[str(folder)], think_end_token=end, **words
        )
        assert record.tasks(0)["words_written"]["letters"]["value"] == pytest.approx(
            expected["words_written"]["letters"]
        )
    with pytest.raises(UsageError, match="words_choice: scores given answers, in front of which no thought is written"):
        harness.run(
            str(model), "none", tasks=["words_choice"], include_path=[str(folder)], think_end_token="e", **words
        )


def test_an_edited_model_is_shown_the_same_examples(
    chat: Callable[[str], Path], folder: Path, small_index: None
) -> None:
    """What is asked again is asked alike: examples are drawn anew, not from where the draw before has ended."""
    lm, words = load(str(chat(CHATML))), Prompting(num_fewshot=2)
    suite = tasks.load_suite(
        list(TASKS), edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer, include=[str(folder)],
        prompting=words,
    )  # fmt: skip
    model = EditedLM(lm, prompting=words)
    for task in suite.tasks:
        found = []
        for _ in range(2):
            with model.holding(Patch()):
                found.append(measure_task(model, task, limit=None))
        assert found[0].values == found[1].values
        assert found[0].plain == found[1].plain


def test_tasks_by_their_path(chat: Callable[[str], Path], folder: Path, tmp_path: Path, small_index: None) -> None:
    model, path = str(chat(CHATML)), str(folder / "words_choice.yaml")
    named = harness.run(model, "none", tasks=["words_choice"], include_path=[str(folder)], cache=False)
    for given in ([path], [str(folder / "*choice.yaml")], [path, f"{folder}/"]):
        found = harness.run(model, "none", tasks=given, cache=False)
        assert found.tasks(0)["words_choice"] == named.tasks(0)["words_choice"]
        assert found.templates["words_choice"] == named.templates["words_choice"]
        assert list(found.tasks(0)) == (list(TASKS) if len(given) > 1 else ["words_choice"])
    with pytest.raises(UsageError, match=r"--tasks .*none\.yaml: no such file; give the YAML of a task"):
        resolve(Plan(tasks=(str(tmp_path / "none.yaml"),), edits="none"))
    (tmp_path / "bare.yaml").write_text("output_type: multiple_choice\n")
    with pytest.raises(UsageError, match=r"bare\.yaml: it names no task; give it a line such as 'task: bare'"):
        resolve(Plan(tasks=(str(tmp_path / "bare.yaml"),), edits="none"))
    with pytest.raises(UsageError, match="the folder has no YAML"):
        (tmp_path / "empty").mkdir()
        resolve(Plan(tasks=(str(tmp_path / "empty"),), edits="none"))


def test_replies_alone(chat: Callable[[str], Path], folder: Path, tmp_path: Path, small_index: None) -> None:
    words: dict[str, Any] = {"tasks": list(TASKS), "include_path": [str(folder)], "cache": False}
    model, path = str(chat(CHATML)), tmp_path / "kept"
    record = harness.run(model, "none", output=path, predict_only=True, **words)
    assert record.status == "complete"
    assert all(record.tasks(0)[name] == {} for name in TASKS)
    kept = [
        json.loads(line)
        for file in path.glob("*.samples.jsonl.xz")
        for line in lzma.decompress(file.read_bytes()).splitlines()
    ]
    assert len([one for one in kept if one.get("task") in TASKS]) == 4 * len(TASKS)
    with pytest.raises(UsageError, match="predict_only keeps the replies alone, as samples; add --log-samples"):
        harness.run(model, "none", predict_only=True, **words)


# --- what cannot be ------------------------------------------


def test_a_template_without_the_roles_that_are_needed(chat: Callable[[str], Path], folder: Path) -> None:
    system = {"apply_chat_template": True, "system_instruction": "Be brief."}
    for template, words, message in (
        (NO_SYSTEM, system, "no turn of the role 'system'; leave --system-instruction out"),
        (USER_ALONE, system, "no turn of the role 'system'; leave --system-instruction out"),
        (
            USER_ALONE,
            {"apply_chat_template": True, "num_fewshot": 1},
            "no turn of the role 'assistant'; give --fewshot-as",
        ),
        ("hello", {"apply_chat_template": True}, "no turn of the role 'user'; leave --apply-chat-template and"),
    ):
        tokenizer = AutoTokenizer.from_pretrained(chat(template))
        with pytest.raises(UsageError, match=message) as caught:
            require_roles(tokenizer, Prompting(**words))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no turn of the role 'system'"):
        harness.run(str(chat(NO_SYSTEM)), "none", tasks=["words_choice"], include_path=[str(folder)], **system)


def test_a_template_by_name(chat: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat(CHATML))
    with pytest.raises(UsageError, match="none is named 'tool_use'; give --apply-chat-template without a name"):
        chat_template_text(tokenizer, "tool_use")
    tokenizer.chat_template = {"default": CHATML, "tool_use": USER_ALONE}
    assert chat_template_text(tokenizer, True) == CHATML
    assert chat_template_text(tokenizer, "tool_use") == USER_ALONE
    with pytest.raises(UsageError, match=r"no chat template 'tool' \(did you mean"):
        chat_template_text(tokenizer, "tool")
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="its tokenizer has no chat template"):
        chat_template_text(tokenizer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_fewshot": -1}, "num_fewshot is -1, expected 0 or more"),
        ({"fewshot_as_multiturn": True}, "fewshot_as_multiturn makes turns of a chat; add --apply-chat-template"),
        ({"enable_thinking": True, "think_end_token": "x"}, "enable_thinking is told to the chat template"),
        ({"enable_thinking": True, "apply_chat_template": True}, "enable_thinking needs the text that ends a thought"),
    ],
)
def test_words_that_do_not_go_together(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Plan(**words)


def test_more_examples_than_there_are(chat: Callable[[str], Path], folder: Path, small_index: None) -> None:
    with pytest.raises(UsageError, match=r"task 'words_choice': 9 solved examples .* and it has 5; ask for fewer"):
        harness.run(str(chat(CHATML)), "none", tasks=["words_choice"], include_path=[str(folder)], num_fewshot=9)


def test_a_task_whose_yaml_says_none_has_none() -> None:
    asked = Prompting(num_fewshot=5)
    assert [asked.shots(said) for said in (None, 0, 3)] == [5, 0, 5]
    assert [Prompting().shots(said) for said in (None, 0, 3)] == [0, 0, 3]


# --- in words ------------------------------------------


def test_how_a_plan_asks_in_words() -> None:
    assert told(Plan().to_json()) == []
    assert worded(Plan().to_json()) == {}
    plan = Plan(
        num_fewshot=5, apply_chat_template=True, system_instruction="You are a\nhelpful assistant, and you say little.",
        fewshot_as_multiturn=False, gen_kwargs={"temperature": 0.5}, enable_thinking=False, think_end_token="</think>",
        chat_edits=True,
    )  # fmt: skip
    assert told(plan.to_json()) == [
        "5-shot", "chat template", "system: You are a helpful assistant, and you ...", "examples in one turn",
        "temperature=0.5", "no thinking", "answers after </think>", "edits in turns",
    ]  # fmt: skip
