"""The shared streaming copy: the only way to the target.

check → copy → verify. The webhook's workers, the manual endpoint and every later way in call
`Copier.copy_object`, which makes the target hold what the source holds at this moment.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
from dataclasses import dataclass, replace

from webhook.errors import NoSuchKey, StoreFailed, TargetChanged
from webhook.findings import Findings
from webhook.holdings import Holdings
from webhook.memory import MemoryBudget
from webhook.multipart import (
    Copied,
    Job,
    Multipart,
    Permit,
    corrupted,
    verify_read,
    verify_size,
    write_over,
)
from webhook.objects import ObjectInfo, Properties, same_content
from webhook.rules import Rule
from webhook.settings import CopySettings
from webhook.source import Source
from webhook.target import Attributes, Target, Written

KEPT = "content: OVERWRITE=never"
"""What is lost of an object that differs from what the target has, and must not replace it."""


class OutcomeKind(enum.StrEnum):
    """How a copy ended."""

    REPLICATED = "replicated"
    UNCHANGED = "unchanged"
    GONE = "gone"
    DELETED = "deleted"


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
    is_first: bool = False
    """Whether nobody has tried to copy this key before."""
    is_retry: bool = False
    """Whether an attempt at what is asked for now has failed before."""


class Copier:
    """Thread-safe. One for each target in a process; `budget` is the whole process's."""

    def __init__(self, source: Source, target: Target, settings: CopySettings, budget: MemoryBudget) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._holdings = Holdings()
        self._target_shows_md5 = False
        """Whether an object's ETag at the target was the MD5 of what was sent."""
        self._budget = budget
        self._multipart = Multipart(source, target, settings, budget)

    @property
    def limit(self) -> int | None:
        """How many requests this process sends to the target at once at most now; None: no limit."""
        return self._target.limit

    def expect(self, findings: Findings) -> None:
        """Takes what was found out about the target before."""
        self._target.expect(findings)
        self._holdings.expect(findings.held)

    def learned(self) -> Findings:
        """What this process has found out about the target."""
        return replace(self._target.learned(), held=self._holdings.held)

    def close(self) -> None:
        """Ends the threads that copy parts."""
        self._multipart.close()

    def discard_upload(self, rule: Rule, key: str, note: str) -> None:
        """Ends the upload that a note in the ledger names; one that is gone is fine. Raises: StoreError."""
        self._multipart.discard(rule, key, note)

    def copy_object(self, rule: Rule, key: str, *, permit: Permit, known: Known | None = None) -> Outcome:
        """Makes the target's object equal to the source's, as that is now, and verifies it.

        Safe to repeat: what is equal already is left alone. Requests for a new object: GET at the source,
        PUT at the target, and a HEAD there unless the target is known to refuse a PUT that would replace
        something. Replaces nothing but what it has seen, as far as the target heeds that. Raises: StoreError
        (TargetChanged where somebody else wrote meanwhile), IntegrityError, LeaseLost.
        """
        known = known or Known()
        job = Job(rule=rule, key=key, permit=permit, left_over=known.upload, digests_all=known.is_retry)
        may_be_new = known.is_first and rule.overwrite == "changed"
        is_new = may_be_new and self._target.puts.only_new
        outcome = (self._copy_new(job) if is_new else None) or self._look_and_copy(job, known, may_be_new)
        if outcome.kind is not OutcomeKind.REPLICATED:
            self._multipart.discard_left_over(job)
        return outcome

    def present(self, rule: Rule, key: str) -> ObjectInfo | None:
        """The target's object for a key of the source; None where a bucket that is there has none.

        Raises: StoreError.
        """
        found = self._target.head(rule.target_bucket, rule.target_key(key))
        if found is None:
            self._target.check(rule.target_bucket)  # a bucket that is away answers 404, too
        return found

    def remove_copy(self, rule: Rule, key: str, *, permit: Permit, etag: str) -> bool:
        """Deletes the target's object if the source, asked anew, has no such key; else does nothing.

        `etag` is that of the object that was found there; a store that heeds it deletes no other.
        Nothing but "no such key" in a bucket that is there counts as gone. Gives whether neither side has it
        now; where the source has it again, it is to be copied again. Safe to repeat. Raises: StoreError
        (TargetChanged where the target has something else), LeaseLost.
        """
        try:
            self._source.head(rule.source_bucket, key)
        except NoSuchKey:
            self._source.check(rule.source_bucket)
            self._target.delete(rule.target_bucket, rule.target_key(key), permit=permit, etag=etag)
            return not self._came_back(rule, key)
        return False

    def _came_back(self, rule: Rule, key: str) -> bool:
        """Whether the source has a key that it did not have a moment ago: it may have no event of its own."""
        try:
            self._source.head(rule.source_bucket, key)
        except NoSuchKey:
            return False
        return True

    def _look_and_copy(self, job: Job, known: Known, try_only_new: bool) -> Outcome:
        """Copies over what the target has, unless there is nothing to do."""
        present = self._head(job)
        outcome = self._compare(job, present, known) if present else None
        replaces = (present.etag or None) if present else ""
        return outcome or self._copy(replace(job, replaces=replaces), try_only_new=try_only_new)

    def _compare(self, job: Job, present: ObjectInfo, known: Known) -> Outcome | None:
        """The outcome where there is nothing to copy over what the target has; None where there is."""
        keeps = job.rule.overwrite == "never"
        if keeps and not job.rule.deletes:
            return _unchanged(present, lost=(KEPT,))
        try:
            wanted = self._source.head(job.rule.source_bucket, job.key)
        except NoSuchKey:
            return self._confirm_gone(job)
        if keeps:
            return _unchanged(present, lost=(KEPT,))
        if not self._is_equal(job, wanted, present, known):
            return None
        lost = self._holdings.lost(wanted.properties, known.lost)
        if job.rule.tags and wanted.tag_count and not self._target.takes_tags:
            lost += ("tags",)
        return _unchanged(present, source=wanted, lost=lost)

    def _confirm_gone(self, job: Job) -> Outcome:
        """HEAD cannot tell a missing key from a missing bucket; only the first is an outcome."""
        self._source.check(job.rule.source_bucket)
        return Outcome(kind=OutcomeKind.GONE)

    def _copy_new(self, job: Job) -> Outcome | None:
        """Reads and writes without looking at the target; None where that has the key."""
        try:
            return self._copy(replace(job, replaces=""), is_unseen=True)
        except _KeyExists:
            return None

    def _copy(self, job: Job, *, is_unseen: bool = False, try_only_new: bool = False) -> Outcome:
        """Reads and writes. `is_unseen`: raises _KeyExists where the target has the key."""
        rule = job.rule
        with contextlib.ExitStack() as held:
            try:
                reading = held.enter_context(self._source.open(rule.source_bucket, job.key))
            except NoSuchKey:
                return self._confirm_gone(job)
            info = reading.info
            tags = self._source.tags(rule.source_bucket, job.key) if rule.tags and info.tag_count else {}
            attributes = Attributes(properties=info.properties, tags=tags, storage_class=rule.storage_class)
            is_whole = info.parts_count == 0 and info.size <= self._settings.whole_max_bytes
            if is_whole:
                body = held.enter_context(self._budget.body(info.size))
                reading.read_into(body)
                reading.close()
                self._multipart.discard_left_over(job)
                copied = self._write_whole(job, info, body, attributes, is_unseen=is_unseen)
                if try_only_new:
                    self._target.try_only_new(
                        rule.target_bucket, job.target_key, body, attributes, permit=job.permit
                    )
        if not is_whole:
            if is_unseen and self._head(job):
                raise _KeyExists
            copied = self._multipart.copy(job, info, attributes)
        return Outcome(
            kind=OutcomeKind.REPLICATED,
            size=info.size,
            bytes_copied=copied.bytes_sent,
            source_etag=info.etag,
            source_version=info.version_id,
            target_etag=copied.written.etag,
            cid=copied.written.cid,
            lost=self._find_lost(job, info.properties, copied),
        )

    def _find_lost(self, job: Job, sent: Properties, copied: Copied) -> tuple[str, ...]:
        """Looks what the target made of properties it was not sent before, and remembers."""
        if "expires" in copied.lost:
            sent = replace(sent, expires="")
        if not self._holdings.knows(sent):
            found = self._head(job)
            if found and found.etag == copied.written.etag:
                return copied.lost + self._holdings.learn(sent, found)
        return copied.lost + self._holdings.lost(sent)

    # ── is there anything to do? ─────────────────────────────────────────────────────────────────────

    def _is_equal(self, job: Job, wanted: ObjectInfo, present: ObjectInfo, known: Known) -> bool:
        """Content by ETag, or by what the last copy left on record; then headers, metadata and tags."""
        on_record = (wanted.etag, present.etag) == (known.source_etag, known.target_etag)
        content = same_content(wanted, present) or (
            on_record and wanted.etag != "" and wanted.size == present.size
        )
        shown = self._holdings.same(wanted.properties, present.properties, lost_before=known.lost)
        if on_record and not shown:
            self._holdings.doubt(wanted.properties)
        if not content or not shown:
            return False
        has_tags = wanted.tag_count or present.tag_count
        if not has_tags or not job.rule.tags or not self._target.takes_tags:
            return True
        held = self._target.tags(job.rule.target_bucket, job.target_key, permit=job.permit)
        return not self._target.takes_tags or held == self._source.tags(job.rule.source_bucket, job.key)

    # ── one request ──────────────────────────────────────────────────────────────────────────────────

    def _head(self, job: Job) -> ObjectInfo | None:
        """What the target has."""
        return self._target.head(job.rule.target_bucket, job.target_key, permit=job.permit)

    def _write_whole(
        self, job: Job, info: ObjectInfo, body: memoryview, attributes: Attributes, *, is_unseen: bool
    ) -> Copied:
        """The target digests what arrives: where its ETags are known to be MD5s, as the source's is, their
        being equal proves the way from one store to the other, and nothing is digested here.
        """
        is_proven_there = info.has_md5_etag and self._target_shows_md5 and not job.digests_all
        md5 = bytes.fromhex(info.etag) if is_proven_there else _md5(body)
        if not is_proven_there:
            verify_read(job, info, md5.hex())

        def write(replaces: str | None) -> tuple[Written, tuple[str, ...]]:
            return self._target.put(
                job.rule.target_bucket,
                job.target_key,
                body,
                md5,
                attributes,
                permit=job.permit,
                replaces=replaces,
            )

        try:
            written, lost = write(job.replaces) if is_unseen else write_over(self._target, job, write)
        except TargetChanged:
            if is_unseen:
                raise _KeyExists from None
            raise
        except StoreFailed:
            verify_read(job, info, _md5(body).hex())  # it may be the digest that the store minds
            raise
        if written.etag == md5.hex():
            self._target_shows_md5 |= info.size > 0
        else:
            verify_read(job, info, _md5(body).hex())
        self._verify_written(job, written, expected=md5.hex(), size=info.size)
        return Copied(written=written, lost=lost, bytes_sent=info.size)

    def _verify_written(self, job: Job, written: Written, *, expected: str, size: int) -> None:
        """By ETag; by size where that means nothing, and for folder markers (SeaweedFS stores them empty)."""
        if not written.is_opaque and written.etag not in ("", expected):
            raise corrupted(job, "object", expected=expected, found=written.etag)
        if written.etag != expected or (job.target_key.endswith("/") and size):
            verify_size(self._target, job, size=size)


class _KeyExists(Exception):
    """The target has a key that was taken for new, and nothing was written."""


def _md5(body: memoryview) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


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
