"""What the programs of ROME, MEMIT, AlphaEdit and NAS write about a case: two shapes of answers, as our metrics.

CounterFact asks for two answers, of which the more probable one counts (``*_prompts_probs``: negative
log-probabilities, the mean over tokens); ZsRE asks whether each token of the answer is the most probable one
(``*_prompts_correct``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from harness.errors import DataError
from harness.exam.statistics import Ratio
from harness.reports.foreign_files import mean_answer, read_json
from harness.reports.published_runs import PublishedExam, Scores

__all__ = ["COUNTERFACT", "ZSRE", "CaseFile", "case_scores", "edit_set_of", "exam_of", "protocol_of", "simple_settings"]

COUNTERFACT, ZSRE = "CounterFact", "zsRE"
ROLES = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighborhood", "attribute": "attribute"}
"""What the files call a kind of prompt -> our metric."""
PROTOCOLS = {
    COUNTERFACT: "Probability of the new and the true answer, each the mean over its tokens; the greater one counts.",
    ZSRE: "Teacher-forced: the share of the answer's tokens that are the most probable, each behind the right ones.",
}


class CaseFile(TypedDict):
    """What is written about a case after its edit, and by ROME's program also before it."""

    case_id: int
    post: dict[str, Any]
    pre: NotRequired[dict[str, Any]]
    num_edits: NotRequired[int]
    grouped_case_ids: NotRequired[list[int]]
    time: NotRequired[float]


def edit_set_of(cases: Iterable[CaseFile]) -> str:
    """Which of the two shapes cases have, by the name of its data set."""
    return COUNTERFACT if any("rewrite_prompts_probs" in case["post"] for case in cases) else ZSRE


def protocol_of(cases: Iterable[CaseFile]) -> str:
    """How the answers of cases were measured, in a sentence."""
    return PROTOCOLS[edit_set_of(cases)]


def exam_of(scores: Scores) -> PublishedExam:
    """How the metrics of cases are shown; the score S is the harmonic mean of its three parts."""
    directions: dict[str, bool | None] = dict.fromkeys(scores, True)
    directions["fluency"] = None
    parts = ("efficacy", "paraphrase", "neighborhood")
    derived = {"score": parts} if "efficacy_magnitude" in scores and all(part in scores for part in parts) else {}
    return PublishedExam(
        "efficacy", directions, shown=tuple(m for m in ("consistency",) if m in scores), derived=derived
    )


def case_scores(cases: Iterable[tuple[CaseFile, str]], side: str) -> Scores:
    """What cases contributed before or after their edit.

    Args:
        cases: each case, and where it stands.
        side: ``pre`` or ``post``.

    Raises:
        DataError: an answer is none of the two shapes; says where.
    """
    found: Scores = {}
    for case, where in cases:
        for metric, ratio in _read_side(case, side, where):
            found.setdefault(metric, {})[str(case["case_id"])] = ratio
    return found


def _read_side(case: Mapping[str, Any], side: str, where: str) -> list[tuple[str, Ratio]]:
    try:
        return list(_metrics(case.get(side) or {}))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        said = " ".join(str(error).split())[:80]
        raise DataError(f"{where}: {side} is not what ROME's or MEMIT's program writes ({said})") from error


def _metrics(side: Mapping[str, Any]) -> Iterator[tuple[str, Ratio]]:
    by_probability = "rewrite_prompts_probs" in side
    for role, metric in ROLES.items():
        yield from _probabilities(metric, role, side.get(f"{role}_prompts_probs"))
        right = mean_answer(_flat(side.get(f"{role}_prompts_correct") or []))
        if right is not None:
            yield (f"{metric}_accuracy" if by_probability else metric), right
    for key, metric in (("ngram_entropy", "fluency"), ("reference_score", "consistency")):
        if side.get(key) is not None:
            yield metric, Ratio(float(side[key]))


def _probabilities(
    metric: str, role: str, prompts: Sequence[Mapping[str, float]] | None
) -> Iterator[tuple[str, Ratio]]:
    """Whether the wanted answer is the more probable one, and by how much; near other subjects that is the true one."""
    if not prompts:
        return
    near = role == "neighborhood"  # of the subjects of attribute prompts the new answer is true before any edit
    wanted, other = ("target_true", "target_new") if near else ("target_new", "target_true")
    better = mean_answer(prompt[wanted] < prompt[other] for prompt in prompts)
    by = mean_answer(math.exp(-prompt[wanted]) - math.exp(-prompt[other]) for prompt in prompts)
    yield from ((name, ratio) for name, ratio in ((metric, better), (f"{metric}_magnitude", by)) if ratio is not None)


def _flat(values: object) -> list[float]:
    """The truth values or shares of tokens, which newer programs write a list a prompt."""
    if isinstance(values, bool | int | float):
        return [float(values)]
    if not isinstance(values, list):
        raise TypeError(f"{ascii(values)[:40]} is no list of answers")
    return [one for value in values for one in _flat(value)]


def simple_settings(path: Path) -> dict[str, Any]:
    """The hyperparameters of a ``params.json``, without the names of modules; none where there is no such file."""
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: no object of hyperparameters; remove it, or copy it again")
    return {key: value for key, value in found.items() if "module" not in key and key != "model_name"}
