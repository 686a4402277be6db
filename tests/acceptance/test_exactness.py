"""What arrives is what was sent: each key under its own name, with all its headers, on real stores."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import boto3
import pytest
import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from scripts.local_servers import REGION, Gateway, S3Server, SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import BUCKET, notify, until

PASSING = {"date", "last-modified", "x-amz-request-id", "x-amz-id-2", "server", "connection"}
"""Headers that tell of the request and not of the object."""


@dataclass
class Side:
    """One bucket, seen with boto3."""

    server: S3Server
    bucket: str

    def __post_init__(self) -> None:
        self.s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=self.server.endpoint,
            aws_access_key_id=self.server.access_key,
            aws_secret_access_key=self.server.secret_key,
            region_name=REGION,
            config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
        )
        self.s3.create_bucket(Bucket=self.bucket)

    def put(self, key: str, body: bytes = b"content", **attributes: Any) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **attributes)

    def put_raw(self, key: str, headers: dict[str, str]) -> None:
        """Uploads with headers that boto3 does not send as they are: no date, or not ASCII."""
        url = f"{self.server.endpoint}/{self.bucket}/{quote(key)}"
        sent = AWSRequest("PUT", url, headers=headers, data=b"content")
        S3SigV4Auth(Credentials(self.server.access_key, self.server.secret_key), "s3", REGION).add_auth(sent)
        raw = {name: value.encode() for name, value in sent.headers.items()}
        assert urllib3.request("PUT", url, body=sent.data, headers=raw).status == 200

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def headers(self, key: str) -> dict[str, str]:
        found = self.s3.head_object(Bucket=self.bucket, Key=key)["ResponseMetadata"]["HTTPHeaders"]
        return {name: value for name, value in found.items() if name not in PASSING}

    def tags(self, key: str) -> dict[str, str]:
        found = self.s3.get_object_tagging(Bucket=self.bucket, Key=key)["TagSet"]
        return {tag["Key"]: tag["Value"] for tag in found}

    def listed(self) -> set[tuple[str, str]]:
        """Keys and ETags, as the store lists them."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {(each["Key"], each["ETag"].strip('"')) for page in pages for each in page.get("Contents", [])}


@dataclass
class Way:
    """A service between two buckets."""

    source: Side
    target: Side
    service: Replicator

    def replicate(self, key: str) -> tuple[int, dict[str, Any]]:
        answer = self.service.post("/v1/replicate", json={"s3_key": key})
        return answer.status_code, answer.json()

    def replicates(self, key: str) -> dict[str, Any]:
        """The request copies, one more finds nothing to do; gives the first one's answer."""
        status, answer = self.replicate(key)
        assert (status, answer.get("status"), answer.get("s3_key")) == (200, "replicated", key), answer
        assert self.replicate(key)[0] == 409
        return answer

    def entry(self, key: str) -> dict[str, Any]:
        answer = self.service.get(f"/v1/entries/default/{quote(key)}")
        return dict(answer.json()) if answer.status_code == 200 else {"state": "unknown"}

    def ended(self, key: str) -> dict[str, Any]:
        """The entry, once an event has brought it to an end."""
        ends = ("settled", "failed")
        until(lambda: self.entry(key)["state"] in ends, bound_s=30, what=f"{key!r} is settled or failed")
        return self.entry(key)

    def refused(self) -> dict[str, str]:
        """The keys that the target refused, and why."""
        found = self.service.get("/v1/failures?reason=target_store_refused").json()["failures"]
        return {entry["key"]: entry["error"] for entry in found}

    def is_exact(self, key: str) -> None:
        assert self.target.headers(key) == self.source.headers(key)
        assert self.target.tags(key) == self.source.tags(key)
        assert self.target.read(key) == self.source.read(key)


@contextmanager
def opened(folder: Path, source: Side, target: Side) -> Iterator[Way]:
    """Runs a service between two buckets."""
    stores = {"source": source.server, "target": target.server}
    buckets = {"source_bucket": source.bucket, "target_bucket": target.bucket}
    with Replicator(folder, **stores, **buckets) as service:
        yield Way(source, target, service)


def between(source: str, target: str) -> Callable[..., Any]:
    """A fixture: a service without notifications between two of the shared servers."""

    @pytest.fixture(scope="module")
    def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
        name = f"exact-{source}-{target}"
        servers = request.getfixturevalue(source), request.getfixturevalue(target)
        sides = Side(servers[0], f"{name}-from"), Side(servers[1], f"{name}-to")
        with opened(tmp_path_factory.mktemp(name), *sides) as running:
            yield running

    return way


