"""A change of a language model at any of its four seams, and how long it holds.

In the order of a forward pass the seams are the prompt, the weights, the activations and the logits. An editor returns
a :class:`Patch`; :func:`patched` applies it and, whatever happens inside, leaves every parameter bitwise as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.errors import ModelError, NumericalError, RestoreError
from harness.io.hashes import same_bits
from harness.models.activations import first_output, with_first
from harness.models.dequantised import quantised_as
from harness.models.experts import Call, Experts, products
from harness.models.lm import LM
from harness.models.offload import resident
from harness.patches.delta import Delta, Dense, LowRank

__all__ = [
    "ChatRule",
    "Hook",
    "LogitRule",
    "Part",
    "Patch",
    "PromptRule",
    "RowPatches",
    "Step",
    "patched",
    "patched_rows",
    "require_finite",
    "require_plain",
    "require_same_shape",
    "shareable",
]


@dataclass(frozen=True)
class Step:
    """What a hook knows about the forward pass that it runs in.

    Attributes:
        ids: all tokens so far, ``[batch, total]``, those in the key-value cache included.
        mask: 1 where a token is real, ``[batch, total]``; padding may stand on either side.
        new: the number of columns that this pass computes; they are the last ones of ``ids``.
        entered: what entered the hooked module, ``[batch, new, width]``, token ids where that is an
            embedding; None where it is no tensor.
        said: what hooks of this pass leave for those of later modules, by a name of theirs.
    """

    ids: Int[Tensor, "batch total"]
    mask: Shaped[Tensor, "batch total"]
    new: int
    entered: Shaped[Tensor, "batch new width"] | None = None
    said: dict[str, Tensor] = field(default_factory=dict, compare=False)


Hook = Callable[[Float[Tensor, "batch new dim"], Step], Float[Tensor, "batch new dim"]]
"""Maps a module's output ``[batch, new, dim]`` to its replacement."""

LogitRule = Callable[[Float[Tensor, "batch new vocabulary"], Step], Float[Tensor, "batch new vocabulary"]]
"""Maps logits ``[batch, new, vocabulary]`` to their replacement."""

PromptRule = Callable[[str], str]
"""Maps a context to the context that the model reads."""


class Part(ABC):
    """A hook, prompt rule or logit rule that can be kept on disk, and joined with a later one of its own kind."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it holds, by name."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything else that it holds, as values that JSON can write."""

    @classmethod
    @abstractmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
        """The part again, from what :meth:`settings` and :meth:`tensors` gave.

        Args:
            lm: the model that the part is to change.
            settings: what :meth:`settings` gave.
            tensors: what :meth:`tensors` gave, by name.

        Raises:
            DataError: they are not those of such a part.
        """

    @abstractmethod
    def joined(self, later: Any) -> Part:
        """One part that does what both do, the later one an increment of the same editor."""


class ChatRule(Part):
    """A prompt rule that speaks in the system turn of a chat, where there is one; elsewhere in front of the context."""

    @abstractmethod
    def in_chat(self, context: str, chat: Callable[[str], str]) -> str:
        """What the model reads of a context, in a chat or alone.

        Args:
            context: the context.
            chat: gives the whole text with something more told, in the system turn or in front of the context.
        """


@dataclass(frozen=True, eq=False)
class Patch:
    """A change of a model.

    Attributes:
        weights: parameter name -> change, matrices as ``[out, in]``.
        hooks: module name -> function of the module's output.
        prompt: context -> context.
        logits: function of the logits.
        memory: the editor's own state for its next batch.
    """

    weights: Mapping[str, Delta] = field(default_factory=dict)
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    prompt: PromptRule | None = None
    logits: LogitRule | None = None
    memory: object = None

    def __add__(self, other: Patch) -> Patch:
        """Both changes; deltas of one parameter add, parts of one editor join, and the memory is the later one's.

        Raises:
            ModelError: two different editors change one module's activations, the prompt, or the logits.
        """
        weights = {n: self.weights[n] + other.weights[n] for n in self.weights if n in other.weights}
        hooks = {n: _joined(n, self.hooks[n], other.hooks[n]) for n in self.hooks if n in other.hooks}
        return Patch(
            weights={**self.weights, **other.weights, **weights},
            hooks={**self.hooks, **other.hooks, **hooks},
            prompt=_joined("the prompt", self.prompt, other.prompt),
            logits=_joined("the logits", self.logits, other.logits),
            memory=other.memory,
        )

    @property
    def empty(self) -> bool:
        """Whether the patch changes nothing."""
        return self.only_weights and not self.weights

    @property
    def only_weights(self) -> bool:
        """Whether no other seam than the weights is changed."""
        return not self.hooks and self.prompt is None and self.logits is None

    def remember(self, memory: object) -> Patch:
        """The same change with another memory."""
        return replace(self, memory=memory)


def _joined(where: str, first: Any, later: Any) -> Any:
    if first is None or later is None:
        return later if first is None else first
    if isinstance(first, Part) and type(first) is type(later):
        return first.joined(later)
    raise ModelError(f"two patches both change {where}; hold one of them, or merge them in the editor")


