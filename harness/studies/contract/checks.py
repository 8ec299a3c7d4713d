"""The promises of :mod:`harness.editing.promises`, each as a check of one editor on one model.

A check is a function of a :class:`Candidate` that raises :class:`BrokenPromiseError` with what was seen; its name is
the name of the promise. The tests run the same functions on tiny models of many families, so that what an author is
told on their machine is what this project's own editors are held to.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from harness.editing import patch_file
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Wrapper
from harness.editing.made import finished_patch, made, made_each
from harness.editing.promises import keeps_promise
from harness.errors import UsageError
from harness.models.guard import Guard
from harness.models.lm import LM
from harness.patches.delta import double
from harness.patches.patch import Patch, patched

__all__ = [
    "CHECKS",
    "BrokenPromiseError",
    "Candidate",
    "behaviour",
    "cache",
    "generation",
    "isolated",
    "log_likelihood",
    "models",
    "padding",
    "restored",
    "saved",
    "seeded",
    "sequential",
    "target",
    "unchanged",
]

_LIKELIER = 0.5  # nats by which every target must gain: far above rounding, far below what any method reaches
_ATOL, _RTOL = 2e-4, 1e-3  # of logits from two orders of the same sums in float32
_SIDE_BY_SIDE = 5e-3  # of the change: batched kernels add in another order, and an optimisation carries that on


class BrokenPromiseError(Exception):
    """A promise that an editor did not keep; the message says what was seen."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An editor to be checked, and what it is checked on.

    Attributes:
        build: makes the configured editor for a model, fitted where it learns.
        lm: the model.
        edits: three edits or more, of different subjects.
        again: gives the same model anew, for what one process must not mix; by default a copy.
        other: gives another model of the same shape; by default a copy with other weights.
    """

    build: Callable[[LM], Editor]
    lm: LM
    edits: Sequence[Edit]
    again: Callable[[], LM] | None = None
    other: Callable[[], LM] | None = None

    @cached_property
    def method(self) -> Editor:
        """The editor of the model."""
        return self.build(self.lm)

    @cached_property
    def guard(self) -> Guard:
        """The model before anything was edited."""
        return Guard.of(self.lm)

    @cached_property
    def patch(self) -> Patch:
        """The finished change for all edits in one operation."""
        assert self.guard, "taken before the editor touches the model"
        return finished_patch(self.method, self.lm, made(self.method, self.lm, self.edits))

    @property
    def changes_nothing(self) -> bool:
        """Whether the editor is the one that leaves the model alone, and says so."""
        return self.patch.empty and not keeps_promise(type(self.method.root), "target")

    def same_model(self) -> LM:
        """The model anew."""
        return self.again() if self.again else copy.deepcopy(self.lm)

    def other_model(self) -> LM:
        """Another model of the same shape."""
        return self.other() if self.other else _disturbed(copy.deepcopy(self.lm))


def _disturbed(lm: LM) -> LM:
    """The model with a little noise on every matrix."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(0.02 * parameter.std() * noise if parameter.numel() > 1 else 0.0)
    return lm


# --- what is looked at ------------------------------------------------------------------------------------------------


def log_likelihood(lm: LM, edit: Edit, patch: Patch | None = None) -> float:
    """The log-probability in nats of an edit's target after its prompt, as the patch's prompt rule writes it.

    Args:
        lm: the model, with the patch in place where there is one.
        edit: the edit.
        patch: its prompt rule is applied; None for the bare prompt.
    """
    text = patch.prompt(edit.text) if patch and patch.prompt else edit.text
    prompt, target = lm.encode(text), lm.continuation(text, edit.continuation)
    batch = lm.batch([prompt + target])
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    log_p = double(logits).log_softmax(-1)
    picked = log_p[0, :-1].gather(1, batch.ids[0, 1:, None].to(log_p.device))[:, 0]
    return float(picked[len(prompt) - 1 :].sum())


def behaviour(lm: LM, patch: Patch, edits: Sequence[Edit]) -> Tensor:
    """The logits ``[edits, tokens, vocabulary]`` over each edit's prompt and target: what all seams of a patch do.

    Args:
        lm: the unpatched model.
        patch: the patch.
        edits: whose texts are read.
    """
    texts = [f"{e.text}{e.continuation}" for e in edits]
    rows = lm.batch([lm.encode(patch.prompt(t) if patch.prompt else t) for t in texts])
    with patched(lm, patch), torch.no_grad():
        logits: Tensor = lm.model(input_ids=rows.ids, attention_mask=rows.mask).logits
    return torch.where(rows.mask[..., None].bool(), logits, 0.0)


def _require(holds: bool, seen: str) -> None:
    if not holds:
        raise BrokenPromiseError(seen)


def _require_unchanged(guard: Guard, when: str) -> None:
    moved = guard.differing()
    _require(not moved, f"{when} {', '.join(moved[:3])}{' and others' if len(moved) > 3 else ''} is not what it was")


