"""Finds task files, builds lm-eval tasks from them, and reads the edits that lie in the same folder.

Our tasks are the YAML files under ``tasks/``; any of lm-eval's own may stand beside them. A folder whose
``functions.py`` has ``edits(rows)`` is an edit set.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from harness.editing.edit import Edit, Example, require_distinct
from harness.errors import DataError, HarnessError, UsageError, near
from harness.exam import data, hub_sets, statistics, task_identity
from harness.exam.case_sets import CaseSet
from harness.exam.exam_parts import OWN, exam_parts
from harness.exam.own_cases import asks_probes
from harness.exam.prompting import Prompting
from harness.exam.quiet import quiet_lm_eval
from harness.exam.task_code import yamls_of
from harness.exam.task_identity import of_task, rows_sha256

__all__ = [
    "BELIEF",
    "OWN",
    "OWN_CASES",
    "Suite",
    "Task",
    "catalogue",
    "edit_sets",
    "load_suite",
    "own_folders",
    "read_edits",
    "read_examples",
    "require_names",
    "require_own_documents",
    "templates_once",
    "values_of",
]

BELIEF = "belief"
"""The task that asks about the edits of whatever set is edited."""
OWN_CASES = "own_cases"
"""The task that asks what the fields of flat rows do not say; it stands beside the others where a file has such."""

Item = TypeVar("Item", Edit, Example)

_DECLARED = re.compile(rb"^[ \t-]*[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([\w.-]+)", re.MULTILINE)
"""What a line of a YAML file calls a task, a group or a tag."""


_NO_FUNCTION = re.compile(r"Module '(.+\.py)' has no function '([^']+)'")
"""What lm-eval says of a misspelt ``!function``."""


@functools.lru_cache(maxsize=256)
def _template_of(text: str) -> Any:
    """lm-eval's template of a text."""
    return type(lm_eval.utils.env).from_string(lm_eval.utils.env, text)


@contextmanager
def templates_once() -> Iterator[None]:
    """Let lm-eval compile each template of a task once, and not anew for every document."""
    environment = lm_eval.utils.env
    own = vars(environment).get("from_string")
    environment.from_string = _template_of
    try:
        yield
    finally:
        if own is None:
            del environment.from_string
        else:
            environment.from_string = own


@dataclass(frozen=True, eq=False)
class Task:
    """One lm-eval task of a suite.

    Attributes:
        name: lm-eval's name.
        shown: the name under which its numbers are reported; the members of an edit set share one.
        task: lm-eval's object.
        identity: the sha256 of what its YAML says and of its rows, see :mod:`harness.exam.task_identity`.
        file: which file of a data folder its rows come from, where it reads a data set of the Hub.
    """

    name: str
    shown: str
    task: Any
    identity: str
    file: data.Provenance | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of its YAML."""
        return self.task.config.metadata or {}

    @property
    def folder(self) -> Path | None:
        """The folder of its files; None where they are not this project's."""
        source = self.metadata.get("config_source")
        return Path(source).parent if source and Path(source).is_relative_to(data.TASKS) else None

    @property
    def headline(self) -> str | None:
        """The metric that a table shows first, as a record names it; of several filters that of the first."""
        named = self.metadata.get("headline")
        if named is not None:
            return self._recorded(str(named))[0]
        known = list(self.task.aggregation())
        usual = (metric for metric in ("acc_norm", "exact_match", "acc", "bits_per_byte") if metric in known)
        first = next(usual, known[0] if known else None)
        return None if first is None else self._recorded(first)[0]

    @property
    def shown_beside(self) -> list[str]:
        """What a table shows besides the usual metrics: what the YAML names, and the perplexity of whole texts."""
        usual = [m for m in ("word_perplexity",) if m in self.task.aggregation()]
        return [name for metric in self.metadata.get("shown") or usual for name in self._recorded(str(metric))]

    def _recorded(self, metric: str) -> list[str]:
        """What a record calls a metric: a name for each filter of the answers, where those have names."""
        if metric not in self.task.aggregation():
            return [metric]
        filters = [one.name for one in getattr(self.task, "_filters", ())] or ["none"]
        return [metric if name == "none" else f"{metric},{name}" for name in filters]

    @property
    def known_metrics(self) -> list[str]:
        """Every metric that it can have, whatever its documents ask: of a language that of the questions in it, too."""
        own = list(self.task.aggregation())
        beside = (self.metadata.get(key) or {} for key in ("agreement", "compared", "derived", "needs"))
        named = (*own, *getattr(self.task, "declared", ()), *(name for said in beside for name in said))
        return list(dict.fromkeys([*named, *(name for metric in own for name in self._recorded(metric))]))

    @property
    def directions(self) -> dict[str, bool | None]:
        """Whether higher is better, by metric; None where the task does not say."""
        return {str(k): None if v is None else bool(v) for k, v in self.task.higher_is_better().items()}

    def per_document(self, metric: str) -> bool:
        """Whether the metric is a plain mean or a ratio of sums over documents, so that an interval can be had."""
        function = self.task.aggregation().get(metric)
        return (
            function is None
            or function is mean
            or getattr(function, "__name__", "") in ("aggregate", "mean", "nanmean", "bits_per_byte")
        )

    def contribution(self, metric: str, value: Any) -> statistics.Ratio:
        """What a document contributes to a metric, from what lm-eval keeps of it.

        Args:
            metric: a metric that is per document.
            value: a number, a ratio, or the log-likelihood of a text and its bytes.
        """
        if getattr(self.task.aggregation().get(metric), "__name__", "") == "bits_per_byte":
            likelihood, size = value
            return statistics.Ratio(-likelihood / math.log(2), size)
        return statistics.as_ratio(_plain(value))


