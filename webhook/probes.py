"""Objects of our own in somebody's bucket, written to see what the store does, and removed again.

All keys are below one prefix that nobody else has. What is written is noted before it is sent, so that
`clean_up` finds it also where a request was broken off.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

from webhook.errors import NoSuchKey, StoreError, StoreRefused, StoreUnavailable, TargetChanged
from webhook.pace import Right
from webhook.store import Answer, Store

FOLDER = ".minio-replicator-doctor/"
"""Every key has this in it."""
COMPLETE, DELETE, PUT = "CompleteMultipartUpload", "DeleteObject", "PutObject"


@dataclass
class Probes:
    """One bucket of a store, and what was written there. Used by one thread at a time."""

    store: Store
    bucket: str
    prefix: str
    """Of all keys; ends with a slash."""
    permit: Right
    """Asked right before each request that writes."""
    wants_digests: bool = False
    """True once a part was refused without Content-MD5 and taken with it."""
    _written: dict[tuple[str, str], None] = field(default_factory=dict)
    """(key, version) of what may be there; the version is "" where the store keeps none."""
    _uploads: dict[str, str] = field(default_factory=dict)
    """Upload id → key."""

    def key(self, name: str) -> str:
        """A key of our own."""
        return self.prefix + name

    # ── whole objects ────────────────────────────────────────────────────────────────────────────────

    def put(self, key: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Writes an object, to be removed later. Raises: StoreError, and what the permit does."""
        is_new = (key, "") not in self._written
        self._written[(key, "")] = None
        try:
            answer = self._ask(PUT, "PUT", key, headers=dict(headers or {}), body=body)
        except StoreRefused:
            if is_new:
                self._written.pop((key, ""))
            raise
        self._note_version(key, answer)
        return answer

    def read(self, key: str) -> bytes:
        """The object's bytes, or the first 64 KiB of them. Raises: StoreError."""
        return self.store.ask("GetObject", "GET", self.bucket, key).text

    def is_there(self, key: str) -> bool:
        """Whether the store shows the object. Raises: StoreError."""
        try:
            self.store.head(self.bucket, key)
        except NoSuchKey:
            return False
        return True

    def delete(self, key: str, headers: Mapping[str, str] | None = None) -> None:
        """Deletes an object. Raises as `put` does."""
        answer = self._ask(DELETE, "DELETE", key, headers=dict(headers or {}))
        self._written.pop((key, ""), None)
        self._note_version(key, answer)

    def listed(self, prefix: str) -> list[str]:
        """The first page of the keys with a prefix. Raises: StoreError."""
        return [each.key for each in self.store.page(self.bucket, prefix).objects]

    # ── uploads in parts ─────────────────────────────────────────────────────────────────────────────

    def upload(self, key: str, bodies: Sequence[bytes], headers: Mapping[str, str] | None = None) -> str:
        """Writes an object in parts; gives its ETag. Raises as `put` does."""
        begun = self._post("CreateMultipartUpload", key, [("uploads", "")])
        upload_id = begun.findtext("{*}UploadId") or ""
        self._uploads[upload_id] = key
        etags = [self._put_part(key, upload_id, number, body) for number, body in enumerate(bodies, start=1)]
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        self._written[(key, "")] = None
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        done = self._post(COMPLETE, key, [("uploadId", upload_id)], body, headers)
        self._uploads.pop(upload_id)
        return (done.findtext("{*}ETag") or "").strip('"')

    def _put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        try:
            return self._send_part(key, upload_id, number, body, {})
        except StoreUnavailable:
            raise
        except StoreError:
            digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            etag = self._send_part(key, upload_id, number, body, {"content-md5": digest})
        self.wants_digests = True
        return etag

    def _send_part(
        self, key: str, upload_id: str, number: int, body: bytes, headers: Mapping[str, str]
    ) -> str:
        query = [("partNumber", str(number)), ("uploadId", upload_id)]
        answer = self._ask("UploadPart", "PUT", key, query=query, headers=headers, body=body)
        return answer.headers.get("etag", "")

    def _post(
        self,
        operation: str,
        key: str,
        query: Sequence[tuple[str, str]],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Element:
        """An error may also be told in an answer that says 200 (Amazon S3 API Reference,
        CompleteMultipartUpload).
        """
        answer = self._ask(operation, "POST", key, query=query, headers=dict(headers or {}), body=body)
        self._note_version(key, answer)
        place = self.store.place(operation, self.bucket, key)
        root = answer.xml(place)
        if root.tag.endswith("Error"):
            code = root.findtext("{*}Code") or ""
            kind = TargetChanged if code == "PreconditionFailed" else StoreError
            raise kind(f"answered {code}", place, store_code=code, status=200)
        return root

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────

    def remove(self, key: str) -> None:
        """Deletes what is there; where nothing is, no delete leaves a mark. Raises as `put` does."""
        if self.is_there(key):
            self.delete(key)
        self._written.pop((key, ""), None)

    def clean_up(self, permit: Right) -> list[str]:
        """Removes all that was written; gives the keys of what could not be removed. Safe to repeat.

        Raises what the permit does.
        """
        self.permit = permit
        with contextlib.suppress(StoreUnavailable):
            for upload_id, key in {**self._uploads, **self._unknown_uploads()}.items():
                _done(partial(self._abort, upload_id, key))
            for key, version in sorted(self._written, key=lambda each: not each[1]):  # versions first
                _done(partial(self._remove_version, key, version))
            for key in self.listed(self.prefix):  # under whatever name the store keeps it
                _done(partial(self.delete, key))
        return sorted({*self._uploads.values(), *(key for key, _ in self._written)})

    def _unknown_uploads(self) -> dict[str, str]:
        """Those whose id never arrived, too."""
        query = [("max-uploads", "1000"), ("prefix", self.prefix), ("uploads", "")]
        place = self.store.place("ListMultipartUploads", self.bucket, "")
        answers: list[Answer] = []
        _done(lambda: answers.append(self.store.ask(place.operation, "GET", self.bucket, query=query)))
        found = {
            each.findtext("{*}UploadId", ""): each.findtext("{*}Key", "")
            for answer in answers
            for each in answer.xml(place).iterfind("{*}Upload")
        }
        return {upload_id: key for upload_id, key in found.items() if key.startswith(self.prefix)}

    def _abort(self, upload_id: str, key: str) -> None:
        try:
            self._ask("AbortMultipartUpload", "DELETE", key, query=[("uploadId", upload_id)])
        except StoreError as error:
            if error.status != 404:
                raise
        self._uploads.pop(upload_id, None)

    def _remove_version(self, key: str, version: str) -> None:
        if not version:
            self.remove(key)
            return
        self._ask(DELETE, "DELETE", key, query=[("versionId", version)])
        self._written.pop((key, version), None)

    def _note_version(self, key: str, answer: Answer) -> None:
        """Versions, those that deletes leave too, are removed one by one."""
        if (version := answer.headers.get("x-amz-version-id", "null")) != "null":
            self._written[(key, version)] = None

    def _ask(
        self,
        operation: str,
        method: str,
        key: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        return self.store.ask(
            operation,
            method,
            self.bucket,
            key,
            query=query,
            headers=headers,
            body=memoryview(body),
            permit=self.permit,
        )


def _done(action: Callable[[], object]) -> None:
    """What a store refuses is left; one that is away is not asked again. Raises: StoreUnavailable."""
    try:
        action()
    except StoreUnavailable:
        raise
    except StoreError:
        pass
