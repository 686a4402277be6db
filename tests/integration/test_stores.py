"""Source and Target against two real servers, each as either side; faults come from a proxy."""

from __future__ import annotations

import hashlib
import itertools
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from scripts.local_servers import Gateway, S3Server
from tests.integration.conftest import Permit, read_object
from tests.proxy import Exchange, Fault, Proxy, answering, cut_answer, drop, flip_request
from webhook.errors import (
    IntegrityError,
    NoSuchKey,
    ReplicatorError,
    SourceChanged,
    StoreDenied,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
)
from webhook.layout import MIB, Part
from webhook.objects import Properties
from webhook.source import Source
from webhook.target import Attributes, Target

_numbers = itertools.count(1)
BODY = bytearray(b"some bytes " * 100)
NOTHING = Attributes(properties=Properties(), tags={})
PROPERTIES = Properties(
    content_type="text/plain; charset=utf-8",
    content_encoding="gzip",
    content_disposition='attachment; filename="a b.txt"',
    content_language="de, en",
    cache_control="max-age=60, public",
    expires="Wed, 21 Oct 2026 07:28:00 GMT",
    metadata={"plain": "value", "with-dash": "two  blanks", "encoded": "=?utf-8?b?w6nigqw=?="},
)
TAGS = {"plain": "1", "with blank": "x+y/z=1 @:.-_", "Ünï": "cödé 漢"}
SEPARATE = "a b|a+b|a%b|a#b|a?b|a&b=c|a:b;c|a*b|a\"b|a<b>c|a{b}c|a[b]c|a^b|a~b|a'b|a`b|a,b@c$d!e(f)"
KEYS = [*SEPARATE.split("|"), "a|b", "a\\b", "a%20b", "a%2Fb", "a+b%2Bc", "a..b/...", "tab\tbed", "del\x7f"]
KEYS += ["caf\u00e9", "cafe\u0301", "漢字/かな", "🎉/👨‍👩‍👧", " leading and trailing ", "deep/" * 60 + "end"]
KEYS += ["/".join(["x" * 204] * 5)]  # 1,024 bytes, no segment above the 255 of a file system


@dataclass
class Store:
    """One server with a bucket, seen through both classes and a proxy."""

    server: S3Server
    proxy: Proxy
    bucket: str
    source: Source
    target: Target
    key: str = ""

    def put(self, key: str, body: bytearray = BODY, attributes: Attributes = NOTHING) -> str:
        written, lost = self.target.put(self.bucket, key, body, md5(body), attributes, permit=Permit())
        assert lost == ()
        return written.etag

    def read_part(self, part: Part, *, etag: str) -> bytes:
        body = bytearray(part.size)
        self.source.read_part(self.bucket, self.key, part, memoryview(body), etag=etag)
        return bytes(body)

    def read(self, key: str) -> bytes:
        return read_object(self.source, self.bucket, key)


def md5(body: bytes | bytearray) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


@pytest.fixture(scope="module", params=["gateway", "seaweed"])
def opened(
    request: pytest.FixtureRequest,
    proxy_for: Callable[[S3Server], Proxy],
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
) -> Store:
    server: S3Server = request.getfixturevalue(request.param)
    server.client().make_bucket(bucket_name="test-stores")
    proxy = proxy_for(server)
    source = source_at(server, endpoint_url=proxy.endpoint)
    target = target_at(server, endpoint_url=proxy.endpoint)
    return Store(server, proxy, "test-stores", source, target)


@pytest.fixture
def store(opened: Store, own_target_at: Callable[..., Target]) -> Store:
    """Each server in turn, with a key nobody else uses, and a target that remembers nothing."""
    opened.proxy.forget()
    target = own_target_at(opened.server, endpoint_url=opened.proxy.endpoint)
    return replace(opened, key=f"key-{next(_numbers)}", target=target)


one_server = pytest.mark.parametrize("opened", ["seaweed"], indirect=True)
"""Where the answer is the proxy's own, or there is none."""


