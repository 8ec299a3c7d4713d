"""Experts as one matrix: stacked keys, ROME by hand, what is held, saved, applied, and refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from tiny_models import make_model, make_tokenizer, save_model, write_text

from editors.memit import Memit
from editors.rome import Rome
from harness import api
from harness.editing.checkpoint import export
from harness.editing.edit import Edit
from harness.errors import ModelError
from harness.methods import second_moments
from harness.methods.keys import prompt_rows, read_keys
from harness.methods.locate_then_edit import require_linear
from harness.methods.second_moments import accumulate_moments
from harness.methods.value import optimise
from harness.models.activations import capture_activations
from harness.models.experts import stacked_experts
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched, patched_rows

EDIT = Edit("1", "{} was born in", "Ada", "Rome")
TEXTS = [f"The town of number {i} lies by a river, and {i * 7} people live there." for i in range(60)]


def tiny(family: str) -> LM:
    return LM.wrap(make_model(family), make_tokenizer(), name=family)


def entered(lm: LM, layer: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What enters a layer's experts part and what leaves its experts, ``[columns, d]`` each."""
    seen: dict[str, Tensor] = {}
    mixture, experts = lm.module(lm.arch.mlp_of(layer)), lm.module(lm.arch.writer_of(layer))
    first = mixture.register_forward_pre_hook(lambda _m, args: seen.update(hidden=args[0][0]))
    last = experts.register_forward_hook(lambda _m, _a, output: seen.update(output=output))
    with torch.no_grad():
        lm.model(ids)
    first.remove(), last.remove()
    return seen["hidden"], seen["output"]


def by_hand(lm: LM, layer: int, hidden: Tensor) -> Tensor:
    """``[g_1 k_1; ...; g_E k_E]`` of Mixtral, from its published definition, ``[columns, E f]``."""
    mixture: Any = lm.module(lm.arch.mlp_of(layer))
    chances = (hidden @ mixture.gate.weight.T).softmax(-1)
    best, which = chances.topk(2, -1)
    weights = torch.zeros_like(chances).scatter(1, which, best / best.sum(-1, keepdim=True))
    keys = []
    for e in range(weights.shape[1]):
        gate, up = (hidden @ mixture.experts.gate_up_proj[e].T).chunk(2, -1)
        keys.append(weights[:, e, None] * nn.functional.silu(gate) * up)
    return torch.cat(keys, 1)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_stacked_key_is_what_the_definition_says(implementation: str) -> None:
    lm = tiny("mixtral")
    lm.model.set_experts_implementation(implementation)
    ids = torch.tensor([lm.encode("Ada Velmont was born in")])
    hidden, output = entered(lm, 1, ids)
    wanted = by_hand(lm, 1, hidden)
    place = lm.arch.writer_of(1)
    assert (place, lm.down(1)) == ("model.layers.1.mlp.experts", "model.layers.1.mlp.experts.down_proj")
    assert lm.arch.key_size(1) == wanted.shape[1] == 4 * 64
    got = capture_activations(lm, lm.batch([ids[0].tolist()]), inputs=[place]).inputs[place][0]
    torch.testing.assert_close(got, wanted.detach(), atol=1e-6, rtol=1e-5)
    assert (got.reshape(-1, 4, 64).abs().sum(-1) > 0).sum(1).tolist() == [2] * len(got)  # two of four experts
    torch.testing.assert_close(got @ lm.matrix(lm.down(1)).T, output, atol=1e-6, rtol=1e-5)
    stacked = torch.cat(list(lm.parameter(lm.down(1)).detach()), 1)
    assert torch.equal(lm.matrix(lm.down(1)), stacked)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe", "deepseek_v3"])
def test_keys_at_one_place_are_those_of_all(family: str) -> None:
    lm = tiny(family)
    place, batch = lm.arch.writer_of(2), lm.batch([lm.encode("Ada was born in"), lm.encode("Hugo")])
    every = capture_activations(lm, batch, inputs=[place]).inputs[place]
    at = torch.tensor([5, 2])
    some = capture_activations(lm, batch, inputs=[place], at=at).inputs[place]
    assert some.shape == (2, 1, lm.arch.key_size(2))
    torch.testing.assert_close(some[:, 0], every[torch.arange(2), at], atol=1e-6, rtol=1e-5)


def test_biases_of_experts_are_no_part_of_a_key() -> None:
    lm = tiny("gpt_oss")
    experts = lm.arch.each[1].experts
    assert experts is not None
    assert (experts.bias, experts.transposed) == ("down_proj_bias", True)
    ids = torch.tensor([lm.encode("Ada was born in")])
    _, output = entered(lm, 1, ids)
    place = lm.arch.writer_of(1)
    key = capture_activations(lm, lm.batch([ids[0].tolist()]), inputs=[place]).inputs[place][0]
    assert (output - key @ lm.matrix(lm.down(1)).T).norm() > 0.1 * output.norm()
    with torch.no_grad():
        lm.parameter("model.layers.1.mlp.experts.down_proj_bias").zero_()
    _, output = entered(lm, 1, ids)
    torch.testing.assert_close(key @ lm.matrix(lm.down(1)).T, output, atol=1e-6, rtol=1e-5)


