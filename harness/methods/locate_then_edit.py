"""What all locate-then-edit methods share: where they write, which value they optimise, what they take from the model.

A child decides at which seam the value is optimised and how it is written into weights.
Sources: Meng et al. 2022 (ROME), section 3.1; Meng et al. 2023 (MEMIT), section 4; and each child's own.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from harness.editing.directions import DIRECTIONS
from harness.editing.edit import Edit
from harness.editing.editor import Editor, Wrapper
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range, settable
from harness.editing.registry import editor_names, find
from harness.errors import ModelError, NumericalError, UsageError
from harness.methods.context_templates import TemplateKind
from harness.methods.keys import (
    AdjointSolver,
    FactToken,
    Solver,
    Unedited,
    layer_at_depth,
    require_layers,
    spread_residuals,
    take_unedited,
    template_notes,
)
from harness.methods.second_moments import (
    Moment,
    missing_moments,
    require_finite_moment,
    require_moment_text,
    require_room,
)
from harness.methods.value import anchor_norm, optimise
from harness.methods.value_rows import Objective, Seam, Stop
from harness.models.activations import at_least_float32, capture_activations
from harness.models.lm import LM, Batch
from harness.patches.delta import Delta, LowRank, double
from harness.patches.patch import Patch, Step, patched, require_plain

__all__ = [
    "LocateThenEdit",
    "Solver",
    "Spread",
    "SpreadHidden",
    "SpreadMemory",
    "in_batches",
    "inverse_of_preserved",
    "require_additive",
    "require_keys",
    "require_linear",
    "ridge_adjoint",
    "ridge_solver",
    "spread_layers",
    "sum_key_products",
    "with_hyperparameters",
    "woodbury",
]


@dataclass(frozen=True)
class LocateThenEdit(Editor):
    """Optimise a value at one token of each fact, then write it into down-projections in closed form.

    Attributes:
        layers: the layers; by default the method's own share of the depth.
        fact_token: the token whose key and value are edited.
        v_steps: evaluations of the loss of a value.
        v_lr: its learning rate.
        v_loss_layer: the layer whose output is decoded for the loss; None is the last.
        v_weight_decay: weight of ``||delta|| / ||v0||^2``.
        clamp: the bound of ``||delta|| / ||v0||``.
        kl_factor: weight of the KL term.
        v_stop: when the optimisation of a value ends early: ``loss`` below 0.05, or also as soon as the target is the
            ``argmax`` after every context (ENCORE, Gupta et al. 2025, arXiv 2502.01636), or ``argmax_kl``, there if
            the KL term is small too (the code of PMET), or ``never``.
        v_cutoff: with ``argmax``, how many evaluations must have the target on top after every context but the bare
            prompt (the code of ENCORE); by default the first at which the bare prompt has it too ends it.
        v_anchor: the norm to which every value is scaled (NAS, Liu et al. 2026, arXiv 2602.02543).
        v_anchor_skip: how many times the anchor the norm of a value may be; where it is more, the edit changes nothing
            (the code of NAS).
        cov_tokens: tokens of text for second moments.
        contexts: context templates, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of the context templates.
    """

    needs_subject = True
    random = True
    directions = DIRECTIONS
    kind: ClassVar[TemplateKind]
    seam: ClassVar[Seam]

    layers: tuple[int, ...] | None = None
    fact_token: FactToken = "subject_last"
    v_steps: Count = 25
    v_lr: Positive = 0.5
    v_loss_layer: Annotated[int, Range(0)] | None = None
    v_weight_decay: NotNegative = 0.5
    clamp: Positive = 0.75
    kl_factor: NotNegative = 0.0625
    v_stop: Stop = "loss"
    v_cutoff: Count | None = None
    v_anchor: Positive | None = None
    v_anchor_skip: Positive | None = None
    cov_tokens: Count = 100_000
    contexts: tuple[str, ...] | None = None
    seed: int = 0

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The context templates."""
        return template_notes(lm, self.kind, seed=self.seed, given=self.contexts)

    def objective(self, layer: int) -> Objective:
        """The value optimisation at one layer."""
        return Objective(
            layer,
            seam=self.seam,
            fact_token=self.fact_token,
            steps=self.v_steps,
            lr=self.v_lr,
            kl_factor=self.kl_factor,
            weight_decay=self.v_weight_decay,
            clamp=self.clamp,
            loss_layer=self.v_loss_layer,
            stop=self.v_stop,
            cutoff=self.v_cutoff,
            anchor="none" if self.v_anchor is None else self.v_anchor,
            anchor_skip=self.v_anchor_skip,
        )

    @abstractmethod
    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers that are written, ascending; the value is optimised at the last."""

    def edited_modules(self, lm: LM) -> Sequence[str]:
        """The down-projections of the edited layers."""
        return [lm.arch.writer_of(layer) for layer in self.edited_layers(lm)]

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> Unedited:
        """Templates, and the second moments of some layers, of the unedited model.

        Args:
            lm: the model; unedited if ``memory`` is None.
            memory: what an earlier edit left, or None.
            layers: where second moments are needed.

        Raises:
            ModelError: a weight that would be written is quantised.
        """
        self.require_writable(lm, memory)
        return take_unedited(
            lm, memory, kind=self.kind, layers=layers, seed=self.seed, tokens=self.cov_tokens, given=self.contexts
        )

    def require(self, lm: LM) -> None:
        """See that the method can edit a model, before anything is measured.

        Raises:
            ModelError: a layer has no down-projection, it is quantised or never used, or what it writes is changed on
                its way where that matters.
        """
        super().require(lm)
        self.require_writable(lm, None)
        require_keys(lm, self.edited_layers(lm), whitened=self.whitened_layers(lm), tokens=self.cov_tokens)
        if self.seam == "parts":
            lm.arch.attn_of(self.edited_layers(lm)[-1])

    def whitened_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers of whose keys the second moments are needed; by default all that are written."""
        return self.edited_layers(lm)

    def require_writable(self, lm: LM, memory: object) -> None:
        """Refuse weights that cannot be written, before the model is run for anything.

        Raises:
            ModelError: a weight that would be written is quantised.
        """
        for layer in self.edited_layers(lm):
            require_plain(lm, lm.down(layer))

    def value_norm(self, lm: LM, edits: Sequence[Edit], *, bare: bool = False) -> float:
        """The norm of the values that some edits ask for on the unedited model, as NAS anchors it.

        Args:
            lm: the unedited model.
            edits: the edits, at least one.
            bare: whether values are found on the bare prompts alone, without a context in front.
        """
        contexts = ("{}",) if bare else self.prior(lm, None, ()).contexts
        return anchor_norm(optimise(lm, edits, contexts, objective=self.objective(self.edited_layers(lm)[-1])))


