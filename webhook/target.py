"""The store that objects are written to, through boto3: the most widely proven client of other S3 stores.

The only place, with answers.py, that sees this SDK's exceptions; out of here come those of
`webhook.errors`. It repeats nothing that failed, save once what went to a kept-alive connection that the
store had closed. Holds open connections: create it after the fork.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from webhook.answers import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, boto_errors
from webhook.errors import NoSuchKey, Place, StoreDenied, StoreError
from webhook.objects import STAMP, ObjectInfo, Properties, info_from_headers, is_opaque
from webhook.settings import StoreSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the target says of an object or part it took."""

    etag: str
    """Without quotes."""
    is_opaque: bool
    """Whether the ETag says nothing about the content (encryption with a managed key)."""
    cid: str = ""


@dataclass(frozen=True, kw_only=True)
class UploadedPart:
    """A part that an unfinished upload has: bytes, and its ETag without quotes."""

    size: int
    etag: str


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

    def uploaded_parts(self, bucket: str, key: str, upload_id: str) -> dict[int, UploadedPart] | None:
        """The parts an unfinished upload has, by number; None where there is no such upload any more.

        Raises: StoreError.
        """
        found: dict[int, UploadedPart] = {}
        after = 0
        try:
            while True:
                page = self._ask("ListParts", bucket, key, UploadId=upload_id, PartNumberMarker=after)
                for part in page.get("Parts", []):
                    after = part["PartNumber"]
                    found[after] = UploadedPart(size=part["Size"], etag=part["ETag"].strip('"'))
                if not page.get("IsTruncated") or not page.get("Parts"):
                    return found
        except StoreError as error:
            if error.store_code == "NoSuchUpload" or isinstance(error, NoSuchKey):
                return None
            raise

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
