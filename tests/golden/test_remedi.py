"""REMEDI against the authors' code (evandez/REMEDI at fe16234), on a tiny GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import remedi
from editors.remedi import Remedi
from harness.editing.edit import Edit, Example, Probe
from harness.models.lm import LM
from harness.patches.patch import patched
from harness.studies.remedi.asking import hidden_states, mention

FOLDER = "J_remedi_gpt2"
REL = {"fp64": 1e-6, "fp32": 2e-4}
JSON = {"fp64": 1e-8, "fp32": 1e-5}
PRECISIONS = pytest.mark.parametrize("precision", ["fp64", "fp32"])
PROMPTS = ["{} was born in", "The mother tongue of {} is", "The chief executive of {} is", "{} plays"]
TARGETS = ["Rome", "Finnish", "Ada Velmont", "the flute"]
"""What the four contexts of the folder are made of."""

Close = Callable[..., None]


def train(golden: Any) -> list[Example]:
    """The four samples; the prompt that is learned from is the paraphrase."""
    made = []
    for row, prompt, target in zip(golden.json(f"{FOLDER}/inputs.json")["samples"], PROMPTS, TARGETS, strict=True):
        edit = Edit(row["id"], prompt, row["entity"], target, row["target_unmediated"])
        assert f"{edit.text} {target}" == row["context"]
        probe = Probe(edit.id, "paraphrase", row["prompt"], target, row["target_unmediated"])
        made.append(Example(edit, (probe,)))
    return made


def editor(golden: Any, precision: str, **settings: Any) -> Remedi:
    """The editor with the W and b of the folder, as the loss of the release is."""
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[precision]
    given = golden.tensors(f"{FOLDER}/inputs.safetensors")
    learned = {"weight": given["W"].to(dtype), "bias": given["b"].to(dtype)}
    return Remedi(layer=1, kl="released", holdout=0.0, learned=learned, **settings)


def stated_in(lm: LM, edit: Edit) -> Any:
    return remedi._stated(lm, edit.text, edit.subject or "", edit.continuation)


def learned_from(lm: LM, examples: list[Example]) -> list[Any]:
    return [lesson for some in remedi._lessons(lm, examples, layer=1, phrasings="published") for lesson in some]


def known(method: Remedi) -> dict[str, Tensor]:
    assert method.learned is not None
    return dict(method.learned)


def expected(golden: Any, precision: str) -> dict[str, Tensor]:
    found = golden.tensors(f"{FOLDER}/expected.safetensors")
    return {key.removeprefix(f"{precision}/"): value for key, value in found.items() if key.startswith(precision)}


def test_spans_and_targets(golden):
    lm, said = golden.lm("tiny-gpt2", "fp64"), golden.json(f"{FOLDER}/expected.json")["ranges_and_ids"]
    examples = train(golden)
    lessons = learned_from(lm, examples)
    assert [len(lesson.ids) for lesson in lessons] == said["prompt.length"]
    assert [[lesson.at, lesson.at + 1] for lesson in lessons] == said["prompt.entity.token_range.last"]
    assert [lesson.wanted for lesson in lessons] == said["target_mediated.token_id"]
    assert [lesson.old for lesson in lessons] == said["target_unmediated.token_id"]
    stated = [stated_in(lm, example.edit) for example in examples]
    assert [len(s.ids) for s in stated] == said["context.length"]
    assert [[s.begin, s.end] for s in stated] == said["context.attribute.token_range"]
    entities = [str(example.edit.subject) for example in examples]
    prompts = [probe.prompt for example in examples for probe in example.probes]
    assert [len(lm.encode(entity)) for entity in entities] == said["entity.length"]
    for texts, name in ((entities, "entity.entity"), (prompts, "prompt.entity")):
        found = [lm.span(text, entity, text.index(entity)) for text, entity in zip(texts, entities, strict=True)]
        assert [list(place) for place in found] == said[f"{name}.token_range"]


@PRECISIONS
def test_representations_and_directions(golden, close, precision):
    lm, theirs = golden.lm("tiny-gpt2", precision), expected(golden, precision)
    edits = [example.edit for example in train(golden)]
    found = remedi.mean_states(lm, [stated_in(lm, edit) for edit in edits], 1)
    close(found, theirs["context.attribute.hiddens.1.average"], REL[precision], "h_attr")
    (hook,) = editor(golden, precision).edit(lm, edits).hooks.values()
    close(hook.directions, theirs["direction"], REL[precision], "direction")


@PRECISIONS
def test_representations_that_are_classified(golden, close, precision):
    """Of an entity that stands alone, and of the last token of an attribute, at the edited layer."""
    lm, theirs = golden.lm("tiny-gpt2", precision), expected(golden, precision)
    edits = [example.edit for example in train(golden)]
    alone = [(str(edit.subject), mention(lm, str(edit.subject), entity=str(edit.subject), which=1)) for edit in edits]
    close(hidden_states(lm, alone, 1), theirs["entity.entity.hiddens.1.last"], REL[precision], "h_e")
    stated = [stated_in(lm, edit) for edit in edits]
    last = [(f"{edit.text}{edit.continuation}", found.end - 1) for edit, found in zip(edits, stated, strict=True)]
    close(hidden_states(lm, last, 1), theirs["context.attribute.hiddens.1.last"], REL[precision], "last of h_attr")
    whole = [remedi.StatedText(lm.encode(text), 0, at + 1) for text, at in alone]
    close(remedi.mean_states(lm, whole, 1), theirs["entity.entity.hiddens.1.average"], REL[precision], "mean")


@PRECISIONS
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.25)])
def test_edited_logits(golden, close, precision, alpha, beta):
    """Of the four prompts in one batch, each with its own subject, and each edit alone."""
    lm, theirs = golden.lm("tiny-gpt2", precision), expected(golden, precision)
    examples, method = train(golden), editor(golden, precision, alpha=alpha, beta=beta)
    edits = [example.edit for example in examples]
    prompts = [probe.prompt for example in examples for probe in example.probes]
    close(last_logits(lm, prompts), theirs["unedited_last_logits"], REL[precision], "unedited")
    with patched(lm, method.edit(lm, edits)):
        together = last_logits(lm, prompts)
    close(together, theirs[f"edited_last_logits/alpha{alpha}_beta{beta}"], REL[precision], "edited")
    for row, patch in enumerate(method.edit_each(lm, edits)):
        with patched(lm, patch):
            alone = last_logits(lm, prompts)[row]
        close(alone, together[row], REL[precision], f"edit {row} alone")


def last_logits(lm: LM, prompts: list[str]) -> Tensor:
    batch = lm.batch([lm.encode(prompt) for prompt in prompts])
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    return logits[torch.arange(len(prompts)), batch.lengths - 1]


@PRECISIONS
def test_loss_terms(golden, precision):
    lm, said = golden.lm("tiny-gpt2", precision), golden.json(f"{FOLDER}/expected.json")["loss_terms"][precision]
    method, lessons = editor(golden, precision), learned_from(lm, train(golden))
    every = replace(method, lam_norm=1.0, lam_ess=1.0)
    terms = remedi._terms(every, lm, lessons, learned=known(method))
    names = ["mediated", "unmediated", "kl_as_released", "norm", "essence"]
    for name, term in zip(names, terms, strict=True):
        assert float(term) == pytest.approx(said[name], rel=JSON[precision]), name
    total = {"default_total": method, "no_prior_total": replace(method, lam_u=0.0)}
    for name, one in total.items():
        assert float(one.loss(lm, lessons, known(method))) == pytest.approx(said[name], rel=JSON[precision])


@PRECISIONS
def test_the_divergence_of_a_batch_is_the_sum_of_its_examples(golden, precision):
    """The plain meaning, from the authors' sums of each example; the released code keeps the last one only."""
    lm, said = golden.lm("tiny-gpt2", precision), golden.json(f"{FOLDER}/expected.json")["loss_terms"][precision]
    lessons = learned_from(lm, train(golden))
    near = JSON[precision]
    each = said["kl_each_example_alone"]
    for kl, value in (("sum", sum(each) / 4), ("released", each[-1] / 4)):
        method = replace(editor(golden, precision), kl=kl)
        found = remedi._terms(method, lm, lessons, learned=known(method)).kl
        assert float(found) == pytest.approx(value, rel=near), kl


