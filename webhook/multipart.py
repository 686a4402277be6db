"""Large objects, part by part: ranges of the source, pinned to one version, become parts at the target.

The parts repeat the source's wherever their size can be told, because then both ETags come out equal,
which proves the content and lets a listing alone compare the two sides ever after.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Protocol, TypeVar

from webhook.digests import PartsDigest, WholeDigest, parts_etag
from webhook.errors import (
    IntegrityError,
    LedgerUnavailable,
    Place,
    SourceChanged,
    StoreError,
    StoreRefused,
    TargetChanged,
)
from webhook.layout import OWN_PART_BYTES, PART_MIN_BYTES, Part, likely_part_sizes, own_part_size, parts
from webhook.memory import MemoryBudget
from webhook.objects import MD5_ETAG, ObjectInfo
from webhook.pace import Right
from webhook.rules import Rule
from webhook.settings import CopySettings
from webhook.source import Source
from webhook.target import Attributes, Target, UploadedPart, Written

PART_THREADS_MAX = 32
CONFLICT = 409
"""AWS: a write came in between, and the upload is not to be gone on with (Amazon S3 API Reference,
CompleteMultipartUpload)."""
T = TypeVar("T")


class Permit(Right, Protocol):
    """The caller's right to write, which may end while the copy runs."""

    def note_upload(self, note: str | None) -> None:
        """Keeps a note of the upload under way, for whoever comes after a crash; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One copy under way."""

    rule: Rule
    key: str
    permit: Permit
    left_over: str = ""
    """The note of an upload that an earlier attempt did not finish."""
    digests_all: bool = False
    """Whether every piece is digested on its way, so that damage is noticed at once and not at the end."""
    replaces: str | None = None
    """The ETag of what the target had when it was looked at; "": nothing; None: not known, or no matter."""

    @property
    def target_key(self) -> str:
        """The key at the target; `key` is the source's."""
        return self.rule.target_key(self.key)


