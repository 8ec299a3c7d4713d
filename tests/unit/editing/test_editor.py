"""Edits, editors and their hyperparameters: ranges, presets, settings of parts, wrappers, where editors come from."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import torch

from editors.companion import Companion
from editors.ft import FineTuning
from editors.kn import KnowledgeNeurons
from harness.editing import registry
from harness.editing.edit import Edit, Example, Probe
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.editor_files import installed_editors
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range, Share, settable
from harness.editing.registry import Recipe, compose, configure, editor_names, find
from harness.errors import DataError, UsageError
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch


@dataclass(frozen=True)
class Method(Editor):
    """Every kind of field."""

    name = "method"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": {"lr": 0.25, "layers": (17,)},
        "bad": {"lr": -1.0},
    }

    lr: Positive = 0.5
    decay: NotNegative = 0.0
    kept: Share = 0.4
    steps: Count = 20
    bound: Positive | None = None
    layers: tuple[Annotated[int, Range(0)], ...] | None = None
    law: tuple[float, ...] = ()
    form: Literal["low", "dense"] = "low"
    how: Literal["a"] | None = None
    whiten: bool = True
    text: str | None = None
    seed: int = 0

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        if not edits:
            return Patch(memory=memory)
        change = LowRank(torch.ones(32, 1) * self.lr, torch.ones(1, 64))
        return Patch({lm.down(0): change}, memory=[*(memory or []), len(edits)])  # type: ignore[misc]

    def finish(self, lm: LM, total: Patch) -> Patch:
        return replace(total, weights={name: delta * 2.0 for name, delta in total.weights.items()})

    def notes(self, lm: LM) -> dict[str, object]:
        return {"seen": self.seed}


@dataclass(frozen=True)
class Scale(Wrapper):
    """Scales each increment."""

    name = "scale"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"gpt2-xl": {"factor": 3.0}}

    factor: Positive = 2.0
    seed: int = 0

    def increment(self, lm: LM, patch: Patch) -> Patch:
        return replace(patch, weights={name: delta * self.factor for name, delta in patch.weights.items()})


@dataclass(frozen=True)
class Shrink(Wrapper):
    """Scales the sum."""

    name = "shrink"

    factor: Share = 0.5

    def finish(self, lm: LM, total: Patch) -> Patch:
        total = super().finish(lm, total)
        return replace(total, weights={name: delta * self.factor for name, delta in total.weights.items()})


@dataclass(frozen=True)
class Student(Learned):
    """Learns how many examples there were."""

    name = "student"

    rate: Positive = 1.0

    def fit(self, lm: LM, train: Sequence[Example]) -> Editor:
        return replace(self, learned={"count": torch.tensor(float(len(train)))})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        size = self.knowledge(lm)["count"] * self.rate
        return Patch({lm.down(0): LowRank(torch.ones(32, 1) * size, torch.ones(1, 64))})


RECIPE = Recipe("method+scale+shrink", (Method, Scale, Shrink))


def entry(lm: LM, patch: Patch) -> float:
    """What a patch adds to one number."""
    return float(patch.weights[lm.down(0)].dense()[0, 0])


# --- edits ------------------------------------------------------------------------------------------------------------


def test_an_edit_as_text() -> None:
    edit = Edit("1", "The home of {} is", "Ada", "Rome")
    assert (edit.text, edit.continuation) == ("The home of Ada is", " Rome")
    plain = Edit("2", "It {rains} in", None, " Rome")
    assert (plain.text, plain.continuation) == ("It {rains} in", " Rome")


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "message"),
    [
        ("{} is", "Ada", " ", "edit 7: the target is empty; give the text"),
        ("{} is", "", "x", "edit 7: the subject is empty; name what"),
        ("Ada is", "Ada", "x", "edit 7: the prompt 'Ada is' has 0 slots {}, expected one for the subject"),
        ("{} and {}", "Ada", "x", "edit 7: the prompt '{} and {}' has 2 slots {}, expected one"),
    ],
)
def test_edits_that_cannot_be(prompt: str, subject: str, target: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        Edit("7", prompt, subject, target)


def test_the_probes_of_one_kind() -> None:
    probes = tuple(Probe("1", kind, f"{kind}?", "a", "b") for kind in ("rewrite", "paraphrase", "rewrite"))
    example = Example(Edit("1", "{} is", "Ada", "Rome"), probes)
    assert example.of("rewrite") == [probes[0], probes[2]]
    assert example.of("neighborhood") == []


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "said"),
    [
        (Range(0, open=True), [1e-9, 5, math.inf], [0, -1, math.nan], "above 0"),
        (Range(0), [0, 1e9], [-1e-9, math.nan], "at least 0"),
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1], "at least 0 and at most 1"),
        (Range(high=3), [-math.inf, 3], [3.1], "at most 3"),
    ],
)
def test_what_lies_in_a_range(limits: Range, inside: list[float], outside: list[float], said: str) -> None:
    assert [limits.holds(x) for x in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)
    assert str(limits) == said


OUTSIDE = [
    ("lr", 0.0, "above 0"),
    ("lr", math.nan, "above 0"),
    ("decay", -1e-3, "at least 0"),
    ("kept", 1.5, "at least 0 and at most 1"),
    ("steps", 0, "at least 1"),
    ("bound", -2.0, "above 0"),
    ("layers", (2, -1), "at least 0"),
]


@pytest.mark.parametrize(("key", "value", "said"), OUTSIDE)
def test_a_number_out_of_its_range_is_refused_wherever_it_comes_from(
    tiny: Callable[[str], LM], key: str, value: object, said: str
) -> None:
    number = value[1] if isinstance(value, tuple) else value
    message = re.escape(f"method: '{key}' is {number!r}, expected {said}")
    for make in (
        lambda: Method(**{key: value}),  # type: ignore[arg-type]
        lambda: replace(Method(), **{key: value}),
        lambda: configure(Method, "x", {key: value}),
        lambda: RECIPE.build(tiny("gpt2"), {key: value}, seed=0),
        lambda: RECIPE.build(tiny("gpt2"), {f"method.{key}": value}, seed=0),
    ):
        with pytest.raises(UsageError, match=message):
            make()


WITHOUT_EFFECT = [
    (
        FineTuning,
        {"wd_power_law": (0.5, 0.1), "weight_decay": 0.1},
        "ft: 'weight_decay' has no effect beside 'wd",
    ),
    (KnowledgeNeurons, {"paraphrases": ("Where is {}?",)}, "kn: 'paraphrases' has no effect without --set refine=true"),
    (
        Companion,
        {"patch": "a.safetensors", "lr": 0.1},
        "companion: 'lr' has no effect on the change that 'patch'",
    ),
    (
        Companion,
        {"patch": "a.safetensors", "kl": 0.0},
        "companion: 'kl' has no effect on the change that 'patch'",
    ),
]


@pytest.mark.parametrize(("method", "settings", "said"), WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(method: type[Editor], settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}") as told:
        configure(method, "x", settings)
    assert "\n" not in str(told.value)
    *kept, _ = settings.items()
    configure(method, "x", dict(kept))


def test_a_preset_out_of_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"method: 'lr' is -1\.0, expected above 0"):
        configure(Method, "owner/bad", {})


def test_a_wrapper_has_ranges_too() -> None:
    with pytest.raises(UsageError, match=r"shrink: 'factor' is 2\.0, expected at least 0 and at most 1"):
        Shrink(Method(), factor=2.0)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("lr", 1, 1.0),
        ("bound", 3, 3.0),
        ("bound", None, None),
        ("layers", [3, 4], (3, 4)),
        ("layers", 3, (3,)),
        ("layers", None, None),
        ("law", [1, 2.5], (1.0, 2.5)),
        ("form", "dense", "dense"),
        ("how", "a", "a"),
        ("how", None, None),
        ("whiten", False, False),
        ("text", "5", "5"),
    ],
)
def test_a_value_takes_the_type_of_its_field(key: str, value: object, found: object) -> None:
    chosen = getattr(configure(Method, "x", {key: value}), key)
    assert chosen == found
    assert type(chosen) is type(found)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", "fast", "float above 0"),
        ("lr", True, "float above 0"),
        ("lr", None, "float above 0"),
        ("steps", 2.5, "int at least 1"),
        ("steps", True, "int at least 1"),
        ("bound", "x", "float above 0 or null"),
        ("layers", "two", "a list of int at least 0 or null"),
        ("layers", [1, None], "a list of int at least 0 or null"),
        ("form", "wide", "low or dense"),
        ("how", "b", "a or null"),
        ("whiten", 1, "bool"),
        ("text", 5, "str or null"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object, expected: str) -> None:
    shown = value if key != "layers" or isinstance(value, list) else "two"
    form = "[VALUE]" if key == "layers" else "VALUE"
    message = f"method: '{key}' is {shown!r}, expected {expected}; for example --set {key}={form}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        configure(Method, "x", {key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "method+scale+shrink has no hyperparameter 'step' (did you mean steps, text, seed?)"),
        ({"factr": 3}, "has no hyperparameter 'factr' (did you mean factor?)"),
        ({"factor": 3}, "'factor' is a hyperparameter of scale and of shrink; write scale.factor"),
        ({"shrink.facto": 0.1}, "shrink has no hyperparameter 'facto' (did you mean factor?)"),
        ({"shrik.factor": 0.1}, "'shrik.factor': method+scale+shrink has no part 'shrik' (did you mean shrink?)"),
        ({"scale.lr": 0.1}, "scale has no hyperparameter 'lr' (there are: factor, seed)"),
        ({"method.factor": 0.1}, "method has no hyperparameter 'factor'"),
        ({7: 1}, "has no hyperparameter '7'"),
        ({".lr": 1}, "'.lr': method+scale+shrink has no part ''"),
        ({"": 1}, "has no hyperparameter ''"),
    ],
)
def test_settings_that_no_part_has(tiny: Callable[[str], LM], settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        RECIPE.build(tiny("gpt2"), settings, seed=0)


@pytest.mark.parametrize("key", ["inner", "scale.inner", "learned", "student.learned", "name", "presets"])
def test_what_is_no_hyperparameter_cannot_be_set_and_is_not_shown(tiny: Callable[[str], LM], key: str) -> None:
    recipe = Recipe("student+scale", (Student, Scale))
    with pytest.raises(UsageError, match="has no hyperparameter '"):
        recipe.build(tiny("gpt2"), {key: None}, seed=0)
    assert set(settable(Student)) == {"rate"}
    assert set(settable(Scale)) == {"factor", "seed"}
    assert set(recipe.build(tiny("gpt2"), {}, seed=0).hyperparameters()) == {"rate", "scale.factor", "scale.seed"}


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_settings_reach_their_parts(tiny: Callable[[str], LM]) -> None:
    settings = {"lr": 0.1, "method.steps": 3, "scale.factor": 5, "shrink.factor": 0.25}
    assert RECIPE.build(tiny("gpt2"), settings, seed=4).hyperparameters() == {
        "lr": 0.1, "decay": 0.0, "kept": 0.4, "steps": 3, "bound": None, "layers": None, "law": [], "form": "low",
        "how": None, "whiten": True, "text": None, "seed": 4,
        "scale.factor": 5.0, "scale.seed": 4, "shrink.factor": 0.25,
    }  # fmt: skip


def test_the_seed_is_everybodys_unless_a_setting_says_whose(tiny: Callable[[str], LM]) -> None:
    def seeds(settings: dict[str, object]) -> tuple[object, object]:
        made = RECIPE.build(tiny("gpt2"), settings, seed=4).hyperparameters()
        return made["seed"], made["scale.seed"]

    assert seeds({}) == (4, 4)
    assert seeds({"seed": 9}) == (9, 9)
    assert seeds({"scale.seed": 9}) == (4, 9)


@pytest.mark.parametrize("model", ["gpt2-xl", "openai-community/gpt2-xl", "some/folder/GPT2-XL/"])
def test_a_preset_is_found_by_the_last_part_of_the_models_name(tiny: Callable[[str], LM], model: str) -> None:
    made = RECIPE.build(replace(tiny("gpt2"), name=model), {"layers": [3]}, seed=0).hyperparameters()
    assert (made["lr"], made["layers"], made["scale.factor"], made["shrink.factor"]) == (0.25, [3], 3.0, 0.5)
    assert configure(Method, "gpt2-xl-2", {}) == configure(Method, "x", {}) == Method()


def test_what_is_done_to_the_method_is_done_before_it_is_wrapped(tiny: Callable[[str], LM]) -> None:
    seen: list[Editor] = []

    def prepare(method: Editor) -> Editor:
        seen.append(method)
        return replace(method, lr=0.125)  # type: ignore[call-arg]

    built = RECIPE.build(tiny("gpt2"), {}, seed=0, prepare=prepare)
    assert seen == [Method()]
    assert built.root == Method(lr=0.125)


# --- wrappers ---------------------------------------------------------------------------------------------------------


def test_a_chain_knows_its_root_its_label_and_its_notes(tiny: Callable[[str], LM]) -> None:
    built = RECIPE.build(tiny("gpt2"), {}, seed=3)
    assert isinstance(built, Shrink)
    assert isinstance(built.inner, Scale)
    assert built.root is built.inner.inner
    assert (built.label(), built.notes(tiny("gpt2"))) == ("method+scale+shrink", {"seen": 3})
    assert RECIPE.cls is Method


def test_increments_and_sums_pass_through_the_chain_once(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    built = RECIPE.build(lm, {"lr": 1.0, "scale.factor": 3.0, "shrink.factor": 0.5}, seed=0)
    first = built.edit(lm, edits[:1])
    assert entry(lm, first) == 3.0  # the increment: scaled, neither shrunk nor finished
    second = built.edit(lm, edits[1:], first.memory)
    assert second.memory == [1, 2]  # the inner editor's own state, handed through both wrappers
    assert [entry(lm, patch) for patch in built.edit_each(lm, edits)] == [3.0] * 3
    assert entry(lm, built.finish(lm, first + second)) == 6.0 * 2.0 * 0.5  # the method's finish, then the wrapper's
    assert built.edit(lm, []).empty


def test_a_wrapper_fits_what_it_wraps(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    lm = tiny("gpt2")
    built = Recipe("student+scale", (Student, Scale)).build(lm, {}, seed=0)
    with pytest.raises(UsageError, match="student must learn before its first edit; run `harness fit --editor student"):
        built.edit(lm, edits)
    fitted = built.fit(lm, [Example(edit) for edit in edits])
    assert entry(lm, fitted.edit(lm, edits)) == 6.0
    assert isinstance(built.root, Student)
    assert built.root.learned is None  # fitting gives another editor
    assert fitted.root == built.root  # what was learned is no setting
    assert "learned" not in repr(fitted)


def test_an_editor_that_learns_nothing_is_fitted_already(tiny: Callable[[str], LM]) -> None:
    assert Method().fit(tiny("gpt2"), []) == Method()


# --- names ------------------------------------------------------------------------------------------------------------

WRAPPER = '''
"""DOUBLE: twice the change."""
from __future__ import annotations
from dataclasses import dataclass, replace
from harness.editing.editor import Wrapper
from harness.editing.hyperparameters import Positive
from harness.patches.patch import Patch

@dataclass(frozen=True)
class Double(Wrapper):
    name = "double"
    factor: Positive | None = 2.0

    def increment(self, lm, patch):
        return replace(patch, weights={name: delta * self.factor for name, delta in patch.weights.items()})
'''


def test_files_can_be_composed_on_either_side(
    tiny: Callable[[str], LM], edits: list[Edit], nudge: str, tmp_path: Path
) -> None:
    lm, wrapper = tiny("gpt2"), tmp_path / "double.py"
    wrapper.write_text(WRAPPER)
    recipe = compose(f"{nudge}+{wrapper}")
    assert [cls.name for cls in recipe.parts] == ["nudge", "double"]
    built = recipe.build(lm, {"double.factor": 4, "scale": 0.5}, seed=7)
    assert built.label() == "nudge+double"
    assert built.hyperparameters() == {"scale": 0.5, "layer": 1, "form": "low", "seed": 7, "double.factor": 4.0}
    alone = compose(nudge).build(lm, {"scale": 0.5}, seed=7).edit(lm, edits)
    change = built.edit(lm, edits).weights[lm.down(1)].dense()
    assert torch.allclose(change, 4 * alone.weights[lm.down(1)].dense())
    assert [cls.name for cls in compose(f"none + {wrapper}").parts] == ["none", "double"]


def test_a_file_whose_name_has_a_plus(nudge: str, tmp_path: Path) -> None:
    path = tmp_path / "a+b.py"
    path.write_text(Path(nudge).read_text())
    assert compose(str(path)).cls.name == "nudge"


def test_two_files_of_one_name_are_two_editors(tmp_path: Path) -> None:
    for folder, default in (("a", 2.0), ("b", 8.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(WRAPPER.replace("2.0", str(default)))
    first, second = (find(str(tmp_path / folder / "mine.py")) for folder in "ab")
    made = [configure(cls, "x", {}, Method()).hyperparameters()["double.factor"] for cls in (first, second)]
    assert made == [2.0, 8.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rmoe", "editor 'rmoe' does not exist (did you mean"),
        ("rome+rmoe", "editor 'rmoe' does not exist"),
        ("rome+", "editor '' does not exist"),
        ("rome+memit", "memit cannot wrap rome; what can stand after a + is "),
        ("{wrapper}", "double wraps another editor; name that one first, for example memit+double"),
        ("rome+{wrapper}+{wrapper}", "names a part twice; name each once"),
    ],
)
def test_names_that_cannot_be_composed(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "double.py").write_text(WRAPPER)
    with pytest.raises(UsageError, match=re.escape(message)):
        compose(name.format(wrapper=tmp_path / "double.py"))


WITHOUT_EDIT = """
from harness.editor_kit import Editor


