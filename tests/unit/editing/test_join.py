"""What stands between a prompt and its target."""

from __future__ import annotations

import pytest

from harness.editing.edit import Edit
from harness.editing.join import join_of, trimmed
from harness.errors import DataError
from harness.exam import tasks
from harness.runs.new_record import edits_sha256


@pytest.mark.parametrize(
    ("prompt", "target", "join"),
    [
        ("The capital of France is", "Paris", " "),
        ("中国的首都是", "上海", ""),
        ("答案:", "上海", ""),
        ("東京タワーは", "日本にある", ""),
        ("ประเทศไทยมีเมืองหลวงคือ", "กรุงเทพ", ""),
        ("我在 Google 工作的城市是", "Paris", ""),
        ("The capital of China is", "北京", " "),
        ("The people of 中国", "are", " "),
        ("서울은 나라의 수도", "일본", " "),
        ("1,2,3,", "4", ""),
        ("10:30:", "15", ""),
        ("Score 1, 2,", "3", " "),
        ("In 1999,", "2000 people", " "),
        ("https://www.", "example.org", ""),
        ("see www.example.org/a", "b", ""),
        ("and/", "or", ""),
        ('The book is called "', 'Rome"', ""),
        ('He said "yes', '" and left', ""),
        ('He said "yes"', "and left", " "),
        ("He said (", "yes", ""),
        ("the dogs'", "food", " "),
        ("Ada was born in Rome", ", Italy", ""),
        ("John", "'s wife", ""),
        ("The framework is", ".NET", " "),
        ("x =", "5", " "),
        ("x=", "5", ""),
        ("It costs $", "5", ""),
        ("well-", "known", ""),
        ("Q -", "a", " "),
        ("Answer:\n", "yes", ""),
        ("Answer:", " yes", ""),
    ],
)
def test_a_space_stands_where_the_text_would_have_one(prompt: str, target: str, join: str) -> None:
    assert join_of(prompt, target) == join
    assert Edit("1", prompt, None, target).continuation == join + target


@pytest.mark.parametrize(
    ("prompt", "target", "wanted"),
    [
        ("is", " soul", ("is", "soul", None)),
        ("is \t", "  soul \n", ("is", "soul", None)),
        ("is\n", "soul", ("is\n", "soul", "")),
        ("is \n ", "soul", ("is \n", "soul", "")),
        ("is", "\nsoul", ("is", "soul", "\n")),
        ("is", " \n\nsoul", ("is", "soul", "\n\n")),
    ],
)
def test_spaces_at_the_seam_are_taken_off_and_line_breaks_stay(
    prompt: str, target: str, wanted: tuple[str, str, str | None]
) -> None:
    assert trimmed(prompt, target) == wanted


def test_a_row_may_say_its_join() -> None:
    assert Edit("1", "a", None, "b", join="").continuation == "b"
    assert Edit("1", "中国的首都是", None, "上海", join=" ").continuation == " 上海"
    with pytest.raises(DataError, match="join is '-', expected white space or nothing"):
        Edit("1", "a", None, "b", join="-")


def test_a_join_names_an_edit_only_where_it_is_not_the_usual_space() -> None:
    plain, chinese = Edit("1", "a b", None, "c"), Edit("1", "中国的首都是", None, "上海")
    assert edits_sha256([plain]) == edits_sha256([Edit("1", "a b", None, "c", join=" ")])
    assert edits_sha256([plain]) != edits_sha256([Edit("1", "a b", None, "c", join="")])
    assert edits_sha256([chinese]) == edits_sha256([Edit("1", "中国的首都是", None, "上海", join="")])
    assert edits_sha256(tasks.read_edits("counterfact", data_dir="mini", count=50)) == "899a6f23e1fe9d96"


def test_the_slot_is_where_the_subject_is_and_other_braces_are_text() -> None:
    edit = Edit("1", "In Python, {} is empty; {} prefers", "Ada", "lists", slot=24)
    assert edit.text == "In Python, {} is empty; Ada prefers"
    assert edit.text[edit.begins :].startswith("Ada")
    with pytest.raises(DataError, match="0 slots"):
        Edit("1", "In Python, {} is empty; {} prefers", "Ada", "lists", slot=23)
    assert Edit("1", "{} is", "Foo{}", "a class").text == "Foo{} is"
