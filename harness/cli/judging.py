"""The command ``judge``: a second pass over a record, in which a judge marks what was generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from harness.cli import options as opt
from harness.cli import terminal

if TYPE_CHECKING:
    from harness.studies.judging.claims import Claim
    from harness.studies.judging.judging import Agreement, Judged

__all__ = ["JudgeOptions", "judge"]


@dataclass(frozen=True)
class JudgeOptions:
    """The options that say who judges, and what."""

    judge: Annotated[str, opt.JUDGE]
    judge_model: Annotated[str | None, opt.JUDGE_MODEL]
    judge_key: Annotated[str, opt.JUDGE_KEY]
    timeout: Annotated[float, opt.TIMEOUT]
    retries: Annotated[int, opt.RETRIES]
    parallel: Annotated[int, opt.PARALLEL]
    dtype: Annotated[str, opt.DTYPE.but(help="Of a judge that is a model: float32, bfloat16, ...", default="float32")]
    device: Annotated[str | None, opt.DEVICE.but(help="Where a judge that is a model goes.")]
    batch_size: Annotated[int | None, opt.BATCH_SIZE]
    task: Annotated[str | None, opt.TASK.but(help="Judge only texts of this task, or edit set.")]
    kind: Annotated[str | None, opt.QUESTIONS.but(help="Judge only questions of this kind, such as paraphrase.")]
    at: Annotated[int | None, opt.AT.but(help="Judge only what was written after so many edits.", otherwise="all")]
    data_dir: Annotated[
        Path | None, opt.DATA_DIR.but(help="A folder with labelled claims (leme).", kind=opt.PATH, otherwise="none")
    ]
    claims: Annotated[int, opt.CLAIMS]

    def labelled(self) -> list[Claim]:
        """The labelled claims, where there is a folder of them."""
        from harness.studies.judging.claims import read_claims

        return [] if self.data_dir is None else read_claims(self.data_dir, self.claims)


@click.command()
@click.argument("path", type=opt.PATH)
@opt.taken(JudgeOptions)
@opt.FRESH.but(help="Ask again what this judge has said before.")
def judge(asked: JudgeOptions, *, path: Path, fresh: bool) -> None:
    """Let a judge mark the texts of a record right, wrong or refused (the protocol of QAEdit), and keep its verdicts.

    The texts are the samples that lie beside the record. A verdict that is known is not asked for again.
    """
    from harness import api
    from harness.reports.terminal_tables import run_table
    from harness.runs.judged_file import judged_path

    with terminal.watched() as report:
        done = api.judge(
            path, asked.judge, judge_model=asked.judge_model, judge_key=asked.judge_key, timeout=asked.timeout,
            retries=asked.retries, parallel=asked.parallel, task=asked.task, kind=asked.kind, at=asked.at,
            claims=asked.labelled(), dtype=asked.dtype, device=asked.device, batch_size=asked.batch_size, fresh=fresh,
            progress=report,
        )  # fmt: skip
    terminal.write_table(run_table(done.record))
    _say_agreement(done)
    _say_missing(done)
    terminal.say_where("verdicts:", judged_path(path))


def _say_agreement(done: Judged) -> None:
    """How far the judge agrees with exact match, and with labelled claims."""
    from harness.studies.judging.judging import agreement_with_claims, agreement_with_exact_match

    terminal.say(_agreement("exact match", agreement_with_exact_match(done.judgement)))
    if done.judgement.get("claims"):
        terminal.say(_agreement("labelled claims", agreement_with_claims(done.judgement)))


def _agreement(what: str, found: Agreement) -> str:
    from harness.reports.cells import brackets, number

    one = found.kappa
    if found.alike is None:
        return f"agreement with {what}: no verdict"
    interval = brackets(None if one.low is None or one.high is None else (one.low, one.high)).replace("[", "\\[")
    said = f"Cohen's kappa {number(one.value)} {interval}".rstrip()
    return (
        f"agreement with {what}: {said}, {found.alike:.0%} alike, n {one.n}{f' ({one.reason})' if one.reason else ''}"
    )


def _say_missing(done: Judged) -> None:
    told = f"asked {done.asked}"
    if done.missing:
        told += (
            f"; [yellow]{done.missing} texts have no verdict[/], and do not count: the same call asks for them again"
        )
    if done.cut:
        told += f"; [yellow]{done.cut} prompts were longer than the judge's context and were cut from the left[/]"
    terminal.say(told)
