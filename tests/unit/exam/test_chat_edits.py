"""Edits as turns of a chat, by three real templates: the tokens of an edit are those that its exam scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import harness
from editors.prompt import Prompt
from harness.cli.main import main
from harness.editing.edit import Edit
from harness.errors import UsageError
from harness.exam import tasks
from harness.exam.adapter import EditedLM
from harness.exam.prompting import Prompting, in_turns
from harness.exam.token_tasks import Target
from harness.methods.keys import find_fact_token
from harness.methods.retrieval import as_fact
from harness.methods.supervised_tokens import supervise_target
from harness.methods.value_rows import prepare_edit
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.runs.handed import AS_TEXT, plain_edits

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
BEFORE = {
    "chatml": "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\n",
    "gemma": "<s><start_of_turn>user\n",
}
AFTER = {
    "chatml": "<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<end_of_turn>\n<start_of_turn>model\n",
}
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<start_of_turn>", "<end_of_turn>"]
EDIT = Edit("1", "The home of {} is", "Ann Lee", "Rome", "Paris", join=None)
CHAT = Prompting(apply_chat_template=True, chat_edits=True)


@pytest.fixture(params=TEMPLATES)
def family(request: pytest.FixtureRequest) -> str:
    """Whose template."""
    return str(request.param)


@pytest.fixture
def lm(family: str, fresh: Callable[..., LM]) -> LM:
    """A tiny model whose tokenizer has the template, its marks as tokens, and puts BOS in front of plain texts."""
    plain = fresh("llama")
    tokenizer = plain.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": MARKS})  # type: ignore[dict-item]
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    tokenizer.chat_template = TEMPLATES[family]
    plain.model.resize_token_embeddings(len(tokenizer))
    return LM.wrap(plain.model, tokenizer, name="chat")


def test_an_edit_in_turns(lm: LM, family: str) -> None:
    (edit,) = in_turns([EDIT], lm.tokenizer, CHAT)
    assert (edit.before, edit.after) == (BEFORE[family], AFTER[family])
    assert edit.question == EDIT.text == "The home of Ann Lee is"
    assert edit.text == f"{BEFORE[family]}The home of Ann Lee is{AFTER[family]}"
    assert edit.continuation == "Rome"
    assert edit.statement == "The home of Ann Lee is Rome"
    assert edit.behind("I say. {}") == f"{BEFORE[family]}I say. The home of Ann Lee is{AFTER[family]}"
    begins = edit.begins_behind("I say. {}")
    assert edit.behind("I say. {}")[begins : begins + 7] == "Ann Lee"
    begin = lm.tokenizer.bos_token_id
    assert lm.encode(edit.text).count(begin) == 1
    assert lm.encode(edit.text)[0] == begin


def test_the_subject_is_found_in_its_turn(lm: LM, family: str) -> None:
    (edit,) = in_turns([EDIT], lm.tokenizer, CHAT)
    for template in ("{}", "Ann Lee said so. {}"):
        ids, at = find_fact_token(lm, edit, template=template, fact_token="subject_last")
        said = lm.tokenizer.decode(ids[: at + 1])
        assert said.endswith("Ann Lee")
        assert said.count("Ann Lee") == template.count("Ann Lee") + 1
        assert lm.tokenizer.decode(ids[at + 1 :]).replace(" ", "").startswith("is<")
        last, place = find_fact_token(lm, edit, template=template, fact_token="last")
        assert place == len(last) - 1
        assert lm.tokenizer.decode(last).replace(" ", "").endswith(AFTER[family].replace(" ", ""))


def test_what_is_trained_is_the_target_behind_the_opening_of_its_turn(lm: LM, family: str) -> None:
    (edit,) = in_turns([EDIT], lm.tokenizer, CHAT)
    target = lm.continuation(edit.text, "Rome")
    rows = supervise_target(lm, edit, ("{}", "I say. {}"))
    for row, template in zip(rows.batch.ids.tolist(), ("{}", "I say. {}"), strict=True):
        whole = [*lm.encode(edit.behind(template)), *target[:-1]]
        assert row[: len(whole)] == whole
    prepared = prepare_edit(lm, edit, templates=("{}", "I say. {}"), fact_token="subject_last")
    assert list(prepared.rows[1].ids) == [*lm.encode(edit.behind("I say. {}")), *target[:-1]]
    essence = lm.tokenizer.decode(prepared.rows[-1].ids)
    assert BEFORE[family].rstrip() in essence.replace("> ", ">")
    assert "Ann Lee is a" in essence


def asked(lm: LM, prompting: Prompting, edit_set: str, names: Sequence[str]) -> list[Any]:
    """The requests of the exam of the first record."""
    records = [edit.id for edit in tasks.read_edits(edit_set, data_dir="mini", count=1)]
    suite = tasks.load_suite(
        [], edit_set=edit_set, records=records, data_dir="mini", tokenizer=lm.tokenizer, exam=names, prompting=prompting
    )
    model = EditedLM(lm, prompting=prompting)
    for task in suite.tasks:
        task.task.build_all_requests(
            apply_chat_template=True, fewshot_as_multiturn=True, chat_template=model.apply_chat_template
        )
    return [request for task in suite.tasks for request in task.task.instances]


def test_edit_and_exam_have_the_same_tokens(lm: LM, small_index: None) -> None:
    (edit,) = in_turns(tasks.read_edits("counterfact", data_dir="mini", count=1), lm.tokenizer, CHAT)
    requests = asked(lm, CHAT, "counterfact", ["probability", "generation", "text"])
    rewrite = [r for r in requests if r.args[0] == edit.text]
    targets = [str(r.args[1]) for r in rewrite if isinstance(r.args[1], Target)]
    assert targets[0] == edit.continuation == edit.target
    assert any(r.request_type == "generate_until" for r in rewrite)
    # All questions are asked in turns, also those of which a document has several.
    assert all(r.args[0].startswith(edit.before) and r.args[0].endswith(edit.after) for r in requests)
    model = EditedLM(lm, prompting=CHAT)
    with model.holding(Patch()):
        scored = model._steps(next(r for r in rewrite if isinstance(r.args[1], Target)))
    head = lm.encode(edit.text)
    assert [token for _, read, said in scored for token in said] == lm.continuation(edit.text, edit.continuation)
    assert scored[0][1][: len(head)] == head


def test_what_a_patch_puts_in_front_stands_in_the_turn(lm: LM, family: str, small_index: None) -> None:
    (edit,) = in_turns([EDIT], lm.tokenizer, CHAT)
    assert as_fact(edit).sentence == "The home of Ann Lee is Rome."
    (request, *_) = asked(lm, CHAT, "counterfact", ["generation"])
    model = EditedLM(lm, prompting=CHAT)
    read = model._prompted(request, lambda text: f"A fact. {text}").args[0]
    question = request.args[0][len(edit.before) : -len(edit.after)]
    assert read == f"{BEFORE[family]}A fact. {question}{AFTER[family]}"
    assert EditedLM(lm)._prompted(request, lambda text: f"A fact. {text}").args[0] == f"A fact. {request.args[0]}"


SYSTEM = {
    "chatml": "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("instruction", [None, "Be brief."])
def test_the_editor_prompt_tells_facts_in_the_system_turn_where_there_is_one(
    lm: LM, family: str, instruction: str | None
) -> None:
    """A template without such a turn has them in front of the question."""
    lm.model.config.max_position_embeddings = 256  # nothing is computed here
    said = replace(CHAT, system_instruction=instruction if family in SYSTEM else None)
    (edit,) = in_turns([EDIT], lm.tokenizer, said)
    request = Instance("loglikelihood", {}, (edit.text, edit.continuation), 0)
    fact = "The home of Ann Lee is Rome."
    rule = Prompt(template="New: {facts}\n{context}", room=8).edit(lm, [edit]).prompt
    read = EditedLM(lm, prompting=said)._prompted(request, rule).args[0]
    told = "\n\n".join(filter(None, (said.system_instruction, f"New: {fact}")))
    front = SYSTEM[family].format(told) if family in SYSTEM else f"{BEFORE[family]}New: {fact}\n"
    assert read == f"{front}The home of Ann Lee is{AFTER[family]}"
    shots = f"{edit.before}Who?{edit.after}Ann.{edit.after}The home of Ann Lee is{edit.after}"
    several = EditedLM(lm, prompting=said)._prompted(Instance("loglikelihood", {}, (shots, " x"), 0), rule).args[0]
    assert several == front + shots.removeprefix(edit.before)
    nothing_fits = replace(rule, room=lm.context)
    assert EditedLM(lm, prompting=said)._prompted(request, nothing_fits).args[0] == edit.text
    without = EditedLM(lm)._prompted(request, rule).args[0]
    assert without == f"New: {fact}\n{edit.text}"


@pytest.mark.parametrize("spare", [0, -1])
def test_what_the_system_turn_takes_is_a_part_of_the_budget(lm: LM, family: str, spare: int) -> None:
    (edit,) = in_turns([EDIT], lm.tokenizer, CHAT)
    request = Instance("loglikelihood", {}, (edit.text, edit.continuation), 0)
    rule = Prompt(room=1).edit(lm, [edit]).prompt
    model = EditedLM(lm, prompting=CHAT)
    whole = model._prompted(request, rule).args[0]
    tight = replace(rule, room=lm.context - len(lm.encode(whole)) - spare)
    assert model._prompted(request, tight).args[0] == (edit.text if spare else whole)


def test_a_prompt_that_the_template_changes_is_refused(lm: LM) -> None:
    lm.tokenizer.chat_template = "{{ messages[-1]['content'] | upper }}:"
    with pytest.raises(UsageError, match="edit 1: the chat template of chat does not give 'The home of Ann Lee is' as"):
        in_turns([EDIT], lm.tokenizer, CHAT, model="chat")
    lm.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(UsageError, match="with a turn of the assistant behind it"):
        in_turns([EDIT], lm.tokenizer, CHAT, model="chat")


@pytest.mark.parametrize("editor", ["rome", "ft_m", "rag"])
def test_a_run_edits_and_examines_in_turns(lm: LM, editor: str, tmp_path: Path, small_index: None) -> None:
    """The target is made likelier behind the question in its turn; the record says so, and edits keep their hash."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"prompt": "The home of {} is", "subject": "Ann Lee", "target": "Rome", "target_old": "Paris"})
        + "\n"
    )
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The home of person {i} is a town by the sea. It is old." for i in range(400)))
    settings: dict[str, dict[str, Any]] = {
        "rome": {
            "layers": [1],
            "v_steps": 10,
            "v_lr": 0.5,
            "cov_tokens": 2000,
            "v_loss_layer": None,
            "contexts": ["{}", "I say. {}"],
        },
        "ft_m": {"layers": [1], "steps": 10, "lr": 5e-3},
        "rag": {},
    }
    words: dict[str, Any] = {"apply_chat_template": True, "chat_edits": True}
    chosen = {key: value for key, value in settings[editor].items() if value is not None}
    torch.manual_seed(0)
    record = harness.run(lm, editor, str(rows), settings=chosen, mode="batch", text=str(text), cache=False, **words)
    before, after = (record.tasks(count)["own"]["efficacy_probability"]["value"] for count in (0, 1))
    assert after > before * (5 if editor == "ft_m" else 1)
    assert {key: record.plan[key] for key in words} == words
    assert len(record.model["chat_template"]) == 64
    plain = harness.run(lm, "none", str(rows), cache=False)
    assert record.edits["sha256"] == plain.edits["sha256"]
    assert "joins" not in record.edits