@dataclass(frozen=True, kw_only=True)
class Copied:
    """An object that was written and verified."""

    written: Written
    lost: tuple[str, ...]
    """What the target could not hold."""
    bytes_sent: int
    """Fewer than its size where parts were there from an earlier attempt."""


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """An upload as noted in the ledger: enough to go on with it, or to end it."""

    id: str
    plan: str
    """A digest of all that its parts and its object depend on."""
    lost: tuple[str, ...]

    def note(self) -> str:
        """What the ledger keeps of it, as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, note: str) -> _Upload | None:
        """The upload of a note; None where the note means nothing."""
        try:
            read = json.loads(note)
            return cls(id=str(read["id"]), plan=str(read["plan"]), lost=tuple(read["lost"]))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How to cut an object, and what its ETag must come out as (None: not known before)."""

    part_size: int
    expected_etag: str | None
    attributes: Attributes

    def digest(self, info: ObjectInfo) -> str:
        """Equal for two plans whose uploads could go on with each other's parts."""
        what = (info.etag, info.size, self.part_size, sorted(asdict(self.attributes).items()))
        return hashlib.sha256(repr(what).encode()).hexdigest()


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

    def copy(self, job: Job, info: ObjectInfo, attributes: Attributes) -> Copied:
        """Copies and verifies.

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
        plan = self._plan_by_reading(job, info, attributes, guesses=guesses, own=own)
        return self._upload(replace(job, left_over=""), info, plan)

    def discard_left_over(self, job: Job) -> None:
        """Ends the upload that an earlier attempt left over; its parts take up room. Raises: StoreError."""
        if job.left_over:
            self.discard(job.rule, job.key, job.left_over, permit=job.permit)
            job.permit.note_upload(None)

    def discard(self, rule: Rule, key: str, note: str, *, permit: Right | None = None) -> None:
        """Ends the upload that a note names. Raises: StoreError, LeaseLost."""
        if upload := _Upload.of(note):
            self._target.abort_upload(rule.target_bucket, rule.target_key(key), upload.id, permit=permit)

    # ── where to cut ─────────────────────────────────────────────────────────────────────────────────

    def _guess(self, job: Job, info: ObjectInfo) -> list[int]:
        """Part sizes the source may have, the likeliest first; what the source says is tried alone."""
        told = self._source.part_size(job.rule.source_bucket, job.key, info)
        likely = [told] if told else likely_part_sizes(info.size, info.parts_count)
        largest = self._settings.memory_budget_bytes // 2
        smallest = PART_MIN_BYTES if info.parts_count > 1 else 1
        return [size for size in likely if smallest <= size <= largest]

    def _plan_by_reading(
        self, job: Job, info: ObjectInfo, attributes: Attributes, *, guesses: list[int], own: int
    ) -> _Plan:
        """Reads the object once, for nothing but the ETags that each part size would give."""
        etags = self._etags(job, info, [*guesses, own])
        fitting = [size for size in guesses if etags[size] == info.etag]
        if not fitting:
            stamped = replace(attributes, stamp=info.etag)
            return _Plan(part_size=own, expected_etag=etags[own], attributes=stamped)
        if fitting[0] == guesses[0]:
            raise IntegrityError(
                f"source {job.rule.source_bucket}/{job.key!r}: what arrived at the target is not what "
                "the source has",
                hint="It is copied again. If this stays, something on the way changes the data.",
            )
        return _Plan(part_size=fitting[0], expected_etag=info.etag, attributes=attributes)

    def _etags(self, job: Job, info: ObjectInfo, sizes: Iterable[int]) -> dict[int, str]:
        digests = {size: PartsDigest(size) for size in sizes}
        step = min(OWN_PART_BYTES, self._settings.memory_budget_bytes // 2) - 1  # no cut where parts end
        for part in parts(info.size, step):
            job.permit.check()
            with self._budget.body(part.size) as body:
                self._source.read_part(job.rule.source_bucket, job.key, part, body, etag=info.etag)
                for digest in digests.values():
                    digest.add(body)
        return {size: digest.etag() for size, digest in digests.items()}

    def _own_part_size(self, job: Job, info: ObjectInfo) -> int:
        place = Place(
            side="target",
            operation="CreateMultipartUpload",
            bucket=job.rule.target_bucket,
            key=job.target_key,
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

    def _upload(self, job: Job, info: ObjectInfo, plan: _Plan) -> Copied:
        """Begins an upload, or goes on with the one left over; ends it in an object.

        What can be gone on with stays there when it fails: the note in the ledger names it.
        """
        bucket, key = job.rule.target_bucket, job.target_key
        upload, there = self._begin(job, info, plan)
        try:
            digests = self._send_parts(job, info, plan, upload.id, there)
            etag = parts_etag(digests)
            _verify_parts(job, etag, plan.expected_etag)
        except (IntegrityError, SourceChanged, StoreRefused):
            with contextlib.suppress(StoreError, LedgerUnavailable):
                self.discard_left_over(replace(job, left_over=upload.note()))
            raise
        etags = [each.hex() for each in digests]
        try:
            written = write_over(
                self._target,
                job,
                lambda replaces: self._target.complete_upload(
                    bucket, key, upload.id, etags, permit=job.permit, replaces=replaces
                ),
            )
        except TargetChanged as error:
            if error.status == CONFLICT:
                self.discard_left_over(replace(job, left_over=upload.note()))
            raise
        if written.etag != etag:  # the parts were verified one by one; not every store computes this one
            found = verify_size(self._target, job, size=info.size)
            if found.etag == etag:  # this one does: its answer was damaged on the way
                written = replace(written, etag=etag)
        kept = sum(part.size for part in parts(info.size, plan.part_size) if part.number in there)
        return Copied(written=written, lost=upload.lost, bytes_sent=info.size - kept)

    def _begin(self, job: Job, info: ObjectInfo, plan: _Plan) -> tuple[_Upload, dict[int, UploadedPart]]:
        """The upload and the parts it has already."""
        bucket, digest = job.rule.target_bucket, plan.digest(info)
        left_over = _Upload.of(job.left_over)
        if left_over and left_over.plan == digest:
            there = self._target.uploaded_parts(bucket, job.target_key, left_over.id, permit=job.permit)
            if there is not None:
                return left_over, there
        else:
            self.discard_left_over(job)
        upload_id, lost = self._target.create_upload(
            bucket, job.target_key, plan.attributes, permit=job.permit
        )
        upload = _Upload(id=upload_id, plan=digest, lost=lost)
        job.permit.note_upload(upload.note())
        return upload, {}

    def _send_parts(
        self, job: Job, info: ObjectInfo, plan: _Plan, upload_id: str, there: Mapping[int, UploadedPart]
    ) -> list[bytes]:
        """Copies all parts that are not there, several at a time; gives all MD5 digests in order."""
        is_proven_there = plan.expected_etag == info.etag and not job.digests_all
        whole = WholeDigest() if info.has_md5_etag else None
        under_way: deque[Future[bytes]] = deque()
        digests: list[bytes] = []
        try:
            for part in parts(info.size, plan.part_size):
                if len(under_way) == self._settings.parts_in_flight:
                    digests.append(under_way.popleft().result())
                sending = _Sending(
                    part=part,
                    upload_id=upload_id,
                    whole=whole,
                    there=there.get(part.number),
                    is_proven_there=is_proven_there,
                )
                under_way.append(self._start_part(job, info, sending))
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

    def _start_part(self, job: Job, info: ObjectInfo, sending: _Sending) -> Future[bytes]:
        if (digest := sending.known_digest()) and not sending.whole:
            done: Future[bytes] = Future()
            done.set_result(digest)
            return done
        body = self._budget.borrow(sending.part.size)
        try:
            future = self._threads.submit(self._send_part, job, info, sending, body)
        except BaseException:
            self._budget.give_back(body)
            raise
        future.add_done_callback(lambda _: self._budget.give_back(body))
        return future

    def _send_part(self, job: Job, info: ObjectInfo, sending: _Sending, body: memoryview) -> bytes:
        part, insists = sending.part, False
        job.permit.check()
        self._source.read_part(job.rule.source_bucket, job.key, part, body, etag=info.etag)
        if sending.is_proven_there and not self._target.wants_digests:
            with contextlib.suppress(StoreRefused):
                return self._put_part(job, sending, body, None)
            insists = True
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        if sending.whole:
            sending.whole.add(part.number, body)
        if sending.known_digest() == md5:
            return md5
        digest = self._put_part(job, sending, body, md5)
        self._target.wants_digests |= insists  # with it, the store took what it had refused
        return digest

    def _put_part(self, job: Job, sending: _Sending, body: memoryview, md5: bytes | None) -> bytes:
        """Gives the part's MD5: the target's where none is given, which the object's ETag will prove."""
        bucket, number = job.rule.target_bucket, sending.part.number
        written = self._target.put_part(
            bucket, job.target_key, sending.upload_id, number, body, md5, permit=job.permit
        )
        if md5 is None and MD5_ETAG.fullmatch(written.etag) and not written.is_opaque:
            return bytes.fromhex(written.etag)
        md5 = md5 or hashlib.md5(body, usedforsecurity=False).digest()
        if not written.is_opaque and written.etag != md5.hex():
            raise corrupted(job, "part", expected=md5.hex(), found=written.etag)
        return md5


