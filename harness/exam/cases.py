"""Cases of a declarative edit set: how a YAML says, by paths, what of a row is edited and what is asked.

A case is several edits that belong together, as a rule one, and what is asked of a model that holds them all.  The
block ``metadata.case`` of a set's YAML says in JMESPath (https://jmespath.org) how a row becomes a case::

    case:
      id: case_id                     # of the row; its number in the file where it is left out
      when: contains(question, name)  # a row where it finds nothing true is no case; left out: every row is one
      edits:
        each: requested_rewrite       # a list of the row; left out: the row is the edit
        prompt: prompt                # with {} where the subject stands, or the subject written out
        subject: subject
        target: target_new.str
        target_old: target_true.str
      probes:
        - kind: hop                   # a name of one's own; tables show it
          each: questions             # one probe for each; left out: the row is one probe
          prompt: value               # an element that is a text is called `value`; the row it stands in, `row`
          answers: "[row.new_answer, row.new_answer_alias]"
          expect: new                 # new (default), old, unchanged, refusal
          protocol: [generation, accuracy]
      languages: [en, de]             # of the questions; left out: whatever the rows say
      compare:                        # with the unedited model, by how likely it holds the same answers
                                      # (or, with ``against``, with the answers to another kind of the same case;
                                      # ``known_by`` names the kind whose choices tell which right ones are known)
        ignore_rate: {kind: others, how: ignore_rate}
      combine:
        hop_any: {kind: hop, how: any}          # right where any question of the case is

Instead of ``prompt`` a probe may have ``turns``: a path to a list of turns of a chat, texts of the user and the
assistant by turns, or objects with ``role`` and ``content``; the last is the user's.  By a chat template they are
turns, and without one lines.  What ``expect: refusal`` wants is a text that declines to answer; ``answers`` are then
phrases that decline, by default :data:`harness.exam.text_metrics.REFUSALS`.  ``after: 1`` asks in isolated mode of a
model that holds the first edit of the case alone, and is missing in others.  Rows that are one fact in several
languages, the n-th row of each value of a field, are brought side by side by ``together: field``: each is a case, and
has all of them as an object ``together``, by that value.

Protocols: ``generation`` (the free continuation begins with one of the answers), ``accuracy`` (teacher-forced share of
the answer's tokens), ``probability`` (an answer is likelier than ``rival``), ``choice`` (of ``choices``, an answer is
the likeliest), ``likelihood`` (how likely the likeliest answer is by token).  Besides JMESPath's own functions a path
can call ``fill(prompt, subject)``, which puts the subject into its slot, ``trim(text)``, ``spelled(text, subject)``,
the subject in the capitals in which the text has it, ``without(text, part)``, and ``entries(object)``, which lists the
fields of an object as ``{key, value}``.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jmespath
from jmespath import functions
from jmespath.exceptions import JMESPathError

from harness.editing.edit import SLOT, Edit
from harness.errors import DataError, near
from harness.exam.compared import COMPARED, LISTED
from harness.exam.text_metrics import REFUSALS, folded

__all__ = [
    "EXPECTED",
    "HOW",
    "PROTOCOLS",
    "ROLES",
    "Case",
    "CaseRule",
    "Combined",
    "ProbeRule",
    "Question",
    "as_edited",
    "case_edits",
    "picked",
    "read_cases",
    "require_askable",
    "require_kind",
    "require_one",
    "require_protocols",
    "row_questions",
    "rule_of",
    "turns_of",
]

log = logging.getLogger(__name__)

PROTOCOLS = ("generation", "accuracy", "probability", "choice", "likelihood")
EXPECTED = ("new", "old", "unchanged", "refusal")
"""Whose answers are right: the edited model's, those of before, whatever the unedited model says, or none at all."""
HOW = ("any", "all", "mean", "first_likelier")
"""How the answers of a case are put together: one of them right, all, or their mean (their share, or of accuracies);
or whether the answer to the first question is likelier than that to the second."""

ROLES = ("user", "assistant")
"""Who speaks in the turns of a question, one after the other."""
_EDIT_FIELDS = ("prompt", "subject", "target", "target_old", "prefix", "suffix", "join", "relation")
_PATHS = ("each", "prompt", "turns", "answers", "rival", "choices", "language", "when")
_PROBE_FIELDS = ("kind", *_PATHS, "expect", "protocol", "lower_is_better", "after")
_WAYS = ("exact_match", "accuracy", "success", "choice", "probability", "refusal", "agreement")
"""What stands behind a kind in the names of the metrics of its questions."""
_NAMES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_MISSPELT = 0.8  # how like two names of fields are, of which one is taken for the other misspelt
_SHOWN = 8  # fields of a row that a message names


