"""Requests that want too much, or never end; and what every answer carries."""

from __future__ import annotations

import gzip
import json
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flask.testing import FlaskClient

from scripts.local_processes import LOOPBACK
from scripts.local_service import Replicator
from tests.security.conftest import (
    API,
    API_TOKEN,
    BOUND_S,
    EVENTS,
    HOOK,
    HOOK_TOKEN,
    TOKENS,
    OnLoopback,
    ask,
    serving,
    status_of,
)
from tests.security.test_tokens import is_page, routes
from tests.unit.conftest import MakeClient
from tests.unit.test_app import body_of, error_of, ledger_of, record
from tests.unit.test_pages import TOKEN_FIELD, sign_in, token_in

MIB = 1024 * 1024
AS_HOOK = f"Authorization: Bearer {HOOK_TOKEN}"
AS_API = f"Authorization: Bearer {API_TOKEN}"
IN_CHUNKS = "Transfer-Encoding: chunked"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def memory_mib(server: Replicator) -> float:
    """What its processes hold together."""
    parent = psutil.Process(server.pid)
    return sum(each.memory_info().rss for each in [parent, *parent.children()]) / MIB


# ── too much ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [EVENTS, "/v1/replicate", "/v1/failures/retry"])
def test_a_body_over_a_mebibyte_is_refused_however_its_length_is_told(served: Replicator, path: str) -> None:
    """Also where what is over it would change nothing of its meaning."""
    who = AS_HOOK if path == EVENTS else AS_API
    body = b"{}" + b" " * MIB
    announced = ask(served, f"POST {path} HTTP/1.1\n{who}\nContent-Length: {len(body)}", body)
    chunked = ask(served, f"POST {path} HTTP/1.1\n{who}\n{IN_CHUNKS}", chunk(body) + b"0\r\n\r\n")
    assert (status_of(announced), status_of(chunked)) == (413, 413)


def test_a_body_without_an_end_is_refused_and_held_nowhere(served: Replicator) -> None:
    before_mib = memory_mib(served)
    piece, sent = chunk(b" " * MIB), 0
    with socket.create_connection((LOOPBACK, served.port), timeout=BOUND_S) as connection:
        connection.sendall(f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\n{AS_HOOK}\r\n{IN_CHUNKS}\r\n\r\n".encode())
        with pytest.raises(OSError):
            while sent < 2000:  # it hangs up long before
                connection.sendall(piece)
                sent += 1
    assert memory_mib(served) - before_mib < 50


@pytest.mark.parametrize("path", [EVENTS, "/v1/replicate"])
def test_a_compressed_body_is_not_unpacked(served: Replicator, path: str) -> None:
    before_mib = memory_mib(served)
    bomb = gzip.compress(b" " * (200 * MIB) + body_of(record("of-a-bomb")))
    assert len(bomb) < MIB
    head = f"POST {path} HTTP/1.1\n{AS_HOOK if path == EVENTS else AS_API}\nContent-Length: {len(bomb)}"
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        answer = ask(served, f"{head}\nContent-Encoding: {encoding}", bomb)
        assert status_of(answer) == 400, encoding
    assert memory_mib(served) - before_mib < 50
    assert served.get("/v1/entries/default/of-a-bomb", headers=API).status_code == 404


def test_json_that_is_nested_deeply_or_has_huge_numbers_is_refused(client: FlaskClient) -> None:
    for path in (EVENTS, "/v1/replicate", "/v1/pause", "/v1/failures/retry", "/v1/sweeps"):
        for body in (
            b"[" * 200_000,
            b'{"a":' * 150_000,
            b"9" * 100_000,
            b'{"s3_key":' + b"9" * 100_000 + b"}",
        ):
            answer = client.post(path, data=body)
            assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), (path, body[:20])


def test_many_headers_or_long_ones_are_refused(served: Replicator) -> None:
    many = "\n".join(f"X-{number}: y" for number in range(1000))
    for lines in (many, "X: " + "y" * 100_000, "Cookie: replicator=" + "y" * 100_000):
        assert status_of(ask(served, f"GET /healthz HTTP/1.1\n{lines}")) in (400, 431)
    assert status_of(ask(served, "GET /" + "y" * 100_000 + " HTTP/1.1")) in (400, 414)


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\nTransfer-Encoding: chunked",
        "Content-Length: 5\nContent-Length: 6",
        "Transfer-Encoding: chunked\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: +5",
        "Content-Length: 0x5",
    ],
)
def test_a_request_that_a_proxy_could_read_otherwise_is_refused(served: Replicator, lines: str) -> None:
    """No second request can be hidden in the body of a first one."""
    hidden = f"GET /v1/status HTTP/1.1\r\nHost: x\r\n{AS_API}\r\n\r\n".encode()
    answer = ask(served, f"POST {EVENTS} HTTP/1.1\n{AS_HOOK}\n{lines}", b"0\r\n\r\n" + hidden)
    assert status_of(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1


# ── never ending ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["Content-Length: 1000", IN_CHUNKS])
@pytest.mark.parametrize("path", [EVENTS, "/v1/replicate", "/v1/failures/retry"])
def test_a_stranger_s_body_is_not_waited_for(served: Replicator, path: str, how: str) -> None:
    answer = ask(served, f"POST {path} HTTP/1.1\n{how}", is_whole=False)
    assert status_of(answer) == 401


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Replicator]:
    """The service, whose time for reading a request is short."""
    config = tmp_path / "served" / "impatient.py"
    config.parent.mkdir()
    config.write_text("exec(open('config/gunicorn.conf.py').read())\nBoundedWorker.READ_S = 1.0\n")

    class Impatient(OnLoopback):
        def _command(self) -> list[str]:
            return shlex.split(f"gunicorn --config {config} webhook:create_app()")

    with serving(config.parent, Impatient, **TOKENS) as running:
        yield running


