"""The one door of task folders: what a task's ``functions.py`` and its YAML may name, wherever it lies inside.

These names stay where they are, so that no move inside the package breaks a task.  Each is loaded when it is first
asked for: a list of tasks needs few of them, and they are costly together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.editing.edit import Edit, Example, Probe
    from harness.editing.join import joined, trimmed
    from harness.errors import DataError, ModelError, UsageError, near
    from harness.exam import answer_scores, cases, data, general_text, own_cases, row_shapes
    from harness.exam.belief import BeliefExam
    from harness.exam.canonical import CanonicalSet, Exam, read_rows, subjects
    from harness.exam.case_exam import CaseExam, OwnCaseExam
    from harness.exam.case_sets import CaseSet
    from harness.exam.span_scores import Ranked
    from harness.exam.statistics import Ratio, aggregate
    from harness.exam.tasks import read_edits
    from harness.exam.text_metrics import agreement, begins_with, consistency, entropy, vectorizer, words
    from harness.exam.token_tasks import Continuations, Forced, FreeAnswer, TeacherForced, Tokenized
    from harness.studies.remedi import norms
    from harness.studies.remedi.entities import from_biography, in_context

__all__ = [
    "BeliefExam",
    "CanonicalSet",
    "CaseExam",
    "CaseSet",
    "Continuations",
    "DataError",
    "Edit",
    "Exam",
    "Example",
    "Forced",
    "FreeAnswer",
    "ModelError",
    "OwnCaseExam",
    "Probe",
    "Ranked",
    "Ratio",
    "TeacherForced",
    "Tokenized",
    "UsageError",
    "aggregate",
    "agreement",
    "answer_scores",
    "begins_with",
    "cases",
    "consistency",
    "data",
    "entropy",
    "from_biography",
    "general_text",
    "in_context",
    "joined",
    "near",
    "norms",
    "own_cases",
    "read_edits",
    "read_rows",
    "row_shapes",
    "subjects",
    "trimmed",
    "vectorizer",
    "words",
]

_MODULES = {
    "answer_scores": "harness.exam.answer_scores",
    "cases": "harness.exam.cases",
    "data": "harness.exam.data",
    "general_text": "harness.exam.general_text",
    "norms": "harness.studies.remedi.norms",
    "own_cases": "harness.exam.own_cases",
    "row_shapes": "harness.exam.row_shapes",
}
_PLACES = {
    "harness.editing.edit": ("Edit", "Example", "Probe"),
    "harness.editing.join": ("joined", "trimmed"),
    "harness.errors": ("DataError", "ModelError", "UsageError", "near"),
    "harness.exam.belief": ("BeliefExam",),
    "harness.exam.case_exam": ("CaseExam", "OwnCaseExam"),
    "harness.exam.case_sets": ("CaseSet",),
    "harness.exam.canonical": ("CanonicalSet", "Exam", "read_rows", "subjects"),
    "harness.exam.span_scores": ("Ranked",),
    "harness.exam.statistics": ("Ratio", "aggregate"),
    "harness.exam.tasks": ("read_edits",),
    "harness.exam.text_metrics": ("agreement", "begins_with", "consistency", "entropy", "vectorizer", "words"),
    "harness.exam.token_tasks": ("Continuations", "Forced", "FreeAnswer", "TeacherForced", "Tokenized"),
    "harness.studies.remedi.entities": ("from_biography", "in_context"),
}

if not TYPE_CHECKING:  # a name that is not there shall be an error to mypy

    def __getattr__(name: str) -> object:
        """What the door offers under a name; an AttributeError where it offers nothing."""
        if name in _MODULES:
            return import_module(_MODULES[name])
        for place, names in _PLACES.items():
            if name in names:
                return getattr(import_module(place), name)
        raise AttributeError(f"the door of tasks, {__name__}, offers no '{name}'; it offers {', '.join(__all__)}")
