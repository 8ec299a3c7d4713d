"""A plan: its name is a hash of all it says, and only what it can say is taken."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from harness.cli.edit_and_measure import PlanOptions
from harness.cli.values import integers, text_or_token
from harness.errors import UsageError
from harness.runs.defaults import note_rows
from harness.runs.identity import SCHEMA, digest
from harness.runs.plan import Plan, parse_edits
from harness.runs.record import Record

OTHER: dict[str, Any] = {
    "model": "mini-llama",
    "editor": "rome",
    "settings": {"v_steps": 5},
    "edits": "zsre",
    "num_edits": 7,
    "include_path": ("mine",),
    "split": "train",
    "mode": "sequential",
    "edit_batch_size": 2,
    "eval_at": "every:2",
    "tasks": ("NLI",),
    "data_dir": "hub",
    "text": "text.txt",
    "limit": 9,
    "seed": 1,
    "dtype": "bfloat16",
    "arch": {"blocks": "transformer.h.{}"},
    "fitted": "mend.safetensors",
    "order": "random",
    "stop_on_collapse": True,
    "patch": "memit.safetensors",
    "exam": ("probability",),
    "known_only": True,
    "model_args": {"revision": "main"},
    "cases_at_once": 3,
    "num_fewshot": 5,
    "apply_chat_template": True,
    "system_instruction": "Be brief.",
    "fewshot_as_multiturn": False,
    "gen_kwargs": {"temperature": 0.5},
    "enable_thinking": False,
    "think_end_token": "</think>",
    "thinking_budget": 64,
    "chat_edits": True,
    "predict_only": True,
    "dequantise_edited": True,
    "backend": "vllm",
}


def cli(config: Path | None = None, settings: tuple[str, ...] = (), arch: tuple[str, ...] = (), **chosen: Any) -> Plan:
    """The plan that the command line makes of its options."""
    (plan,) = PlanOptions(config=config, settings=settings, arch=arch, **chosen).plans()
    return plan


def written(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


# --- the id --------------------------------------------


def test_the_id_is_that_of_what_differs_from_the_defaults() -> None:
    # printf '{"plan":{},"schema":2}' | sha256sum
    assert Plan().id == "a5615fe14865ae1b"
    assert Plan(settings={"b": 1, "a": 2}).id == Plan(settings={"a": 2, "b": 1}).id


def test_the_id_changes_with_every_field() -> None:
    assert set(OTHER) == {f.name for f in fields(Plan)}
    thinking = Plan(think_end_token=OTHER["think_end_token"])  # without which there is nothing to give a budget
    hashes = {
        name: replace(thinking if name == "thinking_budget" else Plan(), **{name: value}).id
        for name, value in OTHER.items()
    }
    assert len({*hashes.values(), Plan().id}) == len(OTHER) + 1


def test_a_plan_survives_json() -> None:
    plan = Plan(**OTHER)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.id == plan.id
    assert Plan.from_json({}) == Plan()


# --- a field that was called otherwise ------------------------------------------


def test_a_new_name_of_a_field_renames_no_record() -> None:
    plan = Plan(mode="sequential", edit_batch_size=2)
    assert plan.id == digest({"schema": SCHEMA, "plan": {"mode": "sequential", "batch_size": 2}})
    record = Record.from_json({"id": plan.id, "plan": {"mode": "sequential", "batch_size": 2}})
    assert record.plan == {"mode": "sequential", "edit_batch_size": 2}
    assert Plan.from_json(record.plan) == plan


def test_an_old_name_in_a_configuration_is_read_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "editor: memit\nmode: sequential\nbatch_size: [2, 5]\nruns: [{edits: counterfact}, {batch_size: 3}]\n"
    plans = PlanOptions(config=written(tmp_path, text)).plans()
    assert [plan.edit_batch_size for plan in plans] == [2, 5, 3]
    assert caplog.text.count("'batch_size' is read as 'edit_batch_size', its name now; write that") == 2
    with pytest.raises(UsageError, match="gives edit_batch_size and batch_size, its name in earlier versions"):
        cli(written(tmp_path, "batch_size: 2\nedit_batch_size: 2\n"))


def test_who_may_mean_edits_by_the_size_of_a_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for plan, rows in ((Plan(mode="batch"), 8), (Plan(mode="sequential"), None), (Plan(**OTHER), 8)):
        note_rows(plan, rows)
    assert not caplog.text
    note_rows(Plan(mode="sequential"), 8)
    assert "edits of one operation are --edit-batch-size" in caplog.text


# --- what is refused ------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"editr": "rome"}, r"plan: 'editr' is not a field of a plan \(did you mean .*editor"),
        ({"Num-Edits": 3}, r"'Num-Edits' is not a field of a plan \(did you mean .*num_edits"),
        ({3: 4}, "'3' is not a field of a plan"),
        ({"num_edits": "ten"}, "'num_edits' is 'ten', expected int or nothing"),
        ({"num_edits": True}, "'num_edits' is True, expected int or nothing"),
        ({"num_edits": 1.5}, "'num_edits' is 1.5, expected int or nothing"),
        ({"num_edits": 0}, "num_edits is 0, expected at least 1; leave it out to take all"),
        ({"limit": -3}, "limit is -3, expected at least 1; leave it out to take all"),
        ({"seed": None}, "'seed' is None, expected int"),
        ({"seed": "0"}, "'seed' is '0', expected int"),
        ({"model": 5}, "'model' is 5, expected str"),
        ({"mode": 5}, "'mode' is 5, expected str or nothing"),
        ({"edits": ["counterfact"]}, r"'edits' is \['counterfact'\], expected str"),
        ({"settings": [1]}, r"'settings' is \[1\], expected dict"),
        ({"settings": None}, "'settings' is None, expected dict"),
        ({"arch": "x"}, "'arch' is 'x', expected dict"),
        ({"settings": {"lr": date(2020, 1, 1)}}, "'settings' holds lr=2020-01-01, a date; give a number or text"),
        ({"settings": {"layers": [b"1"]}}, "'settings' holds layers=b'1', a bytes; give a number or text"),
        ({"settings": {"lr": 0.1, 1: 2}}, "'settings' names 1, expected a name such as layers"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296, expected a whole number from 0 to 4294967295"),
        ({"tasks": 5}, "'tasks' is 5, expected names"),
        ({"tasks": {"NLI": 1}}, "'tasks' is {'NLI': 1}, expected names"),
        ({"tasks": ["NLI", 3]}, r"'tasks' is \['NLI', 3\], expected names"),
        ({"edits": "counterfact:many"}, "--edits 'counterfact:many': 'many' is not a number of edits"),
    ],
)
def test_what_a_plan_cannot_say(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Plan.from_json(values)
    assert "\n" not in str(caught.value)


def test_the_message_names_the_file() -> None:
    with pytest.raises(UsageError, match=r"^my\.yaml: 'sed' is not a field"):
        Plan.from_json({"sed": 1}, "my.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "holds list, expected fields of a plan"),
        (b"", "holds NoneType, expected fields of a plan"),
        (b"editor: [rome\n", "not YAML"),
        (b"editor: \xff\xfe\n", "not YAML"),
        (b"seed: 2020-13-45\n", "not YAML"),
    ],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"plan\.yaml: {message}") as caught:
        Plan.read(path)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.yaml: cannot be read \(No such file or directory\)"):
        Plan.read(tmp_path / "no.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        Plan.read(tmp_path)


# --- NAME:N ------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("counterfact", ("counterfact", None)),
        ("counterfact:50", ("counterfact", 50)),
        ("my.jsonl:3", ("my.jsonl", 3)),
        ("C:/rows/my.jsonl:3", ("C:/rows/my.jsonl", 3)),
    ],
)
def test_a_name_and_a_number(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_edits(text) == expected


@pytest.mark.parametrize("text", ["counterfact:", "counterfact:0", "counterfact:-1", "counterfact:1.5", "a:\u00b2"])
def test_a_number_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"write for example counterfact:50"):
        parse_edits(text)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows:5"
    path.touch()
    assert parse_edits(str(path)) == (str(path), None)


# --- the command line and the configuration ------------------------------------------


def test_the_defaults_of_the_command_line() -> None:
    assert cli() == Plan(edits="none")
    assert cli(edits="counterfact:50") == Plan(edits="counterfact", num_edits=50)
    assert cli(editor="memit", tasks="NER,NLI") == Plan(
        editor="memit", tasks=("NER", "NLI"), edits="counterfact", num_edits=50
    )


def test_the_configuration_stands_over_the_defaults_and_the_command_line_over_both(tmp_path: Path) -> None:
    config = written(
        tmp_path, "editor: rome\nedits: zsre:20\nseed: 3\nsettings: {v_steps: 5, clamp: 2.0}\ntasks: [NLI]\n"
    )
    assert cli(config) == Plan(
        editor="rome", edits="zsre", num_edits=20, seed=3, settings={"v_steps": 5, "clamp": 2.0}, tasks=("NLI",)
    )
    over = cli(config, ("v_steps=7",), seed=4, tasks="NER", edits="counterfact:2")
    assert (over.seed, over.tasks, over.edits, over.num_edits) == (4, ("NER",), "counterfact", 2)
    assert over.settings == {"v_steps": 7, "clamp": 2.0}
    assert over.editor == "rome"


@pytest.mark.parametrize(
    ("config", "chosen", "expected"),
    [
        ("", {}, ("none", None)),
        ("", {"editor": "rome"}, ("counterfact", 50)),
        ("", {"num_edits": 5}, ("counterfact", 5)),
        ("", {"edits": "zsre:5", "num_edits": 5}, ("zsre", 5)),
        ("", {"edits": "zsre"}, ("zsre", None)),
        ("num_edits: 5\n", {}, ("counterfact", 5)),
        ("num_edits: 5\n", {"edits": "zsre:9"}, ("zsre", 9)),
        ("edits: zsre:9\n", {"num_edits": 5}, ("zsre", 5)),
        ("edits: zsre\nnum_edits: 5\n", {}, ("zsre", 5)),
    ],
)
def test_how_many_edits(tmp_path: Path, config: str, chosen: dict[str, Any], expected: tuple[str, int | None]) -> None:
    plan = cli(written(tmp_path, "seed: 0\n" + config), **chosen)
    assert (plan.edits, plan.num_edits) == expected


def test_no_edits_is_not_all_edits() -> None:
    with pytest.raises(UsageError, match="num_edits is 0"):
        cli(num_edits=0)
    with pytest.raises(UsageError, match="num_edits is 0"):
        cli(edits="counterfact:50", num_edits=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("5e-4", 5e-4),
        ("1.5e-3", 1.5e-3),
        ("true", True),
        ("[3,4]", [3, 4]),
        ("prompt_last", "prompt_last"),
        ("null", None),
        ("", None),
        ("'5'", "5"),
    ],
)
def test_a_setting_is_yaml(text: str, value: object) -> None:
    found = cli(settings=(f"field={text}",)).settings["field"]
    assert found == value
    assert type(found) is type(value)


def test_a_digit_that_stands_for_no_number() -> None:
    with pytest.raises(UsageError, match="--seeds '0,²': expected numbers separated by commas"):
        integers("0,²", "--seeds")
    assert text_or_token("²") == "²"
    assert text_or_token("12") == 12


@pytest.mark.parametrize("text", ["field", "=3", "field=[1", "field={", "field=2020-13-45"])
def test_a_setting_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"--set '.*': ") as caught:
        cli(settings=(text,))
    assert "\n" not in str(caught.value)


def test_modules_named_by_hand() -> None:
    plan = cli(arch=("blocks=model.layers.{},norm=model.norm", "embedding=model.embed"))
    assert plan.arch == {"blocks": "model.layers.{}", "norm": "model.norm", "embedding": "model.embed"}


@pytest.mark.parametrize("field", ["settings", "arch"])
@pytest.mark.parametrize("value", ["null", "[1, 2]", "5"])
def test_a_configuration_whose_settings_are_no_mapping(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"plan\.yaml: '{field}' is .*, expected dict"):
        cli(written(tmp_path, f"{field}: {value}\n"))
