"""Durability: who survives, half-lives in closed form, what each treatment does to a model, a study that goes on."""

from __future__ import annotations

import copy
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import harness
from harness.editing.edit import Edit
from harness.editing.registry import find
from harness.errors import DataError, UsageError
from harness.exam import survival
from harness.exam.statistics import Ratio
from harness.io.files import unpack_json
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched
from harness.studies.contract.checks import behaviour
from harness.studies.durability import study, treatments
from harness.studies.durability.study import DurabilityPlan, durability_table, run_durability
from harness.studies.durability.treatments import (
    TrainingSettings,
    Treatment,
    quantised,
    read_treatments,
    trained_on_text,
)

INF = math.inf


# --- who survives -----------------------------------------------------------------------------------------------------


def test_what_holds_is_right_in_full_by_a_metric_that_can_be_right() -> None:
    before = {
        "right": {"a": Ratio(1.0, 1.0, "x"), "b": Ratio(0.0, 1.0, "y"), "c": Ratio(math.nan, 1.0, "z")},
        "tokens": {"a": Ratio(3.0, 3.0, "x"), "b": Ratio(2.0, 3.0, "y")},
        "entropy": {"a": Ratio(2.9, 1.0, "x")},
        "magnitude": {"a": Ratio(1.0, 1.0, "x"), "b": Ratio(-0.4, 1.0, "y")},
        "none": {"a": Ratio(0.0, 1.0, "x")},
        "old": {"a": Ratio(1.0, 1.0, "x")},
    }
    higher = {**dict.fromkeys(before, True), "old": False}
    assert {metric: list(rows) for metric, rows in survival.answers_held(before, higher).items()} == {
        "right": ["a"],
        "tokens": ["a"],
    }


def test_the_share_that_survives_is_of_what_held_alone() -> None:
    holding = {name: Ratio(1.0, 1.0, name) for name in "abcd"}
    after = {"a": Ratio(1.0), "b": Ratio(0.0), "c": Ratio(1.0), "d": Ratio(math.nan), "e": Ratio(0.0)}
    found = survival.surviving(holding, after, seed=0)
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 3
    assert found.low is not None and found.high is not None and 0.2 < found.low < 2 / 3 < found.high < 1
    tokens = survival.survivors({"a": Ratio(3.0, 3.0, "a")}, {"a": Ratio(2.0, 3.0)})
    assert tokens["a"].num == 0


def test_a_case_is_lost_with_the_first_of_its_answers() -> None:
    holding = {"a1": Ratio(1.0, 1.0, "a"), "a2": Ratio(1.0, 1.0, "a"), "b": Ratio(1.0, 1.0, "b"), "c": Ratio(1.0)}
    yes, no = Ratio(1.0), Ratio(0.0)
    after = [
        (5, {"a1": yes, "a2": yes, "b": yes, "c": no}),
        (20, {"a1": no, "a2": yes, "b": yes, "c": yes}),
    ]
    assert survival.lost_between(holding, after) == [(5.0, 20.0), (20.0, INF), (0.0, 5.0)]


def test_a_stop_without_a_number_keeps_nothing_alive() -> None:
    """A model whose outputs are no numbers any more says of no case that it survived."""
    holding = {name: Ratio(1.0, 1.0, name) for name in "abc"}
    after = [
        (10, dict.fromkeys("abc", Ratio(1.0))),
        (100, {"a": Ratio(math.nan), "c": Ratio(0.0)}),
    ]
    assert survival.lost_between(holding, after) == [(10.0, INF), (10.0, INF), (10.0, 100.0)]


