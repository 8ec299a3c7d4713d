"""CounterFact (Meng et al. 2022, ROME): how its records become edits and probes, and how the probes are scored."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import (
    CaseSet,
    Continuations,
    DataError,
    Forced,
    Ratio,
    begins_with,
    consistency,
    data,
    entropy,
    vectorizer,
    words,
)

if TYPE_CHECKING:
    import datasets
    from sklearn.feature_extraction.text import TfidfVectorizer

    from harness.task_kit import Edit, Example

Row = dict[str, Any]
Doc = Mapping[str, Any]

NAME = "counterfact"
KINDS = ("rewrite", "paraphrase", "neighborhood", "attribute")
WANTED = {"rewrite": ("efficacy", True), "paraphrase": ("paraphrase", True), "neighborhood": ("neighborhood", False),
          "attribute": ("attribute", True)}  # fmt: skip
"""For each kind of probe: the name of its metric, and whether the new target should win (else the true one)."""
EXACT = {
    "rewrite": "generation_exact_match",
    "paraphrase": "paraphrase_exact_match",
    "neighborhood": "neighborhood_exact_match",
}

TUNING = 20_000
"""The published records from here on are for tuning."""

log = logging.getLogger(__name__)


# --- records ----------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[Row]:
    """The records of a file: a JSON array, or JSON lines (``.gz`` too).

    Raises:
        DataError: not JSON, or a record that cannot be an edit; names the file and the record.
    """
    text = data.read_text(path)
    found = _array(path, text) if text.lstrip().startswith("[") else data.read_jsonl(path)
    for row in found:
        check(row, f"{path}, record {row.get('case_id', '?')}")
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
    """Raise DataError unless a record has a prompt with its subject's slot, a subject and two targets."""
    request = row.get("requested_rewrite")
    if not isinstance(request, dict):
        raise DataError(
            f"{where}: no 'requested_rewrite'; a record needs prompt, subject, target_new and target_true in it"
        )
    for field in ("prompt", "subject"):
        if not isinstance(request.get(field), str) or not request[field].strip():
            raise DataError(f"{where}: the {field} is empty; give requested_rewrite.{field}")
    if request["prompt"].count("{}") != 1:
        raise DataError(
            f"{where}: the subject is not in the prompt '{request['prompt']}'; put {{}} once where it stands"
        )
    for field in ("target_new", "target_true"):
        target = request.get(field)
        if not isinstance(target, dict) or not str(target.get("str") or "").strip():
            raise DataError(f"{where}: {field} is empty; give requested_rewrite.{field}.str")


def source(
    data_dir: str | None = None, split: str = "test", count: int = 0, records: Iterable[object] = ()
) -> list[Row]:
    """The records of a source in its order.

    A folder holds 500 original records.  Where more are asked for (``count``, or ``records`` that are not among them),
    the rebuilt ones follow; each says ``"rebuilt": true``.  Of the published 21,919 records those from 20,000 on are
    for tuning (``train``), and none of them asks what a test record asks.
    """
    found = data.load(NAME, split, data_dir)
    if data_dir not in (None, "mini"):
        if split == "train":
            return _tuning(found, data.load(NAME, "test", data_dir))
        found = found[:TUNING] if data_dir == "hub" else found
    known = {str(row["case_id"]) for row in found}
    wanted = {str(case) for case in records}
    if split == "test" and data_dir not in (None, "mini", "hub") and (count > len(found) or not wanted <= known):
        rebuilt = [row for row in data.load(NAME, "rebuilt", data_dir) if str(row["case_id"]) not in known]
        log.warning("%s: %d original records do not suffice; %d rebuilt ones follow", NAME, len(found), len(rebuilt))
        found += rebuilt
    return found


def _tuning(every: Sequence[Row], tested: Sequence[Row]) -> list[Row]:
    """The records that are kept for tuning."""
    asked = {_asked(row) for row in tested[:TUNING]} | {_asked(row) for row in every[:TUNING]}
    return [row for row in every[TUNING:] if _asked(row) not in asked]


def _asked(row: Row) -> str:
    request = row["requested_rewrite"]
    return str(request["prompt"]).replace("{}", request["subject"])


@lru_cache(maxsize=1)
def declared() -> CaseSet:
    """What the YAML says: how a record becomes an edit and probes."""
    return CaseSet.read(Path(__file__).with_name(f"{NAME}.yaml"))