CALLS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "source.head": ("HeadObject", lambda on: on.source.head(on.bucket, on.key)),
    "source.open": ("GetObject", lambda on: on.read(on.key)),
    "source.read_part": (
        "GetObject",
        lambda on: on.read_part(Part(number=1, offset=3, size=50), etag=ETAG),
    ),
    "source.tags": ("GetObjectTagging", lambda on: on.source.tags(on.bucket, on.key)),
    "source.check": ("HeadBucket", lambda on: on.source.check(on.bucket)),
    "target.head": ("HeadObject", lambda on: on.target.head(on.bucket, on.key)),
    "target.tags": ("GetObjectTagging", lambda on: on.target.tags(on.bucket, on.key)),
    "target.put": ("PutObject", lambda on: on.put(on.key)),
    "target.create_upload": (
        "CreateMultipartUpload",
        lambda on: on.target.create_upload(on.bucket, on.key, NOTHING, permit=Permit()),
    ),
    "target.check": ("HeadBucket", lambda on: on.target.check(on.bucket)),
}
ETAG = md5(BODY).hex()
every_call = pytest.mark.parametrize("name", CALLS)
calls_with_a_body = pytest.mark.parametrize("name", [name for name in CALLS if "Head" not in CALLS[name][0]])


def error_of(store: Store, call: Callable[..., object], *args: object, **kw: object) -> ReplicatorError:
    """What the call raises: one of our errors, whose text and causes name no secret key."""
    with pytest.raises(ReplicatorError) as raised:
        call(*args, **kw)
    printed = "".join(traceback.format_exception(raised.value)) + raised.value.hint + repr(raised.value)
    assert store.server.secret_key not in printed
    assert "wrong-secret" not in printed
    return raised.value


# ── what is written is what is read ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_a_key_of_any_characters_is_written_and_read_as_it_is(store: Store, key: str) -> None:
    body = bytearray(b"the body of " + key.encode())
    assert store.put(key, body) == md5(body).hex()
    found = store.target.head(store.bucket, key)
    assert found is not None
    assert (found.size, found.etag) == (len(body), md5(body).hex())
    assert store.source.head(store.bucket, key) == found
    assert store.read(key) == body


def test_composed_and_decomposed_letters_are_two_keys(store: Store) -> None:
    store.put("na\u00efve", bytearray(b"composed"))
    assert store.target.head(store.bucket, "nai\u0308ve") is None


def test_a_folder_marker_is_written_and_read(store: Store) -> None:
    store.put("folder/", bytearray())
    assert store.source.head(store.bucket, "folder/").size == 0
    assert store.read("folder/") == b""


@pytest.mark.parametrize("key", ["a/../b", "a/./b", ".."])
def test_a_key_that_could_be_taken_for_a_path_is_refused_and_reaches_no_other_object(
    store: Store, key: str
) -> None:
    store.put("b")
    assert isinstance(error_of(store, store.put, key, bytearray(b"other")), StoreRefused)
    assert not isinstance(error_of(store, store.read, key), IntegrityError)
    assert store.read("b") == BODY


def test_attributes_and_tags_come_back_as_written(store: Store) -> None:
    expected = PROPERTIES
    if isinstance(store.server, Gateway):  # it keeps neither of these
        expected = replace(expected, content_encoding="", content_language="", expires="")
    store.put(store.key, BODY, Attributes(properties=PROPERTIES, tags=TAGS, stamp="some-etag"))
    upload_id, _ = store.target.create_upload(
        store.bucket,
        f"{store.key}-parts",
        Attributes(properties=PROPERTIES, tags=TAGS, stamp="some-etag"),
        permit=Permit(),
    )
    part = store.target.put_part(
        store.bucket, f"{store.key}-parts", upload_id, 1, BODY, md5(BODY), permit=Permit()
    )
    store.target.complete_upload(store.bucket, f"{store.key}-parts", upload_id, [part.etag], permit=Permit())
    for key in (store.key, f"{store.key}-parts"):
        found = store.target.head(store.bucket, key)
        assert found is not None
        assert (found.properties, found.stamp, found.tag_count) == (expected, "some-etag", len(TAGS))
        assert store.source.head(store.bucket, key) == found
        with store.source.open(store.bucket, key) as reading:
            assert reading.info == found
        assert store.source.tags(store.bucket, key) == store.target.tags(store.bucket, key) == TAGS