@pytest.mark.parametrize(("lost", "n", "stop"), [(5, 10, 8), (3, 4, 20), (9, 12, 50)])
def test_the_half_life_of_one_stop_is_in_closed_form(lost: int, n: int, stop: int) -> None:
    """``S(k) = 1 - lost / n = exp(-rate k)``; the ends of the interval are where the binomial likelihood has fallen."""
    found = survival.half_life([(0.0, float(stop))] * lost + [(float(stop), INF)] * (n - lost))
    rate = -math.log(1 - lost / n) / stop
    assert found.value == pytest.approx(math.log(2) / rate, rel=1e-4)
    assert found.low is not None and found.high is not None and found.value is not None
    assert found.low < found.value < found.high

    def log_likelihood(share: float) -> float:
        return lost * math.log(1 - share) + (n - lost) * math.log(share)

    for end in (found.low, found.high):
        fallen = log_likelihood(1 - lost / n) - log_likelihood(math.exp(-math.log(2) / end * stop))
        assert fallen == pytest.approx(3.841458820694124 / 2, rel=1e-4)


def test_half_lives_of_several_stops_are_near_the_one_that_they_were_drawn_from() -> None:
    stops, rate, n = (0.0, 5.0, 10.0, 20.0, 40.0), math.log(2) / 12, 4000
    lost: list[tuple[float, float]] = []
    for i in range(n):
        time = -math.log(1 - (i + 0.5) / n) / rate
        low = max(stop for stop in stops if stop < time)
        lost.append((low, next((stop for stop in stops if stop >= time), INF)))
    found = survival.half_life(lost)
    assert found.value == pytest.approx(12, rel=0.01)
    assert found.low is not None and found.high is not None and 11 < found.low < 12 < found.high < 13


def test_what_is_not_reached_is_told_as_a_bound() -> None:
    whole = survival.half_life([(50.0, INF)] * 7)
    assert (whole.value, whole.text, whole.reason) == (None, "> 50", "no case was lost")
    assert whole.low == pytest.approx(math.log(2) / (3.841458820694124 / 2 / (7 * 50)), rel=1e-6)
    few = survival.half_life([(50.0, INF)] * 7 + [(10.0, 50.0)])
    assert (few.value, few.text) == (None, "> 50")
    gone = survival.half_life([(0.0, 5.0)] * 3)
    assert (gone.value, gone.high, gone.text) == (None, 5.0, "< 5")
    assert survival.half_life([]).text == "nothing held"


# --- treatments -------------------------------------------------------------------------------------------------------


