"""MALMEN and RLEdit against the authors' code with a random network, on a tiny GPT-2.

ChenmienTan/malmen at 1df295d, zhrli324/RLEdit at c6576a1.

Their normaliser starts empty and sees each turn's own edits first, their gradients are those of the mean over a
mini-batch, and every mini-batch adds its unbiased squares: ``statistics``, ``loss`` and ``deviation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.malmen import Malmen, _Training
from editors.rledit import RlEdit
from editors.rledit import _Training as SequenceTraining
from harness.editing.edit import Edit
from harness.methods.descent import TokenisedEdit, tokenise
from harness.methods.meta_training import Lesson
from harness.models.lm import LM
from harness.patches.patch import Patch

FOLDER = "N_malmen_gpt2"
REL = {"fp64": 1e-6, "fp32": 2e-4}
KIND = {"fp64": torch.float64, "fp32": torch.float32}
SHAPES = [(128, 32), (32, 128)]
SCALARS = {"lr": "alpha", "lamda": "damping"}
FACTORS = {"A": "V", "B": "U"}
RELEASED: dict[str, Any] = {"statistics": "running", "loss": "batch", "deviation": "batch"}


def of_shape(golden: Any, wide: int, out: int) -> list[str]:
    """The matrices of one shape, in the order of their rows."""
    lm, names = golden.lm("tiny-gpt2", "fp64"), golden.json(f"{FOLDER}/inputs.json")["edit_modules"]
    return [name for name in names if lm.matrix(f"{name}.weight").shape == (out, wide)]


def network(golden: Any, precision: str) -> dict[str, Tensor]:
    """Their network under our names, with statistics of nothing."""
    given = golden.tensors(f"{FOLDER}/inputs.safetensors")
    given = {name: tensor.to(KIND[precision]) for name, tensor in given.items()}
    made = dict[str, Tensor]()
    for wide, out in SHAPES:
        shape, ours = f"({wide}, {out})", f"{wide}x{out}"
        for row, name in enumerate(of_shape(golden, wide, out)):
            made[f"alpha/{name}"] = given[f"{shape}.lr.weight"][row, 0]
            made[f"damping/{name}"] = given[f"{shape}.lamda.weight"][row, 0]
            for i in range(2):
                for part in ("scale", "shift"):
                    made[f"{ours}/{i}/{part}/{name}"] = given[f"{shape}.blocks.{i}.{part}.weight"][row]
        for i in range(2):
            stem = f"{shape}.blocks.{i}"
            made |= {f"{ours}/{i}/V": given[f"{stem}.A"].T, f"{ours}/{i}/U": given[f"{stem}.B"].T}
            made[f"{ours}/{i}/bias"] = given[f"{stem}.bias"]
        empty = torch.zeros(wide + out, dtype=KIND[precision])
        made |= {f"{ours}/statistics/{part}": empty for part in ("mean", "squares")}
        made[f"{ours}/statistics/count"] = torch.tensor(0)
    return {name: tensor.clone() for name, tensor in made.items()}


def as_theirs(golden: Any, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of ours that is one of theirs, such as ``(128, 32).blocks.0.A``."""
    shape, rest = name.split(").")
    wide, out = (int(size) for size in shape.strip("(").split(","))
    names, part = of_shape(golden, wide, out), rest.removesuffix(".weight")
    if part in SCALARS:
        return torch.stack([tensors[f"{SCALARS[part]}/{n}"] for n in names])[:, None]
    i, part = part.removeprefix("blocks.").split(".")
    stem = f"{wide}x{out}/{i}"
    if part in ("scale", "shift"):
        return torch.stack([tensors[f"{stem}/{part}/{n}"] for n in names])
    return tensors[f"{stem}/bias"] if part == "bias" else tensors[f"{stem}/{FACTORS[part]}"].T


def method(golden: Any, precision: str, batch_size: int, **changed: Any) -> Malmen:
    """The editor with their network and hyperparameters."""
    said = golden.json(f"{FOLDER}/inputs.json")
    h = said["hparams"]
    settings = {**RELEASED, "c_loc": h["loc_coef"], "clip": h["max_grad_norm"], "meta_lr": h["meta_lr"], **changed}
    learned, own = network(golden, precision), {"rank": h["rank"], "depth": h["n_blocks"], "batch_size": batch_size}
    return Malmen(modules=tuple(said["edit_modules"]), learned=learned, **own, **settings)


@pytest.mark.parametrize(
    ("precision", "variant", "held"), [("fp64", "apply", 2), ("fp64", "apply_mini_batches", 1), ("fp32", "apply", 1)]
)
def test_turn_by_turn(golden, close, precision, variant, held):
    """Each on the unedited weights, the second with the statistics of both."""
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    h, lm, patch, compared = said["hparams"][variant], golden.lm("tiny-gpt2", precision), Patch(), 0
    editor = method(golden, precision, h["batch_size"])
    for turn, cases in enumerate(h.get("turns", said["turns"])):
        patch = editor.edit(lm, list(golden.edits(cases).values()), patch.memory)
        for name in said["edit_modules"]:
            key = f"{precision}/{variant}/turn{turn}/shift/{name}"
            if key in theirs:
                close(patch.weights[f"{name}.weight"].dense().T, theirs[key], REL[precision], key)
                compared += 1
    assert compared == held


