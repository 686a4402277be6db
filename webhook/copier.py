"""The shared streaming copy: the only way to the target.

check → copy → verify. The webhook's workers, the manual endpoint and every later way in call
`Copier.copy_object`, which makes the target hold what the source holds at this moment.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from webhook.errors import IntegrityError, NoSuchKey, Place, StoreError, StoreRefused
from webhook.holdings import Holdings
from webhook.layout import OWN_PART_BYTES, Part, part_size_for, parts
from webhook.memory import MemoryBudget
from webhook.objects import ObjectInfo, Properties, same_content
from webhook.rules import Rule
from webhook.settings import CopySettings
from webhook.stores import Attributes, Reading, Source, Target, Written

PART_THREADS_MAX = 32


class OutcomeKind(enum.StrEnum):
    """How a copy ended."""

    REPLICATED = "replicated"
    UNCHANGED = "unchanged"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the target holds now, and how it came to. ETags are without quotes."""

    kind: OutcomeKind
    size: int = 0
    bytes_copied: int = 0
    source_etag: str = ""
    source_version: str = ""
    target_etag: str = ""
    cid: str = ""
    lost: tuple[str, ...] = ()
    """What the target could not hold, by name."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the last copy of this key left on record."""

    source_etag: str = ""
    target_etag: str = ""
    lost: frozenset[str] = frozenset()
    """What the target could not hold."""
    upload: str = ""
    """The note of an upload that was not finished."""


class Permit(Protocol):
    """The caller's right to write, which may end while the copy runs."""

    def check(self) -> None:
        """Raises LeaseLost unless the copy may still write."""

    def note_upload(self, note: str | None) -> None:
        """Keeps a note of the upload under way, for whoever comes after a crash; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One copy under way."""

    rule: Rule
    key: str
    permit: Permit


