"""Speed, as ratios within one run: ours against the plain way, alternating, on the same inputs and with equal results.

    python scripts/bench.py                      the shipped model
    python scripts/bench.py --model gpt2-shaped  a random model of GPT-2's shape (124 M parameters)
    python scripts/bench.py --model deep trace   a random model of 28 layers, as many as GPT-J has, and mini's width
    python scripts/bench.py adapter moments      only these
    python scripts/bench.py solves updates --width 14336
                                                 only the solves of one layer with keys of this length, random
    python scripts/bench.py crew shards          two workers against one; on a few cores of one's own
    python scripts/bench.py crew --plans 4 --edits 2 --documents 4; python scripts/bench.py shards --edits 130 --steps 2
                                                 the same in a minute or two, to see that it works
    python scripts/bench.py general shots probes choices scoring --model DIR --data-dir DIR --documents 10 --repeat 1
                                                 the exam against plain lm_eval, on the authors' files

Each measurement interleaves the two sides and prints the median of the pairwise ratios, with its range: machines are
noisy, ratios of neighbours less so. "Plain" is what published code does: one edit, one layer, one record at a time, the
whole model on every step, logits everywhere. "One at a time" is our own code, called for each by itself. On a machine
that others use, --clock cpu with OMP_NUM_THREADS=1 measures processor time. Where the plain side takes too long,
--edits and --steps make the task smaller for both: a ratio is always of what was run.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from editors.rome import Rome
from harness.editing import patch_file
from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.editing.schedule import Stop
from harness.exam import tasks
from harness.exam.adapter import EditedLM
from harness.exam.canonical import SETS, CanonicalSet
from harness.exam.data import TASKS
from harness.exam.measure import Measured, hold, measure_task, of_cases
from harness.exam.span_scores import Encoded, score
from harness.exam.spectra import Spectra
from harness.exam.statistics import Ratio
from harness.exam.token_tasks import Tokenized
from harness.exam.weight_change import describe
from harness.io import plain_text
from harness.io.cache import cache_apart
from harness.io.files import unpack_json, values_path
from harness.io.hashes import tensor_sha256
from harness.methods import second_moments
from harness.methods.context_templates import sample_templates
from harness.methods.keys import (
    AdjointSolver,
    Solver,
    Unedited,
    find_fact_token,
    prompt_rows,
    rank_one_changes,
    read_keys,
)
from harness.methods.locate_then_edit import LocateThenEdit, SpreadMemory, ridge_solver
from harness.methods.null_space import NullSpaceMemory, NullSpaceRidge
from harness.methods.rank_one import update_direction
from harness.methods.second_moments import Moment
from harness.methods.value import optimise
from harness.methods.value_cache import ValueCache, values_from
from harness.methods.value_rows import Objective
from harness.models.activations import TokenRow, first_output, row_portions
from harness.models.lm import LM, load
from harness.models.published import fast_hashes
from harness.patches.delta import Delta, LowRank
from harness.patches.patch import Patch, patched
from harness.runs import plan_grid
from harness.runs.crew.cells import ALONE, Crew
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.record_file import PackedTables, write_record
from harness.runs.several import run_each
from harness.studies.causal import trace as tracing
from harness.studies.causal.facts import FactTokens
from harness.studies.causal.restore import Kind

Side = Callable[[], object]
RANDOM = {
    "gpt2-shaped": GPT2Config(bos_token_id=0, eos_token_id=0),
    "deep": GPT2Config(n_layer=28, n_embd=256, n_head=4, vocab_size=2352, bos_token_id=0, eos_token_id=0),
}
"""Random models: of GPT-2's shape (124 M parameters), and of 28 layers."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Run:
    """How often and on how much is measured, and by which clock."""

    repeat: int
    edits: int | None
    steps: int | None
    clock: Callable[[], float]
    documents: int = 40
    data_dir: str = "mini"
    plain_rows: tuple[int, ...] = (8, 32)
    plans: int = 12
    width: int = 4096