@pytest.mark.parametrize("changed", [{"loss": "edit"}, {"deviation": "data"}])
def test_each_setting_is_needed(golden, changed):
    """Their numbers are missed by more than a hundredth without it."""
    said, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    h, name = said["hparams"]["apply_mini_batches"], said["edit_modules"][0]
    edits = list(golden.edits(h["turns"][0]).values())
    patch = method(golden, "fp64", h["batch_size"], **changed).edit(golden.lm("tiny-gpt2", "fp64"), edits)
    wanted = theirs[f"fp64/apply_mini_batches/turn0/shift/{name}"]
    assert float((patch.weights[f"{name}.weight"].dense().T - wanted).norm() / wanted.norm()) > 1e-2


def asked(golden: Any, lm: LM, cases: list[int]) -> list[Lesson]:
    """The lessons of an operation: every edit is asked for in one other way, and has the same unrelated text."""
    lessons, near = list[Lesson](), golden.json(f"{FOLDER}/inputs.json")["locality"]
    row = lm.encode(near["prompt"]), lm.continuation(near["prompt"], f" {near['answer']}")
    for edit in golden.edits(cases).values():
        other = Edit(edit.id, f"They say: {edit.text}", None, edit.target)
        lessons.append(Lesson(tokenise(lm, [edit])[0], tokenise(lm, [other]), [TokenisedEdit(edit, *row)]))
    return lessons


def training(golden: Any, lm: LM) -> tuple[_Training, list[Lesson]]:
    """A training that starts at their network, and the lessons of their step."""
    said = golden.json(f"{FOLDER}/inputs.json")
    lessons = asked(golden, lm, said["turns"][0])
    editor = method(golden, "fp64", said["hparams"]["apply"]["batch_size"])
    made = _Training(editor, lm, lessons, lessons)
    made.network = editor.network(network(golden, "fp64"))
    free = [tensor.requires_grad_() for tensor in made.network.trainable.values()]
    made.adam = torch.optim.Adam(free, lr=editor.meta_lr)
    return made, lessons


def test_a_step_of_training(golden, close):
    """The norm of the gradient, the gradient after clipping, and the network after Adam."""
    told = golden.json(f"{FOLDER}/expected.json")["fp64"]["train"]
    theirs, compared = golden.tensors(f"{FOLDER}/expected.safetensors"), 0
    made, lessons = training(golden, golden.lm("tiny-gpt2", "fp64"))
    made.learn(lessons)
    free = made.network.trainable
    norm = torch.stack([tensor.grad.norm() for tensor in free.values()]).norm()
    assert float(norm) == pytest.approx(told["gradient_norm_before_clipping"][0], rel=1e-6)
    clipped = {name: tensor.grad for name, tensor in free.items()}  # in place, by the update
    made.update()
    for key, wanted in theirs.items():
        _, _, part, name = key.split("/", 3)
        tensors = {"clipped_gradient": clipped, "after_one_step": made.network.tensors}.get(part)
        if tensors is not None:
            close(as_theirs(golden, name, tensors).detach(), wanted, 1e-6, key)
            compared += 1
    assert compared == 16


# --- RLEdit -----------------------------------------------------------------------------------------------------------

OPERATIONS = [[0, 1, 2], [5, 8, 4], [6, 9, 10]]
"""The edits of each operation of the sequence."""
VARIANTS: dict[str, dict[str, Any]] = {
    "edits": {"c_loc": 0.0},
    "divergence": {"c_loc": 50.0},
    "clipped": {"c_loc": 0.0, "clipping": "operation", "clip": 410.0},
}


@pytest.mark.parametrize(("variant", "held"), [("edits", 12), ("divergence", 6), ("clipped", 12)])
def test_a_sequence_of_rledit(golden, close, variant, held):
    """What three operations sum up in the gradient of the network, and what they write (norm and sum).

    With the divergence of one matrix alone: of several, theirs passes the lower ones through matrices that are back.
    """
    lm, theirs = golden.lm("tiny-gpt2", "fp64"), golden.tensors("rledit.safetensors")
    theirs = {key.removeprefix(f"{variant}/"): t.double() for key, t in theirs.items() if key.startswith(f"{variant}/")}
    known, settings = network(golden, "fp64"), VARIANTS[variant]
    names = [key.removeprefix("written/") for key in theirs if key.startswith("written/")]
    editor = RlEdit(
        modules=tuple(names), rank=8, depth=2, batch_size=3, clip=settings.get("clip", 1e9), meta_lr=1e-3, l2=0.0,
        time_decay=0.9, back_depth=2, sequence=3, c_loc=settings["c_loc"], **RELEASED,
        clipping=settings.get("clipping", "sequence"),
    )  # fmt: skip
    lessons = [asked(golden, lm, ids) for ids in OPERATIONS]
    made = SequenceTraining(editor, lm, lessons[0], lessons[0])
    made.network = editor.network(known)
    for tensor in made.network.trainable.values():
        tensor.requires_grad_()
    for operation in lessons:
        made.learn(operation)
    for name in names:
        change = made.now.written.weights[f"{name}.weight"].dense()
        close(torch.stack([change.norm(), change.sum()]), theirs.pop(f"written/{name}"), 1e-6, name)
    grads = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in made.network.trainable.items()}
    compared = 0
    for key, wanted in theirs.items():
        found = as_theirs(golden, key.removeprefix("gradient/"), grads)
        if wanted.shape[0] < found.shape[0]:  # rows of the matrices that are edited
            shape = tuple(int(size) for size in key.removeprefix("gradient/").split(")")[0].strip("(").split(","))
            found = found[[of_shape(golden, *shape).index(name) for name in names]]
        close(found, wanted, 1e-6, key)
        compared += 1
    assert compared == held
