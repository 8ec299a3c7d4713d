"""Quantised matrices that an editor writes: plain numbers meanwhile, quantised again afterwards, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from few_bits import EightBit, FourBit
from torch import Tensor, nn

import harness
from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.errors import HarnessError, ModelError, RestoreError, UsageError
from harness.io.nobody import tell_nobody
from harness.models.dequantised import dequantised, float_matrix, quantised_modules
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.patch import patched
from harness.runs import prepare as preparing
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import Record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.studies.localization import localize
from harness.studies.sweeps import tune
from harness.studies.sweeps.tune import Budget, Tuned

DOWN = "model.layers.1.mlp.down_proj"
MEMIT: dict[str, object] = {"layers": [1], "cov_tokens": 2000, "v_steps": 5, "lam": 1.0, "clamp": 20.0}


@pytest.fixture
def quantised(fresh: Callable[..., LM]) -> Callable[..., LM]:
    """A tiny Llama whose blocks' matrices are quantised."""

    def make(form: type[EightBit] = EightBit, dtype: torch.dtype = torch.float32) -> LM:
        return in_few_bits(fresh("llama", dtype=dtype), form)

    return make


def in_few_bits(lm: LM, form: type[EightBit] = EightBit) -> LM:
    """A model whose blocks' matrices are quantised, in place."""
    for name, module in list(lm.model.named_modules()):
        if type(module) is nn.Linear and name != lm.arch.head:
            parent, _, leaf = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), leaf, form(module))
    return LM.wrap(lm.model, lm.tokenizer, name="llama in few bits", text=lm.text)


def logits(lm: LM, text: str = "Ada Velmont was born in") -> Tensor:
    rows = lm.batch([lm.encode(text)])
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return found


