"""What arrives is what was sent: each key under its own name, with all its headers, on real stores."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.header import decode_header, make_header
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import boto3
import pytest
import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from scripts.local_servers import REGION, S3Server, SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import BUCKET, Stack, until

OF_THE_ANSWER = {"date", "last-modified", "x-amz-request-id", "x-amz-id-2", "server", "connection"}


@dataclass
class Side:
    """One bucket, seen with boto3."""

    server: S3Server
    bucket: str

    def __post_init__(self) -> None:
        keys = {"aws_access_key_id": self.server.access_key, "aws_secret_access_key": self.server.secret_key}
        config = Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"})
        where = {"endpoint_url": self.server.endpoint, "region_name": REGION}
        self.s3 = boto3.client("s3", **where, **keys, config=config)

    def put(self, key: str, body: bytes = b"content", **attributes: Any) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **attributes)

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def headers(self, key: str) -> dict[str, str]:
        found = self.s3.head_object(Bucket=self.bucket, Key=key)["ResponseMetadata"]["HTTPHeaders"]
        return {name: value for name, value in found.items() if name not in OF_THE_ANSWER}

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
        return dict(self.service.get(f"/v1/entries/default/{quote(key)}").json())

    def is_refused(self, key: str, reason: str) -> None:
        """The caller and the list of failures get the reason of the store that is asked first, and the
        target stays as it is.
        """
        before = self.target.listed()
        status, answer = self.replicate(key)
        code = answer["error"]["code"]
        assert (status, code in ("source_store_refused", "target_store_refused")) == (502, True), answer
        failed = self.service.get(f"/v1/failures?reason={code}").json()["failures"]
        found = [entry["error"] for entry in failed if entry["key"] == key]
        assert [reason in text for text in (*found, answer["error"]["message"])] == [True, True]
        assert self.target.listed() == before

    def is_exact(self, key: str) -> None:
        for what in (Side.headers, Side.tags, Side.read):
            assert what(self.target, key) == what(self.source, key)


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """A service without notifications or sweeps, between the servers whose fixtures the parameter names."""
    source, target = (request.getfixturevalue(name) for name in request.param.split("-"))
    sides = Side(source, f"{request.param}-from"), Side(target, f"{request.param}-to")
    buckets = {"source_bucket": sides[0].bucket, "target_bucket": sides[1].bucket}
    for side in sides:
        side.s3.create_bucket(Bucket=side.bucket)
    folder, environ = tmp_path_factory.mktemp("exact"), {"RECONCILE_INTERVAL_S": "0"}
    with Replicator(folder, source=source, target=target, environ=environ, **buckets) as service:
        yield Way(*sides, service)


through = partial(pytest.mark.parametrize, "way", indirect=True)
FROM_GATEWAY, FROM_SEAWEED, TO_GATEWAY = "gateway-seaweed", "seaweed-seaweed", "seaweed-gateway"

# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = [f"a{character}b" for character in " +%#?&=:;*\"<>|{}[]^~'`,@$!()\t\n\x7f"]
KEYS += ["a%20b", "a%2Fb", "a%2fb", "a+b%2B c", " first and last ", "deep/ a /b", "mark/", "..a", "a..b/..."]
KEYS += ["caf\u00e9", "cafe\u0301", "漢字/かな", "🎉/👨‍👩‍👧", "/".join(["x" * 204] * 5)]  # 1,024 bytes
RENAMED = {"back\\slash": "back/slash", "double//slash": "double/slash", "/lead": "lead", "end//": "end/"}
"""Key → the name under which SeaweedFS files it."""
OVERLONG = "s" * 256
"""The gateway takes it, SeaweedFS does not: one segment of more than 255 bytes."""


def content(key: str) -> bytes:
    return b"" if key.endswith("/") else b"the content of " + key.encode()


def etag(key: str) -> str:
    return hashlib.md5(content(key), usedforsecurity=False).hexdigest()


def test_each_key_arrives_by_its_event_under_exactly_that_key(
    stack: Callable[..., Stack], seaweed: SeaweedFS
) -> None:
    # as the administrator: SeaweedFS's policies fit no key with a line end
    running = stack(FILEBASE_ACCESS_KEY=seaweed.access_key, FILEBASE_SECRET_KEY=seaweed.secret_key)
    way = Way(Side(running.source, BUCKET), Side(running.target, running.target_bucket), running.service)
    for key in (*KEYS, *RENAMED, OVERLONG):
        way.source.put(key, content(key))
    until(lambda: way.service.settled() == len({*KEYS, *RENAMED}), bound_s=60, what="all are settled")
    until(lambda: way.entry(OVERLONG).get("state") == "failed", bound_s=60, what="the refused one has failed")
    listed = {(RENAMED.get(key, key), etag(key)) for key in (*KEYS, *RENAMED)}
    assert way.target.listed() == listed
    held = {key for key, _ in listed} - {"back/slash"} | {"back\\slash", OVERLONG}  # the gateway renames too
    assert {key for key, _ in way.source.listed()} == held
    way.is_refused(OVERLONG, "KeyTooLongError")


@through([FROM_GATEWAY, FROM_SEAWEED, TO_GATEWAY])
def test_each_key_arrives_by_request_under_exactly_that_key(way: Way) -> None:
    def copy(key: str) -> None:
        way.source.put(key, content(key))
        assert way.service.get(way.replicates(key)["entry"]).json()["key"] == key

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, KEYS))
    assert {key for key, _ in way.target.listed()} == set(KEYS)
    different = {(key, etag(key)) for key in KEYS} - way.target.listed()
    assert {key for key, _ in different} <= {"mark/"}  # its ETag is the gateway's own


@through([FROM_GATEWAY])
def test_a_key_that_seaweedfs_files_elsewhere_takes_the_place_of_another_key(way: Way) -> None:
    """Neither its answer to PUT nor a HEAD tells, so the service does not know either: only a list does."""
    for key, name in RENAMED.items():
        before = way.target.listed()
        way.source.put(key, content(key))
        assert way.replicates(key)["lost"] == []
        assert way.target.headers(key) == way.target.headers(name)
        assert way.target.listed() - before == {(name, etag(key))}
    way.source.put("back/slash")
    way.replicates("back/slash")
    assert way.replicate("back\\slash")[0] == 200  # for ever: each replaces the other one's copy


@through([FROM_GATEWAY, FROM_SEAWEED, TO_GATEWAY])
@pytest.mark.parametrize("key", [".", "..", "a/./b", "a/../b", "./b", "../b", "a/.."])
def test_a_key_that_is_taken_for_a_path_is_refused_and_touches_no_other(way: Way, key: str) -> None:
    way.source.put("b", b"another object")
    way.replicate("b")
    way.is_refused(key, "answered 400")


@through([FROM_GATEWAY])
def test_a_folder_marker_arrives_though_its_children_came_first(way: Way) -> None:
    """SeaweedFS answers HEAD of a folder that has children with 200, but lists only folders that were put."""
    for key in ("full/er", "full/"):
        way.source.put(key, content(key))
        way.replicate(key)
    assert {("full/", etag("full/")), ("full/er", etag("full/er"))} <= way.target.listed()


# ── headers, metadata, tags ──────────────────────────────────────────────────────────────────────────────

ALL: dict[str, Any] = {
    "ContentType": 'text/html; charset="UTF-8"',
    "ContentEncoding": "gzip",
    "ContentDisposition": "attachment; filename=\"a b.txt\"; filename*=UTF-8''%e2%82%ac",
    "ContentLanguage": "de, en-US",
    "CacheControl": "max-age=60, public",
    "Expires": "2030-01-02T03:04:05Z",
    "Metadata": {"Mixed-Case": "Some VALUE", "two-blanks": "a  b", "under_score": "=?;,", "long": "v" * 1900},
    "Tagging": urlencode({"Ünï": "cödé 漢", "with=in": "a=b", "plus+and": "x+y z/%20", "none": ""}),
}
OCTETS = pytest.param(
    {"ContentType": "binary/octet-stream"},
    marks=pytest.mark.xfail(strict=True, reason="it counts as no type at all: docs/DECISIONS.md"),
)
SINGLE: list[Any] = [
    *({"ContentType": "x-my/own"}, OCTETS, {"ContentEncoding": "br"}),
    *({"CacheControl": "no-store"}, {"Metadata": {"a": "1"}}, {"Tagging": "a=1"}),
]


@through([FROM_SEAWEED])
def test_all_headers_metadata_and_tags_arrive_and_a_gzip_body_is_left_as_it_is(way: Way) -> None:
    way.source.put("all", body := gzip.compress(b"<p>hello</p>" * 500, mtime=0), **ALL)
    assert way.replicates("all")["lost"] == []
    way.is_exact("all")
    assert way.target.read("all") == body
    assert {"content-encoding", "expires", "x-amz-meta-long"} <= way.target.headers("all").keys()


@through([FROM_SEAWEED])
@pytest.mark.parametrize("change", SINGLE, ids=str)
def test_a_change_of_nothing_but_one_of_these_is_replicated_each_time(way: Way, change: Any) -> None:
    key = f"{change}.css"
    for attributes in ({}, change, {}):
        way.source.put(key, **attributes)
        way.replicates(key)
        way.is_exact(key)


@through([FROM_SEAWEED])
def test_tags_set_on_an_object_that_is_there_are_replicated_each_time(way: Way) -> None:
    way.source.put("tagged")
    way.replicates("tagged")
    for tags in ([{"Key": "a", "Value": "1"}], [{"Key": "a", "Value": "2"}], []):
        way.source.s3.put_object_tagging(Bucket=way.source.bucket, Key="tagged", Tagging={"TagSet": tags})
        way.replicates("tagged")
        way.is_exact("tagged")


@through([FROM_SEAWEED])
def test_tags_with_an_ampersand_arrive(way: Way) -> None:
    """Amazon allows no such tags, other stores do."""
    way.source.put("ampersands", Tagging=urlencode({"value": "a&b", "a&b": "key"}))
    way.replicates("ampersands")
    assert way.target.tags("ampersands") == way.source.tags("ampersands")


@through([FROM_SEAWEED])
def test_the_framing_of_an_upload_is_no_encoding_of_the_object(way: Way) -> None:
    for sent, kept in (("aws-chunked,gzip", "gzip"), ("gzip, aws-chunked", "gzip"), ("aws-chunked", None)):
        way.source.put(sent, body := gzip.compress(sent.encode(), mtime=0), ContentEncoding=sent)
        way.replicates(sent)
        assert (way.target.headers(sent).get("content-encoding"), way.target.read(sent)) == (kept, body)


@through([FROM_SEAWEED])
def test_metadata_in_other_letters_arrives_as_s3_itself_would_return_it(way: Way) -> None:
    server, name = way.source.server, "é€漢 🎉"
    url = f"{server.endpoint}/{way.source.bucket}/letters"  # past boto3, which refuses to send it
    request = AWSRequest("PUT", url, headers={"x-amz-meta-name": name}, data=b"content")
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", REGION).add_auth(request)
    raw = {header: value.encode() for header, value in request.headers.items()}
    assert urllib3.request("PUT", url, body=request.data, headers=raw).status == 200
    way.replicates("letters")
    found = way.target.headers("letters")["x-amz-meta-name"]
    assert (found.isascii(), str(make_header(decode_header(found)))) == (True, name)


@through([TO_GATEWAY])
def test_what_the_target_drops_is_named_and_is_no_reason_to_copy_again(way: Way) -> None:
    way.source.put("lossy", **ALL)
    answer = way.replicate("lossy")[1]
    assert answer.get("status") == "replicated", answer
    lost = {"content-encoding", "content-language", "expires"}
    assert [set(answer["lost"]), set(way.entry("lossy")["lost"])] == [lost, lost]
    source, target = way.source.headers("lossy"), way.target.headers("lossy")
    carried = [name for name in source if name.startswith(("content-", "cache-", "expires", "x-amz-meta-"))]
    assert {name for name in carried if target.get(name) != source[name]} == lost
    assert way.target.tags("lossy") == way.source.tags("lossy")
    assert way.replicate("lossy")[0] == 409


@through([TO_GATEWAY])
def test_what_the_target_dropped_stays_on_record_and_is_known_after_a_restart(way: Way) -> None:
    way.source.put("record", ContentLanguage="de")
    assert way.replicates("record")["lost"] == ["content-language"]
    record = way.entry("record")
    way.service.restart()
    assert (way.replicate("record")[0], record["lost"]) == (409, ["content-language"])


@through([FROM_GATEWAY])
@pytest.mark.parametrize("order", [("odd", "plain"), ("plain", "odd")], ids="-".join)
def test_one_value_that_is_dropped_says_nothing_of_other_objects(way: Way, order: list[str]) -> None:
    """SeaweedFS keeps no metadata without a value."""
    way.service.restart()  # so that it has to find out again what the target holds
    for kind in order:
        way.source.put(f"{order}{kind}", Metadata={"note": ""} if kind == "odd" else {"note": "red"})
        assert bool(way.replicates(f"{order}{kind}")["lost"]) == (kind == "odd")
    way.source.put(f"{order}plain", Metadata={"note": "blue"})
    way.replicates(f"{order}plain")
    assert way.target.headers(f"{order}plain")["x-amz-meta-note"] == "blue"
