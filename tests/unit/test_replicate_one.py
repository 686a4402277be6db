"""scripts/replicate_one.py, for each answer that the service can give."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from responses import matchers

from scripts import replicate_one
from scripts.command_line import Code, Failure, Interrupted, WrongUse

URL = "http://127.0.0.1:8000"
ASKED = f"{URL}/v1/replicate"
TOKEN = "s3cr3t-token"
REPLICATED = {"status": "replicated", "s3_key": "a.txt", "size": 13, "lost": []}


def error(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint}}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """All that the script sees of an environment; tests add to it."""
    monkeypatch.chdir(tmp_path)
    values = {"API_TOKEN": TOKEN, "HOME": str(tmp_path)}
    monkeypatch.setattr("os.environ", values)
    return values


@pytest.fixture
def service() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the script; gives its exit status and what it printed to stdout, where no secret is."""

    def go(*arguments: str) -> tuple[int, str]:
        code = replicate_one.main(list(arguments))
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, out

    return go


@pytest.mark.parametrize(
    ("status", "answer", "code", "line"),
    [
        (200, REPLICATED, 0, "replicated  a.txt  (13 B)"),
        (200, REPLICATED | {"cid": "Qm1"}, 0, "replicated  a.txt  (13 B; CID Qm1)"),
        (200, REPLICATED | {"lost": ["tag:x"]}, 0, "replicated  a.txt  (13 B; without tag:x)"),
        (200, REPLICATED | {"copies": [REPLICATED] * 2}, 0, "replicated  a.txt  (13 B; 2 copies)"),
        (202, {"status": "queued"}, 0, "queued      a.txt"),
        (409, REPLICATED | error("exists", "held", "fine"), 0, "exists      a.txt  (13 B)"),
        (404, error("not_found", "no object", "Look."), 1, "not found   a.txt: no object. Look."),
        (502, error("source_denied", "source: denied.", ""), 1, "failed      a.txt: source: denied."),
        (500, error("unexpected", "unforeseen", "See."), 1, "failed      a.txt: unforeseen. See."),
        (503, error("ledger_unavailable", "locked", "Wait."), 1, "failed      a.txt: locked. Wait."),
        (400, error("bad_request", "no rule", "Name one."), 2, "failed      a.txt: no rule. Name one."),
        (401, error("unauthorized", "wrong", "Send it."), 2, "failed      a.txt: wrong. Send it."),
    ],
)
def test_each_answer_has_a_line_and_an_exit_status(
    status: int,
    answer: dict[str, Any],
    code: int,
    line: str,
    run: Callable[..., tuple[int, str]],
    service: responses.RequestsMock,
) -> None:
    service.post(ASKED, json=answer, status=status)
    assert run("a.txt") == (code, f"{line}\n")


def test_the_request_is_the_services_own(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    for asked, arguments in (
        ({"s3_key": "a b/ü+"}, ()),
        ({"s3_key": "a b/ü+", "bucket": "photos", "wait": False}, ("--bucket", "photos", "--no-wait")),
    ):
        fits = [
            matchers.json_params_matcher(asked),
            matchers.header_matcher({"Authorization": f"Bearer {TOKEN}"}),
        ]
        service.post(ASKED, json=REPLICATED, match=fits)
        assert run("a b/ü+", *arguments)[0] == 0


def test_no_token_is_sent_where_none_is_set(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock, variables: dict[str, str]
) -> None:
    del variables["API_TOKEN"]
    service.post(ASKED, json=REPLICATED)
    run("a.txt")
    assert "Authorization" not in service.calls[0].request.headers


def test_a_login_in_netrc_does_not_replace_the_token(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    service.post(ASKED, json=REPLICATED)
    run("a.txt")
    assert service.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"


def test_several_keys_are_asked_for_in_turn_and_the_worst_decides(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, status=404, json=error("not_found", "no object", ""))
    service.post(ASKED, json=REPLICATED)
    code, out = run("gone", "a.txt")
    assert code == 1
    assert [line.split()[-1] for line in out.splitlines()] == ["object.", "B)"]


def test_keys_come_from_stdin_too(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(
        io.BytesIO("first\n\r\n mid \r\ncafé\nnot\xff".encode("latin-1").replace(b"\xe9", b"\xc3\xa9"))
    )
    monkeypatch.setattr("sys.stdin", stdin)
    service.post(ASKED, json=REPLICATED)
    code, _ = run("zero", "-")
    sent = [json.loads(call.request.body or b"")["s3_key"] for call in service.calls]
    assert sent == ["zero", "first", " mid ", "café"]
    assert code == 1  # the last one is not UTF-8


def test_json_is_the_answer_with_key_and_status(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, json=REPLICATED)
    service.post(ASKED, status=502, body="<html>Bad gateway", content_type="text/html")
    code, out = run("a.txt", "b\x1b", "--json")
    first, second = map(json.loads, out.splitlines())
    assert first == {"key": "a.txt", "http_status": 200, **REPLICATED}
    assert (second["key"], second["http_status"]) == ("b\x1b", 502)
    assert "not the service's" in second["error"]["message"]
    assert code == 1


@pytest.mark.parametrize("status", [200, 409])
def test_another_programs_answer_is_no_success(
    status: int, run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, status=status, body="<html>Welcome")
    code, out = run("a.txt")
    assert code == 1
    assert "Check --url" in out


def test_control_characters_of_keys_and_answers_are_shown_escaped(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, status=404, json=error("not_found", "no \x1b[2J", ""))
    assert run("a\x1b]0;b\n")[1] == "not found   a\\x1b]0;b\\n: no \\x1b[2J.\n"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    status: int, run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, status=status, headers={"Location": "http://elsewhere.example/"})
    code, out = run("a.txt", "b.txt")
    assert code == Code.WRONG_USE
    assert "--url" in out
    assert len(service.calls) == 1


def test_after_a_wrong_token_no_other_key_is_asked_for(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, status=401, json=error("unauthorized", "wrong", "Send it."))
    assert run("a.txt", "b.txt")[0] == Code.WRONG_USE
    assert len(service.calls) == 1


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (requests.ConnectionError(f"to {TOKEN}"), "make run"),
        (requests.ConnectTimeout(), "make run"),
        (requests.exceptions.SSLError(), "SSL_CERT_FILE"),
        (OSError("no such bundle"), "SSL_CERT_FILE"),
    ],
)
def test_a_service_that_is_not_there_is_said_so(
    raised: Exception, words: str, run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, body=raised)
    with pytest.raises(Failure, match=words) as caught:
        run("a.txt")
    assert TOKEN not in str(caught.value)


