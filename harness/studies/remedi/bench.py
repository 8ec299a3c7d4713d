"""REMEDI's benchmarks: does a model say what an edit entails, and will it, as far as its representations tell?

``facts`` (CounterFact), ``features`` (McRae norms), ``bios`` (Bias in Bios), ``mediation``: what the model says.
``fact-classification`` and ``bios-classification``: what a dot product of its representations predicts that it says.

Source: Hernandez, Li, Andreas 2023, arXiv 2304.00740, sections 4 to 6, and the authors' code (evandez/REMEDI at
fe16234).  A method is an editor, or a baseline: ``none``; ``prefix``, the sentence in front of every question;
``replace``, another entity of which the new target is true.  Probabilities of answers are of their first tokens except
in ``features``, where they are of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from harness.editing.editor import Editor
from harness.editing.hyperparameters import settable
from harness.exam.statistics import Ratio
from harness.exam.text_metrics import consistency, entropy, words
from harness.methods.value_cache import ValueCache, values_folder, values_from
from harness.models.lm import LM
from harness.patches.patch import Patch
from harness.studies.remedi.asking import PatchedPrompt, next_log_p, sampled, target_log_p
from harness.studies.remedi.entities import EntityCase, in_context
from harness.studies.remedi.norms import feature_question

__all__ = [
    "BASELINES",
    "BenchMethod",
    "Found",
    "bios",
    "compared",
    "correlation",
    "essences",
    "facts",
    "features",
    "label_log_p",
    "mediation",
    "unedited_features",
]

BASELINES = ("none", "prefix", "replace")
ESSENCE = "The following is an excerpt from a Wikipedia article:\n\n{} is"
GROUPS = ("co", "original", "unrelated")
FACT_TOKENS = 100
BIO_TOKENS = 150

Found = dict[str, dict[str, Ratio]]
"""What each document contributes to each metric: metric -> document -> ratio."""
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class BenchMethod:
    """An editor or a baseline.

    Attributes:
        name: as the user named it.
        editor: None for a baseline.
        stand_ins: for ``replace``, the other entity of each case, by id.
    """

    name: str
    editor: Editor | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def able(self, cases: Sequence[EntityCase]) -> list[EntityCase]:
        """The cases that it can be tried on."""
        return [case for case in cases if self.name != "replace" or self.stand_ins.get(case.id)]

    def patches(self, lm: LM, cases: Sequence[EntityCase], mention: int = 1) -> list[Patch]:
        """The patch of each case; an editor that can choose edits that mention of the entity.

        Args:
            lm: the model.
            cases: the cases, each with its edit.
            mention: which mention of the entity is edited, 1 for the first.
        """
        if self.editor is None:
            return [Patch()] * len(cases)
        chosen = self.editor
        if "mention" in settable(type(chosen)):
            chosen = replace(chosen, **{"mention": mention})
        with values_from(ValueCache(values_folder())):
            return chosen.edit_each(lm, [case.edit for case in cases])

    def text(self, case: EntityCase, prompt: str) -> str:
        """What the model reads for a question."""
        if self.name == "prefix":
            return in_context(case.context, prompt)
        return prompt.replace(case.entity, self.stand_ins[case.id]) if self.name == "replace" else prompt


def compared(new: float, true: float, cluster: str) -> dict[str, Ratio]:
    """Success ``1[p_new > p_true]`` and magnitude ``p_new - p_true`` of one question of a record.

    Args:
        new: the probability of the edit's target.
        true: the probability of what was true before.
        cluster: the record to which the question belongs; intervals are drawn over records.
    """
    return {"": Ratio(float(new > true), 1.0, cluster), "_magnitude": Ratio(new - true, 1.0, cluster)}


# --- facts ------------------------------------------------------------------------------------------------------------


def facts(
    lm: LM,
    method: BenchMethod,
    cases: Sequence[EntityCase],
    *,
    fitted: TfidfVectorizer,
    references: Mapping[str, Sequence[str]],
    essence: Mapping[str, str],
    seed: int,
    length: int = FACT_TOKENS,
) -> Found:
    """Fact generation on CounterFact.

    ``efficacy``: the first token of the new target against that of the true one after the cleaned paraphrase;
    ``paraphrase``: after the paraphrases as they are; ``neighborhood``: the true against the new one.  ``consistency``:
    the likeness of the sampled texts to texts about the new target; ``fluency``: their n-gram entropy in bits;
    ``essence``: the likeness of a text about the entity to one by the unedited model.

    Args:
        lm: the model.
        method: what is examined.
        cases: cases of CounterFact.
        fitted: the TF-IDF.
        references: texts about the new target, by case; consistency is missing where there is none.
        essence: texts about the entity by the unedited model, by case.
        seed: of the sampled texts.
        length: of the sampled texts, in tokens.
    """
    cases = method.able(cases)
    patches = method.patches(lm, cases)
    found: Found = {}
    _probabilities(lm, method, cases, patches, found)
    asked = [(case, patch, prompt) for case, patch in zip(cases, patches, strict=True) for prompt in _prompts(case)]
    said = sampled(
        lm, [PatchedPrompt(method.text(case, prompt), patch) for case, patch, prompt in asked], length=length, seed=seed
    )
    for (_, case), group in groupby(zip(asked, said, strict=True), key=lambda pair: (pair[0][0].id, pair[0][0])):
        texts = [text for _, text in group]
        _note(found, "fluency", case, _fluency(texts))
        _note(found, "consistency", case, consistency(fitted, texts, list(references.get(case.id, ()))))
    for case, text in essences(lm, method, cases, patches=patches, seed=seed, length=length).items():
        mine = next(one for one in cases if one.id == case)
        _note(found, "essence", mine, consistency(fitted, [text], [essence[case]]))
    return found


def _prompts(case: EntityCase) -> Sequence[str]:
    return list(case.more.get("generation") or [case.prompt])


def _note(found: Found, metric: str, case: EntityCase, value: float) -> None:
    found.setdefault(metric, {})[case.id] = Ratio(value)


def _fluency(texts: Sequence[str]) -> float:
    values = [value for value in (entropy(words(text)) for text in texts) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _probabilities(
    lm: LM, method: BenchMethod, cases: Sequence[EntityCase], patches: Sequence[Patch], found: Found
) -> None:
    asked = [
        (case, patch, kind, prompt)
        for case, patch in zip(cases, patches, strict=True)
        for kind, prompts in (
            ("efficacy", [case.prompt]),
            ("paraphrase", case.more["paraphrases"]),
            ("neighborhood", case.more["neighborhood"]),
        )
        for prompt in prompts
    ]
    questions = [PatchedPrompt(method.text(case, prompt), patch) for case, patch, _, prompt in asked]
    rated = next_log_p(lm, questions, [(case.target, str(case.target_old)) for case, *_ in asked])
    for i, ((case, _, kind, _), (new, true)) in enumerate(zip(asked, rated, strict=True)):
        pair = (true, new) if kind == "neighborhood" else (new, true)
        for suffix, ratio in compared(math.exp(pair[0]), math.exp(pair[1]), case.id).items():
            found.setdefault(kind + suffix, {})[f"{case.id}/{i}"] = ratio


def essences(
    lm: LM,
    method: BenchMethod,
    cases: Sequence[EntityCase],
    *,
    patches: Sequence[Patch],
    seed: int,
    length: int = FACT_TOKENS,
) -> dict[str, str]:
    """What is written about the entity of each case, by its id, without the prompt.

    Args:
        lm: the model.
        method: what is put in front of the prompt where a method does that.
        cases: whose entities are written about.
        patches: the patch of each case.
        seed: of the sampling.
        length: tokens that are written.
    """
    prompts = [ESSENCE.format(case.entity) for case in cases]
    texts = [method.text(case, prompt) for case, prompt in zip(cases, prompts, strict=True)]
    questions = [PatchedPrompt(text, patch) for text, patch in zip(texts, patches, strict=True)]
    said = sampled(lm, questions, length=length, seed=seed)
    return {case.id: text.removeprefix(read) for case, text, read in zip(cases, said, texts, strict=True)}


# --- features ---------------------------------------------------------------------------------------------------------

Rated = dict[str, list[float]]
"""Log-probabilities of a case's features, by group, in their order; the answer that is asked for under ``asked``."""


