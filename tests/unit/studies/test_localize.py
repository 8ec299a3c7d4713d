"""The study of Hase et al.: the regressions against least squares by hand, the grid against edits by hand."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cells_apart import Apart
from scipy import stats

from harness.editing.registry import compose
from harness.errors import CheckFailed, DataError, UsageError
from harness.exam.tasks import read_examples
from harness.methods import value
from harness.models.lm import load
from harness.patches.patch import patched
from harness.reports.registry import find_format
from harness.runs.crew.cells import Crew
from harness.studies.causal.trace import TraceSettings, trace_facts
from harness.studies.localization import localize as study
from harness.studies.localization.localize import (
    Grid,
    LocalizationStudy,
    LocalizedEditor,
    open_study,
    require_enough_facts,
    run_grid,
)
from harness.studies.localization.localize_report import (
    PAPER,
    VIEWS,
    Regression,
    few_layers,
    localize_page,
    rows_of,
    write_report,
)
from harness.studies.localization.problems import ProblemSettings, log_probabilities
from harness.studies.localization.regression import regress
from harness.studies.localization.success import neighborhood_score, rewrite_score

QUICK = {"cov_tokens": 2000, "v_steps": 4, "contexts": ["{}", "So it is. {}"], "ft_l.steps": 3}
GRID = Grid(
    look_at=4,
    facts=3,
    problems=("error_injection", "fact_forcing"),
    methods=(LocalizedEditor("ft_l", 1), LocalizedEditor("rome", 1)),
    layers=(0, 2),
    settings=QUICK,
    trace=TraceSettings(window=1, samples=2),
    asked=ProblemSettings(samples=2),
    essence=False,
)


# ---------------------------------------------------------------------------------------------------------- regression


def test_vectors_of_the_regression() -> None:
    fit = regress([0.95, 0.90, 0.99, 0.40, 0.50, 0.45], [0.1, 0.3, 0.2, 0.6, 0.2, 0.4], [0, 0, 0, 1, 1, 1])
    assert (fit.r2_layer, fit.r2_trace, fit.r2_both) == pytest.approx((0.976083, 0.499165, 0.992570), abs=1e-6)
    assert (fit.df, fit.f, fit.p) == ((2, 2), pytest.approx(2.218935, abs=1e-6), pytest.approx(0.310662, abs=1e-6))
    assert fit.difference == pytest.approx(0.992570 - 0.976083, abs=1e-6)


def test_the_regression_is_least_squares_by_hand() -> None:
    draw = np.random.default_rng(0)
    layers, effects = np.repeat([3, 7, 1, 5], 25), draw.uniform(0, 1, 100)
    scores = 0.2 * layers / 7 + (layers == 1) * effects * 0.3 + draw.normal(0, 0.1, 100)
    dummies = np.stack([layers == layer for layer in np.unique(layers)], 1).astype(float)
    designs = {
        "layer": dummies,
        "trace": np.stack([np.ones(100), effects], 1),
        "both": np.concatenate([dummies, dummies * effects[:, None]], 1),
    }
    left = {name: scores - x @ np.linalg.lstsq(x, scores, rcond=None)[0] for name, x in designs.items()}
    rss = {name: float(e @ e) for name, e in left.items()}
    total = float(((scores - scores.mean()) ** 2).sum())
    fit = regress(scores.tolist(), effects.tolist(), layers.tolist())
    found = (fit.r2_layer, fit.r2_trace, fit.r2_both)
    assert found == pytest.approx(tuple(1 - rss[name] / total for name in ("layer", "trace", "both")), abs=1e-12)
    assert fit.df == (4, 92)  # as many as layers, and n - 2 layers
    assert fit.f == pytest.approx((rss["layer"] - rss["both"]) / 4 / (rss["both"] / 92))
    assert fit.rmse == pytest.approx(tuple(math.sqrt(rss[name] / 100) for name in ("layer", "trace")))
    assert fit.mae == pytest.approx(tuple(float(abs(left[name]).mean()) for name in ("layer", "trace")))
    for found in fit.correlations:
        mine = layers == found.layer
        assert found.r == pytest.approx(np.corrcoef(scores[mine], effects[mine])[0, 1])
    assert [c.layer for c in fit.correlations] == [1, 3, 5, 7]


def test_what_cannot_be_explained_has_no_numbers() -> None:
    same = regress([0.5] * 6, [0.1, 0.2, 0.3] * 2, [0, 0, 0, 1, 1, 1])
    assert (same.r2_layer, same.p, same.reason) == (None, None, "the score is the same for every edit")
    assert regress([0.1, 0.2], [0.1, 0.2], [0, 0]).reason == "a layer has fewer than three edits"
    flat = regress([0.1, 0.2, 0.4, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.2, 0.2, 0.2], [0, 0, 0, 1, 1, 1])
    assert [c.r is None for c in flat.correlations] == [False, True]


def test_without_statsmodels_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.formula.api", None)
    with pytest.raises(UsageError, match=r"needs statsmodels; install it with pip install 'lm-edit-harness\[study\]'"):
        regress([0.1, 0.2, 0.3], [0.1, 0.2, 0.1], [0, 0, 0])


# ---------------------------------------------------------------------------------------------------------------- grid


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> LocalizationStudy:
    """A small study of the shipped model."""
    return run_grid(GRID, tmp_path_factory.mktemp("study"), device="cpu")


def test_a_cell_of_the_grid_is_its_edit_made_by_hand(done: LocalizationStudy) -> None:
    lm = load("mini", device="cpu")
    example = read_examples("counterfact", data_dir="mini", split="test", count=4)[1]
    for name, layer in (("rome", 2), ("ft_l", 0)):
        settings = {k.removeprefix("ft_l."): v for k, v in QUICK.items() if ("ft_l." in k) == (name == "ft_l")}
        extra = {"loss": "target_new"} if name == "ft_l" else {}
        editor = compose(name).build(lm, {**settings, **extra, "layers": [layer]}, seed=0)
        asked = {"rewrite": [example.edit.text]}
        asked |= {kind: [p.prompt for p in example.of(kind)] for kind in ("paraphrase", "neighborhood")}
        target = example.edit.continuation
        before = {kind: [probability(lm, text, target) for text in texts] for kind, texts in asked.items()}
        with patched(lm, editor.edit(lm, [example.edit])):
            after = {kind: [probability(lm, text, target) for text in texts] for kind, texts in asked.items()}
        pairs = {kind: list(zip(before[kind], after[kind], strict=True)) for kind in asked}
        wanted = [np.mean([rewrite_score(*pair) for pair in pairs[kind]]) for kind in ("rewrite", "paraphrase")]
        wanted.append(np.mean([neighborhood_score(*pair) for pair in pairs["neighborhood"]]))
        found = done.blocks[f"error_injection/{name}@1/{layer}"][example.edit.id]
        assert found[:3] == pytest.approx(wanted, rel=2e-3, abs=1e-6)
        assert found[3] is None
        with patched(lm, editor.edit(lm, [example.edit])):
            true = probability(lm, example.edit.text, f" {example.edit.target_old}")
        assert found[4:] == pytest.approx([before["rewrite"][0], after["rewrite"][0], true], rel=2e-3, abs=1e-6)
        assert len(done.blocks[f"fact_forcing/{name}@1/{layer}"][example.edit.id]) == 6


def probability(lm, text: str, target: str) -> float:
    """The product of the probabilities of the target's tokens, from one plain pass."""
    prompt, said = lm.encode(text), lm.continuation(text, target)
    with torch.no_grad():
        p = lm.model(input_ids=torch.tensor([prompt + said])).logits[0].double().softmax(-1)
    return math.prod(float(p[len(prompt) - 1 + i, token]) for i, token in enumerate(said))


