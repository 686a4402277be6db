"""The ledger's tables. Their versions, and how one comes from another, are in migrations/."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

ENTRIES = sa.Table(
    "entries",
    METADATA,
    sa.Column("rule", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("state", sa.Text),
    sa.Column("lane", sa.Text),
    # waiting: not before this moment; running: when the lease runs out; NULL: nothing is to be done
    sa.Column("due_at", sa.Double),
    # how many times the entry was asked for, and that number when it was last claimed
    sa.Column("generation", sa.BigInteger),
    sa.Column("claimed_generation", sa.BigInteger),
    # counts claims; the number of a claim is its fencing token
    sa.Column("claim_number", sa.BigInteger),
    sa.Column("worker", sa.Text),
    sa.Column("attempts", sa.Integer),
    sa.Column("backoff_s", sa.Double),
    # ids of the latest events accepted, each followed by a space
    sa.Column("recent_events", sa.Text),
    sa.Column("first_seen_at", sa.Double),
    sa.Column("event_at", sa.Double),
    sa.Column("outcome", sa.Text),
    sa.Column("settled_at", sa.Double),
    sa.Column("size", sa.BigInteger),
    sa.Column("source_etag", sa.Text),
    sa.Column("source_version", sa.Text),
    sa.Column("target_etag", sa.Text),
    sa.Column("cid", sa.Text),
    # JSON list of what the target could not hold
    sa.Column("lost", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    # JSON note of an unfinished multipart upload
    sa.Column("upload", sa.Text),
    # JSON list of the latest attempts, oldest first
    sa.Column("history", sa.Text),
    # since when something is asked for that has not been settled; NULL: nothing is
    sa.Column("asked_at", sa.Double),
    # 1: an event told that the source's object was removed
    sa.Column("removal_told", sa.Integer),
    # when the source was found to have no such key any more, while a delete is pending, held or just done
    sa.Column("gone_at", sa.Double),
    # when a sweep found a change that no event had told of
    sa.Column("missed_at", sa.Double),
    # W3C traceparent of what asked last, where traces are kept
    sa.Column("trace", sa.Text),
    # the latest ETags that events and sweeps told of, newest first, each followed by a space
    sa.Column("told_etags", sa.Text),
)

QUARANTINE = sa.Table(
    "quarantine",
    METADATA,
    sa.Column("record_id", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text),
    sa.Column("raw", sa.Text),
    sa.Column("times_seen", sa.BigInteger),
    sa.Column("first_seen_at", sa.Double),
    sa.Column("last_seen_at", sa.Double),
)

RULES = sa.Table(
    "rules",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    # what it says of where objects come from and go to, and since when it says so
    sa.Column("shape", sa.Text),
    sa.Column("first_seen_at", sa.Double),
    # when and why the delete breaker tripped; NULL: it has not
    sa.Column("tripped_at", sa.Double),
    sa.Column("trip_reason", sa.Text),
    # deletes before this time do not count for the breaker: a person has decided about them
    sa.Column("counted_from", sa.Double),
    # since when nothing is copied by it, because a person said so; NULL: it is at work
    sa.Column("paused_at", sa.Double),
)

SWEEPS = sa.Table(
    "sweeps",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rule", sa.Text),
    sa.Column("prefix", sa.Text),
    # who wanted it: "start", "interval", "request", "command"
    sa.Column("cause", sa.Text),
    # "open": to be done or under way; "complete"; "dropped": its rule is no more
    sa.Column("state", sa.Text),
    # the last source key that was compared
    sa.Column("cursor", sa.Text),
    # the sides whose listing had to be sorted on disk
    sa.Column("on_disk", sa.Text),
    sa.Column("asked_at", sa.Double),
    sa.Column("due_at", sa.Double),
    sa.Column("started_at", sa.Double),
    # by the source's clock: what was there before this time has been seen
    sa.Column("proves_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("worker", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("compared", sa.BigInteger),
    sa.Column("compared_bytes", sa.BigInteger),
    sa.Column("missing", sa.BigInteger),
    sa.Column("different", sa.BigInteger),
    sa.Column("unproven", sa.BigInteger),
    sa.Column("extra", sa.BigInteger),
    sa.Column("kept", sa.BigInteger),
    # how many it asked the workers to look at
    sa.Column("put", sa.BigInteger),
)

LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("worker", sa.Text),
    sa.Column("until", sa.Double),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text),
    sa.Column("threads", sa.Integer),
    sa.Column("started_at", sa.Double),
    sa.Column("seen_at", sa.Double),
    # JSON: target → its limit of requests at once; see webhook.pace
    sa.Column("limits", sa.Text),
)

SLOTS = sa.Table(
    "slots",
    METADATA,
    # a target, and what is limited: "filebase requests"
    sa.Column("name", sa.Text, primary_key=True),
    # up to when all moments of it are given away, by the ledger's clock
    sa.Column("given_until", sa.Double),
)

MINUTES = sa.Table(
    "minutes",
    METADATA,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("rule", sa.Text, primary_key=True),
    sa.Column("lane", sa.Text, primary_key=True),
    # of the time from the change to its settling: see webhook.progress
    sa.Column("bucket", sa.Integer, primary_key=True),
    # a number that few processes have in common, so that they seldom wait for each other
    sa.Column("share", sa.Integer, primary_key=True),
    sa.Column("objects", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
)

COUNTS = sa.Table(
    "counts",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    # JSON object, its names in order
    sa.Column("labels", sa.Text, primary_key=True),
    # since 1970; 0: of all time
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("value", sa.Double),
)

FINDINGS = sa.Table(
    "findings",
    METADATA,
    sa.Column("target", sa.Text, primary_key=True),
    # what was looked at: a target of that name elsewhere is another one
    sa.Column("endpoint", sa.Text),
    sa.Column("found_at", sa.Double),
    # JSON object: see webhook.findings
    sa.Column("findings", sa.Text),
)
