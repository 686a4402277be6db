"""What a store may do on the wire, well or badly: answers byte by byte, and connections one by one."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import psutil
import pytest

from scripts.local_servers import S3Server, SeaweedFS
from tests.integration.conftest import Permit, read_object
from tests.integration.test_stores import BODY, NOTHING, md5
from tests.proxy import Exchange, Proxy
from webhook import connections
from webhook.errors import (
    IntegrityError,
    NoSuchKey,
    StoreDenied,
    StoreError,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
)
from webhook.objects import Properties
from webhook.settings import StoreSettings
from webhook.source import Source
from webhook.store import TEXT_MAX_BYTES, Store
from webhook.target import Attributes, Target

BOUND_S = 30.0
ETAG = b'ETag: "9a0364b9e99bb480dd25e1f0284c8555"\r\n'
FOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n" + ETAG + b"\r\ncontent"
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + ETAG + b"\r\n"
Talk = Callable[[socket.socket, int], None]
"""What is done with a connection, the nth."""


class Listener:
    """A server of a few lines: each connection is talked to by a thread, and closed after it."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.accepted = 0
        self.settings = StoreSettings(
            endpoint_url=f"http://127.0.0.1:{self._socket.getsockname()[1]}",
            access_key="key",
            secret_key="secret",
            region="us-east-1",
        )

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._socket, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(BOUND_S)
        self._socket.close()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.accepted += 1
                self._open.append(connection)
                self._start(self._serve, connection, self.accepted)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            self._talk(connection, number)


def request_on(connection: socket.socket) -> bytes:
    """The next whole request; empty once the client has hung up."""
    request = b""
    while b"\r\n\r\n" not in request:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        request += chunk
    head, _, body = request.partition(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while length and len(body) < int(length[0].split(b":")[1]):
        body += connection.recv(65536)
    return head


def saying(*pieces: bytes, pause_s: float = 0) -> Talk:
    """Every request is answered with these bytes."""

    def talk(connection: socket.socket, _number: int) -> None:
        while request_on(connection):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)

    return talk


@pytest.fixture
def listening() -> Iterator[Callable[[Talk], Listener]]:
    """Starts a listener."""
    with contextlib.ExitStack() as stack:
        yield lambda talk: stack.enter_context(Listener(talk))


