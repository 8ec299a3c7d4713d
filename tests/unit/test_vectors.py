"""The test vectors of the specifications and the folders of the authors' numbers: which tests hold each.

A vector is a handful of numbers that a formula must give.  Where a table says several tests, each holds a part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BALL = "unit/studies/test_ball.py::test_vector_"
CANONICAL_SETS = "unit/exam/test_canonical.py::test_vector_"
FINETUNING = "unit/methods/test_finetuning.py::test_vector_"
SENSES = "unit/editors/test_senses.py::test_tv_"
CANONICAL = {
    1: [f"{CANONICAL_SETS}1_country"],
    2: [f"{CANONICAL_SETS}2_company_is_judged_by_the_sum_and_not_the_mean"],
    3: [f"{CANONICAL_SETS}3_temporal"],
    4: [f"{CANONICAL_SETS}4_stereoset"],
    5: [f"{CANONICAL_SETS}5_gender"],
    6: [f"{CANONICAL_SETS}6_verb"],
    7: ["unit/exam/test_span_scores.py::test_vector_7_terms_are_read_before_their_tokens"],
    8: [f"{CANONICAL_SETS}8_equality_is_a_success"],
    9: [f"{CANONICAL_SETS}9_hard_negatives_are_means_of_sums"],
    10: ["unit/exam/test_span_scores.py::test_vector_10_the_general_loss_is_weighted_by_tokens"],
    11: [f"{BALL}11_the_ball_ends_at_the_initial_loss_times_one_plus_the_tolerance"],
    12: [f"{BALL}12_validation_takes_the_last_epoch_in_the_ball"],
    13: [f"{BALL}13_test_reports_the_last_epoch_in_the_ball_up_to_the_chosen_one"],
    14: [f"{CANONICAL_SETS}14_training_means_over_tokens_and_evaluation_sums"],
    15: [
        f"{FINETUNING}15_divergence_runs_from_the_unedited_to_the_edited_model",
        f"{SENSES}15_the_divergence_of_both_variants",
    ],
    16: [
        f"{FINETUNING}16_the_rate_falls_like_a_cosine_once_a_pass",
        f"{SENSES}16_the_learning_rate_of_each_epoch",
    ],
    17: [
        f"{FINETUNING}17_faithful_accumulation_steps_with_the_fifth_gradient_alone",
        f"{SENSES}17_whose_gradient_an_update_takes",
    ],
    18: [f"{FINETUNING}18_the_block_of_layers_of_lora"],
    19: [f"{SENSES}19_the_senses_that_are_chosen"],
    20: ["unit/editors/test_companion.py::test_tv_20_two_words"],
    21: ["unit/editors/test_companion.py::test_tv_21_the_largest_beta_in_the_ball"],
    22: [f"{BALL}22_changes_are_means_with_a_population_standard_error"],
}
"""Of canonical examples (Hewitt et al. 2024): losses, the ball, finetuning, senses, the companion, aggregation."""

EDITED = "unit/exam/test_edit_tasks.py::test_tv"
PROBLEMS = "unit/studies/test_problems.py::test_vectors_of_the_"
VALUES = "unit/methods/test_value.py::test_tv_"
LOCALISATION = {
    1: [f"{PROBLEMS}rewrite_score"],
    2: [f"{PROBLEMS}neighborhood_score"],
    3: ["unit/studies/test_trace.py::test_tv3_fraction_restored"],
    4: ["unit/studies/test_problems.py::test_vectors_of_essence_and_perplexity"],
    5: [f"{PROBLEMS}overall_score"],
    6: [f"{EDITED}6_nll_is_normalised_by_length"],
    7: [
        "unit/studies/test_problems.py::test_vectors_of_essence_and_perplexity",
    ],
    8: [f"{EDITED}8_entropy"],
    9: [f"{EDITED}9_consistency"],
    10: ["unit/exam/test_statistics.py::test_tv_10_score"],
    11: [f"{VALUES}11_rome_and_r_rome_rank_one"],
    12: [f"{VALUES}12_memit_update_and_key_average"],
    13: [
        f"{VALUES}13_the_pieces_of_the_loss",
        "unit/editors/test_remedi_hook.py::test_tv13_the_divergence_is_from_the_unedited_to_the_edited_model",
    ],
    14: ["unit/studies/test_trace.py::test_tv14_windows"],
    15: ["unit/studies/test_localize.py::test_vectors_of_the_regression"],
    16: ["unit/studies/test_trace.py::test_tv16_concentrated"],
    17: [
        "unit/studies/test_bench.py::test_tv17_efficacy",
        "unit/editors/test_remedi_hook.py::test_tv17_loss_of_two_probabilities",
        "unit/studies/test_entities.py::test_tv17_cooccurrence",
    ],
    18: ["unit/studies/test_bench.py::test_tv18_probe_metrics"],
    19: ["unit/editors/test_mend.py::test_running_statistics_are_those_of_all_rows_however_they_come"],
}
"""Of ROME, MEMIT, MEND, tracing, the five problems and REMEDI (Meng et al. 2022, Hase et al. 2023, Hernandez 2023)."""

ABILITIES = "unit/exam/test_general_tasks.py::test_v"
GENERAL = {
    1: [f"{ABILITIES}1_normalisation"],
    2: [f"{ABILITIES}2_open_domain_single_items"],
    3: [f"{ABILITIES}3_open_domain_run", f"{ABILITIES}3_increments_one_by_one"],
    4: [f"{ABILITIES}4_nli_counts", f"{ABILITIES}4_nli_values_and_oddity_15_double_counting"],
    5: [
        f"{ABILITIES}5_closed_domain_substring_rule",
        "unit/exam/test_general_tasks.py::test_oddity_13_strict_rule_before_editing",
    ],
    6: [f"{ABILITIES}6_dialogue"],
    7: [f"{ABILITIES}7_reasoning"],
    8: [f"{ABILITIES}8_rouge"],
    9: [
        f"{ABILITIES}9_texts_and_documents",
        f"{ABILITIES}9_released_macro_recall",
        f"{ABILITIES}9_recall_of_correct_names",
        "unit/exam/test_general_tasks.py::test_oddity_12_gold_strings",
    ],
    10: [
        "golden/test_rect.py::test_the_published_example_keeps_a_quarter",
        "golden/test_rect.py::test_v10_of_sixteen_entries_the_nearest_whole_number_stays",
        "golden/test_rect.py::test_signs_do_not_matter_and_a_vector_is_treated_alike",
    ],
    11: ["golden/test_prune.py::test_the_reductions"],
    12: ["golden/test_prune.py::test_a_matrix_by_hand"],
    13: [
        "unit/exam/test_statistics.py::test_v13_editing_metrics_over_records",
        "unit/exam/test_edit_tasks.py::test_v13_means_over_records_of_means_over_prompts",
    ],
    14: ["unit/test_oddities.py::test_oddity_04_a_partial_last_batch_is_kept_and_names_count_plainly"],
}
"""Of the general abilities, RECT and PRUNE (Gu et al. 2024, Ma et al. 2025)."""

COUNTED = {
    "canonical-examples.md": (CANONICAL, r"^## 9\. Test vectors(.*?)^---", r"^(\d+)\. "),
    "localization-and-remedi.md": (LOCALISATION, r"^## 18\. (.*?)^---", r"^TV-(\d+) "),
    "general-abilities.md": (GENERAL, r"^## 10\. Test vectors(.*?)^---", r"^\*\*V(\d+) "),
}
GOLDEN = {
    "A_rome_gpt2": ["golden/test_rome.py", "golden/test_counterfact_eval.py", "golden/test_zsre_eval.py"],
    "B_covariance_gpt2": ["golden/test_covariance.py"],
    "B_memit_gpt2": ["golden/test_memit.py", "golden/test_emmet.py"],
    "C_alphaedit_gpt2": ["golden/test_alphaedit.py"],
    "D_ft_memit_baseline": ["golden/test_ft.py"],
    "E_kn_gpt2": ["golden/test_golden_kn.py"],
    "F_mend_gpt2": ["golden/test_golden_mend.py"],
    "G_prune": ["golden/test_prune.py"],
    "G_rect_memit_gpt2": ["golden/test_rect.py"],
    "H_counterfact_eval": ["golden/test_counterfact_eval.py"],
    "H_zsre_eval": ["golden/test_zsre_eval.py"],
    "I_canonical_examples": ["golden/test_canonical_examples.py"],
    "J_remedi_gpt2": ["golden/test_remedi.py"],
    "K_encore_gpt2": ["golden/test_encore.py"],
    "K_nas_gpt2": ["golden/test_nas.py"],
    "K_pmet_gpt2": ["golden/test_golden_pmet.py"],
    "M_lora": ["golden/test_lora.py"],
    "L_betaedit_gpt2": ["golden/test_golden_closed_forms.py"],
    "L_lyaplock_gpt2": ["golden/test_golden_closed_forms.py"],
    "L_sphere_gpt2": ["golden/test_golden_closed_forms.py"],
    "M_ultraedit_gpt2": ["golden/test_golden_ultraedit.py"],
    "N_malmen_gpt2": ["golden/test_golden_malmen.py"],
    "N_stableedit_gpt2": ["golden/test_golden_ultraedit.py"],
    "P_grace_gpt2": ["golden/test_golden_grace.py"],
    "P_wise_llama": ["golden/test_golden_wise.py", "golden/test_golden_wise_distance.py"],
    "P_wise_retrieve_llama": ["golden/test_golden_wise.py", "golden/test_golden_wise_distance.py"],
    "Q_memoir_llama": ["golden/test_golden_memoir.py"],
    "Q_unke_llama": ["golden/test_golden_unke.py"],
}
"""The numbers of the authors' own code that lie in ``golden/data``, by their folder."""

