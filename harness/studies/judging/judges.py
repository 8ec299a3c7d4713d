"""What can be asked for a verdict: a model in memory, by likelihood, or a server that speaks OpenAI's protocol."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from harness.errors import UsageError
from harness.exam.verdicts import LETTERS, VERDICTS, Verdict, verdict_of
from harness.io.files import json_sha256, rounded

if TYPE_CHECKING:
    import requests

    from harness.exam.adapter import EditedLM
    from harness.models.lm import LM

__all__ = ["Answer", "HttpJudge", "Judge", "ModelJudge", "is_address", "open_judge", "require_server_model"]

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may answer later."""
_CURES = {
    401: "give a key that it takes in the environment variable {variable}",
    403: "give a key that it takes in the environment variable {variable}",
    404: "give its address up to /v1, and a model that it has with --judge-model",
}
_TOKENS = 256
"""Of an answer at most: one letter is asked for, but some models think before they give it."""


class Answer(NamedTuple):
    """What a judge said of one text.

    Attributes:
        verdict: None where it did not answer, or with no verdict.
        said: its words, or the log-likelihood of each verdict; None where it did not answer.
    """

    verdict: Verdict | None
    said: str | list[float | None] | None


class Judge(ABC):
    """What can be asked for verdicts."""

    at_once: int
    """How many prompts are asked before what was said is saved."""

    cut: int = 0
    """How many prompts were cut from the left to fit it."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Its ``name``, its ``kind``, and the ``sha256`` of what it is; no key is part of it."""

    @abstractmethod
    def ask(self, prompts: Sequence[str]) -> list[Answer]:
        """The answer to each prompt, in order."""


def is_address(judge: str) -> bool:
    """Whether a judge is named by an address, and not as a model."""
    return judge.startswith(("http://", "https://"))


def require_server_model(judge: str, model: str | None) -> None:
    """See that a server is told which of its models is asked, and nothing else is, before anything is loaded.

    Args:
        judge: an address, or a model by name.
        model: a model of a server.

    Raises:
        UsageError: a server without the name of its model, or the other way round.
    """
    if is_address(judge) and model is None:
        raise UsageError(f"--judge {judge}: a server has several models; name one with --judge-model")
    if not is_address(judge) and model is not None:
        raise UsageError(
            f"--judge-model names a model of a server, but --judge '{judge}' is no address; give one such as "
            "http://localhost:8000/v1, or leave --judge-model out"
        )


def open_judge(
    judge: str | Path | LM | Judge,
    *,
    model: str | None = None,
    variable: str = "OPENAI_API_KEY",
    dtype: str = "float32",
    device: str | None = None,
    rows: int | None = None,
    **server: Any,
) -> Judge:
    """A judge, by its name or as it is.

    Args:
        judge: the address of a server, a model by name or wrapped, or a judge.
        model: which model of a server.
        variable: the environment variable that holds the key of a server.
        dtype: of a model by name.
        device: where it goes.
        rows: texts of one forward pass of a model at most; None for as many as fit.
        **server: more of how a server is asked, as :class:`HttpJudge` takes it.

    Raises:
        UsageError: a server and its model do not go together, or it is none of these.
        ModelError: a model cannot be loaded.
    """
    from harness.models.lm import LM, load  # as late as a model is needed: a server needs none

    if isinstance(judge, Judge):
        return judge
    if isinstance(judge, LM):
        return ModelJudge(judge, rows=rows)
    if not isinstance(judge, str | Path):
        raise UsageError(
            f"judge is a {type(judge).__name__}; give harness.load(model, tokenizer), a name or an address"
        )
    require_server_model(str(judge), model)
    if is_address(str(judge)):
        return HttpJudge(str(judge), model or "", key=os.environ.get(variable) or None, variable=variable, **server)
    return ModelJudge(load(str(judge), dtype=dtype, device=device), rows=rows)


