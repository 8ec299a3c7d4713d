"""REMEDI: adds a learned linear map of an attribute's representation to the subject's last token.

Source: Hernandez, Li, Andreas 2023, "Inspecting and Editing Knowledge Representations in Language Models", arXiv
2304.00740, and the authors' code (evandez/REMEDI at fe16234).  Two of its slips are not followed: there the divergence
is that of a batch's last example alone (``kl=released`` does the same), and training ends with the weights of the last
epoch, not of the best.  A mention that is written during decoding is edited too, as scoring the same text would do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.editing.edit import Edit, Example
from harness.editing.editor import Learned
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range, Share
from harness.errors import DataError, NumericalError, UsageError
from harness.methods.keys import layer_at_depth
from harness.methods.steering import BlockEditor, Mentions, StatedText, mean_states, written_forms
from harness.models.activations import at_least_float32
from harness.models.lm import LM, Batch
from harness.patches.patch import Part, Patch, Step, patched

__all__ = ["Additions", "Remedi"]

Phrasings = Literal["published", "all"]
Objects = Literal["own", "relation"]

_SMALL: dict[str, object] = {
    "layer": 0,
    "phrasings": "all",
    "objects": "relation",
    "shuffle": True,
    "lam_kl": 1.0,
    "lr": 5e-3,
    "batch_size": 48,
    "patience": 3,
}


@dataclass(frozen=True)
class Remedi(BlockEditor, Learned):
    """``h <- beta h + alpha (W h_attr + b)`` at the last token of the subject's mention, after one block.

    ``h_attr`` is the mean of what the block writes over the tokens of the attribute, in the sentence that the edit
    states ("{subject} plays the tuba": ``plays the tuba``). ``W`` and ``b`` are learned (:meth:`fit`) to minimise

        - lam_m log p_E(t_m) - lam_u log(1 - p_E(t_u)) + lam_kl KL(p_0 || p_E) + lam_norm ||W h_attr + b|| + lam_ess KL'

    ``t_m`` and ``t_u`` are the first tokens of the new and of the old target, ``p_0`` and ``p_E`` the unedited and the
    edited model; KL is summed over the positions from the subject's last token to the last but one of the prompt, KL'
    is taken after "{subject} is a"; the others are read after the prompt. All are means over a batch.

    Attributes:
        layer: the block; by default one at 4 % of the depth, where GPT-J was best on CounterFact.
        mention: which mention of the subject is edited.
        alpha: the weight of what is added.
        beta: the weight of what was there.
        lam_m: the weight of the new target.
        lam_u: the weight of the old target, where an example has one.
        lam_kl: the weight of the divergence between subject and target.
        lam_norm: the weight of the direction's norm; in no published run.
        lam_ess: the weight of what else the subject is; in no published run.
        kl: ``sum`` over a batch's examples, or ``released``: of the last of them alone.
        phrasings: an example is stated as its edit is and asked as its first paraphrase is (``published``), or stated
            and asked in each of its phrasings (``all``), for sets of a few hundred examples.
        objects: an example teaches its ``own`` target, as published, or every object that the examples name for its
            relation but the one that is true, each in one of its phrasings in turn (``relation``): what is learned
            carries over to few targets that it was not learned from.
        lr: AdamW's learning rate.
        weight_decay: AdamW's decay.
        batch_size: examples of one update.
        shuffle: whether every epoch takes the examples in a new order; the published code keeps theirs.
        epochs: the most passes over the examples.
        patience: epochs without a better validation that are borne.
        holdout: the share of the examples, the last ones, that are kept for validation.
        seed: of the first ``W`` and ``b``, and of the orders.
    """

    name = "remedi"
    seams = frozenset({"activations"})
    needs_subject = True
    random = True
    exceptions: ClassVar[Mapping[str, str]] = {
        "target": "what is added is learned, and carries over only to facts like those that were learned from",
    }

    layer: Annotated[int, Range(0)] | None = None
    mention: Count = 1
    alpha: float = 1.0
    beta: float = 1.0
    lam_m: NotNegative = 1.0
    lam_u: NotNegative = 1.0
    lam_kl: NotNegative = 10.0
    lam_norm: NotNegative = 0.0
    lam_ess: NotNegative = 0.0
    kl: Literal["sum", "released"] = "sum"
    phrasings: Phrasings = "published"
    objects: Objects = "own"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 1e-2
    batch_size: Count = 16
    shuffle: bool = False
    epochs: Count = 20
    patience: Annotated[int, Range(0)] = 2
    holdout: Share = 0.1
    seed: int = 0

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # evandez/REMEDI at fe16234, the layers of its CounterFact experiments.
        "gpt-j-6b": {"layer": 1},
        "gpt2-xl": {"layer": 0},
        "gpt2": {"layer": 0},
        # The shipped models: tuned on the edit set's tuning rows, on subjects that were held out.
        "mini-llama": dict(_SMALL),
        "mini": dict(_SMALL),
    }

    def fit(self, lm: LM, train: Sequence[Example]) -> Remedi:
        """Learn ``W`` and ``b``; those of the best epoch on the examples that are held out are kept.

        Raises:
            UsageError: no example has a subject.
            DataError: a prompt is longer than the model's context.
            NumericalError: a loss is not finite.
        """
        subjects = [one for one in train if one.edit.subject]
        lessons = _lessons(lm, subjects, layer=self.at(lm), phrasings=self.phrasings, objects=self.objects)
        if not lessons:
            raise UsageError(f"{self.name}: {len(train)} examples and none with a subject; give an edit set that has")
        kept = len(lessons) - round(self.holdout * len(lessons))
        taught, judged = ([one for some in part for one in some] for part in (lessons[:kept], lessons[kept:]))
        return replace(self, learned=_train(self, lm, taught=taught or judged, kept=judged or taught))

    def layout(self, lm: LM) -> Mapping[str, Tensor]:
        """``W`` and ``b``."""
        d, dtype = lm.arch.width, torch.promote_types(lm.dtype, torch.float32)
        return {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in (("weight", (d, d)), ("bias", (d,)))
        }

    def edit(self, lm: LM, edits: Sequence[Edit], memory: object = None) -> Patch:  # noqa: ARG002
        """All edits in one hook; of several of one subject and prompt the last."""
        if not edits:
            return Patch()
        last = {(edit.subject, edit.prompt): edit for edit in edits}
        return Patch(hooks={self.block(lm): self._additions(lm, list(last.values()))})

    def edit_each(self, lm: LM, edits: Sequence[Edit]) -> list[Patch]:
        """All representations in one pass: the rows of a batch do not see each other."""
        if not edits:
            return []
        block, every = self.block(lm), self._additions(lm, edits)
        return [Patch(hooks={block: every.of([i])}) for i in range(len(edits))]

    def loss(self, lm: LM, lessons: Sequence[_Lesson], learned: Mapping[str, Tensor]) -> Tensor:
        """What is minimised, of one batch; differentiable in ``learned``.

        Args:
            lm: the model.
            lessons: the batch.
            learned: ``weight [d, d]`` and ``bias [d]`` of the editor, by name.

        Returns:
            The loss, a scalar.
        """
        weights = (self.lam_m, self.lam_u, self.lam_kl, self.lam_norm, self.lam_ess)
        terms = _terms(self, lm, lessons, learned=learned)
        return torch.stack([w * term for w, term in zip(weights, terms, strict=True) if w]).sum()

    def additions(self, lm: LM, edits: Sequence[Edit]) -> Tensor:
        """What is added for each edit, ``W h_attr + b``, ``[edits, d]``."""
        return self._additions(lm, edits).directions

    def identity(self, lm: LM) -> Remedi:
        """The editor that adds the attribute's representation itself, ``W = I`` and ``b = 0``: REMEDI (I)."""
        like = _start(lm, lm.arch.width, self.seed)
        eye = torch.eye(lm.arch.width).to(like["weight"])
        return replace(self, learned={"weight": eye, "bias": torch.zeros_like(like["bias"])})

    def at(self, lm: LM) -> int:
        """The block."""
        return layer_at_depth(lm, 0.04) if self.layer is None else self.layer

    def _additions(self, lm: LM, edits: Sequence[Edit]) -> Additions:
        known = self.knowledge(lm)
        attributes = mean_states(
            lm, [_stated(lm, edit.text, _subject(edit), edit.continuation) for edit in edits], self.at(lm)
        )
        directions = nn.functional.linear(attributes.to(known["weight"]), known["weight"], known["bias"])
        for edit, direction in zip(edits, directions, strict=True):
            if not bool(torch.isfinite(direction).all()):
                raise NumericalError(
                    f"edit {edit.id}: {self.name}'s direction at layer {self.at(lm)} is not finite; use float32, or "
                    "fit again with a lower lr"
                )
        return Additions(
            tuple(_subject(edit) for edit in edits),
            tuple(edit.prompt for edit in edits),
            tuple(written_forms(lm, edit) for edit in edits),
            directions,
            self.mention,
            self.alpha,
            self.beta,
        )