def unedited_features(lm: LM, cases: Sequence[EntityCase]) -> list[Rated]:
    """What the unedited model makes of the features, without any sentence in front."""
    return _rate(lm, BenchMethod("none"), cases)


def _rate(lm: LM, method: BenchMethod, cases: Sequence[EntityCase]) -> list[Rated]:
    asked = [
        (number, group, *feature_question(case.entity, feature))
        for number, case in enumerate(cases)
        for group in GROUPS
        for feature in case.more[group]
    ]
    asked += [(number, "asked", case.prompt, case.target) for number, case in enumerate(cases)]
    patches = method.patches(lm, cases)
    questions = [PatchedPrompt(method.text(cases[i], prompt), patches[i]) for i, _, prompt, _ in asked]
    found: list[Rated] = [{group: [] for group in (*GROUPS, "asked")} for _ in cases]
    for (i, group, *_), value in zip(asked, target_log_p(lm, questions, [t for *_, t in asked]), strict=True):
        found[i][group].append(value)
    return found


def features(lm: LM, method: BenchMethod, cases: Sequence[EntityCase], *, before: Sequence[Rated]) -> Found:
    """Entailment on the McRae norms.

    ``entailment``: whether the answer that the sentence entails became likelier, and by how much (``_magnitude``).
    ``change_co``, ``change_original``, ``change_unrelated``: the mean change of the probability of the features that go
    with the one that was said, of those that the concept had, and of others.  ``correlation_co``,
    ``correlation_original``: per case Pearson's r of the model's log-probabilities with ``log co`` and ``log P(f|c)``.

    Args:
        lm: the model.
        method: what is examined; of ``none`` there are the correlations alone.
        cases: cases of the norms.
        before: :func:`unedited_features`.
    """
    found: Found = {}
    unedited = method.name == "none"
    for case, old, new in zip(cases, before, before if unedited else _rate(lm, method, cases), strict=True):
        if not unedited:
            _changes(found, case, old, new)
        for group in ("co", "original"):
            _note(found, f"correlation_{group}", case, correlation(list(case.more[group].values()), new[group]))
    return found


