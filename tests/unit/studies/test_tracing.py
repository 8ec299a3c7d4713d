"""Tracing studies: averages in closed form, records that are resumed, figures of what stands in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells_apart import Apart

from harness.errors import CheckFailed, DataError, UsageError
from harness.io.files import pack_json
from harness.models.lm import LM
from harness.runs.crew.cells import Crew
from harness.studies.causal import trace_figures, tracing
from harness.studies.causal.facts import TracedFact, read_facts
from harness.studies.causal.trace import Selection, Traced, TraceSettings
from harness.studies.causal.tracing import (
    TracePlan,
    TracingStudy,
    facts_of,
    read_study,
    run_traces,
    study_name,
    summarise_traces,
)

ROWS = [
    {"id": "a", "prompt": "{} was born in", "subject": "Ada Velmont", "attribute": "Paris"},
    {"id": "b", "prompt": "The home of Hugo Lantern is", "subject": "Hugo Lantern", "target_old": "Lisbon"},
    {"id": "c", "prompt": "She was born in", "subject": "Elena Marsh", "attribute": "Rome"},
    {"id": "d", "prompt": "Everybody knows {}", "subject": "Rosa Delgado", "attribute": "has seen Rome"},
]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def plan(facts: str, checkpoint: Callable[..., Path]) -> TracePlan:
    settings = TraceSettings(window=3, samples=2, sigma=0.4, known="all")
    return TracePlan(settings, str(checkpoint("gpt2")), facts)


def one(restored: list[list[float]], low: float, clean: float, span: tuple[int, int], removed: list[float]) -> Traced:
    table = torch.tensor(restored, dtype=torch.float64)
    fact = TracedFact("x", "prompt", "subject", "object")
    return Traced(fact, ("t",) * len(table), span, " y", clean, low, clean, table, torch.tensor(removed).double())


# --- averages ---------------------------------------------------------------------------------------------------------


def test_averages_by_hand() -> None:
    traced = [
        one([[0.1, 0.1], [0.5, 0.3], [0.3, 0.9]], 0.1, 0.9, (1, 2), [0.2, 0.4]),
        one([[0.2, 0.3], [0.4, 0.2], [0.2, 0.2]], 0.2, 0.6, (0, 2), [0.6, 0.0]),
    ]
    found = summarise_traces(traced)
    values = {name: [layer["value"] for layer in layers] for name, layers in found["layers"].items()}
    assert values["fraction"] == pytest.approx([(0.5 + 0.5) / 2, (1.0 + 0.25) / 2])
    assert values["effect"] == pytest.approx([(0.4 + 0.2) / 2, (0.8 + 0.1) / 2])
    assert values["fraction_last_subject"] == pytest.approx([(0.5 + 0.5) / 2, (0.25 + 0.0) / 2])
    assert values["greatest"] == pytest.approx([0.5, 0.5])
    assert values["removed"] == pytest.approx([0.4, 0.2])
    assert found["probability"]["total_effect"]["value"] == pytest.approx((0.8 + 0.4) / 2)
    role = {name: (row["tokens"], [e["value"] for e in row["effects"]]) for name, row in found["roles"].items()}
    assert role["first subject token"] == (2, pytest.approx([(0.4 + 0.0) / 2, (0.2 + 0.1) / 2]))
    assert role["last subject token"] == (2, pytest.approx([(0.4 + 0.2) / 2, (0.2 + 0.0) / 2]))
    assert role["middle subject tokens"] == (0, [None, None])  # missing is not zero
    assert role["last token"] == (2, pytest.approx([(0.2 + 0.0) / 2, (0.8 + 0.0) / 2]))
    assert found["concentrated"] == {
        "value": 1.0,
        "n": 2,
        "interval": found["concentrated"]["interval"],
        "reason": None,
    }


def test_further_tokens_are_pooled() -> None:
    """Four further tokens of one fact and two of another weigh as six, as Meng et al. average them."""
    long = one([[0.0]] * 3 + [[0.6]] * 4 + [[0.0]], 0.0, 1.0, (0, 2), [0.0])
    short = one([[0.0]] * 3 + [[0.3]] * 2 + [[0.0]], 0.0, 1.0, (0, 2), [0.0])
    role = summarise_traces([long, short])["roles"]["further tokens"]
    assert role["tokens"] == 6
    assert role["effects"][0]["value"] == pytest.approx((4 * 0.6 + 2 * 0.3) / 6)


def test_what_has_no_fraction_is_left_out_of_its_mean_and_counted() -> None:
    flat = one([[0.3, 0.3], [0.3, 0.3]], 0.3, 0.3, (0, 1), [0.1, 0.1])
    clear = one([[0.1, 0.1], [0.5, 0.3]], 0.1, 0.9, (0, 1), [0.2, 0.4])
    found = summarise_traces([flat, clear])["layers"]
    assert (found["fraction"][0]["value"], found["fraction"][0]["n"]) == (pytest.approx(0.5), 1)
    assert found["fraction"][0]["reason"].startswith("1 of 2 documents have no finite value")
    assert (found["removed"][0]["value"], found["removed"][0]["n"]) == (pytest.approx(0.15), 2)
    assert summarise_traces([flat])["layers"]["fraction"][0]["value"] is None
    assert summarise_traces([flat])["concentrated"]["value"] is None


def test_a_greatest_effect_that_several_layers_have_is_shared() -> None:
    found = summarise_traces([one([[0.5, 0.5, 0.2]], 0.1, 0.9, (0, 1), [0.0] * 3)])
    assert [layer["value"] for layer in found["layers"]["greatest"]] == [0.5, 0.5, 0.0]


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_says_what_it_depends_on_and_who_was_left_out(plan: TracePlan, tmp_path: Path) -> None:
    (study,) = run_traces([plan], tmp_path)
    record = study.record
    assert record["status"] == "complete"
    assert (record["facts"]["asked"], record["facts"]["traced"]) == (4, 3)
    (skipped,) = record["skipped"]
    assert (skipped["reason"], skipped["count"], skipped["facts"][0]["id"]) == ("subject not found", 1, "c")
    assert "'Elena Marsh' is not in 'She was born in'" in skipped["facts"][0]["detail"]
    assert len(record["model"]["sha256"]) == 64
    assert {"torch", "transformers", "harness"} <= record["versions"].keys()
    assert record["noise"] == {"sigma": 0.4, "rule": 0.4, "samples": 2, "seed": 1}
    path = tmp_path / f"{study_name(record)}.json"
    assert path.name.startswith("tiny-gpt2-0--trace-mlp-3--facts.jsonl-4--")
    again = read_study(path)
    assert again.record == json.loads(json.dumps(record))
    for mine, kept in zip(study.traced, again.traced, strict=True):
        assert (mine.fact, mine.tokens, mine.span, mine.low) == (kept.fact, kept.tokens, kept.span, kept.low)
        assert torch.equal(mine.restored, kept.restored)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.stem + ".values.json.xz"]


def test_equal_plans_give_equal_records(plan: TracePlan, tmp_path: Path) -> None:
    records = []
    for name in ("one", "two"):
        (study,) = run_traces([plan], tmp_path / name)
        records.append({key: value for key, value in study.record.items() if key != "seconds"})
    assert records[0] == records[1]
    (other,) = run_traces([replace(plan, settings=replace(plan.settings, seed=2))], tmp_path / "one")
    assert other.record["id"] != records[0]["id"]
    assert other.record["probability"]["low"] != records[0]["probability"]["low"]


def test_a_study_that_was_stopped_goes_on_where_it_was(
    plan: TracePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run_traces([plan], tmp_path / "whole")
    counted: list[str] = []
    trace_each = tracing.trace_each

    def stopping(lm: LM, chosen: Selection, settings: TraceSettings, **more: Any) -> Iterator[Traced]:
        for found in trace_each(lm, chosen, settings, **more):
            if len(counted) == 2:
                counted.append("stop")
                raise KeyboardInterrupt
            counted.append(found.fact.id)
            yield found

    monkeypatch.setattr(tracing, "trace_each", stopping)
    with pytest.raises(KeyboardInterrupt):
        list(run_traces([plan], tmp_path / "parts"))
    (partial,) = (tmp_path / "parts").glob("*.partial.json")
    known = json.loads(partial.read_text())
    assert (known["status"], known["facts"]["traced"]) == ("interrupted", 2)
    (resumed,) = run_traces([plan], tmp_path / "parts")
    assert counted == ["a", "b", "stop", "d"]
    assert not list((tmp_path / "parts").glob("*.partial*"))
    assert {**resumed.record, "seconds": 0} == {**whole.record, "seconds": 0}


def test_a_crew_finds_the_same(plan: TracePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies by portions; one that fails stops none, its study is not complete, and it alone is made again."""
    plans = [replace(plan, settings=replace(plan.settings, window=width)) for width in (1, 3)]
    alone = list(run_traces(plans, tmp_path / "alone"))
    apart = Apart()
    monkeypatch.setattr(tracing, "run_cells", apart.run_cells)
    apart.failing = lambda cell: "mlp-1" in cell.name and cell.name.endswith("portion 1")
    found: list[TracingStudy] = []
    with pytest.raises(CheckFailed, match=rf"1 of {2 * 3} portions of facts failed; the same command"):
        found += run_traces(plans, tmp_path / "crew", crew=Crew(2))
    assert apart.lists == [6] and len(apart.made) == 5
    (partial,) = (tmp_path / "crew").glob("*.partial.json")
    assert "mlp-1" in partial.name and json.loads(partial.read_text())["facts"]["traced"] == 2
    apart.failing, apart.made = (lambda _: False), []
    again = list(run_traces(plans, tmp_path / "crew", crew=Crew(2)))
    assert len(apart.made) == 4 and not list((tmp_path / "crew").glob("*.partial*"))
    assert {study_name(one.record) for one in again} == {study_name(one.record) for one in alone}
    for one in alone:
        name = f"{study_name(one.record)}.json"
        mine, other = (read_study(tmp_path / folder / name) for folder in ("alone", "crew"))
        assert {**mine.record, "seconds": 0} == {**other.record, "seconds": 0}
        assert all(torch.equal(a.restored, b.restored) for a, b in zip(mine.traced, other.traced, strict=True))


