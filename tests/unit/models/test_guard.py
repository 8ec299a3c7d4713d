"""What an editor can leave behind in a model, and that each of it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import harness
from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.schedule import walk
from harness.errors import RestoreError
from harness.models.guard import Guard, same_modules, unchanged
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

EDIT = Edit("1", "{} was born in", "Rome", "Ada Velmont")


def _scale_weight(lm: LM) -> None:
    with torch.no_grad():
        lm.parameter("model.norm.weight").mul_(1.5)


def _scale_buffer(lm: LM) -> None:
    lm.model.get_buffer("model.rotary_emb.inv_freq").mul_(1.5)


def _hook(lm: LM) -> None:
    lm.module("model.layers.1.mlp").register_forward_hook(lambda module, args, output: output * 1.5)


def _hook_before(lm: LM) -> None:
    lm.module("model.layers.0.self_attn").register_forward_pre_hook(lambda module, args: None)


def _eps(lm: LM) -> None:
    lm.module("model.layers.0.input_layernorm").variance_epsilon = 0.5


def _mode(lm: LM) -> None:
    lm.module("model.layers.1.mlp").train()


def _activation(lm: LM) -> None:
    lm.module("model.layers.0.mlp").act_fn = nn.Tanh()


def _forward(lm: LM) -> None:
    module = lm.module("model.norm")
    module.forward = lambda x: x  # type: ignore[method-assign, assignment]


def _scaling(lm: LM) -> None:
    lm.module("model.layers.0.self_attn").scaling = 1.0


def _config(lm: LM) -> None:
    lm.model.config.attention_dropout = 0.3


def _generation(lm: LM) -> None:
    lm.model.generation_config.repetition_penalty = 1.7


def _padding_token(lm: LM) -> None:
    lm.tokenizer.pad_token = lm.tokenizer.convert_ids_to_tokens(5)


def _more_tokens(lm: LM) -> None:
    lm.tokenizer.add_tokens(["<new>"])


def _head_of_its_own(lm: LM) -> None:
    lm.model.lm_head.weight = nn.Parameter(lm.parameter("lm_head.weight").detach().clone(), requires_grad=False)


def _asks(lm: LM) -> None:
    lm.parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(True)


def _gradient(lm: LM) -> None:
    lm.parameter("model.layers.1.mlp.up_proj.weight").grad = torch.ones(64, 32)


def _layout(lm: LM) -> None:
    weight = lm.parameter("model.layers.2.mlp.up_proj.weight")
    weight.data = weight.data.T.contiguous().T


def _private_parameter(lm: LM) -> None:
    lm.module("model.layers.1").register_parameter("_memory", nn.Parameter(torch.ones(3), requires_grad=False))


def _private_method(lm: LM) -> None:
    module = lm.module("model.layers.2.mlp")
    module._compiled_call_impl = module.forward  # what torch calls first


def _decoding(lm: LM) -> None:
    lm.tokenizer.clean_up_tokenization_spaces = True


def _encode(lm: LM) -> None:
    lm.tokenizer.encode = lambda *_: [1]  # type: ignore[method-assign, assignment]


LEAVES = {
    "model.norm.weight": _scale_weight,
    "the buffer model.rotary_emb.inv_freq": _scale_buffer,
    "a hook on model.layers.1.mlp": _hook,
    "a hook on model.layers.0.self_attn": _hook_before,
    "model.layers.0.input_layernorm.variance_epsilon": _eps,
    "model.layers.1.mlp.training": _mode,
    "the class of model.layers.0.mlp.act_fn": _activation,
    "model.norm.forward": _forward,
    "model.layers.0.self_attn.scaling": _scaling,
    "config.attention_dropout": _config,
    "generation_config.repetition_penalty": _generation,
    "tokenizer.special_tokens_map": _padding_token,
    "tokenizer added_tokens": _more_tokens,
    "the parameter lm_head.weight": _head_of_its_own,
    "the parameter model.layers.0.mlp.up_proj.weight": _asks,
    "the parameter model.layers.1.mlp.up_proj.weight": _gradient,
    "the parameter model.layers.2.mlp.up_proj.weight": _layout,
    "the parameter model.layers.1._memory": _private_parameter,
    "the method _compiled_call_impl of model.layers.2.mlp": _private_method,
    "tokenizer.clean_up_tokenization_spaces": _decoding,
    "tokenizer.encode": _encode,
}

CALLED = {
    "LlamaForCausalLM.generate": lambda lm: (type(lm.model), "generate"),
    "LlamaAttention.__call__": lambda lm: (type(lm.module("model.layers.0.self_attn")), "__call__"),
    "Module._call_impl": lambda lm: (nn.Module, "_call_impl"),
    "the function torch.nn.functional.silu": lambda lm: (nn.functional, "silu"),
    "the function transformers.models.llama.modeling_llama.apply_rotary_pos_emb": lambda lm: (
        modeling_llama,
        "apply_rotary_pos_emb",
    ),
}
"""What a whole class or library computes with: by what it is named, who has it, and how it is called there."""


@pytest.mark.parametrize("named", CALLED)
def test_what_is_left_of_a_class_or_a_library_is_named(
    named: str, fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = fresh("llama")
    guard = Guard.of(lm)
    owner, name = CALLED[named](lm)
    own = getattr(owner, name)

    def replaced(*args: Any, **options: Any) -> Any:
        return own(*args, **options)

    monkeypatch.setattr(owner, name, replaced)
    assert named in guard.differing(weights=False)
    monkeypatch.undo()
    assert guard.differing() == []


def test_another_function_of_attention_and_a_hook_on_all_modules_are_named(
    fresh: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = fresh("llama")
    guard, kind = Guard.of(lm), lm.model.config._attn_implementation
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, kind, lambda *_: None)
    handle = global_hooks.register_module_full_backward_pre_hook(lambda *_: None)
    assert guard.differing(weights=False) == [f"the function of {kind} attention", "a hook on all modules"]
    handle.remove()


@pytest.mark.parametrize("named", LEAVES)
def test_what_is_left_behind_is_named(named: str, fresh: Callable[..., LM]) -> None:
    lm = fresh("llama")
    lm = LM.wrap(lm.model, copy.deepcopy(lm.tokenizer), name=lm.name)  # the tokenizer is shared by the tests
    lm.model.lm_head.weight = lm.model.get_input_embeddings().weight
    guard = Guard.of(lm)
    assert guard.differing() == []
    LEAVES[named](lm)
    assert named in guard.differing()
    assert (named in guard.differing(weights=False)) == (named != "model.norm.weight")
    with pytest.raises(RestoreError, match=r"tiny-llama: .* what (it was|they were) before this; cure") as told:
        guard.require("cure", before=" before this")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama", "opt"])
def test_use_leaves_nothing(family: str, fresh: Callable[..., LM]) -> None:
    """Scoring, generation, hidden states, a patch, and texts that the tokenizer pads and cuts."""
    lm = fresh(family)
    ids = lm.batch([lm.encode("Ada Velmont was born in Rome")]).ids
    change = LowRank(torch.ones(lm.matrix(lm.down(0)).shape[0], 1), torch.ones(1, lm.matrix(lm.down(0)).shape[1]))
    with unchanged(lm), torch.no_grad(), patched(lm, Patch({lm.down(0): change}, {lm.arch.block(1): lambda h, _: h})):
        lm.model(input_ids=ids, output_hidden_states=True, output_attentions=True)
        with lm.plain_generation():
            lm.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
        lm.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)


def test_unchanged_tells_also_after_an_exception(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    with (
        pytest.raises(RestoreError, match=r"tiny-gpt2: transformer\.h\.0\.ln_1\.eps is not what it was; load"),
        unchanged(lm),
    ):
        lm.module("transformer.h.0.ln_1").eps = 0.5
        raise ZeroDivisionError


def test_a_hook_that_was_there_stays_unsaid(fresh: Callable[..., LM]) -> None:
    """A user's own hook belongs to the model; one more, or one less, is told."""
    lm = fresh("gpt2")
    handle = lm.module("transformer.h.0").register_forward_hook(lambda *_: None)
    guard = Guard.of(lm)
    assert guard.differing() == []
    handle.remove()
    assert guard.differing() == ["a hook on transformer.h.0"]


