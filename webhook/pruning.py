"""Drops entries that were settled long ago, where a setting asks for it.

A sweep compares listings, not records: a dropped entry costs nothing until its key is asked for again, and
then one look at the target. Of rules that propagate deletes all are kept: they say which copies are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from webhook.entries import SETTLED
from webhook.ledger import Ledger
from webhook.tables import ENTRIES

STRETCH = 2_000
"""Entries looked at in one transaction."""
STRETCHES_MAX = 100
"""In one round."""
_ROW = ENTRIES.c
_place = sa.tuple_(_ROW.rule, _ROW.key)

log = structlog.get_logger("webhook.pruning")


class Pruner:
    """Walks the ledger in key order, some of it in each round. One at a time."""

    def __init__(self, ledger: Ledger, *, keep_s: float) -> None:
        """`keep_s`: how long a settled entry is kept; 0: for ever."""
        self._ledger = ledger
        self._keep_s = keep_s
        self._after = ("", "")

    def round(self, rules: Sequence[str]) -> int:
        """Goes on where the last round ended; gives how many entries of these rules it dropped.

        Raises: LedgerUnavailable.
        """
        dropped = 0
        for _ in range(STRETCHES_MAX if self._keep_s and rules else 0):
            last = self._end_of_stretch()
            dropped += self._drop(self._after, last, rules)
            self._after = last or ("", "")
            if last is None:
                break
        if dropped:
            log.info("settled entries dropped", entries=dropped)
        return dropped

    def _end_of_stretch(self) -> tuple[str, str] | None:
        """The last entry of the next stretch; None: the stretch is the rest."""
        behind = sa.select(_ROW.rule, _ROW.key).where(_place > sa.tuple_(*map(sa.literal, self._after)))
        with self._ledger.reading() as connection:
            found = connection.execute(
                behind.order_by(_ROW.rule, _ROW.key).offset(STRETCH - 1).limit(1)
            ).first()
        return (found.rule, found.key) if found else None

    def _drop(self, after: tuple[str, str], last: tuple[str, str] | None, rules: Sequence[str]) -> int:
        stretch = [_place > sa.tuple_(*map(sa.literal, after))]
        if last:
            stretch.append(_place <= sa.tuple_(*map(sa.literal, last)))
        is_old = (_ROW.state == SETTLED, _ROW.settled_at < self._ledger.clock() - self._keep_s)
        tells_nothing = (_ROW.gone_at.is_(None), _ROW.missed_at.is_(None))
        is_of_rules = sa.or_(*(_ROW.rule == rule for rule in rules))
        dropped = sa.delete(ENTRIES).where(*stretch, *is_old, *tells_nothing, is_of_rules)
        return int(self._ledger.run(dropped, durable=False))
