"""Values that are kept: the same edits bit by bit, taken only where all that decides them is the same."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.alphaedit import AlphaEdit
from editors.memit import Memit
from editors.pmet import Pmet
from editors.r_rome import RRome
from editors.rect import Rect
from editors.rome import Rome
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.registry import compose
from harness.errors import UsageError
from harness.methods import value_cache
from harness.methods.alignment import Alignment, Neighbours
from harness.methods.value import Values, optimise
from harness.methods.value_cache import DECISIVE, ValueCache, values_from
from harness.methods.value_forward import Way, fastest_forward
from harness.methods.value_rows import Objective, PreparedEdit
from harness.models.lm import LM
from harness.models.weight_hashes import WeightHashes
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

CONTEXTS = ("{}", "The weather is. {}", "Nobody knows. {}")
OBJECTIVE = Objective(1, steps=4)
HARNESS = Path(value_cache.__file__).parents[1]


def found(
    folder: Path,
    lm: LM,
    edits: Sequence[Edit],
    *,
    objective: Objective = OBJECTIVE,
    contexts: tuple[str, ...] = CONTEXTS,
) -> tuple[Values, ValueCache]:
    """Values with a cache in a folder, and what that counted."""
    with values_from(ValueCache(folder)) as cache:
        return optimise(lm, edits, contexts, objective=objective, keys=True), cache


def tensors(values: Values) -> list[Tensor]:
    return [values.start, values.delta, values.written, values.keys, values.outputs, *values.losses]


def same(a: Values, b: Values) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("seam", ["mlp", "block", "parts"])
def test_values_are_bitwise_the_same_made_kept_and_taken(
    seam: str, tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm, objective = tiny("llama"), replace(OBJECTIVE, seam=seam)
    plain = optimise(lm, edits, CONTEXTS, objective=objective, keys=True)
    (made, first), (taken, second) = (found(tmp_path, lm, edits, objective=objective) for _ in range(2))
    assert (first.found, first.optimised, second.found, second.optimised) == (0, 3, 3, 0)
    assert same(plain, made) and same(plain, taken)
    assert second.seconds > 0 == first.seconds


@pytest.mark.parametrize(
    "editor",
    [
        Memit(layers=(0, 1), v_steps=3, cov_tokens=2000, lam=10.0),
        AlphaEdit(layers=(0, 1), v_steps=3, cov_tokens=2000, nullspace_threshold=1e9),
        Pmet(layers=(0, 1), v_steps=3, cov_tokens=2000),
        Rome(layers=(1,), v_steps=3, cov_tokens=2000),
        RRome(layers=(0, 1), v_steps=3, cov_tokens=2000),
    ],
    ids=lambda editor: editor.name,
)
def test_patches_are_bitwise_the_same_with_and_without_the_cache(
    editor: Editor, tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    ways: list[Callable[[], list[Patch]]] = [lambda: editor.edit_each(lm, edits), lambda: [editor.edit(lm, edits)]]
    for way in ways:
        wanted = way()
        for _ in range(2):
            with values_from(ValueCache(tmp_path)) as cache:
                patches = way()
        assert cache.found and not cache.optimised
        for mine, plain in zip(patches, wanted, strict=True):
            assert mine.weights.keys() == plain.weights.keys()
            assert all(torch.equal(mine.weights[name].dense(), plain.weights[name].dense()) for name in plain.weights)


def test_editors_that_differ_in_what_they_write_share_values(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm, settings = tiny("gpt2"), {"layers": (0, 1), "v_steps": 3, "cov_tokens": 2000}
    Memit(**settings)  # the settings that all have
    optimised = []
    for name, more in [
        ("memit", {"lam": 10.0}),
        ("memit", {"lam": 20.0}),
        ("memit+rect", {}),
        ("memit+prune", {}),
        ("alphaedit", {"nullspace_threshold": 1e9}),
        ("emmet", {}),
        ("memit+nas", {}),
    ]:
        editor = compose(name).build(lm, {**settings, **more}, seed=0)
        with values_from(ValueCache(tmp_path)) as cache:
            editor.finish(lm, editor.edit(lm, edits))
        optimised.append(cache.optimised)
    assert optimised == [3, 0, 0, 0, 0, 0, 0]


def test_editors_after_one_another_share_the_values_of_the_same_weights(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    """PRUNE changes what is measured, not what the next edit stands on; RECT changes what it stands on."""
    lm, memit = tiny("gpt2"), Memit(layers=(0, 1), v_steps=3, cov_tokens=2000, lam=0.1)
    counts = []
    for editor in (memit, memit, Rect(memit)):
        total = Patch()
        with values_from(ValueCache(tmp_path)) as cache:
            for edit in edits:
                with patched(lm, total):
                    total = total + editor.edit(lm, [edit], total.memory)
        counts.append((cache.found, cache.optimised))
    assert counts == [(0, 3), (3, 0), (1, 2)]


# --- what is not the same is optimised --------------------------------------------------------------------------------


OTHERS: dict[str, object] = {
    "layer": 0,
    "seam": "block",
    "fact_token": "last",
    "steps": 5,
    "lr": 0.4,
    "kl_factor": 0.1,
    "weight_decay": 0.4,
    "clamp": 3.0,
    "loss_layer": 1,
    "begin": "key",
    "terms": (Neighbours(torch.ones(1, 32), torch.ones(1), Alignment(2.0, 8.0, 0.07, 50)),),
    "threshold": 0.04,
    "stop": "never",
    "cutoff": 2,
    "agreement": 0.1,
    "agreement_layers": 1,
}
AFTERWARDS: dict[str, object] = {"anchor": 2.0, "anchor_skip": 3.0, "budget": 4096}


@pytest.mark.parametrize("name", OTHERS)
def test_another_setting_is_another_value(
    name: str, tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    objective = replace(OBJECTIVE, **{name: OTHERS[name]})  # type: ignore[arg-type]
    values, cache = found(tmp_path, lm, edits, objective=objective)
    assert (cache.found, cache.optimised) == (0, 3)
    assert same(values, optimise(lm, edits, CONTEXTS, objective=objective, keys=True))


@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_is_done_to_a_value_afterwards_is_no_part_of_it(
    name: str, tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    objective = replace(OBJECTIVE, **{name: AFTERWARDS[name]})  # type: ignore[arg-type]
    values, cache = found(tmp_path, lm, edits, objective=objective)
    assert (cache.found, cache.optimised) == (3, 0)
    assert torch.equal(values.value, optimise(lm, edits, CONTEXTS, objective=objective).value)


def test_every_field_of_an_objective_is_one_or_the_other() -> None:
    assert {*OTHERS, *AFTERWARDS} == {field.name for field in fields(Objective)}


@pytest.mark.parametrize(
    "change", [{"target": "Paris"}, {"prompt": "{} died in"}, {"direction": "erasure"}, {"join": ""}], ids=str
)
def test_another_edit_is_another_value(
    change: dict[str, str], tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits[:1])
    _, cache = found(tmp_path, lm, [replace(edits[0], **change)])
    assert (cache.found, cache.optimised) == (0, 1)


def test_a_name_is_no_part_of_an_edit(tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits[:1])
    _, cache = found(tmp_path, lm, [replace(edits[0], id="z", relation="other")])
    assert cache.found == 1


def test_other_contexts_are_other_values(tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    _, cache = found(tmp_path, lm, edits, contexts=(*CONTEXTS[:2], "Somebody knows. {}"))
    assert (cache.found, cache.optimised) == (0, 3)


def test_other_weights_are_another_model(tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    made, _ = found(tmp_path, lm, edits)
    matrix = lm.matrix(lm.down(0))
    change = LowRank(torch.full((matrix.shape[0], 1), 0.1), torch.full((1, matrix.shape[1]), 0.1))
    with patched(lm, Patch({lm.down(0): change})):
        moved, cache = found(tmp_path, lm, edits)
        assert (cache.found, cache.optimised) == (0, 3) and not same(made, moved)
    assert found(tmp_path, lm, edits)[1].found == 3


def test_weights_that_are_written_past_torch_are_seen(fresh: Callable[..., LM]) -> None:
    lm, hashes = fresh("gpt2"), WeightHashes()
    before, name = hashes.of(lm), lm.down(1)
    known = dict(hashes.known)
    assert hashes.of(lm) == before and all(hashes.known[n] is known[n] for n in known)
    lm.parameter(name).data[0, 0] += 1e-3
    after = hashes.of(lm)
    assert {n for n in before if before[n] != after[n]} == {name}
    assert after[name] == lm.hashes([name])[name]
    with torch.no_grad():
        lm.parameter(name)[[0, 1]] = lm.parameter(name)[[1, 0]]  # the same bits elsewhere
    assert hashes.of(lm)[name] == lm.hashes([name])[name] != after[name]


def test_another_model_of_the_same_weights_is_another(fresh: Callable[..., LM], tmp_path: Path) -> None:
    lm, cache = fresh("gpt2"), ValueCache(tmp_path)
    before = cache.identity(lm, OBJECTIVE)
    lm.model.config.layer_norm_epsilon = 1e-3
    assert cache.identity(lm, OBJECTIVE) != before
    other = fresh("gpt2")
    assert cache.identity(other, OBJECTIVE) == before
    other.model.train(True)
    assert cache.identity(other, OBJECTIVE) != before


def test_under_a_hook_nothing_is_kept_or_taken(tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    with patched(lm, Patch(hooks={lm.arch.block(0): lambda hidden, _step: hidden * 1.5})):
        _, cache = found(tmp_path, lm, edits)
    assert (cache.found, cache.optimised) == (0, 3)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_code_is_another_value(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    monkeypatch.setattr(value_cache, "_code", lambda: "other")
    assert found(tmp_path, lm, edits)[1].optimised == 3


def test_another_number_of_threads_rounds_otherwise(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert found(tmp_path, lm, edits)[1].optimised == 3


def _imported(path: Path) -> set[Path]:
    names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    files = [HARNESS.parent / f"{str(name).replace('.', '/')}.py" for name in names if str(name).startswith("harness.")]
    return {file for file in files if file.is_file()}


def test_the_code_that_decides_is_all_that_is_imported_for_it() -> None:
    """Whoever lets the optimisation use another module says whether it decides a value."""
    seen: set[Path] = set()
    todo = {HARNESS / "methods" / name for name in ("value.py", "alignment.py")}
    while todo:
        seen |= todo
        todo = {other for path in todo for other in _imported(path)} - seen
    names = {path.relative_to(HARNESS).as_posix() for path in seen}
    # Tokens and weights are in the key as they are; files, errors and the keys of a layer come before or after.
    beside = {
        *("errors.py", "methods/value_cache.py", "methods/keys.py", "methods/context_templates.py"),
        *("methods/second_moments.py", "editing/edit.py", "editing/join.py", "patches/patch.py", "patches/delta.py"),
        *("models/guard.py", "models/weight_hashes.py", "models/reading.py", "models/tokens.py", "models/naming.py"),
        *("models/in_memory.py", "models/rounding.py", "models/published.py", "methods/decompositions.py"),
        *("models/memory.py", "models/placement.py", "models/offload.py"),  # where weights lie
        "models/dequantised.py",  # whose numbers are weights like others
        "methods/descent.py",  # for second moments of gradients
        *("editing/editor.py", "editing/made.py", "editing/hyperparameters.py"),  # whose memory it is
    }
    assert {name for name in names if not name.startswith("io/")} - beside == set(DECISIVE)


# --- files that cannot be used ---------------------------------------------------------------------------------------


def test_a_damaged_file_is_made_again(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("gpt2")
    made, _ = found(tmp_path, lm, edits)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again, cache = found(tmp_path, lm, edits)
    assert (cache.found, cache.optimised) == (0, 3) and same(made, again)
    assert "the tensors are not what was written; these values are optimised again" in caplog.text
    assert found(tmp_path, lm, edits)[1].found == 3


def test_a_file_under_another_name_is_not_taken(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("gpt2")
    found(tmp_path, lm, edits)
    (mine,) = tmp_path.iterdir()
    found(tmp_path, lm, edits, objective=replace(OBJECTIVE, lr=0.4))
    (other,) = set(tmp_path.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    assert found(tmp_path, lm, edits)[1].optimised == 3
    assert "holds values of something else" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_optimised(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="set HARNESS_CACHE to a folder of yours"):
        found(blocked / "values", tiny("gpt2"), edits)


def test_values_that_cannot_be_written_are_used_all_the_same(
    tiny: Callable[[str], LM],
    edits: list[Edit],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, **_rest: object) -> None:
        raise UsageError(f"{path}: cannot be written (No space left on device); choose another place")

    monkeypatch.setattr(value_cache, "write_tensors", full)
    lm = tiny("gpt2")
    values, cache = found(tmp_path, lm, edits)
    assert cache.optimised == 3 and same(values, optimise(lm, edits, CONTEXTS, objective=OBJECTIVE, keys=True))
    assert "No space left on device); these values are not kept" in caplog.text


def test_without_a_cache_nothing_is_kept(
    tiny: Callable[[str], LM], edits: list[Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    optimise(tiny("gpt2"), edits, CONTEXTS, objective=OBJECTIVE)
    with values_from(ValueCache(None)) as counted:
        optimise(tiny("gpt2"), edits, CONTEXTS, objective=OBJECTIVE)
    assert (counted.found, counted.optimised) == (0, 3)
    assert not (tmp_path / "values").exists()


# --- how a model is run ----------------------------------------------------------------------------------------------


def test_how_a_model_is_run_is_tried_once_for_rows_of_the_same_reach(
    tiny: Callable[[str], LM], edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def counted(lm: LM, prepared: Sequence[PreparedEdit], objective: Objective) -> Way:
        tried.append(len(prepared))
        return fastest_forward(lm, prepared, objective)

    monkeypatch.setattr(value_cache, "fastest_forward", counted)
    lm, long = tiny("gpt2"), replace(edits[0], prompt="So it is said here, and everybody knows it, that {} was born in")
    with values_from(ValueCache(None)):
        for edit in (edits[0], long, edits[1], edits[0]):
            optimise(lm, [edit], CONTEXTS, objective=OBJECTIVE)
        assert len(tried) == 2  # the second reaches further; the third lies between both
        optimise(lm, edits, CONTEXTS, objective=replace(OBJECTIVE, seam="block"))
        optimise(tiny("llama"), edits[:1], CONTEXTS, objective=OBJECTIVE)
        assert len(tried) == 4
        with patched(lm, Patch(hooks={lm.arch.block(0): lambda hidden, _step: hidden})):
            for _ in range(2):
                optimise(lm, edits[:1], CONTEXTS, objective=OBJECTIVE)
        assert len(tried) == 6
