"""A large copy that is killed goes on with the parts that are at the target already."""

from __future__ import annotations

from collections.abc import Callable

import boto3
import pytest

from tests.acceptance.conftest import Stack, until

MIB = 1024 * 1024
PART, PARTS = 16 * MIB, 32


class Bytes:
    """Bytes that differ from part to part and take no room."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        given = min(self._left, size if size >= 0 else self._left)
        self._left -= given
        return self._left.to_bytes(8, "big") * (given // 8)


class PartsThere:
    """How many parts unfinished uploads at the target have."""

    def __init__(self, running: Stack) -> None:
        self._bucket = running.target_bucket
        self._client = boto3.client(
            "s3",
            endpoint_url=running.target.endpoint,
            aws_access_key_id=running.target.access_key,
            aws_secret_access_key=running.target.secret_key,
            region_name="us-east-1",
        )

    def __call__(self) -> int:
        ask, bucket = self._client, self._bucket
        uploads = ask.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        pages = [
            ask.list_parts(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]) for each in uploads
        ]
        return sum(len(page.get("Parts", [])) for page in pages)

    def close(self) -> None:
        self._client.close()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_after_sigkill_at_most_one_part_for_each_connection_is_sent_again(
    stack: Callable[..., Stack], share: float
) -> None:
    running = stack()
    size = PART * PARTS
    parts_there = PartsThere(running)
    etag = (
        running.client()
        .put_object(bucket_name="source", object_name="large", data=Bytes(size), length=size, part_size=PART)
        .etag
    )
    until(lambda: parts_there() >= PARTS * share, bound_s=120, what="enough parts are there")
    running.service.kill()
    there = parts_there()
    assert there > 0, "the copy was over before the kill"
    running.service.start()
    running.wait_until_settled(entries=1, bound_s=120)
    entry = running.service.get("/v1/entries/default/large").json()
    assert entry["target_etag"] == etag
    sent = entry["attempts_made"][-1]["bytes_copied"]
    connections = 4
    assert size - (there + connections) * PART <= sent <= size - there * PART
    assert parts_there() == 0
    parts_there.close()
