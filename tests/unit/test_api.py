"""The front door: what ``import harness`` offers, on the shipped model and on tiny random ones."""

from __future__ import annotations

import doctest
import inspect
import json
import logging
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nudge import Nudge
from tokenizers import AddedToken

import harness
from editors.memit import Memit
from editors.rect import Rect
from editors.rome import Rome
from harness import api
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import configure
from harness.editing.schedule import walk
from harness.errors import DataError, HarnessError, ModelError, RestoreError, UsageError
from harness.exam import own_rows
from harness.io.process import as_before
from harness.methods import value
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch

ROOT = Path(__file__).parents[2]
FACT = {"prompt": "{} is found in", "subject": "West Sisaria", "target": "Minirus"}
SETTINGS: dict[str, Any] = {"layers": [1], "v_steps": 3, "cov_tokens": 2000}
ROWS = [
    {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"},
    {"id": "home", "prompt": "The home of Hugo Lantern is", "subject": "Hugo Lantern", "target": "Paris"},
]


def process() -> dict[str, Any]:
    """What of a process a call must leave alone."""
    known = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "levels": {name: logger.level for name, logger in known.items()} | {"": logging.root.level},
        "handlers": list(logging.root.handlers),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
    }


@contextmanager
def same_process() -> Iterator[None]:
    """See that a call leaves the process as it was; loggers that did not exist before do not count."""
    before = process()
    yield
    after = process()
    after["levels"] = {name: level for name, level in after["levels"].items() if name in before["levels"]}
    assert {key: value for key, value in after.items() if value != before[key]} == {}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call writes by default goes into a folder of the test."""
    monkeypatch.chdir(tmp_path)


def gpt2(fresh: Callable[..., LM]) -> tuple[Any, Any]:
    """A bare model and its tokenizer, as a user has them."""
    lm = fresh("gpt2")
    lm.model.requires_grad_(True)
    return lm.model.train(), lm.tokenizer


# --- what is public ---------------------------------------------------------------------------------------------------


def test_what_is_public() -> None:
    names = [
        *("audit", "durability", "edit", "evaluate", "export", "fit", "import_records", "judge", "leaderboard"),
        *("load", "localize"),
        *("read_records", "read_samples", "run", "sweep", "trace"),
    ]
    assert harness.__all__ == api.__all__ == names
    assert dir(harness) == ["__version__", *names]
    assert all(getattr(harness, name) is getattr(api, name) for name in names)
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'edits'"):
        harness.edits  # noqa: B018


def example(name: str) -> dict[str, Any]:
    """Run the example of a function's documentation; what stands in its variables afterwards."""
    found: dict[str, Any] = {}
    parsed = doctest.DocTestParser().get_doctest(inspect.getdoc(getattr(harness, name)) or "", found, name, None, 0)
    assert len(parsed.examples) > 1
    with same_process():
        done = doctest.DocTestRunner().run(parsed, clear_globs=False)
    assert done.failed == 0
    return parsed.globs


@pytest.mark.parametrize("name", [name for name in harness.__all__ if name != "sweep"])  # that one is run below
def test_the_example_runs(name: str) -> None:
    example(name)