def test_two_processes_find_the_same(plan: TracePlan, tmp_path: Path) -> None:
    (alone,) = run_traces([plan], tmp_path / "alone", device="cpu")
    (found,) = run_traces([plan], tmp_path / "crew", device="cpu", crew=Crew(2))
    assert {**alone.record, "seconds": 0} == {**found.record, "seconds": 0}


def test_another_model_or_fresh_does_not_resume(
    plan: TracePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = run_traces([plan], tmp_path)
    path = tmp_path / f"{study_name(study.record)}.json"
    packed = path.with_name(path.stem + ".values.json.xz").read_bytes()
    for change in ({}, {"noise": {"sigma": 0.5}}):
        path.with_name(path.stem + ".partial.json").write_text(json.dumps(json.loads(path.read_text()) | change))
        path.with_name(path.stem + ".partial.values.json.xz").write_bytes(packed)
        assert len(tracing._resumed(path, study.record)) == (0 if change else 3)
    path.with_name(path.stem + ".partial.values.json.xz").write_bytes(packed[:50])
    assert tracing._resumed(path, study.record) == {}


def test_no_known_fact_is_a_record_too(plan: TracePlan, tmp_path: Path) -> None:
    (study,) = run_traces([replace(plan, settings=replace(plan.settings, known="prediction"))], tmp_path)
    assert (study.record["facts"]["traced"], study.traced) == (0, ())
    assert [group["reason"] for group in study.record["skipped"]] == ["subject not found", "unknown to the model"]
    with pytest.raises(DataError, match="no fact was traced"):
        trace_figures.draw_traces([study], "layers", path=tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a record of `harness trace`"),
        ("{", "not whole JSON"),
        ('{"study": "trace", "schema": 99, "id": "x"}', "of another version"),
    ],
)
def test_what_is_no_record(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    (tmp_path / "x.values.json.xz").write_bytes(pack_json({"id": "x", "facts": []}))
    with pytest.raises(DataError, match=message):
        read_study(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path / "y.json")


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_of_a_file(facts: str, tmp_path: Path) -> None:
    found = read_facts(Path(facts))
    assert found[0] == TracedFact("a", "Ada Velmont was born in", "Ada Velmont", "Paris", 0)
    assert found[1] == TracedFact("b", "The home of Hugo Lantern is", "Hugo Lantern", "Lisbon", None)
    array = tmp_path / "known.json"
    array.write_text(json.dumps([{"known_id": 7, "prompt": "x y", "subject": "x", "attribute": "z"}]))
    assert read_facts(array) == [TracedFact("7", "x y", "x", "z")]
    assert facts_of(TracePlan(edits=facts, num_edits=2)) == found[:2]
    with pytest.raises(UsageError, match="has 4 facts, 5 were asked for"):
        facts_of(TracePlan(edits=facts, num_edits=5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no facts"),
        ("[]", "holds no facts"),
        ("[{", "not JSON"),
        ('[{"id": 1}, {"id": 1}]', "the id 1 occurs twice"),
    ],
)
def test_files_that_hold_no_facts(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_facts(tmp_path / "x.json")


def test_known_1000_needs_a_folder(shared: Path) -> None:
    with pytest.raises(UsageError, match="--data-dir"):
        facts_of(TracePlan(edits="known_1000"))
    found = facts_of(TracePlan(edits="known_1000", data_dir=str(shared / "data"), num_edits=2))
    assert found[0] == TracedFact("0", "Vinson Massif is located in the continent of", "Vinson Massif", "Antarctica")
    assert len(facts_of(TracePlan(edits="known_1000", data_dir=str(shared / "data")))) == 1209


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "ending"), [("layers", "svg"), ("roles", "png"), ("fact", "svg")])
def test_figures(plan: TracePlan, tmp_path: Path, what: str, ending: str) -> None:
    plans = [replace(plan, settings=replace(plan.settings, kind=kind, window=1)) for kind in ("mlp", "block")]
    studies = list(run_traces(plans, tmp_path))
    files = [tmp_path / f"{i}.{ending}" for i in (1, 2)]
    for path in files:
        trace_figures.draw_traces(studies, what, path=path)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(files[0].read_bytes()) > 5000


