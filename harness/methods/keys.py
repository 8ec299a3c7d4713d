"""Keys of the facts to be edited, and how a batch of edits is spread over layers.

A key ``k`` is the input of a layer's down-projection at one token of the prompt, by default the subject's last.
Sources: Meng et al. 2022 (ROME), section 3.1, equation 3; Meng et al. 2023 (MEMIT), section 4.3, equations 14 to 20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.editor import own_memory
from harness.errors import DataError, NumericalError, UsageError
from harness.methods import context_templates
from harness.methods.context_templates import TemplateKind
from harness.methods.second_moments import Moment, moments
from harness.models.activations import (
    Activations,
    TokenRow,
    at_least_float32,
    capture_activations,
    read_activations,
    row_portions,
)
from harness.models.lm import LM
from harness.patches.delta import Delta, LowRank
from harness.patches.patch import Patch, patched, patched_rows

__all__ = [
    "AdjointSolver",
    "FactToken",
    "Solver",
    "Unedited",
    "find_fact_token",
    "layer_at_depth",
    "prompt_rows",
    "rank_one_changes",
    "read_every_token",
    "read_hidden_states",
    "read_keys",
    "require_layers",
    "spread_residuals",
    "take_unedited",
    "template_notes",
]

_AT_ONCE = 256  # keys that are solved for at once: enough that reading the factor costs little, 29 MB at 14,336

FactToken = Literal[
    "subject_last", "subject_first", "subject_first_after_last", "last", "subject_first_released", "last_released"
]
"""Which token of the prompt is edited.

As ROME's code reads them: ``subject_first_released`` is the token after those of the text in front of the subject and
its space (a token of the space alone, where the tokenizer has one), ``last_released`` the last column of padded rows.
"""


Solver = Callable[[int, Float[Tensor, "n f"], Float[Tensor, "n d"]], Delta]
"""``(layer, K [n, f], R [n, d]) -> dW [d, f]``: the change of one layer."""


@dataclass(frozen=True, eq=False)
class AdjointSolver:
    """A solver (:data:`Solver`) of changes of low rank, ``dW = R A^T``, that takes many independent batches at once.

    What costs is a solve with a factor of ``f x f`` numbers, which are read from memory whether it is for one key or
    for many: all batches share it, a portion of keys at a time, so that what is in float64 does not grow with them.

    Attributes:
        adjoint: ``(layer, K^T [n, f], sizes) -> A^T [n_b, f]`` of each batch ``b``, whose keys stand one batch after
            the other.
    """

    adjoint: Callable[[int, Float[Tensor, "n f"], Sequence[int]], Sequence[Float64[Tensor, "_ f"]]]

    def __call__(self, layer: int, key: Float[Tensor, "n f"], residual: Float[Tensor, "n d"]) -> LowRank:
        """The change of one batch."""
        (found,) = self.adjoint(layer, key, [len(key)])
        return LowRank(residual.T, found.to(key))

    def side_by_side(
        self, layer: int, key: Float[Tensor, "n f"], residual: Float[Tensor, "n d"], *, sizes: Sequence[int]
    ) -> list[Delta]:
        """The change of each batch, to rounding what it is alone.

        Args:
            layer: the layer.
            key: ``K^T``, batch after batch.
            residual: ``R^T``, in the same order.
            sizes: the edits of each batch.
        """
        if len(sizes) == 1:
            return [self(layer, key, residual)]
        changes: list[Delta] = []
        begin = 0
        for portion in _portions(sizes):
            end = begin + sum(portion)
            found = self.adjoint(layer, key[begin:end], portion)
            # Copies: a change that outlives the others holds no more than its own part.
            lefts = [left.clone().T for left in torch.split(residual[begin:end], portion)]
            rights = [right.to(key, copy=True) for right in found]
            changes += map(LowRank, lefts, rights)
            begin = end
        return changes


def _portions(sizes: Sequence[int]) -> list[list[int]]:
    """Successive batches whose keys are solved for at once, given and returned as numbers of keys."""
    portions: list[list[int]] = []
    for size in sizes:
        if portions and sum(portions[-1]) + size <= _AT_ONCE:
            portions[-1].append(size)
        else:
            portions.append([size])
    return portions


@dataclass(frozen=True, eq=False)
class Unedited:
    """What a method takes from the unedited model, once; it is the memory that later edits are given.

    Attributes:
        contexts: the context templates.
        moments: layer -> second moment of the keys.
    """

    contexts: tuple[str, ...]
    moments: Mapping[int, Moment]


def take_unedited(
    lm: LM,
    memory: object,
    *,
    kind: TemplateKind,
    layers: Sequence[int],
    seed: int,
    tokens: int,
    given: tuple[str, ...] | None = None,
) -> Unedited:
    """What an earlier edit took from the unedited model, or now for the first time.

    Args:
        lm: the model; unedited if ``memory`` is None.
        memory: an :class:`Unedited`, or None.
        kind: whose context templates.
        layers: where second moments are needed.
        seed: the seed of the templates.
        tokens: the tokens of text for second moments.
        given: templates to use instead of sampled ones.

    Raises:
        UsageError: the memory is another editor's, or a template cannot be used.
    """
    before = own_memory(memory, Unedited)
    if given is not None:
        context_templates.require_templates(given)
    templates = before.contexts if before else given or context_templates.sample_templates(lm, kind, seed)
    known = dict(before.moments) if before else {}
    missing = [layer for layer in layers if layer not in known]
    return Unedited(templates, {**known, **(moments(lm, missing, tokens=tokens) if missing else {})})


def template_notes(lm: LM, kind: TemplateKind, *, seed: int, given: tuple[str, ...] | None) -> dict[str, object]:
    """The context templates of an editor on the unedited model, as a record keeps them.

    Args:
        lm: the unedited model.
        kind: whose templates.
        seed: the seed of the templates.
        given: templates to use instead of sampled ones.
    """
    return {"contexts": list(given or context_templates.sample_templates(lm, kind, seed))}


def layer_at_depth(lm: LM, fraction: float) -> int:
    """The layer at a fraction of a model's depth, rounded down."""
    return min(int(fraction * lm.arch.layers), lm.arch.layers - 1)


