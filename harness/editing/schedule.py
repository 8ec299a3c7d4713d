"""In which portions edits are made, and where a run stops to measure.

What is counted are cases: as a rule one edit each; where several belong together, they are made together.

``isolated``: each edit alone on the unedited model, or so many cases at once as are asked for. ``batch``: all edits in
one operation; measured at several counts, each count is an operation of its own on the unedited model. ``sequential``:
operation after operation on the weights that the earlier ones left; a partial last operation is kept.

The three modes of Gu et al. 2024 (arXiv 2401.04700) are names for these: ``instance-sequential`` is sequential, one
edit at a time; ``batch-single`` is batch; ``batch-sequential`` is sequential, ``batch_size`` edits at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

from harness.editing import made as edited
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Wrapper
from harness.editing.registry import editor_names, find
from harness.errors import UsageError
from harness.io.nobody import tell_nobody
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

__all__ = [
    "MODES",
    "PUBLISHED",
    "Begun",
    "Stop",
    "cases_of",
    "contradicting_cases",
    "default_mode",
    "duplicates",
    "increment",
    "operations",
    "plain_mode",
    "require_able",
    "require_at_once",
    "require_editable",
    "stops",
    "walk",
]

MODES = ("isolated", "batch", "sequential")
PUBLISHED = {"instance-sequential": "sequential", "batch-single": "batch", "batch-sequential": "sequential"}
"""The names of Gu et al. for our modes."""

_TOLD = 5
"""How many sentences about repeated edits a reader is given."""


@dataclass(frozen=True, eq=False)
class Stop:
    """A place where a run measures.

    Attributes:
        edits: how many cases have been made, which is the number of edits where a case is one.
        patches: one patch that holds them all, or in isolated editing one for each case, or for so many at once.
        latest: the positions of the cases of the last operation.
        partial: in isolated editing, where it is asked for, one patch for each case that holds its first edits alone.
    """

    edits: int
    patches: Sequence[Patch]
    latest: range = range(0)
    partial: Sequence[Patch] = ()


@dataclass(frozen=True, eq=False)
class Begun:
    """How far a walk has come: enough to go on from there.

    Attributes:
        edits: how many cases have been made.
        total: the sum of the increments, with the editor's memory.
        latest: the positions of the cases of the last operation.
    """

    edits: int = 0
    total: Patch = field(default_factory=Patch)
    latest: range = range(0)


def plain_mode(mode: str | None, batch_size: int | None) -> tuple[str | None, int | None]:
    """The mode and batch size that a published name stands for; other modes as they are.

    Raises:
        UsageError: the name and the batch size do not fit.
    """
    if mode == "instance-sequential" and batch_size not in (None, 1):
        raise UsageError(
            f"edit batch size {batch_size} with instance-sequential, which edits one fact at a time; leave it out"
        )
    if mode == "batch-sequential" and batch_size is None:
        raise UsageError("batch-sequential needs --edit-batch-size, the edits of one operation")
    return PUBLISHED.get(mode or "", mode), 1 if mode == "instance-sequential" else batch_size


def cases_of(edits: Sequence[Edit]) -> list[list[Edit]]:
    """Edits by the case that they belong to, in their order."""
    return [list(together) for _, together in groupby(edits, key=lambda edit: edit.belongs_to)]


def default_mode(editor: type[Editor]) -> str:
    """Batch for methods that edit many facts at once by definition, isolated for the others."""
    return "batch" if editor.batch else "isolated"


def require_at_once(at_once: int | None, mode: str) -> None:
    """See that so many cases at once are asked of isolated editing alone.

    Raises:
        UsageError: another mode makes them otherwise.
    """
    if at_once is not None and mode != "isolated":
        raise UsageError(
            f"cases_at_once {at_once} with mode {mode}: it belongs to --mode isolated; batch makes all cases at once, "
            "and sequential keeps the earlier ones"
        )


def operations(count: int, mode: str, batch_size: int | None) -> list[range]:
    """The positions of the cases of each operation.

    Args:
        count: how many cases there are.
        mode: ``isolated``, ``batch`` or ``sequential``.
        batch_size: cases of one operation in sequential mode; None for one.

    Raises:
        UsageError: the mode does not exist, or the batch size is not positive.
    """
    if mode not in MODES:
        raise UsageError(f"mode '{mode}' does not exist; choose {', '.join(MODES)}")
    if batch_size is not None and (batch_size < 1 or mode != "sequential"):
        raise UsageError(
            f"edit batch size {batch_size} with mode {mode}: it must be at least 1, and belongs to --mode sequential"
        )
    size = {"isolated": 1, "batch": max(count, 1), "sequential": batch_size or 1}[mode]
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def stops(eval_at: str, count: int, *, mode: str, batch_size: int | None) -> list[int]:
    """The edit counts at which a run measures, in order; 0 is always among them.

    Args:
        eval_at: counts, ``final``, or ``every:K``, separated by commas.
        count: the number of edits.
        mode: how edits are made.
        batch_size: edits of one operation.

    Raises:
        UsageError: an entry cannot be read, lies beyond the edits, or falls inside an operation; or as
            :func:`operations`.
    """
    portions = operations(count, mode, batch_size)
    wanted = {0}
    for entry in filter(None, (part.strip() for part in eval_at.split(","))):
        wanted |= _entry(entry, count)
    if mode == "isolated" and not wanted <= {0, count}:
        raise UsageError(
            f"--eval-at {eval_at}: isolated edits are measured all at once; use 0, final, or --mode sequential"
        )
    if mode != "sequential":
        return sorted(wanted)
    ends = {0, *(portion.stop for portion in portions)}
    inside = sorted(wanted - ends)
    if inside:
        raise UsageError(
            f"--eval-at {inside[0]}: no operation ends after {inside[0]} edits; operations end at {_few(ends)}"
        )
    return sorted(wanted)


def _entry(entry: str, count: int) -> set[int]:
    kind, _, step = entry.partition(":")
    if entry == "final":
        return {count}
    if kind == "every" and step.isdecimal() and int(step) > 0:
        return {*range(int(step), count + 1, int(step)), count}
    if not entry.isdecimal():
        raise UsageError(
            f"--eval-at '{entry}' cannot be read; give edit counts, 'final' or 'every:K', for example 0,10,final"
        )
    if int(entry) > count:
        raise UsageError(f"--eval-at {entry}: there are only {count} edits; give a smaller count or more --num-edits")
    return {int(entry)}


def _few(ends: set[int]) -> str:
    shown = [str(end) for end in sorted(ends)]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:6], "...", shown[-1]])


def _forget(begun: Begun) -> None:
    """Keep nothing."""


def walk(
    editor: Editor,
    lm: LM,
    edits: Sequence[Edit],
    *,
    mode: str,
    batch_size: int | None,
    at: Sequence[int],
    progress: Callable[[int, int], None] = tell_nobody,
    begun: Begun | None = None,
    keep: Callable[[Begun], None] = _forget,
    at_once: int | None = None,
    first: int | None = None,
) -> Iterator[Stop]:
    """Make the edits, and yield at each count of ``at`` beyond 0.

    The model is unchanged while the caller measures: what is yielded is to be held with
    :func:`harness.patches.patch.patched`.

    Args:
        editor: the method.
        lm: the unedited model.
        edits: all edits, in order.
        mode: isolated, batch or sequential.
        batch_size: edits of one sequential operation.
        at: the counts from :func:`stops`.
        progress: told how many edits are made, and how many there are.
        begun: where an earlier sequential walk was; its own last stop is yielded again.
        keep: given how far a sequential walk has come, after every operation.
        at_once: cases that isolated editing makes together; None for one.
        first: of how many edits of each case isolated editing makes a patch besides; None for none.
    """
    require_editable(editor, lm, edits, mode=mode)
    wanted, cases = [count for count in at if count], cases_of(edits)
    if mode == "sequential":
        yield from _one_after_another(editor, lm, cases, batch_size, wanted, progress, begun or Begun(), keep)
        return
    for count in wanted:
        chosen = cases[:count]
        whole = (at_once or 1) if mode == "isolated" else None
        made = [edited.made(editor, lm, _flat(chosen))] if whole is None else _apart(editor, lm, chosen, whole)
        part = [case[:first] for case in chosen] if first and whole == 1 else []
        partial = _apart(editor, lm, part, 1) if part else []
        progress(count, len(cases))
        done = [[edited.finished_patch(editor, lm, patch) for patch in patches] for patches in (made, partial)]
        yield Stop(count, done[0], range(count), done[1])


def _apart(editor: Editor, lm: LM, cases: Sequence[Sequence[Edit]], at_once: int) -> Sequence[Patch]:
    """A patch for each case, or for so many of them at once."""
    groups = [_flat(cases[start : start + at_once]) for start in range(0, len(cases), at_once)]
    if all(len(group) == 1 for group in groups):
        return edited.made_each(editor, lm, [edit for (edit,) in groups])
    return [increment(editor, lm, group, held=Patch()) for group in groups]


def _flat(cases: Sequence[Sequence[Edit]]) -> list[Edit]:
    return list(chain(*cases))


def increment(editor: Editor, lm: LM, edits: Sequence[Edit], *, held: Patch) -> Patch:
    """What the edits of an operation add to what is held: at once, or one by one by an editor of single facts.

    Args:
        editor: the method.
        lm: the unedited model.
        edits: those of the operation.
        held: the sum of the earlier increments, with the editor's memory.
    """
    if editor.root.batch or len(edits) == 1:
        with patched(lm, held):
            return edited.made(editor, lm, edits, memory=held.memory)
    added = Patch()
    for edit in edits:
        with patched(lm, held + added):
            added += edited.made(editor, lm, [edit], memory=(held + added).memory)
    return added


def _one_after_another(
    editor: Editor,
    lm: LM,
    cases: Sequence[Sequence[Edit]],
    batch_size: int | None,
    wanted: Sequence[int],
    progress: Callable[[int, int], None],
    state: Begun,
    keep: Callable[[Begun], None],
) -> Iterator[Stop]:
    if state.edits in wanted:
        yield Stop(state.edits, [edited.finished_patch(editor, lm, state.total)], state.latest)
    for portion in operations(len(cases), "sequential", batch_size):
        if portion.stop <= state.edits:
            continue
        if portion.start >= max(wanted, default=0):
            return
        added = increment(editor, lm, [edit for i in portion for edit in cases[i]], held=state.total)
        state = Begun(portion.stop, state.total + added, portion)
        keep(state)
        progress(portion.stop, len(cases))
        if portion.stop in wanted:
            yield Stop(portion.stop, [edited.finished_patch(editor, lm, state.total)], portion)


def require_editable(editor: Editor, lm: LM, edits: Sequence[Edit], *, mode: str) -> None:
    """See that an editor can make these edits in this mode.

    Args:
        editor: the editor.
        lm: the model.
        edits: what it is to make.
        mode: ``isolated``, ``batch`` or ``sequential``.

    Raises:
        ModelError: the editor is made for another family of models.
        UsageError: it cannot; says why and what to do.
    """
    require_able(editor, edits, mode)
    editor.root.require(lm)  # which may run the model, and ask the Hub
    for edit in edits:
        said = filter(None, (edit.continuation, edit.rival))
        length = len(lm.encode(edit.text)) + max(len(lm.continuation(edit.text, text)) for text in said)
        if length > lm.context:
            raise UsageError(f"edit {edit.id}: {length} tokens, but {lm.name} takes {lm.context}; shorten the prompt")


def require_able(editor: Editor, edits: Sequence[Edit], mode: str) -> None:
    """See that an editor can make these edits in this mode, on whatever model.

    Args:
        editor: the editor.
        edits: what it is to make.
        mode: ``isolated``, ``batch`` or ``sequential``.

    Raises:
        UsageError: it cannot; says why and what to do.
    """
    if mode == "batch" and not editor.root.batch and len(edits) > 1:
        raise UsageError(f"{editor.name} edits one fact at a time; use --mode isolated or --mode sequential")
    for edit in edits:
        if editor.root.needs_subject and edit.subject is None:
            raise UsageError(f"edit {edit.id}: {editor.name} needs a subject; give rows of prompt, subject and target")
        if editor.root.needs_old and (edit.target_old or edit.against) is None:
            raise UsageError(
                f"edit {edit.id}: {editor.name} compares the target with the old answer; give 'target_old'"
            )
        if edit.direction not in editor.root.directions:
            able = ", ".join(name for name in editor_names() if _follows(find(name), edit))
            raise UsageError(
                f"edit {edit.id} wants {edit.direction}, which {editor.root.name} cannot follow; editors that can: "
                f"{able or 'none'}"
            )


def _wants(edit: Edit) -> tuple[str, str, str | None]:
    return edit.direction, edit.continuation, edit.rival


def _follows(cls: type[Editor], edit: Edit) -> bool:
    return not issubclass(cls, Wrapper) and edit.direction in cls.directions and cls.name != "none"


def duplicates(edits: Sequence[Edit]) -> list[str]:
    """What is said twice, or said in two ways, in one edit set: a sentence for each, of many for the first few."""
    first: dict[str, Edit] = {}
    found = []
    divided = {edit.id: known for known, edit in _contradictions(edits)}
    for edit in edits:
        known = first.setdefault(edit.text, edit)
        if edit.id in divided:
            other = divided[edit.id]
            two = f"'{edit.text}' -> '{edit.target}', but '{other.text}' -> '{other.target}'"
            found.append(f"case {edit.case} contradicts itself: {two}")
        elif known is not edit and _wants(known) == _wants(edit):
            found.append(f"edit {edit.id} repeats edit {known.id} ('{edit.text}' -> '{edit.target}')")
        elif known is not edit and known.direction == edit.direction == "likelihood":
            two = f"'{edit.text}' -> '{edit.target}', not '{known.target}'"
            found.append(f"edit {edit.id} contradicts edit {known.id}: {two}")
    if len(found) <= _TOLD:
        return found
    more = len(found) - _TOLD + 1
    return [*found[: _TOLD - 1], f"{more} more edits repeat or contradict an earlier one, {len(found)} in all"]


def contradicting_cases(edits: Sequence[Edit]) -> list[str]:
    """The cases of which two edits cannot both hold: one fact, two answers."""
    return list(dict.fromkeys(str(edit.case) for _, edit in _contradictions(edits)))


def _contradictions(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """Edits of one case that say two things of one fact: of one prompt, or of one subject and relation."""
    said: dict[tuple[str | None, ...], Edit] = {}
    for edit in edits:
        if edit.case is None or edit.direction != "likelihood":
            continue
        facts: list[tuple[str | None, ...]] = [(edit.case, _plain(edit.text))]
        if edit.relation is not None and edit.subject is not None:
            facts.append((edit.case, _plain(edit.subject), edit.relation))
        others = [said[fact] for fact in facts if fact in said and _plain(said[fact].target) != _plain(edit.target)]
        if others:
            yield others[0], edit
        for fact in facts:
            said.setdefault(fact, edit)


def _plain(text: str) -> str:
    """A text without what makes no other fact of it: capitals and spaces."""
    return " ".join(text.split()).casefold()
