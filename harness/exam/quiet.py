"""lm-eval, without what it says of itself: hints about its own command line, and bars of its own loops.

And transformers, without a warning of padding that does no harm.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import lm_eval.api.task

__all__ = ["quiet_lm_eval", "quiet_padding"]


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Let lm-eval tell of errors only while it builds tasks or asks them; a caller of the library has bars of ours."""
    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        with _errors_only("lm_eval"), quiet_padding():
            yield
    finally:
        lm_eval.api.task.tqdm = bar


def quiet_padding() -> AbstractContextManager[None]:
    """Let transformers not warn of texts without an attention mask that seem to be padded.

    Texts are padded behind their ends, where no token of theirs looks; and a mask would cost attention its fast way.
    Some models begin every text with the token that also pads.
    """
    return _errors_only("transformers.modeling_utils")


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """What a logger tells while it lasts is errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
