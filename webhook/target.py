"""The store that objects are written to.

Uploads in parts are listed, ended and given up through boto3, whose exceptions only this module and
answers.py see; all else goes the short way of `webhook.store`.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from webhook.answers import boto_errors, not_s3
from webhook.connections import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from webhook.errors import KeyExists, NoSuchKey, Place, StoreError, StoreUnavailable
from webhook.listing import Page
from webhook.objects import STAMP, ObjectInfo, Properties, is_opaque
from webhook.settings import StoreSettings
from webhook.store import Reading, Store

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
    """Thread-safe. Create it after the fork."""

    def __init__(self, settings: StoreSettings, *, connections_max: int) -> None:
        preset = settings.preset
        checksums = "when_supported" if preset.sends_checksums else "when_required"
        is_plain = settings.endpoint_url.startswith("http:")
        self.takes_tags = preset.takes_tags
        """False where the store is known to have no tagging, or has said so."""
        self._store = Store(settings, side="target")
        self.wants_digests = False
        """True once the store has refused a part without Content-MD5, as buckets under object lock do."""
        self.heeds_only_new = preset.heeds_only_new
        """Whether the store refuses a PUT that is to replace nothing, where there is something; None: not
        known yet."""
        self._trial = threading.Lock()
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            region_name=settings.region,
            verify=settings.ca_file,
            config=Config(
                signature_version="s3v4",
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=connections_max,
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Trailers and their framing confuse many other stores.
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                s3={"addressing_style": "path"},
                proxies={"http": ""} if is_plain else None,  # as for all other requests
            ),
        )

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._store.close()
        self._client.close()

    def place(self, operation: str, bucket: str, key: str) -> Place:
        """For errors."""
        return self._store.place(operation, bucket, key)

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """The object's headers, or None where there is none. Raises: StoreError."""
        try:
            return self._store.info(bucket, key)
        except NoSuchKey:
            return None

    def open(self, bucket: str, key: str) -> Reading:
        """Starts reading the whole object. Raises: NoSuchKey, StoreError."""
        return self._store.open("GetObject", "GET", bucket, key)

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The object's tags; none where there is no object or no tagging. Raises: StoreError."""
        if not self.takes_tags:
            return {}
        try:
            return self._store.tags(bucket, key)
        except NoSuchKey:
            return {}
        except StoreError as error:
            if error.store_code != "NotImplemented":
                raise
            self.takes_tags = False
            return {}

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        md5: bytes,
        attributes: Attributes,
        *,
        only_new: bool = False,
    ) -> tuple[Written, tuple[str, ...]]:
        """Writes a whole object; gives what the target says of it, and what it could not hold.

        `md5` is the body's digest, which the store checks too. Safe to repeat. With `only_new` the store is
        asked to replace nothing. Raises: KeyExists, StoreError.
        """

        def send(headers: Mapping[str, str]) -> Written:
            return self._write("PutObject", bucket, key, body, md5, headers={**headers, **condition})

        condition = {"if-none-match": "*"} if only_new else {}
        return self._with_attributes(attributes, send)

    def try_only_new(self, bucket: str, key: str, body: memoryview, attributes: Attributes) -> None:
        """Finds out whether the store heeds `only_new`, once, by writing again what was just written."""
        if self.heeds_only_new is not None or not self._trial.acquire(blocking=False):
            return
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        try:
            self.put(bucket, key, body, md5, attributes, only_new=True)
            self.heeds_only_new = False
        except KeyExists:
            self.heeds_only_new = True
        except StoreUnavailable:
            pass  # another object will tell
        except StoreError:
            self.heeds_only_new = False
        finally:
            self._trial.release()

    def create_upload(self, bucket: str, key: str, attributes: Attributes) -> tuple[str, tuple[str, ...]]:
        """Begins an upload in parts; gives its id, and what the target could not hold. Raises: StoreError."""
        operation = "CreateMultipartUpload"

        def send(headers: Mapping[str, str]) -> str:
            answer = self._store.ask(operation, "POST", bucket, key, query=[("uploads", "")], headers=headers)
            place = self._store.place(operation, bucket, key)
            upload_id = answer.xml(place).findtext("{*}UploadId")
            if not upload_id:
                raise not_s3(place)
            return upload_id

        return self._with_attributes(attributes, send)

    def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: memoryview, md5: bytes | None
    ) -> Written:
        """Writes one part; the store checks `md5` where it is given. Safe to repeat. Raises: StoreError."""
        query = [("partNumber", str(number)), ("uploadId", upload_id)]
        return self._write("UploadPart", bucket, key, body, md5, query=query)

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
        done = self._ask("CompleteMultipartUpload", bucket, key, wanted="ETag", **given)
        return _written({**done["ResponseMetadata"]["HTTPHeaders"], "etag": done["ETag"]})

    def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Discards an unfinished upload; one that is gone already is fine. Raises: StoreError."""
        try:
            self._ask("AbortMultipartUpload", bucket, key, UploadId=upload_id)
        except StoreError as error:
            if error.store_code != "NoSuchUpload" and error.status != 404:
                raise

    def delete(self, bucket: str, key: str) -> None:
        """Deletes the object; one that is gone already is fine. Raises: StoreError."""
        try:
            self._store.ask("DeleteObject", "DELETE", bucket, key)
        except NoSuchKey:
            pass

    def page(self, bucket: str, prefix: str, *, token: str = "") -> Page:
        """A page of the bucket's listing; see `Store.page`. Raises: StoreError."""
        return self._store.page(bucket, prefix, token=token)

    def check(self, bucket: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        self._store.check(bucket, setting="the rule's target bucket")

    def _write(
        self,
        operation: str,
        bucket: str,
        key: str,
        body: memoryview,
        md5: bytes | None,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Written:
        given = dict(headers or {})
        if md5:
            given["content-md5"] = base64.b64encode(md5).decode()
        answer = self._store.ask(operation, "PUT", bucket, key, query=query, headers=given, body=body)
        if body and not answer.headers.get("etag"):  # MinIO's gateways give folder markers none
            raise not_s3(self._store.place(operation, bucket, key))
        return _written(answer.headers)

    def _ask(
        self, operation: str, bucket: str, key: str, *, wanted: str = "", **parameters: Any
    ) -> dict[str, Any]:
        """One request. `wanted`: what an answer of S3 to it always has."""
        call = getattr(self._client, xform_name(operation))
        parameters |= {"Bucket": bucket, "Key": key}
        with boto_errors(operation, bucket, key, wanted=wanted) as checked:
            try:
                return checked(call(**parameters))
            except ConnectionClosedError:  # a kept-alive connection that the store had closed meanwhile
                return checked(call(**parameters))

    def _with_attributes(
        self, attributes: Attributes, send: Callable[[Mapping[str, str]], T]
    ) -> tuple[T, tuple[str, ...]]:
        """Sends with all the store can hold; a store without tagging says so once and is not asked again."""
        headers, lost = _headers(attributes)
        if attributes.tags and self.takes_tags:
            try:
                return send({**headers, "x-amz-tagging": urlencode(attributes.tags)}), lost
            except StoreError as error:
                if error.store_code != "NotImplemented":
                    raise
                self.takes_tags = False
        return send(headers), (*lost, "tags") if attributes.tags else lost


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What an object at the target gets besides its bytes."""

    properties: Properties
    tags: Mapping[str, str]
    stamp: str = ""
    """The source's ETag, where the target's cannot equal it."""
    storage_class: str = ""
    """Empty: whatever the store gives."""


def _headers(attributes: Attributes) -> tuple[dict[str, str], tuple[str, ...]]:
    """The request headers for all but the tags, and the names of those that cannot be written."""
    properties = attributes.properties
    expires = _http_date(properties.expires)
    named = {
        "content-type": properties.content_type,
        "content-encoding": properties.content_encoding,
        "content-disposition": properties.content_disposition,
        "content-language": properties.content_language,
        "cache-control": properties.cache_control,
        "expires": expires,
    }
    headers = {name: value for name, value in named.items() if value}
    headers |= {f"x-amz-meta-{name}": value for name, value in properties.metadata.items()}
    if attributes.stamp:
        headers[f"x-amz-meta-{STAMP}"] = attributes.stamp
    if attributes.storage_class:
        headers["x-amz-storage-class"] = attributes.storage_class
    return headers, ("expires",) if properties.expires and not expires else ()


def _http_date(text: str) -> str:
    """In the form every store takes (RFC 9110, 5.6.7); "" for what is no date, which many refuse."""
    if not text:
        return ""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return ""
    return format_datetime(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC), usegmt=True)


def _written(headers: Mapping[str, str]) -> Written:
    return Written(
        etag=headers.get("etag", "").strip('"'),
        is_opaque=is_opaque(headers),
        cid=headers.get("x-amz-meta-cid", ""),
    )