@dataclass(frozen=True, eq=False)
class Suite:
    """The tasks of a run, in the order asked for, without repetition.

    Attributes:
        tasks: what is asked.
        left_out: the identities of the tasks of the edit set's exam that are not asked, by lm-eval's name.
    """

    tasks: Sequence[Task]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> list[str]:
        """The reported names, in order."""
        return list(dict.fromkeys(task.shown for task in self.tasks))

    def of(self, edit_set: str | None) -> list[Task]:
        """The tasks whose documents are about the edits of a set."""
        about = [task for task in self.tasks if edit_set in (task.shown, task.metadata.get("source"))]
        return [] if edit_set is None else about

    def spread(self, edit_set: str | None) -> list[str]:
        """The reported names of tasks whose documents belong to no edit; isolated edits take turns on them.

        Raises:
            UsageError: documents of a task are about the edits of another set.
        """
        mine, found = self.of(edit_set), []
        for task in (task for task in self.tasks if task not in mine):
            rows = task.task.eval_docs
            fields = set(rows[0]) if len(rows) else set()
            if "case" in fields and "edit" not in fields:
                raise UsageError(
                    f"task '{task.name}' asks about edits of another set than {edit_set}, so no single edit belongs to "
                    "its documents; use --mode batch, leave the task out, or give its documents a field 'edit'"
                )
            found += [] if "edit" in fields else [task.shown]
        return list(dict.fromkeys(found))


def catalogue() -> dict[str, str]:
    """The names of this project's tasks and groups, each with what it is: ``task``, ``group`` or ``edits``."""
    manager = _manager({})
    sets = [*edit_sets(), OWN]
    members = {OWN_CASES, *(m for name in sets for m in _members(manager, name))}
    kinds = dict.fromkeys(manager.all_subtasks, "task") | dict.fromkeys(manager.all_groups, "group")
    return {n: "edits" if n in sets else kind for n, kind in sorted(kinds.items()) if n not in {*members, OWN}}


def edit_sets(include: Sequence[str] = ()) -> list[str]:
    """The names of the data sets that say what to edit; of folders of one's own too."""
    known = data.find_datasets(include=include)
    return sorted(name for name, found in known.items() if found.cases or hasattr(data.functions(found), "edits"))


