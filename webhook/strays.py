"""Uploads in parts that a copy began at the target, and that nobody knows of.

A copy notes its upload with the entry, and goes on with it or ends it. One whose id never arrived, because
the connection broke, or whose process died before the note, is on no record: its parts take up room that the
store charges for, and that no listing of objects shows.
"""

from __future__ import annotations

import structlog

from webhook.entries import RUNNING
from webhook.ledger import Ledger
from webhook.rules import Rule
from webhook.target import Target

log = structlog.get_logger("webhook.strays")


def end_strays(rule: Rule, target: Target, ledger: Ledger, *, keep_s: float) -> int:
    """Aborts what was begun longer than `keep_s` ago at a key of the rule; gives how many.

    Left alone is what an entry has noted, all uploads of a key that is being copied, and those of keys that
    are not on record: they may be somebody else's. Safe to repeat. Raises: StoreError, LedgerUnavailable.
    """
    before = ledger.clock() - keep_s
    ended = 0
    for upload in target.uploads(rule.target_bucket, rule.target_prefix):
        key = rule.source_key(upload.key)
        if key is None or upload.begun_at >= before:
            continue
        entry = ledger.entry(rule.name, key)
        if entry is None or entry["state"] == RUNNING or upload.id in (entry["upload"] or ""):
            continue
        target.abort_upload(rule.target_bucket, upload.key, upload.id)
        log.info("stray upload ended", key=key, rule=rule.name)
        ended += 1
    return ended
