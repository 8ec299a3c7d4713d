"""lm-eval tasks for what lm-eval does not hand out: each token of a target, texts as long as their answers need.

lm-eval answers a log-likelihood request with a sum and whether every token was the arg-max.  Scores of edited facts are
per token: the length-normalised negative log-likelihood of ROME and MEMIT needs the number of tokens of the target, the
token accuracy of MEND and MEMIT needs each token's hit.  Our own adapter is asked for a :class:`Target`, and scores the
very tokens that an editor trains; under plain ``lm_eval`` :class:`TeacherForced` cuts a target where its tokens end, so
that log-likelihood requests to any model suffice.  The tokenizer is bound by the caller (:meth:`Tokenized.bind`) or,
under plain ``lm_eval``, read from the model's arguments, which lm-eval hands to every task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from harness.editing.join import joined
from harness.errors import DataError, UsageError
from harness.exam.statistics import Ratio

__all__ = [
    "Continuations",
    "Forced",
    "FreeAnswer",
    "Piece",
    "Target",
    "TeacherForced",
    "Tokenized",
    "as_it_stands",
    "in_place_of",
    "join_pieces",
    "pieces",
]

Doc: TypeAlias = Mapping[str, Any]

_ROOM = 4
"""Tokens that are written beyond the longest answer: an article in front of it, and what shows that a word ends."""


class Forced(NamedTuple):
    """How a model rates one target after one prompt, token by token, each token after the right ones.

    Attributes:
        loglik: the sum of the log-probabilities of the target's tokens, in nats.
        tokens: how many tokens the target has.
        hits: how many of them the model would have chosen itself (counted only where the task is ``per_token``;
            otherwise all or none).
    """

    loglik: float
    tokens: int
    hits: int

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a token; its exponential is the geometric mean probability."""
        return -self.loglik / self.tokens

    @property
    def exact(self) -> bool:
        """Whether every token is the arg-max."""
        return self.hits == self.tokens


class Target(str):
    """A continuation that our adapter scores in the tokens of the edit; it answers with :class:`Forced`.

    Attributes:
        per_token: whether the hit of each token is asked for.
    """

    per_token: bool

    @classmethod
    def of(cls, text: str, *, per_token: bool) -> Target:
        """A continuation, of which the hit of each token may be asked for."""
        made = cls(text)
        made.per_token = per_token
        return made


class Piece(NamedTuple):
    """One request: how likely is ``text`` after ``context``; it is ``tokens`` long."""

    context: str
    text: str
    tokens: int


def pieces(tokenizer: Any, context: str, continuation: str, *, per_token: bool) -> list[Piece]:
    """The requests that rate a continuation: one for the whole, or one for each token.

    Tokens are those of the joined text, as lm-eval scores them.  A cut is made only where the text before it is encoded
    to exactly the tokens before it, and never after a space, which lm-eval would move to what follows: the bytes of one
    letter, or a space that is a token of its own and the next token, stay in one piece.

    Args:
        tokenizer: maps a list of texts to their token ids (``["input_ids"]``).
        context: the prompt; spaces at its end belong to the continuation, as in lm-eval.
        continuation: the target with its leading space.
        per_token: cut at every token.
    """
    prompt = context.rstrip()
    text = context + continuation
    inner = range(len(prompt) + 1, len(text)) if per_token else ()
    ends = [len(prompt), *(end for end in inner if not text[end - 1].isspace()), len(text)]
    encoded = tokenizer([text[:end] for end in ends], add_special_tokens=False)["input_ids"]
    whole = encoded[-1]
    cuts = {len(ids): end for end, ids in zip(ends, encoded, strict=True) if whole[: len(ids)] == ids}
    first = len(encoded[0])
    if first not in cuts:  # prompt and target merge into one token: nothing can be cut
        return [Piece(prompt, text[len(prompt) :], len(whole) - first)]
    steps = sorted(cuts)
    return [Piece(text[: cuts[a]], text[cuts[a] : cuts[b]], b - a) for a, b in pairwise(steps) if a >= first]


