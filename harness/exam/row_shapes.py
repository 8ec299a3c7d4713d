"""Rows of edits as other tools write them, read as rows of this project's own.

The field names of every shape stand in :data:`SHAPES` and nowhere else.  A row is of the first shape whose ``marks`` it
has, otherwise of our own: ``prompt, subject, target`` or ``prefix, suffix``, with ``id``, ``target_old``,
``paraphrases``, ``neighborhood``, ``portability``, and the fields that rows of every shape may have (:data:`ANY`).  A
field that nothing reads is refused: a misspelt one would otherwise be an exam that is silently not held.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import DataError, near

__all__ = [
    "ANY",
    "OURS",
    "SHAPES",
    "Shape",
    "named_by",
    "place_of",
    "read_row",
    "require_answers",
    "texts_of",
    "with_questions",
]

Row = dict[str, Any]

PROBES = ("neighborhood", "portability")
"""Fields that hold questions with their right answers."""
ANY = ("case", "aliases", "join", "probes")
"""Fields that rows of every shape may have: the case that a row belongs to, other right answers, and more questions."""
OURS = (
    "id",
    "prompt",
    "subject",
    "target",
    "target_old",
    "prefix",
    "suffix",
    "paraphrases",
    *ANY,
    *PROBES,
)
"""The fields of our own rows."""
REQUIRED = (("prompt", "subject", "target"), ("prefix", "suffix"))
_NAMED = 10  # fields that one message names


@dataclass(frozen=True)
class Shape:
    """How a tool writes a row.

    Attributes:
        name: whose shape it is.
        marks: fields that only rows of this shape have.
        reads: its field -> ours, several apart by a space; a dot stands before a field within a field.
        passes: fields that it has and that are not examined here.
    """

    name: str
    marks: tuple[str, ...]
    reads: Mapping[str, str]
    passes: tuple[str, ...] = field(default=())


_REWRITE = {
    "case_id": "id",
    "requested_rewrite.prompt": "prompt",
    "requested_rewrite.subject": "subject",
    "requested_rewrite.target_new.str": "target",
}
_REWRITE_PASSES = ("relation_id", "target_new.id", "target_true.id")
_ONE_HOP = {"portability.New Question": "portability.prompt", "portability.New Answer": "portability.answer"}

SHAPES = (
    Shape(  # Zhong et al. 2023; each edit of a case is a row
        "MQuAKE",
        ("requested_rewrite", "questions"),
        {
            **_REWRITE,
            "requested_rewrite.target_true.str": "target_old",
            "requested_rewrite.question": "paraphrases",
            "questions": "portability.prompt",
            "new_answer": "portability.answer",
            "new_answer_alias": "portability.answer",
        },
        (
            *(f"requested_rewrite.{name}" for name in _REWRITE_PASSES),
            *("answer", "answer_alias", "single_hops", "new_single_hops", "orig"),
        ),
    ),
    Shape(  # Meng et al. 2022; with a question of one more hop, Yao et al. 2023
        "CounterFact",
        ("requested_rewrite",),
        {
            **_REWRITE,
            **_ONE_HOP,
            "requested_rewrite.target_true.str": "target_old neighborhood.answer",
            "paraphrase_prompts": "paraphrases",
            "neighborhood_prompts": "neighborhood.prompt",
        },
        (
            *(f"requested_rewrite.{name}" for name in _REWRITE_PASSES),
            *("pararel_idx", "attribute_prompts", "generation_prompts", "rebuilt", "portability.Recalled Relation"),
        ),
    ),
    Shape(  # Mitchell et al. 2022: the alternative answer is what is edited to
        "MEND",
        ("src", "alt"),
        {
            **_ONE_HOP,
            "case_id": "id",
            "src": "prompt",
            "subject": "subject",
            "alt": "target",
            "answers": "target_old",
            "rephrase": "paraphrases",
            "loc": "neighborhood.prompt",
            "loc_ans": "neighborhood.answer",
        },
        ("pred", "cond", "inverse question", "portability.Recalled Relation"),
    ),
    Shape(  # Wang et al. 2024 and Zhang et al. 2024 (KnowEdit)
        "EasyEdit",
        ("target_new",),
        {
            "case_id": "id",
            "id": "id",
            "prompt": "prompt",
            "subject": "subject",
            "target_new": "target",
            "ground_truth": "target_old",
            "rephrase_prompt": "paraphrases",
            "rephrase": "paraphrases",
            "locality": "neighborhood",
            "locality_prompt": "neighborhood.prompt",
            "locality_ground_truth": "neighborhood.answer",
            "portability": "portability",
            "portability_prompt": "portability.prompt",
            "portability_ground_truth": "portability.answer",
        },
        ("cond",),
    ),
    Shape(
        "WikiBio of KnowEdit",
        ("text", "labels"),
        {"id": "id", "text": "prompt", "concept": "subject", "labels": "target", "locality": "neighborhood"},
    ),
)
"""The shapes that are known, those with more marks first."""

_OTHERS = {
    theirs.removesuffix(".str").rpartition(".")[2]: ours.split()[0].partition(".")[0]
    for shape in SHAPES
    for theirs, ours in shape.reads.items()
}
"""What a field of another tool is called here."""
_QUESTION, _ANSWER = ("prompt",), ("answer", "ground_truth")
"""What a question and its right answers are called inside a field of them."""


def read_row(row: Mapping[str, Any], name: str) -> list[Row]:
    """A row of any shape as rows of our own, one for each edit.

    Args:
        row: the row as it stands in a file.
        name: its id, where it has none.

    Raises:
        DataError: a field is missing, is not read, or is of another kind.
    """
    # What a table had no value for is written as null, and says nothing.
    row = {key: value for key, value in row.items() if value is not None}
    shape = next((s for s in SHAPES if all(mark in row for mark in s.marks)), None)
    if shape is None:
        _require(row)
        _refuse_unread(row, OURS, OURS)
        require_answers(row)
        return [_checked({"id": name, **row})]
    _refuse_unread(row, (*shape.reads, *shape.passes, *ANY), tuple(shape.reads), shape.name)
    parts = list(_edits_of(row))
    named = named_by(row, name)
    also = {key: row[key] for key in ANY if key in row}
    found = [_renamed(part, shape) | also for part in parts]
    if len(found) > 1:
        found = [{"case": named, **one, "id": f"{named}.{i}"} for i, one in enumerate(found, start=1)]
        # What several edits bring about together is asked once.
        found[1:] = [{**one, "portability": [], "probes": []} for one in found[1:]]
    return [_checked({"id": name, **one}) for one in found]


def _edits_of(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The row once for each of its edits."""
    listed = row.get("requested_rewrite")
    if not isinstance(listed, list):
        yield row
        return
    if not listed:
        raise DataError("'requested_rewrite' is empty; give at least one edit")
    yield from ({**row, "requested_rewrite": one} for one in listed)


