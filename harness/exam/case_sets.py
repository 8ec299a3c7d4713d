"""Edit sets that a YAML describes alone: their rows, edits and questions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.editing.edit import Edit, Example, Probe
from harness.errors import DataError
from harness.exam import data
from harness.exam.cases import Case, CaseRule, case_edits, read_cases, rule_of

__all__ = ["CaseSet"]


@dataclass(frozen=True)
class CaseSet:
    """An edit set whose YAML has a block ``metadata.case``.

    Attributes:
        rule: how its rows become cases.
        dataset: where its rows lie.
    """

    rule: CaseRule
    dataset: data.Dataset

    @classmethod
    def read(cls, path: Path) -> CaseSet:
        """The set of a YAML.

        Raises:
            DataError: it has no such block, no source of rows, or one that cannot be read.
        """
        dataset = data.dataset_of(path)
        if dataset is None or not dataset.cases:
            raise DataError(
                f"{path}: no metadata.source and metadata.case; say where rows lie, and what of them is asked"
            )
        return cls.of(dataset)

    @classmethod
    def of(cls, dataset: data.Dataset) -> CaseSet:
        """The set of a data set that says what its cases are.

        Raises:
            DataError: what it says cannot be read.
        """
        where = f"{dataset.folder / dataset.name}.yaml: metadata.case"
        return cls(rule_of(dataset.name, dataset.cases, where), dataset)

    def source(self, data_dir: str | None = None, split: str = "test", _count: int = 0) -> list[dict[str, Any]]:
        """The rows of a source."""
        return data.dataset_rows(self.dataset, split, data_dir)

    def cases(self, data_dir: str | None, split: str, only: Collection[str] | None = None) -> list[Case]:
        """The cases of a source.

        Args:
            data_dir: where its rows lie.
            split: which of them.
            only: the ids of the cases that are wanted; None for all.
        """
        return read_cases(self.rule, self.source(data_dir, split), _as_edit(), only=only)

    def edits(self, rows: Sequence[dict[str, Any]], count: int | None = None, **_: object) -> list[Edit]:
        """What an editor is asked to do; of so many cases from the beginning."""
        return case_edits(self.rule, rows, _as_edit(), count=count)

    def examples(self, rows: Sequence[dict[str, Any]], **_: object) -> list[Example]:
        """The edits with the questions that a rival answers, for editors that learn."""
        return [Example(edit, tuple(_probes(case, edit))) for case in self.of_rows(rows) for edit in case.edits]

    def of_rows(self, rows: Sequence[dict[str, Any]]) -> list[Case]:
        """The cases of some rows."""
        return read_cases(self.rule, rows, _as_edit())


def _probes(case: Case, edit: Edit) -> list[Probe]:
    """The questions of a case of one edit, as editors learn from them; of several edits none belongs to one alone."""
    if len(case.edits) > 1:
        return [Probe(edit.id, "rewrite", edit.text, edit.target, edit.target_old or "")]
    return [
        Probe(
            edit.id, one.kind, one.prompt, edit.target, one.answers[0] if one.expect == "old" else edit.target_old or ""
        )
        for one in case.probes
        if one.answers
    ]


def _as_edit() -> Any:
    """What makes an edit of a row: the same as of one's own rows."""
    return data.module(data.TASKS / "edits" / "own" / "functions.py").edit