@dataclass(frozen=True, eq=False)
class SpreadMemory(Unedited):
    """What was taken from the unedited model, and what earlier operations wrote.

    Attributes:
        sums: layer -> ``sum k k^T`` over the keys of earlier edits, ``[f, f]``, float64.
    """

    sums: Mapping[int, Float64[Tensor, "_ _"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread(LocateThenEdit):
    """Optimise the hidden states after the last of several layers, and let all of them share the change (MEMIT).

    A child says how one layer writes residuals at keys (:meth:`solver`), and whether it remembers keys
    (:attr:`remembers`); with the seam ``parts`` it is what the last layer's feed-forward module writes that is wanted.
    """

    kind = "memit"
    seam: ClassVar[Seam] = "block"

    def divisor(self, left: int) -> float:
        """By what the residual is divided where so many layers are still to be written."""
        return left

    @property
    def at(self) -> Literal["block", "mlp"]:
        """What the value is of: what leaves the whole block, or its down-projection alone."""
        return "block" if self.seam == "block" else "mlp"

    @property
    def remembers(self) -> bool:
        """Whether the keys of earlier operations are wanted."""
        return False

    @abstractmethod
    def solver(self, prior: SpreadMemory) -> Solver:
        """How the change of one layer is found."""

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """The layers; by default up to five that end at 27 % of the depth, as published for Llama."""
        return spread_layers(lm, self.layers)

    def prior(self, lm: LM, memory: object, layers: Sequence[int]) -> SpreadMemory:
        """Templates, second moments, and the keys of earlier edits."""
        known = super().prior(lm, memory, layers)
        return SpreadMemory(known.contexts, known.moments, memory.sums if isinstance(memory, SpreadMemory) else {})

    def require_writable(self, lm: LM, memory: object) -> None:
        """As of all methods; and at the first operation, a model in which residuals of hidden states do not arrive.

        Raises:
            ModelError: a weight that would be written is quantised, or what it writes is changed on its way.
        """
        super().require_writable(lm, memory)
        if self.at == "block" and memory is None:
            require_additive(lm, self.edited_layers(lm), self.name)

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """All edits at once."""
        if not edits:
            return Patch(memory=memory)
        prior = self.prior(lm, memory, self.edited_layers(lm))
        (patch,), written = self._written(lm, [list(edits)], prior)
        if not self.remembers:
            return patch.remember(prior)
        keys = {layer: torch.cat(found) for layer, found in written.items()}
        return patch.remember(self.after(lm, prior, keys=keys, patch=patch))

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits side by side, each on its own copy of the layers it has changed; no edit remembers."""
        if not edits:
            return []
        prior = self.prior(lm, None, self.edited_layers(lm))
        return [patch.remember(prior) for patch in self._written(lm, [[edit] for edit in edits], prior)[0]]

    def rounds(self, lm: LM) -> Sequence[tuple[int, ...]]:
        """The layers that share a value, which is optimised at their last; by default all of them, in one round."""
        return [self.edited_layers(lm)]

    def values(
        self, lm: LM, groups: Sequence[Sequence[Edit]], prior: SpreadMemory, *, layer: int, begun: Sequence[Patch]
    ) -> Float[Tensor, "edits d"]:
        """The wanted hidden states, in the order of the groups.

        Args:
            lm: the model.
            groups: batches of edits.
            prior: what was taken from the unedited model.
            layer: where they are optimised.
            begun: what each batch has changed in earlier rounds.
        """
        objective = self.objective(layer)
        if all(patch.empty for patch in begun):
            return optimise(lm, [e for group in groups for e in group], prior.contexts, objective=objective).value
        found = []
        for group, patch in zip(groups, begun, strict=True):
            with patched(lm, patch):
                found.append(optimise(lm, group, prior.contexts, objective=objective).value)
        return torch.cat(found)

    def _written(
        self, lm: LM, groups: list[list[Edit]], prior: SpreadMemory
    ) -> tuple[list[Patch], dict[int, list[Tensor]]]:
        """The patch of each group, and of one group alone layer -> its keys ``[n, f]``."""
        written: dict[int, list[Tensor]] = {layer: [] for layer in self.edited_layers(lm)}
        solve = self.solver(prior)

        def noted(layer: int, key: Tensor, residual: Tensor) -> Delta:
            written[layer].append(key)
            return solve(layer, key, residual)

        patches = [Patch() for _ in groups]
        for layers in self.rounds(lm):
            targets = self.values(lm, groups, prior, layer=layers[-1], begun=patches)
            patches = self.spread(
                lm,
                groups,
                prior,
                targets=targets,
                layers=layers,
                solve=noted if len(groups) == 1 else solve,
                begun=patches,
            )
        return patches, written

    def spread(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        prior: SpreadMemory,
        *,
        targets: Float[Tensor, "edits d"],
        layers: Sequence[int],
        solve: Solver,
        begun: Sequence[Patch],
    ) -> list[Patch]:
        """What batches of edits have changed after one more round, see :func:`harness.methods.keys.spread_residuals`.

        Args:
            lm: the model.
            groups: batches of edits.
            prior: what was taken from the unedited model.
            targets: the wanted hidden states, in the order of the groups.
            layers: the layers of the round.
            solve: how the change of one layer is found.
            begun: what each batch has changed in earlier rounds.
        """
        return spread_residuals(
            lm,
            groups,
            targets=targets,
            layers=layers,
            templates=prior.contexts,
            fact_token=self.fact_token,
            solve=solve,
            site=self.at,
            divisor=self.divisor,
            begun=begun,
        )

    def after(
        self, lm: LM, prior: SpreadMemory, *, keys: Mapping[int, Float[Tensor, "n f"]], patch: Patch
    ) -> SpreadMemory:
        """The memory after one more operation: by default the sum over its keys beside that of the earlier ones.

        A key enters its layer's down-projection, so only the layers below change it: what was read before a layer was
        written is what the fully edited model gives.

        Args:
            lm: the model, without the operation's change.
            prior: the memory before.
            keys: layer -> the keys that were written.
            patch: the change.
        """
        sums = {layer: sum_key_products(key, prior.sums.get(layer)) for layer, key in keys.items()}
        return replace(prior, sums={**prior.sums, **sums})


@dataclass(frozen=True)
class SpreadHidden(Spread):
    """MEMIT's family: the value is of the hidden state that leaves the last layer's block.

    Attributes:
        site: ``block`` as published. With ``mlp`` the value is of what the last layer's down-projection writes, and the
            layers below it take their share of what is missing there, as in PMET: for models in which a norm or a
            factor stands between the down-projection and the residual stream (Gemma 2 and 3, OLMo 2, GLM-4, Granite).
    """

    site: Literal["block", "mlp"] = "block"

    @property
    def at(self) -> Literal["block", "mlp"]:
        """What the value is of."""
        return self.site

    def objective(self, layer: int) -> Objective:
        """The value optimisation at the site."""
        return replace(super().objective(layer), seam=self.site)

    def label(self) -> str:
        """The name, with the site where it is not the published one."""
        return self.name if self.site == "block" else f"{self.name}-{self.site}"


def spread_layers(lm: LM, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers among which MEMIT spreads a change; by default up to five that end at 27 % of the depth.

    Args:
        lm: the model.
        layers: what is asked for.

    Raises:
        ModelError: the model does not have one of them.
    """
    last = max(layer_at_depth(lm, 0.27), 1 if lm.arch.layers > 1 else 0)
    return require_layers(lm, layers or range(max(0, last - 4), last + 1), experts=True)


def require_keys(lm: LM, layers: Sequence[int], *, whitened: Sequence[int], tokens: int) -> None:
    """See that down-projections are used, are linear in what is written, and that there is room for second moments.

    Args:
        lm: the model.
        layers: the layers that are written.
        whitened: those of whose keys second moments are needed.
        tokens: tokens of text for these.

    Raises:
        ModelError: it is not so.
        DataError: text for these has to come from the Hub, which does not answer.
    """
    capture_activations(lm, _short(lm), inputs=[lm.arch.writer_of(layer) for layer in layers])
    require_linear(lm, layers)
    require_moment_text(lm, whitened, tokens=tokens)
    # The keys of experts are of a size that nobody expects.
    wide = [layer for layer in whitened if lm.experts(lm.down(layer)) is not None]
    require_room(lm, missing_moments(lm, wide, tokens=tokens))


def _short(lm: LM) -> Batch:
    """A few tokens to try a model on."""
    return lm.batch([lm.encode("The name of the town is")])


def require_additive(lm: LM, layers: Sequence[int], asker: str) -> None:
    """Refuse a model that changes what a feed-forward module writes before it is added to the residual stream.

    A residual of hidden states, written behind such a module, would arrive as something else. Gemma 2 and 3 and OLMo 2
    have a norm there, Granite a factor, Falcon-H1 one inside the module. Measured: a vector as large as the hidden
    state is added to the down-projection's output and looked for in the block's.

    Args:
        lm: the model.
        layers: the layers that would be written.
        asker: the editor, for the error.

    Raises:
        ModelError: less than 90 % of the vector arrives, or something else with it.
    """
    batch = _short(lm)
    unchanged = capture_activations(lm, batch, outputs=[lm.arch.block(layer) for layer in layers]).outputs
    for layer in layers:
        block, down = lm.arch.block(layer), lm.arch.writer_of(layer)
        before = at_least_float32(unchanged[block])
        if before.shape[-1] != lm.arch.width:
            raise ModelError(
                f"{lm.name}: '{block}' hands on {before.shape[-1]} numbers a token, its matrices write "
                f"{lm.arch.width}; {asker} needs both alike, use --set site=mlp where it has that, or rome"
            )
        # No multiple of anything that the model computes.
        added = torch.linspace(-1, 1, before.shape[-1], device=before.device).sin().expand_as(before)
        added = added * before.norm(dim=-1, keepdim=True) / added.norm(dim=-1, keepdim=True)
        with patched(lm, Patch(hooks={down: _Added(added)})):
            arrived = at_least_float32(capture_activations(lm, batch, outputs=[block]).outputs[block]) - before
        if float((arrived - added).norm() / added.norm()) > 0.1:
            raise ModelError(
                f"{asker} adds residuals to what the feed-forward modules write, but {lm.name} has a norm or a factor "
                f"between '{down}' and the residual stream, behind which they are something else; optimise what it "
                "writes itself (memit, emmet, alphaedit: --set site=mlp; rome, r_rome), or take a fine-tuning editor"
            )


def require_linear(lm: LM, layers: Sequence[int]) -> None:
    """Refuse experts that do something else to what they write than to weight it and add it up.

    Only then is what they write linear in their stacked down-projections. Measured: a change of rank one is held, and
    what the module gives with it is compared with what the stacked keys foretell.

    Args:
        lm: the model.
        layers: the layers that would be written; those without experts are not tried.

    Raises:
        ModelError: the two differ.
    """
    batch = _short(lm)
    for layer in layers:
        name, place = lm.down(layer), lm.arch.writer_of(layer)
        if lm.experts(name) is None:
            continue
        seen = capture_activations(lm, batch, inputs=[place], outputs=[place])
        key, before = at_least_float32(seen.inputs[place]), at_least_float32(seen.outputs[place])
        left = torch.linspace(-1, 1, lm.arch.width, device=key.device)[:, None].sin() * before.norm()
        right = key[0, -1:] / key[0, -1:].norm() ** 2
        with patched(lm, Patch({name: LowRank(left, right)})):
            arrived = at_least_float32(capture_activations(lm, batch, outputs=[place]).outputs[place]) - before
        wanted = (key @ right.T) @ left.T
        if not float((arrived - wanted).norm() / wanted.norm()) < 0.1:
            raise ModelError(
                f"{lm.name}: what the experts of layer {layer} write is not linear in their down-projections, so that "
                "no value can be written into them; take an editor of another seam (ike, grace), or a fine-tuning one"
            )


@dataclass(frozen=True, eq=False)
class _Added:
    """A hook (:data:`harness.patches.patch.Hook`) that adds ``[rows, columns, d]``."""

    vector: Float[Tensor, "rows columns d"]

    def __call__(self, hidden: Float[Tensor, "rows columns d"], step: Step) -> Float[Tensor, "rows columns d"]:
        return hidden + self.vector.to(hidden)


def with_hyperparameters(editor: Editor, asker: str, **settings: Any) -> Editor:
    """An editor whose method has other hyperparameters, the wrappers around it unchanged.

    Args:
        editor: the editor.
        asker: who wants it so, for the error.
        settings: hyperparameters of the method.

    Raises:
        UsageError: the method has no such hyperparameters, and the error names those that have; or the user has set one
            of them to something else.
    """
    if isinstance(editor, Wrapper):
        return replace(editor, inner=with_hyperparameters(editor.inner, asker, **settings))
    missing = settings.keys() - settable(type(editor)).keys()
    if missing:
        able = ", ".join(name for name in editor_names() if settings.keys() <= settable(find(name)).keys())
        raise UsageError(
            f"{asker} cannot wrap {editor.name}, which has no {' and no '.join(sorted(missing))}; it can wrap {able}"
        )
    for name, wanted in settings.items():
        if getattr(editor, name) not in (settable(type(editor))[name].default, wanted):
            raise UsageError(
                f"{asker} sets {name} of {editor.name} to {wanted}, not {getattr(editor, name)}; leave out {name}, or "
                f"leave out +{asker}"
            )
    return replace(editor, **settings)


def inverse_of_preserved(
    moment: Moment, *, lam: float, norm_control: float = 0.0, earlier: Float64[Tensor, "f f"] | None = None
) -> Callable[[Float[Tensor, "f n"]], Float64[Tensor, "f n"]]:
    """``right [f, n] -> G^-1 right`` with ``G = lam C + norm_control I + M``, in float64, factored once.

    Args:
        moment: the second moment ``C [f, f]`` of the layer.
        lam: its weight.
        norm_control: weight of the Frobenius norm of the change.
        earlier: ``M [f, f]``, the sum over the keys of earlier edits; None for none.

    Raises:
        NumericalError: ``G`` has no inverse; names the layer.
    """
    if not norm_control and earlier is None:
        return lambda right: moment.solve(right) / lam
    require_finite_moment(moment, moment.name)
    whole = lam * double(moment.matrix)
    whole.diagonal().add_(norm_control)
    if earlier is not None:
        whole += earlier.to(whole)
    factor, failed = torch.linalg.cholesky_ex(whole)
    if bool(failed):
        raise NumericalError(
            f"what {moment.name} shall keep has no inverse with lam = {lam:g} and norm_control = {norm_control:g}; "
            "raise either, or give more text with --set cov_tokens"
        )
    return lambda right: torch.cholesky_solve(double(right).to(factor.device), factor)


def ridge_solver(
    prior: SpreadMemory,
    *,
    lam: float,
    norm_control: float = 0.0,
) -> AdjointSolver:
    """``dW = R K^T G^-1`` with ``G = lam C + norm_control I + K K^T`` (MEMIT, equation 14), one factor a layer.

    Args:
        prior: the second moments ``C`` of the unedited model's keys.
        lam: their weight.
        norm_control: weight of the Frobenius norm of the change.
    """

    @functools.cache
    def whiten(layer: int) -> Callable[[Tensor], Tensor]:
        return inverse_of_preserved(prior.moments[layer], lam=lam, norm_control=norm_control)

    def adjoint(layer: int, key: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
        wide = double(key.T)
        return [found.T for found in in_batches(woodbury, whiten(layer)(wide), wide, sizes=sizes)]

    return AdjointSolver(adjoint)


def in_batches(
    adjoint: Callable[[Float64[Tensor, "f _"], Float64[Tensor, "f _"]], Float64[Tensor, "f _"]],
    whitened: Float64[Tensor, "f n"],
    key: Float64[Tensor, "f n"],
    *,
    sizes: Sequence[int],
) -> list[Float64[Tensor, "f _"]]:
    """``A`` of each of some independent batches, whose keys stand one batch after the other.

    Args:
        adjoint: ``(X, K) -> A`` of one batch, such as :func:`woodbury`.
        whitened: ``X = G^-1 K [f, n]``.
        key: ``K [f, n]``.
        sizes: the keys of each batch.
    """
    return list(map(adjoint, torch.split(whitened, list(sizes), 1), torch.split(key, list(sizes), 1)))


def woodbury(whitened: Float64[Tensor, "f n"], key: Float64[Tensor, "f n"]) -> Float64[Tensor, "f n"]:
    """``(G + K K^T)^-1 K``, ``[f, n]``, from ``X = G^-1 K``: ``X (I + K^T X)^-1``.

    Args:
        whitened: ``X [f, n]``; ``G`` is symmetric.
        key: ``K [f, n]``.
    """
    inner = key.T.to(whitened) @ whitened
    eye = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    # The inner matrix is symmetric.
    found: Tensor = torch.linalg.solve(eye + inner, whitened.T)
    return found.T


def ridge_adjoint(moment: Moment, keys: Float[Tensor, "n f"], lam: float) -> Float64[Tensor, "f n"]:
    """``(lam C + K K^T)^-1 K`` in float64, ``[f, n]``, from one factor of ``C`` for all batches (Woodbury).

    Args:
        moment: the second moment ``C [f, f]`` of the layer.
        keys: ``K^T [n, f]``.
        lam: the weight of ``C``.
    """
    key = double(keys.T)
    return woodbury(inverse_of_preserved(moment, lam=lam)(key), key)


def sum_key_products(keys: Float[Tensor, "n f"], earlier: Float64[Tensor, "f f"] | None) -> Float64[Tensor, "f f"]:
    """``K K^T`` in float64, ``[f, f]``, and that of earlier edits.

    Args:
        keys: ``K^T [n, f]``.
        earlier: their sum so far, None for none.
    """
    product = double(keys.T) @ double(keys)
    return product if earlier is None else earlier.to(product) + product
