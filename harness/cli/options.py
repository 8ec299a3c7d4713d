"""Every option of the command line, declared once.

A command takes an option as a decorator, ``@MODEL`` or ``@MODEL.but(default="mini")``. A command of many options names
them in a frozen dataclass, whose fields are its parameters, and gets one value of it through :func:`taken`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    ParamSpec,
    TypedDict,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)

import click

if TYPE_CHECKING:
    from harness.models.placement import Placement

__all__ = [
    "ADDRESS",
    "AFTER",
    "AGAINST",
    "ANSWER",
    "APPLY_CHAT_TEMPLATE",
    "ARCH",
    "AT",
    "BACKEND",
    "BASELINE",
    "BATCH_SIZE",
    "BUDGET",
    "CASES",
    "CASES_AT_ONCE",
    "CHANGED",
    "CHAT_EDITS",
    "CHECK",
    "CLAIMS",
    "CLUSTER",
    "COMMIT",
    "COMMUNITY",
    "CONFIG",
    "CONTACT",
    "COUNT",
    "DATA_DIR",
    "DEQUANTISE_EDITED",
    "DEVICE",
    "DEVICE_MAP",
    "DOCUMENTS",
    "DRY_RUN",
    "DTYPE",
    "EDITOR",
    "EDITS",
    "EDIT_BATCH_SIZE",
    "ENABLE_THINKING",
    "ENTITY_LAYER",
    "EVAL_AT",
    "EXAM",
    "EXPORT",
    "FACT",
    "FACTS",
    "FEWSHOT_AS_MULTITURN",
    "FITTED",
    "FORCING_SAMPLES",
    "FOREIGN",
    "FORMAT",
    "FRESH",
    "GEN_KWARGS",
    "HARDWARE",
    "HIGH",
    "HUB_DATASET",
    "JUDGE",
    "JUDGE_KEY",
    "JUDGE_MODEL",
    "KIND",
    "KNOWN",
    "KNOWN_ONLY",
    "LAYERS",
    "LEARN",
    "LICENCE",
    "LIMIT",
    "LOG_SAMPLES",
    "LOG_TO",
    "LR",
    "MAX_MEMORY",
    "METHODS",
    "MODE",
    "MODEL",
    "MODEL_ARGS",
    "MODES",
    "NEW_TOKENS",
    "NO_CACHE",
    "NO_ESSENCE",
    "NO_PROBES",
    "NO_SAVE_EDITS",
    "NUM_EDITS",
    "NUM_FEWSHOT",
    "OFFLOAD_FOLDER",
    "ONLY",
    "ORDER",
    "OUTPUT",
    "PARALLEL",
    "PATCH",
    "PATH",
    "PREDICT_ONLY",
    "PROBES",
    "PROBLEMS",
    "PUBLISHED",
    "QUESTIONS",
    "RELEASED",
    "REPOSITORY",
    "RESCORE",
    "RETRIES",
    "SAMPLES",
    "SEED",
    "SEEDS",
    "SET",
    "SHARDS",
    "SHOW_SAMPLES",
    "SIGMA",
    "SPLIT",
    "STOP_ON_COLLAPSE",
    "SYSTEM_INSTRUCTION",
    "TABLES",
    "TASK",
    "TASKS",
    "TEXT",
    "TEXTS",
    "THINK_END_TOKEN",
    "THRESHOLD",
    "TIMEOUT",
    "TO",
    "TOKENS",
    "TOLERANCE",
    "TRACED",
    "TRACE_WINDOW",
    "TRIALS",
    "TRUST_CODE",
    "UNEDITED",
    "VARIANT",
    "WHAT",
    "WINDOW",
    "WORKERS",
    "LateChoice",
    "Option",
    "Placed",
    "PlacementOptions",
    "TextCount",
    "Workers",
    "taken",
]

Command = TypeVar("Command", bound=Callable[..., None])
First = TypeVar("First")
Second = TypeVar("Second")
Rest = ParamSpec("Rest")

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


MODES = click.Choice(["isolated", "batch", "sequential"])


class TextCount(click.ParamType[int | None]):
    """A number of texts, or ``auto`` for as many as fit, which is None."""

    name = "auto|integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """What was typed as a number.

        Args:
            value: what was typed.
            param: the option.
            ctx: the command.
        """
        if value is None or value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            self.fail(f"'{value}' is neither auto nor a number of texts.", param, ctx)
        return COUNT.convert(number, param, ctx)


class Workers(click.ParamType[int]):
    """A number of workers, or ``auto`` for as many as there is room for, which is 0."""

    name = "auto|integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """What was typed as a number.

        Args:
            value: what was typed.
            param: the option.
            ctx: the command.
        """
        if value == "auto":
            return 0
        try:
            number = int(value)
        except ValueError:
            self.fail(f"'{value}' is neither auto nor a number of workers.", param, ctx)
        return COUNT.convert(number, param, ctx)


@dataclass(frozen=True)
class Option:
    """An option, which decorates the commands that take it.

    Attributes:
        name: as it is typed.
        help: what it is.
        kind: what is read from its text.
        default: its value where it is not given; the help says it.
        otherwise: what the help says is done where it is not given and has no default.
        parameter: the parameter of the command; by default the name.
        required: whether a command does not run without it.
        flag: whether it takes no value.
        bare: its value where it is typed without one; None where it must have one.
        many: whether it can be given several times.
        metavar: what the help writes for its value.
    """

    name: str
    help: str | None = None
    kind: click.ParamType[Any] | type[float] | type[str] = str
    default: str | int | Path | None = None
    otherwise: str | None = None
    parameter: str | None = None
    required: bool = False
    flag: bool = False
    bare: str | None = None
    many: bool = False
    metavar: str | None = None

    def but(
        self,
        *,
        help: str | None = None,
        kind: click.ParamType[Any] | type[str] | None = None,
        default: str | int | Path | None = None,
        otherwise: str | None = None,
        parameter: str | None = None,
        metavar: str | None = None,
        required: bool = False,
        flag: bool | None = None,
    ) -> Option:
        """The option as one command has it.

        Args:
            help: another help; None for the same.
            kind: what is read from its text; None for the same.
            default: another default; None for the same.
            otherwise: another word on what is done without it; None for the same.
            parameter: another parameter; None for the same.
            metavar: what the help writes for its value; None for the same.
            required: whether the command does not run without it; then it has no default.
            flag: whether it takes no value; None for the same.
        """
        return replace(
            self,
            help=self.help if help is None else help,
            kind=kind or self.kind,
            default=None if required else self.default if default is None else default,
            otherwise=self.otherwise if otherwise is None else otherwise,
            parameter=parameter or self.parameter,
            metavar=metavar or self.metavar,
            required=required or self.required,
            flag=self.flag if flag is None else flag,
        )

    def __call__(self, command: Command) -> Command:
        """The command with this option."""
        words = [self.name] if self.parameter is None else [self.name, self.parameter]
        said = self.help or ""
        if self.otherwise and self.default is None and not self.required:
            said = f"{said}  [default: {self.otherwise}]".strip()
        if self.flag:
            on: dict[str, Any] = {"default": True, "show_default": True} if "/" in self.name else {}
            return click.option(*words, help=said, is_flag=True, **on)(command)
        # None as a default is not the same as none: with it, an option that can be given several times is no tuple.
        more: dict[str, Any] = {} if self.default is None else {"default": self.default, "show_default": True}
        if self.bare is not None:
            more |= {"is_flag": False, "flag_value": self.bare}
        return click.option(
            *words,
            help=said or None,
            type=self.kind,
            required=self.required,
            multiple=self.many,
            metavar=self.metavar,
            **more,
        )(command)


@overload
def taken(first: type[First], /) -> Callable[[Callable[Concatenate[First, Rest], None]], Callable[Rest, None]]: ...
@overload
def taken(
    first: type[First], second: type[Second], /
) -> Callable[[Callable[Concatenate[First, Second, Rest], None]], Callable[Rest, None]]: ...
def taken(*classes: type[object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of dataclasses, each of which a command gets as one value, its first arguments.

    Args:
        classes: dataclasses, each field of which is ``Annotated`` with its :class:`Option`.
    """
    known = {cls: _options(cls) for cls in classes}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**given: object) -> None:
            made = [cls(**{name: given.pop(name) for name in named}) for cls, named in known.items()]
            command(*made, **given)

        for name, option in reversed([item for named in known.values() for item in named.items()]):
            replace(option, parameter=name)(called)
        return called

    return decorate


