"""What is no HTTP, half of it, or too slow, at the socket of the real server: nobody else notices."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
import requests

from scripts.local_processes import LOOPBACK
from scripts.local_service import API_TOKEN, WEBHOOK_AUTH_TOKEN, Replicator
from webhook.paging import cursor_of

ANSWER_BOUND_S = 20.0
"""For one that is no slower than this test; gunicorn itself waits up to 5 s for a connection's first byte."""
GOOD_BOUND_S = 45.0
SLOW_CLIENTS = 24
"""More than the server has threads."""
TOKEN = f"Authorization: Bearer {WEBHOOK_AUTH_TOKEN}\r\n".encode()
API = f"Authorization: Bearer {API_TOKEN}\r\n".encode()
EVENT = json.dumps(
    {
        "Records": [
            {"eventName": "s3:ObjectAccessed:Get", "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}}}
        ]
    }
).encode()
PAUSE = b"POST /v1/pause HTTP/1.1\r\nHost: x\r\n" + API + b"Content-Length: 0\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(189))


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """A POST of an event with these headers, whatever they say of the body."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST /minio/events HTTP/1.1\r\nHost: x\r\n" + TOKEN + lines + b"\r\n" + body


JUNK: dict[str, bytes] = {
    "nothing": b"",
    "an empty line and the end": b"\r\n",
    "half a request line": b"POST /minio/ev",
    "a request line without a version": b"GET /healthz\r\n\r\n",
    "a version that is none": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "a version of letters": b"GET /healthz HTTP/x.y\r\nHost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "a ClientHello of TLS": CLIENT_HELLO,
    "bytes": bytes(range(256)) * 20,
    "a script for a method": b"<script>alert(1)</script> / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a script for a version": b"GET / <script>alert(1)</script>\r\nHost: x\r\n\r\n",
    "a script for a header": b"GET /healthz HTTP/1.1\r\n<script>alert(1)</script>: 1\r\n\r\n",
    "a path of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header of 1 MB": post(b"X: " + b"a" * 1_000_000),
    "10,000 headers": post(*(b"X-%d: 1" % number for number in range(10_000))),
    "a header without a colon": post(b"no colon"),
    "a header that goes on in the next line": post(b"X: 1\r\n 2"),
    "a header with a NUL": post(b"X: a\x00b"),
    "a NUL in the path": b"GET /healthz\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a NUL in the path, escaped": b"GET /v1/entries/default/a%00b HTTP/1.1\r\nHost: x\r\n" + API + b"\r\n",
    "a path that is not UTF-8": b"GET /v1/entries/default/%FF%FE HTTP/1.1\r\nHost: x\r\n" + API + b"\r\n",
    "a path out of the root": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "an address for a path": b"GET http://elsewhere.example/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a request for a tunnel": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length of letters": post(b"Content-Length: many", body=EVENT),
    "a length below zero": post(b"Content-Length: -5", body=EVENT),
    "a length with a sign": post(b"Content-Length: +5", body=EVENT),
    "a length of twenty digits": post(b"Content-Length: 99999999999999999999", body=EVENT),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=EVENT),
    "a length that is too short": post(b"Content-Length: 5", body=EVENT),
    "a length that is too long": post(b"Content-Length: 500000", body=EVENT),
    "a length and no event": post(b"Content-Length: 900"),
    "a length and no body where none means all": PAUSE.replace(b"Length: 0", b"Length: 18"),
    "a length and chunks": post(
        b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + PAUSE
    ),
    "chunks and a length": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 400", body=b"0\r\n\r\n" + PAUSE
    ),
    "chunks by another name": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + PAUSE),
    "chunks twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + PAUSE),
    "chunks behind a tab": post(b"Transfer-Encoding:\tchunked\x0b", body=b"0\r\n\r\n" + PAUSE),
    "a blank before the colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + PAUSE),
    "a chunk whose size is no number": post(b"Transfer-Encoding: chunked", body=b"zz\r\n" + EVENT),
    "a chunk below zero": post(b"Transfer-Encoding: chunked", body=b"-1\r\n" + EVENT + b"\r\n0\r\n\r\n"),
    "a chunk of 2^64 bytes": post(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n" + EVENT),
    "a chunk without its end": post(b"Transfer-Encoding: chunked", body=b"5\r\n12345678\r\n0\r\n\r\n"),
    "chunks without the last one": post(b"Transfer-Encoding: chunked", body=b"5\r\n12345\r\n"),
    "too much in chunks": post(
        b"Transfer-Encoding: chunked", body=b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n"
    ),
    "a chunk's size that has no end": post(b"Transfer-Encoding: chunked", body=b"0" * 200_000),
}
HARMLESS = {
    "a path out of the root": 404,
    "an address for a path": 200,
    "a NUL in the path, escaped": 404,
    "a path that is not UTF-8": 404,
}
"""What is HTTP after all, and is answered in the service's own words."""


def talk(service: Replicator, sent: bytes) -> bytes:
    """All that comes back until the server ends the connection; fails where it does not, in time."""
    deadline, found = time.monotonic() + ANSWER_BOUND_S, b""
    with socket.create_connection((LOOPBACK, service.port), timeout=ANSWER_BOUND_S) as line:
        try:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            while piece := line.recv(65536):
                found += piece
                assert time.monotonic() < deadline, "it does not end"
        except TimeoutError:
            raise
        except OSError:
            pass  # reset: it did not want to hear the rest
    return found


def assert_well(service: Replicator) -> None:
    """A good event is answered, by the same process."""
    headers = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    answer = requests.post(service.events_url, data=EVENT, headers=headers, timeout=GOOD_BOUND_S)
    assert (answer.status_code, answer.json()["ignored"]) == (200, 1)


@pytest.fixture(autouse=True)
def _the_same_processes(service: Replicator) -> Iterator[None]:
    def processes() -> set[int]:
        return {service.pid, *(child.pid for child in psutil.Process(service.pid).children(recursive=True))}

    before, read = processes(), service.log_path.stat().st_size
    yield
    assert_well(service)
    assert processes() == before
    assert service.get("/v1/status").json()["rules"]["default"]["paused_since"] is None
    log = service.log_path.read_bytes()[read:].decode()
    assert "Traceback" not in log
    assert "unexpected error" not in log


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_refused_or_dropped_and_carries_nothing_with_it(service: Replicator, name: str) -> None:
    answer = talk(service, JUNK[name])
    statuses = [int(status) for status in STATUS.findall(answer)]
    assert b"<script" not in answer
    if name in HARMLESS:
        assert statuses == [HARMLESS[name]]
    else:
        assert len(statuses) <= 1, "what was smuggled in was answered"
        assert all(400 <= status < 500 or status in (501, 505) for status in statuses), answer


def test_requests_sent_without_waiting_are_answered_one_by_one_in_their_order(service: Replicator) -> None:
    good = post(b"Content-Length: %d" % len(EVENT), body=EVENT)
    chunked = post(b"Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT))
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    missing = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(service, (good + chunked + health) * 5 + missing)
    assert STATUS.findall(answer) == [b"200"] * 15 + [b"404"]
    assert answer.count(b'"ignored":1') == 10
    assert answer.count(b'"alive"') == 5


def test_the_longest_query_that_a_listing_may_need_is_heard(service: Replicator) -> None:
    longest = "é" * 512
    cursor = cursor_of(("default", longest))
    assert cursor
    answer = service.get("/v1/entries", params={"prefix": longest, "contains": longest, "cursor": cursor})
    assert (answer.status_code, answer.json()["entries"]) == (200, [])


# ── slow ones ────────────────────────────────────────────────────────────────────────────────────────

SLOW = {
    "send nothing": b"",
    "never end their headers": b"POST /minio/events HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "never end their body": post(b"Content-Length: 100000", body=b'{"Records":['),
    "never end a chunk": post(b"Transfer-Encoding: chunked", body=b"ffff\r\n"),
    "ask without a token and never end their body": (
        b"POST /v1/replicate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
    ),
}


@contextmanager
def connected(service: Replicator, sent: bytes, *, buffer_bytes: int = 0) -> Iterator[list[socket.socket]]:
    """SLOW_CLIENTS connections on which this was sent."""
    with ExitStack() as open_lines:
        lines = []
        for _ in range(SLOW_CLIENTS):
            line = open_lines.enter_context(socket.socket())
            if buffer_bytes:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            line.settimeout(ANSWER_BOUND_S)
            line.connect((LOOPBACK, service.port))
            line.setblocking(False)
            drip(line, sent)
            lines.append(line)
        yield lines


def drip(line: socket.socket, sent: bytes) -> bool:
    """Sends what there is room for; whether the server still listens."""
    try:
        if sent:
            line.send(sent)
        return line.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("what", SLOW)
def test_clients_that_drip_do_not_keep_others_from_being_answered(service: Replicator, what: str) -> None:
    with connected(service, SLOW[what]) as lines:
        began = time.monotonic()
        for _ in range(3):
            assert_well(service)
            for line in lines:
                drip(line, b"" if what == "send nothing" else b"1")
        assert time.monotonic() - began < GOOD_BOUND_S


def test_clients_that_do_not_read_do_not_keep_others_from_being_answered(service: Replicator) -> None:
    many = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with connected(service, many, buffer_bytes=4096):
        for _ in range(10):  # their answers fill the system's buffers first
            assert_well(service)
            time.sleep(0.1)
