"""Samples to what a person reads in a terminal: the prompt, what is right, and what was said before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.exam.samples import Reply, Sample
from harness.io.visible import visible
from harness.reports.table import MISSING

__all__ = ["sample_view"]

_HEAD, _TAIL = 200, 500
"""How much of a long text is shown: solved examples stand in front of a question, and say little of it."""
_CHOICES = 12
_CHANGED = "bold yellow"
_LEGEND = (
    "before, after: unedited and edited.  Choices: log-likelihood in nats; *: the likeliest choice, of one alone: what "
    "the model would write.  Characters that are not seen are written as their numbers."
)


def sample_view(samples: Sequence[Sample], *, count: int) -> RenderableType:
    """Samples one below the other.

    Args:
        samples: what is shown.
        count: how many there are of them; a line says so where not all are shown.
    """
    if not samples:
        return Text("no sample is like that", style="yellow")
    parts: list[RenderableType] = []
    for one in samples:
        parts += [_title(one), _body(one), Text()]
    parts.append(Text(_LEGEND, style="dim"))
    if count > len(samples):
        parts.append(Text(f"{len(samples):,} of {count:,} shown; --limit {count} shows all", style="yellow"))
    return Group(*parts)


def _title(one: Sample) -> Text:
    said = [one.kind, f"case {one.case}" if one.case is not None else None, f"after {one.at} edits" if one.at else None]
    title = Text.assemble((f"{visible(one.task)} {one.doc_id}", "bold"))
    if one.question:
        title.append(f" question {one.question}")
    title.append("".join(f" · {visible(part)}" for part in said if part))
    if one.changed:
        title.append(" · ").append("changed", _CHANGED)
    return title


def _body(one: Sample) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, said in _rows(one):
        grid.add_row(f"  {name}", said)
    return grid


def _rows(one: Sample) -> Iterator[tuple[str, RenderableType]]:
    yield "prompt", Text(_short(one.prompt))
    right = one.answers or (one.target,)
    if any(right):
        yield "right", Text(_short(" | ".join(right)))
    before, after = one.before or Reply(), one.after
    if before.loglikelihoods or (after and after.loglikelihoods):
        yield "choices", _choices(one)
    else:
        yield "before", Text(_text(before))
        if after is not None:
            yield "after", Text(_text(after), style="yellow" if one.changed else "")
    scores = Text(", ".join(_scores(before, after)), style="dim")
    if scores:
        yield "scores", scores


def _text(reply: Reply) -> str:
    return MISSING if reply.text is None else _short(reply.text.strip(" ")) or "(nothing)"


def _choices(one: Sample) -> Table:
    """The log-likelihood of each choice, before and after."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    replies = [reply for reply in (one.before, one.after) if reply is not None]
    for _ in replies:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(name, style="dim") for name in ("before", "after")[: len(replies)]))
    for place, choice in list(enumerate(one.choices or ("(the text)",)))[:_CHOICES]:
        marks = [_rated(reply, place) for reply in replies]
        style = "yellow" if len({mark.endswith("*") for mark in marks}) > 1 else ""
        table.add_row(Text(_short(choice.strip()), style=style), *(Text(mark, style=style) for mark in marks))
    if len(one.choices) > _CHOICES:
        table.add_row(Text(f"({len(one.choices) - _CHOICES} more)", style="dim"))
    return table


def _rated(reply: Reply, place: int) -> str:
    value = reply.loglikelihoods[place] if place < len(reply.loglikelihoods) else None
    alone = len(reply.loglikelihoods) == 1 and reply.greedy == (True,)
    number = MISSING if value is None else f"{value:.3f}"
    return f"{number}{' *' if reply.likeliest == place or alone else '  '}"


def _scores(before: Reply, after: Reply | None) -> Iterator[str]:
    known = before.scores or {}
    edited = (after.scores if after else None) or {}
    for metric in dict.fromkeys([*known, *edited]):
        said = [_number(scores.get(metric)) for scores in ((known, edited) if after else (known,))]
        yield f"{visible(metric)} {' to '.join(dict.fromkeys(said))}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _short(text: str) -> str:
    """The text, or where it is long its beginning and its end."""
    if len(text) <= _HEAD + _TAIL + 50:
        return visible(text)
    left = len(text) - _HEAD - _TAIL
    return f"{visible(text[:_HEAD])} [... {left:,} characters ...] {visible(text[-_TAIL:])}"
