"""What ``import harness`` offers: the same as the command line, as functions that take and give Python objects.

A model is named (a shipped one, a folder, a Hub repository) or is already in memory; an editor is named or is an
instance; edits are a set's name (``counterfact`` or ``counterfact:50``), a file, or rows in a list. The defaults are
those of the command line. A mistake in a call raises a :class:`harness.errors.UsageError` whose message is one line.

``progress`` is a function of ``(phase, done, total)``; ``total`` is 0 where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from harness.io.nobody import tell_nobody
from harness.io.process import as_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.editing.edit import Edit
    from harness.editing.edited import Edited
    from harness.editing.editor import Editor
    from harness.exam.samples import Sample
    from harness.models.lm import LM
    from harness.reports.auditing import Finding
    from harness.runs.record import Record
    from harness.studies.causal.tracing import TracingStudy as Tracing
    from harness.studies.judging.claims import Claim
    from harness.studies.judging.judges import Judge
    from harness.studies.judging.judging import Judged
    from harness.studies.localization.localize import LocalizationStudy as Localization
    from harness.studies.sweeps.sweep import Sweep
    from harness.studies.sweeps.trial import Trial

__all__ = [
    "audit",
    "durability",
    "edit",
    "evaluate",
    "export",
    "fit",
    "import_records",
    "judge",
    "leaderboard",
    "load",
    "localize",
    "read_records",
    "read_samples",
    "run",
    "sweep",
    "trace",
]

ModelLike: TypeAlias = "str | Path | PreTrainedModel | LM"
"""A shipped model, a folder or a Hub repository by name; or a model in memory."""

EditsLike: TypeAlias = "str | Path | Sequence[Edit | Mapping[str, object]]"
"""A set's ``NAME`` or ``NAME:N``, a file of rows, or the rows or edits themselves."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how much there is."""


def _require_no_tokenizer(model: str | Path, tokenizer: object) -> None:
    if tokenizer is not None:
        from harness.errors import UsageError

        raise UsageError(f"tokenizer: '{model}' is loaded with its own; leave it out, or give a model in memory")


def _require_named(model: ModelLike, dtype: str, **given: object) -> None:
    """See that what says how a model is loaded stands beside one that is loaded.

    Raises:
        UsageError: the model is in memory already, and would stay as it is.
    """
    own = str(getattr(model, "dtype", "")).removeprefix("torch.")
    said = [name for name, value in given.items() if value] + ["dtype"] * (dtype not in ("float32", "auto", own))
    if said and not isinstance(model, str | Path):
        from harness.errors import UsageError

        raise UsageError(
            f"{', '.join(said)}: the model is in memory and stays as it is; leave {'it' if len(said) == 1 else 'them'} "
            "out, or name the model"
        )


# --- models -----------------------------------------------------------------------------------------------------------


@as_before()
def load(
    model: ModelLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: str = "float32",
    device: str | None = None,
    arch: Mapping[str, str] | None = None,
    text: str | None = None,
    model_args: Mapping[str, object] | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
) -> LM:
    """A causal language model with its tokenizer, and the knowledge where its parts are.

    Args:
        model: a shipped model (``mini``), a folder, a GGUF file, or a Hub repository (``owner/name@revision``); or a
            model in memory, which is wrapped as it is, put into evaluation mode, and no longer asks for gradients.
        tokenizer: the fast tokenizer of a model in memory.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64``, or ``auto``, of a model that is loaded.
        device: where a model that is loaded goes; ``auto`` spreads it; by default an accelerator where there is one.
        arch: parts of the architecture named by hand, such as ``{"down": "h.{}.mlp.out"}``.
        text: plain text for second moments: ``mini``, a file, a folder, or a Hub data set.
        model_args: of a model that is loaded, more of what lm-eval's ``--model_args`` takes, such as ``revision``.
        device_map: how a model that is loaded is spread over devices, as transformers takes it: ``auto``, ``balanced``,
            ``sequential``, or modules and their devices, ``disk`` among them.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.

    Returns:
        The model as every other function and every editor takes it.

    Raises:
        ModelError: it cannot be loaded, a weight is not finite, or its parts are not found.
        UsageError: a model in memory came without its tokenizer, or with what says how one is loaded.

    Examples:
        >>> import harness
        >>> lm = harness.load("mini")
        >>> lm.arch.layers
        4
    """
    if isinstance(model, str | Path):
        from harness.models import lm

        _require_no_tokenizer(model, tokenizer)
        return lm.load(
            str(model), dtype=dtype, device=device, names=arch, text=text, args=model_args, device_map=device_map,
            max_memory=max_memory, offload_folder=offload_folder,
        )  # fmt: skip
    from harness.models.in_memory import require_model, wrapped

    require_model(model)
    _require_named(
        model, dtype, model_args=model_args, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder
    )
    return wrapped(model, tokenizer, arch=arch, text=text)


# --- editing ----------------------------------------------------------------------------------------------------------


