"""Where the parts of an object begin and end.

Limits: 5 MiB to 5 GiB a part (the last may be smaller), 10,000 parts, 5 TiB an object (Amazon S3 User
Guide, "Multipart upload limits"). All parts but the last are equally long, as Cloudflare R2 demands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1024 * 1024
PART_MIN_BYTES = 5 * MIB
PART_MAX_BYTES = 5 * 1024 * MIB
PARTS_MAX = 10_000
OBJECT_MAX_BYTES = 5 * 1024 * 1024 * MIB
OWN_PART_BYTES = 16 * MIB
"""The part size where the source's is not to be repeated, unless the object is too large for it."""
USUAL_PART_BYTES = tuple(
    n * MIB for n in (5, 8, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024, 2048, 4096, 5120)
)
"""What clients upload in: minio-go 16, boto3 and the AWS CLI 8, rclone and minio-py 5, s3cmd 15, …"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: `number` counts from 1, `offset` and `size` are bytes."""

    number: int
    offset: int
    size: int


def part_size_for(size: int, *, parts_count: int, memory_bytes: int) -> int:
    """The part size for an object of `size` bytes that has `parts_count` parts at the source (0: none).

    A usual size that gives just this count, else one of our own; never more than `memory_bytes`, which
    a part takes while it is under way. Raises: ValueError for an object larger than S3 allows.
    """
    if size > OBJECT_MAX_BYTES:
        raise ValueError(f"{size} bytes are more than the 5 TiB an S3 object can have")
    for candidate in USUAL_PART_BYTES:
        if parts_count and _count(size, candidate) == parts_count and candidate <= memory_bytes:
            return candidate
    smallest = -(-size // PARTS_MAX)
    return max(min(OWN_PART_BYTES, memory_bytes), -(-smallest // MIB) * MIB)


def parts(size: int, part_size: int) -> Iterator[Part]:
    """The parts in order; an empty object has one empty part."""
    for index in range(_count(size, part_size)):
        offset = index * part_size
        yield Part(number=index + 1, offset=offset, size=min(part_size, size - offset))


def _count(size: int, part_size: int) -> int:
    return max(1, -(-size // part_size))