def test_the_whole_grid_is_there(done: LocalizationStudy) -> None:
    assert done.complete
    assert len(done.facts) == 3
    assert all(effects is not None and len(effects) == 4 for effects in done.facts.values())
    assert set(done.blocks) == {f"{p}/{m}/{n}" for p in GRID.problems for m in GRID.methods for n in (0, 2)}
    assert all(set(block) == set(done.facts) for block in done.blocks.values())
    assert done.model["edited"] == [0, 2]
    assert tuple(done.effects) == study.EFFECTS


def test_effects_are_those_of_tracing(done: LocalizationStudy) -> None:
    """Also where an earlier run left none: they are measured before the study goes on."""
    lm = load("mini", device="cpu")
    edits = [example.edit for example in read_examples("counterfact", data_dir="mini", split="test", count=4)]
    for found in trace_facts(lm, edits, GRID.trace)[:3]:
        low, last = found.low, found.restored[found.span[1] - 1]
        assert done.effects["last_subject_absolute"][found.fact.id] == pytest.approx((last - low).tolist(), abs=1e-5)
        fractions = (last - low) / abs(low - found.clean)
        assert done.effects["last_subject"][found.fact.id] == pytest.approx(fractions.tolist(), abs=1e-5)
        assert done.effects["zeroing"][found.fact.id] == pytest.approx(found.removed.tolist(), abs=1e-5)


