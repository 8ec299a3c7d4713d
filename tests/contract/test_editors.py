"""One contract, every method a row: what each editor promises, on each family of models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.editing import promises, registry
from harness.editing.edit import Edit, Example, Probe
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.hyperparameters import settable
from harness.editing.schedule import Begun
from harness.errors import ModelError
from harness.models.lm import LM
from harness.patches.patch import patched, patched_rows, shareable
from harness.runs.resume import StateFile, packages_of
from harness.studies.contract import checks
from harness.studies.contract.checks import Candidate

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from tiny_models import save_autoencoder

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
# Contexts that are sampled, twenty of them, are most of what an edit of a model this small takes: GPT-2 has them, and
# the other families these.
FEW_CONTEXTS = ("{}", "The story says that {}", "Yesterday in town. {}")
# What single editors need besides, on models this small.
OWN_QUICK: dict[str, dict[str, object]] = {
    "grace": {"n_iter": 30, "edit_lr": 0.5},
    "melo": {"n_iter": 20, "edit_lr": 1e-2, "eps": 1e-3, "scale": 20.0},
    "defer": {"n_iter": 20, "edit_lr": 1e-2},
    "wise": {
        "n_iter": 20,
        "alpha": 0.5,
        "beta": 2.0,
        "gamma": 1.0,
        "texts": 4,
        "norm_constraint": 1.0,
        "act_ratio": 0.5,
    },
    "memoir": {"n_iter": 20, "texts": 4},
    "unke": {"texts": 2},
    "anyedit": {"window": 2, "lam": 1e-2},
    "ike": {"k": 2, "room": 8},
    "rag": {"room": 8},
    "serac": {"steps": 20, "room": 8, "threshold": 0.0},  # random states tell no scope
    "prompt": {"room": 8},
    "scr": {"room": 8, "tokens": 4, "ask": "{facts}\n{context}\n", "pick": "released", "k": 1},
    "mello": {"room": 4, "tokens": 2, "shown": 0, "hops": 1},
    "alphaedit": {"nullspace_threshold": 0.4, "l2": 1e-2},
    "evoedit": {"nullspace_threshold": 0.4, "l2": 1e-2},
    "blue": {"nullspace_threshold": 0.4, "l2": 1e-2},
    "betaedit": {"nullspace_threshold": 0.4, "lambda1": 0.01, "lambda2": 1e-2},
    "encore": {"lam_n": 1e-2},
    "simie": {"lam": 1e-6},
    "pmet": {"kl_factor": 0.0625, "lam": 1e-2},
    "mend": {"rank": 8, "accumulate": 2, "validate_every": 8, "lr": 1e-4, "alpha": 1e-2, "alpha_lr": 1e-4},
    "malmen": {"rank": 4, "steps": 2, "together": 4, "validate_every": 2, "lr": 3e-3, "meta_lr": 1e-4},
    "rledit": {"rank": 4, "depth": 2, "steps": 2, "together": 2, "validate_every": 2, "lr": 3e-3, "meta_lr": 1e-4},
    "companion": {"lr": 0.5, "kl": 0.0, "epochs": 8},
    "full": {"lr": 3e-3},
    "reft": {"steps": 30, "lr": 2e-2, "rank": 8},
    "steer": {"steps": 2, "factors": (1.0, 2.0)},
    "sae": {},
    "crispedit": {"energy": 0.5, "cov_tokens": 500},
    "ft_kl": {"kl": 1.0, "kl_tokens": 16},
    "senses": {"lr": 0.5, "kl": 1e-3, "epochs": 10, "accumulate": 1, "chunks": 20, "chunk_tokens": 32},
    "prune": {"reduce": "log1_5"},  # three edits exceed the bound of a matrix this small fourfold
}
FIRST = {"none", "ft", "ft_l", "rome", "r_rome", "memit"}


def home(name: str, family: str) -> str:
    """The family on which an editor is tried: the given one, or the only one that it is made for."""
    return registry.find(name).family or family


def told(name: str, edits: list[Edit]) -> list[Edit]:
    """The edits, with an old answer each where the editor needs one."""
    if not registry.find(name).needs_old:
        return edits
    return [replace(edit, target_old=old) for edit, old in zip(edits, ("Lisbon", "Vienna", "Athens"), strict=True)]


def quick(name: str, lm: LM, train: Sequence[Example] = ()) -> Editor:
    """An editor with quick settings, where it has those fields; wrappers stand around MEMIT, learners are fitted."""
    cls = registry.find(name)
    few = {} if lm.model.config.model_type == "gpt2" else {"contexts": FEW_CONTEXTS}
    chosen = {k: v for k, v in {**QUICK, **few, **OWN_QUICK.get(name, {})}.items() if k in settable(cls)}
    inner = quick("memit", lm) if issubclass(cls, Wrapper) else None
    made = registry.configure(cls, "x", chosen, inner)
    return made.fit(lm, train) if isinstance(made, Learned) else made


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


@pytest.fixture(scope="session", autouse=True)
def autoencoder(tiny: Callable[[str], LM], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A random autoencoder of what the second block of every model writes."""
    folder = tmp_path_factory.mktemp("autoencoder")
    save_autoencoder(folder, width=(width := tiny("gpt2").arch.width), features=4 * width)
    OWN_QUICK["sae"]["path"] = str(folder)


Candidates = Callable[[str, str], Candidate]