def _changes(found: Found, case: EntityCase, old: Rated, new: Rated) -> None:
    moved = {group: [math.exp(b) - math.exp(a) for a, b in zip(old[group], new[group], strict=True)] for group in old}
    _note(found, "entailment", case, float(new["asked"][0] > old["asked"][0]))
    _note(found, "entailment_magnitude", case, moved["asked"][0])
    for group in GROUPS:
        _note(found, f"change_{group}", case, _mean(moved[group]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def correlation(reference: Sequence[float], log_p: Sequence[float]) -> float:
    """Pearson's r of log-probabilities with the logs of reference probabilities.

    References of zero are left out; not a number of fewer than three, or where one side does not vary.
    """
    pairs = [(math.log(p), q) for p, q in zip(reference, log_p, strict=True) if p > 0 and math.isfinite(q)]
    if len(pairs) < 3:
        return math.nan
    x, y = np.array(pairs).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


# --- bios -------------------------------------------------------------------------------------------------------------

SETTINGS = {"contextual": 2, "decontextual": 1}
"""With the text in front of the question, and without it: the mention that is edited."""


def label_log_p(
    lm: LM,
    cases: Sequence[EntityCase],
    *,
    patches: Sequence[Patch],
    labels: Sequence[str],
    setting: str,
    space: str = "\n\n",
) -> list[list[float]]:
    """The log-probability of each label's first token, for each case.

    Args:
        lm: the model.
        cases: the cases.
        patches: the patch of each case.
        labels: all labels; each has a first token of its own.
        setting: ``contextual`` puts the sentence in front of the question, ``decontextual`` does not.
        space: what stands between the sentence and the question.

    Returns:
        natural logarithms, ``[case][label]``.
    """
    texts = [_asked(case, setting, space) for case in cases]
    questions = [PatchedPrompt(text, patch) for text, patch in zip(texts, patches, strict=True)]
    return next_log_p(lm, questions, [labels] * len(cases))


def _asked(case: EntityCase, setting: str, space: str = " ") -> str:
    return in_context(case.context, case.prompt, space) if setting == "contextual" else case.prompt


def bios(
    lm: LM,
    method: BenchMethod,
    cases: Sequence[EntityCase],
    *,
    labels: Sequence[str],
    seed: int,
    length: int = BIO_TOKENS,
) -> Found:
    """Error correction on Bias in Bios, with the text in front (``contextual_``) and without it (``decontextual_``).

    ``accuracy``: the likeliest label is the right one; ``accuracy_top3``: it is among three.  ``fluency``: n-gram
    entropy in bits of a sampled text; ``consistency``: its likeness to the mean biography of the right label.

    Args:
        lm: the model.
        method: an editor, or ``none``; the unedited model with the text in front is the baseline of the paper.
        cases: biographies.
        labels: the occupations.
        seed: of the sampled texts.
        length: of the sampled texts, in tokens.
    """
    found: Found = {}
    fitted, centres = _centres(cases)
    for setting, mention in SETTINGS.items():
        patches = method.patches(lm, cases, mention)
        for case, row in zip(
            cases, label_log_p(lm, cases, patches=patches, labels=labels, setting=setting), strict=True
        ):
            best = _ranking(row)
            _note(found, f"{setting}_accuracy", case, float(labels[best[0]] == case.target))
            _note(found, f"{setting}_accuracy_top3", case, float(case.target in [labels[i] for i in best[:3]]))
        texts = [_asked(case, setting, "\n\n") for case in cases]
        questions = [PatchedPrompt(text, patch) for text, patch in zip(texts, patches, strict=True)]
        for case, text in zip(cases, sampled(lm, questions, length=length, seed=seed), strict=True):
            _note(found, f"{setting}_fluency", case, _fluency([text]))
            said = fitted.transform([text]).toarray()[0]
            _note(found, f"{setting}_consistency", case, _cosine(said, centres[case.target]))
    return found


def _ranking(row: Sequence[float]) -> list[int]:
    """The positions of the values, the greatest first; of equal ones the first."""
    return sorted(range(len(row)), key=lambda i: -row[i])


def _centres(
    cases: Sequence[EntityCase],
) -> tuple[TfidfVectorizer, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]:
    """The TF-IDF of all biographies, and the mean of each label's."""
    fitted = TfidfVectorizer().fit([case.context for case in cases])
    by_label: dict[str, list[str]] = {}
    for case in cases:
        by_label.setdefault(case.target, []).append(case.context)
    return fitted, {label: fitted.transform(texts).toarray().mean(0) for label, texts in by_label.items()}


def _cosine(
    a: np.ndarray[tuple[int, ...], np.dtype[np.float64]], b: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> float:
    """The cosine, with 1e-6 beside each norm as published."""
    return float(a @ b / ((np.linalg.norm(a) + 1e-6) * (np.linalg.norm(b) + 1e-6)))


# --- mediation --------------------------------------------------------------------------------------------------------


def mediation(lm: LM, method: BenchMethod, cases: Sequence[EntityCase]) -> Found:
    """Fact mediation on CounterFact: which of two answers a model gives, with the sentence in front and without it.

    ``contextual_accuracy``: the new target after the sentence and the question; ``decontextual_accuracy``: the true one
    after the bare question.  An edited model should lose the second: what it is edited to say is the new target.

    Args:
        lm: the model.
        method: an editor or a baseline.
        cases: the records of CounterFact.
    """
    found: Found = {}
    for setting, mention in SETTINGS.items():
        patches = method.patches(lm, cases, mention)
        questions = [PatchedPrompt(_asked(case, setting), patch) for case, patch in zip(cases, patches, strict=True)]
        rated = next_log_p(lm, questions, [(case.target, str(case.target_old)) for case in cases])
        for case, (new, true) in zip(cases, rated, strict=True):
            _note(found, f"{setting}_accuracy", case, float(new > true if setting == "contextual" else true > new))
    return found
