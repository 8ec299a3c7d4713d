"""Samples as a person reads them: what changed is marked, and no text of others commands the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from harness.exam.samples import Reply, Sample
from harness.reports.sample_view import sample_view
from harness.reports.table import MISSING

FREE = Sample(
    "own_generation", 3, "Ada lives in", "Rome", "own", "rewrite", "7", at=10,
    before=Reply(" Oslo.", scores={"em": 0.0}), after=Reply(" Rome.", scores={"em": 1.0}),
)  # fmt: skip
RATED = Sample(
    "NLI_choice", 0, "Is it?", "yes", choices=(" yes", " no"), at=10,
    before=Reply(None, (-0.5, -2.25), (True, False)), after=Reply(None, (-3.0, None), (False, False)),
)  # fmt: skip


def shown(*samples: Sample, count: int | None = None, width: int = 100, ansi: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=ansi, color_system="standard" if ansi else None)
    console.print(sample_view(samples, count=len(samples) if count is None else count))
    found: str = console.file.getvalue()  # type: ignore[attr-defined]
    return found


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_a_text_before_and_after() -> None:
    assert lines(shown(FREE))[:6] == [
        "own_generation 3 · rewrite · case 7 · after 10 edits · changed",
        "prompt Ada lives in",
        "right Rome",
        "before Oslo.",
        "after Rome.",
        "scores em 0 to 1",
    ]


def test_what_did_not_change_is_not_marked() -> None:
    same = replace(FREE, after=FREE.before)
    assert "changed" not in shown(same).partition("prompt")[0]
    assert "scores em 0" in lines(shown(same))
    unedited = lines(shown(replace(FREE, at=0, after=None)))
    assert unedited[0] == "own_generation 3 · rewrite · case 7"
    assert not any(line.startswith("after Rome") for line in unedited)
    assert "before (nothing)" in lines(shown(replace(FREE, before=Reply("  "))))


def test_choices_with_their_likelihoods_and_the_likeliest_marked() -> None:
    assert lines(shown(RATED))[2:6] == [
        "right yes",
        "choices before after",
        "yes -0.500 * -3.000",
        f"no -2.250 {MISSING}",
    ]
    alone = replace(
        RATED, choices=(" yes",), before=Reply(None, (-0.5,), (True,)), after=Reply(None, (-3.0,), (False,))
    )
    assert "yes -0.500 * -3.000" in lines(shown(alone))
    whole = replace(RATED, choices=(), before=Reply(None, (-10.0,)), after=Reply(None, (-12.0,)))
    assert "(the text) -10.000 -12.000" in lines(shown(whole))


def test_not_all_are_shown() -> None:
    assert "1 of 1,200 shown; --limit 1200 shows all" in shown(FREE, count=1200)
    assert "shown;" not in shown(FREE)
    assert lines(shown(count=0)) == ["no sample is like that"]


def test_a_long_prompt_is_cut_in_its_middle() -> None:
    text = " ".join(lines(shown(replace(FREE, prompt="x" * 3000 + " Ada lives in"))))
    assert "[... 2,313 characters ...]" in text and "Ada lives in" in text
    assert text.count("x") < 800


def test_no_text_commands_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\u202e[red]markup[/red]\r\n[link=https://x.invalid]:bomb:\x9b31m\ud83d"
    reply = Reply(hostile, scores={hostile: 1.0})
    bad = replace(FREE, task=hostile, kind=hostile, case=hostile, prompt=hostile, target=hostile, before=reply)
    rated = replace(RATED, choices=(hostile, " no"), answers=(hostile, "b"))
    for text in (shown(bad, rated, width=2000), shown(bad, rated, width=2000, ansi=True)):
        for command in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\r", "\x9b", "\ud83d"):
            assert command not in text
        assert r"\x1b]0;title\x07\x1b[2J\u202e[red]markup[/red]\r\n[link=https://x.invalid]:bomb:\x9b31m\ud83d" in text


def test_what_changed_is_in_another_colour() -> None:
    assert "\x1b[33m" in shown(FREE, ansi=True)
    assert "\x1b[33m" not in shown(replace(FREE, after=FREE.before), ansi=True)
