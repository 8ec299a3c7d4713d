"""One contract, every method a row: what each editor promises, on each family of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.editing import patch_file, promises, registry
from harness.editing.edit import Edit, Example, Probe
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.hyperparameters import settable
from harness.errors import ModelError
from harness.models.lm import LM
from harness.patches.patch import Patch, patched, patched_rows, shareable

FAMILIES = ["gpt2", "gptj", "neox", "llama", "qwen2", "opt"]
# One editor of each kind on a Backpack too. There the blocks only weigh the senses that the text has, which a value at
# one token cannot always bend to a target of several tokens: MEMIT does not promise that.
ON_BACKPACK = {"ft", "lora", "memit", "grace"}
# Quick settings: far fewer tokens and steps than published, on models of three layers.
QUICK: dict[str, object] = {
    "cov_tokens": 4000,
    "v_steps": 20,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "clamp": 20.0,
    "lam": 1.0,
    "steps": 8,
    "lr": 5e-3,
    "norm_constraint": 2e-2,
}
# What single editors need besides, on models this small.
OWN_QUICK: dict[str, dict[str, object]] = {
    "grace": {"n_iter": 30, "edit_lr": 0.5},
    "wise": {"n_iter": 20, "alpha": 0.5, "beta": 2.0, "gamma": 1.0, "texts": 4, "norm_constraint": 1.0},
    "ike": {"k": 2, "room": 8},
    "rag": {"room": 8},
    "alphaedit": {"nullspace_threshold": 0.4, "l2": 1e-2},
    "encore": {"lam_n": 1e-2},
    "pmet": {"kl_factor": 0.0625, "lam": 1e-2},
    "mend": {"rank": 8, "accumulate": 2, "validate_every": 8, "lr": 1e-4, "alpha": 1e-2, "alpha_lr": 1e-4},
    "companion": {"lr": 0.5, "kl": 0.0, "epochs": 8},
    "full": {"lr": 3e-3},
    "senses": {"lr": 0.5, "kl": 1e-3, "epochs": 10, "accumulate": 1, "chunks": 20, "chunk_tokens": 32},
    "prune": {"reduce": "log1_5"},  # three edits exceed the bound of a matrix this small fourfold
}
FIRST = {"none", "ft", "ft_l", "rome", "r_rome", "memit"}


def home(name: str, family: str) -> str:
    """The family on which an editor is tried: the given one, or the only one that it is made for."""
    return registry.find(name).family or family


def quick(name: str, lm: LM, train: Sequence[Example] = ()) -> Editor:
    """An editor with quick settings, where it has those fields; wrappers stand around MEMIT, learners are fitted."""
    cls = registry.find(name)
    chosen = {k: v for k, v in {**QUICK, **OWN_QUICK.get(name, {})}.items() if k in settable(cls)}
    inner = quick("memit", lm) if issubclass(cls, Wrapper) else None
    made = registry.configure(cls, "x", chosen, inner)
    return made.fit(lm, train) if isinstance(made, Learned) else made


def log_likelihood(lm: LM, edit: Edit, patch: Patch | None = None) -> float:
    """The log-probability of the target after the prompt, as the patch's prompt rule writes it."""
    text = patch.prompt(edit.text) if patch and patch.prompt else edit.text
    prompt, target = lm.encode(text), lm.continuation(text, edit.continuation)
    return float(score(lm, [prompt + target], [len(prompt)])[0])


