"""Cases of a file of one's own: edits that belong together, and questions of any kind about them.

A row is a case where it has ``edits``, a list of rows of any shape that :mod:`harness.exam.row_shapes` reads, with
``probes`` beside them.  Flat rows that name the same ``case`` are one, too.  A probe is ``{kind, prompt, answers}``,
with ``expect``, ``protocol``, ``rival``, ``choices`` and ``language`` where they are wanted, and with ``turns`` of a
chat in place of the prompt; those of the kinds in
:data:`PLAIN` are asked as the fields of flat rows are, and the others by :class:`harness.exam.case_exam.OwnCaseExam`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, near
from harness.exam import data, row_shapes
from harness.exam.cases import (
    EXPECTED,
    PROTOCOLS,
    Case,
    CaseRule,
    ProbeRule,
    Question,
    as_edited,
    require_askable,
    require_kind,
    require_one,
    require_protocols,
    turns_of,
)
from harness.exam.text_metrics import REFUSALS, folded

if TYPE_CHECKING:
    from harness.editing.edit import Edit

__all__ = [
    "PLAIN",
    "OwnCaseSet",
    "asks_probes",
    "belongs_to",
    "own_rows_of",
    "require_other_answers",
    "rival_of",
    "together",
]

Row = dict[str, Any]

PLAIN = {"paraphrase": "paraphrases", "neighborhood": "neighborhood", "portability": "portability"}
"""Kinds of probes that flat rows have as fields, with the names of those."""
_NAMES = {"question": "prompt", "answer": "answers", "ground_truth": "answers", "aliases": "answers"}
"""What people call the fields of a probe, and what they are called here."""
_PROBE = ("kind", "prompt", "turns", "answers", "expect", "protocol", "rival", "choices", "language")
_CASE = ("id", "case_id", "case", "edits", "probes", "neighborhood", "portability")
_TAKEN = ("rewrite", "efficacy", "generation", "locality")
"""Kinds whose metrics would have the names of those of the edit itself."""


def belongs_to(row: Mapping[str, Any]) -> str:
    """The case of a row: the one that it names, otherwise one of its own."""
    return str(row.get("case", row["id"]))


def own_rows_of(row: Mapping[str, Any], name: str) -> list[Row]:
    """A row of any shape, or a case, as rows of our own, one for each edit.

    Args:
        row: as it stands in a file.
        name: its id, where it has none.

    Raises:
        DataError: a field is missing, is not read, or is of another kind.
    """
    found = _edits_of(row, name) if row.get("edits") is not None else row_shapes.read_row(row, name)
    return [_with_probes(one) for one in found]


def _edits_of(row: Mapping[str, Any], name: str) -> list[Row]:
    """The edits of a case as rows; what is asked about the case stands in the first."""
    row = {key: value for key, value in row.items() if value is not None}
    for key in row:
        if key not in _CASE:
            raise DataError(f"'{key}' is no field of a case{near(str(key), _CASE)}; a case has {', '.join(_CASE)}")
    named = row_shapes.named_by(row, name, ("id", "case_id", "case"))
    listed = row["edits"]
    if not isinstance(listed, list) or not listed:
        raise DataError(f"'edits' is {listed!r}, expected a list of rows with prompt, subject and target")
    rows: list[Row] = []
    for place, one in enumerate(listed, start=1):
        rows += _one_edit(one, f"{named}.{place}" if len(listed) > 1 else named, place)
    case = {"case": named} if len(rows) > 1 or rows[0]["id"] != named else {}
    row_shapes.require_answers(row)
    asked = row_shapes.with_questions({key: row[key] for key in ("neighborhood", "portability") if key in row})
    first = {key: [*rows[0].get(key, []), *listed] for key, listed in asked.items()}
    about = {"probes": [*(rows[0].get("probes") or []), *_listed(row)]} if "probes" in row else {}
    return [{**rows[0], **case, **first, **about}, *({**one, **case} for one in rows[1:])]


def _one_edit(one: object, name: str, place: int) -> list[Row]:
    if not isinstance(one, Mapping):
        raise DataError(f"edit {place} is {one!r}, expected a row with prompt, subject and target")
    try:
        return row_shapes.read_row(one, name)
    except DataError as error:
        raise DataError(f"edit {place}: {error}") from error


def _listed(row: Mapping[str, Any]) -> list[Any]:
    probes = row.get("probes") or []
    if not isinstance(probes, list):
        raise DataError(f"'probes' is {probes!r}, expected a list of probes, each with kind, prompt and answers")
    return probes


def _with_probes(row: Row) -> Row:
    """A row whose probes are in one form."""
    if "probes" not in row:
        return row
    return {**row, "probes": [_probe(one, place) for place, one in enumerate(_listed(row), start=1)]}


def _probe(said: object, place: int) -> Row:
    where = f"probe {place}"
    if not isinstance(said, Mapping):
        raise DataError(f"{where} is {said!r}, expected kind, prompt and answers")
    for key in said:
        if key not in (*_PROBE, *_NAMES):
            raise DataError(f"{where}: '{key}' is no field of it{near(str(key), _PROBE)}")
    kind = said.get("kind")
    turns, prompt = _asked(said, where)
    require_kind(kind, f"{where}: its kind")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: its prompt is {prompt!r}, expected a text")
    _require_kind(said, where)
    for key in ("rival", "language"):
        require_one(said.get(key), f"{where}: its {key}")
    answers = [*row_shapes.texts_of([said[key] for key in ("answers", *_NAMES) if key in said and key != "question"])]
    found = {"kind": kind, "prompt": str(prompt).rstrip(" \t"), "answers": answers}
    if str(kind) in PLAIN:
        _require_answers(found, where)
        return found
    listed = said.get("protocol", "choice" if "choices" in said else "generation")
    protocols = listed if isinstance(listed, list) else [listed]
    for one in protocols:
        if one not in PROTOCOLS:
            raise DataError(f"{where}: its protocol is {one!r}{near(str(one), PROTOCOLS)}")
    expect = said.get("expect", "new")
    if expect not in EXPECTED:
        raise DataError(f"{where}: its expect is {expect!r}{near(str(expect), EXPECTED)}")
    require_protocols(protocols, expect, where)
    if expect == "refusal":  # the probe's own phrases, or those that are known
        found["answers"] = answers or list(REFUSALS)
    found |= {"protocol": protocols, "expect": expect, **({"turns": turns} if turns else {})}
    found |= {key: said[key] for key in ("rival", "language") if said.get(key) is not None}
    found |= {"choices": [*row_shapes.texts_of(said["choices"])]} if said.get("choices") else {}
    for question in _questions(found):
        require_askable(question, where)
    return found


def _asked(said: Mapping[str, Any], where: str) -> tuple[tuple[tuple[str, str], ...], object]:
    """The turns of a probe, and its prompt, which of turns is their text."""
    turns = turns_of(said.get("turns"), where)
    if turns and ("prompt" in said or "question" in said):
        raise DataError(f"{where}: has a prompt and turns, and is asked once; leave one of them out")
    return turns, "\n".join(text for _, text in turns) if turns else said.get("prompt", said.get("question"))


def _require_kind(said: Mapping[str, Any], where: str) -> None:
    """See that the metrics of a kind have names of their own."""
    kind = str(said["kind"])
    if kind in _TAKEN:
        raise DataError(f"{where}: the kind '{kind}' is what is asked of the edit itself; name it otherwise")
    more = [key for key in ("expect", "protocol", "rival", "choices", "language", "turns") if key in said]
    if kind in PLAIN and more:
        raise DataError(
            f"{where}: the kind '{kind}' is asked as '{PLAIN[kind]}' of a row is; leave '{more[0]}' out, or name the "
            "kind otherwise"
        )


def _require_answers(probe: Mapping[str, Any], where: str) -> None:
    require_askable(Question(probe["kind"], probe["prompt"], tuple(probe["answers"]), "accuracy"), where)


def _questions(probe: Mapping[str, Any]) -> list[Question]:
    """A probe once for each of its protocols."""
    rival, language = probe.get("rival"), probe.get("language")
    return [
        Question(
            kind=probe["kind"],
            prompt=probe["prompt"],
            answers=tuple(dict.fromkeys(probe["answers"])),
            protocol=protocol,
            expect=probe["expect"],
            rival=None if rival is None else str(rival).strip(),
            choices=tuple(probe.get("choices", ())) if protocol == "choice" else (),
            language=None if language is None else str(language),
            turns=tuple((role, text) for role, text in probe.get("turns", ())),
        )
        for protocol in probe["protocol"]
    ]


def together(rows: Sequence[Row]) -> list[Row]:
    """Rows, those of a case behind the first of it.

    Raises:
        DataError: a case has the name of a row that is a case of its own.
    """
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(belongs_to(row), []).append(row)
    for name, members in cases.items():
        alone = [row for row in members if "case" not in row]
        if alone and len(alone) < len(members):
            raise DataError(f"the case '{name}' has the name of another row's id; give one of them another name")
    return [row for members in cases.values() for row in members]


def require_other_answers(row: Mapping[str, Any]) -> None:
    """See that what is right after the edit is not what was right before.

    Raises:
        DataError: an alias is the old answer, but for capitals, spaces and a leading article.
    """
    old = row.get("target_old")
    for alias in row.get("aliases") or ():
        if isinstance(old, str) and old.strip() and folded(alias) == folded(old):
            raise DataError(f"the alias '{alias}' is target_old, what the model says now; leave it out of one of them")


def rival_of(edit: Edit) -> str:
    """The old answer of an edit; empty where there is none, or where it is the new one, with which it would tie."""
    old = (edit.target_old or "").strip()
    return "" if folded(old) == folded(edit.target) else old


# --- the exam ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnCaseSet:
    """The cases of a file, with the questions that no field of a flat row asks.

    Attributes:
        rule: which kinds there are, and how they are asked.
        found: the cases.
    """

    rule: CaseRule
    found: tuple[Case, ...]

    @classmethod
    def read(cls, path: Path) -> OwnCaseSet:
        """The cases of a file.

        Raises:
            DataError: a row cannot be used, or no case asks a question.
        """
        found = tuple(_cases(_own_rows(path)))
        rules: dict[str, ProbeRule] = {}
        for one in (question for case in found for question in case.probes):
            known = rules.get(one.kind, ProbeRule(one.kind, {}, (), one.expect, True))
            if known.expect != one.expect:
                raise DataError(
                    f"{path}: probes of the kind '{one.kind}' expect {known.expect} and {one.expect}; give each a name"
                )
            protocols = tuple(dict.fromkeys([*known.protocols, one.protocol]))
            rules[one.kind] = ProbeRule(one.kind, {}, protocols, one.expect, True)
        return cls(CaseRule(path.name, None, None, None, {}, tuple(rules.values()), {}), found)

    def cases(self, _data_dir: str | None, _split: str, only: Collection[str] | None = None) -> list[Case]:
        """The cases, all or those of some ids; some may ask nothing."""
        return [case for case in self.found if only is None or case.id in only]


def asks_probes(path: Path, cases: Iterable[str]) -> bool:
    """Whether any of some cases of a file has a question that no field of a flat row asks."""
    wanted = set(cases)
    return any(case.probes for case in _cases(_own_rows(path)) if case.id in wanted)


def _cases(rows: Sequence[Row]) -> list[Case]:
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(belongs_to(row), []).append(row)
    return [Case(name, (), _asked_of(some)) for name, some in members.items()]


def _asked_of(rows: Sequence[Row]) -> tuple[Question, ...]:
    """The questions of a case that no field of a flat row asks."""
    asked = [one for row in rows for one in row.get("probes") or () if one["kind"] not in PLAIN]
    edits = [_functions().edit(row) for row in rows] if asked else []
    return tuple(as_edited(question, edits) for probe in asked for question in _questions(probe))


def _functions() -> Any:
    """The edit set ``own``."""
    return data.module(data.TASKS / "edits" / "own" / "functions.py")


def _own_rows(path: Path) -> list[Row]:
    """The rows of a file, as the edit set ``own`` reads them."""
    found: list[Row] = _functions().rows(path)
    return found
