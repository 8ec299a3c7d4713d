"""Architectures that are built otherwise than most: experts, shared blocks, hybrids, states, lists as outputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from tiny_models import make_model, make_tokenizer

from editors.grace import Grace
from editors.kn import KnowledgeNeurons
from editors.locft import BreadthFirst
from editors.lora import Lora
from editors.remedi import Remedi
from editors.wise import Wise
from harness.editing.edit import Edit
from harness.errors import ModelError
from harness.exam.adapter import EditedLM
from harness.models.activations import prefix_after
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.patch import Patch, patched

EDIT = Edit("1", "{} was born in", "Ada", "Rome")


def tiny(family: str) -> LM:
    return LM.wrap(make_model(family), make_tokenizer(), name=family)


@pytest.mark.parametrize(
    ("family", "mlp", "attn"),
    [
        ("mixtral", "mlp", "self_attn"),
        ("qwen2_moe", "mlp", "self_attn"),
        ("gpt_oss", "mlp", "self_attn"),
        ("granitemoe", "block_sparse_moe", "self_attn"),
        ("jetmoe", "mlp", "self_attention"),  # which has experts of attention, too
    ],
)
def test_a_mixture_of_experts_is_called_so_and_found_beside_attention(family: str, mlp: str, attn: str) -> None:
    lm = tiny(family)
    assert (lm.arch.editable, lm.arch.writable) == ((), () if family == "jetmoe" else (0, 1, 2))
    assert (lm.arch.mlp_of(1), lm.arch.attn_of(1)) == (f"model.layers.1.{mlp}", f"model.layers.1.{attn}")
    with pytest.raises(ModelError, match=f"{family}: no down found .a mixture of experts.*ike, rag, full"):
        lm.arch.down_of(1)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "falcon_mamba", "dbrx"])
def test_what_is_no_feed_forward_part_is_not_taken_for_one(family: str) -> None:
    lm = tiny(family)
    for part in (lm.arch.down_of, lm.arch.mlp_of):
        with pytest.raises(ModelError, match="looked for two or three matrices"):
            part(0)


@pytest.mark.parametrize("family", ["zamba", "zamba2"])
def test_a_down_projection_that_several_blocks_share_is_none_of_a_block(family: str) -> None:
    lm = tiny(family)
    assert lm.arch.editable == ()
    with pytest.raises(ModelError, match="its feed-forward part is that of layer 2, too"):
        lm.arch.down_of(0)
    with pytest.raises(ModelError, match="looked for"):
        lm.arch.down_of(1)


@pytest.mark.parametrize(
    ("family", "editable"),
    [("deepseek_v3", (0,)), ("jamba", (0, 2)), ("llama4_text", (0, 2)), ("nemotron_h", (2,)), ("bamba", (0, 1, 2))],
)
def test_every_block_is_looked_at(family: str, editable: tuple[int, ...]) -> None:
    lm = tiny(family)
    assert lm.arch.editable == editable
    for layer in set(range(3)) - set(editable):
        with pytest.raises(ModelError, match=f"layer {layer} has no .* layers that have one: {editable[0]}"):
            lm.arch.down_of(layer)


def test_the_output_of_a_block_is_changed_where_it_is_a_list() -> None:
    lm = tiny("openai-gpt")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = lm.model(ids).logits
        with patched(lm, Patch(hooks={lm.arch.block(1): lambda hidden, _step: hidden + 1.0})):
            assert not torch.allclose(lm.model(ids).logits, plain, atol=1e-2)
        with patched(lm, Patch(hooks={lm.arch.block(1): lambda hidden, _step: hidden})):
            assert torch.equal(lm.model(ids).logits, plain)


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "qwen3_next", "gpt_oss"])
def test_the_output_of_experts_is_replaced(family: str) -> None:
    lm = tiny(family)
    editor = Grace(layer=1, n_iter=12, edit_lr=1.0)
    editor.require(lm)
    guard = Guard.of(lm)
    patch = editor.edit(lm, [EDIT])
    said = EditedLM(lm)
    asked = [Instance("loglikelihood", {}, (EDIT.text, EDIT.continuation), 0)]
    before = said.loglikelihood(asked)[0][0]
    with said.holding(patch):
        assert said.loglikelihood(asked)[0][0] > before + 0.1
    assert guard.differing() == []


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_lora_on_a_mixture_of_experts_leaves_nothing_behind(family: str) -> None:
    lm = tiny(family)
    guard = Guard.of(lm)
    with pytest.raises(ModelError, match="no down found"):
        Lora().require(lm)
    editor = Lora(modules=("q_proj", "v_proj"), steps=2)
    editor.require(lm)
    patch = editor.edit(lm, [EDIT])
    assert set(patch.weights) == {f"model.layers.{i}.self_attn.{n}_proj.weight" for i in range(3) for n in "qv"}
    assert guard.differing() == []


@pytest.mark.parametrize(
    "editor", [BreadthFirst(layers=(1,)), Wise(layer=1), Grace(layer=1, site="down"), Lora(layers=(1,))]
)
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "mamba"])
def test_what_cannot_be_edited_is_told_before_anything_is(family: str, editor: BreadthFirst) -> None:
    if isinstance(editor, BreadthFirst) and family != "mamba":
        editor.require(tiny(family))  # it trains all experts
        return
    with pytest.raises(ModelError) as told:
        editor.require(tiny(family))
    assert "\n" not in str(told.value)


def test_whole_blocks_and_what_they_hand_on_need_no_down_projection() -> None:
    lm = tiny("mixtral")
    blocks = BreadthFirst(layers=(1,), trained="block", steps=1)
    blocks.require(lm)
    assert blocks.places(lm) == ["model.layers.1"]
    assert any("self_attn" in name for name in blocks.edit(lm, [EDIT]).weights)
    Remedi(layer=1).require(tiny("mamba"))


def test_kn_refuses_an_output_embedding_of_another_width_before_anything_is_measured() -> None:
    with pytest.raises(ModelError, match="output embedding have 16 numbers, its residual stream 32"):
        KnowledgeNeurons().require(tiny("opt (narrow embedding)"))


def test_remedi_refuses_blocks_that_hand_on_several_vectors() -> None:
    with pytest.raises(ModelError, match=r"'model\.layers\.0' hands on 64 numbers a token"):
        Remedi(layer=0).require(tiny("gemma3n_text"))


PROMPTS = ["Ada Velmont was born in", "Hugo", "The home of Iris"]


@pytest.mark.parametrize("family", ["rwkv", "mamba", "recurrent_gemma", "minimax", "openai-gpt", "bamba", "gpt2"])
def test_what_is_written_in_a_batch_is_what_is_written_alone(family: str) -> None:
    lm = tiny(family)
    asked = [Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": 6}), i) for i, p in enumerate(PROMPTS)]
    together = EditedLM(lm).generate_until(asked)
    assert together == [EditedLM(lm, batch_size=1).generate_until([one])[0] for one in asked]
    assert EditedLM(lm)._padding_is_unseen == (family not in ("rwkv", "recurrent_gemma", "minimax"))


STATES = ["rwkv", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "qwen3_next", "bamba", "lfm2", "jamba", "xlstm"]


@pytest.mark.parametrize(("family", "layers"), [("longcat_flash", 4), ("llama", 3), ("mixtral", 3)])
def test_what_attention_keeps_of_a_long_beginning_is_all_that_the_model_keeps(family: str, layers: int) -> None:
    """A block of LongCat has two attention modules, each with a layer of the cache."""
    lm = tiny(family)
    assert lm.cache_layers == layers
    front, rest = list(range(5, 45)), [7, 9]
    kept = prefix_after(lm, front)
    assert len(kept.keys) == layers
    batch = lm.batch([rest])
    with torch.no_grad():
        behind = lm.model(input_ids=batch.ids, **kept.inputs(lm, batch)).logits[0]
        whole = lm.model(input_ids=lm.batch([front + rest]).ids, use_cache=False).logits[0, -2:]
    torch.testing.assert_close(behind, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*STATES, "zamba2", "nemotron_h", "minimax", "llama"])
def test_a_rule_sees_the_whole_text_with_whatever_a_model_keeps_of_it(family: str) -> None:
    lm, seen = tiny(family), []

    def rule(logits: torch.Tensor, step: object) -> torch.Tensor:
        seen.append((step.ids.shape[1], step.new))  # type: ignore[attr-defined]
        return logits

    ids = torch.tensor([lm.encode("Ada was")])
    with patched(lm, Patch(logits=rule)), torch.no_grad():
        lm.model(torch.ones(2, 5, dtype=torch.long))  # of another text, of which nothing is left
        lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert [total for total, _ in seen] == [5, 7, 8, 9]


def test_a_state_that_a_model_keeps_for_itself_is_nothing_left_behind() -> None:
    lm = tiny("recurrent_gemma")
    guard = Guard.of(lm)
    ids = torch.tensor([lm.encode("Ada was born")])
    lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0)
    assert guard.differing() == []
    lm.module("model.layers.0.temporal_pre_norm").eps = 0.5
    assert guard.differing() == ["model.layers.0.temporal_pre_norm.eps"]
