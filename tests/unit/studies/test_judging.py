"""A judge over a record: what it says becomes numbers, is kept, and what it does not say is missing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import DataError, UsageError
from harness.exam.verdicts import PROMPT_SHA256, Verdict, judge_prompt, verdict_of
from harness.io.files import pack_json, unpack_json
from harness.models.lm import LM
from harness.reports.leaderboard import leaderboard
from harness.runs.judged_file import judge_digest, judged_path, with_verdicts
from harness.runs.options import RunOptions
from harness.runs.plan import Plan
from harness.runs.record import record_name
from harness.runs.record_file import read_record
from harness.runs.resolve import resolve
from harness.runs.runner import run_plan
from harness.runs.sample_file import iterate_samples
from harness.runs.ties import require_tied
from harness.studies.judging.claims import read_claims
from harness.studies.judging.judges import Answer, Judge, ModelJudge
from harness.studies.judging.judging import (
    Which,
    agreement_with_claims,
    agreement_with_exact_match,
    judge_record,
)

PEOPLE = ("Ada Velmont", "Hugo Lantern", "Iris Calder", "Elena Marsh")


class Scripted(Judge):
    """Says what a function says of each prompt, and remembers what it was asked."""

    def __init__(self, says: Callable[[str], str | None], name: str = "scripted", at_once: int = 5) -> None:
        self.says, self.name, self.at_once = says, name, at_once
        self.asked: list[str] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "scripted", "sha256": "0" * 64}

    def ask(self, prompts: Sequence[str]) -> list[Answer]:
        self.asked += prompts
        said = [self.says(prompt) for prompt in prompts]
        return [Answer(None if one is None else verdict_of(one), one) for one in said]


def by_length(prompt: str) -> str:
    """A grade that depends on the prompt alone: its length modulo 3."""
    return "ABC"[len(prompt) % 3]


@pytest.fixture(scope="module")
def made(checkpoint: Callable[..., Path], nudge: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of four random edits, measured after two and after all, with its samples."""
    folder = tmp_path_factory.mktemp("made")
    rows = [
        {"prompt": "{} was born in", "subject": who, "target": "Rome", "paraphrases": [f"The home of {who} is"]}
        for who in PEOPLE
    ]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = Plan(
        str(checkpoint("gpt2")), nudge, {"scale": 6.0}, str(folder / "my.jsonl"), mode="sequential", eval_at="2,final"
    )
    kept = run_plan(resolve(plan), RunOptions(folder / "out", device="cpu", rows=8, log_samples=True))
    return folder / "out" / f"{record_name(kept)}.json"


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for file in made.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / made.name


def texts(path: Path) -> dict[tuple[int, str, str], list[tuple[str, str]]]:
    """Stop, kind and document -> each generated text with its prompt for a judge, straight from the samples."""
    found: dict[tuple[int, str, str], list[tuple[str, str]]] = {}
    for one in iterate_samples(path):
        for at, reply in ((0, one.before), (one.at, one.after)):
            if reply is not None and reply.text is not None:
                place = (at, str(one.kind), f"{one.task}/{one.doc_id}")
                found[place] = [(reply.text, judge_prompt(one.prompt, one.answers or [one.target], reply.text))]
    return found


def metric(kind: str, judge: Judge) -> str:
    return f"{kind}_judged@{judge_digest(judge.identity, PROMPT_SHA256)}"


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_golden_verdicts_become_numbers(path: Path) -> None:
    judge = Scripted(by_length)
    done = judge_record(path, judge)
    assert done.missing == 0 and done.asked == len(judge.asked) == len(set(judge.asked)) > 5
    assert done.record.judged is not None
    found = with_verdicts(read_record(path, values=True))
    for at in (0, 2, 4):
        for kind in ("rewrite", "paraphrase"):
            prompts = [prompt for (a, k, _), ((_, prompt),) in texts(path).items() if (a, k) == (at, kind)]
            right = [by_length(prompt) == "A" for prompt in prompts]
            numbers = found.tasks(at)["own"][metric(kind, judge)]
            assert numbers["n"] == len(right) == (2 if at == 2 else 4)
            assert numbers["value"] == pytest.approx(sum(right) / len(right))
            assert (numbers["difference"] is None) is (at == 0)
    one = found.tasks(4)["own"][metric("rewrite", judge)]
    unedited = found.tasks(0)["own"][metric("rewrite", judge)]
    assert one["difference"]["value"] == pytest.approx(one["value"] - unedited["value"])
    assert one["difference"]["n"] == 4 and one["difference"]["interval"] is not None


