"""Bias in Bios (De-Arteaga et al. 2019): which occupation a biography is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.task_kit import Ratio, data, from_biography, in_context

if TYPE_CHECKING:
    import datasets


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """One document for each biography that names its person once."""
    import datasets

    found = [from_biography(row, i) for i, row in enumerate(data.load("bias_in_bios", "test", data_dir))]
    cases = [case for case in found if case is not None]
    labels = sorted({case.target for case in cases})
    docs = [
        {
            "id": case.id,
            "prompt": in_context(case.context, case.prompt, "\n\n"),
            "choices": labels,
            "label": labels.index(case.target),
        }
        for case in cases
    ]
    return {"test": datasets.Dataset.from_list(docs)}


def results(doc: Mapping[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Ratio]:
    """Whether the occupation is the likeliest one, the whole of each scored."""
    best = max(range(len(answers)), key=lambda i: answers[i][0])
    return {"accuracy": Ratio(float(best == doc["label"]))}
