"""A run, as one frozen value: what is edited with what, how, and what is examined.

What differs from the defaults names the record. Where results go, and how fast, is not part of a plan.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UsageError, near
from harness.exam.prompting import Prompting
from harness.io.yaml_text import parse_yaml
from harness.runs.identity import record_id

__all__ = ["NO_EDITS", "UNEDITED", "Plan", "current_names", "parse_edits"]

log = logging.getLogger(__name__)

NO_EDITS = "none"
"""The name that stands for no edit set: a run that measures a model on tasks alone."""

UNEDITED = "none"
"""The name of the editor that edits nothing."""


_SEEDS = 2**32
"""How many there are: generators take no negative ones, and editors draw from multiples of theirs."""

_THINKS = "belief"
"""The task that thinks without being told of a mark: it brings its own."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run's numbers depend on.

    Attributes:
        model: a shipped model, a folder, or a Hub repository.
        editor: the method, or several joined by ``+``.
        settings: hyperparameters that differ from the preset.
        edits: an edit set, a file of one's own rows, or ``none`` to measure the unedited model on tasks alone.
        num_edits: how many of its rows, from the first; None for all.
        split: the split of the edit set: ``test`` or ``train``.
        mode: isolated, batch or sequential; None for the editor's own.
        edit_batch_size: edits of one sequential operation.
        cases_at_once: cases that isolated mode edits together, examines and takes back (MQuAKE's k); None for one.
        eval_at: where to measure, besides 0.
        tasks: what is examined besides the edits.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``.
        text: plain text for second moments; None for the model's default.
        limit: documents of each task; None for all.
        seed: of everything random.
        dtype: of the model.
        arch: parts of the architecture named by hand.
        fitted: the file of what the editor has learned; None for that of ``harness fit`` with the same settings.
        order: in which the edits are made: ``file``, or ``random``, drawn from the seed.
        stop_on_collapse: whether the run ends where a tripwire is set off.
        patch: a file of saved edits, which are put back instead of edited; None to edit.
        exam: the parts of the edit set's exam that are asked, such as ``probability``; none for all of it.
        known_only: whether only the facts that the unedited model knows are edited (:mod:`harness.exam.knowledge`).
        include_path: folders of one's own with YAMLs of tasks and edit sets.
        model_args: more of how the model is read, as lm-eval's ``--model_args`` says it
            (:class:`harness.models.reading.Checkpoint`).
        num_fewshot: solved examples in front of each question; this and the fields below are lm-eval's
            (:class:`harness.exam.prompting.Prompting`). None for the number that a task says.
        apply_chat_template: whether questions are turns of a chat; or the name of a template.
        system_instruction: what the system turn says.
        fewshot_as_multiturn: whether solved examples are turns of their own; None for yes with a chat template.
        gen_kwargs: what is laid over the ``generation_kwargs`` of tasks that generate.
        enable_thinking: what the chat template is told of thinking.
        think_end_token: what ends a thought; the answer stands behind it.
        thinking_budget: tokens of a thought at most; then its end is written for the model. It is no word of lm-eval.
        predict_only: whether replies are kept as samples, and no metric is computed.
        chat_edits: whether edits are turns of a chat, too: the prompt of the user, the target of the assistant.
        dequantise_edited: whether the quantised matrices that the editor writes are plain numbers while the run lasts,
            before the edits and after them (:mod:`harness.models.dequantised`).
        backend: what writes texts: ``hf``, or ``vllm`` of a checkpoint that nothing is edited in
            (:mod:`harness.exam.vllm_texts`).
    """

    model: str = "mini"
    editor: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    edits: str = "counterfact"
    num_edits: int | None = None
    split: str = "test"
    mode: str | None = None
    edit_batch_size: int | None = field(default=None, metadata={"named": "batch_size"})
    eval_at: str = "final"
    tasks: tuple[str, ...] = ()
    data_dir: str = "mini"
    text: str | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str = "float32"
    arch: Mapping[str, str] = field(default_factory=dict)
    fitted: str | None = None
    order: str = "file"
    stop_on_collapse: bool = False
    patch: str | None = None
    exam: tuple[str, ...] = ()
    known_only: bool = False
    include_path: tuple[str, ...] = ()
    model_args: Mapping[str, Any] = field(default_factory=dict)
    cases_at_once: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    enable_thinking: bool | None = None
    think_end_token: str | int | None = None
    thinking_budget: int | None = None
    chat_edits: bool = False
    predict_only: bool = False
    dequantise_edited: bool = False
    backend: str = "hf"

    def __post_init__(self) -> None:
        for name, otherwise in (("num_edits", "take all"), ("limit", "take all"), ("cases_at_once", "edit each alone")):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1; leave it out to {otherwise}")
        if isinstance(self.seed, int) and not 0 <= self.seed < _SEEDS:
            raise UsageError(f"seed is {self.seed}, expected a whole number from 0 to {_SEEDS - 1}")
        if self.order not in ("file", "random"):
            raise UsageError(f"order is '{self.order}', expected file or random")
        _ = self.prompting  # tells of fields that do not go together
        if self.thinking_budget is not None and self.think_end_token is None and _THINKS not in self.tasks:
            raise UsageError(
                f"thinking_budget is {self.thinking_budget}, and nothing is thought about; add --think-end-token "
                "'</think>', or --tasks belief"
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def prompting(self) -> Prompting:
        """How tasks are put to the model."""
        return Prompting(**{one.name: getattr(self, one.name) for one in fields(Prompting) if hasattr(self, one.name)})

    @property
    def id(self) -> str:
        """The id of its record, where it leaves nothing open."""
        return record_id(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "plan") -> Plan:
        """A plan from plain values.

        Raises:
            UsageError: a field does not exist or has the wrong type.
        """
        known = {f.name for f in fields(cls)}
        values = current_names(values, where)
        for key in values:
            if key not in known:
                raise UsageError(f"{where}: '{key}' is not a field of a plan{near(str(key), known)}")
        given = dict(values)
        given |= {key: _names(given.get(key, ()), where, key) for key in _NAMED}
        if isinstance(given.get("edits"), str) and "num_edits" not in given:
            given["edits"], given["num_edits"] = parse_edits(given["edits"])
        _check_types(given, where)
        return cls(**given)

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The fields that a YAML or JSON file sets.

        Raises:
            UsageError: the file cannot be read as a mapping.
        """
        try:
            values = parse_yaml(path.read_text(encoding="utf-8"))
            json.dumps(values, ensure_ascii=False, default=str).encode()
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be read ({error.strerror}); give a YAML file with fields of a plan"
            ) from error
        except RecursionError as error:
            raise UsageError(f"{path}: nested too deeply, or in itself; give fields of a plan") from error
        except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            # ValueError: not UTF-8, a date that does not exist, half a character; others: keys that are no names
            raise UsageError(f"{path}: not YAML ({str(error).splitlines()[0]}); give fields of a plan") from error
        if not isinstance(values, dict):
            held = type(values).__name__
            raise UsageError(f"{path}: holds {held}, expected fields of a plan such as 'editor: memit'")
        return values


