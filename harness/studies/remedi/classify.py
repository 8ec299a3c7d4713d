"""Will the model say it? What a dot product of representations predicts, before a word is written.

Source: Hernandez, Li, Andreas 2023, arXiv 2304.00740, section 6, and the authors' code (evandez/REMEDI at fe16234).
An editor's direction ``d = F(h_attr)`` is taken for a probe: of two attributes an entity has the one whose direction
has the greater dot product with its representation ``h_e``.  All three are standardised per dimension over the cases.
The positive class is *the model will fail*.

Variants: the fitted editor; ``identity`` (``F(h) = h``); ``control_task`` (labels shuffled); ``control_model`` (another
editor, fitted to a model of random weights, whose representations it reads); ``bilinear``, a supervised probe
``h_e' A h_attr + b``.  The published numbers of the last are of its own training rows; here it is examined on others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.editing.edit import Edit, Example
from harness.editing.editor import Editor
from harness.errors import UsageError
from harness.exam.statistics import Estimate, Ratio
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch
from harness.studies.remedi.asking import PatchedPrompt, hidden_states, mention, next_log_p
from harness.studies.remedi.bench import SETTINGS, Found, label_log_p
from harness.studies.remedi.entities import EntityCase, in_context

__all__ = [
    "BenchOutcome",
    "Directed",
    "Probes",
    "bios_classification",
    "directed",
    "fact_classification",
    "matthews",
    "random_model",
    "rated",
    "standardised",
]

RESAMPLES = 1000
BILINEAR = {"lr": 1e-4, "batch_size": 128, "epochs": 10, "patience": 4}


@runtime_checkable
class Directed(Protocol):
    """An editor whose edits are directions that can be read as probes."""

    def additions(self, lm: LM, edits: Sequence[Edit]) -> Tensor:
        """What each edit adds, ``[edits, d]``."""

    def identity(self, lm: LM) -> Editor:
        """The same editor with ``F(h) = h``."""

    def fit(self, lm: LM, train: Sequence[Example]) -> Editor:
        """The fitted editor."""


def directed(editor: Editor) -> Directed:
    """The editor as a source of directions.

    Raises:
        UsageError: it has none.
    """
    if not isinstance(editor, Directed):
        raise UsageError(f"{editor.name} adds no direction that could be read as a probe; choose remedi")
    return editor


@dataclass(frozen=True, eq=False)
class BenchOutcome:
    """What a benchmark found of one method.

    Attributes:
        values: what documents contribute to each metric.
        estimates: metrics that are no ratio of sums.
    """

    values: Found
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class Probes:
    """The sources of directions: each variant with the model whose representations it reads.

    Attributes:
        lm: the model whose answers are predicted.
        editor: the fitted editor.
        control_lm: a model of random weights.
        control: the editor, fitted to that.
        entity_layer: the block after which an entity is read.
        seed: of the shuffled labels and of the bilinear probe.
    """

    lm: LM
    editor: Directed
    control_lm: LM
    control: Directed
    entity_layer: int
    seed: int

    def variants(self) -> dict[str, tuple[LM, Directed]]:
        """The model and the directions of each variant that is a dot product."""
        return {
            "remedi": (self.lm, self.editor),
            "identity": (self.lm, directed(self.editor.identity(self.lm))),
            "control_model": (self.control_lm, self.control),
        }


def random_model(lm: LM, seed: int) -> LM:
    """A model of the same shape with fresh random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(lm.model.config)  # type: ignore[no-untyped-call]
    dtype = lm.dtype
    nn.Module.to(model, lm.device, dtype)
    model.train(False)
    model.requires_grad_(False)
    # Its parts are where those of the other are, also where they had to be named by hand.
    return replace(lm, model=model, name=f"{lm.name} at random")


