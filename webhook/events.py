"""MinIO notification JSON → changes → what they ask of the ledger.

Format: MinIO's bucket notifications, which follow the S3 event message structure: one object with a
`Records` list; `Records[].s3.bucket.name` and `Records[].s3.object.key`, the key query-escaped ("+" is
a space). MinIO puts one record in each POST; lists of any length are read. AWS and Ceph RGW write the names
of events without "s3:", and Ceph RGW the key as it is (its documentation, "Bucket Notifications").

A change only says "look at this key": nothing in it is trusted to describe the object. Its ETag tells a copy
of this service from what others wrote, where a delete is asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from webhook.entries import Misfit, Request
from webhook.errors import BadRequest
from webhook.rules import Rules

KEY_MAX_BYTES = 1024
"""The longest key S3 allows, in UTF-8 (Amazon S3 User Guide, "Naming objects")."""
BUCKET_MAX_CHARS = 255
JUNK_KEPT_BYTES = 65_536
"""So much is kept of what is no notification: MinIO's are a few kB."""
DEPTH_MAX = 100
"""Lists and objects in each other: MinIO's are 6. What is kept has to be read again on any stack."""
REMOVALS, NOTHING_REMOVED = ("ObjectRemoved:", "LifecycleExpiration:"), "ObjectRemoved:NoOP"
WANTED_EVENTS = ("ObjectCreated:", "ObjectTagging:", *REMOVALS)
ESCAPES_NOTHING = "ceph:s3"
ETAG = re.compile(r'"?[0-9A-Za-z_.:+/=-]+"?')
"""Whatever stores use for a hash, quoted or not."""
_canonical = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True, kw_only=True)
class Change:
    """One event, parsed."""

    bucket: str
    key: str
    event_name: str
    event_id: str
    """Equal for two deliveries of one event, different for two events: 16 hex digits."""
    event_at: float
    """When the source says it happened, in seconds since 1970; 0.0 where it does not say."""
    etag: str
    """Of the object, as the event has it; "" where it has none."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A record nobody can act on, to be kept for a person."""

    record_id: str
    """64 hex digits, equal for two deliveries of one record."""
    reason: str
    raw: str
    """The record as JSON, ASCII only."""