@pytest.fixture(scope="module")
def candidate(taught: Callable[[str], LM], edits: list[Edit], train: list[Example]) -> Candidates:
    """An editor on a model that knows some facts, with its patch; made once for each pair."""
    made: dict[tuple[str, str], Candidate] = {}

    def get(name: str, family: str) -> Candidate:
        if (name, family) not in made:
            made[name, family] = Candidate(lambda lm: quick(name, lm, train), taught(family), told(name, edits))
        return made[name, family]

    return get


@pytest.fixture(scope="module")
def untaught(
    tiny: Callable[[str], LM], fresh: Callable[..., LM], edits: list[Edit], train: list[Example]
) -> Candidates:
    """An editor on a random model; what one process must not mix is tried on models made anew."""

    def get(name: str, family: str) -> Candidate:
        again, other = (lambda seed=seed: fresh(family, seed) for seed in (0, 1))
        return Candidate(lambda lm: quick(name, lm, train), tiny(family), told(name, edits), again, other)

    return get


def keeping(promise: str, *, changing: bool = False, families: Sequence[str] = FAMILIES) -> Any:
    """Every editor that makes a promise, on every family; one that is made for a single family, on that."""
    names = [
        n
        for n in registry.editor_names()
        if promises.keeps_promise(registry.find(n), promise) and not (changing and n == "none")
    ]
    weighed = [n for n in names if n in ON_BACKPACK - ({"memit"} if promise == "target" else set())]
    bound = [(n, home(n, "")) for n in names if home(n, "")]
    free = [(n, f) for f in families for n in names if not home(n, "")]
    pairs = [*free, *bound, *((n, "backpack") for n in weighed)]
    return pytest.mark.parametrize(("name", "family"), pairs)


def one_family(promise: str) -> Any:
    """Every editor that makes a promise and changes something."""
    return pytest.mark.parametrize(
        "name",
        [n for n in registry.editor_names() if n != "none" and promises.keeps_promise(registry.find(n), promise)],
    )


def test_the_matrix_is_not_empty():
    assert set(registry.editor_names()) >= FIRST


@pytest.mark.parametrize("name", registry.editor_names())
def test_exceptions_are_promises_with_a_reason(name):
    found = registry.find(name).exceptions
    assert set(found) <= set(promises.PROMISES)
    assert all(len(reason.split()) > 3 for reason in found.values())


@keeping("target", changing=True)
def test_raises_the_targets_probability(candidate, name, family):
    checks.target(candidate(name, family))


@keeping("unchanged")
def test_edit_leaves_the_model_bitwise_unchanged(candidate, name, family):
    checks.unchanged(candidate(name, family))


@keeping("restored")
def test_restores_bitwise_also_after_an_exception(candidate, name, family):
    checks.restored(candidate(name, family))


@keeping("saved")
def test_survives_save_and_load(candidate, name, family):
    checks.saved(candidate(name, family))


@keeping("generation")
def test_generation_and_log_likelihood_agree(candidate, name, family):
    checks.generation(candidate(name, family))


@keeping("cache")
def test_cached_and_uncached_generation_agree(candidate, name, family):
    checks.cache(candidate(name, family))


@keeping("padding")
def test_padding_side_does_not_matter(candidate, name, family):
    checks.padding(candidate(name, family))


@one_family("seeded")
def test_seeded_twice_is_the_same(untaught, name):
    checks.seeded(untaught(name, home(name, "gpt2")))


@one_family("models")
def test_two_models_in_one_process_do_not_mix(untaught, name):
    """What an editor makes of one model does not depend on what it made of another (pitfalls 4.2, defect 3)."""
    checks.models(untaught(name, home(name, "llama")))


@keeping("isolated", changing=True, families=["gpt2", "llama", "opt"])
def test_side_by_side_is_one_by_one_and_leaves_no_trace(untaught, name, family):
    """Edit A, let it go, edit B: the same as B alone (pitfalls 4.2; state lives in what an editor returns)."""
    checks.isolated(untaught(name, family))


@one_family("sequential")
def test_a_second_operation_stands_on_the_first(candidate, name):
    checks.sequential(candidate(name, home(name, "gpt2")))


@one_family("sequential")
def test_a_run_that_was_killed_goes_on_bitwise(candidate, name, tmp_path):
    """What is kept of the first operation is all that the second needs."""
    tried = candidate(name, home(name, "gpt2"))
    first = Begun(1, tried.method.edit(tried.lm, tried.edits[:1]), range(1))
    packages = packages_of(tried.method)
    state = StateFile(tmp_path / "x.state", "key", packages=packages, lm=tried.lm, every=0)
    state.keep(first)
    again = state.read()
    assert again is not None
    seconds = []
    for begun in (first, again):
        with patched(tried.lm, begun.total):
            second = tried.method.edit(tried.lm, tried.edits[1:2], begun.total.memory)
        seconds.append(checks.behaviour(tried.lm, begun.total + second, tried.edits))
    assert torch.equal(*seconds)


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


@pytest.mark.parametrize("name", registry.editor_names())
def test_no_edits_change_nothing(tiny, train, name):
    lm = tiny(home(name, "gpt2"))
    method = quick(name, lm, train)
    assert method.edit(lm, []).empty
    assert method.edit_each(lm, []) == []


def test_an_editor_of_one_family_says_so_on_another(tiny, edits):
    for name in [n for n in registry.editor_names() if home(n, "")]:
        with pytest.raises(ModelError, match=f"^{name} edits {home(name, '')} models, and tiny-gpt2 is a gpt2; give"):
            quick(name, tiny("gpt2")).edit(tiny("gpt2"), edits)
