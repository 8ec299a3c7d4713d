"""What an edited model goes through: further edits, training on other text, quantisation, a trip to disk, a chat."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.editing import checkpoint, patch_file
from harness.errors import DataError, UsageError, near
from harness.io.nobody import tell_nobody
from harness.models.activations import at_least_float32
from harness.models.lm import LM, load
from harness.models.offload import call_with
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched

__all__ = [
    "COUNTED",
    "PLAIN",
    "TrainingSettings",
    "Treatment",
    "quantised",
    "read_treatments",
    "reloaded",
    "trained_on_text",
]

COUNTED = {"further": "edits", "finetune": "steps"}
"""The treatments that are given in amounts, and of what."""
PLAIN = ("int8", "int4", "reload", "chat")
_BITS = {"int8": 8, "int4": 4}
_GROUPS = (128, 64, 32)
"""Columns that share a scale in 4 bits: the first of these that divides a matrix, else all."""
_ROW = 128  # tokens of a text that is trained on


@dataclass(frozen=True)
class Treatment:
    """One of :data:`COUNTED` with its amount, or one of :data:`PLAIN`.

    Attributes:
        kind: its name.
        amount: how much of it; None where it is done or not.
    """

    kind: str
    amount: int | None = None

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind}={self.amount}"


def read_treatments(text: str) -> tuple[Treatment, ...]:
    """``further=10,50,finetune=100,int8``: each once, in its order; a number alone is one more of the last kind.

    Raises:
        UsageError: there is no such treatment, or its amount is missing or cannot be read.
    """
    found: list[Treatment] = []
    kind: str | None = None
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, amount = part.partition("=")
        if not equals and name.isdecimal() and kind is not None:
            name, amount = kind, name
        kind = name if name in COUNTED else None
        found.append(_treatment(name, amount, part))
    if not found:
        raise UsageError(f"--after '{text}': nothing to do; for example --after further=10,50,finetune=100,int8,reload")
    return tuple(dict.fromkeys(found))


def _treatment(name: str, amount: str, part: str) -> Treatment:
    known = (*COUNTED, *PLAIN)
    if name not in known:
        raise UsageError(f"--after: '{part}' does not exist{near(name, known)}")
    if name in PLAIN:
        if amount:
            raise UsageError(f"--after '{part}': {name} takes no amount; write {name}")
        return Treatment(name)
    if not amount.isdecimal() or int(amount) < 1:
        raise UsageError(f"--after '{part}': expected a number of {COUNTED[name]}, such as {name}=10")
    return Treatment(name, int(amount))


# --- fine-tuning on other text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSettings:
    """How the edited model is trained on other text; the defaults are those of transformers' ``TrainingArguments``.

    Attributes:
        lr: AdamW's learning rate, which falls to 0 along a line.
        batch_size: texts of a step.
        clip: the norm to which the gradient is cut.
        seed: of the order of the texts.
    """

    lr: float = 5e-5
    batch_size: int = 8
    clip: float = 1.0
    seed: int = 0


def trained_on_text(
    lm: LM,
    patch: Patch,
    *,
    steps: int,
    settings: TrainingSettings,
    progress: Callable[[int, int], None] = tell_nobody,
) -> Patch:
    """The change after the edited model was trained on its plain text: all parameters, in float32 copies.

    Args:
        lm: the unedited model; unchanged when this returns.
        patch: the edits; what they do at other seams than weights stays.
        steps: optimiser steps.
        settings: how.
        progress: told how many steps are done, and how many there are.

    Raises:
        DataError: there is no text.
    """
    batches = _batches(lm, steps, settings)
    with patched(lm, patch):
        masters = {
            name: at_least_float32(lm.parameter(name).detach()).clone().requires_grad_()
            for name, _ in lm.model.named_parameters()
        }
        _train(lm, masters, batches, settings, progress)
    changes = {name: _change(lm, name, master.detach()) for name, master in masters.items()}
    return Patch({n: c for n, c in changes.items() if c is not None}, patch.hooks, patch.prompt, patch.logits)


def _train(
    lm: LM,
    masters: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    settings: TrainingSettings,
    progress: Callable[[int, int], None],
) -> None:
    """AdamW on the next token of every text."""
    optimiser = torch.optim.AdamW(masters.values(), lr=settings.lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / len(batches))
    with torch.enable_grad():
        for done, ids in enumerate(batches, start=1):
            output = call_with(lm.model, masters, input_ids=ids, use_cache=False)
            logits = at_least_float32(output.logits[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(masters.values(), settings.clip)
            optimiser.step()
            falling.step()
            progress(done, len(batches))


def _batches(lm: LM, steps: int, settings: TrainingSettings) -> list[Tensor]:
    """Texts of one length, drawn anew for each pass, ``[batch, tokens]`` for each step."""
    width = min(_ROW, lm.context)
    rows = _rows(lm, width, steps * settings.batch_size)
    draw = random.Random(settings.seed)
    order: list[int] = []
    while len(order) < steps * settings.batch_size:
        order += draw.sample(range(len(rows)), len(rows))
    chosen = [torch.tensor([rows[i] for i in order[at : at + settings.batch_size]]) for at in _starts(steps, settings)]
    return [batch.to(lm.device) for batch in chosen]


def _starts(steps: int, settings: TrainingSettings) -> range:
    return range(0, steps * settings.batch_size, settings.batch_size)


def _rows(lm: LM, width: int, most: int) -> list[list[int]]:
    """The plain text of a model, one document after the other, in rows of one length."""
    rows: list[list[int]] = []
    rest: list[int] = []
    for document in lm.documents():
        rest += lm.encode(document)
        while len(rest) >= width and len(rows) < most:
            rows.append(rest[:width])
            rest = rest[width:]
        if len(rows) == most:
            break
    if not rows:
        raise DataError(f"the plain text of {lm.name} has less than {width} tokens; name another with --text")
    return rows


def _change(lm: LM, name: str, value: Tensor) -> Dense | None:
    """What a parameter has become, less what it is, as a change is written; None where it is the same."""
    difference = value - lm.parameter(name).detach().to(value.dtype)
    if not bool(difference.any()):
        return None
    return Dense(lm.as_matrix(name, difference).contiguous())


# --- quantisation -----------------------------------------------------------------------------------------------------


def quantised(lm: LM, patch: Patch, kind: str) -> Patch:
    """The change after the matrices of the edited model were rounded to few bits, by torchao's own arithmetic.

    Weights alone, as in torchao's ``Int8WeightOnlyConfig`` (one symmetric scale for each output) and
    ``IntxWeightOnlyConfig`` of ``torch.int4`` (scale and zero for each group of columns); embeddings and the
    output layer stay.  What is computed with them has the model's type.

    Args:
        lm: the unedited model; unchanged when this returns.
        patch: the edits.
        kind: ``int8`` or ``int4``.

    Raises:
        UsageError: torchao is not installed, or the model has no such matrices; one line.
    """
    rounded = _rounding(_BITS[kind])
    names = [name for name in _matrices(lm) if lm.matrix(name).dim() == 2]
    if not names:
        raise UsageError(f"{lm.name} has no linear modules to quantise; leave {kind} out")
    with patched(lm, patch):
        values = {name: rounded(at_least_float32(lm.matrix(name).detach())) for name in names}
    weights = {name: Dense(value - lm.matrix(name).detach().to(value.dtype)) for name, value in values.items()}
    return Patch({**patch.weights, **weights}, patch.hooks, patch.prompt, patch.logits)


def _matrices(lm: LM) -> Iterator[str]:
    """The weights of linear modules, the output layer left out."""
    from transformers.pytorch_utils import Conv1D

    for name, module in lm.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name != lm.arch.head:
            yield f"{name}.weight"


def _rounding(bits: int) -> Callable[[Tensor], Tensor]:
    """Maps a matrix ``[out, in]`` to what is left of it in some bits."""
    try:
        from torchao.quantization import quant_primitives as ao
    except ImportError as error:
        raise UsageError("torchao is not installed; pip install 'lm-edit-harness[quantise]'") from error
    mapping: Any = ao.MappingType.SYMMETRIC if bits == 8 else ao.MappingType.ASYMMETRIC
    limits = (-128, 127) if bits == 8 else (0, 15)
    kind = torch.int8 if bits == 8 else torch.uint8

    def rounded(matrix: Tensor) -> Tensor:
        width = matrix.shape[1]
        block = (1, width if bits == 8 else next((group for group in _GROUPS if width % group == 0), width))
        scale, zero = ao.choose_qparams_affine(matrix, mapping, block, kind, *limits)
        small = ao.quantize_affine(matrix, block, scale, zero, kind, *limits)
        found: Tensor = ao.dequantize_affine(small, block, scale, zero, kind, *limits, output_dtype=matrix.dtype)
        return found

    return rounded


# --- a round trip to disk ---------------------------------------------------------------------------------------------


@contextmanager
def reloaded(lm: LM, patch: Patch, *, editor: str, options: Mapping[str, Any]) -> Iterator[tuple[LM, Patch]]:
    """The edited model as it is read from disk: a checkpoint of it, or a file of edits where no checkpoint holds them.

    Args:
        lm: the unedited model.
        patch: the edits.
        editor: who made them.
        options: how the checkpoint is loaded, as :func:`harness.models.lm.load` takes it.

    Raises:
        ModelError: a part of the edits cannot be saved.
    """
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        path = Path(folder) / "edits.safetensors"
        patch_file.save_patch(patch, lm, path, editor=editor)
        if not patch.only_weights:
            yield lm, patch_file.load_patch(path, lm)
            return
        checkpoint.export(path, lm, Path(folder) / "model")
        yield load(str(Path(folder) / "model"), text=lm.text, **options), Patch()
