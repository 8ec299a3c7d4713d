"""Gradient descent on a few parameters of a model, which stay as they are: what is trained are copies.

Sources: Zhu et al. 2020, "Modifying Memories in Transformer Models", arXiv 2012.00363 (the L-infinity bound); the
baselines FT and FT+L of Meng et al. 2022 (kmeng01/rome) and 2023 (kmeng01/memit at 80426fd); LocFT-BF of Yang et al.
2026, arXiv 2509.22072 (a new order for each pass, and the end of text as a part of the target).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.editing.directions import Normalisation, floor, losses, nll
from harness.editing.edit import Edit
from harness.errors import DataError, ModelError, NumericalError, UsageError, near
from harness.models.activations import at_least_float32
from harness.models.arch import is_matrix
from harness.models.lm import LM
from harness.models.offload import call_with
from harness.patches.delta import Dense
from harness.patches.patch import require_plain

__all__ = [
    "Accumulation",
    "AdamState",
    "DescentSettings",
    "Loss",
    "LossTerm",
    "Objective",
    "Restriction",
    "TokenMean",
    "TokenisedEdit",
    "Trained",
    "capture_gradients",
    "cosine_rate",
    "descend",
    "down_projection_parameters",
    "feed_forward_matrices",
    "first_matrix",
    "log_likelihood",
    "named_matrices",
    "passes",
    "target_distributions",
    "target_positions",
    "tokenise",
]

Loss = Literal["target_new", "prompt_last"]
"""``target_new``: mean NLL of the target's tokens, each after those before it.  ``prompt_last``: as in the authors'
code, the mean NLL of all the target's tokens at the one position after the prompt; the same for targets of one
token."""


TokenMean = Literal["edit", "batch"]
"""What the loss of edits made at once is a mean over: each edit's own tokens first, or all tokens of the batch at once,
so that an edit with a longer target counts more."""

Accumulation = Literal["fixed", "faithful"]
"""How the gradients of several batches become one step."""

Objective = Callable[[LM, Sequence["TokenisedEdit"], Mapping[str, Tensor]], Tensor]
"""What is minimised for the edits of a batch in place of what their directions say, of the model with some parameters
in place of its own; a scalar, which ends at zero."""

LossTerm = Callable[[LM, Mapping[str, Tensor]], Tensor]
"""What is added to the loss of a batch, of the model with some parameters in place of its own; a scalar."""


@dataclass(frozen=True, eq=False)
class Restriction:
    """Where parameters may go.

    Attributes:
        onto: the name of a parameter and a tensor stored like it -> the part that is allowed; linear.
        change: whether the whole change is projected after each step, too, and not the gradient alone: Adam scales
            each number of what it is given, and so leaves the subspace.
    """

    onto: Callable[[str, Tensor], Tensor]
    change: bool = False


@dataclass(frozen=True)
class DescentSettings:
    """How to descend.

    Attributes:
        loss: what is minimised.
        lr: Adam's learning rate.
        steps: passes over all edits.
        batch_size: edits of one update.
        weight_decay: Adam's L2 penalty.
        norm_constraint: the bound of every single weight's change; None for no bound.
        threshold: no update where a batch's loss is below, and an end where the mean loss of a pass is; of directions
            without a lower bound what :func:`harness.editing.directions.floor` says.
        end_of_text: whether a target that shall become likelier ends with the token that ends a text.
        shuffle: the seed by which every pass takes the edits in a new order; None for the order given.
        normalisation: whether the loss of an edit is a mean over the tokens of its target, or their sum.
        token_mean: whether every edit of a batch counts alike, or every token of its targets.
        cosine: whether the learning rate falls to zero, ``lr (1 + cos(pi e / steps)) / 2`` in pass ``e`` from 0.
        beta2: Adam's second decay rate.
        accumulate: batches behind one step of Adam.
        accumulation: ``fixed``, the mean of their gradients, and a last step for the rest of a pass; ``faithful``, what
            the code of Hewitt et al. 2024 does: the gradients are cleared before every batch, so that a step is
            that of the last of them alone, and the rest of a pass does nothing.
    """

    loss: Loss = "target_new"
    lr: float = 5e-4
    steps: int = 25
    batch_size: int = 64
    weight_decay: float = 0.0
    norm_constraint: float | None = None
    threshold: float = 1e-2
    end_of_text: bool = False
    shuffle: int | None = None
    normalisation: Normalisation = "mean"
    token_mean: TokenMean = "edit"
    cosine: bool = False
    beta2: float = 0.999
    accumulate: int = 1
    accumulation: Accumulation = "fixed"


@dataclass(frozen=True, eq=False)
class AdamState:
    """What Adam has seen of some parameters.

    Attributes:
        steps: its steps so far.
        means: the running mean of each parameter's gradients, stored like it.
        squares: that of their squares.
    """

    steps: int
    means: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]

    def within(self, restriction: Restriction) -> AdamState:
        """That of gradients which were projected by a restriction from the first step on; the squares stay."""
        return replace(self, means={name: restriction.onto(name, mean) for name, mean in self.means.items()})


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out.

    Attributes:
        deltas: the change of each parameter, ``[out, in]``.
        losses: the loss of each batch before its update.
        adam: what Adam has seen, its own tensors, which a further pass changes; None where it took no step.
    """

    deltas: Mapping[str, Dense]
    losses: tuple[float, ...]
    adam: AdamState | None = None


