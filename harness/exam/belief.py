"""Whether an edit is believed: questions that can be made of any edit, whatever its set asks besides.

The bare prompt; the same behind a long prefix of neutral text (the test of EAMET, Dai et al. 2025, arXiv 2505.11876, in
which MEMIT falls from 98.5 to 77.4 %); after a negation (Kassner and Schuetze 2020, arXiv 1911.03343: models hardly
tell a statement from its negation); after a thought of some tokens between think marks; and in a long free answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from harness.editing.edit import Edit
from harness.editing.join import joined
from harness.errors import DataError, UsageError
from harness.exam import statistics
from harness.exam.own_cases import rival_of
from harness.exam.statistics import Ratio
from harness.exam.text_metrics import begins_with, mentions
from harness.exam.thought import Thought
from harness.exam.token_tasks import Forced, Target, Tokenized, as_it_stands, join_pieces, pieces

if TYPE_CHECKING:
    import datasets

__all__ = ["BeliefExam"]


Doc = Mapping[str, Any]

_METRICS = ("bare_exact_match", "prefix_exact_match", "negation_success", "thinking_exact_match", "thinking_old")
_LONG = "long_believed"
_LEAST = 20
"""How many tokens of an answer are written at least; a YAML may say another number."""
_LEAD = 24  # sentences of which a prefix is taken


class BeliefExam(Tokenized):
    """Asks five questions about each edit of whatever set is edited.

    ``metadata`` says how: ``prefix_tokens`` of neutral text at most, in whole sentences; ``negation``, with ``{}``
    where the prompt stands; ``thinking`` ``{tokens, opens, closes}``; ``long_tokens``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = {
            "output_type": "generate_until",
            "custom_dataset": self._documents,
            "test_split": "test",
            "doc_to_text": "prompt",
            "doc_to_target": "target_new",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 256},
            "metric_list": [],
            "num_fewshot": 0,
        }
        super().__init__({**settings, **config})
        self.config.metadata["shown"] = self.metrics

    @property
    def _said(self) -> Mapping[str, Any]:
        said: Mapping[str, Any] = self.config.metadata
        return said

    # --- documents ----------------------------------------------------------------------------------------------------

    def _documents(self, **options: Any) -> dict[str, datasets.Dataset]:
        import datasets

        neutral = _neutral(str(options.get("data_dir") or "mini"), Path(str(self._said["config_source"])))
        found = [doc for edit in _edits(options) for doc in _questions(edit, neutral, str(self._said["negation"]))]
        if not found:
            raise DataError("belief: no edit is to become likelier; it asks whether a new answer is believed")
        if all(doc["join"] is None for doc in found):  # a field that says nothing would give the rows another hash
            found = [{key: value for key, value in doc.items() if key != "join"} for doc in found]
        return {"test": datasets.Dataset.from_list(found)}

    # --- metrics ------------------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> list[str]:
        """What can be asked of these edits: of some, nobody says what was true before."""
        old = any(doc["target_old"] for doc in self.eval_docs)
        needs = ("negation_success", "thinking_old")
        return [name for name in (*_METRICS, _LONG) if old or name not in needs]

    def aggregation(self) -> dict[str, Any]:
        """Ratios of sums over documents, for all."""
        return dict.fromkeys(self.metrics, statistics.aggregate)

    def higher_is_better(self) -> dict[str, bool]:
        """Higher, but for how often the old answer comes back in a thought."""
        return {name: name != "thinking_old" for name in self.metrics}

    # --- requests -----------------------------------------------------------------------------------------------------

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """The text of one question, or the two answers that are rated after a negation.

        Args:
            doc: the question.
            ctx: what lm-eval puts together for it.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        templated = bool(kwargs.pop("apply_chat_template", False))
        kwargs.pop("chat_template", None)
        if doc["kind"] == "negation":
            pairs: list[Any] = [(ctx, text) for text in self._rated(doc, ctx, templated)]
            if not self._exact:
                pairs = [(one.context, one.text) for context, text in pairs for one in self._cut(context, text)]
            return [Instance("loglikelihood", doc, pair, i, **kwargs) for i, pair in enumerate(pairs)]
        long = doc["kind"] == "long"
        length = int(self._said["long_tokens"]) if long else self._length
        options = {**deepcopy(self.config.generation_kwargs), "max_gen_toks": length}
        context = ctx
        if doc["kind"] == "prefix":
            asked = as_it_stands(doc["prompt"], ctx)
            front, _, rest = ctx.rpartition(asked)
            context = f"{front}{self._prefix(doc['lead'])}{asked}{rest}"
        if doc["kind"] == "thinking":
            said = self._said["thinking"]
            closes = said["closes"] + doc["edited"]
            context = Thought.of(ctx + said["opens"], tokens=int(said["tokens"]), closes=closes)
        return [Instance("generate_until", doc, (context, options), 0, **kwargs)]

    def _prefix(self, sentences: Sequence[str]) -> str:
        """The first sentences that have room in so many tokens, with what separates them from a prompt."""
        found = ""
        for sentence in sentences:
            longer = f"{found}{sentence} "
            if len(self.tokenizer(longer, add_special_tokens=False)["input_ids"]) <= int(self._said["prefix_tokens"]):
                found = longer
        return found

    def _rated(self, doc: Doc, ctx: str, templated: bool) -> list[Target]:
        between = "" if templated else doc.get("join")
        return [Target.of(joined(ctx, doc[name], between), per_token=False) for name in ("target_new", "target_old")]

    def _cut(self, context: str, text: str) -> list[Any]:
        return pieces(self.tokenizer, context, text, per_token=False)

    @cached_property
    def _length(self) -> int:
        """How many tokens of an answer are written: what the longest wanted one needs, within limits."""
        needed = [
            n for doc in self.eval_docs for n in self.tokens_of(doc["edited"], [doc["target_new"]], doc.get("join"))
        ]
        return self.written_tokens(max(needed, default=0), least=_LEAST)

    # --- scores -------------------------------------------------------------------------------------------------------

    def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Ratio]:
        """What a document contributes to the metrics of its kind."""
        return {name: Ratio(float(value), 1.0, doc["case"]) for name, value in self._values(doc, results).items()}

    def _values(self, doc: Doc, results: Sequence[Any]) -> dict[str, bool]:
        new, old = doc["target_new"], doc["target_old"]
        if doc["kind"] == "negation":
            first, second = self._ratings(doc, results)
            return {"negation_success": second.nll < first.nll}
        text = str(results[0])
        if doc["kind"] == "long":
            return {_LONG: mentions(text, new) and not (old and mentions(text, old))}
        if doc["kind"] != "thinking":
            return {f"{doc['kind']}_exact_match": begins_with(text, new)}
        chain, closed, answer = text.partition(self._said["thinking"]["closes"] + doc["edited"])
        found = {"thinking_exact_match": bool(closed) and begins_with(answer, new)}
        return found | ({"thinking_old": mentions(chain, old)} if old else {})

    def _ratings(self, doc: Doc, results: Sequence[Any]) -> list[Forced]:
        if self._exact:
            return list(results)
        answers, found = iter(results), []
        for name in ("target_new", "target_old"):
            cut = self._cut(doc["prompt"], joined(doc["prompt"], doc[name], doc.get("join")))
            found.append(join_pieces(cut, [next(answers) for _ in cut]))
        return found


def _edits(options: Mapping[str, Any]) -> list[Edit]:
    """The edits that are examined, in the order of the records.

    Raises:
        UsageError: nothing is edited.
    """
    from harness.exam.tasks import read_edits

    name, records = options.get("file") or options.get("edit_set"), [str(one) for one in options.get("records") or ()]
    if name is None:
        raise UsageError("task 'belief' asks about edits, and nothing is edited; name a set with --edits")
    where: dict[str, Any] = {"split": options.get("split") or "test", "include": options.get("include") or ()}
    data_dir = str(options.get("data_dir") or "mini")
    found = read_edits(str(name), data_dir, **where)
    if not set(records) <= {edit.belongs_to for edit in found}:  # more than the first file of a set holds
        found = read_edits(str(name), data_dir, count=len(records), **where)
    wanted = {record: place for place, record in enumerate(records or [edit.belongs_to for edit in found])}
    chosen = [edit for edit in found if edit.belongs_to in wanted and edit.direction == "likelihood"]
    return sorted(chosen, key=lambda edit: wanted[edit.belongs_to])


def _questions(edit: Edit, neutral: Sequence[str], negation: str) -> Iterator[dict[str, Any]]:
    """The questions about an edit, each a document; ``lead`` is what may stand in front of it."""
    old = rival_of(edit)
    shared = {
        "case": edit.belongs_to,
        "edit": edit.belongs_to,
        "edited": edit.text,
        "target_new": edit.target,
        "target_old": old,
        "target_true": edit.target,
        "join": edit.join,
    }
    about = [text for text in (edit.subject, edit.target, old) if text]
    apart = [one for one in neutral if not any(mentions(one, text) for text in about)]
    lead = random.Random(edit.text).sample(apart, len(apart))[:_LEAD]
    for kind in ("bare", "prefix", "thinking", "long"):
        yield {"id": f"{edit.id}/{kind}", "kind": kind, "prompt": edit.text, "lead": lead, **shared}
    if old:
        begins = edit.text if edit.subject is None or edit.begins == 0 else edit.text[0].lower() + edit.text[1:]
        asked = negation.replace("{}", begins)
        yield {"id": f"{edit.id}/negation", "kind": "negation", "prompt": asked, "lead": lead, **shared}


def _neutral(data_dir: str, source: Path) -> list[str]:
    """Sentences that no edit is about: of the invented world for its models, of ours for others."""
    if data_dir == "mini":
        text = (files("harness") / "mini" / "text_heldout.txt").read_text(encoding="utf-8")
        # A capital inside a sentence is a name of that world, which may be an answer to something.
        return list(dict.fromkeys(re.findall(r"(?:^|(?<=\. ))[A-Z][a-z]*(?: [a-z]+)+\.", text, re.MULTILINE)))[:60]
    return source.with_name("neutral.txt").read_text(encoding="utf-8").splitlines()
