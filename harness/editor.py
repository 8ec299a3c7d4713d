"""What an editor is given, what it is examined on, and what it must return.

An editor sees :class:`Edit`; the examination uses :class:`Probe`. They are different types so that no editor can see
the exam.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

from harness.errors import DataError, UsageError, near
from harness.lm import LM
from harness.patch import Patch

__all__ = ["Edit", "Editor", "Probe", "Recipe", "compose", "configure", "find", "names"]

SLOT = "{}"


@dataclass(frozen=True)
class Edit:
    """One thing that the model shall say from now on.

    Attributes:
        id: the identifier of the record, unique within one edit set.
        prompt: the text to continue, with one ``{}`` where the subject stands; without a slot if there is no subject.
        subject: whom or what the edit is about; None for a plain prefix.
        target: the wanted continuation, without a leading space.
        target_old: what the model is expected to say before the edit, if known.
        relation: the relation that the edit belongs to, if known.

    Raises:
        DataError: the fields do not fit together.
    """

    id: str
    prompt: str
    subject: str | None
    target: str
    target_old: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        slots = self.prompt.count(SLOT)
        if not self.target.strip():
            raise DataError(f"edit {self.id}: the target is empty; give the text that the model shall say")
        if self.subject is not None and not self.subject.strip():
            raise DataError(f"edit {self.id}: the subject is empty; name what the edit is about")
        if self.subject is not None and slots != 1:
            raise DataError(
                f"edit {self.id}: the prompt '{self.prompt}' has {slots} slots {{}}, expected one for the subject"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt if self.subject is None else self.prompt.replace(SLOT, self.subject)

    @property
    def continuation(self) -> str:
        """The target with the space that separates it from the prompt."""
        return self.target if self.target.startswith(" ") else f" {self.target}"


@dataclass(frozen=True)
class Probe:
    """One question of the exam.

    Attributes:
        edit: the id of the edit it belongs to.
        kind: rewrite, paraphrase, neighborhood, attribute, or generation.
        prompt: the text to continue.
        target_new: the continuation that the edit wants, without a leading space.
        target_true: the continuation that was right before the edit.
    """

    edit: str
    kind: str
    prompt: str
    target_new: str
    target_true: str


@dataclass(frozen=True)
class Editor(ABC):
    """A method of model editing; the fields of a child are its hyperparameters.

    Class attributes:
        name: the name on the command line; the name of the file.
        needs_subject: whether every edit must name its subject.
        batch: whether one call of :meth:`edit` takes many edits at once by the method's own definition.
        presets: hyperparameters for one model, by the model's name, each with its source in a comment.
    """

    name: ClassVar[str]
    needs_subject: ClassVar[bool] = False
    batch: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    def fit(self, lm: LM, train: Sequence[Edit]) -> Editor:
        """Learn whatever must be learned before the first edit; returns the fitted editor."""
        return self

    @abstractmethod
    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The increment that makes the model say all the edits; ``lm`` already carries the earlier ones.

        Args:
            lm: the model, unchanged when this returns.
            edits: the edits of one operation.
            memory: what this editor returned in ``Patch.memory`` the last time, None at first.
        """

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent patches, one for each edit; by default one after the other."""
        return [self.edit(lm, [edit], None) for edit in edits]

    def finish(self, lm: LM, total: Patch) -> Patch:
        """Shape the sum of all increments just before it is measured; never fed back."""
        return total

    def label(self) -> str:
        """The name under which results are reported; says so where a setting leaves the published method."""
        return self.name

    def notes(self, lm: LM) -> Mapping[str, object]:
        """What a record shall say of this editor on this model beyond its hyperparameters (context templates)."""
        return {}

    def hyperparameters(self) -> dict[str, object]:
        """The fields, as plain values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def names() -> list[str]:
    """The editors that can be named: those that ship, and those of installed packages."""
    shipped = {m.name for m in pkgutil.iter_modules(_package_path()) if not m.name.startswith("_")}
    return sorted(shipped | {point.name for point in entry_points(group="harness.editors")})


def find(name: str) -> type[Editor]:
    """The class of an editor: a file of ``editors/``, an installed package's entry point, or ``path/to/file.py``.

    Raises:
        UsageError: there is none, or the file holds none.
    """
    if name.endswith(".py"):
        return _only_editor(_import_file(Path(name)), name)
    for point in entry_points(group="harness.editors"):
        if point.name == name:
            return _checked(point.load(), name)
    if name not in names():
        raise UsageError(f"editor '{name}' does not exist{near(name, names())}; `harness editors` lists them")
    return _only_editor(importlib.import_module(f"editors.{name}"), name)


def configure(cls: type[Editor], model: str, settings: Mapping[str, object]) -> Editor:
    """An editor with its preset for a model, changed by the user's settings.

    Raises:
        UsageError: a setting does not exist or has the wrong type.
    """
    chosen = {**cls.presets.get(model.rstrip("/").rpartition("/")[2].lower(), {}), **settings}
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key, value in chosen.items():
        if key not in known:
            raise UsageError(f"{cls.name} has no hyperparameter '{key}'{near(key, known)}")
        chosen[key] = _cast(cls.name, key, value, hints[key])
    return replace(cls(), **chosen)


@dataclass(frozen=True)
class Recipe:
    """An editor that has been named but not yet configured.

    Attributes:
        name: as the user wrote it.
        cls: the editor's class.
    """

    name: str
    cls: type[Editor]

    def build(self, lm: LM, settings: Mapping[str, object], seed: int) -> Editor:
        """The configured editor; ``seed`` fills the field of that name unless the settings do."""
        seeded = {"seed": seed, **settings} if any(f.name == "seed" for f in fields(self.cls)) else settings
        return configure(self.cls, lm.name, seeded)


def compose(name: str) -> Recipe:
    """The editor that a name such as ``memit`` stands for.

    Raises:
        UsageError: there is none.
    """
    return Recipe(name, find(name))


def _plain(value: object) -> object:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _cast(editor: str, key: str, value: object, wanted: object) -> object:
    """The value as the field's type; a list becomes a tuple, an int a float, a lone value a tuple of one."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (bool, str, int) and type(value) is option:
            return value
        if typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            values = value if isinstance(value, list | tuple) else [value]
            if all(v is not None for v in values):
                return tuple(_cast(editor, key, v, item) for v in values)
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
    expected = wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
    raise UsageError(f"{editor}: '{key}' is {value!r}, expected {expected}; for example --set {key}=VALUE")


def _package_path() -> list[str]:
    return list(importlib.import_module("editors").__path__)


def _import_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a Python file that holds one Editor")
    name = f"harness_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _only_editor(module: types.ModuleType, name: str) -> type[Editor]:
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Editor) and not inspect.isabstract(member) and member.__module__ == module.__name__
    ]
    public = [cls for cls in own if not cls.__name__.startswith("_")]
    if len(public) != 1:
        raise UsageError(f"{name}: holds {len(public)} editors, expected one public subclass of harness.editor.Editor")
    return public[0]


def _checked(cls: object, name: str) -> type[Editor]:
    if not (isinstance(cls, type) and issubclass(cls, Editor)):
        raise UsageError(f"the entry point '{name}' of harness.editors is not a subclass of harness.editor.Editor")
    return cls
