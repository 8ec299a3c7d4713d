"""Defects that were read in other programs of this field, each with a test that it is not ours.

The number in a test's name is that of the defect; the docstring says what went wrong elsewhere. Defects of one method
are tested where that method is: :func:`test_a_defect_has_a_test` looks for them all.
"""

from __future__ import annotations

import ast
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.editing import registry, schedule
from harness.editing.edit import Edit
from harness.editing.editor import Wrapper
from harness.editing.hyperparameters import settable
from harness.editing.registry import configure, find
from harness.exam import measure
from harness.exam.statistics import Ratio, estimate
from harness.methods.rank_one import update_direction
from harness.methods.second_moments import Moment
from harness.models.lm import LM
from harness.patches.patch import Patch, patched
from harness.runs import clock
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

ROOT = Path(__file__).parents[2]
SHIPPED = [name for name in registry.editor_names() if (ROOT / "editors" / f"{name}.py").is_file()]
QUICK = {"v_steps": 4, "cov_tokens": 4000, "layers": (0,), "contexts": ("{}", "Nobody knows. {}")}

OVERWRITER = '''
"""Overwriter: each operation takes back the one before it."""
from dataclasses import dataclass
from harness.runs import clock
from harness.patches.delta import Dense
from harness.editing.editor import Editor
from harness.patches.patch import Patch

@dataclass(frozen=True)
class Overwriter(Editor):
    name = "overwriter"

    def edit(self, lm, edits, memory=None):
        clock.time.pass_by(10.0)
        token = lm.continuation(edits[-1].text, edits[-1].continuation)[0]
        row = lm.model.get_output_embeddings().weight[token].detach().clone()
        new = Dense(200 * row / row.norm())
        change = new if memory is None else new + memory * -1.0
        return Patch({lm.down(2).replace("weight", "bias"): change}, memory=new)
'''
ROWS = [
    {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome", "target_old": "Oslo"},
    {"prompt": "The home of {} is", "subject": "Hugo Lantern", "target": "Paris", "target_old": "Oslo"},
    {"prompt": "{} has never seen", "subject": "Iris Calder", "target": "Vienna", "target_old": "Rome"},
]


class Clock:
    """A clock that stands still but for what :meth:`pass_by` adds; otherwise :mod:`time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture(scope="module")
def plan(checkpoint: Callable[..., Path], text: str, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three edits one after the other, measured after each."""
    folder = tmp_path_factory.mktemp("overwriter")
    (folder / "overwriter.py").write_text(OVERWRITER)
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Plan(
        str(checkpoint("gpt2")), str(folder / "overwriter.py"), edits=str(folder / "my.jsonl"), mode="sequential",
        eval_at="every:1", text=text,
    )  # fmt: skip


@dataclass(frozen=True)
class Looked:
    """A run, and the hash of the weights each time that a task was measured."""

    kept: Record
    hashes: list[str]


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """The run of the plan, undisturbed, on a clock of its own."""
    hashes: list[str] = []
    measure_task, folder = measure.measure_task, tmp_path_factory.mktemp("runs")

    def look(model: Any, *rest: Any, **options: Any) -> Any:
        hashes.append(model.lm.fingerprint())
        return measure_task(model, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_task", look)
        patch.setattr(clock, "time", Clock())
        run_plan(resolve(plan), RunOptions(folder, device="cpu", rows=8, cache=False))
    (path,) = folder.glob("*.json")
    return Looked(read_record(path, values=True), hashes)


def by_edit(kept: Record, stop: int, metric: str = "efficacy_probability") -> dict[str, float]:
    """What each edit scores at a stop."""
    assert kept.values is not None
    return {str(r.cluster): r.num / r.den for r in kept.values[stop]["own"][metric].values()}


# --- 0: ROME without its covariance -----------------------------------------------------------------------------------


def test_defect_0_the_direction_is_the_inverse_moment_times_the_key() -> None:
    """Presets elsewhere turn ``C^-1`` off. Here: a full, correlated C, solved by another library."""
    draw = np.random.default_rng(0)
    root, key = draw.normal(size=(12, 12)), draw.normal(size=(3, 12))
    c = root @ root.T / 12 + 0.1 * np.eye(12)
    wanted = np.linalg.solve(c, key.T).T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = update_direction(torch.tensor(key), Moment(torch.tensor(c), 1000))
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-10)
    plain = update_direction(torch.tensor(key), None)
    assert torch.allclose(plain, torch.tensor(key / np.linalg.norm(key, axis=1, keepdims=True)))
    assert not torch.allclose(found, plain, atol=0.05)


@pytest.mark.parametrize("name", SHIPPED)
def test_defect_0_no_preset_leaves_the_published_method_silently(name: str) -> None:
    """What a preset switches, the row's name says; and no preset chooses a precision."""
    cls = find(name)
    inner = find("memit")() if issubclass(cls, Wrapper) else None
    plain = configure(cls, "any", {}, inner)
    for model, preset in cls.presets.items():
        switched = {
            key: value
            for key, value in preset.items()
            # In which order examples are learned is no part of a formula.
            if isinstance(value, bool) and value != settable(cls)[key].default and key != "shuffle"
        }
        assert not switched or configure(cls, model, {}, inner).label() != plain.label(), (model, switched)
        assert not any(
            re.search("fp16|half|float16|dtype|precision", f"{key} {value}") for key, value in preset.items()
        )
    assert not any(re.search("fp16|half|float16|dtype|precision|device", key) for key in settable(cls))


# --- 1: retention is not immediate success ----------------------------------------------------------------------------


def test_defect_1_at_the_end_every_edit_is_examined_again(done: Looked) -> None:
    """Elsewhere each edit is scored right after it was made, and never again."""
    own = {number: by_edit(done.kept, number)[str(number)] for number in (1, 2, 3)}
    end = by_edit(done.kept, 3)
    assert set(end) == {"1", "2", "3"}
    assert min(own.values()) > 0.05  # each edit works when it is made
    assert max(end["1"], end["2"]) < 0.01  # and is gone once the next one is
    assert end["3"] == own[3]
    shown = done.kept.tasks(3)["own"]["efficacy_probability"]["value"]
    assert shown == pytest.approx(sum(end.values()) / 3)


# --- 2: before is before ----------------------------------------------------------------------------------------------


def test_defect_2_before_is_the_unedited_model_and_after_is_not(done: Looked, plan: Plan) -> None:
    """Elsewhere "before" of a second batch is taken on the edited model, and "after" can be a restored one."""
    kept, count = done.kept, len(done.hashes) // 4  # the same tasks at each of four stops
    stops = [set(done.hashes[i * count : (i + 1) * count]) for i in range(4)]
    assert [len(found) for found in stops] == [1] * 4
    assert stops[0] == {kept.model["sha256"]}
    assert len(set.union(*stops)) == 4  # each stop is another model
    (name,) = kept.delta
    assert kept.weights["edited"][name] != kept.weights["before"][name] == kept.weights["restored"][name]
    base = by_edit(kept, 0)
    for stop in (1, 2, 3):
        for metric in ("efficacy_probability", "efficacy"):
            numbers = kept.tasks(stop)["own"][metric]
            paired = [by_edit(kept, stop, metric)[e] - by_edit(kept, 0, metric)[e] for e in by_edit(kept, stop, metric)]
            assert numbers["difference"]["value"] == pytest.approx(sum(paired) / len(paired), abs=1e-9)
    assert set(base) == {"1", "2", "3"}


# --- 3, 7: state of an editor -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(Wrapper):
    """Notes what an editor is given as memory, and what it returns."""

    name = "watched"

    given: list[object] = field(default_factory=list, metadata={"hidden": True})
    returned: list[object] = field(default_factory=list, metadata={"hidden": True})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        self.given.append(memory)
        patch = self.inner.edit(lm, edits, memory)
        self.returned.append(patch.memory)
        return patch


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_defect_7_every_operation_is_given_what_the_one_before_remembers(
    tiny: Callable[[str], LM], edits: list[Edit], name: str
) -> None:
    """Elsewhere the sequential loop calls the editor without its key cache, which is then None."""
    lm = tiny("gpt2")
    watched = Watched(configure(find(name), "any", QUICK))
    list(schedule.walk(watched, lm, edits, mode="sequential", batch_size=1, at=[3]))
    assert watched.given[0] is None
    assert all(memory is not None for memory in watched.returned)
    assert [id(memory) for memory in watched.given[1:]] == [id(memory) for memory in watched.returned[:-1]]


def test_defect_7_what_is_remembered_makes_a_difference(tiny: Callable[[str], LM], edits: list[Edit]) -> None:
    """AlphaEdit's second operation spares the keys of the first."""
    lm, method = tiny("gpt2"), configure(find("alphaedit"), "any", QUICK)
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        knowing = method.edit(lm, edits[1:2], first.memory).weights[lm.down(0)].dense()
        forgetful = method.edit(lm, edits[1:2], without_keys(first.memory)).weights[lm.down(0)].dense()
    assert apart(knowing, forgetful) > 1e-4


def without_keys(memory: Any) -> Any:
    """A memory without the keys of earlier edits."""
    return replace(memory, keys={}, sums={})


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The distance of two changes, relative to one of them."""
    return float((one - other).norm() / one.norm())


# --- 8: a run that goes on --------------------------------------------------------------------------------------------


def test_defect_8_a_run_that_goes_on_has_the_edits_made_before_in_its_weights(
    done: Looked, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere a resumed run skips the batches whose results exist, and never puts their weights back."""
    monkeypatch.setattr(clock, "time", Clock())

    def stop(phase: str, at: int, total: int) -> None:
        if phase == "measure after 2 edits":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(resolve(plan), RunOptions(tmp_path, device="cpu", rows=8, report=stop))
    assert [path.name for path in tmp_path.glob("*.json") if ".partial." not in path.name] == []
    run_plan(resolve(plan), RunOptions(tmp_path, device="cpu", rows=8))
    (path,) = tmp_path.glob("*.json")
    kept = read_record(path)
    assert kept.weights == done.kept.weights
    assert kept.delta == done.kept.delta
    assert [point["tasks"]["own"] for point in kept.points] == [point["tasks"]["own"] for point in done.kept.points]


# --- 9: seconds -------------------------------------------------------------------------------------------------------


def test_defect_9_seconds_are_those_of_all_operations(done: Looked) -> None:
    """Elsewhere ``time`` is that of the last batch. Here each of three operations takes ten seconds."""
    (row,) = (row for row in done.kept.cost if row["phase"] == "edit")
    assert row["seconds"] == 30.0


# --- 13: values and templates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memit", "rome"])
def test_defect_13_the_same_fact_on_an_edited_model_gets_another_value(
    tiny: Callable[[str], LM], edits: list[Edit], name: str
) -> None:
    """Elsewhere values are kept by case number alone, and a second edit of a case is given the first one's."""
    weight = {"lam": 1.0} if name == "memit" else {}  # of the text, which is little
    lm, method = tiny("gpt2"), configure(find(name), "any", {**QUICK, **weight})
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        second = method.edit(lm, edits[:1], first.memory)
    again = method.edit(lm, edits[:1])
    one, two, three = (patch.weights[lm.down(0)].dense() for patch in (first, second, again))
    assert torch.equal(one, three)
    assert apart(one, two) > 0.05


def test_defect_13_templates_are_drawn_with_the_seed_and_recorded(tiny: Callable[[str], LM]) -> None:
    """Elsewhere templates are sampled without a seed: two runs of one command edit differently."""
    lm = tiny("gpt2")
    drawn = [configure(find("memit"), "any", {"seed": seed}).notes(lm)["contexts"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    used = configure(find("memit"), "any", {"seed": 1, "cov_tokens": 4000, "v_steps": 2, "layers": (0,)})
    memory: Any = used.edit(lm, [Edit("a", "{} was born in", "Ada Velmont", "Rome")]).memory
    assert list(memory.contexts) == drawn[0]


def test_defect_13_an_interval_is_that_of_the_mean_and_not_the_spread_of_the_cases() -> None:
    """Elsewhere the standard deviation over cases is printed behind a plus-minus."""
    x = np.random.default_rng(1).normal(0, 3, 400)
    found = estimate({str(i): Ratio(float(value)) for i, value in enumerate(x)}, seed=0, resamples=10_000)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * x.std(ddof=1) / math.sqrt(400), rel=0.08)


# --- 14: paths of somebody's machine ----------------------------------------------------------------------------------


def test_defect_14_no_path_of_a_machine_is_written_anywhere() -> None:
    """Elsewhere code and settings name the author's home."""
    kinds = {".py", ".yaml", ".yml", ".toml", ".md", ".json", ".txt"}
    looked = 0
    for folder in ("harness", "editors", "tasks", "scripts", "results"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in kinds and "__pycache__" not in path.parts and path.stat().st_size < 1_000_000:
                found = re.search(
                    r"(/home/|/Users/|/root/|/work/|/mnt/|/scratch/|[A-Z]:\\\\)\w", path.read_text("utf-8")
                )
                assert found is None, f"{path}: {found and found.group()}"
                looked += 1
    assert looked > 100


# --- 15: the interval of a group --------------------------------------------------------------------------------------


def test_defect_15_the_interval_of_a_group_is_not_the_mean_of_its_members_intervals() -> None:
    """Elsewhere a group's standard error is the weighted mean of its members' standard errors."""
    members, sizes, spreads = ("a", "b", "c", "d"), (400, 100, 200, 300), (1.0, 4.0, 2.0, 0.5)
    draw = np.random.default_rng(5)
    values = {
        f"{name}{i}": Ratio(float(x), 1.0, None, name)
        for name, size, spread in zip(members, sizes, spreads, strict=True)
        for i, x in enumerate(draw.normal(10, spread, size))
    }
    rows = {name: np.array([r.num for r in values.values() if r.stratum == name]) for name in members}
    errors = np.array([rows[name].std(ddof=1) / math.sqrt(len(rows[name])) for name in members])
    found = estimate(values, seed=0, resamples=10_000)
    assert found.value == pytest.approx(np.mean([rows[name].mean() for name in members]))
    assert found.low is not None
    assert found.high is not None
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * math.sqrt((errors**2).sum()) / 4, rel=0.08)
    assert half < 0.75 * 1.96 * errors.mean()


# --- 16: a name is a promise ------------------------------------------------------------------------------------------

CONFORMS = {
    "alphaedit": "golden/test_alphaedit.py::test_two_batches_with_the_key_cache",
    "anyedit": "golden/test_golden_anyedit.py::test_a_target_of_several_chunks",
    "betaedit": "golden/test_golden_closed_forms.py::test_betaedit_in_six_batches",
    "blue": "golden/test_golden_spread.py::test_blue_in_two_batches",
    "caa": "unit/editors/test_steering.py::test_the_vector_is_the_mean_difference_of_states_by_hand",
    "companion": "unit/editors/test_companion.py::test_the_rule_adds_the_companions_change_of_log_probabilities",
    "core": "golden/test_golden_core.py::test_values_of_three_edits",
    "crispedit": "unit/editors/test_crispedit.py::test_it_is_adam_on_projected_gradients",
    "defer": "golden/test_golden_defer.py::test_three_edits_in_a_row",
    "dpo": "unit/editors/test_dpo_and_ft_kl.py::test_dpo_is_adam_on_its_loss_against_a_frozen_copy",
    "eamet": "golden/test_golden_eamet.py::test_values_of_four_edits",
    "emmet": "golden/test_emmet.py::test_batch_of_six",
    "encore": "unit/editors/test_closed_form.py::test_encore_is_memit_with_its_three_settings",
    "evoedit": "unit/editors/test_closed_form.py::test_evoedit_deflates_its_projector_by_the_keys_it_has_written",
    "ft": "golden/test_ft.py::test_variant",
    "ft_kl": "unit/editors/test_dpo_and_ft_kl.py::test_ft_kl_is_adam_on_the_likelihood_and_the_mean_divergence",
    "ft_l": "golden/test_ft.py::test_variant",
    "ft_m": "unit/editors/test_gradient_editors.py::test_ft_m_is_adam_on_the_targets_cross_entropy_one_edit_an_update",
    "full": "golden/test_canonical_examples.py::test_losses_of_three_steps",
    "grace": "unit/editors/test_grace.py::test_random_edits_follow_the_rule_in_float64",
    "ike": "unit/editors/test_prompt_editors.py::test_copy_update_and_retain_are_one_to_three_to_four",
    "kn": "unit/editors/test_kn.py::test_attribution_is_the_published_sum_over_points",
    "locft": "unit/editors/test_gradient_editors.py::test_locft_is_adam_on_shuffled_batches_of_targets_that_end",
    "lora": "unit/editors/test_gradient_editors.py::test_the_first_step_of_lora_moves_b_alone_by_the_learning_rate",
    "lyaplock": "golden/test_golden_closed_forms.py::test_lyaplock_with_its_queue_in_three_batches",
    "malmen": "golden/test_golden_malmen.py::test_turn_by_turn",
    "melo": "golden/test_golden_melo.py::test_four_edits_in_a_row",
    "memit": "golden/test_memit.py::test_variant",
    "memoir": "golden/test_golden_memoir.py::test_edits_are_theirs",
    "mello": "unit/editors/test_hops.py::test_a_question_is_taken_apart_and_each_answer_is_checked",
    "mend": "unit/editors/test_mend.py::test_each_layer_adds_what_its_formula_says",
    "nas": "unit/editors/test_closed_form.py::test_nas_scales_values_to_the_norm_that_the_first_edits_have",
    "nse": "golden/test_golden_spread.py::test_nse_in_two_batches",
    "pmet": "unit/editors/test_pmet.py::test_values_are_those_of_the_plain_loop",
    "prefix": "unit/methods/test_finetuning.py::test_the_standard_subject_of_memit_is_the_prompt",
    "prompt": "unit/editors/test_prompt_editors.py::test_the_latest_facts_are_told_as_many_as_fit",
    "prune": "golden/test_prune.py::test_the_final_matrix_is_theirs",
    "qlora": "unit/editors/test_qlora.py::test_it_is_lora_on_the_rounded_model",
    "r_rome": "unit/methods/test_value.py::test_tv_11_rome_and_r_rome_rank_one",
    "rag": "unit/editors/test_prompt_editors.py::test_the_share_of_a_key_by_hand",
    "rect": "golden/test_rect.py::test_memit_with_rect_is_the_ports",
    "reft": "unit/editors/test_steering.py::test_the_map_is_its_formula_where_the_subject_ends_and_nowhere_else",
    "remedi": "golden/test_remedi.py::test_edited_logits",
    "rledit": "golden/test_golden_malmen.py::test_a_sequence_of_rledit",
    "rome": "golden/test_rome.py::test_twelve_requests",
    "sae": "unit/editors/test_sae.py::test_a_feature_has_its_value_at_every_token",
    "scr": "unit/editors/test_hops.py::test_the_model_is_asked_about_the_nearest_facts_and_told_the_one_that_it_writes",
    "senses": "unit/editors/test_senses.py::test_training_is_the_loop_of_the_method_on_a_table_of_all_senses",
    "serac": "unit/editors/test_serac.py::test_the_edit_of_the_greatest_scope_is_read_if_that_is_enough",
    "simie": "golden/test_golden_simie.py::test_three_edits_in_a_row",
    "sphere": "golden/test_golden_closed_forms.py::test_sphere_on_gpt2_takes_the_output_side",
    "stableedit": "golden/test_golden_ultraedit.py::test_stableedit_turn_by_turn",
    "steer": "unit/editors/test_steer.py::test_training_is_its_formula_written_out",
    "unke": "golden/test_golden_unke.py::test_the_edit_is_theirs",
    "ultraedit": "unit/editors/test_gradient_editors.py::test_ultraedit_is_its_formula",
    "wise": "unit/editors/test_wise.py::test_updates_are_gradient_descent_on_both_losses_within_the_mask_and_the_bound",
}
"""The test that holds an editor's numbers to its paper's formula, or to those of its authors' code."""


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "none" and not find(name).reference])
def test_defect_16_an_editor_that_bears_a_papers_name_is_held_to_its_formula(name: str) -> None:
    """Elsewhere simplified kernels are called ``memit`` and ``alphaedit``."""
    file, _, test = CONFORMS[name].partition("::")
    source = (ROOT / "tests" / file).read_text("utf-8")
    functions = {n.name: n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}
    assert test in functions
    assert re.search(rf"\b({name}|{find(name).__name__})\b", source, re.IGNORECASE)
    assert re.search(r"close|approx|equal", source)
    assert "Source: " in (ROOT / "editors" / f"{name}.py").read_text("utf-8")


def test_defect_16_every_name_is_that_of_an_editor() -> None:
    assert set(CONFORMS) <= set(SHIPPED)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named() -> set[int]:
    """The numbers of defects in the names of tests."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
    return {int(number) for number in re.findall(r"^def test_defect_(\d+)_", text, re.MULTILINE)}


@pytest.mark.parametrize("number", [pytest.param(number, id=f"defect-{number}") for number in range(17)])
def test_a_defect_has_a_test(number: int, named: set[int]) -> None:
    assert number in named
