"""Yes-no questions on a passage: the plain score and the two released ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.task_kit import Ratio, answer_scores, data

if TYPE_CHECKING:
    import datasets


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """What lm-eval reads."""
    return data.splits("ClosedDomainQA", data_dir)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Ratio]:
    """``accuracy``, ``invalid_rate`` (first word), and the released rules: substring, and strict (before editing)."""
    gold = bool(doc["answer"])
    plain = answer_scores.choice(results[0], "yes" if gold else "no", ("yes", "no"))
    text = results[0].split("answer:", 1)[0]
    strict = answer_scores.two_way(*released_strict(text, gold))
    return (
        plain
        | answer_scores.two_way(*answer_scores.yes_no(text, "yes", "no", gold=gold))
        | {"accuracy_released_strict": strict["accuracy_released"]}
    )


def released_strict(text: str, gold: bool) -> tuple[int, int]:
    """(correct, answered): only exactly `` yes`` or `` no``, with the leading space and in any case, is an answer."""
    folded = text.lower()
    if folded == " yes":
        return int(gold), 1
    return (int(not gold), 1) if folded == " no" else (0, 0)