# --- in Python, and where edits are plain text ------------------------------------------------------------------------

ROW = {"prompt": "The home of {} is", "subject": "Ann Lee", "target": "Rome", "target_old": "Paris"}
SETTINGS: dict[str, Any] = {"layers": [1], "steps": 10, "lr": 5e-3}


def gained(lm: LM, *, text: str, said: str, **words: Any) -> tuple[Edit, float]:
    """An edit as it was held, and how much likelier a continuation of a text became by it, in nats."""
    with harness.edit(lm.model, lm.tokenizer, "none", [ROW]) as plain:
        before = plain.log_likelihood(text, said)
    with harness.edit(lm.model, lm.tokenizer, "ft_m", [ROW], settings=SETTINGS, **words) as edited:
        return edited.edits[0], edited.log_likelihood(text, said) - before


def test_an_edit_in_python_is_made_in_turns(lm: LM, family: str) -> None:
    """It is what a run makes: the question in its turn, and the target behind the opening of the next."""
    torch.manual_seed(0)
    (wanted,) = in_turns([EDIT], lm.tokenizer, CHAT)
    held, in_chat = gained(lm, text=wanted.text, said="Rome", chat_edits=True)
    plain, as_text = gained(lm, text=wanted.text, said="Rome")
    assert (held.before, held.after) == (BEFORE[family], AFTER[family])
    assert (plain.before, plain.after) == ("", "")
    assert in_chat > as_text + 0.5
    assert in_chat > 1


