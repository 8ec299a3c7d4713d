"""Speed, as ratios within one run: ours against the plain way, alternating, on the same inputs and with equal results.

    python scripts/bench.py                      the shipped model
    python scripts/bench.py --model gpt2-shaped  a random model of GPT-2's shape (124 M parameters)
    python scripts/bench.py adapter moments      only these

Each measurement interleaves the two sides and prints the median of the pairwise ratios, with its range: machines are
noisy, ratios of neighbours less so.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import GPT2Config, GPT2LMHeadModel

from harness import stats, tasks
from harness.adapter import EditedLM
from harness.editor import Edit, compose
from harness.lm import LM, load
from harness.measure import hold, measure_task
from harness.patch import Patch, patched
from harness.schedule import Stop

Side = Callable[[], object]


def main() -> None:
    """Run the measurements that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*MEASUREMENTS, []], help="default: all")
    parser.add_argument("--model", default="mini", help="a model's name, or gpt2-shaped")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of each measurement")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    lm = gpt2_shaped() if arguments.model == "gpt2-shaped" else load(arguments.model)
    print(f"{lm.name}, {torch.get_num_threads()} threads, {arguments.repeat} pairs; ratio: plain / ours")
    for name in arguments.which or MEASUREMENTS:
        MEASUREMENTS[name](lm, arguments.repeat)


def gpt2_shaped() -> LM:
    """A random model of GPT-2's shape that reads with the shipped tokenizer."""
    torch.manual_seed(0)
    mini = load("mini")
    return LM.wrap(GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)), mini.tokenizer, "gpt2-shaped")


def pairs(label: str, ours: Side, plain: Side, repeat: int) -> None:
    """Time both sides in turn and print the median ratio; one untimed round first."""
    ours(), plain()
    ratios, own = [], []
    for _ in range(repeat):
        a, b = seconds(ours), seconds(plain)
        ratios.append(b / a)
        own.append(a)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{label:<58} {statistics.median(ratios):6.2f}  ({spread}; ours {statistics.median(own):.2f} s)")


def seconds(side: Side) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def adapter(lm: LM, repeat: int) -> None:
    """The unedited model through the harness and through plain lm-eval: equal numbers, nearly equal time."""
    for name in ("NLI", "SentimentAnalysis"):
        suite = tasks.load([name], None, None, "mini", lm.tokenizer)
        task = suite.tasks[0]
        ours, plain = EditedLM(lm, 32), HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=32)
        load_ = {"tasks": {name: task.task}, "groups": {}, "group_map": {}}

        def through_harness(task: tasks.Task = task, ours: EditedLM = ours) -> object:
            with ours.holding(Patch()):
                return measure_task(ours, task, None)

        def through_lm_eval(load_: dict[str, object] = load_, plain: HFLM = plain) -> object:
            return evaluate(plain, load_, bootstrap_iters=0)

        pairs(f"adapter: {name} (1.00 = free)", through_harness, through_lm_eval, repeat)


def edits_of(count: int) -> list[Edit]:
    """The first edits of the shipped CounterFact set."""
    return tasks.read_edits("counterfact", "mini", count=count)


def isolated(lm: LM, repeat: int) -> None:
    """50 records with their probes: many documents a pass under per-row patches, against one record at a time."""
    edits = edits_of(50)
    patches = compose("rome").build(lm, {}, 0).edit_each(lm, edits)
    suite = tasks.load([], "counterfact", [e.id for e in edits], "mini", lm.tokenizer)
    task = next(t for t in suite.tasks if t.name == "counterfact_probability")
    singles = [
        next(
            t
            for t in tasks.load([], "counterfact", [e.id], "mini", lm.tokenizer).tasks
            if t.name == "counterfact_probability"
        )
        for e in edits
    ]
    model = EditedLM(lm, 32)

    def ours() -> object:
        with hold(model, Stop(50, patches), [e.id for e in edits], "isolated"):
            return measure_task(model, task, None)

    def plain() -> None:
        for single, patch in zip(singles, patches, strict=True):
            with model.holding(patch):
                measure_task(model, single, None)

    pairs("isolated: 50 records scored side by side", ours, plain, repeat)


def values(lm: LM, repeat: int) -> None:
    """The value optimisation of 32 edits at once, against one after the other; deltas must agree."""
    edits = edits_of(32)
    editor = compose("rome").build(lm, {}, 0)
    together = editor.edit_each(lm, edits)
    alone = [editor.edit(lm, [e], None) for e in edits]
    worst = max(_gap(a, b) for a, b in zip(together, alone, strict=True))
    print(f"values: largest relative difference of deltas {worst:.1e}")
    pairs(
        "values: 32 ROME edits side by side",
        lambda: editor.edit_each(lm, edits),
        lambda: [editor.edit(lm, [e], None) for e in edits],
        repeat,
    )


def _gap(a: Patch, b: Patch) -> float:
    return max(
        float((a.weights[n].dense() - b.weights[n].dense()).norm() / b.weights[n].dense().norm()) for n in b.weights
    )


def moments(lm: LM, repeat: int) -> None:
    """Second moments of up to five layers in one pass, against one pass a layer."""
    layers = list(range(min(5, lm.arch.layers)))
    texts = list(stats.documents(lm.text))[:200]
    pairs(
        f"moments: {len(layers)} layers in one pass",
        lambda: stats.accumulate(lm, layers, texts),
        lambda: [stats.accumulate(lm, [layer], texts) for layer in layers],
        repeat,
    )


def memory(lm: LM, _repeat: int) -> None:
    """What a saved ROME edit weighs."""
    from harness import delta

    (patch,) = compose("rome").build(lm, {}, 0).edit_each(lm, edits_of(1))
    path = Path("rome-edit.safetensors")
    delta.save(patch.weights, path)
    print(f"memory: one ROME edit on disk {path.stat().st_size / 1024:.1f} KiB")
    path.unlink()


def holding(lm: LM, repeat: int) -> None:
    """Holding and restoring a patch, against copying the model."""
    from copy import deepcopy

    (patch,) = compose("rome").build(lm, {}, 0).edit_each(lm, edits_of(1))

    def ours() -> None:
        with patched(lm, patch):
            pass

    pairs("holding: a patch, against a deep copy of the model", ours, lambda: deepcopy(lm.model), repeat)


MEASUREMENTS: dict[str, Callable[[LM, int], None]] = {
    "adapter": adapter,
    "isolated": isolated,
    "values": values,
    "moments": moments,
    "holding": holding,
    "memory": memory,
}

if __name__ == "__main__":
    main()
