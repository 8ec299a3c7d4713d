"""Models with quantised weights: read as they are, edited at every seam but the weights, refused early for those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from few_bits import EightBit, FourBit
from torch import Tensor, nn

from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.hyperparameters import settable
from harness.editing.registry import compose, configure, editor_names, find
from harness.editing.schedule import walk
from harness.errors import ModelError
from harness.models.lm import LM
from harness.patches.patch import Patch, Step, patched
from harness.runs import prepare as preparing
from harness.runs.plan import Plan
from harness.runs.prepare import prepare_run
from harness.runs.resolve import resolve

FAMILIES = ["llama", "neox"]
OF_WEIGHTS = [
    name
    for name in editor_names()
    if "weights" in find(name).seams
    and not issubclass(find(name), Wrapper | Learned)
    and name != "none"
    and not find(name).reference
]
QUICK = {"cov_tokens": 4000, "v_steps": 3, "steps": 3}
REFUSED = r"'{}' is quantised \({}\) and cannot take a change of weights; load the model in bfloat16, let"
SHIFTS = """
from dataclasses import dataclass
from harness.editing.editor import Editor
from harness.patches.patch import Patch

@dataclass(frozen=True)
class Shifts(Editor):
    name = "shifts"
    seams = frozenset({"activations"})

    def edit(self, lm, edits, memory=None):
        return Patch(hooks={lm.arch.block(1): lambda hidden, step: hidden + 1})
"""


@pytest.fixture
def quantised(fresh: Callable[..., LM]) -> Callable[..., LM]:
    """A tiny model whose blocks' matrices are quantised."""

    def make(family: str, form: type[EightBit] = EightBit) -> LM:
        lm = fresh(family)
        for name, module in list(lm.model.named_modules()):
            if type(module) is nn.Linear and name != lm.arch.head:
                parent, _, leaf = name.rpartition(".")
                setattr(lm.model.get_submodule(parent), leaf, form(module))
        return LM.wrap(lm.model, lm.tokenizer, name=f"{family} in few bits", text=lm.text)

    return make


def logits(lm: LM, text: str = "Ada Velmont was born in") -> Tensor:
    rows = lm.batch([lm.encode(text)])
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
    return found


@pytest.mark.parametrize("form", [EightBit, FourBit])
@pytest.mark.parametrize("family", FAMILIES)
def test_its_parts_are_those_of_the_plain_model(quantised, tiny, family, form):
    """Also where the weight is packed, so that its shape is not the matrix's."""
    lm, plain = quantised(family, form), tiny(family)
    assert lm.arch == plain.arch
    assert lm.parameter(lm.down(1)).dtype in (torch.int8, torch.uint8)
    lm.check_finite()
    assert lm.fingerprint() == quantised(family, form).fingerprint() != plain.fingerprint()
    apart = float((logits(lm) - logits(plain)).norm() / logits(plain).norm())
    assert 0 < apart < (0.05 if form is EightBit else 0.5)


@pytest.mark.parametrize("form", [EightBit, FourBit])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_works(quantised, family, form):
    """What it adds to the last block's output enters the final norm, with and without a cache, and goes again."""
    lm = quantised(family, form)
    before, digests, entered = logits(lm), lm.state_hashes(), []

    def hook(hidden: Tensor, step: Step) -> Tensor:
        return hidden + 3 * (step.ids[:, -step.new :] != 0)[..., None].to(hidden)

    watch = lm.module(str(lm.arch.norm)).register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    logits(lm)
    with patched(lm, Patch(hooks={lm.arch.block(lm.arch.layers - 1): hook})):
        logits(lm)
        ids = torch.tensor([lm.encode("Ada Velmont was born in")])
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        cached, uncached = (lm.model.generate(ids, use_cache=use, **options) for use in (True, False))
    watch.remove()
    real = (torch.tensor(lm.encode("Ada Velmont was born in")) != 0)[None, :, None]
    assert torch.allclose(entered[1], entered[0] + 3 * real, atol=1e-4)
    assert torch.equal(cached, uncached)
    assert torch.equal(logits(lm), before)
    assert lm.state_hashes() == digests