def main() -> None:
    """Run the measurements that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*MEASUREMENTS, []], help="default: all")
    parser.add_argument("--model", default="mini", help="a model's name, gpt2-shaped or deep")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of each measurement")
    parser.add_argument("--edits", type=int, help="edits of a measurement (default: 32 values, 50 isolated records)")
    parser.add_argument("--steps", type=int, help="steps of a value optimisation (default: the editor's own)")
    parser.add_argument("--documents", type=int, default=40, help="documents of a task (default: 40)")
    parser.add_argument(
        "--data-dir", default="mini", help="where rows of tasks and edits are: mini, or a folder of the real files"
    )
    parser.add_argument(
        "--plain-rows", type=int, nargs="+", default=[8, 32], help="batch sizes of plain lm_eval; the fastest counts"
    )
    parser.add_argument("--plans", type=int, default=12, help="plans of the study of a crew (default: 12)")
    parser.add_argument("--width", type=int, default=4096, help="length of the keys of solves and updates")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    lm = random(arguments.model) if arguments.model in RANDOM else load(arguments.model)
    run = Run(
        arguments.repeat,
        arguments.edits,
        arguments.steps,
        CLOCKS[arguments.clock],
        arguments.documents,
        arguments.data_dir,
        tuple(arguments.plain_rows),
        arguments.plans,
        arguments.width,
    )
    print(
        f"{lm.name}, {torch.get_num_threads()} threads, {run.repeat} pairs, {arguments.clock} time; ratio: plain / ours"
    )
    for name in arguments.which or [name for name in MEASUREMENTS if arguments.data_dir != "mini" or name not in REAL]:
        MEASUREMENTS[name](lm, run)


def random(name: str) -> LM:
    """A random model that reads with the shipped tokenizer."""
    torch.manual_seed(0)
    return LM.wrap(GPT2LMHeadModel(RANDOM[name]), load("mini").tokenizer, name=name)


def pairs(label: str, ours: Side, plain: Side, run: Run) -> None:
    """Time both sides in turn and print the median ratio; one untimed round first, unless there is only one."""
    if run.repeat > 1:
        ours(), plain()
    ratios, own = [], []
    for _ in range(run.repeat):
        a, b = seconds(ours, run), seconds(plain, run)
        ratios.append(b / a)
        own.append(a)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{label:<58} {statistics.median(ratios):6.2f}  ({spread}; ours {statistics.median(own):.2f} s)", flush=True)


def each_of(label: str, sides: Mapping[str, Side], plain: Side, run: Run) -> None:
    """As :func:`pairs`, for several sides against one that takes long: it runs once for all of them in each round."""
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(run.repeat):
        ours = {name: seconds(side, run) for name, side in sides.items()}
        whole = seconds(plain, run)
        for name, taken in ours.items():
            ratios[name].append(whole / taken)
    for name, found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{label}, {name:<30} {statistics.median(found):6.2f}  ({spread})", flush=True)


def seconds(side: Side, run: Run) -> float:
    """The time of one call."""
    start = run.clock()
    side()
    return run.clock() - start


def adapter(lm: LM, run: Run) -> None:
    """The unedited model through the harness and through plain lm-eval: equal numbers, nearly equal time."""
    for name in ("NLI", "SentimentAnalysis"):
        suite = tasks.load_suite([name], edit_set=None, records=None, data_dir="mini", tokenizer=lm.tokenizer)
        task = suite.tasks[0]
        ours, plain = EditedLM(lm, 32), HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=32)
        load_ = {"tasks": {name: task.task}, "groups": {}, "group_map": {}}

        def through_harness(task: tasks.Task = task, ours: EditedLM = ours) -> object:
            with ours.holding(Patch()):
                return measure_task(ours, task, limit=None)

        def through_lm_eval(load_: Mapping[str, object] = load_, plain: HFLM = plain) -> object:
            return evaluate(plain, load_, bootstrap_iters=0)

        pairs(f"adapter: {name} (1.00 = free)", through_harness, through_lm_eval, run)


def edits_of(count: int, data_dir: str = "mini") -> list[Edit]:
    """Edits of the CounterFact set, evenly spread over it: its prompts are of many lengths."""
    found = tasks.read_edits("counterfact", data_dir=data_dir)
    return [found[i * len(found) // count] for i in range(count)]


def rome(lm: LM, run: Run) -> Rome:
    """ROME with the model's own settings, and text enough for second moments that have an inverse."""
    steps = {"v_steps": run.steps} if run.steps else {}
    editor = compose("rome").build(lm, {"cov_tokens": 10_000, **steps}, seed=0)
    assert isinstance(editor, Rome)
    return editor


def plain_value(lm: LM, edit: Edit, templates: Sequence[str], objective: Objective) -> tuple[Tensor, Tensor]:
    """The loop of ROME and MEMIT as published (kmeng01): one edit, the whole model and all logits on every step.

    MEMIT decodes what leaves the last block once more, beside the logits that the model gives.

    Returns:
        ``v0`` and delta, ``[d]``.
    """
    target = lm.continuation(edit.text, edit.continuation)
    essence, last = find_fact_token(lm, replace(edit, prompt="{} is a"), template="{}", fact_token=objective.fact_token)
    extra = [TokenRow(tuple(essence), last)]
    rows = prompt_rows(lm, edit, templates, fact_token=objective.fact_token, suffix=target[:-1], extra=extra)
    batch, at = lm.batch([row.ids for row in rows]), torch.tensor([row.at for row in rows])
    each = torch.arange(len(rows))
    labels = torch.full_like(batch.ids[:-1], -100)
    for label, row in zip(labels, rows[:-1], strict=True):
        label[len(row.ids) - len(target) : len(row.ids)] = torch.tensor(target)
    delta = torch.zeros(lm.arch.width, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=objective.lr)
    seen: dict[str, Tensor] = {}
    memit = objective.seam == "block"

    def shift(_module: nn.Module, _args: object, output: Any) -> Any:
        hidden = first_output(output)
        seen.setdefault("start", hidden[0, at[0]].detach())
        moved = hidden.index_put((each, at), hidden[each, at] + delta)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        seen["last"] = first_output(output)

    edited = lm.arch.block(objective.layer) if memit else lm.arch.mlp_of(objective.layer)
    handles = [lm.module(edited).register_forward_hook(shift)]
    handles += [lm.module(lm.arch.block(lm.arch.layers - 1)).register_forward_hook(keep)] if memit else []
    for step in range(objective.steps):
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        decoded = _decoded(lm, seen["last"][:-1]) if memit else logits[:-1]
        nll = functional.nll_loss(decoded.log_softmax(-1).flatten(0, 1), labels.flatten(), ignore_index=-100)
        edited_p, norm = logits[-1, at[-1]].log_softmax(-1), seen["start"].norm()
        kl = (edited_p.exp() * (edited_p - seen.setdefault("reference", edited_p.detach()))).sum()
        loss = nll + objective.kl_factor * kl + objective.weight_decay * delta.norm() / norm**2
        if loss < objective.threshold or step == objective.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, float(objective.clamp * norm / delta.norm()))
    for handle in handles:
        handle.remove()
    return seen["start"], delta.detach()