def test_metadata_sent_as_raw_utf8_is_read_as_a_word_that_can_be_written(store: Store) -> None:
    def add_name(exchange: Exchange) -> None:
        raw = "é€Å 漢".encode().decode("latin-1")  # header bytes, as http.client and http.server speak them
        exchange.forward().headers["x-amz-meta-name"] = raw

    store.put(store.key)
    store.proxy.plan("HeadObject", add_name)
    read = store.source.head(store.bucket, store.key)
    store.put("again", BODY, Attributes(properties=read.properties, tags={}))
    again = store.source.head(store.bucket, "again")
    assert again.properties.metadata == read.properties.metadata
    assert read.properties.metadata["name"].isascii()


def test_an_expires_that_is_no_date_is_named_as_lost(store: Store) -> None:
    odd = Attributes(properties=Properties(expires="0"), tags={})
    assert store.target.put(store.bucket, store.key, BODY, md5(BODY), odd, permit=Permit())[1] == ("expires",)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_become_one_object_with_the_etag_of_its_parts(store: Store) -> None:
    bodies = [bytearray(b"1" * 5 * MIB), bytearray(b"2" * 7)]
    upload_id, _ = store.target.create_upload(store.bucket, store.key, NOTHING, permit=Permit())
    etags = [
        store.target.put_part(
            store.bucket, store.key, upload_id, number, body, md5(body), permit=Permit()
        ).etag
        for number, body in enumerate(bodies, start=1)
    ]
    written = store.target.complete_upload(store.bucket, store.key, upload_id, etags, permit=Permit())
    assert written.etag == md5(b"".join(md5(body) for body in bodies)).hex() + "-2"
    head = store.source.head(store.bucket, store.key)
    assert (head.etag, head.size, head.parts_count) == (written.etag, 5 * MIB + 7, 2)
    across = store.read_part(Part(number=2, offset=5 * MIB - 2, size=6), etag=written.etag)
    assert across == b"112222"


def test_an_aborted_upload_leaves_nothing_and_aborting_again_is_fine(store: Store) -> None:
    upload_id, _ = store.target.create_upload(store.bucket, store.key, NOTHING, permit=Permit())
    part = store.target.put_part(store.bucket, store.key, upload_id, 1, BODY, md5(BODY), permit=Permit())
    store.target.abort_upload(store.bucket, store.key, upload_id)
    store.target.abort_upload(store.bucket, store.key, upload_id)
    complete = store.target.complete_upload
    assert isinstance(
        error_of(store, complete, store.bucket, store.key, upload_id, [part.etag], permit=Permit()),
        StoreFailed,
    )
    assert store.target.head(store.bucket, store.key) is None
    assert store.target.tags(store.bucket, store.key) == {}


def test_a_part_is_read_of_the_pinned_version_only(store: Store) -> None:
    first = store.put(store.key)
    store.put(store.key, BODY + b"!")
    part = Part(number=1, offset=0, size=len(BODY))
    error = error_of(store, store.read_part, part, etag=first)
    assert isinstance(error, SourceChanged)


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_a_bit_flipped_on_the_way_to_the_store_is_refused_and_may_be_tried_again(
    store: Store, operation: str
) -> None:
    store.proxy.plan(operation, flip_request)
    upload_id, _ = store.target.create_upload(store.bucket, store.key, NOTHING, permit=Permit())
    if operation == "PutObject":
        error = error_of(store, store.put, store.key)
    else:
        put_part = store.target.put_part
        error = error_of(
            store, put_part, store.bucket, store.key, upload_id, 1, BODY, md5(BODY), permit=Permit()
        )
    assert isinstance(error, StoreFailed)
    assert store.target.head(store.bucket, store.key) is None
    assert store.target.tags(store.bucket, store.key) == {}