def test_rome_writes_all_experts_at_once_as_by_hand() -> None:
    """``W' = W + (v* - W k) (C^-1 k)^T / (k . C^-1 k)`` with the keys of all experts stacked (ROME, equation 2)."""
    lm = tiny("mixtral")
    editor = Rome(layers=(1,), v_steps=4, contexts=("{}",))
    moment = accumulate_moments(lm, [1], TEXTS)[1]
    found = optimise(lm, [EDIT], ("{}",), objective=editor.objective(1))
    (row,) = prompt_rows(lm, EDIT, ("{}",), fact_token="subject_last")
    guard, name = Guard.of(lm), lm.down(1)
    with pytest.MonkeyPatch.context() as given:
        given.setattr("harness.methods.keys.moments", lambda *_args, **_words: {1: moment})
        patch = editor.edit(lm, [EDIT])
    hidden, output = entered(lm, 1, torch.tensor([list(row.ids)]))
    keys = torch.cat([by_hand(lm, 1, entered(lm, 1, torch.tensor([lm.encode(text)]))[0]) for text in TEXTS]).double()
    key, value = by_hand(lm, 1, hidden)[row.at].double(), found.value[0].double()
    torch.testing.assert_close(moment.matrix, (keys.T @ keys / len(keys)).detach(), atol=1e-6, rtol=1e-4)
    u = torch.linalg.solve(moment.matrix, key)  # rare experts make it ill-conditioned: the same numbers for both
    wanted = torch.outer(value - output[row.at].double(), u) / (key @ u)
    got = patch.weights[name]
    assert isinstance(got, LowRank)
    assert got.left.shape[1] == 1
    torch.testing.assert_close(got.dense().double(), wanted.detach(), atol=1e-5 * float(wanted.abs().max()), rtol=1e-3)
    parameter = lm.parameter(name)
    before = parameter.detach().clone()
    with patched(lm, patch):
        written = torch.stack([got.dense()[:, e * 64 : (e + 1) * 64] for e in range(4)])
        torch.testing.assert_close(parameter.detach(), before + written)
        assert (written.flatten(1).norm(dim=1) > 0).sum() >= 2
        torch.testing.assert_close(entered(lm, 1, torch.tensor([list(row.ids)]))[1][row.at], found.value[0])
    assert torch.equal(parameter, before)
    assert guard.differing() == []


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_rows_that_carry_changes_of_experts_are_as_if_each_were_held(family: str) -> None:
    lm, generator = tiny(family), torch.Generator().manual_seed(0)
    name, size = lm.down(1), lm.arch.key_size(1)
    # More rows on the right than the module has outputs, so that several passes find their products.
    ranks = (1, 20, 20)
    patches = [
        Patch({name: LowRank(torch.randn(32, r, generator=generator), torch.randn(r, size, generator=generator) / r)})
        for r in ranks
    ]
    batch = lm.batch([lm.encode(text) for text in ("Ada was born in", "Hugo", "The home of Iris", "The home of Iris")])
    with torch.no_grad(), patched_rows(lm, patches) as rows:
        rows.index = torch.tensor([2, 0, -1, 1])
        together = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    for row, patch in zip(range(4), [patches[2], patches[0], Patch(), patches[1]], strict=True):
        with torch.no_grad(), patched(lm, patch):
            alone = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        torch.testing.assert_close(together[row], alone[row], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(together[2], together[3], atol=1e-2)


def test_isolated_edits_side_by_side_are_those_of_one_at_a_time(tmp_path: Path) -> None:
    lm = LM.wrap(make_model("mixtral"), make_tokenizer(), name="mixtral", text=write_text(tmp_path / "text.txt"))
    editor = Memit(layers=(0, 1), v_steps=3, contexts=("{}",), cov_tokens=3000, lam=10.0)
    edits = [EDIT, Edit("2", "The mother tongue of {} is", "Hugo", "French")]
    for patch, edit in zip(editor.edit_each(lm, edits), edits, strict=True):
        alone = editor.edit(lm, [edit])
        assert set(patch.weights) == set(alone.weights) == {lm.down(0), lm.down(1)}
        for name in patch.weights:
            got, wanted = patch.weights[name].dense(), alone.weights[name].dense()
            assert (got - wanted).norm() < 1e-3 * wanted.norm()


def test_an_edited_mixture_is_saved_applied_and_loads_as_plain_transformers(tmp_path: Path) -> None:
    folder, text = save_model("mixtral", tmp_path / "model"), write_text(tmp_path / "text.txt")
    row = {"prompt": "{} was born in", "subject": "Ada", "target": "Rome"}
    settings = {"layers": [1], "v_steps": 5, "contexts": ["{}"], "cov_tokens": 3000}
    ids = torch.tensor([[3, 70, 80, 90]])
    with api.edit(str(folder), None, "rome", [row], settings=settings, text=text) as edited:
        edited.save(tmp_path / "edits.safetensors")
        with torch.no_grad():
            wanted = edited.model(ids).logits
    loaded = api.load(str(folder))
    with torch.no_grad():
        unedited = loaded.model(ids).logits
    export(tmp_path / "edits.safetensors", loaded, tmp_path / "applied")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "applied")
    with torch.no_grad():
        got = plain(ids).logits
    assert not torch.allclose(unedited, wanted, atol=1e-3)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_fine_tuned_experts_are_changed_as_they_are_stored() -> None:
    """A dense change of ``[E, d, f]`` is that of the one matrix, back and forth."""
    lm = tiny("gpt_oss")
    name = lm.down(1)
    stored = torch.randn(lm.parameter(name).shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lm.as_stored(name, lm.as_matrix(name, stored)), stored)
    before = lm.parameter(name).detach().clone()
    with patched(lm, Patch({name: Dense(lm.as_matrix(name, stored))})):
        assert torch.equal(lm.parameter(name), before + stored)
    assert torch.equal(lm.parameter(name), before)