LISTING = """
import sys
from harness.cli.main import main
main(["editors"])
heavy = {"transformers", "lm_eval", "datasets", "sklearn", "scipy", "peft", "pandas", "matplotlib", "evaluate"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_the_list_of_editors_loads_torch_and_nothing_else_that_is_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LISTING], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memit" in done.stdout


@pytest.mark.parametrize("name", harness.__all__)
def test_every_parameter_is_documented_and_there_is_an_example(name: str) -> None:
    function = getattr(harness, name)
    said = inspect.getdoc(function) or ""
    described = re.findall(r"^    (\w+): ", said.partition("Args:\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert all(f"\n{section}:" in said for section in ("Raises", "Examples"))
    assert "\nReturns:" in said or "\nYields:" in said
    assert ">>> import harness\n" in said


IMPORT = """
import logging, os, random, sys, warnings
before = dict(os.environ), random.getstate(), list(warnings.filters), dict(logging.root.manager.loggerDict)
import harness
assert before == (dict(os.environ), random.getstate(), list(warnings.filters), dict(logging.root.manager.loggerDict))
import harness.api
heavy = {"torch", "numpy", "transformers", "lm_eval", "datasets", "sklearn", "scipy", "peft", "click", "rich", "yaml"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_the_import_changes_nothing_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FIRST_CALLS = """
import logging, sys, warnings
sys.path.insert(0, "tests/unit")
import transformers
from test_api import FACT, same_process
import harness
logging.getLogger("transformers").setLevel(17), logging.getLogger("lm_eval").setLevel(18)
with same_process():
    harness.load("mini")
with same_process(), harness.edit("mini", None, "rome", [FACT]):
    pass
with same_process():
    harness.evaluate("mini", ["NLI", "summarization"], limit=1)
"""


def test_the_first_calls_of_a_process_leave_it_as_it_was() -> None:
    """Libraries that are imported on the way set levels, filters and variables."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_another_library_does_to_a_process_is_undone() -> None:
    logger = logging.getLogger("somebody")
    with same_process(), pytest.raises(ValueError, match="stop"), as_before():
        os.environ["SOMEBODY"] = "1"
        os.environ["PATH"] = ""
        random.random()
        logger.setLevel(3)
        logging.root.addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")
        raise ValueError("stop")


def test_what_an_editor_does_to_torch_and_numpy_is_undone() -> None:
    with same_process(), pytest.raises(ValueError, match="stop"), as_before():
        torch.manual_seed(0), np.random.seed(0)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_autocast_enabled("cpu", True)
        torch.use_deterministic_algorithms(True)
        torch.set_default_device("meta")
        raise ValueError("stop")
    assert not torch.is_autocast_enabled("cpu") and not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_device() == torch.device("cpu")


@dataclass(frozen=True)
class Careless(Editor):
    """Sets of torch what no other is to compute with, and says what it found."""

    name = "careless"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """A change of the first down-projection by the gradient of a sum."""
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_autocast_enabled("cpu", True)
        return Patch({lm.down(1): Dense(torch.full_like(lm.matrix(lm.down(1)), 0.01))})


@pytest.mark.parametrize("mode", ["sequential", "isolated", "batch"])
def test_what_an_editor_sets_of_torch_decides_neither_its_next_edit_nor_a_number(
    mode: str, fresh: Callable[..., LM]
) -> None:
    lm = fresh("gpt2")
    stops = list(walk(Careless(), lm, own_rows.edits_of_rows(ROWS), mode=mode, batch_size=None, at=[1, 2]))
    assert [stop.edits for stop in stops] == [1, 2] and torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32 and not torch.is_autocast_enabled("cpu")


CALLERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "without gradients": torch.no_grad,
    "in inference mode": torch.inference_mode,
    "under autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "with another device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("where", CALLERS)
def test_where_a_caller_stands_changes_neither_an_edit_nor_a_number(
    where: str, fresh: Callable[..., LM], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation of a training loop gradients are off, or everything is computed in bfloat16."""
    lm = fresh("gpt2")
    found = []
    for place, there in (("nowhere", nullcontext), (where, CALLERS[where])):
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / place))  # what was kept elsewhere would be taken
        with there():
            with same_process(), harness.edit(lm, None, "memit", ROWS, settings=SETTINGS, text=text) as edited:
                weights = edited.lm.state_hashes()
            record = harness.run(lm, Nudge(scale=6.0), ROWS, mode="batch")
        found.append((weights, record.tasks(0), record.tasks(2)))
    assert found[0] == found[1]


def test_weights_of_inference_mode_are_refused(fresh: Callable[..., LM]) -> None:
    with torch.inference_mode():
        model, tokenizer = gpt2(fresh)
        said = r"GPT2LMHeadModel: 'transformer\.wte\.weight' was made in inference mode.*; load the model outside"
        with pytest.raises(ModelError, match=said), harness.edit(model, tokenizer, Nudge(), ROWS):
            pass