def _decoded(lm: LM, hidden: Tensor) -> Tensor:
    """The logits of all positions, from what leaves the last block."""
    normed: Tensor = lm.module(lm.arch.norm)(hidden) if lm.arch.norm else hidden
    logits: Tensor = lm.module(lm.arch.head)(normed)
    return logits


def plain_rome(lm: LM, editor: Rome, edit: Edit, prior: Unedited) -> Patch:
    """One ROME edit with the plain loop."""
    (layer,) = editor.edited_layers(lm)
    start, delta = plain_value(lm, edit, prior.contexts, editor.objective(layer))
    mean, _ = read_keys(lm, [edit], layer, templates=prior.contexts, fact_token=editor.fact_token)
    key, output = read_keys(lm, [edit], layer, templates=("{}",), fact_token=editor.fact_token, outputs=True)
    (change,) = rank_one_changes(
        update_direction(mean, prior.moments[layer]), key=key, output=output, value=(start + delta)[None]
    )
    return Patch({lm.down(layer): change})


def values(lm: LM, run: Run) -> None:
    """The value optimisation of ROME and MEMIT, of many edits at once and of one alone; deltas must agree.

    Where a loss has all but vanished, Adam's steps are those of rounding: the largest difference of an edit is told
    beside the median.
    """
    edits = edits_of(run.edits or 32, run.data_dir)
    for name in ("rome", "memit"):
        steps = {"v_steps": run.steps} if run.steps else {}
        editor = compose(name).build(lm, steps, seed=0)
        assert isinstance(editor, LocateThenEdit)
        objective = editor.objective(editor.edited_layers(lm)[-1])
        _values(lm, run, edits, name=name, templates=sample_templates(lm, editor.kind, 0), objective=objective)


def _values(
    lm: LM, run: Run, edits: Sequence[Edit], *, name: str, templates: Sequence[str], objective: Objective
) -> None:
    """The values of one method's objective."""
    together: list[Tensor] = []
    found: list[Tensor] = []

    def plain() -> None:
        found[:] = [plain_value(lm, edit, templates, objective)[1] for edit in edits]

    def side_by_side() -> None:
        together[:] = optimise(lm, edits, templates, objective=objective).delta

    def alone() -> None:
        with values_from(ValueCache(None)):
            for edit in edits:
                optimise(lm, [edit], templates, objective=objective)

    label = f"values: {len(edits)} {name} edits of at most {objective.steps} steps"
    each_of(label, {"side by side": side_by_side, "one by one": alone}, plain, run)
    deltas = torch.stack(together)
    apart = (deltas - torch.stack(found)).norm(dim=1) / deltas.norm(dim=1)
    print(f"values: relative difference of deltas to the plain loop: median {apart.median():.1e}, {apart.max():.1e}")


def isolated(lm: LM, run: Run) -> None:
    """Records edited and scored with their probes side by side, against one at a time: edit, hold, score, restore."""
    edits, editor, model = edits_of(run.edits or 50), rome(lm, run), EditedLM(lm, 32)
    (layer,) = editor.edited_layers(lm)
    prior = editor.prior(lm, None, (layer,))
    task, *singles = (probability_task(lm, some) for some in [edits, *([edit] for edit in edits)])
    side_by_side: list[Measured] = []
    one_by_one: list[Measured] = []

    def ours() -> None:
        patches = [Patch({lm.down(layer): change}) for change in editor.changes(lm, edits, layer, prior=prior)]
        with hold(model, Stop(len(edits), patches), ids=[e.id for e in edits], mode="isolated", own=[task.name]):
            side_by_side[:] = [measure_task(model, task, limit=None)]

    def plain() -> None:
        one_by_one.clear()
        for edit, single in zip(edits, singles, strict=True):
            with model.holding(plain_rome(lm, editor, edit, prior)):
                one_by_one.append(measure_task(model, single, limit=None))

    pairs(f"isolated: {len(edits)} records edited and scored, plain", ours, plain, run)
    worst = max(
        _apart(side_by_side[0], of_cases(task, {edit.id}) or [], one)
        for edit, one in zip(edits, one_by_one, strict=True)
    )
    print(f"isolated: largest difference of what a document contributes to a metric {worst:.1e}")


def _apart(together: Measured, places: Sequence[int], alone: Measured) -> float:
    """The largest difference of what the documents of one record, found at some places, contribute to any metric."""
    return max(
        abs(
            together.values[metric][f"{name.rpartition('/')[0]}/{places[int(name.rpartition('/')[2])]}"].num - value.num
        )
        for metric, rows in alone.values.items()
        for name, value in rows.items()
    )


