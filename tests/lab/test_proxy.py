"""Each kind of fault does what it says, before a real server."""

from __future__ import annotations

import http.client
import io
import os
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import minio
import minio.error
import pytest
import urllib3
import urllib3.exceptions

from scripts.local_servers import ACCESS_KEY, REGION, SECRET_KEY, S3Server, SeaweedFS
from tests.lab.proxy import Fault, Kind, LabProxy

BOUND_S = 60.0
BODY = os.urandom(300_000)
MIB = 1 << 20
ERRORS = [
    (Kind.ERROR_500, 500, "InternalError"),
    (Kind.SLOW_DOWN, 503, "SlowDown"),
    (Kind.SLOW_DOWN_RETRY_AFTER, 503, "SlowDown"),
    (Kind.TOO_MANY, 429, "TooManyRequests"),
    (Kind.FORBIDDEN, 403, "AccessDenied"),
    (Kind.NOT_FOUND, 404, "NoSuchBucket"),
]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFS) -> str:
    """Holds `object`, of BODY."""
    client = seaweed.client()
    client.make_bucket(bucket_name="lab-proxy")
    client.put_object(bucket_name="lab-proxy", object_name="object", data=io.BytesIO(BODY), length=len(BODY))
    return "lab-proxy"


@pytest.fixture
def wire(seaweed: SeaweedFS) -> Iterator[LabProxy]:
    """Before SeaweedFS."""
    with LabProxy(seaweed.endpoint, chance=random.Random(1)) as proxy:
        yield proxy


@pytest.fixture
def s3(wire: LabProxy) -> Iterator[minio.Minio]:
    """A client that tries once."""
    with urllib3.PoolManager(retries=False, timeout=BOUND_S) as pool:
        yield client_of(wire, pool)


def client_of(wire: LabProxy, pool: urllib3.PoolManager | None = None) -> minio.Minio:
    return minio.Minio(
        endpoint=urlsplit(wire.endpoint).netloc,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        secure=False,
        region=REGION,
        http_client=pool,
    )


def signed(wire: LabProxy, method: str, key: str) -> str:
    """A path with a signature in it, good for `wire` alone."""
    url = client_of(wire).get_presigned_url(method=method, bucket_name="lab-proxy", object_name=key)
    return url.removeprefix(wire.endpoint)


def connected(wire: LabProxy) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(wire.endpoint).netloc, timeout=BOUND_S)
    connection.connect()
    return connection


def request_bytes(wire: LabProxy, method: str, key: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"{method} {signed(wire, method, key)} HTTP/1.1", f"Host: {urlsplit(wire.endpoint).netloc}"]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


def heard(sock: socket.socket) -> tuple[bytes, bool]:
    """All that comes until the end, and whether that is a reset."""
    came = b""
    try:
        while piece := sock.recv(65_536):
            came += piece
    except ConnectionResetError:
        return came, True
    return came, False


def put(s3: minio.Minio, key: str, body: bytes) -> None:
    s3.put_object(bucket_name="lab-proxy", object_name=key, data=io.BytesIO(body), length=len(body))


def get(client: minio.Minio, key: str) -> bytes:
    with closing(client.get_object(bucket_name="lab-proxy", object_name=key)) as answer:
        return answer.read()


