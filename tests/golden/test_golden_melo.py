"""MELO against its authors' code on a tiny GPT-2: four edits in a row, their clusters, losses, blocks and use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.melo import Cluster, Indexed, Melo
from harness.editing.edit import Edit
from harness.models.lm import LM
from harness.patches.patch import Part, Patch, patched

EDITS = [
    Edit("0", "Ada Velmont was born in", None, "Rome"),
    Edit("1", "Ada Velmont was born in the", None, "Rome"),
    Edit("2", "Greta Holm plays", None, "basketball in Dublin"),
    Edit("3", "Ada Velmont lives in", None, "Oslo, Norway"),
]
PROBES = (
    "Ada Velmont was born in",
    "Greta Holm plays",
    "Ada Velmont lives in",
    "Hugo Lantern was born in",
    "Ada Velmont was born in the",
    "The home of Hugo",
)
PLACES = {"2": "transformer.h.2.mlp.c_fc", "3": "transformer.h.3.mlp.c_fc"}
SETTINGS: dict[str, Any] = {"layer": 1, "layers": (2, 3), "modules": ("c_fc",), "rank": 2, "scale": 6.0, "eps": 6.0}


def said(lm: LM, patch: Patch, probe: str) -> torch.Tensor:
    with patched(lm, patch), torch.no_grad():
        return lm.model(input_ids=torch.tensor([lm.encode(probe)])).logits[0, -1].log_softmax(-1)[:40]


def test_four_edits_in_a_row(golden, close, monkeypatch):
    """The second joins the first's cluster, the fourth splits it, so that both its edits are forgotten."""
    lm, theirs = golden.lm("tiny-gpt2", "fp64"), golden.tensors("melo.safetensors")
    method = Melo(**SETTINGS, routing="pass", n_iter=24, edit_lr=1e-2, edits_per_block=1)

    def first(_self: Melo, found: Indexed) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        count, made = found.book.blocks, {}
        for short, name in PLACES.items():
            down = theirs[f"start/{short}"][:, 2 * count : 2 * count + 2].float()
            made[name] = (down.clone().requires_grad_(), torch.zeros(2, 128).requires_grad_())
        return made

    monkeypatch.setattr(Melo, "_first", first)
    memory: Any = None
    for i, edit in enumerate(EDITS):
        patch = method.edit(lm, [edit], memory)
        memory = patch.memory
        book = memory.book
        close(book.centres(book.cells), theirs[f"{i}/centre"], 1e-6, "centres")
        assert [cell.radius for cell in book.cells] == pytest.approx(theirs[f"{i}/radius"].tolist(), rel=1e-4)
        for short, name in PLACES.items():
            close(memory.blocks[name].down[i], theirs[f"{i}/down.{short}"], 1e-4, f"down {i} {name}")
            close(memory.blocks[name].up[i], theirs[f"{i}/up.{short}"], 1e-4, f"up {i} {name}")
    clusters = [cell for cell in book.cells if isinstance(cell, Cluster)]
    assert [(cluster.members, cluster.points) for cluster in clusters] == [((0, 1), ()), ((2,), (2,)), ((3,), (3,))]
    for probe, block, wanted in zip(PROBES, theirs["mapping"].tolist(), theirs["log_probs"], strict=True):
        assert (said(lm, patch, probe) - said(lm, Patch(), probe)).abs().max() > 1e-3 or block < 0, probe
        close(said(lm, patch, probe), wanted, 1e-5, probe)
    assert all(isinstance(hook, Part) for hook in patch.hooks.values())
