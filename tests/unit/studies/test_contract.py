"""The contract as a command runs it: an editor that breaks a promise is caught, and told what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.ft_m import MaskedFineTuning
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.promises import PROMISES
from harness.models.lm import LM, load
from harness.patches.delta import Dense
from harness.patches.patch import Patch, Step
from harness.studies.contract.checks import CHECKS, BrokenPromiseError, Candidate
from harness.studies.contract.contract import recipe_of, run_contract

CALLS = count()
"""What no editor may keep: state of the process."""


@dataclass(frozen=True)
class Good(Editor):
    """One step up the gradient of all targets; keeps every promise."""

    name = "good"

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        if not edits:
            return Patch()
        tuned = MaskedFineTuning(layers=(1,), steps=30, lr=5e-3)
        return tuned.edit(lm, edits)


class Idle(Good):
    """Changes next to nothing."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        made = super().edit(lm, edits)
        return replace(made, weights={name: Dense(delta.dense() * 1e-3) for name, delta in made.weights.items()})


class Writes(Good):
    """Leaves the model changed."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        with torch.no_grad():
            lm.parameter(lm.down(0)).add_(1e-3)
        return super().edit(lm, edits)


class Hooks(Good):
    """Leaves a hook behind."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        lm.module(lm.arch.embedding).register_forward_hook(lambda module, args, output: None)
        return super().edit(lm, edits)


class Chance(Good):
    """Draws from a generator that nobody seeds."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        made = super().edit(lm, edits)
        size = 1 + 1e-3 * next(CALLS)
        return replace(made, weights={name: Dense(delta.dense() * size) for name, delta in made.weights.items()})


class Mixes(Good):
    """Remembers the first model it ever saw."""

    seen: list[Patch] = []  # noqa: RUF012 - the fault itself

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        if edits:
            self.seen.append(super().edit(lm, edits))
        return self.seen[0] if edits else Patch()


class Neighbour(Good):
    """Side by side, each edit gets the change of the first."""

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        return [self.edit(lm, edits[:1]) for _ in edits]


class Repeats(Good):
    """Its second operation is empty."""

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        made = super().edit(lm, edits) if memory is None else Patch()
        return replace(made, memory="done")


def of_the_last_column(hidden: Tensor, step: Step) -> Tensor:
    """Adds to the last column of whatever it is given, wherever that stands."""
    changed = hidden.clone()
    changed[:, -1] += 3.0
    return changed


class Columns(Good):
    """Depends on how the text is cut into passes, and on the side of the padding."""

    seams = frozenset({"weights", "activations"})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        made = super().edit(lm, edits)
        return replace(made, hooks={lm.arch.block(1): of_the_last_column}) if edits else made


BREAKS: dict[type[Editor], str] = {
    Idle: "target",
    Writes: "unchanged",
    Hooks: "restored",
    Chance: "seeded",
    Mixes: "models",
    Neighbour: "isolated",
    Repeats: "sequential",
    Columns: "generation",
}


@pytest.fixture
def candidate(
    taught: Callable[[str], LM], fresh: Callable[..., LM], edits: list[Edit]
) -> Iterator[Callable[..., Candidate]]:
    model = fresh("llama")
    model.model.load_state_dict(taught("llama").model.state_dict())

    def of(cls: type[Editor]) -> Candidate:
        return Candidate(lambda lm: cls(), model, edits, lambda: fresh("llama"), lambda: fresh("llama", 1))

    yield of
    Mixes.seen.clear()


def test_there_is_a_check_for_every_promise() -> None:
    assert list(CHECKS) == list(PROMISES)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_good_editor_keeps_it(candidate: Callable[..., Candidate], promise: str) -> None:
    CHECKS[promise](candidate(Good))


@pytest.mark.parametrize(("cls", "promise"), BREAKS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_promise_is_seen(candidate: Callable[..., Candidate], cls: type[Editor], promise: str) -> None:
    with pytest.raises(BrokenPromiseError):
        CHECKS[promise](candidate(cls))


FAULTY = """
from harness.editor_kit import Editor


class Faulty(Editor):
    name = "faulty"
    exceptions = {"cache": "its cache is the size of a moon"}

    def edit(self, lm, edits, memory=None):
        return {}["change"]
"""


def test_an_error_of_the_editors_own_is_a_broken_promise_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    found = {v.promise: v for v in run_contract(recipe_of(str(path)), load("mini"))}
    assert found["target"].outcome == "broken"
    assert found["target"].reason == f"KeyError in {path}:10: 'change'"
    assert (found["cache"].outcome, found["cache"].reason) == ("excepted", "its cache is the size of a moon")
    assert list(found) == list(PROMISES)


def test_an_editor_that_returns_nothing_breaks_its_promises_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY.replace('return {}["change"]', "pass"))
    found = {v.promise: v for v in run_contract(recipe_of(str(path)), load("mini"))}
    said = {v.reason for v in found.values() if v.outcome == "broken"}
    assert said == {"UsageError: faulty: edit() gave None, expected a Patch; end it with `return Patch(...)`"}


def test_a_wrapper_named_alone_stands_around_memit() -> None:
    assert [part.name for part in recipe_of("rect").parts] == ["memit", "rect"]
    assert [part.name for part in recipe_of("rome+prune").parts] == ["rome", "prune"]
    assert [part.name for part in recipe_of("rome").parts] == ["rome"]


def test_a_shipped_editor_keeps_all_on_the_shipped_model() -> None:
    told: list[str] = []
    found = run_contract(recipe_of("ft_m"), load("mini"), progress=lambda phase, done, total: told.append(phase))
    assert [v.promise for v in found if v.outcome != "kept"] == sorted(recipe_of("ft_m").cls.exceptions)
    assert told == list(PROMISES)