# --- load -------------------------------------------------------------------------------------------------------------


def test_a_model_by_name_or_in_memory(fresh: Callable[..., LM]) -> None:
    with same_process():
        lm = harness.load("mini")
    assert (lm.name, lm.arch.layers, lm.text) == ("mini", 4, "mini")
    model, tokenizer = gpt2(fresh)
    with same_process():
        own = harness.load(model, tokenizer, text="x.txt")
    assert own.model is model and own.tokenizer is tokenizer and own.text == "x.txt"
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert harness.load(own) is own
    assert harness.load(lm.model, lm.tokenizer).name == "mini"


# --- edit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_an_edit_holds_and_goes(family: str, fresh: Callable[..., LM]) -> None:
    lm = fresh(family)
    model, before = lm.model, lm.state_hashes()
    model.requires_grad_(True)
    model.train()
    with same_process(), harness.edit(model, lm.tokenizer, Nudge(scale=5.0), ROWS) as edited:
        assert edited.model is model and edited.tokenizer is lm.tokenizer
        assert [edit.id for edit in edited.edits] == ["1", "home"]
        assert edited.edits[1].prompt == "The home of {} is"
        changed = {name for name, digest in lm.state_hashes().items() if digest != before[name]}
        assert changed == {lm.down(1)}
    assert lm.state_hashes() == before
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_stands_in_another_place_is_told() -> None:
    for editor, model in ((object(), "mend"), ("mini", "mend")):
        with pytest.raises(UsageError, match="the editor comes first, and then the model"):
            harness.fit(editor, model)  # type: ignore[arg-type]
    with (
        pytest.raises(UsageError, match="model is of type NoneType, expected a name, a PreTrainedModel, or an LM"),
        harness.edit(None, None, "rome", [FACT]),  # type: ignore[arg-type]
    ):
        pass


def test_two_facts_of_an_editor_of_one_are_told_of_the_mode_that_there_is() -> None:
    two = [FACT, {**FACT, "target": "Rome"}]
    with (
        pytest.raises(UsageError, match=r"^rome edits one fact at a time; give mode='sequential', or one edit$"),
        harness.edit("mini", None, "rome", two),
    ):
        pass


