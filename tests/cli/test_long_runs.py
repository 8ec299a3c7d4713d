"""Long runs that go wrong: a full disk, a second run, an editor that was changed; and wrappers at each stop."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import Outcome
from filelock import FileLock

from editors.prune import pruned, spectral_norm
from editors.rect import keep_largest, keep_principal, keep_random
from harness.editing import patch_file, schedule
from harness.editing.registry import compose
from harness.exam import measure
from harness.models.lm import load
from harness.patches.delta import Delta, Dense, LowRank
from harness.runs import resume as states
from harness.runs.plan import Plan
from harness.runs.prepare import prepare_run
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.writer import RecordWriter

Harness = Callable[..., Outcome]
PEOPLE = ["Ada Velmont", "Hugo Lantern", "Elena Marsh", "Rosa Delgado"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four edits."""
    path = tmp_path / "my.jsonl"
    lines = [{"prompt": "{} was born in", "subject": who, "target": "Rome", "target_old": "Oslo"} for who in PEOPLE]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def call(
    harness: Harness, checkpoint: Callable[..., Path], nudge: str, rows: Path, tmp_path: Path
) -> Callable[..., Outcome]:
    """A sequential run of four edits, measured after each, without text that no edit is about."""
    text = tmp_path / "text.txt"
    text.write_text("x\n")

    def run(output: Path, editor: str = nudge, *more: object) -> Outcome:
        model = [
            "--model",
            checkpoint("gpt2"),
            "--edits",
            rows,
            "--data-dir",
            "mini",
            "--text",
            text,
            "--device",
            "cpu",
        ]
        return harness(
            "run", *model, "--editor", editor, "--mode", "sequential", "--eval-at", "every:1", *more, "--output", output
        )

    return run


def numbers(folder: Path) -> list[Any]:
    (path,) = folder.glob("*--*[0-9a-f].json")
    kept = read_record(path, values=True)
    assert kept.status == "complete"
    return [kept.points, kept.values, kept.delta]


# --- what goes wrong ----------------------------------


