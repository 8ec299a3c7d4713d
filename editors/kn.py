"""KN: add the target's embedding, less the old answer's, to the values of the neurons that the old answer rests on.

Source: Dai, Dong, Hao, Sui, Chang, Wei 2022, "Knowledge Neurons in Pretrained Transformers", arXiv 2104.08696, section
3; the implementation of EleutherAI (knowledge-neurons at 7146ed3) as ROME's baseline uses it (kmeng01/rome at 448f8fe,
baselines/kn), whose numbers the edit follows: less twice the embedding of the model's answer, plus that of each token
of the target.

A neuron is one input of a layer's down-projection, its activation as in the paper.  Their code scales what enters the
activation function instead (``neuron="pre_activation"``), which a gated feed-forward part has no one of, and asks for
every token of an old answer at the one position after the prompt (``position="fixed"``).
Neurons are to be refined over paraphrases of a prompt, which an editor does not see; ``refine`` takes the prompt behind
context templates, or in ``paraphrases`` that the user gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.editing.editor import Editor
from harness.editing.hyperparameters import Count, NotNegative, Share, require_effect
from harness.errors import DataError, ModelError, NumericalError, UsageError
from harness.methods.descent import first_matrix
from harness.methods.keys import Unedited, take_unedited, template_notes
from harness.models.activations import at_least_float32, capture_activations
from harness.models.lm import LM
from harness.patches.delta import LowRank
from harness.patches.patch import Patch, patched

__all__ = ["KnowledgeNeurons", "Neuron", "attribution", "greedy"]

Site = Literal["activation", "pre_activation"]
"""Which numbers of a feed-forward part are its neurons."""

Neuron = tuple[int, int]
"""Layer and index."""

_ROWS = 64  # scaled copies of one prompt in a forward pass


def attribution(lm: LM, ids: Sequence[int], *, token: int, steps: int, neuron: Site = "activation") -> Tensor:
    """Integrated gradients of a token's probability with respect to each neuron at the last position.

    ``IG_i = a_i / m sum_j dp/da_i (alpha_j a)`` with ``m`` points ``alpha`` from 0 to 1, both included; the other
    neurons of the layer are scaled alike, those of other layers are left to follow (paper, equation 4).

    Args:
        lm: the model.
        ids: the tokens of the prompt.
        token: the token whose probability is explained.
        steps: ``m``.
        neuron: whether a neuron is the ``activation`` that enters the down-projection, or what is there before the
            activation function.

    Returns:
        ``[layers, f]``; zero behind the last neuron of a layer that has fewer than another.

    Raises:
        NumericalError: an attribution is not finite; names the layer.
        ModelError: a feed-forward part has not one matrix whose output enters its activation function.
    """
    entering = neuron == "activation"
    names = [lm.arch.down_of(n) if entering else first_matrix(lm, n, asker="kn") for n in range(lm.arch.layers)]
    inputs, outputs = (names, []) if entering else ([], names)
    noted = capture_activations(lm, lm.batch([ids]), inputs=inputs, outputs=outputs)
    seen = noted.inputs if entering else noted.outputs
    found, cuts = [], tuple(range(_ROWS, steps, _ROWS))
    for layer, name in enumerate(names):
        activation = seen[name][0, -1]
        points = torch.linspace(0, 1, steps, device=activation.device, dtype=activation.dtype)
        slopes = [
            _slope(lm, ids, token=token, name=name, scaled=part[:, None] * activation, entering=entering)
            for part in points.tensor_split(cuts)
        ]
        found.append(at_least_float32(activation) / steps * torch.stack(slopes).sum(0))
        if not bool(torch.isfinite(found[-1]).all()):
            raise NumericalError(f"the attribution of layer {layer} is not finite; load the model in float32")
    return nn.utils.rnn.pad_sequence([row.to(lm.device) for row in found], batch_first=True)


def _slope(lm: LM, ids: Sequence[int], *, token: int, name: str, scaled: Tensor, entering: bool) -> Tensor:
    """The gradient of a token's probability at what enters or leaves a module, ``[f]``, summed over ``[rows, f]``."""
    scaled = scaled.detach().requires_grad_()
    batch = lm.batch([ids] * len(scaled))
    with _replaced(lm, name, rows=scaled, length=len(ids), entering=entering), torch.enable_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, -1]
        (gradient,) = torch.autograd.grad(at_least_float32(logits).softmax(-1)[:, token].sum(), scaled)
    return at_least_float32(gradient).sum(0)