@dataclass(frozen=True)
class TokenisedEdit:
    """An edit in tokens.

    Attributes:
        edit: the edit.
        prompt: the tokens of its prompt.
        target: the tokens of the target.
        against: the tokens of the continuation that the target is compared with; empty where there is none.
    """

    edit: Edit
    prompt: list[int]
    target: list[int]
    against: list[int] = field(default_factory=list)

    @property
    def rival(self) -> TokenisedEdit:
        """The other continuation as an answer of its own."""
        return TokenisedEdit(self.edit, self.prompt, self.against)


def down_projection_parameters(lm: LM, layers: Sequence[int]) -> list[str]:
    """The weights and, where there are any, biases of some layers' down-projections, or of those of their experts."""
    return [name for layer in sorted(set(layers)) for name in _weight_and_bias(lm, layer)]


def _weight_and_bias(lm: LM, layer: int) -> list[str]:
    owner, experts = lm.arch.writer_of(layer), lm.experts(lm.down(layer))
    if experts is not None:
        return [experts.parameter, *([] if experts.bias is None else [f"{owner}.{experts.bias}"])]
    return [f"{owner}.{leaf}" for leaf, _ in lm.module(owner).named_parameters(recurse=False)]


def feed_forward_matrices(lm: LM, layer: int) -> list[str]:
    """The names of the modules that are the matrices of one layer's feed-forward part."""
    parent = lm.arch.down_of(layer).rpartition(".")[0]
    return [f"{parent}.{name}" for name, child in lm.module(parent).named_children() if is_matrix(child)]


def named_matrices(lm: LM, layers: Sequence[int], modules: Sequence[str], *, asker: str) -> list[str]:
    """The names of the matrices of some layers whose last part is one of some names; they need no down-projection.

    Args:
        lm: the model.
        layers: the layers.
        modules: last parts of names (``q_proj``).
        asker: who needs them, for the error.

    Raises:
        UsageError: a name is that of no matrix of these layers.
    """
    inside = [(lm.arch.block(layer), lm.module(lm.arch.block(layer))) for layer in layers]
    found = [f"{at}.{name}" for at, block in inside for name, part in block.named_modules() if is_matrix(part)]
    known = {name.rpartition(".")[2] for name in found}
    for wanted in modules:
        if wanted not in known:
            raise UsageError(f"{asker}: 'modules' names '{wanted}', which is no matrix of a layer{near(wanted, known)}")
    return [name for name in found if name.rpartition(".")[2] in modules]


def first_matrix(lm: LM, layer: int, *, asker: str) -> str:
    """The name of the module whose output enters the activation function of one layer's feed-forward part.

    Args:
        lm: the model.
        layer: the layer.
        asker: who needs it, for the error.

    Raises:
        ModelError: there is not one such matrix, as where a gate stands beside it.
    """
    names = [name for name in feed_forward_matrices(lm, layer) if name != lm.arch.down_of(layer)]
    if len(names) != 1:
        raise ModelError(
            f"{asker}: the feed-forward part of layer {layer} of {lm.name} has {len(names)} matrices before its "
            "activation function, expected one; leave out the setting that asks for what is there"
        )
    return names[0]