def standardised(rows: Tensor) -> Tensor:
    """Each dimension with mean 0 and sample standard deviation 1, ``[n, d]``; one that does not vary becomes 0."""
    wide = double(rows)
    if len(wide) < 2:
        return torch.zeros_like(wide)
    spread = wide.std(0)
    return torch.where(spread > 0, (wide - wide.mean(0)) / spread, torch.zeros_like(wide))


# --- scores -----------------------------------------------------------------------------------------------------------


def rated(
    prefix: str, cases: Sequence[EntityCase], *, fails: Sequence[bool], predicted: Sequence[bool], seed: int
) -> BenchOutcome:
    """F1 of *fails*, accuracy and Matthews correlation.

    Args:
        prefix: of the names of the metrics.
        cases: the cases.
        fails: whether the model failed on each.
        predicted: whether it was predicted to.
        seed: of the bootstrap.
    """
    pairs = list(zip(fails, predicted, strict=True))
    f1 = {c.id: Ratio(2.0 * (a and b), float(a) + float(b)) for c, (a, b) in zip(cases, pairs, strict=True)}
    accuracy = {c.id: Ratio(float(a == b)) for c, (a, b) in zip(cases, pairs, strict=True)}
    values = {f"{prefix}f1": f1, f"{prefix}accuracy": accuracy}
    return BenchOutcome(values, {f"{prefix}mcc": matthews(fails, predicted, seed)})


def matthews(labels: Sequence[bool], predicted: Sequence[bool], seed: int) -> Estimate:
    """The Matthews correlation with its 95 % bootstrap interval; no value where labels or predictions are all equal.

    Args:
        labels: what is true of each case.
        predicted: what was predicted of it.
        seed: of the bootstrap's draws.
    """
    table = np.array([labels, predicted], dtype=float).reshape(2, -1)
    value, n = _phi(table), table.shape[1]
    if math.isnan(value):
        return Estimate(None, 0, reason="all labels, or all predictions, are the same")
    rng = np.random.default_rng(seed)
    draws = np.array([_phi(table[:, rng.integers(0, n, n)]) for _ in range(RESAMPLES)])
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(value, n, float(low), float(high))