@contextmanager
def patched(lm: LM, patch: Patch) -> Iterator[LM]:
    """Hold a patch; afterwards every parameter is bitwise what it was, also after an exception.

    The prompt rule is not applied here: text is not seen at this depth (:class:`harness.exam.adapter.EditedLM`
    applies it).

    Raises:
        ModelError: a parameter or module does not exist, or has another shape.
        NumericalError: a change is not finite.
        RestoreError: a parameter could not be restored.
    """
    with ExitStack() as stack:
        for name, delta in patch.weights.items():
            stack.enter_context(_changed(lm, name, delta))
        if patch.hooks or patch.logits:
            tracker = stack.enter_context(_tracking(lm.model))
            for name, hook in patch.hooks.items():
                stack.callback(lm.module(name).register_forward_hook(_output_hook(hook, tracker)).remove)
            if patch.logits is not None:
                stack.callback(lm.model.register_forward_hook(_logit_hook(patch.logits, tracker)).remove)
        yield lm


@contextmanager
def _changed(lm: LM, name: str, delta: Delta) -> Iterator[None]:
    require_plain(lm, name)
    with resident(lm.model, [name]), _written(lm, name, delta):
        yield


@contextmanager
def _written(lm: LM, name: str, delta: Delta) -> Iterator[None]:
    parameter = lm.parameter(name)
    # The float32 sum is rounded once, so that a small change of a half-precision weight is not lost twice.
    change = delta.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32)).dense()
    require_same_shape(lm, name, Dense(change))
    require_finite(name, change)
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(before.to(change.dtype) + lm.as_stored(name, change))
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)
        if not same_bits(parameter, before):
            raise RestoreError(f"'{name}' is not what it was before the edit; the model must be loaded again")


def require_finite(name: str, change: Float[Tensor, "*shape"]) -> None:
    """Refuse a change that is no number.

    Raises:
        NumericalError: it holds a NaN or an infinity; names the parameter.
    """
    if not bool(torch.isfinite(change).all()):
        raise NumericalError(f"the change of '{name}' holds a NaN or an infinity; lower the learning rate or edit less")


def require_same_shape(lm: LM, name: str, delta: Delta) -> None:
    """Refuse a change that is not as large as what it changes.

    Args:
        lm: the model.
        name: the parameter.
        delta: its change.

    Raises:
        ModelError: the parameter does not exist, has another shape, or is packed in a quantised type.
    """
    wanted = lm.shape(name)
    if delta.shape != wanted:
        require_plain(lm, name)
        raise ModelError(f"'{name}' is {tuple(wanted)}, its change is {tuple(delta.shape)}; edit the same model")


def require_plain(lm: LM, name: str) -> None:
    """Refuse a quantised weight.

    Raises:
        ModelError: the parameter does not hold floating-point numbers of its own.
    """
    kind = quantised_as(lm.parameter(name))
    if kind is not None:
        raise ModelError(
            f"'{name}' is quantised ({str(kind).removeprefix('torch.')}) and cannot take a change of weights; load the "
            "model in bfloat16, let what is edited be plain numbers (--dequantise-edited), or choose an editor of "
            "another seam than weights (`harness editors` lists them)"
        )


class _Tracker:
    """Follows the token prefix through cached and uncached forward passes."""

    def __init__(self) -> None:
        self.step: Step | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids: Tensor = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        past, seen = self._past(kwargs), ids
        if past and self.step is not None:
            seen = torch.cat([self.step.ids[:, :past], ids], 1)
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or mask.shape[1] != seen.shape[1]:
            mask = torch.ones_like(seen)
        self.step = Step(seen, mask, ids.shape[1])

    def _past(self, kwargs: Mapping[str, Any]) -> int:
        """The columns that were read in earlier passes; where a state stands for them (Mamba, RWKV) all of the last."""
        cache = kwargs.get("past_key_values")
        if cache is not None:
            # Of the first layer, which may keep a state instead (MiniMax).
            others = [one.get_seq_length() for one in getattr(cache, "layers", ()) if hasattr(one, "get_seq_length")]
            return int(cache.get_seq_length()) or int(max(others, default=0))
        kept = [kwargs[name] for name in ("state", "cache_params") if kwargs.get(name) is not None]
        return self.step.ids.shape[1] if self.step is not None and any(map(_used, kept)) else 0


def _used(kept: Any) -> bool:
    """Whether a state is of tokens that have been read; a cache may be made before the first pass (Mamba)."""
    asked = getattr(kept, "has_previous_state", None)
    return bool(asked()) if callable(asked) else True


@contextmanager
def _tracking(model: nn.Module) -> Iterator[_Tracker]:
    tracker = _Tracker()
    handle: RemovableHandle = model.register_forward_pre_hook(tracker.before, with_kwargs=True)
    try:
        yield tracker
    finally:
        handle.remove()


