"""Rules that a person has paused: what is asked for is kept, and nothing is copied, deleted or swept.

A worker that claims an entry of a paused rule parks it: due in a far year, so that claims stay short however
much is parked. What a worker parks that has not heard of the end of the pause, any keeper finds.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
import structlog

from webhook.entries import LANES, PARKED_AT, WAITING
from webhook.ledger import Ledger
from webhook.tables import ENTRIES, RULES

LOOK_S = 1.0
"""How soon a process hears of a pause that another one was told of."""
KEEP_S = 15.0
"""For this long after a pause, every process has heard of its end, and ended what it had claimed before."""
UNPARK_KEYS = 1000
"""In one transaction."""

log = structlog.get_logger("webhook.pauses")
_ROW, _RULE = ENTRIES.c, RULES.c


class Pauses:
    """Thread-safe, and one for each process. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, float] = {}
        self._looks_at = 0.0
        self._seen: frozenset[str] | None = None
        self._looks_until = 0.0

    def paused(self) -> dict[str, float]:
        """Rule → since when it is paused, in seconds since 1970."""
        wanted = sa.select(_RULE.name, _RULE.paused_at).where(_RULE.paused_at.is_not(None))
        with self._ledger.reading() as connection:
            return {name: float(at) for name, at in connection.execute(wanted)}

    def is_paused(self, rule: str) -> bool:
        """Whether nothing may be done for the rule; true or false for LOOK_S longer than it is."""
        if time.monotonic() >= self._looks_at:
            self._known = self.paused()
            self._looks_at = time.monotonic() + LOOK_S
        return rule in self._known

    def pause(self, rule: str) -> bool:
        """Begins nothing for the rule from now on; gives whether it was at work. Safe to repeat.

        The rule must be registered. What is under way is done to its end.
        """
        at_work = sa.update(RULES).where(_RULE.name == rule, _RULE.paused_at.is_(None))
        was_at_work = bool(self._ledger.run(at_work.values(paused_at=self._ledger.clock())))
        self._looks_at = 0.0
        if was_at_work:
            log.warning("rule paused", rule=rule)
        return was_at_work

    def resume(self, rule: str) -> bool:
        """Does for the rule what was asked for meanwhile; gives whether it was paused. Safe to repeat."""
        paused = sa.update(RULES).where(_RULE.name == rule, _RULE.paused_at.is_not(None))
        was_paused = bool(self._ledger.run(paused.values(paused_at=None)))
        self._looks_at = 0.0
        if was_paused:
            log.warning("rule resumed", rule=rule)
        self.unpark()
        return was_paused

    def keep(self) -> None:
        """Makes due what was parked by who had not heard of the end of a pause. For every few seconds: it
        looks only where a pause has just ended, because what is parked may be much.
        """
        before, self._seen = self._seen, frozenset(self.paused())
        if before is None or before - self._seen:
            self._looks_until = time.monotonic() + KEEP_S
        if time.monotonic() < self._looks_until:
            self.unpark()

    def unpark(self) -> int:
        """Makes what is parked due, but for the rules that are paused; gives how many."""
        count = 0
        while some := int(self._ledger.run(self._unpark_some(), durable=False)):
            count += some
            self._ledger.tell_listeners()
        return count

    def _unpark_some(self) -> sa.Update:
        paused = sa.select(_RULE.name).where(_RULE.paused_at.is_not(None))
        lane = sa.or_(*(_ROW.lane == each for each in LANES))
        parked = sa.select(_ROW.rule, _ROW.key).where(
            lane, _ROW.due_at >= PARKED_AT, _ROW.rule.not_in(paused)
        )
        some = parked.limit(UNPARK_KEYS).with_for_update(skip_locked=True)
        due = sa.update(ENTRIES).where(sa.tuple_(_ROW.rule, _ROW.key).in_(some), _ROW.state == WAITING)
        return due.values(due_at=self._ledger.clock())
