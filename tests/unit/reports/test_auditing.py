"""What our checks say of runs that others made: each check finds what it is for, and nothing where there is nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from published_files import counterfact_case, easy_case, hallu_row, write_cases, write_lines

from harness.errors import DataError
from harness.reports.auditing import CHECKS, Finding, audit_path, audit_records
from harness.reports.importing import Told, read_published
from harness.reports.published_values import read_published_values
from harness.runs.record import Record


def found(findings: list[Finding], check: str) -> list[str]:
    return [finding.text for finding in findings if finding.check == check]


def answers(tmp_path: Path, rows: list[dict[str, Any]]) -> list[Record]:
    return read_published("halluedit", write_lines(tmp_path / "halluedit_m.jsonl", rows))


def rows(editor: str, right: int, count: int = 40, **more: Any) -> list[dict[str, Any]]:
    """Cases of one editor, of which the first are right."""
    return [hallu_row(editor, case, [int(case < right)] * 7, **more) for case in range(count)]


def test_every_check_has_its_name_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/published-runs.md").read_text(encoding="utf-8")
    of_tables = ["n", "quoted", "double", "unreadable"]
    assert [check for check in [*CHECKS, *of_tables] if f"| `{check}` |" not in page] == []


def test_nothing_is_said_where_there_is_nothing(tmp_path: Path) -> None:
    records = answers(tmp_path, rows("FT-M", 38) + rows("MEMIT", 8))
    assert [finding.check for finding in audit_records(records)] == ["seeds"]
    for record in records:
        record.seed = 0
    assert audit_records(records) == []


def test_an_editor_that_was_asked_otherwise(tmp_path: Path) -> None:
    (text,) = found(
        audit_records(answers(tmp_path, rows("GRACE", 39) + rows("FT-M", 20) + rows("MEMIT", 1))), "protocols"
    )
    assert text.startswith(
        "GRACE, but not 2 other rows: GRACE alone was asked after its edit without the chat template"
    )


def test_ways_of_editing_that_do_not_compare(tmp_path: Path) -> None:
    write_cases(tmp_path / "ROME", [counterfact_case(case) for case in range(3)])
    write_cases(tmp_path / "MEMIT", [counterfact_case(case, group=[0, 1, 2]) for case in range(3)])
    groups = ([0, 1], [2, 3])
    write_cases(tmp_path / "AlphaEdit", [counterfact_case(case, group=groups[1]) for group in groups for case in group])
    (text,) = found(audit_path(tmp_path, Told(model="gpt2-xl")), "protocols")
    ways = "sequential (2 at a time): AlphaEdit; batch: MEMIT; isolated: ROME"
    assert text == f"edited in 3 ways that do not compare: {ways}"


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"mom2_adjustment": False}, ["edited without the covariance of keys (mom2_adjustment: false)"]),
        ({"layers": [5]}, ["not told whether the covariance of keys was used"]),
        ({"mom2_adjustment": True}, []),
    ],
)
def test_rome_without_covariance(params: dict[str, Any], says: list[str], tmp_path: Path) -> None:
    write_cases(tmp_path / "ROME", [counterfact_case(case) for case in range(3)], params)
    texts = found(audit_path(tmp_path, Told(model="gpt2-xl")), "covariance")
    assert len(texts) == len(says) and all(text.startswith(said) for text, said in zip(texts, says, strict=True))


def test_an_unedited_model_that_answers_otherwise(tmp_path: Path) -> None:
    mixed = rows("FT-M", 38) + rows("MEMIT", 20) + rows("ROME", 2)
    assert found(audit_records(answers(tmp_path, mixed)), "unedited") == []
    other = [{**row, "pre": {**row["pre"], "yes": 1}} if row["case_id"] in (3, 4) else row for row in rows("ROME", 2)]
    (text,) = found(audit_records(answers(tmp_path, rows("FT-M", 38) + rows("MEMIT", 20) + other)), "unedited")
    assert text.startswith("under ROME the unedited model answers otherwise than under all others in 2 cases")


def test_a_mean_over_two_rows(tmp_path: Path) -> None:
    records = answers(tmp_path, rows("FT-M", 38) + rows("SERAC", 2, count=2))
    assert found(audit_records(records), "few") == ["a mean over 2 cases of HalluEditBench, where others have 40"]
    assert found(audit_records(records), "power") == [
        "HalluEditBench efficacy: 2 cases would show 100.0 points or more, not less"
    ]


def test_too_few_cases_to_tell(tmp_path: Path) -> None:
    assert found(audit_records(answers(tmp_path, rows("FT-M", 4))), "power") == [
        "HalluEditBench efficacy: 40 cases would show 19.05 points or more, not less"
    ]
    assert found(audit_records(answers(tmp_path, rows("FT-M", 30))), "power") == []  # it is told


def test_a_difference_that_is_none(tmp_path: Path) -> None:
    texts = found(audit_records(answers(tmp_path, rows("FT-M", 21) + rows("MEMIT", 20))), "no difference")
    assert texts[0].startswith("FT-M before MEMIT by efficacy: +2.500 points [-5.670, +10.43]")
    assert "p 1: no test tells them apart; less than" in texts[0]
    assert found(audit_records(answers(tmp_path, rows("FT-M", 30) + rows("MEMIT", 20))), "no difference") == []


def test_what_cannot_be_read_is_said_and_the_rest_of_the_checks_go_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "halluedit_m.jsonl", [*rows("FT-M", 3), hallu_row("FT-M", 0, [1] * 7)])
    (finding,) = audit_path(path)
    assert (finding.check, "runs are mixed" in finding.text) == ("unreadable", True)


def test_a_place_where_nothing_can_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        audit_path(tmp_path / "none")
    with pytest.raises(DataError, match="neither records nor results of"):
        audit_path(tmp_path)


def test_the_files_of_easyedit_are_seen_by_their_names(tmp_path: Path) -> None:
    for editor in ("ROME", "GRACE", "IKE"):
        cases = json.dumps([easy_case(case) for case in range(8)])
        (tmp_path / f"{editor}_zsre_gpt2-xl_results.json").write_text(cases)
    checks = Counter(finding.check for finding in audit_path(tmp_path))
    assert {"protocols", "covariance", "seeds"} <= set(checks)


def test_what_is_found_in_the_published_files(shared: Path) -> None:
    """GRACE asked otherwise, ROME without covariance and on another baseline, a mean over two rows, and ties."""
    folder = shared / "data/published"
    llama = audit_path(folder / "halluedit_percase_meta_llama_3_8b_instruct.jsonl.gz")
    assert Counter(finding.check for finding in llama) == {
        "protocols": 1, "covariance": 1, "unedited": 1, "no difference": 5, "seeds": 1,
    }  # fmt: skip
    assert (
        "under ROME the unedited model answers otherwise than under all others in 6 cases"
        in found(llama, "unedited")[0]
    )
    knowedit = audit_path(folder / "knowedit_easyedit_percase_llama2.jsonl.gz")
    assert found(knowedit, "few") == ["a mean over 2 cases of KnowEdit counterfact, where others have 839"]
    assert len(found(knowedit, "covariance")) == 3


# --- tables of published values ---------------------------------------------------------------------------------------

HEAD = "paper,table,model,data,protocol,n_edits,batch,method,metric,value,sd,source,certainty\n"


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "values.csv"
    path.write_text(HEAD + "".join(f"{line}\n" for line in lines))
    return path


def test_a_table_of_several_protocols(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "A,T1,gpt2,zsRE,batch,100,100,MEMIT,es,90.1,0.2,p. 3,read in the paper",
        "A,T1,gpt2,zsRE,sequential,100,1,ROME,es,80.1,0.2,p. 3,read in the paper",
        "A,T1,gpt2,zsRE,none,0,,Pre-edited,es,1.0,0.2,p. 3,read in the paper",
    )
    (finding,) = audit_path(path)
    assert str(finding) == "A, T1: protocols: gpt2, zsRE, es: batch, 100 edits: MEMIT; sequential, 100 edits: ROME"


def test_a_method_that_is_spelled_twice_has_two_values(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "A,T1,gpt2,zsRE,batch,100,,ROME,es,90.1,0.1,p. 3,read in the paper",
        "A,T1,gpt2,zsRE,batch,100,,ROME*,es,12.0,0.1,p. 3,read in the paper",
    )
    assert [str(found) for found in audit_path(path)] == [
        "A, T1: double: gpt2, zsRE, ROME, es, batch, 100 edits: 12.0 and 90.1"
    ]


def test_values_without_deviation_count_or_source(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "A,T1,gpt2,zsRE,batch,~100,,MEMIT,es,90.1,,p. 3,read in stored notes that quote the table",
        "A,T1,gpt2,zsRE,batch,~100,,MEMIT,es,90.2,,p. 4,",
    )
    assert [str(finding) for finding in audit_path(path)] == [
        "A, T1: double: gpt2, zsRE, MEMIT, es, batch, ~100 edits: 90.1 and 90.2",
        "A, T1: n: the number of edits of 2 of 2 values is not told, or only about",
        "A, T1: seeds: none of 2 values has a deviation: made once, or over seeds not told",
        "A, T1: quoted: 2 of 2 values were only quoted; read them in the paper",
    ]


def test_the_collected_table_is_read_whole(shared: Path) -> None:
    path = shared / "data/published/tables.csv"
    values = read_published_values(path)
    assert len(values) == 837 and {one.value for one in values} >= {">21000", "12.29 h"}
    texts = found(audit_path(path), "protocols")
    assert any("2000000 edits: UltraEdit; sequential, 20000 edits: AlphaEdit, RLEdit" in text for text in texts)
