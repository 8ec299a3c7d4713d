"""What an edit may want: the formulas, every editor that follows them, and those that refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.ft_l import BoundedFineTuning
from editors.ft_m import MaskedFineTuning
from editors.locft import BreadthFirst
from editors.lora import Lora
from editors.memit import Memit
from editors.rome import Rome
from harness.editing.directions import DIRECTIONS, LIKELIHOOD, PAIRED, floor, losses, nll
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import editor_names, find
from harness.editing.schedule import duplicates, require_editable
from harness.errors import DataError, UsageError
from harness.methods.descent import DescentSettings, descend, tokenise
from harness.methods.value import optimise
from harness.methods.value_rows import Objective
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

CONTEXTS = ("{}", "Nobody knows. {}", "The. {}")
LOG_P = torch.tensor([-0.5, -1.5, -3.0, -2.0], dtype=torch.float64)


def wanting(edit: Edit, direction: str) -> Edit:
    """The same edit with a direction, against another city where it compares."""
    return replace(edit, direction=direction, against="Vienna" if direction in PAIRED else None)  # type: ignore[arg-type]


def mixed(edits: Sequence[Edit]) -> list[Edit]:
    """One edit of each direction, with targets of one and of several tokens."""
    found = [wanting(edits[i % 2], direction) for i, direction in enumerate(sorted(DIRECTIONS))]
    return [replace(edit, id=f"{i}") for i, edit in enumerate(found)]


def token_nlls(lm: LM, edit: Edit, text: str, context: str = "{}") -> Tensor:
    """The negative log-likelihood of each token of a continuation, from one plain pass."""
    prompt, target = lm.encode(context.replace("{}", edit.text)), lm.continuation(edit.text, text)
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([prompt + target])).logits[0].double().log_softmax(-1)
    return -torch.stack([log_p[len(prompt) - 1 + i, token] for i, token in enumerate(target)])


def by_hand(lm: LM, edit: Edit, normalisation: str = "mean", contexts: Sequence[str] = ("{}",)) -> float:
    """What an edit minimises, written out again."""

    def mean(text: str) -> float:
        each = [token_nlls(lm, edit, text, context) for context in contexts]
        return sum(float(e.mean() if normalisation == "mean" else e.sum()) for e in each) / len(each)

    target = mean(edit.continuation)
    against = mean(edit.rival) if edit.rival else math.nan
    return {
        "likelihood": target,
        "unlikelihood": -target,
        "erasure": math.exp(-target),
        "balance": abs(target - against),
        "contrast": target - against,
    }[edit.direction]


def test_nll_of_hand_made_tokens() -> None:
    owner = torch.tensor([0, 0, 1, 1])
    assert nll(LOG_P, owner, 2).tolist() == [1.0, 2.5]
    assert nll(LOG_P, owner, 2, normalisation="sum").tolist() == [2.0, 5.0]


def test_the_loss_of_every_direction_side_by_side() -> None:
    target = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    against = torch.tensor([9.0, 9.0, 9.0, 3.5, 3.5], dtype=torch.float64, requires_grad=True)
    found = losses(["likelihood", "unlikelihood", "erasure", "balance", "contrast"], target, against)
    assert found.tolist() == pytest.approx([1.0, -1.0, math.exp(-1), 2.5, -2.5], abs=1e-15)
    torch.autograd.backward(found.sum())
    assert target.grad is not None and against.grad is not None
    assert target.grad.tolist() == pytest.approx([1.0, -1.0, -math.exp(-1), -1.0, 1.0], abs=1e-15)
    assert against.grad.tolist() == [0.0, 0.0, 0.0, 1.0, -1.0]


def test_likelihood_alone_is_the_very_tensor() -> None:
    target = torch.tensor([1.0, 2.0])
    assert losses(["likelihood"] * 2, target) is target


def test_where_each_direction_ends() -> None:
    found = {direction: floor(direction, 0.05) for direction in DIRECTIONS}
    assert found == {"likelihood": 0.05, "balance": 0.05, "erasure": 0.05, "unlikelihood": -50.0, "contrast": -50.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": "likely"}, "direction 'likely' does not exist"),
        ({"direction": "balance"}, "compares two continuations"),
        ({"direction": "contrast", "against": " "}, "compares two continuations"),
        ({"against": "Oslo"}, "has one continuation"),
        ({"direction": "erasure", "against": "Oslo"}, "has one continuation"),
        ({"direction": "balance", "against": "Rome"}, "give two continuations"),
    ],
)
def test_edits_that_do_not_fit_together(change, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Edit("a", "{} was born in", "Ada Velmont", "Rome", **change)


@pytest.mark.parametrize("normalisation", ["mean", "sum"])
def test_gradient_editors_start_at_the_loss_of_a_mixed_batch(tiny, edits, normalisation) -> None:
    lm, wanted = tiny("gpt2"), mixed(edits)
    settings = DescentSettings(steps=1, normalisation=normalisation)
    found = descend(lm, wanted, [lm.down(1)], settings=settings).losses[0]
    assert found == pytest.approx(sum(by_hand(lm, e, normalisation) for e in wanted) / 5, rel=1e-5)
    assert descend(lm, wanted[:1], [lm.down(1)], settings=settings).losses[0] == pytest.approx(
        by_hand(lm, wanted[0], normalisation), rel=1e-5
    )


def test_the_values_of_a_mixed_batch_start_at_its_losses(tiny, edits) -> None:
    lm, wanted = tiny("gpt2"), mixed(edits)
    found = optimise(lm, wanted, CONTEXTS, objective=Objective(1, steps=1))
    for edit, row in zip(wanted, found.losses, strict=True):
        assert row[0].tolist() == pytest.approx([by_hand(lm, edit, contexts=CONTEXTS)] * 2 + [0, 0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_values_of_mixed_directions_side_by_side_are_those_alone(fresh, edits, family) -> None:
    lm, wanted = fresh(family, dtype=torch.float64), mixed(edits)
    objective = Objective(1, steps=6, clamp=2.0)
    together = optimise(lm, wanted, CONTEXTS, objective=objective)
    for i, edit in enumerate(wanted):
        alone = optimise(lm, [edit], CONTEXTS, objective=objective)
        assert torch.allclose(together.delta[i], alone.delta[0], rtol=1e-6, atol=1e-9)
        assert len(together.losses[i]) == len(alone.losses[0])


def test_an_erasure_takes_all_its_steps_and_so_does_never(tiny, edits) -> None:
    """By Hase's patience, which never ends; a likelihood that is met stops at once."""
    lm, edit = tiny("gpt2"), edits[0]
    easy = Objective(1, steps=5, threshold=1e9)
    assert len(optimise(lm, [edit], CONTEXTS, objective=easy).losses[0]) == 1
    assert len(optimise(lm, [edit], CONTEXTS, objective=replace(easy, stop="never")).losses[0]) == 5
    assert len(optimise(lm, [wanting(edit, "erasure")], CONTEXTS, objective=easy).losses[0]) == 5


