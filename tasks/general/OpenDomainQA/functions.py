"""Open-domain questions with one passage: the plain score and the released counter with its state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.task_kit import Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("OpenDomainQA", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """``exact_match`` of the first line, ``contains`` of the whole text, and what the released counter needs.

    Gold answers that are empty after normalisation (``A+``) are ignored; a document without another does not count.
    """
    golds = [answer_scores.normalise(answer) for answer in doc["answer"]]
    answers = {gold for gold in golds if gold}
    text = answer_scores.normalise(results[0])
    den = float(bool(answers))
    return {
        "exact_match": Ratio(float(answer_scores.normalise(answer_scores.first_line(results[0])) in answers), den),
        "contains": Ratio(float(answer_scores.contains_span(text, answers)), den),
        # A mapping, because the counter's value depends on the documents before: it is no ratio of sums.
        "em_released": {"words": released_words(results[0]), "golds": sorted(set(golds))},
    }


def released_words(text: str) -> list[str]:
    """The words that the released counter sees; an empty text has one empty word."""
    return answer_scores.normalise(answer_scores.after_cue(text, "Answer:").replace("\n", " ")).split(" ")


def em_released(items: Iterable[Mapping[str, Sequence[str]]]) -> float:
    """The released exact match: increments over documents in their order, divided by their number (NaN for none)."""
    total, sticky, count = 0, False, 0
    for item in items:
        increment, sticky = released_increment(item["words"], set(item["golds"]), sticky)
        total, count = total + increment, count + 1
    return total / count if count else float("nan")


def released_increment(words: Sequence[str], golds: Collection[str], sticky: bool) -> tuple[int, bool]:
    """What one document adds to the released counter, and the flag that is never reset.

    A first or last word among the golds is one hit.  Otherwise every word that is a gold is a hit of its own; at any
    other word the spans that start there are tried, and the first hit among them sets ``sticky``, which ends the search
    after the current start, in this and in every later document.
    """
    if words[0] in golds or words[-1] in golds:
        return 1, sticky
    increment = 0
    for start in range(len(words) - 1):
        if words[start] in golds:
            increment += 1
            continue
        if _span_hit(words, start, golds):
            increment, sticky = increment + 1, True
        if sticky:
            break
    return increment, sticky


def _span_hit(words: Sequence[str], start: int, golds: Collection[str]) -> bool:
    """Whether a span of at least two words that starts at ``start`` is a gold."""
    spans = (" ".join(words[start : end + 1]) for end in range(start + 1, len(words)))
    return any(answer_scores.normalise(span) in golds for span in spans)