def quick(name: str) -> Editor:
    cls = find(name)
    return configure(cls, "x", {key: value for key, value in QUICK.items() if key in settable(cls)})


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_an_editor_of_weights_never_ends_in_a_traceback_of_torch(quantised, edits, name):
    """Used without a runner, it says the same, at the latest where its patch would be held."""
    lm = quantised("llama")
    before = lm.state_hashes()
    known = [replace(edit, target_old="Oslo") for edit in edits] if find(name).needs_old else edits
    with (
        pytest.raises(ModelError, match=r"'model\.layers\..*weight' is quantised \(int8\)"),
        patched(lm, quick(name).edit(lm, known)),
    ):
        pass
    assert lm.state_hashes() == before


def test_noise_on_a_quantised_weight_is_refused(quantised, edits):
    lm = quantised("llama")
    with (
        pytest.raises(ModelError, match=r"'model\.layers\.1\..*weight' is quantised \(int8\)"),
        patched(lm, find("sabotage")(trick="noise").edit(lm, edits)),
    ):
        pass


@pytest.mark.parametrize("name", ["rome", "r_rome", "memit", "memit+rect+prune", "ft", "ft_l"])
def test_what_writes_into_down_projections_is_refused_before_the_model_is_run(quantised, edits, name):
    lm, passes = quantised("llama"), []
    settings = {"covariance": False} if name == "rome" else {}
    method = compose(name).build(lm, settings, seed=0)
    lm.model.register_forward_pre_hook(lambda module, args: passes.append(1))
    with pytest.raises(
        ModelError, match="^" + REFUSED.format(r"model\.layers\.\d\.mlp\.down_proj\.weight", "int8")
    ) as told:
        list(walk(method, lm, edits, mode="isolated", batch_size=None, at=[len(edits)]))
    assert not passes
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["memit", "ft_l+prune"])
@pytest.mark.parametrize(("form", "kind"), [(EightBit, "int8"), (FourBit, "uint8")])
def test_a_run_is_refused_before_anything_is_measured_and_names_what_works(quantised, monkeypatch, name, form, kind):
    monkeypatch.setattr(preparing, "load", lambda *args, **options: quantised("llama", form))
    monkeypatch.setattr(preparing.tasks, "load_suite", lambda *args, **options: pytest.fail("went on to the tasks"))
    works = [n for n in editor_names() if "weights" not in find(n).seams and not find(n).reference]
    assert works
    with pytest.raises(ModelError, match=REFUSED.format(r"model\.layers\.0\.mlp\.down_proj\.weight", kind)) as told:
        prepare_run(resolve(Plan(editor=name, num_edits=2)))
    assert str(told.value).endswith(f"(`harness editors` lists them): {', '.join(works)}")


def test_a_run_looks_at_the_layers_that_are_edited(quantised, fresh, monkeypatch):
    """A model of which one layer alone is quantised takes edits of the others."""
    plain, mixed = fresh("llama"), quantised("llama")
    for layer in (0, 1):
        parent = mixed.module(mixed.arch.mlp_of(layer))
        parent.down_proj = plain.module(plain.arch.down_of(layer))
    monkeypatch.setattr(preparing, "load", lambda *args, **options: mixed)
    assert prepare_run(resolve(Plan(editor="memit", settings={"layers": [0, 1]}, num_edits=2))).lm is mixed
    with pytest.raises(ModelError, match=REFUSED.format(r"model\.layers\.2\.mlp\.down_proj\.weight", "int8")):
        prepare_run(resolve(Plan(editor="memit", settings={"layers": [0, 2]}, num_edits=2)))


@pytest.mark.parametrize("name", ["none", "shifts"])
def test_a_run_without_a_change_of_weights_is_not_refused(quantised, monkeypatch, tmp_path, name):
    path = tmp_path / "shifts.py"
    path.write_text(SHIFTS)
    lm = quantised("llama")
    monkeypatch.setattr(preparing, "load", lambda *args, **options: lm)
    assert prepare_run(resolve(Plan(editor=name if name == "none" else str(path), num_edits=2))).lm is lm