def test_treatments_are_read_once_each_and_a_number_goes_on() -> None:
    assert read_treatments("further=10, 50,finetune=100,int8,reload,int8") == (
        *(Treatment("further", 10), Treatment("further", 50), Treatment("finetune", 100)),
        *(Treatment("int8"), Treatment("reload")),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("furter=10", "'furter=10' does not exist (did you mean further"),
        ("further", "'further': expected a number of edits, such as further=10"),
        ("finetune=0", "'finetune=0': expected a number of steps"),
        ("int8=3", "int8 takes no amount"),
        ("int8,50", "'50' does not exist"),
        (" , ", "nothing to do"),
    ],
)
def test_a_treatment_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError) as told:
        read_treatments(text)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def low_rank(lm: LM) -> Patch:
    out, width = lm.matrix(lm.down(1)).shape
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(out, 1, generator=draw), torch.randn(1, width, generator=draw)
    return Patch(weights={lm.down(1): LowRank(0.1 * left, 0.1 * right)})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fine_tuning_is_the_plain_loop_on_a_copy_of_the_edited_model(tiny: Callable[[str], LM], family: str) -> None:
    lm, settings = tiny(family), TrainingSettings(lr=1e-3, batch_size=3, seed=5)
    guard, patch = Guard.of(lm), low_rank(lm)
    after = trained_on_text(lm, patch, steps=4, settings=settings)
    assert guard.differing() == []
    with patched(lm, patch):
        model = copy.deepcopy(lm.model)
    parameters = list(model.parameters())
    for one in parameters:
        one.requires_grad_()
    adam = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for step, ids in enumerate(treatments._batches(lm, 4, settings)):
        assert ids.shape == (3, lm.context)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * (1 - step / 4)
        loss = model(input_ids=ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
    with patched(lm, after):
        for name, value in model.named_parameters():
            assert torch.allclose(lm.parameter(name), value, atol=2e-5), name
    moved = [name for name in after.weights if name != lm.down(1)]
    assert len(moved) > 10


def test_a_text_that_is_too_short_is_told(tiny: Callable[[str], LM], tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A word.\n")
    lm = LM.wrap(tiny("gpt2").model, tiny("gpt2").tokenizer, name="tiny", text=str(path))
    with pytest.raises(DataError, match=r"the plain text of tiny has less than \d+ tokens; name another with --text"):
        trained_on_text(lm, Patch(), steps=1, settings=TrainingSettings())


def test_without_torchao_quantisation_is_missing_with_its_reason(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UsageError, match="torchao is not installed; pip install"):
        quantised(tiny("gpt2"), Patch(), "int8")


def rounded_by_torchao(matrix: torch.Tensor, kind: str) -> torch.Tensor:
    """What torchao's own configurations of weight-only quantisation leave of a linear module's weight."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    group = next((size for size in (128, 64, 32) if matrix.shape[1] % size == 0), matrix.shape[1])
    own = {
        "int8": {"weight_dtype": torch.int8, "granularity": ao.PerAxis(0), "mapping_type": ao.MappingType.SYMMETRIC},
        "int4": {
            "weight_dtype": torch.int4,
            "granularity": ao.PerGroup(group),
            "mapping_type": ao.MappingType.ASYMMETRIC,
        },
    }
    module = nn.Sequential(nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
    module[0].weight = nn.Parameter(matrix.clone())
    ao.quantize_(module, ao.IntxWeightOnlyConfig(**own[kind]))
    found: torch.Tensor = module[0].weight.dequantize()
    return found


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_quantisation_leaves_of_every_matrix_of_the_edited_model_what_torchao_does(
    tiny: Callable[[str], LM], family: str, kind: str
) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    lm = tiny(family)
    guard, patch = Guard.of(lm), low_rank(lm)
    with patched(lm, patch):
        exact = {name: lm.matrix(name).detach().clone() for name in treatments._matrices(lm)}
    after = quantised(lm, patch, kind)
    assert guard.differing() == []
    assert len(exact) >= 12
    with patched(lm, after):
        for name, matrix in exact.items():
            assert torch.allclose(lm.matrix(name), rounded_by_torchao(matrix, kind), atol=1e-6), name
            assert not torch.allclose(lm.matrix(name), matrix, atol=1e-6)
    assert f"{lm.arch.head}.weight" not in after.weights


@pytest.mark.parametrize("editor", ["ft_m", "oracle"])
def test_a_round_trip_changes_nothing(checkpoint: Callable[..., Path], editor: str) -> None:
    lm = harness.load(str(checkpoint("gpt2")))
    edit = Edit("a", "{} was born in", "Ada Velmont", "Rome")
    patch = find(editor)().edit(lm, [edit])
    with treatments.reloaded(lm, patch, editor=editor, options={"dtype": "float32", "device": "cpu"}) as (again, rest):
        assert (again is lm) == (editor == "oracle")
        assert torch.equal(behaviour(again, rest, [edit]), behaviour(lm, patch, [edit]))
        assert not torch.equal(behaviour(lm, Patch(), [edit]), behaviour(lm, patch, [edit]))


# --- a study ----------------------------------------------------------------------------------------------------------


def plan(*after: str, **given: Any) -> DurabilityPlan:
    fields = {"editor": "rome", "num_edits": 2, "exam": ("probability",), "settings": {"v_steps": 5}}
    return DurabilityPlan(after, **{**fields, **given})


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


def test_further_edits_are_those_of_a_sequential_run(tmp_path: Path) -> None:
    record = run_durability(plan("further=1,3"), tmp_path)
    run = harness.run(
        "mini", "rome", "counterfact:5", exam="probability", mode="sequential", eval_at="2,3,5", settings={"v_steps": 5}
    )
    beside = tmp_path / f"{study.durability_name(record)}.values.json.xz"
    kept = unpack_json(beside.read_bytes())["values"]
    for name, count in (("edited", 2), ("further=1", 3), ("further=3", 5)):
        values = run.values[count]["counterfact"]
        for metric, rows in kept[name].items():
            assert rows, metric
            for document, (num, den, *_) in rows.items():
                assert values[metric][document][:2] == pytest.approx((num, den), abs=1e-5), (name, metric, document)


def test_a_study_that_was_stopped_goes_on_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan("finetune=2", "reload", "further=1")
    whole = run_durability(asked, tmp_path / "whole")
    assert whole["status"] == "complete"
    assert list(whole["after"]) == ["unedited", "finetune=2", "reload", "further=1"]
    assert whole["after"]["reload"]["survive"]["efficacy"]["value"] == 1
    assert whole["after"]["unedited"]["survive"]["efficacy"]["value"] == 0
    goes = study._Study._goes_through

    def killed(self: Any, one: Treatment, edited: Patch) -> None:
        if one.kind == "reload":
            raise KeyboardInterrupt
        goes(self, one, edited)

    monkeypatch.setattr(study._Study, "_goes_through", killed)
    with pytest.raises(KeyboardInterrupt):
        run_durability(asked, tmp_path / "parts")
    assert [path.name.count(".partial.") for path in (tmp_path / "parts").glob("*")] == [1, 1]
    monkeypatch.setattr(study._Study, "_goes_through", goes)
    monkeypatch.setattr(study, "trained_on_text", lambda *_, **__: pytest.fail("done again"))
    assert told(run_durability(asked, tmp_path / "parts")) == told(whole)
    assert [path.name.count(".partial.") for path in (tmp_path / "parts").glob("*")] == [0, 0]


def test_what_cannot_be_done_is_missing_and_the_rest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    record = run_durability(plan("int4", "reload"), tmp_path)
    assert record["status"] == "complete"
    assert record["after"]["int4"] == {
        "reason": "torchao is not installed; pip install 'lm-edit-harness[quantise]'",
        "survive": {},
    }
    assert record["after"]["reload"]["survive"]["efficacy"]["n"] == 2
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(durability_table(record))
    text = console.export_text()
    assert "int4: torchao is not installed" in text
    assert "after reload" in text


def test_what_holds_as_plain_text_is_asked_in_a_chat(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The numbers after `chat` are those of the same edits in a run that is asked by the template."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("gpt2"), folder)
    asked = plan("chat", model=str(folder), editor="ft_m", settings={}, num_edits=3)
    bare = run_durability(asked, tmp_path / "bare")
    assert "has no chat template" in bare["after"]["chat"]["reason"]
    template = "{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    record = run_durability(asked, tmp_path / "chat", fresh=True)
    run = harness.run(
        str(folder),
        "ft_m",
        "counterfact:3",
        exam="probability",
        mode="batch",
        apply_chat_template=True,
        data_dir="mini",
    )
    kept = unpack_json((tmp_path / "chat" / f"{study.durability_name(record)}.values.json.xz").read_bytes())["values"]
    values = run.values[3]["counterfact"]
    for metric, rows in kept["chat"].items():
        for document, (num, den, *_) in rows.items():
            assert values[metric][document][:2] == pytest.approx((num, den), abs=1e-5), (metric, document)
    assert kept["chat"]["efficacy_magnitude"] != kept["edited"]["efficacy_magnitude"]
    assert record["after"]["chat"]["survive"]["efficacy"]["n"] == record["held"]["efficacy"]["n"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "isolated"}, "durability is that of edits in one model; use batch or sequential"),
        ({"num_edits": None}, "--edits counterfact: say how many edits are followed, such as counterfact:20"),
        ({"lr": 0.0}, "--lr 0: expected a positive learning rate"),
        ({"num_edits": 100_000}, "100"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_told_in_one_line(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        run_durability(plan("further=1", **given), tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