# --- a model in memory ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ModelJudge(Judge):
    """A language model, whose verdict is the likeliest of the three letters: any model gives a valid one.

    Attributes:
        lm: the model; where its tokenizer has a chat template, the prompt is the user's turn.
        rows: texts of one forward pass at most; None for as many as fit.
        cut: how many prompts were cut from the left to fit the model.
    """

    lm: LM
    rows: int | None = None
    cut: int = field(default=0, init=False)
    at_once: int = 32

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Its name, and the hash of its weights, configuration and tokenizer."""
        from harness.exam.measure import fingerprint

        name = Path(self.lm.name).name if Path(self.lm.name).exists() else self.lm.name
        dtype = str(self.lm.model.dtype).removeprefix("torch.")
        return {"name": name, "kind": "model", "dtype": dtype, "sha256": fingerprint(self.lm, self.lm.fingerprint())}

    def ask(self, prompts: Sequence[str]) -> list[Answer]:
        """The likeliest letter after each prompt."""
        from lm_eval.api.instance import Instance

        contexts = [self._context(prompt) for prompt in prompts]
        letters = [f"{'' if self._template else ' '}{letter}" for letter in LETTERS]
        asked = [
            Instance("loglikelihood", {}, (context, letter), place, metadata=("judge", number, 1))
            for number, context in enumerate(contexts)
            for place, letter in enumerate(letters)
        ]
        found = [rounded(float(value)) for value, _ in self._model.loglikelihood(asked)]
        self.cut = self._model.truncated // len(letters)
        return [_likeliest(found[at : at + len(letters)]) for at in range(0, len(found), len(letters))]

    @cached_property
    def _model(self) -> EditedLM:
        from harness.exam.adapter import EditedLM

        return EditedLM(self.lm, batch_size=self.rows)

    @cached_property
    def _template(self) -> bool:
        return bool(self.lm.tokenizer.chat_template)

    def _context(self, prompt: str) -> str:
        if not self._template:
            return prompt
        turn = [{"role": "user", "content": prompt}]
        return str(self.lm.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def _likeliest(values: list[float | None]) -> Answer:
    if any(value is None for value in values):
        return Answer(None, values)
    best = max(range(len(values)), key=lambda place: (values[place] or 0.0, -place))
    return Answer(VERDICTS[best], values)


# --- a server ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class HttpJudge(Judge):
    """A model behind an address that speaks OpenAI's protocol (chat completions), asked at temperature 0.

    What it does not answer is asked again, each time after a longer wait, and then has no verdict.

    Attributes:
        address: up to ``/v1``, or with ``/chat/completions``.
        model: the name of the model there.
        key: what it is let in by; None for a server that asks for none.
        variable: the environment variable that the key comes from, for messages.
        timeout: seconds that an answer may take.
        retries: how often it is asked again.
        wait: seconds before the first time; each further wait is twice as long.
        parallel: how many prompts it is asked at a time.
    """

    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 4
    wait: float = 1.0
    parallel: int = 4
    at_once: int = 16

    def __post_init__(self) -> None:
        """Refuse an address that holds what is to be secret, or no host."""
        parts = urlsplit(self.address)
        if parts.username or parts.password:
            raise UsageError(
                f"--judge: the address of {parts.hostname} holds a user or a password, which would not stay secret; "
                f"give the key in the environment variable {self.variable}"
            )
        if not parts.hostname:
            raise UsageError(
                f"--judge: '{self.address}' names no host; give an address such as http://localhost:8000/v1"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the model and the address, without what stands behind a ``?``."""
        parts = urlsplit(self.address)
        address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        return {"name": self.model, "kind": "http", "address": address, "sha256": json_sha256([self.model, address])}

    def ask(self, prompts: Sequence[str]) -> list[Answer]:
        """The answer to each prompt; no verdict where none came, or one that names no grade."""
        with self._session() as session, ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda prompt: self._one(session, prompt), prompts))

    def _session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        again = Retry(
            self.retries, status_forcelist=_AGAIN, allowed_methods=None, backoff_factor=self.wait / 2,
            backoff_jitter=self.wait / 10, redirect=3, raise_on_status=False,
        )  # fmt: skip
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=self.parallel))
        return session

    def _one(self, session: requests.Session, prompt: str) -> Answer:
        import requests

        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": _TOKENS,
        }
        try:
            given = session.post(self._url, json=body, auth=self._sign, timeout=self.timeout)
        except requests.RequestException:
            return Answer(None, None)
        if given.status_code in _CURES:
            cure = _CURES[given.status_code].format(variable=self.variable)
            raise UsageError(
                f"{self.identity['address']}: refuses to judge ({given.status_code} {given.reason}); {cure}"
            )
        said = _content(given) if given.ok else None
        return Answer(None if said is None else verdict_of(said), said)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the key into a request, so that no other one (of a .netrc) is taken for it."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    @property
    def _url(self) -> str:
        parts = urlsplit(self.address)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _content(given: requests.Response) -> str | None:
    """The text of an answer; None where it holds none."""
    try:
        text = given.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return text[:4000] if isinstance(text, str) else None