# --- the hook ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Additions(Part):
    """What is added after a block, and at whose mention; edits of one subject add up.

    Attributes:
        subjects: whom each edit is about.
        prompts: the prompt of each edit; a later edit of the same subject and prompt takes its place.
        written: for each edit the ways in which tokens write its subject.
        directions: ``W h_attr + b`` of each edit, ``[edits, d]``.
        mention: which mention of a subject is edited.
        alpha: the weight of what is added.
        beta: the weight of what was there.
    """

    subjects: tuple[str, ...]
    prompts: tuple[str, ...]
    written: tuple[tuple[tuple[int, ...], ...], ...]
    directions: Tensor
    mention: int = 1
    alpha: float = 1.0
    beta: float = 1.0

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        """A hook (:data:`harness.patches.patch.Hook`)."""
        rows, columns, who = self._mentions.find_new(step)
        return _added(hidden, rows=rows, columns=columns, directions=self._sums[who], alpha=self.alpha, beta=self.beta)

    def mentions(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The row, the column of the last token and the subject of each mention that is to be edited."""
        return self._mentions.find(step)

    def of(self, positions: Sequence[int]) -> Additions:
        """Some of the edits."""
        return replace(
            self,
            subjects=tuple(self.subjects[i] for i in positions),
            prompts=tuple(self.prompts[i] for i in positions),
            written=tuple(self.written[i] for i in positions),
            directions=self.directions[list(positions)],
        )

    def tensors(self) -> dict[str, Tensor]:
        """The directions."""
        return {"directions": self.directions}

    def settings(self) -> dict[str, Any]:
        """Subjects, prompts, tokens and weights."""
        return {
            "subjects": list(self.subjects),
            "prompts": list(self.prompts),
            "written": [[list(tokens) for tokens in ways] for ways in self.written],
            "mention": self.mention,
            "alpha": self.alpha,
            "beta": self.beta,
        }

    @classmethod
    def restore(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Additions:
        """The hook again."""
        return cls(
            tuple(settings["subjects"]),
            tuple(settings["prompts"]),
            tuple(tuple(map(tuple, ways)) for ways in settings["written"]),
            tensors["directions"].to(lm.device),
            settings["mention"],
            settings["alpha"],
            settings["beta"],
        )

    def joined(self, later: Additions) -> Additions:
        """The edits of both; a later one replaces an earlier one of the same subject and prompt."""
        replaced = set(zip(later.subjects, later.prompts, strict=True))
        facts = zip(self.subjects, self.prompts, strict=True)
        kept = self.of([i for i, fact in enumerate(facts) if fact not in replaced])
        return replace(
            later,
            subjects=kept.subjects + later.subjects,
            prompts=kept.prompts + later.prompts,
            written=kept.written + later.written,
            directions=torch.cat([kept.directions, later.directions.to(kept.directions)]),
        )

    @cached_property
    def _place(self) -> dict[str, int]:
        """The row of each subject."""
        return {subject: i for i, subject in enumerate(dict.fromkeys(self.subjects))}

    @cached_property
    def _sums(self) -> Tensor:
        """What is added for each subject, ``[subjects, d]``."""
        rows = torch.tensor([self._place[subject] for subject in self.subjects], device=self.directions.device)
        zeros = self.directions.new_zeros(len(self._place), self.directions.shape[1])
        return zeros.index_add(0, rows, self.directions)

    @cached_property
    def _mentions(self) -> Mentions:
        """Where a text names a subject; of one that several edits are about, every way in which they write it."""
        ways: list[dict[tuple[int, ...], None]] = [{} for _ in self._place]
        for subject, written in zip(self.subjects, self.written, strict=True):
            ways[self._place[subject]].update(dict.fromkeys(written))
        return Mentions(tuple(map(tuple, ways)), self.mention, self.directions.device)


def _added(hidden: Tensor, *, rows: Tensor, columns: Tensor, directions: Tensor, alpha: float, beta: float) -> Tensor:
    """``beta h + alpha d`` at some positions of ``hidden [batch, new, d]``; all others stay bitwise as they are."""
    rows, columns = rows.to(hidden.device), columns.to(hidden.device)
    kind = torch.promote_types(hidden.dtype, directions.dtype)
    there = beta * hidden[rows, columns].to(kind) + alpha * directions.to(hidden.device, kind)
    return hidden.index_put((rows, columns), there.to(hidden.dtype))


def _subject(edit: Edit) -> str:
    if edit.subject is None:
        raise UsageError(f"edit {edit.id}: remedi needs a subject; give rows of prompt, subject and target")
    return edit.subject


# --- what an attribute is ---------------------------------------------------------------------------------------------


def _stated(lm: LM, prompt: str, subject: str, target: str) -> StatedText:
    """A prompt with its target; the attribute is what follows the subject's last mention, without punctuation around.

    Args:
        lm: the model.
        prompt: names the subject.
        subject: the subject.
        target: with its leading space; it is the attribute where nothing else follows the subject.
    """
    text = prompt + target
    attribute = text[text.rindex(subject) + len(subject) :].strip(",-;: ") or target.strip()
    return StatedText(lm.encode(text), *lm.span(text, attribute, text.rindex(attribute)))


# --- learning ---------------------------------------------------------------------------------------------------------


class _Lesson(NamedTuple):
    """An example in tokens.

    Attributes:
        name: the id of its edit.
        ids: the prompt.
        at: the position of the subject's last token in it.
        wanted: the first token of the new target, ``t_m``.
        old: the first token of the old target, ``t_u``.
        essence: "{subject} is a".
        essence_at: the position of the subject's last token in that.
        attribute: ``h_attr [d]``.
    """

    name: str
    ids: list[int]
    at: int
    wanted: int
    old: int | None
    essence: list[int]
    essence_at: int
    attribute: Tensor


def _lessons(
    lm: LM, train: Sequence[Example], *, layer: int, phrasings: Phrasings, objects: Objects = "own"
) -> list[list[_Lesson]]:
    """What is learned from each example: ways to state a fact, each with a way to ask for it."""
    known = [_phrased(example) for example in train]
    named = _named(train, known) if objects == "relation" else {}
    pairs = [
        _paired(texts, phrasings, named.get(example.edit.relation or "", ()), place)
        for place, (example, texts) in enumerate(zip(train, known, strict=True))
    ]
    rows = [
        _stated(lm, stated.prompt, _subject(example.edit), stated.continuation)
        for example, mine in zip(train, pairs, strict=True)
        for stated, _ in mine
    ]
    attributes = iter(mean_states(lm, rows, layer) if rows else ())
    return [
        [
            _lesson(lm, example.edit, asked=asked, attribute=h)
            for (_, asked), h in zip(mine, islice(attributes, len(mine)), strict=True)
        ]
        for example, mine in zip(train, pairs, strict=True)
    ]


def _named(train: Sequence[Example], known: Sequence[Sequence[_Phrasing]]) -> dict[str, tuple[str, ...]]:
    """The objects of each relation: new and old targets of its examples."""
    found: dict[str, dict[str, None]] = {}
    for example, texts in zip(train, known, strict=True):
        if example.edit.relation and _repeats(texts):
            objects = (texts[0].target, texts[0].old)
            found.setdefault(example.edit.relation, {}).update(dict.fromkeys(o for o in objects if o))
    return {relation: tuple(objects) for relation, objects in found.items()}


def _repeats(texts: Sequence[_Phrasing]) -> bool:
    """Whether all phrasings have one answer; what entails another than it states can only be stated as it is."""
    return all(text.target == texts[0].target for text in texts)


def _paired(
    texts: Sequence[_Phrasing], phrasings: Phrasings, objects: Sequence[str], turn: int
) -> list[tuple[_Phrasing, _Phrasing]]:
    """What states and what asks for a fact.

    Args:
        texts: the phrasings of one example.
        phrasings: which of them state, and which ask.
        objects: what else may be taught; the object that is true is left out.
        turn: with which pair of phrasings the first of these begins.
    """
    every = phrasings == "all" and _repeats(texts)
    stated, asked = (texts, texts) if every else (texts[:1], texts[1:2] or texts)
    pairs = [(one, other) for one in stated for other in asked]
    others = [o for o in objects if o != texts[0].old] if _repeats(texts) else []
    if not others:
        return pairs
    chosen = [pairs[(turn + k) % len(pairs)] for k in range(len(others))]
    return [(one._replace(target=o), other._replace(target=o)) for o, (one, other) in zip(others, chosen, strict=True)]


class _Phrasing(NamedTuple):
    """A way to ask for what an example teaches.

    Attributes:
        prompt: names the subject.
        target: what is right now.
        old: what was right before, if known.
    """

    prompt: str
    target: str
    old: str | None

    @property
    def continuation(self) -> str:
        """The target with the space that separates it from the prompt."""
        return self.target if self.target.startswith(" ") else f" {self.target}"


def _phrased(example: Example) -> list[_Phrasing]:
    """The prompt of an example, and its paraphrases that name the subject, without what stands in front of them."""
    edit, subject = example.edit, _subject(example.edit)
    return [
        _Phrasing(edit.text, edit.target, edit.target_old),
        *(
            _Phrasing(_bare(probe.prompt, subject), probe.target_new, probe.target_true or None)
            for probe in example.of("paraphrase")
            if subject in probe.prompt
        ),
    ]


def _lesson(lm: LM, edit: Edit, *, asked: _Phrasing, attribute: Tensor) -> _Lesson:
    subject, prompt, ids = _subject(edit), asked.prompt, lm.encode(asked.prompt)
    if len(ids) > lm.context:
        raise DataError(f"example {edit.id}: its prompt has {len(ids)} tokens, but {lm.name} takes {lm.context}")
    essence = f"{subject} is a"
    return _Lesson(
        edit.id,
        ids,
        lm.span(prompt, subject)[1] - 1,
        lm.continuation(prompt, asked.continuation)[0],
        lm.continuation(prompt, f" {asked.old}")[0] if asked.old else None,
        lm.encode(essence),
        lm.span(essence, subject, 0)[1] - 1,
        attribute,
    )


def _bare(prompt: str, subject: str) -> str:
    """A prompt from the sentence on that first names the subject; a simple form of the authors' conversion."""
    before = prompt[: prompt.index(subject)]
    return prompt[max(before.rfind("\n") + 1, before.rfind(". ") + 2 if ". " in before else 0) :]


class _Terms(NamedTuple):
    """The parts of the loss, in the order of the class's formula, each with the sign it has there."""

    wanted: Tensor
    old: Tensor
    kl: Tensor
    norm: Tensor
    essence: Tensor


def _terms(method: Remedi, lm: LM, lessons: Sequence[_Lesson], *, learned: Mapping[str, Tensor]) -> _Terms:
    """The parts of the loss of one batch; one that has no weight is zero."""
    attributes = torch.stack([lesson.attribute for lesson in lessons]).to(learned["weight"])
    directions = nn.functional.linear(attributes, learned["weight"], learned["bias"])
    batch = lm.batch([lesson.ids for lesson in lessons])
    at = torch.tensor([lesson.at for lesson in lessons])
    edited = _logits(method, lm, batch, at=at, directions=directions)
    last = edited[torch.arange(len(lessons)), batch.lengths.to(edited.device) - 1]
    zero = directions.new_zeros(())
    return _Terms(
        -_log_p(last, [lesson.wanted for lesson in lessons]).mean().to(zero),
        _unlikelihood(last, [lesson.old for lesson in lessons]).to(zero) if method.lam_u else zero,
        _divergence(method, lm, lessons, batch=batch, edited=edited).to(zero) if method.lam_kl else zero,
        directions.norm(dim=1).mean() if method.lam_norm else zero,
        _essence(method, lm, lessons, directions=directions).to(zero) if method.lam_ess else zero,
    )


def _logits(method: Remedi, lm: LM, batch: Batch, *, at: Tensor, directions: Tensor | None) -> Tensor:
    """The logits of a batch, at least in float32, with the directions added at the subjects' last tokens."""
    rows = torch.arange(len(at))

    def add(hidden: Tensor, _step: Step) -> Tensor:
        assert directions is not None
        return _added(hidden, rows=rows, columns=at, directions=directions, alpha=method.alpha, beta=method.beta)

    hooks = {} if directions is None else {method.block(lm): add}
    with patched(lm, Patch(hooks=hooks)):
        logits: Tensor = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return at_least_float32(logits)


def _log_p(logits: Tensor, tokens: Iterable[int]) -> Tensor:
    """The log-probability of one token in each row of ``logits [rows, vocabulary]``."""
    wanted = torch.tensor(list(tokens), device=logits.device)
    return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]


