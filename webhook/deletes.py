"""Deletes, guarded: an object goes from the target only after

 1. its rule asks for deletes, and the copy is this service's own or an event told of the removal,
 2. a grace period in which the key did not come back,
 3. the breaker of its rule has not tripped: not too many go at once,
 4. the source, asked anew, says that it has no such key (an error, a refusal or a missing bucket is no such
    answer).

What the breaker holds back waits for a person, who approves or discards it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
import structlog

from webhook.copier import Copier, OutcomeKind
from webhook.entries import HELD, RUNNING, SETTLED, WAITING, Claim, Deferred, Ending, Held, Settled, is_own
from webhook.errors import LeaseLost
from webhook.ledger import Ledger
from webhook.multipart import Permit
from webhook.objects import ObjectInfo
from webhook.rules import Rule
from webhook.settings import DeleteSettings
from webhook.statements import update_in_order
from webhook.tables import ENTRIES, RULES

WINDOW_S = 3600.0
"""The breaker counts what would go within this time."""
SMALL_RULE_KEYS = 100
"""The share counts only where a rule has more keys than this."""
UNDECIDED_S = 1.0
"""Until a delete about which nothing can be told now is looked at again."""
NOT_OURS = "delete: what the target has is not what this service wrote"

log = structlog.get_logger("webhook.deletes")
_ROW, _RULE = ENTRIES.c, RULES.c


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """What stands between a rule and its deletes. `tripped_at`: seconds since 1970, None: it has not."""

    tripped_at: float | None
    reason: str
    held: int
    """Deletes that wait for a person."""
    pending: int
    """Deletes in their grace period."""


class Deletes:
    """Thread-safe; the breaker is in the ledger and holds for all processes."""

    def __init__(self, ledger: Ledger, settings: DeleteSettings) -> None:
        self._ledger = ledger
        self._settings = settings

    # ── one key ──────────────────────────────────────────────────────────────────────────────────────

    def ending(self, claim: Claim, rule: Rule, copier: Copier, permit: Permit) -> Ending:
        """What follows where the source has no such key. Raises: StoreError, LeaseLost, LedgerUnavailable."""
        present = copier.present(rule, claim.key)
        if present is None:  # or the store was in trouble: what a sweep finds there still is this service's
            return replace(_gone(claim), source_etag=claim.source_etag, target_etag=claim.target_etag)
        if not _is_ours(claim, present):
            return _gone(claim, lost=(NOT_OURS,))
        waits_s = self._settings.grace_s
        if claim.gone_at is not None:
            waits_s = claim.gone_at + self._settings.grace_s - self._ledger.clock()
        if claim.gone_at is None or waits_s > 0:
            return Deferred(claim=claim, after_s=max(0.0, waits_s))
        if (allowed := self._is_allowed(claim)) is None:
            return Deferred(claim=claim, after_s=UNDECIDED_S)
        if not allowed:
            return Held(claim=claim)
        allowed_still = _Allowed(permit, lambda: self._is_allowed(claim))
        if not copier.remove_copy(rule, claim.key, permit=allowed_still, etag=present.etag):
            return Deferred(claim=claim, after_s=0.0, is_back=True)  # the next attempt copies it
        return Settled(claim=claim, outcome=str(OutcomeKind.DELETED), gone_at=claim.gone_at)

    # ── the breaker ──────────────────────────────────────────────────────────────────────────────────

    def _is_allowed(self, claim: Claim) -> bool | None:
        """Whether deletes of the rule may go on; trips the breaker where too many would go.

        None: it cannot be told now, because the rule is new or a person has decided since the claim was made.
        """
        rule = claim.rule
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(RULES).where(_RULE.name == rule)).mappings().first()
            if row is None or row["counted_from"] > claim.claimed_at:
                return None
            if row["tripped_at"] is not None:
                return False
            since = max(self._ledger.clock() - self._window_s, row["counted_from"])
            going = self._count(connection, _ROW.rule == rule, _ROW.gone_at > since)
            keys = 0
            if going <= self._settings.breaker_max:
                held = sa.or_(_ROW.target_etag != "", _ROW.gone_at > since)
                keys = self._count(connection, _ROW.rule == rule, held)
        if going > self._settings.breaker_max:
            self.trip(rule, f"more than {self._settings.breaker_max} keys would go within an hour")
            return False
        if keys > SMALL_RULE_KEYS and going > self._settings.breaker_share * keys:
            share = f"{self._settings.breaker_share:.0%} of its {keys} keys"
            self.trip(rule, f"{going} keys would go within an hour, more than {share}")
            return False
        return True

    @property
    def _window_s(self) -> float:
        """All that is in its grace period counts, and what has gone in the last hour."""
        return WINDOW_S + self._settings.grace_s

    def _count(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
        """How many entries there are, counted until the share allows more of them than the number does."""
        share = max(self._settings.breaker_share, 0.001)
        limit = int(max(self._settings.breaker_max, SMALL_RULE_KEYS) / share) + 2
        some = sa.select(sa.literal(1)).select_from(ENTRIES).where(*conditions).limit(limit)
        return connection.execute(sa.select(sa.func.count()).select_from(some.subquery())).scalar_one()

    def trip(self, rule: str, reason: str) -> None:
        """No delete of the rule goes on until a person has decided. Safe to repeat."""
        is_closed = (_RULE.name == rule, _RULE.tripped_at.is_(None))
        tripped = sa.update(RULES).where(*is_closed)
        if self._ledger.run(tripped.values(tripped_at=self._ledger.clock(), trip_reason=reason)):
            log.error("delete breaker tripped", rule=rule, reason=reason)

    def approve(self, rule: str) -> int:
        """Lets what was held back go, each after a fresh look at the source; gives how many."""
        waiting = {"state": WAITING, "due_at": self._ledger.clock(), "generation": _ROW.generation + 1}
        return self._decide(rule, "approved", (HELD,), waiting)

    def discard(self, rule: str) -> int:
        """Keeps at the target what was held back or is in its grace period, for good; gives how many.

        Those copies count as no longer this service's, until the source has their keys again.
        """
        disowned: dict[str, object] = {"source_etag": None, "target_etag": None, "removal_told": 0}
        disowned |= {"told_etags": "", "gone_at": None, "settled_at": self._ledger.clock()}
        kept = {"state": SETTLED, "outcome": str(OutcomeKind.GONE), "due_at": None, "asked_at": None}
        running = sa.update(ENTRIES).where(*_going(rule, RUNNING)).values(**disowned)
        return self._decide(rule, "discarded", (HELD, WAITING), disowned | kept, running)

    def _decide(
        self, rule: str, word: str, states: Sequence[str], values: Mapping[str, object], *more: sa.Update
    ) -> int:
        closed: dict[str, Any] = {
            "tripped_at": None,
            "trip_reason": None,
            "counted_from": self._ledger.clock(),
        }
        count = int(
            self._ledger.run(
                sa.update(RULES).where(_RULE.name == rule).values(**closed),
                *more,
                update_in_order(*_going(rule, *states)).values(**values),
            )
        )
        log.warning("deletes decided", rule=rule, decision=word, keys=count)
        self._ledger.tell_listeners()
        return count

    def look_again(self, rule: str) -> int:
        """Has the workers look at what is held back: the source may have it again. Gives how many."""
        again = update_in_order(*_going(rule, HELD))
        return int(self._ledger.run(again.values(state=WAITING, due_at=self._ledger.clock())))

    def forget(self) -> None:
        """Lets go of deletes that count for no breaker any more."""
        past = (_ROW.gone_at < self._ledger.clock() - 2 * self._window_s, _ROW.state == SETTLED)
        self._ledger.run(sa.update(ENTRIES).where(_ROW.gone_at.is_not(None), *past).values(gone_at=None))

    def breakers(self) -> dict[str, Breaker]:
        """rule → its breaker, of all rules that were ever seen."""
        grouped = sa.select(_ROW.rule, _ROW.state, sa.func.count()).group_by(_ROW.rule, _ROW.state)
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(RULES)).mappings().all()
            found = connection.execute(grouped.where(_ROW.gone_at.is_not(None))).all()
        counts = {(rule, state): number for rule, state, number in found}
        return {
            row["name"]: Breaker(
                tripped_at=row["tripped_at"],
                reason=row["trip_reason"] or "",
                held=counts.get((row["name"], HELD), 0),
                pending=counts.get((row["name"], WAITING), 0),
            )
            for row in rows
        }


@dataclass(frozen=True)
class _Allowed:
    """A permit that ends where a person, or the breaker, decides against the delete at the last moment."""

    permit: Permit
    is_allowed: Callable[[], bool | None]

    def check(self) -> None:
        """Raises LeaseLost unless the delete may be done."""
        self.permit.check()
        if not self.is_allowed():
            raise LeaseLost("the delete is held back")

    def note_upload(self, note: str | None) -> None:
        """As the permit does."""
        self.permit.note_upload(note)


def _is_ours(claim: Claim, present: ObjectInfo) -> bool:
    """Whether the target's object is this service's, as far as the ledger knows.

    Where nothing of the key was ever settled, an event that told of the removal will do: the source had it.
    """
    if is_own(present.etag, claim.target_etag, claim.told_etags):
        return True
    return bool(claim.removal_told) and claim.settled_at is None


def _going(rule: str, *states: str) -> tuple[sa.ColumnElement[bool], ...]:
    """True on the rule's entries in these states whose delete was pending."""
    which = sa.or_(*(_ROW.state == state for state in states))
    return _ROW.rule == rule, _ROW.gone_at.is_not(None), which


def _gone(claim: Claim, *, lost: tuple[str, ...] = ()) -> Settled:
    """That a delete was done or pending stays known, for the breaker."""
    return Settled(claim=claim, outcome=str(OutcomeKind.GONE), lost=lost, gone_at=claim.gone_at)
