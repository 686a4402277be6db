"""HTTP connections to one host, kept open and used again; nothing here knows of S3.

The standard library's client, with what it leaves to others: bodies of any length are sent and received
within bounds of silence instead of a bound on the whole, and connections that have gone stale are found out.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import select
import socket
import ssl
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from webhook.errors import SettingsError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Silence on a connection, not the length of a transfer."""
SLOWEST_BYTES_PER_S = 64
"""An answer slower than this for READ_TIMEOUT_S counts as silence."""
SEND_BYTES = 256 * 1024
"""Sent within READ_TIMEOUT_S, or it counts as silence."""
BUFFER_BYTES = 64 * 1024
INTERIM_MAX = 20
"""Interim answers before one that counts."""
IDLE_MAX_S = 60.0
"""Firewalls forget silent connections without a word."""
CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a connection raises that the other side has closed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent; the headers are all there but Content-Length, values as bytes in Latin-1."""

    method: str
    target: str
    """Path and query, encoded."""
    headers: Mapping[str, str]
    body: memoryview | None
    check: Callable[[], None] | None = None
    """Called right before it is sent, each time, when the connection is open; raises to prevent that."""


class Response(http.client.HTTPResponse):
    """An answer whose body is still to be read."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self._heads = 0
        self._clock = _Clock(self.fp.detach())
        self.fp = io.BufferedReader(self._clock, BUFFER_BYTES)

    def _read_status(self) -> tuple[str, int, str]:
        """Interim answers other than 100 are left out too (RFC 9110, 15.2)."""
        while True:
            self._heads += 1
            if self._heads > INTERIM_MAX:
                raise http.client.HTTPException("interim answers only")
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == http.client.CONTINUE or status >= http.client.OK:
                return version, status, reason
            http.client.parse_headers(self.fp)

    def _read_and_discard_trailer(self) -> None:
        """No more of it than of a head."""
        http.client.parse_headers(self.fp)

    def restart_clock(self) -> None:
        """Begins to measure silence anew, after a time in which nobody wanted to read."""
        self._clock.restart()


class _Clock(io.RawIOBase):
    """Reads from a socket, and gives up what only drips."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.restart()

    def restart(self) -> None:
        """Begins a new window of READ_TIMEOUT_S."""
        self._count, self._since = 0, time.monotonic()

    def readable(self) -> bool:
        """As io has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As io has it. Raises: TimeoutError where too little came in a window."""
        count = self._raw.readinto(buffer) or 0
        self._count += count
        if time.monotonic() - self._since > READ_TIMEOUT_S:
            if count and self._count < SLOWEST_BYTES_PER_S * READ_TIMEOUT_S:
                raise TimeoutError("the answer only drips")
            self.restart()
        return int(count)

    def close(self) -> None:
        """The socket's file too."""
        self._raw.close()
        super().close()


class Connection(http.client.HTTPConnection):
    """One connection; `idle_since` is a monotonic time."""

    response_class = Response
    idle_since = 0.0

    def is_stale(self) -> bool:
        """Whether it was closed by the other side, or may have been forgotten on the way."""
        if self.sock is None or time.monotonic() - self.idle_since > IDLE_MAX_S:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))  # nothing was asked: this is the end, or worse


class _TlsConnection(http.client.HTTPSConnection, Connection):
    """The same over TLS."""


class Connections:
    """Thread-safe. `endpoint_url` is scheme, host and port, `ca_file` holds the certificates that the server
    is checked against. Raises: SettingsError.
    """

    def __init__(self, endpoint_url: str, *, ca_file: str) -> None:
        parts = urlsplit(endpoint_url)
        self.host = parts.netloc
        """As the Host header has it."""
        self._address = (parts.hostname or "", parts.port)
        self._tls = _tls_context(ca_file) if parts.scheme == "https" else None
        self._idle: deque[Connection] = deque()

    def send(self, request: Request) -> tuple[Connection, Response]:
        """Sends a request and waits for the head of its answer; once more where a connection was closed
        without one. Give the connection back after reading.

        Raises: OSError, http.client.HTTPException where the answer is no HTTP, ValueError where the request
        cannot be sent.
        """
        try:
            return self._send(request)
        except CLOSED:
            return self._send(request)

    def give_back(self, connection: Connection, *, is_clean: bool) -> None:
        """Keeps a connection whose answer was read to its end; closes any other."""
        if is_clean and connection.sock is not None:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def _send(self, request: Request) -> tuple[Connection, Response]:
        connection = self._take()
        try:
            if request.check:
                request.check()
            return connection, _exchange(connection, request)
        except BaseException:
            connection.close()
            raise

    def _take(self) -> Connection:
        """The connection that was used last, or a new one."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.is_stale():
                    return connection
                connection.close()
        connection = self._connection()
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(READ_TIMEOUT_S)
        return connection

    def _connection(self) -> Connection:
        if self._tls is None:
            return Connection(*self._address, timeout=CONNECT_TIMEOUT_S)
        proxy = urllib.request.getproxies().get("https")
        if not proxy or urllib.request.proxy_bypass(self._address[0]):
            return _TlsConnection(*self._address, timeout=CONNECT_TIMEOUT_S, context=self._tls)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        try:
            address = (parts.hostname or "", parts.port)
        except ValueError:  # its words have what stands there: a part of the password
            raise OSError("HTTPS_PROXY is no URL: escape what is special in its login, / as %2F") from None
        connection = _TlsConnection(*address, timeout=CONNECT_TIMEOUT_S, context=self._tls)
        headers = {}
        if parts.username:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        connection.set_tunnel(self._address[0], self._address[1], headers)
        return connection


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        problem = f"SSL_CERT_FILE names {ca_file!r}, which cannot be read as certificates ({error.strerror})"
        raise SettingsError([problem]) from None


def _exchange(connection: Connection, request: Request) -> Response:
    connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    if request.body is not None:
        connection.putheader("content-length", str(len(request.body)))
    broken: BaseException | None = None
    try:
        connection.endheaders()
        for begin in range(0, len(request.body or b""), SEND_BYTES):
            connection.send((request.body or b"")[begin : begin + SEND_BYTES])
    except CLOSED as error:
        broken = error  # it may have said why before it hung up
    response = cast(Response, connection.getresponse())
    if broken:
        connection.close()
        if response.status < 300:
            raise broken
    return response