def is_there(seaweed: S3Server, key: str) -> bool:
    try:
        seaweed.client().stat_object(bucket_name="lab-proxy", object_name=key)
    except minio.error.S3Error:
        return False
    return True


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def differing_bits(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


# ── without a fault ──────────────────────────────────────────────────────────────────────────────────


def test_signed_requests_of_all_sorts_pass_unchanged(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    s3.put_object(
        bucket_name=bucket, object_name="a b/ü", data=io.BytesIO(b"x"), length=1, metadata={"note": "kept"}
    )
    found = s3.stat_object(bucket_name=bucket, object_name="a b/ü")
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-note"] == "kept"
    assert get(s3, "object") == BODY
    assert {each.object_name for each in s3.list_objects(bucket_name=bucket, prefix="a")} == {"a b/"}
    put(s3, "empty", b"")
    assert get(s3, "empty") == b""
    s3.remove_object(bucket_name=bucket, object_name="a b/ü")
    with pytest.raises(minio.error.S3Error, match="NoSuchKey"):
        get(s3, "a b/ü")
    assert wire.requests == 8
    assert wire.bytes_passed > len(BODY)
    assert not wire.struck


def test_one_connection_serves_answers_with_and_without_bodies(wire: LabProxy, bucket: str) -> None:
    with closing(connected(wire)) as connection:
        sock = connection.sock
        connection.request("HEAD", signed(wire, "HEAD", "object"))
        head = connection.getresponse()
        assert (head.status, head.read(), int(head.headers["Content-Length"])) == (200, b"", len(BODY))
        connection.request(
            "GET", signed(wire, "GET", "object"), headers={"If-None-Match": head.headers["ETag"]}
        )
        unchanged = connection.getresponse()
        assert (unchanged.status, unchanged.read()) == (304, b"")
        connection.request("DELETE", signed(wire, "DELETE", "nothing"))
        deleted = connection.getresponse()
        assert (deleted.status, deleted.read()) == (204, b"")
        connection.request("GET", signed(wire, "GET", "object"))
        assert connection.getresponse().read() == BODY
        assert connection.sock is sock


def test_a_chunked_body_passes(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    pieces = [BODY[:1], BODY[1:70_000], BODY[70_000:]]
    with closing(connected(wire)) as connection:
        connection.request("PUT", signed(wire, "PUT", "chunked"), body=iter(pieces), encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    assert get(seaweed.client(), "chunked") == BODY


@pytest.mark.parametrize("fault", [None, Fault(Kind.ERROR_500)])
def test_a_client_that_waits_for_100_is_told_to_go_on(
    wire: LabProxy, bucket: str, fault: Fault | None
) -> None:
    if fault:
        wire.begin(fault)
    head = request_bytes(wire, "PUT", "waited", BODY, "Expect: 100-continue").removesuffix(BODY)
    with closing(connected(wire)) as connection, connection.sock.makefile("rb") as answers:
        connection.sock.sendall(head)
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        connection.sock.sendall(BODY)
        assert answers.readline().startswith(b"HTTP/1.1 500" if fault else b"HTTP/1.1 200")


def test_64_mib_pass_both_ways_unchanged_in_little_memory(wire: LabProxy, bucket: str) -> None:
    block = os.urandom(MIB)
    tracemalloc.start()
    with closing(connected(wire)) as connection:
        body = (block for _ in range(64))
        length = {"Content-Length": str(64 * MIB)}
        connection.request("PUT", signed(wire, "PUT", "large"), body=body, headers=length)
        assert connection.getresponse().read() == b""
        connection.request("GET", signed(wire, "GET", "large"))
        answer = connection.getresponse()
        same = [answer.read(MIB) == block for _ in range(64)]
        assert (same, answer.read()) == ([True] * 64, b"")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB


def test_many_clients_at_once_get_their_own(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    bodies = {f"many-{number}": os.urandom(20_000) for number in range(16)}
    got: dict[str, bytes] = {}

    def run(key: str) -> None:
        put(s3, key, bodies[key])
        got[key] = get(s3, key)

    threads = [threading.Thread(target=run, args=(key,)) for key in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert got == bodies


def test_it_survives_what_is_no_http_and_clients_that_leave(
    wire: LabProxy, s3: minio.Minio, bucket: str
) -> None:
    half = request_bytes(wire, "PUT", "half", BODY)[:1_000]
    for rubbish in (b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01" * 100, b"x" * 300_000, half):
        with closing(connected(wire)) as connection:
            connection.sock.sendall(rubbish)
    assert get(s3, "object") == BODY


def test_a_server_that_is_away_closes_the_connection_and_may_come_back(
    bucket: str, seaweed: SeaweedFS
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with LabProxy(address, chance=random.Random(1)) as wire:
        with closing(connected(wire)) as connection:
            connection.sock.sendall(request_bytes(wire, "GET", "object"))
            assert heard(connection.sock) == (b"", False)
        wire.server = ("127.0.0.1", seaweed.port)
        assert get(client_of(wire), "object") == BODY


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────


def test_delay(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    wire.begin(Fault(Kind.DELAY, delay_s=0.3))
    began = time.monotonic()
    assert get(s3, "object") == BODY
    assert time.monotonic() - began >= 0.3
    assert wire.struck == {Kind.DELAY: 1}


def test_bandwidth_both_ways(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    wire.begin(Fault(Kind.BANDWIDTH, bytes_per_s=2_000_000))
    for action in (lambda: put(s3, "slow", BODY), lambda: get(s3, "slow")):
        began = time.monotonic()
        action()
        assert time.monotonic() - began >= 0.12
    assert get(s3, "slow") == BODY
    assert wire.struck == {Kind.BANDWIDTH: 3}


def test_reset_before(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.RESET_BEFORE))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "PUT", "before", b"x"))
        assert heard(connection.sock) == (b"", True)
    assert not is_there(seaweed, "before")
    assert wire.struck == {Kind.RESET_BEFORE: 1}


def test_reset_during_the_body(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.RESET_DURING))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "PUT", "during", b"x" * 1_000))
        assert heard(connection.sock) == (b"", True)
    assert not is_there(seaweed, "during")
    assert wire.struck == {Kind.RESET_DURING: 1}
    assert wire.bytes_passed > 100, "a part of it came through"


def test_reset_before_the_answer_of_a_request_without_a_body(
    wire: LabProxy, seaweed: SeaweedFS, bucket: str
) -> None:
    put(seaweed.client(), "deleted", b"x")
    wire.begin(Fault(Kind.RESET_DURING))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "DELETE", "deleted"))
        assert heard(connection.sock) == (b"", True)
    assert not is_there(seaweed, "deleted")
    assert wire.struck == {Kind.RESET_DURING: 1}


def test_reset_within_the_answer(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.RESET_AFTER))
    for request in (request_bytes(wire, "GET", "object"), request_bytes(wire, "PUT", "after", b"x")):
        with closing(connected(wire)) as connection:
            connection.sock.sendall(request)
            came, is_reset = heard(connection.sock)
            assert is_reset
            assert len(came) < len(BODY)
    assert is_there(seaweed, "after")
    assert wire.struck == {Kind.RESET_AFTER: 2}


def test_cut_short(wire: LabProxy, bucket: str) -> None:
    wire.begin(Fault(Kind.CUT_SHORT))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "GET", "object"))
        came, is_reset = heard(connection.sock)
    head, _, body = came.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(BODY)}".encode() in head
    assert len(body) < len(BODY)
    assert BODY.startswith(body)
    assert not is_reset
    assert wire.struck == {Kind.CUT_SHORT: 1}


