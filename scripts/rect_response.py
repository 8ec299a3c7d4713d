"""What is left of a closed-form change when most of its entries are dropped, on a shipped model.

    python scripts/rect_response.py mini mini-llama

A change dW answers keys. Of every edit, made alone, three answers are measured, as shares of what the whole change
gives its own key k, |dW k|, and shown as medians over edits:

* ``own``: of the reduced change dW' to k, along dW k. One where the edit is whole.
* ``text``: of dW' to running text, sqrt(tr(dW' C dW'^T)), C being the second moment of the layer's keys.
* ``others``: of dW' to the keys of the other edits, the mean of |dW' k_j|.

``norm`` is |dW'| / |dW|. Forms: ``all``; ``relative``, RECT's rule; ``largest``, by |dW| alone; ``random``.
"""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from editors.rect import keep_largest, keep_random
from harness.editing.registry import compose
from harness.exam import tasks
from harness.methods import keys, second_moments
from harness.models.lm import load

COUNT, KEEP = 40, 0.4


def largest(change: Tensor, count: int) -> Tensor:
    """A change in which all but its largest entries are zero."""
    return keep_largest(change, torch.ones_like(change), count)


def responses(model: str, editor: str) -> dict[tuple[int, str], Tensor]:
    """Layer and form -> medians of own, text, others, norm ``[4]``."""
    lm = load(model, device="cpu")
    edits = tasks.read_edits("zsre", data_dir="mini", count=COUNT)
    method = compose(editor).build(lm, {}, seed=0)
    patches = method.edit_each(lm, edits)
    layers = getattr(method, "layers", None) or [getattr(method, "layer")]  # noqa: B009
    moments = second_moments.moments(lm, layers, tokens=getattr(method, "cov_tokens"))  # noqa: B009
    found: dict[tuple[int, str], list[Tensor]] = {}
    for layer in layers:
        name = lm.down(layer)
        asked = keys.read_keys(lm, edits, layer, templates=("{}",), fact_token="subject_last")[0].double()
        for i, patch in enumerate(patches):
            change = patch.weights[name].dense()
            count = round(KEEP * change.numel())
            forms = {
                "all": change,
                "relative": keep_largest(change, lm.matrix(name), count),
                "largest": largest(change, count),
                "random": keep_random(change, count, i),
            }
            for form, reduced in forms.items():
                row = response(reduced.double(), change.double(), asked, i, moments[layer].matrix.double())
                found.setdefault((layer, form), []).append(row)
    return {at: torch.stack(rows).median(0).values for at, rows in found.items()}


def response(reduced: Tensor, change: Tensor, asked: Tensor, own: int, moment: Tensor) -> Tensor:
    """Own, text, others and norm of one edit ``[4]``; ``asked [edits, f]`` are the keys of all edits."""
    whole = change @ asked[own]
    answers = asked @ reduced.T
    others = torch.cat([answers[:own], answers[own + 1 :]]).norm(dim=1).mean()
    text = torch.einsum("ij,jk,ik->", reduced, moment, reduced).sqrt()
    shares = [answers[own] @ whole / whole.norm(), text, others]
    return torch.stack([*(share / whole.norm() for share in shares), reduced.norm() / change.norm()])


def main() -> None:
    """Measure ROME and MEMIT on the models that are named."""
    table = Table("model", "editor", "layer", "kept", "own", "text", "others", "norm", box=None)
    for model in sys.argv[1:] or ["mini"]:
        for editor in ("rome", "memit"):
            for (layer, form), row in responses(model, editor).items():
                table.add_row(model, editor, str(layer), form, *(f"{value:.3f}" for value in row.tolist()))
    Console().print(table)


if __name__ == "__main__":
    main()
