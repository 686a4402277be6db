"""A source or a target that is broken, or wants harm: what it answers, and where it sends us."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import re
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from config import configure_minio
from scripts.command_line import STORE_ERRORS
from scripts.command_line import Store as ScriptsStore
from tests.integration.conftest import SETTINGS, Permit
from tests.integration.test_stores import BODY, NOTHING, md5
from tests.integration.test_wire import Talk, request_on, saying
from tests.security.conftest import Listen
from webhook.answers import MARKS_MAX, read_xml
from webhook.copier import Copier, Known
from webhook.errors import ReplicatorError, StoreError, StoreFailed, StoreRefused
from webhook.memory import MemoryBudget
from webhook.objects import Properties
from webhook.rules import Rule
from webhook.source import Source
from webhook.store import Store
from webhook.target import Target

MIB = 1024 * 1024
S3 = b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
LISTING = b"<ListBucketResult " + S3 + b"><IsTruncated>false</IsTruncated>%s</ListBucketResult>"
ERROR = b"<Error><Code>SlowDown</Code>%s</Error>"
BOMBS = {
    "many elements": b"<a/>" * (MARKS_MAX + 1),
    "many attributes": b"<a " + b" ".join(b'a%d=""' % number for number in range(MARKS_MAX)) + b"/>",
    "a long namespace": b'<b xmlns="'
    + b"u" * 20_000
    + b'">'
    + b"".join(b"<c%d/>" % n for n in range(999))
    + b"</b>",
    "a long prefix": b"<b xmlns:" + b"p" * 20_000 + b'="u"/>',
}
ENTITIES = [
    b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>',
    b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/evil.dtd" [<!ENTITY b "x">]>',
    b'<!DOCTYPE a [<!ATTLIST Contents xmlns CDATA "uuu"><!ENTITY b "x">]>',
]


def answer(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    head = [f"HTTP/1.1 {status}".encode(), *headers, b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(head) + body


@pytest.fixture
def store_at(listening: Listen) -> Iterator[Callable[[Talk], Store]]:
    """A store that talks in some way, as the service asks it."""
    made = []

    def make(talk: Talk) -> Store:
        made.append(Store(listening(talk).settings, side="source"))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ── what swells ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
def test_a_document_that_would_take_much_memory_is_not_read(
    store_at: Callable[[Talk], Store], bomb: bytes
) -> None:
    with pytest.raises(StoreFailed, match="not S3's"):
        store_at(saying(answer("200 OK", LISTING % bomb))).page("bucket", "")
    if len(bomb) < 64 * 1024:
        with pytest.raises(StoreFailed, match="not S3's"):
            store_at(saying(answer("400 No", ERROR % bomb))).tags("bucket", "key")


UPLOADS: dict[str, Callable[[Target], object]] = {
    "its parts": lambda target: target.uploaded_parts("bucket", "key", "upload"),
    "those of a bucket": lambda target: list(target.uploads("bucket", "")),
    "completing": lambda target: target.complete_upload("bucket", "key", "upload", ["e"], permit=Permit()),
    "giving up": lambda target: target.abort_upload("bucket", "key", "upload"),
}


@pytest.mark.parametrize("call", UPLOADS.values(), ids=list(UPLOADS))
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
def test_what_is_told_of_an_upload_and_would_take_much_memory_is_not_read(
    listening: Listen, call: Callable[[Target], object], bomb: bytes
) -> None:
    listener = listening(saying(answer("200 OK", b"<Result>" + bomb + b"</Result>")))
    with closing(Target(listener.settings)) as target, pytest.raises(StoreFailed, match="not S3's"):
        call(target)


@pytest.mark.parametrize("doctype", ENTITIES)
def test_entities_are_not_expanded_and_nothing_outside_is_fetched(
    store_at: Callable[[Talk], Store], doctype: bytes
) -> None:
    contents = b"<Contents><Key>&b;</Key><Size>1</Size><ETag>e</ETag></Contents>"
    with pytest.raises(StoreFailed, match="not S3's"):
        store_at(saying(answer("200 OK", doctype + LISTING % contents))).page("bucket", "")
    with pytest.raises(StoreFailed, match="not S3's"):
        store_at(saying(answer("400 No", doctype + ERROR % b"&b;"))).tags("bucket", "key")


def test_another_encoding_hides_nothing() -> None:
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        assert read_xml(bomb.encode(encoding)) is None
    assert read_xml('<?xml version="1.0" encoding="cp037"?><a/>'.encode("cp037")) is None


def test_the_worst_document_that_is_read_takes_bounded_memory() -> None:
    names = b"".join(b'<b%d a=""/>' % number for number in range(MARKS_MAX // 2 - 10))
    worst = b'<a xmlns="' + b"u" * 199 + b'">' + names + b"</a>"
    tracemalloc.start()
    try:
        assert read_xml(worst) is not None
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_page_of_the_longest_keys_is_read() -> None:
    one = (
        b"<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&quot;%s&quot;</ETag>"
    )
    one += (
        b"<Size>1</Size><Owner><ID>i</ID><DisplayName>n</DisplayName></Owner><StorageClass>S</StorageClass>"
    )
    keys = [one % (b"%C3%A4" * 512, b"0" * 32) + b"</Contents>" for _ in range(1000)]
    assert read_xml(LISTING % b"".join(keys)) is not None


@pytest.mark.parametrize("call", ["page", "tags"])
def test_an_answer_that_is_compressed_is_not_unpacked(store_at: Callable[[Talk], Store], call: str) -> None:
    packed = gzip.compress(LISTING % b"" + b" " * (100 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(StoreFailed):
            store = store_at(saying(answer("200 OK", packed, b"Content-Encoding: gzip")))
            store.page("bucket", "") if call == "page" else store.tags("bucket", "key")
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def test_an_answer_of_boto3_s_that_is_compressed_is_not_unpacked(listening: Listen) -> None:
    packed = gzip.compress(b"<ListPartsResult>" + b" " * (200 * MIB) + b"</ListPartsResult>")
    listener = listening(saying(answer("200 OK", packed, b"Content-Encoding: gzip")))
    with closing(Target(listener.settings)) as target:
        tracemalloc.start()
        try:
            with pytest.raises(StoreError):
                target.uploaded_parts("bucket", "key", "upload")
            assert tracemalloc.get_traced_memory()[1] < 20 * MIB
        finally:
            tracemalloc.stop()


# ── what no number or date can be ────────────────────────────────────────────────────────────────────

NUMBERS = ["9" * 19, "9" * 5000, "-1", "1e9", "٣", "²", "0x10", ""]


@pytest.mark.parametrize("number", NUMBERS, ids=ascii)
def test_a_number_that_no_ledger_could_hold_is_not_taken(
    store_at: Callable[[Talk], Store], number: str
) -> None:
    listed = f"<Contents><Key>k</Key><Size>{number}</Size></Contents>".encode()
    with pytest.raises(StoreFailed, match="not S3's"):
        store_at(saying(answer("200 OK", LISTING % listed))).page("bucket", "")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: " + number.encode() + b"\r\n\r\n"
    with pytest.raises(StoreFailed):
        store_at(saying(head)).head("bucket", "key")
    more = [b"x-amz-tagging-count: " + number.encode(), b"Content-Range: bytes 0-6/" + number.encode()]
    info = store_at(saying(answer("200 OK", b"content", *more))).info("bucket", "key")
    assert (info.tag_count, info.size) == (0, 7)


DATES = [
    "Fri, 31 Dec 9999 23:59:59 -1400",
    "Mon, 01 Jan 99999999999 00:00:00 GMT",
    "Mon, 99 Jan 2020 00:00:00 GMT",
]


@pytest.mark.parametrize("date", DATES)
def test_a_date_that_no_clock_shows_harms_nothing(listening: Listen, date: str) -> None:
    heads = copied(listening, b"Expires: " + date.encode())
    assert any(head.startswith(b"PUT /target/key ") for head in heads)
    listener = listening(saying(answer("200 OK", b"", b"Date: " + date.encode())))
    with closing(Source(listener.settings)) as source:
        assert isinstance(source.time("bucket"), float)


# ── what never ends ──────────────────────────────────────────────────────────────────────────────────


def endless(begin: bytes, more: bytes) -> Talk:
    """Goes on until the other side hangs up."""

    def talk(connection: socket.socket, _number: int) -> None:
        request_on(connection)
        connection.sendall(begin)
        while True:
            connection.sendall(more)

    return talk


CONTENTS = b"<Contents><Key>k</Key><Size>1</Size></Contents>" * 1000
ENDLESS = {
    "a listing": (
        b"HTTP/1.1 200 OK\r\n\r\n" + (LISTING % b"").removesuffix(b"</ListBucketResult>"),
        CONTENTS,
    ),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n" * 1000),
    "one header": (b"HTTP/1.1 200 OK\r\nX-More: ", b"x" * 65536),
    "a status line": (b"HTTP/1.1 200 ", b"x" * 65536),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100),
    "a chunk's extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-More: x\r\n" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_without_an_end_is_given_up(store_at: Callable[[Talk], Store], name: str) -> None:
    with pytest.raises(StoreFailed):
        store_at(endless(*ENDLESS[name])).page("bucket", "")


@pytest.mark.parametrize("call", UPLOADS.values(), ids=list(UPLOADS))
@pytest.mark.parametrize("name", ENDLESS)
def test_what_is_told_of_an_upload_without_an_end_is_given_up(
    listening: Listen, call: Callable[[Target], object], name: str
) -> None:
    listener = listening(endless(*ENDLESS[name]))
    with closing(Target(listener.settings)) as target, pytest.raises(StoreFailed):
        call(target)


def test_a_listing_of_parts_that_leads_back_to_itself_is_given_up(listening: Listen) -> None:
    part = b"<Part><PartNumber>1</PartNumber><Size>1</Size><ETag>e</ETag></Part>"
    page = b"<ListPartsResult><IsTruncated>true</IsTruncated>" + part + b"</ListPartsResult>"
    listener = listening(saying(answer("200 OK", page)))
    with closing(Target(listener.settings)) as target, pytest.raises(StoreFailed):
        target.uploaded_parts("bucket", "key", "upload")


# ── where it sends us ────────────────────────────────────────────────────────────────────────────────

REDIRECTS = ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
REDIRECTS += ["400 Bad Request", "200 OK"]
REDIRECT = (
    b"<Error><Code>%s</Code><Region>eu-west-9</Region><Endpoint>%s</Endpoint><Bucket>bucket</Bucket></Error>"
)


def through_us(settings: Any) -> None:
    target, source = Target(settings), Source(settings)
    with closing(target), closing(source):
        calls = [
            lambda: source.head("bucket", "key"),
            lambda: source.open("bucket", "key").close(),
            lambda: source.page("bucket", ""),
            lambda: target.check("bucket"),
            lambda: target.put("bucket", "key", BODY, md5(BODY), NOTHING, permit=Permit()),
            lambda: target.create_upload("bucket", "key", NOTHING, permit=Permit()),
            lambda: target.delete("bucket", "key", permit=Permit()),
        ]
        for call in calls:
            try:
                call()
            except ReplicatorError:
                pass


def through_boto3(settings: Any) -> None:
    with closing(Target(settings)) as target:
        for call in UPLOADS.values():
            try:
                call(target)
            except ReplicatorError:
                pass


def through_the_scripts(settings: Any) -> None:
    client = ScriptsStore("source", settings).client
    for call in (
        client.list_buckets,
        lambda: client.stat_object(bucket_name="bucket", object_name="key"),
        lambda: list(client.list_objects(bucket_name="bucket")),
        lambda: client.remove_object(bucket_name="bucket", object_name="key"),
    ):
        try:
            call()
        except STORE_ERRORS:
            pass


def through_the_set_up(settings: Any) -> None:
    keys = {"access_key": settings.access_key, "secret_key": settings.secret_key}
    rest = dict.fromkeys(("webhook_url", "auth_token", "queue_dir", "queue_limit"), "")
    configured = configure_minio.Settings(endpoint=settings.endpoint_url, buckets=(), **keys, **rest)
    made = configure_minio.Setup(configured, argparse.Namespace())
    for call in (
        made.client.list_buckets,
        lambda: made.client.bucket_exists(bucket_name="b"),
        made.admin.info,
    ):
        with contextlib.suppress(Exception):  # minio-py's admin client has no base for its errors
            call()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # SDKs leave sockets open
@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("ask", [through_us, through_boto3, through_the_scripts, through_the_set_up])
def test_a_store_that_leads_elsewhere_is_not_followed(
    listening: Listen, ask: Callable[[Any], None], status: str
) -> None:
    """Neither there nor, signed for another region, to a host of its choice."""
    elsewhere = listening(saying(answer("200 OK")))
    place = elsewhere.settings.endpoint_url.encode()
    hosts: list[bytes] = []

    def talk(connection: socket.socket, _number: int) -> None:
        while request := request_on(connection):
            hosts.extend(re.findall(rb"\r\nhost: *(\S+)", request, re.IGNORECASE))
            code = b"AuthorizationHeaderMalformed" if status.startswith("400") else b"PermanentRedirect"
            body = REDIRECT % (code, place.removeprefix(b"http://"))
            headers = [b"Location: " + place + b"/bucket/key", b"x-amz-bucket-region: eu-west-9"]
            is_head = request.startswith(b"HEAD")
            whole = answer(status, body, *headers, b"Content-Type: application/xml")
            connection.sendall(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if is_head else whole)

    here = listening(talk)
    ask(here.settings)
    assert here.accepted > 0
    assert set(hosts) == {here.settings.endpoint_url.removeprefix("http://").encode()}
    assert elsewhere.accepted == 0


# ── what is passed on ────────────────────────────────────────────────────────────────────────────────

ETAG = b'ETag: "9a0364b9e99bb480dd25e1f0284c8555"'  # of b"content"
KNOWN = re.compile(
    r"host|content-length|content-md5|authorization|x-amz-(date|content-sha256|tagging|storage-class|meta-.*)"
    r"|content-(type|encoding|disposition|language)|cache-control|expires|if-none-match|if-match|accept-encoding"
)
"""All headers that a request to the target may have."""
SPLITS = [
    b"x-amz-meta-a: b\r\n X-Evil: 1",
    b"x-amz-meta-a: b\rX-Evil: 1",
    b"x-amz-meta-a: b\nX-Evil: 1",
    b"x-amz-meta-a: b\x00X-Evil: 1",
    b"x-amz-meta-a: =?utf-8?q?b=0D=0AX-Evil:_1?=",
    b"x-amz-meta-a: b%0d%0aX-Evil: 1",
    b"x-amz-meta-a\x0b: b\r\nX-Evil: 1",
    b"Content-Type: text/plain\r\n X-Evil: 1",
    b"Content-Type: text/plain\rX-Evil: 1",
    b"Content-Disposition: a\r\n\tX-Evil: 1",
    b"Cache-Control: a\xc4\x8d\xc4\x8aX-Evil: 1",  # letters whose code ends like CR and LF
    b"Expires: a\r\n X-Evil: 1",
    b"Authorization: AWS4 evil\r\nHost: evil\r\nX-Amz-Acl: public-read\r\nx-amz-copy-source: /other/object",
    b"x-amz-website-redirect-location: http://evil\r\nX-Amz-Grant-Read: everybody",
]


def copied(listening: Listen, header: bytes, *, tags: bytes = b"") -> list[bytes]:
    """The heads of all that the target hears of a copy of an object that has this header."""
    heads: list[bytes] = []

    def source_talk(connection: socket.socket, _number: int) -> None:
        while request := request_on(connection):
            if b"tagging" in request.split(b"\r\n")[0]:
                connection.sendall(answer("200 OK", tags))
            else:
                count = [b"x-amz-tagging-count: 1"] if tags else []
                whole = answer("200 OK", b"content", ETAG, header, *count)
                connection.sendall(whole.removesuffix(b"content") if request.startswith(b"HEAD") else whole)

    def target_talk(connection: socket.socket, _number: int) -> None:
        while request := request_on(connection):
            heads.append(request)
            found = request.startswith(b"HEAD")
            connection.sendall(answer("404 Not Found") if found else answer("200 OK", b"", ETAG))

    source = Source(listening(source_talk).settings)
    target = Target(listening(target_talk).settings)
    copier = Copier(source, target, SETTINGS, MemoryBudget(SETTINGS.memory_budget_bytes))
    with closing(source), closing(target), closing(copier):
        rule = Rule(name="default", source_bucket="source", target_bucket="target")
        try:
            copier.copy_object(rule, "key", permit=Permit(), known=Known())
        except StoreError:
            pass
    return heads


@pytest.mark.parametrize("header", SPLITS)
def test_no_header_of_an_object_becomes_another_header_at_the_target(
    listening: Listen, header: bytes
) -> None:
    for head in copied(listening, header):
        line, *headers = head.split(b"\r\n")
        assert line.split(b" ")[1].partition(b"?")[0] == b"/target/key"
        for each in headers:
            name, colon, value = each.partition(b":")
            assert colon and KNOWN.fullmatch(name.decode("latin-1")), each
            assert not re.search(rb"[\r\n\0]", value)


def test_an_ordinary_header_of_an_object_does_arrive(listening: Listen) -> None:
    """Else the tests around this one would show nothing."""
    heads = copied(listening, b"x-amz-meta-a: b")
    assert any(head.startswith(b"PUT /target/key ") and b"\r\nx-amz-meta-a: b" in head for head in heads)


@pytest.mark.parametrize("text", ["a&#13;&#10;X-Evil: 1", "a&#10;b", "&amp;x=y&amp;z", "a%0d%0aX-Evil: 1"])
def test_no_tag_of_an_object_becomes_a_header_or_a_second_tag(listening: Listen, text: str) -> None:
    tag = f"<Tag><Key>{text}</Key><Value>{text}</Value></Tag>"
    tags = f"<Tagging><TagSet>{tag}</TagSet></Tagging>".encode()
    puts = [each for each in copied(listening, b"x-amz-meta-a: b", tags=tags) if each.startswith(b"PUT")]
    assert puts
    for head in puts:
        assert b"\r\nX-Evil" not in head
        (tagging,) = re.findall(rb"\r\nx-amz-tagging: (.*)", head)
        assert tagging.count(b"=") == 1
        assert b"&" not in tagging


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
@pytest.mark.parametrize("where", ["content_type", "metadata", "storage_class", "stamp"])
def test_a_value_that_would_end_its_line_is_not_sent(listening: Listen, where: str, value: str) -> None:
    listener = listening(saying(answer("200 OK", b"", ETAG)))
    attributes = NOTHING
    if where == "metadata":
        attributes = replace(NOTHING, properties=Properties(metadata={"a": value}))
    elif where == "content_type":
        attributes = replace(NOTHING, properties=Properties(content_type=value))
    else:
        attributes = replace(NOTHING, **{where: value})
    with closing(Target(listener.settings)) as target:
        for call in (
            lambda: target.put("bucket", "key", BODY, md5(BODY), attributes, permit=Permit()),
            lambda: target.create_upload("bucket", "key", attributes, permit=Permit()),
        ):
            with pytest.raises(StoreRefused):
                call()
    assert listener.accepted == 0