def require_layers(lm: LM, layers: Sequence[int], *, experts: bool = False) -> tuple[int, ...]:
    """The layers in ascending order.

    Args:
        lm: the model.
        layers: the layers.
        experts: whether experts whose down-projections are one parameter can be written, too.

    Raises:
        ModelError: the model does not have one of them.
    """
    for layer in layers:
        (lm.arch.writer_of if experts else lm.arch.down_of)(layer)
    return tuple(sorted(set(layers)))


def find_fact_token(lm: LM, edit: Edit, *, template: str, fact_token: FactToken) -> tuple[list[int], int]:
    """The tokens of a prompt in its context, and the position of the token to edit.

    Args:
        lm: the model.
        edit: the edit; its prompt fills the template's slot.
        template: a context template.
        fact_token: which token.

    Raises:
        UsageError: the edit has no subject, and the token is one of the subject's.
    """
    text = edit.behind(template)
    ids = lm.encode(text)
    if fact_token in ("last", "last_released"):
        return ids, len(ids) - 1
    if edit.subject is None:
        raise UsageError(
            f"edit {edit.id}: it has no subject, which this editor needs; give rows of prompt, subject and target"
        )
    before = edit.begins_behind(template)
    if fact_token == "subject_first_released":
        return ids, len(lm.encode(text[:before].removesuffix(" ")))
    begin, end = lm.span(text, edit.subject, before)
    if fact_token == "subject_first":
        return ids, begin
    after = fact_token == "subject_first_after_last" and end < len(ids)
    return ids, end if after else end - 1


def prompt_rows(
    lm: LM,
    edit: Edit,
    templates: Sequence[str],
    *,
    fact_token: FactToken,
    suffix: Sequence[int] = (),
    extra: Sequence[TokenRow] = (),
) -> list[TokenRow]:
    """One row of tokens for each context, with the position of the token to edit.

    Args:
        lm: the model.
        edit: the edit.
        templates: context templates.
        fact_token: which token.
        suffix: tokens that follow the prompt.
        extra: rows that are appended as they are.

    Raises:
        DataError: a row is longer than the model's context.
    """
    found = [find_fact_token(lm, edit, template=template, fact_token=fact_token) for template in templates]
    rows = [TokenRow((*ids, *suffix), at) for ids, at in found] + list(extra)
    longest = max(len(row.ids) for row in rows)
    if longest > lm.context:
        raise DataError(
            f"edit {edit.id}: {longest} tokens with its longest context and target, but {lm.name} takes {lm.context}; "
            "shorten the prompt"
        )
    return [TokenRow(row.ids, longest - 1) for row in rows] if fact_token == "last_released" else rows


