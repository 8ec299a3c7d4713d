"""The process of whoever calls us: other people's libraries change it when they are imported and used.

``lm_eval`` draws names of tasks from the global random state and sets variables of the environment, ``transformers``
and ``datasets`` set their loggers' levels, ``absl`` adds a handler to the root logger, and a dozen of libraries add
filters of warnings. None of that is a caller's wish.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["as_before"]


@contextmanager
def as_before() -> Iterator[None]:
    """Leave the process as it was found: environment, random state, loggers and filters of warnings.

    The random states of numpy and torch are not among it: what is drawn of them has a generator of its own.
    """
    environment, drawn = dict(os.environ), random.getstate()
    levels = {logger: logger.level for logger in _loggers()}
    handlers = list(logging.root.handlers)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        _restore_environment(environment)
        random.setstate(drawn)
        for logger, level in levels.items():
            if logger.level != level:
                logger.setLevel(level)
        for handler in [one for one in logging.root.handlers if one not in handlers]:
            logging.root.removeHandler(handler)


def _loggers() -> list[logging.Logger]:
    """The root logger and all that have been asked for."""
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _restore_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
