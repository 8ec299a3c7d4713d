"""The published tables of canonical examples come out of the published files, to the printed rounding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.cells import Cell, averages, find
from harness.published import ensemble, ensemble_runs, finetuned, last_hard_negatives, memit, unedited

TASKS = ("stereoset", "country", "company", "gender", "verb", "temporal")
BALLS = (1e-3, 1e-4, 1e-5)


@pytest.fixture(scope="module")
def plots(shared: Path) -> Path:
    return shared / "data" / "published" / "canonical" / "plotting"


@pytest.fixture(scope="module")
def spec(shared: Path) -> str:
    return (shared / "specs" / "canonical-examples.md").read_text(encoding="utf-8")


def printed(text: str) -> float:
    """A number as the paper prints it: ``-.15``, ``+4.3``, ``**9.2**``."""
    return float(text.strip().strip("*"))


def same(ours: float | None, theirs: str) -> bool:
    """Whether a value rounds to what is printed; a last digit of five may go either way."""
    digits = len(theirs.strip().strip("*").partition(".")[2])
    return ours is not None and abs(ours - printed(theirs)) <= 0.5 * 10**-digits + 1e-6


def mean(values: list[float | None]) -> float:
    return sum(value or 0.0 for value in values) / len(values)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = text[text.index(heading) :].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    body = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


# --- GPT-J ------------------------------------------------------------------------------------------------------------


def gptj(plots: Path) -> list[Cell]:
    return finetuned(plots / "workshop-gptj") + ensemble(plots / "workshop-gptj" / "intervention.jsonl")


def test_table_4_gpt_j(plots: Path, spec: str) -> None:
    cells, checked = gptj(plots), 0
    means = averages(cells, lambda cell: cell.change)
    for name, initial, *columns in rows(spec, "#### T6.2"):
        for ball, changes, errors in zip(BALLS, columns[:3], columns[3:], strict=True):
            spread = errors.split("/") if errors else [None] * 3
            for method, value, error in zip(("full", "lora", "ensemble"), changes.split("/"), spread, strict=True):
                if name == "average":
                    assert same(means["gpt-j-6b", method, ball], value), (name, method, ball)
                    continue
                cell = find(cells, "gpt-j-6b", name, method, ball)
                assert cell is not None
                assert same(cell.change, value), (name, method, ball, cell.change)
                assert error is None or same(cell.error, error), (name, method, ball, cell.error)
                checked += 1
        if name != "average":  # bfloat16 moves single runs: the printed column is the mean over all nine cells
            assert same(mean([cell.initial for cell in cells if cell.task == name]), initial), name
    assert checked == 54


def test_table_8_hard_negatives_of_gpt_j(plots: Path, spec: str) -> None:
    cells, last = gptj(plots), last_hard_negatives(plots / "workshop-gptj" / "gptj_intervene_results.jsonl")
    text = spec[spec.index("GPT-J hard negatives, change in nats") :]
    checked = 0
    for name, initial, *columns in rows(text, "GPT-J hard negatives"):
        for ball, changes in zip(BALLS, columns, strict=True):
            full, lora, together = changes.split("/")
            if name == "average":
                continue
            for method, value in (("full", full), ("lora", lora)):
                cell = find(cells, "gpt-j-6b", name, method, ball)
                assert cell is not None
                assert same(cell.hard_change, value), (name, method, ball, cell.hard_change)
                checked += 1
            if (name, ball) == ("stereoset", 1e-5):
                assert (name, ball) not in last  # 0.00 was filled in
            else:
                assert same(last[name, ball], together), (name, ball)
        if name != "average":
            runs = ensemble_runs(plots / "workshop-gptj" / "gptj_intervene_results.jsonl")
            first = [c.hard_initial for c in cells if c.task == name and c.method != "ensemble"]
            assert same(mean([*first, *(c.hard_initial for c in runs if c.task == name)]), initial), name
    assert checked == 36


def test_single_runs_of_the_ensemble_are_other_runs_than_the_printed_ones(plots: Path) -> None:
    runs = ensemble_runs(plots / "workshop-gptj" / "gptj_intervene_results.jsonl")
    assert len(runs) == 17  # stereoset at 1e-5 is missing
    assert {cell.runs for cell in runs} == {4, 5}
    country = find(runs, "gpt-j-6b", "country", "ensemble", 1e-3)
    assert country is not None
    assert (country.change, country.error) == pytest.approx((17.77015, 0.45666), abs=1e-5)
    means = {"stereoset": 7.72, "verb": 5.96, "company": 0.37}  # the raw means, where the paper prints a single run
    for task, value in means.items():
        cell = find(runs, "gpt-j-6b", task, "ensemble", 1e-3)
        assert cell is not None
        assert cell.hard_change == pytest.approx(value, abs=0.005)


# --- MEMIT ------------------------------------------------------------------------------------------------------------

TABLE_2 = {  # Pythia 6.9b, ball 1e-4: standard, oracle
    "country": ("2.7", "21.0"),
    "company": ("1.7", "21.8"),
    "stereoset": ("-0.1", "0.8"),
    "gender": ("7.3", "32.2"),
    "temporal": ("-0.1", None),
}


def test_table_2_memit(plots: Path) -> None:
    path = plots / "workshop-pythia" / "memit_results.test.final.float16.json"
    for position, subject in enumerate(("standard", "oracle")):
        cells = memit(path, subject)  # type: ignore[arg-type]
        for task, values in TABLE_2.items():
            cell = find(cells, "pythia-6.9b", task, f"memit-{subject}", 1e-4)
            assert cell is not None
            value = values[position]
            assert cell.change is None if value is None else same(cell.change, value), (task, subject, cell.change)
    # The paper prints 1.2 / -0.2 for verbs; the stored file has other numbers.
    verbs = [find(memit(path, s), "pythia-6.9b", "verb", f"memit-{s}", 1e-4) for s in ("standard", "oracle")]  # type: ignore[arg-type]
    assert all(same(cell and cell.change, value) for cell, value in zip(verbs, ("-0.3", "2.9"), strict=True))


def test_memit_on_the_backpack(plots: Path) -> None:
    path = plots / "workshop-pythia" / "memit_results.test.final.json"
    wanted = {"country": ("0.0", "1.1"), "company": ("0.2", "0.0"), "stereoset": ("0.0", "0.1"),
              "verb": ("0.0", "0.3"), "gender": ("0.3", "0.4"), "temporal": ("0.0", "0.0")}  # fmt: skip
    for task, values in wanted.items():
        for subject, value in zip(("standard", "oracle"), values, strict=True):
            cell = find(memit(path, subject), "backpack-gpt2", task, f"memit-{subject}", 1e-4)  # type: ignore[arg-type]
            assert same(cell and cell.change, value), (task, subject, cell)


CELL = re.compile(r"(?P<success>[\d.]+) \((?P<change>[+-][\d.]+)(?:, (?P<runs>\d)/5)?\)|\u2013 \((?P<none>\d/\d)\)")


@pytest.mark.parametrize("subject", ["standard", "oracle"])
@pytest.mark.parametrize("ball", BALLS)
def test_tables_of_memit_on_pythia(ball: float, subject: str, plots: Path, spec: str) -> None:
    path = plots / "workshop-pythia" / "memit_results.test.final.float16.json"
    cells = memit(path, subject)  # type: ignore[arg-type]
    means = averages(cells, lambda cell: cell.change, empty_as_zero=True)
    name = "1e-05" if ball == 1e-5 else f"{ball:g}"
    found = rows(
        spec, f"#### T6.D MEMIT {subject} ({'prefix as' if subject == 'standard' else 'true'} subject), ball {name}"
    )
    assert len(found) == 7
    for size, *columns, mean in found:
        model = f"pythia-{size}"
        assert same(means[model, f"memit-{subject}", ball], mean)
        for task, text in zip(("country", "company", "stereoset", "verb", "gender", "temporal"), columns, strict=True):
            cell, said = find(cells, model, task, f"memit-{subject}", ball), CELL.fullmatch(text)
            assert cell is not None and said is not None, text
            if said["none"]:
                assert (cell.change, f"{cell.runs}/{cell.of}") == (None, said["none"])
                continue
            assert same(cell.success, said["success"]) and same(cell.change, said["change"]), (model, task, text, cell)
            assert (cell.runs, cell.of) == (int(said["runs"] or 5), 5)


def test_unedited_backpack_in_float32(plots: Path) -> None:
    cells = unedited(plots / "workshop-pythia" / "memit_results.noedit.test.v2.json")
    wanted = {"country": 0.90051, "company": 0.97176, "stereoset": 0.23837, "verb": 0.43611, "gender": 0.91111,
              "temporal": 0.76955}  # fmt: skip
    for task, failure in wanted.items():
        cell = find(cells, "backpack-gpt2", task, "none", None)
        assert cell is not None and cell.success is not None
        assert 1 - cell.success / 100 == pytest.approx(failure, abs=1e-5)


# --- Pythia -----------------------------------------------------------------------------------------------------------

TRAINED = re.compile(r"(?P<success>[\d.]+) \((?P<change>[+-][\d.]+)±(?P<error>[\d.]+)\)")
ORDER = ("country", "company", "stereoset", "verb", "gender", "temporal")


@pytest.mark.parametrize("ball", BALLS)
def test_tables_of_finetuning_on_pythia(ball: float, plots: Path, spec: str) -> None:
    cells = finetuned(plots / "workshop-pythia")
    means = averages(cells, lambda cell: cell.change)
    found = rows(spec, f"#### T6.B ball {'1e-05' if ball == 1e-5 else f'{ball:g}'}")
    assert len(found) == 14
    for size, method, *columns, mean in found:
        assert same(means[f"pythia-{size}", method, ball], mean)
        for task, text in zip(ORDER, columns, strict=True):
            cell, said = find(cells, f"pythia-{size}", task, method, ball), TRAINED.fullmatch(text)
            assert cell is not None and said is not None, text
            assert same(cell.success, said["success"]) and same(cell.change, said["change"]), (size, task, cell)
            assert same(cell.error, said["error"])


def test_tables_of_hard_negatives_on_pythia(plots: Path, spec: str) -> None:
    cells = finetuned(plots / "workshop-pythia")
    means = averages(cells, lambda cell: cell.hard_change)
    found = rows(spec, "#### T6.F")
    assert len(found) == 42
    for ball, method, size, *columns, mean in found:
        assert same(means[f"pythia-{size}", method, float(ball)], mean)
        for task, text in zip(ORDER, columns, strict=True):
            cell = find(cells, f"pythia-{size}", task, method, float(ball))
            assert cell is not None
            assert same(cell.hard_change, text), (size, task, ball, text, cell.hard_change)


def test_unedited_pythia(plots: Path, spec: str) -> None:
    """T6.A and T6.E: means over the runs of both methods and all balls."""
    cells = finetuned(plots / "workshop-pythia")
    for heading, value in (("#### T6.A", lambda c: c.initial), ("#### T6.E", lambda c: c.hard_initial)):
        for size, *columns in rows(spec, heading):
            for task, text in zip(ORDER, columns, strict=False):
                found = [value(c) for c in cells if (c.model, c.task) == (f"pythia-{size}", task)]
                assert same(sum(found) / len(found), text.partition(" ")[0]), (size, task, text, found)


# --- the Backpack, of which only the printed table is there -----------------------------------------------------------


def test_table_3_averages_are_unweighted_means_over_tasks(spec: str) -> None:
    from harness.cells import average

    *tasks, last = rows(spec, "#### T6.1")
    assert [row[0] for row in tasks] == list(TASKS)
    assert same(average([printed(row[1]) for row in tasks]), last[1])
    for column in (2, 3, 4):
        for method in range(3):
            values = [printed(row[column].split("/")[method]) for row in tasks]
            # Each printed value is rounded to a tenth, and so is their printed mean.
            assert abs((average(values) or 0) - printed(last[column].split("/")[method])) <= 0.1 + 1e-9
