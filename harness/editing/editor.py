"""What an editor is given, what it is examined on, and what it must return.

An editor sees :class:`Edit`; the examination uses :class:`Probe`. They are different types so that no editor can see
the exam. What an editor may learn from before its first edit (:class:`Example`) comes from another split.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, ClassVar

from torch import Tensor

from harness.editing.directions import DIRECTIONS, LIKELIHOOD, PAIRED, Direction
from harness.errors import DataError, ModelError, UsageError, near
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = [
    "Count",
    "Edit",
    "Editor",
    "Example",
    "Learned",
    "NotNegative",
    "Pass",
    "Positive",
    "Probe",
    "Range",
    "Recipe",
    "Share",
    "Wrapper",
    "compose",
    "configure",
    "find",
    "names",
    "settable",
]

SLOT = "{}"


@dataclass(frozen=True)
class Range:
    """What a number may be; stands in a field's type: ``lr: Annotated[float, Range(0, open=True)]``.

    Attributes:
        low: the least value.
        high: the greatest value.
        open: whether ``low`` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        least = "" if math.isinf(self.low) else f"{'above' if self.open else 'at least'} {self.low:g}"
        most = "" if math.isinf(self.high) else f"at most {self.high:g}"
        return " and ".join(filter(None, (least, most)))


Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]


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
        direction: what is wanted of the target, see :mod:`harness.editing.directions`; by default that it becomes
            likelier.
        against: the continuation that the target is compared with, where the direction compares two.

    Raises:
        DataError: the fields do not fit together.
    """

    id: str
    prompt: str
    subject: str | None
    target: str
    target_old: str | None = None
    relation: str | None = None
    direction: Direction = "likelihood"
    against: str | None = None

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
        self._check_direction()

    def _check_direction(self) -> None:
        if self.direction not in DIRECTIONS:
            known = ", ".join(sorted(DIRECTIONS))
            raise DataError(f"edit {self.id}: direction '{self.direction}' does not exist; choose {known}")
        paired = self.direction in PAIRED
        if paired and not (self.against or "").strip():
            raise DataError(f"edit {self.id}: {self.direction} compares two continuations; give 'against', the second")
        if not paired and self.against is not None:
            raise DataError(
                f"edit {self.id}: {self.direction} has one continuation, but 'against' is '{self.against}'; leave it "
                f"out, or choose {' or '.join(sorted(PAIRED))}"
            )
        if paired and self.rival == self.continuation:
            raise DataError(f"edit {self.id}: target and against are both '{self.target}'; give two continuations")

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt if self.subject is None else self.prompt.replace(SLOT, self.subject)

    @property
    def continuation(self) -> str:
        """The target with the space that separates it from the prompt."""
        return _spaced(self.target)

    @property
    def rival(self) -> str | None:
        """The continuation that the target is compared with, with its space; None where there is none."""
        return None if self.against is None else _spaced(self.against)


def _spaced(text: str) -> str:
    return text if text.startswith(" ") else f" {text}"


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
class Example:
    """A case with its answers, which an editor may learn from; the exam is of another split.

    Attributes:
        edit: the edit.
        probes: what its examination would ask.
    """

    edit: Edit
    probes: tuple[Probe, ...] = ()

    def of(self, kind: str) -> list[Probe]:
        """The probes of one kind."""
        return [probe for probe in self.probes if probe.kind == kind]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a method has come to after one pass over the edits.

    Attributes:
        patch: the whole change so far.
        loss: the mean loss of the edits before their updates in this pass; None where there is no such thing.
    """

    patch: Patch
    loss: float | None = None