# --- the promises -----------------------------------------------------------------------------------------------------


def target(candidate: Candidate) -> None:
    """Every target is likelier than before by half a nat at least."""
    lm, method = candidate.lm, candidate.method
    # A method that edits one fact at a time does not promise that the next one leaves it.
    one_at_a_time = not method.root.batch
    each = made_each(method, lm, candidate.edits) if one_at_a_time else [candidate.patch] * len(candidate.edits)
    for edit, patch in zip(candidate.edits, each, strict=True):
        before = log_likelihood(lm, edit)
        with patched(lm, patch):
            after = log_likelihood(lm, edit, patch)
        _require(
            after > before + _LIKELIER,
            f"log-probability of '{edit.target}' after '{edit.text}': {before:.2f} before, {after:.2f} after; "
            f"expected a gain of {_LIKELIER} at least",
        )


def unchanged(candidate: Candidate) -> None:
    """Editing alone leaves the model as it was: weights, buffers, hooks, attributes, modes, settings and tokenizer."""
    assert candidate.guard and candidate.patch is not None
    _require_unchanged(candidate.guard, "after edit()")


def restored(candidate: Candidate) -> None:
    """A patch that is let go leaves no trace, also after an exception, and no hook stays."""
    lm, guard, patch = candidate.lm, candidate.guard, candidate.patch
    with patched(lm, patch):
        touched = lm.fast_hashes() != guard.state
    _require(touched == bool(patch.weights), "the patch changes weights that it does not name, or none that it names")
    _require_unchanged(guard, "after the patch was let go")
    try:
        with patched(lm, patch):
            raise ZeroDivisionError
    except ZeroDivisionError:
        _require_unchanged(guard, "after an exception under the patch")


def seeded(candidate: Candidate) -> None:
    """The same editor built and run twice gives the same change, bit for bit."""
    first, second = (_edited_anew(candidate, candidate.same_model()) for _ in range(2))
    _require(torch.equal(first, second), "two runs with one seed give two changes; draw from the editor's own seed")


def _edited_anew(candidate: Candidate, lm: LM) -> Tensor:
    return behaviour(lm, made(candidate.build(lm), lm, candidate.edits), candidate.edits)


def models(candidate: Candidate) -> None:
    """What the editor makes of one model does not depend on what it made of another."""
    alone = _edited_anew(candidate, candidate.same_model())
    other = candidate.other_model()
    elsewhere = made(candidate.build(other), other, candidate.edits)
    again = _edited_anew(candidate, candidate.same_model())
    _require(torch.equal(alone, again), "after another model was edited, this one gets another change; keep no globals")
    mine = candidate.patch.weights
    # Other weights have other gradients, keys and values: the very same change was kept from the first model.
    same = bool(mine) and all(
        name in elsewhere.weights and torch.equal(delta.dense(), elsewhere.weights[name].dense())
        for name, delta in mine.items()
    )
    _require(not same, "another model gets the very change that this one got; keep no globals")


def saved(candidate: Candidate) -> None:
    """A patch read from its file does what it did."""
    lm, patch, edits = candidate.lm, candidate.patch, candidate.edits
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.safetensors"
        patch_file.save_patch(patch, lm, path, editor=candidate.method.root.name)
        again = patch_file.load_patch(path, lm)
    before, after = behaviour(lm, patch, edits), behaviour(lm, again, edits)
    _require(torch.equal(before, after), "the patch read from its file gives other logits")
    if not candidate.changes_nothing and candidate.method.root.seams != {"prompt"}:
        bare = behaviour(lm, Patch(prompt=patch.prompt), edits)
        _require(not torch.equal(before, bare), "the patch changes nothing")


def generation(candidate: Candidate) -> None:
    """Greedy generation writes tokens that scoring finds to be the most probable."""
    lm = candidate.lm
    with _prompted(candidate) as prompts:
        for prompt in prompts:
            written = _greedy(lm, prompt, cached=True)
            logits = lm.model(input_ids=written[None], attention_mask=torch.ones_like(written[None])).logits[0]
            said = logits[len(prompt) - 1 : -1].gather(1, written[len(prompt) :, None])[:, 0]
            best = logits[len(prompt) - 1 : -1].clone()
            best[:, sorted(lm.end_tokens)] = -torch.inf  # generation was told not to end
            gap = float((best.amax(1) - said).max())
            _require(gap <= 1e-4, f"generation writes a token whose logit is {gap:.2g} below the greatest")


def cache(candidate: Candidate) -> None:
    """Generation with and without a key-value cache writes the same."""
    with _prompted(candidate) as prompts:
        for prompt in prompts:
            cached, plain = (_greedy(candidate.lm, prompt, cached=use) for use in (True, False))
            said = (
                candidate.lm.tokenizer.decode(cached[len(prompt) :]),
                candidate.lm.tokenizer.decode(plain[len(prompt) :]),
            )
            _require(torch.equal(cached, plain), f"with a cache it writes '{said[0]}', without one '{said[1]}'")