def _options(cls: type[object]) -> dict[str, Option]:
    """The option of each field of a dataclass."""
    return {name: get_args(hint)[1] for name, hint in get_type_hints(cls, include_extras=True).items()}


class LateChoice(click.Choice[str]):
    """One of some names, which are looked up when they are asked for: importing what knows them takes a while."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        super().__init__([])

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._names())

    @choices.setter
    def choices(self, given: object) -> None:
        """Click sets them in its constructor, which is too early."""


def _foreign_formats() -> Iterable[str]:
    from harness.reports.importing import reader_names

    return reader_names()


def _export_formats() -> Iterable[str]:
    from harness.reports.export import export_names

    return export_names()


def _loggers() -> Iterable[str]:
    from harness.reports.run_log import logger_names

    return logger_names()


def _table_formats() -> Iterable[str]:
    from harness.reports.registry import format_names

    return format_names()


MODEL = Option("--model", "A shipped model, a folder, a GGUF file, or a Hub repository[@revision].", otherwise="mini")
EDITOR = Option("--editor", "The method, or path/to/file.py.", otherwise="none")
TASKS = Option("--tasks", "Tasks and groups, separated by commas; lm-eval's own too, and YAMLs by their path.")
EDITS = Option(
    "--edits",
    "An edit set (NAME or NAME:N), a JSONL file of your own, or none.",
    otherwise="counterfact:50; of --editor none, none",
)
EXAM = Option(
    "--exam", "The parts of the edit set's exam that are asked, such as probability,generation.", otherwise="all"
)
INCLUDE_PATH = Option("--include-path", "Folders of your own with YAMLs of tasks and edit sets, separated by commas.")
NUM_EDITS = Option("--num-edits", "How many of its rows, from the first.", int)
SPLIT = Option("--split", "The split of the edit set.")
MODE = Option(
    "--mode",
    "How edits are made; the last three are the names of Gu et al.",
    click.Choice(["isolated", "batch", "sequential", "instance-sequential", "batch-single", "batch-sequential"]),
)
EDIT_BATCH_SIZE = Option("--edit-batch-size", "Edits of one sequential operation.", int)
CASES_AT_ONCE = Option(
    "--cases-at-once", "Cases that isolated mode edits together, examines and takes back.", int, otherwise="1"
)
EVAL_AT = Option("--eval-at", "Edit counts to measure at: 0,10,final or every:K.", otherwise="final")
STOP_ON_COLLAPSE = Option("--stop-on-collapse", "End where the edited model has collapsed.", flag=True)
ORDER = Option("--order", "The order of the edits.", click.Choice(["file", "random"]), otherwise="file")
KNOWN_ONLY = Option("--known-only", "Edit only the facts that the unedited model knows.", flag=True)
PATCH = Option("--patch", "Put back the edits of this file instead of making new ones.")
SET = Option("--set", "A hyperparameter of the editor.", parameter="settings", many=True, metavar="FIELD=VALUE")
FITTED = Option("--fitted", "What the editor has learned.", otherwise="that of `harness fit` with these settings")
DATA_DIR = Option("--data-dir", "Rows: 'mini', a folder, or 'hub'.", otherwise="mini for shipped models, else hub")
TEXT = Option("--text", "Plain text for second moments: a file, a folder, or a Hub data set.")
LIMIT = Option("--limit", "Documents of each task.", int)
SEED = Option("--seed", "Of everything random.", click.IntRange(0, 2**32 - 1), otherwise="0")
SEEDS = Option("--seeds", "Several runs, such as 0,1,2, each with its own seed and order of the edits.")
DTYPE = Option("--dtype", "float32, bfloat16, float16, float64, or auto: that of the checkpoint.", otherwise="float32")
MODEL_ARGS = Option(
    "--model-args",
    "More of lm-eval's arguments of a model: revision, subfolder, tokenizer, peft, gguf_file, attn_implementation, ...",
    metavar="NAME=VALUE,...",
)
NUM_FEWSHOT = Option("--num-fewshot", "Solved examples in front of each question.", int, otherwise="the task's own")
APPLY_CHAT_TEMPLATE = Option(
    "--apply-chat-template",
    "Ask by the tokenizer's chat template, or by one of its templates.",
    bare="true",
    metavar="[NAME]",
)
SYSTEM_INSTRUCTION = Option("--system-instruction", "What the system turn says.", metavar="TEXT")
FEWSHOT_AS_MULTITURN = Option(
    "--fewshot-as-multiturn",
    "Whether solved examples are turns of their own.",
    click.BOOL,
    bare="true",
    otherwise="true with a chat template",
    metavar="[BOOL]",
)
GEN_KWARGS = Option(
    "--gen-kwargs",
    "Laid over what tasks say of generation: do_sample, temperature, until, ...",
    metavar="NAME=VALUE,...",
)
PREDICT_ONLY = Option("--predict-only", "Keep replies as samples, and compute no metric.", flag=True)
BACKEND = Option(
    "--backend",
    "What writes texts; vllm of a folder that `harness apply` has written, with --editor none.",
    click.Choice(["hf", "vllm"]),
    otherwise="hf",
)
CHAT_EDITS = Option("--chat-edits", "Edit by the chat template, too: prompt and target are turns.", flag=True)
ENABLE_THINKING = Option(
    "--enable-thinking", "What the chat template is told of thinking.", click.BOOL, bare="true", metavar="[BOOL]"
)
THINK_END_TOKEN = Option(
    "--think-end-token", "The text, or the number of the token, behind which the answer stands.", metavar="TEXT"
)
THINKING_BUDGET = Option(
    "--thinking-budget", "Tokens of a thought at most; then its end is written, and the answer follows.", int,
    otherwise="as many as there is room for",
)  # fmt: skip
DEVICE_MAP = Option(
    "--device-map",
    "How the model is spread over devices: auto, balanced, sequential, a JSON file, or pairs; instead of --device.",
    metavar="NAME|MODULE=DEVICE,...",
)
MAX_MEMORY = Option(
    "--max-memory",
    "What each device holds of the weights at most, such as 0=10GiB,cpu=30GiB.",
    metavar="DEVICE=SIZE,...",
)
OFFLOAD_FOLDER = Option("--offload-folder", "Where weights go that lie on disk.", PATH)
DEQUANTISE_EDITED = Option(
    "--dequantise-edited",
    "Of a quantised model: let the matrices that are edited be plain numbers meanwhile.",
    flag=True,
)
ARCH = Option("--arch", "A module of the model, named by hand.", many=True, metavar="PART=NAME")
CONFIG = Option("--config", "A YAML file with any of the above; lists in it make several runs.", PATH)

TRUST_CODE = Option(
    "--trust-code", "Run the code that a file names: editors and tasks by their path, a checkpoint's own.", flag=True
)
OUTPUT = Option("--output", "Folder of the record.", PATH)
DEVICE = Option("--device", "Where the model goes; 'auto' spreads it.", otherwise="an accelerator, else the CPU")
BATCH_SIZE = Option(
    "--batch-size", "Texts of one forward pass at most, or auto: as many as fit.", TextCount(), default="auto"
)
NO_CACHE = Option("--no-cache", "Measure the unedited model, and optimise values of edits, again.", flag=True)
NO_SAVE_EDITS = Option(
    "--no-save-edits", "Do not keep the edits that were made as a file; isolated edits are never kept.", flag=True
)
LOG_SAMPLES = Option(
    "--log-samples/--no-log-samples",
    "Keep what every document was asked, and the replies before and after, beside the record.",
    flag=True,
)
LOG_TO = Option(
    "--log-to", "Log each run that is complete; may be given several times.", LateChoice(_loggers), many=True
)
DRY_RUN = Option("--dry-run", "Say what would be run, and what it would take; nothing is written.", flag=True)
NO_PROBES = Option("--no-probes", "With --dry-run: load no model, and do not say how long it takes.", flag=True)
FRESH = Option("--fresh", "Start anew where an earlier run of the same plan was stopped.", flag=True)
TO = Option("--to", "The folder of the checkpoint.", PATH, parameter="folder", required=True)

JUDGE = Option(
    "--judge",
    "Who judges: a shipped model, a folder, a GGUF file, a Hub repository; or the address of a server, http://...",
    required=True,
)
JUDGE_MODEL = Option("--judge-model", "The name of the model that the server is to judge with.")
JUDGE_KEY = Option("--judge-key", "The environment variable that holds the server's key.", default="OPENAI_API_KEY")
TIMEOUT = Option(
    "--timeout", "Seconds that one answer of the server may take.", kind=click.FloatRange(min=0.1), default=60
)
RETRIES = Option("--retries", "How often the server is asked again.", kind=click.IntRange(min=0), default=4)
PARALLEL = Option("--parallel", "How many texts the server is asked about at a time.", COUNT, default=4)
CLAIMS = Option("--claims", "With --data-dir: how many of its labelled claims are judged too.", COUNT, default=200)

FOREIGN = LateChoice(_foreign_formats)
REPOSITORY = Option("--repository", "Where the files are published: owner/name.", otherwise="that of the format")
COMMIT = Option("--commit", "The commit of that repository.", otherwise="not told")
LICENCE = Option("--licence", "The licence of the files.", otherwise="that of the format's repository")
UNEDITED = Option("--unedited", "The same files of the unedited model.", PATH)

CHANGED = Option("--changed", "With --samples: only those to which the edited model replies something else.", flag=True)
TASK = Option("--task", "With --samples: only those of this task, or edit set.")
AT = Option("--at", "With --samples: those after so many edits.", int, otherwise="the most")

FORMAT = Option("--format", "How the table is written.", kind=LateChoice(_table_formats), parameter="form")
EXPORT = FORMAT.but(help="Whose format it is.", kind=LateChoice(_export_formats), required=True)
DOCUMENTS = Option(
    "--documents",
    "Whose single documents are written: of the metrics that a leaderboard shows, of all, or of none.",
    click.Choice(["shown", "all", "none"]),
    default="shown",
)
HUB_DATASET = Option(
    "--hub-dataset",
    "The data set on the Hub that the rows of a task are of, and its task there.",
    parameter="hub",
    many=True,
    metavar="TASK=OWNER/NAME[:TASK]",
)
COMMUNITY = replace(TO, help="The folder of submissions.", default=Path("results/community"), required=False)
CONTACT = Option("--contact", "Who can be asked about the record: a name, an address, a page.")
HARDWARE = Option("--hardware", "On what it was run.", otherwise="the device that the record names")
CHECK = Option("--check", "Write nothing: check the submissions in a folder.", flag=True)
RESCORE = Option(
    "--rescore", "With --check: carry out so many plans of shipped models again, those first that never were.", COUNT
)
BASELINE = Option("--baseline", "A record, or a folder of records.", PATH, required=True)
ONLY = Option("--only", "A pattern of record names, for example '*--memit--*'.", default="*")
TOLERANCE = Option("--tolerance", "Largest difference of a value that still counts as equal.", float)

VARIANT = Option("--variant", "Published settings: hase (2023), or rome (Meng et al. 2022).", default="hase")
KIND = Option(
    "--kind",
    "What is restored: mlp, attn, block (hidden state), or several: mlp,block.",
    otherwise="mlp; rome: all three",
)
QUESTIONS = replace(KIND, help="With --samples: only questions of this kind, such as paraphrase.", otherwise=None)
WINDOW = Option("--window", "Layers restored together, or several: 1,3,5.", otherwise="5; rome: 10; of blocks: 1")
SAMPLES = Option("--samples", "Noise samples.", int, otherwise="10")
SHOW_SAMPLES = replace(
    SAMPLES, help="Show what every document was asked, and the replies before and after.", flag=True, otherwise=None
)
SIGMA = Option(
    "--sigma",
    "Noise: a number, s3 (3 x std of embeddings), hase or rome (that paper's).",
    otherwise="the variant's",
)
KNOWN = Option(
    "--known",
    "Which facts: the answer is in the greedy continuation, is the first token, or all.",
    click.Choice(["continuation", "prediction", "all"]),
    otherwise="the variant's",
)
NEW_TOKENS = Option("--new-tokens", "The length of that continuation.", int, otherwise="36")
ANSWER = Option(
    "--answer",
    "What is explained: the true object, or the most probable token.",
    click.Choice(["object", "prediction"]),
    otherwise="the variant's",
)
THRESHOLD = Option("--threshold", "The least probability of the answer.", float, otherwise="0")
HIGH = Option(
    "--high",
    "Fractions are of the clean probability, or of the greatest seen (as released).",
    click.Choice(["clean", "max"]),
    otherwise="clean",
)
BUDGET = Option("--budget", "Tokens of one pass.", COUNT, default=4096)
WHAT = Option(
    "--what",
    "Averages by layer, averages by the role of a token, or one fact.",
    click.Choice(["layers", "roles", "fact"]),
    default="layers",
)
FACT = Option("--fact", "The id of the fact.", otherwise="the first")

FACTS = Option("--facts", "How many of the facts that the model knows.", COUNT, otherwise="all")
PROBLEMS = Option("--problems", "Problems, separated by commas.", default="all")
METHODS = Option(
    "--methods",
    "Editors, each with the number of layers that it edits together.",
    default="ft_l@1,ft_l@5,rome@1,memit@5",
)
LAYERS = Option("--layers", "Layers, separated by commas.", default="all")
TRACE_WINDOW = Option("--trace-window", "Layers that tracing restores together.", int, default=5)
FORCING_SAMPLES = Option("--forcing-samples", "Noises that fine-tuning forces.", int, default=10)
RELEASED = Option(
    "--released",
    "What the paper's program does otherwise: reversal,threshold,probes,noise_at,noise_rows,perplexity,high, or all.",
)
NO_ESSENCE = Option("--no-essence", "Do not score texts about the subject.", flag=True)
PUBLISHED = Option("--published", "Put the authors' numbers beside, where there are any.", flag=True)
TABLES = Option("--tables", "Run nothing: tables and figures of what is done.", flag=True)

CASES = Option("--cases", "Cases that are examined, from the first.", int, default=50)
LEARN = Option("--learn", "Cases that a learning editor learns from.", int, otherwise="all others")
ENTITY_LAYER = Option("--entity-layer", "Where entities are read.", int, otherwise="the paper's, or at 90 % of depth")
TOKENS = Option("--tokens", "How much text.", int)

TRIALS = Option("--trials", "Configurations that are tried.", COUNT, default=12)
PROBES = Option("--probes", "Questions of each kind about each edit.", COUNT, default=3)
TRACED = Option("--traced", "Facts that are traced at most; 0 traces none.", click.IntRange(min=0), default=10)
TEXTS = Option("--texts", "Neutral documents that are read after each trial.", COUNT, default=10)
AFTER = Option(
    "--after",
    "What the edited model goes through: further=K edits, finetune=N steps, int8, int4, reload, chat; by commas.",
    default="further=10,finetune=50,int8,int4,reload",
    metavar="TREATMENTS",
)
LR = Option("--lr", "The learning rate of fine-tuning.", float, otherwise="5e-5")
AGAINST = Option(
    "--against", "The set or file of the test rows, none of which may be tuned on.", otherwise="the set of --edits"
)

CLUSTER = Option(
    "--cluster", "HOST:PORT of a Ray cluster, auto for this machine's, or local to start one.", otherwise="none"
)
ADDRESS = Option("--address", "The earlier name of --cluster.")
SHARDS = Option(
    "--shards", "Divide isolated edits into so many pieces, which --workers make side by side.", COUNT, default=1
)
WORKERS = Option(
    "--workers",
    "How many pieces of work at a time, or auto: one for each accelerator or core.",
    Workers(),
    otherwise="1; with --cluster as many as there is room for",
)


class Placed(TypedDict):
    """Where the weights of a model go, by the names of the arguments of the API."""

    device: str | None
    device_map: str | None
    max_memory: str | None
    offload_folder: Path | None


@dataclass(frozen=True)
class PlacementOptions:
    """The options that say where the weights of a model go."""

    device: Annotated[str | None, DEVICE]
    device_map: Annotated[str | None, DEVICE_MAP]
    max_memory: Annotated[str | None, MAX_MEMORY]
    offload_folder: Annotated[Path | None, OFFLOAD_FOLDER]

    def given(self) -> Placed:
        """As functions of the API take them."""
        return Placed(
            device=self.device,
            device_map=self.device_map,
            max_memory=self.max_memory,
            offload_folder=self.offload_folder,
        )

    def placement(self) -> Placement:
        """As models are loaded.

        Raises:
            UsageError: the weights cannot go there.
        """
        from harness.models.placement import Placement

        return Placement.of(**self.given())