def matrix_of(module: nn.Module) -> Tensor:
    """Codes times scales, in float64, from the formula."""
    assert isinstance(module, EightBit)
    codes, scale = module.weight.detach(), module.get_buffer("scale").double()
    if isinstance(module, FourBit):
        digits = torch.stack([codes // 16, codes % 16], 1).flatten().double()
        return (digits - 8).reshape(module.out_features, module.in_features) * 16 * scale
    return codes.double() * scale


@pytest.mark.parametrize("form", [EightBit, FourBit])
@pytest.mark.parametrize("bias", [False, True])
def test_the_matrix_is_codes_times_scales(form: type[EightBit], bias: bool) -> None:
    """Also of a module of a thousand inputs and more, and whatever its bias."""
    torch.manual_seed(0)
    plain = nn.Linear(1100, 6, bias=bias)
    if bias:
        plain.bias.data.fill_(1000.0)  # subtracted afterwards, it would leave three digits
    module = form(plain)
    kept = module.bias
    assert torch.equal(float_matrix(module, torch.float32).double(), matrix_of(module).float().double())
    assert module.bias is kept


def test_what_does_not_say_its_width_is_told() -> None:
    module = EightBit(nn.Linear(4, 4))
    del module.in_features
    with pytest.raises(ModelError, match="a EightBit does not say how many numbers it takes; load it in bfloat16"):
        float_matrix(module, torch.float32)


@pytest.mark.parametrize("form", [EightBit, FourBit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_named_are_plain_and_all_comes_back(
    quantised: Callable[..., LM], form: type[EightBit], dtype: torch.dtype
) -> None:
    lm = quantised(form, dtype)
    guard, own, before = Guard.of(lm), lm.module(DOWN), logits(lm)
    with dequantised(lm, [DOWN], "memit") as names:
        assert names == (DOWN,)
        assert type(lm.module(DOWN)) is nn.Linear
        assert lm.parameter(f"{DOWN}.weight").dtype == dtype
        assert torch.equal(lm.matrix(f"{DOWN}.weight"), matrix_of(own).to(dtype))
        assert isinstance(lm.module("model.layers.0.mlp.down_proj"), form)
        assert isinstance(lm.module("model.layers.1.mlp.up_proj"), form)
        assert torch.allclose(logits(lm), before, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert lm.module(DOWN) is own
    assert torch.equal(logits(lm), before)
    assert not guard.differing()


def test_all_comes_back_after_an_exception(quantised: Callable[..., LM]) -> None:
    lm = quantised()
    guard = Guard.of(lm)
    with pytest.raises(KeyError), dequantised(lm, [DOWN], "memit"):
        raise KeyError
    assert not guard.differing()


def test_codes_that_were_written_meanwhile_are_told(quantised: Callable[..., LM]) -> None:
    lm = quantised()
    own = lm.module(DOWN)
    with pytest.raises(RestoreError, match=rf"'{DOWN}' is not what it was before it was dequantised"):  # noqa: SIM117
        with dequantised(lm, [DOWN], "memit"):
            own.weight.data[0, 0] += 1


def test_a_block_stands_for_the_quantised_matrices_inside(
    quantised: Callable[..., LM], fresh: Callable[..., LM]
) -> None:
    inside = quantised_modules(quantised(), ["model.layers.1"])
    assert len(inside) == 7
    assert all(name.startswith("model.layers.1.") for name in inside)
    with pytest.raises(UsageError, match="no matrix that memit edits in tiny-llama is quantised; leave --dequantise"):  # noqa: SIM117
        with dequantised(fresh("llama"), [DOWN], "memit"):
            pass


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rome", {"layers": [1]}),
        ("memit", {"layers": [1]}),
        ("alphaedit", {"layers": [1], "nullspace_threshold": 0.4}),
        ("ft_m", {"layers": [1], "steps": 3}),
        ("ultraedit", {"layers": [1], "lr": 1e-2}),
        ("unke", {"layers": [1], "steps": 3, "texts": 2}),
        ("lora", {"steps": 3}),
        ("qlora", {"steps": 3}),
        ("kn", {}),
    ],
)
def test_editors_of_weights_write_what_was_dequantised(
    quantised: Callable[..., LM], edits: list[Edit], name: str, settings: Mapping[str, object]
) -> None:
    """Every weight that the patch changes is among the modules that the editor named beforehand."""
    lm = quantised()
    quick = {"cov_tokens": 2000, "v_steps": 3} if name in ("rome", "memit", "alphaedit") else {}
    method = compose(name).build(lm, {**quick, **settings}, seed=0)
    guard = Guard.of(lm)
    known = [replace(edit, target_old="Oslo") for edit in edits]
    with dequantised(lm, method.edited_modules(lm), name) as modules:
        patch = method.edit(lm, known[1:2])  # of several tokens: of one, UltraEdit takes the mean away
        assert patch.weights
        held = {weight for weight in patch.weights if weight.endswith("proj.weight")}
        assert held <= {f"{module}.weight" for module in modules}
        with patched(lm, patch):
            changed = logits(lm)
        assert not torch.equal(changed, logits(lm))
    assert not guard.differing()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(quantised: Callable[..., LM], tmp_path: Path) -> Iterator[tuple[LM, Plan, Record]]:
    """A run on a model in memory, with its record."""
    lm = quantised()
    plan = Plan(editor="memit", settings=MEMIT, num_edits=2, exam=("probability",), dequantise_edited=True)
    yield lm, plan, run_plan(resolve(plan, lm=lm), RunOptions(tmp_path, device="cpu", cache=False))


def test_a_run_says_what_was_dequantised_and_of_what_its_numbers_are(ran: tuple[LM, Plan, Record]) -> None:
    lm, plan, record = ran
    assert record.status == "complete"
    assert record.model["dequantised"] == [DOWN]
    assert record.model["loaded_sha256"] == lm.fingerprint() != record.model["sha256"]
    with dequantised(lm, [DOWN], "memit"):
        assert record.model["sha256"] == lm.fingerprint()
        assert record.weights["before"] == record.weights["restored"] == lm.hashes([f"{DOWN}.weight"])
    assert record.plan["dequantise_edited"] is True
    assert record.id == resolve(plan, lm=lm).id != resolve(replace(plan, dequantise_edited=False), lm=lm).id
    assert isinstance(lm.module(DOWN), EightBit)


def test_the_record_of_such_a_run_is_taken_again(ran: tuple[LM, Plan, Record]) -> None:
    from harness.runs.changed_since import changed_since

    lm, plan, record = ran
    assert changed_since(record, resolve(plan, lm=lm)) == []
    lm.module("model.layers.0.mlp.down_proj").weight.data[0, 0] += 1
    assert changed_since(record, resolve(plan, lm=lm)) == ["weights of the model"]


def test_a_run_that_fails_leaves_the_model_quantised(
    quantised: Callable[..., LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = quantised()
    guard = Guard.of(lm)

    def broken(*args: object, **options: object) -> None:
        raise HarnessError("no suite")

    monkeypatch.setattr(preparing.tasks, "load_suite", broken)
    plan = Plan(editor="memit", settings=MEMIT, num_edits=2, dequantise_edited=True)
    with pytest.raises(HarnessError, match="no suite"):
        run_plan(resolve(plan, lm=lm), RunOptions(tmp_path, device="cpu"))
    assert not guard.differing()


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (Plan(editor="rag", num_edits=1), "rag writes no weights"),
        (Plan(edits="none", tasks=("NLI",)), "none writes no weights"),
    ],
)
def test_a_plan_without_edited_matrices_is_told_before_a_model_is_read(plan: Plan, told: str) -> None:
    with pytest.raises(UsageError, match=rf"dequantise_edited: {told}, so that no edited matrix is known; leave"):
        resolve(replace(plan, dequantise_edited=True))


def test_edits_hold_in_a_quantised_model_in_memory(quantised: Callable[..., LM]) -> None:
    lm = quantised()
    guard, fact = Guard.of(lm), {"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}
    with (
        pytest.raises(ModelError, match="--dequantise-edited"),
        harness.edit(lm, None, "memit", [fact], settings=MEMIT),
    ):
        pass
    with harness.edit(lm, None, "memit", [fact], settings=MEMIT, dequantise_edited=True) as edited:
        assert sorted(edited.patch.weights) == [f"{DOWN}.weight"]
        assert type(lm.module(DOWN)) is nn.Linear
        after = edited.log_likelihood("Ada Velmont was born in", " Rome")
    assert not guard.differing()
    with dequantised(lm, [DOWN], "memit"):
        rows = lm.batch([lm.encode("Ada Velmont was born in") + lm.continuation("Ada Velmont was born in", " Rome")])
        before = float(lm.model(input_ids=rows.ids).logits[0].double().log_softmax(-1)[-2, rows.ids[0, -1]])
    assert after > before


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_ones(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Which modules a study has let be plain numbers, each time that it did."""
    found: list[tuple[str, ...]] = []

    @contextmanager
    def noted(lm: LM, places: Iterable[str], asker: str) -> Iterator[tuple[str, ...]]:
        with dequantised(lm, places, asker) as names:
            found.append(names)
            yield names

    for room in (localize, tune):
        monkeypatch.setattr(room, "dequantised", noted)
    return found


def test_localisation_edits_every_layer_of_a_quantised_model(tmp_path: Path, plain_ones: list[tuple[str, ...]]) -> None:
    lm = in_few_bits(harness.load("mini-llama", device="cpu"))
    guard = Guard.of(lm)
    words: dict[str, object] = {
        "facts": 3, "problems": "error_injection", "methods": "memit@1", "layers": [0, 1], "essence": False,
        "samples": 2, "forcing_samples": 1, "settings": {"cov_tokens": 2000, "v_steps": 2}, "data_dir": "mini",
    }  # fmt: skip
    with pytest.raises(ModelError, match="--dequantise-edited"):
        harness.localize(lm, "counterfact:20", output=tmp_path / "refused", **words)
    study = harness.localize(lm, "counterfact:20", output=tmp_path, dequantise_edited=True, **words)
    assert study.complete
    assert set(plain_ones) == {(f"model.layers.{layer}.mlp.down_proj",) for layer in (0, 1)}
    assert not guard.differing()
    with pytest.raises(UsageError, match=r"no matrix that memit edits in .* is quantised; leave --dequantise-edited"):
        harness.localize("mini", "counterfact:20", output=tmp_path, dequantise_edited=True, **words)


def test_a_tuned_editor_writes_quantised_layers(
    quantised: Callable[..., LM],
    tmp_path: Path,
    plain_ones: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = quantised()
    guard = Guard.of(lm)
    monkeypatch.setattr(tune, "load", lambda *_, **__: lm)
    plan = Plan(
        editor="memit", settings={"cov_tokens": 2000, "v_steps": 2}, num_edits=2, split="train", dequantise_edited=True
    )

    def tuned(plan: Plan, folder: str) -> Tuned:
        budget = Budget(trials=3, probes=1, texts=2, traced=0)
        return tune.tune(plan, tmp_path / folder, budget=budget, against=None, device="cpu", report=tell_nobody)

    found = tuned(plan, "plain")
    assert [one.reason for one in found.trials] == [None, None, None]
    assert len(plain_ones) == 4  # once beforehand, so that what cannot be is told
    assert not guard.differing()
    refused = tuned(replace(plan, dequantise_edited=False), "refused")
    assert all("--dequantise-edited" in str(one.reason) for one in refused.trials)
