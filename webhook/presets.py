"""What is known beforehand of the stores that objects are copied to.

A preset says what one maker's S3 takes and heeds, so that nothing is tried that is known to fail. Where
nothing is known, the service finds it out by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one maker's stores differ from each other's S3."""

    name: str
    """What settings call it: "r2"."""
    hosts: tuple[str, ...] = ()
    """What the names of its endpoints end with: "r2.cloudflarestorage.com". None: it has no known ones."""
    endpoint: str = ""
    """Scheme and host where all customers share them, "{region}" standing for the region; else empty."""
    region: str = "us-east-1"
    """The region that requests are signed for, where none is set."""
    takes_tags: bool = True
    """Whether objects can have tags."""
    heeds_only_new: bool | None = None
    """Whether a PUT with `If-None-Match: *` is refused where the key exists; None: it is tried once."""
    heeds_match: bool | None = None
    """Whether a PUT with `If-Match` is refused where the key has another ETag; None: it is tried once."""
    heeds_on_complete: bool | None = None
    """Whether both conditions are heeded where an upload in parts is completed; None: it is tried once."""
    heeds_on_delete: bool = False
    """Whether a DELETE with `If-Match` is refused where the key has another ETag."""
    sends_checksums: bool = False
    """Whether the store wants and gives the checksums (CRC32 and others) of AWS's newer clients."""
    max_rps: int = 0
    """Requests a second that the store allows one customer; 0: no such limit is known."""


FILEBASE = Preset(
    name="filebase",
    hosts=("filebase.com", "filebase.io"),
    endpoint="https://s3.filebase.com",
    takes_tags=False,
    max_rps=100,
)
"""Filebase's documentation of its S3 API: two endpoints, no tagging; conditional writes are not mentioned.
100 requests a second ("Service Limits" of docs.filebase.com); its newer pages, of s3.filebase.io, say 500.
"""

AWS = Preset(
    name="aws",
    hosts=("amazonaws.com", "amazonaws.com.cn"),
    endpoint="https://s3.{region}.amazonaws.com",
    heeds_only_new=True,
    heeds_match=True,
    heeds_on_complete=True,
    heeds_on_delete=True,
    sends_checksums=True,
)
"""Amazon S3 User Guide: "Conditional writes", "Conditional deletes", "Checking object integrity"; AWS General
Reference for the endpoints (those of China end with ".cn": give them outright).
"""

R2 = Preset(
    name="r2",
    hosts=("r2.cloudflarestorage.com",),
    region="auto",
    takes_tags=False,
    heeds_only_new=True,
    heeds_match=True,
    heeds_on_complete=True,
)
"""Cloudflare's "S3 API compatibility": region auto, tagging not implemented; "Conditional operations":
PutObject and CompleteMultipartUpload heed both conditions. Each account has an endpoint of its own.
"""

B2 = Preset(name="b2", hosts=("backblazeb2.com",), takes_tags=False, heeds_only_new=False)
"""Backblaze's "S3-Compatible API": no tagging; PUT with If-None-Match is answered "not implemented". The
endpoint names the bucket's region, which has to be given too.
"""

GCS = Preset(
    name="gcs",
    hosts=("storage.googleapis.com",),
    endpoint="https://storage.googleapis.com",
    region="auto",
    takes_tags=False,
    heeds_only_new=False,
    heeds_match=False,
    heeds_on_complete=False,
)
"""Google's XML API reference: no tagging; writes are made conditional by headers of its own alone
(x-goog-if-generation-match).
"""

WASABI = Preset(name="wasabi", hosts=("wasabisys.com",), endpoint="https://s3.{region}.wasabisys.com")
"""Wasabi's "Service URLs" and S3 API reference, which has tagging and does not speak of conditional PUTs."""

MINIO = Preset(name="minio")
"""MinIO's source: it has tagging; what it makes of conditions depends on its version, and its gateways ignore
them.
"""

GARAGE = Preset(
    name="garage",
    region="garage",
    takes_tags=False,
    heeds_only_new=False,
    heeds_match=False,
    heeds_on_complete=False,
)
"""Garage's "S3 compatibility status" (no tagging, no conditional PUT) and its quick start's region."""

SEAWEEDFS = Preset(
    name="seaweedfs", heeds_only_new=True, heeds_match=True, heeds_on_complete=True, heeds_on_delete=True
)
"""Seen in SeaweedFS 4.48: it keeps tags, and heeds all conditions, on PUT when the body has arrived."""

OTHER = Preset(name="other")
"""A store of which nothing is known: it is taken for one that does all that S3 does, until it shows."""

ALL = (FILEBASE, AWS, R2, B2, GCS, WASABI, MINIO, GARAGE, SEAWEEDFS, OTHER)
NAMES = tuple(preset.name for preset in ALL)


def named(name: str) -> Preset | None:
    """The preset of this name; None where there is none."""
    return next((preset for preset in ALL if preset.name == name), None)


def of_endpoint(url: str) -> Preset:
    """The preset of the store at this endpoint; OTHER where it is not known."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return OTHER
    dotted = "." + host.removesuffix(".")
    known = (preset for preset in ALL if any(dotted.endswith("." + end) for end in preset.hosts))
    return next(known, OTHER)