@dataclass(frozen=True, kw_only=True)
class _Sending:
    """One part on its way."""

    part: Part
    upload_id: str
    whole: WholeDigest | None
    there: UploadedPart | None
    """What the target has of it from an earlier attempt."""
    is_proven_there: bool
    """Whether the object's ETag will prove the parts: then the target's digests do, and none is made here."""

    def known_digest(self) -> bytes | None:
        """The MD5 of what is there, where it is this part, whole, and its ETag an MD5."""
        there = self.there
        if there is None or there.size != self.part.size or not MD5_ETAG.fullmatch(there.etag):
            return None
        return bytes.fromhex(there.etag)


class _OtherEtag(IntegrityError):
    """The parts do not make the ETag that was expected."""


def _verify_parts(job: Job, etag: str, expected: str | None) -> None:
    if expected not in (None, etag):
        raise _OtherEtag(
            f"source {job.rule.source_bucket}/{job.key!r}: the bytes received make {etag}, "
            f"{expected} was expected",
            hint="It is read again. If this stays, something on the way changes the data.",
        )


# ── was it read and written as it is? ────────────────────────────────────────────────────────────────


def write_over(target: Target, job: Job, write: Callable[[str | None], T]) -> T:
    """Writes over what the target had when it was looked at.

    Where the store says that it has something else, and shows that it has not, it is written whatever there
    is: to SeaweedFS the folder of other keys counts as an object too. Raises: TargetChanged, StoreError.
    """
    try:
        return write(job.replaces)
    except TargetChanged as error:
        present = target.head(job.rule.target_bucket, job.target_key, permit=job.permit)
        if error.status == CONFLICT or (present.etag if present else "") != job.replaces:
            raise
    return write(None)


def verify_read(job: Job, info: ObjectInfo, md5: str) -> None:
    """Raises IntegrityError where the source's ETag is an MD5, and not this one."""
    if info.has_md5_etag and md5 != info.etag:
        raise IntegrityError(
            f"source {job.rule.source_bucket}/{job.key!r}: the bytes received have MD5 {md5}, "
            f"its ETag says {info.etag}",
            hint="It is read again. If this stays, the object is damaged at the source, or something on "
            "the way changes it.",
        )


def verify_size(target: Target, job: Job, *, size: int) -> ObjectInfo:
    """The target's object. Raises: IntegrityError unless it has this size."""
    found = target.head(job.rule.target_bucket, job.target_key, permit=job.permit)
    if found is None or found.size != size:
        has = f"{found.size} bytes" if found else "nothing"
        raise corrupted(job, "object", expected=f"{size} bytes", found=has)
    return found


def corrupted(job: Job, what: str, *, expected: str, found: str) -> IntegrityError:
    """The error for a target that has something else than was sent."""
    return IntegrityError(
        f"target {job.rule.target_bucket}/{job.target_key!r}: {what} sent was {expected}, "
        f"the store has {found}",
        hint="It is written again. If this stays, something on the way to the target changes the data.",
    )