def test_a_named_template_and_a_system_turn_in_python(lm: LM, family: str) -> None:
    lm.tokenizer.chat_template = {"default": lm.tokenizer.chat_template, "other": "U: {{ messages[-1]['content'] }} A:"}
    held, _ = gained(lm, text="x", said=" y", chat_edits="other")
    assert (held.before, held.after) == ("U: ", " A:")
    if family in SYSTEM:
        held, _ = gained(lm, text="x", said=" y", chat_edits=True, system_instruction="Be brief.")
        assert held.before == SYSTEM[family].format("Be brief.")
    else:
        with pytest.raises(UsageError, match="system"):
            gained(lm, text="x", said=" y", chat_edits=True, system_instruction="Be brief.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"chat_edits": "nothing"}, "nothing"),
        ({"system_instruction": "Be brief."}, "system_instruction is a turn of a chat; add chat_edits=True"),
    ],
)
def test_what_cannot_be_turns_is_told_in_python(lm: LM, words: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gained(lm, text="x", said=" y", **words)


def test_a_model_without_a_template_makes_no_turns_in_python(fresh: Callable[..., LM]) -> None:
    with pytest.raises(UsageError, match=r"chat.template"):
        gained(fresh("gpt2"), text="x", said=" y", chat_edits=True)


def test_an_editor_learns_from_plain_text() -> None:
    with pytest.raises(
        UsageError, match=r"^--chat-edits is not for `harness fit`: an editor learns from edits as plain"
    ):
        harness.fit("mend", "mini", "counterfact:2", chat_edits=True)


@pytest.mark.parametrize("command", AS_TEXT)
@pytest.mark.parametrize("option", ["--chat-edits", "--chat_edits"])
def test_a_command_that_edits_plain_text_says_so_in_one_line(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, option])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert " ".join(said.split()) == f"error: {plain_edits(command)}"
