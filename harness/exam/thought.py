"""A question that is answered after a thought of so many tokens, which ends with a mark.

Where the model does not end its thought in time, the mark is written for it (budget forcing, Muennighoff et al. 2025,
s1, arXiv 2501.19393), so that each question has an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance

__all__ = ["Thought", "thought_through"]


class Thought(str):
    """A context that ends where a thought begins; our adapter lets the model think first, and then answer.

    Attributes:
        tokens: how long it thinks at most.
        closes: what is written behind the thought, whether it has come to an end or not.
        told: whether the reply holds the thought and its mark in front of the answer.
    """

    tokens: int
    closes: str
    told: bool

    @classmethod
    def of(cls, text: str, *, tokens: int, closes: str, told: bool = True) -> Thought:
        """A context that is thought about.

        Args:
            text: what is read before the thought begins, its opening mark at the end.
            tokens: how long the thought is at most.
            closes: what is written behind it.
            told: whether the reply holds the thought.
        """
        found = cls(text)
        found.tokens, found.closes, found.told = tokens, closes, told
        return found


def thought_through(requests: Sequence[Instance], write: Callable[[list[Instance]], list[str]]) -> list[str]:
    """The replies to requests, some of which are thought about: the thought where it is told, and the answer.

    Args:
        requests: to generate texts.
        write: gives the text that each of some requests is replied with.
    """
    first = [_thinking(request) if isinstance(request.args[0], Thought) else request for request in requests]
    found = write(first)
    places = [i for i, request in enumerate(requests) if isinstance(request.args[0], Thought)]
    chains = {i: found[i].partition(_mark(requests[i]))[0] for i in places}
    answers = write([_answering(requests[i], chains[i]) for i in places]) if places else []
    for i, answer in zip(places, answers, strict=True):
        found[i] = f"{chains[i]}{requests[i].args[0].closes}{answer}" if requests[i].args[0].told else answer.lstrip()
    return found


def _mark(request: Instance) -> str:
    """What the model itself would end its thought with: the first word of what closes it."""
    return str(request.args[0].closes.split()[0])


def _thinking(request: Instance) -> Instance:
    context, options = request.args
    asked: dict[str, Any] = {**options, "max_gen_toks": context.tokens, "until": [_mark(request)]}
    return replace(request, arguments=(str(context), asked))


def _answering(request: Instance, chain: str) -> Instance:
    context, options = request.args
    return replace(request, arguments=(f"{context}{chain}{context.closes}", options))
