"""One's own edits, from a file of JSON lines: how they are read and how they are examined."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Forced, Ratio, UsageError, begins_with, data

if TYPE_CHECKING:
    import datasets

    from harness.task_kit import Edit, Example

Row = dict[str, Any]
Doc = Mapping[str, Any]

TEXTS = ("prompt", "subject", "target", "target_old", "prefix", "suffix")
EXACT = {"rewrite": "generation_exact_match", "paraphrase": "paraphrase_exact_match"}


def rows(path: Path) -> list[Row]:
    """The rows of a file, each with an ``id`` (its own, or its line) and a valid edit.

    Raises:
        DataError: a row cannot be used; names the file and the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give JSON lines with prompt, subject and target, or prefix and suffix")
    lines = [number for number, line in enumerate(data.read_text(path).split("\n"), start=1) if line.strip()]
    found = [{"id": str(number), **row} for number, row in zip(lines, data.read_jsonl(path), strict=True)]
    for number, row in zip(lines, found, strict=True):
        row["id"] = str(row["id"])
        try:
            edit(row)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    return found


def edit(row: Row) -> Edit:
    """One row as an edit.

    A row holds ``prompt, subject, target`` (the prompt with ``{}`` or the subject written out) or ``prefix, suffix``.
    """
    from harness.task_kit import Edit

    for key in TEXTS:
        if key in row and not isinstance(row[key], str):
            raise DataError(f"'{key}' is {row[key]!r}, expected a text")
    asked = row.get("paraphrases") or []
    if not (isinstance(asked, list) and all(isinstance(text, str) and text.strip() for text in asked)):
        raise DataError(f"'paraphrases' is {asked!r}, expected a list of texts")
    for key in ("prompt", "prefix"):
        if key in row and not row[key].strip():
            raise DataError(f"'{key}' is empty; give the text that the model continues")
    if "prefix" in row:
        return Edit(
            row["id"], _text(row, "prefix"), None, _text(row, "suffix").removeprefix(" "), row.get("target_old")
        )
    prompt, subject = _text(row, "prompt"), row.get("subject")
    if subject is None:
        raise DataError("'subject' is missing; name what the edit is about, or give prefix and suffix")
    if "{}" not in prompt and subject.strip():
        prompt = _with_slot(prompt, subject)
    return Edit(row["id"], prompt, subject, _text(row, "target").removeprefix(" "), row.get("target_old"))


def _with_slot(prompt: str, subject: str) -> str:
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    if found is None:
        raise DataError(
            f"the subject '{subject}' is not in the prompt '{prompt}'; write it there, or a {{}} in its place"
        )
    return prompt[: found.start()] + "{}" + prompt[found.end() :]


def _text(row: Row, key: str) -> str:
    if key not in row:
        raise DataError(f"'{key}' is missing; rows hold prompt, subject and target, or prefix and suffix")
    return str(row[key])


def edits(found: Sequence[Row]) -> list[Edit]:
    """What an editor is asked to do, one edit a row."""
    return [edit(row) for row in found]


def examples(found: Sequence[Row]) -> list[Example]:
    """The edits with their probes, for editors that learn."""
    from harness.task_kit import Example, Probe

    made = []
    for row in found:
        wanted, asked = edit(row), list(probes(row))
        made.append(
            Example(
                wanted,
                tuple(Probe(wanted.id, p["kind"], p["prompt"], p["target_new"], p["target_old"]) for p in asked),
            )
        )
    return made


def probes(row: Row) -> Iterator[Row]:
    """The prompt itself, and the row's ``paraphrases`` if it has any."""
    wanted = edit(row)
    prompts = [("rewrite", wanted.text), *(("paraphrase", text) for text in row.get("paraphrases") or ())]
    for i, (kind, prompt) in enumerate(prompts):
        yield {
            "id": f"{wanted.id}/{i}",
            "case": wanted.id,
            "kind": kind,
            "prompt": prompt,
            "target_new": wanted.target,
            "target_old": wanted.target_old or "",
        }


def dataset(file: str | None = None, records: Sequence[str] | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """One document for each probe of the rows in ``file`` that are named by ``records`` (None for all)."""
    import datasets

    if file is None:
        raise UsageError(
            'own: no file; run with --edits my.jsonl, or --metadata \'{"file": "my.jsonl"}\' under lm_eval'
        )
    chosen = [row for row in rows(Path(file)) if records is None or row["id"] in set(records)]
    return {"test": datasets.Dataset.from_list([probe for row in chosen for probe in probes(row)])}


def choices(doc: Doc) -> list[str]:
    """The new target, and the old one where the row names it."""
    return [doc["target_new"], *([doc["target_old"]] if doc["target_old"] else [])]


def probability(doc: Doc, ratings: Sequence[Forced]) -> dict[str, Ratio]:
    """How likely the target is; whether it beats the old one (only where the row names that)."""
    prefix = "efficacy" if doc["kind"] == "rewrite" else "paraphrase"
    new = ratings[0]
    if math.isnan(new.nll):
        return {f"{prefix}_accuracy": Ratio(math.nan, 1.0, doc["case"])}
    found = {
        f"{prefix}_accuracy": Ratio(float(new.exact), 1.0, doc["case"]),
        f"{prefix}_probability": Ratio(math.exp(-new.nll), 1.0, doc["case"]),
    }
    if len(ratings) > 1:
        found[prefix] = Ratio(float(new.nll < ratings[1].nll), 1.0, doc["case"])
    return found


def generation(doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
    """Whether the free continuation begins with the target."""
    return {EXACT[doc["kind"]]: Ratio(float(begins_with(results[0], doc["target_new"])), 1.0, doc["case"])}
