"""Text that no edit is about: numbers against plain formulas, and the tripwires."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import harness
from harness.exam import collapse, neutral_text
from harness.exam.statistics import Ratio
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched


@pytest.fixture(scope="module")
def lm(tiny: Callable[[str], LM], text: str) -> LM:
    return replace(tiny("gpt2"), text=text)


@pytest.fixture(scope="module")
def bump(lm: LM) -> Patch:
    """A change of rank one that shows."""
    out, width = lm.matrix(lm.down(1)).shape
    generator = torch.Generator().manual_seed(0)
    return Patch(
        {lm.down(1): LowRank(torch.randn(out, 1, generator=generator), torch.randn(1, width, generator=generator))}
    )


def test_perplexity_and_divergence_are_those_of_the_plain_formulas(lm: LM, bump: Patch) -> None:
    texts = neutral_text.texts(lm, 5)
    base = neutral_text.read_neutral_text(lm, texts, None)
    with patched(lm, bump):
        now = neutral_text.read_neutral_text(lm, texts, base)
    for i, row in enumerate(texts.rows):
        ids = torch.tensor([row])
        with torch.no_grad():
            before = lm.model(ids).logits[0, :-1].double().log_softmax(-1)
            with patched(lm, bump):
                after = lm.model(ids).logits[0, :-1].double().log_softmax(-1)
        nll = -sum(float(after[t, token]) for t, token in enumerate(row[1:]))
        kl = float(torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum"))
        assert now.values["nll"][f"neutral_text/{i}"] == Ratio(pytest.approx(nll, rel=1e-5), len(row) - 1)  # type: ignore[arg-type]
        assert now.values["kl"][f"neutral_text/{i}"].num == pytest.approx(kl, rel=1e-3)
    assert sum(r.num for r in now.values["kl"].values()) > 0


def test_the_unedited_model_does_not_diverge_from_itself(lm: LM) -> None:
    texts = neutral_text.texts(lm, 5)
    base = neutral_text.read_neutral_text(lm, texts, None)
    again = neutral_text.read_neutral_text(lm, texts, base)
    assert all(ratio.num == 0 for ratio in again.values["kl"].values())
    assert again.log_p == ()  # kept of the unedited model alone


def test_a_prompt_rule_is_read_but_only_the_documents_own_tokens_count(lm: LM) -> None:
    texts = neutral_text.texts(lm, 4)
    base = neutral_text.read_neutral_text(lm, texts, None)
    now = neutral_text.read_neutral_text(lm, texts, base, prompt=lambda text: f"Nobody knows. {text}")
    row = list(lm.encode("Nobody knows. " + texts.documents[0]))
    steps = len(texts.rows[0]) - 1
    with torch.no_grad():
        log_p = lm.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
    wanted = -sum(float(log_p[len(row) - steps - 1 + t, token]) for t, token in enumerate(row[-steps:]))
    assert tuple(row[-steps:]) == texts.rows[0][1:]
    assert now.values["nll"]["neutral_text/0"] == Ratio(pytest.approx(wanted, rel=1e-5), steps)  # type: ignore[arg-type]


def test_repetition_counts_trigrams_that_occurred_before() -> None:
    assert neutral_text._repeated([1, 2, 3, 4, 5]) == 0
    assert neutral_text._repeated([7] * 12) == pytest.approx(0.9)  # ten trigrams, one kind
    assert neutral_text._repeated([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)
    assert neutral_text._repeated([1, 2]) == 0


def likeliest(lm: LM, ids: list[int], never: int | None) -> int:
    """The likeliest next token but one, by a pass of its own."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, -1]
    if never is not None:
        logits[never] = -torch.inf
    return int(logits.argmax())


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_repetition_is_of_the_likeliest_texts_of_which_none_ends(
    family: str, tiny: Callable[[str], LM], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = replace(tiny(family), text=text)
    texts = neutral_text.texts(lm, 5)
    openings = [list(row[: len(row) // 2]) for row in texts.rows if len(row) // 2 + 32 <= lm.context]
    end = likeliest(lm, openings[0], None)  # which would be written at once
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", end)
    monkeypatch.setattr(lm.model.generation_config, "repetition_penalty", 5.0)  # a checkpoint's advice is not followed
    wanted = []
    for opening in openings:
        ids = list(opening)
        for _ in range(32):
            ids.append(likeliest(lm, ids, end))
        wanted.append(ids[len(opening) :])
    assert neutral_text._continued(lm, [tuple(opening) for opening in openings]) == wanted
    shares = [neutral_text._repeated(written) for written in wanted]
    assert neutral_text.repetition(lm, texts) == pytest.approx(sum(shares) / len(shares))


def test_repetition_under_a_patch_that_looks_at_logits_is_that_of_the_patch(lm: LM) -> None:
    texts = neutral_text.texts(lm, 5)

    def always_seven(logits: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(7), logits.shape[-1]).expand_as(logits) * 9.0

    with patched(lm, Patch(logits=always_seven)):
        assert neutral_text.repetition(lm, texts) == pytest.approx(29 / 30)  # one token, thirty trigrams


def test_the_shipped_models_read_what_training_did_not_draw() -> None:
    from harness.models.lm import load

    texts = neutral_text.texts(load("mini", device="cpu"), 10)
    held_out = (Path(harness.__file__).parent / "mini" / "text_heldout.txt").read_text(encoding="utf-8").splitlines()
    assert list(texts.documents) == held_out[:10]


def reading(nll: float, repetition: float | None = 0.1) -> neutral_text.TextReading:
    return neutral_text.TextReading({"nll": {"a": Ratio(nll * 10, 10)}, "kl": {}}, (), repetition)


@pytest.mark.parametrize(
    ("nll", "ratio", "repetition", "wanted"),
    [
        (2.0, 1.0, 0.1, []),
        (2.0 + math.log(9.9), 1.0, 0.1, []),
        (2.0 + math.log(10.1), 1.0, 0.1, ["perplexity"]),
        (math.nan, 1.0, 0.1, ["nan"]),
        (math.inf, 1.0, 0.1, ["nan"]),
        (2.0, 1.99, 0.1, []),
        (2.0, 2.01, 0.1, ["norm"]),
        (2.0, 0.49, 0.1, ["norm"]),
        (2.0, None, 0.1, []),  # a parameter that was zero has no ratio, and has not collapsed
        (2.0, 1.0, 0.51, ["repetition"]),
        (2.0, 1.0, 0.49, []),
        (2.0, 1.0, None, []),
        (9.0, 3.0, 0.9, ["perplexity", "norm", "repetition"]),
    ],
)
def test_tripwires(nll: float, ratio: float | None, repetition: float | None, wanted: list[str]) -> None:
    found = collapse.fired(reading(2.0), reading(nll, repetition), {"w": {"norm_ratio": ratio}})
    assert found == wanted


def test_a_model_that_always_repeated_itself_has_not_collapsed() -> None:
    assert collapse.fired(reading(2.0, 0.6), reading(2.0, 0.9), {}) == []


def test_the_unedited_model_is_read_once_for_many_plans(lm: LM, bump: Patch) -> None:
    texts = neutral_text.texts(lm, 5)
    first = neutral_text.unedited_reading(lm, texts, ("a",))
    assert neutral_text.unedited_reading(lm, texts, ("a",)) is first
    assert neutral_text.unedited_reading(lm, neutral_text.texts(lm, 4), ("a",)) is not first
    with patched(lm, bump):
        other = neutral_text.unedited_reading(lm, texts, ("b",))
    assert other.values["nll"] == neutral_text.unedited_reading(lm, texts, ("b",)).values["nll"] != first.values["nll"]