def test_a_copy_that_takes_too_long_fails_alone(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    service.post(ASKED, body=requests.ReadTimeout())
    service.post(ASKED, json=REPLICATED)
    code, out = run("a.txt", "b.txt")
    assert code == 1
    assert "--no-wait" in out
    assert "replicated  b.txt" in out


def test_an_interrupt_says_what_was_done(
    run: Callable[..., tuple[int, str]], service: responses.RequestsMock
) -> None:
    def press(_: object) -> tuple[int, dict[str, str], str]:
        raise KeyboardInterrupt

    service.post(ASKED, json=REPLICATED)
    service.add_callback("POST", ASKED, press)
    with pytest.raises(Interrupted, match="Until then: 1 replicated"):
        run("a.txt", "b.txt")


@pytest.mark.parametrize(
    ("given", "arguments", "url"),
    [
        ({"PORT": "8123"}, (), "http://127.0.0.1:8123"),
        ({"PORT": "8123", "REPLICATOR_URL": "https://host/"}, (), "https://host"),
        ({"REPLICATOR_URL": "https://host"}, ("--url", "http://other:1/below/"), "http://other:1/below"),
    ],
)
def test_the_service_is_where_options_or_settings_say(
    given: dict[str, str],
    arguments: tuple[str, ...],
    url: str,
    run: Callable[..., tuple[int, str]],
    service: responses.RequestsMock,
    variables: dict[str, str],
) -> None:
    variables.update(given)
    service.post(f"{url}/v1/replicate", json=REPLICATED)
    assert run("a.txt", *arguments)[0] == 0


def test_settings_come_from_an_env_file_too(
    run: Callable[..., tuple[int, str]],
    service: responses.RequestsMock,
    variables: dict[str, str],
    tmp_path: Path,
) -> None:
    del variables["API_TOKEN"]
    (tmp_path / ".env").write_text(f"API_TOKEN={TOKEN}\nPORT=8123\n")
    service.post("http://127.0.0.1:8123/v1/replicate", json=REPLICATED)
    run("a.txt")
    assert service.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("given", [{"REPLICATOR_URL": "host:8000"}, {"PORT": "x"}, {"API_TOKEN": "tökén"}])
def test_settings_that_cannot_be_used_are_named(
    given: dict[str, str], run: Callable[..., tuple[int, str]], variables: dict[str, str]
) -> None:
    variables.update(given)
    with pytest.raises(WrongUse, match=r"REPLICATOR_URL|API_TOKEN") as caught:
        run("a.txt")
    assert given.get("API_TOKEN", "tökén") not in str(caught.value)


def test_the_proxy_of_the_environment_is_for_https_alone(variables: dict[str, str]) -> None:
    variables["https_proxy"] = "http://proxy:3128"
    for url, proxies in (("https://host", {"https": "http://proxy:3128"}), (URL, {})):
        asked = replicate_one.Service(url=url, token=TOKEN, ca_file=None)
        assert TOKEN not in repr(asked)
        with asked.session() as session:
            assert (session.proxies, session.trust_env) == (proxies, False)