@dataclass(frozen=True)
class Editor(ABC):
    """A method of model editing; the fields of a child are its hyperparameters.

    Class attributes:
        name: the name on the command line; the name of the file.
        seams: where the method changes a model: weights, activations, prompt, logits.
        needs_subject: whether every edit must name its subject.
        batch: whether one call of :meth:`edit` takes many edits at once by the method's own definition.
        random: whether the result depends on a seed.
        directions: what an edit may want of this method (:mod:`harness.editing.directions`).
        family: the one family of models that the method is made for, as :attr:`harness.models.lm.LM.family` names it;
            None for
            any.
        exceptions: promises of :mod:`harness.editing.promises` that the method cannot keep by its nature, each with
            the reason.
        presets: hyperparameters for one model, by the model's name, each with its source in a comment.

    Raises:
        UsageError: a hyperparameter is out of its range.
    """

    name: ClassVar[str]
    seams: ClassVar[frozenset[str]] = frozenset({"weights"})
    needs_subject: ClassVar[bool] = False
    batch: ClassVar[bool] = True
    random: ClassVar[bool] = False
    directions: ClassVar[frozenset[Direction]] = LIKELIHOOD
    family: ClassVar[str | None] = None
    exceptions: ClassVar[Mapping[str, str]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    def __post_init__(self) -> None:
        for key, wanted in _hints(type(self)).items():
            if key in settable(type(self)):
                _require_range(self.name, key, getattr(self, key), wanted)
                if getattr(self, key) != settable(type(self))[key].default:
                    _require_some(self.name, key, getattr(self, key))

    @property
    def root(self) -> Editor:
        """The method itself, without its wrappers."""
        return self

    def require(self, lm: LM) -> None:
        """See that the method can edit a model.

        Raises:
            ModelError: it is made for another family of models.
        """
        if self.family not in (None, lm.family):
            raise ModelError(
                f"{self.name} edits {self.family} models, and {lm.name} is a {lm.family}; give another model "
                "(`harness models` lists those that ship), or choose another editor"
            )

    def fit(self, lm: LM, train: Sequence[Example]) -> Editor:
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

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The change after each pass over the edits, of a method that makes several; by default the one change.

        The model must be unchanged whenever the next one is asked for; what is yielded may be held in between.
        """
        yield Pass(self.edit(lm, edits))

    def finish(self, lm: LM, total: Patch) -> Patch:
        """Shape the sum of all increments just before it is measured; never fed back.

        Args:
            lm: the unedited model.
            total: the sum.
        """
        return total

    def label(self) -> str:
        """The name under which results are reported; says so where a setting leaves the published method."""
        return self.name

    def notes(self, lm: LM) -> Mapping[str, object]:
        """What a record shall say of this editor on this model beyond its hyperparameters (context templates)."""
        return {}

    def hyperparameters(self) -> dict[str, object]:
        """The fields, as plain values."""
        return {name: _plain(getattr(self, name)) for name in settable(type(self))}


@dataclass(frozen=True)
class Learned(Editor):
    """An editor that learns before its first edit.

    Attributes:
        learned: what :meth:`fit` found, by name; None before. No hyperparameter.
    """

    learned: Mapping[str, Tensor] | None = field(
        default=None, kw_only=True, repr=False, compare=False, metadata={"hidden": True}
    )

    def knowledge(self, lm: LM) -> Mapping[str, Tensor]:
        """What was learned.

        Raises:
            UsageError: nothing was; says the command.
        """
        if self.learned is None:
            raise UsageError(
                f"{self.name} must learn before its first edit; run `harness fit --editor {self.name} "
                f"--model {lm.name}` with the same --set options"
            )
        return self.learned


@dataclass(frozen=True)
class Wrapper(Editor):
    """An editor that changes what another one returns: each increment, the sum once, or both.

    A child that needs more for an increment than the patch changes :meth:`edit`, :meth:`edit_each` and :meth:`passes`
    instead of :meth:`increment`, all three.

    Attributes:
        inner: the editor that is wrapped. No hyperparameter.
    """

    inner: Editor = field(metadata={"hidden": True})

    @property
    def root(self) -> Editor:
        """The method at the bottom."""
        return self.inner.root

    def increment(self, lm: LM, patch: Patch) -> Patch:
        """What becomes of one increment; ``lm`` carries the earlier ones. By default the increment itself."""
        return patch

    def fit(self, lm: LM, train: Sequence[Example]) -> Editor:
        """The wrapper around the fitted editor."""
        return replace(self, inner=self.inner.fit(lm, train))

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The inner increment, changed."""
        return self.increment(lm, self.inner.edit(lm, edits, memory))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """The inner patches, each changed as an increment of its own."""
        return [self.increment(lm, patch) for patch in self.inner.edit_each(lm, edits)]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The inner changes, each changed as an increment of its own."""
        for done in self.inner.passes(lm, edits):
            yield replace(done, patch=self.increment(lm, done.patch))

    def finish(self, lm: LM, total: Patch) -> Patch:
        """What the inner editor makes of the sum."""
        return self.inner.finish(lm, total)

    def label(self) -> str:
        """The inner label and one's own name."""
        return f"{self.inner.label()}+{self.name}"

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The inner notes."""
        return self.inner.notes(lm)

    def hyperparameters(self) -> dict[str, object]:
        """Those of the inner editor, and one's own as ``name.field``."""
        own = {f"{self.name}.{key}": value for key, value in super().hyperparameters().items()}
        return {**self.inner.hyperparameters(), **own}


def settable(cls: type[Editor]) -> dict[str, Field[object]]:
    """The hyperparameters of an editor: its fields but for what it wraps or has learned."""
    return {f.name: f for f in fields(cls) if not f.metadata.get("hidden")}


def names() -> list[str]:
    """The editors that can be named: those that ship, and those of installed packages."""
    return sorted(_shipped() | {point.name for point in entry_points(group="harness.editors")})


def find(name: str) -> type[Editor]:
    """The class of an editor: a file of ``editors/``, an installed package's entry point, or ``path/to/file.py``.

    Raises:
        UsageError: there is none or there are two, it cannot be imported, or the file holds none.
    """
    if name.endswith(".py"):
        return _only_editor(_import_file(Path(name)), name)
    points = [point for point in entry_points(group="harness.editors") if point.name == name]
    shipped = name in _shipped()
    if len(points) + shipped > 1:
        packages = " and of ".join(str(point.dist.name if point.dist else point.value) for point in points)
        raise UsageError(f"there are two editors '{name}', one of {packages}; uninstall it or give it another name")
    if points:
        return _loaded(points[0])
    if not shipped:
        raise UsageError(f"editor '{name}' does not exist{near(name, names())}; `harness editors` lists them")
    return _only_editor(importlib.import_module(f"editors.{name}"), name)


def configure(cls: type[Editor], model: str, settings: Mapping[str, object], inner: Editor | None = None) -> Editor:
    """An editor with its preset for a model, changed by the user's settings.

    Args:
        cls: the editor's class.
        model: the model's name.
        settings: hyperparameters by name.
        inner: what is wrapped, where the class is a :class:`Wrapper`.

    Raises:
        UsageError: a setting does not exist, has the wrong type or is out of range.
    """
    chosen = {**cls.presets.get(model.rstrip("/").rpartition("/")[2].lower(), {}), **settings}
    hints, known = _hints(cls), settable(cls)
    for key, value in chosen.items():
        if key not in known:
            raise UsageError(f"{cls.name} has no hyperparameter '{key}'{near(key, known)}")
        chosen[key] = _cast(cls.name, key, value, hints[key])
    return cls(**chosen) if inner is None else cls(inner=inner, **chosen)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Recipe:
    """An editor that has been named but not yet configured.

    Attributes:
        name: as the user wrote it.
        parts: the classes: first the method, then the wrappers around it, from the inside out.
    """

    name: str
    parts: tuple[type[Editor], ...]

    @property
    def cls(self) -> type[Editor]:
        """The class of the method itself."""
        return self.parts[0]

    @property
    def method(self) -> str:
        """The name of the method itself, as :func:`find` takes it."""
        return _parts(self.name)[0]

    @property
    def sources(self) -> dict[str, str]:
        """The sha256 of each part that does not ship: of the file that holds its class, by the part's name."""
        own = {cls.name: Path(inspect.getfile(cls)) for cls in self.parts if not cls.__module__.startswith("editors.")}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in own.items()}

    def build(
        self,
        lm: LM,
        settings: Mapping[str, object],
        seed: int,
        prepare: Callable[[Editor], Editor] = lambda method: method,
    ) -> Editor:
        """The configured editor; ``seed`` fills the fields of that name unless the settings do.

        Args:
            lm: the model.
            settings: hyperparameters, as ``field`` or as ``part.field``.
            seed: of everything random.
            prepare: what is done to the method before it is wrapped (to load what it has learned).

        Raises:
            UsageError: a setting does not exist, is of several parts, has the wrong type or is out of range.
        """
        shared = self._shared(settings)
        built: Editor | None = None
        for cls in self.parts:
            seeded = {"seed": seed} if "seed" in settable(cls) else {}
            built = configure(cls, lm.name, {**seeded, **shared[cls.name]}, built)
            built = prepare(built) if cls is self.cls else built
        assert built is not None
        return built

    def _shared(self, settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
        """The settings of each part, by the part's name."""
        found: dict[str, dict[str, object]] = {cls.name: {} for cls in self.parts}
        for key, value in settings.items():
            part, dot, name = str(key).rpartition(".")
            owners = [part] if dot else [cls.name for cls in self.parts if name in settable(cls)]
            if dot and part not in found:
                raise UsageError(f"'{key}': {'+'.join(found)} has no part '{part}'{near(part, found)}")
            if len(owners) > 1 and name != "seed":
                raise UsageError(f"'{name}' is a hyperparameter of {' and of '.join(owners)}; write {owners[0]}.{name}")
            for owner in owners or [self._owner(name)]:
                found[owner][name] = value
        return found

    def _owner(self, name: str) -> str:
        """Where a field that no part has is refused, with the near names of all."""
        known = {field for cls in self.parts for field in settable(cls)}
        parts = "+".join(cls.name for cls in self.parts)
        raise UsageError(f"{parts} has no hyperparameter '{name}'{near(name, known)}")


def compose(name: str) -> Recipe:
    """The editor that a name such as ``memit`` or ``memit+rect+prune`` stands for; wrappers apply left to right.

    Raises:
        UsageError: a part does not exist, or stands where it cannot.
    """
    parts = _parts(name)
    found = [find(part) for part in parts]
    if issubclass(found[0], Wrapper):
        raise UsageError(
            f"{found[0].name} wraps another editor; name that one first, for example memit+{found[0].name}"
        )
    for cls in found[1:]:
        if not issubclass(cls, Wrapper):
            wrappers = ", ".join(n for n in names() if issubclass(find(n), Wrapper))
            raise UsageError(f"{cls.name} cannot wrap {found[0].name}; what can stand after a + is {wrappers}")
    if len({cls.name for cls in found}) < len(found):
        raise UsageError(f"'{name}' names a part twice; name each once")
    return Recipe(name, tuple(found))


def _parts(name: str) -> list[str]:
    """The parts of a name, left to right; the path of a file may hold a plus of its own."""
    pieces, found = name.split("+"), []
    while pieces:
        sizes = (n for n in range(len(pieces), 0, -1) if Path("+".join(pieces[:n]).strip()).is_file())
        size = next(sizes, 1)
        found.append("+".join(pieces[:size]).strip())
        pieces = pieces[size:]
    return found


def _plain(value: object) -> object:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@functools.cache
def _hints(cls: type[Editor]) -> dict[str, object]:
    return typing.get_type_hints(cls, include_extras=True)


def _options(wanted: object) -> tuple[object, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)


def _bare(option: object) -> object:
    """A type without its ranges."""
    return option.__origin__ if hasattr(option, "__metadata__") else option  # type: ignore[attr-defined]


def _require_range(editor: str, key: str, value: object, wanted: object) -> None:
    """Refuse numbers outside the ranges in a field's type, also inside a tuple."""
    for option in _options(wanted):
        if isinstance(value, tuple) and typing.get_origin(option) is tuple:
            for item in value:
                _require_range(editor, key, item, typing.get_args(option)[0])
        for limit in getattr(option, "__metadata__", ()):
            if isinstance(limit, Range) and isinstance(value, int | float) and not limit.holds(value):
                raise UsageError(f"{editor}: '{key}' is {value!r}, expected {limit}")


def _require_some(editor: str, key: str, value: object) -> None:
    """Refuse what no default of a field can mean: a number without end, a list of nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{editor}: '{key}' is {value!r}, expected a finite number")
    if value == ():
        raise UsageError(f"{editor}: '{key}' is an empty list, expected at least one; leave it out for the default")


def _cast(editor: str, key: str, value: object, wanted: object) -> object:
    """The value as the field's type; a list becomes a tuple, an int a float, a lone value a tuple of one."""
    for option in map(_bare, _options(wanted)):
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
    expected = " or ".join(map(_said, _options(wanted)))
    raise UsageError(f"{editor}: '{key}' is {value!r}, expected {expected}; for example --set {key}=VALUE")


def _said(option: object) -> str:
    """A type, as an error names it."""
    limits = [str(limit) for limit in getattr(option, "__metadata__", ())]
    bare = _bare(option)
    if typing.get_origin(bare) is tuple:
        return f"a list of {_said(typing.get_args(bare)[0])}"
    if typing.get_origin(bare) is typing.Literal:
        return " or ".join(map(str, typing.get_args(bare)))
    return " ".join(["null" if bare is type(None) else getattr(bare, "__name__", str(bare)), *limits])


def _shipped() -> set[str]:
    path = importlib.import_module("editors").__path__
    return {module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")}


def _import_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a Python file that holds one Editor")
    # Two files of one name in two folders are two modules.
    name = f"harness_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _unusable(f"{path}: ", error, f"`python {path}` shows where") from error
    return module


def _loaded(point: EntryPoint) -> type[Editor]:
    """What an entry point names."""
    where = f"the entry point '{point.name} = {point.value}' of harness.editors: "
    try:
        cls = point.load()
    except Exception as error:
        raise _unusable(where, error, "mend or uninstall its package") from error
    if not (isinstance(cls, type) and issubclass(cls, Editor)):
        raise UsageError(f"{where}it is not a subclass of harness.editing.editor.Editor; name the class")
    if getattr(cls, "name", None) != point.name:
        raise UsageError(f"{where}the editor's own name is '{getattr(cls, 'name', None)}'; give both the same name")
    return cls


def _unusable(where: str, error: Exception, cure: str) -> UsageError:
    """Code of another's that fails while it is imported."""
    return UsageError(f"{where}cannot be imported ({type(error).__name__}: {error}); {cure}")


def _only_editor(module: types.ModuleType, name: str) -> type[Editor]:
    # For Python 3.10 an alias such as tuple[int, int] is a class too.
    classes = [member for member in vars(module).values() if not isinstance(member, types.GenericAlias)]
    own = [
        member
        for member in filter(inspect.isclass, classes)
        if issubclass(member, Editor) and not inspect.isabstract(member) and member.__module__ == module.__name__
    ]
    public = [cls for cls in own if not cls.__name__.startswith("_")]
    if len(public) != 1:
        raise UsageError(
            f"{name}: holds {len(public)} editors, expected one public subclass of harness.editing.editor.Editor"
        )
    if not isinstance(getattr(public[0], "name", None), str):
        raise UsageError(f"{name}: {public[0].__name__} has no name; write name = '{Path(name).stem}' in the class")
    return public[0]
