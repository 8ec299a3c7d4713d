"""One's own edits, from a file of JSON lines: how they are read and how they are scored.

Which fields are the edit, and what is asked about it, ``own.yaml`` says by paths.  Here stands what no path can say:
rows that cannot be used are named together, a subject that is written out gets its slot, what stands between prompt and
target, cases of rows that lie apart, and probes that name their own kind.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import (
    DataError,
    Forced,
    Ratio,
    UsageError,
    begins_with,
    cases,
    data,
    own_cases,
    row_shapes,
    trimmed,
)

if TYPE_CHECKING:
    import datasets

    from harness.task_kit import Edit, Example

Row = dict[str, Any]
Doc = Mapping[str, Any]

TEXTS = ("prompt", "subject", "target", "target_old", "prefix", "suffix", "join")
LISTS = ("paraphrases", "aliases")
PREFIX = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "locality", "portability": "portability"}
OTHERS = ("neighborhood", "portability")
EXACT = {
    "rewrite": "generation_exact_match",
    "paraphrase": "paraphrase_exact_match",
    "portability": "portability_exact_match",
}
WRONG = 10  # rows that one message names

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def declared() -> cases.CaseRule:
    """What the YAML says: which fields of a row are its edit, and what is asked about it."""
    path = Path(__file__).with_name("own.yaml")
    return cases.rule_of("own", data.read_yaml(path)["metadata"]["case"], f"{path}: metadata.case")


def rows(path: Path) -> list[Row]:
    """The rows of a file in our own shape, each with an ``id`` (its own, or its line) and a valid edit.

    Raises:
        DataError: rows cannot be used; names the file and their lines.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give JSON lines with prompt, subject and target, or prefix and suffix")
    return usable(data.read_numbered_rows(path), str(path))


def usable(read: Iterable[tuple[str, str, object]], where: str) -> list[Row]:
    """Rows of any shape in our own, those of a case behind the first of it.

    Args:
        read: of each row where it stands, its id where it has none, and the row or why it is none.
        where: what they all stand in.

    Raises:
        DataError: some cannot be used; one line names each of them, up to ten.
    """
    found: list[Row] = []
    wrong: dict[str, list[str]] = {}
    for place, name, row in read:
        try:
            found += _read(row, name)
        except DataError as error:  # noqa: PERF203  # one bad row must not hide the next
            wrong.setdefault(str(error), []).append(place)
    if wrong:
        raise DataError(f"{where}, {_named(wrong)}")
    try:
        return own_cases.together(found)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _named(wrong: Mapping[str, Sequence[str]]) -> str:
    """The rows that cannot be used, up to ten, those with the same fault together."""
    said: list[str] = []
    left = WRONG
    for fault, places in wrong.items():
        if left > 0:
            said.append(f"{', '.join(places[:left])}: {fault}")
            left -= len(places)
    count = sum(map(len, wrong.values()))
    return "; ".join([*said, *([f"and {count - WRONG} more rows"] if count > WRONG else [])])


def _read(row: object, name: str) -> list[Row]:
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"is of type {type(row).__name__}, expected an Edit, or prompt, subject ...")
    found = own_cases.own_rows_of(row, name)
    for one in found:
        edit(one)
        own_cases.require_other_answers(one)
    return found


def edit(row: Row) -> Edit:
    """One row as an edit.

    A row holds ``prompt, subject, target`` (the prompt with ``{}`` or the subject written out) or ``prefix, suffix``.
    What stands between prompt and target is a space, or nothing where the text would have none; ``join`` says it.
    """
    from harness.task_kit import Edit

    for key in TEXTS:
        if key in row and not isinstance(row[key], str):
            raise DataError(f"'{key}' is {row[key]!r}, expected a text")
    for key in LISTS:
        listed = row.get(key) or []
        if not (isinstance(listed, list) and all(isinstance(text, str) and text.strip() for text in listed)):
            raise DataError(f"'{key}' is {listed!r}, expected a list of texts")
    for key in ("prompt", "prefix"):
        if key in row and not row[key].strip():
            raise DataError(f"'{key}' is empty; give the text that the model continues")
    told = {"id": row["id"], **cases.picked(declared(), row, f"own, row {row['id']}")}
    old = told["target_old"].strip() if "target_old" in told else None
    if "prefix" in told:
        prompt, target, join = seam(told, _text(told, "prefix"))
        return Edit(row["id"], prompt, None, target, old, join=join, case=row.get("case"))
    prompt, target, join = seam(told, _text(told, "prompt"))
    subject = _text(told, "subject").strip()
    prompt, slot = _with_slot(prompt, subject)
    return Edit(row["id"], prompt, subject, target, old, join=join, slot=slot, case=row.get("case"))