def probability_task(lm: LM, edits: Sequence[Edit]) -> tasks.Task:
    """The shipped CounterFact probes of some edits."""
    found = tasks.load_suite(
        [], edit_set="counterfact", records=[e.id for e in edits], data_dir="mini", tokenizer=lm.tokenizer
    ).tasks
    return next(task for task in found if task.name == "counterfact_probability")


def moments(lm: LM, run: Run) -> None:
    """Second moments of up to five layers in one pass that ends early, against one whole pass a layer."""
    layers = list(range(min(5, lm.arch.layers)))
    texts = list(plain_text.read_documents(lm.text))[: run.edits or 200]
    found: dict[int, Tensor] = {}
    ours = {layer: moment.matrix for layer, moment in second_moments.accumulate_moments(lm, layers, texts).items()}

    def plain() -> None:
        found.update({layer: plain_moment(lm, layer, texts) for layer in layers})

    label = f"moments: {len(layers)} layers in one pass"
    pairs(f"{label}, plain", lambda: second_moments.accumulate_moments(lm, layers, texts), plain, run)
    worst = max(float((ours[i] - found[i]).norm() / ours[i].norm()) for i in layers)
    print(f"moments: largest relative difference to the plain sum {worst:.1e}")
    alone = lambda: [second_moments.accumulate_moments(lm, [layer], texts) for layer in layers]  # noqa: E731
    pairs(f"{label}, one layer at a time", lambda: second_moments.accumulate_moments(lm, layers, texts), alone, run)


def plain_moment(lm: LM, layer: int, texts: Sequence[str]) -> Tensor:
    """``sum k k^T / count`` of one layer, ``[f, f]``: a hook, the whole model with its logits, a product a batch."""
    total, count, seen = torch.zeros(lm.arch.inner, lm.arch.inner), 0, []
    handle = lm.module(lm.arch.down_of(layer)).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = sorted((lm.encode(text)[: lm.context] for text in texts), key=len)
    for chunk in row_portions([[len(row)] for row in rows], 4096):
        batch = lm.batch([rows[i] for i in chunk])
        with torch.no_grad():
            lm.model(input_ids=batch.ids, attention_mask=batch.mask)
        k = seen.pop()[batch.mask.bool()]
        total += k.T @ k
        count += len(k)
    handle.remove()
    return total / count


def trace(lm: LM, run: Run) -> None:
    """All restorations of facts side by side, against one forward pass each; all probabilities must agree."""
    settings = replace(tracing.PRESETS["hase"], known="all")
    chosen = tracing.select_facts(lm, edits_of(run.edits or 32), settings)
    ahead = [len(asked.ids) * asked.span[0] for asked in chosen.asked]
    share = sum(ahead) / sum(len(asked.ids) * len(asked.prompt) for asked in chosen.asked)
    print(f"trace: tokens in front of the subject, where nothing is to restore, take {share:.0%} of the plain side")
    cases: list[tuple[Kind, int]] = [("mlp", 1), ("mlp", 5), ("attn", 1), ("block", 1)]
    for kind, window in cases:
        own = replace(settings, kind=kind, window=window)
        ours: list[tracing.Traced] = []
        plain: list[tuple[Tensor, Tensor]] = []

        def together(own: tracing.TraceSettings = own, ours: list[tracing.Traced] = ours) -> None:
            ours[:] = tracing.trace_each(lm, chosen, own)

        def one_by_one(own: tracing.TraceSettings = own, plain: list[tuple[Tensor, Tensor]] = plain) -> None:
            plain[:] = [plain_trace(lm, asked, chosen.sigma, own) for asked in chosen.asked]

        pairs(f"trace: {kind}, window {own.window}, {len(chosen.asked)} facts", together, one_by_one, run)
        worst = [
            max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
            for found, wanted in (([(a.restored, a.removed) for a in ours][i], plain[i]) for i in range(len(ours)))
        ]
        print(f"trace: largest difference of restored probabilities to the plain loop {max(worst):.1e}")