class Copier:
    """Thread-safe. One for each process: it owns the process's memory for object data."""

    def __init__(self, source: Source, target: Target, settings: CopySettings) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._holdings = Holdings()
        self._budget = MemoryBudget(settings.memory_budget_bytes)
        threads = min(PART_THREADS_MAX, settings.memory_budget_bytes // OWN_PART_BYTES + 1)
        self._part_threads = ThreadPoolExecutor(threads, thread_name_prefix="part")

    def close(self) -> None:
        """Ends the threads that copy parts."""
        self._part_threads.shutdown(wait=False, cancel_futures=True)

    def copy_object(self, rule: Rule, key: str, *, permit: Permit, known: Known | None = None) -> Outcome:
        """Makes the target's object equal to the source's, as that is now, and verifies it.

        Safe to repeat: what is equal already is left alone. Requests for a new object: HEAD and PUT at
        the target, GET at the source. Raises: StoreError, IntegrityError, LeaseLost.
        """
        job, known = _Job(rule=rule, key=key, permit=permit), known or Known()
        self._discard_left_over(job, known)
        present = self._target.head(rule.target_bucket, key)
        if present and self._settings.overwrite == "never":
            return _unchanged(present, lost=("content: OVERWRITE=never",))
        try:
            if present:
                wanted = self._source.head(rule.source_bucket, key)
                if self._is_equal(job, wanted, present, known):
                    return _unchanged(present, source=wanted)
            with self._source.open(rule.source_bucket, key) as reading:
                return self._copy(job, reading)
        except NoSuchKey:
            return self._confirm_gone(job)

    def _confirm_gone(self, job: _Job) -> Outcome:
        """HEAD cannot tell a missing key from a missing bucket; only the first is an outcome."""
        self._source.check(job.rule.source_bucket)
        return Outcome(kind=OutcomeKind.GONE)

    def _copy(self, job: _Job, reading: Reading) -> Outcome:
        info = reading.info
        tags = self._source.tags(job.rule.source_bucket, job.key) if info.tag_count else {}
        attributes = Attributes(properties=info.properties, tags=tags)
        if info.parts_count == 0 and info.size <= self._settings.whole_max_bytes:
            written, lost = self._copy_whole(job, reading, attributes)
        else:
            reading.close()
            written, lost = self._copy_parts(job, info, attributes)
        lost += self._find_lost(job, info.properties, written)
        return Outcome(
            kind=OutcomeKind.REPLICATED,
            size=info.size,
            bytes_copied=info.size,
            source_etag=info.etag,
            source_version=info.version_id,
            target_etag=written.etag,
            cid=written.cid,
            lost=lost,
        )

    def _find_lost(self, job: _Job, sent: Properties, written: Written) -> tuple[str, ...]:
        """Looks what the target made of properties it was not sent before, and remembers."""
        if not self._holdings.knows(sent):
            found = self._target.head(job.rule.target_bucket, job.key)
            if found and found.etag == written.etag:
                self._holdings.learn(sent, found)
        return self._holdings.lost(sent)

    # ── is there anything to do? ─────────────────────────────────────────────────────────────────────

    def _is_equal(self, job: _Job, wanted: ObjectInfo, present: ObjectInfo, known: Known) -> bool:
        """Content by ETag, or by what the last copy left on record; then headers, metadata and tags."""
        on_record = (wanted.etag, present.etag) == (known.source_etag, known.target_etag)
        content = same_content(wanted, present) or (
            on_record and wanted.etag != "" and wanted.size == present.size
        )
        shown = self._holdings.same(wanted.properties, present.properties, lost_before=known.lost)
        if not content or not shown:
            return False
        if "tags" in known.lost:
            return True
        if not wanted.tag_count and not present.tag_count:
            return True
        return self._source.tags(job.rule.source_bucket, job.key) == self._target.tags(
            job.rule.target_bucket, job.key
        )

    # ── one request ──────────────────────────────────────────────────────────────────────────────────

    def _copy_whole(
        self, job: _Job, reading: Reading, attributes: Attributes
    ) -> tuple[Written, tuple[str, ...]]:
        info = reading.info
        with self._budget.taken(info.size):
            body = reading.read(info.size)
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            _verify_read(job, info, md5.hex())
            job.permit.check()
            written, lost = self._target.put(job.rule.target_bucket, job.key, body, md5, attributes)
        self._verify_written(job, written, expected=md5.hex(), size=info.size)
        return written, lost

    # ── in parts ─────────────────────────────────────────────────────────────────────────────────────

    def _copy_parts(
        self, job: _Job, info: ObjectInfo, attributes: Attributes
    ) -> tuple[Written, tuple[str, ...]]:
        part_size = self._part_size(job, info)
        if info.parts_count != -(-info.size // part_size):
            # The target's ETag cannot come out equal: say in the object which one it was copied from.
            attributes = Attributes(properties=attributes.properties, tags=attributes.tags, stamp=info.etag)
        job.permit.check()
        upload_id, lost = self._target.create_upload(job.rule.target_bucket, job.key, attributes)
        try:
            job.permit.note_upload(json.dumps({"id": upload_id, "etag": info.etag, "part_size": part_size}))
            digests = self._send_parts(job, info, part_size, upload_id)
            job.permit.check()
            written = self._target.complete_upload(
                job.rule.target_bucket, job.key, upload_id, [digest.hex() for digest in digests]
            )
        except BaseException:
            with contextlib.suppress(StoreError):
                self._target.abort_upload(job.rule.target_bucket, job.key, upload_id)
            raise
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        self._verify_size(job, written, expected=f"{whole}-{len(digests)}", size=info.size)
        return written, lost

    def _part_size(self, job: _Job, info: ObjectInfo) -> int:
        memory = self._settings.memory_budget_bytes
        try:
            size = part_size_for(info.size, parts_count=info.parts_count, memory_bytes=memory // 2)
        except ValueError as error:
            raise self._refused(job, str(error), hint="S3 has no place for it.") from None
        if size > memory:
            raise self._refused(
                job,
                f"an object of {info.size} bytes needs parts of {size} bytes",
                hint="Raise MEMORY_BUDGET_MIB above that.",
            )
        return size

    def _refused(self, job: _Job, message: str, *, hint: str) -> StoreRefused:
        place = Place(
            side="target",
            operation="CreateMultipartUpload",
            bucket=job.rule.target_bucket,
            key=job.key,
        )
        return StoreRefused(message, place, hint=hint)

    def _send_parts(self, job: _Job, info: ObjectInfo, part_size: int, upload_id: str) -> list[bytes]:
        """Copies all parts, several at a time; gives their MD5 digests in order."""
        whole = _WholeDigest() if info.has_md5_etag else None
        under_way: deque[Future[bytes]] = deque()
        digests: list[bytes] = []
        try:
            for part in parts(info.size, part_size):
                if len(under_way) == self._settings.parts_in_flight:
                    digests.append(under_way.popleft().result())
                under_way.append(self._start_part(job, info, part, upload_id, whole))
            digests.extend(future.result() for future in under_way)
        finally:
            # No part may outlive the copy: it would write under a claim that somebody else has by then.
            if whole:
                whole.give_up()
            for future in under_way:
                future.cancel()
            for future in under_way:
                if not future.cancelled():
                    future.exception()
        if whole:
            _verify_read(job, info, whole.hexdigest())
        return digests

    def _start_part(
        self, job: _Job, info: ObjectInfo, part: Part, upload_id: str, whole: _WholeDigest | None
    ) -> Future[bytes]:
        self._budget.take(part.size)
        try:
            future = self._part_threads.submit(self._send_part, job, info, part, upload_id, whole)
        except BaseException:
            self._budget.give_back(part.size)
            raise
        future.add_done_callback(lambda _: self._budget.give_back(part.size))
        return future

    def _send_part(
        self, job: _Job, info: ObjectInfo, part: Part, upload_id: str, whole: _WholeDigest | None
    ) -> bytes:
        job.permit.check()
        body = self._source.read_part(job.rule.source_bucket, job.key, part, etag=info.etag)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        if whole:
            whole.add(part.number, body)
        job.permit.check()
        written = self._target.put_part(job.rule.target_bucket, job.key, upload_id, part.number, body, md5)
        if not written.is_opaque and written.etag != md5.hex():
            raise _corrupted(job, "part", expected=md5.hex(), found=written.etag)
        return md5

    def _discard_left_over(self, job: _Job, known: Known) -> None:
        """An attempt that died left an upload behind, whose parts take up room."""
        if known.upload:
            upload_id = json.loads(known.upload)["id"]
            with contextlib.suppress(StoreError):
                self._target.abort_upload(job.rule.target_bucket, job.key, upload_id)

    # ── was it written as it was read? ───────────────────────────────────────────────────────────────

    def _verify_written(self, job: _Job, written: Written, *, expected: str, size: int) -> None:
        if written.etag == expected:
            return
        if not written.is_opaque:
            raise _corrupted(job, "object", expected=expected, found=written.etag)
        self._verify_size(job, written, expected=expected, size=size)

    def _verify_size(self, job: _Job, written: Written, *, expected: str, size: int) -> None:
        """Where the whole's ETag means nothing; its parts, or its Content-MD5, were verified already."""
        if written.etag == expected:
            return
        found = self._target.head(job.rule.target_bucket, job.key)
        if found is None or found.size != size:
            raise _corrupted(
                job, "size", expected=f"{size} bytes", found=f"{found.size} bytes" if found else "nothing"
            )


class _WholeDigest:
    """MD5 over parts that are read side by side: each waits for its turn."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._next = 1
        self._turn = threading.Condition()
        self._is_over = False

    def add(self, number: int, body: bytearray) -> None:
        """Adds part `number` once all before it are in. Parts start in order, so this always ends."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == number or self._is_over)
            if self._next == number:
                self._md5.update(body)
                self._next += 1
            self._turn.notify_all()

    def give_up(self) -> None:
        """Lets all waiting parts go: an earlier one has failed."""
        with self._turn:
            self._is_over = True
            self._turn.notify_all()

    def hexdigest(self) -> str:
        """The MD5 of all parts added."""
        return self._md5.hexdigest()


def _unchanged(
    present: ObjectInfo, *, source: ObjectInfo | None = None, lost: tuple[str, ...] = ()
) -> Outcome:
    return Outcome(
        kind=OutcomeKind.UNCHANGED,
        size=present.size,
        source_etag=source.etag if source else "",
        source_version=source.version_id if source else "",
        target_etag=present.etag,
        cid=present.cid,
        lost=lost,
    )


def _verify_read(job: _Job, info: ObjectInfo, md5: str) -> None:
    if info.has_md5_etag and md5 != info.etag:
        raise IntegrityError(
            f"source {job.rule.source_bucket}/{job.key!r}: the bytes received have MD5 {md5}, "
            f"its ETag says {info.etag}",
            hint="It is read again. If this stays, the object is damaged at the source, or something on "
            "the way changes it.",
        )


def _corrupted(job: _Job, what: str, *, expected: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"target {job.rule.target_bucket}/{job.key!r}: {what} sent was {expected}, the store has {found}",
        hint="It is written again. If this stays, something on the way to the target changes the data.",
    )
