"""The process of whoever calls us: other people's libraries change it when they are imported and used.

``lm_eval`` draws names of tasks from the global random state and sets variables of the environment, ``transformers``
and ``datasets`` set their loggers' levels, ``absl`` adds a handler to the root logger, and a dozen of libraries add
filters of warnings. Editors seed the global generators of torch and numpy. None of that is a caller's wish.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["as_before"]


@contextmanager
def as_before() -> Iterator[None]:
    """Leave the process as it was found: environment, random states, loggers, filters of warnings, and torch.

    Torch computes meanwhile as in a process where nothing of it was set: what a caller has set for a loop of training
    (autocast, no gradients) decides neither what an editor finds nor what is measured.
    """
    environment, drawn = dict(os.environ), random.getstate()
    levels = {logger: logger.level for logger in _loggers()}
    handlers = list(logging.root.handlers)
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            if "torch" in sys.modules:  # where it is not, nothing of it was set, and it takes seconds to load
                from harness.io.torch_process import plain_torch, same_draws

                stack.enter_context(same_draws())
                stack.enter_context(plain_torch())
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