def _phi(table: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Of two rows of zeros and ones; not a number where one does not vary."""
    a, b = table
    spread = a.std() * b.std()
    return float(((a * b).mean() - a.mean() * b.mean()) / spread) if spread > 0 else math.nan


def _joined(outcomes: Sequence[BenchOutcome]) -> BenchOutcome:
    values = {name: rows for outcome in outcomes for name, rows in outcome.values.items()}
    return BenchOutcome(values, {name: one for outcome in outcomes for name, one in outcome.estimates.items()})


# --- facts ------------------------------------------------------------------------------------------------------------


def fact_classification(
    probes: Probes, taught: Sequence[EntityCase], cases: Sequence[EntityCase]
) -> dict[str, BenchOutcome]:
    """Whether a model lets a sentence overrule what it knows (``contextual_``); whether it knows (``decontextual_``).

    ``contextual``: the model is right where the new target is the likelier one after the sentence; predicted where
    ``h_e d_new > h_e d_true``.  ``decontextual``: right where the true target is the likelier one after the bare
    question; predicted where ``h_e d_true > h_e d_new``.

    Args:
        probes: editors and models.
        taught: cases that the bilinear probe learns from.
        cases: what is examined.
    """
    fails = {setting: _fails(probes.lm, cases, setting) for setting in SETTINGS}
    found: dict[str, BenchOutcome] = {}
    for name, (lm, editor) in probes.variants().items():
        new, true = (standardised(editor.additions(lm, edits)) for edits in _edits(cases))
        predicted = {
            setting: _dots(_entities(lm, cases, setting, probes.entity_layer), new, true, setting)
            for setting in SETTINGS
        }
        found[name] = _both(cases, fails, predicted, probes.seed)
        if name == "remedi":
            found["control_task"] = _both(cases, _shuffled(fails, probes.seed), predicted, probes.seed)
    found["bilinear"] = _both(cases, fails, _supervised(probes, taught, cases), probes.seed)
    return found


def _fails(lm: LM, cases: Sequence[EntityCase], setting: str) -> list[bool]:
    questions = [PatchedPrompt(_text(case, setting), Patch()) for case in cases]
    rows = next_log_p(lm, questions, [(case.target, str(case.target_old)) for case in cases])
    return [not (new > true if setting == "contextual" else true > new) for new, true in rows]


def _text(case: EntityCase, setting: str) -> str:
    return in_context(case.context, case.prompt) if setting == "contextual" else case.prompt


def _edits(cases: Sequence[EntityCase]) -> tuple[list[Edit], list[Edit]]:
    """The edits to the new target, and to the true one."""
    true = [replace(case.edit, target=str(case.target_old), target_old=None) for case in cases]
    return [case.edit for case in cases], true


def _entities(lm: LM, cases: Sequence[EntityCase], setting: str, layer: int) -> Tensor:
    """The representation of each entity at the mention that is looked at, ``[cases, d]``."""
    texts = [_text(case, setting) for case in cases]
    places = [
        (text, mention(lm, text, entity=case.entity, which=SETTINGS[setting]))
        for text, case in zip(texts, cases, strict=True)
    ]
    return hidden_states(lm, places, layer)


def _dots(entities: Tensor, new: Tensor, true: Tensor, setting: str) -> list[bool]:
    """Whether the model is predicted to fail."""
    known = standardised(entities)
    wins = (known * new).sum(1) > (known * true).sum(1)
    loses = (known * true).sum(1) > (known * new).sum(1)
    return [not bool(right) for right in (wins if setting == "contextual" else loses)]


def _shuffled(fails: Mapping[str, Sequence[bool]], seed: int) -> dict[str, list[bool]]:
    return {setting: random.Random(seed).sample(list(labels), len(labels)) for setting, labels in fails.items()}


def _both(
    cases: Sequence[EntityCase], fails: Mapping[str, Sequence[bool]], predicted: Mapping[str, Sequence[bool]], seed: int
) -> BenchOutcome:
    return _joined([rated(f"{s}_", cases, fails=fails[s], predicted=predicted[s], seed=seed) for s in SETTINGS])


def _supervised(probes: Probes, taught: Sequence[EntityCase], cases: Sequence[EntityCase]) -> dict[str, list[bool]]:
    """What the bilinear probe predicts, one probe for each setting; the first nine tenths of the rows teach it."""
    found = {}
    for setting in SETTINGS:
        learned = _bilinear_rows(probes, taught, setting)
        right = torch.tensor([not fail for fail in _fails(probes.lm, taught, setting)], dtype=torch.float32)
        probe = _bilinear(learned, right, probes.seed)
        with torch.no_grad():
            scores = probe(*_bilinear_rows(probes, cases, setting))[:, 0]
        found[setting] = [bool(score <= 0) for score in scores]
    return found


def _bilinear_rows(probes: Probes, cases: Sequence[EntityCase], setting: str) -> tuple[Tensor, Tensor]:
    """``h_e`` and ``h_attr`` of each case."""
    same = directed(probes.editor.identity(probes.lm))
    entities = _entities(probes.lm, cases, setting, probes.entity_layer)
    attributes = same.additions(probes.lm, [case.edit for case in cases])
    return entities.float().cpu(), attributes.float().cpu()


def _bilinear(rows: tuple[Tensor, Tensor], right: Tensor, seed: int) -> nn.Bilinear:
    """A bilinear probe of the least loss on the last tenth of the rows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = nn.Bilinear(rows[0].shape[1], rows[1].shape[1], 1)
    adam = torch.optim.AdamW(probe.parameters(), lr=BILINEAR["lr"])
    cut, size = max(1, int(0.9 * len(right))), int(BILINEAR["batch_size"])
    taught, judged = slice(0, cut), slice(cut if cut < len(right) else 0, None)
    loss_of = nn.BCEWithLogitsLoss()
    best, least, waited = {k: v.clone() for k, v in probe.state_dict().items()}, math.inf, 0
    for _ in range(int(BILINEAR["epochs"])):
        for start in range(0, cut, size):
            part = slice(start, min(start + size, cut))
            with torch.enable_grad():
                loss = loss_of(probe(rows[0][taught][part], rows[1][taught][part])[:, 0], right[taught][part])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        with torch.no_grad():
            loss_now = float(loss_of(probe(rows[0][judged], rows[1][judged])[:, 0], right[judged]))
        waited = 0 if loss_now < least else waited + 1
        if loss_now < least:
            best, least = {k: v.clone() for k, v in probe.state_dict().items()}, loss_now
        if waited > BILINEAR["patience"]:
            break
    probe.load_state_dict(best)
    return probe


# --- bios -------------------------------------------------------------------------------------------------------------


def bios_classification(probes: Probes, cases: Sequence[EntityCase], labels: Sequence[str]) -> dict[str, BenchOutcome]:
    """Whether a model with the biography in front of the question will miss the occupation.

    Predicted to fail: its likeliest label is not among the probe's first three.  ``probe_recall_1`` and ``_3``,
    ``model_recall_1`` and ``_3``: the right label is the first, or among three.  As published, the direction of the
    right label is that of the biography itself and those of the others of a plain statement, which tells them apart.

    Args:
        probes: editors and models.
        cases: biographies.
        labels: the occupations.
    """
    rows = label_log_p(probes.lm, cases, patches=[Patch()] * len(cases), labels=labels, setting="contextual", space=" ")
    model = [sorted(range(len(labels)), key=lambda i, row=row: -row[i]) for row in rows]  # type: ignore[misc]
    truth = [labels.index(case.target) for case in cases]
    fails = [ranks[0] != right for ranks, right in zip(model, truth, strict=True)]
    found: dict[str, BenchOutcome] = {}
    for name, (lm, editor) in probes.variants().items():
        scores = _label_scores(lm, editor, cases, labels, probes.entity_layer)
        ranks = [row.argsort(descending=True, stable=True).tolist() for row in scores]
        predicted = [model[i][0] not in ranks[i][:3] for i in range(len(cases))]
        recalls = {"probe_recall": ranks, "model_recall": model}
        found[name] = _joined(
            [
                rated("", cases, fails=fails, predicted=predicted, seed=probes.seed),
                *(_recall(k, cases, r, truth) for k, r in recalls.items()),
            ]
        )
        if name == "remedi":
            shuffled = random.Random(probes.seed).sample(fails, len(fails))
            found["control_task"] = rated("", cases, fails=shuffled, predicted=predicted, seed=probes.seed)
    return found


def _recall(
    name: str, cases: Sequence[EntityCase], ranks: Sequence[Sequence[int]], truth: Sequence[int]
) -> BenchOutcome:
    values = {
        f"{name}_{k}": {
            case.id: Ratio(float(right in row[:k])) for case, row, right in zip(cases, ranks, truth, strict=True)
        }
        for k in (1, 3)
    }
    return BenchOutcome(values, {})


def _label_scores(lm: LM, editor: Directed, cases: Sequence[EntityCase], labels: Sequence[str], layer: int) -> Tensor:
    """The dot product of each case's entity with the direction of each label, ``[cases, labels]``."""
    edits = [case.edit if label == case.target else _says(case, label) for case in cases for label in labels]
    directions = standardised(editor.additions(lm, edits)).reshape(len(cases), len(labels), -1)
    known = standardised(_entities(lm, cases, "contextual", layer))
    return torch.einsum("cd,cld->cl", known, directions)


def _says(case: EntityCase, label: str) -> Edit:
    """The plain statement that an entity has an occupation."""
    prompt = case.prompt.replace(case.entity, "{}", 1)
    return replace(case.edit, id=f"{case.id}/{label}", prompt=prompt, target=label)
