"""One S3 store, asked through libcurl: one request at a time, signed, on connections that are kept open.

libcurl sends and shows every key and header as it is, and leaves the interpreter free meanwhile. It repeats
nothing that failed, save once what met a connection that was closed without an answer. Out of here come the
errors of `webhook.errors`. Holds open connections: create it after the fork.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import certifi
import pycurl

from webhook.answers import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, SILENT_HINT, answered, not_s3, read_xml
from webhook.errors import (
    IntegrityError,
    NoSuchKey,
    Place,
    StoreDenied,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
)
from webhook.memory import Body
from webhook.objects import ObjectInfo, info_from_headers
from webhook.settings import StoreSettings
from webhook.sigv4 import Signer

TEXT_MAX_BYTES = 64 * 1024
"""Error documents and tags are far smaller."""
BUFFER_BYTES = 256 * 1024
SLOWEST_BYTES_PER_S = 64
"""A transfer slower than this for READ_TIMEOUT_S is given up."""
_CLOSED = {pycurl.E_GOT_NOTHING, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR}
_NOT_HTTP = {pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_FTP_WEIRD_SERVER_REPLY}
_CERTIFICATE = {pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE}
_CERTIFICATE_HINT = (
    "Check the store's certificate; name a certificate authority of your own in SSL_CERT_FILE."
)

Room = Callable[[Mapping[str, str]], Body | None]
"""Where an object's body is to go, of exactly its length, from its headers; None: it is not wanted."""