@pytest.mark.parametrize("where", ["record", "state", "edits"])
def test_a_full_disk_is_told_in_one_line_and_what_was_written_before_goes_on(
    call: Callable[..., Outcome], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(tmp_path / "alone")
    full, count = tmp_path / "full", [0]
    suffix = {"record": ".json", "state": ".state", "edits": ".safetensors"}[where]
    real = os.replace

    def replace(self: Path, target: Path) -> Path:
        count[0] += str(target).endswith(suffix)
        if str(target).endswith(suffix) and count[0] > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, target)
        return Path(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        done = call(full)
    assert done.code == 2
    assert "cannot be written (No space left on device)" in done.err
    assert len(done.err.splitlines()) == 1
    assert not [path for path in full.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]
    (partial,) = full.glob("*.partial.json")
    assert read_record(partial, values=True).points  # whole, with all that was measured before
    again = call(full)
    assert again.code == 0, again.err
    assert numbers(full) == numbers(tmp_path / "alone")
    assert not list(full.glob("*.partial*"))


def kept(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder but locks, with those of unfinished samples."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_second_run_that_would_go_on_is_told_and_touches_nothing(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "complete", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(out).code == 130
    before = kept(out)
    assert any(path.suffix == ".state" for path in before)
    (state,) = out.glob("*.state")
    mine = state.name.removesuffix(".partial.state")[-8:]
    with FileLock(out / f".{mine}.lock"):
        second = call(out)
    assert second.code == 2
    assert f"another run is writing the record {mine} of this plan" in second.err
    assert kept(out) == before
    assert call(out).code == 0


def test_a_run_does_not_go_on_with_an_editor_file_that_was_changed(
    call: Callable[..., Outcome], nudge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "out"
    mine.write_text(Path(nudge).read_text())
    stop = [3]

    def keep(self: states.StateFile, state: schedule.Begun) -> None:
        self._newest = state
        self.now()
        stop[0] -= 1
        if not stop[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(states.StateFile, "keep", keep)
        assert call(out, str(mine)).code == 130
    mine.write_text(mine.read_text().replace("self.scale * left", "3 * self.scale * left"))
    assert call(out, str(mine)).code == 0
    assert call(tmp_path / "fresh", str(mine)).code == 0
    assert numbers(out) == numbers(tmp_path / "fresh")
    (path,) = out.glob("*--*[0-9a-f].json")
    assert set(read_record(path).editor["sources"]) == {"nudge"}


def test_a_state_that_cannot_be_kept_is_told_and_the_run_goes_on(
    call: Callable[..., Outcome], nudge: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "out"
    mine.write_text(
        Path(nudge).read_text().replace("return total.remember(made + len(edits))", "return total.remember(lambda: 0)")
    )
    done = call(out, str(mine))
    assert done.code == 0, done.err
    assert any("a run that is killed begins anew" in found.getMessage() for found in caplog.records)
    assert not list(out.glob("*.state"))


def test_a_change_that_is_no_number_is_told_in_one_line(
    call: Callable[..., Outcome], nudge: str, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(Path(nudge).read_text().replace("self.scale * left", "float('nan') * left"))
    for mode in ("isolated", "sequential"):
        done = call(tmp_path / mode, str(mine), "--mode", mode, "--eval-at", "final")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert "the change of 'transformer.h.1.mlp.c_proj.weight' holds a NaN or an infinity; lower the" in done.err


def test_a_path_with_a_plus_saves_edits_that_can_be_put_back(
    call: Callable[..., Outcome], harness: Harness, nudge: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a+b"
    folder.mkdir()
    mine = folder / "my+nudge.py"
    mine.write_text(Path(nudge).read_text())
    assert compose(f"{mine}+rect").method == str(mine)
    assert call(tmp_path / "out", f"{mine}+rect", "--set", "keep=1.0").code == 0
    (patch,) = (tmp_path / "out").glob("*edits-4.safetensors")
    assert patch_file.patch_manifest(patch)["editor"] == str(mine)


def test_a_patch_that_cannot_be_put_back(
    call: Callable[..., Outcome], harness: Harness, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    assert call(tmp_path / "out").code == 0
    (patch,) = (tmp_path / "out").glob("*edits-4.safetensors")
    content = bytearray(patch.read_bytes())
    cut, changed, newer = (tmp_path / f"{name}.safetensors" for name in ("cut", "changed", "newer"))
    cut.write_bytes(content[:-40])
    content[-3] ^= 1
    changed.write_bytes(content)
    head, tensors = patch_file.tensor_file.read_tensors(patch, patch_file.KIND, patch_file.FORMAT)
    about = {key: value for key, value in head.items() if key not in {"kind", "format", "sha256"}}
    version = patch_file.FORMAT + 1
    patch_file.tensor_file.write_tensors(newer, kind=patch_file.KIND, version=version, manifest=about, tensors=tensors)
    a_file = tmp_path / "a file"
    a_file.touch()
    run = ("run", "--model", checkpoint("gpt2"), "--output", tmp_path / "again", "--patch")
    for arguments, message in (
        ((*run, cut), "not a readable patch"),
        ((*run, changed), "not what was written"),
        ((*run, newer), f"has format {patch_file.FORMAT + 1}, this program reads up to {patch_file.FORMAT}"),
        (("apply", newer, "--to", tmp_path / "new"), f"has format {patch_file.FORMAT + 1}"),
        (("apply", patch, "--to", a_file), "a file: is a file; give --to a new folder"),
    ):
        done = harness(*arguments)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert message in done.err
    assert not list(tmp_path.glob("again/*--*.json"))


def test_fewer_edits_than_asked_for_and_a_stop_beyond_them(harness: Harness, tmp_path: Path) -> None:
    for options, message in (
        (("--edits", "zsre:501"), "has 500"),
        (("--edits", "zsre:9", "--mode", "sequential", "--eval-at", "10"), "--eval-at 10: there are only 9 edits"),
    ):
        done = harness("run", "--editor", "ft_l", *options, "--output", tmp_path / "out")
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert message in done.err


# --- what a stop costs --------------------------------


def test_a_stop_costs_the_same_however_many_edits_were_made_but_for_their_own_exam(
    call: Callable[..., Outcome], nudge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the general tasks and the neutral text each stop asks the same; earlier edits are examined in one pass."""
    asked: list[tuple[str, int, int]] = []
    passes = [0]
    real, forward = measure.measure_task, torch.nn.Module.__call__

    def count(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        passes[0] += type(self).__name__ == "GPT2LMHeadModel"
        return forward(self, *args, **kwargs)

    def task(model: Any, one: Any, *, limit: int | None, documents: Any = None) -> Any:
        before = passes[0]
        found = real(model, one, limit=limit, documents=documents)
        asked.append((one.name, len(next(iter(found.values.values()))), passes[0] - before))
        return found

    monkeypatch.setattr(torch.nn.Module, "__call__", count)
    monkeypatch.setattr(measure, "measure_task", task)
    assert call(tmp_path / "out", nudge, "--tasks", "NLI", "--limit", 3).code == 0
    stops = len(PEOPLE)
    general = [row[1:] for row in asked if row[0] == "NLI"][-stops:]
    assert len(set(general)) == 1
    own = [row for row in asked if row[0] == "own_probability"][-stops:]
    assert [documents for _, documents, _ in own] == [1, 2, 3, 4]
    assert len({calls for _, _, calls in own}) == 1  # all edits so far stand in one batch


# --- wrappers at each stop ----------------------------


def walked(model: Path, rows: Path, editor: str, settings: dict[str, Any]) -> list[Delta]:
    """The change of the one edited matrix after each edit."""
    plan = Plan(str(model), editor, settings, str(rows), mode="sequential", eval_at="every:1")
    ready = prepare_run(resolve(plan), "cpu")
    steps = schedule.walk(
        ready.editor, ready.lm, ready.resolved.edits, mode="sequential", batch_size=None, at=ready.resolved.stops
    )
    return [delta for stop in steps for delta in stop.patches[0].weights.values()]


@pytest.mark.parametrize("reduce", ["log", "log2", "log1_5", "log1_2", "linear"])
def test_prune_restrains_a_copy_at_each_stop_and_warns_where_it_enlarges(
    call: Callable[..., Outcome],
    checkpoint: Callable[..., Path],
    nudge: str,
    rows: Path,
    tmp_path: Path,
    reduce: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = load(str(checkpoint("gpt2")), device="cpu")
    weight = lm.matrix(lm.down(1))
    bound = spectral_norm(weight)
    assert bound < 1  # where a logarithm's slope is above one
    plain = walked(checkpoint("gpt2"), rows, nudge, {"scale": 1.5 * bound})
    with caplog.at_level(logging.WARNING):
        out = tmp_path / "out"
        done = call(out, f"{nudge}+prune", "--set", f"scale={1.5 * bound}", "--set", f"prune.reduce={reduce}")
    assert done.code == 0, done.err
    told = [found.getMessage() for found in caplog.records if "prune: the reduction" in found.getMessage()]
    assert len(told) == (0 if reduce == "linear" else 4)  # once for each stop
    for count, total in enumerate(plain, 1):
        expected, before, after = pruned(total, bound=bound, reduce=reduce)  # type: ignore[arg-type]
        assert bool((after > before * (1 + 1e-6)).any()) == (reduce != "linear")
        (path,) = out.glob(f"*edits-{count}.safetensors")
        (restrained,) = patch_file.load_patch(path, lm).weights.values()
        # Of the plain sum: were the copy of an earlier stop fed back, the second stop would already differ.
        assert torch.allclose(restrained.dense(), expected.dense(), atol=1e-6)
        assert not torch.allclose(restrained.dense(), total.dense(), atol=1e-3)


@pytest.mark.parametrize(
    ("share", "choose"),
    [(0.8, "relative"), (0.6, "relative"), (0.4, "relative"), (0.2, "relative"), (0.4, "random"), (0.1, "pca")],
)
def test_rect_and_its_controls_reduce_every_increment_of_a_long_run(
    checkpoint: Callable[..., Path], nudge: str, rows: Path, share: float, choose: str
) -> None:
    settings = {"rect.keep": share, "rect.choose": choose, "layer": 1, "form": "dense"}
    plain = [part.dense() for part in walked(checkpoint("gpt2"), rows, nudge, {"layer": 1, "form": "dense"})]
    stops = [part.dense() for part in walked(checkpoint("gpt2"), rows, f"{nudge}+rect", settings)]
    weight = load(str(checkpoint("gpt2")), device="cpu").matrix("transformer.h.1.mlp.c_proj.weight")
    held = torch.zeros_like(weight)
    for before, now, stop in zip([torch.zeros_like(weight), *plain], plain, stops, strict=False):
        increment, made = now - before, stop - held
        count = round(share * increment.numel())
        if choose == "relative":
            expected = keep_largest(increment, weight + held, count)  # relative to the weight with what was kept so far
            assert torch.allclose(made, expected, atol=1e-6)
        elif choose == "random":
            assert int((made != 0).sum()) == pytest.approx(count, abs=2)
            assert torch.allclose(made[made != 0], increment[made != 0], atol=1e-6)
            assert not torch.allclose(made, keep_largest(increment, weight + held, count), atol=1e-3)
        else:
            expected = keep_principal(Dense(increment), round(share * min(increment.shape))).dense()
            assert torch.allclose(made, expected, atol=1e-6)
        held = stop


def test_random_and_pca_are_what_they_are_called() -> None:
    change = torch.arange(1.0, 13.0).reshape(3, 4)
    assert int((keep_random(change, 5, seed=0) != 0).sum()) == 5
    assert isinstance(keep_principal(LowRank(torch.ones(3, 1), torch.ones(1, 4)), 1), LowRank)