def plain_trace(lm: LM, asked: FactTokens, sigma: float, settings: tracing.TraceSettings) -> tuple[Tensor, Tensor]:
    """Tracing as published: a forward pass of a clean and ten noised rows for each token and layer.

    Returns:
        The restored probabilities, and the share of the clean one that zeros at the subject take: a pass a layer.
    """
    (begin, end), layers, samples = asked.span, lm.arch.layers, settings.samples
    noise = sigma * torch.from_numpy(np.random.RandomState(settings.seed).randn(samples, end - begin, lm.arch.width))
    name = {"mlp": lm.arch.mlp_of, "attn": lm.arch.attn_of, "block": lm.arch.block}[settings.kind]

    def add(_module: nn.Module, _args: object, output: Tensor) -> None:
        output[1:, begin:end] += noise[: len(output) - 1].to(output)

    def probability(rows: int, window: Sequence[int], change: Callable[[Tensor], object]) -> Tensor:
        def put(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            change(output[0] if isinstance(output, tuple) else output)

        batch = lm.batch([asked.ids] * rows)
        handles = [lm.module(name(layer)).register_forward_hook(put) for layer in window]
        handles.append(lm.module(lm.arch.embedding).register_forward_hook(add))
        with torch.no_grad():
            logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        for handle in handles:
            handle.remove()
        log_p = logits[:, len(asked.prompt) - 1 :].log_softmax(-1)
        each: Tensor = log_p[:, range(len(asked.target)), asked.target].double()
        return each.sum(1).exp()

    def restore(token: int) -> Callable[[Tensor], object]:
        return lambda hidden: hidden[1:, token].copy_(hidden[:1, token].expand(samples, -1))

    def zero(hidden: Tensor) -> object:
        return hidden[:, begin:end].zero_()

    windows = [tracing.layer_window(layer, settings.window, layers) for layer in range(layers)]
    places = range(len(asked.prompt))
    restored = [[probability(samples + 1, w, restore(t))[1:].mean() for w in windows] for t in places]
    clean = probability(1, (), zero)
    removed = torch.cat([(clean - probability(1, window, zero)) / clean for window in windows])
    return torch.tensor(restored, dtype=torch.float64), removed


def memory(lm: LM, run: Run) -> None:
    """What a saved ROME edit weighs, and what memory an edit takes at its height, against the model's own."""
    editor, (edit,) = rome(lm, run), edits_of(1)
    prior = editor.edit(lm, [edit]).memory
    # The kernel forgets the greatest resident size when a 5 is written here.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    patch = editor.edit(lm, [edit], prior)
    taken, model = _resident("VmHWM") - before, sum(p.nbytes for p in lm.model.parameters()) / 2**20
    with TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        patch_file.save_patch(patch, lm, path, editor="rome")
        print(f"memory: one ROME edit on disk {path.stat().st_size / 1024:.1f} KiB")
    print(
        f"memory: one ROME edit took {taken:.0f} MiB at its height, {taken / model:.2f} of the model's {model:.0f} MiB"
    )


def _resident(kind: str) -> float:
    """A size of this process in MiB, as Linux tells it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024


def holding(lm: LM, run: Run) -> None:
    """Holding and restoring a patch, against copying the model."""
    from copy import deepcopy

    (patch,) = rome(lm, run).edit_each(lm, edits_of(1))

    def ours() -> None:
        with patched(lm, patch):
            pass

    pairs("holding: a patch, against a deep copy of the model", ours, lambda: deepcopy(lm.model), run)


def hashing(lm: LM, run: Run) -> None:
    """Seeing that a model is bitwise what it was, by a fast hash of every weight, against a sha256 of every weight."""
    state = lm.model.state_dict()
    size = sum(tensor.nbytes for tensor in state.values()) / 2**30

    def ours() -> dict[str, str]:
        return fast_hashes(state)

    def plain() -> dict[str, str]:
        return {name: tensor_sha256(tensor) for name, tensor in state.items()}

    pairs(f"hashing: all of {size:.2f} GB by XXH3, against sha256", ours, plain, run)
    print(f"    seconds a GB: {seconds(ours, run) / size:.3f}, sha256 {seconds(plain, run) / size:.3f}")


def canonical(lm: LM, run: Run) -> None:
    """All of a canonical set as its evaluation reads it, batched by length, against single rows as released."""
    rows: list[tuple[str, str]] = []
    for name in SETS:
        found = CanonicalSet.at(TASKS / "canonical" / name)
        for kind in ("evaluation", "hard_negatives"):
            held = found.rows(kind, "mini", "test")
            rows += [(row["prefix"], row[key]) for row in held for key in ("suffix", "other") if row.get(key)]

    def ours() -> list[float]:
        encoded = Encoded.of(lm.tokenizer, rows)
        return [value for value, _ in score(lm, [encoded.span(*row) for row in rows])]

    def plain() -> list[float]:
        return [_released(lm, *row) for row in rows]

    worst = max(abs(a - b) for a, b in zip(ours(), plain(), strict=True))
    assert worst < 1e-3, worst
    pairs(f"canonical: {len(rows)} continuations, against one row at a time", ours, plain, run)


def _released(lm: LM, prefix: str, suffix: str) -> float:
    """One row alone: the log-probabilities of the whole vocabulary at all positions, of which the suffix's count."""
    head = lm.tokenizer(prefix, return_tensors="pt")["input_ids"]
    tail = lm.tokenizer(suffix, return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([head, tail], 1).to(lm.device)
    with torch.no_grad():
        log_p = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float().log_softmax(-1)
    each = log_p.gather(2, ids[:, 1:, None])[0, :, 0]
    mask = torch.arange(1, ids.shape[1], device=ids.device) >= head.shape[1]
    return float((each * mask).sum())


GENERAL = (
    *("dialogue", "NER", "NLI", "reasoning", "SentimentAnalysis", "ClosedDomainQA", "OpenDomainQA", "summarization"),
)
"""The tasks of general ability."""


def against(
    label: str,
    ours: Callable[[EditedLM], Sequence[float]],
    plain: Callable[[HFLM], Sequence[float]],
    *,
    lm: LM,
    run: Run,
    model: EditedLM | None = None,
) -> None:
    """Time the harness and plain lm_eval at each of its batch sizes, of which the fastest counts; numbers must agree.

    Args:
        label: what is printed.
        ours: gives numbers of a task through the harness.
        plain: gives them through plain lm_eval.
        lm: the model.
        run: how often, and at which batch sizes.
        model: the model as the harness wraps it, which remembers what was tried; a new one by default.
    """
    ratios, own, worst = [], [], 0.0
    model = model or EditedLM(lm)
    for _ in range(run.repeat):
        numbers: list[Sequence[float]] = []
        own.append(seconds(partial(_keep, numbers, ours, model), run))
        took = []
        for rows in run.plain_rows:
            other = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=rows)
            took.append(seconds(partial(_keep, numbers, plain, other), run))
        ratios.append(min(took) / own[-1])
        worst = max(worst, *(abs(a - b) for found in numbers[1:] for a, b in zip(numbers[0], found, strict=True)))
    print(
        f"{label:<58} {statistics.median(ratios):6.2f}  (ours {statistics.median(own):.1f} s, plain "
        + ", ".join(f"{t:.1f} s at {rows}" for t, rows in zip(took, run.plain_rows, strict=True))
        + f"; numbers differ by {worst:.0e})",
        flush=True,
    )


def _keep(numbers: list[Sequence[float]], score_: Callable[[Any], Sequence[float]], model: HFLM) -> None:
    numbers.append(score_(model))


def task_against(label: str, task: tasks.Task, lm: LM, run: Run, *, model: EditedLM | None = None) -> None:
    """A task of lm-eval through both, with all that lm-eval does around the model.

    Args:
        label: what is printed.
        task: the task; targets are cut as plain lm_eval needs it, so that both get the same requests.
        lm: the model.
        run: how often, on how many documents, and at which batch sizes.
        model: see :func:`against`.
    """
    load_ = {"tasks": {task.name: task.task}, "groups": {}, "group_map": {}}

    def metrics(model: HFLM) -> Sequence[float]:
        if isinstance(task.task, Tokenized):
            task.task.bind(lm.tokenizer, exact=False)
        found = evaluate(model, load_, limit=run.documents, bootstrap_iters=0)["results"][task.name]
        return [value for _, value in sorted(found.items()) if isinstance(value, float)]

    def ours(model: EditedLM) -> Sequence[float]:
        with model.holding(Patch()):
            return metrics(model)

    against(label, ours, metrics, lm=lm, run=run, model=model)


def general(lm: LM, run: Run) -> None:
    """The tasks of general ability, which share little, against plain lm_eval."""
    model = EditedLM(lm)
    for name in GENERAL:
        suite = tasks.load_suite([name], edit_set=None, records=None, data_dir=run.data_dir, tokenizer=lm.tokenizer)
        task_against(f"general: {name}, {run.documents} documents", suite.tasks[0], lm, run, model=model)


def probes(lm: LM, run: Run) -> None:
    """The probes of edit sets, true and new target after each prompt, against plain lm_eval."""
    for edit_set in ("counterfact", "zsre"):
        records = [edit.id for edit in tasks.read_edits(edit_set, data_dir=run.data_dir)[: run.documents]]
        suite = tasks.load_suite([], edit_set=edit_set, records=records, data_dir=run.data_dir, tokenizer=lm.tokenizer)
        task = next(task for task in suite.tasks if task.name == f"{edit_set}_probability")
        label = f"probes: {task.name}, {len(records)} records"
        task_against(label, task, lm, replace(run, documents=len(task.task.eval_docs)))


def shots(lm: LM, run: Run) -> None:
    """Multiple choice behind five solved examples, answered by letters (MMLU) and by whole answers (ARC)."""
    asked = read_lines(run, "mmlu/test")
    subject = asked[-1]["subject"]
    solved = [row for row in read_lines(run, "mmlu/dev") if row["subject"] == subject]
    stem = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    stem += "".join(f"{_lettered(row)} {'ABCD'[row['answer']]}\n\n" for row in solved)
    rows = [row for row in asked if row["subject"] == subject][: run.documents]
    letters = [(stem + _lettered(row), f" {letter}") for row in rows for letter in "ABCD"]
    pairs_against(f"shots: five-shot MMLU ({subject}), {len(rows)} questions", letters, lm, run)
    five, rows = read_lines(run, "arc_easy/train")[:5], read_lines(run, "arc_easy/test")[: run.documents]
    stem = "".join(f"{_asked(row)} {_answer(row)}\n\n" for row in five)
    said = [(stem + _asked(row), f" {one['text']}") for row in rows for one in row["question"]["choices"]]
    pairs_against(f"shots: five-shot ARC-Easy, {len(rows)} questions", said, lm, run)


def choices(lm: LM, run: Run) -> None:
    """The four answers of a dialogue (MuTual), each as a text behind it."""
    path = Path(run.data_dir) / "general" / "mutual" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[: run.documents]]
    said = [(row["article"], f" {option}") for row in rows for option in row["options"]]
    pairs_against(f"choices: answers of {len(rows)} dialogues", said, lm, run)