def ca_file() -> str:
    """The certificates that stores are checked against."""
    return os.environ.get("SSL_CERT_FILE") or certifi.where()


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer of the store."""

    headers: Mapping[str, str]
    """Names in lower case; bytes as Latin-1."""
    body: Body | None
    """In the room that was made for it; None where there was none."""
    text: bytes
    """The body where no room was asked for: all of it, or at least its first TEXT_MAX_BYTES."""

    def xml(self, place: Place) -> ElementTree.Element:
        """The body as XML. Raises: StoreFailed."""
        root = read_xml(self.text)
        if root is None:
            raise not_s3(place)
        return root


class Store:
    """Thread-safe. `side` is "source" or "target", for errors."""

    def __init__(self, settings: StoreSettings, *, side: str) -> None:
        self._side = side
        self._endpoint = settings.endpoint_url
        self._signer = Signer(
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            region=settings.region,
            host=urlsplit(settings.endpoint_url).netloc,
        )
        self._ca_file = ca_file()
        self._idle: deque[pycurl.Curl] = deque()

    def head(self, bucket: str, key: str, *, part: int | None = None) -> Mapping[str, str]:
        """The object's headers. Raises: NoSuchKey (also where the bucket is missing), StoreError."""
        query = [("partNumber", str(part))] if part else []
        return self.ask("HeadObject", "HEAD", bucket, key, query=query).headers

    def info(self, bucket: str, key: str) -> ObjectInfo:
        """The object as its headers describe it. Raises as `head` does."""
        return info_from_headers(self.head(bucket, key))

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The object's tags. Raises: NoSuchKey, StoreError."""
        answer = self.ask("GetObjectTagging", "GET", bucket, key, query=[("tagging", "")])
        root = answer.xml(self.place("GetObjectTagging", bucket, key))
        if root.find("{*}TagSet") is None:
            raise not_s3(self.place("GetObjectTagging", bucket, key))
        found = root.iterfind("{*}TagSet/{*}Tag")
        return {tag.findtext("{*}Key", ""): tag.findtext("{*}Value", "") for tag in found}

    def check(self, bucket: str, *, setting: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        try:
            self.ask("HeadBucket", "HEAD", bucket)
        except NoSuchKey as error:
            raise StoreDenied(
                "the bucket does not exist",
                error.place,
                status=error.status,
                hint=f"Create the bucket, or correct {setting}.",
            ) from None

    def place(self, operation: str, bucket: str, key: str) -> Place:
        """For errors."""
        return Place(side=self._side, operation=operation, bucket=bucket, key=key)

    def ask(
        self,
        operation: str,
        method: str,
        bucket: str,
        key: str = "",
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        room: Room | None = None,
    ) -> Answer:
        """One request. Header names are given in lower case, values as bytes in Latin-1; `room` takes the
        body of a good answer.

        Raises: StoreError, IntegrityError where the body has not the length there is room for.
        """
        place = self.place(operation, bucket, key)
        path = f"/{bucket}/{quote(key, safe='/~')}" if key else f"/{bucket}"
        try:
            encoded, signed = self._signer.sign(method, path, query, headers or {}, at=time.time())
            lines = _header_lines(signed)
        except ValueError as error:
            raise StoreRefused(f"cannot be sent: {error}", place) from None
        url = f"{self._endpoint}{path}?{encoded}" if encoded else f"{self._endpoint}{path}"
        for is_last in (False, True):
            transfer = _Transfer(place, body, room)
            if self._perform(method, url, lines, transfer, is_last=is_last):
                break
        return transfer.result()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def _perform(
        self, method: str, url: str, lines: list[bytes], transfer: _Transfer, *, is_last: bool
    ) -> bool:
        """False where the connection was closed without an answer, and it may be tried once more."""
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = pycurl.Curl()
        try:
            self._set_up(handle, method, url, lines, transfer)
            handle.perform()
        except pycurl.error as error:
            if transfer.problem:
                raise transfer.problem from None
            if transfer.is_refused:
                return True
            number, text = cast("tuple[int, str]", error.args)
            if transfer.status:
                raise StoreFailed("broke off its answer", transfer.place) from None
            if number in _CLOSED and not is_last:
                return False
            if number in _NOT_HTTP:
                raise not_s3(transfer.place) from None
            reason = text if "@" not in text else f"libcurl's error {number}"  # a proxy's password
            hint = _CERTIFICATE_HINT if number in _CERTIFICATE else SILENT_HINT
            raise StoreUnavailable(f"no answer ({reason})", transfer.place, hint=hint) from None
        finally:
            handle.reset()  # lets go of the body; connections stay
            self._idle.append(handle)
        return True

    def _set_up(
        self, handle: pycurl.Curl, method: str, url: str, lines: list[bytes], transfer: _Transfer
    ) -> None:
        set_ = handle.setopt
        set_(pycurl.URL, url)
        set_(pycurl.HTTPHEADER, lines)
        set_(pycurl.NOSIGNAL, 1)
        set_(pycurl.PATH_AS_IS, 1)
        set_(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        set_(pycurl.CAINFO, self._ca_file)
        set_(pycurl.CONNECTTIMEOUT_MS, int(CONNECT_TIMEOUT_S * 1000))
        set_(pycurl.LOW_SPEED_LIMIT, SLOWEST_BYTES_PER_S)
        set_(pycurl.LOW_SPEED_TIME, int(READ_TIMEOUT_S))
        set_(pycurl.BUFFERSIZE, BUFFER_BYTES)
        set_(pycurl.HEADERFUNCTION, transfer.take_header)
        set_(pycurl.WRITEFUNCTION, transfer.take_body)
        if method == "HEAD":
            set_(pycurl.NOBODY, 1)
        elif method == "PUT":
            set_(pycurl.UPLOAD, 1)
            set_(pycurl.UPLOAD_BUFFERSIZE, BUFFER_BYTES)
            set_(pycurl.INFILESIZE_LARGE, transfer.body_size)
            set_(pycurl.READFUNCTION, transfer.give_body)
            set_(pycurl.SEEKFUNCTION, transfer.seek)
        elif method == "POST":
            set_(pycurl.POST, 1)
            set_(pycurl.POSTFIELDSIZE, 0)


class _Transfer:
    """What libcurl calls while it runs one request, and what has come of it."""

    def __init__(self, place: Place, body: Body | None, room: Room | None) -> None:
        self.place = place
        self.status = 0
        self.problem: BaseException | None = None
        """What a callback raised, which libcurl cannot pass on."""
        self.is_refused = False
        """The body, or the rest of it, is not wanted."""
        self._sending = memoryview(body or b"")
        self._sent = 0
        self._room = room
        self._lines: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._body: Body | None = None
        self._text = bytearray()
        """The body of an answer that there is no `room` for."""
        self._filled = 0

    @property
    def body_size(self) -> int:
        """Bytes to be sent."""
        return len(self._sending)

    # ── called by libcurl ────────────────────────────────────────────────────────────────────────────

    def give_body(self, size: int) -> bytes:
        """The next bytes to be sent."""
        chunk = bytes(self._sending[self._sent : self._sent + size])
        self._sent += len(chunk)
        return chunk

    def seek(self, offset: int, _origin: int) -> int:
        """Before it sends again what met a closed connection."""
        self._sent = offset
        return int(pycurl.SEEKFUNC_OK)

    def take_header(self, line: bytes) -> int:
        """One line of the head; an interim answer's is followed by another head. -1 ends the transfer."""
        if line.startswith(b"HTTP/"):
            self._lines.clear()
            self.status = int(line.split(None, 2)[1])
        elif line != b"\r\n":
            self._lines.append(line)
        elif self.status >= 200:
            return self._guarded(self._begin_body, len(line))
        return len(line)

    def take_body(self, chunk: bytes) -> int:
        """The next bytes of the answer. -1 ends the transfer."""
        return self._guarded(lambda: self._add(chunk), len(chunk))

    def _guarded(self, step: Callable[[], bool], size: int) -> int:
        try:
            return size if step() else -1
        except BaseException as problem:  # noqa: BLE001
            self.problem = problem
            return -1

    def _begin_body(self) -> bool:
        for line in self._lines:
            name, _, value = line.decode("latin-1").partition(":")
            known, value = self._headers.get(name.lower()), value.strip(" \t\r\n")
            self._headers[name.lower()] = value if known in (None, value) else f"{known}, {value}"
        if self._room and self._is_good:
            self._body = self._room(self._headers)
            self.is_refused = self._body is None
        return not self.is_refused

    def _add(self, chunk: bytes) -> bool:
        if self._body is None:
            self._text += chunk
            self.is_refused = len(self._text) >= TEXT_MAX_BYTES  # the beginning is enough
            return not self.is_refused
        end = self._filled + len(chunk)
        if end > len(self._body):
            self._wrong_length(self._body, end)
        self._body[self._filled : end] = chunk
        self._filled = end
        return True

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────

    @property
    def _is_good(self) -> bool:
        return 200 <= self.status < 300

    def result(self) -> Answer:
        """The answer. Raises: StoreError, IntegrityError."""
        if not self._is_good:
            raise answered(self.status, bytes(self._text), self.place, self._headers)
        if self._body is not None and self._filled != len(self._body):
            self._wrong_length(self._body, self._filled)
        return Answer(self._headers, self._body, bytes(self._text))

    def _wrong_length(self, body: Body, received: int) -> None:
        raise IntegrityError(
            f"{self.place}: {len(body)} bytes announced, {received} received",
            hint="It is read again. If this stays, something on the way changes the data.",
        )


def _header_lines(headers: Mapping[str, str]) -> list[bytes]:
    """As libcurl wants them; those it would add by itself are left out. Raises: ValueError."""
    lines = [b"Expect:", b"Accept:"]
    for name, value in headers.items():
        line = f"{name}: {value}" if value.strip(" \t") else f"{name};"  # it drops a header of blanks
        if "\r" in line or "\n" in line or "\0" in line:
            raise ValueError(f"the header {name} holds a line break")
        lines.append(line.encode("latin-1"))
    if "content-type" not in headers:
        lines.append(b"Content-Type:")
    return lines