def test_a_study_without_these_effects_gets_them(done: LocalizationStudy, tmp_path: Path) -> None:
    early = LocalizationStudy(**{**vars(done), "path": tmp_path / done.path.name, "effects": {}, "complete": False})
    early.save()
    whole = run_grid(GRID, tmp_path, device="cpu")
    assert (whole.effects, whole.facts, whole.blocks) == (done.effects, done.facts, done.blocks)


def test_noise_lowers_what_forcing_starts_from(done: LocalizationStudy) -> None:
    """The same before every method and layer, and below what the model gives a clean prompt."""
    forced = [block for name, block in done.blocks.items() if name.startswith("fact_forcing")]
    for fact in done.facts:
        before = {block[fact][4] for block in forced}
        assert len(before) == 1
        assert before.pop() < 0.99


def test_a_study_that_was_stopped_goes_on_where_it_was(done: LocalizationStudy, tmp_path: Path) -> None:
    def stop(name: str, *_: int) -> None:
        if name == "fact_forcing, rome@1, layer 0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(GRID, tmp_path, device="cpu", report=stop)
    half = open_study(GRID, tmp_path)
    assert (len([b for b in half.blocks.values() if b]), half.complete) == (6, False)
    with pytest.raises(DataError, match="no method is complete"):
        rows_of(replace_blocks(half, {}))
    seen = []
    whole = run_grid(GRID, tmp_path, device="cpu", report=lambda name, *_: seen.append(name))
    assert {name for name in seen if "layer" in name} == {f"fact_forcing, rome@1, layer {n}" for n in (0, 2)}
    assert whole.blocks == done.blocks


