"""What the HTTP side answers, as JSON Schema: the components of the OpenAPI description.

Only what is answered is written here; tests/unit/test_openapi.py holds every real answer against it.
"""

from __future__ import annotations

from typing import Any

from webhook.entries import LANES, STATES
from webhook.sweeps import COMPLETE, COUNTS, DROPPED, OPEN
from webhook.verdict import ACTIONS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_OR_NO: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
EPOCH: Schema = {"type": "number", "description": "Seconds since 1970."}
KEY: Schema = {"type": "string", "minLength": 1, "maxLength": 1024, "description": "An object's key."}
RULE: Schema = {"type": "string", "description": "A rule's name, as GET /v1/status lists them."}
NEXT: Schema = {
    "type": ["string", "null"],
    "description": "Send it as `cursor` for the next page; null: this was the last. A page with few items, "
    "or none, may not be the last one.",
}


def ref(name: str) -> Schema:
    """A component by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def thing(facts: Schema, *, optional: tuple[str, ...] = (), says: str = "") -> Schema:
    """An object with these properties, all of them there but for the optional ones."""
    required = [name for name in facts if name not in optional]
    found: Schema = {"type": "object", "properties": facts, "required": required}
    return found | ({"description": says} if says else {})


def sent(facts: Schema, *, needs: tuple[str, ...] = ()) -> Schema:
    """A body that has these properties, no others, and some of them for sure."""
    found: Schema = {"type": "object", "properties": facts, "additionalProperties": False}
    return found | ({"required": list(needs)} if needs else {})


def some(of: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": of}


def by_name(of: Schema, says: str = "") -> Schema:
    """An object whose names are not known before."""
    found: Schema = {"type": "object", "additionalProperties": of}
    return found | ({"description": says} if says else {})


def or_none(schema: Schema, says: str = "") -> Schema:
    """The same, or null."""
    if "$ref" in schema:
        found: Schema = {"anyOf": [schema, {"type": "null"}]}
    else:
        found = {**schema, "type": [schema["type"], "null"]}
        if "enum" in schema:
            found["enum"] = [*schema["enum"], None]
    return found | ({"description": says} if says else {})


def one_of(*words: str, says: str = "") -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(words)} | ({"description": says} if says else {})


_ATTEMPT = thing(
    {
        "worker": TEXT,
        "generation": WHOLE,
        "claimed_at": EPOCH,
        "ended_at": EPOCH,
        "result": one_of("replicated", "unchanged", "deleted", "gone", "error"),
        "error": TEXT,
        "bytes_copied": WHOLE,
    },
    optional=("error", "bytes_copied"),
)
_ENTRY = thing(
    {
        "rule": RULE,
        "key": KEY,
        "state": one_of(*STATES),
        "lane": one_of(*LANES, says="live: events and people; backfill: what a sweep found."),
        "due_at": or_none(
            EPOCH,
            "Seconds since 1970. Waiting: not before this, 1e11 while the rule is paused; running: when the "
            "claim runs out.",
        ),
        "generation": WHOLE | {"description": "How many times it was asked for."},
        "claimed_generation": WHOLE,
        "claim_number": WHOLE,
        "worker": or_none(TEXT),
        "attempts": WHOLE | {"description": "Failed tries since it was asked for last."},
        "backoff_s": NUMBER,
        "first_seen_at": EPOCH,
        "event_at": EPOCH,
        "outcome": or_none(one_of("replicated", "unchanged", "deleted", "gone")),
        "settled_at": or_none(EPOCH),
        "size": or_none(WHOLE),
        "source_etag": or_none(TEXT),
        "source_version": or_none(TEXT),
        "target_etag": or_none(TEXT),
        "cid": or_none(TEXT, "At Filebase: the content's IPFS address."),
        "lost": some(TEXT) | {"description": "What the target could not hold."},
        "error_code": or_none(TEXT),
        "error": or_none(TEXT),
        "upload": or_none(TEXT),
        "asked_at": or_none(EPOCH, "Seconds since 1970: since when the target may be behind at this key."),
        "removal_told": WHOLE,
        "gone_at": or_none(EPOCH),
        "missed_at": or_none(EPOCH),
        "trace": or_none(TEXT),
        "attempts_made": some(_ATTEMPT) | {"description": "The latest 20, oldest first."},
    },
    says="Everything known of one key under one rule. Times in seconds since 1970.",
)
_SWEEP = thing(
    {
        "id": WHOLE,
        "rule": RULE,
        "prefix": TEXT,
        "cause": one_of("start", "interval", "request", "command"),
        "state": one_of(OPEN, COMPLETE, DROPPED),
        "cursor": TEXT | {"description": "The last source key that was compared."},
        "asked_at": TIME,
        "due_at": TIME,
        "started_at": or_none(TIME),
        "proves_at": or_none(TIME),
        "ended_at": or_none(TIME),
        **dict.fromkeys(COUNTS, WHOLE),
        "error": or_none(TEXT),
        "link": TEXT,
    },
    says="A comparison of both sides: how far it has come, and what it found.",
)
_COUNTS = thing({state: thing(dict.fromkeys(LANES, WHOLE)) for state in STATES})
_REASON = thing(
    {
        "rule": RULE,
        "reason": TEXT,
        "number": WHOLE,
        "since": or_none(TIME, "Since when the target is behind with the oldest of them."),
        "example": or_none(TEXT),
    }
)
_RULE_STATUS = thing(
    {
        "source": TEXT,
        "target": TEXT,
        "paused_since": or_none(TIME),
        "recovery_point": or_none(
            TIME, "Up to when the target is proved complete, whatever events were lost."
        ),
        "proved_by": or_none(one_of("sweep")),
        "recovery_point_by_events": or_none(TIME, "The same, if MinIO has told of every change."),
        "lag_s": NUMBER,
        "last_hour": thing(
            {
                "objects": WHOLE,
                "bytes": WHOLE,
                "lag_s": thing(dict.fromkeys(("p50", "p95", "p99"), or_none(NUMBER))),
            }
        ),
        "entries": ref("Counts"),
        "events_missed": WHOLE | {"description": "Keys with a change that no event told of."},
        "failures": some(ref("Reason")),
        "oldest": or_none(
            thing(
                {
                    "key": KEY,
                    "state": one_of(*STATES),
                    "since": or_none(TIME),
                    "due_at": or_none(TIME),
                    "error_code": or_none(TEXT),
                    "error": or_none(TEXT),
                }
            ),
            "What has been unsettled longest, of what has not failed.",
        ),
        "sweep": or_none(ref("Sweep"), "The open one, else the last complete one."),
        "deletes": thing(
            {
                "propagated": YES_OR_NO,
                "pending": WHOLE,
                "held": WHOLE,
                "breaker": or_none(thing({"tripped_at": TIME, "reason": TEXT})),
            }
        ),
    }
)
_WORKER = thing(
    {
        "name": TEXT,
        "version": TEXT,
        "threads": WHOLE,
        "started_at": TIME,
        "seen_at": TIME,
        "limits": by_name(or_none(WHOLE), "target → requests at once at most; null: no limit was met."),
        "host": TEXT,
        "pid": WHOLE,
    }
)
_COPY_FACTS: Schema = {
    "rule": RULE,
    "s3_key": KEY,
    "entry": TEXT | {"description": "The path of the entry."},
    "status": one_of("replicated", "exists", "queued"),
    "paused": YES_OR_NO,
    "bucket": TEXT,
    "size": or_none(WHOLE),
    "source_etag": or_none(TEXT),
    "target_etag": or_none(TEXT),
    "lost": some(TEXT),
    "cid": TEXT,
    "error": ref("ErrorFacts"),
}
_COPY_OPTIONAL = tuple(name for name in _COPY_FACTS if name not in ("rule", "s3_key", "entry"))

SCHEMAS: dict[str, Schema] = {
    "ErrorFacts": thing(
        {
            "code": TEXT | {"description": "A stable word for programs."},
            "message": TEXT,
            "hint": TEXT | {"description": "What to do about it."},
        }
    ),
    "Error": thing({"error": ref("ErrorFacts")}),
    "Copy": thing(
        {**_COPY_FACTS, "copies": some(thing(_COPY_FACTS, optional=_COPY_OPTIONAL))},
        optional=(*_COPY_OPTIONAL, "copies"),
        says="What came of a copy; where several rules want the key, the worst, and each in `copies`.",
    ),
    "Entry": _ENTRY,
    "Entries": thing({"entries": some(ref("Entry")), "next": NEXT}),
    "Failures": thing({"failures": some(ref("Entry")), "next": NEXT}),
    "Reason": _REASON,
    "Reasons": thing({"reasons": some(ref("Reason"))}),
    "Counts": _COUNTS,
    "Verdict": thing(
        {
            "rule": or_none(TEXT, "null: of all."),
            "ok": YES_OR_NO
            | {"description": "Proved complete, at most 5 min behind, nothing waits for a person."},
            "text": TEXT,
            "action": or_none(one_of(*ACTIONS), "What helps; null: nothing needs to be done by hand."),
        }
    ),
    "Status": thing(
        {
            "summary": some(ref("Verdict")) | {"description": "Of all first, then each rule's."},
            "version": TEXT,
            "entries": ref("Counts"),
            "entries_counted_at": TIME,
            "quarantined": WHOLE,
            "workers": some(_WORKER),
            "rules": by_name(_RULE_STATUS),
        }
    ),
    "Sweep": _SWEEP,
    "Sweeps": thing({"sweeps": some(ref("Sweep"))}),
    "Paused": thing(
        {
            "changed": some(TEXT) | {"description": "The rules that this call changed."},
            "paused": by_name(TIME, "All rules that are paused now, and since when."),
        }
    ),
    "Record": thing(
        {
            "record_id": TEXT,
            "reason": TEXT,
            "raw": TEXT | {"description": "The record's JSON."},
            "times_seen": WHOLE,
            "first_seen_at": TIME,
            "last_seen_at": TIME,
        }
    ),
    "Records": thing({"records": some(ref("Record")), "next": NEXT}),
    "Tried": thing(dict.fromkeys(("accepted", "ignored", "kept"), WHOLE)),
    "Accepted": thing(dict.fromkeys(("accepted", "ignored", "quarantined"), WHOLE)),
    "Health": thing({"status": one_of("alive")}),
    "Probed": thing({"status": one_of("ready")}),
    "Readiness": thing({"status": one_of("ready", "not ready"), "checks": by_name(TEXT)}),
}