def seam(row: Row, prompt: str) -> tuple[str, str, str | None]:
    """A prompt and the row's target without white space between them, and what the row wants there, if it says so."""
    before, target, join = trimmed(prompt, _text(row, "suffix" if "prefix" in row else "target"))
    return before, target, row.get("join", join)


def _with_slot(prompt: str, subject: str) -> tuple[str, int | None]:
    """The prompt with its slot where the subject stands, and the place of the slot if other braces are text."""
    if not subject:
        return prompt, None
    if "{}" in prompt:  # a part of a word is no subject where there may be a slot
        # A pattern for each subject is most of the time that thousands of rows take.
        found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt) if subject in prompt else None
        if found is None:
            return prompt, None
        start = found.start()
    else:
        start = row_shapes.place_of(subject, prompt)
    made = prompt[:start] + "{}" + prompt[start + len(subject) :]
    return made, None if made.count("{}") == 1 else start


def _text(row: Row, key: str) -> str:
    if key not in row:
        raise DataError(f"'{key}' is missing; rows hold prompt, subject and target, or prefix and suffix")
    return str(row[key])


def edits(found: Sequence[Row]) -> list[Edit]:
    """What an editor is asked to do, one edit a row."""
    made = [edit(row) for row in found]
    cut = [one.id for one, row in zip(made, found, strict=True) if _cut(row)]
    if cut:
        log.warning(
            "own: white space between prompt and target, or behind the target, is taken off in %d rows: %s",
            len(cut),
            ", ".join(cut[:5]),
        )
    text = [one.id for one in made if one.slot is not None]
    if text:
        log.warning(
            "own: the subject is written out, so {} in the prompt is text in %d rows: %s",
            len(text),
            ", ".join(text[:5]),
        )
    tied = [one.id for one in made if one.target_old and not own_cases.rival_of(one)]
    if tied:
        log.warning(
            "own: target_old is the target, so nothing says which is likelier in %d rows: %s",
            len(tied),
            ", ".join(tied[:5]),
        )
    return made


def _cut(row: Row) -> bool:
    """Whether white space is taken off that is more than the one space in front of a target."""
    prompt = _text(row, "prefix" if "prefix" in row else "prompt")
    said = _text(row, "suffix" if "prefix" in row else "target")
    before, target, join = trimmed(prompt, said)
    return before != prompt or said not in (target, f" {target}", f"{join}{target}")


def examples(found: Sequence[Row]) -> list[Example]:
    """The edits with their probes, for editors that learn."""
    from harness.task_kit import Example, Probe

    made = []
    for row in found:
        wanted, asked = edit(row), list(probes(row))
        made.append(
            Example(
                wanted,
                tuple(
                    Probe(
                        edit=wanted.id,
                        kind=p["kind"],
                        prompt=p["prompt"],
                        target_new=p["target_new"],
                        target_true=p["answers"][0] if p["kind"] == "neighborhood" else p["target_old"],
                    )
                    for p in asked
                    if p["kind"] != "portability"
                ),
            )
        )
    return made


def probes(row: Row) -> Iterator[Row]:
    """The prompt itself, the row's ``paraphrases``, and its questions with answers of their own.

    Of its ``probes`` those that a field of the row could say; the others are asked by ``own_cases``.
    """
    wanted = edit(row)
    for i, (one, join) in enumerate([*_of_fields(row, wanted), *_of_probes(row, wanted)]):
        same = one.kind in OTHERS or wanted.target in one.answers
        yield {
            "id": f"{wanted.id}/{i}",
            "case": wanted.belongs_to,
            "kind": one.kind,
            "prompt": one.prompt,
            "target_new": wanted.target if same else one.answers[0],
            "target_old": own_cases.rival_of(wanted) if same and one.rival else "",
            "answers": list(one.answers),
            "join": join,
        }