def test_a_crew_finds_the_same(done: LocalizationStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that fails stops none; the same call makes it alone, and the study is what one process makes."""
    apart = Apart()
    monkeypatch.setattr(study, "run_cells", apart.run_cells)
    apart.failing = lambda cell: cell.name == "fact_forcing, rome@1, layer 2"
    with pytest.raises(CheckFailed, match="1 of 8 cells of the grid failed; the same command runs them again"):
        run_grid(GRID, tmp_path, device="cpu", crew=Crew(2))
    half = open_study(GRID, tmp_path)
    assert (len([b for b in half.blocks.values() if b]), half.complete) == (7, False)
    apart.failing, apart.made = (lambda _: False), []
    found = run_grid(GRID, tmp_path, device="cpu", crew=Crew(2))
    assert apart.made == ["fact_forcing, rome@1, layer 2"]
    assert (found.blocks, found.unposed, found.facts, found.complete) == (done.blocks, done.unposed, done.facts, True)


def test_what_was_optimised_for_a_study_is_kept(
    done: LocalizationStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second study optimises nothing, and finds the same."""
    grid = replace(GRID, problems=("error_injection",), methods=(LocalizedEditor("rome", 1),), layers=(2,))
    monkeypatch.setattr(value, "_descend", lambda *_args, **_options: pytest.fail("optimised"))
    found = run_grid(grid, tmp_path, device="cpu")
    assert found.blocks == {"error_injection/rome@1/2": done.blocks["error_injection/rome@1/2"]}


def test_a_probability_that_is_no_number_is_missing(
    done: LocalizationStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study goes on, and its file can be written."""
    quick = {"ft_l.steps": QUICK["ft_l.steps"]}
    grid = replace(
        GRID, problems=("error_injection",), methods=(LocalizedEditor("ft_l", 1),), layers=(0,), settings=quick
    )
    calls = []

    def broken(lm, answers, **options):
        calls.append(len(answers))
        found = log_probabilities(lm, answers, **options)
        return found if len(calls) == 1 else [math.nan] * len(found)  # the first are of the unedited model

    monkeypatch.setattr(study, "log_probabilities", broken)
    block = run_grid(grid, tmp_path, device="cpu").blocks["error_injection/ft_l@1/0"]
    intact = done.blocks["error_injection/ft_l@1/0"]
    assert {fact: [*[None] * 4, intact[fact][4], None, None] for fact in intact} == block
    assert open_study(grid, tmp_path).complete


def test_other_weights_or_rows_are_no_continuation(tmp_path: Path, done: LocalizationStudy) -> None:
    """A study's name holds the names of the model and the rows, which stay when the files are changed."""
    for name, said in (("sha256", "other weights of mini"), ("rows", "other rows of counterfact")):
        for complete in (True, False):
            other = {**done.model, name: "0" * 64}
            LocalizationStudy(
                **{**vars(done), "path": tmp_path / done.path.name, "model": other, "complete": complete}
            ).save()
            with pytest.raises(UsageError, match=rf"was begun with {said}; start anew with --fresh"):
                run_grid(GRID, tmp_path, device="cpu")
    early = {key: value for key, value in done.model.items() if key != "rows"}  # of before rows were noted
    LocalizationStudy(**{**vars(done), "path": tmp_path / done.path.name, "model": early}).save()
    assert run_grid(GRID, tmp_path, device="cpu").blocks == done.blocks


OWN = '''
from editors.rome import Rome

class Mine(Rome):
    """As ROME."""
    name = "mine"
'''


@pytest.mark.parametrize("complete", [True, False])
def test_a_study_does_not_go_on_when_an_editors_file_has_changed(tmp_path: Path, complete: bool) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    settings = {"v_steps": 1, "cov_tokens": 10240}
    grid = replace(
        GRID, methods=(LocalizedEditor(str(own), 1),), problems=("error_injection",), layers=(0,), settings=settings
    )
    first = run_grid(grid, tmp_path, device="cpu")
    if not complete:
        LocalizationStudy(**{**vars(first), "blocks": {}, "complete": False}).save()
    own.write_text(OWN + "# a change\n")
    with pytest.raises(UsageError) as told:
        run_grid(grid, tmp_path, device="cpu")
    said = "was begun with other files of editors; start anew with --fresh, or choose --output"
    assert str(told.value) == f"{first.path}: {said}"
    own.write_text(OWN)
    assert run_grid(grid, tmp_path, device="cpu").blocks == first.blocks


def replace_blocks(one: LocalizationStudy, blocks: dict) -> LocalizationStudy:
    """The same study with other blocks."""
    return LocalizationStudy(**{**vars(one), "blocks": blocks})


def test_too_few_facts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 facts .* needs at least 3; look at more rows"):
        run_grid(replace(GRID, facts=2), tmp_path, device="cpu")
    require_enough_facts(3, 9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"methods": (LocalizedEditor("ultraedit", 1),), "problems": ("fact_erasure",), "settings": {}},
            "wants erasure, which ultraedit cannot",
        ),
        ({"methods": (LocalizedEditor("ike", 1),)}, "ike has no layers to choose"),
        ({"methods": (LocalizedEditor("memit", 7),)}, "window 7 is wider than the model"),
        ({"methods": (LocalizedEditor("memti", 1),)}, "editor 'memti' does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(change, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        run_grid(
            replace(GRID, **change), tmp_path, device="cpu", report=lambda *_: pytest.fail("something was measured")
        )


@pytest.mark.parametrize("text", ["rome@", "rome@zero", "rome@0"])
def test_a_method_that_cannot_be_read(text: str) -> None:
    if text == "rome@":
        with pytest.raises(UsageError):
            LocalizedEditor.parse(text)
    else:
        with pytest.raises(UsageError, match="is not a number of layers; write for example ft_l@5"):
            LocalizedEditor.parse(text)
    assert LocalizedEditor.parse(" ft_l@5") == LocalizedEditor("ft_l", 5)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = open_study(GRID, tmp_path).path
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"cannot be read .*--fresh"):
        open_study(GRID, tmp_path)
    assert open_study(GRID, tmp_path, fresh=True).blocks == {}


