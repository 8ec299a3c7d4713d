"""A model that was edited, as it was: what methods do that make every edit on the unedited weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from harness.models.lm import LM
from harness.patches.delta import Dense, double
from harness.patches.patch import Patch, patched

__all__ = ["originals_held"]


def originals_held(lm: LM, original: Mapping[str, Tensor]) -> AbstractContextManager[LM]:
    """Hold some matrices as they were before they were edited, up to the rounding of one sum.

    Args:
        lm: the model; afterwards it is as edited as before.
        original: parameter name -> ``W_0 [out, in]``.
    """
    return patched(lm, Patch({name: Dense(double(was) - double(lm.matrix(name))) for name, was in original.items()}))
