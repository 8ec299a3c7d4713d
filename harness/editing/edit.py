"""What an editor is given, and what it is examined on.

An editor sees :class:`Edit`; the examination uses :class:`Probe`. They are different types so that no editor can see
the exam. What an editor may learn from before its first edit (:class:`Example`) comes from another split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.editing.directions import DIRECTIONS, PAIRED, Direction
from harness.editing.join import joined
from harness.errors import DataError

__all__ = ["SLOT", "Edit", "Example", "Probe", "require_distinct"]


SLOT = "{}"
"""Where the subject stands in a prompt."""


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
        join: what stands between prompt and target; None for what the text would have, a space as a rule
            (:mod:`harness.editing.join`).
        slot: the character at which the subject's slot stands, where the prompt holds other braces that are text; None
            for its only ``{}``.
        case: the case that it belongs to, where one holds several edits; None where it is a case of its own.
        before: what stands in front of the prompt and is no part of it, such as the opening of a chat's turn.
        after: what stands between the prompt and the target, such as the end of that turn and the opening of the
            next; where it is not empty, it is all that stands there.

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
    join: str | None = None
    slot: int | None = None
    case: str | None = None
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        slots = self.prompt.count(SLOT) if self.slot is None else int(self.prompt.startswith(SLOT, self.slot))
        if not self.target.strip():
            raise DataError(f"edit {self.id}: the target is empty; give the text that the model shall say")
        if self.subject is not None and not self.subject.strip():
            raise DataError(f"edit {self.id}: the subject is empty; name what the edit is about")
        if self.subject is not None and slots != 1:
            raise DataError(
                f"edit {self.id}: the prompt '{self.prompt}' has {slots} slots {{}}, expected one for the subject"
            )
        if self.join is not None and self.join.strip():
            raise DataError(
                f"edit {self.id}: join is '{self.join}', expected white space or nothing; put other text in the prompt"
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
    def belongs_to(self) -> str:
        """The id of its case; its own where it is a case of its own."""
        return self.id if self.case is None else self.case

    @property
    def begins(self) -> int:
        """The character of the text at which the subject begins.

        Raises:
            DataError: the edit has no subject.
        """
        if self.subject is None:
            raise DataError(f"edit {self.id}: it has no subject; give rows of prompt, subject and target")
        return len(self.before) + self._at

    @property
    def _at(self) -> int:
        """The character of the prompt at which the subject's slot stands."""
        return self.prompt.index(SLOT) if self.slot is None else self.slot

    @property
    def question(self) -> str:
        """The prompt with the subject in its slot, without what stands around it."""
        if self.subject is None:
            return self.prompt
        return self.prompt[: self._at] + self.subject + self.prompt[self._at + len(SLOT) :]

    @property
    def text(self) -> str:
        """What the model reads before the target: the question, and what stands around it."""
        return self.before + self.question + self.after

    @property
    def statement(self) -> str:
        """The question and the target as one text, without what stands around them."""
        return self.question + joined(self.question, self.target, self.join)

    def behind(self, template: str) -> str:
        """What the model reads where the question stands in a context template (``{}``), inside of its turn."""
        return self.before + template.replace(SLOT, self.question) + self.after

    def begins_behind(self, template: str) -> int:
        """The character at which the subject begins in what :meth:`behind` gives."""
        return template.index(SLOT) + self.begins

    def says(self, text: str) -> str:
        """A text as it continues the prompt, with what stands between them."""
        return joined(self.text, text, "" if self.after else self.join)

    @property
    def continuation(self) -> str:
        """The target as it continues the prompt, with the space that separates them, if any."""
        return self.says(self.target)

    @property
    def rival(self) -> str | None:
        """The continuation that the target is compared with, as it continues the prompt; None where there is none."""
        return None if self.against is None else self.says(self.against)


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


def require_distinct(edits: Iterable[Edit], where: str) -> None:
    """See that no two edits have one id.

    Args:
        edits: the edits of one set, in the order of its rows.
        where: what an error names.

    Raises:
        DataError: an id occurs twice; says which edits, counted from 1.
    """
    seen: dict[str, int] = {}
    for number, edit in enumerate(edits, start=1):
        before = seen.setdefault(edit.id, number)
        if before != number:
            raise DataError(
                f"{where}: the id {edit.id} occurs twice (edits {before} and {number}); give each row an id of its own"
            )