@pytest.fixture
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is given up after 2 s."""
    monkeypatch.setattr(connections, "READ_TIMEOUT_S", 2.0)


def read(listener: Listener) -> bytes:
    source = Source(listener.settings)
    try:
        return read_object(source, "bucket", "key")
    finally:
        source.close()


def put(listener: Listener, attributes: Attributes = NOTHING) -> str:
    target = Target(listener.settings)
    try:
        return target.put("bucket", "key", BODY, md5(BODY), attributes, permit=Permit())[0].etag
    finally:
        target.close()


def head(listener: Listener) -> object:
    source = Source(listener.settings)
    try:
        return source.head("bucket", "key")
    finally:
        source.close()


both_ways = pytest.mark.parametrize("call", [read, put])

# ── heads ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints\r\nLink: </a>", b"102 Processing"])
def test_an_interim_answer_is_followed_by_the_one_that_counts(
    listening: Callable[[Talk], Listener], interim: bytes
) -> None:
    early = b"HTTP/1.1 " + interim + b'\r\nETag: "of no object"\r\n\r\n'
    assert read(listening(saying(early, early, FOUND))) == b"content"
    assert put(listening(saying(early, DONE))) == "9a0364b9e99bb480dd25e1f0284c8555"


def test_a_header_that_is_sent_twice_counts_once_and_two_values_are_joined(
    listening: Callable[[Talk], Listener],
) -> None:
    """RFC 9110, 5.3: a list may be sent as several lines."""
    twice = FOUND.replace(b"\r\n", b"\r\nX-Amz-Meta-A: 1\r\nContent-Length: 7\r\nx-amz-meta-a: 2\r\n", 1)
    source = Source(listening(saying(twice)).settings)
    with source.open("bucket", "key") as reading:
        assert (reading.info.size, reading.info.properties.metadata) == (7, {"a": "1, 2"})
        reading.read_into(memoryview(body := bytearray(7)))
        assert body == b"content"
    source.close()


@pytest.mark.parametrize("name", ["à la carte à", "…", "\u00a0"])
def test_letters_whose_last_byte_looks_like_a_blank_are_read_whole(
    listening: Callable[[Talk], Listener], name: str
) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-amz-meta-a: \t" + name.encode() + b" \r\n\r\n"
    store = Store(listening(saying(raw)).settings, side="source")
    assert store.head("bucket", "key")["x-amz-meta-a"].encode("latin-1").decode() == name
    store.close()


@pytest.mark.parametrize(
    "answer",
    [
        *(b"SSH-2.0-OpenSSH_9.6\r\n", b"220 ready\r\n", b"HTTP/1.1 abc\r\n\r\n"),
        *(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/2 200\r\n" + b"a: b\r\n" * 100_000),
        *(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\ncontent", b"\0" * 1000),
    ],
    ids=lambda answer: repr(answer[:60]),
)
@pytest.mark.parametrize("call", [read, put, head])
def test_an_answer_that_is_no_http_is_an_error_of_the_store(
    listening: Callable[[Talk], Listener], answer: bytes, call: Callable[[Listener], object]
) -> None:
    def talk(connection: socket.socket, _number: int) -> None:
        request_on(connection)
        connection.sendall(answer)

    with pytest.raises((StoreFailed, StoreUnavailable, IntegrityError)):
        call(listening(talk))


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────


def chunked(body: bytes, *, trailer: bytes = b"") -> bytes:
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part)
    return b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("trailer", [b"", b"x-amz-checksum-crc32: AAAAAA==\r\n"])
def test_a_small_answer_in_chunks_is_read(listening: Callable[[Talk], Listener], trailer: bytes) -> None:
    tags = b"<Tagging><TagSet><Tag><Key>a&amp;b</Key><Value/></Tag></TagSet></Tagging>"
    listener = listening(saying(b"HTTP/1.1 200 OK\r\n" + chunked(tags, trailer=trailer)))
    store = Store(listener.settings, side="source")
    assert [store.tags("bucket", "key") for _ in range(2)] == [{"a&b": ""}] * 2
    assert listener.accepted == 1
    store.close()


@pytest.mark.parametrize("trailer", [b"", b"x-amz-checksum-crc32: AAAAAA==\r\n"])
def test_an_object_whose_length_is_not_announced_is_not_taken_for_another(
    listening: Callable[[Talk], Listener], trailer: bytes
) -> None:
    """S3 always announces it; without it there is no telling a whole object from one that was cut."""
    for body in (b"content", b""):
        answer = b"HTTP/1.1 200 OK\r\n" + ETAG + chunked(body, trailer=trailer)
        with pytest.raises((IntegrityError, StoreFailed)):
            read(listening(saying(answer)))


def test_an_object_that_ends_with_the_connection_is_not_taken_for_another(
    listening: Callable[[Talk], Listener],
) -> None:
    def talk(connection: socket.socket, _number: int) -> None:
        request_on(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + ETAG + b"\r\ncontent")

    with pytest.raises((IntegrityError, StoreFailed)):
        read(listening(talk))


@pytest.mark.parametrize("size", [TEXT_MAX_BYTES - 50, TEXT_MAX_BYTES + 1, 10 * TEXT_MAX_BYTES])
@both_ways
def test_an_error_page_of_any_length_is_an_error_like_a_short_one(
    listening: Callable[[Talk], Listener], size: int, call: Callable[[Listener], object]
) -> None:
    for status, kind in (("403", StoreDenied), ("404", StoreFailed), ("503", StoreUnavailable)):
        head = f"HTTP/1.1 {status} No\r\nContent-Length: {size}\r\n\r\n".encode()
        with pytest.raises(kind):
            call(listening(saying(head, b"x" * size)))


def test_an_error_page_without_an_end_is_not_read_for_ever(listening: Callable[[Talk], Listener]) -> None:
    def talk(connection: socket.socket, _number: int) -> None:
        request_on(connection)
        connection.sendall(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    with pytest.raises(StoreUnavailable):
        read(listening(talk))


def test_a_page_without_an_end_that_says_all_is_well_is_not_read_for_ever(
    listening: Callable[[Talk], Listener],
) -> None:
    def talk(connection: socket.socket, _number: int) -> None:
        request_on(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 4096)

    store = Store(listening(talk).settings, side="source")
    with pytest.raises(StoreFailed):
        store.tags("bucket", "key")
    store.close()


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("short_of_patience")
def test_a_body_that_drips_is_given_up(listening: Callable[[Talk], Listener]) -> None:
    with pytest.raises(StoreFailed):
        read(listening(saying(FOUND[:-7], *[b"c"] * 7, pause_s=1)))


@pytest.mark.usefixtures("short_of_patience")
@both_ways
def test_a_store_that_takes_the_request_and_says_nothing_is_given_up(
    listening: Callable[[Talk], Listener], call: Callable[[Listener], object]
) -> None:
    listener = listening(saying(b""))
    with pytest.raises(StoreUnavailable):
        call(listener)
    assert listener.accepted == 1, "it is not asked again: it may be at work"


@pytest.mark.usefixtures("short_of_patience")
def test_a_store_that_does_not_take_the_body_is_given_up(listening: Callable[[Talk], Listener]) -> None:
    over = threading.Event()
    target = Target(listening(lambda _connection, _number: over.wait(BOUND_S) and None).settings)
    try:
        body = bytearray(32 * 1024 * 1024)  # more than the system takes for it
        with pytest.raises(StoreUnavailable):
            target.put("bucket", "key", body, md5(body), NOTHING, permit=Permit())
    finally:
        over.set()
        target.close()


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Closing:
    """Answers `good` requests on each connection, then closes it."""

    good: int
    answer: bytes
    hears_one_more: bool

    def __call__(self, connection: socket.socket, _number: int) -> None:
        for _ in range(self.good):
            if not request_on(connection):
                return
            connection.sendall(self.answer)
        if self.hears_one_more:
            request_on(connection)


@pytest.mark.parametrize("hears_one_more", [False, True])
def test_a_kept_connection_that_the_store_closed_is_made_again(
    listening: Callable[[Talk], Listener], hears_one_more: bool
) -> None:
    reads = listening(Closing(2, FOUND, hears_one_more))
    source = Source(reads.settings)
    for _ in range(5):
        assert read_object(source, "bucket", "key") == b"content"
    source.close()
    writes = listening(Closing(2, DONE, hears_one_more))
    target = Target(writes.settings)
    for _ in range(5):
        target.put("bucket", "key", BODY, md5(BODY), NOTHING, permit=Permit())
    target.close()
    assert (reads.accepted, writes.accepted) == (3, 3)


def test_a_connection_is_kept_over_errors_and_missing_keys(listening: Callable[[Talk], Listener]) -> None:
    answers = [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\n<Err>",
        FOUND,
    ]

    def talk(connection: socket.socket, _number: int) -> None:
        for answer in answers * 3:
            if not request_on(connection):
                return
            connection.sendall(answer)

    listener = listening(talk)
    source = Source(listener.settings)
    for _ in range(3):
        for expected in (NoSuchKey, StoreUnavailable):
            with pytest.raises(expected):
                read_object(source, "bucket", "key")
        assert read_object(source, "bucket", "key") == b"content"
    source.close()
    assert listener.accepted == 1


def test_threads_share_at_most_as_many_connections_as_there_are_threads(
    listening: Callable[[Talk], Listener],
) -> None:
    listener = listening(saying(FOUND.removesuffix(b"content")))
    counted = Store(listener.settings, side="source")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: counted.head("bucket", "key"), range(200)))
    assert 1 <= listener.accepted <= 16
    counted.close()


def test_closing_a_store_lets_go_of_all_that_its_threads_have_opened(
    seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket, keys = new_bucket(seaweed), {"access_key": seaweed.access_key, "secret_key": seaweed.secret_key}
    settings = StoreSettings(endpoint_url=seaweed.endpoint, region="us-east-1", **keys)
    real = Store(settings, side="target")
    gc.collect()  # what earlier tests have left open
    before = psutil.Process().num_fds()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: real.check(bucket, setting=""), range(200)))
    assert before < psutil.Process().num_fds() <= before + 16 * 4
    real.close()
    assert psutil.Process().num_fds() <= before


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Place:
    """A bucket of a real server, and what went there."""

    target: Target
    source: Source
    bucket: str
    sent: list[dict[str, str]]

    def written(self, *, storage_class: str = "", **properties: Any) -> list[Properties]:
        """What becomes of an object that is written whole, and of one in parts."""
        attributes = Attributes(properties=Properties(**properties), tags={}, storage_class=storage_class)
        self.target.put(self.bucket, "whole", BODY, md5(BODY), attributes, permit=Permit())
        upload, _ = self.target.create_upload(self.bucket, "parts", attributes, permit=Permit())
        part = self.target.put_part(self.bucket, "parts", upload, 1, BODY, md5(BODY), permit=Permit())
        self.target.complete_upload(self.bucket, "parts", upload, [part.etag], permit=Permit())
        return [self.source.head(self.bucket, key).properties for key in ("whole", "parts")]


@pytest.fixture(params=["gateway", "seaweed"])
def place(
    request: pytest.FixtureRequest,
    new_bucket: Callable[[S3Server], str],
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
) -> Iterator[Callable[..., Place]]:
    """Each server in turn; keywords replace parts of the StoreSettings."""
    server: S3Server = request.getfixturevalue(request.param)
    with Proxy(server.endpoint) as proxy:

        def make(**changes: str) -> Place:
            sent: list[dict[str, str]] = []

            def note(exchange: Exchange) -> None:
                sent.append({name.lower(): value for name, value in exchange.headers})

            for operation in ("PutObject", "CreateMultipartUpload", "UploadPart"):
                proxy.plan(operation, note, times=100)
            changes = {"endpoint_url": proxy.endpoint, **changes}
            return Place(target_at(server, **changes), source_at(server), new_bucket(server), sent)

        yield make


VALUES = {
    "word": "=?utf-8?b?w6nigqw=?=",
    "blanks": "two  blanks",
    "tab": "a\tb",
    "signs": "a;b:c,d=e\"f'g\\h",
}


@pytest.mark.parametrize("values", [VALUES, {"long": "v" * 2000}], ids=", ".join)
def test_metadata_is_signed_as_it_is_sent_and_comes_back(
    place: Callable[..., Place], values: dict[str, str]
) -> None:
    for found in place().written(metadata=values):
        assert found.metadata == values


def test_an_empty_value_and_one_of_blanks_are_sent_and_signed(place: Callable[..., Place]) -> None:
    """SeaweedFS forgets them for an object that is written whole."""
    made = place()
    for found in made.written(metadata={"empty": "", "blank": "  ", "around": " a "}):
        assert found.metadata == dict.fromkeys(found.metadata, "") | {"around": "a"}
    for name in ("x-amz-meta-empty", "x-amz-meta-blank"):
        assert [sent.get(name) for sent in made.sent] == ["", "", None]


def test_a_header_in_raw_bytes_is_written_as_it_was_read(place: Callable[..., Place]) -> None:
    raw = 'text/plain; name="é漢à b"'.encode().decode("latin-1")
    assert [found.content_type for found in place().written(content_type=raw)] == [raw, raw]


@pytest.mark.parametrize("value", ["a\r\nx-amz-acl: public-read", "a\nb", "a\rb", "a\0b", "漢"])
def test_a_value_that_no_header_can_hold_is_refused_and_nothing_is_sent(
    listening: Callable[[Talk], Listener], value: str
) -> None:
    listener = listening(saying(DONE))
    for properties in (Properties(content_type=value), Properties(metadata={"name": value})):
        with pytest.raises(StoreRefused, match="cannot be sent") as raised:
            put(listener, Attributes(properties=properties, tags={}))
        assert value not in str(raised.value)
    assert listener.accepted == 0


def test_the_storage_class_is_sent_with_whole_objects_and_uploads_only_where_one_is_set(
    place: Callable[..., Place],
) -> None:
    for storage_class, expected in (("STANDARD", "STANDARD"), ("", None)):
        made = place()
        made.written(storage_class=storage_class)
        assert [sent.get("x-amz-storage-class") for sent in made.sent] == [expected, expected, None]


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────────────

CALLS: dict[str, Callable[[Target], object]] = {
    "put": lambda target: target.put("bucket", "key", BODY, md5(BODY), NOTHING, permit=Permit()),
    "head": lambda target: target.head("bucket", "key"),
    "list parts": lambda target: target.uploaded_parts("bucket", "key", "id"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "proxy",
    [
        *("http://user:s3cr3t@127.0.0.1:1/", "http://user:s3cr3t@does-not-exist.invalid:1/"),
        *(
            "nonsense://user:s3cr3t@127.0.0.1:1",
            "http://user:s3cr3t@127.0.0.1:no",
            "user:s3cr3t@[",
            "http://s3cr3t@:@",
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_error_names_the_password_of_a_proxy(
    monkeypatch: pytest.MonkeyPatch, call: str, proxy: str, scheme: str
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = {"endpoint_url": f"{scheme}://store.example:9000", "access_key": "key", "secret_key": "secret"}
    target = Target(StoreSettings(**endpoint, region="us-east-1"))
    with pytest.raises(StoreError) as raised:
        CALLS[call](target)
    target.close()
    printed = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + raised.value.hint
    assert "s3cr3t" not in printed