# ── what is missing or not allowed ───────────────────────────────────────────────────────────────────────


def test_a_missing_key_is_told_from_a_denied_one(store: Store) -> None:
    for name in ("source.head", "source.open", "source.read_part", "source.tags"):
        assert isinstance(error_of(store, CALLS[name][1], store), NoSuchKey)
    assert store.target.head(store.bucket, store.key) is None
    assert store.target.tags(store.bucket, store.key) == {}


@every_call
def test_a_missing_bucket_is_denied_except_where_head_cannot_tell(store: Store, name: str) -> None:
    lost = replace(store, bucket="no-such-bucket")
    if name == "target.head":
        assert CALLS[name][1](lost) is None
    else:
        error = error_of(store, CALLS[name][1], lost)
        expected: dict[str, tuple[type[ReplicatorError], ...]] = {
            "source.head": (NoSuchKey,),
            "source.read_part": (StoreDenied, NoSuchKey),  # SeaweedFS names the key where If-Match is given
        }
        assert isinstance(error, expected.get(name, StoreDenied))


@every_call
@pytest.mark.parametrize("wrong", [{"access_key": "nobody"}, {"secret_key": "wrong-secret"}], ids=str)
def test_wrong_keys_are_denied(
    store: Store,
    name: str,
    wrong: dict[str, str],
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
) -> None:
    stranger = replace(
        store, source=source_at(store.server, **wrong), target=target_at(store.server, **wrong)
    )
    error = error_of(store, CALLS[name][1], stranger)
    assert isinstance(error, StoreDenied)
    assert error.hint


@one_server
@every_call
@pytest.mark.parametrize("nowhere", ["http://127.0.0.1:1", "http://does-not-exist.invalid"])
def test_a_store_that_cannot_be_reached_is_unavailable(
    store: Store,
    name: str,
    nowhere: str,
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
) -> None:
    away = {"endpoint_url": nowhere}
    absent = replace(store, source=source_at(store.server, **away), target=target_at(store.server, **away))
    assert isinstance(error_of(store, CALLS[name][1], absent), StoreUnavailable)


# ── faults on the store's side ───────────────────────────────────────────────────────────────────────────

BUSY = answering(503, "SlowDown")
BUSY_FOR_7_S = answering(503, "SlowDown", Retry_After="7")
BUSY_PAGE = answering(503, b"<html>busy</html>", Content_Type="text/html")
BUSY_PAGE_FOR_7_S = answering(503, b"<html>busy</html>", Content_Type="text/html", Retry_After="7")
FAULT = answering(500, "InternalError")
FAULT_PAGE = answering(502, b"<html>bad gateway</html>", Content_Type="text/html")
JUNK = answering(200, b"<html>welcome</html>", Content_Type="text/html")


def met(store: Store, name: str, fault: Fault) -> ReplicatorError:
    store.put(store.key)
    operation, call = CALLS[name]
    store.proxy.plan(operation, fault, times=5)
    return error_of(store, call, store)


@one_server
@every_call
@pytest.mark.parametrize(
    "fault", [BUSY, BUSY_FOR_7_S, BUSY_PAGE, BUSY_PAGE_FOR_7_S], ids=["xml", "xml-7s", "page", "page-7s"]
)
def test_slow_down_is_waited_for_as_long_as_the_store_asks(store: Store, name: str, fault: Fault) -> None:
    error = met(store, name, fault)
    assert isinstance(error, StoreUnavailable)
    assert error.status == 503
    assert error.retry_after_s == (7 if fault in (BUSY_FOR_7_S, BUSY_PAGE_FOR_7_S) else None)