class Mute(Editor):
    name = "mute"
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "mine.py: holds 0 editors, expected one public subclass of harness.editing.editor.Editor"),
        (WRAPPER.replace('name = "double"', ""), "mine.py: Double has no name; write name = 'mine' in the class"),
        ("x = = 1", "mine.py: cannot be imported (SyntaxError: invalid syntax (mine.py, line 1)); `python "),
        ("import no_such_module", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        (WITHOUT_EDIT, "mine.py: Mute does not say edit(); write it as harness.editor_kit.Editor does"),
        (WRAPPER.replace("frozen=True", ""), "cannot be imported (TypeError: cannot inherit non-frozen dataclass"),
    ],
)
def test_files_that_hold_no_usable_editor(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        find(str(tmp_path / "mine.py"))
    assert str(caught.value).startswith(str(tmp_path))


# --- installed packages -----------------------------------------------------------------------------------------------


def test_what_is_installed_while_a_process_runs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = installed_editors()
    assert installed_editors() is before  # metadata is not read again where nothing changed
    about = tmp_path / "late-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: late\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[harness.editors]\nlate = editors.none:Unchanged\n")
    assert {point.name for point in installed_editors()} - {point.name for point in before} == {"late"}
    shutil.rmtree(about)
    assert installed_editors() == before