def read_edits(
    name: str, data_dir: str, *, split: str = "test", count: int | None = None, include: Sequence[str] = ()
) -> list[Edit]:
    """The edits of a set, or of one's own JSONL file, in the order of the rows.

    Args:
        name: an edit set (``counterfact``, ``zsre``, ...) or a file of one's own.
        data_dir: where the rows are, as :func:`harness.exam.data.load` takes it.
        split: which rows of the set.
        count: how many cases from the beginning; None is all of them.
        include: folders of one's own with tasks.

    Raises:
        UsageError: there is no such set, or it has fewer rows than asked for.
        DataError: a row cannot be used.
    """
    functions, rows = _rows(name, data_dir, split, count, include)
    found = list(functions.edits(rows, count) if isinstance(functions, CaseSet) else functions.edits(rows))
    return _first(found, found, name, count)


def read_examples(
    name: str, *, data_dir: str, split: str = "train", count: int | None = None, include: Sequence[str] = ()
) -> list[Example]:
    """The edits of a set with their probes, for an editor to learn from.

    Args:
        name: an edit set or a file of one's own.
        data_dir: where the rows are, as :func:`harness.exam.data.load` takes it.
        split: which rows of the set.
        count: how many cases from the beginning; None is all of them.
        include: folders of one's own with tasks.

    Raises:
        UsageError, DataError: as :func:`read_edits`.
    """
    functions, rows = _rows(name, data_dir, split, count, include)
    found = list(functions.examples(rows))
    return _first(found, [example.edit for example in found], name, count)


def _rows(name: str, data_dir: str, split: str, count: int | None, include: Sequence[str]) -> tuple[Any, Any]:
    """What reads an edit set, and its rows; the folder of the edit set ``own`` says how one's own file is read."""
    if name.removesuffix(".gz").removesuffix(".xz").endswith((".jsonl", ".json")) or Path(name).is_file():
        functions: Any = data.module(data.TASKS / "edits" / OWN / "functions.py")
        return functions, functions.rows(Path(name))
    found = data.find_one(name, include=include)
    functions = None if found is None else data.functions(found)
    if found is not None and found.cases and not hasattr(functions, "edits"):
        functions = CaseSet.of(found)
    if not hasattr(functions, "edits"):
        known = edit_sets(include)
        raise UsageError(f"edit set '{name}' does not exist{near(name, known)}; or give a file, for example my.jsonl")
    return functions, functions.source(data_dir, split, count or 0)


def _first(found: list[Item], edits: Sequence[Edit], name: str, count: int | None) -> list[Item]:
    """Those of the first cases, whose edits all have different ids."""
    require_distinct(edits, name)
    cases = list(dict.fromkeys(edit.belongs_to for edit in edits))
    if count is not None and count > len(cases):
        raise UsageError(f"{name}: has {len(cases)} edits, {count} were asked for; ask for fewer, or give more rows")
    wanted = set(cases[:count])
    return [one for one, edit in zip(found, edits, strict=True) if edit.belongs_to in wanted]