@contextmanager
def edit(
    model: ModelLike,
    tokenizer: PreTrainedTokenizerBase | None,
    editor: str | Editor,
    edits: EditsLike,
    *,
    settings: Mapping[str, object] | None = None,
    mode: Literal["batch", "sequential"] = "batch",
    seed: int = 0,
    data_dir: str | Path | None = None,
    dtype: str = "float32",
    device: str | None = None,
    arch: Mapping[str, str] | None = None,
    text: str | None = None,
    fitted: str | Path | None = None,
    dequantise_edited: bool = False,
    chat_edits: bool | str = False,
    system_instruction: str | None = None,
) -> Iterator[Edited]:
    """Hold edits in a model; afterwards it is bitwise what it was, also after an exception.

    Args:
        model: any causal language model in memory, or the name of one.
        tokenizer: its fast tokenizer; None for a model that is named.
        editor: a method by name (``memit``, ``rome+prune``, ``path/to/mine.py``), or a configured editor.
        edits: what the model shall say: ``counterfact:10``, a file, or rows such as
            ``{"prompt": "{} lives in", "subject": "Ada", "target": "Rome"}``.
        settings: hyperparameters of a method that is named.
        mode: ``batch``: all edits in one operation; ``sequential``: one on top of the other.
        seed: of everything random in the editor.
        data_dir: where the rows of a set come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        dtype: of a model that is named.
        device: where a model that is named goes.
        arch: parts of the architecture named by hand.
        text: plain text for second moments.
        fitted: the file of what the editor has learned; by default that of :func:`fit` with the same settings.
        dequantise_edited: whether the quantised matrices that the editor writes are plain numbers while the edits hold.
        chat_edits: whether edits are turns of a chat, the prompt of the user and the target of the assistant, by the
            tokenizer's template, or by that of its templates which is named. Questions to the edited model are then
            to be what the template makes of them.
        system_instruction: what the system turn in front of them says.

    Yields:
        The edited model: its ``generate`` and ``log_likelihood`` see all that the editor changed, its ``model`` all
        but a change of the prompt.

    Raises:
        HarnessError: something does not exist or cannot be used.
        RestoreError: the model is not what it was.

    Examples:
        >>> import harness
        >>> fact = {"prompt": "{} is found in", "subject": "West Sisaria", "target": "Minirus"}
        >>> with harness.edit("mini", None, "rome", [fact]) as edited:
        ...     print(edited.generate("West Sisaria is found in", max_new_tokens=2))
         Minirus.
    """
    with ExitStack() as stack:
        with as_before():
            from harness.editing import edited
            from harness.methods.value_cache import ValueCache, values_folder, values_from
            from harness.models.dequantised import dequantised
            from harness.models.in_memory import borrowed
            from harness.runs import handed
            from harness.runs.defaults import rows_for, text_for

            handed.require_editor(editor, settings or {})
            _require_named(model, dtype)
            prompting = handed.turns(chat_edits, system_instruction)
            rows = rows_for(model, data_dir)
            wanted = handed.given_edits(edits, rows)
            if isinstance(model, str | Path):
                read = text_for(model, data_dir, text)
                model, tokenizer = load(model, tokenizer, dtype=dtype, device=device, arch=arch, text=read), None
            lm = stack.enter_context(borrowed(model, tokenizer, arch=arch, text=text))
            if dequantise_edited:
                written = handed.edited_modules(editor, lm, settings=settings or {})
                stack.enter_context(dequantised(lm, written, handed.editor_name(editor)))
            wanted = handed.edits_in_turns(wanted, lm, prompting)
            method = handed.configured_editor(editor, lm, settings=settings or {}, seed=seed, fitted=_text(fitted))
            name = handed.editor_name(editor)
            source = handed.edits_source(edits, rows)
            with values_from(ValueCache(values_folder())):
                holder = stack.enter_context(edited.held(lm, method, name=name, edits=wanted, mode=mode, source=source))
        yield holder  # what the caller does to the process in here is the caller's


@as_before()
def fit(
    editor: str | Editor,
    model: ModelLike = "mini",
    edits: EditsLike = "counterfact",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "train",
    settings: Mapping[str, object] | None = None,
    data_dir: str | Path | None = None,
    text: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
    arch: Mapping[str, str] | None = None,
    model_args: Mapping[str, object] | None = None,
    output: str | Path | None = None,
    dequantise_edited: bool = False,
    chat_edits: bool = False,
) -> Path:
    """Let an editor learn what it needs before its first edit (MEND, MALMEN, RLEdit, REMEDI).

    Args:
        editor: an editor that learns, by name or configured.
        model: the model that it learns to edit.
        edits: what it learns from.
        tokenizer: of a model in memory.
        split: the split of an edit set.
        settings: hyperparameters of an editor that is named.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        text: plain text, for editors that read some.
        seed: of everything random in the editor.
        dtype: of a model that is named.
        device: where a model that is named goes.
        device_map: how a model that is named is spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
        arch: parts of the architecture named by hand.
        model_args: of a model that is named, more of what lm-eval's ``--model_args`` takes.
        output: the file; by default the place in the cache where :func:`run` looks for it.
        dequantise_edited: whether the quantised matrices that it will edit are plain numbers while it learns.
        chat_edits: refused: an editor learns from edits as plain text, and edits in turns by what it learned so.

    Returns:
        The file of what was learned.

    Raises:
        UsageError: the editor does not exist or learns nothing, the file cannot be written, or edits are to be turns.
        HarnessError: something else does not exist or cannot be used.
        RestoreError: the editor left something behind in the model; no file is written.

    Examples:
        >>> import harness
        >>> path = harness.fit("mend", "mini", "counterfact:8", settings={"steps": 2})
        >>> path.suffix
        '.safetensors'
    """
    from harness.runs import fitting, handed
    from harness.runs.defaults import rows_for, text_for

    if chat_edits:
        from harness.errors import UsageError

        raise UsageError(handed.plain_edits("fit"))
    chosen, path = dict(settings or {}), None if output is None else Path(output)
    handed.require_editor_first(editor, model)
    fitting.require_fittable(
        editor, str(model) if isinstance(model, str | Path) else "", settings=chosen, seed=seed, path=path
    )
    rows = fitting.read_training(_edits(edits), rows_for(model, data_dir), split)
    read = text_for(model, data_dir, text)
    with _model(model, tokenizer, arch, read) as (called, held):
        lm = held or load(
            called, dtype=dtype, device=device, arch=arch, text=read, model_args=model_args, device_map=device_map,
            max_memory=max_memory, offload_folder=offload_folder,
        )  # fmt: skip
        return fitting.fit_editor(
            editor, lm, rows, settings=chosen, seed=seed, path=path, dequantise=dequantise_edited
        ).path


# --- runs -------------------------------------------------------------------------------------------------------------