@dataclass(frozen=True, kw_only=True)
class Notification:
    """What one body held."""

    changes: tuple[Change, ...]
    unusable: tuple[Unusable, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one notification asks of the ledger."""

    requests: tuple[Request, ...]
    misfits: tuple[Misfit, ...]
    accepted: int
    """Changes that at least one rule wants."""
    ignored: int
    """Changes that no rule wants, or that change no object."""


def asked(body: bytes, rules: Rules) -> Asked:
    """What a notification asks for under these rules, whichever way it came.

    Raises: BadRequest when the body is not JSON or not an object.
    """
    notification = parse(body)
    wanted = [_requests(change, rules) for change in notification.changes]
    ignored = wanted.count([])
    return Asked(
        requests=tuple([each for of_change in wanted for each in of_change]),
        misfits=tuple(
            [
                Misfit(record_id=each.record_id, reason=each.reason, raw=each.raw)
                for each in notification.unusable
            ]
        ),
        accepted=len(wanted) - ignored,
        ignored=ignored,
    )


def junk(body: bytes, reason: str) -> Misfit:
    """A body that is no notification at all, to be kept where no sender hears that it is refused.

    Of a long one, the beginning is kept.
    """
    text = body[:JUNK_KEPT_BYTES].decode("utf-8", "backslashreplace")
    return Misfit(record_id=hashlib.sha256(body).hexdigest(), reason=reason, raw=json.dumps(text))


def _requests(change: Change, rules: Rules) -> list[Request]:
    """What a change asks for: nothing where no rule wants the key or the event changes no object."""
    name = change.event_name.removeprefix("s3:")
    if not name.startswith(WANTED_EVENTS):
        return []
    return [
        Request(
            rule=rule.name,
            key=change.key,
            event_id=change.event_id,
            event_at=change.event_at,
            is_removal=name.startswith(REMOVALS) and name != NOTHING_REMOVED,
            etag=change.etag,
        )
        for rule in rules.matching(bucket=change.bucket, key=change.key)
    ]


def parse(body: bytes) -> Notification:
    """Every record of a notification, usable or not.

    Raises: BadRequest when the body is not JSON or not an object.
    """
    try:
        return _read(_loaded(body))
    except (ValueError, RecursionError):
        raise BadRequest(
            "the body is not JSON, or is nested too deeply", hint="Send MinIO's notification as it is."
        ) from None


def _loaded(body: bytes) -> object:
    document = json.loads(body)
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _depth(document) > DEPTH_MAX:
        raise RecursionError
    return document


def _depth(document: object) -> int:
    """How many lists and objects are in each other."""
    level, found = [document], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def _read(document: object) -> Notification:
    if not isinstance(document, dict):
        raise BadRequest("the body is not a JSON object", hint="Send MinIO's notification as it is.")
    records = document.get("Records")
    if not isinstance(records, list) or not records:
        return Notification(changes=(), unusable=(_unusable(document, "there is no list of Records"),))
    parsed = [_parse_record(record) for record in records]
    return Notification(
        changes=tuple(each for each in parsed if isinstance(each, Change)),
        unusable=tuple(each for each in parsed if isinstance(each, Unusable)),
    )


def _parse_record(record: object) -> Change | Unusable:
    try:
        return _to_change(record)
    except _RecordError as reason:
        return _unusable(record, str(reason))


class _RecordError(Exception):
    """Why a record cannot be used."""


def _to_change(record: object) -> Change:
    fields = _mapping(record, "the record")
    s3 = _mapping(fields.get("s3"), "s3")
    bucket = _mapping(s3.get("bucket"), "s3.bucket").get("name")
    if not isinstance(bucket, str) or not 0 < len(bucket) <= BUCKET_MAX_CHARS or not _storable(bucket):
        raise _RecordError("s3.bucket.name is missing or no bucket name")
    name = fields.get("eventName")
    described = _mapping(s3.get("object"), "s3.object")
    etag = described.get("eTag")
    return Change(
        bucket=bucket,
        key=_key(described.get("key"), is_escaped=fields.get("eventSource") != ESCAPES_NOTHING),
        event_name=name if isinstance(name, str) and _storable(name) else "",
        event_id=_fingerprint(record)[:16],
        event_at=_seconds(fields.get("eventTime")),
        etag=etag.strip('"') if isinstance(etag, str) and ETAG.fullmatch(etag) else "",
    )


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _RecordError(f"{name} is missing or not an object")
    return value


def _key(told: object, *, is_escaped: bool) -> str:
    if not isinstance(told, str) or not told:
        raise _RecordError("s3.object.key is missing")
    try:
        key = unquote_to_bytes(told.replace("+", " ")).decode() if is_escaped else told
    except UnicodeError:
        raise _RecordError("s3.object.key is not UTF-8") from None
    if problem := key_problem(key):
        raise _RecordError(problem)
    return key


def key_problem(key: str) -> str | None:
    """Why no ledger or store could hold this key; None where nothing speaks against it."""
    if not key:
        return "the key is empty"
    if not _storable(key):
        return "the key holds a NUL character or is not UTF-8"
    if len(key.encode()) > KEY_MAX_BYTES:
        return f"the key is longer than {KEY_MAX_BYTES} bytes"
    return None


def _storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\0" not in text


def _seconds(value: object) -> float:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is None:
            return 0.0
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):  # the latter: before year 1 or after year 9999 in UTC
        return 0.0


def _unusable(record: object, reason: str) -> Unusable:
    return Unusable(record_id=_fingerprint(record), reason=reason, raw=json.dumps(record))


def _fingerprint(record: object) -> str:
    """The whole record counts: MinIO gives each event a time and a request id, and delivers the same
    record to every notification target.
    """
    return hashlib.sha256(_canonical(record).encode()).hexdigest()
