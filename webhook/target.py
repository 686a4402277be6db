"""The store that objects are written to.

Requests to list uploads in parts, to end them and to give them up are made and signed by boto3, which reads
their answers too; only this module and answers.py see its exceptions. All are sent by `webhook.store`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import boto3
from botocore import xform_name
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config

from webhook.answers import boto_errors, not_s3, read_xml
from webhook.conditions import IF_MATCH, IF_NEW, Conditions
from webhook.connections import Request
from webhook.errors import NoSuchKey, Place, StoreError, StoreUnavailable
from webhook.findings import Findings
from webhook.layout import PARTS_MAX
from webhook.listing import PAGE_MAX_BYTES, Page
from webhook.objects import STAMP, ObjectInfo, Properties, is_opaque
from webhook.pace import Pace, Right, Slots
from webhook.settings import StoreSettings
from webhook.store import Reading, Store

T = TypeVar("T")
_BOTO_NAMES = {IF_MATCH: "IfMatch", IF_NEW: "IfNoneMatch"}


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


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """An upload that was neither completed nor aborted; when it was begun, in seconds since 1970."""

    key: str
    id: str
    begun_at: float


class Target:
    """Thread-safe. Create it after the fork.

    What writes asks its permit right before it is sent, and raises LeaseLost where that has ended; what reads
    asks it only while it waits. All of it is paced, and raises what `Pace.turn` does.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        name: str = "target",
        slots: Slots | None = None,
    ) -> None:
        """`name` is its name in the settings; `slots` are what its limits hold for, None: this process."""
        preset = settings.preset
        self._pace = Pace(name, max_rps=settings.max_rps, max_mbps=settings.max_mbps, slots=slots)
        checksums = "when_supported" if preset.sends_checksums else "when_required"
        self.takes_tags = preset.takes_tags
        """False where the store is known to have no tagging, or has said so."""
        self._store = Store(settings, side="target", pace=self._pace)
        self.wants_digests = False
        """True once the store has refused a part without Content-MD5, as buckets under object lock do."""
        self.puts = Conditions(name, "PutObject", only_new=preset.heeds_only_new, match=preset.heeds_match)
        self.completions = Conditions(
            name,
            "CompleteMultipartUpload",
            only_new=preset.heeds_on_complete,
            match=preset.heeds_on_complete,
        )
        self.deletes = Conditions(name, "DeleteObject", only_new=False, match=preset.heeds_on_delete)
        self._asking = threading.local()
        self._boto = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            region_name=settings.region,
            config=Config(
                signature_version="s3v4",
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Trailers and their framing confuse many other stores.
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                s3={"addressing_style": "path"},
            ),
        )
        self._boto.meta.events.register("before-sign.s3", self._name_host)
        self._boto.meta.events.register("before-send.s3", self._send)

    @property
    def limit(self) -> int | None:
        """How many requests are sent at once at most now, because the target was busy; None: no limit."""
        return self._pace.limit

    @property
    def store(self) -> Store:
        """For requests that no copy needs; they are paced like all others."""
        return self._store

    def expect(self, findings: Findings) -> None:
        """Takes what was found out before."""
        self.wants_digests |= findings.wants_digests
        for conditions in self._conditions:
            for name in (IF_NEW, IF_MATCH):
                if (heeds := findings.conditions.get(f"{conditions.operation} {name}")) is not None:
                    conditions.expect(name, heeds=heeds)

    def learned(self) -> Findings:
        """What this process has seen of it."""
        heeds = {
            f"{conditions.operation} {name}": heeds
            for conditions in self._conditions
            for name, heeds in conditions.learned.copy().items()
        }
        return Findings(conditions=heeds, wants_digests=self.wants_digests)

    @property
    def _conditions(self) -> tuple[Conditions, ...]:
        return self.puts, self.completions, self.deletes

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._store.close()
        self._boto.close()

    def place(self, operation: str, bucket: str, key: str) -> Place:
        """For errors."""
        return self._store.place(operation, bucket, key)

    def head(self, bucket: str, key: str, *, permit: Right | None = None) -> ObjectInfo | None:
        """The object's headers, or None where there is none. Raises: StoreError."""
        try:
            return self._store.info(bucket, key, permit=permit)
        except NoSuchKey:
            return None

    def open(self, bucket: str, key: str) -> Reading:
        """Starts reading the whole object. Raises: NoSuchKey, StoreError."""
        return self._store.open("GetObject", "GET", bucket, key)

    def tags(self, bucket: str, key: str, *, permit: Right | None = None) -> dict[str, str]:
        """The object's tags; none where there is no object or no tagging. Raises: StoreError."""
        if not self.takes_tags:
            return {}
        try:
            return self._store.tags(bucket, key, permit=permit)
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
        permit: Right,
        replaces: str | None = None,
    ) -> tuple[Written, tuple[str, ...]]:
        """Writes a whole object; gives what the target says of it, and what it could not hold.

        `md5` is the body's digest, which the store checks too. `replaces`: the ETag of what is to be
        replaced, "": nothing, None: whatever there is. Safe to repeat. Raises: TargetChanged, StoreError.
        """

        def send(headers: Mapping[str, str]) -> Written:
            return self.puts.send(replaces, lambda condition: send_if({**headers, **condition}))

        def send_if(headers: Mapping[str, str]) -> Written:
            return self._write("PutObject", bucket, key, body, md5, headers=headers, permit=permit)

        return self._with_attributes(attributes, send)

    def try_only_new(
        self, bucket: str, key: str, body: memoryview, attributes: Attributes, *, permit: Right
    ) -> None:
        """Finds out whether a PUT that is to replace nothing heeds that, once, by writing again what was just
        written. Raises: LeaseLost.
        """

        def send_again() -> None:
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            self.put(bucket, key, body, md5, attributes, permit=permit, replaces="")

        try:
            self.puts.try_only_new(send_again)
        except StoreUnavailable:
            pass  # another object will tell
        except StoreError:
            self.puts.learn(IF_NEW, heeds=False)

    def create_upload(
        self, bucket: str, key: str, attributes: Attributes, *, permit: Right
    ) -> tuple[str, tuple[str, ...]]:
        """Begins an upload in parts; gives its id, and what the target could not hold. Raises: StoreError."""
        operation = "CreateMultipartUpload"

        def send(headers: Mapping[str, str]) -> str:
            query = [("uploads", "")]
            answer = self._store.ask(
                operation, "POST", bucket, key, query=query, headers=headers, permit=permit
            )
            place = self._store.place(operation, bucket, key)
            upload_id = answer.xml(place).findtext("{*}UploadId")
            if not upload_id:
                raise not_s3(place)
            return upload_id

        return self._with_attributes(attributes, send)

    def put_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        body: memoryview,
        md5: bytes | None,
        *,
        permit: Right,
    ) -> Written:
        """Writes one part; the store checks `md5` where it is given. Safe to repeat. Raises: StoreError."""
        query = [("partNumber", str(number)), ("uploadId", upload_id)]
        return self._write("UploadPart", bucket, key, body, md5, query=query, permit=permit)

    def uploaded_parts(
        self, bucket: str, key: str, upload_id: str, *, permit: Right | None = None
    ) -> dict[int, UploadedPart] | None:
        """The parts an unfinished upload has, by number; None where there is no such upload any more.

        Raises: StoreError.
        """
        found: dict[int, UploadedPart] = {}
        after = 0
        try:
            while True:
                page = self._ask(
                    "ListParts", bucket, key, permit=permit, UploadId=upload_id, PartNumberMarker=after
                )
                known = len(found)
                for part in page.get("Parts", []):
                    after = part["PartNumber"]
                    found[after] = UploadedPart(size=part["Size"], etag=part["ETag"].strip('"'))
                if not page.get("IsTruncated") or not page.get("Parts"):
                    return found
                leads_back = len(found) == known
                if leads_back or len(found) > PARTS_MAX:
                    raise not_s3(self.place("ListParts", bucket, key))
        except StoreError as error:
            if error.store_code == "NoSuchUpload" or isinstance(error, NoSuchKey):
                return None
            raise

    def uploads(self, bucket: str, prefix: str) -> Iterator[Unfinished]:
        """The unfinished uploads of keys with this prefix, page by page. Raises: StoreError."""
        marks: dict[str, Any] = {}
        while True:
            # no encoding-type: not all stores that confirm it encode keys
            page = self._ask("ListMultipartUploads", bucket, "", Prefix=prefix, **marks)
            for each in page.get("Uploads", []):
                begun_at = each["Initiated"].timestamp()
                yield Unfinished(key=each["Key"], id=each["UploadId"], begun_at=begun_at)
            last = {f"{name}Marker": page.get(f"Next{name}Marker") or "" for name in ("Key", "UploadId")}
            if not page.get("IsTruncated") or last == marks:
                return
            marks = last

    def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        etags: Sequence[str],
        *,
        permit: Right,
        replaces: str | None = None,
    ) -> Written:
        """Makes the object of its parts, whose ETags are given in order; `replaces` as in `put`.

        Raises: TargetChanged, StoreError.
        """

        def send(condition: Mapping[str, str]) -> dict[str, Any]:
            more = {_BOTO_NAMES[name]: value for name, value in condition.items()}
            return self._ask(operation, bucket, key, wanted="ETag", permit=permit, **given, **more)

        operation = "CompleteMultipartUpload"
        listed = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)]
        given: dict[str, Any] = {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}}
        done = self.completions.send(replaces, send)
        return _written({**done["ResponseMetadata"]["HTTPHeaders"], "etag": done["ETag"]})

    def abort_upload(self, bucket: str, key: str, upload_id: str, *, permit: Right | None = None) -> None:
        """Discards an unfinished upload; one that is gone already is fine. Raises: StoreError."""
        try:
            self._ask("AbortMultipartUpload", bucket, key, permit=permit, UploadId=upload_id)
        except StoreError as error:
            if error.store_code != "NoSuchUpload" and error.status != 404:
                raise

    def delete(self, bucket: str, key: str, *, permit: Right, etag: str = "") -> None:
        """Deletes the object, of stores that are known to heed it only the one of this ETag; one that is gone
        already is fine. Raises: TargetChanged, StoreError.
        """

        def send(condition: Mapping[str, str]) -> None:
            with contextlib.suppress(NoSuchKey):
                self._store.ask("DeleteObject", "DELETE", bucket, key, headers=condition, permit=permit)

        self.deletes.send(etag or None if self.deletes.match else None, send)

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
        permit: Right,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Written:
        given = dict(headers or {})
        if md5:
            given["content-md5"] = base64.b64encode(md5).decode()
        answer = self._store.ask(
            operation, "PUT", bucket, key, query=query, headers=given, body=body, permit=permit
        )
        if body and not answer.headers.get("etag"):  # MinIO's gateways give folder markers none
            raise not_s3(self._store.place(operation, bucket, key))
        return _written(answer.headers)

    def _ask(
        self,
        operation: str,
        bucket: str,
        key: str,
        *,
        wanted: str = "",
        permit: Right | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """One request that boto3 makes, asking `permit` right before it is sent. `wanted`: what an answer of
        S3 to it always has.
        """
        place = self.place(operation, bucket, key)
        parameters |= {"Bucket": bucket, **({"Key": key} if key else {})}
        self._asking.place, self._asking.check = place, permit.check if permit else None
        with self._pace.request(place, permit), boto_errors(place):
            answer: dict[str, Any] = getattr(self._boto, xform_name(operation))(**parameters)
        if wanted and wanted not in answer:
            raise not_s3(place)
        return answer

    def _name_host(self, request: AWSRequest, **_: object) -> None:
        request.headers["Host"] = self._store.host  # boto3 would sign it as it spells it

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Sends what this thread asks by our own connections, which read no more of an answer than S3 sends,
        wherever it comes from.
        """
        place: Place = self._asking.place
        url = urlsplit(request.url)
        headers = {name: value for name, value in request.headers.items() if name != "Content-Length"}
        body = None if request.body is None else memoryview(request.body)
        target = f"{url.path}?{url.query}" if url.query else url.path
        sent = Request(request.method, target, headers, body, self._asking.check)
        with self._store.carry(sent, place) as reading:
            text = reading.text(PAGE_MAX_BYTES)
        if text and read_xml(text) is None:
            raise not_s3(place)
        return AWSResponse(request.url, HTTPStatus.OK, reading.headers, _Read(text))

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


@dataclass(frozen=True)
class _Read:
    """A body as botocore reads it."""

    text: bytes

    def stream(self) -> Iterator[bytes]:
        """All of it."""
        yield self.text


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
        return format_datetime(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC), usegmt=True)
    except (ValueError, OverflowError):
        return ""


def _written(headers: Mapping[str, str]) -> Written:
    return Written(
        etag=headers.get("etag", "").strip('"'),
        is_opaque=is_opaque(headers),
        cid=headers.get("x-amz-meta-cid", ""),
    )
