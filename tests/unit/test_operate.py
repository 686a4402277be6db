"""scripts/operate.py, for what the service can answer; tests/acceptance/test_operate.py asks a real one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from responses import matchers

from scripts import operate, operate_views
from scripts.command_line import Code, Failure, WrongUse
from scripts.local_service import ROOT

URL = "http://127.0.0.1:8000"
TOKEN = "s3cr3t-token"
UNAUTHORIZED = {"error": {"code": "unauthorized", "message": "the token is wrong", "hint": "Send API_TOKEN."}}
LOCKED = {"error": {"code": "ledger_unavailable", "message": "locked", "hint": "Wait."}}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that the script sees of an environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"API_TOKEN": TOKEN, "HOME": str(tmp_path), "COLUMNS": "120"})


@pytest.fixture
def service() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the script; gives its exit status and what it printed to stdout, where no secret is."""

    def go(*arguments: str) -> tuple[int, str]:
        code = operate.main(list(arguments))
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, out

    return go


def failed(key: str) -> dict[str, Any]:
    """A failed entry, as far as it is shown."""
    return {
        "rule": "default",
        "key": key,
        "state": "failed",
        "error_code": "target_store_denied",
        "error": "target: denied.",
        "attempts_made": [{"ended_at": 1_700_000_000.0, "result": "error", "error": "denied"}],
    }


def reasons(number: int) -> dict[str, Any]:
    """All of them failed by one reason."""
    since = "2026-11-24T23:59:59.000Z"
    one = {
        "rule": "default",
        "reason": "target_store_denied",
        "number": number,
        "since": since,
        "example": "no",
    }
    return {"reasons": [one]}


def test_failures_come_from_as_many_pages_as_it_takes(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]]
) -> None:
    service.get(f"{URL}/v1/failures/reasons", json=reasons(3))
    first = matchers.query_param_matcher({"limit": "3", "reason": "target_store_denied"})
    service.get(
        f"{URL}/v1/failures", json={"failures": [failed("a"), failed("b")], "next": "c1"}, match=[first]
    )
    second = matchers.query_param_matcher({"limit": "3", "reason": "target_store_denied", "cursor": "c1"})
    service.get(f"{URL}/v1/failures", json={"failures": [failed("c")], "next": None}, match=[second])
    code, out = run("failures", "--limit", "3", "--reason", "target_store_denied", "--json")
    assert code == Code.DONE
    assert [json.loads(line)["key"] for line in out.splitlines()] == ["a", "b", "c"]


def test_a_key_cannot_speak_to_the_terminal(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]]
) -> None:
    service.get(f"{URL}/v1/failures/reasons", json=reasons(1))
    service.get(f"{URL}/v1/failures", json={"failures": [failed("a\x1b[2Jb\n\u202ec")], "next": None})
    _, out = run("failures")
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert "1 object failed." in out


def test_the_token_is_sent_and_what_is_asked_for_is_what_was_said(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]]
) -> None:
    sent = [
        matchers.json_params_matcher({"prefix": "a/", "reason": "x"}),
        matchers.header_matcher({"Authorization": f"Bearer {TOKEN}"}),
    ]
    service.post(f"{URL}/v1/failures/retry", json={"retried": 2}, match=sent)
    assert run("retry", "--prefix", "a/", "--reason", "x") == (0, "2 failed objects are tried again.\n")
    all_of_them = [matchers.json_params_matcher({})]
    service.post(f"{URL}/v1/failures/retry", json={"retried": 1}, match=all_of_them)
    assert run("retry", "--all") == (0, "1 failed object is tried again.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["retry", "--all", "--key", "a"],
        ["pause"],
        ["resume"],
        ["deletes", "approve"],
        ["quarantine", "discard"],
    ],
)
def test_nothing_is_done_to_everything_by_mistake(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    with pytest.raises(WrongUse, match="--all"):
        run(*arguments)
    assert len(service.calls) == 0


@pytest.mark.parametrize("arguments", [["status"], ["failures"], ["retry", "--all"], ["explain", "k"]])
def test_what_the_service_refuses_is_told_in_its_words(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    paths = {
        "status": "status",
        "failures": "failures/reasons",
        "retry": "failures/retry",
        "explain": "entries",
    }
    method = responses.POST if arguments[0] == "retry" else responses.GET
    for status, body, kind, text in (
        (401, UNAUTHORIZED, WrongUse, "the token is wrong. Send API_TOKEN."),
        (503, LOCKED, Failure, "locked. Wait."),
        (500, "<html>", Failure, "not the service's"),
    ):
        given = {"json": body} if isinstance(body, dict) else {"body": body}
        service.add(method, f"{URL}/v1/{paths[arguments[0]]}", status=status, **given)
        with pytest.raises(kind, match=text.replace(".", r"\.")):
            run(*arguments)
        service.reset()


def test_where_nobody_answers_it_says_so(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]]
) -> None:
    service.get(f"{URL}/v1/status", body=requests.ConnectionError(f"refused {TOKEN}"))
    with pytest.raises(Failure, match=r"does not answer at http://127\.0\.0\.1:8000"):
        run("status")


def documented() -> list[str]:
    """The arguments of all commands that the documents show, and that the script itself recommends."""
    texts = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    texts += [text.format(rule="--rule RULE") for text in operate_views.HELP.values()] + [operate.EXAMPLES]
    shown = re.findall(r"scripts/operate\.py ([a-z][^`\n;|#]*)", "\n".join(texts))
    return sorted({each.split(" lets them go")[0].strip() for each in shown})


@pytest.mark.parametrize("words", documented())
def test_each_command_that_is_recommended_gets_as_far_as_asking_the_service(
    service: responses.RequestsMock, run: Callable[..., tuple[int, str]], words: str
) -> None:
    with pytest.raises(Failure, match="does not answer"):
        run(*shlex.split(words))


def test_the_help_of_each_command_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        "status",
        "watch",
        "explain",
        "failures",
        "retry",
        "pause",
        "resume",
        "quarantine",
        "sweep",
        "deletes",
    )
    with pytest.raises(SystemExit) as ended:
        operate.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(each in told for each in commands)
    for each in commands:
        with pytest.raises(SystemExit) as ended:
            operate.main([each, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out
