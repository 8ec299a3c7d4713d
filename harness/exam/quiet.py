"""lm-eval, without what it says of itself: hints about its own command line, and bars of its own loops."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lm_eval.api.task

__all__ = ["quiet_lm_eval"]


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Let lm-eval tell of errors only while it builds tasks or asks them; a caller of the library has bars of ours."""
    logger, bar = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)
