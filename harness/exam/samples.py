"""What a model was asked, and what it said, before and after editing: the samples of a run.

A sample is one question of one document: its prompt, its right answers, and the reply of the unedited and of the edited
model, which is a text or the log-likelihoods of the choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from typing import Any, TypeAlias

from typing_extensions import NotRequired, TypedDict

from harness.exam.numbers import Json
from harness.exam.statistics import Ratio
from harness.io.files import rounded
from harness.io.schema import Count, Number

__all__ = ["Reply", "Sample", "SampleLine", "pair_samples", "rated_texts", "samples_of"]

_PLAIN = ("task", "doc_id", "prompt", "target", "group", "kind", "case", "question", "at")
_DECLARED = {"protocol", "prompts", "answers", "rivals", "choices"}
"""What a document of a declarative exam has, of each of its questions."""
_WHOLE_TEXT = 0.01
"""The relative change of the log-likelihood of a whole text that counts as one."""


_Asked: TypeAlias = tuple[Sequence[Any], Any]
"""The arguments of a request, and the reply to it."""


@dataclass(frozen=True)
class Reply:
    """What a model said to one question.

    Attributes:
        text: what it wrote; None where choices were rated instead.
        loglikelihoods: of each choice, in nats; None for one that is not a number.
        greedy: whether the model would have written each choice itself.
        scores: metric -> what the document contributes to it; of a document with several questions that of all of them.
    """

    text: str | None = None
    loglikelihoods: tuple[float | None, ...] = ()
    greedy: tuple[bool, ...] = ()
    scores: Mapping[str, float | None] | None = None

    @property
    def likeliest(self) -> int | None:
        """The place of the likeliest choice; None where fewer than two have a log-likelihood."""
        known = [(value, -i) for i, value in enumerate(self.loglikelihoods) if value is not None]
        return -max(known)[1] if len(known) > 1 else None

    def differs(self, other: Reply) -> bool:
        """Whether it says something else: another text, another likeliest choice, or another one than it would write.

        Of a whole text, which is only rated, whether its log-likelihood differs by more than a hundredth.
        """
        if self.greedy or other.greedy or self.text is not None:
            return (self.text, self.likeliest, self.greedy) != (other.text, other.likeliest, other.greedy)
        pairs = zip(self.loglikelihoods, other.loglikelihoods, strict=False)
        return any((a is None) != (b is None) or (a and b and abs(a - b) > _WHOLE_TEXT * abs(b)) for a, b in pairs)

    def to_json(self) -> Json:
        """The fields that are not empty."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ()}


