"""What is typed after an option, as values."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence

from harness.errors import UsageError

__all__ = [
    "gen_kwargs",
    "hub_datasets",
    "integers",
    "model_args",
    "modules",
    "name_list",
    "settings",
    "text_or_token",
    "yes_no_or_name",
]


def settings(items: Sequence[str]) -> dict[str, object]:
    """Hyperparameters by name, from ``--set name=value``; a value is YAML.

    Raises:
        UsageError: there is no name, or the value cannot be read.
    """
    return {key: _scalar(key, value) for key, value in _pairs(items, "--set")}


def modules(items: Sequence[str]) -> dict[str, str]:
    """Modules of a model by part, from ``--arch part=name,part=name``.

    Raises:
        UsageError: there is no part.
    """
    return dict(_pairs([pair for item in items for pair in item.split(",")], "--arch"))


def model_args(text: str | None) -> dict[str, object]:
    """The arguments of a model, from ``name=value,name=value``; a value is read as lm-eval reads it.

    Raises:
        UsageError: there is no name.
    """
    if not text:
        return {}
    from lm_eval.utils import handle_arg_string

    pairs = _pairs([part for part in text.split(",") if part], "--model-args", "revision=main")
    return {key: handle_arg_string(value) for key, value in pairs}


def hub_datasets(items: Sequence[str]) -> dict[str, str]:
    """Data sets on the Hub by task, from ``--hub-dataset task=owner/name``.

    Raises:
        UsageError: there is no task.
    """
    return dict(_pairs(items, "--hub-dataset", "counterfact=OWNER/NAME"))


def gen_kwargs(text: str | None) -> dict[str, object]:
    """What is laid over the generation of tasks, from ``name=value,name=value`` or JSON, read as lm-eval reads it.

    Raises:
        UsageError: there is no name.
    """
    if not text:
        return {}
    from lm_eval._cli.utils import key_val_to_dict, try_parse_json

    try:
        found = try_parse_json(text)
        return dict(found) if isinstance(found, dict) else dict(key_val_to_dict(text))
    except (ValueError, ArgumentTypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--gen-kwargs '{text}': {reason}; write for example do_sample=true,temperature=0.7") from None


def yes_no_or_name(text: str | None) -> bool | str | None:
    """``true`` and ``false`` as what they say, any other text as a name."""
    return None if text is None else {"true": True, "false": False}.get(text.lower(), text)


def text_or_token(text: str | None) -> int | str | None:
    """The number of a token, where a text is one; else the text."""
    return int(text) if text is not None and text.isdecimal() else text


def integers(text: str, option: str) -> list[int]:
    """Whole numbers from 0, separated by commas.

    Raises:
        UsageError: one of them is none.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{option} '{text}': expected numbers separated by commas, for example {option} 3,4,5")
    return [int(part) for part in parts]


def name_list(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    return tuple(dict.fromkeys(text.split(",")))


def _pairs(items: Sequence[str], option: str, example: str = "layers=[3]") -> Iterator[tuple[str, str]]:
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} '{item}': expected NAME=VALUE, for example {option} {example}")
        yield key.strip(), value


def _scalar(key: str, text: str) -> object:
    """A value as a configuration file has it."""
    import yaml

    from harness.io.yaml_text import parse_yaml

    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        raise UsageError(f"--set '{key}={text}': the value is not YAML; write for example [1,2] or 0.5") from None
