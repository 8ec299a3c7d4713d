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


def hallu_hops(case: int, post: Sequence[int], *, pre: int = 0) -> dict[str, Any]:
    """An element of one of its files of questions over two to six hops; ``post`` begins with the edit itself."""
    before, after = ({"edit_acc": [bits[0]], "locality": {}, **_hops(bits[1:])} for bits in ([pre] * len(post), post))
    return {"case_id": case, "pre": before, "post": after, "requested_edit": {"prompt": "?"}, "time": 3.1}


def _hops(bits: Sequence[int]) -> dict[str, Any]:
    return {f"questions_{n}hop": {f"{n}hop_acc": [bit], f"{n}hop_output": ["Texas"]} for n, bit in enumerate(bits, 2)}


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


def easy_case(case: int, *, pre: float = 0.0, post: float = 1.0, **more: Any) -> dict[str, Any]:
    """An element of one of EasyEdit's own files; ``more`` goes to what was asked after the edit."""
    after = {
        "rewrite_acc": [post],
        "rephrase_acc": [post / 2],
        "portability": {"reasoning_acc": [0.5, 1.0], "Subject_Aliasing_acc": [0.25]},
        "locality": {"Relation_Specificity_acc": [0.75], "Relation_Specificity_output": [[1, 2]]},
        "fluency": {"ngram_entropy": 5.5},
        **more,
    }
    before = {"rewrite_acc": [pre], "portability": {"reasoning_acc": [0.0, 0.5]}}
    return {"pre": before, "case_id": case, "requested_rewrite": {"prompt": "?"}, "time": 1.0, "post": after}


def counterfact_case(
    case: int, *, better: bool = True, group: Sequence[int] | None = None, **more: Any
) -> dict[str, Any]:
    """What ROME's, MEMIT's and AlphaEdit's programs write of a case of CounterFact: negative log-probabilities."""
    new, true = (1.0, 3.0) if better else (3.0, 1.0)
    post = {
        "rewrite_prompts_probs": [{"target_new": new, "target_true": true}],
        "paraphrase_prompts_probs": [{"target_new": new, "target_true": true}, {"target_new": 4.0, "target_true": 2.0}],
        "neighborhood_prompts_probs": [{"target_new": 5.0, "target_true": 1.0}] * 3
        + [{"target_new": 1.0, "target_true": 2.0}],
        "rewrite_prompts_correct": [better],
        "paraphrase_prompts_correct": [better, False],
        "neighborhood_prompts_correct": [True, True, False, False],
        "ngram_entropy": 6.0,
        "reference_score": 0.4,
        "text": ["..."],
    }
    grouped = {} if group is None else {"grouped_case_ids": list(group), "num_edits": len(group)}
    return {"case_id": case, **grouped, "requested_rewrite": {"subject": "x"}, "time": 2.0, "post": post, **more}


def zsre_case(case: int, right: Sequence[bool]) -> dict[str, Any]:
    """What the same programs write of a case of ZsRE: a truth value for each token."""
    post = {f"{role}_prompts_correct": list(right) for role in ("rewrite", "paraphrase", "neighborhood")}
    return {"case_id": case, "requested_rewrite": {"subject": "x"}, "time": 2.0, "post": post}


def write_cases(folder: Path, cases: Sequence[dict[str, Any]], params: dict[str, Any] | None = None) -> Path:
    """A folder of a run, as those programs fill it."""
    folder.mkdir(parents=True)
    for case in cases:
        size = case.get("num_edits")
        name = f"case_{case['case_id']}.json" if size is None else f"{size}_edits-case_{case['case_id']}.json"
        (folder / name).write_text(json.dumps(case), encoding="utf-8")
    if params is not None:
        (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return folder
