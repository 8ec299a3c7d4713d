"""Small figures of a page, as lines in its own units: a radar of what is believed, and a curve of what is left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.reports.cells import brackets, number
from harness.runs.record import Record

__all__ = ["curve_of", "figures_of", "radar_of"]

Json = dict[str, Any]

_BELIEF = "belief"  # as harness.exam.tasks calls it, which takes seconds to import
RADIUS, ROOM = 92, (300, 250)
"""Of a radar: of its circle, and width and height."""
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 190, 34, 12, 26
"""Of a curve, and what is around it."""


def figures_of(record: Record) -> Json | None:
    """What the page of an editor shows of a record as figures; None where there is nothing.

    Args:
        record: whole, with the values of its documents.
    """
    last = record.points[-1] if len(record.points) > 1 else {"tasks": {}}
    found: Json = {}
    if _BELIEF in last["tasks"]:
        from harness.reports.belief import beliefs

        found["belief"] = radar_of([vars(one) for one in beliefs(record)])
    if len(record.points) > 2:
        from harness.reports.retention import retention

        left = retention(record)
        if left is not None:
            found["retention"] = {**curve_of(left.rows, left.latest), "task": left.task, "facts": left.facts}
    return found or None


# --- the radar --------------------------------------------------------------------------------------------------------


def radar_of(answers: Sequence[Mapping[str, Any]]) -> Json:
    """A radar: a spoke a question; a line is broken where there is no answer.

    Args:
        answers: of each question its name, the metric, the values of the unedited and the edited model, the interval
            and n.
    """
    spokes = [_spoke(place, len(answers), str(one["question"])) for place, one in enumerate(answers)]
    lines = {
        name: _around([one[key] for one in answers]) for name, key in (("unedited", "unedited"), ("edited", "value"))
    }
    rows = [
        {
            "question": one["question"],
            "metric": one["metric"] or "",
            "n": one["n"] if one["metric"] else "",
            "unedited": number(one["unedited"]),
            "edited": f"{number(one['value'])} {brackets(one['interval'])}".rstrip(),
        }
        for one in answers
    ]
    return {"spokes": spokes, "lines": lines, "rows": rows}


def _spoke(place: int, count: int, name: str) -> Json:
    x, y = _at(place, count, 1.0)
    labelled = _at(place, count, 1.14)
    anchor = "middle" if abs(x - ROOM[0] / 2) < 1 else "start" if x > ROOM[0] / 2 else "end"
    return {"x": x, "y": y, "label": labelled, "anchor": anchor, "name": name}


def _at(place: int, count: int, value: float) -> tuple[float, float]:
    """Clockwise from the top."""
    angle = 2 * math.pi * place / count
    return (
        round(ROOM[0] / 2 + RADIUS * value * math.sin(angle), 1),
        round(ROOM[1] / 2 - RADIUS * value * math.cos(angle), 1),
    )


def _around(values: Sequence[float | None]) -> Json:
    """The dots of a line, and its path from each spoke to the next one where both have a value."""
    count = len(values)
    dots = [None if value is None else _at(place, count, value) for place, value in enumerate(values)]
    sides = ((dots[i], dots[(i + 1) % count]) for i in range(count))
    path = " ".join(f"M{a[0]} {a[1]}L{b[0]} {b[1]}" for a, b in sides if a and b)
    return {"path": path, "dots": [dot for dot in dots if dot]}


# --- the curve --------------------------------------------------------------------------------------------------------


def curve_of(rows: Sequence[tuple[int, float, float, float]], latest: Sequence[tuple[int, float]]) -> Json:
    """A curve over the number of edits, which grows by factors, with its band.

    Args:
        rows: edits, value, and the ends of its interval.
        latest: edits, and another value, of which the line is dashed.
    """
    first, last = rows[0][0], rows[-1][0]
    upper = [(_x(row[0], first, last), _y(row[3])) for row in rows]
    lower = [(_x(row[0], first, last), _y(row[2])) for row in reversed(rows)]
    dots = [(_x(row[0], first, last), _y(row[1])) for row in rows]
    return {
        "band": _path([*upper, *lower]) + "Z",
        "line": _path(dots),
        "dots": dots,
        "latest": _path([(_x(edits, first, last), _y(value)) for edits, value in latest]),
        "ticks": list(_ticks([row[0] for row in rows])),
        "rows": [
            {"edits": edits, "value": f"{number(value)} {brackets((low, high))}", "latest": dict(latest).get(edits)}
            for edits, value, low, high in rows
        ],
    }


def _x(edits: int, first: int, last: int) -> float:
    return round(LEFT + (WIDTH - LEFT - 12) * math.log(edits / first) / math.log(last / first), 1)


def _y(value: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if place else 'M'}{x} {y}" for place, (x, y) in enumerate(points))


def _ticks(stops: Sequence[int]) -> Iterator[tuple[float, int]]:
    """The stops whose numbers have room below the axis."""
    end = -math.inf
    for edits in stops:
        x, half = _x(edits, stops[0], stops[-1]), 3.5 * len(str(edits)) + 2
        if x - half > end:
            end = x + half
            yield x, edits