def test_the_lines_of_a_figure_are_the_numbers_of_the_record(plan: TracePlan, tmp_path: Path) -> None:
    (study,) = run_traces([plan], tmp_path)
    figure = trace_figures._by_layer([study])
    for axis, key in zip(figure.axes, trace_figures._LINES, strict=True):
        drawn = axis.lines[0].get_ydata()
        assert list(drawn) == [layer["value"] for layer in study.record["layers"][key]]
    (panel, _) = trace_figures._of_fact([study], "d").axes
    torch.testing.assert_close(torch.tensor(panel.images[0].get_array().data), study.traced[2].effects)
    with pytest.raises(UsageError, match="fact 'z' was not traced"):
        trace_figures.draw_traces([study], "fact", path=tmp_path / "x.png", fact="z")
    with pytest.raises(UsageError, match=r"'\.bmp' is no format"):
        trace_figures.draw_traces([study], "layers", path=tmp_path / "x.bmp")


def test_figures_of_two_sets_of_facts_tell_them_apart(plan: TracePlan, facts: str, tmp_path: Path) -> None:
    """Records of one folder need not be of the same facts; ids are only unique within a set."""
    other = tmp_path / "other.jsonl"
    other.write_text(Path(facts).read_text().replace("Hugo Lantern", "Jonas Wick").splitlines()[1] + "\n")
    studies = [next(run_traces([each], tmp_path)) for each in (plan, replace(plan, edits=str(other)))]
    figure = trace_figures._by_layer(studies)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.rpartition(", ")[2] for label in labels] == ["3 facts of facts.jsonl", "1 facts of other.jsonl"]
    names = [label.get_text() for label in trace_figures._by_role(studies).axes[0].get_yticklabels()]
    assert names[0] == "first subject token (1/3)"
    with pytest.raises(UsageError, match="fact 'a' was not traced in record"):
        trace_figures.draw_traces(
            studies, "fact", path=tmp_path / "x.png"
        )  # the first fact of the first record, in all of them
    with pytest.raises(DataError, match="fact 'b' is another one in each record"):
        trace_figures.draw_traces(studies, "fact", path=tmp_path / "x.png", fact="b")


def test_figures_of_two_models_are_refused(plan: TracePlan, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    plans = [plan, replace(plan, model=str(checkpoint("gpt2", 1)))]
    studies = [next(run_traces([each], tmp_path)) for each in plans]
    with pytest.raises(DataError, match="of several models"):
        trace_figures.draw_traces(studies, "layers", path=tmp_path / "x.png")
