"""Editors by name: a file of ``editors/``, an installed package, a path; several joined by ``+``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from harness.editing.editor import Editor, Wrapper
from harness.editing.editor_files import installed_editors, shipped_editors
from harness.editing.hyperparameters import cast, hints, settable
from harness.errors import UsageError, near
from harness.models.lm import LM
from harness.models.naming import model_key

__all__ = ["Recipe", "compose", "configure", "editor_names", "find", "require_trusted"]


def editor_names() -> list[str]:
    """The editors that can be named: those that ship, and those of installed packages."""
    return sorted(shipped_editors().keys() | {point.name for point in installed_editors()})


def find(name: str) -> type[Editor]:
    """The class of an editor: a file of ``editors/``, an installed package's entry point, or ``path/to/file.py``.

    Raises:
        UsageError: there is none or there are two, it cannot be imported, or the file holds none.
    """
    if name.endswith(".py"):
        return _only_editor(_import_file(Path(name)), name)
    points = [point for point in installed_editors() if point.name == name]
    shipped = name in shipped_editors()
    if len(points) + shipped > 1:
        packages = " and of ".join(str(point.dist.name if point.dist else point.value) for point in points)
        raise UsageError(f"there are two editors '{name}', one of {packages}; uninstall it or give it another name")
    if points:
        return _loaded(points[0])
    if not shipped:
        raise UsageError(f"editor '{name}' does not exist{near(name, editor_names())}; `harness editors` lists them")
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
    chosen = {**cls.presets.get(model_key(model), {}), **settings}
    wanted, known = hints(cls), settable(cls)
    for key, value in chosen.items():
        if key not in known:
            raise UsageError(f"{cls.name} has no hyperparameter '{key}'{near(key, known)}")
        chosen[key] = cast(cls.name, key, value, wanted=wanted[key])
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

    @classmethod
    def of(cls, editor: Editor) -> Recipe:
        """The classes of an editor that has been configured already."""
        parts = [type(editor)]
        while isinstance(editor, Wrapper):
            editor = editor.inner
            parts.insert(0, type(editor))
        return cls("+".join(part.name for part in parts), tuple(parts))

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
        *,
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
        return self.configured(lm.name, settings, seed=seed, prepare=prepare)

    def configured(
        self,
        model: str,
        settings: Mapping[str, object],
        *,
        seed: int,
        prepare: Callable[[Editor], Editor] = lambda method: method,
    ) -> Editor:
        """As :meth:`build`, for a model of which no more than its name is known.

        Args:
            model: the name of the model, for presets.
            settings: hyperparameters, as ``field`` or as ``part.field``.
            seed: of everything random.
            prepare: what is done to the method before it is wrapped.

        Raises:
            UsageError: as :meth:`build`.
        """
        shared = self._shared(settings)
        built: Editor | None = None
        for cls in self.parts:
            seeded = {"seed": seed} if "seed" in settable(cls) else {}
            built = configure(cls, model, {**seeded, **shared[cls.name]}, built)
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
            wrappers = ", ".join(n for n in editor_names() if issubclass(find(n), Wrapper))
            raise UsageError(f"{cls.name} cannot wrap {found[0].name}; what can stand after a + is {wrappers}")
    if len({cls.name for cls in found}) < len(found):
        raise UsageError(f"'{name}' names a part twice; name each once")
    return Recipe(name, tuple(found))


def require_trusted(name: str, where: str | Path, trusted: bool) -> None:
    """Refuse an editor that a file names by the path of its code, which runs when the editor is looked up.

    Args:
        name: the editor, as the file writes it.
        where: the file.
        trusted: whether the user has said that its code may run.

    Raises:
        UsageError: it may not.
    """
    own = [part for part in _parts(name) if part.endswith(".py")]
    if own and not trusted:
        raise UsageError(
            f"{where}: names the editor '{own[0]}', whose code would run; read it, and then give --trust-code (in "
            f"Python trust_code=True) or type --editor {own[0]}"
        )


def _parts(name: str) -> list[str]:
    """The parts of a name, left to right; the path of a file may hold a plus of its own."""
    pieces, found = name.split("+"), []
    while pieces:
        sizes = (n for n in range(len(pieces), 0, -1) if Path("+".join(pieces[:n]).strip()).is_file())
        size = next(sizes, 1)
        found.append("+".join(pieces[:size]).strip())
        pieces = pieces[size:]
    return found


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
        if issubclass(member, Editor) and member.__module__ == module.__name__ and not member.__name__.startswith("_")
    ]
    public = [cls for cls in own if not inspect.isabstract(cls)]
    if own and not public:
        lacks = ", ".join(sorted(own[0].__abstractmethods__))
        raise UsageError(
            f"{name}: {own[0].__name__} does not say {lacks}(); write it as harness.editor_kit.Editor does"
        )
    if len(public) != 1:
        raise UsageError(
            f"{name}: holds {len(public)} editors, expected one public subclass of harness.editing.editor.Editor"
        )
    if not isinstance(getattr(public[0], "name", None), str):
        raise UsageError(f"{name}: {public[0].__name__} has no name; write name = '{Path(name).stem}' in the class")
    return public[0]