@dataclass(frozen=True)
class Sample:
    """One question of one document, and the replies to it.

    Attributes:
        task: lm-eval's name of the task.
        doc_id: the place of the document in it.
        prompt: what the model continues.
        target: the first right answer.
        group: the name under which tables report the task, where it is another one.
        kind: which kind of question it is, in exams of edits.
        case: the edit or case that it belongs to.
        question: its place among the questions of the document.
        answers: all right answers, where there are several.
        choices: what is rated, as it continues the prompt.
        at: how many edits had been made when the edited model was asked; 0 where nothing is edited.
        before: the reply of the unedited model.
        after: the reply of the edited model; None where nothing is edited.
    """

    task: str
    doc_id: int
    prompt: str
    target: str
    group: str | None = None
    kind: str | None = None
    case: str | None = None
    question: int = 0
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    at: int = 0
    before: Reply | None = None
    after: Reply | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """What names the question at every stop."""
        return self.task, self.doc_id, self.question

    @property
    def changed(self) -> bool:
        """Whether the edited model says something else than the unedited one (:meth:`Reply.differs`)."""
        return self.before is not None and self.after is not None and self.after.differs(self.before)

    def to_json(self) -> Json:
        """The sample as one line of a file of samples holds it."""
        line: Json = {"task": self.task, "doc_id": self.doc_id, "kind": self.kind, "at": self.at}
        line |= {"prompt": self.prompt, "target": self.target}
        line |= {key: list(value) for key in ("answers", "choices") if (value := getattr(self, key))}
        line |= {key: value for key in ("group", "case", "question") if (value := getattr(self, key))}
        return line | {
            key: reply and reply.to_json() for key, reply in (("before", self.before), ("after", self.after))
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Sample:
        """The sample that :meth:`to_json` wrote."""
        found: Json = {key: line[key] for key in _PLAIN if key in line}
        found |= {key: tuple(line.get(key, ())) for key in ("answers", "choices")}
        return cls(**found, before=_reply(line["before"]), after=_reply(line["after"]))


class _ReplyLine(TypedDict):
    text: NotRequired[str]
    loglikelihoods: NotRequired[list[Number]]
    greedy: NotRequired[list[bool]]
    scores: NotRequired[dict[str, Number]]


class SampleLine(TypedDict):
    """What a line of a file of samples holds."""

    task: str
    doc_id: Count
    kind: str | None
    at: Count
    prompt: str
    target: str
    before: _ReplyLine | None
    after: _ReplyLine | None
    group: NotRequired[str]
    case: NotRequired[str]
    question: NotRequired[Count]
    answers: NotRequired[list[str]]
    choices: NotRequired[list[str]]


def _reply(said: Mapping[str, Any] | None) -> Reply | None:
    if said is None:
        return None
    lists = {key: tuple(said.get(key, ())) for key in ("loglikelihoods", "greedy")}
    return Reply(text=said.get("text"), scores=said.get("scores"), **lists)


def samples_of(
    task: str,
    logged: Sequence[Mapping[str, Any]],
    *,
    values: Mapping[str, Mapping[str, Ratio]],
    group: str | None = None,
) -> list[Sample]:
    """The samples of one pass over a task, each with its reply as that of the unedited model.

    Args:
        task: lm-eval's name of the task.
        logged: what lm-eval kept of each document; of several filters the first one is read.
        values: metric -> document -> contribution.
        group: the name under which tables report the task, where it is another one.
    """
    first = {document["doc_id"]: document for document in reversed(logged)}
    places = dict.fromkeys(document["doc_id"] for document in logged)
    found = []
    for place in places:
        named = f"{task}/{place}"
        scores = {metric: _score(rows[named]) for metric, rows in values.items() if named in rows}
        found += [replace(one, group=group) for one in _questions(task, first[place], scores)]
    return found


def _score(value: Ratio) -> float | None:
    found: float | None = rounded(value.num / value.den) if value.den else None
    return found


def _questions(task: str, logged: Mapping[str, Any], scores: Mapping[str, float | None]) -> Iterator[Sample]:
    """The samples of one document."""
    asked = list(zip(logged["arguments"], (given[0] for given in logged["resps"]), strict=True))
    doc = logged["doc"] if isinstance(logged["doc"], Mapping) else {}
    case = doc.get("case", doc.get("edit"))
    for place, some in enumerate(_by_question(doc, asked)):
        choices = tuple(str(given[1]) for given, _ in some if len(given) > 1 and isinstance(given[1], str))
        right = _right(doc, logged, place)
        yield Sample(
            task,
            int(logged["doc_id"]),
            str(some[0][0][0]),
            right[0] if right else "",
            kind=doc["kind"] if isinstance(doc.get("kind"), str) else None,
            case=None if case is None else str(case),
            question=place,
            answers=tuple(right) if len(right) > 1 else (),
            choices=choices,
            before=replace(_said([reply for _, reply in some]), scores=scores),
        )


def _by_question(doc: Mapping[str, Any], asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """What was asked of a document, question by question: each text is one, and so are the ratings after one prompt.

    Neighbouring questions may have one prompt: how many ratings each has, a document of a declarative exam says.
    """
    if all(isinstance(reply, str) for _, reply in asked):
        return [[one] for one in asked]
    counts = [len(texts) for texts in rated_texts(doc)] if doc.keys() >= _DECLARED else []
    if sum(counts) == len(asked) and all(counts):
        rest = iter(asked)
        return [list(islice(rest, count)) for count in counts]
    return [list(members) for _, members in groupby(asked, key=lambda one: str(one[0][0]))]


def rated_texts(doc: Mapping[str, Any]) -> list[list[str]]:
    """The texts that are rated for each question of a declarative exam: its choices, else its answers and their rival.

    Args:
        doc: a document, what one case asks in one way.
    """
    if doc["protocol"] == "choice":
        return list(doc["choices"])
    rivals = doc["rivals"] if doc["protocol"] == "probability" else [None] * len(doc["prompts"])
    return [
        [*answers, *([] if rival is None else [rival])] for answers, rival in zip(doc["answers"], rivals, strict=True)
    ]


def _said(replies: Sequence[Any]) -> Reply:
    """The reply to one question: a text, or for each choice its log-likelihood and whether it is the greedy one."""
    if isinstance(replies[0], str):
        return Reply(text=replies[0])
    rated = [reply if isinstance(reply, tuple | list) else (reply,) for reply in replies]
    values = tuple(_number(one[0]) for one in rated)
    exact = (
        getattr(given, "exact", one[1] if len(one) > 1 else None) for given, one in zip(replies, rated, strict=True)
    )
    return Reply(loglikelihoods=values, greedy=tuple(bool(one) for one in exact if one is not None))


def _number(value: Any) -> float | None:
    found: float | None = rounded(float(value)) if value is not None and math.isfinite(value) else None
    return found


def _right(doc: Mapping[str, Any], logged: Mapping[str, Any], question: int) -> list[str]:
    """The right answers to a question of a document, the first one first."""
    answers = doc.get("answers")
    if isinstance(answers, list) and answers and isinstance(answers[0], list):
        return [str(one) for one in answers[question]] if question < len(answers) else []
    # An answer that must stay: the exams of edits rate the new target first, whatever is right.
    if doc.get("kind") == "neighborhood" and doc.get("target_true"):
        return [str(doc["target_true"])]
    if isinstance(answers, list) and answers and all(isinstance(one, str) for one in answers):
        return list(answers)
    target = logged["target"]
    if isinstance(target, int) and not isinstance(target, bool):
        rated = [given[1] for given in logged["arguments"] if len(given) > 1]
        return [str(rated[target]).strip()] if 0 <= target < len(rated) else [str(target)]
    if isinstance(target, list | tuple):
        return [str(one) for one in target]
    return [] if target is None else [str(target)]


def pair_samples(edited: Iterable[Sample], unedited: Iterable[Sample], at: int) -> list[Sample]:
    """The samples of the edited model, each with the reply of the unedited one.

    Args:
        edited: as :func:`samples_of` gives them.
        unedited: the same of the unedited model.
        at: how many edits had been made.
    """
    base = {sample.key: sample.before for sample in unedited}
    return [replace(one, at=at, before=base.get(one.key), after=one.before) for one in edited]