def tokenise(lm: LM, edits: Sequence[Edit], end_of_text: bool = False) -> list[TokenisedEdit]:
    """The edits in tokens.

    Args:
        lm: the model.
        edits: the edits; they need no subject.
        end_of_text: whether a target that shall become likelier ends with the token that ends a text.

    Raises:
        DataError: a prompt and its target are longer than the model's context.
        ModelError: the tokenizer has no token that ends a text.
    """
    end = [_end_of_text(lm)] if end_of_text else []
    found = [_answer(lm, edit, end if edit.direction == "likelihood" else []) for edit in edits]
    for answer in found:
        length = len(answer.prompt) + max(len(answer.target), len(answer.against))
        if length > lm.context:
            raise DataError(
                f"edit {answer.edit.id}: {length} tokens with its target, but {lm.name} takes {lm.context}; "
                "shorten the prompt"
            )
    return found


def _answer(lm: LM, edit: Edit, end: list[int]) -> TokenisedEdit:
    against = [] if edit.rival is None else lm.continuation(edit.text, edit.rival)
    return TokenisedEdit(edit, lm.encode(edit.text), lm.continuation(edit.text, edit.continuation) + end, against)


def target_positions(examples: Sequence[TokenisedEdit], loss: Loss = "target_new") -> tuple[list[int], list[int]]:
    """The rows and the columns at which the tokens of the targets are asked for, one after the other."""
    forced = loss == "target_new"
    rows = [i for i, e in enumerate(examples) for _ in e.target]
    return rows, [len(e.prompt) - 1 + (t if forced else 0) for e in examples for t in range(len(e.target))]