@contextmanager
def _replaced(lm: LM, name: str, *, rows: Tensor, length: int, entering: bool) -> Iterator[None]:
    """Let ``rows [batch, f]`` enter, or leave, a module at the last position of each row of a batch."""

    def swap(hidden: Tensor) -> Tensor:
        # OPT flattens rows and columns inside its blocks.
        whole = hidden.reshape(len(rows), length, -1)
        return torch.cat([whole[:, :-1], rows[:, None]], 1).reshape(hidden.shape)

    module = lm.module(name)
    if entering:
        handle = module.register_forward_pre_hook(lambda _module, args: (swap(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _module, _args, output: swap(output))
    try:
        yield
    finally:
        handle.remove()


def greedy(lm: LM, ids: Sequence[int], count: int) -> list[int]:
    """The next tokens that the model finds most probable, as many as fit into its context.

    Args:
        lm: the model.
        ids: the tokens so far.
        count: how many are wanted at most.
    """
    grown = list(ids)
    while len(grown) < min(len(ids) + count, lm.context):
        with torch.no_grad():
            grown.append(int(lm.model(input_ids=lm.batch([grown]).ids, use_cache=False).logits[0, -1].argmax()))
    return grown[len(ids) :]


@dataclass(frozen=True)
class KnowledgeNeurons(Editor):
    """Find the neurons of the old answer by integrated gradients, then rewrite their values.

    Attributes:
        steps: points of the integration, from 0 to 1.
        threshold: the share of the largest attribution above which a neuron is kept (``adaptive_threshold``).
        refine: whether only neurons are kept that are found behind several contexts.
        share: the share of the contexts in more than which a neuron must be found (``p``).
        paraphrases: prompts that ask for the same, ``{}`` for the subject, behind which neurons are refined instead of
            behind context templates; the edit's own prompt counts beside them.
        neuron: whether a neuron is the ``activation`` that enters the down-projection, or what is there before the
            activation function (``pre_activation``, their code).
        position: where a token of the old answer is asked for: after those before it (``growing``), or ``fixed``, at
            the prompt's last token (their code).
        remove: how often the embedding of the model's answer is taken away.
        add: how often that of each token of the target is added.
        contexts: context templates for ``refine``, the first ``{}``; by default sampled from the unedited model.
        seed: the seed of the context templates.
    """

    name = "kn"
    batch = False
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "it computes no loss: it adds the target's embedding to neurons whose activation, in a gated "
        "feed-forward part, may as well be negative"
    }

    steps: Count = 20
    threshold: Share = 0.2
    refine: bool = False
    share: Share = 0.4
    paraphrases: tuple[str, ...] | None = None
    neuron: Site = "activation"
    position: Literal["growing", "fixed"] = "growing"
    remove: NotNegative = 2.0
    add: NotNegative = 1.0
    contexts: tuple[str, ...] | None = None
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # kmeng01/rome, hparams/KN.
        "gpt2-xl": {"threshold": 0.2},
        # zjunlp/EasyEdit at 14cea82, hparams/KN.
        "gpt-j-6b": {"threshold": 0.1},
        # There one step, at which nothing is integrated: the point 0 alone.
        "llama-2-7b-hf": {"threshold": 0.2, "steps": 1},
        # The shipped models: tuned on the edit set's tuning rows; as published, mini says the target everywhere.
        "mini-llama": {"remove": 1.0, "add": 8.0},
        "mini": {"threshold": 0.5, "remove": 1.0, "add": 1.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.refine:
            require_effect(self, ["paraphrases"], where="without --set refine=true")

    def places(self, lm: LM) -> Sequence[str]:
        """All down-projections: a neuron may be in any layer."""
        return [lm.arch.down_of(layer) for layer in range(lm.arch.layers)]

    def require(self, lm: LM) -> None:
        """See that what is added to a value can be taken from the output embedding.

        Raises:
            ModelError: its rows are of another size than the residual stream, or a layer has no down-projection.
        """
        super().require(lm)
        size = lm.matrix(f"{lm.arch.head}.weight").shape[1]
        if size != lm.arch.width:
            raise ModelError(
                f"{lm.name}: the rows of its output embedding have {size} numbers, its residual stream "
                f"{lm.arch.width}; kn needs both alike, choose another editor"
            )

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:
        """One edit after the other; the memory holds the context templates."""
        if not edits:
            return Patch(memory=memory)
        prior = self._prior(lm, memory)
        total = Patch(memory=prior)
        for edit in edits:
            with patched(lm, total):
                change = self._change(lm, edit, prior.contexts if self.refine else prior.contexts[:1])
            total = total + change.remember(prior)
        return total

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """Independent edits with the same templates."""
        prior = self._prior(lm, None) if edits else None
        return [self.edit(lm, [edit], prior) for edit in edits]

    def label(self) -> str:
        """The name; says so where neurons are refined."""
        return f"{self.name}-refined" if self.refine else self.name

    def notes(self, lm: LM) -> Mapping[str, object]:
        """The context templates, where they are used."""
        return template_notes(lm, "memit", seed=self.seed, given=self.contexts) if self.refine else {}

    def _prior(self, lm: LM, memory: object) -> Unedited:
        given = self.contexts if self.refine else ("{}",)
        return take_unedited(lm, memory, kind="memit", layers=(), seed=self.seed, tokens=1, given=given)

    def _change(self, lm: LM, edit: Edit, around: Sequence[str]) -> Patch:
        """The change of the value rows for one edit: the same vector for each neuron, so of rank one in each layer."""
        found = self._neurons(lm, edit, around)
        vector = self._vector(lm, edit)
        weights = {}
        for layer in sorted({layer for layer, _ in found}):
            chosen = torch.zeros(1, lm.arch.each[layer].inner, device=vector.device, dtype=vector.dtype)
            chosen[0, [index for at, index in found if at == layer]] = 1.0
            weights[lm.down(layer)] = LowRank(vector[:, None], chosen)
        return Patch(weights)

    def _neurons(self, lm: LM, edit: Edit, around: Sequence[str]) -> list[Neuron]:
        """The neurons of the old answer that are found behind more than a share of the contexts, ascending."""
        counts: Counter[Neuron] = Counter()
        prompts = self._prompts(edit, around)
        for prompt in prompts:
            scores = self._scores(lm, edit, lm.encode(prompt))
            if float(scores.max()) > 0:
                above = (scores > self.threshold * scores.max()).nonzero()
                counts.update((int(layer), int(index)) for layer, index in above)
        least = self.share * len(prompts) if self.refine else 0
        return sorted(neuron for neuron, count in counts.items() if count > least)

    def _prompts(self, edit: Edit, around: Sequence[str]) -> list[str]:
        """The prompts behind which neurons are looked for; the edit's own is the first."""
        if self.paraphrases is None or not self.refine:
            return [edit.behind(template) for template in around]
        if edit.subject is None:
            raise UsageError(f"edit {edit.id}: it names no subject for the paraphrases; give one, or leave them out")
        others = [edit.before + one.replace("{}", edit.subject) + edit.after for one in self.paraphrases]
        return [edit.text, *(text for text in others if text != edit.text)]

    def _scores(self, lm: LM, edit: Edit, prompt: Sequence[int]) -> Tensor:
        """The mean attribution over the tokens of the old answer, ``[layers, f]``.

        The old answer is the edit's, or what the model says, as long as the target. The prompt grows by the model's
        own tokens, as their code means to do.
        """
        known = lm.continuation(edit.text, edit.says(edit.target_old.strip())) if edit.target_old else []
        said = greedy(lm, prompt, len(known or self._target(lm, edit)))
        if len(said) < len(known):
            raise DataError(
                f"edit {edit.id}: {len(prompt) + len(known)} tokens with the old answer, but {lm.name} takes "
                f"{lm.context}; shorten the prompt"
            )
        parts = []
        for i, token in enumerate(known or said):
            ids = [*prompt, *said[:i]] if self.position == "growing" else list(prompt)
            parts.append(attribution(lm, ids, token=token, steps=self.steps, neuron=self.neuron))
        return torch.stack(parts).mean(0)

    def _vector(self, lm: LM, edit: Edit) -> Tensor:
        """``-remove E[answer] + add sum_t E[target_t]`` in rows ``E`` of the output embedding, ``[d]``."""
        embedding = lm.matrix(f"{lm.arch.head}.weight")
        (answer,) = greedy(lm, lm.encode(edit.text), 1)
        target = at_least_float32(embedding[self._target(lm, edit)]).sum(0)
        return self.add * target - self.remove * at_least_float32(embedding[answer])

    def _target(self, lm: LM, edit: Edit) -> list[int]:
        return lm.continuation(edit.text, edit.continuation)