def _unlikelihood(logits: Tensor, tokens: Sequence[int | None]) -> Tensor:
    """``-mean log(1 - p(t_u))`` over the rows that have one; by the sum of all others, as ``1 - p`` may round to 0."""
    rows = [row for row, token in enumerate(tokens) if token is not None]
    if not rows:
        return logits.new_zeros(())
    some = logits[rows]
    old = torch.tensor([token for token in tokens if token is not None], device=logits.device)
    others = some.scatter(1, old[:, None], -math.inf)
    return (some.logsumexp(-1) - others.logsumexp(-1)).mean()


def _divergence(method: Remedi, lm: LM, lessons: Sequence[_Lesson], *, batch: Batch, edited: Tensor) -> Tensor:
    """``1/B sum_b sum_i KL(p_0(.|i) || p_E(.|i))``, or the last ``b`` alone, as released."""
    spans = [(b, range(lesson.at, len(lesson.ids) - 1)) for b, lesson in enumerate(lessons)]
    spans = [(b, span) for b, span in spans if span]
    if method.kl == "released":
        spans = spans[-1:]
    rows, columns = [b for b, span in spans for _ in span], [i for _, span in spans for i in span]
    with torch.no_grad():
        unedited = _logits(method, lm, batch, at=torch.tensor([]), directions=None)[rows, columns].log_softmax(-1)
    changed = edited[rows, columns].log_softmax(-1)
    return nn.functional.kl_div(changed, unedited, reduction="sum", log_target=True) / len(lessons)


