"""Seconds and peak memory of second moments and of edits, on a random model of Llama 3 8B's shape in bfloat16.

    python scripts/gpu_check.py                                     32 layers on an accelerator, meant for ten minutes
    python scripts/gpu_check.py --device cpu --layers 1 --edits 2   one layer
    python scripts/gpu_check.py --device cpu --tiny                 a model that takes no time, to see that it runs

Beside the peak stands what the documentation says that one needs (docs/how-to/own-model.md): the weights and, for
second moments and the editors that solve with them, ``8 (n + 1) d_ff^2`` bytes for ``n`` edited layers, for UltraEdit
what it holds of every token of the targets. It has no formula for activations and for what else editors hold. Weights
are random, so that nothing is said of how well an edit holds; second moments of little text are made invertible as in a
dry run. On a CPU seconds are processor time, and the peak is the resident memory of the process, Python and its
libraries included.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from long_streams import facts
from transformers import LlamaConfig, LlamaForCausalLM

from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.errors import UsageError
from harness.io.nobody import tell_nobody
from harness.methods import second_moments
from harness.methods.descent import tokenise
from harness.methods.shifts import GradientShift
from harness.models.lm import LM, load
from harness.models.offload import total_bytes
from harness.models.placement import require_device
from harness.runs.clock import Clock

HEAD = ("what", "layers", "edits", "seconds", "peak GiB", "documented GiB")
EDITORS = ("memit", "alphaedit", "ultraedit")
SHAPES = {
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 1},
}
"""The published configuration of the model, and one of the same proportions."""
DEEP = 32
TOKENS = 128_256


@dataclass(frozen=True)
class Check:
    """What is measured.

    Attributes:
        device: where.
        shape: which of :data:`SHAPES`.
        layers: layers of the model.
        edits: edits of one operation; None for 100, and 1,000 of UltraEdit on a deep model.
        editors: which.
        tokens: of text, for second moments.
        steps: updates of a value.
    """

    device: str
    shape: str
    layers: int
    edits: int | None
    editors: tuple[str, ...]
    tokens: int
    steps: int

    @property
    def moved(self) -> tuple[int, ...]:
        """The edited layers: those of the published settings of MEMIT and AlphaEdit, where there are so many."""
        return (4, 5, 6, 7, 8) if self.layers > 8 else tuple(range(self.layers))

    def count(self, editor: str) -> int:
        """How many edits an editor makes."""
        usual = 1000 if editor == "ultraedit" and self.layers == DEEP else 100
        return usual if self.edits is None else self.edits

    def settings(self, editor: str) -> dict[str, Any]:
        """The hyperparameters of an editor that are not its own defaults."""
        if editor == "ultraedit":
            return {"layers": self.moved}
        # Of random weights any number of directions may lie below a threshold; here all of them do.
        null = {"nullspace_threshold": 1e9} if editor == "alphaedit" else {}
        return {"layers": self.moved, "cov_tokens": self.tokens, "v_steps": self.steps, **null}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was done.
        layers: layers of which, or in which.
        edits: how many edits; None where none were made.
        seconds: of the clock; on a CPU processor time, so that other work on the machine does not count.
        peak: the most memory while it was done, weights included, GiB.
        documented: what the documentation says that is needed, weights included, GiB.
    """

    what: str
    layers: int
    edits: int | None
    seconds: float
    peak: float
    documented: float

    def __str__(self) -> str:
        edits = "" if self.edits is None else f"{self.edits:,}"
        cells = (
            self.what,
            str(self.layers),
            edits,
            f"{self.seconds:.1f}",
            f"{self.peak:.2f}",
            f"{self.documented:.2f}",
        )
        return "| " + " | ".join(cells) + " |"