def edits(found: Sequence[Row], **_: object) -> list[Edit]:
    """What an editor is asked to do, one edit a record."""
    for row in found:
        check(row, f"{NAME}, record {row.get('case_id', '?')}")
    return declared().edits(found)


def examples(found: Sequence[Row], **options: object) -> list[Example]:
    """The edits with all their probes, for editors that learn."""
    from harness.task_kit import Example, Probe

    made = []
    for edit, row in zip(edits(found, **options), found, strict=True):
        asked = (p for p in probes(row, KINDS))
        made.append(
            Example(
                edit, tuple(Probe(edit.id, p["kind"], p["prompt"], p["target_new"], p["target_true"]) for p in asked)
            )
        )
    return made


# --- documents --------------------------------------------------------------------------------------------------------


def probes(row: Row, kinds: Sequence[str]) -> Iterator[Row]:
    """The probes of one record, one document each."""
    (case,) = declared().of_rows([row])
    (edit,) = case.edits
    for kind in kinds:
        asked = [one for one in case.probes if one.kind == kind and one.protocol == "probability"]
        for i, one in enumerate(asked):
            yield {
                "id": f"{case.id}/{kind}/{i}",
                "case": case.id,
                "kind": kind,
                "prompt": one.prompt,
                "target_new": edit.target,
                "target_true": edit.target_old,
            }


def texts_of(row: Row) -> Row:
    """The generation prompts of one record, each once; ``order`` says how often and where each stands."""
    every = row.get("generation_prompts") or []
    prompts = list(dict.fromkeys(every))
    request = row["requested_rewrite"]
    return {
        "id": f"{row['case_id']}/text",
        "case": str(row["case_id"]),
        "kind": "generation",
        "prompts": prompts,
        "order": [prompts.index(prompt) for prompt in every],
        "relation": request.get("relation_id") or "",
        "target": request["target_new"].get("id") or "",
    }


def examined(data_dir: str | None, split: str, records: Sequence[object] | None) -> list[Row]:
    """The records whose probes are asked: all, or those named."""
    found = source(data_dir, split, records=records or ())
    if records is None:
        return found
    by_case = {str(row["case_id"]): row for row in found}
    missing = [str(case) for case in records if str(case) not in by_case]
    if missing:
        raise DataError(
            f"{NAME}: no record {missing[0]} in the split {split!r}; it has {len(by_case)} records, named by case_id"
        )
    return [by_case[str(case)] for case in records]


def _documents(docs: list[Row]) -> dict[str, datasets.Dataset]:
    import datasets

    if not docs:
        raise DataError(f"{NAME}: no record has a probe of this kind")
    return {"test": datasets.Dataset.from_list(docs)}


def dataset(
    data_dir: str | None = None,
    records: Sequence[object] | None = None,
    split: str = "test",
    kinds: Sequence[str] = KINDS,
    **_: object,
) -> dict[str, datasets.Dataset]:
    """One document for each probe.

    Args:
        data_dir: where the records come from; see ``harness.task_kit.data.load``.
        records: the ``case_id`` of the records to examine, None for all.
        split: ``test``, or ``train`` for tuning.
        kinds: of ``rewrite``, ``paraphrase``, ``neighborhood``, ``attribute``.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise DataError(f"{NAME}: no kind of probe {sorted(unknown)[0]!r}; choose from {', '.join(KINDS)}")
    return _documents([probe for row in examined(data_dir, split, records) for probe in probes(row, kinds)])


def generation_dataset(kinds: Sequence[str] = KINDS, **options: Any) -> dict[str, datasets.Dataset]:
    """The probes that a free continuation answers: all but the attribute prompts; arguments as in :func:`dataset`."""
    return dataset(kinds=[kind for kind in kinds if kind in EXACT], **options)


def text_dataset(
    data_dir: str | None = None, records: Sequence[object] | None = None, split: str = "test", **_: object
) -> dict[str, datasets.Dataset]:
    """One document for each record with generation prompts; arguments as in :func:`dataset`."""
    docs = [texts_of(row) for row in examined(data_dir, split, records)]
    return _documents([doc for doc in docs if doc["prompts"]])


def choices(doc: Doc) -> list[str]:
    """The two targets that are compared."""
    return [doc["target_new"], doc["target_true"]]


def first_prompt(doc: Doc) -> str:
    """What lm-eval shows as the document's text."""
    return str(doc["prompts"][0])


# --- scores -----------------------------------------------------------------------------------------------------------


