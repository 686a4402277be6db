"""Sweeps: walks both listings of a rule and puts what differs into the backfill lane.

A sweep finds what was there before the service, and what no event has told of. It goes page by page, keeps
its cursor in the ledger, and goes on from there when its process dies. A listing that fails or is cut short
ends it for now, and nothing follows from what was not seen.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from webhook import sweeps
from webhook.compare import SOURCE, Kind, Listings, Pair, Unordered, judge, looks_equal
from webhook.deletes import Deletes
from webhook.entries import BACKFILL, FAILED, RUNNING, SETTLED, WAITING, Request, is_own
from webhook.errors import LedgerUnavailable, ReplicatorError, StoreError
from webhook.events import key_problem
from webhook.ledger import Ledger
from webhook.listing import Listed, Page
from webhook.processes import is_dead, own_name
from webhook.rules import Rule, Rules
from webhook.source import Source
from webhook.strays import end_strays
from webhook.sweeps import Sweep, Sweeps
from webhook.target import Target

BATCH_KEYS = 100
"""Differing keys that go into the ledger together: live events wait for that transaction."""
STRIDE_KEYS = 10_000
"""Keys compared between two notes of the cursor."""
WAITING_MAX = 4000
"""Entries of the backfill lane that wait or run at once; a sweep waits for them to become fewer."""
FULL_PAUSE_S = 0.1
STEP_S = 1.0
"""Between looks for a sweep that is due."""
SCHEDULE_S = 30.0
"""Between looks at which rules were not swept for too long."""
DOWNTIME_S = 120.0
"""Without any process for longer than this, events may have been lost: all rules are swept."""
JITTER_SHARE = 0.1
PUT_OFF_S, PUT_OFF_MAX_S = 5.0, 300.0
"""After an error; doubled up to the second."""
DIFFERENCES = (Kind.MISSING, Kind.DIFFERENT, Kind.UNPROVEN, Kind.EXTRA)

log = structlog.get_logger("webhook.reconcile")


class Stopped(Exception):
    """The process stops, or another one sweeps: this sweep is gone on with elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both sides of all rules."""

    rules: Rules
    source: Source
    targets: Mapping[str, Target]

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self.source.close()
        for target in self.targets.values():
            target.close()

    def concrete(self) -> tuple[Rule, ...]:
        """The rules of all buckets there are; asks the source where some are named by globs.

        Raises: StoreError.
        """
        buckets = list(self.rules.literal_buckets)
        if self.rules.has_globs:
            buckets += self.source.buckets()
        return self.rules.of_buckets(buckets)

    def listings(self, rule: Rule, **more: Any) -> Listings:
        """Both listings of a rule."""
        return Listings(rule=rule, source=self.source, target=self.targets[rule.target], **more)


def shape(rule: Rule) -> str:
    """What of a rule decides which object lies where: with another shape, what was proved is so no more."""
    facts = asdict(rule)
    for name in ("name", "deletes", "storage_class", "tags"):
        facts.pop(name)
    return json.dumps(facts, sort_keys=True)


class Sweeper:
    """Does the sweeps that are due, one at a time, in a thread of its own. `start` once, `stop` once."""

    def __init__(
        self,
        sides: Sides,
        ledger: Ledger,
        deletes: Deletes,
        *,
        interval_s: float,
        lease_s: float,
        upload_keep_s: float,
    ) -> None:
        """`interval_s`: how often each rule is swept, 0: only when asked for; `upload_keep_s`: how long an
        upload that nobody knows of is left alone.
        """
        self._sides = sides
        self._ledger = ledger
        self._deletes = deletes
        self._sweeps = Sweeps(ledger)
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._upload_keep_s = upload_keep_s
        self._name = own_name()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lease_until = 0.0
        self._scheduled_at = -SCHEDULE_S
        self._down_since = 0.0
        self._failures: Counter[int] = Counter()

    def start(self, *, last_seen_at: float | None = None) -> None:
        """Starts the thread. `last_seen_at`: when any process gave its last sign of life; where that is long
        ago, events may have been lost since, and all rules are swept.
        """
        if last_seen_at is not None and self._ledger.clock() - last_seen_at > DOWNTIME_S:
            self._down_since = last_seen_at
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread at its next step; a sweep under way stays open."""
        self._stopping.set()
        if self._thread:
            self._thread.join(STEP_S * 3)

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────

    def _loop(self) -> None:
        trouble_s = STEP_S
        while not self._stopping.is_set():
            try:
                self._schedule()
                busy = self.run_due()
                trouble_s = STEP_S
            except (LedgerUnavailable, StoreError) as error:
                log.warning("cannot sweep now", error=error.message)
                busy, trouble_s = False, min(trouble_s * 2, PUT_OFF_MAX_S)
            except Exception:
                log.exception("cannot sweep now")
                busy, trouble_s = False, min(trouble_s * 2, PUT_OFF_MAX_S)
            if not busy:
                self._stopping.wait(trouble_s)

    def _schedule(self) -> None:
        """Asks for a sweep of the rules that had none for an interval, or none since all were down."""
        if time.monotonic() - self._scheduled_at < SCHEDULE_S:
            return
        rules = self._sides.concrete()
        self._sweeps.register({rule.name: shape(rule) for rule in rules})
        for rule in rules if self._interval_s else ():
            last = self._sweeps.last_asked(rule.name)
            cause = "start" if last is None or last.asked_at <= self._down_since else "interval"
            if last is None or cause == "start" or self._is_over(last):
                self._sweeps.request(rule.name, cause=cause)
        self._scheduled_at = time.monotonic()

    def _is_over(self, last: Sweep) -> bool:
        """Whether the interval is; a little early, so that rules do not all come at once."""
        early_s = self._interval_s * JITTER_SHARE * random.Random(last.id).random()
        return self._ledger.clock() - last.asked_at >= self._interval_s - early_s

    # ── one sweep ────────────────────────────────────────────────────────────────────────────────────

    def run_due(self) -> bool:
        """Does the sweep that is due, if there is one and nobody else sweeps; gives whether it did."""
        sweep = self._sweeps.next_due()
        if sweep is None or not self._take_lease():
            return False
        try:
            self._run(sweep)
        except (Stopped, sweeps.NotOpen):
            pass
        except LedgerUnavailable:
            raise  # nothing can be noted either
        except Exception as error:  # noqa: BLE001
            self._put_off(sweep, error)
        finally:
            self._sweeps.give_up_lease(worker=self._name)
        return True

    def _put_off(self, sweep: Sweep, error: Exception) -> None:
        if isinstance(error, ReplicatorError):
            text = f"{error.message}. {error.hint}".strip()
        elif isinstance(error, OSError):
            text = str(error)
        else:
            text = f"{type(error).__name__}, see the log"
            log.error("unexpected error", rule=sweep.rule, exc_info=error)
        by_s = min(PUT_OFF_MAX_S, PUT_OFF_S * 2 ** min(self._failures[sweep.id], 10))
        self._failures[sweep.id] += 1
        with contextlib.suppress(sweeps.NotOpen):
            self._sweeps.put_off(sweep, by_s=by_s, error=text)
        log.warning("sweep put off", rule=sweep.rule, error=text)

    def _run(self, sweep: Sweep) -> None:
        rule = self._sides.rules.named(sweep.rule)
        if rule is None:
            self._sweeps.end(sweep, sweeps.DROPPED)
            return
        since = self._sweeps.register({rule.name: shape(rule)})[rule.name]
        sweep = self._sweeps.begin(sweep, worker=self._name)
        log.info("sweep begins", rule=rule.name, sweep=sweep.id, cause=sweep.cause, cursor=sweep.cursor)
        proof = self._sweeps.last_proofs({rule.name: shape(rule)}).get(rule.name)
        proved_at = proof.proves_at if proof else None
        walk = _Walk(self, rule, sweep, first_seen_at=since, proved_at=proved_at)
        while True:
            try:
                sweep = walk.run()
                break
            except Unordered as error:
                walk.sort_on_disk(error.side)
        self._deletes.look_again(rule.name)
        if not sweep.prefix:
            self._end_strays(rule)
        sweep = self._sweeps.end(sweep)
        found = {name: getattr(sweep, name) for name in sweeps.COUNTS}
        log.info("sweep complete", rule=rule.name, sweep=sweep.id, **found)

    def _end_strays(self, rule: Rule) -> None:
        """What it cannot end now is there at the next sweep."""
        try:
            end_strays(rule, self._sides.targets[rule.target], self._ledger, keep_s=self._upload_keep_s)
        except StoreError as error:
            log.warning("cannot end stray uploads", rule=rule.name, error=error.message)

    def _take_lease(self) -> bool:
        until = time.monotonic() + self._lease_s
        if self._sweeps.take_lease(worker=self._name, lease_s=self._lease_s, is_dead=is_dead):
            self._lease_until = until
            return True
        return False

    def keep_on(self) -> None:
        """Raises Stopped where the process stops, or somebody else may be sweeping."""
        if self._stopping.is_set():
            raise Stopped
        if time.monotonic() > self._lease_until - self._lease_s * 0.75 and not self._take_lease():
            raise Stopped

    def wait_for_room(self) -> None:
        """Until the backfill lane has room for more. Raises: Stopped."""
        while self._ledger.backlog(BACKFILL, limit=WAITING_MAX) >= WAITING_MAX:
            self.keep_on()
            self._stopping.wait(FULL_PAUSE_S)

    @property
    def parts(self) -> tuple[Sides, Ledger, Deletes, Sweeps]:
        """What a walk works with."""
        return self._sides, self._ledger, self._deletes, self._sweeps