def _of_fields(row: Row, wanted: Edit) -> Iterator[tuple[cases.Question, str | None]]:
    """What the YAML asks of the row's fields, and what stands between prompt and answer where the row says it."""
    seams = [seam(row, text) for text in row.get("paraphrases") or ()]
    said = {**row, "text": wanted.text, "target": wanted.target, "target_old": wanted.target_old}
    said["paraphrases"] = [text for text, *_ in seams]
    joins = {"rewrite": {wanted.text: wanted.join}, "paraphrase": {text: join for text, _, join in seams}}
    for one in cases.row_questions(declared(), said, f"own, row {row['id']}"):
        # What else is asked is not rated against the old target, which editors that learn are told all the same.
        if one.kind in OTHERS:
            yield replace(one, rival=wanted.target_old), _join_of(row, one, wanted)
        else:
            yield one, joins[one.kind].get(one.prompt)


def _of_probes(row: Row, wanted: Edit) -> Iterator[tuple[cases.Question, str | None]]:
    """The row's ``probes`` of kinds that its fields could ask: they name their kind themselves, which no path does."""
    for one in row.get("probes") or ():
        if one["kind"] in own_cases.PLAIN:
            answers = tuple(dict.fromkeys(one["answers"]))
            asked = cases.Question(one["kind"], one["prompt"], answers, "accuracy", rival=wanted.target_old)
            yield asked, _join_of(row, asked, wanted)


def _join_of(row: Row, asked: cases.Question, wanted: Edit) -> str | None:
    """What stands between a question of the row and its answers; None for what the text would have.

    A line break that begins an answer of its own, otherwise what the edit has where both ask or answer the same.
    """
    same = [one for one in row.get(asked.kind) or () if one["prompt"].rstrip(" \t") == asked.prompt]
    texts = [text for one in same for text in one["answer"] if text.strip() in asked.answers]
    own = [join for text in texts if (join := trimmed(asked.prompt, text)[2]) is not None]
    return own[0] if own else cases.as_edited(asked, [wanted]).join


def dataset(file: str | None = None, records: Sequence[str] | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """One document for each probe of the rows in ``file`` that are named by ``records`` (None for all)."""
    import datasets

    if file is None:
        raise UsageError(
            'own: no file; run with --edits my.jsonl, or --metadata \'{"file": "my.jsonl"}\' under lm_eval'
        )
    wanted = None if records is None else set(records)
    chosen = [row for row in rows(Path(file)) if wanted is None or own_cases.belongs_to(row) in wanted]
    return {"test": datasets.Dataset.from_list([probe for row in chosen for probe in probes(row)])}


def generated(documents: datasets.Dataset) -> datasets.Dataset:
    """The documents whose continuation is generated: what must stay the same is asked by its answer alone."""
    return documents.select([i for i, kind in enumerate(documents["kind"]) if kind in EXACT])


def choices(doc: Doc) -> list[str]:
    """The new target, and the old one where the row names it; of other questions their right answers."""
    if doc["kind"] in OTHERS:
        return list(doc["answers"])
    return [doc["target_new"], *([doc["target_old"]] if doc["target_old"] else [])]


def probability(doc: Doc, ratings: Sequence[Forced]) -> dict[str, Ratio]:
    """How likely the target is; whether it beats the old one (only where the row names that).

    Of other questions: whether one of the right answers is what the model says.
    """
    prefix = PREFIX[doc["kind"]]
    new = ratings[0]
    if any(math.isnan(rating.nll) for rating in ratings):
        return {f"{prefix}_accuracy": Ratio(math.nan, 1.0, doc["case"])}
    if doc["kind"] in OTHERS:
        return {f"{prefix}_accuracy": Ratio(float(any(rating.exact for rating in ratings)), 1.0, doc["case"])}
    found = {
        f"{prefix}_accuracy": Ratio(float(new.exact), 1.0, doc["case"]),
        f"{prefix}_probability": Ratio(math.exp(-new.nll), 1.0, doc["case"]),
    }
    if len(ratings) > 1:
        found[prefix] = Ratio(float(new.nll < ratings[1].nll), 1.0, doc["case"])
    return found


def generation(doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
    """Whether the free continuation begins with the target, or with a right answer."""
    right = begins_with(results[0], *_right(doc))
    return {EXACT[doc["kind"]]: Ratio(float(right), 1.0, doc["case"])}


def _right(doc: Doc) -> tuple[str, Sequence[str]]:
    """The wanted answer and its aliases."""
    first, *others = doc.get("answers") or [doc["target_new"]]
    return first, others
