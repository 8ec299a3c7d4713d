"""A judge behind an address, on this machine: it answers, fails, times out, talks nonsense; the key stays secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Given, Server, serving

from harness.errors import UsageError
from harness.studies.judging.judges import Answer, HttpJudge, is_address


def judge(server: Server, **changes: Any) -> HttpJudge:
    return HttpJudge(server.address, "m", **{"wait": 0.01, "timeout": 20, "retries": 2, "parallel": 1, **changes})


def test_it_is_asked_at_temperature_zero_in_openais_words() -> None:
    with serving(lambda i, body: (200, "AB"[i])) as server:
        assert judge(server, key="secret").ask(["first", "second"]) == [Answer("right", "A"), Answer("wrong", "B")]
    assert [body["messages"] for body in server.seen] == [
        [{"role": "user", "content": "first"}], [{"role": "user", "content": "second"}],
    ]  # fmt: skip
    assert {(body["model"], body["temperature"]) for body in server.seen} == {("m", 0)}
    assert server.paths == ["/v1/chat/completions"] * 2
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


def test_answers_stand_in_the_order_of_the_prompts() -> None:
    def slowly(number: int, body: dict[str, Any]) -> Given:
        time.sleep(0.02 * (5 - int(body["messages"][0]["content"])))
        return 200, "ABC"[int(body["messages"][0]["content"]) % 3]

    with serving(slowly) as server:
        found = judge(server, parallel=4, timeout=5).ask([str(i) for i in range(5)])
    assert [answer.said for answer in found] == ["A", "B", "C", "A", "B"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_that_fails_is_asked_again(status: int) -> None:
    with serving(lambda i, body: (status, "later") if i < 2 else (200, "A")) as server:
        assert judge(server).ask(["q"]) == [Answer("right", "A")]
    assert len(server.seen) == 3


def test_a_server_that_goes_on_failing_gives_no_verdict() -> None:
    with serving(lambda i, body: (503, "A")) as server:
        assert judge(server).ask(["q"]) == [Answer(None, None)]
    assert len(server.seen) == 3, "once, and again as often as asked for"


def test_an_answer_that_does_not_come_in_time_is_asked_for_again() -> None:
    with serving(lambda i, body: None if i == 0 else (200, "C")) as server:
        assert judge(server, timeout=1).ask(["q"]) == [Answer("refused", "C")]
    with serving(lambda i, body: None) as server:
        assert judge(server, retries=1, timeout=0.1).ask(["q"]) == [Answer(None, None)]
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("What a question!", "What a question!"),
        (b"no JSON", None),
        (b"{}", None),
        (b'{"choices": []}', None),
        (b'{"choices": [{"message": {"content": null}}]}', None),
        (b"[1, 2]", None),
        ("x" * 10_000, "x" * 4000),
    ],
)
def test_nonsense_is_no_verdict(content: Any, said: str | None) -> None:
    with serving(lambda i, body: (200, content)) as server:
        assert judge(server).ask(["q"]) == [Answer(None, said)]


def test_one_text_that_is_refused_does_not_end_the_others() -> None:
    with serving(lambda i, body: (400, "too long") if i == 0 else (200, "A")) as server:
        assert judge(server).ask(["long", "q"]) == [Answer(None, None), Answer("right", "A")]


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (401, "give a key that it takes in the environment variable MY_KEY"),
        (404, "a model that it has with --judge-model"),
    ],
)
def test_a_judge_that_refuses_to_judge_is_told_in_one_line(status: int, cure: str) -> None:
    with serving(lambda i, body: (status, "no")) as server, pytest.raises(UsageError) as told:
        judge(server, key="sk-secret", variable="MY_KEY").ask(["q"])
    assert f"refuses to judge ({status} " in str(told.value) and cure in str(told.value)
    assert "sk-secret" not in str(told.value)


def test_nobody_there_is_no_verdict() -> None:
    with serving(lambda i, body: (200, "A")) as server:
        pass
    assert judge(server, retries=1).ask(["q"]) == [Answer(None, None)]


def test_the_key_is_no_part_of_what_a_judge_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = HttpJudge("https://judge.example:8443/v1/?api-version=2&k=sk-query", "m", key="sk-secret")
    said = json.dumps(one.identity) + repr(one)
    assert "sk-secret" not in said
    assert one.identity["address"] == "https://judge.example:8443/v1" and "sk-query" not in json.dumps(one.identity)
    assert one.identity["sha256"] == HttpJudge("https://judge.example:8443/v1", "m").identity["sha256"]
    assert one._url == "https://judge.example:8443/v1/chat/completions?api-version=2&k=sk-query"
    assert HttpJudge("http://h/v1/chat/completions", "m")._url == "http://h/v1/chat/completions"


def test_no_other_key_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serving(lambda i, body: (200, "A")) as server:
        judge(server).ask(["q"])
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://user:word@host/v1", "the address of host holds a user or a password, which would not stay secret"),
        ("http:///v1", "'http:///v1' names no host; give an address such as http://localhost:8000/v1"),
    ],
)
def test_an_address_that_cannot_be_used(address: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as found:
        HttpJudge(address, "m")
    assert "word@" not in str(found.value)


def test_what_is_an_address() -> None:
    assert is_address("http://localhost:8000/v1") and is_address("https://x")
    assert not any(map(is_address, ("mini", "owner/name@revision", "./http", "httpd")))