def test_flip_request(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.FLIP_REQUEST))
    with closing(connected(wire)) as connection:
        connection.request("PUT", signed(wire, "PUT", "flipped"), body=BODY)
        assert connection.getresponse().read() == b""
        connection.request("HEAD", signed(wire, "HEAD", "flipped"))
        assert connection.getresponse().status == 200
    assert differing_bits(get(seaweed.client(), "flipped"), BODY) == 1
    assert wire.struck == {Kind.FLIP_REQUEST: 1}


def test_flip_answer(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    wire.begin(Fault(Kind.FLIP_ANSWER, operations=frozenset({"GetObject"})))
    assert differing_bits(get(s3, "object"), BODY) == 1
    assert len(list(s3.list_objects(bucket_name=bucket, prefix="object"))) == 1
    assert wire.struck == {Kind.FLIP_ANSWER: 1}


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that answers every connection's first request with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(65_536):
                        return
                    connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(BOUND_S)


@pytest.mark.parametrize("fault", [None, Fault(Kind.FLIP_ANSWER), Fault(Kind.CUT_SHORT)])
def test_an_answer_in_chunks(fault: Fault | None) -> None:
    """What frames the data is passed on as it came; the data is what a flip strikes."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer += b"5;x=y\r\nabcde\r\n3\r\nfgh\r\n0\r\nT: x\r\n\r\n"
    with answering(answer) as server, LabProxy(server, chance=random.Random(1)) as wire:
        if fault:
            wire.begin(fault)
        with closing(connected(wire)) as connection:
            connection.sock.sendall(request_bytes(wire, "GET", "chunks", b"", "Connection: close"))
            came, is_reset = heard(connection.sock)
    assert not is_reset
    if fault and fault.kind is Kind.CUT_SHORT:
        assert answer.startswith(came)
        assert came.removesuffix(b"abcd").endswith((b"5;x=y\r\n", b"a", b"b", b"c"))
    else:
        place = answer.index(b"abcde")
        assert (
            differing_bits(came, answer) == differing_bits(came[place : place + 5], b"abcde") == bool(fault)
        )


def test_answer_lost(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.ANSWER_LOST))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "PUT", "lost", b"x"))
        assert heard(connection.sock) == (b"", False)
    assert is_there(seaweed, "lost")
    assert wire.struck == {Kind.ANSWER_LOST: 1}


@pytest.mark.parametrize(("kind", "status", "code"), ERRORS)
def test_errors_that_the_server_knows_nothing_of(
    wire: LabProxy, s3: minio.Minio, seaweed: SeaweedFS, bucket: str, kind: Kind, status: int, code: str
) -> None:
    wire.begin(Fault(kind, retry_after_s=7))
    with pytest.raises(minio.error.S3Error) as caught:
        put(s3, f"refused-{kind}", BODY)
    assert (caught.value.code, caught.value.response.status) == (code, status)
    after = caught.value.response.headers.get("Retry-After")
    assert after == ("7" if kind is Kind.SLOW_DOWN_RETRY_AFTER else None)
    with pytest.raises(minio.error.MinioException):
        s3.stat_object(bucket_name=bucket, object_name="object")  # HEAD: an answer without a body
    wire.end()
    assert not is_there(seaweed, f"refused-{kind}")
    assert get(s3, "object") == BODY
    assert wire.struck == {kind: 2}


def test_complete_fails_in_200(wire: LabProxy, s3: minio.Minio, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.COMPLETE_FAILS_IN_200))
    body = io.BytesIO(bytes(6 * MIB))
    s3.put_object(  # the client does not look into the answer
        bucket_name=bucket, object_name="parts", data=body, length=6 * MIB, part_size=5 * MIB
    )
    with closing(connected(wire)) as connection:
        connection.request("POST", f"/{bucket}/parts?uploadId=1", body=b"<CompleteMultipartUpload/>")
        answer = connection.getresponse()
        assert (answer.status, b"<Error><Code>InternalError" in answer.read()) == (200, True)
    assert not is_there(seaweed, "parts")
    assert wire.struck == {Kind.COMPLETE_FAILS_IN_200: 2}


def test_drip(wire: LabProxy, bucket: str) -> None:
    wire.begin(Fault(Kind.DRIP, bytes_per_s=400))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "GET", "object"))
        came = [connection.sock.recv(65_536) for _ in range(4)]
        assert b"".join(came).startswith(b"HTTP/1.1 200")
        assert max(map(len, came)) < 200
        wire.end()
        connection.sock.settimeout(BOUND_S)
        left = len(BODY)
        while left > 0:
            left -= len(connection.sock.recv(65_536))
    assert wire.struck == {Kind.DRIP: 1}


def test_half_open_lasts_until_the_fault_ends(wire: LabProxy, seaweed: SeaweedFS, bucket: str) -> None:
    wire.begin(Fault(Kind.HALF_OPEN))
    with closing(connected(wire)) as connection:
        connection.sock.sendall(request_bytes(wire, "PUT", "half-open", b"x"))
        until(lambda: wire.struck[Kind.HALF_OPEN] == 1)
        connection.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        wire.end()
        connection.sock.settimeout(BOUND_S)
        assert heard(connection.sock) == (b"", False)
    assert not is_there(seaweed, "half-open")


def test_refused_until_the_fault_ends(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    fault = Fault(Kind.REFUSED)
    with closing(connected(wire)) as connection:
        connection.request("HEAD", signed(wire, "HEAD", "object"))
        connection.getresponse().read()
        wire.begin(fault)
        assert heard(connection.sock) == (b"", True)
    with pytest.raises(ConnectionRefusedError):
        connected(wire)
    wire.end(fault)
    assert get(s3, "object") == BODY
    assert wire.struck == {Kind.REFUSED: 1}


# ── which requests ───────────────────────────────────────────────────────────────────────────────────


def test_a_fault_strikes_its_operations_alone_and_ends(wire: LabProxy, s3: minio.Minio, bucket: str) -> None:
    reads, writes = (
        Fault(Kind.FORBIDDEN, operations=frozenset({name})) for name in ("GetObject", "PutObject")
    )
    wire.begin(reads)
    wire.begin(writes)
    with pytest.raises(minio.error.S3Error):
        get(s3, "object")
    assert s3.stat_object(bucket_name=bucket, object_name="object").size == len(BODY)
    wire.end(reads)
    wire.end(reads)
    assert get(s3, "object") == BODY
    with pytest.raises(minio.error.S3Error):
        put(s3, "refused", b"x")
    wire.end()
    put(s3, "allowed", b"x")
    assert wire.struck == {Kind.FORBIDDEN: 2}


def test_a_share_of_the_requests_is_struck_and_each_by_one_fault(wire: LabProxy, bucket: str) -> None:
    wire.begin(Fault(Kind.ERROR_500, share=0.5))
    wire.begin(Fault(Kind.FORBIDDEN, share=0.5))
    path = signed(wire, "GET", "empty-share")
    statuses = []
    with closing(connected(wire)) as connection:
        for _ in range(60):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert min(statuses.count(status) for status in (500, 403, 404)) > 5
    assert wire.struck == {Kind.ERROR_500: statuses.count(500), Kind.FORBIDDEN: statuses.count(403)}


def test_events_are_an_operation_of_their_own(wire: LabProxy) -> None:
    wire.begin(Fault(Kind.ERROR_500, operations=frozenset({"Event"})))
    with closing(connected(wire)) as connection:
        connection.request("POST", "/minio/events", body=b"{}")
        answer = connection.getresponse()
        assert (answer.status, b"InternalError" in answer.read()) == (500, True)
    assert wire.struck == {Kind.ERROR_500: 1}