@as_before()
def run(
    model: ModelLike = "mini",
    editor: str | Editor = "none",
    edits: EditsLike | None = None,
    tasks: str | Sequence[str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Mapping[str, object] | None = None,
    num_edits: int | None = None,
    exam: str | Sequence[str] = (),
    include_path: str | Sequence[str] = (),
    split: str = "test",
    mode: str | None = None,
    edit_batch_size: int | None = None,
    cases_at_once: int | None = None,
    eval_at: str = "final",
    data_dir: str | Path | None = None,
    text: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    arch: Mapping[str, str] | None = None,
    fitted: str | Path | None = None,
    order: Literal["file", "random"] = "file",
    stop_on_collapse: bool = False,
    patch: str | Path | None = None,
    known_only: bool = False,
    model_args: Mapping[str, object] | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool | str = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool | None = None,
    gen_kwargs: Mapping[str, object] | None = None,
    enable_thinking: bool | None = None,
    think_end_token: str | int | None = None,
    thinking_budget: int | None = None,
    chat_edits: bool = False,
    predict_only: bool = False,
    dequantise_edited: bool = False,
    backend: Literal["hf", "vllm"] = "hf",
    trust_code: bool = False,
    output: str | Path | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    cache: bool = True,
    save_edits: bool = True,
    log_samples: bool = True,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Record:
    """Edit a model, and measure it before and after.

    Args:
        model: a shipped model, a folder, or a Hub repository; or a model in memory, which stands in the record by its
            class, the name in its configuration and the sha256 of its weights.
        editor: a method by name (``memit``, ``memit+rect``, ``path/to/mine.py``), or a configured editor.
        edits: an edit set (``counterfact``, ``counterfact:50``), a file, or rows; by default ``counterfact:50``,
            and none where ``editor`` is ``none``.
        tasks: what is examined besides the edits: names of tasks and groups, this project's or lm-eval's own, as a
            list or separated by commas.
        tokenizer: of a model in memory.
        settings: hyperparameters of an editor that is named.
        num_edits: how many rows of the edits, from the first; by default all.
        exam: the parts of the edit set's exam that are asked, such as ``probability``; by default all.
        include_path: folders of one's own with YAMLs of tasks and edit sets.
        split: the split of the edit set: ``test`` or ``train``.
        mode: ``isolated``, ``batch`` or ``sequential``; by default the editor's own.
        edit_batch_size: edits of one sequential operation.
        cases_at_once: cases that isolated mode edits together, examines and takes back; None for one.
        eval_at: edit counts to measure at, besides 0: ``10,100,final`` or ``every:10``.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        text: plain text for second moments: ``mini``, a file, a folder, or a Hub data set.
        limit: documents of each task; by default all.
        seed: of everything random.
        dtype: of a model that is named.
        arch: parts of the architecture named by hand.
        fitted: the file of what the editor has learned; by default that of :func:`fit` with the same settings.
        order: in which the edits are made: ``file``, or ``random``, drawn from the seed.
        stop_on_collapse: whether to end where the edited model has collapsed.
        patch: a file of saved edits, which are put back instead of making new ones.
        known_only: whether only the facts that the unedited model knows are edited.
        model_args: of a model that is named, more of what lm-eval's ``--model_args`` takes, such as ``revision``.
        num_fewshot: solved examples in front of each question; by default as many as the task says. This and the
            six below are lm-eval's words.
        apply_chat_template: whether questions are turns of a chat; the name of a template where there are several.
        system_instruction: what the system turn says.
        fewshot_as_multiturn: whether solved examples are turns of their own; by default yes with a chat template.
        gen_kwargs: what is laid over what tasks say of generation, such as ``{"max_gen_toks": 64}``.
        enable_thinking: what the chat template is told of thinking.
        think_end_token: the text, or the number of the token, behind which the answer stands.
        thinking_budget: tokens of a thought at most; then its end is written for the model.
        chat_edits: whether edits are turns of a chat, too: the prompt of the user, the target of the assistant.
        predict_only: whether replies are kept as samples in ``output``, and no metric is computed.
        dequantise_edited: whether the quantised matrices that the editor writes are plain numbers while the run lasts.
        backend: what writes texts: ``hf``, or ``vllm`` of a folder that ``harness apply`` has written.
        trust_code: whether code may run that the patch names by its path; that of ``editor`` is named by the caller.
        output: the folder of the record; by default nothing is kept on disk.
        device: where a model that is named goes; ``auto`` spreads it; by default an accelerator where there is one.
        device_map: how a model that is named is spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
        batch_size: texts of one forward pass at most; ``auto`` for as many as fit.
        cache: whether the numbers of the unedited model may come from the cache.
        save_edits: whether the change goes into the folder of the record, at each stop (not of isolated edits).
        log_samples: whether what was asked and replied goes into the folder of the record, for :func:`read_samples`.
        fresh: whether to start anew where an earlier run of the same plan was stopped.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The record; ``to_frame()`` gives its numbers as a table.

    Raises:
        HarnessError: something does not exist or cannot be used.
        RestoreError: the model is not bitwise what it was; the numbers are void.

    Examples:
        >>> import harness
        >>> record = harness.run("mini", "memit", "counterfact:3", ["NLI"], limit=4)
        >>> record.status
        'complete'
    """
    from harness.editing.patch_file import require_trusted_parts
    from harness.runs import handed, runner
    from harness.runs.defaults import note_rows, rows_for
    from harness.runs.options import RunOptions
    from harness.runs.plan_grid import plans
    from harness.runs.resolve import resolve

    if not isinstance(editor, str):
        handed.require_editor(editor, settings or {})
    _require_named(
        model, dtype, model_args=model_args, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder
    )
    if patch is not None:
        require_trusted_parts(Path(patch), trust_code)
    values: dict[str, object] = {
        "edits": None if edits is None else _edits(edits), "num_edits": num_edits, "split": split,
        "mode": mode, "edit_batch_size": edit_batch_size, "cases_at_once": cases_at_once, "eval_at": eval_at,
        "tasks": tasks, "exam": exam or None, "include_path": include_path or None,
        "data_dir": rows_for(model, data_dir), "text": text,
        "limit": limit, "seed": seed, "dtype": dtype, "arch": dict(arch or {}), "fitted": _text(fitted), "order": order,
        "stop_on_collapse": stop_on_collapse, "known_only": known_only, "patch": _text(patch),
        "model_args": dict(model_args or {}),
        "num_fewshot": num_fewshot, "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction, "fewshot_as_multiturn": fewshot_as_multiturn,
        "gen_kwargs": dict(gen_kwargs or {}), "enable_thinking": enable_thinking, "think_end_token": think_end_token,
        "thinking_budget": thinking_budget, "chat_edits": chat_edits, "predict_only": predict_only,
        "dequantise_edited": dequantise_edited, "backend": backend,
        **handed.editor_fields(editor, settings or {}),
    }  # fmt: skip
    with _model(model, tokenizer, arch, text) as (called, lm), _folder(output) as folder:
        values |= (
            {"model": called} if lm is None else {"model": called, "dtype": str(lm.model.dtype).removeprefix("torch.")}
        )
        (plan,) = plans({}, options=values, where="run")
        rows = None if batch_size == "auto" else batch_size
        note_rows(plan, rows)
        kept = output is not None and save_edits
        given = None if isinstance(editor, str) else editor
        options = RunOptions(
            folder,
            device=device,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
            rows=rows,
            cache=cache,
            save_edits=kept,
            log_samples=output is not None and log_samples,
            fresh=fresh,
            report=progress or tell_nobody,
        )
        return runner.run_plan(resolve(plan, lm=lm, editor=given), options)


@as_before()
def evaluate(
    model: ModelLike,
    tasks: str | Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    patch: str | Path | None = None,
    edits: EditsLike | None = None,
    exam: str | Sequence[str] = (),
    data_dir: str | Path | None = None,
    text: str | None = None,
    limit: int | None = None,
    dtype: str = "float32",
    arch: Mapping[str, str] | None = None,
    trust_code: bool = False,
    output: str | Path | None = None,
    device: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    cache: bool = True,
    progress: Progress | None = None,
) -> Record:
    """Measure a model without editing it: as it is, or with saved edits put back.

    Args:
        model: the unedited model, by name or in memory.
        tasks: names of tasks and groups, this project's or lm-eval's own, as a list or separated by commas.
        tokenizer: of a model in memory.
        patch: a file of saved edits (of :func:`run` with an ``output``, or ``Edited.save``).
        edits: an edit set or rows whose examination is measured too; by default that of the patch, or none.
        exam: the parts of that examination that are asked, such as ``probability``; by default all.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        text: plain text on which the model is read.
        limit: documents of each task; by default all.
        dtype: of a model that is named.
        arch: parts of the architecture named by hand.
        trust_code: whether code may run that the patch names by its path.
        output: the folder of the record; by default nothing is kept on disk.
        device: where a model that is named goes.
        batch_size: texts of one forward pass at most; ``auto`` for as many as fit.
        cache: whether the numbers of the unedited model may come from the cache.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The record; its point 0 is the unedited model.

    Raises:
        HarnessError: something does not exist or cannot be used.

    Examples:
        >>> import harness
        >>> record = harness.evaluate("mini", ["NLI"], limit=4)
        >>> record.tasks(0)["NLI"]["accuracy"]["n"]
        4
    """
    from harness.runs.plan import NO_EDITS

    return run(
        model, "none", NO_EDITS if edits is None else edits, tasks, tokenizer=tokenizer, patch=patch,
        exam=exam, data_dir=data_dir, text=text, limit=limit, dtype=dtype, arch=arch, trust_code=trust_code,
        output=output, device=device, batch_size=batch_size, cache=cache, progress=progress,
    )  # fmt: skip


# --- studies ----------------------------------------------------------------------------------------------------------


@as_before()
def sweep(
    config: str | Path | Mapping[str, object] | Sweep,
    output: str | Path = "sweep",
    *,
    address: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> list[Trial]:
    """Draw configurations, choose on the validation pairs, and train anew on the test pairs (Hewitt et al. 2024).

    Args:
        config: a YAML file, or the fields of :class:`harness.studies.sweeps.sweep.Sweep`.
        output: the folder; what has a record in its ``runs`` is never run again.
        address: the earlier name of ``cluster``.
        workers: trainings at a time; by default one, on a cluster as many as there is room for.
        cluster: ``HOST:PORT`` of a Ray cluster, ``auto`` for this machine's, or ``local`` to start one.
        device: where models go; ``auto`` spreads them; by default an accelerator where there is one.
        device_map: how they are spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
        trust_code: whether code may run that a YAML file names by its path.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The trainings on the validation pairs, then those on the test pairs.

    Raises:
        UsageError: the configuration cannot be read, or a field does not exist or has the wrong type.
        HarnessError: something that it names cannot be used; what was finished stays.

    Examples:
        >>> import harness
        >>> methods = {"full": {"steps": 1, "lr": 1e-5}}
        >>> config = {"tasks": "temporal", "methods": methods, "configurations": 1, "seeds": 1, "balls": 1.0}
        >>> trials = harness.sweep(config)
        >>> trials[0].job.split
        'val'
    """
    from harness.io import files
    from harness.models.placement import Placement
    from harness.runs.crew.cells import crew_of
    from harness.studies.sweeps.sweep import Sweep, run_sweep

    if isinstance(config, str | Path):
        path, config = Path(config), Sweep.read(Path(config))
        config.require_trusted(path, trust_code)
    asked = config if isinstance(config, Sweep) else Sweep.of(config)
    files.require_writable(Path(output))
    crew = crew_of(workers, cluster or address, cpus=asked.cpus, gpus=asked.gpus)
    place = Placement.of(device, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder)
    validated, tested = run_sweep(
        asked, Path(output) / "runs", crew=crew, progress=progress or tell_nobody, device=place
    )
    return [*validated, *tested]


@as_before()
def trace(
    model: ModelLike = "mini",
    edits: EditsLike = "counterfact:200",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    data_dir: str | Path | None = None,
    split: str = "test",
    variant: str = "hase",
    kind: str | Sequence[str] | None = None,
    window: int | Sequence[int] | None = None,
    samples: int | None = None,
    sigma: float | str | None = None,
    seed: int | None = None,
    known: str | None = None,
    new_tokens: int | None = None,
    answer: str | None = None,
    threshold: float | None = None,
    high: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
    arch: Mapping[str, str] | None = None,
    budget: int = 4096,
    output: str | Path = "runs",
    fresh: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> list[Tracing]:
    """Find where a model recalls facts: causal tracing (Meng et al. 2022; Hase et al. 2023).

    Args:
        model: the model.
        edits: the facts: an edit set (its old targets are true), ``known_1000``, a file of facts, or rows.
        tokenizer: of a model in memory.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        split: the split of an edit set.
        variant: published settings, of which the following change what they name: ``hase`` or ``rome``.
        kind: what is restored: ``mlp``, ``attn`` or ``block``, or several; of ``rome`` by default all three.
        window: layers restored together, or several such numbers; by default 5, of ``rome`` 10, of blocks 1.
        samples: noise samples.
        sigma: the noise: a number, ``s3``, ``hase`` or ``rome``.
        seed: of the noise.
        known: which facts: ``continuation``, ``prediction`` or ``all``.
        new_tokens: the length of the continuation in which the answer is looked for.
        answer: what is explained: the true ``object``, or the model's own ``prediction``.
        threshold: the least probability of the answer.
        high: what fractions are of: ``clean`` or ``max``.
        dtype: of a model that is named.
        device: where a model that is named goes.
        device_map: how a model that is named is spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
        arch: parts of the architecture named by hand.
        budget: tokens of one forward pass.
        output: the folder of the records.
        fresh: whether to start anew where an earlier study of the same plan was stopped.
        workers: pieces of work at a time; by default one, on a cluster as many as there is room for.
        cluster: ``HOST:PORT`` of a Ray cluster, ``auto`` for this machine's, or ``local`` to start one.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        A study for each kind and window; its ``record`` holds the averages, its ``traced`` each fact.

    Raises:
        HarnessError: something does not exist or cannot be used; nothing has been traced by then.
        CheckFailed: workers could not trace some facts; what is known of the others is kept.

    Examples:
        >>> import harness
        >>> study, = harness.trace("mini", "counterfact:4", window=1, samples=2)
        >>> study.traced[0].restored.shape[1]
        4
    """
    from harness.models.placement import Placement
    from harness.runs.crew.cells import crew_of
    from harness.runs.defaults import rows_for
    from harness.studies.causal.tracing import TracePlan, run_traces
    from harness.studies.causal.variants import trace_settings

    asked = trace_settings(
        variant, kind, window, samples=samples, sigma=sigma, seed=seed, known=known, new_tokens=new_tokens,
        answer=answer, threshold=threshold, high=high,
    )  # fmt: skip
    name, count = _counted(edits)
    place = Placement.of(device, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder)
    report, crew = progress or tell_nobody, crew_of(workers, cluster)
    with _model(model, tokenizer, arch, None) as (called, lm):
        plans = [
            TracePlan(one, called, name, count, split, rows_for(model, data_dir), dtype, dict(arch or {}))
            for one in asked
        ]
        found = run_traces(
            plans, Path(output), device=place, fresh=fresh, report=report, budget=budget, lm=lm, crew=crew
        )
        return list(found)


@as_before()
def durability(
    model: str | Path = "mini",
    editor: str = "memit",
    edits: str | Path = "counterfact:20",
    *,
    after: str | Sequence[str] = "further=10,finetune=50,int8,int4,reload",
    settings: Mapping[str, object] | None = None,
    split: str = "test",
    exam: Sequence[str] = (),
    mode: str | None = None,
    edit_batch_size: int | None = None,
    data_dir: str | Path | None = None,
    text: str | None = None,
    lr: float | None = None,
    seed: int = 0,
    dtype: str = "float32",
    arch: Mapping[str, str] | None = None,
    fitted: str | Path | None = None,
    output: str | Path = "runs",
    device: str | None = None,
    batch_size: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """See which edits last: the same questions after what the edited model goes through.

    Args:
        model: a shipped model, a folder, or a Hub repository.
        editor: the method, or several joined by ``+``.
        edits: an edit set or a file of rows; ``NAME:N`` follows the first N, and further edits are the rows behind.
        after: what the edited model goes through, each on its own: ``further=K`` edits, ``finetune=N`` steps, ``int8``,
            ``int4``, ``reload`` and ``chat``, as a list or separated by commas.
        settings: hyperparameters that differ from the preset.
        split: the split of the edit set.
        exam: the parts of the edit set's exam that are asked; by default all.
        mode: all edits in one model, in a batch or one after the other; by default as the editor takes them.
        edit_batch_size: edits of one sequential operation.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        text: plain text: what fine-tuning reads, and for second moments.
        lr: the learning rate of fine-tuning; by default 5e-5.
        seed: of everything random.
        dtype: of the model.
        arch: parts of the architecture named by hand.
        fitted: the file of what the editor has learned.
        output: the folder of the record.
        device: where the model goes.
        batch_size: texts of one forward pass at most; by default as many as fit.
        fresh: whether to start anew where an earlier study of the same plan was stopped.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The record as it lies on disk: ``held`` right after the edits, the share that survives ``after`` each treatment
        with its interval or the reason why it is missing, and each ``half_life``.

    Raises:
        HarnessError: the plan cannot be carried out; nothing has been edited by then.
        RestoreError: the model is not bitwise what it was.

    Examples:
        >>> import harness
        >>> record = harness.durability("mini", "ft_m", "counterfact:2", after="reload", exam=["probability"])
        >>> record["after"]["reload"]["survive"]["efficacy"]["value"]
        1.0
    """
    from harness.runs.defaults import rows_for
    from harness.studies.durability.study import DurabilityPlan, run_durability
    from harness.studies.durability.treatments import TrainingSettings, read_treatments

    named, count = _counted(edits)
    treatments = read_treatments(after if isinstance(after, str) else ",".join(after))
    plan = DurabilityPlan(
        tuple(map(str, treatments)), str(model), editor, dict(settings or {}), named, count, split, mode,
        edit_batch_size, tuple(exam), rows_for(model, data_dir), text, TrainingSettings.lr if lr is None else lr, seed,
        dtype, dict(arch or {}), _text(fitted),
    )  # fmt: skip
    report = progress or tell_nobody
    return run_durability(plan, Path(output), device=device, fresh=fresh, rows=batch_size, report=report)


@as_before()
def judge(
    path: str | Path,
    judge: str | Path | LM | Judge,
    *,
    judge_model: str | None = None,
    judge_key: str = "OPENAI_API_KEY",
    timeout: float = 60.0,
    retries: int = 4,
    parallel: int = 4,
    task: str | None = None,
    kind: str | None = None,
    at: int | None = None,
    claims: Sequence[Claim] = (),
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Judged:
    """Let a judge mark the texts beside a record right, wrong or refused, and keep its verdicts beside it.

    Args:
        path: the JSON of a complete record with samples beside it.
        judge: a model by name or from :func:`load`, the address of a server that speaks OpenAI's protocol, or a judge
            of one's own, a child of :class:`harness.studies.judging.judges.Judge`.
        judge_model: which model of a server.
        judge_key: the environment variable that holds the key of a server; it is stored nowhere.
        timeout: seconds that an answer of a server may take.
        retries: how often a server is asked again.
        parallel: how many prompts a server is asked at a time.
        task: judge only texts of this task.
        kind: judge only questions of this kind.
        at: judge only what was written after so many edits.
        claims: labelled claims that the judge is asked too, from ``harness.studies.judging.claims.read_claims``.
        dtype: of a judge that is a model by name.
        device: where it goes.
        batch_size: texts of one forward pass of a judge that is a model; by default as many as fit.
        fresh: whether it is asked again what it has said before.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The record with all verdicts, what this judge said, how many prompts it was asked, and how many texts have no
        verdict.

    Raises:
        DataError: no samples lie beside the record, or none of them is a text with a right answer.
        UsageError: the record is not complete, the judge cannot be had, or it refuses to answer at all.

    Examples:
        >>> import harness
        >>> from pathlib import Path
        >>> record = harness.run("mini", "ft_m", "counterfact:1", exam=["generation"], output="judged")
        >>> path, = Path("judged").glob("*.json")
        >>> harness.judge(path, "mini").missing
        0
    """
    from harness.studies.judging.judges import open_judge, require_server_model
    from harness.studies.judging.judging import Which, judge_record, require_texts

    if isinstance(judge, str | Path):
        require_server_model(str(judge), judge_model)
    which = Which(task, kind, at)
    require_texts(Path(path), which)
    who = open_judge(
        judge, model=judge_model, variable=judge_key, dtype=dtype, device=device, rows=batch_size, timeout=timeout,
        retries=retries, parallel=parallel,
    )  # fmt: skip
    report = progress or tell_nobody
    return judge_record(Path(path), who, which=which, claims=claims, fresh=fresh, report=report)


@as_before()
def localize(
    model: ModelLike = "mini",
    edits: EditsLike = "counterfact",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    facts: int | None = None,
    problems: str | Sequence[str] = "all",
    methods: str | Sequence[str] = ("ft_l@1", "ft_l@5", "rome@1", "memit@5"),
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    trace_window: int = 5,
    sigma: float | str | None = None,
    samples: int = 10,
    forcing_samples: int = 10,
    released: str | Sequence[str] = (),
    essence: bool = True,
    split: str = "test",
    data_dir: str | Path | None = None,
    text: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[object, object] | None = None,
    offload_folder: str | Path | None = None,
    arch: Mapping[str, str] | None = None,
    dequantise_edited: bool = False,
    output: str | Path = "runs",
    fresh: bool = False,
    only_done: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Localization:
    """Edit every layer, and see whether tracing tells which (Hase et al. 2023).

    Args:
        model: the model.
        edits: an edit set, a file or rows; ``NAME:N`` looks at the first N.
        tokenizer: of a model in memory.
        facts: how many of the facts that the model knows; by default all.
        problems: ``all``, or some of ``error_injection``, ``tracing_reversal``, ``fact_erasure``,
            ``fact_amplification`` and ``fact_forcing``, as a list or separated by commas.
        methods: editors, each with the number of layers that it edits together, as a list or separated by commas.
        layers: the layers that are edited; by default all.
        settings: hyperparameters, ``field`` or ``editor.field``.
        trace_window: layers that tracing restores together.
        sigma: the noise: a number, ``s3``, ``hase`` or ``rome``; by default ``hase``.
        samples: noise samples of tracing.
        forcing_samples: noises that fine-tuning forces.
        released: what the paper's program does otherwise than its text: some of ``reversal``, ``threshold``,
            ``probes``, ``noise_at``, ``noise_rows``, ``perplexity`` and ``high``, or ``all``.
        essence: whether texts about the subject are scored.
        split: the split of the edit set.
        data_dir: where the rows come from: ``mini``, a folder, or ``hub``; by default ``mini`` for a
            shipped model and ``hub`` for another.
        text: plain text for second moments.
        seed: of the editors and of the texts about subjects.
        dtype: of a model that is named.
        device: where a model that is named goes.
        device_map: how a model that is named is spread over devices instead, as transformers takes it.
        max_memory: what each of these devices holds at most, such as ``{0: "10GiB", "cpu": "30GiB"}``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
        arch: parts of the architecture named by hand.
        dequantise_edited: whether the quantised matrices that an editor writes are plain numbers meanwhile.
        output: the folder of the study.
        fresh: whether to start anew where an earlier run of the same study was stopped.
        only_done: whether to run nothing, and give what an earlier run came to.
        workers: pieces of work at a time; by default one, on a cluster as many as there is room for.
        cluster: ``HOST:PORT`` of a Ray cluster, ``auto`` for this machine's, or ``local`` to start one.
        progress: told what is done, how far it is, and how much there is.

    Returns:
        The study; :func:`harness.studies.localization.localize_report.write_report` makes its tables and figures.

    Raises:
        HarnessError: something does not exist or cannot be used; what was done stays.
        CheckFailed: workers could not do some cells of the grid; the others are done.
        RestoreError: the model is not bitwise what it was.

    Examples:
        >>> import harness
        >>> study = harness.localize(
        ...     "mini", "counterfact:9", facts=3, problems="error_injection", methods="rome@1", layers=[1],
        ...     essence=False, samples=2, forcing_samples=1,
        ... )
        >>> study.complete
        True
    """
    from harness.models.placement import Placement
    from harness.runs.crew.cells import crew_of
    from harness.runs.defaults import rows_for, text_for
    from harness.studies.localization import localize as study
    from harness.studies.localization.grid_options import grid

    name, count = _counted(edits)
    place = Placement.of(device, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder)
    with _model(model, tokenizer, arch, text) as (called, lm):
        asked = grid(
            called, name, count, facts=facts, problems=problems, methods=methods, layers=layers, settings=settings,
            trace_window=trace_window, sigma=sigma, samples=samples, forcing_samples=forcing_samples,
            released=released, essence=essence, split=split, data_dir=rows_for(model, data_dir),
            text=text_for(model, data_dir, text), seed=seed,
            dtype=dtype, arch=arch, dequantise_edited=dequantise_edited,
        )  # fmt: skip
        if only_done:
            return study.open_study(asked, Path(output))
        report, crew = progress or tell_nobody, crew_of(workers, cluster)
        return study.run_grid(asked, Path(output), device=place, fresh=fresh, report=report, lm=lm, crew=crew)


# --- records ----------------------------------------------------------------------------------------------------------


@as_before()
def read_records(path: str | Path, *, values: bool = False) -> list[Record]:
    """The records in a file, or in a folder and its ``records`` folder, in the order of their names.

    Args:
        path: the JSON of a run, or a folder; other files in it are passed over.
        values: whether to read what every document contributed, too; paired statistics need it.

    Returns:
        The records, at least one.

    Raises:
        DataError: there is no such place, it holds no record, or one of its records cannot be read.

    Examples:
        >>> import harness
        >>> kept = harness.run("mini", "memit", "counterfact:3", output="runs")
        >>> [record.id for record in harness.read_records("runs")] == [kept.id]
        True
    """
    from harness.runs import record_file

    return record_file.read_records(path, values)


@as_before()
def read_samples(
    path: str | Path, *, changed: bool = False, task: str | None = None, kind: str | None = None
) -> list[Sample]:
    """What a run asked, and what the model replied before and after editing, in the order in which it was measured.

    Args:
        path: the JSON of a run with samples beside it, or the file of samples.
        changed: whether only those are wanted to which the edited model replies something else.
        task: only those of this task, or of the edit set of this name.
        kind: only questions of this kind, such as ``paraphrase``.

    Returns:
        The samples.

    Raises:
        DataError: no samples lie beside the record, or the file is not what a run writes.

    Examples:
        >>> import harness
        >>> from pathlib import Path
        >>> kept = harness.run("mini", "rome", "counterfact:2", exam="generation", output="runs")
        >>> (record,) = Path("runs").glob("*.json")
        >>> sample, *others = harness.read_samples(record, kind="rewrite")
        >>> sample.after.text.strip().startswith(sample.target)
        True
    """
    from harness.runs.sample_file import chosen_samples

    return list(chosen_samples(path, changed=changed, task=task, kind=kind))


@as_before()
def leaderboard(
    records: str | Path | Sequence[Record], format: str = "md", *, published: str | Path | None = None
) -> str:
    """A table of records: a row for each editor, a column for each task; of a sweep, the paper's tables.

    Args:
        records: records, or the folder that holds them; those of a sweep are read from the folder, its ``runs``, or
            the ``runs`` of its folders. Also the tables of :func:`export` (``csv`` or ``parquet``), and a folder of
            submissions (``harness submit``).
        format: ``md``, ``csv``, ``html``, ``json`` or ``latex``.
        published: a table of values of papers, which stand in columns of their own beside the rows that they belong to.

    Returns:
        The text of the table.

    Raises:
        UsageError: there is no such format.
        DataError: the folder holds no record, one that cannot be read, or one whose numbers are not those that its
            documents give.

    Examples:
        >>> import harness
        >>> kept = harness.run("mini", "memit", "counterfact:3")
        >>> harness.leaderboard([kept], "csv").count("memit") > 0
        True
    """
    from harness.reports.leaderboard import leaderboard_page, shown_and_headline
    from harness.reports.published_values import read_published_values
    from harness.reports.registry import find_format
    from harness.reports.tables_file import records_at
    from harness.runs import record_file
    from harness.runs.ties import require_one_each, require_tied
    from harness.studies.sweeps.trial_paths import trial_paths

    form = find_format(format)
    beside = [] if published is None else read_published_values(Path(published))
    if not isinstance(records, str | Path):
        return form.write([leaderboard_page(records, beside)])
    pages = []
    if trial_paths(Path(records)):
        from harness.studies.sweeps import sweep_tables, trial

        pages.append(sweep_tables.sweep_page(trial.read_trials(Path(records))))
    if not pages or record_file.record_paths(records):
        kept = records_at(records)
        require_one_each(kept, records)
        require_tied(kept, shown_and_headline, intervals=False)
        pages.insert(0, leaderboard_page(kept, beside))
    return form.write(pages)


@as_before()
def export(
    records: str | Path | Record | Sequence[str | Path | Record],
    to: str | Path,
    *,
    format: str,
    documents: str = "shown",
    hub: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write records for others' tools: all files or, where something is wrong, none.

    Args:
        records: records, files or folders that hold some, or tables that were exported before.
        to: the folder; files of the same names in it are replaced, others stay.
        format: ``csv``, ``parquet`` (three tidy tables), ``eee`` (Every Eval Ever 0.3.0), ``lm-eval`` (its result
            files) or ``hf`` (``.eval_results`` of a model's page on the Hub).
        documents: whose single documents are written: ``shown``, of the metrics that a leaderboard shows, ``all``, or
            ``none``. Formats that have a place for it get what was asked and replied, from samples beside a record.
        hub: task -> the data set on the Hub that its rows are of, ``OWNER/NAME`` or ``OWNER/NAME:TASK``.

    Returns:
        The files.

    Raises:
        UsageError: there is no such format, or nothing can be written there.
        DataError: there is no record, one that cannot be read, or one whose numbers are not those that its documents
            give; or two records claim one id.

    Examples:
        >>> import harness
        >>> kept = harness.run("mini", "memit", "counterfact:3")
        >>> [path.name for path in harness.export(kept, "tables", format="csv")]
        ['documents.csv', 'records.csv', 'values.csv']
    """
    import time

    from harness.reports.export import ExportRequest, export_records, find_export
    from harness.reports.leaderboard import shown_and_headline
    from harness.reports.tables_file import records_at, samples_at
    from harness.reports.tidy import require_documents
    from harness.runs.record import Record
    from harness.runs.ties import require_tied

    find_export(format)
    chosen = require_documents(documents)
    given = [records] if isinstance(records, str | Path | Record) else records
    samples = {} if chosen == "none" else {
        name: path for item in given if not isinstance(item, Record) for name, path in samples_at(item).items()
    }  # fmt: skip
    asked = ExportRequest(int(time.time()), chosen, dict(hub or {}), samples)
    kept = [one for item in given for one in ([item] if isinstance(item, Record) else records_at(item))]
    require_tied(kept, shown_and_headline, intervals=False)
    return export_records(kept, format, to=Path(to), asked=asked)


# --- what others published --------------------------------------------------------------------------------------------


@as_before()
def import_records(
    format: str,
    path: str | Path,
    *,
    output: str | Path | None = None,
    model: str | None = None,
    editor: str | None = None,
    edits: str | None = None,
    num_edits: int | None = None,
    mode: str | None = None,
    repository: str | None = None,
    commit: str | None = None,
    licence: str | None = None,
    unedited: str | Path | None = None,
) -> list[Record]:
    """Records of the result files of other programs, marked as published and not run here.

    Args:
        format: ``halluedit``, ``easyedit``, ``rome``, ``nas``, ``ultraedit`` or ``lm-eval``.
        path: a file or a folder of results.
        output: the folder where the records are written, too; by default nothing is kept on disk.
        model: the model that was edited, where the files do not say it; likewise the others.
        editor: the method, as its authors call it.
        edits: what was edited.
        num_edits: how many edits were made.
        mode: how edits were made: ``isolated``, ``batch`` or ``sequential``.
        repository: where the files are published, ``owner/name``.
        commit: of that repository.
        licence: of the files.
        unedited: the same files of the unedited model.

    Returns:
        The records, at least one.

    Raises:
        UsageError: there is no such format, or the folder cannot be written to.
        DataError: the files are cut, of another version, or of mixed runs; or two records claim one id with other
            numbers.

    Examples:
        >>> import json, pathlib
        >>> import harness
        >>> bits = {"edit": 1, "rephrase": 1, "yes": 1, "no": 0, "mc": 1, "reversed": 0}
        >>> row = {"topic": "art", "editor": "ROME", "case_id": 0, "pre": bits, "post": {**bits, "locality": 1}}
        >>> path = pathlib.Path("halluedit_percase_llama_2_7b_chat_hf.jsonl")
        >>> _ = path.write_text(json.dumps(row))
        >>> harness.import_records("halluedit", path)[0].published["label"]
        'published, not run here'
    """
    from harness.reports.importing import Told, keep_published, read_published

    told = Told(
        model=model, editor=editor, edit_set=edits, num_edits=num_edits, mode=mode, repository=repository,
        commit=commit, licence=licence, unedited=None if unedited is None else Path(unedited),
    )  # fmt: skip
    found = read_published(format, Path(path), told)
    if output is not None:
        keep_published(found, Path(output))
    return found


@as_before()
def audit(
    path: str | Path,
    *,
    format: str | None = None,
    model: str | None = None,
    editor: str | None = None,
    edits: str | None = None,
    num_edits: int | None = None,
    mode: str | None = None,
    repository: str | None = None,
    commit: str | None = None,
    licence: str | None = None,
    unedited: str | Path | None = None,
) -> list[Finding]:
    r"""What our checks say of result files, of records, or of a table of published values.

    Args:
        path: a file or a folder.
        format: of result files, as :func:`import_records` takes it; by default it is seen from their names.
        model: the model that was edited, where result files do not say it; likewise the others.
        editor: the method, as its authors call it.
        edits: what was edited.
        num_edits: how many edits were made.
        mode: how edits were made: ``isolated``, ``batch`` or ``sequential``.
        repository: where the files are published, ``owner/name``.
        commit: of that repository.
        licence: of the files.
        unedited: the same files of the unedited model.

    Returns:
        The findings, none where there is nothing to say.

    Raises:
        DataError: there is nothing that can be looked at.

    Examples:
        >>> import pathlib
        >>> import harness
        >>> path = pathlib.Path("values.csv")
        >>> _ = path.write_text("paper,model,data,method,metric,value\nA,gpt2,zsRE,ROME,efficacy,99.8\n")
        >>> [finding.check for finding in harness.audit(path)]
        ['n', 'seeds', 'quoted']
    """
    from harness.reports.auditing import audit_path
    from harness.reports.importing import Told

    told = Told(
        model=model, editor=editor, edit_set=edits, num_edits=num_edits, mode=mode, repository=repository,
        commit=commit, licence=licence, unedited=None if unedited is None else Path(unedited),
    )  # fmt: skip
    return audit_path(Path(path), told, format)


# --- what the functions share -----------------------------------------------------------------------------------------


@contextmanager
def _model(
    model: ModelLike, tokenizer: PreTrainedTokenizerBase | None, arch: Mapping[str, str] | None, text: str | None
) -> Iterator[tuple[str, LM | None]]:
    """How a record names a model; and the model itself where it is in memory, for as long as it is used."""
    if isinstance(model, str | Path):
        _require_no_tokenizer(model, tokenizer)
        yield str(model), None
        return
    from harness.models.in_memory import borrowed, named

    with borrowed(model, tokenizer, arch=arch, text=text) as lm:
        yield named(lm), lm


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    """The folder of a record; one that goes with the call where nothing is to be kept."""
    import tempfile

    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        yield Path(folder)


def _edits(edits: EditsLike) -> str:
    """The name of an edit set or file; rows in memory go into a file of the cache that is named by its contents."""
    if isinstance(edits, str | Path):
        return str(edits)
    from harness.exam import own_rows

    return str(own_rows.keep_rows(edits))


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _counted(edits: EditsLike) -> tuple[str, int | None]:
    """The name of an edit set or file, and how many of its rows."""
    from harness.runs.plan import parse_edits

    return parse_edits(_edits(edits))