def log_likelihood(
    lm: LM, examples: Sequence[TokenisedEdit], *, loss: Loss = "target_new", held: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The log-probability of each token of each target, ``[tokens]``, in the order of :func:`target_positions`.

    Args:
        lm: the model.
        examples: edits in tokens.
        loss: after which tokens a token is asked for.
        held: parameters that take the place of the model's own.
    """
    log_p = target_distributions(lm, examples, loss=loss, held=held)
    tokens = torch.tensor([token for e in examples for token in e.target], device=log_p.device)
    return log_p.gather(1, tokens[:, None])[:, 0]


def target_distributions(
    lm: LM, examples: Sequence[TokenisedEdit], *, loss: Loss = "target_new", held: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The log-probabilities of all tokens where each token of each target is asked for, ``[tokens, vocabulary]``.

    Args:
        lm: the model.
        examples: edits in tokens.
        loss: after which tokens a token is asked for.
        held: parameters that take the place of the model's own.
    """
    batch = lm.batch([e.prompt + (e.target[:-1] if loss == "target_new" else []) for e in examples])
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
    logits: Tensor = call_with(lm.model, held or {}, **inputs).logits
    rows, columns = target_positions(examples, loss)
    return at_least_float32(logits[rows, columns]).log_softmax(-1)


@contextmanager
def capture_gradients(lm: LM, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Module -> what enters it in the next forward pass, and zeros that are added to what leaves it, by name.

    The gradient at the zeros is that at the output, which a model may go on to change in place (Falcon).
    """
    heard: dict[str, tuple[Tensor, Tensor]] = dict.fromkeys(names, (torch.empty(0), torch.empty(0)))

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def run(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
            heard[name] = (args[0].detach(), torch.zeros_like(output, requires_grad=True))
            return output + heard[name][1]

        return run

    handles = [lm.module(name).register_forward_hook(listen(name)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def descend(
    lm: LM,
    edits: Sequence[Edit],
    parameters: Sequence[str],
    *,
    settings: DescentSettings,
    prior: LossTerm | None = None,
    objective: Objective | None = None,
    within: Restriction | None = None,
    begun: AdamState | None = None,
) -> Trained:
    """Train copies of some parameters until the model says the targets: the last of :func:`passes`, all losses.

    Args:
        lm: the model, unchanged when this returns.
        edits: what it shall say; edits need no subject.
        parameters: the names of the parameters.
        settings: how.
        prior: a term that is added to the loss of each batch; None for none.
        objective: the loss of a batch; None for what the directions of its edits say.
        within: where the parameters may go; None for anywhere.
        begun: what Adam saw before; None where it begins.

    Raises:
        DataError, ModelError, NumericalError: as :func:`passes`.
    """
    record: list[float] = []
    descent = passes(
        lm, edits, parameters, settings=settings, prior=prior, objective=objective, within=within, begun=begun
    )
    for trained in descent:
        last = trained
        record += trained.losses
    return replace(last, losses=tuple(record))


def passes(
    lm: LM,
    edits: Sequence[Edit],
    parameters: Sequence[str],
    *,
    settings: DescentSettings,
    prior: LossTerm | None = None,
    objective: Objective | None = None,
    within: Restriction | None = None,
    begun: AdamState | None = None,
) -> Iterator[Trained]:
    """Train copies of some parameters, and give what they have become after each pass over the edits.

    Args:
        lm: the model, unchanged whenever this returns or yields; it must be the same at the next step.
        edits: what it shall say; edits need no subject.
        parameters: the names of the parameters.
        settings: how.
        prior: a term that is added to the loss of each batch; None for none.
        objective: the loss of a batch; None for what the directions of its edits say.
        within: where the parameters may go; None for anywhere.
        begun: what Adam saw before; None where it begins.

    Raises:
        DataError: a prompt and its target are longer than the model's context.
        ModelError: a parameter is quantised; the target shall end a text, and the tokenizer has no token for it.
        NumericalError: a loss is not finite; names the edits.
    """
    for name in parameters:
        require_plain(lm, name)
    examples = tokenise(lm, edits, settings.end_of_text)
    # Updates of 5e-4 are lost in half precision.
    start = {name: at_least_float32(lm.parameter(name).detach()) for name in parameters}
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = torch.optim.Adam(
        free.values(), lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, settings.beta2)
    )
    if begun is not None:
        _resume(adam, free, begun)
    training = _Training(lm, start, free, adam, settings, prior, objective, within)
    enough = training.enough(examples)
    for number, order in enumerate(_orders(len(examples), settings)):
        passed = training.run(number, [examples[i] for i in order])
        changes = {name: (free[name] - start[name]).detach() for name in parameters}
        deltas = {name: Dense(lm.as_matrix(name, c).contiguous()) for name, c in changes.items()}
        yield Trained(deltas, tuple(loss for loss, _ in passed), _seen(adam, free) or begun)
        if sum(loss * count for loss, count in passed) < enough * len(examples):
            break


def _resume(adam: torch.optim.Adam, free: Mapping[str, Tensor], begun: AdamState) -> None:
    """Give Adam what it saw before."""
    for name, tensor in free.items():
        adam.state[tensor] = {
            "step": torch.tensor(float(begun.steps)),
            "exp_avg": begun.means[name].to(tensor, copy=True),
            "exp_avg_sq": begun.squares[name].to(tensor, copy=True),
        }


def _seen(adam: torch.optim.Optimizer, free: Mapping[str, Tensor]) -> AdamState | None:
    """What Adam has seen so far, in its own tensors; None before its first step, and of an optimiser without means."""
    found = {name: adam.state.get(tensor, {}) for name, tensor in free.items()}
    states = {name: state for name, state in found.items() if "exp_avg" in state}
    if len(states) < len(free):
        return None
    return AdamState(
        steps=int(next(iter(states.values()))["step"]),
        means={name: state["exp_avg"] for name, state in states.items()},
        squares={name: state["exp_avg_sq"] for name, state in states.items()},
    )


def _end_of_text(lm: LM) -> int:
    token = lm.tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ModelError(f"{lm.name}: the tokenizer has no token that ends a text; set its eos_token")
    return token


def _orders(count: int, settings: DescentSettings) -> Iterator[list[int]]:
    """The order of the edits in each pass."""
    draw = None if settings.shuffle is None else torch.Generator().manual_seed(settings.shuffle)
    for _ in range(settings.steps):
        yield list(range(count)) if draw is None else torch.randperm(count, generator=draw).tolist()


@dataclass(frozen=True, eq=False)
class _Training:
    """Copies of parameters on their way, and what moves them."""

    lm: LM
    start: Mapping[str, Tensor]
    free: Mapping[str, Tensor]
    adam: torch.optim.Optimizer
    settings: DescentSettings
    prior: LossTerm | None
    objective: Objective | None
    within: Restriction | None

    def enough(self, examples: Sequence[TokenisedEdit]) -> float:
        """The loss below which edits have what they want."""
        return _enough(examples, self.settings) if self.objective is None else self.settings.threshold

    def run(self, number: int, examples: Sequence[TokenisedEdit]) -> list[tuple[float, int]]:
        """One pass; of each batch its loss before the update, and its size."""
        if self.settings.cosine:
            for group in self.adam.param_groups:
                group["lr"] = cosine_rate(self.settings.lr, number, self.settings.steps)
        size, passed = self.settings.batch_size, []
        batches = [examples[first : first + size] for first in range(0, len(examples), size)]
        for i, batch in enumerate(batches):
            first = i - i % self.settings.accumulate
            count = min(self.settings.accumulate, len(batches) - first)
            fresh, last = i == first, i == first + count - 1
            passed.append((self._batch(batch, count, fresh, last), len(batch)))
        return passed

    def _batch(self, examples: Sequence[TokenisedEdit], count: int, fresh: bool, last: bool) -> float:
        """The gradient of one batch of ``count``, unless its loss is small already, and a step after the last."""
        faithful = self.settings.accumulation == "faithful"
        if fresh or faithful:
            self.adam.zero_grad()
        with torch.enable_grad():
            held = {name: tensor.to(self.lm.parameter(name).dtype) for name, tensor in self.free.items()}
            if self.objective is None:
                loss = _loss(self.lm, examples, held=held, settings=self.settings)
            else:
                loss = self.objective(self.lm, examples, held)
            total = loss if self.prior is None else loss + self.prior(self.lm, held)
        value, whole = float(loss.detach()), float(total.detach())
        if not math.isfinite(whole):
            ids, names = ", ".join(e.edit.id for e in examples[:3]), ", ".join(list(self.free)[:3])
            raise NumericalError(f"the loss of edits {ids} became {whole} in training {names}; lower lr")
        if value >= self.enough(examples):
            torch.autograd.backward(total if faithful or count == 1 else total / count)
        if last and (not faithful or count == self.settings.accumulate):
            self._step()
        return value

    def _step(self) -> None:
        if self.within is not None:
            for name, tensor in self.free.items():
                tensor.grad = None if tensor.grad is None else self.within.onto(name, tensor.grad)
        self.adam.step()
        if self.within is not None and self.within.change:
            with torch.no_grad():
                for name, tensor in self.free.items():
                    tensor.copy_(self.start[name] + self.within.onto(name, tensor - self.start[name]))
        bound = self.settings.norm_constraint
        if bound is not None:
            with torch.no_grad():
                for name, tensor in self.free.items():
                    tensor.copy_(torch.clamp(tensor, self.start[name] - bound, self.start[name] + bound))


def cosine_rate(lr: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0: a cosine that would be zero after the last.

    Args:
        lr: the rate of the first epoch.
        epoch: the epoch, from 0.
        epochs: how many there are.

    Returns:
        ``lr (1 + cos(pi epoch / epochs)) / 2``.
    """
    return lr * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _enough(examples: Sequence[TokenisedEdit], settings: DescentSettings) -> float:
    """The mean loss below which a batch has what it wants."""
    floors = [floor(e.edit.direction, settings.threshold) for e in examples]
    # The mean of equal numbers may differ from them in its last digit.
    return floors[0] if len(set(floors)) == 1 else math.fsum(floors) / len(floors)


def _loss(
    lm: LM, examples: Sequence[TokenisedEdit], *, held: Mapping[str, Tensor], settings: DescentSettings
) -> Tensor:
    """The mean over edits of what each minimises, by default the mean NLL of its target's tokens.

    With ``token_mean="batch"`` the mean is weighted by the number of these tokens.
    """
    directions = [e.edit.direction for e in examples]
    weights = _weights(examples, settings)
    if set(directions) == {"likelihood"}:
        log_p = log_likelihood(lm, examples, loss=settings.loss, held=held)
        tokens = [len(e.target) if settings.normalisation == "mean" else 1 for e in examples for _ in e.target]
        owners = [i for i, e in enumerate(examples) for _ in e.target]
        share = torch.tensor([weights[i] / count for i, count in zip(owners, tokens, strict=True)], dtype=torch.float64)
        return -(log_p * share.to(log_p)).sum()
    compared = [i for i, e in enumerate(examples) if e.against]
    rows = [*examples, *(examples[i].rival for i in compared)]
    log_p = log_likelihood(lm, rows, loss=settings.loss, held=held)
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in row.target], device=log_p.device)
    each = nll(log_p, owner, len(rows), normalisation=settings.normalisation)
    target, places = each[: len(examples)], torch.tensor(compared, dtype=torch.long, device=each.device)
    against = torch.zeros_like(target).index_copy(0, places, each[len(examples) :])
    found = losses(directions, target, against)
    if settings.token_mean == "edit":
        return found.mean()
    return (found * torch.tensor(weights, dtype=torch.float64).to(found)).sum()


def _weights(examples: Sequence[TokenisedEdit], settings: DescentSettings) -> list[float]:
    """How much each edit of a batch counts; the weights sum to 1."""
    if settings.token_mean == "edit":
        return [1 / len(examples)] * len(examples)
    every = sum(len(e.target) for e in examples)
    return [len(e.target) / every for e in examples]