_RENAMED = {"batch_size": "edit_batch_size"}
"""What fields were called before; ``batch_size`` is now, as for lm-eval, rows of a forward pass, and no field."""


def current_names(values: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Fields of a plan, those of an earlier version under the names that they have now.

    Args:
        values: the fields.
        where: what is warned of an old name; None where nobody is, as of a record.

    Raises:
        UsageError: a field stands there under both names.
    """
    for old, new in _RENAMED.items():
        if where is not None and old in values:
            if new in values:
                raise UsageError(f"{where}: gives {new} and {old}, its name in earlier versions; leave {old} out")
            log.warning("%s: '%s' is read as '%s', its name now; write that", where, old, new)
    return {_RENAMED.get(key, key): value for key, value in values.items()}


def parse_edits(text: str) -> tuple[str, int | None]:
    """``NAME:N`` as a name and a number; ``NAME`` as a name and None.

    Raises:
        UsageError: what follows the colon is not a positive number.
    """
    name, colon, count = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--edits '{text}': '{count}' is not a number of edits; write for example counterfact:50")
    return name, int(count)


_NAMED = {"tasks": "[NER, NLI]", "exam": "[probability, generation]", "include_path": "[my_tasks]"}
"""The fields that hold names, each with an example."""


def _names(value: object, where: str, key: str) -> tuple[str, ...]:
    """Names from a list, or from a text with commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{where}: '{key}' is {value!r}, expected names such as {_NAMED[key]}")
    return tuple(value)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "editor", "edits", "split", "eval_at", "order", "data_dir", "dtype", "backend"), (str,)),
    **dict.fromkeys(("mode", "text", "fitted", "patch"), (str, type(None))),
    **dict.fromkeys(
        ("num_edits", "edit_batch_size", "limit", "cases_at_once", "num_fewshot", "thinking_budget"), (int, type(None))
    ),
    **dict.fromkeys(("tasks", "exam", "include_path"), (tuple,)),
    **dict.fromkeys(("settings", "arch", "model_args", "gen_kwargs"), (dict,)),
    **dict.fromkeys(("fewshot_as_multiturn", "enable_thinking"), (bool, type(None))),
    "apply_chat_template": (bool, str),
    "system_instruction": (str, type(None)),
    "think_end_token": (str, int, type(None)),
    "seed": (int,),
    **dict.fromkeys(("stop_on_collapse", "known_only", "chat_edits", "predict_only", "dequantise_edited"), (bool,)),
}


def _check_plain(values: Mapping[object, object], where: str, key: str) -> None:
    """Refuse what YAML can say and a record cannot keep: dates, bytes, names that are no text."""
    for name, value in values.items():
        if not isinstance(name, str):
            raise UsageError(f"{where}: '{key}' names {name!r}, expected a name such as layers")
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str | int | float | list | dict | None):
                raise UsageError(
                    f"{where}: '{key}' holds {name}={item}, a {type(item).__name__}; give a number or text"
                )


def _check_types(values: Mapping[str, Any], where: str) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _check_plain(value, where, key)
        if not isinstance(value, _TYPES[key]) or (isinstance(value, bool) and bool not in _TYPES[key]):
            expected = " or ".join("nothing" if t is type(None) else t.__name__ for t in _TYPES[key])
            raise UsageError(f"{where}: '{key}' is {value!r}, expected {expected}")