# --- fields that are missing, and fields that are not read ------------------------------------------------------------


def _require(row: Mapping[str, Any]) -> None:
    wanted = REQUIRED[1] if "prefix" in row else REQUIRED[0]
    if all(isinstance(row.get(name), list | Mapping) for name in wanted):
        raise DataError(f"holds columns ('{wanted[0]}' is a {type(row[wanted[0]]).__name__}); give one object a row")
    if row and all(isinstance(value, Mapping) for value in row.values()):
        raise DataError(f"holds only objects ({_first_of(row)}); give rows as an array, or one object a line")
    for name in wanted:
        if name in row:
            continue
        unread = [key for key in row if key not in OURS]
        meant = f"; {_not_read(unread, OURS)}" if unread else ""
        if name == "subject":
            raise DataError(f"'subject' is missing; name what the edit is about, or give prefix and suffix{meant}")
        raise DataError(f"'{name}' is missing; rows hold prompt, subject and target, or prefix and suffix{meant}")


def require_answers(row: Mapping[str, Any]) -> None:
    """See that questions of our own rows have answers; what other tools leave open is passed over."""
    for name in (name for name in PROBES if name in row):
        for question in _questions(row[name], name):
            if question["prompt"].strip() and not any(answer.strip() for answer in question["answer"]):
                raise DataError(f"the {name} question '{question['prompt']}' has no answer; give one, or leave it out")


def _refuse_unread(row: Mapping[str, Any], known: Sequence[str], offered: Sequence[str], shape: str = "") -> None:
    unread = list(_unread(row, known))
    if unread:
        whose = f"{shape}'s shape" if shape else "such a row"
        raise DataError(f"{_not_read(unread, offered)}; leave it out, or rename it: {whose} has {', '.join(offered)}")


