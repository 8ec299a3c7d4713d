"""GRACE against the authors' code (Thartvigsen/GRACE at f674183), on a tiny GPT-2 and a tiny Llama, six edits in a row.

Their places of replacement other than the key's own token (``replace_all``, ``replace_prompt``) are not ours: every
position is compared for itself here.
"""

from __future__ import annotations

import pytest

from editors.grace import Grace
from harness.editing.edit import Edit
from harness.errors import ModelError
from harness.methods.descent import first_matrix

FOLDER = "P_grace_gpt2"
REL = {"tiny-gpt2": 1e-6, "tiny-llama": 1e-4}
VARIANTS = ["down_last", "down_last_cold", "fc_last", "llama_down_last"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_six_edits_in_a_row(golden, close, monkeypatch, variant):
    inputs, theirs = golden.json(f"{FOLDER}/inputs.json"), golden.tensors(f"{FOLDER}/expected.safetensors")
    said, told = inputs["variants"][variant], golden.json(f"{FOLDER}/expected.json")[f"fp64/{variant}"]
    lm, stem, rel = golden.lm(said["model"], "fp64"), f"fp64/{variant}", REL[said["model"]]
    method = Grace(
        layer=2,
        site="first" if "c_fc" in said["module"] else "down",
        eps=said["eps"],
        n_iter=said["n_iter"],
        edit_lr=said["edit_lr"],
        start=said["val_init"],
    )
    if method.start == "cold":  # their draw, which is stored
        drawn = lambda _self, output, count: theirs[f"{stem}/e{count}/start_value"].to(output)  # noqa: E731
        monkeypatch.setattr(Grace, "_first_value", drawn)
    book = None
    for i, row in enumerate(inputs["edits"]):
        book = method.edit(lm, [Edit(row["id"], row["prompt"], None, row["target_new"])], book).memory
        assert len(book.cells) == told[row["id"]]["n_keys"]
        assert [cell.radius for cell in book.cells] == pytest.approx(told[row["id"]]["epsilons"], abs=1e-4)
        close(book.values[-1], theirs[f"{stem}/e{i}/value"], rel, f"value of {row['id']}")
    close(book.keys, theirs[f"{stem}/keys"], rel, "keys")
    close(book.values[book.latest], theirs[f"{stem}/values"], rel, "values")


def test_a_cold_start_is_drawn_from_its_seed_and_is_another_edit(golden):
    lm, rows = golden.lm("tiny-gpt2", "fp64"), golden.json(f"{FOLDER}/inputs.json")["edits"]
    edits = [Edit(row["id"], row["prompt"], None, row["target_new"]) for row in (rows[0], rows[3])]
    makers = [
        Grace(layer=2, site="down", n_iter=3, start=start, start_seed=seed)
        for start, seed in (("warm", 0), ("cold", 0), ("cold", 0), ("cold", 1))
    ]
    warm, cold, again, other = (maker.edit(lm, edits).memory.values for maker in makers)
    assert bool((cold == again).all())
    assert not bool((cold == other).any())
    assert not bool((cold == warm).any())
    start = makers[1]._first_value(warm[0], 0)
    assert 0 <= float(start.min()) <= float(start.max()) <= 1
    assert not bool((start == makers[1]._first_value(warm[0], 1)).any())


def test_the_first_matrix_of_a_gated_part_is_not_one(golden):
    lm = golden.lm("tiny-llama", "fp32")
    with pytest.raises(ModelError, match="2 matrices before its activation function, expected one"):
        Grace(layer=2, site="first").edit(lm, [Edit("a", "Ada Velmont was born in", None, "Rome")])
    assert first_matrix(golden.lm("tiny-gpt2", "fp32"), 2, asker="grace") == "transformer.h.2.mlp.c_fc"
