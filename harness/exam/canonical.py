"""Canonical examples: what is learned from short examples, judged on natural text under a limit on everything else.

Source: Hewitt, Chen, Xie, Adams, Liang, Manning 2024, "Model Editing with Canonical Examples", arXiv 2402.06155, and
the authors' code (john-hewitt/model-editing-canonical-examples at 15a1e7b).

One data set has, for each of the splits ``test`` and ``val``, four files: the evaluation set (the split's own name),
the canonical examples that are learned (``edits_<split>``), hard negatives (``hard_negatives_<split>``) and texts of
which all is scored (``text_<split>``).  A row is ``prefix, suffix`` and, in a set of pairs, ``other``, the second
continuation; a whole text has an empty prefix.  What is wanted (``loss``) and the threshold stand in the set's YAML.

With N the sum of the negative log-likelihoods of a continuation's tokens, the loss of an example is (section 3)

=========== =================== ================ ==================================
``loss``    L                   direction        an example fails where
=========== =================== ================ ==================================
good        N                   likelihood       L > threshold, which is above zero
bad         -N                  unlikelihood     L > threshold, which is below zero
balance     |N - N(other)|      balance          L > threshold, which is above zero
good-v-bad  N - N(other)        contrast         L > threshold, which is below zero
=========== =================== ================ ==================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lm_eval.api.instance import Instance

from harness.errors import DataError, UsageError, near
from harness.exam import data
from harness.exam.span_scores import Apart, Whole
from harness.exam.statistics import Ratio
from harness.exam.token_tasks import Tokenized
from harness.models.tokens import open_ids

if TYPE_CHECKING:
    import datasets

    from harness.editing.directions import Direction
    from harness.editing.edit import Edit, Example

__all__ = ["SETS", "CanonicalSet", "Exam", "Loss", "failed", "loss", "read_rows", "subjects"]

Row = dict[str, Any]
Doc = Mapping[str, Any]
Loss = Literal["good", "bad", "balance", "good-v-bad"]

SETS = ("country_capital", "company_ceo", "pronoun_gender_bias", "temporal", "stereoset", "verb_conjugation")
"""The data sets, in the order of the paper's summary."""

SPLITS = ("test", "val")
PAIRED: frozenset[Loss] = frozenset({"balance", "good-v-bad"})
_DIRECTION: dict[Loss, Direction] = {
    "good": "likelihood",
    "bad": "unlikelihood",
    "balance": "balance",
    "good-v-bad": "contrast",
}
WHOLE = ("text", "general")
"""The kinds of document of which all is scored."""

_METRIC = {"hard_negatives": "hard_negative", "hard_negatives_released": "hard_negative_released", "text": "text_nll"}
_BELOW_ZERO: frozenset[Loss] = frozenset({"bad", "good-v-bad"})


# --- losses -----------------------------------------------------------------------------------------------------------


def loss(kind: Loss, nll: float, other: float = 0.0) -> float:
    """The loss of one example, from the negative log-likelihoods of its continuations: sums over tokens, in nats.

    Args:
        kind: what is wanted.
        nll: of the continuation.
        other: of the second one, in a set of pairs.
    """
    if kind == "good":
        return nll
    if kind == "bad":
        return -nll
    return abs(nll - other) if kind == "balance" else nll - other


def failed(value: float, threshold: float) -> bool:
    """Whether an example fails: strictly above the threshold; equality is a success."""
    return value > threshold