def test_the_front_door_judges_as_the_command_does(path: Path) -> None:
    judge = Scripted(by_length)
    done = harness.judge(path, judge)
    assert done.asked == len(judge.asked) > 0
    assert done.judgement["judge"] == judge.identity
    assert harness.judge(path, judge, kind="paraphrase").asked == 0  # all of it is known
    assert harness.judge(path, judge, at=2, fresh=True).asked < done.asked
    for given, said in (
        ({"judge": "http://localhost:1/v1"}, "a server has several models; name one with --judge-model"),
        ({"judge": "mini", "judge_model": "x"}, "'mini' is no address"),
        ({"judge": 3}, "judge is a int; give harness.load"),
    ):
        with pytest.raises(UsageError, match=said):
            harness.judge(path, **given)


def test_tables_have_a_column_only_where_there_is_a_judge(path: Path) -> None:
    before = leaderboard([read_record(path, values=True)], "md")
    assert "judged" not in before
    judge = Scripted(by_length)
    judge_record(path, judge)
    after = leaderboard([read_record(path, values=True)], "md")
    digest = judge_digest(judge.identity, PROMPT_SHA256)
    assert f"rewrite\\_judged@{digest}" in after
    assert f"judged@{digest}: the share of texts that scripted marks right" in after
    assert "own.rewrite_judged@" in leaderboard([read_record(path, values=True)], "csv")


def test_the_record_itself_is_not_touched(path: Path, made: Path) -> None:
    judge_record(path, Scripted(by_length))
    assert path.read_bytes() == made.read_bytes()
    again = read_record(path, values=True)
    require_tied([again])
    assert again.to_json() == read_record(made).to_json()
    assert with_verdicts(read_record(path)).to_json() == again.to_json(), "without values nothing is judged"


def test_agreement_with_exact_match(path: Path) -> None:
    exact = Scripted(lambda prompt: "A" if '\nReply: "Rome' in prompt else "B")
    found = agreement_with_exact_match(judge_record(path, exact).judgement)
    assert found.alike == 1.0
    assert found.kappa.value in (None, pytest.approx(1.0)), "none where no text is right"
    lenient = agreement_with_exact_match(judge_record(path, Scripted(by_length, "other")).judgement)
    assert lenient.alike is not None and lenient.alike < 1.0


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_same_call_again_asks_nothing(path: Path) -> None:
    first = judge_record(path, Scripted(by_length))
    kept = judged_path(path).read_bytes()
    silent = Scripted(lambda _: pytest.fail("asked again"))
    again = judge_record(path, silent)
    assert again.asked == 0 and again.judgement["rows"] == first.judgement["rows"]
    assert judged_path(path).read_bytes() == kept
    fresh = judge_record(path, Scripted(lambda _: "B"), fresh=True)
    assert fresh.asked == first.asked
    assert {row["verdict"] for row in fresh.judgement["rows"]} == {"wrong"}


def test_some_texts_now_and_the_others_later(path: Path) -> None:
    judge = Scripted(by_length)
    judge_record(path, judge, which=Which(kind="rewrite", at=2))
    assert {(row["kind"], row["at"]) for row in _rows(path)} == {("rewrite", 0), ("rewrite", 2)}
    some = len(judge.asked)
    whole = judge_record(path, judge)
    assert len(judge.asked) == len(set(judge.asked)) == some + whole.asked
    assert len(_rows(path)) == len(texts(path))


def test_two_judges_stand_side_by_side(path: Path) -> None:
    one, other = Scripted(lambda _: "A", "one"), Scripted(lambda _: "C", "other")
    judge_record(path, one)
    judge_record(path, other)
    table = with_verdicts(read_record(path, values=True)).tasks(4)["own"]
    assert (table[metric("rewrite", one)]["value"], table[metric("rewrite", other)]["value"]) == (1.0, 0.0)
    assert judge_record(path, Scripted(lambda _: "B", "one")).asked == 0