# ------------------------------------------------------------------------------------------------------ tables, figures


def made_up(folder: Path) -> LocalizationStudy:
    """Scores that depend on the layer alone, and at layer 1 on the effect too."""
    facts = {str(i): [0.1 + 0.05 * i, 0.9 - 0.07 * i, 0.5] for i in range(8)}
    blocks = {}
    for problem in ("error_injection", "fact_erasure"):
        for layer in range(3):
            blocks[f"{problem}/ft_l@5/{layer}"] = {
                fact: [0.2 + 0.3 * layer + (layer == 1) * 0.1 * effect[1], 0.5 - 0.1 * layer, 0.9, None, 0.1, 0.2]
                for fact, effect in facts.items()
            }
    plan = replace(GRID, problems=("error_injection", "fact_erasure"), methods=(LocalizedEditor("ft_l", 5),)).to_json()
    model = {"name": "mini", "layers": 3, "edited": [0, 1, 2]}
    return LocalizationStudy(
        folder / "localize--mini--1.json.gz", plan, model, facts, skipped={"wrong": 2}, blocks=blocks
    )


def written(made: LocalizationStudy, rows: list[Regression], kind: str = "md") -> str:
    return find_format(kind).write([localize_page(made, rows, published=True)])


def test_tables_say_what_the_regression_found(tmp_path: Path) -> None:
    made = made_up(tmp_path)
    rows = rows_of(made)
    page = written(made, rows)
    mine = next(row for row in rows if (row.metric, row.problem) == ("rewrite", "fact_erasure"))
    assert mine.fit.r2_both == pytest.approx(1.0)
    assert mine.fit.r2_layer is not None and mine.fit.r2_layer < 1
    line = next(line for line in page.splitlines() if line.startswith(r"| fact\_erasure | ft\_l@5"))
    assert line.split(" | ")[2:4] == [f"{mine.fit.r2_layer:.3f}", f"{mine.fit.r2_trace:.3f}"]
    assert line.endswith("| 8 | .698 / .025 / .700 / .002 / \\<1e-4 |")
    assert "2 facts: wrong" in page
    assert "The study is not complete" in page
    assert r"neighborhood of error\_injection, ft\_l@5: the score is the same for every edit" in page
    latex = written(made, rows, "latex")
    assert latex.count(r"\begin{tabular}") == page.count("\n## ")
    assert r"fact\_erasure & ft\_l@5 & " in latex


def random_study(folder: Path) -> LocalizationStudy:
    """Forty facts of a model of four layers, whose scores follow nothing."""
    draw = np.random.default_rng(3)
    names = [str(i) for i in range(40)]
    facts = {name: draw.uniform(0, 1, 4).tolist() for name in names}
    effects = {kind: {name: draw.uniform(-1, 1, 4).tolist() for name in names} for kind in study.EFFECTS}
    effects["zeroing"]["7"] = None
    blocks = {
        f"error_injection/rome@1/{layer}": {
            name: [*draw.uniform(0, 1, 3), None, *draw.uniform(0, 1, 3)] for name in names
        }
        for layer in range(4)
    }
    plan = replace(GRID, problems=("error_injection",), methods=(LocalizedEditor("rome", 1),)).to_json()
    model = {"name": "mini", "layers": 4, "edited": [0, 1, 2, 3]}
    return LocalizationStudy(
        folder / "localize--mini--2.json.gz", plan, model, facts, effects, blocks=blocks, complete=True
    )


