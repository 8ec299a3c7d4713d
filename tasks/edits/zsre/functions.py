"""ZsRE (Levy et al. 2017) as MEND has it (Mitchell et al. 2022): its records as edits and probes, and their scores."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import CaseSet, DataError, Forced, Ratio, begins_with, data, near

if TYPE_CHECKING:
    import datasets

    from harness.task_kit import Edit, Example

Row = dict[str, Any]
Doc = Mapping[str, Any]

NAME = "zsre"
TARGETS = ("alt", "answers")
KINDS = ("rewrite", "paraphrase", "neighborhood")
ACCURACY = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "locality_accuracy"}
EXACT = {
    "rewrite": "generation_exact_match",
    "paraphrase": "paraphrase_exact_match",
    "neighborhood": "locality_exact_match",
}

log = logging.getLogger(__name__)


# --- records ----------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[Row]:
    """The records of a file: a JSON array, or JSON lines (``.gz`` too).

    Raises:
        DataError: not JSON, or a record that cannot be an edit; names the file and the record.
    """
    text = data.read_text(path)
    found = _array(path, text) if text.lstrip().startswith("[") else data.read_jsonl(path)
    for number, row in enumerate(found):
        check(row, f"{path}, record {number}")
    return found


def _array(path: Path, text: str) -> list[Row]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); the file may be cut off, copy it again"
        ) from error
    if not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path}: expected an array of records {{...}}; see the card of {NAME} for the fields")
    return list(found)


def check(row: Row, where: str) -> None:
    """Raise DataError unless a record has a question with its subject, a rephrasing, answers, a locality question."""
    for field in ("subject", "src", "rephrase", "loc", "loc_ans"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{where}: the {field} is empty; give '{field}'")
    if row["subject"] not in row["src"]:
        raise DataError(
            f"{where}: the subject '{row['subject']}' is not in '{row['src']}'; name it in src as it is in subject"
        )
    if not any(isinstance(answer, str) and answer.strip() for answer in row.get("answers") or ()):
        raise DataError(f"{where}: the answers are empty; give at least one in 'answers'")


def wanted(row: Row, target: str = "alt") -> str:
    """What the model shall say: the alternative answer, or the first right one; empty where there is none."""
    if target not in TARGETS:
        raise DataError(f"{NAME}: no target {target!r}{near(str(target), TARGETS)}")
    return str(row.get("alt") or "").strip() if target == "alt" else str(row["answers"][0]).strip()


def usable(found: Sequence[Row], target: str = "alt") -> list[tuple[str, Row]]:
    """The records that can be edited, with their names; a few have no alternative answer."""
    named = [(str(row.get("case_id", i)), row) for i, row in enumerate(found)]
    without = [name for name, row in named if not wanted(row, target)]
    if without:
        log.warning(
            "%s: %d records have no '%s' and are left out: %s", NAME, len(without), target, ", ".join(without[:5])
        )
    return [(name, row) for name, row in named if wanted(row, target)]


def source(data_dir: str | None = None, split: str = "test", _count: int = 0) -> list[Row]:
    """The records of a source in its order, each with its place as ``case_id``; all of them, whatever the count."""
    return [{"case_id": i, **row} for i, row in enumerate(data.load(NAME, split, data_dir))]


@lru_cache(maxsize=1)
def declared() -> CaseSet:
    """What the YAML says: how a record becomes an edit and probes."""
    return CaseSet.read(Path(__file__).with_name(f"{NAME}.yaml"))


def edits(found: Sequence[Row], target: str = "alt", **_: object) -> list[Edit]:
    """What an editor is asked to do, one edit a record.

    Args:
        found: records; an edit is named by its ``case_id``, without one by its place in the list.
        target: ``alt`` (MEND, Gu et al. 2024), or ``answers`` (ROME and MEMIT: the first right answer).
    """
    named = usable(found, target)
    for name, row in named:
        check(row, f"{NAME}, record {name}")
    return declared().edits([{**row, "case_id": name, "wanted": target} for name, row in named])


def examples(found: Sequence[Row], target: str = "alt", **_: object) -> list[Example]:
    """The edits with all their probes, for editors that learn."""
    from harness.task_kit import Example, Probe

    made = []
    for edit, (name, row) in zip(edits(found, target), usable(found, target), strict=True):
        asked = probes(name, row, target)
        made.append(
            Example(edit, tuple(Probe(name, p["kind"], p["prompt"], p["target_new"], p["target_true"]) for p in asked))
        )
    return made


# --- documents --------------------------------------------------------------------------------------------------------


def probes(name: str, row: Row, target: str = "alt") -> Iterator[Row]:
    """The three probes of one record: the question, its rephrasing, and an unrelated question."""
    (case,) = declared().of_rows([{**row, "case_id": name, "wanted": target}])
    for one in (question for question in case.probes if question.protocol == "accuracy"):
        yield {
            "id": f"{name}/{one.kind}",
            "case": name,
            "kind": one.kind,
            "prompt": one.prompt,
            "target_new": case.edits[0].target,
            "target_true": one.answers[0],
            "answers": list(one.answers),
        }


def dataset(
    data_dir: str | None = None,
    records: Sequence[object] | None = None,
    split: str = "test",
    target: str = "alt",
    **_: object,
) -> dict[str, datasets.Dataset]:
    """One document for each probe.

    Args:
        data_dir: where the records come from; see ``harness.task_kit.data.load``.
        records: the records to examine, by their place in the file; None for all.
        split: ``test``, or ``train`` for tuning.
        target: ``alt`` or ``answers``; see :func:`edits`.
    """
    import datasets

    by_name = dict(usable(source(data_dir, split), target))
    names = list(by_name) if records is None else [str(name) for name in records]
    for name in names:
        if name not in by_name:
            raise DataError(
                f"{NAME}: no record {name} with '{target}' in the split {split!r}; name it by its place in the file"
            )
    docs = [probe for name in names for probe in probes(name, by_name[name], target)]
    if not docs:
        raise DataError(f"{NAME}: no record of the split {split!r} has '{target}'")
    return {"test": datasets.Dataset.from_list(docs)}


def answer(doc: Doc) -> str:
    """The answer that a probe looks for."""
    return str(doc["target_true"] if doc["kind"] == "neighborhood" else doc["target_new"])


def choices(doc: Doc) -> list[str]:
    """The one target that is rated."""
    return [answer(doc)]


# --- scores -----------------------------------------------------------------------------------------------------------


def probability(doc: Doc, ratings: Sequence[Forced]) -> dict[str, Ratio]:
    """Token accuracy of one probe under teacher forcing: the share of the answer's tokens that are the arg-max.

    Source: MEND, section 5; released evaluation of ROME and MEMIT for zsRE.
    """
    (rating,) = ratings
    if math.isnan(rating.nll):
        log.warning("%s, probe %s: the log-likelihood is not a number; the probe is left out", NAME, doc["id"])
    hits = math.nan if math.isnan(rating.nll) else float(rating.hits)
    return {ACCURACY[doc["kind"]]: Ratio(hits, float(rating.tokens), doc["case"])}


def generation(doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
    """Whether the free continuation begins with the answer."""
    return {
        EXACT[doc["kind"]]: Ratio(
            float(begins_with(results[0], answer(doc), (doc.get("answers") or ())[1:])), 1.0, doc["case"]
        )
    }
