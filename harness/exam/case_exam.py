"""The exam of a declarative edit set: one lm-eval task that asks every question of every case.

A document is what one case asks in one way: the questions of one kind, protocol and language.  Its metrics are named by
kind and protocol: ``hop_exact_match`` (free generation; ``hop_refusal`` where it is to decline), ``hop_accuracy``
(teacher-forced share of the answer's tokens), ``hop_success`` (an answer is likelier than the rival), ``hop_choice``
(an answer is the likeliest choice), and ``locality_agreement`` where nothing but the unedited model's own answer is
known.  A language stands behind a dot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.api.instance import Instance

from harness.editing.join import joined
from harness.errors import DataError, UsageError
from harness.exam import case_sets, statistics
from harness.exam.compared import LISTED
from harness.exam.own_cases import OwnCaseSet
from harness.exam.samples import rated_texts
from harness.exam.statistics import Ratio
from harness.exam.text_metrics import begins_with, refuses
from harness.exam.token_tasks import Forced, Target, Tokenized, as_it_stands, in_place_of, join_pieces, pieces

if TYPE_CHECKING:
    import datasets

    from harness.exam.cases import Case, CaseRule, Question

__all__ = ["CaseExam", "OwnCaseExam"]

Doc = Mapping[str, Any]

_NAMES = {"generation": "exact_match", "accuracy": "accuracy", "probability": "success", "choice": "choice",
          "likelihood": "probability"}  # fmt: skip
"""What a metric of each protocol is called, behind its kind."""
_LEAST, _MOST = 20, 256
"""How many tokens of a free answer are written at least, and at most; a YAML may say other limits."""


class _Cases(Protocol):
    """Cases, and how they are asked."""

    @property
    def rule(self) -> CaseRule:
        """Which kinds of questions there are."""

    def cases(self, data_dir: str | None, split: str, only: Collection[str] | None, /) -> list[Case]:
        """The cases of a source, all or some."""


class CaseExam(Tokenized):
    """Asks the questions of the cases that ``metadata.case`` describes; see :mod:`harness.exam.cases`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = {
            "output_type": "generate_until",
            "custom_dataset": self._documents,
            "test_split": "test",
            "doc_to_text": "prompt",
            "doc_to_target": "target_true",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": _MOST},
            "metric_list": [],
            "num_fewshot": 0,
        }
        super().__init__({**settings, **config})
        unchanged = [rule.kind for rule in self.set.rule.probes if rule.expect == "unchanged"]
        if unchanged:
            self.config.metadata["agreement"] = {f"{kind}_agreement": {"kind": kind} for kind in unchanged}
        if self.set.rule.compare:
            self.config.metadata["compared"] = {name: dict(rule) for name, rule in self.set.rule.compare.items()}

    @cached_property
    def set(self) -> _Cases:
        """The edit set."""
        return case_sets.CaseSet.read(Path(str(self.config.metadata["config_source"])))

    def _documents(self, **options: Any) -> dict[str, datasets.Dataset]:
        import datasets

        where = options.get("data_dir"), options.get("split") or "test"
        wanted = options.get("records")
        only = None if wanted is None else {str(record) for record in wanted}
        chosen = _chosen(self.set.cases(*where, only), wanted, self.set.rule.name)
        found = [document for case in chosen for document in _documents_of(case)]
        if not found:
            raise DataError(
                f"{self.set.rule.name}: no case asks a question; give probes, or rows that have their fields"
            )
        unused = [] if any(turns for one in found for turns in one["turns"]) else ["turns"]
        unused += [] if any(one["after"] for one in found) else ["after"]
        unused += [] if any(join is not None for one in found for join in one["joins"]) else ["joins"]
        found = [{key: value for key, value in one.items() if key not in unused} for one in found]
        return {"test": datasets.Dataset.from_list(found)}

    # --- metrics ------------------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that the documents have, in the order of the YAML."""
        rules = self.set.rule
        known = {_metric_of(doc) for doc in self.eval_docs if doc["expect"] != "unchanged"}
        by_language = sorted(
            {_localised(doc) for doc in self.eval_docs if doc["language"] and doc["expect"] != "unchanged"}
        )
        asked = [name for name in self.declared if name in known or name in rules.combine]
        return [*asked, *by_language]

    @property
    def declared(self) -> list[str]:
        """The metrics that the YAML has, in its order, whether or not a document asks for them."""
        rules = [rule for rule in self.set.rule.probes if rule.expect != "unchanged"]
        order = [_metric(rule.kind, protocol, rule.expect) for rule in rules for protocol in rule.protocols]
        return list(dict.fromkeys([*order, *self.set.rule.combine]))

    def aggregation(self) -> dict[str, Any]:
        """Ratios of sums over documents, for all."""
        return dict.fromkeys(self.metrics, statistics.aggregate)

    def higher_is_better(self) -> dict[str, bool]:
        """Higher, unless the YAML says of a kind that lower is."""
        higher = {rule.kind: rule.higher for rule in self.set.rule.probes}
        kinds = {
            _metric(rule.kind, protocol, rule.expect): rule.kind
            for rule in self.set.rule.probes
            for protocol in rule.protocols
        }
        kinds |= {metric: rule.kind for metric, rule in self.set.rule.combine.items()}
        return {metric: higher[kinds[metric.partition(".")[0]]] for metric in self.metrics}

    # --- requests -----------------------------------------------------------------------------------------------------

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """The requests of one document: of each question a text, or a rating of each answer.

        Args:
            doc: the questions of one kind and protocol of a case.
            ctx: what lm-eval puts together for the first of them; what stands in front of a question is taken from it.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        templated = bool(kwargs.pop("apply_chat_template", False))
        template = kwargs.pop("chat_template", None)
        asked = [in_place_of(doc["prompt"], prompt, ctx) for prompt in doc["prompts"]]
        if templated and doc.get("turns"):
            asked = [
                _in_turns(doc["prompt"], ctx, turns, template) if turns else one
                for one, turns in zip(asked, doc["turns"], strict=True)
            ]
        if doc["protocol"] == "generation":
            options = {**deepcopy(self.config.generation_kwargs), "max_gen_toks": self._length}
            return [Instance("generate_until", doc, (context, options), i, **kwargs) for i, context in enumerate(asked)]
        pairs = [
            (context, Target.of(joined(context, text, "" if templated else join), per_token=True))
            for context, texts, join in zip(asked, rated_texts(doc), _joins(doc), strict=True)
            for text in texts
        ]
        if not self._exact:
            pairs = [(one.context, one.text) for context, text in pairs for one in self._cut(context, text)]
        return [Instance("loglikelihood", doc, pair, i, **kwargs) for i, pair in enumerate(pairs)]

    def _cut(self, context: str, text: str) -> list[Any]:
        return pieces(self.tokenizer, context, text, per_token=True)

    # --- scores -------------------------------------------------------------------------------------------------------

    def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Ratio]:
        """What a document contributes to the metrics of its kind."""
        if doc["expect"] == "unchanged":
            return {}
        scores = self._generated(doc, results) if doc["protocol"] == "generation" else self._judged(doc, results)
        known = [score for score in scores if not math.isnan(score.num)]
        total = Ratio(
            sum(s.num for s in known) if known else math.nan, sum(s.den for s in known) if known else 1.0, doc["case"]
        )
        found = {_metric_of(doc): total}
        if doc["language"]:
            found[_localised(doc)] = total
        parts = [score.num / score.den for score in known]
        for metric, rule in self.set.rule.combine.items():
            if (rule.kind, rule.protocol) == (doc["kind"], doc["protocol"]):
                value = _put_together(rule.how, parts) if len(known) == len(scores) else math.nan
                found[metric] = Ratio(value, 1.0, doc["case"])
        return found

    def _generated(self, doc: Doc, texts: Sequence[str]) -> list[Ratio]:
        """Whether each free continuation begins with a right answer; missing where none could have been written."""
        found = []
        for prompt, text, answers, join in zip(doc["prompts"], texts, doc["answers"], _joins(doc), strict=True):
            if doc["expect"] == "refusal":
                found.append(Ratio(float(refuses(text, answers))))
                continue
            short = min(self.tokens_of(prompt, answers, join)) <= self._length
            found.append(Ratio(float(begins_with(text, answers[0], answers[1:])) if short else math.nan))
        return found

    def _judged(self, doc: Doc, results: Sequence[Any]) -> list[Ratio]:
        """How each question's answers are rated."""
        ratings, found = iter(self._ratings(doc, results)), []
        for texts, answers in zip(rated_texts(doc), doc["answers"], strict=True):
            rated = dict(zip(texts, ratings, strict=False))
            right = [rated[answer] for answer in answers if answer in rated]
            if any(math.isnan(one.nll) for one in rated.values()) or not right:
                found.append(Ratio(math.nan))
            elif doc["protocol"] == "likelihood":
                found.append(Ratio(math.exp(-min(one.nll for one in right))))
            elif doc["protocol"] == "accuracy":
                best = max(right, key=lambda one: one.hits / one.tokens)
                found.append(Ratio(float(best.hits), float(best.tokens)))
            else:
                others = [one for text, one in rated.items() if text not in answers]
                wins = min(one.nll for one in right) < min(one.nll for one in others)
                found.append(Ratio(float(wins)))
        return found

    def likelihoods(self, doc: Doc, results: Sequence[Any]) -> list[Any]:
        """How likely the answer to each question of a document is; none where that is not asked.

        Of a choice of which right and wrong choices are compared, how likely each of both is.

        Args:
            doc: the document.
            results: what the model answered to its requests.
        """
        if doc["protocol"] == "likelihood":
            return [score.num for score in self._judged(doc, results)]
        listed = {rule["kind"] for rule in self.set.rule.compare.values() if rule["how"] in LISTED}
        return self._listed(doc, results) if doc["protocol"] == "choice" and doc["kind"] in listed else []

    def _listed(self, doc: Doc, results: Sequence[Any]) -> list[tuple[list[float], list[float]]]:
        """How likely the right choices of each question are, and the wrong ones."""
        ratings, found = iter(self._ratings(doc, results)), []
        for texts, answers in zip(rated_texts(doc), doc["answers"], strict=True):
            rated = [(text, math.exp(-next(ratings).nll)) for text in texts]
            found.append(([p for text, p in rated if text in answers], [p for text, p in rated if text not in answers]))
        return found

    def _ratings(self, doc: Doc, results: Sequence[Any]) -> list[Forced]:
        if self._exact:
            return list(results)
        answers, found = iter(results), []
        for prompt, texts, join in zip(doc["prompts"], rated_texts(doc), _joins(doc), strict=True):
            for text in texts:
                cut = self._cut(prompt, joined(prompt, text, join))
                found.append(join_pieces(cut, [next(answers) for _ in cut]))
        return found

    # --- the length of a free answer ----------------------------------------------------------------------------------

    @cached_property
    def _length(self) -> int:
        """How many tokens are written: what the longest wanted answer needs, within limits."""
        asked = [doc for doc in self.eval_docs if doc["protocol"] == "generation"]
        needed = [
            max(self.tokens_of(prompt, answers, join), default=0)
            for doc in asked
            for prompt, answers, join in zip(doc["prompts"], doc["answers"], _joins(doc), strict=True)
        ]
        return self.written_tokens(max(needed, default=0), least=_LEAST)


