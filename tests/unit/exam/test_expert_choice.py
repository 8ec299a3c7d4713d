"""The stability of a mixture's routing: against routers by hand, and as a record keeps and shows it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from tiny_models import make_model, make_tokenizer, save_model, write_text

from harness.exam.expert_choice import ALL, chosen_experts, routing_stability
from harness.exam.neutral_text import Texts
from harness.models.lm import LM
from harness.patches.delta import Dense
from harness.patches.patch import Patch, patched
from harness.reports.terminal_tables import record_table
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan

DOCUMENTS = ("Ada Velmont was born in Rome.", "Hugo lives here", "The home of Iris")


def texts(lm: LM) -> Texts:
    return Texts(DOCUMENTS, tuple(tuple(lm.encode(one)) for one in DOCUMENTS), "")


def by_hand(lm: LM, layer: int) -> list[set[int]]:
    """The experts of every token of each document alone, from the router's weight and what enters it."""
    seen: list[Tensor] = []
    router = lm.module(f"model.layers.{layer}.mlp.gate")
    handle = router.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        for row in texts(lm).rows:
            lm.model(torch.tensor([row]))
    handle.remove()
    scores = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]) @ router.weight.T
    return [set(row.argsort(descending=True)[:2].tolist()) for row in scores]


def test_the_share_of_tokens_whose_experts_stay_is_that_of_routers_by_hand() -> None:
    lm = LM.wrap(make_model("mixtral"), make_tokenizer(), name="mixtral")
    name = lm.down(0)
    change = torch.randn(lm.matrix(name).shape, generator=torch.Generator().manual_seed(3))
    before, first = chosen_experts(lm, texts(lm)), [by_hand(lm, layer) for layer in range(3)]
    with patched(lm, Patch({name: Dense(change)})):
        after, then = chosen_experts(lm, texts(lm)), [by_hand(lm, layer) for layer in range(3)]
    for layer in range(3):
        assert [set(row) for row in before[lm.arch.writer_of(layer)].tolist()] == first[layer]
    same = [[a == b for a, b in zip(one, two, strict=True)] for one, two in zip(first, then, strict=True)]
    shares = [sum(row) / len(row) for row in same]
    assert shares[0] == 1.0  # what enters the first router is not changed
    assert 0 < shares[1] < 1
    wanted = {lm.arch.writer_of(layer): share for layer, share in enumerate(shares)}
    assert routing_stability(before, after) == pytest.approx({**wanted, ALL: sum(shares) / 3})
    assert routing_stability(before, before)[ALL] == 1.0


def test_a_model_without_experts_has_no_routing() -> None:
    lm = LM.wrap(make_model("llama"), make_tokenizer(), name="llama")
    assert routing_stability(chosen_experts(lm, texts(lm)), {}) == {}


def test_a_record_keeps_and_shows_the_stability_of_routing(tmp_path: Path) -> None:
    folder = save_model("mixtral", tmp_path / "model")
    rows = [{"prompt": "{} was born in", "subject": who, "target": "Rome"} for who in ("Ada", "Hugo")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = Plan(
        model=str(folder), editor="ft_m", settings={"layers": [0], "steps": 3, "lr": 0.3}, mode="batch", tasks=[],
        edits=str(tmp_path / "rows.jsonl"), text=write_text(tmp_path / "text.txt"),
    )  # fmt: skip
    record = run_plan(resolve(plan), RunOptions(output=tmp_path / "runs", device="cpu"))
    routing = record.points[-1]["routing"]
    assert list(routing) == [*(f"model.layers.{i}.mlp.experts" for i in range(3)), ALL]
    assert routing["model.layers.0.mlp.experts"] == 1.0
    assert 0 < routing[ALL] < 1
    (path,) = (tmp_path / "runs").glob("*.json")
    assert read_record(path).points[-1]["routing"] == pytest.approx(routing)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(record_table(record))
    assert "routing of" in console.export_text()
