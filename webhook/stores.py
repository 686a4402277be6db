"""The two stores: reads from the source through minio, writes to the target through boto3.

The only place that sees an SDK's exceptions; out of here come those of `webhook.errors`, told apart by
type, status and the store's error code. Both classes are thread-safe, hold open connections (create them
after the fork), and make no attempt of their own to repeat what failed, save one for a kept-alive
connection that turned out closed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urlsplit

import boto3
import certifi
import minio
import urllib3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from webhook.answers import LastAnswer, boto_errors, minio_errors
from webhook.errors import (
    IntegrityError,
    NoSuchKey,
    Place,
    SourceChanged,
    StoreDenied,
    StoreError,
    StoreFailed,
)
from webhook.layout import Part, count
from webhook.objects import STAMP, ObjectInfo, Properties, info_from_headers, is_opaque
from webhook.settings import StoreSettings

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Silence on a connection, not the length of a transfer."""
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


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the target says of an object or part it took."""

    etag: str
    """Without quotes."""
    is_opaque: bool
    """Whether the ETag says nothing about the content (encryption with a managed key)."""
    cid: str = ""


class Target:
    """The store that objects are written to."""

    def __init__(self, settings: StoreSettings, *, connections_max: int) -> None:
        is_aws = (urlsplit(settings.endpoint_url).hostname or "").endswith(".amazonaws.com")
        checksums = "when_supported" if is_aws else "when_required"
        self.takes_tags = True
        """False once the store has said that it has no tagging."""
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            region_name=settings.region,
            config=Config(
                signature_version="s3v4",
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=connections_max,
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Content-MD5 goes with every body; trailers and their framing confuse many other stores.
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                s3={"addressing_style": "auto" if is_aws else "path", "payload_signing_enabled": False},
            ),
        )

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """The object's headers, or None where there is none. Raises: StoreError."""
        try:
            found = self._ask("HeadObject", bucket, key)
        except NoSuchKey:
            return None
        return info_from_headers(found["ResponseMetadata"]["HTTPHeaders"])

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The object's tags; none where there is no object or no tagging. Raises: StoreError."""
        if not self.takes_tags:
            return {}
        try:
            found = self._ask("GetObjectTagging", bucket, key, wanted="TagSet")
        except NoSuchKey:
            return {}
        except StoreError as error:
            if error.store_code != "NotImplemented":
                raise
            self.takes_tags = False
            return {}
        return {tag["Key"]: tag["Value"] for tag in found["TagSet"]}

    def put(
        self, bucket: str, key: str, body: bytearray, md5: bytes, attributes: Attributes
    ) -> tuple[Written, tuple[str, ...]]:
        """Writes a whole object; gives what the target says of it, and what it could not hold.

        `md5` is the body's digest, which the store checks too. Safe to repeat. Raises: StoreError.
        """
        wanted = "ETag" if body else ""  # MinIO's gateways give folder markers none
        checksum = _base64(md5)

        def send(given: Mapping[str, Any]) -> Written:
            whole = {"Body": body, "ContentMD5": checksum, **given}
            return _written(self._ask("PutObject", bucket, key, wanted=wanted, **whole))

        return self._with_attributes(attributes, send)

    def create_upload(self, bucket: str, key: str, attributes: Attributes) -> tuple[str, tuple[str, ...]]:
        """Begins an upload in parts; gives its id, and what the target could not hold. Raises: StoreError."""

        def send(given: Mapping[str, Any]) -> str:
            return str(
                self._ask("CreateMultipartUpload", bucket, key, wanted="UploadId", **given)["UploadId"]
            )

        return self._with_attributes(attributes, send)

    def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: bytearray, md5: bytes
    ) -> Written:
        """Writes one part. Safe to repeat. Raises: StoreError."""
        given: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number}
        given |= {"Body": body, "ContentMD5": _base64(md5)}
        return _written(self._ask("UploadPart", bucket, key, wanted="ETag", **given))

    def complete_upload(self, bucket: str, key: str, upload_id: str, etags: Sequence[str]) -> Written:
        """Makes the object of its parts, whose ETags are given in order. Raises: StoreError."""
        listed = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)]
        given: dict[str, Any] = {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}}
        return _written(self._ask("CompleteMultipartUpload", bucket, key, wanted="ETag", **given))

    def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Discards an unfinished upload; one that is gone already is fine. Raises: StoreError."""
        try:
            self._ask("AbortMultipartUpload", bucket, key, UploadId=upload_id)
        except StoreError as error:
            if error.store_code != "NoSuchUpload" and error.status != 404:
                raise

    def check(self, bucket: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        try:
            self._ask("HeadBucket", bucket)
        except NoSuchKey as error:
            raise StoreDenied(
                "the bucket does not exist",
                Place(side="target", operation="HeadBucket", bucket=bucket),
                status=error.status,
                hint="Create the bucket, or correct FILEBASE_BUCKET.",
            ) from None

    def _ask(
        self, operation: str, bucket: str, key: str = "", *, wanted: str = "", **parameters: Any
    ) -> dict[str, Any]:
        """One request. `wanted`: what an answer of S3 to it always has."""
        call = getattr(self._client, xform_name(operation))
        parameters |= {"Bucket": bucket, "Key": key} if key else {"Bucket": bucket}
        with boto_errors(operation, bucket, key, wanted=wanted) as checked:
            try:
                return checked(call(**parameters))
            except ConnectionClosedError:  # a kept-alive connection that the store had closed meanwhile
                return checked(call(**parameters))

    def _with_attributes(
        self, attributes: Attributes, send: Callable[[Mapping[str, Any]], T]
    ) -> tuple[T, tuple[str, ...]]:
        """Sends with all the store can hold; a store without tagging says so once and is not asked again."""
        given, lost = _fields(attributes)
        if attributes.tags and self.takes_tags:
            try:
                return send({**given, "Tagging": urlencode(attributes.tags)}), lost
            except StoreError as error:
                if error.store_code != "NotImplemented":
                    raise
                self.takes_tags = False
        return send(given), (*lost, "tags") if attributes.tags else lost


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What an object at the target gets besides its bytes."""

    properties: Properties
    tags: Mapping[str, str]
    stamp: str = ""
    """The source's ETag, where the target's cannot equal it."""


def _fields(attributes: Attributes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """boto3's arguments for all but the tags, and the names of those that cannot be written."""
    properties, lost = attributes.properties, []
    metadata = dict(properties.metadata)
    if attributes.stamp:
        metadata[STAMP] = attributes.stamp
    given: dict[str, Any] = {
        "ContentType": properties.content_type,
        "ContentEncoding": properties.content_encoding,
        "ContentDisposition": properties.content_disposition,
        "ContentLanguage": properties.content_language,
        "CacheControl": properties.cache_control,
        "Metadata": metadata,
    }
    if properties.expires:
        try:
            given["Expires"] = parsedate_to_datetime(properties.expires)
        except ValueError:
            lost.append("expires")
    return {name: value for name, value in given.items() if value}, tuple(lost)


def _written(done: Mapping[str, Any]) -> Written:
    headers = done["ResponseMetadata"]["HTTPHeaders"]
    return Written(
        etag=done.get("ETag", "").strip('"'),
        is_opaque=is_opaque(headers),
        cid=headers.get("x-amz-meta-cid", ""),
    )


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