def random_model(check: Check) -> LM:
    """A random model in bfloat16 that reads with a shipped tokenizer, which writes few of its tokens."""
    tokenizer = load("mini-llama", device="cpu").tokenizer
    vocabulary = len(tokenizer) if check.shape == "tiny" else TOKENS
    shape: dict[str, Any] = SHAPES[check.shape]
    config = LlamaConfig(
        vocab_size=vocabulary, num_hidden_layers=check.layers, max_position_embeddings=8192,
        tie_word_embeddings=False, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(check.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return LM.wrap(model, tokenizer, name=f"random {check.shape}, {check.layers} layers")


def documented(lm: LM, beside: int) -> float:
    """The weights and what is needed beside them, in GiB."""
    return float(total_bytes(dict(lm.model.named_parameters())) + beside) / 2**30


def moment_bytes(lm: LM, layers: int) -> int:
    """``8 (n + 1) d_ff^2`` bytes for the second moments of ``n`` layers, and to factor one."""
    return 8 * (layers + 1) * lm.arch.inner**2


def shift_bytes(lm: LM, method: GradientShift, edits: Sequence[Edit]) -> int:
    """What UltraEdit holds of ``t`` tokens of all targets: keys and gradients of every matrix, in float32, which its
    changes take the place of, and of the largest one what they are normalised by, ``28 t (in + out)`` bytes.

    Args:
        lm: the model.
        method: the editor.
        edits: the edits of one operation.
    """
    tokens = sum(len(edit.target) for edit in tokenise(lm, edits))
    sides = [sum(lm.matrix(f"{name}.weight").shape) for name in method.places(lm)]
    return 4 * tokens * sum(sides) + 28 * tokens * max(sides)


def rows(check: Check) -> Iterator[Row]:
    """The lines of the table, as they are measured."""
    lm = random_model(check)
    edited = len(check.moved)
    needed = documented(lm, moment_bytes(lm, edited))
    if set(check.editors) - {"ultraedit"}:
        found: dict[int, second_moments.Moment] = {}
        seconds, peak = timed(check.device, lambda: found.update(_moments(lm, check)))
        second_moments.keep_stand_ins(lm, found, tokens=check.tokens)
        found.clear()
        yield Row(f"second moments, {check.tokens:,} tokens", edited, None, seconds, peak, needed)
    for editor in check.editors:
        count = check.count(editor)
        method, edits = compose(editor).build(lm, check.settings(editor), seed=0), facts(count)
        seconds, peak = timed(check.device, partial(_edited, lm, method, edits))
        said = documented(lm, shift_bytes(lm, method, edits)) if isinstance(method, GradientShift) else needed
        yield Row(editor, edited, count, seconds, peak, said)


def _moments(lm: LM, check: Check) -> dict[int, second_moments.Moment]:
    texts = second_moments.first_documents(lm, check.tokens)
    return second_moments.accumulate_moments(lm, check.moved, texts, tokens=check.tokens, progress=tell)


def _edited(lm: LM, method: Any, edits: Sequence[Any]) -> None:
    patch = method.edit(lm, edits)
    if patch.empty or not all(
        bool(torch.isfinite(part).all()) for d in patch.weights.values() for part in d.tensors().values()
    ):
        raise SystemExit(f"{method.name} changed nothing, or to something that is no number")


def tell(_done: int, _total: int) -> None:
    """Show no bar."""


def timed(device: str, work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of some work, on a CPU those of the processor, and the most memory meanwhile, in GiB."""
    clock, before = Clock(tell_nobody, device), time.process_time()
    with clock.phase("work"):
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
    seconds = time.process_time() - before if device == "cpu" else clock.cost[0]["seconds"]
    return seconds, clock.cost[0]["peak_memory_mib"] / 1024


def asked() -> Check:
    """What was typed.

    Raises:
        UsageError: the device cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    parser.add_argument("--device", default=here, help="where; by default an accelerator where there is one")
    parser.add_argument("--layers", type=int, help=f"layers of the model; {DEEP} on an accelerator, else 1")
    parser.add_argument(
        "--edits", type=int, help="edits of one operation; by default 100, of ultraedit on all layers 1,000"
    )
    parser.add_argument("--editors", default=",".join(EDITORS), help="which, separated by commas")
    parser.add_argument("--tokens", type=int, default=20_000, help="of text, for second moments")
    parser.add_argument("--steps", type=int, default=25, help="updates of a value")
    parser.add_argument("--tiny", action="store_true", help="a model of three layers that takes no time")
    told = parser.parse_args()
    require_device(told.device)
    editors = tuple(told.editors.split(","))
    for editor in editors:
        if editor not in EDITORS:
            raise UsageError(f"editors: '{editor}' is not among {', '.join(EDITORS)}; name some of these")
    for name in ("layers", "edits", "tokens", "steps"):
        if getattr(told, name) is not None and getattr(told, name) < 1:
            raise UsageError(f"{name} is {getattr(told, name)}; give at least 1")
    usual = 3 if told.tiny else 1 if told.device == "cpu" else DEEP
    shape = "tiny" if told.tiny else "Llama-3-8B"
    return Check(told.device, shape, told.layers or usual, told.edits, editors, told.tokens, told.steps)


def main() -> None:
    """Measure, and print a line of the table as soon as it is known."""
    try:
        check = asked()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    with TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = folder
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
        for row in rows(check):
            print(row, flush=True)


if __name__ == "__main__":
    main()