def pairs_against(label: str, asked: Sequence[tuple[str, str]], lm: LM, run: Run) -> None:
    """Log-likelihoods of continuations through both."""

    def logliks(model: HFLM) -> Sequence[float]:
        requests = [Instance("loglikelihood", {}, pair, 0, metadata=("t", i, 1)) for i, pair in enumerate(asked)]
        return [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]

    against(label, logliks, logliks, lm=lm, run=run)


def scoring(lm: LM, run: Run) -> None:
    """What memory the harness takes at its height while it scores, against the model's own."""
    path = Path(run.data_dir) / "general" / "mutual" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[: run.documents]]
    whole = [Instance("loglikelihood_rolling", {}, (row["article"] * 4,), 0) for row in rows[:4]]
    said = [Instance("loglikelihood", {}, (row["article"], f" {one}"), 0) for row in rows for one in row["options"]]
    model, size = EditedLM(lm), sum(p.numel() * 4 for p in lm.model.parameters()) / 2**20
    for name, score_ in (
        ("answers of dialogues", lambda: model.loglikelihood(said)),
        ("whole texts", lambda: model.loglikelihood_rolling(whole)),
    ):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        score_()
        taken = _resident("VmHWM") - before
        print(f"scoring: {name} take {taken:.0f} MiB beside {size:.0f} MiB of weights: {1 + taken / size:.2f} of these")