def test_entry_points_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, value: str) -> None:
        point = EntryPoint(name, value, "harness.editors")
        monkeypatch.setattr(registry, "installed_editors", lambda point=point: [point])

    for name, value, message in (
        ("gone", "no_such_module:X", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module');"),
        (
            "gone",
            "harness.editing.editor:X",
            "cannot be imported (AttributeError: module 'harness.editing.editor' has no attribute",
        ),
        (
            "wrong",
            "harness.editing.editor:Edit",
            "it is not a subclass of harness.editing.editor.Editor; name the class",
        ),
        ("mine", "editors.none:Unchanged", "the editor's own name is 'none'; give both the same name"),
        (
            "rome",
            "editors.none:Unchanged",
            "there are two editors 'rome', one of editors.none:Unchanged; uninstall it or",
        ),
    ):
        install(name, value)
        assert name in editor_names()
        with pytest.raises(UsageError, match=re.escape(message)):
            find(name)


# --- what ships -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", editor_names())
def test_what_ships_can_be_configured_for_every_model_that_it_has_a_preset_for(name: str) -> None:
    cls = find(name)
    assert cls.name == name
    inner = find("memit")() if issubclass(cls, Wrapper) else None
    for model in ("any", *cls.presets):
        made = configure(cls, f"owner/{model}", {}, inner)
        assert model == model.lower()
        shown = made.hyperparameters()
        assert len(shown) == len(settable(cls)) + (0 if inner is None else len(inner.hyperparameters()))
