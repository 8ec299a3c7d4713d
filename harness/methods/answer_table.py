"""Answers from a table: a rule for logits that says the target of an edit wherever a text asks in a given way.

No method edits so.  It is how the exam itself is examined: an editor that answers by looking up the edits shows what a
metric can reach at best, and one that looks them up wrongly, in a way that is known, shows which metrics notice
(:mod:`editors.oracle`, :mod:`editors.sabotage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from harness.editing.edit import SLOT, Edit
from harness.models.lm import LM
from harness.patches.patch import Part, Step

__all__ = ["WHEN", "AnswerTable", "Entry", "as_entry"]

_MARGIN = 30.0  # logits by which what is to be said exceeds the rest: no other token keeps a chance


class Entry(NamedTuple):
    """An edit as a row of the table.

    Attributes:
        prompt: the edited prompt.
        subject: whom or what it is about; the prompt where it has none.
        key: the words of the prompt on the longer side of the subject, which it shares with other subjects.
        target: the new answer.
        says: the tokens of what is to be said, ``[t]``.
        old: the tokens of the old answer; empty where it is not known.
    """

    prompt: str
    subject: str
    key: str
    target: str
    says: tuple[int, ...]
    old: tuple[int, ...]


def as_entry(lm: LM, edit: Edit, says: str | None = None) -> Entry:
    """The row of an edit.

    Args:
        lm: whose tokens they are.
        edit: the edit.
        says: what is to be said, as it continues the prompt; by default the target.
    """
    old = () if edit.target_old is None else tuple(lm.continuation(edit.text, edit.says(edit.target_old)))
    said = tuple(lm.continuation(edit.text, edit.continuation if says is None else says))
    if edit.subject is None:
        return Entry(edit.text, edit.text, edit.text, edit.target, said, old)
    sides = (edit.prompt[: edit.begins], edit.prompt[edit.begins + len(SLOT) :])
    return Entry(edit.text, edit.subject, max(sides, key=len).strip() or edit.text, edit.target, said, old)


# --- how a text asks --------------------------------------------------------------------------------------------------


def _behind(entry: Entry, text: str) -> str | None:
    """What a text says after it last named the subject; None where it does not."""
    _front, named, rest = text.casefold().rpartition(entry.subject.casefold())
    return rest if named else None


def _named(entry: Entry, text: str) -> bool:
    rest = _behind(entry, text)
    return rest is not None and entry.target.casefold() not in rest


def _always(entry: Entry, text: str) -> bool:  # noqa: ARG001
    return True


def _bare(entry: Entry, text: str) -> bool:
    return text.strip() == entry.prompt.strip()


def _keyed(entry: Entry, text: str) -> bool:
    rest = text.rpartition(entry.key)
    return bool(rest[1]) and entry.target not in rest[2]


WHEN: Mapping[str, Callable[[Entry, str], bool]] = {
    "named": _named,
    "always": _always,
    "bare": _bare,
    "key": _keyed,
    "loop": lambda entry, text: _behind(entry, text) is not None,
}
"""How a text asks for the answer of a row, by name: it names the subject and has not said the target since; always; it
is the edited prompt and nothing else; it has the prompt's words without its subject, and has not said the target since;
it names the subject, also where the target has been said."""


# --- the rule ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnswerTable(Part):
    """A logit rule (:data:`harness.patches.patch.LogitRule`) that looks answers up.

    Attributes:
        entries: the rows; where several apply the last one does.
        when: how a text asks, one of :data:`WHEN`.
        known: whether an answer begins only where the model itself is about to begin the old one.
        silence: whether the old answer is made impossible instead of the new one said.
        lm: whose tokens they are.
    """

    entries: tuple[Entry, ...]
    when: str
    known: bool = False
    silence: bool = False
    lm: LM = field(repr=False, kw_only=True)

    def __call__(self, logits: Float[Tensor, "batch new vocabulary"], step: Step) -> Tensor:
        """The logits, changed where a text asks; what is said depends on the tokens so far and their logits alone."""
        changed = logits.clone()
        best = logits.argmax(-1).tolist()
        for row, (ids, mask) in enumerate(zip(step.ids.tolist(), step.mask.tolist(), strict=True)):
            real = [(column, token) for column, token in enumerate(ids) if mask[column]]
            first = len(ids) - step.new
            for place, token in self._wishes([token for _, token in real], [c - first for c, _ in real], best[row]):
                self._put(changed[row, place], token)
        return changed

    def _put(self, logits: Tensor, token: int) -> None:
        """Make a token certain, or impossible."""
        if self.silence:
            logits[token] = logits.min() - _MARGIN
        else:
            logits[token] = logits.max() + _MARGIN

    def _wishes(self, ids: Sequence[int], places: Sequence[int], best: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The places of a pass at which a text of tokens asks, and the token that is meant.

        Args:
            ids: the tokens of the text, without padding.
            places: the column of the pass at which each stands; below 0 where it was read before.
            best: the likeliest token of each column.
        """
        whole = self._text(ids)
        rows = [entry for entry in self.entries if self._may(entry, whole)]
        for position, place in enumerate(places):
            if place >= 0 and rows:
                token = self._wish(rows, ids[: position + 1], best[place])
                if token is not None:
                    yield place, token

    def _may(self, entry: Entry, whole: str) -> bool:
        """Whether any beginning of a text can ask for a row: to spare the reading of all of them."""
        needed = {"named": entry.subject, "loop": entry.subject, "key": entry.key, "bare": entry.prompt.strip()}
        return needed.get(self.when, "").casefold() in whole.casefold()

    def _wish(self, rows: Sequence[Entry], ids: Sequence[int], best: int) -> int | None:
        """The token that is meant after some tokens: the answer's first, or the next of one that has begun."""
        for entry in reversed(rows):
            for done in reversed(range(1 if self.silence else len(entry.says))):
                if done and tuple(ids[-done:]) != entry.says[:done]:
                    continue
                if WHEN[self.when](entry, self._text(ids[: len(ids) - done])):
                    if not done and not self._begins(entry, best):
                        continue
                    return (entry.old or (best,))[0] if self.silence else entry.says[done]
        return None

    def _begins(self, entry: Entry, best: int) -> bool:
        return not self.known or not entry.old or best == entry.old[0]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # --- kept on disk -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The rows and how they are looked up."""
        rows = [[*entry[:4], list(entry.says), list(entry.old)] for entry in self.entries]
        return {"entries": rows, "when": self.when, "known": self.known, "silence": self.silence}

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AnswerTable:  # noqa: ARG003
        """The rule again."""
        rows = tuple(Entry._make([*texts, tuple(says), tuple(old)]) for *texts, says, old in settings["entries"])
        return cls(rows, settings["when"], settings["known"], settings["silence"], lm=lm)

    def joined(self, later: AnswerTable) -> AnswerTable:
        """The rows of both; a later one of the same prompt replaces an earlier one."""
        fresh = {entry.prompt for entry in later.entries}
        return replace(later, entries=(*(one for one in self.entries if one.prompt not in fresh), *later.entries))
