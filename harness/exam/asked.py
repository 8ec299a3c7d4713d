"""How much a task asks of a model: documents, requests, tokens that are read, and tokens that are written at most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from harness.exam.adapter import EditedLM
from harness.exam.prompting import FEWSHOT_SEED
from harness.exam.quiet import quiet_lm_eval
from harness.exam.tasks import Task, templates_once
from harness.exam.thought import Thought

__all__ = ["Asked", "asked_by_document", "asked_in_all", "asked_of"]


@dataclass(frozen=True)
class Asked:
    """What is asked of a model.

    Attributes:
        documents: rows of tasks.
        requests: what they ask, each a text to continue, or to score.
        read: tokens of the requests, each counted as if it were read alone.
        written: tokens that are written at most; a text may end before.
    """

    documents: int = 0
    requests: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Asked) -> Asked:
        """Both."""
        return Asked(
            self.documents + other.documents,
            self.requests + other.requests,
            self.read + other.read,
            self.written + other.written,
        )

    @property
    def tokens(self) -> int:
        """Tokens that are read or written."""
        return self.read + self.written


def asked_in_all(found: Iterable[Asked]) -> Asked:
    """The sum."""
    return sum(found, Asked())


def asked_by_document(task: Task, model: EditedLM, limit: int | None) -> dict[int, Asked]:
    """What each document of a task asks, by its position.

    Args:
        task: the task.
        model: whose tokens are counted.
        limit: documents at most; None for all.
    """
    said = model.prompting
    task.task.set_fewshot_seed(FEWSHOT_SEED)
    with quiet_lm_eval(), templates_once():
        task.task.build_all_requests(
            limit=limit,
            system_instruction=said.system_instruction,
            apply_chat_template=bool(said.apply_chat_template),
            fewshot_as_multiturn=said.multiturn,
            chat_template=model.apply_chat_template if said.apply_chat_template else None,
        )
    found: dict[int, list[Any]] = {}
    for request in task.task.instances:
        found.setdefault(request.doc_id, []).append(request)
    return {document: asked_of(requests, model) for document, requests in found.items()}


def asked_of(requests: Sequence[Any], model: EditedLM) -> Asked:
    """What requests of lm-eval ask.

    Args:
        requests: the requests.
        model: whose tokens are counted.
    """
    documents = {(request.task_name, request.doc_id) for request in requests}
    read = sum(len(model.tok_encode(_text(request.args))) for request in requests)
    return Asked(len(documents), len(requests), read, sum(_written(request.args, model) for request in requests))


def _text(arguments: Sequence[Any]) -> str:
    """All that is read of a request: a context with its continuation, or a context alone."""
    return "".join(str(part) for part in arguments if isinstance(part, str))


def _written(arguments: Sequence[Any], model: EditedLM) -> int:
    """How many tokens a request of free generation may be answered with."""
    options = arguments[-1]
    if not isinstance(options, Mapping):
        return 0
    context = model.thought_of(arguments[0])
    thought = context.tokens if isinstance(context, Thought) else 0
    return thought + int(normalize_gen_kwargs(dict(options), model.max_gen_toks)["max_gen_toks"])
