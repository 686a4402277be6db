"""What an S3 object is to this service: its properties, and when two copies are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.header import Header

STAMP = "replicator-source-etag"
"""User metadata that names the source's ETag, where the target's own ETag cannot equal it."""
NOT_OURS = frozenset({STAMP, "cid"})
"""Metadata that the source does not have: the stamp, and the IPFS CID that Filebase reports."""
MD5_ETAG = re.compile(r"[0-9a-f]{32}")
DIGITS_MAX = 18
"""Of a number in a header: what a column of the ledger can hold."""
EMPTY_ETAG = "d41d8cd98f00b204e9800998ecf8427e"
"""The MD5 of nothing."""
PARTS_ETAG = re.compile(r"[0-9a-f]{32}-([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What is carried over besides the bytes. Absent headers are empty strings."""

    content_type: str = ""
    content_encoding: str = ""
    content_disposition: str = ""
    content_language: str = ""
    cache_control: str = ""
    expires: str = ""
    """As the header has it, an HTTP date or anything else."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata, names in lower case without "x-amz-meta-", values ASCII (RFC 2047 where needed)."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object as a store describes it in the headers of HEAD or GET."""

    size: int
    """Bytes."""
    etag: str
    """Without quotes; "" where the store gave none."""
    version_id: str
    properties: Properties
    tag_count: int
    is_opaque: bool = False
    """Whether the ETag says nothing about the content: encryption with a managed or a customer's key."""
    stamp: str = ""
    """The source's ETag, on objects this service stamped."""
    cid: str = ""
    """The IPFS CID, on Filebase."""

    @property
    def parts_count(self) -> int:
        """The number of parts it was uploaded in; 0 for a plain PUT or an opaque ETag."""
        match = PARTS_ETAG.fullmatch(self.etag)
        return int(match.group(1)) if match else 0

    @property
    def has_md5_etag(self) -> bool:
        """Whether the ETag is the MD5 of the content."""
        return not self.is_opaque and MD5_ETAG.fullmatch(self.etag) is not None


def info_from_headers(headers: Mapping[str, str]) -> ObjectInfo:
    """Reads the response headers of HeadObject or GetObject; header names in any case."""
    low = {name.lower(): value for name, value in headers.items()}
    metadata = {
        name.removeprefix("x-amz-meta-"): _ascii(value)
        for name, value in low.items()
        if name.startswith("x-amz-meta-")
    }
    return ObjectInfo(
        size=_size(low),
        etag=low.get("etag", "").strip('"'),
        version_id=low.get("x-amz-version-id", ""),
        properties=Properties(
            content_type=low.get("content-type", ""),
            content_encoding=_without_framing(low.get("content-encoding", "")),
            content_disposition=_ascii(low.get("content-disposition", "")),
            content_language=low.get("content-language", ""),
            cache_control=low.get("cache-control", ""),
            expires=low.get("expires", ""),
            metadata={name: value for name, value in metadata.items() if name not in NOT_OURS},
        ),
        tag_count=_whole(low.get("x-amz-tagging-count", "")),
        is_opaque=is_opaque(low),
        stamp=metadata.get(STAMP, ""),
        cid=metadata.get("cid", ""),
    )


def is_opaque(low: Mapping[str, str]) -> bool:
    """Whether lower-case response headers tell of an encryption under which the ETag is no MD5.

    Source: Amazon S3 API Reference, "Object", ETag.
    """
    managed = low.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    return managed or "x-amz-server-side-encryption-customer-algorithm" in low


def same_content(source: ObjectInfo, target: ObjectInfo) -> bool:
    """Whether the headers prove that both hold the same bytes."""
    if source.size != target.size:
        return False
    if source.size == 0:  # some stores answer for a folder that has objects in it: no object has that ETag
        return target.is_opaque or target.etag in ("", EMPTY_ETAG, source.etag)
    return source.etag != "" and source.etag in (target.etag, target.stamp)


def _size(low: Mapping[str, str]) -> int:
    """Content-Length, or for a range the total after the slash of Content-Range (RFC 9110, 14.4)."""
    total = low.get("content-range", "").rpartition("/")[2]
    return _whole(total) or _whole(low.get("content-length", ""))


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else 0


def _without_framing(encoding: str) -> str:
    """Content-Encoding less "aws-chunked", which frames a request and is no property of the object."""
    codings = [coding.strip() for coding in encoding.split(",")]
    return ",".join(coding for coding in codings if coding and coding != "aws-chunked")


def _ascii(value: str) -> str:
    """A header value S3 accepts: ASCII as it is, other text as an RFC 2047 word, as S3 itself returns it.

    http.client reads header bytes as Latin-1; stores that send raw UTF-8 are read as that.
    """
    if value.isascii():
        return value
    try:
        value = value.encode("latin-1").decode()
    except UnicodeError:
        pass
    return Header(value, "utf-8", maxlinelen=100_000).encode()
