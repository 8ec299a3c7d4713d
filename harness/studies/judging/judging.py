"""A second pass over a record: a judge marks the texts that were generated.

What a judge has said is kept, by the prompt that it was asked: the same call again asks nothing, and a call that was
stopped asks what is left.  What it does not answer has no verdict, and is asked again by the next call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError, UsageError
from harness.exam.samples import Reply, Sample
from harness.exam.statistics import Estimate, kappa
from harness.exam.text_metrics import begins_with
from harness.exam.verdicts import PROMPT_SHA256, Verdict, judge_prompt, prompt_key
from harness.io.nobody import tell_nobody
from harness.runs.judged_file import JudgedClaim, JudgedRow, Judgement, write_judged
from harness.runs.record import Record
from harness.runs.record_file import read_record
from harness.runs.sample_file import chosen_samples
from harness.runs.ties import require_tied
from harness.studies.judging.claims import Claim
from harness.studies.judging.judges import Judge

__all__ = [
    "Agreement",
    "Judged",
    "Which",
    "agreement_with_claims",
    "agreement_with_exact_match",
    "judge_record",
    "require_texts",
]

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Which:
    """Which texts are judged; None is all.

    Attributes:
        task: of this task, or edit set.
        kind: questions of this kind.
        at: after so many edits.
    """

    task: str | None = None
    kind: str | None = None
    at: int | None = None


@dataclass(frozen=True)
class Judged:
    """What came of a call.

    Attributes:
        record: the record, with all that judges have said of it.
        judgement: what this judge said, now and before.
        asked: how many prompts it was asked now.
        missing: how many of the texts have no verdict.
        cut: how many prompts were cut from the left to fit the judge.
    """

    record: Record
    judgement: Judgement
    asked: int
    missing: int
    cut: int = 0


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with something else.

    Attributes:
        alike: the share of texts of which both say the same.
        kappa: Cohen's kappa, with its interval.
    """

    alike: float | None
    kappa: Estimate


def judge_record(
    path: Path,
    judge: Judge,
    *,
    which: Which = Which(),
    claims: Sequence[Claim] = (),
    fresh: bool = False,
    report: Report = tell_nobody,
) -> Judged:
    """Let a judge mark the texts beside a record, and keep what it says.

    Args:
        path: the JSON of a complete record with samples beside it.
        judge: who is asked.
        which: which texts.
        claims: labelled claims, which it is asked too.
        fresh: whether it is asked again what it has said before.
        report: told how far it is.

    Raises:
        DataError: no samples lie beside the record, none of them is a text with a right answer, or the record was
            changed.
        UsageError: the record is not complete, or the judge refuses to answer at all.
    """
    record = read_record(path, values=True)
    require_tied([record])
    _require_complete(path, record)
    rows, prompts = _rows(path, which)
    asked = [
        JudgedClaim(id=c.id, cluster=c.cluster, prompt=prompt_key(c.prompt), verdict=None, label=c.label)
        for c in claims
    ]
    prompts |= {prompt_key(claim.prompt): claim.prompt for claim in claims}
    others, mine = _known(record, judge)
    known = {} if fresh else {row["prompt"]: row["verdict"] for row in (*mine["rows"], *mine.get("claims", ()))}
    under_way = _Asking(path, record, others, mine, rows, asked)
    unknown = {key: prompt for key, prompt in prompts.items() if known.get(key) is None}
    count = under_way.ask(judge, prompts=unknown, known=known, report=report)
    missing = sum(row["verdict"] is None for row in (*rows, *asked))
    return Judged(read_record(path, values=True), under_way.judgement, count, missing, judge.cut)


def require_texts(path: Path, which: Which) -> None:
    """See, before a judge is loaded, that there is something to judge.

    Raises:
        DataError: no samples lie beside the record, or none of them is a text with a right answer.
        UsageError: the record is not complete.
    """
    _require_complete(path, read_record(path))
    _rows(path, which)


def _require_complete(path: Path, record: Record) -> None:
    if record.status != "complete":
        raise UsageError(f"{path}: is {record.status}; let its run end first, with the same harness run again")


def _rows(path: Path, which: Which) -> tuple[list[JudgedRow], dict[str, str]]:
    """The texts to judge, without verdicts, and their prompts."""
    rows: dict[tuple[str, int, int, int], JudgedRow] = {}
    prompts: dict[str, str] = {}
    for sample in chosen_samples(path, task=which.task, kind=which.kind, at=which.at):
        for at, reply in ((0, sample.before), (sample.at, sample.after)):
            place = (*sample.key, at)
            if reply is not None and reply.text is not None and sample.target.strip() and place not in rows:
                prompt = judge_prompt(sample.prompt, sample.answers or (sample.target,), reply.text)
                prompts[prompt_key(prompt)] = prompt
                rows[place] = _row(sample, reply, at, prompt)
    if not rows:
        raise DataError(
            f"{path}: none of these samples is a text with a right answer; ask of an exam that generates some"
        )
    return list(rows.values()), prompts


