"""The oddities of the released code of RECT and PRUNE, numbered: which tests hold each, and those that had none.

Gu et al. 2024 (JasonForJoy/Model-Editing-Hurt at 8f8d4dc) and Ma et al. 2025 (mjy1111/PRUNE at 046c2a6).  Where the
released behaviour is a number that somebody may want, it is a metric with ``_released`` in its name (:data:`RELEASED`);
the others are mended, and the plain meaning is held.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from synthetic import record as made_up
from transformers import PreTrainedTokenizerFast

from editors.kn import KnowledgeNeurons
from harness.editing import schedule
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.schedule import operations
from harness.exam import statistics
from harness.exam.data import TASKS, read_yaml
from harness.exam.statistics import Ratio
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.record_file import read_records
from harness.runs.writer import RecordWriter

HERE = Path(__file__).parents[1]
FREE = sorted(path for path in (TASKS / "general").glob("*/*.yaml") if path.stem == path.parent.name)
"""The general tasks as they were published: with a free answer."""
GENERAL = "unit/exam/test_general_tasks.py::test_oddity_"
HELD: dict[int, list[str]] = {
    1: ["unit/editing/test_schedule.py::test_every_fact_is_edited_in_every_published_mode"],
    2: ["unit/test_oddities.py::test_oddity_02_the_first_fact_of_kn_is_applied_once"],
    3: ["unit/test_oddities.py::test_oddity_03_a_batch_is_one_operation_whatever_the_default_size"],
    4: ["unit/test_oddities.py::test_oddity_04_a_partial_last_batch_is_kept_and_names_count_plainly"],
    5: [f"{GENERAL}05_a_hit_of_several_words_spoils_the_later_documents"],
    6: [f"{GENERAL}06_several_increments_for_one_document"],
    7: [f"{GENERAL}07_the_prompt_has_a_cue_and_is_not_searched"],
    8: [f"{GENERAL}08_end_of_text_and_empty_golds"],
    9: [f"{GENERAL}09_the_rationale_is_given_and_the_match_is_a_substring"],
    10: [f"{GENERAL}10_thirteen_characters_whatever_the_end_of_text_is",
    "unit/exam/test_general_tasks.py::test_v8_rouge"],
    11: [f"{GENERAL}11_texts_of_full_stops_only_do_not_crash"],
    12: [
        f"{GENERAL}12_gold_strings",
        f"{GENERAL}12_the_token_after_an_entity_is_never_a_start",
        f"{GENERAL}12_counting",
        "unit/exam/test_general_tasks.py::test_v9_released_macro_recall",
        "unit/exam/test_general_tasks.py::test_ner_f1_of_the_vector",
    ],
    13: [f"{GENERAL}13_strict_rule_before_editing", f"{GENERAL}13_one_rule_for_every_state_of_the_model"],
    14: [f"{GENERAL}14_one_rule_for_every_state_and_the_plain_letter"],
    15: [
        f"{GENERAL}15_csv_quoting_and_the_training_split",
        "unit/exam/test_general_tasks.py::test_v4_nli_values_and_oddity_15_double_counting",
    ],
    16: [f"{GENERAL}16_unanswered_documents_are_wrong_not_left_out"],
    17: [f"{GENERAL}17_values_are_over_the_documents_that_there_are"],
    18: [
        f"{GENERAL}18_always_greedy_and_stopped_by_the_end_of_text_alone",
        "unit/exam/test_adapter.py::test_a_checkpoint_that_asks_for_sampling_is_decoded_greedily",
    ],
    19: ["unit/test_oddities.py::test_oddity_19_all_cases_count_not_the_first_twenty"],
    20: ["unit/test_oddities.py::test_oddity_20_what_is_held_at_a_stop_has_the_last_edit_in_it"],
    21: ["unit/test_oddities.py::test_oddity_21_a_target_is_what_follows_the_prompt_with_or_without_a_mark_in_front"],
    22: ["golden/test_prune.py::test_a_reduction_that_enlarges_is_told_once_and_can_be_capped"],
    23: [
        "golden/test_prune.py::test_the_final_matrix_is_theirs",
        "golden/test_prune.py::test_below_the_bound_it_is_the_identity",
        "golden/test_prune.py::test_singular_vectors_stay_and_values_are_restrained",
    ],
    24: [
        "golden/test_rect.py::test_defect_11_every_edited_parameter_is_reduced_and_the_rest_passes",
        "golden/test_rect.py::test_pca_is_that_of_scikit_learn_mapped_back",
        "golden/test_rect.py::test_labels_say_what_is_not_the_default",
    ],
    25: ["unit/test_pitfalls.py::test_defect_13_templates_are_drawn_with_the_seed_and_recorded"],
    26: [
        "unit/test_pitfalls.py::test_defect_0_the_direction_is_the_inverse_moment_times_the_key",
        "golden/test_rome.py::test_twelve_requests",
    ],
    27: ["unit/editors/test_mend.py::test_the_rank_is_the_number_of_tokens_and_padding_does_not_count"],
    28: ["unit/exam/test_tasks.py::test_a_group_expands_and_nothing_is_examined_twice"],
    29: [
        "unit/test_pitfalls.py::test_defect_2_before_is_the_unedited_model_and_after_is_not",
        "unit/test_pitfalls.py::test_defect_1_at_the_end_every_edit_is_examined_again",
    ],
    30: ["unit/test_oddities.py::test_oddity_30_a_run_that_is_repeated_overwrites_and_never_adds"],
    31: [
        "unit/test_oddities.py::test_oddity_31_no_task_is_cut_at_a_blank_line_and_weights_are_read_as_asked",
        "unit/exam/test_adapter.py::test_a_held_patch_changes_the_answers_and_leaves_no_trace",
        "unit/runs/test_runner.py::test_the_unedited_model_is_measured_once_and_again_when_anything_changes",
        "unit/exam/test_adapter.py::test_a_context_too_long_is_cut_from_the_left_and_counted",
    ],
    32: [
        "unit/editing/test_schedule.py::test_what_is_said_twice_or_in_two_ways_is_told",
        "cli/test_bad_input.py::test_edits_that_repeat_or_contradict_each_other_are_told_and_counted",
    ],
}  # fmt: skip


RELEASED = {
    5: ("OpenDomainQA", "em_released"),
    6: ("OpenDomainQA", "em_released"),
    8: ("OpenDomainQA", "em_released"),
    9: ("reasoning", "solve_rate_released"),
    10: ("summarization", "rouge_released_chop13"),
    12: ("NER", "ner_released"),
    13: ("ClosedDomainQA", "accuracy_released_strict"),
    14: ("dialogue", "accuracy_released_chi"),
    15: ("NLI", "accuracy_released"),
}
"""The task and the metric by which an oddity can be had as released."""


@pytest.mark.parametrize("number", [pytest.param(number, id=f"oddity-{number}") for number in range(1, 33)])
def test_an_oddity_is_held(number: int, is_test: Callable[[str], bool]) -> None:
    assert all(is_test(name) for name in HELD[number]), HELD[number]
    if number in RELEASED:
        task, metric = RELEASED[number]
        config = read_yaml(TASKS / "general" / task / f"{task}.yaml")
        assert metric in {row["metric"] for row in config["metric_list"]}
        assert "_released" in metric
        assert metric != config["metadata"]["headline"]


def test_every_test_of_an_oddity_stands_in_the_table() -> None:
    for path in sorted(HERE.rglob("test_*.py")):
        for name, number in re.findall(r"^def (test_oddity_(\d+)_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"{path.relative_to(HERE)}::{name}" in HELD[int(number)]


def test_each_released_reading_is_a_metric_of_its_own_name() -> None:
    """No task is without one, and none of them is a headline."""
    released: dict[str, set[str]] = {}
    for path in FREE:
        task = read_yaml(path)
        names = {row["metric"] for row in task.get("metric_list", []) if "_released" in row["metric"]}
        released[path.stem] = names
        assert task["metadata"]["headline"] not in names
    assert all(released.values()), released
    assert released["OpenDomainQA"] == {"em_released"}
    assert {"accuracy_released", "accuracy_released_strict"} <= released["ClosedDomainQA"]
    assert {"accuracy_released", "accuracy_released_chi"} <= released["dialogue"]


@dataclass(frozen=True)
class Counter(Editor):
    """Adds 1 to an entry for each edit, and notes the edits of each operation."""

    name = "counter"

    calls: list[list[str]] = field(default_factory=list)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        self.calls.append([edit.id for edit in edits])
        change = torch.zeros_like(lm.matrix(lm.down(0)))
        change[0, 0] = len(edits)
        return Patch({lm.down(0): Dense(change)})


def people(count: int) -> list[Edit]:
    return [Edit(str(i), "{} was born in", f"Person {i}", "Rome") for i in range(count)]


def test_oddity_02_the_first_fact_of_kn_is_applied_once(
    tiny: Callable[[str], LM], edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = KnowledgeNeurons.edit

    def edit(self: KnowledgeNeurons, lm: LM, chosen: Sequence[Edit], memory: object = None) -> Patch:
        asked.extend(one.id for one in chosen)
        return real(self, lm, chosen, memory)

    monkeypatch.setattr(KnowledgeNeurons, "edit", edit)
    kn = KnowledgeNeurons(steps=2)
    mode, size = schedule.plain_mode("instance-sequential", None)
    *_, last = schedule.walk(kn, tiny("gpt2"), edits[:3], mode=str(mode), batch_size=size, at=[3])
    assert asked == [edit.id for edit in edits[:3]]
    assert last.edits == 3


def test_oddity_03_a_batch_is_one_operation_whatever_the_default_size(tiny: Callable[[str], LM]) -> None:
    editor = Counter()
    mode, size = schedule.plain_mode("batch-single", None)
    list(schedule.walk(editor, tiny("gpt2"), people(6), mode=str(mode), batch_size=size, at=[6]))
    assert editor.calls == [["0", "1", "2", "3", "4", "5"]]


@pytest.mark.parametrize(("begin", "end", "size", "sizes"), [(5, 12, 2, [2, 2, 2, 1]), (0, 300, 10, [10] * 30)])
def test_oddity_04_a_partial_last_batch_is_kept_and_names_count_plainly(
    begin: int, end: int, size: int, sizes: list[int]
) -> None:
    """The released code names thirty batches of ten '10*0', and of seven facts in twos makes three batches."""
    assert [len(portion) for portion in operations(end - begin, "sequential", size)] == sizes
    count = end - begin
    kept = made_up(
        "memit", 0.5, mode="sequential", counts=(0, count), tasks=("NLI",), documents=5, edit_batch_size=size
    )
    assert record_name(kept).startswith(f"mini--memit--counterfact-{count}--sequential--")
    assert kept.plan["edit_batch_size"] == size


def test_oddity_19_all_cases_count_not_the_first_twenty() -> None:
    cases = {f"case/{i}": Ratio(float(i < 20), 1.0, str(i)) for i in range(50)}
    found = statistics.estimate(cases, seed=0)
    assert (found.value, found.n) == (pytest.approx(20 / 50), 50)


def test_oddity_20_what_is_held_at_a_stop_has_the_last_edit_in_it(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    start = float(lm.matrix(lm.down(0))[0, 0])
    for stop in schedule.walk(Counter(), lm, people(4), mode="sequential", batch_size=None, at=[1, 2, 4]):
        with patched(lm, stop.patches[0]):
            assert float(lm.matrix(lm.down(0))[0, 0]) == pytest.approx(start + stop.edits, abs=1e-4)


def test_oddity_21_a_target_is_what_follows_the_prompt_with_or_without_a_mark_in_front(
    tiny: Callable[[str], LM], make_tokenizer: Callable[[bool], PreTrainedTokenizerFast]
) -> None:
    """No name of a model is asked: the mark is no token of the target, and where there is none no token is lost."""
    found = {}
    for mark in (False, True):
        lm = LM.wrap(tiny("gpt2").model, make_tokenizer(mark), name="Meta-Llama-3-8B", text="x")
        found[mark] = lm.continuation("Ada Velmont was born in", " Oslo")
        assert lm.encode("Ada Velmont was born in")[0] == 0 if mark else lm.encode("Ada Velmont was born in")[0] != 0
        assert lm.tokenizer.decode(found[mark]) == " Oslo"
    assert found[True] == found[False]
    assert 0 not in found[True]


def test_oddity_30_a_run_that_is_repeated_overwrites_and_never_adds(tmp_path: Path) -> None:
    kept = made_up("memit", 0.5, tasks=("NLI",), documents=7)
    for _ in range(3):
        with RecordWriter(tmp_path, replace(kept, status="interrupted")) as writer:
            writer.complete()
    (again,) = read_records(tmp_path, values=True)
    assert again == kept
    assert again.tasks(50)["NLI"]["accuracy"]["n"] == 7


def test_oddity_31_no_task_is_cut_at_a_blank_line_and_weights_are_read_as_asked(tiny: Callable[[str], LM]) -> None:
    for path in FREE:
        task = read_yaml(path)
        assert task["generation_kwargs"]["until"] == [], path
        assert task["num_fewshot"] == 0
    assert Plan().dtype == "float32"
    assert {parameter.dtype for parameter in tiny("gpt2").model.parameters()} == {torch.float32}