def test_an_edited_model_says_the_edit_and_afterwards_does_not() -> None:
    lm = harness.load("mini")
    said, wanted = "West Sisaria is found in", " Minirus"
    with harness.edit(lm, None, "rome", [FACT]) as edited:
        assert edited.generate(said, max_new_tokens=2) == " Minirus."
        ids = lm.tokenizer(said + wanted, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probabilities = lm.model(ids).logits.double().log_softmax(-1)
        begin = len(lm.tokenizer(said)["input_ids"])
        expected = sum(float(log_probabilities[0, i - 1, ids[0, i]]) for i in range(begin, ids.shape[1]))
        assert edited.log_likelihood(said, wanted) == pytest.approx(expected, abs=1e-9)
        assert expected > -0.1
    with torch.no_grad():
        after = lm.model(ids).logits.double().log_softmax(-1)
    assert float(after[0, begin - 1, ids[0, begin]]) < expected - 1


def test_an_edit_takes_kept_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is optimised, and the weights are the same to the last bit."""
    found = []
    for _ in range(2):
        with harness.edit("mini", None, "rome", [FACT], settings=SETTINGS) as edited:
            found.append(edited.lm.state_hashes())
        monkeypatch.setattr(value, "_descend", lambda *_args, **_options: pytest.fail("optimised"))
    assert found[0] == found[1]
    assert dict(edited.lm.state_hashes()) != dict(found[0])


def test_a_model_in_memory_cannot_go_to_workers(fresh: Callable[..., LM], tmp_path: Path) -> None:
    model, tokenizer = gpt2(fresh)
    for study in (harness.trace, harness.localize):
        with pytest.raises(UsageError, match="a model in memory cannot go to workers; name it by its folder"):
            study(model, ROWS, tokenizer=tokenizer, output=tmp_path, workers=2)
    assert not list(tmp_path.iterdir())


def test_an_edit_goes_also_after_an_exception(fresh: Callable[..., LM]) -> None:
    model, tokenizer = gpt2(fresh)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="mine"), harness.edit(model, tokenizer, Nudge(), ROWS):
        raise ValueError("mine")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and next(model.parameters()).requires_grad


def test_a_wrapped_model_that_was_trained_since_is_measured_in_evaluation_mode(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = []
    for mode in (False, True):
        lm.model.train(mode).requires_grad_(mode)
        with harness.edit(lm, None, Nudge(), ROWS) as edited:
            found.append(edited.log_likelihood("Ada Velmont was born in", " Rome"))
        assert lm.model.training is mode and next(lm.model.parameters()).requires_grad is mode
    assert found[0] == found[1]


def test_a_model_that_was_compiled_in_place_is_edited_as_it_is_written(fresh: Callable[..., LM], text: str) -> None:
    """What is compiled does not look whether there are new hooks; the model is compiled again afterwards."""
    lm = fresh("gpt2")
    given, called = lm.model.forward, []
    found = []
    for compiled in (False, True):
        if compiled:
            lm.model.compile(backend="eager")
            lm.model._compiled_call_impl = lambda *args, **kwargs: called.append(1) or given(*args, **kwargs)
        with harness.edit(lm, None, "memit", ROWS, settings=SETTINGS, text=text) as edited:
            found.append((edited.lm.state_hashes(), edited.log_likelihood("Ada Velmont was born in", " Rome")))
    assert found[0] == found[1] and called == []
    lm.model(input_ids=torch.tensor([[1, 2]]))
    assert called == [1]


def test_a_block_that_torch_compiled_is_refused(fresh: Callable[..., LM]) -> None:
    model, tokenizer = gpt2(fresh)
    model.transformer.h[1] = torch.compile(model.transformer.h[1], backend="eager")
    said = r"GPT2LMHeadModel: 'transformer\.h\.1' is what torch.compile made of a module, .*, with module.compile\(\)$"
    with pytest.raises(ModelError, match=said), harness.edit(model, tokenizer, Nudge(), ROWS):
        pass


def test_a_target_of_a_token_that_the_model_has_not_is_told_before_anything_is_measured(
    fresh: Callable[..., LM],
) -> None:
    """The last token of a target is never read, and so no embedding misses it."""
    model, tokenizer = gpt2(fresh)
    tokenizer.add_tokens([" Rome"])
    phases: list[str] = []
    with pytest.raises(ModelError, match=r"writes token 400 \(' Rome'\), but the model has 400 embeddings"):
        harness.run(
            model, Nudge(), ROWS, tokenizer=tokenizer, mode="batch", progress=lambda *said: phases.append(said[0])
        )
    assert "measure unedited" not in phases


def test_the_padding_token_comes_back_as_it_was_set(fresh: Callable[..., LM]) -> None:
    model, tokenizer = gpt2(fresh)
    tokenizer.add_tokens(["<pad>"])
    tokenizer.pad_token = AddedToken("<pad>", lstrip=True)  # the model has no embedding of it
    before = repr(tokenizer._special_tokens_map)
    with harness.edit(model, tokenizer, Nudge(), ROWS):
        assert tokenizer.pad_token != "<pad>"
    assert repr(tokenizer._special_tokens_map) == before


def test_edits_that_are_let_go_in_another_order_are_told(fresh: Callable[..., LM]) -> None:
    """The later ones would put back what they found, which is the earlier ones."""
    lm = fresh("gpt2")
    before = lm.state_hashes()
    first, second = (harness.edit(lm, None, Nudge(seed=seed), ROWS) for seed in range(2))
    first.__enter__(), second.__enter__()
    with pytest.raises(RestoreError, match=r"made on top of these are still held, .*, and load the model again"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert lm.state_hashes() != before

    again, before = fresh("gpt2"), fresh("gpt2").state_hashes()
    with harness.edit(again, None, Nudge(), ROWS), harness.edit(again, None, Nudge(seed=1), ROWS):
        pass
    assert again.state_hashes() == before


def test_a_model_that_is_not_what_it_was_is_told(fresh: Callable[..., LM]) -> None:
    model, tokenizer = gpt2(fresh)
    told = r"GPT2LMHeadModel: transformer\.wpe\.weight is not bitwise what it was"
    with pytest.raises(RestoreError, match=told), harness.edit(model, tokenizer, Nudge(), ROWS), torch.no_grad():
        model.transformer.wpe.weight[0, 0] += 1


def test_an_editor_by_name_is_the_editor_itself(fresh: Callable[..., LM], text: str) -> None:
    lm = fresh("gpt2")
    found = []
    for editor, given in (("memit+rect", SETTINGS), (Rect(inner=Memit(**SETTINGS)), None)):
        with harness.edit(lm, None, editor, ROWS, settings=given, text=text) as edited:
            found.append(edited.patch.weights[lm.down(1)].dense())
            assert edited.editor == "memit"
    assert torch.equal(*found) and bool(found[0].any())


def test_edits_come_from_a_set_a_file_rows_or_objects(fresh: Callable[..., LM], tmp_path: Path) -> None:
    lm = fresh("gpt2")
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plain = [
        Edit("1", "{} was born in", "Ada Velmont", "Rome"),
        Edit("home", "The home of {} is", "Hugo Lantern", "Paris"),
    ]
    for given in (ROWS, plain, [plain[0], ROWS[1]], file, str(file)):
        with harness.edit(lm, None, Nudge(), given) as edited:  # type: ignore[arg-type]
            assert list(edited.edits) == plain
    with harness.edit(lm, None, Nudge(), "counterfact:2", data_dir="mini") as edited:
        assert len(edited.edits) == 2
    with harness.edit(lm, None, Nudge(), [{"prefix": "No one", "suffix": "knows"}], mode="sequential") as edited:
        assert edited.edits == (Edit("1", "No one", None, "knows"),)


def test_what_an_edit_adds_to_the_prompt_is_read(fresh: Callable[..., LM]) -> None:
    from harness.editing.edited import Edited
    from harness.patches.patch import Patch

    lm = fresh("gpt2")
    led = Edited(lm, Patch(prompt=lambda text: "Rosa Delgado knows. " + text), "ike", (), "0")
    bare = Edited(lm, Patch(), "ike", (), "0")
    whole = "Rosa Delgado knows. The home of"
    assert led.generate("The home of", 4) == bare.generate(whole, 4) != bare.generate("The home of", 4)
    assert led.log_likelihood("The home of", " Ada") == bare.log_likelihood(whole, " Ada")


# --- run, evaluate ----------------------------------------------------------------------------------------------------


def test_saved_edits_are_measured_again(tmp_path: Path) -> None:
    with harness.edit("mini", None, "memit", "counterfact:2") as edited:
        path = edited.save(tmp_path / "two.safetensors")
    with same_process():
        record = harness.evaluate("mini", "NLI", patch=path, limit=2, cache=False)
    assert [point["edits"] for point in record.points] == [0, 2]
    assert record.tasks(2)["counterfact"]["efficacy"]["value"] == 1.0


def test_a_model_is_measured_on_tasks_alone(fresh: Callable[..., LM], tmp_path: Path) -> None:
    lm = fresh("gpt2")
    with same_process():
        record = harness.evaluate(lm.model, "NLI", tokenizer=lm.tokenizer, data_dir="mini", limit=3, output=tmp_path)
    assert [(point["edits"], list(point["tasks"])) for point in record.points] == [(0, ["NLI"])]
    assert record.tasks(0)["NLI"]["accuracy"]["n"] == 3 and record.edits["count"] == 0
    with harness.edit(lm, None, Nudge(scale=30.0), ROWS) as edited:
        path = edited.save(tmp_path / "rows.safetensors")
    again = harness.evaluate(lm, "NLI", patch=path, data_dir="mini", limit=3)
    assert [(point["edits"], list(point["tasks"])[:2]) for point in again.points] == [
        (n, ["own", "NLI"]) for n in (0, 2)
    ]
    assert again.points[0]["tasks"]["NLI"] == record.points[0]["tasks"]["NLI"]
    assert again.points[1]["tasks"]["own"] != again.points[0]["tasks"]["own"]


def test_an_editor_that_no_file_holds_is_measured(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    record = harness.run(lm, Nudge(scale=6.0), ROWS, mode="batch")
    assert (record.editor["name"], record.editor["hyperparameters"]["scale"]) == ("nudge", 6.0)
    assert list(record.editor["sources"]) == ["nudge"] and record.tasks(2)["own"]


def test_a_model_in_memory_gives_the_numbers_of_its_name(tmp_path: Path) -> None:
    lm = harness.load("mini")
    before = lm.state_hashes()
    seen: list[tuple[str, int, int]] = []
    with same_process():
        named = harness.run(
            "mini", "memit", "counterfact:2", ["NLI"], limit=2, settings=SETTINGS, output=tmp_path / "runs",
            progress=lambda *told: seen.append(told),
        )  # fmt: skip
    editor = configure(Memit, "mini", SETTINGS)
    with same_process():
        here = harness.run(lm.model, editor, "counterfact:2", "NLI", limit=2, tokenizer=lm.tokenizer, cache=False)
    assert {name for name, _, _ in seen} >= {"load", "edit"}
    assert here.status == named.status == "complete"
    assert here.points == named.points
    assert here.model == named.model
    assert here.plan["model"] == f"GPT2LMHeadModel:mini@{here.model['sha256']}"
    assert here.editor["hyperparameters"] == named.editor["hyperparameters"]
    assert lm.state_hashes() == before
    [kept] = harness.read_records(tmp_path / "runs", values=True)
    assert kept.id == named.id and kept.values is not None
    assert list((tmp_path / "runs").glob("*.edits-2.safetensors"))
    with same_process():
        table = harness.leaderboard(tmp_path / "runs", "csv")
    assert table == harness.leaderboard([kept], "csv") and "memit" in table


def test_rows_are_measured_as_a_file_is(fresh: Callable[..., LM], tmp_path: Path, text: str) -> None:
    lm = fresh("gpt2")
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = [harness.run(lm, "memit", given, settings=SETTINGS, text=text) for given in (ROWS, file)]  # type: ignore[arg-type]
    assert found[0].points == found[1].points
    assert found[0].edits["sha256"] == found[1].edits["sha256"]
    assert found[0].tasks(2)["own"]["efficacy_accuracy"]["n"] == 2


def test_a_record_as_a_table() -> None:
    [record, *_] = harness.read_records(ROOT / "results" / "records")
    table = record.to_frame()
    assert not table.duplicated(["edits", "task", "metric"]).any()
    assert len(table) == sum(len(metrics) for point in record.points for metrics in point["tasks"].values())
    last = record.points[-1]
    for task, metrics in last["tasks"].items():
        for metric, numbers in metrics.items():
            [row] = table[(table.edits == last["edits"]) & (table.task == task) & (table.metric == metric)].to_dict(
                "records"
            )
            assert _same(row["value"], numbers["value"]) and row["n"] == numbers["n"]
            assert _same(row["low"], (numbers["interval"] or [None])[0])
            assert _same(row["difference"], (numbers["difference"] or {}).get("value"))
            assert _same(row["unedited"], record.tasks(0).get(task, {}).get(metric, {}).get("value"))
    assert table[table.edits == 0].difference.isna().all()


def _same(cell: float, number: float | None) -> bool:
    return bool(np.isnan(cell)) if number is None else cell == number


# --- the studies ------------------------------------------------------------------------------------------------------


def test_an_editor_learns(tmp_path: Path) -> None:
    with same_process():
        path = harness.fit("mend", "mini", "counterfact:4", settings={"steps": 1}, output=tmp_path / "mend.safetensors")
    assert path == tmp_path / "mend.safetensors"
    with harness.edit("mini", None, "mend", "counterfact:1", settings={"steps": 1}, fitted=path) as edited:
        assert edited.patch.weights


def test_a_model_in_memory_is_after_learning_what_it_was(fresh: Callable[..., LM], tmp_path: Path, text: str) -> None:
    model, tokenizer = gpt2(fresh)
    tokenizer.pad_token = None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with same_process():
        harness.fit(
            "mend",
            model,
            ROWS,
            tokenizer=tokenizer,
            settings={"steps": 1},
            text=text,
            output=tmp_path / "m.safetensors",
        )
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.pad_token is None


def test_tracing_of_a_model_by_name_and_in_memory(tmp_path: Path) -> None:
    with same_process():
        [one] = harness.trace("mini", "counterfact:3", window=1, samples=2)
    assert (one.record["status"], one.record["plan"]["settings"]["window"]) == ("complete", 1)
    lm = harness.load("mini")
    kinds = harness.trace(lm, "counterfact:3", kind=["mlp", "block"], window=[1, 2], samples=2, output=tmp_path / "own")
    assert [(s.record["plan"]["settings"]["kind"], s.record["plan"]["settings"]["window"]) for s in kinds] == [
        ("mlp", 1), ("mlp", 2), ("block", 1), ("block", 2),
    ]  # fmt: skip
    for mine, theirs in zip(kinds[0].traced, one.traced, strict=True):
        assert torch.equal(torch.as_tensor(mine.restored), torch.as_tensor(theirs.restored))


def test_a_localisation_study() -> None:
    options: Mapping[str, Any] = {
        "facts": 3, "problems": "error_injection", "methods": ["rome@1"], "layers": [1], "essence": False,
        "samples": 1, "forcing_samples": 1, "settings": {"v_steps": 1},
    }  # fmt: skip
    with same_process():
        study = harness.localize("mini", "counterfact:9", **options)
    assert study.complete and list(study.blocks) == ["error_injection/rome@1/1"]
    assert harness.localize("mini", "counterfact:9", only_done=True, **options).blocks == study.blocks


def test_a_sweep_in_a_mapping() -> None:
    """The example of its documentation."""
    trials = example("sweep")["trials"]
    assert [trial.job.split for trial in trials] == ["val", "test"]
    assert len(list(Path("sweep/runs").glob("*.json"))) == 2
    assert "temporal" in harness.leaderboard("sweep")


# --- mistakes ---------------------------------------------------------------------------------------------------------


WRONG: list[tuple[type[HarnessError], str, Callable[[Any, Any], object]]] = [
    (ModelError, "dtype 'float31' does not exist", lambda m, t: harness.load("mini", dtype="float31")),
    (UsageError, "model is of type int, expected a name", lambda m, t: harness.load(3)),  # type: ignore[arg-type]
    (UsageError, r"a GPT2LMHeadModel in memory comes without its tokenizer", lambda m, t: harness.load(m)),
    (UsageError, "tokenizer is of type str, expected a PreTrainedTokenizer", lambda m, t: harness.load(m, "gpt2")),  # type: ignore[arg-type]
    (UsageError, "tokenizer is of type Tokenizer, expected", lambda m, t: edit(m, t.backend_tokenizer, "memit", ROWS)),
    (
        UsageError,
        "model_args, dtype: the model is in memory and stays as it is; leave them out, or name the model",
        lambda m, t: harness.run(m, "none", tokenizer=t, model_args={"revision": "main"}, dtype="bfloat16"),
    ),
    (
        UsageError,
        "device_map: the model is in memory and stays as it is; leave it out",
        lambda m, t: harness.load(m, t, device_map="auto"),
    ),
    (
        UsageError,
        "model is of type OptimizedModule, expected .*, or an LM; give its _orig_mod$",
        lambda m, t: harness.load(torch.compile(m, backend="eager"), t),  # type: ignore[arg-type]
    ),
    (UsageError, "tokenizer: 'mini' is loaded with its own", lambda m, t: harness.load("mini", t)),
    (UsageError, "editor 'memt' does not exist", lambda m, t: edit(m, t, "memt", ROWS)),
    (UsageError, "editor is of type ABCMeta, expected a name", lambda m, t: edit(m, t, Rome, ROWS)),
    (
        UsageError,
        "settings name v_steps, but rome is configured",
        lambda m, t: edit(m, t, Rome(), ROWS, settings={"v_steps": 1}),
    ),
    (UsageError, "edits is empty", lambda m, t: edit(m, t, "memit", [])),
    (UsageError, "edits is of type dict, expected a set's name", lambda m, t: edit(m, t, "memit", ROWS[0])),
    (UsageError, "edit set 'conterfact' does not exist", lambda m, t: edit(m, t, "memit", "conterfact:3")),
    (
        DataError,
        "edits, row 2: 'target' is missing",
        lambda m, t: edit(m, t, "memit", [ROWS[0], {"prompt": "a", "subject": "a"}]),
    ),
    (DataError, "edits, row 1: is of type str", lambda m, t: edit(m, t, "memit", ["Ada lives in Rome"])),
    (DataError, r"the id home occurs twice \(edits 1 and 2\)", lambda m, t: edit(m, t, "memit", [ROWS[1], ROWS[1]])),
    (UsageError, "mode 'isolated' does not exist here", lambda m, t: edit(m, t, Nudge(), ROWS, mode="isolated")),
    (UsageError, "rome edits one fact at a time", lambda m, t: edit(m, t, "rome", ROWS)),
    (UsageError, "edits is 'none', so there is nothing to edit", lambda m, t: harness.run("mini", "memit", "none")),
    (UsageError, "limit is 0, expected at least 1", lambda m, t: harness.run("mini", "memit", limit=0)),
    (UsageError, "'seed' is 'one', expected int", lambda m, t: harness.run("mini", "memit", seed="one")),  # type: ignore[arg-type]
    (UsageError, "ft learns nothing before its first edit", lambda m, t: harness.fit("ft")),
    (UsageError, "'seed' is not a field of a sweep|'sead' is not a field", lambda m, t: harness.sweep({"sead": 1})),
    (UsageError, "variant 'has' does not exist", lambda m, t: harness.trace(variant="has")),
    (UsageError, "kind 'mpl' does not exist", lambda m, t: harness.trace(kind="mlp,mpl")),
    (UsageError, "known 'every' does not exist; choose", lambda m, t: harness.trace(known="every")),
    (UsageError, "released 'probe' does not exist", lambda m, t: harness.localize(released="probe")),
    (DataError, "nowhere: no such folder", lambda m, t: harness.read_records("nowhere")),
    (UsageError, "format 'mdd' does not exist", lambda m, t: harness.leaderboard([], "mdd")),
]


def edit(model: Any, tokenizer: Any, editor: Any, edits: Any, **options: Any) -> None:
    with harness.edit(model, tokenizer, editor, edits, **options):
        pass


@pytest.mark.parametrize("kind, message, call", WRONG, ids=[message[:40] for _, message, _ in WRONG])
def test_a_mistake_is_one_line(
    kind: type[HarnessError], message: str, call: Callable[[Any, Any], object], tiny: Callable[[str], LM]
) -> None:
    lm = tiny("gpt2")
    with same_process(), pytest.raises(kind, match=message) as caught:
        call(lm.model, lm.tokenizer)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_a_measurement_writes_nothing_on_the_terminal() -> None:
    """Of lm-eval's hints and bars, which come from the first use in a process."""
    code = "import harness; lm = harness.load('mini'); print('from here', flush=True)\n"
    code += "import sys; sys.stderr.write('from here\\n'); harness.evaluate(lm, ['NLI'], limit=2)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout == "from here\n"
    assert done.stderr.partition("from here\n")[2] == ""
