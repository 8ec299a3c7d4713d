"""Result files of other programs, as those write them, for the tests of their readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QUESTIONS = ("edit", "rephrase", "yes", "no", "mc", "reversed")


def hallu_row(
    editor: str, case: int, post: Sequence[int], *, topic: str = "art_sculpture", pre: int = 0
) -> dict[str, Any]:
    """A row of HalluEditBench's answers; ``post`` has seven bits, the last is locality."""
    after = dict(zip([*QUESTIONS, "locality"], post, strict=True))
    return {"topic": topic, "editor": editor, "case_id": case, "pre": dict.fromkeys(QUESTIONS, pre), "post": after}


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def hallu_case(case: int, post: Sequence[int]) -> dict[str, Any]:
    """An element of one of HalluEditBench's own files."""
    return {"case_id": case, "pre": _side([0] * 6), "post": _side(post), "requested_edit": {"prompt": "?"}, "time": 3.1}


def _side(bits: Sequence[int]) -> dict[str, Any]:
    side: dict[str, Any] = {
        "edit_acc": [bits[0]],
        "rephrase_acc": [bits[1]],
        "yes_questions": {"yes_acc": [bits[2]], "yes_output": ["Yes"]},
        "no_questions": {"no_acc": [bits[3]]},
        "multiple_choice_questions": {"multiple_choice_acc": [bits[4]]},
        "reversed_relation_questions": {"reversed_relation_acc": [bits[5]]},
        "locality": {"locality_output": ["Moses"]},
    }
    if len(bits) > 6:
        side["locality"]["locality_acc"] = [bits[6]]
    return side