def score(lm: LM, rows: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
    """The log-probability of each row from a position on, right-padded."""
    batch = lm.batch(rows)
    with torch.no_grad():
        log_p = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits.double().log_softmax(-1)
    picked = log_p[:, :-1].gather(2, batch.ids[:, 1:, None])[..., 0] * batch.mask[:, 1:]
    return torch.stack([row[start - 1 :].sum() for row, start in zip(picked, starts, strict=True)])


def weights(lm: LM) -> dict[str, str]:
    return lm.hashes(name for name, _ in lm.model.named_parameters())


def behaviour(lm: LM, patch: Patch, edits: Sequence[Edit]) -> Tensor:
    """The logits after each edit's prompt and target, under the patch: what all its seams do."""
    texts = [f"{e.text}{e.continuation}" for e in edits]
    rows = lm.batch([lm.encode(patch.prompt(t) if patch.prompt else t) for t in texts])
    with patched(lm, patch), torch.no_grad():
        logits: Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
    return torch.where(rows.mask[..., None].bool(), logits, 0.0)


@pytest.fixture(scope="session")
def train() -> list[Example]:
    """What learners learn from: other people, the same relations."""
    cases = [
        ("p", "{} was born in", "Rosa Delgado", "Paris", "Oslo", "Everybody knows Rosa Delgado was born in"),
        ("q", "The home of {} is", "Jonas Wick", "Vienna", "Rome", "Jonas Wick lives in"),
        ("r", "{} was born in", "Greta Holm", "Athens", "Lisbon", "Oskar Thorne and Greta Holm were born in"),
        ("s", "The home of {} is", "Iris Calder", "Dublin", "Prague", "Everybody knows that Iris Calder lives in"),
    ]
    made = []
    for name, prompt, subject, new, old, other in cases:
        edit = Edit(name, prompt, subject, new, old)
        probes = [
            Probe(name, "rewrite", edit.text, new, old),
            Probe(name, "paraphrase", other, new, old),
            Probe(name, "neighborhood", f"{cases[0][2]} has never seen", new, old),
        ]
        made.append(Example(edit, tuple(probes)))
    return made


@pytest.fixture(scope="session", autouse=True)
def companion(checkpoint: Callable[..., Path]) -> None:
    """A tiny Backpack beside every model."""
    OWN_QUICK["companion"]["model"] = str(checkpoint("backpack"))


Edited = Callable[[str, str], tuple[LM, Editor, Patch, bool]]


@pytest.fixture(scope="module")
def edited(taught: Callable[[str], LM], edits: list[Edit], train: list[Example]) -> Edited:
    """A model, an editor, its patch for all edits, and whether the model was left as it was; made once for each."""
    made: dict[tuple[str, str], tuple[LM, Editor, Patch, bool]] = {}

    def get(name: str, family: str) -> tuple[LM, Editor, Patch, bool]:
        if (name, family) not in made:
            lm = taught(family)
            before = weights(lm)
            method = quick(name, lm, train)
            patch = method.finish(lm, method.edit(lm, edits))
            made[name, family] = lm, method, patch, weights(lm) == before
        return made[name, family]

    return get


def keeping(promise: str, *, changing: bool = False, families: Sequence[str] = FAMILIES) -> Any:
    """Every editor that makes a promise, on every family; one that is made for a single family, on that."""
    names = [n for n in registry.names() if promises.kept(registry.find(n), promise) and not (changing and n == "none")]
    weighed = [n for n in names if n in ON_BACKPACK - ({"memit"} if promise == "target" else set())]
    bound = [(n, home(n, "")) for n in names if home(n, "")]
    free = [(n, f) for f in families for n in names if not home(n, "")]
    pairs = [*free, *bound, *((n, "backpack") for n in weighed)]
    return pytest.mark.parametrize(("name", "family"), pairs)


def one_family(promise: str) -> Any:
    """Every editor that makes a promise and changes something."""
    return pytest.mark.parametrize(
        "name", [n for n in registry.names() if n != "none" and promises.kept(registry.find(n), promise)]
    )


def test_the_matrix_is_not_empty():
    assert set(registry.names()) >= FIRST


@pytest.mark.parametrize("name", registry.names())
def test_exceptions_are_promises_with_a_reason(name):
    found = registry.find(name).exceptions
    assert set(found) <= set(promises.PROMISES)
    assert all(len(reason.split()) > 3 for reason in found.values())


@keeping("target", changing=True)
def test_raises_the_targets_probability(edited, edits, name, family):
    lm, method, patch, _ = edited(name, family)
    # A method that edits one fact at a time does not promise that the next one leaves it.
    each = [patch] * len(edits) if method.root.batch else method.edit_each(lm, edits)
    for edit, held_patch in zip(edits, each, strict=True):
        before = log_likelihood(lm, edit)
        with patched(lm, held_patch):
            assert log_likelihood(lm, edit, held_patch) > before + 0.5


@keeping("unchanged")
def test_edit_leaves_the_model_bitwise_unchanged(edited, name, family):
    assert edited(name, family)[3]


@keeping("restored")
def test_restores_bitwise_also_after_an_exception(edited, name, family):
    lm, _, patch, _ = edited(name, family)
    before = weights(lm)
    with patched(lm, patch):
        assert (weights(lm) != before) == bool(patch.weights)
    assert weights(lm) == before
    with pytest.raises(ZeroDivisionError), patched(lm, patch):
        raise ZeroDivisionError
    assert weights(lm) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


@keeping("saved")
def test_survives_save_and_load(edited, edits, tmp_path: Path, name, family):
    lm, method, patch, _ = edited(name, family)
    patch_file.save(patch, lm, tmp_path / "patch.safetensors", method.root.name)
    again = patch_file.load(tmp_path / "patch.safetensors", lm)
    assert torch.equal(behaviour(lm, patch, edits), behaviour(lm, again, edits))
    if name != "none":
        assert not torch.equal(behaviour(lm, patch, edits), behaviour(lm, Patch(prompt=patch.prompt), edits)) or (
            method.root.seams == {"prompt"}
        )


@keeping("generation")
def test_generation_and_log_likelihood_agree(edited, edits, name, family):
    """Greedy generation, cached and uncached, writes tokens that scoring finds to be the most probable."""
    lm, _, patch, _ = edited(name, family)
    prompts = [lm.encode(patch.prompt(e.text) if patch.prompt else e.text) for e in edits]
    with patched(lm, patch), torch.no_grad():
        for prompt in prompts:
            row = torch.tensor([prompt])
            options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
            cached, uncached = (
                lm.model.generate(row, attention_mask=torch.ones_like(row), use_cache=use, **options)[0]
                for use in (True, False)
            )
            assert torch.equal(cached, uncached)
            logits = lm.model(input_ids=cached[None], attention_mask=torch.ones_like(cached[None])).logits[0]
            chosen = logits[len(prompt) - 1 : -1].gather(1, cached[len(prompt) :, None])[:, 0]
            best = logits[len(prompt) - 1 : -1].clone()
            best[:, 0] = -torch.inf  # the end of text, which generation was told not to write
            assert torch.allclose(chosen, best.amax(1), atol=1e-4)


@keeping("padding")
def test_padding_side_does_not_matter(edited, edits, name, family):
    lm, _, patch, _ = edited(name, family)
    rows = [lm.encode(e.text) for e in edits]
    width = max(map(len, rows)) + 3
    left = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    # Positions are given, as generation gives them: not every family counts them from the mask.
    positions = {} if family == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    right = lm.batch(rows)
    with patched(lm, patch), torch.no_grad():
        a = lm.model(input_ids=left, attention_mask=mask, **positions).logits[:, -1]
        full = lm.model(input_ids=right.ids, attention_mask=right.mask).logits
    b = torch.stack([full[i, len(r) - 1] for i, r in enumerate(rows)])
    assert torch.allclose(a, b, atol=2e-4, rtol=1e-3)


@one_family("seeded")
def test_seeded_twice_is_the_same(fresh, edits, train, name):
    def once() -> Tensor:
        lm = fresh(home(name, "gpt2"))
        return behaviour(lm, quick(name, lm, train).edit(lm, edits), edits)

    assert torch.equal(once(), once())


@one_family("models")
def test_two_models_in_one_process_do_not_mix(fresh, edits, train, name):
    """What an editor makes of one model does not depend on what it made of another (pitfalls 4.2, defect 3)."""

    def once(seed: int) -> Tensor:
        lm = fresh(home(name, "llama"), seed)
        return behaviour(lm, quick(name, lm, train).edit(lm, edits), edits)

    alone = once(1)
    once(2)
    assert torch.equal(alone, once(1))


@keeping("isolated", changing=True, families=["gpt2", "llama", "opt"])
def test_side_by_side_is_one_by_one(tiny, edits, train, name, family):
    lm = tiny(family)
    method = quick(name, lm, train)
    plain = behaviour(lm, Patch(), edits)
    for edit, patch in zip(edits, method.edit_each(lm, edits), strict=True):
        alone = behaviour(lm, method.edit(lm, [edit]), edits)
        together = behaviour(lm, patch, edits)
        assert together.shape == alone.shape
        change = float((alone - plain).norm()) if alone.shape == plain.shape else float(alone.norm())
        assert float((together - alone).norm()) <= 5e-3 * change


@one_family("isolated")
def test_isolated_edits_leave_no_trace_in_each_other(fresh, edits, train, name):
    """Edit A, let it go, edit B: the same as B alone (pitfalls 4.2; state lives in what an editor returns)."""

    def second(first: bool) -> Tensor:
        lm = fresh(home(name, "gpt2"))
        method = quick(name, lm, train)
        if first:
            method.edit(lm, edits[:1])
        return behaviour(lm, method.edit(lm, edits[1:2]), edits)

    assert torch.equal(second(True), second(False))


@one_family("sequential")
def test_a_second_operation_stands_on_the_first(taught, edits, train, name):
    lm = taught(home(name, "gpt2"))
    method = quick(name, lm, train)
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        before = log_likelihood(lm, edits[1], first)
        second = method.edit(lm, edits[1:2], first.memory)
    total = method.finish(lm, first + second)
    with patched(lm, total):
        after = log_likelihood(lm, edits[1], total)
    assert after > before or not promises.kept(type(method.root), "target") or isinstance(method, Wrapper)
    assert not torch.equal(behaviour(lm, total, edits), behaviour(lm, first, edits))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rome", "r_rome", "memit", "pmet", "emmet", "alphaedit"])
def test_rows_of_one_pass_each_carry_their_patch(tiny, edits, name, family):
    lm = tiny(family)
    patches = quick(name, lm).edit_each(lm, edits)
    assert all(shareable(patch) for patch in patches)
    rows = lm.batch([lm.encode(f"{e.text} {e.target}") for e in edits])
    with torch.no_grad():
        plain = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
        with patched_rows(lm, patches) as carrier:
            carrier.index = torch.tensor([1, 0, -1])
            together = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
        for row, which in ((0, 1), (1, 0)):
            with patched(lm, patches[which]):
                alone = lm.model(input_ids=rows.ids[row : row + 1], attention_mask=rows.mask[row : row + 1]).logits[0]
            real = rows.mask[row].bool()
            assert torch.allclose(together[row][real], alone[real], atol=1e-3, rtol=1e-3)
            assert not torch.allclose(together[row][real], plain[row][real], atol=1e-3)
    assert torch.allclose(together[2][rows.mask[2].bool()], plain[2][rows.mask[2].bool()], atol=1e-4)


@pytest.mark.parametrize("name", ["rome", "r_rome", "memit", "pmet", "emmet", "alphaedit"])
def test_memory_keeps_what_was_taken_from_the_unedited_model(tiny, edits, name):
    """Templates and moments of a second operation are those of the unedited model, not of the edited one."""
    lm = tiny("gpt2")
    method = quick(name, lm)
    first = method.edit(lm, edits[:1])
    with patched(lm, first):
        second = method.edit(lm, edits[1:2], first.memory)
    assert second.memory.contexts == first.memory.contexts
    assert {k: v.key for k, v in second.memory.moments.items()} == {k: v.key for k, v in first.memory.moments.items()}
    assert not torch.equal(*(next(iter(p.weights.values())).dense() for p in (first, second)))


@pytest.mark.parametrize("name", registry.names())
def test_no_edits_change_nothing(tiny, train, name):
    lm = tiny(home(name, "gpt2"))
    method = quick(name, lm, train)
    assert method.edit(lm, []).empty
    assert method.edit_each(lm, []) == []


def test_an_editor_of_one_family_says_so_on_another(tiny, edits):
    for name in [n for n in registry.names() if home(n, "")]:
        with pytest.raises(ModelError, match=f"^{name} edits {home(name, '')} models, and tiny-gpt2 is a gpt2; give"):
            quick(name, tiny("gpt2")).edit(tiny("gpt2"), edits)
