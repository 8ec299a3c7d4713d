"""Apple's GPUs have no float64: what stands on the device of a model is moved away before it is widened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from harness.editing.edit import Edit, Example
from harness.exam.span_scores import score, span
from harness.models.lm import LM
from harness.patches.delta import double
from harness.studies.causal.trace import TraceSettings, noise_scale, trace_facts
from harness.studies.localization.problems import ProblemSettings, pose
from harness.studies.remedi.asking import hidden_states
from harness.studies.remedi.classify import standardised


class Apple(TorchFunctionMode):
    """Follows what is computed from a model's weights, up to ``Tensor.cpu`` or ``double``; refuses float64."""

    def __init__(self, lm: LM) -> None:
        super().__init__()
        for tensor in (*lm.model.parameters(), *lm.model.buffers()):
            tensor.there = True

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if not any(getattr(leaf, "there", False) for leaf in tree_leaves((args, kwargs))):
            return found
        # double moves what lies on such a device.
        if function is torch.Tensor.cpu or (function is torch.Tensor.double and _asked_by(double)):
            return found.clone()
        for tensor in (leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)):
            if tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            tensor.there = True
        return found


def _asked_by(function: Callable[..., Any]) -> bool:
    """Whether a function is being carried out."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


EDITS = [Edit(str(i), "{} was born in", who, "Rome", "Paris") for i, who in enumerate(("Ada Velmont", "Hugo Lantern"))]


def test_the_stand_in_refuses_what_an_apple_refuses(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    with Apple(lm), pytest.raises(TypeError, match="MPS"):
        (lm.matrix(lm.down(0)) @ torch.ones(64)).double()
    with Apple(lm):
        assert (lm.matrix(lm.down(0)) @ torch.ones(64)).cpu().double().dtype == torch.float64


def test_studies_need_no_float64_on_the_device(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    with Apple(lm):
        assert noise_scale(lm, TraceSettings(sigma="s3"), ["Ada Velmont"]) > 0
        assert len(trace_facts(lm, EDITS, TraceSettings(window=1, samples=2, known="all", threshold=1e-9))) == 2
        assert (
            len(
                pose(
                    lm, [Example(edit, ()) for edit in EDITS], "fact_erasure", settings=ProblemSettings(least=0.0)
                ).skipped
            )
            == 0
        )
        places = [("Ada Velmont was born in Rome", at) for at in range(3)]
        assert standardised(hidden_states(lm, places, 1)).dtype == torch.float64
        assert score(lm, [span(lm.tokenizer, "Ada Velmont was born in", " Rome")])[0][0] < 0