def test_modules_come_back_wherever_they_were_replaced(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    before = [(name, id(module)) for name, module in lm.model.named_modules()]
    with pytest.raises(ZeroDivisionError), same_modules(lm.model):
        lm.module("transformer.h.0").mlp = nn.Identity()
        lm.module("transformer.h.1").more = nn.Identity()
        del lm.module("transformer.h.2").attn
        raise ZeroDivisionError
    assert [(name, id(module)) for name, module in lm.model.named_modules()] == before


@dataclass(frozen=True)
class Leaves(Editor):
    """Changes a matrix as it should, and leaves something behind."""

    name = "leaves"
    what: str = "eps"

    def edit(self, lm, edits, memory=None):
        """A change of rank one."""
        if self.what == "eps":
            lm.module("transformer.h.0.ln_1").eps = 0.5
        if self.what == "hook":
            lm.module("transformer.h.1.mlp").register_forward_hook(lambda module, args, output: output * 1.5)
        if self.what == "mode":
            lm.model.train()
        out, width = lm.matrix(lm.down(0)).shape
        return Patch({lm.down(0): LowRank(torch.ones(out, 1), torch.full((1, width), 0.01))})


LEFT = {"eps": r"transformer\.h\.0\.ln_1\.eps", "hook": r"a hook on transformer\.h\.1\.mlp", "mode": r"training"}


@pytest.mark.parametrize("what", LEFT)
def test_harness_edit_tells_before_the_model_is_used(what: str, fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    used = []
    with pytest.raises(RestoreError, match=f"{LEFT[what]}.* not what"), harness.edit(lm, None, Leaves(what), [EDIT]):
        used.append(what)
    assert used == []


@pytest.mark.parametrize("what", LEFT)
def test_a_run_tells_before_the_edited_model_is_measured(
    what: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "{} was born in", "subject": "Ada Velmont", "target": "Rome"}\n')
    lm = harness.load(str(checkpoint("gpt2")), device="cpu")
    plan = Plan(str(checkpoint("gpt2")), "leaves", edits=str(rows), mode="batch")
    resolved = resolve(plan, lm=lm, editor=Leaves(what))
    with pytest.raises(RestoreError, match=f"{LEFT[what]}.* before leaves edited; this run's numbers are void"):
        run_plan(resolved, RunOptions(tmp_path / "out", device="cpu"))


def test_a_clean_editor_passes(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    with unchanged(lm):
        *_, stop = walk(Leaves("nothing"), lm, [EDIT], mode="sequential", batch_size=None, at=[1])
    assert stop.edits == 1
