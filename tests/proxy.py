"""A loopback proxy before a real S3 server: counts what passes, and does what no server does on demand.

    with Proxy(server.endpoint) as proxy:
        proxy.plan("GetObject", flip_answer, nth=2)
        ... # the client signs for `proxy.endpoint`; the Host header is passed on as it came
        assert proxy.counted == {"HeadObject": 1, "GetObject": 2}

A fault is a function of one `Exchange`: it may change the request, call `forward()` and change the answer,
set an answer of its own so that nothing is forwarded, or raise `Drop`. Bodies are held in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

TIMEOUT_S = 60.0
OBJECT = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
PART = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}


class Drop(Exception):
    """Close the connection without another byte."""


@dataclass
class Answer:
    """What goes back to the client; after `sent_bytes` of the body the connection is cut."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_bytes: int | None = None


@dataclass
class Exchange:
    """One request, and its answer once there is one."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    server: str
    answer: Answer | None = None

    def forward(self, halfway: Callable[[], object] = lambda: None) -> Answer:
        """Lets the server do it; gives the answer, which may be changed. `halfway` is done when the headers
        and half of the body are sent.
        """
        if self.answer is None:
            upstream = http.client.HTTPConnection(urlsplit(self.server).netloc, timeout=TIMEOUT_S)
            with contextlib.closing(upstream):
                upstream.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers:
                    upstream.putheader(name, value)
                middle = len(self.body) // 2
                upstream.endheaders(self.body[:middle])
                halfway()
                upstream.send(self.body[middle:])
                got = upstream.getresponse()
                self.answer = Answer(got.status, dict(got.getheaders()), got.read())
        return self.answer


Fault = Callable[[Exchange], None]


@dataclass
class Proxy:
    """Stands before the server at this URL; as a context it listens. Thread-safe."""

    server: str
    counted: Counter[str] = field(default_factory=Counter)
    """Requests by S3 operation, those that met a fault too."""
    plans: dict[tuple[str, int], Fault] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, operation: str, fault: Fault, *, nth: int = 1, times: int = 1) -> None:
        """Does `fault` to the nth request of that operation from now on, and to `times` in a row."""
        with self.lock:
            first = self.counted[operation] + nth
            self.plans |= {(operation, number): fault for number in range(first, first + times)}

    def forget(self) -> None:
        """Starts anew: no plans, nothing counted."""
        with self.lock:
            self.plans.clear()
            self.counted.clear()

    def fault_for(self, operation: str) -> Fault:
        """Counts one request; gives what is planned for it."""
        with self.lock:
            self.counted[operation] += 1
            return self.plans.get((operation, self.counted[operation]), lambda exchange: None)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._listener.handle_error = lambda *_: None  # clients hang up as they like
        self.endpoint = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = [(name, value) for name, value in self.headers.items() if name.lower() != "expect"]
        exchange = Exchange(self.command, self.path, headers, body, self.proxy.server)
        try:
            self.proxy.fault_for(operation_of(self.command, self.path))(exchange)
            self._send(exchange.forward())
        except (Drop, OSError, http.client.HTTPException):
            self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _send(self, answer: Answer) -> None:
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        self.send_response_only(answer.status)
        for name, value in headers.items():
            if name not in ("Connection", "Transfer-Encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.sent_bytes])
        self.close_connection |= answer.sent_bytes is not None

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def operation_of(method: str, path: str) -> str:
    """The S3 operation of a path-style request."""
    where = urlsplit(path)
    query = parse_qs(where.query, keep_blank_values=True)
    if "/" not in unquote(where.path).strip("/") and not where.path.endswith("//"):
        if "uploads" in query:
            return "ListMultipartUploads"
        return "HeadBucket" if method == "HEAD" else f"{method} bucket"
    if "uploads" in query:
        return "CreateMultipartUpload"
    if "uploadId" in query:
        return PART.get(method, "ListParts")
    return OBJECT[method] + "Tagging" * ("tagging" in query)


def flipped(body: bytes) -> bytes:
    """The same with one bit in its middle changed."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def flip_request(exchange: Exchange) -> None:
    """One bit of the request's body changes on the way."""
    exchange.body = flipped(exchange.body)


def flip_answer(exchange: Exchange) -> None:
    """One bit of the answer's body changes on the way."""
    answer = exchange.forward()
    answer.body = flipped(answer.body)


def cut_answer(exchange: Exchange) -> None:
    """The connection breaks in the middle of the answer's body."""
    answer = exchange.forward()
    answer.sent_bytes = len(answer.body) // 2


def drop(exchange: Exchange) -> None:
    """The connection breaks before the server hears of the request."""
    raise Drop


def lose_answer(exchange: Exchange) -> None:
    """The server does it, and nobody hears."""
    exchange.forward()
    raise Drop


def answering(status: int, body: str | bytes, **headers: str) -> Fault:
    """These bytes, or an S3 error of this code, instead of the server's answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, str):
        given["Content-Type"] = "application/xml"
        body = f"<Error><Code>{body}</Code><Message>planned</Message></Error>".encode()

    def fault(exchange: Exchange) -> None:
        exchange.answer = Answer(status, given, b"" if exchange.method == "HEAD" else body)

    return fault


def after(action: Callable[[], object]) -> Fault:
    """`action` is done, or waited for, between the request's arrival and its passing on."""
    return lambda exchange: action() and None


def halfway(action: Callable[[], object]) -> Fault:
    """`action` is done, or waited for, when the headers and half of the body are sent."""

    def fault(exchange: Exchange) -> None:
        exchange.forward(action)

    return fault