# --- rows -------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a published file, or of one of the same form: ``prefix, suffix``, a pair of suffixes, or ``text``.

    Raises:
        DataError: a row that cannot be scored; names the file and the row.
    """
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(data.read_jsonl(path), start=1)]


def subjects(found: Iterable[Row], name: Callable[[Row], str | None]) -> list[Row]:
    """Rows with a ``subject`` where a function finds one in them."""
    named = [(row, name(row)) for row in found]
    return [{**row, "subject": subject} if subject else row for row, subject in named]


def _row(row: Row, where: str) -> Row:
    if "text" in row and "prefix" not in row:
        return {**row, "prefix": "", "suffix": _text(row, "text", where)}
    if "suffix1" in row or "suffix2" in row:
        for name in ("suffix1", "suffix2"):
            if name not in row:
                raise DataError(f"{where}: one continuation, but a pair needs two; give 'suffix1' and 'suffix2'")
        pair = {"suffix": _text(row, "suffix1", where), "other": _text(row, "suffix2", where)}
        return {**row, "prefix": _text(row, "prefix", where), **pair}
    return {**row, "prefix": _text(row, "prefix", where), "suffix": _text(row, "suffix", where)}


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        found = "no" if value is None else "an empty" if value == "" else f"{type(value).__name__} as"
        raise DataError(f"{where}: {found} '{name}'; a row needs a prefix and a suffix, two suffixes, or a text")
    return value


# --- a data set -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CanonicalSet:
    """One of the data sets.

    Attributes:
        name: its name, that of its folder.
        loss: what is wanted of an example.
        threshold: the loss that still counts as a success, in nats.
    """

    name: str
    loss: Loss
    threshold: float

    @classmethod
    def at(cls, folder: Path) -> CanonicalSet:
        """The set that the YAML of a folder describes.

        Raises:
            DataError: its loss does not exist, or its threshold has the wrong sign.
        """
        path = folder / f"{folder.name}.yaml"
        metadata = data.read_yaml(path)["metadata"]
        kind, threshold = metadata.get("loss"), metadata.get("threshold")
        if kind not in get_args(Loss):
            raise DataError(f"{path}: metadata.loss is {kind!r}{near(str(kind), get_args(Loss))}")
        wanted = "below" if kind in _BELOW_ZERO else "above"
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
        if not number or not (threshold < 0 if wanted == "below" else threshold > 0):
            raise DataError(
                f"{path}: metadata.threshold is {threshold!r}; the loss '{kind}' needs a number {wanted} zero, in nats"
            )
        return cls(folder.name, kind, float(threshold))

    def source(self, data_dir: str | None = None, split: str = "test", count: int = 0) -> list[Row]:  # noqa: ARG002
        """The canonical examples of a split, which are what is learned.

        Args:
            data_dir: where the rows are, as :func:`harness.exam.data.load` takes it.
            split: ``val`` or ``test``.
            count: how many are asked for; all are given whatever it is, since these sets are small.
        """
        return self.rows("edits", data_dir, split)

    def rows(self, kind: str, data_dir: str | None, split: str) -> list[Row]:
        """The rows of one file.

        Args:
            kind: ``evaluation``, ``edits``, ``hard_negatives`` or ``text``.
            data_dir: where the rows come from; see ``harness.exam.data.load``.
            split: ``test`` or ``val``.

        Raises:
            UsageError: there is no such split.
            DataError: a row of a set of pairs has one continuation.
        """
        if split not in SPLITS:
            raise UsageError(f"{self.name} has no split '{split}'{near(split, SPLITS)}")
        found = data.load(self.name, split if kind == "evaluation" else f"{kind}_{split}", data_dir)
        if kind in ("edits", "evaluation") and self.loss in PAIRED:
            for number, row in enumerate(found, start=1):
                if not row.get("other"):
                    raise DataError(
                        f"{self.name}, {kind}, row {number}: one continuation, but '{self.loss}' compares two; give "
                        "'suffix1' and 'suffix2'"
                    )
        return found

    def edits(self, found: Sequence[Row]) -> list[Edit]:
        """What an editor is asked to do, one edit a canonical example.

        Where a row names its subject and the prefix holds it, the prompt has a slot there (the paper's oracle subject);
        elsewhere the whole prefix is the subject (its standard one).
        """
        from harness.editing.edit import Edit

        made = []
        for number, row in enumerate(found):
            prompt, subject, slot = _slot(row["prefix"], row.get("subject"))
            made.append(
                Edit(
                    id=str(number),
                    prompt=prompt,
                    subject=subject,
                    target=row["suffix"],
                    relation=self.name,
                    direction=_DIRECTION[self.loss],
                    against=row.get("other"),
                    # What is scored is the suffix as the row has it.
                    join=None if row["suffix"][:1].isspace() else "",
                    slot=slot,
                )
            )
        return made

    def examples(self, found: Sequence[Row]) -> list[Example]:
        """The edits, for editors that learn; there are no probes that belong to one edit."""
        from harness.editing.edit import Example

        return [Example(edit) for edit in self.edits(found)]

    def dataset(
        self, data_dir: str | None = None, split: str = "test", kinds: Sequence[str] = (), **_: object
    ) -> dict[str, datasets.Dataset]:
        """One document for each row of the evaluation set, of the hard negatives of either split, and of the texts.

        Args:
            data_dir: where the rows come from; see ``harness.exam.data.load``.
            split: ``test`` or ``val``.
            kinds: of ``evaluation``, ``hard_negatives``, ``hard_negatives_released``, ``text``; empty for all.
        """
        import datasets

        # The released test configurations all measure the hard negatives of the validation pair.
        parts = {"evaluation": ("evaluation", split), "hard_negatives": ("hard_negatives", split),
                 "hard_negatives_released": ("hard_negatives", "val"), "text": ("text", split)}  # fmt: skip
        documents = [
            {
                "id": f"{kind}/{number}",
                "kind": kind,
                "prefix": row["prefix"],
                "suffix": row["suffix"],
                "other": (row.get("other") or "") if kind == "evaluation" else "",
            }
            for kind in kinds or parts
            for number, row in enumerate(self.rows(parts[kind][0], data_dir, parts[kind][1]))
        ]
        return {"test": datasets.Dataset.from_list(documents)}

    def results(self, doc: Doc, nll: Sequence[float], tokens: int) -> dict[str, Ratio]:
        """What a document contributes to the metric of its kind.

        Args:
            doc: the document.
            nll: the summed negative log-likelihoods of its continuations.
            tokens: how many tokens a whole text has; 1 for a continuation, whose mean is over documents.
        """
        if doc["kind"] != "evaluation":
            return {_METRIC[doc["kind"]]: Ratio(nll[0], float(tokens))}
        value = loss(self.loss, *nll)
        success = math.nan if math.isnan(value) else float(not failed(value, self.threshold))
        return {"success": Ratio(success), "loss": Ratio(value)}


def _slot(prefix: str, subject: str | None) -> tuple[str, str, int | None]:
    """The prompt, its subject, and where the slot is if other braces are text."""
    if subject and prefix.count(subject) == 1:
        made = prefix.replace(subject, "{}")
        return made, subject, None if made.count("{}") == 1 else prefix.index(subject)
    return "{}", prefix, None


# --- the exam ---------------------------------------------------------------------------------------------------------


class Exam(Tokenized):
    """The lm-eval task of a set: each continuation after its prefix, both in tokens of their own."""

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:  # noqa: ARG002  # lm-eval's names
        """One log-likelihood request for each continuation.

        Args:
            doc: a row of an exam.
            ctx: the prompt as lm-eval put it together; not used, since the row says what is read.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        texts = [doc["suffix"], *filter(None, [doc["other"]])]
        mark = Whole if doc["kind"] in WHOLE else Apart
        return [
            Instance("loglikelihood", doc, (doc["prefix"], mark(text)), i, **kwargs) for i, text in enumerate(texts)
        ]

    def process_results(self, doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Ratio]:
        """The negative log-likelihoods, and of a whole text how many tokens are scored; the rest is the task file's."""
        tokens = len(open_ids(self.tokenizer, [doc["suffix"]])[0]) - 1 if doc["kind"] in WHOLE else 1
        found: dict[str, Ratio] = self.config.process_results(doc, [-value for value, _ in results], tokens)
        return found