class Both(nn.Module):
    """Experts of GPT-OSS's sizes: as wide inside as outside, so that the way back looks the same both ways."""

    def __init__(self, up: tuple[int, ...], down: tuple[int, ...] = (3, 8, 8)) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.ones(up)), nn.Parameter(torch.ones(down))

    def forward(self, hidden: Tensor, which: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError


class Untold(Both):
    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "transposed"),
    [
        (Both((3, 8, 16)), True),
        (Both((3, 16, 8)), False),
        (Untold((3, 16, 8)), None),  # each token's experts are chosen elsewhere (Llama 4)
        (Both((3, 12, 8)), None),
        (Both((3, 16, 8), (2, 8, 8)), None),
        (Both((3, 16, 8), (3, 8, 6)), None),
    ],
)
def test_how_experts_are_stored_is_told_by_the_way_in(module: nn.Module, transposed: bool | None) -> None:
    found = stacked_experts("experts", module, 8)
    assert (None if found is None else found.transposed) == transposed


def test_experts_that_are_not_linear_in_their_down_projections_are_refused() -> None:
    lm = tiny("mixtral")
    require_linear(lm, [0, 1, 2])
    module: Any = lm.module(lm.arch.writer_of(1))
    plain: Callable[..., Tensor] = module.forward
    module.forward = lambda *args: plain(*args).tanh() * 3  # a norm or the like behind each expert
    with pytest.raises(ModelError, match="experts of layer 1 write is not linear") as told:
        require_linear(lm, [0, 1, 2])
    assert "\n" not in str(told.value)


def test_keys_that_are_too_wide_for_a_second_moment_are_told_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("mixtral")
    monkeypatch.setattr(second_moments, "free_bytes", lambda _device: 2 * 8 * 256**2 - 1)
    for editor in (Rome(layers=(1,)), Memit(layers=(0, 1))):
        with pytest.raises(
            ModelError, match=r"all experts stacked are 256 numbers\) need .* free; take rome with"
        ) as told:
            editor.require(lm)
        assert "\n" not in str(told.value)
    Rome(layers=(1,), covariance=False).require(lm)
    monkeypatch.setattr(second_moments, "free_bytes", lambda _device: 2 * 8 * 256**2)
    Rome(layers=(1,)).require(lm)
    with pytest.raises(ModelError, match=r"need 1\.5 MiB"):
        Memit(layers=(0, 1)).require(lm)


def test_a_shared_expert_is_edited_by_name_and_the_routed_ones_are_not() -> None:
    names = {"down": "model.layers.{}.mlp.shared_expert.down_proj"}
    lm = LM.wrap(make_model("qwen2_moe"), make_tokenizer(), name="qwen2_moe", names=names)
    assert lm.down(1) == "model.layers.1.mlp.shared_expert.down_proj.weight"
    assert lm.arch.writer_of(1) == lm.arch.down_of(1)
    keys, _ = read_keys(lm, [EDIT], 1, templates=("{}",), fact_token="subject_last")
    assert keys.shape == (1, 24)


def test_experts_that_are_only_looked_at_are_as_they_were() -> None:
    lm = tiny("gpt_oss")
    place = lm.arch.writer_of(1)
    own = {name: id(parameter) for name, parameter in lm.module(place).named_parameters()}
    guard = Guard.of(lm)
    module: Any = lm.module(place)
    batch = lm.batch([lm.encode("Ada")])
    capture_activations(lm, batch, inputs=[place])
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == own
    assert guard.differing() == []