@one_server
@every_call
def test_a_busy_store_is_asked_once_and_not_waited_for_in_the_call(store: Store, name: str) -> None:
    asked_before, started = store.proxy.counted.copy(), time.monotonic()
    met(store, name, BUSY_FOR_7_S)
    asked = store.proxy.counted - asked_before
    asked["PutObject"] -= 1  # what is read was put there
    assert +asked == {CALLS[name][0]: 1}
    assert time.monotonic() - started < 5


@one_server
@every_call
@pytest.mark.parametrize("fault", [FAULT, FAULT_PAGE], ids=["xml", "page"])
def test_a_fault_of_the_store_is_a_failure(store: Store, name: str, fault: Fault) -> None:
    error = met(store, name, fault)
    assert isinstance(error, StoreFailed)


@one_server
@every_call
def test_a_connection_that_breaks_before_the_answer_is_no_answer(store: Store, name: str) -> None:
    assert isinstance(met(store, name, drop), StoreUnavailable)


@one_server
@every_call
def test_one_broken_connection_is_made_again(store: Store, name: str) -> None:
    store.put(store.key)
    store.proxy.plan(CALLS[name][0], drop)
    CALLS[name][1](store)


@pytest.mark.parametrize("name", ["source.open", "source.read_part", "source.tags", "target.tags"])
def test_an_answer_that_breaks_off_is_a_failure(store: Store, name: str) -> None:
    assert isinstance(met(store, name, cut_answer), StoreFailed | StoreUnavailable)


@one_server
@calls_with_a_body
def test_an_answer_that_is_not_s3_s_is_a_failure(store: Store, name: str) -> None:
    """As from a captive portal, or an endpoint that names a web server."""
    assert isinstance(met(store, name, JUNK), StoreFailed | SourceChanged)


def test_an_error_inside_a_good_answer_to_complete_is_a_failure(store: Store) -> None:
    """S3 API Reference, CompleteMultipartUpload: 200 is sent before the work, the error after it."""
    upload_id, _ = store.target.create_upload(store.bucket, store.key, NOTHING, permit=Permit())
    part = store.target.put_part(store.bucket, store.key, upload_id, 1, BODY, md5(BODY), permit=Permit())
    store.proxy.plan("CompleteMultipartUpload", answering(200, "InternalError"), times=5)
    complete = store.target.complete_upload
    assert isinstance(
        error_of(store, complete, store.bucket, store.key, upload_id, [part.etag], permit=Permit()),
        StoreFailed,
    )


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"!"], ids=["less", "more"])
def test_a_part_of_another_length_than_asked_for_is_an_integrity_error(
    store: Store, change: Callable[[bytes], bytes]
) -> None:
    def change_answer(exchange: Exchange) -> None:
        answer = exchange.forward()
        answer.body = change(answer.body)
        answer.headers["Content-Length"] = str(len(answer.body))

    assert isinstance(met(store, "source.read_part", change_answer), IntegrityError)


def test_a_store_without_tagging_takes_the_object_and_names_the_tags_as_lost(
    store: Store, target_at: Callable[..., Target]
) -> None:
    target = target_at(store.server, endpoint_url=store.proxy.endpoint)  # it remembers
    tagged = Attributes(properties=PROPERTIES, tags=TAGS)
    store.proxy.plan("PutObject", answering(501, "NotImplemented"))
    store.proxy.plan("GetObjectTagging", answering(501, "NotImplemented"))
    for _ in range(2):
        assert target.put(store.bucket, store.key, BODY, md5(BODY), tagged, permit=Permit())[1] == ("tags",)
    assert store.proxy.counted == {"PutObject": 3}
    assert target.tags(store.bucket, store.key) == {}


@one_server
def test_the_host_is_signed_as_it_is_sent_however_the_endpoint_spells_it(
    store: Store, own_target_at: Callable[..., Target]
) -> None:
    target = own_target_at(store.server, endpoint_url=f"http://LocalHost:{store.server.port}")
    assert target.uploaded_parts(store.bucket, store.key, "no-such-upload") is None
    assert list(target.uploads(store.bucket, store.key)) == []