def test_a_target_that_shall_become_likelier_alone_ends_a_text(tiny, edits) -> None:
    lm = tiny("gpt2")
    plain, bad = tokenise(lm, [edits[0], wanting(edits[0], "unlikelihood")], end_of_text=True)
    assert plain.target == [*bad.target, lm.tokenizer.eos_token_id]


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
@pytest.mark.parametrize(
    "editor",
    [
        BoundedFineTuning(layers=(1,), loss="target_new", lr=2e-3, norm_constraint=2e-2, steps=8),
        MaskedFineTuning(layers=(1,), lr=2e-3, steps=8),
        BreadthFirst(layers=(1,), lr=2e-3, steps=8),
        Lora(lr=1e-3, steps=8),
        Rome(layers=(0,), v_steps=25, v_lr=0.2, v_weight_decay=0.0, clamp=20.0, cov_tokens=4000, contexts=CONTEXTS),
        Memit(
            layers=(0, 1),
            v_steps=25,
            v_lr=0.2,
            v_weight_decay=0.0,
            clamp=20.0,
            cov_tokens=4000,
            contexts=CONTEXTS,
            lam=1.0,
        ),
    ],
    ids=lambda editor: editor.name,
)
def test_editors_lower_what_an_edit_minimises(taught: Callable[[str], LM], edits, editor: Editor, direction) -> None:
    lm, edit = taught("gpt2"), wanting(edits[0], direction)
    if direction == "erasure":
        edit = replace(edit, target="Paris")  # what the model says: an improbable target has nothing to lose
    before = by_hand(lm, edit)
    with patched(lm, Patch(editor.edit(lm, [edit]).weights)):
        after = by_hand(lm, edit)
    assert after < before - 0.02


def test_an_editor_that_cannot_follow_a_direction_says_who_can(tiny, edits) -> None:
    asked = wanting(edits[0], "balance")
    with pytest.raises(
        UsageError, match=r"edit a wants balance, which kn cannot follow; editors that can: .*memit.*rome"
    ):
        require_editable(find("kn")(), tiny("gpt2"), [asked], mode="isolated")
    require_editable(find("memit")(), tiny("gpt2"), [asked], mode="batch")


def test_who_follows_what() -> None:
    able = {name for name in editor_names() if find(name).directions == DIRECTIONS}
    assert {"alphaedit", "emmet", "ft", "ft_l", "ft_m", "locft", "lora", "memit", "none", "r_rome", "rome"} <= able
    assert not able & {"grace", "ike", "kn", "mend", "rag", "remedi", "ultraedit", "wise"}
    pairs = {"dpo", "caa", "sae", "steer"}  # they compare two answers by their nature
    assert all(find(name).directions == LIKELIHOOD | {"contrast"} for name in pairs)
    assert all(find(name).directions == LIKELIHOOD for name in set(editor_names()) - able - pairs)


def test_what_is_wanted_tells_edits_of_one_prompt_apart(edits) -> None:
    good, bad = edits[0], replace(edits[0], id="z", direction="unlikelihood")
    assert duplicates([good, bad]) == []
    assert "repeats" in duplicates([bad, replace(bad, id="y")])[0]