def _unread(row: Mapping[str, Any], known: Sequence[str], above: str = "") -> Iterator[str]:
    """The fields, and fields within fields, that are not among the known ones."""
    for key, value in row.items():
        path = f"{above}{key}"
        if path in known:
            continue
        if not any(name.startswith(f"{path}.") for name in known):
            yield path
        elif isinstance(value, Mapping):
            yield from _unread(value, known, f"{path}.")
        elif isinstance(value, list):
            for one in value:
                yield from _unread(one, known, f"{path}.") if isinstance(one, Mapping) else ()


def _not_read(unread: Iterable[str], offered: Sequence[str]) -> str:
    fields = list(dict.fromkeys(unread))
    said = [f"'{name}'{_meant(name, offered)}" for name in fields[:_NAMED]]
    return f"{', '.join(said)} {'is' if len(fields) == 1 else 'are'} not read"


def _meant(name: str, offered: Sequence[str]) -> str:
    """What a field that is not read may be meant as: what another tool's field is here, or a name near to it."""
    ours = _OTHERS.get(name)
    if ours in offered and ours != name:
        return f" (did you mean {ours}?)"
    close = near(name, offered)
    return close if "did you mean" in close else ""


def _first_of(row: Mapping[str, Any]) -> str:
    names = [f"'{name}'" for name in row]
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


# --- the values -------------------------------------------------------------------------------------------------------


def _renamed(row: Mapping[str, Any], shape: Shape) -> Row:
    """The values of a row under our names."""
    out: Row = {}
    pairs: dict[str, dict[str, list[Any]]] = {}
    for theirs, ours in shape.reads.items():
        value = _within(row, theirs)
        if value is None:
            continue
        for name in ours.split():
            place, _, part = name.partition(".")
            if part:
                _texts(value, theirs)
                pairs.setdefault(place, {}).setdefault(part, []).append(value)
            else:
                _put(out, place, value, theirs)
    for place, pair in pairs.items():
        out[place] = [*out.get(place, []), *_paired(pair.get("prompt", []), pair.get("answer", []), place)]
    return out


def _paired(prompts: Sequence[Any], answers: Sequence[Any], name: str) -> Iterator[Row]:
    """The questions of a field that stand apart from their answers.

    Where both are lists, the answers stand in the order of the questions; one text, and its aliases, answers all.
    """
    first, others = (answers[0], answers[1:]) if answers else ([], [])
    for prompt in prompts:
        in_order = isinstance(prompt, list) and len(prompt) > 1 and isinstance(first, list) and first
        if in_order:
            yield from _asked({"prompt": prompt, "answer": first}, name)
        else:
            yield from ({"prompt": one, "answer": _texts([first, *others], name)} for one in _texts(prompt, name))


def _put(out: Row, name: str, value: Any, theirs: str) -> None:
    """Adds what stands in one of their fields to one of ours."""
    if name == "target_old":
        known = [text for text in _texts(value, theirs) if text.strip()]
        out |= {name: known[0]} if known else {}
    elif name == "paraphrases":
        out[name] = [*out.get(name, []), *(text for text in _texts(value, theirs) if text.strip())]
    elif name in PROBES:
        out[name] = [*out.get(name, []), *_questions(value, theirs)]
    else:
        out[name] = value