@dataclass(frozen=True)
class Question:
    """One question of the exam.

    Attributes:
        kind: what it asks about the edit; a data set names its own.
        prompt: the text to continue.
        answers: the right answers, each an alias of the same thing.
        protocol: how it is asked, one of :data:`PROTOCOLS`.
        expect: whose answers these are: of the edited model (new), of the unedited one (old), or whatever the unedited
            model says (unchanged); or phrases of a text that declines to answer (refusal).
        rival: the answer that a right one must beat, where the protocol compares two.
        choices: what is chosen from, where the protocol is a choice.
        language: of the question, where the set has several.
        turns: of a chat, each the role of who speaks and the text; none where the prompt is asked as it is.
        after: of how many edits of its case the model holds when it is asked; None for all.
        join: what stands between the prompt and an answer; None for what the text would have.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    protocol: str
    expect: str = "new"
    rival: str | None = None
    choices: tuple[str, ...] = ()
    language: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    join: str | None = None


@dataclass(frozen=True)
class Case:
    """Edits that belong together, and what is asked of a model that holds them.

    Attributes:
        id: unique within a set.
        edits: what an editor sees.
        probes: what it never sees.
    """

    id: str
    edits: tuple[Edit, ...]
    probes: tuple[Question, ...]


@dataclass(frozen=True)
class ProbeRule:
    """How questions of one kind are picked from a row: by paths."""

    kind: str
    paths: Mapping[str, str]
    protocols: tuple[str, ...]
    expect: str
    higher: bool
    after: int | None = None


@dataclass(frozen=True)
class Combined:
    """A metric over the questions of a case: right where any, or all, of one kind are."""

    kind: str
    how: str
    protocol: str


@dataclass(frozen=True)
class CaseRule:
    """What a YAML says about cases."""

    name: str
    id: str | None
    when: str | None
    each: str | None
    edit: Mapping[str, str]
    probes: tuple[ProbeRule, ...]
    combine: Mapping[str, Combined]
    languages: tuple[str, ...] = ()
    compare: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    together: str | None = None


# --- the rule ---------------------------------------------------------------------------------------------------------


def rule_of(name: str, said: object, where: str) -> CaseRule:
    """The block ``metadata.case`` of a set.

    Args:
        name: the set.
        said: the block.
        where: what an error names.

    Raises:
        DataError: a field does not exist or is missing, or a path cannot be read.
    """
    block = _mapping(said, where)
    _known(block, ("id", "when", "together", "edits", "probes", "combine", "compare", "languages"), where)
    edit = dict(_mapping(block.get("edits"), f"{where}.edits"))
    each = edit.pop("each", None)
    _known(edit, _EDIT_FIELDS, f"{where}.edits")
    probes = block.get("probes")
    if not isinstance(probes, list) or not probes:
        raise DataError(f"{where}.probes is {probes!r}, expected a list of probes, each with kind, prompt and answers")
    rules = tuple(_probe_rule(one, f"{where}.probes[{i}]") for i, one in enumerate(probes))
    _require_alike(rules, where)
    stages = sorted({rule.after for rule in rules if rule.after is not None})
    if len(stages) > 1:
        raise DataError(f"{where}.probes are asked after {' and '.join(map(str, stages))} edits; name one number alone")
    whole = block.get("id"), block.get("when"), each
    named = zip(("id", "when", "edits.each", *(f"edits.{key}" for key in edit)), (*whole, *edit.values()), strict=True)
    for key, path in named:
        _require_path(path, f"{where}.{key}", optional=key in ("id", "when", "edits.each"))
    combined = _combined(block.get("combine") or {}, rules, where)
    compare = _compare(block.get("compare") or {}, rules, where)
    _require_own_names((*combined, *compare), rules, where)
    _require_edit(edit, f"{where}.edits")
    together = block.get("together")
    if not isinstance(together, str | None):
        raise DataError(f"{where}.together is {together!r}, expected a field of the rows, such as language")
    return CaseRule(name, *whole, edit, rules, combined, _languages(block, rules, where), compare, together)


def _require_edit(edit: Mapping[str, Any], where: str) -> None:
    """See that an edit has paths to all that it needs."""
    needed = ("prefix", "suffix") if "prefix" in edit else ("prompt", "subject", "target")
    missing = [key for key in needed if key not in edit]
    if missing:
        raise DataError(
            f"{where}: no '{missing[0]}'; give paths to prompt, subject and target, or to prefix and suffix"
        )


def _require_path(path: object, where: str, *, optional: bool = False) -> None:
    """See that a path is one: anything else would be read as the text that Python writes of it."""
    if path is None and optional:
        return
    if not isinstance(path, str) or not path.strip():
        raise DataError(f"{where} is {path!r}, expected a path, a text such as facts[0].subject")
    _compiled(path, where)


_SHARED: Mapping[str, Callable[[ProbeRule], object]] = {
    "expect": lambda rule: rule.expect,
    "lower_is_better": lambda rule: not rule.higher,
    "after": lambda rule: rule.after,
}
"""What questions of one kind have in common, by the fields of the YAML."""


def _require_alike(rules: Sequence[ProbeRule], where: str) -> None:
    """See that questions of one kind, which share their metrics, are scored alike."""
    first: dict[str, ProbeRule] = {}
    for rule in rules:
        known = first.setdefault(rule.kind, rule)
        for key, value_of in _SHARED.items():
            mine, theirs = value_of(rule), value_of(known)
            if mine != theirs:
                raise DataError(
                    f"{where}.probes: those of the kind '{rule.kind}' have {key} {theirs} and {mine}; give each a name"
                )


def _require_own_names(metrics: Sequence[str], rules: Sequence[ProbeRule], where: str) -> None:
    """See that what is put together from questions has other names than their own metrics, and each its own."""
    taken = {f"{rule.kind}_{way}" for rule in rules for way in _WAYS}
    for metric in metrics:
        require_kind(metric, f"{where}: the name of a metric")
        if metrics.count(metric) > 1 or metric in taken:
            raise DataError(f"{where}: '{metric}' is a metric already; give what is put together another name")


def require_kind(kind: object, where: str) -> None:
    """See that a kind of questions can be part of a metric's name, behind which languages and filters stand.

    Args:
        kind: its name.
        where: what an error names.

    Raises:
        DataError: it is no text, is empty, or holds a dot, a comma or a slash.
    """
    if not isinstance(kind, str) or not kind.strip():
        raise DataError(f"{where} is {kind!r}, expected a text")
    if any(mark in kind for mark in ".,/"):
        raise DataError(
            f"{where} is {kind!r}; leave dots, commas and slashes out of it, which part what stands behind it"
        )


def require_protocols(protocols: Sequence[object], expect: str, where: str) -> None:
    """See that questions can be asked in some ways, each once, for what is expected of them.

    Args:
        protocols: the ways.
        expect: whose answers are right.
        where: what an error names.

    Raises:
        DataError: there is none, one is unknown or stands twice, or what is expected is told by a free text alone.
    """
    if not protocols or len(set(map(str, protocols))) < len(protocols):
        raise DataError(f"{where}: its protocol is {list(protocols)}, expected one or several different ones")
    if expect in ("unchanged", "refusal") and list(protocols) != ["generation"]:
        what = "a refusal is what a free text says" if expect == "refusal" else "unchanged is what two free texts say"
        raise DataError(f"{where}: {what}; leave 'protocol' out, or give generation")


def _compare(said: object, rules: Sequence[ProbeRule], where: str) -> dict[str, dict[str, str]]:
    """The metrics that hold how likely answers are against how likely they were."""
    found = {}
    for metric, one in _mapping(said, f"{where}.compare").items():
        place = f"{where}.compare.{metric}"
        _known(_mapping(one, place), ("kind", "how", "against", "known_by"), place)
        how = _choice(one.get("how"), [*COMPARED, *LISTED], f"{place}.how")
        # Of one kind with both protocols it would not be known which answers are meant.
        needed, other = ("choice", "likelihood") if how in LISTED else ("likelihood", "choice")
        known = [rule.kind for rule in rules if needed in rule.protocols and other not in rule.protocols]
        kind = _choice(one.get("kind"), known, f"{place}.kind, which needs the protocol {needed},")
        found[str(metric)] = {"kind": kind, "how": how}
        if "known_by" in one and how not in LISTED:
            raise DataError(f"{place}: known_by goes with {', '.join(LISTED)}, and not with {how}; leave it out")
        for key in (key for key in ("against", "known_by") if key in one):
            found[str(metric)][key] = _choice(one[key], known, f"{place}.{key}")
    return found


def _languages(block: Mapping[str, Any], rules: Sequence[ProbeRule], where: str) -> tuple[str, ...]:
    """The languages in which a set says that it asks."""
    named = block.get("languages") or []
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise DataError(f"{where}.languages is {named!r}, expected a list of names, such as [en, de]")
    if named and not any("language" in rule.paths for rule in rules):
        raise DataError(f"{where}.languages names {', '.join(named)}, but no probe says its 'language'; give a path")
    return tuple(named)


def _probe_rule(said: object, where: str) -> ProbeRule:
    probe = _mapping(said, where)
    _known(probe, _PROBE_FIELDS, where)
    if "prompt" in probe and "turns" in probe:
        raise DataError(f"{where} has a prompt and turns, and is asked once; leave one of them out")
    require_kind(probe.get("kind"), f"{where}.kind")
    asked = "turns" if "turns" in probe else "prompt"
    _require_path(probe.get(asked), f"{where}.{asked}")
    protocol = probe.get("protocol", "generation")
    protocols = tuple(protocol) if isinstance(protocol, list) else (protocol,)
    for one in protocols:
        _choice(one, PROTOCOLS, f"{where}.protocol")
    expect = _choice(probe.get("expect", "new"), EXPECTED, f"{where}.expect")
    if "answers" not in probe and expect not in ("unchanged", "refusal"):
        raise DataError(f"{where}: no 'answers'; give a path to the right ones, or expect: unchanged")
    require_protocols(protocols, expect, where)
    if "probability" in protocols and "rival" not in probe:
        raise DataError(f"{where}: probability compares two answers; give a path to the 'rival'")
    if "choice" in protocols and "choices" not in probe:
        raise DataError(f"{where}: a choice needs a path to the 'choices'")
    paths = {key: probe[key] for key in _PATHS if key in probe}
    for key, path in paths.items():
        _require_path(path, f"{where}.{key}")
    if not isinstance(probe.get("lower_is_better", False), bool):
        raise DataError(f"{where}.lower_is_better is {probe['lower_is_better']!r}, expected true or false")
    after = probe.get("after")
    if after is not None and (isinstance(after, bool) or not isinstance(after, int) or after < 1):
        raise DataError(f"{where}.after is {after!r}, expected how many of the case's edits are made, such as 1")
    return ProbeRule(probe["kind"], paths, protocols, expect, not probe.get("lower_is_better", False), after)


def _combined(said: object, rules: Sequence[ProbeRule], where: str) -> dict[str, Combined]:
    """The metrics that put the questions of a case together."""
    found = {}
    for metric, one in _mapping(said, f"{where}.combine").items():
        place = f"{where}.combine.{metric}"
        _known(_mapping(one, place), ("kind", "how", "protocol"), place)
        # What is unchanged is told by two models, and no document says it alone.
        kind = _choice(one.get("kind"), [r.kind for r in rules if r.expect != "unchanged"], f"{place}.kind")
        asked = next(rule.protocols for rule in rules if rule.kind == kind)
        protocol = _choice(one.get("protocol", asked[0]), asked, f"{place}.protocol")
        how = _choice(one.get("how"), HOW, f"{place}.how")
        if (how == "first_likelier") != (protocol == "likelihood"):
            raise DataError(f"{place}: {how} of {protocol}; first_likelier goes with the protocol likelihood alone")
        found[str(metric)] = Combined(kind, how, protocol)
    return found


def _mapping(said: object, where: str) -> Mapping[str, Any]:
    if not isinstance(said, Mapping):
        raise DataError(f"{where} is {said!r}, expected fields and paths")
    return said


def _known(said: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in said:
        if key not in known:
            raise DataError(f"{where}: '{key}' is no field of it{near(str(key), known)}")


def _choice(said: object, known: Sequence[str], where: str) -> str:
    if said not in known:
        raise DataError(f"{where} is {said!r}{near(str(said), known)}")
    return str(said)


class _Functions(functions.Functions):  # type: ignore[misc]  # jmespath has no types
    """What a path can call besides JMESPath's own functions."""

    @functions.signature({"types": ["string"]}, {"types": ["string"]})  # type: ignore[untyped-decorator]
    def _func_fill(self, prompt: str, subject: str) -> str:
        """``fill(prompt, subject)``: the prompt with the subject in its slot."""
        return prompt.replace(SLOT, subject, 1)

    @functions.signature({"types": ["string"]}, {"types": ["string"]})  # type: ignore[untyped-decorator]
    def _func_spelled(self, text: str, subject: str) -> str:
        """``spelled(text, subject)``: the subject in the capitals in which the text has it."""
        found = re.search(re.escape(subject), text, re.IGNORECASE)
        return subject if found is None else found.group()

    @functions.signature({"types": ["string"]})  # type: ignore[untyped-decorator]
    def _func_trim(self, text: str) -> str:
        """``trim(text)``: the text without white space around it."""
        return text.strip()

    @functions.signature({"types": ["string"]}, {"types": ["string"]})  # type: ignore[untyped-decorator]
    def _func_without(self, text: str, part: str) -> str:
        """``without(text, part)``: the text without a part of it, where it first stands."""
        return text.replace(part, "", 1)

    @functions.signature({"types": ["object"]})  # type: ignore[untyped-decorator]
    def _func_entries(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        """``entries(object)``: its fields as a list of ``{key, value}``, where names are data, such as languages."""
        return [{"key": key, "value": value} for key, value in fields.items()]


_OPTIONS = jmespath.Options(custom_functions=_Functions())


_folded = functools.lru_cache(maxsize=4096)(folded)  # a case asks for the same answers many times
_parsed_once = functools.lru_cache(maxsize=1024)(jmespath.compile)


def _compiled(path: str, where: str) -> Any:
    try:
        return _parsed_once(path)
    except JMESPathError as error:
        raise DataError(f"{where}: '{path}' is no JMESPath ({' '.join(str(error).split())[:120]})") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def read_cases(
    rule: CaseRule, rows: Iterable[Mapping[str, Any]], as_edit: Any, *, only: Collection[str] | None = None
) -> list[Case]:
    """The cases of rows, in their order.

    Args:
        rule: what the YAML says.
        rows: as they stand in the file.
        as_edit: makes an :class:`Edit` of a row of ``id, prompt, subject, target`` and what else it may have.
        only: the ids of the cases that are wanted; None for all.

    Raises:
        DataError: a path finds nothing in a row, a probe has no answer, or an id occurs twice; names the row.
    """
    given = list(rows)
    rows = _arranged(rule, given)
    begun = [one for one in _begun(rule, rows) if only is None or one.name in only]
    found = [_case(rule, one, as_edit) for one in begun]
    _require_found(rule, rows, found)
    _warn_of_old_answers(rule, found, {one.name: one.where for one in begun})
    if only is not None and rule.languages and set(rule.languages) != _languages_of(found):
        found = [case for case in read_cases(rule, given, as_edit) if case.id in only]
    elif only is None:
        _require_languages(rule, found)
    return found


def case_edits(
    rule: CaseRule, rows: Iterable[Mapping[str, Any]], as_edit: Any, *, count: int | None = None
) -> list[Edit]:
    """The edits of all cases of rows, in their order; what is asked about them is not looked at.

    Args:
        rule: what the YAML says.
        rows: as they stand in the file.
        as_edit: as of :func:`read_cases`.
        count: how many cases from the beginning; None for all.

    Raises:
        DataError: as :func:`read_cases`.
    """
    rows = _arranged(rule, list(rows))
    found = [edit for one in _begun(rule, rows)[:count] for edit in _edits(rule, one, as_edit)]
    if "target_old" in rule.edit and found and not any(edit.target_old for edit in found):
        parts = [part for row in rows for part in _elements(rule.each, row, rule.name, optional=True)]
        _require_begun(rule.edit["target_old"], parts, rule, "the edits' target_old", asked=False)
    return found


@dataclass(frozen=True)
class _Begun:
    """A row that is a case."""

    name: str
    row: Mapping[str, Any]
    where: str
    number: int


def _begun(rule: CaseRule, rows: Sequence[Mapping[str, Any]]) -> list[_Begun]:
    """The rows that are cases, whose ids all differ."""
    found: dict[str, _Begun] = {}
    for number, row in enumerate(rows):
        where = f"{rule.name}, row {number + 1}"
        if rule.when is not None and not _at(rule.when, row, where):
            continue
        name = str(number) if rule.id is None else _name_of(rule.id, row, where)
        if name in found:
            rows_of_it = f"rows {found[name].number + 1} and {number + 1}"
            raise DataError(f"{rule.name}: the id {name} occurs twice ({rows_of_it}); give each row an id of its own")
        found[name] = _Begun(name, row, where, number)
    if rows and not found:
        has = _has(str(rule.when), {**rows[0], "row": rows[0]}, "a row")
        raise DataError(f"{rule.name}: no row is a case: '{rule.when}' finds nothing true in any; {has}")
    return list(found.values())


def _name_of(path: str, row: Mapping[str, Any], where: str) -> str:
    """The id that a path finds."""
    found = _found(path, row, where)
    if not isinstance(found, str | int | float) or isinstance(found, bool) or not str(found).strip():
        raise DataError(
            f"{where}: '{path}' finds {_short(found) or 'an empty text'} for the id, expected a name or a number"
        )
    return str(found)


def _arranged(rule: CaseRule, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows fact by fact, each with all rows of its fact: the n-th of each value of a field are one fact.

    Raises:
        DataError: a row lacks the field, or one value has more rows than another.
    """
    if rule.together is None:
        return rows
    sorts: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        value = _at(str(rule.together), row, rule.name)
        if not isinstance(value, str):
            raise DataError(f"{rule.name}, row {number + 1}: '{rule.together}' finds no text; it has {_fields(row)}")
        sorts.setdefault(value, []).append(row)
    counts = {value: len(listed) for value, listed in sorts.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {value}" for value, count in counts.items())
        raise DataError(f"{rule.name}: together: {rule.together} finds {told}; each needs as many rows as the others")
    facts = [dict(zip(sorts, fact, strict=True)) for fact in zip(*sorts.values(), strict=True)]
    return [{**row, "together": fact} for fact in facts for row in fact.values()]


def _require_found(rule: CaseRule, rows: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> None:
    """Tell of a path that finds nothing because no row has the field with which it begins.

    Raises:
        DataError: rows have a field of nearly that name.
    """
    asked = {question.kind for case in cases for question in case.probes}
    for probe in (one for one in rule.probes if cases and one.kind not in asked):
        what = f"the {probe.kind} questions"
        each = probe.paths.get("each")
        _require_begun(each, [{**row, "row": row} for row in rows], rule, what)
        parts = [part for row in rows for part in _elements(each, row, rule.name, optional=True)]
        for key in ("prompt", "turns", "when"):
            _require_begun(probe.paths.get(key), parts, rule, what)


def _require_begun(
    path: str | None, parts: Sequence[Mapping[str, Any]], rule: CaseRule, what: str, *, asked: bool = True
) -> None:
    name = rule.name
    read = {field for one in _paths_of(rule) for field in _begins_with(_compiled(one, name).parsed)}
    known = {key for part in parts for key in part}
    begun = set() if path is None else _begins_with(_compiled(path, name).parsed)
    if path is None or not parts or not begun:
        return
    if begun & known:
        _require_followed(path, parts, f"{name}: '{path}' finds nothing for {what} in any row", asked=asked)
        return
    meant = difflib.get_close_matches(min(begun), sorted(known - {"row", *read}), n=1, cutoff=_MISSPELT)
    said = f"{name}: '{path}' finds nothing for {what} in any row"
    if meant:
        raise DataError(f"{said} (did you mean {meant[0]}?); a row has {_fields(parts[0])}")
    log.warning("%s, so that they are not asked; a row has %s", said, _fields(parts[0]))


def _require_followed(path: str, parts: Sequence[Mapping[str, Any]], said: str, *, asked: bool) -> None:
    """Tell of a path of names that begins well and stops on its way, in every row."""
    stops = [_stop(path, part) for part in parts]
    if any(missing is None for _, missing, _ in stops):
        return
    reached, missing, value = max(stops, key=lambda stop: len(stop[0]))
    has = f"'{reached}' has {_fields(value)}" if isinstance(value, Mapping) else f"'{reached}' is {_short(value)}"
    meant = _meant(str(missing), value) if isinstance(value, Mapping) else ""
    if meant:
        raise DataError(f"{said}; {has}{meant}")
    if asked:
        log.warning("%s, so that they are not asked; %s", said, has)


def _paths_of(rule: CaseRule) -> list[str]:
    """All paths of a rule."""
    probes = (path for one in rule.probes for path in one.paths.values())
    return [path for path in (rule.id, rule.when, rule.each, *rule.edit.values(), *probes) if path]


def _begins_with(node: Mapping[str, Any]) -> set[str]:
    """The fields of a row at which a parsed path sets out; none where it takes the row as it is."""
    if node["type"] == "field":
        return {str(node["value"])}
    children = [one for one in node.get("children", ()) if isinstance(one, Mapping)]
    through = ("function_expression", "or_expression", "and_expression", "not_expression", "comparator",
               "multi_select_list")  # fmt: skip
    return set().union(*(_begins_with(one) for one in (children if node["type"] in through else children[:1])))


def _languages_of(cases: Sequence[Case]) -> set[str]:
    return {question.language for case in cases for question in case.probes if question.language}


def _require_languages(rule: CaseRule, cases: Sequence[Case]) -> None:
    """See that a set asks in the languages that it names, and in no other."""
    asked = sorted(_languages_of(cases))
    if not rule.languages or not cases:
        return
    for language in rule.languages:
        if language not in asked:
            raise DataError(
                f"{rule.name}: the language '{language}' has no probes{near(language, asked)}; leave it out of "
                "metadata.case.languages, or give rows that ask in it"
            )
    for language in asked:
        if language not in rule.languages:
            raise DataError(
                f"{rule.name}: a probe is in '{language}'{near(language, rule.languages)}; name it in "
                "metadata.case.languages, or leave those probes out"
            )


def _edits(rule: CaseRule, case: _Begun, as_edit: Any) -> tuple[Edit, ...]:
    """What an editor is asked to do."""
    parts = list(_elements(rule.each, case.row, case.where))
    edits = []
    for place, part in enumerate(parts, start=1):
        told = picked(rule, part, case.where)
        _require_texts(rule.edit, told, part, case.where)
        edit = _made(as_edit, {"id": case.name if len(parts) == 1 else f"{case.name}.{place}", **told}, case.where)
        edit = replace(edit, relation=told["relation"]) if "relation" in told else edit
        edits.append(edit if len(parts) == 1 else replace(edit, case=case.name))
    return tuple(edits)


def _made(as_edit: Any, told: Mapping[str, Any], where: str) -> Edit:
    try:
        made: Edit = as_edit(told)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return made


def picked(rule: CaseRule, part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of an edit that the paths of a set find.

    Args:
        rule: what the YAML says.
        part: the row, or the element of a row that is the edit.
        where: what an error names.

    Raises:
        DataError: a path cannot be followed.
    """
    found = {key: _at(path, part, where) for key, path in rule.edit.items()}
    return {key: value for key, value in found.items() if value is not None}


def row_questions(rule: CaseRule, row: Mapping[str, Any], where: str) -> list[Question]:
    """What a row asks, in the first protocol of each kind, of rows that were seen to be askable as they were read.

    Args:
        rule: what the YAML says.
        row: the row.
        where: what an error names.

    Raises:
        DataError: a path cannot be followed, or finds what it should not.
    """
    found = (question for one in rule.probes for question, _ in _questions(one, row, where))
    first = {one.kind: one.protocols[0] for one in reversed(rule.probes)}
    return [question for question in found if question.protocol == first[question.kind]]


def _case(rule: CaseRule, begun: _Begun, as_edit: Any) -> Case:
    """The edits of a case, and what is asked about them."""
    edits = tuple(_edits(rule, begun, as_edit))
    return Case(begun.name, edits, tuple(as_edited(one, edits) for one in _probes(rule, begun)))


def as_edited(question: Question, edits: Sequence[Edit]) -> Question:
    """A question with what its edit has between prompt and target, where it asks the prompt or the answer of one.

    Args:
        question: the question.
        edits: those of its case.
    """
    said = [edit for edit in edits if edit.join is not None]
    same = [edit.join for edit in said if edit.text == question.prompt]
    # A line break that ends a prompt is the prompt's, and stands between no other one and the answer.
    if not question.prompt[-1:].isspace():
        same += [edit.join for edit in said if edit.target in question.answers and not edit.text[-1:].isspace()]
    return replace(question, join=same[0]) if same else question


def _probes(rule: CaseRule, case: _Begun) -> tuple[Question, ...]:
    """What is asked of a model that holds the edits."""
    found = []
    for one in rule.probes:
        for question, part in _questions(one, case.row, case.where):
            require_askable(question, case.where, _missing(one, question, part))
            found.append(question)
    return tuple(found)


def _warn_of_old_answers(rule: CaseRule, cases: Sequence[Case], where: Mapping[str, str]) -> None:
    """Tell of questions where an alias of what is right after an edit is what was right before it.

    Args:
        rule: what the YAML says.
        cases: the cases.
        where: of each case, what a message names.
    """
    found = [told for case in cases for told in _old_answers(rule, case)]
    if found:
        case, question, alias = found[0]
        log.warning(
            "%s: an alias is the old answer of the edit, and counts as right (questions: %d); the first: %s, its %s "
            "question '%s' has '%s'",
            *(rule.name, len(found), where[case.id], question.kind, _short(question.prompt), alias),
        )


def _old_answers(rule: CaseRule, case: Case) -> Iterator[tuple[Case, Question, str]]:
    wanted = {one.kind for one in rule.probes if one.higher and one.expect == "new"}
    asked = {(one.kind, one.prompt): one for one in case.probes if one.kind in wanted}
    for edit in (edit for edit in case.edits if edit.target_old):
        new, old = _folded(edit.target), _folded(edit.target_old or "")
        for question in asked.values():
            same = {_folded(answer): answer for answer in question.answers}
            if new != old and new in same and old in same:
                yield case, question, same[old]


def _questions(rule: ProbeRule, row: Mapping[str, Any], where: str) -> Iterator[tuple[Question, Mapping[str, Any]]]:
    """The questions of one kind that a row asks, each with what it is picked from; none where it has none."""
    for part in _elements(rule.paths.get("each"), row, where, optional=True):
        if "when" in rule.paths and not _at(rule.paths["when"], part, where):
            continue
        turns = turns_of(_at(rule.paths["turns"], part, where), where) if "turns" in rule.paths else ()
        prompt = (
            "\n".join(text for _, text in turns) if "turns" in rule.paths else _at(rule.paths["prompt"], part, where)
        )
        if prompt in (None, ""):
            continue  # a row that lacks this kind is not asked about it
        if isinstance(prompt, Mapping | list):
            said = f"{where}: '{rule.paths['prompt']}' finds {_short(prompt)} for the prompt of a {rule.kind} question"
            raise DataError(f"{said}, expected a text")
        answers = _texts_at(rule, "answers", part, where)
        if rule.expect == "refusal" and "answers" not in rule.paths:
            answers = REFUSALS
        rival = _at(rule.paths["rival"], part, where) if "rival" in rule.paths else None
        require_one(rival, f"{where}: the rival of a {rule.kind} question")
        choices = _texts_at(rule, "choices", part, where)
        language = _found(rule.paths["language"], part, where) if "language" in rule.paths else None
        require_one(language, f"{where}: the language of a {rule.kind} question")
        for protocol in rule.protocols:
            question = Question(
                rule.kind,
                str(prompt).rstrip(" \t"),
                answers,
                protocol,
                rule.expect,
                None if rival is None else str(rival).strip(),
                choices if protocol == "choice" else (),
                None if language is None else str(language),
                turns,
                rule.after,
            )
            yield question, part


def require_one(value: object, where: str) -> None:
    """See that a value is one text or number, or none: a list would be read as the text that Python writes of it.

    Args:
        value: what a row has.
        where: what an error names.

    Raises:
        DataError: it is a list or an object.
    """
    if isinstance(value, Mapping | list):
        raise DataError(f"{where} is {_short(value)}, expected one text")


def turns_of(said: object, where: str) -> tuple[tuple[str, str], ...]:
    """Turns of a chat, each a role and a text; none of nothing.

    Args:
        said: texts of the user and the assistant by turns, or objects with ``role`` and ``content``.
        where: what an error names.

    Raises:
        DataError: it is no such list, or the user does not have the first and the last word.
    """
    if said is None or said == []:
        return ()
    if not isinstance(said, list):
        raise DataError(
            f"{where}: turns are {_short(said)}, expected a list of texts, or of objects with role and content"
        )
    found = []
    for place, one in enumerate(said):
        told = one if isinstance(one, Mapping) else {"role": ROLES[place % 2], "content": one}
        role, text = told.get("role"), told.get("content")
        if role not in ROLES or not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{where}: turn {place + 1} is {_short(one)}, expected a text, or role (user or assistant) and "
                "content; a system turn is --system-instruction"
            )
        found.append((str(role), text.strip()))
    if found[0][0] != "user" or found[-1][0] != "user":
        raise DataError(f"{where}: turns are of {', '.join(role for role, _ in found)}; begin and end with the user")
    return tuple(found)


def _missing(rule: ProbeRule, question: Question, part: Mapping[str, Any]) -> str:
    """Which path of a question finds nothing that it needs, and what the row has; empty where all find something."""
    found = {"answers": question.answers or question.expect == "unchanged", "rival": question.rival or False}
    found["choices"] = question.choices
    needed = {"probability": ["rival"], "choice": ["choices"]}.get(question.protocol, [])
    path = next((rule.paths[key] for key in ["answers", *needed] if key in rule.paths and not found[key]), None)
    return "" if path is None else f" ('{path}' finds nothing; {_has(path, part)})"


def require_askable(question: Question, where: str, why: str = "") -> None:
    """See that a question can be answered rightly and wrongly.

    Args:
        question: the question.
        where: what an error names.
        why: what an error adds where something is missing.

    Raises:
        DataError: it has no answer, nothing to compare it with, no right or no wrong choice, or the rival is right as
            well.
    """
    said = f"{where}: its {question.kind} question '{_short(question.prompt)}'"
    if not question.answers and question.expect != "unchanged":
        raise DataError(f"{said} has no answer{why}; give one, or leave it out")
    if question.protocol == "probability" and not question.rival:
        raise DataError(f"{said} has no rival to compare its answer with{why}; give one, or leave it out")
    same = [one for one in question.answers if question.rival and _folded(one) == _folded(question.rival)]
    if same:
        raise DataError(f"{said} has '{same[0]}' both as an answer and as the rival; leave it out of one of them")
    if question.protocol == "choice" and not set(question.answers) & set(question.choices):
        raise DataError(
            f"{said} has none of its answers among its choices ({_short(', '.join(question.choices)) or 'none'}){why}"
        )
    if question.protocol == "choice" and set(question.choices) <= set(question.answers):
        raise DataError(
            f"{said} has no wrong choice ({_short(', '.join(question.choices))}); give one, or leave it out"
        )


def _elements(each: str | None, row: Mapping[str, Any], where: str, *, optional: bool = False) -> Iterator[Any]:
    """What edits or questions are picked from: the row, or each element of a list in it, with the row beside it."""
    if each is None:
        yield {**row, "row": row}
        return
    listed = _at(each, row, where)
    if listed is None and optional:
        return
    if not isinstance(listed, list):
        what = "nothing" if listed is None else _short(listed)
        has = _has(each, row, "the row") if listed is None else f"the row has {_fields(row)}"
        raise DataError(f"{where}: '{each}' finds {what}, expected a list; {has}")
    for one in listed:
        yield {**one, "row": row} if isinstance(one, Mapping) else {"value": one, "row": row}


def _require_texts(paths: Mapping[str, str], told: Mapping[str, Any], part: Mapping[str, Any], where: str) -> None:
    for key, path in paths.items():
        if key not in told and key not in ("target_old", "join", "relation"):
            raise DataError(f"{where}: '{path}' finds nothing for the edit's {key}; {_has(path, part)}")
        if key in told and not isinstance(told[key], str):
            raise DataError(f"{where}: '{path}' finds {_short(told[key])} for the edit's {key}, expected a text")


def _found(path: str, row: Mapping[str, Any], where: str) -> Any:
    value = _at(path, row, where)
    if value is None:
        raise DataError(f"{where}: '{path}' finds nothing; {_has(path, row, 'the row')}")
    return value


def _at(path: str, row: Any, where: str) -> Any:
    names = _names_of(path)
    if names is not None:
        for name in names:
            row = row.get(name) if isinstance(row, Mapping) else None
        return row
    try:
        return _compiled(path, where).search(row, _OPTIONS)
    except JMESPathError as error:
        has = f"; it has {_fields(row)}" if isinstance(row, Mapping) else ""
        raise DataError(f"{where}: '{path}' cannot be followed ({' '.join(str(error).split())[:120]}){has}") from error


@functools.lru_cache(maxsize=1024)
def _names_of(path: str) -> tuple[str, ...] | None:
    """The names of a path of names and dots alone, which is followed without JMESPath ten times as fast; else None."""
    return tuple(path.split(".")) if _NAMES.fullmatch(path) else None


def _texts_at(rule: ProbeRule, key: str, part: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The texts that a path of a probe finds; none where it names no such path."""
    value = _at(rule.paths[key], part, where) if key in rule.paths else None
    if any(isinstance(one, Mapping) for one in _leaves(value)):
        said = f"{where}: '{rule.paths[key]}' finds {_short(value)} for the {key} of a {rule.kind} question"
        raise DataError(f"{said}, expected a text, a list, or lists of aliases")
    return tuple(_texts(value))


def _leaves(value: object) -> Iterator[object]:
    """What stands in a value that may be a list, or a list of lists."""
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _texts(value: object) -> Iterator[str]:
    """Texts of a value that is one, or a list of them or of such lists; each once, without what is empty."""
    seen: set[str] = set()
    for text in _flat(value):
        if text and text not in seen:
            seen.add(text)
            yield text


def _flat(value: object) -> Iterator[str]:
    return (str(one).strip() for one in _leaves(value) if one is not None)


def _has(path: str, part: Mapping[str, Any], whole: str = "it") -> str:
    """What there is where a path of names stops, with the name that may be meant."""
    reached, missing, value = _stop(path, part)
    if not reached or missing is None:
        return f"{whole} has {_fields(part)}"
    if not isinstance(value, Mapping):
        return f"'{reached}' is {_short(value)}"
    return f"'{reached}' has {_fields(value)}{_meant(missing, value)}"


def _stop(path: str, part: Mapping[str, Any]) -> tuple[str, str | None, Any]:
    """How far a path of names leads, the name that is not there, and what there is; no name where it leads on."""
    names, value = _names_of(path) or (), part
    for place, name in enumerate(names):
        if not isinstance(value, Mapping) or name not in value:
            return ".".join(names[:place]), name, value
        value = value[name]
    return ".".join(names), None, value


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_MISSPELT)
    return f" (did you mean {close[0]}?)" if close else ""


def _fields(row: Mapping[str, Any]) -> str:
    names = [name for name in row if name != "row"]
    if names == ["value"]:  # an element that has no fields
        return f"value, {_short(row['value'])}"
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