def read_lines(run: Run, name: str) -> list[Any]:
    """Rows of a task of lm-eval, from a folder of the real files."""
    (path,) = (Path(run.data_dir) / "lm_eval").glob(f"{name}*.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _lettered(row: Mapping[str, Any]) -> str:
    said = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"{row['question'].strip()}{said}\nAnswer:"


def _asked(row: Mapping[str, Any]) -> str:
    return f"Question: {row['question']['stem']}\nAnswer:"


def _answer(row: Mapping[str, Any]) -> str:
    return str(next(one["text"] for one in row["question"]["choices"] if one["label"] == row["answerKey"]))


def records(_lm: LM, run: Run) -> None:
    """Saving a run after each task of many stops: what is new is packed, against the whole record each time."""
    stops, names, documents = 20, [f"task{i}" for i in range(8)], run.edits or 300
    values = {metric: {f"t/{i}": Ratio(i / 7, 1.0, str(i // 3)) for i in range(documents)} for metric in "abcd"}

    def saved(packed: PackedTables | None) -> bytes:
        record = Record(id="0" * 16, plan={}, values={})
        with TemporaryDirectory() as folder:
            for stop in range(stops):
                for name in names:
                    assert record.values is not None
                    record.values.setdefault(stop, {})[name] = values
                    write_record(Path(folder) / "r.json", record, small=False, packed=packed)
            return json.dumps(unpack_json(values_path(Path(folder) / "r.json").read_bytes())).encode()

    assert saved({}) == saved(None)
    label = f"records: {stops * len(names)} saves, {documents} documents a task"
    pairs(label, lambda: saved({}), lambda: saved(None), run)


def spectra(lm: LM, run: Run) -> None:
    """What isolated edits do to a matrix: the unedited one decomposed once, each edited one in a small basis."""
    (layer,) = rome(lm, run).edited_layers(lm)
    name, count = lm.down(layer), run.edits or 10
    out, width = lm.matrix(name).shape
    patches = [Patch({name: LowRank(torch.randn(out, 1), 0.01 * torch.randn(1, width))}) for _ in range(count)]

    def ours() -> list[Any]:
        known = Spectra()
        return [describe(lm, patch, known) for patch in patches]

    def plain() -> list[Any]:
        found = []
        for patch in patches:
            before = lm.matrix(name).double()
            after = before + patch.weights[name].dense().double()
            found.append((torch.linalg.svdvals(before), torch.linalg.svdvals(after)))
        return found

    worst = max(
        abs(float(row[name]["condition"]) / float(now.max() / now.min()) - 1)
        for row, (_, now) in zip(ours(), plain(), strict=True)
    )
    pairs(f"spectra: {count} edits of a {out} x {width} matrix", ours, plain, run)
    print(f"spectra: largest relative difference of a condition number {worst:.0e}")


def solves(_lm: LM, run: Run) -> None:
    """The systems of isolated edits at one layer, solved side by side and one at a time; changes must agree."""
    count, width = run.edits or 32, run.width
    keys, residuals = torch.randn(count, width), torch.randn(count, 64)
    matrix = torch.randn(width, width, dtype=torch.float64)
    moment = Moment(matrix @ matrix.T / width + 0.1 * torch.eye(width, dtype=torch.float64), 2 * width)
    solvers = {
        "memit": ridge_solver(SpreadMemory(("{}",), {0: moment}), lam=100.0),
        "alphaedit": NullSpaceRidge(NullSpaceMemory(("{}",), {}), _free(width), 10.0).solver(),
    }
    for name, solve in solvers.items():
        assert isinstance(solve, AdjointSolver)

        def ours(solve: AdjointSolver = solve) -> list[Delta]:
            return solve.side_by_side(0, keys, residuals, sizes=[1] * count)

        def plain(solve: Solver = solve) -> list[Delta]:
            return [solve(0, keys[i : i + 1], residuals[i : i + 1]) for i in range(count)]

        apart = max(_changes_apart(one, other) for one, other in zip(ours(), plain(), strict=True))
        pairs(f"solves: {count} isolated {name} edits, keys of {width}", ours, plain, run)
        print(f"solves: {name}, largest relative difference of a change {apart:.0e}", flush=True)


def updates(_lm: LM, run: Run) -> None:
    """One more operation at one layer: an update of what stands, and a factorisation from nothing."""
    count, width = run.edits or 10, run.width
    basis, matrix = _free(width), torch.randn(width, width, dtype=torch.float64)
    kept = 100 * (matrix @ matrix.T / width + 0.1 * torch.eye(width, dtype=torch.float64))
    earlier, between, keys = (torch.randn(n, width) for n in (width // 8, count, count))
    residuals = torch.randn(count, 64)
    systems: dict[str, Callable[[NullSpaceMemory], NullSpaceRidge]] = {
        "alphaedit": lambda memory: NullSpaceRidge(memory, basis, 10.0),
        "memit+encore": lambda memory: NullSpaceRidge(memory, lambda _layer: None, 10.0, lambda _layer: kept),
    }
    for name, ridge in systems.items():
        first = NullSpaceMemory(("{}",), {}).with_keys({0: earlier})
        begun = ridge(first).caught_up([0]).with_keys({0: between})
        summed = begun.summed_up([0])

        def ours(ridge: Callable[..., NullSpaceRidge] = ridge, begun: NullSpaceMemory = begun) -> Delta:
            return ridge(ridge(begun).caught_up([0])).solver()(0, keys, residuals)

        def plain(ridge: Callable[..., NullSpaceRidge] = ridge, summed: NullSpaceMemory = summed) -> Delta:
            return ridge(summed).solver()(0, keys, residuals)

        apart = _changes_apart(ours(), plain())
        pairs(f"updates: {count} {name} edits after {width // 8}, keys of {width}", ours, plain, run)
        print(f"updates: {name}, relative difference of the change {apart:.0e}", flush=True)


def _free(width: int) -> Callable[[int], Tensor]:
    """A layer's random null space, of four fifths of all directions."""
    basis = torch.linalg.qr(torch.randn(width, 4 * width // 5, dtype=torch.float64)).Q
    return lambda _layer: basis


def _changes_apart(one: Delta, other: Delta) -> float:
    return float((one.dense() - other.dense()).norm() / other.dense().norm())


def crew(_lm: LM, run: Run) -> None:
    """A study of twelve plans by two workers against one; the records must be the same.

    The plans differ in their editors, seeds and limits (``--documents`` and half of it).
    """
    fields = {"model": "mini", "edits": "counterfact", "num_edits": run.edits or 20, "mode": "batch", "seed": [0, 1, 2]}
    study = plan_grid.plans(
        {**fields, "editor": ["ft_l", "memit"], "tasks": ["NLI"], "limit": [max(1, run.documents // 2), run.documents]}
    )[: run.plans]
    _by_crews(f"crew: {len(study)} plans", study, {"one worker": ALONE, "two workers": Crew(2)})


def shards(_lm: LM, run: Run) -> None:
    """Isolated edits of one plan in four shards, made by two workers, against one; the record must be the same."""
    there = len(tasks.read_edits("counterfact", data_dir="mini"))
    count = min(run.edits or 1000, there)
    (plan,) = plan_grid.plans(
        {"model": "mini", "editor": "rome", "settings": {"v_steps": run.steps or 5}, "mode": "isolated"},
        options={"edits": f"counterfact:{count}", "exam": "probability"},
    )
    _by_crews(f"shards: {count} isolated edits", [plan], {"one": ALONE, "four shards, two workers": Crew(2)}, 4)


def _by_crews(label: str, plans: Sequence[Plan], crews: Mapping[str, Crew], shards: int = 1) -> None:
    """Wall time and processor time of all processes of each crew, each in a cache of its own."""
    found, spent = [], []
    for crew_ in crews.values():
        with TemporaryDirectory() as folder, cache_apart():
            options = RunOptions(Path(folder), device="cpu", shards=1 if crew_.here else shards)
            began, used = time.perf_counter(), sum(os.times()[:4])
            records_ = [one.record for one in run_each(plans, options, crew=crew_)]
            spent.append((time.perf_counter() - began, sum(os.times()[:4]) - used))
            found.append({one.id: {**one.to_json(), "cost": []} for one in records_ if one is not None})
    apart = max((_difference(found[0][key], found[1][key]) for key in found[0]), default=0.0)
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == len(plans)
    assert apart < 1e-6
    said = "; ".join(
        f"{name} {wall:.0f} s, {cpu:.0f} s of processors" for name, (wall, cpu) in zip(crews, spent, strict=True)
    )
    ratio, work = spent[0][0] / spent[1][0], spent[0][1] / spent[1][1]
    print(
        f"{label:<58} {ratio:6.2f}  ({said}; numbers differ by {apart:.0e}; {2 * work:.2f} on two cores of its own)",
        flush=True,
    )


def _difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers in the same place of two records; infinite where they are not alike."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return max(map(_difference, one, other), default=0.0)
    return 0.0 if one == other else math.inf


REAL = ("general", "probes", "shots", "choices", "scoring")
"""Measurements on the authors' files, which --data-dir names."""

MEASUREMENTS: dict[str, Callable[[LM, Run], None]] = {
    "adapter": adapter,
    "isolated": isolated,
    "values": values,
    "moments": moments,
    "holding": holding,
    "hashing": hashing,
    "trace": trace,
    "memory": memory,
    "canonical": canonical,
    "general": general,
    "probes": probes,
    "shots": shots,
    "choices": choices,
    "scoring": scoring,
    "records": records,
    "spectra": spectra,
    "solves": solves,
    "updates": updates,
    "crew": crew,
    "shards": shards,
}

if __name__ == "__main__":
    main()