def _within(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path; None where there is none."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _texts(value: Any, name: str) -> list[str]:
    """A text, or the texts of a list, or of a list of lists (right answers, each with its aliases)."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one, name)]
    raise DataError(f"'{name}' holds {value!r}, expected a text or a list of texts")


def _questions(value: Any, name: str) -> Iterator[Row]:
    """The questions of a field: a list of them, or one or a list under the name of each kind."""
    if isinstance(value, list):
        for one in value:
            yield from _questions(one, name)
    elif not isinstance(value, Mapping):
        raise DataError(f"'{name}' holds {value!r}, expected questions, each with prompt and answer")
    elif not any(key in value for key in _QUESTION):
        for kind, one in value.items():
            yield from _questions(one, f"{name}.{kind}")
    else:
        yield from _asked(value, name)


def _asked(value: Mapping[str, Any], name: str) -> Iterator[Row]:
    """One question, or several whose answers stand in the same order."""
    _refuse_within(value, name)
    prompt = value["prompt"]
    answers: Any = next((value[key] for key in _ANSWER if key in value), [])
    if isinstance(prompt, list):
        many = answers if isinstance(answers, list) else [answers]
        if len(many) != len(prompt):
            raise DataError(f"'{name}' has {len(prompt)} prompts and {len(many)} answers; give one for each")
        for one, right in zip(prompt, many, strict=True):
            yield {"prompt": _texts(one, name)[0], "answer": _texts(right, name)}
        return
    yield {"prompt": "".join(_texts(prompt, name)), "answer": _texts(answers, name)}


def _refuse_within(value: Mapping[str, Any], name: str) -> None:
    unread = [key for key in value if key not in (*_QUESTION, *_ANSWER)]
    if unread:
        said = _not_read(unread, (*_QUESTION, *_ANSWER))
        raise DataError(f"{said} in '{name}'; a question has a prompt and an answer")


def _checked(row: Row) -> Row:
    """The row with its id and its case as texts, and its questions in one form."""
    case = row.get("case")
    if "case" in row and (not isinstance(case, str | int) or isinstance(case, bool) or not str(case).strip()):
        raise DataError(f"'case' is {case!r}, expected the name of the case that the row belongs to")
    return {**with_questions(row), "id": named_by(row, ""), **({"case": str(case)} if "case" in row else {})}


def named_by(row: Mapping[str, Any], name: str, keys: Sequence[str] = ("case_id", "id")) -> str:
    """What a row is called: by its own id, if it has one.

    Args:
        row: the row.
        name: what it is called where it has none.
        keys: the fields that may hold it, the first one first.

    Raises:
        DataError: its id is no text and no number.
    """
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        return name
    if not isinstance(row[key], str | int | float) or isinstance(row[key], bool) or not str(row[key]).strip():
        raise DataError(f"'{key}' is {row[key]!r}, expected a name or a number; or leave it out")
    return str(row[key])


def with_questions(row: Mapping[str, Any]) -> Row:
    """A row with its questions in one form; those without an answer cannot be scored, and are left out."""
    asked = {name: [*_questions(row[name], name)] for name in PROBES if name in row}
    return {
        **row,
        **{
            name: [q for q in questions if q["prompt"].strip() and any(a.strip() for a in q["answer"])]
            for name, questions in asked.items()
        },
    }


def texts_of(value: object) -> Iterator[str]:
    """The texts of a value that is one, or a list of them or of such lists; without what is empty.

    Raises:
        DataError: there is an object among them.
    """
    if isinstance(value, Mapping):
        raise DataError(f"{dict(value)!r} stands among the answers or choices of a probe, expected texts")
    if isinstance(value, list):
        for one in value:
            yield from texts_of(one)
    elif value is not None and str(value).strip():
        yield str(value).strip()


# --- where the subject stands -----------------------------------------------------------------------------------------


def place_of(subject: str, prompt: str) -> int:
    """The character at which a subject stands in a prompt: the first whole word, otherwise the first place at all.

    Scripts without spaces, and endings that stand at the word, leave no whole word.

    Raises:
        DataError: it is not there; says so where only the form of its characters differs.
    """
    first = start = prompt.find(subject)
    while start >= 0:
        end = start + len(subject)
        if not (_word(prompt[start - 1 : start]) or _word(prompt[end : end + 1])):
            return start
        start = prompt.find(subject, start + 1)
    if first < 0:
        raise DataError(_absent(subject, prompt))
    return first


def _word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _absent(subject: str, prompt: str) -> str:
    """Why a subject is not in a prompt."""
    said = f"the subject '{subject}' is not in the prompt '{prompt}'"
    if _normal(subject) in _normal(prompt):
        forms = ", ".join(f"{what} in {_form(text)}" for what, text in (("subject", subject), ("prompt", prompt)))
        return f"{said}: the same letters in another Unicode normal form ({forms}); write both in NFC"
    if _visible(subject) in _visible(prompt):
        hidden = ", ".join(sorted({f"U+{ord(c):04X}" for c in subject + prompt if _hidden(c)}))
        return f"{said}: they differ in characters that are not seen ({hidden}); write both alike"
    if _folded(subject) in _folded(prompt):
        return f"{said}: they differ in capitals or in the width of letters; write both alike"
    return f"{said}; write it there, or a {{}} in its place"


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _form(text: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "neither NFC nor NFD")


def _hidden(character: str) -> bool:
    """Whether a character is not seen: of zero width, of control, or a space other than the usual one."""
    category = unicodedata.category(character)
    return category in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f" or (category == "Zs" and character != " ")


def _visible(text: str) -> str:
    """The text as it looks: in one normal form, without what is not seen, and with plain spaces."""
    plain = (" " if unicodedata.category(c) == "Zs" else c for c in _normal(text))
    return " ".join("".join(c for c in plain if not _hidden(c)).split())


def _folded(text: str) -> str:
    return _visible(unicodedata.normalize("NFKC", text)).casefold()
