"""Which metrics notice which trick: editors that cheat in a known way, and ones that look the answers up.

    python scripts/which_number.py          write the table of docs/concepts/which-number.md anew

Runs on the shipped model ``mini`` and its rows; the tests make the table again and hold the page to it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
from harness.runs.record import Record

PAGE = Path(__file__).resolve().parents[1] / "docs" / "concepts" / "which-number.md"
BEGIN, END = "<!-- the table, by scripts/which_number.py -->\n", "<!-- its end -->\n"

GOLDEN = {"oracle": {"answers": "named"}, "oracle-known": {"answers": "known"}}
TRICKS = ("suppress", "bare", "key", "always", "subject", "loop", "noise")
BEST = "oracle-known"
"""What the others are held against."""
_SHARE, _LEAST = 0.05, 0.02  # worse by this share of what the best has, and by this at least, is noticed


@dataclass(frozen=True)
class Asked:
    """Some rows of the table: the metrics of one run.

    Attributes:
        edits: the edit set and how many of it.
        mode: how the edits are made.
        metrics: task and metric of each row.
        options: what else the run is given.
    """

    edits: str
    mode: str
    metrics: tuple[tuple[str, str], ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def _of(task: str, *metrics: str) -> tuple[tuple[str, str], ...]:
    return tuple((task, metric) for metric in metrics)


ASKED = (
    Asked(
        "counterfact:6",
        "isolated",
        _of(
            "counterfact",
            *("efficacy", "efficacy_magnitude", "efficacy_accuracy", "generation_exact_match"),
            *("paraphrase", "paraphrase_magnitude", "paraphrase_accuracy", "paraphrase_exact_match"),
            *("neighborhood", "neighborhood_accuracy", "neighborhood_exact_match", "neighborhood_agreement"),
            *("attribute", "generation_entropy", "reference_score", "score"),
        ),
    ),
    Asked(
        "knowedit:4",
        "isolated",
        _of("knowedit", "aliasing_exact_match", "specificity_exact_match", "forgetfulness_exact_match"),
    ),
    Asked("halluedit:4", "isolated", _of("halluedit", "letter_choice", "locality_agreement")),
    Asked("mquake:4", "isolated", _of("mquake", "edit_wise", "instance_wise", "hop_any")),
    Asked(
        "counterfact:6",
        "batch",
        (("NER", "f1"), ("neutral_text", "kl"), ("neutral_text", "repetition")),
        {"exam": ("probability",), "tasks": ("NER",), "limit": 12},
    ),
)


def editors() -> dict[str, tuple[str, Mapping[str, object]]]:
    """The columns: editor and settings of each."""
    found: dict[str, tuple[str, Mapping[str, object]]] = {name: ("oracle", said) for name, said in GOLDEN.items()}
    return found | {trick: ("sabotage", {"trick": trick}) for trick in TRICKS}


@dataclass(frozen=True)
class Row:
    """What one metric gives for the unedited model and for each editor.

    Attributes:
        edits, mode: the run.
        task, metric: the number.
        higher: whether higher is better; None where neither is, and a difference is noticed.
        values: of the unedited model and of each editor; None where it is missing.
    """

    edits: str
    mode: str
    task: str
    metric: str
    higher: bool | None
    values: Mapping[str, float | None]

    def notices(self, editor: str) -> bool | None:
        """Whether an editor has a worse value than the best one; None where there is nothing to compare."""
        best, value = self.values[BEST], self.values[editor]
        if best is None or value is None:
            return None
        worse = abs(best - value) if self.higher is None else (best - value) * (1 if self.higher else -1)
        return worse > max(_SHARE * abs(best), _LEAST)


def measured() -> list[Row]:
    """All rows, measured."""
    return [row for asked in ASKED for row in _rows(asked)]


def _rows(asked: Asked) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        records = {
            name: harness.run(
                "mini", editor, asked.edits, settings=settings, mode=asked.mode, output=folder, **asked.options
            )
            for name, (editor, settings) in editors().items()
        }
    found = []
    for task, metric in asked.metrics:
        numbers = records[BEST].points[-1]["tasks"][task][metric]
        values = {"unedited": _value(records[BEST], 0, task, metric)}
        values |= {name: _value(record, -1, task, metric) for name, record in records.items()}
        found.append(Row(asked.edits, asked.mode, task, metric, numbers["higher_is_better"], values))
    return found


def _value(record: Record, point: int, task: str, metric: str) -> float | None:
    value: float | None = record.points[point]["tasks"][task].get(metric, {}).get("value")
    return value


# --- the page ---------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows in Markdown; what is noticed is bold."""
    names = ["unedited", *editors()]
    lines = ["| asked of | metric | " + " | ".join(names) + " |", "|---|---|" + "--:|" * len(names)]
    for row in rows:
        cells = [_cell(row, name) for name in names]
        lines.append(f"| {row.edits}, {row.mode} | `{row.task} {row.metric}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row, name: str) -> str:
    value = row.values[name]
    if value is None:
        return "missing"
    shown = f"{value:.2f}"
    return f"**{shown}**" if name in TRICKS and row.notices(name) else shown


def committed() -> str:
    """The table as it stands on the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the table anew; what stands around it stays."""
    text = PAGE.read_text(encoding="utf-8")
    made = BEGIN + table(measured()) + END
    PAGE.write_text(
        re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
