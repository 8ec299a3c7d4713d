"""In which portions edits are made, where a run stops, and what each operation sees of the earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from harness.editing import schedule
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.errors import UsageError
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched


def made(count: int) -> list[Edit]:
    """So many edits."""
    return [Edit(str(i), "{} was born in", f"Person {i}", "Rome") for i in range(count)]


@dataclass(frozen=True)
class Recorder(Editor):
    """Adds 1 to an entry of a matrix for each edit, and notes what it was called with and how the model looked."""

    name = "recorder"

    calls: list[tuple[list[str], object]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        matrix = lm.matrix(lm.down(0))
        self.calls.append(([edit.id for edit in edits], memory))
        self.seen.append(round(float(matrix[0, 0]), 3))
        change = torch.zeros_like(matrix)
        change[0, 0] = len(edits)
        return Patch({lm.down(0): Dense(change)}, memory=(memory or 0) + len(edits))  # type: ignore[operator]

    def finish(self, lm: LM, total: Patch) -> Patch:
        self.finished.append(float(total.weights[lm.down(0)].dense()[0, 0]))
        return replace(total, weights={name: delta * 0.5 for name, delta in total.weights.items()})


@dataclass(frozen=True)
class Single(Recorder):
    """One fact at a time, and only about a subject."""

    name = "single"
    batch = False
    needs_subject = True


def walk(lm: LM, editor: Editor, count: int, mode: str, size: int | None, at: Sequence[int]) -> list[schedule.Stop]:
    """All stops, with the model as it was at each of them."""
    before, stops = lm.fingerprint(), []
    for stop in schedule.walk(editor, lm, made(count), mode=mode, batch_size=size, at=at):
        assert lm.fingerprint() == before  # the caller measures on the unedited model
        stops.append(stop)
    assert lm.fingerprint() == before
    return stops


def entry(lm: LM, patch: Patch) -> float:
    """What a patch adds to the entry."""
    return float(patch.weights[lm.down(0)].dense()[0, 0])


# --- what is no change of the model ---


@pytest.fixture
def lm(tiny: Callable[[str], LM]) -> LM:
    """A tiny GPT-2."""
    return tiny("gpt2")


@dataclass(frozen=True)
class Wrong(Editor):
    """Gives back whatever it is told to."""

    name = "wrong"

    gives: object = field(default=None, metadata={"hidden": True})
    finishes: object = field(default="the sum", metadata={"hidden": True})

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        return self.gives  # type: ignore[return-value]

    def finish(self, lm: LM, total: Patch) -> Patch:
        return total if self.finishes == "the sum" else self.finishes  # type: ignore[return-value]


def holding(**parts: object) -> Patch:
    """A patch that holds what it cannot hold."""
    patch = Patch()
    for name, value in parts.items():
        object.__setattr__(patch, name, value)
    return patch


DOWN = "transformer.h.0.mlp.c_proj.weight"
WRONG = [
    (None, "edit() gave None, expected a Patch; end it with `return Patch(...)`"),
    ([Patch()], "edit() gave a list, expected a Patch"),
    (holding(weights=[DOWN]), "edit() gave a Patch whose weights are a list"),
    (holding(weights={DOWN: torch.zeros(2, 2)}), f"the change of '{DOWN}' is a Tensor, expected a LowRank"),
    (holding(weights={0: Dense(torch.zeros(2, 2))}), "0 is no name of a parameter"),
    (Patch({"h.0.down": Dense(torch.zeros(2, 2))}), "'h.0' is not a module of"),
    (Patch({DOWN.replace("weight", "wait"): Dense(torch.zeros(2, 2))}), "wait' is not a parameter of"),
    (holding(hooks={DOWN.removesuffix(".weight"): 3}), "edit() gave a int for transformer.h.0.mlp.c_proj"),
    (holding(prompt="Ada lives in"), "edit() gave a str for the prompt, expected a function"),
]


@pytest.mark.parametrize("mode", schedule.MODES)
@pytest.mark.parametrize(("gives", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_what_is_no_patch_of_the_model_is_told_in_one_line(lm: LM, gives: object, said: str, mode: str) -> None:
    with pytest.raises(UsageError) as caught:
        walk(lm, Wrong(gives), 2, mode, None, [2])
    assert str(caught.value).startswith("wrong: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", schedule.MODES)
def test_a_transposed_change_is_told_with_both_shapes(lm: LM, mode: str) -> None:
    out, width = lm.matrix(DOWN).shape
    with pytest.raises(UsageError, match=rf"^wrong: '{DOWN}' is \({out}, {width}\), its change is \({width}, {out}\)"):
        walk(lm, Wrong(Patch({DOWN: Dense(torch.ones(width, out))})), 2, mode, None, [2])


@pytest.mark.parametrize("mode", schedule.MODES)
def test_what_finish_gives_is_looked_at_too(lm: LM, mode: str) -> None:
    with pytest.raises(UsageError, match=r"^wrong: finish\(\) gave None, expected a Patch"):
        walk(lm, Wrong(Patch(), None), 2, mode, None, [2])


@dataclass(frozen=True)
class Uneven(Recorder):
    """One patch for all that it is to make alone."""

    name = "uneven"

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        return [self.edit(lm, edits)]


def test_a_patch_for_each_edit_is_wanted(lm: LM) -> None:
    with pytest.raises(UsageError, match=r"^uneven: edit_each\(\) gave 1 patches, expected a list of 2"):
        walk(lm, Uneven(), 2, "isolated", None, [2])


# --- tables ------------------------------------------


@pytest.mark.parametrize(
    ("count", "mode", "size", "expected"),
    [
        (3, "isolated", None, [[0], [1], [2]]),
        (3, "batch", None, [[0, 1, 2]]),
        (3, "sequential", None, [[0], [1], [2]]),
        (7, "sequential", 3, [[0, 1, 2], [3, 4, 5], [6]]),
        (6, "sequential", 3, [[0, 1, 2], [3, 4, 5]]),
        (2, "sequential", 5, [[0, 1]]),
        (0, "batch", None, []),
    ],
)
def test_operations(count: int, mode: str, size: int | None, expected: list[list[int]]) -> None:
    assert [list(portion) for portion in schedule.operations(count, mode, size)] == expected


@pytest.mark.parametrize(
    ("count", "mode", "size", "message"),
    [
        (3, "serial", None, "mode 'serial' does not exist; choose isolated, batch, sequential"),
        (3, "sequential", 0, "batch size 0.*at least 1"),
        (3, "sequential", -2, "batch size -2.*at least 1"),
        (3, "batch", 2, "batch size 2 with mode batch: .*--mode sequential"),
        (3, "isolated", 2, "batch size 2 with mode isolated"),
    ],
)
def test_operations_that_cannot_be(count: int, mode: str, size: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedule.operations(count, mode, size)


@pytest.mark.parametrize(
    ("eval_at", "count", "mode", "size", "expected"),
    [
        ("final", 5, "sequential", None, [0, 5]),
        ("0,2,final", 5, "sequential", None, [0, 2, 5]),
        (" 4 , 2 ", 5, "sequential", None, [0, 2, 4]),
        ("every:2", 5, "sequential", None, [0, 2, 4, 5]),
        ("every:9", 5, "sequential", None, [0, 5]),
        ("1,every:3", 7, "sequential", None, [0, 1, 3, 6, 7]),
        ("every:3", 7, "sequential", 3, [0, 3, 6, 7]),
        ("final", 7, "sequential", 3, [0, 7]),
        ("final", 7, "batch", None, [0, 7]),
        ("0", 7, "batch", None, [0]),
        ("", 7, "batch", None, [0]),
        ("final", 4, "isolated", None, [0, 4]),
        ("0", 4, "isolated", None, [0]),
    ],
)
def test_stops(eval_at: str, count: int, mode: str, size: int | None, expected: list[int]) -> None:
    assert schedule.stops(eval_at, count, mode=mode, batch_size=size) == expected


@pytest.mark.parametrize(
    ("eval_at", "mode", "size", "message"),
    [
        ("often", "sequential", None, "--eval-at 'often' cannot be read.*every:K"),
        ("every:0", "sequential", None, "'every:0' cannot be read"),
        ("every:x", "sequential", None, "'every:x' cannot be read"),
        ("-1", "sequential", None, "'-1' cannot be read"),
        ("\N{SUPERSCRIPT TWO}", "sequential", None, "cannot be read"),
        ("8", "sequential", None, "--eval-at 8: there are only 7 edits"),
        ("4", "sequential", 3, "--eval-at 4: no operation ends after 4 edits; operations end at 0, 3, 6, 7"),
        ("every:2", "sequential", 3, "--eval-at 2: no operation ends"),
        ("2,final", "isolated", None, "--eval-at 2,final: isolated edits are measured all at once"),
    ],
)
def test_stops_that_cannot_be(eval_at: str, mode: str, size: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedule.stops(eval_at, 7, mode=mode, batch_size=size)


def test_a_long_list_of_operations_is_shortened() -> None:
    with pytest.raises(UsageError, match=r"operations end at 0, 2, 4, 6, 8, 10, \.\.\., 100$"):
        schedule.stops("3", 100, mode="sequential", batch_size=2)


def test_the_mode_follows_the_method() -> None:
    assert schedule.default_mode(Recorder) == "batch"
    assert schedule.default_mode(Single) == "isolated"


# --- walks ------------------------------------------


def test_sequential_increments_are_computed_on_the_model_with_the_earlier_ones(tiny: Callable[[str], LM]) -> None:
    lm, editor = tiny("gpt2"), Recorder()
    start = round(float(lm.matrix(lm.down(0))[0, 0]), 3)
    stops = walk(lm, editor, 7, "sequential", 3, [0, 3, 6, 7])
    assert [ids for ids, _ in editor.calls] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert editor.seen == pytest.approx(
        [start, start + 3, start + 6], abs=2e-3
    )  # 3 per operation: unfinished increments
    assert [stop.edits for stop in stops] == [3, 6, 7]
    assert [entry(lm, stop.patches[0]) for stop in stops] == [1.5, 3.0, 3.5]  # the finished sums
    assert all(len(stop.patches) == 1 for stop in stops)


def test_memory_is_handed_on(tiny: Callable[[str], LM]) -> None:
    editor = Recorder()
    walk(tiny("llama"), editor, 5, "sequential", 2, [5])
    assert [memory for _, memory in editor.calls] == [None, 2, 4]


def test_finish_shapes_the_sum_at_each_stop_and_is_never_fed_back(tiny: Callable[[str], LM]) -> None:
    editor = Recorder()
    walk(tiny("gpt2"), editor, 4, "sequential", None, [2, 4])
    assert editor.finished == [2.0, 4.0]  # of the plain sums, not of halves, and only where the run stops


def test_nothing_is_edited_beyond_the_last_stop(tiny: Callable[[str], LM]) -> None:
    editor = Recorder()
    assert [stop.edits for stop in walk(tiny("gpt2"), editor, 9, "sequential", 2, [0, 4])] == [4]
    assert len(editor.calls) == 2


@pytest.mark.parametrize("mode", schedule.MODES)
def test_nothing_is_edited_where_only_the_unedited_model_is_measured(tiny: Callable[[str], LM], mode: str) -> None:
    editor = Recorder()
    assert walk(tiny("gpt2"), editor, 3, mode, None, [0]) == []
    assert editor.calls == []


def test_batch_is_one_operation(tiny: Callable[[str], LM]) -> None:
    lm, editor = tiny("gpt2"), Recorder()
    (stop,) = walk(lm, editor, 4, "batch", None, [0, 4])
    assert editor.calls == [(["0", "1", "2", "3"], None)]
    assert (stop.edits, entry(lm, stop.patches[0])) == (4, 2.0)


def test_isolated_edits_know_nothing_of_each_other(tiny: Callable[[str], LM]) -> None:
    lm, editor = tiny("gpt2"), Recorder()
    start = round(float(lm.matrix(lm.down(0))[0, 0]), 3)
    (stop,) = walk(lm, editor, 3, "isolated", None, [0, 3])
    assert editor.calls == [(["0"], None), (["1"], None), (["2"], None)]
    assert editor.seen == [start] * 3
    assert (stop.edits, [entry(lm, patch) for patch in stop.patches]) == (3, [0.5, 0.5, 0.5])
    assert editor.finished == [1.0, 1.0, 1.0]


def test_progress_is_told_after_each_operation(tiny: Callable[[str], LM]) -> None:
    told: list[tuple[int, int]] = []
    steps = schedule.walk(
        Recorder(),
        tiny("gpt2"),
        made(5),
        mode="sequential",
        batch_size=2,
        at=[5],
        progress=lambda done, total: told.append((done, total)),
    )
    list(steps)
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_a_stop_can_be_held(tiny: Callable[[str], LM]) -> None:
    lm = tiny("llama")
    start = float(lm.matrix(lm.down(0))[0, 0])
    (stop,) = walk(lm, Recorder(), 4, "batch", None, [4])
    with patched(lm, stop.patches[0]):
        assert float(lm.matrix(lm.down(0))[0, 0]) == pytest.approx(start + 2)


# --- edits that cannot be made ------------------------------------------


def test_a_method_of_single_facts_refuses_a_batch(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(UsageError, match="single edits one fact at a time; use --mode isolated or --mode sequential"):
        walk(lm, Single(), 2, "batch", None, [2])
    assert len(walk(lm, Single(), 1, "batch", None, [1])) == 1  # a batch of one is no batch


def test_a_method_of_subjects_refuses_a_plain_prefix(tiny: Callable[[str], LM]) -> None:
    plain = [*made(1), Edit("x", "It rains in", None, "Rome")]
    with pytest.raises(UsageError, match="edit x: single needs a subject; give rows of prompt, subject and target"):
        schedule.require_editable(Single(), tiny("gpt2"), plain, mode="isolated")
    schedule.require_editable(Recorder(), tiny("gpt2"), plain, mode="isolated")


def test_a_prompt_longer_than_the_context_is_told_before_anything_is_edited(tiny: Callable[[str], LM]) -> None:
    lm, editor = tiny("gpt2"), Recorder()
    long = Edit("7", "Oslo " * 95 + "and {} live in", "Ada Velmont", "Rome")
    tokens = len(lm.tokenizer(long.text + long.continuation)["input_ids"])
    with pytest.raises(UsageError, match=f"edit 7: {tokens} tokens, but tiny-gpt2 takes 96; shorten the prompt"):
        list(schedule.walk(editor, lm, [*made(2), long], mode="batch", batch_size=None, at=[3]))
    assert editor.calls == []


def test_a_prompt_that_just_fits_is_taken(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    words = next(n for n in range(200) if _tokens(lm, n + 1) > lm.context)
    schedule.require_editable(Recorder(), lm, [_repeated(words)], mode="batch")
    with pytest.raises(UsageError, match="shorten the prompt"):
        schedule.require_editable(Recorder(), lm, [_repeated(words + 1)], mode="batch")


def _repeated(words: int) -> Edit:
    return Edit("r", " Rome" * words + " {} is in", "Paris", "Oslo")


def _tokens(lm: LM, words: int) -> int:
    edit = _repeated(words)
    return len(lm.tokenizer(edit.text + edit.continuation)["input_ids"])


def test_what_is_said_twice_or_in_two_ways_is_told() -> None:
    def say(number: str, subject: str, target: str) -> Edit:
        return Edit(number, "{} was born in", subject, target)

    found = schedule.duplicates(
        [say("1", "Ada", "Rome"), say("2", "Hugo", "Oslo"), say("3", "Ada", "Rome"), say("4", "Ada", "Paris")]
    )
    assert found == [
        "edit 3 repeats edit 1 ('Ada was born in' -> 'Rome')",
        "edit 4 contradicts edit 1: 'Ada was born in' -> 'Paris', not 'Rome'",
    ]
    assert schedule.duplicates(made(5)) == []
    spaced = say("5", "Ada", " Rome")
    assert schedule.duplicates([say("1", "Ada", "Rome"), spaced]) == [
        "edit 5 repeats edit 1 ('Ada was born in' -> ' Rome')"
    ]  # the space in front of a target is no other target


def test_of_many_repetitions_the_first_are_told_and_the_others_counted() -> None:
    """One pass over the edits: a hundred thousand take no longer than reading them."""
    edits = [Edit(str(i), "{} was born in", f"Person {i % 50_000}", "Rome") for i in range(100_000)]
    found = schedule.duplicates(edits)
    assert [line[:22] for line in found[:4]] == [f"edit {50_000 + i} repeats edit"[:22] for i in range(4)]
    assert found[4:] == ["49996 more edits repeat or contradict an earlier one, 50000 in all"]
    assert len(schedule.duplicates(edits[:50_005])) == 5


# --- published names, several batches, going on -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "wanted"),
    [
        ("instance-sequential", None, ("sequential", 1)),
        ("instance-sequential", 1, ("sequential", 1)),
        ("batch-single", None, ("batch", None)),
        ("batch-sequential", 10, ("sequential", 10)),
        ("isolated", None, ("isolated", None)),
        (None, None, (None, None)),
    ],
)
def test_the_published_modes_are_names_of_ours(
    mode: str | None, size: int | None, wanted: tuple[str | None, int | None]
) -> None:
    assert schedule.plain_mode(mode, size) == wanted


@pytest.mark.parametrize(("mode", "size"), [("instance-sequential", 2), ("batch-sequential", None)])
def test_published_modes_with_a_batch_size_that_cannot_be(mode: str, size: int | None) -> None:
    with pytest.raises(UsageError, match=mode):
        schedule.plain_mode(mode, size)


def test_every_fact_is_edited_in_every_published_mode(tiny: Callable[[str], LM]) -> None:
    """The released loop edits the first fact alone, and drops a partial last batch."""
    for name, given, calls in (
        ("instance-sequential", None, [["0"], ["1"], ["2"], ["3"], ["4"]]),
        ("batch-single", None, [["0", "1", "2", "3", "4"]]),
        ("batch-sequential", 2, [["0", "1"], ["2", "3"], ["4"]]),
    ):
        mode, size = schedule.plain_mode(name, given)
        editor = Recorder()
        walk(tiny("gpt2"), editor, 5, str(mode), size, [0, 5])
        assert [ids for ids, _ in editor.calls] == calls, name


def test_each_count_of_a_batch_is_an_operation_of_its_own(tiny: Callable[[str], LM]) -> None:
    editor = Recorder()
    stops = walk(tiny("gpt2"), editor, 5, "batch", None, schedule.stops("2,final", 5, mode="batch", batch_size=None))
    assert [stop.edits for stop in stops] == [2, 5]
    assert [(len(ids), memory) for ids, memory in editor.calls] == [(2, None), (5, None)]
    assert len(set(editor.seen)) == 1  # both on the unedited model


def test_a_walk_goes_on_where_an_earlier_one_was(tiny: Callable[[str], LM]) -> None:
    lm, whole, second = tiny("gpt2"), Recorder(), Recorder()
    states: list[schedule.Begun] = []
    ends = list(schedule.walk(whole, lm, made(7), mode="sequential", batch_size=2, at=[0, 4, 7], keep=states.append))
    assert [(state.edits, state.latest) for state in states] == [
        (2, range(2)), (4, range(2, 4)), (6, range(4, 6)), (7, range(6, 7)),
    ]  # fmt: skip
    again = list(schedule.walk(second, lm, made(7), mode="sequential", batch_size=2, at=[0, 4, 7], begun=states[1]))
    assert [ids for ids, _ in second.calls] == [["4", "5"], ["6"]]
    assert second.calls[0][1] == whole.calls[2][1]  # the memory goes on
    assert second.seen == whole.seen[2:]  # the earlier edits are in the weights
    for first, other in zip(ends, again, strict=True):
        assert (first.edits, first.latest) == (other.edits, other.latest)
        same = [stop.patches[0].weights[lm.down(0)].dense() for stop in (first, other)]
        assert torch.equal(*same)


# --- cases of several edits -------------------------------------------------------------------------------------------


def several(*counts: int) -> list[Edit]:
    """Cases of so many edits each."""
    return [
        Edit(f"{case}.{i}", "{} was born in", f"Person {case} {i}", "Rome", case=f"{case}" if count > 1 else None)
        for case, count in enumerate(counts)
        for i in range(count)
    ]


def calls_of(lm: LM, editor: Recorder, mode: str, size: int | None, at: Sequence[int]) -> list[list[str]]:
    """The edits of each call, of cases of 2, 1 and 3 edits; the model is as before at the end."""
    before = lm.fingerprint()
    stops = list(schedule.walk(editor, lm, several(2, 1, 3), mode=mode, batch_size=size, at=at))
    assert [stop.edits for stop in stops] == [count for count in at if count]
    assert [len(stop.patches) for stop in stops] == [stop.edits if mode == "isolated" else 1 for stop in stops]
    assert lm.fingerprint() == before
    return [ids for ids, _ in editor.calls]


def test_what_is_counted_are_cases(tiny: Callable[[str], LM]) -> None:
    assert [len(case) for case in schedule.cases_of(several(2, 1, 3))] == [2, 1, 3]
    assert calls_of(tiny("llama"), Recorder(), "isolated", None, [0, 3]) == [
        ["0.0", "0.1"],
        ["1.0"],
        ["2.0", "2.1", "2.2"],
    ]
    assert calls_of(tiny("llama"), Recorder(), "batch", None, [0, 2]) == [["0.0", "0.1", "1.0"]]
    assert calls_of(tiny("llama"), Recorder(), "sequential", 2, [0, 2, 3]) == [
        ["0.0", "0.1", "1.0"],
        ["2.0", "2.1", "2.2"],
    ]


def test_an_editor_of_single_facts_makes_those_of_a_case_one_after_the_other(tiny: Callable[[str], LM]) -> None:
    editor = Single()
    assert calls_of(tiny("llama"), editor, "isolated", None, [0, 3]) == [
        ["0.0"],
        ["0.1"],
        ["1.0"],
        ["2.0"],
        ["2.1"],
        ["2.2"],
    ]
    start = editor.seen[0]
    assert [round(value - start) for value in editor.seen] == [
        0,
        1,
        0,
        0,
        1,
        2,
    ]  # each sees those before it in its case
    assert [memory for _, memory in editor.calls] == [None, 1, None, None, 1, 2]


def test_a_case_whose_edits_cannot_both_hold_contradicts_itself() -> None:
    def edit(name: str, target: str, case: str | None, prompt: str = "{} lives in", relation: str = "home") -> Edit:
        return Edit(name, prompt, "Ada", target, case=case, relation=relation)

    edits = [
        edit("1.1", "Rome", "1"), edit("1.2", "Oslo", "1"),
        edit("2.1", "Rome", "2"), edit("2.2", "Rome", "2", "{} has a house in"),
        edit("2.3", "Ada", "2", "{} is", relation="self"),
        edit("3.1", "Rome", "3"), edit("3.2", "Oslo", "3", "The home of {} is"),
        edit("4.1", "Rome", "4"), edit("4.2", "rome ", "4", "{}  LIVES in"), edit("5", "Oslo", None),
    ]  # fmt: skip
    assert schedule.contradicting_cases(edits) == ["1", "3"]
    assert schedule.duplicates(edits[:2]) == [
        "case 1 contradicts itself: 'Ada lives in' -> 'Oslo', but 'Ada lives in' -> 'Rome'"
    ]
    assert schedule.duplicates(edits[5:7]) == [
        "case 3 contradicts itself: 'The home of Ada is' -> 'Oslo', but 'Ada lives in' -> 'Rome'"
    ]


def test_so_many_cases_at_once_are_one_operation_on_the_unedited_model(tiny: Callable[[str], LM]) -> None:
    lm, editor = tiny("gpt2"), Recorder()
    cases = [*made(3), *(replace(edit, case="c") for edit in made(5)[3:])]
    (stop,) = schedule.walk(editor, lm, cases, mode="isolated", batch_size=None, at=[4], at_once=2)
    assert [entry(lm, patch) for patch in stop.patches] == [1.0, 1.5]  # two edits, then three; finish() halves
    (one,) = schedule.walk(editor, lm, cases, mode="isolated", batch_size=None, at=[4], at_once=9)
    assert [entry(lm, patch) for patch in one.patches] == [2.5]


@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_cases_at_once_belong_to_isolated_editing(mode: str) -> None:
    with pytest.raises(UsageError, match=f"cases_at_once 2 with mode {mode}: it belongs to --mode isolated"):
        schedule.require_at_once(2, mode)
    schedule.require_at_once(None, mode)
    schedule.require_at_once(2, "isolated")