from_gateway = between("gateway", "seaweed")
from_seaweed = between("seaweed", "seaweed")
to_gateway = between("seaweed", "gateway")


@pytest.fixture(scope="module")
def by_events(seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp("exact-by-events")
    with Gateway(folder / "source") as source:
        sides = Side(source, BUCKET), Side(seaweed, "exact-by-events")
        with opened(folder / "service", *sides) as way:
            notify(source, way.service.events_url, queue_dir=folder / "queue")
            yield way


@pytest.fixture(params=["from_gateway", "from_seaweed", "to_gateway"])
def way(request: pytest.FixtureRequest) -> Way:
    """Each of the services without notifications in turn."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = [f"a{character}b" for character in " +%#?&=:;*\"<>|{}[]^~'`,@$!()\t\n\x7f"]
KEYS += ["a%20b", "a%2Fb", "a%2fb", "a+b%2B c", " first and last ", "deep/ a /b", "UPPER", "upper"]
KEYS += [
    "caf\u00e9",
    "cafe\u0301",
    "漢字/かな",
    "🎉/👨‍👩‍👧",
    ".hidden",
    "..a",
    "a..b/...",
    "mark/",
    "full/",
    "full/er",
]
KEYS += ["/".join(["x" * 204] * 5), "/".join(["漢" * 68] * 4 + ["漢" * 67 + "xyz"])]  # 1,024 bytes each
RENAMED = {"back\\slash": "back/slash", "double//slash": "double/slash", "/lead": "lead", "end//": "end/"}
"""Key → the name under which SeaweedFS files it."""
OVERLONG = "s" * 256
"""The gateway takes it, SeaweedFS does not: one segment of more than 255 bytes."""


def content(key: str) -> bytes:
    return b"" if key.endswith("/") else b"the content of " + key.encode()


def etag(key: str) -> str:
    return hashlib.md5(content(key), usedforsecurity=False).hexdigest()


def test_each_key_arrives_by_its_event_under_exactly_that_key(by_events: Way) -> None:
    assert [len(key.encode()) for key in KEYS[-2:]] == [1024, 1024]
    for key in KEYS:
        by_events.source.put(key, content(key))
    assert {key: by_events.ended(key).get("outcome") for key in KEYS} == dict.fromkeys(KEYS, "replicated")
    assert {key for key, _ in by_events.source.listed()} == set(KEYS)
    assert by_events.target.listed() == {(key, etag(key)) for key in KEYS}


def test_each_key_arrives_by_request_under_exactly_that_key(way: Way) -> None:
    def copy(key: str) -> None:
        way.source.put(key, content(key))
        answer = way.replicates(key)
        assert way.service.get(answer["entry"]).json()["key"] == key

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, KEYS))
    found = {key: "" if key.endswith("/") else found for key, found in way.target.listed()}  # the gateway's
    assert found == {
        key: "" if key.endswith("/") else etag(key) for key in KEYS
    }  # ETags of these are its own


@pytest.mark.parametrize("key", RENAMED)
def test_a_key_that_seaweedfs_files_elsewhere_is_found_under_both_names_and_listed_under_one(
    from_gateway: Way, key: str
) -> None:
    """Neither the answer to PUT nor a HEAD shows it, so the service does not see it either."""
    before = from_gateway.target.listed()
    from_gateway.source.put(key, content(key))
    assert from_gateway.replicates(key)["lost"] == []
    assert from_gateway.target.listed() - before == {(RENAMED[key], etag(key))}
    assert from_gateway.target.headers(key) == from_gateway.target.headers(RENAMED[key])


def test_by_event_too_seaweedfs_files_these_elsewhere_as_the_gateway_does_save_for_the_backslash(
    by_events: Way,
) -> None:
    before = by_events.source.listed(), by_events.target.listed()
    for key in RENAMED:
        by_events.source.put(key, content(key))
        assert by_events.ended(key.removeprefix("/"))["outcome"] == "replicated"  # as its event calls it
    sides = zip((by_events.source, by_events.target), before, strict=True)
    source, target = ({key for key, _ in side.listed() - earlier} for side, earlier in sides)
    assert target == set(RENAMED.values())
    assert source == target - {"back/slash"} | {"back\\slash"}


def test_of_two_keys_that_the_target_files_as_one_the_last_one_copied_is_there(from_gateway: Way) -> None:
    for key in ("two\\as one", "two/as one"):
        from_gateway.source.put(key, content(key))
        from_gateway.replicates(key)
    assert ("two/as one", etag("two/as one")) in from_gateway.target.listed()
    assert from_gateway.replicate("two\\as one")[0] == 200  # each request replaces the other one's copy
    assert ("two/as one", etag("two\\as one")) in from_gateway.target.listed()


@pytest.mark.parametrize("key", [".", "..", "a/./b", "a/../b", "./b", "../b", "a/.."])
def test_a_key_that_is_taken_for_a_path_is_refused_with_the_reason_and_touches_nothing(
    way: Way, key: str
) -> None:
    way.source.put("b", b"another object")
    way.replicate("b")
    before = way.target.listed()
    status, answer = way.replicate(key)
    assert (status, answer["error"]["code"]) == (502, "target_store_refused")
    assert "answered 400" in answer["error"]["message"]
    assert "answered 400" in way.refused()[key]
    assert way.target.listed() == before


def test_a_key_that_only_the_target_refuses_ends_as_failed_with_its_reason(by_events: Way) -> None:
    before = by_events.target.listed()
    by_events.source.put(OVERLONG)
    assert by_events.ended(OVERLONG)["state"] == "failed"
    assert "KeyTooLongError" in by_events.refused()[OVERLONG]
    status, answer = by_events.replicate(OVERLONG)
    assert (status, answer["error"]["code"]) == (502, "target_store_refused")
    assert "KeyTooLongError" in answer["error"]["message"]
    assert by_events.target.listed() == before


# ── headers, metadata, tags ──────────────────────────────────────────────────────────────────────────────

ALL: dict[str, Any] = {
    "ContentType": 'text/html; charset="UTF-8"',
    "ContentEncoding": "gzip",
    "ContentDisposition": "attachment; filename=\"a b.txt\"; filename*=UTF-8''%e2%82%ac",
    "ContentLanguage": "de, en-US",
    "CacheControl": "max-age=60, public",
    "Expires": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
    "Metadata": {"Mixed-Case": "Some VALUE", "two-blanks": "a  b", "under_score": "=?;,", "long": "v" * 1900},
    "Tagging": urlencode({"Ünï": "cödé 漢", "with=in": "a=b", "plus+and": "x+y z/%20", "none": ""}),
}
SINGLE: dict[str, dict[str, Any]] = {
    "nothing at all": {},
    "no type but an ending.css": {},
    "a type of its own": {"ContentType": "x-my/own"},
    "the type for no type": {"ContentType": "binary/octet-stream"},
    "another encoding": {"ContentEncoding": "br"},
    "only tags": {"Tagging": "a=1&b=2"},
}


def test_all_headers_metadata_and_tags_arrive_and_a_gzip_body_is_left_as_it_is(from_seaweed: Way) -> None:
    body = gzip.compress(b"<p>hello</p>" * 500, mtime=0)
    from_seaweed.source.put("all", body, **ALL)
    assert from_seaweed.replicates("all")["lost"] == []
    from_seaweed.is_exact("all")
    assert from_seaweed.target.read("all") == body
    found = from_seaweed.target.headers("all")
    assert (found["content-encoding"], found["expires"]) == ("gzip", "Wed, 02 Jan 2030 03:04:05 GMT")
    assert (found["x-amz-meta-long"], len(from_seaweed.target.tags("all"))) == ("v" * 1900, 4)


@pytest.mark.parametrize("key", SINGLE)
def test_an_object_with_little_arrives_with_no_more(from_seaweed: Way, key: str) -> None:
    from_seaweed.source.put(key, **SINGLE[key])
    from_seaweed.replicates(key)
    from_seaweed.is_exact(key)


@pytest.mark.parametrize(
    ("sent", "kept"), [("aws-chunked,gzip", "gzip"), ("gzip, aws-chunked", "gzip"), ("aws-chunked", None)]
)
def test_the_framing_of_an_upload_is_no_encoding(from_seaweed: Way, sent: str, kept: str | None) -> None:
    body = gzip.compress(sent.encode(), mtime=0)
    from_seaweed.source.put(sent, body, ContentEncoding=sent)
    from_seaweed.replicates(sent)
    assert from_seaweed.target.headers(sent).get("content-encoding") == kept
    assert from_seaweed.target.read(sent) == body


def test_metadata_in_other_letters_arrives_as_s3_itself_would_return_it(from_seaweed: Way) -> None:
    headers = {"x-amz-meta-name": "é€漢 🎉", "x-amz-meta-word": "=?utf-8?b?w6k=?="}
    from_seaweed.source.put_raw("letters", headers)
    from_seaweed.replicates("letters")
    found = from_seaweed.target.headers("letters")
    assert str(make_header(decode_header(found["x-amz-meta-name"]))) == headers["x-amz-meta-name"]
    assert found["x-amz-meta-word"] == headers["x-amz-meta-word"]


@pytest.mark.parametrize("tags", [{"value": "a&b"}, {"a&b": "key"}], ids=["value", "key"])
def test_tags_with_an_ampersand_arrive(from_seaweed: Way, tags: dict[str, str]) -> None:
    key = f"ampersand in the {'value' if 'value' in tags else 'key'}"
    from_seaweed.source.put(key, Tagging=urlencode(tags))
    assert from_seaweed.source.tags(key) == tags
    from_seaweed.replicates(key)
    assert from_seaweed.target.tags(key) == tags


# ── what a target cannot hold ────────────────────────────────────────────────────────────────────────────


def test_what_the_target_drops_is_named_and_is_no_reason_to_copy_again(to_gateway: Way) -> None:
    to_gateway.source.put("lossy", **ALL)
    status, answer = to_gateway.replicate("lossy")
    assert (status, answer.get("status")) == (200, "replicated"), answer
    lost = sorted(answer["lost"]), sorted(to_gateway.entry("lossy")["lost"])
    assert lost == (["content-encoding", "content-language", "expires"],) * 2
    source, target = to_gateway.source.headers("lossy"), to_gateway.target.headers("lossy")
    mine = [name for name in source if name.startswith(("x-amz-meta-", "content-", "cache-", "expires"))]
    assert {name for name in mine if target.get(name) != source[name]} == set(lost[0])
    assert to_gateway.target.tags("lossy") == to_gateway.source.tags("lossy")
    assert to_gateway.replicate("lossy")[0] == 409


def test_what_the_target_dropped_stays_on_record_and_is_known_after_a_restart(to_gateway: Way) -> None:
    to_gateway.source.put("record", ContentLanguage="de")
    assert to_gateway.replicates("record")["lost"] == ["content-language"]
    record = to_gateway.entry("record")
    to_gateway.service.restart()
    assert (to_gateway.replicate("record")[0], record["lost"]) == (409, ["content-language"])


DATES = ("Wed, 02 Jan 2030 03:04:05 GMT", "Thu, 03 Jan 2030 03:04:05 GMT")


@pytest.mark.parametrize("odd_first", [True, False], ids=["odd first", "odd second"])
@pytest.mark.parametrize(
    ("fixture", "header", "odd", "plain"),
    [("from_gateway", "x-amz-meta-note", "", ("red", "blue")), ("from_seaweed", "expires", "0", DATES)],
)
def test_one_odd_value_that_cannot_be_held_says_nothing_of_other_objects(
    request: pytest.FixtureRequest,
    fixture: str,
    header: str,
    odd: str,
    plain: tuple[str, str],
    odd_first: bool,
) -> None:
    """SeaweedFS drops metadata without a value, boto3 sends no Expires but a date."""
    way: Way = request.getfixturevalue(fixture)
    way.service.restart()  # so that it has to find out again what the target holds
    values = {f"odd {odd_first} {header}": odd, f"plain {odd_first} {header}": plain[0]}
    lost = []
    for key in sorted(values, reverse=not odd_first):
        way.source.put_raw(key, {header: values[key]})
        lost.append((bool(way.replicates(key)["lost"]), values[key]))
    assert sorted(lost) == [(False, plain[0]), (True, odd)]
    way.source.put_raw(key := f"plain {odd_first} {header}", {header: plain[1]})
    way.replicates(key)
    assert way.target.headers(key)[header] == plain[1]


# ── changes of nothing but metadata ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change", [{"Metadata": {"a": "1"}}, {"ContentType": "text/x"}, {"CacheControl": "no-store"}], ids=str
)
def test_an_object_changed_in_nothing_but_this_is_replicated_again(from_seaweed: Way, change: Any) -> None:
    key = f"changed {next(iter(change))}"
    for attributes in ({}, change, {}):
        from_seaweed.source.put(key, **attributes)
        from_seaweed.replicates(key)
        from_seaweed.is_exact(key)


def test_an_object_changed_in_nothing_but_its_tags_is_replicated_again(from_seaweed: Way) -> None:
    from_seaweed.source.put("tagged")
    from_seaweed.replicates("tagged")
    place = {"Bucket": from_seaweed.source.bucket, "Key": "tagged"}
    for tags in ([{"Key": "colour", "Value": "red"}], [{"Key": "colour", "Value": "blue"}], []):
        from_seaweed.source.s3.put_object_tagging(**place, Tagging={"TagSet": tags})
        from_seaweed.replicates("tagged")
        from_seaweed.is_exact("tagged")
