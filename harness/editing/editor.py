"""What an editor is: the one contract that every method of model editing fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

from torch import Tensor

from harness.editing.directions import LIKELIHOOD, Direction
from harness.editing.edit import Edit, Example
from harness.editing.hyperparameters import hints, plain, require_range, require_some, settable
from harness.editing.made import finished_patch, made, made_each
from harness.errors import ModelError, UsageError
from harness.io.progress import bar
from harness.io.torch_process import plain_torch
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Editor", "Learned", "Pass", "Wrapper", "own_memory"]

Memory = TypeVar("Memory")


def own_memory(memory: object, kind: type[Memory]) -> Memory | None:
    """The memory of an earlier operation, None before the first.

    Args:
        memory: what an operation is given.
        kind: what the editor remembers.

    Raises:
        UsageError: it is that of another editor.
    """
    if memory is not None and not isinstance(memory, kind):
        raise UsageError(f"the memory is a {type(memory).__name__} of another editor; start again without memory")
    return memory


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
        needs_old: whether every edit must name the old answer (``target_old``, or ``against`` where it compares two).
        batch: whether one call of :meth:`edit` takes many edits at once by the method's own definition.
        random: whether the result depends on a seed.
        directions: what an edit may want of this method (:mod:`harness.editing.directions`).
        family: the one family of models that the method is made for, as :attr:`harness.models.lm.LM.family` names it;
            None for any.
        exceptions: promises of :mod:`harness.editing.promises` that the method cannot keep by its nature, each with
            the reason.
        presets: hyperparameters for one model, by the model's name, each with its source in a comment.
        reference: whether it is no method, but shows what a metric can reach, or notices; it stands on no board.

    Raises:
        UsageError: a hyperparameter is out of its range.
    """

    name: ClassVar[str]
    seams: ClassVar[frozenset[str]] = frozenset({"weights"})
    needs_subject: ClassVar[bool] = False
    needs_old: ClassVar[bool] = False
    batch: ClassVar[bool] = True
    random: ClassVar[bool] = False
    directions: ClassVar[frozenset[Direction]] = LIKELIHOOD
    family: ClassVar[str | None] = None
    exceptions: ClassVar[Mapping[str, str]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key, wanted in hints(type(self)).items():
            if key in settable(type(self)):
                require_range(self.name, key, getattr(self, key), wanted=wanted)
                if getattr(self, key) != settable(type(self))[key].default:
                    require_some(self.name, key, getattr(self, key))

    @property
    def root(self) -> Editor:
        """The method itself, without its wrappers."""
        return self

    def places(self, lm: LM) -> Sequence[str]:
        """The modules that it will read or write on a model, as far as they are known before it edits.

        Raises:
            ModelError: the model has no such layer, or the layer no such module.
        """
        return ()

    def edited_modules(self, lm: LM) -> Sequence[str]:
        """The modules whose weights it will write on a model, or those around them; by default all its places.

        Raises:
            ModelError: the model has no such layer.
        """
        return self.places(lm)

    def require(self, lm: LM) -> None:
        """See that the method can edit a model.

        Raises:
            ModelError: it is made for another family of models, or a module that it needs is not there.
        """
        for name in self.places(lm):
            lm.module(name)
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
        found = []
        for edit in edits:
            with plain_torch():  # what one edit sets of torch is not to decide the next
                found.append(self.edit(lm, [edit], None))
        return found

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
        return {name: plain(getattr(self, name)) for name in settable(type(self))}


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

    def layout(self, lm: LM) -> Mapping[str, Tensor] | None:
        """The tensors that :meth:`fit` finds, without their numbers (on the device ``meta``); a file must hold those.

        None, the default, where their shapes depend on the examples.
        """
        return None

    def progress(self, lm: LM, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """A bar for what is learned, on a terminal only; tell it how much is done, and a word about it."""
        return bar(f"{self.name} learns to edit {lm.name}", total)


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

    def require_weights(self, does: str, example: str) -> None:
        """See that the editor at the bottom changes weights.

        Args:
            does: what this wrapper does with a change of weights, for the error.
            example: an editor that it can wrap.

        Raises:
            UsageError: it does not.
        """
        if "weights" not in self.root.seams:
            seams = ", ".join(sorted(self.root.seams))
            raise UsageError(
                f"{self.name} {does} a change of weights, but {self.root.name} changes {seams} only; wrap an editor of "
                f"weights, for example {example}+{self.name}"
            )

    def increment(self, lm: LM, patch: Patch) -> Patch:
        """What becomes of one increment; ``lm`` carries the earlier ones. By default the increment itself."""
        return patch

    def fit(self, lm: LM, train: Sequence[Example]) -> Editor:
        """The wrapper around the fitted editor."""
        return replace(self, inner=self.inner.fit(lm, train))

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """The inner increment, changed."""
        return self.increment(lm, made(self.inner, lm, edits, memory=memory))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """The inner patches, each changed as an increment of its own."""
        return [self.increment(lm, patch) for patch in made_each(self.inner, lm, edits)]

    def passes(self, lm: LM, edits: Sequence[Edit]) -> Iterator[Pass]:
        """The inner changes, each changed as an increment of its own."""
        for done in self.inner.passes(lm, edits):
            yield replace(done, patch=self.increment(lm, done.patch))

    def finish(self, lm: LM, total: Patch) -> Patch:
        """What the inner editor makes of the sum."""
        return finished_patch(self.inner, lm, total)

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