@contextmanager
def _prompted(candidate: Candidate) -> Iterator[list[list[int]]]:
    """The tokens of the edits' prompts, while the patch is held."""
    lm, patch = candidate.lm, candidate.patch
    with patched(lm, patch), torch.no_grad():
        yield [lm.encode(patch.prompt(e.text) if patch.prompt else e.text) for e in candidate.edits]


def _greedy(lm: LM, prompt: Sequence[int], cached: bool, length: int = 5) -> Tensor:
    row = torch.tensor([list(prompt)], device=lm.device)
    options: dict[str, Any] = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
    options |= {"pad_token_id": 0, "repetition_penalty": 1.0, "use_cache": cached}
    written: Tensor = cast("Any", lm.model).generate(row, attention_mask=torch.ones_like(row), **options)[0]
    return written


def padding(candidate: Candidate) -> None:
    """Logits after a prompt are the same with the padding on its left, as in generation, and on its right."""
    lm = candidate.lm
    rows = [lm.encode(edit.text) for edit in candidate.edits]
    width = max(map(len, rows)) + 3
    left = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    right = lm.batch(rows)
    with patched(lm, candidate.patch), torch.no_grad():
        # generate() gives each family its positions in its own way.
        options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
        options |= {"output_logits": True, "return_dict_in_generate": True}
        a = cast("Any", lm.model).generate(left, attention_mask=mask, **options).logits[0]
        whole = lm.model(input_ids=right.ids, attention_mask=right.mask).logits
    b = torch.stack([whole[i, len(row) - 1] for i, row in enumerate(rows)])
    gap = float((a - b).abs().max())
    _require(torch.allclose(a, b, atol=_ATOL, rtol=_RTOL), f"logits differ by {gap:.2g} between left and right padding")


def isolated(candidate: Candidate) -> None:
    """Edits made side by side are those made one by one, and one leaves no trace in the next."""
    lm, method, edits = candidate.lm, candidate.method, candidate.edits
    plain = behaviour(lm, Patch(), edits)
    for edit, patch in zip(edits, made_each(method, lm, edits), strict=True):
        alone, together = (behaviour(lm, one, edits) for one in (made(method, lm, [edit]), patch))
        _require(alone.shape == together.shape, f"edit {edit.id} alone and beside others gives two prompts")
        change = float((alone - plain).norm()) if alone.shape == plain.shape else float(alone.norm())
        gap = float((together - alone).norm()) / max(change, 1e-12)
        _require(gap <= _SIDE_BY_SIDE, f"edit {edit.id} beside others differs from the edit alone by {gap:.1%}")
    _require(method.edit_each(lm, []) == [], "edit_each() of no edits gives patches")
    first, second = (_second_edit(candidate, after_first=after) for after in (True, False))
    _require(torch.equal(first, second), "an edit depends on the one that was made and let go before it")


def _second_edit(candidate: Candidate, after_first: bool) -> Tensor:
    lm = candidate.same_model()
    method = candidate.build(lm)
    if after_first:
        made(method, lm, candidate.edits[:1])
    return behaviour(lm, made(method, lm, candidate.edits[1:2]), candidate.edits)


def sequential(candidate: Candidate) -> None:
    """A second operation on top of the first changes something, no edits change nothing, and a memory is one's own."""
    lm, method, edits = candidate.lm, candidate.method, candidate.edits
    first = made(method, lm, edits[:1])
    with patched(lm, first):
        second = made(method, lm, edits[1:2], memory=first.memory)
        nothing = made(method, lm, [], memory=first.memory)
        before = log_likelihood(lm, edits[1], first)
    _require(nothing.empty, "an operation without edits returns a change")
    own = first.memory is None or _refuses_foreign(candidate)
    _require(own, "an operation goes on with the memory of another editor")
    if candidate.changes_nothing:
        return
    total = finished_patch(method, lm, first + second)
    same = torch.equal(behaviour(lm, first, edits), behaviour(lm, total, edits))
    _require(not same, "the second operation changes nothing")
    # A wrapper may take from the second edit more than it gained.
    if keeps_promise(type(method.root), "target") and not isinstance(method, Wrapper):
        with patched(lm, total):
            after = log_likelihood(lm, edits[1], total)
        seen = f"the second operation takes its target from {before:.2f} to {after:.2f}; expected a gain"
        _require(after > before, seen)


class _Foreign:
    """What no editor remembers."""


def _refuses_foreign(candidate: Candidate) -> bool:
    try:
        candidate.method.edit(candidate.lm, candidate.edits[:1], _Foreign())
    except UsageError:
        return True
    return False


CHECKS: Mapping[str, Callable[[Candidate], None]] = {
    check.__name__: check
    for check in (
        target,
        unchanged,
        restored,
        seeded,
        saved,
        generation,
        cache,
        padding,
        models,
        isolated,
        sequential,
    )
}