class _Walk:
    """One sweep under way."""

    def __init__(
        self,
        sweeper: Sweeper,
        rule: Rule,
        sweep: Sweep,
        *,
        first_seen_at: float,
        proved_at: float | None,
    ) -> None:
        """`first_seen_at`: since when the rule is as it is; `proved_at`: what the last sweep proved."""
        self._sweeper = sweeper
        self._sides, self._ledger, self._deletes, self._sweeps = sweeper.parts
        self._rule = rule
        self._sweep = sweep
        self._first_seen_at = first_seen_at
        self._proved_at = proved_at
        self._source_is_empty = True
        """Whether the source has listed nothing yet; it is listed from its begin."""

    def run(self) -> Sweep:
        """To the end of both listings. Raises: Unordered, StoreError, OSError, Stopped, LedgerUnavailable."""
        if self._sweep.proves_at is None:
            now = self._sides.source.time(self._rule.source_bucket)
            self._sweep = self._sweeps.prove_from(self._sweep, now or self._ledger.clock())
        counts: Counter[str] = Counter()
        differing: list[Pair] = []
        key = self._sweep.cursor
        listings = self._sides.listings(
            self._rule,
            prefix=self._sweep.prefix,
            after=self._sweep.cursor,
            on_disk=frozenset(filter(None, self._sweep.on_disk.split(","))),
            told=self._note_page,
        )
        for pair in listings.pairs():
            source, target = pair
            here = source or target
            assert here is not None  # noqa: S101 - one of the two is there # nosec B101
            key = here.key
            counts["compared"] += 1
            counts["compared_bytes"] += source.size if source else 0
            if source is None or target is None or not looks_equal(source, target):
                differing.append(pair)
            if len(differing) >= BATCH_KEYS or counts["compared"] % STRIDE_KEYS == 0:
                self._settle(key, counts, differing)
                counts, differing = Counter(), []
        self._settle(key, counts, differing)
        return self._sweep

    def sort_on_disk(self, side: str) -> None:
        """This side's keys do not come in order: all is begun anew, with this side's sorted before."""
        log.info("listing is sorted on disk", rule=self._rule.name, side=side)
        sides = ",".join(sorted({*filter(None, self._sweep.on_disk.split(",")), side}))
        self._sweep = self._sweeps.sort_on_disk(self._sweep, sides)

    def _note_page(self, side: str, page: Page) -> None:
        self._sweeper.keep_on()
        if side == SOURCE and page.objects:
            self._source_is_empty = False

    def _settle(self, cursor: str, counts: Counter[str], differing: Sequence[Pair]) -> None:
        """Puts what differs, then notes how far the sweep has come."""
        self._sweeper.keep_on()
        usable = [pair for pair in differing if not self._is_unusable(_key(pair))]
        counts[Kind.KEPT] += len(differing) - len(usable)
        known = self._ledger.known(self._rule.name, [_key(pair) for pair in usable]) if usable else {}
        requests = []
        for pair in usable:
            entry = known.get(_key(pair))
            if (kind := judge(self._rule, pair, entry)) is None:
                continue
            counts[kind] += 1
            if request := self._request(kind, pair, entry):
                requests.append(request)
        if requests:
            self._sweeper.wait_for_room()
            self._ledger.put(requests, lane=BACKFILL)
        counts["put"] = len(requests)
        for each in DIFFERENCES:
            if counts[each]:
                kind_of = {"rule": self._rule.name, "kind": str(each)}
                self._ledger.meter.count("sweep_differences", counts[each], **kind_of)
        cursor = self._sweep.cursor if key_problem(cursor) else cursor
        self._sweep = self._sweeps.advance(self._sweep, cursor, counts)

    def _is_unusable(self, key: str) -> bool:
        """Whether neither the ledger nor a worker could do anything with the key."""
        problem = key_problem(key)
        if problem:
            log.warning("key cannot be copied", rule=self._rule.name, key=ascii(key), reason=problem)
        return problem is not None

    def _request(self, kind: Kind, pair: Pair, entry: Mapping[str, Any] | None) -> Request | None:
        """What the workers are to look at; nothing where a person decides, or all is as it should be."""
        source, _ = pair
        if kind is Kind.KEPT:
            return None
        if source is None:
            return self._removal(pair, entry)
        is_missed = kind is not Kind.UNPROVEN and not _was_told(entry, source)
        is_missed = is_missed and source.modified_at >= self._first_seen_at
        return Request(
            rule=self._rule.name,
            key=source.key,
            event_at=source.modified_at,
            asked_at=self._behind_since(source.modified_at),
            missed_at=self._ledger.clock() if is_missed else None,
            etag=source.etag,
        )

    def _behind_since(self, modified_at: float) -> float:
        """Since when the target may not have had what the source had at this key: an earlier version may have
        been there, of which no event told either. 0.0: that cannot be told.
        """
        return 0.0 if self._proved_at is None else min(modified_at, self._proved_at)

    def _removal(self, pair: Pair, entry: Mapping[str, Any] | None) -> Request | None:
        """For a key that only the target has, and that this service put there."""
        target = pair[1]
        if not self._rule.deletes or not entry or not target:
            return None
        if entry["state"] != SETTLED:  # it is looked at anyway, or waits for a person
            return None
        if not is_own(target.etag, entry["target_etag"], entry["told_etags"]):
            return None
        if self._source_is_empty and not self._sweep.prefix:
            self._deletes.trip(self._rule.name, "the source lists no object at all")
        return Request(rule=self._rule.name, key=_key(pair), missed_at=self._ledger.clock())


def _key(pair: Pair) -> str:
    here = pair[0] or pair[1]
    return here.key if here else ""


def _was_told(entry: Mapping[str, Any] | None, source: Listed) -> bool:
    """Whether the ledger knows of this change: it is being worked on, or is what was copied last."""
    if entry is None:
        return False
    return entry["state"] in (WAITING, RUNNING, FAILED) or entry["source_etag"] == source.etag
