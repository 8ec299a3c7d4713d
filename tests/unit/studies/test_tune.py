"""Tuning: what is tried, on which rows, and what is left; on models that it has never seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cells_apart import Apart

from harness.editing.registry import configure, find
from harness.errors import HarnessError, NumericalError, UsageError
from harness.io.nobody import tell_nobody
from harness.runs.crew.cells import ALONE, Crew
from harness.runs.plan import Plan
from harness.runs.plan_grid import plans
from harness.runs.resolve import resolve
from harness.studies.sweeps import tune as study
from harness.studies.sweeps.tune import Budget, Tuned, TuneTrial, require_apart, score_of, tune
from harness.studies.sweeps.tune_report import preset_fields, preset_line, report_text, write_tuned
from harness.studies.sweeps.tune_space import layer_choices, portion, scale_field, searched, width_of

SMALL = Budget(trials=4, probes=1, texts=2, traced=2)


def editor(name: str) -> object:
    return configure(find(name), "nobody", {})


# --- what is tried ----------------------------------------------------------------------------------------------------


def test_layers_that_tracing_proposes() -> None:
    effects = [0.1, 0.2, 0.9, 0.3, 0.1, 0.0, 0.8, 0.1]
    assert layer_choices(effects, 3, 8) == [(1, 2, 3), (0, 1, 2), (2,), (5, 6, 7)]
    assert layer_choices(effects, 1, 8) == [(2,), (6,)]
    assert layer_choices(None, 1, 9) == [(2,), (4,), (6,)]
    assert layer_choices(None, 3, 9) == [(1, 2, 3), (3, 4, 5), (5, 6, 7)]


def test_the_fields_that_are_searched() -> None:
    memit = searched(editor("memit"))  # type: ignore[arg-type]
    assert list(memit) == ["lam", "clamp", "v_weight_decay", "v_lr"]
    assert memit["lam"] == {"log10": [round(math.log10(15000) - 2.5, 3), round(math.log10(15000) + 0.5, 3)]}
    assert list(searched(editor("ft_l"))) == ["norm_constraint", "lr"]  # type: ignore[arg-type]
    assert list(searched(editor("grace"))) == ["eps", "edit_lr"]  # type: ignore[arg-type]
    assert list(searched(editor("caa"))) == ["strength"]  # type: ignore[arg-type]
    assert list(searched(editor("alphaedit")))[:2] == ["nullspace_threshold", "l2"]  # type: ignore[arg-type]
    assert searched(editor("ultraedit"))["lr"] == {"log10": [-6.0, -2.0]}  # type: ignore[arg-type]
    assert [scale_field(editor(name)) for name in ("memit", "ultraedit", "ft_l")] == ["lam", "lr", None]  # type: ignore[arg-type]
    assert width_of(editor("ft_l"), None) == 1 and width_of(editor("memit"), (3, 4, 5)) == 3  # type: ignore[arg-type]


def test_the_thirds_of_a_range_and_what_is_left_of_a_choice() -> None:
    wide = {"log10": [0.0, 3.0]}
    assert [portion(wide, i, now=None)["log10"] for i in range(4)] == [[0, 1], [2, 3], [1, 2], [0, 1]]
    assert [portion(wide, i, now=None, rising=True)["log10"] for i in range(3)] == [[2, 3], [1, 2], [0, 1]]
    assert portion({"choice": [1, 2, 3]}, 0, now=2) == {"choice": [1, 3]}


def test_the_harmonic_mean() -> None:
    assert score_of([0.5, 1.0]) == pytest.approx(2 / 3)
    assert score_of([0.5, 0.0]) == score_of([]) == 0.0


# --- rows -------------------------------------------------------------------------------------------------------------


def test_tuning_rows_that_are_test_rows_are_refused() -> None:
    (plan,) = plans({"editor": "memit", "edits": "counterfact:3", "split": "test"})
    with pytest.raises(
        UsageError, match=r"3 of the 3 tuning rows of counterfact \(test\) are test rows of counterfact"
    ):
        require_apart(resolve(plan), "counterfact")
    (plan,) = plans({"editor": "memit", "edits": "counterfact:3", "split": "train"})
    require_apart(resolve(plan), "counterfact")


def test_one_shared_row_of_a_file_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "{} is in", "subject": f"Town {i}", "target": "Rome", "target_old": "Oslo"} for i in range(3)]
    mine, theirs = tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    theirs.write_text(json.dumps({**rows[1], "target": "Bern"}) + "\n", encoding="utf-8")
    (plan,) = plans({"editor": "rome", "edits": str(mine)})
    with pytest.raises(UsageError, match=r"1 of the 3 tuning rows .* \(the first is 2\)"):
        require_apart(resolve(plan), str(theirs))


@pytest.mark.parametrize(("name", "told"), [("mend", "harness fit"), ("none", "name an editor, such as memit")])
def test_editors_with_nothing_to_tune(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be tuned; .*{told}"):
        tune(Plan(editor=name), tmp_path, budget=SMALL, against=None, device="cpu", report=tell_nobody)


def test_the_published_rows_for_tuning_are_no_test_rows(shared: Path) -> None:
    fields = {"model": "x/y", "editor": "memit", "edits": "counterfact:300", "data_dir": str(shared / "data")}
    (plan,) = plans({**fields, "split": "train"})
    found = resolve(plan)
    require_apart(found, "counterfact")
    assert all(int(edit.id) >= 20_000 for edit in found.edits)


# --- a whole tuning ---------------------------------------------------------------------------------------------------


def tuned(fields: dict[str, object], folder: Path, budget: Budget = SMALL, crew: Crew = ALONE) -> Tuned:
    (plan,) = plans({"editor": "memit", "split": "train", **fields})
    return tune(plan, folder, budget=budget, against=None, device="cpu", report=tell_nobody, crew=crew)


def test_a_random_qwen3_ends_with_a_preset_and_a_report(
    checkpoint: Callable[..., Path], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "model": str(checkpoint("qwen3")), "edits": "counterfact:2", "data_dir": "mini",
        "text": text, "settings": {"cov_tokens": 1000, "v_steps": 3, "contexts": ["{}"]},
    }  # fmt: skip
    found = tuned(fields, tmp_path / "trials")
    assert [one.stage for one in found.trials][:2] == ["untuned", "lam"] and len(found.trials) == 4
    assert found.effects is None and found.untraced == "the model knows none of the facts"
    assert all(one.objective is not None and one.reason is None for one in found.trials)
    best = max(one.objective or 0.0 for one in found.trials)
    assert found.best.objective == best
    for one in found.trials:
        value = (one.metrics["score"] + one.metrics["strength"] / 10) * math.exp(-one.metrics["kl"])
        assert one.objective == pytest.approx(value)
    preset, report = write_tuned(found, tmp_path)
    said = report.read_text(encoding="utf-8")
    assert said.count("\n| lam |") == 1 and "Nothing was traced: the model knows none of the facts" in said
    # The preset is a plan: the editor with what was found, and what was held fixed.
    (again,) = plans(yaml.safe_load(preset.read_text(encoding="utf-8")))
    assert again.settings == {**found.best.settings, **fields["settings"]}  # type: ignore[dict-item]
    assert resolve(again).recipe.configured(again.model, again.settings, seed=0).hyperparameters()["v_steps"] == 3
    # What has a record is not tried again.
    apart = Apart()
    monkeypatch.setattr(study, "standing_crew", apart.standing_crew)
    by_crew = tuned(fields, tmp_path / "crew", crew=Crew(2))
    assert [(a.stage, a.settings, a.metrics, a.objective) for a in by_crew.trials] == [
        (b.stage, b.settings, b.metrics, b.objective) for b in found.trials
    ]
    assert apart.lists[0] == 2 and len(apart.made) >= len(found.trials)
    monkeypatch.setattr(study._Tuning, "measured", lambda *_: pytest.fail("a trial was made again"))
    kept = tuned(fields, tmp_path / "trials")
    assert [one.objective for one in kept.trials] == [one.objective for one in found.trials]


def test_a_trial_of_a_crew_that_is_needed_and_fails_is_told_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = Apart()
    monkeypatch.setattr(study, "standing_crew", apart.standing_crew)
    apart.failing = lambda cell: cell.shown == "untuned {}"
    fixed = {"cov_tokens": 2000, "v_steps": 1, "contexts": ["{}"]}
    with pytest.raises(HarnessError, match="its worker died 3 times"):
        tuned({"edits": "counterfact:1", "settings": fixed}, tmp_path, SMALL, Crew(2))
    assert apart.lists == [2] and len(list(tmp_path.glob("*.json"))) == 1


def test_stories_on_real_rows(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "stories260K"
    fields = {
        "model": str(model), "edits": "counterfact:2", "data_dir": str(shared / "data"),
        "settings": {"cov_tokens": 2000, "v_steps": 8},
    }  # fmt: skip
    found = tuned(fields, tmp_path / "trials", Budget(trials=3, probes=1, texts=2, traced=2))
    assert [one.stage for one in found.trials] == ["untuned", "lam", "layers"]
    assert found.trials[1].settings["lam"] < 500 and found.best.objective is not None
    assert found.plan.data_dir == str(shared / "data")


def test_the_shipped_model_is_traced(tmp_path: Path) -> None:
    settings = {"cov_tokens": 12_000, "v_steps": 5}
    found = tuned({"editor": "rome", "edits": "counterfact:2", "settings": settings}, tmp_path, SMALL)
    assert found.effects is not None and len(found.effects) == 4 and found.traced == 2
    assert {one.stage for one in found.trials} >= {"untuned", "layers"}
    assert "| effect |" in report_text(found, tmp_path / "preset.yaml")


def test_a_failed_trial_is_told_and_not_chosen() -> None:
    plan = Plan(editor="memit", num_edits=2, split="train", mode="batch", settings={"v_steps": 3})
    good = TuneTrial("layers", {"layers": [1, 2]}, {"score": 0.5, "kl": 0.0}, 0.5, 1.0)
    bad = TuneTrial("untuned", {}, seconds=1.0, reason="a NaN arose | somewhere")
    found = Tuned(plan, SMALL, {"score": 0.1}, (bad, good), None, "why", 0, "abc")
    assert found.best is good
    assert preset_line(found) == '"mini": {"layers": (1, 2), "v_steps": 3},'
    assert preset_fields(found)["settings"] == {"layers": [1, 2], "v_steps": 3}
    assert "failed: a NaN arose \\| somewhere" in report_text(found, Path("p.yaml"))
    with pytest.raises(NumericalError, match="memit: every trial failed; the last: a NaN"):
        _ = Tuned(plan, SMALL, {}, (bad,), None, "why", 0, "abc").best


def test_settings_that_a_method_cannot_use_are_a_trial_that_failed(tmp_path: Path) -> None:
    """Below every eigenvalue there is no null space to write into, which AlphaEdit refuses."""
    fixed = {"nullspace_threshold": 1e-12, "cov_tokens": 12_000, "v_steps": 2, "contexts": ["{}"]}
    fields = {"editor": "alphaedit", "edits": "counterfact:2", "settings": fixed}
    found = tuned(fields, tmp_path, Budget(trials=1, probes=1, texts=1, traced=0))
    (only,) = found.trials
    assert only.objective is None and "raise --set nullspace_threshold" in str(only.reason)