def test_requests_that_never_end_keep_nobody_else_out(impatient: Replicator) -> None:
    """More of them than there are threads: begun heads, begun bodies, also of those who have the token."""
    begun = [b"GET /heal", b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntok"]
    begun += [f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\n{AS_HOOK}\r\nContent-Length: 100\r\n\r\n{{".encode()]
    held = [socket.create_connection((LOOPBACK, impatient.port), timeout=BOUND_S) for _ in range(20)]
    for number, connection in enumerate(held):
        connection.sendall(begun[number % 3])
    assert impatient.get("/v1/status", headers=API).status_code == 200
    for connection in held:
        while connection.recv(65536):  # an answer, or none: but an end
            pass
        connection.close()


# ── what every answer carries ────────────────────────────────────────────────────────────────────────


def test_no_answer_is_kept_or_taken_for_another_type(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    sign_in(client, API_TOKEN)
    for method, path in [
        *routes(client.application),
        ("GET", "/nothing"),
        ("PUT", "/v1/status"),
        ("GET", "/é"),
    ]:
        for headers in ({}, API, HOOK):
            with client.open(path, method=method, headers=headers) as answer:
                assert answer.headers["X-Content-Type-Options"] == "nosniff", (method, path)
                assert "Access-Control-Allow-Origin" not in answer.headers, (method, path)
                if path != "/page/page.css":
                    assert answer.headers["Cache-Control"] == "no-store", (method, path)


def test_no_page_can_be_framed_or_tells_others_where_it_was(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    sign_in(client, API_TOKEN)
    for method, path in [*routes(client.application), ("GET", "/object?rule=a&key=b")]:
        if is_page(path) and path not in ("/healthz", "/readyz", "/openapi.json"):
            with client.open(path, method=method) as answer:
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"], (method, path)
                assert answer.headers["X-Frame-Options"] == "DENY", (method, path)
                assert answer.headers["Referrer-Policy"] == "same-origin", (method, path)


def test_every_button_needs_the_session_s_own_form(make_client: MakeClient) -> None:
    """Also those that are added later: they are found in the routes."""
    client = make_client(**TOKENS)
    sign_in(client, API_TOKEN)
    other = make_client(**TOKENS)
    sign_in(other, API_TOKEN)
    buttons = [path for method, path in routes(client.application) if method == "POST" and is_page(path)]
    assert len(buttons) > 8
    for path in buttons:
        for token in ("", "0" * 64, token_in(other.get("/"))):
            answer = client.post(path, data={TOKEN_FIELD: token, "sure": "yes"})
            assert answer.status_code == 400, (path, token)
            assert "nothing was done" in answer.text


def test_cookies_are_for_this_site_and_no_script(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    for headers in ({}, {"X-Forwarded-Proto": "https"}):
        answer = client.get("/sign-in", headers=headers)
        cookies = answer.headers.getlist("Set-Cookie")
        fields = {"token": API_TOKEN, TOKEN_FIELD: token_in(answer)}
        base_url = "https://localhost" if headers else None
        cookies += client.post("/sign-in", data=fields, headers=headers, base_url=base_url).headers.getlist(
            "Set-Cookie"
        )
        assert cookies
        for cookie in cookies:
            _name, *terms = cookie.split("; ")
            assert {"HttpOnly", "SameSite=Strict"} <= set(terms), cookie
            assert ("Secure" in terms) == bool(headers), cookie
            assert not any(term.startswith("Domain") for term in terms), cookie


@pytest.mark.parametrize("ending", ["\r\nX-Evil: 1", "\nX-Evil: 1", "\r\n\r\n<script>", "%0d%0aX-Evil: 1"])
def test_no_text_of_a_caller_becomes_a_header_of_the_answer(make_client: MakeClient, ending: str) -> None:
    client = make_client(**TOKENS)
    key = f"a{ending}"
    queued = client.post("/v1/replicate", data=json.dumps({"s3_key": key, "wait": False}), headers=API)
    assert queued.status_code == 202
    assert client.get(queued.json["entry"], headers=API).json["key"] == key
    answers = [queued, client.get("/sign-in", query_string={"back": f"/{ending}"})]
    sign_in(client, API_TOKEN)
    form = {TOKEN_FIELD: token_in(client.get("/"))}
    where = {"rule": "default", "key": key}
    answers.append(client.post("/object/copy", query_string=where, data=form))
    assert answers[-1].status_code == 303
    answers += [
        client.get("/object", query_string=where),
        client.get(f"/nothing{ending.replace('%', '%25')}"),
    ]
    answers.append(client.get("/", headers={"X-Forwarded-Host": "evil.example"}))
    for answer in answers:
        assert "X-Evil" not in answer.headers
        assert answer.is_json or "<script>" not in answer.text
        for name, value in answer.headers:
            assert value.isprintable(), name
            assert "evil.example" not in value


def test_an_event_of_a_bucket_that_no_rule_names_asks_nothing_of_anybody(make_client: MakeClient) -> None:
    """No entry, so nothing that a worker could send to a store."""
    client = make_client(**TOKENS)
    buckets = [
        "target-bucket",
        "Source-Bucket",
        "source-bucket/..",
        "../source-bucket",
        "*",
        "",
        " source-bucket",
    ]
    for bucket in [*buckets, "source-bucket\0", "source-bucket/k"]:
        answer = client.post(EVENTS, data=body_of(record("k", bucket)), headers=HOOK)
        assert answer.status_code == 200, bucket
        assert answer.json["accepted"] == 0, bucket
    assert sum(sum(lanes.values()) for lanes in ledger_of(client).counts().values()) == 0
