"""The pages of editors on the site say what their files, their presets and their records say."""

from __future__ import annotations

import json
import sys

import pytest
from doc_blocks import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from editor_pages import described_settings, editor_page, finding

from harness.editing.hyperparameters import settable
from harness.editing.registry import editor_names, find


@pytest.mark.parametrize("name", editor_names())
def test_every_setting_is_explained(name: str) -> None:
    cls = find(name)
    described = described_settings(cls)
    assert [field for field in settable(cls) if len(described.get(field, "")) < 6] == []
    page = editor_page(name)
    assert all(f"| `{field}` | `" in page for field in settable(cls))
    assert all(
        f"| {model} | `{field}` | `{value}` |" in page
        for model, each in cls.presets.items()
        for field, value in each.items()
    )
    assert page.count("\n## ") == 3


def test_a_finding_is_what_the_record_says() -> None:
    paths = (ROOT / "results/records").glob("mini--memit--counterfact-50--batch--????????.json")
    records = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    (said,) = (record for record in records if record["plan"]["seed"] == 0)
    tasks = said["points"][-1]["tasks"]
    text = finding("memit")
    for metric in ("efficacy", "paraphrase", "neighborhood"):
        one = tasks["counterfact"][metric]
        low, high = one["difference"]["interval"]
        shown = f"{one['value']:.3f} ({one['difference']['value']:+.3f} [{low:+.3f}, {high:+.3f}], n = {one['n']})"
        assert shown in text
    headlines = {
        task: metric for task, metric in said["headlines"].items() if task not in ("counterfact", "neutral_text")
    }
    beyond = []
    for task, metric in headlines.items():
        low, high = tasks[task][metric]["difference"]["interval"]
        beyond += [task] if low > 0 or high < 0 else []
    assert f"Of {len(headlines)} other tasks" in text
    assert [task for task in headlines if f"{task} (" in text] == beyond


def test_what_was_never_measured_has_no_finding() -> None:
    assert finding("sabotage") == ""
    assert "No record of it is on the boards yet." in editor_page("sabotage")
