"""Large objects, part by part: ranges of the source, pinned to one version, become parts at the target.

The parts repeat the source's wherever their size can be told, because then both ETags come out equal,
which proves the content and lets a listing alone compare the two sides ever after.

Format of the ETag of an object in parts: MD5 over the parts' binary MD5s, "-", the number of parts, as
Amazon S3 computes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from webhook.errors import IntegrityError, Place, StoreError, StoreRefused
from webhook.layout import OWN_PART_BYTES, PART_MIN_BYTES, Part, likely_part_sizes, own_part_size, parts
from webhook.memory import MemoryBudget
from webhook.objects import ObjectInfo
from webhook.rules import Rule
from webhook.settings import CopySettings
from webhook.stores import Attributes, Source, Target, Written

PART_THREADS_MAX = 32


class Permit(Protocol):
    """The caller's right to write, which may end while the copy runs."""

    def check(self) -> None:
        """Raises LeaseLost unless the copy may still write."""

    def note_upload(self, note: str | None) -> None:
        """Keeps a note of the upload under way, for whoever comes after a crash; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One copy under way."""

    rule: Rule
    key: str
    permit: Permit


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How to cut an object, and what its ETag must come out as (None: not known before)."""

    part_size: int
    expected_etag: str | None
    attributes: Attributes


class Multipart:
    """Thread-safe. Takes its memory from the process's budget."""

    def __init__(self, source: Source, target: Target, settings: CopySettings, budget: MemoryBudget) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._budget = budget
        threads = min(PART_THREADS_MAX, settings.memory_budget_bytes // OWN_PART_BYTES + 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="part")

    def close(self) -> None:
        """Ends the threads that copy parts."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def copy(self, job: Job, info: ObjectInfo, attributes: Attributes) -> tuple[Written, tuple[str, ...]]:
        """Copies and verifies; gives what the target says of it, and what it could not hold.

        Raises: SourceChanged where the object was replaced meanwhile, StoreError, IntegrityError, LeaseLost.
        """
        own = self._own_part_size(job, info)
        if not info.parts_count:
            # One piece at the source: no parts can give its ETag, so the object says what it is a copy of.
            stamped = replace(attributes, stamp=info.etag)
            return self._upload(job, info, _Plan(part_size=own, expected_etag=None, attributes=stamped))
        guesses = self._guess(job, info)
        if guesses:
            plan = _Plan(part_size=guesses[0], expected_etag=info.etag, attributes=attributes)
            try:
                return self._upload(job, info, plan)
            except _OtherEtag:
                pass  # cut at other places, or damaged on the way: reading it once more tells which
        return self._upload(job, info, self._plan_by_reading(job, info, attributes, [*guesses, own]))

    def discard(self, job: Job, note: str) -> None:
        """Aborts the upload that an attempt which died has noted; its parts take up room."""
        with contextlib.suppress(StoreError, ValueError, KeyError, TypeError):
            self._target.abort_upload(job.rule.target_bucket, job.key, json.loads(note)["id"])

    # ── where to cut ─────────────────────────────────────────────────────────────────────────────────

    def _guess(self, job: Job, info: ObjectInfo) -> list[int]:
        """Part sizes the source may have, the likeliest first; what the source says is tried alone."""
        told = self._source.part_size(job.rule.source_bucket, job.key, info)
        likely = [told] if told else likely_part_sizes(info.size, info.parts_count)
        largest = self._settings.memory_budget_bytes // 2
        smallest = PART_MIN_BYTES if info.parts_count > 1 else 1
        return [size for size in likely if smallest <= size <= largest]

    def _plan_by_reading(
        self, job: Job, info: ObjectInfo, attributes: Attributes, sizes: Iterable[int]
    ) -> _Plan:
        """Reads the object once, for nothing but the ETags that each part size would give."""
        etags = self._etags(job, info, sizes)
        first, own = next(iter(etags)), list(etags)[-1]
        fitting = [size for size, etag in etags.items() if etag == info.etag]
        if not fitting:
            stamped = replace(attributes, stamp=info.etag)
            return _Plan(part_size=own, expected_etag=etags[own], attributes=stamped)
        if fitting[0] == first:
            raise IntegrityError(
                f"source {job.rule.source_bucket}/{job.key!r}: two reads of the same version differ",
                hint="It is read again. If this stays, something on the way changes the data.",
            )
        return _Plan(part_size=fitting[0], expected_etag=info.etag, attributes=attributes)

    def _etags(self, job: Job, info: ObjectInfo, sizes: Iterable[int]) -> dict[int, str]:
        digests = {size: _PartsDigest(size) for size in sizes}
        step = min(OWN_PART_BYTES, self._settings.memory_budget_bytes // 2) - 1  # no cut where parts end
        for part in parts(info.size, step):
            job.permit.check()
            with self._budget.taken(part.size):
                body = self._source.read_part(job.rule.source_bucket, job.key, part, etag=info.etag)
                for digest in digests.values():
                    digest.add(body)
        return {size: digest.etag() for size, digest in digests.items()}

    def _own_part_size(self, job: Job, info: ObjectInfo) -> int:
        place = Place(
            side="target", operation="CreateMultipartUpload", bucket=job.rule.target_bucket, key=job.key
        )
        memory = self._settings.memory_budget_bytes
        try:
            size = own_part_size(info.size, memory_bytes=memory // 2)
        except ValueError as error:
            raise StoreRefused(str(error), place, hint="S3 has no place for it.") from None
        if size > memory:
            message = f"an object of {info.size} bytes needs parts of {size} bytes"
            raise StoreRefused(message, place, hint="Raise MEMORY_BUDGET_MIB above that.")
        return size

    # ── one upload ───────────────────────────────────────────────────────────────────────────────────

    def _upload(self, job: Job, info: ObjectInfo, plan: _Plan) -> tuple[Written, tuple[str, ...]]:
        bucket, key = job.rule.target_bucket, job.key
        job.permit.check()
        upload_id, lost = self._target.create_upload(bucket, key, plan.attributes)
        try:
            job.permit.note_upload(
                json.dumps({"id": upload_id, "etag": info.etag, "part_size": plan.part_size})
            )
            digests = self._send_parts(job, info, plan.part_size, upload_id)
            etag = parts_etag(digests)
            _verify_parts(job, etag, plan.expected_etag)
            job.permit.check()
            written = self._target.complete_upload(bucket, key, upload_id, [each.hex() for each in digests])
        except BaseException:
            with contextlib.suppress(StoreError):
                self._target.abort_upload(bucket, key, upload_id)
            raise
        if written.etag != etag:  # the parts were verified one by one; not every store computes this one
            verify_size(self._target, job, size=info.size)
        return written, lost

    def _send_parts(self, job: Job, info: ObjectInfo, part_size: int, upload_id: str) -> list[bytes]:
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
            verify_read(job, info, whole.hexdigest())
        return digests

    def _start_part(
        self, job: Job, info: ObjectInfo, part: Part, upload_id: str, whole: _WholeDigest | None
    ) -> Future[bytes]:
        self._budget.take(part.size)
        try:
            future = self._threads.submit(self._send_part, job, info, part, upload_id, whole)
        except BaseException:
            self._budget.give_back(part.size)
            raise
        future.add_done_callback(lambda _: self._budget.give_back(part.size))
        return future

    def _send_part(
        self, job: Job, info: ObjectInfo, part: Part, upload_id: str, whole: _WholeDigest | None
    ) -> bytes:
        job.permit.check()
        body = self._source.read_part(job.rule.source_bucket, job.key, part, etag=info.etag)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        if whole:
            whole.add(part.number, body)
        job.permit.check()
        written = self._target.put_part(job.rule.target_bucket, job.key, upload_id, part.number, body, md5)
        if not written.is_opaque and written.etag != md5.hex():
            raise corrupted(job, "part", expected=md5.hex(), found=written.etag)
        return md5


class _OtherEtag(IntegrityError):
    """The parts do not make the ETag that was expected."""


def _verify_parts(job: Job, etag: str, expected: str | None) -> None:
    if expected not in (None, etag):
        raise _OtherEtag(
            f"source {job.rule.source_bucket}/{job.key!r}: the bytes received make {etag}, "
            f"{expected} was expected",
            hint="It is read again. If this stays, something on the way changes the data.",
        )


def parts_etag(digests: list[bytes]) -> str:
    """The ETag of an object whose parts have these MD5 digests."""
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


class _PartsDigest:
    """The ETag that an object would have in parts of one size, from its bytes in order."""

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._digests: list[bytes] = []
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._filled = 0

    def add(self, body: bytearray) -> None:
        """Adds the next bytes."""
        rest = memoryview(body)
        while rest:
            piece = rest[: self._part_size - self._filled]
            self._md5.update(piece)
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == self._part_size:
                self._end_part()

    def etag(self) -> str:
        """The ETag, once all bytes are in."""
        if self._filled or not self._digests:
            self._end_part()
        return parts_etag(self._digests)

    def _end_part(self) -> None:
        self._digests.append(self._md5.digest())
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._filled = 0


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


# ── was it read and written as it is? ────────────────────────────────────────────────────────────────


def verify_read(job: Job, info: ObjectInfo, md5: str) -> None:
    """Raises IntegrityError where the source's ETag is an MD5, and not this one."""
    if info.has_md5_etag and md5 != info.etag:
        raise IntegrityError(
            f"source {job.rule.source_bucket}/{job.key!r}: the bytes received have MD5 {md5}, "
            f"its ETag says {info.etag}",
            hint="It is read again. If this stays, the object is damaged at the source, or something on "
            "the way changes it.",
        )


def verify_size(target: Target, job: Job, *, size: int) -> None:
    """Raises IntegrityError unless the target's object has this size."""
    found = target.head(job.rule.target_bucket, job.key)
    if found is None or found.size != size:
        has = f"{found.size} bytes" if found else "nothing"
        raise corrupted(job, "object", expected=f"{size} bytes", found=has)


def corrupted(job: Job, what: str, *, expected: str, found: str) -> IntegrityError:
    """The error for a target that has something else than was sent."""
    return IntegrityError(
        f"target {job.rule.target_bucket}/{job.key!r}: {what} sent was {expected}, the store has {found}",
        hint="It is written again. If this stays, something on the way to the target changes the data.",
    )