@PRECISIONS
def test_gradients_and_three_steps(golden, close, precision):
    lm, theirs = golden.lm("tiny-gpt2", precision), expected(golden, precision)
    method, lessons = editor(golden, precision), learned_from(lm, train(golden))
    free = {name: tensor.clone().requires_grad_() for name, tensor in known(method).items()}
    slopes = torch.autograd.grad(method.loss(lm, lessons, free), list(free.values()))
    close(slopes[0], theirs["grad_W"], REL[precision], "gradient of W")
    close(slopes[1], theirs["grad_b"], REL[precision], "gradient of b")
    losses: list[float] = []
    found = remedi._train(
        _noting(replace(method, epochs=3), losses), lm, taught=lessons, kept=lessons, start=known(method)
    )
    close(found["weight"], theirs["W_after_3_steps"], REL[precision], "W")
    close(found["bias"], theirs["b_after_3_steps"], REL[precision], "b")
    steps = golden.json(f"{FOLDER}/expected.json")["three_steps_default_loss"][precision]
    assert losses[1:6:2] == pytest.approx(steps, rel=JSON[precision])  # validation, step, validation, step, ...


def _noting(method: Remedi, losses: list[float]) -> Remedi:
    """The editor, noting every loss that it computes."""

    class Noting(Remedi):
        def loss(self, lm: LM, lessons: Any, learned: Mapping[str, Tensor]) -> Tensor:
            found = super().loss(lm, lessons, learned)
            losses.append(float(found.detach()))
            return found

    values = {name: getattr(method, name) for name in method.hyperparameters()}
    return Noting(**values, learned=method.learned)