def read_keys(
    lm: LM,
    edits: Sequence[Edit],
    layer: int,
    *,
    templates: Sequence[str],
    fact_token: FactToken,
    kind: TemplateKind = "rome",
    outputs: bool = False,
) -> tuple[Float[Tensor, "edits f"], Float[Tensor, "edits d"]]:
    """Keys and values of some edits, averaged over context templates.

    Args:
        lm: the model.
        edits: the edits.
        layer: the layer.
        templates: context templates; ``("{}",)`` for the bare prompt alone.
        fact_token: which token.
        kind: how templates are weighted.
        outputs: whether the values are wanted too.

    Returns:
        ``k [edits, f]``, the inputs of the down-projection, and ``y [edits, d]``, its outputs (empty if not wanted).
    """
    rows = [row for edit in edits for row in prompt_rows(lm, edit, templates, fact_token=fact_token)]
    down = lm.arch.writer_of(layer)
    seen = read_activations(lm, rows, inputs=[down], outputs=[down] if outputs else [])
    share = context_templates.template_weights(templates, kind)
    values = seen.outputs[down] if outputs else seen.inputs[down][:, :0]
    return _mean_over_templates(seen.inputs[down], share), _mean_over_templates(values, share)


def read_every_token(
    lm: LM, rows: Sequence[Sequence[int]], modules: Sequence[str], *, budget: int = 8192
) -> dict[str, list[Float[Tensor, "tokens f"]]]:
    """Module name -> what enters it at every token of each row, at least in float32.

    Args:
        lm: the model.
        rows: tokens.
        modules: the names.
        budget: tokens of one forward pass, padding included.
    """
    found: dict[str, dict[int, Tensor]] = {name: {} for name in modules}
    for chunk in row_portions([[len(row)] for row in rows], budget) if modules else ():
        entered = capture_activations(lm, lm.batch([rows[i] for i in chunk]), inputs=modules).inputs
        for name, hidden in entered.items():
            found[name] |= {i: at_least_float32(hidden[k, : len(rows[i])]) for k, i in enumerate(chunk)}
    return {name: [parts[i] for i in range(len(rows))] for name, parts in found.items() if parts}


