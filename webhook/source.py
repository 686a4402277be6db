"""The store that objects are read from, through minio: its answers show every header.

The only place, with answers.py, that sees this SDK's exceptions; out of here come those of
`webhook.errors`. Holds open connections: create it after the fork.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Self
from urllib.parse import urlsplit

import certifi
import minio
import urllib3

from webhook.answers import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, LastAnswer, minio_errors
from webhook.errors import IntegrityError, Place, SourceChanged, StoreDenied, StoreFailed
from webhook.layout import Part, count
from webhook.objects import ObjectInfo, info_from_headers
from webhook.settings import StoreSettings

CHUNK_BYTES = 1024 * 1024


class Reading:
    """An open response of the source: `info` from its headers, the body still to be read. Close it."""

    def __init__(self, response: urllib3.BaseHTTPResponse, bucket: str, key: str) -> None:
        self._response = response
        self._bucket = bucket
        self._key = key
        self.info = info_from_headers(response.headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytearray:
        """The whole body, which must be `size` bytes long; takes no more memory than that and a chunk.

        Raises: IntegrityError where it has another length, StoreFailed where it breaks off.
        """
        body = bytearray(size)
        filled = 0
        with minio_errors("GetObject", self._bucket, self._key, last=LastAnswer()):
            for chunk in self._response.stream(CHUNK_BYTES, decode_content=False):
                if filled + len(chunk) > size:
                    filled += len(chunk)
                    break
                body[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        if filled != size:
            raise IntegrityError(
                f"source GetObject {self._bucket}/{self._key!r}: {size} bytes announced, {filled} received"
            )
        self._response.release_conn()
        return body

    def close(self) -> None:
        """Gives the connection back if the body was read, else drops it."""
        self._response.close()


class _Pool(urllib3.PoolManager):
    """Remembers each thread's last answer: minio leaves out its headers where it has no error document."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last = LastAnswer()

    def urlopen(self, method: str, url: str, *args: Any, **more: Any) -> urllib3.BaseHTTPResponse:
        """As urllib3 has it."""
        self.last.response = None
        self.last.response = super().urlopen(method, url, *args, **more)
        return self.last.response


class Source:
    """The store that objects are read from."""

    def __init__(self, settings: StoreSettings, *, connections_max: int) -> None:
        endpoint = urlsplit(settings.endpoint_url)
        self._pool = _Pool(
            maxsize=connections_max,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            # one more try where a kept-alive connection turned out closed; all else is the caller's to repeat
            retries=urllib3.Retry(
                total=1,
                connect=0,
                read=1,
                redirect=0,
                status=0,
                other=0,
                respect_retry_after_header=False,
                raise_on_status=False,
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=certifi.where(),
        )
        self._client = minio.Minio(
            endpoint=endpoint.netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            region=settings.region,
            secure=endpoint.scheme == "https",
            http_client=self._pool,
        )

    def head(self, bucket: str, key: str) -> ObjectInfo:
        """The object's headers. Raises: NoSuchKey (also where the bucket is missing), StoreError."""
        with self._asking("HeadObject", bucket, key):
            found = self._client.stat_object(bucket_name=bucket, object_name=key)
        return info_from_headers(found.metadata or {})

    def open(self, bucket: str, key: str) -> Reading:
        """Starts reading the whole object. Raises: NoSuchKey, StoreError."""
        with self._asking("GetObject", bucket, key):
            reading = Reading(self._client.get_object(bucket_name=bucket, object_name=key), bucket, key)
        if reading.info.size and not reading.info.etag:
            reading.close()
            raise StoreFailed(
                "gave an object without an ETag: is this an S3 store?",
                Place(side="source", operation="GetObject", bucket=bucket, key=key),
                hint="Check the endpoint in the settings, and what stands between.",
            )
        return reading

    def read_part(self, bucket: str, key: str, part: Part, *, etag: str) -> bytearray:
        """The bytes of one part, of the version that has this ETag and no other.

        Raises: SourceChanged where the object is another by now, StoreError, IntegrityError.
        """
        with self._asking("GetObject", bucket, key):
            response = self._client.get_object(
                bucket_name=bucket,
                object_name=key,
                offset=part.offset,
                length=part.size,
                request_headers={"If-Match": f'"{etag}"'},
            )
        with Reading(response, bucket, key) as reading:
            if reading.info.etag != etag:
                raise SourceChanged(
                    "the object was replaced",
                    Place(side="source", operation="GetObject", bucket=bucket, key=key),
                )
            return reading.read(part.size)

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The object's tags. Raises: NoSuchKey, StoreError."""
        with self._asking("GetObjectTagging", bucket, key):
            return dict(self._client.get_object_tags(bucket_name=bucket, object_name=key) or {})

    def part_size(self, bucket: str, key: str, info: ObjectInfo) -> int | None:
        """The size of the parts an object was uploaded in, where the store tells. Raises: StoreError.

        From HeadObject with partNumber=1, which answers with the first part's length and the number of
        parts (Amazon S3 API Reference, HeadObject). None where it does not, or parts differ in size.
        """
        with self._asking("HeadObject", bucket, key):
            first = self._client.stat_object(
                bucket_name=bucket, object_name=key, extra_query_params={"partNumber": "1"}
            )
        headers = {name.lower(): value for name, value in (first.metadata or {}).items()}
        size = int(headers.get("content-length", "0"))
        if headers.get("x-amz-mp-parts-count") != str(info.parts_count) or size < 1:
            return None
        return size if count(info.size, size) == info.parts_count else None

    def _asking(self, operation: str, bucket: str, key: str) -> AbstractContextManager[None]:
        return minio_errors(operation, bucket, key, last=self._pool.last)

    def check(self, bucket: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        with self._asking("HeadBucket", bucket, ""):
            if self._client.bucket_exists(bucket_name=bucket):
                return
        raise StoreDenied(
            "the bucket does not exist",
            Place(side="source", operation="HeadBucket", bucket=bucket),
            hint="Create the bucket, or correct MINIO_BUCKET.",
        )