def test_what_was_said_is_kept_while_the_judge_is_at_work(path: Path) -> None:
    def stops(prompt: str) -> str:
        if len(stopping.asked) > 5:
            raise KeyboardInterrupt
        return "A"

    stopping = Scripted(stops)
    with pytest.raises(KeyboardInterrupt):
        judge_record(path, stopping)
    assert sum(row["verdict"] == "right" for row in _rows(path)) >= 5
    judge = Scripted(lambda _: "B")
    done = judge_record(path, judge)
    assert not set(judge.asked) & set(stopping.asked[:5]) and done.missing == 0


def test_verdicts_on_other_numbers_do_not_count(path: Path) -> None:
    judge = Scripted(by_length)
    judge_record(path, judge)
    record = read_record(path, values=True)
    record.sealed = "of another run"
    assert with_verdicts(record) is record
    assert record.judged is not None


def _rows(path: Path) -> list[Any]:
    record = read_record(path, values=True)
    assert record.judged is not None
    return list(record.judged[0]["rows"])


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_is_not_answered_is_missing_and_asked_again(path: Path) -> None:
    kept = texts(path)
    silent = next(prompt for (at, kind, _), ((_, prompt),) in kept.items() if (at, kind) == (4, "rewrite"))
    judge = Scripted(lambda prompt: None if prompt == silent else "no grade" if "paraphrase" in prompt else "A")
    done = judge_record(path, judge)
    gone = [place for place, ((_, prompt),) in kept.items() if prompt == silent]
    assert done.missing == len(gone)
    numbers = with_verdicts(done.record).tasks(4)["own"][metric("rewrite", judge)]
    left = sum((at, kind) == (4, "rewrite") for at, kind, _ in gone)
    assert (numbers["n"], numbers["value"]) == (4 - left, 1.0), "missing, not wrong"
    again = Scripted(lambda _: "B")
    assert judge_record(path, again).missing == 0
    assert again.asked == [silent]


def test_nonsense_is_missing_and_its_words_are_kept(path: Path) -> None:
    done = judge_record(path, Scripted(lambda _: "What a question!"))
    assert done.missing == len(done.judgement["rows"]) and set(done.judgement["said"].values()) == {"What a question!"}
    numbers = with_verdicts(done.record).tasks(4)["own"]
    (found,) = (value for name, value in numbers.items() if name.startswith("rewrite_judged"))
    assert (found["value"], found["n"]) == (None, 0) and found["reason"]
    assert agreement_with_exact_match(done.judgement).alike is None


def test_a_judge_that_is_gone_is_not_asked_on_and_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = Scripted(lambda _: None, at_once=3)
    done = judge_record(path, judge)
    assert done.asked == len(judge.asked) == 3
    assert "the judge did not answer 3 times in a row" in caplog.text
    assert done.missing == len(done.judgement["rows"])


# --- a model ----------------------------------------------------------------------------------------------------------


def test_a_model_gives_valid_verdicts_by_likelihood(path: Path, tiny: Callable[..., LM]) -> None:
    judge = ModelJudge(tiny("gpt2"), rows=8)
    done = judge_record(path, judge)
    assert done.missing == 0
    for said in done.judgement["said"].values():
        assert isinstance(said, list) and len(said) == 3 and all(v is not None and v < 0 for v in said)
    best = {key: max(range(3), key=lambda i: said[i]) for key, said in done.judgement["said"].items()}  # type: ignore[index, misc]
    names: list[Verdict] = ["right", "wrong", "refused"]
    assert all(row["verdict"] == names[best[row["prompt"]]] for row in done.judgement["rows"])
    assert judge.identity["kind"] == "model" and len(judge.identity["sha256"]) == 64
    assert judge.cut > 0, "the prompt is longer than this model's context"