def _output_hook(hook: Hook, tracker: _Tracker) -> Callable[[nn.Module, Any, Any], Any]:
    def run(module: nn.Module, args: Any, output: Any) -> Any:
        assert tracker.step is not None
        hidden = first_output(output)
        # OPT flattens rows and columns inside its blocks.
        shape = (tracker.step.ids.shape[0], tracker.step.new, -1)
        entered = args[0].reshape(shape) if args and isinstance(args[0], Tensor) else None
        changed = hook(hidden.reshape(shape), replace(tracker.step, entered=entered)).reshape(hidden.shape)
        return with_first(output, changed)

    return run


def _logit_hook(rule: LogitRule, tracker: _Tracker) -> Callable[[nn.Module, Any, Any], Any]:
    def run(module: nn.Module, args: Any, output: Any) -> Any:
        assert tracker.step is not None
        # A model may be asked for the last logits only; the rule is told how many columns it sees.
        step = replace(tracker.step, new=output.logits.shape[1])
        output.logits = rule(output.logits, step)
        return output

    return run


def shareable(patch: Patch) -> bool:
    """Whether rows of one forward pass can each carry such a patch: low-rank weight changes and nothing else."""
    return patch.only_weights and all(isinstance(delta, LowRank) for delta in patch.weights.values())


class RowPatches:
    """Which patch each row of the next forward pass carries; set ``index`` before the pass."""

    def __init__(self) -> None:
        self.index: Int[Tensor, "rows"] | None = None


@contextmanager
def patched_rows(lm: LM, patches: Sequence[Patch]) -> Iterator[RowPatches]:
    """Let each row of a batch carry its own low-rank patch; no weight is written.

    Row ``b`` adds ``left_i (right_i x)`` to each edited matrix's output, where ``i = rows.index[b]``, ``-1`` for none.
    Equals holding patch ``i`` up to rounding.

    Raises:
        ModelError: a patch is not low rank, or changes something else than the matrices of linear modules.
    """
    if not all(shareable(patch) for patch in patches):
        raise ModelError("only low-rank weight changes can share a forward pass; hold the others one after the other")
    rows = RowPatches()
    with ExitStack() as stack:
        for name in sorted({name for patch in patches for name in patch.weights}):
            owner, _, leaf = name.rpartition(".")
            experts = lm.experts(name)
            if leaf != "weight" and experts is None:
                raise ModelError(
                    f"'{name}' is not the matrix of a linear module; hold such patches one after the other"
                )
            lefts, rights = _stacked(lm, name, [patch.weights.get(name) for patch in patches])
            hook = _row_hook(rows, lefts, rights) if experts is None else _expert_hook(rows, lefts, rights, experts)
            stack.callback(lm.module(owner).register_forward_hook(hook, with_kwargs=experts is not None).remove)
        yield rows


def _stacked(
    lm: LM, name: str, deltas: Sequence[Delta | None]
) -> tuple[Float[Tensor, "entries out r"], Float[Tensor, "entries r d_in"]]:
    """``left [patches + 1, out, r]``, ``right [patches + 1, r, in]``, zero-padded; the last entry changes nothing."""
    weight = lm.parameter(name)
    out, width = lm.as_matrix(name, weight.detach().to("meta")).shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    low = [delta for delta in deltas if isinstance(delta, LowRank)]
    rank = max(delta.left.shape[1] for delta in low)
    lefts = torch.zeros(len(deltas) + 1, out, rank, device=weight.device, dtype=dtype)
    rights = torch.zeros(len(deltas) + 1, rank, width, device=weight.device, dtype=dtype)
    for i, delta in enumerate(deltas):
        if isinstance(delta, LowRank):
            lefts[i, :, : delta.left.shape[1]] = delta.left.to(lefts)
            rights[i, : delta.right.shape[0]] = delta.right.to(rights)
    return lefts, rights


def _row_hook(
    rows: RowPatches, lefts: Float[Tensor, "entries out r"], rights: Float[Tensor, "entries r d_in"]
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def run(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if rows.index is None:
            return output
        index = rows.index.to(lefts.device)
        # OPT flattens rows and columns inside its blocks.
        x = args[0].to(rights.dtype).reshape(len(index), -1, rights.shape[2])
        change = ((x @ rights[index].transpose(1, 2)) @ lefts[index].transpose(1, 2)).reshape(output.shape)
        changed: Tensor = (output.to(change.dtype) + change).to(output.dtype)
        return changed

    return run


def _expert_hook(
    rows: RowPatches, lefts: Float[Tensor, "entries out r"], rights: Float[Tensor, "entries r width"], experts: Experts
) -> Callable[[nn.Module, Any, dict[str, Any], Tensor], Tensor]:
    """As :func:`_row_hook`, of experts, whose stacked keys nobody reads: their products with ``right`` are enough."""

    def run(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if rows.index is None:
            return output
        index = rows.index.to(lefts.device)
        used, entry = torch.unique(index, return_inverse=True)
        found = products(Call(experts, module, args, kwargs), rights[used].flatten(0, 1)).to(rights.dtype)
        each = found.reshape(len(index), -1, len(used), rights.shape[1])[
            torch.arange(len(index), device=index.device), :, entry
        ]
        change = (each @ lefts[index].transpose(1, 2)).reshape(output.shape)
        changed: Tensor = (output.to(change.dtype) + change).to(output.dtype)
        return changed

    return run