def _essence(method: Remedi, lm: LM, lessons: Sequence[_Lesson], *, directions: Tensor) -> Tensor:
    """``mean KL(p_0 || p_E)`` after "{subject} is a"."""
    batch = lm.batch([lesson.essence for lesson in lessons])
    rows, last = torch.arange(len(lessons)), batch.lengths.cpu() - 1
    with torch.no_grad():
        unedited = _logits(method, lm, batch, at=torch.tensor([]), directions=None)[rows, last].log_softmax(-1)
    at = torch.tensor([lesson.essence_at for lesson in lessons])
    changed = _logits(method, lm, batch, at=at, directions=directions)[rows, last].log_softmax(-1)
    return nn.functional.kl_div(changed, unedited, reduction="batchmean", log_target=True)


def _start(lm: LM, width: int, seed: int) -> dict[str, Tensor]:
    """Torch's own first values of a linear map: uniform within ``1 / sqrt(d)``; drawn on the processor."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(lm.dtype, torch.float32)
    weight, bias = (torch.rand(*shape, generator=generator) * 2 - 1 for shape in ((width, width), (width,)))
    return {name: (t / width**0.5).to(lm.device, dtype) for name, t in (("weight", weight), ("bias", bias))}


def _train(
    method: Remedi,
    lm: LM,
    *,
    taught: Sequence[_Lesson],
    kept: Sequence[_Lesson],
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """``W`` and ``b`` of the epoch with the least loss on ``kept``, the untrained ones among them."""
    first = start or _start(lm, len(taught[0].attribute), method.seed)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in first.items()}
    adam = torch.optim.AdamW(learned.values(), lr=method.lr, weight_decay=method.weight_decay)
    best, least, waited = _copy(learned), _validate(method, lm, lessons=kept, learned=learned), 0
    draw = torch.Generator().manual_seed(method.seed)
    with method.progress(lm, method.epochs) as report:
        for epoch in range(method.epochs):
            order = torch.randperm(len(taught), generator=draw).tolist() if method.shuffle else range(len(taught))
            for batch in _batches([taught[i] for i in order], method.batch_size):
                with torch.enable_grad():
                    loss = method.loss(lm, batch, learned)
                _require_finite(method, lm, loss, batch)
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
            found = _validate(method, lm, lessons=kept, learned=learned)
            waited = 0 if found < least else waited + 1
            if found < least:
                best, least = _copy(learned), found
            report(epoch + 1, f"loss {found:.3f}, best {least:.3f}")
            if waited > method.patience:
                break
    return best


def _copy(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values that further training leaves alone."""
    return {name: tensor.detach().clone() for name, tensor in learned.items()}


def _validate(method: Remedi, lm: LM, *, lessons: Sequence[_Lesson], learned: Mapping[str, Tensor]) -> float:
    """The mean loss of the batches."""
    with torch.no_grad():
        losses = [float(method.loss(lm, batch, learned)) for batch in _batches(lessons, method.batch_size)]
    return sum(losses) / len(losses)


def _batches(lessons: Sequence[_Lesson], size: int) -> list[Sequence[_Lesson]]:
    return [lessons[i : i + size] for i in range(0, len(lessons), size)]


def _require_finite(method: Remedi, lm: LM, loss: Tensor, batch: Sequence[_Lesson]) -> None:
    if not math.isfinite(float(loss.detach())):
        ids = ", ".join(lesson.name for lesson in batch[:3])
        raise NumericalError(
            f"{method.name}: the loss of examples {ids} became {float(loss.detach())} at layer {method.at(lm)}; "
            "lower lr, or use float32"
        )
