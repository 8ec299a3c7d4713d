"""YAML in which ``1e-4`` is a number, as in JSON and in YAML 1.2: by YAML 1.1 it is one only as ``1.0e-4``."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["parse_yaml"]

_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Plain data alone, as the safe loader of YAML reads it but for numbers with an exponent."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML or JSON document.

    Args:
        text: the document.

    Raises:
        yaml.YAMLError: it is none.
        ValueError: it holds a date that does not exist.
    """
    return yaml.load(text, Loader=_Loader)
