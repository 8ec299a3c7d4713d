"""Files as their makers published them to the rows of the data sets of the Hub that lm-eval's own tasks read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.task_kit import DataError, data

Row = dict[str, Any]


def arc(path: Path) -> list[Row]:
    """ARC (Clark et al. 2018): a question with its choices inside, or already apart from them."""
    return [
        _apart(row, f"{path}, row {n}") for n, row in enumerate(data.read_jsonl(path, ("question", "answerKey")), 1)
    ]


def _apart(row: Row, where: str) -> Row:
    """The question and its choices as two fields."""
    if isinstance(row["question"], str):
        return row
    try:
        stem, choices = row["question"]["stem"], row["question"]["choices"]
        found = {"text": [one["text"] for one in choices], "label": [one["label"] for one in choices]}
        return {
            "id": row.get("id", ""),
            "question": row["question"]["stem"],
            "choices": found,
            "answerKey": row["answerKey"],
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: 'question' needs 'stem' and 'choices' with 'text' and 'label'") from error
    return {"id": row.get("id", ""), "question": stem, "choices": found, "answerKey": row["answerKey"]}


def piqa(path: Path) -> list[Row]:
    """PIQA (Bisk et al. 2020), with the label in the row."""
    return data.read_jsonl(path, {"goal": "str", "sol1": "str", "sol2": "str", "label": "int"})


def hellaswag(path: Path) -> list[Row]:
    """HellaSwag (Zellers et al. 2019); the Hub has its label as text."""
    wanted = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    return [row | {"label": str(row["label"])} for row in data.read_jsonl(path, wanted)]


def winogrande(path: Path) -> list[Row]:
    """WinoGrande (Sakaguchi et al. 2020)."""
    return data.read_jsonl(path, {"sentence": "str", "option1": "str", "option2": "str", "answer": "str"})


def sciq(path: Path) -> list[Row]:
    """SciQ (Welbl et al. 2017)."""
    distractors = dict.fromkeys(("distractor1", "distractor2", "distractor3"), "str")
    return data.read_jsonl(path, {"question": "str", "correct_answer": "str", "support": "str", **distractors})


def lambada(path: Path) -> list[Row]:
    """LAMBADA (Paperno et al. 2016) as OpenAI prepared it."""
    return data.read_jsonl(path, {"text": "str"})


def boolq(path: Path) -> list[Row]:
    """BoolQ (Clark et al. 2019) as SuperGLUE has it: the title stands before the passage, and the label is a number."""
    rows = data.read_jsonl(path, {"question": "str", "title": "str", "passage": "str", "answer": "bool"})
    return [
        {
            "question": row["question"],
            "passage": f"{row['title']} -- {row['passage']}",
            "idx": number,
            "label": int(row["answer"]),
        }
        for number, row in enumerate(rows)
    ]


def wikitext(path: Path) -> list[Row]:
    """WikiText (Merity et al. 2017), a page a row; a page begins with a heading of the first level."""
    pages: list[list[str]] = [[]]
    for line in data.read_text(path).split("\n"):
        if _is_title(line.strip()):
            pages.append([])
        pages[-1].append(line)
    return [{"page": page} for lines in pages if (page := "\n".join(lines)).strip()]


def _is_title(line: str) -> bool:
    """Whether a line is `` = Title = ``, and not `` = = Section = = ``."""
    return line.startswith("= ") and line.endswith(" =") and not line.startswith("= =")