def _mean_over_templates(
    rows: Float[Tensor, "edits_templates dim"], share: Float[Tensor, "templates"]
) -> Float[Tensor, "edits dim"]:
    """Weighted means of successive groups of rows: ``[edits * templates, dim]`` to ``[edits, dim]``."""
    grouped = rows.reshape(len(rows) // len(share), len(share), rows.shape[1])
    return torch.einsum("etd,t->ed", grouped, share.to(rows))


def rank_one_changes(
    u: Float[Tensor, "edits f"],
    *,
    key: Float[Tensor, "edits f"],
    output: Float[Tensor, "edits d"],
    value: Float[Tensor, "edits d"],
    names: Sequence[str] = ("the edit",),
) -> list[LowRank]:
    """The rank-one changes that map keys to values: ``right = u^T``, ``left = (v* - y) / (k . u)`` (ROME, equation 2).

    Args:
        u: ``[edits, f]``, where in key space to write.
        key: ``[edits, f]``, the key ``k`` that shall give the value.
        output: ``[edits, d]``, what it gives now, ``y``.
        value: ``[edits, d]``, what it shall give, ``v*``.
        names: what each edit is called in an error.

    Raises:
        NumericalError: ``k . u`` is zero or not finite.
    """
    scale = (key * u).sum(1)
    for name, dot in zip(names, scale.tolist(), strict=True):
        if not abs(dot) > torch.finfo(scale.dtype).tiny:
            raise NumericalError(
                f"{name}: the update direction is orthogonal to the key (k.u = {dot}); choose another prompt"
            )
    left = (value.to(output.device) - output) / scale[:, None]
    return [LowRank(left[i, :, None], u[i, None]) for i in range(len(u))]


def spread_residuals(
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    *,
    targets: Float[Tensor, "edits d"],
    layers: Sequence[int],
    templates: Sequence[str],
    fact_token: FactToken,
    solve: Solver,
    site: Literal["block", "mlp"] = "block",
    divisor: Callable[[int], float] = float,
    begun: Sequence[Patch] | None = None,
) -> list[Patch]:
    """Spread the wanted hidden states of independent batches of edits over layers, ascending (MEMIT, algorithm 1).

    At layer ``i`` of ``m``: ``K`` are the keys and ``h`` what leaves the last layer at the site, both on the model that
    carries the batch's changes so far; the residual is ``R = (z - h) / divisor(m - i)``, and ``solve`` makes of both
    the change.

    Args:
        lm: the model.
        groups: batches of edits, each on its own copy of the model.
        targets: ``z [edits, d]``, in the order of the groups.
        layers: the layers, ascending.
        templates: context templates.
        fact_token: which token.
        solve: ``(layer, K [n, f], R [n, d]) -> dW [d, f]``, for all batches at once if it is a :class:`AdjointSolver`.
        site: whether ``z`` and ``h`` leave the whole ``block``, or its down-projection (``mlp``).
        divisor: by what the residual is divided, of the number of layers still to be written.
        begun: what each batch has changed before; by default nothing. What is returned holds it.
    """
    patches = [Patch() for _ in groups] if begun is None else list(begun)
    edits = [edit for group in groups for edit in group]
    owner = [g for g, group in enumerate(groups) for _ in group]
    for i, layer in enumerate(layers):
        place = (lm.arch.block if site == "block" else lm.arch.writer_of)(layers[-1])
        key, hidden = _keys_and_hidden_states(
            lm,
            edits,
            owner=owner,
            patches=patches,
            layer=layer,
            place=place,
            templates=templates,
            fact_token=fact_token,
        )
        residual = (targets.to(hidden.device) - hidden) / divisor(len(layers) - i)
        changes = _solve_each(solve, layer, key, residual.to(key.device), sizes=[len(group) for group in groups])
        written = [Patch(weights={lm.down(layer): change}) for change in changes]
        patches = [patch + added for patch, added in zip(patches, written, strict=True)]
    return patches


def _solve_each(
    solve: Solver, layer: int, key: Float[Tensor, "n f"], residual: Float[Tensor, "n d"], *, sizes: Sequence[int]
) -> list[Delta]:
    """The changes of successive batches: at once where the solver can, else one after the other."""
    if isinstance(solve, AdjointSolver):
        return solve.side_by_side(layer, key, residual, sizes=sizes)
    batches = zip(torch.split(key, list(sizes)), torch.split(residual, list(sizes)), strict=True)
    # A change holds no more than its own part of what all were made from.
    return [solve(layer, one.clone(), wanted.clone()) for one, wanted in batches]


def _keys_and_hidden_states(
    lm: LM,
    edits: Sequence[Edit],
    *,
    owner: Sequence[int],
    patches: Sequence[Patch],
    layer: int,
    place: str,
    templates: Sequence[str],
    fact_token: FactToken,
) -> tuple[Float[Tensor, "edits f"], Float[Tensor, "edits d"]]:
    """Keys at one layer and what leaves a module, each edit on the model that carries its own patch."""
    rows = [row for edit in edits for row in prompt_rows(lm, edit, templates, fact_token=fact_token)]
    carried = [g for g in owner for _ in templates]
    down = lm.arch.writer_of(layer)
    key = _read_each(lm, rows, owner=carried, patches=patches, inputs=[down], outputs=[]).inputs[down]
    hidden = read_hidden_states(
        lm, edits, owner=owner, patches=patches, place=place, template=templates[0], fact_token=fact_token
    )
    return _mean_over_templates(key, context_templates.template_weights(templates, "memit")), hidden


def read_hidden_states(
    lm: LM,
    edits: Sequence[Edit],
    *,
    owner: Sequence[int],
    patches: Sequence[Patch],
    place: str,
    template: str,
    fact_token: FactToken,
) -> Float[Tensor, "edits d"]:
    """What leaves a module at the token that is edited, each edit on the model that carries its own patch.

    Args:
        lm: the model.
        edits: the edits.
        owner: which patch each of them carries.
        patches: the patches.
        place: the module.
        template: the context template, as a rule the bare prompt.
        fact_token: which token.
    """
    rows = [row for edit in edits for row in prompt_rows(lm, edit, (template,), fact_token=fact_token)]
    return _read_each(lm, rows, owner=owner, patches=patches, inputs=[], outputs=[place]).outputs[place]


def _read_each(
    lm: LM,
    rows: Sequence[TokenRow],
    *,
    owner: Sequence[int],
    patches: Sequence[Patch],
    inputs: list[str],
    outputs: list[str],
) -> Activations:
    """:func:`harness.models.activations.read_activations`, each row under the patch of its owner."""
    if len(patches) == 1 or all(patch.empty for patch in patches):
        with patched(lm, patches[0]) if len(patches) == 1 else nullcontext():
            return read_activations(lm, rows, inputs=inputs, outputs=outputs)
    with patched_rows(lm, patches) as carrier:

        def before(chunk: Sequence[int]) -> None:
            carrier.index = torch.tensor([owner[i] for i in chunk])

        return read_activations(lm, rows, inputs=inputs, outputs=outputs, before=before)
