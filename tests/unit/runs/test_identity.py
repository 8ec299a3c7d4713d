"""What names a record: fields that differ from their defaults, and the number of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.runs import identity
from harness.runs.identity import differing, digest, record_id
from harness.runs.plan import Plan
from harness.studies.causal.trace import PRESETS
from harness.studies.causal.tracing import TracePlan
from harness.studies.localization.localize import Grid
from harness.studies.remedi.benching import BenchPlan
from harness.studies.sweeps.trial import Job

PLAN = Plan(editor="memit", num_edits=50, mode="batch", tasks=("general",), settings={"lam": 3.0})


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    # printf '{"a":1}' | sha256sum
    assert digest({"a": 1}) == "015abd7f5cc57a2d"


def test_the_id_is_that_of_what_differs_and_of_the_schema() -> None:
    said = (
        '{"plan":{"editor":"memit","mode":"batch","num_edits":50,"settings":{"lam":3.0},"tasks":["general"]},'
        '"schema":2}'
    )
    # printf '%s' "$said" | sha256sum
    assert (len(said), record_id(PLAN)) == (111, "d50f4bd030701ffc")
    assert record_id(PLAN, schema=3) != record_id(PLAN)
    assert differing(Plan()) == {}


def more(plan: Any) -> Any:
    """The same plan, of a later version that has one more field."""

    @dataclass(frozen=True)
    class Later(type(plan)):  # type: ignore[misc]
        temperature: float = 0.0
        names: Mapping[str, int] = field(default_factory=dict)

    return Later(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})


@pytest.mark.parametrize(
    "plan",
    [PLAN, Plan(), TracePlan(), Grid(), BenchPlan("facts", ("none",)), Job("mini", "company_ceo", "ft", "ft_m")],
    ids=lambda plan: type(plan).__name__,
)
def test_a_new_field_with_a_default_renames_no_record(plan: Any) -> None:
    later = more(plan)
    assert record_id(later) == record_id(plan)
    assert record_id(replace(later, temperature=1.0)) != record_id(plan)
    assert record_id(replace(later, names={"a": 1})) != record_id(plan)


def test_a_new_field_of_what_stands_in_a_plan_renames_no_record() -> None:
    one = PRESETS["rome"]
    assert one != TracePlan().settings
    assert record_id(replace(TracePlan(), settings=more(one))) == record_id(replace(TracePlan(), settings=one))
    assert record_id(replace(TracePlan(), settings=one)) != record_id(TracePlan())


@dataclass(frozen=True)
class Kinds:
    """Values that Python takes for one another, and JSON does not."""

    must: int
    flag: bool = False
    many: tuple[int, ...] = ()


def test_a_value_is_compared_as_json_has_it() -> None:
    assert differing(Kinds(0)) == {"must": 0}  # what has no default always stands there
    assert differing(Kinds(1, flag=0)) == {"must": 1, "flag": 0}
    assert differing(Kinds(1, many=[])) == {"must": 1}  # type: ignore[arg-type]
    assert differing(Kinds(1, many=[2])) == differing(Kinds(1, many=(2,))) == {"must": 1, "many": [2]}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in Plan.__dataclass_fields__ if name not in ("settings", "arch")])
def test_every_field_reaches_the_id(name: str) -> None:
    other = {"order": "random", "stop_on_collapse": True, "tasks": ("NLI",), "exam": ("text",)}
    other |= {"fewshot_as_multiturn": False, "enable_thinking": False, "chat_edits": True, "predict_only": True}
    changed = other.get(
        name,
        7 if name in ("num_edits", "edit_batch_size", "limit", "seed", "num_fewshot", "thinking_budget") else "other",
    )
    plan = Plan(think_end_token="</think>") if name == "thinking_budget" else Plan()
    assert replace(plan, **{name: changed}).id != plan.id


def test_what_no_json_can_say_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN or an infinity"):
        record_id(Plan(settings={"lr": float("nan")}))


def test_fields_that_name_nothing_are_left_out() -> None:
    one, two = Job("mini", "ball", "ft", "ft_m", seed=1), Job("mini", "ball", "ft", "ft_m", seed=2)
    assert record_id(one, leave_out=("seed",)) == record_id(two, leave_out=("seed",)) != record_id(one)


def test_the_schema_is_that_of_the_records() -> None:
    assert identity.SCHEMA == 2