def _row(sample: Sample, reply: Reply, at: int, prompt: str) -> JudgedRow:
    return JudgedRow(
        task=sample.task,
        group=sample.group or sample.task,
        doc_id=sample.doc_id,
        question=sample.question,
        kind=sample.kind,
        case=sample.case,
        at=at,
        prompt=prompt_key(prompt),
        verdict=None,
        exact=begins_with(reply.text or "", sample.target, sample.answers[1:]),
    )


def _known(record: Record, judge: Judge) -> tuple[list[Judgement], Judgement]:
    """What other judges have said of a record, and what this one has."""
    mine = Judgement(judge=judge.identity, prompt_sha256=PROMPT_SHA256, record="", rows=[], said={})
    others = []
    for one in record.judged or []:
        if (one["judge"], one["prompt_sha256"]) == (mine["judge"], PROMPT_SHA256):
            mine = one
        else:
            others.append(one)
    return others, mine


class _Asking:
    """A call under way: what was said is on disk after each part of it."""

    def __init__(
        self,
        path: Path,
        record: Record,
        others: Sequence[Judgement],
        mine: Judgement,
        rows: Sequence[JudgedRow],
        claims: Sequence[JudgedClaim],
    ) -> None:
        self.path, self.record, self.others = path, record, others
        self.rows, self.claims = rows, claims
        seal = record.sealed or record.seal()
        asked = {_place(row) for row in rows}
        kept = [row for row in mine["rows"] if _place(row) not in asked] if mine["record"] == seal else []
        ids = {claim["id"] for claim in claims}
        told = [claim for claim in mine.get("claims", ()) if claim["id"] not in ids]
        self.judgement = Judgement(
            judge=mine["judge"],
            prompt_sha256=PROMPT_SHA256,
            record=seal,
            rows=[*kept, *rows],
            said=dict(mine["said"]),
            claims=[*told, *claims],
        )

    def ask(self, judge: Judge, *, prompts: dict[str, str], known: dict[str, Verdict | None], report: Report) -> int:
        """Ask what is not known, a part at a time, and give how many prompts were asked."""
        self._note(known)
        keys, done = list(prompts), 0
        while done < len(keys):
            part = keys[done : done + judge.at_once]
            report("judge", done, len(keys))
            answers = judge.ask([prompts[key] for key in part])
            done += len(part)
            for key, answer in zip(part, answers, strict=True):
                self.judgement["said"][key] = answer.said
                known[key] = answer.verdict
            self._note(known)
            self._save()
            if all(answer.said is None for answer in answers) and done < len(keys):
                log.warning(
                    "the judge did not answer %d times in a row: %d more texts are not asked; the same call asks them",
                    len(part), len(keys) - done,
                )  # fmt: skip
                break
        self._save()
        return done

    def _note(self, known: dict[str, Verdict | None]) -> None:
        for row in (*self.rows, *self.claims):
            row["verdict"] = known.get(row["prompt"])

    def _save(self) -> None:
        write_judged(self.path, self.record.id, [*self.others, self.judgement])


def _place(row: JudgedRow) -> tuple[str, int, int, int]:
    return row["task"], row["doc_id"], row["question"], row["at"]


# --- agreement --------------------------------------------------------------------------------------------------------


def agreement_with_exact_match(judgement: Judgement, seed: int = 0) -> Agreement:
    """How far a judge's *right* is that of exact match: the reply begins with a right answer.

    Args:
        judgement: what it said.
        seed: of the bootstrap.
    """
    pairs = {
        f"{'/'.join(map(str, _place(row)))}": (_yes(row["verdict"] == "right"), _yes(row["exact"]), row["case"])
        for row in judgement["rows"]
        if row["verdict"] is not None
    }
    return _agreement(pairs, seed)


def agreement_with_claims(judgement: Judgement, seed: int = 0) -> Agreement:
    """How far a judge agrees with the labels of claims, on all three verdicts.

    Args:
        judgement: what it said.
        seed: of the bootstrap.
    """
    claims = judgement.get("claims", [])
    pairs = {c["id"]: (str(c["verdict"]), str(c["label"]), c["cluster"]) for c in claims if c["verdict"] is not None}
    return _agreement(pairs, seed)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _agreement(pairs: Mapping[str, tuple[str, str, str | None]], seed: int) -> Agreement:
    alike = sum(first == second for first, second, _ in pairs.values()) / len(pairs) if pairs else None
    return Agreement(alike, kappa(pairs, seed))
