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
    n * MIB for n in (8, 16, 5, 64, 10, 15, 32, 100, 50, 20, 25, 128, 256, 512, 1024, 2048, 4096, 5120)
)
"""What clients upload in, the most common first: boto3 and the AWS CLI 8, mc and minio-go 16, rclone and
minio-py 5, …"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: `number` counts from 1, `offset` and `size` are bytes."""

    number: int
    offset: int
    size: int


def likely_part_sizes(size: int, parts_count: int) -> list[int]:
    """The usual part sizes that cut `size` bytes into this many parts, the most common first."""
    return [each for each in USUAL_PART_BYTES if count(size, each) == parts_count <= PARTS_MAX]


def own_part_size(size: int, *, memory_bytes: int) -> int:
    """The part size where the source's is not to be repeated; `memory_bytes` is what one may take.

    Larger than that only where 10,000 parts would not do. Raises: ValueError above 5 TiB.
    """
    if size > OBJECT_MAX_BYTES:
        raise ValueError(f"{size} bytes are more than the 5 TiB an S3 object can have")
    smallest = -(-size // PARTS_MAX)
    return max(PART_MIN_BYTES, min(OWN_PART_BYTES, memory_bytes), -(-smallest // MIB) * MIB)


def parts(size: int, part_size: int) -> Iterator[Part]:
    """The parts in order; an empty object has one empty part."""
    for index in range(count(size, part_size)):
        offset = index * part_size
        yield Part(number=index + 1, offset=offset, size=min(part_size, size - offset))


def count(size: int, part_size: int) -> int:
    """How many parts of this size an object of `size` bytes has, at least one."""
    return max(1, -(-size // part_size))
