"""A mistake of the user is one line that names it and its cure, exit code 2, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

from harness.cli.lists import models
from harness.errors import CheckFailed, HarnessError, RestoreError, UsageError
from harness.exam import data
from harness.runs.record_file import read_record

GOOD = '{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}\n'
EDITOR = '''
from harness.editing.editor import Editor
class One(Editor):
    """One."""
    name = "one"
    def edit(self, lm, edits, memory=None): ...
class Two(One):
    """Two."""
    name = "two"
'''


def assert_told(found: Any, *parts: str) -> None:
    """One line, code 2, nothing on standard output."""
    lines = found.err.strip().splitlines()
    assert (found.code, found.out) == (2, ""), found.err
    assert len(lines) == 1, found.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in found.err
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def refused(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> Callable[..., None]:
    """The small run with other arguments is refused, says the parts, and leaves no file."""

    def check(options: dict[str, object], *parts: str) -> None:
        changed = list(arguments)
        if "--editor" in options:  # the settings are those of the editor that is replaced
            at = changed.index("--set")
            del changed[at : at + 2]
        for option, value in options.items():
            if option in changed and option != "--set":
                changed[changed.index(option) + 1] = str(value)
            else:
                changed += [option, str(value)]
        assert_told(harness(*changed, "--output", tmp_path / "out"), *parts)
        written = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
        assert written == []

    return check


CALLS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "editor": ({"--editor": "rmoe"}, ("editor 'rmoe' does not exist (did you mean", "rome", "`harness editors`")),
    "editor file": ({"--editor": "no/such.py"}, ("no/such.py: no such file", "one Editor")),
    "mode": ({"--mode": "serial"}, ("'serial' is not one of 'isolated', 'batch', 'sequential'", "--help")),
    "model folder": ({"--model": "./nowhere"}, ("./nowhere: no config.json there; give a folder",)),
    "setting": ({"--set": "scal=2"}, ("nudge has no hyperparameter 'scal' (did you mean scale?)",)),
    "setting type": ({"--set": "layer=two"}, ("nudge: 'layer' is 'two', expected int; for example --set",)),
    "setting choice": ({"--set": "form=wide"}, ("nudge: 'form' is 'wide', expected",)),
    "setting syntax": ({"--set": "layer"}, ("--set 'layer': expected NAME=VALUE",)),
    "layer": ({"--editor": "ft", "--set": "layers=[99]"}, ("99", "layer")),
    "dtype": ({"--dtype": "int4"}, ("dtype 'int4' does not exist", "float32")),
    "device": ({"--device": "nope"}, ("device 'nope' cannot be used", "give cpu")),
    "eval-at": ({"--eval-at": "often"}, ("--eval-at 'often' cannot be read", "every:K")),
    "eval-at beyond": ({"--eval-at": "9"}, ("--eval-at 9: there are only 2 edits",)),
    "edit batch size": ({"--edit-batch-size": "2"}, ("edit batch size 2 with mode batch", "--mode sequential")),
    "cases at once": ({"--cases-at-once": "2", "--mode": "batch"}, ("cases_at_once 2 with mode batch", "isolated")),
    "no case at once": ({"--cases-at-once": "0"}, ("cases_at_once is 0, expected at least 1",)),
    "limit": ({"--limit": "0"}, ("limit is 0, expected at least 1",)),
    "limit type": ({"--limit": "few"}, ("'few' is not a valid integer", "--help")),
    "num-edits": ({"--num-edits": "0"}, ("num_edits is 0, expected at least 1",)),
    "num-edits beyond": ({"--num-edits": "3"}, ("my.jsonl: has 2 edits, 3 were asked for",)),
    "batch size": ({"--batch-size": "0"}, ("0 is not in the range x>=1",)),
    "batch size in words": ({"--batch-size": "many"}, ("'many' is neither auto nor a number of texts",)),
    "edit set": ({"--edits": "counterfct"}, ("edit set 'counterfct' does not exist (did you mean counterfact, ",)),
    "edit set number": ({"--edits": "zsre:x"}, ("--edits 'zsre:x': 'x' is not a number of edits",)),
    "edits file": ({"--edits": "nowhere.jsonl"}, ("nowhere.jsonl: no such file; give JSON lines",)),
    "data folder": ({"--edits": "zsre", "--data-dir": "nowhere"}, ("--data-dir nowhere: no such folder",)),
    "config": ({"--config": "nowhere.yaml"}, ("nowhere.yaml: cannot be read (No such file or directory)",)),
    "option": ({"--editr": "rome"}, ("No such option '--editr'", "--editor")),
    "arch": ({"--arch": "blocks"}, ("--arch 'blocks': expected NAME=VALUE",)),
    "arch part": ({"--arch": "blocs=x"}, ("blocs",)),
    "arch layer": ({"--arch": "down=transformer.h.0.mlp.c_proj"}, ("is of one layer; write {} in its place",)),
    "arch matrix": ({"--arch": "down=transformer.h.{}.mlp"}, ("'transformer.h.{}.mlp' is no matrix; name the down-",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_mistake_in_the_call(refused: Callable[..., None], case: str) -> None:
    options, parts = CALLS[case]
    refused(options, *parts)


EDITORS = [
    ("rome", "v_steps=0", "rome: 'v_steps' is 0, expected at least 1"),
    ("rome", "v_lr=1e400", "rome: 'v_lr' is inf, expected a finite number"),
    ("rome", "v_lr=.nan", "rome: 'v_lr' is nan, expected above 0"),
    ("rome", "layers=[]", "rome: 'layers' is an empty list, expected at least one; leave it out for the default"),
    ("rome", "v_lr=fast", "rome: 'v_lr' is 'fast', expected float above 0; for example --set v_lr=VALUE"),
    ("memit", "layers=[3]", "layer 3: the model has layers 0 to 2; choose one of them"),
    ("memit", "layers=[-1]", "layer -1: the model has layers 0 to 2; choose one of them"),
    ("memit", "v_lrr=3", "memit has no hyperparameter 'v_lrr' (did you mean v_lr"),
    ("memit+rect", "rct.seed=1", "'rct.seed': memit+rect has no part 'rct' (did you mean rect?)"),
    ("memit+rect", "rect.lam=1", "rect has no hyperparameter 'lam'"),
    ("memit+rect", "inner=none", "memit+rect has no hyperparameter 'inner'"),
    ("rect", None, "rect wraps another editor; name that one first, for example memit+rect"),
    ("rome+memit", None, "memit cannot wrap rome; what can stand after a + is "),
    ("rome+rcet", None, "editor 'rcet' does not exist (did you mean "),
    ("mend", None, "mend must learn before its first edit; run `harness fit --editor mend --model "),
    ("rome", None, "rome edits one fact at a time; use --mode isolated or --mode sequential"),
]


@pytest.mark.parametrize(("editor", "setting", "message"), EDITORS)
def test_a_mistake_about_an_editor(
    refused: Callable[..., None], editor: str, setting: str | None, message: str
) -> None:
    refused({"--editor": editor, **({} if setting is None else {"--set": setting})}, message)


def test_a_number_that_no_record_can_keep(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    found = harness(*arguments, "--set", "scale=.nan", "--seeds", "0,1", "--output", tmp_path / "out")
    assert_told(found, "nudge: 'scale' is nan, expected a finite number")
    config = tmp_path / "plan.yaml"
    config.write_text("arch: {blocks: .nan}\n")  # what is no hyperparameter of the editor
    found = harness(*arguments, "--config", config, "--seeds", "0,1", "--output", tmp_path / "out")
    assert_told(found, "a plan holds a NaN or an infinity, which no record can keep; give finite numbers")


@pytest.mark.usefixtures("small_index")
def test_an_unknown_task(refused: Callable[..., None]) -> None:
    refused({"--tasks": "NER,NIL"}, "task 'NIL' does not exist (did you mean", "NLI", "`harness tasks`")


FILES: dict[str, tuple[str, str]] = {
    "empty": ("", "my.jsonl: empty; expected one JSON object a line"),
    "cut off": (GOOD + GOOD[:30], "my.jsonl, line 2: not JSON"),
    "no subject": (GOOD + '{"prompt": "{} is", "target": "Rome"}\n', "my.jsonl, line 2: 'subject' is missing"),
    "subject elsewhere": (
        GOOD + '{"prompt": "Hugo is", "subject": "Ada", "target": "Rome"}\n',
        "my.jsonl, line 2: the subject 'Ada' is not in the prompt 'Hugo is'",
    ),
    "empty prefix": (
        GOOD + '{"prefix": " ", "suffix": "Rome"}\n',
        "my.jsonl, line 2: 'prefix' is empty; give the text",
    ),
    "empty prompt": (GOOD.replace("{} was born in", ""), "my.jsonl, line 1: 'prompt' is empty; give the text that the"),
    "one paraphrase": (
        GOOD.replace("}\n", ', "paraphrases": "Ada Velmont comes from"}\n'),
        "my.jsonl, line 1: 'paraphrases' is 'Ada Velmont comes from', expected a list of texts",
    ),
    "empty target": (
        GOOD + '{"prompt": "{} is", "subject": "Ada", "target": ""}\n',
        "my.jsonl, line 2: edit 2: the target is empty",
    ),
    "ids": (GOOD.replace("{", '{"id": 1, ', 1) * 2, "my.jsonl: the id 1 occurs twice (edits 1 and 2)"),
    "long": (GOOD + GOOD.replace(" was", " Rome" * 700 + " was"), "edit 2: "),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_the_rows(refused: Callable[..., None], tmp_path: Path, case: str) -> None:
    content, message = FILES[case]
    path = tmp_path / "my.jsonl"
    path.write_text(content)
    refused({"--edits": path}, message, *(["tokens, but", "takes 640; shorten the prompt"] if case == "long" else []))


def test_edits_without_a_subject_for_an_editor_that_needs_them(refused: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text('{"prefix": "It rains in", "suffix": "Rome"}\n')
    for name in ("rome", "memit"):
        told = f"edit 1: {name} needs a subject; give rows of prompt, subject and target"
        refused({"--edits": path, "--editor": name, "--mode": "isolated"}, told)


def test_too_little_text_for_a_covariance_says_how_much_there_was_and_how_much_is_needed(
    harness: Callable[..., Any], arguments: list[str], text: str, tmp_path: Path
) -> None:
    at = arguments.index("--editor")
    plain = [*arguments[: at + 1], "rome", *arguments[at + 2 : arguments.index("--set")]]
    found = harness(
        *plain,
        "--mode",
        "isolated",
        "--set",
        "cov_tokens=50",
        "--data-dir",
        "mini",
        "--text",
        text,
        "--output",
        tmp_path / "out",
    )
    assert_told(found, "the second moment of ", "has no inverse: 50 tokens were read, at least 64 are needed")
    assert "raise --set cov_tokens=640 or give more text with --text FILE" in found.err
    (path,) = (tmp_path / "out").glob("*.json")
    kept = read_record(path)  # what was measured before is kept, and says why it went no further
    assert (kept.status, [point["edits"] for point in kept.points]) == ("failed", [0])
    assert str(kept.reason).startswith("NumericalError: the second moment of ")


def test_edits_that_repeat_or_contradict_each_other_are_told_and_counted(
    harness: Callable[..., Any], arguments: list[str], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.jsonl"
    said = [("Ada Velmont", "Rome")] * 2 + [("Ada Velmont", city) for city in ("Oslo", "Paris", "Rome", "Oslo")]
    said += [("Hugo Lantern", "Rome"), ("Hugo Lantern", "Oslo")]
    rows = [{"prompt": "{} was born in", "subject": who, "target": where} for who, where in said]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = [str(path) if arguments[i - 1] == "--edits" else word for i, word in enumerate(arguments)]
    found = harness(*changed, "--text", text, "--output", tmp_path / "out")
    assert (found.code, found.err) == (0, "")
    warnings = [line for line in found.out.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: edit 2 repeats edit 1 ('Ada Velmont was born in' -> 'Rome')",
        "warning: edit 3 contradicts edit 1: 'Ada Velmont was born in' -> 'Oslo', not 'Rome'",
        "warning: edit 4 contradicts edit 1: 'Ada Velmont was born in' -> 'Paris', not 'Rome'",
        "warning: edit 5 repeats edit 1 ('Ada Velmont was born in' -> 'Rome')",
        "warning: 2 more edits repeat or contradict an earlier one, 6 in all",
    ]
    (kept,) = (read_record(file) for file in (tmp_path / "out").glob("*.json"))
    assert (kept.edits["count"], kept.edits["unique"], kept.edits["contradicting"]) == (8, 5, 3)
    assert [f"warning: {line}" for line in kept.edits["warnings"]] == warnings


ROWS: dict[str, tuple[str, dict[str, str], str]] = {
    "no prefix": (
        "country_capital",
        {"suffix": " Lima"},
        "-test.jsonl, row 2: no 'prefix'; a row needs a prefix and a",
    ),
    "no suffix": ("country_capital", {"prefix": "The capital of Peru is"}, "-test.jsonl, row 2: no 'suffix'; a row"),
    "one continuation": (
        "verb_conjugation",
        {"prefix": ". The dog", "suffix1": " runs"},
        "row 2: one continuation, but",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_canonical_row_that_cannot_be_learned(refused: Callable[..., None], tmp_path: Path, case: str) -> None:
    name, row, message = ROWS[case]
    path = tmp_path / data.find_datasets()[name].files["edits_test"].path
    path.parent.mkdir(parents=True)
    good = {"prefix": "a", **({"suffix": " b"} if name == "country_capital" else {"suffix1": " b", "suffix2": " c"})}
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, row)))
    refused({"--edits": name, "--data-dir": tmp_path}, message)


def test_a_sweep_that_cannot_be_read(harness: Callable[..., Any], tmp_path: Path) -> None:
    path, output = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text("model: mini\nconfiguration: 3\n")
    found = harness("sweep", path, "--output", output)
    assert_told(found, "'configuration' is not a field of a sweep (did you mean configurations?)")
    assert not output.exists()


def test_text_shorter_than_a_chunk(
    harness: Callable[..., Any], arguments: list[str], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    text, changed = tmp_path / "short.txt", list(arguments)
    text.write_text("Ada lives.\n")
    at = changed.index("--set")
    del changed[at : at + 2]
    changed[changed.index("--model") + 1] = str(checkpoint("backpack"))
    changed[changed.index("--editor") + 1] = "senses"
    found = harness(*changed, "--text", text, "--output", tmp_path / "out")
    assert_told(found, "short.txt: has fewer than 500 tokens; give more plain text with --text")


def test_a_gzip_that_is_cut_off(refused: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 50)[:-9])
    refused({"--edits": path}, "my.jsonl.gz: a damaged gzip file", "copy it again")


def test_a_mistake_in_the_configuration(refused: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    for content, message in (
        ("editr: rome\n", "'editr' is not a field of a plan (did you mean"),
        ("limit: [1\n", "plan.yaml: not YAML"),
        ("- rome\n", "plan.yaml: holds list, expected fields of a plan"),
        ("split: 5\n", "'split' is 5, expected str"),
        ("split: tset\n", "tset"),
    ):
        path.write_text(content)
        refused({"--config": path, "--edits": "zsre:2"}, message)


def test_an_editor_file_with_two_editors(refused: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(EDITOR)
    refused(
        {"--editor": path}, "two.py: holds 2 editors, expected one public subclass of harness.editing.editor.Editor"
    )


def test_a_broken_checkpoint(refused: Callable[..., None], checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source, broken = checkpoint("gpt2"), tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[0, 0] = math.inf
    model.save_pretrained(broken)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((source / name).read_bytes())
    refused({"--model": broken}, "the weight 'transformer.h.0.mlp.c_proj.weight' holds a NaN or an infinity")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    refused({"--model": broken}, f"{broken}: cannot be loaded")


def test_an_output_that_cannot_be_written(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_told(harness(*arguments, "--output", output), str(output), "cannot be written to", "--output")
    assert (tmp_path / "file").read_text() == "content"


def test_a_second_run_of_one_plan(harness: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    shown = harness(*arguments, "--output", tmp_path, "--dry-run", "--no-probes")
    record = re.search(r"[0-9a-f]{16}", shown.out)
    assert record is not None
    mine = record.group()[:8]
    with FileLock(tmp_path / f".{mine}.lock"):
        found = harness(*arguments, "--output", tmp_path)
    assert_told(
        found,
        f"{tmp_path}: another run is writing the record {mine} of this plan; wait for it to end or choose another",
    )
    assert list(tmp_path.glob("*.json*")) == []


def test_data_of_a_folder_that_is_not_there(harness: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        assert_told(
            harness("data", "--data-dir", tmp_path / name), f"--data-dir {tmp_path / name}: no such folder; give"
        )


@pytest.mark.parametrize("name", ["rn", "leaderbord", "taks"])
def test_a_command_that_is_not_there(harness: Callable[..., Any], name: str) -> None:
    near = {"rn": "run", "leaderbord": "leaderboard", "taks": "tasks"}[name]
    assert_told(harness(name), f"command '{name}' does not exist (did you mean", near)


def test_mistakes_about_records(harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path) -> None:
    cut, other = tmp_path / "cut.json", tmp_path / "other.json"
    cut.write_bytes(records["weak"].read_bytes()[:500])
    other.write_text(json.dumps({"schema": 1}))
    assert_told(harness("show", tmp_path / "no.json"), "no.json: cannot be read (No such file or directory)")
    assert_told(harness("show", cut), "cut.json: not whole JSON", "repeat the run")
    assert_told(harness("show", other), "other.json: not a record")
    assert_told(harness("compare", records["weak"], cut), "cut.json: not whole JSON")
    assert_told(harness("leaderboard", tmp_path / "nowhere"), "nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    assert_told(harness("leaderboard", tmp_path / "empty"), "empty: holds no record")
    assert_told(harness("check", "--baseline", tmp_path / "empty"), "empty: holds no record")
    assert_told(harness("check"), "Missing option '--baseline'")
    assert_told(
        harness("leaderboard", records["weak"].parent, "--format", "pdf"), "'pdf' is not one of 'csv', 'html', 'json'"
    )
    target = tmp_path / "nowhere" / "board.md"
    assert_told(harness("leaderboard", records["weak"].parent, "--output", target), "board.md: cannot be written")


# --- what is promised to be told --------------------------------------------------------------------------------------

FIT, LONG, HERE = "cli/test_fit.py::", "cli/test_long_runs.py::", "cli/test_bad_input.py::"
CANONICAL, RAY, SWEEP, TRACE = (
    "unit/exam/test_canonical.py::",
    "unit/runs/test_crew_ray.py::",
    "unit/studies/test_sweep.py::",
    "unit/studies/test_trace.py::",
)
TOLD: dict[str, list[str]] = {
    "a patch cut short": [f"{LONG}test_a_patch_that_cannot_be_put_back"],
    "a patch with a changed byte": [
        f"{LONG}test_a_patch_that_cannot_be_put_back",
        "unit/io/test_tensor_file.py::test_no_byte_can_change_unnoticed",
    ],
    "a patch of another model": ["cli/test_saved_edits.py::test_what_cannot_be_applied_is_told"],
    "a patch of a newer format": [f"{LONG}test_a_patch_that_cannot_be_put_back"],
    "a stop beyond the edits": [f"{LONG}test_fewer_edits_than_asked_for_and_a_stop_beyond_them"],
    "a set smaller than asked for": [f"{LONG}test_fewer_edits_than_asked_for_and_a_stop_beyond_them"],
    "a full disk": [
        f"{LONG}test_a_full_disk_is_told_in_one_line_and_what_was_written_before_goes_on",
        f"{HERE}test_a_full_disk_leaves_the_earlier_table_and_figure",
        "unit/runs/test_record.py::test_a_failed_write_leaves_the_old_file_and_no_litter",
        "unit/io/test_files.py::test_a_full_disk_is_told_whatever_is_written",
        "unit/io/test_files.py::test_all_that_is_kept_is_written_whole",
        "unit/methods/test_second_moments.py::test_a_full_cache_is_told",
        "unit/io/test_tensor_file.py::test_a_write_that_fails_halfway_leaves_the_earlier_file_and_no_litter",
    ],
    "two runs in one folder": [
        f"{HERE}test_a_second_run_of_one_plan",
        f"{LONG}test_a_second_run_that_would_go_on_is_told_and_touches_nothing",
    ],
    "a row without prefix or suffix": [
        f"{HERE}test_a_canonical_row_that_cannot_be_learned",
        f"{CANONICAL}test_a_row_that_cannot_be_scored_is_named",
    ],
    "a pair with one continuation": [
        f"{HERE}test_a_canonical_row_that_cannot_be_learned",
        f"{CANONICAL}test_a_pair_set_with_one_continuation_is_refused",
    ],
    "a suffix of no tokens": [f"{CANONICAL}test_a_suffix_without_tokens_is_named_with_its_document"],
    "a threshold of the wrong sign": [f"{CANONICAL}test_a_threshold_of_the_wrong_sign_is_refused"],
    "general text shorter than a chunk": [
        f"{HERE}test_text_shorter_than_a_chunk",
        f"{CANONICAL}test_documents_are_followed_by_the_end_of_text",
        f"{CANONICAL}test_the_ball_reads_the_rebuilt_text_before_the_stand_in",
        f"{SWEEP}test_a_ball_of_which_nothing_is_scored_is_told",
        "unit/editors/test_senses.py::test_text_shorter_than_a_chunk_is_refused",
    ],
    "an unknown field of a sweep": [
        f"{HERE}test_a_sweep_that_cannot_be_read",
        f"{SWEEP}test_mistakes_in_the_file_are_one_line",
    ],
    "a Ray address that does not answer": [f"{RAY}test_an_address_that_does_not_answer_is_one_line"],
    "a subject not in its prompt": [
        "cli/test_trace_command.py::test_subjects_that_are_not_there_are_named_and_left_out",
        "unit/studies/test_tracing.py::test_a_record_says_what_it_depends_on_and_who_was_left_out",
    ],
    "a fact that the model does not know": [
        f"{TRACE}test_facts_that_the_model_does_not_know_are_left_out_and_named",
        "unit/studies/test_tracing.py::test_no_known_fact_is_a_record_too",
    ],
    "a window wider than the model": [
        "cli/test_trace_command.py::test_mistakes_are_one_line",
        "cli/test_localize_command.py::test_mistakes_are_one_line",
    ],
    "an effect over nothing": [
        f"{TRACE}test_where_noise_changes_nothing_there_is_no_fraction",
        "unit/studies/test_tracing.py::test_what_has_no_fraction_is_left_out_of_its_mean_and_counted",
    ],
    "too few facts for a regression": [
        "unit/studies/test_localize.py::test_too_few_facts",
        "cli/test_localize_command.py::test_mistakes_are_one_line",
    ],
    "a hyperparameter that is not there": [f"{HERE}test_a_mistake_about_an_editor"],
    "a hyperparameter out of range": [f"{HERE}test_a_mistake_about_an_editor"],
    "a layer that the model does not have": [f"{HERE}test_a_mistake_about_an_editor"],
    "an editor that has not learned": [f"{FIT}test_a_run_without_it_says_the_command"],
    "what was learned of another model": [f"{FIT}test_a_file_of_another_model"],
    "edits without a subject": [f"{HERE}test_edits_without_a_subject_for_an_editor_that_needs_them"],
    "edits that repeat or contradict": [f"{HERE}test_edits_that_repeat_or_contradict_each_other_are_told_and_counted"],
    "a quantised weight": [
        "unit/models/test_quantised.py::test_a_run_is_refused_before_anything_is_measured_and_names_what_works"
    ],
    "a singular system": [
        f"{HERE}test_too_little_text_for_a_covariance_says_how_much_there_was_and_how_much_is_needed"
    ],
}
"""What a user may get wrong, and the tests that it is told: in one line with exit code 2, or counted in the record."""


@pytest.mark.parametrize("mistake", TOLD)
def test_a_mistake_has_its_test(mistake: str, is_test: Callable[[str], bool]) -> None:
    assert all(is_test(name) for name in TOLD[mistake]), TOLD[mistake]


def test_a_full_disk_leaves_the_earlier_table_and_figure(
    harness: Callable[..., Any], records: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = records["weak"].parent
    for command, name in (("leaderboard", "board.md"), ("plot", "curves.svg")):
        path = tmp_path / name
        path.write_text("before")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert_told(
                harness(command, folder, "--output", path), f"{name}: cannot be written (No space left on device)"
            )
        assert path.read_text() == "before"
        assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".")] == []
        assert harness(command, folder, "--output", path).code == 0
        assert path.read_text() != "before"


# --- how an error ends the program ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a value"), 2),
        (HarnessError("a value"), 2),
        (CheckFailed("a value"), 1),
        (RestoreError("a value"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(models, "callback", fail)
    found = harness("models")
    assert found.code == code
    assert len(found.err.strip().splitlines()) == 1


def test_a_message_stays_on_one_line_and_keeps_its_brackets(
    harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise UsageError("layers=[3] is [red] for\n" + "a very long reason " * 20)

    monkeypatch.setattr(models, "callback", fail)
    found = harness("models")
    assert_told(found, "layers=[3] is [red] for a very long reason a very")


def test_a_defect_of_ours_is_not_hidden(harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "callback", fail)
    with pytest.raises(ZeroDivisionError):
        harness("models")