class Tokenized(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A task of lm-eval that needs the model's tokenizer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != "class"}
        self._tokenizer: Any = None
        self._exact = False
        super().__init__(config=settings)

    def bind(self, tokenizer: Any, *, exact: bool = False) -> None:
        """Use this tokenizer, whatever the metadata say.

        Args:
            tokenizer: the model's.
            exact: whether the model is our adapter, which scores the tokens that are edited.
        """
        self._tokenizer, self._exact = tokenizer, exact

    @property
    def tokenizer(self) -> Any:
        """The bound tokenizer, else that of the metadata: ``tokenizer`` or ``pretrained``, a folder or a repository.

        Raises:
            UsageError: neither is known.
        """
        if self._tokenizer is None:
            self._tokenizer = self._from_metadata()
        return self._tokenizer

    def tokens_of(self, prompt: str, answers: Sequence[str], join: str | None = None) -> list[int]:
        """The number of tokens of each answer after a prompt.

        Args:
            prompt: what stands before.
            answers: what continues it.
            join: what stands between; None for what the text would have.
        """
        said = [joined(prompt, text, join) for text in answers]
        return [len(ids) for ids in self.tokenizer(said, add_special_tokens=False)["input_ids"]] if said else []

    def written_tokens(self, longest: int, least: int) -> int:
        """How many tokens of a free answer are written: what the longest wanted answer needs, within limits.

        Args:
            longest: the tokens of that answer.
            least: how many are written in any case, where ``least_tokens`` under ``metadata`` says no other number.
        """
        limit = int(self.config.generation_kwargs["max_gen_toks"])
        return min(limit, max(int((self.config.metadata or {}).get("least_tokens", least)), longest + _ROOM))

    def _from_metadata(self) -> Any:
        known = self.config.metadata or {}
        name = known.get("tokenizer") or known.get("pretrained")
        if not isinstance(name, str):
            raise UsageError(
                f"task {self.config.task}: needs the tokenizer to count the tokens of a target; pass the model as "
                '--model_args pretrained=DIR, or its tokenizer as --metadata \'{"tokenizer": "DIR"}\''
            )
        from transformers import AutoTokenizer  # seconds: only who has no tokenizer yet pays

        options = {key: known[key] for key in ("revision", "trust_remote_code") if key in known}
        return AutoTokenizer.from_pretrained(name, **options)


class TeacherForced(Tokenized):
    """Rates the choices of a document (``output_type: multiple_choice``).

    ``process_results(doc, ratings)`` of the task file gets one :class:`Forced` for each entry of ``doc_to_choice``.
    ``per_token: true`` under ``metadata`` asks for the hit of each token, at one request a token.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._pieces: dict[str, list[list[Piece]]] = {}
        super().__init__(config)

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """One log-likelihood request for each choice, or under plain lm-eval for each piece of each.

        Args:
            doc: a row of the task.
            ctx: what lm-eval puts in front of the choice: solved examples, the question, the chat template.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        templated = bool(kwargs.pop("apply_chat_template", False))
        kwargs.pop("chat_template", None)
        said = self._said(doc, ctx, templated=templated)
        arguments: list[tuple[str, str]]
        if self._exact:
            arguments = [(ctx, Target.of(text, per_token=self._per_token)) for text in said]
        else:
            cut = self._pieces[doc["id"]] = self._cut(ctx, said)
            arguments = [(piece.context, piece.text) for choice in cut for piece in choice]
        return [Instance("loglikelihood", doc, pair, i, **kwargs) for i, pair in enumerate(arguments)]

    def process_results(self, doc: Doc, results: Sequence[Any]) -> Any:
        """Put the pieces together again; the rest is the task file's."""
        if self._exact:
            return self.config.process_results(doc, list(results))
        # requests that lm-eval took from its cache were never constructed here
        ctx = self.doc_to_text(doc)
        cut = self._pieces.get(doc["id"]) or self._cut(ctx, self._said(doc, ctx, templated=False))
        answers = iter(results)
        return self.config.process_results(
            doc, [join_pieces(choice, [next(answers) for _ in choice]) for choice in cut]
        )

    @property
    def _per_token(self) -> bool:
        return bool((self.config.metadata or {}).get("per_token", False))

    def _said(self, doc: Doc, ctx: str, *, templated: bool) -> list[str]:
        """The choices as they continue the context; a chat template brings all that stands between."""
        join = "" if templated else doc.get("join")
        return [joined(ctx, choice, join) for choice in self.doc_to_choice(doc)]

    def _cut(self, ctx: str, said: Sequence[str]) -> list[list[Piece]]:
        return [pieces(self.tokenizer, ctx, choice, per_token=self._per_token) for choice in said]


def in_place_of(first: str, prompt: str, ctx: str) -> str:
    """What is read before the answer to a question, where lm-eval put ``ctx`` together for the first one.

    Args:
        first: the question that stands in ``ctx``.
        prompt: the question that is to stand there.
        ctx: as lm-eval put it together, maybe in a turn of a chat.

    Raises:
        DataError: the first question does not stand there.
    """
    held = as_it_stands(first, ctx)
    front, _, back = ctx.rpartition(held)
    return front + (prompt if held == first else prompt.strip()) + back


def as_it_stands(asked: str, ctx: str) -> str:
    """A question as it stands in a context: a chat template may take off the white space around it.

    Args:
        asked: the question.
        ctx: what was made of it.

    Raises:
        DataError: the question does not stand there.
    """
    for form in (asked, asked.strip()):
        if form and form in ctx:
            return form
    raise DataError(f"the chat template changes '{asked[:40]}'; ask it without")


def join_pieces(cut: Sequence[Piece], answers: Sequence[tuple[float, bool]]) -> Forced:
    """The rating of a continuation, from lm-eval's answer to each of its :func:`pieces`."""
    hits = sum(piece.tokens for piece, (_, greedy) in zip(cut, answers, strict=True) if greedy)
    return Forced(math.fsum(loglik for loglik, _ in answers), sum(piece.tokens for piece in cut), hits)


class FreeAnswer(Tokenized):
    """Continues the prompt of a document freely, as far as the longest wanted answer needs (``generate_until``).

    ``doc_to_target`` is the wanted answer, unless a document names all that are right as ``answers``.  ``max_gen_toks``
    is a limit: where no wanted answer of a document is that short, its text cannot be right, and what it contributes is
    missing.
    ``least_tokens`` under ``metadata`` is written in any case.
    """

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """One generation request, of the same length for all documents, so that they share forward passes.

        Args:
            doc: a row of the task.
            ctx: its prompt, behind what lm-eval puts in front of it.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        options = {**deepcopy(self.config.generation_kwargs), "max_gen_toks": self._length}
        return [Instance("generate_until", doc, (ctx, options), 0, **kwargs)]

    def process_results(self, doc: Doc, results: Sequence[str]) -> dict[str, Ratio]:
        """Score the text, unless no right one could have been written."""
        found: dict[str, Ratio] = self.config.process_results(doc, results)
        if min(self._needed(doc)) <= self._length:
            return found
        return {metric: value._replace(num=math.nan) for metric, value in found.items()}

    @cached_property
    def _length(self) -> int:
        """How many tokens are written."""
        return self.written_tokens(max((max(self._needed(doc)) for doc in self.eval_docs), default=0), least=0)

    def _needed(self, doc: Doc) -> list[int]:
        """The number of tokens of each wanted answer."""
        wanted = doc.get("answers") or [self.doc_to_target(doc)]
        return self.tokens_of(self.doc_to_text(doc), wanted, doc.get("join"))


class Continuations(Tokenized):
    """Continues all ``prompts`` of a document (``output_type: generate_until``).

    ``process_results(doc, texts)`` of the task file gets the texts, prompts included.
    ``max_tokens`` under ``metadata`` cuts each text after that many tokens, the prompt's counted (ROME: 100).
    """

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """One generation request for each prompt.

        Args:
            doc: a row of the task, whose ``prompts`` are continued.
            ctx: the first of them, behind what lm-eval puts in front of it, or in a turn of a chat.
            **kwargs: lm-eval's bookkeeping, handed on to the request.
        """
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        options, first = self.config.generation_kwargs, self.doc_to_text(doc)
        return [
            Instance("generate_until", doc, (in_place_of(first, prompt, ctx), deepcopy(options)), i, **kwargs)
            for i, prompt in enumerate(doc["prompts"])
        ]

    def texts(self, doc: Doc, results: Sequence[str]) -> list[str]:
        """The prompts with their continuations."""
        limit = (self.config.metadata or {}).get("max_tokens")
        whole = [prompt + text for prompt, text in zip(doc["prompts"], results, strict=True)]
        return whole if limit is None else [self._shorten(text, int(limit)) for text in whole]

    def _shorten(self, text: str, limit: int) -> str:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return text
        return str(self.tokenizer.decode(ids[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def process_results(self, doc: Doc, results: Sequence[str]) -> Any:
        """Hand the texts to the task file."""
        return self.config.process_results(doc, self.texts(doc, results))