SELECTED = (
    *("B_memit_gpt2", "C_alphaedit_gpt2", "L_betaedit_gpt2", "L_lyaplock_gpt2", "L_sphere_gpt2", "M_ultraedit_gpt2"),
    *("K_encore_gpt2", "N_malmen_gpt2"),
    *("N_stableedit_gpt2", "P_grace_gpt2", "P_wise_llama", "P_wise_retrieve_llama", "Q_memoir_llama"),
    "Q_unke_llama",
)
"""Folders of which ``golden/data`` holds what the tests need, and not all that there is, or holds it in float32."""

TO_COME: dict[str, str] = {}
"""Numbers that no test reads yet, each with the reason; they are added to ``golden/data`` with what they are for."""

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, id=f"{group}-{number}")
        for group, held in (("canonical", CANONICAL), ("tv", LOCALISATION), ("v", GENERAL))
        for number, names in held.items()
    ],
)
def test_a_vector_is_held(names: list[str], is_test: Callable[[str], bool]) -> None:
    assert names
    assert all(is_test(name) for name in names), names


@pytest.mark.parametrize("page", COUNTED)
def test_every_vector_of_a_page_is_in_its_table(page: str, shared: Path) -> None:
    held, section, number = COUNTED[page]
    found = re.search(section, (shared / "specs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    assert [int(n) for n in re.findall(number, found[1], re.MULTILINE)] == list(held)


def test_every_folder_of_numbers_is_read() -> None:
    folders = {path.name for path in (TESTS / "golden" / "data").iterdir() if re.match("[A-Z]_", path.name)}
    assert folders == set(GOLDEN)
    for folder, files in GOLDEN.items():
        assert all(folder in (TESTS / file).read_text(encoding="utf-8") for file in files), folder


def test_every_folder_of_the_reference_data_is_kept_or_to_come(shared: Path) -> None:
    folders = {path.name for path in (shared / "golden").iterdir() if re.match("[A-Z]_", path.name)}
    assert folders == set(GOLDEN) | set(TO_COME)
    assert not set(GOLDEN) & set(TO_COME)


def test_the_numbers_are_those_of_the_reference_data(shared: Path) -> None:
    """Byte by byte; what ``golden/data`` holds beside them is told in its README."""
    for folder in {*GOLDEN, "models", "inputs"} - set(SELECTED):
        kept = TESTS / "golden" / "data" / folder
        for file in kept.rglob("*.*"):
            assert file.read_bytes() == (shared / "golden" / folder / file.relative_to(kept)).read_bytes(), file


@pytest.mark.parametrize("folder", SELECTED)
def test_what_was_selected_are_numbers_of_the_reference_data(shared: Path, folder: str) -> None:
    """Value by value: each tensor, and each number of a JSON file."""
    kept, whole = TESTS / "golden" / "data" / folder, shared / "golden" / folder
    for name, tensor in load_file(kept / "expected.safetensors").items():
        assert torch.equal(tensor, load_file(whole / "expected.safetensors")[name].to(tensor.dtype)), name
    for file in kept.glob("*.json"):
        assert_part(json.loads(file.read_text(encoding="utf-8")), json.loads((whole / file.name).read_text("utf-8")))


def assert_part(part: object, whole: object) -> None:
    """All that stands in some JSON stands in another, at the same place."""
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        for key, value in part.items():
            assert_part(value, whole[key])
    else:
        assert part == whole


def test_the_numbers_take_at_most_twelve_megabytes() -> None:
    assert sum(file.stat().st_size for file in (TESTS / "golden" / "data").rglob("*") if file.is_file()) < 12_000_000


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their bare names, and stops at the second."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
