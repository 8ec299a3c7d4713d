"""What the file of a record holds, and the file of its documents' values; fields that are not named here may be there.

Every file is held to these types before it is used (:func:`harness.io.schema.checked`).
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from harness.io.schema import Count, Number, Pair

__all__ = ["RecordFile", "ValuesColumn", "ValuesFile"]


class _Difference(TypedDict):
    value: Number
    interval: Pair | None
    p: Number
    n: Count
    detectable: Number
    reason: str | None


class _Measure(TypedDict):
    value: Number
    n: Count
    interval: Pair | None
    reason: str | None
    higher_is_better: bool | None
    difference: _Difference | None
    clusters: NotRequired[Count | None]


class _Point(TypedDict):
    edits: Count
    tasks: dict[str, dict[str, _Measure]]
    latest: NotRequired[dict[str, dict[str, _Measure]]]
    truncated: NotRequired[dict[str, Count]]
    weights: NotRequired[dict[str, dict[str, Number | list[Number]]]]
    lost_in_rounding: NotRequired[Number]
    routing: NotRequired[dict[str, Number]]


class _Plan(TypedDict, total=False):
    model: str
    editor: str
    settings: dict[str, Any]
    edits: str
    num_edits: Count | None
    split: str
    mode: str | None
    batch_size: Count | None  # of earlier versions: edit_batch_size
    edit_batch_size: Count | None
    cases_at_once: Count | None
    eval_at: str
    tasks: list[str]
    data_dir: str
    text: str | None
    limit: Count | None
    seed: int
    dtype: str
    arch: dict[str, str]
    fitted: str | None
    order: str
    stop_on_collapse: bool
    patch: str | None
    exam: list[str]
    known_only: bool
    model_args: dict[str, Any]
    num_fewshot: Count | None
    apply_chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool | None
    gen_kwargs: dict[str, Any]
    enable_thinking: bool | None
    think_end_token: str | int | None
    thinking_budget: Count | None
    chat_edits: bool
    predict_only: bool
    backend: str


class _Model(TypedDict, total=False):
    name: str
    sha256: str
    parameters: Count
    dtype: str
    architecture: str
    device: str
    revision: str
    args: dict[str, Any]
    dequantised: list[str]
    loaded_sha256: str
    chat_template: str
    configuration: str
    text: str


class _Editor(TypedDict, total=False):
    name: str
    hyperparameters: dict[str, Any]
    notes: dict[str, Any] | list[str]
    learned: str | None
    sources: dict[str, str]


class _Knowledge(TypedDict):
    rule: str
    asked: Count
    count: Count
    sha256: NotRequired[str]


class _Edits(TypedDict, total=False):
    dataset: str
    count: Count
    unique: Count
    contradicting: Count
    contradicting_cases: Count
    ids: list[str]
    sha256: str
    mode: str
    warnings: list[str]
    known: _Knowledge


class _KeptValues(TypedDict):
    found: Count
    optimised: Count
    seconds: float


class _Phase(TypedDict):
    phase: str
    seconds: float
    peak_memory_mib: Number
    values: NotRequired[_KeptValues]


class _Weights(TypedDict, total=False):
    before: dict[str, str]
    edited: dict[str, str]
    restored: dict[str, str]


class _Published(TypedDict):
    label: str
    format: str
    protocol: str
    repository: str | None
    commit: str | None
    licence: str | None
    citation: NotRequired[str | None]
    unknown: list[str]
    notes: NotRequired[list[str]]
    files: NotRequired[list[dict[str, Any]]]


class RecordFile(TypedDict):
    """A record, without the values of its documents."""

    schema: Count
    id: str
    plan: _Plan
    points: list[_Point]
    status: NotRequired[Literal["complete", "interrupted", "failed"]]
    reason: NotRequired[str | None]
    model: NotRequired[_Model]
    editor: NotRequired[_Editor]
    edits: NotRequired[_Edits]
    headlines: NotRequired[dict[str, str]]
    derived: NotRequired[dict[str, dict[str, list[str]]]]
    shown: NotRequired[dict[str, list[str]]]
    chance: NotRequired[dict[str, dict[str, float]] | None]
    caveats: NotRequired[dict[str, str]]
    collapse: NotRequired[dict[str, Count]]
    weights: NotRequired[_Weights]
    delta: NotRequired[dict[str, dict[str, Number | list[Number]]]]
    data: NotRequired[dict[str, dict[str, Any]]]
    templates: NotRequired[dict[str, str | None]]
    cost: NotRequired[list[_Phase]]
    versions: NotRequired[dict[str, str]]
    seed: NotRequired[int | None]
    published: NotRequired[_Published]


class ValuesColumn(TypedDict):
    """What documents contribute to one metric."""

    num: list[Number]
    den: NotRequired[list[Number]]
    at: NotRequired[list[Count]]
    cluster: NotRequired[list[str | None]]
    stratum: NotRequired[list[str | None]]


class _Table(TypedDict):
    ids: list[str]
    metrics: dict[str, dict[str, Any]]


class ValuesFile(TypedDict):
    """The values of the documents of a record; each column is looked at when it is asked for."""

    schema: Count
    id: str
    record: NotRequired[str]
    points: dict[str, dict[str, _Table]]