def _from_files(names: Iterable[str], include: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tasks for those that are files or folders of YAMLs, and the folders that these are in besides others.

    Raises:
        UsageError: there is no such file, or it names no task.
    """
    found, folders = [], list(include)
    for name in names:
        files = yamls_of(name)
        found += [name] if files is None else [_declared_in(path) for path in files]
        folders += [str(path.parent) for path in files or ()]
    return list(dict.fromkeys(found)), list(dict.fromkeys(folders))


def own_folders(names: Iterable[str], include: Sequence[str] = ()) -> list[str]:
    """The folders of one's own that tasks are in: those that are named, and those of tasks given by their path.

    Args:
        names: tasks and groups.
        include: folders of one's own with tasks.

    Raises:
        UsageError: there is no such file, or it names no task.
    """
    return _from_files(names, include)[1]


def _declared_in(path: Path) -> str:
    """The name of the task or the group of a YAML."""
    said = data.read_yaml(path)
    named = said.get("group") or said.get("task")
    if not isinstance(named, str):
        raise UsageError(f"--tasks {path}: it names no task; give it a line such as 'task: {path.stem}'")
    return named


def require_names(names: Iterable[str], data_dir: str, include: Sequence[str] = ()) -> None:
    """See that tasks and groups exist, this project's, one's own or lm-eval's, without reading their rows.

    Args:
        names: tasks and groups.
        data_dir: where the rows come from.
        include: folders of one's own with tasks.

    Raises:
        UsageError: one does not.
    """
    names, include = _from_files(names, include)
    _manager({"data_dir": data_dir}, names, include)


def load_suite(
    names: Iterable[str],
    *,
    edit_set: str | None,
    records: Sequence[str] | None,
    data_dir: str,
    tokenizer: PreTrainedTokenizerBase,
    own_file: str | None = None,
    split: str = "test",
    exam: Sequence[str] = (),
    include: Sequence[str] = (),
    prompting: Prompting | None = None,
) -> Suite:
    """Build the tasks of a run.

    Args:
        names: tasks and groups, this project's or lm-eval's own.
        edit_set: the set that is edited; it is examined first, and only on the records that are edited.
        records: the ids of those records.
        data_dir: where the rows come from.
        tokenizer: for tasks that count tokens.
        own_file: the user's own rows, where ``edit_set`` is ``own``.
        split: the split of the edit set.
        exam: the parts of the edit set's exam that are asked; none for all of it.
        include: folders of one's own with tasks.
        prompting: how they are put to the model; by default as they say themselves.

    Raises:
        UsageError: a task does not exist.
        DataError: its data cannot be had.
    """
    prompting = prompting or Prompting()
    names, include = _from_files(names, include)
    found: dict[str, Task] = {}
    left_out: dict[str, str] = {}
    if edit_set is not None:
        # A manager hands what it is given to every task it builds; only the edit set is to be cut to edited records.
        about = {"data_dir": data_dir, "records": list(records or ()), "file": own_file, "split": split}
        mine = _manager(about, [edit_set] if include else (), include)
        rows = _rows_of(edit_set, split, data_dir, own_file, include)
        parts = exam_parts(edit_set) if exam else {}
        asked = [parts[name].task for name in exam]
        if edit_set == OWN and own_file is not None and not exam and asks_probes(Path(own_file), records or ()):
            asked = [*_members(mine, OWN), OWN_CASES]
        with data.including(include):
            found |= {t.name: t for t in _build(mine, edit_set, lambda _: rows, asked, prompting)}
        left_out = {
            p.task: _identity_of(mine, p.task, str(rows), prompting) for p in parts.values() if p.task not in found
        }
    others = [name for name in names if name != edit_set]
    manager = _manager({"data_dir": data_dir}, others, include)
    edited = {"records": list(records or ()), "file": own_file, "split": split, "edit_set": edit_set}
    for name in others:
        about = {"data_dir": data_dir, "include": list(include), **edited}
        with data.including(include):
            built = _build(
                _manager(about) if name == BELIEF else manager,
                name,
                lambda shown: _rows_of(shown, "test", data_dir, None, include),
                prompting=prompting,
            )
        found |= {t.name: t for t in built if t.name not in found}
    for task in found.values():
        if hasattr(task.task, "bind"):
            task.task.bind(tokenizer, exact=True)
    return Suite(list(found.values()), left_out)


def require_own_documents(
    names: Iterable[str], *, edit_set: str | None, data_dir: str, include: Sequence[str] = ()
) -> None:
    """See, before a model is loaded, that isolated edits are not asked about those of another set.

    Args:
        names: the tasks and groups that are asked for.
        edit_set: the set that is edited.
        data_dir: where the rows come from.
        include: folders of one's own with tasks.

    Raises:
        UsageError: documents of a task are about the edits of another set.
        DataError: its data cannot be had.
    """
    names, include = _from_files(names, include)
    every = _manager({"data_dir": data_dir}, include=include)
    about = {member: name for name in edit_sets(include) for member in (name, *_members(every, name))}
    others = [name for name in names if about.get(name, edit_set) != edit_set]
    every = _manager({"data_dir": data_dir}, others, include)
    with data.including(include):
        Suite([task for name in others for task in _build(every, name, lambda _: None)]).spread(edit_set)


def _manager(metadata: Mapping[str, Any], names: Iterable[str] = (), include: Sequence[str] = ()) -> TaskManager:
    """A manager of this project's tasks and one's own; of lm-eval's (nine seconds) where one of them is asked for."""
    names, folders = list(names), [str(data.TASKS), *include]
    for folder in include:
        if not Path(folder).is_dir():
            raise UsageError(f"--include-path {folder}: no such folder; give one with YAMLs of tasks")
    own = TaskManager(include_path=folders, include_defaults=False, metadata=dict(metadata))
    if all(name in own.task_index for name in names):
        theirs = _folders_of_members(own, names)
        if not theirs:
            return own
        return TaskManager(include_path=[*theirs, *folders], include_defaults=False, metadata=dict(metadata))
    _require_mentioned([name for name in names if name not in own.task_index], own.all_tasks)
    every = _every_task(tuple(folders), tuple(metadata.items()))
    for name in names:
        if name not in every.task_index:
            ours = near(name, own.all_tasks) or near(name, every.all_tasks)
            raise UsageError(f"task '{name}' does not exist{ours}; `harness tasks` lists them")
    return every


def _folders_of_members(manager: TaskManager, names: Iterable[str]) -> list[str]:
    """lm-eval's folders in which members of groups of this project are."""
    said = ((manager.task_index[name].cfg or {}).get("metadata") or {} for name in names)
    return list(dict.fromkeys(folder for metadata in said for folder in hub_sets.folders_of(metadata)))


def _require_mentioned(names: Iterable[str], ours: Sequence[str]) -> None:
    """Refuse a name that stands in none of lm-eval's files; its index can say so too, in ten times as long."""
    texts = [path.read_bytes() for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")]
    for name in names:
        whole = re.compile(rb"(?<![\w-])" + re.escape(name.encode()) + rb"(?![\w-])")
        if not any(name.encode() in text and whole.search(text) for text in texts):
            declared = {found.decode() for text in texts for found in _DECLARED.findall(text)}
            meant = near(name, ours) or near(name, declared)
            raise UsageError(f"task '{name}' does not exist{meant}; `harness tasks` lists them")


@functools.lru_cache(maxsize=1)  # names are looked up before a model is loaded, and tasks are built after it
def _every_task(folders: tuple[str, ...], metadata: tuple[tuple[str, Any], ...]) -> TaskManager:
    return TaskManager(include_path=list(folders), include_defaults=True, metadata=dict(metadata))


def _rows_of(shown: str, split: str, data_dir: str, own_file: str | None, include: Sequence[str] = ()) -> str | None:
    """The hash of the file that the rows of a reported name come from; None where they come from elsewhere."""
    if shown == OWN and own_file is not None:
        return hashlib.sha256(Path(own_file).read_bytes()).hexdigest()
    found = data.find_one(shown, include=include)
    return None if found is None else data.file_sha256(found, split, data_dir)


def _identity_of(manager: TaskManager, name: str, rows: str, prompting: Prompting) -> str:
    """The identity of a task that is not built."""
    said = task_identity.definition(Path(str(manager.task_index[name].yaml_path)))
    return task_identity.identity(said, rows, prompting.shots(said.get("num_fewshot")))


def _nothing(_document: object, _replies: object) -> dict[str, Any]:
    """What a task makes of replies that are kept and not scored."""
    return {}


def _ask(task: Any, prompting: Prompting) -> None:
    """Let a task ask as lm-eval's own command line would.

    Raises:
        UsageError: it has fewer solved examples than are asked for.
    """
    if prompting.predict_only:
        task.process_results = _nothing
    shots = prompting.shots(task.get_config("num_fewshot"))
    task.set_config(key="num_fewshot", value=shots)
    if shots and isinstance(task, ConfigurableTask):
        known = task.sampler.fewshot_docs() if hasattr(task, "sampler") else ()
        # Where they are drawn from the questions themselves, one more is drawn, so as to leave the question out.
        most = len(known) - (task.fewshot_cfg.split == task.config.test_split)
        if shots > most:
            raise UsageError(
                f"task '{task.config.task}': {shots} solved examples stand in front of each question, and it has "
                f"{max(0, most)}; ask for fewer with --num-fewshot"
            )
    if prompting.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
        own = task.get_config("generation_kwargs") or {}
        # A new mapping: that of the task may be the one which the index of all tasks holds.
        task.set_config(key="generation_kwargs", value={**own, **prompting.gen_kwargs})


def _require_function(name: str, error: Exception) -> None:
    """Tell of a YAML that asks for a function which the Python beside it does not have; other such errors stay."""
    if not isinstance(error, AttributeError):
        return
    found = _NO_FUNCTION.match(str(error))
    if found is None:
        raise error
    path, wanted = Path(found[1]), found[2]
    known = [
        node.name for node in ast.parse(data.read_text(path)).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    raise DataError(f"{path}: has no function '{wanted}', which the YAML of '{name}' asks for{near(wanted, known)}")


def _require_class(manager: TaskManager, name: str) -> None:
    """Tell of a YAML that says what its cases are, and not that they are asked."""
    path = getattr(manager.task_index.get(name), "yaml_path", None)
    said = {} if path is None else data.read_yaml(Path(path))
    if (said.get("metadata") or {}).get("case") and "class" not in said:
        raise DataError(
            f"{path}: it has metadata.case and no class; add the line `class: !function harness.task_kit.CaseExam`"
        )


def _require_metrics(task: Task) -> None:
    """See that what a YAML wants a table to show are metrics of its task.

    Raises:
        DataError: one is none; names it.
    """
    where, known = f"{task.metadata.get('config_source') or task.name}: metadata", task.known_metrics
    headline, shown = task.metadata.get("headline"), task.metadata.get("shown") or []
    if not isinstance(shown, list):
        raise DataError(f"{where}.shown is {shown!r}, expected a list of metrics, such as [{known[0]}]")
    named = [("headline", headline)] if headline is not None else []
    for key, metric in [*named, *(("shown", one) for one in shown)]:
        # A language of the set may be asked in none of the documents of this run.
        if metric not in known and str(metric).partition(".")[0] not in known:
            raise DataError(
                f"{where}.{key} names {metric!r}, which is no metric of '{task.name}'{near(str(metric), known)}"
            )


def _build(
    manager: TaskManager,
    name: str,
    rows_of: Callable[[str], str | None],
    members: Sequence[str] = (),
    prompting: Prompting | None = None,
) -> list[Task]:
    """The tasks of a name; ``rows_of`` gives the hash of the file that a reported name's rows come from, if any.

    Args:
        manager: what builds them.
        name: of a task or a group.
        rows_of: from a reported name to that hash.
        members: those tasks of a group that are wanted; all where none is named.
    """
    data_dir = str((manager.metadata or {}).get("data_dir", data.MINI))
    try:
        with quiet_lm_eval(), hub_sets.from_folder(data_dir) as served:
            built = manager.load(list(members) or [name])
    except HarnessError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        _require_function(name, error)
        _require_class(manager, name)
        raise DataError(f"task '{name}' cannot be built ({' '.join(str(error).split())[:300]})") from error
    sets, found = [*edit_sets(), OWN], []
    for leaf, task in built["tasks"].items():
        shown = name if name in sets else leaf
        _ask(task, prompting or Prompting())
        rows = rows_of(shown) or rows_sha256(task.eval_docs)
        file = served.get((task.DATASET_PATH, task.DATASET_NAME))
        made = Task(leaf, shown, task, of_task(task, rows), file)
        _require_metrics(made)
        found.append(made)
    return found


def _members(manager: TaskManager, name: str) -> list[str]:
    config = manager.task_index[name].cfg if name in manager.task_index else None
    listed = (config or {}).get("task", [])
    return [member for member in listed if isinstance(member, str)] if isinstance(listed, list) else []


def values_of(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, statistics.Ratio]]:
    """What each document contributes to each metric, by metric and document, from lm-eval's samples."""
    found: dict[str, dict[str, statistics.Ratio]] = {}
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for metric in sample["metrics"]:
            if task.per_document(metric):
                value = task.contribution(metric, sample[metric])
                found.setdefault(metric + suffix, {})[f"{task.name}/{sample['doc_id']}"] = value
    return found


def _plain(value: Any) -> float | Sequence[object] | None:
    if isinstance(value, list | tuple):
        return value
    return math.nan if value is None else float(value)