def test_subsets_and_other_effects_are_least_squares_by_hand(tmp_path: Path) -> None:
    """Table 2's concentrated facts, the subject's last token, the unscaled check, zeros: each R2, F and r."""
    made = random_study(tmp_path)
    every = sorted(made.facts, key=int)
    sorted_effects = {name: sorted(effect) for name, effect in made.facts.items()}
    narrow = [name for name in every if sorted_effects[name][-2] < sorted_effects[name][-1] / 2]
    assert 3 <= len(narrow) < 40
    wanted = {
        "all": (every, made.facts),
        "concentrated": (narrow, made.facts),
        "last_subject": (every, made.effects["last_subject"]),
        "unscaled": (every, made.effects["last_subject_absolute"]),
        "zeroing": ([name for name in every if name != "7"], made.effects["zeroing"]),
    }
    rows = {row.view.name: row for row in rows_of(made) if row.metric in ("rewrite", "magnitude")}
    assert list(rows) == list(wanted)
    for view, (names, effects) in wanted.items():
        points = [
            (made.blocks[f"error_injection/rome@1/{layer}"][name], effects[name][layer], layer)
            for layer in range(4)
            for name in names
        ]
        y = np.array([s[5] - s[6] if view == "unscaled" else s[0] for s, _, _ in points])
        x, at = np.array([effect for _, effect, _ in points]), np.array([layer for _, _, layer in points])
        dummies = np.stack([at == layer for layer in range(4)], 1).astype(float)
        rss = [
            float(((y - d @ np.linalg.lstsq(d, y, rcond=None)[0]) ** 2).sum())
            for d in (dummies, np.stack([np.ones(len(y)), x], 1), np.hstack([dummies, dummies * x[:, None]]))
        ]
        fit, total = rows[view].fit, float(((y - y.mean()) ** 2).sum())
        assert rows[view].facts == len(names)
        assert (fit.r2_layer, fit.r2_trace, fit.r2_both) == pytest.approx([1 - r / total for r in rss], abs=1e-12)
        assert fit.f == pytest.approx((rss[0] - rss[2]) / 4 / (rss[2] / (len(y) - 8)))
        for found in fit.correlations:
            r = float(np.corrcoef(y[at == found.layer], x[at == found.layer])[0, 1])
            t = r * math.sqrt((len(names) - 2) / (1 - r * r))
            assert (found.r, found.p) == pytest.approx((r, 2 * stats.t.sf(abs(t), len(names) - 2)))


def test_subsets_and_other_effects_have_tables(tmp_path: Path) -> None:
    made = random_study(tmp_path)
    rows = rows_of(made)
    page = written(made, rows)
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    for view in VIEWS[1:]:
        assert sum(head.endswith(f"; {view.title}".replace("*", r"\*")) for head in heads) == len(view.metrics) + 1
    narrow = next(row for row in rows if row.view.name == "concentrated" and row.metric == "rewrite")
    assert f"The tracing effect of {narrow.facts} facts is concentrated" in page
    assert f"| {narrow.facts} | .927 / .02 / .929 / .002 / - |" in page
    first = narrow.fit.correlations[0]
    assert rf"| error\_injection | rome@1 | rewrite | {first.r:.2f} ({first.p:.3f}) | " in page
    assert written(made, rows, "latex").count(r"\begin{tabular}") == len(heads)


def test_few_layers_are_as_large_a_share_as_the_papers() -> None:
    assert [few_layers(layers) for layers in (4, 12, 28, 48)] == [0, 1, 3, 5]


def test_the_published_numbers() -> None:
    assert PAPER["rewrite"]["error_injection", "rome@1"] == (".947", ".016", ".948", ".001", "<1e-4")
    assert PAPER["overall"]["fact_forcing", "memit@5"] == (".226", ".017", ".227", ".001", ".419")
    assert ("fact_erasure", "rome@1") not in PAPER["neighborhood"]
    assert {len(cells) for table in PAPER.values() for cells in table.values()} == {5}
    assert [len(PAPER[name]) for name in ("rewrite", "paraphrase", "overall")] == [20, 20, 20]


def test_files_lie_beside_the_study(tmp_path: Path) -> None:
    paths = write_report(made_up(tmp_path))
    assert [path.name.removeprefix("localize--mini--1") for path in paths] == [
        ".md",
        ".tex",
        "--layers.png",
        "--effects.png",
    ]
    assert all(path.stat().st_size > 500 for path in paths)


def test_a_plan_is_plain_values() -> None:
    assert json.loads(json.dumps(GRID.to_json())) == GRID.to_json()
    assert GRID.to_json()["methods"] == ["ft_l@1", "rome@1"]
    assert replace(GRID, seed=1).id != GRID.id == replace(GRID).id
    assert study.SCORES[:3] == study.KINDS
