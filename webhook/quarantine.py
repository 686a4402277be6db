"""Records of notifications that nobody could act on: looked at by a person, tried again, or dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from webhook import events
from webhook.errors import BadRequest
from webhook.events import Asked
from webhook.ledger import Ledger
from webhook.rules import Rules
from webhook.tables import QUARANTINE

PAGE_RECORDS = 20
"""Read at once: one may be as large as a notification may be."""

log = structlog.get_logger("webhook.quarantine")
_ROW = QUARANTINE.c


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of records that were tried again."""

    accepted: int = 0
    """Changes that are asked for now."""
    ignored: int = 0
    """Changes that no rule wants."""
    kept: int = 0
    """Records that still cannot be used, and stay."""


class Quarantine:
    """Thread-safe. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def discard(self, record_id: str | None = None) -> int:
        """Drops one record, or all for None; gives how many."""
        wanted = sa.delete(QUARANTINE)
        if record_id is not None:
            wanted = wanted.where(_ROW.record_id == record_id)
        count = int(self._ledger.run(wanted))
        log.warning("quarantine discarded", records=count)
        return count

    def retry(self, rules: Rules, record_id: str | None = None) -> Tried:
        """Reads one record again, or all for None, as if it came now: with a newer release, or other rules.

        What can be used is put first and leaves the quarantine after that: interrupted, it is only asked for
        twice, and an event that comes twice is known by its id. Safe to repeat.
        """
        accepted = ignored = kept = 0
        for row in self._records(record_id):
            found = _asked(row["raw"], rules)
            if found is None or found.misfits:
                kept += 1
                continue
            if found.requests:
                self._ledger.put(found.requests)
            self._ledger.run(sa.delete(QUARANTINE).where(_ROW.record_id == row["record_id"]))
            accepted += found.accepted
            ignored += found.ignored
        log.info("quarantine tried again", accepted=accepted, ignored=ignored, kept=kept)
        return Tried(accepted=accepted, ignored=ignored, kept=kept)

    def _records(self, record_id: str | None) -> Iterator[Mapping[str, Any]]:
        """By their ids, a page at a time."""
        wanted = sa.select(_ROW.record_id, _ROW.raw).order_by(_ROW.record_id).limit(PAGE_RECORDS)
        if record_id is not None:
            wanted = wanted.where(_ROW.record_id == record_id)
        last = ""
        while True:
            with self._ledger.reading() as connection:
                page = connection.execute(wanted.where(_ROW.record_id > last)).mappings().all()
            yield from map(dict, page)
            if len(page) < PAGE_RECORDS:
                return
            last = page[-1]["record_id"]


def _asked(raw: str, rules: Rules) -> Asked | None:
    """What a kept record asks for; None where it is no notification at all."""
    record = json.loads(raw)
    if isinstance(record, str):  # a message that was no JSON object, as it came
        body = record
    elif isinstance(record, dict) and "Records" in record:
        body = raw
    else:
        body = json.dumps({"Records": [record]})
    try:
        return events.asked(body.encode(), rules)
    except BadRequest:
        return None