class OwnCaseExam(CaseExam):
    """Asks the probes of a file of one's own that no field of a flat row says; see :mod:`harness.exam.own_cases`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.config.metadata["shown"] = [*self.metrics, *self.config.metadata.get("agreement", {})]

    @cached_property
    def set(self) -> OwnCaseSet:
        """The cases of the file."""
        file = self.config.metadata.get("file")
        if not file:
            raise UsageError(
                'own_cases: no file; run with --edits my.json, or --metadata \'{"file": "my.json"}\' under lm_eval'
            )
        return OwnCaseSet.read(Path(str(file)))


def _put_together(how: str, parts: Sequence[float]) -> float:
    """One number of the questions of a case: whether any is wholly right, whether all are, or the mean of them."""
    if how == "first_likelier":
        return float(parts[0] > parts[1]) if len(parts) == 2 else math.nan
    right = [part == 1 for part in parts]
    return {"any": float(any(right)), "all": float(all(right)), "mean": sum(parts) / len(parts)}[how]


def _joins(doc: Doc) -> list[str | None]:
    """What stands between each question of a document and its answers; None for what the text would have."""
    return list(doc.get("joins") or [None] * len(doc["prompts"]))


def _metric(kind: str, protocol: str, expect: str) -> str:
    return f"{kind}_{'refusal' if expect == 'refusal' else _NAMES[protocol]}"


def _metric_of(doc: Doc) -> str:
    return _metric(doc["kind"], doc["protocol"], doc["expect"])


def _localised(doc: Doc) -> str:
    return f"{_metric_of(doc)}.{doc['language']}"


def _in_turns(prompt: str, context: str, turns: Sequence[Mapping[str, str]], template: Callable[..., str]) -> str:
    """The context of turns of a chat: what the template makes of them, behind what stands in front of the first.

    Args:
        prompt: a text that was asked in one turn.
        context: what lm-eval made of that, a system turn in front where there is one.
        turns: the turns that are asked instead.
        template: makes a text of turns.
    """
    front, *_ = context.rpartition(as_it_stands(prompt, context))
    said = template([dict(turn) for turn in turns])
    begun = as_it_stands(turns[0]["content"], said)
    *_, rest = said.partition(begun)
    return f"{front}{begun}{rest}"


def _chosen(cases: Sequence[Case], records: Sequence[object] | None, name: str) -> list[Case]:
    """The cases that are examined: all, or those named, in that order."""
    if records is None:
        return list(cases)
    by_id = {case.id: case for case in cases}
    missing = [str(record) for record in records if str(record) not in by_id]
    if missing:
        raise DataError(f"{name}: no case {missing[0]}; name cases by the ids that metadata.case.id gives them")
    return [by_id[str(record)] for record in records]


def _documents_of(case: Case) -> list[dict[str, Any]]:
    """The documents of a case; a question whose answer is only to stay as it is is one of its own."""

    def group(indexed: tuple[int, Question]) -> tuple[str, str, str, int]:
        place, one = indexed
        return one.kind, one.protocol, one.language or "", place if one.expect == "unchanged" else -1

    ordered = sorted(enumerate(case.probes), key=group)
    found = []
    for (kind, protocol, language, place), members in groupby(ordered, key=group):
        asked = [question for _, question in members]
        parts = [case.id, kind, protocol, *filter(None, [language]), *([str(place)] if place >= 0 else [])]
        found.append(
            {
                "id": "/".join(parts),
                "case": case.id,
                "kind": kind,
                "protocol": protocol,
                "expect": asked[0].expect,
                "language": language,
                "prompt": asked[0].prompt,
                "prompts": [one.prompt for one in asked],
                "answers": [list(one.answers) for one in asked],
                "rivals": [one.rival for one in asked],
                "choices": [list(one.choices) for one in asked],
                "after": asked[0].after,
                "joins": [one.join for one in asked],
                "turns": [[{"role": role, "content": text} for role, text in one.turns] for one in asked],
                "target_true": asked[0].answers[0] if asked[0].answers else "",
            }
        )
    return found
