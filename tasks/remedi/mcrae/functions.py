"""McRae et al. (2005): the published table of feature norms, and which of two features a model finds more likely."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.task_kit import DataError, Ratio, data, norms

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """The rows of the published table: tab-separated, in Latin-1.

    Raises:
        DataError: a column is missing, or a frequency is no number; names the line.
    """
    lines = path.read_bytes().decode("latin-1").splitlines()
    head = lines[0].split("\t") if lines else []
    wanted = ("Concept", "Feature", "Prod_Freq")
    if not set(wanted) <= set(head):
        raise DataError(f"{path}: no columns {', '.join(wanted)}; give CONCS_FEATS_concstats_brm.txt")
    found = []
    for number, line in enumerate(lines[1:], start=2):
        cells = dict(zip(head, line.split("\t"), strict=False))
        if not cells.get("Prod_Freq", "").isdigit():
            raise DataError(f"{path}, line {number}: Prod_Freq is not a number; copy the published table again")
        found.append({"Concept": cells["Concept"], "Feature": cells["Feature"], "Prod_Freq": int(cells["Prod_Freq"])})
    return found


def dataset(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """One document for each concept: its most frequent feature, and one that it does not have."""
    import datasets

    known, rng = norms.concepts(data.load("mcrae", "test", data_dir)), random.Random(norms.SEED)
    every = list(dict.fromkeys(feature for features in known.values() for feature in features))
    docs = []
    for concept, features in known.items():
        own = max(features, key=lambda f: features[f])
        other = rng.choice([feature for feature in every if feature not in features])
        choices = [norms.fluent(own), norms.fluent(other)]
        docs.append({"id": concept, "prompt": norms.with_article(concept), "choices": choices})
    return {"test": datasets.Dataset.from_list(docs)}


def results(_doc: Mapping[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Ratio]:
    """Whether the concept's own feature is the more likely one."""
    return {"accuracy": Ratio(float(answers[0][0] > answers[1][0]))}