def probability(doc: Doc, ratings: Sequence[Forced]) -> dict[str, Ratio]:
    """Success, magnitude and accuracy of one probe (ROME, section 3.2; accuracy: MEMIT's released evaluation).

    With N the mean negative log-likelihood of a target's tokens, w the target that should win and o the other:
    success 1[N_w < N_o], magnitude exp(-N_w) - exp(-N_o), accuracy 1 if every token of w is the arg-max.
    A tie is a failure.  What is not a number stays one: it is missing, not zero.
    """
    new, true = ratings
    metric, new_wins = WANTED[doc["kind"]]
    wanted, other = (new, true) if new_wins else (true, new)
    known = not (math.isnan(wanted.nll) or math.isnan(other.nll))
    if not known:
        log.warning("%s, probe %s: the log-likelihood is not a number; the probe is left out", NAME, doc["id"])
    values = {
        metric: float(wanted.nll < other.nll) if known else math.nan,
        f"{metric}_magnitude": math.exp(-wanted.nll) - math.exp(-other.nll),
        f"{metric}_accuracy": math.nan if math.isnan(wanted.nll) else float(wanted.exact),
    }
    return {name: Ratio(value, 1.0, doc["case"]) for name, value in values.items()}


def generation(doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
    """Whether the free continuation begins with the wanted target."""
    return {EXACT[doc["kind"]]: Ratio(float(begins_with(results[0], wanted(doc))), 1.0, doc["case"])}


def wanted(doc: Doc) -> str:
    """The target that a free continuation should begin with: of a neighbour the true one."""
    return str(doc["target_true"] if doc["kind"] == "neighborhood" else doc["target_new"])


class Snippets:
    """Reference texts by relation and target (ROME's attribute snippets), with the TF-IDF fitted on all of them."""

    def __init__(self, texts: Mapping[str, Mapping[str, list[str]]]) -> None:
        self.texts = texts

    @cached_property
    def fitted(self) -> TfidfVectorizer:
        """Fitted on first use."""
        return vectorizer([text for targets in self.texts.values() for group in targets.values() for text in group])

    def of(self, doc: Doc) -> list[str]:
        """The texts about subjects that truly have the new target."""
        return list(self.texts.get(doc["relation"], {}).get(doc["target"], ()))


def snippets(data_dir: str | None) -> Snippets | None:
    """The reference texts of a source: the shipped ones, ``attribute_snippets.json`` in a folder, or None."""
    if data_dir in (None, "mini"):
        shipped = Path(__file__).parent / "mini_snippets.json"
        return Snippets(json.loads(shipped.read_text(encoding="utf-8"))) if shipped.is_file() else None
    places = [Path(str(data_dir)) / part / "attribute_snippets.json" for part in (NAME, ".")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        log.info("reference_score is missing: no attribute_snippets.json in %s", data_dir)
        return None
    grouped: dict[str, dict[str, list[str]]] = {}
    for entry in _array(path, data.read_text(path)):
        texts = [sample["text"] for sample in entry["samples"]]
        grouped.setdefault(entry["relation_id"], {}).setdefault(entry["target_id"], []).extend(texts)
    return Snippets(grouped)


class Texts(Continuations):
    """Continues the generation prompts of a record and scores them together."""

    @cached_property
    def snippets(self) -> Snippets | None:
        """The reference texts of the source that the documents come from."""
        return snippets((self.config.metadata or {}).get("data_dir"))

    def process_results(self, doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
        """Score the texts of one record."""
        return text(doc, self.texts(doc, results), self.snippets)


def text(doc: Doc, texts: Sequence[str], references: Snippets | None = None) -> dict[str, Ratio]:
    """Entropy of the texts of one record, and their consistency with texts about the new target (ROME, section 3.2).

    Args:
        doc: the record; ``order`` maps its generation prompts to ``texts``.
        texts: prompts with their continuations, one for each distinct prompt.
        references: all reference texts; None where the source has none, then the consistency is missing.
    """
    every = [texts[i] for i in doc["order"]]
    entropies = [value for value in map(entropy, map(words, every)) if not math.isnan(value)]
    found = {"generation_entropy": sum(entropies) / len(entropies)} if entropies else {}
    about = references.of(doc) if references else []
    if references and about:
        found["reference_score"] = consistency(references.fitted, every, about)
    return {name: Ratio(value, 1.0, doc["case"]) for name, value in found.items()}