def test_a_chat_template_is_the_users_turn(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    judge = ModelJudge(lm)
    assert judge._context("Grade:") == "Grade:"
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
    try:
        assert ModelJudge(lm)._context("Grade:") == "<user>Grade:</><assistant>"
    finally:
        lm.tokenizer.chat_template = None


# --- claims -----------------------------------------------------------------------------------------------------------


def labelled(folder: Path, *rows: str) -> Path:
    (folder / "leme").mkdir(parents=True)
    head = "content,sample_id,example_id,classification,method,label,question_type\n"
    with gzip.open(folder / "leme" / "annotations_dataset.csv.gz", "wt") as file:
        file.write(head + "".join(f"{row}\n" for row in rows))
    return folder


def test_labelled_claims_are_judged_too(path: Path, tmp_path: Path) -> None:
    said = [("Ada lives in Rome.", "supports"), ("Ada lives in Oslo.", "contradicts"), ("It rains.", "neutral")] * 4
    rows = [
        f'"Passage: {a} \n\n Claim: Ada home Rome",s{i % 3},e,{label},rome,x,y' for i, (a, label) in enumerate(said)
    ]
    claims = read_claims(labelled(tmp_path / "data", *rows), None)
    assert [(c.passage, c.claim, c.label) for c in claims[:2]] == [
        ("Ada lives in Rome.", "Ada home Rome", "right"), ("Ada lives in Oslo.", "Ada home Rome", "wrong"),
    ]  # fmt: skip
    judge = Scripted(lambda prompt: "A" if "lives in Rome" in prompt else "B" if "lives in" in prompt else "C")
    found = agreement_with_claims(judge_record(path, judge, claims=claims).judgement)
    assert (found.alike, found.kappa.value, found.kappa.n) == (1.0, pytest.approx(1.0), 12)
    again = judge_record(path, Scripted(lambda _: pytest.fail("asked again")), claims=claims)
    assert agreement_with_claims(again.judgement).alike == 1.0
    assert read_claims(tmp_path / "none", 5) == []


def test_a_file_of_claims_that_is_none(tmp_path: Path) -> None:
    for number, row in enumerate(('"no claim",s,e,supports,rome,x,y', '"Passage: a Claim: b",s,e,maybe,rome,x,y')):
        with pytest.raises(DataError, match=r"row 1: expected 'Passage: \.\.\. Claim: \.\.\.' and a label"):
            read_claims(labelled(tmp_path / str(number), row), None)


def test_all_published_claims_are_read(shared: Path) -> None:
    folder = shared / "data"
    claims = read_claims(folder, None)
    counts = {label: sum(claim.label == label for claim in claims) for label in ("right", "wrong", "refused")}
    assert counts == {"right": 832, "wrong": 471, "refused": 339}
    assert all(claim.passage and claim.claim for claim in claims)
    assert len(read_claims(folder, 50, seed=1)) == 50
    assert read_claims(folder, 50, 1) != read_claims(folder, 50, 2)


# --- what cannot be judged --------------------------------------------------------------------------------------------


def test_what_cannot_be_judged(path: Path, tmp_path: Path) -> None:
    judge = Scripted(lambda _: pytest.fail("asked"))
    with pytest.raises(DataError, match="none of these samples is a text with a right answer"):
        judge_record(path, judge, which=Which(task="own_probability"))
    with pytest.raises(DataError, match="no sample has the kind 'rewritten'"):
        judge_record(path, judge, which=Which(kind="rewritten"))
    judged_path(path).write_bytes(b"half")
    with pytest.raises(DataError, match=r"not what harness judge writes .*; delete it, and judge again"):
        judge_record(path, judge)
    judged_path(path).unlink()
    changed = json.loads(path.read_text())
    changed["points"][-1]["tasks"]["own"]["efficacy_accuracy"]["value"] = 0.123
    path.write_text(json.dumps(changed))
    with pytest.raises(DataError):
        judge_record(path, judge)
    changed["status"] = "interrupted"
    (tmp_path / "half.json").write_text(json.dumps(changed))
    with pytest.raises((UsageError, DataError)):
        judge_record(tmp_path / "half.json", judge)


def test_verdicts_of_another_record(path: Path) -> None:
    judge_record(path, Scripted(by_length))
    packed = unpack_json(judged_path(path).read_bytes())
    judged_path(path).write_bytes(pack_json({**packed, "id": "f" * 16}))
    with pytest.raises(DataError, match=r"not verdicts on record .*; delete it, and judge again"):
        read_record(path, values=True)
    assert read_record(path).judged is None, "without values nothing beside the record is read"
