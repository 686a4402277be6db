"""Headers → what an object is, and when two are the same."""

from __future__ import annotations

from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.objects import STAMP, ObjectInfo, Properties, info_from_headers, same_content

MD5 = "0123456789abcdef" * 2


def info(etag: str = MD5, size: int = 1, stamp: str = "") -> ObjectInfo:
    """An object without properties."""
    return ObjectInfo(size=size, etag=etag, version_id="", properties=Properties(), tag_count=0, stamp=stamp)


def test_headers_are_read_in_any_case() -> None:
    headers = {
        "Content-Length": "3",
        "ETag": f'"{MD5}"',
        "X-Amz-Version-Id": "v1",
        "CONTENT-TYPE": "text/plain",
        "content-encoding": "gzip",
        "Content-Disposition": "inline",
        "Content-Language": "de",
        "Cache-Control": "no-store",
        "Expires": "never",
        "X-Amz-Meta-Colour": "Red",
        "x-amz-tagging-count": "2",
        "Server": "MinIO",
    }
    assert info_from_headers(headers) == ObjectInfo(
        size=3,
        etag=MD5,
        version_id="v1",
        tag_count=2,
        properties=Properties(
            content_type="text/plain",
            content_encoding="gzip",
            content_disposition="inline",
            content_language="de",
            cache_control="no-store",
            expires="never",
            metadata={"colour": "Red"},
        ),
    )


def test_missing_headers_are_empty() -> None:
    assert info_from_headers({}) == info(etag="", size=0)


def test_the_size_of_a_range_is_that_of_the_whole() -> None:
    assert info_from_headers({"Content-Length": "5", "Content-Range": "bytes 0-4/123"}).size == 123
    assert info_from_headers({"Content-Length": "5", "Content-Range": "bytes 0-4/*"}).size == 5


def test_what_the_target_adds_to_the_metadata_is_no_property() -> None:
    found = info_from_headers({f"x-amz-meta-{STAMP}": MD5, "x-amz-meta-cid": "Qm", "x-amz-meta-a": "b"})
    assert (found.stamp, found.cid, found.properties.metadata) == (MD5, "Qm", {"a": "b"})


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("gzip", "gzip"),
        ("aws-chunked", ""),
        ("aws-chunked,gzip", "gzip"),
        ("gzip, aws-chunked", "gzip"),
        ("br, gzip", "br,gzip"),
        ("", ""),
    ],
)
def test_the_framing_of_a_request_is_no_property(sent: str, kept: str) -> None:
    assert info_from_headers({"Content-Encoding": sent}).properties.content_encoding == kept


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=300))
def test_any_metadata_becomes_ascii_that_reads_back_the_same(value: str) -> None:
    on_the_wire = value.encode().decode("latin-1")  # as http.client reads it
    kept = info_from_headers({"x-amz-meta-a": on_the_wire}).properties.metadata["a"]
    assert kept.isascii()
    assert "\n" not in kept
    if not value.isascii():
        assert str(make_header(decode_header(kept))) == value
    else:
        assert kept == value


@pytest.mark.parametrize(
    ("etag", "headers", "is_md5", "parts"),
    [
        (MD5, {}, True, 0),
        (f"{MD5}-7", {}, False, 7),
        (f"{MD5}-10000", {}, False, 10_000),
        (MD5, {"x-amz-server-side-encryption": "AES256"}, True, 0),
        (MD5, {"x-amz-server-side-encryption": "aws:kms"}, False, 0),
        (MD5, {"x-amz-server-side-encryption": "aws:kms:dsse"}, False, 0),
        (MD5, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}, False, 0),
        *(
            (etag, {}, False, 0)
            for etag in ("", "abc", MD5.upper(), f"{MD5}-", f"{MD5}-x", f" {MD5}", f"{MD5}\n")
        ),
    ],
)
def test_an_etag_says_md5_or_parts_or_nothing(
    etag: str, headers: dict[str, str], is_md5: bool, parts: int
) -> None:
    found = info_from_headers({"ETag": f'"{etag}"', **headers})
    assert (found.etag, found.has_md5_etag, found.parts_count) == (etag, is_md5, parts)


@pytest.mark.parametrize(
    ("source", "target", "is_same"),
    [
        (info(), info(), True),
        (info(f"{MD5}-2"), info(f"{MD5}-2"), True),
        (info(), info("other", stamp=MD5), True),
        (info(), info("other"), False),
        (info(size=2), info(), False),
        (info(size=2), info("other", stamp=MD5), False),
        (info(""), info(""), False),
        (info(""), info("other"), False),
    ],
)
def test_only_equal_etags_and_sizes_prove_equal_content(
    source: ObjectInfo, target: ObjectInfo, is_same: bool
) -> None:
    assert same_content(source, target) == is_same
